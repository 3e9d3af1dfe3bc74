"""The figures of pixels: what ``metrics.json``, ``pixels.csv`` and ``pixel_counts.npz`` say of maps and masks."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from anomaly_ae.errors import DataError
from anomaly_ae.files import write_bytes
from anomaly_ae.metrics import (
    ImageOverlap,
    Overlaps,
    PixelMap,
    PixelTable,
    image_overlaps,
    mean_metric,
    pixel_metrics_and_table,
)
from anomaly_ae.metrics.checks import groups_if_any
from anomaly_ae.records import BoolArray, Metric, Sample
from anomaly_ae.regions import ALL_REGIONS, RegionRules, in_regions
from anomaly_ae.results.tables import FORMAT, write_csv

PIXEL_COLUMNS = (
    *("format", "id", "defect", "group", "mask_px", "pixel_threshold", "found_px", "false_px"),
    *("dice", "iou", "aupimo"),
)
COUNTS_NAME = "pixel_counts.npz"
ENOUGH_NORMAL_PX = 100_000
_POOLED = "no interval: neighbouring pixels are not independent"
_ORACLE = "oracle: the threshold is chosen on these masks"


@dataclass(frozen=True, slots=True, eq=False)
class PixelFigures:
    """What maps say against masks.

    Attributes
    ----------
    metrics : dict
        The part "pixel" of ``metrics.json``.
    rows : list of dict
        ``pixels.csv``: one for each anomalous image with a mask.
    ids : tuple of str
        Of the images that were measured, with and without a mask.
    table : PixelTable or None
        ``pixel_counts.npz``: their counts, in this order; None where there are no figures.
    """

    metrics: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    ids: tuple[str, ...] = ()
    table: PixelTable | None = None


def pixel_figures(
    maps: Callable[[], Iterable[PixelMap]],
    samples: Sequence[Sample],
    threshold: float | None,
    rules: RegionRules = ALL_REGIONS,
) -> PixelFigures:
    """Measure maps against masks.

    Parameters
    ----------
    maps : callable returning an iterable of PixelMap
        Called several times; one for each of the samples, in their order.
    threshold : float or None
        The calibrated pixel threshold; None leaves Dice and IoU at it out.
    rules : RegionRules
        Which regions count: Dice and IoU are those of the regions that are drawn.
    """
    figures, table = pixel_metrics_and_table(maps, groups=groups_if_any(sample.group for sample in samples))
    overlaps = image_overlaps(maps, _marks(threshold, rules))
    oracle = figures["oracle_dice"]
    if oracle.value is not None:
        reason = "; ".join(filter(None, (_ORACLE, oracle.reason)))
        oracle = Metric(oracle.value, oracle.n_normal, oracle.n_anomalous, oracle.intervals, reason)
    metrics = {
        **{name: figures[name].as_json() for name in ("roc_auc", "average_precision", "fpr_at_95_sensitivity")},
        "au_pro": {limit: metric.as_json() for limit, metric in figures["au_pro"].items()},
        "aupimo": _aupimo(overlaps, samples).as_json(),
        "oracle_dice": oracle.as_json(),
        "at_threshold": [] if threshold is None else [_at_threshold(overlaps, samples, threshold, oracle.n_normal)],
    }
    rows = [_row(one, samples[one.index], threshold) for one in overlaps.images]
    return PixelFigures(metrics, rows, tuple(sample.id for sample in samples), table)


def _marks(threshold: float | None, rules: RegionRules) -> Callable[[PixelMap], BoolArray] | None:
    if threshold is None:
        return None
    return lambda one: in_regions(one.anomaly_map, threshold, one.valid, one.spacing_mm, rules)


def no_pixel_figures(reason: str) -> PixelFigures:
    """Return what `pixel_figures` does, with one reason in the place of every value."""
    missing = Metric(None, 0, 0, reason=reason).as_json()
    names = ("roc_auc", "average_precision", "fpr_at_95_sensitivity", "aupimo", "oracle_dice")
    au_pro = dict.fromkeys(("0.3", "0.05"), missing)
    return PixelFigures({**dict.fromkeys(names, missing), "au_pro": au_pro, "at_threshold": []})


def write_pixels(folder: Path, found: PixelFigures) -> None:
    """Write ``pixels.csv``, and ``pixel_counts.npz`` where there are counts."""
    write_csv(folder / "pixels.csv", PIXEL_COLUMNS, found.rows)
    if found.table is None:
        return
    buffer, table = io.BytesIO(), found.table
    np.savez_compressed(
        buffer,
        id=np.array(found.ids),
        levels=table.levels,
        normal=table.normal,
        masked=table.masked,
        overlap=table.overlap,
    )
    write_bytes(folder / COUNTS_NAME, buffer.getvalue())


def read_pixel_counts(folder: Path) -> tuple[list[str], PixelTable] | None:
    """Return the ids and the counts of the images of a run; None where it keeps none.

    Raises
    ------
    DataError
        The file is damaged.
    """
    path = folder / COUNTS_NAME
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            ids, levels, *counts = (stored[name] for name in ("id", "levels", "normal", "masked", "overlap"))
    except Exception as error:  # zipfile, zlib and numpy each have their own
        raise DataError(f"cannot read {path}", str(error), "evaluate again") from error
    if any(part.shape != (len(ids), len(levels) + 1) for part in counts):
        raise DataError(f"cannot read {path}", "its tables do not fit together", "evaluate again")
    return ids.tolist(), PixelTable(levels, *counts)


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
    return groups_if_any(samples[one.index].group for one in overlaps.images)


def _row(one: ImageOverlap, sample: Sample, threshold: float | None) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "id": sample.id,
        "defect": sample.defect,
        "group": sample.group,
        "pixel_threshold": threshold,
        **{name: getattr(one, name) for name in ("mask_px", "found_px", "false_px", "dice", "iou", "aupimo")},
    }
