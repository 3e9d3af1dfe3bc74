"""From calibration scores to a threshold with a stated promise, and from a score to a decision.

Split conformal prediction: the threshold is a rank statistic of the scores of normal images that took no part
in training. Nothing is assumed about the shape of the scores, only that calibration and future normal images
(with groups: groups) are exchangeable.
Ranks use fractions: in floats ``(n + 1) * rate`` may miss a whole one.

References
----------
Vovk, Gammerman, Shafer: Algorithmic Learning in a Random World, 2005 (conformal p-values).
Lee, Barber, Willett: Distribution-free inference with hierarchical data, arXiv:2306.06342 (groups).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from anomaly_ae.errors import DataError, UsageError
from anomaly_ae.records import Decision, FloatArray
from anomaly_ae.threshold.rates import (
    Share,
    check_reachable,
    conformal_rank,
    parse_confidence,
    parse_rate,
    percent_text,
)
from anomaly_ae.threshold.record import Threshold
from anomaly_ae.words import n_of

_FloatArray = npt.NDArray[np.float64]
_IntArray = npt.NDArray[np.intp]

_DECISIONS = {int(decision): decision for decision in Decision}  # a look here takes a tenth of the time of a call


def decide(score: float, threshold: Threshold | float) -> Decision:
    """Return the decision for one score.

    A score that is no measurement (NaN; minus infinity, the maximum over no pixels) is never NORMAL.

    >>> decide(0.4, 0.5).name, decide(0.5, 0.5).name, decide(float("nan"), 0.5).name
    ('NORMAL', 'ANOMALOUS', 'NOT_INSPECTED')
    """
    return decide_all([score], threshold)[0]


def decide_all(scores: npt.ArrayLike, threshold: Threshold | float) -> list[Decision]:
    """Return what `decide` returns for each of many scores (n,)."""
    limit = threshold.value if isinstance(threshold, Threshold) else float(threshold)
    if not math.isfinite(limit):
        raise UsageError(f"a threshold of {limit}", "it must be a finite number")
    review = threshold.review if isinstance(threshold, Threshold) else None
    values = np.asarray(scores, np.float64)
    codes = np.full(values.shape, Decision.NORMAL)
    if review is not None:
        codes[values >= review.value] = Decision.REVIEW
    codes[values >= limit] = Decision.ANOMALOUS
    codes[np.isnan(values) | (values == -math.inf)] = Decision.NOT_INSPECTED
    return list(map(_DECISIONS.__getitem__, codes.tolist()))


def conformal_threshold(
    scores: npt.ArrayLike,
    rate: Share,
    groups: npt.ArrayLike | None = None,
    confidence: Share | None = None,
    noun: str = "image",
) -> Threshold:
    """Return the threshold that normal images reach with the asked rate.

    Without ``confidence`` the rate holds on average over calibrations: the threshold is the midpoint between
    the k-th smallest score and the next distinct larger one, ``k = n + 1 - floor((n + 1) * rate)``.
    With ``confidence`` at most ``1 - confidence`` of all calibrations exceed the rate: k is the smallest rank
    with ``P(Beta(n + 1 - k, k) <= rate) >= confidence``.

    With ``groups`` both promises are for a new image of a new group. On average: every group counts once,
    whatever its size. With confidence: the rule above on the largest score of each group (conservative).

    Without confidence, or with 2/3 and more, ``score >= threshold`` implies ``p_values(score) <= rate``
    (as floats).

    Parameters
    ----------
    scores : array, (n,)
        Scores of normal images (or units) that took no part in training.
    rate, confidence : str, float or Fraction
        See `parse_rate`, `parse_confidence`.
    groups : array, (n,), optional
        Which group (patient, part, batch) each score belongs to.
    noun : str
        What one score stands for, in the words of the promise: "image" or "unit".

    Raises
    ------
    CalibrationError
        There are too few scores, or groups, for the rate.
    DataError
        A score is NaN or infinite, or ``groups`` has another length.
    """
    asked, sure = parse_rate(rate), None if confidence is None else parse_confidence(confidence)
    values = checked_scores(scores)
    codes = None if groups is None else group_codes(groups, values.size)
    n_groups = None if codes is None else count_groups(codes)
    check_reachable(values.size, n_groups, asked, sure)
    if codes is not None and sure is None:
        rank, lower = None, _grouped_quantile(values, codes, asked)
    else:
        values = np.sort(values if codes is None else _group_maxima(values, codes))
        rank = conformal_rank(values.size, asked, sure)
        lower = float(values[rank - 1])
    return Threshold(
        value=midpoint_above(lower, values),
        rule="false_alarm_rate",
        rate=str(asked),
        confidence=None if sure is None else str(sure),
        n=np.size(scores),
        n_groups=n_groups,
        rank=rank,
        promise=_promise(asked, sure, np.size(scores), n_groups, noun),
    )


def p_values(
    scores: npt.ArrayLike, calibration_scores: npt.ArrayLike, groups: npt.ArrayLike | None = None
) -> _FloatArray:
    """Return conformal p-values: how usual a score at least this high is among normal images.

    ``(1 + number of calibration scores >= score) / (n + 1)``; with ``groups`` (of the calibration scores)
    ``(1 + sum over groups of the share of its scores >= score) / (G + 1)``. Float64, in the shape of
    ``scores``, never 0. NaN and minus infinity, which are no measurements, give NaN.

    >>> p_values([0.5, 9.0], [1.0, 2.0, 3.0])
    array([1.  , 0.25])
    """
    return PValues.beside(calibration_scores, groups)(scores)


@dataclass(frozen=True, slots=True, eq=False)
class PValues:
    """What `p_values` looks up: made once for a set of calibration scores, whatever is asked of it later.

    Attributes
    ----------
    ordered : float64 array, (n,)
        The calibration scores, increasing.
    by_position : float64 array, (n + 1,)
        p of a score that lies above so many of them.
    """

    ordered: _FloatArray
    by_position: _FloatArray

    @classmethod
    def beside(cls, calibration_scores: npt.ArrayLike, groups: npt.ArrayLike | None = None) -> PValues:
        """Make the table; see `p_values`."""
        calibration = checked_scores(calibration_scores)
        codes = np.arange(calibration.size) if groups is None else group_codes(groups, calibration.size)
        weights, total = _image_weights(codes)
        order = np.argsort(calibration)
        tail = accumulate((weights[i] for i in order[::-1].tolist()), initial=total)  # whole numbers: exact
        # Whole numbers divide with correct rounding, so p <= rate holds between the floats whenever it holds between
        # the fractions.
        whole = total * (count_groups(codes) + 1)
        return cls(calibration[order], np.array([t / whole for t in tail])[::-1])

    def __call__(self, scores: npt.ArrayLike) -> _FloatArray:
        """Return p-values in the shape of ``scores``; NaN for what is no measurement."""
        values = np.asarray(scores, dtype=np.float64)
        p = self.by_position[np.searchsorted(self.ordered, values, side="left")]
        return np.where(values > -np.inf, p, np.nan)


def display_value(score: float, threshold: float, median: float) -> float:
    """Return a score on the display scale: 0 = a typical normal (the calibration median), 1 = the threshold.

    At least 1 exactly when ``score >= threshold``. Without a distance between the two, the value is 0 or 1.

    >>> display_value(3.0, threshold=5.0, median=1.0)
    0.5
    """
    return float(display_values(np.array(score, np.float64), threshold, median))


def display_values(values: FloatArray, threshold: float, median: float) -> FloatArray:
    """Return what `display_value` does for many scores, or for a map: in the shape and dtype of ``values``."""
    reached = np.greater_equal(values, threshold, signature="dd->?")  # as float64, as regions and images are decided
    half_distance = threshold / 2 - median / 2  # halves: no overflow
    if half_distance <= 0:
        return np.where(np.isnan(values), np.nan, reached).astype(values.dtype)
    with np.errstate(over="ignore"):  # far away on a short scale is infinite
        shown = (values / 2 - median / 2) / half_distance
    below_one = np.nextafter(values.dtype.type(1), values.dtype.type(0))
    return np.where(reached, np.maximum(shown, 1), np.minimum(shown, below_one))


def checked_scores(scores: npt.ArrayLike) -> _FloatArray:
    """Return scores as float64, (n,); NaN and infinity are refused."""
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1:
        raise UsageError(f"calibration scores of shape {values.shape}", "one score per image is expected")
    n_bad = int(np.count_nonzero(~np.isfinite(values)))
    if n_bad:
        what = f"{n_bad} of {values.size} calibration scores are NaN or infinite"
        raise DataError(what, "no threshold can be set on them", "look for damaged images, or train again")
    return values


def group_codes(groups: npt.ArrayLike, n: int) -> _IntArray:
    """Return group numbers 0 .. G - 1, shape (n,)."""
    names = np.asarray(groups, dtype=str)
    if names.shape != (n,):
        raise DataError(f"groups of shape {names.shape} for {n} calibration scores", "one each is expected")
    return np.unique(names, return_inverse=True)[1].reshape(n)


def count_groups(codes: _IntArray) -> int:
    """Return how many groups there are: G for the numbers 0 .. G - 1."""
    return int(codes.max(initial=-1)) + 1


def _group_maxima(values: _FloatArray, codes: _IntArray) -> _FloatArray:
    maxima = np.full(count_groups(codes), -np.inf)
    np.maximum.at(maxima, codes, values)
    return maxima


def _image_weights(codes: _IntArray) -> tuple[list[int], int]:
    """Return whole numbers, one per image, equal within a group, and their sum, the same in every group."""
    sizes = np.bincount(codes).tolist()
    total = math.lcm(*sizes)
    return [total // sizes[code] for code in codes.tolist()], total


def _grouped_quantile(values: _FloatArray, codes: _IntArray, rate: Fraction) -> float:
    """Return the smallest score q with sum over groups of share_g(score <= q) >= (G + 1) * (1 - rate)."""
    weights, total = _image_weights(codes)
    limit = math.ceil(total * (count_groups(codes) + 1) * (1 - rate))
    order = np.argsort(values).tolist()
    reached = accumulate(weights[i] for i in order)
    return next(float(values[i]) for i, weight in zip(order, reached, strict=True) if weight >= limit)


def midpoint_above(lower: float, scores: _FloatArray) -> float:
    """Return the midpoint between ``lower`` and the next larger score; the next float when there is none."""
    next_float = math.nextafter(lower, math.inf)
    above = float(scores[scores > lower].min(initial=math.inf))
    if above == math.inf:
        return next_float
    middle = lower / 2 + above / 2  # halves: no overflow
    return min(max(middle, next_float), above)  # neighbouring floats: the middle may round onto the lower one


def _promise(rate: Fraction, confidence: Fraction | None, n: int, n_groups: int | None, noun: str) -> str:
    if confidence is None:
        text = f"False-alarm rate {percent_text(rate)} on average over calibrations"
    else:
        text = f"False-alarm rate at most {percent_text(rate)}, with {percent_text(confidence)} confidence"
    if n_groups is None:
        return f"{text}; {noun}s are taken as independent ({n_of(n, noun)})."
    rule = "every group counts once" if confidence is None else "set on the largest score of each group"
    return f"{text}, for a new {noun} of a new group ({n_of(n_groups, 'group')}; {rule})."
