"""Planting a synthetic defect into a real image, in the file's own numbers; and into copies of whole files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from anomaly_ae.config import Config
from anomaly_ae.errors import AnomalyAEError, DataError, UsageError
from anomaly_ae.loading import read_sample
from anomaly_ae.records import BoolArray, FloatArray, Image, Sample
from anomaly_ae.synthetic import plant_defect

KINDS = ("scratch", "spot", "stain", "dent")
SHARE_OF_SIDE = 1 / 8
MIN_SIZE_PX = 4.0


def refuse_unplantable(config: Config, command: str) -> None:
    """Refuse, before anything is computed, what a planted copy cannot have: it is flat, and holds nothing but pixels.

    Raises
    ------
    UsageError
    """
    refuse_volumes(config, command)
    intensity, geometry = config.intensity, config.geometry
    if geometry.spacing_mm or geometry.slice_spacing_mm or intensity.policy == "file_window":
        why, fix = "planted copies of images have neither spacing nor window", "leave it out"
        raise UsageError(f"{command} with a stated spacing or intensity.policy=file_window", why, fix)


def refuse_volumes(config: Config, command: str) -> None:
    """Raise `UsageError` for a model that takes whole volumes."""
    if config.model.spatial_dims == 3:
        why, fix = "it plants and shows flat defects", "use a model, or a preset, for slices"
        raise UsageError(f"{command} with model.spatial_dims=3", why, fix)


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


def plant_copies(
    samples: Iterable[Sample], n_wanted: int, contrasts: Sequence[float], folder: Path, rng: np.random.Generator
) -> dict[str, Sample]:
    """Write copies with a defect of the first images that take one; return their rows by the id of the image.

    Kinds and contrasts take turns. A defect is an eighth of the shorter side; black and white are the percentiles 0.5
    and 99.5 of its own image, because there need not be a model yet.

    Parameters
    ----------
    samples : iterable of Sample
        Volumes, unreadable images and those where the defect leaves no trace are passed over.
    folder : Path
        Where the copies go, as NPY.
    """
    planted: dict[str, Sample] = {}
    for sample in samples:
        i = len(planted)
        if i == n_wanted:
            break
        try:
            damaged = _damaged(read_sample(sample), KINDS[i % len(KINDS)], contrasts[i % len(contrasts)], rng)
        except AnomalyAEError:
            continue
        path = folder / f"{i}.npy"
        np.save(path, damaged.pixels if damaged.n_channels > 1 else damaged.pixels[0], allow_pickle=False)
        valid = None
        if damaged.valid is not None:
            valid = folder / f"{i}.valid.npy"
            np.save(valid, damaged.valid.astype(np.uint8), allow_pickle=False)
        planted[sample.id] = replace(sample, files=(path,), valid=valid, frame=0, volume="", slices=())
    return planted


def _damaged(image: Image, kind: str, contrast: float, rng: np.random.Generator) -> Image:
    flat = image.pixels.reshape(image.n_channels, -1).astype(np.float64)
    low, high = np.nanpercentile(flat, (0.5, 99.5), axis=1)
    limits = np.stack([low, np.maximum(high, low + 1e-6)], axis=1)  # (C, 2)
    size_px = max(MIN_SIZE_PX, SHARE_OF_SIDE * min(image.spatial_shape))
    return plant_into(image, limits, kind, rng, size_px, contrast)[0]
