"""An identity is planted wherever medical files can hold one; nothing that is written or said may show it."""

from __future__ import annotations

import base64
import csv
import gzip
import json
import os
import re
import stat
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import PIL.Image
import pydicom
import pytest
from command import Outcome, run
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from scanner import segmented

from anomaly_ae.errors import DataError, UnreadableImageError
from anomaly_ae.loading import read_sample
from anomaly_ae.manifest import load_manifest, make_folds, manifest_from_paths, split_normals
from anomaly_ae.manifest.naming import is_public, renamed
from anomaly_ae.records import Sample

IN_HEADERS = {
    "PatientName": "Zweifelhaft^Quintus",
    "PatientBirthDate": "19310517",
    "AccessionNumber": "ACC5550177",
    "InstitutionName": "Merkuria Spital",
    "DeviceSerialNumber": "SN-778812",
    "StudyDate": "20110304",
    "StationName": "Kabuffstation",
}
PATIENT_ID = "PID83917264"
ROOT, PERSON, FILE = "Quarkmeier_Waltraud_1942", "Oberlechner", "thorvald"
SECRETS = (
    *(word for text in IN_HEADERS.values() for word in re.split(r"[\^ ]", text) if word != "Spital"),
    *(PATIENT_ID, "Quarkmeier", "Waltraud", PERSON, FILE, "Bjornson", "2.25.7701936"),
)
SIDE_PX = 64


