"""A volume as a whole: its slices stacked to one image, and percentiles that they share."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from anomaly_ae.dicom.shared import check_size
from anomaly_ae.errors import DataError, UnreadableImageError
from anomaly_ae.files import file_state, holds
from anomaly_ae.readers.arrays import check_dtype, unmasked
from anomaly_ae.readers.read import read_channels, read_mask, read_plane, usable
from anomaly_ae.records import BoolArray, FloatArray, Image, PixelArray, Slice
from anomaly_ae.words import times

_MAX_VALUES = 4_000_000
"""Of larger volumes every n-th voxel is taken: 0.1 % of so many are 4,000 voxels."""

_lock = threading.Lock()


def read_volume(slices: Sequence[Slice], slice_spacing_mm: float | None, source: str) -> Image:
    """Read a volume as one image.

    Parameters
    ----------
    slices : sequence of Slice
        In the order in which they lie.
    slice_spacing_mm : float or None
        Their distance, where it is known.
    source : str
        What messages call the volume.

    Returns
    -------
    Image
        ``pixels``: (C, slices, H, W), with the numbers of `read_channels`; ``spacing_mm``: of slices, rows, columns,
        None where one of them is not known.

    Raises
    ------
    UnreadableImageError, DataError
        A slice cannot be read or has another size or other channels than the first, no voxel is valid, or the volume
        is too large. The size is checked before memory is taken.
    """
    first = read_plane(slices[0])
    check_size(source, (first.n_channels, len(slices), *first.spatial_shape))
    pixels = np.empty((first.n_channels, len(slices), *first.spatial_shape), first.pixels.dtype)
    valid: BoolArray | None = None
    for number, one in enumerate(slices):
        plane = read_plane(one) if number else first
        _check_plane(plane, first, source, number)
        pixels = pixels.astype(np.result_type(pixels, plane.pixels), copy=False)  # slopes differ from file to file
        pixels[:, number] = plane.pixels
        if plane.valid is not None:
            valid = np.ones(pixels.shape[1:], bool) if valid is None else valid
            valid[number] = plane.valid
    if valid is not None and not valid.any():
        raise UnreadableImageError(f"{source}: no valid voxel", "its mask leaves nothing", "correct the mask")
    rows_columns_mm = first.spacing_mm
    spacing_mm = (slice_spacing_mm, *rows_columns_mm) if slice_spacing_mm and rows_columns_mm else None
    return Image(pixels, valid, spacing_mm, source, 1, first.bits_stored, first.was_grey_rgb, window=first.window)


def volume_from(array: PixelArray, spacing_mm: tuple[float, float, float] | None = None) -> Image:
    """Make a volume of an array (slices, H, W) or (C, slices, H, W), which is copied; it stays as it is.

    Of a masked array, what is masked in no channel is valid.

    Raises
    ------
    UnreadableImageError
        Other than 3 or 4 axes, an axis that is empty, pixels that are no numbers or all masked, NaN or infinite values.
    """
    if array.ndim not in (3, 4):
        what, fix = f"array: {array.ndim} axes", "give slices, rows and columns; before them channels"
        raise UnreadableImageError(what, "a volume has 3, or 4 with channels", fix)
    check_dtype(array.dtype, "array")
    check_size("array", array.shape)
    pixels = array[np.newaxis] if array.ndim == 3 else array
    bits = None if pixels.dtype.kind == "f" else pixels.dtype.itemsize * 8
    native = np.array(pixels, np.uint8 if pixels.dtype.kind == "b" else pixels.dtype.newbyteorder("="))
    return usable(Image(native, unmasked(pixels), spacing_mm, bits_stored=bits))


def read_volume_mask(slices: Sequence[Slice], shape: tuple[int, ...]) -> BoolArray | None:
    """Read the defect masks of a volume of `shape` as `read_mask` does: slices without one show none; None without any.

    Raises
    ------
    UnreadableImageError, DataError
    """
    if all(one.mask is None for one in slices):
        return None
    mask = np.zeros(shape, bool)
    for plane, one in zip(mask, slices, strict=True):
        if one.mask is not None:
            plane[:] = read_mask(one.mask, plane.shape, one.frame, one.files[0])
    return mask


def _check_plane(plane: Image, first: Image, source: str, number: int) -> None:
    if plane.pixels.shape != first.pixels.shape:
        found, wanted = (times(image.pixels.shape) for image in (plane, first))
        raise UnreadableImageError(
            f"{source}: slice {number} is {found}, the first is {wanted} (channels, rows, columns)",
            "slices of one volume have one size",
            "leave it out, or look at the volume slice by slice",
        )


def volume_percentiles(volume: Sequence[Slice], low: float, high: float) -> FloatArray:
    """Return two percentiles of all valid voxels of a volume, per channel; computed once for all of its slices.

    Slices that cannot be read, or have no valid voxel, do not count: each is told of where it is scored.

    Returns
    -------
    float64 array, (C, 2)

    Raises
    ------
    DataError
        No slice can be read, or slices have different numbers of channels.
    """
    with _lock:  # the threads that wait want the same volume
        return _percentiles(tuple(volume), _states(volume), low, high)


def _states(volume: Sequence[Slice]) -> frozenset[tuple[str, int, int]]:
    """Return the state of every file that is there: what is written anew is another volume."""
    files = {Path(file) for one in volume for file in (*one.files, *([one.valid] if one.valid else []))}
    return frozenset(file_state(file) for file in files if holds(file.exists))


@lru_cache(maxsize=4096)
def _percentiles(
    volume: tuple[Slice, ...], _files: frozenset[tuple[str, int, int]], low: float, high: float
) -> FloatArray:
    parts = list(_some_voxels(volume))
    if len({len(part) for part in parts}) != 1:
        why = "no slice can be read" if not parts else "its slices have different numbers of channels"
        raise DataError("a volume has no intensity limits", why, "mend it, or leave it out")  # its path may be private
    limits: FloatArray = np.percentile(np.concatenate(parts, axis=1).astype(np.float64), (low, high), axis=1).T
    return limits


def _some_voxels(volume: Sequence[Slice]) -> Iterator[PixelArray]:
    """Yield valid voxels (C, k) of every slice that can be read: all, or every n-th of all slices alike."""
    for one in volume:
        try:
            image = read_channels(one.files, one.frame, one.valid)
        except (UnreadableImageError, DataError):
            continue
        inside = image.pixels.reshape(image.n_channels, -1) if image.valid is None else image.pixels[:, image.valid]
        yield inside[:, :: math.ceil(len(volume) * math.prod(image.spatial_shape) / _MAX_VALUES)]
