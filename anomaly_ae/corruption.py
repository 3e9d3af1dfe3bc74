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
        damaged = torch.lerp(damaged, _fill(x, generator), alpha)
        mask = torch.maximum(mask, alpha)
    coarse = _coarse_noise(x, x.shape[1], generator, finest=8) * config.coarse_noise_sd
    chosen = _some(x, config.coarse_noise_probability, generator)
    damaged = damaged + coarse * chosen
    mask = torch.maximum(mask, chosen * (coarse.abs().amax(dim=1, keepdim=True) > config.coarse_noise_sd / 2))
    noise = torch.randn(x.shape, generator=generator, device=x.device) * config.gaussian_noise_sd
    noise = noise * _uniform(x, 0, 1, generator)
    return damaged + noise, x + noise, mask


def _shape(x: Tensor, warp: Tensor, config: CorruptionConfig, generator: Generator) -> Tensor:
    """Return opacities (B, 1, *S): a rotated ellipsoid on warped coordinates; long ones are scratches, small dots."""
    n_batch, sides = x.shape[0], x.shape[2:]
    n_dims = len(sides)
    grid = torch.stack(torch.meshgrid(*[torch.arange(s, device=x.device) + 0.5 for s in sides], indexing="ij"))
    extent = torch.tensor(sides, device=x.device, dtype=torch.float32)
    centre = torch.rand(n_batch, n_dims, generator=generator, device=x.device) * extent
    longest = min(sides) * config.max_size_share
    axes = _log_uniform((n_batch, n_dims), config.min_size_px, max(longest, 2 * config.min_size_px), x, generator)
    rotation = torch.linalg.qr(torch.randn(n_batch, n_dims, n_dims, generator=generator, device=x.device))[0]
    spread = axes.amax(dim=1) * torch.rand(n_batch, generator=generator, device=x.device)
    offset = grid[None] - _expand(centre, n_dims) + warp * _expand(spread[:, None], n_dims) * 0.6  # (B, d, *S)
    to_unit_ball = rotation / axes[:, :, None]  # (B, d, d)
    scaled = torch.einsum("bij,bj...->bi...", to_unit_ball, offset)
    distance = scaled.square().sum(dim=1, keepdim=True).sqrt()  # 1 on the outline
    softness = _log_uniform((n_batch, 1), 0.5, 3.0, x, generator) / axes.amin(dim=1, keepdim=True)
    inside = torch.sigmoid((1 - distance) / _expand(softness, n_dims) * 2)
    opacity = torch.rand(n_batch, 1, generator=generator, device=x.device) * 0.85 + 0.15
    return inside * _expand(opacity, n_dims)


def _fill(x: Tensor, generator: Generator) -> Tensor:
    """Return what shows inside a shape, one kind for the batch: another image, itself moved, a shade, a grain, blur."""
    match int(torch.randint(0, 6, (1,), generator=generator, device=x.device)):
        case 0:
            return torch.roll(_moved(x, generator), 1, dims=0)
        case 1:
            return _moved(x, generator)
        case 2:  # faint ones are as frequent as strong ones
            sign = torch.where(_uniform(x, 0, 1, generator) < 0.5, -1.0, 1.0)
            return x + sign * 0.03 * 20 ** _uniform(x, 0, 1, generator)
        case 3:
            return _uniform(x, -0.1, 1.1, generator)
        case 4:
            grain = _coarse_noise(x, x.shape[1], generator, finest=2) * _uniform(x, 0, 0.3, generator)
            return _uniform(x, -0.1, 1.1, generator) + grain
        case _:
            return _blur(x, 4)


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
