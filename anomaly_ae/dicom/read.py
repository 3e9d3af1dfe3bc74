"""One frame of a DICOM file or data set: checks on the header, decoding, and what the numbers then mean.

The display settings of a file (window, VOI LUT, presentation LUT, overlays) are not applied: they say how a
picture is shown, not what was measured. No message holds a header value other than technical attributes.
"""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeGuard

import numpy as np

from anomaly_ae.dicom.shared import (
    COPY_AGAIN,
    check_frame,
    check_inflated_size,
    check_size,
    decoding,
    file_head,
    native,
)
from anomaly_ae.dicom.values import colour_image, grey_image, n_frames_of
from anomaly_ae.errors import UnreadableImageError
from anomaly_ae.records import Image, PixelArray

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_COLOUR = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT"})
_GREY = frozenset({"MONOCHROME1", "MONOCHROME2"})
_REQUIRED = ("Rows", "Columns", "PhotometricInterpretation", "BitsAllocated")
_JPEG_2000 = b"\xff\x4f\xff\x51"  # start of codestream, then image size (T.800, A.5.1)
_START_OF_FRAME = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}  # markers (T.81, B.1; T.87, C.1.1)
_PIXEL_ATTRIBUTES = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


def is_dicom(head: bytes) -> bool:
    """Whether a file that starts with `head` (132 bytes or more) is a DICOM file with preamble (PS3.10, 7.1).

    >>> is_dicom(bytes(128) + b"DICM")
    True
    """
    return head[128:132] == b"DICM"


def count_dicom_frames(path: str | Path) -> int:
    """Return the number of frames of a DICOM image; only the header is read.

    Raises
    ------
    UnreadableImageError
        As `read_dicom`.
    """
    name = str(path)
    with decoding(name, "DICOM file", quote=False):
        return n_frames_of(read_header(path, name)[0])


def read_dicom(source: str | Path | Dataset, frame: int = 0) -> Image:
    """Read one frame of a DICOM image.

    Parameters
    ----------
    source : path or pydicom Dataset
        A file without preamble is read if it has an SOP class, rows and columns. A Dataset is not changed.
    frame : int
        Counted from 0.

    Returns
    -------
    Image
        ``pixels``: (1, H, W), or (3, H, W) for RGB, YBR and palette images, which become RGB.
        Grey values are those after the modality LUT or rescale (PS3.3 C.11.1), so Hounsfield units for CT.
        Their dtype is the stored one where nothing is to be done; int16 or int32 where slope and intercept
        are whole numbers, chosen by the range of the stored bits and so the same for all images of one
        device; else float32 (float64 beyond 16 stored bits). MONOCHROME1 is inverted after that:
        (lowest + highest) - value, both being the ends of the stored range (BitsStored, PixelRepresentation)
        sent through the LUT, the same for every image of one device.
        ``valid``: False from PixelPaddingValue to PixelPaddingRangeLimit (PS3.3 C.7.5.1.1.2), if any is.
        ``spacing_mm``: (row, column) distance: PixelSpacing, of the frame where it has its own, else
        ImagerPixelSpacing, which is measured at the detector and not in the body.
        ``bits_stored``: BitsStored; of the output where there is a LUT; None for float pixels.

    Raises
    ------
    UnreadableImageError
        Not a DICOM file, no image in it, a damaged or unsupported one, a missing decoder,
        `frame` out of range.
    """
    name = str(source) if isinstance(source, str | Path) else "DICOM dataset"
    with decoding(name, "DICOM file", quote=False):
        header, pixels_start = read_header(source, name)
        n_frames = _check_header(header, name, frame)
        decoder = _decoder(header, name)
    with decoding(name, "DICOM pixel data"):
        if n_frames > 1 and _is_plain_file(source, header, decoder):
            stored = _decode_in_file(Path(source), header, name, decoder, frame, pixels_start)
        else:
            stored = _decode(source, name, decoder, frame)  # (H, W) or (H, W, 3)
    with decoding(name, "DICOM file", quote=False):
        if header.PhotometricInterpretation in _GREY:
            return grey_image(stored, header, frame, name)
        return colour_image(stored, header, frame, name)


def read_header(source: str | Path | Dataset, name: str) -> tuple[Dataset, int]:
    """Return all that stands before the pixel data, and where in the file that ends."""
    import pydicom

    if not isinstance(source, str | Path):
        return source, 0
    path = Path(source)
    head = file_head(path, name)
    with path.open("rb") as file:
        _check_deflated(file, name)
        header = pydicom.dcmread(file, stop_before_pixels=True, force=True)
        pixels_start = file.tell()
    # pydicom takes any bytes for a data set when forced; these three make it an image.
    if not is_dicom(head) and not all(key in header for key in ("SOPClassUID", "Rows", "Columns")):
        raise UnreadableImageError(
            f"{name}: is not a DICOM file",
            "neither the DICOM magic number nor the attributes of an image are in it",
            "give the file its right name, or convert it to PNG, TIFF or DICOM",
        )
    return header, pixels_start


def _check_deflated(file: BinaryIO, name: str) -> None:
    """Refuse a deflated data set that is too large; pydicom inflates all of it even for the header."""
    from pydicom.filereader import read_dataset, read_preamble
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    read_preamble(file, force=True)
    # Groups 0 and 2 stand before the deflated data set (PS3.5, A.5).
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag.group > 2)
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        check_inflated_size(name, file.read(), -zlib.MAX_WBITS)
    file.seek(0)


