"""Regions against a plain flood fill, and the rules at their edges."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from anomaly_ae.config import ScoringConfig, deciding_settings
from anomaly_ae.errors import DataError, UnreadableImageError, UsageError
from anomaly_ae.regions import ALL_REGIONS, RegionRules, find_regions, in_regions, surviving_level
from anomaly_ae.threshold import conformal_threshold


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


# --- which regions count ---


RULES = {
    "none": RegionRules(),
    "area": RegionRules(min_area_px=4),
    "large area": RegionRules(min_area_px=25),
    "hysteresis": RegionRules(hysteresis_low=1.0),
    "hysteresis and area": RegionRules(min_area_px=6, hysteresis_low=1.0),
    "a level nothing reaches": RegionRules(min_area_px=5, hysteresis_low=50.0),
    "border": RegionRules(ignore_border_px=1),
    "all": RegionRules(min_area_px=3, min_area_mm2=1.0, hysteresis_low=1.0, ignore_border_px=1),
}
SPACING_MM = (0.5, 0.4, 1.0)
SHAPES = [(11, 14), (6, 7, 5), (60,)]


def survivors(anomaly_map: np.ndarray, threshold: float, valid: np.ndarray, rules: RegionRules) -> np.ndarray:
    """Mark what survives, by the words of the rules, pixel by pixel."""
    n, counted = rules.ignore_border_px, np.zeros(valid.shape, bool)
    for index in np.argwhere(valid).tolist():
        counted[tuple(index)] = all(n <= i < side - n for i, side in zip(index, valid.shape, strict=True))
    pixel_mm2 = float(np.prod(SPACING_MM[: anomaly_map.ndim]))
    low = min(threshold, rules.hysteresis_low) if rules.hysteresis_low else threshold
    marked = np.zeros(valid.shape, bool)
    for pixels in flood_fill((anomaly_map >= low) & counted):
        is_large = len(pixels) >= rules.min_area_px and len(pixels) * pixel_mm2 >= rules.min_area_mm2 - 1e-12
        if is_large and max(anomaly_map[p] for p in pixels) >= threshold:
            marked[tuple(np.transpose(pixels))] = True
    return marked


def random_map(seed: int, shape: tuple[int, ...], n_levels: int) -> tuple[np.ndarray, np.ndarray]:
    """A map of few or many distinct values, and a mask; one with holes where pixels still hang together around them."""
    rng = np.random.default_rng([seed, n_levels])
    values = np.round(rng.gamma(1.0, 1.0, shape) * n_levels) / n_levels
    return values.astype(np.float32), rng.random(shape) < (0.9 if len(shape) > 1 else 1.0)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n_levels", [2, 1000], ids=["ties", "no ties"])
def test_the_level_is_the_largest_threshold_at_which_a_region_survives(
    shape: tuple[int, ...], n_levels: int, name: str
) -> None:
    """At every level of the map, between two of them, and beyond both ends."""
    rules, spacing_mm = RULES[name], SPACING_MM[: len(shape)]
    for seed in range(3):
        anomaly_map, valid = random_map(seed, shape, n_levels)
        level = surviving_level(anomaly_map, valid, spacing_mm, rules)
        assert level in anomaly_map[valid].astype(float)
        values = np.unique(anomaly_map).astype(float)
        for threshold in [*values[:: max(1, len(values) // 10)], level, np.nextafter(level, np.inf), -1.0, 99.0]:
            expected = survivors(anomaly_map, threshold, valid, rules)
            found = in_regions(anomaly_map, threshold, valid, spacing_mm, rules)
            np.testing.assert_array_equal(found, expected)
            assert found.any() == (level >= threshold)
            regions = find_regions(anomaly_map, threshold, valid, spacing_mm, rules=rules)
            assert sum(region.area_px for region in regions) == expected.sum()


def test_without_rules_the_level_is_the_largest_value_to_the_bit() -> None:
    for seed in range(20):
        anomaly_map, valid = random_map(seed, (9, 13), 1000)
        assert surviving_level(anomaly_map) == float(anomaly_map.max())
        assert surviving_level(anomaly_map, valid) == float(anomaly_map[valid].max())


def test_rules_that_are_off_are_in_no_hash() -> None:
    assert RegionRules.of(ScoringConfig()) == ALL_REGIONS
    assert not {"min_area_px", "min_area_mm2", "hysteresis_low", "ignore_border_px"} & set(
        deciding_settings(ScoringConfig())
    )
    assert deciding_settings(ScoringConfig(min_area_px=2))["min_area_px"] == 2


def test_a_region_reaches_down_to_the_low_level_and_no_further() -> None:
    anomaly_map = np.array([[0.0, 2.0, 3.0, 5.0, 1.9, 2.0, 3.0]])
    rules = RegionRules(hysteresis_low=2.0)
    (region,) = find_regions(anomaly_map, 4.0, rules=rules)
    assert region.box_px == (0, 1, 1, 4), "what hangs together from 2 on and has a peak of 4; the other has none"
    assert [r.box_px for r in find_regions(anomaly_map, 1.0, rules=rules)] == [(0, 1, 1, 7)], "never below itself"


def test_an_area_in_mm2_is_that_of_the_pixels_of_each_image() -> None:
    rules = RegionRules(min_area_mm2=1.0)
    assert [rules.min_px((side, side)) for side in (0.1, 0.5, 1.0, 2.0)] == [100, 4, 1, 1]
    assert RegionRules(min_area_mm2=0.27).min_px((0.1, 0.3)) == 9 < 0.27 / (0.1 * 0.3), (
        "float64 makes more than 9 of it"
    )
    assert RegionRules(min_area_px=9, min_area_mm2=1.0).min_px((0.5, 0.5)) == 9, "the larger one"
    with pytest.raises(DataError, match=r"scoring.min_area_mm2 = 1, and the image has no spacing.*min_area_px"):
        surviving_level(np.zeros((4, 4)), rules=rules)


TWO_PARTS_OF_10 = np.arange(25).reshape(5, 5) % 5 != 2


def test_the_whole_of_a_connected_part_can_be_a_region() -> None:
    level = surviving_level(np.arange(25.0).reshape(5, 5), TWO_PARTS_OF_10, rules=RegionRules(min_area_px=10))
    assert level == 3.0, "the part on the right, down to its lowest pixel"


@pytest.mark.parametrize(
    ("rules", "valid"),
    [
        (RegionRules(min_area_px=26), None),
        (RegionRules(min_area_px=11), TWO_PARTS_OF_10),
        (RegionRules(min_area_px=10, ignore_border_px=1), None),
        (RegionRules(ignore_border_px=3), None),
        (RegionRules(), np.zeros((5, 5), bool)),
    ],
)
def test_an_image_in_which_no_region_could_ever_count_is_refused(rules: RegionRules, valid: np.ndarray | None) -> None:
    """No score of such an image could mean anything: nothing would ever be found in it."""
    with pytest.raises(DataError, match=r"too small for the region rules|without a single valid pixel"):
        surviving_level(np.arange(25.0).reshape(5, 5), valid, rules=rules)
    if valid is None:
        with pytest.raises(DataError, match="too small for the region rules"):
            rules.check((5, 5), None)


def test_the_stated_rate_is_that_of_the_decision_by_regions() -> None:
    """Calibrated and decided on smooth fields: a region survives on at most 10 % of new normal ones, on average.

    The threshold of the largest pixel, which knows no area, keeps far below that rate, and so finds less.
    """
    from scipy import ndimage

    rules, n_calibrations, n_calibration, n_new = RegionRules(min_area_px=12), 60, 39, 25
    rng, flagged, by_pixel = np.random.default_rng(5), 0, 0
    for _ in range(n_calibrations):
        noise = rng.normal(size=(n_calibration + n_new, 24, 24))
        fields = ndimage.gaussian_filter(noise, (0, 1.0, 1.0)).astype(np.float32)
        kept, new = fields[:n_calibration], fields[n_calibration:]
        limit = conformal_threshold([surviving_level(f, rules=rules) for f in kept], "0.1").value
        plain = conformal_threshold([float(f.max()) for f in kept], "0.1").value
        flagged += sum(bool(find_regions(f, limit, rules=rules)) for f in new)
        by_pixel += sum(bool(find_regions(f, plain, rules=rules)) for f in new)
    n = n_calibrations * n_new
    # Half-way between ranks 36 and 37 of 39: a rate between Beta(3, 37) and Beta(4, 36), whose means are 3/40 and 4/40.
    error = (0.1 * 0.9 / n + 4 * 36 / (40**2 * 41) / n_calibrations) ** 0.5
    assert 3 / 40 - 3 * error < flagged / n < 4 / 40 + 3 * error
    assert by_pixel / n < 0.02
