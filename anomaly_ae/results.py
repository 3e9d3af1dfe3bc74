"""The tables and figures of a RUN, from its rows: works on saved scores, without images, model or torch.

The format of every file: docs/reference/results.md.
"""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from anomaly_ae.calibration import CalibrationScores, Thresholds, thresholds_from
from anomaly_ae.errors import DataError
from anomaly_ae.files import write_text
from anomaly_ae.listener import Listener
from anomaly_ae.metrics import average_precision, found_rate_band, rates_at_threshold, roc_auc
from anomaly_ae.records import ANOMALOUS_LABEL, NORMAL_LABEL, BoolArray, Decision, Metric, Sample, Score
from anomaly_ae.threshold import Share, Threshold, decide, display_value, p_values

FORMAT = 1
SCORE_COLUMNS = [
    *("format", "id", "path", "frame", "label", "defect", "unit", "group", "time_utc", "decision", "score"),
    *("threshold", "display", "p_value", "pixel_threshold", "n_regions", "largest_region_px", "milliseconds"),
    *("image_sha256", "weights_sha256", "thresholds_sha256", "version"),
]
UNIT_COLUMNS = [
    *("format", "unit", "group", "label", "decision", "score", "threshold", "display", "p_value", "n_images"),
]
FAILURE_COLUMNS = ["format", "id", "path", "frame", "reason", "unit", "group", "time_utc", "decision"]
NOT_INSPECTED = str(int(Decision.NOT_INSPECTED))
BASELINES = ("mean grey", "PCA residual")
N_REGIONS_IN_ROW = 50
_NOT_MEASURED = Metric(None, 0, 0, reason="every unit is one image: its figures are those of images").as_json()
_NO_UNITS = {"roc_auc": _NOT_MEASURED, "average_precision": _NOT_MEASURED, "baselines": {}, "at_threshold": []}

Row = Mapping[str, Any]
"""One line of ``scores.jsonl``, or of ``units.csv``."""


def score_row(sample: Sample, result: Score, pixel_threshold: float) -> dict[str, Any]:
    """Return one line of ``scores.jsonl``; ``scores.csv`` has the same without the regions."""
    return {
        "format": FORMAT,
        "id": result.id,
        "path": result.path,
        "frame": result.frame,
        "label": sample.label,
        "defect": sample.defect,
        "unit": result.unit,
        "group": result.group,
        "time_utc": result.time_utc,
        "decision": int(result.decision),
        "score": result.score,
        "threshold": result.threshold,
        "display": result.display,
        "p_value": result.p_value,
        "pixel_threshold": pixel_threshold,
        "n_regions": len(result.regions),
        "largest_region_px": max((r.area_px for r in result.regions), default=0),
        "milliseconds": round(result.milliseconds, 1),
        "image_sha256": result.image_sha256,
        "weights_sha256": result.weights_sha256,
        "thresholds_sha256": result.thresholds_sha256,
        "version": result.version,
        "extra": dict(sample.extra),
        "regions": [region.as_json() for region in result.regions[:N_REGIONS_IN_ROW]],
    }


def decide_rows(rows: Sequence[Row], scores: CalibrationScores, thresholds: Thresholds) -> list[dict[str, Any]]:
    """Return the rows with decisions, display values and p-values for these thresholds.

    Regions stay as they are, and so does ``pixel_threshold``, which says what they follow: only a map can tell more.
    """
    limit, median = thresholds.image, scores.median
    values = np.array([row["score"] for row in rows], np.float64)
    p = p_values(values, scores.image, scores.image_group)
    return [
        {
            **row,
            "decision": int(decide(row["score"], limit)),
            "threshold": limit.value,
            "display": display_value(row["score"], limit.value, median),
            "p_value": float(p_value),
            "thresholds_sha256": thresholds.sha256,
        }
        for row, p_value in zip(rows, p, strict=True)
    ]


