"""How a long computation speaks, without knowing to whom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Listener:
    """How a long computation speaks: whole lines, and progress of a stage."""

    say: Callable[[str], None] = lambda line: None
    progress: Callable[[str, int, int, str], None] = lambda stage, done, total, detail: None
