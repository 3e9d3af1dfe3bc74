"""Thresholds of a real model by every rule, without images: from Python and from the command line."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import done, run

from anomaly_ae.calibration import Asked, thresholds_by
from anomaly_ae.detector import Detector
from anomaly_ae.errors import DataError, UsageError
from anomaly_ae.journal import journal_of, read_journal
from anomaly_ae.manifest import Manifest
from anomaly_ae.recalibration import recalibrated
from anomaly_ae.records import Decision
from anomaly_ae.results import finished_scores


@pytest.fixture
def model(smoke_model_file: Path, tmp_path: Path) -> Path:
    """A copy of the smoke detector that a test may change."""
    return Path(shutil.copy(smoke_model_file, tmp_path / "part.safetensors"))


@pytest.fixture(scope="module")
def evaluated(smoke_model_file: Path, part_manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 12 normal and 12 anomalous images; nobody writes into it."""
    from dataclasses import replace

    from anomaly_ae.evaluation import RunOptions, evaluate

    test = [s for s in part_manifest.samples if s.split == "test"]
    kept = [s for s in test if s.label == "normal"][:12] + [s for s in test if s.label == "anomalous"][:12]
    manifest = replace(part_manifest, samples=tuple(replace(s, group=s.id, unit=s.id) for s in kept))
    folder = tmp_path_factory.mktemp("run") / "run"
    evaluate(Detector.load(smoke_model_file, "cpu"), manifest, folder, RunOptions())
    return folder


@pytest.fixture
def finished(evaluated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(evaluated, tmp_path / "run"))


def decisions(folder: Path) -> list[int]:
    with (folder / "scores.csv").open(encoding="utf-8", newline="") as file:
        return [int(line["decision"]) for line in csv.DictReader(file)]


def n_normal_in(folder: Path) -> int:
    with (folder / "scores.csv").open(encoding="utf-8", newline="") as file:
        return sum(line["label"] == "normal" for line in csv.DictReader(file))


# --- from Python ------------------------------------------------------------


def test_another_rule_on_the_same_scores_changes_thresholds_alone(smoke_detector: Detector) -> None:
    scores = smoke_detector.calibrated[0]
    asked = Asked(review_rate="1/2")
    changed = recalibrated(smoke_detector, asked)
    assert changed.calibrated == (scores, thresholds_by(asked, scores))
    assert changed.weights_sha256 == smoke_detector.weights_sha256
    assert smoke_detector.calibrated[1].image.review is None, "the given one stays as it is"


def test_a_finished_run_takes_the_place_of_the_calibration_images(smoke_detector: Detector, evaluated: Path) -> None:
    found = finished_scores(evaluated, smoke_detector.weights_sha256)
    changed = recalibrated(smoke_detector, Asked(sensitivity="0.8"), found)
    scores, thresholds = changed.calibrated
    assert len(scores.image) == n_normal_in(evaluated) == changed.provenance["n_images"]["calibration"]
    assert thresholds.image.rule == thresholds.pixel.rule == "sensitivity"
    assert thresholds.image.chosen_on == found.images_sha256
    hashes = changed.provenance["image_hashes"]
    assert (len(hashes["calibration"]), len(hashes["labelled"])) == (12, 12)
    assert hashes["train"] == smoke_detector.provenance["image_hashes"]["train"]
    assert set(changed.provenance["calibration_statistics"]) >= {"mean grey", "PCA residual"}
    back = recalibrated(changed, Asked(rate="1/2"))
    assert "labelled" not in back.provenance["image_hashes"]
    assert back.calibrated[1].image.chosen_on == ""


def test_labels_are_needed_where_a_rule_asks_for_them(smoke_detector: Detector) -> None:
    with pytest.raises(DataError, match="no anomalous images"):
        recalibrated(smoke_detector, Asked(sensitivity="0.8"))


