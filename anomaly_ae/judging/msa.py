"""Measurement systems analysis of a run: do decisions and scores repeat, and do they agree with the truth?

The usual design is 50 parts x 3 appraisers x 3 trials. An appraiser is whatever a part may be shown to or by: a camera,
a station, a person who loads it.

References
----------
AIAG: Measurement Systems Analysis, 4th ed. 2010, chapter III B (variance components) and III C (attribute study).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from anomaly_ae.errors import DataError, UsageError
from anomaly_ae.judging.runs import SavedRun
from anomaly_ae.judging.tables import Sheet, Table, limits, number, p_text
from anomaly_ae.metrics import rate
from anomaly_ae.metrics.agreement import answer_counts, cohen_kappa, fleiss_kappa, part_draws
from anomaly_ae.metrics.checks import BoolVector, FloatVector
from anomaly_ae.metrics.gauge import POOLING_RISK, GaugeStudy, gauge_study, variance_interval
from anomaly_ae.metrics.paired import expanded_percentiles
from anomaly_ae.records import ANOMALOUS_LABEL, NORMAL_LABEL, Decision
from anomaly_ae.results import Row
from anomaly_ae.words import n_of, some_names

CONFIDENCE = 0.95
N_DRAWS, SEED = 1000, 0
SHARE_WITH_VALUE = 0.95  # of the draws: where more have no kappa, those that are left show too little spread
OWN_COLUMNS = ("unit", "group", "label", "defect", "path", "id")
BETWEEN_APPRAISERS = ("reproducibility", "appraiser", "part by appraiser")
REFERENCES = {NORMAL_LABEL: False, "0": False, ANOMALOUS_LABEL: True, "2": True}


@dataclass(frozen=True, slots=True, eq=False)
class Design:
    """The balanced study that a run holds.

    Attributes
    ----------
    parts, appraisers : tuple of str
        The columns' values.
    flagged : bool array, (n_parts, n_appraisers, n_trials)
        Decided anomalous.
    scores : float64 array, of the same shape
        In units of (threshold - median of the calibration normals).
    reference : bool array, (n_parts,), or None
        What the parts are in truth; None where that is not known.
    notes : tuple of str
        What was left out.
    """

    parts: tuple[str, ...]
    appraisers: tuple[str, ...]
    flagged: BoolVector
    scores: FloatVector
    reference: BoolVector | None
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Line:
    """One figure of the study: of whom, which, its value with limits, and on how much it stands."""

    section: str
    who: str
    figure: str
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    method: str = ""


@dataclass(frozen=True, slots=True)
class MeasurementStudy:
    """Attribute agreement, and variance components of the score."""

    lines: tuple[Line, ...]
    changed: tuple[tuple[str, ...], ...]
    appraisers: tuple[str, ...]
    notes: tuple[str, ...]

    def sheet(self) -> Sheet:
        """Return what is printed and written."""
        columns: tuple[str, ...] = ("of", "who", "figure", "value", "95 % interval", "n")
        tables = [Table("Repeatability and reproducibility", columns, tuple(map(_cells, self.lines)))]
        if self.changed:
            columns = ("part", "reference", *(f"flagged by {name}" for name in self.appraisers))
            tables.append(Table("Parts that changed decision", columns, self.changed))
        return Sheet("msa", tuple(tables), self.notes, tuple(asdict(line) for line in self.lines))


def study_run(run: SavedRun, part: str, appraiser: str | None = None, reference: str | None = None) -> MeasurementStudy:
    """Study how decisions and scores of the same parts repeat.

    Parameters
    ----------
    part, appraiser, reference : str
        Columns: of the manifest, or unit, group, label, defect, path, id. Without an appraiser there is one. Without
        a reference it is the label, where all images have one. A reference says normal or anomalous (or 0, 2).

    Raises
    ------
    DataError
        Fewer than two parts that were shown equally often, twice or more, to all appraisers; no threshold; references
        that contradict each other.
    UsageError
        A column that the run does not have.
    """
    if not run.has_threshold:
        raise DataError(
            f"{run.folder} has no threshold", "nothing is decided", "give scores of calibration images, too"
        )
    design = _design(run, part, appraiser, reference)
    gauge = gauge_study(design.scores)
    lines = (*_decisions(design), *_score_lines(gauge, len(design.appraisers)))
    return MeasurementStudy(lines, tuple(_changed(design)), design.appraisers, tuple(_notes(run, design, gauge)))


def _design(run: SavedRun, part: str, appraiser: str | None, reference: str | None) -> Design:
    cells: dict[tuple[str, str], list[Row]] = {}
    n_unnamed = 0
    for row in run.rows:
        key = _column(run, row, part), _column(run, row, appraiser) if appraiser else "all"
        if all(key):
            cells.setdefault(key, []).append(row)
        n_unnamed += not all(key)
    appraisers = tuple(sorted({who for _, who in cells}))
    names = sorted({name for name, _ in cells})
    n_trials = Counter(len(rows) for rows in cells.values()).most_common(1)[0][0] if cells else 0
    parts = tuple(name for name in names if all(len(cells.get((name, who), ())) == n_trials for who in appraisers))
    if len(parts) < 2 or n_trials < 2:
        raise DataError(
            f"{len(parts)} of {len(names)} parts were shown {n_trials} times to each of {len(appraisers)} appraisers",
            "a study needs at least two parts, each shown equally often to all appraisers, twice or more",
            "50 parts, 3 appraisers and 3 trials are usual; check --part and --appraiser",
        )
    rows = [[cells[name, who] for who in appraisers] for name in parts]
    return Design(
        parts=parts,
        appraisers=appraisers,
        flagged=np.array([[[r["decision"] == Decision.ANOMALOUS for r in c] for c in of_part] for of_part in rows]),
        scores=np.array([[[r["score"] for r in c] for c in of_part] for of_part in rows]) / _unit_of_scores(run),
        reference=_references(run, parts, rows, reference),
        notes=tuple(_left_out(len(names) - len(parts), n_unnamed, n_trials)),
    )


def _column(run: SavedRun, row: Row, column: str) -> str:
    if column in OWN_COLUMNS:
        return str(row[column])
    if column not in row["extra"]:
        known = sorted({name for one in run.rows for name in one["extra"]})
        raise UsageError(f"no column '{column}' in {run.folder}", "", f"there are: {', '.join((*OWN_COLUMNS, *known))}")
    return str(row["extra"][column])


def _unit_of_scores(run: SavedRun) -> float:
    """Return the distance from the median of normal images to the threshold."""
    distance = float(run.info["threshold"]["image"]["value"]) - float(run.info["calibration"]["median"])
    if distance <= 0:
        raise DataError(
            f"{run.folder}: the threshold does not lie above the median of normal images", "scores have no unit"
        )
    return distance


def _references(
    run: SavedRun, parts: Sequence[str], rows: Sequence[Sequence[Sequence[Row]]], column: str | None
) -> BoolVector | None:
    """Return what every part is in truth, or None where no column is asked for and labels are missing."""
    found = []
    for name, of_part in zip(parts, rows, strict=True):
        texts = {_column(run, row, column or "label") for cell in of_part for row in cell}
        if column is None and "" in texts:
            return None
        if len(texts) > 1 or not texts <= set(REFERENCES):
            what = f"the reference of part {name} is {some_names(sorted(map(repr, texts)))}"
            raise DataError(what, "one of normal, anomalous, 0 and 2 is expected, the same for all its images")
        found.append(REFERENCES[texts.pop()])
    return np.array(found, bool)


def _left_out(n_parts: int, n_unnamed: int, n_trials: int) -> Iterator[str]:
    if n_parts:
        yield f"left out {n_of(n_parts, 'part')}: not shown, or not inspected, {n_trials} times by every appraiser."
    if n_unnamed:
        yield f"left out {n_of(n_unnamed, 'image')} without a part or an appraiser."


def _decisions(design: Design) -> Iterator[Line]:
    """Yield agreement with oneself, with the truth, and with each other."""
    flagged, truth = design.flagged, design.reference
    for i, who in enumerate(design.appraisers):
        yield _agreement("within appraiser", who, "parts decided alike", _alike(flagged[:, i]))
        yield _fleiss("within appraiser", who, flagged[:, i])
    if truth is not None:
        for i, who in enumerate(design.appraisers):
            yield from _against(truth, who, flagged[:, i])
        if len(design.appraisers) > 1:
            yield from _against(truth, "all", flagged.reshape(len(truth), -1))
    if len(design.appraisers) > 1:
        every = flagged.reshape(len(flagged), -1)
        yield _agreement("between appraisers", "all", "parts decided alike", _alike(every))
        yield _fleiss("between appraisers", "all", every)
        yield from _pairs(design)


def _alike(flagged: BoolVector) -> BoolVector:
    """Return which parts were always decided the same; (n_parts, n) -> (n_parts,)."""
    n_yes = flagged.sum(axis=1)
    return np.asarray((n_yes == 0) | (n_yes == flagged.shape[1]), bool)


def _agreement(section: str, who: str, figure: str, hits: BoolVector) -> Line:
    """Share of parts, with the exact interval."""
    value, (interval,) = rate(hits, confidence=CONFIDENCE, unit="part")
    return Line(section, who, figure, value, interval.low, interval.high, len(hits), interval.said)


def _against(truth: BoolVector, who: str, flagged: BoolVector) -> Iterator[Line]:
    """Yield effectiveness, misses, false alarms and kappa of one appraiser's decisions, (n_parts, n_trials)."""
    section, expected = "against reference", np.repeat(truth[:, None], flagged.shape[1], axis=1)
    yield _agreement(section, who, "effectiveness (all right)", (flagged == expected).all(axis=1))
    for name, among, wrong in (("miss rate", truth, ~flagged), ("false-alarm rate", ~truth, flagged)):
        if among.any():
            yield _decision_rate(section, who, name, wrong[among])

    def kappa(parts: npt.NDArray[np.intp]) -> float | None:
        return cohen_kappa(flagged[parts].ravel(), expected[parts].ravel())

    yield _kappa(section, who, "Cohen's kappa", kappa, len(truth))