def slice_of(path: Path, number: int, spot: bool = False) -> Path:
    """One CT slice of patient `number`, its header and its path full of names."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = (
        f"2.25.7701936{number}.{len(str(path))}.{path.stem[-1]}"
    )
    ds.StudyInstanceUID, ds.SeriesInstanceUID = f"2.25.7701936{number}", f"2.25.7701936{number}.1"
    for name, text in IN_HEADERS.items():
        setattr(ds, name, text)
    ds.PatientID = f"{PATIENT_ID}-{number}"
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = SIDE_PX, SIDE_PX, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.ImageOrientationPatient, ds.PixelSpacing = [1, 0, 0, 0, 1, 0], [1, 1]
    ds.ImagePositionPatient = [0, 0, 3 * int(path.stem[-1])]
    pixels = np.random.default_rng([number, int(path.stem[-1])]).integers(800, 1200, (SIDE_PX, SIDE_PX))
    pixels[20:30, 20:30] = 4000 if spot else pixels[20:30, 20:30]
    ds.PixelData = pixels.astype(np.uint16).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def scans(root: Path) -> Path:
    """Patients to fit on and to test on, damaged files among them, and a mask of another size."""
    for number in range(16):
        place = "train/good" if number < 10 else "test/good" if number < 13 else "test/lesion"
        for index in range(2):
            slice_of(root / f"{place}/{PERSON}_{number}/{FILE}_{index}.dcm", number, spot=number >= 13)
    for number, place in ((98, "train/good"), (99, "test/good")):
        cut = slice_of(root / f"{place}/{PERSON}_x/{FILE}_9.dcm", number)
        whole = cut.read_bytes()
        cut.write_bytes(whole[:-2000])
        cut.with_name(f"{FILE}_8.dcm").write_bytes(whole[:300])
        cut.with_name(f"{FILE}_7.dcm").write_bytes(b"")
    slice_of(root / f"{PERSON}/{FILE}_0.dcm", 20)  # no layout knows this folder
    for number in (13, 14):
        mask = root / f"ground_truth/lesion/{PERSON}_{number}/{FILE}_0_mask.png"
        mask.parent.mkdir(parents=True)
        marked = np.zeros((SIDE_PX, SIDE_PX if number == 13 else 10), np.uint8)
        marked[20:30] = 255
        PIL.Image.fromarray(marked).save(mask)
    sick = root / f"test/lesion/{PERSON}_15"
    outline(sick / f"{FILE}_seg.dcm", [sick / f"{FILE}_{index}.dcm" for index in range(2)])
    torn = root / f"test/lesion/{PERSON}_14"
    outline(torn / f"{FILE}_seg.dcm", [torn / f"{FILE}_1.dcm"])
    (torn / f"{FILE}_seg.dcm").write_bytes((torn / f"{FILE}_seg.dcm").read_bytes()[:-300])
    return root


def outline(path: Path, images: list[Path]) -> Path:
    """A segmentation of slices, in whose header and names of segments are the same people."""
    sources = [pydicom.dcmread(image) for image in images]
    for source in sources:
        source.FrameOfReferenceUID, source.PatientSex = f"{source.StudyInstanceUID}.7", "F"
        source.StudyTime, source.StudyID, source.ReferringPhysicianName = "101112", FILE, PERSON
        source.SliceThickness, source.Modality = 3.0, "CT"
    marks = np.zeros((len(sources), SIDE_PX, SIDE_PX), np.uint8)
    marks[:, 20:30, 20:30] = 1
    ds = segmented(sources, marks)
    ds.SegmentSequence[0].SegmentLabel, ds.ContentCreatorName = f"seen by {PERSON}", IN_HEADERS["PatientName"]
    ds.ContentDescription, ds.SeriesDescription = f"{FILE} of {PERSON}", PERSON
    ds.InstitutionName, ds.DeviceSerialNumber = IN_HEADERS["InstitutionName"], IN_HEADERS["DeviceSerialNumber"]
    ds.save_as(path, enforce_file_format=True)
    return path


def volumes(root: Path) -> Path:
    """NIfTI volumes, one cut off, under the names of people."""
    root.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(3):
        image = nibabel.Nifti1Image(generator.normal(500, 50, (SIDE_PX, SIDE_PX, 3)).astype(np.float32), np.eye(4))
        image.header["descrip"] = IN_HEADERS["PatientName"].encode()
        nibabel.save(image, root / f"Bjornson_{PERSON}_{number}.nii.gz")
    cut = root / f"Bjornson_{PERSON}_2.nii.gz"
    cut.write_bytes(cut.read_bytes()[:2000])
    return root


def subjects(root: Path) -> Path:
    """A BIDS folder whose subjects are called by name and its sessions by dates; one has two masks."""
    root.mkdir()
    (root / "dataset_description.json").write_text(json.dumps({"Name": PERSON, "BIDSVersion": "1.10.0"}))
    (root / "participants.tsv").write_text(f"participant_id\tage\nsub-{PERSON}0\t70\n")
    for number in range(2):
        name = f"sub-{PERSON}{number}_ses-{IN_HEADERS['StudyDate']}"
        for place in ("", "derivatives/a/", "derivatives/b/")[: 1 + 2 * number]:
            file = root / f"{place}sub-{PERSON}{number}/ses-{IN_HEADERS['StudyDate']}/anat/{name}_T1w.nii"
            file = file.with_name(f"{name}_label-lesion_mask.nii") if place else file
            file.parent.mkdir(parents=True)
            pixels = np.random.default_rng(number).normal(500, 50, (SIDE_PX, SIDE_PX, 3)).astype(np.float32)
            nibabel.save(nibabel.Nifti1Image(pixels, np.eye(4)), file)
    return root


def in_other_spellings(secret: str) -> Iterator[bytes]:
    """As text of 16 bits and in hexadecimal, and within base64 at any of its three places."""
    yield secret.lower().encode("utf-16-le")
    yield from (text.encode().hex().encode() for text in (secret, secret.lower(), secret.upper()))
    for shift in range(3):
        encoded = base64.b64encode(bytes(shift) + secret.encode())
        yield encoded[-(-shift * 4 // 3) : (shift + len(secret)) * 4 // 3]  # what does not hang on the neighbours


def contents(path: Path) -> Iterator[bytes]:
    """The bytes of a file, and what is packed in them."""
    data = path.read_bytes()
    yield data
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                yield name.encode() + archive.read(name)
    if data.startswith(b"\x1f\x8b"):
        yield gzip.decompress(data)
    if path.suffix == ".png":
        with PIL.Image.open(path) as picture:
            yield json.dumps({key: str(value) for key, value in picture.info.items()}).encode()
    for encoded in re.findall(rb"base64,([A-Za-z0-9+/=]+)", data):
        yield base64.b64decode(encoded)


SPELLINGS = {secret: (secret.lower().encode(), *in_other_spellings(secret)) for secret in SECRETS}


def leaks(text: bytes) -> list[str]:
    both = text + text.lower()
    return [secret for secret, spellings in SPELLINGS.items() if any(spelt in both for spelt in spellings)]


def test_the_search_finds_every_spelling() -> None:
    for secret in SECRETS:
        for text in (secret, secret.upper()):
            assert leaks(f"x {text} y".encode()) == leaks(text.encode("utf-16-le")) == [secret]
            assert leaks(text.encode().hex().encode()) == [secret]
        for shift in range(3):
            assert leaks(base64.b64encode(bytes(shift) + secret.encode() + b"more")) == [secret]
    assert leaks(b"nothing of it") == []


def found_in(folder: Path) -> dict[str, list[str]]:
    """Which files below a folder show what, in their names or in their bytes."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    found = {str(path.relative_to(folder)): leaks(b"\n".join(contents(path))) for path in files}
    return {name: [*shown, *leaks(name.encode())] for name, shown in found.items() if shown or leaks(name.encode())}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("w")
    scans(folder / "in" / ROOT)
    volumes(folder / "in" / "Bjornson_volumes")
    subjects(folder / "in" / "Bjornson_subjects")
    slice_of(folder / f"in/Bjornson_groups/{FILE}_0.dcm", 55)
    (folder / "in/Bjornson_groups/groups.tsv").write_text(f"path\tgroup\n{FILE}_0.dcm\t{PERSON}\n{FILE}_0.dcm\tx\n")
    (folder / "out").mkdir()
    return folder


