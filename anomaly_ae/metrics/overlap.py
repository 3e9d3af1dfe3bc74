"""Figures of the maps of single images: AUPIMO, and Dice and IoU at a pixel threshold.

Two passes over the maps. The first keeps the pixels under the masks; the second keeps, of the pixels of normal
images, only the few highest ones that AUPIMO looks at. Exact, and never more than one map at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from anomaly_ae.metrics.checks import FloatVector, group_numbers
from anomaly_ae.metrics.pixels import PixelMap
from anomaly_ae.records import BoolArray, Interval, Metric

AUPIMO_LIMITS = (1e-5, 1e-4)
"""Shared false-positive rates between which AUPIMO averages (Bertoldo et al. 2024)."""

Float32Vector = npt.NDArray[np.float32]
Marks = Callable[[PixelMap], BoolArray]


@dataclass(frozen=True, slots=True, eq=False)
class ImageOverlap:
    """How the map of one anomalous image agrees with its mask.

    Attributes
    ----------
    index : int
        Place of the image among the maps.
    mask_px : int
        Valid pixels under the mask, at least 1.
    found_px, false_px : int or None
        Pixels that the detector marks, under the mask and outside; None without a threshold.
    aupimo : float or None
        In [0, 1]; None without normal images.
    """

    index: int
    mask_px: int
    found_px: int | None
    false_px: int | None
    aupimo: float | None

    @property
    def dice(self) -> float | None:
        """2 TP / (2 TP + FP + FN) of the pixels of this image, in [0, 1]."""
        if self.found_px is None or self.false_px is None:
            return None
        return 2 * self.found_px / (self.found_px + self.false_px + self.mask_px)

    @property
    def iou(self) -> float | None:
        """TP / (TP + FP + FN) of the pixels of this image, in [0, 1]."""
        if self.found_px is None or self.false_px is None:
            return None
        return self.found_px / (self.mask_px + self.false_px)


@dataclass(frozen=True, slots=True, eq=False)
class Overlaps:
    """All anomalous images with a mask, and the pixels of the others.

    Attributes
    ----------
    images : tuple of ImageOverlap
    n_normal_images, n_normal_px : int
        Images without a masked pixel, and their valid pixels.
    false_px_of_normals : int or None
        Those of them that the detector marks.
    """

    images: tuple[ImageOverlap, ...]
    n_normal_images: int
    n_normal_px: int
    false_px_of_normals: int | None

    def pooled(self) -> tuple[float, float] | None:
        """Return Dice and IoU over all pixels of all images; None without a threshold or a mask."""
        if self.false_px_of_normals is None or not self.images:
            return None
        found = sum(one.found_px or 0 for one in self.images)
        false = self.false_px_of_normals + sum(one.false_px or 0 for one in self.images)
        masked = sum(one.mask_px for one in self.images)
        return 2 * found / (found + false + masked), found / (masked + false)


@dataclass(slots=True)
class _FirstPass:
    masked: list[tuple[int, Float32Vector, int | None, int | None]]  # place, sorted masked pixels, found, false
    n_normal_images: int = 0
    n_normal_px: int = 0
    false_px_of_normals: int = 0


def image_overlaps(maps: Callable[[], Iterable[PixelMap]], marked: Marks | None) -> Overlaps:
    """Compare every map with its mask.

    Parameters
    ----------
    maps : callable returning an iterable of PixelMap
        Called twice; both times the same maps have to come, as `pixel_metrics` accepts them.
    marked : callable or None
        Returns the valid pixels of a map that the detector marks as anomalous; None leaves Dice and IoU out.

    Notes
    -----
    AUPIMO (Bertoldo et al., "AUPIMO: Redefining Visual Anomaly Detection Benchmarks with High Speed and Low
    Tolerance", BMVC 2024): the false-positive rate F(t) at a threshold is the mean over normal images of the share of
    their pixels; per anomalous image the share of its masked pixels is averaged over log F from 1e-5 to 1e-4. Taken
    at z is the share above the lowest threshold with F <= z: a step function, integrated exactly. The authors' code
    takes 300,000 thresholds and the trapezoidal rule, which agrees within the height of a step.
    """
    first = _first_pass(maps(), marked)
    values, weights = np.empty(0, np.float32), np.empty(0)
    if first.n_normal_images and first.masked:
        values, rates = _highest_normals(maps(), first.n_normal_images)
        weights = _weights(rates)
    images = []
    for index, pixels, found_px, false_px in first.masked:
        shares = 1.0 - np.searchsorted(pixels, values, side="right") / len(pixels)
        aupimo = min(1.0, float(weights @ shares)) if len(weights) else None  # rounding could pass 1
        images.append(ImageOverlap(index, len(pixels), found_px, false_px, aupimo))
    false = None if marked is None else first.false_px_of_normals
    return Overlaps(tuple(images), first.n_normal_images, first.n_normal_px, false)


def _first_pass(maps: Iterable[PixelMap], marked: Marks | None) -> _FirstPass:
    found = _FirstPass([])
    for index, pixel_map in enumerate(maps):
        valid = np.ones(pixel_map.anomaly_map.shape, bool) if pixel_map.valid is None else pixel_map.valid
        marks = None if marked is None else marked(pixel_map)
        if pixel_map.mask is None or not pixel_map.mask.any():
            found.n_normal_images += bool(valid.any())
            found.n_normal_px += int(np.count_nonzero(valid))
            found.false_px_of_normals += 0 if marks is None else int(np.count_nonzero(marks))
        elif (pixel_map.mask & valid).any():
            pixels = np.sort(pixel_map.anomaly_map[pixel_map.mask & valid])
            under, beside = (
                None if marks is None else int(np.count_nonzero(marks & part))
                for part in (pixel_map.mask, ~pixel_map.mask)
            )
            found.masked.append((index, pixels, under, beside))
    return found


def _highest_normals(maps: Iterable[PixelMap], n_images: int) -> tuple[Float32Vector, FloatVector]:
    """Return the distinct highest values of normal images, descending, and F at each, up to the upper limit."""
    values, mass = np.empty(0, np.float32), np.empty(0)
    for pixel_map in maps:
        if pixel_map.mask is not None and pixel_map.mask.any():
            continue
        pixels = pixel_map.anomaly_map.ravel() if pixel_map.valid is None else pixel_map.anomaly_map[pixel_map.valid]
        # Once the values kept reach the limit, nothing below the lowest of them can matter any more.
        is_full = mass.sum() >= AUPIMO_LIMITS[1]
        kept = pixels[pixels >= values[-1]] if is_full else pixels
        if len(kept):
            own_mass = np.full(len(kept), 1.0 / (len(pixels) * n_images))
            values, mass = _merged(np.concatenate([values, kept]), np.concatenate([mass, own_mass]))
    return values, np.cumsum(mass, dtype=np.float64)


def _merged(values: Float32Vector, mass: FloatVector) -> tuple[Float32Vector, FloatVector]:
    """Return the distinct values, descending, with their summed mass, down to where it reaches the upper limit."""
    distinct, position = np.unique(values, return_inverse=True)
    summed = np.bincount(position, weights=mass)[::-1].astype(np.float64)
    n_kept = int(np.searchsorted(np.cumsum(summed), AUPIMO_LIMITS[1])) + 1
    return distinct[::-1][:n_kept], summed[:n_kept]


def _weights(rates: FloatVector) -> FloatVector:
    """Return for each value how much of the log range has its next higher neighbour as the lowest threshold."""
    low, high = AUPIMO_LIMITS
    inside = np.log(np.clip(np.concatenate([[low], rates]), low, high))
    inside[-1] = math.log(high)  # the last value reaches the limit, whatever rounding says
    weights: FloatVector = np.diff(inside) / math.log(high / low)
    return weights


def mean_metric(values: Sequence[float], n_normal: int, groups: Iterable[Hashable] | None, reason: str = "") -> Metric:
    """Return the mean of one number per anomalous image, with its 95 % intervals.

    Student's t on the mean, by images; with groups first from the sums of deviations per group (linearised variance
    of a mean of clusters, Cochran 1977, "Sampling Techniques", 9A); cut to [0, 1].
    """
    from scipy.special import stdtrit

    if not values:
        return Metric(None, n_normal, 0, reason=reason or "no masked pixels")
    array = np.asarray(values, np.float64)
    levels = [("image", np.arange(len(array)))]
    codes = group_numbers(groups, len(array))
    levels = levels if codes is None else [("group", codes), *levels]
    intervals, mean = [], float(array.mean())
    for of, numbers in levels:
        deviations = np.bincount(numbers, weights=array - mean)
        n = len(deviations)
        spread = float(deviations @ deviations)
        if n < 2 or np.ptp(array) == 0.0:
            break  # without an interval by groups there is none by images, which would be too narrow
        half = float(stdtrit(n - 1, 0.975)) * math.sqrt(n / (n - 1) * spread) / len(array)
        intervals.append(Interval(max(0.0, mean - half), min(1.0, mean + half), "Student's t", of))
    missing = "" if intervals else f"no interval: one {levels[0][0]}, or all alike"
    return Metric(mean, n_normal, len(array), tuple(intervals), "; ".join(filter(None, (reason, missing))))
