"""Plain numbers of an image: what any detector has to beat, and what shows that lamp, focus or position have changed.

Mean grey and the residual of a principal component analysis of the same normals are the baselines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from anomaly_ae.prepare import resample
from anomaly_ae.records import FloatArray, PixelArray
from anomaly_ae.sampling import spread_evenly
from anomaly_ae.shortcuts import deviation_and_sharpness

SIDES_PX = {2: 64, 3: 16}
"""Sides of the small grey images: as many pixels for a volume as for a flat image."""

N_COMPONENTS = 30
MAX_IMAGES = 500
"""More images would hardly move so few components, and the time grows with the square of their number."""

FARTHEST = 1e6
"""Values so far outside the intensity limits say no more, and their squares would not be finite."""

MAX_VALUES = 1_000_000
"""Of larger images every n-th row is looked at."""


@dataclass(frozen=True, slots=True, eq=False)
class PcaBaseline:
    """Principal components of small grey images of the training normals.

    Attributes
    ----------
    mean : float32 array, (pixels,)
    components : float32 array, (n_components, pixels)
        Orthonormal rows.
    """

    mean: FloatArray
    components: FloatArray

    def score(self, grey: FloatArray) -> float:
        """Return the mean squared residual of one small grey image, as from `small_grey`."""
        centred = grey - self.mean
        residual = centred - self.components.T @ (self.components @ centred)
        return float(np.mean(residual.astype(np.float64) ** 2))


def fit_pca(greys: Sequence[FloatArray]) -> PcaBaseline:
    """Fit the baseline on small grey images of at most `MAX_IMAGES` normals: at most `N_COMPONENTS` components."""
    images = np.stack([greys[i] for i in spread_evenly(len(greys), MAX_IMAGES)]).astype(np.float64)  # (n, pixels)
    mean = images.mean(axis=0)
    components = _leading_components(images - mean, min(N_COMPONENTS, len(images) - 1))
    return PcaBaseline(mean.astype(np.float32), components.astype(np.float32))


def _leading_components(centred: FloatArray, n_components: int) -> FloatArray:
    """Return the first principal components of (n, pixels) as orthonormal rows, (n_components, pixels).

    From the products of images with each other, which are far fewer than those of pixels.
    """
    _, shares = np.linalg.eigh(centred @ centred.T)  # by increasing variance
    leading = centred.T @ shares[:, ::-1][:, :n_components]  # (pixels, n_components), orthogonal
    orthonormal = np.linalg.qr(leading).Q  # not divided by their lengths: copies have components of none
    return np.ascontiguousarray(orthonormal.T)  # as a model file gives it back: sums depend on the order in memory


def shrunk(pixels: PixelArray) -> FloatArray:
    """Return a thumbnail of `SIDES_PX` along every axis, in the file's numbers: float32 (C, side, ...)."""
    n_axes = pixels.ndim - 1
    return resample(_within_float32(pixels), (SIDES_PX[n_axes],) * n_axes)


def small_grey(pixels: PixelArray, limits: FloatArray) -> FloatArray:
    """Return the channel mean in units of the intensity limits, shrunk by `shrunk` and flattened.

    Parameters
    ----------
    pixels : array, (C, *spatial)
    limits : array, (C, 2)
    """
    scaled = in_units_of(limits, shrunk(pixels)).clip(-FARTHEST, FARTHEST)  # (C, side, ...)
    grey: FloatArray = scaled.mean(axis=0).astype(np.float32).ravel()
    return grey


def contrast_and_sharpness(pixels: PixelArray, limits: FloatArray) -> dict[str, float]:
    """Return what lamp and lens do to an image besides its mean grey, at full resolution.

    "contrast" is the standard deviation of the grey values in units of the intensity limits; "sharpness" as in
    `shortcuts.deviation_and_sharpness`. The shortcuts of a run take the same two of the file's own numbers, inside
    `valid`: where one channel is all there is, they differ from these by the unit alone.

    Parameters
    ----------
    pixels : array, (C, *spatial)
    limits : array, (C, 2)
    """
    rows = pixels[:, :: math.ceil(pixels.size / MAX_VALUES)].astype(np.float64)  # each row stays whole
    scaled = np.nan_to_num(in_units_of(limits, rows)).clip(-FARTHEST, FARTHEST)
    contrast, sharpness = deviation_and_sharpness(scaled, scaled)
    return {"contrast": contrast, "sharpness": sharpness}


def in_units_of(limits: FloatArray, pixels: PixelArray) -> PixelArray:
    """Return pixels (C, *spatial) in which the limits (C, 2) are 0 and 1."""
    low, high = limits.T.reshape(2, -1, *[1] * (pixels.ndim - 1))
    scaled: PixelArray = (pixels - low) / (high - low)
    return scaled


def _within_float32(pixels: PixelArray) -> PixelArray:
    return pixels.clip(-1e38, 1e38) if pixels.dtype == np.float64 else pixels