@pytest.fixture(scope="module")
def said(world: Path) -> list[tuple[tuple[str, ...], Outcome]]:
    """Every command that writes, and every way to fail that names a file, with what was said."""
    root, nifti, out = world / "in" / ROOT, world / "in" / "Bjornson_volumes", world / "out"
    people = world / "in/Bjornson_subjects"
    model, cut = out / "m.safetensors", root / f"test/good/{PERSON}_x/{FILE}_8.dcm"
    small = ("--preset", "smoke", "--set", "training.steps=2", "--false-alarm-rate", "0.5")
    (world / "in/hand.csv").write_text(
        f"path,label,unit,id\n{ROOT}/test/good/{PERSON}_10/{FILE}_0.dcm,normal,{PERSON},{FILE}-id\n"
        f"{ROOT}/{PERSON}.dcm,normal,,\n"
    )
    (world / "in/twice.csv").write_text(f"path,id\n{PERSON}.dcm,{FILE}\n{PERSON}2.dcm,{FILE}\n")
    commands: list[tuple[str | Path, ...]] = [
        ("scan", root, "--out", out / "scanned.csv"),
        ("scan", root, "--group-regex", r"(\w+_\w+)/t", "--folds", "2", "--out", out / "folds.csv"),
        ("fit", root, "--out", model, *small),
        ("fit", out / "scanned.csv", "--out", out / "again.safetensors", *small),
        ("score", model, root / "test", "--out", out / "scores", "--maps", "--heatmaps", "all"),
        ("score", model, world / "in/hand.csv", "--out", out / "by_hand", "--heatmaps", "all"),
        ("evaluate", model, root, "--out", out / "run", "--maps", "--heatmaps", "all"),
        ("evaluate", model, out / "scanned.csv", "--out", out / "run2"),
        ("threshold", out / "run", "--false-alarm-rate", "0.4"),
        ("report", out / "run"),
        ("calibrate", model, "--scores", out / "run/scores.csv"),
        ("calibrate", model, root / "test/good", "--why", "a test"),
        ("preview", root, "--out", out / "preview.png"),
        ("info", model),
        ("compare", out / "run", out / "run2", "--out", out / "compared"),
        ("score", model, root / "test/lesion", "--out", out / "archive", "--dicom", "sc,seg"),
        ("scan", nifti, "--foreground-above", "500", "--out", out / "nifti_scanned.csv"),
        ("score", model, nifti, "--out", out / "nifti", "--maps", "--heatmaps", "all"),
        # errors
        ("score", model, cut, "--out", out / "none"),
        ("score", model, root / f"{PERSON}.dcm", "--out", out / "none"),
        ("fit", root / f"test/good/{PERSON}_10", "--out", out / "none.safetensors", *small),
        ("fit", root / "test/lesion", "--out", out / "none.safetensors", "--preset", "smoke"),
        ("evaluate", model, root / f"test/lesion/{PERSON}_13", "--out", out / "none"),
        ("evaluate", model, root.parent, "--out", out / "none"),
        ("calibrate", model, root / "train"),
        ("scan", root, "--group-regex", "nowhere"),
        ("scan", root, "--suffix", "T1w"),
        ("scan", people, "--suffix", "T1w"),
        ("scan", people, "--suffix", "FLAIR"),
        ("scan", world / "in/Bjornson_groups"),
        ("scan", world / "in/twice.csv"),
        ("fit", nifti, "--out", out / "none.safetensors", "--preset", "smoke"),
    ]
    return [(tuple(map(str, command)), run(*command)) for command in commands]


