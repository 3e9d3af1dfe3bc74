"""Where an image lies on the canvas that all aligned images share: there, and back for what was found."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from anomaly_ae.records import BoolArray, FloatArray, PixelArray

TINY_WEIGHT = 1e-4
"""A pixel of which less than this share is valid is not valid."""


@dataclass(frozen=True, slots=True)
class Placement:
    """A turn and a shift between an image and the canvas, both at working scale.

    The place ``c`` on the canvas shows the place ``R (c - centre of the canvas) + centre of the image + shift_px`` of
    the image, with R a rotation by ``degrees`` from the rows towards the columns.

    Attributes
    ----------
    image_shape, canvas_shape : tuple of int
        Spatial shapes (rows, columns).
    shift_px : tuple of float
        Rows and columns; without a turn it is done in whole pixels, so that no pixel changes its value.
    degrees : float
    """

    image_shape: tuple[int, int]
    canvas_shape: tuple[int, int]
    shift_px: tuple[float, float] = (0.0, 0.0)
    degrees: float = 0.0

    @property
    def fits(self) -> bool:
        """Whether the whole image lies on the canvas: nothing of it would go uninspected."""
        last = np.array(self.image_shape) - 1
        corners = [self._on_canvas(np.array(corner) * last) for corner in product((0, 1), repeat=2)]
        return all(bool((c >= 0).all() and (c <= np.array(self.canvas_shape) - 1).all()) for c in corners)

    def move(self, pixels: PixelArray, valid: BoolArray) -> tuple[PixelArray, BoolArray]:
        """Put ``(C, *image)`` and its mask on the canvas; what lies outside of the image is 0 and not valid."""
        if not self.degrees:
            return self._shifted(pixels), self._shifted(valid[np.newaxis])[0]
        matrix, offset = self._rotation, self._image_origin
        weight = _sampled(valid, matrix, offset, self.canvas_shape)
        summed = [_sampled(np.where(valid, p, 0), matrix, offset, self.canvas_shape) for p in pixels]
        # Any share counts: so every valid pixel of the image has a valid one beside it on the canvas, and a way back.
        return np.stack(summed) / np.maximum(weight, TINY_WEIGHT), weight > TINY_WEIGHT

    def back(self, values: FloatArray, valid: BoolArray) -> FloatArray:
        """Bring ``(C, *canvas)`` back to the image's working grid, from valid pixels of the canvas alone."""
        if not self.degrees:
            return values[:, *self._cut]
        matrix = self._rotation.T
        offset = -matrix @ self._image_origin
        weight = _sampled(valid, matrix, offset, self.image_shape)
        summed = [_sampled(np.where(valid, v, 0), matrix, offset, self.image_shape) for v in values]
        return np.stack(summed) / np.maximum(weight, TINY_WEIGHT)

    @property
    def _rotation(self) -> FloatArray:
        cosine, sine = np.cos(np.radians(self.degrees)), np.sin(np.radians(self.degrees))
        return np.array([[cosine, -sine], [sine, cosine]])

    @property
    def _image_origin(self) -> FloatArray:
        """The place of the image that lies at (0, 0) of the canvas."""
        origin: FloatArray = _centre(self.image_shape) + self.shift_px - self._rotation @ _centre(self.canvas_shape)
        return origin

    @property
    def _cut(self) -> tuple[slice, ...]:
        """The rectangle of the canvas on which an image lies that is only shifted."""
        margins = (np.array(self.canvas_shape) - self.image_shape) // 2
        starts = [round(margin - shift) for margin, shift in zip(margins, self.shift_px, strict=True)]
        return tuple(slice(start, start + side) for start, side in zip(starts, self.image_shape, strict=True))

    def _shifted(self, pixels: PixelArray) -> PixelArray:
        canvas = np.zeros((len(pixels), *self.canvas_shape), pixels.dtype)
        canvas[:, *self._cut] = pixels
        return canvas

    def _on_canvas(self, place: FloatArray) -> FloatArray:
        return np.asarray(self._rotation.T @ (place - self._image_origin))


def _centre(shape: tuple[int, ...]) -> FloatArray:
    return (np.array(shape) - 1) / 2


def _sampled(values: PixelArray, matrix: FloatArray, offset: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    """Return ``values`` at the places ``matrix o + offset``, linear between pixels and 0 outside: float32 (*shape)."""
    from scipy.ndimage import affine_transform

    source = np.asarray(values, np.float32)
    moved: FloatArray = affine_transform(source, matrix, offset, shape, order=1, mode="grid-constant", cval=0)
    return moved
