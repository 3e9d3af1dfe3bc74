"""Tables and figures from rows alone: no image, no model."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import tempfile
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomaly_ae.calibration import Asked, CalibrationScores, Thresholds, calibration_scores, thresholds_from
from anomaly_ae.errors import CalibrationError, DataError, OutputError
from anomaly_ae.listener import Listener
from anomaly_ae.metrics import found_rate_band
from anomaly_ae.metrics.checks import groups_if_any
from anomaly_ae.records import Failure
from anomaly_ae.report.run import read_run
from anomaly_ae.results import (
    FAILURE_COLUMNS,
    FORMAT,
    SCORE_COLUMNS,
    UNIT_COLUMNS,
    decide_rows,
    failure_row,
    figures,
    read_json,
    read_rows,
    redecide,
    run_metrics,
    unit_rows,
    write_json,
    write_tables,
)
from anomaly_ae.results.tables import COUNTED, csv_table, json_lines, write_csv
from anomaly_ae.results.tables import read_csv as read_table

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "reference" / "results.md"
RNG = np.random.default_rng(5)
CALIBRATION = RNG.gamma(4, 0.5, 40)


def calibration(groups: list[str] | None = None, units: list[str] | None = None) -> CalibrationScores:
    names = [str(i) for i in range(len(CALIBRATION))]
    return calibration_scores(CALIBRATION, CALIBRATION, units or names, groups or units or names)


def row(number: int, score: float, label: str = "normal", **changes: Any) -> dict[str, Any]:
    name = f"{number:02d}.png"
    values: dict[str, Any] = {
        "format": FORMAT, "id": name, "path": name, "frame": 0, "label": label,
        "defect": "", "unit": name, "group": name, "time_utc": "2025-01-02T03:04:05.678+00:00",
        "decision": 0, "score": score, "threshold": 0.0, "display": 0.0, "p_value": 1.0,
        "pixel_threshold": 4.5, "n_regions": 0, "largest_region_px": 0, "milliseconds": 1.5,
        "image_sha256": "ab" * 32, "weights_sha256": "cd" * 32, "thresholds_sha256": "", "version": "0",
        "extra": {}, "regions": [],
        "baselines": {"mean grey": score % 1, "PCA residual": score**2},
    }  # fmt: skip
    return values | changes


def failed(**changes: Any) -> dict[str, Any]:
    names = dict.fromkeys(("id", "path", "unit", "group"), "x.png")
    values = {"format": FORMAT, **names, "frame": 0, "reason": "x.png: truncated", "time_utc": "2025-01-02T03:04:05Z"}
    return values | {"decision": 9} | changes


def some_rows(n: int = 60) -> list[dict[str, Any]]:
    """Two thirds normal; anomalous ones of two kinds, higher on the whole; two stations."""
    rng = np.random.default_rng(6)
    rows = []
    for i in range(n):
        defect = ("", "", "crack" if i % 2 else "spot")[i % 3]
        score = float(rng.gamma(4, 0.5) + (1.5 if defect else 0))
        label = "anomalous" if defect else "normal"
        rows.append(row(i, score, label, defect=defect, extra={"station": "AB"[i % 2], "note": "x"}))
    return rows


def strict(text: str) -> Any:
    """Parse JSON as the standard has it: without NaN and Infinity."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def share_of_pairs(rows: list[dict[str, Any]]) -> float:
    """ROC-AUC by counting every pair."""
    normal = np.array([r["score"] for r in rows if r["label"] == "normal"])
    anomalous = np.array([r["score"] for r in rows if r["label"] == "anomalous"])
    return float(np.mean((anomalous[:, None] > normal) + 0.5 * (anomalous[:, None] == normal)))


# --- decisions ------------------------------------------------------------


def test_rows_are_decided_by_the_threshold_and_told_how_usual_they_are() -> None:
    scores = calibration()
    thresholds = thresholds_from(scores, "5%")
    limit = thresholds.image.value
    values = [0.0, np.nextafter(limit, 0), limit, limit + 1, *CALIBRATION.tolist()]
    decided = decide_rows([row(i, v) for i, v in enumerate(values)], scores, thresholds)
    assert [r["decision"] for r in decided] == [2 if v >= limit else 0 for v in values]
    assert {r["threshold"] for r in decided} == {limit}
    assert {r["thresholds_sha256"] for r in decided} == {thresholds.sha256}
    for r in decided:
        assert r["p_value"] == (1 + sum(r["score"] <= CALIBRATION)) / 41
        assert (r["display"] >= 1) == (r["decision"] == 2)
        assert r["decision"] == 0 or r["p_value"] <= 0.05
    middle = decide_rows([row(0, float(np.median(CALIBRATION)))], scores, thresholds)
    assert middle[0]["display"] == pytest.approx(0)


