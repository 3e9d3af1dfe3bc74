"""PG, PB, and what rates mean at a given defect rate."""

from __future__ import annotations

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
    for metric in (found["fpr_at_95_sensitivity"], *found["pg"].values(), *found["pb"].values()):
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
    labels, scores = np.repeat([False, True], 40), np.concatenate([rng.normal(size=40), rng.normal(2, 1, 40)])
    found = sorting_figures(labels, scores, [str(i // 4) for i in range(80)])
    assert [interval.unit for interval in found["pb"]["0.05"].intervals] == ["group", "image"]


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
