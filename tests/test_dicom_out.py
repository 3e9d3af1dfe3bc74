"""DICOM objects out: identity, references and place of the source, corners in their corners, valid by other eyes."""

from __future__ import annotations

import csv
import itertools
import logging
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import PIL.Image
import pydicom
import pytest
import tifffile
from command import run
from pydicom.dataset import Dataset
from pydicom.uid import (
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    EnhancedMRImageStorage,
    MRImageStorage,
    SecondaryCaptureImageStorage,
    UltrasoundMultiFrameImageStorage,
    generate_uid,
)
from scanner import place, plain, save, study
from scipy.spatial.transform import Rotation

from anomaly_ae.calibration import Asked
from anomaly_ae.detector import Detector
from anomaly_ae.dicom import DicomWriter, parse_kinds, read_dicom
from anomaly_ae.dicom import write as dicom_write
from anomaly_ae.errors import OutputError, UsageError
from anomaly_ae.fitting import fit
from anomaly_ae.keeping import file_stem
from anomaly_ae.manifest import load_manifest
from anomaly_ae.nifti import count_nifti_frames, read_nifti, write_slice
from anomaly_ae.recalibration import recalibrated
from anomaly_ae.records import Sample
from anomaly_ae.report import overlay
from anomaly_ae.version import __version__

STUDY, SERIES, PLACE = generate_uid(), generate_uid(), generate_uid()
NAME, PATIENT = "Müller^Änne", "ID-4711"
SHAPE = (11, 9)
AXIAL, CORONAL_TURNED = (1, 0, 0, 0, 1, 0), (0, 0, -1, 0.8, 0.6, 0)
CORNERS = {"top left": (0, 0), "top right": (0, -1), "bottom left": (-1, 0), "bottom right": (-1, -1)}
DCIODVFY = shutil.which("dciodvfy")


def source(stored: np.ndarray, kind: str = CTImageStorage, **attributes: Any) -> Dataset:
    """An image of one study and series, as a scanner writes it: (H, W), or (frames, H, W)."""
    ours = {"StudyInstanceUID": STUDY, "SeriesInstanceUID": SERIES, "SpecificCharacterSet": "ISO_IR 100"}
    frames = {"NumberOfFrames": len(stored)} if stored.ndim == 3 else {}
    return plain(stored, kind, **{**ours, "PatientName": NAME, "PatientID": PATIENT, **frames, **attributes})


def placed(axes: Sequence[float] = AXIAL, height_mm: float = 0.0) -> dict[str, Any]:
    return {
        "FrameOfReferenceUID": PLACE, "PositionReferenceIndicator": "", "ImagePositionPatient": place(axes, height_mm),
        "ImageOrientationPatient": list(axes), "PixelSpacing": [0.5, 0.25], "SliceThickness": 3.0,
    }  # fmt: skip


def stored(corner: tuple[int, int] | None = None, n_frames: int = 0) -> np.ndarray:
    """Grey, with a bright marker in one corner; of several frames the second has it."""
    frames = np.full((max(n_frames, 1), *SHAPE), 500, np.uint16)
    if corner is not None:
        frames[(min(1, n_frames), *corner)] = 4000
    return frames if n_frames else frames[0]


def write(
    folder: Path, path: Path, frames: Sequence[int] = (0,), kinds: tuple[str, ...] = ("sc", "seg")
) -> DicomWriter:
    """Score by hand what was read: bright pixels are a region."""
    writer = DicomWriter(folder, kinds, "ab" * 32)
    for number, frame in enumerate(frames, start=1):
        add(writer, number, path, frame)
    writer.finish()
    return writer


def add(writer: DicomWriter, number: int, path: Path, frame: int = 0) -> None:
    values = read_dicom(path, frame).pixels[0].astype(float)
    bright = values > 3000
    writer.add(number, path.name, path, frame, overlay(values[np.newaxis] / 4095, 2.0 * bright), bright)


def check(*paths: Path) -> None:
    """No error in the eyes of dicom3tools."""
    for path in paths:
        ended = subprocess.run([str(DCIODVFY), path], capture_output=True, text=True, check=False)
        said = ended.stdout + ended.stderr
        assert "Error" not in said, said


