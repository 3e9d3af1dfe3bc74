"""What is done to normal images in training, batched and on the device.

Structured, spatially coherent damage of many shapes, fills and opacities teaches the network what to remove;
Gaussian noise that is added on top *and kept in the target* anchors it to the identity elsewhere
(Bauer and Mueller, arXiv 2511.07233). Coarse noise after Kascenas et al. (MIDL 2022).
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn import functional

from anomaly_ae.config import CorruptionConfig

INTERPOLATION = {2: "bilinear", 3: "trilinear"}

PLAIN_FILLS = ("other image", "moved", "shade", "constant", "grain", "blur")
SHAPES = {"plain": ("ellipsoid",), "rich": ("ellipsoid", "box", "diamond", "scratch", "dots", "blotch")}
FILLS = {"plain": PLAIN_FILLS, "rich": (*PLAIN_FILLS, "sharpen", "light", "contrast", "noise", "warp")}
NORMS = {"ellipsoid": 2.0, "scratch": 2.0, "box": 8.0, "diamond": 1.0}
"""The norm whose unit ball a solid is."""


def corrupt(x: Tensor, config: CorruptionConfig, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Damage a batch of scaled normal images.

    Parameters
    ----------
    x : tensor, (B, C, *spatial)
        Scaled images, about [0, 1].
    config : CorruptionConfig
    generator : torch.Generator
        On the device of ``x``; the only source of randomness.

    Returns
    -------
    damaged, target : tensor, (B, C, *spatial)
        Both carry the same Gaussian noise.
    mask : tensor, (B, 1, *spatial)
        Opacity of the damage, in [0, 1].
    """
    damaged, mask = x, torch.zeros_like(x[:, :1])
    warp = _coarse_noise(x, x.ndim - 2, generator, finest=6)  # (B, d, *S); every shape takes it from another place
    for _ in range(config.max_shapes):
        alpha = _some(x, config.shape_probability, generator) * _shape(x, _moved(warp, generator), config, generator)
        damaged = torch.lerp(damaged, _fill(x, warp, config, generator), alpha)
        mask = torch.maximum(mask, alpha)
    coarse = _coarse_noise(x, x.shape[1], generator, finest=8) * config.coarse_noise_sd
    chosen = _some(x, config.coarse_noise_probability, generator)
    damaged = damaged + coarse * chosen
    mask = torch.maximum(mask, chosen * (coarse.abs().amax(dim=1, keepdim=True) > config.coarse_noise_sd / 2))
    noise = torch.randn(x.shape, generator=generator, device=x.device) * config.gaussian_noise_sd
    noise = noise * _uniform(x, 0, 1, generator)
    return damaged + noise, x + noise, mask


def _shape(x: Tensor, warp: Tensor, config: CorruptionConfig, generator: Generator) -> Tensor:
    """Return opacities (B, 1, *S) of one kind of shape for the whole batch."""
    match _pick(SHAPES[config.variety], x, generator):
        case "blotch":
            inside = _blotch(x, generator)
        case "dots":
            grain = _coarse_noise(x, 1, generator, finest=2) - _uniform(x, 0, 1.2, generator)
            inside = _solid(x, warp, "ellipsoid", config, generator) * torch.sigmoid(8 * grain)
        case kind:
            inside = _solid(x, warp, kind, config, generator)
    opacity = torch.rand(len(x), 1, generator=generator, device=x.device) * 0.85 + 0.15
    return inside * _expand(opacity, x.ndim - 2)


def _solid(x: Tensor, warp: Tensor, kind: str, config: CorruptionConfig, generator: Generator) -> Tensor:
    """Return the inside (B, 1, *S) of a rotated solid on warped coordinates; long ones are scratches, small dots."""
    n_batch, sides = x.shape[0], x.shape[2:]
    n_dims = len(sides)
    grid = torch.stack(torch.meshgrid(*[torch.arange(s, device=x.device) + 0.5 for s in sides], indexing="ij"))
    extent = torch.tensor(sides, device=x.device, dtype=torch.float32)
    centre = torch.rand(n_batch, n_dims, generator=generator, device=x.device) * extent
    longest = max(min(sides) * config.max_size_share, 2 * config.min_size_px)
    axes = _log_uniform((n_batch, n_dims), config.min_size_px, longest, x, generator)
    if kind == "scratch":
        axes[:, 0] = _log_uniform((n_batch,), longest / 3, 2 * longest, x, generator)
        axes[:, 1:] = _log_uniform((n_batch, n_dims - 1), config.min_size_px, 4 * config.min_size_px, x, generator)
    rotation = torch.linalg.qr(torch.randn(n_batch, n_dims, n_dims, generator=generator, device=x.device))[0]
    spread = axes.amax(dim=1).clamp_max(longest) * torch.rand(n_batch, generator=generator, device=x.device)
    offset = grid[None] - _expand(centre, n_dims) + warp * _expand(spread[:, None], n_dims) * 0.6  # (B, d, *S)
    to_unit_ball = rotation / axes[:, :, None]  # (B, d, d)
    scaled = torch.einsum("bij,bj...->bi...", to_unit_ball, offset)
    distance = _norm(scaled, NORMS[kind])  # 1 on the outline
    softness = _log_uniform((n_batch, 1), 0.5, 3.0, x, generator) / axes.amin(dim=1, keepdim=True)
    return torch.sigmoid((1 - distance) / _expand(softness, n_dims) * 2)


def _norm(vectors: Tensor, order: float) -> Tensor:
    """Return the norm over axis 1, kept; ``torch.linalg.vector_norm`` is several times as slow on the CPU."""
    if order == 2:
        return vectors.square().sum(dim=1, keepdim=True).sqrt()
    return vectors.abs().pow(order).sum(dim=1, keepdim=True).pow(1 / order)


