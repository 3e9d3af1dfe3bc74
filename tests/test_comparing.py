"""Comparing saved runs: which runs are one row, which images are paired, the figures, and what is written."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import done, run
from saved_run import image, images, write_run
from scipy.stats import binomtest

from anomaly_ae.errors import DataError, UsageError
from anomaly_ae.judging import Comparison, SavedRun, load_run
from anomaly_ae.judging import compare_runs as compare_with_many_draws
from anomaly_ae.judging.measuring import Figure
from anomaly_ae.metrics import PixelMap, average_precision, rate, roc_auc
from anomaly_ae.records import Sample
from anomaly_ae.results import pixel_figures, write_json, write_pixels

RNG = np.random.default_rng(0)
NORMAL, ANOMALOUS = RNG.uniform(0, 1.05, 60), RNG.uniform(0.6, 1.6, 40)
OTHER_NORMAL, OTHER_ANOMALOUS = NORMAL * RNG.uniform(0.9, 1.1, 60), ANOMALOUS + RNG.uniform(-0.1, 0.4, 40)
LABELS = np.arange(100) >= 60


def compare_runs(runs: list[SavedRun], names: list[str] | None = None) -> Comparison:
    return compare_with_many_draws(runs, names or [], n_draws=400)


def two_runs(tmp_path: Path, **changes: Any) -> list[SavedRun]:
    write_run(tmp_path / "one", images(NORMAL, ANOMALOUS, **changes))
    write_run(tmp_path / "two", images(OTHER_NORMAL, OTHER_ANOMALOUS, **changes))
    return [load_run(tmp_path / name) for name in ("one", "two")]


def figure(found: Comparison, name: str, variant: str) -> Figure:
    (one,) = [f for f in found.figures if (f.name, f.variant) == (name, variant)]
    return one


def test_figures_are_those_of_each_run_with_paired_differences(tmp_path: Path) -> None:
    runs = two_runs(tmp_path)
    found = compare_runs(runs)
    one, two = np.r_[NORMAL, ANOMALOUS], np.r_[OTHER_NORMAL, OTHER_ANOMALOUS]
    for name, metric in (("ROC-AUC", roc_auc), ("average precision", average_precision)):
        values = [metric(LABELS, scores) for scores in (one, two)]
        for variant, value in zip(("one", "two"), values, strict=True):
            assert figure(found, name, variant).value == pytest.approx(value.value)
            assert figure(found, name, variant).interval == value.intervals[0]
        difference = figure(found, name, "two").difference
        assert difference is not None
        assert difference.value == pytest.approx(values[1].value - values[0].value)
        assert difference.interval is not None
        assert difference.interval.low < difference.value < difference.interval.high
    flagged = [scores >= 1.0 for scores in (one, two)]
    for name, among in (("sensitivity", LABELS), ("false-alarm rate", ~LABELS)):
        for variant, hits in zip(("one", "two"), flagged, strict=True):
            value, intervals = rate(hits[among])
            assert figure(found, name, variant).value == pytest.approx(value)
            assert figure(found, name, variant).interval == intervals[0]
        gained, lost = (int((a & ~b)[among].sum()) for a, b in (flagged[::-1], flagged))
        difference = figure(found, name, "two").difference
        assert difference is not None
        assert difference.p == pytest.approx(binomtest(gained, gained + lost).pvalue if gained + lost else 1)
    assert figure(found, "ROC-AUC", "one").difference is None
    assert (found.n_normal, found.n_anomalous, found.noun) == (60, 40, "image")


def test_the_adjusted_p_values_are_over_the_whole_table(tmp_path: Path) -> None:
    found = compare_runs(two_runs(tmp_path))
    p = sorted(f.difference.p for f in found.figures if f.difference and f.difference.p is not None)
    assert len(p) == 4
    smallest = min(f.p_holm for f in found.figures if f.p_holm is not None)
    assert smallest == pytest.approx(min(1.0, 4 * p[0]))


def test_bootstrap_and_delong_agree_where_images_are_independent(tmp_path: Path) -> None:
    """With one image more in a group, images come in groups, and the bootstrap takes DeLong's place."""
    runs = two_runs(tmp_path)
    by_image = figure(compare_runs(runs), "ROC-AUC", "two").difference
    rows = [images(NORMAL, ANOMALOUS), images(OTHER_NORMAL, OTHER_ANOMALOUS)]
    for part in rows:
        part[1]["group"] = part[0]["group"]
    grouped = [
        load_run(write_run(tmp_path / f"g{i}" / name, part))
        for i, (name, part) in enumerate(zip("ab", rows, strict=True))
    ]
    found = compare_runs(grouped)
    by_group = figure(found, "ROC-AUC", "b").difference
    assert by_image is not None
    assert by_group is not None
    assert by_image.interval is not None
    assert by_group.interval is not None
    assert (by_image.interval.unit, by_group.interval.unit) == ("image", "group")
    assert by_group.value == pytest.approx(by_image.value)
    ends = [(one.interval.low, one.interval.high) for one in (by_image, by_group) if one.interval]
    assert ends[1] == pytest.approx(ends[0], abs=0.02)