def unit_rows(
    rows: Sequence[Row], incomplete: Mapping[str, str], scores: CalibrationScores, thresholds: Thresholds
) -> list[dict[str, Any]]:
    """Decide every unit by the largest score of its images.

    Parameters
    ----------
    incomplete : mapping of str to str
        Units with an unreadable image, and their groups: these are not inspected, never normal.
    """
    images: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        images[row["unit"]].append(row)
    return [
        _unit_row(unit, images.get(unit, []), incomplete, scores, thresholds.unit)
        for unit in sorted({*images, *incomplete})
    ]


def _unit_row(
    unit: str, own: Sequence[Row], incomplete: Mapping[str, str], scores: CalibrationScores, limit: Threshold
) -> dict[str, Any]:
    labels = {row["label"] for row in own}
    label = ANOMALOUS_LABEL if ANOMALOUS_LABEL in labels else (labels.pop() if len(labels) == 1 else "")
    row = {
        "format": FORMAT,
        "unit": unit,
        "group": own[0]["group"] if own else incomplete[unit],
        "label": label,
        "decision": int(Decision.NOT_INSPECTED),
        "score": None,
        "threshold": limit.value,
        "display": None,
        "p_value": None,
        "n_images": len(own),
        "baselines": None,
    }
    if unit in incomplete:
        return row
    value = max(image["score"] for image in own)
    return {
        **row,
        "decision": int(decide(value, limit)),
        "score": value,
        "display": display_value(value, limit.value, float(np.median(scores.unit))),
        "p_value": float(p_values([value], scores.unit, scores.unit_group)[0]),
        "baselines": {name: max(image["baselines"][name] for image in own) for name in BASELINES},
    }


def run_metrics(rows: Sequence[Row], units: Sequence[Row], thresholds: Thresholds, by: Sequence[str]) -> dict[str, Any]:
    """Return the part of ``metrics.json`` that depends on scores and thresholds: image, unit, per_defect, by.

    Parameters
    ----------
    by : sequence of str
        Columns of the manifest to break the figures down by.
    """
    labelled = [row for row in rows if row["label"]]
    limit = thresholds.image
    decided_units = [unit for unit in units if unit["score"] is not None and unit["label"]]
    several = any(unit["n_images"] > 1 for unit in units)
    return {
        "image": figures(labelled, limit),
        "unit": figures(decided_units, thresholds.unit, "unit") if several else _NO_UNITS,
        "per_defect": {name: figures(part, limit) for name, part in _per_defect(labelled)},
        "by": {column: {value: figures(part, limit) for value, part in _by_value(labelled, column)} for column in by},
    }


def figures(rows: Sequence[Row], threshold: Threshold, noun: str = "image") -> dict[str, Any]:
    """Return ranking figures and the rates at the calibrated threshold, as JSON values with intervals.

    Baselines have ranking figures only: nobody calibrated a threshold for them.

    Parameters
    ----------
    rows : sequence of mapping
        With "label", "score", "group" and "baselines".
    noun : {"image", "unit"}
        What one row stands for.
    """
    labels = np.array([row["label"] == ANOMALOUS_LABEL for row in rows], bool)
    scores = np.array([row["score"] for row in rows], np.float64)
    groups = groups_if_any(rows)
    rates = rates_at_threshold(labels, scores, threshold.value, groups, unit=noun)
    band, no_band = _false_alarm_band(threshold, int((~labels).sum()), groups is not None, noun)
    return {
        **_areas(labels, scores, groups, noun),
        "baselines": {
            name: _areas(labels, [row["baselines"][name] for row in rows], groups, noun) for name in BASELINES
        },
        "at_threshold": [
            {
                "threshold": threshold.value,
                "rate_asked": threshold.rate,
                "promise": threshold.promise,
                **{name: metric.as_json() for name, metric in rates.items()},
                "false_alarm_band": band,
                "false_alarm_band_reason": no_band,
            }
        ],
    }


def _areas(labels: BoolArray, scores: npt.ArrayLike, groups: list[str] | None, noun: str) -> dict[str, Any]:
    return {
        "roc_auc": roc_auc(labels, scores, groups, unit=noun).as_json(),
        "average_precision": average_precision(labels, scores, groups, unit=noun).as_json(),
    }


