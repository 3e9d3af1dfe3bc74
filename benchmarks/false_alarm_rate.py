"""Measure whether thresholds keep their promise: a false-alarm rate, or a sensitivity.

Calibrates many times on simulated scores whose law is known, so that the rate of every single threshold is computed
exactly, not estimated from test images. Run it from the project root::

    python -m benchmarks.false_alarm_rate --out docs/benchmarks/false_alarm_rate.md
"""

from __future__ import annotations

import argparse
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import scipy
from scipy.special import ndtr

from anomaly_ae.threshold import (
    conformal_threshold,
    default_rate,
    normals_needed,
    percent_text,
    sensitivity_threshold,
)

Array = np.ndarray
Draw = Callable[[np.random.Generator, int], tuple[Array, Array]]  # generator, n -> scores, group numbers
ExactRate = Callable[[float], float]  # threshold -> P(score of a new normal image >= threshold)

CONFIDENCE = Fraction(95, 100)
SIZES = (20, 99, 140, 299, 1000, 3000)
FEW = (20, 99, 140, 299)
RATES = (Fraction(1, 10), Fraction(1, 100), Fraction(1, 1000))
WRONG = "What goes wrong: the same groups, taken as independent images"
HEAD = """# Measured false-alarm rates

Do thresholds keep their promise? Each line: many calibrations on simulated scores of known law, so that the
rate of every threshold is exact. *Kept*: the mean rate is at most the asked one (on average), or
at most 5 % of the calibrations lie above it (95 % confidence; the 95th percentile is then at most the asked rate),
within four standard errors. Tables of misses are of the rule `--sensitivity`: asked is 1 - sensitivity.

**{verdict}** The last two tables show what happens when groups are not declared.

    python -m benchmarks.false_alarm_rate --out docs/benchmarks/false_alarm_rate.md

{n_calibrations} calibrations per line, seed {seed}, {seconds:.0f} s; {machine}; {versions}.
"""


def independent(draw: Callable[[np.random.Generator, int], Array]) -> Draw:
    return lambda rng, n: (draw(rng, n), np.arange(n))


def clusters(share_between: float, sizes: Callable[[np.random.Generator, Array], Array]) -> Draw:
    """Scores N(0, 1) of groups; `share_between` of the variance lies between groups, n counts groups."""

    def draw(rng: np.random.Generator, n: int) -> tuple[Array, Array]:
        level = rng.normal(size=n)
        groups = np.repeat(np.arange(n), sizes(rng, level))
        within = rng.normal(size=groups.size)
        return math.sqrt(share_between) * level[groups] + math.sqrt(1 - share_between) * within, groups

    return draw


def above_whole(mean: float) -> ExactRate:
    """Whole numbers floor(mean * exponential): P(score >= t) = P(exponential >= ceil(t) / mean)."""
    return lambda t: math.exp(-max(math.ceil(t), 0) / mean)


def above_normal(t: float) -> float:
    return float(ndtr(-t))


INDEPENDENT: dict[str, tuple[Draw, ExactRate]] = {
    "normal": (independent(lambda rng, n: rng.normal(size=n)), above_normal),
    "heavy tail (Lomax 1.5)": (
        independent(lambda rng, n: rng.pareto(1.5, size=n)),
        lambda t: (1 + max(t, 0.0)) ** -1.5,
    ),
    "tied: whole numbers, mean about 20": (
        independent(lambda rng, n: np.floor(20 * rng.exponential(size=n))),
        above_whole(20),
    ),
    "tied: few levels, mean about 1/2": (
        independent(lambda rng, n: np.floor(rng.exponential(size=n))),
        above_whole(1),
    ),
}
CLUSTERED: dict[str, tuple[Draw, ExactRate]] = {
    "groups of 5, half of the variance between": (
        clusters(0.5, lambda rng, level: np.full(level.size, 5)),
        above_normal,
    ),
    "groups of 1 to 20, 90 % between": (
        clusters(0.9, lambda rng, level: rng.integers(1, 21, level.size)),
        above_normal,
    ),
    "large groups are the calm ones, 80 % between": (
        clusters(0.8, lambda rng, level: np.where(level < 0, 12, 2)),
        above_normal,
    ),
}


@dataclass(frozen=True)
class Part:
    """One table: which scores, which promise, and whether it is of false alarms or of misses."""

    title: str
    cases: dict[str, tuple[Draw, ExactRate]]
    confidence: Fraction | None
    with_groups: bool = False
    misses: bool = False
    sizes: tuple[int, ...] = FEW


