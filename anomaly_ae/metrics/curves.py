"""Counts per distinct score, the two curves, and the areas under them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from anomaly_ae.errors import DataError
from anomaly_ae.metrics.checks import FloatVector, LabelledScores, labelled_scores

CountVector = npt.NDArray[np.number[Any]]


class ScoreCounts(NamedTuple):
    """How many normal and how many anomalous there are at each distinct score, ascending; both (D,)."""

    normal: CountVector
    anomalous: CountVector


def count_by_score(data: LabelledScores) -> tuple[FloatVector, ScoreCounts]:
    """Return the distinct scores, ascending, (D,), and the counts at each."""
    distinct, position = np.unique(data.scores, return_inverse=True)
    n_all = np.bincount(position, minlength=len(distinct))
    n_anomalous = np.bincount(position[data.labels], minlength=len(distinct))
    return distinct, ScoreCounts(n_all - n_anomalous, n_anomalous)


def area_under_roc(counts: ScoreCounts) -> float:
    """Share of pairs (anomalous, normal) in which the anomalous scores higher; a tie counts one half.

    This is the Mann-Whitney statistic over the number of pairs, and equals the area under the ROC curve
    (Bamber 1975). Shares are summed, not pairs: the pairs of pixels are more than 64-bit integers hold.
    """
    normal = counts.normal.astype(np.float64)
    normal_below = np.cumsum(normal) - normal
    share_below = (normal_below + normal / 2) / normal.sum()
    return float((counts.anomalous * share_below).sum() / counts.anomalous.sum())


def step_area_under_pr(counts: ScoreCounts) -> float:
    """Average precision: the sum over thresholds of the growth in recall times the precision there.

    No interpolation: the straight line between two points of a precision-recall curve cannot be reached
    (Davis & Goadrich 2006).
    """
    n_hits = from_the_top(counts.anomalous)
    n_flagged = n_hits + from_the_top(counts.normal)
    precision = n_hits / np.maximum(n_flagged, 1)  # nothing flagged: no growth in recall either
    return float((counts.anomalous[::-1] * precision).sum() / counts.anomalous.sum())


def roc_curve(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[FloatVector, FloatVector, FloatVector]:
    """Receiver operating characteristic, by the rule of scikit-learn's function of the same name.

    Parameters
    ----------
    labels : bool array, (n,)
        True = anomalous.
    scores : array, (n,)
        Higher = more anomalous.

    Returns
    -------
    fpr, tpr, thresholds : float64 arrays, (k,)
        Shares of normal and of anomalous images with ``score >= threshold``, thresholds descending. The first
        point is (0, 0) at an infinite threshold. Points on a straight line between their neighbours are left
        out.

    Raises
    ------
    DataError
        Only one class, or input that `labelled_scores` refuses.
    """
    distinct, counts = _two_classes(labels, scores)
    n_false, n_hits, thresholds = (
        from_the_top(counts.normal),
        from_the_top(counts.anomalous),
        distinct[::-1],
    )
    if len(distinct) > 2:
        corner = (np.diff(n_false, 2) != 0) | (np.diff(n_hits, 2) != 0)
        keep = np.r_[True, corner, True]
        n_false, n_hits, thresholds = n_false[keep], n_hits[keep], thresholds[keep]
    fpr = np.r_[0.0, n_false / n_false[-1]]
    tpr = np.r_[0.0, n_hits / n_hits[-1]]
    return fpr, tpr, np.r_[np.inf, thresholds]


def precision_recall_curve(
    labels: npt.ArrayLike, scores: npt.ArrayLike
) -> tuple[FloatVector, FloatVector, FloatVector]:
    """Precision and recall at each distinct score, by the rule of scikit-learn's function of the same name.

    Parameters
    ----------
    labels : bool array, (n,)
        True = anomalous.
    scores : array, (n,)
        Higher = more anomalous.

    Returns
    -------
    precision, recall : float64 arrays, (D + 1,)
        At the ascending thresholds, then the closing point (1, 0), which has no threshold.
    thresholds : float64 array, (D,)
        The distinct scores, ascending.

    Raises
    ------
    DataError
        Only one class, or input that `labelled_scores` refuses.
    """
    distinct, counts = _two_classes(labels, scores)
    n_hits, n_false = from_the_top(counts.anomalous), from_the_top(counts.normal)
    precision = n_hits / (n_hits + n_false)
    recall = n_hits / n_hits[-1]
    return np.r_[precision[::-1], 1.0], np.r_[recall[::-1], 0.0], distinct


def mann_whitney_separation(labels: npt.ArrayLike, values: npt.ArrayLike) -> float | None:
    """Return the ROC-AUC of any number per image (file size, mean grey), or None with one class only.

    For checks on shortcuts: a value far from 0.5 means that the number alone tells the classes apart.

    >>> mann_whitney_separation([False, False, True], [1, 2, 2])
    0.75
    """
    data = labelled_scores(labels, values)
    if not data.n_normal or not data.n_anomalous:
        return None
    return area_under_roc(count_by_score(data)[1])


def _two_classes(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[FloatVector, ScoreCounts]:
    data = labelled_scores(labels, scores)
    if not data.n_normal or not data.n_anomalous:
        raise DataError(
            f"no curve from {data.n_normal} normal and {data.n_anomalous} anomalous images",
            "both classes are needed",
        )
    return count_by_score(data)


def from_the_top(counts: CountVector) -> CountVector:
    """Return cumulative counts from the highest score down."""
    return np.cumsum(counts[::-1])
