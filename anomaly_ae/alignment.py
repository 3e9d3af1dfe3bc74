"""Registration: every image is put where the same thing lies in a reference image.

The correlation of the overlap is computed for all shifts at once (Padfield, IEEE TIP 21 (2012)), so masks and borders
are no structure, and brightness and contrast as a whole do not matter. A small rotation is found by trying.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from anomaly_ae.errors import IncompatibleImageError
from anomaly_ae.placement import Placement
from anomaly_ae.prepare import Prepared, resample, working_shape
from anomaly_ae.records import FloatArray
from anomaly_ae.words import times

SIDE_PX = 256
"""Longer side at which images are compared; the reference is kept so large."""

COARSE_SIDE_PX = 64
"""Longer side at which rotations are first tried."""

MIN_CORRELATION = 0.5
"""Below this an image does not show what the reference shows, and its place would be a guess."""

MAX_DEGREES = 10
COARSE_DEGREES, FINE_DEGREES = 1.0, 0.25

Grey = tuple[FloatArray, FloatArray]
"""Pixels (h, w) with 0 where there are none, and how much of each is valid (h, w)."""


@dataclass(frozen=True, slots=True)
class Match:
    """How well an image fits the reference, and where: see `Placement`, in pixels of the compared images."""

    correlation: float
    shift_px: tuple[float, float]
    degrees: float = 0.0


@dataclass(frozen=True, eq=False)
class Aligner:
    """Puts images of one size on one canvas.

    Attributes
    ----------
    kind : str
        "shift" or "rigid".
    reference : float32 array, (2, SIDE_PX, SIDE_PX)
        See `reference_from`.
    image_shape : tuple of int
        Spatial shape of every image at working scale.
    reach : float
        Width of the canvas around the image, as a share of its longer side: nothing is moved further.
    multiple : int
        Sides of the canvas are padded to a multiple of this.
    """

    kind: str
    reference: FloatArray
    image_shape: tuple[int, int]
    reach: float
    multiple: int

    def align(self, prepared: Prepared, name: str) -> Prepared:
        """Put an image on the canvas; one that does not match the reference is put in the middle, with a warning.

        Raises
        ------
        IncompatibleImageError
            The image has another size than the reference.
        """
        if prepared.inner_shape != self.image_shape:
            raise IncompatibleImageError(
                f"{name} has another size than the images that the model was trained on",
                f"aligned images share one canvas: {self._sizes(prepared.inner_shape)} at working scale",
                "score images of the same size, or fit with geometry.align=off",
            )
        middle = Placement(self.image_shape, self._canvas_shape)
        match = self.match(comparable(prepared))
        found = self._at_working_scale(match)
        if match.correlation >= MIN_CORRELATION and found.fits:
            return self._placed(prepared, found)
        why = f"its correlation with the reference is {match.correlation:.2f}, at least {MIN_CORRELATION} is needed"
        if match.correlation >= MIN_CORRELATION:
            why = f"it would have to be moved further than geometry.align_reach = {self.reach:g} allows"
        return replace(self._placed(prepared, middle), warning=f"{name} is not aligned: {why}")

    def match(self, image: Grey) -> Match:
        """Return the best shift, or rotation and shift, of an image shrunk as the reference."""
        if self.kind == "shift":
            return best_shift(image, self._fine, self.reach)
        factor = min(1.0, COARSE_SIDE_PX / max(self._fine[0].shape))
        coarse_image, coarse_reference = (
            _resized(grey, working_shape(self._fine[0].shape, factor)) for grey in (image, self._fine)
        )
        tried = np.arange(-MAX_DEGREES, MAX_DEGREES + COARSE_DEGREES, COARSE_DEGREES)
        about = _best_turn(coarse_image, coarse_reference, self.reach, tried).degrees
        near = about + np.arange(-COARSE_DEGREES, COARSE_DEGREES + FINE_DEGREES, FINE_DEGREES)
        return _best_turn(image, self._fine, self.reach, near)

    def _at_working_scale(self, match: Match) -> Placement:
        scale = max(self.image_shape) / max(self._fine[0].shape)
        turned_px = math.sin(math.radians(abs(match.degrees))) * max(self.image_shape) / 2
        degrees = match.degrees if turned_px >= 0.5 else 0.0  # for less, interpolation would only blur
        shift = (match.shift_px[0] * scale, match.shift_px[1] * scale)
        return Placement(self.image_shape, self._canvas_shape, shift, degrees)

    def _placed(self, prepared: Prepared, placement: Placement) -> Prepared:
        inner = tuple(slice(0, side) for side in prepared.inner_shape)
        pixels, valid = placement.move(prepared.pixels[:, *inner], prepared.valid[inner])
        padding = [(0, -side % self.multiple) for side in self._canvas_shape]
        return replace(
            prepared,
            pixels=np.pad(pixels, [(0, 0), *padding]),
            valid=np.pad(valid, padding),
            inner_shape=self._canvas_shape,
            placement=placement,
        )

    @property
    def _canvas_shape(self) -> tuple[int, int]:
        margin = math.ceil(self.reach * max(self.image_shape))
        return (self.image_shape[0] + 2 * margin, self.image_shape[1] + 2 * margin)

    @cached_property
    def _fine(self) -> Grey:
        """The reference without the rest of the square that it is kept in."""
        height, width = compared_shape(self.image_shape)
        grey, weight = self.reference[:, :height, :width]
        return grey, weight

    def _sizes(self, shape: Sequence[int]) -> str:
        here, there = (times(s) for s in (shape, self.image_shape))
        return f"this one is {here} px, that one {there} px"


def compared_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the spatial shape at which images of this working shape are compared."""
    return working_shape(shape, min(1.0, SIDE_PX / max(shape)))


