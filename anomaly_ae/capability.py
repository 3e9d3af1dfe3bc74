"""What the model can see: synthetic defects of graded size and contrast in held-out normal images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from anomaly_ae.detector import Detector
from anomaly_ae.errors import DataError, UsageError
from anomaly_ae.keeping import regions_of
from anomaly_ae.listener import Listener
from anomaly_ae.manifest import Manifest
from anomaly_ae.manifest.slices import is_suspect
from anomaly_ae.metrics import rate
from anomaly_ae.page import figure, heat_map, picture_grid, write_page
from anomaly_ae.planting import plant_into, refuse_volumes
from anomaly_ae.records import BoolArray, Failure, FloatArray, Image, Sample, Score
from anomaly_ae.report.words import percent
from anomaly_ae.results import FORMAT, write_csv, write_json
from anomaly_ae.survey import pixel_hash
from anomaly_ae.synthetic.defects import MIN_SIZE_PX
from anomaly_ae.words import n_of

CONTRASTS = (0.03, 0.06, 0.12, 0.25, 0.5)
N_SIZES = 6
SOUGHT = 0.95
"""A defect counts as seen from the size on at which so many are found."""

_CROP_PX = 96  # of an example in the page


@dataclass(frozen=True, slots=True)
class Cell:
    """Defects of one size and contrast, and how many of them were found.

    Attributes
    ----------
    n : int
        Defects planted, one to an image.
    n_flagged : int
        Images whose score reached the threshold.
    n_found : int
        Those of them with a region on the defect.
    """

    size_px: float
    contrast: float
    n: int
    n_flagged: int
    n_found: int

    @property
    def sensitivity(self) -> float | None:
        """Share of the defects found; None where none left a trace."""
        return self.n_found / self.n if self.n else None

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the sensitivity (Clopper & Pearson), defects taken as independent."""
        limits = rate([i < self.n_found for i in range(self.n)])[1]
        return (limits[0].low, limits[0].high) if limits else (0.0, 1.0)


