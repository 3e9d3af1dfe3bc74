"""DICOM objects out: pictures as Secondary Capture, regions as Segmentation, into the study of their source.

Patient, study and frame of reference are those of the source: an archive must file the objects beside it. Nothing of
that stands in a file name or a message.
"""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from anomaly_ae.dicom.objects import (
    has_place,
    identity,
    name_true_sources,
    one_frame,
    refer,
    secondary_capture,
    segmentation,
)
from anomaly_ae.dicom.read import read_header
from anomaly_ae.dicom.shared import check_size, decoding
from anomaly_ae.dicom.values import n_frames_of
from anomaly_ae.errors import OutputError, UnreadableImageError, UsageError
from anomaly_ae.files import write_bytes
from anomaly_ae.records import BoolArray

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

KINDS = ("sc", "seg")
MAX_STACK_PIXELS = 2**29
"""Most pixels of one segmentation: 2,048 slices of 512 x 512; more would take gigabytes of memory."""

_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")


def parse_kinds(text: str) -> tuple[str, ...]:
    """Return the kinds of DICOM objects that are asked for.

    >>> parse_kinds("sc,seg")
    ('sc', 'seg')

    Raises
    ------
    UsageError
        An unknown kind.
    OutputError
        highdicom is not installed.
    """
    kinds = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    _check_kinds(kinds)
    return kinds


def _check_kinds(kinds: tuple[str, ...]) -> None:
    asked = ",".join(kinds)
    if not set(kinds) <= set(KINDS):
        raise UsageError(f"--dicom {asked}", "unknown", "one of: sc, seg, or both as sc,seg")
    if kinds and find_spec("highdicom") is None:
        why = "the package highdicom is not installed"
        raise OutputError(f"--dicom {asked}: cannot write DICOM", why, "pip install 'anomaly-ae[medical]'")


@dataclass(frozen=True, slots=True, eq=False)
class _Slice:
    """One scored frame: where it came from, and its regions, packed eight pixels to a byte; None without any."""

    number: int
    name: str
    path: Path
    frame: int
    inside: npt.NDArray[np.uint8] | None


