"""Normal images: a turned flange in a fixture, and a woven fabric on the roll.

Lengths are in half-widths of the image: x and y run from -1 to 1, whatever ``size_px``. Grey values lie in
[0, 1].

A scene is what the lens draws; the sensor adds its noise afterwards. Defects are planted in between, so that a
defect carries the same noise as its surroundings and cannot be told by being cleaner than they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from anomaly_ae.errors import UsageError
from anomaly_ae.records import BoolArray

Float = npt.NDArray[np.floating[Any]]

PART = "part"
SURFACE = "surface"
KINDS = (PART, SURFACE)

SIZE_RANGE_PX = (32, 4096)
BENIGN_DUST_PX = 2.0
"""Largest diameter of benign dust in an image of 128 px; it grows with the image. The smallest spot is 3 px."""

READ_NOISE = 0.006
SHOT_NOISE = 0.012
"""Noise deviation in grey values: sqrt(READ_NOISE² + SHOT_NOISE² · grey), 0.010 at mid grey."""

LIGHT_RAD = float(np.deg2rad(225.0))  # from the upper left; angles from x to y, and y points down
_OUTER, _GROOVE, _HUB, _CENTRE_BORE = 0.84, (0.46, 0.53), 0.46, 0.19
_BORE_CIRCLE, _BORE_RADIUS, _N_BORES = 0.68, 0.082, 6


@dataclass(frozen=True, slots=True)
class Lighting:
    """The lamp as one lot sees it: a factor on grey, and its relative change per half-width along x and y."""

    gain: float
    slope_x: float
    slope_y: float


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A noise-free image and where the object is.

    Attributes
    ----------
    image : float32 array, (H, W)
        Grey values in [0, 1].
    valid : bool array, (H, W)
        True on the material, not in its bores and not beside it.
    """

    image: Float
    valid: BoolArray


def make_part(rng: np.random.Generator, size_px: int = 128) -> Float:
    """Draw one normal turned flange with a groove, a centre bore and six bolt bores.

    The fixture leaves up to ±2 px of shift (in an image of 128 px) and ±2 degrees. Turning and brushing marks,
    bore diameters (±3 %), lighting, focus, noise and dust up to `BENIGN_DUST_PX` vary from image to image.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of all variation.
    size_px : int
        Side length, 32 to 4096.

    Returns
    -------
    float32 array, (H, W)
        Grey values in [0, 1].

    Raises
    ------
    UsageError
        ``size_px`` is out of range.

    Examples
    --------
    >>> make_part(np.random.default_rng(0), size_px=64).shape
    (64, 64)
    """
    return add_sensor_noise(draw_scene(PART, rng, size_px, draw_lighting(rng)).image, rng)


def make_surface(rng: np.random.Generator, size_px: int = 128) -> Float:
    """Draw one normal piece of plain-woven fabric, not aligned to the image.

    Phase, direction (±3 degrees), yarn density (±3 %), yarn grey, bend of the cloth, lighting, focus, noise and
    lint up to `BENIGN_DUST_PX` vary from image to image. Parameters, result and errors as in `make_part`.
    """
    return add_sensor_noise(draw_scene(SURFACE, rng, size_px, draw_lighting(rng)).image, rng)


def make_noise_dataset(n: int, size_px: int, rng: np.random.Generator) -> Float:
    """Draw images of independent Gaussian noise, 0.5 ± 0.1, cut to [0, 1].

    They are exchangeable by construction, so that a promised false-alarm rate must hold on them exactly.

    Returns
    -------
    float32 array, (n, 1, H, W)
        Grey values in [0, 1].
    """
    if n < 0 or size_px < 1:
        raise UsageError(f"cannot make {n} noise images of {size_px} px", "", "ask for n >= 0 and size_px >= 1")
    noise = rng.standard_normal((n, 1, size_px, size_px), dtype=np.float32)  # (n, 1, H, W)
    return clipped(0.5 + 0.1 * noise)


