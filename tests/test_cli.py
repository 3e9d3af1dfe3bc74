"""Every command the way a shell calls it: exit code, what is said where, what is written and what is not."""

from __future__ import annotations

import csv
import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main
from command import done, left_behind, run
from PIL import Image as Picture

from anomaly_ae import __version__, fitting
from anomaly_ae.cli import app
from anomaly_ae.detector import Detector

COMMANDS = (
    *("demo", "scan", "fit", "calibrate", "score", "evaluate", "threshold", "report", "info", "preview"),
    *("drift", "capability", "audit", "curve"),
)
POSIX = pytest.mark.skipif(os.name == "nt", reason="Windows has no signals of this kind")


@pytest.fixture(scope="module")
def new_normals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 normal parts that no detector has seen."""
    from anomaly_ae.synthetic import make_dataset

    folder = tmp_path_factory.mktemp("new") / "part"
    make_dataset(folder, "part", n_train=40, n_test_normal=0, n_per_defect=0, size_px=64, seed=1)
    return folder / "train" / "good"


@pytest.fixture
def model(smoke_model_file: Path, tmp_path: Path) -> Path:
    """A copy of the smoke detector that a test may change."""
    return Path(shutil.copy(smoke_model_file, tmp_path / "part.safetensors"))


@pytest.fixture
def images(part_folder: Path, tmp_path: Path) -> Path:
    """Three normal images in a folder."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        shutil.copy(part_folder / "test" / "good" / f"{number:03d}.png", folder)
    return folder


@pytest.fixture
def small_set(part_folder: Path, tmp_path: Path) -> Path:
    """A manifest of 20 images to fit on and 4 to test on, with a station."""
    rows = [(f"train/good/{i:03d}.png", "normal", "train") for i in range(20)]
    rows += [(f"test/good/{i:03d}.png", "normal", "test") for i in range(2)]
    rows += [(f"test/dent/{i:03d}.png", "anomalous", "test") for i in range(2)]
    lines = ["path,label,split,station"]
    lines += [f"{(part_folder / path).as_posix()},{label},{split},{path[-5]}" for path, label, split in rows]
    (tmp_path / "small.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path / "small.csv"


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def flat(text: str) -> str:
    """Undo the line breaks of a help page."""
    return " ".join(text.split())


# --- help ------------------------------------------------------------


def test_help_is_fast_and_needs_no_heavy_package() -> None:
    """Seconds from the start of Python to the end of ``--help``; the best of three, because others work here too."""

    def seconds() -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "anomaly_ae", "--help"], check=True, capture_output=True)
        return time.perf_counter() - started

    assert min(seconds() for _ in range(3)) < 0.7


def test_help_of_every_command_is_fast_too() -> None:
    script = """
import json, sys, time
from anomaly_ae.cli import main
seconds = {}
for name in sys.argv[1:]:
    sys.argv, started = ["anomaly-ae", name, "--help"], time.perf_counter()
    try:
        main()
    except SystemExit as end:
        assert not end.code
    seconds[name] = time.perf_counter() - started
heavy = sorted({"torch", "monai", "pandas", "sklearn", "scipy", "pydicom", "numpy"} & sys.modules.keys())
print(json.dumps([seconds, heavy]), file=sys.stderr)
"""
    found = subprocess.run([sys.executable, "-c", script, *COMMANDS], check=True, capture_output=True, text=True)
    seconds, heavy = json.loads(found.stderr)
    assert set(seconds) == set(COMMANDS)
    assert max(seconds.values()) < 0.7
    assert heavy == []


def test_the_program_introduces_its_commands() -> None:
    for arguments in (["--help"], []):
        outcome = run(*arguments)
        shown = outcome.out + outcome.err
        assert [name for name in COMMANDS if not re.search(rf"^  {name} ", shown, re.M)] == []
    assert done("--version").strip() == __version__


@pytest.mark.parametrize("name", COMMANDS)
def test_help_teaches(name: str) -> None:
    text = flat(done(name, "--help"))
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    assert flat(command.help.split("\n\n")[0]) in text
    for parameter in (p for p in command.params if not getattr(p, "hidden", False)):
        option = parameter.opts[0]
        assert option in text
        if option.startswith("--") and option != "--help":
            assert len(parameter.help.split()) >= 3, option
            if parameter.default not in (None, False, ()) and not parameter.required:
                assert f"[default: {parameter.default}" in text, f"{name} {option}"


