"""Compressed DICOM pixel data: a frame is looked at before a decoder takes memory for it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from anomaly_ae.dicom.shared import COPY_AGAIN
from anomaly_ae.errors import UnreadableImageError
from anomaly_ae.records import PixelArray

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_RLE, _RLE_HEADER = "1.2.840.10008.1.2.5", 64  # transfer syntax; bytes before the runs (PS3.5, G.5)
_JPEG_2000 = b"\xff\x4f\xff\x51"  # start of codestream, then image size (T.800, A.5.1)
_START_OF_FRAME = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}  # markers (T.81, B.1; T.87, C.1.1)


def transfer_syntax(header: Dataset) -> Any:
    """Return the UID that a file declares; of a file without meta information the one it was read as."""
    from pydicom import uid

    declared = getattr(header, "file_meta", {}).get("TransferSyntaxUID")
    if declared:
        return declared if isinstance(declared, uid.UID) else uid.UID(declared)
    is_implicit, is_little_endian = header.original_encoding  # what a file without meta information was read as
    if is_implicit:
        return uid.ImplicitVRLittleEndian
    return uid.ExplicitVRBigEndian if is_little_endian is False else uid.ExplicitVRLittleEndian


def check_fragments(file: BinaryIO, path: Path, name: str) -> None:
    """Refuse a file that ends within its last frame; `file` stands at the first fragment."""
    from pydicom.encaps import parse_fragments

    _, starts = parse_fragments(file)
    file.seek(starts[-1] + 4 if starts else 0)
    end = file.tell() + 4 + int.from_bytes(file.read(4), "little")
    # pydicom hands the half of a frame to the decoders, and some make a picture of it.
    if not starts or end > path.stat().st_size:
        raise UnreadableImageError(f"{name}: truncated DICOM file", "the last frame is cut off", COPY_AGAIN)


def checked_frame(pixel_data: bytes | BinaryIO, header: Dataset, frame: int, name: str) -> bytes:
    """Return a compressed frame; refuse one of another size than the header's: decoders take memory for it."""
    from pydicom.encaps import get_frame
    from pydicom.pixels.utils import as_pixel_options

    options = as_pixel_options(header)
    offsets, n_frames = options.get("extended_offsets"), options["number_of_frames"]
    data = get_frame(pixel_data, frame, extended_offsets=offsets, number_of_frames=n_frames)
    size = _size_in_frame(data)
    if size and size != (header.Rows, header.Columns):
        raise UnreadableImageError(
            f"{name}: damaged DICOM pixel data",
            f"the frame is compressed from {size[0]} x {size[1]}, the header declares {header.Rows} x {header.Columns}",
            COPY_AGAIN,
        )
    _check_runs(data, header, name)
    return data


def _check_runs(data: bytes, header: Dataset, name: str) -> None:
    """Refuse runs (RLE) that are longer than the image could need: each byte of them may become 64."""
    n_bytes = header.Rows * header.Columns * int(header.get("SamplesPerPixel") or 1) * header.BitsAllocated // 8
    if transfer_syntax(header) == _RLE and len(data) > 2 * n_bytes + _RLE_HEADER:
        why = f"{len(data):,} compressed bytes for an image of {n_bytes:,}"
        raise UnreadableImageError(f"{name}: damaged DICOM pixel data", why, COPY_AGAIN)


def is_packed_bits(header: Dataset) -> bool:
    """Whether runs hold eight pixels to a byte, as in segmentations; pydicom does not decode these."""
    return bool(transfer_syntax(header) == _RLE and header.BitsAllocated == 1)


def unpacked_bits(data: bytes, header: Dataset) -> PixelArray:
    """Return pixels of one bit, (H, W), from one segment of runs (PS3.5, G.3.1) with eight pixels to a byte.

    >>> from types import SimpleNamespace
    >>> header = SimpleNamespace(Rows=1, Columns=10)
    >>> unpacked_bits(bytes([1, 0, 0, 0, 64]) + bytes(59) + bytes([255, 3]), header)
    array([[1, 1, 0, 0, 0, 0, 0, 0, 1, 1]], dtype=uint8)
    """
    n_pixels = header.Rows * header.Columns
    n_bytes, unpacked, position = -(-n_pixels // 8), bytearray(), _RLE_HEADER
    while len(unpacked) < n_bytes:
        control = data[position]
        length, times = (control + 1, 1) if control < 128 else (1, 257 - control)
        if control != 128:  # which does nothing
            unpacked += data[position + 1 : position + 1 + length] * times
            position += length
        position += 1
    bits = np.unpackbits(np.frombuffer(unpacked, np.uint8), count=n_pixels, bitorder="little")
    return bits.reshape(header.Rows, header.Columns)


def _size_in_frame(data: bytes) -> tuple[int, int] | None:
    """Return height and width that a JPEG 2000, JPEG or JPEG-LS frame declares; None where it does not, as in RLE."""
    if data.startswith(_JPEG_2000) or data[4:8] == b"jP  ":  # bare, or in a JP2 file
        start = data.find(_JPEG_2000)
        right, bottom, left, top = struct.unpack(">4I", data[start + 8 : start + 24])
        return bottom - top, right - left
    position = 2 if data.startswith(b"\xff\xd8") else len(data)
    while position + 9 <= len(data) and data[position] == 0xFF:
        if data[position + 1] in _START_OF_FRAME:
            height, width = struct.unpack(">HH", data[position + 5 : position + 9])
            return (height, width) if height else None  # 0: the height follows the first scan
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None
