"""DICOM series, enhanced files and segmentations as scanners and people write them, made up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from highdicom.seg import Segmentation, SegmentDescription
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import UID, CTImageStorage, EnhancedMRImageStorage, ExplicitVRLittleEndian, RLELossless, generate_uid
from scipy import ndimage

SHAPE = (20, 24)
AXIAL = (1, 0, 0, 0, 1, 0)
SPACING = (0.5, 0.5)


def plain(stored: np.ndarray, kind: str = CTImageStorage, **attributes: Any) -> Dataset:
    """One image, (H, W), or one of many frames, (frames, H, W), of no series: all that scanners write alike."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = kind
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.PatientBirthDate, ds.PatientSex = "19500203", "F"
    ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20240102", "101112", "S1", "A77"
    ds.Manufacturer, ds.Modality = "Scanner Works", "CT"
    ds.Rows, ds.Columns = stored.shape[-2:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PixelData = stored.astype(np.uint16).tobytes()
    ds["PixelData"].VR = "OW"
    for key, value in attributes.items():
        setattr(ds, key, value)
    return ds


def image(stored: np.ndarray, kind: UID = CTImageStorage, **attributes: Any) -> Dataset:
    """The same of a patient, in a study, series and frame of reference of its own."""
    own = {name: generate_uid() for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}
    patient = {"PatientName": "Secret^Person", "PatientID": "ID-1", "ReferringPhysicianName": ""}
    return plain(stored, kind, **{**own, **patient, "PositionReferenceIndicator": "", **attributes})


def save(ds: Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def place(axes: Sequence[float], height_mm: float) -> list[float]:
    """Return the position of a slice so far along its normal."""
    return [round(float(number), 6) for number in np.cross(axes[:3], axes[3:]) * height_mm]


def series(n_slices: int, patient: str = "ID-1", axes: Sequence[float] = AXIAL, **more: Any) -> list[Dataset]:
    """Slices of one series, 3 mm apart, each with pixels of its own."""
    shared = {name: generate_uid() for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}
    generator = np.random.default_rng(sum(map(ord, patient)))
    return [
        image(
            generator.integers(0, 4000, SHAPE), **shared, PatientID=patient, InstanceNumber=n_slices - number,
            ImagePositionPatient=place(axes, 3.0 * number), ImageOrientationPatient=list(axes),
            PixelSpacing=list(SPACING), SliceThickness=3.0, **more,
        )
        for number in range(n_slices)
    ]  # fmt: skip


def study(folder: Path, n_healthy: int = 9, n_slices: int = 4, side_px: int = 64) -> Path:
    """Write a tree: healthy people, and one with a bright lesion in two slices and a segmentation of it."""
    for number in range(n_healthy + 1):
        is_ill = number == n_healthy
        images = series(n_slices, f"ID-{number}", RescaleIntercept=-1024, RescaleSlope=1)
        marks = np.zeros((n_slices, side_px, side_px), np.uint8)
        for height, ds in enumerate(images):
            stored, lesion = body(side_px, number, height)
            if is_ill and height in (1, 2):
                stored[lesion], marks[height] = stored[lesion] + 500, lesion
            ds.Rows = ds.Columns = side_px
            ds.PixelData = stored.tobytes()
            save(ds, folder / f"{number}/{height}")
        if is_ill:
            save(segmented(images, marks), folder / f"{number}/outlines")
    return folder


def body(side_px: int, person: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a slice through a body with two lungs and soft noise, in stored values, and the place of a lesion."""
    generator = np.random.default_rng((person, height))
    y, x = np.mgrid[-1 : 1 : side_px * 1j, -1 : 1 : side_px * 1j] + generator.normal(0, 0.01, (2, 1, 1))
    stored = np.where((x / 0.85) ** 2 + (y / 0.65) ** 2 < 1, 1060, 24) + generator.normal(0, 15, x.shape)
    for side in (-1, 1):
        stored[((x - 0.38 * side) / 0.27) ** 2 + ((y + 0.02 * height) / 0.42) ** 2 < 1] = 250
    stored = ndimage.gaussian_filter(stored + generator.normal(0, 60, x.shape), 0.8)
    return np.clip(stored, 0, 4000).astype(np.uint16), (x - 0.42) ** 2 + (y - 0.1) ** 2 < 0.012


def enhanced(frames: np.ndarray, heights_mm: Sequence[float], of_frame: Sequence[dict[str, Any]] = ()) -> Dataset:
    """A multi-frame MR image: (frames, H, W), a place for each frame, and what its FrameContentSequence says."""
    ds = image(frames, EnhancedMRImageStorage, NumberOfFrames=len(frames))
    shared, plane, measures = Dataset(), Dataset(), Dataset()
    plane.ImageOrientationPatient = list(AXIAL)
    measures.PixelSpacing, measures.SliceThickness = list(SPACING), 3.0
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [plane], [measures]
    ds.SharedFunctionalGroupsSequence = [shared]
    ds.PerFrameFunctionalGroupsSequence = []
    for number, height in enumerate(heights_mm):
        item, position, content = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = place(AXIAL, height)
        for key, value in (of_frame[number] if of_frame else {}).items():
            setattr(content, key, value)
        item.PlanePositionSequence, item.FrameContentSequence = [position], [content]
        ds.PerFrameFunctionalGroupsSequence.append(item)
    return ds


def segmented(images: Sequence[Dataset], marks: np.ndarray, kind: str = "BINARY", **more: Any) -> Segmentation:
    """A segmentation by highdicom: ``marks`` are (frames, H, W), or (frames, H, W, segments)."""
    n_segments = marks.shape[3] if marks.ndim == 4 else max(1, int(np.ceil(marks.max())))
    abnormal = codes.SCT.MorphologicallyAbnormalStructure
    described = [SegmentDescription(n + 1, f"Part {n + 1}", abnormal, abnormal, "MANUAL") for n in range(n_segments)]
    return Segmentation(
        list(images), marks, kind, described,
        series_instance_uid=generate_uid(), series_number=9, sop_instance_uid=generate_uid(), instance_number=1,
        manufacturer="Outline Works", manufacturer_model_name="O", software_versions="1", device_serial_number="1",
        **more,
    )  # fmt: skip


def with_runs(ds: Dataset) -> Dataset:
    """Compress a binary segmentation by runs (RLE) of packed bits, as dcmtk does; pydicom cannot."""
    n_pixels = ds.Rows * ds.Columns
    bits = np.unpackbits(np.frombuffer(ds.PixelData, np.uint8), bitorder="little")
    frames = [bits[n * n_pixels :][:n_pixels] for n in range(ds.NumberOfFrames)]
    packed = [_runs(np.packbits(frame, bitorder="little").tobytes()) for frame in frames]
    ds.PixelData = pydicom.encaps.encapsulate(packed)
    ds["PixelData"].VR = "OB"
    ds.file_meta.TransferSyntaxUID = RLELossless
    return ds


def _runs(data: bytes) -> bytes:
    """Literal runs of up to 128 bytes, and repeated ones where two bytes are equal (PS3.5, G.3.1)."""
    found, position = bytearray(), 0
    while position < len(data):
        n_same = 1
        while n_same < 128 and data[position + n_same : position + n_same + 1] == data[position : position + 1]:
            n_same += 1
        found += bytes([257 - n_same if n_same > 1 else 0, data[position]])
        position += n_same
    head = (1).to_bytes(4, "little") + (64).to_bytes(4, "little") + bytes(56)
    return head + bytes(found) + b"\0" * (len(found) % 2)
