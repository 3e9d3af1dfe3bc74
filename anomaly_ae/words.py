"""Words that messages of all modules share."""

from __future__ import annotations


def n_of(n: int, noun: str) -> str:
    """Return "1 image" or "2 images"."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
