"""Slices against whole volumes on synthetic heads with planted lesions, and patients at two distances of slices.

    python benchmarks/volumes.py --out docs/benchmarks/volumes.md [--seeds 2] [--steps-2d N] [--steps-3d N]

Both networks have the same layout and about the same CPU time for training, which the table states. CPU seconds, not
wall time, so that other work on the machine changes little. One thread is enough: OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import anomaly_ae
from anomaly_ae.files import write_text
from anomaly_ae.synthetic import make_volumes

COMMAND = [sys.executable, "-m", "anomaly_ae"]
SIDE_MM, N_TRAIN, N_NORMAL, N_LESIONS, N_PERSONS = 40.0, 30, 20, 24, 60
SETTINGS = {
    "2-D": ["model.unshuffle=2", "model.width=32", "model.depth=1", "model.n_scales=2", "training.crop_px=32",
            "geometry.min_side_px=16"],
    "3-D": ["training.crop_px=24", "training.batch_size=4"],
}  # fmt: skip
"""The layout of the preset `volume`; in two dimensions twice the width, which makes about as many weights."""
PRESETS = {"2-D": "radiograph", "3-D": "volume"}


def main() -> None:
    """Fit, evaluate, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps-2d", type=int, default=760)
    parser.add_argument("--steps-3d", type=int, default=450)
    arguments = parser.parse_args()
    steps = {"2-D": arguments.steps_2d, "3-D": arguments.steps_3d}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        rows = [
            compare(work / f"{kind}_{seed}", kind, seed, steps) for seed in range(arguments.seeds) for kind in steps
        ]
        spacings = [two_spacings(work / f"spacing_{seed}", seed, steps["2-D"]) for seed in range(arguments.seeds)]
    write_text(arguments.out, page(rows, spacings))


def compare(work: Path, kind: str, seed: int, steps: dict[str, int]) -> dict[str, Any]:
    """Fit one model on the heads of a seed and measure it on new ones, with a lesion and without."""
    data, model = work / "heads", work / "model.safetensors"
    make_volumes(data, N_TRAIN, N_NORMAL, N_LESIONS, SIDE_MM, seed=seed)
    fit_seconds, fit_mib = fit(data, model, kind, seed, steps[kind])
    seconds, mib = command("evaluate", model, data, "--out", work / "run")
    metrics = json.loads((work / "run" / "metrics.json").read_text(encoding="utf-8"))
    volumes = metrics["image" if kind == "3-D" else "unit"]["roc_auc"]
    found = read(work / "run" / "units.csv")
    row = {
        "kind": kind,
        "seed": seed,
        "steps": steps[kind],
        "voxel_ap": metrics["pixel"]["average_precision"]["value"],
        "roc_auc": volumes["value"],
        "interval": (volumes["intervals"][0]["low"], volumes["intervals"][0]["high"]),
        "by_grade": by_grade(data, work / "run", found),
        "fit_seconds": fit_seconds,
        "fit_mib": fit_mib,
        "seconds": seconds / (N_NORMAL + N_LESIONS),
        "mib": mib,
    }
    print(row, flush=True)
    return row


def by_grade(data: Path, run: Path, units: list[dict[str, str]]) -> dict[float, float]:
    """Return the ROC-AUC of the volumes with lesions of each radius, against all normal ones."""
    normal = np.array([float(unit["score"]) for unit in units if unit["label"] == "normal"])
    with (data / "lesions.csv").open(encoding="utf-8", newline="") as file:
        n_grades = 3  # the radii come in turn
        order = [row["path"] for row in csv.DictReader(file)]
    names = names_in_order(run, order)
    scores = {unit["unit"]: float(unit["score"]) for unit in units}
    found = {}
    for grade in range(n_grades):
        own = np.array([scores[name] for name in names[grade::n_grades]])
        found[grade] = float(((own[:, None] > normal).mean() + (own[:, None] >= normal).mean()) / 2)
    return found


def names_in_order(run: Path, order: list[str]) -> list[str]:
    """Return the units of the lesions in the order of their numbers: results call files by hashes or by names."""
    rows = [row for row in read(run / "scores.csv") if row["label"] == "anomalous" or row["defect"]]
    by_path = {row["path"]: row["unit"] for row in rows}
    return [by_path[path] for path in order]


