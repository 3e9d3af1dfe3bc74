"""The fitted detector: one score whatever holds the image and whoever stands beside it; its file; its refusals."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from anomaly_ae import detector as detector_module
from anomaly_ae import scoring, training
from anomaly_ae.calibration import Thresholds
from anomaly_ae.config import load_config, with_values
from anomaly_ae.detector import Detector
from anomaly_ae.device import choose_device
from anomaly_ae.errors import (
    AnomalyAEError,
    DataError,
    IncompatibleImageError,
    ModelFileError,
    UnreadableImageError,
    UsageError,
)
from anomaly_ae.fitting import fit
from anomaly_ae.loading import read_sample
from anomaly_ae.manifest import Manifest, load_manifest, manifest_from_paths
from anomaly_ae.modelfile import read_tensors
from anomaly_ae.prepare import prepare
from anomaly_ae.readers import image_from, pixel_sha256, read_image
from anomaly_ae.recalibration import rescored
from anomaly_ae.records import Decision, Failure, FloatArray, Image, PixelArray, Sample, Score
from anomaly_ae.regions import surviving_level
from anomaly_ae.threshold import PValues, manual_threshold


@pytest.fixture(scope="module")
def any_size_detector(part_manifest: Manifest) -> Iterator[Detector]:
    """Standardised by context: images of any size are scored."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "N_NORM_BATCHES", 5)
        yield fit(part_manifest, load_config("smoke", ["scoring.standardise=context"]), device="cpu")


@pytest.fixture(scope="module")
def colour_detector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Detector]:
    """Three channels with ranges of their own."""
    folder = tmp_path_factory.mktemp("colour")
    for i in range(16):
        np.save(folder / f"{i:02d}.npy", colour_noise(i))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "N_NORM_BATCHES", 5)
        yield fit(load_manifest(folder), load_config("smoke", ["training.steps=4"]), device="cpu")


def colour_noise(seed: int) -> PixelArray:
    """(H, W, 3), the channels about 0 to 100, 50 to 150, 100 to 200."""
    return np.random.default_rng(seed).integers((0, 50, 100), (101, 151, 201), (32, 32, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def paths(part_folder: Path) -> list[Path]:
    return sorted((part_folder / "test").glob("*/00[0-2].png"))


def pixels_of(path: Path) -> PixelArray:
    return np.asarray(Picture.open(path))


def only_values(score: Score) -> tuple[object, ...]:
    """Everything in a score that the image alone decides."""
    regions = tuple(json.dumps(region.as_json()) for region in score.regions)
    return score.score, score.decision, score.p_value, score.display, regions, score.anomaly_map.tobytes()  # type: ignore[union-attr]


# --- one image, one score ---


def test_path_array_picture_record_and_sample_of_the_same_pixels_score_the_same(
    smoke_detector: Detector, paths: list[Path]
) -> None:
    path = paths[0]
    sources = [path, str(path), pixels_of(path), pixels_of(path)[..., np.newaxis], pixels_of(path)[np.newaxis]]
    sources += [
        Picture.open(path),
        read_image(path),
        image_from(pixels_of(path)),
        manifest_from_paths([path]).samples[0],
    ]
    scores = [smoke_detector.score(source) for source in sources]
    assert len({only_values(score) for score in scores}) == 1
    assert {score.weights_sha256 for score in scores} == {smoke_detector.weights_sha256}
    assert len({score.image_sha256 for score in scores}) == 2  # of the file's bytes, and of the pixels


@pytest.mark.parametrize("suffix", ["tif", "bmp", "npy"])
def test_the_format_of_a_file_does_not_matter(
    smoke_detector: Detector, paths: list[Path], tmp_path: Path, suffix: str
) -> None:
    copy = tmp_path / f"same.{suffix}"
    if suffix == "npy":
        np.save(copy, pixels_of(paths[1]))
    else:
        Picture.fromarray(pixels_of(paths[1])).save(copy)
    assert only_values(smoke_detector.score(copy)) == only_values(smoke_detector.score(paths[1]))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32, np.float64])
