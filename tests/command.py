"""Runs the program in this process the way a shell does: exit code, standard output, standard error."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from anomaly_ae.cli import main


@dataclass(frozen=True)
class Outcome:
    """What a shell sees of a command that has ended."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that an expected error is."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        assert self.err.rstrip("\n").endswith(lines[0]), "the error is the last that is said"
        return lines[0]


def run(*arguments: str | Path) -> Outcome:
    """Run ``anomaly-ae ARGUMENTS``; an exception that is no expected error passes through, as a traceback would."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    argv = ["anomaly-ae", *map(str, arguments)]
    with mock.patch.object(sys, "argv", argv), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    return Outcome(code, out.getvalue(), err.getvalue())


def done(*arguments: str | Path) -> str:
    """Run a command that must succeed; return what it printed."""
    outcome = run(*arguments)
    assert outcome.code == 0, outcome.err
    return outcome.out


def left_behind(folder: Path) -> list[str]:
    """Return names of hidden, partial and temporary things anywhere below a folder."""
    return sorted(
        path.name for path in folder.rglob("*") if path.name.startswith(".") or path.suffix in {".partial", ".tmp"}
    )
