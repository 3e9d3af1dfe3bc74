"""Volumes as data sets: NIfTI and BIDS folders, DICOM series, patients by hashes, one intensity scale per volume."""

from __future__ import annotations

import csv
import itertools
import json
import os
import stat
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import PIL.Image
import pydicom
import pytest
from command import done, run
from filelock import FileLock
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage
from scanner import study
from test_readme import run_document

from anomaly_ae.config import load_config
from anomaly_ae.detector import Detector
from anomaly_ae.dicom import SliceHeader, hashed, remember, stacks
from anomaly_ae.errors import DataError, OutputError, UsageError
from anomaly_ae.evaluation import RunOptions, evaluate, score
from anomaly_ae.fitting import fit
from anomaly_ae.listener import Listener
from anomaly_ae.loading import read_sample
from anomaly_ae.manifest import (
    check_groups,
    load_manifest,
    make_folds,
    manifest_from_paths,
    roles,
    scan,
    with_foreground,
    write_manifest,
)
from anomaly_ae.manifest.foreground import foreground
from anomaly_ae.readers import volume_percentiles
from anomaly_ae.records import Sample, Score, Slice

named_manifest = partial(load_manifest, identified=True)

HOW_TO = Path(__file__).resolve().parent.parent / "docs" / "how-to"
SHAPE = (32, 34, 4)


def head(seed: int, shape: tuple[int, int, int] = SHAPE, n_air: int = 0) -> np.ndarray:
    """A ball of tissue with noise in air of value 0, cut into slices; above it as many slices of air as asked for."""
    right, front, top = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    noise = np.random.default_rng(seed).normal(0, 15, shape)
    volume = np.where(right**2 + front**2 + (top / 2) ** 2 < 0.8, 400 + 60 * right + noise, 0)
    return np.concatenate([volume, np.zeros((*shape[:2], n_air))], axis=2).astype(np.int16)


def save(path: Path, data: np.ndarray, slice_mm: float = 4.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(data, np.diag([1, 1, slice_mm, 1])), path)
    return path


