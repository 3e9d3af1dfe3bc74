"""The one path from the file's numbers to the anomaly map, and from the map to the score.

Validation, calibration, scoring, evaluation, reports and exports all call `AnomalyMapper`; there is no second
preprocessing anywhere.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from anomaly_ae.config import Config, IntensityConfig, ScoringConfig
from anomaly_ae.errors import DataError
from anomaly_ae.model import build_autoencoder, context_px, size_multiple
from anomaly_ae.records import BoolArray, FloatArray, PixelArray

MEASURES = ("l1", "l2", "ssim", "gms")
N_CONTEXT_BINS = 12
N_POSITIONS = 32
"""Cells along every side of the object in which normal errors are compared: about 8 px each at 256 px."""

MapFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(raw (B, C, *S), valid (B, 1, *S), limits (B, C, 2)) -> anomaly map (B, 1, *S)."""


class AnomalyMapper(nn.Module):
    """From raw pixels to the anomaly map; every step and every learned number of it.

    Parameters
    ----------
    config : Config
        Architecture and scoring.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        n_dims = config.model.spatial_dims
        self.scale = IntensityScale(config.intensity.headroom)
        self.embed = nn.Identity()
        self.autoencoder = build_autoencoder(config.model)
        self.compare = ErrorMeasures(config.scoring, n_dims)
        self.smooth = GaussianSmoothing(config.scoring.smooth_sd_px, n_dims)
        self.standardise = Standardise(config.scoring.standardise, n_dims)
        self.register_buffer("limits", torch.zeros(config.model.n_channels, 2, dtype=torch.float64))
        self.size_multiple = size_multiple(config.model)
        self.margin_px = _round_up(
            context_px(config.model) + self.compare.reach_px + self.smooth.reach_px, self.size_multiple
        )
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
            Smoothed error in standard deviations of what normal images show there.
        """
        anomaly_map: Tensor = self.standardise(self.errors(raw, valid, limits), valid)
        return anomaly_map

    def errors(self, raw: Tensor, valid: Tensor, limits: Tensor) -> Tensor:
        """Return all that `standardise` needs, and that depends on nothing far away: ``(B, 1 or 2, *S)``.

        The smoothed error, and where statistics follow the context also the activity of the reconstruction.
        """
        z = self.embed(self.scale(raw, valid, limits))
        z_hat = self.autoencoder(z)
        smooth: Tensor = self.smooth(self.compare(z, z_hat, valid), valid)
        if self.standardise.kind != "context":
            return smooth
        return torch.cat([smooth, self.standardise.local_activity(z_hat)], dim=1)

    def measures(self, raw: Tensor, valid: Tensor, limits: Tensor) -> Tensor:
        """Return every error measure in its own unit: (B, n_measures, *S)."""
        z = self.embed(self.scale(raw, valid, limits))
        z_hat = self.autoencoder(z)
        return torch.cat([self.compare.measure(name, z, z_hat, valid) for name in self.compare.weights], dim=1)

    def reconstruct(self, raw: Tensor, valid: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scaled input and what a normal image would look like, for people to see."""
        x = self.scale(raw, valid, limits)
        return x, self.autoencoder(self.embed(x))


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


class ErrorMeasures(nn.Module):
    """Weighted sum of error measures, each in units of its mean on normal images (buffer ``unit``)."""

    def __init__(self, config: ScoringConfig, n_dims: int) -> None:
        super().__init__()
        self.weights = {name: getattr(config, name) for name in MEASURES if getattr(config, name) > 0}
        self.window = GaussianSmoothing(1.5, n_dims)
        self.background = GaussianSmoothing(config.background_sd_px, n_dims)
        # SSIM; or gradients on the coarsest of three scales; or the background of the residual
        self.reach_px = max(2 * self.window.reach_px + 8, self.background.reach_px)
        self.register_buffer("unit", torch.ones(len(self.weights)))

    def forward(self, z: Tensor, z_hat: Tensor, valid: Tensor) -> Tensor:
        """Return ``(B, 1, *S)``."""
        unit = self.get_buffer("unit")
        terms = [
            weight / unit[i] * self.measure(name, z, z_hat, valid)
            for i, (name, weight) in enumerate(self.weights.items())
        ]
        return torch.stack(terms).sum(dim=0)

    def measure(self, name: str, z: Tensor, z_hat: Tensor, valid: Tensor) -> Tensor:
        """Return one error measure, mean over channels: ``(B, 1, *S)``, 0 where both images agree."""
        match name:
            case "l1":
                error = self.residual(z, z_hat, valid).abs()
            case "l2":
                error = self.residual(z, z_hat, valid).square()
            case "ssim":
                error = (1 - structural_similarity(z, z_hat, self.window)) / 2
            case _:
                error = gradient_dissimilarity(z, z_hat)
        return error.mean(dim=1, keepdim=True)

    def residual(self, z: Tensor, z_hat: Tensor, valid: Tensor) -> Tensor:
        """Return the signed difference without its smooth part, which lighting changes leave: ``(B, C, *S)``."""
        difference = z - z_hat
        return difference - self.background(difference, valid) if self.background.reach_px else difference


def structural_similarity(x: Tensor, y: Tensor, window: GaussianSmoothing) -> Tensor:
    """Return the SSIM map for a data range of 1 (Wang et al., IEEE TIP 13 (2004), eq. 13): ``(B, C, *S)``."""
    c1, c2 = 0.01**2, 0.03**2
    mean_x, mean_y = window.blur(x), window.blur(y)
    var_x = (window.blur(x * x) - mean_x**2).clamp_min(0)
    var_y = (window.blur(y * y) - mean_y**2).clamp_min(0)
    covariance = window.blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return luminance * (2 * covariance + c2) / (var_x + var_y + c2)


def gradient_dissimilarity(x: Tensor, y: Tensor, n_scales: int = 3) -> Tensor:
    """Return 1 - gradient-magnitude similarity, mean over scales (Xue et al., IEEE TIP 23 (2014)): ``(B, C, *S)``.

    The constant keeps sensor noise (a gradient of about 0.02 of the range) from counting as structure.
    """
    constant = 0.02**2
    pool = functional.avg_pool2d if x.ndim == 4 else functional.avg_pool3d
    mode = "bilinear" if x.ndim == 4 else "trilinear"
    total = torch.zeros_like(x)
    for scale in range(n_scales):
        small_x, small_y = (pool(image, 2**scale) for image in (x, y))
        g_x, g_y = gradient_magnitude(small_x), gradient_magnitude(small_y)
        error = 1 - (2 * g_x * g_y + constant) / (g_x**2 + g_y**2 + constant)
        total = total + functional.interpolate(error, size=x.shape[2:], mode=mode, align_corners=False)
    return total / n_scales


def gradient_magnitude(x: Tensor) -> Tensor:
    """Return the length of the central-difference gradient; the outermost pixel repeats: ``(B, C, *S)``."""
    total = torch.zeros_like(x)
    for axis in range(2, x.ndim):
        length = x.shape[axis]
        index = torch.arange(length, device=x.device)
        ahead = x.index_select(axis, (index + 1).clamp_max(length - 1))
        behind = x.index_select(axis, (index - 1).clamp_min(0))
        total = total + ((ahead - behind) / 2).square()
    return total.sqrt()


class GaussianSmoothing(nn.Module):
    """Separable Gaussian blur that never lets pixels outside the mask, or outside the image, dilute those inside."""

    def __init__(self, sd_px: float, n_dims: int) -> None:
        super().__init__()
        self.reach_px = math.ceil(3 * sd_px)
        self.n_dims = n_dims
        taps = torch.arange(-self.reach_px, self.reach_px + 1, dtype=torch.float64)
        kernel = torch.exp(-0.5 * (taps / max(sd_px, 1e-6)) ** 2)
        self.register_buffer("kernel", (kernel / kernel.sum()).to(torch.float32), persistent=False)

    def forward(self, error: Tensor, valid: Tensor) -> Tensor:
        """Return ``conv(error * valid) / conv(valid)``, 0 outside ``valid``: ``(B, 1, *S)``."""
        if self.reach_px == 0:
            return error * valid
        weight = valid.to(error.dtype)
        return self._convolve(error * weight) / self._convolve(weight).clamp_min(1e-6) * weight

    def blur(self, x: Tensor) -> Tensor:
        """Blur every channel, normalised at the border: ``(B, C, *S)``."""
        return self._convolve(x) / self._convolve(torch.ones_like(x[:1, :1]))

    def _convolve(self, x: Tensor) -> Tensor:
        convolve = functional.conv2d if self.n_dims == 2 else functional.conv3d
        kernel = self.get_buffer("kernel")
        flat = x.reshape(-1, 1, *x.shape[2:])  # every channel is an image of its own
        for axis in range(self.n_dims):
            shape = [1] * (2 + self.n_dims)
            shape[2 + axis] = -1
            padding = [self.reach_px if a == axis else 0 for a in range(self.n_dims)]
            flat = convolve(flat, kernel.reshape(shape), padding=padding)
        return flat.reshape(x.shape)


class Standardise(nn.Module):
    """``(smooth - mean) / sd`` of what normal images show: everywhere, at this place, or in such surroundings.

    A place is relative to the box around the valid pixels, so that images of any size share their statistics; borders,
    where reconstructions are worst, are compared with borders. Surroundings are known by the local activity of the
    *reconstruction* (its smoothed gradient): edges and texture are allowed larger errors than flat areas.
    """

    def __init__(self, kind: str, n_dims: int) -> None:
        super().__init__()
        self.kind, self.n_dims = kind, n_dims
        self.window = GaussianSmoothing(2.0, n_dims)
        shapes = {"global": (1,), "position": (1, 1, *[N_POSITIONS] * n_dims), "context": (N_CONTEXT_BINS,)}
        self.register_buffer("mean", torch.zeros(shapes[kind]))
        self.register_buffer("sd", torch.ones(shapes[kind]))
        self.register_buffer("activity", torch.arange(float(N_CONTEXT_BINS)))  # bin centres, increasing

    def forward(self, errors: Tensor, valid: Tensor) -> Tensor:
        """Return the anomaly map ``(B, 1, *S)`` of whole images: ``errors`` as `AnomalyMapper.errors` gives them."""
        mean, sd = self.get_buffer("mean"), self.get_buffer("sd")
        if self.kind == "position":
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
            box = valid_box(inside)
            sides = [part.stop - part.start for part in box]
            image[:, *box] = functional.interpolate(cells, size=sides, mode=mode, align_corners=False)[0]
        return stretched

    def local_activity(self, z_hat: Tensor) -> Tensor:
        """Return the smoothed gradient magnitude, mean over channels: ``(B, 1, *S)``."""
        return self.window.blur(gradient_magnitude(z_hat).mean(dim=1, keepdim=True))

    def _bin_position(self, activity: Tensor) -> Tensor:
        """Return fractional bin numbers in [0, n - 1]."""
        centres = self.get_buffer("activity")
        upper = torch.searchsorted(centres, activity.contiguous()).clamp(1, len(centres) - 1)
        low, high = centres[upper - 1], centres[upper]
        return (upper - 1 + ((activity - low) / (high - low)).clamp(0, 1)).to(activity.dtype)


def valid_box(valid: Tensor) -> tuple[slice, ...]:
    """Return the smallest box that holds all valid pixels of one image (1, *S); all of it where there is none."""
    found = valid.nonzero()[:, 1:]  # (n, d)
    if len(found) in (0, valid.numel()):
        return tuple(slice(0, side) for side in valid.shape[1:])
    low, high = found.amin(dim=0).tolist(), found.amax(dim=0).tolist()
    return tuple(slice(start, last + 1) for start, last in zip(low, high, strict=True))


def _interpolate(values: Tensor, position: Tensor) -> Tensor:
    low = position.floor().long().clamp_max(len(values) - 2)
    return torch.lerp(values[low], values[low + 1], position - low)


def intensity_limits(pixels: PixelArray, valid: BoolArray | None, config: IntensityConfig) -> FloatArray:
    """Return per channel the percentiles of one image or volume inside ``valid``: float64 (C, 2)."""
    inside = pixels.reshape(pixels.shape[0], -1) if valid is None else pixels[:, valid]
    if inside.shape[1] == 0:
        raise DataError("an image without a single valid pixel", "its mask is empty", "leave it out")
    percentiles = (config.low_percentile, config.high_percentile)
    return spread_limits(np.percentile(inside.astype(np.float64), percentiles, axis=1).T)


def spread_limits(limits: FloatArray) -> FloatArray:
    """Make sure that the upper limit lies above the lower one, so that a constant image divides by no zero."""
    low, high = limits[:, 0], limits[:, 1]
    return np.stack([low, np.where(high > low, high, low + 1.0)], axis=1)


def map_in_windows(
    mapper: MapFunction, raw: Tensor, valid: Tensor, limits: Tensor, window_px: int, margin_px: int
) -> Tensor:
    """Map an image of any size; a large one window by window, exactly as if it were mapped whole.

    Every window carries a margin as wide as the mapper's reach, and only its core is kept: no blending, no seams.
    Peak memory depends on ``window_px`` and not on the image. Both lengths are multiples of ``mapper.size_multiple``,
    so that every window sees the same pixel blocks as the whole image.
    """
    sides = raw.shape[2:]
    if max(sides) <= window_px:
        return mapper(raw, valid, limits)
    core = max(window_px - 2 * margin_px, margin_px)
    tiles: list[tuple[list[slice], Tensor]] = []
    for start in itertools.product(*[range(0, side, core) for side in sides]):
        outer = [
            slice(max(0, s - margin_px), min(side, s + core + margin_px)) for s, side in zip(start, sides, strict=True)
        ]
        inner = [slice(s, min(side, s + core)) for s, side in zip(start, sides, strict=True)]
        cut = [slice(i.start - o.start, i.stop - o.start) for i, o in zip(inner, outer, strict=True)]
        tile = mapper(raw[:, :, *outer], valid[:, :, *outer], limits)
        tiles.append((inner, tile[:, :, *cut].cpu()))
    result = torch.empty(*tiles[0][1].shape[:2], *sides)
    for inner, core_map in tiles:
        result[:, :, *inner] = core_map
    return result


def image_score(anomaly_map: FloatArray, valid: BoolArray | None, config: ScoringConfig) -> float:
    """Pool a map on the image's own grid into one float64, inside ``valid``.

    Raises
    ------
    DataError
        No valid pixel, or a map that is not finite.
    """
    values = anomaly_map.ravel() if valid is None else anomaly_map[valid]
    if values.size == 0:
        raise DataError("an image without a single valid pixel", "its mask is empty", "leave it out")
    if not np.isfinite(values).all():
        raise DataError(
            "the anomaly map is not finite",
            "the image or the model holds NaN or inf",
            "check the pixel values",
        )
    match config.pooling:
        case "max":
            return float(values.max())
        case "top_share":
            n_top = max(1, round(config.top_share * values.size))
            return float(np.partition(values, -n_top)[-n_top:].astype(np.float64).mean())
        case _:
            return float(np.quantile(values.astype(np.float64), config.quantile))


def channels_last(n_dims: int) -> torch.memory_format:
    """Return the memory format in which convolutions run fastest."""
    return torch.channels_last if n_dims == 2 else torch.channels_last_3d


def to_device(module: nn.Module, device: torch.device, n_dims: int) -> nn.Module:
    """Move a module to a device, in the memory format of its convolutions."""
    module.to(device)
    return module.to(memory_format=channels_last(n_dims))  # type: ignore[call-overload, no-any-return]


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