def test_a_score_that_is_not_the_largest_pixel_needs_images(smoke_detector: Detector, evaluated: Path) -> None:
    from anomaly_ae.config import with_values

    found = finished_scores(evaluated, smoke_detector.weights_sha256)
    other = smoke_detector.with_thresholds(*smoke_detector.calibrated)
    other.config = with_values(other.config, scoring={"pooling": "quantile"})
    with pytest.raises(UsageError, match="pools by quantile"):
        recalibrated(other, Asked(), found)


# --- from the command line ------------------------------------------------------------


def test_a_review_band_is_kept_in_the_model_and_decides(model: Path, part_folder: Path, tmp_path: Path) -> None:
    before = Detector.load(model, "cpu")
    text = done("calibrate", model, "--review-false-alarm-rate", "50%", "--who", "Ann", "--why", "night shift")
    after = Detector.load(model, "cpu")
    limit = after.calibrated[1].image
    assert limit.review
    assert limit.value == before.calibrated[1].image.value
    assert "for review: about" in text
    assert "review of images from" in done("info", model)
    image = part_folder / "test" / "good" / "000.png"
    score = after.score(image).score
    assert score == before.score(image).score
    between = done("calibrate", model, "--value", str(score + 1), "--review-false-alarm-rate", "99%")
    assert "Set by hand" in between
    assert Detector.load(model, "cpu").score(image).decision == Decision.REVIEW
    first, second = read_journal(journal_of(model))
    assert (first["who"], first["why"]) == ("Ann", "night shift")
    assert first["before"]["model_sha256"] == before.provenance["file_sha256"]
    assert first["after"]["model_sha256"] == second["before"]["model_sha256"] == after.provenance["file_sha256"]
    done("score", model, image, "--out", tmp_path / "one")
    assert decisions(tmp_path / "one") == [1]
    assert len(list((tmp_path / "one" / "heatmaps").iterdir())) == 1, "who reviews wants to see why"
    assert "review" in (tmp_path / "one" / "report.html").read_text("utf-8")
    band = Detector.load(model, "cpu").calibrated[1].image.review
    assert band
    ended = run("calibrate", model, "--value", str(score + 1)).err
    assert f"warning: the review band from {band.value:.4g} on is removed" in ended
    assert "is removed" in read_journal(journal_of(model))[-1]["what"]


def test_a_shadow_day_sets_thresholds_without_images(model: Path, finished: Path) -> None:
    text = done("calibrate", model, "--scores", finished / "scores.csv", "--false-alarm-rate", "0.1")
    assert "12 images taken as normal (0 without a label" in text
    assert "unselected sample" in text
    scores, thresholds = Detector.load(model, "cpu").calibrated
    assert len(scores.image) == 12
    assert thresholds.image.rate == "1/10"
    (line,) = read_journal(journal_of(model))
    assert line["what"] == "calibrated with a finished run: 12 normal images, 12 anomalous"


def test_a_run_without_groups_says_so_where_the_calibration_had_some(model: Path, finished: Path) -> None:
    path = finished / "scores.csv"
    plain = path.read_text("utf-8")
    header, *lines = csv.reader(plain.splitlines())
    place = header.index("group")
    for i, line in enumerate(lines):
        line[place] = f"lot {i // 2}"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *lines])
    assert "came in groups" not in done("calibrate", model, "--scores", finished, "--false-alarm-rate", "50%")
    path.write_text(plain, "utf-8")
    assert "came in groups" in done("calibrate", model, "--scores", finished, "--false-alarm-rate", "50%")


def test_images_that_set_the_thresholds_are_no_test_images(model: Path, finished: Path, part_folder: Path) -> None:
    done("calibrate", model, "--scores", finished, "--cost", "escape=9,false-reject=1,prevalence=0.1")
    outcome = run("evaluate", model, part_folder, "--out", finished.parent / "again")
    assert outcome.code == 1
    assert "were used in fit" in outcome.error


