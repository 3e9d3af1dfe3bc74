"""The one path from numbers to map to score, step by step against plain formulas."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Generator, Tensor, nn
from torch.nn import functional

from anomaly_ae.config import MEASURES, Config, IntensityConfig, ScoringConfig, with_values
from anomaly_ae.errors import DataError
from anomaly_ae.measures import (
    ErrorMeasures,
    GaussianSmoothing,
    gradient_dissimilarity,
    gradient_magnitude,
    structural_similarity,
)
from anomaly_ae.prepare import Geometry, prepare, resample, to_image_grid
from anomaly_ae.records import FloatArray, Image
from anomaly_ae.scoring import (
    FAINT,
    N_COLUMNS,
    N_CONTEXT_BINS,
    N_POSITIONS,
    AnomalyMapper,
    IntensityScale,
    Standardise,
    image_score,
    intensity_limits,
    map_in_windows,
    shrunk,
    spread_limits,
)

HEADROOM = Config().intensity.headroom

BY_CHANNEL = tuple(name for name in MEASURES if name not in ("chroma", "head"))
"""Measures that are a mean over the channels."""


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=Generator().manual_seed(seed))


def small_config(**sections: dict[str, Any]) -> Config:
    """All error measures, and a network that takes milliseconds."""
    weights = dict.fromkeys(MEASURES, 0.5)
    model = {"width": 4, "depth": 1, "latent_channels": 3, "head_width": 4}
    values = {"model": model, "scoring": {"standardise": "context", **weights}}
    for section, keys in sections.items():
        values[section] = {**values.get(section, {}), **keys}
    return with_values(Config(), **values)


def random_mapper(config: Config) -> AnomalyMapper:
    """A mapper in evaluation mode with random numbers wherever there is something to learn."""
    mapper = AnomalyMapper(config).eval()
    generator = Generator().manual_seed(2)
    head = mapper.compare.head
    for name, values in [*mapper.autoencoder.state_dict().items(), *(head.state_dict().items() if head else [])]:
        if values.is_floating_point():
            noise = torch.rand(values.shape, generator=generator)
            values.copy_(noise + 0.5 if name.endswith("running_var") else (noise - 0.5) * 0.4)
    for name, low, high in (("mean", 0.0, 0.2), ("sd", 0.05, 0.2)):
        buffer = mapper.standardise.get_buffer(name)
        buffer.copy_(torch.rand(buffer.shape, generator=generator) * (high - low) + low)
    mapper.standardise.get_buffer("activity").copy_(torch.linspace(0.01, 0.4, N_CONTEXT_BINS))
    unit = mapper.compare.get_buffer("unit")
    unit.copy_(torch.rand(unit.shape, generator=generator) + 0.1)
    return mapper


def blobs(*shape: int, seed: int = 0) -> Tensor:
    """A ragged mask with holes: (1, 1, *shape)."""
    coarse = np.random.default_rng(seed).normal(size=(1, *(max(2, side // 6) for side in shape)))
    return torch.from_numpy(resample(coarse, shape)[None] > -0.2)


def everywhere(raw: Tensor) -> Tensor:
    return torch.ones(raw.shape[0], 1, *raw.shape[2:], dtype=torch.bool)


def limits_for(raw: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    return torch.tensor([low, high], dtype=torch.float64).expand(raw.shape[0], raw.shape[1], 2)


# --- intensity ---


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [
        (60_000, 60_010, torch.int32),  # 16 bits in the type that torch calculates with
        (-1000, 400, torch.int16),
        (30_000, 30_007, torch.float32),
        (2**31, 2**31 + 100, torch.int64),
        (0, 255, torch.uint8),
    ],
)
def test_scale_is_exact_far_from_zero(low: int, high: int, dtype: torch.dtype) -> None:
    raw = torch.arange(low, high + 1).to(dtype).reshape(1, 1, 1, -1)
    x = IntensityScale(HEADROOM)(raw, everywhere(raw), limits_for(raw, low, high))
    expected = np.arange(high - low + 1) / (high - low)
    assert x.dtype == torch.float32
    assert x.flatten().numpy() == pytest.approx(expected, abs=1e-7)
    assert (x.flatten().diff() > 0).all()


@pytest.mark.parametrize("headroom", [0.0, 0.5, 3.0])
def test_headroom_is_where_clamping_starts(headroom: float) -> None:
    raw = torch.tensor([-1e30, -100.0, -headroom, 0.0, 1.0, 1 + headroom, 100.0, 1e30]).reshape(1, 1, 1, -1)
    x = IntensityScale(headroom)(raw, everywhere(raw), limits_for(raw)).flatten().tolist()
    assert x == pytest.approx([-headroom, -headroom, -headroom, 0, 1, 1 + headroom, 1 + headroom, 1 + headroom])


def test_every_image_and_channel_has_its_own_limits() -> None:
    raw = rand(2, 3, 4, 5)
    limits = torch.stack([rand(2, 3, seed=1) - 1, rand(2, 3, seed=2) + 1], dim=-1).double()
    x = IntensityScale(10.0)(raw, everywhere(raw), limits)
    for image, channel in product(range(2), range(3)):
        low, high = limits[image, channel].tolist()
        assert x[image, channel].numpy() == pytest.approx((raw[image, channel].numpy() - low) / (high - low), abs=1e-6)


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), -1e30])
def test_outside_the_mask_everything_is_zero(garbage: float) -> None:
    valid = blobs(20, 30)
    raw = torch.where(valid, rand(1, 2, 20, 30) + 1, torch.tensor(garbage))
    x = IntensityScale(HEADROOM)(raw, valid, limits_for(raw, 0, 2))
    assert (x[~valid.expand_as(x)] == 0).all()
    assert (x[valid.expand_as(x)] > 0.4).all()


def test_limits_of_an_image_are_the_percentiles_inside_its_mask() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 4096, (2, 30, 40)).astype(np.uint16)
    valid = rng.random((30, 40)) < 0.5
    config = IntensityConfig(low_percentile=2.0, high_percentile=95.0)
    for mask in (None, valid):
        found = intensity_limits(pixels, mask, config)
        inside = [p.ravel() if mask is None else p[mask] for p in pixels]
        assert found.shape == (2, 2)
        assert found == pytest.approx(np.array([np.percentile(p.astype(float), [2, 95]) for p in inside]))
    with pytest.raises(DataError, match="valid pixel"):
        intensity_limits(pixels, np.zeros((30, 40), bool), config)


def test_constant_image_divides_by_no_zero() -> None:
    assert spread_limits(np.array([[5.0, 5.0], [1.0, 3.0]])).tolist() == [[5.0, 6.0], [1.0, 3.0]]


# --- error measures ---


def brute_blur(image: FloatArray, sd: float) -> FloatArray:
    """Gaussian of the pixels that exist, weighted by their distance up to 3 deviations along every axis."""
    reach = int(np.ceil(3 * sd))
    result = np.zeros_like(image)
    for centre in np.ndindex(*image.shape):
        window = [
            range(max(0, c - reach), min(side, c + reach + 1)) for c, side in zip(centre, image.shape, strict=True)
        ]
        places = np.ix_(*window)
        squared = sum(np.ix_(*[(np.array(w) - c) ** 2.0 for w, c in zip(window, centre, strict=True)]))
        weights = np.exp(-0.5 * squared / sd**2)
        result[centre] = (weights * image[places]).sum() / weights.sum()
    return result


@pytest.mark.parametrize("shape", [(14, 19), (7, 8, 9)])
def test_ssim_is_the_papers(shape: tuple[int, ...]) -> None:
    x, y = rand(*shape, seed=1), (0.3 + 0.5 * rand(*shape, seed=1) + 0.2 * rand(*shape, seed=2))
    found = structural_similarity(x[None, None], y[None, None], GaussianSmoothing(1.5))[0, 0]
    a, b = x.double().numpy(), y.double().numpy()
    mean_a, mean_b = brute_blur(a, 1.5), brute_blur(b, 1.5)
    var_a, var_b = brute_blur(a * a, 1.5) - mean_a**2, brute_blur(b * b, 1.5) - mean_b**2
    covariance = brute_blur(a * b, 1.5) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    expected = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    expected /= (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    assert found.numpy() == pytest.approx(expected, abs=1e-4)
    assert expected.std() > 0.01


@pytest.mark.parametrize("n_channels", [1, 3])
@pytest.mark.parametrize("shape", [(24, 32), (12, 8, 16)])
def test_every_measure_is_zero_on_equal_images_and_positive_elsewhere(n_channels: int, shape: tuple[int, ...]) -> None:
    compare = ErrorMeasures(replace(ScoringConfig(), **dict.fromkeys(BY_CHANNEL, 1.0)))
    x, y = rand(2, n_channels, *shape), rand(2, n_channels, *shape, seed=1)
    valid = torch.ones(2, 1, *shape, dtype=torch.bool)
    for name in BY_CHANNEL:
        same, other = compare.measure(name, x, x, valid), compare.measure(name, x, y, valid)
        assert same.shape == (2, 1, *shape)
        assert same.abs().max() < 1e-5
        assert other.mean() > 0.01
        channels = [compare.measure(name, x[:, [c]], y[:, [c]], valid) for c in range(n_channels)]
        assert torch.allclose(other, torch.cat(channels, dim=1).mean(dim=1, keepdim=True), atol=1e-5)


def test_chroma_is_what_sets_the_channels_of_the_error_apart() -> None:
    compare = ErrorMeasures(replace(ScoringConfig(), chroma=1.0))
    x, y = rand(2, 3, 24, 32), rand(2, 3, 24, 32, seed=1)
    found = compare.measure("chroma", x, y, everywhere(x))
    assert found[:, 0].numpy() == pytest.approx((x - y).numpy().std(axis=1), abs=1e-6)
    brighter = compare.measure("chroma", x, x + 0.2, everywhere(x))
    assert brighter.abs().max() < 1e-6  # and of the right hue


def test_equal_images_have_no_gradient_dissimilarity_at_all() -> None:
    x = rand(1, 1, 32, 32)
    assert gradient_dissimilarity(x, x).abs().max() < 1e-6
    flat = torch.zeros(1, 1, 32, 32)
    assert gradient_dissimilarity(flat, flat + 0.7).abs().max() == 0  # a shift of grey has no gradient


def brute_gradient(image: FloatArray) -> FloatArray:
    """Half the difference of the neighbours; outside, the outermost pixel goes on."""
    padded = np.pad(image, 1, mode="edge")
    inner = (slice(1, -1),) * image.ndim
    total = np.zeros_like(image)
    for axis in range(image.ndim):
        total += ((np.roll(padded, -1, axis) - np.roll(padded, 1, axis))[inner] / 2) ** 2
    return np.sqrt(total)


@pytest.mark.parametrize("shape", [(10, 13), (5, 6, 7)])
def test_gradient_magnitude(shape: tuple[int, ...]) -> None:
    x = rand(*shape)
    assert gradient_magnitude(x[None, None])[0, 0].numpy() == pytest.approx(brute_gradient(x.numpy()), abs=1e-6)


def brute_pool(image: FloatArray, block: int) -> FloatArray:
    split = image.reshape([part for side in image.shape for part in (side // block, block)])
    return split.mean(axis=tuple(range(1, split.ndim, 2)))


@pytest.mark.parametrize("shape", [(16, 24), (8, 12, 8)])
def test_gradient_dissimilarity_is_the_mean_over_scales(shape: tuple[int, ...]) -> None:
    x, y = rand(*shape, seed=1), rand(*shape, seed=2)
    constant = 0.02**2
    total = np.zeros(shape)
    for block in (1, 2, 4):
        a, b = (brute_gradient(brute_pool(image.double().numpy(), block)) for image in (x, y))
        error = 1 - (2 * a * b + constant) / (a**2 + b**2 + constant)
        total += resample(error[np.newaxis], shape)[0]
    found = gradient_dissimilarity(x[None, None], y[None, None])[0, 0].numpy()
    assert found == pytest.approx(total / 3, abs=1e-4)


def test_measures_add_up_in_their_units() -> None:
    config = replace(ScoringConfig(), l1=0.5, l2=0.0, ssim=2.0, gms=0.25, chroma=0.0, background_sd_px=0.0)
    compare = ErrorMeasures(config)
    compare.get_buffer("unit").copy_(torch.tensor([0.1, 0.2, 0.4]))
    x, y = rand(1, 2, 16, 16), rand(1, 2, 16, 16, seed=1)
    valid = torch.ones(1, 1, 16, 16, dtype=torch.bool)
    l1, l2, ssim, gms = (compare.measure(name, x, y, valid) for name in BY_CHANNEL)
    assert torch.allclose(compare(x, y, valid), 5 * l1 + 10 * ssim + 0.625 * gms, atol=1e-5)
    assert torch.allclose(l1[0, 0], (x - y).abs().mean(dim=1)[0])
    assert torch.allclose(l2[0, 0], (x - y).square().mean(dim=1)[0])


def test_residual_ignores_what_is_smooth_and_what_is_not_valid() -> None:
    compare = ErrorMeasures(replace(ScoringConfig(), background_sd_px=4.0))
    x = rand(1, 1, 64, 64)
    valid = torch.ones(1, 1, 64, 64, dtype=torch.bool)
    valid[..., :20] = False
    lighting = torch.linspace(0, 0.2, 64).expand(1, 1, 64, 64)
    assert compare.residual(x, x + lighting, valid)[..., 16:-16, 40:48].abs().max() < 1e-3
    spot = torch.zeros(1, 1, 64, 64)
    spot[..., 30:33, 40:43] = 0.2
    assert compare.residual(x + spot, x, valid)[..., 31, 41].item() > 0.15
    garbage = torch.where(valid, x, torch.tensor(7.0))
    same = compare.residual(x, x + lighting, valid) - compare.residual(garbage, x + lighting, valid)
    assert same[valid].abs().max() < 1e-5


# --- smoothing ---


@pytest.mark.parametrize("sd", [0.0, 0.5, 2.0, 6.0])
@pytest.mark.parametrize("shape", [(30, 41), (9, 12, 10)])
def test_smoothing_keeps_a_constant_for_every_mask(sd: float, shape: tuple[int, ...]) -> None:
    smooth = GaussianSmoothing(sd)
    alone = torch.zeros(1, 1, *shape, dtype=torch.bool)
    alone[(0, 0, *(side // 2 for side in shape))] = True
    for valid in (torch.ones_like(alone), blobs(*shape), blobs(*shape, seed=3), alone):
        result = smooth(torch.full((1, 1, *shape), 0.37), valid)
        assert torch.allclose(result[valid], torch.tensor(0.37), rtol=1e-5)
        assert (result[~valid] == 0).all()


@pytest.mark.parametrize("shape", [(30, 41), (9, 12, 10)])
def test_smoothing_is_a_gaussian_of_the_valid_pixels(shape: tuple[int, ...]) -> None:
    sd = 1.7
    error, valid = rand(1, 1, *shape), blobs(*shape)
    taps = np.exp(-0.5 * (np.arange(-np.ceil(3 * sd), np.ceil(3 * sd) + 1) / sd) ** 2)
    summed, weight = np.where(valid[0, 0], error[0, 0], 0).astype(float), valid[0, 0].numpy().astype(float)
    for axis in range(len(shape)):
        summed, weight = (ndimage.correlate1d(image, taps, axis, mode="constant") for image in (summed, weight))
    found = GaussianSmoothing(sd)(error, valid)
    assert found[valid].numpy() == pytest.approx((summed / weight)[valid[0, 0]], abs=1e-5)


def test_blur_keeps_channels_apart() -> None:
    x = rand(2, 3, 20, 20)
    window = GaussianSmoothing(2.0)
    apart = torch.stack([torch.cat([window.blur(x[[i]][:, [c]])[0] for c in range(3)]) for i in range(2)])
    assert torch.allclose(window.blur(x), apart, atol=1e-6)


# --- standardising ---


def test_by_context_mean_and_deviation_follow_the_activity_of_the_reconstruction() -> None:
    standardise = random_mapper(small_config()).standardise
    smooth, z_hat = rand(2, 1, 24, 30), rand(2, 3, 24, 30, seed=1) * torch.linspace(0, 2, 30)
    activity = standardise.local_activity(z_hat).numpy()
    centres, mean, sd = (standardise.get_buffer(name).numpy() for name in ("activity", "mean", "sd"))
    assert activity.min() < centres[1] < centres[-1] < activity.max()
    expected = (smooth.numpy() - np.interp(activity, centres, mean)) / np.interp(activity, centres, sd)
    errors = torch.cat([smooth, torch.from_numpy(activity)], dim=1)
    assert standardise(errors, everywhere(smooth)).numpy() == pytest.approx(expected, abs=1e-3)


def test_activity_is_the_smoothed_gradient() -> None:
    z_hat = rand(1, 2, 16, 18)
    gradient = np.mean([brute_gradient(channel.double().numpy()) for channel in z_hat[0]], axis=0)
    found = Standardise("context", 2).local_activity(z_hat)[0, 0].numpy()
    assert found == pytest.approx(brute_blur(gradient, 2.0), abs=1e-5)


def test_one_pair_serves_everywhere() -> None:
    standardise = Standardise("global", 2)
    standardise.get_buffer("mean").fill_(3.0)
    standardise.get_buffer("sd").fill_(2.0)
    smooth = rand(1, 1, 16, 16)
    assert torch.allclose(standardise(smooth, everywhere(smooth)), (smooth - 3) / 2)


def by_position(n_dims: int = 2) -> Standardise:
    standardise = Standardise("position", n_dims)
    standardise.get_buffer("mean").copy_(rand(1, 1, *[N_POSITIONS] * n_dims, seed=1))
    standardise.get_buffer("sd").copy_(rand(1, 1, *[N_POSITIONS] * n_dims, seed=2) + 0.1)
    return standardise


@pytest.mark.parametrize("n_dims", [2, 3])
def test_by_position_every_cell_has_its_own(n_dims: int) -> None:
    standardise = by_position(n_dims)
    smooth = rand(2, 1, *[N_POSITIONS] * n_dims)
    expected = (smooth - standardise.get_buffer("mean")) / standardise.get_buffer("sd")
    assert torch.allclose(standardise(smooth, everywhere(smooth)), expected, atol=1e-5)


def test_positions_are_relative_to_the_size_of_the_image() -> None:
    standardise = by_position()
    small, large = torch.zeros(1, 1, 64, 96), torch.zeros(1, 1, 128, 192)
    found = [standardise(smooth, everywhere(smooth)) for smooth in (small, large)]
    shrunk = functional.interpolate(found[1], size=(64, 96), mode="bilinear", align_corners=False)
    assert float((found[0] - shrunk).abs().mean()) < 0.1 * float(found[0].std())


def test_the_head_is_one_more_measure_of_image_and_repair() -> None:
    config = small_config(scoring={"l2": 0.0, "ssim": 0.0, "gms": 0.0, "chroma": 0.0, "head": 2.0})
    mapper, (z, z_hat) = random_mapper(config), rand(2, 1, 1, 32, 32)
    head = mapper.compare.head
    assert head is not None
    with torch.inference_mode():
        found = mapper.compare(z, z_hat, everywhere(z))
        probability = torch.sigmoid(head(z, z_hat))
    assert float(probability.std()) > 0.01
    l1, of_head = mapper.compare.get_buffer("unit")
    expected = 0.5 / l1 * (z - z_hat).abs() + 2 / of_head * probability
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("n_dims", [2, 3])
def test_by_column_only_the_last_axis_counts(n_dims: int) -> None:
    standardise = Standardise("column", n_dims)
    mean = standardise.get_buffer("mean").copy_(rand(1, 1, *[1] * (n_dims - 1), N_COLUMNS))
    smooth = torch.zeros(1, 1, *[7] * (n_dims - 1), N_COLUMNS)
    assert torch.allclose(standardise(smooth, everywhere(smooth)), -mean.expand(smooth.shape), atol=1e-5)


def test_positions_are_relative_to_the_box_of_the_valid_pixels() -> None:
    """Padding moves nothing, and an object is compared with itself wherever it lies."""
    standardise = by_position()
    smooth = rand(2, 1, 48, 40)
    alone = standardise(smooth, everywhere(smooth))
    valid = torch.zeros(2, 1, 80, 64, dtype=torch.bool)
    valid[0, :, :48, :40] = True
    valid[1, :, 20:68, 10:50] = True
    padded = torch.zeros(2, 1, 80, 64).masked_scatter(valid, smooth)
    found = standardise(padded, valid)
    assert torch.allclose(found[0, :, :48, :40], alone[0], atol=1e-6)
    assert torch.allclose(found[1, :, 20:68, 10:50], alone[1], atol=1e-6)
    assert torch.isfinite(standardise(padded, torch.zeros_like(valid))).all()


# --- the whole path ---


@pytest.mark.parametrize(("architecture", "scale"), [("unet", "log"), ("unet", "linear"), ("bottleneck", "log")])
@pytest.mark.parametrize(("n_dims", "n_channels"), [(2, 1), (2, 3), (3, 1)])
def test_map_is_the_chain_of_its_steps(architecture: str, scale: str, n_dims: int, n_channels: int) -> None:
    model = {"architecture": architecture, "spatial_dims": n_dims, "n_channels": n_channels}
    mapper = random_mapper(small_config(model=model, scoring={"error_scale": scale}))
    raw = rand(2, n_channels, *[mapper.size_multiple * 3] * n_dims)
    valid, limits = blobs(*raw.shape[2:]).expand(2, 1, *raw.shape[2:]), limits_for(raw)
    with torch.inference_mode():
        found = mapper(raw, valid, limits)
        x = torch.where(valid, raw, torch.tensor(0.0))
        x_hat = mapper.autoencoder(x)
        smooth = mapper.smooth(mapper.compare(x, x_hat, valid), valid)
        if scale == "log":
            smooth = torch.log(1 + smooth / FAINT / sum(mapper.compare.weights.values()))
        errors = torch.cat([smooth, mapper.standardise.local_activity(x_hat)], dim=1)
        expected = mapper.standardise(errors, valid)
        found_errors = mapper.errors(raw, valid, limits)
        shown = mapper.reconstruct(raw, valid, limits)
        measures = mapper.measures(raw, valid, limits)
    assert found.shape == (2, 1, *raw.shape[2:])
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(found_errors, errors, atol=1e-6)
    assert torch.allclose(torch.stack(shown), torch.stack([x, x_hat]))
    unit = mapper.compare.get_buffer("unit").reshape(1, -1, *[1] * n_dims)
    assert torch.allclose((0.5 * measures / unit).sum(dim=1, keepdim=True), mapper.compare(x, x_hat, valid), atol=1e-5)
    assert found.std() > 0.01


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30, -1e30])
@pytest.mark.parametrize("n_dims", [2, 3])
def test_what_is_not_valid_does_not_matter_at_all(garbage: float, n_dims: int) -> None:
    mapper = random_mapper(small_config(model={"spatial_dims": n_dims}))
    shape = [mapper.size_multiple * 4] * n_dims
    valid, raw = blobs(*shape), rand(1, 1, *shape)
    limits = limits_for(raw)
    with torch.inference_mode():
        clean = mapper(torch.where(valid, raw, 0.0), valid, limits)
        spoilt = mapper(torch.where(valid, raw, garbage), valid, limits)
    assert torch.isfinite(clean).all()
    assert torch.equal(clean, spoilt)


def test_nobody_else_in_the_batch_matters() -> None:
    mapper = random_mapper(small_config())
    raw = rand(3, 1, 32, 32)
    raw[1] -= 1  # a far darker mate
    with torch.inference_mode():
        together = mapper(raw, everywhere(raw), limits_for(raw))
        alone = [mapper(one[None], everywhere(one[None]), limits_for(one[None])) for one in raw]
    assert torch.allclose(together, torch.cat(alone), atol=1e-4)


def test_untrained_unet_finds_nothing() -> None:
    mapper = AnomalyMapper(small_config(scoring={"head": 0.0})).eval()
    raw = rand(1, 1, 32, 32)
    with torch.inference_mode():
        assert mapper(raw, everywhere(raw), limits_for(raw)).abs().max() < 1e-4


class Pointwise(nn.Module):
    """A reconstruction that looks at one pixel only."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.6 * x


