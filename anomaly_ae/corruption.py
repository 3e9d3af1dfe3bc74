"""What is done to normal images in training, batched and on the device.

Structured, spatially coherent damage of many shapes, fills and opacities teaches the network what to remove;
Gaussian noise that is added on top *and kept in the target* anchors it to the identity elsewhere
(Bauer and Mueller, arXiv 2511.07233). Coarse noise after Kascenas et al. (MIDL 2022).
"""

from __future__ import annotations

import functools

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
        On the CPU, or on the device of ``x``; the only source of randomness.

    Returns
    -------
    damaged, target : tensor, (B, C, *spatial)
        Both carry the same Gaussian noise.
    mask : tensor, (B, 1, *spatial)
        Opacity of the damage, in [0, 1].
    """
    dice = _Dice(generator, x.device)
    damaged, mask = x, torch.zeros_like(x[:, :1])
    warp = _coarse_noise(x, x.ndim - 2, dice, finest=6)  # (B, d, *S); every shape takes it from another place
    for _ in range(config.max_shapes):
        alpha = _some(x, config.shape_probability, dice) * _shape(x, _moved(warp, dice), config, dice)
        damaged = torch.lerp(damaged, _fill(x, warp, config, dice), alpha)
        mask = torch.maximum(mask, alpha)
    coarse = _coarse_noise(x, x.shape[1], dice, finest=8) * config.coarse_noise_sd
    chosen = _some(x, config.coarse_noise_probability, dice)
    damaged = damaged + coarse * chosen
    mask = torch.maximum(mask, chosen * (coarse.abs().amax(dim=1, keepdim=True) > config.coarse_noise_sd / 2))
    noise = dice.noise(*x.shape) * config.gaussian_noise_sd
    noise = noise * _uniform(x, 0, 1, dice)
    return damaged + noise, x + noise, mask


class _Dice:
    """Where all that is random comes from.

    What Python decides by, and what there is one of for every image, is drawn and worked out where the generator is. On
    the CPU that costs next to nothing, and a GPU is neither waited for nor asked for hundreds of sums of eight numbers.
    Noise as large as the images is drawn where they are.
    """

    def __init__(self, generator: Generator, device: torch.device) -> None:
        self.generator, self.device = generator, device
        is_there = generator.device.type == device.type
        self.generator_of_noise = generator if is_there else Generator(device).manual_seed(self.integer(0, 2**62))

    def integer(self, low: int, high: int) -> int:
        """Draw one of low, ..., high - 1."""
        return self.integers(low, high, 1)[0]

    def integers(self, low: int, high: int, n: int) -> list[int]:
        """Draw ``n`` of low, ..., high - 1."""
        return torch.randint(low, high, (n,), generator=self.generator, device=self.generator.device).tolist()

    def uniform(self, *shape: int) -> Tensor:
        """Draw from [0, 1), where the generator is."""
        return torch.rand(shape, generator=self.generator, device=self.generator.device)

    def log_uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Draw numbers whose logarithms are uniform, where the generator is."""
        return low * (high / low) ** self.uniform(*shape)

    def normal(self, *shape: int) -> Tensor:
        """Draw from the standard normal distribution, where the generator is."""
        return torch.randn(shape, generator=self.generator, device=self.generator.device)

    def noise(self, *shape: int) -> Tensor:
        """Draw from the standard normal distribution, where the images are."""
        return torch.randn(shape, generator=self.generator_of_noise, device=self.device)

    def brought(self, values: Tensor) -> Tensor:
        """Return the values where the images are, without waiting for what is computed there."""
        return values.to(self.device, non_blocking=True)


def _shape(x: Tensor, warp: Tensor, config: CorruptionConfig, dice: _Dice) -> Tensor:
    """Return opacities (B, 1, *S) of one kind of shape for the whole batch."""
    match _pick(SHAPES[config.variety], dice):
        case "blotch":
            inside = _blotch(x, dice)
        case "dots":
            grain = _coarse_noise(x, 1, dice, finest=2) - _uniform(x, 0, 1.2, dice)
            inside = _solid(x, warp, "ellipsoid", config, dice) * torch.sigmoid(8 * grain)
        case kind:
            inside = _solid(x, warp, kind, config, dice)
    opacity = dice.uniform(len(x), 1) * 0.85 + 0.15
    return inside * _expand(dice.brought(opacity), x.ndim - 2)


def _solid(x: Tensor, warp: Tensor, kind: str, config: CorruptionConfig, dice: _Dice) -> Tensor:
    """Return the inside (B, 1, *S) of a rotated solid on warped coordinates; long ones are scratches, small dots."""
    n_batch, sides = x.shape[0], x.shape[2:]
    n_dims = len(sides)
    centre = dice.uniform(n_batch, n_dims)
    centre = centre * torch.tensor(sides, device=centre.device, dtype=torch.float32)
    longest = max(min(sides) * config.max_size_share, 2 * config.min_size_px)
    axes = dice.log_uniform(config.min_size_px, longest, n_batch, n_dims)
    if kind == "scratch":
        axes[:, 0] = dice.log_uniform(longest / 3, 2 * longest, n_batch)
        axes[:, 1:] = dice.log_uniform(config.min_size_px, 4 * config.min_size_px, n_batch, n_dims - 1)
    rotation = torch.linalg.qr(dice.normal(n_batch, n_dims, n_dims))[0]
    to_unit_ball = rotation / axes[:, :, None]  # (B, d, d)
    spread = axes.amax(dim=1, keepdim=True).clamp_max(longest) * dice.uniform(n_batch)[:, None]
    softness = dice.log_uniform(0.5, 3.0, n_batch, 1) / axes.amin(dim=1, keepdim=True)
    centre, spread, softness = (_expand(dice.brought(values), n_dims) for values in (centre, spread, softness))
    offset = _grid(sides, x.device) - centre + warp * spread * 0.6  # (B, d, *S)
    scaled = torch.einsum("bij,bj...->bi...", dice.brought(to_unit_ball), offset)
    distance = _norm(scaled, NORMS[kind])  # 1 on the outline
    return torch.sigmoid((1 - distance) / softness * 2)