def test_the_type_of_the_numbers_does_not_matter(smoke_detector: Detector, paths: list[Path], dtype: type) -> None:
    pixels = pixels_of(paths[2])
    assert only_values(smoke_detector.score(pixels.astype(dtype))) == only_values(smoke_detector.score(pixels))


def test_a_grey_image_saved_as_colour_scores_as_grey(
    smoke_detector: Detector, paths: list[Path], tmp_path: Path
) -> None:
    Picture.open(paths[0]).convert("RGB").save(tmp_path / "rgb.png")
    assert only_values(smoke_detector.score(tmp_path / "rgb.png")) == only_values(smoke_detector.score(paths[0]))


def test_axes_of_an_array_can_be_named(colour_detector: Detector) -> None:
    pixels = colour_noise(99)
    expected = only_values(colour_detector.score(pixels))
    assert only_values(colour_detector.score(pixels, axes="HWC")) == expected
    assert only_values(colour_detector.score(np.moveaxis(pixels, -1, 0), axes="CHW")) == expected


def test_scoring_changes_neither_the_source_nor_the_detector(smoke_detector: Detector, paths: list[Path]) -> None:
    pixels = pixels_of(paths[0]).copy()
    before = pixels.copy()
    first, again = only_values(smoke_detector.score(pixels)), only_values(smoke_detector.score(pixels))
    assert first == again
    assert np.array_equal(pixels, before)


# --- many images ---


def test_many_images_of_unequal_size_score_as_each_alone(any_size_detector: Detector) -> None:
    rng = np.random.default_rng(0)
    sizes = [(64, 64), (48, 80), (33, 47), (100, 64), (64, 65), (64, 64), (40, 40)]
    images = [rng.integers(0, 256, size).astype(np.uint8) for size in sizes]
    together = list(any_size_detector.score_many(images))
    alone = [any_size_detector.score(image) for image in images]
    assert [only_values(s) for s in together if isinstance(s, Score)] == [only_values(s) for s in alone]
    assert [s.anomaly_map.shape for s in alone if s.anomaly_map is not None] == sizes
    assert len({s.score for s in alone}) == len(sizes)


def test_the_order_of_the_files_does_not_matter(smoke_detector: Detector, paths: list[Path]) -> None:
    forwards = [only_values(s) for s in smoke_detector.score_many(paths) if isinstance(s, Score)]
    backwards = [only_values(s) for s in smoke_detector.score_many(paths[::-1]) if isinstance(s, Score)]
    assert forwards == backwards[::-1]
    assert len(forwards) == len(paths)


def test_failures_are_values_in_their_place(smoke_detector: Detector, paths: list[Path], tmp_path: Path) -> None:
    empty, missing = tmp_path / "empty.png", tmp_path / "missing.png"
    empty.write_bytes(b"")
    sources = [paths[0], empty, np.zeros((64, 64, 2), np.uint8), missing, paths[1], 7]
    results = list(smoke_detector.score_many(sources))
    assert [isinstance(r, Score) for r in results] == [True, False, False, False, True, False]
    failures = [r for r in results if isinstance(r, Failure)]
    assert all(f.decision is Decision.NOT_INSPECTED for f in failures)
    assert [f.path for f in failures] == [str(empty), "array", str(missing), "array"]
    for failure, words in zip(
        failures,
        ["0 bytes", "2 channel(s)", "does not exist", "cannot make an image of a int"],
        strict=True,
    ):
        assert words in failure.reason


def test_a_name_that_is_too_long_is_one_failure(smoke_detector: Detector, paths: list[Path]) -> None:
    with pytest.raises(DataError, match="does not exist"):
        smoke_detector.score("x" * 300)
    results = list(smoke_detector.score_many([paths[0], "x" * 300, paths[1]]))
    assert [type(result) for result in results] == [Score, Failure, Score]


