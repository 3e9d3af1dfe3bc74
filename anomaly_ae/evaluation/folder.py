"""The folder of a run: written under a hidden name, renamed when it is whole; nothing is replaced unasked."""

from __future__ import annotations

import glob
import os
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from anomaly_ae.errors import OutputError
from anomaly_ae.files import cannot_write, holds, retried, target_of
from anomaly_ae.listener import Listener
from anomaly_ae.manifest.discover import is_run

RUN_ENTRIES = frozenset(
    (
        *("scores.csv", "scores.jsonl", "units.csv", "failures.csv", "run.json", "metrics.json", "methods.md"),
        *("pixels.csv", "pixel_counts.npz", "pictures.npz", "report.html", "heatmaps", "maps", "dicom"),
    )
)
_PARTIAL = ".partial"
_OF_THE_SYSTEM = ("thumbs.db", "desktop.ini")  # and names that begin with a dot


@contextmanager
def new_folder(out: Path, overwrite: bool, beside: Collection[str] = ()) -> Iterator[Path]:
    """Yield a hidden folder next to ``out``; rename it to ``out`` when it is whole, remove it when that failed.

    A link stays, and the folder that it names is replaced; a replaced folder keeps its permissions.

    Parameters
    ----------
    out : Path
    overwrite : bool
        Replace a run that is there.
    beside : collection of str
        What the folder holds besides the files of a run, and what may be replaced with it.

    Raises
    ------
    OutputError
        Nothing can be written, something is in the way, or got in the way meanwhile: the whole folder is kept then,
        under its hidden name.
    """
    out = target_of(out)
    refuse_existing(out, overwrite, beside)
    partial = out  # until there is one
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=_PARTIAL, dir=out.parent))
        partial.chmod(stat.S_IMODE(out.stat().st_mode) if out.is_dir() else 0o755)
        yield partial
    except BaseException as error:
        if partial != out:
            shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise cannot_write(out, error) from error
        raise
    _give_its_name(partial, out, overwrite, beside)


def _give_its_name(partial: Path, out: Path, overwrite: bool, beside: Collection[str]) -> None:
    """Rename a whole folder; the old one is removed last, and where that is refused both are kept."""
    old = partial.with_suffix(".old")
    try:
        refuse_existing(out, overwrite, beside)  # again: the run took its time
        if out.exists():
            retried(lambda: out.rename(old))
        retried(lambda: partial.rename(out))
    except (OSError, OutputError) as error:
        if old.exists() and not out.exists():
            with suppress(OSError):
                old.rename(out)
        what, fix = f"the results could not get the name {out}", f"they are whole: rename {partial}"
        raise OutputError(what, str(error), fix) from error
    shutil.rmtree(old, ignore_errors=True)


def say_left_behind(out: Path, listener: Listener) -> None:
    """Name the hidden folders that runs of this name have left which were killed, or that are still being written."""
    left = sorted(path.name for path in out.parent.glob(f".{glob.escape(out.name)}.*{_PARTIAL}"))
    if left:
        listener.say(f"unfinished runs of this name beside {out}, to be removed unless one goes on: {', '.join(left)}")


def refuse_existing(out: Path, overwrite: bool, beside: Collection[str] = ()) -> None:
    """Raise `OutputError` where something would be replaced unasked, or something that no run has written."""
    if not holds(out.exists) or _is_free(out):
        return
    if not overwrite:
        why = "results are not replaced unasked"
        raise OutputError(f"{out} exists already", why, "choose another --out, or --overwrite")
    if not is_run(out):
        raise OutputError(f"{out} is no run", "it would be replaced with all it holds", "choose another --out")
    foreign = sorted({entry.name for entry in out.iterdir()} - RUN_ENTRIES - {*beside})
    foreign = [name for name in foreign if not name.startswith(".") and name.lower() not in _OF_THE_SYSTEM]
    if foreign:
        raise OutputError(
            f"{out} holds {foreign[0]} beside a run", "it would be lost", "choose another --out, or move it elsewhere"
        )


def _is_free(out: Path) -> bool:
    """Whether an empty folder can be replaced: neither the working directory nor the place of a disk can."""
    is_fixed = out.resolve() == Path.cwd() or os.path.ismount(out)
    return out.is_dir() and not is_fixed and not any(out.iterdir())