def test_help_says_what_happens_without_an_option() -> None:
    text = flat(done("fit", "--help"))
    for words in ("picked if not given", "default 1 %", "default: on average", "default: auto", "default: 0"):
        assert words in text
    assert "default: none" in flat(done("evaluate", "--help"))
    assert "default: anomalous" in flat(done("score", "--help"))


# --- every command, once ------------------------------------------------------------


def test_scan_says_what_is_there_and_writes_a_manifest(part_folder: Path, tmp_path: Path) -> None:
    text = done("scan", part_folder, "--out", tmp_path / "parts.csv")
    assert "119 images, 119 readable" in text
    assert "calibration part (20 %): 3 of 16 groups: smallest false-alarm rate" in text
    assert "; 1 % needs 99 there, about 495 in all" in text
    assert len(table(tmp_path / "parts.csv")) == 119
    assert "119 images" in done("scan", tmp_path / "parts.csv")


def test_scan_writes_folds_by_group(part_folder: Path, tmp_path: Path) -> None:
    done("scan", part_folder, "--folds", "3", "--out", tmp_path / "parts.csv")
    assert names(tmp_path) == {"parts_1.csv", "parts_2.csv", "parts_3.csv"}
    folds = [table(tmp_path / f"parts_{number}.csv") for number in (1, 2, 3)]
    for fold in folds:
        splits: dict[str, set[str]] = {}
        for row in fold:
            splits.setdefault(row["group"], set()).add(row["split"])
        assert all(len(used) == 1 for used in splits.values())
    tested = [{row["id"] for row in fold if row["split"] == "test" and row["label"] == "normal"} for fold in folds]
    assert len(set.union(*tested)) == 95


def test_fit_writes_one_file_and_says_what_it_does(small_set: Path, tmp_path: Path) -> None:
    model = tmp_path / "deep" / "part.safetensors"
    outcome = run("fit", small_set, "--preset", "smoke", "--out", model, "--false-alarm-rate", "0.5", "--seed", "3")
    assert outcome.code == 0, outcome.err
    assert names(model.parent) == {"part.safetensors"}
    assert "50 %" in outcome.out
    assert f"wrote {model}" in outcome.out
    for words in ("reachable false-alarm rate", "preset smoke: asked for", "px on survive", "training on the "):
        assert words in outcome.err
    assert "50 %" in done("info", model)


def test_fit_picks_a_preset_and_says_why(small_set: Path, tmp_path: Path) -> None:
    changes = ["training.steps=2", "model.width=4", "training.batch_size=2"]
    settings = [word for change in changes for word in ("--set", change)]
    outcome = run("fit", small_set, *settings, "--out", tmp_path / "m.safetensors")
    assert outcome.code == 0, outcome.err
    assert re.search(r"^preset (object|default|texture): .*correlation with their mean", outcome.err, re.M)
    assert "2 steps" in done("info", tmp_path / "m.safetensors")


def test_fit_takes_a_file_of_settings(small_set: Path, tmp_path: Path) -> None:
    config = tmp_path / "mine.toml"
    config.write_text(
        "[model]\nwidth = 4\ndepth = 1\n[training]\nsteps = 2\nbatch_size = 2\ncrop_px = 32\n", encoding="utf-8"
    )
    done("fit", small_set, "--config", config, "--set", "training.steps=3", "--out", tmp_path / "m.safetensors")
    text = done("info", tmp_path / "m.safetensors")
    assert "preset mine" in text
    assert "3 steps" in text


def test_info_describes_the_model(smoke_model_file: Path, smoke_detector: Detector) -> None:
    text = done("info", smoke_model_file)
    for words in ("unet", "preset smoke", "20 steps", "image threshold", "pixel threshold", "on average"):
        assert words in text
    assert smoke_detector.weights_sha256 in text


def test_calibrate_moves_thresholds_and_no_score(model: Path, new_normals: Path, images: Path) -> None:
    before = Detector.load(model, "cpu")
    text = done("calibrate", model, new_normals, "--false-alarm-rate", "5%")
    after = Detector.load(model, "cpu")
    assert "False-alarm rate 5 % on average" in text
    assert after.weights_sha256 == before.weights_sha256
    assert len(after.calibrated[0].image) == 40
    assert after.calibrated[1] != before.calibrated[1]
    image = images / "000.png"
    assert after.score(image).score == before.score(image).score
    assert "at most 10 %, with 95 % confidence" in done(
        "calibrate", model, new_normals, "--false-alarm-rate", "0.1", "--confidence", "0.95"
    )


def test_calibrate_refuses_what_the_model_has_learned(model: Path, part_folder: Path) -> None:
    before = model.read_bytes()
    outcome = run("calibrate", model, part_folder / "train" / "good")
    assert outcome.code == 1
    assert "were used in training" in outcome.error
    assert model.read_bytes() == before


