"""Paired differences against slow definitions, exact enumeration, and simulation."""

from __future__ import annotations

from itertools import chain, combinations, product
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, multinomial, norm

from anomaly_ae.metrics.checks import LabelledScores
from anomaly_ae.metrics.curves import area_under_roc
from anomaly_ae.metrics.intervals import delong_variance, group_bootstrap
from anomaly_ae.metrics.paired import (
    bootstrap_difference,
    delong_difference,
    expanded_percentiles,
    holm,
    mean_draws,
    paired_rates_difference,
    placements,
)

scores_of_two = st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.integers(0, 6)), min_size=6, max_size=40)


def pairs_matrix(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """1, 1/2 or 0 for every pair (anomalous, normal)."""
    difference = scores[labels][:, None] - scores[~labels][None]
    return (difference > 0) + 0.5 * (difference == 0)


def two_classes(rows: list[tuple[bool, int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    labels = np.array([row[0] for row in rows])
    if min(labels.sum(), (~labels).sum()) < 2:
        return None
    return labels, *(np.array([row[i] for row in rows], float) for i in (1, 2))


@settings(deadline=None)
@given(scores_of_two)
def test_delong_is_the_definition_by_pairs(rows: list[tuple[bool, int, int]]) -> None:
    data = two_classes(rows)
    if data is None:
        return
    labels, one, two = data
    psi = [pairs_matrix(labels, scores) for scores in (one, two)]
    s10 = np.cov([p.mean(axis=1) for p in psi]) / labels.sum()  # DeLong et al. 1988, their S10 and S01
    s01 = np.cov([p.mean(axis=0) for p in psi]) / (~labels).sum()
    covariance = s10 + s01
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    found = delong_difference(labels, placements(labels, one), placements(labels, two), 0.95, "image")
    value = psi[1].mean() - psi[0].mean()
    assert found.value == pytest.approx(value, abs=1e-12)
    if found.interval is None:
        assert variance == pytest.approx(0, abs=1e-12)
        return
    z = value / np.sqrt(variance)
    assert found.p == pytest.approx(2 * norm.sf(abs(z)), abs=1e-9)
    if found.interval.low > -1 and found.interval.high < 1:
        assert found.interval.high - found.interval.low == pytest.approx(2 * 1.959964 * np.sqrt(variance), rel=1e-5)


@given(scores_of_two)
def test_placements_give_area_and_variance_of_one_detector(rows: list[tuple[bool, int, int]]) -> None:
    data = two_classes(rows)
    if data is None:
        return
    labels, one, _ = data
    placed = placements(labels, one)
    area, variance = delong_variance(LabelledScores(labels, one))
    assert placed[labels].mean() == pytest.approx(area)
    assert placed[~labels].mean() == pytest.approx(area)
    parts = sum(placed[among].var(ddof=1) / among.sum() for among in (labels, ~labels))
    assert parts == pytest.approx(variance, abs=1e-12)


def test_delong_holds_its_level_in_simulated_sets() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(120) < 50
    p = []
    for _ in range(600):
        common = rng.normal(size=120) + labels  # two detectors as good as each other, alike in part
        one, two = common + rng.normal(size=120), common + rng.normal(size=120)
        p.append(delong_difference(labels, placements(labels, one), placements(labels, two), 0.95, "image").p)
    assert 0.03 < np.mean(np.array(p) <= 0.05) < 0.08


def test_delong_says_why_where_there_is_nothing_to_say() -> None:
    labels = np.array([True, True, False, False])
    placed = placements(labels, np.array([3.0, 4.0, 1.0, 2.0]))
    found = delong_difference(labels, placed, placed, 0.95, "image")
    assert (found.value, found.interval, found.p, found.reason) == (0.0, None, None, "no image is ordered otherwise")
    best = delong_difference(labels, np.full(4, 0.5), np.ones(4), 0.95, "image")
    assert (best.value, best.interval) == (0.5, None)
    assert best.reason.startswith("all images changed alike")
    few = np.array([True, False, False])
    assert delong_difference(few, np.ones(3), np.zeros(3), 0.95, "unit").reason == "only one unit of a class"


@settings(deadline=None)  # the first call imports scipy
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_is_the_exact_binomial_test(rows: list[tuple[bool, bool]]) -> None:
    one, two = (np.array(column) for column in zip(*rows, strict=True))
    gained, lost = int((two & ~one).sum()), int((one & ~two).sum())
    found = paired_rates_difference(one, two, 0.95, "image")
    assert found.value == pytest.approx((gained - lost) / len(rows))
    expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert found.p == pytest.approx(expected)
    assert found.interval is not None
    assert -1 <= found.interval.low <= found.value <= found.interval.high <= 1
    assert found.interval.high > found.interval.low  # never vanishes
    mirrored = paired_rates_difference(two, one, 0.95, "image").interval
    assert mirrored is not None
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.interval.high, -found.interval.low))


@pytest.mark.parametrize("cells", [(0.80, 0.10, 0.05, 0.05), (0.05, 0.02, 0.03, 0.90), (0.6, 0.05, 0.05, 0.3)])
def test_the_interval_of_paired_rates_covers_by_exact_enumeration(cells: tuple[float, float, float, float]) -> None:
    n, both, gained, lost = 25, *cells[:3]
    covered = 0.0
    for a, b, c in product(range(n + 1), repeat=3):
        d = n - a - b - c
        chance = 0.0 if d < 0 else float(multinomial.pmf([a, b, c, d], n, cells)) if (a + b + c) <= n else 0.0
        if chance < 1e-6:
            continue
        one = np.repeat([True, False, True, False], [a, b, c, d])
        two = np.repeat([True, True, False, False], [a, b, c, d])
        interval = paired_rates_difference(one, two, 0.95, "image").interval
        assert interval is not None
        covered += chance * (interval.low <= gained - lost <= interval.high)
    assert covered > 0.93
    assert both > 0


def test_wilson_limits_where_two_rates_do_not_vary_together() -> None:
    one, two = np.zeros(10, bool), np.ones(10, bool)
    interval = paired_rates_difference(one, two, 0.95, "image").interval
    wilson = binomtest(0, 10).proportion_ci(method="wilson").high
    assert interval is not None
    assert interval.low == pytest.approx(1 - np.hypot(wilson, wilson))


def test_mean_draws_are_means_of_whole_groups() -> None:
    values, groups = np.array([1.0, 3.0, 10.0]), np.array([7, 7, 2])
    draws = mean_draws(values, groups, 4000, seed=1)
    assert set(np.round(draws, 9)) == {2.0, 10.0, round(14 / 3, 9)}
    assert np.mean(draws == 2.0) == pytest.approx(0.25, abs=0.03)


def test_expanded_percentiles_cover_where_plain_ones_do_not() -> None:
    rng = np.random.default_rng(0)
    n, hits, plain = 6, 0, 0
    for i in range(400):
        values = rng.normal(size=n)
        draws = mean_draws(values, np.arange(n), 1000, seed=i)
        interval = expanded_percentiles(draws, n, 0.95, "group")
        assert interval is not None
        hits += interval.low <= 0 <= interval.high
        low, high = np.quantile(draws, [0.025, 0.975])
        plain += low <= 0 <= high
    assert plain / 400 < 0.88
    assert 0.91 < hits / 400 < 0.99


def test_many_groups_give_the_usual_percentiles() -> None:
    draws = np.random.default_rng(2).normal(size=100_000)
    interval = expanded_percentiles(draws, 10_000, 0.95, "group")
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=2e-3)


@settings(max_examples=60, deadline=None)
@given(st.floats(-3, 3), st.integers(5, 50))
def test_p_value_and_interval_of_the_bootstrap_say_the_same(shift: float, n_groups: int) -> None:
    draws = np.random.default_rng(3).normal(size=9999) + shift
    for confidence in (0.8, 0.9, 0.95):
        found = bootstrap_difference(shift, draws, len(draws), n_groups, confidence, "group", "")
        assert found.interval is not None
        assert found.p is not None
        leaves_out_zero = not found.interval.low <= 0 <= found.interval.high
        if abs(found.p - (1 - confidence)) > 0.01 * (1 - confidence) + 1e-3:
            assert leaves_out_zero == (found.p < 1 - confidence)


def test_bootstrap_without_variation_says_so() -> None:
    found = bootstrap_difference(0.0, np.zeros(100), 100, 5, 0.95, "group", "no group differs")
    assert found.reason == "no group differs"


def test_draws_that_mostly_lack_a_class_say_nothing() -> None:
    found = bootstrap_difference(0.1, np.linspace(0.05, 0.15, 999), 2000, 9, 0.95, "group", "")
    assert (found.interval, found.p) == (None, None)
    assert "lack a class" in found.reason


@pytest.mark.parametrize(("n_groups", "reason"), [(3, "at least 4 groups"), (4, "with 4 groups its ends are beyond")])
def test_few_groups_have_neither_interval_nor_p_value(n_groups: int, reason: str) -> None:
    found = bootstrap_difference(0.1, np.linspace(0.05, 0.15, 2000), 2000, n_groups, 0.95, "group", "")
    assert (found.interval, found.p) == (None, None)
    assert reason in found.reason


def test_one_seed_draws_the_same_sets_for_two_detectors() -> None:
    rng = np.random.default_rng(4)
    labels, groups = np.arange(30) % 3 == 0, np.arange(30) // 3
    scores = rng.normal(size=30)
    one, same_order = (
        group_bootstrap(LabelledScores(labels, s), groups, area_under_roc, 200, 5) for s in (scores, 2 * scores + 1)
    )
    np.testing.assert_array_equal(one, same_order)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_bonferroni_test(p_values: list[float]) -> None:
    m = len(p_values)
    subsets = list(chain.from_iterable(combinations(range(m), k) for k in range(1, m + 1)))
    assert len(subsets) == sum(comb(m, k) for k in range(1, m + 1))
    for i, adjusted in enumerate(holm(p_values)):
        expected = max(min(1.0, len(s) * min(p_values[j] for j in s)) for s in subsets if i in s)
        assert adjusted == pytest.approx(expected)


def test_holm_does_not_count_what_is_missing() -> None:
    assert holm([None, 0.2, None]) == [None, 0.2, None]
    assert holm([]) == []
