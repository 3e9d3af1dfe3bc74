"""Images in: one Image of a file, several files, an array, a Pillow picture or a DICOM data set."""

from anomaly_ae.dicom.shared import MAX_PIXELS
from anomaly_ae.readers.arrays import Axes
from anomaly_ae.readers.hashes import image_sha256, pixel_sha256
from anomaly_ae.readers.kinds import DICOM_SUFFIXES, FOREIGN_SUFFIXES, IMAGE_SUFFIXES, looks_like_image
from anomaly_ae.readers.read import (
    MASK_SEPARATOR,
    count_frames,
    image_from,
    mask_files,
    read_channels,
    read_image,
    read_mask,
)
from anomaly_ae.readers.volume import read_volume, read_volume_mask, volume_from, volume_percentiles

__all__ = [
    "DICOM_SUFFIXES",
    "FOREIGN_SUFFIXES",
    "IMAGE_SUFFIXES",
    "MASK_SEPARATOR",
    "MAX_PIXELS",
    "Axes",
    "count_frames",
    "image_from",
    "image_sha256",
    "looks_like_image",
    "mask_files",
    "pixel_sha256",
    "read_channels",
    "read_image",
    "read_mask",
    "read_volume",
    "read_volume_mask",
    "volume_from",
    "volume_percentiles",
]
