"""Time, memory and exactness of the pixel figures over 1,000 maps of 512 x 512, and what their intervals cost.

    python benchmarks/pixel_figures.py --out docs/benchmarks/pixel_figures.md [--maps 1000] [--side 512]

The maps lie on disk as float32, as `evaluate` keeps them; every line of the table is measured in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from anomaly_ae.files import write_text
from anomaly_ae.metrics import PixelMap, image_overlaps, pixel_metrics, pixel_metrics_and_table

SEED = 0
SHARE_ANOMALOUS = 0.4
CHECKED = 12  # maps that scikit-learn sorts at once
HEAD = """# Pixel figures: time, memory, exactness

    python benchmarks/pixel_figures.py --out docs/benchmarks/pixel_figures.md

{n:,} maps of {side} x {side} px on disk, {n_masked} with masks ({n_masked_px:,} masked px), random numbers of
seed {seed}; {machine}, one thread, Python {python}, numpy {numpy}, load of the machine {load:.1f} when it began. Every
line is a process of its own, start-up included; on a shared machine time of the processor says more than the clock.

| what | clock | processor | largest memory |
| --- | --- | --- | --- |
{rows}

The second line less the first is what intervals cost, {extra:.1f} s of the processor here, within what such times vary
by: 1,000 sets of whole images are drawn, and their figures computed from counts of every image at {n_levels} levels.
The levels are chosen so that less than 1/256 of the masked pixels, and of the regions, lies between two. `evaluate`
keeps these counts ({kib:,.0f} KiB here), and `compare` draws the intervals of its differences from them. The figures
themselves are exact:

| figure | exact | from the counts at the levels | 95 % interval |
| --- | --- | --- | --- |
{values}

Only how far a figure moves from draw to draw is taken from the levels; the exact value stands in the middle.

Largest difference to scikit-learn over {checked} of the maps, of ROC-AUC and average precision: {difference:.1e} as
they are, {rounded:.1e} rounded to whole numbers, {saturated:.1e} cut off at a level that
half of the masked pixels reach.
"""


def main() -> None:
    """Make the maps, measure, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--maps", type=int, default=1000)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--measure", choices=QUESTIONS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        print(json.dumps(QUESTIONS[asked.measure](asked.out)))
        return
    with tempfile.TemporaryDirectory() as work:
        load, folder = os.getloadavg()[0], Path(work)
        make_maps(folder, asked.maps, asked.side)
        write_text(asked.out, page(folder, asked.side, load))


def make_maps(folder: Path, n: int, side: int) -> None:
    """Write smooth noise with a bright disc under the mask of four in ten images."""
    from scipy.ndimage import gaussian_filter

    rng, axis = np.random.default_rng(SEED), np.arange(side)
    for i in range(n):
        scores = 20 * gaussian_filter(rng.normal(size=(side, side)), 4).astype(np.float32)
        if i < SHARE_ANOMALOUS * n:
            (row, column), radius = rng.uniform(0.2, 0.8, 2) * side, rng.uniform(0.01, 0.08) * side
            mask = (axis[:, None] - row) ** 2 + (axis - column) ** 2 <= radius**2
            scores[mask] += rng.uniform(0, 6)
            np.save(folder / f"{i:05d}_mask.npy", mask)
        np.save(folder / f"{i:05d}.npy", scores)


def stored(folder: Path) -> list[Path]:
    """Return the files of the maps."""
    return sorted(path for path in folder.glob("*.npy") if "mask" not in path.name)


def maps_of(
    paths: list[Path], change: Callable[[np.ndarray], np.ndarray] = lambda scores: scores
) -> Iterator[PixelMap]:
    """Yield maps with their masks, one at a time."""
    for path in paths:
        mask = path.with_name(f"{path.stem}_mask.npy")
        yield PixelMap(change(np.load(path)), np.load(mask) if mask.exists() else None)


def measured(what: str, folder: Path) -> dict[str, float]:
    """Return clock, processor time and largest memory of one question in a process of its own."""
    started = time.perf_counter()
    command = [sys.executable, __file__, "--out", str(folder), "--measure", what]
    answer = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    return {"clock": time.perf_counter() - started, **json.loads(answer.stdout)}