def test_a_unit_is_its_worst_image() -> None:
    units = [f"part-{i // 4}" for i in range(40)]
    scores = calibration(units=units)
    thresholds = thresholds_from(scores, "1/5")
    rows = [row(i, s, unit=u, group="g") for i, (s, u) in enumerate([(1.0, "b"), (9.0, "a"), (2.0, "b"), (0.5, "a")])]
    found = unit_rows(rows, {}, scores, thresholds)
    assert [(u["unit"], u["score"], u["n_images"]) for u in found] == [("a", 9.0, 2), ("b", 2.0, 2)]
    limit = thresholds.unit.value
    assert limit != thresholds.image.value
    assert [u["decision"] for u in found] == [2 if s >= limit else 0 for s in (9.0, 2.0)]
    worst = CALIBRATION.reshape(10, 4).max(axis=1)
    assert [u["p_value"] for u in found] == [(1 + sum(worst >= s)) / 11 for s in (9.0, 2.0)]
    assert {u["threshold"] for u in found} == {limit}


def test_a_unit_with_an_image_that_was_not_inspected_is_not_decided() -> None:
    scores = calibration()
    rows = [row(0, 1e9, unit="a"), row(1, 0.0, unit="b")]
    found = unit_rows(rows, {"a": "ga", "c": "gc"}, scores, thresholds_from(scores))
    by_name = {u["unit"]: u for u in found}
    assert [u["decision"] for u in found] == [9, 0, 9]
    assert by_name["c"]["group"] == "gc"
    assert by_name["c"]["n_images"] == 0
    for name in ("a", "c"):
        assert [by_name[name][key] for key in ("score", "display", "p_value")] == [None] * 3


@pytest.mark.parametrize(
    ("labels", "label"),
    [
        (["normal", "anomalous"], "anomalous"),
        (["normal", "normal"], "normal"),
        (["normal", ""], ""),
        (["", "anomalous"], "anomalous"),
        (["", ""], ""),
    ],
)
def test_label_of_a_unit(labels: list[str], label: str) -> None:
    rows = [row(i, 1.0, text, unit="u") for i, text in enumerate(labels)]
    (found,) = unit_rows(rows, {}, calibration(), thresholds_from(calibration()))
    assert found["label"] == label


def test_units_without_thresholds_have_scores_and_no_decision() -> None:
    rows = [row(0, 1.0, unit="a"), row(1, 3.0, unit="a"), row(2, 5.0, unit="b")]
    one, other = unit_rows(rows, {"b": "g"})
    assert (one["score"], one["decision"], one["threshold"], one["p_value"]) == (3.0, "", "", "")
    assert (other["score"], other["decision"]) == (None, 9)


def test_a_failure_has_its_own_time() -> None:
    line = failure_row(Failure("a", "a.png", 0, "a", "a", "truncated"))
    assert set(line) == set(FAILURE_COLUMNS)
    assert datetime.fromisoformat(line["time_utc"]).utcoffset() == timedelta(0)


# --- figures ------------------------------------------------------------


def test_figures_equal_counting() -> None:
    rows, scores = some_rows(), calibration()
    thresholds = thresholds_from(scores, "10%")
    found = figures(rows, thresholds.image)
    assert found["roc_auc"]["value"] == pytest.approx(share_of_pairs(rows))
    assert (found["roc_auc"]["n_normal"], found["roc_auc"]["n_anomalous"]) == (40, 20)
    (rates,) = found["at_threshold"]
    flagged = {label: [r["score"] >= thresholds.image.value for r in rows if r["label"] == label]
               for label in ("normal", "anomalous")}  # fmt: skip
    assert rates["false_alarm_rate"]["value"] == pytest.approx(np.mean(flagged["normal"]))
    assert rates["specificity"]["value"] == pytest.approx(1 - np.mean(flagged["normal"]))
    assert rates["sensitivity"]["value"] == pytest.approx(np.mean(flagged["anomalous"]))
    assert rates["rate_asked"] == "1/10"
    assert rates["threshold"] == thresholds.image.value
    assert rates["promise"] == thresholds.image.promise
    assert rates["false_alarm_band"] == list(found_rate_band(40, thresholds.image.rank or 0, 40))


