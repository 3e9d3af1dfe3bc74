"""Small images in files, for tests that need folders of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

Write = Callable[..., Path]


def writer(folder: Path, noise: Callable[[int], np.ndarray]) -> Write:
    """Return what writes an image below a folder; every call has other pixels unless they are given."""
    seeds = itertools.count()

    def write(name: str, pixels: np.ndarray | None = None) -> Path:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Pillow.fromarray(noise(next(seeds)) if pixels is None else pixels).save(file)
        return file

    return write
