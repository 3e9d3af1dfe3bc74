"""Synthetic heads: the same person at every spacing, lesions where the mask says, nothing written over."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import nibabel
import numpy as np
import pytest

from anomaly_ae.errors import OutputError, UsageError
from anomaly_ae.manifest import load_manifest
from anomaly_ae.synthetic import draw_head, draw_lesion, make_volumes
from anomaly_ae.synthetic.volumes import FULL_SCALE, LESION_CONTRASTS, NOISE_SD

SIDE_MM = 40.0
PERSON = np.random.SeedSequence(3)


def digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_data_set_of_volumes(tmp_path: Path) -> None:
    one = make_volumes(tmp_path / "a", 2, 1, 2, SIDE_MM, (1, 1, 2), seed=4)
    assert digests(one) == digests(make_volumes(tmp_path / "b", 2, 1, 2, SIDE_MM, (1, 1, 2), seed=4))
    larger = digests(make_volumes(tmp_path / "c", 3, 1, 2, SIDE_MM, (1, 1, 2), seed=4))
    assert {name: larger[name] for name in digests(one) if name != "lesions.csv"}.items() <= larger.items()
    volume = nibabel.load(one / "test/lesion/001.nii.gz")
    assert volume.shape == (40, 40, 20)
    np.testing.assert_allclose(volume.header.get_zooms(), (1, 1, 2))
    manifest = load_manifest(one, identified=True)
    assert {(s.split, s.label) for s in manifest.samples} == {
        ("train", "normal"), ("test", "normal"), ("test", "anomalous")
    }  # fmt: skip
    with (one / "lesions.csv").open(encoding="utf-8", newline="") as file:
        assert [float(row["contrast"]) for row in csv.DictReader(file)] == list(LESION_CONTRASTS[:2])


def test_one_person_at_two_spacings_is_the_same_person() -> None:
    """Every third slice of 1 mm lies where a slice of 3 mm does; only the noise of the scan differs."""
    fine, coarse = (draw_head(PERSON, 45.0, (1, 1, mm))[0] / FULL_SCALE for mm in (1, 3))
    difference = fine[:, :, 1::3] - coarse
    assert np.abs(difference[fine[:, :, 1::3] > 0.2]).max() < 7 * np.sqrt(2) * NOISE_SD
    others = draw_head(np.random.SeedSequence(4), 45.0, (1, 1, 3))[0] / FULL_SCALE
    assert np.abs(others - coarse).max() > 0.3


def test_a_lesion_adds_its_contrast_where_the_mask_is() -> None:
    lesion = draw_lesion(PERSON, 11, SIDE_MM)
    with_it, mask = draw_head(PERSON, SIDE_MM, (1, 1, 1), lesion)
    without, nothing = draw_head(PERSON, SIDE_MM, (1, 1, 1))
    change = (with_it.astype(float) - without) / FULL_SCALE
    assert not nothing.any()
    assert mask.sum() == pytest.approx(4 / 3 * np.pi * np.prod(lesion.radii_mm), rel=0.2)
    assert change[mask].max() == pytest.approx(lesion.contrast, rel=0.05)
    assert np.abs(change[~mask]).max() <= lesion.contrast / 2 + 0.01
    centre = np.argwhere(mask).mean(axis=0) - (np.array(mask.shape) - 1) / 2
    np.testing.assert_allclose(centre, lesion.centre_mm, atol=1)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"n_train": -1}, "volumes"),
        ({"side_mm": 10.0}, "a side of 10 mm"),
        ({"spacing_mm": (1, 1)}, "three numbers"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_what_cannot_be_made(asked: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        make_volumes(tmp_path / "a", **asked)  # type: ignore[arg-type]
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(OutputError, match="is not empty"):
        make_volumes(tmp_path / "full", 1, 0, 0)
