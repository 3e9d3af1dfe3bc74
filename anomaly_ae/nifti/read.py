"""NIfTI volumes in, one slice at a time.

Inside, a volume lies in the closest canonical orientation: its axes run to the patient's right, front and top. Slices
are cut across the axis with the largest voxel spacing: the one that the scanner acquired slice by slice.
"""

from __future__ import annotations

import gzip
import math
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from anomaly_ae.dicom.shared import COPY_AGAIN, check_frame, check_size, decoding, file_head
from anomaly_ae.errors import UnreadableImageError
from anomaly_ae.files import file_state
from anomaly_ae.records import FloatArray, Image, PixelArray
from anomaly_ae.words import times

SAME_SPACING = 0.99
"""Voxel spacings that differ by less than 1 % are one: rounding must not choose the slice axis."""

SAME_PLACE = 0.5
"""Two grids are one where no corner lies further apart than half of the smallest voxel spacing."""

_GZIP = b"\x1f\x8b"
_MM_PER = {"meter": 1000.0, "mm": 1.0, "micron": 0.001}
_KEPT_VOLUMES, _KEPT_BYTES = 8, 2**30  # decoded: several channels, a mask and a valid mask of one patient


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Where the voxels of a file lie, in canonical orientation.

    Attributes
    ----------
    shape : tuple of int
        Voxels towards right, front and top.
    n_times : int
        Volumes in a 4-D file, else 1.
    spacing_mm : tuple of float
        Distance of neighbouring voxels along the same axes.
    affine : float64 array, (4, 4)
        From voxel numbers to mm.
    turns : float64 array, (3, 2)
        nibabel's orientation: from the axes of the file to the canonical ones.
    """

    shape: tuple[int, int, int]
    n_times: int
    spacing_mm: tuple[float, float, float]
    affine: FloatArray
    turns: FloatArray

    @property
    def slice_axis(self) -> int:
        """Axis that slices are cut across: of one voxel, else of the largest spacing; of several the last."""
        flat = [axis for axis in range(3) if self.shape[axis] == 1]
        wide = [axis for axis in range(3) if self.spacing_mm[axis] >= SAME_SPACING * max(self.spacing_mm)]
        return (flat or wide)[-1]

    @property
    def n_slices(self) -> int:
        """Slices of one volume."""
        return self.shape[self.slice_axis]

    @property
    def slice_spacing_mm(self) -> float:
        """Distance of neighbouring slices."""
        return self.spacing_mm[self.slice_axis]


@dataclass(frozen=True, slots=True, eq=False)
class _File:
    """A file whose header was read; the numbers are those stored, without slope and intercept."""

    grid: Grid
    stored: PixelArray  # (right, front, top, time), a view where the file is not compressed
    slope: float
    intercept: float


def is_nifti(head: bytes) -> bool:
    """Whether a file that starts with `head` (512 bytes or more) is NIfTI-1 or NIfTI-2 in one file, gzip or not.

    >>> is_nifti(bytes(344) + b"n+1\\0"), is_nifti(gzip.compress(bytes(344) + b"n+1\\0")), is_nifti(bytes(512))
    (True, True, False)
    """
    if head.startswith(_GZIP):
        try:
            head = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head, 540)
        except zlib.error:
            return False
    return head[344:348] == b"n+1\0" or head[4:8] == b"n+2\0"


def is_nifti_file(path: Path) -> bool:
    """Whether a file is there and NIfTI by its content."""
    try:
        return is_nifti(file_head(path, str(path)))
    except UnreadableImageError:
        return False


def count_nifti_frames(path: str | Path) -> int:
    """Return the number of slices, of all times together; only the header is read.

    Raises
    ------
    UnreadableImageError
        As `read_nifti`.
    """
    grid = read_grid(path)
    return grid.n_slices * grid.n_times


def volume_frames(path: str | Path, frame: int) -> range:
    """Return the frames of the volume that a frame belongs to: all slices of one time."""
    n_slices = read_grid(path).n_slices
    first = frame // n_slices * n_slices
    return range(first, first + n_slices)


def read_nifti(path: str | Path, frame: int = 0) -> Image:
    """Read one slice of a NIfTI file.

    Parameters
    ----------
    path : path
        NIfTI-1 or NIfTI-2 in one file, as it is or with gzip.
    frame : int
        ``time * n_slices + slice``. Slices are counted in canonical orientation along `Grid.slice_axis`, so
        from left, back or bottom, whatever the order in the file.

    Returns
    -------
    Image
        ``pixels``: (1, H, W) after slope and intercept: in the stored type where they change nothing, else float32
        (float64 beyond 16 stored bits). Rows and columns run as in radiology: the top or front is up, the
        patient's right or front is left. ``spacing_mm``: of rows and columns.

    Raises
    ------
    UnreadableImageError
        Damaged, truncated, too large, complex or colour voxels, more than four axes, no `frame`, or nibabel is
        not installed.
    """
    name = str(path)
    with decoding(name, "NIfTI file"):
        file = _open(Path(path), name)
        grid, axis = file.grid, file.grid.slice_axis
        check_frame(name, frame, grid.n_slices * grid.n_times)
        time, number = divmod(frame, grid.n_slices)
        plane = np.moveaxis(file.stored[..., time], axis, 0)[number]  # (lower axis, higher axis)
        pixels = _scaled(plane, file.slope, file.intercept).T[::-1, ::-1]
        columns_mm, rows_mm = (grid.spacing_mm[other] for other in range(3) if other != axis)
        n_frames = grid.n_slices * grid.n_times
        return Image(np.ascontiguousarray(pixels)[np.newaxis], None, (rows_mm, columns_mm), name, n_frames)


def read_grid(path: str | Path) -> Grid:
    """Return where the voxels lie; only the header is read.

    Raises
    ------
    UnreadableImageError
        As `read_nifti`.
    """
    name = str(path)
    with decoding(name, "NIfTI file"):
        file_head(Path(path), name)
        return _grid_of(*file_state(path))


def grid_problem(first: str | Path, other: str | Path) -> str:
    """Return why two files do not lie voxel on voxel, "" if they do. Times do not count: one mask serves all.

    Raises
    ------
    UnreadableImageError
        One of them is no NIfTI file.
    """
    one, two = read_grid(first), read_grid(other)
    if one.shape != two.shape:
        return f"{times(two.shape)} voxels, not {times(one.shape)} (right, front, top)"
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(one.shape) - 1)  # (8, 3)
    apart = np.abs((one.affine - two.affine)[:3] @ np.c_[corners, np.ones(8)].T).max()
    if apart > SAME_PLACE * min(one.spacing_mm):
        return f"its affine puts voxels up to {apart:.3g} mm elsewhere"
    return ""


# --- headers ------------------------------------------------------------


@lru_cache(maxsize=256)
def _grid_of(name: str, _changed: int, _n_bytes: int) -> Grid:
    return read_header(Path(name))[1]


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open by content: many files are called .nii.gz and are not compressed, or the other way round."""
    with path.open("rb") as file:
        is_compressed = file.read(2) == _GZIP
        file.seek(0)
        if is_compressed:
            with gzip.GzipFile(fileobj=file) as inflated:
                yield inflated  # type: ignore[misc]
        else:
            yield file


