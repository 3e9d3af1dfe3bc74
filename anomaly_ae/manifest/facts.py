"""One image of a manifest reduced to a handful of numbers: a scan never holds the images themselves."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from anomaly_ae.errors import AnomalyAEError, UnreadableImageError
from anomaly_ae.files import holds
from anomaly_ae.manifest.naming import renamed, shown
from anomaly_ae.readers import mask_files, pixel_sha256, read_channels, read_mask
from anomaly_ae.records import Image, Sample
from anomaly_ae.shortcuts import Properties, properties
from anomaly_ae.words import times

_MAX_WORKERS = 8


@dataclass(frozen=True, slots=True, eq=False)
class MaskFacts:
    """What a mask file is: ``problem`` says why it cannot be used, "" if it can; ``share``: of the image, marked."""

    problem: str = ""
    is_empty: bool = False
    share: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class ImageFacts:
    """What was read from one image.

    Attributes
    ----------
    shape : tuple of int
        Spatial shape, e.g. (height, width).
    depth : str
        "8 bit", or the dtype where bits say nothing.
    n_frames : int
        Frames in the file, whatever the manifest lists.
    sha256 : str
        Of the pixels, not of the file.
    properties : mapping of str to float or None
        Plain numbers that are not the defect, as from `shortcuts.properties`.
    """

    shape: tuple[int, ...]
    n_channels: int
    was_grey_rgb: bool
    depth: str
    n_frames: int
    sha256: str
    properties: Properties


@dataclass(frozen=True, slots=True, eq=False)
class Inspected:
    """One row after reading: `facts`, or the reason why there are none."""

    sample: Sample
    facts: ImageFacts | None = None
    reason: str = ""
    mask: MaskFacts | None = None
    valid: MaskFacts | None = None


def inspect_all(samples: Sequence[Sample], progress: Callable[[int, int], None] | None = None) -> list[Inspected]:
    """Read every image once, several at a time; at most one image per worker is in memory.

    `progress` is called as ``progress(n_done, n_total)`` in the calling thread.
    """
    executor = ThreadPoolExecutor(min(_MAX_WORKERS, os.cpu_count() or 1))
    inspected = []
    try:
        for one in executor.map(inspect, samples):
            inspected.append(one)
            if progress is not None:
                progress(len(inspected), len(samples))
    finally:  # Ctrl-C does not wait for the rest of the data set
        executor.shutdown(wait=True, cancel_futures=True)
    return inspected


def inspect(sample: Sample) -> Inspected:
    """Read one image with its masks. What cannot be read has a reason and never raises."""
    if not all(holds(file.exists) for file in sample.files):
        return Inspected(sample, reason="the file does not exist")
    try:
        image = _read(sample)
        facts = _facts(image, sum(file.stat().st_size for file in sample.files))
    except (AnomalyAEError, OSError) as error:
        return Inspected(sample, reason=_reason(error, sample, sample.files[0]))
    mask, valid = (_inspect_mask(path, sample, image.spatial_shape) for path in (sample.mask, sample.valid))
    return Inspected(sample, facts, mask=mask, valid=valid)


def _read(sample: Sample) -> Image:
    """Read with the `valid` mask, outside of which NaN are no fault; a mask of no use is told of by itself."""
    try:
        return read_channels(sample.files, sample.frame, sample.valid)
    except AnomalyAEError:
        if sample.valid is None:
            raise
        return read_channels(sample.files, sample.frame)


def _facts(image: Image, n_bytes: int) -> ImageFacts:
    bits = image.bits_stored
    return ImageFacts(
        shape=image.spatial_shape,
        n_channels=image.n_channels,
        was_grey_rgb=image.was_grey_rgb,
        depth=str(image.pixels.dtype) if bits is None else f"{bits} bit",
        n_frames=image.n_frames,
        sha256=pixel_sha256(image),
        properties=properties(image, n_bytes),
    )


def _inspect_mask(path: Path | None, sample: Sample, shape: tuple[int, ...]) -> MaskFacts | None:
    if path is None:
        return None
    if not all(holds(file.exists) for file in mask_files(path)):
        return MaskFacts("does not exist")
    try:
        mask = read_mask(path, frame=sample.frame, image_file=sample.files[0])
    except (AnomalyAEError, OSError) as error:
        return MaskFacts(f"cannot be read: {_reason(error, sample, path)}")
    if mask.shape != shape:
        is_turned = mask.shape == shape[::-1]
        turned = ", a quarter turn apart (images are turned as their EXIF data say)" if is_turned else ""
        return MaskFacts(f"is {times(mask.shape)} px, its image {times(shape)} px{turned}")
    return MaskFacts(is_empty=not mask.any(), share=float(mask.mean()))


def _reason(error: AnomalyAEError | OSError, sample: Sample, file: Path) -> str:
    """Say why, without the name that the report shows anyway."""
    if isinstance(error, OSError):
        error = UnreadableImageError(f"{file}: cannot be opened", error.strerror or type(error).__name__)
    error = renamed(error, sample)
    text = f"{error.what}: {error.why}"
    for name in (str(file), sample.id, shown(sample, file)):
        text = text.removeprefix(f"{name}: ")
    return " ".join(text.removesuffix(": ").split())
