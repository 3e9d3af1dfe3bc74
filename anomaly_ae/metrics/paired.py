"""Differences of two detectors on the same images, with intervals and p-values.

All are paired: both detectors saw the same images, so what makes an image hard for both takes no part in the
difference. Every difference is the other's figure less the first's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from anomaly_ae.metrics.checks import BoolVector, FloatVector, IntVector
from anomaly_ae.metrics.intervals import share_below, z_quantile
from anomaly_ae.records import Interval

DELONG = "paired DeLong"
MCNEMAR = "McNemar exact; interval: Newcombe method 10"
BOOTSTRAP = "bootstrap of whole {unit}s, expanded percentiles"
ROUNDING = 1e-12  # draws this near each other are equal
FEWEST_GROUPS = 4
"""With fewer, all change to one side by chance too often: 3 groups in a quarter of the cases, and no draw shows it."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The other's figure less the first's.

    Attributes
    ----------
    value : float or None
        None where one of the two figures is missing.
    interval : Interval or None
    p : float or None
        Two-sided, of no difference; not adjusted for other comparisons.
    reason : str
        Why something is missing.
    """

    value: float | None
    interval: Interval | None = None
    p: float | None = None
    reason: str = ""


def placements(labels: BoolVector, scores: FloatVector) -> FloatVector:
    """Return for every image the share of the other class that it is ordered rightly against, equals counting half.

    The mean over the anomalous images, and over the normal ones, is the ROC-AUC (DeLong et al. 1988).

    Parameters
    ----------
    labels : bool array, (n,)
        True = anomalous; both classes are needed.
    scores : array, (n,)

    Returns
    -------
    float64 array, (n,), in [0, 1]

    >>> placements(np.array([False, False, True]), np.array([1.0, 2.0, 2.0]))
    array([1.  , 0.5 , 0.75])
    """
    placed = np.empty(len(scores))
    placed[labels] = share_below(scores[labels], np.sort(scores[~labels]))
    placed[~labels] = share_below(-scores[~labels], np.sort(-scores[labels]))
    return placed


def delong_difference(
    labels: BoolVector, first: FloatVector, other: FloatVector, confidence: float, unit: str
) -> Difference:
    """Difference of two ROC-AUCs on the same independent images.

    DeLong, DeLong & Clarke-Pearson 1988 (Biometrics 44:837). Its variance, var(first) + var(other) - 2 cov, is that
    of the differences of the placements, which sorting gives without a look at every pair (Sun & Xu 2014, IEEE
    Signal Process. Lett. 21:1389).

    Parameters
    ----------
    labels : bool array, (n,)
        True = anomalous.
    first, other : float64 array, (n,)
        `placements` of the two; or means of them over seeds, whose mean is the mean ROC-AUC.
    """
    change = other - first
    of_anomalous, of_normal = change[labels], change[~labels]
    value = float(of_anomalous.mean())
    if min(len(of_anomalous), len(of_normal)) < 2:
        return Difference(value, reason=f"only one {unit} of a class")
    if not change.any():
        return Difference(value, reason=f"no {unit} is ordered otherwise")
    variance = of_anomalous.var(ddof=1) / len(of_anomalous) + of_normal.var(ddof=1) / len(of_normal)
    if variance == 0.0:
        return Difference(value, reason=f"all {unit}s changed alike: nothing tells how much others would")
    error = math.sqrt(variance)
    half = z_quantile(confidence) * error
    interval = Interval(max(-1.0, value - half), min(1.0, value + half), DELONG, unit)
    return Difference(value, interval, _two_sided_normal(value / error))


def paired_rates_difference(first: BoolVector, other: BoolVector, confidence: float, unit: str) -> Difference:
    """Difference of two rates on the same independent images.

    p-value: the exact form of McNemar 1947 (Psychometrika 12:153), from the images that changed sides alone.
    Interval: method 10 of Newcombe 1998 (Stat. Med. 17:2635), from the score limits of both rates and their
    correlation; it does not vanish where no image changed sides.

    Parameters
    ----------
    first, other : bool array, (n,)
        Whether the event happened, image by image.
    """
    from scipy.special import bdtr

    n, gained, lost = len(first), int((other & ~first).sum()), int((first & ~other).sum())
    if n == 0:
        return Difference(None, reason=f"no {unit}s")
    value = (gained - lost) / n
    p = min(1.0, 2.0 * float(bdtr(min(gained, lost), gained + lost, 0.5)))
    low, high = _newcombe_paired(first, other, value, confidence)
    return Difference(value, Interval(low, high, MCNEMAR, unit), p)


def _newcombe_paired(first: BoolVector, other: BoolVector, value: float, confidence: float) -> tuple[float, float]:
    """Return the limits of Newcombe's method 10 for mean(other) - mean(first)."""
    n, z = len(first), z_quantile(confidence)
    rates = float(other.mean()), float(first.mean())
    (low_1, high_1), (low_2, high_2) = (_wilson(rate, n, z) for rate in rates)
    down_1, up_1, down_2, up_2 = rates[0] - low_1, high_1 - rates[0], rates[1] - low_2, high_2 - rates[1]
    phi = _corrected_phi(first, other)
    low = value - math.sqrt(max(0.0, down_1**2 - 2 * phi * down_1 * up_2 + up_2**2))
    high = value + math.sqrt(max(0.0, up_1**2 - 2 * phi * up_1 * down_2 + down_2**2))
    return max(-1.0, low), min(1.0, high)