def usage() -> dict[str, float]:
    """Return what this process has used; its own peak, which `ru_maxrss` mixes with that of the parent."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak_kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    return {"processor": used.ru_utime + used.ru_stime, "mib": peak_kib / 1024}


def without(folder: Path) -> dict[str, float]:
    """The figures of all pixels alone."""
    paths = stored(folder)
    pixel_metrics(lambda: maps_of(paths), n_bootstrap=0)
    return usage()


def with_intervals(folder: Path) -> dict[str, float]:
    """The same with their intervals."""
    paths = stored(folder)
    pixel_metrics(lambda: maps_of(paths))
    return usage()


def everything(folder: Path) -> dict[str, float]:
    """All that `evaluate` measures of pixels: AUPIMO, Dice and IoU of every image, too."""
    paths = stored(folder)
    pixel_metrics(lambda: maps_of(paths))
    image_overlaps(lambda: maps_of(paths), lambda one: one.anomaly_map >= 3.0)
    return usage()


def paired(folder: Path) -> dict[str, float]:
    """What the pixel figures of one more run cost in `compare`: 2,000 draws from its counts."""
    table = np.load(folder / "counts.npz")
    from anomaly_ae.metrics import PixelTable

    counts = PixelTable(table["levels"], table["normal"], table["masked"], table["overlap"])
    counts.draws(range(len(counts.normal)), 2000, SEED)
    return usage()


QUESTIONS: dict[str, Callable[[Path], dict[str, float]]] = {
    "ROC-AUC, average precision, AU-PRO, FPR at 95 % sensitivity, oracle Dice": without,
    "the same with intervals (1,000 draws)": with_intervals,
    "all that `evaluate` measures of pixels: with AUPIMO, Dice and IoU of every image": everything,
    "in `compare`, for every run: 2,000 draws of its counts": paired,
}


def page(folder: Path, side: int, load: float) -> str:
    """Return the Markdown page."""
    paths = stored(folder)
    found, table = pixel_metrics_and_table(lambda: maps_of(paths))
    kept = folder / "counts.npz"
    np.savez_compressed(kept, levels=table.levels, normal=table.normal, masked=table.masked, overlap=table.overlap)
    size = kept.stat().st_size / 1024
    measures = {what: measured(what, folder) for what in QUESTIONS}
    rows = [
        f"| {what} | {one['clock']:.0f} s | {one['processor']:.1f} s | {one['mib']:.0f} MiB |"
        for what, one in measures.items()
    ]
    first, second, *_ = (one["processor"] for one in measures.values())
    return HEAD.format(
        n=len(paths), side=side, n_masked=len(list(folder.glob("*_mask.npy"))), seed=SEED, load=load,
        n_masked_px=found["roc_auc"].n_anomalous, machine=machine(), python=platform.python_version(),
        numpy=np.__version__, rows="\n".join(rows), n_levels=len(table.levels), kib=size, extra=second - first,
        values="\n".join(value_lines(found, table.values())), checked=CHECKED, **differences(paths),
    )  # fmt: skip


def value_lines(found: dict, near: dict[str, float]) -> Iterator[str]:
    """Yield a line of each figure."""
    names = {"roc_auc": "ROC-AUC", "average_precision": "average precision", "fpr_at_95_sensitivity": "FPR at 95 %"}
    figures = {key: (name, found[key]) for key, name in {**names, "oracle_dice": "oracle Dice"}.items()}
    figures |= {f"au_pro_{limit}": (f"AU-PRO to {limit}", one) for limit, one in found["au_pro"].items()}
    for key, (name, metric) in figures.items():
        interval = metric.intervals[0]
        yield f"| {name} | {metric.value:.4f} | {near[key]:.4f} | {interval.low:.4f} to {interval.high:.4f} |"


def differences(paths: list[Path]) -> dict[str, float]:
    """Return the largest differences to scikit-learn on a few maps, half of them with masks."""
    few = [*paths[: CHECKED // 2], *paths[-CHECKED // 2 :]]
    under = np.concatenate([m.anomaly_map[m.mask] for m in maps_of(few) if m.mask is not None])
    half = np.median(under)
    changes = {
        "difference": lambda scores: scores,
        "rounded": np.round,
        "saturated": lambda scores: np.minimum(scores, half),
    }
    return {name: difference(few, change) for name, change in changes.items()}


def difference(paths: list[Path], change: Callable[[np.ndarray], np.ndarray]) -> float:
    """Return the larger of the differences in ROC-AUC and average precision."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    maps = list(maps_of(paths, change))
    scores = np.concatenate([m.anomaly_map.ravel() for m in maps])
    labels = np.concatenate([np.zeros(m.anomaly_map.size, bool) if m.mask is None else m.mask.ravel() for m in maps])
    found = pixel_metrics(lambda: maps, n_bootstrap=0)
    theirs = {"roc_auc": roc_auc_score(labels, scores), "average_precision": average_precision_score(labels, scores)}
    return max(abs(found[name].value - value) for name, value in theirs.items())


def machine() -> str:
    """Return system and cores."""
    return f"{platform.system()} {platform.machine()}, {len(os.sched_getaffinity(0))} CPU cores"


if __name__ == "__main__":
    main()
