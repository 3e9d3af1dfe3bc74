"""Demands on a run, golden images, exit codes, and the XML that pipelines read."""

from __future__ import annotations

import shutil
import time
from fractions import Fraction
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from command import run
from hypothesis import given, settings
from hypothesis import strategies as st
from saved_run import image, images, write_run
from scipy.stats import binom

from anomaly_ae.calibration import Asked
from anomaly_ae.errors import DataError, UsageError
from anomaly_ae.judging import Outcome, check_gates, check_golden, load_run
from anomaly_ae.judging.golden import WORDS, read_golden
from anomaly_ae.judging.junit import junit_xml
from anomaly_ae.records import Decision
from anomaly_ae.results import redecide, write_json

HIGH, LOW = 2.0, 0.5  # on either side of the threshold, which is just above 1


def checked(
    tmp_path: Path, n_false: int, n_normal: int, n_missed: int, n_anomalous: int, **asked: Any
) -> list[Outcome]:
    """Demands on a run of so many images, without the one that all images were inspected."""
    normal = [HIGH] * n_false + [LOW] * (n_normal - n_false)
    anomalous = [LOW] * n_missed + [HIGH] * (n_anomalous - n_missed)
    folder = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
    first, *rest = check_gates(load_run(write_run(folder, images(normal, anomalous))), **asked)
    assert first.passed
    return rest


def test_without_confidence_the_found_rate_decides(tmp_path: Path) -> None:
    asked = {"min_sensitivity": "0.95", "max_false_alarm_rate": "0.02"}
    sensitivity, false_alarms = checked(tmp_path, 2, 100, 1, 20, **asked)
    assert (sensitivity.passed, false_alarms.passed) == (True, True)  # 19/20 and 2/100: exactly kept
    assert "1 missed in 20 anomalous images, sensitivity 95 %" in sensitivity.text
    assert "2 false alarms in 100 normal images, false-alarm rate 2 %" in false_alarms.text
    sensitivity, false_alarms = checked(tmp_path, 3, 100, 2, 20, **asked)
    assert (sensitivity.passed, false_alarms.passed) == (False, False)


@pytest.mark.parametrize(("n_missed", "n", "passed"), [(0, 58, False), (0, 59, True), (1, 92, False), (1, 93, True)])
def test_with_confidence_the_bound_decides(n_missed: int, n: int, passed: bool, tmp_path: Path) -> None:
    """59 and 93 are the sizes of the usual sampling tables for 95 % with 95 % confidence and 0 or 1 failures."""
    (found,) = checked(tmp_path, 0, 1, n_missed, n, min_sensitivity="0.95", confidence="0.95")
    assert found.passed is passed
    assert bool(binom.cdf(n_missed, n, 0.05) <= 0.05) is passed
    assert ("at least 59 are needed" in found.text) is (n < 59)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 400), st.data())
def test_the_bound_on_false_alarms_is_the_exact_test(n: int, data: st.DataObject) -> None:
    import tempfile

    n_false = data.draw(st.integers(0, min(n, 12)))
    with tempfile.TemporaryDirectory() as folder:
        (found,) = checked(Path(folder), n_false, n, 0, 1, max_false_alarm_rate="1/50", confidence="90%")
    assert found.passed == (binom.cdf(n_false, n, 1 / 50) <= 0.1)
    assert ("are needed" in found.text) == (n < 114)


def test_groups_count_not_images(tmp_path: Path) -> None:
    rows = images([LOW] * 2000, [])
    rows = [row | {"group": f"lot-{i % 20}"} for i, row in enumerate(rows)]
    folder = write_run(tmp_path / "a", rows)
    (_, found) = check_gates(load_run(folder), max_false_alarm_rate="0.02", confidence="0.95")
    assert not found.passed
    assert "20 groups of normal images can meet this: at least 149 are needed" in found.text
    bound = 1 - 0.05 ** (1 / 20)
    assert f"at most {100 * bound:.4g} %" in found.text
    rows[0]["score"] = HIGH  # one false alarm more must not make it better
    (_, worse) = check_gates(load_run(write_run(tmp_path / "b", rows)), max_false_alarm_rate="0.02", confidence="0.95")
    assert not worse.passed


