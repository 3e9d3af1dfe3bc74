"""Demands on the rates of a run, met or not: for a pipeline that must stop where a detector is not good enough."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from anomaly_ae.errors import DataError, UsageError
from anomaly_ae.judging.runs import Item, SavedRun, refuse_no_forecast
from anomaly_ae.metrics import rate
from anomaly_ae.metrics.checks import BoolVector, groups_if_any
from anomaly_ae.records import ANOMALOUS_LABEL, NORMAL_LABEL, Decision
from anomaly_ae.threshold import Share, normals_needed, parse_confidence, percent_text
from anomaly_ae.threshold.rates import exact_number
from anomaly_ae.words import n_of, some_names


@dataclass(frozen=True, slots=True)
class Outcome:
    """One demand, or one golden image, and whether it is met.

    Attributes
    ----------
    name : str
        What was asked for.
    passed : bool
    text : str
        What was found.
    """

    name: str
    passed: bool
    text: str

    def line(self) -> str:
        """Return it as it is printed."""
        return f"{'met' if self.passed else 'NOT MET'}: {self.name}: {self.text}"


@dataclass(frozen=True, slots=True)
class _Gate:
    """One demand: at least (sensitivity) or at most (false-alarm rate) so much.

    Attributes
    ----------
    label : {"normal", "anomalous"}
        Of the items it counts.
    limit : Fraction
        Of the share of wrong decisions: 1 - sensitivity, or the false-alarm rate.
    """

    name: str
    label: str
    limit: Fraction


def check_gates(
    run: SavedRun,
    min_sensitivity: Share | None = None,
    max_false_alarm_rate: Share | None = None,
    confidence: Share | None = None,
) -> list[Outcome]:
    """Check the rates at the threshold of the run; units where the run decides units of several images.

    Without a confidence the rate that was found decides. With it, the one-sided bound of Clopper & Pearson does: "met"
    then means that the true rate keeps the demand, with this confidence. Where images come in groups the bound is
    taken at the effective sample size (`anomaly_ae.metrics.rate`), and is never better than that of as many independent
    images as there are groups, all decided rightly.

    Raises
    ------
    DataError
        A run that proves nothing about new images: a what-if, one that was stopped, one of images used in fit.
    UsageError
        A demand that is no share, or none at all.
    """
    gates = list(_gates(min_sensitivity, max_false_alarm_rate))
    sure = None if confidence is None else parse_confidence(confidence)
    if not gates:
        raise UsageError("nothing to check", "no demand is given", "ask for a sensitivity or a false-alarm rate")
    if sure == Fraction(1, 2):
        raise UsageError("a confidence of 0.5", "that is a toss of a coin", "0.95 is usual")
    _refuse_no_proof(run)
    items = [item for item in (run.units if run.has_units else run.images) if item.score is not None]
    noun = "unit" if run.has_units else "image"
    outcomes = [_outcome(gate, [i for i in items if i.label == gate.label], noun, sure) for gate in gates]
    return [_all_inspected(run), *outcomes]


def _gates(min_sensitivity: Share | None, max_false_alarm_rate: Share | None) -> Iterator[_Gate]:
    if min_sensitivity is not None:
        least = _share(min_sensitivity, "sensitivity")
        yield _Gate(f"sensitivity at least {percent_text(least)}", ANOMALOUS_LABEL, 1 - least)
    if max_false_alarm_rate is not None:
        most = _share(max_false_alarm_rate, "false-alarm rate")
        yield _Gate(f"false-alarm rate at most {percent_text(most)}", NORMAL_LABEL, most)


def _share(value: Share, name: str) -> Fraction:
    share = exact_number(value)
    if share is None or not 0 <= share <= 1:
        what = f"{str(value)[:60]!r} is not a {name}"
        raise UsageError(what, "a number from 0 to 1 is expected", "95 per cent is 95% or 0.95")
    return share


def _refuse_no_proof(run: SavedRun) -> None:
    refuse_no_forecast(run)
    if run.info["aborted"]:
        raise DataError(
            f"{run.folder} was stopped", "it says nothing of the images that were not reached", "run it again"
        )
    if run.used_in_fit:
        raise DataError(
            f"{run.folder}: {run.used_in_fit}",
            "a demand that is met on learned images says nothing of new ones",
            "take these images out of the test rows",
        )


def _all_inspected(run: SavedRun) -> Outcome:
    failed = [failure["path"] for failure in run.failures]
    text = f"{len(failed)} not: {some_names(failed)}; failures.csv says why" if failed else "all were"
    return Outcome("every image inspected", not failed, text)


def _outcome(gate: _Gate, items: list[Item], noun: str, sure: Fraction | None) -> Outcome:
    """Return whether few enough of the items are decided wrongly; an anomalous one for review is missed."""
    if not items:
        return Outcome(gate.name, False, f"no {gate.label} {noun}s to measure it on")
    is_anomalous = gate.label == ANOMALOUS_LABEL
    wrong = np.array([(item.decision == Decision.ANOMALOUS) != is_anomalous for item in items])
    n_wrong = int(wrong.sum())
    errors = f"{n_wrong} missed" if is_anomalous else n_of(n_wrong, "false alarm")
    text = f"{errors} in {n_of(len(items), f'{gate.label} {noun}')}"
    if sure is None:
        return Outcome(gate.name, Fraction(n_wrong, len(items)) <= gate.limit, f"{text}, {_shown(gate, wrong.mean())}")
    groups = groups_if_any(item.group for item in items)
    high, method = _upper_bound(wrong, groups, sure)
    text += f", {_shown(gate, high, bounded=True)} with {percent_text(sure)} confidence ({method})"
    n = len(items) if groups is None else len(set(groups))
    counted = n_of(n, f"{gate.label} {noun}") if groups is None else f"{n_of(n, 'group')} of {gate.label} {noun}s"
    return Outcome(gate.name, high <= gate.limit, text + _too_few_text(gate.limit, n, counted, sure))


def _upper_bound(wrong: BoolVector, groups: list[str] | None, sure: Fraction) -> tuple[float, str]:
    """Return the one-sided bound of a share, and its method."""
    two_sided = float(2 * sure - 1)  # each side has 1 - sure
    found = rate(wrong, groups, confidence=two_sided)[1][0]
    return found.high, found.said


def _shown(gate: _Gate, wrong: float, bounded: bool = False) -> str:
    """Return the rate that a share of wrong decisions is, in words."""
    if gate.label == ANOMALOUS_LABEL:
        return f"sensitivity {'at least ' if bounded else ''}{100 * (1 - wrong):.4g} %"
    return f"false-alarm rate {'at most ' if bounded else ''}{100 * wrong:.4g} %"


def _too_few_text(limit: Fraction, n: int, counted: str, sure: Fraction) -> str:
    """Say where no outcome could have met the demand, and what it needs."""
    if not 0 < limit < 1:
        return "" if limit else ". No number of images can prove that it never happens"
    needed = normals_needed(limit, sure)
    return "" if n >= needed else f". No result of {counted} can meet this: at least {needed} are needed"
