"""One frame of a DICOM file or data set: checks on the header, decoding, and what the numbers then mean.

The display settings of a file (window, VOI LUT, presentation LUT, overlays) are not applied: they say how a
picture is shown, not what was measured. No message holds a header value other than technical attributes.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeGuard

import numpy as np

from anomaly_ae.dicom.compressed import check_fragments, checked_frame, is_packed_bits, transfer_syntax, unpacked_bits
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
from anomaly_ae.words import n_of

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_COLOUR = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT"})
_GREY = frozenset({"MONOCHROME1", "MONOCHROME2"})
_SUPPORTED = {(grey, 1) for grey in (*_GREY, "PALETTE COLOR")} | {(colour, 3) for colour in _COLOUR}
_UNSUPPORTED = frozenset({"HSV", "ARGB", "CMYK", "YBR_PARTIAL_422", "YBR_PARTIAL_420", "XYB"})  # PS3.3 C.7.6.3.1.2
_REQUIRED = ("Rows", "Columns", "PhotometricInterpretation", "BitsAllocated")
_PIXEL_TAGS = {
    (0x7FE0, 0x0010): "PixelData",
    (0x7FE0, 0x0008): "FloatPixelData",
    (0x7FE0, 0x0009): "DoubleFloatPixelData",
}
_PIXEL_ATTRIBUTES = tuple(_PIXEL_TAGS.values())
_LITTLE_ENDIAN = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")  # implicit and explicit, uncompressed
_DEFLATED, _N_META_BYTES = "1.2.840.10008.1.2.1.99", 2048  # transfer syntax; in so many bytes it mostly stands
_SAMPLES = 0x00280002  # pydicom finds a number faster than a name
_UNDEFINED_LENGTH = 0xFFFFFFFF  # of compressed pixel data


class _Layout(NamedTuple):
    """How the pixels lie in a file; pydicom takes its time for every look at a header, so it is asked once."""

    rows: int
    columns: int
    photometric: str
    bits_allocated: int
    n_samples: int
    n_frames: int

    @property
    def n_bytes(self) -> int:
        """Of all frames where nothing is compressed."""
        return self.rows * self.columns * self.n_samples * self.n_frames * self.bits_allocated // 8


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
        ``window``: the first window of a grey image, in the numbers of ``pixels``; None where there is none.

    Raises
    ------
    UnreadableImageError
        Not a DICOM file, no image in it, a damaged or unsupported one, a missing decoder,
        `frame` out of range.
    """
    name = str(source) if isinstance(source, str | Path) else "DICOM dataset"
    with decoding(name, "DICOM file", quote=False):
        header, pixels_start = read_header(source, name)
        layout = _layout(header, name, frame)
        decoder = _decoder(header, name)
        with decoding(name, "DICOM pixel data"):
            if _is_plain_file(source, decoder):
                stored = _decode_in_file(Path(source), header, layout, name, decoder, frame, pixels_start)
            else:
                stored = _decode(source, header, name, decoder, frame)  # (H, W) or (H, W, 3)
        if layout.photometric in _GREY:
            return grey_image(stored, header, frame, name)
        return colour_image(stored, header, frame, name)


def read_header(source: str | Path | Dataset, name: str) -> tuple[Dataset, int]:
    """Return all that stands before the pixel data, and where in the file that ends."""
    import pydicom

    if not isinstance(source, str | Path):
        return source, 0
    path = Path(source)
    with _opened(path, name) as file:
        head = file.read(_N_META_BYTES) or file_head(path, name)  # which tells of an empty file
        file.seek(0)
        if _declared_syntax(head) in ("", _DEFLATED):
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


def _opened(path: Path, name: str) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError:
        file_head(path, name)  # says why
        raise


def _declared_syntax(head: bytes) -> str:
    r"""Return the transfer syntax that stands in the first bytes of a file; "" where it has to be looked for further.

    >>> _declared_syntax(bytes(128) + b"DICM\x02\0\x10\0UI\x06\x00" + b"1.2.3\0\x08\0")
    '1.2.3'
    """
    position, found = 132 if is_dicom(head) else len(head), []
    while head[position : position + 2] == b"\x02\0" and position + 12 <= len(head):  # explicit VR (PS3.10, 7.1)
        is_long = head[position + 4 : position + 6] in (b"OB", b"OW", b"UN", b"UT", b"SQ", b"UC", b"UR")
        start = position + (12 if is_long else 8)
        end = start + int.from_bytes(head[start - (4 if is_long else 2) : start], "little")
        if head[position + 2 : position + 4] == b"\x10\0":
            found.append(head[start:end].decode("latin-1").rstrip("\0 "))
        position = end
    is_whole = position + 2 <= len(head)  # of two, pydicom takes the second
    return found[0] if is_whole and len(found) == 1 else ""