def test_the_band_is_for_independent_images_only() -> None:
    scores = calibration()
    rows = [r | {"group": f"lot-{i // 4}"} for i, r in enumerate(some_rows())]
    with_groups = figures(rows, thresholds_from(scores, "10%").image)
    assert with_groups["at_threshold"][0]["false_alarm_band"] is None
    why = "images come in groups: known for independent images only"
    assert with_groups["at_threshold"][0]["false_alarm_band_reason"] == why
    assert (
        figures(some_rows(), thresholds_from(scores, "10%").image)["at_threshold"][0]["false_alarm_band_reason"] == ""
    )
    assert with_groups["roc_auc"]["intervals"][0]["unit"] == "group"
    grouped = calibration(groups=[f"lot-{i // 2}" for i in range(40)])
    assert figures(some_rows(), thresholds_from(grouped, "10%").image)["at_threshold"][0]["false_alarm_band"] is None


def test_groups_count_only_where_two_rows_share_one() -> None:
    assert groups_if_any(["a", "b"]) is None
    assert groups_if_any(["a", "b", "a"]) == ["a", "b", "a"]


def test_breakdowns_by_defect_and_by_column() -> None:
    rows, scores = some_rows(), calibration()
    thresholds = thresholds_from(scores)
    units = unit_rows(rows, {}, scores, thresholds)
    found = run_metrics(rows, units, thresholds, ["station"])
    assert set(found) == {"image", "unit", "per_defect", "by"}
    assert found["unit"]["roc_auc"]["value"] is None
    assert found["unit"]["roc_auc"]["reason"] == "every unit is one image: its figures are those of images"
    assert found["unit"]["at_threshold"] == []
    assert list(found["per_defect"]) == ["crack", "spot"]
    for name, figure in found["per_defect"].items():
        against = [r for r in rows if r["label"] == "normal" or r["defect"] == name]
        assert figure["roc_auc"]["value"] == pytest.approx(share_of_pairs(against))
        assert figure["roc_auc"]["n_normal"] == 40
    assert list(found["by"]["station"]) == ["A", "B"]
    for value, figure in found["by"]["station"].items():
        part = [r for r in rows if r["extra"]["station"] == value]
        assert figure["roc_auc"]["value"] == pytest.approx(share_of_pairs(part))
        assert figure["at_threshold"][0]["false_alarm_band"] is None, "nothing is promised for one station alone"
        assert "for all images together" in figure["at_threshold"][0]["false_alarm_band_reason"]
    assert found["image"]["at_threshold"][0]["false_alarm_band"]


def test_figures_of_units_leave_out_what_was_not_inspected() -> None:
    rows = [r | {"unit": f"u{i // 3}"} for i, r in enumerate(some_rows())]
    scores = calibration(units=[f"c{i // 2}" for i in range(40)])
    thresholds = thresholds_from(scores)
    units = unit_rows(rows, {"u0": "u0", "u5": "u5"}, scores, thresholds)
    found = run_metrics(rows, units, thresholds, [])["unit"]
    # every third image is anomalous, so every unit of three has one
    assert (found["roc_auc"]["n_normal"], found["roc_auc"]["n_anomalous"]) == (0, 18)
    assert found["at_threshold"][0]["threshold"] == thresholds.unit.value
    assert thresholds.unit.promise.endswith("units are taken as independent (20 units).")
    assert thresholds.image.promise.endswith("(20 groups; every group counts once).")


