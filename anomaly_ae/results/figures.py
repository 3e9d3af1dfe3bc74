"""The figures of labelled rows: what ``metrics.json`` says of images, units, defects and columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from anomaly_ae.calibration import Thresholds
from anomaly_ae.metrics import average_precision, found_rate_band, rates_at_threshold, roc_auc
from anomaly_ae.metrics.checks import groups_if_any
from anomaly_ae.records import ANOMALOUS_LABEL, NORMAL_LABEL, BoolArray, FloatArray, Metric
from anomaly_ae.results.beside import DEFECT_RATES, level_figures, shortcut_figures, size_figures
from anomaly_ae.results.review import review_figures
from anomaly_ae.results.tables import BASELINES, Row
from anomaly_ae.threshold import Threshold

_RANKING = ("roc_auc", "average_precision", "baselines", "shortcuts")  # what no threshold changes
_NOT_MEASURED = Metric(None, 0, 0, reason="every unit is one image: its figures are those of images").as_json()
_NO_UNITS = {"roc_auc": _NOT_MEASURED, "average_precision": _NOT_MEASURED, "baselines": {}, "at_threshold": []}


def run_metrics(
    rows: Sequence[Row],
    units: Sequence[Row],
    thresholds: Thresholds | None,
    by: Sequence[str],
    defect_rates: Sequence[float] = DEFECT_RATES,
    known: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the part of ``metrics.json`` that depends on scores and thresholds: image, unit, per_defect, by.

    Parameters
    ----------
    thresholds : Thresholds or None
        None where nothing was calibrated: there are ranking figures only.
    by : sequence of str
        Columns of the manifest to break the figures down by.
    defect_rates : sequence of float
        Shares of defective parts at which a stream is described.
    known : mapping or None
        What this function returned for the same scores at other thresholds: what no threshold changes is taken from it.
    """
    known = known or {}
    labelled = [row for row in rows if row["label"]]
    limit, unit_limit = (thresholds.image, thresholds.unit) if thresholds else (None, None)
    decided_units = [unit for unit in units if unit["score"] is not None and unit["label"]]
    several = any(unit["n_images"] > 1 for unit in units)

    def level(members: Sequence[Row], limit: Threshold | None, noun: str) -> dict[str, Any]:
        own = known.get(noun)
        beside = level_figures(members, limit, groups_if_any(row["group"] for row in members), defect_rates, noun, own)
        return {**figures(members, limit, noun, own), **beside}

    def parts(cut: Iterable[tuple[str, Sequence[Row]]], known_parts: Mapping[str, Any]) -> dict[str, Any]:
        return {name: figures(members, limit, "image", known_parts.get(name)) for name, members in cut}

    def values(column: str, known_parts: Mapping[str, Any]) -> dict[str, Any]:
        return {name: _without_band(own) for name, own in parts(_by_value(labelled, column), known_parts).items()}

    known_by = known.get("by", {})
    return {
        "image": {**level(labelled, limit, "image"), "by_defect_size": size_figures(labelled, limit)},
        "unit": level(decided_units, unit_limit, "unit") if several else _NO_UNITS,
        "per_defect": parts(_per_defect(labelled), known.get("per_defect", {})),
        "by": {column: values(column, known_by.get(column, {})) for column in by},
    }


def figures(
    rows: Sequence[Row], threshold: Threshold | None, noun: str = "image", known: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return ranking figures and the rates at the calibrated threshold, as JSON values with intervals.

    Baselines have ranking figures only: nobody calibrated a threshold for them.

    Parameters
    ----------
    rows : sequence of mapping
        With "label", "score", "group" and, where there are any, "baselines" and "properties".
    threshold : Threshold or None
        None: ``at_threshold`` is empty.
    noun : {"image", "unit"}
        What one row stands for.
    known : mapping or None
        The same figures at another threshold: ranking figures are taken from them.
    """
    labels = np.array([row["label"] == ANOMALOUS_LABEL for row in rows], bool)
    scores = np.array([row["score"] for row in rows], np.float64)
    groups = groups_if_any(row["group"] for row in rows)
    same = {name: known[name] for name in _RANKING if name in known} if known else {}
    ranking = same if len(same) == len(_RANKING) else _ranking(rows, labels, scores, groups, noun)
    at_threshold = [] if threshold is None else [_at_threshold(labels, scores, threshold, groups, noun)]
    return {**ranking, "at_threshold": at_threshold}


def _ranking(
    rows: Sequence[Row], labels: BoolArray, scores: FloatArray, groups: list[str] | None, noun: str
) -> dict[str, Any]:
    names = [name for name in BASELINES if all(name in row["baselines"] for row in rows)]
    return {
        **_areas(labels, scores, groups, noun),
        "baselines": {name: _areas(labels, [row["baselines"][name] for row in rows], groups, noun) for name in names},
        "shortcuts": shortcut_figures(rows),
    }


def _at_threshold(
    labels: BoolArray, scores: FloatArray, threshold: Threshold, groups: list[str] | None, noun: str
) -> dict[str, Any]:
    rates = rates_at_threshold(labels, scores, threshold.value, groups, unit=noun)
    band, no_band = _false_alarm_band(threshold, int((~labels).sum()), groups is not None, noun)
    return {
        "threshold": threshold.value,
        "rule": threshold.rule,
        "rate_asked": threshold.rate,
        "promise": threshold.promise,
        **{name: metric.as_json() for name, metric in rates.items()},
        "false_alarm_band": band,
        "false_alarm_band_reason": no_band,
        "review": review_figures(labels, scores, threshold, groups, noun),
    }


def _areas(labels: BoolArray, scores: npt.ArrayLike, groups: list[str] | None, noun: str) -> dict[str, Any]:
    return {
        "roc_auc": roc_auc(labels, scores, groups, unit=noun).as_json(),
        "average_precision": average_precision(labels, scores, groups, unit=noun).as_json(),
    }


def _false_alarm_band(
    threshold: Threshold, n_normal: int, has_groups: bool, noun: str
) -> tuple[list[float] | None, str]:
    """Return where the found rate would lie in 95 % of cases if the promise held, or None and why."""
    if n_normal == 0:
        return None, f"no normal {noun}s"
    if has_groups or threshold.n_groups is not None:
        return None, f"{noun}s come in groups: known for independent {noun}s only"
    if threshold.rule != "false_alarm_rate" or threshold.rank is None:
        return None, "the threshold promises no false-alarm rate"
    band = found_rate_band(threshold.n, threshold.rank, n_normal)
    return [float(end) for end in band], ""


def _without_band(own: dict[str, Any]) -> dict[str, Any]:
    """Take the band of the false-alarm rate from the figures of a part: no rule promises a rate for it alone."""
    none = {"false_alarm_band": None, "false_alarm_band_reason": "the promise is for all images together"}
    return {**own, "at_threshold": [at | none for at in own["at_threshold"]]}


def _per_defect(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Yield every defect type against all normal images."""
    normals = [row for row in rows if row["label"] == NORMAL_LABEL]
    for name in sorted({row["defect"] for row in rows if row["label"] == ANOMALOUS_LABEL and row["defect"]}):
        yield name, normals + [r for r in rows if r["defect"] == name and r["label"] == ANOMALOUS_LABEL]


def _by_value(rows: Sequence[Row], column: str) -> Iterator[tuple[str, list[Row]]]:
    for value in sorted({row["extra"].get(column, "") for row in rows}):
        yield value, [row for row in rows if row["extra"].get(column, "") == value]
