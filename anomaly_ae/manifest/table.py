"""The manifest as a table: one CSV row is one image."""

from __future__ import annotations

import csv
import difflib
import io
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from anomaly_ae.errors import DataError, OutputError
from anomaly_ae.files import write_bytes
from anomaly_ae.manifest.outlines import label_rows
from anomaly_ae.manifest.slices import slices_of, with_slices
from anomaly_ae.nifti import is_nifti_file
from anomaly_ae.records import ANOMALOUS_LABEL, NORMAL_LABEL, Sample

COLUMNS = ("path", "frame", "label", "mask", "valid", "unit", "group", "split", "defect", "id", "volume")
LABELS = ("", NORMAL_LABEL, ANOMALOUS_LABEL)
FIT_SPLITS = ("train", "validation", "calibration")
SPLITS = ("", *FIT_SPLITS, "test")
CHANNEL_SEPARATOR = "|"
TABLE_SUFFIXES = frozenset({".csv", ".tsv"})

_DELIMITERS = (",", ";", "\t")
_SEPARATOR_LINE = re.compile(r"\A\"?sep=.\"?[\r\n]+", re.IGNORECASE)
"""Excel takes such a first line as word of the delimiter, and shows none of it."""


class Ignored(NamedTuple):
    """So many things of one kind that lie there and are used for nothing."""

    what: str
    n: int
    are_images: bool = False

    def __str__(self) -> str:
        return f"ignored {self.what}: {self.n}"


@dataclass(frozen=True, slots=True, eq=False)
class Manifest:
    """What images there are, and what is known about each.

    Attributes
    ----------
    root : Path
        The folder, or the folder of the CSV: relative paths start here.
    samples : tuple of Sample
        Folders are sorted by path; a CSV keeps its order.
    notes : tuple of str
        What was assumed on the way, for people.
    layout : str
        "mvtec", "normal/anomalous", "normal/<defect>", "bids", "flat" or "csv".
    is_private : bool
        There are DICOM or NIfTI files, and the samples have public names: see `naming`.
    ignored : tuple of Ignored
        What lies there and is used for nothing.
    warnings : tuple of str
        What may have been understood wrongly: every command says it.
    """

    root: Path
    samples: tuple[Sample, ...]
    notes: tuple[str, ...] = ()
    layout: str = "csv"
    is_private: bool = False
    ignored: tuple[Ignored, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """What messages call the folder."""
        return "this data" if self.is_private else str(self.root)

    @property
    def all_notes(self) -> tuple[str, ...]:
        """What was ignored, and what was assumed."""
        return *map(str, self.ignored), *self.notes

    @property
    def not_inspected(self) -> tuple[str, ...]:
        """Which images are ignored: nobody looks at these, and a report has to say so."""
        return tuple(str(one) for one in self.ignored if one.are_images)

    def select(self, split: str | None = None, label: str | None = None) -> tuple[Sample, ...]:
        """Return the samples of one split, of one label, or of both; None means any."""
        return tuple(s for s in self.samples if split in (None, s.split) and label in (None, s.label))


class Row(NamedTuple):
    """One line of a table; ``number`` is what a spreadsheet shows beside it: the header is row 1."""

    number: int
    cells: dict[str, str]


def read_table(path: Path, key_columns: Sequence[str] = ("path",)) -> list[Row]:
    """Read a delimited text file with a header.

    The delimiter (comma, semicolon or tab) is taken from the header. Cells are stripped; column names that
    the manifest knows are lower-cased, all others kept as they are.

    Raises
    ------
    DataError
        Not UTF-8, a double quote without its partner, no column called as one of `key_columns`, a column without a
        name or twice, a row that is longer than the header, a cell that holds a line break.
    """
    text = _SEPARATOR_LINE.sub("", _read_text(path))
    first_line = next((line for line in text.splitlines() if line.strip()), "")
    splits = {mark: next(csv.reader([first_line], delimiter=mark), []) for mark in _DELIMITERS}
    mark = max(_DELIMITERS, key=lambda m: (_has_key(splits[m], key_columns), len(splits[m])))
    try:
        numbered = list(enumerate(csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True), start=1))
    except csv.Error as error:
        fix = 'save it again as CSV UTF-8; a " inside a cell is written twice'
        raise DataError(f"{path} is not a CSV table", str(error), fix) from error
    _refuse_line_breaks(path, numbered)
    lines = [(number, [cell.strip() for cell in cells]) for number, cells in numbered if any(cells)]
    names = _column_names(path, lines[0][1] if lines else [], key_columns)
    return [Row(number, _cells(path, number, names, cells)) for number, cells in lines[1:]]


def _refuse_line_breaks(path: Path, numbered: Iterable[tuple[int, list[str]]]) -> None:
    """Two stray quotes make one cell of all rows between them, which nobody would miss."""
    for number, cells in numbered:
        if any(map(_has_line_break, cells)):
            why = "between two double quotes several rows become one"
            fix = "remove the quotes, or the line break"
            raise DataError(f"{path}, row {number} has a line break in a cell", why, fix)


