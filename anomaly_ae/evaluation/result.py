"""What a finished run says on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anomaly_ae.manifest.checks import n_of
from anomaly_ae.records import Failure

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
            lines += [f"  {failure.path}: {failure.reason}" for failure in self.failures[:5]]
        if self.metrics:
            lines += _level_lines(self.metrics["image"], "image")
            units = self.metrics["unit"]
            if units["roc_auc"]["n_normal"] + units["roc_auc"]["n_anomalous"]:  # 0 where every unit is one image
                lines += [f"units: {line}" for line in _level_lines(units, "unit")]
            lines += [self.no_threshold] if self.no_threshold else []
        return [*lines, *(f"warning: {warning}" for warning in self.warnings)]


def _level_lines(figures: Mapping[str, Any], noun: str) -> list[str]:
    """Say the figures of images, or of units."""
    lines = [_figure_line(name, figures[key]) for name, key in FIGURES]
    for rates in figures["at_threshold"]:
        lines += [_rate_line(rates[key], name, label, noun) for key, name, label in RATES]
        lines += _review_lines(rates["review"], noun) if rates["review"] else []
    return lines


def _review_lines(review: Mapping[str, Any], noun: str) -> list[str]:
    """Say what a person looks at, per 1,000 of this mixture and of normal ones, and what is missed below."""
    loads = [(name, review[key]) for name, key in ((f"{noun}s", "load"), (f"normal {noun}s", "load_normal"))]
    lines = [f"review load, of 1,000 {name}: {_per_thousand(load)}" for name, load in loads]
    return [*lines, _figure_line("anomalous below the review band", review["escape_rate"])]


def _per_thousand(metric: Mapping[str, Any]) -> str:
    if metric["value"] is None:
        return str(metric["reason"])
    low, high = (1000 * metric["intervals"][0][end] for end in ("low", "high"))
    return f"{1000 * metric['value']:.0f} [{low:.0f}, {high:.0f}]"


def _rate_line(metric: Mapping[str, Any], name: str, label: str, noun: str = "image") -> str:
    """Say a rate; of few images with their number and as many digits as they carry.

    >>> few = {"value": 1.0, "n_anomalous": 14, "intervals": [{"low": 0.768, "high": 1.0}]}
    >>> _rate_line(few, "sensitivity", "anomalous")
    '14 anomalous images: sensitivity 1.00 [0.77, 1.00]'
    """
    n = metric[f"n_{label}"]
    if metric["value"] is None or n >= FEW:
        return _figure_line(name, metric)
    return f"{n_of(n, f'{label} {noun}')}: {_figure_line(name, metric, 2)}"


def _figure_line(name: str, metric: Mapping[str, Any], n_digits: int = 3) -> str:
    if metric["value"] is None:
        return f"{name}: {metric['reason']}"
    first = next(iter(metric["intervals"]), None)
    interval = f" [{first['low']:.{n_digits}f}, {first['high']:.{n_digits}f}]" if first else ""
    return f"{name} {metric['value']:.{n_digits}f}{interval}"
