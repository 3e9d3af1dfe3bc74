"""Thresholds against the definitions: exhaustively on small sets, and by simulation with exact rates."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import accumulate, combinations_with_replacement, product
from pathlib import Path

import numpy as np
import pytest
from scipy.special import ndtr

from anomaly_ae.errors import CalibrationError, DataError, ModelFileError, UsageError
from anomaly_ae.records import Decision
from anomaly_ae.threshold import (
    PValues,
    Threshold,
    check_reachable,
    conformal_rank,
    conformal_threshold,
    decide,
    decide_all,
    default_rate,
    display_value,
    display_values,
    exceed_probability,
    manual_threshold,
    normals_needed,
    p_values,
    parse_confidence,
    parse_rate,
    percent_text,
    reachable_rate,
    reachable_text,
)

RATES = sorted({Fraction(p, q) for q in range(2, 7) for p in range(1, q)})
CONFIDENCES = [Fraction(1, 2), Fraction(2, 3), Fraction(19, 20)]
CANDIDATES = [v / 4 for v in range(-2, 12)]  # scores 0, 1, 2 and all gaps between them


# --- the definitions, once more and plainly ---


def brute_p(score: float, scores: tuple[float, ...], groups: tuple[int, ...]) -> Fraction:
    """(1 + sum over groups of the share of its scores >= score) / (G + 1)."""
    members = defaultdict(list)
    for s, g in zip(scores, groups, strict=True):
        members[g].append(s)
    shares = [Fraction(sum(s >= score for s in m), len(m)) for m in members.values()]
    return (1 + sum(shares)) / (len(members) + 1)


def brute_lower(scores: tuple[float, ...], groups: tuple[int, ...], rate: Fraction) -> float | None:
    """Smallest score q with sum over groups of share_g(score <= q) / (G + 1) >= 1 - rate."""
    n_groups = len(set(groups))
    for q in sorted(set(scores)):
        share = sum(
            Fraction(sum(s <= q for s, h in zip(scores, groups, strict=True) if h == g), groups.count(g))
            for g in set(groups)
        )
        if share / (n_groups + 1) >= 1 - rate:
            return q
    return None


def brute_midpoint(lower: float, scores: tuple[float, ...]) -> float:
    above = [s for s in scores if s > lower]
    return (lower + min(above)) / 2 if above else np.nextafter(lower, np.inf)


def brute_exceed(n: int, rate: Fraction) -> list[Fraction]:
    """P(Beta(n + 1 - k, k) > rate) = P(fewer than n + 1 - k of n uniform numbers are <= rate), for k = 1 .. n."""
    terms = (math.comb(n, j) * rate**j * (1 - rate) ** (n - j) for j in range(n))
    return list(accumulate(terms))[::-1]


def small_sets(max_n: int = 4) -> Iterator[tuple[float, ...]]:
    for n in range(1, max_n + 1):
        yield from combinations_with_replacement((0.0, 1.0, 2.0), n)


def small_grouped_sets() -> Iterator[tuple[tuple[float, ...], tuple[int, ...]]]:
    for groups in [(0, 0), (0, 1), (0, 0, 1), (0, 1, 1, 2), (0, 0, 0, 1), (0, 0, 1, 1)]:
        for scores in product((0.0, 1.0, 2.0), repeat=len(groups)):
            yield scores, groups


# --- exhaustive ---


def test_threshold_and_p_values_match_the_definition_without_groups() -> None:
    n_checked = 0
    for scores in small_sets():
        each_its_own = tuple(range(len(scores)))
        expected_p = [float(brute_p(c, scores, each_its_own)) for c in CANDIDATES]
        assert p_values(CANDIDATES, scores).tolist() == expected_p
        for rate in RATES:
            lower = brute_lower(scores, each_its_own, rate)
            if lower is None:
                with pytest.raises(CalibrationError):
                    conformal_threshold(scores, rate)
                continue
            threshold = conformal_threshold(scores, rate)
            assert threshold.value == brute_midpoint(lower, scores)
            assert threshold.rank is not None
            assert sorted(scores)[threshold.rank - 1] == lower
            n_checked += 1
    assert n_checked > 200


def test_threshold_and_p_values_match_the_definition_with_groups() -> None:
    for scores, groups in small_grouped_sets():
        expected_p = [float(brute_p(c, scores, groups)) for c in CANDIDATES]
        assert p_values(CANDIDATES, scores, groups).tolist() == expected_p
        for rate in RATES:
            lower = brute_lower(scores, groups, rate)
            if lower is None:
                assert len(set(groups)) < 1 / rate - 1
                with pytest.raises(CalibrationError):
                    conformal_threshold(scores, rate, groups)
            else:
                threshold = conformal_threshold(scores, rate, groups)
                assert threshold.value == brute_midpoint(lower, scores)
                assert threshold.rank is None


def test_anomalous_implies_a_small_p_value() -> None:
    for scores, groups in small_grouped_sets():
        for rate, chosen in product(RATES, (None, groups)):
            n_independent = len(scores) if chosen is None else len(set(groups))
            if n_independent < normals_needed(rate):
                continue
            threshold = conformal_threshold(scores, rate, chosen)
            p = p_values([*CANDIDATES, threshold.value], scores, chosen)
            anomalous = [decide(c, threshold) is Decision.ANOMALOUS for c in [*CANDIDATES, threshold.value]]
            assert anomalous[-1]
            assert (p[anomalous] <= float(rate)).all()


def test_anomalous_implies_a_small_p_value_with_confidence_from_two_thirds() -> None:
    for n, rate, confidence in product(range(1, 60), RATES, [Fraction(2, 3), Fraction(9, 10)]):
        if n >= normals_needed(rate, confidence):
            n_above = n - conformal_rank(n, rate, confidence)
            assert Fraction(1 + n_above, n + 1) <= rate


def test_leaving_each_score_out_in_turn_keeps_the_rate() -> None:
    """The promise itself, without chance: of n + 1 scores, at most rate * (n + 1) are anomalous."""
    for scores in small_sets(5):
        for rate in RATES:
            if len(scores) - 1 < normals_needed(rate):
                continue
            alarms = [s >= conformal_threshold(scores[:i] + scores[i + 1 :], rate).value for i, s in enumerate(scores)]
            assert Fraction(sum(alarms), len(scores)) <= rate


def test_leaving_each_group_out_in_turn_keeps_the_rate() -> None:
    for scores, groups in small_grouped_sets():
        n_groups = len(set(groups))
        for rate in RATES:
            if n_groups - 1 < normals_needed(rate):
                continue
            shares = []
            for left_out in set(groups):
                rest = [(s, g) for s, g in zip(scores, groups, strict=True) if g != left_out]
                threshold = conformal_threshold([s for s, _ in rest], rate, [g for _, g in rest])
                own = [s for s, g in zip(scores, groups, strict=True) if g == left_out]
                shares.append(Fraction(sum(s >= threshold.value for s in own), len(own)))
            assert sum(shares) / n_groups <= rate


def test_the_rank_with_confidence_is_the_smallest_that_keeps_the_promise() -> None:
    for n, rate in product((1, 2, 3, 10, 37, 60), RATES):
        exceed = brute_exceed(n, rate)
        for confidence in CONFIDENCES:
            if 1 - confidence in exceed:
                continue  # equal: decided in floats, either rank is right to 1e-15
            promised = [k for k in range(1, n + 1) if exceed[k - 1] < 1 - confidence]
            assert (n >= normals_needed(rate, confidence)) == bool(promised)
            if promised:
                assert conformal_rank(n, rate, confidence) == promised[0]


def test_one_image_per_group_is_the_rule_without_groups() -> None:
    scores = np.random.default_rng(0).integers(0, 30, 120) / 7
    for rate in ("1%", "1/30", "0.2"):
        alone = conformal_threshold(scores, rate)
        grouped = conformal_threshold(scores, rate, groups=[f"g{i}" for i in range(120)])
        assert alone.value == grouped.value
    assert np.array_equal(p_values(scores, scores), p_values(scores, scores, np.arange(120)))


def test_groups_with_confidence_use_the_group_maxima() -> None:
    rng = np.random.default_rng(1)
    groups = rng.integers(0, 80, 1000)
    scores = rng.normal(size=1000)
    maxima = [scores[groups == g].max() for g in np.unique(groups)]
    threshold = conformal_threshold(scores, "5%", groups, "95%")
    assert threshold.value == conformal_threshold(maxima, "5%", confidence="95%").value
    assert (threshold.n, threshold.n_groups) == (1000, len(maxima))


# --- numbers ---


def test_ranks_are_computed_exactly() -> None:
    assert (100) * 0.29 < 29  # the trap: floor of the float is 28, and the rank one too high
    assert conformal_rank(99, parse_rate(0.29), None) == 100 - 29
    for n in range(99, 3000):
        assert conformal_rank(n, parse_rate("1%"), None) == n + 1 - (n + 1) // 100


def test_numbers_of_normals() -> None:
    assert [normals_needed(r) for r in ("10%", "1%", "0.1%", "1/141", "0.3")] == [9, 99, 999, 140, 3]
    for rate, confidence in product(("20%", "10%", "3%", "1%", "0.5%", "0.1%"), ("0.6", "90%", "95%", "0.99")):
        n = normals_needed(rate, confidence)
        miss = 1 - parse_rate(rate)
        assert miss**n <= 1 - parse_confidence(confidence) < miss ** (n - 1)
    assert normals_needed("1%", "95%") == 299  # 0.99 ** 299 < 0.05 < 0.99 ** 298
    assert normals_needed("0.1%", "95%") == 2995


def test_the_reachable_rate_is_reachable_and_nearly_the_smallest() -> None:
    for m, confidence in product([*range(1, 40), 140, 299, 1000, 50_000], [None, "0.5", "0.95", "0.9999"]):
        rate = reachable_rate(m, None, confidence)
        assert normals_needed(rate, confidence) <= m
        assert normals_needed(rate * Fraction(98, 100), confidence) > m
        check_reachable(m, None, rate, confidence)
        check_reachable(10 * m, m, rate, confidence)


def test_default_rate() -> None:
    assert default_rate(99) == default_rate(5000) == Fraction(1, 100)
    assert default_rate(98) == Fraction(1, 99)
    assert default_rate(5000, n_groups=12) == Fraction(1, 13)
    assert default_rate(299, confidence="95%") == Fraction(1, 100) < default_rate(298, confidence="95%")
    with pytest.raises(CalibrationError, match="no normal images"):
        default_rate(0)


def test_chance_of_one_calibration_above_the_rate() -> None:
    assert exceed_probability(140, 140, "1%") == pytest.approx(0.99**140)
    assert round(exceed_probability(140, 140, "1%"), 2) == 0.24
    for n, rank, rate in [(20, 19, Fraction(1, 10)), (99, 99, Fraction(1, 100)), (50, 30, Fraction(1, 3))]:
        assert exceed_probability(n, rank, rate) == pytest.approx(float(brute_exceed(n, rate)[rank - 1]))


# --- midpoints ---


def test_the_threshold_is_half_way_to_the_next_distinct_score() -> None:
    scores = [*range(98), 200.0, 200.0, 210.0]  # n = 101, k = 101: the last
    assert conformal_threshold(scores, "1%").value == np.nextafter(210.0, np.inf)
    assert conformal_threshold(scores, "1/50").value == 205.0  # k = 100: the second 200
    assert conformal_threshold(scores, "1/34").value == 205.0  # k = 99: the first 200, same threshold


@pytest.mark.parametrize(
    ("lower", "above"),
    [
        (1.0, math.nextafter(1.0, 2.0)),
        (math.nextafter(1.0, 2.0), math.nextafter(math.nextafter(1.0, 2.0), 2.0)),
        (0.0, 5e-324),
        (5e-324, 1.5e-323),
        (-1e308, 1.7e308),
        (1e308, 1.7e308),
        (-5e-324, 0.0),
        (-3.0, math.nextafter(-3.0, 0.0)),
    ],
)
def test_the_midpoint_is_above_the_lower_and_not_above_the_upper_score(lower: float, above: float) -> None:
    threshold = conformal_threshold([lower, above], "2/3")  # k = 3 - 2 = 1
    assert threshold.rank == 1
    assert lower < threshold.value <= above
    exact = (Fraction(lower) + Fraction(above)) / 2
    assert abs(Fraction(threshold.value) - exact) <= Fraction(math.ulp(threshold.value))


def test_equal_scores_raise_no_alarm_among_themselves() -> None:
    threshold = conformal_threshold([0.0] * 200, "10%")
    assert threshold.value == 5e-324
    assert decide(0.0, threshold) is Decision.NORMAL


# --- the promise, simulated with exact rates ---

Draw = Callable[[np.random.Generator, int], np.ndarray]
ExactRate = Callable[[float], float]


def above_exponential(t: float) -> float:
    return math.exp(-max(t, 0.0))


def above_whole_number(t: float) -> float:
    return math.exp(-max(math.ceil(t), 0) / 5)


CONTINUOUS = (lambda rng, n: rng.exponential(size=n), above_exponential)
TIED = (lambda rng, n: np.floor(5 * rng.exponential(size=n)), above_whole_number)


def clustered(rng: np.random.Generator, n_groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores N(0, 1), 0.8 of the variance between groups; the large groups are the calm ones."""
    level = rng.normal(size=n_groups)
    sizes = np.where(level < 0, rng.integers(4, 12, n_groups), rng.integers(1, 4, n_groups))
    groups = np.repeat(np.arange(n_groups), sizes)
    return math.sqrt(0.8) * level[groups] + math.sqrt(0.2) * rng.normal(size=groups.size), groups