def enhanced(frames: np.ndarray, axes: Sequence[float] = AXIAL) -> Dataset:
    """A multi-frame MR image with the place of each frame in functional groups."""
    ds = source(frames, EnhancedMRImageStorage, FrameOfReferenceUID=PLACE, PositionReferenceIndicator="")
    shared, plane, measures = Dataset(), Dataset(), Dataset()
    plane.ImageOrientationPatient = list(axes)
    measures.PixelSpacing, measures.SliceThickness = [0.5, 0.25], 3.0
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [plane], [measures]
    ds.SharedFunctionalGroupsSequence = [shared]
    ds.PerFrameFunctionalGroupsSequence = []
    for number in range(len(frames)):
        item, position = Dataset(), Dataset()
        position.ImagePositionPatient = placed(axes, 3.0 * number)["ImagePositionPatient"]
        item.PlanePositionSequence = [position]
        ds.PerFrameFunctionalGroupsSequence.append(item)
    return ds


SOURCES = {
    "CT": lambda corner: source(stored(corner), **placed()),
    "MONOCHROME1": lambda corner: source(
        4095 - stored(corner), DigitalXRayImageStorageForPresentation, PhotometricInterpretation="MONOCHROME1",
        ImagerPixelSpacing=[0.2, 0.1],
    ),
    "turned": lambda corner: source(stored(corner), MRImageStorage, **placed(CORONAL_TURNED)),
    "multi-frame": lambda corner: source(stored(corner, 2), UltrasoundMultiFrameImageStorage),
    "enhanced": lambda corner: enhanced(stored(corner, 2)),
    "capture": lambda corner: source(stored(corner), SecondaryCaptureImageStorage, FrameOfReferenceUID=PLACE),
}  # fmt: skip


def objects(folder: Path, kind: str) -> list[Dataset]:
    return [pydicom.dcmread(path) for path in sorted((folder / kind).iterdir())]


# --- corners ------------------------------------------------------------


@pytest.mark.parametrize("corner", CORNERS)
@pytest.mark.parametrize("kind", SOURCES)
def test_a_marker_in_a_corner_lands_in_that_corner_of_every_object(kind: str, corner: str, tmp_path: Path) -> None:
    made = SOURCES[kind](CORNERS[corner])
    path = save(made, tmp_path / "in.dcm")
    n_frames = int(made.get("NumberOfFrames") or 1)
    writer = write(tmp_path, path, range(n_frames))
    assert not writer.warnings()
    marked = np.zeros(SHAPE, bool)
    marked[CORNERS[corner]] = True

    capture = objects(tmp_path, "sc")[min(1, n_frames - 1)]
    assert (capture.Rows, capture.Columns) == SHAPE
    coloured = np.ptp(capture.pixel_array.astype(int), axis=2) > 0
    contour = (capture.pixel_array == 255).all(axis=2)
    np.testing.assert_array_equal(coloured | contour, marked)

    (found,) = (highdicom.seg.segread(path) for path in (tmp_path / "seg").iterdir())
    np.testing.assert_array_equal(found.pixel_array.reshape(SHAPE) > 0, marked)
    if n_frames > 1:
        np.testing.assert_array_equal(found.get_pixels_by_source_frame(made.SOPInstanceUID, [2])[0, ..., 0] > 0, marked)
    else:
        by_source = found.get_pixels_by_source_instance([made.SOPInstanceUID])
        np.testing.assert_array_equal(by_source[0, ..., 0] > 0, marked)


@pytest.mark.skipif(DCIODVFY is None, reason="dciodvfy (Debian's dicom3tools) is not installed")
@pytest.mark.parametrize("kind", SOURCES)
def test_dciodvfy_finds_no_error(kind: str, tmp_path: Path) -> None:
    made = SOURCES[kind]((0, 0))
    write(tmp_path, save(made, tmp_path / "in.dcm"), range(int(made.get("NumberOfFrames") or 1)))
    written = sorted(tmp_path.glob("s*/*.dcm"))
    assert {path.parent.name for path in written} == {"sc", "seg"}
    check(*written)


# --- identity and references ------------------------------------------------------------


def both(tmp_path: Path, **attributes: Any) -> tuple[Dataset, list[Dataset]]:
    made = source(stored((0, 0)), **(placed() | attributes))
    write(tmp_path, save(made, tmp_path / "in.dcm"))
    return made, [*objects(tmp_path, "sc"), *objects(tmp_path, "seg")]


