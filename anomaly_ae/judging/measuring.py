"""Figures of every variant on the shared images: value, spread, interval, paired difference to the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from anomaly_ae.judging.pairing import Outcomes, Shared, Variant
from anomaly_ae.metrics import average_precision, rate, roc_auc
from anomaly_ae.metrics.checks import BoolVector, FloatVector, LabelledScores
from anomaly_ae.metrics.curves import ScoreCounts, area_under_roc, count_by_score, step_area_under_pr
from anomaly_ae.metrics.intervals import group_bootstrap
from anomaly_ae.metrics.paired import (
    Difference,
    bootstrap_difference,
    delong_difference,
    mean_draws,
    paired_rates_difference,
    placements,
)
from anomaly_ae.records import Interval

Area = Callable[[ScoreCounts], float]


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of one variant.

    Attributes
    ----------
    n_runs, n_normal, n_anomalous : int
        What it was computed on.
    value : float
        Mean over the runs.
    spread : float or None
        Standard deviation over the runs (seeds); None for one run.
    interval : Interval or None
        Where the value would lie on other images; other seeds are not in it.
    difference : Difference or None
        To the first variant; None for the first itself.
    p_holm : float or None
        The p-value, adjusted for all of the table.
    """

    name: str
    variant: str
    n_runs: int
    n_normal: int
    n_anomalous: int
    value: float
    spread: float | None
    interval: Interval | None
    difference: Difference | None
    p_holm: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Study:
    """What figures are computed from: variants, what they say of the shared items, and how intervals are made."""

    variants: Sequence[Variant]
    found: Sequence[Outcomes]
    shared: Shared
    confidence: float
    n_draws: int
    seed: int

    def figure(
        self, name: str, i: int, values: FloatVector, interval: Interval | None, difference: Difference | None
    ) -> Figure:
        """Return a figure of variant number ``i`` from its values, (n_runs,)."""
        return Figure(
            name=name,
            variant=self.variants[i].name,
            n_runs=len(values),
            n_normal=int((~self.shared.labels).sum()),
            n_anomalous=int(self.shared.labels.sum()),
            value=float(values.mean()),
            spread=float(values.std(ddof=1)) if len(values) > 1 else None,
            interval=interval,
            difference=difference,
        )

    def bootstrapped(self, value: float, draws: FloatVector, n_drawn: int) -> Difference:
        """Return a difference with what its bootstrap draws say."""
        nothing = "the draws do not vary" if draws.any() else f"no {self.shared.of} makes a difference"
        return bootstrap_difference(value, draws, self.n_draws, n_drawn, self.confidence, self.shared.of, nothing)


def figures(study: Study) -> list[Figure]:
    """Return all figures of images (units) that the labels allow, variant by variant within each."""
    labels = study.shared.labels
    found: list[Figure] = []
    if labels.any() and not labels.all():
        found += _area_figures(study, "ROC-AUC", area_under_roc)
        found += _area_figures(study, "average precision", step_area_under_pr)
    if labels.any():
        found += _rate_figures(study, "sensitivity", labels)
    if not labels.all():
        found += _rate_figures(study, "false-alarm rate", ~labels)
    return found


def _area_figures(study: Study, name: str, area: Area) -> Iterator[Figure]:
    labels = study.shared.labels
    values = [np.array([area(count_by_score(LabelledScores(labels, s))[1]) for s in one.scores]) for one in study.found]
    by_delong = area is area_under_roc and study.shared.groups is None
    draws = [] if by_delong or len(study.found) == 1 else [_area_draws(study, one, area) for one in study.found]
    n_drawn = min(study.shared.n_drawn(labels), study.shared.n_drawn(~labels))
    for i, one in enumerate(study.found):
        difference = None
        if i and by_delong:
            difference = _delong(study, one)
        elif i:
            difference = study.bootstrapped(float(values[i].mean() - values[0].mean()), draws[i] - draws[0], n_drawn)
        yield study.figure(name, i, values[i], _own_areas(study, one, area), difference)


def _own_areas(study: Study, one: Outcomes, area: Area) -> Interval | None:
    shared, metric = study.shared, roc_auc if area is area_under_roc else average_precision
    groups = None if shared.groups is None else shared.groups.tolist()
    per_run = [metric(shared.labels, s, groups, unit=shared.noun, confidence=study.confidence) for s in one.scores]
    return mean_interval([own.intervals for own in per_run])


def mean_interval(per_run: Sequence[tuple[Interval, ...]]) -> Interval | None:
    """Return the first interval of one run; the mean of the limits of several, None where one lacks it.

    A mean deviates no more than its parts do on average, so the mean of the limits errs on the wide side, also where a
    rate is 0 or 1 and a bootstrap would see nothing.
    """
    if not all(per_run):
        return None
    first = [intervals[0] for intervals in per_run]
    if len(first) == 1:
        return first[0]
    method = f"mean of the limits of {len(first)} runs, {first[0].method}"
    low, high = (float(np.mean([getattr(one, end) for one in first])) for end in ("low", "high"))
    return Interval(low, high, method, first[0].unit)


def _area_draws(study: Study, one: Outcomes, area: Area) -> FloatVector:
    """Return the mean area over the runs, (n_draws,), on sets of whole groups.

    The sets are the same for every variant: one seed draws the same groups, and drops the same draws, those without a
    class.
    """
    labels, codes = study.shared.labels, study.shared.codes
    per_run = [group_bootstrap(LabelledScores(labels, s), codes, area, study.n_draws, study.seed) for s in one.scores]
    mean: FloatVector = np.mean(per_run, axis=0)
    return mean


def _delong(study: Study, other: Outcomes) -> Difference:
    labels = study.shared.labels
    first, second = (np.mean([placements(labels, s) for s in one.scores], axis=0) for one in (study.found[0], other))
    return delong_difference(labels, first, second, study.confidence, study.shared.noun)


def _rate_figures(study: Study, name: str, among: BoolVector) -> Iterator[Figure]:
    """Yield the share of flagged items, at the threshold of each run; nothing where a run has none."""
    flagged = [None if one.flagged is None else one.flagged[:, among] for one in study.found]  # (n_runs, n_among)
    for i, hits in enumerate(flagged):
        if hits is None:
            continue
        difference = None if not i or flagged[0] is None else _rate_difference(study, flagged[0], hits, among)
        yield study.figure(name, i, hits.mean(axis=1), _own_rate(study, hits, among), difference)


def _own_rate(study: Study, hits: BoolVector, among: BoolVector) -> Interval | None:
    shared = study.shared
    groups = None if shared.groups is None else shared.groups[among].tolist()
    return mean_interval([rate(run, groups, confidence=study.confidence, unit=shared.noun)[1] for run in hits])


def _rate_difference(study: Study, first: BoolVector, other: BoolVector, among: BoolVector) -> Difference:
    shared = study.shared
    if shared.groups is None and len(first) == len(other) == 1:
        return paired_rates_difference(first[0], other[0], study.confidence, shared.noun)
    change = other.mean(axis=0) - first.mean(axis=0)
    draws = mean_draws(change, shared.codes[among], study.n_draws, study.seed)
    return study.bootstrapped(float(change.mean()), draws, shared.n_drawn(among))