def test_every_command_did_what_the_test_is_about(said: list[tuple[tuple[str, ...], Outcome]], world: Path) -> None:
    codes = [(command[0], outcome.code) for command, outcome in said]
    n_errors = 14
    assert {code for _, code in codes[:-n_errors]} <= {0, 1, 3}, codes
    assert [code for _, code in codes[-n_errors:]].count(0) == 0
    assert "ignored images in folders whose names say neither split nor label: 1" in said[0][1].out
    assert "DICOM segmentations, taken as masks: 2" in said[0][1].out
    written = {path.relative_to(world / "out").parts[0] for path in (world / "out").rglob("*") if path.is_file()}
    assert written >= {"scanned.csv", "m.safetensors", "scores", "by_hand", "run", "run2", "compared", "nifti"}
    assert any((world / "out/run/heatmaps").iterdir())
    assert any((world / "out/nifti/maps").iterdir())
    failures = (world / "out/run/failures.csv").read_text(encoding="utf-8")
    assert failures.count("\n") == 4, "the three damaged files of the test part, and the header"


def test_nothing_that_is_said_shows_the_identity(said: list[tuple[tuple[str, ...], Outcome]]) -> None:
    for command, outcome in said:
        assert leaks(f"{outcome.out}\n{outcome.err}".encode()) == [], f"{command}\n{outcome.out}\n{outcome.err}"


def test_nothing_that_is_written_shows_the_identity(
    said: list[tuple[tuple[str, ...], Outcome]], world: Path, private_folder: Path
) -> None:
    found = found_in(world / "out")
    manifests = {"scanned.csv", "nifti_scanned.csv", "folds_1.csv", "folds_2.csv"}
    to_archive = {name for name in found if name.startswith(f"archive{os.sep}dicom{os.sep}")}
    assert {name: shown for name, shown in found.items() if name not in manifests | to_archive} == {}
    assert to_archive, "what goes back to the archive says whose it is"
    assert leaks("".join(to_archive).encode()) == []
    assert "scanned.csv" in found, "it holds the paths, and the test would find them"
    for name in manifests:
        with (world / "out" / name).open(encoding="utf-8", newline="") as file:
            rows = [{k: v for k, v in row.items() if k not in ("path", "mask")} for row in csv.DictReader(file)]
        assert leaks(json.dumps(rows).encode()) == [], "only the columns of files do"
    assert {"patients.csv", "images.csv"} >= set(found_in(private_folder))


def test_the_owner_finds_the_way_back(
    said: list[tuple[tuple[str, ...], Outcome]], world: Path, private_folder: Path
) -> None:
    assert said
    keys = {}
    for name, column in (("patients.csv", "patient_id"), ("images.csv", "original")):
        with (private_folder / name).open(encoding="utf-8", newline="") as file:
            keys |= {row["name"]: row[column] for row in csv.DictReader(file)}
        if os.name != "nt":
            assert stat.S_IMODE((private_folder / name).stat().st_mode) == 0o600
    rows: list[dict[str, str]] = []
    for name in ("run", "run2", "scores"):
        with (world / "out" / name / "scores.csv").open(encoding="utf-8", newline="") as file:
            rows += csv.DictReader(file)
    assert len(rows) == 3 * 12
    for row in rows:
        patient = keys[row["unit"]].rsplit("-", 1)
        assert patient[0] == PATIENT_ID
        assert f"{PERSON}_{patient[1]}" in Path(keys[row["path"]]).parts
        assert Path(keys[row["path"]]).is_file()
    with (world / "out/by_hand/scores.csv").open(encoding="utf-8", newline="") as file:
        [row] = list(csv.DictReader(file))
    assert (keys[row["unit"]], keys[row["id"]]) == (PERSON, f"{FILE}-id")


def test_names_are_the_same_by_folder_and_by_table(said: list[tuple[tuple[str, ...], Outcome]], world: Path) -> None:
    assert said
    folder = load_manifest(world / "in" / ROOT).samples
    table = load_manifest(world / "out/scanned.csv").samples
    paths = manifest_from_paths([world / "in" / ROOT]).samples
    assert {s.id for s in folder} == {s.id for s in table} < {s.id for s in paths}
    assert {s.path for s in folder} == {s.path for s in table}
    assert all(is_public(s.id) and is_public(s.path) for s in folder)
    assert {f for s in folder for f in s.files} == {f.parent.resolve() / f.name for s in table for f in s.files}


