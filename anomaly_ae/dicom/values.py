"""From stored DICOM numbers to measured ones: modality LUT, inversion, padding, spacing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from anomaly_ae.errors import UnreadableImageError
from anomaly_ae.records import BoolArray, Image, PixelArray

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


# pydicom finds a number ten times as fast as a name, and most files have none of these.
_N_FRAMES, _MODALITY_LUT, _PADDING = 0x00280008, 0x00283000, 0x00280120
_WINDOW_CENTER, _WINDOW_SEQUENCE = 0x00281050, "FrameVOILUTSequence"
_IN_TEXT = {"RescaleIntercept": 0x00281052, "RescaleSlope": 0x00281053, "PixelSpacing": 0x00280030}
_GROUPS_OF_FRAMES, _GROUPS_OF_ALL = 0x52009230, 0x52009229  # functional groups (PS3.3 C.7.6.16)


def n_frames_of(header: Dataset) -> int:
    """Return NumberOfFrames; an image without it, or with none, has one frame."""
    return int(header.get("NumberOfFrames") or 1) if _N_FRAMES in header else 1


def colour_image(stored: PixelArray, header: Dataset, frame: int, name: str) -> Image:
    """Make an Image of decoded RGB samples or palette indices, (H, W, 3) or (H, W)."""
    if header.PhotometricInterpretation == "PALETTE COLOR":
        from pydicom.pixels.processing import apply_color_lut

        n_entries, first, _ = header.RedPaletteColorLookupTableDescriptor
        rgb = apply_color_lut(np.clip(stored, first, first + (n_entries or 2**16) - 1), header)
        bits = rgb.dtype.itemsize * 8
    else:
        rgb, bits = stored, int(header.BitsStored)
    pixels = np.ascontiguousarray(np.moveaxis(rgb[..., :3], -1, 0))  # (3, H, W)
    return Image(pixels, None, _spacing_mm(header, frame), name, n_frames_of(header), bits)


def grey_image(stored: PixelArray, header: Dataset, frame: int, name: str) -> Image:
    """Make an Image of decoded grey values, (H, W); what is done to them is written at `read_dicom`."""
    is_float = stored.dtype.kind == "f"
    valid = None if is_float else _valid(stored, header)
    if is_float:
        values, ends, bits = stored, None, None  # float pixel data has no modality LUT and no stored range
    elif _MODALITY_LUT in header and header.ModalityLUTSequence:
        values, ends, bits = _look_up(stored, header)
    else:
        values, ends = _rescale(stored, header, frame)
        bits = int(header.BitsStored) if values.dtype.kind in "iu" else None
    window = _window(header, frame)
    if header.PhotometricInterpretation == "MONOCHROME1":
        values = _invert(values, ends, name)
        window = (sum(ends) - window[1], sum(ends) - window[0]) if window and ends else None
    spacing_mm = _spacing_mm(header, frame)
    return Image(values[np.newaxis], valid, spacing_mm, name, n_frames_of(header), bits, window=window)


def _window(header: Dataset, frame: int) -> tuple[float, float] | None:
    """Return the ends of the first window (PS3.3 C.11.2.1.2), or None where there is none, or none with a width."""
    if _WINDOW_CENTER not in header and _GROUPS_OF_FRAMES not in header and _GROUPS_OF_ALL not in header:
        return None
    names = ("WindowCenter", "WindowWidth")
    given = [of_frame(header, frame, _WINDOW_SEQUENCE, name) for name in names]
    center, width = (_first_number(value) for value in given)
    is_exact = of_frame(header, frame, _WINDOW_SEQUENCE, "VOILUTFunction") in ("LINEAR_EXACT", "SIGMOID")
    if center is None or width is None or width <= 0 or (width < 1 and not is_exact):
        return None
    middle, half = (center, width / 2) if is_exact else (center - 0.5, (width - 1) / 2)
    return (middle - half, middle + half)


def _first_number(value: Any) -> float | None:
    """Return the first of several values; None where it is no finite number."""
    try:
        number = float(value[0] if isinstance(value, Sequence) and not isinstance(value, str) else value)
    except (TypeError, ValueError, IndexError):
        return None
    return number if math.isfinite(number) else None


def _look_up(stored: PixelArray, header: Dataset) -> tuple[PixelArray, tuple[float, float], int]:
    """Modality LUT (PS3.3 C.11.1.1): below its first input the first entry, above the last the last."""
    item = header.ModalityLUTSequence[0]
    n_entries, first, bits = item.LUTDescriptor
    first -= 2**16 if header.PixelRepresentation == 1 and first >= 2**15 else 0  # SS written as US
    n_entries = n_entries or 2**16
    data = item.LUTData
    if isinstance(data, bytes):  # OW; entries of 8 bits may be packed two to a word
        is_big_endian = header.original_encoding[1] is False
        data = np.frombuffer(data, "u1" if len(data) < 2 * n_entries else ">u2" if is_big_endian else "<u2")
    table = np.asarray(data)[:n_entries].astype(np.uint8 if bits <= 8 else np.uint16)
    index = np.clip(stored.astype(np.int64) - first, 0, len(table) - 1)
    return table[index], (0, 2**bits - 1), bits


def _rescale(stored: PixelArray, header: Dataset, frame: int) -> tuple[PixelArray, tuple[float, float]]:
    """Return the rescaled values, and the two ends of the stored range rescaled likewise."""
    slope = of_frame(header, frame, "PixelValueTransformationSequence", "RescaleSlope")
    intercept = of_frame(header, frame, "PixelValueTransformationSequence", "RescaleIntercept")
    slope, intercept = float(1 if slope is None else slope), float(0 if intercept is None else intercept)
    low, high = (end * slope + intercept for end in _stored_range(header))
    if slope == 1 and intercept == 0:
        return stored, (low, high)
    if slope.is_integer() and intercept.is_integer():
        is_full = header.BitsStored == 8 * stored.dtype.itemsize
        return _whole_numbers(stored, int(slope), int(intercept), (low, high), is_full), (low, high)
    # float32 holds 24 bits: enough for 16 stored bits and the rounding of the slope, not for more.
    dtype = np.float32 if header.BitsStored <= 16 else np.float64
    return (stored * slope + intercept).astype(dtype), (low, high)


def _stored_range(header: Dataset) -> tuple[int, int]:
    n_values = 2 ** int(header.BitsStored)
    return (-n_values // 2, n_values // 2 - 1) if header.PixelRepresentation == 1 else (0, n_values - 1)


def _whole_numbers(
    stored: PixelArray, slope: int, intercept: int, ends: tuple[float, float], is_full: bool
) -> PixelArray:
    """Rescale in the dtype that holds the device's whole range and every value; ``is_full``: none can lie outside."""
    found = [] if is_full else [int(end) * slope + intercept for end in (stored.min(), stored.max())]
    dtype = _narrowest(*ends, *found)
    values = stored.astype(dtype, copy=not stored.flags.writeable)  # decoded for this image: new memory costs most
    if slope != 1:
        values *= dtype(slope)
    values += dtype(intercept)
    return values


