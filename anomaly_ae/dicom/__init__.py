"""DICOM images in, results out. The only user of pydicom and highdicom, which are imported on first use.

`shared` lies here because this is the first reader in the order of modules; the other readers import it too.
"""

from anomaly_ae.dicom.outlines import is_segmentation, read_outlines, referred_to
from anomaly_ae.dicom.patients import hashed, remember
from anomaly_ae.dicom.read import count_dicom_frames, is_dicom, read_dicom
from anomaly_ae.dicom.series import FileHeader, SliceHeader, Stack, file_header, stacks
from anomaly_ae.dicom.write import DicomWriter, parse_kinds

__all__ = [
    "DicomWriter",
    "FileHeader",
    "SliceHeader",
    "Stack",
    "count_dicom_frames",
    "file_header",
    "hashed",
    "is_dicom",
    "is_segmentation",
    "parse_kinds",
    "read_dicom",
    "read_outlines",
    "referred_to",
    "remember",
    "stacks",
]