def _check_deflated(file: BinaryIO, name: str) -> None:
    """Refuse a deflated data set that is too large; pydicom inflates all of it even for the header."""
    from pydicom.filereader import read_dataset, read_preamble

    read_preamble(file, force=True)
    # Groups 0 and 2 stand before the deflated data set (PS3.5, A.5).
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag.group > 2)
    if meta.get("TransferSyntaxUID") == _DEFLATED:
        check_inflated_size(name, file.read(), -zlib.MAX_WBITS)
    file.seek(0)


def stored_frame(dataset: Dataset, name: str, frame: int) -> PixelArray:
    """Return the stored numbers of one frame of a data set, (H, W) or (H, W, 3); nothing is done to them.

    Raises
    ------
    UnreadableImageError
        As `read_dicom`.
    """
    with decoding(name, "DICOM file", quote=False):
        _layout(dataset, name, frame)
        decoder = _decoder(dataset, name)
    with decoding(name, "DICOM pixel data"):
        return _decode(dataset, dataset, name, decoder, frame)


def _layout(header: Dataset, name: str, frame: int) -> _Layout:
    """Return how the pixels lie; refuse what cannot be decoded to an image, by the header alone."""
    rows, columns, photometric, n_bits = required = [header.get(key) for key in _REQUIRED]
    if None in required:
        object_kind = _uid_name(header.get("SOPClassUID"), "object of unknown kind")
        raise UnreadableImageError(
            f"{name}: holds no image", f"it is a DICOM {object_kind} without rows and columns", "leave it out"
        )
    n_samples = int(header.get("SamplesPerPixel") or 1)
    if (photometric, n_samples) not in _SUPPORTED:
        raise UnreadableImageError(
            f"{name}: unsupported DICOM colours",
            f"{_colours(photometric)} with {n_of(n_samples, 'sample')} per pixel",
            "convert it to MONOCHROME2 or RGB",
        )
    check_size(name, (int(rows), int(columns), n_samples))
    n_frames = n_frames_of(header)
    check_frame(name, frame, n_frames)
    return _Layout(int(rows), int(columns), photometric, int(n_bits), n_samples, n_frames)


def _uid_name(uid: Any, otherwise: str) -> str:
    """Name of a UID; a damaged one can have taken in the elements after it, the patient's name among them."""
    return str(uid.name) if getattr(uid, "is_valid", False) else otherwise


def _colours(photometric: Any) -> str:
    """Name colours by their defined term alone: what else stands there may be a patient's name."""
    known = photometric in _UNSUPPORTED or any(photometric == colours for colours, _ in _SUPPORTED)
    return str(photometric) if known else "unknown colours"


def _decoder(header: Dataset, name: str) -> Any:
    from pydicom.pixels.decoders.base import get_decoder

    syntax = transfer_syntax(header)
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
            f"it needs {_packages(decoder)}",
            "pip install 'anomaly-ae[medical]', or convert it to Explicit VR Little Endian",
        )
    return decoder


def _packages(decoder: Any) -> str:
    """Name what could decode, as pydicom knows it: each choice as in a requirements file."""
    choices = [text.partition(" - requires ")[2] for text in decoder.missing_dependencies]
    return ", or ".join(choice for choice in choices if choice) or "packages that are not installed"


def _decode(source: str | Path | Dataset, header: Dataset, name: str, decoder: Any, frame: int) -> PixelArray:
    """Decode one frame of a data set, or of a file of which all is read: that may be deflated."""
    import pydicom
    from pydicom.pixels.utils import as_pixel_options

    dataset = pydicom.dcmread(source, force=True) if isinstance(source, str | Path) else source
    present = [key for key in _PIXEL_ATTRIBUTES if key in dataset]
    if not present:
        raise no_pixels(name)
    if decoder.UID.is_encapsulated:
        packed = checked_frame(dataset.PixelData, dataset, frame, name)
        if is_packed_bits(header):
            return unpacked_bits(packed, header)
    options = as_pixel_options(dataset, pixel_keyword=present[0])
    return _decoded(decoder, dataset, frame, options)


