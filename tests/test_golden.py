"""Golden scores: small models in files, three embedded images, and the scores that they gave when they were written.

A change of these scores is a breaking change: it has a heading of its own in the changelog, and the files are written
again with ``python tests/test_golden.py``. The models also show that a file of an earlier version can still be read.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anomaly_ae.config import load_config
from anomaly_ae.detector import Detector
from anomaly_ae.fitting import fit
from anomaly_ae.manifest import load_manifest
from anomaly_ae.readers import read_image
from anomaly_ae.recalibration import rescored
from anomaly_ae.synthetic import make_dataset

GOLDEN = Path(__file__).parent / "golden"
IMAGES = {"normal": "good/000", "stain": "stain/003", "scratch": "scratch/003"}
COMMON = ("training.steps=30", "model.width=4", "scoring.smooth_sd_px=2.0")
MODELS = {
    "position": (
        *("model.unshuffle=2", "scoring.l1=0.5", "scoring.l2=0.0", "scoring.ssim=0.5", "scoring.gms=0.0"),
        *("scoring.background_sd_px=0.0", "scoring.standardise=position", "scoring.pooling=max"),
    ),
    "context": (
        *("model.unshuffle=4", "scoring.l1=0.3", "scoring.l2=0.2", "scoring.ssim=0.2", "scoring.gms=0.3"),
        *("scoring.background_sd_px=6.0", "scoring.standardise=context", "scoring.pooling=top_share"),
        *("scoring.top_share=0.01", "model.architecture=bottleneck", "training.repair=false"),
    ),
}
"""One by position, as the defaults are; one with all error measures, the smooth part taken away, another pooling."""

TOLERANCE = 1e-4
"""Relative, and in standard deviations where a mean is near 0; processors differ in the last bits of float32."""


def results_of(detector: Detector, name: str) -> dict[str, Any]:
    path = GOLDEN / f"{name}.png"
    result = detector.score(path)
    anomaly_map = result.anomaly_map
    assert anomaly_map is not None
    return {
        "score": result.score,
        "threshold": result.threshold,
        "mean_of_map": float(anomaly_map.mean(dtype=np.float64)),
        "peak_px": [int(i) for i in np.unravel_index(anomaly_map.argmax(), anomaly_map.shape)],
        "baselines": detector.baseline_scores(read_image(path)),
    }


def stored() -> dict[str, Any]:
    values: dict[str, Any] = json.loads((GOLDEN / "scores.json").read_text(encoding="utf-8"))
    return values


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", IMAGES)
def test_scores_are_what_they_were(model: str, name: str) -> None:
    found = results_of(Detector.load(GOLDEN / f"{model}.safetensors", "cpu"), name)
    expected = stored()[model]["images"][name]
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=TOLERANCE, abs=TOLERANCE), key


@pytest.mark.parametrize("model", MODELS)
def test_hashes_are_what_they_were(model: str) -> None:
    detector = Detector.load(GOLDEN / f"{model}.safetensors", "cpu")
    found = {"weights": detector.weights_sha256, "thresholds": detector.calibrated[1].sha256}
    assert found == stored()[model]["sha256"]


@pytest.mark.parametrize("model", MODELS)
def test_region_rules_that_are_off_change_no_bit(model: str) -> None:
    detector = Detector.load(GOLDEN / f"{model}.safetensors", "cpu")
    rules = ("min_area_px=0", "min_area_mm2=0", "hysteresis_low=0", "ignore_border_px=0")
    other = rescored(detector, [f"scoring.{rule}" for rule in rules])
    assert other.weights_sha256 == detector.weights_sha256
    other = other.with_thresholds(*detector.calibrated)
    for name in IMAGES:
        results = [one.score(GOLDEN / f"{name}.png") for one in (detector, other)]
        assert results[0].score == results[1].score
        assert results[0].anomaly_map is not None
        if detector.config.scoring.pooling == "max":
            assert results[0].score == float(results[0].anomaly_map.max())
        boxes = [[region.box_px for region in result.regions] for result in results]
        assert boxes[0] == boxes[1]


def test_the_scores_tell_the_images_and_the_models_apart() -> None:
    scores = {entry["score"] for model in stored().values() for entry in model["images"].values()}
    assert len(scores) == len(MODELS) * len(IMAGES)
    assert len({round(score, 2) for score in scores}) == len(scores)


def test_the_files_are_small() -> None:
    assert all((GOLDEN / f"{model}.safetensors").stat().st_size < 300_000 for model in MODELS)


def write_golden() -> None:
    """Train both models on embedded images and write down what they score."""
    GOLDEN.mkdir(exist_ok=True)
    values: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as work:
        folder = make_dataset(Path(work) / "part", "part", n_train=12, n_test_normal=1, n_per_defect=4, size_px=64)
        (folder / "groups.tsv").unlink()  # every image its own group
        manifest = load_manifest(folder)
        for name, place in IMAGES.items():
            shutil.copy(folder / "test" / f"{place}.png", GOLDEN / f"{name}.png")
        for model, settings in MODELS.items():
            detector = fit(manifest, load_config("smoke", [*COMMON, *settings]), device="cpu")
            detector.save(GOLDEN / f"{model}.safetensors")
            detector = Detector.load(GOLDEN / f"{model}.safetensors", "cpu")
            values[model] = {
                "sha256": {"weights": detector.weights_sha256, "thresholds": detector.calibrated[1].sha256},
                "images": {name: results_of(detector, name) for name in IMAGES},
            }
    text = json.dumps(values, indent=2) + "\n"
    (GOLDEN / "scores.json").write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write_golden()