def _decision_rate(section: str, who: str, figure: str, wrong: BoolVector) -> Line:
    """Share of wrong decisions, (n_parts, n_trials); the trials of a part are no independent ones."""
    parts = np.repeat(np.arange(len(wrong)), wrong.shape[1])
    value, intervals = rate(wrong.ravel(), parts.tolist(), confidence=CONFIDENCE, unit="decision")
    first = intervals[0]
    return Line(section, who, figure, value, first.low, first.high, wrong.size, first.said)


def _fleiss(section: str, who: str, flagged: BoolVector) -> Line:
    counts = answer_counts(flagged)
    return _kappa(section, who, "Fleiss' kappa", lambda parts: fleiss_kappa(counts[parts]), len(counts))


def _pairs(design: Design) -> Iterator[Line]:
    """Yield Cohen's kappa of every two appraisers, the k-th trial of one with the k-th of the other (AIAG)."""
    for i, first in enumerate(design.appraisers):
        for j in range(i + 1, len(design.appraisers)):
            yield _pair(f"{first} and {design.appraisers[j]}", design.flagged[:, i], design.flagged[:, j])


def _pair(who: str, one: BoolVector, two: BoolVector) -> Line:
    def kappa(parts: npt.NDArray[np.intp]) -> float | None:
        return cohen_kappa(one[parts].ravel(), two[parts].ravel())

    return _kappa("between appraisers", who, "Cohen's kappa", kappa, len(one))


