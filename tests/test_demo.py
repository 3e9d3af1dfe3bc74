"""The tour on embedded data, and the sheet of what training sees."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import left_behind, run
from PIL import Image as Picture

from anomaly_ae import synthetic
from anomaly_ae.config import load_config
from anomaly_ae.demo import DEMO_SETTINGS, N_PREVIEW, make_demo, write_preview
from anomaly_ae.detector import Detector
from anomaly_ae.errors import ConfigError, DataError, OutputError
from anomaly_ae.listener import Listener
from anomaly_ae.manifest import load_manifest
from anomaly_ae.readers import read_image

FILES = {
    *(
        "failures.csv",
        "images",
        "methods.md",
        "metrics.json",
        "model.safetensors",
        "pictures.npz",
        "pixel_counts.npz",
        "pixels.csv",
        "report.html",
    ),
    "run.json",
    *("scores.csv", "scores.jsonl", "units.csv"),
}
"""What is always there; and ``heatmaps`` where an image was flagged."""


fewer = partial(synthetic.make_dataset, n_train=40, n_test_normal=4, n_per_defect=1, size_px=64)
"""50 images of 64 px instead of 380 of 128 px; test_readme.py runs the demo with all of them."""


@pytest.fixture
def small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "make_dataset", fewer)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A demo, and what it said. Nobody changes it."""
    said: list[str] = []
    out = tmp_path_factory.mktemp("demo") / "demo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "make_dataset", fewer)
        assert make_demo(out, False, "smoke", Listener(say=said.append)) == out / "report.html"
    return out, "\n".join(said)


def test_the_demo_goes_all_the_way(demo: tuple[Path, str]) -> None:
    out, said = demo
    assert {path.name for path in out.iterdir()} - {"heatmaps"} == FILES
    assert left_behind(out.parent) == []
    metrics = json.loads((out / "metrics.json").read_text("utf-8"))
    assert (metrics["counts"]["normal"], metrics["counts"]["anomalous"], metrics["counts"]["failed"]) == (4, 6, 0)
    assert len(metrics["per_defect"]) == 6
    assert metrics["pixel"]["roc_auc"]["value"] is not None
    for words in ("50 images, 50 readable", "preset smoke", "training on", "10 images scored", "ROC-AUC"):
        assert words in said


def test_what_the_demo_leaves_can_be_worked_with(demo: tuple[Path, str]) -> None:
    out, _ = demo
    detector = Detector.load(out / "model.safetensors", "cpu")
    image = out / "images" / "test" / "good" / "000.png"
    rows = [json.loads(line) for line in (out / "scores.jsonl").read_text("utf-8").splitlines()]
    score = next(row["score"] for row in rows if row["path"] == "test/good/000.png")
    assert detector.score(image).score == pytest.approx(score, rel=1e-6)
    assert read_image(image).pixels.dtype == np.uint16
    assert len(load_manifest(out / "images").samples) == 50


@pytest.mark.usefixtures("small_images")
def test_a_second_demo_replaces_the_first_only_when_asked(demo: tuple[Path, str], tmp_path: Path) -> None:
    out = Path(shutil.copytree(demo[0], tmp_path / "demo"))
    (out / "report.html").write_text("x", encoding="utf-8")
    with pytest.raises(OutputError, match="exists already"):
        make_demo(out, False, "smoke", Listener())
    assert (out / "report.html").read_text(encoding="utf-8") == "x"
    make_demo(out, True, "smoke", Listener())
    assert {path.name for path in out.iterdir()} - {"heatmaps"} == FILES


def fails(*_arguments: Any, **_keywords: Any) -> None:
    raise DataError("it failed", "because", "try")