def standard_error(values: list[float]) -> float:
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


@pytest.mark.parametrize("n", [20, 99, 140])
@pytest.mark.parametrize(("draw", "exact_rate"), [CONTINUOUS, TIED], ids=["continuous", "tied"])
def test_mean_rate_over_calibrations(n: int, draw: Draw, exact_rate: ExactRate) -> None:
    rng = np.random.default_rng(n)
    rate = default_rate(n)
    rates = [exact_rate(conformal_threshold(draw(rng, n), rate).value) for _ in range(3000)]
    assert np.mean(rates) <= rate + 4 * standard_error(rates)
    if draw is CONTINUOUS[0]:  # and not needlessly low: here k = n, so the mean is 1 / (n + 1)
        assert np.mean(rates) >= Fraction(1, n + 1) - 4 * standard_error(rates)


@pytest.mark.parametrize("n_groups", [20, 99, 140])
def test_mean_rate_for_a_new_group(n_groups: int) -> None:
    rng = np.random.default_rng(n_groups)
    rate = default_rate(0, n_groups)
    rates, naive_rates = [], []
    for _ in range(600):
        scores, groups = clustered(rng, n_groups)
        rates.append(float(ndtr(-conformal_threshold(scores, rate, groups).value)))
        naive_rates.append(float(ndtr(-conformal_threshold(scores, rate).value)))
    assert np.mean(rates) <= rate + 4 * standard_error(rates)
    assert np.mean(naive_rates) > rate + 4 * standard_error(naive_rates)  # what groups are for


