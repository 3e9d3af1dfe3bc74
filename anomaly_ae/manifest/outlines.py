"""DICOM Segmentations in a manifest: which of them serves which slice, and what slices are called by them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from anomaly_ae.dicom import is_segmentation, referred_to
from anomaly_ae.errors import AnomalyAEError
from anomaly_ae.manifest.slices import VOLUME_LABEL_COLUMN
from anomaly_ae.readers import read_mask
from anomaly_ae.records import ANOMALOUS_LABEL, NORMAL_LABEL, Sample


class Outlined(NamedTuple):
    """Samples with their masks, and what became of the segmentations."""

    samples: list[Sample]
    n_damaged: int
    n_foreign: int
    n_contested: int
    n_unlabelled: int

    @property
    def notes(self) -> list[str]:
        """Say what people have to know."""
        counts = {
            "damaged DICOM segmentations, left out": self.n_damaged,
            "DICOM segmentations of no image that is listed": self.n_foreign,
            "slices that several DICOM segmentations mark, anomalous without a mask (join the segmentations)": (
                self.n_contested
            ),
            "slices of anomalous DICOM series without a mask, left without a label": self.n_unlabelled,
        }
        return [f"{what}: {n}" for what, n in counts.items() if n]


def with_outlines(samples: Sequence[Sample], files: Sequence[Path], uids: Mapping[str, frozenset[str]]) -> Outlined:
    """Give the slices of DICOM series their masks from segmentations, and by them, or by pictures, their labels.

    Parameters
    ----------
    samples : sequence of Sample
    files : sequence of Path
        The segmentations.
    uids : mapping of path to set of str
        What a DICOM sample can be referred to by: UIDs of its series and itself.
    """
    marks: defaultdict[str, dict[Path, bool | None]] = defaultdict(dict)
    n_damaged = n_foreign = 0
    for file in files:  # one after the other: each is read once
        referred = _referred_to(file)
        own = [s for s in samples if referred and uids.get(s.path, frozenset()) & referred]
        n_damaged, n_foreign = n_damaged + (referred is None), n_foreign + (referred is not None and not own)
        for sample in own:
            marks[sample.id][file] = _is_marked(file, sample)
    for sample in _with_own_masks(samples, marks):
        marks[sample.id] = {file: _is_marked(file, sample) for file in (sample.mask,) if file}
    contested = {name for name, own in marks.items() if list(own.values()).count(True) > 1}
    masked = [_masked(s, marks[s.id]) if marks.get(s.id) else s for s in samples]
    volumes: defaultdict[str, list[Sample]] = defaultdict(list)
    for sample in masked:
        volumes[sample.volume or sample.id].append(sample)
    labelled = {s.id: s for own in volumes.values() for s in _labelled(own, marks)}
    found = [labelled[s.id] for s in masked]
    pairs = zip(samples, found, strict=True)
    n_unlabelled = sum(VOLUME_LABEL_COLUMN in new.extra and new.extra != old.extra for old, new in pairs)
    return Outlined(found, n_damaged, n_foreign, len(contested), n_unlabelled)


def _with_own_masks(samples: Sequence[Sample], marks: Mapping[str, object]) -> list[Sample]:
    """Slices of series whose masks are pictures, each beside its slice: no segmentation serves them."""
    n_slices = Counter(sample.volume for sample in samples)
    return [s for s in samples if s.mask and s.volume and n_slices[s.volume] > 1 and s.id not in marks]


def label_rows(samples: Sequence[Sample]) -> list[Sample]:
    """Label the rows of a table whose mask is a segmentation and whose label is empty.

    Marked slices are anomalous, all others normal; where one is marked, all get the split "test" if they have none.
    """
    asked = [s for s in samples if s.mask is not None and not s.label and is_segmentation(s.mask)]
    marks = {s.id: {s.mask: _is_marked(s.mask, s)} for s in asked if s.mask is not None}
    volumes: defaultdict[Path | None, list[Sample]] = defaultdict(list)
    for sample in asked:
        volumes[sample.mask].append(sample)
    labelled = {s.id: s for own in volumes.values() for s in _labelled(own, marks)}
    return [labelled.get(s.id, s) for s in samples]


def _referred_to(file: Path) -> frozenset[str] | None:
    try:
        return referred_to(file)
    except AnomalyAEError:
        return None


def _is_marked(file: Path, sample: Sample) -> bool | None:
    """Whether a segmentation marks something in a slice; None where it cannot be used, which `scan` tells of."""
    try:
        return bool(read_mask(file, frame=sample.frame, image_file=sample.files[0]).any())
    except AnomalyAEError:
        return None


def _masked(sample: Sample, marks: Mapping[Path, bool | None]) -> Sample:
    """Give a slice the mask that marks it, one that cannot be used, or any that is empty there; none of several."""
    marking = [file for file, is_marked in marks.items() if is_marked]
    if len(marking) > 1:
        return replace(sample, mask=None)
    broken = [file for file, is_marked in marks.items() if is_marked is None]
    return replace(sample, mask=next(iter([*broken, *marking, *marks])))


def _labelled(own: Sequence[Sample], marks: Mapping[str, Mapping[Path, bool | None]]) -> list[Sample]:
    """Label the slices of one volume, as `slices.slices_of` does: by its masks, and none where nobody knows which."""
    given = {sample.label for sample in own}
    is_usable = all(None not in marks.get(sample.id, {}).values() for sample in own)
    marked = {sample.id for sample in own if any(marks.get(sample.id, {}).values())}
    if NORMAL_LABEL in given:  # each slice has its own label, or `scan` refuses a mask on a normal volume
        return list(own)
    if any(marks.get(sample.id) for sample in own) and is_usable and (marked or ANOMALOUS_LABEL not in given):
        labels = {s.id: ANOMALOUS_LABEL if s.id in marked else NORMAL_LABEL for s in own}
        return [_called(s, labels[s.id], is_anomalous=bool(marked)) for s in own]
    if len(own) == 1 or ANOMALOUS_LABEL not in given:
        return list(own)
    return [_called(replace(s, extra={**s.extra, VOLUME_LABEL_COLUMN: ANOMALOUS_LABEL}), "", True) for s in own]


def _called(sample: Sample, label: str, is_anomalous: bool) -> Sample:
    """Nothing is learned unasked from a volume with a lesion."""
    split = sample.split or ("test" if is_anomalous else "")
    return replace(sample, label=label, split=split, defect=sample.defect if label == ANOMALOUS_LABEL else "")