def _has_line_break(cell: str) -> bool:
    return "\n" in cell or "\r" in cell


def _read_text(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(
            f"{path} cannot be opened", error.strerror or str(error), "check name and permission"
        ) from error
    except UnicodeDecodeError as error:
        why = f"byte {error.start} does not belong to it"
        raise DataError(f"{path} is not UTF-8 text", why, "save it as 'CSV UTF-8'") from error
    if "\0" in text:
        raise DataError(f"{path} is not a text file", "it holds zero bytes", "save it as 'CSV UTF-8'")
    return text


def _normal_name(name: str) -> str:
    name = name.strip()
    return name.lower() if name.lower() in (*COLUMNS, "file") else name


def _has_key(names: Iterable[str], key_columns: Sequence[str]) -> bool:
    return any(_normal_name(name) in key_columns for name in names)


def _column_names(path: Path, header: list[str], key_columns: Sequence[str]) -> list[str]:
    names = [_normal_name(name) for name in header]
    if not _has_key(names, key_columns):
        found = ", ".join(repr(name) for name in names) or "nothing"
        fix = f"the first row must name the columns, one of them {key_columns[0]!r}"
        raise DataError(f"{path} has no column {key_columns[0]!r}", f"its first row holds {found}", fix)
    if "" in names:
        what = f"column {names.index('') + 1} of {path} has no name"
        raise DataError(what, "every column needs one", "name it, or delete the column")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path} has two columns {twice[0]!r}", "which one counts is unclear", "rename one")
    return names


def _cells(path: Path, number: int, names: list[str], cells: list[str]) -> dict[str, str]:
    if any(cells[len(names) :]):
        raise DataError(
            f"{path}, row {number} has {len(cells)} cells, the header {len(names)}",
            "a cell that contains the delimiter is split in two",
            "put such a cell in double quotes",
        )
    cells = cells[: len(names)] + [""] * (len(names) - len(cells))
    return dict(zip(names, cells, strict=True))


def read_manifest_csv(path: Path) -> Manifest:
    """Read a manifest written by hand or by `write_manifest`; of images only NIfTI files without a frame are opened.

    A row that names a NIfTI file and no frame stands for all of its slices: see `slices_of`. Rows without a label whose
    mask is a DICOM Segmentation are labelled by it.

    Raises
    ------
    DataError
        With the row: an unknown label or split, a frame that is no whole number, an empty path, an id twice.
    """
    rows = read_table(path)
    if not rows:
        raise DataError(f"{path} lists no image", "there is only the header", "add one row per image")
    extra_names = [name for name in rows[0].cells if name not in COLUMNS]
    _refuse_misspelt_columns(path, extra_names, rows[0].cells)
    frames: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        frames[row.cells["path"]].add(row.cells.get("frame") or "0")
    numbered = [(row.number, s) for row in rows for s in _samples_of_row(path, row, len(frames[row.cells["path"]]))]
    _refuse_duplicate_ids(path, numbered)
    samples = with_slices(label_rows([sample for _, sample in numbered]))
    notes = (f"further columns, kept as they are: {', '.join(extra_names)}",) if extra_names else ()
    return Manifest(path.parent, samples, notes, "csv")


def _refuse_misspelt_columns(path: Path, extra_names: list[str], present: Iterable[str]) -> None:
    """A column 'lable' would be kept as a further column, and every defect taken as unlabelled."""
    missing = [name for name in COLUMNS if name not in present]
    for name in extra_names:
        for meant in difflib.get_close_matches(name.lower(), missing, n=1, cutoff=0.8):
            what = f"{path} has a column {name!r} and none called {meant!r}"
            raise DataError(what, "it looks misspelt", f"rename it {meant!r}, or to something less alike")


def _samples_of_row(path: Path, row: Row, n_frames_listed: int) -> list[Sample]:
    sample = _sample_of_row(path, row, n_frames_listed)
    is_whole = not row.cells.get("frame") and is_nifti_file(sample.files[0])
    return slices_of(sample) if is_whole else [sample]


def _sample_of_row(path: Path, row: Row, n_frames_listed: int) -> Sample:
    def cell(name: str) -> str:
        return row.cells.get(name, "")

    def refuse(name: str, accepted: str) -> DataError:
        return DataError(f"{path}, row {row.number}: {name} {cell(name)!r}", f"accepted: {accepted}", "correct it")

    for name, words in (("label", LABELS), ("split", SPLITS)):
        if cell(name) not in words:
            raise refuse(name, ", ".join(repr(word) for word in words if word) + " or an empty cell")
    if cell("frame") and not (cell("frame").isascii() and cell("frame").isdigit()):
        raise refuse("frame", "whole numbers from 0")
    if not all(part.strip() for part in cell("path").split(CHANNEL_SEPARATOR)):
        raise refuse("path", f"a file name, or several joined by '{CHANNEL_SEPARATOR}'")
    return make_sample(
        path.parent,
        _posix(cell("path")),
        frame=int(cell("frame") or 0),
        n_frames_listed=n_frames_listed,
        label=cell("label"),
        mask=path.parent / _posix(cell("mask")) if cell("mask") else None,
        valid=path.parent / _posix(cell("valid")) if cell("valid") else None,
        unit=cell("unit"),
        group=cell("group"),
        split=cell("split"),
        defect=cell("defect"),
        sample_id=cell("id"),
        volume=cell("volume"),
        extra={name: value for name, value in row.cells.items() if name not in COLUMNS},
    )


