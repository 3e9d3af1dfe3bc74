"""The networks: shapes, what they can see, and that nobody else in the batch changes a result."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from anomaly_ae.config import ModelConfig
from anomaly_ae.model import build_autoencoder, context_px, depth_to_space, size_multiple, space_to_depth

ARCHITECTURES = ("unet", "bottleneck")


def small(architecture: str = "unet", spatial_dims: int = 2, **values: int) -> ModelConfig:
    return ModelConfig(
        architecture=architecture, spatial_dims=spatial_dims, **{"width": 4, "latent_channels": 3} | values
    )


def image(config: ModelConfig, *blocks: int, n: int = 2) -> Tensor:
    """Noise whose sides are so many times the smallest side."""
    sides = [size_multiple(config) * block for block in blocks]
    return torch.rand(n, config.n_channels, *sides, generator=torch.Generator().manual_seed(1))


def randomised(config: ModelConfig) -> nn.Module:
    """A network in evaluation mode with random numbers everywhere, also in its head and its statistics."""
    network = build_autoencoder(config).eval()
    generator = torch.Generator().manual_seed(2)
    for name, values in network.state_dict().items():
        if values.is_floating_point():
            noise = torch.rand(values.shape, generator=generator)
            values.copy_(noise + 0.5 if name.endswith("running_var") else (noise - 0.5) * 0.6)
    return network


# --- pixels into channels and back ---


@pytest.mark.parametrize("block", [1, 2, 3, 4])
@pytest.mark.parametrize("n_dims", [2, 3])
def test_there_and_back(block: int, n_dims: int) -> None:
    sides = [block * (2 + axis) for axis in range(n_dims)]
    x = torch.rand(2, 3, *sides, generator=torch.Generator().manual_seed(1))
    deep = space_to_depth(x, block)
    assert deep.shape == (2, 3 * block**n_dims, *(2 + axis for axis in range(n_dims)))
    assert torch.equal(depth_to_space(deep, block), x)


@pytest.mark.parametrize("block", [2, 3])
def test_in_two_dimensions_it_is_torchs(block: int) -> None:
    x = torch.rand(2, 3, 4 * block, 5 * block, generator=torch.Generator().manual_seed(1))
    assert torch.equal(space_to_depth(x, block), functional.pixel_unshuffle(x, block))
    deep = torch.rand(2, 3 * block**2, 4, 5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(depth_to_space(deep, block), functional.pixel_shuffle(deep, block))


def test_in_three_dimensions_every_channel_is_one_place_of_the_block() -> None:
    block = 2
    x = torch.arange(2 * 4 * 6 * 8).reshape(1, 2, 4, 6, 8)
    deep = space_to_depth(x, block)
    for channel, a, b, c in product(range(2), *[range(block)] * 3):
        index = channel * block**3 + a * block**2 + b * block + c
        assert torch.equal(deep[0, index], x[0, channel, a::block, b::block, c::block])


# --- shapes ---


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("n_channels", [1, 3, 5])
@pytest.mark.parametrize(("unshuffle", "depth"), [(1, 1), (2, 3), (3, 1), (4, 2)])
def test_shape_in_is_shape_out(architecture: str, n_channels: int, unshuffle: int, depth: int) -> None:
    config = small(architecture, n_channels=n_channels, unshuffle=unshuffle, depth=depth)
    for x in (image(config, 1, 3), image(config, 2, 2)):
        assert build_autoencoder(config)(x).shape == x.shape


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("unshuffle", "depth"), [(1, 1), (2, 2)])
def test_volumes_too(architecture: str, unshuffle: int, depth: int) -> None:
    config = small(architecture, 3, n_channels=2, unshuffle=unshuffle, depth=depth)
    x = image(config, 1, 2, 3)
    assert build_autoencoder(config)(x).shape == x.shape


@pytest.mark.parametrize(("unshuffle", "depth"), list(product([1, 2, 3, 4], [1, 3, 5])))
def test_sides_are_whole_blocks_for_network_and_error_scales(unshuffle: int, depth: int) -> None:
    multiple = size_multiple(small(unshuffle=unshuffle, depth=depth))
    assert multiple % (unshuffle * 2**depth) == 0
    assert multiple % 4 == 0  # gradients are compared on images halved twice
    assert multiple <= 4 * unshuffle * 2**depth


# --- behaviour ---


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("training", [True, False])
def test_unet_starts_as_the_identity(spatial_dims: int, training: bool) -> None:
    config = small("unet", spatial_dims, n_channels=2, depth=2)
    x = image(config, *[2] * spatial_dims)
    assert torch.equal(build_autoencoder(config).train(training)(x), x)


def test_unet_learns_from_the_start() -> None:
    config = small("unet")
    network = build_autoencoder(config)
    network(image(config, 2, 2)).square().sum().backward()
    head = network.get_submodule("head")
    assert isinstance(head, nn.Conv2d)
    assert head.weight.grad is not None
    assert head.weight.grad.abs().max() > 0


def test_bottleneck_passes_everything_through_its_latent() -> None:
    config = small("bottleneck", latent_channels=3)
    network = randomised(config)
    latent = network.get_submodule("encoder")(space_to_depth(image(config, 2, 3), config.unshuffle))
    assert latent.shape == (2, 3, 2, 3)
    blind = image(config, 2, 3)
    network.get_submodule("encoder").register_forward_hook(lambda _module, _input, output: output * 0)
    assert torch.equal(network(blind), network(1 - blind))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_nobody_else_in_the_batch_matters(architecture: str, spatial_dims: int) -> None:
    config = small(architecture, spatial_dims, n_channels=2, depth=2)
    network = randomised(config)
    x = image(config, *[2] * spatial_dims, n=3)
    x[1] *= 100
    with torch.inference_mode():
        together = network(x)
        alone = torch.cat([network(one[None]) for one in x])
    scale = together.abs().amax(dim=tuple(range(1, x.ndim)), keepdim=True)
    assert ((together - alone) / scale).abs().max() < 1e-5
    assert (together - x).abs().max() > 0.01


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_layer_looks_at_the_whole_image(architecture: str) -> None:
    """Statistics over space would make a map depend on the tile that it was computed in."""
    forbidden = (nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm, nn.AdaptiveAvgPool2d, nn.Dropout)
    assert not [m for m in build_autoencoder(small(architecture)).modules() if isinstance(m, forbidden)]


def transparent(config: ModelConfig) -> nn.Module:
    """A network that hides nothing: weights are positive and offsets zero, so every input reaches all it can reach."""
    network = build_autoencoder(config).eval().double()
    for name, values in network.state_dict().items():
        if values.ndim > 1:
            values.fill_(1 / values[0].numel())
        elif name.endswith("bias"):
            values.zero_()
    return network


def reach_px(config: ModelConfig, n_context: float, offset: int) -> int:
    """How far from one changed pixel the reconstruction changes, largest over the axes."""
    multiple = size_multiple(config)
    side = -(-int(2 * n_context * context_px(config)) // multiple) * multiple + 2 * multiple
    x = torch.zeros(1, 1, *[side] * config.spatial_dims, dtype=torch.float64)
    centre = side // 2 // multiple * multiple + offset
    x[0, 0, *[centre] * config.spatial_dims] = 1
    with torch.inference_mode():
        changed = transparent(config)(x)[0, 0].nonzero()
    assert changed.min() > 0  # the image was large enough to see all of it
    return int((changed - centre).abs().max())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("unshuffle", "depth"), [(1, 1), (2, 1), (3, 1), (1, 3), (2, 2), (2, 3), (4, 1)])
def test_context_is_an_upper_bound_and_no_wild_one(architecture: str, unshuffle: int, depth: int) -> None:
    config = small(architecture, unshuffle=unshuffle, depth=depth)
    last = unshuffle * 2**depth - 1
    reach = max(reach_px(config, 1.05, offset) for offset in (0, last // 2, last))
    assert 0.5 * context_px(config) < reach <= context_px(config)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_context_of_volumes(architecture: str) -> None:
    config = small(architecture, 3, unshuffle=1, depth=1)
    assert 0.5 * context_px(config) < reach_px(config, 0.8, 1) <= context_px(config)