def test_study_patient_and_place_are_those_of_the_source_series_and_instance_are_new(tmp_path: Path) -> None:
    made, found = both(tmp_path)
    assert [ds.Modality for ds in found] == ["OT", "SEG"]
    for ds in found:
        for key in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate"):
            assert ds[key].value == made[key].value, key
        assert str(ds.PatientName) == NAME
        assert (ds.AccessionNumber, ds.FrameOfReferenceUID) == ("A77", PLACE)
        assert ds.SOPInstanceUID == ds.file_meta.MediaStorageSOPInstanceUID
    names = [uid for ds in (made, *found) for uid in (ds.SeriesInstanceUID, ds.SOPInstanceUID)]
    assert len(set(names)) == 6
    assert list(found[0].ImagePositionPatient) == list(made.ImagePositionPatient)
    assert list(found[0].PixelSpacing) == [0.5, 0.25]


def test_objects_say_what_made_them_of_what_and_for_what(tmp_path: Path) -> None:
    made, found = both(tmp_path)
    for ds in found:
        assert ds.ContentQualification == "RESEARCH"
        assert "not a medical device" in ds.SeriesDescription
        own = next(item for item in ds.ContributingEquipmentSequence if item.Manufacturer == "anomaly_ae")
        assert own.SoftwareVersions == ds.SoftwareVersions == __version__
        assert own.DeviceSerialNumber == "ab" * 32
        assert ds.SourceImageSequence[0].ReferencedSOPInstanceUID == made.SOPInstanceUID
        assert ds.SourceImageSequence[0].ReferencedSOPClassUID == made.SOPClassUID
        (series,) = ds.ReferencedSeriesSequence
        assert series.SeriesInstanceUID == SERIES
        assert [item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence] == [made.SOPInstanceUID]
    (segment,) = found[1].SegmentSequence
    assert (segment.SegmentLabel, segment.SegmentAlgorithmType) == ("Anomaly", "AUTOMATIC")
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == "49755003"


def test_identity_is_kept_in_forms_that_the_standard_does_not_know(tmp_path: Path) -> None:
    made = source(stored((0, 0)), **placed())
    path = save(made, tmp_path / "in.dcm")
    odd = path.read_bytes().replace(b"TM\x06\x00101112", b"TM\x06\x0010:11 ").replace(b"CS\x02\x00F ", b"CS\x02\x00W ")
    path.write_bytes(odd)
    assert not write(tmp_path, path).warnings()
    for kind in ("sc", "seg"):
        written = next((tmp_path / kind).iterdir()).read_bytes()
        assert b"TM\x06\x0010:11 " in written
        assert b"CS\x02\x00W " in written


@pytest.mark.parametrize("said", [None, "YES", "NO"])
def test_burned_in_annotation_is_that_of_the_pixels(said: str | None, tmp_path: Path) -> None:
    _, (capture, found) = both(tmp_path, **({"BurnedInAnnotation": said} if said else {}))
    assert capture.get("BurnedInAnnotation") == said
    assert found.BurnedInAnnotation == "NO"


def test_frames_of_one_file_are_referred_to_by_number(tmp_path: Path) -> None:
    made = enhanced(stored((0, 0), 3))
    write(tmp_path, save(made, tmp_path / "in.dcm"), range(3))
    numbers = [ds.SourceImageSequence[0].ReferencedFrameNumber for ds in objects(tmp_path, "sc")]
    assert numbers == [1, 2, 3]
    (found,) = objects(tmp_path, "seg")
    assert list(found.SourceImageSequence[0].ReferencedFrameNumber) == [1, 2, 3]
    position = found.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient
    assert list(position) == [0, 0, 3]


def test_pixels_that_are_not_square_stay_so_without_a_distance_in_the_patient(tmp_path: Path) -> None:
    write(tmp_path, save(SOURCES["MONOCHROME1"]((0, 0)), tmp_path / "in.dcm"))
    (capture,) = objects(tmp_path, "sc")
    assert list(capture.PixelAspectRatio) == [200, 100]
    assert "PixelSpacing" not in capture


# --- series ------------------------------------------------------------


def series(tmp_path: Path, heights_mm: Sequence[float], marked: Sequence[int]) -> list[Path]:
    return [
        save(source(stored((0, 0) if i in marked else None), **placed(height_mm=h)), tmp_path / f"in/{i}.dcm")
        for i, h in enumerate(heights_mm)
    ]


def write_series(tmp_path: Path, paths: Sequence[Path]) -> list[Dataset]:
    writer = DicomWriter(tmp_path / "out", ("sc", "seg"), "ab" * 32)
    for number, path in enumerate(paths, start=1):
        add(writer, number, path)
    writer.finish()
    assert not writer.warnings()
    assert len({ds.SeriesInstanceUID for ds in objects(tmp_path / "out", "sc")}) == 1
    return objects(tmp_path / "out", "seg") if (tmp_path / "out" / "seg").exists() else []


