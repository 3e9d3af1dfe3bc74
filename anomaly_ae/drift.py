"""Watching production: do the images of finished runs still look like the calibration images?

Works on saved numbers alone: those of the rows of a RUN against those that the model file keeps. No image is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anomaly_ae.detector import Detector
from anomaly_ae.errors import DataError, UsageError
from anomaly_ae.manifest.slices import is_suspect
from anomaly_ae.martingale import Floats, log10_evidence, online_p_values
from anomaly_ae.page import figure, line_plot, table, write_page
from anomaly_ae.report.words import number
from anomaly_ae.results import FORMAT, NO_GROUPS, Row, read_scores, write_json
from anomaly_ae.threshold import DEFAULT_RATE, Share, parse_rate, percent_text
from anomaly_ae.words import n_of

SCORE = "score"
MAX_DRAWN = 2000
"""Of longer runs, so many evenly spaced images are drawn."""


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """One number of every image, and the evidence that it has changed.

    Attributes
    ----------
    name : str
        "score", or a plain number of the image: "mean grey", "contrast", "sharpness", "PCA residual".
    typical : float
        Median of the calibration images.
    values : float64 array, (n,)
        Of the run, in the order of time.
    evidence : float64 array, (n,)
        Logarithm (base 10) of the test martingale after each image; 0 is no evidence.
    alarm_at : int or None
        Index of the image at which the evidence first reached the limit.
    """

    name: str
    typical: float
    values: Floats
    evidence: Floats
    alarm_at: int | None

    @property
    def direction(self) -> str:
        """How the later half of the run differs from the calibration images."""
        later = float(np.median(self.values[len(self.values) // 2 :]))
        return "higher" if later > self.typical else "lower" if later < self.typical else "spread otherwise"


@dataclass(frozen=True, slots=True, eq=False)
class Drift:
    """The finding of a drift test.

    Attributes
    ----------
    rate : str
        Chance that images of which nothing has changed ever raise an alarm, in per cent.
    limit : float
        log10 of the evidence at which a series raises one.
    rows : tuple
        What was tested, in the order of time: one image of every group.
    notes : tuple of str
        What limits the finding.
    """

    rate: str
    limit: float
    n_calibration: int
    rows: tuple[Row, ...]
    series: tuple[Series, ...]
    notes: tuple[str, ...]

    @property
    def alarms(self) -> list[Series]:
        """The series that have drifted, the first to be noticed first."""
        drifted = [(s.alarm_at, s) for s in self.series if s.alarm_at is not None]
        return [s for _, s in sorted(drifted, key=lambda pair: pair[0])]

    @property
    def sentence(self) -> str:
        """The finding in one sentence."""
        tested = f"{n_of(len(self.rows), 'image')} against {self.n_calibration} calibration images"
        if not self.alarms:
            strongest = max(self.series, key=lambda s: s.evidence.max())
            evidence = f"{strongest.name}, {_gain(strongest.evidence.max())} of {self.needed}"
            return f"no drift in {tested} (strongest evidence: {evidence})"
        names = ", ".join(f"{s.name} ({s.direction})" for s in self.alarms)
        return f"drift in {tested}: {names}"

    def lines(self) -> list[str]:
        """Say in words what was found."""
        lines = [self.sentence]
        for s in self.alarms:
            row = self.rows[s.alarm_at or 0]
            later = float(np.median(s.values[len(s.values) // 2 :]))
            place = f"noticed at image {(s.alarm_at or 0) + 1} ({row['id']}, {row['time_utc'][:19]})"
            lines.append(f"  {s.name}: typical {number(s.typical)} in calibration, {number(later)} lately; {place}")
        if [s.name for s in self.alarms] == [SCORE] and len(self.series) > 1:
            lines.append("  only the score: lamp and focus look unchanged; are there more defects, or another product?")
        return [*lines, *(f"note: {note}" for note in self.notes), self.promise]

    @property
    def promise(self) -> str:
        """What an alarm means."""
        return (
            f"chance of an alarm while nothing changes: at most {self.rate}, however long the run; alarm where a bet "
            f"on change has multiplied its stake by {self.needed}, for one of {n_of(len(self.series), 'number')}"
        )

    @property
    def needed(self) -> str:
        """The evidence at which a series raises an alarm."""
        return number(round(10**self.limit, 1))

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values, as ``drift.json`` holds them."""
        return {
            "format": FORMAT,
            "drift": bool(self.alarms),
            "sentence": self.sentence,
            "promise": self.promise,
            "notes": list(self.notes),
            "n_calibration": self.n_calibration,
            "limit_log10": self.limit,
            "images": [row["id"] for row in self.rows],
            "time_utc": [row["time_utc"] for row in self.rows],
            "series": {
                s.name: {
                    "alarm_at": s.alarm_at,
                    "direction": s.direction if s.alarm_at is not None else None,
                    "typical": s.typical,
                    "values": s.values.tolist(),
                    "evidence_log10": s.evidence.tolist(),
                }
                for s in self.series
            },
        }


