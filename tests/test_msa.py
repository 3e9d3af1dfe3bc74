"""Measurement studies of runs: the AIAG attribute example in outline, incomplete designs, what is written."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import done, run
from saved_run import CALIBRATION, image, write_run
from test_gauge import AIAG

from anomaly_ae.errors import DataError, UsageError
from anomaly_ae.judging import MeasurementStudy, load_run, study_run
from anomaly_ae.judging.msa import Line
from anomaly_ae.metrics.gauge import gauge_study

UNIT = 1.0 - float(np.median(CALIBRATION))  # threshold - median of the normals; the threshold is just above 1


def rows_of(scores: np.ndarray, labels: list[str]) -> list[dict[str, Any]]:
    """One row for every part, appraiser and trial."""
    return [
        image(f"p{i}-{who}-{k}.png", scores[i, j, k], labels[i], extra={"part": f"p{i:02d}", "camera": who})
        for i in range(scores.shape[0])
        for j, who in enumerate("ABCDEF"[: scores.shape[1]])
        for k in range(scores.shape[2])
    ]


def study(tmp_path: Path, rows: list[dict[str, Any]], **options: Any) -> MeasurementStudy:
    run = load_run(write_run(tmp_path / "run", rows))
    return study_run(run, **({"part": "part", "appraiser": "camera"} | options))


def line(found: MeasurementStudy, section: str, who: str, figure: str) -> Line:
    (one,) = [x for x in found.lines if (x.section, x.who, x.figure) == (section, who, figure)]
    return one


def aiag_like() -> tuple[np.ndarray, list[str]]:
    """16 anomalous and 34 normal parts; 50 x 3 x 3 decisions with the misses and false alarms of the AIAG manual.

    Chapter III C, 4th ed.: A, B, C miss 3, 3, 6 of 48 decisions (6.3, 6.3, 12.5 %), raise 5, 2, 9 false alarms in 102
    (4.9, 2.0, 8.8 %), and decide 42, 45, 40 of 50 parts rightly each time (84, 90, 80 %). The wrong decisions are
    dealt to so many parts, as the printed figures do not say which.
    """
    flagged = np.zeros((50, 3, 3), bool)
    flagged[:16] = True
    wrong = {0: ([1, 1, 1], [1] * 5), 1: ([1, 1, 1], [1, 1]), 2: ([2, 2, 2], [2, 2, 1, 1, 1, 1, 1])}
    for who, (missed, false) in wrong.items():
        for i, n in enumerate(missed):
            flagged[i, who, :n] = False
        for i, n in enumerate(false, start=16):
            flagged[i, who, :n] = True
    return flagged, ["anomalous"] * 16 + ["normal"] * 34


def test_effectiveness_misses_and_false_alarms_of_the_aiag_manual(tmp_path: Path) -> None:
    flagged, labels = aiag_like()
    found = study(tmp_path, rows_of(np.where(flagged, 2.0, 0.5) + np.zeros((50, 3, 3)), labels))
    printed = {"A": (0.84, 0.0625, 0.049, 0.88), "B": (0.90, 0.0625, 0.0196, 0.92), "C": (0.80, 0.125, 0.0882, 0.77)}
    for who, (effectiveness, miss, false_alarms, kappa) in printed.items():
        values = [
            line(found, "against reference", who, name).value
            for name in ("effectiveness (all right)", "miss rate", "false-alarm rate", "Cohen's kappa")
        ]
        assert values == pytest.approx([effectiveness, miss, false_alarms, kappa], abs=0.006)
        kappa_line = line(found, "against reference", who, "Cohen's kappa")
        assert kappa_line.low is not None
        assert kappa_line.high is not None
        assert kappa_line.low < kappa < kappa_line.high
    assert len(found.changed) == len({i for i in range(50) if flagged[i].any() and not flagged[i].all()})
    assert found.changed[0][:2] == ("p00", "anomalous")
    assert found.changed[0][2:] == ("2 of 3", "2 of 3", "1 of 3")


def test_score_components_are_those_of_the_gauge_study_in_units_of_the_threshold(tmp_path: Path) -> None:
    found = study(tmp_path, rows_of(AIAG, ["normal"] * 10))
    expected = gauge_study(AIAG)
    for who, variance in (("repeatability", expected.repeatability), ("parts", expected.part), ("all", expected.total)):
        assert line(found, "score", who, "sd").value == pytest.approx(variance**0.5 / UNIT)
    assert line(found, "score", "parts", "distinct categories").value == 4
    assert any("counted as repeatability" in note for note in found.notes)


def test_identical_repeats_have_no_spread(tmp_path: Path) -> None:
    scores = np.repeat(np.random.default_rng(0).uniform(0, 1, (10, 1, 1)), 3, axis=2).repeat(2, axis=1)
    found = study(tmp_path, rows_of(scores, ["normal"] * 10))
    assert line(found, "score", "repeatability", "sd").value == 0.0
    assert line(found, "score", "parts", "distinct categories").value is None
    assert not any("Part by appraiser" in note for note in found.notes)


def test_rates_of_decisions_take_parts_as_independent_not_trials(tmp_path: Path) -> None:
    flagged = np.zeros((20, 2, 5), bool)
    flagged[0] = True  # one part is always flagged: ten decisions, one part
    found = study(tmp_path, rows_of(np.where(flagged, 2.0, 0.5), ["normal"] * 20))
    one = line(found, "against reference", "all", "false-alarm rate")
    assert one.value == 0.05
    assert one.high is not None
    assert one.high > 0.2  # 1 of 20 parts, not 10 of 200 decisions
    assert not found.changed


def test_perfect_agreement_is_said_without_an_interval_that_vanishes(tmp_path: Path) -> None:
    flagged = np.zeros((30, 2, 3), bool)
    flagged[:15] = True
    found = study(tmp_path, rows_of(np.where(flagged, 2.0, 0.5), ["anomalous"] * 15 + ["normal"] * 15))
    kappa = line(found, "between appraisers", "all", "Fleiss' kappa")
    assert (kappa.value, kappa.low, kappa.high) == (1.0, None, None)
    agreement = line(found, "between appraisers", "all", "parts decided alike")
    assert agreement.low == pytest.approx(0.025 ** (1 / 30))  # Clopper-Pearson at 30 of 30


def test_a_rare_flip_gets_no_narrow_interval(tmp_path: Path) -> None:
    flagged = np.zeros((20, 2, 3), bool)
    flagged[0, 0, 0] = True
    found = study(tmp_path, rows_of(np.where(flagged, 2.0, 0.5), [""] * 20))
    kappa = line(found, "between appraisers", "all", "Fleiss' kappa")
    assert kappa.value is not None
    assert (kappa.low, kappa.high) == (None, None)
    assert "too few parts differ" in kappa.method
    assert all(one.section != "against reference" for one in found.lines)
    assert any("No reference" in note for note in found.notes)


def test_one_appraiser_and_a_reference_column(tmp_path: Path) -> None:
    rows = rows_of(np.random.default_rng(0).uniform(0, 2, (12, 1, 4)), [""] * 12)
    for row in rows:
        row["extra"]["truth"] = "2" if row["extra"]["part"] < "p06" else "normal"
    found = study(tmp_path, rows, appraiser=None, reference="truth")
    flagged = np.array([row["score"] for row in rows]).reshape(12, 4) >= 1.0
    assert line(found, "against reference", "all", "miss rate").value == pytest.approx(1 - flagged[:6].mean())
    assert {one.section for one in found.lines} == {"within appraiser", "against reference", "score"}
    for who in ("reproducibility", "appraiser", "part by appraiser"):
        one = line(found, "score", who, "sd")
        assert (one.value, one.method) == (None, "not measured: one appraiser")
    assert any("reproducibility was not measured" in note for note in found.notes)


def test_incomplete_parts_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = rows_of(np.random.default_rng(0).uniform(0, 2, (8, 2, 3)), ["normal"] * 8)
    rows = [row for row in rows if row["id"] != "p3-B-1.png"]  # one image could not be read
    rows.append(image("other.png", 0.5, extra={"part": "", "camera": "A"}))
    found = study(tmp_path, rows)
    assert found.notes[0].startswith("7 parts x 2 appraisers x 3 trials")
    assert any(note.startswith("left out 1 part:") for note in found.notes)
    assert any(note.startswith("left out 1 image ") for note in found.notes)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"part": "prt"}, UsageError, "no column 'prt'.*camera, part"),
        ({"part": "id"}, DataError, "0 of 18 parts|equally often"),
        ({"reference": "camera"}, DataError, "reference of part p00"),
    ],
)
def test_designs_that_are_none_are_refused(
    options: dict[str, str], error: type[Exception], message: str, tmp_path: Path
) -> None:
    rows = rows_of(np.random.default_rng(0).uniform(0, 2, (3, 2, 3)), ["normal"] * 3)
    with pytest.raises(error, match=message):
        study(tmp_path, rows, **options)


def test_the_command_prints_and_writes(tmp_path: Path) -> None:
    flagged, labels = aiag_like()
    folder = write_run(tmp_path / "run", rows_of(np.where(flagged, 2.0, 0.5), labels))
    text = done("msa", folder, "--part", "part", "--appraiser", "camera", "--out", tmp_path / "out")
    assert "50 parts x 3 appraisers x 3 trials" in text
    assert "Parts that changed decision" in text
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"msa.csv", "msa.md", "msa.tex"}
    with (tmp_path / "out" / "msa.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["section"] for row in rows} == {"within appraiser", "against reference", "between appraisers", "score"}
    assert run("msa", folder).code == 2  # --part is missing