def draw_lighting(rng: np.random.Generator) -> Lighting:
    """Draw the lighting offset that the images of one lot share."""
    gain, slope_x, slope_y = rng.normal((1.0, 0.0, 0.0), (0.02, 0.02, 0.02))
    return Lighting(float(gain), float(slope_x), float(slope_y))


def draw_scene(kind: str, rng: np.random.Generator, size_px: int, lighting: Lighting) -> Scene:
    """Draw one normal object under the lighting of its lot, before sensor noise."""
    low, high = SIZE_RANGE_PX
    if not low <= size_px <= high:
        raise UsageError(f"cannot draw an image of {size_px} px", "", f"choose a size from {low} to {high} px")
    match kind:
        case "part":
            image, valid = _flange(rng, size_px)
        case "surface":
            image, valid = _weave(rng, size_px), np.ones((size_px, size_px), dtype=bool)
        case _:
            raise UsageError(f"unknown kind of image '{kind}'", "", f"choose one of {', '.join(KINDS)}")
    image = image + _dust(rng, size_px)
    return Scene(_through_lens(_lit(image, rng, lighting), rng), valid)


def add_sensor_noise(image: Float, rng: np.random.Generator) -> Float:
    """Add read and shot noise. Where two images agree, they agree afterwards too, given equal generators."""
    deviation = np.sqrt(READ_NOISE**2 + SHOT_NOISE**2 * image)
    return clipped(image + deviation * rng.standard_normal(image.shape, dtype=np.float32))


def clipped(image: Float) -> Float:
    """Cut grey values to [0, 1], as float32."""
    return np.asarray(np.clip(image, 0.0, 1.0), dtype=np.float32)


def smoothed(image: Float, sigma: float | tuple[float, ...]) -> Float:
    """Gaussian blur; ``sigma`` in px, one number or one per axis."""
    from scipy.ndimage import gaussian_filter

    return np.asarray(gaussian_filter(image, sigma))


def _grid(size_px: int) -> tuple[Float, Float]:
    """Pixel centres in half-widths: x along columns, y along rows."""
    centres = ((np.arange(size_px) + 0.5) * 2 / size_px - 1).astype(np.float32)
    x, y = np.meshgrid(centres, centres)
    return x, y


def _lit(image: Float, rng: np.random.Generator, lighting: Lighting) -> Float:
    x, y = _grid(image.shape[0])
    gain = lighting.gain * rng.normal(1.0, 0.03)
    slope_x, slope_y = rng.normal((lighting.slope_x, lighting.slope_y), 0.02)
    return np.asarray(image * (gain * (1 + slope_x * x + slope_y * y)))


def _through_lens(image: Float, rng: np.random.Generator) -> Float:
    sigma_px = rng.uniform(0.5, 0.8) * image.shape[0] / 128
    return clipped(smoothed(image, sigma_px))


def _dust(rng: np.random.Generator, size_px: int) -> Float:
    """A few benign specks, bright or dark, smaller than any defect."""
    dust = np.zeros((size_px, size_px), dtype=np.float32)
    x, y = _grid(size_px)
    for _ in range(rng.integers(0, 4)):
        centre_x, centre_y = rng.uniform(-1, 1, size=2)
        radius = rng.uniform(0.5, 1.0) * BENIGN_DUST_PX / 128
        grey = rng.choice((-1.0, 1.0)) * rng.uniform(0.05, 0.12)
        dust += np.float32(grey) * _disc(np.hypot(x - centre_x, y - centre_y), radius)
    return dust


def _disc(distance: Float, radius: Any) -> Float:
    """Share of each pixel inside the radius: a ramp of one pixel at the rim."""
    per_px = distance.shape[0] / 2
    return clipped(0.5 + (radius - distance) * per_px)


def _over(image: Float, grey: Any, coverage: Float) -> Float:
    return np.asarray(image + coverage * (grey - image))


