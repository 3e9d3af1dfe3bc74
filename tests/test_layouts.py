"""Folders as people have them: masks and defects are recognised, never learned silently."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from pictures import Write, writer
from PIL import Image as Pillow

from anomaly_ae.cli.shared import say_notes
from anomaly_ae.errors import DataError
from anomaly_ae.manifest import Manifest, load_manifest, manifest_from_paths, roles, scan, write_manifest
from anomaly_ae.manifest.checks import Refusal
from anomaly_ae.readers import read_mask


@pytest.fixture
def picture(tmp_path: Path) -> Write:
    """Write an image of 16 px; every call has other pixels unless they are given."""
    return writer(tmp_path, lambda seed: np.random.default_rng(seed).integers(40, 200, (16, 16), dtype=np.uint8))


def mask_of(row: int = 2, *, empty: bool = False, value: int = 255) -> np.ndarray:
    mask = np.zeros((16, 16), np.uint8)
    mask[row : row + 3, 2:5] = 0 if empty else value
    return mask


def masked(manifest: Manifest) -> dict[str, str]:
    return {
        s.path: s.mask.relative_to(manifest.root.resolve()).as_posix() for s in manifest.samples if s.mask is not None
    }


def kinds(manifest: Manifest) -> dict[tuple[str, str], int]:
    return Counter((s.split, s.label) for s in manifest.samples)


def loud(manifest: Manifest) -> list[str]:
    return [f"warning: {text}" for text in manifest.warnings]


# --- masks beside and below images -----------------------------------------------------


@pytest.mark.parametrize("ending", ["_mask", "_label", "_gt", "_GT", "_seg"])
def test_masks_by_their_ending_label_images_that_no_folder_labels(picture: Write, tmp_path: Path, ending: str) -> None:
    """KolektorSDD: ``kos01/Part0.jpg`` beside ``Part0_label.bmp``, marked where there is a defect."""
    for i in range(3):
        picture(f"kos{i}/Part0.jpg")
        picture(f"kos{i}/Part0{ending}.bmp", mask_of(empty=i > 0))
    manifest = load_manifest(tmp_path)
    assert kinds(manifest) == {("", "anomalous"): 1, ("", "normal"): 2}
    assert masked(manifest)["kos0/Part0.jpg"] == f"kos0/Part0{ending}.bmp"
    assert roles(manifest.samples) == ["", "train", "train"]
    assert loud(manifest) == ["warning: images labelled by their masks (marked, anomalous: 1, empty, normal: 2)"]
    assert {s.files[0].name for s in manifest_from_paths([tmp_path]).samples} == {"Part0.jpg"}


@pytest.mark.parametrize("name", ["_MG_0001", "-dash", " 1", "_mask", "__", "..x"])
def test_names_may_begin_with_what_separates_an_ending(picture: Write, tmp_path: Path, name: str) -> None:
    for i in range(9):
        picture(f"{i}.png")
    picture(f"{name}.png")
    assert len(load_manifest(tmp_path).samples) == (10 if not name.startswith(".") else 9)  # hidden


def test_an_ending_without_its_image_says_nothing(picture: Write, tmp_path: Path) -> None:
    picture("price_label.png")
    picture("bottle.png")
    assert len(load_manifest(tmp_path).samples) == 2


def test_masks_of_another_suffix_are_told_by_their_pixels(picture: Write, tmp_path: Path) -> None:
    """Magnetic tiles: ``MT_Crack/Imgs/a.jpg`` beside ``a.png``."""
    for i in range(3):
        picture(f"MT_Free/Imgs/{i}.jpg")
        picture(f"MT_Free/Imgs/{i}.png", mask_of(empty=True))
        picture(f"MT_Crack/Imgs/{i}.jpg")
        picture(f"MT_Crack/Imgs/{i}.png", mask_of())
    manifest = load_manifest(tmp_path)
    assert kinds(manifest) == {("", "anomalous"): 3, ("", "normal"): 3}
    picture("MT_Crack/Imgs/2.png")
    assert len(load_manifest(tmp_path).samples) == 12, "one that is no mask: they are pictures, saved twice"


@pytest.mark.parametrize("folder", ["ground_truth", "GroundTruth", "gt", "masks", "Mask", "labels", "Label"])
def test_folders_of_masks_below_and_beside_images(picture: Write, tmp_path: Path, folder: str) -> None:
    """DAGM has ``Train/Label/0576_label.PNG``, many others ``masks/`` beside ``images/``."""
    for split in ("Train", "Test"):
        picture(f"{split}/0.PNG")
        picture(f"{split}/1.PNG")
        picture(f"{split}/{folder}/1_label.PNG", mask_of())
    manifest = load_manifest(tmp_path)
    expected = {("train", "normal"): 1, ("", "anomalous"): 1, ("test", "normal"): 1, ("test", "anomalous"): 1}
    assert kinds(manifest) == expected
    assert "no mask, normal: 2" in loud(manifest)[0]
    assert masked(manifest)["Test/1.PNG"] == f"Test/{folder}/1_label.PNG"


def test_images_of_labels_are_images(picture: Write, tmp_path: Path) -> None:
    picture("labels/a.png")
    picture("caps/b.png")
    assert len(load_manifest(tmp_path).samples) == 2


def test_several_masks_of_an_image_are_joined(picture: Write, tmp_path: Path) -> None:
    """BUSI: ``benign (3)_mask.png`` and ``benign (3)_mask_1.png``."""
    picture("normal/normal (1).png")
    picture("normal/normal (1)_mask.png", mask_of(empty=True))
    picture("benign/benign (3).png")
    picture("benign/benign (3)_mask.png", mask_of(2))
    picture("benign/benign (3)_mask_1.png", mask_of(9))
    manifest = load_manifest(tmp_path)
    assert [s.path for s in manifest.samples] == ["benign/benign (3).png", "normal/normal (1).png"]
    table = tmp_path / "out/m.csv"
    table.parent.mkdir()
    write_manifest(manifest, table)
    for one in (manifest, load_manifest(table)):
        first = next(s for s in one.samples if s.label == "anomalous")
        assert first.mask is not None
        assert np.array_equal(read_mask(first.mask), (mask_of(2) | mask_of(9)) > 0)
    report = scan(manifest)
    assert (report.mask_problems, report.n_masks) == ((), 2)


def test_masks_of_one_image_in_a_folder_of_its_name(picture: Write, tmp_path: Path) -> None:
    """MVTec LOCO: ``ground_truth/logical_anomalies/000/000.png``."""
    picture("train/good/0.png")
    for i in range(2):
        picture(f"test/logical_anomalies/{i:03}.png")
        for j in range(i + 1):
            picture(f"ground_truth/logical_anomalies/{i:03}/{j:03}.png", mask_of(9 * j))
    manifest = load_manifest(tmp_path)
    assert masked(manifest) == {
        "test/logical_anomalies/000.png": "ground_truth/logical_anomalies/000/000.png",
        "test/logical_anomalies/001.png": "ground_truth/logical_anomalies/001/000.png|001.png",
    }


def test_one_of_several_masks_that_is_missing_or_too_small_is_told_of(picture: Write, tmp_path: Path) -> None:
    picture("a_mask.png", mask_of())
    picture("b_mask.png", mask_of()[:8])
    with pytest.raises(DataError, match="16x16"):
        read_mask(tmp_path / "a_mask.png|b_mask.png")
    rows = "".join(f"{picture(f'{i}.png').name},normal,\n" for i in range(8))
    table = tmp_path / "m.csv"
    table.write_text(f"path,label,mask\n{rows}{picture('x.png').name},anomalous,a_mask.png|gone.png\n")
    assert [problem for _, problem in scan(load_manifest(table)).mask_problems] == ["does not exist"]


@pytest.mark.parametrize("inside", ["", "Data", "Data/Images"])
def test_masks_beside_the_folder_of_images(picture: Write, tmp_path: Path, inside: str) -> None:
    """VisA: ``Data/Images/Anomaly/000.JPG`` and ``Data/Masks/Anomaly/000.png``, whichever folder is given."""
    picture("Data/Images/Normal/0.JPG")
    picture("Data/Images/Anomaly/0.JPG")
    picture("Data/Masks/Anomaly/0.png", mask_of(value=1))
    manifest = load_manifest(tmp_path / inside)
    assert kinds(manifest) == {("", "normal"): 1, ("", "anomalous"): 1}
    (mask,) = [s.mask for s in manifest.samples if s.mask]
    assert mask.resolve() == (tmp_path / "Data/Masks/Anomaly/0.png").resolve()


def test_masks_that_mark_normal_images_are_no_defects(picture: Write, tmp_path: Path) -> None:
    """COVID radiography: masks of the lungs."""
    for i in range(4):
        for kind in ("Normal", "COVID"):
            picture(f"{kind}/images/{i}.png")
            picture(f"{kind}/masks/{i}.png", mask_of())
    manifest = load_manifest(tmp_path)
    assert kinds(manifest) == {("", "normal"): 4, ("", "anomalous"): 4}
    assert masked(manifest) == {}
    assert any(note.startswith("ignored masks that outline") and note.endswith(": 8") for note in manifest.all_notes)


def test_anomalous_images_whose_masks_all_have_other_names_are_a_warning(picture: Write, tmp_path: Path) -> None:
    picture("train/good/0.png")
    picture("test/crack/0.png")
    picture("ground_truth/cracks/0_mask.png", mask_of())
    warnings = scan(load_manifest(tmp_path)).warnings
    assert any("ground_truth/cracks/0_mask.png" in text and "test/crack/0.png" in text for text in warnings)


def test_images_that_look_like_masks_are_a_warning(picture: Write, tmp_path: Path) -> None:
    for i in range(6):
        picture(f"{i}.png")
        picture(f"{i}_lesion.png", mask_of())
    manifest = load_manifest(tmp_path)
    assert any("images that look like masks" in note and ": 6" in note for note in loud(manifest))
    for i in range(6):
        picture(f"{i}_lesion.png")
    assert loud(load_manifest(tmp_path)) == []


# --- labels of folders -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("good", "bad"),
    [("healthy", "diseased"), ("ok_front", "def_front"), ("no", "yes"), ("normals", "defects"), ("Good", "anomalies")],
)
@pytest.mark.parametrize("split", ["", "test/"])
def test_names_of_normal_and_anomalous_folders(picture: Write, tmp_path: Path, good: str, bad: str, split: str) -> None:
    picture(f"{split}{good}/0.png")
    picture(f"{split}{bad}/0.png")
    labels = {s.path: s.label for s in load_manifest(tmp_path).samples}
    assert labels == {f"{split}{good}/0.png": "normal", f"{split}{bad}/0.png": "anomalous"}


def test_yes_alone_says_nothing_and_several_unnamed_folders_are_a_warning(picture: Write, tmp_path: Path) -> None:
    picture("yes/0.png")
    picture("perhaps/0.png")
    (warning,) = loud(load_manifest(tmp_path))
    assert "all 2 images count as normal: perhaps (1), yes (1)" in warning
    assert warning.removeprefix("warning: ") in scan(load_manifest(tmp_path)).warnings
    assert loud(load_manifest(tmp_path / "yes")) == []


def test_fit_says_what_nobody_called_normal(picture: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture("hn/left/0.png")
    picture("hn/right/0.png")
    say_notes(load_manifest(tmp_path / "hn"), is_learned=True)
    said = capsys.readouterr().err
    assert "warning: no name of 2 folders says what is normal" in said
    assert "note: images without a label, taken as normal for training: 2" in said


def test_anomalous_images_in_train_are_not_learned(picture: Write, tmp_path: Path) -> None:
    """Kaggle chest X-rays: ``NORMAL`` and ``PNEUMONIA`` in train, val and test."""
    for split in ("train", "val", "test"):
        picture(f"{split}/NORMAL/0.jpeg")
        picture(f"{split}/PNEUMONIA/0.jpeg")
    manifest = load_manifest(tmp_path)
    used = [role for role, s in zip(roles(manifest.samples), manifest.samples, strict=True) if s.label == "anomalous"]
    assert sorted(used) == ["", "", "test"]
    assert any("neither learned nor tested: 2" in note for note in loud(manifest))


def test_training_images_in_a_folder_of_unknown_name_are_asked_about(picture: Write, tmp_path: Path) -> None:
    for i in range(9):
        picture(f"train/fine/{i}.png")
    picture("test/fine/0.png")
    manifest = load_manifest(tmp_path)
    assert any("is fine that of the normal ones?" in note for note in loud(manifest))
    assert any("9 anomalous images in train" in refusal.what for refusal in scan(manifest).refusals)


def test_names_of_splits(picture: Write, tmp_path: Path) -> None:
    """MVTec AD 2 has ``test_public`` with its ground truth inside, others ``Training`` and ``Testing``."""
    picture("Training/good/0.png")
    picture("Testing/bad/0.png")
    picture("test_public/bad/0.png")
    picture("test_public/ground_truth/bad/0_mask.png", mask_of())
    picture("test_private/0.png")
    manifest = load_manifest(tmp_path)
    assert {s.path: s.split for s in manifest.samples} == {
        "Training/good/0.png": "train",
        "Testing/bad/0.png": "test",
        "test_public/bad/0.png": "test",
    }
    assert masked(manifest) == {"test_public/bad/0.png": "test_public/ground_truth/bad/0_mask.png"}


def test_all_data_sets_of_a_folder_are_named(picture: Write, tmp_path: Path) -> None:
    for name in ("bottle", "cable"):
        picture(f"{name}/train/good/0.png")
    with pytest.raises(DataError) as caught:
        load_manifest(tmp_path)
    assert f"2 folders in it are: {tmp_path / 'bottle'}, {tmp_path / 'cable'}" in caught.value.what


# --- what scan says of masks and constant images ---------------------------------------


def defects(picture: Write, masks: Sequence[np.ndarray]) -> None:
    for i in range(9):
        picture(f"train/good/{i}.png")
    for i, mask in enumerate(masks):
        picture(f"test/bad/{i}.png")
        picture(f"ground_truth/bad/{i}_mask.png", mask)


def test_masks_that_mark_most_of_their_image_are_a_warning(picture: Write, tmp_path: Path) -> None:
    defects(picture, [255 - mask_of(), 255 - mask_of(), mask_of()])
    assert any("more than half of their image: 2 of 3" in text for text in scan(load_manifest(tmp_path)).warnings)


def test_a_mask_that_was_jpeg_once_marks_what_is_above_the_middle(picture: Write, tmp_path: Path) -> None:
    clean = np.zeros((64, 64), np.uint8)
    clean[20:40, 21:43] = 255
    Pillow.open(picture("a.jpg", clean)).save(tmp_path / "a.png")
    noisy = np.asarray(Pillow.open(tmp_path / "a.png"))
    assert len(np.unique(noisy)) > 16
    assert np.array_equal(read_mask(tmp_path / "a.png"), noisy > 127)
    numbers = np.arange(64, dtype=np.uint8).repeat(64).reshape(64, 64) * 4
    assert np.array_equal(read_mask(picture("numbers.png", numbers)), numbers > 0)


def test_constant_images_in_two_splits_are_no_leak(picture: Write, tmp_path: Path) -> None:
    defects(picture, [])
    for name in ("train/good/black.png", "test/good/black.png"):
        picture(name, np.zeros((16, 16), np.uint8))
    report = scan(load_manifest(tmp_path))
    refusals: tuple[Refusal, ...] = report.refusals
    assert (report.duplicates, refusals) == ((), ())
    assert any("constant images" in text for text in report.warnings)
