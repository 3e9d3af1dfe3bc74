"""The experiment bench: a small grid end to end, what is computed again, and the arithmetic of the tables."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anomaly_ae.errors import ConfigError, UsageError
from anomaly_ae.manifest import load_manifest, write_manifest
from anomaly_ae.records import Decision, Sample
from anomaly_ae.synthetic import make_dataset

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import colour_sets  # noqa: E402
import on_gpu  # noqa: E402
import pixel_figures  # noqa: E402
import quality  # noqa: E402
import speed  # noqa: E402
import trust  # noqa: E402
from bench import cells as bench_cells  # noqa: E402
from bench.measures import by_size, smallest_found_px  # noqa: E402
from bench.sets import embedded_sets  # noqa: E402
from bench.summary import Comparison, Spread, compare, comparisons, figures, spreads  # noqa: E402
from bench.variants import read_variants  # noqa: E402

TABLE = """
[default]
why = "stands in for the default: fast"
base = "smoke"

[l1]
why = "scores in another way"
scoring_only_of = "default"
overrides = ["scoring.ssim=0"]

[unchanged]
why = "score-only, but with the scoring of the fit: must find the same"
scoring_only_of = "default"
overrides = ["scoring.ssim=0.5"]
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One data set with a manifest, and a table of variants."""
    folder = tmp_path_factory.mktemp("bench")
    parts = make_dataset(folder / "parts", "part", n_train=40, n_test_normal=6, n_per_defect=3, size_px=32)
    manifest = load_manifest(parts)
    alone = [replace(s, group=s.id) for s in manifest.samples if s.defect in ("", "burr", "dent")]  # fast: no bootstrap
    write_manifest(replace(manifest, samples=tuple(alone)), parts / "dev.csv")
    (folder / "variants.toml").write_text(TABLE, encoding="utf-8")
    return folder


def run(root: Path, out: Path, *more: str) -> int:
    options = ["--variants", str(root / "variants.toml"), "--device", "cpu"]
    return quality.main([str(root), "--out", str(out), *options, *more])


@pytest.fixture(scope="module")
def grid(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fitted and a score-only variant, two seeds, two workers."""
    out = tmp_path_factory.mktemp("grid") / "out"
    assert run(root, out, "--variant", "l1", "--seed", "0", "1", "--jobs", "2") == 0
    return out


@pytest.fixture
def copy(grid: Path, tmp_path: Path) -> Path:
    """The same cells, to be changed."""
    return shutil.copytree(grid, tmp_path / "out")


def record(out: Path, variant: str, seed: int = 0) -> dict[str, Any]:
    path = out / "cells" / "parts" / variant / f"seed-{seed}" / "cell.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def written(out: Path, name: str) -> dict[str, int]:
    """Return when the files of that name were written, by cell."""
    return {p.parent.relative_to(out).as_posix(): p.stat().st_mtime_ns for p in out.glob(f"cells/*/*/*/{name}")}


def changed(out: Path, before: dict[str, int], name: str = "cell.json") -> set[str]:
    return {cell for cell, at in written(out, name).items() if before.get(cell) != at}


def test_grid_has_a_row_per_cell_and_a_column_per_figure(grid: Path) -> None:
    rows = list(csv.DictReader((grid / "cells.csv").read_text(encoding="utf-8").splitlines()))
    assert [(row["variant"], row["seed"]) for row in rows] == [(v, s) for v in ("default", "l1") for s in "01"]
    for row in rows:
        assert 0 <= float(row["image_roc_auc"]) <= 1
        assert 0 < float(row["defect_burr_pixel_average_precision"]) <= 1
        assert float(row["size_small_max_px"]) < float(row["size_large_min_px"])
        assert int(row["n_parameters"]) > 0
        assert float(row["fit_seconds"]) > 0
        assert 0 <= float(row["baseline_PCA_residual_image_roc_auc"]) <= 1
    assert len({row["weights_sha256"] for row in rows}) == 4
    assert len(json.loads((grid / "quality.json").read_text(encoding="utf-8"))["cells"]) == 4
    assert not list(grid.rglob("maps"))