def map_and_score(mapper: AnomalyMapper, image: Image, multiple: int) -> tuple[FloatArray, float]:
    prepared = prepare(image, Geometry(1.0, multiple), 1)
    raw = torch.from_numpy(prepared.pixels.astype(np.float32))[None]
    with torch.inference_mode():
        found = mapper(raw, torch.from_numpy(prepared.valid)[None, None], limits_for(raw))
    anomaly_map = to_image_grid(found[0, 0].numpy(), prepared)
    return anomaly_map, image_score(anomaly_map, image.valid, Config().scoring)


def test_score_does_not_depend_on_padding() -> None:
    """Padding is zero for the network whatever `prepare` fills in; the measures never count it."""
    mapper = random_mapper(
        small_config(scoring={"l2": 0.0, "ssim": 0.0, "gms": 0.0, "head": 0.0, "standardise": "global"})
    )
    mapper.autoencoder = Pointwise()
    for name in ("mean", "sd"):
        mapper.standardise.get_buffer(name).fill_(0.1)
    image = Image(rand(1, 60, 84).numpy() + 1)
    maps, scores = zip(*(map_and_score(mapper, image, multiple) for multiple in (4, 16, 50, 128)), strict=True)
    assert all(found == pytest.approx(maps[0], abs=1e-5) for found in maps)
    assert scores == pytest.approx([scores[0]] * len(scores), abs=1e-5)
    assert maps[0].std() > 0.01