def test_intervals_and_reasons_of_unit_figures_speak_of_units() -> None:
    rows = [r | {"unit": f"u{i // 3}", "label": "anomalous" if i % 2 else "normal"} for i, r in enumerate(some_rows())]
    kept = [r for r in rows if int(r["unit"][1:]) % 2 == (r["label"] == "anomalous")]
    scores = calibration(units=[f"c{i // 2}" for i in range(40)])
    thresholds = thresholds_from(scores)
    units = unit_rows(kept, {}, scores, thresholds)
    found = run_metrics(kept, units, thresholds, [])["unit"]
    areas = [found, *found["baselines"].values()]
    metrics = [area[name] for area in areas for name in ("roc_auc", "average_precision")]
    metrics += [found["at_threshold"][0][name] for name in ("sensitivity", "false_alarm_rate", "specificity")]
    assert {interval["unit"] for metric in metrics for interval in metric["intervals"]} == {"unit"}
    normal = [unit for unit in units if unit["label"] == "normal"]
    assert "no anomalous units" in figures(normal, thresholds.unit, "unit")["roc_auc"]["reason"]
    worst = {u["unit"]: max(r["baselines"]["mean grey"] for r in kept if r["unit"] == u["unit"]) for u in units}
    assert {u["unit"]: u["baselines"]["mean grey"] for u in units} == worst


@pytest.mark.parametrize("label", ["normal", "anomalous", ""])
def test_with_one_class_what_can_be_said_is_said(label: str) -> None:
    scores = calibration()
    thresholds = thresholds_from(scores, "10%")
    rows = [row(i, s, label, defect="crack" if label == "anomalous" else "") for i, s in enumerate((0.1, 99.0))]
    units = unit_rows(rows, {}, scores, thresholds)
    found = run_metrics(rows, units, thresholds, [])
    assert found["image"]["roc_auc"]["value"] is None
    assert found["image"]["roc_auc"]["reason"]
    (rates,) = found["image"]["at_threshold"]
    assert rates["false_alarm_rate"]["value"] == (0.5 if label == "normal" else None)
    assert rates["sensitivity"]["value"] == (0.5 if label == "anomalous" else None)
    for metric in (rates["false_alarm_rate"], rates["sensitivity"], found["image"]["average_precision"]):
        assert (metric["value"] is None) == bool(metric["reason"])
    assert strict(json.dumps(found, allow_nan=False)) == found
    assert found["image"]["baselines"]["mean grey"]["roc_auc"]["value"] is None


def test_baselines_are_ranked_like_the_detector() -> None:
    rows = some_rows()
    found = figures(rows, None)["baselines"]
    assert set(found) == {"mean grey", "PCA residual"}
    assert found["PCA residual"]["roc_auc"]["value"] == pytest.approx(share_of_pairs(rows)), (
        "the square keeps the order"
    )


def test_baselines_stand_beside_the_detector_everywhere() -> None:
    rows, scores = some_rows(), calibration()
    thresholds = thresholds_from(scores)
    found = run_metrics(rows, unit_rows(rows, {}, scores, thresholds), thresholds, ["station"])
    for part in (found["image"], *found["per_defect"].values(), *found["by"]["station"].values()):
        assert set(part["baselines"]) == {"mean grey", "PCA residual"}
        for name in ("roc_auc", "average_precision"):
            ours, pca = part[name], part["baselines"]["PCA residual"][name]
            assert pca == ours, "the square keeps the order"
            assert part["baselines"]["mean grey"][name]["value"] != ours["value"]


# --- tables ------------------------------------------------------------


def documented(name: str) -> list[str]:
    """Return the columns that the document names for a file, in its order."""
    section = re.search(rf"^## `{re.escape(name)}`\n(.*?)(?=^## |\Z)", DOCUMENT.read_text("utf-8"), re.M | re.S)
    assert section
    cells = re.findall(r"^\| (`[^|]*) \|", section[1], re.M)
    return [column for cell in cells for column in re.findall(r"`(\w+)`", cell)]


def write(folder: Path, rows: list[dict[str, Any]], failures: list[dict[str, Any]] | None = None) -> None:
    scores = calibration()
    thresholds = thresholds_from(scores)
    incomplete = {f["unit"]: f["group"] for f in failures or []}
    write_tables(folder, rows, unit_rows(rows, incomplete, scores, thresholds), failures or [])


FIELDS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    st.sampled_from(["]", "[", "],[", ",", '"', "\\", "null", "true", "\n", "\r\n", "\u2028", ""]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-(2**53), 2**53),
    st.booleans(),
    st.none(),
    st.floats(-1e6, 1e6).map(np.float64),
)


