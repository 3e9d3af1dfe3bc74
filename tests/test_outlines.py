"""DICOM Segmentations as masks: by reference, of every kind, in tables and in trees, and refused in words."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import run
from PIL import Image as Pillow
from pydicom.dataset import Dataset
from pydicom.uid import RTPlanStorage, generate_uid
from scanner import SHAPE, enhanced, image, save, segmented, series, with_runs

from anomaly_ae.errors import DataError, UnreadableImageError
from anomaly_ae.loading import read_sample
from anomaly_ae.manifest import load_manifest, manifest_from_paths, scan, write_manifest
from anomaly_ae.readers import read_image, read_mask
from anomaly_ae.records import Sample


def box(*ranges: tuple[int, int, int], n: int = 4) -> np.ndarray:
    """Mark (slice, first row, last row) over columns 3 to 7."""
    marks = np.zeros((n, *SHAPE), np.uint8)
    for number, first, last in ranges:
        marks[number, first:last, 3:8] = 1
    return marks


def saved(images: list[Dataset], folder: Path) -> list[Path]:
    return [save(ds, folder / f"{number}.dcm") for number, ds in enumerate(images)]


def check_masks(mask: Path, files: list[Path], marks: np.ndarray) -> None:
    for file, expected in zip(files, marks, strict=True):
        np.testing.assert_array_equal(read_mask(mask, SHAPE, image_file=file), expected.astype(bool))


# --- what is marked ------------------------------------------------------------


def test_a_segmentation_serves_every_slice_of_its_series(tmp_path: Path) -> None:
    images, marks = series(4), box((1, 2, 9), (3, 0, 20))
    files = saved(images, tmp_path)
    seg = segmented(images, marks)
    assert seg.NumberOfFrames == 2, "highdicom leaves empty slices out"
    check_masks(save(seg, tmp_path / "seg"), files, marks)


def test_runs_of_packed_bits(tmp_path: Path) -> None:
    images, marks = series(4), box((0, 2, 9), (2, 0, 20), (3, 19, 20))
    files = saved(images, tmp_path)
    path = save(with_runs(segmented(images, marks)), tmp_path / "seg")
    check_masks(path, files, marks)
    np.testing.assert_array_equal(read_image(path, 1).pixels[0], marks[2])
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UnreadableImageError, match="seg: has no complete pixel data"):
        read_mask(path, SHAPE, image_file=files[3])


def test_all_segments_are_marked_also_where_they_overlap(tmp_path: Path) -> None:
    images, one, two = series(4), box((1, 2, 9)), box((1, 5, 12), (2, 0, 1))
    files = saved(images, tmp_path)
    path = save(segmented(images, np.stack([one, two], axis=-1)), tmp_path / "seg")
    check_masks(path, files, one | two)


def test_a_label_map(tmp_path: Path) -> None:
    images, marks = series(4), box((1, 2, 9))
    marks[1, 5:7, 3:8] = 2
    files = saved(images, tmp_path)
    seg = segmented(images, marks, "LABELMAP")
    assert seg.SegmentationType == "LABELMAP"
    check_masks(save(seg, tmp_path / "seg"), files, marks > 0)


def test_of_fractions_half_and_more_is_marked(tmp_path: Path) -> None:
    images, marks = series(4), box((1, 2, 9)).astype(np.float64)
    marks[1, 2:4] *= 0.4
    marks[1, 4:6] *= 0.6
    files = saved(images, tmp_path)
    path = save(segmented(images, marks, "FRACTIONAL", max_fractional_value=200), tmp_path / "seg")
    check_masks(path, files, marks >= 0.5)


def test_frames_of_an_enhanced_image(tmp_path: Path) -> None:
    marks = box((1, 2, 9), (3, 0, 4))
    source = enhanced(np.random.default_rng(0).integers(0, 4000, (4, *SHAPE)), [9, 0, 3, 6])
    path, seg = save(source, tmp_path / "many.dcm"), segmented([source], marks)
    mask = save(seg, tmp_path / "seg")
    for frame in range(4):
        np.testing.assert_array_equal(read_mask(mask, SHAPE, frame, path), marks[frame].astype(bool))
    for groups in seg.PerFrameFunctionalGroupsSequence:  # frames that name the file alone lie where they say
        del groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
    mask = save(seg, tmp_path / "seg2")
    for frame in range(4):
        np.testing.assert_array_equal(read_mask(mask, SHAPE, frame, path), marks[frame].astype(bool))


def test_frames_that_name_no_image_are_of_what_lies_there(tmp_path: Path) -> None:
    images, marks = series(4), box((1, 2, 9), (3, 0, 20))
    files, seg = saved(images, tmp_path), segmented(images, marks)
    for groups in seg.PerFrameFunctionalGroupsSequence:
        del groups.DerivationImageSequence
    del seg.ReferencedSeriesSequence
    check_masks(save(seg, tmp_path / "seg"), files, marks)
    seg.FrameOfReferenceUID = generate_uid()
    with pytest.raises(DataError, match="refers to other images"):
        read_mask(save(seg, tmp_path / "seg2"), SHAPE, image_file=files[0])


def test_frames_that_name_the_whole_series_are_of_what_lies_there(tmp_path: Path) -> None:
    images, marks = series(4), box((1, 2, 9), (3, 0, 20))
    files, seg = saved(images, tmp_path), segmented(images, marks)
    sources = [
        groups.DerivationImageSequence[0].SourceImageSequence[0] for groups in seg.PerFrameFunctionalGroupsSequence
    ]
    every = [deepcopy(sources[0]) for _ in images]
    for item, ds in zip(every, images, strict=True):
        item.ReferencedSOPInstanceUID = ds.SOPInstanceUID
    for groups in seg.PerFrameFunctionalGroupsSequence:
        groups.DerivationImageSequence[0].SourceImageSequence = every
    check_masks(save(seg, tmp_path / "seg"), files, marks)


# --- what is refused ------------------------------------------------------------


def test_a_segmentation_of_another_series(tmp_path: Path) -> None:
    images = series(4)
    path = save(segmented(images, box((1, 2, 9))), tmp_path / "seg")
    [other] = saved(series(1), tmp_path)
    with pytest.raises(DataError, match=r"0\.dcm: it refers to other images, and to nothing of this one's series"):
        read_mask(path, SHAPE, image_file=other)


def test_a_segmentation_on_another_grid(tmp_path: Path) -> None:
    images = series(4)
    seg, files = segmented(images, box((1, 2, 9))), saved(images, tmp_path)
    groups = seg.PerFrameFunctionalGroupsSequence[0]
    groups.PlanePositionSequence[0].ImagePositionPatient = [4, 0, 3]
    with pytest.raises(DataError, match="its pixels are elsewhere in the patient"):
        read_mask(save(seg, tmp_path / "seg"), SHAPE, image_file=files[1])
    images[0].Rows, images[0].Columns = SHAPE[1], SHAPE[0]
    other = save(images[0], tmp_path / "turned.dcm")
    with pytest.raises(DataError, match="another grid: 20 x 24, the image has 24 x 20"):
        read_mask(tmp_path / "seg", image_file=other)


def test_a_segmentation_needs_its_dicom_image(tmp_path: Path) -> None:
    path = save(segmented(series(4), box((1, 2, 9))), tmp_path / "seg")
    np.save(tmp_path / "a.npy", np.zeros(SHAPE))
    with pytest.raises(DataError, match="belongs to DICOM images, and this is none"):
        read_mask(path, SHAPE, image_file=tmp_path / "a.npy")
    with pytest.raises(DataError, match="what it marks depends on the image"):
        read_mask(path, SHAPE)


# --- in a tree ------------------------------------------------------------


def labels(samples: tuple[Sample, ...]) -> list[tuple[str, str, bool]]:
    return [(s.label, s.split, s.mask is not None) for s in samples]


def test_a_segmentation_in_a_tree_labels_the_slices_of_its_series(tmp_path: Path) -> None:
    images, healthy = series(4, "ill"), series(2, "well")
    saved(images, tmp_path / "ill")
    saved(healthy, tmp_path / "well")
    save(segmented(images, box((1, 2, 9), (2, 0, 3))), tmp_path / "ill/outlines.dcm")
    save(segmented(series(2, "gone"), box((1, 2, 9), n=2)), tmp_path / "stray.dcm")
    manifest = load_manifest(tmp_path)
    assert "DICOM segmentations, taken as masks: 2" in manifest.notes
    assert "DICOM segmentations of no image that is listed: 1" in manifest.notes
    ill = tuple(s for s in manifest.samples if s.mask)
    assert labels(ill) == [("normal", "test", True), *[("anomalous", "test", True)] * 2, ("normal", "test", True)]
    assert labels(tuple(s for s in manifest.samples if not s.mask)) == [("", "", False)] * 2
    found = scan(manifest)
    assert (found.n_samples, found.n_masks, found.mask_problems) == (6, 4, ())

    write_manifest(manifest, tmp_path / "all.csv")
    assert labels(load_manifest(tmp_path / "all.csv").samples) == labels(manifest.samples)


def test_a_damaged_segmentation_is_told_of(tmp_path: Path) -> None:
    images = series(3)
    saved(images, tmp_path)
    path = save(segmented(images, box((1, 2, 9), n=3)), tmp_path / "seg.dcm")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    manifest = load_manifest(tmp_path)
    assert "damaged DICOM segmentations, left out: 1" in manifest.notes
    assert not any("no image that is listed" in note for note in manifest.notes)
    assert labels(manifest.samples) == [("", "", False)] * 3


def test_frames_of_an_enhanced_image_are_labelled(tmp_path: Path) -> None:
    source = enhanced(np.random.default_rng(0).integers(0, 4000, (4, *SHAPE)), [9, 0, 3, 6])
    save(source, tmp_path / "many.dcm")
    save(segmented([source], box((0, 2, 9))), tmp_path / "seg.dcm")
    samples = load_manifest(tmp_path).samples
    assert [(s.frame, s.label) for s in samples] == [(1, "normal"), (2, "normal"), (3, "normal"), (0, "anomalous")]


def test_slices_that_two_people_mark_have_no_mask(tmp_path: Path) -> None:
    images = series(3)
    saved(images, tmp_path)
    save(segmented(images, box((0, 2, 9), (1, 2, 9), n=3)), tmp_path / "one.dcm")
    save(segmented(images, box((1, 0, 4), n=3)), tmp_path / "two.dcm")
    manifest = load_manifest(tmp_path)
    assert [(s.label, s.mask is not None) for s in manifest.samples] == [
        ("anomalous", True),
        ("anomalous", False),
        ("normal", True),
    ]
    assert any("several DICOM segmentations mark" in note and note.endswith(": 1") for note in manifest.notes)


def test_scan_names_a_segmentation_on_another_grid(tmp_path: Path) -> None:
    images = series(3)
    seg = segmented(images, box((1, 2, 9), n=3))
    saved(images, tmp_path)
    seg.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient = [4, 0, 3]
    save(seg, tmp_path / "seg.dcm")
    found = scan(load_manifest(tmp_path))
    [(name, problem)] = found.mask_problems
    assert "it lies on another grid" in problem
    outcome = run("scan", tmp_path)
    assert f"mask: {name}: " in outcome.out
    assert not any(word in outcome.out + outcome.err for word in (tmp_path.name, "Secret", "ID-1", "seg.dcm"))


def test_an_anomalous_series_without_a_mask_gives_no_slice_labels(tmp_path: Path) -> None:
    saved(series(3, "ill"), tmp_path / "anomalous/a")
    saved(series(2, "well"), tmp_path / "normal/b")
    manifest = load_manifest(tmp_path)
    ill = [s for s in manifest.samples if s.extra.get("volume_label") == "anomalous"]
    assert labels(tuple(ill)) == [("", "test", False)] * 3
    assert "slices of anomalous DICOM series without a mask, left without a label: 3" in manifest.notes
    assert [s.label for s in manifest.samples if s not in ill] == ["normal"] * 2


def test_pictures_that_mark_some_slices_label_the_series(tmp_path: Path) -> None:
    images, marks = series(4), box((1, 2, 9))
    saved(images, tmp_path / "test/nodule")
    (tmp_path / "ground_truth/nodule").mkdir(parents=True)
    Pillow.fromarray(marks[1] * 255).save(tmp_path / "ground_truth/nodule/1_mask.png")
    samples = load_manifest(tmp_path, identified=True).samples
    labels = {s.files[0].name: (s.label, s.defect, s.split, s.mask is not None) for s in samples}
    assert labels.pop("1.dcm") == ("anomalous", "nodule", "test", True)
    assert set(labels.values()) == {("normal", "", "test", False)}
    Pillow.fromarray(marks[0]).save(tmp_path / "ground_truth/nodule/1_mask.png")
    assert {s.label for s in load_manifest(tmp_path).samples} == {""}, "nothing is marked: nobody knows which"


def test_chosen_slices_keep_the_labels_of_their_folders(tmp_path: Path) -> None:
    images = series(4)
    saved(images[:2], tmp_path / "test/good")
    saved(images[2:], tmp_path / "test/lesion")
    assert sorted(s.label for s in load_manifest(tmp_path).samples) == ["anomalous"] * 2 + ["normal"] * 2


# --- in a table ------------------------------------------------------------


def test_a_segmentation_in_a_table(tmp_path: Path) -> None:
    images, marks = series(4), box((1, 2, 9), (2, 0, 3))
    saved(images, tmp_path)
    save(segmented(images, marks), tmp_path / "seg.dcm")
    rows = "".join(f"{number}.dcm,seg.dcm\n" for number in range(4))
    (tmp_path / "a.csv").write_text(f"path,mask\n{rows}", encoding="utf-8")
    manifest = load_manifest(tmp_path / "a.csv")
    assert [s.label for s in manifest.samples] == ["normal", "anomalous", "anomalous", "normal"]
    assert {s.split for s in manifest.samples} == {"test"}
    found = scan(manifest)
    assert (found.mask_problems, found.odd_masks) == ((), ())


# --- objects without an image ------------------------------------------------------------


def plan(**more: Any) -> Dataset:
    ds = image(np.zeros(SHAPE), RTPlanStorage, **more)
    for key in ("Rows", "Columns", "PixelData", "BitsAllocated", "PhotometricInterpretation"):
        delattr(ds, key)
    return ds


def test_objects_without_an_image_are_skipped_with_a_word(tmp_path: Path) -> None:
    saved(series(2), tmp_path)
    path = save(plan(), tmp_path / "plan.dcm")
    for manifest in (load_manifest(tmp_path), manifest_from_paths([tmp_path])):
        assert len(manifest.samples) == 2
        assert "skipped DICOM objects that hold no image: RT Plan (1)" in manifest.notes
    assert len(manifest_from_paths([path]).samples) == 1, "a file that is named is listed"
    outcome = run("scan", tmp_path)
    assert "note: skipped DICOM objects that hold no image: RT Plan (1)" in outcome.out


def test_a_damaged_image_is_not_skipped(tmp_path: Path) -> None:
    saved(series(2), tmp_path)
    ds = series(1)[0]
    del ds.Rows
    save(ds, tmp_path / "damaged.dcm")
    assert len(scan(load_manifest(tmp_path)).unreadable) == 1


# --- frames ------------------------------------------------------------


def test_frames_of_an_enhanced_file_stand_by_position(tmp_path: Path) -> None:
    heights = [6.0, 0.0, 15.0, 3.0, 3.0]
    save(enhanced(np.random.default_rng(1).integers(0, 4000, (5, *SHAPE)), heights), tmp_path / "many.dcm")
    manifest = load_manifest(tmp_path)
    assert [s.frame for s in manifest.samples] == [1, 3, 4, 0, 2]
    assert {s.extra["slice_spacing_mm"] for s in manifest.samples} == {"3"}
    assert len({s.volume for s in manifest.samples}) == 1
    assert any("missing slices" in note and note.endswith(" (2)") for note in manifest.notes)
    assert any("where another lies" in note and note.endswith(" (1)") for note in manifest.notes)
    image = read_sample(manifest.samples[0])
    assert (image.spacing_mm, len(image.volume)) == ((0.5, 0.5), 5)


@pytest.mark.parametrize("key", ["StackID", "TemporalPositionIndex"])
def test_frames_of_several_stacks_or_times_are_volumes_of_their_own(key: str, tmp_path: Path) -> None:
    values = ["1", "2"] if key == "StackID" else [1, 2]
    of_frame = [{key: values[number % 2]} for number in range(6)]
    heights = [0, 0, 3, 3, 6, 6]
    save(enhanced(np.random.default_rng(1).integers(0, 4000, (6, *SHAPE)), heights, of_frame), tmp_path / "many.dcm")
    manifest = load_manifest(tmp_path)
    assert [s.frame for s in manifest.samples] == [0, 2, 4, 1, 3, 5]
    assert len({s.volume for s in manifest.samples}) == 2
    assert [len(read_sample(s).volume) for s in manifest.samples] == [3] * 6
    assert any("stacks or times" in note for note in manifest.notes)
    assert not any("where another lies" in note for note in manifest.notes)
