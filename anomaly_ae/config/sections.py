"""The sections of a configuration: small and frozen, each used by one module, with validated ranges."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MAX_MEMBERS = 16
MAX_SCALES = 4
MEASURES = ("l1", "l2", "ssim", "gms", "chroma", "head")
"""Of errors: the weights of the loss (`TrainingConfig` has the first three) and of the map have these names."""

OWN_LIMITS = ("volume_percentile", "file_window")
"""Intensity policies under which every image, or every volume, has limits of its own."""

PICKED_PRESETS = ("default", "texture", "object", "radiograph")
"""What `fit` chooses from for flat images; the others have to be asked for, "volume" by ``model.spatial_dims=3``."""

PRESETS = (*PICKED_PRESETS, "volume", "fast", "thorough", "smoke")


def _number(default: float, low: float, high: float, text: str, **marks: Any) -> Any:
    return field(default=default, metadata={"range": (low, high), "help": text, **marks})


def _choice(default: str, choices: tuple[str, ...], text: str, **marks: Any) -> Any:
    return field(default=default, metadata={"choices": choices, "help": text, **marks})


def _switch(default: bool, text: str, **marks: Any) -> Any:
    return field(default=default, metadata={"help": text, **marks})


@dataclass(frozen=True, slots=True)
class IntensityConfig:
    """How the file's numbers become [0, 1]; used by ``scoring.IntensityScale`` and ``illumination``."""

    policy: str = _choice(
        "percentile",
        ("percentile", "range", "dtype", "volume_percentile", "window", "file_window"),
        "percentile and range: of the training pixels; dtype: all stored bits; volume_percentile: of each "
        "image or volume; window: low and high given here; file_window: what each DICOM file says",
    )
    low_percentile: float = _number(0.1, 0, 49, "percentile that becomes 0")
    high_percentile: float = _number(99.9, 51, 100, "percentile that becomes 1")
    low: float | None = field(default=None, metadata={"help": "value that becomes 0 (policy window)"})
    high: float | None = field(default=None, metadata={"help": "value that becomes 1 (policy window)"})
    headroom: float = _number(1.0, 0, 10, "values are clamped to [-headroom, 1 + headroom]")
    flat_field: str = _choice(
        "off",
        ("off", "learned", "image"),
        "uneven light that is divided out; learned: what the training images have in common; image: what each image "
        "shows by itself",
        before="off",
    )
    flat_field_sd_px: float = _number(
        64.0, 4, 2000, "flat_field image: what is smoother than this is light; at working scale", before=64.0
    )
    exposure: str = _choice(
        "auto",
        ("auto", "off", "image"),
        "image: each image is brought to the usual exposure; auto: fit does so where exposure is what the training "
        "images differ in",
        before="off",
    )
    black_level: float = _number(0.0, -1e6, 1e6, "the file's number for no light (flat_field, exposure)", before=0.0)


