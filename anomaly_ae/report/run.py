"""A RUN folder, read for the page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from anomaly_ae.errors import DataError, ModelFileError
from anomaly_ae.records import Decision
from anomaly_ae.report.colour import DISPLAY_HIGH
from anomaly_ae.report.pictures import Pictures, read_pictures, rescaled
from anomaly_ae.results.tables import (
    COUNTED,
    SCORE_COLUMNS,
    UNIT_COLUMNS,
    Table,
    csv_table,
    read_csv,
    read_json,
    reading,
)
from anomaly_ae.threshold import Threshold


class Row(NamedTuple):
    """One line of ``scores.csv`` or ``units.csv``; ``extra`` holds the manifest's own columns."""

    id: str
    label: str
    group: str
    decision: str
    score: float
    display: float
    p_value: float
    path: str = ""
    frame: int = 0
    defect: str = ""
    unit: str = ""
    pixel_threshold: float = math.nan
    n_regions: str = ""
    largest_region_px: str = ""
    extra: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """Everything the page shows.

    ``info`` is ``run.json``, ``metrics`` is ``metrics.json`` or None; ``pictures`` show the pixel threshold
    ``pictures_at``. There are ``units`` where they are what is decided, see `noun`.
    """

    folder: Path
    info: Mapping[str, Any]
    metrics: Mapping[str, Any] | None
    rows: tuple[Row, ...]
    units: tuple[Row, ...]
    failures: tuple[Mapping[str, str], ...]
    pictures: Pictures | None
    pictures_at: float

    @property
    def noun(self) -> str:
        """What is decided: "unit" where several images make one, else "image"."""
        return _noun(self.metrics)

    @property
    def has_labels(self) -> bool:
        """Whether some image is known to be normal or anomalous."""
        return any(row.label for row in self.rows)

    def threshold(self, noun: str) -> Mapping[str, Any]:
        """Return the threshold of images, units or pixels with its origin; that of images where there is none.

        Where nothing was calibrated its value is None, and its promise says why.
        """
        thresholds: Mapping[str, Any] = self.info["threshold"]
        found: Mapping[str, Any] = thresholds.get(noun) or thresholds["image"] or _uncalibrated(thresholds)
        return found


def _noun(metrics: Mapping[str, Any] | None) -> str:
    return "unit" if metrics and metrics["unit"]["at_threshold"] else "image"


def _uncalibrated(thresholds: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"value": None, "rate": "", "promise": thresholds.get("reason") or "No threshold was calibrated."}


def read_run(folder: Path, tables: tuple[Table, Table] | None = None) -> Run:
    """Read a RUN folder.

    Parameters
    ----------
    tables : two of Table, or None
        ``scores.csv`` and ``units.csv`` as they were just written there: spares reading them.

    Raises
    ------
    DataError
        When the folder is no RUN, of another format, or damaged.
    """
    info = read_json(folder / "run.json")
    thresholds = info.get("threshold")
    if not isinstance(thresholds, dict) or not (thresholds.get("image") or "reason" in thresholds):
        raise DataError(f"{folder / 'run.json'} has no image threshold", "the file is damaged", "evaluate again")
    _check_limits(folder / "run.json", [thresholds, info.get("model_threshold") or {}])
    scores, units, figures = (folder / name for name in ("scores.csv", "units.csv", "metrics.json"))
    of_images, of_units = tables or (csv_table(scores), csv_table(units, UNIT_COLUMNS))
    rows = tuple(_rows(of_images, scores))
    metrics = read_json(figures) if info.get("command") == "evaluate" or figures.exists() else None
    pictures, pictures_at = _shown_pictures(folder / "pictures.npz", info, rows)
    return Run(
        folder=folder,
        info=info,
        metrics=metrics,
        rows=rows,
        units=tuple(_unit_rows(of_units, units)) if _noun(metrics) == "unit" else (),
        failures=tuple(read_csv(folder / "failures.csv")),
        pictures=pictures,
        pictures_at=pictures_at,
    )


def _check_limits(path: Path, stored: Sequence[Mapping[str, Any]]) -> None:
    try:
        with reading(path):
            limits = [thresholds.get(noun) for thresholds in stored for noun in ("image", "unit", "pixel")]
            for limit in limits:
                if limit is not None:
                    Threshold.from_json(limit)
    except ModelFileError as error:
        raise DataError(f"{path} holds a damaged threshold", error.why, "evaluate again") from error


def _shown_pictures(path: Path, info: Mapping[str, Any], rows: Sequence[Row]) -> tuple[Pictures | None, float]:
    """Return the pictures and the pixel threshold they show.

    That is the one in force, or the one of the scoring where the 8-bit maps cannot tell what reaches the other.
    """
    limit = info["threshold"].get("pixel") or info["threshold"]["image"]
    pictures = read_pictures(path) if path.exists() else None
    if limit is None:
        return pictures, math.nan
    in_force = limit["value"]
    scored_at = rows[0].pixel_threshold if rows else in_force
    if pictures is None or scored_at == in_force:
        return pictures, in_force
    median = float(np.median((info.get("calibration") or {}).get("pixel") or math.nan))
    place = (in_force - median) / (scored_at - median) if scored_at > median else math.nan  # on the scale of the maps
    return (rescaled(pictures, place), in_force) if 0 < place <= DISPLAY_HIGH else (pictures, scored_at)


def _rows(table: Table, path: Path) -> Iterator[Row]:
    names = ("id", "label", "group", "decision", "score", "display", "p_value", "path", "frame", "defect", "unit")
    own = [(column, i) for i, column in enumerate(table.columns) if column not in (*SCORE_COLUMNS, COUNTED)]
    with _refusing(path, "scores"):
        values = table.values(*names, "pixel_threshold", "n_regions", "largest_region_px")
        for line, of_line in zip(table.lines, values, strict=True):
            name, label, group, decision, score, display, p, place, frame, defect, unit, level, n, px = of_line
            yield Row(
                id=name,
                label=label,
                group=group,
                decision=_decision(decision),
                score=_finite(score),
                display=_number(display),
                p_value=_number(p),
                path=place,
                frame=int(frame or 0),
                defect=defect,
                unit=unit,
                pixel_threshold=_number(level),
                n_regions=str(n),
                largest_region_px=str(px),
                extra={column: str(line[i]) for column, i in own},
            )


def _unit_rows(table: Table, path: Path) -> Iterator[Row]:
    with _refusing(path, "units"):
        values = table.values("unit", "label", "group", "decision", "score", "display", "p_value")
        for unit, label, group, decision, *numbers in values:
            score, display, p_value = map(_number, numbers)  # a unit that was not inspected has none
            yield Row(unit, label, group, _decision(decision), score, display, p_value)


@contextmanager
def _refusing(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except (KeyError, ValueError) as error:
        raise DataError(f"{path} holds no {what}", str(error), "evaluate again") from error


@cache  # the table has few words and many rows
def _decision(code: str | int) -> str:
    """Return the word of a decision, which files give as code or word; without a threshold there is none.

    >>> _decision("2"), _decision(2), _decision("not_inspected"), _decision("")
    ('anomalous', 'anomalous', 'not_inspected', 'undecided')
    """
    text = str(code)
    if not text:
        return "undecided"
    return Decision(int(text)).name.lower() if text.isdecimal() else Decision[text.upper()].name.lower()


def _finite(number: str | float) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"a score of {number}")
    return value


def _number(number: str | float | None) -> float:
    return math.nan if number in ("", None) else float(number)
