"""Words that messages of all modules share."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

N_NAMED = 3
"""So many names are said before the others are counted."""

SHOWING_BYTES = "anomaly_ae.showing_bytes"
"""How to encode text with names of files in it: POSIX allows names of any bytes, and files of ours hold UTF-8."""


def _show_bytes(error: UnicodeError) -> tuple[str, int]:
    """Write each byte of a name that is no UTF-8, for which Python has half a surrogate pair, as four characters."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(f"\\x{ord(sign) & 0xFF:02x}" for sign in error.object[error.start : error.end]), error.end


codecs.register_error(SHOWING_BYTES, _show_bytes)


def n_of(n: int | None, noun: str) -> str:
    """Return a number with its noun.

    >>> n_of(1, "normal image"), n_of(2000, "image"), n_of(None, "image")
    ('1 normal image', '2,000 images', '– images')
    """
    return f"{'–' if n is None else f'{n:,}'} {noun}{'' if n == 1 else 's'}"


def some_names(names: Iterable[object], n_named: int = N_NAMED) -> str:
    """Return the first few names, and how many more there are.

    >>> some_names(["a", "b", "c", "d"]), some_names(["a", "b"])
    ('a, b, c and 1 more', 'a, b')
    """
    texts = [str(name) for name in names]
    more = f" and {len(texts) - n_named} more" if len(texts) > n_named else ""
    return ", ".join(texts[:n_named]) + more


def text_of(name: object) -> str:
    """Return the name of a file as text, see `SHOWING_BYTES`: where it is compared, or stands in JSON.

    >>> text_of("M\\udcfcnchen.png")  # Latin-1
    'M\\\\xfcnchen.png'
    """
    return str(name).encode("utf-8", SHOWING_BYTES).decode("utf-8")


def times(shape: Iterable[int]) -> str:
    """Return the sides of an array.

    >>> times((512, 512, 30))
    '512 x 512 x 30'
    """
    return " x ".join(map(str, shape))