@pytest.mark.parametrize("n", [299, 700])
@pytest.mark.parametrize(("draw", "exact_rate"), [CONTINUOUS, TIED], ids=["continuous", "tied"])
def test_share_of_calibrations_above_the_rate_with_confidence(n: int, draw: Draw, exact_rate: ExactRate) -> None:
    rng = np.random.default_rng(n)
    above = [exact_rate(conformal_threshold(draw(rng, n), "1%", confidence="95%").value) > 0.01 for _ in range(1500)]
    assert np.mean(above) <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 1500)


def test_share_of_calibrations_above_the_rate_with_groups_and_confidence() -> None:
    rng = np.random.default_rng(5)
    above = []
    for _ in range(800):
        scores, groups = clustered(rng, 60)
        value = conformal_threshold(scores, "5%", groups, "95%").value
        above.append(float(ndtr(-value)) > 0.05)
    assert np.mean(above) <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 800)


# --- texts and refusals ---


def test_one_group_is_singular() -> None:
    assert "of a new group (1 group; " in conformal_threshold([1.0, 2.0], "1/2", [0, 0]).promise


def test_promises_say_what_was_done() -> None:
    scores, groups = np.arange(600.0), np.arange(600) // 2
    assert conformal_threshold(scores, "1%").promise == (
        "False-alarm rate 1 % on average over calibrations; images are taken as independent (600 images)."
    )
    assert conformal_threshold(scores, "1%", confidence="95%").promise == (
        "False-alarm rate at most 1 %, with 95 % confidence; images are taken as independent (600 images)."
    )
    grouped = conformal_threshold(scores, "1%", groups).promise
    assert "on average over calibrations, for a new image of a new group (300 groups" in grouped
    both = conformal_threshold(scores, "1%", groups, "95%").promise
    assert "at most 1 %, with 95 % confidence, for a new image of a new group (300 groups" in both
    assert "largest score of each group" in both
    units = conformal_threshold(scores, "1%", noun="unit").promise
    assert units.endswith("; units are taken as independent (600 units).")
    assert "for a new unit of a new group" in conformal_threshold(scores, "1%", groups, noun="unit").promise
    assert "no false-alarm rate" in manual_threshold(3).promise


