"""The scores that thresholds come from, what may be asked of them, and the three thresholds of a model. Numpy only."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from anomaly_ae.errors import DataError, UsageError
from anomaly_ae.records import BoolArray, FloatArray
from anomaly_ae.threshold import (
    DEFAULT_RATE,
    Cost,
    Share,
    Threshold,
    conformal_threshold,
    cost_threshold,
    default_rate,
    manual_threshold,
    parse_confidence,
    parse_rate,
    parse_sensitivity,
    percent_text,
    reachable_rate,
    sensitivity_threshold,
)

_Groups = npt.NDArray[np.int64] | None


@dataclass(frozen=True, slots=True, eq=False)
class CalibrationScores:
    """What the normals that nothing was learned from scored; thresholds and p-values come from here.

    Attributes
    ----------
    image, pixel : float64 array, (n,)
        Score of every image, and the largest valid pixel of its map.
    image_group : int64 array, (n,), or None
        Group number of every image; None where every image is its own group.
    unit : float64 array, (m,)
        Score of every unit, see `unit_scores`.
    unit_group : int64 array, (m,), or None
    """

    image: FloatArray
    pixel: FloatArray
    image_group: npt.NDArray[np.int64] | None
    unit: FloatArray
    unit_group: npt.NDArray[np.int64] | None

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values, as ``run.json`` holds them."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: None if array is None else array.tolist() for name, array in values.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> CalibrationScores:
        """Read what `as_json` wrote."""

        def numbers(name: str) -> npt.NDArray[np.int64] | None:
            return None if values[name] is None else np.array(values[name], np.int64)

        return cls(
            image=np.array(values["image"], np.float64),
            pixel=np.array(values["pixel"], np.float64),
            image_group=numbers("image_group"),
            unit=np.array(values["unit"], np.float64),
            unit_group=numbers("unit_group"),
        )

    def of(self, noun: str) -> tuple[FloatArray, _Groups]:
        """Return scores and group numbers of "image" or "unit"."""
        return (self.unit, self.unit_group) if noun == "unit" else (self.image, self.image_group)

    @property
    def median(self) -> float:
        """Score of a typical normal image."""
        return float(np.median(self.image))


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The three limits of a model: of images, of units, and of pixels."""

    image: Threshold
    unit: Threshold
    pixel: Threshold

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"image": self.image.as_json(), "unit": self.unit.as_json(), "pixel": self.pixel.as_json()}

    def describe(self) -> list[str]:
        """Say every limit and what it promises."""
        lines = []
        for noun, limit in (("image", self.image), ("unit", self.unit), ("pixel", self.pixel)):
            lines.append(f"{noun} threshold {limit.value:.6g}: {limit.promise}")
            if limit.review:
                lines.append(f"review of {noun}s from {limit.review.value:.6g}: {limit.review.promise}")
        return lines

    @property
    def sha256(self) -> str:
        """Hash of values and origin."""
        return hashlib.sha256(json.dumps(self.as_json(), sort_keys=True).encode()).hexdigest()

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Thresholds:
        """Read what `as_json` wrote."""
        return cls(*(Threshold.from_json(values[name]) for name in ("image", "unit", "pixel")))


@dataclass(frozen=True, slots=True)
class Asked:
    """What a user asks of the limits: at most one rule, and perhaps a review band below it.

    Attributes
    ----------
    rate, sensitivity, cost, value
        One of the rules "false_alarm_rate", "sensitivity", "cost", "manual"; none of them is the default
        false-alarm rate.
    confidence : Share or None
        Turns "on average" into "at most", for rates and sensitivities alike.
    review_rate, review_sensitivity : Share or None
        Where the review band begins: the same two rules for a second, lower limit.

    What is no rate, sensitivity or confidence is refused here: before an image is scored.
    """

    rate: Share | None = None
    confidence: Share | None = None
    sensitivity: Share | None = None
    cost: Cost | None = None
    value: float | None = None
    review_rate: Share | None = None
    review_sensitivity: Share | None = None

    def __post_init__(self) -> None:
        rules = (self.rate, self.sensitivity, self.cost, self.value)
        if sum(rule is not None for rule in rules) > 1 or None not in (self.review_rate, self.review_sensitivity):
            raise UsageError("two rules for one threshold", "they contradict each other", "ask for one of them")
        for share in (self.rate, self.review_rate):
            if share is not None:
                parse_rate(share)
        for share in (self.sensitivity, self.review_sensitivity):
            if share is not None:
                parse_sensitivity(share)
        if self.confidence is not None:
            parse_confidence(self.confidence)
        if self.rate is not None and self.review_rate is not None:
            check_review_rate(self.review_rate, self.rate)

    @property
    def nothing(self) -> bool:
        """Whether no rule, no confidence and no review band is named."""
        return self == Asked()

    @property
    def review_only(self) -> bool:
        """Whether nothing but a review band is asked for."""
        return not self.nothing and replace(self, review_rate=None, review_sensitivity=None).nothing

    @property
    def needs_anomalies(self) -> bool:
        """Whether labelled anomalies are needed."""
        return any(asked is not None for asked in (self.sensitivity, self.cost, self.review_sensitivity))