def test_the_page_on_trust_is_made_of_a_finished_bench(grid: Path, root: Path, tmp_path: Path) -> None:
    out, options = tmp_path / "trust.md", ["--manifest", "dev.csv", "--planted", "parts", "--per-grade", "2"]
    trust.main([str(root), str(grid), "--out", str(out), *options])
    text = out.read_text(encoding="utf-8")
    metrics = json.loads((grid / "cells/parts/default/seed-0/run/metrics.json").read_text(encoding="utf-8"))
    at = metrics["image"]["at_threshold"][0]
    for name in ("false_alarm_rate", "sensitivity"):
        limits = at[name]["intervals"][0]
        assert f"{at[name]['value']:.3f} [{limits['low']:.3f}, {limits['high']:.3f}]" in text
    assert f"| parts | {metrics['image']['shortcuts']['mean grey']:.2f} |".replace("*", "") in text.replace("*", "")
    sha256 = json.loads((grid / "cells/parts/default/seed-0/run/run.json").read_text(encoding="utf-8"))
    assert sha256["model"]["weights_sha256"][:12] in text
    assert text.count("2 of each grade") == len(trust.KINDS)
    assert "Mean difference of planted (spot) and real" in text
    before = {path: path.stat().st_mtime_ns for path in (grid / "planted").rglob("capability.json")}
    trust.main([str(root), str(grid), "--out", str(out), *options])
    assert {path: path.stat().st_mtime_ns for path in before} == before, "the same models are not measured again"
    with pytest.raises(UsageError, match="no runs"):
        trust.main([str(root), str(tmp_path), "--out", str(out), *options])


def test_the_page_says_why_no_rate_is_expected() -> None:
    known = {"false_alarm_band": [0.0, 0.1], "false_alarm_band_reason": ""}
    grouped = {"false_alarm_band": None, "false_alarm_band_reason": "images come in groups"}
    assert list(trust.no_band([known, grouped, grouped])) == ["\nWhere nothing is expected (-): images come in groups."]
    assert list(trust.no_band([known])) == []


def test_every_question_on_pixel_figures_has_an_answer(tmp_path: Path) -> None:
    pixel_figures.make_maps(tmp_path, 5, 48)
    for question in (pixel_figures.without, pixel_figures.with_intervals, pixel_figures.everything):
        assert set(question(tmp_path)) == {"processor", "mib"}


def test_the_nearest_row_is_the_one_that_forecasts() -> None:
    cells = [
        {"size_px": size, "contrast": contrast, "sensitivity": share}
        for contrast, shares in ((0.1, (0.0, 0.0)), (0.5, (0.2, 0.8)))
        for size, share in zip((4.0, 16.0), shares, strict=True)
    ]
    classes = [{"sensitivity": {"value": value}} for value in (0.2, 0.5, 0.9)]
    text = " ".join(trust.nearest_row(classes, [[4, 4], [8, 8], [40, 90]], {"kind": "spot", "cells": cells}))
    assert "0.35 at contrast 0.1, 0.00 at contrast 0.5" in text, "half way on the logarithm of the size"
    assert "Nearest is contrast 0.5" in text
    assert "Larger than anything planted: 1 of 3 classes" in text


def test_pixel_figures_of_the_bench_agree_with_those_of_the_run(grid: Path, root: Path, tmp_path: Path) -> None:
    """Over all images both are the same figure; the bench only cuts it by kind."""
    from bench.measures import inspected_images, pixel_average_precision

    from anomaly_ae.detector import Detector
    from anomaly_ae.evaluation import RunOptions, evaluate

    detector = Detector.load(grid / "cells" / "parts" / "default" / "seed-0" / "model.safetensors", "cpu")
    manifest = load_manifest(root / "parts" / "dev.csv")
    result = evaluate(detector, manifest, tmp_path / "run", RunOptions(maps=True))
    assert result.metrics is not None
    of_bench = pixel_average_precision(inspected_images(manifest, tmp_path / "run"))
    assert of_bench == result.metrics["pixel"]["average_precision"]


