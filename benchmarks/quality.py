"""Detection quality on real image sets: fit, evaluate, and one row per data set and variant.

    python benchmarks/quality.py ROOT --out RUNS [--manifest final.csv] [--seed 0] [--variant default textbook]

ROOT holds one folder per data set with a manifest CSV in each. Cells that are done are not computed again. Tables
go to RUNS/quality.json and RUNS/quality.md; the images and models stay where they are.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

import anomaly_ae
from anomaly_ae.calibration import CalibrationScores
from anomaly_ae.config import Config, load_config
from anomaly_ae.detector import Detector
from anomaly_ae.evaluation import RunOptions, evaluate
from anomaly_ae.fitting import fit
from anomaly_ae.listener import Listener
from anomaly_ae.manifest import load_manifest
from anomaly_ae.progress import TerminalProgress
from anomaly_ae.threshold import conformal_threshold, normals_needed

HERE = Path(__file__).parent
VARIANTS = {"default": None, "fast": "fast", "textbook": HERE / "textbook.toml"}
N_SPLITS = 200
CHECK_RATE = Fraction(1, 5)
ONE_PERCENT = Fraction(1, 100)


def main() -> None:
    """Parse, run every missing cell, write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--manifest", default="final.csv")
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--variant", nargs="+", choices=VARIANTS, default=["default", "textbook"])
    parser.add_argument("--sets", nargs="+")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    sets = arguments.sets or sorted(p.parent.name for p in arguments.root.glob(f"*/{arguments.manifest}"))
    for seed in arguments.seed:
        for variant in arguments.variant:
            for name in sets:
                cell = arguments.out / f"{name}-{variant}-{seed}"
                if not (cell / "cell.json").exists():
                    data = arguments.root / name / arguments.manifest
                    run_cell(cell, name, variant, data, seed, arguments.device)
                write_tables(arguments.out)


def run_cell(cell: Path, name: str, variant: str, data: Path, seed: int, device: str) -> None:
    """Fit and evaluate once; ``cell.json`` is written last."""
    listener: Listener = TerminalProgress().listener()
    listener.say(f"--- {cell.name}")
    chosen = VARIANTS[variant]
    config: Config | None = load_config(chosen, [f"seed={seed}"]) if chosen else None
    manifest = load_manifest(data)
    started = time.perf_counter()
    detector = fit(manifest, config, seed=seed, device=device, listener=listener)
    fit_seconds = time.perf_counter() - started
    detector.save(cell.with_suffix(".safetensors"))
    detector = Detector.load(cell.with_suffix(".safetensors"), device)
    started = time.perf_counter()
    result = evaluate(detector, manifest, cell, RunOptions(overwrite=True), listener)
    seconds = time.perf_counter() - started
    values = {
        "data": name,
        "variant": variant,
        "seed": seed,
        "preset": detector.config.preset,
        "fit_seconds": round(fit_seconds),
        "evaluate_images_per_second": round(result.n_scored / seconds, 1),
        "weights_sha256": detector.weights_sha256,
        "split_check": split_check(detector.calibrated[0], seed),
        "n_calibration": len(detector.calibrated[0].image),
        "metrics": result.metrics,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {device_name(detector)}",
        "versions": {"anomaly_ae": anomaly_ae.__version__, "torch": torch.__version__, "numpy": np.__version__},
    }
    (cell / "cell.json").write_text(json.dumps(values, indent=1), encoding="utf-8")


def device_name(detector: Detector) -> str:
    """Return the name of the device."""
    return torch.cuda.get_device_name() if detector.device.type == "cuda" else "CPU"


def split_check(scores: CalibrationScores, seed: int) -> dict[str, Any]:
    """Cut the calibration normals by group in halves again and again: asked and mean found false-alarm rate.

    These normals are exchangeable, which test normals of a real set need not be: the valid check of the promise.
    """
    groups = np.arange(len(scores.image)) if scores.image_group is None else scores.image_group
    names = np.unique(groups)
    n_half = len(names) // 2
    if n_half < normals_needed(CHECK_RATE):
        return {"reason": f"needs {2 * normals_needed(CHECK_RATE)} groups, there are {len(names)}"}
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(N_SPLITS):
        chosen = np.isin(groups, generator.permutation(names)[:n_half])
        limit = conformal_threshold(scores.image[chosen], CHECK_RATE, groups[chosen])
        shares = [np.mean(scores.image[groups == g] >= limit.value) for g in np.unique(groups[~chosen])]
        found.append(np.mean(shares))
    return {
        "asked": float(CHECK_RATE),
        "found_mean": float(np.mean(found)),
        "n_splits": N_SPLITS,
        "n_groups": len(names),
    }


def write_tables(out: Path) -> None:
    """Write all finished cells as JSON and Markdown."""
    cells = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("*/cell.json"))]
    (out / "quality.json").write_text(json.dumps(cells, indent=1), encoding="utf-8")
    lines = [
        "| data set | variant | seed | n normal / anomalous | image ROC-AUC | image AP | pixel ROC-AUC | pixel AP "
        "| AU-PRO 0.3 | AU-PRO 0.05 | asked | found | sensitivity | mean grey | PCA | split check | fit s |",
        "|" + " --- |" * 17,
    ]
    lines += [table_row(cell) for cell in cells]
    (out / "quality.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def table_row(cell: dict[str, Any]) -> str:
    """Return one line of the Markdown table."""
    metrics = cell["metrics"]
    image, pixel, counts = metrics["image"], metrics["pixel"], metrics["counts"]
    rates = image["at_threshold"][0]
    check = cell["split_check"]
    columns = [
        cell["data"],
        f"{cell['variant']} ({cell['preset']})",
        str(cell["seed"]),
        f"{counts['normal']} / {counts['anomalous']}",
        figure(image["roc_auc"]),
        figure(image["average_precision"]),
        *([figure(pixel["roc_auc"]), figure(pixel["average_precision"])] if pixel else ["-", "-"]),
        *([figure(pixel["au_pro"]["0.3"]), figure(pixel["au_pro"]["0.05"])] if pixel else ["-", "-"]),
        asked(rates["rate_asked"], metrics),
        figure(rates["false_alarm_rate"]) + band(rates),
        figure(rates["sensitivity"]),
        figure(metrics["baselines"]["mean grey"]),
        figure(metrics["baselines"]["PCA residual"]),
        f"{check['asked']:.2f} -> {check['found_mean']:.3f}" if "asked" in check else check["reason"],
        str(cell["fit_seconds"]),
    ]
    return "| " + " | ".join(columns) + " |"


def asked(rate: str, metrics: dict[str, Any]) -> str:
    """Return the asked rate, and what 1 % would need where the calibration normals do not support it."""
    counts = metrics["counts"]
    noun = "groups" if counts["groups"] < counts["normal"] + counts["anomalous"] else "n"
    return rate if Fraction(rate) <= ONE_PERCENT else f"{rate}; 1 % needs {noun} >= {normals_needed(ONE_PERCENT)}"


def band(rates: dict[str, Any]) -> str:
    """Return where the rate found on so many normals is expected, where images are independent."""
    expected = rates["false_alarm_band"]
    return f", expected {expected[0]:.3f} to {expected[1]:.3f}" if expected else ""


def figure(metric: dict[str, Any]) -> str:
    """Return a value with its first interval."""
    if metric["value"] is None:
        return metric["reason"]
    first = next(iter(metric["intervals"]), None)
    return f"{metric['value']:.3f}" + (f" [{first['low']:.2f}, {first['high']:.2f}]" if first else "")


if __name__ == "__main__":
    main()