def test_amount_of_padding_does_not_matter_to_gradients() -> None:
    mapper = random_mapper(small_config(scoring={"l2": 0.0, "ssim": 0.0, "head": 0.0, "standardise": "global"}))
    mapper.autoencoder = Pointwise()
    for name in ("mean", "sd"):
        mapper.standardise.get_buffer(name).fill_(0.1)
    image = Image(rand(1, 54, 87).numpy() + 1)
    maps, scores = zip(*(map_and_score(mapper, image, multiple) for multiple in (16, 64, 128)), strict=True)
    assert all(found == pytest.approx(maps[0], abs=1e-4) for found in maps)
    assert scores == pytest.approx([scores[0]] * len(scores), abs=1e-4)


# --- windows ---


class Watched:
    """A mapper that remembers the sides of what it was given."""

    def __init__(self, mapper: AnomalyMapper) -> None:
        self.mapper = mapper
        self.sides: list[tuple[int, ...]] = []

    def __call__(self, raw: Tensor, valid: Tensor, limits: Tensor) -> Tensor:
        self.sides.append(tuple(raw.shape[2:]))
        result: Tensor = self.mapper(raw, valid, limits)
        return result


WINDOWED = [  # model, spatial sides in blocks
    ({"unshuffle": 2}, (101, 51)),
    ({"unshuffle": 1}, (45, 40)),
    ({"unshuffle": 3}, (25, 16)),
    ({"unshuffle": 2, "architecture": "bottleneck"}, (60, 55)),
    ({"unshuffle": 1, "n_channels": 2, "depth": 2}, (61, 20)),
    ({"unshuffle": 1, "spatial_dims": 3}, (36, 2, 3)),
]