def _corrected_phi(first: BoolVector, other: BoolVector) -> float:
    """Correlation of the two, with Newcombe's continuity correction where it is positive; 0 where one never varies."""
    n = len(first)
    both, neither = int((first & other).sum()), int((~first & ~other).sum())
    product = both * neither - int((first & ~other).sum()) * int((other & ~first).sum())
    margins = int(first.sum()) * int((~first).sum()) * int(other.sum()) * int((~other).sum())
    if margins == 0:
        return 0.0
    return (max(product - n / 2, 0.0) if product > 0 else product) / math.sqrt(margins)


def _wilson(rate: float, n: int, z: float) -> tuple[float, float]:
    """Score interval of a rate (Wilson 1927)."""
    middle, scale = rate + z * z / (2 * n), 1 + z * z / n
    half = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def mean_draws(values: FloatVector, groups: IntVector, n_draws: int, seed: int) -> FloatVector:
    """Return the means of `n_draws` sets made of whole groups, drawn with replacement.

    Parameters
    ----------
    values : float64 array, (n,)
    groups : int64 array, (n,)
        Group numbers; any whole numbers.

    Returns
    -------
    float64 array, (n_draws,)
    """
    codes = np.unique(groups, return_inverse=True)[1]
    sums, sizes = np.bincount(codes, weights=values), np.bincount(codes)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(sizes), size=(n_draws, len(sizes)))
    means: FloatVector = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    return means


def expanded_percentiles(draws: FloatVector, n_groups: int, confidence: float, unit: str) -> Interval | None:
    """Interval from bootstrap draws, widened for few groups; None where the draws cannot tell.

    Plain percentiles are too narrow for few groups, by sqrt((n - 1) / n) and for want of a t quantile. Hesterberg
    2015 (The American Statistician 69:371) takes percentiles further out, at the normal probability of
    ``sqrt(n / (n - 1)) * t``. There is none with fewer than `FEWEST_GROUPS`, where so far out there is no draw, and
    where the draws do not vary.
    """
    if n_groups < FEWEST_GROUPS or np.ptp(draws) < ROUNDING:
        return None
    tail = _expanded_tail(n_groups, confidence)
    if tail < 1.0 / (len(draws) + 1):
        return None
    low, high = np.quantile(draws, [tail, 1.0 - tail])
    return Interval(float(low), float(high), BOOTSTRAP.format(unit=unit), unit)


def _expanded_tail(n_groups: int, confidence: float) -> float:
    """Return the share of draws beyond each end of the interval."""
    from scipy.special import ndtr, stdtrit

    t = float(stdtrit(n_groups - 1, (1.0 + confidence) / 2))
    return float(ndtr(-t * math.sqrt(n_groups / (n_groups - 1))))


def bootstrap_difference(
    value: float, draws: FloatVector, n_draws: int, n_groups: int, confidence: float, unit: str, nothing: str
) -> Difference:
    """Difference with the interval of `expanded_percentiles` and the p-value that belongs to it.

    The p-value is the smallest risk at which the interval leaves out 0: the share of draws on the other side of 0
    (one added to both counts: Davison & Hinkley 1997, 4.2.3), turned from the normal to the t scale as the
    percentiles are.

    Parameters
    ----------
    draws : float64 array, (B,)
        Differences on sets of whole groups drawn with replacement.
    n_draws : int
        How many were drawn; those without a class are not among ``draws``.
    nothing : str
        Why there is no interval where the draws do not vary. Without an interval there is no p-value.
    """
    from scipy.special import ndtri, stdtr

    if len(draws) < n_draws / 2:
        return Difference(value, reason="most sets that were drawn lack a class")
    interval = expanded_percentiles(draws, n_groups, confidence, unit)
    if interval is None:
        return Difference(value, reason=_why_none(draws, n_groups, unit, nothing))
    smaller = min(np.count_nonzero(draws <= 0), np.count_nonzero(draws >= 0))
    tail = min(0.5, (smaller + 1) / (len(draws) + 1))
    t = float(ndtri(tail)) * math.sqrt((n_groups - 1) / n_groups)
    return Difference(value, interval, min(1.0, 2.0 * float(stdtr(n_groups - 1, t))))


def _why_none(draws: FloatVector, n_groups: int, unit: str, nothing: str) -> str:
    if n_groups < FEWEST_GROUPS:
        return f"an interval needs at least {FEWEST_GROUPS} {unit}s of each class it is about, and there are {n_groups}"
    return nothing if np.ptp(draws) < ROUNDING else f"with {n_groups} {unit}s its ends are beyond all draws"


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values adjusted for all comparisons made together; None stays None and is not counted.

    Holm 1979 (Scand. J. Statist. 6:65): the i-th smallest of m is multiplied by m + 1 - i, and none is below the one
    before it. Then the chance of even one false alarm among the comparisons stays below the asked risk.

    >>> holm([0.01, None, 0.04, 0.03])
    [0.03, None, 0.06, 0.06]
    """
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        adjusted[i] = largest
    return adjusted


def _two_sided_normal(z: float) -> float:
    from scipy.special import ndtr

    return 2.0 * float(ndtr(-abs(z)))
