"""Defects in real images: in the file's own numbers, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from anomaly_ae.config import load_config
from anomaly_ae.errors import DataError, UsageError
from anomaly_ae.loading import read_sample
from anomaly_ae.planting import plant_copies, plant_into, refuse_unplantable
from anomaly_ae.readers import read_image
from anomaly_ae.records import Image, Sample
from anomaly_ae.synthetic import plant_defect

LIMITS = np.array([[1000.0, 3000.0]])


def image(dtype: type, seed: int = 0, n_channels: int = 1) -> Image:
    values = np.random.default_rng(seed).uniform(1500, 2500, (n_channels, 48, 40))
    return Image(values.astype(dtype))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32, np.float64])
def test_contrast_is_a_share_of_black_to_white_and_the_rest_stays(dtype: type) -> None:
    before = image(dtype)
    after, mask = plant_into(before, LIMITS, "spot", np.random.default_rng(1), 10, 0.2)
    assert after.pixels.dtype == dtype
    assert (after.pixels[:, ~mask] == before.pixels[:, ~mask]).all()
    change = np.abs(after.pixels.astype(float) - before.pixels.astype(float))
    assert change.max() == pytest.approx(0.2 * 2000, rel=0.01)
    assert 3 < np.ptp(np.argwhere(mask)[:, 0]) <= 11


def test_it_is_the_defect_of_the_embedded_data() -> None:
    before = image(np.float64)
    after, mask = plant_into(before, LIMITS, "scratch", np.random.default_rng(2), 20, 0.3)
    scaled = ((before.pixels - 1000) / 2000).astype(np.float32)
    expected, expected_mask = plant_defect(scaled, "scratch", np.random.default_rng(2), 20, 0.3)
    assert (mask == expected_mask).all()
    assert after.pixels[:, mask] == pytest.approx(1000 + 2000 * expected[:, mask], abs=0.01)


def test_what_lies_beyond_black_and_white_keeps_its_texture() -> None:
    values = np.random.default_rng(3).uniform(3500, 4000, (1, 48, 40))  # brighter than white
    after, mask = plant_into(Image(values), LIMITS, "stain", np.random.default_rng(4), 16, 0.4)
    drop = (values - after.pixels)[:, mask]
    assert drop.max() == pytest.approx(800, rel=0.05)
    assert after.pixels[:, mask].std() > 50


def test_integers_never_run_over() -> None:
    bright = Image(np.full((1, 40, 40), 255, np.uint8))
    for seed in range(6):
        after, mask = plant_into(bright, np.array([[0.0, 200.0]]), "dent", np.random.default_rng(seed), 12, 0.9)
        assert after.pixels.min() > 20, "a brighter half cannot become black"
        assert mask.any()


def test_a_defect_lies_where_pixels_are_valid() -> None:
    valid = np.zeros((48, 40), bool)
    valid[8:30, 10:36] = True
    one = image(np.uint16)
    for seed in range(5):
        _, mask = plant_into(Image(one.pixels, valid=valid), LIMITS, "spot", np.random.default_rng(seed), 9, 0.3)
        assert not (mask & ~valid).any()


def test_a_volume_is_refused() -> None:
    with pytest.raises(DataError, match="3 axes"):
        plant_into(Image(np.zeros((1, 8, 8, 8))), LIMITS, "spot", np.random.default_rng(0), 4, 0.3)


def test_copies_take_turns_and_pass_over_what_cannot_be_planted_into(part_folder: Path, tmp_path: Path) -> None:
    paths = sorted((part_folder / "test" / "good").iterdir())[:4]
    (tmp_path / "broken.png").write_bytes(b"")
    samples = [Sample(path.name, path.name, (path,)) for path in (tmp_path / "broken.png", *paths)]
    found = plant_copies(samples, 3, (0.2, 0.6), tmp_path, np.random.default_rng(0))
    assert list(found) == [path.name for path in paths[:3]]
    for (name, copy), path, contrast in zip(found.items(), paths, (0.2, 0.6, 0.2), strict=False):
        before, after = read_image(path), read_sample(copy)
        assert (copy.id, after.pixels.dtype, after.pixels.shape) == (name, before.pixels.dtype, before.pixels.shape)
        low, high = np.percentile(before.pixels, (0.5, 99.5))
        change = np.abs(after.pixels.astype(float) - before.pixels)
        assert 0 < change.max() <= contrast * (high - low) + 1
        assert 0 < (change > 0).mean() < 0.1


def test_a_copy_keeps_what_is_valid_in_the_image(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50)).astype(np.uint8)
    valid = np.zeros((40, 50), np.uint8)
    valid[5:35, 10:45] = 1
    for name, values in (("image", pixels), ("valid", valid)):
        nibabel.Nifti1Image(values.T[..., None], np.eye(4)).to_filename(tmp_path / f"{name}.nii")
    sample = Sample("a", "a", (tmp_path / "image.nii",), valid=tmp_path / "valid.nii")
    (tmp_path / "copies").mkdir()
    copy = plant_copies([sample], 1, (0.5,), tmp_path / "copies", np.random.default_rng(0))["a"]
    before, after = read_sample(sample), read_sample(copy)
    assert before.valid is not None
    np.testing.assert_array_equal(after.valid, before.valid)
    assert (after.pixels != before.pixels).any()


@pytest.mark.parametrize("setting", ["geometry.spacing_mm=0.5", "intensity.policy=file_window"])
def test_settings_that_ask_what_a_copy_does_not_have_are_refused(setting: str) -> None:
    with pytest.raises(UsageError, match="neither spacing nor window"):
        refuse_unplantable(load_config("smoke", [setting]), "audit")
