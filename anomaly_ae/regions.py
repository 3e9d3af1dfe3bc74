"""Connected regions of the anomaly map at or above the pixel threshold."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from anomaly_ae.errors import UnreadableImageError, UsageError
from anomaly_ae.records import BoolArray, FloatArray, Region

MAX_AT_ONCE = 2**24
"""Pixels of a map that statistics are taken of at once."""


def find_regions(
    anomaly_map: FloatArray,
    pixel_threshold: float,
    valid: BoolArray | None = None,
    spacing_mm: tuple[float, ...] | None = None,
    max_regions: int = 1000,
) -> tuple[Region, ...]:
    """Return the connected regions with ``anomaly_map >= pixel_threshold``, the highest peak first.

    Pixels that touch at an edge or a corner belong together: 8 neighbours in images, 26 in volumes.

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

    Raises
    ------
    UnreadableImageError
        The map holds NaN or infinite values inside ``valid``.
    UsageError
        Shapes do not fit, or a number is out of range.
    """
    from scipy import ndimage

    _check(anomaly_map, pixel_threshold, valid, spacing_mm, max_regions)
    labels, n_regions = ndimage.label(
        at_or_above(anomaly_map, pixel_threshold, valid), structure=np.ones((3,) * anomaly_map.ndim)
    )
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


def at_or_above(anomaly_map: FloatArray, pixel_threshold: float, valid: BoolArray | None) -> BoolArray:
    """Return the pixels that regions are made of: at or above the threshold, and valid; bool, as the map."""
    # Compared as float64, as image scores are: a threshold rounded to the map's float32 could mark a region
    # on an image whose maximum is below the threshold.
    above: BoolArray = np.greater_equal(anomaly_map, pixel_threshold, signature="dd->?")
    return above if valid is None else above & valid


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