# The flange.


def _flange(rng: np.random.Generator, size_px: int) -> tuple[Float, BoolArray]:
    x, y = _grid(size_px)
    shift_x, shift_y = rng.uniform(-2, 2, size=2) * 2 / 128
    x, y = x - np.float32(shift_x), y - np.float32(shift_y)
    r, angle = np.hypot(x, y), np.arctan2(y, x)
    image = _fixture_plate(rng, x, y)
    image = _over(image, _turned_face(rng, r, angle), _disc(r, _OUTER))
    image = _chamfer(image, r, angle, (_OUTER - 0.05, _OUTER), outward=True)
    image = _groove(image, r, angle)
    image = _centre_bore(image, rng, r, angle)
    turned_rad = np.deg2rad(rng.uniform(-2, 2))
    solid = (r < _OUTER) & (r > _CENTRE_BORE)
    for bore in range(_N_BORES):
        at = turned_rad + 2 * np.pi * (bore + 0.5) / _N_BORES
        from_x, from_y = x - np.float32(_BORE_CIRCLE * np.cos(at)), y - np.float32(_BORE_CIRCLE * np.sin(at))
        image = _bolt_bore(image, rng, from_x, from_y)
        solid &= np.hypot(from_x, from_y) > _BORE_RADIUS
    return _index_mark(image, x, y, turned_rad), solid


def _fixture_plate(rng: np.random.Generator, x: Float, y: Float) -> Float:
    """Brushed dark plate with the shadow of the part on it, away from the light."""
    from scipy.ndimage import gaussian_filter

    size_px = x.shape[0]
    streaks = gaussian_filter(rng.standard_normal(x.shape, dtype=np.float32), (0.6, 0.09 * size_px), mode="wrap")
    plate = 0.22 + 0.02 * streaks / streaks.std()
    from_shadow = np.hypot(x - 0.05, y - 0.05) - _OUTER
    return np.asarray(plate * (1 - 0.6 * np.exp(-from_shadow.clip(0) / 0.05)))


def _turned_face(rng: np.random.Generator, r: Float, angle: Float) -> Float:
    """Concentric tool marks and the hourglass highlight they throw: grooves shine across their direction."""
    n_marks = r.shape[0]
    marks = np.interp(r, np.linspace(0, 1.5, n_marks), rng.normal(0, 0.025, size=n_marks))
    highlight = 0.5 + 0.5 * np.cos(2 * (angle - LIGHT_RAD - rng.normal(0, 0.03)))
    level = np.where(r < _HUB, np.float32(0.58), np.float32(0.50))
    return np.asarray((level + 0.17 * highlight**3) * (1 + marks), dtype=np.float32)


def _chamfer(image: Float, r: Float, angle: Float, rims: tuple[float, float], outward: bool) -> Float:
    """A cone ring: bright where it faces the light, dark where it turns away."""
    facing = np.cos(angle - LIGHT_RAD) * (1 if outward else -1)
    ring = _disc(r, rims[1]) * (1 - _disc(r, rims[0]))
    return _over(image, 0.50 + 0.30 * facing, ring)


def _groove(image: Float, r: Float, angle: Float) -> Float:
    inner, outer = _GROOVE
    image = _over(image, 0.30, _disc(r, outer) * (1 - _disc(r, inner)))
    image = _chamfer(image, r, angle, (outer - 0.02, outer), outward=False)
    return _chamfer(image, r, angle, (inner, inner + 0.02), outward=True)


def _centre_bore(image: Float, rng: np.random.Generator, r: Float, angle: Float) -> Float:
    radius = _CENTRE_BORE * rng.uniform(0.985, 1.015)
    image = _chamfer(image, r, angle, (radius, radius + 0.05), outward=False)
    wall = 0.06 + 0.14 * np.clip(-np.cos(angle - LIGHT_RAD), 0, 1) * np.clip(r / radius, 0, 1) ** 4
    return _over(image, wall, _disc(r, radius))


