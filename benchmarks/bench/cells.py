"""One cell: a data set, a variant and a seed. Whether it is done, and how it is computed.

A cell is a folder with ``model.safetensors``, ``run/`` and, written last, ``cell.json``.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import anomaly_ae
from anomaly_ae.config import of_channels, with_values
from anomaly_ae.detector import Detector
from anomaly_ae.evaluation import RunOptions, evaluate
from anomaly_ae.files import write_text
from anomaly_ae.fitting import fit
from anomaly_ae.listener import Listener
from anomaly_ae.manifest import Manifest, load_manifest
from bench.measures import (
    by_defect,
    by_size,
    inspected_images,
    pixel_average_precision,
    smallest_found_px,
    split_check,
    without,
)
from bench.rescoring import rescored
from bench.sets import DataSet
from bench.variants import AUTO, Variant

Record = dict[str, Any]
"""What ``cell.json`` holds."""


@dataclass(frozen=True, slots=True)
class Cell:
    """What is to be computed, and where.

    Attributes
    ----------
    fitted : Cell or None
        The one whose fit a score-only cell shares.
    elsewhere : Path or None
        The same cell of another manifest: its model is taken where both learn from the same images.
    """

    data: DataSet
    variant: Variant
    seed: int
    folder: Path
    fitted: Cell | None = None
    elsewhere: Path | None = None

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.data.name}, {self.variant.name}, seed {self.seed}"

    @property
    def model_path(self) -> Path:
        """Its model file."""
        return self.folder / "model.safetensors"

    @property
    def record(self) -> Record | None:
        """What was found; None where the cell is not there or not whole."""
        return _read_record(self.folder)

    @property
    def made_of(self) -> dict[str, str]:
        """All that its model follows from, as hashes: a done cell with the same is not computed again."""
        shared = self.fitted.record if self.fitted else None
        return {
            "settings": self.variant.settings_sha256,
            "data": self.data.sha256,
            "version": anomaly_ae.__version__,
            "fit shared": shared["model_sha256"] if shared else "",
        }


def _read_record(folder: Path) -> Record | None:
    path = folder / "cell.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def cell_folder(out: Path, data: str, variant: str, seed: int) -> Path:
    """Return the folder of a cell."""
    return out / "cells" / data / variant / f"seed-{seed}"


def is_fitted(cell: Cell) -> bool:
    """Whether the model of the cell is there and follows from what it would follow from now."""
    record = cell.record
    return record is not None and record["made_of"] == cell.made_of


def is_done(cell: Cell) -> bool:
    """Whether nothing is left to do."""
    record = cell.record
    return record is not None and is_fitted(cell) and record["without_defects"] == [*cell.data.without_defects]


def run_cell(cell: Cell, device: str, listener: Listener) -> None:
    """Do what is not done yet; ``cell.json`` is written last."""
    if is_done(cell):
        return
    listener.say(f"--- {cell.name}")
    record = cell.record
    manifest = load_manifest(cell.data.manifest)
    if record is not None and is_fitted(cell):
        listener.say("measured again: other defects are left out")
        fit_facts = record["fit"]
    else:
        _remove_old(cell, record, listener)
        fit_facts = _make_model(cell, manifest, device, listener)
    found = _measure(cell, manifest, device, listener)
    values = {**_identity(cell), **found, "fit": fit_facts}
    write_text(cell.folder / "cell.json", json.dumps(values, indent=1, allow_nan=False) + "\n")


def _remove_old(cell: Cell, record: Record | None, listener: Listener) -> None:
    if not cell.folder.exists():
        return
    if record is None:
        listener.say("removed: half of the cell was there")
    else:
        changed = [name for name, value in cell.made_of.items() if record["made_of"].get(name) != value]
        listener.say(f"computed again, changed since: {', '.join(changed)}")
    shutil.rmtree(cell.folder)


def _make_model(cell: Cell, manifest: Manifest, device: str, listener: Listener) -> Record:
    """Fit, or score the fit of another cell in a new way; return how long that took, and on what.

    What the same cell of another manifest has learned from the same images is taken from there.
    """
    other = _read_record(cell.elsewhere) if cell.elsewhere else None
    if cell.elsewhere and other and _learns_the_same(cell, manifest, other):
        listener.say(f"its model is that of {cell.elsewhere}")
        cell.folder.mkdir(parents=True)
        shutil.copyfile(cell.elsewhere / cell.model_path.name, cell.model_path)
        taken: Record = other["fit"]
        return taken
    started = time.perf_counter()
    detector = _rescore(cell, manifest, device, listener) if cell.fitted else _fit(cell, manifest, device, listener)
    seconds = time.perf_counter() - started
    cell.folder.mkdir(parents=True)
    detector.save(cell.model_path)
    return {"seconds": round(seconds, 1), **_machine(detector)}


def _fit(cell: Cell, manifest: Manifest, device: str, listener: Listener) -> Detector:
    variant, seed = cell.variant, cell.seed
    if variant.source == AUTO:
        return fit(manifest, overrides=variant.overrides, seed=seed, device=device, listener=listener)
    return fit(manifest, variant.config("", seed), device=device, listener=listener)


def _learns_the_same(cell: Cell, manifest: Manifest, other: Record) -> bool:
    """Whether settings, version, and all images outside of the test part are those of another cell."""
    theirs = load_manifest(cell.data.manifest.with_name(other["manifest"])) if other["manifest"] else None
    made_of = {name: value for name, value in other["made_of"].items() if name != "data"}
    return (
        theirs is not None
        and made_of == {name: value for name, value in cell.made_of.items() if name != "data"}
        and _learned_from(theirs) == _learned_from(manifest)
    )


def _learned_from(manifest: Manifest) -> list[tuple[str, ...]]:
    """Return all that a fit knows of the rows of a manifest, in their order."""
    samples = [sample for sample in manifest.samples if sample.split != "test"]
    return [(s.id, s.label, s.unit, s.group, s.split, str(s.valid)) for s in samples]


def _rescore(cell: Cell, manifest: Manifest, device: str, listener: Listener) -> Detector:
    assert cell.fitted is not None
    fitted = Detector.load(cell.fitted.model_path, device)
    scoring = cell.variant.config(fitted.config.preset, cell.seed).scoring
    config = of_channels(with_values(fitted.config, scoring=asdict(scoring)), fitted.config.model.n_channels)
    return rescored(fitted, config, manifest, listener)


def _measure(cell: Cell, manifest: Manifest, device: str, listener: Listener) -> Record:
    """Evaluate the model file and return all that was found."""
    detector = Detector.load(cell.model_path, device)
    run = cell.folder / "run"
    started = time.perf_counter()
    result = evaluate(detector, manifest, run, RunOptions(maps=True, heatmaps="none", overwrite=True), listener)
    seconds = time.perf_counter() - started
    if result.aborted or result.metrics is None:
        raise KeyboardInterrupt  # evaluate has taken it as the wish to see what there is: half a cell is none
    found = {
        "preset": detector.config.preset,
        "n_parameters": detector.provenance["n_parameters"],
        "weights_sha256": detector.weights_sha256,
        "model_sha256": detector.provenance["file_sha256"],
        "n_calibration": len(detector.calibrated[0].image),
        "split_check": split_check(detector.calibrated[0], cell.seed),
        "metrics": result.metrics,
        **_details(cell.data, manifest, run, result.metrics),
        "evaluate": {
            "seconds": round(seconds, 1),
            "images_per_second": round(result.n_scored / seconds, 2),
            **_machine(detector),
        },
    }
    shutil.rmtree(run / "maps", ignore_errors=True)  # many times larger than all the rest
    return found


def _details(data: DataSet, manifest: Manifest, run: Path, metrics: Mapping[str, Any]) -> Record:
    images = inspected_images(manifest, run)
    rows, areas_px = [i.row for i in images], [i.area_px for i in images]
    kept = without(images, data.without_defects)
    of_all = metrics["pixel"]["average_precision"]
    return {
        "defects": by_defect(images, metrics["per_defect"]),
        "sizes": by_size(rows, areas_px),
        "smallest_found_px": smallest_found_px(rows, areas_px),
        "without_defects": [*data.without_defects],
        "pixel_average_precision_without": pixel_average_precision(kept) if data.without_defects else of_all,
    }


def _identity(cell: Cell) -> Record:
    return {
        "data": cell.data.name,
        "manifest": cell.data.manifest.name if cell.data.manifest.is_file() else "",
        "variant": cell.variant.name,
        "scoring_only_of": cell.variant.scoring_only_of,
        "overrides": [*cell.variant.overrides],
        "seed": cell.seed,
        "made_of": cell.made_of,
        "versions": {
            "anomaly_ae": anomaly_ae.__version__,
            "code": code_sha256(),
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
        },
    }


def _machine(detector: Detector) -> Record:
    is_gpu = detector.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(detector.device) if is_gpu else "CPU",
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }


@cache
def code_sha256() -> str:
    """Return the start of a hash of the package's code: the version stays while the code is worked on."""
    folder = Path(anomaly_ae.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]
