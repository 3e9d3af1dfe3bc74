"""A saved run, and what is decided in it: images, or units of several images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anomaly_ae.calibration import Thresholds
from anomaly_ae.errors import DataError
from anomaly_ae.records import Decision
from anomaly_ae.results import FAILURE_COLUMNS, UNIT_COLUMNS, Row, chosen_on_these, read_json, read_scores
from anomaly_ae.results.tables import read_csv, reading


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that was decided: an image, or a unit.

    Attributes
    ----------
    score : float or None
        None where it was not inspected.
    decision : int or None
        A code of `Decision`; None where the run has no threshold.
    """

    name: str
    label: str
    defect: str
    group: str
    score: float | None
    decision: int | None


@dataclass(frozen=True, slots=True, eq=False)
class SavedRun:
    """What `score` or `evaluate` left in a folder.

    Attributes
    ----------
    rows : tuple of mapping
        Of ``scores.jsonl``.
    images, units : tuple of Item
        The scored images, and the units of ``units.csv``.
    failures : tuple of mapping
        Of ``failures.csv``: every value is text.
    metrics : mapping
        Of ``metrics.json``; empty where there is none.
    has_units : bool
        Units of several images are decided, not images.
    has_threshold : bool
        False for scores of another tool without calibration images: nothing is decided.
    what_if : bool
        The decisions follow other thresholds than those of the model.
    chosen_here : bool
        The thresholds were chosen on the images of the run.
    n_seen_in_fit : int
        How many of the images were used in `fit`, or to set a threshold.
    """

    folder: Path
    info: Mapping[str, Any]
    rows: tuple[Row, ...]
    images: tuple[Item, ...]
    units: tuple[Item, ...]
    failures: tuple[Mapping[str, str], ...]
    metrics: Mapping[str, Any]
    has_units: bool
    has_threshold: bool
    what_if: bool
    chosen_here: bool
    n_seen_in_fit: int

    @property
    def used_in_fit(self) -> str:
        """Say that the model knows some of the images; "" where it knows none."""
        if not self.n_seen_in_fit:
            return ""
        verb = "was" if self.n_seen_in_fit == 1 else "were"
        return f"{self.n_seen_in_fit} of its images {verb} used in fit or to set a threshold: its figures are too good"

    def images_of_units(self) -> dict[str, frozenset[str]]:
        """Return the ids of the scored images of every unit."""
        found: dict[str, set[str]] = {}
        for row in self.rows:
            found.setdefault(row["unit"], set()).add(row["id"])
        return {unit: frozenset(ids) for unit, ids in found.items()}

    def caveats(self) -> list[str]:
        """Say what keeps the figures of this run from being those of new images."""
        found = []
        if not self.has_threshold:
            found.append("it has no threshold, so nothing is decided")
        if self.chosen_here:
            found.append("its threshold was chosen on these images: its rates are no forecast")
        elif self.what_if:
            found.append("its threshold was changed after scoring (what-if): its rates say what would have been")
        if self.info["aborted"]:
            found.append("it was stopped before all images were scored")
        if any(item.decision == Decision.REVIEW for item in (*self.units, *self.images)):
            found.append("images for review count as not flagged")
        return [*found, self.used_in_fit] if self.used_in_fit else found


def load_run(folder: Path) -> SavedRun:
    """Read a run.

    Raises
    ------
    DataError
        The folder is no run, or a file of it is damaged.
    """
    info, rows = read_json(folder / "run.json"), tuple(read_scores(folder))
    units = read_csv(folder / "units.csv", UNIT_COLUMNS)
    failures = tuple(read_csv(folder / "failures.csv", FAILURE_COLUMNS))
    metrics = read_json(folder / "metrics.json") if (folder / "metrics.json").exists() else {}
    with reading(folder):
        has_threshold = info["threshold"]["image"] is not None
        return SavedRun(
            folder=folder,
            info=info,
            rows=rows,
            images=tuple(_image(row) for row in rows),
            units=tuple(_unit(unit) for unit in units),
            failures=failures,
            metrics=metrics,
            has_units=any(int(unit["n_images"]) > 1 for unit in units),
            has_threshold=has_threshold,
            what_if=bool(info.get("what_if")),
            chosen_here=has_threshold and chosen_on_these(Thresholds.from_json(info["threshold"]), rows),
            n_seen_in_fit=info["data"].get("n_seen_in_fit", metrics.get("counts", {}).get("seen_in_fit", 0)),
        )


def refuse_no_forecast(run: SavedRun) -> None:
    """Raise `DataError` for decisions that say nothing about new images: chosen on these, or what-if; or for none."""
    if not run.has_threshold:
        why = str(run.info["threshold"].get("reason", "nothing is decided"))
        raise DataError(f"{run.folder} has no threshold", why, "give scores of calibration images, too")
    if run.chosen_here:
        raise DataError(
            f"{run.folder}: the thresholds were chosen on these images",
            "images that a threshold was chosen on say nothing about new ones",
            "set thresholds with calibrate, and evaluate on other images",
        )
    if run.what_if:
        raise DataError(
            f"{run.folder}: the thresholds were changed (what-if)",
            "the decisions are not those of the model",
            "set thresholds with calibrate and evaluate again, or go back to those of the model: threshold RUN",
        )


def _image(row: Row) -> Item:
    score, decision = float(row["score"]), _decision(row["decision"])
    return Item(row["id"], row["label"], row["defect"], str(row["group"]), score, decision)


def _unit(row: Mapping[str, str]) -> Item:
    score = float(row["score"]) if row["score"] else None
    return Item(row["unit"], row["label"], "", row["group"], score, _decision(row["decision"]))


def _decision(value: str | int) -> int | None:
    return None if value == "" else int(value)