def _bolt_bore(image: Float, rng: np.random.Generator, x: Float, y: Float) -> Float:
    r, angle = np.hypot(x, y), np.arctan2(y, x)
    radius = _BORE_RADIUS * rng.uniform(0.97, 1.03)
    image = _chamfer(image, r, angle, (radius, radius + 0.025), outward=False)
    return _over(image, 0.07, _disc(r, radius))


def _index_mark(image: Float, x: Float, y: Float, turned_rad: float) -> Float:
    """A drilled dimple beside the hub that tells the orientation."""
    at = turned_rad - np.pi / 2
    r = np.hypot(x - 0.325 * np.cos(at), y - 0.325 * np.sin(at))
    return _over(image, 0.24, _disc(r, 0.035))


# The fabric.


def _weave(rng: np.random.Generator, size_px: int) -> Float:
    """Plain weave: warp and weft pass over each other in turn, each yarn rounded and brightest where on top."""
    across, along = _cloth_coordinates(rng, size_px)  # in yarns
    warp, weft = np.floor(across).astype(np.intp), np.floor(along).astype(np.intp)
    in_warp, in_weft = across - warp - 0.5, along - weft - 0.5  # -0.5 .. 0.5
    warp_on_top = (warp + weft) % 2 == 0
    warp_yarn = _yarn(in_warp, in_weft, _per_yarn(rng, warp))
    weft_yarn = _yarn(in_weft, in_warp, _per_yarn(rng, weft) - 0.05)
    image = np.where(warp_on_top, np.maximum(warp_yarn, weft_yarn - 0.22), np.maximum(weft_yarn, warp_yarn - 0.22))
    return np.asarray(image + _fibres(rng, size_px))


def _cloth_coordinates(rng: np.random.Generator, size_px: int) -> tuple[Float, Float]:
    """Position in yarns, rotated, shifted and bent a little as cloth lies."""
    x, y = _grid(size_px)
    angle = np.deg2rad(rng.uniform(-3, 3))
    yarns = 9.0 * rng.uniform(0.97, 1.03, size=2)  # per half-width
    across = np.cos(angle) * x - np.sin(angle) * y + _bend(rng, x, y)
    along = np.sin(angle) * x + np.cos(angle) * y + _bend(rng, x, y)
    phase = rng.uniform(0, 2, size=2)
    return across * np.float32(yarns[0]) + np.float32(phase[0]), along * np.float32(yarns[1]) + np.float32(phase[1])


def _bend(rng: np.random.Generator, x: Float, y: Float) -> Float:
    """A slow wave, a few hundredths of a half-width high."""
    wave_x, wave_y = rng.normal(0, 1.5, size=2)
    return np.asarray(0.015 * np.sin(wave_x * x + wave_y * y + rng.uniform(0, 2 * np.pi)), dtype=np.float32)


def _per_yarn(rng: np.random.Generator, index: npt.NDArray[np.intp]) -> Float:
    """Grey of each yarn: no two are spun or dyed quite alike."""
    first = index.min()
    grey = rng.normal(0.56, 0.022, size=int(index.max() - first) + 1).astype(np.float32)
    return np.asarray(grey[index - first])


def _yarn(in_width: Float, in_length: Float, grey: Float) -> Float:
    """Rounded across, and bowed along its length between two crossings."""
    across, along = 0.45 + 0.55 * np.cos(0.92 * np.pi * in_width), 0.78 + 0.22 * np.cos(np.pi * in_length)
    return np.asarray(grey * across * along)


def _fibres(rng: np.random.Generator, size_px: int) -> Float:
    """Fine fuzz of the yarns."""
    fuzz = smoothed(rng.standard_normal((size_px, size_px), dtype=np.float32), 0.7 * size_px / 128)
    return np.asarray(fuzz * (0.022 / fuzz.std()))
