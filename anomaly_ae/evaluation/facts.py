"""What ``run.json`` and ``metrics.json`` say of a run besides its figures: when, with what, on which data."""

from __future__ import annotations

import platform
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from anomaly_ae.config import config_to_dict
from anomaly_ae.detector import Detector
from anomaly_ae.manifest import Manifest
from anomaly_ae.records import ANOMALOUS_LABEL, NORMAL_LABEL, Sample
from anomaly_ae.results import FORMAT
from anomaly_ae.version import __version__
from anomaly_ae.words import text_of

FACTS_OF_MAKING = (
    *("preset", "preset_reason", "n_parameters", "steps", "stopped", "trained_utc", "working_scale", "n_lesion_free"),
)
PACKAGES = ("numpy", "scipy", "torch", "pillow")


def facts_of_run(command: str, seconds: float, device: str, seed: int | None) -> dict[str, Any]:
    """Return when and how a run was made."""
    return {
        "format": FORMAT,
        "tool": "anomaly_ae",
        "version": __version__,
        "created_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "seconds": seconds,
        "device": device,
        "seed": seed,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a copy, or an install without its metadata
        return ""


def facts_of_model(detector: Detector) -> dict[str, Any]:
    """Return what is known of the making of a detector."""
    provenance = detector.provenance
    n_images = provenance.get("n_images", {})
    return {
        "name": provenance.get("file", "in memory"),
        "sha256": provenance.get("file_sha256"),
        "weights_sha256": detector.weights_sha256,
        "architecture": detector.config.model.architecture,
        "resolutions": detector.ensemble.resolutions,
        "n_train": n_images.get("train"),
        "n_validation": n_images.get("validation"),
        "n_calibration": len(detector.calibrated[0].image),
        **{name: provenance.get(name) for name in FACTS_OF_MAKING},
        "smallest_defect_px": detector.geometry.smallest_defect_px,
        "standardise": detector.config.scoring.standardise,
        "error_measures": detector.mapper.compare.weights,
        "settings": config_to_dict(detector.config),
    }


def facts_of_data(
    name: str, manifest: Manifest, shortcuts: Mapping[str, float], warnings: Sequence[str]
) -> dict[str, Any]:
    """Return what is known of the data: its name, its splits, what separates its classes, what is wrong or ignored."""
    return {
        "name": name,
        "warnings": [*warnings, *manifest.not_inspected],
        "shortcuts": dict(shortcuts),
        "splits": _splits(manifest.samples),
    }


def _splits(samples: Sequence[Sample]) -> dict[str, dict[str, int]]:
    """Return per split ("" where the manifest names none) how many are normal, anomalous, without label; and groups."""
    parts: defaultdict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        parts[sample.split].append(sample)
    return {split: _counts_of(part) for split, part in parts.items()}


def _counts_of(samples: Sequence[Sample]) -> dict[str, int]:
    labels = Counter(sample.label for sample in samples)
    return {
        "normal": labels[NORMAL_LABEL],
        "anomalous": labels[ANOMALOUS_LABEL],
        "unlabelled": labels[""],
        "units": len({sample.unit for sample in samples}),
        "groups": len({sample.group for sample in samples}),
    }


def name_of(manifest: Manifest) -> str:
    """Return the name of the folder of a manifest.

    "" for images named one by one, which no one folder holds, and where paths are not shown.
    """
    if manifest.is_private:
        return ""
    root, layout = manifest.root, manifest.layout
    if root.name not in ("", ".."):
        return text_of(root.name)
    return "" if layout == "flat" else text_of(root.resolve().name)


def counts(rows: Sequence[Mapping[str, Any]], units: Sequence[Mapping[str, Any]], n_failed: int) -> dict[str, int]:
    """Return how much was measured, as ``metrics.json`` has it."""
    labels = Counter(row["label"] for row in rows)
    return {
        "normal": labels[NORMAL_LABEL],
        "anomalous": labels[ANOMALOUS_LABEL],
        "unlabelled": labels[""],
        "failed": n_failed,
        "groups": len({row["group"] for row in rows}),
        "units": len(units),
    }