@given(lines=st.lists(st.tuples(FIELDS, FIELDS, FIELDS), max_size=4), n_more=st.sampled_from([0, 498, 1000]))
def test_whatever_a_table_holds_comes_back(lines: list[tuple[Any, ...]], n_more: int) -> None:
    lines = [*lines, *[("a.png", 0.25, "")] * n_more]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        write_csv(path, ["a", "b", "c"], [dict(zip("abc", line, strict=True)) for line in lines])
        header, *found = csv.reader(io.StringIO(path.read_bytes().decode(), newline=""), strict=True)
        assert csv_table(path, ["a"]) == (header, found)
    assert header == ["a", "b", "c"]
    asked = [["" if field is None else str(field) for field in line] for line in lines]
    assert list(map(_same_numbers, found)) == list(map(_same_numbers, asked))


def _same_numbers(line: list[str]) -> list[str]:
    """Write 1e16 and 1e+16 alike."""
    return [str(float(field)) if re.fullmatch(r"-?[\d.]+e[-+]?\d+", field) else field for field in line]


def test_numbers_of_every_kind_stand_in_json_lines() -> None:
    numbers = {"a": np.float64(0.5), "b": np.int64(3), "c": np.float32(0.25), "d": np.bool_(True), "e": float("nan")}
    (line,) = json_lines([{**numbers, "f": "ü \u2028 \n"}])
    assert json.loads(line) == {"a": 0.5, "b": 3, "c": 0.25, "d": True, "e": None, "f": "ü \u2028 \n"}
    assert line.count("\n") == 1


def test_tables_have_the_documented_columns_and_one_line_per_image(tmp_path: Path) -> None:
    rows = some_rows()
    failure = failed(id="x.tif#2", path="x.tif", frame=2)
    write(tmp_path, rows, [failure])
    header = {name: (tmp_path / name).read_text("utf-8").split("\n")[0].split(",")
              for name in ("scores.csv", "units.csv", "failures.csv")}  # fmt: skip
    assert header["scores.csv"] == [*documented("scores.csv"), "note", "station"]
    assert header["scores.csv"][:-2] == SCORE_COLUMNS
    assert header["units.csv"] == documented("units.csv") == UNIT_COLUMNS
    assert header["failures.csv"] == documented("failures.csv")
    n_lines = {name: (tmp_path / name).read_text("utf-8").count("\n") for name in header}
    assert n_lines == {"scores.csv": 61, "units.csv": 62, "failures.csv": 2}
    assert b"\r" not in (tmp_path / "scores.csv").read_bytes()
    (line,) = read_csv(tmp_path / "failures.csv")
    assert line == {name: str(value) for name, value in failure.items()}
    assert (line["id"], line["frame"], line["decision"], line["format"]) == ("x.tif#2", "2", "9", "1")


def test_a_number_in_a_table_is_the_number(tmp_path: Path) -> None:
    rows = some_rows()
    write(tmp_path, rows)
    assert [float(line["score"]) for line in read_csv(tmp_path / "scores.csv")] == [r["score"] for r in rows]
    lines = (tmp_path / "scores.jsonl").read_text("utf-8").splitlines()
    assert [strict(line) for line in lines] == rows
    assert read_rows(tmp_path / "scores.jsonl") == rows


def test_names_of_every_kind_come_back(tmp_path: Path) -> None:
    names = ["a,b.png", 'say "x".png', "two\nlines.png", "ü µ 漢.png", "\u2028.png", "=1+1.png", " padded .png"]
    rows = [row(i, 1.0, id=name, unit=name, extra={"station": name}) for i, name in enumerate(names)]
    write(tmp_path, rows)
    lines = read_csv(tmp_path / "scores.csv")
    assert [line["id"] for line in lines] == names
    assert [line["station"] for line in lines] == names
    assert [r["id"] for r in read_rows(tmp_path / "scores.jsonl")] == names
    assert {line["unit"] for line in read_csv(tmp_path / "units.csv")} == set(names)


def test_a_column_of_the_manifest_hides_no_result(tmp_path: Path) -> None:
    rows = [row(0, 1.25, extra={"score": "mine", "regions": "north", "baselines": "b"}), row(1, 2.5)]
    write(tmp_path, rows)
    first, second = read_csv(tmp_path / "scores.csv")
    assert first["score"] == "1.25"
    assert (first["regions"], first["baselines"]) == ("north", "b")
    assert (second["regions"], second["baselines"]) == ("", ""), "a row without this column has an empty cell"


