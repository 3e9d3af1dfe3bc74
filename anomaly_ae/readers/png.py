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
_PILLOW_MODE = {2: "RGB", 4: "LA", 6: "RGBA"}  # of the colour types with more than one sample
_RGB = 2

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
        return self.depth == 16 and self.colour_type in _PILLOW_MODE


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
    """Inflate and unfilter 16-bit samples: (H, W, S).

    A row filter predicts each byte of a pixel from the same byte of its neighbours (clause 9.2). So the high bytes of
    all samples are a picture of 8 bits with the same filters, and the low bytes are another: Pillow unfilters both.
    """
    n_bytes_row = 1 + png.width * 2 * _N_SAMPLES[png.colour_type]  # the filter type, then the samples
    n_bytes = png.height * n_bytes_row
    raw = zlib.decompressobj().decompress(png.data, n_bytes)  # never more than declared
    if len(raw) < n_bytes:
        raise UnreadableImageError(f"{name}: truncated PNG file", f"{n_bytes - len(raw)} bytes missing", COPY_AGAIN)
    rows = np.frombuffer(raw, np.uint8).reshape(png.height, n_bytes_row)
    high, low = (_unfiltered(np.hstack([rows[:, :1], rows[:, first::2]]), png) for first in (1, 2))
    return np.bitwise_or(np.left_shift(high, 8, dtype=np.uint16), low)


def _unfiltered(rows: UInt8Array, png: Png) -> UInt8Array:
    """Undo the row filters of 8-bit samples, (H, 1 + W * S), by Pillow's decoder of PNG data: (H, W, S)."""
    from PIL.Image import frombytes

    mode = _PILLOW_MODE[png.colour_type]
    data = zlib.compress(rows.tobytes(), level=0)  # in zlib's form, but not smaller
    return np.asarray(frombytes(mode, (png.width, png.height), data, "zip", mode))