def _posix(text: str) -> str:
    """A CSV written on Windows is read everywhere."""
    return CHANNEL_SEPARATOR.join(part.strip() for part in text.replace("\\", "/").split(CHANNEL_SEPARATOR))


def make_sample(
    root: Path,
    path: str,
    *,
    frame: int = 0,
    n_frames_listed: int = 1,
    label: str = "",
    mask: Path | None = None,
    valid: Path | None = None,
    unit: str = "",
    group: str = "",
    split: str = "",
    defect: str = "",
    sample_id: str = "",
    volume: str = "",
    extra: dict[str, str] | None = None,
) -> Sample:
    """Fill in the defaults: id = path (and frame), unit = path, group = unit."""
    numbered = frame > 0 or n_frames_listed > 1
    return Sample(
        id=sample_id or (f"{path}#{frame}" if numbered else path),
        path=path,
        files=tuple(root / part for part in path.split(CHANNEL_SEPARATOR)),
        frame=frame,
        label=label,
        mask=mask,
        valid=valid,
        unit=unit or path,
        group=group or unit or path,
        split=split,
        defect=defect,
        volume=volume,
        extra=extra or {},  # a plain dict: samples travel to worker processes
    )


def _refuse_duplicate_ids(path: Path, numbered: Iterable[tuple[int, Sample]]) -> None:
    first_row: dict[str, int] = {}
    for number, sample in numbered:
        if sample.id in first_row:
            raise DataError(
                f"{path}, rows {first_row[sample.id]} and {number} have the same id {sample.id!r}",
                "a result must belong to one row",
                "delete one row, or tell them apart with `frame` or `id`",
            )
        first_row[sample.id] = number


def write_manifest(manifest: Manifest, path: str | Path, overwrite: bool = False) -> None:
    """Write a manifest as CSV, with paths relative to the CSV (absolute ones stay absolute).

    The file appears whole or not at all. Identifiers, units and groups are written out, so that they stay the
    same wherever the CSV lies.

    Raises
    ------
    OutputError
        The file exists already, a path would not be read as it was written, or the disk refuses.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists already", "it is not replaced unasked", "choose another name, or overwrite")
    extra_names = list(dict.fromkeys(name for sample in manifest.samples for name in sample.extra))
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    n_known = len(COLUMNS) if any(sample.volume for sample in manifest.samples) else COLUMNS.index("volume")
    writer.writerow([*COLUMNS[:n_known], *extra_names])
    for sample in manifest.samples:
        known = _known_cells(sample, path.parent, manifest.is_private)[:n_known]
        writer.writerow([*known, *(sample.extra.get(n, "") for n in extra_names)])
    try:
        content = buffer.getvalue().encode("utf-8")
    except UnicodeEncodeError as error:  # POSIX allows names that are no text
        raise OutputError(f"{path} cannot be written", "a file name is no text", "rename it") from error
    write_bytes(path, content)


def _known_cells(sample: Sample, folder: Path, is_private: bool) -> list[str]:
    """The cells of `COLUMNS`, in their order; the paths are real, also where they are shown nowhere else."""
    written = [str(file) for file in sample.files] if is_private else sample.path.split(CHANNEL_SEPARATOR)
    if len(written) != len(sample.files):
        what, why = (
            f"{sample.path!r} cannot stand in a manifest",
            f"'{CHANNEL_SEPARATOR}' separates channels there",
        )
        raise OutputError(what, why, "rename the file")
    pairs = zip(written, sample.files, strict=True)
    keeps = [not is_private and Path(part).is_absolute() for part in written]
    paths = [part if keep else _relative(file, folder) for keep, (part, file) in zip(keeps, pairs, strict=True)]
    mask, valid = (_relative(file, folder) if file else "" for file in (sample.mask, sample.valid))
    _refuse_changing_names(sample, (*paths, mask, valid))
    joined = CHANNEL_SEPARATOR.join(paths)
    known = (sample.unit, sample.group, sample.split, sample.defect, sample.id, sample.volume)
    return [joined, str(sample.frame), sample.label, mask, valid, *known]


def _refuse_changing_names(sample: Sample, cells: Iterable[str]) -> None:
    """A table is read without spaces around cells, and with every ``\\`` as ``/``: it would name other files."""
    changes = sample.id != sample.id.strip() or any(_posix(cell) != cell or _has_line_break(cell) for cell in cells)
    if changes:
        what = f"{sample.id!r} cannot stand in a manifest"
        why = "a '\\' in a file name would be read as '/', a space at either end be dropped, a line break be refused"
        raise OutputError(what, why, "rename the file")


def _relative(file: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(file, folder)).as_posix()
    except ValueError:  # another drive on Windows: there is no relative path
        return file.absolute().as_posix()
