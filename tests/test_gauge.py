"""Variance components against the AIAG manual, and against components known from simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chi2, f_oneway

from anomaly_ae.errors import DataError
from anomaly_ae.metrics.gauge import gauge_study, variance_interval

# AIAG, Measurement Systems Analysis, 4th ed., chapter III B: 3 appraisers x 3 trials (rows), 10 parts (columns).
AIAG = np.array([
    [0.29, -0.56, 1.34, 0.47, -0.80, 0.02, 0.59, -0.31, 2.26, -1.36],
    [0.41, -0.68, 1.17, 0.50, -0.92, -0.11, 0.75, -0.20, 1.99, -1.25],
    [0.64, -0.58, 1.27, 0.64, -0.84, -0.21, 0.66, -0.17, 2.01, -1.31],
    [0.08, -0.47, 1.19, 0.01, -0.56, -0.20, 0.47, -0.63, 1.80, -1.68],
    [0.25, -1.22, 0.94, 1.03, -1.20, 0.22, 0.55, 0.08, 2.12, -1.62],
    [0.07, -0.68, 1.34, 0.20, -1.28, 0.06, 0.83, -0.34, 2.19, -1.50],
    [0.04, -1.38, 0.88, 0.14, -1.46, -0.29, 0.02, -0.46, 1.77, -1.49],
    [-0.11, -1.13, 1.09, 0.20, -1.07, -0.67, 0.01, -0.56, 1.45, -1.77],
    [-0.15, -0.96, 0.67, 0.11, -1.45, -0.49, 0.21, -0.49, 1.87, -2.16],
]).reshape(3, 3, 10).transpose(2, 0, 1)  # fmt: skip


def test_the_worked_example_of_the_aiag_manual() -> None:
    found = gauge_study(AIAG)
    assert found.pooled
    assert found.p_interaction == pytest.approx(0.974, abs=5e-4)  # F = 0.434
    printed = {"repeatability": 0.039973, "appraiser": 0.051455, "part": 1.086446, "gauge": 0.091428}
    for name, variance in printed.items():
        assert getattr(found, name) == pytest.approx(variance, abs=1e-6), name
    assert found.interaction == 0.0
    assert found.gauge**0.5 == pytest.approx(0.302373, abs=2e-6)
    assert (found.df_repeatability, found.n_distinct_categories) == (78, 4)


def test_components_of_a_large_simulated_study_come_back() -> None:
    rng = np.random.default_rng(0)
    n, a, r = 300, 40, 3
    parts, who, both = rng.normal(0, 2, (n, 1, 1)), rng.normal(0, 1, (1, a, 1)), rng.normal(0, 0.7, (n, a, 1))
    found = gauge_study(parts + who + both + rng.normal(0, 0.5, (n, a, r)))
    assert not found.pooled
    components = found.repeatability, found.interaction, found.appraiser, found.part
    assert components == pytest.approx((0.25, 0.49, 1.0, 4.0), rel=0.25)
    assert components[:2] == pytest.approx((0.25, 0.49), rel=0.03)
    assert found.total == pytest.approx(sum(components))


def test_one_appraiser_is_the_one_way_analysis() -> None:
    rng = np.random.default_rng(1)
    y = rng.normal(0, 1, (12, 1, 4)) + rng.normal(0, 2, (12, 1, 1))
    found = gauge_study(y)
    within = np.mean([part.var(ddof=1) for part in y[:, 0]])
    assert found.repeatability == pytest.approx(within)
    f = f_oneway(*y[:, 0]).statistic
    assert found.part == pytest.approx(within * (f - 1) / 4)
    assert (found.reproducibility, found.p_interaction, found.df_repeatability) == (0.0, None, 36)


def test_scores_that_never_vary_on_repeat_are_no_failure() -> None:
    same = np.repeat(np.arange(5.0)[:, None], 2, axis=1)[:, :, None].repeat(3, axis=2)
    found = gauge_study(same)
    assert (found.gauge, found.n_distinct_categories, found.p_interaction) == (0.0, None, None)
    assert found.part == pytest.approx(2.5)
    crossed = same + np.array([0.0, 1.0])[None, :, None] * (np.arange(5) % 2)[:, None, None]
    found = gauge_study(crossed)
    assert found.p_interaction == 0.0
    assert not found.pooled


@pytest.mark.parametrize("n_appraisers", [1, 3])
def test_rounding_is_no_variance(n_appraisers: int) -> None:
    rng = np.random.default_rng(0)
    parts, who = rng.normal(5, 2, (30, 1, 1)), rng.normal(0, 1, (1, n_appraisers, 1))
    same = np.repeat((parts + who) / 0.7, 7, axis=2)
    assert not (same == same.mean(axis=2, keepdims=True)).all(), "a mean of equal numbers is not always that number"
    found = gauge_study(same)
    assert (found.repeatability, found.interaction, found.p_interaction) == (0.0, 0.0, None)
    assert found.appraiser == pytest.approx(np.var(who / 0.7, ddof=1) if n_appraisers > 1 else 0.0)
    alike = gauge_study(same[:, :1].repeat(2, axis=1))
    assert (alike.gauge, alike.n_distinct_categories) == (0.0, None)
    noisy = gauge_study(same + rng.normal(0, 1e-6, same.shape))
    assert noisy.repeatability == pytest.approx(1e-12, rel=0.5), "what is small, but no rounding, counts"


@pytest.mark.parametrize("shape", [(1, 2, 2), (3, 2, 1), (3, 2)])
def test_too_small_studies_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="at least 2 parts"):
        gauge_study(np.zeros(shape))


def test_the_interval_of_a_variance_covers() -> None:
    low, high = variance_interval(2.0, 10, 0.9)
    assert 20 / low == pytest.approx(chi2(10).ppf(0.95))
    assert 20 / high == pytest.approx(chi2(10).ppf(0.05))
