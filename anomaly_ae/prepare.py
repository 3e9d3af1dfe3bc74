"""Geometry there and back: from the image's own grid to the working scale of the model, and maps back again.

One factor for the whole data set keeps a pixel at working scale the same physical size in every image; the
aspect ratio never changes. Nothing here touches intensities other than by interpolation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np

from anomaly_ae.config import Config, GeometryConfig
from anomaly_ae.errors import IncompatibleImageError
from anomaly_ae.placement import Placement
from anomaly_ae.readers import MAX_PIXELS
from anomaly_ae.records import BoolArray, FloatArray, Image, PixelArray, Slice
from anomaly_ae.words import times

SMALLEST_DEFECT_PX = 3.0
"""What survives at working scale: narrower structures are averaged into their surroundings."""

WELL_TRAINED_SIDE_PX, LARGEST_TRIED_SIDE_PX = 320, 512
"""Up to the first side ``training.steps`` do; the finest network learns longer from larger images, up to the second:
beyond, nothing was tried, and a fit would take hours (docs, what we tried)."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """The working scale of a model.

    Attributes
    ----------
    factor : float
        Working pixels per image pixel; where a spacing is stated, per pixel at that spacing.
    multiple : int
        Spatial sides at working scale are padded to a multiple of this.
    smallest_px, largest_px : tuple of int
        Smallest and largest training side along each axis, in such pixels; empty: any size is taken.
    spacing_mm : tuple of float
        The spacing along each axis that images are resampled to before `factor` counts, 0: their own; empty: none is
        stated.
    """

    factor: float
    multiple: int
    smallest_px: tuple[int, ...] = ()
    largest_px: tuple[int, ...] = ()
    spacing_mm: tuple[float, ...] = field(default=(), metadata={"before": ()})

    @property
    def smallest_defect_px(self) -> float:
        """Smallest defect, in pixels of the image, that survives at working scale."""
        return SMALLEST_DEFECT_PX / min(self.factor, 1.0)

    def grid(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the spatial shape at working scale, with its padding."""
        return self.padded(working_shape(shape, self.factor))

    def padded(self, inner: Sequence[int]) -> tuple[int, ...]:
        """Return the spatial shape at working scale with the padding of its sides to `multiple`."""
        return tuple(-(-side // self.multiple) * self.multiple for side in inner)

    def describe(self, shape: Sequence[int]) -> str:
        """Say in one line what happens to an image of this spatial shape.

        >>> Geometry(0.5, 16).describe((1000, 800))
        '1000 x 800 px are mapped at 500 x 400 (factor 0.5): defects from about 6 px on survive'
        """
        work = times(working_shape(shape, self.factor))
        how = "as they are" if self.factor == 1 else f"at {work} (factor {self.factor:.3g})"
        at = f" of {' x '.join(f'{mm:.3g}' for mm in self.spacing_mm)} mm" if self.spacing_mm else ""
        return f"{times(shape)} px{at} are mapped {how}: defects from about {self.smallest_defect_px:.3g} px on survive"


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """An image at working scale, with what is needed to go back.

    Attributes
    ----------
    pixels : array, (C, *working)
        The file's numbers, interpolated where the scale changes; sides are multiples of ``geometry.multiple``.
    valid : bool array, (*working)
        False in the padding and where the image's own mask says so.
    image_shape, inner_shape : tuple of int
        Spatial shape of the source, and at working scale before padding.
    image_valid : bool array, (*image_shape), or None
        The mask on the image's own grid.
    placement : Placement or None
        Where an aligned image lies on the canvas, which then takes the place of the image at working scale.
    warning : str
        What a user should know about it; names the image.
    volume : tuple of Slice
        As in `Image`.
    exposure : float
        What the pixels were divided by, above the black level, to be usually exposed.
    """

    pixels: PixelArray
    valid: BoolArray
    image_shape: tuple[int, ...]
    inner_shape: tuple[int, ...]
    image_valid: BoolArray | None
    spacing_mm: tuple[float, ...] | None
    placement: Placement | None = None
    warning: str = ""
    volume: tuple[Slice, ...] = ()
    window: tuple[float, float] | None = None
    exposure: float = 1.0


def choose_geometry(shapes: Sequence[tuple[int, ...]], config: GeometryConfig, multiple: int) -> Geometry:
    """Choose the working scale of a data set from the spatial shapes of its training images, at the stated spacing.

    The rule: images whose longer side (median) is at most ``max_side_px`` stay as they are; longer ones are
    shrunk to it; flat images whose shorter side (median) is below ``min_side_px`` are enlarged to it. Volumes are not:
    their slices are few, and to enlarge all axes for that would multiply the voxels.

    >>> choose_geometry([(3000, 4000)], GeometryConfig(), 16).factor
    0.128
    >>> choose_geometry([(300, 300)], GeometryConfig(), 16).factor
    1.0
    """
    sides = list(zip(*shapes, strict=True))  # of all images, axis by axis
    factor, spacing_mm = working_factor(shapes, config), stated_spacing(config, len(sides))
    return Geometry(factor, multiple, tuple(map(min, sides)), tuple(map(max, sides)), spacing_mm)


def stated_spacing(config: GeometryConfig, n_axes: int) -> tuple[float, ...]:
    """Return the spacing that images are resampled to, of each axis, 0 where it stays; empty where none is stated."""
    in_slices = (config.spacing_mm,) * 2
    spacing_mm = in_slices if n_axes == 2 else (config.slice_spacing_mm or config.spacing_mm, *in_slices)
    return spacing_mm if any(spacing_mm) else ()


def at_spacing(
    name: str, shape: tuple[int, ...], own_mm: tuple[float, ...] | None, spacing_mm: tuple[float, ...]
) -> tuple[int, ...]:
    """Return the spatial shape of an image after it is resampled to a stated spacing; its own where none is stated.

    Raises
    ------
    IncompatibleImageError
        A spacing is stated, and nobody knows that of the image; or it has another number of axes.
    """
    if not spacing_mm:
        return shape
    if own_mm is None or len(own_mm) != len(spacing_mm):
        raise IncompatibleImageError(
            f"{name} states no spacing along {len(spacing_mm)} axes",
            f"images are resampled to {' x '.join(f'{mm:g}' for mm in spacing_mm)} mm",
            "give files that state their spacing, or fit with geometry.spacing_mm=0",
        )
    axes = zip(shape, own_mm, spacing_mm, strict=True)
    return tuple(max(1, round(n * own / mm)) if mm else n for n, own, mm in axes)


def working_factor(shapes: Sequence[tuple[int, ...]], config: GeometryConfig) -> float:
    """Return by how much images are enlarged, see `choose_geometry`."""
    longer = float(np.median([max(shape) for shape in shapes]))
    factor = min(1.0, config.max_side_px / longer)
    shorter = _shorter_side(shapes)
    is_volume = len(shapes[0]) == 3
    return factor if is_volume or shorter * factor >= config.min_side_px else config.min_side_px / shorter


def fitting_scales(shapes: Sequence[tuple[int, ...]], config: Config) -> int:
    """Return how many of the asked-for scales leave a typical image a shorter side of at least ``min_side_px``."""
    shorter = _shorter_side(shapes) * working_factor(shapes, config.geometry)
    scales = range(config.model.n_scales, 0, -1)
    return next((n for n in scales if shorter / 2 ** (n - 1) >= config.geometry.min_side_px), 1)


def finest_steps(shapes: Sequence[tuple[int, ...]], config: Config) -> int:
    """Return how many steps the network at full resolution learns: ``training.finest_steps`` where that is given.

    Else a typical image of more than 320 px a side is to be seen as often as one of 320 px: steps are crops of one
    size, so they grow with the area (of volumes: with the volume); no more than for 512 px.

    >>> from anomaly_ae.config import load_config
    >>> [finest_steps([(side, side)], load_config("default")) for side in (64, 320, 480, 2000)]
    [2400, 2400, 5400, 6144]
    """
    n_axes = len(shapes[0])
    typical = float(np.median([math.prod(shape) for shape in shapes])) ** (1 / n_axes)
    side = min(typical * working_factor(shapes, config.geometry), LARGEST_TRIED_SIDE_PX)
    looks = max(1.0, side / WELL_TRAINED_SIDE_PX) ** n_axes
    return config.training.finest_steps or round(config.training.steps * looks)


def _shorter_side(shapes: Sequence[tuple[int, ...]]) -> float:
    return float(np.median([min(shape) for shape in shapes]))


def working_shape(shape: Sequence[int], factor: float) -> tuple[int, ...]:
    """Return the spatial shape at working scale, before padding."""
    return tuple(max(1, round(side * factor)) for side in shape)


def takes_channels(n_of_model: int, n_of_image: int, was_grey_rgb: bool) -> bool:
    """Whether a model takes an image with so many channels: a colourless picture is a colour picture, too."""
    return n_of_image == n_of_model or (was_grey_rgb and n_of_model == 3)


def check_size(
    name: str, shape: tuple[int, ...], geometry: Geometry, spacing_mm: tuple[float, ...] | None = None
) -> None:
    """Refuse a spatial shape of quite another size than those the model learned from: it would say "normal" unseen.

    Where the model resamples to a stated spacing it counts after that.

    Raises
    ------
    IncompatibleImageError
        A side is below half of the smallest training side along its axis, or above twice the largest; or a volume is
        flat, or the other way round.
    """
    n_axes = len(geometry.smallest_px)
    if geometry.smallest_px and len(shape) != n_axes:
        raise IncompatibleImageError(
            f"{name} has {len(shape)} axes",
            f"the model was trained on {'volumes' if n_axes == 3 else 'flat images'}, which have {n_axes}",
            "score images of the kind that the model was trained on",
        )
    shape = at_spacing(name, shape, spacing_mm, geometry.spacing_mm)
    ranges = zip(shape, geometry.smallest_px, geometry.largest_px, strict=False)
    if all(smallest / 2 <= side <= largest * 2 for side, smallest, largest in ranges):
        return
    learned = f"{times(geometry.smallest_px)} px"
    if geometry.largest_px != geometry.smallest_px:
        learned = f"sides of {learned} to {times(geometry.largest_px)} px"
    raise IncompatibleImageError(
        f"{name} has {times(shape)} px",
        f"the model was trained on {learned} and takes sides from half of the smallest to twice the largest",
        "score images of the size that the model was trained on, or fit on images of this size",
    )


def prepare(image: Image, geometry: Geometry, n_channels: int) -> Prepared:
    """Bring an image to the working scale.

    Raises
    ------
    IncompatibleImageError
        The image has another number of channels than the model, or no valid pixel is left at working scale.
    """
    if not takes_channels(n_channels, image.n_channels, image.was_grey_rgb):
        raise IncompatibleImageError(
            f"{image.source} has {image.n_channels} channel(s)",
            f"the model was trained on {n_channels}",
            "score images of the kind that the model was trained on",
        )
    if image.n_channels != n_channels:
        image = replace(image, pixels=np.repeat(image.pixels, n_channels, axis=0))
    stated = at_spacing(image.source, image.spatial_shape, image.spacing_mm, geometry.spacing_mm)
    inner = working_shape(stated, geometry.factor)
    _refuse_too_large(image, inner)
    pixels, valid = image.pixels, image.valid
    if inner != image.spatial_shape:
        pixels, valid = _resample_valid(pixels, valid, inner)
        _refuse_empty(valid, image, geometry)
    padding = [(0, side - within) for side, within in zip(geometry.padded(inner), inner, strict=True)]
    inside = np.ones(inner, bool) if valid is None else valid
    return Prepared(
        pixels=np.pad(pixels, [(0, 0), *padding], mode="edge") if any(map(any, padding)) else pixels,
        valid=np.pad(inside, padding),
        image_shape=image.spatial_shape,
        inner_shape=inner,
        image_valid=image.valid,
        spacing_mm=image.spacing_mm,
        volume=image.volume,
        window=image.window,
    )


def to_image_grid(working_map: FloatArray, prepared: Prepared) -> FloatArray:
    """Bring a map of shape (*working) back to the image's own grid, float32; 0 outside the image's mask."""
    result: FloatArray = resample(to_working_grid(working_map[np.newaxis], prepared), prepared.image_shape)[0]
    return result if prepared.image_valid is None else np.where(prepared.image_valid, result, np.float32(0))


def to_working_grid(values: FloatArray, prepared: Prepared) -> FloatArray:
    """Return (C, *working) without padding, at the place where the image itself has it."""
    inner = tuple(slice(0, side) for side in prepared.inner_shape)
    placement = prepared.placement
    return values[:, *inner] if placement is None else placement.back(values[:, *inner], prepared.valid[inner])


def resample(pixels: PixelArray, shape: Sequence[int]) -> FloatArray:
    """Resample ``(C, *spatial)`` to ``(C, *shape)``, float32: linear when enlarging, area-weighted when shrinking."""
    result = np.asarray(pixels, dtype=np.float32)
    for axis, side in enumerate(shape, start=1):
        if result.shape[axis] != side:
            result = _resample_axis(result, axis, side)
    return np.ascontiguousarray(result)


def _resample_valid(
    pixels: PixelArray, valid: BoolArray | None, shape: tuple[int, ...]
) -> tuple[FloatArray, BoolArray | None]:
    """Resample so that pixels outside the mask (padding, NaN) never leak into those inside."""
    if valid is None:
        return resample(pixels, shape), None
    weight = resample(valid[np.newaxis], shape)
    summed = resample(np.where(valid, pixels, 0), shape)
    return summed / np.maximum(weight, 1e-6), weight[0] > 0.5


def _refuse_too_large(image: Image, inner: Sequence[int]) -> None:
    """Refuse, before memory is taken, what a stated spacing would blow up."""
    if image.n_channels * math.prod(inner) > MAX_PIXELS:
        raise IncompatibleImageError(
            f"{image.source} would have {times(inner)} px at working scale",
            f"more than {MAX_PIXELS:,} samples in all",
            "cut it into parts, or fit with a larger geometry.spacing_mm or a smaller geometry.max_side_px",
        )


def _refuse_empty(valid: BoolArray | None, image: Image, geometry: Geometry) -> None:
    """Refuse an image of which nothing would be inspected: it must not pass as normal."""
    if valid is not None and not valid.any():
        raise IncompatibleImageError(
            f"{image.source}: its valid area is too narrow",
            f"no pixel of it is left at working scale (factor {geometry.factor:.3g})",
            "use a wider mask, or fit with a larger geometry.max_side_px",
        )


def _resample_axis(pixels: FloatArray, axis: int, side: int) -> FloatArray:
    moved = np.moveaxis(pixels, axis, 0)
    flat = moved.reshape(moved.shape[0], -1)
    result = _axis_weights(moved.shape[0], side) @ flat  # (side, rest)
    return np.moveaxis(np.asarray(result, np.float32).reshape(side, *moved.shape[1:]), 0, axis)


@lru_cache(maxsize=64)
def _axis_weights(n_in: int, n_out: int) -> Any:
    """Return a sparse (n_out, n_in) matrix of triangular weights as wide as the coarser grid's pixel."""
    from scipy.sparse import csr_matrix

    scale = n_in / n_out
    half_width = max(scale, 1.0)
    centres = (np.arange(n_out) + 0.5) * scale - 0.5
    first = np.ceil(centres - half_width).astype(int)
    columns = first[:, None] + np.arange(int(2 * half_width) + 2)  # (n_out, taps)
    weights = np.maximum(0, 1 - np.abs(columns - centres[:, None]) / half_width)
    weights /= weights.sum(axis=1, keepdims=True)
    rows = np.repeat(np.arange(n_out), columns.shape[1])
    inside = np.clip(columns, 0, n_in - 1).ravel()  # the edge pixel is continued outside
    return csr_matrix((weights.ravel().astype(np.float32), (rows, inside)), shape=(n_out, n_in))


def valid_box(valid: BoolArray) -> tuple[slice, ...]:
    """Return the smallest box that holds all valid pixels; all of the image where there is none."""
    axes = range(valid.ndim)
    along = [np.flatnonzero(valid.any(axis=tuple(other for other in axes if other != axis))) for axis in axes]
    if not len(along[0]):
        return tuple(slice(0, side) for side in valid.shape)
    return tuple(slice(int(found[0]), int(found[-1]) + 1) for found in along)
