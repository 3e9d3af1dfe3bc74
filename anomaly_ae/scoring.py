"""The one path from the file's numbers to the anomaly map, and from the map to the score.

Validation, calibration, scoring, evaluation, reports and exports all call `AnomalyMapper`; there is no second
preprocessing anywhere.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from anomaly_ae.alignment import SIDE_PX
from anomaly_ae.backbone import STRIDE, Backbone
from anomaly_ae.config import Config, IntensityConfig, ModelConfig, ScoringConfig
from anomaly_ae.errors import DataError, UsageError
from anomaly_ae.illumination import N_CELLS
from anomaly_ae.measures import ErrorMeasures, GaussianSmoothing, gradient_magnitude
from anomaly_ae.model import DamageHead, build_autoencoder, context_px, size_multiple
from anomaly_ae.prepare import Prepared, valid_box
from anomaly_ae.readers import volume_percentiles
from anomaly_ae.records import BoolArray, FloatArray, PixelArray
from anomaly_ae.regions import RegionRules, counted_values, surviving_level

N_CONTEXT_BINS = 12
N_POSITIONS = 32
"""Cells along every side of the object in which normal errors are compared: about 8 px each at 256 px."""
N_COLUMNS = 512
"""Cells along the last axis where every column of the image is one of a line-scan camera's pixels."""

FAINT = 0.1
"""Share of the usual error that is as good as none: the logarithm levels off there, or a perfect repair of one pixel
would be as unusual as a lesion."""

MAX_VALUES = 4_000_000
"""Percentiles of a larger volume are those of so many of its voxels."""

MapFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(raw (B, C, *S), valid (B, 1, *S), limits (B, C, 2)) -> anomaly map (B, 1, *S)."""


class AnomalyMapper(nn.Module):
    """From raw pixels to the anomaly map; every step and every learned number of it.

    Parameters
    ----------
    config : Config
        Architecture and scoring.
    backbone : mapping, optional
        Tensors of the trunk that ``model.embed`` names (`backbone.read_backbone`).
    shrink : int
        The network looks at the image shrunk by this: a coarse look sees more of what surrounds a pixel.
    """

    def __init__(self, config: Config, backbone: Mapping[str, Tensor] = {}, shrink: int = 1) -> None:
        super().__init__()
        self.shrink = shrink
        n_dims = config.model.spatial_dims
        self.scale = IntensityScale(config.intensity.headroom)
        self.embed: nn.Identity | Backbone = nn.Identity()
        network = config.model
        if config.model.embed:
            self.embed = Backbone(backbone, config.model.n_channels, config.seed)
            network = replace(config.model, n_channels=self.embed.n_features, unshuffle=1)
        self.autoencoder = build_autoencoder(network)
        self.compare = ErrorMeasures(config.scoring, DamageHead(network) if network.head_width else None)
        self.smooth = GaussianSmoothing(config.scoring.smooth_sd_px)
        self.is_log = config.scoring.error_scale == "log"
        self.standardise = Standardise(config.scoring.standardise, n_dims, config.geometry.align != "off")
        self.register_buffer("limits", torch.zeros(config.model.n_channels, 2, dtype=torch.float64))
        if config.intensity.flat_field == "learned":
            self.register_buffer("flat_field", torch.ones(config.model.n_channels, *[N_CELLS] * n_dims))
        if config.intensity.exposure == "image":
            self.register_buffer("exposure", torch.ones(3, dtype=torch.float64))
        if config.geometry.align != "off":
            self.register_buffer("reference", torch.zeros(2, SIDE_PX, SIDE_PX))
        self.size_multiple = shrink * size_multiple(config.model)
        reach_px = self._error_reach_px(network) + self.smooth.reach_px + (shrink > 1)  # the last: on the way back
        self.margin_px = _round_up(shrink * reach_px, self.size_multiple)
        self.window_px = config.scoring.window_px // self.size_multiple * self.size_multiple

    def forward(self, raw: Tensor, valid: Tensor, limits: Tensor) -> Tensor:
        """Map a batch.

        Parameters
        ----------
        raw : tensor, (B, C, *spatial)
            The file's own numbers at working scale; sides are multiples of ``size_multiple``.
        valid : bool tensor, (B, 1, *spatial)
        limits : float64 tensor, (B, C, 2)
            The values that become 0 and 1.

        Returns
        -------
        tensor, (B, 1, *spatial)
            Smoothed error, or its logarithm, in standard deviations of what normal images show there.
        """
        anomaly_map: Tensor = self.standardise(self.errors(raw, valid, limits), valid)
        return anomaly_map

    def errors(self, raw: Tensor, valid: Tensor, limits: Tensor) -> Tensor:
        """Return all that `standardise` needs, and that depends on nothing far away: ``(B, 1 or 2, *S)``.

        The smoothed error or its logarithm, and where statistics follow the context also the activity of the
        reconstruction.
        """
        z, z_hat, inside = self._repaired(raw, valid, limits)
        errors: Tensor = self.smooth(_on_grid_of(inside, self.compare(z, z_hat, inside)), inside)
        if self.is_log:  # the errors of normal images have long tails; their logarithms are nearly Gaussian
            errors = torch.log1p(errors.clamp_min(0) / (FAINT * self.compare.usual))  # 1 - SSIM may round below 0
        if self.standardise.kind == "context":
            errors = torch.cat([errors, _on_grid_of(inside, self.standardise.local_activity(z_hat))], dim=1)
        return _on_grid_of(valid, errors)

    def measures(self, raw: Tensor, valid: Tensor, limits: Tensor) -> Tensor:
        """Return every error measure in its own unit: (B, n_measures, *S)."""
        z, z_hat, inside = self._repaired(raw, valid, limits)
        errors = torch.cat([self.compare.measure(name, z, z_hat, inside) for name in self.compare.weights], dim=1)
        return _on_grid_of(valid, errors)

    def _repaired(self, raw: Tensor, valid: Tensor, limits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the network sees, what it takes for normal, and what of it is valid."""
        x, inside = self.look(raw, valid, limits)
        z = self.embed(x)
        return z, self.autoencoder(z), inside

    def look(self, raw: Tensor, valid: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the network sees, scaled and shrunk: (B, C, *S / shrink), and what is valid in it."""
        return shrunk(self.scale(raw, valid, limits), valid, self.shrink)

    def reconstruct(self, raw: Tensor, valid: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scaled input and what a normal image would look like, for people to see."""
        if isinstance(self.embed, Backbone):
            why = "this model repairs features, and these have no picture"
            raise UsageError("there is no reconstruction to see", why, "fit without model.embed to see one")
        x, _ = self.look(raw, valid, limits)
        return x, self.autoencoder(self.embed(x))

    def _error_reach_px(self, network: ModelConfig) -> int:
        """Return how far from a pixel the image can change its error, before smoothing (an upper bound)."""
        if isinstance(self.embed, Backbone):  # l1 and l2 look at one cell; the last one is for the way back to pixels
            cells = context_px(network) + self.standardise.reach_px + 1
            return STRIDE * cells + self.embed.context_px
        return context_px(network) + self.compare.reach_px


class IntensityScale(nn.Module):
    """Affine from the file's numbers to [0, 1], clamped only far outside so that "brighter than ever" stays visible."""

    def __init__(self, headroom: float) -> None:
        super().__init__()
        self.headroom = headroom

    def forward(self, raw: Tensor, valid: Tensor, limits: Tensor) -> Tensor:
        """Return float32 ``(B, C, *S)``; pixels outside ``valid`` become 0 whatever they hold."""
        spread = [1] * (raw.ndim - 2)
        low = limits[..., 0].reshape(*limits.shape[:2], *spread)
        span = (limits[..., 1] - limits[..., 0]).reshape(*limits.shape[:2], *spread)
        # Subtract in float64: 16-bit and HU offsets are large against the contrast that matters.
        x = ((raw.to(low.dtype) - low) / span).to(torch.float32)
        x = x.clamp(-self.headroom, 1 + self.headroom)
        return torch.where(valid, x, torch.zeros_like(x))


class Standardise(nn.Module):
    """``(smooth - mean) / sd`` of what normal images show: everywhere, at this place, or in such surroundings.

    A place is relative to the box around the valid pixels, so that images of any size share their statistics; borders,
    where reconstructions are worst, are compared with borders. Surroundings are known by the local activity of the
    *reconstruction* (its smoothed gradient): edges and texture are allowed larger errors than flat areas.

    Images that were aligned share one canvas: there a place is relative to all of it, wherever the image lies.

    In images of a line-scan camera a column is one pixel of the sensor, with its own gain and dust: there the place is
    the column alone (``kind="column"``).
    """

    def __init__(self, kind: str, n_dims: int, on_canvas: bool = False) -> None:
        super().__init__()
        self.kind, self.n_dims, self.on_canvas = kind, n_dims, on_canvas
        self.window = GaussianSmoothing(2.0)
        self.reach_px = self.window.reach_px + 1  # of the local activity: the blur and the gradient
        shapes = {
            "global": (1,),
            "position": (1, 1, *[N_POSITIONS] * n_dims),
            "column": (1, 1, *[1] * (n_dims - 1), N_COLUMNS),
            "context": (N_CONTEXT_BINS,),
        }
        self.register_buffer("mean", torch.zeros(shapes[kind]))
        self.register_buffer("sd", torch.ones(shapes[kind]))
        self.register_buffer("activity", torch.arange(float(N_CONTEXT_BINS)))  # bin centres, increasing

    def forward(self, errors: Tensor, valid: Tensor) -> Tensor:
        """Return the anomaly map ``(B, 1, *S)`` of whole images: ``errors`` as `AnomalyMapper.errors` gives them."""
        mean, sd = self.get_buffer("mean"), self.get_buffer("sd")
        if self.kind in ("position", "column"):
            mean, sd = self._in_place(mean, valid), self._in_place(sd, valid)
        elif self.kind == "context":
            position = self._bin_position(errors[:, 1:])
            mean, sd = _interpolate(mean, position), _interpolate(sd, position)
        return (errors[:, :1] - mean) / sd

    def _in_place(self, cells: Tensor, valid: Tensor) -> Tensor:
        """Stretch statistics (1, 1, *cells) over the box of every image's valid pixels; outside any value will do."""
        mode = "bilinear" if self.n_dims == 2 else "trilinear"
        stretched = cells.mean() * torch.ones(valid.shape, device=cells.device)
        for image, inside in zip(stretched, valid, strict=True):
            box = self.box(inside)
            sides = [part.stop - part.start for part in box]
            image[:, *box] = functional.interpolate(cells, size=sides, mode=mode, align_corners=False)[0]
        return stretched

    def box(self, valid: Tensor) -> tuple[slice, ...]:
        """Return what places are relative to, of one image (1, *S)."""
        return valid_box(np.ones(valid.shape[1:], bool) if self.on_canvas else valid[0].cpu().numpy())

    def local_activity(self, z_hat: Tensor) -> Tensor:
        """Return the smoothed gradient magnitude, mean over channels: ``(B, 1, *S)``."""
        return self.window.blur(gradient_magnitude(z_hat).mean(dim=1, keepdim=True))

    def _bin_position(self, activity: Tensor) -> Tensor:
        """Return fractional bin numbers in [0, n - 1]."""
        centres = self.get_buffer("activity")
        upper = torch.searchsorted(centres, activity.contiguous()).clamp(1, len(centres) - 1)
        low, high = centres[upper - 1], centres[upper]
        return (upper - 1 + ((activity - low) / (high - low)).clamp(0, 1)).to(activity.dtype)


def shrunk(x: Tensor, valid: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Return the mean of the valid pixels of every block of ``factor`` px; it is valid where half of the block is."""
    if factor == 1:
        return x, valid
    pool = functional.avg_pool2d if x.ndim == 4 else functional.avg_pool3d
    share = pool(valid.to(x.dtype), factor)  # (B, 1, *S / factor)
    inside = share >= 0.5
    return torch.where(inside, pool(x * valid, factor) / share.clamp_min(0.5), 0.0), inside


def _on_grid_of(valid: Tensor, values: Tensor) -> Tensor:
    """Bring what was measured on features, or on a shrunk image, to the pixels; else it is there already."""
    if values.shape[2:] == valid.shape[2:]:
        return values
    mode = "bilinear" if valid.ndim == 4 else "trilinear"
    return functional.interpolate(values, size=valid.shape[2:], mode=mode, align_corners=False)


def _interpolate(values: Tensor, position: Tensor) -> Tensor:
    low = position.floor().long().clamp_max(len(values) - 2)
    return torch.lerp(values[low], values[low + 1], position - low)


def intensity_limits(pixels: PixelArray, valid: BoolArray | None, config: IntensityConfig) -> FloatArray:
    """Return per channel the percentiles of one image or volume inside ``valid``: float64 (C, 2).

    Of a large volume every n-th slice is taken, and every n-th voxel of these.
    """
    if pixels.ndim == 4:
        step = math.ceil((pixels[0].size / MAX_VALUES) ** (1 / 3))
        every = (slice(None, None, step),) * 3
        some = pixels[:, *every]
        inside_some = None if valid is None else valid[every]
        if inside_some is None or inside_some.any():
            pixels, valid = some, inside_some
    inside = pixels.reshape(pixels.shape[0], -1) if valid is None else pixels[:, valid]
    if inside.shape[1] == 0:
        raise DataError("an image without a single valid pixel", "its mask is empty", "leave it out")
    percentiles = (config.low_percentile, config.high_percentile)
    return spread_limits(np.percentile(inside.astype(np.float64), percentiles, axis=1).T)


def own_limits(prepared: Prepared, config: IntensityConfig) -> FloatArray:
    """Return the window of the file, or the percentiles of the image or of the volume it is a slice of: float64 (C, 2).

    Those of a volume are measured on its voxels as the files have them, before its slices are resampled.
    """
    if config.policy == "file_window" and prepared.window is not None:
        return spread_limits(np.tile(np.array(prepared.window, np.float64), (len(prepared.pixels), 1)))
    if not prepared.volume:
        return intensity_limits(prepared.pixels, prepared.valid, config)
    limits = volume_percentiles(prepared.volume, config.low_percentile, config.high_percentile)
    return spread_limits(np.repeat(limits, len(prepared.pixels) // len(limits), axis=0))  # a colour model sees grey


def spread_limits(limits: FloatArray) -> FloatArray:
    """Make sure that the upper limit lies above the lower one, so that a constant image divides by no zero."""
    low, high = limits[:, 0], limits[:, 1]
    return np.stack([low, np.where(high > low, high, low + 1.0)], axis=1)


def map_in_windows(
    mapper: MapFunction, raw: Tensor, valid: Tensor, limits: Tensor, window_px: int, margin_px: int
) -> Tensor:
    """Map an image of any size; a large one window by window, exactly as if it were mapped whole.

    Every window carries a margin as wide as the mapper's reach, and only its core is kept: no blending, no seams.
    An axis that is no longer than a window is not cut, and needs no margin.
    Peak memory depends on ``window_px`` and not on the image. Both lengths are multiples of ``mapper.size_multiple``,
    so that every window sees the same pixel blocks as the whole image.
    """
    sides = raw.shape[2:]
    if max(sides) <= window_px:
        return mapper(raw, valid, limits)
    core = max(window_px - 2 * margin_px, margin_px)
    cores = [side if side <= window_px else core for side in sides]
    result = torch.empty(0)
    for start in itertools.product(*[range(0, side, core) for side, core in zip(sides, cores, strict=True)]):
        inner = [slice(s, min(side, s + core)) for s, side, core in zip(start, sides, cores, strict=True)]
        outer = [
            slice(max(0, i.start - margin_px), min(side, i.stop + margin_px))
            for i, side in zip(inner, sides, strict=True)
        ]
        cut = [slice(i.start - o.start, i.stop - o.start) for i, o in zip(inner, outer, strict=True)]
        tile = mapper(raw[:, :, *outer], valid[:, :, *outer], limits)
        if not len(result):  # only a tile tells the number of channels
            result = torch.empty(*tile.shape[:2], *sides)
        result[:, :, *inner] = tile[:, :, *cut].cpu()
    return result


def image_score(
    anomaly_map: FloatArray,
    valid: BoolArray | None,
    config: ScoringConfig,
    spacing_mm: tuple[float, ...] | None = None,
) -> float:
    """Pool a map on the image's own grid into one float64, inside ``valid``.

    With pooling "max" it is the largest threshold at which a region counts: the largest pixel where there are no rules.

    Raises
    ------
    DataError
        No pixel or no region could ever count, a map that is not finite, or a rule in mm² without a spacing.
    """
    if not np.isfinite(anomaly_map if valid is None else anomaly_map[valid]).all():
        raise DataError(
            "the anomaly map is not finite",
            "the image or the model holds NaN or inf",
            "check the pixel values",
        )
    rules = RegionRules.of(config)
    if config.pooling == "max":
        return surviving_level(anomaly_map, valid, spacing_mm, rules)
    values = counted_values(anomaly_map, valid, rules)
    if config.pooling == "quantile":
        return float(np.quantile(values.astype(np.float64), config.quantile))
    n_top = max(1, round(config.top_share * values.size))
    return float(np.partition(values, -n_top)[-n_top:].astype(np.float64).mean())


def channels_last(n_dims: int) -> torch.memory_format:
    """Return the memory format in which convolutions run fastest."""
    return torch.channels_last if n_dims == 2 else torch.channels_last_3d


def to_device(module: nn.Module, device: torch.device, n_dims: int) -> nn.Module:
    """Move a module to a device, in the memory format of its convolutions."""
    module.to(device)
    return module.to(memory_format=channels_last(n_dims))  # type: ignore[call-overload, no-any-return]


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
