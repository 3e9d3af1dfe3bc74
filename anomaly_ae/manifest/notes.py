"""Notes of a manifest that every command says, because something may have been understood wrongly."""

from __future__ import annotations

from collections.abc import Iterable

_MARK = "warning: "


def loud(note: str) -> str:
    """Mark a note as one that is not to be missed."""
    return f"{_MARK}{note}"


def is_loud(note: str) -> bool:
    """Whether a note is marked so."""
    return note.startswith(_MARK)


def warnings_among(notes: Iterable[str]) -> tuple[str, ...]:
    """Return the marked notes without their mark."""
    return tuple(note.removeprefix(_MARK) for note in notes if is_loud(note))