def marked(slices: Sequence[int], shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[12:18, 12:18, list(slices)] = 1
    return mask


def bids(root: Path, n_healthy: int = 3, suffix: str = "FLAIR", n_air: int = 1) -> Path:
    """Healthy subjects, and one with a lesion in the slices 1 and 2; `n_air` empty slices on top of all."""
    root.mkdir(exist_ok=True)
    (root / "dataset_description.json").write_text(json.dumps({"Name": "test", "BIDSVersion": "1.10.0"}))
    shape = (*SHAPE[:2], SHAPE[2] + n_air)
    for number in range(1, n_healthy + 1):
        save(root / f"sub-{number:02}/anat/sub-{number:02}_{suffix}.nii.gz", head(number, n_air=n_air))
    ill = head(99, n_air=n_air)
    ill[marked([1, 2], shape) > 0] = 900
    save(root / f"sub-ill/ses-1/anat/sub-ill_ses-1_{suffix}.nii.gz", ill)
    save(root / "derivatives/lesions/sub-ill/anat/sub-ill_ses-1_label-lesion_mask.nii.gz", marked([1, 2], shape))
    rows = [f"sub-{n:02}\t{40 + n}\tcontrol" for n in range(1, n_healthy + 1)]
    (root / "participants.tsv").write_text(
        "\n".join(["participant_id\tage\tgroup", *rows, "sub-ill\tn/a\tpatient", ""])
    )
    return root


# --- NIfTI folders and tables ------------------------------------------------------------


def of(samples: Sequence[Sample], unit: str) -> dict[int, str]:
    return {s.frame: s.label for s in samples if s.unit == unit}


def test_a_mask_labels_the_slices_of_its_volume(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(tmp_path / f"normal/{name}.nii.gz", head(1))
    save(tmp_path / "anomalous/stroke/c.nii.gz", head(2))
    save(tmp_path / "ground_truth/stroke/c_mask.nii.gz", marked([2]))
    save(tmp_path / "anomalous/stroke/d.nii.gz", head(3))
    samples = named_manifest(tmp_path).samples
    assert len(samples) == 16
    assert of(samples, "normal/a.nii.gz") == dict.fromkeys(range(4), "normal")
    labels = {0: "normal", 1: "normal", 2: "anomalous", 3: "normal"}
    assert of(samples, "anomalous/stroke/c.nii.gz") == labels
    assert of(samples, "anomalous/stroke/d.nii.gz") == dict.fromkeys(range(4), ""), "no mask, no slice labels"
    assert {s.defect for s in samples if s.label == "anomalous"} == {"stroke"}
    assert {s.defect for s in samples if s.label != "anomalous"} == {""}


@pytest.mark.parametrize("damage", ["empty", "truncated", "moved", "missing"])
def test_a_mask_that_says_nothing_leaves_no_slice_labels(damage: str, tmp_path: Path) -> None:
    """All slices stay listed, none is called normal, and none is learned from."""
    save(tmp_path / "v.nii.gz", head(1))
    mask = save(tmp_path / "m.nii.gz", marked([2] if damage != "empty" else []), 5 if damage == "moved" else 4)
    if damage == "truncated":
        mask.write_bytes(mask.read_bytes()[:-20])
    if damage == "missing":
        mask.unlink()
    (tmp_path / "m.csv").write_text("path,label,mask\nv.nii.gz,anomalous,m.nii.gz\n")
    samples = load_manifest(tmp_path / "m.csv").samples
    assert [(s.frame, s.label, s.split, s.extra["volume_label"]) for s in samples] == [
        (frame, "", "test", "anomalous") for frame in range(4)
    ]


def test_a_volume_that_shows_nothing_is_not_lost(tmp_path: Path) -> None:
    save(tmp_path / "v.nii.gz", np.zeros(SHAPE, np.int16))
    assert [s.id for s in named_manifest(tmp_path).samples] == ["v.nii.gz"]


def test_nothing_is_learned_from_a_patient_with_a_lesion_unasked(tmp_path: Path) -> None:
    manifest = named_manifest(bids(tmp_path))
    used = dict(zip([s.id for s in manifest.samples], roles(manifest.samples), strict=True))
    assert {role for id_, role in used.items() if "sub-ill" in id_} == {"test"}
    assert {role for id_, role in used.items() if "sub-ill" not in id_} == {"train"}
    for fold in make_folds(manifest, 3, seed=0):
        assert {s.split for s in fold.samples if s.unit == "sub-ill"} == {"test"}


def test_folds_without_healthy_people(tmp_path: Path) -> None:
    """Asked for, the lesion-free slices of patients train; never those that nobody outlined."""
    for number in range(6):
        save(tmp_path / f"anomalous/p{number}.nii", head(number))
        if number < 5:
            save(tmp_path / f"ground_truth/p{number}_mask.nii", marked([number % 4]))
    manifest = load_manifest(tmp_path)
    with pytest.raises(DataError, match="3 folds from 0 groups"):
        make_folds(manifest, 3, seed=0)
    folds = make_folds(manifest, 3, seed=0, learn_from_patients=True)
    tested = [s.id for fold in folds for s in fold.samples if s.split == "test"]
    assert sorted(tested) == sorted(s.id for s in manifest.samples), "each slice is tested once"
    for fold in folds:
        splits = {(s.label, s.split) for s in fold.samples}
        assert splits <= {
            ("normal", "train"),
            ("normal", "test"),
            ("anomalous", ""),
            ("anomalous", "test"),
            ("", ""),
            ("", "test"),
        }
        check_groups(fold.samples)
        n_train = sum(s.split == "train" for s in fold.samples)
        assert f"lesion-free slices of patients, which may hide a lesion: {n_train}" in "\n".join(scan(fold).warnings)


def test_fit_says_what_it_learned_from_patients(tmp_path: Path) -> None:
    for number in range(8):
        save(tmp_path / f"anomalous/p{number}.nii", head(number))
        save(tmp_path / f"ground_truth/p{number}_mask.nii", marked([number % 4]))
    done("scan", tmp_path, "--folds", "2", "--learn-from-patients", "--out", tmp_path / "m.csv")
    config = load_config("smoke", ["training.steps=1"])
    said: list[str] = []
    detector = fit(load_manifest(tmp_path / "m_1.csv"), config, device="cpu", listener=Listener(say=said.append))
    assert detector.provenance["n_lesion_free"] == 12
    assert any("lesion-free slices of patients among the normal images: 12" in line for line in said)


def test_an_anomalous_volume_without_a_mask_is_never_learned(tmp_path: Path) -> None:
    for number in range(4):
        save(tmp_path / f"normal/{number}.nii", head(number))
    save(tmp_path / "anomalous/ill.nii", head(9))
    manifest = named_manifest(tmp_path)
    assert {s.extra.get("volume_label", "") for s in manifest.samples if "ill" in s.path} == {"anomalous"}
    for fold in make_folds(manifest, 2, seed=0):
        assert {s.split for s in fold.samples if "ill" in s.path} == {"test"}


def test_slices_of_air_are_not_listed(tmp_path: Path) -> None:
    save(tmp_path / "a.nii", head(1, n_air=3))
    assert [s.frame for s in load_manifest(tmp_path).samples] == [0, 1, 2, 3]
    assert {s.extra["slice_spacing_mm"] for s in load_manifest(tmp_path).samples} == {"4"}


def test_slices_outside_of_the_valid_mask_are_not_listed(tmp_path: Path) -> None:
    save(tmp_path / "a.nii", head(1))
    save(tmp_path / "brain.nii", marked([1, 2]))
    (tmp_path / "m.csv").write_text("path,valid\na.nii,brain.nii\n")
    samples = load_manifest(tmp_path / "m.csv").samples
    assert [s.frame for s in samples] == [1, 2]
    image = read_sample(samples[0])
    assert image.valid is not None
    assert image.valid.sum() == 36


def test_a_row_without_a_frame_is_the_whole_volume(tmp_path: Path) -> None:
    save(tmp_path / "a.nii.gz", head(1))
    save(tmp_path / "a_lesion.nii.gz", marked([0]))
    save(tmp_path / "b.nii.gz", head(2))
    (tmp_path / "m.csv").write_text(
        "path,frame,label,mask,unit,id,age\n"
        "a.nii.gz,,anomalous,a_lesion.nii.gz,p1,x,70\n"
        "b.nii.gz,2,normal,,p2,,50\n"
        "missing.nii.gz,,,,,,\n"
    )
    samples = named_manifest(tmp_path / "m.csv").samples
    assert [s.id for s in samples] == ["x#0", "x#1", "x#2", "x#3", "b.nii.gz#2", "missing.nii.gz"]
    assert [s.label for s in samples] == ["anomalous", "normal", "normal", "normal", "normal", ""]
    assert {(s.unit, s.group, s.extra["age"]) for s in samples[:4]} == {("p1", "p1", "70")}
    assert [s.split for s in samples] == ["test"] * 4 + ["", ""]


def test_a_written_table_reads_the_same(tmp_path: Path) -> None:
    manifest = load_manifest(bids(tmp_path / "data"))
    write_manifest(manifest, tmp_path / "m.csv")
    again = load_manifest(tmp_path / "m.csv")
    for one, two in zip(manifest.samples, again.samples, strict=True):
        assert (one.id, one.frame, one.label, one.unit, one.group, one.split) == (
            *(two.id, two.frame, two.label, two.unit, two.group, two.split),
        )
        assert dict(one.extra) == dict(two.extra)
        assert [f.resolve() for f in (one.files[0], one.mask or one.files[0])] == [
            f.resolve() for f in (two.files[0], two.mask or two.files[0])
        ]


def test_a_mask_beside_its_volume_is_no_image(tmp_path: Path) -> None:
    save(tmp_path / "a.nii.gz", head(1))
    save(tmp_path / "a_mask.nii.gz", marked([3]))
    assert of(named_manifest(tmp_path).samples, "a.nii.gz") == {0: "normal", 1: "normal", 2: "normal", 3: "anomalous"}


def test_a_pattern_names_the_patient_as_group_and_unit(tmp_path: Path) -> None:
    for name in ("p1_T1", "p1_T2", "p2_T1"):
        save(tmp_path / f"{name}.nii.gz", head(1))
    samples = named_manifest(tmp_path, r"(p\d)").samples
    assert {(s.unit, s.group) for s in samples} == {("p1", "p1"), ("p2", "p2")}


def test_volumes_that_cannot_be_read_are_listed(tmp_path: Path) -> None:
    save(tmp_path / "a.nii.gz", head(1))
    (tmp_path / "b.nii.gz").write_bytes((tmp_path / "a.nii.gz").read_bytes()[:200])
    samples = named_manifest(tmp_path).samples
    assert [s.path for s in samples if s.path.startswith("b")] == ["b.nii.gz"]
    report = scan(named_manifest(tmp_path))
    assert [name for name, _ in report.unreadable] == ["b.nii.gz"]


def test_scan_of_volumes_names_masks_on_another_grid_and_spacings(tmp_path: Path) -> None:
    save(tmp_path / "normal/a.nii", head(1), slice_mm=2)
    save(tmp_path / "anomalous/b.nii", head(2), slice_mm=4)
    save(tmp_path / "ground_truth/b_mask.nii", marked([1]), slice_mm=5)
    report = scan(load_manifest(tmp_path))
    assert any("affine" in problem for _, problem in report.mask_problems)
    assert "slices lie 2 to 4 mm apart, differently from volume to volume" in report.notes


def test_too_few_patients_are_not_cured_by_cutting_them_up(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(tmp_path / f"{name}.nii", head(1 if name == "a" else 2))
    [refusal] = scan(load_manifest(tmp_path)).refusals
    assert "add volumes of other patients" in refusal.fix


def test_empty_slices_of_patients_are_no_copies_of_each_other(tmp_path: Path) -> None:
    """Skull-stripped volumes all begin and end with the same slice: nothing."""
    report = scan(load_manifest(bids(tmp_path, n_healthy=9)))
    assert report.duplicates == ()
    assert report.refusals == ()


# --- BIDS ------------------------------------------------------------


def test_bids(tmp_path: Path) -> None:
    manifest = named_manifest(bids(tmp_path))
    assert manifest.layout == "bids"
    assert {s.unit for s in manifest.samples} == {"sub-01", "sub-02", "sub-03", "sub-ill"}
    assert all(s.unit == s.group for s in manifest.samples)
    assert of(manifest.samples, "sub-ill") == {0: "normal", 1: "anomalous", 2: "anomalous", 3: "normal"}
    assert of(manifest.samples, "sub-01") == dict.fromkeys(range(4), "")
    known = {s.unit: dict(s.extra) for s in manifest.samples}
    spacing = {"slice_spacing_mm": "4"}
    assert known["sub-01"] == {"age": "41", "participant_group": "control", "session": "", "suffix": "FLAIR", **spacing}
    assert known["sub-ill"] == {"age": "", "participant_group": "patient", "session": "1", "suffix": "FLAIR", **spacing}


def test_bids_labels_and_splits_of_subjects(tmp_path: Path) -> None:
    bids(tmp_path)
    (tmp_path / "participants.tsv").write_text(
        "participant_id\tlabel\tsplit\nsub-01\tnormal\ttrain\nsub-02\tnormal\ttest\nsub-03\tanomalous\tn/a\n"
    )
    manifest = named_manifest(tmp_path)
    found = {(s.unit, s.label, s.split) for s in manifest.samples}
    assert ("sub-01", "normal", "train") in found
    assert ("sub-02", "normal", "test") in found
    assert ("sub-03", "", "test") in found, "anomalous without a mask: no slice labels, not learned from"
    assert manifest.notes == ("subjects that participants.tsv does not name: 1",)


def test_bids_brain_masks_are_valid(tmp_path: Path) -> None:
    bids(tmp_path)
    inside = marked([0, 1], (*SHAPE[:2], SHAPE[2] + 1))
    save(tmp_path / "derivatives/hd-bet/sub-01/anat/sub-01_desc-brain_mask.nii.gz", inside)
    samples = [s for s in named_manifest(tmp_path).samples if s.unit == "sub-01"]
    assert [s.frame for s in samples] == [0, 1]
    assert {s.valid.name for s in samples if s.valid} == {"sub-01_desc-brain_mask.nii.gz"}
    assert {s.mask for s in samples} == {None}


def test_bids_of_several_kinds_asks_which(tmp_path: Path) -> None:
    bids(tmp_path / "data")
    save(tmp_path / "data/sub-01/anat/sub-01_T1w.nii.gz", head(5))
    with pytest.raises(DataError, match=r"FLAIR \(4\), T1w \(1\).*--suffix FLAIR"):
        load_manifest(tmp_path / "data")
    assert {s.extra["suffix"] for s in load_manifest(tmp_path / "data", suffix="T1w").samples} == {"T1w"}
    with pytest.raises(UsageError, match="T2w"):
        load_manifest(tmp_path / "data", suffix="T2w")
    out = tmp_path / "t1.csv"
    assert run("scan", tmp_path / "data", "--suffix", "T1w", "--out", out).code == 1, "too few to fit"
    assert {row["suffix"] for row in csv.DictReader(out.read_text(encoding="utf-8").splitlines())} == {"T1w"}


def test_suffix_of_what_is_not_bids(tmp_path: Path) -> None:
    save(tmp_path / "a.nii", head(1))
    with pytest.raises(UsageError, match="BIDS"):
        load_manifest(tmp_path, suffix="T1w")


def test_bids_with_two_lesion_masks_of_one_image_is_refused(tmp_path: Path) -> None:
    bids(tmp_path)
    save(tmp_path / "derivatives/rater2/sub-ill/sub-ill_ses-1_label-lesion_mask.nii.gz", marked([0]))
    with pytest.raises(DataError, match="has 2 masks"):
        load_manifest(tmp_path)


@pytest.mark.parametrize("text", ["subject\nsub-01\n", "participant_id\tlabel\nsub-01\tgood\n"])
def test_damaged_participants(text: str, tmp_path: Path) -> None:
    bids(tmp_path)
    (tmp_path / "participants.tsv").write_text(text)
    with pytest.raises(DataError, match=r"participants\.tsv"):
        load_manifest(tmp_path)


def test_a_bids_folder_can_be_scored(tmp_path: Path) -> None:
    assert manifest_from_paths([bids(tmp_path)]).layout == "bids"


# --- DICOM series ------------------------------------------------------------


def dicom(path: Path, height: float | None, *, patient: str = "ID-4711", series: str = "1.2", **more: object) -> Path:
    """One oblique MR slice, `height` mm along its normal."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = MRImageStorage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.9.{abs(hash(path.name)) % 10**9}"
    ds.PatientName, ds.PatientID, ds.PatientBirthDate = "Secret^Person", patient, "19700102"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = f"1.5.{series}", series
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = 20, 24, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PixelSpacing = [0.5, 0.5]
    if height is not None:
        row, column = np.array([0.8, 0.6, 0]), np.array([0, 0, -1])
        ds.ImageOrientationPatient = [*row, *column]
        ds.ImagePositionPatient = [*(np.array([10, 20, 30]) + height * np.cross(row, column))]
    for name, value in more.items():
        setattr(ds, name, value)
    pixels = np.random.default_rng(int(1000 * abs(height or 0))).integers(0, 4000, (20, 24)).astype(np.uint16)
    ds.PixelData = pixels.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def heights(samples: Sequence[Sample]) -> list[float]:
    found = []
    for sample in samples:
        header = pydicom.dcmread(sample.files[0], stop_before_pixels=True)
        normal = np.cross(header.ImageOrientationPatient[:3], header.ImageOrientationPatient[3:])
        found.append(float(normal @ np.array(header.ImagePositionPatient)))
    return found


def test_slices_lie_in_the_order_of_their_position(tmp_path: Path) -> None:
    """Neither names nor InstanceNumber say the order: both are shuffled here."""
    order = np.random.default_rng(0).permutation(9)
    for number, place in enumerate(order):
        more = {"InstanceNumber": int(9 - number), "SliceThickness": 9, "SpacingBetweenSlices": 7}
        dicom(tmp_path / f"{number}.dcm", 2.5 * place, **more)
    samples = load_manifest(tmp_path).samples
    assert len(samples) == 9
    assert np.all(np.diff(heights(samples)) > 0)
    assert {s.extra["slice_spacing_mm"] for s in samples} == {"2.5"}, "the distance of positions, not SliceThickness"
    assert len({s.volume for s in samples}) == 1
    assert samples[0].slices == tuple(Slice(s.files) for s in samples)


def test_gaps_and_duplicates_are_told(tmp_path: Path) -> None:
    for number, place in enumerate([0, 1, 2, 5, 6, 6, 7]):
        dicom(tmp_path / f"{number}.dcm", 3.0 * place)
    notes = "\n".join(load_manifest(tmp_path).notes)
    assert "missing slices: series-" in notes
    assert notes.count("(2)") == 1
    assert "slices where another lies: series-" in notes
    assert notes.count("(1)") == 1


def test_orientations_of_one_series_are_volumes_of_their_own(tmp_path: Path) -> None:
    for number in range(3):
        dicom(tmp_path / f"{number}.dcm", 3.0 * number)
        turned = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "ImagePositionPatient": [0, 0, 5 * number]}
        dicom(tmp_path / f"t{number}.dcm", 3.0 * number, **turned)
    dicom(tmp_path / "scout.dcm", None)
    manifest = load_manifest(tmp_path)
    assert len({s.volume for s in manifest.samples if s.volume}) == 2
    assert {(s.extra["slice_spacing_mm"], s.volume[-2:]) for s in manifest.samples if s.volume} == {
        *[("3", "-1"), ("5", "-2")]
    }
    assert any("several orientations" in note for note in manifest.notes)


@pytest.mark.parametrize(
    ("name", "values"),
    [("EchoTime", (4.6, 9.2)), ("TemporalPositionIdentifier", (1, 2)), ("DiffusionBValue", (0.0, 800.0))],
)
def test_echoes_times_and_weightings_of_one_series_are_volumes_of_their_own(
    tmp_path: Path, name: str, values: tuple[float, float]
) -> None:
    for number in range(3):
        for which, value in enumerate(values):
            dicom(tmp_path / f"{number}-{which}.dcm", 3.0 * number, **{name: value})
    manifest = load_manifest(tmp_path)
    found = [(sample.volume[-2:], sample.files[0].name) for sample in manifest.samples]
    assert found == [(f"-{which + 1}", f"{number}-{which}.dcm") for which in range(2) for number in range(3)]
    assert not any("another lies" in note for note in manifest.notes)
    assert any("several orientations, stacks or times" in note for note in manifest.notes)


def test_frames_of_one_file_are_no_duplicates(tmp_path: Path) -> None:
    path = dicom(tmp_path / "many.dcm", 0)
    ds = pydicom.dcmread(path)
    ds.NumberOfFrames, ds.PixelData = 3, 3 * ds.PixelData
    ds.save_as(path)
    manifest = load_manifest(tmp_path)
    assert [s.frame for s in manifest.samples] == [0, 1, 2]
    assert manifest.notes == ()
    assert read_sample(manifest.samples[1]).volume == tuple(Slice((path,), frame) for frame in range(3))


def test_stacks_against_sorting_by_hand() -> None:
    generator = np.random.default_rng(3)
    axes, _ = np.linalg.qr(generator.normal(size=(3, 3)))
    places = generator.permutation(40) * 1.25
    headers = [
        SliceHeader("p", "s", (*axes[0], *axes[1]), tuple(place * np.cross(axes[0], axes[1]) + 3 * axes[0]))
        for place in places
    ]
    [found] = stacks(headers)
    assert list(found.indices) == list(np.argsort(places))
    assert (found.spacing_mm, found.n_missing, found.n_duplicates) == (pytest.approx(1.25), 0, 0)


def test_patients_are_units_and_groups_by_hash(tmp_path: Path, private_folder: Path) -> None:
    for patient in ("ID-1", "ID-2"):
        for number in range(2):
            dicom(tmp_path / f"{patient}/{number}.dcm", 2.0 * number, patient=patient, series=f"1.{patient[-1]}")
    dicom(tmp_path / "no_id.dcm", 0, patient="", series="1.7")
    samples = load_manifest(tmp_path).samples
    units = {s.unit for s in samples}
    assert len(units) == 3
    assert all(s.group == s.unit for s in samples)
    assert all(unit.startswith("patient-") for unit in units)
    with (private_folder / "patients.csv").open(encoding="utf-8", newline="") as file:
        key = {row["name"]: row["patient_id"] for row in csv.DictReader(file)}
    assert {key[unit] for unit in units} == {"ID-1", "ID-2", "1.5.1.7"}, "without an ID, the study"


def test_nothing_that_is_printed_or_written_names_the_patient(tmp_path: Path) -> None:
    for patient in range(10):
        for number in range(2):
            path = tmp_path / f"data/{patient}/{number}.dcm"
            dicom(path, 2.0 * number + patient * 0.01, patient=f"ID-47{patient}", series=f"1.2.840.{patient}")
    out = done("scan", tmp_path / "data", "--out", tmp_path / "m.csv")
    text = out + (tmp_path / "m.csv").read_text(encoding="utf-8")
    for secret in ("ID-47", "Secret", "19700102", "1.2.840"):
        assert secret not in text
    assert "patient-" in text


def test_the_key_file_grows_and_only_its_owner_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANOMALY_AE_PRIVATE", str(tmp_path / "private"))
    first = hashed(["a,b", "c"], "patient")
    remember(first)
    remember(hashed(["d\n\u00e9"], "patient"))
    assert hashed(["c"], "patient")["c"] == first["c"], "the salt stays"
    with (tmp_path / "private/patients.csv").open(encoding="utf-8", newline="") as file:
        assert sorted(row["patient_id"] for row in csv.DictReader(file)) == ["a,b", "c", "d\n\u00e9"]
    if os.name != "nt":
        for name in ("salt", "patients.csv"):
            assert stat.S_IMODE((tmp_path / "private" / name).stat().st_mode) == 0o600
    monkeypatch.setenv("ANOMALY_AE_PRIVATE", str(tmp_path / "other"))
    assert hashed(["c"], "patient")["c"] != first["c"], "another salt, other names"


ADDING = """
import sys
from anomaly_ae.dicom.patients import hashed, remember
for i in range(20):
    remember(hashed([f"{sys.argv[1]}-{i}"], "patient"))
"""


def test_programs_that_add_at_once_lose_nothing(tmp_path: Path) -> None:
    """Real processes, which begin without a salt: all get the same one, and every entry is kept."""
    place = {**os.environ, "ANOMALY_AE_PRIVATE": str(tmp_path / "private")}
    programs = [subprocess.Popen([sys.executable, "-c", ADDING, name], env=place) for name in "abcd"]
    assert [program.wait(120) for program in programs] == [0] * 4
    with (tmp_path / "private/patients.csv").open(encoding="utf-8", newline="") as file:
        key = {row["patient_id"]: row["name"] for row in csv.DictReader(file)}
    assert set(key) == {f"{name}-{i}" for name in "abcd" for i in range(20)}
    assert len(set(key.values())) == 80


def test_a_lock_that_is_not_let_go_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANOMALY_AE_PRIVATE", str(tmp_path))
    monkeypatch.setattr("anomaly_ae.dicom.patients.WAIT_S", 0.1)
    with FileLock(tmp_path / ".patients.csv.lock"), pytest.raises(OutputError, match="another program has held"):
        remember({"a": "patient-1"})


def test_a_damaged_salt_is_no_new_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANOMALY_AE_PRIVATE", str(tmp_path))
    (tmp_path / "salt").write_bytes(b"short")
    with pytest.raises(OutputError, match="salt is damaged"):
        hashed(["c"], "patient")


def test_no_place_for_the_salt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ANOMALY_AE_PRIVATE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="let ANOMALY_AE_PRIVATE name a folder"):
        hashed(["c"], "patient")


def test_a_series_written_to_a_table_stays_a_volume(tmp_path: Path) -> None:
    for number in range(4):
        dicom(tmp_path / f"data/{number}.dcm", -2.0 * number)
    manifest = load_manifest(tmp_path / "data")
    write_manifest(manifest, tmp_path / "m.csv")
    again = load_manifest(tmp_path / "m.csv")
    assert [s.volume for s in again.samples] == [s.volume for s in manifest.samples]
    assert [one.files[0].name for one in again.samples[0].slices] == ["3.dcm", "2.dcm", "1.dcm", "0.dcm"]
    assert read_sample(again.samples[1]).volume == again.samples[1].slices


# --- foreground ------------------------------------------------------------


def body_and_table(offset: int = 0) -> np.ndarray:
    """A body with a hole (a lung) in two of four slices, a table below it, and air; CT numbers."""
    volume = np.full((20, 22, 4), -1000 + offset, np.int16)
    volume[5:15, 8:18, 1:3] = 40 + offset
    volume[8:11, 11:14, 1:3] = -900 + offset
    volume[:, 2:4, :] = 100 + offset
    return volume


def test_foreground_is_the_largest_piece_with_its_holes_filled(tmp_path: Path) -> None:
    save(tmp_path / "data/v.nii.gz", body_and_table())
    outcome = run("scan", tmp_path / "data", "--foreground-above", "-500", "--out", tmp_path / "m.csv")
    assert "2 readable normal images" in outcome.error, "too few to fit, and the table is written all the same"
    assert "slices outside of it, left out: 2" in outcome.out
    samples = load_manifest(tmp_path / "m.csv").samples
    assert [s.frame for s in samples] == [1, 2], "air above and below is left out"
    body = np.zeros((20, 22), bool)
    body[5:15, 8:18] = True
    for sample in samples:
        image = read_sample(sample)
        np.testing.assert_array_equal(image.valid, body.T[::-1, ::-1])
        assert len(image.volume) == 2
        np.testing.assert_array_equal(volume_percentiles(image.volume, 0, 100), [[-900, 40]])


def test_foreground_of_a_series_and_of_flat_images(tmp_path: Path) -> None:
    for number in range(3):
        dicom(tmp_path / f"data/{number}.dcm", 2.0 * number)
    grey = np.zeros((9, 9), np.uint8)
    grey[2:7, 2:7] = 200
    PIL.Image.fromarray(grey).save(tmp_path / "data/flat.png")
    PIL.Image.fromarray(0 * grey).save(tmp_path / "data/dark.png")
    manifest = with_foreground(named_manifest(tmp_path / "data"), 100, tmp_path / "masks")
    assert [s.id for s in manifest.samples] == ["dark.png", "flat.png", "0.dcm", "1.dcm", "2.dcm"]
    assert [s.valid is None for s in manifest.samples] == [True, False, False, False, False]
    assert "images with nothing above 100, taken whole: 1" in manifest.notes
    assert read_sample(manifest.samples[1]).valid.sum() == 25  # type: ignore[union-attr]
    assert {one.valid for one in manifest.samples[3].slices} == {s.valid for s in manifest.samples[2:]}


def test_foreground_against_brute_force() -> None:
    """Pieces by growing from a seed, holes as what the outside does not reach."""
    above = np.random.default_rng(5).random((4, 9, 10)) > 0.55
    left, best = set(map(tuple, np.argwhere(above))), set()
    while left:
        piece, grow = set(), [left.pop()]
        while grow:
            place = grow.pop()
            piece.add(place)
            for axis, step in itertools.product(range(3), (-1, 1)):
                beside = tuple(p + step * (a == axis) for a, p in enumerate(place))
                if beside in left:
                    left.remove(beside)
                    grow.append(beside)
        best = max(best, piece, key=len)
    found = foreground(above)
    assert all(found[place] for place in best)
    for number, plane in enumerate(found):
        outside = np.ones((11, 12), bool)
        outside[1:-1, 1:-1] = [[(number, r, c) not in best for c in range(10)] for r in range(9)]
        reached = np.zeros_like(outside)
        reached[0, 0] = True
        for _ in range(200):
            reached |= outside & (
                np.roll(reached, 1, 0) | np.roll(reached, -1, 0) | np.roll(reached, 1, 1) | np.roll(reached, -1, 1)
            )
        np.testing.assert_array_equal(plane, ~reached[1:-1, 1:-1])


def test_foreground_needs_a_table_and_replaces_no_masks(tmp_path: Path) -> None:
    save(tmp_path / "data/v.nii.gz", body_and_table())
    assert "needs --out" in run("scan", tmp_path / "data", "--foreground-above", "0").error
    (tmp_path / "m_valid").mkdir()
    outcome = run("scan", tmp_path / "data", "--foreground-above", "0", "--out", tmp_path / "m.csv")
    assert "m_valid exists already" in outcome.error


# --- intensity ------------------------------------------------------------


def test_percentiles_of_a_volume_against_numpy(tmp_path: Path) -> None:
    data = head(4)
    path, valid = save(tmp_path / "v.nii.gz", data), save(tmp_path / "m.nii.gz", (data > 0).astype(np.uint8))
    slices = [Slice((path,), frame, valid) for frame in range(4)]
    np.testing.assert_allclose(volume_percentiles(slices, 2, 98), [np.percentile(data[data > 0], (2, 98))])
    whole = [Slice((path,), frame) for frame in range(4)]
    np.testing.assert_allclose(volume_percentiles(whole, 2, 98), [np.percentile(data, (2, 98))])


def test_percentiles_follow_a_file_that_is_written_anew(tmp_path: Path) -> None:
    data = head(4)
    slices = [Slice((save(tmp_path / "v.nii", data),), frame) for frame in range(4)]
    before = volume_percentiles(slices, 2, 98)
    save(tmp_path / "v.nii", (2 * data.astype(np.int32)).astype(np.float32))
    np.testing.assert_allclose(volume_percentiles(slices, 2, 98), 2 * before)


def test_percentiles_without_a_readable_slice(tmp_path: Path) -> None:
    (tmp_path / "v.nii").write_bytes(b"nothing")
    with pytest.raises(DataError, match="no slice can be read"):
        volume_percentiles([Slice((tmp_path / "v.nii",))], 1, 99)


@pytest.fixture(scope="module")
def volume_detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    root = bids(tmp_path_factory.mktemp("volumes") / "data", n_healthy=8)
    config = load_config("smoke", ["training.steps=2", "intensity.policy=volume_percentile"])
    return fit(load_manifest(root), config, device="cpu")


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
def test_a_volume_times_3_plus_100_scores_the_same(name: str, volume_detector: Detector, tmp_path: Path) -> None:
    """MR intensities have no unit: not even slice by slice does the scale of a volume change a score."""
    data = head(20)
    data[marked([1]) > 0] = 700
    scores = []
    for factor, offset in ((1, 0), (3, 100)):
        path = save(tmp_path / f"{factor}_{name}", factor * data + offset)
        results = list(volume_detector.score_many(manifest_from_paths([path]).samples))
        scores.append([result.score for result in results if isinstance(result, Score)])
    assert len(scores[0]) == 4
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-4)


def test_slices_of_one_volume_share_their_limits(volume_detector: Detector, tmp_path: Path) -> None:
    data = head(21)
    data[..., 2] *= 2
    samples = manifest_from_paths([save(tmp_path / "v.nii.gz", data)]).samples
    limits = [volume_detector.limits_of(volume_detector.prepare(read_sample(s))) for s in samples]
    for one in limits[1:]:
        np.testing.assert_array_equal(one, limits[0])
    alone = replace(read_sample(samples[2]), volume=())
    assert volume_detector.limits_of(volume_detector.prepare(alone))[0, 1] > 1.1 * limits[0][0, 0]
    assert not np.array_equal(volume_detector.limits_of(volume_detector.prepare(alone)), limits[2])


def test_a_dicom_series_shares_its_limits(volume_detector: Detector, tmp_path: Path) -> None:
    for number in range(3):
        dicom(tmp_path / f"{number}.dcm", 2.0 * number)
    samples = load_manifest(tmp_path).samples
    images = [read_sample(sample) for sample in samples]
    config = volume_detector.config.intensity
    want = np.percentile(np.stack([i.pixels for i in images]), (config.low_percentile, config.high_percentile))
    found = [volume_detector.limits_of(volume_detector.preparation(image)) for image in images]
    np.testing.assert_allclose(found, [[want]] * 3)


# --- runs ------------------------------------------------------------


def test_a_run_writes_the_maps_of_a_volume_as_a_volume(volume_detector: Detector, tmp_path: Path) -> None:
    data = head(30, n_air=2)
    data[marked([1], data.shape) > 0] = 900
    source = save(tmp_path / "data/v.nii.gz", data)
    manifest = load_manifest(tmp_path / "data")
    score(volume_detector, manifest, tmp_path / "run", RunOptions(maps=True))
    [file] = (tmp_path / "run/maps").iterdir()
    found = nibabel.load(file)
    np.testing.assert_allclose(found.affine, nibabel.load(source).affine)
    maps = found.get_fdata()
    assert maps.shape == data.shape
    assert not maps[..., 4:].any(), "slices of air are not scored"
    [want] = [r for r in volume_detector.score_many(manifest.samples[1:2]) if isinstance(r, Score)]
    assert maps[..., 1].max() == pytest.approx(want.score, rel=1e-5)


def test_patients_without_slice_labels_count_as_patients(volume_detector: Detector, tmp_path: Path) -> None:
    """Their slices are in no figure of images or pixels, and the warning says that they are left out of these."""
    lines = ["path,label,mask,unit,split"]
    for number in range(6):
        kind = "normal" if number < 3 else "anomalous"
        data = head(40 + number)
        data[marked([1]) > 0] += 0 if number < 3 else 900
        save(tmp_path / f"{number}.nii", data)
        mask = save(tmp_path / "5_mask.nii", marked([1])).name if number == 5 else ""
        lines.append(f"{number}.nii,{kind},{mask},p{number},test")
    (tmp_path / "m.csv").write_text("\n".join(lines) + "\n")
    found = evaluate(volume_detector, load_manifest(tmp_path / "m.csv"), tmp_path / "run", RunOptions())
    metrics = found.metrics or {}
    assert {name: metrics["counts"][name] for name in ("normal", "anomalous", "unlabelled", "units")} == {
        **{"normal": 3 * 4 + 3, "anomalous": 1, "unlabelled": 2 * 4, "units": 6}
    }
    assert (metrics["unit"]["roc_auc"]["n_normal"], metrics["unit"]["roc_auc"]["n_anomalous"]) == (3, 3)
    assert (metrics["image"]["roc_auc"]["n_normal"], metrics["image"]["roc_auc"]["n_anomalous"]) == (15, 1)
    left_out = "8 images without a label are left out of the pixel figures: "
    assert [text.startswith(left_out) for text in found.warnings].count(True) == 1
    with (tmp_path / "run/units.csv").open(encoding="utf-8", newline="") as file:
        labels = [row["label"] for row in csv.DictReader(file)]
    assert sorted(labels) == ["anomalous"] * 3 + ["normal"] * 3
    text = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert "8 without a label, of anomalous volumes" in text
    assert "Learned from patients" not in text
    assert "Further 8 slices of anomalous volumes" in (tmp_path / "run/methods.md").read_text(encoding="utf-8")


def test_only_patients_without_slice_labels(volume_detector: Detector, tmp_path: Path) -> None:
    for number in range(2):
        save(tmp_path / f"{number}.nii", head(50 + number))
    (tmp_path / "m.csv").write_text("path,label,unit\n0.nii,anomalous,p0\n1.nii,anomalous,p1\n")
    volume_detector.provenance["n_lesion_free"] = 7
    metrics = evaluate(volume_detector, load_manifest(tmp_path / "m.csv"), tmp_path / "run", RunOptions()).metrics or {}
    volume_detector.provenance["n_lesion_free"] = 0
    assert metrics["unit"]["at_threshold"][0]["sensitivity"]["n_anomalous"] == 2
    assert metrics["image"]["roc_auc"]["value"] is None
    for name in ("report.html", "methods.md"):
        text = (tmp_path / "run" / name).read_text(encoding="utf-8")
        assert "Learned from patients: 7 of these images are slices of people with a lesion elsewhere" in text


# --- documents ------------------------------------------------------------


@pytest.mark.slow
def test_how_to_bids_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bids(tmp_path / "brains", n_healthy=9)
    assert run_document(HOW_TO / "bids.md") == (5, 0)
    assert all(s.valid is not None for s in load_manifest(tmp_path / "masked.csv").samples)


@pytest.mark.slow
def test_how_to_dicom_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    study(tmp_path / "scans")
    assert run_document(HOW_TO / "dicom.md") == (5, 0)
    units = (tmp_path / "scores/units.csv").read_text(encoding="utf-8")
    assert units.count("patient-") == 2 * 10, "unit and group"
    metrics = json.loads((tmp_path / "evaluation/metrics.json").read_text(encoding="utf-8"))
    assert (metrics["counts"]["normal"], metrics["counts"]["anomalous"]) == (2, 2), "by the segmentation"
    assert len(list((tmp_path / "for_archive/dicom/sc").iterdir())) == 40
    for file in (tmp_path / "scores").rglob("*.*"):
        if file.suffix in (".csv", ".json", ".jsonl", ".html"):
            assert "ID-" not in file.read_text(encoding="utf-8"), file.name