def test_an_unreachable_rate_names_what_it_needs() -> None:
    with pytest.raises(CalibrationError, match=r"50 normal images.*at least 99 images.*1\.96 % \(1/51\)"):
        conformal_threshold(np.arange(50.0), "1%")
    with pytest.raises(CalibrationError, match=r"50 normal images in 10 groups.*99 groups.*9\.09 % \(1/11\)"):
        conformal_threshold(np.arange(50.0), "1%", np.arange(50) // 5)
    with pytest.raises(CalibrationError, match=r"with 95 % confidence.*at least 299 images.*or more"):
        conformal_threshold(np.arange(298.0), "1%", confidence="95%")
    with pytest.raises(CalibrationError, match="no normal images"):
        conformal_threshold([], "1%")


def test_the_line_before_training() -> None:
    assert reachable_text(420, 35) == (
        "reachable false-alarm rate: 2.78 % (1/36) with 420 normal images in 35 groups "
        "(1 % needs 99, 0.1 % needs 999 groups)"
    )
    assert "95 % confidence (1 % needs 299, 0.1 % needs 2995)" in reachable_text(400, confidence="95%")


@pytest.mark.parametrize("text", ["1%", "1 %", " 0.01 ", "1/100", ".01", "1e-2", "1E-02", "0.010", "01/100"])
def test_rates_are_read(text: str) -> None:
    assert parse_rate(text) == Fraction(1, 100)


@pytest.mark.parametrize("value", [0.01, np.float64(0.01), np.float32(0.01), Fraction(1, 100)])
def test_rates_as_numbers_are_read(value: float) -> None:
    assert parse_rate(value) == Fraction(1, 100)


@pytest.mark.parametrize(
    "value",
    [
        "0",
        "1",
        "100%",
        "-0.01",
        "0,01",
        "",
        "%",
        "1/0",
        "1/00",
        "nan",
        "inf",
        "1e-999999999",
        "1" * 99,
        "1/2/3",
    ],
)
def test_other_rates_are_refused(value: str) -> None:
    with pytest.raises(UsageError, match="false-alarm rate"):
        parse_rate(value)


@pytest.mark.parametrize("value", ["0.05", "5%", "1", "95", "0.99999", "high"])
def test_other_confidences_are_refused(value: str) -> None:
    with pytest.raises(UsageError, match="confidence"):
        parse_confidence(value)


def test_percent_texts() -> None:
    assert percent_text(Fraction(5, 1000)) == "0.5 %"
    assert percent_text(Fraction(9995, 10000)) == "99.95 %"
    assert percent_text(Fraction(1, 3)) == "33.3 % (1/3)"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_no_numbers_are_refused(bad: float) -> None:
    with pytest.raises(DataError, match="1 of 101"):
        conformal_threshold([*range(100), bad], "1%")
    with pytest.raises(DataError, match="1 of 2"):
        p_values([1.0], [1.0, bad])


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="one score per image"):
        conformal_threshold(np.zeros((10, 10)), "1%")
    with pytest.raises(DataError, match="3 calibration scores"):
        conformal_threshold([1, 2, 3], "0.5", groups=["a", "b"])


