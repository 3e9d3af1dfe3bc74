"""NumPy arrays and NPY files; and the form that every image has when it leaves the readers."""

from __future__ import annotations

import math
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from anomaly_ae.dicom.shared import COPY_AGAIN, check_size, decoding, native
from anomaly_ae.errors import UnreadableImageError, UsageError
from anomaly_ae.records import BoolArray, Image, PixelArray
from anomaly_ae.words import times

Axes = Literal["HW", "HWC", "CHW"]

_ONE_HEADER_AT_A_TIME = threading.Lock()
"""NumPy parses headers with the compiler of Python, whose depth counter threads share before 3.11.8 and 3.12.1
(SystemError "AST constructor recursion depth mismatch", CPython issue 106905)."""

_COLOURS = 4  # so many on an axis are channels, however small the image
_MOST_CHANNELS = 64  # more than these on an axis is taken for a height or width
_CLEARLY_SMALLER = 4  # so many times shorter than height and width is an axis of channels


def channels_first(pixels: PixelArray, axes: Axes | None, name: str) -> PixelArray:
    """Return the array as (C, H, W).

    Parameters
    ----------
    pixels : array
        (H, W), (H, W, C) or (C, H, W).
    axes : "HW", "HWC", "CHW" or None
        None: two axes are HW; three are HWC if the last has at most 4 entries, else CHW if the first has; else the
        same for an axis of at most 64 entries that is at most a quarter of both others.
    name : str
        What messages call the image.

    Raises
    ------
    UnreadableImageError
        `axes` is None and the rule does not tell.
    UsageError
        `axes` is unknown or has another number of axes than the array.
    """
    axes = axes if axes is not None else _guess_axes(pixels.shape, name)
    if axes not in ("HW", "HWC", "CHW"):
        raise UsageError(f"{name}: unknown axes {axes!r}", "", 'use "HW", "HWC" or "CHW"')
    if pixels.ndim != len(axes):
        raise UsageError(
            f"{name}: axes {axes!r} do not fit an array of {times(pixels.shape)}", f"it has {pixels.ndim} axes"
        )
    match axes:
        case "HW":
            return pixels[np.newaxis]
        case "HWC":
            return np.moveaxis(pixels, -1, 0)
    return pixels


def unmasked(channels: PixelArray) -> BoolArray | None:
    """Return where no channel (C, *spatial) of a masked array is masked: (*spatial); None for any other array."""
    if not isinstance(channels, np.ma.MaskedArray):
        return None
    return np.logical_not(np.ma.getmaskarray(channels).any(axis=0))


def _guess_axes(shape: tuple[int, ...], name: str) -> Axes:
    if len(shape) == 2:
        return "HW"
    if len(shape) == 3:
        first, middle, last = shape
        if last <= _COLOURS:
            return "HWC"
        if first <= _COLOURS:
            return "CHW"
        if last <= min(_MOST_CHANNELS, first / _CLEARLY_SMALLER, middle / _CLEARLY_SMALLER):
            return "HWC"
        if first <= min(_MOST_CHANNELS, middle / _CLEARLY_SMALLER, last / _CLEARLY_SMALLER):
            return "CHW"
    raise UnreadableImageError(
        f"{name}: cannot tell the axes of an array of {' x '.join(str(n) for n in shape) or 'no axes'}",
        f"an image is (H, W), (H, W, C) or (C, H, W), where C is at most {_COLOURS}, or at most {_MOST_CHANNELS} and a "
        "quarter of H and W",
        "save a volume slice by slice, and channels as one file each, joined by '|' in the `path` of a manifest CSV; "
        'in Python, give axes="HWC" or axes="CHW"',
    )


def read_npy(path: Path, name: str) -> Image:
    """Read an NPY file. Pickled content is refused; a fourth channel is a channel, not transparency."""
    with decoding(name, "NPY file"):
        with path.open("rb") as file:
            shape, fortran_order, dtype = _npy_header(file, name)
            n_missing = file.tell() + math.prod(shape) * dtype.itemsize - path.stat().st_size
            check_dtype(dtype, name)
            check_size(name, shape or (0,))
            if n_missing > 0:
                raise UnreadableImageError(f"{name}: truncated NPY file", f"{n_missing} bytes missing", COPY_AGAIN)
            values = np.fromfile(file, dtype, math.prod(shape))
        pixels = values.reshape(shape, order="F" if fortran_order else "C")
        return finish(Image(channels_first(pixels, None, name), source=name))


def _npy_header(file: BinaryIO, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, whether the first axis varies fastest, and type."""
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise UnreadableImageError(
            f"{name}: unsupported NPY version {version[0]}.{version[1]}", "versions 1.0 and 2.0 are read"
        )
    with _ONE_HEADER_AT_A_TIME:
        return readers[version](file)


def check_dtype(dtype: np.dtype[Any], name: str) -> None:
    """Refuse everything but booleans, integers and real floats.

    Raises
    ------
    UnreadableImageError
        Complex numbers, objects, strings, dates, structures.
    """
    if dtype.kind not in "biuf":
        raise UnreadableImageError(
            f"{name}: pixels of type {dtype.name}",
            "an image has boolean, integer or float pixels",
            "save the magnitude, or one field, as numbers",
        )


def finish(image: Image) -> Image:
    """Bring an image into the one form that all readers return.

    Native byte order, contiguous; booleans as uint8 0/1; floats longer than 64 bits as float64; three equal
    channels as one; `bits_stored` of integers filled in where the file did not say; `valid` None where it is True
    everywhere. Whether all values are finite is for `only_finite` to say, once every mask is known.

    Raises
    ------
    UnreadableImageError
        No numbers, or no pixels.
    """
    pixels, bits = image.pixels, image.bits_stored
    check_dtype(pixels.dtype, image.source)
    check_size(image.source, pixels.shape)
    if pixels.dtype.kind != "f":
        bits = bits or (1 if pixels.dtype.kind == "b" else pixels.dtype.itemsize * 8)
    is_grey_rgb = len(pixels) == 3 and all(np.array_equal(pixels[0], channel) for channel in pixels[1:])
    pixels = _plain(pixels[:1] if is_grey_rgb else pixels)
    valid = None if image.valid is None or image.valid.all() else np.ascontiguousarray(image.valid)
    was_grey_rgb = image.was_grey_rgb or is_grey_rgb
    return replace(image, pixels=pixels, valid=valid, bits_stored=bits, was_grey_rgb=was_grey_rgb)


def _plain(pixels: PixelArray) -> PixelArray:
    if pixels.dtype.kind == "b":
        pixels = pixels.astype(np.uint8)
    if pixels.dtype.kind == "f" and pixels.dtype.itemsize > 8:
        pixels = pixels.astype(np.float64)
    return np.ascontiguousarray(native(pixels))


def only_finite(image: Image) -> Image:
    """Put 0 for NaN and infinite values where `valid` is False.

    Raises
    ------
    UnreadableImageError
        There are such values elsewhere.
    """
    pixels, valid = image.pixels, image.valid
    if pixels.dtype.kind != "f" or np.isfinite(pixels).all():
        return image
    is_bad = ~np.isfinite(pixels)
    n_bad = int((is_bad if valid is None else is_bad & valid).sum())
    if n_bad:
        raise UnreadableImageError(
            f"{image.source}: {n_bad} of {pixels.size} values are NaN or infinite",
            "no score can be computed from them",
            "replace them by numbers, or mark them by an alpha channel or a valid mask",
        )
    return replace(image, pixels=np.where(is_bad, pixels.dtype.type(0), pixels))
