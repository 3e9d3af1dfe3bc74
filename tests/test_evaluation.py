"""Runs: samples through the detector into a folder of tables, figures, pictures and maps."""

from __future__ import annotations

import csv
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import tifffile
from command import left_behind
from PIL import Image as Picture

from anomaly_ae.calibration import Asked, thresholds_from
from anomaly_ae.config import config_from_dict
from anomaly_ae.detector import Detector
from anomaly_ae.errors import DataError, OutputError, UsageError
from anomaly_ae.evaluation import RunOptions, evaluate, new_folder, refuse_existing, score, test_samples
from anomaly_ae.listener import Listener
from anomaly_ae.loading import read_sample
from anomaly_ae.manifest import Manifest, load_manifest, manifest_from_paths
from anomaly_ae.metrics import PixelMap, pixel_metrics, roc_auc
from anomaly_ae.readers import image_sha256, read_mask
from anomaly_ae.records import Sample
from anomaly_ae.report import write_report
from anomaly_ae.results import SCORE_COLUMNS, redecide
from anomaly_ae.results.tables import read_csv

test_samples.__test__ = False  # type: ignore[attr-defined]  # a function of the package, no test

N_IMAGES = 15 + 24
"""Readable test images of `part_folder`."""


def strict(text: str) -> Any:
    """Parse JSON as the standard has it: without NaN and Infinity."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def lines_of(run: Path) -> list[Any]:
    return [strict(line) for line in (run / "scores.jsonl").read_text("utf-8").splitlines()]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def one_json(path: Path) -> Any:
    return strict(path.read_text("utf-8"))


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Manifest:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return load_manifest(path)


def manifest_rows(part_folder: Path) -> list[dict[str, Any]]:
    """The test images of `part_folder`, three to a unit, with a station: what no folder can say."""
    rows: list[dict[str, Any]] = []
    for path in sorted((part_folder / "test").rglob("*.png")):
        defect = "" if path.parent.name == "good" else path.parent.name
        mask = part_folder / "ground_truth" / defect / f"{path.stem}_mask.png"
        number = int(path.stem)
        rows.append({
            "path": path.as_posix(), "label": "anomalous" if defect else "normal", "defect": defect,
            "mask": mask.as_posix() if defect else "", "unit": f"{path.parent.name}-{number // 3}",
            "id": f"{path.parent.name}/{path.name}", "station": "AB"[number % 2], "shift": "early",
        })  # fmt: skip
    return rows


def broken_row(folder: Path, name: str, unit: str) -> dict[str, Any]:
    (folder / name).write_bytes(b"no image")
    return {"path": name, "label": "normal", "defect": "", "mask": "", "unit": unit, "id": name, "station": "A",
            "shift": "early"}  # fmt: skip


@pytest.fixture(scope="module")
def manifest(part_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """All test images, and two files that are none: one in a unit with good images, one by itself."""
    folder = tmp_path_factory.mktemp("manifest")
    rows = manifest_rows(part_folder)
    broken = [broken_row(folder, "broken.png", "good-0"), broken_row(folder, "alone.png", "alone")]
    return write_csv(folder / "parts.csv", [rows[0], *broken, *rows[1:]])


@pytest.fixture(scope="module")
def run(smoke_detector: Detector, manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation of `manifest` with everything a run can keep. Nobody changes it."""
    out = tmp_path_factory.mktemp("runs") / "deep" / "run"
    options = RunOptions(maps=True, heatmaps="all", by=("station",))
    result = evaluate(smoke_detector, manifest, out, options)
    assert (result.n_scored, len(result.failures)) == (N_IMAGES, 2)
    return out


@pytest.fixture
def few(part_folder: Path, tmp_path: Path) -> Manifest:
    """Four normal images and four with a defect."""
    rows = manifest_rows(part_folder)
    normal = [row for row in rows if not row["defect"]][:4]
    return write_csv(tmp_path / "few.csv", [*normal, *[row for row in rows if row["defect"]][::6]])


# --- what a run holds ------------------------------------------------------------


def test_a_run_holds_the_documented_files_and_no_others(run: Path) -> None:
    document = Path(__file__).resolve().parent.parent / "docs" / "reference" / "results.md"
    first_table = document.read_text("utf-8").split("\n## ")[0]
    documented = set(re.findall(r"^\| `([\w./]+)` \|", first_table, re.M))
    assert {path.name + "/" * path.is_dir() for path in run.iterdir()} == documented - {"dicom/"}, "of score alone"
    assert left_behind(run.parent) == []
    assert [path.name for path in run.parent.iterdir()] == ["run"]


def test_rows_say_what_the_detector_says(run: Path, manifest: Manifest, smoke_detector: Detector) -> None:
    lines = lines_of(run)
    readable = [sample for sample in manifest.samples if sample.id not in {"broken.png", "alone.png"}]
    assert [line["id"] for line in lines] == [sample.id for sample in readable], "in the order of the manifest"
    for line, sample in zip(lines[::7], readable[::7], strict=True):
        alone = smoke_detector.score(sample)
        for name in ("score", "threshold", "display", "p_value", "decision", "image_sha256", "weights_sha256"):
            assert line[name] == getattr(alone, name), name
        assert line["thresholds_sha256"] == alone.thresholds_sha256
        assert line["regions"] == [region.as_json() for region in alone.regions]
        assert line["n_regions"] == len(alone.regions)
        assert line["pixel_threshold"] == smoke_detector.calibrated[1].pixel.value
        assert (line["label"], line["defect"], line["unit"]) == (sample.label, sample.defect, sample.unit)
        assert line["extra"] == dict(sample.extra)
        assert line["milliseconds"] > 0


