"""Connected regions of the anomaly map at or above the pixel threshold, and which of them count.

The rules come before the decision: the score of an image is the largest threshold at which a region of it survives
them (`surviving_level`), so that a threshold on scores is one on surviving regions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from anomaly_ae.config import ScoringConfig
from anomaly_ae.errors import DataError, UnreadableImageError, UsageError
from anomaly_ae.records import BoolArray, FloatArray, Region

MAX_AT_ONCE = 2**24
"""Pixels of a map that statistics are taken of at once."""


@dataclass(frozen=True, slots=True)
class RegionRules:
    """Which regions count: all, where every rule is 0.

    All lengths are on the image's own grid, where the map is looked at.

    Attributes
    ----------
    min_area_px, min_area_mm2 : int, float
        Smaller regions do not count. Where both are given, the larger one holds.
    hysteresis_low : float
        In the unit of the map. A region is what hangs together at or above this level, and counts if its peak reaches
        the threshold; a threshold below this level takes its place.
    ignore_border_px : int
        Pixels that are nearer than this to an edge of the image do not count.
    """

    min_area_px: int = 0
    min_area_mm2: float = 0.0
    hysteresis_low: float = 0.0
    ignore_border_px: int = 0

    @classmethod
    def of(cls, config: ScoringConfig) -> RegionRules:
        """Take the rules out of the settings."""
        return cls(**{f.name: getattr(config, f.name) for f in fields(cls)})

    def min_px(self, spacing_mm: tuple[float, ...] | None) -> int:
        """Return the smallest number of pixels that counts, at least 1.

        Raises
        ------
        DataError
            A rule in mm² and an image without a spacing.
        """
        if not self.min_area_mm2:
            return max(1, self.min_area_px)
        if spacing_mm is None:
            raise DataError(
                f"scoring.min_area_mm2 = {self.min_area_mm2:g}, and the image has no spacing",
                "its file does not say how large a pixel is",
                "set scoring.min_area_px instead",
            )
        exact = self.min_area_mm2 / math.prod(spacing_mm)
        return max(1, self.min_area_px, math.ceil(exact * (1 - 1e-9)))  # 10 px of 0.1 mm² are 1 mm², whatever rounding

    def check(self, shape: tuple[int, ...], spacing_mm: tuple[float, ...] | None) -> None:
        """Refuse an image of a shape in which no region could ever count.

        Raises
        ------
        DataError
        """
        n_px = math.prod(max(0, side - 2 * self.ignore_border_px) for side in shape)
        if n_px < self.min_px(spacing_mm):
            raise _too_small(self.min_px(spacing_mm))

    def counted(self, shape: tuple[int, ...], valid: BoolArray | None) -> BoolArray | None:
        """Return which pixels count, (*shape); None where all do."""
        if not self.ignore_border_px:
            return valid
        n = self.ignore_border_px
        inner = np.zeros(shape, bool)
        inner[tuple(slice(n, max(n, side - n)) for side in shape)] = True
        return inner if valid is None else inner & valid

    def describe(self) -> str:
        """Say the rules in words; "" where there are none."""
        parts = {
            f"regions below {self.min_area_px} px do not count": self.min_area_px,
            f"regions below {self.min_area_mm2:g} mm² do not count": self.min_area_mm2,
            f"regions reach out to level {self.hysteresis_low:g} of the map": self.hysteresis_low,
            f"the outer {self.ignore_border_px} px of an image do not count": self.ignore_border_px,
        }
        return "; ".join(words for words, is_set in parts.items() if is_set)


ALL_REGIONS = RegionRules()


def find_regions(
    anomaly_map: FloatArray,
    pixel_threshold: float,
    valid: BoolArray | None = None,
    spacing_mm: tuple[float, ...] | None = None,
    max_regions: int = 1000,
    rules: RegionRules = ALL_REGIONS,
) -> tuple[Region, ...]:
    """Return the connected regions that count, the highest peak first.

    Without rules these are the pixels with ``anomaly_map >= pixel_threshold``. Pixels that touch at an edge or a corner
    belong together: 8 neighbours in images, 26 in volumes.

    Parameters
    ----------
    anomaly_map : float array, (*spatial)
        On the image's own grid.
    pixel_threshold : float
        In the unit of the map.
    valid : bool array, (*spatial), optional
        Regions are sought, and values looked at, only where it is True.
    spacing_mm : tuple of float, optional
        Distance of neighbouring pixels per spatial axis, in millimetres.
    max_regions : int
        Only so many are returned, the highest peaks. Equal peaks: larger area first, then reading order.
    rules : RegionRules
        Which regions count.

    Raises
    ------
    UnreadableImageError
        The map holds NaN or infinite values inside ``valid``.
    UsageError
        Shapes do not fit, or a number is out of range.
    DataError
        A rule in mm² without a spacing.
    """
    from scipy import ndimage

    _check(anomaly_map, pixel_threshold, valid, spacing_mm, max_regions)
    labels, n_regions = _labelled(in_regions(anomaly_map, pixel_threshold, valid, spacing_mm, rules))
    if n_regions == 0:
        return ()
    area_px, peak, mean, centroid_px = _statistics(anomaly_map, labels, n_regions)
    boxes = ndimage.find_objects(labels)
    pixel_mm = None if spacing_mm is None else math.prod(spacing_mm)
    return tuple(
        Region(
            area_px=int(area_px[i]),
            area_mm2=None if pixel_mm is None else float(area_px[i] * pixel_mm),
            box_px=tuple(s.start for s in boxes[i]) + tuple(s.stop for s in boxes[i]),
            centroid_px=tuple(centroid_px[i].tolist()),
            peak=float(peak[i]),
            mean=float(mean[i]),
        )
        for i in np.lexsort((-area_px, -peak))[:max_regions].tolist()
    )


def in_regions(
    anomaly_map: FloatArray,
    pixel_threshold: float,
    valid: BoolArray | None = None,
    spacing_mm: tuple[float, ...] | None = None,
    rules: RegionRules = ALL_REGIONS,
) -> BoolArray:
    """Return the pixels of the regions that count: bool, as the map."""
    counted = rules.counted(anomaly_map.shape, valid)
    low = min(rules.hysteresis_low or pixel_threshold, pixel_threshold)
    inside, n_px = _at_or_above(anomaly_map, low, counted), rules.min_px(spacing_mm)
    if low == pixel_threshold and n_px == 1:
        return inside
    labels, n_regions = _labelled(inside)
    counts = np.zeros(n_regions + 1, bool)
    counts[labels[_at_or_above(anomaly_map, pixel_threshold, counted)]] = True
    counts &= np.bincount(labels.ravel(), minlength=n_regions + 1) >= n_px
    counts[0] = False  # what is no region
    survivors: BoolArray = counts[labels]
    return survivors


def surviving_level(
    anomaly_map: FloatArray,
    valid: BoolArray | None = None,
    spacing_mm: tuple[float, ...] | None = None,
    rules: RegionRules = ALL_REGIONS,
) -> float:
    """Return the largest threshold at which a region counts: exactly a value of the map.

    At a threshold t, `in_regions` is empty if and only if the level is below t. Without rules it is the largest value.

    Parameters
    ----------
    anomaly_map : float array, (*spatial)
        Finite inside ``valid``.

    Raises
    ------
    DataError
        No region could ever count: no pixel does, or no connected part of the image is large enough.
    """
    values, n_px = counted_values(anomaly_map, valid, rules), rules.min_px(spacing_mm)
    if n_px == 1:
        return float(values.max())
    if rules.hysteresis_low:
        inside = in_regions(anomaly_map, rules.hysteresis_low, valid, spacing_mm, rules)
        if inside.any():
            return float(anomaly_map[inside].max())
    return _level_of_area(anomaly_map, rules.counted(anomaly_map.shape, valid), n_px)


def counted_values(anomaly_map: FloatArray, valid: BoolArray | None, rules: RegionRules) -> FloatArray:
    """Return the values of the pixels that count: (n_pixels,).

    Raises
    ------
    DataError
        There is none.
    """
    counted = rules.counted(anomaly_map.shape, valid)
    values: FloatArray = anomaly_map.ravel() if counted is None else anomaly_map[counted]
    if values.size == 0:
        why = f"its mask is empty, or the {rules.ignore_border_px} px of ignored border leave nothing of it"
        raise DataError(
            "an image without a single valid pixel",
            why if rules.ignore_border_px else "its mask is empty",
            "leave it out",
        )
    return values


def _level_of_area(anomaly_map: FloatArray, counted: BoolArray | None, n_px: int) -> float:
    """Return the highest value at or above which ``n_px`` pixels hang together.

    A bisection over the sorted values, for regions only grow as the level falls. It begins at the level that just
    ``n_px`` pixels reach and doubles their number: regions of that size are rarely far below.
    """
    values = anomaly_map if counted is None else np.where(counted, anomaly_map, -np.inf)
    ordered = np.sort(values, axis=None)[::-1]  # (n_pixels,), those that do not count at the end
    n_counted = values.size if counted is None else int(np.count_nonzero(counted))
    too_few, enough = n_px - 2, n_px - 1  # ranks
    if enough >= n_counted:
        raise _too_small(n_px)
    while (parts := _large_parts(values, ordered[enough], n_px)) is None:
        if enough == n_counted - 1:
            raise _too_small(n_px)
        too_few, enough = enough, min(2 * enough + 1, n_counted - 1)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        smaller = _large_parts(parts, ordered[middle], n_px)
        if smaller is None:
            too_few = middle
        else:
            enough, parts = middle, smaller
    return float(ordered[enough])


def _large_parts(values: FloatArray, level: float, n_px: int) -> FloatArray | None:
    """Return the regions of at least ``n_px`` at or above a level, -inf around them; None where there is none.

    Cut to the box around them: at any higher level large regions lie in these, so that the next look is a shorter one.
    """
    from scipy import ndimage

    labels, n_regions = _labelled(values >= level)
    is_large = np.bincount(labels.ravel(), minlength=n_regions + 1) >= n_px
    is_large[0] = False
    if not is_large.any():
        return None
    boxes = [box for box, large in zip(ndimage.find_objects(labels), is_large[1:], strict=True) if large]
    around = tuple(slice(min(s.start for s in sides), max(s.stop for s in sides)) for sides in zip(*boxes, strict=True))
    return np.where(is_large[labels[around]], values[around], -np.inf)


def _too_small(n_px: int) -> DataError:
    why = f"no connected part of it has {n_px:,} px that count, so nothing could ever be found in it"
    return DataError("an image too small for the region rules", why, "lower them, or leave it out")


def _labelled(inside: BoolArray) -> tuple[npt.NDArray[np.integer], int]:
    """Return the number of its region for every pixel, 0 outside, and how many regions there are."""
    from scipy import ndimage

    labels, n_regions = ndimage.label(inside, structure=np.ones((3,) * inside.ndim))
    return labels, n_regions


def _at_or_above(anomaly_map: FloatArray, pixel_threshold: float, counted: BoolArray | None) -> BoolArray:
    # Compared as float64, as image scores are: a threshold rounded to the map's float32 could mark a region
    # on an image whose maximum is below the threshold.
    above: BoolArray = np.greater_equal(anomaly_map, pixel_threshold, signature="dd->?")
    return above if counted is None else above & counted


def _statistics(
    anomaly_map: FloatArray, labels: npt.NDArray[np.integer], n_regions: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return area, peak, mean, each (n_regions,), and centroid, (n_regions, ndim).

    A large volume is looked at some slices at a time: where most of it is one region, indices and float64 values of all
    its voxels at once would take ten times its memory.
    """
    area_px, total = np.zeros(n_regions, np.intp), np.zeros(n_regions)
    peak, moments = np.full(n_regions, -np.inf), np.zeros((labels.ndim, n_regions))
    n_rows = max(1, MAX_AT_ONCE * len(labels) // labels.size)
    for start in range(0, len(labels), n_rows):
        where = np.nonzero(labels[start : start + n_rows])  # one index array per axis
        region = labels[start : start + n_rows][where] - 1  # (n_pixels,)
        values = anomaly_map[start : start + n_rows][where].astype(np.float64)
        area_px += np.bincount(region, minlength=n_regions)
        total += np.bincount(region, values, minlength=n_regions)
        np.maximum.at(peak, region, values)
        places = (where[0] + start, *where[1:])
        moments += np.stack([np.bincount(region, index, minlength=n_regions) for index in places])
    mean = np.minimum(total / area_px, peak)  # rounding could lift the mean above the peak
    return area_px, peak, mean, (moments / area_px).T


def _check(
    anomaly_map: FloatArray,
    pixel_threshold: float,
    valid: BoolArray | None,
    spacing_mm: tuple[float, ...] | None,
    max_regions: int,
) -> None:
    if math.isnan(pixel_threshold):
        raise UsageError("a pixel threshold of NaN", "it must be a number")
    if max_regions < 1:
        raise UsageError(f"max_regions = {max_regions}", "it must be at least 1")
    if valid is not None and (valid.shape != anomaly_map.shape or valid.dtype != np.bool_):
        raise UsageError(
            f"valid is {valid.dtype} of shape {valid.shape}",
            f"bool of the map's shape {anomaly_map.shape} is expected",
        )
    if spacing_mm is not None and len(spacing_mm) != anomaly_map.ndim:
        raise UsageError(
            f"a spacing of {len(spacing_mm)} numbers",
            f"the anomaly map has {anomaly_map.ndim} axes; one number each",
        )
    usable = np.isfinite(anomaly_map) if valid is None else np.isfinite(anomaly_map) | ~valid
    n_bad = int(usable.size - np.count_nonzero(usable))
    if n_bad:
        raise UnreadableImageError(
            f"the anomaly map has {n_bad} NaN or infinite pixels",
            "the image holds such pixels, or numbers far outside the training range",
            "look at the image",
        )