def test_one_image_and_one_group_are_singular(tmp_path: Path) -> None:
    pair = images([LOW], [HIGH])
    (_, alone) = check_gates(load_run(write_run(tmp_path / "a", pair)), min_sensitivity="0.9", confidence="0.95")
    assert "No result of 1 anomalous image can" in alone.text
    rows = images([LOW, LOW], [], group="lot")
    (_, group) = check_gates(load_run(write_run(tmp_path / "b", rows)), max_false_alarm_rate="0.1", confidence="0.95")
    assert "No result of 1 group of normal images can" in group.text


def test_units_are_judged_where_they_are_decided(tmp_path: Path) -> None:
    rows = [
        image(f"{u}{side}", s, "anomalous", unit=u, group=u) for u in "abcd" for side, s in (("l", LOW), ("r", HIGH))
    ]
    (_, found) = check_gates(load_run(write_run(tmp_path / "a", rows)), min_sensitivity="1")
    assert found.passed
    assert "4 anomalous units" in found.text


def test_an_anomalous_image_for_review_is_missed_and_a_normal_one_is_no_false_alarm(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", images([LOW, LOW], [HIGH, LOW]))
    path = folder / "scores.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace('"decision": 0', '"decision": 1'), encoding="utf-8")
    _, sensitivity, false_alarms = check_gates(load_run(folder), "0.9", "0.1")
    assert not sensitivity.passed
    assert false_alarms.passed
    assert "1 missed in 2" in sensitivity.text


def test_what_was_not_inspected_is_not_passed(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", images([LOW] * 9, []), failed=("broken.png",))
    first, second = check_gates(load_run(folder), max_false_alarm_rate="0.5")
    assert (first.passed, second.passed) == (False, True)
    assert "broken.png" in first.text


def test_a_demand_without_images_is_not_met(tmp_path: Path) -> None:
    (found,) = checked(tmp_path, 0, 5, 0, 0, min_sensitivity="0.5")
    assert not found.passed
    assert "no anomalous images" in found.text
    (never,) = checked(tmp_path, 0, 500, 0, 0, max_false_alarm_rate="0", confidence="0.95")
    assert not never.passed
    assert "No number of images" in never.text


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"what_if": True}, "not those of the model"),
        ({"aborted": True}, "was stopped"),
        ({"data": {"name": "p", "warnings": [], "n_seen_in_fit": 2}}, "2 of its images were used in fit or to set"),
    ],
)
def test_runs_that_prove_nothing_are_refused(info: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", images([LOW] * 9, [HIGH] * 9), **info)
    with pytest.raises(DataError, match=message):
        check_gates(load_run(folder), max_false_alarm_rate="0.5")


def test_an_older_run_says_in_its_figures_how_many_images_it_knew(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", images([LOW] * 9, [HIGH] * 9))
    write_json(folder / "metrics.json", {"format": 1, "counts": {"seen_in_fit": 1}})
    with pytest.raises(DataError, match="1 of its images was used in fit"):
        check_gates(load_run(folder), max_false_alarm_rate="0.5")


def test_a_warning_that_only_sounds_like_learned_images_refuses_nothing(tmp_path: Path) -> None:
    data = {"name": "p", "warnings": ["ignored images in figures are too good/: 3"], "n_seen_in_fit": 0}
    folder = write_run(tmp_path / "a", images([LOW] * 9, [HIGH] * 9), data=data)
    assert check_gates(load_run(folder), max_false_alarm_rate="0.5")


def test_a_threshold_chosen_on_the_images_of_the_run_is_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", images(np.linspace(0, 1.1, 50), np.linspace(0.5, 2, 50)))
    redecide(folder, Asked(sensitivity="0.9"))
    outcome = run("check", folder, "--min-sensitivity", "0.8")
    assert outcome.code == 1
    assert "chosen on these images" in outcome.error


@pytest.mark.parametrize("asked", [{}, {"min_sensitivity": "2"}, {"max_false_alarm_rate": "x"}])
def test_demands_that_are_none_are_refused(asked: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        checked(tmp_path, 0, 5, 0, 5, **asked)
    with pytest.raises(UsageError, match="coin"):
        checked(tmp_path, 0, 5, 0, 5, min_sensitivity=Fraction(1, 2), confidence="0.5")


# --- golden images ----------------------------------------------------------


def golden(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "golden.csv"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def part_run(tmp_path: Path) -> Path:
    rows = [
        image("good.png", LOW), image("bad.png", HIGH, "anomalous"), image("known.png", HIGH, "anomalous"),
        image("page.tif#0", LOW, path="page.tif"), image("page.tif#1", LOW, path="page.tif"),
    ]  # fmt: skip
    return write_run(tmp_path / "run", rows, failed=("broken.png",))


def test_golden_images_as_expected(part_run: Path, tmp_path: Path) -> None:
    text = "id,decision,low,high\ngood.png,normal,0.4,0.6\nbad.png,anomalous,1.5,\nknown.png,2,,\n"
    found = check_golden(load_run(part_run), golden(tmp_path, text))
    assert [outcome.passed for outcome in found] == [True, True, True]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("good.png,anomalous,,", "normal, score 0.5"),
        ("bad.png,normal,,", "anomalous, score 2"),
        ("bad.png,review,,", "anomalous, score 2"),
        ("good.png,normal,0.6,", "band from 0.6"),
        ("good.png,normal,,0.4", "band to 0.4"),
        ("lost.png,normal,,", "not in the run"),
        ("broken.png,anomalous,,", "not inspected: broken.png: truncated"),
    ],
)
def test_golden_images_that_are_not_as_expected(line: str, message: str, part_run: Path, tmp_path: Path) -> None:
    (found,) = check_golden(load_run(part_run), golden(tmp_path, f"path,decision,low,high\n{line}\n"))
    assert not found.passed
    assert message in found.text


def test_golden_units_and_the_table_of_a_run(part_run: Path, tmp_path: Path) -> None:
    units = golden(tmp_path, "unit,decision\ngood.png,normal\nbroken.png,normal\n")
    assert [outcome.passed for outcome in check_golden(load_run(part_run), units)] == [True, False]
    assert all(outcome.passed for outcome in check_golden(load_run(part_run), part_run / "scores.csv"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,decision\ngood.png,fine\n", "row 2: decision 'fine'"),
        ("id\ngood.png\n", "no column 'decision'"),
        ("id,decision\ngood.png,\n", "decision ''"),
        ("id,decision,lo,hi\ngood.png,normal,5,6\n", "column 'lo'.*meant as 'low'"),
        ("id,decision,hgih\ngood.png,normal,5\n", "column 'hgih'.*meant as 'high'"),
        ("id,decision,Low,low\ngood.png,normal,5,6\n", "another column has this name"),
        ("id,decision,min,max\ngood.png,normal,5,\nbad.png,anomalous,,6\n", "numbers in 'min', 'max'"),
        ("id;decision;from\ngood.png;normal;0,5\n", "numbers in 'from'"),
        ("name,decision\ngood.png,normal\n", "no column 'id'"),
        ("id,decision\n", "no lines"),
        ("id,decision\n,normal\n", "names no image"),
        ("id,decision,low\ngood.png,normal,much\n", "low is 'much'"),
        ("id,decision,low,high\ngood.png,normal,2,1\n", "above"),
        ("id,decision\ngood.png,normal\ngood.png,normal\n", "twice"),
        ("path,decision\npage.tif,normal\n", "several images"),
    ],
)
def test_tables_that_expect_nothing_clear_are_refused(text: str, message: str, part_run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        check_golden(load_run(part_run), golden(tmp_path, text))


def test_a_table_of_many_lines_is_read_in_time(tmp_path: Path) -> None:
    lines = [f"{i}.png,normal" for i in range(30_000)]  # every line against every other takes a minute
    started = time.process_time()
    assert len(read_golden(golden(tmp_path, "\n".join(["id,decision", *lines])))) == len(lines)
    assert time.process_time() - started < 10


@pytest.mark.parametrize("columns", ["low,high", "Low,High", "LOW,HIGH"])
def test_a_band_counts_in_any_letters(columns: str, part_run: Path, tmp_path: Path) -> None:
    run = load_run(part_run)
    name, score = run.images[0].name, run.images[0].score
    word = WORDS[Decision(run.images[0].decision)]
    for low, is_met in ((score - 1, True), (score + 1, False)):
        text = f"ID,Decision,{columns}\n{name},{word},{low},{score + 2}\n"
        (outcome,) = check_golden(run, golden(tmp_path, text))
        assert outcome.passed == is_met


def test_the_table_of_a_run_can_be_used_as_it_is_whatever_its_manifest_had(part_run: Path, tmp_path: Path) -> None:
    lines = (part_run / "scores.csv").read_text("utf-8").splitlines()
    further = ["lot,High,lower,manifest.decision", *["1,2,3,4"] * (len(lines) - 1)]
    text = "".join(f"{line},{more}\n" for line, more in zip(lines, further, strict=True))
    assert all(outcome.passed for outcome in check_golden(load_run(part_run), golden(tmp_path, text)))
    own = "id,decision,score,height\n" + ",".join([*lines[1].split(",")[1:2], "normal", "7", "7 mm"]) + "\n"
    assert len(check_golden(load_run(part_run), golden(tmp_path, own))) == 1


def test_a_run_that_lost_a_line_is_refused(part_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(part_run, tmp_path / "damaged"))
    lines = (run / "scores.jsonl").read_text("utf-8").splitlines(keepends=True)
    for kept in (lines[1:], [lines[0], *lines]):
        (run / "scores.jsonl").write_text("".join(kept), "utf-8")
        with pytest.raises(DataError, match="name other images"):
            load_run(run)
    for score, why in (("NaN", "unexpected character.*line 1"), ('"high"', "a score of 'high'")):
        first = lines[0].replace('"score":', f'"score":{score},"was":')
        (run / "scores.jsonl").write_text("".join([first, *lines[1:]]), "utf-8")
        with pytest.raises(DataError, match=rf"scores\.jsonl: {why}"):
            load_run(run)


# --- the command and its XML -----------------------------------------------------


def test_exit_codes_and_output_of_the_command(part_run: Path, tmp_path: Path) -> None:
    expected = golden(tmp_path, "id,decision\ngood.png,normal\n")
    assert run("check", part_run, "--expect", expected).code == 0
    outcome = run("check", part_run, "--min-sensitivity", "0.9", "--expect", expected)
    assert outcome.code == 4  # broken.png was not inspected
    assert "NOT MET: every image inspected" in outcome.out
    assert "met: sensitivity at least 90 %" in outcome.out
    assert "1 of 3 not met" in outcome.out
    wrong = golden(tmp_path, "id,decision\ngood.png,anomalous\nbad.png,anomalous\nlost,normal\n")
    outcome = run("check", part_run, "--expect", wrong)
    assert outcome.code == 4
    assert len([line for line in outcome.out.splitlines() if line.startswith("NOT MET")]) == 2
    assert run("check", part_run).code == 2
    outcome = run("check", part_run, "--expect", expected, "--confidence", "0.95")
    assert outcome.code == 2
    assert "--confidence needs --min-sensitivity or --max-false-alarm-rate" in outcome.error


def test_junit_names_every_demand(part_run: Path, tmp_path: Path) -> None:
    expected, report = golden(tmp_path, "id,decision\ngood.png,normal\nbad.png,normal\n"), tmp_path / "junit.xml"
    options = ("--max-false-alarm-rate", "0.5", "--expect", expected, "--junit", report)
    assert run("check", part_run, *options).code == 4
    suites = {suite.get("name"): suite for suite in ET.parse(report).getroot()}
    assert {name: (s.get("tests"), s.get("failures")) for name, s in suites.items()} == {
        "anomaly-ae check": ("2", "1"), "anomaly-ae check --expect": ("2", "1"),
    }  # fmt: skip
    failed = [case.get("name") for suite in suites.values() for case in suite if case.find("failure") is not None]
    assert failed == ["every image inspected", "bad.png is normal"]
    assert run("check", part_run, *options).code == 1  # exists already
    assert run("check", part_run, *options, "--overwrite").code == 4


@settings(deadline=None, max_examples=40)
@given(st.text(), st.text())
def test_any_name_makes_valid_xml(name: str, text: str) -> None:
    content = junit_xml({"suite": [Outcome(name, False, text), Outcome(name, True, text)], "empty": []})
    (suite,) = ET.fromstring(content)
    assert len(suite) == 2
    found = suite[0].get("name")
    assert found is not None
    assert [c for c in found if c in "<>&\"'"] == [c for c in name if c in "<>&\"'"]
