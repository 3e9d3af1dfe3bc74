"""What images there are, what is known about them, and what would make results false.

`table` reads and writes the CSV, `discover` turns folders into a manifest, `splits` cuts it by group;
`facts`, `checks` and `scanning` look at every image once. The contract: docs/reference/manifest.md.
"""

from anomaly_ae.manifest.checks import Refusal, check_groups
from anomaly_ae.manifest.discover import load_manifest, manifest_from_paths
from anomaly_ae.manifest.foreground import with_foreground
from anomaly_ae.manifest.naming import renamed
from anomaly_ae.manifest.scanning import Count, ScanReport, scan
from anomaly_ae.manifest.slices import counted_for_unit, largest_spacing_mm
from anomaly_ae.manifest.splits import MIN_NORMALS, lesion_free, make_folds, roles, split_normals
from anomaly_ae.manifest.table import FIT_SPLITS, Manifest, write_manifest
from anomaly_ae.manifest.volumes import slice_spacing_mm, taken, volumes_of

__all__ = [
    "FIT_SPLITS",
    "MIN_NORMALS",
    "Count",
    "Manifest",
    "Refusal",
    "ScanReport",
    "check_groups",
    "counted_for_unit",
    "largest_spacing_mm",
    "lesion_free",
    "load_manifest",
    "make_folds",
    "manifest_from_paths",
    "renamed",
    "roles",
    "scan",
    "slice_spacing_mm",
    "split_normals",
    "taken",
    "volumes_of",
    "with_foreground",
    "write_manifest",
]