def check_review_rate(review_rate: Share, rate: Share) -> None:
    """Refuse a review rate that is not larger than the false-alarm rate: its limit would not lie below the threshold.

    Raises
    ------
    UsageError
    """
    review, flagged = parse_rate(review_rate), parse_rate(rate)
    if review <= flagged:
        raise UsageError(
            f"a review rate of {percent_text(review)} beside a false-alarm rate of {percent_text(flagged)}",
            "more normal images have to reach the review limit than the threshold",
            "ask for a larger review rate",
        )


def thresholds_from(
    scores: CalibrationScores, rate: Share | None = None, confidence: Share | None = None
) -> Thresholds:
    """Set the three thresholds for a false-alarm rate; None takes 1 %, or what the normals can support.

    Raises
    ------
    CalibrationError
        An asked-for rate that cannot be promised.
    """
    return thresholds_by(Asked(rate, confidence), scores)


def thresholds_by(
    asked: Asked,
    scores: CalibrationScores,
    anomalies: CalibrationScores | None = None,
    chosen_on: str = "",
    given: Thresholds | None = None,
) -> Thresholds:
    """Set the three thresholds by any rule, images and units each with a review band where one is asked for.

    The pixel threshold follows the rule of the images. Rules without a false-alarm rate know images alone: there it
    is the image threshold where the score of an image is its largest pixel, so that regions and decisions agree, and
    else that of the default false-alarm rate.

    Parameters
    ----------
    anomalies : CalibrationScores or None
        Scores of images and units that are known to be anomalous; "sensitivity" and "cost" need them.
    chosen_on : str
        SHA-256 of the images that ``anomalies``, or whoever set a value by hand, come from.
    given : Thresholds or None
        What stays as it is where nothing but a review band is asked for; None takes the default false-alarm rate.

    Raises
    ------
    CalibrationError
        An asked-for rate or sensitivity that cannot be promised.
    DataError
        A rule that needs labelled anomalies, and there are none.
    UsageError
        A review limit that is not below the threshold.
    """
    if asked.needs_anomalies and anomalies is None:
        raise DataError(
            "no anomalous images", "this rule needs labelled ones", "label some, or ask for a false-alarm rate"
        )
    if given is None or not asked.review_only:
        image, unit = (_limit(asked, scores, anomalies, noun, chosen_on) for noun in ("image", "unit"))
        given = Thresholds(image=image, unit=unit, pixel=_pixel_limit(asked, image, scores))
    if asked.review_rate is None and asked.review_sensitivity is None:
        return given
    second = Asked(rate=asked.review_rate, sensitivity=asked.review_sensitivity, confidence=asked.confidence)
    image, unit = (_limit(second, scores, anomalies, noun, chosen_on) for noun in ("image", "unit"))
    return replace(given, image=replace(given.image, review=image), unit=replace(given.unit, review=unit))