@pytest.mark.parametrize(("model", "blocks"), WINDOWED)
@pytest.mark.parametrize("window_px", [128, 199])
def test_in_windows_it_is_the_same_map(model: dict[str, Any], blocks: tuple[int, ...], window_px: int) -> None:
    """With random weights everywhere; also for windows that are no whole number of blocks as configured."""
    mapper = random_mapper(small_config(model=model, scoring={"window_px": window_px}))
    sides = [mapper.size_multiple * n for n in blocks]
    watched, raw, valid = Watched(mapper), rand(1, model.get("n_channels", 1), *sides), blobs(*sides)
    assert mapper.window_px <= window_px
    with torch.inference_mode():
        whole = mapper(raw, valid, limits_for(raw))
        tiled = map_in_windows(watched, raw, valid, limits_for(raw), mapper.window_px, mapper.margin_px)
    if max(sides) > mapper.window_px:
        assert len(watched.sides) > 1
        assert max(map(max, watched.sides)) <= max(mapper.window_px, 3 * mapper.margin_px)
        assert all(side % mapper.size_multiple == 0 for shape in watched.sides for side in shape)
    assert tiled.shape == whole.shape
    assert (tiled - whole).abs().max() < 1e-5 * (whole.abs().max() + 1 / mapper.standardise.get_buffer("sd").min())