def test_nan_is_never_written(tmp_path: Path) -> None:
    write_json(tmp_path / "metrics.json", {"value": 1.0})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "metrics.json", {"value": float("nan")})
    assert strict((tmp_path / "metrics.json").read_text("utf-8")) == {"value": 1.0}, "the old file is untouched"
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


# --- another rate for a finished run ------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of 60 images in 20 units, one image of unit u3 unreadable, with what `redecide` reads."""
    rows = [r | {"unit": f"u{i // 3}"} for i, r in enumerate(some_rows())]
    units = [f"c{i // 2}" for i in range(40)]
    scores = calibration(units=units, groups=[str(i) for i in range(40)])
    thresholds = thresholds_from(scores, "20%")
    rows = [r | {"pixel_threshold": thresholds.pixel.value} for r in rows]
    decided = decide_rows(rows, scores, thresholds)
    found = unit_rows(decided, {"u3": "g", "u99": "g"}, scores, thresholds)
    failures = [failed(unit="u3", group="g")]
    write_tables(tmp_path, decided, found, failures)
    metrics = {
        "format": FORMAT,
        "what_if": False,
        "chosen_on_these_images": False,
        "pixel": {"kept": True},
        **run_metrics(decided, found, thresholds, ["station"]),
    }
    write_json(tmp_path / "metrics.json", metrics)
    info = {"format": FORMAT, "calibration": {**scores.as_json(), "median": scores.median},
            "threshold": thresholds.as_json(), "command": "evaluate"}  # fmt: skip
    write_json(tmp_path / "run.json", info)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("counted", [False, True])
def test_what_was_just_decided_makes_the_page_that_the_files_make(run: Path, counted: bool) -> None:
    if counted:
        rows, units = read_rows(run / "scores.jsonl"), read_table(run / "units.csv", UNIT_COLUMNS)
        own = {"station": "A", "score": "mine", "regions": "north", "extra": "hard"}
        write_tables(run, [{**row, "extra": own, COUNTED: i % 2} for i, row in enumerate(rows)], units, [])
    tables = redecide(run, Asked(rate="5%")).tables
    of_files, of_memory = read_run(run), read_run(run, tables)
    assert len(of_files.rows) == 60
    assert any(row.extra for row in of_files.rows)
    for one, other in ((of_files.rows, of_memory.rows), (of_files.units, of_memory.units)):
        for file_row, row in zip(one, other, strict=True):
            for name, value in file_row._asdict().items():
                found = getattr(row, name)
                assert str(found) == str(value) if isinstance(value, float) else found == value, name  # NaN, too


def test_a_run_that_lost_a_line_is_not_decided_again(run: Path) -> None:
    lines = (run / "scores.jsonl").read_text("utf-8").splitlines(keepends=True)
    (run / "scores.jsonl").write_text("".join(lines[1:]), "utf-8")
    before = contents(run)
    with pytest.raises(DataError, match="name other images"):
        redecide(run, Asked(rate="5%"))
    assert contents(run) == before


@pytest.mark.parametrize("n_written", [0, 1, 5])
def test_where_the_disk_is_full_the_run_stays_as_it_was(
    run: Path, monkeypatch: pytest.MonkeyPatch, n_written: int
) -> None:
    before, synced = contents(run), list[int]()

    def fsync(handle: int) -> None:
        if len(synced) == n_written:
            raise OSError(errno.ENOSPC, "No space left on device")
        synced.append(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OutputError, match="cannot write"):
        redecide(run, Asked(rate="5%"))
    assert contents(run) == before


def test_another_rate_changes_decisions_and_figures_and_nothing_else(run: Path) -> None:
    before, metrics_before = read_rows(run / "scores.jsonl"), read_json(run / "metrics.json")
    result = redecide(run, Asked(rate="5%"))
    thresholds = result.thresholds
    after, metrics = read_rows(run / "scores.jsonl"), read_json(run / "metrics.json")
    scores = CalibrationScores.from_json(read_json(run / "run.json")["calibration"])
    assert thresholds == thresholds_from(scores, "5%")
    assert after == decide_rows(before, scores, thresholds)
    assert after != before
    changed = {"decision", "threshold", "display", "p_value", "thresholds_sha256"}
    for old, new in zip(before, after, strict=True):
        assert {k: v for k, v in old.items() if k not in changed} == {k: v for k, v in new.items() if k not in changed}
    assert metrics["pixel"] == {"kept": True}
    assert metrics["image"]["roc_auc"] == metrics_before["image"]["roc_auc"]
    assert metrics["by"]["station"]["A"]["at_threshold"][0]["threshold"] == thresholds.image.value
    assert (result.n_images, result.n_anomalous) == (60, sum(r["decision"] == 2 for r in after))
    assert result.n_anomalous != sum(r["decision"] == 2 for r in before)
    assert f"{result.n_anomalous} of 60 images are anomalous at it" in result.lines()
    assert metrics["what_if"] is read_json(run / "run.json")["what_if"] is True
    assert read_json(run / "run.json")["threshold"]["image"]["rate"] == "1/20"
    assert [line["decision"] for line in read_csv(run / "scores.csv")] == [str(r["decision"]) for r in after]