@dataclass(slots=True)
class DicomWriter:
    """Writes the objects of one run: pictures while images come, one segmentation per stack of slices at the end.

    Parameters
    ----------
    folder : Path
        Gets ``sc/NNNN.dcm`` and ``seg/NNNN.dcm``.
    kinds : tuple of {"sc", "seg"}
    model_sha256 : str
        Says in every object which model it is from, as the serial number of the device.

    Raises
    ------
    UsageError, OutputError
        As `parse_kinds`.
    """

    folder: Path
    kinds: tuple[str, ...]
    model_sha256: str
    n_written: Counter[str] = field(default_factory=Counter)
    n_foreign: int = 0
    refused: list[str] = field(default_factory=list)
    _stacks: defaultdict[Hashable, list[_Slice]] = field(default_factory=lambda: defaultdict(list))
    _places: Counter[Hashable] = field(default_factory=Counter)
    _series: dict[Hashable, str] = field(default_factory=dict)
    _instances: Counter[str] = field(default_factory=Counter)
    _last: tuple[Path, Dataset] | None = None  # a multi-frame file has one header for all its frames

    def __post_init__(self) -> None:
        _check_kinds(self.kinds)

    def add(
        self, number: int, name: str, path: Path, frame: int, picture: npt.NDArray[np.uint8], inside: BoolArray
    ) -> None:
        """Write the picture of one frame, and keep its regions for `finish`.

        Parameters
        ----------
        number : int
            Names the files; of an image of the run, counted from 1.
        name : str
            What messages call it: a path may hold the name of a patient.
        path : Path
            The DICOM file; any other is counted in ``n_foreign``, one that cannot be referred to goes to ``refused``.
        frame : int
            Counted from 0.
        picture : uint8 array, (H, W, 3)
            RGB, on the grid of the frame.
        inside : bool array, (H, W)
            True in regions.
        """
        try:
            header = self._header(path, name)
        except UnreadableImageError:  # it was scored, so it is an image of another kind
            self.n_foreign += 1
            return
        try:
            with decoding(name, "DICOM file", quote=False):
                self._add(header, _Slice(number, name, path, frame, _packed(inside)), picture)
        except UnreadableImageError as error:
            self.refused.append(str(error))

    def finish(self) -> None:
        """Write the segmentations: of each stack with a region somewhere."""
        for stack in self._stacks.values():
            if all(piece.inside is None for piece in stack):
                continue
            try:
                with decoding(stack[0].name, "DICOM file", quote=False):
                    self._write_segmentation(stack)
            except UnreadableImageError as error:
                self.refused.append(str(error))

    def lines(self) -> list[str]:
        """Say what was written."""
        if not self.kinds:
            return []
        counts = ", ".join(f"{self.n_written[kind]} in dicom/{kind}" for kind in self.kinds)
        return [f"DICOM objects: {counts}" + (" (a series without regions gets none)" if "seg" in self.kinds else "")]

    def warnings(self) -> list[str]:
        """Say what is missing."""
        found = []
        if self.n_foreign:
            are = "is no DICOM file" if self.n_foreign == 1 else "are no DICOM files"
            found.append(f"{self.n_foreign} of the scored images {are}: no DICOM objects of them")
        if self.refused:
            found.append(f"{len(self.refused)} DICOM objects could not be written; the first: {self.refused[0]}")
        return found

    def _header(self, path: Path, name: str) -> Dataset:
        if self._last is None or self._last[0] != path:
            with decoding(name, "DICOM file", quote=False):
                self._last = path, read_header(path, name)[0]
        return self._last[1]

    def _add(self, header: Dataset, piece: _Slice, picture: npt.NDArray[np.uint8]) -> None:
        _check_referable(header, piece, picture)
        source = one_frame(header, piece.frame)
        if "sc" in self.kinds:
            capture = secondary_capture(source, picture, self._identity("sc", source))
            refer(capture, [(header, piece.frame)])
            self._save("sc", piece.number, capture)
        if "seg" in self.kinds:
            self._stacks[self._stack_of(header, source, piece)].append(piece)

    def _stack_of(self, header: Dataset, source: Dataset, piece: _Slice) -> Hashable:
        """Return what slices of one segmentation share; where two lie at one place, the second begins another."""
        if not has_place(source):
            return piece.path, piece.frame
        multi = str(header.SOPInstanceUID) if n_frames_of(header) > 1 else ""
        axes = tuple(float(number) for number in (*source.ImageOrientationPatient, *source.PixelSpacing))
        stack = (
            *(str(source.get(key)) for key in (*_UIDS[:2], "FrameOfReferenceUID")),
            *(str(header.SOPClassUID), multi, source.Rows, source.Columns, axes),
        )
        place = stack, tuple(float(number) for number in source.ImagePositionPatient)
        self._places[place] += 1
        return stack, self._places[place]

    def _write_segmentation(self, stack: Sequence[_Slice]) -> None:
        sources = [(self._header(piece.path, piece.name), piece.frame) for piece in stack]
        frames = [one_frame(*source) for source in sources]
        shape = frames[0].Rows, frames[0].Columns
        if len(stack) * shape[0] * shape[1] > MAX_STACK_PIXELS:
            what = f"{stack[0].name}: a series of {len(stack)} x {shape[0]} x {shape[1]} pixels"
            raise UnreadableImageError(what, f"one segmentation may have {MAX_STACK_PIXELS:,}", "score it in parts")
        inside = np.stack([_unpacked(piece.inside, shape) for piece in stack])  # (N, H, W)
        found = segmentation(frames, inside, self._identity("seg", frames[0]))
        name_true_sources(found, frames, sources)
        refer(found, sources)
        self._save("seg", stack[0].number, found)

    def _identity(self, kind: str, source: Dataset) -> dict[str, Any]:
        """Return what an object is; one new series for each series of the source."""
        from highdicom import UID

        key = kind, str(source.StudyInstanceUID), str(source.SeriesInstanceUID)
        series = self._series.setdefault(key, str(UID()))
        self._instances[series] += 1
        return identity(kind, series, self._instances[series], self.model_sha256)

    def _save(self, kind: str, number: int, dataset: Dataset) -> None:
        buffer = io.BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
        write_bytes(self.folder / kind / f"{number:04}.dcm", buffer.getvalue())
        self.n_written[kind] += 1


def _check_referable(header: Dataset, piece: _Slice, picture: npt.NDArray[np.uint8]) -> None:
    check_size(piece.name, picture.shape)
    missing = [key for key in _UIDS if not header.get(key)]
    if missing:
        why = f"{', '.join(missing)} missing: nothing can refer to it"
        raise UnreadableImageError(f"{piece.name}: no DICOM objects of it", why, "export the file again")
    if (header.Rows, header.Columns) != picture.shape[:2]:
        raise UnreadableImageError(f"{piece.name}: no DICOM objects of it", "the file has changed", "score again")


def _packed(inside: BoolArray) -> npt.NDArray[np.uint8] | None:
    return np.packbits(inside) if inside.any() else None


def _unpacked(packed: npt.NDArray[np.uint8] | None, shape: tuple[int, int]) -> BoolArray:
    if packed is None:
        return np.zeros(shape, np.bool_)
    return np.unpackbits(packed, count=shape[0] * shape[1]).reshape(shape).astype(np.bool_)