def test_a_fit_over_a_model_is_a_change_of_its_thresholds(model: Path, part_folder: Path) -> None:
    before, path = Detector.load(model, "cpu"), journal_of(model)
    command = ("fit", part_folder, "--preset", "smoke", "--set", "training.steps=2", "--out", model, "--overwrite")
    text = done(*command, "--seed", "3", "--review-false-alarm-rate", "60%", "--who", "Ann", "--why", "new lamp")
    after = Detector.load(model, "cpu")
    (line,) = read_journal(path)
    assert (line["who"], line["why"]) == ("Ann", "new lamp")
    assert line["what"] == "fitted anew: 55 for train, 10 for validation, 15 for calibration"
    assert line["before"]["model_sha256"] == before.provenance["file_sha256"]
    assert line["after"]["model_sha256"] == after.provenance["file_sha256"]
    assert line["after"]["thresholds"]["image"]["review"]["rate"] == "3/5"
    review = after.calibrated[1].image.review
    assert review
    assert review.value < after.calibrated[1].image.value
    assert "for review: about" in text
    model.write_bytes(b"no model any more")
    done(*command)
    assert [entry["before"] is None for entry in read_journal(path)] == [False, True]


def test_what_another_command_did_meanwhile_is_not_undone(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def during(*arguments: Any, **named: Any) -> Any:
        monkeypatch.undo()
        done("calibrate", model, "--value", "7", "--why", "the other")
        return thresholds_by(*arguments, **named)

    monkeypatch.setattr("anomaly_ae.recalibration.thresholds_by", during)
    outcome = run("calibrate", model, "--value", "8")
    assert (outcome.code, "is not changed: another command wrote it" in outcome.err) == (1, True)
    assert Detector.load(model, "cpu").calibrated[1].image.value == 7
    assert [line["why"] for line in read_journal(journal_of(model))] == ["the other"]


def test_a_first_fit_has_no_journal_and_one_that_cannot_be_written_is_said_before(
    part_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "new.safetensors"
    command = ("fit", part_folder, "--preset", "smoke", "--set", "training.steps=2", "--out", out)
    done(*command)
    assert not journal_of(out).exists()
    journal_of(out).mkdir()
    monkeypatch.setattr("anomaly_ae.fitting.fit", lambda *_, **__: pytest.fail("it has begun"))
    assert "cannot write" in run(*command, "--overwrite").error


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--review-false-alarm-rate", "1%"), "out of reach"),
        (("--false-alarm-rate", "20%", "--review-false-alarm-rate", "10%"), "a larger review rate"),
        (("--review-false-alarm-rate", "nonsense"), "nonsense"),
    ],
)
def test_a_review_band_that_cannot_be_is_refused_before_training(
    part_folder: Path, tmp_path: Path, options: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anomaly_ae.fitting.learn", lambda *_, **__: pytest.fail("it has begun"))
    outcome = run("fit", part_folder, "--preset", "smoke", "--out", tmp_path / "m.safetensors", *options)
    assert outcome.code in {1, 2}
    assert words in outcome.error


def test_overruled_rejects_change_nothing(model: Path, finished: Path) -> None:
    before, path = model.read_bytes(), finished / "scores.csv"
    lines = path.read_text("utf-8").splitlines()
    place = lines[0].split(",").index("decision")
    cut = [line.split(",") for line in lines[1:] if ",normal," in line]
    for cells in cut:
        cells[place] = "2"
    path.write_text("\n".join([lines[0], *(",".join(cells) for cells in cut)]) + "\n", encoding="utf-8")
    assert "name other images" in run("calibrate", model, "--scores", path).error
    (finished / "scores.jsonl").unlink()
    outcome = run("calibrate", model, "--scores", path)
    assert outcome.code == 1
    assert "only overruled rejects" in outcome.error
    assert model.read_bytes() == before
    assert not journal_of(model).exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "nothing to set thresholds from"),
        (("--sensitivity", "0.9"), "needs labelled anomalies"),
        (("--false-alarm-rate", "0.1", "--value", "3"), "two rules"),
        (("--verdicts", "v.csv", "--value", "3"), "--verdicts needs --scores"),
        (("images", "--scores", "scores.csv"), "DATA and --scores"),
        (("--value", "3", "--group-regex", "(a)"), "--group-regex needs DATA"),
        (("--value", "3", "--identified"), "--identified needs DATA"),
        (("--value", "nan"), "must be a finite number"),
        (("--cost", "9"), "is no cost"),
        (("--cost", "escape=5,false-reject=1,prevalence=2"), "'2' is not a prevalence"),
        (("--review-false-alarm-rate", "50%", "--value", "-99"), "is not below the threshold"),
    ],
)
def test_contradictions_are_refused(model: Path, options: tuple[str, ...], words: str) -> None:
    before = model.read_bytes()
    outcome = run("calibrate", model, *options)
    assert outcome.code in {1, 2}
    assert words in outcome.error
    assert model.read_bytes() == before
    assert not journal_of(model).exists()


