"""The scripts that measure reading: that they run, and that their tables would show a wrong value."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from scanner import SHAPE, image, save, series

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import patients
import read_speed
import samples


def test_the_table_of_samples_says_what_becomes_of_each_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "samples"
    save(series(1, RescaleSlope=2, RescaleIntercept=-7)[0], folder / "a.dcm")
    whole = (folder / "a.dcm").read_bytes()
    (folder / "cut.dcm").write_bytes(whole[:-99])
    monkeypatch.setattr(sys, "argv", ["samples.py", str(folder), "--out", str(tmp_path / "out.md")])
    samples.main()
    text = (tmp_path / "out.md").read_text(encoding="utf-8")
    assert "2 files: 1 read, 1 refused" in text
    assert text.count("| equal |") == 1
    assert "| cut.dcm | refused: has no complete pixel data" in text


def test_the_table_of_samples_sees_another_value(tmp_path: Path) -> None:
    path = save(image(np.full(SHAPE, 7)), tmp_path / "a.dcm")
    pixels = np.full((1, 1, *SHAPE), 7.0)
    assert samples.compared(path, pixels) == "equal"
    pixels[0, 0, 3, 4] = 9
    assert samples.compared(path, pixels) == "differ by 2 at most"


def test_both_readers_read_the_generated_series(tmp_path: Path) -> None:
    files = read_speed.series(tmp_path / "a", 2, read_speed.RLELossless)
    for file in files:
        np.testing.assert_array_equal(read_speed.ours(file).pixels[0], read_speed.bare(file).astype(int) - 1024)
    assert read_speed.row("RLE", files, 1, 2).startswith("| RLE | 2 | ")


def sliced(patient: str, is_anomalous: bool, score: float, anomaly_map: np.ndarray, mask: np.ndarray) -> patients.Slice:
    methods = ("anomaly_ae", "smoothed intensity")
    return patients.Slice(
        patient, is_anomalous, mask, dict.fromkeys(methods, score), dict.fromkeys(methods, anomaly_map)
    )


def test_figures_of_patients_against_sklearn() -> None:
    generator = np.random.default_rng(0)
    groups = []
    for name in "abc":
        own = []
        for number in range(4):
            mask = generator.random((8, 8)) < (0.3 if number < 2 else 0)
            anomaly_map = (generator.random((8, 8)) + mask).astype(np.float32)
            own.append(sliced(name, number < 2, float(anomaly_map.max()), anomaly_map, mask))
        groups.append(own)
    from sklearn.metrics import average_precision_score, roc_auc_score

    flat = [one for own in groups for one in own]
    labels = np.concatenate([one.mask.ravel() for one in flat])
    values = np.concatenate([one.maps["anomaly_ae"].ravel() for one in flat])
    found = patients.over_pixels(groups)
    assert found.values["anomaly_ae"] == pytest.approx(average_precision_score(labels, values), abs=0.02)
    assert len(found.draws["anomaly_ae"]) == patients.N_DRAWS
    own = [roc_auc_score([one.is_anomalous for one in g], [one.scores["anomaly_ae"] for one in g]) for g in groups]
    means = patients.per_patient(patients.own_roc_auc, groups)
    assert means.values["anomaly_ae"] == pytest.approx(np.mean(own))
    assert set(np.round(means.draws["anomaly_ae"], 6)) <= {
        round(float(np.mean([own[i], own[j], own[k]])), 6) for i in range(3) for j in range(3) for k in range(3)
    }
    assert "+0.00 [+0.00, +0.00]" in patients.line("equal methods", means)
