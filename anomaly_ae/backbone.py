"""Features instead of pixels: a frozen ResNet trunk whose weights file the user has. Nothing is ever downloaded.

The file is a state dict of torchvision or timm saved as safetensors. Depth, widths, groups and the kind of the blocks
follow from names and shapes of its tensors; layer4 and the classifier are not used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from anomaly_ae.config import Config, with_values
from anomaly_ae.errors import ConfigError, ModelFileError
from anomaly_ae.files import parse_tensors, read_at_most

IMAGENET_MEAN, IMAGENET_SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What the published weights expect of images in [0, 1]: torchvision's documentation, "Models and pre-trained weights";
the default of timm, too."""

STRIDE = 8
"""Pixels per cell of the features: the grid of layer2, to which layer1 (4) and layer3 (16) are brought."""

MAX_FEATURES = 256
"""More channels than this are projected to so many: distances survive a random projection, time on a CPU does not."""

SD_FLOOR = 0.1
"""A channel's deviation is never taken smaller than this share of the median one of its layer: a channel that is silent
on normal images must not drown all others at its first sound."""

MAX_BYTES = 2 * 2**30
FIRST_BLOCK = "layer1.0.conv1.weight"
PARTS = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.")
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".tar")
WITHOUT_MEANING: dict[str, dict[str, Any]] = {
    "model": {"unshuffle": 1, "n_scales": 1, "head_width": 0},
    "training": {"ssim": 0.0},
    "scoring": {"ssim": 0.0, "gms": 0.0, "chroma": 0.0, "head": 0.0, "background_sd_px": 0.0},
}
"""Settings that speak of pixels, as they are set for features, which hold several scales by themselves: the model file
tells what was done."""

State = Mapping[str, Tensor]


def read_backbone(config: Config) -> tuple[Config, dict[str, Tensor]]:
    """Read the file of ``model.embed``; return the configuration for features, and the tensors of the trunk.

    In that configuration ``model.embed`` is the file's name and SHA-256, without its path, and `WITHOUT_MEANING` holds.
    Without ``model.embed`` the configuration comes back unchanged, with no tensors.

    Raises
    ------
    ConfigError
        No readable safetensors file, or settings that do not go with features.
    ModelFileError
        A file without a ResNet in it.
    """
    if not config.model.embed:
        return config, {}
    if config.model.spatial_dims != 2:
        raise ConfigError("model.embed needs model.spatial_dims = 2", "the trunk takes flat images", "leave one out")
    path = Path(config.model.embed)
    content = _read_bytes(path)
    tensors = trunk_tensors(_parse(path, content), path.name)
    name = f"{path.name} sha256:{hashlib.sha256(content).hexdigest()}"
    sections = {**WITHOUT_MEANING, "model": {**WITHOUT_MEANING["model"], "embed": name}}
    return with_values(config, **sections), tensors


def trunk_tensors(tensors: State, name: str) -> dict[str, Tensor]:
    """Return the tensors of stem and layers 1 to 3 as float32, under the names of torchvision without any prefix."""
    prefixes = [key.removesuffix(FIRST_BLOCK) for key in tensors if key.endswith(FIRST_BLOCK)]
    if len(prefixes) != 1:
        found = f"under {', '.join(prefixes)}" if prefixes else f"its tensors: {', '.join(sorted(tensors)[:3])}, ..."
        raise _no_resnet(name, f"looked for one tensor '{FIRST_BLOCK}', found {len(prefixes)} ({found})")
    own = {key.removeprefix(prefixes[0]): t for key, t in tensors.items() if key.startswith(prefixes[0])}
    wanted = {key: t.float() for key, t in own.items() if _is_used(key)}
    for key, tensor in wanted.items():
        if not torch.isfinite(tensor).all():
            raise _no_resnet(name, f"'{key}' holds NaN or inf")
    return wanted


