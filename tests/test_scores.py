"""`evaluate --scores`: the scores and maps of any tool, without a model."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from command import left_behind, run
from PIL import Image as Picture

from anomaly_ae.calibration import Asked, thresholds_from
from anomaly_ae.detector import Detector
from anomaly_ae.errors import CalibrationError, DataError, OutputError, UsageError
from anomaly_ae.evaluation import RunOptions, RunResult, evaluate, evaluate_scores
from anomaly_ae.evaluation.theirs import TheirMaps, read_their_scores
from anomaly_ae.listener import Listener
from anomaly_ae.manifest import Manifest, load_manifest
from anomaly_ae.metrics import roc_auc
from anomaly_ae.report import write_report
from anomaly_ae.results import redecide

N_NORMAL, N_ANOMALOUS, N_CALIBRATION, SIDE = 14, 9, 40, 24


def one_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@dataclass
class Tool:
    """A data set with masks, and what some tool says of it: scores, and a map per image."""

    folder: Path
    manifest: Manifest
    scores: dict[str, float]
    maps: Path

    def table(self, name: str = "scores.csv", **changes: Any) -> Path:
        return write_csv(self.folder / name, [{"path": p, "score": s} for p, s in (self.scores | changes).items()])

    def evaluate(self, out: str, with_maps: bool = True, **options: Any) -> RunResult:
        maps = self.maps if with_maps else None
        return evaluate_scores(self.table(), self.manifest, self.folder / out, RunOptions(**options), maps)


@pytest.fixture
def tool(tmp_path: Path) -> Tool:
    """Defects are bright squares of growing size; the score of an image is the maximum of its map."""
    rng = np.random.default_rng(3)
    rows, scores = [], {}
    for kind, n, split in (
        ("good", N_NORMAL, "test"),
        ("spot", N_ANOMALOUS, "test"),
        ("more", N_CALIBRATION, "calibration"),
    ):
        for i in range(n):
            name = f"{kind}/{i}.png"
            pixels, anomaly_map = rng.integers(90, 110, (SIDE, SIDE)), rng.gamma(2, 1, (SIDE, SIDE))
            mask = np.zeros((SIDE, SIDE), bool)
            if kind == "spot":
                mask[3 : 4 + i, 5 : 7 + i] = True
                pixels[mask], anomaly_map[mask] = 160, anomaly_map[mask] + i
            for path, array in ((name, pixels), (f"masks/{kind}/{i}.png", mask * 255)):
                (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
                Picture.fromarray(array.astype(np.uint8)).save(tmp_path / path)
            target = tmp_path / "maps" / f"{kind}/{i}.npy"
            target.parent.mkdir(parents=True, exist_ok=True)
            np.save(target, anomaly_map.astype(np.float32))
            scores[name] = float(anomaly_map.astype(np.float32).max())
            rows.append({
                "path": name, "label": "anomalous" if kind == "spot" else "normal", "split": split,
                "mask": f"masks/spot/{i}.png" if kind == "spot" else "", "station": "AB"[i % 2],
            })  # fmt: skip
    manifest = load_manifest(write_csv(tmp_path / "data.csv", rows))
    return Tool(tmp_path, manifest, scores, tmp_path / "maps")


def without_calibration(tool: Tool) -> None:
    tool.scores = {path: score for path, score in tool.scores.items() if not path.startswith("more")}


# --- the same figures ------------------------------------------------------------


def test_own_scores_and_maps_give_the_figures_of_the_model(
    part_folder: Path, smoke_detector: Detector, tmp_path: Path
) -> None:
    manifest = load_manifest(part_folder)
    options = RunOptions(maps=True)
    ours = evaluate(smoke_detector, manifest, tmp_path / "ours", options).metrics
    theirs = evaluate_scores(
        tmp_path / "ours" / "scores.csv", manifest, tmp_path / "theirs", options, tmp_path / "ours" / "maps"
    ).metrics
    assert ours
    assert theirs
    ranking = ("roc_auc", "average_precision", "shortcuts", "fpr_at_95_sensitivity", "pg", "pb")
    assert {name: theirs["image"][name] for name in ranking} == {name: ours["image"][name] for name in ranking}
    pixels = [name for name in ours["pixel"] if name != "at_threshold"]
    assert {name: theirs["pixel"][name] for name in pixels} == {name: ours["pixel"][name] for name in pixels}
    assert theirs["image"]["at_threshold"] == theirs["image"]["at_defect_rate"] == []
    written = [table(tmp_path / name / "pixels.csv") for name in ("ours", "theirs")]
    assert [row["aupimo"] for row in written[0]] == [row["aupimo"] for row in written[1]]
    assert {row["dice"] for row in written[1]} == {""}, "no calibrated pixel threshold, no Dice"


def test_calibration_rows_set_the_thresholds(tool: Tool) -> None:
    result = tool.evaluate("run", by=("station",), defect_rates=(0.02,))
    info, metrics = one_json(tool.folder / "run/run.json"), one_json(tool.folder / "run/metrics.json")
    limit = info["threshold"]["image"]
    assert (limit["n"], limit["rule"]) == (N_CALIBRATION, "false_alarm_rate")
    calibration = sorted(score for path, score in tool.scores.items() if path.startswith("more"))
    assert calibration[limit["rank"] - 1] < limit["value"]
    normal = [score for path, score in tool.scores.items() if path.startswith("good")]
    anomalous = [score for path, score in tool.scores.items() if path.startswith("spot")]
    at = metrics["image"]["at_threshold"][0]
    assert at["sensitivity"]["value"] == np.mean(np.array(anomalous) >= limit["value"])
    assert at["false_alarm_rate"]["value"] == np.mean(np.array(normal) >= limit["value"])
    expected = roc_auc([False] * len(normal) + [True] * len(anomalous), [*normal, *anomalous])
    assert metrics["image"]["roc_auc"] == expected.as_json()
    assert set(metrics["by"]["station"]) == {"A", "B"}
    assert [stream["defect_rate"] for stream in metrics["image"]["at_defect_rate"]] == [0.02]
    assert result.n_anomalous == sum(score >= limit["value"] for score in (*normal, *anomalous))
    pixel = metrics["pixel"]["at_threshold"][0]
    assert pixel["threshold"] == info["threshold"]["pixel"]["value"] == limit["value"], "scores are maxima of maps"
    assert {float(row["pixel_threshold"]) for row in table(tool.folder / "run/scores.csv")} == {limit["value"]}
    assert pixel["dice_per_image"]["n_anomalous"] == N_ANOMALOUS
    assert left_behind(tool.folder) == []


def test_a_rate_is_asked_for_at_once(tool: Tool) -> None:
    evaluate_scores(tool.table(), tool.manifest, tool.folder / "run", RunOptions(), rate="1/5")
    assert one_json(tool.folder / "run/run.json")["threshold"]["image"]["rate"] == "1/5"
    with pytest.raises(CalibrationError, match="out of reach"):
        evaluate_scores(tool.table(), tool.manifest, tool.folder / "low", RunOptions(), rate="1/1000")
    without_calibration(tool)
    with pytest.raises(CalibrationError, match="without scores of calibration images"):
        evaluate_scores(tool.table(), tool.manifest, tool.folder / "none", RunOptions(), rate="1/5")
    assert not (tool.folder / "none").exists()


def test_calibration_units_that_lack_a_score_set_no_threshold(tool: Tool) -> None:
    samples = [
        s if s.split == "test" else replace(s, unit=f"u{i // 2}", group=f"u{i // 2}")
        for i, s in enumerate(tool.manifest.samples)
    ]
    tool.manifest = replace(tool.manifest, samples=tuple(samples))
    whole = tool.evaluate("whole", with_maps=False)
    lost = samples[-2]
    n_torn = sum(s.unit == lost.unit for s in samples)
    del tool.scores[lost.path]
    torn = tool.evaluate("torn", with_maps=False)
    assert n_torn == 2
    n_before, n_after = (one_json(run.folder / "run.json")["threshold"]["image"]["n"] for run in (whole, torn))
    assert n_after == n_before - n_torn


def test_a_finished_run_is_decided_again(tool: Tool) -> None:
    tool.evaluate("run")
    before = one_json(tool.folder / "run/metrics.json")
    heard: list[str] = []
    asked = redecide(tool.folder / "run", Asked(rate="1/5"), Listener(say=heard.append))
    assert not heard, "there are no regions and no pictures that could follow another threshold"
    calibration = one_json(tool.folder / "run/run.json")["calibration"]
    assert len(calibration["image"]) == N_CALIBRATION
    after = one_json(tool.folder / "run/metrics.json")
    assert after["image"]["at_threshold"][0]["threshold"] == asked.thresholds.image.value
    assert after["image"]["roc_auc"] == before["image"]["roc_auc"]
    page = write_report(tool.folder / "run").read_text("utf-8")
    assert "20 %" in page
    assert "still follow the pixel threshold" not in page


def test_the_pixel_threshold_needs_maps_of_all_calibration_images(tool: Tool) -> None:
    (tool.maps / "more/7.npy").unlink()
    tool.evaluate("run")
    metrics = one_json(tool.folder / "run/metrics.json")
    assert metrics["pixel"]["at_threshold"] == []
    assert metrics["pixel"]["roc_auc"]["value"] is not None
    assert {row["pixel_threshold"] for row in table(tool.folder / "run/scores.csv")} == {""}
    page = (tool.folder / "run/report.html").read_text("utf-8")
    assert "For pixels it is" not in page


def test_without_calibration_rows_there_is_no_threshold_and_the_reason(tool: Tool) -> None:
    without_calibration(tool)
    result = tool.evaluate("run")
    reason = "there are no scores of calibration images"
    assert any(reason in line for line in result.lines())
    assert result.lines()[0] == f"{N_NORMAL + N_ANOMALOUS} images scored", "nothing is decided"
    assert {row["decision"] for row in table(tool.folder / "run/scores.csv")} == {""}
    page = (tool.folder / "run/report.html").read_text("utf-8")
    assert "Without a threshold: 9 anomalous images and 14 normal" in page
    assert reason in page
    assert reason in (tool.folder / "run/methods.md").read_text("utf-8")
    with pytest.raises(DataError, match="no calibration scores"):
        redecide(tool.folder / "run", Asked(rate="1/5"))


# --- whose score it is ------------------------------------------------------------


def test_an_image_is_known_by_path_by_id_and_by_file(tool: Tool, tmp_path: Path) -> None:
    elsewhere = tmp_path / "tables"
    elsewhere.mkdir()
    ids = [sample.id for sample in tool.manifest.samples]
    forms = {"path": ids, "file": [str(tmp_path / name) for name in ids], "from the table": [f"../{n}" for n in ids],
             "windows": [name.replace("/", "\\") for name in ids]}  # fmt: skip
    for names in forms.values():
        rows = [{"path": name, "score": i} for i, name in enumerate(names)]
        found = read_their_scores(write_csv(elsewhere / "s.csv", rows), tool.manifest.samples)
        assert found.scores == {name: float(i) for i, name in enumerate(ids)}
        assert (found.missing, found.n_unknown) == ({}, 0)
    rows = [{"id": name, "path": "one file", "Score": 1} for name in ids]
    assert len(read_their_scores(write_csv(elsewhere / "s.csv", rows), tool.manifest.samples).scores) == len(ids)


def test_images_without_a_usable_score_are_failures_and_cost_nothing_else(tool: Tool) -> None:
    tool.scores |= {"good/0.png": float("nan"), "spot/1.png": "high", "strange.png": 1.0}  # type: ignore[dict-item]
    del tool.scores["good/3.png"]
    result = tool.evaluate("run")
    reasons = {row["id"]: row["reason"] for row in table(tool.folder / "run/failures.csv")}
    assert reasons == {
        "good/0.png": "its score is 'nan'", "spot/1.png": "its score is 'high'", "good/3.png": "no row in scores.csv",
    }  # fmt: skip
    assert result.n_scored == N_NORMAL + N_ANOMALOUS - 3
    assert "1 score of images that are not in the data" in result.warnings
    undecided = {row["unit"] for row in table(tool.folder / "run/units.csv") if row["decision"] == "9"}
    assert undecided == set(reasons)


def test_tables_that_say_nothing_certain_are_refused(tool: Tool) -> None:
    samples = tool.manifest.samples
    with pytest.raises(DataError, match="no column 'score'"):
        read_their_scores(write_csv(tool.folder / "a.csv", [{"path": "good/0.png", "value": 1}]), samples)
    twice = [{"path": "good/0.png", "score": 1}, {"path": str(tool.folder / "good/0.png"), "score": 2}]
    with pytest.raises(DataError, match=r"row 3: a second score of good/0\.png"):
        read_their_scores(write_csv(tool.folder / "b.csv", twice), samples)
    with pytest.raises(DataError, match=r"no row of this data.*'other\.png'"):
        read_their_scores(write_csv(tool.folder / "c.csv", [{"path": "other.png", "score": 1}]), samples)
    with pytest.raises(UsageError, match="no column 'camera'"):
        tool.evaluate("run", by=("camera",))
    with pytest.raises(DataError, match="is no folder"):
        evaluate_scores(tool.table(), tool.manifest, tool.folder / "run", RunOptions(), tool.folder / "nowhere")
    assert not (tool.folder / "run").exists()
    tool.evaluate("run")
    with pytest.raises(OutputError, match="exists already"):
        tool.evaluate("run")


def test_images_that_are_gone_are_measured_all_the_same(tool: Tool) -> None:
    before = tool.evaluate("before").metrics
    (tool.folder / "good/2.png").unlink()
    result = tool.evaluate("run")
    assert "1 image cannot be read: left out of the check on shortcuts" in result.warnings
    assert before
    assert result.metrics
    assert result.metrics["image"]["roc_auc"] == before["image"]["roc_auc"]


def test_a_shortcut_is_the_first_line_of_the_report(tool: Tool) -> None:
    result = tool.evaluate("run", with_maps=False)
    assert result.warnings[0].startswith("mean grey alone separates the classes")
    page = (tool.folder / "run/report.html").read_text("utf-8")
    assert page.index("Shortcut: mean grey alone") < page.index("<h1>")


# --- maps ------------------------------------------------------------


def test_maps_that_cannot_be_used_are_left_out_and_counted(tool: Tool) -> None:
    whole = tool.evaluate("whole").metrics
    (tool.maps / "good/1.npy").unlink()
    np.save(tool.maps / "spot/2.npy", np.zeros((SIDE, SIDE + 1), np.float32))
    np.save(tool.maps / "spot/3.npy", np.full((SIDE, SIDE), np.nan, np.float32))
    result = tool.evaluate("run")
    assert "1 image without a map is left out of the pixel figures: good/1.png" in result.warnings
    assert (
        "2 images whose map or mask cannot be used are left out of the pixel figures: spot/2.png, spot/3.png"
        in result.warnings
    )
    assert whole
    assert result.metrics
    assert result.metrics["pixel"]["aupimo"]["n_anomalous"] == whole["pixel"]["aupimo"]["n_anomalous"] - 2


@pytest.mark.parametrize("name", ["spot/4.tiff", "spot/4.png.tif", "spot_4_png.tiff"])
def test_a_map_may_be_named_in_several_ways(tool: Tool, name: str) -> None:
    sample = next(sample for sample in tool.manifest.samples if sample.id == "spot/4.png")
    expected = TheirMaps(tool.maps).read(sample).anomaly_map
    (tool.maps / "spot/4.npy").unlink()
    tifffile.imwrite(tool.maps / name, expected)
    assert np.array_equal(TheirMaps(tool.maps).read(sample).anomaly_map, expected)


def test_a_map_lies_in_the_folder_even_if_the_path_leads_out_of_it(tool: Tool) -> None:
    (sample,) = load_manifest(write_csv(tool.folder / "maps/out.csv", [{"path": "../good/0.png"}])).samples
    np.save(tool.folder / "good/0.npy", np.zeros((SIDE, SIDE), np.float32))
    assert TheirMaps(tool.maps).find(sample) is None


# --- on the command line ------------------------------------------------------------


def test_on_the_command_line(tool: Tool, tmp_path: Path) -> None:
    scores, data = tool.table(), tmp_path / "data.csv"
    outcome = run("evaluate", data, "--scores", scores, "--maps-from", tool.maps, "--out", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert f"{N_ANOMALOUS} anomalous images: sensitivity " in outcome.out
    assert "14 normal images: false-alarm rate " in outcome.out
    again = run("report", tmp_path / "run")
    assert again.code == 0, again.err


def test_arguments_that_contradict_each_other_are_wrong_usage(tool: Tool, tmp_path: Path) -> None:
    scores, data, out = tool.table(), tmp_path / "data.csv", ("--out", tmp_path / "run")
    wrong = {
        "needed here: DATA": ("evaluate", "m.safetensors", data, "--scores", scores, *out),
        "needed here: MODEL and DATA": ("evaluate", data, *out),
        "--maps-from without --scores": ("evaluate", "m.safetensors", data, "--maps-from", tool.maps, *out),
        "a model has its thresholds": ("evaluate", "m.safetensors", data, "--false-alarm-rate", "0.1", *out),
        "--maps-from DIR": ("evaluate", data, "--scores", scores, "--maps", *out),
        "there is no model to make them": ("evaluate", data, "--scores", scores, "--maps", *out),
        "0 and 1": ("evaluate", data, "--scores", scores, "--defect-rate", "2", *out),
    }
    for text, arguments in wrong.items():
        outcome = run(*arguments)
        assert outcome.code == 2, (text, outcome.err)
        assert text in outcome.error
    assert not (tmp_path / "run").exists()


def test_thresholds_follow_the_rule_of_models(tool: Tool) -> None:
    from anomaly_ae.calibration import CalibrationScores

    tool.evaluate("run")
    info = one_json(tool.folder / "run/run.json")
    scores = CalibrationScores.from_json(info["calibration"])
    assert info["threshold"] == json.loads(json.dumps(thresholds_from(scores).as_json()))


def test_the_column_of_scores_is_the_exact_one(tool: Tool) -> None:
    rows = [{"path": path, "Score": 0.0, "score": score} for path, score in tool.scores.items()]
    found = read_their_scores(write_csv(tool.folder / "both.csv", rows), tool.manifest.samples)
    assert found.scores == pytest.approx(tool.scores)
    rows = [{"path": path, "Score": 0.0, "SCORE": score} for path, score in tool.scores.items()]
    with pytest.raises(DataError, match="Score and SCORE"):
        read_their_scores(write_csv(tool.folder / "two.csv", rows), tool.manifest.samples)


def test_scores_with_a_decimal_comma_are_named(tool: Tool) -> None:
    rows = [{"path": path, "score": f"{score:.3f}".replace(".", ",")} for path, score in tool.scores.items()]
    path = write_csv(tool.folder / "comma.csv", rows)
    with pytest.raises(DataError, match=r"of 23; the first: its score is .\d+,\d+. \(give their scores"):
        evaluate_scores(path, tool.manifest, tool.folder / "run", RunOptions())


def test_figures_of_units_are_said_beside_those_of_images(tool: Tool) -> None:
    assert not any(line.startswith("units: ") for line in tool.evaluate("images").lines())
    samples = tuple(replace(s, unit=f"{s.label}{i // 2}", group=f"{s.label}{i // 2}")
                    for i, s in enumerate(tool.manifest.samples))  # fmt: skip
    tool.manifest = replace(tool.manifest, samples=samples)
    result = tool.evaluate("units")
    units = result.metrics["unit"] if result.metrics else {}
    assert f"units: ROC-AUC {units['roc_auc']['value']:.3f}" in "\n".join(result.lines())
    n = units["roc_auc"]["n_anomalous"]
    assert any(line.startswith(f"units: {n} anomalous units: sensitivity") for line in result.lines())
