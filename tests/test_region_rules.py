"""Region rules through the whole: fitted with, added later, scored, measured, decided again, reported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command import done, run

from anomaly_ae.calibration import Asked
from anomaly_ae.capability import _touches
from anomaly_ae.config import load_config
from anomaly_ae.detector import Detector
from anomaly_ae.errors import ConfigError, DataError, UsageError
from anomaly_ae.evaluation import RunOptions, evaluate
from anomaly_ae.fitting import calibrate, fit
from anomaly_ae.journal import journal_of, read_journal
from anomaly_ae.listener import Listener
from anomaly_ae.manifest import Manifest, load_manifest
from anomaly_ae.readers import read_image, read_mask
from anomaly_ae.recalibration import rescored
from anomaly_ae.records import Decision, Image
from anomaly_ae.regions import in_regions
from anomaly_ae.report import write_report
from anomaly_ae.report.pictures import read_pictures
from anomaly_ae.results import redecide

AREA_PX, LOW = 30, 2.5
RULES = (f"scoring.min_area_px={AREA_PX}", f"scoring.hysteresis_low={LOW}", "scoring.ignore_border_px=2")
WORDS = "regions below 30 px do not count; regions reach out to level 2.5 of the map; the outer 2 px of an image do not"


@pytest.fixture(scope="module")
def new_normals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 normal parts that no detector has seen."""
    from anomaly_ae.synthetic import make_dataset

    folder = tmp_path_factory.mktemp("new") / "part"
    make_dataset(folder, "part", n_train=40, n_test_normal=0, n_per_defect=0, size_px=64, seed=1)
    return folder / "train" / "good"


@pytest.fixture(scope="module")
def ruled(smoke_detector: Detector, new_normals: Path) -> Detector:
    """The smoke detector under all rules, calibrated so low that some regions of the test images count."""
    return calibrate(rescored(smoke_detector, RULES), load_manifest(new_normals).samples, rate="0.3")


