"""The learning curve: parts that hold each other, the same test images for all, a sentence that fits the figures."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command import run as shell
from PIL import Image as Picture
from sklearn.metrics import roc_auc_score

from anomaly_ae.config import Config, load_config
from anomaly_ae.curve import Curve, Point, _gain, learning_curve, write_curve
from anomaly_ae.errors import DataError
from anomaly_ae.fitting import fit
from anomaly_ae.manifest import Manifest, load_manifest
from anomaly_ae.metrics.paired import Difference
from anomaly_ae.records import Interval, Metric

QUICK = (
    "[training]\nsteps = 2\nbatch_size = 4\ncrop_px = 32\nvalidate_every = 2\n"
    "[model]\nwidth = 8\nn_scales = 1\n[geometry]\nmin_side_px = 32\nmax_side_px = 64\n"
)


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config("smoke", ["training.steps=6", "training.validate_every=3"])


@pytest.fixture(scope="module")
def found(part_manifest: Manifest, config: Config) -> Curve:
    return learning_curve(part_manifest, config, [0.2, 0.5, 1], device="cpu")


def finding(value: float, low: float, high: float, n_test: int = 20) -> Curve:
    points = tuple(Point(n, Metric(0.9, n_test, n_test)) for n in (50, 100))
    return Curve(points, Difference(value, Interval(low, high, "", "image")), n_test, is_planted=False)


def test_points_are_parts_of_whole_groups(found: Curve, part_manifest: Manifest) -> None:
    assert [point.n_normals for point in found.points] == [20, 40, 80], "lots of 5; a fifth of 16 lots is rounded up"
    assert {(p.roc_auc.n_normal, p.roc_auc.n_anomalous) for p in found.points} == {(15, 24)}
    assert not found.is_planted
    assert "labelled" in found.lines()[-2]


def test_the_last_point_is_a_fit_on_everything(found: Curve, part_manifest: Manifest, config: Config) -> None:
    detector = fit(part_manifest, config, device="cpu")
    test = part_manifest.select(split="test")
    scores = [detector.score(sample).score for sample in test]
    expected = roc_auc_score([sample.label == "anomalous" for sample in test], scores)
    assert found.points[-1].roc_auc.value == pytest.approx(expected)
    gain = found.points[-1].roc_auc.value - (found.points[-2].roc_auc.value or 0)
    assert found.gain.value == pytest.approx(gain)


def test_the_sentence_follows_the_interval() -> None:
    assert finding(0.05, 0.02, 0.08).sentence.startswith("more normal images would probably help: from 50 to 100")
    assert finding(0.001, -0.004, 0.006).sentence.startswith("more normal images would hardly help")
    assert finding(-0.05, -0.08, -0.02).sentence.startswith("more normal images would hardly help")
    assert "cannot be told" in finding(0.02, -0.03, 0.07).sentence
    unchanged = Difference(0.0, reason="no image is ordered otherwise")
    same = Curve(finding(0, 0, 0, n_test=30).points, unchanged, 30, is_planted=False)
    assert same.sentence.startswith("more normal images would hardly help")
    assert "no image is ordered otherwise" in same.sentence
    of_few = Curve(finding(0, 0, 0, n_test=29).points, unchanged, 29, is_planted=False)
    assert of_few.sentence.startswith("whether more normal images would help cannot be told")


def test_images_of_one_group_count_as_one_for_the_gain() -> None:
    rng, labels = np.random.default_rng(0), np.repeat([False, True], 60)
    before, last = (np.repeat(rng.normal(size=12) + gain * np.repeat([0, 1], 6), 10) for gain in (0.5, 1.5))
    alone, n_images = _gain(labels, before, last, None, 0)
    grouped, n_groups = _gain(labels, before, last, [str(i // 10) for i in range(120)], 0)
    assert (n_images, n_groups) == (60, 6)
    assert grouped.value == pytest.approx(alone.value)
    assert alone.interval is not None
    assert grouped.interval is not None
    assert grouped.interval.unit == "group"
    assert grouped.interval.high - grouped.interval.low > 2 * (alone.interval.high - alone.interval.low)
    assert _gain(labels, before, last, [str(i // 20) for i in range(120)], 0)[0].interval is None, "3 groups of a class"


def test_the_page_names_the_test_images_also_where_some_were_left_out(tmp_path: Path) -> None:
    page = write_curve(replace(finding(0.05, 0.02, 0.08), n_left_out=3), tmp_path).read_text(encoding="utf-8")
    assert "test: 20 normal images and 20 anomalous" in page
    assert "3 images, named above" in page


def test_one_test_image_of_a_class_is_refused_before_anything_is_fitted(
    part_manifest: Manifest, config: Config
) -> None:
    test = part_manifest.select(split="test")
    few = [*(s for s in test if s.label == "normal"), next(s for s in test if s.label == "anomalous")]
    with pytest.raises(DataError, match="15 normal, 1 anomalous"):
        learning_curve(replace(part_manifest, samples=(*part_manifest.select(split="train"), *few)), config)


def test_a_point_without_interval_is_written_all_the_same(tmp_path: Path) -> None:
    page = write_curve(finding(0.05, 0.02, 0.08), tmp_path)
    assert (tmp_path / "curve.csv").read_text(encoding="utf-8").splitlines()[1:] == ["50,0.9,,", "100,0.9,,"]
    assert page.read_text(encoding="utf-8").count("<polyline") == 1


def test_files(found: Curve, tmp_path: Path) -> None:
    page = write_curve(found, tmp_path)
    with (tmp_path / "curve.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["n_normals"]) for row in rows] == [20, 40, 80]
    assert [float(row["roc_auc"]) for row in rows] == [point.roc_auc.value for point in found.points]
    assert all(float(row["low"]) <= float(row["roc_auc"]) <= float(row["high"]) for row in rows)
    assert page.read_text(encoding="utf-8").count("<polyline") == 3


def test_without_a_test_set_defects_are_planted(part_folder: Path, config: Config) -> None:
    manifest = load_manifest(part_folder / "train" / "good")
    short = replace(manifest, samples=manifest.samples[:40])
    found = learning_curve(short, config, [0.5, 1], device="cpu")
    assert found.is_planted
    assert [point.n_normals for point in found.points] == [16, 32], "a fifth is held out"
    last = found.points[-1].roc_auc
    assert (last.n_normal, last.n_anomalous) == (8, 8)
    assert "synthetic defects" in found.lines()[-2]


def test_too_few_images_are_refused(part_manifest: Manifest, config: Config) -> None:
    few = part_manifest.select(split="train")[:10]
    with pytest.raises(DataError, match="10 normal images in 2 groups are too few"):
        learning_curve(replace(part_manifest, samples=(*few, *part_manifest.select(split="test"))), config)


def test_what_cannot_be_used_is_named_and_ends_with_code_3(part_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(part_folder, data)
    (data / "train" / "good" / "000.png").write_bytes(b"")
    (data / "test" / "good" / "000.png").write_bytes(b"")
    Picture.fromarray(np.zeros((300, 300), np.uint8)).save(data / "test" / "good" / "large.png")
    settings = tmp_path / "quick.toml"
    settings.write_text(QUICK, encoding="utf-8")
    outcome = shell("curve", data, "--out", tmp_path / "found", "--preset", settings, "--shares", "0.5,1")
    assert outcome.code == 3, outcome.err
    assert [name in outcome.err for name in ("train/good/000.png", "test/good/000.png", "large.png")] == [True] * 3
    assert "left out, unreadable or of another kind: 3 images, named above" in outcome.out
    assert "  79 normal images: " in outcome.out, "what is unreadable is not counted"


def test_command(part_folder: Path, tmp_path: Path) -> None:
    settings = tmp_path / "quick.toml"
    settings.write_text(QUICK, encoding="utf-8")
    arguments = ("curve", part_folder, "--out", tmp_path / "found", "--preset", settings)
    outcome = shell(*arguments, "--shares", "0.5,1")
    assert outcome.code == 0, outcome.err
    assert "left out" not in outcome.out + outcome.err
    assert "more normal images would" in outcome.out
    assert {path.name for path in (tmp_path / "found").iterdir()} == {"curve.csv", "curve.html"}
    assert "exists already" in shell(*arguments).error
    for shares in ("1", "0.5,2", "0,1", "half"):
        assert shell("curve", part_folder, "--out", tmp_path / "x", "--shares", shares).code == 2