def _kappa(
    section: str, who: str, figure: str, kappa: Callable[[npt.NDArray[np.intp]], float | None], n_parts: int
) -> Line:
    """Kappa, with an interval from parts drawn with replacement: the decisions about one part belong together."""
    value = kappa(np.arange(n_parts))
    if value is None:
        return Line(section, who, figure, None, n=n_parts, method="only one decision was ever given")
    draws = part_draws(kappa, n_parts, N_DRAWS, SEED)
    enough = len(draws) >= SHARE_WITH_VALUE * N_DRAWS
    interval = expanded_percentiles(draws, n_parts, CONFIDENCE, "part") if enough else None
    if interval is None:
        return Line(section, who, figure, value, n=n_parts, method="no interval: too few parts differ from the others")
    return Line(section, who, figure, value, interval.low, interval.high, n_parts, interval.said)


def _score_lines(study: GaugeStudy, n_appraisers: int) -> Iterator[Line]:
    """Yield standard deviations of the score, and their share of the whole one; one appraiser tells of no other."""
    low, high = (limit**0.5 for limit in variance_interval(study.repeatability, study.df_repeatability, CONFIDENCE))
    method = f"chi-square, {study.df_repeatability} degrees of freedom"
    yield Line("score", "repeatability", "sd", study.repeatability**0.5, low, high, method=method)
    others = {
        "reproducibility": study.reproducibility,
        "appraiser": study.appraiser,
        "part by appraiser": study.interaction,
        "repeatability and reproducibility": study.gauge,
        "parts": study.part,
        "all": study.total,
    }
    for who, variance in others.items():
        if n_appraisers == 1 and who in BETWEEN_APPRAISERS:
            yield Line("score", who, "sd", None, method="not measured: one appraiser")
        else:
            yield Line("score", who, "sd", variance**0.5)
    if study.total > 0:
        yield Line("score", "repeatability and reproducibility", "share of sd", (study.gauge / study.total) ** 0.5)
        yield Line("score", "repeatability and reproducibility", "share of variance", study.gauge / study.total)
    yield Line("score", "parts", "distinct categories", study.n_distinct_categories)