def test_an_entry_of_a_folder_is_a_path(smoke_detector: Detector, paths: list[Path]) -> None:
    with os.scandir(paths[0].parent) as files, os.scandir(paths[0].parent.parent) as folders:
        file, folder = next(files), next(folders)
    assert smoke_detector.score(file).path == file.path
    [failure] = smoke_detector.score_many([folder])
    assert isinstance(failure, Failure)
    assert failure.path == folder.path
    assert "is a folder" in failure.reason


def test_a_failed_sample_keeps_its_unit_and_group(smoke_detector: Detector, tmp_path: Path) -> None:
    sample = Sample("a", "a.png", (tmp_path / "a.png",), frame=3, unit="part 4", group="lot 2")
    (failure,) = smoke_detector.score_many([sample])
    assert isinstance(failure, Failure)
    assert (failure.id, failure.path, failure.frame, failure.unit, failure.group) == (
        "a",
        "a.png",
        3,
        "part 4",
        "lot 2",
    )
    assert "no such file" in failure.reason


def test_many_images_are_drawn_only_as_they_are_needed(smoke_detector: Detector) -> None:
    drawn = 0

    def endless() -> Iterator[PixelArray]:
        nonlocal drawn
        while True:
            drawn += 1
            yield np.full((64, 64), drawn % 256, np.uint8)

    results = smoke_detector.score_many(endless())
    for _ in range(5):
        next(results)
    results.close()
    assert drawn < 5 + 20


def test_a_score_carries_unit_group_and_frame_of_its_sample(smoke_detector: Detector, paths: list[Path]) -> None:
    sample = replace(manifest_from_paths([paths[0]]).samples[0], id="x", unit="part 4", group="lot 2")
    score = smoke_detector.score(sample)
    assert (score.id, score.unit, score.group, score.frame) == ("x", "part 4", "lot 2", 0)
    assert abs((datetime.now(UTC) - datetime.fromisoformat(score.time_utc)).total_seconds()) < 60
    assert 0 < score.milliseconds < 60_000


# --- what a score is made of ---


def test_decision_p_value_display_and_regions_follow_from_the_stored_calibration(
    smoke_detector: Detector, paths: list[Path]
) -> None:
    scores, thresholds = smoke_detector.calibrated
    median = float(np.median(scores.image))
    groups = scores.image_group
    assert groups is not None
    noise = np.random.default_rng(0).integers(0, 500, (64, 64)).astype(np.uint16)
    results = [*map(smoke_detector.score, paths), smoke_detector.score(noise)]
    assert {Decision.NORMAL, Decision.ANOMALOUS} <= {result.decision for result in results}
    for result in results:
        anomaly_map = result.anomaly_map
        assert anomaly_map is not None
        assert result.score == float(anomaly_map.max())
        assert result.threshold == thresholds.image.value
        assert (result.decision == Decision.ANOMALOUS) == (result.score >= result.threshold)
        shares = [np.mean(scores.image[groups == g] >= result.score) for g in np.unique(groups)]
        assert result.p_value == pytest.approx((1 + sum(shares)) / (len(shares) + 1))
        assert result.display == pytest.approx((result.score - median) / (result.threshold - median))
        assert sum(region.area_px for region in result.regions) == int((anomaly_map >= thresholds.pixel.value).sum())
        assert bool(result.regions) == (result.score >= thresholds.pixel.value)


