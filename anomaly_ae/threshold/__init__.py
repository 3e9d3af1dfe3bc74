"""Thresholds with a stated promise: reachable rates (`rates`), the rule and the decision (`rule`)."""

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
    percent_text,
    rate_spread,
    reachable_rate,
    reachable_text,
)
from anomaly_ae.threshold.rule import (
    Threshold,
    conformal_threshold,
    decide,
    display_value,
    manual_threshold,
    p_values,
)

__all__ = [
    "DEFAULT_RATE",
    "Share",
    "Threshold",
    "check_reachable",
    "conformal_rank",
    "conformal_threshold",
    "decide",
    "default_rate",
    "display_value",
    "exceed_probability",
    "manual_threshold",
    "normals_needed",
    "p_values",
    "parse_confidence",
    "parse_rate",
    "percent_text",
    "rate_spread",
    "reachable_rate",
    "reachable_text",
]
