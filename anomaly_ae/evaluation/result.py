"""What a finished run says on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anomaly_ae.records import Failure
from anomaly_ae.results import figure_line, review_lines
from anomaly_ae.words import n_of

FIGURES = (("ROC-AUC", "roc_auc"), ("average precision", "average_precision"))
RATES = (("sensitivity", "sensitivity", "anomalous"), ("false_alarm_rate", "false-alarm rate", "normal"))
FEW = 30
"""Of fewer images than this the line begins with their number."""


@dataclass(slots=True)
class RunResult:
    """What a finished run found; the same as in its files."""

    folder: Path
    n_scored: int
    failures: list[Failure]
    n_anomalous: int
    metrics: dict[str, Any] | None
    warnings: tuple[str, ...] = ()
    aborted: bool = False
    n_review: int | None = None  # None: there is no review band
    no_threshold: str = ""  # why there is none

    def lines(self) -> list[str]:
        """Say in words what was found."""
        review = "" if self.n_review is None else f", {self.n_review} for review"
        decided = "" if self.no_threshold else f", {self.n_anomalous} anomalous{review}"
        lines = [f"{n_of(self.n_scored, 'image')} scored{decided}"]
        if self.failures:
            lines.append(f"{len(self.failures)} could not be inspected; failures.csv names them and says why:")
            lines += [f"  {_named(failure)}" for failure in self.failures[:5]]
        if self.metrics:
            lines += _level_lines(self.metrics["image"], "image")
            units = self.metrics["unit"]
            if units["roc_auc"]["n_normal"] + units["roc_auc"]["n_anomalous"]:  # 0 where every unit is one image
                lines += [f"units: {line}" for line in _level_lines(units, "unit")]
            lines += [self.no_threshold] if self.no_threshold else []
        return [*lines, *(f"warning: {warning}" for warning in self.warnings)]


def _named(failure: Failure) -> str:
    """Say which image was not inspected, and why: most reasons begin with its name."""
    return failure.reason if failure.reason.startswith(failure.path) else f"{failure.path}: {failure.reason}"


def _level_lines(figures: Mapping[str, Any], noun: str) -> list[str]:
    """Say the figures of images, or of units."""
    lines = [figure_line(name, figures[key]) for name, key in FIGURES]
    for rates in figures["at_threshold"]:
        lines += [_rate_line(rates[key], name, label, noun) for key, name, label in RATES]
    return [*lines, *review_lines(figures, noun)]


def _rate_line(metric: Mapping[str, Any], name: str, label: str, noun: str = "image") -> str:
    """Say a rate; of few images with their number and as many digits as they carry.

    >>> few = {"value": 1.0, "n_anomalous": 14, "intervals": [{"low": 0.768, "high": 1.0}]}
    >>> _rate_line(few, "sensitivity", "anomalous")
    '14 anomalous images: sensitivity 1.00 [0.77, 1.00]'
    """
    n = metric[f"n_{label}"]
    if metric["value"] is None or n >= FEW:
        return figure_line(name, metric)
    return f"{n_of(n, f'{label} {noun}')}: {figure_line(name, metric, 2)}"