def test_units_that_were_not_inspected_stay_so(run: Path) -> None:
    redecide(run, Asked(rate="5%"))
    decisions = {line["unit"]: line["decision"] for line in read_csv(run / "units.csv")}
    assert (decisions["u3"], decisions["u99"]) == ("9", "9"), "also one that failures.csv does not name"
    assert "9" not in {code for unit, code in decisions.items() if unit not in {"u3", "u99"}}
    assert len(read_csv(run / "failures.csv")) == 1


def test_asking_twice_is_asking_once_and_there_is_a_way_back(run: Path) -> None:
    first = contents(run)
    redecide(run, Asked(rate="5%"))
    once = contents(run)
    redecide(run, Asked(rate="5%"))
    assert contents(run) == once
    redecide(run, Asked(rate="20%"))
    assert read_json(run / "run.json")["what_if"] is False, "the rate of the model is no what-if"
    same = ("scores.csv", "scores.jsonl", "units.csv", "failures.csv", "metrics.json")
    assert {name: contents(run)[name] for name in same} == {name: first[name] for name in same}


def test_figures_that_no_threshold_changes_are_kept_and_the_others_are_new(run: Path) -> None:
    redecide(run, Asked(rate="5%", review_rate="50%"))
    kept = read_json(run / "metrics.json")
    info, rows = read_json(run / "run.json"), read_rows(run / "scores.jsonl")
    scores, thresholds = CalibrationScores.from_json(info["calibration"]), Thresholds.from_json(info["threshold"])
    units = unit_rows(rows, {"u3": "g", "u99": "g"}, scores, thresholds)
    afresh = run_metrics(rows, units, thresholds, ["station"])
    assert {name: kept[name] for name in afresh} == json.loads(json.dumps(afresh))
    metrics = kept["image"].pop("pg")  # as in a run of before
    write_json(run / "metrics.json", kept)
    redecide(run, Asked(rate="5%", review_rate="50%"))
    assert read_json(run / "metrics.json")["image"]["pg"] == metrics


def test_a_rule_on_labels_marks_the_run_and_leaves_the_false_alarm_band_out(run: Path) -> None:
    result = redecide(run, Asked(sensitivity="0.75"))
    metrics, info = read_json(run / "metrics.json"), read_json(run / "run.json")
    assert metrics["chosen_on_these_images"] is info["chosen_on_these_images"] is True
    assert info["threshold"]["image"]["rule"] == metrics["image"]["at_threshold"][0]["rule"] == "sensitivity"
    assert metrics["image"]["at_threshold"][0]["sensitivity"]["value"] >= 0.75
    assert "no false-alarm rate" in metrics["image"]["at_threshold"][0]["false_alarm_band_reason"]
    assert any("chosen on these images: the figures" in line for line in result.lines())
    redecide(run, Asked(rate="5%"))
    assert read_json(run / "metrics.json")["chosen_on_these_images"] is False


def test_a_review_band_is_decided_counted_and_said(run: Path) -> None:
    result = redecide(run, Asked(rate="5%", review_rate="50%"))
    rows = read_rows(run / "scores.jsonl")
    assert result.n_review == sum(r["decision"] == 1 for r in rows) > 0
    said = "\n".join(result.lines())
    assert f"images are anomalous at it, {result.n_review} for review\nfor review, of 1,000 images: " in said
    decisions = [line["decision"] for line in read_csv(run / "units.csv")]
    assert set(decisions) >= {"0", "1", "9"}
    n_units = f"{decisions.count('2')} of {len(decisions)} units are anomalous at it, {decisions.count('1')} for review"
    assert n_units in said
    assert "unit threshold" in said[: said.index(n_units)]
    figures = read_json(run / "metrics.json")["image"]
    review = figures["at_threshold"][0]["review"]
    assert review["load"]["value"] == pytest.approx(result.n_review / 60)
    assert f"outside the band: false-alarm rate {review['outside']['false_alarm_rate']['value']:.3f} [" in said
    assert f"{1000 * figures['at_defect_rate'][0]['review']['value']:.0f} [" in said


