"""ROC-AUC and average precision of images or units, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from anomaly_ae.errors import UsageError
from anomaly_ae.metrics.checks import IntVector, LabelledScores, check_confidence, labelled_scores
from anomaly_ae.metrics.curves import ScoreCounts, area_under_roc, count_by_score, step_area_under_pr
from anomaly_ae.metrics.intervals import (
    boyd_interval,
    delong_interval,
    group_bootstrap,
    newcombe_interval,
    percentile_interval,
    widened,
)
from anomaly_ae.records import Interval, Metric

ClosedForm = Callable[[float, int, int, str], Interval]  # value, n_anomalous, n_normal, unit


class _Options(NamedTuple):
    confidence: float
    n_bootstrap: int
    seed: int
    unit: str


def roc_auc(
    labels: npt.ArrayLike,
    scores: npt.ArrayLike,
    groups: Iterable[Hashable] | None = None,
    *,
    confidence: float = 0.95,
    n_bootstrap: int = 1000,
    seed: int = 0,
    unit: str = "image",
) -> Metric:
    """Area under the ROC curve: the chance that an anomalous image scores higher than a normal one.

    Parameters
    ----------
    labels : bool array, (n,)
        True = anomalous.
    scores : array, (n,)
        Higher = more anomalous. Ties count one half.
    groups : iterable of hashable, length n, or None
        What belongs together. Then an interval from whole groups comes first, with unit "group".
    confidence : float
        Of the intervals.
    n_bootstrap, seed : int
        Draws of the bootstrap of groups, at least 100, and where they start.
    unit : str
        What one score stands for: "image" or "unit".

    Returns
    -------
    Metric
        Value in [0, 1] or None with one class only. Interval by images from DeLong's variance on the logit
        scale, by groups from the percentiles of a bootstrap. With fewer than 30 images (groups) of a class, or
        near 0 or 1, it is widened to Newcombe's method 5, which stands alone where the data show no variance.

    Raises
    ------
    DataError, UsageError
        Labels, scores or groups that do not fit together; options out of range.
    """
    data = labelled_scores(labels, scores, groups)

    def closed_form(value: float, n_anomalous: int, n_normal: int, of: str) -> Interval:
        return newcombe_interval(value, n_anomalous, n_normal, confidence, of)

    def estimate() -> Interval | None:
        return delong_interval(data, confidence, unit)

    return _metric(data, area_under_roc, estimate, closed_form, _Options(confidence, n_bootstrap, seed, unit))


def average_precision(
    labels: npt.ArrayLike,
    scores: npt.ArrayLike,
    groups: Iterable[Hashable] | None = None,
    *,
    confidence: float = 0.95,
    n_bootstrap: int = 1000,
    seed: int = 0,
    unit: str = "image",
) -> Metric:
    """Step-wise area under the precision-recall curve, without interpolation.

    It depends on the share of anomalous images in the set; that of a random score is that share.

    Parameters
    ----------
    labels, scores, groups, confidence, n_bootstrap, seed, unit
        As in `roc_auc`.

    Returns
    -------
    Metric
        Value in (0, 1] or None with one class only. Interval of a proportion among the anomalous on the logit
        scale (Boyd, Eng & Page 2013), Clopper-Pearson at 1; with groups the bootstrap of whole groups first.

    Raises
    ------
    DataError, UsageError
        As in `roc_auc`.
    """
    data = labelled_scores(labels, scores, groups)

    def closed_form(value: float, n_anomalous: int, n_normal: int, of: str) -> Interval:
        return boyd_interval(value, n_anomalous, confidence, of)

    options = _Options(confidence, n_bootstrap, seed, unit)
    return _metric(data, step_area_under_pr, lambda: None, closed_form, options)


def _metric(
    data: LabelledScores,
    area: Callable[[ScoreCounts], float],
    estimate: Callable[[], Interval | None],
    closed_form: ClosedForm,
    options: _Options,
) -> Metric:
    """Value, interval by groups where there are any, and interval by images, each where enough is there.

    Where there are groups but no interval by them there is none by images, which would be too narrow.
    """
    _check_options(options)
    n_normal, n_anomalous, unit = data.n_normal, data.n_anomalous, options.unit
    if not n_normal or not n_anomalous:
        missing = "anomalous" if n_normal else "normal"
        return Metric(None, n_normal, n_anomalous, reason=f"no {missing} {unit}s: both classes are needed")
    value = area(count_by_score(data)[1])
    intervals, reasons = [], []
    if data.groups is not None:
        n_groups = (_n_distinct(data.groups[data.labels]), _n_distinct(data.groups[~data.labels]))
        if min(n_groups) < 2:
            reason = f"all {unit}s of a class are of one group: no interval by groups"
            return Metric(value, n_normal, n_anomalous, reason=reason)
        areas = group_bootstrap(data, data.groups, area, options.n_bootstrap, options.seed)
        drawn = percentile_interval(areas, options.n_bootstrap, options.confidence, "group")
        intervals.append(widened(drawn, closed_form(value, *n_groups, "group"), min(n_groups), value))
    if min(n_normal, n_anomalous) < 2:
        reasons.append(f"only one {unit} of a class: too few for an interval by {unit}s")
    else:
        few = closed_form(value, n_anomalous, n_normal, unit)
        intervals.append(widened(estimate(), few, min(n_normal, n_anomalous), value))
    return Metric(value, n_normal, n_anomalous, tuple(intervals), "; ".join(reasons))


def _n_distinct(groups: IntVector) -> int:
    return len(np.unique(groups))


def _check_options(options: _Options) -> None:
    check_confidence(options.confidence)
    if options.n_bootstrap < 100:
        raise UsageError(f"{options.n_bootstrap} bootstrap draws", "percentiles need at least 100", "1000 is usual")
