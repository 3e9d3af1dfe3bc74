"""Which files of a folder are masks, and of which image."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from anomaly_ae.dicom import is_segmentation
from anomaly_ae.errors import AnomalyAEError
from anomaly_ae.manifest.layouts import IMAGE_FOLDERS, SPLIT_FOLDERS, Place, label_of
from anomaly_ae.manifest.naming import is_medical
from anomaly_ae.readers import MASK_SEPARATOR, looks_like_image, read_image, read_mask
from anomaly_ae.records import ANOMALOUS_LABEL, NORMAL_LABEL
from anomaly_ae.sampling import spread_evenly

_SURE_FOLDERS = frozenset({"ground_truth", "groundtruth", "gt", "mask", "masks"})
_LIKELY_FOLDERS = frozenset({"label", "labels"})  # of masks only where one of them has the name of an image
_MASK_FOLDERS = _SURE_FOLDERS | _LIKELY_FOLDERS
_ENDING = re.compile(r"_(mask(_\d+)?|label|gt|seg)$", re.IGNORECASE)
_LOSSLESS = frozenset({".png", ".bmp", ".tif", ".tiff"})

_MAX_VALUES = 3  # of a mask: nothing, defect, and perhaps "do not care"
_N_PEEKED = 20
_MIN_CONTRADICTIONS = 3  # fewer marked normal images are mistakes, and refused as such
_FINE_PX = 128  # the shorter side of what is looked at to count values
_MIN_ALIKE = 4


class Found(NamedTuple):
    """What lies below a folder, as sorted paths relative to it: images, the masks of each, and masks of none."""

    images: list[PurePosixPath]
    masks: dict[PurePosixPath, tuple[PurePosixPath, ...]]
    orphans: list[PurePosixPath]


def sort_out(root: Path, files: Sequence[PurePosixPath]) -> Found:
    """Tell masks from images, by folder, by ending, and by pixels where two files differ by their suffix alone.

    An image may have several masks, which are joined when they are read.
    """
    in_folders = [file for file in files if _mask_folder(file) is not None]
    others = sorted(set(files) - set(in_folders), key=str)
    beside = _beside(others)
    beside |= _twins(root, [file for file in others if file not in beside])
    images = [file for file in others if file not in beside]
    by_key: defaultdict[str, list[PurePosixPath]] = defaultdict(list)
    for image in images:
        by_key[_key(image)].append(image)
    folders = {parent.as_posix() for image in images for parent in image.parents}
    pairs: defaultdict[PurePosixPath, list[PurePosixPath]] = defaultdict(list)
    for mask in [*sorted(in_folders, key=str), *sorted(beside, key=str)]:
        for image in (image for key in _keys(mask, by_key, folders) for image in by_key[key]):
            pairs[image].append(mask)
    paired = {mask for own in pairs.values() for mask in own}
    no_masks = _no_masks(root, in_folders, paired)
    masks = {image: _of_one_folder(own) for image, own in pairs.items()}
    orphans = (set(in_folders) | beside) - {mask for own in masks.values() for mask in own} - no_masks
    return Found(sorted({*images, *no_masks}, key=str), masks, sorted(orphans, key=str))


def files_beside(root: Path) -> list[PurePosixPath]:
    """Files in folders of masks beside a folder of images, as ``../Masks/Anomaly/000.png``."""
    try:
        folders = [folder for folder in root.resolve().parent.iterdir() if folder.name.lower() in _SURE_FOLDERS]
    except OSError:  # the folder above need not be open to everybody
        return []
    files = [file for folder in folders for file in folder.rglob("*") if looks_like_image(file)]
    return [".." / PurePosixPath(file.relative_to(root.resolve().parent).as_posix()) for file in files]


def joined(root: Path, masks: Sequence[PurePosixPath]) -> Path | None:
    """Return what `read_mask` takes for masks that lie in one folder; None for none."""
    if not masks:
        return None
    base = root.resolve() if masks[0].parts[0] == ".." else root  # beside where a link leads to
    return base / masks[0].with_name(MASK_SEPARATOR.join(mask.name for mask in masks))


def _mask_folder(file: PurePosixPath) -> int | None:
    """At which part of a path the first folder of masks stands."""
    return next((n for n, part in enumerate(file.parts[:-1]) if part.lower() in _MASK_FOLDERS), None)


def _key(path: PurePosixPath) -> str:
    whole = path.with_suffix("") if path.name.lower().endswith(".nii.gz") else path
    return whole.with_suffix("").as_posix()


def _beside(files: Iterable[PurePosixPath]) -> set[PurePosixPath]:
    """``000_mask.png`` next to ``000.png`` is no image: a flat folder would train on it."""
    keys = {_key(file): file for file in files}
    ended = {key: _ENDING.sub("", key) for key in keys}
    return {file for file in files if ended[_key(file)] != _key(file) and ended[_key(file)] in keys}


def _twins(root: Path, files: Sequence[PurePosixPath]) -> set[PurePosixPath]:
    """``000.png`` next to ``000.jpg``: masks where all files with that suffix hold a few values only."""
    by_key: defaultdict[str, list[PurePosixPath]] = defaultdict(list)
    for file in files:
        by_key[_key(file)].append(file)
    pairs = [own for own in by_key.values() if len(own) > 1]
    by_suffix: defaultdict[str, list[PurePosixPath]] = defaultdict(list)
    for file in (file for own in pairs for file in own):
        by_suffix[file.suffix.lower()].append(file)
    of_masks = {s for s, own in by_suffix.items() if s in _LOSSLESS and all(has_few_values(root / f) for f in own)}
    with_image = [own for own in pairs if any(file.suffix.lower() not in of_masks for file in own)]
    return {file for own in with_image for file in own if file.suffix.lower() in of_masks}


def has_few_values(file: Path) -> bool:
    """Whether an image looks like a mask; False where it cannot be read."""
    try:
        pixels = read_image(file).pixels
    except AnomalyAEError:
        return False
    step = max(1, min(pixels.shape[1:]) // _FINE_PX)
    return len(np.unique(pixels[:, ::step, ::step])) <= _MAX_VALUES


def _keys(mask: PurePosixPath, known: Mapping[str, object], folders: set[str]) -> list[str]:
    """Names, without suffix, of the images that a mask may belong to, out of those that are known.

    The mask of ``test/crack/000.png`` is ``ground_truth/crack/000_mask.png``, the same without ``_mask``, or any file
    in ``ground_truth/crack/000/``. In the place of ``test/`` may stand nothing, a folder of anomalous images, or one
    like ``images/``; and all of it may lie deeper, as in ``candle/Masks/Anomaly`` and ``candle/Images/Anomaly``.
    """
    key = PurePosixPath(_key(mask))
    bare = _ENDING.sub("", key.name)
    number = _mask_folder(mask)
    if number is None:
        return [name for name in (key.with_name(bare).as_posix(), key.as_posix()) if name in known][:1]
    top, below = PurePosixPath(*(part for part in key.parts[:number] if part != "..")), key.parts[number + 1 : -1]
    tops = [top, *(top / name for name in _beside_masks(top, folders))]
    for tail in ((*below, bare), (*below, key.name), below):
        found = [name for one in tops if tail and (name := one.joinpath(*tail).as_posix()) in known]
        if found:
            return found
    return []


def _beside_masks(top: PurePosixPath, folders: set[str]) -> list[str]:
    """Folders of images beside a folder of masks: of the test set, of anomalous images, or called ``images``."""
    inside = (PurePosixPath(folder) for folder in folders if folder != ".")
    names = sorted(folder.name for folder in inside if folder.parent == top)
    return [name for name in names if _may_be_masked(name.lower())]


def _may_be_masked(folder: str) -> bool:
    return folder in IMAGE_FOLDERS or SPLIT_FOLDERS.get(folder) == "test" or label_of(folder) == ANOMALOUS_LABEL


def _no_masks(root: Path, in_folders: Iterable[PurePosixPath], paired: set[PurePosixPath]) -> set[PurePosixPath]:
    """Files of folders that are called labels and hold none; and DICOM Segmentations, which say by themselves whose."""
    tops = {_top(mask) for mask in paired if _mask_folder(mask) is not None}
    lone = [file for file in in_folders if file not in paired]
    images = {file for file in lone if _top(file).name.lower() in _LIKELY_FOLDERS and _top(file) not in tops}
    return images | {file for file in lone if is_segmentation(root / file)}


def _top(file: PurePosixPath) -> PurePosixPath:
    """The folder of masks that a file lies in."""
    return PurePosixPath(*file.parts[: (_mask_folder(file) or 0) + 1])


def _of_one_folder(masks: Sequence[PurePosixPath]) -> tuple[PurePosixPath, ...]:
    """Those in the folder of the first; where some have an ending, a file without one beside them is none of them."""
    own = [mask for mask in masks if mask.parent == masks[0].parent and MASK_SEPARATOR not in mask.name]
    ended = [mask for mask in own if _ENDING.search(PurePosixPath(_key(mask)).name)]
    return tuple(ended or own)


# --- what masks say of images ------------------------------------------------------------


def are_regions(root: Path, found: Found, places: Mapping[PurePosixPath, Place | None]) -> bool:
    """Whether masks outline something that normal images have, too, such as the lungs: then they mark no defects."""
    normal = [
        image for image, place in places.items() if place and place.label == NORMAL_LABEL and image in found.masks
    ]
    peeked = _evenly(normal, _N_PEEKED)
    n_marked = sum(is_marked(root, found.masks[image]) is True for image in peeked)
    return n_marked >= _MIN_CONTRADICTIONS and n_marked > len(peeked) / 2


def is_marked(root: Path, masks: Sequence[PurePosixPath]) -> bool | None:
    """Whether masks mark something; None where they cannot be read."""
    file = joined(root, masks)
    try:
        return None if file is None else bool(read_mask(file).any())
    except AnomalyAEError:
        return None


def labelled_by_masks(
    root: Path, found: Found, places: Mapping[PurePosixPath, Place | None]
) -> tuple[dict[PurePosixPath, Place | None], tuple[str, ...]]:
    """Label images whose folders say no label by their masks, and say so.

    A mask that marks something makes its image anomalous, an empty one normal. Where no mask at all is empty, they
    were drawn for defects only, and an image without one is normal. Slices of volumes are labelled where volumes are
    known.
    """
    unlabelled = [image for image, place in places.items() if place is not None and not place.label]
    masked = [image for image in unlabelled if image in found.masks and not is_medical(root / image)]
    with ThreadPoolExecutor() as readers:
        marks = dict(zip(masked, readers.map(lambda i: is_marked(root, found.masks[i]), masked), strict=True))
    if True not in marks.values() and False not in marks.values():
        return dict(places), ()
    labels = {image: ANOMALOUS_LABEL if mark else NORMAL_LABEL for image, mark in marks.items() if mark is not None}
    marked = [image for image, mark in marks.items() if mark]
    empty = [image for image, mark in marks.items() if mark is False]
    without = [image for image in unlabelled if image not in found.masks and not is_medical(root / image)]
    labels |= {} if empty else dict.fromkeys(without, NORMAL_LABEL)
    changed = {image: (places[image] or Place())._replace(label=label) for image, label in labels.items()}
    kinds = {"marked, anomalous": marked, "empty, normal": empty, "no mask, normal": [] if empty else without}
    counts = ", ".join(f"{what}: {len(own)}" for what, own in kinds.items() if own)
    only = "" if NORMAL_LABEL in labels.values() else "; do they outline defects? then normal images are missing"
    return {**places, **changed}, (f"images labelled by their masks ({counts}){only}",)


# --- images that look like masks ------------------------------------------------------------


def masks_among(root: Path, images: Sequence[PurePosixPath]) -> list[PurePosixPath]:
    """Return images that have the name of another one, with or without an ending, and hold a few values only.

    Such files are looked at by samples; folders and endings of which most look like masks are returned whole.
    """
    pictures = [image for image in images if image.suffix.lower() in _LOSSLESS]
    kinds: defaultdict[tuple[str, str], list[PurePosixPath]] = defaultdict(list)
    folders_of: defaultdict[str, set[str]] = defaultdict(set)
    for image in images:
        folders_of[PurePosixPath(_key(image)).name].add(image.parent.as_posix())
    keys = {_key(image) for image in images}
    for picture in pictures:
        ending = _ending_of(picture, keys)
        if ending:
            kinds["", ending].append(picture)
        elif len(folders_of[PurePosixPath(_key(picture)).name]) > 1:
            kinds[picture.parent.as_posix(), ""].append(picture)
    alike = [own for own in kinds.values() if len(own) >= _MIN_ALIKE and _most_look_like_masks(root, own)]
    suspects = sorted({picture for own in alike for picture in own}, key=str)
    others = _evenly([image for image in images if image not in set(suspects)], _MIN_ALIKE)
    return [] if all(has_few_values(root / image) for image in others) else suspects  # all are drawings, or letters


def _ending_of(picture: PurePosixPath, keys: set[str]) -> str:
    """What follows the name of another image of the folder: ``_lesion`` of ``000_lesion.png`` beside ``000.png``."""
    name = PurePosixPath(_key(picture)).name
    for found in re.finditer(r"(?<=.)[_\-. ]", name):  # what a name begins with ends none: _MG_0001
        if picture.with_name(name[: found.start()]).as_posix() in keys:
            return name[found.start() :]
    return ""


def _most_look_like_masks(root: Path, pictures: Sequence[PurePosixPath]) -> bool:
    peeked = _evenly(pictures, _MIN_ALIKE * 2)
    n_seen = 0
    for n_looked, picture in enumerate(peeked, start=1):
        n_seen += has_few_values(root / picture)
        if n_seen < n_looked - len(peeked) // 4:
            return False
    return True


def _evenly(items: Sequence[PurePosixPath], n: int) -> list[PurePosixPath]:
    return [items[i] for i in spread_evenly(len(items), n)]