def comparable(prepared: Prepared) -> Grey:
    """Return the mean of the channels as it is compared with the reference."""
    inner = tuple(slice(0, side) for side in prepared.inner_shape)
    valid = prepared.valid[inner]
    grey = np.where(valid, prepared.pixels[:, *inner].mean(axis=0, dtype=np.float64), 0)
    grey = np.where(valid, grey - grey[valid].mean(), 0)  # far from zero, float32 would lose the contrast
    shape = compared_shape(prepared.inner_shape)
    return _resized((grey, valid.astype(np.float32)), shape)


def reference_from(prepared: Prepared) -> FloatArray:
    """Return what is kept of the reference: pixels, and how much of each is valid: float32 (2, SIDE_PX, SIDE_PX)."""
    kept = np.stack(comparable(prepared))
    missing = [(0, 0), *((0, SIDE_PX - side) for side in kept.shape[1:])]
    return np.pad(kept, missing).astype(np.float32)


def best_shift(image: Grey, reference: Grey, reach: float) -> Match:
    """Return the shift at which the overlap of both correlates best, to a fraction of a pixel."""
    shape = reference[0].shape
    n_px = math.ceil(reach * max(shape))
    table = _correlation_table(image, reference, n_px)  # (2 n + 1, 2 n + 1), no shift in the middle
    row, column = (int(i) for i in np.unravel_index(table.argmax(), table.shape))
    shift = (row - n_px + _vertex(table[:, column], row), column - n_px + _vertex(table[row], column))
    return Match(float(table[row, column]), shift)


def _best_turn(image: Grey, reference: Grey, reach: float, degrees: FloatArray) -> Match:
    """Return the best match over rotations, and between them by a parabola."""
    matches = [_turned_match(image, reference, reach, float(angle)) for angle in degrees]
    values = np.array([match.correlation for match in matches])
    best = int(values.argmax())
    between = _vertex(values, best) * float(degrees[1] - degrees[0])
    return _turned_match(image, reference, reach, float(degrees[best]) + between)


def _turned_match(image: Grey, reference: Grey, reach: float, degrees: float) -> Match:
    """Turn the image about its centre as `Placement` does, and match what comes of it."""
    height, width = image[0].shape
    turn = Placement((height, width), (height, width), degrees=degrees)
    pixels, _ = turn.move(image[0][np.newaxis], image[1] > 0.5)
    weight, _ = turn.move(image[1][np.newaxis], np.ones(image[1].shape, bool))
    inside = weight[0] > 0.5
    match = best_shift((np.where(inside, pixels[0], 0), inside.astype(np.float32)), reference, reach)
    turned = np.array([[math.cos(a := math.radians(degrees)), -math.sin(a)], [math.sin(a), math.cos(a)]])
    row, column = (float(v) for v in turned @ match.shift_px)  # the shift was found after the turn
    return Match(match.correlation, (row, column), degrees)


def _correlation_table(image: Grey, reference: Grey, n_px: int) -> FloatArray:
    """Return the correlation over the overlap for all shifts of up to ``n_px`` along both axes.

    ``table[n_px + dy, n_px + dx]`` compares ``image[y + dy, x + dx]`` with ``reference[y, x]``.
    """
    from scipy.fft import irfft2, next_fast_len, rfft2

    shape = [next_fast_len(side + n_px, real=True) for side in reference[0].shape]
    (f, f_in), (g, g_in) = ((np.asarray(p, np.float64), (w > 0.5).astype(np.float64)) for p, w in (image, reference))
    f, g = f * f_in, g * g_in
    here = [rfft2(a, shape) for a in (f_in, f, f * f)]
    there = [np.conj(rfft2(a, shape)) for a in (g_in, g, g * g)]
    wrapped = np.arange(-n_px, n_px + 1)

    def over(a: int, b: int) -> FloatArray:
        table: FloatArray = irfft2(here[a] * there[b], shape)[np.ix_(wrapped, wrapped)]
        return table

    n = np.maximum(over(0, 0), 1.0)
    f_sum, g_sum = over(1, 0), over(0, 1)
    f_var = np.maximum(over(2, 0) - f_sum**2 / n, 0)
    g_var = np.maximum(over(0, 2) - g_sum**2 / n, 0)
    norm = np.sqrt(f_var * g_var)
    return np.where(norm > 1e-9 * norm.max(), (over(1, 1) - f_sum * g_sum / n) / np.maximum(norm, 1e-30), 0)


def _resized(grey: Grey, shape: tuple[int, ...]) -> Grey:
    """Return the mean of the valid pixels around each of fewer pixels, and how much of it is valid."""
    pixels, weight = resample(np.stack([grey[0] * grey[1], grey[1]]), shape)
    return pixels / np.maximum(weight, 1e-6), weight


def _vertex(values: FloatArray, best: int) -> float:
    """Return where a parabola through the best value and both neighbours has its vertex: -0.5 to 0.5."""
    if not 0 < best < len(values) - 1:
        return 0.0
    before, here, after = (float(v) for v in values[best - 1 : best + 2])
    bend = before - 2 * here + after
    return 0.5 * (before - after) / bend if bend < 0 else 0.0