def test_slices_of_a_series_are_one_segmentation_in_their_places(tmp_path: Path) -> None:
    paths = series(tmp_path, [6, 0, 3, 9], marked=[0, 2])
    (found,) = write_series(tmp_path, paths)
    places = [g.PlanePositionSequence[0].ImagePositionPatient for g in found.PerFrameFunctionalGroupsSequence]
    assert sorted(float(place[2]) for place in places) == [3, 6], "frames without a region are left out"
    assert found.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices == 3
    uids = [pydicom.dcmread(path).SOPInstanceUID for path in paths]
    by_source = highdicom.seg.Segmentation.from_dataset(found).get_pixels_by_source_instance(
        uids, assert_missing_frames_are_empty=True
    )
    assert by_source[..., 0].sum(axis=(1, 2)).tolist() == [1, 0, 1, 0]
    assert [ds.InstanceNumber for ds in objects(tmp_path / "out", "sc")] == [1, 2, 3, 4]
    if DCIODVFY:
        check(*(tmp_path / "out" / "seg").iterdir())


def test_a_series_without_regions_has_no_segmentation(tmp_path: Path) -> None:
    assert write_series(tmp_path, series(tmp_path, [0, 3], marked=[])) == []


def test_two_images_at_one_place_are_in_two_segmentations(tmp_path: Path) -> None:
    found = write_series(tmp_path, series(tmp_path, [0, 3, 0, 3], marked=[0, 2, 3]))
    assert [ds.NumberOfFrames for ds in found] == [1, 2]


def test_another_orientation_is_another_segmentation(tmp_path: Path) -> None:
    turned = save(source(stored((0, 0)), **placed(CORONAL_TURNED)), tmp_path / "in/turned.dcm")
    assert len(write_series(tmp_path, [*series(tmp_path, [0, 3], marked=[0]), turned])) == 2


def test_a_series_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_write, "MAX_STACK_PIXELS", SHAPE[0] * SHAPE[1])
    writer = DicomWriter(tmp_path / "out", ("seg",), "ab" * 32)
    for number, path in enumerate(series(tmp_path, [0, 3], marked=[0]), start=1):
        add(writer, number, path)
    writer.finish()
    assert "2 x 11 x 9 pixels" in writer.refused[0]
    assert not (tmp_path / "out").exists()


# --- refusals ------------------------------------------------------------


def test_what_cannot_be_referred_to_is_refused_by_name_and_stops_nothing(tmp_path: Path) -> None:
    bare = source(stored((0, 0)), **placed())
    del bare.StudyInstanceUID
    bare.PatientName = "Secret^Person"
    writer = DicomWriter(tmp_path / "out", ("sc", "seg"), "ab" * 32)
    add(writer, 1, save(bare, tmp_path / "bare.dcm"))
    add(writer, 2, save(source(stored((0, 0)), **placed()), tmp_path / "whole.dcm"))
    writer.finish()
    (refused,) = writer.refused
    assert "bare.dcm: no DICOM objects of it: StudyInstanceUID missing" in refused
    assert "Secret" not in refused
    assert writer.n_written == {"sc": 1, "seg": 1}


def test_a_file_that_goes_while_others_are_scored_is_named(tmp_path: Path) -> None:
    first, second = series(tmp_path, [0, 3], marked=[0])
    writer = DicomWriter(tmp_path / "out", ("seg",), "ab" * 32)
    for number, path in enumerate((first, second), start=1):
        writer.add(number, f"image-{number}", path, 0, np.zeros((*SHAPE, 3), np.uint8), np.ones(SHAPE, bool))
    first.unlink()
    writer.finish()
    assert writer.refused == ["image-1: no such file (check the path; paths in a CSV are relative to it)"]


def test_a_file_without_the_attributes_that_may_be_empty_is_enough(tmp_path: Path) -> None:
    poor = source(stored((0, 0)), **placed())
    for key in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime"):
        delattr(poor, key)
    del poor.AccessionNumber, poor.SliceThickness
    writer = write(tmp_path, save(poor, tmp_path / "in.dcm"))
    assert writer.n_written == {"sc": 1, "seg": 1}
    if DCIODVFY:
        check(*tmp_path.glob("s*/*.dcm"))