def test_two_groups_show_no_difference(tmp_path: Path) -> None:
    shift = np.repeat([0.0, 0.5], 20)  # the second half of the anomalous, which is one lot, is found better
    runs = []
    for name, extra in (("a", 0.0), ("b", 1.0)):
        rows = images(NORMAL, ANOMALOUS + extra * shift)
        for i, row in enumerate(rows):
            row["group"] = f"lot-{i // 20}"
        runs.append(load_run(write_run(tmp_path / name, rows)))
    found = figure(compare_runs(runs), "sensitivity", "b").difference
    assert found is not None
    assert (found.interval, found.p) == (None, None)  # two lots show nothing, however many images they hold
    assert "sensitivity: an interval needs at least 4 groups" in " ".join(compare_runs(runs).notes)


def test_runs_that_differ_in_their_seed_alone_are_one_row(tmp_path: Path) -> None:
    rng, runs = np.random.default_rng(1), []
    for seed in range(3):
        rows = images(NORMAL, ANOMALOUS + rng.normal(0, 0.05, 40))
        runs.append(
            write_run(tmp_path / f"wide-seed{seed}", rows, seed=seed, settings={"steps": 1}, pixel_ap=0.1 * seed)
        )
    rows = images(OTHER_NORMAL, OTHER_ANOMALOUS)
    runs.append(write_run(tmp_path / "deep", rows, settings={"steps": 2}, pixel_ap=0.5))
    loaded = [load_run(folder) for folder in runs]
    found = compare_runs(loaded)
    assert {f.variant: f.n_runs for f in found.figures} == {"wide": 3, "deep": 1}
    each = [roc_auc(LABELS, [row["score"] for row in run.rows]) for run in loaded[:3]]
    values = [metric.value for metric in each]
    mean = figure(found, "ROC-AUC", "wide")
    assert mean.value == pytest.approx(np.mean(values))
    assert mean.spread == pytest.approx(np.std(values, ddof=1))
    assert mean.interval is not None
    assert mean.interval.low == pytest.approx(np.mean([metric.intervals[0].low for metric in each]))
    assert figure(found, "pixel average precision", "wide").value == pytest.approx(0.1)
    pixels = figure(found, "pixel average precision", "deep").difference
    assert pixels is not None
    assert (pixels.value, pixels.interval, pixels.p) == (pytest.approx(0.4), None, None)
    assert any("wide is the mean of 3 runs" in note for note in found.notes)
    by_name = compare_runs(loaded, ["x", "y", "x", "y"])
    assert {f.variant: f.n_runs for f in by_name.figures} == {"x": 2, "y": 2}


