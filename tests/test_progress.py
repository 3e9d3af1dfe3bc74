"""A bar on a terminal, a line now and then elsewhere, nothing for what is done at once."""

from __future__ import annotations

import io
import re
import sys
import warnings

import pytest

from anomaly_ae.progress import LINE_EVERY_SECONDS, QUIET_SECONDS, TerminalProgress


class Stage:
    """A long computation that speaks every ``pause`` seconds of a clock that costs no time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, is_terminal: bool, columns: int = 200) -> None:
        self.now, self.text = 1000.0, io.StringIO()
        self.text.isatty = lambda: is_terminal  # type: ignore[method-assign]
        monkeypatch.setattr(sys, "stderr", self.text)
        monkeypatch.setattr("anomaly_ae.progress.time.monotonic", lambda: self.now)
        monkeypatch.setenv("COLUMNS", str(columns))
        self.progress = TerminalProgress()

    def work(self, n: int, pause: float, stage: str = "training", total: int | None = None, detail: str = "") -> None:
        for done in range(1, n + 1):
            self.progress.progress(stage, done, n if total is None else total, detail)
            self.now += pause

    @property
    def shown(self) -> str:
        return self.text.getvalue()


@pytest.mark.parametrize("is_terminal", [True, False])
def test_nothing_is_shown_under_two_seconds(monkeypatch: pytest.MonkeyPatch, is_terminal: bool) -> None:
    stage = Stage(monkeypatch, is_terminal)
    stage.work(100, 0.99 * QUIET_SECONDS / 99)  # the last of 100 calls comes just before two seconds
    assert stage.shown == ""
    stage.now += 0.1
    stage.progress.progress("training", 100, 100, "")
    assert stage.shown != ""


def test_elsewhere_whole_lines_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, is_terminal=False)
    stage.work(1000, 0.1, detail="loss 0.1")
    lines = stage.shown.splitlines()
    assert 2 <= len(lines) <= 100 / LINE_EVERY_SECONDS + 1
    assert stage.shown.endswith("\n")
    assert "\r" not in stage.shown
    assert "\033" not in stage.shown
    assert all(re.fullmatch(r"training: \d+ of 1000, .* left \(loss 0\.1\)", line) for line in lines)
    assert lines[-1].startswith("training: 1000 of 1000, 0 s left"), "the end is always said"


def test_a_terminal_shows_one_bar_that_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, is_terminal=True)
    stage.work(400, 0.01)
    frames = stage.shown.split("\r\033[K")[1:]
    assert 10 <= len(frames) <= 2 / 0.1 + 1, "two of four seconds, at most ten frames in each"
    filled = [frame.count("#") for frame in frames]
    assert filled == sorted(filled)
    assert filled[-1] == 24
    assert stage.shown.count("\n") == 1
    assert stage.shown.endswith("\n"), "what follows starts on a line of its own"


def test_a_line_in_between_does_not_run_into_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, is_terminal=True)
    stage.work(50, 0.1, total=100)
    stage.progress.listener().say("left out: a.png")
    assert stage.shown.splitlines()[-1] == "left out: a.png"
    assert stage.shown.endswith("\n")


def test_every_stage_has_its_own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, is_terminal=True)
    stage.work(50, 0.1, "reading", total=100)
    before = stage.shown
    stage.work(10, 0.1, "training")
    assert stage.shown == before + "\n", "the first bar is closed, the second is not two seconds old"


@pytest.mark.parametrize(
    ("start", "done", "left"),
    [(0, 25, "30 s left"), (0, 5, "3 min 10 s left"), (0, 100, "0 s left"), (80, 90, "10 s left")],
    ids=["a quarter", "a twentieth", "all", "after a resume: what this run has done counts"],
)
def test_the_time_left_goes_by_the_speed_so_far(
    monkeypatch: pytest.MonkeyPatch, start: int, done: int, left: str
) -> None:
    stage = Stage(monkeypatch, is_terminal=True)
    stage.progress.progress("training", start, 100, "")
    stage.now += 10
    stage.progress.progress("training", done, 100, "")
    assert f"training: {done} of 100, {left}" in stage.shown


def test_nothing_done_and_nothing_to_do_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, is_terminal=True)
    stage.progress.progress("measuring", 0, 0, "")
    stage.now += 10
    stage.progress.progress("measuring", 0, 0, "")
    assert "measuring: 0 of 0" in stage.shown


@pytest.mark.parametrize("columns", [20, 40, 80])
def test_a_bar_never_wraps(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    stage = Stage(monkeypatch, is_terminal=True, columns=columns)
    stage.work(100, 1.0, detail="loss 0.0423, 31 images/s")
    frames = stage.shown.rstrip("\n").split("\r\033[K")
    assert max(map(len, frames)) <= columns - 1


def test_a_warning_is_a_plain_line_that_ends_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        TerminalProgress().listener()
        warnings.warn("007.png is not aligned", stacklevel=1)
    assert capsys.readouterr().err == "warning: 007.png is not aligned\n"
