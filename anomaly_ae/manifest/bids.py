"""A folder in the layout of BIDS, the Brain Imaging Data Structure, becomes a manifest (bids-specification 1.10)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from anomaly_ae.errors import DataError, UsageError
from anomaly_ae.files import holds
from anomaly_ae.manifest.slices import slices_of
from anomaly_ae.manifest.table import COLUMNS, LABELS, SPLITS, Manifest, make_sample, read_table
from anomaly_ae.records import Sample

DESCRIPTION = "dataset_description.json"
PARTICIPANTS = "participants.tsv"

_NAMED = ("session", "suffix")  # further columns, taken from the names of the files
_OF_THE_MASK = ("label", "desc", "space", "res")  # entities that say what a mask is, not of which image
_BRAIN = "brain"


def is_bids(folder: Path) -> bool:
    """Whether a folder says that it follows BIDS."""
    return holds((folder / DESCRIPTION).is_file) and any(folder.glob("sub-*"))


def bids_manifest(root: Path, suffix: str | None = None) -> Manifest:
    """List the slices of all ``sub-*/[ses-*/]anat/*_SUFFIX.nii[.gz]``; a subject is unit and group.

    Masks are ``derivatives/**/sub-*_mask.nii[.gz]``: with ``label-brain`` or ``desc-brain`` what belongs to the image
    (`valid`), else the lesion. They belong to the image whose entities they share. Columns of ``participants.tsv`` are
    kept; ``label`` and ``split`` mean what they mean in a manifest.

    Parameters
    ----------
    root : Path
    suffix : str, optional
        "T1w", "FLAIR"; needed where there are several, since one model sees one kind of image.

    Raises
    ------
    DataError
        No image, several suffixes and none chosen, two masks of one image, a damaged ``participants.tsv``.
    UsageError
        No image has that suffix.
    """
    images = _chosen([*_below(root, "sub-*/anat"), *_below(root, "sub-*/ses-*/anat")], suffix, root)
    masks = [file for file in _below(root, "derivatives/**") if _suffix(file) == "mask"]
    participants = _participants(root / PARTICIPANTS)
    wholes = [_whole(root, image, masks, participants) for image in images]
    subjects = {whole.unit for whole in wholes}
    counts = (
        (len(masks) - len({m for w in wholes for m in (w.mask, w.valid) if m}), "masks of no image that is listed"),
        (len(subjects - participants.keys()) if participants else 0, f"subjects that {PARTICIPANTS} does not name"),
    )
    notes = tuple(f"{what}: {n}" for n, what in counts if n)
    return Manifest(root, tuple(s for whole in wholes for s in slices_of(whole)), notes, "bids")


def _below(root: Path, folder: str) -> list[Path]:
    """Return NIfTI files of subjects in such folders, sorted."""
    files = (file for pattern in ("sub-*.nii", "sub-*.nii.gz") for file in root.glob(f"{folder}/{pattern}"))
    return sorted(files, key=lambda file: file.relative_to(root).as_posix())


def _stem(file: Path) -> str:
    return file.name.removesuffix(".gz").removesuffix(".nii")


def _suffix(file: Path) -> str:
    return _stem(file).rsplit("_", 1)[-1]


def _entities(file: Path) -> dict[str, str]:
    """Return the parts of a name.

    >>> _entities(Path("sub-01_ses-2_T1w.nii.gz"))
    {'sub': '01', 'ses': '2'}
    """
    parts = (part.partition("-") for part in _stem(file).split("_"))
    return {key: value for key, dash, value in parts if dash}


def _chosen(images: Sequence[Path], suffix: str | None, root: Path) -> list[Path]:
    counts = Counter(_suffix(image) for image in images)
    named = ", ".join(f"{name} ({n})" for name, n in sorted(counts.items()))
    if not images:
        raise DataError(f"no image in {root}", "BIDS keeps them in sub-*/anat or sub-*/ses-*/anat", "check the path")
    if suffix is None and len(counts) > 1:
        fix = f"choose: anomaly-ae scan {root} --suffix {min(counts)} --out {min(counts)}.csv, and use that table"
        raise DataError(f"{root} holds several kinds of images: {named}", "one model sees one kind", fix)
    if suffix is not None and suffix not in counts:
        raise UsageError(f"no image in {root} is called *_{suffix}", f"there are {named}", "choose one of these")
    return [image for image in images if suffix in (None, _suffix(image))]


def _whole(root: Path, image: Path, masks: Sequence[Path], participants: Mapping[str, Mapping[str, str]]) -> Sample:
    entities = _entities(image)
    subject = f"sub-{entities['sub']}"
    known = participants.get(subject, {})
    own = [mask for mask in masks if _belongs(_entities(mask), entities, _suffix(image))]
    brains = [mask for mask in own if _BRAIN in (_entities(mask).get("label"), _entities(mask).get("desc"))]
    kept = {name: value for name, value in known.items() if name not in ("label", "split")}
    extra = {**kept, "session": entities.get("ses", ""), "suffix": _suffix(image)}
    path = image.relative_to(root).as_posix()
    whole = make_sample(root, path, unit=subject, label=known.get("label", ""), split=known.get("split", ""))
    lesions = [mask for mask in own if mask not in brains]
    return replace(whole, mask=_only(lesions, path), valid=_only(brains, path), extra=extra)


def _belongs(of_mask: Mapping[str, str], of_image: Mapping[str, str], suffix: str) -> bool:
    """A mask of ``sub-1`` is of every image of the subject, one of ``sub-1_ses-2`` of those of the session."""
    said = {key: value for key, value in of_mask.items() if key not in _OF_THE_MASK}
    return said.items() <= of_image.items() and of_mask.get("space", suffix) in (suffix, "orig")


def _only(masks: Sequence[Path], path: str) -> Path | None:
    if len(masks) > 1:
        names = " and ".join(mask.name for mask in masks[:2])
        fix = "join them into one, or give a CSV that names one per image"
        raise DataError(f"{path} has {len(masks)} masks", f"among them {names}", fix)
    return masks[0] if masks else None


def _participants(file: Path) -> dict[str, dict[str, str]]:
    """Return the further columns by subject; a name that a manifest has already begins with ``participant_``."""
    if not file.is_file():
        return {}
    found: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for number, cells in read_table(file, ("participant_id",)):
        for name, value in cells.items():
            if name == "participant_id":
                continue
            is_taken = name in (*COLUMNS, *_NAMED) and name not in ("label", "split")
            text = "" if value == "n/a" else value
            _check_word(file, number, name, text)
            found[cells["participant_id"]][f"participant_{name}" if is_taken else name] = text
    return dict(found)


def _check_word(file: Path, number: int, name: str, text: str) -> None:
    accepted = {"label": LABELS, "split": SPLITS}.get(name)
    if accepted and text not in accepted:
        words = ", ".join(repr(word) for word in accepted if word)
        raise DataError(f"{file}, row {number}: {name} {text!r}", f"accepted: {words} or an empty cell", "correct it")