def test_the_mean_of_equal_runs_is_one_run(tmp_path: Path) -> None:
    """Seeds that change nothing leave figures, intervals and DeLong's difference as they are."""
    parts = [images(NORMAL, ANOMALOUS), images(OTHER_NORMAL, OTHER_ANOMALOUS)]
    runs = [
        load_run(write_run(tmp_path / f"{name}{seed}", rows, seed=seed))
        for name, rows in zip("ab", parts, strict=True)
        for seed in range(2)
    ]
    several, single = compare_runs(runs, ["a", "a", "b", "b"]), compare_runs(runs[::2], ["a", "b"])
    one, two = (figure(found, "ROC-AUC", "b") for found in (several, single))
    assert one.difference is not None
    assert two.difference is not None
    assert one.difference.p == pytest.approx(two.difference.p)
    assert one.interval is not None
    assert two.interval is not None
    assert (one.interval.low, one.interval.high) == pytest.approx((two.interval.low, two.interval.high))
    assert one.spread == 0.0


@pytest.mark.parametrize("changed", [{"rate": "5%"}, {"settings": {"steps": 2}}, {"what_if": True}, {"settings": None}])
def test_what_keeps_runs_apart(changed: dict[str, Any], tmp_path: Path) -> None:
    rows = images(NORMAL, ANOMALOUS)
    write_run(tmp_path / "a", rows, settings={"steps": 1})
    write_run(tmp_path / "b", rows, **({"seed": 1, "settings": {"steps": 1}} | changed))
    found = compare_runs([load_run(tmp_path / name) for name in "ab"])
    assert {f.variant for f in found.figures} == {"a", "b"}


def test_seeds_that_cut_groups_into_parts_of_other_sizes_are_one_row_still(tmp_path: Path) -> None:
    rows = images(NORMAL, ANOMALOUS)
    write_run(tmp_path / "part-seed0", rows, settings={"steps": 1})
    write_run(tmp_path / "part-seed1", rows, settings={"steps": 1}, seed=1)
    for name, n_groups, n_train in [("part-seed0", 99, 50), ("part-seed1", 3, 54)]:
        path = tmp_path / name / "run.json"
        info = json.loads(path.read_text("utf-8"))
        info["threshold"]["image"] |= {"n_groups": n_groups, "rate": f"1/{n_groups + 1}"}  # the least possible
        info["model"] |= {"n_train": n_train, "n_validation": 60 - n_train}
        write_json(path, info)
    found = compare_runs([load_run(tmp_path / name) for name in ("part-seed0", "part-seed1")])
    assert {(f.variant, f.n_runs) for f in found.figures} == {("part", 2)}


def test_a_repeated_seed_is_no_spread(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, images(NORMAL, ANOMALOUS), settings={}) for name in "ab"]
    found = compare_runs([load_run(folder) for folder in runs])
    assert {f.n_runs for f in found.figures} == {1}
    assert any("rows of their own" in note for note in found.notes)
    with pytest.raises(UsageError, match="2 of the runs called 'x' have seed 0"):
        compare_runs([load_run(folder) for folder in runs], ["x", "x"])
    with pytest.raises(UsageError, match="named 2 times"):
        compare_runs([load_run(runs[0]), load_run(runs[0])])
    with pytest.raises(UsageError, match="1 names for 2 runs"):
        compare_runs([load_run(folder) for folder in runs], ["x"])


