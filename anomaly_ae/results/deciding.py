"""Deciding a finished run again, from its own calibration scores and, where a rule needs them, its labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anomaly_ae.calibration import Asked, CalibrationScores, Thresholds, thresholds_by
from anomaly_ae.errors import DataError
from anomaly_ae.files import write_together
from anomaly_ae.listener import Listener
from anomaly_ae.records import ANOMALOUS_LABEL, NORMAL_LABEL, Decision
from anomaly_ae.results.beside import DEFECT_RATES
from anomaly_ae.results.figures import run_metrics
from anomaly_ae.results.finished import anomalous_scores
from anomaly_ae.results.review import chosen_on_these, images_sha256, limit_lines, review_lines
from anomaly_ae.results.rows import decide_rows, unit_rows
from anomaly_ae.results.tables import (
    FAILURE_COLUMNS,
    NOT_INSPECTED,
    UNIT_COLUMNS,
    Row,
    Table,
    csv_table,
    json_lines,
    json_text,
    read_csv,
    read_json,
    read_scores,
    reading,
    score_table,
    table_files,
    unit_table,
)
from anomaly_ae.threshold import best_f1
from anomaly_ae.words import n_of

_LABELS = (NORMAL_LABEL, ANOMALOUS_LABEL)
_LOOKED_AT = (Decision.ANOMALOUS, Decision.REVIEW)


@dataclass(frozen=True, slots=True)
class Redecided:
    """What a finished run says at other thresholds; ``tables`` are those of scores and units."""

    thresholds: Thresholds
    tables: tuple[Table, Table]
    n_images: int
    n_anomalous: int
    n_review: int
    said: tuple[str, ...]

    def lines(self) -> list[str]:
        """Say it in words: of images and, where several images make one, of units."""
        return list(self.said)


def redecide(run: Path, asked: Asked, listener: Listener | None = None) -> Redecided:
    """Set new thresholds in a finished run from its own scores; no image, no model is needed.

    Tables, ``metrics.json`` and ``run.json`` are written again, all or none. Scores, maps, pictures and regions stay;
    the listener is told where regions and decisions follow different thresholds then. Where nothing is asked, the
    thresholds of the model come back; a review band alone is put below these.

    Raises
    ------
    CalibrationError
        The rate or sensitivity is out of reach.
    DataError
        The folder is no run, its tables name other images, or it lacks the labels that a rule needs.
    UsageError
        A review limit that is not below the threshold.
    """
    info, rows = read_json(run / "run.json"), read_scores(run)
    failures = read_csv(run / "failures.csv", FAILURE_COLUMNS)
    incomplete = _incomplete(run / "units.csv")
    if info.get("calibration", True) is None:
        why = "the scores of another tool came without rows of split calibration"
        raise DataError(f"{run} has no calibration scores", why, "evaluate again with such rows in --scores and DATA")
    with reading(run / "run.json"):
        scores = CalibrationScores.from_json(info["calibration"])
        of_model = info.get("model_threshold", info["threshold"])
        thresholds = Thresholds.from_json(of_model)
    if not asked.nothing:
        anomalies = anomalous_scores(rows, incomplete)
        thresholds = thresholds_by(asked, scores, anomalies, images_sha256(rows), thresholds)
    rows = decide_rows(rows, scores, thresholds)
    units = unit_rows(rows, incomplete, scores, thresholds)
    now = thresholds.as_json()
    marks = {"what_if": now != of_model, "chosen_on_these_images": chosen_on_these(thresholds, rows)}
    metrics: dict[str, Any] = {}
    if (run / "metrics.json").exists():
        metrics = read_json(run / "metrics.json")
        shares = [at["defect_rate"] for at in metrics["image"].get("at_defect_rate", ())] or DEFECT_RATES
        metrics |= run_metrics(rows, units, thresholds, list(metrics.get("by", {})), shares, metrics) | marks
    tables = score_table(rows), unit_table(units)
    info |= {"threshold": now, "model_threshold": of_model, **marks}
    files = {"run.json": [json_text(info)]} | ({"metrics.json": [json_text(metrics)]} if metrics else {})
    write_together(run, files | table_files(tables[0], json_lines(rows), tables[1], failures))
    # The scores of another tool come without regions, and without pictures.
    note = regions_note((row["pixel_threshold"] for row in rows if row["n_regions"] != ""), thresholds.pixel.value)
    if note and listener:
        listener.say(note)
    n_anomalous, n_review = (sum(row["decision"] == kind for row in rows) for kind in _LOOKED_AT)
    said = [*_level_lines("image", rows, thresholds, scores, metrics)]
    if any(unit["n_images"] > 1 for unit in units):
        said += _level_lines("unit", units, thresholds, scores, metrics)
    said += _notes(rows, marks["chosen_on_these_images"])
    return Redecided(thresholds, tables, len(rows), n_anomalous, n_review, tuple(said))


def _incomplete(path: Path) -> dict[str, str]:
    """Return the units that were not inspected as a whole, and their groups."""
    units = csv_table(path, UNIT_COLUMNS).values("unit", "group", "decision")
    return {unit: group for unit, group, decision in units if decision == NOT_INSPECTED}


def _level_lines(
    noun: str, members: Sequence[Row], thresholds: Thresholds, scores: CalibrationScores, metrics: Mapping[str, Any]
) -> Iterable[str]:
    """Yield what the limits of images, or units, promise, how these were decided, and what their review leaves."""
    yield from limit_lines(thresholds, scores, noun)
    n_anomalous, n_review = (sum(member["decision"] == kind for member in members) for kind in _LOOKED_AT)
    review = f", {n_review} for review" if thresholds.image.review else ""
    verb = "is" if 1 in (n_anomalous, len(members)) else "are"
    yield f"{n_anomalous} of {n_of(len(members), noun)} {verb} anomalous at it{review}"
    if metrics:
        yield from review_lines(metrics[noun], noun)


def _notes(rows: Sequence[Row], chosen_here: bool) -> Iterable[str]:
    """Yield what to know of the figures: whether labels chose the limits, and for comparison the best F1 score."""
    if chosen_here:
        yield "chosen on these images: the figures of this run are no forecast at it. Measure on other images."
    normal, anomalous = ([row["score"] for row in rows if row["label"] == label] for label in _LABELS)
    if normal and anomalous:
        value, f1 = best_f1(normal, anomalous)
        yield f"for comparison, max_f1: {value:.4g} has the best F1 score, {f1:.3f} (chosen on these images; no rule)"


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