def _blotch(x: Tensor, generator: Generator) -> Tensor:
    """Return where fractal noise (Perlin's sum of octaves) is high: (B, 1, *S)."""
    octaves = [share * _coarse_noise(x, 1, generator, finest) for share, finest in ((1.0, 12), (0.5, 5), (0.25, 2))]
    height = torch.stack(octaves).sum(dim=0) - _uniform(x, 0.8, 2.2, generator)
    return torch.sigmoid(height * _uniform(x, 4, 20, generator))


def _fill(x: Tensor, warp: Tensor, config: CorruptionConfig, generator: Generator) -> Tensor:
    """Return what shows inside a shape, one kind for the batch: something foreign, or the image itself altered."""
    match _pick(FILLS[config.variety], x, generator):
        case "other image":
            filled = torch.roll(_moved(x, generator), 1, dims=0)
        case "moved":
            filled = _moved(x, generator)
        case "constant":
            filled = _uniform(x, -0.1, 1.1, generator)
        case "grain":
            grain = _coarse_noise(x, x.shape[1], generator, finest=2) * _uniform(x, 0, 0.3, generator)
            filled = _uniform(x, -0.1, 1.1, generator) + grain
        case alteration:
            filled = _altered(x, warp, alteration, generator)
    return filled


def _altered(x: Tensor, warp: Tensor, alteration: str, generator: Generator) -> Tensor:
    match alteration:
        case "shade":  # faint ones are as frequent as strong ones
            sign = torch.where(_uniform(x, 0, 1, generator) < 0.5, -1.0, 1.0)
            altered = x + sign * 0.03 * 20 ** _uniform(x, 0, 1, generator)
        case "blur":
            altered = _blur(x, 4)
        case "sharpen":
            altered = x + (x - _blur(x, 4)) * _uniform(x, 0.5, 3, generator)
        case "light":  # a shadow, or a gleam
            altered = x * 2 ** _uniform(x, -2, 1, generator)
        case "contrast":  # down to none, and inverted
            mean = x.flatten(1).mean(dim=1).reshape(-1, *[1] * (x.ndim - 1))
            altered = mean + (x - mean) * _uniform(x, -1, 0.7, generator)
        case "noise":
            altered = x + _coarse_noise(x, x.shape[1], generator, finest=1) * _uniform(x, 0.03, 0.3, generator)
        case _:
            altered = _warped(x, _moved(warp, generator) * _uniform(x, 1, 8, generator))
    return altered


def _warped(x: Tensor, shift_px: Tensor) -> Tensor:
    """Return the image with every pixel taken from ``shift_px`` (B, d, *S) away."""
    n_batch, sides = x.shape[0], x.shape[2:]
    n_dims = len(sides)
    straight = torch.eye(n_dims, n_dims + 1, device=x.device).expand(n_batch, -1, -1)
    grid = functional.affine_grid(straight, list(x.shape), align_corners=False)  # (B, *S, d), last axis first
    extent = torch.tensor(sides, device=x.device)
    shift = (shift_px.movedim(1, -1) * 2 / extent).flip(-1)
    return functional.grid_sample(x, grid + shift, padding_mode="reflection", align_corners=False)


def _pick(kinds: tuple[str, ...], x: Tensor, generator: Generator) -> str:
    if len(kinds) == 1:
        return kinds[0]
    return kinds[int(torch.randint(0, len(kinds), (1,), generator=generator, device=x.device))]


def _moved(x: Tensor, generator: Generator) -> Tensor:
    moves = torch.randint(1, max(2, min(x.shape[2:])), (x.ndim - 2,), generator=generator, device=x.device).tolist()
    return torch.roll(x, moves, dims=tuple(range(2, x.ndim)))


def _coarse_noise(x: Tensor, n_channels: int, generator: Generator, finest: int) -> Tensor:
    """Return smooth noise (B, n_channels, *S) of unit deviation whose grain is a random multiple of ``finest`` px."""
    sides = x.shape[2:]
    octave = int(torch.randint(0, 3, (1,), generator=generator, device=x.device))
    coarse = [max(2, side // (finest * 2**octave)) for side in sides]
    noise = torch.randn(x.shape[0], n_channels, *coarse, generator=generator, device=x.device)
    noise = functional.interpolate(noise, size=sides, mode=INTERPOLATION[len(sides)], align_corners=False)
    gain: float = 1.5 ** (len(sides) / 2)  # linear interpolation leaves two thirds of the variance per axis
    return noise * gain


def _blur(x: Tensor, size: int) -> Tensor:
    pool = functional.avg_pool2d if x.ndim == 4 else functional.avg_pool3d
    coarse = pool(x, size)
    return functional.interpolate(coarse, size=x.shape[2:], mode=INTERPOLATION[x.ndim - 2], align_corners=False)


def _some(x: Tensor, probability: float, generator: Generator) -> Tensor:
    """Return 1 for a random share of the images of a batch, else 0: (B, 1, 1, ...)."""
    return (_uniform(x, 0, 1, generator) < probability).to(x.dtype)


def _uniform(x: Tensor, low: float, high: float, generator: Generator) -> Tensor:
    shape = (x.shape[0], *[1] * (x.ndim - 1))
    return torch.rand(shape, generator=generator, device=x.device) * (high - low) + low


def _log_uniform(shape: tuple[int, ...], low: float, high: float, x: Tensor, generator: Generator) -> Tensor:
    exponent = torch.rand(shape, generator=generator, device=x.device)
    return low * (high / low) ** exponent


def _expand(values: Tensor, n_dims: int) -> Tensor:
    """Append spatial axes: (B, k) -> (B, k, 1, 1, ...)."""
    return values.reshape(*values.shape, *[1] * n_dims)
