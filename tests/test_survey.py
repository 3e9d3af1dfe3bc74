"""What is found out about the training images before anything is learned, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

from anomaly_ae import survey as survey_module
from anomaly_ae.config import load_config
from anomaly_ae.errors import ConfigError, DataError
from anomaly_ae.listener import Listener
from anomaly_ae.prepare import resample
from anomaly_ae.records import PixelArray, Sample
from anomaly_ae.survey import (
    Survey,
    alignment,
    choose_preset,
    dataset_limits,
    readable_forms,
    readable_parts,
    survey_images,
)
from anomaly_ae.synthetic import make_part, make_surface

SIDE_PX = 64
QUIET = Listener()


def write(folder: Path, images: Iterable[PixelArray]) -> tuple[Sample, ...]:
    samples = []
    for number, pixels in enumerate(images):
        path = folder / f"{number:03d}.npy"
        np.save(path, pixels)
        samples.append(Sample(path.name, path.name, (path,), group=path.name, unit=path.name))
    return tuple(samples)


def drawn(make: Callable[..., PixelArray], n: int = 12, side_px: int = SIDE_PX) -> list[PixelArray]:
    return [(make(np.random.default_rng(i), side_px) * 255).astype(np.uint8) for i in range(n)]


def noise(n: int, shape: tuple[int, ...] = (32, 32), dtype: type = np.uint8) -> list[PixelArray]:
    return [np.random.default_rng(i).integers(0, 200, shape).astype(dtype) for i in range(n)]


def survey_of(folder: Path, images: Iterable[PixelArray], listener: Listener = QUIET) -> Survey:
    return survey_images(write(folder, images), 0, listener)


# --- alignment and preset ---


def test_parts_in_a_fixture_are_aligned_and_get_the_object_preset(tmp_path: Path) -> None:
    survey = survey_of(tmp_path, drawn(make_part))
    assert alignment(survey.thumbnails) > 0.9
    assert survey.is_aligned
    name, reason = choose_preset(survey)
    assert name == "object"
    assert f"correlation with their mean {alignment(survey.thumbnails):.2f}" in reason


def test_a_surface_has_no_places_and_gets_the_texture_preset(tmp_path: Path) -> None:
    survey = survey_of(tmp_path, drawn(make_surface))
    assert abs(alignment(survey.thumbnails)) < 0.3
    assert not survey.is_aligned
    name, reason = choose_preset(survey)
    assert name == "texture"
    assert "nothing is in the same place" in reason


def test_parts_that_are_moved_and_turned_get_the_default_preset(tmp_path: Path) -> None:
    def moved(rng: np.random.Generator, side_px: int) -> PixelArray:
        return np.roll(make_part(rng, side_px), tuple(rng.integers(-10, 10, 2)), axis=(0, 1))

    survey = survey_of(tmp_path, drawn(moved, n=20))
    assert 0.3 < alignment(survey.thumbnails) < 0.8
    name, reason = choose_preset(survey)
    assert name == "default"
    assert "not on one grid" in reason


def test_equal_content_in_different_sizes_is_not_aligned(tmp_path: Path) -> None:
    images = drawn(make_part, n=6) + drawn(make_part, n=6, side_px=48)
    survey = survey_of(tmp_path, images)
    assert alignment(survey.thumbnails) > 0.9
    assert not survey.is_aligned
    assert choose_preset(survey)[0] != "object"


def test_grey_images_with_a_spacing_get_the_radiograph_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = survey_module.read_sample
    monkeypatch.setattr(survey_module, "read_sample", lambda sample: replace(read(sample), spacing_mm=(0.2, 0.2)))
    survey = survey_of(tmp_path, drawn(make_surface))
    assert survey.has_spacing
    name, reason = choose_preset(survey)
    assert name == "radiograph"
    assert "pixel spacing" in reason
    assert choose_preset(replace(survey, n_channels=3))[0] == "texture"  # a colour picture is no radiograph
    assert choose_preset(replace(survey, spacings_mm=(None,) * len(survey.shapes)))[0] == "texture"


def test_alignment_is_the_median_correlation_with_the_mean_of_the_others() -> None:
    thumbnails = [
        np.random.default_rng(i).random((1, 8, 8)) + make_part(np.random.default_rng(0), 32)[:8, :8] * 3
        for i in range(5)
    ]
    correlations = []
    for i, one in enumerate(thumbnails):
        others = np.mean([t for j, t in enumerate(thumbnails) if j != i], axis=0)
        correlations.append(np.corrcoef(one.ravel(), others.ravel())[0, 1])
    assert alignment(thumbnails) == pytest.approx(np.median(correlations))


def test_a_constant_image_among_others_gives_no_nan() -> None:
    thumbnails = [np.zeros((1, 8, 8)), *(np.random.default_rng(i).random((1, 8, 8)) for i in range(4))]
    assert np.isfinite(alignment(thumbnails))


# --- what a survey holds ---


def test_extremes_pixels_and_thumbnails_are_those_of_the_images(tmp_path: Path) -> None:
    images = [*noise(3), *noise(2, (40, 24))]
    survey = survey_of(tmp_path, images)
    assert survey.shapes == ((32, 32),) * 3 + ((40, 24),) * 2
    assert survey.extremes.tolist() == [[[i.min(), i.max()]] for i in images]
    for image, pixels, thumbnail in zip(images, survey.pixels, survey.thumbnails, strict=True):
        assert set(pixels.ravel().tolist()) <= set(image.ravel().tolist())
        assert np.array_equal(thumbnail, resample(image[np.newaxis], (64, 64)))
    assert (survey.n_channels, survey.bits_stored, survey.has_spacing) == (1, 8, False)


def test_invalid_pixels_count_nowhere(tmp_path: Path) -> None:
    images = [np.where(np.arange(32) < 8, 250, image).astype(np.uint8) for image in noise(4)]
    Picture.fromarray(np.broadcast_to((np.arange(32) >= 8) * np.uint8(255), (32, 32))).save(tmp_path / "valid.png")
    samples = [replace(s, valid=tmp_path / "valid.png") for s in write(tmp_path, images)]
    survey = survey_images(samples, 0, QUIET)
    assert survey.extremes.max() < 250
    assert max(pixels.max() for pixels in survey.pixels) < 250


def test_the_same_seed_draws_the_same_pixels(tmp_path: Path) -> None:
    samples = write(tmp_path, noise(3, (200, 200)))
    first, again, other = (survey_images(samples, seed, QUIET).pixels[2] for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_many_images_share_a_budget_of_pixels_in_the_type_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = write(tmp_path, noise(5, (20, 30), np.uint16))
    whole = survey_images(samples, 0, QUIET)
    monkeypatch.setattr(survey_module, "N_PIXELS", 500)
    some = survey_images(samples, 0, QUIET)
    assert [p.shape for p in whole.pixels] == [(1, 600)] * 5, "as many as an image has"
    assert [p.shape for p in some.pixels] == [(1, 100)] * 5
    assert {p.dtype for p in (*whole.pixels, *some.pixels)} == {np.dtype(np.uint16)}


def test_the_budget_leaves_all_pixels_to_a_thousand_images() -> None:
    assert survey_module._n_pixels_each(1_000) == survey_module.N_PIXELS_PER_IMAGE
    assert survey_module._n_pixels_each(1_001) < survey_module.N_PIXELS_PER_IMAGE


# --- intensity limits ---


def limits_of(survey: Survey, *settings: str) -> list[list[float]]:
    return dataset_limits(survey, load_config("default", settings)).tolist()


def test_limits_by_range_and_by_percentile(tmp_path: Path) -> None:
    images = [np.stack([image, image.astype(np.uint16) + 1000], axis=-1) for image in noise(5, dtype=np.uint16)]
    images[0][0, 0] = (60000, 65000)  # a hot pixel
    survey = survey_of(tmp_path, images)
    low = [float(min(i[..., c].min() for i in images)) for c in (0, 1)]
    assert limits_of(survey, "intensity.policy=range") == [[low[0], 60000.0], [low[1], 65000.0]]
    found = limits_of(survey, "intensity.policy=percentile")
    everything = np.concatenate([i.reshape(-1, 2) for i in images])
    # Every pixel may be drawn several times and the hot one too, but one in 5,120 is below 0.1 %.
    np.testing.assert_allclose(found, np.percentile(everything, (0.1, 99.9), axis=0).T, atol=3)
    assert found[0][1] < 210


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_percentiles_are_those_of_all_drawn_pixels_as_float64(tmp_path: Path, dtype: type) -> None:
    survey = survey_of(tmp_path, noise(6, (40, 40, 3), dtype))
    pooled = np.concatenate(survey.pixels, axis=1).astype(np.float64)
    settings = ("intensity.policy=percentile", "intensity.low_percentile=0.3", "intensity.high_percentile=98.7")
    assert limits_of(survey, *settings) == np.percentile(pooled, (0.3, 98.7), axis=1).T.tolist()


@pytest.mark.parametrize(("low", "high"), [(-1000.0, 0.0), (0.0, 4095.0), (-5.0, -1.0)])
def test_limits_of_a_window_are_the_ones_given(tmp_path: Path, low: float, high: float) -> None:
    survey = survey_of(tmp_path, noise(8, (32, 32, 3)))
    settings = ("intensity.policy=window", f"intensity.low={low}", f"intensity.high={high}")
    assert limits_of(survey, *settings) == [[low, high]] * 3


def test_limits_by_dtype_are_all_stored_bits(tmp_path: Path) -> None:
    survey = survey_of(tmp_path, noise(8, dtype=np.uint16))
    assert limits_of(survey, "intensity.policy=dtype") == [[0.0, 65535.0]]
    assert limits_of(replace(survey, bits_stored=12), "intensity.policy=dtype") == [[0.0, 4095.0]]


def test_floating_point_pixels_have_no_limits_by_dtype(tmp_path: Path) -> None:
    survey = survey_of(tmp_path, [*noise(4), *noise(4, dtype=np.float32)])  # one kind of image is enough
    with pytest.raises(ConfigError, match=r"floating-point pixels.*intensity.policy=percentile or range"):
        limits_of(survey, "intensity.policy=dtype")


def test_images_of_one_grey_level_each_have_limits_that_differ(tmp_path: Path) -> None:
    survey = survey_of(tmp_path, [np.full((32, 32), 7, np.uint8), np.full((32, 32), 7, np.uint8) + (np.eye(32) > 0)])
    ((low, high),) = limits_of(replace(survey, pixels=(np.full((1, 5), 7.0),)))
    assert (low, high) == (7.0, 8.0)


# --- what is refused or left out ---


def test_identical_images_are_refused(tmp_path: Path) -> None:
    image = drawn(make_part, n=1)[0]
    with pytest.raises(DataError, match="all training images are identical"):
        survey_of(tmp_path, [image] * 10)
    assert len(survey_of(tmp_path, [image, image, 255 - image]).shapes) == 3  # copies alone are no error


def test_mixed_channels_are_refused_with_the_counts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="training images have 1 and 3 channels") as caught:
        survey_of(tmp_path, [*noise(4), *noise(4, (32, 32, 3))])
    assert "one manifest per kind" in caught.value.fix


def grey_as_colour(image: PixelArray) -> PixelArray:
    return np.stack([image] * 3, axis=-1)


def test_grey_pictures_saved_as_colour_are_grey_and_that_is_said_once(tmp_path: Path) -> None:
    lines: list[str] = []
    survey = survey_of(tmp_path, [grey_as_colour(i) for i in noise(6)] + noise(2), Listener(say=lines.append))
    assert survey.n_channels == 1
    assert lines == ["colour files with three equal channels are treated as grey"]


def test_a_colourless_picture_in_a_colour_set_is_colour(tmp_path: Path) -> None:
    lines: list[str] = []
    images = [*noise(3, (32, 32, 3)), grey_as_colour(noise(1)[0])]
    survey = survey_of(tmp_path, images, Listener(say=lines.append))
    assert survey.n_channels == 3
    assert {t.shape for t in survey.thumbnails} == {(3, 64, 64)}
    assert {len(p) for p in survey.pixels} == {3}
    assert survey.extremes.shape == (4, 3, 2)
    assert lines == []


def test_unreadable_files_are_left_out_and_named(tmp_path: Path) -> None:
    samples = write(tmp_path, noise(12))
    (tmp_path / "003.npy").write_bytes(b"")
    (tmp_path / "010.npy").unlink()
    lines: list[str] = []
    parts = {"train": samples[:8], "validation": samples[8:10], "calibration": samples[10:]}
    kept, forms = readable_parts(parts, Listener(say=lines.append))
    assert [s.id for s in kept["train"]] == [f"{i:03d}.npy" for i in (0, 1, 2, 4, 5, 6, 7)]
    assert [s.id for s in kept["validation"]] == ["008.npy", "009.npy"]
    assert [s.id for s in kept["calibration"]] == ["011.npy"]
    assert set(forms) == {s.id for part in kept.values() for s in part}
    assert len(lines) == 2
    assert lines[0].startswith("left out: ")
    assert "003.npy" in lines[0]
    assert "010.npy" in lines[1]


def test_the_form_of_an_image_is_known_after_reading(tmp_path: Path) -> None:
    grey, wide = noise(2, (32, 40))
    images = [*noise(7), grey, grey_as_colour(wide), *noise(1, (24, 16, 3))]
    samples = write(tmp_path, images)
    _, forms = readable_parts({"train": samples[:8], "validation": samples[8:9], "calibration": samples[9:]}, QUIET)
    found = [(forms[f"00{i}.npy"].n_channels, forms[f"00{i}.npy"].was_grey_rgb) for i in (0, 7, 8, 9)]
    assert found == [(1, False), (1, False), (1, True), (3, False)]


def test_an_image_has_one_hash_in_every_dtype_and_another_one_has_another(tmp_path: Path) -> None:
    images = noise(8)
    images[1] = images[0].astype(np.float32)
    forms = readable_forms(write(tmp_path, images), QUIET)
    hashes = [form.pixel_hash for form in forms.values()]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 7
    assert {len(one) for one in hashes} == {16}


@pytest.mark.parametrize("damaged", [range(5), range(10, 12)], ids=["fewer than eight", "a whole part"])
def test_too_few_readable_files_are_refused(tmp_path: Path, damaged: range) -> None:
    samples = write(tmp_path, noise(12))
    for i in damaged:
        (tmp_path / f"{i:03d}.npy").write_bytes(b"no image")
    parts = {"train": samples[:8], "validation": samples[8:10], "calibration": samples[10:]}
    with pytest.raises(DataError, match=f"only {12 - len(damaged)} of 12 normal images can be used"):
        readable_parts(parts, QUIET)


def test_progress_counts_every_image(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    listener = Listener(progress=lambda stage, done, total, detail: seen.append((stage, done, total)))
    samples = write(tmp_path, noise(9))
    readable_parts({"train": samples[:5], "validation": samples[5:7], "calibration": samples[7:]}, listener)
    survey_images(samples, 0, listener)
    stages = ("reading", "looking at the training images")
    assert seen == [(stage, i, 9) for stage in stages for i in range(1, 10)]


def test_an_image_that_became_unreadable_stops_the_survey(tmp_path: Path) -> None:
    samples = write(tmp_path, noise(3))
    (tmp_path / "001.npy").write_bytes(b"")
    with pytest.raises(survey_module.AnomalyAEError, match=r"001\.npy"):
        survey_images(samples, 0, QUIET)
