"""Runs that differ in their seed alone become one variant; the images (or units) that all runs share, in one order."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from anomaly_ae.errors import DataError, UsageError
from anomaly_ae.judging.runs import Item, SavedRun
from anomaly_ae.metrics.checks import BoolVector, FloatVector, IntVector, group_numbers, groups_if_any
from anomaly_ae.records import ANOMALOUS_LABEL, Decision
from anomaly_ae.threshold import DEFAULT_RATE
from anomaly_ae.words import n_of, some_names


@dataclass(frozen=True, slots=True)
class Variant:
    """One row of a comparison: the runs of one way of doing it, which differ in their seed."""

    name: str
    runs: tuple[SavedRun, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes:
    """What the runs of one variant say of the shared items.

    Attributes
    ----------
    scores : float64 array, (n_runs, n)
    flagged : bool array, (n_runs, n), or None
        Decided anomalous, at the threshold of each run; None where a run has no threshold.
    """

    scores: FloatVector
    flagged: BoolVector | None


@dataclass(frozen=True, slots=True, eq=False)
class Shared:
    """The labelled images, or units, that every run has decided.

    Attributes
    ----------
    noun : {"image", "unit"}
    items : tuple of Item
        As the first run has them.
    labels : bool array, (n,)
        True = anomalous.
    groups : int64 array, (n,), or None
        Group numbers; None where no group holds two items: then these are taken as independent.
    notes : tuple of str
        What was left out.
    """

    noun: str
    items: tuple[Item, ...]
    labels: BoolVector
    groups: IntVector | None
    notes: tuple[str, ...]

    @property
    def of(self) -> str:
        """What intervals take as independent."""
        return self.noun if self.groups is None else "group"

    @property
    def codes(self) -> IntVector:
        """Numbers of what is drawn as a whole, (n,): groups, or single items."""
        return np.arange(len(self.items)) if self.groups is None else self.groups

    def n_drawn(self, among: BoolVector) -> int:
        """How many groups, or single items, hold the items chosen."""
        return len(np.unique(self.codes[among]))


def group_runs(runs: Sequence[SavedRun], names: Sequence[str] = ()) -> tuple[list[Variant], list[str]]:
    """Return the variants, in the order of their first run, and what there is to say about it.

    With names, runs of equal name are one variant. Without, runs are one variant that were made with the same settings
    but different seeds, from as many images of each kind, with thresholds asked for in the same way: ``run.json`` says
    so. A variant is called as the folder of its first run, without the seed in it.

    Raises
    ------
    UsageError
        A run is named twice; as many names as runs are needed; two runs of one variant are of the same seed.
    """
    folder, n = Counter(run.folder.resolve() for run in runs).most_common(1)[0]
    if n > 1:
        raise UsageError(
            f"{folder} is named {n} times", "a run says nothing new the second time", "name every run once"
        )
    if names and len(names) != len(runs):
        raise UsageError(
            f"{len(names)} names for {len(runs)} runs", "", "give --name once for every run, in their order"
        )
    if names:
        parts = {name: [run for run, own in zip(runs, names, strict=True) if own == name] for name in names}
        for name, part in parts.items():
            _refuse_same_seed(name, part)
        return [Variant(name, tuple(part)) for name, part in parts.items()], []
    groups: dict[str, list[SavedRun]] = {}
    for run in runs:
        groups.setdefault(_settings(run), []).append(run)
    parted = [part for group in groups.values() for part in _unless_seeds_repeat(group)]
    notes = []
    if len(parted) > len(groups):
        notes.append(
            "Runs of one seed and the same settings stand in rows of their own; --name puts runs into one row."
        )
    parted.sort(key=lambda part: runs.index(part[0]))
    return [Variant(name, tuple(part)) for name, part in zip(_row_names(parted), parted, strict=True)], notes


def _settings(run: SavedRun) -> str:
    """Return all that runs of one variant have in common; a run that does not say its settings is like no other."""
    info = run.info
    if "settings" not in info["model"]:
        return str(run.folder)
    settings = {key: value for key, value in info["model"]["settings"].items() if key != "seed"}
    n_normals = sum(info["model"][key] for key in ("n_train", "n_validation", "n_calibration"))  # how cut: by the seed
    limit = info["threshold"]["image"]
    asked = [_asked_rate(limit), *(limit.get(key) for key in ("rule", "confidence", "sensitivity", "cost"))]
    return json.dumps([settings, n_normals, asked, info["data"]["name"], run.what_if], sort_keys=True)


def _asked_rate(limit: Mapping[str, Any]) -> str:
    """Return the false-alarm rate; "" for the default: 1 %, or the least that so many calibration images support."""
    rate: str = limit.get("rate") or ""
    n = limit.get("n_groups") or limit.get("n") or 0
    return "" if rate in (str(DEFAULT_RATE), f"1/{n + 1}") else rate


def _unless_seeds_repeat(runs: list[SavedRun]) -> list[list[SavedRun]]:
    seeds = [run.info["seed"] for run in runs]
    return [runs] if len(set(seeds)) == len(seeds) else [[run] for run in runs]


def _refuse_same_seed(name: str, runs: Sequence[SavedRun]) -> None:
    seed, n = Counter(run.info["seed"] for run in runs).most_common(1)[0]
    if n > 1 and seed is not None:  # scores of another tool have none
        raise UsageError(
            f"{n} of the runs called '{name}' have seed {seed}",
            "runs of one row differ in their seed, or their spread says nothing",
            "fit them with --seed 0, --seed 1 and so on, or give them different names",
        )


def _row_names(variants: Sequence[Sequence[SavedRun]]) -> list[str]:
    """Return the names of the folders, without the seed where several runs are one row; paths where names repeat."""
    own = [part[0].folder.resolve().name for part in variants]
    names = [_without_seed(name) if len(part) > 1 else name for name, part in zip(own, variants, strict=True)]
    return names if len(set(names)) == len(names) else [str(part[0].folder) for part in variants]


def _without_seed(name: str) -> str:
    """Return the name of a folder without the seed.

    >>> _without_seed("wide-seed0"), _without_seed("seed_3_wide"), _without_seed("seed1")
    ('wide', 'wide', 'seed1')
    """
    return re.sub(r"[-_. ]*seed[-_. ]?\d+", "", name, flags=re.IGNORECASE).strip("-_. ") or name


def share_items(runs: Sequence[SavedRun]) -> Shared:
    """Return the labelled images (units, where a run decides units of several images) that all runs have decided.

    Raises
    ------
    DataError
        No such image; or one has another label, group or content in another run.
    """
    by_unit = any(run.has_units for run in runs)
    noun = "unit" if by_unit else "image"
    own = [_decided(run, by_unit) for run in runs]
    common = set.intersection(*(set(items) for items in own))
    if not common:
        raise DataError(
            f"the runs have no labelled {noun} in common",
            f"{noun}s are paired by their {'name' if by_unit else 'id'}",
            "evaluate every model on the same manifest",
        )
    _refuse_other_content(runs)
    items = tuple(item for name, item in own[0].items() if name in common)
    for run, others in zip(runs[1:], own[1:], strict=True):
        _refuse_other_facts(items, others, runs[0], run)
    groups = groups_if_any(item.group for item in items)
    return Shared(
        noun=noun,
        items=items,
        labels=np.array([item.label == ANOMALOUS_LABEL for item in items], bool),
        groups=group_numbers(groups, len(items)),
        notes=tuple(_left_out(runs, own, common, noun)),
    )


def _decided(run: SavedRun, by_unit: bool) -> dict[Hashable, Item]:
    """Return the labelled items of a run that were inspected, by name; units with the images they were decided on."""
    if not by_unit:
        return {item.name: item for item in run.images if item.label}
    images = run.images_of_units()
    decided = (item for item in run.units if item.label and item.decision != Decision.NOT_INSPECTED)
    return {(item.name, images[item.name]): item for item in decided}


def _refuse_other_content(runs: Sequence[SavedRun]) -> None:
    known = {row["id"]: row["image_sha256"] for row in runs[0].rows}
    for run in runs[1:]:  # a hash is empty where another tool read the image
        hashes = [(row["id"], row["image_sha256"], known.get(row["id"])) for row in run.rows]
        changed = [name for name, one, other in hashes if one and other and one != other]
        if changed:
            raise DataError(
                f"{some_names(changed)}: another image in {run.folder} than in {runs[0].folder}",
                "their files differ, so what the runs say of them cannot be compared",
                "evaluate every model on the same images",
            )


def _refuse_other_facts(items: Sequence[Item], others: Mapping[Hashable, Item], first: SavedRun, run: SavedRun) -> None:
    by_name = {item.name: item for item in others.values()}
    for item in items:
        other = by_name[item.name]
        if (item.label, item.group) != (other.label, other.group):
            raise DataError(
                f"{item.name} is '{item.label}' of group '{item.group}' in {first.folder}, "
                f"but '{other.label}' of group '{other.group}' in {run.folder}",
                "label and group have to be the same in all runs",
                "evaluate every model on the same manifest",
            )


def _left_out(
    runs: Sequence[SavedRun], own: Sequence[Mapping[Hashable, Item]], common: set[Hashable], noun: str
) -> list[str]:
    lines = []
    for run, items in zip(runs, own, strict=True):
        if len(items) > len(common):
            n = len(items) - len(common)
            lines.append(f"{run.folder}: left out {n_of(n, noun)} that another run lacks or could not inspect.")
        unlabelled = len(run.units if noun == "unit" else run.rows) - len(items)
        if unlabelled:
            lines.append(f"{run.folder}: left out {n_of(unlabelled, noun)} without a label or a decision.")
    return lines


def outcomes(variant: Variant, shared: Shared) -> Outcomes:
    """Return what every run of a variant says of the shared items, in their order."""
    scores: list[list[float | None]] = []
    flagged: list[list[bool]] = []
    for run in variant.runs:
        by_name = {item.name: item for item in (run.units if shared.noun == "unit" else run.images)}
        own = [by_name[item.name] for item in shared.items]
        scores.append([item.score for item in own])
        flagged.append([item.decision == Decision.ANOMALOUS for item in own])
    has_thresholds = all(run.has_threshold for run in variant.runs)
    return Outcomes(np.array(scores, np.float64), np.array(flagged, bool) if has_thresholds else None)
