"""What kind of file it is: by content, and where a folder is scanned by suffix."""

from __future__ import annotations

from pathlib import Path

from anomaly_ae.dicom import is_dicom
from anomaly_ae.dicom.shared import file_head
from anomaly_ae.errors import UnreadableImageError
from anomaly_ae.nifti import is_nifti

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".npy", ".dcm", ".dicom", ".ima", ".nii", ".nii.gz"}
)
"""Lower-case suffixes that a folder scan takes as images."""

FOREIGN_SUFFIXES = frozenset(
    {".webp", ".gif", ".jp2", ".heic", ".heif", ".avif", ".pgm", ".ppm", ".pnm", ".raw", ".dng"}
)
"""Lower-case suffixes of pictures that are not read."""

DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".ima"})
_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x93NUMPY", "NPY"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)
_BMP_HEADER_SIZES = frozenset({12, 40, 52, 56, 64, 108, 124})
_FOREIGN = (
    (b"GIF8", "a GIF"),
    (b"RIFF", "a WebP"),
    (b"\0\0\0\x0cjP", "a JPEG 2000"),
    (b"%PDF", "a PDF"),
    (b"PK", "a ZIP"),
    (b"\x1f\x8b", "a gzip"),
)


def looks_like_image(path: str | Path) -> bool:
    """Whether a folder scan takes the file: by suffix, or by the DICOM magic where the suffix says nothing.

    Many archives name DICOM files by a number or a UID, so a suffix of digits says nothing. Hidden files (the
    "._" companions of macOS) and DICOMDIR are not images.

    >>> looks_like_image("part.PNG"), looks_like_image("._part.png"), looks_like_image("notes.txt")
    (True, False, False)
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if path.name.startswith(".") or path.name.upper() == "DICOMDIR":
        return False
    if suffix in IMAGE_SUFFIXES or path.name.lower().endswith(".nii.gz"):
        return True
    if suffix and not suffix[1:].isdigit():
        return False
    try:
        return is_dicom(file_head(path, path.name))
    except UnreadableImageError:
        return False


def kind_of(path: Path, name: str) -> str:
    """Return the format by content: PNG, JPEG, BMP, TIFF, NPY, DICOM or NIfTI.

    Raises
    ------
    UnreadableImageError
        None of these, or the file cannot be opened.
    """
    head = file_head(path, name)
    if is_dicom(head):  # before TIFF: a DICOM preamble may hold a TIFF header (PS3.10, 7.1)
        return "DICOM"
    if is_nifti(head):
        return "NIfTI"
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in _BMP_HEADER_SIZES:
        return "BMP"
    # Without preamble a DICOM file starts with an element of group 2 or 8.
    if path.suffix.lower() in DICOM_SUFFIXES or head[:2] in (b"\x02\0", b"\x08\0", b"\0\x08"):
        return "DICOM"
    foreign = next((f"it is {what} file" for magic, what in _FOREIGN if head.startswith(magic)), "")
    raise UnreadableImageError(
        f"{name}: is not an image that can be read",
        foreign or "its content is none of PNG, JPEG, BMP, TIFF, NPY, DICOM, NIfTI",
        "convert it to PNG or TIFF, or leave it out",
    )
