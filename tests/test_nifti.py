"""NIfTI: slices against nibabel itself, whatever the order of the file; refusals; nothing decoded twice."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import math
import sys
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import axcodes2ornt, ornt_transform

from anomaly_ae.errors import DataError, OutputError, UnreadableImageError
from anomaly_ae.nifti import (
    count_nifti_frames,
    grid_problem,
    is_nifti,
    read_grid,
    read_nifti,
    volume_frames,
    write_slice,
)
from anomaly_ae.nifti import read as nifti
from anomaly_ae.readers import count_frames, image_sha256, looks_like_image, read_channels, read_image, read_mask

ORDERS = [
    "".join(letters)
    for axes in itertools.permutations(("RL", "AP", "SI"))
    for letters in itertools.product(*axes)
]  # fmt: skip


def voxels(shape: tuple[int, ...] = (5, 6, 4), dtype: str = "int16") -> np.ndarray:
    return np.arange(math.prod(shape)).reshape(shape).astype(dtype)


def save(
    path: Path,
    data: np.ndarray,
    spacing: tuple[float, float, float] = (1, 1, 3),
    order: str = "RAS",
    kind: Any = nibabel.Nifti1Image,
) -> Path:
    """Write voxels that lie towards right, front and top in another order of the axes, as scanners do."""
    image = kind(data, np.diag([*spacing, 1.0]))
    image.header.set_xyzt_units("mm")
    turns = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(order))
    nibabel.save(image.as_reoriented(turns), path)
    return path


def seen(data: np.ndarray, axis: int, number: int) -> np.ndarray:
    """The slice as radiologists look at it, by hand: voxels towards right, front and top become rows and columns."""
    plane = np.take(data, number, axis)
    return plane.T[::-1, ::-1]


@pytest.mark.parametrize("order", ORDERS)
def test_slices_are_the_same_in_every_order_of_the_file(order: str, tmp_path: Path) -> None:
    data = voxels()
    path = save(tmp_path / "v.nii", data, (1.0, 1.5, 3.0), order)
    assert count_nifti_frames(path) == 4
    for number in range(4):
        image = read_nifti(path, number)
        np.testing.assert_array_equal(image.pixels[0], seen(data, 2, number))
        assert image.spacing_mm == pytest.approx((1.5, 1.0))
        assert (image.n_frames, image.pixels.dtype) == (4, np.int16)
        assert not image.pixels.flags.writeable


def test_the_picture_is_that_of_radiology(tmp_path: Path) -> None:
    """One bright voxel at the patient's right and front, at the top of the volume."""
    data = np.zeros((5, 6, 4), np.uint8)
    data[4, 5, 3] = 1
    image = read_nifti(save(tmp_path / "v.nii", data, order="LPS"), frame=3)
    assert image.pixels[0, 0, 0] == 1, "front is up, right is left"


@pytest.mark.parametrize(
    ("shape", "spacing", "axis"),
    [
        ((5, 6, 4), (3, 1, 1), 0),
        ((5, 6, 4), (1, 3, 1), 1),
        ((5, 6, 4), (1, 1, 1), 2),
        ((5, 6, 4), (1, 1.005, 1), 2),  # rounding is no larger spacing
        ((5, 6, 4), (3, 3, 1), 1),
        ((5, 1, 4), (1, 1, 5), 1),  # one slice is a slice, whatever its thickness says
    ],
)
def test_slices_are_cut_across_the_largest_spacing(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], axis: int, tmp_path: Path
) -> None:
    data = voxels(shape)
    path = save(tmp_path / "v.nii.gz", data, spacing)
    assert count_nifti_frames(path) == shape[axis]
    rows, columns = [other for other in (2, 1, 0) if other != axis]
    for number in range(shape[axis]):
        image = read_nifti(path, number)
        np.testing.assert_array_equal(image.pixels[0], seen(data, axis, number))
        assert image.spacing_mm == pytest.approx((spacing[rows], spacing[columns]))


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_both_versions_plain_and_compressed(name: str, kind: Any, tmp_path: Path) -> None:
    data = voxels()
    path = save(tmp_path / name, data, kind=kind)
    assert is_nifti(path.read_bytes()[:512])
    assert looks_like_image(path)
    assert count_frames(path) == 4
    np.testing.assert_array_equal(read_image(path, 2).pixels[0], seen(data, 2, 2))


