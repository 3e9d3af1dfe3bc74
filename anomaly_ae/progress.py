"""How long work shows itself, and how it is stopped.

A bar on a terminal, plain lines elsewhere, nothing for what takes under two seconds.
"""

from __future__ import annotations

import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from anomaly_ae.listener import Listener

QUIET_SECONDS = 2.0
LINE_EVERY_SECONDS = 20.0


class TerminalProgress:
    """Turns a `Listener`'s calls into text on standard error; results go to standard output."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._stage, self._started, self._shown, self._has_bar = "", 0.0, 0.0, False
        self._n_before = 0  # done before this stage was seen: a resumed training starts in the middle

    def listener(self) -> Listener:
        """Return the callbacks; warnings of the library become lines, too, without a place in the code."""
        warnings.showwarning = lambda message, *_, **__: self.say(f"warning: {message}")
        return Listener(say=self.say, progress=self.progress)

    def say(self, line: str) -> None:
        """Write a whole line."""
        self._end_bar()
        sys.stderr.write(line + "\n")
        sys.stderr.flush()

    def progress(self, stage: str, done: int, total: int, detail: str) -> None:
        """Show how far a stage is."""
        now = time.monotonic()
        if stage != self._stage:
            self._end_bar()
            self._stage, self._started, self._shown, self._n_before = stage, now, now, done
        pause = 0.1 if self._is_terminal else LINE_EVERY_SECONDS
        if now - self._started < QUIET_SECONDS or (now - self._shown < pause and done < total):
            return
        self._shown = now
        self._draw(done, total, detail, now - self._started)

    def _draw(self, done: int, total: int, detail: str, seconds: float) -> None:
        left = seconds / max(done - self._n_before, 1) * (total - done)
        text = f"{self._stage}: {done} of {total}, {_duration(left)} left" + (f" ({detail})" if detail else "")
        if self._is_terminal:
            filled = int(24 * done / max(total, 1))
            bar = f"[{'#' * filled}{'.' * (24 - filled)}] {text}"
            width = shutil.get_terminal_size().columns - 1  # a line that wraps could not be written over
            sys.stderr.write(f"\r\033[K{bar[:width]}")
            self._has_bar = True
            if done >= total:
                self._end_bar()
        else:
            sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def _end_bar(self) -> None:
        if self._has_bar:
            sys.stderr.write("\n")
            self._has_bar = False


@contextmanager
def stopping_gently() -> Iterator[Callable[[], bool]]:
    """Yield a question "should I stop?" that the first Ctrl-C or SIGTERM answers with yes; the second one aborts."""
    asked = False

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        sys.stderr.write("\nstopping: calibrating with what was learned so far; once more to abort\n")
        sys.stderr.flush()

    previous = {s: signal.signal(s, on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM, which service managers send, end a command as cleanly as Ctrl-C does."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
