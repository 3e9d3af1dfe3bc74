"""Deciding a finished run again, from its own calibration scores."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from anomaly_ae.calibration import CalibrationScores, Thresholds, thresholds_from
from anomaly_ae.listener import Listener
from anomaly_ae.records import Decision
from anomaly_ae.results.figures import run_metrics
from anomaly_ae.results.rows import decide_rows, unit_rows
from anomaly_ae.results.tables import (
    FAILURE_COLUMNS,
    NOT_INSPECTED,
    UNIT_COLUMNS,
    read_csv,
    read_json,
    read_rows,
    reading,
    write_json,
    write_tables,
)
from anomaly_ae.threshold import Share


@dataclass(frozen=True, slots=True)
class Redecided:
    """What a finished run says at other thresholds."""

    thresholds: Thresholds
    n_images: int
    n_anomalous: int

    def lines(self) -> list[str]:
        """Say it in words."""
        limit = self.thresholds.image
        counts = f"{self.n_anomalous} of {self.n_images} images are anomalous at it"
        return [f"image threshold {limit.value:.4g}: {limit.promise}", counts]


def redecide(run: Path, rate: Share | None, confidence: Share | None, listener: Listener | None = None) -> Redecided:
    """Set new thresholds in a finished run from its own calibration scores; no image, no model is needed.

    Tables, ``metrics.json`` and ``run.json`` are written again. Scores, maps, pictures and regions stay; the listener
    is told where regions and decisions follow different thresholds then.

    Raises
    ------
    CalibrationError
        The rate is out of reach.
    DataError
        The folder is no run.
    """
    info, rows = read_json(run / "run.json"), read_rows(run / "scores.jsonl")
    failures = read_csv(run / "failures.csv", FAILURE_COLUMNS)
    old_units = read_csv(run / "units.csv", UNIT_COLUMNS)
    with reading(run / "run.json"):
        scores = CalibrationScores.from_json(info["calibration"])
    thresholds = thresholds_from(scores, rate, confidence)
    rows = decide_rows(rows, scores, thresholds)
    incomplete = {unit["unit"]: unit["group"] for unit in old_units if unit["decision"] == NOT_INSPECTED}
    units = unit_rows(rows, incomplete, scores, thresholds)
    of_model, now = info.get("model_threshold", info["threshold"]), thresholds.as_json()
    what_if = {"what_if": now != of_model}
    if (run / "metrics.json").exists():
        metrics = read_json(run / "metrics.json")
        metrics |= run_metrics(rows, units, thresholds, list(metrics.get("by", {}))) | what_if
        write_json(run / "metrics.json", metrics)
    write_tables(run, rows, units, failures)
    write_json(run / "run.json", {**info, "threshold": now, "model_threshold": of_model, **what_if})
    note = regions_note((row["pixel_threshold"] for row in rows), thresholds.pixel.value)
    if note and listener:
        listener.say(note)
    return Redecided(thresholds, len(rows), sum(row["decision"] == Decision.ANOMALOUS for row in rows))


def regions_note(scored_at: Iterable[float], pixel_threshold: float) -> str:
    """Say which pixel threshold the regions of a run follow, where it is not the one in force; else "".

    Parameters
    ----------
    scored_at : iterable of float
        ``pixel_threshold`` of the rows.
    pixel_threshold : float
        In force now.
    """
    others = set(scored_at) - {pixel_threshold}
    if not others:
        return ""
    return (
        f"Decided again: regions and heatmaps/ still follow the pixel threshold of the scoring, {min(others):.4g}; "
        f"it is {pixel_threshold:.4g} now. Calibrate and score again to renew them."
    )
