"""Anomaly maps out, as volumes that lie voxel by voxel on the NIfTI file that was read."""

from __future__ import annotations

import gzip
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from anomaly_ae.dicom.shared import decoding
from anomaly_ae.files import cannot_write, write_bytes
from anomaly_ae.nifti.read import read_header
from anomaly_ae.records import FloatArray, PixelArray

_GEOMETRY = (
    *("dim", "pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)


def write_slice(path: Path, source: Path, frame: int, values: FloatArray) -> None:
    """Put a map into a volume in the order, place and version of its source; the file is made for its first slice.

    What is never put stays 0. Of the source's header only the geometry is copied: its texts may name the patient.

    Parameters
    ----------
    path : Path
        Ends in ``.nii``; 32-bit float.
    source : Path
        The NIfTI file that the slice was read from by `read_nifti`.
    frame : int
    values : array, (H, W)

    Raises
    ------
    UnreadableImageError
        The source has gone or changed.
    OutputError
        The disk refuses.
    """
    from nibabel.orientations import apply_orientation

    with decoding(str(source), "NIfTI file"):
        header, grid, shape = read_header(source)
    if not path.exists():
        _make_volume(path, header)
    time, number = divmod(frame, grid.n_slices)
    try:
        whole = np.memmap(path, np.float32, "r+", header.single_vox_offset, shape, "F")
        canonical = apply_orientation(whole, grid.turns)[..., time]  # a view of the file
        np.moveaxis(canonical, grid.slice_axis, 0)[number] = values[::-1, ::-1].T
        whole.flush()
    except OSError as error:
        raise cannot_write(path, error) from error


def _make_volume(path: Path, source_header: Any) -> None:
    header = type(source_header)()
    for field in _GEOMETRY:
        header[field] = source_header[field]
    header.set_data_dtype(np.float32)
    header["vox_offset"] = header.single_vox_offset
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            header.write_to(file)
            file.truncate(header.single_vox_offset + math.prod(header.get_data_shape()) * 4)
    except OSError as error:
        raise cannot_write(path, error) from error


def write_volume(path: Path, voxels: PixelArray, spacing_mm: Sequence[float]) -> None:
    """Write a volume (right, front, top) with its middle at 0 mm; a name that ends in ``.gz`` is compressed.

    Raises
    ------
    OutputError
        The disk refuses.
    """
    from nibabel import Nifti1Image

    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = [-(n - 1) / 2 * mm for n, mm in zip(voxels.shape, spacing_mm, strict=True)]
    image = Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    content = image.to_bytes()
    write_bytes(path, gzip.compress(content, 1, mtime=0) if path.suffix == ".gz" else content)