def test_the_two_tables_of_scores_say_the_same(run: Path) -> None:
    lines, rows = lines_of(run), table(run / "scores.csv")
    assert len(rows) == len(lines) == N_IMAGES
    for line, row in zip(lines, rows, strict=True):
        further = {"extra", "regions", "baselines", "properties", "mask_px"}
        scalars = {name: value for name, value in line.items() if name not in further}
        assert row == {name: str(value) for name, value in (scalars | line["extra"]).items()}


def test_pandas_reads_both_tables(run: Path) -> None:
    by_line, by_row = pandas.read_json(run / "scores.jsonl", lines=True), pandas.read_csv(run / "scores.csv")
    assert by_row["id"].tolist() == by_line["id"].tolist() == [line["id"] for line in lines_of(run)]
    assert by_row["score"].tolist() == pytest.approx([line["score"] for line in lines_of(run)], rel=1e-15)
    assert set(by_row["decision"]) <= {0, 2}


def test_decisions_follow_the_threshold_and_the_regions(run: Path) -> None:
    info = one_json(run / "run.json")
    limits = {name: info["threshold"][name]["value"] for name in ("image", "pixel")}
    assert limits["image"] == limits["pixel"], "with max pooling"
    for line in lines_of(run):
        assert (line["decision"] == 2) == (line["score"] >= line["threshold"] == limits["image"])
        assert (line["n_regions"] > 0) == (line["decision"] == 2), "label and regions never disagree"
        assert line["largest_region_px"] == max((region["area_px"] for region in line["regions"]), default=0)


def test_a_run_keeps_the_settings_of_its_model(run: Path, smoke_detector: Detector) -> None:
    """By them `compare` knows runs that differ in their seed alone."""
    settings = one_json(run / "run.json")["model"]["settings"]
    assert config_from_dict(settings) == smoke_detector.config


def test_failures_stand_in_their_own_table_on_one_line_each(run: Path, manifest: Manifest) -> None:
    failures = table(run / "failures.csv")
    assert [line["path"] for line in failures] == ["broken.png", "alone.png"]
    for line in failures:
        assert (line["format"], line["id"], line["frame"], line["decision"]) == ("1", line["path"], "0", "9")
        assert line["time_utc"].startswith("20")
        assert line["path"] in line["reason"]
        assert "none of PNG, JPEG" in line["reason"]
        assert "\n" not in line["reason"]
    assert (run / "failures.csv").read_text("utf-8").count("\n") == 3
    assert not {"broken.png", "alone.png"} & {row["id"] for row in table(run / "scores.csv")}


def test_units_are_decided_by_their_worst_image_or_not_at_all(run: Path, smoke_detector: Detector) -> None:
    units, lines = table(run / "units.csv"), lines_of(run)
    by_name = {unit["unit"]: unit for unit in units}
    assert set(by_name) == {line["unit"] for line in lines} | {"alone"}
    limit = smoke_detector.calibrated[1].unit.value
    for name, unit in by_name.items():
        own = [line["score"] for line in lines if line["unit"] == name]
        assert unit["n_images"] == str(len(own))
        if name in {"good-0", "alone"}:
            assert (unit["decision"], unit["score"], unit["p_value"]) == ("9", "", "")
        else:
            assert float(unit["score"]) == max(own)
            assert unit["decision"] == ("2" if max(own) >= limit else "0")


# --- figures ------------------------------------------------------------


def test_figures_are_those_of_the_rows(run: Path) -> None:
    metrics, lines = one_json(run / "metrics.json"), lines_of(run)
    labels = [line["label"] == "anomalous" for line in lines]
    groups = [line["group"] for line in lines]
    expected = roc_auc(labels, [line["score"] for line in lines], groups)
    assert metrics["image"]["roc_auc"] == strict(json.dumps(expected.as_json()))
    assert metrics["image"]["roc_auc"]["intervals"][0]["unit"] == "group", "units of several images are groups"
    counts = {"normal": 15, "anomalous": 24, "unlabelled": 0, "failed": 2, "groups": 5 + 2 * 6, "units": 5 + 2 * 6 + 1}
    assert metrics["counts"] == {**counts, "seen_in_fit": 0}
    assert set(metrics["per_defect"]) == {line["defect"] for line in lines} - {""}
    assert metrics["by"].keys() == {"station"}
    assert metrics["by"]["station"].keys() == {"A", "B"}
    assert metrics["unit"]["roc_auc"]["n_normal"] == 4, "one of five normal units was not inspected"
    assert metrics["baselines"] == {name: areas["roc_auc"] for name, areas in metrics["image"]["baselines"].items()}
    mean_grey = roc_auc(labels, [line["baselines"]["mean grey"] for line in lines], groups)
    assert metrics["baselines"]["mean grey"]["value"] == mean_grey.value


