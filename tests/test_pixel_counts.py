"""Counts of pixels per image: near the exact figures, and intervals that a bootstrap of the maps themselves gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from anomaly_ae.errors import DataError
from anomaly_ae.metrics import PixelMap, PixelTable, pixel_metrics, pixel_metrics_and_table
from anomaly_ae.metrics.pixel_counts import N_LEVELS, levels_of
from anomaly_ae.records import Sample
from anomaly_ae.results import pixel_figures, read_pixel_counts, write_pixels
from anomaly_ae.results.pixels import COUNTS_NAME

KEYS = ("roc_auc", "average_precision", "fpr_at_95_sensitivity", "oracle_dice")


def random_maps(seed: int, n: int = 8, digits: int | None = None, strength: float = 1.0) -> list[PixelMap]:
    """Maps of which every second has a square mask, in which scores are higher by a number of its own."""
    rng, maps = np.random.default_rng(seed), []
    for i in range(n):
        scores = rng.normal(size=(24, 20))
        mask = None
        if i % 2:
            mask = np.zeros(scores.shape, bool)
            mask[3 : 5 + i % 7, 2:9] = mask[20:23, 15:18] = True
            scores[mask] += rng.uniform(0, 2 * strength)
        maps.append(PixelMap((scores if digits is None else scores.round(digits)).astype(np.float32), mask))
    return maps


def table_of(maps: list[PixelMap]) -> PixelTable:
    table = pixel_metrics_and_table(lambda: maps)[1]
    assert table is not None
    return table


def exact_values(maps: list[PixelMap]) -> dict[str, float]:
    found = pixel_metrics(lambda: maps, n_bootstrap=0)
    return {key: found[key].value for key in KEYS} | {f"au_pro_{k}": m.value for k, m in found["au_pro"].items()}


def test_few_distinct_scores_make_the_table_exact() -> None:
    """Each of them has a level; then draws are exactly the figures of the maps that were drawn."""
    maps = random_maps(0, digits=0)
    table = table_of(maps)
    assert table.values() == pytest.approx(exact_values(maps), abs=1e-6)  # shares of regions are float32
    draws, rng = table.draws(range(len(maps)), 20, seed=3), np.random.default_rng(3)
    for i in range(20):
        drawn = rng.integers(len(maps), size=len(maps))
        expected = exact_values([maps[j] for j in drawn])
        assert {key: values[i] for key, values in draws.items()} == pytest.approx(expected, abs=1e-6)


def test_whole_groups_are_drawn() -> None:
    maps = random_maps(1, digits=0)
    groups = ["b", "b", "a", "a", "c", "c", "c", "c"]
    draws, rng = table_of(maps).draws(groups, 5, seed=1), np.random.default_rng(1)
    for i in range(5):
        names = [["a", "b", "c"][code] for code in rng.integers(3, size=3)]
        expected = exact_values([m for name in names for m, own in zip(maps, groups, strict=True) if own == name])
        assert {key: values[i] for key, values in draws.items()} == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("strength", [0.3, 1.0, 3.0])
def test_many_distinct_scores_make_it_near(strength: float) -> None:
    maps = random_maps(2, n=40, strength=strength)
    assert table_of(maps).values() == pytest.approx(exact_values(maps), abs=2 / N_LEVELS)


def test_the_interval_is_that_of_maps_drawn_again_and_again() -> None:
    """Few draws of the exact figure, which take long, against the interval from the table."""
    maps, n_draws, rng = random_maps(3, n=30), 150, np.random.default_rng(0)
    interval = pixel_metrics(lambda: maps)["average_precision"].intervals[0]
    drawn = rng.integers(30, size=(n_draws, 30))
    values = [exact_values([maps[i] for i in one])["average_precision"] for one in drawn]
    low, high = np.quantile(values, [0.025, 0.975])
    width = high - low
    assert interval.low == pytest.approx(low, abs=0.25 * width)
    assert interval.high == pytest.approx(high, abs=0.25 * width)
    assert (interval.unit, interval.low < np.mean(values) < interval.high) == ("image", True)


def test_levels_part_pixels_and_regions_and_keep_ties_apart() -> None:
    distinct = np.arange(10_000, dtype=np.float32)
    n_pixels = np.ones(10_000, np.int64)
    n_pixels[5_000] = 10_000  # half of all masked pixels have one score
    overlap = np.full(10_000, 1e-9)
    overlap[9_990:] = 0.1  # the regions are few pixels at the top
    levels = levels_of(distinct, n_pixels, overlap, n_levels=10)
    assert levels[0] == 0
    assert {5_000.0, *range(9_991, 9_999)} <= set(levels.tolist())
    between = [
        n_pixels[int(low) + 1 : int(high)].sum() for low, high in zip(levels, [*levels[1:], 10_000], strict=True)
    ]
    assert max(between) <= n_pixels.sum() / 10


def test_masks_of_few_images_tell_nothing_of_others() -> None:
    maps = random_maps(4, n=2)
    found = pixel_metrics(lambda: maps)["average_precision"]
    assert (found.intervals, found.reason) == ((), "no interval: the masks of too few images, or all alike")
    grouped = pixel_metrics(lambda: random_maps(4, n=6), groups=["x"] * 6)["average_precision"]
    assert grouped.reason == "no interval: the masks of too few groups, or all alike"


def test_perfect_maps_have_no_interval_that_leaves_out_their_value() -> None:
    mask = np.eye(8, dtype=bool)
    maps = [PixelMap(mask.astype(np.float32), mask), PixelMap(np.zeros((8, 8), np.float32))] * 3
    found = pixel_metrics(lambda: maps)["average_precision"]
    assert (found.value, found.intervals) == (1.0, ())


def test_counts_are_kept_and_read_again(tmp_path: Path) -> None:
    maps = random_maps(5, n=16)
    samples = [Sample(id=f"{i}.png", path=f"{i}.png", files=(), unit=str(i), group=str(i // 2)) for i in range(16)]
    found = pixel_figures(lambda: maps, samples, 1.0)
    assert found.metrics["average_precision"]["intervals"][0]["unit"] == "group"
    assert "oracle" in found.metrics["oracle_dice"]["reason"]
    assert read_pixel_counts(tmp_path) is None
    write_pixels(tmp_path, found)
    stored = read_pixel_counts(tmp_path)
    assert stored is not None
    assert found.table is not None
    assert stored[0] == [sample.id for sample in samples]
    for name in ("levels", "normal", "masked", "overlap"):
        assert np.array_equal(getattr(stored[1], name), getattr(found.table, name))
    (tmp_path / COUNTS_NAME).write_bytes(b"PK no archive")
    with pytest.raises(DataError, match=COUNTS_NAME):
        read_pixel_counts(tmp_path)