def test_score_writes_a_run(smoke_model_file: Path, images: Path, tmp_path: Path) -> None:
    one = images / "000.png"
    text = done("score", smoke_model_file, one, images / "001.png", "--out", tmp_path / "run", "--maps", "--heatmaps",
                "all")  # fmt: skip
    assert "2 images scored" in text
    assert f"wrote {tmp_path / 'run' / 'report.html'}" in text
    assert len(table(tmp_path / "run" / "scores.csv")) == 2
    assert len(names(tmp_path / "run" / "maps")) == len(names(tmp_path / "run" / "heatmaps")) == 2
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_score_reads_folders_and_tables(smoke_model_file: Path, images: Path, small_set: Path, tmp_path: Path) -> None:
    done("score", smoke_model_file, images, "--out", tmp_path / "folder")
    assert [Path(row["path"]).name for row in table(tmp_path / "folder" / "scores.csv")] == [
        "000.png", "001.png", "002.png",
    ]  # fmt: skip
    done("score", smoke_model_file, small_set, "--out", tmp_path / "table")
    rows = table(tmp_path / "table" / "scores.csv")
    assert len(rows) == 24
    assert {row["station"] for row in rows} == {row["path"][-5] for row in rows}
    done("score", smoke_model_file, small_set, "--out", tmp_path / "by_others", "--readers", "2")
    scores = [
        [(row["id"], row["score"]) for row in table(tmp_path / name / "scores.csv")] for name in ("table", "by_others")
    ]
    assert scores[0] == scores[1], "other processes read the same"


def test_what_is_ignored_is_said_and_stands_in_the_report(smoke_model_file: Path, images: Path, tmp_path: Path) -> None:
    (images / "003.webp").write_bytes(b"x")
    (images / "readme.txt").write_bytes(b"x")
    outcome = run("score", smoke_model_file, images, "--out", tmp_path / "run", "--heatmaps", "none")
    ignored = "ignored pictures of a format that is not read: 1"
    assert f"note: {ignored}" in outcome.err
    assert "note: ignored files that are no images: 1" in outcome.err
    warnings = json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))["data"]["warnings"]
    assert [warning for warning in warnings if "ignored" in warning] == [ignored]


def test_evaluate_measures_and_says_so(smoke_model_file: Path, small_set: Path, tmp_path: Path) -> None:
    text = done("evaluate", smoke_model_file, small_set, "--out", tmp_path / "run", "--by", "station")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text("utf-8"))
    assert "4 images scored" in text, "of the 24 only the test images"
    assert f"ROC-AUC {metrics['image']['roc_auc']['value']:.3f} [" in text
    for words in ("average precision", "sensitivity", "false-alarm rate"):
        assert words in text
    assert set(metrics["by"]["station"]) == {"0", "1"}
    assert not (tmp_path / "run" / "heatmaps").exists()


def test_threshold_asks_what_if_and_report_draws_again(model: Path, images: Path, tmp_path: Path) -> None:
    out, before = tmp_path / "run", model.read_bytes()
    done("score", model, images, "--out", out)
    outcome = run("threshold", out, "--false-alarm-rate", "0.5")
    assert outcome.code == 0
    assert "50 %" in outcome.out
    assert "regions and heatmaps/ still follow the pixel threshold of the scoring" in outcome.err
    assert model.read_bytes() == before, "the model is untouched"
    page = (out / "report.html").read_bytes()
    (out / "report.html").unlink()
    assert f"wrote {out / 'report.html'}" in done("report", out)
    assert (out / "report.html").read_bytes() == page
    tables = {name: (out / name).read_bytes() for name in ("scores.csv", "scores.jsonl", "units.csv")}
    done("threshold", out, "--false-alarm-rate", "0.5")
    assert {name: (out / name).read_bytes() for name in tables} == tables


def test_threshold_leaves_the_collector_of_unused_objects_on(tmp_path: Path) -> None:
    assert run("threshold", tmp_path, "--false-alarm-rate", "0.3").code == 1
    assert gc.isenabled()


