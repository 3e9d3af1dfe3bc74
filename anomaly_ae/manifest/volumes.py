"""Volumes in place of their slices: what a network for volumes learns from and looks at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from anomaly_ae.dicom import is_dicom
from anomaly_ae.dicom.shared import file_head
from anomaly_ae.errors import AnomalyAEError, DataError
from anomaly_ae.manifest.slices import SPACING_COLUMN, VOLUME_LABEL_COLUMN
from anomaly_ae.nifti import is_nifti_file, volume_frames
from anomaly_ae.records import ANOMALOUS_LABEL, NORMAL_LABEL, Sample, Slice


def volumes_of(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """Return one row per volume in place of its slices: NIfTI (one per time), DICOM series, DICOM files of many frames.

    Slices that a folder scan leaves out, such as air, are in the volume again, so that it has the shape of its file;
    where slices have `valid` masks of their own, only those that are listed are in it. A volume is anomalous where one
    of its slices is. It is called by the file of its first slice. Flat images, and volumes that are there already, stay
    as they are; to be refused is for who takes them.

    Raises
    ------
    DataError
        Slices of one volume stand in different splits.
    """
    n_rows = Counter(sample.path for sample in samples)
    rows: dict[tuple[str, int], list[Sample]] = {}
    for number, sample in enumerate(samples):
        rows.setdefault(_volume_of(sample, number, n_rows[sample.path]), []).append(sample)
    n_volumes = Counter(own[0].path for own in rows.values())
    return tuple(
        own[0] if name == "" else _whole(own, is_only_one=n_volumes[own[0].path] == 1)
        for (name, _), own in rows.items()
    )


def taken(samples: Sequence[Sample], spatial_dims: int) -> tuple[Sample, ...]:
    """Return the rows that a model takes: where it looks at volumes (3), these in place of their slices."""
    return volumes_of(samples) if spatial_dims == 3 else tuple(samples)


def _volume_of(sample: Sample, number: int, n_rows: int) -> tuple[str, int]:
    """Return what the slices of a volume have in common; ("", row number) for what is none."""
    if sample.is_volume:
        return "", number
    if sample.volume:
        return sample.volume, -1
    try:
        if is_nifti_file(sample.files[0]):
            return sample.path, volume_frames(sample.files[0], sample.frame).start
        if n_rows > 1 and is_dicom(file_head(sample.files[0], sample.path)):
            return sample.path, -1
    except AnomalyAEError:  # it becomes a failure when it is read
        pass
    return "", number


def _whole(own: Sequence[Sample], is_only_one: bool) -> Sample:
    first = own[0]
    splits = {sample.split for sample in own}
    if len(splits) > 1:
        what = f"slices of the volume {first.path} stand in the splits {' and '.join(sorted(map(repr, splits)))}"
        raise DataError(what, "a network for volumes takes them as one", "give its rows one split, or look at slices")
    slices = _slices(own)
    label = _label(own)
    return replace(
        first,
        id=first.path if is_only_one else f"{first.path}#{slices[0].frame}",
        files=tuple(dict.fromkeys(file for one in slices for file in one.files)),
        frame=slices[0].frame,
        label=label,
        mask=next((sample.mask for sample in own if sample.mask), None),
        defect=next((sample.defect for sample in own if sample.defect), "") if label == ANOMALOUS_LABEL else "",
        slices=slices,
        is_volume=True,
        extra={name: text for name, text in first.extra.items() if name != VOLUME_LABEL_COLUMN},
    )


def _slices(own: Sequence[Sample]) -> tuple[Slice, ...]:
    """Return what the volume is read from: all slices of a NIfTI file, unless each row has its own valid mask."""
    listed = [Slice(s.files, s.frame, s.valid, s.mask) for s in own]
    first = listed[0]
    is_one_file = not own[0].volume and is_nifti_file(first.files[0])
    if not is_one_file or len({one.valid for one in listed}) > 1:
        return tuple(listed)
    of_frame = {one.frame: one for one in listed}
    unlisted = first if len({one.mask for one in listed}) == 1 else first._replace(mask=None)
    frames = volume_frames(first.files[0], first.frame)
    return tuple(of_frame.get(frame, unlisted._replace(frame=frame)) for frame in frames)


def _label(own: Sequence[Sample]) -> str:
    labels = {sample.label for sample in own} | {sample.extra.get(VOLUME_LABEL_COLUMN, "") for sample in own}
    if ANOMALOUS_LABEL in labels:
        return ANOMALOUS_LABEL
    return NORMAL_LABEL if all(sample.label == NORMAL_LABEL for sample in own) else ""


def slice_spacing_mm(sample: Sample) -> float | None:
    """Return the distance of the slices of a volume; None where it is not known."""
    text = sample.extra.get(SPACING_COLUMN, "")
    return float(text) if text else None
