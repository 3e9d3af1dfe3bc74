"""What would make results false, found before anything is learned."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from anomaly_ae.config import SplitConfig
from anomaly_ae.errors import DataError
from anomaly_ae.manifest.facts import Inspected
from anomaly_ae.manifest.naming import shown
from anomaly_ae.manifest.slices import is_slice
from anomaly_ae.manifest.splits import MIN_NORMALS, lesion_free, roles, split_normals
from anomaly_ae.manifest.table import FIT_SPLITS, SPLITS
from anomaly_ae.records import ANOMALOUS_LABEL, NORMAL_LABEL, Sample
from anomaly_ae.shortcuts import separations
from anomaly_ae.words import n_of, some_names

_MORE_PATIENTS = "add volumes of other patients; slices of one patient are not independent, and stay together"
_FRAMES_APART = (
    "the frames of a file are one group; if they are independent, give each its own `group` and `unit` in the CSV "
    "that `scan --out` writes"
)

_NEARLY_ALL = 0.9
"""Of its image: no defect, but a mask that is white where it should be black."""


class Refusal(NamedTuple):
    """Something that makes results false: the three parts of a message."""

    what: str
    why: str
    fix: str


class Row(NamedTuple):
    """An inspected row and what `fit` and `evaluate` use it for: a split, or "" for nothing."""

    role: str
    one: Inspected


def with_roles(inspected: Sequence[Inspected]) -> list[Row]:
    """Pair each row with its use."""
    return [Row(*pair) for pair in zip(roles([one.sample for one in inspected]), inspected, strict=True)]


# --- duplicates ------------------------------------------------------------


def duplicates_across_splits(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Return pairs of ids with the same pixels in different splits: the first such row and a later one.

    Constant images are all alike, and nothing is learned from them: a warning of their own counts them.
    """
    pairs = []
    for same in _same_pixels([row for row in rows if not _is_constant(row)]):
        used = sorted((row for row in same if row.role), key=lambda row: SPLITS.index(row.role))
        pairs += [(used[0].one.sample.id, row.one.sample.id) for row in used[1:] if row.role != used[0].role]
    return pairs


def n_duplicates_within_splits(rows: Sequence[Row]) -> int:
    """Return how many rows repeat the pixels of another row of the same split."""
    per_split = (Counter(row.role for row in same) for same in _same_pixels(rows))
    return sum(n - 1 for counts in per_split for n in counts.values())


def _same_pixels(rows: Sequence[Row]) -> list[list[Row]]:
    by_hash: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.one.facts is not None:
            by_hash[row.one.facts.sha256].append(row)
    return [same for same in by_hash.values() if len(same) > 1]


# --- shortcuts ------------------------------------------------------------


def shortcuts(rows: Sequence[Row]) -> dict[str, float]:
    """Return how well each property that is not the defect tells anomalous from normal.

    The area under the ROC curve: 1 = anomalous is always higher, 0 = always lower. Taken on the labelled test
    rows, or on all labelled rows when nothing is called test. Empty when a label has too few of them.
    """
    tested = [row for row in rows if row.role == "test"] or list(rows)
    known = [row.one for row in tested if row.one.sample.label and row.one.facts]
    labels = [one.sample.label == ANOMALOUS_LABEL for one in known]
    numbers = [one.facts.properties for one in known if one.facts]
    return separations(labels, numbers, [one.sample.extra for one in known], [one.sample.group for one in known])


# --- refusals ------------------------------------------------------------


def refusals(rows: Sequence[Row], pairs: Sequence[tuple[str, str]]) -> list[Refusal]:
    """Return everything that would make results false, each kind once."""
    unfit = [*_torn(rows), *_anomalous_in_fit(rows), *_too_few_normals(rows)]
    return [
        *(unfit or _cannot_be_cut(rows)),
        *_same_pixels_in_two_splits(pairs),
        *_bad_masks(rows),
        *_marked_normals(rows),
        *_mixed_channels(rows),
    ]