def test_no_name_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """highdicom warns of a name without components, and quotes it."""
    with caplog.at_level(logging.DEBUG):
        both(tmp_path, PatientName="Nobody")
    assert not caplog.records
    assert logging.getLogger("highdicom").level == logging.NOTSET


def test_unknown_kinds_and_a_missing_package_are_said_first(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="one of: sc, seg"):
        parse_kinds("sc,rtstruct")
    assert parse_kinds("seg, sc,seg") == ("seg", "sc")
    monkeypatch.setattr(dicom_write, "find_spec", lambda name: None)
    for begin in (lambda: parse_kinds("sc"), lambda: DicomWriter(Path("out"), ("sc",), "ab")):
        with pytest.raises(OutputError, match=r"highdicom is not installed .*anomaly-ae\[medical\]"):
            begin()
    assert DicomWriter(Path("out"), (), "ab").lines() == []


# --- a run ------------------------------------------------------------


@pytest.fixture(scope="module")
def scans(part_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parts as DICOM files of two series, a bright marker in the top right corner of the first; one more as PNG."""
    folder = tmp_path_factory.mktemp("scans")
    files = [*sorted((part_folder / "test" / "good").iterdir())[:2], *sorted((part_folder / "test").glob("*/000.png"))]
    for number, file in enumerate(files):
        pixels = np.asarray(PIL.Image.open(file).convert("L")).copy()
        if number == 0:
            pixels[:6, -6:] = 255
        made = source(pixels, MRImageStorage, **placed(height_mm=3.0 * number), BitsStored=8, HighBit=7)
        made.SeriesInstanceUID = f"{SERIES[:40]}.{number % 2}"
        save(made, folder / f"{number}.dcm")
    shutil.copy(files[0], folder / "part.png")
    return folder


@pytest.fixture(scope="module")
def scored(smoke_detector: Detector, scans: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("scored") / "run"
    arguments = ("--dicom", "sc,seg", "--maps", "--heatmaps", "all")
    model = folder.with_name("model.safetensors")
    recalibrated(smoke_detector, Asked(rate="0.5")).save(model)  # it finds something, whatever it has learned
    outcome = run("score", model, scans, "--out", folder, *arguments)
    assert outcome.code == 0, outcome.err
    return folder, outcome.out + outcome.err


def test_score_writes_what_it_shows_and_finds(scored: tuple[Path, str]) -> None:
    """Pictures are those of ``heatmaps/``, regions those of ``maps/``, by the lines of ``scores.csv``."""
    run_folder, _ = scored
    with (run_folder / "scores.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    regions = {}
    for path in (run_folder / "dicom" / "seg").iterdir():
        found = highdicom.seg.segread(path)
        for groups, pixels in zip(
            found.PerFrameFunctionalGroupsSequence, found.pixel_array.reshape(-1, 64, 64), strict=True
        ):
            regions[groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID] = pixels
    assert regions, "the smoke model finds something"
    n_checked = 0
    for number, row in enumerate(rows, start=1):
        if "patient" not in row["id"]:  # the PNG
            assert not (run_folder / f"dicom/sc/{number:04}.dcm").exists()
            continue
        name = file_stem(Sample(row["id"], row["path"], ()))
        capture = pydicom.dcmread(run_folder / f"dicom/sc/{number:04}.dcm")
        heatmap = np.asarray(PIL.Image.open(run_folder / f"heatmaps/{name}.png"))
        np.testing.assert_array_equal(capture.pixel_array, heatmap[:64, :64])
        anomaly_map = tifffile.imread(run_folder / f"maps/{name}.tiff")
        uid = capture.SourceImageSequence[0].ReferencedSOPInstanceUID
        expected = anomaly_map >= float(row["pixel_threshold"])
        np.testing.assert_array_equal(regions.pop(uid, np.zeros((64, 64))) > 0, expected)
        n_checked += 1
    assert n_checked == len(rows) - 1
    assert not regions


def test_score_says_what_it_wrote_and_what_is_no_dicom(scored: tuple[Path, str]) -> None:
    run_folder, said = scored
    n_captures, n_found = (len(list((run_folder / "dicom" / kind).iterdir())) for kind in ("sc", "seg"))
    assert f"DICOM objects: {n_captures} in dicom/sc, {n_found} in dicom/seg (a series without" in said
    assert said.count("1 of the scored images is no DICOM file") == 1


def test_patients_are_named_in_the_objects_alone(scored: tuple[Path, str]) -> None:
    run_folder, said = scored
    assert "4711" not in said
    for path in run_folder.rglob("*"):
        assert "4711" not in path.name
        if path.is_file():
            named = PATIENT.encode() in path.read_bytes()
            assert named == (path.suffix == ".dcm"), path


@pytest.mark.skipif(DCIODVFY is None, reason="dciodvfy (Debian's dicom3tools) is not installed")
def test_dciodvfy_finds_no_error_in_a_run(scored: tuple[Path, str]) -> None:
    check(*(scored[0] / "dicom").glob("*/*.dcm"))


def test_an_unknown_kind_is_refused_before_anything_is_scored(
    smoke_model_file: Path, scans: Path, tmp_path: Path
) -> None:
    outcome = run("score", smoke_model_file, scans, "--out", tmp_path / "run", "--dicom", "rtstruct")
    assert outcome.code == 2
    assert "--dicom rtstruct: unknown (one of: sc, seg, or both as sc,seg)" in outcome.error
    assert not (tmp_path / "run").exists()


# --- NIfTI ------------------------------------------------------------


@pytest.mark.parametrize("order", ["RAS", "LAS", "oblique"])
def test_a_marker_in_a_corner_of_a_nifti_volume_stays_there(order: str, tmp_path: Path) -> None:
    turn = np.diag([-1.0 if order == "LAS" else 1.0, 1, 3, 1])
    if order == "oblique":
        turn[:3, :3] = Rotation.from_euler("xyz", [20, -15, 30], degrees=True).as_matrix() @ turn[:3, :3]
    volume = np.zeros((6, 5, 4), np.float32)
    for value, corner in enumerate(itertools.product((0, -1), repeat=3), start=1):
        volume[corner] = value
    path = tmp_path / "in.nii.gz"
    nibabel.save(nibabel.Nifti1Image(volume, turn), path)
    for frame in range(count_nifti_frames(path)):
        write_slice(tmp_path / "map.nii", path, frame, read_nifti(path, frame).pixels[0])
    found = nibabel.load(tmp_path / "map.nii")
    np.testing.assert_array_equal(found.get_fdata(), volume)
    np.testing.assert_array_equal(found.affine, nibabel.load(path).affine)


# --- whole volumes ----------------------------------------------------


@pytest.fixture(scope="module")
def scored_volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CT series as volumes, each looked at as a whole by a network that has hardly learned anything."""
    folder = tmp_path_factory.mktemp("volumes")
    tree = study(folder / "tree", n_healthy=9)
    tiny = ("model.width=4", "training.steps=2", "training.crop_px=16")
    detector = fit(load_manifest(tree), overrides=["model.spatial_dims=3", *tiny], rate="0.5", device="cpu")
    detector.save(folder / "model.safetensors")
    arguments = (tree / "9", "--out", folder / "run", "--dicom", "sc,seg", "--maps")
    outcome = run("score", folder / "model.safetensors", *arguments)
    assert outcome.code == 0, outcome.err
    return folder


def test_objects_of_a_whole_volume_lie_on_its_slices(scored_volumes: Path) -> None:
    run_folder = scored_volumes / "run"
    with (run_folder / "scores.csv").open(encoding="utf-8", newline="") as file:
        [row] = csv.DictReader(file)
    [path] = (run_folder / "maps").iterdir()
    is_found = tifffile.imread(path) >= float(row["pixel_threshold"])  # (slices, H, W)
    assert is_found.any(), "at a rate of one half it finds something"
    sources = [pydicom.dcmread(scored_volumes / f"tree/9/{height}") for height in range(4)]  # by position
    captures = [pydicom.dcmread(path) for path in sorted((run_folder / "dicom/sc").iterdir())]
    shown = [capture.SourceImageSequence[0].ReferencedSOPInstanceUID for capture in captures]
    assert shown == [source.SOPInstanceUID for source in sources]
    [outlines] = (highdicom.seg.segread(path) for path in (run_folder / "dicom/seg").iterdir())
    uids = [source.SOPInstanceUID for source in sources]
    found = outlines.get_pixels_by_source_instance(uids, combine_segments=True, assert_missing_frames_are_empty=True)
    np.testing.assert_array_equal(found > 0, is_found)


@pytest.mark.skipif(DCIODVFY is None, reason="dciodvfy (Debian's dicom3tools) is not installed")
def test_dciodvfy_finds_no_error_in_the_objects_of_a_volume(scored_volumes: Path) -> None:
    check(*(scored_volumes / "run/dicom").glob("*/*.dcm"))
