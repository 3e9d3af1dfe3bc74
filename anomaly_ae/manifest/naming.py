"""Samples of DICOM and NIfTI sources under public names: what is written or said of them holds no path and no name.

One such file makes a whole manifest private, since its folders then are those of patients. Its samples change their
`id`, `path`, `unit` and `group` for salted hashes, and the private key files lead back. `files`, `mask` and `valid`
stay: these are read, and never shown. How a name comes about: docs/decisions/0011-public-names.md.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePath
from typing import NamedTuple

from anomaly_ae.dicom import hashed, is_dicom, remember
from anomaly_ae.dicom.shared import file_head
from anomaly_ae.errors import AnomalyAEError, DataError, UnreadableImageError
from anomaly_ae.files import holds
from anomaly_ae.manifest.grouping import GROUP_FILES
from anomaly_ae.manifest.layouts import ANOMALOUS_FOLDERS, IMAGE_FOLDERS, NORMAL_FOLDERS, SPLIT_FOLDERS
from anomaly_ae.manifest.table import CHANNEL_SEPARATOR, TABLE_SUFFIXES, Manifest, read_table
from anomaly_ae.nifti import is_nifti
from anomaly_ae.readers import DICOM_SUFFIXES, mask_files
from anomaly_ae.records import Sample
from anomaly_ae.words import text_of

SESSION = "session"
IMAGES_FILE = "images.csv"

_HASH = "-[0-9a-f]{12}"
_PUBLIC = re.compile(rf"(patient{_HASH}/)?(patient|group|{SESSION}|image){_HASH}(#\d+)?")
_HIDDEN = "..."
_LAYOUT_WORDS = frozenset({
    *(*NORMAL_FOLDERS, *ANOMALOUS_FOLDERS, *SPLIT_FOLDERS, *IMAGE_FOLDERS, "ground_truth", "mask", "masks", "anat"),
    *("derivatives", "groups.tsv", "groups.csv", "participants.tsv", "dataset_description.json"),
})  # fmt: skip
_NAMING_COLUMNS = ("path", "file", "mask", "valid", "unit", "group", "id")


def is_medical(file: Path) -> bool:
    """Whether a file is DICOM or NIfTI, by its suffix (it may be damaged or missing) or its content."""
    if file.suffix.lower() in DICOM_SUFFIXES or file.name.lower().endswith((".nii", ".nii.gz")):
        return True
    try:
        head = file_head(file, file.name)
    except UnreadableImageError:
        return False
    return is_dicom(head) or is_nifti(head)


def is_public(name: str) -> bool:
    """Whether a name is one that `with_public_names` gives.

    >>> is_public("patient-0123456789ab/image-0123456789ab#3"), is_public("scans/0001.dcm")
    (True, False)
    """
    return _PUBLIC.fullmatch(name) is not None


def with_public_names(manifest: Manifest) -> Manifest:
    """Give the samples of a private manifest public names, and write to the key files what they stand for.

    Names that are public already, as in a table that `scan --out` wrote, are kept. Images are named by their
    absolute paths, so that the same file has the same name however it is reached.

    Raises
    ------
    DataError
        Two rows are the same image.
    OutputError
        Salt or key files cannot be written.
    """
    samples = manifest.samples
    files = dict.fromkeys(file for sample in samples for file in sample.files)
    n_medical = sum(is_medical(file) for file in files)
    if not n_medical:
        return manifest
    places = {s.path: CHANNEL_SEPARATOR.join(_absolute(file) for file in s.files) for s in samples}
    names = _Names(
        places,
        _names((*places.values(), *(_text_and_frame(s.id)[0] for s in samples)), "image"),
        _names((s.unit for s in samples), "patient"),
        _names((s.group for s in samples), "group"),
        _names((s.extra.get(SESSION, "") for s in samples), SESSION),
    )
    named = tuple(names.give(sample) for sample in samples)
    if len({sample.id for sample in named}) < len(named):
        raise DataError("two rows name the same image", "by different paths", "keep one, or tell them apart with `id`")
    _remember(samples, named, names)
    return replace(manifest, samples=named, notes=(*manifest.notes, *_note(n_medical, len(files))), is_private=True)


def _note(n_medical: int, n_files: int) -> tuple[str, ...]:
    """Say why pictures have no names: one stray DICOM file among them is enough."""
    if n_medical == n_files:
        return ()
    are = "is" if n_medical == 1 else "are"
    return (f"no file is called by its name, since {n_medical} of {n_files} {are} DICOM or NIfTI: --identified",)


class _Names(NamedTuple):
    """Public names of what stands in a manifest; ``places`` are the absolute paths of its paths."""

    places: Mapping[str, str]
    images: Mapping[str, str]
    units: Mapping[str, str]
    groups: Mapping[str, str]
    sessions: Mapping[str, str]

    def give(self, sample: Sample) -> Sample:
        """Return a sample under its public names; an image of a patient begins with the name of the patient."""
        image, unit = self.images[self.places[sample.path]], self.unit(sample.unit)
        path = f"{unit}/{image}" if unit.startswith("patient-") else image
        text, frame = _text_and_frame(sample.id)
        name = path if text == sample.path else self.images[text]
        is_unit = sample.group in self.units or sample.group in self.places
        group = self.unit(sample.group) if is_unit else self.groups[sample.group]
        session = sample.extra.get(SESSION)
        extra = {**sample.extra, SESSION: self.sessions[session]} if session else sample.extra
        return replace(sample, id=name + frame, path=path, unit=unit, group=group, extra=extra)

    def unit(self, text: str) -> str:
        """Return the name of a unit; one that is an image by itself has the name of the image."""
        return self.images[self.places[text]] if text in self.places else self.units[text]


def _names(texts: Iterable[str], kind: str) -> dict[str, str]:
    own = set(texts)
    return {text: text for text in own} | hashed((text for text in own if not is_public(text)), kind)


def _text_and_frame(name: str) -> tuple[str, str]:
    """Cut off the number of the frame that the program itself adds.

    >>> _text_and_frame("brains/a.nii#12")
    ('brains/a.nii', '#12')
    """
    text, mark, number = name.rpartition("#")
    return (text, mark + number) if mark and number.isdigit() else (name, "")


def _remember(samples: Sequence[Sample], named: Sequence[Sample], names: _Names) -> None:
    """Write what leads back from public names: to paths and ids of images, and to patients, groups and sessions."""
    pairs = list(zip(samples, named, strict=True))
    ids = {_text_and_frame(old.id)[0]: _text_and_frame(new.id)[0] for old, new in pairs}
    others = {**names.sessions, **names.groups, **names.units}
    remember({text: name for text, name in others.items() if text not in ("", name) and text not in names.places})
    own_ids = {text: name for text, name in ids.items() if text != name and text not in names.places}
    remember(own_ids | {names.places[old.path]: new.path for old, new in pairs}, IMAGES_FILE)


def order_of(sample: Sample) -> str:
    """Return what samples are sorted by: the id; the file where the id is a hash, which is another for every salt."""
    if not is_public(sample.path):
        return sample.id
    return f"{CHANNEL_SEPARATOR.join(file.as_posix() for file in sample.files)}#{sample.frame:09}"


def shown(sample: Sample, file: Path | None) -> str:
    """Return what reports call a mask: its path, or that of its image where paths are not shown."""
    return f"the mask of {sample.id}" if is_public(sample.path) else str(file)


def renamed(error: AnomalyAEError, sample: Sample) -> AnomalyAEError:
    """Return an error about a sample in whose words no path stands, where paths are not shown."""
    if not is_public(sample.path):
        return error
    given = [file for file in (sample.mask, sample.valid) if file is not None]
    masks = {str(one): shown(sample, file) for file in given for one in (file, *mask_files(file))}
    files = [*sample.files, *(file for one in sample.slices for file in one.files)]
    names = masks | dict.fromkeys(map(str, files), sample.id)
    rest = {*map(_absolute, names), *(part for name in names for part in PurePath(name).parts if len(part) > 1)}
    return _replaced(error, lambda text: _hide(_with_names(text, names), rest))


@contextmanager
def hiding_names(data: Sequence[Path], identified: bool) -> Iterator[None]:
    """Take paths and identifiers of private data out of errors that are raised while samples have no public names."""
    try:
        yield
    except AnomalyAEError as error:
        names = set() if identified else {name for path in data for name in names_below(path)}
        if not names:
            raise
        raise _replaced(error, lambda text: _hide(text, names)) from None


def names_below(data: Path) -> set[str]:
    """Return paths, names of files and folders, and identifiers in data; empty where no DICOM or NIfTI file is."""
    folder = data
    if holds(data.is_dir):
        files = _files_below(data)
        texts = {file.relative_to(data).as_posix() for file in files}.union(*(_texts_of(data / n) for n in GROUP_FILES))
    elif data.suffix.lower() in TABLE_SUFFIXES:
        folder = data.parent  # the table is the user's own: it keeps its name
        texts = _texts_of(data)
        files = [folder / text for text in texts]
    else:
        files, texts = [data], {data.name}
    if not any(is_medical(file) for file in files):
        return set()
    texts |= {str(folder), _absolute(folder)}
    parts = {part for text in texts for part in PurePath(text).parts}
    return {name for name in texts | parts if len(name) > 1 and name.lower() not in _LAYOUT_WORDS}


def _absolute(path: Path | str) -> str:
    return text_of(os.path.abspath(path))  # noqa: PTH100 - unlike `resolve` it leaves links what they are


def _files_below(folder: Path) -> list[Path]:
    return [Path(where) / name for where, _, names in os.walk(folder) for name in names]


def _texts_of(table: Path) -> set[str]:
    try:
        rows = read_table(table, ("path", "file"))
    except AnomalyAEError:
        return set()
    return {text for _, cells in rows for column in _NAMING_COLUMNS if (text := cells.get(column, ""))}


def _replaced(error: AnomalyAEError, change: Callable[[str], str]) -> AnomalyAEError:
    return type(error)(change(error.what), change(error.why), change(error.fix))


def _with_names(text: str, names: Mapping[str, str]) -> str:
    for name in sorted(names, key=len, reverse=True):
        text = text.replace(name, names[name])
    return text


def _hide(text: str, names: Iterable[str]) -> str:
    found = sorted((name for name in names if name in text), key=len, reverse=True)
    for name in found:
        text = re.sub(_as_a_name(name), _HIDDEN, text)
    return text


def _as_a_name(name: str) -> str:
    """Return a pattern: a name that is one word stands in quotes or in a path, or it may be an ordinary word."""
    word = re.escape(name)
    if not re.fullmatch(r"\w+", name):
        return rf"(?<!\w){word}(?!\w)"
    return rf"(?<=['\"]){word}(?=['\"])|(?<!\w){word}(?=[/\\])|(?<=[/\\]){word}(?!\w)"