def check_groups(samples: Sequence[Sample]) -> None:
    """Refuse what `scan` finds out without reading an image.

    Raises
    ------
    DataError
        A group in two splits, or a unit in two groups.
    """
    found = _torn(with_roles([Inspected(sample) for sample in samples]))
    if found:
        raise DataError(*found[0])


def _torn(rows: Sequence[Row]) -> list[Refusal]:
    """What belongs together and does not stay together."""
    return [*_crossing_groups(rows), *_units_in_two_groups(rows)]


def _crossing_groups(rows: Sequence[Row]) -> list[Refusal]:
    splits: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row.role:
            splits[row.one.sample.group].add(row.role)
    crossing = {group: used for group, used in splits.items() if len(used) > 1}
    if not crossing:
        return []
    first, used = next(iter(crossing.items()))
    where = " and ".join(sorted(used, key=SPLITS.index))
    return [
        Refusal(
            f"{n_of(len(crossing), 'group')} in more than one split: {some_names(crossing)}",
            f"{first!r} is in {where}; images of one group are alike, so the figures would be too good",
            "give all rows of a group the same split in the CSV that `scan --out` writes, or let --folds split them",
        )
    ]


def _units_in_two_groups(rows: Sequence[Row]) -> list[Refusal]:
    groups: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        groups[row.one.sample.unit].add(row.one.sample.group)
    torn = [unit for unit, names in groups.items() if len(names) > 1]
    if not torn:
        return []
    what = f"{n_of(len(torn), 'unit')} in more than one group: {some_names(torn)}"
    why = "a unit is decided as a whole, so its images must stay in one split"
    return [Refusal(what, why, "give all rows of a unit the same group")]


def _same_pixels_in_two_splits(pairs: Sequence[tuple[str, str]]) -> list[Refusal]:
    if not pairs:
        return []
    named = some_names(f"{first} = {second}" for first, second in pairs)
    what = f"{n_of(len(pairs), 'image')} with the same pixels in two splits: {named}"
    return [Refusal(what, "what was learned would be tested again", "delete one copy of each from the data")]


def _anomalous_in_fit(rows: Sequence[Row]) -> list[Refusal]:
    wrong = [row.one.sample.path for row in rows if row.role in FIT_SPLITS and _is_anomalous(row)]
    if not wrong:
        return []
    named = some_names(wrong)
    what = f"{n_of(len(wrong), 'anomalous image')} in train, validation or calibration: {named}"
    fix = "move them to `test`, or correct their label; normal images of a folder belong in train/good"
    return [Refusal(what, "only normal images may be learned or set a threshold", fix)]


def _bad_masks(rows: Sequence[Row]) -> list[Refusal]:
    problems = mask_problems(rows)
    if not problems:
        return []
    named = some_names(f"{path} {problem}" for path, problem in problems)
    what = f"{n_of(len(problems), 'mask')} of no use: {named}"
    fix = "give masks the size of their images, or leave the cell empty"
    return [Refusal(what, "figures per pixel would be false", fix)]