def _header(file: BinaryIO, name: str) -> Any:
    try:
        from nibabel.nifti1 import Nifti1Header
        from nibabel.nifti2 import Nifti2Header
    except ImportError:
        raise UnreadableImageError(
            f"{name}: is a NIfTI file", "the package nibabel is not installed", "pip install 'anomaly-ae[medical]'"
        ) from None
    is_second = file.read(8)[4:8] == b"n+2\0"
    file.seek(0)
    return (Nifti2Header if is_second else Nifti1Header).from_fileobj(file)


def _shape(header: Any, name: str) -> tuple[int, int, int, int]:
    """Return voxels along the axes of the file, and times."""
    shape = [int(length) for length in header.get_data_shape()]
    while len(shape) > 4 and shape[-1] == 1:
        shape.pop()
    if len(shape) > 4:
        raise UnreadableImageError(
            f"{name}: unsupported NIfTI file", f"{len(shape)} axes", "save one volume per component, with 3 or 4 axes"
        )
    if any(length < 1 for length in shape):
        raise UnreadableImageError(f"{name}: declares {times(tuple(shape))} voxels", "an axis is empty", COPY_AGAIN)
    a, b, c, d, *_ = (*shape, 1, 1, 1, 1)
    return a, b, c, d


def read_header(path: Path) -> tuple[Any, Grid, tuple[int, int, int, int]]:
    """Return nibabel's header, the grid, and the voxels along the axes of the file, with times."""
    with _opened(path) as file:
        header = _header(file, str(path))
        return header, _grid(header, str(path)), _shape(header, str(path))


