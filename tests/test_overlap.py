"""AUPIMO, Dice and IoU of single images against brute force and the published recipe."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly_ae.metrics import PixelMap, image_overlaps, mean_metric, pixel_metrics
from anomaly_ae.metrics.overlap import AUPIMO_LIMITS

LOW, HIGH = AUPIMO_LIMITS


def some_maps(seed: int, side: int = 260, digits: int = 7) -> list[PixelMap]:
    """Three normal images of different size and valid part, an empty mask, and three with a defect."""
    rng = np.random.default_rng(seed)
    maps = []
    for i, (height, width) in enumerate([(side, side), (side // 2, side), (side, side), (side, side // 3)] * 2):
        values = np.round(rng.gumbel(size=(height, width)), digits)
        mask = np.zeros((height, width), bool) if i == 4 else None
        if i in {1, 5, 6}:
            mask = np.zeros((height, width), bool)
            mask[10 + i : 30, 20:45] = True
            values[mask] += rng.uniform(4, 14)
        valid = rng.random((height, width)) < 0.8 if i in {2, 5} else None
        maps.append(PixelMap(values.astype(np.float32), mask, valid))
    return maps


def parts(pixel_map: PixelMap) -> tuple[np.ndarray, np.ndarray]:
    """Valid pixels under the mask, and beside it."""
    valid = np.ones(pixel_map.anomaly_map.shape, bool) if pixel_map.valid is None else pixel_map.valid
    mask = np.zeros_like(valid) if pixel_map.mask is None else pixel_map.mask
    return pixel_map.anomaly_map[valid & mask], pixel_map.anomaly_map[valid & ~mask]


def at(threshold: float) -> Callable[[PixelMap], np.ndarray]:
    """What a detector marks that knows no rule but a threshold."""
    return lambda one: (one.anomaly_map >= threshold) & (True if one.valid is None else one.valid)


def aupimo_by_definition(maps: list[PixelMap], masked: np.ndarray) -> float:
    """Average over log F of the share above the lowest threshold with F <= z, step by step over all normal values."""
    normals = [parts(m)[1] for m in maps if m.mask is None or not m.mask.any()]
    values = np.unique(np.concatenate(normals))[::-1][:300]
    rates = np.array([np.mean([(n >= v).mean() for n in normals]) for v in values])
    assert rates[-1] > HIGH, "enough of them for the upper limit"
    total, before = 0.0, 0.0
    for value, rate in zip(values, rates, strict=True):
        piece = math.log(min(max(rate, LOW), HIGH)) - math.log(min(max(before, LOW), HIGH))
        total += piece * (masked > value).mean()
        before = rate
    return total / math.log(HIGH / LOW)


@pytest.mark.parametrize("digits", [7, 1], ids=["continuous", "many ties"])
def test_aupimo_is_its_definition(digits: int) -> None:
    maps = some_maps(1, digits=digits)
    found = image_overlaps(lambda: iter(maps), None)
    assert [one.index for one in found.images] == [1, 5, 6]
    assert found.n_normal_images == 5
    for one in found.images:
        masked, _ = parts(maps[one.index])
        assert one.mask_px == len(masked)
        assert one.aupimo == pytest.approx(aupimo_by_definition(maps, masked), abs=1e-9)
    assert len({round(one.aupimo or 0, 3) for one in found.images}) > 1 or digits == 1


def test_aupimo_agrees_with_the_published_recipe() -> None:
    """300,000 thresholds between the extremes of the normal maps, and the trapezoidal rule over log F."""
    maps = some_maps(2, side=700)
    normals = [np.sort(parts(m)[1]) for m in maps if m.mask is None or not m.mask.any()]
    thresholds = np.linspace(min(n[0] for n in normals), max(n[-1] for n in normals), 300_000)
    rates = np.mean([1 - np.searchsorted(n, thresholds) / len(n) for n in normals], axis=0)
    inside = np.flatnonzero((rates >= LOW) & (rates <= HIGH))[::-1]  # rates rising
    for one in image_overlaps(lambda: maps, None).images:
        masked = np.sort(parts(maps[one.index])[0])
        shares = 1 - np.searchsorted(masked, thresholds[inside]) / len(masked)
        x = np.log(rates[inside])
        recipe = float(np.sum(np.diff(x) * (shares[1:] + shares[:-1]) / 2)) / math.log(HIGH / LOW)
        assert one.aupimo == pytest.approx(recipe, abs=0.02)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0, 1, 6]), st.floats(-1, 4, width=32))
def test_dice_and_iou_are_those_of_the_pixels(seed: int, digits: int, threshold: float) -> None:
    maps = some_maps(seed, side=60, digits=digits)
    found = image_overlaps(lambda: maps, at(threshold))
    hits = false = missed = 0
    places = {one.index: one for one in found.images}
    for index, pixel_map in enumerate(maps):
        masked, beside = parts(pixel_map)
        tp, fp, fn = (masked >= threshold).sum(), (beside >= threshold).sum(), (masked < threshold).sum()
        hits, false, missed = hits + tp, false + fp, missed + fn
        if index in places:
            assert (places[index].found_px, places[index].false_px) == (tp, fp)
            assert places[index].dice == pytest.approx(2 * tp / (2 * tp + fp + fn))
            assert places[index].iou == pytest.approx(tp / (tp + fp + fn))
    assert found.pooled() == pytest.approx((2 * hits / (2 * hits + false + missed), hits / (hits + false + missed)))


def test_oracle_dice_is_the_best_of_all_thresholds() -> None:
    maps = some_maps(3, side=40, digits=1)
    oracle = pixel_metrics(lambda: maps)["oracle_dice"].value
    thresholds = np.unique(np.concatenate([m.anomaly_map.ravel() for m in maps]))
    every = [image_overlaps(lambda: maps, at(float(t))).pooled() for t in thresholds]
    assert oracle == pytest.approx(max(dice for dice, _ in every if dice is not None))


def test_pixel_rate_at_95_sensitivity_is_the_lowest_one() -> None:
    maps = some_maps(4, side=50, digits=1)
    masked = np.concatenate([parts(m)[0] for m in maps])
    beside = np.concatenate([parts(m)[1] for m in maps])
    wanted = min((beside >= t).mean() for t in np.unique(masked) if (masked >= t).mean() >= 0.95)
    assert pixel_metrics(lambda: maps)["fpr_at_95_sensitivity"].value == pytest.approx(wanted)


def test_what_cannot_be_measured_is_none() -> None:
    maps = some_maps(5, side=40)
    masked_only = [m for m in maps if m.mask is not None and m.mask.any()]
    assert [one.aupimo for one in image_overlaps(lambda: masked_only, at(1.0)).images] == [None] * 3
    without = image_overlaps(lambda: maps, None)
    assert (without.images[0].dice, without.images[0].iou, without.pooled()) == (None, None, None)
    assert image_overlaps(lambda: [maps[0]], at(1.0)).pooled() is None


def test_memory_holds_the_highest_normal_pixels_only() -> None:
    def maps():
        rng = np.random.default_rng(0)
        for i in range(40):
            mask = np.zeros((256, 256), bool)
            mask[:4, :4] = i == 0
            yield PixelMap(rng.random((256, 256), np.float32), mask)

    image_overlaps(maps, at(0.5))
    tracemalloc.start()
    image_overlaps(maps, at(0.5))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30 * 256 * 256 * 4, "a few maps and their sorted copies, and not all forty"


def test_the_interval_of_a_mean_is_students_and_heeds_groups() -> None:
    from scipy.stats import t

    values = np.random.default_rng(1).uniform(0.2, 0.9, 12)
    metric = mean_metric(values.tolist(), 30, None)
    low, high = t.interval(0.95, 11, values.mean(), values.std(ddof=1) / math.sqrt(12))
    assert (metric.value, metric.n_normal, metric.n_anomalous) == (pytest.approx(values.mean()), 30, 12)
    assert (metric.intervals[0].low, metric.intervals[0].high) == (pytest.approx(low), pytest.approx(high))
    copies = np.repeat(values, 5)
    grouped = mean_metric(copies.tolist(), 30, [str(i // 5) for i in range(60)]).intervals
    assert [interval.unit for interval in grouped] == ["group", "image"]
    assert (grouped[0].low, grouped[0].high) == (pytest.approx(low), pytest.approx(high)), "copies tell nothing new"
    assert grouped[1].high - grouped[1].low < 0.5 * (high - low)


def test_a_mean_without_spread_has_no_interval_but_a_reason() -> None:
    assert mean_metric([1.0, 1.0], 3, None).reason == "no interval: one image, or all alike"
    of_one = mean_metric([0.2, 0.6], 3, ["lot", "lot"])
    assert (of_one.intervals, of_one.reason) == ((), "no interval: one group, or all alike")
    assert mean_metric([], 3, None).value is None
