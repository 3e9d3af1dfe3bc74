"""Rates at a threshold, and the band in which the found false-alarm rate falls when all is right."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from anomaly_ae.errors import DataError, UsageError
from anomaly_ae.metrics.checks import (
    BoolVector,
    IntVector,
    bool_vector,
    check_confidence,
    group_numbers,
    labelled_scores,
)
from anomaly_ae.metrics.intervals import clopper_pearson, effective_sample_size, hull
from anomaly_ae.records import Interval, Metric


def rate(
    hits: npt.ArrayLike,
    groups: Iterable[Hashable] | None = None,
    *,
    confidence: float = 0.95,
    unit: str = "image",
) -> tuple[float | None, tuple[Interval, ...]]:
    """Share of hits with its intervals.

    Parameters
    ----------
    hits : bool array, (n,)
        True where the event happened.
    groups : iterable of hashable, length n, or None
        What belongs together.
    confidence : float
        Of the intervals.
    unit : str
        What one entry of `hits` stands for.

    Returns
    -------
    value : float or None
        None without entries.
    intervals : tuple of Interval
        With groups first the interval at the effective sample size (unit "group"), then Clopper & Pearson's
        on n.

    Raises
    ------
    DataError, UsageError
        Input of a wrong shape; a confidence outside (0, 1).

    Examples
    --------
    >>> value, (interval,) = rate([False] * 100)
    >>> value, round(interval.low, 3), round(interval.high, 3)
    (0.0, 0.0, 0.036)
    """
    check_confidence(confidence)
    checked = bool_vector(hits, "hits")
    return _rate(checked, group_numbers(groups, len(checked)), confidence, unit)


def rates_at_threshold(
    labels: npt.ArrayLike,
    scores: npt.ArrayLike,
    threshold: float,
    groups: Iterable[Hashable] | None = None,
    *,
    confidence: float = 0.95,
    unit: str = "image",
) -> dict[str, Metric]:
    """Rates of the decision ``score >= threshold``.

    Parameters
    ----------
    labels, scores, groups, confidence, unit
        As in `anomaly_ae.metrics.roc_auc`.
    threshold : float
        At or above it an image is anomalous.

    Returns
    -------
    dict of str to Metric
        "false_alarm_rate" (share of the normal images at or above the threshold), "sensitivity" (the same
        share of the anomalous images) and "specificity" (1 - false_alarm_rate). Counts are those of the whole
        set.

    Raises
    ------
    DataError, UsageError
        As in `roc_auc`; a threshold that is NaN.
    """
    check_confidence(confidence)
    data = labelled_scores(labels, scores, groups)
    if math.isnan(threshold):
        raise DataError("the threshold is NaN", "no score can be compared with it")
    flagged = data.scores >= threshold

    def share(hits: BoolVector, among: BoolVector, name: str) -> Metric:
        codes = None if data.groups is None else data.groups[among]
        value, intervals = _rate(hits[among], codes, confidence, unit)
        reason = "" if among.any() else f"no {name} {unit}s"
        return Metric(value, data.n_normal, data.n_anomalous, intervals, reason)

    return {
        "false_alarm_rate": share(flagged, ~data.labels, "normal"),
        "sensitivity": share(flagged, data.labels, "anomalous"),
        "specificity": share(~flagged, ~data.labels, "normal"),
    }


def found_rate_band(n_calibration: int, rank: int, n_test: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Band of the false-alarm rate found on normal test images, when the calibration kept its promise.

    With a split-conformal threshold at rank k of n calibration scores the rate of one calibration lies
    between Beta(n - k, k + 1) and Beta(n + 1 - k, k) (between, because the threshold lies between two
    scores), and the number of false alarms among the test images is beta-binomial with the same parameters.
    The lower end comes from the first, the upper from the second.

    Parameters
    ----------
    n_calibration, n_test : int
        Normal images used for the threshold, and normal images it is checked on; all exchangeable.
    rank : int
        The rank k of the threshold, 1 to n, as from `threshold.conformal_rank`.
    confidence : float
        Of the band; both ends take half of the rest.

    Returns
    -------
    low, high : float
        Rates in [0, 1]: whole numbers of false alarms over `n_test`.

    Raises
    ------
    UsageError
        A count, rank or confidence out of range.

    Examples
    --------
    >>> found_rate_band(99, 99, 100)
    (0.0, 0.05)
    """
    check_confidence(confidence)
    if n_calibration < 1 or n_test < 1:
        raise UsageError(
            f"no band for {n_calibration} calibration and {n_test} test images", "both counts are at least 1"
        )
    if not 1 <= rank <= n_calibration:
        raise UsageError(f"rank {rank} of {n_calibration} calibration scores", "ranks run from 1 to their number")
    tail = (1.0 - confidence) / 2
    low = _beta_binomial_quantile(n_test, n_calibration - rank, rank + 1, tail)
    high = _beta_binomial_quantile(n_test, n_calibration + 1 - rank, rank, 1.0 - tail)
    return low / n_test, high / n_test


def _rate(
    hits: BoolVector, groups: IntVector | None, confidence: float, unit: str
) -> tuple[float | None, tuple[Interval, ...]]:
    if not len(hits):
        return None, ()
    value = float(hits.mean())
    by_images = clopper_pearson(value, len(hits), confidence, "Clopper-Pearson", unit)
    if groups is None:
        return value, (by_images,)
    codes = np.unique(groups, return_inverse=True)[1]  # a class need not hold every group
    return value, (_by_groups(hits, codes, confidence), by_images)


def _by_groups(hits: BoolVector, codes: IntVector, confidence: float) -> Interval:
    """Return the interval at the effective sample size, reaching as far as that of groups without any hit, or all hits.

    One hit among few groups shows nothing of how alike the images of a group are, and the effective sample size comes
    out as large as if they were not: a hit more would make the interval shorter.
    """
    n_effective, n_groups = effective_sample_size(hits, codes, confidence), int(codes.max()) + 1
    method = "Clopper-Pearson at effective sample size"
    found = clopper_pearson(float(hits.mean()), n_effective, confidence, method, "group")
    found = replace(found, detail=f"as of {n_effective:.1f} independent ones")
    none, every = (clopper_pearson(share, n_groups, confidence, "", "group") for share in (0.0, 1.0))
    alike = Interval(every.low, none.high, "that of groups that are all alike", "group")
    return found if found.low <= alike.low and alike.high <= found.high else hull(found, alike)


def _beta_binomial_quantile(n: int, a: int, b: int, q: float) -> int:
    """Return the smallest count whose cumulative probability reaches `q`; Beta(0, b) is the point 0."""
    from scipy.special import betaln

    if a == 0:
        return 0
    count = np.arange(n + 1)
    log_choose = -np.log(n + 1) - betaln(n - count + 1, count + 1)
    probability = np.exp(log_choose + betaln(count + a, n - count + b) - betaln(a, b))
    return min(int(np.searchsorted(np.cumsum(probability), q)), n)
