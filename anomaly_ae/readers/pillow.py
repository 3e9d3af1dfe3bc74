"""PNG, JPEG and BMP by Pillow, and pictures that are Pillow's already.

Pillow's plugins are called directly: the file's content chooses the plugin, and the limit on the size is ours instead
of Pillow's warning about decompression bombs, whose settings belong to the whole process.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from anomaly_ae.dicom.shared import COPY_AGAIN, check_size, decoding
from anomaly_ae.errors import UnreadableImageError
from anomaly_ae.readers import png
from anomaly_ae.readers.arrays import finish
from anomaly_ae.records import BoolArray, Image, PixelArray

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

_WITH_ALPHA = {"LA": "LA", "RGBA": "RGBA", "P": "RGBA", "PA": "RGBA"}  # mode -> what it is converted to
_JPEG_HAS_NO_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a length field (T.81, table B.1)
_JPEG_START_OF_SCAN, _JPEG_END = 0xDA, b"\xff\xd9"


def read_with_pillow(path: Path, kind: str, name: str) -> Image:
    """Read a PNG, JPEG or BMP file whole, or not at all.

    Parameters
    ----------
    path : Path
        The file.
    kind : "PNG", "JPEG" or "BMP"
        Found by content.
    name : str
        What messages call the image.

    Raises
    ------
    UnreadableImageError
        Truncated, damaged, too large, or in colours that are not grey or RGB.
    """
    with decoding(name, f"{kind} file"):
        data = path.read_bytes()
        depth = 8
        if kind == "PNG":
            parsed = png.parse(data, name)
            if parsed.is_16_bit_colour:
                return finish(png.read_16_bit_colour(parsed, name))
            depth = parsed.depth
        if kind == "JPEG":
            _check_jpeg_end(data, name)
        picture = _plugin(kind)(BytesIO(data))
        check_size(name, (picture.height, picture.width, len(picture.getbands())))
        if kind == "BMP":
            _check_bmp_end(picture, len(data), name)
        return from_pillow(picture, name, depth)


def from_pillow(picture: PillowImage, name: str, depth: int = 8) -> Image:
    """Turn a Pillow picture into an Image; its EXIF orientation is applied, alpha becomes `valid`.

    Parameters
    ----------
    picture : PIL.Image.Image
        Grey, palette or RGB, with or without alpha.
    name : str
        What messages call the image.
    depth : int
        Bits per sample in the file. Pillow spreads 2 and 4 bits over 0 to 255; that is undone.

    Raises
    ------
    UnreadableImageError
        Colours that are not grey or RGB (CMYK, Lab).
    """
    from PIL import ImageOps

    picture = ImageOps.exif_transpose(picture)
    mode = picture.mode
    if mode not in ("1", "L", "I", "F", "RGB", *_WITH_ALPHA) and not mode.startswith("I;16"):
        raise UnreadableImageError(
            f"{name}: unsupported colours {mode}", "grey, palette, RGB and alpha are read", "convert it to RGB"
        )
    valid: BoolArray | None
    if mode in _WITH_ALPHA:
        samples = np.asarray(picture.convert(_WITH_ALPHA[mode]))  # (H, W, 2 or 4)
        colour, valid = samples[..., :-1], samples[..., -1] > 0
    else:
        colour = np.array(picture).reshape(picture.height, picture.width, -1)  # (H, W, 1 or 3)
        colour = _file_numbers(colour, mode, depth)
        valid = _not_transparent(colour, picture.info.get("transparency"), mode)
    bits = {"1": 1, "L": min(depth, 8), "F": None}.get(mode, colour.dtype.itemsize * 8)
    return finish(Image(np.moveaxis(colour, -1, 0), valid, source=name, bits_stored=bits))


def _file_numbers(colour: PixelArray, mode: str, depth: int) -> PixelArray:
    if mode == "L" and depth in (2, 4):
        return np.asarray(colour // (255 // (2**depth - 1)))
    return colour.astype(np.uint16) if mode == "I" and depth == 16 else colour  # "I": 16-bit PNG in older Pillow


def _not_transparent(colour: PixelArray, key: Any, mode: str) -> BoolArray | None:
    """PNG without alpha can declare one colour transparent: an int for grey, three for RGB."""
    if not isinstance(key, int | tuple):
        return None
    opaque: BoolArray = (colour != np.asarray(bool(key) if mode == "1" else key)).any(axis=-1)
    return opaque


def _plugin(kind: str) -> Any:
    from PIL.BmpImagePlugin import BmpImageFile
    from PIL.JpegImagePlugin import JpegImageFile
    from PIL.PngImagePlugin import PngImageFile

    return {"PNG": PngImageFile, "JPEG": JpegImageFile, "BMP": BmpImageFile}[kind]


def _check_bmp_end(picture: Any, n_bytes: int, name: str) -> None:
    """Refuse a BMP that ends before its last row; compressed ones are refused by Pillow whatever its settings."""
    for codec, (_, _, _, height), start, (_, n_bytes_row, *_) in picture.tile:
        if codec == "raw" and start + height * n_bytes_row > n_bytes:
            raise UnreadableImageError(f"{name}: truncated BMP file", "rows are missing", COPY_AGAIN)


def _check_jpeg_end(data: bytes, name: str) -> None:
    """Refuse a JPEG without end marker: its lower part would be grey, and Pillow can be set to accept that.

    The marker is looked for after the start of the first scan, because a thumbnail before it has its own.
    """
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF and data[position + 1] != _JPEG_START_OF_SCAN:
        has_length = data[position + 1] not in (0xFF, *_JPEG_HAS_NO_LENGTH)
        step = 2 + int.from_bytes(data[position + 2 : position + 4], "big") if has_length else 2
        position += step if data[position + 1] != 0xFF else 1  # 0xFF may be repeated before a marker
    if data.find(_JPEG_END, position) < 0:
        raise UnreadableImageError(f"{name}: truncated JPEG file", "it has no end", COPY_AGAIN)
