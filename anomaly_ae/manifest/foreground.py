"""A simple rule for what belongs to the object, written out as `valid` masks: keeps air and table out."""

from __future__ import annotations

import hashlib
import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from anomaly_ae.errors import AnomalyAEError
from anomaly_ae.files import write_bytes
from anomaly_ae.manifest.slices import is_slice, with_slices
from anomaly_ae.manifest.table import Manifest
from anomaly_ae.readers import read_channels
from anomaly_ae.records import BoolArray, Sample


def with_foreground(manifest: Manifest, above: float, folder: Path) -> Manifest:
    """Fill the column `valid` by `foreground`, with a PNG mask per image in a folder.

    Images that have a `valid` mask, or cannot be read, stay as they are, and so does a volume with nothing above the
    number. Slices of other volumes without foreground are left out, like the air above a head.

    Raises
    ------
    OutputError
        A mask cannot be written.
    """
    volumes: defaultdict[str, list[Sample]] = defaultdict(list)
    for sample in manifest.samples:
        volumes[sample.volume or sample.path].append(sample)
    masked = {old.id: new for own in volumes.values() for old, new in _masked(own, above, folder)}
    found = [masked.get(sample.id, sample) for sample in manifest.samples]
    kept = [sample for sample in found if sample is not None]
    n_unmasked = sum(sample.valid is None for sample in kept)
    notes = [f"valid: the largest piece above {above:g}, holes filled; masks in {folder.name}"]
    notes += [f"slices outside of it, left out: {len(found) - len(kept)}"] * (len(kept) < len(found))
    notes += [f"images with nothing above {above:g}, taken whole: {n_unmasked}"] * (n_unmasked > 0)
    return replace(manifest, samples=with_slices(kept), notes=(*manifest.notes, *notes))


def _masked(own: Sequence[Sample], above: float, folder: Path) -> Iterator[tuple[Sample, Sample | None]]:
    """Yield the rows of one volume with their masks; None for those without foreground."""
    by_shape: defaultdict[tuple[int, ...], list[tuple[Sample, BoolArray]]] = defaultdict(list)
    for sample in own:
        try:
            image = None if sample.valid else read_channels(sample.files, sample.frame)
        except AnomalyAEError:
            image = None  # it becomes a failure when it is read
        if image is not None:
            plane: BoolArray = np.any(image.pixels > above, axis=0)
            by_shape[image.spatial_shape].append((sample, plane))
    for pairs in by_shape.values():
        inside = foreground(np.stack([above_it for _, above_it in pairs]))
        for (sample, _), own_part in zip(pairs, inside, strict=True):
            if own_part.any():
                yield sample, replace(sample, valid=_write(own_part, folder / f"{_name(sample)}.png"))
            elif inside.any() and is_slice(sample):
                yield sample, None


def foreground(above: BoolArray) -> BoolArray:
    """Return the largest connected piece (by faces) of a volume (n, H, W), its holes filled slice by slice.

    A tabletop that does not touch the body is another piece; lungs and skull are holes, or within them.
    """
    from scipy import ndimage

    pieces, n_pieces = ndimage.label(above)
    if n_pieces == 0:
        return above
    largest = pieces == 1 + np.bincount(pieces.ravel())[1:].argmax()
    return np.stack([ndimage.binary_fill_holes(plane) for plane in largest])


def _name(sample: Sample) -> str:
    return hashlib.sha256(sample.id.encode()).hexdigest()[:16]


def _write(inside: BoolArray, path: Path) -> Path:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(inside.astype(np.uint8) * 255).save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())
    return path
