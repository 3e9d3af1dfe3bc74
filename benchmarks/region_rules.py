"""Measure whether the false-alarm rate stays as asked when regions and not pixels decide.

Calibrates many times on smooth noise, decides new noise by the regions that count, and compares with rules that are
applied after the threshold was set on the largest pixel. Run it from the project root::

    python -m benchmarks.region_rules --out docs/benchmarks/region_rules.md
"""

from __future__ import annotations

import argparse
import math
import platform
from pathlib import Path

import numpy as np
import scipy
from scipy.ndimage import gaussian_filter

from anomaly_ae.files import write_text
from anomaly_ae.regions import RegionRules, find_regions, surviving_level
from anomaly_ae.threshold import conformal_threshold

N_CALIBRATION, N_NEW, SIDE_PX, RATE = 39, 40, 24, "0.1"
RULES = (
    RegionRules(min_area_px=12),
    RegionRules(min_area_px=40),
    RegionRules(min_area_px=12, hysteresis_low=0.3),
    RegionRules(min_area_px=5, ignore_border_px=4),
)
HEAD = """# False-alarm rate under region rules

    python -m benchmarks.region_rules --out docs/benchmarks/region_rules.md

Noise smoothed by 1 px, {side} x {side} px. {n} calibrations per line, each on {n_calibration} fields and judged on
{n_new} new ones; asked: 10 % on average. With 39 fields the threshold lies half-way between ranks 36 and 37, so 7.5 to
10 % are to be expected. ±: two standard errors. Seed {seed}; {machine}; Python {python}, numpy {numpy},
scipy {scipy}.

| rules | rules before the threshold | rules after it (threshold of the largest pixel) |
|---|---:|---:|
"""


def rates(rules: RegionRules, rng: np.random.Generator) -> tuple[float, float]:
    """Return the share of new fields with a region that counts after one calibration: rules before it, and after it."""
    noise = rng.normal(size=(N_CALIBRATION + N_NEW, SIDE_PX, SIDE_PX))
    fields = gaussian_filter(noise, (0, 1, 1)).astype(np.float32)
    kept, new = fields[:N_CALIBRATION], fields[N_CALIBRATION:]
    before = conformal_threshold([surviving_level(field, rules=rules) for field in kept], RATE).value
    after = conformal_threshold([float(field.max()) for field in kept], RATE).value
    flagged = [[bool(find_regions(field, limit, rules=rules)) for field in new] for limit in (before, after)]
    return float(np.mean(flagged[0])), float(np.mean(flagged[1]))


def row(rules: RegionRules, n_calibrations: int, seed: int) -> str:
    """Return one line of the table."""
    rng = np.random.default_rng(seed)
    found = np.array([rates(rules, rng) for _ in range(n_calibrations)])
    error = 2 * found.std(axis=0, ddof=1) / math.sqrt(n_calibrations)
    cells = [f"{100 * mean:.1f} % ± {100 * e:.1f}" for mean, e in zip(found.mean(axis=0), error, strict=True)]
    return f"| {rules.describe()} | {cells[0]} | {cells[1]} |"


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--calibrations", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    head = HEAD.format(
        side=SIDE_PX,
        n=arguments.calibrations,
        n_calibration=N_CALIBRATION,
        n_new=N_NEW,
        seed=arguments.seed,
        machine=f"{platform.system()} {platform.machine()}, one core",
        python=platform.python_version(),
        numpy=np.__version__,
        scipy=scipy.__version__,
    )
    lines = [row(rules, arguments.calibrations, arguments.seed) for rules in RULES]
    write_text(arguments.out, head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
