"""The conformal test martingale: its p-values by brute force, its bets against scipy, its promise by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from anomaly_ae.martingale import JUMP, bets, log10_evidence, online_p_values

BETA = ((1, 1), (2, 1), (4, 1), (1, 2), (1, 4), (0.5, 0.5), (2, 2))


def evidence(reference: np.ndarray, values: np.ndarray, seed: int = 0) -> np.ndarray:
    return log10_evidence(online_p_values(reference.tolist(), values.tolist(), np.random.default_rng(seed)))


def test_p_values_by_counting() -> None:
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 6, 40).astype(float)  # with ties
    found = online_p_values(numbers[:15].tolist(), numbers[15:].tolist(), np.random.default_rng(1))
    draws = np.random.default_rng(1)
    for k, p in enumerate(found):
        seen, value = numbers[: 16 + k], numbers[15 + k]  # itself is one of them
        expected = (np.sum(seen > value) + draws.random() * np.sum(seen == value)) / len(seen)
        assert p == pytest.approx(expected)


@pytest.mark.parametrize("n_reference", [0, 1, 7])
def test_p_values_of_exchangeable_values_are_uniform_and_independent_however_few(n_reference: int) -> None:
    rng = np.random.default_rng(2)
    runs = [rng.permutation([1.0, 1.0, 2.0, 3.0, 3.0, 3.0, 4.0, 5.0, 8.0, 9.0, 9.0]) for _ in range(3000)]
    p = np.array([online_p_values(r[:n_reference].tolist(), r[n_reference:].tolist(), rng) for r in runs])
    assert stats.kstest(p[:, -1], "uniform").pvalue > 1e-3
    assert stats.kstest(p[:, 1], "uniform").pvalue > 1e-3
    assert abs(stats.spearmanr(p[:, -2], p[:, -1]).statistic) < 4 / np.sqrt(3000)


def test_bets_are_densities_of_beta_distributions() -> None:
    p = np.random.default_rng(3).uniform(size=50)
    expected = np.stack([stats.beta.pdf(p, a, b) for a, b in BETA], axis=1)
    assert bets(p) == pytest.approx(expected)
    assert np.isfinite(bets([0.0, 1.0])).all()


def test_evidence_against_the_sum_over_all_histories() -> None:
    """Two bets decide who holds the capital; without the jump it is the mean of the products of the bets."""
    p = np.random.default_rng(4).uniform(size=6)
    stake = bets(p)
    capital = np.full(7, 1 / 7)
    expected = []
    for line in stake:
        capital = np.array([sum(capital[j] * ((1 - JUMP) * (i == j) + JUMP / 7) for j in range(7)) for i in range(7)])
        capital *= line
        expected.append(np.log10(capital.sum()))
    assert log10_evidence(p) == pytest.approx(expected)


def test_one_bet_wins_or_loses_nothing_on_average() -> None:
    p = (np.arange(20000) + 0.5) / 20000
    assert bets(p).mean(axis=0) == pytest.approx(np.ones(7), abs=0.01)


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_alarms_while_nothing_changes_are_as_rare_as_promised_at_any_time(rate: float) -> None:
    rng = np.random.default_rng(5)
    n_runs = 400
    alarms = sum(np.any(evidence(x[:20], x[20:]) >= -np.log10(rate)) for x in rng.normal(size=(n_runs, 140)))
    assert alarms <= stats.binom.ppf(0.999, n_runs, rate)


@pytest.mark.parametrize(
    ("change", "n_at_most"),
    [
        (lambda x: x + 2, 40),
        (lambda x: x - 2, 40),
        (lambda x: 3 * x, 60),
        (lambda x: np.where(np.arange(len(x)) < 60, x, x + 2), 100),
        (lambda x: x + np.linspace(0, 4, len(x)), 100),
    ],
    ids=["higher", "lower", "wider", "from the middle on", "slowly"],
)
def test_changes_are_found_soon(change: object, n_at_most: int) -> None:
    rng = np.random.default_rng(6)
    for _ in range(10):
        found = evidence(rng.normal(size=60), change(rng.normal(size=120)))  # type: ignore[operator]
        assert np.flatnonzero(found >= 2)[0] < n_at_most
