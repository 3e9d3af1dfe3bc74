"""A volume as people see it: three planes through one voxel, side by side in one flat picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from anomaly_ae.records import BoolArray, FloatArray

GAP_PX = 2


@dataclass(frozen=True, slots=True, eq=False)
class Planes:
    """Where three planes are cut, and how they are laid out: the slice, and to its right those across rows and columns.

    Attributes
    ----------
    shape : tuple of int
        Slices, rows and columns of the volume.
    voxel : tuple of int
        Slice, row and column that all three planes go through.
    lines : tuple of three int arrays
        Along each axis the indices that are shown: repeated or left out, so that all axes have one scale.
    """

    shape: tuple[int, ...]
    voxel: tuple[int, int, int]
    lines: tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.intp]]

    @classmethod
    def through_peak(
        cls, anomaly_map: FloatArray, valid: BoolArray | None, spacing_mm: Sequence[float] | None
    ) -> Planes:
        """Cut a volume at the largest valid value of its map (slices, H, W); without spacing voxels are cubes."""
        values = anomaly_map if valid is None else np.where(valid, anomaly_map, -np.inf)
        slice_, row, column = np.unravel_index(int(values.argmax()), values.shape)
        mm = np.ones(3) if spacing_mm is None else np.asarray(spacing_mm, np.float64)
        ends = zip(anomaly_map.shape, mm / mm[1:].min(), strict=True)
        across, rows, columns = (
            np.minimum((np.arange(max(1, round(n * scale))) / scale).astype(np.intp), n - 1) for n, scale in ends
        )
        return cls(
            anomaly_map.shape, (int(slice_), int(row), int(column)), (across[::-1], rows, columns)
        )  # the last slice is up

    def of(self, volume: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the picture (C, h, w) of a volume (C, slices, H, W); 0 between and below the planes."""
        across, rows, columns = self.lines
        number, row, column = self.voxel
        parts = (
            volume[:, number][:, rows[:, None], columns],  # the slice
            volume[:, :, row][:, across[:, None], columns],
            volume[:, :, :, column][:, across[:, None], rows],
        )
        height = max(part.shape[1] for part in parts)
        width = sum(part.shape[2] for part in parts) + 2 * GAP_PX
        picture = np.zeros((len(volume), height, width), volume.dtype)
        left = 0
        for part in parts:
            picture[:, : part.shape[1], left : left + part.shape[2]] = part
            left += part.shape[2] + GAP_PX
        return picture

    @property
    def inside(self) -> BoolArray:
        """Where the picture (h, w) shows a plane."""
        return np.asarray(self.of(np.broadcast_to(np.True_, (1, *self.shape)))[0], bool)
