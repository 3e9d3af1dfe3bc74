"""The figures of pixels: what ``metrics.json`` and ``pixels.csv`` say of maps and masks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from anomaly_ae.metrics import ImageOverlap, Overlaps, PixelMap, image_overlaps, mean_metric, pixel_metrics
from anomaly_ae.records import BoolArray, Metric, Sample
from anomaly_ae.regions import ALL_REGIONS, RegionRules, in_regions
from anomaly_ae.results.tables import FORMAT, Row, write_csv

PIXEL_COLUMNS = (
    *("format", "id", "defect", "group", "mask_px", "pixel_threshold", "found_px", "false_px"),
    *("dice", "iou", "aupimo"),
)
ENOUGH_NORMAL_PX = 100_000
_POOLED = "no interval: neighbouring pixels are not independent"
_ORACLE = "oracle: the threshold is chosen on these masks"


def pixel_figures(
    maps: Callable[[], Iterable[PixelMap]],
    samples: Sequence[Sample],
    threshold: float | None,
    rules: RegionRules = ALL_REGIONS,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measure maps against masks.

    Parameters
    ----------
    maps : callable returning an iterable of PixelMap
        Called several times; one for each of the samples, in their order.
    threshold : float or None
        The calibrated pixel threshold; None leaves Dice and IoU at it out.
    rules : RegionRules
        Which regions count: Dice and IoU are those of the regions that are drawn.

    Returns
    -------
    metrics : dict
        The part "pixel" of ``metrics.json``.
    rows : list of dict
        ``pixels.csv``: one for each anomalous image with a mask.
    """
    figures, overlaps = pixel_metrics(maps), image_overlaps(maps, _marks(threshold, rules))
    metrics = {name: figures[name].as_json() for name in ("roc_auc", "average_precision", "fpr_at_95_sensitivity")}
    oracle = figures["oracle_dice"]
    if oracle.value is not None:
        oracle = Metric(oracle.value, oracle.n_normal, oracle.n_anomalous, reason=_ORACLE)
    metrics |= {
        "au_pro": {limit: metric.as_json() for limit, metric in figures["au_pro"].items()},
        "aupimo": _aupimo(overlaps, samples).as_json(),
        "oracle_dice": oracle.as_json(),
        "at_threshold": [] if threshold is None else [_at_threshold(overlaps, samples, threshold, oracle.n_normal)],
    }
    return metrics, [_row(one, samples[one.index], threshold) for one in overlaps.images]


def _marks(threshold: float | None, rules: RegionRules) -> Callable[[PixelMap], BoolArray] | None:
    if threshold is None:
        return None
    return lambda one: in_regions(one.anomaly_map, threshold, one.valid, one.spacing_mm, rules)


def no_pixel_figures(reason: str) -> dict[str, Any]:
    """Return what `pixel_figures` returns as metrics, with one reason in the place of every value."""
    missing = Metric(None, 0, 0, reason=reason).as_json()
    names = ("roc_auc", "average_precision", "fpr_at_95_sensitivity", "aupimo", "oracle_dice")
    return {**dict.fromkeys(names, missing), "au_pro": dict.fromkeys(("0.3", "0.05"), missing), "at_threshold": []}


def write_pixels(folder: Path, rows: Iterable[Row]) -> None:
    """Write ``pixels.csv``."""
    write_csv(folder / "pixels.csv", PIXEL_COLUMNS, rows)


def _aupimo(overlaps: Overlaps, samples: Sequence[Sample]) -> Metric:
    values = [one.aupimo for one in overlaps.images if one.aupimo is not None]
    if len(values) < len(overlaps.images):
        return Metric(None, 0, len(overlaps.images), reason="no normal images with a map")
    few = f"{overlaps.n_normal_px:,} normal pixels are few: at a rate of 1e-5 the highest of them decides"
    reason = few if values and overlaps.n_normal_px < ENOUGH_NORMAL_PX else ""
    return mean_metric(values, overlaps.n_normal_images, _groups(overlaps, samples), reason)


def _at_threshold(overlaps: Overlaps, samples: Sequence[Sample], threshold: float, n_normal_px: int) -> dict[str, Any]:
    pooled = overlaps.pooled()
    n_masked, n_normal = sum(one.mask_px for one in overlaps.images), overlaps.n_normal_images
    dice, iou = (
        Metric(value, n_normal_px, n_masked, reason="no masked pixels" if pooled is None else _POOLED)
        for value in (pooled or (None, None))
    )
    groups = _groups(overlaps, samples)
    dices, ious = ([float(getattr(one, name)) for one in overlaps.images] for name in ("dice", "iou"))
    return {
        "threshold": threshold,
        "dice": dice.as_json(),
        "iou": iou.as_json(),
        "dice_per_image": mean_metric(dices, n_normal, groups).as_json(),
        "iou_per_image": mean_metric(ious, n_normal, groups).as_json(),
    }


def _groups(overlaps: Overlaps, samples: Sequence[Sample]) -> list[str] | None:
    groups = [samples[one.index].group for one in overlaps.images]
    return groups if len(set(groups)) < len(groups) else None


def _row(one: ImageOverlap, sample: Sample, threshold: float | None) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "id": sample.id,
        "defect": sample.defect,
        "group": sample.group,
        "pixel_threshold": threshold,
        **{name: getattr(one, name) for name in ("mask_px", "found_px", "false_px", "dice", "iou", "aupimo")},
    }
