"""How a long computation speaks, without knowing to whom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Listener:
    """How a long computation speaks: whole lines, and progress of a stage."""

    say: Callable[[str], None] = lambda line: None
    progress: Callable[[str, int, int, str], None] = lambda stage, done, total, detail: None

    def named(self, name: str) -> Listener:
        """Return a listener that begins every line and every stage with a name."""
        return Listener(
            say=lambda line: self.say(f"{name}: {line}"),
            progress=lambda stage, done, total, detail: self.progress(f"{name}: {stage}", done, total, detail),
        )

    def quiet(self) -> Listener:
        """Return a listener that shows progress and says nothing."""
        return Listener(progress=self.progress)