def _check_header(header: Dataset, name: str, frame: int) -> int:
    """Refuse what cannot be decoded to an image, by the header alone; return the number of frames."""
    if any(header.get(key) is None for key in _REQUIRED):
        object_kind = _uid_name(header.get("SOPClassUID"), "object of unknown kind")
        raise UnreadableImageError(
            f"{name}: holds no image", f"it is a DICOM {object_kind} without rows and columns", "leave it out"
        )
    photometric, n_samples = header.PhotometricInterpretation, int(header.get("SamplesPerPixel") or 1)
    if (photometric, n_samples) not in _supported():
        raise UnreadableImageError(
            f"{name}: unsupported DICOM colours",
            f"{_code(photometric)} with {n_samples} sample{'s' if n_samples != 1 else ''} per pixel",
            "convert it to MONOCHROME2 or RGB",
        )
    check_size(name, (int(header.Rows), int(header.Columns), n_samples))
    check_frame(name, frame, n_frames_of(header))
    return n_frames_of(header)


def _supported() -> set[tuple[str, int]]:
    return {(grey, 1) for grey in _GREY} | {("PALETTE COLOR", 1)} | {(colour, 3) for colour in _COLOUR}


def _uid_name(uid: Any, otherwise: str) -> str:
    """Name of a UID; a damaged one can have taken in the elements after it, the patient's name among them."""
    return str(uid.name) if getattr(uid, "is_valid", False) else otherwise


def _code(value: Any) -> str:
    return str(value) if re.fullmatch("[A-Z0-9_ ]{1,16}", str(value)) else "an unknown value"  # VR CS (PS3.5, 6.2)


def _decoder(header: Dataset, name: str) -> Any:
    from pydicom.pixels.decoders.base import get_decoder

    syntax = _transfer_syntax(header)
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise UnreadableImageError(
            f"{name}: unsupported DICOM transfer syntax",
            _uid_name(syntax, "it has no valid UID"),
            "convert it to Explicit VR Little Endian",
        ) from None
    if not decoder.is_available:
        raise UnreadableImageError(
            f"{name}: no decoder for the DICOM transfer syntax {syntax.name}",
            "the packages for it are not installed",
            "pip install 'anomaly-ae[medical]', or convert it to Explicit VR Little Endian",
        )
    return decoder


def _transfer_syntax(header: Dataset) -> Any:
    from pydicom import uid

    declared = getattr(header, "file_meta", {}).get("TransferSyntaxUID")
    if declared:
        return uid.UID(declared)
    is_implicit, is_little_endian = header.original_encoding  # what a file without meta information was read as
    if is_implicit:
        return uid.ImplicitVRLittleEndian
    return uid.ExplicitVRBigEndian if is_little_endian is False else uid.ExplicitVRLittleEndian


def _decode(source: str | Path | Dataset, name: str, decoder: Any, frame: int) -> PixelArray:
    """Decode one frame, the whole file being read."""
    import pydicom
    from pydicom.pixels.utils import as_pixel_options

    dataset = pydicom.dcmread(source, force=True) if isinstance(source, str | Path) else source
    present = [key for key in _PIXEL_ATTRIBUTES if key in dataset]
    if not present:
        raise UnreadableImageError(
            f"{name}: has no complete pixel data", "the file has none, or is cut off within it", COPY_AGAIN
        )
    options = as_pixel_options(dataset, pixel_keyword=present[0])
    if decoder.UID.is_encapsulated:
        _check_compressed(dataset.PixelData, dataset, frame, name)
    pixels, _ = decoder.as_array(dataset, index=frame, validate=True, raw=False, **options)
    return native(np.asarray(pixels))


def _is_plain_file(source: str | Path | Dataset, header: Dataset, decoder: Any) -> TypeGuard[str | Path]:
    """Whether pydicom can reach into the file: not for deflated ones and those without meta information."""
    has_meta = "TransferSyntaxUID" in getattr(header, "file_meta", {})
    return isinstance(source, str | Path) and has_meta and not decoder.UID.is_deflated


def _decode_in_file(path: Path, header: Dataset, name: str, decoder: Any, frame: int, pixels_start: int) -> PixelArray:
    """Decode one frame of a long series without reading the others."""
    from pydicom.encaps import parse_fragments
    from pydicom.pixels.utils import pixel_array

    if decoder.UID.is_encapsulated:
        with path.open("rb") as file:
            file.seek(pixels_start + 12)  # tag, VR and length of the pixel data element
            _, starts = parse_fragments(file)
            file.seek(starts[-1] + 4 if starts else 0)
            end = file.tell() + 4 + int.from_bytes(file.read(4), "little")
            # pydicom hands the half of a frame to the decoders, and some make a picture of it.
            if not starts or end > path.stat().st_size:
                raise UnreadableImageError(f"{name}: truncated DICOM file", "the last frame is cut off", COPY_AGAIN)
            file.seek(pixels_start + 12)
            _check_compressed(file, header, frame, name)
    return native(np.asarray(pixel_array(path, index=frame)))


def _check_compressed(pixel_data: bytes | BinaryIO, header: Dataset, frame: int, name: str) -> None:
    """Refuse a frame that says another size than the header: decoders take memory for what the frame says."""
    from pydicom.encaps import get_frame
    from pydicom.pixels.utils import as_pixel_options

    options = as_pixel_options(header)
    offsets, n_frames = options.get("extended_offsets"), options["number_of_frames"]
    size = _size_in_frame(get_frame(pixel_data, frame, extended_offsets=offsets, number_of_frames=n_frames))
    if size and size != (header.Rows, header.Columns):
        raise UnreadableImageError(
            f"{name}: damaged DICOM pixel data",
            f"the frame is compressed from {size[0]} x {size[1]}, the header declares {header.Rows} x {header.Columns}",
            COPY_AGAIN,
        )


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