def _decode_in_file(
    path: Path, header: Dataset, layout: _Layout, name: str, decoder: Any, frame: int, pixels_start: int
) -> PixelArray:
    """Decode one frame, with the header that was read already and without reading other frames."""
    from pydicom.pixels.utils import as_pixel_options

    with path.open("rb") as file:
        keyword, vr, n_bytes = _pixel_element(file, header, pixels_start, name)
        start = file.tell()
        if decoder.UID in _LITTLE_ENDIAN and keyword == "PixelData" and _is_plain_grey(header, layout, n_bytes):
            return _as_it_lies(file, header, layout, start, frame)
        options = as_pixel_options(header, pixel_keyword=keyword, transfer_syntax_uid=decoder.UID)
        options |= {"pixel_vr": vr} if vr else {}
        if decoder.UID.is_encapsulated:
            check_fragments(file, path, name)
            file.seek(start)
            packed = checked_frame(file, header, frame, name)
            if is_packed_bits(header):
                return unpacked_bits(packed, header)
            file.seek(start)
        elif layout.n_frames == 1:
            return _decoded(decoder, file.read(n_bytes), frame, options)  # its length is checked, a file's is not
        return _decoded(decoder, file, frame, options)


def _is_plain_grey(header: Dataset, layout: _Layout, n_bytes: int) -> bool:
    """Whether whole numbers lie one after the other, and as many as there should be; it has to say one per pixel."""
    is_grey = layout.photometric in _GREY and layout.bits_allocated in (8, 16, 32) and _SAMPLES in header
    return is_grey and n_bytes in (layout.n_bytes, layout.n_bytes + layout.n_bytes % 2)


def _as_it_lies(file: BinaryIO, header: Dataset, layout: _Layout, start: int, frame: int) -> PixelArray:
    """Read one frame of plain grey, the most common kind: pydicom's way for all kinds takes as long as the header."""
    n_bits = layout.bits_allocated
    stored = np.empty((layout.rows, layout.columns), f"<{'ui'[header.PixelRepresentation]}{n_bits // 8}")
    file.seek(start + frame * stored.nbytes)
    file.readinto(stored.data)  # type: ignore[attr-defined]  # files have it, their common type does not say so
    n_unused = n_bits - header.BitsStored  # what stands in these bits does not count (PS3.5, 8.1.1)
    if n_unused:
        stored <<= n_unused
        stored >>= n_unused
    return native(stored)


def _decoded(decoder: Any, source: Any, frame: int, options: Mapping[str, Any]) -> PixelArray:
    pixels, _ = decoder.as_array(source, index=frame, validate=True, raw=False, **options)
    return native(np.asarray(pixels))


def _pixel_element(file: BinaryIO, header: Dataset, start: int, name: str) -> tuple[str, str, int]:
    """Read tag, VR ("" where it is implicit) and length of the pixel data (PS3.5, 7.1); the file stands behind them."""
    file.seek(start)
    head = file.read(12)
    order = "<" if header.original_encoding[1] is not False else ">"
    is_explicit = head[4:6] in (b"OB", b"OW", b"OF", b"OD", b"UN")
    if len(head) < 12:
        raise no_pixels(name)
    tag = struct.unpack(f"{order}HH", head[:4])
    (n_bytes,) = struct.unpack(f"{order}L", head[8:] if is_explicit else head[4:8])
    file.seek(start + (12 if is_explicit else 8))
    n_left = os.fstat(file.fileno()).st_size - file.tell()
    if tag not in _PIXEL_TAGS or (n_bytes != _UNDEFINED_LENGTH and n_bytes > n_left):
        raise no_pixels(name)
    return _PIXEL_TAGS[tag], head[4:6].decode() if is_explicit else "", n_bytes


def no_pixels(name: str) -> UnreadableImageError:
    """Return the error for a file that ends too early."""
    why = "the file has none, or is cut off within it"
    return UnreadableImageError(f"{name}: has no complete pixel data", why, COPY_AGAIN)


def _is_plain_file(source: str | Path | Dataset, decoder: Any) -> TypeGuard[str | Path]:
    """Whether a frame can be reached in the file itself: not in a deflated one."""
    return isinstance(source, str | Path) and not decoder.UID.is_deflated
