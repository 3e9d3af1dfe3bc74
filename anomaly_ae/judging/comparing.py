"""Several runs on the images that all of them decided: figures side by side, and which images changed sides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from anomaly_ae.errors import UsageError
from anomaly_ae.judging.measuring import Figure, Study, figures
from anomaly_ae.judging.pairing import Shared, Variant, group_runs, outcomes, share_items
from anomaly_ae.judging.pixels import PIXEL_AP, pixel_figures
from anomaly_ae.judging.runs import SavedRun
from anomaly_ae.judging.tables import Sheet, Table, limits, number, p_text
from anomaly_ae.metrics.checks import check_confidence
from anomaly_ae.metrics.intervals import N_FEW
from anomaly_ae.metrics.paired import holm
from anomaly_ae.words import n_of

CHANGES = {  # (is anomalous, is flagged now)
    (True, True): "found now",
    (True, False): "missed now",
    (False, True): "false alarm now",
    (False, False): "no false alarm any more",
}


@dataclass(frozen=True, slots=True)
class Change:
    """An image (or unit) that most runs of a variant decide otherwise than most runs of the first.

    Attributes
    ----------
    first, other : float
        Shares of the runs that flag it; one half and more is "anomalous".
    """

    variant: str
    change: str
    name: str
    label: str
    defect: str
    first: float
    other: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Several variants on the same images (or units)."""

    noun: str
    n_normal: int
    n_anomalous: int
    figures: tuple[Figure, ...]
    changes: tuple[Change, ...]
    notes: tuple[str, ...]
    confidence: float

    def sheet(self) -> Sheet:
        """Return what is printed and written: the figures, and what changed sides."""
        interval = f"{100 * self.confidence:g} % interval"
        columns: tuple[str, ...] = (
            *("figure", "variant", "runs", "value ± spread", interval),
            *("difference", interval, "p", "p (Holm)"),
        )
        caption = f"{self.n_normal} normal and {self.n_anomalous} anomalous {self.noun}s that all runs decided"
        tables = [Table(caption, columns, tuple(map(_figure_cells, self.figures)))]
        if self.changes:
            columns = ("variant", "change", self.noun, "defect", "flagged by first", "by variant")
            cells = tuple(map(_change_cells, self.changes))
            tables.append(Table(f"Which {self.noun}s changed sides", columns, cells))
        return Sheet("compare", tuple(tables), self.notes, tuple(map(_record, self.figures)))

    def changes_sheet(self) -> Sheet:
        """Return what changed sides as records."""
        records = tuple(asdict(change) for change in self.changes)
        return Sheet("changed", (), (), records, tuple(field.name for field in fields(Change)))


def compare_runs(
    runs: Sequence[SavedRun], names: Sequence[str] = (), *, confidence: float = 0.95, n_draws: int = 2000, seed: int = 0
) -> Comparison:
    """Compare runs on the images (units) that all of them decided, each variant with the first.

    Parameters
    ----------
    runs : sequence of SavedRun
        At least one. Which of them form one variant: see `group_runs`.
    names : sequence of str
        One for every run, or none.
    confidence : float
        Of the intervals.
    n_draws, seed : int
        Draws of the bootstrap of whole groups, and where they start.

    Raises
    ------
    DataError
        The runs share no labelled image, or say different things of one.
    UsageError
        Names that do not fit; an option out of range.
    """
    if not runs or n_draws < 100:
        raise UsageError(f"{len(runs)} runs, {n_draws} draws", "at least one run and 100 draws are needed")
    check_confidence(confidence)
    variants, notes = group_runs(runs, names)
    shared = share_items(runs)
    study = Study(variants, [outcomes(v, shared) for v in variants], shared, confidence, n_draws, seed)
    found = [*figures(study), *pixel_figures(study)]
    adjusted = holm([figure.difference.p if figure.difference else None for figure in found])
    return Comparison(
        noun=shared.noun,
        n_normal=int((~shared.labels).sum()),
        n_anomalous=int(shared.labels.sum()),
        figures=tuple(replace(figure, p_holm=p) for figure, p in zip(found, adjusted, strict=True)),
        changes=tuple(_changes(study)),
        notes=(*notes, *_notes(study, found, adjusted)),
        confidence=confidence,
    )


