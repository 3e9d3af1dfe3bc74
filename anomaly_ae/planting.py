"""Planting a synthetic defect into a real image, in the file's own numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from anomaly_ae.errors import DataError
from anomaly_ae.records import BoolArray, FloatArray, Image
from anomaly_ae.synthetic import plant_defect


def plant_into(
    image: Image, limits: FloatArray, kind: str, rng: np.random.Generator, size_px: float, contrast: float
) -> tuple[Image, BoolArray]:
    """Plant one defect into an image at a random valid place.

    Parameters
    ----------
    image : Image
        Flat. Its pixels keep their dtype; outside of the defect they stay as they are.
    limits : float array, (C, 2)
        Black and white of every channel in the file's numbers: contrast 1 is the way from one to the other.
    kind, rng, size_px, contrast
        See `synthetic.plant_defect`.

    Returns
    -------
    damaged : Image
    mask : bool array, (H, W)
        Where the defect is.

    Raises
    ------
    DataError
        A volume; or a defect that leaves no trace.
    UsageError
        Unknown kind; size or contrast out of range.
    """
    if len(image.spatial_shape) != 2:
        raise DataError(
            f"{image.source} has {len(image.spatial_shape)} axes", "defects are drawn into flat images", "give slices"
        )
    low, span = limits[:, :1, None], (limits[:, 1:] - limits[:, :1])[..., None]  # (C, 1, 1)
    scaled = np.nan_to_num((image.pixels - low) / span).clip(0, 1).astype(np.float32)  # (C, H, W)
    damaged, mask = plant_defect(scaled, kind, rng, size_px, contrast, image.valid)
    change = (damaged - scaled) * span  # what lies beyond black or white keeps its texture
    return replace(
        image, pixels=np.where(mask, _in_dtype(image.pixels + change, image.pixels.dtype), image.pixels)
    ), mask


def _in_dtype(values: FloatArray, dtype: np.dtype[np.generic]) -> np.ndarray:
    if not np.issubdtype(dtype, np.integer):
        return values.astype(dtype)
    info = np.iinfo(dtype)  # type: ignore[type-var]
    return np.rint(values).clip(info.min, info.max).astype(dtype)
