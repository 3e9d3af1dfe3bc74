"""The autoencoders. Fully convolutional, any number of channels, two or three spatial dimensions.

No layer takes statistics over space at inference, so that a map does not depend on tile size or batch.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from anomaly_ae.backbone import STRIDE
from anomaly_ae.config import ModelConfig

CONV: dict[int, type[nn.Module]] = {2: nn.Conv2d, 3: nn.Conv3d}
NORM: dict[int, type[nn.Module]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def build_autoencoder(config: ModelConfig) -> nn.Module:
    """Build the network of a configuration with fresh weights.

    Returns
    -------
    module
        ``(B, C, *spatial) -> (B, C, *spatial)``; every spatial side must be a multiple of `size_multiple`.
    """
    match config.architecture:
        case "unet":
            return RepairUNet(config)
        case "bottleneck":
            return BottleneckAutoencoder(config)
        case _:
            raise AssertionError(config.architecture)  # `config` has checked it


def size_multiple(config: ModelConfig) -> int:
    """Return the number of pixels that every spatial side must be a multiple of; 4 is the coarsest error scale."""
    if config.embed:
        return STRIDE << config.depth
    return math.lcm(config.unshuffle * 2**config.depth, 4)


def image_multiple(config: ModelConfig) -> int:
    """Return the number of pixels that the sides of an image must be a multiple of, so that it fits at every scale."""
    return size_multiple(config) << (config.n_scales - 1)


def context_px(config: ModelConfig) -> int:
    """Return how far from a pixel the input can still change its reconstruction (an upper bound, in pixels)."""
    strides = [config.unshuffle << level for level in range(config.depth + 1)]
    convolutions = 5 * sum(strides)  # two in the encoder, two in the decoder, one that changes the resolution
    return convolutions + sum(strides) + 2 * config.unshuffle  # block alignment of up- and unshuffling, stem, head


def space_to_depth(x: Tensor, block: int) -> Tensor:
    """Turn blocks of pixels into channels: ``(B, C, *S) -> (B, C * block^d, *(S / block))``, 2-D and 3-D.

    `torch.nn.functional.pixel_unshuffle` would mix the depth of a volume into its channels.
    """
    batch, channels, *sides = x.shape
    split = [part for side in sides for part in (side // block, block)]
    x = x.reshape(batch, channels, *split)  # (B, C, S1, block, S2, block, ...)
    outer, inner = range(2, x.ndim, 2), range(3, x.ndim, 2)
    x = x.permute(0, 1, *inner, *outer)  # (B, C, block, block, ..., S1, S2, ...)
    return x.reshape(batch, channels * block ** len(sides), *(side // block for side in sides))


def depth_to_space(x: Tensor, block: int) -> Tensor:
    """Invert `space_to_depth`."""
    batch, channels, *sides = x.shape
    n_dims = len(sides)
    x = x.reshape(batch, channels // block**n_dims, *[block] * n_dims, *sides)
    order = [axis for dim in range(n_dims) for axis in (2 + n_dims + dim, 2 + dim)]
    x = x.permute(0, 1, *order)  # (B, C, S1, block, S2, block, ...)
    return x.reshape(batch, channels // block**n_dims, *(side * block for side in sides))


class ConvBlock(nn.Sequential):
    """Two 3x3 convolutions, each with batch normalisation and ReLU."""

    def __init__(self, spatial_dims: int, n_in: int, n_out: int) -> None:
        conv, norm = CONV[spatial_dims], NORM[spatial_dims]
        super().__init__(
            conv(n_in, n_out, 3, padding=1, bias=False),
            norm(n_out),
            nn.ReLU(),
            conv(n_out, n_out, 3, padding=1, bias=False),
            norm(n_out),
            nn.ReLU(),
        )


class UNet(nn.Module):
    """U-Net on blocks of pixels: ``(B, n_in, *spatial) -> (B, n_out, *spatial)``; before training the answer is 0."""

    def __init__(self, config: ModelConfig, n_in: int, n_out: int, width: int) -> None:
        super().__init__()
        dims, self.block = config.spatial_dims, config.unshuffle
        n_stem = n_in * config.unshuffle**dims
        widths = _level_widths(width, config.depth)
        conv = CONV[dims]
        self.encoders = nn.ModuleList(
            ConvBlock(dims, n_in, n_out) for n_in, n_out in zip([n_stem, *widths], widths, strict=False)
        )
        self.downs = nn.ModuleList(conv(n, n, 3, stride=2, padding=1) for n in widths[:-1])
        self.decoders = nn.ModuleList(ConvBlock(dims, n_low + n_skip, n_skip) for n_skip, n_low in pairwise(widths))
        self.head = conv(widths[0], n_out * config.unshuffle**dims, 3, padding=1)
        nn.init.zeros_(self.head.weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, n_out, *spatial)``."""
        features = space_to_depth(x, self.block)  # (B, C * block^d, *S / block)
        skips = []
        for encode, down in zip(self.encoders, [*self.downs, nn.Identity()], strict=True):
            features = encode(features)
            skips.append(features)
            features = down(features)
        features = skips.pop()
        for decode, skip in zip(reversed(self.decoders), reversed(skips), strict=True):
            features = functional.interpolate(features, scale_factor=2.0, mode="nearest")
            features = decode(torch.cat([features, skip], dim=1))
        return depth_to_space(self.head(features), self.block)


