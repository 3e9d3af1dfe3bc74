"""What stands beside the figures of a run: shortcuts, sorting, the size of defects, a stream with so many defects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from anomaly_ae.metrics import at_defect_rate, rate, rates_at_threshold, sorting_figures
from anomaly_ae.metrics.checks import groups_if_any
from anomaly_ae.records import ANOMALOUS_LABEL, NORMAL_LABEL, Metric
from anomaly_ae.results.tables import Row
from anomaly_ae.shortcuts import separations
from anomaly_ae.threshold import Threshold

DEFECT_RATES = (0.001, 0.01, 0.1)
N_SIZES, MIN_PER_SIZE = 5, 4
_SORTING = ("fpr_at_95_sensitivity", "pg", "pb")  # what no threshold changes


def level_figures(
    rows: Sequence[Row],
    threshold: Threshold | None,
    groups: Sequence[str] | None,
    defect_rates: Sequence[float],
    noun: str,
    known: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the figures of all images or all units that no part of them has, as JSON values.

    Parameters
    ----------
    rows : sequence of mapping
        With "label" and "score".
    threshold : Threshold or None
        None: nothing was calibrated, so there is no stream to speak of.
    defect_rates : sequence of float
        Shares of defective parts, between 0 and 1.
    known : mapping or None
        The same figures at another threshold: what no threshold changes is taken from them.
    """
    labels = np.array([row["label"] == ANOMALOUS_LABEL for row in rows], bool)
    scores = np.array([row["score"] for row in rows], np.float64)
    same = {name: known[name] for name in _SORTING if name in known} if known else {}
    sorting = same if len(same) == len(_SORTING) else _sorting(labels, scores, groups, noun)
    streams = [] if threshold is None else _streams(labels, scores, threshold, groups, defect_rates, noun)
    return {**sorting, "at_defect_rate": streams}


def _sorting(labels: Any, scores: Any, groups: Sequence[str] | None, noun: str) -> dict[str, Any]:
    sorting = sorting_figures(labels, scores, groups, unit=noun)
    return {
        "fpr_at_95_sensitivity": sorting["fpr_at_95_sensitivity"].as_json(),
        **{kind: {share: m.as_json() for share, m in sorting[kind].items()} for kind in ("pg", "pb")},
    }


def _streams(
    labels: Any, scores: Any, threshold: Threshold, groups: Sequence[str] | None, shares: Sequence[float], noun: str
) -> list[dict[str, Any]]:
    def streams(chosen: Any) -> list[dict[str, Metric]]:
        rates = rates_at_threshold(labels, chosen.astype(np.float64), 1.0, groups, unit=noun)
        return [at_defect_rate(share, rates["false_alarm_rate"], rates["sensitivity"]) for share in shares]

    flagged, review = scores >= threshold.value, threshold.review
    found = streams(flagged)
    if review:  # what is for review is neither rejected nor passed
        in_band = (scores >= review.value) & ~flagged
        for own, not_passed, for_review in zip(found, streams(in_band | flagged), streams(in_band), strict=True):
            own |= {"escapes_per_million": not_passed["escapes_per_million"], "review": for_review["rejected"]}
    return [
        {"defect_rate": share, **{name: metric.as_json() for name, metric in own.items()}}
        for share, own in zip(shares, found, strict=True)
    ]


def size_figures(rows: Sequence[Row], threshold: Threshold | None) -> list[dict[str, Any]]:
    """Return the sensitivity by size of the defect: at most `N_SIZES` classes of about as many images each.

    The size is the number of masked pixels of an image, ``mask_px``; images of one size are in one class.
    """
    known = sorted((r for r in rows if r["label"] == ANOMALOUS_LABEL and r.get("mask_px")), key=lambda r: r["mask_px"])
    if threshold is None or not known:
        return []
    sizes = np.array([row["mask_px"] for row in known])
    n_classes = max(1, min(N_SIZES, len(known) // MIN_PER_SIZE))
    cuts = np.searchsorted(sizes, sizes[[len(known) * i // n_classes for i in range(n_classes)]])
    classes = [list(part) for part in np.split(np.arange(len(known)), np.unique(cuts)[1:])]
    n_normal = sum(row["label"] == NORMAL_LABEL for row in rows)
    return [_size_class([known[i] for i in part], threshold, n_normal) for part in classes]


def _size_class(rows: Sequence[Row], threshold: Threshold, n_normal: int) -> dict[str, Any]:
    groups = groups_if_any(row["group"] for row in rows)
    value, intervals = rate([row["score"] >= threshold.value for row in rows], groups)
    metric = Metric(value, n_normal, len(rows), intervals)
    return {"from_px": rows[0]["mask_px"], "to_px": rows[-1]["mask_px"], "sensitivity": metric.as_json()}


def shortcut_figures(rows: Sequence[Row]) -> dict[str, float]:
    """Return the ROC-AUC of every plain number and further column against the label; empty where too few are known."""
    known = [row for row in rows if row.get("properties") and row["label"]]
    labels = [row["label"] == ANOMALOUS_LABEL for row in known]
    numbers, columns, groups = ([row[name] for row in known] for name in ("properties", "extra", "group"))
    return separations(labels, numbers, columns, groups)
