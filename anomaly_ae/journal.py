"""The journal of a model: who changed its thresholds, when, how and why. One JSON line for every change.

``MODEL.journal.jsonl`` stands beside ``MODEL.safetensors``. Lines are only ever appended. They hold thresholds, counts
and hashes: no path, no name of an image or patient.
"""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from anomaly_ae.calibration import Thresholds
from anomaly_ae.errors import DataError
from anomaly_ae.files import cannot_write, target_of
from anomaly_ae.version import __version__
from anomaly_ae.words import text_of

FORMAT = 1


@dataclass(frozen=True, slots=True)
class State:
    """A model before or after a change: hash of its file, and its thresholds."""

    model_sha256: str | None
    thresholds: Thresholds

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values; what a promise says in words follows from the numbers."""
        limits = {name: _without_words(limit) for name, limit in self.thresholds.as_json().items()}
        return {"model_sha256": self.model_sha256, "thresholds": limits}


def journal_of(model: Path) -> Path:
    """Return the journal that belongs to a model file: ``parts.journal.jsonl`` for ``parts.safetensors``.

    That of a link stands beside the file that it leads to.
    """
    model = target_of(model)
    return model.with_name(f"{model.stem}.journal.jsonl")


def change(what: str, before: State | None, after: State, who: str = "", why: str = "") -> dict[str, Any]:
    """Return one line of a journal.

    Parameters
    ----------
    what : str
        What was done, with counts; no names of images.
    before : State or None
        None where there was no model, or none that can be read.
    who : str
        Name of the person; empty takes the user name of the system.
    """
    return {
        "format": FORMAT,
        "time_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "who": text_of(who or _user_name()),
        "what": what,
        "why": text_of(why),
        "before": before.as_json() if before else None,
        "after": after.as_json(),
        "version": __version__,
    }


@contextmanager
def journal(path: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Open a journal and yield what appends a line to it, written through to the disk.

    It is opened before the change is made: where it cannot be written, nothing is changed.

    Raises
    ------
    OutputError
        The file cannot be opened or written.
    """
    try:
        with path.open("a+b") as file:

            def append(line: Mapping[str, Any]) -> None:
                file.write(_line_end(file) + json.dumps(line, allow_nan=False).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())

            yield append
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        if path.exists() and not path.stat().st_size:
            path.unlink()  # nothing was changed


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a journal, oldest first; none where there is no such file.

    Raises
    ------
    DataError
        A line is damaged.
    """
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}", str(error), "compare it with a copy") from error


def _without_words(limit: Mapping[str, Any]) -> dict[str, Any]:
    short = {name: value for name, value in limit.items() if name != "promise"}
    return short if "review" not in short else {**short, "review": _without_words(short["review"])}


def _line_end(file: BinaryIO) -> bytes:
    """Return a line end where the last line has none, because a crash cut it: the new line stays whole."""
    if not file.seek(0, os.SEEK_END):
        return b""
    file.seek(-1, os.SEEK_END)
    return b"" if file.read(1) == b"\n" else b"\n"


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container without user names
        return "unknown"
