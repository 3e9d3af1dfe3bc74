"""What the rates at a threshold mean where one part in so many is defective."""

from __future__ import annotations

from anomaly_ae.errors import UsageError
from anomaly_ae.records import Interval, Metric

PER_MILLION = 1e6


def at_defect_rate(defect_rate: float, false_alarm_rate: Metric, sensitivity: Metric) -> dict[str, Metric]:
    """Return what happens to a stream of which this share is defective.

    Parameters
    ----------
    defect_rate : float
        Share of defective parts (prevalence), between 0 and 1.
    false_alarm_rate, sensitivity : Metric
        At one threshold. With a review band the escapes are those at its lower limit: what is for review has not
        passed.

    Returns
    -------
    dict of str to Metric
        "rejected": share of all parts that is flagged, f (1 - p) + r p; "positive_predictive_value": share of the
        flagged that is defective, r p / rejected; "escapes_per_million": defective parts among a million that pass,
        10^6 (1 - r) p / (1 - rejected). The interval takes the first interval of either rate at both ends: at least
        90 % where each has 95 %.

    Raises
    ------
    UsageError
        A defect rate that does not lie between 0 and 1.

    Examples
    --------
    >>> rates = at_defect_rate(0.01, Metric(0.05, 100, 50), Metric(0.9, 100, 50))
    >>> [round(metric.value, 4) for metric in rates.values()]
    [0.0585, 0.1538, 1062.1349]
    """
    if not 0.0 < defect_rate < 1.0:
        raise UsageError(f"a defect rate of {defect_rate:g}", "it lies between 0 and 1", "e.g. 0.001 for one in 1,000")
    # How each figure moves when the false-alarm rate, then the sensitivity, grows.
    moves = {"rejected": (1, 1), "positive_predictive_value": (-1, 1), "escapes_per_million": (1, -1)}
    return {name: _metric(name, defect_rate, false_alarm_rate, sensitivity, way) for name, way in moves.items()}


def _metric(name: str, defect_rate: float, false_alarms: Metric, found: Metric, way: tuple[int, int]) -> Metric:
    counts = (false_alarms.n_normal, found.n_anomalous)
    if false_alarms.value is None or found.value is None:
        return Metric(None, *counts, reason=false_alarms.reason or found.reason)
    value = _value(name, defect_rate, false_alarms.value, found.value)
    if value is None:
        return Metric(None, *counts, reason="nothing is flagged" if way[0] < 0 else "everything is flagged")
    if not false_alarms.intervals or not found.intervals:
        return Metric(value, *counts, reason="no interval of both rates")
    first = (false_alarms.intervals[0], found.intervals[0])
    ends = [(i.low, i.high) if sign > 0 else (i.high, i.low) for sign, i in zip(way, first, strict=True)]
    low, high = (_value(name, defect_rate, ends[0][end], ends[1][end]) for end in (0, 1))
    if low is None or high is None:
        return Metric(value, *counts, reason="no interval: one end of the rates flags nothing, or everything")
    method = "both rates at the ends of their intervals"
    return Metric(value, *counts, (Interval(low, high, method, false_alarms.intervals[0].unit),))


def _value(name: str, defect_rate: float, false_alarm_rate: float, sensitivity: float) -> float | None:
    caught = sensitivity * defect_rate
    rejected = false_alarm_rate * (1 - defect_rate) + caught
    match name:
        case "rejected":
            return rejected
        case "positive_predictive_value":
            return caught / rejected if rejected > 0 else None
        case _:
            passed = 1 - rejected
            return PER_MILLION * (defect_rate - caught) / passed if passed > 0 else None
