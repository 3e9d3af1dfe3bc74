"""A folder, a CSV or a list of paths becomes a manifest."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from anomaly_ae.errors import DataError, UnreadableImageError, UsageError
from anomaly_ae.files import holds
from anomaly_ae.manifest.bids import bids_manifest, is_bids
from anomaly_ae.manifest.grouping import GROUP_FILES, group_by_regex, with_group_file, with_group_note
from anomaly_ae.manifest.layouts import IMAGE_FOLDERS, Place, layout_of, unlabelled_note, without_learning_defects
from anomaly_ae.manifest.masks import (
    Found,
    are_regions,
    files_beside,
    joined,
    labelled_by_masks,
    masks_among,
    sort_out,
)
from anomaly_ae.manifest.naming import hiding_names, is_medical, with_public_names
from anomaly_ae.manifest.series import with_series
from anomaly_ae.manifest.slices import slices_of, spacing_notes, with_slices
from anomaly_ae.manifest.table import (
    TABLE_SUFFIXES,
    Ignored,
    Manifest,
    make_sample,
    read_manifest_csv,
)
from anomaly_ae.nifti import is_nifti_file
from anomaly_ae.readers import FOREIGN_SUFFIXES, count_frames, looks_like_image
from anomaly_ae.records import ANOMALOUS_LABEL, Sample
from anomaly_ae.words import text_of

# What is ignored, as notes call it.
PICTURES, FILES, RUNS = "pictures of a format that is not read", "files that are no images", "folders of finished runs"
REGIONS = "masks that outline something in normal images, too, and so no defects (`valid` says which pixels count)"


class _Listing(NamedTuple):
    """The image files below a folder, masks among them, as paths relative to it; and what else is there."""

    files: list[PurePosixPath]
    others: Counter[str]


_Places = Mapping[PurePosixPath, Place | None]


def load_manifest(
    data: str | Path, group_regex: str | None = None, suffix: str | None = None, identified: bool = False
) -> Manifest:
    """Turn a folder, a manifest CSV or one image file into a manifest.

    Parameters
    ----------
    data : str or Path
        A folder (MVTec layout, ``normal/`` and ``anomalous/``, ``good/`` and kinds of defect, BIDS, or flat), a
        ``.csv`` / ``.tsv``, or one image.
    group_regex : str, optional
        Searched in each relative path; its first capturing group (or the whole match) becomes the group; of slices
        of a volume also the unit.
    suffix : str, optional
        Which images of a BIDS folder: "T1w", "FLAIR".
    identified : bool
        Leave the names of patients and files as they are; otherwise DICOM and NIfTI data get hashes (`naming`).

    Returns
    -------
    Manifest
        One sample per image, or per frame of a file with several.

    Raises
    ------
    DataError
        Nothing there, no image, a damaged table, a path that `group_regex` does not match.
    UsageError
        `group_regex` is no regular expression, or `suffix` does not fit.
    """
    data = Path(data)
    with hiding_names([data], identified):
        manifest = _read(data, suffix, identified)
        manifest = replace(manifest, notes=manifest.notes + spacing_notes(manifest.samples))
        manifest = manifest if group_regex is None else group_by_regex(manifest, group_regex)
        manifest = manifest if identified else with_public_names(manifest)
    return manifest if group_regex is None else with_group_note(manifest, group_regex)


def _read(data: Path, suffix: str | None, identified: bool) -> Manifest:
    if holds(data.is_dir) and is_bids(data):
        return bids_manifest(data, suffix)
    if suffix is not None:
        raise UsageError(f"--suffix {suffix} for {data}", "it chooses images of a BIDS folder, and this is none")
    if holds(data.is_dir):
        return _from_folder(data, identified)
    if data.suffix.lower() in TABLE_SUFFIXES and holds(data.exists):
        return read_manifest_csv(data)
    return _from_paths([data], identified)


def manifest_from_paths(
    paths: Sequence[str | Path], identified: bool = False, group_regex: str | None = None
) -> Manifest:
    """List images to be scored: files as given, folders with everything below them.

    A file that is named is always listed, image or not: what cannot be read becomes a failure, not a gap.
    Where one folder is given it is the root, which names the data; paths start where one stands all the same.
    Groups come from a ``groups.tsv`` in a folder. `identified` and `group_regex` as for `load_manifest`; the pattern
    is searched in the path below the folder.

    Raises
    ------
    DataError
        A path does not exist, there is no image at all, or a path that `group_regex` does not match.
    UsageError
        A path is a table, or `group_regex` is no regular expression.
    """
    given = [Path(path) for path in paths]
    with hiding_names(given, identified):
        manifest = _from_paths(given, identified)
        manifest = manifest if group_regex is None else group_by_regex(manifest, group_regex, _folders(given))
        manifest = manifest if identified else with_public_names(manifest)
    return manifest if group_regex is None else with_group_note(manifest, group_regex)


def _from_paths(paths: Sequence[Path], identified: bool) -> Manifest:
    if len(paths) == 1 and is_bids(paths[0]):
        return bids_manifest(paths[0])
    names: dict[Path, str] = {}  # by their place: an image that is given twice counts once, however it is written
    others: Counter[str] = Counter()
    n_masks = 0
    for path in paths:
        if holds(path.is_dir):
            listing = _list_folder(path)
            images = sort_out(path, listing.files).images
            others, n_masks = others + listing.others, n_masks + len(listing.files) - len(images)
            places = {path.resolve() / image: (path / image).as_posix() for image in images}
            names = places | names
        elif holds(path.exists):
            _refuse_table(path)
            names.setdefault(path.parent.resolve() / path.name, path.as_posix())
        else:
            raise DataError(
                f"{path} does not exist", "it is neither a file nor a folder that may be looked at", "check the path"
            )
    if not names:
        raise _no_images(", ".join(str(path) for path in paths) or "an empty list", others)
    samples = tuple(sample for name in sorted(names.values()) for sample in _samples(Path(), name, Place(), None))
    ignored = _ignored(others + Counter({"masks": n_masks}))
    root = paths[0].resolve() if len(paths) == 1 and paths[0].is_dir() else Path()
    listed = {path.as_posix() for path in paths if not path.is_dir()}
    manifest = _volumes(Manifest(root, samples, (), "flat", ignored=ignored), identified, listed)
    for folder in _folders(paths):
        manifest = with_group_file(manifest, Path(folder), str(folder))
    return manifest


def _folders(paths: Iterable[Path]) -> list[PurePosixPath]:
    """The folders among the paths that were given: what stands in front of a path inside of them."""
    return [PurePosixPath(path.as_posix()) for path in paths if path.is_dir()]


def _refuse_table(path: Path) -> None:
    if path.suffix.lower() in TABLE_SUFFIXES:
        what = f"{path} is a table, and stands among images and folders"
        raise UsageError(what, "it is a manifest, or no input at all", "give one manifest alone, or leave it out")


def _from_folder(root: Path, identified: bool) -> Manifest:
    listing = _list_folder(root)
    found = sort_out(root, listing.files)
    if not found.images:
        raise _no_images(str(root), listing.others)
    layout, places = layout_of(root, found.images)
    if layout != "flat" and root.name.lower() in IMAGE_FOLDERS:
        found = sort_out(root, [*listing.files, *files_beside(root)])
    regions = found.masks if are_regions(root, found, places) else {}
    found = found._replace(masks={} if regions else found.masks)
    labelled, doubts = labelled_by_masks(root, found, places)
    is_private = not identified and any(is_medical(root / image) for image in found.images)
    places, unlearned = without_learning_defects(labelled, is_private)
    samples: list[Sample] = []
    for image, place in places.items():
        if place is not None:
            samples += _samples(root, image.as_posix(), place, joined(root, found.masks.get(image, ())))
    if not samples:
        raise _no_images(f"the folders of {root} that the layout {layout} knows", listing.others)
    unused = {"masks without an image": _n_unused(found, samples), REGIONS: sum(map(len, regions.values()))}
    ignored = _ignored(listing.others + Counter(unused))
    ignored += _ignored_folders([image for image, place in places.items() if place is None], is_private)
    warnings = (*doubts, *unlearned, *_doubts(root, found, places, samples, is_private))
    manifest = Manifest(root, tuple(samples), (), layout, ignored=ignored, warnings=warnings)
    return with_group_file(_volumes(manifest, identified), root)


def _n_unused(found: Found, samples: Iterable[Sample]) -> int:
    """Masks of no image, or of one that is not listed, or has several frames."""
    masked = {sample.path for sample in samples if sample.mask}
    return len(found.orphans) + sum(len(own) for image, own in found.masks.items() if text_of(image) not in masked)


def _doubts(root: Path, found: Found, places: _Places, samples: Sequence[Sample], is_private: bool) -> tuple[str, ...]:
    """What may have been understood wrongly."""
    learned = [i for i, p in places.items() if p and p.label != ANOMALOUS_LABEL and p.split != "test"]
    unlabelled = [image for image in learned if places[image] == Place()]
    suspects = masks_among(root, learned)
    texts = [unlabelled_note(unlabelled, is_private)]
    if suspects:
        named = "" if is_private else f", such as {suspects[0]}"
        texts.append(f"images that look like masks, taken as normal images: {len(suspects)}{named}")
    anomalous = next((s.path for s in samples if s.label == ANOMALOUS_LABEL), "")
    if found.orphans and anomalous and not any(sample.mask for sample in samples):
        named = "" if is_private else f", such as {found.orphans[0]}, and none is that of {anomalous}"
        texts.append(f"masks that belong to no image by their names, all of them: {len(found.orphans)}{named}")
    return tuple(text for text in texts if text)


def _volumes(manifest: Manifest, identified: bool, named: Collection[str] = ()) -> Manifest:
    _refuse_equal_names(manifest.samples)
    manifest = with_series(manifest, identified, named)
    return replace(manifest, samples=with_slices(manifest.samples))


def _refuse_equal_names(samples: Sequence[Sample]) -> None:
    """A file whose name is no text may be shown like another: results would belong to both."""
    name, n = Counter(sample.id for sample in samples).most_common(1)[0]
    if n > 1:
        why = "the name of one is not UTF-8, and its bytes are shown so"
        raise DataError(f"{n} files are called {name}", why, "rename one of them")


def _samples(root: Path, path: str, place: Place, mask: Path | None) -> list[Sample]:
    """One sample per frame. The mask of several frames would be ambiguous, but for that of a volume: it is left out."""
    whole = make_sample(
        root, text_of(path), mask=mask, split=place.split, label=place.label, defect=text_of(place.defect)
    )
    whole = replace(whole, files=(root / path,))  # one file, whatever signs its name holds
    if is_nifti_file(root / path):
        return slices_of(whole)
    n_frames = _n_frames(root / path)
    if n_frames == 1:
        return [whole]
    return [replace(whole, id=f"{whole.path}#{frame}", frame=frame, mask=None) for frame in range(n_frames)]


def _n_frames(file: Path) -> int:
    try:
        return count_frames(file)
    except UnreadableImageError:  # it is listed all the same, and becomes a failure when it is read
        return 1


def _list_folder(root: Path) -> _Listing:
    files: list[PurePosixPath] = []
    runs: list[Path] = []
    others: Counter[str] = Counter()
    for file in _files_below(root, runs):
        name = PurePosixPath(file.relative_to(root).as_posix())
        if name.name.lower() in GROUP_FILES and len(name.parts) == 1:
            continue
        if looks_like_image(file):
            files.append(name)
        else:
            others[PICTURES if file.suffix.lower() in FOREIGN_SUFFIXES else FILES] += 1
    return _Listing(files, others + Counter({RUNS: len(runs)}))


def _files_below(folder: Path, runs: list[Path], ancestors: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Yield files and broken links; hidden names are skipped, and links that lead back to a folder above.

    Folders of runs are skipped, too, and added to ``runs``: their maps and heatmaps are no images of the data.
    """
    real = folder.resolve()
    if real in ancestors:
        return
    try:
        entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError as error:
        what = f"the folder {folder} cannot be listed"
        raise DataError(what, error.strerror or str(error), "check its permissions") from error
    for entry in entries:
        if entry.is_dir() and is_run(Path(entry.path)):
            runs.append(Path(entry.path))
        elif entry.is_dir():
            yield from _files_below(Path(entry.path), runs, ancestors | {real})
        elif entry.is_file() or (entry.is_symlink() and not Path(entry.path).exists()):
            yield Path(entry.path)


def is_run(folder: Path) -> bool:
    """Return whether a folder holds what `score` or `evaluate` wrote."""
    try:
        info = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(info, dict) and info.get("tool") == "anomaly_ae"


def _no_images(where: str, others: Counter[str]) -> DataError:
    n_others = others[PICTURES] + others[FILES]
    why = f"files of other kinds there: {n_others}" if n_others else "nothing is there"
    return DataError(
        f"no image in {where}",
        why,
        "check the path; layouts: train/good + test/<type>, normal/ + anomalous/, good/ + <type>/",
    )


def _ignored(others: Counter[str]) -> tuple[Ignored, ...]:
    return tuple(Ignored(what, n, are_images=what == PICTURES) for what, n in sorted(others.items()))


def _ignored_folders(outside: Sequence[PurePosixPath], is_private: bool) -> tuple[Ignored, ...]:
    if not outside:
        return ()
    folders = sorted({f"{image.parts[0]}/" if len(image.parts) > 1 else "the top folder" for image in outside})
    where = "folders whose names" if is_private else f"{', '.join(folders)}, names that"
    return (Ignored(f"images in {where} say neither split nor label", len(outside), are_images=True),)