def test_what_all_images_share_is_made_once(
    smoke_detector: Detector, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments: (made.append(name), function(*arguments))[1]

    monkeypatch.setattr(PValues, "beside", counted("p-values", PValues.beside))
    monkeypatch.setattr(Thresholds, "as_json", counted("hash", Thresholds.as_json))
    detector = smoke_detector.with_thresholds(*smoke_detector.calibrated)
    results = [detector.score(path) for path in paths[:2]]
    assert made == ["p-values", "hash"]
    assert {result.thresholds_sha256 for result in results} == {smoke_detector.calibrated[1].sha256}


@pytest.mark.parametrize("rules", [(), ("scoring.min_area_px=6",), ("scoring.pooling=quantile",)])
def test_calibration_measures_score_and_surviving_level(
    smoke_detector: Detector, part_manifest: Manifest, rules: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = rescored(smoke_detector, rules)
    sample = part_manifest.samples[0]
    image = read_sample(sample)
    anomaly_map = detector.anomaly_map(detector.prepare(image))
    looks: list[float] = []

    def level_of(*arguments: Any) -> float:
        looks.append(surviving_level(*arguments))
        return looks[-1]

    monkeypatch.setattr(scoring, "surviving_level", level_of)
    monkeypatch.setattr(detector_module, "surviving_level", level_of)
    ((_, measured),) = detector.measure_many([sample])
    assert not isinstance(measured, AnomalyAEError)
    assert measured[1] == looks[0] == surviving_level(anomaly_map, None, image.spacing_mm, detector.rules)
    assert len(looks) == 1
    assert (measured[0] == measured[1]) == (detector.config.scoring.pooling == "max")


def test_a_detector_with_other_thresholds_or_rules_tells_whom_the_first_one_told(smoke_detector: Detector) -> None:
    told: list[str] = []
    first = smoke_detector.with_thresholds(*smoke_detector.calibrated)
    first.say = told.append
    for other in (first.with_thresholds(*first.calibrated), rescored(first, ["scoring.min_area_px=6"])):
        other.say("a line")
    assert told == ["a line", "a line"]


def test_a_map_is_in_display_units_between_typical_and_threshold(smoke_detector: Detector) -> None:
    scores, thresholds = smoke_detector.calibrated
    values = np.array([np.median(scores.pixel), thresholds.pixel.value, 2 * thresholds.pixel.value])
    shown = smoke_detector.display(values)
    assert shown[:2].tolist() == pytest.approx([0, 1])
    assert shown[2] > 1


def test_a_map_at_a_pixel_threshold_below_the_median_is_shown_as_what_is_marked(smoke_detector: Detector) -> None:
    scores, thresholds = smoke_detector.calibrated
    low = float(np.median(scores.pixel)) - 0.5
    detector = smoke_detector.with_thresholds(scores, replace(thresholds, pixel=manual_threshold(low)))
    shown = detector.display(np.array([low - 1, low, low + 1], np.float32))
    assert shown.tolist() == [0, 1, 1]


def test_what_lies_outside_the_valid_mask_does_not_count(smoke_detector: Detector, paths: list[Path]) -> None:
    pixels = pixels_of(paths[0])[np.newaxis]
    valid = np.ones((64, 64), bool)
    valid[:, 40:] = False
    plain = smoke_detector.score(Image(pixels, valid))
    defect = pixels.copy()
    defect[:, 10:20, 45:60] = 255
    outside = smoke_detector.score(Image(defect, valid))
    assert only_values(outside) == only_values(plain)
    assert not outside.anomaly_map[~valid].any()  # type: ignore[index]
    inside = pixels.copy()
    inside[:, 10:20, 10:25] = 255
    assert smoke_detector.score(Image(inside, valid)).score > plain.score
    assert smoke_detector.score(Image(defect)).score > smoke_detector.score(Image(pixels)).score


def test_the_valid_mask_of_a_file_counts(smoke_detector: Detector, paths: list[Path], tmp_path: Path) -> None:
    valid = np.ones((64, 64), bool)
    valid[:20] = False
    Picture.fromarray(np.dstack([pixels_of(paths[0])] * 3 + [valid * np.uint8(255)])).save(tmp_path / "rgba.png")
    expected = smoke_detector.score(Image(pixels_of(paths[0])[np.newaxis], valid))
    assert only_values(smoke_detector.score(tmp_path / "rgba.png")) == only_values(expected)
    Picture.fromarray(valid).save(tmp_path / "valid.png")
    sample = replace(manifest_from_paths([paths[0]]).samples[0], valid=tmp_path / "valid.png")
    assert only_values(smoke_detector.score(sample)) == only_values(expected)


def test_the_map_has_the_grid_of_the_image_at_every_working_scale(part_manifest: Manifest) -> None:
    config = load_config("smoke", ["training.steps=1", "geometry.max_side_px=32", "scoring.standardise=context"])
    detector = fit(part_manifest, config, device="cpu")
    assert detector.geometry.factor == 0.5
    for shape in ((64, 64), (50, 90), (64, 63)):
        image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
        anomaly_map = detector.score(image).anomaly_map
        assert anomaly_map is not None
        assert (anomaly_map.shape, anomaly_map.dtype) == (shape, np.float32)
    x, x_hat = detector.reconstruct(np.zeros((50, 90), np.uint8))
    assert x.shape == x_hat.shape == (1, 25, 45)


def test_brighter_than_ever_seen_stays_visible(smoke_detector: Detector, paths: list[Path]) -> None:
    x, _ = smoke_detector.reconstruct(np.full((64, 64), 1000, np.uint16))
    assert x.min() == x.max() == 1 + smoke_detector.config.intensity.headroom
    inside = smoke_detector.in_unit_range(read_image(paths[0]))
    assert 0 <= inside.min() < 0.1
    assert 0.9 < inside.max() <= 1


# --- colour ---


def test_a_colourless_picture_under_a_colour_model_has_three_equal_channels(colour_detector: Detector) -> None:
    grey = np.repeat(colour_noise(5)[..., :1], 3, axis=2)
    image = image_from(grey)
    assert (image.n_channels, image.was_grey_rgb) == (1, True)
    assert np.isfinite(colour_detector.score(grey).score)
    assert colour_detector.in_unit_range(image).shape == (3, 32, 32)
    assert np.isfinite(list(colour_detector.baseline_scores(image).values())).all()
    with pytest.raises(IncompatibleImageError, match="1 channel"):
        colour_detector.score(grey[..., 0])  # a file with one channel is another kind of image


def test_every_channel_is_scaled_by_its_own_limits(colour_detector: Detector) -> None:
    limits = colour_detector.mapper.get_buffer("limits").numpy()
    np.testing.assert_allclose(limits, [[0, 100], [50, 150], [100, 200]], atol=1)
    x, _ = colour_detector.reconstruct(colour_noise(3))
    assert all(0 <= channel.min() < 0.05 and 0.95 < channel.max() <= 1.02 for channel in x)


def test_limits_of_each_image_where_the_policy_says_so(part_manifest: Manifest, paths: list[Path]) -> None:
    config = load_config("smoke", ["training.steps=1", "intensity.policy=volume_percentile"])
    detector = fit(part_manifest, config, device="cpu")
    pixels = pixels_of(paths[0]).astype(np.float64)
    assert detector.score(pixels * 7 + 1000).score == pytest.approx(detector.score(pixels).score, rel=1e-3)
    limits = detector.limits_of(detector.prepare(image_from(pixels)))
    assert limits.tolist() == [np.percentile(pixels, (0.1, 99.9)).tolist()]


def test_window_of_each_file_where_the_policy_says_so(smoke_detector: Detector, paths: list[Path]) -> None:
    config = with_values(smoke_detector.config, intensity={"policy": "file_window"})
    d = smoke_detector
    detector = Detector(d.ensemble, config, d.geometry, d.provenance, d.device, d.baseline, d.scores, d.thresholds)
    image = image_from(pixels_of(paths[0]).astype(np.float64))
    shown, brighter = (replace(image, pixels=image.pixels * k, window=(0.0, k * 200.0)) for k in (1.0, 2.0))
    assert detector.limits_of(detector.prepare(shown)).tolist() == [[0, 200]]
    assert detector.score(brighter).score == pytest.approx(detector.score(shown).score, rel=1e-4)
    np.testing.assert_allclose(detector.in_unit_range(brighter), detector.in_unit_range(shown), atol=1e-6)
    with pytest.raises(IncompatibleImageError, match="says no window"):
        detector.score(image)


# --- refusals ---


def test_an_image_that_does_not_fit_is_refused_with_the_numbers(smoke_detector: Detector) -> None:
    with pytest.raises(IncompatibleImageError, match=r"3 channel.*trained on 1"):
        smoke_detector.score(colour_noise(0))
    with pytest.raises(UnreadableImageError, match="NaN"):
        smoke_detector.score(np.full((64, 64), np.nan, np.float32))
    with pytest.raises(UsageError, match="cannot make an image of a list"):
        smoke_detector.score([1, 2, 3])
    with pytest.raises(DataError, match="does not exist"):
        smoke_detector.score("nowhere.png")


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (31, 64), (64, 31), (129, 64), (3, 500), (700, 9)])
def test_an_image_of_quite_another_size_is_a_failure_never_normal(
    smoke_detector: Detector, smoke_model_file: Path, shape: tuple[int, int], tmp_path: Path
) -> None:
    Picture.fromarray(np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)).save(tmp_path / "odd.png")
    sample = manifest_from_paths([tmp_path / "odd.png"]).samples[0]
    for detector in (smoke_detector, Detector.load(smoke_model_file, "cpu")):
        (result,) = detector.score_many([sample])
        assert isinstance(result, Failure)
        assert f"has {shape[0]} x {shape[1]} px: the model was trained on 64 x 64 px" in result.reason
        ((_, measured),) = detector.measure_many([sample])
        assert isinstance(measured, IncompatibleImageError), "nor does it set a threshold"


