"""The audit of normal images: every score is out of fold, strange images come first, planted ones are told."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from command import run as shell
from PIL import Image as Picture
from scipy import stats

from anomaly_ae.audit import Audit, Suspect, audit, strangeness
from anomaly_ae.config import Config, load_config
from anomaly_ae.errors import DataError
from anomaly_ae.fitting import fit
from anomaly_ae.manifest import load_manifest, make_folds
from anomaly_ae.records import Sample

N, STRANGE = 24, "005.png"


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config("smoke", ["training.steps=6", "training.validate_every=3"])


@pytest.fixture(scope="module")
def folder(part_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 normal parts, one of them with a checkered label on it."""
    folder = tmp_path_factory.mktemp("normals")
    for path in sorted((part_folder / "train" / "good").iterdir())[:N]:
        shutil.copy(path, folder)
    pixels = np.array(Picture.open(folder / STRANGE))
    pixels[16:48, 16:48] = np.indices((32, 32)).sum(axis=0) // 4 % 2 * 255
    Picture.fromarray(pixels).save(folder / STRANGE)
    return folder


@pytest.fixture(scope="module")
def found(folder: Path, config: Config) -> Audit:
    return audit(load_manifest(folder), config, n_folds=2, n_shown=3, device="cpu")


def test_the_strange_image_is_on_top(found: Audit) -> None:
    assert Path(found.suspects[0].sample.path).name == STRANGE
    assert [s.strangeness for s in found.suspects] == sorted((s.strangeness for s in found.suspects), reverse=True)
    assert STRANGE in found.sentence
    assert (len(found.suspects), found.n_left_out, found.n_planted) == (N, 0, 0)
    assert all(s.detail for s in found.suspects[:3])
    assert sum(s.detail is not None for s in found.suspects) == 6, "three of each fold"


def test_every_score_is_that_of_a_model_that_did_not_see_the_image(found: Audit, folder: Path, config: Config) -> None:
    manifest = load_manifest(folder)
    rows = tuple(replace(s, label="normal", split="") for s in manifest.samples)
    first = make_folds(replace(manifest, samples=rows), 2, config.seed)[0]
    detector = fit(first, config, device="cpu")
    own = {s.sample.id: s for s in found.suspects if s.fold == 1}
    assert set(own) == {s.id for s in first.select(split="test")}
    scores = {id: detector.score(one.sample).score for id, one in own.items()}
    assert {id: one.score for id, one in own.items()} == pytest.approx(scores)
    for id, one in own.items():
        assert one.p_value == np.mean([other >= scores[id] for other in scores.values()])


def test_strangeness_is_in_robust_deviations() -> None:
    values = np.random.default_rng(0).normal(5, 2, 50)
    expected = (values - np.median(values)) / stats.median_abs_deviation(values, scale=1 / 1.4826)
    assert strangeness(values) == pytest.approx(expected)
    wide = np.append(values, [1e6] * 5)
    assert strangeness(wide)[:50] == pytest.approx(expected, abs=0.8), "a few strange images widen it little"
    assert strangeness([3.0, 3.0, 3.0]).tolist() == [0, 0, 0]
    assert strangeness([3.0, 3.0, 3.0, 9.0])[3] > 1


def test_precision_on_top_is_counted() -> None:
    def one(rank: int, planted: bool) -> Suspect:
        return Suspect(Sample(str(rank), str(rank), ()), 1, -rank, -float(rank), 0.1, planted, None)

    ranked = Audit(tuple(one(i, i in {0, 2, 9}) for i in range(20)), 2, 0)
    assert (ranked.n_planted, ranked.n_planted_on_top) == (3, 2)
    assert any("of the 3 strangest images 2 are planted ones" in line for line in ranked.lines())


def test_command_with_planted_defects_and_an_unreadable_image(folder: Path, config: Config, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    (data / "broken.png").write_bytes(b"")
    settings = tmp_path / "quick.toml"
    settings.write_text(
        "[training]\nsteps = 6\nbatch_size = 4\ncrop_px = 32\nvalidate_every = 3\n"
        "[model]\nwidth = 8\nn_scales = 1\n[geometry]\nmin_side_px = 32\nmax_side_px = 64\n",
        encoding="utf-8",
    )
    arguments = ("audit", data, "--out", tmp_path / "found", "--preset", settings, "--folds", "2")
    outcome = shell(*arguments, "--planted", "0.1", "--top", "4")
    assert outcome.code == 3
    assert "broken.png" in outcome.err
    assert "of 2 planted" in outcome.out
    with (tmp_path / "found" / "audit.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["rank"]) for row in rows] == list(range(1, N + 1))
    assert sum(int(row["planted"]) for row in rows) == 2
    assert all((data / row["path"]).exists() for row in rows), "a planted image goes under its own name"
    page = (tmp_path / "found" / "audit.html").read_text(encoding="utf-8")
    assert page.count("<article") == 4
    assert "exists already" in shell(*arguments).error


def test_a_folder_that_cannot_be_written_is_told_before_the_training(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with mock.patch("anomaly_ae.audit.fit", side_effect=AssertionError("hours later")):
        outcome = shell("audit", folder, "--out", tmp_path / "file" / "found")
    assert (outcome.code, "a part of the path is a file" in outcome.error) == (1, True)


def test_too_few_images_are_refused(folder: Path, config: Config) -> None:
    manifest = load_manifest(folder)
    few = replace(manifest, samples=manifest.samples[:1])
    with pytest.raises(DataError, match="2 folds from 1 group of"):
        audit(few, config, n_folds=2)
