"""Figures of merit with their intervals, exact on raw scores.

Higher scores are more anomalous; ``score >= threshold`` is anomalous, everywhere; ties count one half in the
ROC-AUC. Each figure is a `records.Metric`: the value, what it was computed on, intervals, and a reason where
something is missing.

==============  =========================================================================================
`checks`        validated labels, scores and groups
`curves`        counts per distinct score; ROC and precision-recall curves and the areas under them
`intervals`     DeLong, Newcombe, Boyd, Clopper-Pearson, whole-group bootstrap, design effect
`ranking`       `roc_auc` and `average_precision` of images or units
`rates`         rates at a threshold, and the band in which a promised false-alarm rate is found
`sorting`       PG and PB, and the false-alarm rate at 95 % sensitivity
`prevalence`    what the rates at a threshold mean at a given share of defective parts
`paired`        differences of two detectors on the same images: DeLong, McNemar, bootstrap, Holm
`pixel_counts`  figures of counted pixels; counts per image, and intervals from them
`pixels`        ROC-AUC, average precision and AU-PRO over all pixels of a test set
`overlap`       AUPIMO, Dice and IoU per image
`agreement`     kappa of two raters, and of many
`gauge`         variance components of a gauge study
==============  =========================================================================================
"""

from anomaly_ae.metrics.curves import mann_whitney_separation, precision_recall_curve, roc_curve
from anomaly_ae.metrics.overlap import ImageOverlap, Overlaps, image_overlaps, mean_metric
from anomaly_ae.metrics.pixel_counts import PixelTable
from anomaly_ae.metrics.pixels import PixelMap, pixel_metrics, pixel_metrics_and_table
from anomaly_ae.metrics.prevalence import at_defect_rate
from anomaly_ae.metrics.ranking import average_precision, roc_auc
from anomaly_ae.metrics.rates import found_rate_band, rate, rates_at_threshold
from anomaly_ae.metrics.sorting import sorting_figures

__all__ = [
    "ImageOverlap",
    "Overlaps",
    "PixelMap",
    "PixelTable",
    "at_defect_rate",
    "average_precision",
    "found_rate_band",
    "image_overlaps",
    "mann_whitney_separation",
    "mean_metric",
    "pixel_metrics",
    "pixel_metrics_and_table",
    "precision_recall_curve",
    "rate",
    "rates_at_threshold",
    "roc_auc",
    "roc_curve",
    "sorting_figures",
]
