"""DICOM: stored values to measured ones, frames, padding, spacing, refusals, and no patient in any message."""

from __future__ import annotations

import io
import logging
import struct
import traceback
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from anomaly_ae.dicom import count_dicom_frames, read_dicom
from anomaly_ae.dicom import shared as dicom_shared
from anomaly_ae.errors import UnreadableImageError
from anomaly_ae.readers import read_image

PATIENT = "Secret^Person"
GREY = np.array([[0, 1, 2, 3], [100, 200, 300, 400], [1021, 1022, 1023, 5]], np.uint16)  # 10 bits


def dataset(pixels: np.ndarray, bits: int | None = None, **attributes: Any) -> Dataset:
    """Make a data set: (H, W), (H, W, 3), or frames of them with NumberOfFrames among the attributes."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    ds.PatientName, ds.PatientID = PATIENT, "ID-4711"
    n_samples = pixels.shape[-1] if pixels.ndim >= 3 and "NumberOfFrames" not in attributes else 1
    frame = pixels[0] if "NumberOfFrames" in attributes else pixels
    ds.Rows, ds.Columns, ds.SamplesPerPixel = frame.shape[0], frame.shape[1], n_samples
    ds.PhotometricInterpretation = "MONOCHROME2" if n_samples == 1 else "RGB"
    if n_samples > 1:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated = pixels.dtype.itemsize * 8
    ds.BitsStored = bits or ds.BitsAllocated
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, int(pixels.dtype.kind == "i")
    content = pixels.tobytes()
    ds.PixelData = content + b"\0" * (len(content) % 2)
    for name, value in attributes.items():
        setattr(ds, name, value)
    return ds


def save(ds: Dataset, path: Path, syntax: Any = ExplicitVRLittleEndian) -> Path:
    ds.file_meta.TransferSyntaxUID = syntax
    ds["PixelData"].VR = "OW" if ds.BitsAllocated > 8 else "OB"
    ds.save_as(path, enforce_file_format=True)
    return path


def test_stored_values_are_kept_without_a_modality_lut(tmp_path: Path) -> None:
    image = read_dicom(save(dataset(GREY, bits=10, PixelSpacing=[0.5, 0.25]), tmp_path / "a.dcm"))
    np.testing.assert_array_equal(image.pixels, GREY[np.newaxis])
    assert image.pixels.dtype == np.uint16
    assert (image.bits_stored, image.spacing_mm, image.n_frames, image.valid) == (10, (0.5, 0.25), 1, None)
    assert image.source == str(tmp_path / "a.dcm")
    assert not image.pixels.flags.writeable


def test_data_set_reads_like_its_file_and_is_not_changed(tmp_path: Path) -> None:
    ds = dataset(GREY, RescaleSlope="2", RescaleIntercept="-5")
    ds["PixelData"].VR = "OW"
    before = ds.to_json()
    image = read_dicom(ds)
    np.testing.assert_array_equal(image.pixels, read_dicom(save(ds, tmp_path / "a.dcm")).pixels)
    assert ds.to_json() == before
    assert image.source == "DICOM dataset"


@pytest.mark.parametrize(
    ("stored", "bits", "slope", "intercept", "dtype"),
    [
        (np.int16([[-2000, 0], [100, 2000]]), 12, "1", "-1024", np.int16),
        (np.uint16([[0, 1], [4000, 4095]]), 12, "1", "-1024", np.int16),
        (np.uint16([[0, 1], [4000, 65535]]), 16, "1", "-1024", np.int32),  # 64511 does not fit into int16
        (np.uint16([[0, 1], [2, 3]]), 16, "1", "-1024", np.int32),  # by the range of the bits, not of this image
        (np.uint16([[0, 1], [4000, 4095]]), 12, "10", "0", np.int32),
        (np.uint16([[0, 1], [4000, 4095]]), 12, "-1", "7", np.int16),
        (np.uint16([[0, 1], [4000, 4095]]), 12, "0.25", "3.5", np.float32),
        (np.uint32([[0, 1], [4000, 2**31]]), 32, "0.25", "0", np.float64),
    ],
)
def test_rescale(tmp_path: Path, stored: Any, bits: int, slope: str, intercept: str, dtype: Any) -> None:
    ds = dataset(stored, bits, RescaleSlope=slope, RescaleIntercept=intercept)
    image = read_dicom(save(ds, tmp_path / "ct.dcm"))
    np.testing.assert_array_equal(image.pixels[0], stored.astype(float) * float(slope) + float(intercept))
    assert image.pixels.dtype == dtype
    assert image.bits_stored == (bits if np.dtype(dtype).kind == "i" else None)


def test_monochrome1_is_inverted_in_the_range_of_the_bits_not_of_the_image(tmp_path: Path) -> None:
    bright = np.minimum(GREY, 500).astype(np.uint16)
    for number, stored in enumerate((GREY, bright)):
        ds = dataset(stored, bits=10, PhotometricInterpretation="MONOCHROME1")
        image = read_dicom(save(ds, tmp_path / f"{number}.dcm"))
        np.testing.assert_array_equal(image.pixels[0], 1023 - stored)
        assert image.pixels.dtype == np.uint16


@pytest.mark.parametrize(("slope", "intercept"), [("1", "-1000"), ("-2", "3"), ("0.5", "0.25")])
def test_monochrome1_is_inverted_after_the_rescale(tmp_path: Path, slope: str, intercept: str) -> None:
    ds = dataset(GREY, 10, PhotometricInterpretation="MONOCHROME1", RescaleSlope=slope, RescaleIntercept=intercept)
    image = read_dicom(save(ds, tmp_path / "a.dcm"))
    ends = [end * float(slope) + float(intercept) for end in (0, 1023)]
    expected = sum(ends) - (GREY * float(slope) + float(intercept))
    np.testing.assert_array_equal(image.pixels[0], expected)
    assert image.pixels.min() >= min(ends)
    assert image.pixels.max() <= max(ends)


def test_monochrome1_signed(tmp_path: Path) -> None:
    stored = np.array([[-512, -1], [0, 511]], np.int16)
    ds = dataset(stored, 10, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read_dicom(save(ds, tmp_path / "a.dcm")).pixels[0], -1 - stored)


@pytest.mark.parametrize(("photometric", "high"), [("MONOCHROME2", None), ("MONOCHROME1", 4095)])
def test_modality_lut(tmp_path: Path, photometric: str, high: int | None) -> None:
    table, first = np.array([4000, 3000, 10, 0, 4095], np.uint16), -2
    item = Dataset()
    item.add_new("LUTDescriptor", "SS", [len(table), first, 12])
    item.add_new("LUTData", "OW", table.tobytes())
    item.ModalityLUTType = "HU"
    stored = np.array([[-100, -2, -1], [0, 1, 2], [3, 2000, -3]], np.int16)
    ds = dataset(stored, 12, PhotometricInterpretation=photometric, ModalityLUTSequence=Sequence([item]))
    image = read_dicom(save(ds, tmp_path / "a.dcm"))
    expected = [[int(table[min(max(v - first, 0), 4)]) for v in row] for row in stored.tolist()]
    expected = expected if high is None else [[high - v for v in row] for row in expected]
    np.testing.assert_array_equal(image.pixels[0], expected)
    assert image.bits_stored == 12


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])  # packed, or one entry to a word
def test_modality_lut_of_8_bits(tmp_path: Path, dtype: Any) -> None:
    table = np.array([9, 7, 5, 3], np.uint8)
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [4, 1, 8])
    item.add_new("LUTData", "OW", table.astype(dtype).tobytes())
    item.ModalityLUTType = "US"
    stored = np.array([[0, 1, 2], [3, 4, 5]], np.uint8)
    image = read_dicom(save(dataset(stored, ModalityLUTSequence=Sequence([item])), tmp_path / "a.dcm"))
    np.testing.assert_array_equal(image.pixels[0], table[np.clip(stored.astype(int) - 1, 0, 3)])
    assert (image.pixels.dtype, image.bits_stored) == (np.uint8, 8)


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"WindowCenter": "40", "WindowWidth": "400"}, (-160.0, 239.0)),  # PS3.3 C.11.2.1.2.1: 40 - 0.5 -+ 399 / 2
        ({"WindowCenter": ["40", "600"], "WindowWidth": ["400", "2000"]}, (-160.0, 239.0)),
        ({"WindowCenter": "40", "WindowWidth": "400", "VOILUTFunction": "LINEAR_EXACT"}, (-160.0, 240.0)),
        ({"WindowCenter": "40", "WindowWidth": "400", "PhotometricInterpretation": "MONOCHROME1"}, (-239.0, 160.0)),
        ({"WindowCenter": "40", "WindowWidth": "0"}, None),
        ({"WindowCenter": "40", "WindowWidth": "0.5"}, None),  # LINEAR: at least 1
        ({"WindowCenter": "40", "WindowWidth": "0.5", "VOILUTFunction": "LINEAR_EXACT"}, (39.75, 40.25)),
        ({"WindowCenter": "40", "WindowWidth": "0.5", "VOILUTFunction": "SIGMOID"}, (39.75, 40.25)),
        ({"WindowCenter": "40", "WindowWidth": "0", "VOILUTFunction": "SIGMOID"}, None),
        ({"WindowCenter": "40"}, None),
        ({}, None),
    ],
)
def test_window_of_the_file_in_the_numbers_of_the_pixels(tmp_path: Path, attributes: Any, expected: Any) -> None:
    ds = dataset(GREY, 10, RescaleSlope="1", RescaleIntercept="-512", **attributes)
    image = read_dicom(save(ds, tmp_path / "a.dcm"))
    if "PhotometricInterpretation" in attributes:  # inverted in the range from -512 to 511
        expected = tuple(end - 1 for end in expected)
    assert image.window == expected


def test_window_of_each_frame() -> None:
    ds = dataset(np.stack([GREY, GREY]), 10, NumberOfFrames=2)
    windows = []
    for center in (100, 200):
        frame, window = Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth = center, 51
        frame.FrameVOILUTSequence = Sequence([window])
        windows.append(frame)
    ds.PerFrameFunctionalGroupsSequence = Sequence(windows)
    assert [read_dicom(ds, frame).window for frame in (0, 1)] == [(74.5, 124.5), (174.5, 224.5)]


def test_padding_becomes_invalid(tmp_path: Path) -> None:
    stored = np.array([[-2000, -1999, -1500], [-1, 0, 1]], np.int16)
    ds = dataset(stored, RescaleSlope="1", RescaleIntercept="-1024")
    ds.add_new("PixelPaddingValue", "SS", -2000)
    image = read_dicom(save(ds, tmp_path / "a.dcm"))
    np.testing.assert_array_equal(image.valid, stored != -2000)
    assert image.pixels[0, 0, 0] == -3024

    ds.add_new("PixelPaddingRangeLimit", "SS", -1500)
    np.testing.assert_array_equal(read_dicom(save(ds, tmp_path / "b.dcm")).valid, stored > -1500)


def test_padding_of_signed_pixels_written_as_unsigned(tmp_path: Path) -> None:
    stored = np.array([[-2000, 5], [6, 7]], np.int16)
    ds = dataset(stored)
    ds.add_new("PixelPaddingValue", "US", 65536 - 2000)
    np.testing.assert_array_equal(read_dicom(save(ds, tmp_path / "a.dcm")).valid, stored != -2000)


def test_padding_that_no_pixel_has(tmp_path: Path) -> None:
    ds = dataset(GREY)
    ds.add_new("PixelPaddingValue", "US", 9999)
    assert read_dicom(save(ds, tmp_path / "a.dcm")).valid is None


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"ImagerPixelSpacing": [0.2, 0.3]}, (0.2, 0.3)),
        ({"ImagerPixelSpacing": [0.2, 0.3], "PixelSpacing": [0.1, 0.15]}, (0.1, 0.15)),
        ({"PixelSpacing": [0, 1]}, None),
        ({}, None),
    ],
)
def test_spacing(tmp_path: Path, attributes: dict[str, Any], expected: Any) -> None:
    assert read_dicom(save(dataset(GREY, **attributes), tmp_path / "a.dcm")).spacing_mm == expected


def test_frames_with_functional_groups(tmp_path: Path) -> None:
    frames = np.arange(3 * 2 * 4, dtype=np.uint16).reshape(3, 2, 4)

    def group(**values: str) -> Dataset:
        item, transformation = Dataset(), Dataset()
        for name, value in values.items():
            setattr(transformation, name, value)
        item.PixelValueTransformationSequence = Sequence([transformation])
        return item

    shared, measures = Dataset(), Dataset()
    measures.PixelSpacing = [2, 3]
    shared.PixelMeasuresSequence = Sequence([measures])
    ds = dataset(frames, NumberOfFrames=3)
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    ds.PerFrameFunctionalGroupsSequence = Sequence(
        [group(RescaleSlope=str(i + 1), RescaleIntercept=str(-i)) for i in range(3)]
    )
    path = save(ds, tmp_path / "a.dcm")
    assert count_dicom_frames(path) == 3
    for i in range(3):
        image = read_dicom(path, i)
        np.testing.assert_array_equal(image.pixels[0], frames[i].astype(int) * (i + 1) - i)
        assert (image.n_frames, image.spacing_mm) == (3, (2.0, 3.0))
        np.testing.assert_array_equal(image.pixels, read_dicom(ds, i).pixels)
    for bad in (3, -1):
        with pytest.raises(UnreadableImageError, match=f"no frame {bad}: the file holds 3 frames"):
            read_dicom(path, bad)


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless]
)
@pytest.mark.parametrize("n_frames", [1, 3])
def test_transfer_syntaxes(tmp_path: Path, syntax: Any, n_frames: int) -> None:
    frames = np.random.default_rng(0).integers(0, 4096, (n_frames, 5, 7)).astype(np.uint16)
    ds = dataset(frames if n_frames > 1 else frames[0], 12, **({"NumberOfFrames": 3} if n_frames > 1 else {}))
    if syntax == RLELossless:
        ds.compress(RLELossless)
        ds.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    elif syntax == ExplicitVRBigEndian:
        ds.PixelData = frames.astype(">u2").tobytes()
        ds.file_meta.TransferSyntaxUID = syntax
        pydicom.dcmwrite(tmp_path / "a.dcm", ds, implicit_vr=False, little_endian=False)
        content = bytearray((tmp_path / "a.dcm").read_bytes())
        if content[128:132] != b"DICM":
            pydicom.dcmwrite(tmp_path / "a.dcm", ds, enforce_file_format=True)
    else:
        save(ds, tmp_path / "a.dcm", syntax)
    for i in range(n_frames):
        image = read_dicom(tmp_path / "a.dcm", i)
        np.testing.assert_array_equal(image.pixels[0], frames[i])
        assert image.pixels.dtype.isnative


def test_colour_becomes_channels(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    np.testing.assert_array_equal(read_dicom(save(dataset(rgb), tmp_path / "a.dcm")).pixels, np.moveaxis(rgb, -1, 0))
    planar = dataset(rgb, PlanarConfiguration=1, PixelData=np.moveaxis(rgb, -1, 0).tobytes())
    np.testing.assert_array_equal(read_dicom(save(planar, tmp_path / "b.dcm")).pixels, np.moveaxis(rgb, -1, 0))
    ybr = pydicom.pixels.convert_color_space(rgb, "RGB", "YBR_FULL")
    path = save(dataset(ybr, PhotometricInterpretation="YBR_FULL"), tmp_path / "c.dcm")
    assert np.abs(read_dicom(path).pixels.astype(int) - np.moveaxis(rgb, -1, 0)).max() <= 2  # rounding there and back


@pytest.mark.parametrize("index_dtype", [np.uint8, np.uint16])
def test_palette(tmp_path: Path, index_dtype: Any) -> None:
    table = np.random.default_rng(0).integers(0, 256, (3, 4)).astype(np.uint8)
    index = np.array([[0, 1, 2], [3, 250, 255]], index_dtype)  # beyond the table: its last entry
    index = index + (np.uint16(1000) if index_dtype == np.uint16 else np.uint8(0)) * (index > 200)
    ds = dataset(index.astype(index_dtype), PhotometricInterpretation="PALETTE COLOR")
    for name, entries in zip(("Red", "Green", "Blue"), table, strict=True):
        ds.add_new(f"{name}PaletteColorLookupTableDescriptor", "US", [4, 0, 8])
        ds.add_new(f"{name}PaletteColorLookupTableData", "OW", entries.tobytes())
    image = read_dicom(save(ds, tmp_path / "a.dcm"))
    np.testing.assert_array_equal(image.pixels, table[:, np.minimum(index, 3)])
    assert image.bits_stored == 8


def test_float_pixels(tmp_path: Path) -> None:
    values = np.array([[0.5, -1.25], [3e8, 0]], np.float32)
    ds = dataset(values)
    del ds.PixelData, ds.BitsStored, ds.HighBit, ds.PixelRepresentation
    ds.FloatPixelData = values.tobytes()
    ds.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    image = read_dicom(tmp_path / "a.dcm")
    np.testing.assert_array_equal(image.pixels[0], values)
    assert (image.pixels.dtype, image.bits_stored) == (np.float32, None)


@pytest.mark.parametrize("is_implicit", [True, False])
def test_file_without_preamble(tmp_path: Path, is_implicit: bool) -> None:
    ds = dataset(GREY)
    del ds.file_meta
    pydicom.dcmwrite(tmp_path / "bare.dcm", ds, implicit_vr=is_implicit, little_endian=True)
    np.testing.assert_array_equal(read_image(tmp_path / "bare.dcm").pixels[0], GREY)
    (tmp_path / "bare.dcm").rename(tmp_path / "IM0001")  # then its content alone tells
    np.testing.assert_array_equal(read_image(tmp_path / "IM0001").pixels[0], GREY)


def test_bits_beyond_bits_stored_are_not_values(tmp_path: Path) -> None:
    overlay_in_bit_15 = (GREY | 0x8000).astype(np.uint16)
    np.testing.assert_array_equal(read_dicom(save(dataset(overlay_in_bit_15, bits=10), tmp_path / "a")).pixels[0], GREY)


# ---------------------------------------------------------------- refusals


def refusal(source: Any, frame: int = 0) -> str:
    with pytest.raises(UnreadableImageError) as caught:
        read_dicom(source, frame)
    text = "".join(traceback.format_exception(caught.value))
    assert "Secret" not in text
    assert "4711" not in text
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_image_in_it(tmp_path: Path) -> None:
    ds = dataset(GREY)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.33"
    del ds.Rows, ds.PixelData
    ds.save_as(tmp_path / "sr.dcm", enforce_file_format=True)
    assert "holds no image: it is a DICOM Comprehensive SR Storage" in refusal(tmp_path / "sr.dcm")


def test_pixels_missing(tmp_path: Path) -> None:
    ds = dataset(GREY)
    del ds.PixelData
    ds.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert "a.dcm: has no complete pixel data" in refusal(tmp_path / "a.dcm")


@pytest.mark.parametrize("n_frames", [1, 2])
def test_truncated_everywhere(tmp_path: Path, n_frames: int) -> None:
    frames = np.stack([GREY] * n_frames)
    ds = dataset(frames, NumberOfFrames=n_frames)
    whole = save(ds, tmp_path / "a.dcm").read_bytes()
    assert len(whole) - GREY.nbytes * n_frames > 200
    for n_bytes in [1, 50, 127, 131, 133, 200, len(whole) // 2, len(whole) - GREY.nbytes, len(whole) - 2]:
        (tmp_path / "cut.dcm").write_bytes(whole[:n_bytes])
        refusal(tmp_path / "cut.dcm", n_frames - 1)


def test_truncated_compressed_frames(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 4096, (3, 8, 8)).astype(np.uint16)
    ds = dataset(frames, NumberOfFrames=3)
    ds.compress(RLELossless)
    ds.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    whole = (tmp_path / "a.dcm").read_bytes()
    for n_missing in (10, 30, 100, 400):  # the sequence delimiter, and one to three frames
        (tmp_path / "cut.dcm").write_bytes(whole[:-n_missing])
        refusal(tmp_path / "cut.dcm", 2)


def test_text_is_not_dicom(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_text(f"{PATIENT} came at noon.\n" * 20, encoding="utf-8")
    assert "is not a DICOM file" in refusal(tmp_path / "a.dcm")


def test_size_is_checked_by_the_header(tmp_path: Path) -> None:
    ds = dataset(GREY, Rows=50_000, Columns=50_000)
    assert "50000 x 50000 x 1 samples" in refusal(save(ds, tmp_path / "a.dcm"))
    ds = dataset(GREY, Rows=0)
    assert "declares 0 x 4" in refusal(save(ds, tmp_path / "b.dcm"))


@pytest.mark.parametrize("has_preamble", [True, False])
def test_deflated_data_set_is_not_inflated_beyond_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_preamble: bool
) -> None:
    ds = dataset(GREY)
    ds.PixelData += bytes(40_000_000)
    path = save(ds, tmp_path / "a.dcm", DeflatedExplicitVRLittleEndian)
    path.write_bytes(path.read_bytes()[0 if has_preamble else 132 :])
    monkeypatch.setattr(dicom_shared, "_PIECE", 1000)
    np.testing.assert_array_equal(read_dicom(path).pixels[0], GREY)
    monkeypatch.setattr(dicom_shared, "_MOST_BYTES", 1_000_000)
    for read in (read_dicom, count_dicom_frames):
        tracemalloc.start()
        with pytest.raises(UnreadableImageError, match="deflated bytes become more than 1,000,000"):
            read(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 5e6, "40 MB if inflated whole"


def test_unsupported_colours(tmp_path: Path) -> None:
    ds = dataset(GREY, PhotometricInterpretation="CMYK")
    assert "CMYK with 1 sample per pixel" in refusal(save(ds, tmp_path / "a.dcm"))
    ds.PhotometricInterpretation = "DOE JOHN"
    text = refusal(save(ds, tmp_path / "b.dcm"))
    assert "unknown colours with 1 sample per pixel" in text
    assert "DOE" not in text


def test_missing_decoder_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pydicom.pixels.decoders.base import Decoder

    ds = dataset(GREY)
    ds.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51"])
    ds.file_meta.TransferSyntaxUID = JPEG2000Lossless
    ds.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    monkeypatch.setattr(Decoder, "is_available", False)
    lacking = ["pylibjpeg - requires pylibjpeg>=2.0 and pylibjpeg-openjpeg>=2.0", "pillow - requires pillow>=10.0.0"]
    monkeypatch.setattr(Decoder, "missing_dependencies", lacking)
    text = refusal(tmp_path / "a.dcm")
    assert "it needs pylibjpeg>=2.0 and pylibjpeg-openjpeg>=2.0, or pillow>=10.0.0" in text
    assert "JPEG 2000" in text
    assert "anomaly-ae[medical]" in text


def test_damaged_compressed_data(tmp_path: Path) -> None:
    ds = dataset(GREY)
    ds.compress(RLELossless)
    whole = pydicom.encaps.get_frame(ds.PixelData, 0)
    ds.PixelData = pydicom.encaps.encapsulate([whole[: len(whole) // 2]])
    ds.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    refusal(tmp_path / "a.dcm")


@pytest.mark.parametrize("n_frames", [1, 2])
@pytest.mark.parametrize(
    ("syntax", "options", "size"),
    [
        (JPEGBaseline8Bit, {"format": "JPEG"}, struct.Struct(">HH")),
        (JPEG2000Lossless, {"format": "JPEG2000", "no_jp2": True}, struct.Struct(">II")),
        (JPEG2000Lossless, {"format": "JPEG2000", "no_jp2": False}, struct.Struct(">II")),
    ],
)
def test_a_frame_compressed_from_another_size_takes_no_memory(
    tmp_path: Path, syntax: Any, options: dict[str, Any], size: struct.Struct, n_frames: int
) -> None:
    grey = np.full((16, 16), 7, np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(grey).save(file, **options)
    ds = dataset(np.stack([grey] * n_frames), NumberOfFrames=n_frames)
    ds.file_meta.TransferSyntaxUID = syntax
    good = file.getvalue()
    start = max(good.find(b"\xff\x4f\xff\x51"), 0)  # behind the header of a JP2 file, which says the size too
    bad = good[:start] + good[start:].replace(size.pack(16, 16), size.pack(64_000, 64_000), 1)
    for last in (good, bad):
        ds.PixelData = pydicom.encaps.encapsulate([*[good] * (n_frames - 1), last])
        ds["PixelData"].is_undefined_length = True
        path = save(ds, tmp_path / f"{last == good}.dcm", syntax)
    np.testing.assert_array_equal(read_dicom(tmp_path / "True.dcm", n_frames - 1).pixels[0], grey)
    text = refusal(path, n_frames - 1)
    assert "the frame is compressed from 64000 x 64000, the header declares 16 x 16" in text


def test_unknown_transfer_syntax(tmp_path: Path) -> None:
    ds = dataset(GREY)
    ds.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    content = (tmp_path / "a.dcm").read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0")
    (tmp_path / "a.dcm").write_bytes(content)
    refusal(tmp_path / "a.dcm")


@pytest.mark.parametrize("element", [b"\x02\0\x10\0UI", b"\x08\0\x16\0UI"])
def test_no_message_repeats_a_value_that_took_in_other_elements(tmp_path: Path, element: bytes) -> None:
    """A damaged length makes the transfer syntax or the SOP class run on over the patient's name."""
    path = save(dataset(GREY), tmp_path / "a.dcm")
    whole = path.read_bytes()
    start = whole.index(element) + len(element)
    for n_bytes in {*range(26, 180, 2)} - {26, 42, 64, 80}:  # at these, the next element begins where one does
        path.write_bytes(whole[:start] + n_bytes.to_bytes(2, "little") + whole[start + 2 :])
        assert refusal(path).isprintable()


