"""Geometry there and back, against plain formulas."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from anomaly_ae.config import GeometryConfig
from anomaly_ae.errors import IncompatibleImageError
from anomaly_ae.prepare import (
    Geometry,
    check_size,
    choose_geometry,
    prepare,
    resample,
    to_image_grid,
    working_shape,
)
from anomaly_ae.records import FloatArray, Image

FACTORS = [0.13, 0.31, 0.5, 0.77, 1.0, 1.4, 2.0, 2.7]
CONFIG = GeometryConfig()
RNG_SEED = 5


def in_own_place(n_in: int, n_out: int) -> FloatArray:
    """Where the centres of n_out equal cells lie, in pixels of a grid of n_in cells of the same length."""
    return (np.arange(n_out) + 0.5) * n_in / n_out - 0.5


def brute_axis(values: FloatArray, n_out: int) -> FloatArray:
    """Triangular weights as wide as the coarser pixel; the edge value goes on outside."""
    n_in = len(values)
    half = max(n_in / n_out, 1.0)
    result = []
    for centre in in_own_place(n_in, n_out):
        taps = range(int(np.floor(centre - half)) - 1, int(np.ceil(centre + half)) + 2)
        weights = np.array([max(0.0, 1 - abs(tap - centre) / half) for tap in taps])
        inside = values[[min(max(tap, 0), n_in - 1) for tap in taps]]
        result.append((weights * inside).sum() / weights.sum())
    return np.array(result)


# --- resampling ---


@pytest.mark.parametrize("n_out", [1, 2, 7, 13, 29, 30, 31, 64, 95])
def test_resampling_is_the_triangular_filter(n_out: int) -> None:
    values = np.random.default_rng(RNG_SEED).normal(size=30)
    assert resample(values[np.newaxis], (n_out,))[0] == pytest.approx(brute_axis(values, n_out), abs=1e-5)


@pytest.mark.parametrize("shape", [(30, 41), (13, 17), (60, 10), (1, 1)])
def test_resampling_is_separable(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(RNG_SEED).normal(size=(2, 30, 20))
    expected = np.apply_along_axis(brute_axis, 1, pixels, shape[0])
    expected = np.apply_along_axis(brute_axis, 2, expected, shape[1])
    assert resample(pixels, shape) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("shape", [(20, 33), (7, 9), (64, 50), (8, 5, 6), (3, 20, 11)])
@pytest.mark.parametrize("value", [0.0, -1000.0, 65535.0])
def test_constant_stays_constant(shape: tuple[int, ...], value: float) -> None:
    source = np.full((2, *(13 + axis for axis in range(len(shape)))), value)
    assert resample(source, shape) == pytest.approx(np.full((2, *shape), value), rel=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("n_out", [9, 25, 40, 77])
def test_ramp_stays_a_ramp_inside(axis: int, n_out: int) -> None:
    n_in = 40
    shape_in, shape_out = [5, 5, 5], [5, 5, 5]
    shape_in[axis], shape_out[axis] = n_in, n_out
    ramp = np.moveaxis(np.broadcast_to(np.arange(float(n_in)), (5, 5, n_in)), -1, axis).reshape(shape_in)
    line = np.moveaxis(resample(ramp[np.newaxis], shape_out)[0], axis, -1)
    expected = in_own_place(n_in, n_out)
    half = max(n_in / n_out, 1.0)
    inside = (expected >= half) & (expected <= n_in - 1 - half)  # elsewhere the edge takes part
    assert inside.sum() >= n_out - 4 * max(1, n_out / n_in)
    moved_px = (line - expected)[..., inside]
    # Shrinking: how many whole pixels fall under the triangle changes along the line, its mean place does not.
    assert np.abs(moved_px).max() < (1e-4 if n_out >= n_in else 0.1)
    assert np.abs(moved_px.mean()) < (1e-4 if n_out >= n_in else 0.01)


def test_shrinking_averages_every_pixel() -> None:
    """A defect of one pixel never falls between the samples."""
    for where in range(40):
        pixels = np.zeros((1, 40))
        pixels[0, where] = 1
        assert resample(pixels, (9,)).max() > 0.1  # its weight is at least half a tap of 2 * 40 / 9 pixels


def test_resampling_returns_float32_of_its_own_when_it_changes_nothing() -> None:
    pixels = np.arange(12, dtype=np.uint16).reshape(1, 3, 4)
    result = resample(pixels, (3, 4))
    assert result.dtype == np.float32
    assert (result == pixels).all()


# --- the rule ---


@pytest.mark.parametrize(
    "shape", [(28, 28), (63, 64), (64, 64), (300, 200), (3000, 4000), (28, 4000), (100, 4000), (24, 256, 256)]
)
def test_rule(shape: tuple[int, ...]) -> None:
    factor = choose_geometry([shape], CONFIG, 16).factor
    working = working_shape(shape, factor)
    if max(shape) <= CONFIG.max_side_px and (len(shape) == 3 or min(shape) >= CONFIG.min_side_px):
        assert factor == 1
    elif len(shape) == 2 and min(shape) * min(1, CONFIG.max_side_px / max(shape)) < CONFIG.min_side_px:
        assert min(working) == CONFIG.min_side_px
    else:
        assert max(working) == CONFIG.max_side_px
    ratios = np.array(working) / np.array(shape)
    assert ratios == pytest.approx(np.full(len(shape), factor), rel=0.5 / min(working) + 1e-9)  # one factor, rounded


def test_rule_at_its_borders() -> None:
    at, above = CONFIG.max_side_px, CONFIG.max_side_px + 1
    assert choose_geometry([(at, at)], CONFIG, 16).factor == 1
    assert choose_geometry([(above, above)], CONFIG, 16).factor == at / above
    at, below = CONFIG.min_side_px, CONFIG.min_side_px - 1
    assert choose_geometry([(at, at)], CONFIG, 16).factor == 1
    assert choose_geometry([(below, below)], CONFIG, 16).factor == at / below


def test_rule_follows_the_median() -> None:
    usual = (CONFIG.max_side_px * 2, CONFIG.max_side_px)
    assert choose_geometry([usual] * 3 + [(9, 9), (9999, 9999)], CONFIG, 16).factor == 0.5


def test_working_shape_never_vanishes() -> None:
    assert working_shape((1, 1000), 0.1) == (1, 100)


def test_description_names_sizes_and_smallest_defect() -> None:
    text = Geometry(0.25, 16).describe((400, 800))
    assert "400 x 800" in text
    assert "100 x 200" in text
    assert f"{Geometry(0.25, 16).smallest_defect_px:.3g} px" in text
    assert "as they are" in Geometry(1.0, 16).describe((64, 64))
    assert Geometry(2.0, 16).smallest_defect_px == Geometry(1.0, 16).smallest_defect_px


# --- there ---


@pytest.mark.parametrize("shape", [(33, 64), (28, 28), (50, 70), (5, 20, 33)])
@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("multiple", [4, 16])
def test_padded_as_little_as_possible(shape: tuple[int, ...], factor: float, multiple: int) -> None:
    prepared = prepare(Image(np.random.default_rng(RNG_SEED).normal(size=(2, *shape))), Geometry(factor, multiple), 2)
    assert prepared.inner_shape == working_shape(shape, factor)
    assert prepared.pixels.shape == (2, *prepared.valid.shape)
    assert prepared.valid.shape == Geometry(factor, multiple).grid(shape)
    for padded, inner in zip(prepared.valid.shape, prepared.inner_shape, strict=True):
        assert padded % multiple == 0
        assert 0 <= padded - inner < multiple
    inside = tuple(slice(0, side) for side in prepared.inner_shape)
    assert prepared.valid[inside].all()
    assert prepared.valid.sum() == np.prod(prepared.inner_shape)


def test_without_a_change_of_scale_the_numbers_are_the_files_own() -> None:
    pixels = np.random.default_rng(RNG_SEED).integers(0, 65535, (1, 30, 41), dtype=np.uint16)
    prepared = prepare(Image(pixels, spacing_mm=(0.5, 0.25)), Geometry(1.0, 16), 1)
    assert prepared.pixels.dtype == np.uint16
    assert (prepared.pixels[:, :30, :41] == pixels).all()
    assert (prepared.pixels[:, 30:, :41] == pixels[:, -1:]).all()  # the edge goes on: no contrast at the border
    assert (prepared.image_shape, prepared.spacing_mm) == ((30, 41), (0.5, 0.25))


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30, -32768.0])
@pytest.mark.parametrize("factor", [f for f in FACTORS if f != 1])
@pytest.mark.parametrize("shape", [(60, 43), (20, 30, 25)])
def test_nothing_leaks_from_outside_the_mask(garbage: float, factor: float, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(RNG_SEED)
    valid = resample(rng.normal(size=(1, *(side // 8 for side in shape))), shape)[0] > 0  # blobs
    pixels = np.where(valid, rng.uniform(100, 101, shape), garbage)[np.newaxis]
    prepared = prepare(Image(pixels, valid), Geometry(factor, 4), 1)
    inside = prepared.pixels[0][prepared.valid]
    assert inside.size > 0
    assert 99.99 <= inside.min() <= inside.max() <= 101.01
    assert np.shares_memory(prepared.image_valid, valid)
    share = resample(valid[np.newaxis], prepared.inner_shape)[0]
    inner = tuple(slice(0, side) for side in prepared.inner_shape)
    assert (prepared.valid[inner] == (share > 0.5)).all()
    assert prepared.valid.sum() == prepared.valid[inner].sum()


def test_a_mask_that_vanishes_at_working_scale_is_refused() -> None:
    valid = np.zeros((80, 80), bool)
    valid[40] = True
    with pytest.raises(IncompatibleImageError, match=r"line\.png") as caught:
        prepare(Image(np.ones((1, 80, 80)), valid, source="line.png"), Geometry(0.25, 16), 1)
    assert "0.25" in caught.value.why
    assert prepare(Image(np.ones((1, 80, 80)), valid), Geometry(1.0, 16), 1).valid.sum() == 80


def test_other_number_of_channels_is_refused_with_both_numbers() -> None:
    with pytest.raises(IncompatibleImageError) as caught:
        prepare(Image(np.zeros((3, 32, 32)), source="colour.png"), Geometry(1.0, 16), 1)
    assert "colour.png has 3" in caught.value.what
    assert "1" in caught.value.why


def test_colourless_rgb_fits_a_colour_model_and_a_grey_one() -> None:
    pixels = np.random.default_rng(RNG_SEED).integers(0, 255, (1, 16, 32), dtype=np.uint8)
    image = Image(pixels, was_grey_rgb=True)
    assert (prepare(image, Geometry(1.0, 16), 3).pixels == pixels).all()
    assert prepare(image, Geometry(1.0, 16), 3).pixels.shape == (3, 16, 32)
    assert (prepare(image, Geometry(1.0, 16), 1).pixels == pixels).all()
    with pytest.raises(IncompatibleImageError):
        prepare(Image(pixels), Geometry(1.0, 16), 3)
    with pytest.raises(IncompatibleImageError):
        prepare(image, Geometry(1.0, 16), 2)


# --- and back ---


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("shape", [(50, 84), (21, 30, 24)])
def test_corners_land_in_their_corner(factor: float, shape: tuple[int, ...]) -> None:
    marker = 8
    for corner in product((0, 1), repeat=len(shape)):
        where = tuple(slice(-marker, None) if end else slice(0, marker) for end in corner)
        pixels = np.zeros((1, *shape), np.uint16)
        pixels[0][where] = 1000
        prepared = prepare(Image(pixels), Geometry(factor, 16), 1)
        working = np.where(prepared.valid, prepared.pixels[0], 0).astype(np.float32)
        centre = (np.argwhere(working >= 0.9 * working.max()).mean(axis=0) + 0.5) / prepared.inner_shape
        expected = [
            1 - marker / 2 / side if end else marker / 2 / side for end, side in zip(corner, shape, strict=True)
        ]
        assert centre == pytest.approx(expected, abs=1 / min(prepared.inner_shape))
        back = to_image_grid(working, prepared)
        assert back.shape == shape
        assert back[where].mean() > 0.6 * back.max()
        assert back[where].sum() > 0.4 * back.sum()
        assert back.sum() == pytest.approx(pixels.sum(), rel=0.6)


@pytest.mark.parametrize("factor", FACTORS)
def test_constant_and_ramp_come_back(factor: float) -> None:
    shape = (60, 90)
    rows, columns = np.indices(shape)
    ramp = (3 * rows - 2 * columns + 500).astype(np.float64)
    for pixels, tolerance in ((np.full(shape, 7.0), 1e-5), (ramp, 0.1 * (3 + 2))):  # a tenth of a pixel
        prepared = prepare(Image(pixels[np.newaxis]), Geometry(factor, 16), 1)
        back = to_image_grid(np.asarray(prepared.pixels[0], np.float32), prepared)
        ratios = np.array(shape) / prepared.inner_shape
        margin = int(2 * max(1, *ratios)) + 2
        inside = (slice(margin, -margin),) * 2
        assert back[inside] == pytest.approx(pixels[inside], abs=tolerance)
        assert (back - pixels)[inside].mean() == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_map_is_zero_outside_the_mask_and_its_source_untouched(factor: float) -> None:
    valid = np.zeros((32, 48), bool)
    valid[4:20, 8:40] = True
    prepared = prepare(Image(np.ones((1, 32, 48)), valid), Geometry(factor, 16), 1)
    working = np.ones(prepared.valid.shape, np.float32)
    working.setflags(write=False)
    back = to_image_grid(working, prepared)
    assert (back == np.where(valid, 1, 0)).all()
    assert (back.dtype, back.shape) == (np.float32, (32, 48))
    assert (working == 1).all()


@pytest.mark.parametrize("factor", FACTORS)
def test_padding_never_reaches_the_map(factor: float) -> None:
    prepared = prepare(Image(np.ones((1, 50, 37))), Geometry(factor, 16), 1)
    working = np.where(prepared.valid, np.float32(1), np.float32(np.nan))
    assert to_image_grid(working, prepared) == pytest.approx(np.ones((50, 37)), abs=1e-5)


# --- sizes that are taken ---


def test_sizes_are_taken_from_half_of_the_smallest_side_to_twice_the_largest_axis_by_axis() -> None:
    geometry = choose_geometry([(100, 40), (80, 300), (900, 50)], CONFIG, 16)
    assert (geometry.smallest_px, geometry.largest_px) == ((80, 40), (900, 300))
    for shape in ((40, 20), (1800, 600), (40, 600), (1800, 20)):
        check_size("even.png", shape, geometry)
    for shape in ((39, 20), (40, 19), (1801, 600), (1800, 601)):
        with pytest.raises(IncompatibleImageError) as refused:
            check_size("odd.png", shape, geometry)
        assert f"odd.png has {shape[0]} x {shape[1]} px" in str(refused.value)
        assert "trained on sides of 80 x 40 px to 900 x 300 px" in str(refused.value)
        assert "fit on images of this size" in str(refused.value)
