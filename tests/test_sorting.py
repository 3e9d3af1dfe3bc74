"""PG, PB, and what rates mean at a given defect rate."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly_ae.errors import UsageError
from anomaly_ae.metrics import at_defect_rate, rates_at_threshold, sorting_figures
from anomaly_ae.records import Interval, Metric


def by_trying(normal: np.ndarray, anomalous: np.ndarray, share: float) -> tuple[float, float]:
    """PG and PB from every threshold that makes a difference."""
    thresholds = [*np.unique(np.concatenate([normal, anomalous])), np.inf]
    passed = max((normal < t).mean() for t in thresholds if (anomalous < t).mean() <= share)
    caught = max((anomalous >= t).mean() for t in thresholds if (normal >= t).mean() <= share)
    return passed, caught


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 120), st.integers(1, 120), st.sampled_from([0, 1, 8]))
def test_pg_and_pb_are_the_best_of_all_thresholds(seed: int, n_normal: int, n_anomalous: int, digits: int) -> None:
    rng = np.random.default_rng(seed)
    normal, anomalous = np.round(rng.normal(size=n_normal), digits), np.round(rng.normal(1.5, 1, n_anomalous), digits)
    labels = np.repeat([False, True], [n_normal, n_anomalous])
    found = sorting_figures(labels, np.concatenate([normal, anomalous]), n_bootstrap=100)
    for name in ("0.01", "0.05"):
        passed, caught = by_trying(normal, anomalous, float(name))
        assert (found["pg"][name].value, found["pb"][name].value) == (pytest.approx(passed), pytest.approx(caught))
    assert found["fpr_at_95_sensitivity"].value == pytest.approx(1 - found["pg"]["0.05"].value)
    setting = [("anomalous", n_anomalous, 5, found["fpr_at_95_sensitivity"])]
    setting += [("anomalous", n_anomalous, int(100 * float(k)), metric) for k, metric in found["pg"].items()]
    setting += [("normal", n_normal, int(100 * float(k)), metric) for k, metric in found["pb"].items()]
    for name, n, percent, metric in setting:
        if n * percent < 300:
            assert metric.intervals == ()
            needed = {1: 300, 5: 60}[percent]
            assert metric.reason.endswith(f"these images; no interval by images: it needs {needed} {name} ones")
        else:
            (interval,) = metric.intervals
            assert 0 <= interval.low <= metric.value <= interval.high <= 1
            assert interval.low < interval.high
            assert metric.reason == "the threshold is chosen on these images"


def test_the_interval_of_pg_holds_the_true_share() -> None:
    """Normals N(0, 1), anomalous N(2, 1): the threshold that misses 5 % lies at 2 - 1.645."""
    from scipy.stats import norm

    truth, rng, held = float(norm.cdf(2 - norm.ppf(0.95))), np.random.default_rng(3), 0
    for seed in range(60):
        scores = np.concatenate([rng.normal(size=150), rng.normal(2, 1, 100)])
        labels = np.repeat([False, True], [150, 100])
        (interval,) = sorting_figures(labels, scores, n_bootstrap=100, seed=seed)["pg"]["0.05"].intervals
        held += interval.low <= truth <= interval.high
    assert held >= 51, "about 95 % of 60; 51 or fewer in one of 10,000 series"


def test_groups_come_first() -> None:
    rng = np.random.default_rng(4)
    labels, scores = np.repeat([False, True], 120), np.concatenate([rng.normal(size=120), rng.normal(2, 1, 120)])
    found = sorting_figures(labels, scores, [str(i // 2) for i in range(240)])
    assert [interval.unit for interval in found["pb"]["0.05"].intervals] == ["group", "image"]
    of_four = sorting_figures(labels, scores, [str(i // 4) for i in range(240)])["pb"]["0.05"]
    assert of_four.intervals == (), "that by images would stand where that by groups is expected"
    assert "no interval by groups: it needs 60 normal ones" in of_four.reason


def test_a_bootstrap_of_few_gives_no_interval_since_it_would_not_hold_the_truth() -> None:
    """Normals N(0, 1), anomalous N(3, 1): the threshold that misses 1 % lies at 3 - 2.326, below the lowest of 50."""
    from scipy.stats import norm

    from anomaly_ae.metrics.curves import ScoreCounts
    from anomaly_ae.metrics.sorting import normals_passed

    truth, rng, held = float(norm.cdf(3 - norm.ppf(0.99))), np.random.default_rng(6), 0
    for _ in range(40):
        normal, anomalous = rng.normal(size=500), rng.normal(3, 1, 50)
        drawn = [
            normals_passed(ScoreCounts(*_counts(rng.choice(normal, 500), rng.choice(anomalous, 50))), Fraction(1, 100))
            for _ in range(100)
        ]
        held += np.quantile(drawn, 0.025) <= truth <= np.quantile(drawn, 0.975)
    assert held < 30, "the reason of the rule; nominal are 38 of 40"
    labels = np.repeat([False, True], [500, 50])
    assert sorting_figures(labels, np.concatenate([normal, anomalous]))["pg"]["0.01"].intervals == ()


def _counts(normal: np.ndarray, anomalous: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values = np.unique(np.concatenate([normal, anomalous]))
    return tuple(np.bincount(np.searchsorted(values, own), minlength=len(values)) for own in (normal, anomalous))


def test_one_class_has_a_reason() -> None:
    found = sorting_figures([False, False], [1.0, 2.0], unit="unit")
    assert (found["pg"]["0.01"].value, found["pg"]["0.01"].reason) == (
        None,
        "no anomalous units: both classes are needed",
    )


@pytest.mark.parametrize("defect_rate", [0.001, 0.2])
def test_a_stream_of_parts_has_these_rates(defect_rate: float) -> None:
    rng = np.random.default_rng(5)
    labels, scores = np.repeat([False, True], [400, 300]), np.concatenate([rng.normal(size=400), rng.normal(2, 1, 300)])
    rates = rates_at_threshold(labels, scores, 1.5)
    found = at_defect_rate(defect_rate, rates["false_alarm_rate"], rates["sensitivity"])
    n = 10_000_000  # count in a stream in which the found rates hold
    n_defective = n * defect_rate
    rejected_good = (n - n_defective) * (scores[:400] >= 1.5).mean()
    rejected_bad = n_defective * (scores[400:] >= 1.5).mean()
    rejected = rejected_good + rejected_bad
    assert found["rejected"].value == pytest.approx(rejected / n)
    assert found["positive_predictive_value"].value == pytest.approx(rejected_bad / rejected)
    assert found["escapes_per_million"].value == pytest.approx(1e6 * (n_defective - rejected_bad) / (n - rejected))
    for metric in found.values():
        (interval,) = metric.intervals
        assert interval.low < metric.value < interval.high


def test_corners_are_the_extremes() -> None:
    false_alarms = Metric(0.05, 100, 50, (Interval(0.02, 0.11, "", "image"),))
    sensitivity = Metric(0.9, 100, 50, (Interval(0.78, 0.97, "", "image"),))
    found = at_defect_rate(0.01, false_alarms, sensitivity)
    corners = [at_defect_rate(0.01, Metric(f, 100, 50), Metric(r, 100, 50)) for f in (0.02, 0.11) for r in (0.78, 0.97)]
    for name, metric in found.items():
        values = [corner[name].value for corner in corners]
        assert (metric.intervals[0].low, metric.intervals[0].high) == (min(values), max(values))


def test_nothing_flagged_has_no_predictive_value_and_a_missing_class_its_reason() -> None:
    found = at_defect_rate(0.01, Metric(0.0, 100, 50), Metric(0.0, 100, 50))
    assert (found["positive_predictive_value"].value, found["positive_predictive_value"].reason) == (
        None,
        "nothing is flagged",
    )
    assert found["escapes_per_million"].value == pytest.approx(1e4)
    missing = at_defect_rate(0.01, Metric(0.1, 9, 0), Metric(None, 9, 0, reason="no anomalous images"))
    assert missing["rejected"].reason == "no anomalous images"
    with pytest.raises(UsageError, match="between 0 and 1"):
        at_defect_rate(1.0, Metric(0.1, 9, 0), Metric(0.1, 9, 0))
