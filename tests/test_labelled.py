"""Rules on labelled anomalies against their definitions, scipy and scikit-learn; thresholds with a review band."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from anomaly_ae.errors import CalibrationError, DataError, ModelFileError, UsageError
from anomaly_ae.records import Decision
from anomaly_ae.threshold import (
    Cost,
    Threshold,
    best_f1,
    conformal_threshold,
    cost_threshold,
    decide,
    manual_threshold,
    normals_needed,
    parse_sensitivity,
    sensitivity_bound,
    sensitivity_threshold,
)

RNG = np.random.default_rng(11)
COST = Cost.parse("escape=500,false-reject=5,prevalence=0.01")


def with_review(value: float, review: float) -> Threshold:
    limit = manual_threshold(value)
    return Threshold(**{**limit.as_json(), "review": manual_threshold(review)})


# --- sensitivity ------------------------------------------------------------


@pytest.mark.parametrize("sensitivity", [Fraction(1, 2), Fraction(2, 3), Fraction(3, 4)])
def test_leaving_each_anomaly_out_in_turn_keeps_the_sensitivity(sensitivity: Fraction) -> None:
    """Exhaustively, with ties: the meaning of "on average" for exchangeable scores."""
    for scores in product(range(3), repeat=5):
        missed = 0
        for i, score in enumerate(scores):
            others = [s for j, s in enumerate(scores) if j != i]
            missed += decide(score, sensitivity_threshold(others, sensitivity)) == Decision.NORMAL
        assert Fraction(missed, 5) <= 1 - sensitivity, scores


@pytest.mark.parametrize("sensitivity", [Fraction(1, 2), Fraction(2, 3)])
def test_leaving_each_group_out_in_turn_keeps_the_sensitivity(sensitivity: Fraction) -> None:
    """Groups of one and of two images: every group counts once, and its images by their share."""
    sizes = (1, 2, 2, 1)
    groups = np.repeat(np.arange(4), sizes)
    for scores in product(range(3), repeat=6):
        values, missed = np.array(scores), Fraction(0)
        for group, size in enumerate(sizes):
            others = groups != group
            limit = sensitivity_threshold(values[others], sensitivity, groups[others])
            missed += Fraction(int((values[~others] < limit.value).sum()), size)
        assert missed / 4 <= 1 - sensitivity, scores


def test_the_threshold_is_the_highest_that_keeps_the_sensitivity() -> None:
    for m, sensitivity in ((19, "0.95"), (40, "0.9"), (39, "3/4")):
        scores = np.sort(RNG.normal(size=m))
        q = math.floor((m + 1) * (1 - parse_sensitivity(sensitivity)))
        found = sensitivity_threshold(scores, sensitivity)
        assert found.rank == q
        assert np.count_nonzero(scores < found.value) == q - 1
        middle = (scores[q - 2] + scores[q - 1]) / 2 if q > 1 else scores[0]
        assert found.value == pytest.approx(middle)


@pytest.mark.parametrize(("m", "sensitivity"), [(59, "0.95"), (100, "0.9"), (300, "0.95"), (29, "0.9")])
def test_with_confidence_the_rank_is_the_largest_that_keeps_the_promise(m: int, sensitivity: str) -> None:
    found = sensitivity_threshold(RNG.normal(size=m), sensitivity, confidence="95%")
    miss = float(1 - parse_sensitivity(sensitivity))
    assert found.rank
    assert stats.beta(found.rank, m + 1 - found.rank).sf(miss) <= 0.05
    assert stats.beta(found.rank + 1, m - found.rank).sf(miss) > 0.05


@pytest.mark.parametrize(("m", "rank"), [(40, 2), (19, 1), (100, 11)])
def test_the_bound_is_that_of_clopper_and_pearson(m: int, rank: int) -> None:
    found = stats.binomtest(m - rank + 1, m, alternative="greater").proportion_ci(0.95, method="exact").low
    assert sensitivity_bound(m, rank) == pytest.approx(found)


def test_the_bound_holds_for_the_threshold_that_the_scores_chose() -> None:
    m, miss = 30, []
    for _ in range(2000):
        limit = sensitivity_threshold(RNG.normal(size=m), "0.9")
        miss.append(stats.norm.cdf(limit.value))
    bound = 1 - sensitivity_bound(m, 3)
    assert np.mean(np.array(miss) > bound) <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 2000)
    assert np.mean(miss) <= 0.1 + 4 * np.std(miss) / math.sqrt(2000)


def test_groups_count_once_and_with_confidence_by_their_lowest_score() -> None:
    scores, groups = RNG.normal(size=120), np.repeat(np.arange(60), 2)
    alone = sensitivity_threshold(scores, "0.95", np.arange(120))
    assert alone.value == sensitivity_threshold(scores, "0.95").value
    minima = scores.reshape(60, 2).min(axis=1)
    sure = sensitivity_threshold(scores, "0.95", groups, "95%")
    by_minima = sensitivity_threshold(minima, "0.95", confidence="95%")
    assert (sure.value, sure.rank, sure.n_groups) == (by_minima.value, by_minima.rank, 60)
    assert sensitivity_threshold(scores, "0.95", groups).rank is None


def test_too_few_anomalies_are_refused_with_what_is_needed() -> None:
    assert normals_needed(Fraction(1, 20)) == 19
    sensitivity_threshold(np.arange(19.0), "0.95")
    with pytest.raises(CalibrationError, match=r"95 % is out of reach with 18 anomalous images.*19.*94.7 % or less"):
        sensitivity_threshold(np.arange(18.0), "0.95")
    sensitivity_threshold(np.arange(18.0), "0.947")
    with pytest.raises(CalibrationError, match=r"2 groups of anomalous units: it needs at least 19"):
        sensitivity_threshold(np.arange(90.0), "0.95", np.arange(90) // 45, noun="unit")
    with pytest.raises(CalibrationError, match=r"with 95 % confidence with 58 anomalous images: it needs at least 59"):
        sensitivity_threshold(np.arange(58.0), "0.95", confidence="0.95")
    with pytest.raises(CalibrationError, match="0 anomalous"):
        sensitivity_threshold([], "0.95")


@pytest.mark.parametrize("value", ["0", "1", "1.5", "all", "-0.5", "nan", ""])
def test_what_is_no_sensitivity_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match="is not a sensitivity"):
        sensitivity_threshold([1.0, 2.0], value)


def test_the_promise_says_what_was_done() -> None:
    scores = np.arange(40.0)
    promise = sensitivity_threshold(scores, "95%").promise
    assert promise.startswith("Sensitivity 95 % on average over sets of labelled anomalies; with this one at least 88.")
    assert "taken as independent (40 anomalous images)" in promise
    assert "no false-alarm rate is promised" in promise
    groups = sensitivity_threshold(scores, "3/4", np.arange(40) // 4, "1/2", "unit").promise
    assert groups.startswith("Sensitivity at least 75 %, with 50 % confidence, for a new anomalous unit of a new group")
    assert "10 groups; set on the smallest score of each group" in groups
    assert "needs --confidence" in sensitivity_threshold(scores, "3/4", np.arange(40) // 4).promise


# --- cost and F1 ------------------------------------------------------------


@pytest.mark.parametrize("prevalence", ["0.001", "0.1", "0.5"])
def test_no_threshold_is_cheaper(prevalence: str) -> None:
    cost = Cost.parse(f"escape=50,false-reject=2,prevalence={prevalence}")
    share = float(cost.prevalence)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        normal, anomalous = rng.integers(0, 8, 15) / 2, rng.integers(3, 12, 9) / 2  # with ties

        def expected(t: float, normal: np.ndarray = normal, anomalous: np.ndarray = anomalous) -> float:
            flagged, missed = (1 + sum(normal >= t)) / 16, (1 + sum(anomalous < t)) / 10
            return share * 50 * missed + (1 - share) * 2 * flagged

        found = cost_threshold(normal, anomalous, cost).value
        grid = np.concatenate([np.arange(-1, 8, 0.25) + 0.1, [found]])
        assert expected(found) == pytest.approx(min(map(expected, grid)))


def test_rarer_anomalies_and_dearer_rejects_raise_the_threshold() -> None:
    normal, anomalous = RNG.normal(size=300), RNG.normal(2, 1, 200)
    limits = [
        cost_threshold(normal, anomalous, Cost.parse(text)).value
        for text in (
            "escape=100,false-reject=1,prevalence=0.1",
            "escape=100,false-reject=1,prevalence=0.01",
            "escape=100,false-reject=10,prevalence=0.01",
        )
    ]
    assert limits == sorted(limits)
    assert len(set(limits)) == 3


def test_the_promise_of_a_cost_sets_it_beside_doing_nothing() -> None:
    found = cost_threshold([1.0, 2.0], [3.0], COST)
    assert "all called normal: 5000; all anomalous: 4950" in found.promise
    assert "no rate is promised" in found.promise
    assert "Calling every image" not in found.promise
    assert (found.rule, found.n, found.n_anomalous) == ("cost", 2, 1)
    assert found.cost == "escape=500,false-reject=5,prevalence=1/100"
    assert Cost.parse(found.cost) == COST


def test_a_cost_no_less_than_that_of_calling_all_normal_is_said() -> None:
    rare = Cost.parse("escape=500,false-reject=5,prevalence=0.0001")
    few = cost_threshold(np.arange(10.0), [20.0, 21.0], rare).promise
    assert "images: 0 on these images (all called normal: 50; all anomalous: 5000)" in few
    assert "471.2 with one more of each kind decided wrongly" in few, "of 11 normal and 3 anomalous images"
    assert "too few images at this prevalence to tell that calling every image normal costs more" in few
    useless = cost_threshold(np.arange(10.0), [0.5, 1.5], rare).promise
    assert "Calling every image normal costs no more on these images" in useless
    many = cost_threshold(
        np.arange(2000.0), np.arange(3000.0, 3200.0), Cost.parse("escape=9,false-reject=1,prevalence=0.1")
    )
    assert "every image" not in many.promise


def test_a_cost_weighs_groups_once() -> None:
    normal = np.concatenate([np.zeros(50), [5.0, 5.0]])  # one calm group of 50 images, two groups of one
    groups = np.array([0] * 50 + [1, 2])
    cost = Cost.parse("escape=1,false-reject=2,prevalence=0.5")
    assert cost_threshold(normal, [4.0, 4.5], cost).value < 4  # one image in 26 lies above
    assert cost_threshold(normal, [4.0, 4.5], cost, groups).value > 4.5  # two groups of three do


@pytest.mark.parametrize("kinds", [([], [1.0]), ([1.0], [])])
def test_both_kinds_are_needed(kinds: tuple[list[float], list[float]]) -> None:
    with pytest.raises(DataError, match="weighs both kinds"):
        cost_threshold(*kinds, COST)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "escape=5",
        "escape=5,false-reject=0,prevalence=0.1",
        "escape=x,false-reject=1,prevalence=0.1",
        "escape=-5,false-reject=1,prevalence=0.1",
        "escape=5,false-reject=1,prevalence=1",
        "escape=5,false-reject=1,prevalence=0.1,more=1",
    ],
)
def test_what_is_no_cost_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Cost.parse(text)


def test_best_f1_against_scikit_learn() -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        normal, anomalous = rng.integers(0, 9, 20) / 1.0, rng.integers(5, 14, 12) / 1.0
        labels, scores = np.repeat([0, 1], [20, 12]), np.concatenate([normal, anomalous])
        value, f1 = best_f1(normal, anomalous)
        assert f1 == pytest.approx(f1_score(labels, scores >= value))
        assert f1 == pytest.approx(max(f1_score(labels, scores >= t) for t in np.arange(-0.5, 15)))


# --- review band and storage ------------------------------------------------------------


def test_decisions_with_a_review_band() -> None:
    limit = with_review(2.0, 1.0)
    values = {0.5: 0, math.nextafter(1.0, 0): 0, 1.0: 1, 1.5: 1, math.nextafter(2.0, 0): 1, 2.0: 2, math.inf: 2}
    assert {value: int(decide(value, limit)) for value in values} == values
    assert decide(math.nan, limit) == decide(-math.inf, limit) == Decision.NOT_INSPECTED


@pytest.mark.parametrize("review", [2.0, 3.0])
def test_a_review_limit_lies_below_the_threshold(review: float) -> None:
    with pytest.raises(UsageError, match="is not below the threshold"):
        with_review(2.0, review)


@pytest.mark.parametrize(
    "limit",
    [
        sensitivity_threshold(np.arange(40.0), "95%"),
        cost_threshold([1.0, 2.0], [3.0], COST),
        with_review(2.0, 1.0),
        Threshold(**{**sensitivity_threshold(np.arange(99.0), "9/10").as_json(), "chosen_on": "ab" * 32}),
    ],
)
def test_every_threshold_is_read_back(limit: Threshold) -> None:
    assert Threshold.from_json(json.loads(json.dumps(limit.as_json(), allow_nan=False))) == limit


def test_a_threshold_of_before_is_stored_as_before() -> None:
    """Its hash stands in old result files."""
    old = {"value", "rule", "rate", "confidence", "n", "n_groups", "rank", "promise"}
    assert set(conformal_threshold(np.arange(99.0), "1%").as_json()) == old
    assert set(manual_threshold(1.0).as_json()) == old


@pytest.mark.parametrize(
    "change",
    [{"review": 1.0}, {"review": {}}, {"rule": "sensitivity"}, {"chosen_on": 1}, {"n_anomalous": -1}, {"review": None}],
)
def test_damage_is_refused(change: dict[str, object]) -> None:
    stored = conformal_threshold(np.arange(99.0), "1%").as_json()
    with pytest.raises(ModelFileError):
        Threshold.from_json(stored | change)
