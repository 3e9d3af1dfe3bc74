"""Graded defects, planted into a generated or a real image, each with its exact mask.

=============  ==============================================  ==============  ================================
kind           what it looks like                              ``size_px``     ``contrast``
=============  ==============================================  ==============  ================================
scratch        thin, slightly bowed, uneven line               length          largest change of grey
spot           irregular blob with a sharp edge                diameter        largest change of grey
stain          irregular blob without an edge                  diameter        largest change of grey
dent           bright beside dark, as a hollow or a bump       diameter        largest change of grey
               throws them under oblique light
burr           an edge of the image bulges out or is nicked    width along     height of the bulge, as a share
                                                               the edge        of 0.3 times ``size_px``
texture_break  texture turned and magnified, its mean kept     diameter        share of the strange texture
blur           smeared, or out of focus                        diameter        share of the smeared image
=============  ==============================================  ==============  ================================

The diameter is the largest one. Soft defects end where their profile ends, not where it fades, so ``size_px`` is
a true size. Sharp edges are a ramp of `EDGE_PX`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from anomaly_ae.errors import DataError, UsageError
from anomaly_ae.records import BoolArray, FloatArray
from anomaly_ae.synthetic.scenes import LIGHT_RAD, Float, clipped, smoothed

MIN_CHANGE = 1 / 255
"""A pixel counts as damaged when its grey changes by more than this: one step of an 8-bit image."""

EDGE_PX = 1.5
"""Width of the ramp at a sharp edge, about what a lens leaves. Its pixels above `MIN_CHANGE` are in the mask."""

CLOSE_PX = 2
"""Gaps of the mask up to twice this are closed: where textures agree by accident, the defect has no hole."""

MIN_SIZE_PX = 3.0  # a smaller spot is all ramp and does not reach its contrast

_N_TRIES = 20
_NEEDS_STRUCTURE = {
    "burr": 0.03,
    "blur": 0.20,
}  # share of all places, by gradient, where such a defect shows at all


def plant_defect(
    image: FloatArray,
    kind: str,
    rng: np.random.Generator,
    size_px: float,
    contrast: float,
    valid: BoolArray | None = None,
) -> tuple[Float, BoolArray]:
    """Plant one defect at a random place.

    Outside the mask the result equals ``image``, as float32, bit for bit. Inside, every pixel differs by more than
    `MIN_CHANGE` in some channel, except in gaps up to 2 · `CLOSE_PX` wide, which count as part of the defect.

    Parameters
    ----------
    image : float array, (H, W) or (channels, H, W)
        Grey values in [0, 1]. Not changed.
    kind : str
        One of `DEFECT_TYPES`.
    rng : numpy.random.Generator
        Source of place, shape and sign.
    size_px : float
        Size as the table of this module says, from 3 to the shorter side of the image.
    contrast : float
        Strength as the table of this module says, above `MIN_CHANGE` and at most 1.
    valid : bool array, (H, W), optional
        Where defects may be. What sticks out is cut off.

    Returns
    -------
    damaged : float32 array, shape of ``image``
        The image with the defect, cut to [0, 1].
    mask : bool array, (H, W)
        The damaged pixels; never empty.

    Raises
    ------
    UsageError
        Unknown kind, or size or contrast out of range.
    DataError
        The image is not floating-point in [0, 1], ``valid`` does not fit or is empty, or the defect leaves no
        trace (blur on an even image, for example).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> damaged, mask = plant_defect(np.full((64, 64), 0.5), "spot", rng, size_px=8, contrast=0.3)
    >>> bool(np.all(damaged[~mask] == 0.5)), round(float(abs(damaged - 0.5).max()), 3)
    (True, 0.3)
    """
    channels, inside = _checked(image, valid)  # (C, H, W), (H, W)
    _check_grade(kind, size_px, contrast, inside.shape)
    places = _places(channels, kind, size_px, inside)  # (n, 2)
    mask = np.zeros_like(inside)
    for _ in range(_N_TRIES):
        row, column = places[rng.integers(len(places))]
        rows, columns = _window(row, size_px), _window(column, size_px)
        before = channels[:, rows, columns]
        x, y = _coordinates(before, row - rows.start, column - columns.start, rng)
        after = clipped(_DRAW[kind](before, x, y, rng, size_px, contrast))
        mask[rows, columns] = _mask_of(before, after, inside[rows, columns])
        if mask.any():
            channels[:, rows, columns] = np.where(mask[rows, columns], after, before)
            return channels.reshape(image.shape), mask
    raise DataError(
        f"a {kind} of {size_px:g} px and contrast {contrast:g} leaves no trace in this image",
        f"at {_N_TRIES} places it changed no pixel by more than one 8-bit step",
        "choose a higher contrast or another kind of defect",
    )


# Checks.


def _checked(image: FloatArray, valid: BoolArray | None) -> tuple[Float, BoolArray]:
    """Return a float32 copy with a channel axis, and the valid mask."""
    if image.ndim not in (2, 3) or image.size == 0 or not np.issubdtype(image.dtype, np.floating):
        raise DataError(
            f"cannot plant a defect into an array of shape {image.shape} and type {image.dtype}",
            "it must hold floating-point grey values, (height, width) or (channels, height, width)",
            "convert the image first",
        )
    low, high = float(image.min()), float(image.max())
    if not (low >= 0.0 and high <= 1.0):  # this way round it refuses NaN too
        raise DataError(
            f"cannot plant a defect into grey values from {low:g} to {high:g}",
            "contrast is measured on a scale from 0 to 1",
            "divide by the full scale of the image first",
        )
    shape = image.shape[-2:]
    inside = np.ones(shape, dtype=bool) if valid is None else np.asarray(valid, dtype=bool)
    if inside.shape != shape or not inside.any():
        raise DataError(
            f"a valid mask of shape {inside.shape} with {int(inside.sum())} valid pixels",
            f"the image is {shape[0]} x {shape[1]} px, and at least one pixel must be valid",
            "check the mask, or leave it out",
        )
    return image.reshape(-1, *shape).astype(np.float32), inside


def _check_grade(kind: str, size_px: float, contrast: float, shape: tuple[int, ...]) -> None:
    if kind not in _DRAW:
        raise UsageError(f"unknown kind of defect '{kind}'", "", f"choose one of {', '.join(DEFECT_TYPES)}")
    if not MIN_SIZE_PX <= size_px <= min(shape):
        raise UsageError(
            f"a defect of {size_px:g} px in an image of {shape[0]} x {shape[1]} px",
            "it would be invisible or larger than the image",
            f"choose a size from {MIN_SIZE_PX:g} to {min(shape)} px",
        )
    if not MIN_CHANGE < contrast <= 1:
        raise UsageError(
            f"a defect of contrast {contrast:g}",
            "",
            f"choose a contrast above {MIN_CHANGE:.4f} and at most 1",
        )


# Place and mask.


def _places(channels: Float, kind: str, size_px: float, inside: BoolArray) -> npt.NDArray[np.intp]:
    """Rows and columns where the centre of the defect may lie. (n, 2)

    Half the depth of the valid region is always enough: else every large defect would sit at its deepest spot.
    """
    from scipy.ndimage import distance_transform_edt, gaussian_gradient_magnitude

    depth_px = distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
    fits = depth_px >= min(size_px / 2, depth_px.max() / 2)
    if kind in _NEEDS_STRUCTURE:
        structure = gaussian_gradient_magnitude(channels.mean(axis=0), 1.0)
        fits &= structure >= np.quantile(structure[fits], 1 - _NEEDS_STRUCTURE[kind])
    return np.argwhere(fits)


def _window(centre: int, size_px: float) -> slice:
    """Everything is computed near the defect only, so that it costs no more in a large image."""
    reach_px = math.ceil(size_px) + 8
    return slice(max(0, int(centre) - reach_px), int(centre) + reach_px + 1)


def _coordinates(before: Float, row: int, column: int, rng: np.random.Generator) -> tuple[Float, Float]:
    """Distance of the pixel centres from the centre of the defect, which lies anywhere in its pixel."""
    dy, dx = rng.uniform(-0.5, 0.5, size=2)
    y, x = np.indices(before.shape[1:], dtype=np.float32)  # (2, h, w)
    return np.asarray(x - (column + dx)), np.asarray(y - (row + dy))


def _mask_of(before: Float, after: Float, inside: BoolArray) -> BoolArray:
    from scipy.ndimage import binary_closing

    changed = (np.abs(after - before).max(axis=0) > MIN_CHANGE) & inside
    # Padded, because closing erodes what touches the border of the array.
    closed = binary_closing(np.pad(changed, CLOSE_PX), iterations=CLOSE_PX)[CLOSE_PX:-CLOSE_PX, CLOSE_PX:-CLOSE_PX]
    return np.asarray(closed & inside, dtype=bool)


# One function per kind: (C, h, w) in, (C, h, w) out, unchanged beyond the size.


def _scratch(before: Float, x: Float, y: Float, rng: np.random.Generator, size_px: float, contrast: float) -> Float:
    along, across = _turned(x, y, rng.uniform(0, np.pi))
    t = along / (size_px / 2)  # -1 .. 1 from end to end
    across = across - np.float32(rng.uniform(-0.08, 0.08) * size_px) * (1 - t**2)
    pressure = np.interp(t, np.linspace(-1, 1, 9), rng.uniform(0.5, 1.0, size=9)) * (1 - t**4).clip(0)
    width_px = min(max(size_px / 30, 1.2), 4.0) * rng.uniform(0.9, 1.4)
    line = _ramp(width_px / 2 - np.abs(across)) * pressure
    return _with_grey(before, line / line.max(), rng, contrast)


def _spot(before: Float, x: Float, y: Float, rng: np.random.Generator, size_px: float, contrast: float) -> Float:
    return _with_grey(before, _patch(x, y, rng, size_px), rng, contrast)


def _stain(before: Float, x: Float, y: Float, rng: np.random.Generator, size_px: float, contrast: float) -> Float:
    return _with_grey(before, _bump(_blob_radius(x, y, rng, size_px) ** 2), rng, contrast)


def _dent(before: Float, x: Float, y: Float, rng: np.random.Generator, size_px: float, contrast: float) -> Float:
    """The slope of the relief (1 - q²)², seen by the light; 2.598 makes its largest value 1."""
    towards_light, _ = _turned(x, y, LIGHT_RAD + rng.normal(0, 0.2))
    q = _blob_radius(x, y, rng, size_px, waviness=0.1)
    slope = 2.598 * towards_light / (size_px / 2) * (1 - q**2).clip(0)
    return np.asarray(before + slope * rng.choice((-contrast, contrast)))


def _burr(before: Float, x: Float, y: Float, rng: np.random.Generator, size_px: float, contrast: float) -> Float:
    """Pull the image along its gradient, by at most 0.3 of the width: beyond 0.32 it would fold over itself."""
    normal_rad = _gradient_direction(before, x, y)
    _, along = _turned(x, y, normal_rad)
    ragged = 0.8 + 0.2 * np.sin(along * np.float32(14 / size_px) + np.float32(rng.uniform(0, 2 * np.pi)))
    pull_px = 0.3 * size_px * contrast * ragged * _bump(np.hypot(x, y) / (size_px / 2))
    pull_px = pull_px * np.float32(rng.choice((-1.0, 1.0)))
    return _moved(before, pull_px * np.float32(np.cos(normal_rad)), pull_px * np.float32(np.sin(normal_rad)))


def _texture_break(
    before: Float, x: Float, y: Float, rng: np.random.Generator, size_px: float, contrast: float
) -> Float:
    zoom, angle = rng.uniform(1.2, 1.5), rng.uniform(np.deg2rad(25), np.deg2rad(65))
    from_x, from_y = _turned(x / zoom, y / zoom, angle)
    strange = _moved(before, x - from_x, y - from_y)
    sigma = (0, size_px / 4, size_px / 4)
    strange += smoothed(before, sigma) - smoothed(strange, sigma)  # the mean grey must not give it away
    return before + contrast * _patch(x, y, rng, size_px) * (strange - before)


def _blur(before: Float, x: Float, y: Float, rng: np.random.Generator, size_px: float, contrast: float) -> Float:
    sigma_px = max(1.0, size_px / 10)
    smeared = smoothed(before, (0, sigma_px, sigma_px))
    return before + contrast * _patch(x, y, rng, size_px) * (smeared - before)


_Draw = Callable[[Float, Float, Float, np.random.Generator, float, float], Float]
_DRAW: dict[str, _Draw] = {
    "scratch": _scratch,
    "spot": _spot,
    "stain": _stain,
    "dent": _dent,
    "burr": _burr,
    "texture_break": _texture_break,
    "blur": _blur,
}
DEFECT_TYPES = tuple(_DRAW)
"""Kinds that `plant_defect` knows. New ones are appended: the place in this list enters the seed of each image."""


# Shapes.


def _turned(x: Float, y: Float, angle_rad: float) -> tuple[Float, Float]:
    cos, sin = np.float32(np.cos(angle_rad)), np.float32(np.sin(angle_rad))
    return x * cos + y * sin, y * cos - x * sin


def _ramp(depth_px: Float) -> Float:
    """1 inside, 0 outside, linear over `EDGE_PX` around depth 0."""
    return clipped(0.5 + depth_px / EDGE_PX)


def _bump(q: Float) -> Float:
    """A hill of height 1 that ends smoothly at |q| = 1."""
    return np.asarray((1 - q**2).clip(0) ** 2)


def _patch(x: Float, y: Float, rng: np.random.Generator, size_px: float) -> Float:
    """An irregular disc of height 1 whose ramp ends at the rim."""
    return _ramp((1 - _blob_radius(x, y, rng, size_px)) * (size_px / 2) - EDGE_PX / 2)


def _moved(before: Float, dx: Float, dy: Float) -> Float:
    """Each pixel shows what lay (dx, dy) px before it."""
    from scipy.ndimage import map_coordinates

    rows, columns = np.indices(dx.shape, dtype=np.float32)
    source = (rows - dy, columns - dx)
    return np.stack([map_coordinates(channel, source, order=3, mode="mirror") for channel in before])


def _blob_radius(x: Float, y: Float, rng: np.random.Generator, size_px: float, waviness: float = 0.3) -> Float:
    """Distance from the centre as a share of an irregular rim, which lies at most half of ``size_px`` away."""
    angle = np.arctan2(y, x)
    orders = np.arange(2, 6)
    weights = rng.uniform(0, 1, size=4) / orders
    waves = np.cos(np.multiply.outer(orders, angle) + rng.uniform(0, 2 * np.pi, size=(4, 1, 1)))  # (4, h, w)
    wave = np.tensordot(weights / weights.sum(), waves, axes=1)
    rim = 1 - waviness * (0.5 - 0.5 * wave)  # 1 - waviness .. 1
    return np.asarray(np.hypot(x, y) / (rim * (size_px / 2)), dtype=np.float32)


def _with_grey(before: Float, profile: Float, rng: np.random.Generator, contrast: float) -> Float:
    """Brighten or darken by up to ``contrast``; the other way round where the scale leaves no room for it."""
    sign = rng.choice((-1.0, 1.0))
    core = before[:, profile > 0.5 * profile.max()]
    room = 1 - core.mean() if sign > 0 else core.mean()
    sign = sign if room >= contrast else np.copysign(1.0, 0.5 - core.mean())
    return before + profile * np.float32(sign * contrast)


def _gradient_direction(before: Float, x: Float, y: Float) -> float:
    smooth = smoothed(before.mean(axis=0), 1.5)
    row, column = np.unravel_index(np.argmin(np.hypot(x, y)), x.shape)
    along_y, along_x = (np.gradient(smooth, axis=axis)[row, column] for axis in (0, 1))
    return float(np.arctan2(along_y, along_x))