# --- decisions ---


def test_decisions() -> None:
    threshold = manual_threshold(2)
    below = math.nextafter(2.0, 0.0)
    expected = {2.0: Decision.ANOMALOUS, below: Decision.NORMAL, math.inf: Decision.ANOMALOUS}
    assert {score: decide(score, threshold) for score in expected} == expected
    assert decide_all(list(expected), threshold) == list(expected.values())
    assert decide(math.nan, threshold) is decide(-math.inf, threshold) is Decision.NOT_INSPECTED
    for limit in (math.nan, math.inf):
        with pytest.raises(UsageError, match="finite"):
            decide(1.0, limit)
        with pytest.raises(UsageError, match="finite"):
            manual_threshold(limit)


def test_a_table_of_p_values_answers_one_score_as_it_answers_many() -> None:
    scores = np.random.default_rng(0).integers(0, 30, 120) / 7
    for groups in (None, np.arange(120) // 5):
        table = PValues.beside(scores, groups)
        assert [float(table(value)) for value in CANDIDATES] == p_values(CANDIDATES, scores, groups).tolist()


def test_scores_that_are_no_measurement_have_no_p_value() -> None:
    p = p_values([[math.nan, -math.inf], [math.inf, 0.0]], [1.0, 2.0, 3.0])
    assert np.isnan(p[0]).all()
    assert p[1].tolist() == [0.25, 1.0]


def test_display_value_agrees_with_the_decision() -> None:
    rng = np.random.default_rng(2)
    for _ in range(300):
        median, threshold = sorted(rng.normal(size=2) * 10.0 ** rng.integers(-9, 9))
        assert display_value(median, threshold, median) == 0
        assert display_value(threshold, threshold, median) == 1
        for score in (math.nextafter(threshold, -math.inf), math.nextafter(threshold, math.inf)):
            assert (display_value(score, threshold, median) >= 1) == (score >= threshold)
    middle = display_value(0.0, threshold=1.5e308, median=-1.5e308)
    assert middle == 0.5


@pytest.mark.parametrize("median", [1.0, 5.0])
def test_a_map_reaches_1_exactly_where_its_value_reaches_the_threshold(median: float) -> None:
    values = np.array([3.7], np.float32)
    just_above = math.nextafter(float(values[0]), math.inf)  # the same number as float32
    assert (display_values(values, float(values[0]), median) >= 1).all()
    assert (display_values(values, just_above, median) < 1).all()
    assert display_values(values, just_above, median).dtype == np.float32


@pytest.mark.parametrize(("threshold", "median"), [(1.0, 1.0), (1.0, 2.0), (5e-324, 0.0)])
def test_display_value_without_a_scale(threshold: float, median: float) -> None:
    assert display_value(threshold, threshold, median) == 1
    assert display_value(math.nextafter(threshold, -1.0), threshold, median) == 0
    assert math.isnan(display_value(math.nan, threshold, median))


# --- storage ---


@pytest.mark.parametrize(
    "threshold",
    [
        manual_threshold(0.25),
        conformal_threshold(np.arange(299.0), "1%", confidence="95%"),
        conformal_threshold(np.arange(300.0) / 7, "1/50", np.arange(300) // 5),
        conformal_threshold([1.0, 2.0], "51.23456789012345678%"),
    ],
)
def test_a_stored_threshold_is_read_back(threshold: Threshold) -> None:
    stored = json.loads(json.dumps(threshold.as_json(), allow_nan=False))
    assert Threshold.from_json(stored) == threshold


@pytest.mark.parametrize(
    "change",
    [
        {"extra": 1},
        {"value": "3"},
        {"value": math.nan},
        {"value": True},
        {"n": 1.5},
        {"n": -1},
        {"n": True},
        {"rule": "max_f1"},
        {"rate": "1e-999999999"},
        {"rate": ""},
        {"confidence": "2"},
        {"promise": None},
    ],
)
def test_a_damaged_stored_threshold_is_refused(change: dict[str, object]) -> None:
    stored = conformal_threshold(np.arange(99.0), "1%").as_json()
    with pytest.raises(ModelFileError):
        Threshold.from_json(stored | change)


def test_a_stored_threshold_with_a_missing_key_is_refused() -> None:
    stored = conformal_threshold(np.arange(99.0), "1%").as_json()
    del stored["promise"]
    with pytest.raises(ModelFileError, match="promise"):
        Threshold.from_json(stored)


# --- the page for readers ---


def table_rows(first_cell: str) -> list[list[str]]:
    page = Path(__file__).parent.parent / "docs" / "explanation" / "thresholds.md"
    lines = page.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first_cell}"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_the_tables_of_the_explanation_are_true() -> None:
    needed = table_rows("False-alarm rate")
    assert len(needed) >= 5
    for rate, on_average, at_most in needed:
        share = rate.replace(" ", "")
        numbers = [int(re.sub(r"\D", "", cell)) for cell in (on_average, at_most)]
        assert numbers == [normals_needed(share), normals_needed(share, "95%")]
    for n_text, above in table_rows("Normal images"):
        n = int(re.sub(r"\D", "", n_text))
        chance = exceed_probability(n, conformal_rank(n, Fraction(1, 100), None), "1%")
        assert above == f"{100 * chance:.0f} %"