def test_nothing_asked_brings_the_thresholds_of_the_model_back(run: Path) -> None:
    first = read_json(run / "run.json")["threshold"]
    redecide(run, Asked(value=3.0))
    assert read_json(run / "run.json")["threshold"] != first
    redecide(run, Asked())
    info = read_json(run / "run.json")
    assert (info["threshold"], info["what_if"], info["chosen_on_these_images"]) == (first, False, False)


def test_labels_that_a_rule_needs_are_missed_before_anything_changes(run: Path) -> None:
    rows = [r | {"label": "normal"} for r in read_rows(run / "scores.jsonl")]
    (run / "scores.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    before = contents(run)
    with pytest.raises(DataError, match="no anomalous images"):
        redecide(run, Asked(sensitivity="0.9"))
    assert contents(run) == before


def test_it_is_said_when_regions_follow_another_threshold_than_decisions(run: Path) -> None:
    heard: list[str] = []
    first = read_json(run / "run.json")["threshold"]["pixel"]["value"]
    now = redecide(run, Asked(rate="5%"), Listener(say=heard.append)).thresholds.pixel.value
    (line,) = heard
    assert f"the pixel threshold of the scoring, {first:.4g}; it is {now:.4g} now" in line
    assert {row["pixel_threshold"] for row in read_csv(run / "scores.csv")} == {str(first)}
    redecide(run, Asked(rate="20%"), Listener(say=heard.append))
    assert heard == [line], "back at the threshold of the scoring there is nothing to say"


def test_a_run_of_score_has_no_figures_to_change(run: Path) -> None:
    (run / "metrics.json").unlink()
    redecide(run, Asked(rate="5%"))
    assert not (run / "metrics.json").exists()


def test_a_rate_out_of_reach_changes_nothing(run: Path) -> None:
    before = contents(run)
    with pytest.raises(CalibrationError, match="at least 99"):
        redecide(run, Asked(rate="1%"))
    assert contents(run) == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", None, "cannot read"),
        ("run.json", b"{", "cannot read"),
        ("run.json", b"\xff\xfe", "cannot read"),
        ("run.json", b'{"format": 99}', "format 99"),
        ("scores.jsonl", b"{", "cannot read"),
        ("scores.jsonl", None, "cannot read"),
        ("metrics.json", b'{"format": 99}', "format 99"),
        ("run.json", b"[]", "cannot read"),
        ("run.json", b'{"format": 1}', "'calibration' is missing"),
        ("run.json", b'{"format": 1, "calibration": {"image": "x"}}', "cannot read"),
        ("scores.jsonl", b'{"format": 1}', "'id' is missing"),
        ("units.csv", None, "cannot read"),
        ("units.csv", b"a,b\n1,2\n", "'format' is missing"),
        ("failures.csv", None, "cannot read"),
        ("failures.csv", b"path,reason,unit,group\nx,y,u3,g\n", "'format' is missing"),
        ("failures.csv", b"\xff", "cannot read"),
    ],
)
def test_what_is_no_run_is_said_to_be_none(run: Path, name: str, content: bytes | None, message: str) -> None:
    if content is None:
        (run / name).unlink()
    else:
        (run / name).write_bytes(content)
    before = contents(run)
    with pytest.raises(DataError, match=message):
        redecide(run, Asked(rate="5%"))
    assert contents(run) == before


def test_a_review_band_alone_leaves_the_threshold_of_the_model(run: Path) -> None:
    first = read_json(run / "run.json")["threshold"]
    redecide(run, Asked(rate="5%"))
    redecide(run, Asked(review_rate="50%"))
    now = read_json(run / "run.json")["threshold"]
    assert now["image"].pop("review")["rate"] == now["unit"].pop("review")["rate"] == "1/2"
    assert now == first
