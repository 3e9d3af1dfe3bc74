"""What a finished run says on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anomaly_ae.records import Failure

FIGURES = (("ROC-AUC", "roc_auc"), ("average precision", "average_precision"))
RATES = (("sensitivity", "sensitivity"), ("false-alarm rate", "false_alarm_rate"))


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

    def lines(self) -> list[str]:
        """Say in words what was found."""
        review = "" if self.n_review is None else f", {self.n_review} for review"
        lines = [f"{self.n_scored} images scored, {self.n_anomalous} anomalous{review}"]
        if self.failures:
            lines.append(f"{len(self.failures)} could not be read; failures.csv names them and says why:")
            lines += [f"  {failure.path}: {failure.reason}" for failure in self.failures[:5]]
        if self.metrics:
            lines += [_figure_line(name, self.metrics["image"][key]) for name, key in FIGURES]
            rates = self.metrics["image"]["at_threshold"][0]
            lines += [_figure_line(name, rates[key]) for name, key in RATES]
            lines += _review_lines(rates["review"]) if rates["review"] else []
        return [*lines, *(f"warning: {warning}" for warning in self.warnings)]


def _review_lines(review: Mapping[str, Any]) -> list[str]:
    """Say what a person looks at, per 1,000 images of this mixture and of normal ones, and what is missed below."""
    loads = [(name, review[key]) for name, key in (("images", "load"), ("normal images", "load_normal"))]
    lines = [f"review load, of 1,000 {name}: {_per_thousand(load)}" for name, load in loads]
    return [*lines, _figure_line("anomalous below the review band", review["escape_rate"])]


def _per_thousand(metric: Mapping[str, Any]) -> str:
    if metric["value"] is None:
        return str(metric["reason"])
    low, high = (1000 * metric["intervals"][0][end] for end in ("low", "high"))
    return f"{1000 * metric['value']:.0f} [{low:.0f}, {high:.0f}]"


def _figure_line(name: str, metric: Mapping[str, Any]) -> str:
    if metric["value"] is None:
        return f"{name}: {metric['reason']}"
    first = next(iter(metric["intervals"]), None)
    interval = f" [{first['low']:.3f}, {first['high']:.3f}]" if first else ""
    return f"{name} {metric['value']:.3f}{interval}"
