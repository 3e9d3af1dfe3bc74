"""How well `audit` finds anomalies that were planted among the normal images: precision at the top.

    python benchmarks/audit.py ROOT --out docs/benchmarks/audit.md [--sets NAME ...] [--set training.steps=200 ...]

Synthetic defects are planted into the embedded data, real ones of ROOT/NAME/dev.csv (anomalous images, called normal
for the audit) among the training images of ROOT/NAME. Nothing is chosen on what is found.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from bench.sets import EMBEDDED_KINDS

from anomaly_ae.audit import Audit, audit
from anomaly_ae.config import Config, load_config
from anomaly_ae.files import write_text
from anomaly_ae.manifest import Manifest, load_manifest
from anomaly_ae.metrics import average_precision, rate, roc_auc
from anomaly_ae.records import ANOMALOUS_LABEL, NORMAL_LABEL, Metric, Sample
from anomaly_ae.synthetic import make_dataset

SHARES = (0.02, 0.05)
HEAD = """# What an audit finds

    {command}

Models of preset `{preset}`{settings}, one for each of {n_folds} folds, look for planted anomalies among normal
images. As many images as were planted are taken from the top of the list; *precision* is the share of planted ones
among them, with its 95 % interval (Clopper-Pearson; few planted images make it wide). By chance it would be the planted
share. Seed {seed}; {machine}, torch {torch}, threads: {n_threads}; {minutes:.0f} min of the processor.

| images | planted | normal + planted | precision at the top | planted in twice as many | average precision | ROC-AUC |
| --- | --- | --- | --- | --- | --- | --- |
"""


def main() -> None:
    """Audit every data set with every share, and write the table."""
    asked = parse()
    started = time.process_time()
    torch.set_num_threads(asked.threads)
    config = load_config(asked.preset, [f"seed={asked.seed}", *asked.settings])
    rows = []
    with tempfile.TemporaryDirectory() as work:
        for line in lines(asked, config, Path(work)):
            rows.append(line)
            print(line, file=sys.stderr, flush=True)
    head = HEAD.format(
        command=" ".join(["python", *sys.argv]), n_folds=asked.folds, preset=asked.preset, seed=asked.seed,
        settings=f" with {', '.join(f'`{s}`' for s in asked.settings)}" if asked.settings else "",
        machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores", torch=torch.__version__,
        n_threads=asked.threads, minutes=(time.process_time() - started) / 60,
    )  # fmt: skip
    write_text(asked.out, head + "\n".join(rows) + "\n")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, nargs="?", help="folder with one folder per data set")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", nargs="*", default=[], help="of ROOT")
    parser.add_argument("--kinds", nargs="*", default=[*EMBEDDED_KINDS], help="of the embedded data")
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--images", type=int, default=240, help="normal images of a set, at most")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def lines(asked: argparse.Namespace, config: Config, work: Path) -> Iterator[str]:
    """Yield one line of the table per data set and share."""
    for kind in asked.kinds:
        data = make_dataset(work / kind, kind, n_train=asked.images, n_test_normal=0, n_per_defect=0, size_px=128)
        manifest = load_manifest(data)
        for share in SHARES:
            found = audit(manifest, config, asked.folds, 1, share, "cpu")
            planted = [suspect.planted for suspect in found.suspects]
            yield row(f"embedded {kind}s", f"{100 * share:g} %, synthetic", found, planted)
    for name in asked.sets:
        for share in SHARES:
            manifest, chosen = with_real(load_manifest(asked.root / name / "dev.csv"), share, asked)
            found = audit(manifest, config, asked.folds, 1, 0.0, "cpu")
            planted = [suspect.sample.id in chosen for suspect in found.suspects]
            yield row(name, f"{100 * share:g} %, real", found, planted)


def with_real(manifest: Manifest, share: float, asked: argparse.Namespace) -> tuple[Manifest, set[str]]:
    """Return training images with a share of anomalous ones that are called normal, and the names of these."""
    rng = np.random.default_rng(asked.seed)
    normals = drawn([s for s in manifest.samples if s.split == "train"], asked.images, rng)
    anomalous = [s for s in manifest.samples if s.label == ANOMALOUS_LABEL]
    planted = drawn(anomalous, max(1, round(share * len(normals))), rng)
    named = [replace(s, label=NORMAL_LABEL, split="train", defect="", mask=None) for s in planted]
    return replace(manifest, samples=(*normals, *named)), {s.id for s in planted}


def drawn(samples: Sequence[Sample], n: int, rng: np.random.Generator) -> list[Sample]:
    """Return so many of them, drawn at random."""
    return [samples[i] for i in rng.permutation(len(samples))[:n]]


def row(name: str, share: str, found: Audit, planted: Sequence[bool]) -> str:
    """Return the line of one audit."""
    labels, n = np.array(planted, bool), sum(planted)
    scores = [suspect.strangeness for suspect in found.suspects]
    precision, intervals = rate(labels[:n])
    limits = f"[{intervals[0].low:.2f}, {intervals[0].high:.2f}]"
    figures = [with_interval(one(labels, scores)) for one in (average_precision, roc_auc)]
    cells = [name, share, f"{len(labels) - n} + {n}", f"{precision:.2f} {limits}", f"{labels[: 2 * n].sum()} of {n}"]
    return f"| {' | '.join([*cells, *figures])} |"


def with_interval(metric: Metric) -> str:
    """Return a figure with its interval."""
    first = next(iter(metric.intervals), None)
    return f"{metric.value:.2f}" + (f" [{first.low:.2f}, {first.high:.2f}]" if first else "")


if __name__ == "__main__":
    main()
