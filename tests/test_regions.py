"""Regions against a plain flood fill, and the rules at their edges."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from anomaly_ae.errors import UnreadableImageError, UsageError
from anomaly_ae.regions import find_regions


def flood_fill(hot: np.ndarray) -> list[list[tuple[int, ...]]]:
    """Return the pixels of every region, neighbours in all directions, corners included."""
    left = {tuple(index) for index in np.argwhere(hot).tolist()}
    steps = list(product((-1, 0, 1), repeat=hot.ndim))
    regions = []
    while left:
        region, todo = [], [left.pop()]
        while todo:
            pixel = todo.pop()
            region.append(pixel)
            near = {tuple(p + s for p, s in zip(pixel, step, strict=True)) for step in steps} & left
            left -= near
            todo += near
        regions.append(region)
    return regions


@pytest.mark.parametrize("shape", [(17, 23), (9, 8, 7), (40,)])
def test_regions_match_a_flood_fill(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    anomaly_map = rng.normal(size=shape).astype(np.float32)
    valid = rng.random(shape) < 0.8
    spacing_mm = (0.5, 0.25, 2.0)[: len(shape)]
    regions = find_regions(anomaly_map, 1.0, valid, spacing_mm)
    expected = flood_fill((anomaly_map >= 1.0) & valid)
    assert len(regions) == len(expected) > 2
    expected.sort(key=lambda pixels: -max(anomaly_map[p] for p in pixels))  # random peaks: no ties
    for region, pixels in zip(regions, expected, strict=True):
        index = np.array(pixels)
        values = np.array([anomaly_map[p] for p in pixels], dtype=np.float64)
        assert region.area_px == len(pixels)
        assert region.area_mm2 == pytest.approx(len(pixels) * np.prod(spacing_mm))
        assert region.box_px == (*index.min(axis=0), *(index.max(axis=0) + 1))
        assert region.centroid_px == pytest.approx(index.mean(axis=0))
        assert region.peak == values.max()
        assert region.mean == pytest.approx(values.mean())


def test_corners_touch_and_the_threshold_itself_counts() -> None:
    anomaly_map = np.zeros((5, 5))
    anomaly_map[0, 0] = anomaly_map[1, 1] = 2.0
    anomaly_map[4, 4] = 2.0 - 1e-12
    (region,) = find_regions(anomaly_map, 2.0)
    assert region.area_px == 2
    assert region.area_mm2 is None
    assert region.box_px == (0, 0, 2, 2)
    assert region.centroid_px == (0.5, 0.5)
    assert region.as_json()["box_px"] == [0, 0, 2, 2]


def test_no_region_exactly_when_the_maximum_is_below_the_threshold() -> None:
    """Even where the threshold falls between two float32 numbers, as a conformal threshold does."""
    peak = np.float32(0.1)
    anomaly_map = np.zeros((4, 4), dtype=np.float32)
    anomaly_map[2, 2] = peak
    just_above = float(np.nextafter(np.float64(peak), 1.0))
    assert np.float32(just_above) == peak  # the trap: in float32 the two are equal
    assert find_regions(anomaly_map, just_above) == ()
    assert len(find_regions(anomaly_map, float(peak))) == 1


def test_order_is_peak_then_area_then_reading_order_and_is_cut() -> None:
    anomaly_map = np.zeros((3, 12))
    anomaly_map[0, 0] = 5.0
    anomaly_map[0, 2] = 7.0
    anomaly_map[0, 4:6] = 7.0
    anomaly_map[0, 8] = 5.0
    columns = [region.box_px[1] for region in find_regions(anomaly_map, 1.0)]
    assert columns == [4, 2, 0, 8]
    assert [region.box_px[1] for region in find_regions(anomaly_map, 1.0, max_regions=2)] == [4, 2]


def test_the_mean_is_never_above_the_peak() -> None:
    for value in (0.1, 0.3, 1.1, 2.3):
        (region,) = find_regions(np.full((31, 37), value), 0.05)
        assert region.mean <= region.peak == value
        assert region.mean == pytest.approx(value)


def test_pixels_outside_valid_are_not_looked_at() -> None:
    anomaly_map = np.array([[np.nan, 3.0, 1.0], [np.inf, 3.0, 3.0]])
    valid = np.array([[False, False, True], [False, False, True]])
    (region,) = find_regions(anomaly_map, 2.0, valid)
    assert (region.area_px, region.box_px) == (1, (1, 2, 2, 3))
    assert find_regions(anomaly_map, 2.0, np.zeros_like(valid)) == ()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused(bad: float) -> None:
    with pytest.raises(UnreadableImageError, match="1 NaN or infinite"):
        find_regions(np.array([[0.0, bad]]), 1.0)


def test_an_empty_map_has_no_regions() -> None:
    assert find_regions(np.zeros((0, 5)), 1.0) == ()


def test_calls_that_do_not_fit_are_refused() -> None:
    anomaly_map = np.zeros((4, 5))
    for problem in (
        {"pixel_threshold": float("nan")},
        {"valid": np.ones((5, 4), dtype=bool)},
        {"valid": np.ones((4, 5), dtype=np.uint8)},
        {"spacing_mm": (1.0, 1.0, 1.0)},
        {"max_regions": 0},
    ):
        with pytest.raises(UsageError):
            find_regions(anomaly_map, **({"pixel_threshold": 1.0} | problem))


def test_many_regions_are_found_without_a_loop_over_pixels() -> None:
    anomaly_map = np.zeros((800, 800), dtype=np.float32)
    anomaly_map[::4, ::4] = 1 + np.random.default_rng(1).random((200, 200), dtype=np.float32)
    regions = find_regions(anomaly_map, 1.0)
    peaks = [region.peak for region in regions]
    assert len(regions) == 1000
    assert peaks == sorted(anomaly_map[anomaly_map > 0].astype(float).tolist(), reverse=True)[:1000]
