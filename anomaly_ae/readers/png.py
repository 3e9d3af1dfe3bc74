"""PNG: an integrity check of the whole file, and a decoder for 16-bit colour, which Pillow reduces to 8 bits.

Specification: W3C, Portable Network Graphics (Third Edition); the clauses named below are of it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from anomaly_ae.dicom.shared import COPY_AGAIN, check_size
from anomaly_ae.errors import UnreadableImageError
from anomaly_ae.records import BoolArray, Image

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_N_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # colour type -> samples per pixel (clause 11.2.1)
_GREY_ALPHA, _RGB, _RGB_ALPHA = 4, 2, 6

UInt8Array = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Png:
    """The parts of a PNG file that matter here: the header (IHDR), the data (IDAT), the transparency (tRNS)."""

    width: int
    height: int
    depth: int
    colour_type: int
    is_interlaced: bool
    data: bytes
    transparency: bytes

    @property
    def is_16_bit_colour(self) -> bool:
        """Whether Pillow would drop the lower 8 bits: more than one sample of 16 bits per pixel."""
        return self.depth == 16 and self.colour_type in (_GREY_ALPHA, _RGB, _RGB_ALPHA)


def parse(file: bytes, name: str) -> Png:
    """Take a PNG file apart; the checksum of every chunk and the size of the image are checked.

    Raises
    ------
    UnreadableImageError
        Truncated, a wrong checksum, an impossible header, or too large.
    """
    chunks = list(_chunks(file, name))
    if chunks[0][0] != b"IHDR" or len(chunks[0][1]) != 13:
        raise UnreadableImageError(f"{name}: damaged PNG file", "it does not start with a header", COPY_AGAIN)
    width, height, depth, colour_type, _, _, interlace = struct.unpack(">IIBBBBB", chunks[0][1])
    check_size(name, (height, width, _N_SAMPLES.get(colour_type, 1)))
    data = b"".join(body for kind, body in chunks if kind == b"IDAT")
    transparency = b"".join(body for kind, body in chunks if kind == b"tRNS")
    return Png(width, height, depth, colour_type, bool(interlace), data, transparency)


def read_16_bit_colour(png: Png, name: str) -> Image:
    """Decode grey with alpha, RGB, or RGBA of 16 bits per sample to (1 or 3, H, W) uint16.

    Raises
    ------
    UnreadableImageError
        Interlaced, or damaged.
    """
    if png.is_interlaced:
        raise UnreadableImageError(
            f"{name}: unsupported PNG file", "16-bit colour and interlaced", "save it without interlacing"
        )
    samples = _samples(png, name)  # (H, W, S)
    valid: BoolArray | None = None
    if png.colour_type != _RGB:
        samples, valid = samples[..., :-1], samples[..., -1] > 0
    elif len(png.transparency) == 6:  # one colour stands for "transparent"
        valid = (samples != np.frombuffer(png.transparency, ">u2")).any(axis=-1)
    return Image(np.moveaxis(samples, -1, 0), valid, source=name, bits_stored=16)


def _chunks(data: bytes, name: str) -> Iterator[tuple[bytes, bytes]]:
    """Yield type and body of every chunk up to IEND (clause 5.3)."""
    position, kind = len(_SIGNATURE), b""
    while kind != b"IEND":
        header = data[position : position + 8]
        length, kind = struct.unpack(">I4s", header) if len(header) == 8 else (0, b"")
        end = position + 8 + length
        if len(header) < 8 or end + 4 > len(data):
            raise UnreadableImageError(f"{name}: truncated PNG file", "it ends before its last part", COPY_AGAIN)
        body = data[position + 8 : end]
        if zlib.crc32(kind + body) != int.from_bytes(data[end : end + 4], "big"):
            raise UnreadableImageError(f"{name}: damaged PNG file", f"wrong checksum at byte {position}", COPY_AGAIN)
        yield kind, body
        position = end + 4


def _samples(png: Png, name: str) -> npt.NDArray[np.uint16]:
    """Inflate and unfilter 16-bit samples: (H, W, S)."""
    n_bytes_px = 2 * _N_SAMPLES[png.colour_type]
    n_bytes_row = 1 + png.width * n_bytes_px  # the filter type, then the samples
    n_bytes = png.height * n_bytes_row
    raw = zlib.decompressobj().decompress(png.data, n_bytes)  # never more than declared
    if len(raw) < n_bytes:
        raise UnreadableImageError(f"{name}: truncated PNG file", f"{n_bytes - len(raw)} bytes missing", COPY_AGAIN)
    rows = np.frombuffer(raw, np.uint8).reshape(png.height, n_bytes_row)
    if rows[:, 0].max() > 4:
        raise UnreadableImageError(f"{name}: damaged PNG file", "unknown row filter", COPY_AGAIN)
    filtered = rows[:, 1:].reshape(png.height, png.width, n_bytes_px)
    unfiltered = _unfilter(rows[:, 0], filtered)
    return unfiltered.view(">u2").astype(np.uint16)


def _unfilter(filters: UInt8Array, filtered: UInt8Array) -> UInt8Array:
    """Undo the row filters (clause 9.2).

    A byte depends on those left, above and above left of it, so the pixels of one antidiagonal, x + y = const, do not
    depend on each other: whole antidiagonals are computed at once. In the padded image, seen as one row of
    pixels, their neighbours are ``width`` apart.

    Parameters
    ----------
    filters : uint8 array, (H,)
        Filter type of each row, 0 to 4.
    filtered : uint8 array, (H, W, bytes per pixel)

    Returns
    -------
    uint8 array, (H, W, bytes per pixel)
    """
    height, width, n_bytes_px = filtered.shape
    padded = np.zeros((height + 1, width + 1, n_bytes_px), np.uint8)  # a zero row above, a zero column to the left
    padded[1:, 1:] = filtered
    flat = padded.reshape(-1, n_bytes_px)
    stride = width + 1
    for diagonal in range(height + width - 1):
        top, bottom = max(0, diagonal - width + 1), min(height, diagonal + 1)  # rows [top, bottom)
        first = (top + 1) * stride + (diagonal - top + 1)
        here, left, above, above_left = (
            flat[first - back : first - back + (bottom - top - 1) * width + 1 : width]
            for back in (0, 1, stride, stride + 1)
        )  # each (bottom - top, bytes per pixel)
        here += _predicted(filters[top:bottom, np.newaxis], left, above, above_left)  # modulo 256
    return np.ascontiguousarray(padded[1:, 1:])


def _predicted(filters: UInt8Array, left: UInt8Array, above: UInt8Array, above_left: UInt8Array) -> UInt8Array:
    a, b, c = (neighbour.astype(np.int16) for neighbour in (left, above, above_left))
    to_left, to_above, to_above_left = abs(b - c), abs(a - c), abs(a + b - 2 * c)
    is_left = (to_left <= to_above) & (to_left <= to_above_left)
    paeth = np.where(is_left, a, np.where(to_above <= to_above_left, b, c))
    prediction: UInt8Array = np.choose(filters, (np.zeros_like(a), a, b, (a + b) >> 1, paeth)).astype(np.uint8)
    return prediction
