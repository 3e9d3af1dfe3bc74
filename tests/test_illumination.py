"""Uneven light that is divided out, against fields that were planted."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from anomaly_ae.errors import DataError
from anomaly_ae.illumination import (
    COMMON_SHARE,
    MIN_GAIN,
    cell_sums,
    common_exposure,
    divide_out,
    exposure_gain,
    image_gain,
    learned_exposure,
    learned_gain,
    light_profile,
    stretched_gain,
)
from anomaly_ae.prepare import valid_box
from anomaly_ae.records import BoolArray, FloatArray

SHAPE = (96, 128)
BLACK = 50.0


def vignette(shape: tuple[int, int] = SHAPE, depth: float = 0.5) -> FloatArray:
    """1 in the middle, falling with the square of the distance to ``1 - depth`` in the corners."""
    rows, columns = (np.linspace(-1, 1, side) for side in shape)
    return 1 - depth * (rows[:, None] ** 2 + columns**2) / 2


def surfaces(n: int, light: FloatArray, seed: int = 0) -> FloatArray:
    """Rough surfaces under this light, with a black level: (n, 1, *shape)."""
    rough = np.random.default_rng(seed).normal(1, 0.03, (n, 1, *light.shape))
    return BLACK + 400 * light * rough


def gain_of(images: FloatArray, valid: BoolArray | None = None, black: float = BLACK) -> FloatArray:
    cells = learned_gain(np.sum([cell_sums(image, valid) for image in images], axis=0), black)
    inside = np.ones(images.shape[2:], bool) if valid is None else valid
    return stretched_gain(cells, inside)


def unevenness(image: FloatArray) -> float:
    """Deviation of what is smooth in an image, as a share of its light."""
    smooth = ndimage.gaussian_filter(image[0] - BLACK, 6)
    return float(smooth.std() / smooth.mean())


def test_a_learned_field_takes_away_five_sixths_of_a_vignette_and_leaves_a_defect() -> None:
    gain = gain_of(surfaces(20, vignette()))
    new = surfaces(1, vignette(), seed=9)[0]
    assert unevenness(divide_out(new, gain, BLACK)) < unevenness(new) / 6
    marked = new.copy()
    marked[:, 10:16, 10:16] = BLACK + 0.5 * (new[:, 10:16, 10:16] - BLACK)  # a dark spot in a dark corner
    before, after = divide_out(new, gain, BLACK), divide_out(marked, gain, BLACK)
    changed = before != after
    assert changed.sum() == 36
    assert ((after - BLACK)[changed] / (before - BLACK)[changed]) == pytest.approx(0.5, abs=1e-4)


def test_the_field_is_a_share_of_the_light_above_the_black_level() -> None:
    images = surfaces(20, vignette())
    expected = vignette() / vignette().mean()
    inner = (slice(12, -12), slice(16, -16))
    assert gain_of(images)[0][inner] == pytest.approx(expected[inner], abs=0.02)
    assert np.abs(gain_of(images, black=0.0)[0] - expected)[inner].max() > 0.03  # the wrong black level shows


def test_the_brightness_of_an_image_as_a_whole_stays() -> None:
    gain = gain_of(surfaces(20, vignette()))
    bright, dark = (k * (surfaces(1, vignette())[0] - BLACK) + BLACK for k in (1.0, 0.5))
    ratio = (divide_out(dark, gain, BLACK).mean() - BLACK) / (divide_out(bright, gain, BLACK).mean() - BLACK)
    assert ratio == pytest.approx(0.5, abs=1e-4)


def test_every_channel_has_its_own_field() -> None:
    flat = surfaces(20, np.ones(SHAPE))
    images = np.concatenate([surfaces(20, vignette()), flat], axis=1)
    gain = gain_of(images)
    assert gain[0].std() > 0.05
    assert gain[1] == pytest.approx(np.ones(SHAPE), abs=0.02)


def test_cells_are_relative_to_the_box_of_valid_pixels_and_nothing_leaks_in() -> None:
    valid = np.zeros((140, 150), bool)
    valid[20:116, 10:138] = True
    inside = surfaces(5, vignette())
    images = np.full((5, 1, 140, 150), np.nan)
    images[:, :, 20:116, 10:138] = inside
    gain = gain_of(images, valid)
    assert gain[:, 20:116, 10:138] == pytest.approx(gain_of(inside), abs=1e-5)
    assert (gain[:, ~valid] == 1).all()


def test_darkness_is_never_divided_by_less_than_the_floor() -> None:
    light = np.ones(SHAPE)
    light[:, 64:] = 0.0
    gain = gain_of(surfaces(3, light))
    assert gain.min() == pytest.approx(MIN_GAIN)
    assert np.isfinite(divide_out(surfaces(1, light)[0], gain, BLACK)).all()


def test_images_below_the_black_level_are_refused_in_plain_words() -> None:
    with pytest.raises(DataError, match=r"black_level is 1000") as refused:
        gain_of(surfaces(3, vignette()), black=1000.0)
    assert "flat_field=off" in refused.value.fix


@pytest.mark.parametrize("direction", [(0.5, 0.0), (0.0, -0.5), (0.3, 0.3)])
def test_the_field_of_an_image_follows_a_gradient_that_changes(direction: tuple[float, float]) -> None:
    rows, columns = (np.linspace(-1, 1, side) for side in SHAPE)
    light = 1 + direction[0] * rows[:, None] + direction[1] * columns
    image = surfaces(1, light)[0]
    gain = image_gain(image, np.ones(SHAPE, bool), BLACK, 12)
    corrected = divide_out(image, gain, BLACK)
    assert unevenness(corrected) < 0.15 * unevenness(image)
    image[:, 40:43, 60:63] += 200
    marked = divide_out(image, image_gain(image, np.ones(SHAPE, bool), BLACK, 12), BLACK)
    assert (marked - corrected)[0, 41, 61] > 0.8 * 200 / light[41, 61]


def test_the_field_of_an_image_is_a_normalised_gaussian_inside_the_mask() -> None:
    rng = np.random.default_rng(4)
    valid = np.zeros(SHAPE, bool)
    valid[8:80, 20:110] = True
    image = np.where(valid, surfaces(1, vignette())[0] + rng.normal(0, 20, SHAPE), np.nan)
    gain = image_gain(image, valid, BLACK, 4)  # so narrow that no coarser grid is used
    light = np.where(valid, image[0] - BLACK, 0)
    mean = ndimage.gaussian_filter(light, 4, mode="constant")
    smooth = mean / np.maximum(ndimage.gaussian_filter(valid.astype(float), 4, mode="constant"), 1e-6)
    assert gain[0][valid] == pytest.approx((smooth / smooth[valid].mean())[valid], abs=1e-3)
    wide = image_gain(image, valid, BLACK, 16)  # on a grid four times coarser
    mean = ndimage.gaussian_filter(light, 16, mode="constant")
    smooth = mean / np.maximum(ndimage.gaussian_filter(valid.astype(float), 16, mode="constant"), 1e-6)
    assert wide[0][valid] == pytest.approx((smooth / smooth[valid].mean())[valid], abs=0.02)


def test_an_image_without_light_stays_as_it_is() -> None:
    dark = np.full((1, *SHAPE), 10.0)
    assert (image_gain(dark, np.ones(SHAPE, bool), BLACK, 12) == 1).all()


def test_a_volume_has_a_field_too() -> None:
    images = np.random.default_rng(0).normal(100, 1, (3, 1, 10, 20, 20)) * np.linspace(0.5, 1.5, 10)[:, None, None]
    gain = gain_of(images, black=0.0)
    assert gain.shape == (1, 10, 20, 20)
    assert np.ptp(gain[0, :, 10, 10]) > 0.7
    assert image_gain(images[0], np.ones((10, 20, 20), bool), 0.0, 4).shape == (1, 10, 20, 20)


def test_the_box_of_nothing_is_everything() -> None:
    assert valid_box(np.zeros((4, 5), bool)) == (slice(0, 4), slice(0, 5))
    some = np.zeros((4, 5), bool)
    some[1, 2] = some[3, 3] = True
    assert valid_box(some) == (slice(1, 4), slice(2, 4))


def profiles(images: FloatArray, black: float = BLACK) -> FloatArray:
    return np.stack([light_profile(image, None, black) for image in images])


def test_exposure_is_found_and_divided_out() -> None:
    factors = np.array([0.6, 0.8, 1.0, 1.3, 1.7])
    images = BLACK + factors[:, None, None, None] * (surfaces(5, vignette()) - BLACK)
    found = profiles(images)
    share, spread = common_exposure(found)
    assert share > 0.99
    assert spread == pytest.approx(np.log(factors).std(), rel=0.01)
    learned = learned_exposure(found)
    assert learned / learned[1] == pytest.approx([0.6, 1.0, 1.7], rel=0.01)
    gains = [exposure_gain(profile, learned) for profile in found]
    assert gains == pytest.approx(factors, rel=0.01)
    even = [divide_out(image, gain, BLACK) for image, gain in zip(images, gains, strict=True)]
    assert profiles(np.stack(even)).mean(axis=1).std() < 1e-3 * learned[1]


def test_what_is_darker_than_all_training_images_stays_darker() -> None:
    learned = learned_exposure(
        profiles(BLACK + np.array([0.8, 1.0, 1.2])[:, None, None, None] * (surfaces(3, np.ones(SHAPE)) - BLACK))
    )
    dark, bright = (BLACK + factor * (surfaces(1, np.ones(SHAPE))[0] - BLACK) for factor in (0.4, 2.4))
    for image, factor in ((dark, 0.5), (bright, 2.0)):
        seen = divide_out(image, exposure_gain(light_profile(image, None, BLACK), learned), BLACK)
        assert light_profile(seen, None, BLACK).mean() / learned[1] == pytest.approx(factor, rel=0.02)


def test_things_of_several_sizes_are_no_exposure() -> None:
    images = np.full((6, 1, *SHAPE), BLACK + 10.0)
    for i, image in enumerate(images):
        image[:, :, : 15 * (i + 2)] = BLACK + 200
    share, spread = common_exposure(profiles(images))
    assert share < COMMON_SHARE
    assert spread > 0.2


def test_a_few_pixels_move_no_exposure() -> None:
    image = surfaces(1, np.ones(SHAPE))[0]
    marked = image.copy()
    marked[:, 10:20, 10:30] = 60_000.0  # 1.6 % of the image
    before, after = (light_profile(one, None, BLACK).mean() for one in (image, marked))
    assert after == pytest.approx(before, rel=2e-3)


def test_a_mask_says_what_is_exposed() -> None:
    image = surfaces(1, np.ones(SHAPE))[0]
    valid = np.zeros(SHAPE, bool)
    valid[10:50, 20:90] = True
    around = np.where(valid, image, BLACK)
    assert light_profile(around, valid, BLACK).mean() == pytest.approx(
        light_profile(image, None, BLACK).mean(), rel=0.01
    )


def test_exposure_needs_light_above_the_black_level() -> None:
    with pytest.raises(DataError, match="exposure") as refused:
        learned_exposure(profiles(surfaces(3, np.ones(SHAPE)), black=1000.0))
    assert "exposure=off" in refused.value.fix