def groups_if_any(rows: Sequence[Row]) -> list[str] | None:
    """Return the groups where at least two rows share one, else None: then images are taken as independent."""
    groups = [str(row["group"]) for row in rows]
    return groups if len(set(groups)) < len(groups) else None


def _false_alarm_band(
    threshold: Threshold, n_normal: int, has_groups: bool, noun: str
) -> tuple[list[float] | None, str]:
    """Return where the found rate would lie in 95 % of cases if the promise held, or None and why."""
    if n_normal == 0:
        return None, f"no normal {noun}s"
    if has_groups or threshold.n_groups is not None:
        return None, f"{noun}s come in groups: known for independent {noun}s only"
    if threshold.rank is None:
        return None, "the threshold was set by hand"
    band = found_rate_band(threshold.n, Fraction(threshold.rate), n_normal, rank=threshold.rank)
    return [float(end) for end in band], ""


def _per_defect(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Yield every defect type against all normal images."""
    normals = [row for row in rows if row["label"] == NORMAL_LABEL]
    for name in sorted({row["defect"] for row in rows if row["label"] == ANOMALOUS_LABEL and row["defect"]}):
        yield name, normals + [r for r in rows if r["defect"] == name and r["label"] == ANOMALOUS_LABEL]


def _by_value(rows: Sequence[Row], column: str) -> Iterator[tuple[str, list[Row]]]:
    for value in sorted({row["extra"].get(column, "") for row in rows}):
        yield value, [row for row in rows if row["extra"].get(column, "") == value]


def baseline_figures(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the ROC-AUC of the trivial detectors on the same labelled images."""
    labelled = [row for row in rows if row["label"]]
    labels = np.array([row["label"] == ANOMALOUS_LABEL for row in labelled], bool)
    groups = groups_if_any(labelled)
    return {name: roc_auc(labels, [row["baselines"][name] for row in labelled], groups).as_json() for name in BASELINES}


def write_tables(folder: Path, rows: Sequence[Row], units: Sequence[Row], failures: Iterable[Row]) -> None:
    """Write ``scores.csv``, ``scores.jsonl``, ``units.csv`` and ``failures.csv``."""
    columns = sorted({name for row in rows for name in row["extra"]} - {*SCORE_COLUMNS})
    lines = ({**row, **{name: row["extra"].get(name, "") for name in columns}} for row in rows)
    _write_csv(folder / "scores.csv", [*SCORE_COLUMNS, *columns], lines)
    write_text(folder / "scores.jsonl", "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
    _write_csv(folder / "units.csv", UNIT_COLUMNS, units)
    _write_csv(folder / "failures.csv", FAILURE_COLUMNS, failures)


def write_json(path: Path, values: Row) -> None:
    """Write a JSON file atomically; NaN is refused."""
    write_text(path, json.dumps(values, indent=1, allow_nan=False) + "\n")


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
    failures = _read_csv(run / "failures.csv", FAILURE_COLUMNS)
    old_units = _read_csv(run / "units.csv", UNIT_COLUMNS)
    with _reading(run / "run.json"):
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


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of a run."""
    with _reading(path):
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        file_format = values.get("format")
    if file_format != FORMAT:
        raise DataError(f"{path} has format {file_format}", f"this version reads format {FORMAT}", "score again")
    return values


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read ``scores.jsonl``."""
    with _reading(path):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        _check_columns(rows, (*SCORE_COLUMNS, "extra"))
    return rows


def _read_csv(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    with _reading(path), path.open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
        _check_columns(rows, columns)
    return rows


def _check_columns(rows: Iterable[Row], columns: Sequence[str]) -> None:
    for row in rows:
        for name in columns:
            if row[name] is None:
                raise KeyError(name)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file causes into one clear error."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = (
            f"{error} is missing" if isinstance(error, KeyError) else str(getattr(error, "strerror", None) or error)
        )
        raise DataError(f"cannot read {path}", reason, "give a folder that score or evaluate wrote") from error


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """Write a CSV atomically: one header line, floats with all their digits, missing values empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