def mask_problems(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Return (mask path, problem) of masks that are missing, unreadable or of the wrong size."""
    checked = [
        (shown(row.one.sample, path), facts)
        for row in rows
        for path, facts in ((row.one.sample.mask, row.one.mask), (row.one.sample.valid, row.one.valid))
    ]
    return [(name, facts.problem) for name, facts in checked if facts is not None and facts.problem]


def odd_masks(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Return (mask path, problem) of masks that mark nothing, or nearly all, and of `valid` masks without a pixel."""
    found = []
    for row in rows:
        if _has_empty_mask(row):
            found.append((shown(row.one.sample, row.one.sample.mask), "is empty, but its image is anomalous"))
        if row.one.mask and row.one.mask.share > _NEARLY_ALL:
            what = f"marks {100 * row.one.mask.share:.0f} % of its image: is it inverted?"
            found.append((shown(row.one.sample, row.one.sample.mask), what))
        if _has_no_valid_pixel(row):
            found.append((shown(row.one.sample, row.one.sample.valid), "has no valid pixel"))
    return found


def _marked_normals(rows: Sequence[Row]) -> list[Refusal]:
    marked = [row.one.sample.path for row in rows if row.one.sample.label == NORMAL_LABEL and _is_marked(row)]
    if not marked:
        return []
    named = some_names(marked)
    what = f"{n_of(len(marked), 'normal image')} with a mask that marks a defect: {named}"
    return [Refusal(what, "label and mask contradict each other", "correct the label, or remove the mask")]


def _is_marked(row: Row) -> bool:
    mask = row.one.mask
    return mask is not None and not mask.problem and not mask.is_empty


def _mixed_channels(rows: Sequence[Row]) -> list[Refusal]:
    """Grey saved as RGB fits both sides: an RGB camera may well see a part without any colour."""
    counts = Counter(
        facts.n_channels
        for facts in (row.one.facts for row in rows if row.role in FIT_SPLITS)
        if facts is not None and not facts.was_grey_rgb
    )
    if len(counts) < 2:
        return []
    what = "images for training have different numbers of channels: " + _counted(counts, "with {}")
    why = "one model has one number of channels"
    return [Refusal(what, why, "convert them to one kind (all grey or all RGB), or fit one model per kind")]


def _too_few_normals(rows: Sequence[Row]) -> list[Refusal]:
    used = [row for row in rows if row.role in FIT_SPLITS and not _is_anomalous(row)]
    hashes = [row.one.facts.sha256 for row in used if row.one.facts is not None]
    if not used and any(row.role == "test" for row in rows):
        return []  # a test set by itself: a warning says so
    if len(hashes) < MIN_NORMALS:
        what = f"{n_of(len(hashes), 'readable normal image')} to fit on"
        why = f"at least {MIN_NORMALS} are needed to learn, validate and set a threshold"
        return [Refusal(what, why, "add normal images; 50 to 300 make a useful start")]
    if len(set(hashes)) == 1:
        what = f"all {len(hashes)} normal images have the same pixels"
        return [Refusal(what, "there is nothing to learn from copies", "use different images")]
    return []


def cut_for_fit(rows: Sequence[Row]) -> dict[str, tuple[Sample, ...]]:
    """Cut the normals as `fit` does with no option given; a `DataError` says why it cannot."""
    split = SplitConfig()
    return split_normals([row.one.sample for row in rows], split.validation_share, split.calibration_share, seed=0)


def _cannot_be_cut(rows: Sequence[Row]) -> list[Refusal]:
    """What `fit` would refuse as well: normal images that cannot be cut by group into its three parts."""
    if not any(row.role in FIT_SPLITS for row in rows):
        return []  # a test set by itself
    try:
        cut_for_fit(rows)
    except DataError as error:
        n_rows = Counter(row.one.sample.path for row in rows if row.role in FIT_SPLITS)
        fix = _FRAMES_APART if max(n_rows.values()) > 1 else error.fix
        fix = _MORE_PATIENTS if all(is_slice(row.one.sample) for row in rows) else fix
        return [Refusal(error.what, error.why, fix)]
    return []


# --- warnings ------------------------------------------------------------


def warnings(rows: Sequence[Row]) -> list[str]:
    """Return what deserves a look and does not by itself make results false."""
    inside = n_duplicates_within_splits(rows)
    counted = (
        (_count(rows, lambda row: not row.one.facts), "images that cannot be read, and so are not inspected"),
        (inside, "images with the pixels of another in the same split (give the copies one group)"),
        (_n_contradicting_labels(rows), "same pixels labelled normal and anomalous (one label is wrong)"),
        (_count(rows, _has_empty_mask), "anomalous images with an empty mask"),
        (_count(rows, _has_no_valid_pixel), "images with a `valid` mask without a valid pixel"),
        (_count(rows, _is_constant), "constant images, every pixel with the same value"),
        (_count(rows, _is_unlabelled_for_fit), "images without a label, taken as normal for training"),
        (_count(rows, _is_unlabelled_in_test), "test images without a label, which `evaluate` leaves out"),
        (_count(rows, _is_unused), "rows without a split, not used because other rows say train"),
        (_n_lesion_free(rows), "images for training that are lesion-free slices of patients, which may hide a lesion"),
        (_n_unlisted_frames(rows), "files with more frames than are listed, the others are not inspected"),
    )
    texts = [f"{what}: {n}" for n, what in counted if n]
    return [*texts, *_set_warnings(rows)]


def _set_warnings(rows: Sequence[Row]) -> list[str]:
    """Warnings about the set as a whole."""
    texts = []
    fit = [row.one.facts for row in rows if row.role in FIT_SPLITS and row.one.facts]
    has_test = any(row.role == "test" for row in rows)
    test = [row.one.facts for row in rows if row.role == "test" and row.one.facts]
    labels = {row.one.sample.label for row in rows if row.role == "test" and row.one.facts}
    if ANOMALOUS_LABEL in labels and NORMAL_LABEL not in labels:
        texts.append(
            "no normal test images: whether something that is not the defect tells the labels apart cannot be said"
        )
    if test and not fit:
        texts.append("no normal images to fit on: this set can only be scored and evaluated")
    if not has_test and any(_is_anomalous(row) for row in rows):
        texts.append("no test split: the same normal images are learned and tested; use --folds, or a `split` column")
    n_colourless = sum(facts.was_grey_rgb for facts in fit)
    if n_colourless and any(facts.n_channels > 1 for facts in fit):
        texts.append(f"training images without colour among others with colour: {n_colourless}")
    masks = [row.one.mask for row in rows if row.one.mask and not row.one.mask.problem and not row.one.mask.is_empty]
    n_most = sum(mask.share > 0.5 for mask in masks)
    if n_most > len(masks) / 2:
        texts.append(f"masks that mark more than half of their image: {n_most} of {len(masks)} (are they inverted?)")
    depths = Counter(facts.depth for facts in fit)
    if len(depths) > 1:
        texts.append("different bit depths in training: " + _counted(depths, "of {}"))
    known = {facts.n_channels for facts in fit}
    unknown = {facts.n_channels for facts in test if not facts.was_grey_rgb} - known
    if fit and unknown:
        texts.append(f"test images with {min(unknown)} channels, as no training image has")
    return texts


def _count(rows: Iterable[Row], condition: Callable[[Row], bool]) -> int:
    return sum(1 for row in rows if condition(row))


def _is_anomalous(row: Row) -> bool:
    return row.one.sample.label == ANOMALOUS_LABEL


def _has_empty_mask(row: Row) -> bool:
    return _is_anomalous(row) and row.one.mask is not None and row.one.mask.is_empty


def _has_no_valid_pixel(row: Row) -> bool:
    return row.one.valid is not None and row.one.valid.is_empty


def _is_constant(row: Row) -> bool:
    return row.one.facts is not None and row.one.facts.properties["deviation"] == 0


def _is_unlabelled_for_fit(row: Row) -> bool:
    return row.role in FIT_SPLITS and not row.one.sample.label


def _is_unlabelled_in_test(row: Row) -> bool:
    return row.role == "test" and not row.one.sample.label


def _is_unused(row: Row) -> bool:
    return not row.role and not _is_anomalous(row)


def _n_contradicting_labels(rows: Sequence[Row]) -> int:
    both = {NORMAL_LABEL, ANOMALOUS_LABEL}
    return sum(both <= {row.one.sample.label for row in same} for same in _same_pixels(rows))


def _n_lesion_free(rows: Sequence[Row]) -> int:
    chosen = {sample.id for sample in lesion_free(row.one.sample for row in rows)}
    return sum(row.role in FIT_SPLITS and row.one.sample.id in chosen for row in rows)


def _n_unlisted_frames(rows: Sequence[Row]) -> int:
    n_listed = Counter(row.one.sample.path for row in rows)
    n_frames = {row.one.sample.path: row.one.facts.n_frames for row in rows if row.one.facts}
    return sum(n > n_listed[path] for path, n in n_frames.items())


def _counted(counts: Counter[int] | Counter[str], phrase: str) -> str:
    return ", ".join(f"{n} {phrase.format(value)}" for value, n in counts.most_common())
