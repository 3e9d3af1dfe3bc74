"""Scores of a finished run as a calibration, verdicts, and the figures of the review band: from tables alone."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_results import calibration, failed, row, some_rows

from anomaly_ae.calibration import Asked, thresholds_by, thresholds_from
from anomaly_ae.errors import DataError
from anomaly_ae.results import (
    anomalous_scores,
    chosen_on_these,
    decide_rows,
    figures,
    finished_scores,
    images_sha256,
    limit_lines,
    unit_rows,
    write_json,
    write_tables,
)
from anomaly_ae.results.beside import level_figures
from anomaly_ae.results.finished import with_verdicts
from anomaly_ae.results.tables import read_csv

WEIGHTS = "cd" * 32


def shadow(n: int = 40, **changes: Any) -> list[dict[str, Any]]:
    """A day of production without labels; every fifth part was rejected."""
    scores = np.random.default_rng(1).gamma(4, 0.5, n)
    facts = {"label": "", "decision": 0, **changes}
    rows = [row(i, float(s), image_sha256=f"{i:064x}") | facts for i, s in enumerate(scores)]
    return [r | {"decision": 2} if i % 5 == 0 else r for i, r in enumerate(rows)]


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    write_tables(folder, rows, [], [])
    write_json(folder / "run.json", {"format": 1})
    return folder / "scores.csv"


def verdicts(path: Path, said: dict[str, str]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("id", "verdict"), *said.items()])
    return path


# --- a calibration without images ------------------------------------------------------------


def test_a_shadow_day_is_a_calibration(tmp_path: Path) -> None:
    rows = shadow()
    for path in (written(tmp_path / "day", rows), tmp_path / "day"):
        found = finished_scores(path, WEIGHTS)
        assert found.normal
        assert found.normal.image.tolist() == found.normal.pixel.tolist() == [r["score"] for r in rows]
        assert (found.n_normal, found.n_unlabelled, found.n_rejected, found.n_groups) == (40, 40, 8, 40)
        assert found.anomalous is None
        assert found.hashes["calibration"] == [r["image_sha256"] for r in rows]
        assert found.statistics["mean grey"] == [r["baselines"]["mean grey"] for r in rows]
        text = "\n".join(found.lines())
        assert "40 images taken as normal (40 without a label, 8 had been rejected" in text
        assert "unselected" in text
        assert "Defects among the images without a label raise the threshold" in text


def test_verdicts_stand_above_labels_and_their_units_are_left_out(tmp_path: Path) -> None:
    rows = [r | {"unit": f"u{i // 2}"} for i, r in enumerate(shadow(label="normal"))]
    rows[10]["label"] = "anomalous"
    said = verdicts(tmp_path / "v.csv", {"00.png": "anomalous", "10.png": "Normal ", "20.png": "", "21.png": "normal"})
    found = finished_scores(written(tmp_path / "day", rows), WEIGHTS, said)
    assert found.normal
    assert found.anomalous
    assert found.normal.image.tolist() == [r["score"] for r in rows[2:]], "the other image of u0 is left out, too"
    assert found.anomalous.image.tolist() == [rows[0]["score"]]
    assert found.anomalous.unit.tolist() == [max(rows[0]["score"], rows[1]["score"])]
    assert found.hashes["labelled"] == [rows[0]["image_sha256"]]


def test_a_unit_that_was_not_inspected_as_a_whole_is_left_out(tmp_path: Path) -> None:
    rows = [r | {"unit": f"u{i // 2}"} for i, r in enumerate(shadow())]
    written(tmp_path, rows)
    write_tables(tmp_path, rows, [], [failed(unit="u1")])
    found = finished_scores(tmp_path, WEIGHTS)
    assert found.normal
    assert found.normal.image.tolist() == [r["score"] for r in rows if r["unit"] != "u1"]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"00.png": "bad"}, r"line 2: verdict 'bad'"),
        ({"00.png": "normal", "x.png": "normal"}, "line 3: no image 'x.png'"),
    ],
)
def test_verdicts_that_cannot_be_meant_are_refused(tmp_path: Path, said: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        finished_scores(written(tmp_path / "day", shadow()), WEIGHTS, verdicts(tmp_path / "v.csv", said))


def test_slices_of_an_anomalous_volume_without_an_outline_are_no_normal_images(tmp_path: Path) -> None:
    rows = [r | {"unit": f"patient-{i // 4}", "group": f"patient-{i // 4}"} for i, r in enumerate(shadow())]
    for r in rows[:4]:
        r["extra"] = {"volume_label": "anomalous"}
    rows[4]["label"] = "anomalous"
    found = finished_scores(written(tmp_path / "day", rows), WEIGHTS)
    assert found.n_normal == 32, "neither the four of the tumour nor the four beside the labelled slice"
    assert found.anomalous
    assert found.anomalous.image.tolist() == [rows[4]["score"]]
    highest = sorted(max(r["score"] for r in rows[i : i + 4]) for i in (0, 4))
    assert sorted(found.anomalous.unit.tolist()) == highest


def test_scores_of_another_tool_are_no_calibration_of_this_model(tmp_path: Path) -> None:
    rows = [r | {"decision": "", "weights_sha256": ""} for r in shadow()]
    with pytest.raises(DataError, match="scored by another model"):
        finished_scores(written(tmp_path / "day", rows), WEIGHTS)


def test_verdicts_are_read_as_spreadsheets_write_them(tmp_path: Path) -> None:
    path = tmp_path / "v.csv"
    for text in ("id,verdict\n00.png,anomalous\n\n", "ID;Verdict\n00.png;Anomalous\n"):
        path.write_text(text, encoding="utf-8-sig")
        assert with_verdicts([{"id": "00.png", "label": ""}], path) == [{"id": "00.png", "label": "anomalous"}]
    path.write_text("id,said\n00.png,anomalous\n", encoding="utf-8")
    with pytest.raises(DataError, match="no column 'verdict'"):
        with_verdicts([{"id": "00.png", "label": ""}], path)


def test_a_line_of_another_length_is_named(tmp_path: Path) -> None:
    path = tmp_path / "v.csv"
    path.write_text("id,verdict\n00.png,normal\n01.png\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 3 has 1 field, the header 2"):
        read_csv(path, ("id",))


def test_a_run_that_lost_a_line_is_no_calibration(tmp_path: Path) -> None:
    path = written(tmp_path / "day", shadow())
    lines = path.read_text("utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:-1]), "utf-8")
    with pytest.raises(DataError, match="name other images"):
        finished_scores(path, WEIGHTS)


def test_two_verdicts_on_one_image_are_refused(tmp_path: Path) -> None:
    (tmp_path / "v.csv").write_text("id,verdict\n00.png,normal\n00.png,anomalous\n", encoding="utf-8")
    with pytest.raises(DataError, match="second, other verdict"):
        finished_scores(written(tmp_path / "day", shadow()), WEIGHTS, tmp_path / "v.csv")


@pytest.mark.parametrize("decision", [1, 2])
def test_nothing_but_overruled_rejects_is_refused(tmp_path: Path, decision: int) -> None:
    rows = [r | {"decision": decision} for r in shadow(label="normal")]
    with pytest.raises(DataError, match="only overruled rejects"):
        finished_scores(written(tmp_path / "day", rows), WEIGHTS)


def test_overruling_a_few_rejects_of_a_whole_day_is_not(tmp_path: Path) -> None:
    said = verdicts(tmp_path / "v.csv", {"00.png": "normal", "05.png": "normal"})
    found = finished_scores(written(tmp_path / "day", shadow()), WEIGHTS, said)
    assert (found.n_normal, found.n_unlabelled) == (40, 38)


@pytest.mark.parametrize(("n_rejected", "n_groups", "said"), [(21, 22, True), (2, 22, False), (21, 2, False)])
def test_more_rejects_than_the_threshold_promised_are_named(
    tmp_path: Path, n_rejected: int, n_groups: int, said: bool
) -> None:
    rows = [r | {"decision": 2 if i < n_rejected else 0, "group": f"g{i % n_groups}"} for i, r in enumerate(shadow(22))]
    path = written(tmp_path / "day", rows)
    write_json(tmp_path / "day" / "run.json", {"format": 1, "data": {}, "threshold": calibrated_at_5_percent()})
    text = "\n".join(finished_scores(path, WEIGHTS).lines())
    assert ("21 of the 22 images taken as normal had been rejected, where the threshold promised 5 %" in text) == said


def calibrated_at_5_percent() -> dict[str, Any]:
    return thresholds_from(calibration(), "5%").as_json()


def test_a_table_outside_of_its_run_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "day", shadow()).rename(tmp_path / "scores.csv")
    with pytest.raises(DataError, match="outside of its run"):
        finished_scores(path, WEIGHTS)


def test_scores_that_mean_something_else_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "day", shadow())
    with pytest.raises(DataError, match="scored by another model"):
        finished_scores(path, "00" * 32)
    write_json(tmp_path / "day" / "run.json", {"format": 1, "data": {"n_learned": 3}})
    with pytest.raises(DataError, match=r"3 of the images of .* were used in training"):
        finished_scores(path, WEIGHTS)
    with pytest.raises(DataError, match="holds no scores"):
        finished_scores(written(tmp_path / "empty", []), WEIGHTS)
    with pytest.raises(DataError, match="cannot read"):
        finished_scores(tmp_path / "nowhere.csv", WEIGHTS)
    damaged = written(tmp_path / "damaged", [shadow()[1] | {"score": "much"}])
    with pytest.raises(DataError, match="cannot read"):
        finished_scores(damaged, WEIGHTS)


def test_a_run_of_anomalies_alone_has_no_normal_images(tmp_path: Path) -> None:
    found = finished_scores(written(tmp_path / "run", shadow(label="anomalous")), WEIGHTS)
    assert found.normal is None
    assert found.n_anomalous == 40
    assert found.statistics == {}


def test_a_unit_counts_with_its_largest_image_unless_one_was_not_inspected() -> None:
    rows = [row(0, 1.0, "anomalous", unit="a"), row(1, 5.0, "normal", unit="a"), row(2, 2.0, "anomalous", unit="b"),
            row(3, 9.0, "normal", unit="c")]  # fmt: skip
    found = anomalous_scores(rows)
    assert found
    assert (found.image.tolist(), sorted(found.unit.tolist())) == ([1.0, 2.0], [2.0, 5.0])
    found = anomalous_scores(rows, {"a"})
    assert found
    assert (found.image.tolist(), found.unit.tolist()) == ([1.0, 2.0], [2.0])
    assert anomalous_scores(rows[1:2]) is None


# --- the review band ------------------------------------------------------------


def band() -> Any:
    return thresholds_by(Asked(rate="5%", review_rate="30%"), calibration())


def test_review_figures_equal_counting() -> None:
    rows, thresholds = some_rows(), band()
    high, low = thresholds.image.value, thresholds.image.review.value
    found = figures(rows, thresholds.image)["at_threshold"][0]["review"]
    of = {kind: np.array([r["score"] for r in rows if r["label"] == kind]) for kind in ("normal", "anomalous")}
    share = {kind: np.mean((s >= low) & (s < high)) for kind, s in of.items()}
    assert 0 < share["normal"] < 1
    assert found["threshold"] == low
    assert found["load"]["value"] == pytest.approx((40 * share["normal"] + 20 * share["anomalous"]) / 60)
    assert found["load_normal"]["value"] == pytest.approx(share["normal"])
    assert found["load_anomalous"]["value"] == pytest.approx(share["anomalous"])
    assert found["escape_rate"]["value"] == pytest.approx(np.mean(of["anomalous"] < low))
    outside = {kind: s[(s < low) | (s >= high)] for kind, s in of.items()}
    assert found["outside"]["false_alarm_rate"]["value"] == pytest.approx(np.mean(outside["normal"] >= high))
    assert found["outside"]["escape_rate"]["value"] == pytest.approx(np.mean(outside["anomalous"] < low))
    assert found["outside"]["false_alarm_rate"]["n_normal"] == len(outside["normal"])
    for figure in (found["load"], found["escape_rate"], *found["outside"].values()):
        (interval,) = figure["intervals"]
        assert interval["low"] <= figure["value"] <= interval["high"]


def test_what_is_for_review_has_not_passed_and_is_not_rejected() -> None:
    rows, limit = some_rows(), band().image
    normal, anomalous = (np.array([r["score"] for r in rows if r["label"] == kind]) for kind in ("normal", "anomalous"))
    (stream,) = level_figures(rows, limit, None, [0.1], "image")["at_defect_rate"]

    def share(low: float, high: float) -> float:
        """What lies from low to below high, in a stream of which a tenth is defective."""
        return sum(p * np.mean((s >= low) & (s < high)) for p, s in ((0.9, normal), (0.1, anomalous)))

    low, high = limit.review.value, limit.value
    assert stream["rejected"]["value"] == pytest.approx(share(high, np.inf))
    assert stream["review"]["value"] == pytest.approx(share(low, high))
    escaped = 0.1 * np.mean(anomalous < low)
    assert stream["escapes_per_million"]["value"] == pytest.approx(1e6 * escaped / share(-np.inf, low))
    for figure in (stream["review"], stream["escapes_per_million"]):
        assert figure["intervals"][0]["low"] <= figure["value"] <= figure["intervals"][0]["high"]


def test_without_a_band_there_is_nothing_to_review() -> None:
    assert figures(some_rows(), thresholds_from(calibration()).image)["at_threshold"][0]["review"] is None


def test_review_figures_say_what_is_missing() -> None:
    normal = [r for r in some_rows() if r["label"] == "normal"]
    found = figures(normal, band().image)["at_threshold"][0]["review"]
    assert found["escape_rate"]["value"] is None
    assert found["escape_rate"]["reason"] == "no anomalous images"
    json.dumps(found, allow_nan=False)


def test_rows_and_units_are_sent_for_review() -> None:
    thresholds = band()
    high, low = thresholds.image.value, thresholds.image.review.value
    values = [low - 0.1, low, (low + high) / 2, high]
    decided = decide_rows([row(i, v) for i, v in enumerate(values)], calibration(), thresholds)
    assert [r["decision"] for r in decided] == [0, 1, 1, 2]
    units = unit_rows(decided, {"u9": "g"}, calibration(), thresholds)
    assert [u["decision"] for u in units] == [0, 1, 1, 2, 9]


def test_the_expected_load_is_that_of_the_calibration_images() -> None:
    thresholds, scores = band(), calibration()
    high, low = thresholds.image.value, thresholds.image.review.value
    n = int(((scores.image >= low) & (scores.image < high)).sum())
    lines = limit_lines(thresholds, scores)
    assert lines[-1].startswith(f"for review: about {1000 * n / 40:.0f} of 1,000 normal images [")
    assert lines[-1].endswith(f"by the {n} of 40 calibration images that lie there")
    assert len(limit_lines(thresholds_from(scores), scores)) == 1
    by_hand = limit_lines(thresholds_by(Asked(value=float(np.median(scores.image))), scores), scores)
    assert by_hand[1].startswith("false alarms: about 500 of 1,000 normal images [")


def test_a_rule_knows_the_images_it_was_chosen_on() -> None:
    rows = some_rows()
    others = [r | {"image_sha256": "00" * 32} for r in rows]
    assert images_sha256(rows) == images_sha256(rows[::-1]) != images_sha256(others)
    anomalies, scores = anomalous_scores(rows), calibration()
    for asked in (Asked(sensitivity="0.9"), Asked(value=3.0), Asked(review_sensitivity="0.9", rate="5%")):
        chosen = thresholds_by(asked, scores, anomalies, images_sha256(rows))
        assert chosen_on_these(chosen, rows)
        assert not chosen_on_these(chosen, others)
    assert not chosen_on_these(thresholds_by(Asked(rate="5%"), scores, anomalies, images_sha256(rows)), rows)