def _narrowest(*numbers: float) -> type[np.signedinteger[Any]]:
    for dtype in (np.int16, np.int32):
        if np.iinfo(dtype).min <= min(numbers) and max(numbers) <= np.iinfo(dtype).max:
            return dtype
    return np.int64


def _narrowed(values: PixelArray, low: float, high: float) -> PixelArray:
    """Cast int64 values to the dtype that holds the device's whole range and every value."""
    return values.astype(_narrowest(low, high, values.min(), values.max()), copy=False)


def _invert(values: PixelArray, ends: tuple[float, float] | None, name: str) -> PixelArray:
    if ends is None:
        raise UnreadableImageError(
            f"{name}: unsupported DICOM colours", "MONOCHROME1 with float pixels has no range to invert in"
        )
    total = ends[0] + ends[1]
    if values.dtype.kind == "f":
        return (total - values).astype(values.dtype)
    inverted = int(total) - values.astype(np.int64)
    info = np.iinfo(values.dtype)
    fits = info.min <= inverted.min() and inverted.max() <= info.max
    return inverted.astype(values.dtype) if fits else _narrowed(inverted, *ends)


def _valid(stored: PixelArray, header: Dataset) -> BoolArray | None:
    if _PADDING not in header:
        return None
    value, limit = header.get("PixelPaddingValue"), header.get("PixelPaddingRangeLimit")
    if not isinstance(value, int):
        return None
    ends = [_as_stored(end, header) for end in (value, limit if isinstance(limit, int) else value)]
    valid: BoolArray = (stored < min(ends)) | (stored > max(ends))
    return None if valid.all() else valid


def _as_stored(value: int, header: Dataset) -> int:
    """Read a padding value in the sign of the pixels: files hold it as US where SS is due."""
    n_values = 1 << int(header.BitsAllocated)
    if header.PixelRepresentation == 1 and value >= n_values // 2:
        return value - n_values
    return value


def _spacing_mm(header: Dataset, frame: int) -> tuple[float, float] | None:
    spacing = of_frame(header, frame, "PixelMeasuresSequence", "PixelSpacing") or header.get("ImagerPixelSpacing")
    if not spacing or len(spacing) != 2:
        return None
    row_mm, column_mm = (float(length) for length in spacing)
    is_length = all(math.isfinite(length) and length > 0 for length in (row_mm, column_mm))
    return (row_mm, column_mm) if is_length else None


def of_frame(header: Dataset, frame: int, sequence: str, attribute: str) -> Any:
    """Attribute of this frame, else of all frames (functional groups, PS3.3 C.7.6.16), else of the image."""
    for groups, index in ((_GROUPS_OF_FRAMES, frame), (_GROUPS_OF_ALL, 0)):
        items = (header[groups].value or []) if groups in header else []
        macro = items[index].get(sequence) if index < len(items) else None
        if macro and attribute in macro[0]:
            return macro[0].get(attribute)
    numbers = _numbers_in_text(header, attribute)
    return header.get(attribute) if numbers is None else numbers


def _numbers_in_text(header: Dataset, attribute: str) -> Any:
    """Return the number, or the numbers, of a decimal string; None where pydicom has to see to it.

    It keeps the text of each number and checks it against the standard, which takes longer than all of the pixels.
    """
    element: Any = header.get_item(_IN_TEXT[attribute]) if attribute in _IN_TEXT else None
    if getattr(element, "VR", "") not in (None, "DS") or not isinstance(element.value, bytes):  # None: it is implicit
        return None
    try:
        numbers = [float(text) for text in element.value.split(b"\\")]
    except ValueError:
        return None
    if not all(map(math.isfinite, numbers)):
        return None
    return numbers if len(numbers) > 1 else numbers[0]
