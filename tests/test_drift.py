"""Drift: quiet on unchanged images as often as promised, loud on an ageing lamp, defocus and a shift."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import run as shell
from PIL import Image as Picture
from scipy import ndimage, stats

from anomaly_ae.calibration import CalibrationScores
from anomaly_ae.detector import Detector
from anomaly_ae.drift import find_drift
from anomaly_ae.errors import DataError, UsageError
from anomaly_ae.fitting import calibrate
from anomaly_ae.manifest import load_manifest
from anomaly_ae.readers import image_from
from anomaly_ae.records import Sample
from anomaly_ae.results import score_row, write_tables
from anomaly_ae.synthetic import make_part

N_CALIBRATION, N_RUN = 60, 40
Floats = np.ndarray
NUMBERS = ["score", "mean grey", "PCA residual", "contrast", "sharpness"]


def parts(seed: int, n: int) -> list[Floats]:
    """Independent parts: every one in its own light."""
    rng = np.random.default_rng(seed)
    return [make_part(rng, 64) for _ in range(n)]


def save(folder: Path, images: list[Floats]) -> Path:
    folder.mkdir()
    for i, image in enumerate(images):
        Picture.fromarray((image * 255).round().clip(0, 255).astype(np.uint8)).save(folder / f"{i:03d}.png")
    return folder


@pytest.fixture(scope="module")
def detector(smoke_detector: Detector, tmp_path_factory: pytest.TempPathFactory) -> Detector:
    folder = save(tmp_path_factory.mktemp("calibration") / "good", parts(1, N_CALIBRATION))
    return calibrate(smoke_detector, load_manifest(folder).samples)


def rows_of(detector: Detector, images: list[Floats]) -> list[dict[str, Any]]:
    """What a run says of images, without the run."""
    rows = []
    for i, image in enumerate(images):
        pixels = (image * 255).round().clip(0, 255).astype(np.uint8)
        name = f"{i}.png"
        result = replace(detector.score(pixels), id=name, group=name, unit=name)
        row = score_row(Sample(id=name, path=name, files=()), result, 1.0)
        rows.append({**row, "baselines": detector.baseline_scores(image_from(pixels))})
    return rows


def write_run(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    write_tables(folder, rows, [], [])
    return folder


def lamp(images: list[Floats]) -> list[Floats]:
    return [image * (1 - 0.2 * i / len(images)) for i, image in enumerate(images)]


def defocus(images: list[Floats]) -> list[Floats]:
    return [ndimage.gaussian_filter(image, 1.0) for image in images]


def shift(images: list[Floats]) -> list[Floats]:
    return [ndimage.shift(image, (2, 0), order=1, mode="nearest") for image in images]


@pytest.mark.parametrize(
    ("change", "name", "direction"),
    [(lamp, "mean grey", "lower"), (defocus, "sharpness", "lower"), (shift, "PCA residual", "higher")],
)
def test_what_happens_to_cameras_is_found_and_named(
    detector: Detector, tmp_path: Path, change: Callable[[list[Floats]], list[Floats]], name: str, direction: str
) -> None:
    run = write_run(tmp_path / "run", rows_of(detector, change(parts(2, N_RUN))))
    found = find_drift(detector, [run])
    assert {s.name: s.direction for s in found.alarms}[name] == direction
    assert f"{name} ({direction})" in found.sentence


def test_what_is_known_to_be_anomalous_takes_no_part(detector: Detector, tmp_path: Path) -> None:
    rows = rows_of(detector, parts(5, 12))
    rows[0]["label"], rows[1]["extra"] = "anomalous", {"volume_label": "anomalous"}
    found = find_drift(detector, [write_run(tmp_path / "run", rows)])
    assert {len(series.values) for series in found.series} == {10}


def test_command_on_real_runs(detector: Detector, tmp_path: Path) -> None:
    detector.save(tmp_path / "m.safetensors")
    for name, images in (("same", parts(3, 30)), ("dark", [0.7 * image for image in parts(4, 15)])):
        folder = save(tmp_path / name, images)
        assert shell("score", tmp_path / "m.safetensors", folder, "--out", tmp_path / f"run_{name}").code == 0
    runs = tmp_path / "run_same", tmp_path / "run_dark"
    quiet = shell("drift", tmp_path / "m.safetensors", runs[0])
    assert (quiet.code, quiet.out.startswith("no drift in 30 images against 60 calibration images")) == (0, True)
    assert "at most 1 %" in quiet.out
    loud = shell("drift", tmp_path / "m.safetensors", *runs, "--out", tmp_path / "found")
    assert loud.code == 4
    assert loud.out.startswith("drift in 45 images")
    written = json.loads((tmp_path / "found" / "drift.json").read_text(encoding="utf-8"))
    assert written["drift"] is True
    assert list(written["series"]) == ["score", *sorted(NUMBERS[1:])]
    grey = written["series"]["mean grey"]
    assert 30 <= grey["alarm_at"] < 45, "not before the lamp was dimmed"
    assert grey["evidence_log10"][grey["alarm_at"]] >= written["limit_log10"] > grey["evidence_log10"][29]
    assert "mean grey (lower)" in (tmp_path / "found" / "drift.html").read_text(encoding="utf-8")
    assert "exists already" in shell("drift", tmp_path / "m.safetensors", *runs, "--out", tmp_path / "found").error


@pytest.mark.parametrize("rate", [0.01, 0.2])
def test_a_hundred_unchanged_runs_are_as_quiet_as_promised(detector: Detector, tmp_path: Path, rate: float) -> None:
    """Every order of one pool of images is as likely as any other: calibration and runs are drawn from it anew."""
    rng = np.random.default_rng(7)
    rows, n_alarms = rows_of(detector, parts(5, 60)), 0
    other = with_calibration(detector, rows)
    for number in range(100):
        order = rng.permutation(len(rows))
        reference, tested = [rows[i] for i in order[:30]], [rows[i] for i in order[30:]]
        timed = [{**row, "time_utc": f"{k:03d}"} for k, row in enumerate(tested)]
        other.scores, other.provenance["calibration_statistics"] = calibration_of(detector, reference)
        n_alarms += bool(find_drift(other, [write_run(tmp_path / str(number), timed)], rate, seed=number).alarms)
    assert n_alarms <= stats.binom.ppf(0.999, 100, rate)


def with_calibration(detector: Detector, rows: list[dict[str, Any]], groups: list[int] | None = None) -> Detector:
    scores, statistics = calibration_of(detector, rows, groups)
    other = detector.with_thresholds(scores, detector.calibrated[1])
    other.provenance["calibration_statistics"] = statistics
    return other


def calibration_of(
    detector: Detector, rows: list[dict[str, Any]], groups: list[int] | None = None
) -> tuple[CalibrationScores, dict[str, list[float]]]:
    values = np.array([row["score"] for row in rows])
    numbers = None if groups is None else np.array(groups)
    statistics = {name: [row["baselines"][name] for row in rows] for name in rows[0]["baselines"]}
    return replace(detector.calibrated[0], image=values, image_group=numbers), statistics


@pytest.fixture(scope="module")
def some_rows(detector: Detector) -> list[dict[str, Any]]:
    return [{**row, "time_utc": f"{i:03d}"} for i, row in enumerate(rows_of(detector, parts(6, 20)))]


def test_images_are_taken_in_the_order_of_time_whatever_the_order_of_runs(
    detector: Detector, some_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    early, late = write_run(tmp_path / "a", some_rows[:8]), write_run(tmp_path / "b", some_rows[8:])
    whole = write_run(tmp_path / "whole", some_rows[::-1])
    found = [find_drift(detector, runs) for runs in ([early, late], [late, early], [whole])]
    for one in found:
        assert [row["time_utc"] for row in one.rows] == [row["time_utc"] for row in some_rows]
        assert one.series[0].evidence == pytest.approx(found[0].series[0].evidence)


def test_later_images_leave_the_evidence_of_earlier_ones_as_it_was(
    detector: Detector, some_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Who looks every day looks at one and the same test, ties and groups included."""
    tied = [{**row, "score": float(i % 2), "group": f"lot {i // 2}"} for i, row in enumerate(some_rows)]
    calibrated = with_calibration(detector, [{**row, "score": float(i % 2)} for i, row in enumerate(some_rows)])
    some, more = write_run(tmp_path / "some", tied[:10]), write_run(tmp_path / "more", tied[10:])
    first, later = find_drift(calibrated, [some]), find_drift(calibrated, [some, more])
    for before, after in zip(first.series, later.series, strict=True):
        assert before.evidence.tolist() == after.evidence[: len(first.rows)].tolist()