def test_threshold_changes_nothing_where_the_pictures_are_damaged(model: Path, images: Path, tmp_path: Path) -> None:
    done("score", model, images, "--out", tmp_path / "run")
    (tmp_path / "run" / "pictures.npz").write_bytes((tmp_path / "run" / "pictures.npz").read_bytes()[:2000])
    before = (tmp_path / "run" / "run.json").read_bytes()
    outcome = run("threshold", tmp_path / "run", "--false-alarm-rate", "0.3")
    assert (outcome.code, "pictures.npz" in outcome.err) == (1, True)
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_a_file_of_settings_keeps_its_seed_and_may_be_changed_in_part(part_folder: Path, tmp_path: Path) -> None:
    """What a change needs may stand in the file: the policy alone would lack its limits."""
    text = "seed = 5\n[intensity]\nlow = 0\nhigh = 255\n[model]\nwidth = 4\n[training]\nsteps = 2\ncrop_px = 32\n"
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    common = ("fit", part_folder / "train", "--config", tmp_path / "mine.toml", "--set", "intensity.policy=window")
    for more, seed in (((), 5), (("--seed", "6"), 6)):
        done(*common, *more, "--out", tmp_path / "m.safetensors", "--overwrite")
        config = Detector.load(tmp_path / "m.safetensors", "cpu").config
        assert (config.seed, config.intensity.policy, config.intensity.high) == (seed, "window", 255)


def test_preview_draws_pairs_of_rows(part_folder: Path, tmp_path: Path) -> None:
    sheets = []
    for seed in ("0", "0", "1"):
        done("preview", part_folder, "--out", tmp_path / "sheet.png", "--seed", seed, "--overwrite")
        sheets.append((tmp_path / "sheet.png").read_bytes())
    with Picture.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (6 * 64, 4 * 64), "twelve images: two rows of six, and their damaged twins"
    assert sheets[0] == sheets[1] != sheets[2]


