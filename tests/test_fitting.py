"""From a manifest to a calibrated detector: what is learned from which images, and what is refused before training."""

from __future__ import annotations

import copy
import random
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image as Picture
from torch import Tensor

from anomaly_ae import fitting, learning, training
from anomaly_ae.calibration import Asked, thresholds_by
from anomaly_ae.config import Config, load_config
from anomaly_ae.detector import Detector
from anomaly_ae.errors import CalibrationError, ConfigError, DataError, ModelFileError, UsageError
from anomaly_ae.fitting import calibrate, calibration_samples, fit
from anomaly_ae.listener import Listener
from anomaly_ae.loading import read_sample
from anomaly_ae.manifest import Manifest, load_manifest, scan, split_normals
from anomaly_ae.model import size_multiple
from anomaly_ae.readers import pixel_sha256
from anomaly_ae.records import PixelArray, Sample
from anomaly_ae.scoring import AnomalyMapper
from anomaly_ae.threshold import parse_rate


@pytest.fixture(autouse=True)
def _few_norm_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "N_NORM_BATCHES", 3)


def config_of(*settings: str) -> Config:
    return load_config("smoke", ["training.steps=4", "training.validate_every=2", *settings])


def save_images(folder: Path, images: Sequence[PixelArray]) -> Manifest:
    """A flat folder of normal images, every one its own group."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, pixels in enumerate(images):
        np.save(folder / f"{number:03d}.npy", pixels)
    return load_manifest(folder)


def noise(n: int, shape: tuple[int, ...] = (32, 32), seed: int = 0) -> list[PixelArray]:
    return list(np.random.default_rng(seed).integers(0, 256, (n, *shape)).astype(np.uint8))


@pytest.fixture
def noise_manifest(tmp_path: Path) -> Manifest:
    return save_images(tmp_path / "noise", noise(30))


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        pytest.fail("training began")

    monkeypatch.setattr(learning, "train", fail)


def hashes_of(samples: Sequence[Sample]) -> list[str]:
    return [pixel_sha256(read_sample(s))[:16] for s in samples]


def frames_of_one_file(folder: Path, images: Sequence[PixelArray]) -> Manifest:
    path = folder / "stack.tif"
    tifffile.imwrite(path, np.stack(images), photometric="minisblack")
    names = [f"#{i}" for i in range(len(images))]
    samples = tuple(Sample(name, "stack.tif", (path,), frame=i, group=name, unit=name) for i, name in enumerate(names))
    return Manifest(folder, samples, (), "csv")


def said(run: Callable[[Listener], object]) -> list[str]:
    lines: list[str] = []
    run(Listener(say=lines.append))
    return lines


# --- what decides on the weights ---


def test_deleting_the_test_images_changes_nothing(part_folder: Path, tmp_path: Path) -> None:
    with_test = fit(load_manifest(part_folder), config_of(), device="cpu")
    shutil.copytree(part_folder, tmp_path / "part", ignore=shutil.ignore_patterns("test", "ground_truth", "*.csv"))
    without = fit(load_manifest(tmp_path / "part"), config_of(), device="cpu")
    assert not (tmp_path / "part" / "test").exists()
    assert without.weights_sha256 == with_test.weights_sha256
    assert without.calibrated[1].as_json() == with_test.calibrated[1].as_json()


def test_neither_the_order_of_the_rows_nor_the_place_of_the_folder_matters(
    part_folder: Path, part_manifest: Manifest, tmp_path: Path
) -> None:
    shutil.copytree(part_folder, tmp_path / "moved")
    moved = load_manifest(tmp_path / "moved")
    rows = random.Random(0).sample(moved.samples, len(moved.samples))
    first = fit(part_manifest, config_of(), device="cpu")
    again = fit(replace(moved, samples=tuple(rows)), config_of(), device="cpu")
    assert again.weights_sha256 == first.weights_sha256
    assert again.calibrated[1].as_json() == first.calibrated[1].as_json()


def test_the_one_seed_decides_on_split_and_weights(noise_manifest: Manifest) -> None:
    zero, again, one = (fit(noise_manifest, config_of(f"seed={s}"), device="cpu") for s in (0, 0, 1))
    assert zero.weights_sha256 == again.weights_sha256 != one.weights_sha256
    split = config_of().split
    parts = split_normals(noise_manifest.samples, split.validation_share, split.calibration_share, seed=1)
    expected = {name: hashes_of(part) for name, part in parts.items()}
    assert one.provenance["image_hashes"] == expected
    assert zero.provenance["image_hashes"] != expected
    assert (one.provenance["seed"], one.config.seed) == (1, 1)


def test_calibration_images_take_part_in_nothing_before_the_thresholds(
    noise_manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned_from: set[str] = set()
    survey, store = fitting.survey_images, Detector.store

    def watched_survey(samples: Sequence[Sample], *args: object) -> object:
        learned_from.update(s.id for s in samples)
        return survey(samples, *args)  # type: ignore[arg-type]

    def watched_store(self: Detector, samples: Sequence[Sample]) -> object:
        learned_from.update(s.id for s in samples)
        return store(self, samples)

    monkeypatch.setattr(fitting, "survey_images", watched_survey)
    monkeypatch.setattr(Detector, "store", watched_store)
    config = config_of()
    detector = fit(noise_manifest, config, device="cpu")
    parts = split_normals(noise_manifest.samples, config.split.validation_share, config.split.calibration_share, 0)
    assert learned_from == {s.id for name in ("train", "validation") for s in parts[name]}
    assert len(detector.calibrated[0].image) == len(parts["calibration"]) == 6
    assert {name: len(part) for name, part in parts.items()} == detector.provenance["n_images"]


def test_other_calibration_images_change_thresholds_but_no_weight(part_folder: Path, tmp_path: Path) -> None:
    config = config_of()
    manifest = load_manifest(part_folder)
    parts = split_normals(manifest.samples, config.split.validation_share, config.split.calibration_share, 0)
    marked = [replace(s, split=name) for name, part in parts.items() for s in part]
    fewer = [s for s in marked if s.split != "calibration"] + [
        replace(s, split="calibration") for s in parts["calibration"][:5]
    ]
    first, second = (fit(replace(manifest, samples=tuple(rows)), config, device="cpu") for rows in (marked, fewer))
    assert first.weights_sha256 == second.weights_sha256
    assert len(first.calibrated[0].image) == len(parts["calibration"])
    assert len(second.calibrated[0].image) == 5


# --- what is refused, and when ---


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(("rate", "confidence"), [("0.01", None), ("0.1", None), ("0.2", "0.95")])
def test_a_rate_out_of_reach_is_refused_before_training(
    noise_manifest: Manifest, rate: str, confidence: str | None
) -> None:
    """Six calibration images support 1/7; with 95 % confidence, 1 - 0.05 ** (1 / 6) = 39 %."""
    with pytest.raises(CalibrationError, match="out of reach") as caught:
        fit(noise_manifest, config_of(), rate=rate, confidence=confidence, device="cpu")
    assert "6 normal images" in caught.value.what


@pytest.mark.parametrize(("rate", "confidence"), [("1/7", None), ("0.4", "0.95")])
def test_a_rate_within_reach_is_kept(noise_manifest: Manifest, rate: str, confidence: str | None) -> None:
    detector = fit(noise_manifest, config_of(), rate=rate, confidence=confidence, device="cpu")
    scores, thresholds = detector.calibrated
    assert (thresholds.image.rate, thresholds.image.n) == ("1/7" if confidence is None else "2/5", 6)
    assert thresholds.image.value > scores.image.max()


@pytest.mark.usefixtures("no_training")
def test_groups_count_and_not_images_for_the_rate(part_manifest: Manifest) -> None:
    with pytest.raises(CalibrationError, match="in 3 groups"):  # 15 images of 3 lots
        fit(part_manifest, config_of(), rate="0.1", device="cpu")


def test_what_will_be_done_is_said_before_training(noise_manifest: Manifest) -> None:
    lines = said(lambda listener: fit(noise_manifest, config_of(), device="cpu", listener=listener))
    assert lines[0] == "preset smoke: asked for"
    assert lines[1].startswith("32 x 32 px are mapped as they are")
    assert lines[2].startswith("reachable false-alarm rate: 14.3 % (1/7) with 6 normal images")
    assert lines[3].startswith("training on the CPU (")
    assert lines[3].endswith("4 steps")


@pytest.mark.usefixtures("no_training")
def test_identical_images_are_refused(tmp_path: Path) -> None:
    images = [noise(1)[0]] * 30
    with pytest.raises(DataError, match=r"identical|copies"):
        fit(save_images(tmp_path / "same", images), config_of(), device="cpu")


def part_of(manifest: Manifest, name: str) -> tuple[Sample, ...]:
    """What becomes of a manifest without splits."""
    split = config_of().split
    return split_normals(manifest.samples, split.validation_share, split.calibration_share, 0)[name]


@pytest.mark.parametrize("part", ["train", "validation", "calibration"])
def test_an_image_of_another_size_is_welcome_wherever_it_is(noise_manifest: Manifest, part: str) -> None:
    np.save(part_of(noise_manifest, part)[0].files[0], noise(1, (32, 44), seed=1)[0])
    made = fit(noise_manifest, config_of(), rate="1/7", device="cpu").provenance
    assert made["n_unusable"] == 0


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("shape", "words"),
    [((32, 32, 3), "has 3 channel(s), the training images have 1"), ((32, 70), "has 32 x 70 px: the model was")],
)
def test_calibration_images_that_do_not_fit_are_left_out_before_the_rate_is_checked(
    noise_manifest: Manifest, shape: tuple[int, ...], words: str
) -> None:
    odd = part_of(noise_manifest, "calibration")[1]
    np.save(odd.files[0], noise(1, shape, seed=1)[0])
    lines: list[str] = []
    with pytest.raises(CalibrationError, match="5 normal images"):  # the six of the part would support 1/7
        fit(noise_manifest, config_of(), rate="1/7", device="cpu", listener=Listener(say=lines.append))
    (named,) = [line for line in lines if "left out" in line]
    assert named.startswith(f"left out of the calibration: {odd.id} {words}")


def test_images_that_do_not_fit_are_named_and_count_as_unusable(noise_manifest: Manifest) -> None:
    odd = [part_of(noise_manifest, part)[1] for part in ("validation", "calibration")]
    for seed, sample in enumerate(odd, start=1):
        np.save(sample.files[0], noise(1, (32, 32, 3), seed=seed)[0])
    part_of(noise_manifest, "train")[0].files[0].write_bytes(b"")
    lines: list[str] = []
    made = fit(noise_manifest, config_of(), device="cpu", listener=Listener(say=lines.append)).provenance
    why = "has 3 channel(s), the training images have 1"
    assert f"left out of the validation: {odd[0].id} {why}" in lines
    assert f"left out of the calibration: {odd[1].id} {why}" in lines
    assert made["n_images"] == {"train": 20, "validation": 2, "calibration": 5}
    assert made["n_unusable"] == 3


def test_a_colourless_calibration_image_fits_a_colour_set_and_a_grey_one_does_not(tmp_path: Path) -> None:
    manifest = save_images(tmp_path / "colour", noise(30, (32, 32, 3)))
    colourless, grey = part_of(manifest, "calibration")[:2]
    np.save(colourless.files[0], np.stack(noise(1, seed=1) * 3, axis=-1))
    np.save(grey.files[0], noise(1, seed=2)[0])
    lines = said(lambda listener: fit(manifest, config_of(), rate="1/6", device="cpu", listener=listener))
    assert [line for line in lines if "left out" in line] == [
        f"left out of the calibration: {grey.id} has 1 channel(s), the training images have 3"
    ]


@pytest.mark.usefixtures("no_training")
def test_calibration_images_of_which_none_fits_are_refused(noise_manifest: Manifest) -> None:
    for number, sample in enumerate(part_of(noise_manifest, "calibration")):
        np.save(sample.files[0], noise(1, (32, 32, 3), seed=number)[0])
    with pytest.raises(DataError, match="no calibration image fits the model"):
        fit(noise_manifest, config_of(), device="cpu")


@pytest.mark.usefixtures("no_training")
def test_a_network_for_volumes_is_refused_for_flat_images(noise_manifest: Manifest) -> None:
    with pytest.raises(ConfigError, match=r"spatial_dims = 3: the training images have 2 axes \(set .*=2\)"):
        fit(noise_manifest, config_of("model.spatial_dims=3"), device="cpu")


def in_two_splits(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    test = replace(samples[0], split="test", group=samples[1].group, unit=samples[1].group)
    return (test, *(replace(s, split="train") for s in samples[1:]))


def one_unit_in_two_groups(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    return tuple(replace(s, unit="part" if i < 2 else s.unit) for i, s in enumerate(samples))


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("spoil", "n"), [(in_two_splits, "1 group in more than one split"), (one_unit_in_two_groups, "1 unit in more")]
)
def test_what_scan_refuses_of_groups_is_refused_in_the_same_words(
    noise_manifest: Manifest, spoil: Callable[[Sequence[Sample]], tuple[Sample, ...]], n: str
) -> None:
    manifest = replace(noise_manifest, samples=spoil(noise_manifest.samples))
    with pytest.raises(DataError, match=n) as caught:
        fit(manifest, config_of(), device="cpu")
    assert tuple(scan(manifest).refusals[0]) == (caught.value.what, caught.value.why, caught.value.fix)
    assert len(scan(manifest).refusals) == 1


@pytest.mark.usefixtures("no_training")
def test_too_few_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="7 normal images"):
        fit(save_images(tmp_path / "few", noise(7)), config_of(), device="cpu")


def test_copies_of_learned_images_stay_out_of_the_calibration_and_are_named(tmp_path: Path) -> None:
    config = config_of()
    manifest = save_images(tmp_path / "noise", noise(30))
    parts = split_normals(manifest.samples, config.split.validation_share, config.split.calibration_share, 0)
    copy = parts["calibration"][2]
    np.save(copy.files[0], np.load(parts["train"][0].files[0]).astype(np.float32))  # other bytes, the same pixels
    detectors: list[Detector] = []
    lines = said(lambda listener: detectors.append(fit(manifest, config, device="cpu", listener=listener)))
    assert f"left out of the calibration: {copy.id} is a copy of an image that is learned from" in lines
    assert len(detectors[0].calibrated[0].image) == 5
    assert any("with 5 normal images" in line for line in lines)  # what the promise can count on


def test_copies_of_one_image_set_no_threshold(noise_manifest: Manifest, tmp_path: Path) -> None:
    detector = fit(noise_manifest, config_of(), device="cpu")
    copies = save_images(tmp_path / "copies", [*noise(12, seed=5)[:1] * 50, *noise(12, seed=5)[1:]]).samples
    lines = said(lambda listener: calibrate(detector, copies, listener=listener))
    assert sum("is a copy of" in line for line in lines) == 49
    with pytest.raises(CalibrationError, match="12"):
        calibrate(detector, copies, rate=parse_rate("0.02"))


def test_a_copy_whose_original_stays_in_its_unit_does_not_tear_it(noise_manifest: Manifest, tmp_path: Path) -> None:
    detector = fit(noise_manifest, config_of(), device="cpu")
    slices = noise(16, seed=7)
    slices[3], slices[7] = slices[0], slices[4]  # the first and the last slice of two of the four patients
    patients = [
        replace(s, unit=f"p{i // 4}", group=f"p{i // 4}")
        for i, s in enumerate(save_images(tmp_path / "slices", slices).samples)
    ]
    calibrated: list[Detector] = []
    lines = said(lambda listener: calibrated.append(calibrate(detector, patients, "50%", listener=listener)))
    assert [line for line in lines if "of units" in line] == []
    assert (len(calibrated[0].calibrated[0].image), len(calibrated[0].calibrated[0].unit)) == (14, 4)
    patients[3] = replace(patients[3], unit="p1", group="p1")  # its original belongs to another patient
    lines = said(lambda listener: calibrate(detector, patients, "50%", listener=listener))
    assert "left out of the calibration: 3 images of units that lack another image" in lines


def test_a_fit_keeps_units_with_copies_within_them(tmp_path: Path) -> None:
    slices = noise(80)
    slices[3::4] = slices[0::4]
    manifest = save_images(tmp_path / "slices", slices)
    samples = tuple(replace(s, unit=f"p{i // 4}", group=f"p{i // 4}") for i, s in enumerate(manifest.samples))
    detector = fit(replace(manifest, samples=samples), config_of(), device="cpu")
    n_units = len({s.unit for s in part_of(replace(manifest, samples=samples), "calibration")})
    assert len(detector.calibrated[0].unit) == n_units
    assert len(detector.calibrated[0].image) == 3 * n_units


def test_images_labelled_anomalous_set_no_threshold(noise_manifest: Manifest, tmp_path: Path) -> None:
    detector = fit(noise_manifest, config_of(), device="cpu")
    new = save_images(tmp_path / "new", noise(20, seed=6)).samples
    with pytest.raises(DataError, match="1 of 20 calibration images are labelled anomalous"):
        calibrate(detector, [replace(new[0], label="anomalous"), *new[1:]])


def test_a_model_that_sees_nothing_is_refused(noise_manifest: Manifest) -> None:
    blind = ("intensity.policy=window", "intensity.low=10000", "intensity.high=10100")
    with pytest.raises(DataError, match="calibration images have the same score"):
        fit(noise_manifest, config_of(*blind), device="cpu")


def test_frames_of_one_file_are_not_copies_of_each_other(tmp_path: Path) -> None:
    manifest = frames_of_one_file(tmp_path, noise(40))
    first, rest = manifest.samples[:30], manifest.samples[30:]
    detector = fit(replace(manifest, samples=first), config_of(), device="cpu")
    assert len(detector.calibrated[0].image) == 6
    assert len(calibrate(detector, rest).calibrated[0].image) == 10
    with pytest.raises(DataError, match="1 of 11 calibration images were used in training"):
        calibrate(detector, [*rest, part_of(replace(manifest, samples=first), "train")[0]])


def test_fresh_weights_follow_from_the_seed_and_leave_the_random_numbers_of_the_caller_alone() -> None:
    def weights(seed: int) -> Tensor:
        return torch.cat([w.ravel() for w in fitting._fresh_mapper(config_of(f"seed={seed}"), {}, 1).parameters()])

    torch.manual_seed(3)
    first, expected = weights(0), torch.rand(5)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(5), expected)
    assert torch.equal(weights(0), first)
    assert not torch.equal(weights(1), first)
    torch.manual_seed(0)
    plain = AnomalyMapper(config_of())
    assert torch.equal(torch.cat([w.ravel() for w in plain.parameters()]), first), "as torch draws them from this seed"


# --- checkpoint and stopping ---


def stop_at_once() -> bool:
    return True


def test_asked_to_stop_still_gives_a_calibrated_detector_that_can_be_saved(
    noise_manifest: Manifest, tmp_path: Path
) -> None:
    detectors: list[Detector] = []
    config = config_of("training.steps=1000", "training.validate_every=1000")
    lines = said(
        lambda listener: detectors.append(
            fit(noise_manifest, config, device="cpu", listener=listener, should_stop=stop_at_once)
        )
    )
    assert "stopped after 1 of 1000 steps: asked to stop" in lines
    detectors[0].save(tmp_path / "noise.safetensors")
    stopped = Detector.load(tmp_path / "noise.safetensors")
    assert stopped.provenance["stopped"] == "asked to stop"
    assert any("1 steps, stopped early: asked to stop" in line for line in stopped.describe())


def test_a_checkpoint_of_other_settings_or_data_is_refused(noise_manifest: Manifest, tmp_path: Path) -> None:
    checkpoint = tmp_path / "state.safetensors"
    whole = fit(noise_manifest, config_of(), device="cpu", checkpoint=checkpoint)
    resumed = fit(noise_manifest, config_of(), device="cpu", checkpoint=checkpoint)
    assert resumed.weights_sha256 == whole.weights_sha256
    with pytest.raises(ModelFileError, match="belongs to another fit"):
        fit(noise_manifest, config_of("training.steps=6"), device="cpu", checkpoint=checkpoint)
    with pytest.raises(ModelFileError, match="belongs to another fit"):
        fit(noise_manifest, config_of("seed=1"), device="cpu", checkpoint=checkpoint)
    np.save(part_of(noise_manifest, "train")[0].files[0], noise(1, seed=9)[0])
    with pytest.raises(ModelFileError, match="belongs to another fit"):
        fit(noise_manifest, config_of(), device="cpu", checkpoint=checkpoint)


def test_a_checkpoint_made_with_other_valid_masks_is_refused(noise_manifest: Manifest, tmp_path: Path) -> None:
    checkpoint, valid = tmp_path / "state.safetensors", tmp_path / "valid.npy"
    masked = replace(noise_manifest, samples=tuple(replace(s, valid=valid) for s in noise_manifest.samples))
    np.save(valid, np.arange(32 * 32).reshape(32, 32) > 100)
    fit(masked, config_of(), device="cpu", checkpoint=checkpoint)
    fit(masked, config_of(), device="cpu", checkpoint=checkpoint)
    np.save(valid, np.arange(32 * 32).reshape(32, 32) > 200)
    with pytest.raises(ModelFileError, match="belongs to another fit"):
        fit(masked, config_of(), device="cpu", checkpoint=checkpoint)


def test_an_older_checkpoint_is_removed_when_training_begins_and_not_before(
    noise_manifest: Manifest, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "state.safetensors"
    fit(noise_manifest, config_of("training.steps=6"), device="cpu", checkpoint=checkpoint)
    before = checkpoint.read_bytes()
    with pytest.raises(CalibrationError):
        fit(noise_manifest, config_of(), rate="0.01", device="cpu", checkpoint=checkpoint, resume=False)
    assert checkpoint.read_bytes() == before
    assert fit(noise_manifest, config_of(), device="cpu", checkpoint=checkpoint, resume=False).provenance["steps"] == 4


def test_what_becomes_of_a_checkpoint_is_said(noise_manifest: Manifest, tmp_path: Path) -> None:
    checkpoint = tmp_path / "state.safetensors"

    def lines(resume: bool) -> str:
        def run(listener: Listener) -> Detector:
            return fit(
                noise_manifest, config_of(), device="cpu", checkpoint=checkpoint, resume=resume, listener=listener
            )

        return "\n".join(said(run))

    none, some, older = (
        f"no checkpoint at {checkpoint}: starting anew",
        "continuing at step 4 of 4",
        "removing an older",
    )
    for resume, expected in ((True, none), (True, some), (False, older)):
        text = lines(resume)
        assert [part for part in (none, some, older) if part in text] == [expected]
    checkpoint.unlink()
    assert "checkpoint" not in lines(resume=False), "there was none, and none was asked for"


# --- the preset that is picked ---


def test_without_a_preset_the_data_decide_and_the_reason_is_kept(part_manifest: Manifest) -> None:
    small = ("training.steps=1", "training.batch_size=2", "training.ssim=0.0", "model.width=4", "model.depth=2")
    detectors: list[Detector] = []
    lines = said(
        lambda listener: detectors.append(fit(part_manifest, overrides=small, device="cpu", seed=3, listener=listener))
    )
    detector = detectors[0]
    assert detector.config.preset == detector.provenance["preset"] == "object"
    assert detector.provenance["preset_reason"].startswith("the images share one grid (correlation")
    assert f"preset object: {detector.provenance['preset_reason']}" in lines
    assert (detector.config.seed, detector.config.model.width, detector.config.training.steps) == (3, 4, 1)
    assert detector.config.training.crop_px == load_config("object").training.crop_px


@pytest.mark.parametrize(("shape", "n_channels"), [((32, 32), 1), ((32, 32, 3), 3)])
def test_the_data_tell_the_number_of_channels(tmp_path: Path, shape: tuple[int, ...], n_channels: int) -> None:
    detector = fit(save_images(tmp_path / "images", noise(20, shape)), config_of(), device="cpu")
    assert detector.config.model.n_channels == n_channels
    assert (detector.config.scoring.chroma > 0) == (n_channels > 1)  # one channel has no hue


def test_the_smallest_batch_of_the_smallest_crops_can_be_learned_from(noise_manifest: Manifest) -> None:
    """Batch normalisation needs two values per channel; the deepest level of such a crop has one per image."""
    config = config_of("training.batch_size=2", "training.crop_px=16")
    assert size_multiple(config.model) == config.training.crop_px
    assert fit(noise_manifest, config, device="cpu").provenance["steps"] == 4


# --- calibrate ---


def test_calibrate_refuses_a_rate_out_of_reach_before_it_scores(
    smoke_detector: Detector, part_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Detector, "measure_many", lambda self, samples: pytest.fail("it scored first"))
    normals = load_manifest(part_folder / "test" / "good").samples
    with pytest.raises(CalibrationError):
        calibrate(smoke_detector, normals, rate="0.001")


def test_calibrate_changes_thresholds_and_no_score(smoke_detector: Detector, part_folder: Path) -> None:
    image = part_folder / "test" / "stain" / "003.png"
    before, thresholds = smoke_detector.score(image), smoke_detector.calibrated[1].as_json()
    normals = load_manifest(part_folder / "test" / "good").samples
    other = calibrate(smoke_detector, normals, rate="0.2")
    after = other.score(image)
    assert after.score == before.score
    assert np.array_equal(after.anomaly_map, before.anomaly_map)
    assert after.weights_sha256 == before.weights_sha256
    assert after.thresholds_sha256 != before.thresholds_sha256
    assert other.calibrated[1].image.rate == "1/5"
    assert other.calibrated[1].image.n == 15
    assert smoke_detector.calibrated[1].as_json() == thresholds  # the old one is as it was
    assert smoke_detector.score(image).thresholds_sha256 == before.thresholds_sha256


def test_calibration_scores_are_the_scores(smoke_detector: Detector, part_folder: Path) -> None:
    normals = load_manifest(part_folder / "test" / "good").samples
    scores, thresholds = calibrate(smoke_detector, normals).calibrated
    found = [smoke_detector.score(s) for s in normals]
    assert scores.image.tolist() == [s.score for s in found]
    assert scores.pixel.tolist() == [float(np.max(s.anomaly_map)) for s in found if s.anomaly_map is not None]
    # Nothing above the pixel threshold on any image below the image threshold: one limit under maximum pooling.
    assert thresholds.pixel.value == thresholds.image.value


def test_the_model_keeps_plain_numbers_of_its_calibration_images(smoke_detector: Detector, part_folder: Path) -> None:
    samples = load_manifest(part_folder / "test" / "good").samples
    expected = [smoke_detector.baseline_scores(read_sample(s)) for s in samples]
    found = calibrate(smoke_detector, samples).provenance["calibration_statistics"]
    assert found == {name: [one[name] for one in expected] for name in expected[0]}
    n_calibration = smoke_detector.provenance["n_images"]["calibration"]
    assert {len(v) for v in smoke_detector.provenance["calibration_statistics"].values()} == {n_calibration}


def test_a_unit_that_lacks_an_image_sets_no_threshold(
    smoke_detector: Detector, part_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(part_folder / "test" / "good", tmp_path / "good")
    (tmp_path / "good" / "004.png").write_bytes(b"")
    samples = [
        replace(s, unit=f"u{i // 3}", group=f"u{i // 3}")
        for i, s in enumerate(load_manifest(tmp_path / "good").samples)
    ]
    detectors: list[Detector] = []
    lines = said(lambda listener: detectors.append(calibrate(smoke_detector, samples, listener=listener)))
    assert lines[1] == "left out of the calibration: 2 images of units that lack another image"
    scores, thresholds = detectors[0].calibrated
    assert (len(scores.image), len(scores.unit), thresholds.unit.n) == (12, 4, 4)
    torn = [replace(s, unit="u", group="u") for s in samples]
    lines = said(lambda listener: detectors.append(calibrate(smoke_detector, torn, "50%", listener=listener)))
    assert "no calibration unit has all of its images" in lines[1]
    assert len(detectors[1].calibrated[0].image) == 14


def test_unreadable_calibration_images_are_named_and_not_counted(
    smoke_detector: Detector, part_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(part_folder / "test" / "good", tmp_path / "good")
    (tmp_path / "good" / "004.png").write_bytes(b"")
    np.save(tmp_path / "good" / "rgb.npy", noise(1, (64, 64, 3))[0])
    samples = load_manifest(tmp_path / "good").samples
    detectors: list[Detector] = []
    lines = said(lambda listener: detectors.append(calibrate(smoke_detector, samples, listener=listener)))
    assert [line.partition(": ")[0] for line in lines] == ["left out of the calibration"] * 2
    assert "004.png" in lines[0]
    assert "3 channel(s)" in lines[1]
    assert detectors[0].calibrated[1].image.n == 14
    with pytest.raises(CalibrationError, match="14 normal images"):
        calibrate(smoke_detector, samples, rate="1/16")


def test_nothing_readable_is_no_calibration(smoke_detector: Detector, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match="no normal image could be scored"):
        calibrate(smoke_detector, load_manifest(tmp_path).samples)


def test_images_that_were_learned_from_set_no_threshold(
    smoke_detector: Detector, part_folder: Path, tmp_path: Path
) -> None:
    samples = load_manifest(part_folder / "train" / "good").samples
    n_known = sum(smoke_detector.provenance["n_images"][name] for name in ("train", "validation"))
    for sample in samples:  # in another format they are the same images
        Picture.open(sample.files[0]).save(tmp_path / f"{sample.files[0].stem}.tif")
    for rows in (samples, load_manifest(tmp_path).samples):
        with pytest.raises(DataError, match=f"{n_known} of 80 calibration images were used in training"):
            calibrate(smoke_detector, rows)


def test_the_model_tells_of_the_images_that_set_its_thresholds_last(
    smoke_detector: Detector, part_folder: Path, tmp_path: Path
) -> None:
    before = copy.deepcopy(smoke_detector.provenance)
    shutil.copytree(part_folder / "test" / "good", tmp_path / "good")
    (tmp_path / "good" / "004.png").write_bytes(b"")
    rows = [replace(s, group=f"lot {i // 5}") for i, s in enumerate(load_manifest(tmp_path / "good").samples)]
    other = calibrate(smoke_detector, rows)
    hashes = hashes_of([s for s in rows if s.files[0].name != "004.png"])
    for key, value in (("n_images", 14), ("n_groups", 3), ("image_hashes", hashes)):
        assert other.provenance[key] == {**before[key], "calibration": value}
    assert any("14 calibration" in line for line in other.describe())
    assert smoke_detector.provenance == before, "the old one is as it was"


def test_new_normal_images_make_a_former_rule_forgotten(smoke_detector: Detector, part_folder: Path) -> None:
    labelled = smoke_detector.with_thresholds(*smoke_detector.calibrated)
    labelled.provenance["image_hashes"] = {**labelled.provenance["image_hashes"], "labelled": ["0123456789abcdef"]}
    normals = load_manifest(part_folder / "test" / "good").samples
    assert "labelled" not in calibrate(labelled, normals).provenance["image_hashes"]
    assert "labelled" in labelled.provenance["image_hashes"], "the old one is as it was"


def test_a_value_by_hand_and_a_review_band_in_one_calibration(smoke_detector: Detector, part_folder: Path) -> None:
    normals = load_manifest(part_folder / "test" / "good").samples
    scores, thresholds = calibrate(smoke_detector, normals, value=1e3, review_rate="50%").calibrated
    assert thresholds == thresholds_by(Asked(value=1e3, review_rate="50%"), scores)
    assert (thresholds.image.rule, thresholds.image.value) == ("manual", 1e3)
    assert thresholds.image.review is not None
    with pytest.raises(UsageError, match="two rules"):
        calibrate(smoke_detector, normals, "50%", value=1e3)
    with pytest.raises(UsageError, match=r"a review rate of 6\.25 % beside a false-alarm rate"):
        calibrate(smoke_detector, normals, review_rate="1/16")


def test_units_are_calibrated_on_their_largest_score_and_groups_as_wholes(
    smoke_detector: Detector, part_folder: Path
) -> None:
    normals = load_manifest(part_folder / "test" / "good").samples
    rows = [replace(s, unit=f"part {i // 3}", group=f"lot {i // 6}") for i, s in enumerate(normals)]
    scores, thresholds = calibrate(smoke_detector, rows, rate="0.5").calibrated
    assert scores.unit.tolist() == scores.image.reshape(5, 3).max(axis=1).tolist()
    assert (thresholds.image.n, thresholds.image.n_groups) == (15, 3)
    assert (thresholds.unit.n, thresholds.unit.n_groups) == (5, 3)
    assert thresholds.unit.value >= thresholds.image.value


def test_a_unit_in_two_groups_is_not_calibrated(smoke_detector: Detector, part_folder: Path) -> None:
    normals = [replace(s, split="train") for s in load_manifest(part_folder / "test" / "good").samples]
    normals[0] = replace(normals[0], split="validation", group=normals[1].group, unit=normals[1].unit)
    assert calibrate(smoke_detector, normals).calibrated[1].image.n_groups == 14, "all rows calibrate, whatever else"
    with pytest.raises(DataError, match="1 unit in more than one group: part"):
        calibrate(smoke_detector, one_unit_in_two_groups(normals[2:]))


def rows_of(*kinds: str) -> Manifest:
    samples = []
    for i, kind in enumerate(kinds):
        split, _, label = kind.partition(" ")
        samples.append(Sample(str(i), str(i), (), label=label, split="" if split == "-" else split))
    return Manifest(Path("here"), tuple(samples), (), "csv")


def test_calibration_samples_are_the_marked_rows_or_all_normals_outside_of_test() -> None:
    marked = rows_of("calibration normal", "train normal", "test normal", "- normal", "calibration ")
    assert [s.id for s in calibration_samples(marked)] == ["0", "4"]
    unmarked = rows_of("- normal", "test normal", "- ", "- anomalous", "test anomalous")
    assert [s.id for s in calibration_samples(unmarked)] == ["0", "2"]


@pytest.mark.parametrize("kinds", [("test normal",), ("- anomalous",), ("calibration normal", "calibration anomalous")])
def test_without_normal_rows_or_with_anomalous_ones_there_is_no_calibration(kinds: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="no calibration images in here"):
        calibration_samples(rows_of(*kinds))


# --- what the model says of its making ---


def test_provenance_counts_and_names_no_file(noise_manifest: Manifest) -> None:
    detector = fit(noise_manifest, config_of(), device="cpu")
    assert detector.say is warnings.warn, "the listener of the fit, here a silent one, is not told of later images"
    made = detector.provenance
    assert made["n_images"] == made["n_groups"] == {"train": 21, "validation": 3, "calibration": 6}
    assert made["steps"] == 4
    assert made["stopped"] == ""
    assert made["n_parameters"] == sum(p.numel() for p in detector.mapper.autoencoder.parameters())
    assert [entry["step"] for entry in made["history"]] == [2, 4]
    assert made["validation_loss"] == min(entry["validation_loss"] for entry in made["history"])
    assert ".npy" not in repr(made)


def test_progress_of_the_training_names_loss_and_speed(noise_manifest: Manifest) -> None:
    seen: list[tuple[str, int, int, str]] = []
    listener = Listener(progress=lambda *args: seen.append(args))
    fit(noise_manifest, config_of(), device="cpu", listener=listener)
    steps = [event for event in seen if event[0] == "training"]
    assert [(done, total) for _, done, total, _ in steps] == [(i, 4) for i in range(1, 5)]
    assert all("loss 0." in detail and detail.endswith(" images/s") for *_, detail in steps)
    for stage in ("reading", "looking at the training images", "residuals of normal images", "calibrating"):
        done = [event for event in seen if event[0] == stage]
        assert done[-1][1] == done[-1][2] == len(done)


@pytest.mark.parametrize("wrong", [{"rate": "lots"}, {"confidence": "sure"}, {"device": "abacus"}])
def test_a_typo_is_noticed_before_an_image_is_read(wrong: dict[str, str]) -> None:
    unreadable = Manifest(Path(), (Sample("a", "a", (Path("does-not-exist.png"),)),), (), "csv")
    with pytest.raises(UsageError, match=next(iter(wrong.values()))):
        fit(unreadable, load_config("smoke"), **wrong)  # type: ignore[arg-type]