def _changes(study: Study) -> Iterator[Change]:
    shares = [None if one.flagged is None else one.flagged.mean(axis=0) for one in study.found]  # (n,) each
    for variant, share in zip(study.variants[1:], shares[1:], strict=True):
        if shares[0] is None or share is None:
            continue
        for i in np.flatnonzero((share >= 0.5) != (shares[0] >= 0.5)):
            item = study.shared.items[i]
            change = CHANGES[bool(study.shared.labels[i]), bool(share[i] >= 0.5)]
            before, now = float(shares[0][i]), float(share[i])
            yield Change(variant.name, change, item.name, item.label, item.defect, before, now)


def _notes(study: Study, found: Sequence[Figure], adjusted: Sequence[float | None]) -> Iterator[str]:
    shared, n_tests = study.shared, sum(p is not None for p in adjusted)
    yield from shared.notes
    for variant in study.variants:
        if len(variant.runs) > 1:
            yield f"{variant.name} is the mean of {len(variant.runs)} runs: {', '.join(_folders(variant))}."
        for run in variant.runs:
            yield from (f"{variant.name} ({run.folder}): {text}." for text in run.caveats())
    yield f"Intervals say where a figure would lie on other images, with {shared.of}s taken as independent."
    if any(figure.spread is not None for figure in found):
        yield "Spread is the standard deviation over runs of other seeds; the intervals do not hold it."
    if n_tests:
        yield f"Differences are to {study.variants[0].name}; p (Holm) is adjusted for {n_of(n_tests, 'test')}."
    yield from _few(shared)
    kept = {figure.name for figure in found}
    yield from (f"{name}: left out, {why}." for name, why in _missing(study) if name not in kept)
    reasons = {f"{f.name}: {f.difference.reason}." for f in found if f.difference and f.difference.reason}
    yield from sorted(reasons)


def _folders(variant: Variant) -> list[str]:
    return [str(run.folder) for run in variant.runs]


def _few(shared: Shared) -> Iterator[str]:
    for name, among in (("normal", ~shared.labels), ("anomalous", shared.labels)):
        n = shared.n_drawn(among)
        if n < N_FEW:
            few = n_of(n, f"{name} {shared.of}")
            yield f"Only {few}: the intervals of differences are rough, and small p-values rougher."


def _missing(study: Study) -> Iterator[tuple[str, str]]:
    labels = study.shared.labels
    if labels.all() or not labels.any():
        yield "ROC-AUC and average precision", "both normal and anomalous images are needed"
    if any(run.metrics for variant in study.variants for run in variant.runs):
        yield PIXEL_AP, "not all runs have it, or not on the same images"


def _figure_cells(figure: Figure) -> tuple[str, ...]:
    value = number(figure.value) + ("" if figure.spread is None else f" ± {number(figure.spread)}")
    own, step = figure.interval, figure.difference
    between = step.interval if step else None
    return (
        figure.name,
        figure.variant,
        str(figure.n_runs),
        value,
        limits(own.low, own.high) if own else "-",
        number(step.value if step else None, sign=True),
        limits(between.low, between.high, sign=True) if between else "-",
        p_text(step.p if step else None),
        p_text(figure.p_holm),
    )


def _change_cells(change: Change) -> tuple[str, ...]:
    shares = (number(share, 2) for share in (change.first, change.other))
    return change.variant, change.change, change.name, change.defect or "-", *shares


def _record(figure: Figure) -> dict[str, Any]:
    own, step = figure.interval, figure.difference
    between = step.interval if step else None
    return {
        "figure": figure.name,
        "variant": figure.variant,
        "n_runs": figure.n_runs,
        "n_normal": figure.n_normal,
        "n_anomalous": figure.n_anomalous,
        "value": figure.value,
        "spread": figure.spread,
        **_limits("", own),
        "difference": step.value if step else None,
        **_limits("difference_", between),
        "p": step.p if step else None,
        "p_holm": figure.p_holm,
        "reason": step.reason if step else "",
    }


def _limits(prefix: str, interval: Any) -> dict[str, Any]:
    names = ("low", "high", "method", "unit", "detail")
    return {prefix + name: getattr(interval, name) if interval else None for name in names}