def test_a_damaged_code_is_not_repeated(tmp_path: Path) -> None:
    path = save(dataset(GREY), tmp_path / "a.dcm")
    path.write_bytes(path.read_bytes().replace(b"MONOCHROME2", b"MONO\x1b[31m_2"))
    assert "unknown colours with 1 sample per pixel" in refusal(path)


def test_technical_value_with_identity_in_it_is_not_repeated(tmp_path: Path) -> None:
    ds = dataset(GREY, RescaleSlope="1.5", RescaleIntercept="0")
    whole = save(ds, tmp_path / "a.dcm").read_bytes()
    damaged = whole.replace(b"(\0S\x10DS\x04\x001.5 ", b"(\0S\x10DS\x04\x004711")
    assert damaged != whole
    (tmp_path / "a.dcm").write_bytes(damaged.replace(b"DS\x04\x004711", b"DS\x04\x00ecre"))
    refusal(tmp_path / "a.dcm")


def test_warnings_and_log_stay_inside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ds = dataset(GREY, bits=10)
    ds.PixelData += b"\0" * 8  # pydicom warns of excess padding
    path = save(ds, tmp_path / "a.dcm")
    with pytest.warns(UserWarning, match="excess padding"):
        _ = pydicom.dcmread(path).pixel_array
    caplog.clear()
    with caplog.at_level(logging.DEBUG):
        read_dicom(path)  # warnings are errors here
    assert not caplog.records
    assert not logging.getLogger("pydicom").disabled


def test_warning_filters_survive_threads() -> None:
    before = list(warnings.filters)
    first, second = dicom_shared.decoding("a", "file"), dicom_shared.decoding("b", "file")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)  # left in the order of entering, as two threads may
    warnings.warn("still quiet", stacklevel=1)
    second.__exit__(None, None, None)
    assert list(warnings.filters) == before


def test_ct_class_is_read_like_any_other(tmp_path: Path) -> None:
    ds = dataset(GREY, SOPClassUID=CTImageStorage)
    np.testing.assert_array_equal(read_dicom(save(ds, tmp_path / "a.dcm")).pixels[0], GREY)