def test_what_if_with_labels_is_marked_and_there_is_a_way_back(finished: Path) -> None:
    first = decisions(finished)
    text = done("threshold", finished, "--sensitivity", "0.8")
    metrics = json.loads((finished / "metrics.json").read_text("utf-8"))
    assert metrics["chosen_on_these_images"] is metrics["what_if"] is True
    assert metrics["image"]["at_threshold"][0]["rule"] == "sensitivity"
    assert metrics["image"]["at_threshold"][0]["sensitivity"]["value"] >= 0.8
    assert metrics["image"]["at_threshold"][0]["false_alarm_band"] is None
    assert "chosen on these images" in text
    assert "for comparison, max_f1: " in text
    assert "false alarms: about" in text
    assert "sensitivity of 80" in (finished / "report.html").read_text("utf-8")
    done("threshold", finished)
    assert decisions(finished) == first
    assert json.loads((finished / "run.json").read_text("utf-8"))["what_if"] is False


def test_every_rule_renders_a_report(finished: Path) -> None:
    for options in (
        ("--cost", "escape=500,false-reject=5,prevalence=0.01"),
        ("--value", "3.5"),
        ("--review-false-alarm-rate", "0.5"),
        ("--value", "99", "--review-sensitivity", "0.8"),
    ):
        text = done("threshold", finished, *options)
        assert f"wrote {finished / 'report.html'}" in text
        n = np.bincount(decisions(finished), minlength=3)
        assert f"{n[2]} of 24 images are anomalous at it" in text
    assert f"{n[1]} for review" in text
    assert n[1] >= 9


def test_the_report_says_how_many_are_for_review(finished: Path) -> None:
    done("threshold", finished, "--value", "99", "--review-sensitivity", "0.8")
    n_review = decisions(finished).count(1)
    page = (finished / "report.html").read_text("utf-8")
    assert f"; {n_review} of all 24 are for review." in page
    done("threshold", finished, "--value", "99")
    assert "are for review" not in (finished / "report.html").read_text("utf-8")


def test_images_of_a_calibration_may_calibrate_again_and_learned_ones_never(
    model: Path, finished: Path, part_folder: Path, tmp_path: Path
) -> None:
    done("calibrate", model, "--scores", finished)
    done("score", model, part_folder / "test" / "good", "--out", tmp_path / "day")
    done("calibrate", model, "--scores", tmp_path / "day")
    done("score", model, part_folder / "train" / "good", "--out", tmp_path / "learned")
    before = model.read_bytes()
    outcome = run("calibrate", model, "--scores", tmp_path / "learned")
    assert outcome.code == 1
    assert "were used in training" in outcome.error
    assert model.read_bytes() == before


def test_the_report_of_a_what_if_names_both_rules(finished: Path) -> None:
    done("threshold", finished, "--value", "99", "--review-sensitivity", "0.8")
    page = (finished / "report.html").read_text("utf-8")
    assert re.search(
        r"the image threshold is 99 \(rule manual, review from [\d.]+\) here and [\d.]+ \(asked rate", page
    )
