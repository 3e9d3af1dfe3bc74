"""NIfTI in and out. The only user of nibabel, which is imported on first use."""

from anomaly_ae.nifti.read import (
    Grid,
    count_nifti_frames,
    grid_problem,
    is_nifti,
    is_nifti_file,
    read_grid,
    read_nifti,
    volume_frames,
)
from anomaly_ae.nifti.write import write_slice, write_volume

__all__ = [
    "Grid",
    "count_nifti_frames",
    "grid_problem",
    "is_nifti",
    "is_nifti_file",
    "read_grid",
    "read_nifti",
    "volume_frames",
    "write_slice",
    "write_volume",
]
