"""Patients and images under other names: a salted hash, and private files that lead back from it.

Salt and key files lie in a folder of the user, not beside the images or the results: `ANOMALY_AE_PRIVATE` names it, or
it is ``.anomaly_ae`` in the home folder. Whoever has neither cannot tell which patient a hash stands for; the same
patient has the same hash in all data sets of this user.
"""

from __future__ import annotations

import csv
import hmac
import io
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from anomaly_ae.errors import OutputError
from anomaly_ae.files import replacing

FOLDER_VARIABLE = "ANOMALY_AE_PRIVATE"
SALT_FILE, KEY_FILE = "salt", "patients.csv"
WAIT_S = 60

_OWNER_ONLY = 0o600
_N_DIGITS = 12  # 48 bits: of a million patients two share a hash with a chance of 0.2 %
_N_SALT_BYTES = 32


def private_folder() -> Path:
    """Return where salt and key file are kept."""
    named = os.environ.get(FOLDER_VARIABLE)
    return Path(named) if named else Path.home() / ".anomaly_ae"


def hashed(texts: Iterable[str], kind: str) -> dict[str, str]:
    """Return a name for each identifier: kind and the first digits of its HMAC-SHA-256 (RFC 2104) with the salt.

    Raises
    ------
    OutputError
        There is no salt yet, and none can be written.
    """
    salt = _salt(private_folder() / SALT_FILE)
    return {text: f"{kind}-{hmac.new(salt, text.encode(), 'sha256').hexdigest()[:_N_DIGITS]}" for text in set(texts)}


def remember(names: Mapping[str, str], file: str = KEY_FILE) -> None:
    """Add identifiers and their names to a key file, which only its owner may read.

    Programs that add at the same time wait for each other: each reads what is there, adds, and replaces the file.

    Raises
    ------
    OutputError
        The key file cannot be read or written, or another program holds it for longer than `WAIT_S`.
    """
    path, new = private_folder() / file, {name: text for text, name in names.items()}
    if new.items() <= _read_key(path).items():  # the usual case: nothing to wait for
        return
    with _alone_with(path):
        lines = io.StringIO(newline="")
        table = csv.writer(lines, lineterminator="\n")
        table.writerow(("name", "patient_id" if file == KEY_FILE else "original"))
        table.writerows(sorted({**_read_key(path), **new}.items()))
        with replacing(path, _OWNER_ONLY) as temporary:
            temporary.touch(_OWNER_ONLY)
            temporary.write_text(lines.getvalue(), encoding="utf-8", newline="")


@contextmanager
def _alone_with(path: Path) -> Iterator[None]:
    """Hold the lock of a key file. The system lets go of it when a program ends, however it ends."""
    from filelock import FileLock, Timeout

    lock = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(lock, WAIT_S, mode=_OWNER_ONLY):
            yield
    except Timeout as error:
        why = f"another program has held {lock.name} for {WAIT_S} s"
        raise OutputError(f"cannot add to {path}", why, "end that program, or try again") from error
    except (OSError, NotImplementedError) as error:  # the second: a network drive without locks
        cure = f"let {FOLDER_VARIABLE} name a folder of your own"
        raise OutputError(f"cannot lock {path}", str(error), cure) from error


def _read_key(path: Path) -> dict[str, str]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return dict(list(csv.reader(file))[1:])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        why = "it holds which hash stands for which patient, and cannot be added to"
        raise OutputError(f"{path} cannot be read", why, "mend it, or move it away") from error


def _salt(path: Path) -> bytes:
    """Read the salt, or make one; of two programs that begin at the same time the first makes it."""
    try:
        if not path.exists():
            with _alone_with(path):
                _make_salt(path)
        salt = path.read_bytes()
    except OSError as error:
        why = f"{error.strerror or error}; without it patients have no names"
        raise OutputError(f"cannot read {path}", why, f"let {FOLDER_VARIABLE} name a folder of your own") from error
    if len(salt) != _N_SALT_BYTES:
        why = f"{len(salt)} bytes instead of {_N_SALT_BYTES}; names of patients would not be those of before"
        raise OutputError(f"{path} is damaged", why, "bring it back from a copy, or delete it to begin anew")
    return salt


def _make_salt(path: Path) -> None:
    if path.exists():  # made by another program in the meantime
        return
    with replacing(path, _OWNER_ONLY) as temporary:
        temporary.touch(_OWNER_ONLY)
        temporary.write_bytes(secrets.token_bytes(_N_SALT_BYTES))