def few_normals_advice(thresholds: Thresholds, scores: CalibrationScores, model: str) -> str:
    """Say what helps where too few normals keep the limit above all of them; "" where nothing is to be said.

    With m groups no rate below 1 / (m + 1) can be promised, and at that rate the limit is the highest normal seen.
    """
    limit, n_groups = thresholds.image, _n_groups(scores.image_group)
    m = len(scores.image) if n_groups is None else n_groups
    lowest = reachable_rate(len(scores.image), n_groups, limit.confidence)
    rate = Fraction(min(math.ceil(300 * lowest), 50), 100)
    if limit.rule != "false_alarm_rate" or limit.review or not DEFAULT_RATE < Fraction(limit.rate) <= lowest < rate:
        return ""
    return (
        f"few normals: {m} {'images' if n_groups is None else 'groups'} allow no rate below {percent_text(lowest)}, so "
        "the threshold lies above all of them and faint anomalies pass below it. A review band shows more to a "
        f"person, about {1000 * float(rate - lowest):.0f} of 1,000 normal images: "
        f"anomaly-ae calibrate {model} --review-false-alarm-rate {float(rate):g}"
    )


def _limit(
    asked: Asked, normal: CalibrationScores, anomalous: CalibrationScores | None, noun: str, chosen_on: str
) -> Threshold:
    """Return the limit of images or of units by the asked rule."""
    scores, groups = normal.of(noun)
    if asked.value is not None:
        return replace(manual_threshold(asked.value), chosen_on=chosen_on)
    if asked.sensitivity is not None and anomalous:
        values, among = anomalous.of(noun)
        found = sensitivity_threshold(values, asked.sensitivity, among, asked.confidence, noun)
        return replace(found, chosen_on=chosen_on)
    if asked.cost is not None and anomalous:
        values, among = anomalous.of(noun)
        return replace(cost_threshold(scores, values, asked.cost, groups, among, noun), chosen_on=chosen_on)
    rate = default_rate(len(scores), _n_groups(groups), asked.confidence) if asked.rate is None else asked.rate
    return conformal_threshold(scores, rate, groups, asked.confidence, noun)


def _pixel_limit(asked: Asked, image: Threshold, scores: CalibrationScores) -> Threshold:
    if image.rule != "false_alarm_rate" and np.array_equal(scores.pixel, scores.image):
        return replace(image, review=None)
    by_rate = Asked(rate=asked.rate, confidence=asked.confidence) if image.rule == "false_alarm_rate" else Asked()
    return _limit(by_rate, replace(scores, image=scores.pixel), None, "image", "")


def _n_groups(groups: _Groups) -> int | None:
    return None if groups is None else len(np.unique(groups))


def unit_scores(images: FloatArray, unit_of: npt.NDArray[np.integer], counted: BoolArray) -> npt.NDArray[np.float64]:
    """Return the score of every unit: the largest of its images that count; of a unit without such, of all its images.

    Of slices that lie close only some count, so that more slices are not more chances: docs/decisions/0014.

    Parameters
    ----------
    images : float array, (n,)
        Scores of the images.
    unit_of : int array, (n,)
        Numbers of their units, from 0.
    counted : bool array, (n,)
        See `manifest.counted_for_unit`.
    """
    some, every = (np.full(int(unit_of.max()) + 1, -np.inf) for _ in range(2))
    np.maximum.at(some, unit_of[counted], images[counted])
    np.maximum.at(every, unit_of, images)
    return np.where(np.isfinite(some), some, every)


def calibration_scores(
    image: Sequence[float],
    pixel: Sequence[float],
    units: Sequence[str],
    groups: Sequence[str],
    counted: Sequence[bool] | None = None,
) -> CalibrationScores:
    """Collect calibration scores; groups and units become numbers, so that no name enters the model file.

    `counted` says which images count for their unit, see `unit_scores`; None: all.
    """
    unit_of = np.unique(units, return_inverse=True)[1]
    group_of = np.unique(groups, return_inverse=True)[1].astype(np.int64)
    scores = np.asarray(image, np.float64)
    unit = unit_scores(scores, unit_of, np.ones(len(scores), bool) if counted is None else np.array(counted))
    unit_group = np.zeros(len(unit), np.int64)
    unit_group[unit_of] = group_of
    return CalibrationScores(
        image=scores,
        pixel=np.asarray(pixel, np.float64),
        image_group=_unless_all_differ(group_of),
        unit=unit,
        unit_group=_unless_all_differ(unit_group),
    )


def _unless_all_differ(groups: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | None:
    return None if len(np.unique(groups)) == len(groups) else groups