@pytest.mark.parametrize("standardise", ["position", "context"])
def test_a_coarse_look_in_windows_is_the_same_map(standardise: str) -> None:
    config = small_config(scoring={"window_px": 128, "standardise": standardise})
    torch.manual_seed(0)
    mapper = AnomalyMapper(config, shrink=2).eval()
    for weights in mapper.autoencoder.parameters():
        weights.data.normal_(0, 0.1)
    sides = [mapper.size_multiple * n for n in (61, 20)]
    arguments = (rand(1, 1, *sides), blobs(*sides), limits_for(rand(1, 1, *sides)))
    with torch.inference_mode():
        whole = mapper.errors(*arguments)
        watched = Watched(mapper.errors)
        tiled = map_in_windows(watched, *arguments, mapper.window_px, mapper.margin_px)
        narrow = map_in_windows(mapper.errors, *arguments, 128, mapper.size_multiple)
    assert len(watched.sides) > 1
    assert torch.allclose(tiled, whole, atol=1e-5)
    assert (narrow - whole).abs().max() > 1e-4, "the margin is needed"


def test_shrunk_is_the_mean_of_what_is_valid() -> None:
    x = torch.tensor([[1.0, 3.0, 5.0, 0.0], [2.0, 6.0, 0.0, 0.0]])[None, None]
    valid = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]], dtype=torch.bool)[None, None]
    small, inside = shrunk(x, valid, 2)
    assert inside.flatten().tolist() == [True, False], "a quarter of a block is not enough"
    assert small.flatten().tolist() == [3.0, 0.0]
    assert shrunk(x, valid, 1) == (x, valid)
    volume = rand(1, 2, 4, 4, 8)
    assert torch.allclose(
        shrunk(volume, everywhere(volume), 4)[0], torch.nn.functional.avg_pool3d(volume, 4), atol=1e-6
    )