def is_stopped(*_arguments: Any, **_keywords: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.usefixtures("small_images")
@pytest.mark.parametrize("step", ["anomaly_ae.fitting.fit", "anomaly_ae.evaluation.evaluate", "anomaly_ae.demo.scan"])
@pytest.mark.parametrize(("how", "code"), [(fails, 1), (is_stopped, 130)])
def test_a_demo_that_does_not_end_leaves_nothing(
    step: str, how: Callable[..., None], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, how)
    assert run("demo", "--out", tmp_path / "demo", "--preset", "smoke").code == code
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("small_images")
def test_a_demo_stopped_while_it_scores_leaves_nothing(tmp_path: Path) -> None:
    def progress(stage: str, done: int, total: int, detail: str) -> None:
        if (stage, done) == ("scoring", 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_demo(tmp_path / "demo", False, "smoke", Listener(progress=progress))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_beside_the_demo_is_nobody_elses_business(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("demo.work", "demo.partial", ".demo.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("x", encoding="utf-8")
    monkeypatch.setattr(synthetic, "make_dataset", fails)
    with pytest.raises(DataError):
        make_demo(tmp_path / "demo", True, "smoke", Listener())
    assert {path.name for path in tmp_path.rglob("mine")} == {"mine"}
    assert len(list(tmp_path.rglob("mine"))) == 3


def test_the_settings_of_the_demo_are_settings(tmp_path: Path) -> None:
    config = load_config("default", DEMO_SETTINGS)
    assert config.training.steps < load_config("default").training.steps
    with pytest.raises(ConfigError, match="smok"):
        make_demo(tmp_path / "demo", False, "smok", Listener())


# --- preview ------------------------------------------------------------


def halves(sheet: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of normal images and the rows of damaged ones, as float arrays of one height."""
    with Picture.open(sheet) as picture:
        pixels = np.asarray(picture, np.float64)
    rows = pixels.reshape(-1, 64, pixels.shape[1])
    return rows[0::2], rows[1::2]


def test_a_preview_shows_normal_images_and_what_is_done_to_them(part_folder: Path, tmp_path: Path) -> None:
    write_preview(part_folder, tmp_path / "sheet.png", "default", 0)
    normal, damaged = halves(tmp_path / "sheet.png")
    assert normal.shape == damaged.shape == (2, 64, N_PREVIEW // 2 * 64)
    difference = np.abs(normal - damaged).reshape(2, 64, -1, 64).max(axis=(1, 3))  # (rows, images)
    assert (difference > 10).mean() > 0.7, "most images are damaged"
    assert normal.std() > 10, "the contrast of the images is used"


def test_a_preview_never_shows_a_defect_or_a_test_image(part_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(part_folder / "train" / "good", folder / "train" / "good")
    write_preview(folder, tmp_path / "train_only.png", "default", 3)
    write_preview(part_folder, tmp_path / "whole.png", "default", 3)
    assert (tmp_path / "train_only.png").read_bytes() == (tmp_path / "whole.png").read_bytes()


def test_a_preview_of_images_of_several_sizes_and_kinds(part_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    with Picture.open(part_folder / "train" / "good" / "000.png") as picture:
        for number in range(4):
            picture.resize((72 - number, 66)).save(folder / f"{number}.png")
        picture.resize((80, 70)).save(folder / "grey.jpg")
    (folder / "broken.png").write_bytes(b"")
    write_preview(folder, tmp_path / "sheet.png", "default", 0)
    with Picture.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (6 * 80, 4 * 80), "crops that all images have; 66 px are padded to 80"


def test_a_preview_is_in_colour_where_the_images_are(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        Picture.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    write_preview(folder, tmp_path / "sheet.png", "default", 0)
    with Picture.open(tmp_path / "sheet.png") as sheet:
        assert (sheet.size, sheet.mode) == ((6 * 64, 4 * 64), "RGB")


def test_a_preview_of_volumes_shows_a_slice_of_each(tmp_path: Path) -> None:
    synthetic.make_volumes(tmp_path / "heads", 3, 1, 1)
    (tmp_path / "crop.toml").write_text("[model]\nspatial_dims = 3\n[training]\ncrop_px = 16\n", encoding="utf-8")
    write_preview(tmp_path / "heads", tmp_path / "sheet.png", tmp_path / "crop.toml", 0)
    with Picture.open(tmp_path / "sheet.png") as sheet:
        assert (sheet.size, sheet.mode) == ((6 * 16, 4 * 16), "L")


def test_a_preview_shows_crops_on_one_intensity_scale(tmp_path: Path) -> None:
    """Half of the images are darker, and stay so; and of a large image training sees a crop."""
    folder = tmp_path / "set"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(10):
        low = (0, 200)[number % 2]
        Picture.fromarray(rng.integers(low, low + 50, (192, 192), dtype=np.uint8)).save(folder / f"{number}.png")
    (tmp_path / "as_they_are.toml").write_text('[intensity]\nexposure = "off"\n')
    write_preview(folder, tmp_path / "sheet.png", str(tmp_path / "as_they_are.toml"), 0)
    side = load_config("default").training.crop_px
    with Picture.open(tmp_path / "sheet.png") as picture:
        sheet = np.asarray(picture, np.float64)
    assert sheet.shape == (4 * side, 6 * side)
    means = sheet.reshape(4, side, 6, side).mean(axis=(1, 3))[0::2].ravel()
    assert set(np.round(means / 255, 1)) == {0.1, 0.9}


def test_a_preview_without_a_preset_shows_the_one_that_fit_picks(part_folder: Path, tmp_path: Path) -> None:
    for preset in (None, "texture", "object"):  # of these images, which share one grid, fit makes an object
        write_preview(part_folder, tmp_path / f"{preset}.png", preset, 0)
    sheets = {preset: (tmp_path / f"{preset}.png").read_bytes() for preset in (None, "texture", "object")}
    assert sheets[None] == sheets["object"] != sheets["texture"]


def test_a_preview_needs_two_images(part_folder: Path, tmp_path: Path) -> None:
    one = tmp_path / "set"
    one.mkdir()
    (one / "a.png").write_bytes((part_folder / "train" / "good" / "000.png").read_bytes())
    (one / "broken.png").write_bytes(b"")
    with pytest.raises(DataError, match="1 readable normal images"):
        write_preview(one, tmp_path / "sheet.png", "default", 0)
    assert not (tmp_path / "sheet.png").exists()
