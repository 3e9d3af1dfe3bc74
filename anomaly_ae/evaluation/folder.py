"""The folder of a run: written under a hidden name, renamed when it is whole; nothing is replaced unasked."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anomaly_ae.errors import OutputError
from anomaly_ae.files import cannot_write, retried


@contextmanager
def new_folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """Yield a hidden folder beside ``out``; rename it to ``out`` when it is whole, remove it when that failed."""
    refuse_existing(out, overwrite)
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


def refuse_existing(out: Path, overwrite: bool) -> None:
    """Raise `OutputError` where something would be replaced unasked, or something that is no run at all."""
    if not out.exists():
        return
    if not overwrite:
        why = "results are not replaced unasked"
        raise OutputError(f"{out} exists already", why, "choose another --out, or --overwrite")
    if not out.is_dir() or (any(out.iterdir()) and not _is_run(out)):
        raise OutputError(f"{out} is no run", "it would be replaced with all it holds", "choose another --out")


def _is_run(folder: Path) -> bool:
    try:
        info = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(info, dict) and info.get("tool") == "anomaly_ae"