def test_the_image_of_each_group_is_taken_at_its_own_time(
    detector: Detector, some_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    mixed = [{**row, "group": f"lot {i % 7}"} for i, row in enumerate(some_rows)]
    times = [row["time_utc"] for row in find_drift(detector, [write_run(tmp_path / "run", mixed)]).rows]
    assert len(times) == 7
    assert times == sorted(times)


def test_images_of_one_name_in_two_runs_are_two_images(
    detector: Detector, some_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    runs = [write_run(tmp_path / name, some_rows) for name in "ab"]
    assert len(find_drift(detector, runs).rows) == 40


def test_one_image_stands_for_its_group_also_in_the_calibration(
    detector: Detector, some_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    grouped = [{**row, "group": f"lot {i // 5}"} for i, row in enumerate(some_rows)]
    found = find_drift(detector, [write_run(tmp_path / "run", grouped)])
    assert [row["group"] for row in found.rows] == ["lot 0", "lot 1", "lot 2", "lot 3"]
    assert "one image of each of 4 groups stands for all 20" in found.notes[0]
    calibrated = with_calibration(detector, some_rows, [i // 2 for i in range(20)])
    found = find_drift(calibrated, [write_run(tmp_path / "other", some_rows)])
    assert found.n_calibration == 10
    assert "name the groups" in found.notes[0]


def test_images_labelled_anomalous_are_left_out(
    detector: Detector, some_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    labelled = [{**row, "label": "anomalous" if i < 5 else "normal"} for i, row in enumerate(some_rows)]
    assert len(find_drift(detector, [write_run(tmp_path / "run", labelled)]).rows) == 15
    all_anomalous = write_run(tmp_path / "none", [{**row, "label": "anomalous"} for row in some_rows])
    with pytest.raises(DataError, match="no image to test"):
        find_drift(detector, [all_anomalous])


def test_more_defects_are_told_from_another_lamp(
    detector: Detector, some_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    high = [{**row, "score": 100.0 + i} for i, row in enumerate(some_rows)]
    found = find_drift(detector, [write_run(tmp_path / "run", high)])
    assert [s.name for s in found.alarms] == ["score"]
    assert any("more defects" in line for line in found.lines())


def test_a_model_of_an_older_version_is_tested_on_scores_alone(
    detector: Detector, some_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    old = detector.with_thresholds(*detector.calibrated)
    del old.provenance["calibration_statistics"]
    found = find_drift(old, [write_run(tmp_path / "run", some_rows)])
    assert [s.name for s in found.series] == ["score"]
    assert found.limit == pytest.approx(2), "one number takes the whole rate"
    assert "only scores are tested" in found.lines()[1]
    without = [{key: value for key, value in row.items() if key != "baselines"} for row in some_rows]
    assert len(find_drift(detector, [write_run(tmp_path / "old run", without)]).series) == 1


def test_what_cannot_be_tested_is_refused(detector: Detector, some_rows: list[dict[str, Any]], tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", some_rows)
    damaged = write_run(tmp_path / "damaged", some_rows)
    lines = (damaged / "scores.jsonl").read_text("utf-8").splitlines(keepends=True)
    (damaged / "scores.jsonl").write_text("".join(lines[1:]), "utf-8")
    with pytest.raises(DataError, match="name other images"):
        find_drift(detector, [damaged])
    foreign = write_run(tmp_path / "foreign", [{**row, "weights_sha256": "0" * 64} for row in some_rows])
    with pytest.raises(DataError, match="scored by another model"):
        find_drift(detector, [run, foreign])
    with pytest.raises(DataError, match="cannot read"):
        find_drift(detector, [tmp_path / "nowhere"])
    with pytest.raises(UsageError, match="not a false-alarm rate"):
        find_drift(detector, [run], "2")
    with pytest.raises(UsageError, match="no run"):
        find_drift(detector, [])
    with pytest.raises(UsageError, match="run is named 2 times"):
        find_drift(detector, [run, tmp_path / "foreign" / ".." / "run"])
