"""A threshold with its origin: what a model file, a run and a report say about where a limit comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from anomaly_ae.errors import ModelFileError, UsageError
from anomaly_ae.threshold.rates import parse_confidence, parse_rate, parse_sensitivity

RULES = ("false_alarm_rate", "sensitivity", "cost", "manual")


@dataclass(frozen=True, slots=True)
class Threshold:
    """A threshold and where it comes from; ``score >= value`` is anomalous.

    Attributes
    ----------
    value : float
        In the unit of the scores.
    rule : str
        "false_alarm_rate" (from calibration scores), "sensitivity" (from labelled anomalies), "cost" (from both)
        or "manual".
    rate : str
        The asked false-alarm rate as an exact fraction, e.g. "1/100"; empty for other rules.
    confidence : str or None
        The asked confidence as an exact fraction; None = the promise holds on average over calibrations.
    n : int
        Number of calibration scores, of normal images; 0 where the rule uses none.
    n_groups : int or None
        Number of groups that the scores of the promise came in; None = taken as independent.
    rank : int or None
        k: the threshold lies just above the k-th smallest score (with groups and confidence: group maximum); for
        "sensitivity" just below it (group minimum). None where the rule has no single rank (groups without
        confidence, cost, manual).
    promise : str
        What is promised, in one sentence.
    sensitivity, cost : str
        What was asked: the sensitivity as an exact fraction, the costs as `Cost` writes them; else empty.
    n_anomalous : int
        Number of labelled anomalies that it was chosen on.
    chosen_on : str
        SHA-256 of the images that it was chosen on, where these are not calibration images: on them its figures are
        no forecast. Empty otherwise.
    review : Threshold or None
        Where the review band begins: a score from there to below ``value`` is for a person to decide.
    """

    value: float
    rule: str
    rate: str
    confidence: str | None
    n: int
    n_groups: int | None
    rank: int | None
    promise: str
    sensitivity: str = ""
    cost: str = ""
    n_anomalous: int = 0
    chosen_on: str = ""
    review: Threshold | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise UsageError(f"a threshold of {self.value}", "it must be a finite number")
        if self.review is not None and self.review.value >= self.value:
            raise UsageError(
                f"the review limit {self.review.value:.4g} is not below the threshold {self.value:.4g}",
                "no image would be left for review",
                "ask for a larger review rate, or leave the review out",
            )

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values; what a rule does not use is left out, so that old hashes stay as they are."""
        values = asdict(self)
        for name in _ADDED:
            if not values[name]:
                del values[name]
        if self.review is not None:
            values["review"] = self.review.as_json()
        return values

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Threshold:
        """Read what `as_json` wrote; anything else raises `ModelFileError`."""
        try:
            _check_json(data)
            review = data.get("review")
            return cls(**{**data, "review": None if review is None else cls.from_json(review)})
        except UsageError as error:
            raise ModelFileError("the stored threshold is damaged", str(error), "calibrate again") from error


_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "value": (float,),
    "rule": (str,),
    "rate": (str,),
    "confidence": (str, type(None)),
    "n": (int,),
    "n_groups": (int, type(None)),
    "rank": (int, type(None)),
    "promise": (str,),
}
_ADDED: dict[str, tuple[type, ...]] = {
    "sensitivity": (str,),
    "cost": (str,),
    "n_anomalous": (int,),
    "chosen_on": (str,),
    "review": (dict,),
}


def _check_json(data: Mapping[str, Any]) -> None:
    odd = sorted(map(str, (set(data) - set(_ADDED)) ^ set(_JSON_TYPES)))
    if odd:
        raise UsageError("unknown or missing keys", ", ".join(odd))
    types = _JSON_TYPES | _ADDED
    wrong = [key for key, value in data.items() if type(value) not in types[key]]  # a bool is no int
    wrong += [key for key, value in data.items() if type(value) is int and value < 0]
    if wrong:
        raise UsageError("values of the wrong type or sign", ", ".join(wrong))
    if data["rule"] not in RULES:
        raise UsageError("unknown rule", data["rule"][:40])
    if data["rule"] == "false_alarm_rate":
        parse_rate(data["rate"])
    if data["rule"] == "sensitivity":
        parse_sensitivity(data.get("sensitivity", ""))
    if data["confidence"] is not None:
        parse_confidence(data["confidence"])


def manual_threshold(value: float) -> Threshold:
    """Return a threshold set by hand, which promises nothing."""
    promise = "Set by hand: no false-alarm rate is promised."
    return Threshold(float(value), "manual", "", None, n=0, n_groups=None, rank=None, promise=promise)
