"""TIFF by tifffile; LZW and JPEG compression by Pillow where tifffile needs a package for it that is not there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from anomaly_ae.dicom.shared import COPY_AGAIN, check_frame, check_inflated_size, check_size, decoding
from anomaly_ae.errors import UnreadableImageError
from anomaly_ae.readers.arrays import finish
from anomaly_ae.readers.pillow import from_pillow
from anomaly_ae.records import BoolArray, Image, PixelArray

# Numbers of the TIFF 6.0 specification: tags 262 (photometric interpretation), 338, 259, 274.
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE = 0, 1, 2, 3
_PHOTOMETRIC = {_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE}
_ALPHA = {1, 2}  # associated, unassociated
_JPEG = {6, 7}
_DEFLATE = {8, 32946}
_LZMA, _PACKBITS = 34925, 32773
_ORIENTATION = 274


def count_tiff_frames(path: Path, name: str) -> int:
    """Return the number of pages; no pixel is read."""
    import tifffile

    with decoding(name, "TIFF file"), tifffile.TiffFile(path) as tiff:
        return len(tiff.pages)


def read_tiff(path: Path, name: str, frame: int) -> Image:
    """Read one page.

    Returns
    -------
    Image
        ``pixels``: (C, H, W) in the file's dtype, turned as the orientation tag says. A palette becomes RGB;
        "white is zero" is inverted in the range of its bits, so that white is high. Further samples are
        channels, except those declared as alpha, of which the first becomes `valid`.

    Raises
    ------
    UnreadableImageError
        Truncated, damaged, too large, an unknown compression or colour, `frame` out of range.
    """
    import tifffile

    with decoding(name, "TIFF file"), tifffile.TiffFile(path) as tiff:
        n_frames = len(tiff.pages)
        check_frame(name, frame, n_frames)
        page = tiff.pages[frame]
        _check_page(page, tiff.filehandle.size, name)
        samples = None if page.compression in _JPEG else _samples(page)
        if samples is None:
            return _read_with_pillow(path, page, name, frame, n_frames)
        pixels, valid = _colours(samples, page, name)
        pixels, valid = _turned(pixels, page), None if valid is None else _turned(valid, page)
        bits = int(page.bitspersample) if pixels.dtype.kind in "bui" else None
        bits = pixels.dtype.itemsize * 8 if page.photometric == _PALETTE else bits
        return finish(Image(pixels, valid, source=name, n_frames=n_frames, bits_stored=bits))


def _check_page(page: Any, n_bytes_file: int, name: str) -> None:
    check_size(name, (page.imagelength, page.imagewidth, page.samplesperpixel, page.imagedepth))
    check_size(name, page.chunks)  # a strip or tile can be declared larger than the page
    if page.imagedepth > 1:
        raise UnreadableImageError(
            f"{name}: unsupported TIFF file", f"{page.imagedepth} slices in one page", "save one slice per page"
        )
    if page.photometric not in _PHOTOMETRIC and page.compression not in _JPEG:
        colours = getattr(page.photometric, "name", page.photometric)
        raise UnreadableImageError(f"{name}: unsupported TIFF colours {colours}", "", "convert it to RGB or grey")
    # tifffile fills parts that are not there with zeros; half a picture must not pass for a whole one.
    parts = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    is_whole = all(n_bytes > 0 and start + n_bytes <= n_bytes_file for start, n_bytes in parts)
    if not is_whole or len(parts) < math.prod(page.chunked):
        raise UnreadableImageError(f"{name}: truncated TIFF file", "parts of the image are missing", COPY_AGAIN)
    _check_parts(page, parts, name)


def _check_parts(page: Any, parts: Sequence[tuple[int, int]], name: str) -> None:
    """Refuse compressed parts that would become more than an image can be; tifffile inflates any amount."""
    n_bytes_part = math.prod(page.chunks) * page.bitspersample // 8
    for start, n_bytes in parts if page.compression in (*_DEFLATE, _LZMA, _PACKBITS) else ():
        if page.compression == _PACKBITS:  # each byte of runs may become 64
            if n_bytes > 2 * n_bytes_part + page.chunks[0]:
                why = f"{n_bytes:,} bytes of runs for {n_bytes_part:,}"
                raise UnreadableImageError(f"{name}: damaged TIFF file", why, COPY_AGAIN)
            continue
        page.parent.filehandle.seek(start)
        check_inflated_size(name, page.parent.filehandle.read(n_bytes), is_lzma=page.compression == _LZMA)


def _samples(page: Any) -> PixelArray | None:
    """Decode to (H, W, S); None where tifffile lacks the decoder."""
    try:
        decoded = page.asarray(squeeze=False)  # (S, 1, H, W, 1) planar, (1, 1, H, W, S) interleaved
    except ValueError as error:
        if "imagecodecs" in str(error):
            return None
        raise
    return np.asarray(np.moveaxis(decoded[:, 0, :, :, 0], 0, -1) if len(decoded) > 1 else decoded[0, 0])


def _colours(samples: PixelArray, page: Any, name: str) -> tuple[PixelArray, BoolArray | None]:
    """Return channels (C, H, W) and `valid` (H, W)."""
    if page.photometric == _PALETTE:
        table = page.colormap >> 8 if page.colormap.max() > 255 else page.colormap  # (3, n): 16 bits by the standard
        return table.astype(np.uint8)[:, samples[..., 0]], None
    if page.photometric == _WHITE_IS_ZERO:
        samples = _inverted(samples, page, name)
    first_extra = samples.shape[-1] - len(page.extrasamples)
    alphas = [first_extra + i for i, kind in enumerate(page.extrasamples) if kind in _ALPHA]
    valid = samples[..., alphas[0]] > 0 if alphas else None
    return np.delete(np.moveaxis(samples, -1, 0), alphas, axis=0), valid


def _inverted(samples: PixelArray, page: Any, name: str) -> PixelArray:
    if samples.dtype.kind not in "bu" or page.extrasamples:
        raise UnreadableImageError(
            f"{name}: unsupported TIFF colours",
            'signed, float or alpha samples with "white is zero"',
            "save it as grey",
        )
    samples = samples.astype(np.uint8) if samples.dtype.kind == "b" else samples
    inverted: PixelArray = samples.dtype.type(2 ** int(page.bitspersample) - 1) - samples
    return inverted


def _turned(array: PixelArray, page: Any) -> PixelArray:
    """Apply the orientation tag to the last two axes."""
    tag = page.tags.get(_ORIENTATION)
    orientation = int(tag.value) if tag is not None else 1
    if orientation >= 5:  # rows and columns are exchanged; what is left is one of the first four
        array, orientation = array.swapaxes(-1, -2), {5: 1, 6: 2, 7: 3, 8: 4}.get(orientation, 1)
    flips = {2: (-1,), 3: (-2, -1), 4: (-2,)}.get(orientation, ())
    return np.flip(array, flips)


def _read_with_pillow(path: Path, page: Any, name: str, frame: int, n_frames: int) -> Image:
    from PIL.TiffImagePlugin import TiffImageFile

    if not _is_exact_in_pillow(page):
        raise UnreadableImageError(
            f"{name}: unsupported TIFF compression {getattr(page.compression, 'name', page.compression)}",
            f"with {page.samplesperpixel} samples of {page.bitspersample} bits it needs the package imagecodecs",
            "save it uncompressed or with deflate, or install imagecodecs",
        )
    with TiffImageFile(path) as picture:
        picture.seek(frame)
        image = from_pillow(picture, name, page.bitspersample)
    return replace(image, n_frames=n_frames)


def _is_exact_in_pillow(page: Any) -> bool:
    """Whether Pillow gives all bits unchanged: up to 8 bits, and 16-bit grey; it divides by associated alpha."""
    if page.dtype is None or page.dtype.kind not in "bu" or 1 in page.extrasamples:
        return False
    if page.bitspersample <= 8:
        return True
    return bool(page.bitspersample == 16 and page.samplesperpixel == 1 and page.photometric == _BLACK_IS_ZERO)