def test_score_only_variants_share_the_network_and_not_the_figures(grid: Path) -> None:
    import torch
    from safetensors.torch import load_file

    place = grid / "cells" / "parts"
    fitted, other = (load_file(place / v / "seed-0" / "model.safetensors") for v in ("default", "l1"))
    network = [name for name in fitted if name.startswith("mapper.autoencoder.")]
    assert network
    assert all(torch.equal(fitted[name], other[name]) for name in network)
    assert torch.equal(fitted["mapper.limits"], other["mapper.limits"])
    assert not torch.equal(fitted["mapper.standardise.mean"], other["mapper.standardise.mean"])
    assert figures(record(grid, "l1"))["pixel_roc_auc"] != figures(record(grid, "default"))["pixel_roc_auc"]


def test_score_only_with_the_scoring_of_the_fit_finds_the_same(copy: Path, root: Path) -> None:
    """Residuals and thresholds are learned on the very images that the fit used: nothing may differ."""
    assert run(root, copy, "--variant", "unchanged", "--seed", "1") == 0
    fitted, again = record(copy, "default", 1), record(copy, "unchanged", 1)
    assert again["weights_sha256"] == fitted["weights_sha256"]
    assert figures(again) == figures(fitted)


def test_second_run_computes_nothing(copy: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = written(copy, "cell.json")
    monkeypatch.setattr(bench_cells, "_measure", lambda *_: pytest.fail("computed again"))
    assert run(root, copy, "--variant", "default", "l1", "--seed", "0", "1") == 0
    assert changed(copy, before) == set()


def test_models_of_another_manifest_are_taken_where_both_learn_from_the_same(
    grid: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = root / "parts"
    manifest = load_manifest(parts / "dev.csv")
    tested = [sample for sample in manifest.samples if sample.split == "test"]
    final = [sample for sample in manifest.samples if sample not in tested[::2]]
    write_manifest(replace(manifest, samples=tuple(final)), parts / "final.csv", overwrite=True)
    monkeypatch.setattr(bench_cells, "fit", None)  # called, it would fail
    more = ("--manifest", "final.csv", "--fits-from", str(grid))
    assert run(root, tmp_path / "out", "--variant", "l1", *more) == 0
    for variant in ("default", "l1"):
        found, other = record(tmp_path / "out", variant), record(grid, variant)
        assert found["model_sha256"] == other["model_sha256"]
        assert found["metrics"]["counts"] != other["metrics"]["counts"]
    learned = next(sample for sample in final if sample.split != "test")
    fewer = tuple(sample for sample in final if sample is not learned)
    write_manifest(replace(manifest, samples=fewer), parts / "final.csv", overwrite=True)
    with pytest.raises(TypeError):  # one training image less: there is something to fit
        run(root, tmp_path / "out2", "--variant", "default", *more)


def test_changed_variant_is_computed_again_and_said_so(
    copy: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "variants.toml"
    table.write_text(TABLE.replace('scoring.ssim=0"', 'scoring.pooling=top_share"'), encoding="utf-8")
    before = written(copy, "cell.json")
    assert run(root, copy, "--variants", str(table), "--variant", "default", "l1") == 0
    assert changed(copy, before) == {"cells/parts/l1/seed-0"}
    assert "computed again, changed since: settings" in capsys.readouterr().err
    assert "1 cells of other data, settings or versions are left out" in (copy / "quality.md").read_text("utf-8")
    seeds = [c["seed"] for c in json.loads((copy / "quality.json").read_text("utf-8"))["cells"] if c["variant"] == "l1"]
    assert seeds == [0]  # l1 of seed 1 was made by the old table


def test_half_of_a_cell_is_removed_and_what_shares_its_fit_follows(
    copy: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = copy / "cells" / "parts" / "default" / "seed-0"
    (half / "cell.json").unlink()
    (half / "left over").touch()
    before = written(copy, "cell.json")
    assert run(root, copy, "--variant", "l1") == 0
    assert not (half / "left over").exists()
    assert changed(copy, before) == {"cells/parts/default/seed-0", "cells/parts/l1/seed-0"}
    said = capsys.readouterr().err
    assert "removed: half of the cell was there" in said
    assert "changed since: fit shared" in said


def test_other_defects_left_out_need_no_fit(copy: Path, root: Path) -> None:
    before, models = written(copy, "cell.json"), written(copy, "model.safetensors")
    assert run(root, copy, "--without-defects", "parts:burr") == 0
    assert changed(copy, before) == {"cells/parts/default/seed-0"}
    assert changed(copy, models, "model.safetensors") == set()
    found = record(copy, "default")
    assert found["without_defects"] == ["burr"]
    all_kinds = found["metrics"]["pixel"]["average_precision"]
    assert 0 < found["pixel_average_precision_without"]["n_anomalous"] < all_kinds["n_anomalous"]


def test_one_failing_set_does_not_stop_the_others(
    copy: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = shutil.copytree(root, tmp_path / "both")
    (both / "empty").mkdir()
    (both / "empty" / "dev.csv").write_text("path,label,split\nnone.png,normal,train\n", encoding="utf-8")
    before = written(copy, "cell.json")
    assert run(both, copy) == 1
    assert "error: empty, default, seed 0: " in capsys.readouterr().err
    assert changed(copy, before) == set()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--manifest", "final.csv"], "holds cells of dev.csv"),
        (["--variant", "nothing"], "no variant 'nothing'"),
        (["--sets", "tiles"], "data sets there: parts"),
        (["--without-defects", "parts:crack"], "no defect 'crack' in parts"),
        (["--without-defects", "tiles:crack"], "no such set"),
        (["--without-defects", "crack"], "write SET:DEFECT"),
        (["--jobs", "0"], "give 1 or more"),
    ],
)
def test_wrong_use(grid: Path, root: Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(root, grid, *more) == 2
    assert said in capsys.readouterr().err


def test_no_data_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quality.main(["--out", str(tmp_path)]) == 2
    assert "neither ROOT nor --embedded" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('scoring_only_of = "default"\noverrides = ["training.steps=5"]', "it shares the fit"),
        ('scoring_only_of = "default"\nbase = "smoke"', "its base is the fit of 'default'"),
        ('scoring_only_of = "none"', "no variant 'none'"),
        ('scoring_only_of = "l1"', "'l1' has no fit of its own"),
        ('base = "smoke"\noverrides = ["training.stepz=5"]', "training.steps"),
        ('base = "nothing"', "unknown preset 'nothing'"),
        ('scoring_only_of = "default"\noverrides = ["scoring.pooling=mean"]', "scoring.pooling"),
        ("steps = 5", "unknown key 'steps'"),
    ],
)
def test_wrong_variant(tmp_path: Path, lines: str, said: str) -> None:
    table = tmp_path / "variants.toml"
    table.write_text(f'{TABLE}\n[wrong]\nwhy = "a test"\n{lines}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="'wrong'") as error:
        read_variants(table)
    assert said in str(error.value)


def test_variant_without_a_reason(tmp_path: Path) -> None:
    table = tmp_path / "variants.toml"
    table.write_text('[x]\nbase = "smoke"\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="'x' says no 'why'"):
        read_variants(table)


def test_shipped_variants_are_valid() -> None:
    variants = read_variants(BENCHMARKS / "variants.toml")
    assert {"default", "fast", "textbook", "proxy"} <= set(variants)
    proxy, fast = variants["proxy"].config("default", 0), variants["fast"].config("", 0)
    assert proxy.training == fast.training
    assert proxy.geometry.max_side_px == 128
    assert variants["textbook"].config("", 3).model.architecture == "bottleneck"
    assert variants["textbook"].config("", 3).seed == 3
    assert variants["default"].overrides == ()


def test_embedded_sets_are_made_once(tmp_path: Path) -> None:
    small = {"n_train": 10, "n_test_normal": 1, "n_per_defect": 1, "size_px": 32}
    first = embedded_sets(tmp_path, **small)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.png")}
    assert embedded_sets(tmp_path, **small) == first
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.png")} == before
    assert [data.name for data in first] == ["embedded_part", "embedded_surface"]
    next(tmp_path.rglob("*.png")).write_bytes(b"another image")
    assert embedded_sets(tmp_path, **small) != first


def scored(label: str, score: float, decision: Decision = Decision.NORMAL) -> dict[str, Any]:
    group = f"{label} {score}"
    return {"label": label, "score": score, "group": group, "decision": int(decision)}


def test_thirds_by_size() -> None:
    """Normals score 1 and 3. Areas 10, 10 | 20, 20 | 30 once more cut: equal areas stay together."""
    rows = [scored("normal", 1), scored("normal", 3)]
    rows += [scored("anomalous", s) for s in (0, 2, 4, 5, 6, 7)]  # small to large
    sizes = by_size(rows, [0, 0, 10, 12, 20, 20, 30, 40])
    found = {
        name: (s["min_px"], s["max_px"], s["n_anomalous"], s["image_roc_auc"]["value"]) for name, s in sizes.items()
    }
    assert found == {"small": (10, 12, 2, 0.25), "middle": (20, 20, 2, 1.0), "large": (30, 40, 2, 1.0)}


def test_equal_areas_stay_in_one_third_and_unmasked_images_in_none() -> None:
    rows = [scored("normal", 1), *(scored("anomalous", s) for s in (2, 3, 4, 5))]
    sizes = by_size(rows, [0, 7, 7, 7, 0])
    assert {name: s["n_anomalous"] for name, s in sizes.items()} == {"small": 3}
    assert by_size(rows, [0, 0, 0, 0, 0]) == {}


def test_smallest_found_is_masked_and_decided_anomalous() -> None:
    hit = Decision.ANOMALOUS
    rows = [
        scored("anomalous", 1),
        scored("anomalous", 2, hit),
        scored("anomalous", 3, hit),
        scored("anomalous", 4, hit),
    ]
    assert smallest_found_px(rows, [3, 9, 8, 0]) == 8
    assert smallest_found_px(rows[:1], [3]) is None


def made_up(cell: dict[str, Any], data: str, variant: str, seed: int, value: float) -> dict[str, Any]:
    """Return a real record under another name and with another image ROC-AUC."""
    other: dict[str, Any] = json.loads(json.dumps(cell)) | {"data": data, "variant": variant, "seed": seed}
    other["metrics"]["image"]["roc_auc"]["value"] = value
    return other


def test_differences_are_paired_by_set_and_seed(grid: Path) -> None:
    """On "a" +0.1 and +0.3, on "b" -0.1; seed 2 of "b" and all of "c" have no partner."""
    cell = record(grid, "default")
    values = [
        *[("a", "default", 0, 0.5), ("a", "default", 1, 0.6), ("b", "default", 0, 0.9)],
        *[("a", "new", 0, 0.6), ("a", "new", 1, 0.9), ("b", "new", 0, 0.8), ("b", "new", 2, 0.1), ("c", "new", 0, 0.1)],
    ]
    made = [made_up(cell, *one) for one in values]
    found = comparisons(made)["new"]["image_roc_auc"]
    assert found.mean == pytest.approx((0.2 - 0.1) / 2)
    assert found.n_improved == 1
    assert found.by_set == pytest.approx({"a": 0.2, "b": -0.1})
    assert found.on_others == pytest.approx({"a": -0.1, "b": 0.2})
    assert spreads(made)["a", "new"]["image_roc_auc"] == pytest.approx(Spread(0.75, 0.045**0.5, 2))
    assert spreads(made)["b", "default"]["image_roc_auc"] == Spread(0.9, None, 1)


def test_leave_one_out_is_the_mean_of_the_others() -> None:
    found = compare([("a", 1.0, 0.0), ("b", 0.5, 0.0), ("c", 0.0, 0.25), ("d", None, 0.3)])
    assert found is not None
    assert found.by_set == {"a": 1.0, "b": 0.5, "c": -0.25}
    assert found.on_others == {"a": 0.125, "b": 0.375, "c": 0.75}
    assert compare([("a", 1.0, 0.5)]) == Comparison(0.5, 1, {"a": 0.5}, {"a": None})
    assert compare([("a", None, 0.5)]) is None


def test_the_commands_for_a_gpu_are_understood(tmp_path: Path) -> None:
    steps = on_gpu.commands(on_gpu.parse(["sets", "--out", str(tmp_path), "--device", "cuda:0"]))
    known = read_variants(quality.HERE / "variants.toml")
    for name, (_, script, *arguments) in steps.items():
        assert script == "-m" or (quality.HERE.parent / script).is_file()
        if script == "benchmarks/quality.py":
            asked = quality.parse(arguments)
            assert asked.device == "cuda:0"
            assert {*asked.variant} <= {*known}
            assert asked.fits_from == (None if name.startswith("dev") else tmp_path / "dev")
    assert {*steps["speed"][steps["speed"].index("--only") + 1 :]} <= {*speed.QUESTIONS}
    assert {*on_gpu.parse(["sets", "--out", "x", "--only", *steps]).only} == {*steps}


def test_a_step_that_fails_on_a_gpu_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = {"tests": [sys.executable, "-c", "raise SystemExit(3)"], "speed": [sys.executable, "-c", "print()"]}
    monkeypatch.setattr(on_gpu, "commands", lambda asked: steps)
    assert on_gpu.main([str(tmp_path), "--out", str(tmp_path)]) == 1
    first, *others = [line for line in capsys.readouterr().out.splitlines() if " s" in line and "python" not in line]
    assert re.fullmatch(r"--- tests: \d+ s, failed", first)
    assert [line.split(":")[0] for line in others] == ["--- speed"]
    assert on_gpu.main([str(tmp_path), "--out", str(tmp_path), "--dry-run"]) == 0


@pytest.mark.parametrize(("coloured", "names"), [(True, {"wall"}), (False, {"wall", "wall-grey"})])
def test_sets_in_colour(coloured: bool, names: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("N_TRAIN", "N_NORMAL", "N_OF_KIND"):
        monkeypatch.setattr(colour_sets, name, 3)
    photo = np.random.default_rng(0).integers(60, 200, (200, 400, 3), np.uint8)
    Image.fromarray(photo if coloured else photo[..., 0]).save(tmp_path / "wall.png")
    assert colour_sets.main([str(tmp_path / "wall.png"), "--out", str(tmp_path)]) == 0
    sets = {path.parent.name: load_manifest(path).samples for path in tmp_path.glob("*/dev.csv")}
    assert set(sets) == names
    for name, samples in sets.items():
        assert Counter(s.split for s in samples if s.label == "normal") == {"train": 3, "test": 3}
        anomalous = [s for s in samples if s.label == "anomalous"]
        assert set(Counter(s.defect for s in anomalous).values()) == {3}
        hues = [hue_inside(s) for s in anomalous if s.defect in ("hue", "tint", "shade")]
        assert (max(hues) < 12) if name == "wall-grey" else (min(hues) > 12)


def hue_inside(sample: Sample) -> float:
    """How far the channels of a defect are apart from each other, in grey values."""
    assert sample.mask is not None
    pixels, mask = (np.asarray(Image.open(path), np.float64) for path in (sample.files[0], sample.mask))
    return float(np.ptp(pixels[mask > 0].mean(axis=0) / colour_sets.ALMOST_GREY))


def test_a_photograph_that_is_too_small_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (300, 200)).save(tmp_path / "small.png")
    assert colour_sets.main([str(tmp_path / "small.png"), "--out", str(tmp_path)]) == 1
    assert "too small: 300 x 200 px" in capsys.readouterr().out
