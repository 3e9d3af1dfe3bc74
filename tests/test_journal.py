"""The journal of a model: lines are whole, only added, and written only where something changed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from anomaly_ae.calibration import Asked, Thresholds, calibration_scores, thresholds_by
from anomaly_ae.errors import DataError, OutputError
from anomaly_ae.journal import State, change, journal, journal_of, read_journal


def thresholds(asked: Asked) -> Thresholds:
    names = [f"patient-{i}" for i in range(40)]
    scores = np.arange(40.0)
    return thresholds_by(asked, calibration_scores(scores, scores, names, names))


def line(**words: str) -> dict[str, object]:
    before, after = thresholds(Asked(rate="10%")), thresholds(Asked(rate="5%", review_rate="20%"))
    return change("calibrated", State("a" * 64, before), State("b" * 64, after), **words)


def test_its_name_is_that_of_the_model() -> None:
    assert journal_of(Path("m/parts.v2.safetensors")) == Path("m/parts.v2.journal.jsonl")


def test_a_line_says_who_when_what_before_after_and_why(tmp_path: Path) -> None:
    path = tmp_path / "m.journal.jsonl"
    assert read_journal(path) == []
    for why in ("first", "second"):
        with journal(path) as append:
            append(line(who="Ann", why=why))
    first, second = read_journal(path)
    assert [entry["why"] for entry in (first, second)] == ["first", "second"]
    assert {"time_utc", "who", "what", "why", "before", "after", "version", "format"} == set(first)
    assert first["who"] == "Ann"
    assert first["before"]["thresholds"]["image"]["rate"] == "1/10"
    assert first["after"]["thresholds"]["image"]["review"]["rate"] == "1/5"
    assert first["after"]["model_sha256"] == "b" * 64
    assert "patient" not in path.read_text("utf-8")
    assert "promise" not in path.read_text("utf-8")


def test_the_user_name_of_the_system_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "station7")
    assert line()["who"] == "station7"

    def nobody() -> str:
        raise KeyError("no user name")

    monkeypatch.setattr("getpass.getuser", nobody)
    assert line()["who"] == "unknown"


def test_a_line_that_a_crash_cut_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "m.journal.jsonl"
    path.write_bytes(b'{"format": 1')
    with journal(path) as append:
        append(line())
    cut, whole = path.read_text("utf-8").splitlines()
    assert cut == '{"format": 1'
    assert json.loads(whole)["what"] == "calibrated"
    with pytest.raises(DataError, match="cannot read"):
        read_journal(path)


def test_nothing_is_written_where_the_change_failed(tmp_path: Path) -> None:
    path = tmp_path / "m.journal.jsonl"
    with pytest.raises(OutputError), journal(path):
        raise OutputError("disk full")
    assert not path.exists()


def test_where_it_cannot_be_written_the_change_is_not_made(tmp_path: Path) -> None:
    made = False
    with pytest.raises(OutputError, match="cannot write"), journal(tmp_path / "nowhere" / "m.journal.jsonl"):
        made = True
    assert not made