def test_pixel_figures_are_those_of_the_maps_and_masks(run: Path, manifest: Manifest, smoke_detector: Detector) -> None:
    def maps() -> list[PixelMap]:
        found = []
        for sample in manifest.samples:
            if sample.id in {"broken.png", "alone.png"}:
                continue
            anomaly_map = smoke_detector.score(sample).anomaly_map
            assert anomaly_map is not None
            found.append(PixelMap(anomaly_map, read_mask(sample.mask) if sample.mask else None))
        return found

    groups = [sample.group for sample in manifest.samples if sample.id not in {"broken.png", "alone.png"}]
    expected, pixel = pixel_metrics(maps, groups=groups), one_json(run / "metrics.json")["pixel"]
    assert pixel["roc_auc"]["intervals"][0]["unit"] == "group"
    assert pixel["roc_auc"] == strict(json.dumps(expected["roc_auc"].as_json()))
    assert pixel["average_precision"]["value"] == expected["average_precision"].value
    assert pixel["au_pro"].keys() == {"0.3", "0.05"}
    assert pixel["au_pro"]["0.3"]["value"] == expected["au_pro"]["0.3"].value
    assert not (run / "temporary_maps").exists()


def test_without_masks_there_are_no_pixel_figures(few: Manifest, smoke_detector: Detector, tmp_path: Path) -> None:
    bare = replace(few, samples=tuple(replace(sample, mask=None) for sample in few.samples))
    result = evaluate(smoke_detector, bare, tmp_path / "run", RunOptions())
    assert result.metrics
    pixel = result.metrics["pixel"]
    for metric in (pixel["roc_auc"], pixel["average_precision"], pixel["au_pro"]["0.3"], pixel["au_pro"]["0.05"]):
        assert (metric["value"], metric["reason"]) == (None, "there are no masks")
    assert not any("pixel" in warning for warning in result.warnings), "nobody asked for them"


def test_images_without_a_readable_mask_are_left_out_and_said(
    few: Manifest, smoke_detector: Detector, tmp_path: Path
) -> None:
    wrong_size = tmp_path / "wrong.png"
    Picture.new("L", (8, 8), 255).save(wrong_size)
    masks = {few.samples[0].id: tmp_path / "missing.png", few.samples[4].id: wrong_size, few.samples[5].id: None}
    samples = tuple(replace(sample, mask=masks.get(sample.id, sample.mask)) for sample in few.samples)
    result = evaluate(smoke_detector, replace(few, samples=samples), tmp_path / "run", RunOptions())
    assert result.n_scored == 8, "the images themselves are inspected"
    assert {warning for warning in result.warnings if "pixel figures" in warning} == {
        "2 images whose mask cannot be used (`scan` says why) are left out of the pixel figures: "
        f"{few.samples[0].id}, {few.samples[4].id}",
        f"1 anomalous image without a mask is left out of the pixel figures: {few.samples[5].id}",
    }
    assert result.metrics
    kept = [sample for sample in samples if sample.id not in masks]
    n_masked = sum(int(read_mask(sample.mask).sum()) for sample in kept if sample.mask)
    assert result.metrics["pixel"]["roc_auc"]["n_anomalous"] == n_masked
    assert result.metrics["pixel"]["roc_auc"]["n_normal"] == len(kept) * 64 * 64 - n_masked


def test_an_anomalous_image_with_an_empty_mask_is_left_out_and_said(
    few: Manifest, smoke_detector: Detector, tmp_path: Path
) -> None:
    empty = tmp_path / "empty.png"
    Picture.new("L", (64, 64), 0).save(empty)
    masks = {few.samples[0].id: empty, few.samples[4].id: empty, few.samples[5].id: empty}
    assert [few.samples[i].label for i in (0, 4, 5)] == ["normal", "anomalous", "anomalous"]
    samples = tuple(replace(sample, mask=masks.get(sample.id, sample.mask)) for sample in few.samples)
    result = evaluate(smoke_detector, replace(few, samples=samples), tmp_path / "run", RunOptions())
    named = f"{few.samples[4].id}, {few.samples[5].id}"
    what = f"2 anomalous images with an empty mask are left out of the pixel figures: {named}"
    assert what in result.warnings
    assert result.metrics
    pixel = result.metrics["pixel"]["roc_auc"]
    assert pixel["n_normal"] + pixel["n_anomalous"] == 6 * 64 * 64, "the empty mask of a normal image is true"


def test_a_normal_image_whose_mask_marks_something_is_left_out_and_said(
    few: Manifest, smoke_detector: Detector, tmp_path: Path
) -> None:
    """A mask of what belongs to the object stands in the wrong column now and then: it marks no defect."""
    body = tmp_path / "body.png"
    Picture.new("L", (64, 64), 255).save(body)
    first, *others = few.samples
    samples = (replace(first, mask=body), *others)
    assert first.label == "normal"
    result = evaluate(smoke_detector, replace(few, samples=samples), tmp_path / "run", RunOptions())
    what = f"1 normal image whose mask marks a defect is left out of the pixel figures: {first.id}"
    assert what in result.warnings
    assert result.metrics
    n_masked = sum(int(read_mask(s.mask).sum()) for s in others if s.mask)
    assert result.metrics["pixel"]["roc_auc"]["n_anomalous"] == n_masked