class RepairUNet(UNet):
    """U-Net that predicts what to take away from a damaged image.

    The last convolution starts at zero: before training the reconstruction *is* the input, and training
    only teaches which structures to remove (the identity-anchored view of arXiv 2511.07233).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, config.n_channels, config.n_channels, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the repaired image; ``(B, C, *spatial)`` in and out."""
        return x - super().forward(x)


class DamageHead(UNet):
    """Tells damage from what an image and its repair look like (DRAEM, Zavrtanik et al., ICCV 2021)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, 2 * config.n_channels, 1, config.head_width)
        self.reach_px = context_px(config)

    def forward(self, x: Tensor, x_hat: Tensor) -> Tensor:  # type: ignore[override]
        """Return the log-odds of damage: two times ``(B, C, *spatial)`` in, ``(B, 1, *spatial)`` out."""
        return super().forward(torch.cat([x, x_hat], dim=1))


class BottleneckAutoencoder(nn.Module):
    """The textbook convolutional autoencoder: no skips, everything passes through a small latent."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dims, self.block = config.spatial_dims, config.unshuffle
        n_stem = config.n_channels * config.unshuffle**dims
        widths = _level_widths(config.width, config.depth)
        conv = CONV[dims]
        encoder: list[nn.Module] = [ConvBlock(dims, n_stem, widths[0])]
        for n_in, n_out in pairwise(widths):
            encoder += [conv(n_in, n_in, 3, stride=2, padding=1), ConvBlock(dims, n_in, n_out)]
        decoder: list[nn.Module] = [conv(config.latent_channels, widths[-1], 1)]
        for n_out, n_in in reversed(list(pairwise(widths))):
            decoder += [ConvBlock(dims, n_in, n_out), nn.Upsample(scale_factor=2, mode="nearest")]
        self.encoder = nn.Sequential(*encoder, conv(widths[-1], config.latent_channels, 1))
        self.decoder = nn.Sequential(
            *decoder, ConvBlock(dims, widths[0], widths[0]), conv(widths[0], n_stem, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the reconstruction; ``(B, C, *spatial)`` in and out."""
        latent = self.encoder(space_to_depth(x, self.block))  # (B, latent_channels, *S / multiple)
        reconstruction: Tensor = depth_to_space(self.decoder(latent), self.block)
        return reconstruction


def _level_widths(width: int, depth: int) -> list[int]:
    """Return the channels of every level, finest first: doubled with each halving, up to four times the width."""
    return [min(width * 2**level, 4 * width) for level in range(depth + 1)]