def test_the_margin_is_needed() -> None:
    """The comparison above would notice windows that see too little."""
    mapper = random_mapper(small_config())
    raw = rand(1, 1, 240, 160)
    with torch.inference_mode():
        whole = mapper(raw, everywhere(raw), limits_for(raw))
        tiled = map_in_windows(mapper, raw, everywhere(raw), limits_for(raw), 64, mapper.size_multiple)
    assert (tiled - whole).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["measures", "errors"])
def test_windows_of_what_has_several_channels(name: str) -> None:
    mapper = random_mapper(small_config(model={"unshuffle": 1}))
    raw = rand(1, 1, 180, 60)
    arguments = (raw, blobs(180, 60), limits_for(raw))
    with torch.inference_mode():
        whole = getattr(mapper, name)(*arguments)
        tiled = map_in_windows(getattr(mapper, name), *arguments, 64, mapper.margin_px)
    assert whole.shape[1] == (len(MEASURES) if name == "measures" else 2)
    assert torch.allclose(tiled, whole, atol=1e-5)


@pytest.mark.parametrize("window_px", [128, 199, 1000])
@pytest.mark.parametrize(("unshuffle", "depth"), [(1, 1), (2, 3), (3, 4), (4, 5)])
def test_window_and_margin_are_whole_blocks(window_px: int, unshuffle: int, depth: int) -> None:
    config = small_config(model={"unshuffle": unshuffle, "depth": depth}, scoring={"window_px": window_px})
    mapper = AnomalyMapper(config)
    assert mapper.window_px % mapper.size_multiple == mapper.margin_px % mapper.size_multiple == 0
    assert window_px - mapper.size_multiple < mapper.window_px <= window_px


