"""A RUN folder, read for the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from anomaly_ae.errors import DataError, ModelFileError
from anomaly_ae.records import Decision
from anomaly_ae.report.colour import DISPLAY_HIGH
from anomaly_ae.report.pictures import Pictures, read_pictures, rescaled
from anomaly_ae.results.tables import COUNTED, SCORE_COLUMNS, read_csv, read_json, reading
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
    ``pictures_at``.
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
        return "unit" if self.metrics and self.metrics["unit"]["at_threshold"] else "image"

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


def _uncalibrated(thresholds: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"value": None, "rate": "", "promise": thresholds.get("reason") or "No threshold was calibrated."}


Line = Mapping[str, Any]
"""One line of a table: text as files hold it, or the numbers that are written there."""


def read_run(folder: Path, tables: tuple[Sequence[Line], Sequence[Line]] | None = None) -> Run:
    """Read a RUN folder.

    Parameters
    ----------
    tables : two sequences of mapping, or None
        The lines of ``scores.csv`` and ``units.csv`` as they were just written there: spares reading them.

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
    scores, units, metrics = (folder / name for name in ("scores.csv", "units.csv", "metrics.json"))
    lines, unit_lines = tables or (read_csv(scores), read_csv(units))
    extra = [name for name in lines[0] if name not in (*SCORE_COLUMNS, COUNTED)] if lines else []
    rows = tuple(_row(line, extra, scores) for line in lines)
    pictures, pictures_at = _shown_pictures(folder / "pictures.npz", info, rows)
    return Run(
        folder=folder,
        info=info,
        metrics=read_json(metrics) if info.get("command") == "evaluate" or metrics.exists() else None,
        rows=rows,
        units=tuple(_unit_row(line, units) for line in unit_lines),
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


def _row(line: Line, extra: Sequence[str], path: Path) -> Row:
    try:
        return Row(
            id=line["id"],
            label=line["label"],
            group=line["group"],
            decision=_decision(line["decision"]),
            score=_finite(line["score"]),
            display=_number(line["display"]),
            p_value=_number(line["p_value"]),
            path=line["path"],
            frame=int(line["frame"] or 0),
            defect=line["defect"],
            unit=line["unit"],
            pixel_threshold=_number(line["pixel_threshold"]),
            n_regions=str(line["n_regions"]),
            largest_region_px=str(line["largest_region_px"]),
            extra={name: str(line[name]) for name in extra},
        )
    except (KeyError, ValueError) as error:
        raise DataError(f"{path} holds no scores", str(error), "evaluate again") from error


def _unit_row(line: Line, path: Path) -> Row:
    try:
        return Row(
            id=line["unit"],
            label=line["label"],
            group=line["group"],
            decision=_decision(line["decision"]),
            score=_number(line["score"]),  # a unit that was not inspected has none
            display=_number(line["display"]),
            p_value=_number(line["p_value"]),
        )
    except (KeyError, ValueError) as error:
        raise DataError(f"{path} holds no units", str(error), "evaluate again") from error


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
