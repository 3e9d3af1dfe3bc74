"""Damage for training: reproducible, marked where it is, and anchored by noise that stays."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor

from anomaly_ae import corruption
from anomaly_ae.config import CorruptionConfig
from anomaly_ae.corruption import FILLS, corrupt

CONFIG = CorruptionConfig()
SHAPES_ONLY = replace(CONFIG, shape_probability=1.0, coarse_noise_probability=0.0, gaussian_noise_sd=0.0)
COARSE_ONLY = replace(
    CONFIG, shape_probability=0.0, coarse_noise_probability=1.0, coarse_noise_sd=0.2, gaussian_noise_sd=0.0
)
SHAPES = [(3, 1, 32, 48), (1, 3, 64, 64), (2, 5, 16, 16), (2, 1, 16, 16, 24), (2, 3, 32, 16, 16)]


def normal_images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=Generator().manual_seed(9))


def damage(x: Tensor, config: CorruptionConfig = CONFIG, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    return corrupt(x, config, Generator().manual_seed(seed))


@pytest.mark.parametrize("variety", ["plain", "rich"])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_and_ranges(shape: tuple[int, ...], variety: str) -> None:
    x = normal_images(*shape)
    for seed in range(5):
        damaged, target, mask = damage(x, replace(CONFIG, variety=variety), seed=seed)
        assert damaged.shape == target.shape == x.shape
        assert mask.shape == (shape[0], 1, *shape[2:])
        assert damaged.dtype == target.dtype == mask.dtype == torch.float32
        assert 0 <= mask.min() <= mask.max() <= 1
        assert (damaged - 0.5).abs().max() < 3  # absurd values would teach nothing
        assert torch.isfinite(damaged).all()


def test_same_generator_same_damage() -> None:
    x = normal_images(4, 1, 32, 32)
    before = torch.random.get_rng_state()
    first, again, other = damage(x, seed=1), damage(x, seed=1), damage(x, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(not torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert torch.equal(torch.random.get_rng_state(), before)  # the generator is the only source


def test_images_stay_as_they_are() -> None:
    x = normal_images(4, 1, 32, 32)
    before = x.clone()
    damage(x)
    assert torch.equal(x, before)


def test_images_of_a_batch_are_damaged_differently() -> None:
    x = normal_images(1, 1, 64, 64).expand(8, -1, -1, -1)
    masks = damage(x, SHAPES_ONLY)[2].flatten(1)
    assert len({tuple(mask.tolist()) for mask in masks}) >= 7


@pytest.mark.parametrize("shape", SHAPES)
def test_noise_is_kept_in_the_target_and_shared(shape: tuple[int, ...]) -> None:
    x = normal_images(*shape)
    config = replace(CONFIG, shape_probability=1.0, gaussian_noise_sd=0.1)
    damaged, target, mask = damage(x, config)
    without, clean, mask_without = damage(x, replace(config, gaussian_noise_sd=0.0))
    assert torch.equal(clean, x)
    assert torch.equal(mask, mask_without)
    noise = target - x
    assert noise.std() > 0.001
    assert (damaged - without - noise).abs().max() < 1e-6


def test_noise_is_of_all_strengths_up_to_its_deviation() -> None:
    x = normal_images(200, 1, 32, 32)
    sd = 0.1
    deviations = (damage(x, replace(CONFIG, gaussian_noise_sd=sd))[1] - x).flatten(1).std(dim=1)
    assert deviations.max() < 1.1 * sd
    expected = torch.linspace(0, sd, 5)  # uniform
    found = deviations.quantile(torch.linspace(0, 1, 5))
    assert (found - expected).abs().max() < 0.2 * sd


@pytest.mark.parametrize("shape", [(3, 2, 32, 48), (2, 1, 16, 16, 16)])
def test_probability_zero_leaves_nothing_but_noise(shape: tuple[int, ...]) -> None:
    x = normal_images(*shape)
    config = replace(CONFIG, shape_probability=0.0, coarse_noise_probability=0.0, gaussian_noise_sd=0.1)
    damaged, target, mask = damage(x, config)
    assert torch.equal(damaged, target)
    assert not mask.any()
    assert not torch.equal(target, x)


@pytest.mark.parametrize("shape", [(40, 1, 48, 48), (20, 3, 32, 32), (6, 1, 16, 24, 16)])
def test_mask_bounds_what_shapes_change(shape: tuple[int, ...]) -> None:
    x = normal_images(*shape)
    damaged, target, mask = damage(x, SHAPES_ONLY)
    change = (damaged - target).abs().amax(dim=1, keepdim=True)
    # Every shape moves the image by its opacity towards a fill; images and fills differ by less than 3.
    assert (change <= 3 * SHAPES_ONLY.max_shapes * mask + 1e-6).all()
    assert change[mask < 1e-4].max() < 3 * SHAPES_ONLY.max_shapes * 1e-4
    assert change[mask > 0.5].mean() > 0.05
    assert change[(mask > 0.1) & (mask < 0.4)].mean() > 0.01  # half transparent ones too
    assert change[mask > 0.5].mean() > 20 * change[mask < 0.01].mean()


def test_mask_marks_coarse_noise_above_half_its_deviation() -> None:
    damaged, target, mask = damage(normal_images(20, 3, 48, 48), COARSE_ONLY)
    change = (damaged - target).abs().amax(dim=1, keepdim=True)
    clear = (change - COARSE_ONLY.coarse_noise_sd / 2).abs() > 1e-5  # not a matter of rounding
    assert torch.equal(mask[clear], (change > COARSE_ONLY.coarse_noise_sd / 2)[clear].float())
    assert 0.1 < mask.mean() < 1


def test_coarse_noise_has_its_deviation_and_is_coarse() -> None:
    pairs = [damage(normal_images(20, 1, 64, 64), COARSE_ONLY, seed)[:2] for seed in range(8)]
    noise = torch.cat([damaged - target for damaged, target in pairs])[:, 0]
    assert noise.std() == pytest.approx(COARSE_ONLY.coarse_noise_sd, rel=0.15)  # borders repeat: a little more
    assert (noise[:, 1:] - noise[:, :-1]).std() < 0.4 * noise.std()  # of white noise it would be 1.4 times


def test_share_of_images_with_coarse_noise() -> None:
    x = normal_images(400, 1, 16, 16)
    damaged, target, _ = damage(x, replace(COARSE_ONLY, coarse_noise_probability=0.3))
    share = (damaged != target).flatten(1).any(dim=1).float().mean()
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / 400) ** 0.5


@pytest.mark.parametrize("side", [64, 128])
def test_small_and_large_shapes_occur_between_their_limits(side: int) -> None:
    config = replace(SHAPES_ONLY, max_shapes=1, min_size_px=1.0, max_size_share=0.4)
    masks = torch.cat([damage(normal_images(50, 1, side, side), config, seed)[2] for seed in range(4)])
    peaks = masks.flatten(1).amax(dim=1)
    areas = (masks > 0.5 * peaks[:, None, None, None]).flatten(1).sum(dim=1)[peaks > 0.1]
    largest = torch.pi * (config.max_size_share * side) ** 2
    assert len(areas) > 80
    assert areas.min() <= 20  # a dot of a few pixels
    assert 0.2 * largest < areas.max() < 1.5 * largest  # the warp adds to it
    assert areas.float().log().std() > 0.8  # and everything between


def test_larger_probability_more_damage() -> None:
    x = normal_images(200, 1, 32, 32)
    shares = []
    for probability in (0.1, 0.5, 1.0):
        mask = damage(x, replace(SHAPES_ONLY, shape_probability=probability, max_shapes=2))[2]
        shares.append(float((mask.flatten(1).amax(dim=1) > 0.05).float().mean()))
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] > 0.9


def test_every_kind_of_fill_occurs() -> None:
    """Brighter, darker, flat and structured damage: no single rule tells it from the normal image."""
    rows = torch.linspace(0, 1, 64)[:, None]
    x = (0.5 + 0.3 * torch.sin(rows * 40)).expand(40, 1, 64, 64).contiguous()
    config = replace(SHAPES_ONLY, max_shapes=1, max_size_share=0.4)
    batches = [damage(x, config, seed) for seed in range(20)]  # one kind of fill each
    damaged, target, mask = (torch.cat(parts) for parts in zip(*batches, strict=True))
    solid = (mask > 0.5).flatten(1)
    large = solid.sum(dim=1) > 150
    change = (damaged - target).flatten(1)
    means = torch.stack([c[s].mean() for c, s in zip(change[large], solid[large], strict=True)])
    spreads = torch.stack([c[s].std() for c, s in zip(change[large], solid[large], strict=True)])
    assert len(means) > 20
    assert means.min() < -0.1 < 0.1 < means.max()
    assert spreads.min() < 0.03  # a plain shade keeps the structure
    assert spreads.max() > 0.2  # a foreign piece replaces it


@pytest.mark.parametrize("fill", FILLS["rich"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_fill_changes_what_is_inside_and_only_that(
    shape: tuple[int, ...], fill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FILLS, "rich", (fill,))
    x = normal_images(*shape)
    damaged, _, mask = damage(x, replace(SHAPES_ONLY, variety="rich", max_shapes=4))
    assert torch.equal(damaged[(mask == 0).expand_as(x)], x[(mask == 0).expand_as(x)])
    assert (damaged - x).abs().max() > 0.02


@pytest.mark.parametrize("kind", ["ellipsoid", "box", "diamond", "scratch", "dots", "blotch"])
def test_every_kind_of_shape_covers_a_part(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(corruption.SHAPES, "rich", (kind,))
    x = normal_images(64, 1, 64, 64)
    mask = damage(x, replace(SHAPES_ONLY, variety="rich", max_shapes=1))[2]
    share = (mask > 0.1).float().mean()
    assert 0.002 < share < 0.5
    longest = (mask > 0.1).flatten(2).any(dim=2).float().mean()
    assert longest > 0.5, "most images have some"


def test_a_warp_moves_pixels_by_as_much_as_it_says() -> None:
    x = normal_images(1, 2, 16, 24)
    shift = torch.zeros(1, 2, 16, 24)
    shift[:, 0], shift[:, 1] = 3, -2  # three rows further down, two columns further left
    warped = corruption._warped(x, shift)
    assert torch.allclose(warped[:, :, :13, 2:], x[:, :, 3:, :-2], atol=1e-4)
