"""Light, divided out: ``black + (pixels - black) / gain``.

Light multiplies what the camera would show under even light, black level not included; so the gain divides the
numbers of the file above that level, before they are scaled to [0, 1]. The gain of uneven light is smooth and has a
mean of 1: the brightness of an image as a whole stays what it is. That of the exposure is one number for an image.
"""

from __future__ import annotations

import numpy as np

from anomaly_ae.errors import DataError
from anomaly_ae.prepare import resample, valid_box
from anomaly_ae.records import BoolArray, FloatArray, PixelArray

N_CELLS = 8
"""Cells along every side of the box of valid pixels from which a learned gain is made: coarser than any object."""

MIN_GAIN = 0.2
"""A darker place than this share of the mean is no shading but a dark thing: dividing by less would only show noise."""

EXPOSURE_SHARES = np.linspace(0.05, 0.95, 19)
"""Quantiles of an image that tell its exposure: not those that a glint or a dead pixel moves."""

MAX_EXPOSURE_PIXELS = 20_000
"""The quantiles of a larger image are those of so many of its pixels, evenly taken."""

COMMON_SHARE, MIN_EXPOSURE_SPREAD = 0.8, 0.08
"""Exposure is what images differ in where it explains this share of how their quantiles vary, and where its logarithm
has this deviation: about 8 %."""

COARSE_SD_PX = 4
"""A wide Gaussian is computed on a grid on which its deviation is about this: the same field, in far less time."""


def cell_sums(pixels: PixelArray, valid: BoolArray | None) -> FloatArray:
    """Return smooth sums of the valid pixels, and their share, in cells of their box: (C, 2, *cells)."""
    inside = np.ones(pixels.shape[1:], bool) if valid is None else valid
    box = valid_box(inside)
    cells = (N_CELLS,) * inside.ndim
    sums = resample(np.where(inside, pixels, 0)[:, *box], cells)
    share = resample(inside[np.newaxis][:, *box], cells)
    return np.stack([sums, np.broadcast_to(share, sums.shape)], axis=1).astype(np.float64)


def learned_gain(sums: FloatArray, black: float) -> FloatArray:
    """Return the gain in every cell from `cell_sums` of many images, summed: float32 (C, *cells).

    Raises
    ------
    DataError
        The mean is not above the black level.
    """
    total, weight = sums[:, 0], sums[:, 1]
    axes = tuple(range(1, total.ndim))
    mean = total.sum(axis=axes, keepdims=True) / weight.sum(axis=axes, keepdims=True)
    if (mean <= black).any():
        raise DataError(
            f"the training images have a mean of {mean.min():.6g}, and intensity.black_level is {black:.6g}",
            "a flat field is a share of the light above the black level",
            "set intensity.black_level to the file's number for no light, or intensity.flat_field=off",
        )
    light = np.where(weight > 0, total / np.maximum(weight, 1e-9), mean)
    gain: FloatArray = ((light - black) / (mean - black)).clip(MIN_GAIN).astype(np.float32)
    return gain


def stretched_gain(cells: FloatArray, valid: BoolArray) -> FloatArray:
    """Stretch a learned gain over the box of valid pixels; 1 outside of it: float32 (C, *spatial)."""
    gain = np.ones((len(cells), *valid.shape), np.float32)
    box = valid_box(valid)
    gain[:, *box] = resample(cells, [part.stop - part.start for part in box])
    return gain


def image_gain(pixels: PixelArray, valid: BoolArray, black: float, sd_px: float) -> FloatArray:
    """Return the gain that one image itself shows: its Gaussian mean over valid pixels, relative: (C, *spatial).

    An image without light above the black level is left as it is.
    """
    from scipy.ndimage import gaussian_filter

    step = max(1, int(sd_px / COARSE_SD_PX))
    coarse = [-(-side // step) for side in valid.shape]
    summed = resample(np.where(valid, pixels - np.float64(black), 0), coarse)
    weight = resample(valid[np.newaxis], coarse)
    smooth, share = (
        np.stack([gaussian_filter(v, sd_px / step, mode="constant") for v in part]) for part in (summed, weight)
    )
    light = resample(smooth / np.maximum(share, 1e-6), valid.shape)
    mean = light[:, valid].mean(axis=1).reshape(-1, *[1] * valid.ndim)
    return np.where(mean > 0, light / np.where(mean > 0, mean, 1), 1).clip(MIN_GAIN).astype(np.float32)


def divide_out(pixels: PixelArray, gain: FloatArray | float, black: float) -> FloatArray:
    """Return the pixels as they would be under even or usual light, in the file's numbers: float32."""
    return (black + (pixels - np.float64(black)) / gain).astype(np.float32)


def light_profile(pixels: PixelArray, valid: BoolArray | None, black: float) -> FloatArray:
    """Return the quantiles at `EXPOSURE_SHARES` of all valid samples above black level: float64 (19,)."""
    inside = pixels.ravel() if valid is None else pixels[:, valid].ravel()
    some = inside[:: -(-inside.size // MAX_EXPOSURE_PIXELS)]
    return np.quantile(some.astype(np.float64), EXPOSURE_SHARES) - black


def learned_exposure(profiles: FloatArray) -> FloatArray:
    """Return the lowest, the usual and the highest exposure of the training images: float64 (3,).

    The exposure of an image is the mean of its profile.

    Parameters
    ----------
    profiles : float64 array, (n, 19)
        See `light_profile`.

    Raises
    ------
    DataError
        An image is not above the black level.
    """
    exposures = profiles.mean(axis=1)
    if exposures.min() <= 0:
        raise DataError(
            "the exposure of a training image is not above the black level",
            "exposure is a factor of the light above it",
            "set intensity.black_level to the file's number for no light, or intensity.exposure=off",
        )
    return np.array([exposures.min(), np.median(exposures), exposures.max()])


def exposure_gain(profile: FloatArray, learned: FloatArray) -> float:
    """Return the exposure of one image, relative to the usual one; no further from it than that of a training image.

    So what is darker or brighter than all of them stays so.
    """
    lowest, usual, highest = learned
    return float(np.clip(profile.mean(), lowest, highest) / usual)


def common_exposure(profiles: FloatArray) -> tuple[float, float]:
    """Return how far exposure explains how images differ, and how much it varies.

    Where nothing but the exposure differs, every profile is the mean profile times a number.

    Parameters
    ----------
    profiles : float64 array, (n, 19)
        See `light_profile`; their means are above 0.

    Returns
    -------
    share : float
        Of the sum of squares of the profiles about their mean, at most 1; 0 where they do not differ.
    spread : float
        Deviation of the logarithm of the exposure.

    Examples
    --------
    >>> ramp = np.linspace(1.0, 3.0, 19)
    >>> share, spread = common_exposure(np.stack([ramp, 2 * ramp, 4 * ramp]))
    >>> f"{share:.3f} {spread:.3f}"
    '1.000 0.566'
    >>> f"{common_exposure(np.stack([ramp, ramp[::-1]]))[0]:.3f}"
    '0.000'
    """
    mean, exposures = profiles.mean(axis=0), profiles.mean(axis=1)
    unexplained = profiles - np.outer(exposures / exposures.mean(), mean)
    total = float(np.square(profiles - mean).sum())
    share = 1 - float(np.square(unexplained).sum()) / total if total > 0 else 0.0
    return share, float(np.log(exposures).std())
