"""Files, written so that a crash, a full disk or a power cut never leaves half of one under the final name.

And read without trust in their size or kind.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from anomaly_ae.errors import OutputError
from anomaly_ae.words import SHOWING_BYTES

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

_CURES = {
    errno.ENOSPC: "free some space or choose another folder",
    errno.EDQUOT: "free some space or choose another folder",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that you may write to",
    errno.ENOTDIR: "a part of the path is a file: choose another folder",
    errno.EEXIST: "a part of the path is a file: choose another folder",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def holds(question: Callable[[], bool]) -> bool:
    """Ask about a path, ``holds(path.is_dir)``: of a name that is too long, or may not be looked at, nothing holds."""
    try:
        return question()
    except OSError:
        return False


def target_of(path: Path) -> Path:
    """Return what a link leads to, so that the link stays when this is replaced; any other path as it is."""
    return path.resolve() if holds(path.is_symlink) else path


@contextmanager
def replacing(path: Path, mode: int | None = None) -> Iterator[Path]:
    """Yield a temporary name in the same folder; on success sync it and move it to ``path``, or to where that leads.

    Parameters
    ----------
    path : Path
    mode : int or None
        Permissions; None: those of the file that is replaced, if there is one.

    Raises
    ------
    OutputError
        The folder cannot be created or written, or the disk is full. The previous file is untouched then.
    """
    path = target_of(Path(path))
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        if mode is None and path.exists():
            mode = stat.S_IMODE(path.stat().st_mode)
        if mode is not None:
            temporary.chmod(mode)
        retried(lambda: temporary.replace(path))
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def file_state(path: str | Path) -> tuple[str, int, int]:
    """Return name, time of the last change in ns and size: a cache under this key never serves an older file."""
    status = Path(path).stat()
    return str(path), status.st_mtime_ns, status.st_size


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write a whole UTF-8 file atomically, with ``\\n`` line ends on every system."""
    write_bytes(path, content.encode("utf-8", SHOWING_BYTES))


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a whole UTF-8 file atomically from lines, or other parts, that are never in memory together."""
    with replacing(path) as temporary:
        _write_parts(temporary, lines)


def write_together(folder: Path, files: Mapping[str, Iterable[str]]) -> None:
    """Write several UTF-8 files of a folder: all stand under temporary names before the first one is replaced.

    Parameters
    ----------
    files : mapping of str to iterable of str
        The lines, or other parts, of each file by its name. The first named is replaced last.

    Raises
    ------
    OutputError
        One of them cannot be written. All are untouched then.
    """
    with ExitStack() as stack:
        for name, lines in files.items():
            temporary = stack.enter_context(replacing(folder / name))
            _write_parts(temporary, lines)
            _sync(temporary)


def _write_parts(path: Path, parts: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8", errors=SHOWING_BYTES, newline="\n") as file:
        file.writelines(parts)


def read_at_most(path: Path, max_bytes: int) -> bytes:
    """Return the content of a file.

    Raises
    ------
    OSError
        It cannot be read, or is larger.
    """
    size = path.stat().st_size
    if size > max_bytes:
        raise OSError(errno.EFBIG, f"it has {size} bytes, at most {max_bytes} are read")
    return path.read_bytes()


def parse_tensors(content: bytes) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises
    ------
    ValueError
        It is none, or holds a type of numbers that torch does not know.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors: dict[str, Tensor] = load(content)
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    except KeyError as error:
        raise ValueError(f"numbers of type {error}") from error
    return tensors


def refuse_existing_file(path: Path, overwrite: bool) -> None:
    """Raise `OutputError` where `write_bytes` would replace a file unasked, or a folder, or would not be let.

    Called before the work, not after.
    """
    if holds(path.is_dir):
        raise OutputError(f"{path} is a folder", "a file is written here", "choose another name")
    if holds(path.exists) and not overwrite:
        raise OutputError(f"{path} exists already", "it is not replaced unasked", "choose another name, or --overwrite")
    nearest = next(parent for parent in path.absolute().parents if holds(parent.exists))
    if not nearest.is_dir():
        raise OutputError(f"cannot write {path}", f"{nearest} is a file", "choose another folder")
    try:
        target = target_of(path)
        _temporary(target).exists()  # of a name that is too long even that cannot be asked
        _try_writing(target.parent)
    except OSError as error:
        raise cannot_write(path, error) from error


def refuse_folder(out: Path, overwrite: bool) -> None:
    """Refuse to write into a folder that holds something, unless its files of the same names may be replaced.

    One that cannot be written is refused, too: before the work, not after.
    """
    try:
        if out.is_file():
            raise OutputError(f"{out} is a file", "a folder is written here", "choose another --out")
        if out.is_dir() and any(out.iterdir()) and not overwrite:
            raise OutputError(
                f"{out} exists already", "results are not replaced unasked", "choose another --out, or --overwrite"
            )
        _try_writing(out)
    except OSError as error:
        raise cannot_write(out, error) from error


def _try_writing(folder: Path) -> None:
    """Write into a folder, and leave nothing behind: neither a file nor a folder that was not there."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0")
    finally:
        for path in missing:
            with suppress(OSError):
                path.rmdir()


def remove_file(path: Path) -> None:
    """Remove a file, if there is one."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot remove {path}", error.strerror or str(error), "check the path") from error


def cannot_write(path: Path, error: OSError) -> OutputError:
    """Turn an `OSError` of writing into a message with a cure."""
    cure = _CURES.get(error.errno or 0, "choose another folder")
    why = error.strerror or str(error)
    return OutputError(f"cannot write {path}", why, f"{cure}; an older file of this name is unchanged")


def retried(action: Callable[[], T], attempts: int = 10) -> T:
    """Repeat an action that Windows refuses while a virus scanner or an indexer holds the file open."""
    for attempt in range(attempts):
        try:
            return action()
        except PermissionError:
            if os.name != "nt" or attempt == attempts - 1:
                raise
            time.sleep(0.05 * (attempt + 1))
    raise AssertionError("unreachable")


def _sync(path: Path) -> None:
    with path.open("rb+") as handle:
        os.fsync(handle.fileno())
