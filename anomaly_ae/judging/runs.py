"""A saved run, and what is decided in it: images, or units of several images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anomaly_ae.calibration import Thresholds
from anomaly_ae.errors import DataError
from anomaly_ae.records import Decision
from anomaly_ae.results import FAILURE_COLUMNS, UNIT_COLUMNS, Row, chosen_on_these, read_json, read_rows
from anomaly_ae.results.tables import read_csv, reading


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that was decided: an image, or a unit.

    Attributes
    ----------
    score : float or None
        None where it was not inspected.
    """

    name: str
    label: str
    defect: str
    group: str
    score: float | None
    decision: int


@dataclass(frozen=True, slots=True, eq=False)
class SavedRun:
    """What `score` or `evaluate` left in a folder.

    Attributes
    ----------
    rows : tuple of mapping
        Of ``scores.jsonl``.
    units : tuple of Item
        Of ``units.csv``.
    failures : tuple of mapping
        Of ``failures.csv``: every value is text.
    metrics : mapping
        Of ``metrics.json``; empty where there is none.
    has_units : bool
        Units of several images are decided, not images.
    """

    folder: Path
    info: Mapping[str, Any]
    rows: tuple[Row, ...]
    units: tuple[Item, ...]
    failures: tuple[Mapping[str, str], ...]
    metrics: Mapping[str, Any]
    has_units: bool

    @property
    def images(self) -> tuple[Item, ...]:
        """The scored images."""
        return tuple(_image(row) for row in self.rows)

    @property
    def what_if(self) -> bool:
        """Whether its decisions follow other thresholds than those of its model."""
        return bool(self.info.get("what_if"))

    @property
    def chosen_here(self) -> bool:
        """Whether its thresholds were chosen on its own images."""
        return chosen_on_these(Thresholds.from_json(self.info["threshold"]), self.rows)

    @property
    def has_review(self) -> bool:
        """Whether some decisions were left to a person."""
        return any(item.decision == Decision.REVIEW for item in (*self.units, *self.images))

    def images_of_units(self) -> dict[str, frozenset[str]]:
        """Return the ids of the scored images of every unit."""
        found: dict[str, set[str]] = {}
        for row in self.rows:
            found.setdefault(row["unit"], set()).add(row["id"])
        return {unit: frozenset(ids) for unit, ids in found.items()}

    def used_in_fit(self) -> str:
        """Return the warning of the run that some of its images were learned from, or ""."""
        warnings = self.info["data"]["warnings"]
        return next((text for text in warnings if "used in fit" in text), "")

    def caveats(self) -> list[str]:
        """Say what keeps the figures of this run from being those of new images."""
        found = []
        if self.chosen_here:
            found.append("its threshold was chosen on these images: its rates are no forecast")
        elif self.what_if:
            found.append("its threshold was changed after scoring (what-if): its rates say what would have been")
        if self.info["aborted"]:
            found.append("it was stopped before all images were scored")
        if self.has_review:
            found.append("images for review count as not flagged")
        return found + [text for text in (self.used_in_fit(),) if text]


def load_run(folder: Path) -> SavedRun:
    """Read a run.

    Raises
    ------
    DataError
        The folder is no run, or a file of it is damaged.
    """
    info, rows = read_json(folder / "run.json"), read_rows(folder / "scores.jsonl")
    units = read_csv(folder / "units.csv", UNIT_COLUMNS)
    path = folder / "metrics.json"
    with reading(folder / "units.csv"):
        items = tuple(_unit(unit) for unit in units)
        has_units = any(int(unit["n_images"]) > 1 for unit in units)
    run = SavedRun(
        folder=folder,
        info=info,
        rows=tuple(rows),
        units=items,
        failures=tuple(read_csv(folder / "failures.csv", FAILURE_COLUMNS)),
        metrics=read_json(path) if path.exists() else {},
        has_units=has_units,
    )
    with reading(folder / "run.json"):
        run.caveats()
    return run


def refuse_what_if(run: SavedRun) -> None:
    """Raise `DataError` for a run whose thresholds were changed after scoring, or chosen on its images."""
    if run.what_if or run.chosen_here:
        raise DataError(
            f"{run.folder}: the thresholds were {'chosen on these images' if run.chosen_here else 'changed (what-if)'}",
            "images that a threshold was chosen on say nothing about new ones",
            "set thresholds with calibrate, and evaluate on other images",
        )


def _image(row: Row) -> Item:
    return Item(row["id"], row["label"], row["defect"], str(row["group"]), float(row["score"]), int(row["decision"]))


def _unit(row: Mapping[str, str]) -> Item:
    decision = int(row["decision"])
    score = None if decision == Decision.NOT_INSPECTED else float(row["score"])
    return Item(row["unit"], row["label"], "", row["group"], score, decision)