def test_a_name_that_does_not_say_what_is_inside(tmp_path: Path) -> None:
    plain = save(tmp_path / "v.nii", voxels())
    (tmp_path / "plain.nii.gz").write_bytes(plain.read_bytes())
    (tmp_path / "packed.nii").write_bytes(gzip.compress(plain.read_bytes()))
    for name in ("plain.nii.gz", "packed.nii"):
        np.testing.assert_array_equal(read_image(tmp_path / name, 1).pixels, read_image(plain, 1).pixels)


def test_frames_of_a_4d_file_are_slices_of_one_time_after_the_other(tmp_path: Path) -> None:
    data = voxels((5, 6, 4, 3))
    path = save(tmp_path / "v.nii.gz", data, (2, 2, 2))
    assert count_nifti_frames(path) == 12
    for frame in range(12):
        np.testing.assert_array_equal(read_nifti(path, frame).pixels[0], seen(data[..., frame // 4], 2, frame % 4))
    assert volume_frames(path, 9) == range(8, 12)
    assert [one.frame for one in read_image(path, 5).volume] == [4, 5, 6, 7]


@pytest.mark.parametrize(
    ("dtype", "becomes"), [("uint8", "float32"), ("int16", "float32"), ("int32", "float64"), ("float32", "float32")]
)
def test_slope_and_intercept(dtype: str, becomes: str, tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(voxels(dtype=dtype), np.diag([1, 1, 3, 1]))
    image.header.set_slope_inter(0.5, -1024)
    nibabel.save(image, tmp_path / "v.nii")
    found = read_nifti(tmp_path / "v.nii", 1).pixels
    want = np.asarray(nibabel.load(tmp_path / "v.nii").dataobj)
    np.testing.assert_allclose(found[0], seen(want, 2, 1), rtol=1e-6)
    assert found.dtype == becomes


def test_big_endian_and_its_scale(tmp_path: Path) -> None:
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    image = nibabel.Nifti1Image(voxels(dtype=">i2"), np.diag([1, 1, 3, 1]), header)
    nibabel.save(image, tmp_path / "v.nii")
    found = read_image(tmp_path / "v.nii", 1)
    np.testing.assert_array_equal(found.pixels[0], seen(voxels(), 2, 1))
    assert found.pixels.dtype.isnative


def test_spacing_in_other_units(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(voxels(), np.diag([1e-3, 2e-3, 3e-3, 1]))
    image.header.set_xyzt_units("meter")
    nibabel.save(image, tmp_path / "v.nii")
    assert read_nifti(tmp_path / "v.nii").spacing_mm == pytest.approx((2, 1))
    assert read_grid(tmp_path / "v.nii").slice_spacing_mm == pytest.approx(3)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_oblique_volumes_against_nibabel(seed: int) -> None:
    """Any affine: the slices are those of nibabel's own closest canonical image."""
    from tempfile import TemporaryDirectory

    generator = np.random.default_rng(seed)
    affine = np.eye(4)
    rotation, _ = np.linalg.qr(generator.normal(size=(3, 3)))
    affine[:3, :3] = rotation * generator.choice([1.0, 1.4, 2.0, 3.1], 3, replace=False)
    affine[:3, 3] = generator.normal(size=3) * 100
    data = generator.integers(-1000, 1000, (4, 5, 6)).astype(np.int16)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "v.nii.gz"
        nibabel.save(nibabel.Nifti1Image(data, affine), path)
        canonical = nibabel.as_closest_canonical(nibabel.load(path))
        whole, grid = np.asarray(canonical.dataobj), read_grid(path)
        np.testing.assert_allclose(grid.affine, canonical.affine, atol=1e-3)
        assert grid.slice_axis == int(np.argmax(canonical.header.get_zooms()))
        for number in range(grid.n_slices):
            np.testing.assert_array_equal(read_nifti(path, number).pixels[0], seen(whole, grid.slice_axis, number))


def test_a_compressed_volume_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, loaded = save(tmp_path / "v.nii.gz", voxels()), []
    load = nifti._load
    monkeypatch.setattr(nifti, "_load", lambda *a: loaded.append(a) or load(*a))
    for number in range(4):
        read_nifti(path, number)
    assert len(loaded) == 1
    save(path, voxels() + 1)
    assert read_nifti(path).pixels.min() == 1, "a file that changed is read again"


def test_few_decoded_volumes_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nifti, "_KEPT_BYTES", 3 * voxels().nbytes)
    for number in range(5):
        read_nifti(save(tmp_path / f"{number}.nii.gz", voxels()))
    assert len(nifti._decoded) == 3


def test_the_hash_of_a_volume_is_that_of_its_file(tmp_path: Path) -> None:
    path = save(tmp_path / "v.nii", voxels())
    assert image_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    save(path, voxels() + 1)
    assert image_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


# --- grids and masks ------------------------------------------------------------


def test_a_mask_volume_follows_its_image_in_any_order(tmp_path: Path) -> None:
    marked = np.zeros((5, 6, 4), np.uint8)
    marked[1, 2, 3] = 7
    image = save(tmp_path / "v.nii.gz", voxels(), order="PSL")
    mask = save(tmp_path / "m.nii.gz", marked, order="RAS")
    assert grid_problem(image, mask) == ""
    for number in range(4):
        found = read_mask(mask, (6, 5), number, image)
        np.testing.assert_array_equal(found, seen(marked, 2, number) > 0)


def test_a_mask_of_one_volume_serves_all_times(tmp_path: Path) -> None:
    image, mask = (
        save(tmp_path / "v.nii.gz", voxels((5, 6, 4, 2))),
        save(tmp_path / "m.nii.gz", (voxels() > 100).astype("u1")),
    )
    np.testing.assert_array_equal(read_mask(mask, frame=7, image_file=image), read_mask(mask, frame=3))


@pytest.mark.parametrize(
    ("shape", "spacing", "message"),
    [((5, 6, 5), (1, 1, 3), "5 x 6 x 5 voxels, not 5 x 6 x 4"), ((5, 6, 4), (1, 1, 3.5), "affine")],
)
def test_a_mask_on_another_grid_is_refused(
    shape: tuple[int, ...], spacing: tuple[float, float, float], message: str, tmp_path: Path
) -> None:
    image, mask = save(tmp_path / "v.nii", voxels()), save(tmp_path / "m.nii", voxels(shape), spacing)
    with pytest.raises(DataError, match=message):
        read_mask(mask, frame=1, image_file=image)
    with pytest.raises(DataError, match=message):
        read_channels((image,), 1, mask)
    with pytest.raises(UnreadableImageError, match=message):
        read_channels((image, mask), 1)


def test_valid_mask_of_a_volume_lets_nan_pass_outside(tmp_path: Path) -> None:
    data = voxels(dtype="float32")
    data[0] = np.nan
    path = save(tmp_path / "v.nii", data)
    valid = save(tmp_path / "m.nii", np.isfinite(data).astype(np.uint8))
    with pytest.raises(UnreadableImageError, match="6 of 30 values are NaN"):
        read_image(path, 1)
    image = read_channels((path,), 1, valid)
    assert image.valid is not None
    assert image.valid.sum() == 24
    assert [one.valid for one in image.volume] == [valid] * 4


def test_channels_of_two_volumes(tmp_path: Path) -> None:
    one, two = save(tmp_path / "a.nii", voxels()), save(tmp_path / "b.nii.gz", voxels() + 1, order="LPI")
    image = read_channels((one, two), 2)
    np.testing.assert_array_equal(image.pixels[1], image.pixels[0] + 1)


# --- maps ------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS[::7])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_maps_lie_voxel_by_voxel_on_their_source(order: str, kind: Any, tmp_path: Path) -> None:
    """Slices that are read and put back give the same volume to whoever reads it with nibabel alone."""
    source = save(tmp_path / "v.nii.gz", voxels((5, 6, 4, 2)), (1, 1.5, 3), order, kind)
    for frame in (0, 2, 3, 4, 5, 6, 7):
        write_slice(tmp_path / "maps/m.nii", source, frame, read_nifti(source, frame).pixels[0])
    before, after = nibabel.load(source), nibabel.load(tmp_path / "maps/m.nii")
    assert type(after) is kind
    np.testing.assert_allclose(after.affine, before.affine)
    assert after.header.get_xyzt_units() == before.header.get_xyzt_units()
    assert after.get_data_dtype() == np.float32
    want = nibabel.as_closest_canonical(before).get_fdata()
    want[:, :, 1, 0] = 0  # never put
    np.testing.assert_array_equal(nibabel.as_closest_canonical(after).get_fdata(), want)
    assert grid_problem(source, tmp_path / "maps/m.nii") == ""


def test_maps_copy_no_text_of_the_header(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(voxels(), np.diag([1, 1, 3, 1]))
    image.header["descrip"] = image.header["db_name"] = b"Secret^Person"
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"Secret^Person"))
    nibabel.save(image, tmp_path / "v.nii")
    assert b"Secret" in (tmp_path / "v.nii").read_bytes()
    write_slice(tmp_path / "m.nii", tmp_path / "v.nii", 1, np.ones((6, 5)))
    assert b"Secret" not in (tmp_path / "m.nii").read_bytes()


def test_maps_that_cannot_be_written(tmp_path: Path) -> None:
    source = save(tmp_path / "v.nii", voxels())
    with pytest.raises(OutputError, match="cannot write"):
        write_slice(source / "maps" / "m.nii", source, 0, np.ones((6, 5)))


# --- refusals ------------------------------------------------------------


def broken(tmp_path: Path, name: str, content: bytes) -> Path:
    (tmp_path / name).write_bytes(content)
    return tmp_path / name


def noise_file(tmp_path: Path, name: str) -> Path:
    generator = np.random.default_rng(0)
    return save(tmp_path / name, generator.integers(0, 2**15, (20, 20, 20)).astype(np.int16))


@pytest.mark.parametrize(("name", "message"), [("v.nii", "truncated|missing"), ("v.nii.gz", "ended before|read")])
def test_truncated(name: str, message: str, tmp_path: Path) -> None:
    content = noise_file(tmp_path, name).read_bytes()
    path = broken(tmp_path, "cut_" + name, content[: len(content) // 2])
    assert count_frames(path) == 20, "the header is whole"
    with pytest.raises(UnreadableImageError, match=message):
        read_image(path, 19)


def test_a_damaged_byte_in_a_compressed_file_is_noticed(tmp_path: Path) -> None:
    content = bytearray(noise_file(tmp_path, "v.nii.gz").read_bytes())
    content[-6] ^= 1  # in the checksum
    with pytest.raises(UnreadableImageError, match="CRC"):
        read_image(broken(tmp_path, "d.nii.gz", bytes(content)))


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
def test_huge_sizes_are_refused_before_memory_is_taken(name: str, tmp_path: Path) -> None:
    path = save(tmp_path / name, voxels())
    content = bytearray(gzip.decompress(path.read_bytes()) if name.endswith("gz") else path.read_bytes())
    content[40:48] = np.array([3, 32767, 32767, 32767], "<i2").tobytes()
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    tracemalloc.start()
    with pytest.raises(UnreadableImageError, match="32767 x 32767"):
        read_image(path)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (voxels(dtype="complex64"), "complex numbers, not grey"),
        (np.zeros((5, 6, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "colours, not grey"),
        (voxels((5, 6, 4, 1, 3)), "5 axes"),
        (np.full((5, 6, 4), np.nan, "float32"), "NaN"),
    ],
)
def test_voxels_that_are_no_grey_values(data: np.ndarray, message: str, tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(data, np.diag([1, 1, 3, 1])), tmp_path / "v.nii")
    with pytest.raises(UnreadableImageError, match=message):
        read_image(tmp_path / "v.nii", 1)


def test_missing_frame(tmp_path: Path) -> None:
    path = save(tmp_path / "v.nii", voxels())
    with pytest.raises(UnreadableImageError, match="no frame 4"):
        read_image(path, 4)


def test_without_nibabel_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "v.nii", voxels())
    for name in ("nibabel.nifti1", "nibabel.nifti2"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UnreadableImageError, match=r"pip install 'anomaly-ae\[medical\]'"):
        read_image(path)


def test_a_pair_of_files_is_no_image(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Pair(voxels(), np.eye(4)), tmp_path / "v.img")
    assert not looks_like_image(tmp_path / "v.hdr")
    with pytest.raises(UnreadableImageError, match="none of PNG"):
        read_image(tmp_path / "v.hdr")


@settings(max_examples=100, deadline=None)
@given(place=st.integers(0, 351), value=st.integers(0, 255), packed=st.booleans())
def test_one_wrong_byte_in_the_header_never_is_a_traceback(
    place: int, value: int, packed: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    content = bytearray(save(folder / "whole.nii", voxels()).read_bytes())
    content[place] = value
    path = folder / "wrong.nii"
    path.write_bytes(gzip.compress(content) if packed else content)
    with suppress(UnreadableImageError):
        for frame in range(min(4, count_frames(path))):
            assert read_image(path, frame).pixels.size