@functools.lru_cache(maxsize=2)
def _grid(sides: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the coordinates of the centre of every pixel: (1, d, *S)."""
    return torch.stack(torch.meshgrid(*[torch.arange(s, device=device) + 0.5 for s in sides], indexing="ij"))[None]


def _norm(vectors: Tensor, order: float) -> Tensor:
    """Return the norm over axis 1, kept; ``torch.linalg.vector_norm`` is several times as slow on the CPU."""
    if order == 2:
        return vectors.square().sum(dim=1, keepdim=True).sqrt()
    return vectors.abs().pow(order).sum(dim=1, keepdim=True).pow(1 / order)


def _blotch(x: Tensor, dice: _Dice) -> Tensor:
    """Return where fractal noise (Perlin's sum of octaves) is high: (B, 1, *S)."""
    octaves = [share * _coarse_noise(x, 1, dice, finest) for share, finest in ((1.0, 12), (0.5, 5), (0.25, 2))]
    height = torch.stack(octaves).sum(dim=0) - _uniform(x, 0.8, 2.2, dice)
    return torch.sigmoid(height * _uniform(x, 4, 20, dice))


def _fill(x: Tensor, warp: Tensor, config: CorruptionConfig, dice: _Dice) -> Tensor:
    """Return what shows inside a shape, one kind for the batch: something foreign, or the image itself altered."""
    match _pick(FILLS[config.variety], dice):
        case "other image":
            filled = torch.roll(_moved(x, dice), 1, dims=0)
        case "moved":
            filled = _moved(x, dice)
        case "constant":
            filled = _uniform(x, -0.1, 1.1, dice)
        case "grain":
            grain = _coarse_noise(x, x.shape[1], dice, finest=2) * _uniform(x, 0, 0.3, dice)
            filled = _uniform(x, -0.1, 1.1, dice) + grain
        case alteration:
            filled = _altered(x, warp, alteration, dice)
    return filled


def _altered(x: Tensor, warp: Tensor, alteration: str, dice: _Dice) -> Tensor:
    match alteration:
        case "shade":  # faint ones are as frequent as strong ones
            sign = torch.where(_uniform(x, 0, 1, dice) < 0.5, -1.0, 1.0)
            altered = x + sign * 0.03 * 20 ** _uniform(x, 0, 1, dice)
        case "blur":
            altered = _blur(x, 4)
        case "sharpen":
            altered = x + (x - _blur(x, 4)) * _uniform(x, 0.5, 3, dice)
        case "light":  # a shadow, or a gleam
            altered = x * 2 ** _uniform(x, -2, 1, dice)
        case "contrast":  # down to none, and inverted
            mean = x.flatten(1).mean(dim=1).reshape(-1, *[1] * (x.ndim - 1))
            altered = mean + (x - mean) * _uniform(x, -1, 0.7, dice)
        case "noise":
            altered = x + _coarse_noise(x, x.shape[1], dice, finest=1) * _uniform(x, 0.03, 0.3, dice)
        case _:
            altered = _warped(x, _moved(warp, dice) * _uniform(x, 1, 8, dice))
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


def _pick(kinds: tuple[str, ...], dice: _Dice) -> str:
    if len(kinds) == 1:
        return kinds[0]
    return kinds[dice.integer(0, len(kinds))]


def _moved(x: Tensor, dice: _Dice) -> Tensor:
    moves = dice.integers(1, max(2, min(x.shape[2:])), x.ndim - 2)
    return torch.roll(x, moves, dims=tuple(range(2, x.ndim)))


def _coarse_noise(x: Tensor, n_channels: int, dice: _Dice, finest: int) -> Tensor:
    """Return smooth noise (B, n_channels, *S) of unit deviation whose grain is a random multiple of ``finest`` px."""
    sides = x.shape[2:]
    octave = dice.integer(0, 3)
    coarse = [max(2, side // (finest * 2**octave)) for side in sides]
    noise = dice.noise(x.shape[0], n_channels, *coarse)
    noise = functional.interpolate(noise, size=sides, mode=INTERPOLATION[len(sides)], align_corners=False)
    gain: float = 1.5 ** (len(sides) / 2)  # linear interpolation leaves two thirds of the variance per axis
    return noise * gain


def _blur(x: Tensor, size: int) -> Tensor:
    pool = functional.avg_pool2d if x.ndim == 4 else functional.avg_pool3d
    coarse = pool(x, size)
    return functional.interpolate(coarse, size=x.shape[2:], mode=INTERPOLATION[x.ndim - 2], align_corners=False)


def _some(x: Tensor, probability: float, dice: _Dice) -> Tensor:
    """Return 1 for a random share of the images of a batch, else 0: (B, 1, 1, ...)."""
    return (_uniform(x, 0, 1, dice) < probability).to(x.dtype)


def _uniform(x: Tensor, low: float, high: float, dice: _Dice) -> Tensor:
    """Return one number for every image: (B, 1, 1, ...)."""
    return dice.brought(dice.uniform(x.shape[0], *[1] * (x.ndim - 1)) * (high - low) + low)


def _expand(values: Tensor, n_dims: int) -> Tensor:
    """Append spatial axes: (B, k) -> (B, k, 1, 1, ...)."""
    return values.reshape(*values.shape, *[1] * n_dims)
