"""What may be scored: a path, an array, a picture, a dataset, a record or a row of a manifest becomes a named image."""

from __future__ import annotations

from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np

from anomaly_ae.errors import AnomalyAEError, UsageError
from anomaly_ae.files import holds
from anomaly_ae.loading import read_sample
from anomaly_ae.manifest import manifest_from_paths, renamed, taken
from anomaly_ae.readers import Axes, image_from, image_sha256, pixel_sha256, volume_from
from anomaly_ae.records import Failure, Image, Sample

Source = Any
"""A path, numpy array, PIL image, pydicom dataset, `Image` or `Sample`."""


def read_source(source: Source, spatial_dims: int, axes: Axes | None = None) -> tuple[Sample, Image, str]:
    """Read one image, or one volume where ``spatial_dims`` is 3.

    Parameters
    ----------
    axes : {"HW", "HWC", "CHW"} or None
        Axes of an array; None decides where the shape is unambiguous.

    Returns
    -------
    Sample
        What names it.
    Image
    str
        SHA-256 of its file, or of its pixels where it has none.

    Raises
    ------
    UnreadableImageError, UsageError
    """
    if isinstance(source, str | PathLike):
        source = _only_image(fspath(source), spatial_dims)
    if isinstance(source, np.ndarray) and spatial_dims == 3:
        source = volume_from(source)
    if isinstance(source, Sample):
        return source, read_sample(source), image_sha256(source.files)
    image = source if isinstance(source, Image) else image_from(source, axes=axes)
    name = image.source
    return Sample(id=name, path=name, files=(), unit=name, group=name), image, pixel_sha256(image)


def failure_of(source: Source, error: AnomalyAEError) -> Failure:
    """Return what stands in the place of the score of an image that could not be read or mapped."""
    if isinstance(source, Sample):
        return Failure(source.id, source.path, source.frame, source.unit, source.group, str(renamed(error, source)))
    name = fspath(source) if isinstance(source, str | PathLike) else getattr(source, "source", "array")
    return Failure(name, name, 0, name, name, str(error))


def _only_image(path: str, spatial_dims: int) -> Sample:
    """Return the one image at a path; for a network of volumes (3) the one volume, which may be a folder of slices.

    Raises
    ------
    UsageError
        An empty path, which would be the working directory, a folder, or a file of several images.
    DataError
        Nothing is there.
    """
    fix = "pass one image, or anomaly_ae.manifest.manifest_from_paths([path]).samples to score_many"
    if not path or (spatial_dims == 2 and holds(Path(path).is_dir)):
        what = f"{path} is a folder" if path else "the path is empty"
        raise UsageError(what, "one score is for one image", fix)
    samples = taken(manifest_from_paths([path]).samples, spatial_dims)
    if len(samples) > 1:
        raise UsageError(f"{path} holds {len(samples)} images or frames", "one score is for one image", fix)
    return samples[0]
