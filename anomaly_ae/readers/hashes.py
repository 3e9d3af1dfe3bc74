"""Identity of images: by the bytes of the files, and by the pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from anomaly_ae.dicom.shared import file_head
from anomaly_ae.files import file_state
from anomaly_ae.records import Image


def image_sha256(path_or_files: str | Path | Sequence[str | Path]) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal.

    Of several files: the SHA-256 of their hexadecimal digests, one after another, in the order given.

    Raises
    ------
    UnreadableImageError
        A file is missing, may not be read, or is empty.
    """
    if isinstance(path_or_files, str | Path):
        return _file_sha256(Path(path_or_files))
    digests = [_file_sha256(Path(file)) for file in path_or_files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _file_sha256(path: Path) -> str:
    file_head(path, str(path))  # refuses what is no file, or empty, in words of ours
    return _digest(*file_state(path))


@lru_cache(maxsize=64)
def _digest(name: str, _changed: int, _n_bytes: int) -> str:
    """Hash a file once, and not for each of its frames or slices."""
    with Path(name).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pixel_sha256(image: Image) -> str:
    """Return the SHA-256 of shape and values, the same in every dtype and file format.

    The values are hashed as float64, so integers beyond 2^53 may agree though they differ. `valid` does not count.
    1-bit pixels are 0 and 1, so the same picture in 8 bits, 0 and 255, is another one.

    >>> import numpy as np
    >>> grey = np.array([[[1, 2], [3, 4]]])
    >>> pixel_sha256(Image(grey.astype("uint8"))) == pixel_sha256(Image(grey.astype("float32")))
    True
    >>> volume = np.arange(8).reshape(1, 2, 2, 2)
    >>> pixel_sha256(Image(volume)) == pixel_sha256(Image(np.asfortranarray(volume)))
    True
    """
    digest = hashlib.sha256("x".join(str(length) for length in image.pixels.shape).encode())
    for channel in image.pixels:
        for row in channel:
            digest.update(row.astype("<f8", order="C") + 0.0)  # -0.0 becomes 0.0
    return digest.hexdigest()
