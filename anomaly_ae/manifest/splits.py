"""Cut the normal images into train, validation and calibration, and into folds; no group ever crosses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from anomaly_ae.errors import ConfigError, DataError
from anomaly_ae.manifest.naming import is_public, order_of
from anomaly_ae.manifest.slices import is_slice, is_suspect
from anomaly_ae.manifest.table import FIT_SPLITS, Manifest
from anomaly_ae.records import ANOMALOUS_LABEL, Sample
from anomaly_ae.words import n_of

MIN_NORMALS = 8

_N_ORDERS = 32
_FINER_GROUPS = (
    "give finer groups (`group` column, groups.tsv, --group-regex), or leave them out if the images are independent"
)


def roles(samples: Iterable[Sample]) -> list[str]:
    """Return what each row is used for: "train", "validation", "calibration", "test" or "" (nothing).

    That is its split. A row without one is used for training when no row at all says "train" and it is not
    anomalous.
    """
    samples = list(samples)
    spare = "" if any(s.split == "train" for s in samples) else "train"
    return [s.split or ("" if s.label == ANOMALOUS_LABEL else spare) for s in samples]


def split_normals(
    samples: Sequence[Sample], validation_share: float, calibration_share: float, seed: int
) -> dict[str, tuple[Sample, ...]]:
    """Cut the normal images by group into what learns, what validates and what sets the thresholds.

    Rows that the manifest already calls "validation" or "calibration" are those parts, and nothing is added
    to them. The cut depends on the rows used for fitting, the shares and the seed alone: neither on test rows
    nor on the order of rows. Groups are taken in random order whatever their size, because calibration needs
    groups that are like a new one; of 32 such orders the one closest to the shares is kept.

    Parameters
    ----------
    samples : sequence of Sample
        The whole manifest.
    validation_share, calibration_share : float
        Shares of all normal images, in (0, 1), together below 1.
    seed : int
        The same seed gives the same cut.

    Returns
    -------
    dict of str to tuple of Sample
        "train", "validation" and "calibration", each sorted by id and of at least one group.

    Raises
    ------
    DataError
        Anomalous rows among them, a group in two parts, a unit in two groups, fewer than 8 images, too few groups.
    ConfigError
        The shares leave nothing to train on.
    """
    if not (validation_share > 0 and calibration_share > 0 and validation_share + calibration_share < 1):
        what = f"validation_share = {validation_share} and calibration_share = {calibration_share}"
        raise ConfigError(what, "both must be above 0 and together below 1", "for example 0.15 and 0.25")
    parts = _parts_for_fit(samples)
    _refuse_unfit(parts)
    n_normals = sum(len(part) for part in parts.values())
    shares = {"calibration": calibration_share, "validation": validation_share}
    n_wanted = {name: share * n_normals for name, share in shares.items() if not parts[name]}
    pool = by_group(parts["train"])
    _refuse_few_groups(pool, n_needed=1 + len(n_wanted))
    sizes = np.array([len(own) for own in pool.values()])
    assigned = _assign(sizes, n_wanted, np.random.default_rng(seed))
    cut = {name: [*part] for name, part in parts.items() if name != "train"} | {"train": []}
    for group, name in zip(pool, assigned, strict=True):
        cut[name] += pool[group]
    return {name: _by_id(cut[name]) for name in FIT_SPLITS}


def _parts_for_fit(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    parts: dict[str, list[Sample]] = {name: [] for name in FIT_SPLITS}
    for sample, role in zip(samples, roles(samples), strict=True):
        if role in parts:
            parts[role].append(sample)
    return parts


def _refuse_unfit(parts: Mapping[str, Sequence[Sample]]) -> None:
    rows = [sample for part in parts.values() for sample in part]
    anomalous = [sample for sample in rows if is_suspect(sample.label, sample.extra)]
    if anomalous:
        what = f"{len(anomalous)} anomalous images stand in train, validation or calibration"
        why = f"only normal images may be learned, the first is {anomalous[0].path}"
        raise DataError(what, why, "give them the split `test`, or correct their label")
    if len(rows) < MIN_NORMALS:
        what = f"{len(rows)} normal images to fit on"
        why = f"at least {MIN_NORMALS} are needed to learn, validate and set a threshold"
        raise DataError(what, why, "add normal images; 50 to 300 make a useful start")
    part_of: dict[str, str] = {}
    group_of: dict[str, str] = {}
    for name, part in parts.items():
        for sample in part:
            if part_of.setdefault(sample.group, name) != name:
                what = f"group {sample.group!r} stands in {part_of[sample.group]} and in {name}"
                raise DataError(what, "images of one group are not independent", "give its rows one split")
            if group_of.setdefault(sample.unit, sample.group) != sample.group:
                what = f"unit {sample.unit!r} stands in the groups {group_of[sample.unit]!r} and {sample.group!r}"
                raise DataError(what, "a unit is decided as a whole", "give all rows of a unit the same group")


def _refuse_few_groups(pool: Mapping[str, Sequence[Sample]], n_needed: int) -> None:
    if len(pool) < n_needed:
        n_images = sum(len(group) for group in pool.values())
        what = f"the {n_images} normal images to be cut belong to {n_of(len(pool), 'group')}"
        why = f"a group never crosses a split, and {n_needed} parts need one each"
        raise DataError(what, why, _FINER_GROUPS)


def _assign(sizes: np.ndarray, n_wanted: Mapping[str, float], generator: np.random.Generator) -> list[str]:
    """Return a part for each group: random order, cut where the counts come closest to what is wanted."""
    best, best_miss = ["train"] * len(sizes), np.inf
    for _ in range(_N_ORDERS if n_wanted else 0):
        order = generator.permutation(len(sizes))
        names, miss = _cut(sizes[order], n_wanted)
        if miss < best_miss:
            best_miss = miss
            best = [name for _, name in sorted(zip(order.tolist(), names, strict=True))]
    return best


def _cut(sizes: np.ndarray, n_wanted: Mapping[str, float]) -> tuple[list[str], float]:
    """Fill the parts from the front, the rest is train; also return by how many images they miss."""
    names = ["train"] * len(sizes)
    start, miss = 0, 0.0
    for n_later, (name, wanted) in zip(range(len(n_wanted), 0, -1), n_wanted.items(), strict=True):
        counts = np.cumsum(sizes[start : len(sizes) - n_later])  # every later part keeps at least one group
        n_groups = int(np.argmin(np.abs(counts - wanted))) + 1
        names[start : start + n_groups] = [name] * n_groups
        miss += abs(float(counts[n_groups - 1]) - wanted)
        start += n_groups
    return names, miss


def lesion_free(samples: Iterable[Sample]) -> tuple[Sample, ...]:
    """Return slices that are not anomalous of volumes whose group has an anomalous slice or volume elsewhere."""
    samples = tuple(samples)
    patients = _with_an_anomaly(samples)
    return tuple(s for s in samples if s.group in patients and is_slice(s) and not is_suspect(s.label, s.extra))


def _with_an_anomaly(samples: Iterable[Sample]) -> set[str]:
    return {s.group for s in samples if is_suspect(s.label, s.extra)}


def make_folds(manifest: Manifest, k: int, seed: int, learn_from_patients: bool = False) -> list[Manifest]:
    """Return `k` manifests for cross-validation by group; splits that were there are replaced.

    The groups without an anomalous image rotate: each is tested in exactly one fold and trains in all others.
    A group with an anomalous image, its normal images included, is tested in every fold and never trains.

    With ``learn_from_patients`` all groups rotate, and the lesion-free slices of patients train in the folds that do
    not test these: for data without healthy people. What nobody outlined in such slices is learned as normal.

    Raises
    ------
    DataError
        `k` below 2, or fewer normal groups than needed.
    """
    if k < 2:
        raise DataError(f"{k} folds", "a fold trains on some groups and tests on others", "ask for 2 or more")
    groups = by_group(manifest.samples)
    always_test = set() if learn_from_patients else _with_an_anomaly(manifest.samples)
    rotating = [group for group in groups if group not in always_test]
    if len(rotating) < k:
        what = f"{k} folds from {n_of(len(rotating), 'group')} of normal images"
        raise DataError(what, "each fold tests at least one group", f"ask for fewer, or {_FINER_GROUPS}")
    fold_of = _rotate({name: len(groups[name]) for name in rotating}, k, np.random.default_rng(seed))
    return [_fold(manifest, number, k, always_test, fold_of) for number in range(k)]


def _rotate(sizes: Mapping[str, int], k: int, generator: np.random.Generator) -> dict[str, int]:
    """Deal the groups out, largest first, each to the fold with the fewest images."""
    names = list(sizes)
    shuffled = [names[i] for i in generator.permutation(len(names))]
    n_images = [0] * k
    fold_of = {}
    for name in sorted(shuffled, key=lambda name: -sizes[name]):
        fold_of[name] = n_images.index(min(n_images))
        n_images[fold_of[name]] += sizes[name]
    return fold_of


def _fold(manifest: Manifest, number: int, k: int, always_test: set[str], fold_of: Mapping[str, int]) -> Manifest:
    def split(sample: Sample) -> str:
        tested = sample.group in always_test or fold_of[sample.group] == number
        return "test" if tested else "" if is_suspect(sample.label, sample.extra) else "train"

    samples = tuple(replace(sample, split=split(sample)) for sample in manifest.samples)
    return replace(manifest, samples=samples, notes=(*manifest.notes, f"fold {number + 1} of {k}, by group"))


def by_group(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    """Return the samples of each group, the groups by name; by their first file where the name is a hash."""
    groups: defaultdict[str, list[Sample]] = defaultdict(list)
    for sample in _by_id(samples):
        groups[sample.group].append(sample)
    return dict(sorted(groups.items(), key=lambda item: order_of(item[1][0]) if is_public(item[0]) else item[0]))


def _by_id(samples: Iterable[Sample]) -> tuple[Sample, ...]:
    return tuple(sorted(samples, key=order_of))