@dataclass(frozen=True, slots=True, eq=False)
class Capability:
    """How small and how weak a defect the model finds at its threshold.

    Attributes
    ----------
    kind : str
        See `synthetic.DEFECT_TYPES`.
    sizes, contrasts : tuple of float
        px of the image's own grid; share of the way from black to white.
    cells : tuple of Cell
        Contrast by contrast, in rising order, each from small to large.
    n_images, n_flagged_before : int
        Images defects were planted into; those left out because they reached the threshold as they were.
    promise : str
        What the threshold promises.
    n_left_out : int
        Images that could not be read or scored.
    """

    kind: str
    sizes: tuple[float, ...]
    contrasts: tuple[float, ...]
    cells: tuple[Cell, ...]
    n_images: int
    n_flagged_before: int
    promise: str
    n_left_out: int = 0

    def of_contrast(self, contrast: float) -> list[Cell]:
        """Return the cells of one contrast, from small to large."""
        return [cell for cell in self.cells if cell.contrast == contrast]

    def smallest_px(self, contrast: float) -> float | None:
        """Return the size from which on 95 % are found, of every larger size too; None where there is none."""
        smallest = None
        for cell in reversed(self.of_contrast(contrast)):
            if cell.sensitivity is None or cell.sensitivity < SOUGHT:
                break
            smallest = cell.size_px
        return smallest

    @property
    def sentence(self) -> str:
        """The finding in one sentence."""
        seen = [(c, self.smallest_px(c)) for c in self.contrasts]
        found = [f"from {size:g} px at contrast {c:g}" for c, size in seen if size is not None]
        missed = [f"{c:g}" for c, size in seen if size is None]
        what = f"{percent(SOUGHT)} % of the planted defects ({self.kind})"
        never = f"not up to {max(self.sizes):g} px at contrast {', '.join(missed)}"
        if not found:
            return f"{what} are found at no grade: {never}"
        return f"{what} are found {', '.join(found)}" + (f"; {never}" if missed else "")

    def lines(self) -> list[str]:
        """Say in words what was found, and on what."""
        n = max(cell.n for cell in self.cells)
        low = Cell(0, 0, n, n, n).interval[0]
        few = "more defects than images: they are not independent, and the truth may lie outside of the intervals"
        before = f"{n_of(self.n_flagged_before, 'image')} left out: flagged before anything was planted"
        failed = f"left out, unreadable or of another kind: {n_of(self.n_left_out, 'image')}, named above"
        return [
            self.sentence,
            f"{n} defects of each grade in {n_of(self.n_images, 'held-out normal image')}; found: the image is "
            "flagged, and a region lies on the defect",
            f"judged by the share found; even {n} of {n} prove no more than {percent(low)} % (95 % confidence)",
            *([few] if self.n_images < n else []),
            *([before] if self.n_flagged_before else []),
            *([failed] if self.n_left_out else []),
            f"threshold: {self.promise}",
        ]

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values, as ``capability.json`` holds them."""
        return {
            "format": FORMAT,
            "sentence": self.sentence,
            "kind": self.kind,
            "promise": self.promise,
            "n_images": self.n_images,
            "n_flagged_before": self.n_flagged_before,
            "smallest_px": {f"{c:g}": self.smallest_px(c) for c in self.contrasts},
            "cells": [_row(cell) for cell in self.cells],
        }


def held_out_normals(manifest: Manifest) -> tuple[Sample, ...]:
    """Return the normal images of a manifest that nothing was learned from: of the split "test", else all without one.

    Raises
    ------
    DataError
        There are none.
    """
    normals = [s for s in manifest.samples if not is_suspect(s.label, s.extra)]
    chosen = [s for s in normals if s.split == "test"] or [s for s in normals if not s.split]
    if not chosen:
        raise DataError(
            f"no held-out normal images in {manifest.place}",
            "defects are planted into normal images that nothing was learned from",
            "give a folder of new normal images, or a CSV with split = test",
        )
    return tuple(chosen)


def measure_capability(
    detector: Detector,
    samples: Sequence[Sample],
    kind: str = "spot",
    sizes_px: Sequence[float] = (),
    contrasts: Sequence[float] = CONTRASTS,
    n_per_grade: int = 20,
    seed: int = 0,
    listener: Listener | None = None,
) -> tuple[Capability, list[tuple[Cell, Image, BoolArray]]]:
    """Plant defects of every size and contrast into normal images, and count how many are found.

    A defect keeps its place and shape from contrast to contrast.

    Parameters
    ----------
    samples : sequence of Sample
        Normal images that nothing was learned from. They are drawn at random until ``n_per_grade`` of them are not
        flagged as they are, or there are no more.
    sizes_px : sequence of float
        On the image's own grid; by default six from 3 px to a quarter of the shortest side.
    contrasts : sequence of float
        Shares of the way from the model's black to its white.

    Returns
    -------
    capability : Capability
    examples : list of (Cell, Image, mask)
        The first defect of every grade.

    Raises
    ------
    DataError
        More than half of the images were used in `fit`, none can be scored, or all are flagged as they are; or no
        defect leaves a trace.
    UsageError
        Unknown kind; a size or contrast out of range; a model for volumes.
    """
    listener = listener or Listener()
    _refuse_sizes(sizes_px)
    refuse_volumes(detector.config, "capability")
    images, n_flagged, n_failed = _bases(detector, samples, n_per_grade, seed, listener)
    sizes = sorted(sizes_px) or default_sizes(min(min(image.spatial_shape) for image in images))
    limits = [detector.limits_of(detector.prepare(image)) for image in images]
    grades = [(size, contrast) for contrast in sorted(contrasts) for size in sizes]
    cells, examples = [], []
    for done, (size, contrast) in enumerate(grades, start=1):
        planted = _planted(list(zip(images, limits, strict=True)), kind, size, contrast, n_per_grade, seed)
        cell, example = _cell(detector, size, contrast, planted)
        cells.append(cell)
        examples += [(cell, *example)] if example else []
        listener.progress("planting", done, len(grades), f"{size:g} px, contrast {contrast:g}")
    if not examples:
        raise DataError(
            f"no {kind} leaves a trace in these images", "there is nothing to find", "choose another --kind"
        )
    promise = detector.calibrated[1].image.promise
    grid = tuple(sizes), tuple(sorted(contrasts)), tuple(cells)
    return Capability(kind, *grid, len(images), n_flagged, promise, n_failed), examples


def default_sizes(shortest_side_px: int) -> list[float]:
    """Return six sizes in equal ratios, from the smallest that can be drawn to a quarter of the side.

    >>> default_sizes(128)
    [3.0, 5.0, 8.0, 12.0, 20.0, 32.0]
    """
    largest = max(MIN_SIZE_PX, shortest_side_px / 4)
    return [float(size) for size in np.unique(np.geomspace(MIN_SIZE_PX, largest, N_SIZES).round())]


def write_capability(
    found: Capability, examples: Sequence[tuple[Cell, Image, BoolArray]], detector: Detector, folder: Path
) -> Path:
    """Write ``capability.json``, ``capability.csv`` and ``capability.html``; return the path of the page."""
    write_json(folder / "capability.json", found.as_json())
    rows = [_row(cell) for cell in found.cells]
    write_csv(folder / "capability.csv", list(rows[0]), rows)
    columns, names = [f"{size:g}" for size in found.sizes], [f"{c:g}" for c in found.contrasts]
    cells = [[_shown(cell) for cell in found.of_contrast(c)] for c in found.contrasts]
    axes = ("size, px", "contrast")  # beside few rows there is no room for more
    plot = heat_map("Share of the planted defects that were found", axes, columns, names, cells)
    page = folder / "capability.html"
    body = [
        figure(
            plot,
            "Share found, and how many of the planted; intervals in capability.csv. "
            "Contrast is a share of the way from black to white.",
        ),
        figure(_sheet(found, examples, detector), "One defect of each grade, in the same order, at one scale."),
    ]
    write_page(page, "what the model can see", found.sentence, found.lines()[1:], body)
    return page


def _bases(
    detector: Detector, samples: Sequence[Sample], n_wanted: int, seed: int, listener: Listener
) -> tuple[list[Image], int, int]:
    """Draw until enough images are not flagged as they are; return these, and how many were flagged and failed."""
    known = {h for part in detector.provenance.get("image_hashes", {}).values() for h in part}
    drawn = [samples[i] for i in np.random.default_rng(seed).permutation(len(samples))]
    calm, reasons, n_flagged, n_known = [], [], 0, 0
    for result, image in detector.inspect_many(drawn):
        if isinstance(result, Failure) or image is None:
            reasons.append(getattr(result, "reason", ""))
            listener.say(f"left out: {reasons[-1]}")
        elif not known.isdisjoint({pixel_hash(image), result.image_sha256}):  # a finished run names files
            n_known += 1
        elif result.score >= result.threshold:
            n_flagged += 1
        else:
            calm.append(image)
        listener.progress("looking for images to plant into", len(calm), n_wanted, "")
        n_scored = len(calm) + n_flagged + n_known
        if len(calm) == n_wanted or (n_scored >= n_wanted and 2 * n_known > n_scored):
            break
    _refuse_useless(len(calm), n_flagged, n_known, reasons)
    if n_known:
        listener.say(f"left out, used in fit: {n_of(n_known, 'image')}")
    return calm, n_flagged, len(reasons)


def _refuse_useless(n_calm: int, n_flagged: int, n_known: int, reasons: Sequence[str]) -> None:
    n_scored = n_calm + n_flagged + n_known
    if not n_scored:
        raise DataError(
            f"none of {n_of(len(reasons), 'normal image')} could be read and scored",
            "; ".join(reasons[:1]),
            "give images of the kind that the model was fitted on",
        )
    if 2 * n_known > n_scored:
        raise DataError(
            f"{n_known} of {n_scored} readable normal images were used in fit",
            "the model knows them, so what it finds in them says nothing about new images",
            "give normal images that were used for nothing else",
        )
    if not n_calm:
        raise DataError(
            f"all {n_flagged} normal images are flagged as they are",
            "so nothing can be said of defects in them",
            "look at them with anomaly-ae score",
        )


def _refuse_sizes(sizes_px: Sequence[float]) -> None:
    """Refuse what is no size in any image; one that is too large for an image is refused where it is drawn."""
    wrong = [f"{size:g} px" for size in sizes_px if not MIN_SIZE_PX <= size < math.inf]
    if wrong:
        raise UsageError(f"a defect of {wrong[0]}", "it cannot be drawn", f"choose sizes from {MIN_SIZE_PX:g} px on")


Planted = tuple[Image, BoolArray]


def _planted(
    bases: Sequence[tuple[Image, FloatArray]], kind: str, size_px: float, contrast: float, n: int, seed: int
) -> Iterator[Planted]:
    """Yield images with one defect each; those where it left no trace are missing."""
    for i in range(n):
        image, limits = bases[i % len(bases)]
        rng = np.random.default_rng([seed, i, round(1000 * size_px)])  # the same place at every contrast
        try:
            yield plant_into(image, limits, kind, rng, size_px, contrast)
        except DataError:
            continue


def _cell(
    detector: Detector, size_px: float, contrast: float, planted: Iterator[Planted]
) -> tuple[Cell, Planted | None]:
    outcomes, first = [], None
    for image, mask in planted:
        first = first or (image, mask)
        result = detector.score(image)
        is_flagged = result.score >= result.threshold
        outcomes.append((is_flagged, is_flagged and _touches(detector, result, image, mask)))
    flagged, located = (sum(kind) for kind in zip(*outcomes, strict=True)) if outcomes else (0, 0)
    return Cell(size_px, contrast, len(outcomes), flagged, located), first


def _touches(detector: Detector, result: Score, image: Image, mask: BoolArray) -> bool:
    """Say whether a region that counts lies on the defect, at least in part."""
    if result.anomaly_map is None:
        return False
    return bool(regions_of(detector, result.anomaly_map, image)[mask].any())


def _row(cell: Cell) -> dict[str, Any]:
    low, high = cell.interval
    return {**asdict(cell), "sensitivity": cell.sensitivity, "low": low, "high": high}


def _shown(cell: Cell) -> tuple[float, str, str]:
    share = cell.sensitivity
    return share or 0.0, "–" if share is None else f"{percent(share)} %", f"{cell.n_found} of {cell.n}"


def _sheet(found: Capability, examples: Sequence[tuple[Cell, Image, BoolArray]], detector: Detector) -> Markup:
    """Return crops of one defect of every grade in the order of the heat map, as one picture."""
    side = int(np.clip(2 * max(found.sizes), 32, _CROP_PX))
    sheet = np.zeros((len(found.contrasts), len(found.sizes), side, side))
    for cell, image, mask in examples:
        row, column = found.contrasts.index(cell.contrast), found.sizes.index(cell.size_px)
        sheet[-1 - row, column] = _crop(detector.in_unit_range(image).mean(axis=0), mask, side)
    return picture_grid("defects of every grade", sheet)


def _crop(grey: FloatArray, mask: BoolArray, side: int) -> FloatArray:
    """Return (side, side) around the middle of the defect; black beyond the image."""
    centre = np.argwhere(mask).mean(axis=0).round().astype(int)
    padded = np.pad(grey, side)
    top, left = centre + side - side // 2
    return padded[top : top + side, left : left + side]
