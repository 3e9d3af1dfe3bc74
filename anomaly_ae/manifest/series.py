"""DICOM files in a manifest: patients by salted hashes, slices in the order in which they lie in the patient."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from anomaly_ae.dicom import SliceHeader, Stack, hashed, is_dicom, remember, slice_header, stacks
from anomaly_ae.dicom.shared import file_head
from anomaly_ae.errors import UnreadableImageError
from anomaly_ae.manifest.slices import SPACING_COLUMN
from anomaly_ae.manifest.table import Manifest
from anomaly_ae.readers import DICOM_SUFFIXES
from anomaly_ae.records import Sample


def with_series(manifest: Manifest, identified: bool = False) -> Manifest:
    """Name the patient of every DICOM file as its unit and group, and put the slices of a series in their order.

    Which hash stands for which patient goes to the private key file. Files of other kinds stay as they are.
    `identified`: patients and series go by their own identifiers instead.

    Raises
    ------
    OutputError
        Salt or key file cannot be written.
    """
    found = {path: _header(file, path) for path, file in {s.path: s.files[0] for s in manifest.samples}.items()}
    headers = {path: header for path, header in found.items() if header is not None}
    if not headers:
        return manifest
    patients = {header.patient: header.patient for header in headers.values() if header.patient}
    if not identified:
        patients = hashed(patients, "patient")
        remember(patients)
    of_patient = {path: patients[header.patient] for path, header in headers.items() if header.patient}
    named = [
        replace(s, unit=of_patient[s.path], group=of_patient[s.path]) if s.path in of_patient else s
        for s in manifest.samples
    ]
    samples, notes = _in_order(named, headers, identified)
    return replace(manifest, samples=tuple(samples), notes=(*manifest.notes, *notes))


def _header(file: Path, name: str) -> SliceHeader | None:
    try:
        may_be = file.suffix.lower() in DICOM_SUFFIXES or is_dicom(file_head(file, name))
        return slice_header(file) if may_be else None
    except UnreadableImageError:  # it becomes a failure when it is read
        return None


def _in_order(
    samples: Sequence[Sample], headers: Mapping[str, SliceHeader], identified: bool
) -> tuple[list[Sample], list[str]]:
    """Return the samples with the slices of each series by position, and what is odd about the series."""
    by_series: defaultdict[str, list[Sample]] = defaultdict(list)
    n_frames = Counter(sample.path for sample in samples)
    for sample in samples:
        is_one = sample.path in headers and n_frames[sample.path] == 1  # a file of many frames is a volume by itself
        by_series[headers[sample.path].series if is_one else ""].append(sample)
    ordered = by_series.pop("", [])
    names = {series: series for series in by_series} if identified else hashed(by_series, "series")
    found: dict[str, list[Stack]] = {}
    for series, own in by_series.items():
        parts = stacks([headers[sample.path] for sample in own])
        ordered += _stacked(own, parts, names[series])
        found[names[series]] = parts
    return ordered, _notes(found)


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
        "slices of several orientations, taken as volumes": {n: len(p) for n, p in found.items() if len(p) > 1},
        "missing slices": {name: sum(part.n_missing for part in parts) for name, parts in found.items()},
        "slices where another lies": {name: sum(part.n_duplicates for part in parts) for name, parts in found.items()},
    }
    lines = [f"DICOM series: {len(found)}; volumes in them: {n_stacks}, their slices in the order in which they lie"]
    for what, counts in oddities.items():
        named = ", ".join(f"{name} ({n})" for name, n in counts.items() if n)
        lines += [f"DICOM series with {what}: {named}"] if named else []
    return lines