def find_drift(detector: Detector, runs: Sequence[Path], rate: Share = DEFAULT_RATE, seed: int = 0) -> Drift:
    """Test whether the images of finished runs are exchangeable with the calibration images of a model.

    One conformal test martingale for the score and for each plain number of the images, each with its share of the
    rate (Bonferroni). Images labelled anomalous are left out, and of every group one image, drawn at random, counts.
    Images of new groups leave the evidence before them as it was; a group that goes on in a later run is drawn anew.

    Parameters
    ----------
    runs : sequence of Path
        Folders that `score` or `evaluate` wrote with this model; their images are put in the order of time.
    rate : see `threshold.parse_rate`
        Chance of an alarm, at any time, while nothing changes.
    seed : int
        Of the ties and of the image that stands for its group.

    Raises
    ------
    DataError
        A folder is no run, was scored by other weights, or holds no image to test.
    UsageError, CalibrationError
        The rate is no rate; there is no run, or one is named twice.
    """
    share = parse_rate(rate)
    _refuse_none_and_repeated(runs)
    rows = _rows_of(runs, detector.weights_sha256)
    reference = _reference(detector)
    tested = {name: values for name, values in reference.items() if all(name in _numbers(row) for row in rows)}
    scores = detector.calibrated[0]
    of_calibration = range(len(scores.image)) if scores.image_group is None else scores.image_group
    places = _one_per_group(of_calibration, np.random.default_rng([seed, 0]))
    drawn = _one_per_group([row["group"] for row in rows], np.random.default_rng([seed, 1]))
    chosen = tuple(rows[i] for i in sorted(drawn))  # in the order of time, as the rows are
    limit = float(np.log10(len(tested) / float(share)))
    series = tuple(  # each with draws of its own: new groups later leave the evidence of these images as it is
        _series(name, values[places], [_numbers(row)[name] for row in chosen], limit, np.random.default_rng([seed, i]))
        for i, (name, values) in enumerate(tested.items(), start=2)
    )
    notes = _notes(tested, len(rows), len(chosen), scores.image_group is not None)
    return Drift(percent_text(share), limit, len(places), chosen, series, notes)


def write_drift(drift: Drift, folder: Path) -> Path:
    """Write ``drift.json`` and ``drift.html``; return the path of the page."""
    n_images = len(drift.rows)
    drawn = np.unique(np.linspace(0, n_images - 1, min(n_images, MAX_DRAWN)).round().astype(int))
    shown = [(s.name, drawn + 1.0, s.evidence[drawn].clip(-2, drift.limit + 3)) for s in drift.series]
    plot = line_plot("Evidence of drift", ("image", "evidence (log10)"), shown, ("alarm", drift.limit))
    caption = "2: a bet on change has multiplied its stake by 100; below 0 it has lost. Curves are cut at both ends."
    header = ("", "typical in calibration", "typical in the run", "strongest evidence", "noticed at image")
    lines = [
        (
            s.name,
            number(s.typical),
            number(float(np.median(s.values))),
            _gain(s.evidence.max()),
            "–" if s.alarm_at is None else str(s.alarm_at + 1),
        )
        for s in drift.series
    ]
    write_json(folder / "drift.json", drift.as_json())
    page = folder / "drift.html"
    write_page(page, "drift", drift.sentence, drift.lines()[1:], [figure(plot, caption), table(header, lines)])
    return page


