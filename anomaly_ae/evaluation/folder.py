"""The folder of a run: written under a hidden name, renamed when it is whole; nothing is replaced unasked."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from anomaly_ae.errors import OutputError
from anomaly_ae.files import cannot_write, retried
from anomaly_ae.manifest.discover import is_run

RUN_ENTRIES = frozenset(
    (
        *("scores.csv", "scores.jsonl", "units.csv", "failures.csv", "run.json", "metrics.json", "methods.md"),
        *("pixels.csv", "pixel_counts.npz", "pictures.npz", "report.html", "heatmaps", "maps", "dicom"),
    )
)
_OF_THE_SYSTEM = ("thumbs.db", "desktop.ini")  # and names that begin with a dot


@contextmanager
def new_folder(out: Path, overwrite: bool, beside: Collection[str] = ()) -> Iterator[Path]:
    """Yield a hidden folder next to ``out``; rename it to ``out`` when it is whole, remove it when that failed.

    `beside` names what the folder holds besides the files of a run, and what may be replaced with it.
    """
    refuse_existing(out, overwrite, beside)
    partial = out  # until there is one
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
        partial.chmod(0o755)
        yield partial
        if out.exists():
            shutil.rmtree(out)
        retried(lambda: partial.rename(out))
    except OSError as error:
        raise cannot_write(out, error) from error
    finally:
        if partial != out:
            shutil.rmtree(partial, ignore_errors=True)


def refuse_existing(out: Path, overwrite: bool, beside: Collection[str] = ()) -> None:
    """Raise `OutputError` where something would be replaced unasked, or something that no run has written."""
    if not out.exists():
        return
    if not overwrite:
        why = "results are not replaced unasked"
        raise OutputError(f"{out} exists already", why, "choose another --out, or --overwrite")
    if not out.is_dir() or (any(out.iterdir()) and not is_run(out)):
        raise OutputError(f"{out} is no run", "it would be replaced with all it holds", "choose another --out")
    foreign = sorted({entry.name for entry in out.iterdir()} - RUN_ENTRIES - {*beside})
    foreign = [name for name in foreign if not name.startswith(".") and name.lower() not in _OF_THE_SYSTEM]
    if foreign:
        raise OutputError(
            f"{out} holds {foreign[0]} beside a run", "it would be lost", "choose another --out, or move it elsewhere"
        )
