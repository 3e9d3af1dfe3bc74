"""Figures of merit with their intervals, exact on raw scores.

Higher scores are more anomalous; ``score >= threshold`` is anomalous, everywhere; ties count one half in the
ROC-AUC. Each figure is a `records.Metric`: the value, what it was computed on, intervals, and a reason where
something is missing.

============  =========================================================================================
`checks`      validated labels, scores and groups
`curves`      counts per distinct score; ROC and precision-recall curves and the areas under them
`intervals`   DeLong, Newcombe, Boyd, Clopper-Pearson, whole-group bootstrap, design effect
`ranking`     `roc_auc` and `average_precision` of images or units
`rates`       rates at a threshold, and the band in which a promised false-alarm rate is found
`pixels`      ROC-AUC, average precision and AU-PRO over all pixels of a test set
============  =========================================================================================
"""

from anomaly_ae.metrics.curves import mann_whitney_separation, precision_recall_curve, roc_curve
from anomaly_ae.metrics.pixels import PixelMap, pixel_metrics
from anomaly_ae.metrics.ranking import average_precision, roc_auc
from anomaly_ae.metrics.rates import found_rate_band, rate, rates_at_threshold

__all__ = [
    "PixelMap",
    "average_precision",
    "found_rate_band",
    "mann_whitney_separation",
    "pixel_metrics",
    "precision_recall_curve",
    "rate",
    "rates_at_threshold",
    "roc_auc",
    "roc_curve",
]