def test_only_common_images_are_compared_and_the_rest_is_counted(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", images(NORMAL, ANOMALOUS))
    rows = images(OTHER_NORMAL[:50], OTHER_ANOMALOUS)
    second = write_run(
        tmp_path / "b", [*rows, image("new", 2.0, ""), image("more", 2.0)], failed=("n55",), pixel_ap=0.5
    )
    found = compare_runs([load_run(first), load_run(second)])
    assert (found.n_normal, found.n_anomalous) == (50, 40)
    scores = np.r_[NORMAL[:50], ANOMALOUS]
    assert figure(found, "ROC-AUC", "a").value == pytest.approx(roc_auc(LABELS[10:], scores).value)
    notes = "\n".join(found.notes)
    assert f"{first}: left out 10 images that another run lacks or could not inspect" in notes
    assert f"{second}: left out 1 image that another run lacks" in notes
    assert f"{second}: left out 1 image without a label or a decision" in notes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_sha256": "other"}, "another image in"),
        ({"label": "anomalous"}, "is 'normal' of group 'n0' .* but 'anomalous'"),
        ({"group": "lot"}, "group 'lot'"),
    ],
)
def test_runs_that_contradict_each_other_are_refused(change: dict[str, str], message: str, tmp_path: Path) -> None:
    write_run(tmp_path / "a", images(NORMAL, ANOMALOUS))
    rows = images(NORMAL, ANOMALOUS)
    write_run(tmp_path / "b", [rows[0] | change, *rows[1:]])
    with pytest.raises(DataError, match=message):
        compare_runs([load_run(tmp_path / name) for name in "ab"])


def test_runs_without_a_common_image_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [image("x", 1.0)])
    write_run(tmp_path / "b", [image("y", 1.0)])
    with pytest.raises(DataError, match="no labelled image in common"):
        compare_runs([load_run(tmp_path / name) for name in "ab"])


def test_units_of_several_images_are_compared_as_units(tmp_path: Path) -> None:
    def rows(scores: list[tuple[float, float]]) -> list[dict[str, Any]]:
        pairs = [(f"{i}{side}", score, f"u{i}") for i, both in enumerate(scores) for side, score in zip("lr", both)]  # noqa: B905
        return [image(n, s, "anomalous" if u in {"u0", "u1"} else "normal", unit=u, group=u) for n, s, u in pairs]

    first = rows([(0.2, 1.5), (0.3, 0.4), (0.1, 0.2), (1.2, 0.1), (0.5, 0.5)])
    second = rows([(0.2, 1.5), (0.3, 1.4), (0.1, 0.2), (0.2, 0.1), (0.5, 0.5)])
    write_run(tmp_path / "a", first)
    write_run(tmp_path / "b", second[:-1], failed=("u4",))
    found = compare_runs([load_run(tmp_path / name) for name in "ab"])
    assert (found.noun, found.n_normal, found.n_anomalous) == ("unit", 2, 2)
    assert figure(found, "sensitivity", "a").value == 0.5
    assert figure(found, "sensitivity", "b").value == 1.0
    changes = [(c.name, c.change) for c in found.changes]
    assert changes == [("u1", "found now"), ("u3", "no false alarm any more")]


def test_which_images_changed_sides(tmp_path: Path) -> None:
    write_run(tmp_path / "a", images([0.5, 2.0, 0.5], [0.5, 2.0, 2.0]))
    write_run(tmp_path / "b", images([2.0, 0.5, 0.5], [2.0, 0.5, 2.0]))
    found = compare_runs([load_run(tmp_path / name) for name in "ab"])
    assert {(c.name, c.change) for c in found.changes} == {
        ("n0", "false alarm now"), ("n1", "no false alarm any more"), ("a0", "found now"), ("a1", "missed now"),
    }  # fmt: skip
    assert {(c.first, c.other) for c in found.changes} == {(0.0, 1.0), (1.0, 0.0)}


def test_what_makes_figures_untrue_is_said(tmp_path: Path) -> None:
    write_run(tmp_path / "a", images(NORMAL, ANOMALOUS), what_if=True)
    data = {"name": "p", "warnings": [], "n_seen_in_fit": 3}
    write_run(tmp_path / "b", images(NORMAL, ANOMALOUS), data=data, aborted=True)
    notes = "\n".join(compare_runs([load_run(tmp_path / name) for name in "ab"]).notes)
    assert "a (" in notes
    assert "(what-if)" in notes
    assert "3 of its images were used in fit or to set a threshold: its figures are too good" in notes
    assert "stopped before all images" in notes


