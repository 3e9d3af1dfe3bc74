"""DICOM files in a manifest: patients by salted hashes, slices in the order in which they lie in the patient."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from anomaly_ae.dicom import FileHeader, Stack, file_header, hashed, is_dicom, remember, stacks
from anomaly_ae.dicom.shared import file_head
from anomaly_ae.errors import UnreadableImageError
from anomaly_ae.manifest.outlines import with_outlines
from anomaly_ae.manifest.slices import SPACING_COLUMN
from anomaly_ae.manifest.table import Manifest
from anomaly_ae.readers import DICOM_SUFFIXES
from anomaly_ae.records import Sample


def with_series(manifest: Manifest, identified: bool = False, named: Collection[str] = ()) -> Manifest:
    """Name the patient of every DICOM file as its unit and group, and put the slices of a series in their order.

    Which hash stands for which patient goes to the private key file. Files of other kinds stay as they are.
    Segmentations become masks of the images that they refer to. Objects without an image are left out, and told of.

    Parameters
    ----------
    manifest : Manifest
    identified : bool
        Patients and series go by their own identifiers.
    named : collection of str
        Paths that the user named one by one: they stay, whatever they are.

    Raises
    ------
    OutputError
        Salt or key file cannot be written.
    """
    found = {path: _header(file, path) for path, file in {s.path: s.files[0] for s in manifest.samples}.items()}
    headers = {path: header for path, header in found.items() if header is not None}
    if not headers:
        return manifest
    others = {path: header.kind for path, header in headers.items() if header.kind != "image" and path not in named}
    images = [sample for sample in manifest.samples if sample.path not in others]
    samples, notes = _in_order(_of_patients(images, headers, identified), headers, identified)
    files = {s.files[0]: None for s in manifest.samples if others.get(s.path) == "segmentation"}
    outlined = with_outlines(samples, list(files), {path: _uids(header) for path, header in headers.items()})
    notes += [*_notes_on_others(others), *outlined.notes]
    return replace(manifest, samples=tuple(outlined.samples), notes=(*manifest.notes, *notes))


def _header(file: Path, name: str) -> FileHeader | None:
    try:
        may_be = file.suffix.lower() in DICOM_SUFFIXES or is_dicom(file_head(file, name))
        return file_header(file) if may_be else None
    except UnreadableImageError:  # it becomes a failure when it is read
        return None


def _uids(header: FileHeader) -> frozenset[str]:
    return frozenset({header.instance, header.frames[0].series.rpartition("/")[2]} - {""})


def _notes_on_others(others: Mapping[str, str]) -> list[str]:
    kinds = Counter(kind.removesuffix(" Storage") for kind in others.values())
    n_masks = kinds.pop("segmentation", 0)
    named = ", ".join(f"{kind} ({n})" for kind, n in sorted(kinds.items()))
    return [f"DICOM segmentations, taken as masks: {n_masks}"] * (n_masks > 0) + [
        f"skipped DICOM objects that hold no image: {named}"
    ] * bool(named)


def _of_patients(samples: Iterable[Sample], headers: Mapping[str, FileHeader], identified: bool) -> list[Sample]:
    of_path = {path: header.frames[0].patient for path, header in headers.items() if header.frames[0].patient}
    names = {patient: patient for patient in of_path.values()}
    if not identified:
        names = hashed(names, "patient")
        remember(names)
    of_patient = {path: names[patient] for path, patient in of_path.items()}
    return [
        replace(s, unit=of_patient[s.path], group=of_patient[s.path]) if s.path in of_patient else s for s in samples
    ]


def _in_order(
    samples: Sequence[Sample], headers: Mapping[str, FileHeader], identified: bool
) -> tuple[list[Sample], list[str]]:
    """Return the samples with the slices of each series by position, and what is odd about the series."""
    by_series: defaultdict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_series[_series_of(headers.get(sample.path))].append(sample)
    ordered = by_series.pop("", [])
    names = {series: series for series in by_series} if identified else hashed(by_series, "series")
    found: dict[str, list[Stack]] = {}
    for series, own in by_series.items():
        parts = stacks([headers[sample.path].frames[sample.frame] for sample in own])
        ordered += _stacked(own, parts, names[series])
        found[names[series]] = parts
    return ordered, _notes(found)


def _series_of(header: FileHeader | None) -> str:
    """Return what the slices of a volume share; a file of many frames, which say where they lie, is one by itself."""
    if header is None or not header.frames[0].series:
        return ""
    if len(header.frames) == 1:
        return header.frames[0].series
    has_places = any(frame.position and frame.orientation for frame in header.frames)
    return f"{header.frames[0].series}/{header.instance}" if has_places else ""


def _stacked(own: Sequence[Sample], parts: Sequence[Stack], series: str) -> list[Sample]:
    """Return the files without a place, and after them each stack."""
    placed = {index for part in parts for index in part.indices}
    samples = [sample for index, sample in enumerate(own) if index not in placed]
    for number, part in enumerate(parts, start=1):
        name = series if len(parts) == 1 else f"{series}-{number}"
        spacing = "" if part.spacing_mm is None else f"{part.spacing_mm:.4g}"
        for row in (own[index] for index in part.indices):
            samples.append(replace(row, volume=name, extra={**row.extra, SPACING_COLUMN: spacing}))
    return samples


def _notes(found: Mapping[str, Sequence[Stack]]) -> list[str]:
    """Say what is odd about the series, by their hashes."""
    n_stacks = sum(len(parts) for parts in found.values())
    if not n_stacks:
        return []
    oddities = {
        "slices of several orientations, stacks or times, taken as volumes": {
            n: len(p) for n, p in found.items() if len(p) > 1
        },
        "missing slices": {name: sum(part.n_missing for part in parts) for name, parts in found.items()},
        "slices where another lies": {name: sum(part.n_duplicates for part in parts) for name, parts in found.items()},
    }
    lines = [f"DICOM series: {len(found)}; volumes in them: {n_stacks}, their slices in the order in which they lie"]
    for what, counts in oddities.items():
        named = ", ".join(f"{name} ({n})" for name, n in counts.items() if n)
        lines += [f"DICOM series with {what}: {named}"] if named else []
    return lines