# --- from a map to a score ---


def pooling(name: str, **values: float) -> ScoringConfig:
    return replace(ScoringConfig(), pooling=name, **values)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(30, 41), (6, 7, 8)])
def test_pooling(dtype: type, masked: bool, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    anomaly_map = rng.normal(size=shape).astype(dtype)
    valid = rng.random(shape) < 0.3 if masked else None
    values = sorted(anomaly_map.ravel() if valid is None else anomaly_map[valid])
    assert image_score(anomaly_map, valid, pooling("max")) == values[-1]
    for share in (1e-6, 0.01, 0.2, 1.0):
        n_top = max(1, round(share * len(values)))
        expected = float(np.mean(np.array(values[-n_top:], np.float64)))
        assert image_score(anomaly_map, valid, pooling("top_share", top_share=share)) == pytest.approx(
            expected, abs=1e-9
        )
    for quantile in (0.5, 0.9, 1.0):
        place = quantile * (len(values) - 1)
        low, high = values[int(place)], values[min(int(place) + 1, len(values) - 1)]
        expected = float(low) + (place - int(place)) * (float(high) - float(low))
        found = image_score(anomaly_map, valid, pooling("quantile", quantile=quantile))
        assert found == pytest.approx(expected, abs=1e-6)
        assert type(found) is float


@pytest.mark.parametrize("name", ["max", "top_share", "quantile"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_map_that_is_not_finite_is_no_score(name: str, bad: float) -> None:
    anomaly_map = np.zeros((8, 8), np.float32)
    anomaly_map[3, 4] = bad
    with pytest.raises(DataError, match="not finite"):
        image_score(anomaly_map, None, pooling(name))
    valid = np.ones((8, 8), bool)
    valid[3, 4] = False
    assert image_score(anomaly_map, valid, pooling(name)) == 0


@pytest.mark.parametrize("name", ["max", "top_share", "quantile"])
def test_no_valid_pixel_is_no_score(name: str) -> None:
    with pytest.raises(DataError, match="valid pixel"):
        image_score(np.zeros((8, 8), np.float32), np.zeros((8, 8), bool), pooling(name))


def test_peak_lies_where_the_defect_is() -> None:
    mapper = AnomalyMapper(small_config()).eval()
    mapper.autoencoder = nn.Sequential(nn.AvgPool2d(9, stride=1, padding=4, count_include_pad=False))
    for row, column in ((10, 50), (40, 12)):
        raw = torch.full((1, 1, 64, 64), 0.5)
        raw[0, 0, row, column] = 1
        with torch.inference_mode():
            found = mapper(raw, everywhere(raw), limits_for(raw))[0, 0]
        peak = divmod(int(found.argmax()), 64)
        assert np.hypot(peak[0] - row, peak[1] - column) <= 3
