"""What a volume is like as a whole: percentiles that its slices share."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from anomaly_ae.errors import DataError, UnreadableImageError
from anomaly_ae.readers.read import read_channels
from anomaly_ae.records import FloatArray, PixelArray, Slice

_MAX_VALUES = 4_000_000
"""Of larger volumes every n-th voxel is taken: 0.1 % of so many are 4,000 voxels."""

_lock = threading.Lock()


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
        return _percentiles(tuple(volume), low, high)


@lru_cache(maxsize=4096)
def _percentiles(volume: tuple[Slice, ...], low: float, high: float) -> FloatArray:
    parts = list(_some_voxels(volume))
    if len({len(part) for part in parts}) != 1:
        why = "no slice can be read" if not parts else "its slices have different numbers of channels"
        raise DataError("a volume has no intensity limits", why, "mend it, or leave it out")  # its path may be private
    limits: FloatArray = np.percentile(np.concatenate(parts, axis=1).astype(np.float64), (low, high), axis=1).T
    return limits


def _some_voxels(volume: Sequence[Slice]) -> Iterator[PixelArray]:
    """Yield valid voxels (C, k) of every slice that can be read: all, or every n-th of all slices alike."""
    for files, frame, valid in volume:
        try:
            image = read_channels(files, frame, valid)
        except (UnreadableImageError, DataError):
            continue
        inside = image.pixels.reshape(image.n_channels, -1) if image.valid is None else image.pixels[:, image.valid]
        yield inside[:, :: math.ceil(len(volume) * math.prod(image.spatial_shape) / _MAX_VALUES)]