@pytest.mark.parametrize("shape", [(32, 128), (128, 32)])
def test_half_and_twice_the_size_are_taken(smoke_detector: Detector, shape: tuple[int, int]) -> None:
    assert np.isfinite(smoke_detector.score(np.zeros(shape, np.uint8)).score)


def test_a_folder_or_a_stack_is_not_one_image(smoke_detector: Detector, part_folder: Path, tmp_path: Path) -> None:
    import tifffile

    (tmp_path / "only").mkdir()
    shutil.copy(part_folder / "test" / "good" / "000.png", tmp_path / "only")
    for folder in (part_folder / "test" / "good", tmp_path / "only", str(tmp_path)):
        with pytest.raises(UsageError, match="is a folder"):
            smoke_detector.score(folder)
    with pytest.raises(UsageError, match="path is empty"):
        smoke_detector.score("")
    stack = np.random.default_rng(0).integers(0, 256, (3, 64, 64)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack")
    with pytest.raises(UsageError, match="holds 3 images or frames"):
        smoke_detector.score(tmp_path / "stack.tif")
    frames = manifest_from_paths([tmp_path / "stack.tif"]).samples
    found = [only_values(s) for s in smoke_detector.score_many(frames) if isinstance(s, Score)]
    assert found == [only_values(smoke_detector.score(frame)) for frame in stack]


def test_a_model_without_calibration_decides_nothing(smoke_detector: Detector, paths: list[Path]) -> None:
    d = smoke_detector
    bare = Detector(d.ensemble, d.config, d.geometry, d.provenance, d.device, d.baseline)
    with pytest.raises(ModelFileError, match="no thresholds"):
        bare.score(paths[0])


def test_an_unknown_device_is_refused() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("gpu", "cuda:99", "mps", "meta-physical"):
        with pytest.raises(UsageError, match=f"no device '{name}' here: torch cannot use it .*auto, cpu") as caught:
            choose_device(name)
        assert len(str(caught.value)) < 200


# --- baselines ---


def test_baseline_scores_are_mean_grey_and_the_residual_of_the_training_images(
    smoke_detector: Detector, part_manifest: Manifest, paths: list[Path]
) -> None:
    image = read_image(paths[0])
    low, high = smoke_detector.mapper.get_buffer("limits").tolist()[0]
    found = smoke_detector.baseline_scores(image)
    assert found["mean grey"] == pytest.approx((image.pixels.mean() - low) / (high - low), abs=1e-4)
    learned = set(smoke_detector.provenance["image_hashes"]["train"])
    train = next(s for s in part_manifest.samples if pixel_sha256(read_sample(s))[:16] in learned)
    upside_down = replace(image, pixels=image.pixels[:, ::-1].copy())
    known = smoke_detector.baseline_scores(read_sample(train))["PCA residual"]
    assert 0 < known < smoke_detector.baseline_scores(upside_down)["PCA residual"]


# --- the file ---


def test_a_loaded_detector_is_the_saved_one(
    smoke_detector: Detector, smoke_model_file: Path, paths: list[Path]
) -> None:
    loaded = Detector.load(smoke_model_file, "cpu")
    assert loaded.weights_sha256 == smoke_detector.weights_sha256
    assert loaded.config == smoke_detector.config
    assert loaded.geometry == smoke_detector.geometry
    assert loaded.calibrated[1] == smoke_detector.calibrated[1]
    for path in paths:
        first, again = smoke_detector.score(path), loaded.score(path)
        assert only_values(first) == only_values(again)
        assert first.thresholds_sha256 == again.thresholds_sha256
        image = read_image(path)
        assert loaded.baseline_scores(image) == smoke_detector.baseline_scores(image)
    scores = [d.calibrated[0].as_json() for d in (smoke_detector, loaded)]
    assert scores[0] == scores[1]


def test_saving_a_loaded_detector_writes_the_same_file(
    smoke_detector: Detector, smoke_model_file: Path, tmp_path: Path
) -> None:
    digest = smoke_detector.save(tmp_path / "first.safetensors")
    loaded = Detector.load(tmp_path / "first.safetensors", "cpu")
    assert loaded.provenance["file"] == "first.safetensors"
    assert loaded.provenance["file_sha256"] == digest
    assert loaded.save(tmp_path / "second.safetensors") == digest
    assert (tmp_path / "second.safetensors").read_bytes() == smoke_model_file.read_bytes()


def test_the_file_holds_no_name_of_an_image_a_group_or_a_folder(
    part_folder: Path, part_manifest: Manifest, smoke_model_file: Path
) -> None:
    content = smoke_model_file.read_bytes()
    groups = {s.group for s in part_manifest.samples}
    assert "train-lot-0003" in groups
    for text in (part_folder.parent.name, ".png", "train/good", "good/", "lot", *groups):
        assert text.encode() not in content
        assert text.encode("utf-16-le") not in content
    assert part_manifest.samples[0].id.encode() not in content
    for word in (b"pickle", b"torch_version", b"PK\x03\x04"):
        assert word not in content


def test_calibration_sits_in_the_file_as_float64_without_names(
    smoke_detector: Detector, smoke_model_file: Path
) -> None:
    tensors, values, _ = read_tensors(smoke_model_file, "model")
    scores, thresholds = smoke_detector.calibrated
    assert tensors["calibration.image"].dtype == torch.float64
    assert tensors["calibration.image"].tolist() == scores.image.tolist()
    assert tensors["calibration.image_group"].dtype == torch.int64
    assert values["thresholds"] == thresholds.as_json()
    assert set(values) == {"version", "config", "geometry", "thresholds", "provenance"}


def test_a_cut_or_changed_model_file_is_refused(smoke_model_file: Path, tmp_path: Path) -> None:
    content = smoke_model_file.read_bytes()
    for name, damaged in {
        "cut": content[: len(content) // 2],
        "empty": b"",
        "changed": content[:-100] + bytes([content[-100] ^ 1]) + content[-99:],
        "foreign": b"\x89PNG\r\n\x1a\n" + content,
    }.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(damaged)
        with pytest.raises(ModelFileError, match=name):
            Detector.load(path, "cpu")
    with pytest.raises(ModelFileError, match="cannot read"):
        Detector.load(tmp_path / "missing.safetensors", "cpu")


def test_a_model_moved_elsewhere_scores_the_same(smoke_model_file: Path, tmp_path: Path, paths: list[Path]) -> None:
    shutil.copy(smoke_model_file, tmp_path / "other name.safetensors")
    first, moved = (Detector.load(p, "cpu") for p in (smoke_model_file, tmp_path / "other name.safetensors"))
    assert only_values(first.score(paths[0])) == only_values(moved.score(paths[0]))


def test_a_detector_describes_itself_in_words(smoke_model_file: Path) -> None:
    loaded = Detector.load(smoke_model_file, "cpu")
    text = "\n".join(loaded.describe())
    for words in (
        f"{loaded.provenance['n_parameters']:,} parameters",
        "preset smoke: asked for",
        "on cpu, seed 0, 20 steps",
        "normal images: ",
        loaded.calibrated[1].image.promise,
        f"weights {loaded.weights_sha256}",
        loaded.provenance["file_sha256"],
        "64 x 64 px are mapped as they are",
    ):
        assert words in text
    assert "None" not in text


@pytest.mark.parametrize(
    "change",
    [
        lambda d: setattr(d, "config", with_values(d.config, scoring={"pooling": "top_share"})),
        lambda d: setattr(d, "config", with_values(d.config, intensity={"headroom": 2.0})),
        lambda d: setattr(d, "geometry", replace(d.geometry, factor=0.5)),
        lambda d: setattr(d, "geometry", replace(d.geometry, largest_px=(999, 999))),
        lambda d: d.mapper.get_buffer("limits").add_(1),
    ],
)
def test_whatever_decides_a_score_is_in_the_hash_of_the_weights(
    change: Callable[[Detector], None], smoke_model_file: Path
) -> None:
    detector, other = Detector.load(smoke_model_file, "cpu"), Detector.load(smoke_model_file, "cpu")
    change(other)
    assert detector.weights_sha256 != other.weights_sha256


def test_how_a_model_was_trained_is_not_in_the_hash_of_the_weights(smoke_model_file: Path) -> None:
    detector, other = Detector.load(smoke_model_file, "cpu"), Detector.load(smoke_model_file, "cpu")
    other.config = with_values(other.config, training={"steps": 7})
    assert detector.weights_sha256 == other.weights_sha256


def test_images_of_any_size_may_be_in_a_store(smoke_detector: Detector, tmp_path: Path) -> None:
    """A validation image that is smaller than those of the training part must not stop a fit."""
    Picture.fromarray(np.arange(200, dtype=np.uint8).reshape(10, 20)).save(tmp_path / "odd.png")
    with smoke_detector.store(manifest_from_paths([tmp_path / "odd.png"]).samples) as store:
        assert len(store) == 1


def test_windows_change_no_score(any_size_detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    """A map made tile by tile is the map made at once, but for the rounding of float32."""
    detector = any_size_detector
    image = np.random.default_rng(0).integers(0, 256, (300, 420)).astype(np.uint8)
    prepared = prepare(image_from(image), detector.geometry, 1)  # larger than the detector takes
    whole = detector.anomaly_map(prepared)
    monkeypatch.setattr(detector.mapper, "window_px", 256)
    tiled: FloatArray = detector.anomaly_map(prepared)
    np.testing.assert_allclose(tiled, whole, rtol=1e-3, atol=1e-3)
    assert not np.array_equal(tiled, np.zeros_like(tiled))