def _grid(header: Any, name: str) -> Grid:
    from nibabel.orientations import inv_ornt_aff, io_orientation

    shape = _shape(header, name)
    in_mm = np.diag([*[_MM_PER.get(header.get_xyzt_units()[0], 1.0)] * 3, 1.0])
    affine = in_mm @ header.get_best_affine()
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    turns = io_orientation(affine) if np.isfinite(affine).all() and lengths.all() else np.full((3, 2), np.nan)
    if not np.isfinite(turns).all():
        why = "its affine says no place for the voxels"
        raise UnreadableImageError(f"{name}: damaged NIfTI file", why, COPY_AGAIN)
    order = np.argsort(turns[:, 0])  # the axis of the file for each canonical one
    canonical = affine @ inv_ornt_aff(turns, shape[:3])
    right, front, top = (int(axis) for axis in order)
    sizes = (float(lengths[right]), float(lengths[front]), float(lengths[top]))
    return Grid((shape[right], shape[front], shape[top]), shape[3], sizes, canonical, turns)


# --- voxels ------------------------------------------------------------


_lock = threading.Lock()
_decoded: OrderedDict[tuple[str, int, int], _File] = OrderedDict()


def _open(path: Path, name: str) -> _File:
    """Map a plain file; decode a compressed one once, not once for each of its slices."""
    if not file_head(path, name).startswith(_GZIP):
        return _load(path, name)
    key = file_state(path)
    with _lock:  # the threads that wait want the next slice of the same volume
        if key not in _decoded:
            _decoded[key] = _load(path, name)
        _decoded.move_to_end(key)
        while len(_decoded) > 1 and (len(_decoded) > _KEPT_VOLUMES or _n_bytes_kept() > _KEPT_BYTES):
            _decoded.popitem(last=False)
        return _decoded[key]


def _n_bytes_kept() -> int:
    return sum(file.stored.nbytes for file in _decoded.values())


def _load(path: Path, name: str) -> _File:
    from nibabel.orientations import apply_orientation

    is_compressed = file_head(path, name).startswith(_GZIP)
    with _opened(path) as file:
        header = _header(file, name)
        shape, grid = _shape(header, name), _grid(header, name)
        _check_voxels(header, shape, name)
        _check_length(header, shape, None if is_compressed else path.stat().st_size, name)
        stored = header.raw_data_from_fileobj(file).reshape(shape, order="F")
        file.read(1)  # at its end gzip compares the checksum
    slope, intercept = header.get_slope_inter()
    turned = apply_orientation(stored, grid.turns)
    return _File(grid, turned, 1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept))


def _check_voxels(header: Any, shape: tuple[int, ...], name: str) -> None:
    dtype = header.get_data_dtype()
    if dtype.kind not in "biuf":
        kind = "complex numbers" if dtype.kind == "c" else "colours"
        fix = "save the magnitude, or one component, as numbers"
        raise UnreadableImageError(f"{name}: unsupported NIfTI voxels", f"{kind}, not grey values", fix)
    check_size(name, sorted(shape[:3])[1:])  # the largest slice


def _check_length(header: Any, shape: tuple[int, ...], n_bytes_file: int | None, name: str) -> None:
    if n_bytes_file is None:
        check_size(name, shape)  # all of it is decoded, and gzip does not say how much that is
        return
    n_missing = header.get_data_offset() + math.prod(shape) * header.get_data_dtype().itemsize - n_bytes_file
    if n_missing > 0:
        raise UnreadableImageError(f"{name}: truncated NIfTI file", f"{n_missing} bytes missing", COPY_AGAIN)


def _scaled(stored: PixelArray, slope: float, intercept: float) -> PixelArray:
    if slope == 1 and intercept == 0:
        return stored
    # float32 holds 24 bits: enough for 16 stored bits and the rounding of the slope, not for more.
    is_short = stored.dtype.itemsize <= (4 if stored.dtype.kind == "f" else 2)
    return (stored * np.float64(slope) + intercept).astype(np.float32 if is_short else np.float64)
