"""Thresholds with a stated promise: reachable rates, the rules, their record, and the decision.

==========  ====================================================================
`rates`     which false-alarm rates can be promised with how many images
`record`    a threshold with its origin
`rule`      false-alarm rate from calibration scores; p-values; the decision
`labelled`  rules that need labelled anomalies: sensitivity, cost, best F1
==========  ====================================================================
"""

from anomaly_ae.threshold.labelled import Cost, best_f1, cost_threshold, sensitivity_bound, sensitivity_threshold
from anomaly_ae.threshold.rates import (
    DEFAULT_RATE,
    Share,
    check_reachable,
    conformal_rank,
    default_rate,
    exceed_probability,
    normals_needed,
    parse_confidence,
    parse_rate,
    parse_sensitivity,
    percent_text,
    reachable_rate,
    reachable_text,
)
from anomaly_ae.threshold.record import RULES, Threshold, manual_threshold
from anomaly_ae.threshold.rule import (
    PValues,
    conformal_threshold,
    decide,
    decide_all,
    display_value,
    display_values,
    p_values,
)

__all__ = [
    "DEFAULT_RATE",
    "RULES",
    "Cost",
    "PValues",
    "Share",
    "Threshold",
    "best_f1",
    "check_reachable",
    "conformal_rank",
    "conformal_threshold",
    "cost_threshold",
    "decide",
    "decide_all",
    "default_rate",
    "display_value",
    "display_values",
    "exceed_probability",
    "manual_threshold",
    "normals_needed",
    "p_values",
    "parse_confidence",
    "parse_rate",
    "parse_sensitivity",
    "percent_text",
    "reachable_rate",
    "reachable_text",
    "sensitivity_bound",
    "sensitivity_threshold",
]