def test_one_class_alone_has_rates_only(tmp_path: Path) -> None:
    for name in "ab":
        write_run(tmp_path / name, images(NORMAL, []))
    found = compare_runs([load_run(tmp_path / name) for name in "ab"])
    assert {f.name for f in found.figures} == {"false-alarm rate"}
    assert any("both normal and anomalous" in note for note in found.notes)


def test_the_command_prints_and_writes(tmp_path: Path) -> None:
    two_runs(tmp_path)
    folders = [tmp_path / "one", tmp_path / "two"]
    text = done("compare", *folders, "--name", "old", "--name", "new_&_shiny", "--out", tmp_path / "out")
    assert "ROC-AUC" in text
    assert "Which images changed sides" in text
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"compare.csv", "compare.md", "compare.tex", "changed.csv"}
    with (tmp_path / "out" / "compare.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["variant"] for row in rows[:2]] == ["old", "new_&_shiny"]
    exact = roc_auc(LABELS, np.r_[NORMAL, ANOMALOUS]).value
    assert float(rows[0]["value"]) == exact
    assert r"new\_\&\_shiny" in (tmp_path / "out" / "compare.tex").read_text(encoding="utf-8")
    assert r"new\_&\_shiny" in (tmp_path / "out" / "compare.md").read_text(encoding="utf-8")
    again = run("compare", *folders, "--out", tmp_path / "out")
    assert again.code == 1
    assert "exists already" in again.error
    assert run("compare", *folders, "--out", tmp_path / "table.doc").code == 2
    done("compare", folders[0], "--out", tmp_path / "alone.csv")
    assert "error" not in done("compare", *folders, "--out", tmp_path / "out", "--overwrite")


def with_pixels(folder: Path, strength: float, *, seed: int = 0, n: int = 30, moved_masks: bool = False) -> SavedRun:
    """Give a run of images n0, ... and a0, ... maps whose masked pixels stand out by so much."""
    rng, samples, maps = np.random.default_rng(seed), [], []
    noise, own = rng.normal(size=(2 * n, 16, 16)), rng.uniform(0, 1, 2 * n)
    for i in range(2 * n):
        name = f"n{i}" if i < n else f"a{i - n}"
        samples.append(Sample(id=name, path=name, files=(), unit=name, group=name))
        mask = None if i < n else np.zeros((16, 16), bool)
        if mask is not None:
            mask[4:9, 3 : 8 + moved_masks] = True
            noise[i][mask] += strength + own[i]
        maps.append(PixelMap(noise[i].astype(np.float32), mask))
    found = pixel_figures(lambda: maps, samples, None)
    write_pixels(folder, found)
    write_json(folder / "metrics.json", {"format": 1, "pixel": found.metrics})
    return load_run(folder)


def test_pixel_figures_are_compared_by_whole_images(tmp_path: Path) -> None:
    rows = images(NORMAL[:30], ANOMALOUS[:30])
    folders = [write_run(tmp_path / name, rows) for name in ("weak", "strong", "weak_too")]
    runs = [with_pixels(folder, s) for folder, s in zip(folders, (0.5, 2.0, 0.5), strict=True)]
    found = compare_runs(runs)
    for name, key in (("pixel average precision", "average_precision"), ("AU-PRO 0.3", "au_pro")):
        stored = [run.metrics["pixel"][key] for run in runs]
        values = [one["value"] if "value" in one else one["0.3"]["value"] for one in stored]
        strong, same = (figure(found, name, variant).difference for variant in ("strong", "weak_too"))
        assert strong is not None
        assert strong.interval is not None
        assert strong.p is not None
        assert strong.value == pytest.approx(values[1] - values[0])
        assert 0 < strong.interval.low < strong.value < strong.interval.high
        assert (strong.interval.unit, strong.p < 0.01) == ("image", True)
        assert same is not None
        assert (same.value, same.interval, same.reason) == (0.0, None, "no image makes a difference")
        own = figure(found, name, "strong").interval
        assert own is not None
        assert own.low < values[1] < own.high


def test_the_paired_interval_is_narrower_than_what_each_run_varies_by(tmp_path: Path) -> None:
    """Both runs see the same images: what makes an image hard for both is no part of the difference."""
    rows = images(NORMAL[:30], ANOMALOUS[:30])
    runs = [with_pixels(write_run(tmp_path / name, rows), s) for name, s in (("a", 0.5), ("b", 0.6))]
    found = compare_runs(runs)
    own, step = figure(found, "pixel average precision", "b").interval, figure(found, "pixel average precision", "b")
    assert own is not None
    assert step.difference is not None
    assert step.difference.interval is not None
    assert step.difference.interval.high - step.difference.interval.low < 0.5 * (own.high - own.low)


def test_pixel_figures_without_a_pair_say_why(tmp_path: Path) -> None:
    rows = images(NORMAL[:30], ANOMALOUS[:30])
    for name, moved in (("a", False), ("b", True), ("c", False)):
        with_pixels(write_run(tmp_path / name, rows), 1.0, moved_masks=moved)
    (tmp_path / "c" / "pixel_counts.npz").unlink()
    for other, why in (("b", "the masks differ between the runs"), ("c", "a run keeps no pixel counts")):
        found = compare_runs([load_run(tmp_path / name) for name in ("a", other)])
        step = figure(found, "pixel average precision", other).difference
        assert step is not None
        assert step.interval is None
        assert any(note.startswith(f"pixel average precision: {why}") for note in found.notes)


def test_a_folder_that_is_no_run_is_one_line(tmp_path: Path) -> None:
    assert "cannot read" in run("compare", tmp_path).error
    folder = write_run(tmp_path / "a", images(NORMAL, ANOMALOUS))
    (folder / "units.csv").write_text("unit,decision\nx,normal\n", encoding="utf-8")
    assert "units.csv" in run("compare", folder).error


def test_scores_of_another_tool_are_compared_by_their_ranks(tmp_path: Path) -> None:
    """Such a run has no threshold, no hashes of images, and no seed."""
    write_run(tmp_path / "ours", images(NORMAL, ANOMALOUS))
    folder = write_run(tmp_path / "theirs", images(OTHER_NORMAL, OTHER_ANOMALOUS, image_sha256=""), seed=None)
    without_thresholds(folder)
    found = compare_runs([load_run(tmp_path / name) for name in ("ours", "theirs")])
    assert figure(found, "ROC-AUC", "theirs").difference is not None
    assert {f.variant for f in found.figures if f.name == "sensitivity"} == {"ours"}
    assert not found.changes
    assert any("no threshold" in note for note in found.notes)
    turned = compare_runs([load_run(tmp_path / name) for name in ("theirs", "ours")])
    assert figure(turned, "sensitivity", "ours").difference is None
    copy = shutil.copytree(folder, tmp_path / "again")
    assert figure(compare_runs([load_run(folder), load_run(copy)], ["x", "x"]), "ROC-AUC", "x").n_runs == 2


def test_without_a_threshold_nothing_is_checked(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "theirs", images(NORMAL, ANOMALOUS))
    without_thresholds(folder)
    for command in (["check", folder, "--min-sensitivity", "0.5"], ["msa", folder, "--part", "unit"]):
        assert "no threshold" in run(*command).error


def without_thresholds(folder: Path) -> None:
    """Take decisions and thresholds out of a run, as `evaluate --scores` writes it without calibration images."""
    path, nothing = folder / "scores.jsonl", {"decision": "", "threshold": "", "p_value": ""}
    rows = [json.loads(line) | nothing for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    info = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    info["threshold"] = {"image": None, "unit": None, "pixel": None, "reason": "No threshold: none given."}
    (folder / "run.json").write_text(json.dumps(info), encoding="utf-8")
    with (folder / "units.csv").open(encoding="utf-8", newline="") as file:
        units = [row | nothing for row in csv.DictReader(file)]
    with (folder / "units.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, units[0])
        writer.writeheader()
        writer.writerows(units)
