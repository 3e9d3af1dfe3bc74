"""DICOM files of one series as stacks of slices, in the order in which they lie in the patient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from anomaly_ae.dicom.read import read_header
from anomaly_ae.dicom.shared import decoding

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_SAME_DIRECTION = 0.01  # largest difference of direction cosines, about half a degree
_SAME_POSITION_MM = 0.01
_GAP = 1.5  # steps this many times longer than the usual one lack a slice


class SliceHeader(NamedTuple):
    """What a file says about patient and place; "" and None where it says nothing.

    ``patient`` is PatientID, else StudyInstanceUID; ``series`` the two instance UIDs of study and series.
    ``orientation`` (6) and ``position`` (3) are in the patient, in mm (PS3.3 C.7.6.2.1.1).
    """

    patient: str
    series: str
    orientation: tuple[float, ...] | None
    position: tuple[float, ...] | None


class Stack(NamedTuple):
    """Parallel slices of one series: indices into its files by position, and what is odd about them.

    ``spacing_mm`` is the usual distance of neighbouring positions along the slice normal; None for a single slice.
    """

    indices: tuple[int, ...]
    spacing_mm: float | None
    n_missing: int
    n_duplicates: int


def slice_header(path: Path) -> SliceHeader:
    """Read where a DICOM file belongs; nothing of it may be written or shown but as a salted hash.

    Raises
    ------
    UnreadableImageError
        Not a DICOM file, or a damaged one.
    """
    with decoding(str(path), "DICOM file", quote=False):
        header, _ = read_header(path, str(path))
        study, series = (str(header.get(f"{level}InstanceUID") or "").strip() for level in ("Study", "Series"))
        return SliceHeader(
            patient=str(header.get("PatientID") or "").strip() or study,
            series=f"{study}/{series}" if series else "",
            orientation=_numbers(header, "ImageOrientationPatient", 6),
            position=_numbers(header, "ImagePositionPatient", 3),
        )


def _numbers(header: Dataset, attribute: str, n: int) -> tuple[float, ...] | None:
    values = header.get(attribute)
    if not values or len(values) != n:
        return None
    numbers = tuple(float(value) for value in values)
    return numbers if all(math.isfinite(number) for number in numbers) else None


def stacks(headers: Sequence[SliceHeader]) -> list[Stack]:
    """Split the files of one series by orientation, and sort each part along its slice normal.

    InstanceNumber is not asked: it counts in the order of acquisition, or of whoever copied the files. The distance of
    slices is that of their positions; SliceThickness, and SpacingBetweenSlices in many files, are something else.

    Returns
    -------
    list of Stack
        Files without orientation or position are in none of them.
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
