"""Pixel figures over a whole test set, exact, in memory that grows with the masked pixels only.

All figures change only at scores that some masked pixel has. So one pass over the maps collects the
scores under the masks, and a second pass counts, image by image, how many of the other pixels lie below, at
and between those scores. No binning, no sampling, and never more than one map at a time. The peak is about
130 bytes per masked pixel; 1,000 maps of 512 x 512 take about 30 s on one core. Both passes also fill a small table of
counts per image (`pixel_counts`), of which the intervals are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from anomaly_ae.errors import DataError, UsageError
from anomaly_ae.metrics.checks import FloatVector, IntVector
from anomaly_ae.metrics.pixel_counts import (
    PRO_LIMITS,
    PixelCounts,
    PixelTable,
    figure_intervals,
    figure_values,
    levels_of,
)
from anomaly_ae.records import BoolArray, Metric

MapSource = Callable[[], Iterable["PixelMap"]]

_MAX_AT_ONCE = 2**24
_NO_INTERVAL = "no interval: the masks of too few {unit}s, or all alike"


@dataclass(frozen=True, slots=True, eq=False)
class PixelMap:
    """One image of the test set.

    Attributes
    ----------
    anomaly_map : float32 array, (H, W) or (D, H, W)
        On the image's own grid.
    mask : bool array of the same shape, or None
        True where the image is anomalous; None for a normal image. An anomalous image of which no mask is
        known must be left out by the caller: its anomalous pixels would be counted as normal ones.
    valid : bool array of the same shape, or None
        False where pixels do not count; None = all count.
    spacing_mm : tuple of float, or None
        Distance of neighbouring pixels per axis.
    """

    anomaly_map: npt.NDArray[np.float32]
    mask: BoolArray | None = None
    valid: BoolArray | None = None
    spacing_mm: tuple[float, ...] | None = None


class _MaskedPixels(NamedTuple):
    """What the first pass collects.

    `distinct` (D,) are the scores under the masks, ascending; `n_pixels` (D,) how many masked pixels have
    each, and `weight` (D,) what those pixels weigh when each region weighs 1 in all. `table` has its masked part.
    """

    distinct: npt.NDArray[np.float32]
    n_pixels: IntVector
    weight: FloatVector
    n_valid_px: int
    table: PixelTable


@dataclass(slots=True)
class _Found:
    """Masked pixels while they are collected: of every image their scores and weights."""

    scores: list[npt.NDArray[np.float32]] = field(default_factory=list)
    weights: list[FloatVector] = field(default_factory=list)
    n_valid_px: int = 0


def pixel_metrics(
    maps: MapSource,
    pro_limits: Sequence[float] = PRO_LIMITS,
    groups: Sequence[Hashable] | None = None,
    n_bootstrap: int = 1000,
) -> dict[str, Any]:
    """ROC-AUC, average precision, AU-PRO, FPR at 95 % sensitivity and oracle Dice over all valid pixels of a test set.

    Parameters
    ----------
    maps : callable returning an iterable of PixelMap
        Called twice; both times the same maps have to come.
    pro_limits : sequence of float
        False-positive rates in (0, 1] up to which the PRO curve is integrated.
    groups : sequence of hashable, one for every map, or None
        What belongs together and is drawn as a whole for the intervals; None = every image by itself.
    n_bootstrap : int
        Draws of the bootstrap, from seed 0; 0 = no intervals.

    Returns
    -------
    dict
        ``{"roc_auc": Metric, "average_precision": Metric, "au_pro": {"0.3": Metric, "0.05": Metric},
        "fpr_at_95_sensitivity": Metric, "oracle_dice": Metric}``. The counts are pixels. The per-region overlap (PRO;
        Bergmann et al. 2021, Int. J. Comput. Vis. 129:1038) at a threshold is the mean over all regions of the set of
        the share of the region at or above it. A region is what hangs together in a mask (8 neighbours, 26 in
        volumes); where part of it is not valid, the rest counts as the region. The area up to the limit is divided by
        the limit: 1 is perfect. The last two take the threshold that is best on these very masks. A value is None,
        with a reason, where masked or other pixels are missing. Values are exact; intervals are from a bootstrap of
        whole images (groups), computed from counts at some hundred levels (`pixel_counts`).

    Raises
    ------
    DataError
        A map that is not float32 or not finite in a valid pixel, shapes that differ, maps that changed
        between passes.
    UsageError
        A limit out of range.
    """
    return pixel_metrics_and_table(maps, pro_limits, groups, n_bootstrap)[0]


def pixel_metrics_and_table(
    maps: MapSource,
    pro_limits: Sequence[float] = PRO_LIMITS,
    groups: Sequence[Hashable] | None = None,
    n_bootstrap: int = 1000,
) -> tuple[dict[str, Any], PixelTable | None]:
    """Return what `pixel_metrics` does, and the counts per image that intervals are drawn from; None without values."""
    if not all(0.0 < limit <= 1.0 for limit in pro_limits):
        raise UsageError(f"PRO limits {list(pro_limits)}", "false-positive rates lie above 0 and up to 1")
    masked = _collect_masked(maps())
    n_anomalous_px = int(masked.n_pixels.sum())
    n_normal_px = masked.n_valid_px - n_anomalous_px
    if not n_anomalous_px or not n_normal_px:
        reason = "no masked pixels" if not n_anomalous_px else "no valid pixels outside the masks"
        missing = Metric(None, n_normal_px, n_anomalous_px, reason=reason)
        return _figures(lambda _: missing, pro_limits), None
    normal = _count_normal(maps(), masked)  # (2D + 1,)
    if int(normal.sum()) != n_normal_px:
        raise DataError(
            f"{n_normal_px} normal pixels in the first pass over the maps, {int(normal.sum())} in the second",
            "both passes need the same maps",
            "pass a function that starts anew at each call, not an iterator",
        )
    counts = PixelCounts(normal, _between_gaps(masked.n_pixels), _between_gaps(masked.weight))
    values = figure_values(counts, pro_limits)
    unit = "image" if groups is None else "group"
    of = range(len(masked.table.normal)) if groups is None else groups
    drawn = (values, masked.table, of, unit)
    intervals = figure_intervals(*drawn, n_draws=n_bootstrap, pro_limits=pro_limits) if n_bootstrap else {}

    def metric(name: str) -> Metric:
        own = intervals.get(name)
        reason = "" if own else _NO_INTERVAL.format(unit=unit)
        return Metric(values[name], n_normal_px, n_anomalous_px, (own,) if own else (), reason)

    return _figures(metric, pro_limits), masked.table


def _figures(metric: Callable[[str], Metric], pro_limits: Sequence[float]) -> dict[str, Any]:
    return {
        **{name: metric(name) for name in ("roc_auc", "average_precision", "fpr_at_95_sensitivity", "oracle_dice")},
        "au_pro": {f"{limit:g}": metric(f"au_pro_{limit:g}") for limit in pro_limits},
    }


def _collect_masked(maps: Iterable[PixelMap]) -> _MaskedPixels:
    found, nothing = _Found(), (np.empty(0, np.float32), np.empty(0))
    for index, pixel_map in enumerate(maps):
        _check_map(pixel_map, index)
        valid = pixel_map.valid
        found.n_valid_px += pixel_map.anomaly_map.size if valid is None else int(np.count_nonzero(valid))
        mask = pixel_map.mask
        scores, weights = nothing if mask is None or not mask.any() else _weighed_pixels(pixel_map, mask)
        found.scores.append(scores)
        found.weights.append(weights)
    return _merged(found)


def _merged(found: _Found) -> _MaskedPixels:
    """Return the distinct masked scores with what lies at them, and the masked part of the table."""
    every = np.concatenate([np.empty(0, np.float32), *found.scores])
    distinct, position = np.unique(every, return_inverse=True)
    weights = np.concatenate([np.empty(0), *found.weights])
    weight = np.bincount(position, weights=weights, minlength=len(distinct)).astype(np.float64, copy=False)
    n_pixels = np.bincount(position, minlength=len(distinct))
    levels = levels_of(distinct, n_pixels, weight) if len(distinct) else distinct
    table = PixelTable(levels, *(np.zeros((len(found.scores), len(levels) + 1), t) for t in (np.int32, np.int32, "f4")))
    for i, (scores, own) in enumerate(zip(found.scores, found.weights, strict=True)):
        slot = np.searchsorted(levels, scores, side="right")
        table.masked[i] = np.bincount(slot, minlength=len(levels) + 1)
        table.overlap[i] = np.bincount(slot, weights=own, minlength=len(levels) + 1)
    return _MaskedPixels(distinct, n_pixels, weight, found.n_valid_px, table)


def _weighed_pixels(pixel_map: PixelMap, mask: BoolArray) -> tuple[npt.NDArray[np.float32], FloatVector]:
    """Return the masked valid pixels, and for each of them 1 / size of its region: a region weighs 1."""
    from scipy.ndimage import label

    region, _ = label(mask, structure=np.ones((3,) * mask.ndim))  # 8 neighbours, 26 in volumes
    chosen = mask if pixel_map.valid is None else mask & pixel_map.valid
    number = region[chosen]  # (n_masked_px,)
    return pixel_map.anomaly_map[chosen], 1.0 / np.bincount(number)[number]


def _count_normal(maps: Iterable[PixelMap], masked: _MaskedPixels) -> IntVector:
    """Count normal pixels per slot, (2D + 1,), and in the table: slot 2j lies below `distinct[j]`, 2j + 1 at it."""
    distinct, table = masked.distinct, masked.table
    counts = np.zeros(2 * len(distinct) + 1, dtype=np.int64)
    for index, pixel_map in enumerate(maps):
        for pixels in _some_at_once(_normal_pixels(pixel_map)):
            pixels.sort()
            # Sorted pixels walk through `distinct` in order, which the cache rewards; and equal slots lie
            # together, so that a map costs its own pixels and not the length of `counts`.
            n_below = np.searchsorted(distinct, pixels)
            slot = 2 * n_below + (distinct[np.minimum(n_below, len(distinct) - 1)] == pixels)
            start = np.concatenate([[0], np.flatnonzero(slot[1:] != slot[:-1]) + 1])
            counts[slot[start]] += np.diff(start, append=len(slot))
            if index < len(table.normal):  # a pass of more maps than the first is refused by its counts
                at_levels = np.searchsorted(pixels, table.levels)
                table.normal[index] += np.diff(at_levels, prepend=0, append=len(pixels))
    return counts


def _some_at_once(pixels: npt.NDArray[np.float32]) -> Iterator[npt.NDArray[np.float32]]:
    """Yield copies of `_MAX_AT_ONCE` pixels at most: to count them takes many times their memory."""
    for start in range(0, len(pixels), _MAX_AT_ONCE):
        yield pixels[start : start + _MAX_AT_ONCE].copy()


def _normal_pixels(pixel_map: PixelMap) -> npt.NDArray[np.float32]:
    """Return the valid pixels outside the mask, (n,)."""
    mask, valid = pixel_map.mask, pixel_map.valid
    if mask is None:
        return pixel_map.anomaly_map.ravel() if valid is None else pixel_map.anomaly_map[valid]
    return pixel_map.anomaly_map[~mask if valid is None else valid & ~mask]


def _between_gaps(per_score: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Spread (D,) values per masked score over the (2D + 1,) slots of `_count_normal`; gaps hold 0."""
    slots = np.zeros(2 * len(per_score) + 1, dtype=per_score.dtype)
    slots[1::2] = per_score
    return slots


def _check_map(pixel_map: PixelMap, index: int) -> None:
    anomaly_map = pixel_map.anomaly_map
    if anomaly_map.dtype != np.float32:
        raise DataError(f"anomaly map {index} is {anomaly_map.dtype}", "float32 is needed")
    for name, array in (("mask", pixel_map.mask), ("valid", pixel_map.valid)):
        if array is not None and (array.shape != anomaly_map.shape or array.dtype != np.bool_):
            raise DataError(
                f"{name} {index} has shape {array.shape} and dtype {array.dtype}",
                f"a bool array of the anomaly map's shape {anomaly_map.shape} is needed",
            )
    counted = anomaly_map if pixel_map.valid is None else anomaly_map[pixel_map.valid]
    if not np.isfinite(counted).all():
        raise DataError(f"anomaly map {index} holds NaN or infinite values", "such pixels have no rank")
