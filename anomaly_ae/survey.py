"""One look at the training images before anything is learned: sizes, intensities, alignment, and the preset that fits.

Of an image of the calibration part, all that is found out here is whether it can be read, its form and its hash.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from anomaly_ae.alignment import reference_from
from anomaly_ae.baselines import shrunk
from anomaly_ae.config import Config, IntensityConfig, of_channels, with_values
from anomaly_ae.errors import AnomalyAEError, ConfigError, DataError
from anomaly_ae.illumination import (
    COMMON_SHARE,
    MIN_EXPOSURE_SPREAD,
    cell_sums,
    common_exposure,
    learned_exposure,
    learned_gain,
    light_profile,
)
from anomaly_ae.listener import Listener
from anomaly_ae.loading import ahead, in_order, read_sample, torch_pixels
from anomaly_ae.manifest import MIN_NORMALS
from anomaly_ae.preparation import Preparation
from anomaly_ae.prepare import Geometry
from anomaly_ae.readers import pixel_sha256
from anomaly_ae.records import FloatArray, Image, PixelArray, Sample
from anomaly_ae.scoring import AnomalyMapper, spread_limits

ALIGNED_CORRELATION = 0.8
"""Images share one grid when each correlates at least so with the mean of the others (median, 64 px thumbnails)."""

TEXTURE_CORRELATION = 0.3
"""Below this correlation nothing is in the same place in every image: a texture."""

N_PIXELS_PER_IMAGE = 20_000
N_PIXELS = 20_000_000
"""Of all images together. Percentiles of so many are as good as exact, and as float64 they take 160 MB per channel; up
to 1,000 images nothing is cut, and of 10,000 each still gives 2,000 for the quantiles of its light."""


@dataclass(frozen=True, slots=True)
class Form:
    """What one reading tells of an image before a model looks at it.

    Attributes
    ----------
    n_channels, was_grey_rgb : int, bool
        What decides whether a model can take it, see `Image`.
    spatial_shape, spacing_mm : tuple
        Likewise; the spacing may be None.
    pixel_hash : str
        Its identity, see `pixel_hash`.
    """

    n_channels: int
    was_grey_rgb: bool
    spatial_shape: tuple[int, ...]
    spacing_mm: tuple[float, ...] | None
    pixel_hash: str


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """What the training images are like, from one look at each.

    Attributes
    ----------
    samples : tuple of Sample
        The readable ones.
    shapes, spacings_mm : tuple
        Spatial shape of each, and its spacing along each axis or None.
    extremes : float64 array, (n, C, 2)
        Smallest and largest valid value of each.
    pixels : tuple of array, (C, k)
        A random sample of the valid pixels of each, to pool percentiles from; in the type of the file, because float64
        takes up to eight times the memory.
    thumbnails : tuple of float32 array, (C, 64, 64), of volumes (C, 16, 16, 16)
        For alignment and baseline, in the file's numbers.
    n_channels : int
    bits_stored : int or None
        The most of any image; None as soon as one has floating-point pixels.
    cells : float64 array, (C, 2, *cells)
        Sums of `illumination.cell_sums` over the images.
    """

    samples: tuple[Sample, ...]
    shapes: tuple[tuple[int, ...], ...]
    spacings_mm: tuple[tuple[float, ...] | None, ...]
    extremes: FloatArray
    pixels: tuple[PixelArray, ...]
    thumbnails: tuple[FloatArray, ...]
    n_channels: int
    bits_stored: int | None
    cells: FloatArray

    @property
    def has_spacing(self) -> bool:
        """Whether every image states its pixel spacing in mm, as medical images do."""
        return None not in self.spacings_mm

    @property
    def has_one_size(self) -> bool:
        """Whether all images have the same size: one camera, one field of view."""
        return len(set(self.shapes)) == 1

    @property
    def is_aligned(self) -> bool:
        """Whether the images share one grid: equal sizes, and the same thing in the same place."""
        return self.has_one_size and alignment(self.thumbnails) >= ALIGNED_CORRELATION


def readable_parts(
    parts: dict[str, tuple[Sample, ...]], listener: Listener
) -> tuple[dict[str, tuple[Sample, ...]], dict[str, Form]]:
    """Decode every image once before hours are spent on it; leave out, and name, what cannot be read.

    Returns
    -------
    parts : dict
        The readable ones.
    forms : dict
        The form of each, by its id.
    """
    samples = [sample for part in parts.values() for sample in part]
    forms = readable_forms(samples, listener)
    kept = {name: tuple(s for s in part if s.id in forms) for name, part in parts.items()}
    n_kept = sum(len(part) for part in kept.values())
    if n_kept < MIN_NORMALS or not all(kept.values()):
        raise DataError(
            f"only {n_kept} of {len(samples)} normal images can be used",
            f"at least {MIN_NORMALS} are needed, some in each of train, validation and calibration",
            "mend or replace the files named above",
        )
    return kept, forms


def readable_forms(samples: Sequence[Sample], listener: Listener, left_out_of: str = "") -> dict[str, Form]:
    """Decode every image once; name what cannot be read, and return the form of the others by their id."""
    forms: dict[str, Form] = {}
    for done, (sample, form) in enumerate(in_order(samples, _form, ahead(samples)), start=1):
        listener.progress("reading", done, len(samples), "")
        if isinstance(form, AnomalyAEError):
            listener.say(f"left out{left_out_of}: {form}")
        else:
            forms[sample.id] = form
    return forms


def pixel_hash(image: Image) -> str:
    """Return what tells images apart: the start of the hash of the pixels, the same in every dtype and file format."""
    return pixel_sha256(image)[:16]


def _form(sample: Sample) -> Form:
    image = read_sample(sample)
    return Form(image.n_channels, image.was_grey_rgb, image.spatial_shape, image.spacing_mm, pixel_hash(image))


def survey_images(samples: Sequence[Sample], seed: int, listener: Listener) -> Survey:
    """Look once at every training image.

    Raises
    ------
    DataError
        Channel counts differ, or all images are identical.
    """
    generator, n_pixels = np.random.default_rng(seed), _n_pixels_each(len(samples))
    shapes, spacings, extremes, pixels, thumbnails, cells, infos = [], [], [], [], [], [], []
    for done, (_, image) in enumerate(in_order(samples, read_sample, ahead(samples)), start=1):
        listener.progress("looking at the training images", done, len(samples), "")
        if isinstance(image, AnomalyAEError):
            raise image  # it was readable a moment ago
        shapes.append(image.spatial_shape)
        spacings.append(image.spacing_mm)
        extremes.append(_extremes(image))
        pixels.append(_some_pixels(image, n_pixels, generator))
        thumbnails.append(shrunk(image.pixels))
        cells.append(cell_sums(image.pixels, image.valid))
        infos.append((image.n_channels, image.bits_stored, image.was_grey_rgb))
    bits = [info[1] for info in infos if info[1] is not None]
    channels = sorted({info[0] for info in infos})
    greys = {i for i, info in enumerate(infos) if info[2]}
    if channels == [1, 3] and len(greys) == sum(info[0] == 1 for info in infos):  # colourless pictures in a colour set
        for values in (extremes, pixels, thumbnails, cells):
            values[:] = [np.repeat(v, 3, axis=0) if i in greys else v for i, v in enumerate(values)]
        channels, greys = [3], set()
    _refuse_mixed_axes(shapes)
    if len(channels) > 1:
        raise DataError(
            f"training images have {' and '.join(map(str, channels))} channels",
            "one model sees one kind of image",
            "convert them, or make one manifest per kind",
        )
    if all(np.array_equal(thumbnails[0], other) for other in thumbnails):
        raise DataError("all training images are identical", "nothing can be learned from copies", "add other images")
    if greys:
        listener.say("colour files with three equal channels are treated as grey")
    return Survey(
        samples=tuple(samples),
        shapes=tuple(shapes),
        spacings_mm=tuple(spacings),
        extremes=np.stack(extremes),
        pixels=tuple(pixels),
        thumbnails=tuple(thumbnails),
        n_channels=channels[0],
        bits_stored=max(bits) if len(bits) == len(infos) else None,
        cells=np.sum(cells, axis=0),
    )


def alignment(thumbnails: Sequence[FloatArray]) -> float:
    """Return the median correlation of each thumbnail with the mean of the others."""
    return float(np.median(_correlations(thumbnails)))


def _correlations(thumbnails: Sequence[FloatArray]) -> FloatArray:
    """Return the correlation of each thumbnail with the mean of the others: (n,)."""
    flat = np.stack([t.ravel() for t in thumbnails]).astype(np.float64)
    flat -= flat.mean(axis=1, keepdims=True)
    others = (flat.sum(axis=0) - flat) / max(1, len(flat) - 1)
    norms = np.linalg.norm(flat, axis=1) * np.linalg.norm(others, axis=1)
    correlations: FloatArray = (flat * others).sum(axis=1) / np.maximum(norms, 1e-12)
    return correlations


def choose_preset(survey: Survey) -> tuple[str, str]:
    """Pick a preset from what the images are like, and say why."""
    if len(survey.shapes[0]) == 3:
        return "volume", "volumes that are looked at as a whole"
    correlation = alignment(survey.thumbnails)
    if survey.is_aligned:
        return "object", f"the images share one grid (correlation with their mean {correlation:.2f})"
    if survey.has_spacing and survey.n_channels == 1:
        return "radiograph", "grey images that state their pixel spacing"
    if correlation < TEXTURE_CORRELATION:
        return "texture", f"nothing is in the same place in every image (correlation with their mean {correlation:.2f})"
    return "default", f"objects that are not on one grid (correlation with their mean {correlation:.2f})"


def _refuse_mixed_axes(shapes: Sequence[tuple[int, ...]]) -> None:
    if len({len(shape) for shape in shapes}) > 1:
        raise DataError(
            f"{sum(len(shape) == 2 for shape in shapes)} of {len(shapes)} training images are flat, the others volumes",
            "one model sees one kind of image",
            "leave the flat ones out, or set model.spatial_dims=2",
        )


def check_axes(survey: Survey, config: Config) -> None:
    """Refuse a network for volumes on flat images, and the other way round."""
    n_axes, asked = len(survey.shapes[0]), config.model.spatial_dims
    if n_axes != asked:
        raise ConfigError(
            f"model.spatial_dims = {asked}",
            f"the training images have {n_axes} axes",
            f"set model.spatial_dims={n_axes}",
        )


def dataset_limits(survey: Survey, config: Config) -> FloatArray:
    """Return the file values that become 0 and 1 in every image: float64 (C, 2).

    Raises
    ------
    ConfigError
        Policy "dtype" for floating-point pixels.
    """
    intensity, n_channels = config.intensity, survey.n_channels
    match intensity.policy:
        case "window":
            limits = np.tile(np.array([intensity.low, intensity.high], np.float64), (n_channels, 1))
        case "dtype":
            if survey.bits_stored is None:
                raise ConfigError(
                    "intensity.policy = dtype",
                    "training images have floating-point pixels, whose type does not say what black and white are",
                    "set intensity.policy=percentile or range, or window with intensity.low and intensity.high",
                )
            limits = np.tile([0.0, 2.0**survey.bits_stored - 1], (n_channels, 1))
        case "range":
            limits = np.stack([survey.extremes[:, :, 0].min(axis=0), survey.extremes[:, :, 1].max(axis=0)], axis=1)
        case _:
            shares = (intensity.low_percentile, intensity.high_percentile)
            limits = np.stack([np.percentile(_pooled(survey, c), shares) for c in range(n_channels)])
    return spread_limits(limits)


def learn_preparation(mapper: AnomalyMapper, config: Config, geometry: Geometry, survey: Survey) -> Survey:
    """Set flat field, exposure and reference in ``mapper``; return what the survey would have seen of the images then.

    Raises
    ------
    DataError
        Images of several sizes, which share no canvas; or no light above the black level.
    """
    learned: dict[str, FloatArray] = {}
    if config.intensity.flat_field == "learned":
        learned["flat_field"] = learned_gain(survey.cells, config.intensity.black_level)
    if config.intensity.flat_field != "off":
        survey = _seen_again(survey, Preparation(config, geometry, **learned), config.seed)
    if config.intensity.exposure == "image":
        learned["exposure"] = learned_exposure(_light_profiles(survey, config.intensity))
        survey = _seen_again(survey, Preparation(config, geometry, **learned), config.seed)
    if config.geometry.align != "off":
        _refuse_sizes(survey)
        typical = int(np.nan_to_num(_correlations(survey.thumbnails), nan=-1).argmax())
        in_usual_light = Preparation(config, geometry, **learned)
        learned["reference"] = reference_from(in_usual_light(read_sample(survey.samples[typical])))
    for name, values in learned.items():
        mapper.get_buffer(name).copy_(torch_pixels(values))
    return survey


def settled(config: Config, survey: Survey) -> tuple[Config, str]:
    """Return the configuration with what only the images tell: their channels, and what ``exposure = auto`` means.

    Numbers with a meaning of their own are left as they are: all but the policies of percentiles and ranges, and where
    there are any below the black level (Hounsfield units).

    Returns
    -------
    Config
    str
        Why the exposure is divided out; "" where it is not, or where that was asked for.
    """
    config = of_channels(config, survey.n_channels)
    intensity = config.intensity
    if intensity.exposure != "auto":
        return config, ""
    left = with_values(config, intensity={"exposure": "off"})
    profiles = _light_profiles(survey, intensity)
    is_light = survey.extremes.min() >= intensity.black_level and profiles.mean(axis=1).min() > 0
    if intensity.policy not in ("percentile", "range") or not is_light:
        return left, ""
    share, spread = common_exposure(profiles)
    if share < COMMON_SHARE or spread < MIN_EXPOSURE_SPREAD:
        return left, ""
    return with_values(config, intensity={"exposure": "image"}), (
        f"exposure differs by {100 * spread:.0f} % from image to image and explains {100 * share:.0f} % of how they "
        "differ in brightness: it is divided out (intensity.exposure=off leaves it)"
    )


def _light_profiles(survey: Survey, config: IntensityConfig) -> FloatArray:
    return np.stack([light_profile(pixels, None, config.black_level) for pixels in survey.pixels])


def _seen_again(survey: Survey, preparation: Preparation, seed: int) -> Survey:
    """Return the survey with the numbers that images have after their preparation: the limits are set on these."""
    generator, n_pixels = np.random.default_rng(seed), _n_pixels_each(len(survey.samples))
    extremes, pixels = [], []
    for _, prepared in in_order(survey.samples, lambda sample: preparation(read_sample(sample)), ahead(survey.samples)):
        if isinstance(prepared, AnomalyAEError):
            raise prepared
        image = Image(prepared.pixels, prepared.valid)
        extremes.append(_extremes(image))
        pixels.append(_some_pixels(image, n_pixels, generator))
    return replace(survey, extremes=np.stack(extremes), pixels=tuple(pixels))


def _refuse_sizes(survey: Survey) -> None:
    if not survey.has_one_size:
        raise DataError(
            f"geometry.align on images of {len(set(survey.shapes))} sizes",
            "aligned images share one canvas",
            "give images of one size, or set geometry.align=off",
        )


def _extremes(image: Image) -> FloatArray:
    inside = image.pixels.reshape(image.n_channels, -1) if image.valid is None else image.pixels[:, image.valid]
    return np.stack([inside.min(axis=1), inside.max(axis=1)], axis=1).astype(np.float64)


def _n_pixels_each(n_images: int) -> int:
    """Return how many pixels are drawn of every image."""
    return max(1, min(N_PIXELS_PER_IMAGE, N_PIXELS // n_images))


def _some_pixels(image: Image, n_pixels: int, generator: np.random.Generator) -> PixelArray:
    """Return at most so many random valid pixels: (C, k), in the type of the image."""
    inside = image.pixels.reshape(image.n_channels, -1) if image.valid is None else image.pixels[:, image.valid]
    chosen = generator.integers(0, inside.shape[1], min(n_pixels, inside.shape[1]))
    return inside[:, chosen]


def _pooled(survey: Survey, channel: int) -> FloatArray:
    """Return the drawn pixels of one channel of all images: float64 (n,)."""
    return np.concatenate([pixels[channel].astype(np.float64) for pixels in survey.pixels])