def test_the_cut_of_the_normals_does_not_hang_on_the_salt(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut() -> tuple[object, ...]:
        manifest = load_manifest(world / "in" / ROOT)
        parts = split_normals(manifest.samples, 0.2, 0.3, seed=5)
        folds = make_folds(manifest, 2, seed=5)
        rows = [[(s.files, s.split) for s in sorted(fold.samples, key=lambda s: s.files)] for fold in folds]
        return {name: [s.files for s in part] for name, part in parts.items()}, rows

    before = cut()
    monkeypatch.setenv("ANOMALY_AE_PRIVATE", str(tmp_path))
    assert cut() == before


def test_identified_turns_it_off_and_says_so(world: Path, tmp_path: Path) -> None:
    outcome = run("scan", world / "in" / ROOT, "--identified", "--out", tmp_path / "m.csv")
    assert outcome.err.count("warning: --identified") == 1
    assert "original paths" not in outcome.out
    text = (tmp_path / "m.csv").read_text(encoding="utf-8")
    assert f"{PATIENT_ID}-3" in text
    assert "patient-" not in text
    samples = load_manifest(world / "in" / ROOT, identified=True).samples
    assert {s.path for s in samples} == {s.id for s in samples}
    assert f"train/good/{PERSON}_3/{FILE}_0.dcm" in {s.path for s in samples}


def test_images_of_other_kinds_keep_their_paths(tmp_path: Path) -> None:
    (tmp_path / "lot A").mkdir()
    PIL.Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "lot A/1.png")
    manifest = load_manifest(tmp_path)
    assert (manifest.samples[0].path, manifest.is_private) == ("lot A/1.png", False)
    error = UnreadableImageError(f"{tmp_path}/lot A/1.png: is damaged")
    assert renamed(error, manifest.samples[0]) is error
    slice_of(tmp_path / "lot A/2.dcm", 1)
    mixed = load_manifest(tmp_path)
    assert mixed.is_private, "one DICOM file, and the folders are those of patients"
    assert all(is_public(s.id) for s in mixed.samples)
    assert "since 1 of 2 is DICOM or NIfTI: --identified" in mixed.notes[-1]


def test_subjects_and_sessions_of_bids(tmp_path: Path) -> None:
    (tmp_path / "lesions").mkdir()
    folder = subjects(tmp_path / "people")
    for file in (folder / "derivatives/b").rglob("*.nii"):
        file.unlink()
    manifest = load_manifest(folder)
    assert leaks(json.dumps([[s.id, s.path, s.unit, s.group, dict(s.extra)] for s in manifest.samples]).encode()) == []
    assert len({s.unit for s in manifest.samples}) == 2
    assert {s.extra.get("age") for s in manifest.samples} == {"70", None}
    assert len({s.extra["session"] for s in manifest.samples}) == 1
    assert manifest.notes == ("subjects that participants.tsv does not name: 1",)


def test_a_mask_on_another_grid_is_told_of_without_its_path(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).normal(500, 50, (16, 16, 3)).astype(np.float32)
    for place, ending, spacing in (("anomalous", "", 1), ("ground_truth", "_mask", 2)):
        (tmp_path / place).mkdir()
        nibabel.save(nibabel.Nifti1Image(pixels, spacing * np.eye(4)), tmp_path / f"{place}/{PERSON}{ending}.nii")
    outcome = run("scan", tmp_path)
    assert "mask: the mask of image-" in outcome.out
    assert "is no mask of image-" in outcome.out
    assert leaks(f"{outcome.out}{outcome.err}".encode()) == []


def test_two_paths_to_one_image_are_refused(tmp_path: Path) -> None:
    slice_of(tmp_path / "a0.dcm", 1)
    (tmp_path / "m.csv").write_text("path\na0.dcm\n./a0.dcm\n")
    with pytest.raises(DataError, match="two rows name the same image"):
        load_manifest(tmp_path / "m.csv")


def test_errors_of_a_sample_speak_of_its_public_name(tmp_path: Path) -> None:
    folder = tmp_path / "Bjornson Elfriede"
    slice_of(folder / "good0.dcm", 1)
    (folder / "bad0.dcm").write_bytes((folder / "good0.dcm").read_bytes()[:-100])
    bad = next(s for s in manifest_from_paths([folder]).samples if s.files[0].name == "bad0.dcm")
    with pytest.raises(UnreadableImageError) as caught:
        read_sample(bad)
    assert str(caught.value).startswith(f"{bad.id}: ")
    assert caught.value.__cause__ is None
    words = UnreadableImageError(
        f"{bad.files[0]}: damaged", f"[Errno 5] '{bad.files[0].resolve()}'", f"see {bad.files[0].parent}/other"
    )
    text = str(renamed(words, replace(bad, mask=folder / "mask.png")))
    assert "Bjornson" not in text
    assert "Elfriede" not in text
    assert renamed(words, Sample("a.png", "a.png", ())) is words