@dataclass(frozen=True, slots=True)
class GeometryConfig:
    """Working scale and place; used by ``prepare`` and ``alignment``."""

    max_side_px: int = _number(512, 32, 8192, "longer sides are shrunk to this; smaller images stay as they are")
    min_side_px: int = _number(64, 16, 512, "shorter sides of flat images below this are enlarged to it")
    spacing_mm: float = _number(
        0.0, 0, 1000, "spacing of the pixels that images are resampled to first; 0: each keeps its own", before=0.0
    )
    slice_spacing_mm: float = _number(
        0.0, 0, 1000, "the same between the slices of a volume (spatial_dims = 3); 0: as spacing_mm", before=0.0
    )
    align: str = _choice(
        "off",
        ("off", "shift", "rigid"),
        "put the same thing at the same place in every image; rigid: also turn it by up to 10 degrees",
        before="off",
    )
    align_reach: float = _number(
        0.1, 0.01, 0.5, "how far an image may be moved, as a share of its longer side", before=0.1
    )


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The network; used by ``model.build_autoencoder``."""

    architecture: str = _choice("unet", ("unet", "bottleneck"), "unet repairs; bottleneck is the textbook baseline")
    spatial_dims: int = _number(2, 2, 3, "2 for images, 3 for volumes")
    n_channels: int = _number(1, 1, 64, "channels of the images; set by fit")
    unshuffle: int = _number(4, 1, 4, "side of the pixel blocks that the stem turns into channels")
    width: int = _number(32, 4, 256, "channels of the finest level")
    depth: int = _number(2, 1, 5, "number of times the resolution is halved after the stem")
    n_scales: int = _number(
        3, 1, MAX_SCALES, "resolutions looked at, each half of the one before and with a network of its own", before=1
    )
    latent_channels: int = _number(16, 1, 1024, "latent size per position (bottleneck only)")
    head_width: int = _number(
        0,
        0,
        256,
        "channels of the finest level of a second network, which learns to tell damage from the image and its repair "
        "(DRAEM); 0: none",
        before=0,
    )
    embed: str = field(
        default="", metadata={"help": "file of a frozen ResNet whose features take the place of pixels", "before": ""}
    )


@dataclass(frozen=True, slots=True)
class CorruptionConfig:
    """What is done to normal images in training; used by ``corruption.corrupt``."""

    variety: str = _choice(
        "plain",
        ("plain", "rich"),
        "plain: warped ellipsoids, six fills; rich: boxes, diamonds, scratches, dots, blotches and more fills, too",
    )
    shape_probability: float = _number(0.6, 0, 1, "probability of each of the shapes that an image may receive")
    max_shapes: int = _number(12, 1, 64, "largest number of shapes per image")
    min_size_px: float = _number(1.0, 0.5, 64, "smallest half axis of a shape")
    max_size_share: float = _number(0.35, 0.02, 1, "largest half axis as a share of the image side")
    coarse_noise_probability: float = _number(0.1, 0, 1, "share of images with coarse noise (Kascenas et al., 2022)")
    coarse_noise_sd: float = _number(0.2, 0, 1, "deviation of the coarse noise")
    gaussian_noise_sd: float = _number(0.05, 0, 1, "deviation of the noise that is added on top and kept")


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """The loop; used by ``training``."""

    steps: int = _number(2400, 1, 1_000_000, "optimiser steps of each network: the budget, the same on CPU and GPU")
    finest_steps: int = _number(
        0,
        0,
        10_000_000,
        "of the network at full resolution; 0: as steps, above 320 px in proportion to the area of the images",
        before=0,
    )
    batch_size: int = _number(
        8, 2, 4096, "crops per step; one alone has no spread to be normalised by: where memory is short, lower crop_px"
    )
    crop_px: int = _number(128, 16, 2048, "side of the training crops; smaller images are used whole")
    learning_rate: float = _number(2e-3, 1e-7, 1, "peak of the one-cycle schedule")
    weight_decay: float = _number(1e-4, 0, 1, "of AdamW")
    l1: float = _number(0.0, 0, 100, "weight of the mean absolute error")
    l2: float = _number(10.0, 0, 100, "weight of the mean squared error")
    ssim: float = _number(0.0, 0, 100, "weight of 1 - SSIM")
    damage_weight: float = _number(0.0, 0, 1000, "additional weight of the loss where the input was damaged")
    repair: bool = _switch(True, "corrupt the input and ask for the clean image; false: plain reconstruction")
    flip: bool = _switch(False, "mirrored images are as normal as the originals")
    rotate: bool = _switch(False, "images turned by 90 degrees are as normal as the originals")
    ema_decay: float = _number(0.995, 0, 0.99999, "of the running mean of the weights")
    validate_every: int = _number(200, 1, 100_000, "steps between validations and checkpoints")
    patience: int = _number(6, 1, 1000, "validations without improvement before training stops")
    members: int = _number(1, 1, MAX_MEMBERS, "networks trained one after the other, whose maps are averaged")


@dataclass(frozen=True, slots=True)
class ScoringConfig:
    """From two images to one number; used by ``scoring``."""

    l1: float = _number(0.5, 0, 100, "weight of the absolute error")
    l2: float = _number(0.0, 0, 100, "weight of the squared error")
    ssim: float = _number(0.5, 0, 100, "weight of 1 - SSIM")
    gms: float = _number(0.0, 0, 100, "weight of the multi-scale gradient-magnitude similarity")
    chroma: float = _number(
        1.0,
        0,
        100,
        "weight of what sets the channels of the error apart, a wrong hue; fit sets 0 for one channel",
        before=0.0,
    )
    head: float = _number(0.0, 0, 100, "weight of the probability of damage (model.head_width)", before=0.0)
    background_sd_px: float = _number(
        0.0, 0, 200, "what is smoother than this in the residual counts as lighting; 0 keeps it"
    )
    smooth_sd_px: float = _number(2.0, 0, 50, "Gaussian smoothing of the error map, at working scale")
    error_scale: str = _choice("log", ("linear", "log"), "scale on which errors are standardised", before="linear")
    standardise: str = _choice(
        "position",
        ("position", "column", "context", "global"),
        "whose residuals a pixel is compared with: those at its place, in its column (line-scan cameras), in such "
        "surroundings, or all",
    )
    pooling: str = _choice("max", ("max", "top_share", "quantile"), "how a map becomes one score")
    top_share: float = _number(0.001, 1e-6, 1, "share of the valid pixels that top_share averages")
    quantile: float = _number(0.999, 0.5, 1, "for pooling quantile")
    window_px: int = _number(1024, 128, 8192, "larger images are mapped window by window of this side")
    coarse_weight: float = _number(
        0.5, 0, 10, "weight of each look at a shrunk image; the one at full resolution has 1", before=1.0
    )
    unit_every_mm: float = _number(
        0.0,
        0,
        1000,
        "of the slices of a volume one in so many mm counts for its unit; 0: fit takes the largest distance of slices "
        "in the normal images",
        before=0.0,
    )
    test_time_flips: bool = _switch(False, "the map is the mean over the image and its mirror images", before=False)
    min_area_px: int = _number(0, 0, 10**9, "smaller regions do not count; pixels of the image itself", before=0)
    min_area_mm2: float = _number(0.0, 0, 1e9, "the same in mm² (volumes: mm³); needs a spacing", before=0.0)
    hysteresis_low: float = _number(
        0.0, 0, 1e6, "level of the map out to which a region reaches around its peak; 0: the threshold", before=0.0
    )
    ignore_border_px: int = _number(0, 0, 10**6, "so near to an edge of the image nothing counts", before=0)


@dataclass(frozen=True, slots=True)
class SplitConfig:
    """How the normals are cut by group into train, validation and calibration; used by ``manifest``."""

    validation_share: float = _number(0.1, 0.01, 0.5, "early stop and residual statistics")
    calibration_share: float = _number(0.2, 0.05, 0.8, "thresholds and p-values only")


@dataclass(frozen=True, slots=True)
class Config:
    """All sections, and the one seed."""

    preset: str = "default"
    seed: int = _number(0, 0, 2**31 - 1, "every random draw derives from it")
    intensity: IntensityConfig = field(default_factory=IntensityConfig)
    geometry: GeometryConfig = field(default_factory=GeometryConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    corruption: CorruptionConfig = field(default_factory=CorruptionConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
