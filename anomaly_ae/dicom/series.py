"""DICOM files of one series, or frames of one file, as stacks of slices in the order in which they lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from anomaly_ae.dicom.outlines import SEGMENTATION_CLASSES
from anomaly_ae.dicom.read import read_header
from anomaly_ae.dicom.shared import MAX_FRAMES, decoding
from anomaly_ae.dicom.values import n_frames_of, of_frame

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_SAME_DIRECTION = 0.01  # largest difference of direction cosines, about half a degree
_SAME_POSITION_MM = 0.01
_APART_IN_GROUPS = (  # of frames that lie at one place all the same (PS3.3 C.7.6.16.2.2, C.8.13.5)
    ("FrameContentSequence", "StackID"),
    ("FrameContentSequence", "TemporalPositionIndex"),
    ("MREchoSequence", "EffectiveEchoTime"),
    ("MRDiffusionSequence", "DiffusionBValue"),
)
_APART_IN_FILES = ("EchoTime", "TemporalPositionIdentifier", "DiffusionBValue")  # of one slice each (C.8.3.1, C.7.6.1)
_GAP = 1.5  # steps this many times longer than the usual one lack a slice


class SliceHeader(NamedTuple):
    """What a file says about patient and place of one frame; "" and None where it says nothing.

    ``patient`` is PatientID, else StudyInstanceUID; ``series`` the two instance UIDs of study and series.
    ``orientation`` (6) and ``position`` (3) are in the patient, in mm (PS3.3 C.7.6.2.1.1). ``part`` tells slices apart
    that are no neighbours: stack, time, echo and diffusion weighting.
    """

    patient: str
    series: str
    orientation: tuple[float, ...] | None
    position: tuple[float, ...] | None
    part: str = ""


class FileHeader(NamedTuple):
    """A DICOM file: what kind of object it is, its UID, and a header for each of its frames.

    ``kind`` is "image", "segmentation", or the name of an object that holds no image.
    """

    kind: str
    instance: str
    frames: tuple[SliceHeader, ...]


class Stack(NamedTuple):
    """Parallel slices of one series: indices into its files by position, and what is odd about them.

    ``spacing_mm`` is the usual distance of neighbouring positions along the slice normal; None for a single slice.
    """

    indices: tuple[int, ...]
    spacing_mm: float | None
    n_missing: int
    n_duplicates: int


def file_header(path: Path) -> FileHeader:
    """Read where a DICOM file belongs; nothing of it may be written or shown but as a salted hash.

    Raises
    ------
    UnreadableImageError
        Not a DICOM file, or a damaged one.
    """
    with decoding(str(path), "DICOM file", quote=False):
        header, _ = read_header(path, str(path))
        n_frames = min(n_frames_of(header), MAX_FRAMES)  # more are refused when they are read
        frames = tuple(_slice_header(header, frame) for frame in range(n_frames))
        return FileHeader(_kind(header), str(header.get("SOPInstanceUID") or ""), frames)


def _kind(header: Dataset) -> str:
    """Tell objects without an image by their class; an image class without rows and columns is a damaged image."""
    uid: Any = header.get("SOPClassUID") or ""
    if uid in SEGMENTATION_CLASSES:
        return "segmentation"
    is_known = getattr(uid, "is_valid", False) and not uid.is_private and uid.name != uid
    if "Rows" in header or not is_known or "Image" in uid.name:
        return "image"
    return str(uid.name)


def _slice_header(header: Dataset, frame: int) -> SliceHeader:
    study, series = (str(header.get(f"{level}InstanceUID") or "").strip() for level in ("Study", "Series"))
    orientation = of_frame(header, frame, "PlaneOrientationSequence", "ImageOrientationPatient")
    position = of_frame(header, frame, "PlanePositionSequence", "ImagePositionPatient")
    is_one = n_frames_of(header) == 1
    has_place = (
        is_one or "PerFrameFunctionalGroupsSequence" in header
    )  # else it is the place of the file, not of frames
    return SliceHeader(
        patient=str(header.get("PatientID") or "").strip() or study,
        series=f"{study}/{series}" if series else "",
        orientation=_numbers(orientation, 6) if has_place else None,
        position=_numbers(position, 3) if has_place else None,
        part="|".join(map(str, _apart(header, frame))),
    )


def _apart(header: Dataset, frame: int) -> list[Any]:
    in_groups = [] if n_frames_of(header) == 1 else [of_frame(header, frame, *where) for where in _APART_IN_GROUPS]
    return in_groups + [header.get(name) for name in _APART_IN_FILES]


def _numbers(values: Any, n: int) -> tuple[float, ...] | None:
    if not values or len(values) != n:
        return None
    numbers = tuple(float(value) for value in values)
    return numbers if all(math.isfinite(number) for number in numbers) else None


def stacks(headers: Sequence[SliceHeader]) -> list[Stack]:
    """Split the slices of one series by orientation and part, and sort each piece along its slice normal.

    InstanceNumber is not asked: it counts in the order of acquisition, or of whoever copied the files. The distance of
    slices is that of their positions; SliceThickness, and SpacingBetweenSlices in many files, are something else.

    Returns
    -------
    list of Stack
        Slices without orientation or position are in none of them.
    """
    parts: list[list[int]] = []
    for index, header in enumerate(headers):
        if header.orientation is None or header.position is None:
            continue
        known = (part for part in parts if _parallel(headers[part[0]], header))
        part = next(known, None)
        if part is None:
            parts.append([index])
        else:
            part.append(index)
    return [_stack(headers, part) for part in parts]


def _parallel(one: SliceHeader, other: SliceHeader) -> bool:
    if one.part != other.part:
        return False
    return bool(np.abs(np.array(one.orientation) - np.array(other.orientation)).max() < _SAME_DIRECTION)


def _stack(headers: Sequence[SliceHeader], part: Sequence[int]) -> Stack:
    directions = np.array(headers[part[0]].orientation).reshape(2, 3)  # of rows and of columns
    normal = np.cross(directions[0], directions[1])
    heights = {index: float(normal @ np.array(headers[index].position)) for index in part}
    indices = tuple(sorted(part, key=lambda index: (heights[index], index)))
    steps = np.diff([heights[index] for index in indices])
    apart = steps[steps > _SAME_POSITION_MM]
    if not len(apart):
        return Stack(indices, None, 0, len(steps))
    spacing = float(np.median(apart))
    wide = apart[apart > _GAP * spacing]
    n_missing = int(np.rint(wide / spacing - 1).sum())
    return Stack(indices, spacing, n_missing, len(steps) - len(apart))