def _series(
    name: str, reference: Floats, values: Sequence[float], limit: float, generator: np.random.Generator
) -> Series:
    evidence = log10_evidence(online_p_values(reference.tolist(), values, generator))
    reached = np.flatnonzero(evidence >= limit)
    alarm_at = int(reached[0]) if len(reached) else None
    return Series(name, float(np.median(reference)), np.array(values), evidence, alarm_at)


def _refuse_none_and_repeated(runs: Sequence[Path]) -> None:
    if not runs:
        raise UsageError("no run to test", "", "give folders that score or evaluate wrote")
    folder, n = Counter(run.resolve() for run in runs).most_common(1)[0]
    if n > 1:
        why = "its images would count as new ones, and raise false alarms"
        raise UsageError(f"{folder} is named {n} times", why, "name every run once")


def _rows_of(runs: Sequence[Path], weights_sha256: str) -> list[Row]:
    """Return the rows of all runs in the order of time, without what is known to be anomalous."""
    rows: list[Row] = []
    for number_of_run, run in enumerate(runs):
        own = read_scores(run)
        if any(row["weights_sha256"] != weights_sha256 for row in own):
            raise DataError(
                f"{run} was scored by another model", "scores of different weights cannot be compared", "score again"
            )
        rows += [_apart(row, number_of_run) for row in own if not is_suspect(row["label"], row["extra"])]
    if not rows:
        raise DataError("no image to test", "the runs hold none that is not labelled anomalous", "give other runs")
    return sorted(rows, key=lambda row: str(row["time_utc"]))


def _apart(row: Row, number_of_run: int) -> Row:
    """Tell images of different runs apart that have one name and no group."""
    return {**row, "group": (number_of_run, row["id"])} if row["group"] == row["id"] else row


def _reference(detector: Detector) -> dict[str, Floats]:
    """Return score and plain numbers of the calibration images; files of older versions hold scores alone."""
    scores = detector.calibrated[0].image
    plain: Mapping[str, Sequence[float]] = detector.provenance.get("calibration_statistics") or {}
    return {SCORE: scores, **{name: np.array(own) for name, own in plain.items() if len(own) == len(scores)}}


def _numbers(row: Row) -> dict[str, float]:
    return {SCORE: row["score"], **row.get("baselines", {})}


def _one_per_group(groups: Sequence[Any] | Any, generator: np.random.Generator) -> list[int]:
    """Return one index of every group, drawn at random; groups in the order of their first."""
    members: dict[Any, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    return [own[int(generator.random() * len(own))] for own in members.values()]


def _notes(tested: Mapping[str, Floats], n_rows: int, n_chosen: int, has_groups: bool) -> tuple[str, ...]:
    notes = []
    if len(tested) == 1:
        notes.append(
            "only scores are tested: the model file or a run is of an older version; calibrate and score again"
        )
    if n_chosen < n_rows:
        notes.append(
            f"one image of each of {n_chosen} groups stands for all {n_rows}: images of one are not independent"
        )
    elif has_groups:
        notes.append(f"{NO_GROUPS} raise false alarms; name the groups in a manifest")
    return tuple(notes)


def _gain(log10: float) -> str:
    """Return what a stake has become.

    >>> _gain(2), _gain(9.2)
    ('100', 'over 1,000,000')
    """
    return number(round(10**log10, 1)) if log10 <= 6 else "over 1,000,000"
