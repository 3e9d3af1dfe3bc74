"""All that is done to an image before it is mapped: working scale, light, its place; the same on every path."""

from __future__ import annotations

from dataclasses import replace

from anomaly_ae.alignment import Aligner
from anomaly_ae.config import Config
from anomaly_ae.errors import IncompatibleImageError
from anomaly_ae.illumination import divide_out, exposure_gain, image_gain, light_profile, stretched_gain
from anomaly_ae.prepare import Geometry, Prepared, prepare, working_shape
from anomaly_ae.records import FloatArray, Image

LEARNED = ("flat_field", "exposure", "reference")
"""What a model may hold for its `Preparation`, by the names of the buffers."""


class Preparation:
    """Prepares the images of one model; without options it is `prepare`.

    Light comes before place: it belongs to the camera, and not to what is turned and shifted before it. Both come
    before windows are cut, so that a window sees what it would see in the whole image.

    Parameters
    ----------
    flat_field : float32 array, (C, *cells), or None
        The learned gain, see `illumination`.
    exposure : float64 array, (3,), or None
        Lowest, usual and highest exposure, see `illumination.learned_exposure`.
    reference : float32 array or None
        See `alignment`.
    """

    def __init__(
        self,
        config: Config,
        geometry: Geometry,
        flat_field: FloatArray | None = None,
        exposure: FloatArray | None = None,
        reference: FloatArray | None = None,
    ) -> None:
        self.config, self.geometry = config, geometry
        self._flat_field, self._exposure = flat_field, exposure
        self._aligner = None if reference is None else _aligner(config, geometry, reference)

    def __call__(self, image: Image) -> Prepared:
        """Prepare one image; what went wrong without being an error is in ``Prepared.warning``."""
        if self.config.intensity.policy == "file_window" and image.window is None:
            raise IncompatibleImageError(
                f"{image.source} says no window",
                "intensity.policy = file_window takes from every file between which values it is to be shown",
                "leave it out, or fit with another policy",
            )
        prepared = prepare(image, self.geometry, self.config.model.n_channels)
        prepared = self._usually_exposed(self._evenly_lit(prepared))
        return prepared if self._aligner is None else self._aligner.align(prepared, image.source)

    def _evenly_lit(self, prepared: Prepared) -> Prepared:
        intensity, pixels, valid = self.config.intensity, prepared.pixels, prepared.valid
        if self._flat_field is not None:
            gain = stretched_gain(self._flat_field, valid)
        elif intensity.flat_field == "image":
            gain = image_gain(pixels, valid, intensity.black_level, intensity.flat_field_sd_px)
        else:
            return prepared
        return replace(prepared, pixels=divide_out(pixels, gain, intensity.black_level))

    def _usually_exposed(self, prepared: Prepared) -> Prepared:
        if self._exposure is None:
            return prepared
        pixels, black = prepared.pixels, self.config.intensity.black_level
        gain = exposure_gain(light_profile(pixels, prepared.valid, black), self._exposure)
        return replace(prepared, pixels=divide_out(pixels, gain, black), exposure=gain)

    def as_exposed(self, scaled: FloatArray, prepared: Prepared, limits: FloatArray) -> FloatArray:
        """Bring the exposure of an image back into a picture of it: (C, *working), 0 and 1 at ``limits`` (C, 2)."""
        if prepared.exposure == 1:  # nothing was divided out: not even by rounding is it another picture
            return scaled
        low, high = limits.astype(scaled.dtype).T.reshape(2, -1, *[1] * (scaled.ndim - 1))
        black = (self.config.intensity.black_level - low) / (high - low)
        shown: FloatArray = black + (scaled - black) * prepared.exposure
        return shown


def _aligner(config: Config, geometry: Geometry, reference: FloatArray) -> Aligner:
    height, width = working_shape(geometry.largest_px, geometry.factor)
    return Aligner(config.geometry.align, reference, (height, width), config.geometry.align_reach, geometry.multiple)
