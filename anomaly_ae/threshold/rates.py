"""Which false-alarm rates can be promised with how many normal images, and the rank that keeps the promise.

Needs counts only, no scores: all of it can be said before training.

References
----------
Vovk: Conditional validity of inductive conformal predictors, ACML 2012 (the Beta law behind ``confidence``).
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from fractions import Fraction

from anomaly_ae.errors import CalibrationError, UsageError
from anomaly_ae.words import n_of

DEFAULT_RATE = Fraction(1, 100)

Share = str | float | Fraction  # what a user may write for a rate or a confidence

# Lengths are limited: Fraction("1e-999999999") would fill the memory. What the first line accepts, written as
# a fraction, the second accepts too, so that a stored rate can be read again.
_DECIMAL = re.compile(r"\d{0,9}\.?\d{1,20}(e-0?\d)?", re.ASCII | re.IGNORECASE)
_FRACTION = re.compile(r"\d{1,40}/0*[1-9]\d{0,39}", re.ASCII)


def exact_number(value: Share) -> Fraction | None:
    """Return a number that a user wrote, exactly: decimal, in per cent, or a fraction; None for anything else."""
    text = str(value).strip()
    number = text.removesuffix("%").rstrip()
    if not (_DECIMAL.fullmatch(number) or _FRACTION.fullmatch(number)):
        return None
    return Fraction(number) / (100 if text.endswith("%") else 1)


def parse_rate(value: Share, name: str = "false-alarm rate") -> Fraction:
    """Return a false-alarm rate, or what else is called `name`, as an exact fraction from 1e-12 to below 1.

    >>> parse_rate("1%"), parse_rate(0.001), parse_rate("1/141")
    (Fraction(1, 100), Fraction(1, 1000), Fraction(1, 141))
    """
    rate = exact_number(value)
    if rate is None or not Fraction(1, 10**12) <= rate < 1:
        what = f"{str(value)[:60]!r} is not a {name}"
        raise UsageError(what, "a number between 0 and 1 is expected", "1 per cent is 1%, 0.01 or 1/100")
    return rate


def parse_confidence(value: Share) -> Fraction:
    """Return a confidence as an exact fraction from 0.5 to 0.9999.

    >>> parse_confidence("95%")
    Fraction(19, 20)
    """
    confidence = exact_number(value)
    if confidence is None or not Fraction(1, 2) <= confidence <= Fraction(9999, 10000):
        what = f"{str(value)[:60]!r} is not a confidence"
        raise UsageError(what, "a number from 0.5 to 0.9999 is expected", "95 per cent is 95% or 0.95")
    return confidence


def parse_sensitivity(value: Share) -> Fraction:
    """Return a sensitivity as an exact fraction above 0 and below 1.

    >>> parse_sensitivity("95%")
    Fraction(19, 20)
    """
    sensitivity = exact_number(value)
    if sensitivity is None or not Fraction(1, 10**12) <= 1 - sensitivity < 1:
        what = f"{str(value)[:60]!r} is not a sensitivity"
        raise UsageError(what, "a number between 0 and 1 is expected", "95 per cent is 95% or 0.95")
    return sensitivity


def percent_text(share: Fraction) -> str:
    """Return a share in per cent; where that is rounded, with the exact fraction.

    >>> percent_text(Fraction(1, 1000)), percent_text(Fraction(1, 141))
    ('0.1 %', '0.709 % (1/141)')
    """
    exact = f"{float(share * 100):.6g}"
    return f"{exact} %" if Fraction(exact) == share * 100 else f"{float(share * 100):.3g} % ({share})"


def default_rate(n: int, n_groups: int | None = None, confidence: Share | None = None) -> Fraction:
    """Return the rate used when none is asked for: 1 %, or the smallest reachable one where that is larger.

    >>> default_rate(140), default_rate(50), default_rate(400, n_groups=9)
    (Fraction(1, 100), Fraction(1, 51), Fraction(1, 10))
    """
    return max(DEFAULT_RATE, reachable_rate(n, n_groups, confidence))


def reachable_rate(n: int, n_groups: int | None = None, confidence: Share | None = None) -> Fraction:
    """Return the smallest rate that can be promised: 1 / (m + 1), m = number of groups or else of images.

    With ``confidence`` it is ``1 - (1 - confidence) ** (1 / m)``, rounded up in the third significant digit.
    """
    m = n if n_groups is None else n_groups
    if m < 1:
        raise CalibrationError("there are no normal images for calibration", fix="add normal images")
    if confidence is None:
        return Fraction(1, m + 1)
    smallest = -math.expm1(math.log(1 - parse_confidence(confidence)) / m)
    steps = 10 ** (2 - math.floor(math.log10(min(smallest, 1 - smallest))))
    return Fraction(math.floor(smallest * steps) + 1, steps)


def normals_needed(rate: Share, confidence: Share | None = None) -> int:
    """Return how many normal calibration images (with groups: groups) a rate needs.

    >>> normals_needed("1%"), normals_needed("1%", "95%"), normals_needed("0.1%", "95%")
    (99, 299, 2995)
    """
    asked = parse_rate(rate)
    if confidence is None:
        return math.ceil(1 / asked) - 1  # (n + 1) * rate >= 1
    risk = float(1 - parse_confidence(confidence))
    guess = math.ceil(math.log(risk) / math.log1p(-float(asked)))  # (1 - rate) ** n <= 1 - confidence
    near = (n for n in (guess - 1, guess) if n >= 1 and exceed_probability(n, n, asked) <= risk)
    return next(near, guess + 1)


def check_reachable(n: int, n_groups: int | None, rate: Share, confidence: Share | None = None) -> None:
    """Raise `CalibrationError` when a rate cannot be promised with so many images (or groups)."""
    asked, needed = parse_rate(rate), normals_needed(rate, confidence)
    if (n if n_groups is None else n_groups) >= needed:
        return
    smallest = reachable_rate(n, n_groups, confidence)
    sure = "" if confidence is None else f" with {percent_text(parse_confidence(confidence))} confidence"
    raise CalibrationError(
        f"a false-alarm rate of {percent_text(asked)} is out of reach{sure} with {_count_text(n, n_groups)}",
        f"it needs at least {needed} {'images' if n_groups is None else 'groups'}",
        f"add normal images, or ask for {percent_text(smallest)} or more",
    )


def reachable_text(n: int, n_groups: int | None = None, confidence: Share | None = None) -> str:
    """Return the line shown before training: the reachable rate, and what 1 % and 0.1 % need.

    >>> reachable_text(140)
    'reachable false-alarm rate: 0.709 % (1/141) with 140 normal images (1 % needs 99, 0.1 % needs 999)'
    """
    sure = "" if confidence is None else f", {percent_text(parse_confidence(confidence))} confidence"
    return (
        f"reachable false-alarm rate: {percent_text(reachable_rate(n, n_groups, confidence))} with "
        f"{_count_text(n, n_groups)}{sure} (1 % needs {normals_needed('1%', confidence)}, "
        f"0.1 % needs {normals_needed('0.1%', confidence)}{'' if n_groups is None else ' groups'})"
    )


def conformal_rank(n: int, rate: Fraction, confidence: Fraction | None) -> int:
    """Return k: the threshold lies just above the k-th smallest of n scores. Needs a reachable rate.

    >>> conformal_rank(140, Fraction(1, 100), None), conformal_rank(1000, Fraction(1, 100), Fraction(19, 20))
    (140, 996)
    """
    if confidence is None:
        return n + 1 - math.floor((n + 1) * rate)
    risk = float(1 - confidence)
    return 1 + bisect_left(range(1, n + 1), True, key=lambda k: exceed_probability(n, k, rate) <= risk)


def exceed_probability(n: int, rank: int, rate: Share) -> float:
    """Return the chance that one calibration's false-alarm rate is above ``rate``, for independent scores.

    ``P(Beta(n + 1 - k, k) > rate)``, the law of the share above the k-th of n scores. The threshold lies
    half-way to the next score, and scores may tie, so the true chance is at most this.

    >>> round(exceed_probability(140, 140, "1%"), 3)
    0.245
    """
    from scipy.special import betaincc

    return float(betaincc(n + 1 - rank, rank, float(parse_rate(rate))))


def _count_text(n: int, n_groups: int | None) -> str:
    images = n_of(n, "normal image")
    return images if n_groups is None else f"{images} in {n_of(n_groups, 'group')}"