def _changed(design: Design) -> Iterator[tuple[str, ...]]:
    """Yield the parts that were not always decided the same, with how often each appraiser's trials flagged them."""
    n_trials = design.flagged.shape[2]
    for i in np.flatnonzero(~_alike(design.flagged.reshape(len(design.parts), -1))):
        truth = "-" if design.reference is None else (NORMAL_LABEL, ANOMALOUS_LABEL)[int(design.reference[i])]
        yield (design.parts[i], truth, *(f"{n} of {n_trials}" for n in design.flagged[i].sum(axis=1)))


def _notes(run: SavedRun, design: Design, gauge: GaugeStudy) -> Iterator[str]:
    n_parts, n_appraisers, n_trials = design.flagged.shape
    yield f"{n_parts} parts x {n_appraisers} appraisers x {n_trials} trials. Decisions are those of images."
    yield from design.notes
    yield from (f"{text}." for text in run.caveats())
    yield "A standard deviation of 1 is the distance from a typical normal image to the threshold."
    if gauge.p_interaction is not None:
        kept = "counted as repeatability" if gauge.pooled else "kept apart"
        yield f"Part by appraiser: p {p_text(gauge.p_interaction)}, {kept} (the limit is {POOLING_RISK})."
    if design.reference is None:
        yield "No reference: nothing says which decisions are right."
    if n_appraisers == 1:
        yield "One appraiser: reproducibility was not measured; figures that should hold it are of repeatability alone."
    yield "Intervals take parts as independent, not trials of one; that of the repeatability of scores takes both so."


def _cells(line: Line) -> tuple[str, ...]:
    value = (
        f"{line.value:.0f}" if line.figure == "distinct categories" and line.value is not None else number(line.value)
    )
    n = "-" if line.n is None else str(line.n)
    return line.section, line.who, line.figure, value, limits(line.low, line.high), n
