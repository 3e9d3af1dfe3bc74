"""Volumes in a manifest: one row per slice of a NIfTI file, each with its own label."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from anomaly_ae.errors import AnomalyAEError
from anomaly_ae.nifti import read_grid, read_nifti
from anomaly_ae.readers import read_channels, read_mask
from anomaly_ae.records import ANOMALOUS_LABEL, NORMAL_LABEL, Sample, Slice

SPACING_COLUMN = "slice_spacing_mm"
VOLUME_LABEL_COLUMN = "volume_label"  # filled only where the slices of an anomalous volume have no label of their own

_ONE_SPACING = 1.05  # largest to smallest; rounding in headers is not worth a note


def is_suspect(label: str, columns: Mapping[str, str]) -> bool:
    """Return whether an image is anomalous, or a slice of an anomalous volume of which nobody knows where.

    Parameters
    ----------
    columns : mapping
        Further columns of its row: ``extra`` of a `Sample` or of a result.
    """
    return ANOMALOUS_LABEL in (label, columns.get(VOLUME_LABEL_COLUMN))


def slices_of(whole: Sample) -> list[Sample]:
    """List the slices of a row that names a NIfTI volume.

    Where its mask marks something, the slices that are marked are anomalous, and all others normal. An anomalous volume
    whose mask is missing, empty, damaged or on another grid gives slices without a label. Nothing is learned from such
    volumes unasked: their slices get the split "test" where they have none.

    Slices that show nothing, with one value everywhere inside `valid`, are not listed. A volume that cannot be read, or
    shows nothing at all, keeps its one row.
    """
    try:
        grid = read_grid(whole.files[0])
        n_frames = read_nifti(whole.files[0]).n_frames  # decoded once: a damaged file is not tried slice by slice
    except AnomalyAEError:
        return [whole]  # it becomes a failure when it is read
    labels = _labels(whole, [frame for frame in range(n_frames) if _shows_something(whole, frame)])
    is_anomalous = ANOMALOUS_LABEL in (whole.label, *labels.values())
    known = {SPACING_COLUMN: f"{grid.slice_spacing_mm:.4g}"}
    if is_anomalous and not any(labels.values()):
        known[VOLUME_LABEL_COLUMN] = ANOMALOUS_LABEL
    slices = [
        replace(
            whole,
            id=whole.id if n_frames == 1 else f"{whole.id}#{frame}",
            frame=frame,
            label=label,
            split=whole.split or ("test" if is_anomalous else ""),
            defect=whole.defect if label == ANOMALOUS_LABEL else "",
            extra={**whole.extra, **known},
        )
        for frame, label in labels.items()
    ]
    return slices or [whole]


def _labels(whole: Sample, frames: Sequence[int]) -> dict[int, str]:
    marked = None if whole.label == NORMAL_LABEL else _marked(whole, frames)
    if marked is None or (whole.label == ANOMALOUS_LABEL and not marked):
        return dict.fromkeys(frames, "" if whole.label == ANOMALOUS_LABEL else whole.label)
    return {frame: ANOMALOUS_LABEL if frame in marked else NORMAL_LABEL for frame in frames}


def _marked(whole: Sample, frames: Sequence[int]) -> set[int] | None:
    """Return the frames in which the mask marks something; None where there is no mask that can be used."""
    if whole.mask is None:
        return None
    try:
        return {frame for frame in frames if read_mask(whole.mask, None, frame, whole.files[0]).any()}
    except AnomalyAEError:
        return None  # `scan` names it


def _shows_something(whole: Sample, frame: int) -> bool:
    try:
        pixels = read_channels(whole.files, frame).pixels
        valid = None if whole.valid is None else read_mask(whole.valid, pixels.shape[1:], frame)
    except AnomalyAEError:
        return True  # it is told of when it is read
    inside = pixels.reshape(len(pixels), -1) if valid is None else pixels[:, valid]  # (C, k)
    return bool((inside != inside[:, :1]).any())


def is_slice(sample: Sample) -> bool:
    """Whether a row is one slice of a volume."""
    return not sample.is_volume and (bool(sample.volume) or SPACING_COLUMN in sample.extra)


def with_slices(samples: Iterable[Sample]) -> tuple[Sample, ...]:
    """Tell every row which slices its volume has, where the file alone cannot tell.

    That is where rows name a volume, and where frames of one file have masks of their own.
    """
    samples = tuple(samples)
    slices: defaultdict[str, list[Slice]] = defaultdict(list)
    for sample in samples:
        slices[sample.volume or sample.path].append(Slice(sample.files, sample.frame, sample.valid))
    all_of = {name: tuple(own) for name, own in slices.items()}
    with_own_masks = {name for name, own in all_of.items() if len({one.valid for one in own}) > 1}
    return tuple(
        replace(s, slices=all_of[s.volume or s.path]) if s.volume or s.path in with_own_masks else s for s in samples
    )


def spacing_notes(samples: Iterable[Sample]) -> tuple[str, ...]:
    """Say where slices lie at different distances: a finding of one size is then seen in more or in fewer of them."""
    found = {float(s.extra[SPACING_COLUMN]) for s in samples if s.extra.get(SPACING_COLUMN)}
    if not found or max(found) <= _ONE_SPACING * min(found):
        return ()
    return (f"slices lie {min(found):g} to {max(found):g} mm apart, differently from volume to volume",)


def counted_for_unit(samples: Sequence[Sample], every_mm: float) -> list[bool]:
    """Say which rows count for the score of their unit: of the slices of a volume about one in `every_mm`.

    As many neighbours as come closest to that distance have one among them that counts, the middle one; so a volume is
    looked at equally often whatever its slices' distance. What is no slice, or lies at a distance that nobody knows,
    counts, and so does every slice where `every_mm` is 0.
    """
    volumes: defaultdict[str, list[int]] = defaultdict(list)
    for row, sample in enumerate(samples):
        volumes[sample.volume or sample.path].append(row)
    counted = [False] * len(samples)
    for own in volumes.values():
        first = samples[own[0]]
        spacing_mm = 0.0 if first.is_volume else float(first.extra.get(SPACING_COLUMN) or 0)
        n_neighbours = max(1, round(every_mm / spacing_mm)) if spacing_mm else 1
        for row in own[n_neighbours // 2 :: n_neighbours] or [own[len(own) // 2]]:
            counted[row] = True
    return counted


def largest_spacing_mm(samples: Iterable[Sample]) -> float:
    """Return the largest distance of slices in these rows; 0 where none is known."""
    return max((float(s.extra.get(SPACING_COLUMN) or 0) for s in samples if not s.is_volume), default=0.0)