PARTS = (
    Part("On average over calibrations, independent images", INDEPENDENT, None, sizes=SIZES),
    Part("At most, with 95 % confidence, independent images", INDEPENDENT, CONFIDENCE, sizes=SIZES),
    Part("On average over calibrations, a new image of a new group", CLUSTERED, None, with_groups=True),
    Part("At most, with 95 % confidence, a new image of a new group", CLUSTERED, CONFIDENCE, with_groups=True),
    Part("Misses, on average over sets of labelled anomalies", INDEPENDENT, None, misses=True),
    Part("Misses, at most, with 95 % confidence", INDEPENDENT, CONFIDENCE, misses=True),
    Part("Misses, on average, a new image of a new group", CLUSTERED, None, with_groups=True, misses=True),
    Part("Misses, at most, with 95 % confidence, a new group", CLUSTERED, CONFIDENCE, with_groups=True, misses=True),
    Part(f"{WRONG}, on average over calibrations", CLUSTERED, None),
    Part(f"{WRONG}, at most, with 95 % confidence", CLUSTERED, CONFIDENCE),
)


def realised_rate(part: Part, case: tuple[Draw, ExactRate], n: int, rate: Fraction, rng: np.random.Generator) -> float:
    """Return the exact rate of one calibration: of false alarms, or of misses on scores with the opposite sign."""
    draw, exact_rate = case
    scores, groups = draw(rng, n)
    known = groups if part.with_groups else None
    if not part.misses:
        return exact_rate(conformal_threshold(scores, rate, known, part.confidence).value)
    threshold = sensitivity_threshold(-scores, 1 - rate, known, part.confidence)
    return exact_rate(math.nextafter(-threshold.value, math.inf))  # a miss is below the threshold, not at it


def row(name: str, n: int, rate: Fraction, rates: Array, confidence: Fraction | None) -> tuple[str, bool]:
    """Return one line of the table, and whether the promise held within four standard errors."""
    mean, above = rates.mean(), (rates > float(rate)).mean()
    if confidence is None:
        limit, found, error = float(rate), mean, rates.std(ddof=1) / math.sqrt(rates.size)
    else:
        limit, found = float(1 - confidence), above
        error = math.sqrt(limit * (1 - limit) / rates.size)
    kept = bool(found <= limit + 4 * error)
    mean_error = 0.0 if np.ptp(rates) == 0 else 100 * rates.std(ddof=1) / math.sqrt(rates.size)
    mean_text = f"{100 * mean:.3g} % ± {mean_error:.1g}"
    percentile = f"{100 * np.quantile(rates, 0.95):.3g} %"
    cells = [name, f"{n:,}", percent_text(rate), mean_text, percentile, f"{100 * above:.1f} %"]
    cells.append("yes" if kept else "**no**")
    return f"| {' | '.join(cells)} |", kept


def table(part: Part, n_calibrations: int, seed: int) -> tuple[list[str], bool]:
    """Return a table over all cases, sizes, and reachable rates, and whether every promise held."""
    counted = "groups" if part.cases is CLUSTERED else "images"
    lines = [
        f"| scores | {counted} | asked | mean rate | 95th percentile | calibrations above asked | kept |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    all_kept = True
    rng = np.random.default_rng(seed)
    for name, case in part.cases.items():
        for n in part.sizes:
            reachable = {r for r in RATES if normals_needed(r, part.confidence) <= n}
            for rate in sorted(reachable | {default_rate(n, None, part.confidence)}, reverse=True):
                found = np.array([realised_rate(part, case, n, rate, rng) for _ in range(n_calibrations)])
                line, kept = row(name, n, rate, found, part.confidence)
                lines.append(line)
                all_kept &= kept
    return lines, all_kept


def report(n_calibrations: int, seed: int) -> tuple[str, bool]:
    """Return the Markdown page, and whether every promise was kept."""
    start = time.perf_counter()
    body, all_kept = "", True
    for part in PARTS:
        lines, kept = table(part, n_calibrations, seed)
        body += "\n".join(["", f"## {part.title}", "", *lines, ""])
        all_kept &= kept or part.title.startswith(WRONG)
    return HEAD.format(
        verdict="Every promise was kept." if all_kept else "Not every promise was kept.",
        n_calibrations=n_calibrations,
        seed=seed,
        seconds=time.perf_counter() - start,
        machine=f"{platform.system()} {platform.machine()}, one core",
        versions=f"Python {platform.python_version()}, numpy {np.__version__}, scipy {scipy.__version__}",
    ) + body, all_kept


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calibrations", type=int, default=1000, help="simulated calibrations per line")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="Markdown file; default: the terminal")
    options = parser.parse_args()
    page, kept = report(options.calibrations, options.seed)
    if options.out:
        options.out.write_text(page, encoding="utf-8", newline="\n")
    else:
        print(page)
    return 0 if kept else 1


if __name__ == "__main__":
    raise SystemExit(main())