def test_preview_shows_the_damage_of_a_file_of_settings(part_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[training]\ncrop_px = 32\n", encoding="utf-8")
    done("preview", part_folder, "--config", tmp_path / "mine.toml", "--out", tmp_path / "sheet.png")
    with Picture.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (6 * 32, 4 * 32), "its crops"
    both = run("preview", part_folder, "--config", tmp_path / "mine.toml", "--preset", "smoke")
    assert both.code == 2
    assert "both name the settings" in both.error


@pytest.mark.parametrize("n_images", [2, 5, 7])
def test_preview_of_few_images(part_folder: Path, tmp_path: Path, n_images: int) -> None:
    for number in range(n_images):
        (tmp_path / "few").mkdir(exist_ok=True)
        shutil.copy(part_folder / "train" / "good" / f"{number:03d}.png", tmp_path / "few")
    done("preview", tmp_path / "few", "--out", tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 1000


class _BeganError(Exception):
    """Stands for the beginning of the work."""


@pytest.mark.parametrize(
    ("arguments", "work"),
    [
        (["fit", "DATA", "--out", "m.safetensors"], "anomaly_ae.fitting.fit"),
        (["calibrate", "MODEL", "DATA"], "anomaly_ae.fitting.calibrate"),
        (["score", "MODEL", "DATA", "--out", "run"], "anomaly_ae.evaluation.score"),
        (["evaluate", "MODEL", "DATA", "--out", "run"], "anomaly_ae.evaluation.evaluate"),
        (["demo", "--out", "demo"], "anomaly_ae.demo.make_demo"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_every_command_that_computes_takes_a_number_of_threads(
    arguments: list[str], work: str, smoke_model_file: Path, small_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def begin(*args: object, **kwargs: object) -> None:
        seen.append(torch.get_num_threads())
        raise _BeganError

    monkeypatch.setattr(work, begin)
    places = {"DATA": str(small_set), "MODEL": str(smoke_model_file)}
    before = torch.get_num_threads()
    try:
        for option in ([], ["--threads", str(before + 1)]):
            with pytest.raises(_BeganError):
                run(*(places.get(word, word) for word in arguments), *option)
    finally:
        torch.set_num_threads(before)
    assert seen == [before, before + 1]


# --- exit codes ------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["fit"], "Missing argument"),
        (["fit", "DATA"], "Missing option '--out'"),
        (["fit", "DATA", "--out", "m.safetensors", "--stepps", "3"], "No such option: --stepps"),
        (["fit", "DATA", "--out", "m.safetensors", "--seed", "-1"], "Invalid value for '--seed'"),
        (["fit", "DATA", "--out", "m.safetensors", "--threads", "0"], "Invalid value for '--threads'"),
        (["fit", "DATA", "--out", "m.pt"], "ends in .safetensors"),
        (["fit", "DATA", "--out", "m.safetensors", "--preset", "fast", "--config", "f.toml"], "give one of them"),
        (["fit", "DATA", "--out", "m.safetensors", "--preset", "smok"], "unknown preset 'smok' (one of"),
        (["fit", "DATA", "--out", "m.safetensors", "--config", "no.toml"], "cannot read no.toml"),
        (["fit", "DATA", "--out", "m.safetensors", "--set", "training.stepps=3"], "did you mean 'training.steps'?"),
        (["fit", "DATA", "--out", "m.safetensors", "--set", "training.steps=0"], "outside of [1, 1"),
        (["fit", "DATA", "--out", "m.safetensors", "--set", "training.steps=many"], "expected int"),
        (["fit", "DATA", "--out", "m.safetensors", "--set", "steps"], "section.key=value"),
        (["fit", "DATA", "--out", "m.safetensors", "--preset", "smoke", "--device", "abacus"], "no device 'abacus'"),
        (["fit", "DATA", "--out", "m.safetensors", "--false-alarm-rate", "often"], "'often' is not a false-alarm rate"),
        (["fit", "DATA", "--out", "m.safetensors", "--confidence", "2"], "'2' is not a confidence"),
        (["fit", "DATA", "--out", "m.safetensors", "--group-regex", "(lot"], "is no regular expression"),
        (["scan", "DATA", "--folds", "3"], "--folds needs --out"),
        (["scan", "DATA", "--folds", "3", "--out", "m.csv", "--seed", "-5"], "Invalid value for '--seed'"),
        (["score", "MODEL", "DATA"], "Missing option '--out'"),
        (["score", "MODEL", "DATA", ".", "--out", "run"], "give one manifest alone"),
        (["score", "MODEL", "DATA", "--out", "run", "--heatmaps", "some"], "one of: none, anomalous, all"),
        (["score", "MODEL", "DATA", "--out", "run", "--device", "abacus"], "no device 'abacus'"),
        (["evaluate", "MODEL", "DATA", "--out", "run", "--by", "statoin"], "no column 'statoin'"),
        (["evaluate", "MODEL", "DATA", "--out", "run", "--defect-rate", "2"], "'2' is not a defect rate"),
        (["preview", "DATA", "--preset", "smok"], "unknown preset 'smok'"),
        (["preview", "DATA", "--out", "sheet.jpg"], "ends in .png"),
        (["compare", "run", "--out", "table.txt"], "tables are written as .csv"),
        (["demo", "--preset", "smok"], "unknown preset 'smok'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_2(
    arguments: list[str],
    words: str,
    smoke_model_file: Path,
    small_set: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    places = {"DATA": str(small_set), "MODEL": str(smoke_model_file)}
    outcome = run(*(places.get(word, word) for word in arguments))
    assert outcome.code == 2
    assert words in outcome.err
    assert outcome.out == ""
    assert names(tmp_path / "here") == set(), "nothing was written"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["scan", "nowhere"], "nowhere does not exist"),
        (["fit", "nowhere", "--out", "m.safetensors"], "nowhere does not exist"),
        (["fit", "DATA", "--preset", "smoke", "--out", "m.safetensors", "--false-alarm-rate", "0.1%"], "at least 999"),
        (["fit", "DATA", "--preset", "smoke", "--out", "a_file/m.safetensors"], "a_file"),
        (["calibrate", "nowhere.safetensors", "DATA"], "cannot read nowhere.safetensors"),
        (["calibrate", "MODEL", "NEW", "--false-alarm-rate", "1%"], "at least 99"),
        (["score", "nowhere.safetensors", "DATA", "--out", "run"], "cannot read nowhere.safetensors"),
        (["score", "MODEL", "nowhere", "--out", "run"], "nowhere does not exist"),
        (["score", "MODEL", "DATA", "--out", "a_file/run"], "a_file"),
        (["evaluate", "MODEL", "NEW", "--out", "run"], "no labelled test images"),
        (["info", "nowhere.safetensors"], "cannot read nowhere.safetensors"),
        (["threshold", "nowhere"], "give a folder that score or evaluate wrote"),
        (["report", "nowhere"], "cannot read"),
        (["preview", "nowhere"], "nowhere does not exist"),
        (["preview", "DATA", "--out", "a_file/sheet.png"], "a_file"),
        (["fit", "DATA", "--out", "a_file/m.safetensors"], "cannot write a_file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_could_not_do_it_is_1(
    arguments: list[str],
    words: str,
    model: Path,
    new_normals: Path,
    small_set: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("a_file").write_text("mine", encoding="utf-8")
    before = model.read_bytes()
    places = {"DATA": str(small_set), "MODEL": str(model), "NEW": str(new_normals)}
    outcome = run(*(places.get(word, word) for word in arguments))
    assert outcome.code == 1
    assert words in outcome.error
    assert outcome.error.endswith(")"), "the message ends with the cure"
    assert names(tmp_path / "here") == {"a_file"}
    assert Path("a_file").read_text("utf-8") == "mine"
    assert model.read_bytes() == before


def test_some_unreadable_is_3(model: Path, new_normals: Path, small_set: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n")
    with small_set.open("a", encoding="utf-8") as file:
        file.write("broken.png,normal,train,x\n")
    scanned = run("scan", small_set, "--out", tmp_path / "scanned.csv")
    assert scanned.code == 3
    assert "broken.png" in scanned.out
    assert len(table(tmp_path / "scanned.csv")) == 25, "it stays in the manifest"

    drawn = run("preview", small_set, "--out", tmp_path / "sheet.png")
    assert drawn.code == 3
    assert "left out: " in drawn.err
    assert "wrote" in drawn.out

    fitted = run("fit", small_set, "--preset", "smoke", "--out", tmp_path / "m.safetensors")
    assert fitted.code == 3
    assert "left out: " in fitted.err
    assert "normal images that could not be used: 1; they are named above" in fitted.out
    assert Detector.load(tmp_path / "m.safetensors", "cpu").provenance["n_images"]["train"] > 0

    folder = tmp_path / "normals"
    shutil.copytree(new_normals, folder)
    shutil.copy(broken, folder)
    calibrated = run("calibrate", model, folder)
    assert calibrated.code == 3
    assert "normal images that could not be used: 1; they are named above" in calibrated.out
    assert len(Detector.load(model, "cpu").calibrated[0].image) == 40

    scored = run("score", model, folder, "--out", tmp_path / "run")
    assert scored.code == 3
    assert "40 images scored" in scored.out
    assert "1 could not be inspected; failures.csv names them" in scored.out
    assert len(table(tmp_path / "run" / "failures.csv")) == 1


def _ctrl_c() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("command", ["score", "evaluate"])
def test_a_stopped_run_is_130_and_written(
    command: str, smoke_model_file: Path, small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    press_ctrl_c(monkeypatch, "scoring", at=3)
    outcome = run(command, smoke_model_file, small_set, "--out", tmp_path / "run")
    assert outcome.code == 130
    assert len(table(tmp_path / "run" / "scores.csv")) == 2
    assert "stopped after 2 of" in outcome.err
    assert outcome.err.rstrip().endswith("aborted")
    assert "warning: the run was stopped before all images were scored" in outcome.out
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("arguments", [["scan", "DATA"], ["score", "MODEL", "DATA", "--out", "RUN"]])
def test_aborted_before_anything_is_130_and_leaves_nothing(
    arguments: list[str], smoke_model_file: Path, small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    press_ctrl_c(monkeypatch, "reading", at=1)
    press_ctrl_c(monkeypatch, "scoring", at=1)
    places = {"DATA": small_set, "MODEL": smoke_model_file, "RUN": tmp_path / "run"}
    outcome = run(*(places.get(word, word) for word in arguments))
    assert outcome.code == 130
    assert "aborted" in outcome.err
    assert "Traceback" not in outcome.err
    assert names(tmp_path) == {"small.csv"}


@POSIX
@pytest.mark.parametrize("command", ["score", "evaluate"])
def test_sigterm_ends_a_run_as_ctrl_c_does(
    command: str, smoke_model_file: Path, small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    press_ctrl_c(monkeypatch, "scoring", at=3, press=lambda: signal.raise_signal(signal.SIGTERM))
    with _harmless_sigterm():
        outcome = run(command, smoke_model_file, small_set, "--out", tmp_path / "run")
    assert outcome.code == 130
    assert "stopped after 2 of" in outcome.err
    assert names(tmp_path) == {"small.csv", "run"}
    assert signal.getsignal(signal.SIGTERM) == before, "the handler is put back"


@contextmanager
def _harmless_sigterm() -> Iterator[None]:
    """Without this a program that does not handle SIGTERM would end the tests."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    yield
    signal.signal(signal.SIGTERM, before)


def press_ctrl_c(monkeypatch: pytest.MonkeyPatch, stage: str, at: int, press: Callable[[], None] = _ctrl_c) -> None:
    """Raise what Ctrl-C raises when a stage reaches a step."""
    from anomaly_ae.progress import TerminalProgress

    original = TerminalProgress.progress

    def progress(self: TerminalProgress, now: str, n_done: int, total: int, detail: str) -> None:
        if (now, n_done) == (stage, at):
            press()
        original(self, now, n_done, total, detail)

    monkeypatch.setattr(TerminalProgress, "progress", progress)


# --- Ctrl-C in fit ------------------------------------------------------------


@pytest.fixture
def signals_at_step(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, int], None]]:
    """Return a function that has so many signals sent to this process at a step of the training."""
    from anomaly_ae.progress import TerminalProgress

    original = TerminalProgress.progress
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    plan: dict[str, int] = {}

    def progress(self: TerminalProgress, stage: str, n_done: int, total: int, detail: str) -> None:
        if stage == "training" and n_done == plan.get("step"):
            for number in (signal.SIGINT, signal.SIGTERM)[: plan["n"]]:
                signal.raise_signal(number)
        original(self, stage, n_done, total, detail)

    def arrange(step: int, n: int) -> None:
        plan.update(step=step, n=n)

    monkeypatch.setattr(TerminalProgress, "progress", progress)
    yield arrange
    assert {number: signal.getsignal(number) for number in before} == before, "the handlers are put back"


@POSIX
def test_first_ctrl_c_keeps_what_was_learned(
    small_set: Path, tmp_path: Path, signals_at_step: Callable[[int, int], None]
) -> None:
    signals_at_step(12, 1)
    outcome = run("fit", small_set, "--preset", "smoke", "--out", tmp_path / "m.safetensors")
    assert outcome.code == 0, outcome.err
    assert "stopping: calibrating with what was learned so far; once more to abort" in outcome.err
    assert "stopped after 12 of 20 steps: asked to stop" in outcome.err
    assert "12 steps" in done("info", tmp_path / "m.safetensors")
    assert names(tmp_path) == {"small.csv", "m.safetensors"}


@POSIX
def test_second_ctrl_c_aborts_and_resume_goes_on(
    small_set: Path, tmp_path: Path, signals_at_step: Callable[[int, int], None]
) -> None:
    signals_at_step(12, 2)  # a checkpoint was written at step 10
    command = ("fit", small_set, "--preset", "smoke", "--out", tmp_path / "m.safetensors")
    outcome = run(*command)
    assert outcome.code == 130
    assert outcome.err.rstrip().endswith("aborted")
    assert f"{tmp_path / 'm.checkpoint.safetensors'} keeps what was learned: --resume goes on" in outcome.err
    assert names(tmp_path) == {"small.csv", "m.checkpoint.safetensors"}
    signals_at_step(-1, 0)
    done(*command, "--resume")
    assert names(tmp_path) == {"small.csv", "m.safetensors"}
    done("fit", small_set, "--preset", "smoke", "--out", tmp_path / "whole.safetensors")
    hashes = [Detector.load(tmp_path / f"{name}.safetensors", "cpu").weights_sha256 for name in ("m", "whole")]
    assert hashes[0] == hashes[1]


@POSIX
def test_a_checkpoint_of_another_fit_is_refused(
    small_set: Path, tmp_path: Path, signals_at_step: Callable[[int, int], None]
) -> None:
    signals_at_step(12, 2)
    command = ("fit", small_set, "--preset", "smoke", "--out", tmp_path / "m.safetensors")
    assert run(*command).code == 130
    signals_at_step(-1, 0)
    outcome = run(*command, "--resume", "--seed", "1")
    assert outcome.code == 1
    assert "belongs to another fit" in outcome.error
    assert names(tmp_path) == {"small.csv", "m.checkpoint.safetensors"}
    done(*command)
    assert names(tmp_path) == {"small.csv", "m.safetensors"}, "without --resume it starts anew"


def test_a_fit_that_is_refused_keeps_the_checkpoint_of_an_older_one(small_set: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "m.checkpoint.safetensors"
    checkpoint.write_bytes(b"hours of training")
    command = ("fit", small_set, "--preset", "smoke", "--out", tmp_path / "m.safetensors")
    assert run(*command, "--false-alarm-rate", "0.1%").code == 1
    assert checkpoint.read_bytes() == b"hours of training"
    done(*command)
    assert names(tmp_path) == {"small.csv", "m.safetensors"}


# --- what exists is not replaced unasked ------------------------------------------------------------


def test_a_model_that_came_while_another_was_learned_is_kept_and_so_is_the_new_one(
    small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, learn = tmp_path / "m.safetensors", fitting.fit

    def slowly(*given: Any, **settings: Any) -> Detector:
        out.write_bytes(b"another")
        return learn(*given, **settings)

    monkeypatch.setattr(fitting, "fit", slowly)
    outcome = run("fit", small_set, "--preset", "smoke", "--set", "training.steps=2", "--out", out)
    assert outcome.code == 1
    assert f"the new model is {tmp_path / 'm-2.safetensors'}" in outcome.error
    assert out.read_bytes() == b"another"
    Detector.load(tmp_path / "m-2.safetensors", "cpu")


@pytest.mark.parametrize(
    ("arguments", "target"),
    [
        (["fit", "DATA", "--preset", "smoke", "--out", "OUT"], "out.safetensors"),
        (["scan", "DATA", "--out", "OUT"], "out.csv"),
        (["preview", "DATA", "--out", "OUT"], "out.png"),
        (["score", "MODEL", "DATA", "--out", "OUT"], "out"),
        (["evaluate", "MODEL", "DATA", "--out", "OUT"], "out"),
        (["demo", "--preset", "smoke", "--out", "OUT"], "out"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_an_existing_file_is_replaced_only_when_asked(
    arguments: list[str], target: str, smoke_model_file: Path, small_set: Path, tmp_path: Path
) -> None:
    out = tmp_path / target
    out.write_text("mine", encoding="utf-8")
    places: dict[str, Any] = {"DATA": small_set, "MODEL": smoke_model_file, "OUT": out}
    command = [places.get(word, word) for word in arguments]
    outcome = run(*command)
    assert outcome.code == 1
    assert "exists already" in outcome.error
    assert "--overwrite" in outcome.error
    assert out.read_text("utf-8") == "mine"
    if out.suffix:
        done(*command, "--overwrite")
        assert out.read_bytes() != b"mine"
    else:  # a run is a folder, and a file is none
        assert "is no run" in run(*command, "--overwrite").error
        assert out.read_text("utf-8") == "mine"
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("command", ["score", "evaluate", "demo"])
def test_a_foreign_folder_is_never_replaced(
    command: str, smoke_model_file: Path, small_set: Path, tmp_path: Path
) -> None:
    album = tmp_path / "album"
    album.mkdir()
    (album / "holiday.jpg").write_bytes(b"dear")
    arguments = [] if command == "demo" else [smoke_model_file, small_set]
    for options in ([], ["--overwrite"]):
        outcome = run(command, *arguments, "--out", album, *options)
        assert outcome.code == 1
    assert "album is no run" in outcome.error
    assert (album / "holiday.jpg").read_bytes() == b"dear"
    assert names(tmp_path) == {"small.csv", "album"}


@pytest.mark.parametrize("target", ["out.safetensors", "out.csv", "out.png"])
def test_a_folder_is_not_replaced_by_a_file(target: str, small_set: Path, tmp_path: Path) -> None:
    command = {".safetensors": "fit", ".csv": "scan", ".png": "preview"}[Path(target).suffix]
    (tmp_path / target).mkdir()
    outcome = run(command, small_set, "--out", tmp_path / target, "--overwrite")
    assert outcome.code == 1
    assert "is a folder" in outcome.error


def test_a_fold_that_exists_stops_scan_before_any_is_written(small_set: Path, tmp_path: Path) -> None:
    (tmp_path / "k_2.csv").write_text("mine", encoding="utf-8")
    outcome = run("scan", small_set, "--folds", "3", "--out", tmp_path / "k.csv")
    assert outcome.code == 1
    assert "k_2.csv exists already" in outcome.error
    assert names(tmp_path) == {"small.csv", "k_2.csv"}


def test_a_run_is_replaced_when_asked(smoke_model_file: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done("score", smoke_model_file, images, "--out", out)
    (out / "pixels.csv").write_text("x", encoding="utf-8")
    done("score", smoke_model_file, images / "000.png", "--out", out, "--overwrite")
    assert len(table(out / "scores.csv")) == 1
    assert not (out / "pixels.csv").exists()


# --- in a shell ------------------------------------------------------------


def test_an_error_in_a_shell_is_one_line(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "anomaly_ae"]
    command = [*program, "info", "no.safetensors"]
    found = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 1
    assert found.stdout == ""
    assert found.stderr == "error: cannot read no.safetensors: No such file or directory (check the path)\n"


@POSIX
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_shell_ends_fit_with_a_model(number: signal.Signals, small_set: Path, tmp_path: Path) -> None:
    model = tmp_path / "m.safetensors"
    settings = ["--preset", "smoke", "--set", "training.steps=1000000", "--set", "training.patience=1000"]
    command = [sys.executable, "-m", "anomaly_ae", "fit", str(small_set), *settings, "--out", str(model)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr
    while "training on" not in (line := process.stderr.readline()):
        assert line, "it ended before the training began"
    while not (tmp_path / "m.checkpoint.safetensors").exists():
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "asked to stop" in err
    assert f"wrote {model}" in out
    assert names(tmp_path) == {"small.csv", "m.safetensors"}