@pytest.fixture(scope="module")
def evaluated(ruled: Detector, part_manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run under these rules; nobody writes into it."""
    kept = [replace(s, group=s.id, unit=s.id) for s in part_manifest.samples if s.split == "test"]
    folder = tmp_path_factory.mktemp("run") / "run"
    evaluate(ruled, replace(part_manifest, samples=tuple(kept)), folder, RunOptions(heatmaps="all"))
    return folder


@pytest.fixture
def finished(evaluated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(evaluated, tmp_path / "run"))


@pytest.fixture
def model(smoke_model_file: Path, tmp_path: Path) -> Path:
    """A copy of the smoke detector that a test may change."""
    return Path(shutil.copy(smoke_model_file, tmp_path / "part.safetensors"))


def drawn(detector: Detector, anomaly_map: np.ndarray, image: Image) -> np.ndarray:
    limit = detector.calibrated[1].pixel.value
    return in_regions(anomaly_map, limit, image.valid, image.spacing_mm, detector.rules)


# --- from Python ---


def test_label_and_regions_never_disagree(ruled: Detector, new_normals: Path, part_folder: Path) -> None:
    scores, thresholds = ruled.calibrated
    assert thresholds.pixel.value == thresholds.image.value
    assert scores.pixel.tolist() == scores.image.tolist()
    paths = [*sorted((part_folder / "test").rglob("*.png")), *sorted(new_normals.glob("*.png"))]
    decisions, below_the_peak = set(), 0
    for path in paths:
        result = ruled.score(path)
        assert bool(result.regions) == (result.decision == Decision.ANOMALOUS)
        assert all(region.area_px >= AREA_PX for region in result.regions)
        assert all(min(region.box_px[:2]) >= 2 and max(region.box_px[2:]) <= 62 for region in result.regions)
        decisions.add(result.decision)
        below_the_peak += result.score < float(np.max(result.anomaly_map))
    assert decisions == {Decision.NORMAL, Decision.ANOMALOUS}
    assert below_the_peak > len(paths) / 2, "the rules do something"
    n_flagged = sum(ruled.score(path).decision == Decision.ANOMALOUS for path in sorted(new_normals.glob("*.png")))
    assert n_flagged <= 12, "at most 30 % of the images that set the threshold"


def test_only_what_follows_the_map_can_be_changed_later(smoke_detector: Detector, ruled: Detector) -> None:
    assert ruled.weights_sha256 != smoke_detector.weights_sha256
    assert smoke_detector.rules != ruled.rules
    assert any(WORDS in line for line in ruled.describe())
    with pytest.raises(UsageError, match=r"scoring.smooth_sd_px of a finished model .* free are .*scoring.min_area_px"):
        rescored(smoke_detector, ["scoring.smooth_sd_px=3"])
    with pytest.raises(ConfigError, match=r"unknown setting 'scoring.min_aera_px'.*did you mean 'scoring.min_area_px'"):
        rescored(smoke_detector, ["scoring.min_aera_px=3"])
    with pytest.raises(ConfigError, match="min_area_px = -1"):
        rescored(smoke_detector, ["scoring.min_area_px=-1"])
    pooled = rescored(smoke_detector, ["scoring.pooling=quantile", "scoring.quantile=0.5"])
    assert pooled.config.scoring.quantile == 0.5


@pytest.mark.parametrize("rule", RULES[:2])
def test_a_share_of_pixels_and_a_region_cannot_both_decide(rule: str) -> None:
    with pytest.raises(ConfigError, match=r"region rules with scoring.pooling = top_share"):
        load_config("smoke", ["scoring.pooling=top_share", rule])
    load_config("smoke", ["scoring.pooling=top_share", "scoring.ignore_border_px=5"])


def test_every_pooling_leaves_the_border_out(smoke_detector: Detector, part_folder: Path) -> None:
    path = part_folder / "test" / "good" / "000.png"
    anomaly_map = smoke_detector.anomaly_map(smoke_detector.prepare(read_image(path)))
    other = rescored(smoke_detector, ["scoring.pooling=quantile", "scoring.quantile=0.9", "scoring.ignore_border_px=9"])
    ((_, measured),) = other.measure_many(load_manifest(path.parent).samples[:1])
    assert not isinstance(measured, Exception)
    inner = anomaly_map[9:-9, 9:-9].astype(float)
    assert measured[:2] == (np.quantile(inner, 0.9), inner.max())


def test_an_image_in_which_nothing_could_be_found_is_not_inspected(ruled: Detector, part_folder: Path) -> None:
    image = read_image(part_folder / "test" / "good" / "000.png")
    valid = np.zeros((64, 64), bool)
    valid[::2, 10], valid[30, 20:28] = True, True
    with pytest.raises(DataError, match=r"000.png: an image too small for the region rules"):
        ruled.score(replace(image, valid=valid))


def test_an_area_in_mm2_goes_by_the_spacing_of_the_image(
    smoke_detector: Detector, new_normals: Path, part_folder: Path
) -> None:
    by_mm2 = rescored(smoke_detector, ["scoring.min_area_mm2=3"])
    by_px = calibrate(rescored(smoke_detector, ["scoring.min_area_px=12"]), load_manifest(new_normals).samples)
    image = read_image(part_folder / "test" / "good" / "000.png")
    by_mm2 = by_mm2.with_thresholds(*by_px.calibrated)
    assert by_mm2.score(replace(image, spacing_mm=(0.5, 0.5))).score == by_px.score(image).score
    with pytest.raises(DataError, match="has no spacing"):
        by_mm2.score(image)
    with pytest.raises(DataError, match="no normal image could be scored for calibration"):
        calibrate(by_mm2, load_manifest(new_normals).samples)


@pytest.mark.parametrize(("rule", "why"), [("min_area_mm2=1", "has no spacing"), ("min_area_px=4097", "4,097 px")])
def test_rules_that_no_image_can_meet_are_refused_before_training(part_manifest: Manifest, rule: str, why: str) -> None:
    said: list[str] = []
    with pytest.raises(DataError, match="no calibration image fits the model"):
        fit(part_manifest, load_config("smoke", [f"scoring.{rule}"]), device="cpu", listener=Listener(say=said.append))
    assert any(why in line for line in said)
    assert not any("training on" in line for line in said)


def test_a_defect_is_found_where_a_region_that_counts_lies_on_it(ruled: Detector, part_folder: Path) -> None:
    image = read_image(part_folder / "test" / "good" / "000.png")
    limit = ruled.calibrated[1].pixel.value
    anomaly_map = np.zeros((64, 64), np.float32)
    anomaly_map[20:26, 20:26], anomaly_map[40:45, 40:45] = limit + 1, limit + 1  # 36 px and 25 px
    result = replace(ruled.score(image), anomaly_map=anomaly_map)
    where: Callable[[int], np.ndarray] = lambda i: np.arange(64)[:, None] == i  # noqa: E731
    assert _touches(ruled, result, image, where(21) & where(21).T)
    assert not _touches(ruled, result, image, where(41) & where(41).T)


# --- runs ---


def test_dice_and_iou_are_those_of_the_drawn_regions(evaluated: Path, ruled: Detector, part_manifest: Manifest) -> None:
    lines = {row["id"]: row for row in map(json.loads, (evaluated / "scores.jsonl").read_text("utf-8").splitlines())}
    table = [line.split(",") for line in (evaluated / "pixels.csv").read_text("utf-8").splitlines()]
    found = {row["id"]: row for row in (dict(zip(table[0], line, strict=True)) for line in table[1:])}
    n_checked = 0
    for sample in part_manifest.samples:
        if sample.id not in found or sample.mask is None:
            continue
        anomaly_map, mask = ruled.score(sample).anomaly_map, read_mask(sample.mask)
        assert anomaly_map is not None
        marks = drawn(ruled, anomaly_map, read_image(sample.files[0]))
        row = found[sample.id]
        assert (int(row["found_px"]), int(row["false_px"])) == ((marks & mask).sum(), (marks & ~mask).sum())
        assert sum(region["area_px"] for region in lines[sample.id]["regions"]) == marks.sum()
        n_checked += bool(marks.any())
    assert n_checked > 2, "the smoke model finds something"


def test_pictures_outline_the_regions_that_count(evaluated: Path, ruled: Detector, part_manifest: Manifest) -> None:
    samples = {sample.id: sample for sample in part_manifest.samples}
    details = read_pictures(evaluated / "pictures.npz").details
    for detail in details:
        result = ruled.score(samples[detail.id])
        assert result.anomaly_map is not None
        expected = drawn(ruled, result.anomaly_map, read_image(samples[detail.id].files[0]))
        assert detail.regions is not None
        np.testing.assert_array_equal(detail.regions > 0, expected)
    assert any(detail.regions.any() for detail in details if detail.regions is not None)
    assert not all(detail.regions.any() for detail in details if detail.regions is not None)


def test_a_finished_run_is_decided_again_without_maps(
    finished: Path, ruled: Detector, new_normals: Path, part_manifest: Manifest
) -> None:
    """As if its images had been scored at that threshold: the same decisions, and regions where there is one."""
    redecide(finished, Asked(rate="0.1"))
    other = calibrate(ruled, load_manifest(new_normals).samples, rate="0.1")
    samples = {sample.id: sample for sample in part_manifest.samples}
    rows = [json.loads(line) for line in (finished / "scores.jsonl").read_text("utf-8").splitlines()]
    assert {row["threshold"] for row in rows} == {other.calibrated[1].image.value}
    for row in rows:
        result = other.score(samples[row["id"]])
        assert row["decision"] == result.decision
        assert bool(result.regions) == (row["decision"] == Decision.ANOMALOUS)
    assert any(row["n_regions"] and not row["decision"] for row in rows), "regions stay those of the scoring"


def test_the_report_says_which_regions_count(finished: Path) -> None:
    text = write_report(finished).read_text("utf-8")
    methods = (finished / "methods.md").read_text("utf-8")
    limit = json.loads((finished / "run.json").read_text("utf-8"))["threshold"]["pixel"]["value"]
    for page in (text, methods):
        assert f"Region rules, under which it was set: {WORDS} count." in page
    assert "region that counts <span" in text
    assert f"Agreement with the masks at the calibrated pixel threshold {limit:.4g}, of the regions that count<" in text
    now = redecide(finished, Asked(rate="0.1")).thresholds.pixel.value
    where = f"at the pixel threshold of the scoring, {limit:.4g}, of the regions that count; in force is {now:.4g}"
    assert f"Agreement with the masks {where}<" in write_report(finished).read_text("utf-8")
    assert f"Dice {where}, all pixels" in (finished / "methods.md").read_text("utf-8")


# --- from the command line ---


def test_a_rule_added_later_is_the_rule_of_a_fit(model: Path, part_folder: Path, tmp_path: Path) -> None:
    """Calibrated again with the data of the fit, which had kept some of its images: the same file but for its dates."""
    settings = ["--set", RULES[0], "--set", RULES[2]]
    fitted = tmp_path / "fitted.safetensors"
    done("fit", part_folder, "--preset", "smoke", *settings, "--out", fitted, "--device", "cpu")
    before = Detector.load(model, "cpu")
    outcome = run("calibrate", model, part_folder, *settings, "--why", "specks are dust", "--who", "QA")
    assert outcome.code == 0
    assert "15 of 80 images are those that the model was calibrated with" in outcome.err
    assert "region rules: regions below 30 px do not count; the outer 2 px of an image do not count." in outcome.out
    after, expected = Detector.load(model, "cpu"), Detector.load(fitted, "cpu")
    assert after.weights_sha256 == expected.weights_sha256 != before.weights_sha256
    assert after.calibrated[1] == expected.calibrated[1]
    np.testing.assert_array_equal(after.calibrated[0].pixel, expected.calibrated[0].pixel)
    (line,) = read_journal(journal_of(model))
    assert line["what"] == f"calibrated with 15 images; scores changed by {RULES[0]}, {RULES[2]}"
    assert (line["who"], line["why"]) == ("QA", "specks are dust")
    assert line["before"]["thresholds"] != line["after"]["thresholds"]


def test_scores_made_before_a_rule_do_not_calibrate_after_it(
    model: Path, new_normals: Path, part_folder: Path, tmp_path: Path
) -> None:
    done("score", model, part_folder / "test" / "good", "--out", tmp_path / "day")
    done("calibrate", model, new_normals, "--set", RULES[0])
    outcome = run("calibrate", model, "--scores", tmp_path / "day" / "scores.csv")
    assert outcome.code == 1
    assert "was scored by another model" in outcome.error
    done("score", model, part_folder / "test" / "good", "--out", tmp_path / "next")
    done("calibrate", model, "--scores", tmp_path / "next" / "scores.csv")
    scores = Detector.load(model, "cpu").calibrated[0]
    assert scores.image.tolist() == scores.pixel.tolist()


def test_set_needs_images(model: Path) -> None:
    before = model.read_bytes()
    outcome = run("calibrate", model, "--set", RULES[0], "--false-alarm-rate", "0.5")
    assert outcome.code == 2
    assert "--set needs DATA" in outcome.error
    assert model.read_bytes() == before
