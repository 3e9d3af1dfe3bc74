"""The data sets of the bench: folders with a manifest, and embedded images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from anomaly_ae.errors import UsageError
from anomaly_ae.manifest import load_manifest
from anomaly_ae.synthetic import make_dataset

EMBEDDED_KINDS = ("part", "surface")


@dataclass(frozen=True, slots=True)
class DataSet:
    """One data set.

    Attributes
    ----------
    manifest : Path
        A CSV, or the folder of embedded images.
    sha256 : str
        Of the CSV; of embedded images, which have none, of all files.
    without_defects : tuple of str
        Kinds of defect that one of the pixel figures leaves out.
    """

    name: str
    manifest: Path
    sha256: str
    without_defects: tuple[str, ...] = ()


def real_sets(root: Path, manifest: str, names: Sequence[str] | None) -> list[DataSet]:
    """Return the data sets below a folder: those named, or all that have such a manifest.

    Raises
    ------
    UsageError
        There is none, or not the one named.
    """
    found = {path.parent.name: path for path in sorted(root.glob(f"*/{manifest}"))}
    missing = sorted(set(names or ()) - set(found))
    if missing or not found:
        what = f"no {root / (missing[0] if missing else '*') / manifest}"
        raise UsageError(what, "", f"data sets there: {', '.join(found) or 'none'}; check ROOT, --sets, --manifest")
    return [DataSet(name, found[name], _sha256([found[name]])) for name in names or found]


def embedded_sets(folder: Path, **counts: int) -> list[DataSet]:
    """Generate parts and surfaces below a folder, where they are not there yet; ``counts`` as in `make_dataset`."""
    sets = []
    for kind in EMBEDDED_KINDS:
        place = folder / kind
        if not place.exists() or not any(place.iterdir()):
            make_dataset(place, kind, **counts)
        sets.append(DataSet(f"embedded_{kind}", place, _sha256(p for p in place.rglob("*") if p.is_file())))
    return sets


def leave_out(sets: Iterable[DataSet], left_out: Sequence[str]) -> list[DataSet]:
    """Note in the data sets which kinds of defect are left out: ``left_out`` is ``SET:DEFECT``, as on the command line.

    Raises
    ------
    UsageError
        No such set here, or no such defect in it.
    """
    by_set: dict[str, list[str]] = {}
    for text in left_out:
        name, separator, defect = text.partition(":")
        if not separator or not defect:
            raise UsageError(f"--without-defects {text}", "", "write SET:DEFECT, e.g. magnetic_tile:uneven")
        by_set.setdefault(name, []).append(defect)
    sets = list(sets)
    unknown = sorted(set(by_set) - {data.name for data in sets})
    if unknown:
        raise UsageError(
            f"--without-defects {unknown[0]}:...", "no such set", f"sets: {', '.join(d.name for d in sets)}"
        )
    return [_without(data, by_set) for data in sets]


def _without(data: DataSet, by_set: Mapping[str, Sequence[str]]) -> DataSet:
    names = sorted(set(by_set.get(data.name, ())))
    if not names:
        return data
    known = {sample.defect for sample in load_manifest(data.manifest).samples if sample.defect}
    for name in names:
        if name not in known:
            raise UsageError(f"no defect '{name}' in {data.name}", "", f"defects there: {', '.join(sorted(known))}")
    return replace(data, without_defects=tuple(names))


def _sha256(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
