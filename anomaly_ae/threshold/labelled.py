"""Rules that need labelled anomalies: a sensitivity, the least expected cost, and the best F1 score as a comparison.

The sensitivity rule is the false-alarm rule on the other side: of negated scores, with the asked share of misses in
place of the false-alarm rate. Its promise is as exact, and is for new anomalies of the same kinds in the same mixture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from anomaly_ae.errors import CalibrationError, DataError, UsageError
from anomaly_ae.threshold.rates import (
    Share,
    exact_number,
    normals_needed,
    parse_confidence,
    parse_rate,
    parse_sensitivity,
    percent_text,
    reachable_rate,
)
from anomaly_ae.threshold.record import Threshold
from anomaly_ae.threshold.rule import checked_scores, conformal_threshold, midpoint_above, p_values
from anomaly_ae.words import n_of

BOUND_CONFIDENCE = 0.95

_FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Cost:
    """What wrong decisions cost, and how often anomalies come.

    Attributes
    ----------
    escape, false_reject : Fraction
        Of one anomalous image that is called normal, and of one normal image that is called anomalous; in any unit.
    prevalence : Fraction
        Share of anomalous images where the detector is used, not in the test set.
    """

    escape: Fraction
    false_reject: Fraction
    prevalence: Fraction

    def __str__(self) -> str:
        """Return the form that `parse` reads."""
        return f"escape={self.escape},false-reject={self.false_reject},prevalence={self.prevalence}"

    @classmethod
    def parse(cls, text: str) -> Cost:
        """Read ``escape=500,false-reject=5,prevalence=0.01``.

        >>> str(Cost.parse("escape=500,false-reject=5,prevalence=1%"))
        'escape=500,false-reject=5,prevalence=1/100'
        """
        parts = dict(part.partition("=")[::2] for part in text.replace(" ", "").split(","))
        values = {name: exact_number(value) for name, value in parts.items()}
        if set(values) != {"escape", "false-reject", "prevalence"} or not all(values.values()):
            raise UsageError(
                f"{text[:60]!r} is no cost",
                "three numbers above 0 are expected",
                "e.g. escape=500,false-reject=5,prevalence=0.01",
            )
        escape, false_reject = values["escape"] or Fraction(0), values["false-reject"] or Fraction(0)
        return cls(escape, false_reject, parse_rate(parts["prevalence"], "prevalence"))


def sensitivity_threshold(
    scores: npt.ArrayLike,
    sensitivity: Share,
    groups: npt.ArrayLike | None = None,
    confidence: Share | None = None,
    noun: str = "image",
) -> Threshold:
    """Return the highest threshold that anomalous images reach with the asked sensitivity.

    Without ``confidence`` the sensitivity holds on average over sets of labelled anomalies: the threshold is half-way
    below the q-th smallest score, ``q = floor((m + 1) * (1 - sensitivity))``. With it, at most ``1 - confidence`` of
    all such sets lead to less: q is the largest rank with ``P(Beta(q, m + 1 - q) <= 1 - sensitivity) >= confidence``.
    With ``groups`` as in `conformal_threshold`, of group minima instead of maxima.

    Parameters
    ----------
    scores : array, (m,)
        Scores of images (or units) that are known to be anomalous.
    sensitivity : str, float or Fraction
        See `parse_sensitivity`.
    groups, confidence, noun
        As in `conformal_threshold`.

    Raises
    ------
    CalibrationError
        There are too few anomalous images, or groups, for the sensitivity.
    DataError
        A score is NaN or infinite, or ``groups`` has another length.
    """
    asked, sure = parse_sensitivity(sensitivity), None if confidence is None else parse_confidence(confidence)
    values = checked_scores(scores)
    n_groups = None if groups is None else len(np.unique(np.asarray(groups)))
    _check_enough(values.size if n_groups is None else n_groups, n_groups is not None, asked, sure, noun)
    mirrored = conformal_threshold(-values, 1 - asked, groups, sure)
    n_ranked = values.size if n_groups is None else n_groups
    rank = None if mirrored.rank is None else n_ranked + 1 - mirrored.rank
    return Threshold(
        value=-mirrored.value,
        rule="sensitivity",
        rate="",
        confidence=mirrored.confidence,
        n=0,
        n_groups=n_groups,
        rank=rank,
        promise=_promise(asked, sure, values.size, n_groups, rank, noun),
        sensitivity=str(asked),
        n_anomalous=values.size,
    )


def sensitivity_bound(n: int, rank: int) -> float:
    """Return what the sensitivity is at least, with 95 % confidence, for a threshold just below the rank-th of n.

    The share of anomalous images below the rank-th smallest of n independent scores has the law Beta(rank, n + 1 -
    rank): the one-sided bound of Clopper & Pearson for rank - 1 misses among n.

    >>> round(sensitivity_bound(40, 2), 3)
    0.887
    """
    from scipy.special import betaincinv

    return 1.0 - float(betaincinv(rank, n + 1 - rank, BOUND_CONFIDENCE))


def cost_threshold(
    normal: npt.ArrayLike,
    anomalous: npt.ArrayLike,
    cost: Cost,
    normal_groups: npt.ArrayLike | None = None,
    anomalous_groups: npt.ArrayLike | None = None,
    noun: str = "image",
) -> Threshold:
    """Return the threshold with the least expected cost per image; the lower one of equals.

    ``prevalence * escape * missed + (1 - prevalence) * false_reject * flagged``, where ``flagged`` and ``missed`` are
    the conformal rates of new images: ``(1 + number at or above) / (n + 1)``, by group as in `p_values`. The added one
    keeps a threshold beyond all scores from looking free. The promise in words states the cost with it, and by plain
    rates as do the costs of calling every image normal, or anomalous. No rate is promised: it is chosen on labels.

    Raises
    ------
    DataError
        There are no normal or no anomalous scores, or one is NaN or infinite.
    """
    lower, upper = checked_scores(normal), checked_scores(anomalous)
    candidates = _candidates(lower, upper)
    flagged = p_values(candidates, lower, normal_groups)
    missed = p_values(-candidates, -upper, anomalous_groups)
    share, escape, reject = float(cost.prevalence), float(cost.escape), float(cost.false_reject)
    expected = share * escape * missed + (1 - share) * reject * flagged
    # p is 1 / (n + 1) where nothing is counted: by it, k / n comes back from (1 + k) / (n + 1), of groups as well.
    observed = share * escape * _observed(missed) + (1 - share) * reject * _observed(flagged)
    best = int(expected.argmin())
    chosen, normal_cost, anomalous_cost, with_one_more = (
        f"{1000 * value:.4g}" for value in (observed[best], observed[-1], observed[0], expected[best])
    )
    promise = (
        f"Least cost per 1,000 {noun}s: {chosen} on these {noun}s (all called normal: {normal_cost}; all anomalous: "
        f"{anomalous_cost}), {with_one_more} with one more of each kind decided wrongly. An escape costs {escape:.6g}, "
        f"a false reject {reject:.6g}, and {percent_text(cost.prevalence)} are anomalous. "
        f"{_verdict(observed, expected, best, noun)}"
        f"Chosen on {upper.size} anomalous and {n_of(lower.size, f'normal {noun}')}; no rate is promised."
    )
    return Threshold(
        value=float(candidates[best]),
        rule="cost",
        rate="",
        confidence=None,
        n=lower.size,
        n_groups=None if normal_groups is None else len(np.unique(np.asarray(normal_groups))),
        rank=None,
        promise=promise,
        cost=str(cost),
        n_anomalous=upper.size,
    )


def _observed(rates: _FloatArray) -> _FloatArray:
    """Return k / n of all (1 + k) / (n + 1), of which the smallest has k = 0."""
    lowest = float(rates.min())
    return (rates - lowest) / (1 - lowest)


def _verdict(observed: _FloatArray, expected: _FloatArray, best: int, noun: str) -> str:
    """Say where the threshold is no better than looking at no image, or not known to be; else ""."""
    cheaper, trivial = ("normal", observed[-1]) if observed[-1] <= observed[0] else ("anomalous", observed[0])
    if observed[best] >= trivial:
        return f"Calling every {noun} {cheaper} costs no more on these {noun}s. "
    if expected[best] >= trivial:
        return f"These are too few {noun}s at this prevalence to tell that calling every {noun} {cheaper} costs more. "
    return ""


def best_f1(normal: npt.ArrayLike, anomalous: npt.ArrayLike) -> tuple[float, float]:
    """Return the threshold with the best F1 score on these scores, and that score: for comparison only.

    Its figures are better than what follows in use, and it moves with the share of anomalous images in the set.

    >>> best_f1([1.0, 2.0, 3.0], [2.5, 9.0])
    (2.25, 0.8)
    """
    lower, upper = checked_scores(normal), checked_scores(anomalous)
    candidates = _candidates(lower, upper)
    n_hits = upper.size - np.searchsorted(np.sort(upper), candidates)
    n_false = lower.size - np.searchsorted(np.sort(lower), candidates)
    f1 = 2 * n_hits / (n_hits + n_false + upper.size)  # 2 TP / (2 TP + FP + FN)
    best = int(f1.argmax())
    return float(candidates[best]), float(f1[best])


def _candidates(normal: _FloatArray, anomalous: _FloatArray) -> _FloatArray:
    """Return a threshold below all scores, between any two distinct neighbours, and above all; ascending."""
    if not (normal.size and anomalous.size):
        missing = "anomalous" if normal.size else "normal"
        raise DataError(f"no {missing} images", "this rule weighs both kinds", f"label some images {missing}")
    scores = np.unique(np.concatenate([normal, anomalous]))
    middles = scores[:-1] / 2 + scores[1:] / 2  # halves: no overflow
    middles = np.minimum(np.maximum(middles, np.nextafter(scores[:-1], np.inf)), scores[1:])
    ends = np.nextafter(scores[0], -np.inf), midpoint_above(float(scores[-1]), scores)
    return np.concatenate([ends[:1], middles, ends[1:]])


def _check_enough(n: int, grouped: bool, asked: Fraction, sure: Fraction | None, noun: str) -> None:
    needed = normals_needed(1 - asked, sure)
    if n >= needed:
        return
    which = f"{n_of(n, 'group')} of anomalous {noun}s" if grouped else n_of(n, f"anomalous {noun}")
    reachable = f", or ask for {_floor_percent(1 - reachable_rate(n, None, sure))} % or less" if n else ""
    raise CalibrationError(
        f"a sensitivity of {percent_text(asked)} is out of reach{_sure_text(sure)} with {which}",
        f"it needs at least {needed}",
        f"label more anomalies{reachable}",
    )


def _floor_percent(share: Fraction | float) -> str:
    """Return a share in per cent, rounded down: what is promised is never more than what holds."""
    return f"{math.floor(1000 * share) / 10:g}"


def _sure_text(sure: Fraction | None) -> str:
    return "" if sure is None else f" with {percent_text(sure)} confidence"


def _promise(asked: Fraction, sure: Fraction | None, n: int, n_groups: int | None, rank: int | None, noun: str) -> str:
    if sure is not None:
        text = f"Sensitivity at least {percent_text(asked)},{_sure_text(sure)}"
    else:
        text = f"Sensitivity {percent_text(asked)} on average over sets of labelled anomalies"
        if rank is not None and n_groups is None:
            bound = _floor_percent(sensitivity_bound(n, rank))
            text += f"; with this one at least {bound} %, with {100 * BOUND_CONFIDENCE:g} % confidence"
    if n_groups is None:
        text += f"; {noun}s are taken as independent ({n_of(n, f'anomalous {noun}')})"
    else:
        rule = "every group counts once" if sure is None else "set on the smallest score of each group"
        text += f", for a new anomalous {noun} of a new group ({n_of(n_groups, 'group')}; {rule})"
        text += "; a bound needs --confidence" if sure is None else ""
    return f"{text}. For the same kinds of anomalies in the same mixture; no false-alarm rate is promised."
