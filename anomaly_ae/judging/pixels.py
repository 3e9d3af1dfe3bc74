"""Pixel figures of every variant, with paired differences: from the counts per image that runs keep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from anomaly_ae.judging.measuring import Figure, Study, mean_interval
from anomaly_ae.judging.runs import SavedRun
from anomaly_ae.metrics import PixelTable
from anomaly_ae.metrics.checks import FloatVector
from anomaly_ae.metrics.paired import Difference
from anomaly_ae.records import Interval
from anomaly_ae.results import read_pixel_counts

PIXEL_AP = "pixel average precision"
NAMES = {"average_precision": PIXEL_AP, "au_pro_0.3": "AU-PRO 0.3"}


@dataclass(frozen=True, slots=True, eq=False)
class _Draws:
    """Figures of sets of whole groups: per variant, by name, (n_draws,) each, the same groups for every variant.

    Where there are none, `reason` says why.
    """

    by_variant: Sequence[Mapping[str, FloatVector]] = ()
    n_groups: int = 0
    reason: str = ""


def pixel_figures(study: Study) -> Iterator[Figure]:
    """Yield the figures of pixels as the runs have them, where all do, on the same images.

    Values and their intervals are those of the runs. Differences are drawn like those of images: whole groups with
    replacement, the same for every variant, from counts at some hundred levels, and then moved by what their
    difference lacks to the exact one.
    """
    runs = [run for variant in study.variants for run in variant.runs]
    if study.shared.notes or any(_metric(run, PIXEL_AP).get("value") is None for run in runs):
        return
    drawn = _draws(study, runs) if len(study.variants) > 1 else _Draws()
    for key, name in NAMES.items():
        if any(_metric(run, name).get("value") is None for run in runs):
            continue
        first = 0.0
        for i, variant in enumerate(study.variants):
            stored = [_metric(run, name) for run in variant.runs]
            values = np.array([one["value"] for one in stored])
            first = first if i else float(values.mean())
            difference = _difference(study, drawn, key, i, float(values.mean()) - first) if i else None
            own = mean_interval([tuple(Interval(**limits) for limits in one["intervals"]) for one in stored])
            figure = study.figure(name, i, values, own, difference)
            yield replace(figure, n_normal=stored[0]["n_normal"], n_anomalous=stored[0]["n_anomalous"])


def _metric(run: SavedRun, name: str) -> Mapping[str, Any]:
    pixel = run.metrics.get("pixel", {})
    found: Mapping[str, Any] = pixel.get("average_precision", {}) if name == PIXEL_AP else _au_pro(pixel)
    return found


def _au_pro(pixel: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = pixel.get("au_pro", {}).get("0.3", {})
    return found


def _difference(study: Study, drawn: _Draws, key: str, i: int, value: float) -> Difference:
    if drawn.reason:
        return Difference(value, reason=drawn.reason)
    steps = drawn.by_variant[i].get(key, np.empty(0)) - drawn.by_variant[0].get(key, np.empty(0))
    return study.bootstrapped(value, steps, drawn.n_groups)


def _draws(study: Study, runs: Sequence[SavedRun]) -> _Draws:
    """Return the draws of every variant, each moved to its exact figures; a reason where runs cannot be paired."""
    group_of = {row["id"]: str(row["group"]) for row in runs[0].rows}
    ids, tables, reason = _paired_tables(runs)
    if reason:
        return _Draws(reason=reason)
    groups = [group_of[name] for name in ids]
    per_run = iter([_moved(run, table, groups, study) for run, table in zip(runs, tables, strict=True)])
    by_variant = [_mean([next(per_run) for _ in variant.runs]) for variant in study.variants]
    return _Draws(by_variant, tables[0].n_masked_groups(groups))


def _paired_tables(runs: Sequence[SavedRun]) -> tuple[list[str], list[PixelTable], str]:
    """Return ids, and the counts of every run in the order of these ids; or why there are none."""
    found = [read_pixel_counts(run.folder) for run in runs]
    ids = found[0][0] if found[0] else []
    tables: list[PixelTable] = []
    for one in found:
        if one is None:
            return [], [], "a run keeps no pixel counts, so no interval; evaluate again"
        if set(one[0]) != set(ids):
            return [], [], "not of the same images in all runs, so no interval"
        place = {name: i for i, name in enumerate(one[0])}
        tables.append(one[1].of([place[name] for name in ids]))
    if any((table.masked.sum(1) != tables[0].masked.sum(1)).any() for table in tables):
        return [], [], "the masks differ between the runs, so no interval"
    return ids, tables, ""


def _moved(run: SavedRun, table: PixelTable, groups: Sequence[str], study: Study) -> dict[str, FloatVector]:
    near, drawn = table.values(), table.draws(groups, study.n_draws, study.seed)
    exact = {key: _metric(run, name).get("value") for key, name in NAMES.items()}
    return {key: drawn[key] + (value - near[key]) for key, value in exact.items() if value is not None and drawn}


def _mean(per_run: Sequence[Mapping[str, FloatVector]]) -> dict[str, FloatVector]:
    return {key: np.mean([one[key] for one in per_run], axis=0) for key in per_run[0]}