class Backbone(nn.Module):
    """Images in [0, 1] become normalised features: ``(B, 1 or 3, H, W) -> (B, n_features, H / 8, W / 8)``.

    Every tensor of it is a buffer, so that no optimiser sees it and no mode changes it. Only ``mean`` and ``sd`` of
    every channel are learned, on normal images.

    Parameters
    ----------
    tensors : mapping
        The trunk, as `trunk_tensors` names it; other names are not looked at.
    n_channels : int
        Channels of the images: 3, or 1, which is repeated.
    seed : int
        Of the random projection.
    """

    def __init__(self, tensors: State, n_channels: int, seed: int) -> None:
        super().__init__()
        if n_channels not in (1, 3):
            raise ConfigError(
                f"model.embed with images of {n_channels} channels", "its networks take 1 or 3", "leave out model.embed"
            )
        own = {key: t for key, t in tensors.items() if _is_used(key)}
        self.conv1 = FrozenConv(own, "conv1", stride=2)
        self.bn1 = FrozenNorm(own, "bn1")
        self.layer1 = _layer(own, "layer1", stride=1)
        self.layer2 = _layer(own, "layer2", stride=2)
        self.layer3 = _layer(own, "layer3", stride=2)
        unknown = sorted(own.keys() - self.state_dict().keys())
        if unknown:
            raise _no_resnet("this file", f"'{unknown[0]}' belongs to another kind of network")
        self.register_buffer("image_mean", torch.tensor(IMAGENET_MEAN).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("image_sd", torch.tensor(IMAGENET_SD).reshape(1, 3, 1, 1), persistent=False)
        self.widths = self._widths()
        n_all = sum(self.widths)
        self.n_features = min(n_all, MAX_FEATURES)
        self.register_buffer("mean", torch.zeros(n_all))
        self.register_buffer("sd", torch.ones(n_all))
        if n_all > MAX_FEATURES:
            self.register_buffer("projection", _projection(n_all, seed))

    def forward(self, x: Tensor) -> Tensor:
        """Return the features, each channel in standard deviations of normal images, projected where they are many."""
        mean, sd = (self.get_buffer(name).reshape(1, -1, 1, 1) for name in ("mean", "sd"))
        z = (self.features(x) - mean) / sd  # (B, sum(widths), H / 8, W / 8)
        if len(mean[0]) > MAX_FEATURES:
            z = functional.conv2d(z, self.get_buffer("projection")[:, :, None, None])
        return z

    def features(self, x: Tensor) -> Tensor:
        """Return the outputs of the three layers on the grid of layer2: ``(B, sum(widths), H / 8, W / 8)``."""
        x = (x.expand(-1, 3, -1, -1) - self.get_buffer("image_mean")) / self.get_buffer("image_sd")
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        fine = self.layer1(x)  # (B, widths[0], H / 4, W / 4)
        middle = self.layer2(fine)
        coarse = self.layer3(middle)  # (B, widths[2], H / 16, W / 16)
        coarse = functional.interpolate(coarse, scale_factor=2.0, mode="bilinear", align_corners=False)
        return torch.cat([functional.avg_pool2d(fine, 2), middle, coarse], dim=1)

    @torch.no_grad()
    def learn(self, crops: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Set mean and deviation of every channel from scaled normal crops (B, C, H, W) and their valid pixels."""
        total = torch.zeros(3, sum(self.widths), dtype=torch.float64)
        for x, valid in crops:
            features = self.features(x).double()
            weight = functional.avg_pool2d(valid.double(), STRIDE)  # (B, 1, H / 8, W / 8)
            sums = [weight.expand_as(features), weight * features, weight * features.square()]
            total += torch.stack([part.sum(dim=(0, 2, 3)) for part in sums]).cpu()
        n, first, second = total
        mean = first / n.clamp_min(1e-6)
        sd = (second / n.clamp_min(1e-6) - mean.square()).clamp_min(0).sqrt()
        floored = [part.clamp_min(SD_FLOOR * float(part.median()) + 1e-6) for part in sd.split(self.widths)]
        self.get_buffer("mean").copy_(mean)
        self.get_buffer("sd").copy_(torch.cat(floored))

    @property
    def context_px(self) -> int:
        """How far from a cell's own pixels the image can still change its features (an upper bound, in pixels)."""
        reach, stride = 0, 1
        convolutions = [m for part in (self.conv1, self.layer1, self.layer2, self.layer3) for m in _main_path(part)]
        for index, convolution in enumerate(convolutions):
            reach += convolution.padding * stride
            stride *= convolution.stride
            if index == 0:  # the pooling behind the stem: 3 x 3 with stride 2
                reach, stride = reach + stride, stride * 2
        return reach + 2 * stride  # cells of layer3 begin at multiples of 16 px, and are interpolated

    @torch.no_grad()
    def _widths(self) -> list[int]:
        """Return the channels of the three layers, and so try out whether all shapes fit together."""
        try:
            self.features(torch.zeros(1, 3, 32, 32))
        except RuntimeError as error:
            raise _no_resnet("this file", f"its tensors do not fit together: {error}") from error
        layers = (self.layer1, self.layer2, self.layer3)
        return [_main_path(layer)[-1].get_buffer("weight").shape[0] for layer in layers]


class FrozenConv(nn.Module):
    """A convolution without bias that cannot be trained; groups follow from the channels that come in."""

    def __init__(self, tensors: State, name: str, stride: int = 1) -> None:
        super().__init__()
        weight = _get(tensors, f"{name}.weight")
        if weight.ndim != 4:
            raise _no_resnet("this file", f"'{name}.weight' has shape {tuple(weight.shape)}, looked for (n, n, k, k)")
        self.stride, self.padding = stride, weight.shape[-1] // 2
        self.register_buffer("weight", weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolved features."""
        weight = self.get_buffer("weight")
        n_groups = x.shape[1] // weight.shape[1]
        return functional.conv2d(x, weight, stride=self.stride, padding=self.padding, groups=n_groups)


class FrozenNorm(nn.Module):
    """Batch normalisation with the statistics of the file, in training, too."""

    def __init__(self, tensors: State, name: str) -> None:
        super().__init__()
        for part in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(part, _get(tensors, f"{name}.{part}"))

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised features."""
        mean, var, weight, bias = (self.get_buffer(n) for n in ("running_mean", "running_var", "weight", "bias"))
        return functional.batch_norm(x, mean, var, weight, bias)


class Block(nn.Module):
    """A residual block: two 3x3 convolutions ("basic"), or 1x1, 3x3, 1x1 ("bottleneck"), and the way around them."""

    def __init__(self, tensors: State, name: str, stride: int) -> None:
        super().__init__()
        is_basic = f"{name}.conv3.weight" not in tensors
        strides = (stride, 1) if is_basic else (1, stride, 1)  # the first 3x3 halves the resolution
        convs = [FrozenConv(tensors, f"{name}.conv{i}", s) for i, s in enumerate(strides, start=1)]
        norms = [FrozenNorm(tensors, f"{name}.bn{i}") for i in range(1, len(strides) + 1)]
        for i, (conv, norm) in enumerate(zip(convs, norms, strict=True), start=1):
            self.add_module(f"conv{i}", conv)
            self.add_module(f"bn{i}", norm)
        self.n_convolutions = len(convs)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or f"{name}.downsample.0.weight" in tensors:
            conv = FrozenConv(tensors, f"{name}.downsample.0", stride)
            self.downsample = nn.Sequential(conv, FrozenNorm(tensors, f"{name}.downsample.1"))

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of the block."""
        inside = x
        for i in range(1, self.n_convolutions + 1):
            if i > 1:
                inside = functional.relu(inside)
            inside = self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(inside))
        return functional.relu(inside + self.downsample(x))


def _layer(tensors: State, name: str, stride: int) -> nn.Sequential:
    blocks = [Block(tensors, f"{name}.0", stride)]
    while f"{name}.{len(blocks)}.conv1.weight" in tensors:
        blocks.append(Block(tensors, f"{name}.{len(blocks)}", 1))
    return nn.Sequential(*blocks)


def _main_path(part: nn.Module) -> list[FrozenConv]:
    named = part.named_modules()
    return [m for name, m in named if isinstance(m, FrozenConv) and "downsample" not in name]


def _projection(n_all: int, seed: int) -> Tensor:
    """Return `MAX_FEATURES` random directions at right angles to each other: (MAX_FEATURES, n_all)."""
    random = torch.randn(n_all, MAX_FEATURES, generator=Generator().manual_seed(seed), dtype=torch.float64)
    directions: Tensor = torch.linalg.qr(random).Q
    return directions.T.float().contiguous()


def _is_used(key: str) -> bool:
    return key.startswith(PARTS) and not key.endswith("num_batches_tracked")


def _get(tensors: State, key: str) -> Tensor:
    if key not in tensors:
        raise _no_resnet("this file", f"looked for '{key}' and did not find it")
    return tensors[key]


def _no_resnet(name: str, why: str) -> ModelFileError:
    return ModelFileError(
        f"model.embed: {name} holds no ResNet that can be used",
        why,
        "give the state dict of a ResNet, ResNeXt or Wide ResNet of torchvision or timm (docs/how-to/own-backbone.md)",
    )


def _read_bytes(path: Path) -> bytes:
    if path.suffix.lower() in PICKLES:
        raise ConfigError(
            f"model.embed = {path}",
            "such a file can run any program when it is opened",
            'convert it where you trust it: safetensors.torch.save_file(torch.load("FILE.pth", weights_only=True), '
            '"FILE.safetensors")',
        )
    try:
        return read_at_most(path, MAX_BYTES)
    except OSError as error:
        raise ConfigError(f"model.embed: cannot read {path}", error.strerror or str(error), "check the path") from error


def _parse(path: Path, content: bytes) -> dict[str, Tensor]:
    try:
        return parse_tensors(content)
    except ValueError as error:
        raise ConfigError(f"model.embed: {path} is no safetensors file", str(error), "give one") from error