def test_a_small_disk_costs_the_pixel_figures_and_no_more(
    few: Manifest, smoke_detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anomaly_ae.keeping.MIN_FREE_BYTES", 2**62)
    result = evaluate(smoke_detector, few, tmp_path / "run", RunOptions())
    assert result.metrics
    assert result.metrics["pixel"]["au_pro"]["0.3"]["value"] is None
    assert result.metrics["pixel"]["roc_auc"]["reason"] == "not enough free disk space for the maps"
    assert result.metrics["image"]["roc_auc"]["value"] is not None
    assert "no pixel figures: not enough free disk space for the maps" in result.warnings


@pytest.mark.parametrize("label", ["normal", "anomalous"])
def test_one_class_only(few: Manifest, smoke_detector: Detector, tmp_path: Path, label: str) -> None:
    part = replace(few, samples=few.select(label=label))
    result = evaluate(smoke_detector, part, tmp_path / "run", RunOptions())
    metrics = one_json(tmp_path / "run" / "metrics.json")
    assert metrics["image"]["roc_auc"]["value"] is None
    assert metrics["image"]["roc_auc"]["reason"] in "\n".join(result.lines())
    known = "false_alarm_rate" if label == "normal" else "sensitivity"
    assert metrics["image"]["at_threshold"][0][known]["value"] is not None


def test_the_agreement_of_every_map_with_its_mask(run: Path, manifest: Manifest) -> None:
    rows, metrics = table(run / "pixels.csv"), one_json(run / "metrics.json")
    by_id = {sample.id: sample for sample in manifest.samples}
    at = metrics["pixel"]["at_threshold"][0]
    limit = one_json(run / "run.json")["threshold"]["pixel"]["value"]
    assert at["threshold"] == limit
    assert len(rows) == 24
    for row in rows:
        mask = read_mask(by_id[row["id"]].mask)
        flagged = tifffile.imread(run / "maps" / f"{re.sub('[^A-Za-z0-9_-]', '_', row['id'])}.tiff") >= limit
        hits, false = int((flagged & mask).sum()), int((flagged & ~mask).sum())
        assert [int(row[name]) for name in ("mask_px", "found_px", "false_px")] == [mask.sum(), hits, false]
        assert float(row["dice"]) == pytest.approx(2 * hits / (hits + false + mask.sum()))
    assert at["dice_per_image"]["value"] == pytest.approx(np.mean([float(row["dice"]) for row in rows]))
    assert metrics["pixel"]["aupimo"]["value"] == pytest.approx(np.mean([float(row["aupimo"]) for row in rows]))
    assert at["dice"]["value"] <= metrics["pixel"]["oracle_dice"]["value"], "nothing beats the oracle"
    sizes = {line["id"]: line["mask_px"] for line in lines_of(run) if line["mask_px"]}
    assert sizes == {row["id"]: int(row["mask_px"]) for row in rows}


def test_every_key_and_column_is_documented(run: Path) -> None:
    document = (Path(__file__).resolve().parent.parent / "docs" / "reference" / "results.md").read_text("utf-8")
    sections = {part.split("\n")[0].strip("`"): part for part in document.split("\n## ")}
    metrics, info = one_json(run / "metrics.json"), one_json(run / "run.json")
    keys = {*metrics, *metrics["image"], *metrics["pixel"], *metrics["pixel"]["at_threshold"][0]}
    keys |= {*metrics["image"]["at_threshold"][0], *metrics["image"]["at_defect_rate"][0]}
    assert not [key for key in keys if f"`{key}`" not in sections["metrics.json"]]
    assert not [key for key in info if f"`{key}`" not in sections["run.json"]]
    assert set(table(run / "pixels.csv")[0]) <= set(re.findall(r"`(\w+)`", sections["pixels.csv"]))


def test_sensitivity_by_size_covers_every_defect_once(run: Path) -> None:
    classes, lines = one_json(run / "metrics.json")["image"]["by_defect_size"], lines_of(run)
    sizes = {line["id"]: line["mask_px"] for line in lines if line["label"] == "anomalous"}
    assert sum(one["sensitivity"]["n_anomalous"] for one in classes) == len(sizes)
    assert [one["from_px"] for one in classes] == sorted(one["from_px"] for one in classes)
    for one in classes:
        inside = [x for x in lines if x["id"] in sizes and one["from_px"] <= x["mask_px"] <= one["to_px"]]
        assert len(inside) == one["sensitivity"]["n_anomalous"]
        assert one["sensitivity"]["value"] == np.mean([line["decision"] == 2 for line in inside])


@pytest.mark.parametrize("brighter", [1.05, 1.0])
def test_anomalous_images_that_are_brighter_are_named(
    part_folder: Path, smoke_detector: Detector, tmp_path: Path, brighter: float
) -> None:
    rows = []
    for i, path in enumerate(sorted((part_folder / "test" / "good").glob("*.png"))[:14]):
        with Picture.open(path) as picture:
            pixels = np.asarray(picture, float)
        level = 90 + 0.5 * (i % 5)  # the same light but for half a per cent
        pixels *= (brighter if i % 2 else 1.0) * level / pixels.mean()
        Picture.fromarray(pixels.round().clip(0, 255).astype(np.uint8)).save(tmp_path / f"{i}.png")
        rows.append({"path": f"{i}.png", "label": "anomalous" if i % 2 else "normal"})
    result = evaluate(smoke_detector, write_csv(tmp_path / "m.csv", rows), tmp_path / "run", RunOptions())
    text = "mean grey alone separates the classes: 1.00 (anomalous is higher)"
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert (text in result.warnings) == (text in page) == (brighter > 1)
    if brighter > 1:
        assert page.index(text) < page.index("<h1>"), "the first line of the report"
        assert text in (tmp_path / "run" / "methods.md").read_text("utf-8")


# --- what is measured ------------------------------------------------------------


def test_test_rows_are_those_called_test(part_manifest: Manifest) -> None:
    assert {sample.split for sample in test_samples(part_manifest)} == {"test"}
    assert len(test_samples(part_manifest)) == N_IMAGES


def test_without_splits_all_labelled_rows_are_measured() -> None:
    samples = tuple(Sample(str(i), str(i), (), label=label) for i, label in enumerate(("normal", "", "anomalous")))
    assert [s.id for s in test_samples(Manifest(Path("x"), samples))] == ["0", "2"]
    unlabelled = replace(samples[0], label="", split="test")
    with pytest.raises(DataError, match="known to be normal or anomalous"):
        test_samples(Manifest(Path("x"), (unlabelled,)))
    only_training = replace(samples[0], split="train")
    with pytest.raises(DataError, match="no labelled test images"):
        test_samples(Manifest(Path("x"), (only_training, samples[1])))


def test_images_of_the_fit_are_warned_about(part_manifest: Manifest, smoke_detector: Detector, tmp_path: Path) -> None:
    known = [replace(sample, split="") for sample in part_manifest.select(split="train")[:5]]
    for number, sample in enumerate(known[:2]):  # in another format they are the same images
        Picture.open(sample.files[0]).save(tmp_path / f"{number}.tif")
        known[number] = replace(sample, files=(tmp_path / f"{number}.tif",))
    fresh = [replace(sample, split="") for sample in part_manifest.select(split="test", label="normal")[:6]]
    result = evaluate(smoke_detector, replace(part_manifest, samples=(*known, *fresh)), tmp_path / "run", RunOptions())
    text = "5 of these images were used in fit: figures are too good"
    data = one_json(tmp_path / "run" / "run.json")["data"]
    assert text in data["warnings"]
    assert (data["n_learned"], data["n_seen_in_fit"]) == (5, 5)
    assert f"warning: {text}" in result.lines()
    assert one_json(tmp_path / "run" / "metrics.json")["counts"]["seen_in_fit"] == 5
    assert text in (tmp_path / "run" / "report.html").read_text("utf-8")


def test_images_that_only_set_a_threshold_were_not_used_in_fit(
    part_manifest: Manifest, smoke_detector: Detector, tmp_path: Path
) -> None:
    hashes = smoke_detector.provenance["image_hashes"]
    test = [part_manifest.select(split="test", label=label)[0] for label in ("anomalous", "normal")]
    labelled = image_sha256(test[0].files[0])
    detector = smoke_detector.with_thresholds(*smoke_detector.calibrated)
    detector.provenance = detector.provenance | {"image_hashes": hashes | {"labelled": [labelled]}}
    result = evaluate(detector, replace(part_manifest, samples=tuple(test)), tmp_path / "run", RunOptions())
    assert result.warnings[-1] == "1 of these images was used to set a threshold: figures are too good"


def test_a_test_on_what_was_mostly_learned_is_refused_before_all_is_scored(
    part_manifest: Manifest, smoke_detector: Detector, tmp_path: Path
) -> None:
    known, fresh = part_manifest.select(split="train"), part_manifest.select(split="test")
    manifest = replace(part_manifest, samples=tuple(replace(sample, split="") for sample in (*known, *fresh)))
    seen: list[int] = []
    listener = Listener(progress=lambda stage, done, total, detail: seen.append(done))
    with pytest.raises(DataError, match=r"more than half of the 95 normal test images were used in fit.*scan --folds"):
        evaluate(smoke_detector, manifest, tmp_path / "run", RunOptions(), listener)
    assert seen[-1] == 48
    assert list(tmp_path.iterdir()) == []
    assert score(smoke_detector, replace(manifest, samples=known[:3]), tmp_path / "run", RunOptions()).n_scored == 3


def test_groups_that_make_figures_false_are_refused(
    part_manifest: Manifest, smoke_detector: Detector, tmp_path: Path
) -> None:
    one_group = tuple(replace(sample, group="lot") for sample in part_manifest.samples)
    with pytest.raises(DataError, match="1 group in more than one split: lot"):
        evaluate(smoke_detector, replace(part_manifest, samples=one_group), tmp_path / "run", RunOptions())


@pytest.mark.parametrize(("inside", "data"), [("", "."), ("test", "..")])
def test_a_folder_is_called_by_its_name_also_from_inside(
    part_folder: Path,
    smoke_detector: Detector,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    inside: str,
    data: str,
) -> None:
    monkeypatch.chdir(part_folder / inside)
    manifest = load_manifest(Path(data))
    few = replace(manifest, samples=tuple(s for s in manifest.samples if s.split == "test")[:2])
    evaluate(smoke_detector, few, tmp_path / "run", RunOptions())
    assert one_json(tmp_path / "run" / "metrics.json")["data"] == part_folder.name
    assert one_json(tmp_path / "run" / "run.json")["data"]["name"] == part_folder.name


def test_images_named_one_by_one_are_not_called_after_the_folder_one_stands_in(
    part_folder: Path, smoke_detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images = manifest_from_paths([part_folder / "test" / "good" / "000.png"])
    score(smoke_detector, images, tmp_path / "run", RunOptions())
    assert one_json(tmp_path / "run" / "run.json")["data"]["name"] == ""


@pytest.mark.parametrize(
    ("given", "cure"),
    [
        ({"by": "station"}, r"by=\('station',\)"),
        ({"dicom": "sc"}, r"dicom=\('sc',\)"),
        ({"defect_rates": 0.01}, r"defect_rates=\(0.01,\)"),
        ({"defect_rates": (0.01, 2.0)}, "'2.0' is not a defect rate"),
    ],
)
def test_options_that_nothing_stands_for_are_refused_at_once(given: dict[str, Any], cure: str) -> None:
    with pytest.raises(UsageError, match=cure):
        RunOptions(**given)
    assert RunOptions(defect_rates=("1%", 0.001)).defect_rates == (0.01, 0.001)  # type: ignore[arg-type]


def test_the_columns_of_by_are_checked_before_anything_is_scored(
    few: Manifest, smoke_detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Detector, "inspect_many", None)  # would fail if it were called
    with pytest.raises(UsageError, match=r"no column 'statoin'.*own columns: shift, station"):
        evaluate(smoke_detector, few, tmp_path / "run", RunOptions(by=("station", "statoin")))
    assert not (tmp_path / "run").exists()


def test_a_folder_without_labels_is_scored(part_folder: Path, smoke_detector: Detector, tmp_path: Path) -> None:
    result = score(smoke_detector, manifest_from_paths([part_folder / "test" / "good"]), tmp_path / "run", RunOptions())
    assert result.n_scored == 15
    assert result.metrics is None
    assert one_json(tmp_path / "run" / "run.json")["data"]["name"] == "good"
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files - {"heatmaps"} == {
        "scores.csv", "scores.jsonl", "units.csv", "failures.csv", "run.json", "pictures.npz", "report.html",
    }  # fmt: skip
    assert {line["label"] for line in lines_of(tmp_path / "run")} == {""}
    assert one_json(tmp_path / "run" / "run.json")["data"]["shortcuts"] == {}


def test_paths_may_be_text(few: Manifest, smoke_detector: Detector, tmp_path: Path) -> None:
    manifest = load_manifest(str(tmp_path / "few.csv"))
    assert [s.id for s in manifest.samples] == [s.id for s in few.samples]
    assert score(smoke_detector, manifest, str(tmp_path / "run"), RunOptions()).folder == tmp_path / "run"
    with pytest.raises(UsageError, match="one of: none, anomalous, all"):
        RunOptions(heatmaps="bogus")


def test_when_nothing_can_be_scored_nothing_is_written(smoke_detector: Detector, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"the image could not be scored: .*bad\.png"):
        score(smoke_detector, manifest_from_paths([tmp_path / "bad.png"]), tmp_path / "run", RunOptions())
    assert [path.name for path in tmp_path.iterdir()] == ["bad.png"]


def test_one_absurd_image_does_not_cost_the_others(part_folder: Path, smoke_detector: Detector, tmp_path: Path) -> None:
    pixels = np.full((64, 64), 1e300)
    pixels[0, 0] = -1e300
    np.save(tmp_path / "absurd.npy", pixels)
    paths = [part_folder / "test" / "good" / "000.png", tmp_path / "absurd.npy"]
    result = score(smoke_detector, manifest_from_paths(paths), tmp_path / "run", RunOptions())
    assert result.n_scored == 2
    decisions = {Path(line["path"]).name: line["decision"] for line in lines_of(tmp_path / "run")}
    assert decisions["absurd.npy"] == 2


# --- pictures and maps ------------------------------------------------------------


def test_maps_are_the_anomaly_maps(run: Path, manifest: Manifest, smoke_detector: Detector) -> None:
    files = sorted((run / "maps").iterdir())
    assert len(files) == N_IMAGES
    sample = next(sample for sample in manifest.samples if sample.id == "dent/002.png")
    written = tifffile.imread(run / "maps" / "dent_002_png.tiff")
    assert written.dtype == np.float32
    assert np.array_equal(written, smoke_detector.score(sample).anomaly_map)


@pytest.mark.parametrize("heatmaps", ["none", "anomalous", "all"])
def test_heatmaps_of_those_asked_for(few: Manifest, smoke_detector: Detector, tmp_path: Path, heatmaps: str) -> None:
    scores, thresholds = smoke_detector.calibrated
    values = [smoke_detector.score(sample).score for sample in few.samples]
    limit = float(np.median(values))
    image = replace(thresholds.image, value=limit)
    detector = smoke_detector.with_thresholds(scores, replace(thresholds, image=image))
    score(detector, few, tmp_path / "run", RunOptions(heatmaps=heatmaps))
    n_expected = {"none": 0, "anomalous": sum(value >= limit for value in values), "all": 8}[heatmaps]
    pictures = list((tmp_path / "run" / "heatmaps").glob("*.png"))
    assert len(pictures) == n_expected
    assert not list((tmp_path / "run").glob("maps"))
    for path in pictures:
        with Picture.open(path) as picture:
            assert picture.size[0] >= 64
            assert picture.size[1] >= 64


def test_no_picture_replaces_that_of_another_image(part_folder: Path, smoke_detector: Detector, tmp_path: Path) -> None:
    source = part_folder / "test" / "good" / "000.png"
    names = ["a b.png", "a_b.png", "a+b.png", "ä.png", "ö.png", f"{'x' * 100}1.png", f"{'x' * 100}2.png"]
    rows = [{"path": source.as_posix(), "id": name} for name in names]
    score(smoke_detector, write_csv(tmp_path / "m.csv", rows), tmp_path / "run", RunOptions(maps=True, heatmaps="all"))
    for kind in ("heatmaps", "maps"):
        files = [path.name for path in (tmp_path / "run" / kind).iterdir()]
        assert len({name.lower() for name in files}) == len(names)
        assert max(map(len, files)) < 100
        assert all(name.isascii() for name in files)


def test_the_report_drawn_again_is_the_same(run: Path) -> None:
    before = (run / "report.html").read_bytes()
    assert write_report(run).read_bytes() == before


# --- what if ------------------------------------------------------------


def test_what_if_equals_an_evaluation_at_that_rate(
    manifest: Manifest, smoke_detector: Detector, tmp_path: Path
) -> None:
    part = replace(manifest, samples=manifest.samples[:3] + manifest.samples[3::3])
    assert {"broken.png", "alone.png"} < {sample.id for sample in part.samples}
    scores, _ = smoke_detector.calibrated
    n = len(np.unique(scores.image_group)) if scores.image_group is not None else len(scores.image)
    rate = f"{n}/{n + 1}"  # the largest that is no certainty: many images are flagged
    there = smoke_detector.with_thresholds(scores, thresholds_from(scores, rate))
    options = RunOptions(by=("station",), heatmaps="none")
    evaluate(there, part, tmp_path / "scratch", options)
    evaluate(smoke_detector, part, tmp_path / "what_if", options)
    before = lines_of(tmp_path / "what_if")
    redecide(tmp_path / "what_if", Asked(rate=rate))
    expected, found = lines_of(tmp_path / "scratch"), lines_of(tmp_path / "what_if")
    names = ("id", "score", "decision", "threshold", "display", "p_value", "thresholds_sha256")
    assert [[line[n] for n in names] for line in found] == [[line[n] for n in names] for line in expected]
    assert [line["decision"] for line in found] != [line["decision"] for line in before]
    assert (tmp_path / "what_if" / "units.csv").read_bytes() == (tmp_path / "scratch" / "units.csv").read_bytes()
    failed = [table(tmp_path / name / "failures.csv") for name in ("what_if", "scratch")]
    assert [line | {"time_utc": ""} for line in failed[0]] == [line | {"time_utc": ""} for line in failed[1]]
    metrics = [one_json(tmp_path / run / "metrics.json") for run in ("what_if", "scratch")]
    for one in metrics:
        del one["seconds"], one["pixel"]["at_threshold"]  # no map is there any more
    assert [one.pop("what_if") for one in metrics] == [True, False]
    assert metrics[0] == metrics[1]


# --- stopped, failed, in the way ------------------------------------------------------------


def stopping_after(n: int) -> Listener:
    """A listener at which Ctrl-C is pressed while image ``n + 1`` is handled."""

    def progress(stage: str, done: int, total: int, detail: str) -> None:
        if stage == "scoring" and done > n:
            raise KeyboardInterrupt

    return Listener(progress=progress)


def test_a_stopped_run_is_written_and_decides_no_unit_by_half(
    manifest: Manifest, smoke_detector: Detector, tmp_path: Path
) -> None:
    n_done = next(i for i, s in enumerate(manifest.samples) if s.unit.startswith("good-")) + 2 + 3
    done, missing = manifest.samples[:n_done], manifest.samples[n_done:]
    half = {s.unit for s in done} & {s.unit for s in missing}
    assert half, "the test stops in the middle of a unit"
    out = tmp_path / "run"
    result = evaluate(smoke_detector, manifest, out, RunOptions(), stopping_after(n_done))
    assert result.aborted
    assert result.n_scored + len(result.failures) == n_done
    assert len(lines_of(out)) == result.n_scored
    assert one_json(out / "run.json")["aborted"] is True
    assert "the run was stopped before all images were scored" in result.warnings
    assert (out / "report.html").exists()

    def undecided() -> set[str]:
        return {unit["unit"] for unit in table(out / "units.csv") if unit["decision"] == "9"}

    assert undecided() == {s.unit for s in missing} | {f.unit for f in result.failures}
    redecide(out, Asked())
    assert undecided() == {s.unit for s in missing} | {f.unit for f in result.failures}
    assert left_behind(tmp_path) == []


def test_stopped_before_the_first_image_there_is_nothing_to_write(
    few: Manifest, smoke_detector: Detector, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        score(smoke_detector, few, tmp_path / "run", RunOptions(), stopping_after(0))
    assert [path.name for path in tmp_path.iterdir()] == ["few.csv"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a bug"), DataError("what")])
def test_whatever_happens_nothing_half_is_left(tmp_path: Path, error: BaseException) -> None:
    def write() -> None:
        with new_folder(tmp_path / "run", overwrite=False) as folder:
            (folder / "half").write_text("x", encoding="utf-8")
            raise error

    with pytest.raises(type(error)):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_system_error_while_writing_says_where(tmp_path: Path) -> None:
    message = r"cannot write .*run: No space left"
    with pytest.raises(OutputError, match=message), new_folder(tmp_path / "run", overwrite=False):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def a_run(folder: Path) -> None:
    folder.mkdir()
    (folder / "run.json").write_text('{"format": 1, "tool": "anomaly_ae"}', encoding="utf-8")


def a_foreign_run(folder: Path) -> None:
    folder.mkdir()
    (folder / "run.json").write_text('{"tool": "another"}', encoding="utf-8")


def a_damaged_run(folder: Path) -> None:
    folder.mkdir()
    (folder / "run.json").write_bytes(b"\xff{")


def a_photo_album(folder: Path) -> None:
    folder.mkdir()
    (folder / "holiday.jpg").write_bytes(b"x")


def a_file(path: Path) -> None:
    path.write_text("notes", encoding="utf-8")


@pytest.mark.parametrize("make", [a_run, a_foreign_run, a_damaged_run, a_photo_album, a_file])
def test_nothing_is_replaced_unasked_and_nothing_foreign_at_all(tmp_path: Path, make: Callable[[Path], None]) -> None:
    out = tmp_path / "out"
    make(out)
    with pytest.raises(OutputError, match="exists already"):
        refuse_existing(out, overwrite=False)
    if make is a_run:
        refuse_existing(out, overwrite=True)
    else:
        with pytest.raises(OutputError, match="is no run"):
            refuse_existing(out, overwrite=True)


def test_a_run_is_replaced_as_a_whole_and_only_by_a_whole_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    a_run(out)
    (out / "pixels.csv").write_text("x", encoding="utf-8")
    with pytest.raises(DataError), new_folder(out, overwrite=True):
        raise DataError("failed")
    assert (out / "pixels.csv").exists(), "a run that failed replaces nothing"
    with new_folder(out, overwrite=True) as folder:
        (folder / "new").write_text("x", encoding="utf-8")
        assert (out / "pixels.csv").exists()
    assert [path.name for path in out.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_an_empty_folder_takes_a_run_and_so_does_a_link_to_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir(mode=0o700)
    (tmp_path / "linked").mkdir()
    (tmp_path / "link").symlink_to("linked")
    for name in ("empty", "link"):
        with new_folder(tmp_path / name, overwrite=False) as folder:
            (folder / "new").write_text("x", encoding="utf-8")
        assert [path.name for path in (tmp_path / name).iterdir()] == ["new"]
    assert stat.S_IMODE((tmp_path / "empty").stat().st_mode) == 0o700, "nobody else may look into it"
    assert (tmp_path / "link").is_symlink()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(OutputError, match="exists already"):
        refuse_existing(Path(), overwrite=False)


def test_a_folder_that_came_meanwhile_is_kept_and_so_are_the_results(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(OutputError, match="could not get the name") as caught, new_folder(out, overwrite=False) as work:
        a_photo_album(out)
    assert [path.name for path in out.iterdir()] == ["holiday.jpg"]
    assert work.is_dir()
    assert str(work) in caught.value.fix


def test_where_the_old_run_cannot_go_both_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, rename = tmp_path / "out", Path.rename
    a_run(out)

    def refused(path: Path, target: Path) -> Path:
        if target == out and path.suffix == ".partial":
            raise OSError(13, "Permission denied")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(OutputError, match="Permission denied"), new_folder(out, overwrite=True) as work:
        (work / "new").write_text("x", encoding="utf-8")
    assert (out / "run.json").exists()
    assert (work / "new").exists()


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_link_stays_and_its_run_is_replaced(tmp_path: Path) -> None:
    a_run(tmp_path / "monday")
    (tmp_path / "latest").symlink_to("monday")
    with new_folder(tmp_path / "latest", overwrite=True) as work:
        (work / "new").write_text("x", encoding="utf-8")
    assert (tmp_path / "latest").is_symlink()
    assert [path.name for path in (tmp_path / "monday").iterdir()] == ["new"]


def test_what_killed_runs_left_is_named(few: Manifest, smoke_detector: Detector, tmp_path: Path) -> None:
    (tmp_path / ".run.ab12.partial").mkdir()
    said: list[str] = []
    score(smoke_detector, few, tmp_path / "run", RunOptions(heatmaps="none"), Listener(say=said.append))
    assert any(".run.ab12.partial" in line for line in said)
    assert (tmp_path / ".run.ab12.partial").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "images", "notes.txt"])
def test_what_no_run_has_written_is_not_removed_with_a_run(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    a_run(out)
    (out / ".DS_Store").write_text("x", encoding="utf-8")
    (out / name).mkdir()
    with pytest.raises(OutputError, match=f"holds {name} beside a run"), new_folder(out, overwrite=True):
        raise AssertionError
    with new_folder(out, overwrite=True, beside=(name,)):
        pass
    assert not (out / name).exists()


def test_a_further_column_with_the_name_of_ours_is_kept(
    few: Manifest, smoke_detector: Detector, tmp_path: Path
) -> None:
    graded = replace(few, samples=tuple(replace(s, extra={"score": f"{i}"}) for i, s in enumerate(few.samples)))
    evaluate(smoke_detector, graded, tmp_path / "run", RunOptions())
    rows = read_csv(tmp_path / "run" / "scores.csv", SCORE_COLUMNS)
    grades = {s.id: s.extra["score"] for s in graded.samples}
    assert all(row["manifest.score"] == grades[row["id"]] != row["score"] for row in rows)


def test_a_run_speaks_of_its_progress(few: Manifest, smoke_detector: Detector, tmp_path: Path) -> None:
    heard: list[tuple[str, int, int]] = []
    listener = Listener(progress=lambda stage, done, total, _: heard.append((stage, done, total)))
    evaluate(smoke_detector, few, tmp_path / "run", RunOptions(), listener)
    assert [one for one in heard if one[0] == "scoring"] == [("scoring", done, 8) for done in range(1, 9)]
    assert Counter(stage for stage, *_ in heard)["measuring"] == 1


def test_scoring_changes_nothing_in_the_detector(few: Manifest, smoke_detector: Detector, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in smoke_detector.mapper.state_dict().items()}
    evaluate(smoke_detector, few, tmp_path / "run", RunOptions())
    after = smoke_detector.mapper.state_dict()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert read_sample(few.samples[0]).pixels.shape == (1, 64, 64)
