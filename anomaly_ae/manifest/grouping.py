"""Groups that the user names: in a table beside the images, or by a pattern in their paths."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path, PurePosixPath

from anomaly_ae.errors import DataError, UsageError
from anomaly_ae.manifest.slices import is_slice
from anomaly_ae.manifest.table import Manifest, read_table
from anomaly_ae.records import Sample
from anomaly_ae.words import n_of

GROUP_FILES = ("groups.tsv", "groups.csv")

_N_EXAMPLES = 3


def with_group_file(manifest: Manifest, folder: Path, name: str = "") -> Manifest:
    """Take the groups from ``groups.tsv`` or ``groups.csv`` (columns path, group) of a folder, when there is one.

    `name` is what the paths of the samples of this folder begin with; its rows do without.
    """
    file = next((folder / own for own in GROUP_FILES if (folder / own).is_file()), None)
    if file is None:
        return manifest
    top = PurePosixPath(name)
    groups = {(top / path).as_posix(): group for path, group in _read_groups(file).items()}
    paths = {sample.path for sample in manifest.samples if PurePosixPath(sample.path).is_relative_to(top)}
    samples = tuple(replace(s, group=groups.get(s.path, s.group)) for s in manifest.samples)
    counts = (
        (len(groups.keys() - paths), "rows without an image"),
        (len(paths - groups.keys()), "images without a row (each its own group)"),
    )
    notes = tuple(f"{file.name}: {what}: {n}" for n, what in counts if n)
    return replace(manifest, samples=samples, notes=manifest.notes + notes)


def _read_groups(file: Path) -> dict[str, str]:
    groups: dict[str, str] = {}
    for number, cells in read_table(file, ("path", "file")):
        path = PurePosixPath((cells.get("path") or cells.get("file", "")).replace("\\", "/")).as_posix()
        group = cells.get("group", "")
        if not group:
            raise DataError(f"{file}, row {number} names no group", "columns: path, group", "fill the cell")
        if groups.setdefault(path, group) != group:
            what = f"{file}, row {number} puts {path} in group {group!r}"
            raise DataError(what, f"an earlier row says {groups[path]!r}", "keep one of the rows")
    return groups


def group_by_regex(manifest: Manifest, group_regex: str, folders: Collection[PurePosixPath] = ()) -> Manifest:
    r"""Take the groups from the paths; of slices, and where the pattern has a part named unit, the units, too.

    Parameters
    ----------
    manifest : Manifest
    group_regex : str
        Searched in each path. The group is the part named ``group``, else the first bracketed part, else the match;
        the unit is the part named ``unit``: ``(?P<unit>patient\d+)`` makes the patient both.
    folders : collection of PurePosixPath
        What paths may begin with that says nothing of the image: the folders that were given.

    Raises
    ------
    UsageError
        `group_regex` is no regular expression.
    DataError
        It finds nothing in a path.
    """
    try:
        pattern = re.compile(group_regex)
    except re.error as error:
        raise UsageError(f"'{group_regex}' is no regular expression", str(error), "example: 'part(\\d+)'") from error
    return replace(manifest, samples=tuple(_grouped(sample, pattern, folders) for sample in manifest.samples))


def with_group_note(manifest: Manifest, group_regex: str) -> Manifest:
    """Say which groups a pattern found."""
    groups = sorted({sample.group for sample in manifest.samples})
    examples = ", ".join(repr(group) for group in groups[:_N_EXAMPLES])
    note = f"group from '{group_regex}': {n_of(len(groups), 'group')}, such as {examples}"
    return replace(manifest, notes=(*manifest.notes, note))


def _grouped(sample: Sample, pattern: re.Pattern[str], folders: Collection[PurePosixPath]) -> Sample:
    whole = PurePosixPath(sample.path)
    path = next((whole.relative_to(one).as_posix() for one in folders if whole.is_relative_to(one)), sample.path)
    group = _part(pattern, path, "group" if "group" in pattern.groupindex else 1 if pattern.groups else 0)
    if "unit" in pattern.groupindex:
        return replace(sample, group=group, unit=_part(pattern, path, "unit"))
    return replace(sample, group=group, unit=group if is_slice(sample) else sample.unit)


def _part(pattern: re.Pattern[str], path: str, part: str | int) -> str:
    found = pattern.search(path)
    text = found.group(part) if found else None
    if not text:
        what = f"the group pattern '{pattern.pattern}' finds nothing in {path!r}"
        raise DataError(what, "every image needs a group", "widen the pattern, or use groups.tsv")
    return text
