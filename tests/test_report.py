"""The report: pictures, numbers in words, and the page as a browser sees it."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import time
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fake_run
from anomaly_ae.errors import DataError, OutputError
from anomaly_ae.records import Interval, Metric
from anomaly_ae.report import (
    MAX_GALLERY_IMAGES,
    PictureWriter,
    colormap,
    decode_display,
    encode_display,
    overlay_lut,
    thumbnail_map,
    thumbnail_side_px,
    write_heatmap,
    write_report,
)
from anomaly_ae.report.figures import histogram_svg, outline_path, pr_points, roc_points
from anomaly_ae.report.html import _card_groups, _interval_methods, embedded_json
from anomaly_ae.report.panels import detail_panels
from anomaly_ae.report.pictures import Detail, picture, read_pictures, rescaled
from anomaly_ae.report.run import Run, read_run
from anomaly_ae.report.sheets import N_COLUMNS, address, map_sheets, thumbnail_sheets
from anomaly_ae.report.words import headline, percent, shortcuts, warnings
from anomaly_ae.shortcuts import shortcut_warnings
from browser import Browser, find_chromium
from fake_run import EVIL, EVIL_ATTRIBUTE, MEDIAN, THRESHOLD

MEGABYTE = 1_000_000


# ---- colours ---------------------------------------------------------------------------------------------------------


def test_colormap_luminance_rises_strictly() -> None:
    linear = (colormap() / 255.0) ** 2.2
    luminance = linear @ np.array([0.2126, 0.7152, 0.0722])
    assert colormap().shape == (256, 3)
    assert np.all(np.diff(luminance) > 0)


def test_codes_follow_their_formula_and_come_back() -> None:
    display = np.linspace(-1, 4, 1001)
    codes = encode_display(display)
    assert codes.tolist() == [round((min(max(d, -0.5), 3.5) + 0.5) / 4 * 255) for d in display]
    assert np.abs(decode_display(codes) - np.clip(display, -0.5, 3.5)).max() <= 0.5 * 4 / 255 + 1e-12


def test_what_was_not_inspected_is_coded_lowest() -> None:
    assert encode_display(np.array([np.nan, -np.inf, np.inf])).tolist() == [0, 0, 255]


def test_a_normal_image_is_calm_and_the_threshold_shows() -> None:
    opacity = overlay_lut()[:, 3]
    display = decode_display(np.arange(256, dtype=np.uint8))
    assert np.all(opacity[display < 0.5] == 0)
    assert opacity[encode_display(np.array([1.0]))[0]] > 100
    assert np.all(np.diff(opacity.astype(int)) >= 0)


# ---- small pictures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "side_px"), [((97, 53), 16), ((16, 16), 16), ((5, 9), 16), ((64, 200), 33)])
def test_map_thumbnails_keep_the_maximum_wherever_it_lies(shape: tuple[int, int], side_px: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        display = np.full(shape, -0.5)
        display[rng.integers(shape[0]), rng.integers(shape[1])] = 3.5
        codes = thumbnail_map(display, side_px)
        assert codes.shape == picture(display[None], side_px).shape
        assert max(codes.shape) == min(side_px, max(shape))
        assert (codes == 255).sum() == 1


def test_thumbnails_are_area_averages() -> None:
    pixels = np.random.default_rng(1).random((1, 60, 40))
    blocks = np.rint(pixels[0] * 255).reshape(12, 5, 8, 5).mean(axis=(1, 3))
    assert np.abs(picture(pixels, 12) - blocks).max() <= 1


def test_gallery_is_in_colour_where_an_image_is_and_neighbours_keep_apart(tmp_path: Path) -> None:
    writer = PictureWriter(MAX_GALLERY_IMAGES)
    side = writer.side_px
    red, green = (np.zeros((3, side, side)) for _ in range(2))
    red[0], green[1] = 1, 1
    for score, pixels in enumerate((np.full((1, side, side), 0.5), green, red)):
        writer.add(str(score), "normal", float(score), pixels, np.zeros((side, side)))
    writer.write(tmp_path / "pictures.npz")
    pictures = read_pictures(tmp_path / "pictures.npz")
    assert pictures.shapes.tolist() == [[side, side]] * 3
    sheet = np.asarray(Image.open(io.BytesIO(pictures.thumbnails[0]))).astype(int)
    for i, colour in enumerate([(255, 0, 0), (0, 255, 0), (128, 128, 128)]):
        square = sheet[:side, i * side : (i + 1) * side]
        assert np.abs(square[:, 1:-1] - colour).max() < 16  # the hue of the outermost pixel is mixed


def test_thumbnail_sides_are_whole_jpeg_blocks_and_never_grow() -> None:
    sides = [thumbnail_side_px(n) for n in (0, 1, 10, 100, 500, 900, 1500, 2000, 5000)]
    assert sides == sorted(sides, reverse=True)
    assert all(side % 16 == 0 for side in sides)


def test_picture_writer_keeps_the_right_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    scores, labels = rng.permutation(100).astype(float), np.array(["normal", "anomalous"] * 50)
    writer = PictureWriter(100)
    for i, (score, label) in enumerate(zip(scores, labels, strict=True)):
        writer.add(f"i{i}", str(label), float(score), rng.random((1, 9, 7)), rng.random((9, 7)))
    writer.write(tmp_path / "pictures.npz")
    pictures = read_pictures(tmp_path / "pictures.npz")
    assert list(pictures.ids) == [f"i{i}" for i in np.argsort(-scores)]
    normal, anomalous = (sorted(scores[labels == label]) for label in ("normal", "anomalous"))
    wanted = {*normal[-10:], *anomalous[:10], *anomalous[-10:]}
    assert {scores[int(detail.id[1:])] for detail in pictures.details} == wanted
    assert len(pictures.details) == 30


def test_pictures_survive_the_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    pixels, display, mask = rng.random((3, 50, 30)), rng.uniform(-1, 4, (50, 30)), rng.random((50, 30)) > 0.5
    writer = PictureWriter(1)
    writer.add("a", "anomalous", 7.0, pixels, display, pixels[:, ::2, ::2], mask)
    writer.write(tmp_path / "pictures.npz")
    pictures = read_pictures(tmp_path / "pictures.npz")
    detail = pictures.details[0]
    assert pictures.shapes.tolist() == [[50, 30]]
    assert np.array_equal(_codes(pictures.maps[0])[:50, :30], encode_display(display))
    assert np.array_equal(detail.input, np.rint(np.moveaxis(pixels, 0, -1) * 255).astype(np.uint8))
    assert detail.reconstruction is not None
    assert detail.reconstruction.shape == (50, 30, 3)
    assert detail.mask is not None
    assert np.array_equal(detail.mask, mask)


def test_gallery_of_too_many_images_holds_the_highest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anomaly_ae.report.pictures.MAX_GALLERY_IMAGES", 70)
    n_images = 100
    writer = PictureWriter(n_images)
    for score in range(n_images):
        writer.add(f"i{score}", "", float(score), np.zeros((1, 2, 2)), np.zeros((2, 2)))
    writer.write(tmp_path / "pictures.npz")
    ids = read_pictures(tmp_path / "pictures.npz").ids
    assert (len(ids), ids[0], ids[-1]) == (70, "i99", "i30")


@pytest.mark.parametrize("threshold", [0.25, 0.8, 1.0, 1.7, 3.5])
def test_maps_on_the_scale_of_another_threshold(tmp_path: Path, threshold: float) -> None:
    display = np.linspace(-0.5, 3.5, 160).reshape(1, 160)
    writer = PictureWriter(1)
    writer.add("a", "normal", 1.0, np.zeros((1, 1, 160)), display)
    writer.write(tmp_path / "pictures.npz")
    pictures = read_pictures(tmp_path / "pictures.npz")
    moved = rescaled(pictures, threshold)
    half_code = 2 / 255
    sheets = _codes(pictures.maps[0]), _codes(moved.maps[0])
    for before, after in (sheets, (pictures.details[0].map, moved.details[0].map)):
        wanted = np.clip(decode_display(before) / threshold, -0.5, 3.5)
        assert np.abs(decode_display(after) - wanted).max() <= half_code * 1.001
    shown = decode_display(moved.details[0].map)
    assert np.abs(shown - np.clip(display / threshold, -0.5, 3.5)).max() <= 1.001 * half_code * (1 + 1 / threshold)


def test_pictures_with_pickles_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "pictures.npz", ids=np.array([{}], dtype=object))
    with pytest.raises(DataError, match=r"pictures\.npz"):
        read_pictures(tmp_path / "pictures.npz")


def test_sheet_holds_the_maps_in_rows() -> None:
    maps = np.random.default_rng(4).integers(0, 256, (25, 24, 24), dtype=np.uint8)
    (sheet,) = map_sheets(maps)
    for codes, square in zip(maps, islice(_squares(_codes(sheet), 24), 25), strict=True):
        assert np.array_equal(square, codes)


def test_damaged_sheets_are_refused(tmp_path: Path) -> None:
    folder = fake_run.build(tmp_path, n_images=3, size_px=24)
    with np.load(folder / "pictures.npz") as stored:
        arrays = dict(stored)
    arrays["maps_0"] = arrays["thumbnails_0"]
    np.savez(folder / "pictures.npz", **arrays)
    with pytest.raises(DataError, match=r"pictures\.npz.*no palette"):
        read_pictures(folder / "pictures.npz")
    del arrays["maps_0"]
    np.savez(folder / "pictures.npz", **arrays)
    with pytest.raises(DataError, match=r"pictures\.npz"):
        read_pictures(folder / "pictures.npz")


def _codes(sheet: bytes) -> np.ndarray:
    """Return what a browser sees of a sheet of maps."""
    with Image.open(io.BytesIO(sheet)) as image:
        return np.asarray(image.convert("L"))


def _squares(sheet: np.ndarray, side: int) -> Iterator[np.ndarray]:
    for row, column in product(range(len(sheet) // side), range(N_COLUMNS)):
        yield sheet[row * side : (row + 1) * side, column * side : (column + 1) * side]


# ---- heatmap ---------------------------------------------------------------------------------------------------------


def test_heatmap_of_a_normal_image_is_the_image(tmp_path: Path) -> None:
    pixels = np.random.default_rng(4).random((1, 40, 300))
    write_heatmap(tmp_path / "h.png", pixels, np.full((40, 300), 0.45))
    drawn = _read(tmp_path / "h.png")
    assert np.array_equal(drawn[:40, :300], np.repeat(np.rint(pixels[0] * 255)[..., None], 3, axis=2))
    assert drawn.shape[0] > 40


def test_heatmap_encloses_what_reaches_the_threshold(tmp_path: Path) -> None:
    display = np.zeros((60, 50))
    display[20:30, 10:25] = 1.0
    display[22:28, 12:22] = 2.0
    mask = np.zeros((60, 50))
    mask[40:45, 40:45] = 1
    write_heatmap(tmp_path / "h.png", np.full((3, 60, 50), 0.5), display, mask)
    drawn = _read(tmp_path / "h.png")
    border = np.zeros((60, 50), dtype=bool)
    border[20:30, 10:25] = True
    border[21:29, 11:24] = False
    assert np.array_equal(np.all(drawn[:60, :50] == 255, axis=2), border)
    assert np.all(drawn[44, 40:45] == (0, 229, 195))
    assert np.all(drawn[42, 42] == 128)
    lut = overlay_lut()[encode_display(np.array(2.0))].astype(float)
    share = lut[3] / 255
    assert np.abs(drawn[25, 15] - (128 * (1 - share) + lut[:3] * share)).max() <= 1


def test_heatmap_into_nowhere_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "h.png").mkdir()
    with pytest.raises(OutputError, match=r"h\.png"):
        write_heatmap(tmp_path / "h.png", np.zeros((1, 4, 4)), np.zeros((4, 4)))


def _read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


# ---- figures and words -----------------------------------------------------------------------------------------------


def test_area_under_the_drawn_curve_is_the_auc() -> None:
    rng = np.random.default_rng(5)
    normal, anomalous = rng.integers(0, 9, 60).astype(float), rng.integers(3, 12, 40).astype(float)
    assert np.trapezoid(*roc_points(normal, anomalous)[::-1]) == pytest.approx(fake_run.auc(normal, anomalous))


def test_area_under_the_drawn_steps_is_average_precision() -> None:
    rng = np.random.default_rng(6)
    normal, anomalous = rng.integers(0, 9, 60).astype(float), rng.integers(3, 12, 40).astype(float)
    recall, precision = pr_points(normal, anomalous)
    # Average precision is the mean, over the anomalous images, of the precision at each one's own score.
    found, flagged = ((scores[None] >= anomalous[:, None]).sum(axis=1) for scores in (anomalous, normal))
    assert np.trapezoid(precision, recall) == pytest.approx(np.mean(found / (found + flagged)))


def test_outline_has_the_length_of_the_border() -> None:
    inside = np.random.default_rng(7).random((13, 17)) > 0.6
    padded = np.pad(inside, 1).astype(int)
    n_edges = np.abs(np.diff(padded, axis=0)).sum() + np.abs(np.diff(padded, axis=1)).sum()
    assert sum(map(int, re.findall(r"[hv](\d+)", outline_path(inside)))) == n_edges


@pytest.mark.parametrize(
    ("scores", "threshold"), [([], 5.0), ([3.0], 3.0), ([1.0, 1e12], 2.0), ([1.0, 2.0], 1e9), ([-1e-9, 1e-9], 0.0)]
)
def test_histogram_stands_any_scores(scores: list[float], threshold: float) -> None:
    drawn = histogram_svg("h", [("normal", "normal", np.array(scores))], np.zeros(0), threshold, None)
    assert "nan" not in drawn
    assert "inf" not in drawn


@pytest.mark.parametrize("place", [0.4, 0.97])
def test_histogram_shows_where_the_review_band_begins(place: float) -> None:
    """At its place between median and threshold, with a label on a line of its own, however close they are."""
    scores = [("normal", "normal", np.linspace(0.0, 12.0, 50))]
    limits = (MEDIAN, MEDIAN + place * (THRESHOLD - MEDIAN), THRESHOLD)
    drawn = histogram_svg("h", scores, np.zeros(0), THRESHOLD, MEDIAN, limits[1])
    x = {css: float(re.search(rf'marker {css}" x1="([0-9.]+)"', drawn)[1]) for css in ("median", "review", "limit")}
    assert (x["review"] - x["median"]) / (x["limit"] - x["median"]) == pytest.approx(place, abs=0.005)
    y = [float(n) for n in re.findall(r'class="label [a-z]+" x="[0-9.]+" y="([0-9.]+)"', drawn)]
    assert len(y) == 3
    assert min(np.diff(sorted(y))) >= 16
    assert min(y) > 0
    assert "review" not in histogram_svg("h", scores, np.zeros(0), THRESHOLD, MEDIAN)


def _with_review_from_4(info: dict[str, Any]) -> None:
    image = info["threshold"]["image"]
    image["review"] = {**image, "value": 4.0, "rate": "1/10", "promise": "10 %"}


def test_the_histogram_of_a_run_has_its_review_limit(tmp_path: Path) -> None:
    folder = fake_run.build(tmp_path, n_images=10, pictures=False)
    assert "review from here" not in _page_text(folder)
    _change(folder / "run.json", _with_review_from_4)
    assert "review from here" in _page_text(folder)


@pytest.mark.parametrize("share", [1e-4, 0.005, 0.00499, 0.9996, 0.99999])
def test_percent_never_rounds_to_none_or_all(share: float) -> None:
    text = percent(share)
    assert 0 < float(text.strip("<>")) < 100
    assert text.startswith("<" if share < 0.001 else ">" if share > 0.999 else text[0])


def test_a_limit_next_to_nothing_is_said_in_two_digits(tmp_path: Path) -> None:
    folder = fake_run.build(tmp_path, n_images=10, pictures=False)
    rate = {"value": 0.056, "n_normal": 18, "n_anomalous": 4, "reason": ""}
    rate["intervals"] = [{"low": 3e-8, "high": 0.63, "method": "Clopper-Pearson", "unit": "group"}]
    _change(folder / "metrics.json", lambda m: m["image"]["at_threshold"][0].update(false_alarm_rate=rate))
    assert "(5.6 % [<0.1, 63])" in headline(read_run(folder))
    assert "(5.6 % [&lt;0.1, 63])" in write_report(folder).read_text(encoding="utf-8").replace("\u00a0", " ")


def test_headline_counts_right(tmp_path: Path) -> None:
    run = read_run(fake_run.build(tmp_path, n_images=100, pictures=False))
    scores = {label: [row.score for row in run.rows if row.label == label] for label in ("normal", "anomalous")}
    found = np.mean([score >= THRESHOLD for score in scores["anomalous"]])
    n_flagged = sum(score >= THRESHOLD for score in scores["normal"])
    text = headline(run)
    assert text.startswith("At the threshold that flags 1 % of normal images on average, ")
    assert re.search(
        rf"{found:.0%}".replace("%", " %") + r" \[[\d.]+, [\d.]+\] of 60 anomalous images were found;", text
    )
    assert f"; {n_flagged} of 40 normal images (" in text


def test_headline_with_confidence_and_by_hand(tmp_path: Path) -> None:
    folder = fake_run.build(tmp_path, n_images=10, pictures=False)
    _change(folder / "run.json", lambda info: info["threshold"]["image"].update(confidence="19/20"))
    assert "flags at most 1 % of normal images, with 95 % confidence, " in headline(read_run(folder))
    _change(folder / "run.json", lambda info: info["threshold"]["image"].update(rule="manual", rate="", rank=None, n=0))
    assert headline(read_run(folder)).startswith("At the threshold 5.3, set by hand, ")


def test_headline_is_about_units_where_they_are_decided(tmp_path: Path) -> None:
    assert "normal units on average" in headline(read_run(fake_run.build(tmp_path, with_units=True, pictures=False)))


def test_a_method_of_intervals_is_named_once_whatever_its_numbers() -> None:
    sample_size, drawn = "Clopper-Pearson at effective sample size", "bootstrap of whole groups, 1000 draws"
    widened = f"{drawn}, widened to Newcombe method 5"
    found = [(sample_size, "10.4"), (sample_size, "61.0"), (widened, "16 draws dropped"), (widened, "")]
    intervals = [Interval(0.1, 0.9, method, "group", detail) for method, detail in found]
    metrics = {"a": [Metric(0.5, 9, 9, (one,)).as_json() for one in intervals]}
    assert _interval_methods(metrics) == [
        "Clopper-Pearson at effective sample size (groups taken as independent)",
        "bootstrap of whole groups, 1000 draws, widened to Newcombe method 5 (groups taken as independent)",
    ]


def test_headline_without_anomalous_images_says_so(tmp_path: Path) -> None:
    folder = fake_run.build(tmp_path, n_images=10, pictures=False)
    nothing = {"value": None, "n_normal": 4, "n_anomalous": 0, "intervals": [], "reason": "no anomalous images"}
    _change(folder / "metrics.json", lambda m: m["image"]["at_threshold"][0].update(sensitivity=nothing))
    assert "nothing can be said about anomalous images (no anomalous images);" in headline(read_run(folder))


def test_the_report_says_how_many_networks_look_and_how_closely(tmp_path: Path) -> None:
    folder = fake_run.build(tmp_path, n_images=10, pictures=False)
    assert "3 networks (resolution 1, 1/2, 1/4), 512,340 parameters, 3,000 steps each" in _page_text(folder)
    _change(folder / "run.json", lambda info: info["model"].pop("resolutions"))  # as a run of before
    assert "unet, 512,340 parameters, 3,000 steps, trained" in _page_text(folder)


def test_shortcuts_are_warned_of_once_and_in_both_directions(tmp_path: Path) -> None:
    folder = fake_run.build(tmp_path, n_images=10, pictures=False)
    _change(folder / "run.json", lambda info: info["data"]["shortcuts"].update(size=0.11, deviation=0.79))
    texts = shortcuts(read_run(folder))
    assert sum("sharpness" in text for text in texts) == 1
    assert any("size alone" in text and "0.89" in text for text in texts)
    assert not any("deviation" in text for text in texts)
    assert not any("alone separates" in text for text in warnings(read_run(folder))), "they stand first, and once"
    page = _page_text(folder)
    assert page.index("Shortcut: sharpness alone") < page.index("At the threshold"), "above all else"
    assert page.count("sharpness alone") == 1


def test_of_two_columns_with_one_beginning_both_are_warned_of(tmp_path: Path) -> None:
    folder = fake_run.build(tmp_path, n_images=10, pictures=False)
    areas = {"column scanner": 0.95, "column scanner id": 0.9}

    def change(info: dict[str, Any]) -> None:
        info["data"] |= {
            "shortcuts": areas,
            "warnings": [*shortcut_warnings(areas)[1:], "a column alone is no station"],
        }

    _change(folder / "run.json", change)
    texts = shortcuts(read_run(folder))
    assert [sum(f"{name} alone" in text for text in texts) for name in areas] == [1, 1]
    assert [text for text in warnings(read_run(folder)) if "alone" in text] == ["a column alone is no station"]


def test_too_many_false_alarms_and_a_better_baseline_are_warned_of(tmp_path: Path) -> None:
    folder = fake_run.build(tmp_path, n_images=10, pictures=False)
    rate = {"value": 0.5, "n_normal": 40, "n_anomalous": 0, "reason": ""}
    rate["intervals"] = [{"low": 0.35, "high": 0.65, "method": "Wilson, 95 %", "unit": "image"}]
    _change(folder / "metrics.json", lambda m: m["image"]["at_threshold"][0].update(false_alarm_rate=rate))
    _change(folder / "metrics.json", lambda m: m["image"]["roc_auc"].update(value=0.6))
    texts = " ".join(warnings(read_run(folder)))
    assert "50 % [35, 65], expected <0.1 to 2.1 %" in texts
    assert "PCA residual" in texts
    assert "mean grey" not in texts


def _decided_again(tmp_path: Path, limit: float) -> Run:
    """A run scored at THRESHOLD and decided again at another, as `redecide` leaves its files."""
    folder = fake_run.build(tmp_path, n_images=40, size_px=96)
    _change(
        folder / "run.json", lambda info: [info["threshold"][noun].update(value=limit) for noun in ("image", "pixel")]
    )
    return read_run(folder)


@pytest.mark.parametrize("limit", [3.1, THRESHOLD, 6.4])
def test_outlines_and_colours_follow_the_threshold_in_force(tmp_path: Path, limit: float) -> None:
    run = _decided_again(tmp_path, limit)
    assert run.pictures is not None
    scores = {row.id: row.score for row in run.rows}
    reaches = {id: score >= limit for id, score in scores.items()}
    panels = {panel.id: panel for panel in detail_panels(run.pictures.details)}
    assert {id: panel.contour != "" for id, panel in panels.items()} == {id: reaches[id] for id in panels}
    squares = (square for sheet in run.pictures.maps for square in _squares(_codes(sheet), run.pictures.side_px))
    of_images = zip(run.pictures.ids, islice(squares, len(run.pictures.ids)), strict=True)
    peaks = {id: decode_display(square.max()) for id, square in of_images}
    highest = 3.5 * min(1, (THRESHOLD - MEDIAN) / (limit - MEDIAN))  # what the file holds of any higher value
    for id, peak in peaks.items():
        wanted = np.clip((scores[id] - MEDIAN) / (limit - MEDIAN), -0.5, highest)
        assert peak == pytest.approx(wanted, abs=0.04), "a map peaks at the score of its image"
    texts = " ".join(warnings(run))
    said = f"regions and heatmaps/ still follow the pixel threshold of the scoring, 5.3; it is {limit:.4g} now"
    assert (said in texts) == (limit != THRESHOLD)
    assert "Colours and outlines" not in texts


@pytest.mark.parametrize("limit", [2.0, MEDIAN, 13.4])
def test_what_the_small_pictures_cannot_show_is_said(tmp_path: Path, limit: float) -> None:
    run = _decided_again(tmp_path, limit)
    assert run.pictures is not None
    assert run.pictures.maps == read_pictures(tmp_path / "pictures.npz").maps
    (text,) = [text for text in warnings(run) if "Colours and outlines" in text]
    assert f"of the scoring, 5.3: the small pictures cannot tell what reaches {limit:.4g}." in text


def _change(path: Path, edit: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")


# ---- the folder and the file -----------------------------------------------------------------------------------------


def test_embedded_json_comes_back_and_cannot_end_its_element() -> None:
    value = {"a": ["</script>", "<!--", "\u2028", "é"]}
    assert "<" not in embedded_json(value)
    assert json.loads(embedded_json(value)) == value


def _page_text(folder: Path) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", write_report(folder).read_text(encoding="utf-8")))


def test_baselines_stand_beside_the_model_in_every_table(tmp_path: Path) -> None:
    text = _page_text(fake_run.build(tmp_path, with_units=True, pictures=False))
    for level in ("images", "units"):
        assert f"{level}, baseline mean grey 0.512 [0.462, 0.562] 0.613" in text
        assert f"{level}, baseline PCA residual 0.741 [0.691, 0.791] 0.777" in text
    n_parts = len(fake_run.DEFECTS) + len("AB")
    assert text.count("0.512 [0.462, 0.562] 0.741 [0.691, 0.791]") == n_parts, "one line per defect and station"
    assert text.count("ROC-AUC of mean grey ROC-AUC of PCA residual") == 2, "in both breakdowns"
    assert "Baselines have no calibrated threshold" in text


def test_further_figures_stand_in_the_fold(tmp_path: Path) -> None:
    folder = fake_run.build(tmp_path, n_images=60, pictures=False, further=True)
    text, metrics = _page_text(folder), json.loads((folder / "metrics.json").read_text("utf-8"))
    assert "AUPIMO, mean of images" in text
    assert "0.370 [0.300, 0.440]" in text
    assert "0.610" in text[text.index("oracle Dice") :]
    assert "Oracle: the best that any threshold could do" in text
    for share, metric in metrics["image"]["pg"].items():
        assert f"PG {float(share):.0%}".replace("%", " %") in text
        assert f"{percent(metric['value'])} %" in text
    stream = metrics["image"]["at_defect_rate"][0]["escapes_per_million"]
    assert f"{stream['value']:,.0f}" in text
    assert "strongest shortcut" in text
    assert "sharpness 0.69" in text, "farther from 0.5 than mean grey, and the other way round"
    page = (folder / "report.html").read_text("utf-8")
    assert page.count('class="whisker"') == len(metrics["image"]["by_defect_size"]) == 5
    assert page.index("Where in the image") > page.index('id="all-figures"')
    assert page.index('class="key-figures"') < page.index("<nav")


@pytest.mark.parametrize("which", ["threshold", "model_threshold"])
@pytest.mark.parametrize("value", ["x", None, -1, {}])
def test_a_damaged_threshold_is_refused(tmp_path: Path, which: str, value: object) -> None:
    folder = fake_run.build(tmp_path, n_images=5, pictures=False)
    damaged = json.loads((folder / "run.json").read_text("utf-8"))["threshold"]
    damaged["image"]["value"] = value
    _change(folder / "run.json", lambda info: info.update({which: damaged}))
    with pytest.raises(DataError, match=r"run.json holds a damaged threshold.*evaluate again"):
        read_run(folder)


def test_geometry_is_no_promise_of_what_is_found(tmp_path: Path) -> None:
    assert "to be expected found" not in _page_text(fake_run.build(tmp_path, n_images=20, pictures=False))


def test_what_was_chosen_on_the_images_is_said(tmp_path: Path) -> None:
    folder = fake_run.build(tmp_path, n_images=20, pictures=False)
    assert not any("chosen on these" in text for text in warnings(read_run(folder)))
    _change(folder / "metrics.json", lambda metrics: metrics.update(chosen_on_these_images=True))
    assert any("no forecast" in text for text in warnings(read_run(folder)))
    write_report(folder)
    assert "chosen on the test images" in (folder / "methods.md").read_text("utf-8")


def test_a_review_band_is_shown(tmp_path: Path) -> None:
    folder = fake_run.build(tmp_path, n_images=20, pictures=False)
    share = {"value": 0.25, "n_normal": 8, "n_anomalous": 12, "intervals": [], "reason": ""}
    names = ("load", "load_normal", "load_anomalous", "escape_rate")
    outside = {name: share | {"value": value} for name, value in (("false_alarm_rate", 0.125), ("escape_rate", 0.375))}
    review = {"threshold": 4.0, "promise": "", **dict.fromkeys(names, share), "outside": outside}
    streams = [{"defect_rate": 0.1, **dict.fromkeys(_STREAM, share), "review": share | {"value": 0.1234}}]

    def banded(metrics: Any) -> None:
        metrics["image"]["at_threshold"][0].update(review=review)
        metrics["image"].update(at_defect_rate=streams)

    _change(folder / "metrics.json", banded)
    text = _page_text(folder)
    assert "Review band, from 4 to 5.3" in text
    assert "outside the band: false alarms" in text
    assert "12 %" in text[text.index("outside the band") :]
    assert "for review, of 1,000" in text
    assert "123" in text[text.index("for review, of 1,000") :]
    assert "false-alarm rate outside the review band | 0.125 |" in (folder / "methods.md").read_text("utf-8")


_STREAM = ("rejected", "positive_predictive_value", "escapes_per_million")


def test_methods_keep_reasons_beside_intervals_and_name_false_alarms_at_95(tmp_path: Path) -> None:
    folder = fake_run.build(tmp_path, n_images=60, pictures=False, further=True)
    oracle = {"intervals": [{"low": 0.5, "high": 0.7, "method": "bootstrap", "unit": "image"}]}
    _change(folder / "metrics.json", lambda metrics: metrics["pixel"]["oracle_dice"].update(oracle))
    write_report(folder)
    text = (folder / "methods.md").read_text("utf-8")
    (line,) = (line for line in text.splitlines() if line.startswith("| oracle Dice"))
    assert "bootstrap" in line
    assert "chosen on these masks" in line
    assert "| image false-alarm rate at 95 % sensitivity |" in text
    assert "| pixel false-alarm rate at 95 % sensitivity | 0.210 |" in text


def test_methods_name_counts_choices_seed_and_versions(tmp_path: Path) -> None:
    folder = fake_run.build(tmp_path, n_images=60, pictures=False, further=True)
    splits = {"test": {"normal": 24, "anomalous": 36, "unlabelled": 0, "units": 60, "groups": 7}}
    _change(folder / "run.json", lambda info: info["data"].update(splits=splits, name="a|b"))
    _change(folder / "run.json", lambda info: info.update(versions={"python": "3.11.7", "torch": ""}))
    write_report(folder)
    text = (folder / "methods.md").read_text("utf-8")
    info = json.loads((folder / "run.json").read_text("utf-8"))
    assert "| test | 24 | 36 | 0 | 60 | 7 |" in text
    assert "24 normal images and 36 anomalous, 7 groups" in text
    assert info["threshold"]["image"]["promise"] in text
    assert "seed 0" in text or f"seed {info['seed']}" in text
    assert "python 3.11.7" in text
    assert "not a medical device" in text
    assert "torch" not in text
    assert info["model"]["weights_sha256"] in text
    for name in ("image ROC-AUC", "image sensitivity", "image PG at 0.01", "AUPIMO", "oracle Dice"):
        assert name in text
    assert "sharpness alone separates the classes" in text
    rows = [line for line in text.splitlines() if line.startswith("| image ")]
    assert all(line.count("|") == 5 for line in rows), "a bar in a cell would cut it"


def test_a_run_of_score_has_no_methods(tmp_path: Path) -> None:
    folder = fake_run.build(tmp_path, n_images=10, labelled=False, pictures=False)
    write_report(folder)
    assert not (folder / "methods.md").exists()


@pytest.mark.parametrize(("value", "found"), [(1.0, "14 of 14"), (0.5, "7 of 14")])
def test_few_images_are_counted(tmp_path: Path, value: float, found: str) -> None:
    folder = fake_run.build(tmp_path, n_images=20, pictures=False)
    interval = {"low": 0.768 * value, "high": 1.0, "method": "Clopper-Pearson", "unit": "image"}
    metric = {"value": value, "n_normal": 6, "n_anomalous": 14, "intervals": [interval], "reason": ""}
    _change(folder / "metrics.json", lambda metrics: metrics["image"]["at_threshold"][0].update(sensitivity=metric))
    said = f"{found} anomalous images were found (sensitivity {value:.2f} [{0.768 * value:.2f}, 1.00])"
    assert said in headline(read_run(folder))


def test_one_image_of_which_none_is_found_is_singular(tmp_path: Path) -> None:
    folder = fake_run.build(tmp_path, n_images=20, pictures=False)
    metric = {"value": 0.0, "n_normal": 0, "n_anomalous": 1, "intervals": [], "reason": ""}
    _change(folder / "metrics.json", lambda metrics: metrics["image"]["at_threshold"][0].update(sensitivity=metric))
    assert "0 of 1 anomalous image was found" in headline(read_run(folder))


def test_what_is_missing_has_its_reason_in_the_page(tmp_path: Path) -> None:
    folder = fake_run.build(tmp_path, n_images=10, pictures=False)
    nothing = {"value": None, "n_normal": 0, "n_anomalous": 0, "intervals": [], "reason": "there are no masks"}
    missing = {"roc_auc": nothing, "average_precision": nothing, "au_pro": {"0.3": nothing, "0.05": nothing}}
    band = {"false_alarm_band": None, "false_alarm_band_reason": "images come in groups"}
    _change(folder / "metrics.json", lambda m: m["image"]["at_threshold"][0].update(band))
    _change(folder / "metrics.json", lambda m: m.update(pixel=missing))
    text = _page_text(folder)
    assert text.count("– there are no masks") == 4
    assert "– images come in groups" in text
    assert "– every unit is one image" in text


def test_a_what_if_is_marked(tmp_path: Path) -> None:
    folder = fake_run.build(tmp_path, n_images=10, pictures=False)
    assert "What-if: the image threshold" not in _page_text(folder)
    info = json.loads((folder / "run.json").read_text("utf-8"))
    changed = {**info["threshold"], "image": {**info["threshold"]["image"], "value": 4.25, "rate": "1/20"}}
    _change(folder / "run.json", lambda i: i.update(what_if=True, model_threshold=info["threshold"], threshold=changed))
    (text,) = [text for text in warnings(read_run(folder)) if "What-if" in text]
    assert "the image threshold is 4.25 (asked rate 5 %) here and 5.3 (asked rate 1 %) in the model." in text
    assert text in _page_text(folder)


@pytest.mark.parametrize("name", ["scores.csv", "units.csv", "failures.csv"])
def test_a_page_without_one_of_the_tables_would_say_less_than_was_found(tmp_path: Path, name: str) -> None:
    folder = fake_run.build(tmp_path, n_images=10, pictures=False)
    (folder / name).unlink()
    with pytest.raises(DataError, match=f"cannot read .*{name}"):
        read_run(folder)


def test_a_model_that_was_stopped_is_said_to_be(tmp_path: Path) -> None:
    folder = fake_run.build(tmp_path, n_images=10, pictures=False)
    assert "stopped early" not in _page_text(folder)
    _change(folder / "run.json", lambda info: info["model"].update(stopped="asked to stop"))
    assert "stopped early (asked to stop)" in _page_text(folder)
    write_report(folder)
    assert "Training was stopped early: asked to stop." in (folder / "methods.md").read_text("utf-8")


def test_a_run_of_score_does_not_deny_the_labels_it_was_given(tmp_path: Path) -> None:
    folder = fake_run.build(tmp_path / "labelled", n_images=10, pictures=False)
    (folder / "metrics.json").unlink()
    with pytest.raises(DataError, match=r"cannot read .*metrics.json"):
        read_run(folder)
    _change(folder / "run.json", lambda info: info.update(command="score"))
    text = _page_text(folder)
    assert "Error rates are not measured: use evaluate ." in text
    assert "without labels" not in text
    bare = _page_text(fake_run.build(tmp_path / "bare", n_images=10, labelled=False, pictures=False))
    assert "10 images without labels" in bare
    assert "The images carry no labels, so there are no error rates." in bare


@pytest.mark.parametrize(("labelled", "groups"), [(True, [10, 10, 10]), (False, [30])])
def test_about_thirty_images_are_shown_in_detail(tmp_path: Path, labelled: bool, groups: list[int]) -> None:
    run = read_run(fake_run.build(tmp_path, n_images=60, labelled=labelled, size_px=24))
    assert run.pictures is not None
    panels = {panel.id: (i, panel) for i, panel in enumerate(detail_panels(run.pictures.details))}
    assert [len(group["cards"]) for group in _card_groups(run, panels)] == groups


def test_a_failed_page_of_a_file_is_named(tmp_path: Path) -> None:
    folder = fake_run.build(tmp_path, n_images=5, pictures=False)
    (folder / "failures.csv").write_text("id,path,frame,reason\nstack.tif#2,stack.tif,2,truncated\n", encoding="utf-8")
    assert "stack.tif#2 truncated" in _page_text(folder)


def test_no_folder_and_a_foreign_format_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"run\.json"):
        write_report(tmp_path / "missing")
    folder = fake_run.build(tmp_path / "run", n_images=5, pictures=False)
    _change(folder / "run.json", lambda info: info.update(format=2))
    with pytest.raises(DataError, match="format 1"):
        write_report(folder)


@pytest.mark.parametrize("key", ["model", "threshold", "created_utc"])
def test_an_incomplete_run_is_an_error_and_leaves_no_page(tmp_path: Path, key: str) -> None:
    folder = fake_run.build(tmp_path, n_images=5, pictures=False)
    _change(folder / "run.json", lambda info: info.pop(key))
    with pytest.raises(DataError):
        write_report(folder)
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize("score", ["nan", "inf", "", "x"])
def test_a_score_that_is_no_number_is_an_error(tmp_path: Path, score: str) -> None:
    folder = fake_run.build(tmp_path, n_images=5, pictures=False)
    with (folder / "scores.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file))
    lines[2][lines[0].index("score")] = score
    with (folder / "scores.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(lines)
    with pytest.raises(DataError, match=r"scores\.csv"):
        write_report(folder)


def test_codes_and_words_are_the_same_decisions(tmp_path: Path) -> None:
    folder = fake_run.build(tmp_path, n_images=20, pictures=False)
    words = [row.decision for row in read_run(folder).rows]
    text = (folder / "scores.csv").read_text(encoding="utf-8")
    text = text.replace("Z,anomalous,", "Z,2,").replace("Z,normal,", "Z,0,")
    (folder / "scores.csv").write_text(text, encoding="utf-8")
    assert [row.decision for row in read_run(folder).rows] == words
    assert {"normal", "anomalous"} == set(words)


def test_a_run_without_images_is_rendered(tmp_path: Path) -> None:
    folder = fake_run.build(tmp_path, n_images=5, labelled=False, pictures=False)
    header = (folder / "scores.csv").read_text(encoding="utf-8").splitlines()[0]
    (folder / "scores.csv").write_text(header + "\n", encoding="utf-8")
    assert "0 of 0 images were flagged" in write_report(folder).read_text(encoding="utf-8").replace("\u00a0", " ")


def test_beyond_the_gallery_the_page_says_so(tmp_path: Path) -> None:
    folder = fake_run.build(tmp_path, n_images=MAX_GALLERY_IMAGES + 10, pictures=False)
    assert "Shown are the 2,000 images with the highest scores, of 2,010." in write_report(folder).read_text("utf-8")


def test_the_page_names_no_address_outside_itself(tmp_path: Path) -> None:
    page = write_report(fake_run.build(tmp_path, n_images=10)).read_text(encoding="utf-8")
    assert "://" not in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    assert "default-src &#39;none&#39;" in page


@pytest.mark.parametrize("channels", [(), (3,)])
def test_worst_pictures_stay_within_the_limit(channels: tuple[int, ...]) -> None:
    rng = np.random.default_rng(8)
    side_px = thumbnail_side_px(MAX_GALLERY_IMAGES)
    noise, pixels = (
        rng.integers(0, 256, (MAX_GALLERY_IMAGES, side_px, side_px, *more), dtype=np.uint8) for more in ((), channels)
    )
    colour, codes = (
        rng.integers(0, 256, (320, 320, 3), dtype=np.uint8),
        rng.integers(0, 256, (320, 320), dtype=np.uint8),
    )
    details = tuple(Detail(str(i), colour, codes, colour, codes & 1) for i in range(30))
    sheets = [*thumbnail_sheets(pixels), *map_sheets(noise)]
    sizes = [len(address("png", sheet)) for sheet in sheets]
    panels = detail_panels(details)
    sizes.append(sum(sum(len(str(value)) for value in (p.input, p.reconstruction, p.map, p.overlay)) for p in panels))
    sizes.append(sum(len(p.contour) + 2 * len(p.mask) for p in panels))
    assert sum(sizes) < 11 * MEGABYTE  # the table of scores and everything else are less than 1 MB


# ---- in a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = find_chromium()
    if executable is None:
        reason = "no Chromium or Chrome on the PATH"
        pytest.fail(reason) if os.environ.get("ANOMALY_AE_REQUIRE_TOOLS") == "1" else pytest.skip(reason)
    started = Browser(executable)
    yield started
    started.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(fake_run.build(tmp_path_factory.mktemp("run"), n_images=40, evil=True, size_px=128))


@pytest.fixture(scope="module")
def large_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(fake_run.build(tmp_path_factory.mktemp("large"), n_images=2000, size_px=64))


TILE_TEXTS = "[...document.querySelectorAll('.tile .name')].map(e => e.textContent)"
PAINTED = (
    "document.querySelector('.tile canvas').getContext('2d', {willReadFrequently: true})"
    ".getImageData(0, 0, 1, 1).data[3] === 255"
)


def _move_slider(browser: Browser, share: float) -> None:
    browser.evaluate(
        f"(() => {{ const s = document.getElementById('slider'); s.value = Math.round({share} * s.max);"
        "s.dispatchEvent(new Event('input')); s.dispatchEvent(new Event('change')); })()"
    )


def _set(browser: Browser, identifier: str, value: str) -> None:
    browser.evaluate(
        f"(() => {{ const e = document.getElementById('{identifier}'); e.value = {json.dumps(value)};"
        "e.dispatchEvent(new Event(e.tagName === 'SELECT' ? 'change' : 'input')); })()"
    )


def test_page_is_styled_quiet_and_alone(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.wait_for(PAINTED)
    assert browser.evaluate("getComputedStyle(document.querySelector('main')).maxWidth") == "1120px"
    assert browser.problems() == []
    assert browser.requested() == [page.resolve().as_uri()]


def test_the_policy_stops_code_and_network(browser: Browser, page: Path) -> None:
    browser.open(page)
    blocked = browser.evaluate("fetch('https://example.invalid/').then(() => false, () => true)")
    browser.evaluate(
        "(() => { const s = document.createElement('script'); s.textContent = 'window.ran = 1';"
        "document.body.append(s); })()"
    )
    assert blocked
    assert browser.evaluate("window.ran === undefined")
    assert any("Content Security Policy" in problem for problem in browser.problems())


def test_evil_strings_are_plain_text(browser: Browser, page: Path) -> None:
    browser.open(page)
    _set(browser, "search", "alert(1)")
    names = browser.evaluate(TILE_TEXTS)
    assert EVIL in names
    assert EVIL_ATTRIBUTE in names
    browser.evaluate(f"document.querySelectorAll('.tile')[{names.index(EVIL)}].click()")
    assert browser.evaluate("document.getElementById('large-title').textContent") == EVIL
    assert EVIL_ATTRIBUTE in browser.evaluate(
        "[...document.querySelectorAll('#large-facts dd')].map(e => e.textContent)"
    )
    for place in (".warnings li", "#defects th", "#failures th", "#filter-defect option"):
        texts = browser.evaluate(f"[...document.querySelectorAll('{place}')].map(e => e.textContent)")
        assert EVIL in texts, place
    assert browser.evaluate("document.querySelectorAll('img[src=x]').length") == 0
    assert browser.problems() == []


def test_slider_changes_decisions_rates_and_colours(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.wait_for(PAINTED)
    flagged = "document.querySelectorAll('.tile[data-decision=anomalous]').length"
    colours = "document.querySelector('.tile canvas').toDataURL()"
    rates = "document.getElementById('rates').textContent"
    before = [browser.evaluate(x) for x in (flagged, colours, rates)]
    n_flagged = sum(row.decision == "anomalous" for row in read_run(page.parent).rows)
    assert before[0] == n_flagged
    assert browser.evaluate("document.getElementById('what-if-note').hidden")
    _move_slider(browser, 0)
    browser.wait_for(f"{colours} !== {json.dumps(before[1])}")
    assert browser.evaluate(flagged) == 40
    assert (
        browser.evaluate(rates).replace("\u00a0", " ")
        == "finds 24 of 24 anomalous (100 %), flags 16 of 16 normal (100 %)"
    )
    assert not browser.evaluate("document.getElementById('what-if-note').hidden")
    _move_slider(browser, 1)
    assert browser.evaluate(flagged) == 0
    browser.evaluate("document.getElementById('reset').click()")
    browser.wait_for(f"{colours} === {json.dumps(before[1])}")
    assert [browser.evaluate(x) for x in (flagged, colours, rates)] == before


def test_the_large_view_names_the_threshold_of_regions_and_display(browser: Browser, page: Path) -> None:
    facts = (
        "(() => { document.querySelector('.tile').click(); const all = Object.fromEntries("
        "[...document.querySelectorAll('#large-facts div')].map(e => [...e.children].map(c => c.textContent)));"
        "document.getElementById('large').close(); return all; })()"
    )
    browser.open(page)
    calibrated = browser.evaluate(facts)
    assert calibrated["regions"] == "1 at or above 5.3"
    _move_slider(browser, 1)
    what_if = browser.evaluate(facts)
    assert what_if["decision"] == "normal (what-if)"
    assert what_if["regions"] == "1 at or above 5.3"
    assert what_if["display"] == calibrated["display"] + " (calibrated threshold)"


def test_every_stop_of_the_slider_moves_one_distinct_score(browser: Browser, page: Path) -> None:
    browser.open(page)
    counts = browser.evaluate(
        "(() => { const s = document.getElementById('slider'); return [...Array(Number(s.max) + 1).keys()].map(i => {"
        "s.value = i; s.dispatchEvent(new Event('change'));"
        "return document.querySelectorAll('.tile[data-decision=anomalous]').length; }); })()"
    )
    assert counts == list(range(40, -1, -1))


def test_colours_follow_the_formula(browser: Browser, tmp_path: Path) -> None:
    folder = fake_run.build(tmp_path, n_images=3, labelled=False, pictures=False)
    rows = read_run(folder).rows
    writer = PictureWriter(3)
    ramp = np.tile(np.linspace(-0.5, 3.5, 64), (8, 1))
    for row in rows:
        writer.add(row.id, "anomalous", row.score, np.full((1, 8, 64), 0.5), ramp)
    writer.write(folder / "pictures.npz")
    browser.open(write_report(folder))
    browser.wait_for(PAINTED)
    drawn = np.array(
        browser.evaluate("[...document.querySelector('.tile canvas').getContext('2d').getImageData(0, 4, 64, 1).data]")
    ).reshape(64, 4)
    lut = overlay_lut()[encode_display(ramp[4])].astype(float)
    share = lut[:, 3:] / 255
    wanted = 128 * (1 - share) + lut[:, :3] * share
    assert np.abs(drawn[:, :3] - wanted).max() <= 2  # the image is JPEG


def test_search_filters_and_sort(browser: Browser, page: Path) -> None:
    rows = read_run(page.parent).rows
    browser.open(page)
    assert browser.evaluate(TILE_TEXTS) == [row.id for row in sorted(rows, key=lambda row: -row.score)]
    _set(browser, "sort", "low")
    assert browser.evaluate(TILE_TEXTS) == [row.id for row in sorted(rows, key=lambda row: row.score)]
    _set(browser, "sort", "high")
    _set(browser, "search", "EXP3 good")
    wanted = {row.id for row in rows if "exp3" in row.path and "good" in row.path}
    assert set(browser.evaluate(TILE_TEXTS)) == wanted
    assert browser.evaluate("document.getElementById('shown').textContent") == f"{len(wanted)} of 40 images"
    _set(browser, "search", "")
    _set(browser, "filter-label", "anomalous")
    _set(browser, "filter-decision", "normal")
    missed = {row.id for row in rows if row.label == "anomalous" and row.score < THRESHOLD}
    assert set(browser.evaluate(TILE_TEXTS)) == missed
    _move_slider(browser, 1)
    assert browser.evaluate("document.querySelectorAll('.tile').length") == 24


def test_keyboard(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.press("/")
    assert browser.evaluate("document.activeElement.id") == "search"
    assert browser.evaluate("document.getElementById('search').value") == ""
    names = browser.evaluate(TILE_TEXTS)
    place = "[...document.querySelectorAll('.tile')].indexOf(document.activeElement)"
    n_columns = len(browser.evaluate("getComputedStyle(document.getElementById('tiles')).gridTemplateColumns").split())
    browser.evaluate("document.querySelector('.tile').focus()")
    for key, wanted in (("ArrowRight", 1), ("ArrowDown", 1 + n_columns), ("ArrowLeft", n_columns), ("ArrowUp", 0)):
        browser.press(key)
        assert browser.evaluate(place) == wanted, key
    browser.press("End")
    assert browser.evaluate(place) == 39
    browser.press("Home")
    browser.press("Enter")
    assert browser.evaluate("document.getElementById('large').open")
    browser.press("ArrowRight")
    assert browser.evaluate("document.getElementById('large-title').textContent") == names[1]
    browser.press("Escape")
    assert not browser.evaluate("document.getElementById('large').open")
    browser.wait_for(f"{place} === 1")  # the dialog tells that it was closed a moment later


def test_controls_have_names(browser: Browser, page: Path) -> None:
    browser.open(page)
    nameless = browser.evaluate(
        "[...document.querySelectorAll('input, select, button, [role=img]')]"
        ".filter(e => !(e.getAttribute('aria-label') || e.textContent.trim()"
        " || document.querySelector(`label[for='${e.id}']`))).map(e => e.outerHTML.slice(0, 80))"
    )
    assert nameless == []
    assert browser.evaluate("document.querySelectorAll('.tile[tabindex=\"0\"]').length") == 1


def test_the_first_screen_holds_the_figures_and_the_origin_of_the_threshold(browser: Browser, page: Path) -> None:
    browser.open(page, width=1400, height=900)
    places = browser.evaluate(
        "['.key-figures', '.origin', 'h1'].map(s => document.querySelector(s).getBoundingClientRect().bottom)"
    )
    assert max(places) < 900
    folded = "[...document.querySelectorAll('details.fold')].map(d => d.open)"
    assert browser.evaluate(folded) == [False, False]
    browser.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert browser.evaluate(folded) == [True, True], "paper shows everything"


@pytest.mark.parametrize("width", [390, 768, 1400])
def test_an_unfolded_page_is_not_wider_than_the_screen(browser: Browser, tmp_path: Path, width: int) -> None:
    folder = fake_run.build(tmp_path, n_images=40, size_px=64, further=True)
    browser.open(write_report(folder), width=width)
    browser.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert not browser.problems()


@pytest.mark.parametrize("width", [390, 768, 1400])
def test_nothing_is_wider_than_the_screen(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width=width)
    assert browser.evaluate("document.scrollingElement.scrollWidth") <= width
    browser.evaluate("document.querySelector('.tile').click()")
    assert browser.evaluate("document.getElementById('large').getBoundingClientRect().right") <= width


def test_dark_mode_is_dark(browser: Browser, page: Path) -> None:
    browser.open(page, scheme="dark")
    paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", paper)[:3])) < 60


def test_details_are_in_order_with_outlines(browser: Browser, page: Path) -> None:
    rows = read_run(page.parent).rows
    browser.open(page)
    titles = browser.evaluate("[...document.querySelectorAll('#details h3')].map(e => e.textContent)")
    assert len(titles) == 3
    shown = browser.evaluate("[...document.querySelectorAll('#details .card .name')].map(e => e.textContent)")
    normal = sorted((row for row in rows if row.label == "normal"), key=lambda row: -row.score)
    anomalous = sorted((row for row in rows if row.label == "anomalous"), key=lambda row: row.score)
    wanted = [*normal[:10], *anomalous[:10], *anomalous[::-1][:10]]
    assert shown == [row.id for row in wanted]
    outlined = browser.evaluate("[...document.querySelectorAll('#details .mask')].map(e => e.getTotalLength() > 0)")
    assert outlined == [row.label == "anomalous" for row in wanted]
    contoured = browser.evaluate("[...document.querySelectorAll('#details .contour')].map(e => e.getTotalLength() > 0)")
    assert contoured == [row.score >= THRESHOLD for row in wanted]


def test_two_thousand_images_are_small_and_fast(browser: Browser, large_page: Path) -> None:
    assert large_page.stat().st_size < 12 * MEGABYTE
    start = time.monotonic()
    browser.open(large_page)
    browser.wait_for(PAINTED)
    assert time.monotonic() - start < 10
    assert browser.evaluate("document.querySelectorAll('.tile').length") < 500  # the rest comes when it is looked for
    browser.evaluate("document.querySelector('.tile').focus()")
    browser.press("End")
    assert browser.evaluate("document.querySelectorAll('.tile').length") == 2000
    browser.wait_for(PAINTED.replace(".tile canvas", ".tile:last-child canvas"))
    start = time.monotonic()
    _move_slider(browser, 0.2)
    browser.evaluate("new Promise(resolve => requestAnimationFrame(resolve))")
    assert time.monotonic() - start < 3
    assert browser.problems() == []


def test_scores_without_labels(browser: Browser, tmp_path: Path) -> None:
    folder = fake_run.build(tmp_path, n_images=30, labelled=False, size_px=64)
    rows = read_run(folder).rows
    browser.open(write_report(folder))
    n_flagged = sum(row.score >= THRESHOLD for row in rows)
    text = browser.evaluate("document.querySelector('h1').textContent").replace("\u00a0", " ")
    assert (
        text == f"At the threshold that flags 1 % of normal images on average, {n_flagged} of 30 images were flagged."
    )
    assert browser.evaluate("document.querySelectorAll('.plot').length") == 1
    assert browser.evaluate("document.querySelectorAll('#details .card').length") == 30
    assert browser.problems() == []


def test_units_and_no_pictures(browser: Browser, tmp_path: Path) -> None:
    browser.open(write_report(fake_run.build(tmp_path, n_images=60, with_units=True, pictures=False)))
    assert "normal units" in browser.evaluate("document.querySelector('h1').textContent")
    assert browser.evaluate("document.querySelectorAll('.tile').length") == 60
    assert browser.evaluate("document.querySelectorAll('.plot .curve-1:not(.key)').length") == 2
    browser.evaluate("document.querySelector('.tile').click()")
    assert browser.evaluate("document.getElementById('large').open")
    assert browser.problems() == []


def test_what_if_line_stands_at_the_threshold(browser: Browser, page: Path) -> None:
    browser.open(page)
    limit = float(browser.evaluate("document.querySelector('.marker.limit').getAttribute('x1')"))
    median = float(browser.evaluate("document.querySelector('.marker.median').getAttribute('x1')"))
    assert float(browser.evaluate("document.getElementById('what-if-line').getAttribute('x1')")) == pytest.approx(
        limit, abs=0.1
    )
    scale = browser.evaluate("({...document.getElementById('what-if-line').ownerSVGElement.dataset})")
    per_score = float(scale["width"]) / (float(scale["high"]) - float(scale["low"]))
    assert limit - median == pytest.approx((THRESHOLD - MEDIAN) * per_score, abs=0.2)


def test_what_is_unknown_is_a_dash(tmp_path: Path) -> None:
    folder = fake_run.build(tmp_path, n_images=5)
    unknown = dict.fromkeys(("sha256", "preset", "n_parameters", "n_train", "n_validation", "steps", "trained_utc"))
    _change(
        folder / "run.json", lambda info: info["model"].update(unknown, working_scale=None, smallest_defect_px=None)
    )
    page = write_report(folder).read_text(encoding="utf-8")
    assert "None" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)


def test_a_run_of_volumes_has_no_pictures_and_a_page(tmp_path: Path) -> None:
    folder = fake_run.build(tmp_path, n_images=5, pictures=False)
    PictureWriter(5).write(folder / "pictures.npz")
    assert len(read_pictures(folder / "pictures.npz").ids) == 0
    assert "test/good" in write_report(folder).read_text(encoding="utf-8")


def test_two_renderings_are_the_same(page: Path) -> None:
    before = page.read_bytes()
    assert write_report(page.parent).read_bytes() == before
