"""DICOM Segmentation objects as masks: which pixels of one image they mark (PS3.3 A.51, C.8.20).

Everything in a segment is marked, whatever the segment is of. Of a fractional segmentation that is from half of its
largest value on; of a label map, which has one number for each pixel, whatever is not its background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from anomaly_ae.dicom.read import is_dicom, no_pixels, read_header, stored_frame
from anomaly_ae.dicom.shared import decoding, file_head
from anomaly_ae.dicom.values import n_frames_of, of_frame
from anomaly_ae.errors import DataError, UnreadableImageError
from anomaly_ae.files import file_state
from anomaly_ae.records import BoolArray, FloatArray, PixelArray

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

SEGMENTATION_CLASSES = frozenset({
    "1.2.840.10008.5.1.4.1.1.66.4",  # Segmentation Storage
    "1.2.840.10008.5.1.4.1.1.66.7",  # Label Map Segmentation Storage
})  # fmt: skip
_SAME_PLACE = 0.5  # of a pixel: as far apart may corners be
_DICOM_OF_THIS_IMAGE = "take the segmentation that was made of this image, or save the mask as an image in its size"


@dataclass(frozen=True, slots=True, eq=False)
class _Segmentation:
    """A file that was read whole: its frames by what they say they are of.

    ``sources`` holds for each frame the images that it names, each with its frames, counted from 0; () = all of them.
    ``series`` and ``images`` are all that the file refers to.
    """

    dataset: Dataset
    sources: tuple[dict[str, tuple[int, ...]], ...]
    series: frozenset[str]
    images: frozenset[str]


def is_segmentation(path: str | Path) -> bool:
    """Whether a file is a DICOM Segmentation; False where it cannot be read."""
    try:
        if not is_dicom(file_head(Path(path), str(path))):
            return False
        return _class_of(*file_state(path)) in SEGMENTATION_CLASSES
    except UnreadableImageError:
        return False


def referred_to(path: str | Path) -> frozenset[str]:
    """Return the UIDs of the series and images that a segmentation refers to.

    Raises
    ------
    UnreadableImageError
        A damaged file.
    """
    with decoding(str(path), "DICOM segmentation", quote=False):
        found = _read(*file_state(path))
    return found.series | found.images


def read_outlines(path: str | Path, image_file: str | Path, frame: int = 0) -> BoolArray:
    """Return which pixels of an image a segmentation marks.

    Frames of the segmentation belong to the image that they name (PS3.3 C.7.6.16.2.6), by its SOP instance UID and, in
    an image of many frames, the number of the frame; where they name none, to what lies at their place. An image that
    no frame is of, but whose series the segmentation names, is an empty slice.

    Parameters
    ----------
    path : path
        A Segmentation: binary, fractional, or a label map.
    image_file : path
        The DICOM image.
    frame : int
        Of the image, counted from 0.

    Returns
    -------
    bool array, (H, W)
        True in any segment.

    Raises
    ------
    UnreadableImageError
        One of the files is damaged.
    DataError
        The segmentation names nothing of this image, or lies on another grid.
    """
    name = str(path)
    with decoding(name, "DICOM segmentation", quote=False):
        found = _read(*file_state(path))
    with decoding(str(image_file), "DICOM file", quote=False):
        image = _header(*file_state(image_file))
        own = _frames_of(found, image, frame, f"{name}: is no mask of {image_file}")
    marked: BoolArray = np.zeros((int(image.Rows), int(image.Columns)), np.bool_)
    for number in own:
        marked |= _inside(stored_frame(found.dataset, name, number), found.dataset)
    return marked


@lru_cache(maxsize=4096)
def _class_of(name: str, _changed: int, _n_bytes: int) -> str:
    with decoding(name, "DICOM file", quote=False):
        return str(read_header(name, name)[0].get("SOPClassUID") or "")


@lru_cache(maxsize=4)
def _header(name: str, _changed: int, _n_bytes: int) -> Dataset:
    """Read the header of an image once for all of its frames."""
    return read_header(name, name)[0]


@lru_cache(maxsize=4)
def _read(name: str, _changed: int, _n_bytes: int) -> _Segmentation:
    """Read a segmentation once for all slices that it serves."""
    import pydicom

    read_header(name, name)  # with its checks
    dataset = pydicom.dcmread(name, force=True)
    if "PixelData" not in dataset:
        raise no_pixels(name)
    sources = tuple(_named_by(dataset, number) for number in range(n_frames_of(dataset)))
    images = {uid for own in sources for uid in own}
    series = set()
    for item in dataset.get("ReferencedSeriesSequence") or []:
        series.add(str(item.get("SeriesInstanceUID")))
        images |= {str(one.get("ReferencedSOPInstanceUID")) for one in item.get("ReferencedInstanceSequence") or []}
    return _Segmentation(dataset, sources, frozenset(series), frozenset(images))


def _named_by(dataset: Dataset, number: int) -> dict[str, tuple[int, ...]]:
    """Return the images, and their frames, that a frame says it was made of."""
    per_frame, shared = (dataset.get(f"{which}FunctionalGroupsSequence") or [] for which in ("PerFrame", "Shared"))
    groups = [*per_frame[number : number + 1], *shared]
    derivations = [one for group in groups for one in group.get("DerivationImageSequence") or []]
    return {
        str(source.get("ReferencedSOPInstanceUID")): tuple(n - 1 for n in _numbers(source.get("ReferencedFrameNumber")))
        for derivation in derivations
        for source in derivation.get("SourceImageSequence") or []
    }


def _numbers(value: Any) -> list[int]:
    """Return one number, several or none as a list."""
    if value is None:
        return []
    return [int(one) for one in value] if isinstance(value, Sequence) else [int(value)]


def _frames_of(found: _Segmentation, image: Dataset, frame: int, what: str) -> list[int]:
    """Return the frames of a segmentation that are of one frame of an image."""
    uid = str(image.get("SOPInstanceUID"))
    if (found.dataset.Rows, found.dataset.Columns) != (image.Rows, image.Columns):
        if not _knows(found, image):
            raise _foreign(what)
        sizes = f"{found.dataset.Rows} x {found.dataset.Columns}, the image has {image.Rows} x {image.Columns}"
        raise DataError(what, f"it lies on another grid: {sizes}", _DICOM_OF_THIS_IMAGE)
    named = [n for n, own in enumerate(found.sources) if uid in own and (not own[uid] or frame in own[uid])]
    here = [n for n in named or _without_source(found, image) if _is_at(found.dataset, n, image, frame)]
    if not named and not here and not _knows(found, image):
        raise _foreign(what)
    is_one = n_frames_of(image) == 1
    is_exact = any(len(found.sources[n]) == 1 and (is_one or found.sources[n][uid]) for n in named)
    if named and not here and is_exact:
        raise DataError(what, "it lies on another grid: its pixels are elsewhere in the patient", _DICOM_OF_THIS_IMAGE)
    return here


def _foreign(what: str) -> DataError:
    return DataError(what, "it refers to other images, and to nothing of this one's series", _DICOM_OF_THIS_IMAGE)


def _knows(found: _Segmentation, image: Dataset) -> bool:
    """Whether an image is one of those that a segmentation refers to, or lies in a series that it refers to."""
    is_named = str(image.get("SOPInstanceUID")) in found.images or str(image.get("SeriesInstanceUID")) in found.series
    return is_named or bool(_without_source(found, image))


def _without_source(found: _Segmentation, image: Dataset) -> list[int]:
    """Return the frames that name no image, in the same frame of reference: their place says what they are of."""
    place = image.get("FrameOfReferenceUID")
    if not place or found.dataset.get("FrameOfReferenceUID") != place:
        return []
    return [number for number, own in enumerate(found.sources) if not own]


def _is_at(dataset: Dataset, number: int, image: Dataset, frame: int) -> bool:
    """Whether two frames of one size lie pixel on pixel; what has no place is believed."""
    one, other = _corners(dataset, number), _corners(image, frame)
    if one is None or other is None:
        return True
    size_mm = min(np.linalg.norm(other[1] - other[0]) / image.Columns, np.linalg.norm(other[2] - other[0]) / image.Rows)
    return bool(np.abs(one - other).max() <= _SAME_PLACE * size_mm)


def _corners(header: Dataset, frame: int) -> FloatArray | None:
    """Return where the first pixel lies and where rows and columns end, (3, 3), in mm (PS3.3 C.7.6.2.1.1)."""
    position = of_frame(header, frame, "PlanePositionSequence", "ImagePositionPatient")
    axes = of_frame(header, frame, "PlaneOrientationSequence", "ImageOrientationPatient")
    spacing = of_frame(header, frame, "PixelMeasuresSequence", "PixelSpacing")
    if not (position and axes and spacing):
        return None
    first, directions = np.array(position, np.float64), np.array(axes, np.float64).reshape(2, 3)
    lengths = np.array([header.Columns * float(spacing[1]), header.Rows * float(spacing[0])])
    return np.vstack([first, first + directions * lengths[:, np.newaxis]])


def _inside(stored: PixelArray, dataset: Dataset) -> BoolArray:
    """Return which stored numbers of one frame are in a segment."""
    kind = dataset.get("SegmentationType")
    if kind == "FRACTIONAL":
        largest = int(dataset.get("MaximumFractionalValue") or 255)
        return np.asarray(2 * stored.astype(np.int64) >= largest)
    if kind == "LABELMAP":
        background = int(dataset.get("PixelPaddingValue") or 0)
        return np.isin(stored, list(_segments(dataset) - {background}))
    return np.asarray(stored != 0)


def _segments(dataset: Dataset) -> set[int]:
    return {int(item.SegmentNumber) for item in dataset.get("SegmentSequence") or []}
