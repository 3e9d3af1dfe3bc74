"""Calibration scores and the three limits: names become numbers, and every limit sees the right scores and groups."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import pytest

from anomaly_ae.calibration import (
    Asked,
    CalibrationScores,
    Thresholds,
    calibration_scores,
    few_normals_advice,
    thresholds_by,
    thresholds_from,
)
from anomaly_ae.errors import CalibrationError, DataError, UsageError
from anomaly_ae.threshold import Cost, conformal_threshold, cost_threshold, default_rate, sensitivity_threshold

IMAGE = [1.0, 5.0, 2.0, 4.0, 3.0]
PIXEL = [11.0, 15.0, 12.0, 14.0, 13.0]
UNITS = ["b", "a", "b", "c", "c"]
GROUPS = ["lot 2", "lot 1", "lot 2", "lot 2", "lot 2"]


def many(n_units: int = 60, per_unit: int = 2, units_per_group: int = 3) -> CalibrationScores:
    """Scores of ``n_units`` units of some images each, in lots of some units each."""
    rng = np.random.default_rng(8)
    n = n_units * per_unit
    units = [f"unit {i // per_unit}" for i in range(n)]
    groups = [f"lot {i // per_unit // units_per_group}" for i in range(n)]
    return calibration_scores(list(rng.normal(size=n)), list(rng.normal(size=n) + 5), units, groups)


# --- collecting ---


def test_scores_stay_in_order_as_float64() -> None:
    scores = calibration_scores(IMAGE, PIXEL, UNITS, GROUPS)
    assert scores.image.tolist() == IMAGE
    assert scores.pixel.tolist() == PIXEL
    assert {scores.image.dtype, scores.pixel.dtype, scores.unit.dtype} == {np.dtype(np.float64)}
    assert scores.median == 3.0


def test_unit_is_the_largest_of_its_images() -> None:
    rng = np.random.default_rng(2)
    names = [f"part {i}" for i in rng.integers(0, 7, 40)]
    values = list(rng.normal(size=40) - 10)
    expected = {name: max(v for v, n in zip(values, names, strict=True) if n == name) for name in names}
    scores = calibration_scores(values, values, names, names)
    assert sorted(scores.unit) == sorted(expected.values())


def test_group_of_a_unit_is_the_group_of_its_images() -> None:
    scores = calibration_scores(IMAGE, PIXEL, UNITS, GROUPS)
    assert scores.image_group is not None
    assert scores.unit_group is not None
    assert scores.image_group.dtype == scores.unit_group.dtype == np.int64
    by_image = dict(zip(IMAGE, scores.image_group.tolist(), strict=True))
    by_unit = dict(zip(scores.unit.tolist(), scores.unit_group.tolist(), strict=True))
    assert set(by_unit) == {2.0, 4.0, 5.0}  # b, c, a
    assert all(by_unit[score] == by_image[score] for score in by_unit)
    assert by_unit[2.0] == by_unit[4.0] != by_unit[5.0]


def test_equal_names_and_only_these_share_a_number() -> None:
    scores = calibration_scores(IMAGE, PIXEL, UNITS, GROUPS)
    numbers = scores.image_group
    assert numbers is not None
    for i, one in enumerate(GROUPS):
        for j, other in enumerate(GROUPS):
            assert (one == other) == (numbers[i] == numbers[j])


def test_no_groups_where_all_differ() -> None:
    alone = calibration_scores(IMAGE, PIXEL, list("abcde"), list("vwxyz"))
    assert alone.image_group is None
    assert alone.unit_group is None
    of_units = calibration_scores(IMAGE, PIXEL, UNITS, UNITS)  # the group is the unit: images share it, units do not
    assert of_units.image_group is not None
    assert of_units.unit_group is None


def test_no_name_is_kept() -> None:
    text = json.dumps(calibration_scores(IMAGE, PIXEL, ["Müller", *UNITS[1:]], GROUPS).as_json())
    assert "lot" not in text
    assert "ller" not in text


# --- limits ---


@pytest.mark.parametrize("confidence", [None, Fraction(1, 2)])
@pytest.mark.parametrize("units_per_group", [1, 3])
def test_limits_come_from_their_scores_and_groups(units_per_group: int, confidence: Fraction | None) -> None:
    scores = many(units_per_group=units_per_group)
    rate = Fraction(1, 5)
    limits = thresholds_from(scores, rate, confidence)
    assert (scores.unit_group is None) == (units_per_group == 1)
    expected = {
        "image": conformal_threshold(scores.image, rate, scores.image_group, confidence),
        "unit": conformal_threshold(scores.unit, rate, scores.unit_group, confidence, "unit"),
        "pixel": conformal_threshold(scores.pixel, rate, scores.image_group, confidence),
    }
    assert {name: getattr(limits, name).value for name in expected} == {n: t.value for n, t in expected.items()}
    assert {name: getattr(limits, name).promise for name in expected} == {n: t.promise for n, t in expected.items()}
    assert limits.pixel.value > limits.image.value
    # With a confidence only the largest score of a group counts: images and units agree.
    assert (limits.image.value == limits.unit.value) == (confidence is not None)


def test_limits_without_groups_by_hand() -> None:
    values = [float(v) for v in range(1, 10)]  # n = 9, rate 0.2: k = 10 - 2 = 8, midpoint of the 8th and 9th
    names = [str(v) for v in values]
    limits = thresholds_from(calibration_scores(values, [v + 100 for v in values], names, names), "0.2")
    assert (limits.image.value, limits.unit.value, limits.pixel.value) == (8.5, 8.5, 108.5)


def test_without_a_rate_every_limit_takes_what_its_normals_support() -> None:
    scores = many()
    limits = thresholds_from(scores)
    n_groups = len(np.unique(scores.image_group))
    assert Fraction(limits.image.rate) == default_rate(len(scores.image), n_groups)
    assert Fraction(limits.unit.rate) == default_rate(len(scores.unit), n_groups)
    alone = many(units_per_group=1, per_unit=1)
    assert alone.image_group is None
    rate = Fraction(thresholds_from(alone).pixel.rate)
    assert rate == default_rate(len(alone.pixel)) < default_rate(len(scores.image), n_groups)


def test_unreachable_rate_is_refused() -> None:
    with pytest.raises(CalibrationError):
        thresholds_from(many(), "0.0001")


# --- other rules and review bands ---

COST = Cost.parse("escape=500,false-reject=5,prevalence=0.01")


def peaked(shift: float = 0.0, n_units: int = 60) -> CalibrationScores:
    """Pooling by the largest pixel: scores of images and pixels are the same."""
    values = (np.random.default_rng(9).normal(size=2 * n_units) + shift).tolist()
    names = [f"unit {i // 2}" for i in range(2 * n_units)]
    return calibration_scores(values, values, names, names)


def test_every_rule_sees_its_scores_and_groups() -> None:
    normal, anomalous = peaked(), peaked(3.0)
    groups, unit_scores = (normal.image_group, anomalous.image_group), (normal.unit, anomalous.unit)
    limits = thresholds_by(Asked(sensitivity="0.9", confidence="0.9"), normal, anomalous, "ab")
    assert limits.image.value == sensitivity_threshold(anomalous.image, "0.9", groups[1], "0.9").value
    assert limits.unit.value == sensitivity_threshold(anomalous.unit, "0.9", confidence="0.9").value
    assert "unit" in limits.unit.promise
    costs = thresholds_by(Asked(cost=COST), normal, anomalous, "ab")
    assert costs.image.value == cost_threshold(normal.image, anomalous.image, COST, *groups).value
    assert costs.unit.value == cost_threshold(*unit_scores, COST).value
    by_hand = thresholds_by(Asked(value=1.5), normal, None, "ab")
    for found in (limits, costs, by_hand):
        assert found.image.chosen_on == found.unit.chosen_on == "ab"
        assert found.pixel.value == found.image.value, "regions and decisions agree"


def test_pixels_of_another_unit_keep_the_default_rate() -> None:
    found = thresholds_by(Asked(value=1.5), many())
    assert found.pixel == thresholds_from(many()).pixel


def test_a_review_band_leaves_the_threshold_alone() -> None:
    normal, anomalous = peaked(), peaked(3.0)
    plain, found = thresholds_from(normal, "5%"), thresholds_by(Asked(rate="5%", review_rate="20%"), normal)
    second = thresholds_from(normal, "20%")
    assert (found.image.value, found.unit.value, found.pixel) == (plain.image.value, plain.unit.value, plain.pixel)
    assert (found.image.review, found.unit.review) == (second.image, second.unit)
    assert found.sha256 != plain.sha256
    assert Thresholds.from_json(json.loads(json.dumps(found.as_json()))) == found
    by_labels = thresholds_by(Asked(value=5.0, review_sensitivity="0.9"), normal, anomalous, "ab").image.review
    assert by_labels
    assert (by_labels.rule, by_labels.chosen_on) == ("sensitivity", "ab")
    assert sum("review of" in line for line in found.describe()) == 2


def test_a_review_band_alone_keeps_what_is_given() -> None:
    normal = peaked()
    given = thresholds_by(Asked(value=3.0), normal, chosen_on="ab")
    found = thresholds_by(Asked(review_rate="20%"), normal, given=given)
    assert found.image.value == found.pixel.value == 3.0
    assert found.image.review == thresholds_from(normal, "20%").image
    again = thresholds_by(Asked(review_rate="30%"), normal, given=found)
    assert again.image.review == thresholds_from(normal, "30%").image
    assert thresholds_by(Asked(rate="10%"), normal, given=found) == thresholds_from(normal, "10%")
    assert thresholds_by(Asked(confidence="0.9"), normal, given=found) == thresholds_from(normal, None, "0.9")


def test_what_cannot_be_meant_is_refused() -> None:
    for asked in (
        {"rate": "1%", "value": 1.0},
        {"sensitivity": "0.9", "cost": COST},
        {"review_rate": "0.1", "review_sensitivity": "0.9"},
    ):
        with pytest.raises(UsageError, match="two rules"):
            Asked(**asked)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="a review rate of 10 % beside a false-alarm rate of 20 %"):
        Asked(rate="20%", review_rate="10%")
    with pytest.raises(UsageError, match="is not below the threshold"):
        thresholds_by(Asked(value=-99.0, review_rate="10%"), peaked())
    for wrong in ({"rate": "2"}, {"review_rate": "x"}, {"sensitivity": "1"}, {"confidence": "0.1"}):
        with pytest.raises(UsageError, match="is not a"):
            Asked(**wrong)
    for needy in (Asked(sensitivity="0.9"), Asked(cost=COST), Asked(review_sensitivity="0.9")):
        with pytest.raises(DataError, match="no anomalous images"):
            thresholds_by(needy, peaked())


def test_few_normals_are_told_of_a_review_band_that_works() -> None:
    for scores in (peaked(n_units=12), many(n_units=9, per_unit=1, units_per_group=1)):
        thresholds = thresholds_from(scores)
        assert thresholds.image.value > scores.image.max()
        advice = few_normals_advice(thresholds, scores, "m.safetensors")
        assert advice.startswith("few normals: ")
        rate = advice.rpartition(" --review-false-alarm-rate ")[2]
        banded = thresholds_by(Asked(review_rate=rate), scores)
        assert banded.image.review
        assert banded.image.review.value < scores.image.max()
        assert few_normals_advice(banded, scores, "m") == ""


def test_there_is_no_advice_where_the_rate_was_chosen_or_normals_are_many() -> None:
    enough, few = peaked(n_units=120), peaked(n_units=12)
    assert few_normals_advice(thresholds_from(enough), enough, "m") == ""
    assert few_normals_advice(thresholds_from(few, "30%"), few, "m") == ""
    assert few_normals_advice(thresholds_by(Asked(value=1.0), few), few, "m") == ""


# --- there and back ---


@pytest.mark.parametrize("units_per_group", [1, 3])
@pytest.mark.parametrize("per_unit", [1, 2])
def test_scores_there_and_back(units_per_group: int, per_unit: int) -> None:
    scores = many(per_unit=per_unit, units_per_group=units_per_group)
    again = CalibrationScores.from_json(json.loads(json.dumps(scores.as_json(), allow_nan=False)))
    for name in ("image", "pixel", "image_group", "unit", "unit_group"):
        before, after = getattr(scores, name), getattr(again, name)
        assert (before is None) == (after is None)
        if before is not None:
            assert before.dtype == after.dtype
            assert (before == after).all()


def test_limits_there_and_back() -> None:
    limits = thresholds_from(many(), "0.1")
    again = Thresholds.from_json(json.loads(json.dumps(limits.as_json(), allow_nan=False)))
    assert again == limits
    assert again.sha256 == limits.sha256


def test_the_hash_of_thresholds_of_before_is_unchanged() -> None:
    values = [float(v) for v in range(1, 10)]
    names = [str(v) for v in values]
    limits = thresholds_from(calibration_scores(values, [v + 100 for v in values], names, names), "0.2")
    assert limits.sha256 == "6a4ecd5a5f3f42fed9f022b65f3a5e656d5862ed4b7df31cd74aeeeb3cc53c20"


def test_hash_follows_every_limit_and_its_origin() -> None:
    scores = many()
    limits = thresholds_from(scores, "0.1")
    assert thresholds_from(scores, "0.1").sha256 == limits.sha256
    hashes = {limits.sha256, thresholds_from(scores, "0.2").sha256}
    for name in ("image", "unit", "pixel"):
        values = limits.as_json()
        values[name]["value"] = math.nextafter(values[name]["value"], math.inf)
        hashes.add(Thresholds.from_json(values).sha256)
    assert len(hashes) == 5