def two_spacings(work: Path, seed: int, steps: int) -> dict[str, float]:
    """Fit on heads with slices of 3 mm, then score the same new persons at 3 mm and at 1 mm."""
    model = work / "model.safetensors"
    make_volumes(work / "thick", N_TRAIN, N_PERSONS, 0, SIDE_MM, (1, 1, 3), seed=seed)
    make_volumes(work / "thin", 0, N_PERSONS, 0, SIDE_MM, (1, 1, 1), seed=seed)
    fit(work / "thick", model, "2-D", seed, steps)
    scores = {}
    for name in ("thick", "thin"):
        command("score", model, work / name / "test", "--out", work / f"run_{name}", "--heatmaps", "none")
        scores[name] = of_persons(work / f"run_{name}" / "scores.csv")
    limit = np.quantile(scores["thick"]["counted"], 0.9)
    found = {
        "3 mm": float((scores["thick"]["counted"] >= limit).mean()),
        "1 mm, all": float((scores["thin"]["all"] >= limit).mean()),
        "1 mm, counted": float((scores["thin"]["counted"] >= limit).mean()),
        "higher, all": float((scores["thin"]["all"] > scores["thick"]["all"]).mean()),
        "higher, counted": float((scores["thin"]["counted"] > scores["thick"]["counted"]).mean()),
    }
    print(found, flush=True)
    return found


def of_persons(table: Path) -> dict[str, np.ndarray]:
    """Return the largest score of every person: of all slices, and of those that count."""
    slices: defaultdict[str, list[tuple[float, bool]]] = defaultdict(list)
    for row in read(table):
        slices[row["path"]].append((float(row["score"]), row["counts_for_unit"] == "1"))
    persons = [slices[name] for name in sorted(slices)]
    return {
        "all": np.array([max(score for score, _ in own) for own in persons]),
        "counted": np.array([max(score for score, counts in own if counts) for own in persons]),
    }


def fit(data: Path, model: Path, kind: str, seed: int, steps: int) -> tuple[float, int]:
    settings = [*SETTINGS[kind], f"training.steps={steps}", "training.patience=1000"]
    options = [part for setting in settings for part in ("--set", setting)]
    return command("fit", data, "--preset", PRESETS[kind], *options, "--seed", str(seed), "--out", model)


def command(*arguments: str | Path) -> tuple[float, int]:
    """Run a command in a process of its own; return its CPU seconds and its largest resident memory in MiB."""
    line = [*COMMAND, *map(str, arguments), "--device", "cpu"]
    identified = ["--identified"] if arguments[0] != "info" else []
    process = subprocess.Popen([*line, *identified], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, line)
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss // 1024


def read(table: Path) -> list[dict[str, str]]:
    with table.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def page(rows: list[dict[str, Any]], spacings: list[dict[str, float]]) -> str:
    """Return the page as Markdown."""
    return "\n".join([*_head(), *_comparison(rows), *_spacing_table(spacings)]) + "\n"


def _head() -> Iterator[str]:
    machine = f"{platform.system()} {platform.machine()}, one thread; Python {platform.python_version()}"
    yield "# Slices or whole volumes?"
    yield ""
    yield "    OMP_NUM_THREADS=1 python benchmarks/volumes.py --out docs/benchmarks/volumes.md"
    yield ""
    yield f"{machine}, torch {torch.__version__}, anomaly_ae {anomaly_ae.__version__}."
    yield ""


def _comparison(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield (
        f"Synthetic heads (`anomaly_ae.synthetic.make_volumes`) of {SIDE_MM:g} mm and 1 mm voxels: {N_TRAIN} normal "
        f"ones to fit on, {N_NORMAL} normal ones and {N_LESIONS} with one lesion to test, others for each seed. "
        "Intervals of 95 % over volumes. Seconds are CPU seconds."
    )
    yield ""
    columns = ("model", "seed", "steps", "voxel AP", "ROC-AUC of volumes", "lesions of 2 / 3.5 / 6 mm")
    yield from _table_head(*columns, "fit", "MiB", "each volume", "MiB")
    for row in rows:
        low, high = row["interval"]
        grades = " / ".join(f"{value:.2f}" for value in row["by_grade"].values())
        yield (
            f"| {row['kind']} | {row['seed']} | {row['steps']} | {row['voxel_ap']:.3f} | {row['roc_auc']:.2f} "
            f"[{low:.2f}, {high:.2f}] | {grades} | {row['fit_seconds']:.0f} s | {row['fit_mib']} "
            f"| {row['seconds']:.2f} s | {row['mib']} |"
        )
    yield ""


def _table_head(*columns: str) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield "| --- " * len(columns) + "|"


def _spacing_table(spacings: list[dict[str, float]]) -> Iterator[str]:
    yield "## Patients at two distances of slices"
    yield ""
    yield (
        f"A 2-D model fitted on heads with slices 3 mm apart; {N_PERSONS} new normal persons, each scored at 3 mm and "
        "at 1 mm. The limit is the 90 % quantile of the persons at 3 mm."
    )
    yield ""
    limit = ("above the limit at 3 mm", "at 1 mm, all slices count", "at 1 mm, one in 3 mm counts")
    yield from _table_head("seed", *limit, "higher at 1 mm than at 3 mm: all count", "one in 3 mm")
    for seed, found in enumerate(spacings):
        yield f"| {seed} | " + " | ".join(f"{value:.2f}" for value in found.values()) + " |"


if __name__ == "__main__":
    main()
