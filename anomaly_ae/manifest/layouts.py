"""What the names of folders say of the images in them: split, label, kind of defect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from anomaly_ae.errors import DataError
from anomaly_ae.manifest.table import FIT_SPLITS
from anomaly_ae.records import ANOMALOUS_LABEL, NORMAL_LABEL
from anomaly_ae.words import n_of, some_names

# Names of folders, compared in lower case.
NORMAL_FOLDERS = frozenset({"normal", "normals", "good", "ok", "healthy"})
ANOMALOUS_FOLDERS = frozenset({
    *("anomalous", "anomaly", "anomalies", "abnormal", "bad", "nok", "ng"),
    *("defect", "defects", "defective", "diseased"),
})  # fmt: skip
SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "validation": "validation",
    "calibration": "calibration",
    "test": "test",
    "testing": "test",
    "test_public": "test",
}
IMAGE_FOLDERS = frozenset({"image", "images", "img", "imgs"})
"""Folders that say nothing of the images in them, wherever they stand."""

_NORMAL_START, _ANOMALOUS_START = "ok_", "def_"
_NO_AND_YES = {"no": NORMAL_LABEL, "yes": ANOMALOUS_LABEL}
_WRAPPER = "data"
_N_LISTED = 8


class Place(NamedTuple):
    """What the folder says about an image."""

    split: str = ""
    label: str = ""
    defect: str = ""


_Parts = tuple[str, ...]


def label_of(folder: str) -> str:
    """Return the label that the name of a folder stands for; "" where it says nothing.

    >>> label_of("OK_front"), label_of("Defects"), label_of("scratch")
    ('normal', 'anomalous', '')
    """
    name = folder.lower()
    if name in NORMAL_FOLDERS or name.startswith(_NORMAL_START):
        return NORMAL_LABEL
    return ANOMALOUS_LABEL if name in ANOMALOUS_FOLDERS or name.startswith(_ANOMALOUS_START) else ""


def layout_of(root: Path, images: Sequence[PurePosixPath]) -> tuple[str, dict[PurePosixPath, Place | None]]:
    """Return the name of a layout, and the place of each image; None where its folders say neither split nor label.

    Raises
    ------
    DataError
        The folder holds data sets, and is none.
    """
    telling = _telling(images)
    name, place_of = _rule(root, telling)
    return name, {image: place_of(parts) for image, parts in telling.items()}


def _telling(images: Iterable[PurePosixPath]) -> dict[PurePosixPath, _Parts]:
    """The parts of paths without those that say nothing: ``images`` anywhere, and one ``data`` around everything."""
    found = {
        image: (*(part for part in image.parts[:-1] if part.lower() not in IMAGE_FOLDERS), image.name)
        for image in images
    }
    if all(len(parts) > 1 and parts[0].lower() == _WRAPPER for parts in found.values()):
        return {image: parts[1:] for image, parts in found.items()}
    return found


def _rule(root: Path, telling: Mapping[PurePosixPath, _Parts]) -> tuple[str, Callable[[_Parts], Place | None]]:
    first = _labels(telling.values(), 0)
    if first.keys() & SPLIT_FOLDERS.keys():
        second = _labels(telling.values(), 1)
        return "mvtec", lambda parts: _place_in_split(parts, second)
    if ANOMALOUS_LABEL in first.values():
        return "normal/anomalous", lambda parts: _place_by_label(parts, first)
    if NORMAL_LABEL in first.values():
        _refuse_data_sets(root, [image for image, parts in telling.items() if not first.get(parts[0].lower())])
        return "normal/<defect>", lambda parts: _place_by_defect(parts, first)
    _refuse_data_sets(root, telling)
    return "flat", lambda parts: Place()


def _labels(paths: Iterable[_Parts], depth: int) -> dict[str, str]:
    """The folders at a depth in lower case, with their labels; ``no`` and ``yes`` say something only as a pair."""
    names = {parts[depth].lower() for parts in paths if len(parts) > depth + 1}
    pair = _NO_AND_YES if names >= _NO_AND_YES.keys() else {}
    return {name: label_of(name) or pair.get(name, "") for name in names}


def _place_in_split(parts: _Parts, labels: Mapping[str, str]) -> Place | None:
    """``test/good/000.png`` is normal; every other name of the second folder is the name of a defect."""
    split = SPLIT_FOLDERS.get(parts[0].lower())
    if split is None or len(parts) == 1:
        return None
    if len(parts) == 2:
        return Place(split)
    if labels[parts[1].lower()] == NORMAL_LABEL:
        return Place(split, NORMAL_LABEL)
    return Place(split, ANOMALOUS_LABEL, parts[1])


def _place_by_label(parts: _Parts, labels: Mapping[str, str]) -> Place | None:
    label = labels[parts[0].lower()] if len(parts) > 1 else ""
    if label == ANOMALOUS_LABEL:
        return Place(label=label, defect=parts[1] if len(parts) > 2 else "")
    return Place(label=label) if label else None


def _place_by_defect(parts: _Parts, labels: Mapping[str, str]) -> Place | None:
    """``good/000.png`` is normal; every folder beside it is the name of a defect, as below ``test`` of MVTec."""
    if len(parts) == 1:
        return None
    if labels[parts[0].lower()] == NORMAL_LABEL:
        return Place(label=NORMAL_LABEL)
    return Place(label=ANOMALOUS_LABEL, defect=parts[0])


def _refuse_data_sets(root: Path, images: Iterable[PurePosixPath]) -> None:
    """A folder of several data sets, read as flat, would train on every defect in it."""
    inner: dict[str, str] = {}  # each data set, and the folder that shows it
    for image in images:
        depths = (
            depth for depth, part in enumerate(image.parts[:-1]) if part.lower() in SPLIT_FOLDERS or label_of(part)
        )
        depth = next(depths, None)
        if depth is not None:
            inner.setdefault(str(root.joinpath(*image.parts[:depth])), image.parts[depth])
    if not inner:
        return
    first, part = next(iter(inner.items()))
    why = f"there is a folder {part!r} further down, and its images must not all count as normal"
    if len(inner) == 1:
        raise DataError(f"{root} is no data set, but {first} in it is one", why, f"give {first}, or a CSV")
    what = f"{root} is no data set, but {len(inner)} folders in it are: {some_names(inner, _N_LISTED)}"
    raise DataError(what, why, "give the one that you mean, or a CSV")


def without_learning_defects(
    places: Mapping[PurePosixPath, Place | None], is_private: bool
) -> tuple[dict[PurePosixPath, Place | None], tuple[str, ...]]:
    """Take anomalous images out of the splits that are learned from, where normal ones are there; say so.

    Many public data sets have both in ``train``. Where all images there count as anomalous, nothing is changed: `fit`
    and `scan` refuse it, since the normal ones may lie in a folder whose name is not known.
    """
    learned = {image: place for image, place in places.items() if place and place.split in FIT_SPLITS}
    defects = [image for image, place in learned.items() if place.label == ANOMALOUS_LABEL]
    if not defects:
        return dict(places), ()
    if len(defects) == len(learned):
        return dict(places), () if is_private else (_question({learned[image].defect for image in defects}),)
    what = "anomalous images in train, validation or calibration, neither learned nor tested"
    changed = {image: learned[image]._replace(split="") for image in defects}
    return {**places, **changed}, (f"{what}: {len(defects)}",)


def _question(folders: set[str]) -> str:
    named = " or ".join(sorted(folders - {""})[:_N_LISTED]) or "one"
    fix = f"is {named} that of the normal ones? then rename it 'good', or write a CSV with `scan --out` and set `label`"
    return f"no folder of the training images is called good, normal, ok or healthy: {fix}"


def unlabelled_note(images: Collection[PurePosixPath], is_private: bool) -> str:
    """Say that images of several unlabelled folders count as normal: one of them may hold defects; else ""."""
    folders = Counter(image.parts[0] if len(image.parts) > 1 else "the top folder" for image in images)
    if len(folders) < 2:
        return ""
    what = f"no name of {n_of(len(folders), 'folder')} says what is normal, so all {len(images)} images count as normal"
    if is_private:
        return what
    named = some_names((f"{folder} ({n})" for folder, n in sorted(folders.items())), _N_LISTED)
    return f"{what}: {named}; if one holds defects, rename it 'defect', and the others 'good'"
