"""Volumes looked at as a whole: from the files to a map that lies on them, at a stated spacing, in bounded memory."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from command import done
from nibabel.orientations import axcodes2ornt, ornt_transform
from test_readme import run_document
from test_realdata import real_folder
from test_volumes import HOW_TO, dicom, head, save

from anomaly_ae.audit import audit
from anomaly_ae.config import GeometryConfig, IntensityConfig, load_config
from anomaly_ae.curve import learning_curve
from anomaly_ae.detector import Detector
from anomaly_ae.errors import DataError, IncompatibleImageError, UnreadableImageError, UsageError
from anomaly_ae.evaluation import RunOptions, score
from anomaly_ae.fitting import fit
from anomaly_ae.keeping import keep_dicom
from anomaly_ae.loading import read_sample
from anomaly_ae.manifest import load_manifest, manifest_from_paths, volumes_of, write_manifest
from anomaly_ae.metrics import PixelMap, pixel_metrics
from anomaly_ae.nifti import read_nifti
from anomaly_ae.prepare import Geometry, choose_geometry, prepare, to_image_grid, valid_box
from anomaly_ae.readers import read_volume, volume_from
from anomaly_ae.records import Failure, Image, Sample, Score, Slice
from anomaly_ae.regions import find_regions
from anomaly_ae.report import Planes
from anomaly_ae.scoring import intensity_limits, map_in_windows
from anomaly_ae.synthetic import make_volumes

SHAPE = (24, 26, 10)
SETTINGS = ["model.spatial_dims=3", "model.width=4", "training.steps=2", "training.crop_px=16"]


def lesion(shape: Sequence[int] = SHAPE) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[9:14, 9:14, 3:6] = 1
    return mask


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten normal volumes to fit on, two to test, and two with a lesion; the voxels are 1 x 1 x 2 mm."""
    root = tmp_path_factory.mktemp("whole") / "heads"
    for number in range(10):
        save(root / f"train/good/{number:02}.nii.gz", head(number, SHAPE), 2.0)
    for number in range(2):
        save(root / f"test/good/{number}.nii.gz", head(20 + number, SHAPE), 2.0)
        ill = head(30 + number, SHAPE)
        ill[lesion() > 0] += 400
        save(root / f"test/lesion/{number}.nii.gz", ill, 2.0)
        save(root / f"ground_truth/lesion/{number}_mask.nii.gz", lesion(), 2.0)
    return root


@pytest.fixture(scope="module")
def detector(folder: Path) -> Detector:
    config = load_config("smoke", [*SETTINGS, "intensity.policy=volume_percentile"])
    return fit(load_manifest(folder), config, device="cpu")


# --- rows ------------------------------------------------------------


def test_a_volume_takes_the_place_of_its_slices(tmp_path: Path) -> None:
    data = head(1, (20, 22, 4), n_air=2)  # six slices, of which a scan lists four
    save(tmp_path / "test/lesion/v.nii.gz", data)
    save(tmp_path / "ground_truth/lesion/v_mask.nii.gz", lesion(data.shape))
    manifest = load_manifest(tmp_path, identified=True)
    assert len(manifest.samples) == 4
    [whole] = volumes_of(manifest.samples)
    assert (whole.id, whole.label, whole.defect, whole.frame) == ("test/lesion/v.nii.gz", "anomalous", "lesion", 0)
    assert [one.frame for one in whole.slices] == list(range(6)), "air is in it again"
    assert volumes_of([whole]) == (whole,)
    write_manifest(manifest, tmp_path / "m.csv")
    [again] = volumes_of(load_manifest(tmp_path / "m.csv", identified=True).samples)
    assert [one.frame for one in again.slices] == list(range(6))


def test_labels_of_volumes(tmp_path: Path) -> None:
    for name in ("normal", "unknown", "ill"):
        save(tmp_path / f"{name}.nii", head(1))
    (tmp_path / "m.csv").write_text("path,label\nnormal.nii,normal\nunknown.nii,\nill.nii,anomalous\n")
    found = volumes_of(load_manifest(tmp_path / "m.csv", identified=True).samples)
    assert {s.path: (s.label, s.split) for s in found} == {
        "normal.nii": ("normal", ""),
        "unknown.nii": ("", ""),
        "ill.nii": ("anomalous", "test"),
    }
    assert not any("volume_label" in s.extra for s in found), "a volume has a label of its own"


def test_times_of_a_file_are_volumes(tmp_path: Path) -> None:
    save(tmp_path / "v.nii", np.stack([head(1), head(2)], axis=-1))
    found = volumes_of(load_manifest(tmp_path, identified=True).samples)
    assert [(s.id, s.frame, len(s.slices)) for s in found] == [("v.nii#0", 0, 4), ("v.nii#4", 4, 4)]
    assert not np.array_equal(read_sample(found[0]).pixels, read_sample(found[1]).pixels)


def test_a_dicom_series_is_a_volume(tmp_path: Path) -> None:
    for number in (2, 0, 1):
        dicom(tmp_path / f"{number}.dcm", 2.5 * number)
    samples = load_manifest(tmp_path).samples
    [whole] = volumes_of(samples)
    image = read_sample(whole)
    np.testing.assert_array_equal(image.pixels[0], np.stack([read_sample(s).pixels[0] for s in samples]))
    assert image.spacing_mm is None or image.spacing_mm[0] == 2.5
    assert whole.files == tuple(s.files[0] for s in samples)


def test_slices_of_a_volume_in_two_splits_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "v.nii", head(1))
    samples = load_manifest(tmp_path, identified=True).samples
    parts = [replace(s, split="train" if number else "test") for number, s in enumerate(samples)]
    with pytest.raises(DataError, match=r"slices of the volume v\.nii stand in the splits 'test' and 'train'"):
        volumes_of(parts)


def test_masks_of_single_slices_stay_theirs(tmp_path: Path) -> None:
    path = save(tmp_path / "v.nii", head(1))
    rows = [Sample("v", "v.nii", (path,), frame, mask=tmp_path / f"{frame}.png") for frame in (1, 2)]
    masks = [one.mask for one in volumes_of(rows)[0].slices]
    assert masks == [None, tmp_path / "1.png", tmp_path / "2.png", None]


def test_own_valid_masks_of_slices_decide_which_are_in_the_volume(tmp_path: Path) -> None:
    path = save(tmp_path / "v.nii", head(1))
    rows = [Sample("v", "v.nii", (path,), frame, valid=tmp_path / f"{frame}.png") for frame in (1, 2)]
    assert [(one.frame, one.valid) for one in volumes_of(rows)[0].slices] == [
        (frame, tmp_path / f"{frame}.png") for frame in (1, 2)
    ]


# --- reading ------------------------------------------------------------


def test_a_volume_is_its_slices_stacked(tmp_path: Path) -> None:
    path = save(tmp_path / "v.nii.gz", head(3), 4.0)
    image = read_volume([Slice((path,), frame) for frame in range(4)], 4.0, "v")
    np.testing.assert_array_equal(image.pixels, np.stack([read_nifti(path, f).pixels for f in range(4)], axis=1))
    assert image.spacing_mm == (4.0, 1.0, 1.0)
    assert image.pixels.dtype == np.int16


def test_a_slice_outside_of_the_valid_mask_is_no_fault_of_a_volume(tmp_path: Path) -> None:
    data = head(3).astype(np.float32)
    data[..., 0] = np.nan
    inside = np.ones(data.shape, np.uint8)
    inside[..., 0] = 0
    path, valid = save(tmp_path / "v.nii", data), save(tmp_path / "valid.nii", inside)
    image = read_volume([Slice((path,), frame, valid) for frame in range(4)], None, "v")
    assert image.valid is not None
    assert [bool(plane.any()) for plane in image.valid] == [False, True, True, True]
    assert np.isfinite(image.pixels).all()
    save(tmp_path / "valid.nii", 0 * inside)
    with pytest.raises(UnreadableImageError, match="v: no valid voxel"):
        read_volume([Slice((path,), frame, valid) for frame in range(1, 4)], None, "v")


def test_slices_of_other_sizes_are_no_volume(tmp_path: Path) -> None:
    one, other = save(tmp_path / "a.nii", head(1)), save(tmp_path / "b.nii", head(1, (30, 34, 4)))
    with pytest.raises(UnreadableImageError, match=r"slice 1 is 1 x 34 x 30, the first is 1 x 34 x 32"):
        read_volume([Slice((one,)), Slice((other,))], None, "v")


def test_a_huge_volume_is_refused_before_memory_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "v.nii", head(1))
    monkeypatch.setattr(np, "empty", None)  # who takes memory fails otherwise
    with pytest.raises(UnreadableImageError, match=r"v: declares 1 x 300000 x 34 x 32 samples: more than"):
        read_volume([Slice((path,))] * 300_000, None, "v")


def test_arrays_as_volumes() -> None:
    assert volume_from(np.zeros((5, 6, 7), ">i2")).pixels.shape == (1, 5, 6, 7)
    assert volume_from(np.zeros((2, 5, 6, 7), bool)).pixels.dtype == np.uint8
    for wrong, message in ((np.zeros((6, 7)), "2 axes"), (np.zeros((3, 3, 3), complex), "complex")):
        with pytest.raises(UnreadableImageError, match=message):
            volume_from(wrong)


# --- geometry ------------------------------------------------------------


def test_volumes_are_resampled_to_the_stated_spacing_and_back() -> None:
    volume = Image(np.random.default_rng(0).normal(size=(1, 10, 24, 30)), None, (3.0, 1.0, 1.0))
    config = GeometryConfig(spacing_mm=2.0, slice_spacing_mm=1.5)
    geometry = choose_geometry([(20, 12, 15)], config, 4)
    assert (geometry.factor, geometry.spacing_mm) == (1.0, (1.5, 2.0, 2.0))
    prepared = prepare(volume, geometry, 1)
    assert prepared.inner_shape == (20, 12, 15)
    assert prepared.pixels.shape == (1, 20, 12, 16)
    assert to_image_grid(prepared.pixels[0], prepared).shape == (10, 24, 30)


def test_one_anatomy_at_two_spacings_looks_alike_at_the_stated_one() -> None:
    """What matters for a threshold: after resampling the same place in mm has the same value."""

    def ball(slice_mm: float) -> Image:
        n = round(36 / slice_mm)
        z = (np.arange(n) - (n - 1) / 2) * slice_mm
        y = np.arange(36.0) - 17.5
        distance = np.sqrt(z[:, None, None] ** 2 + y[:, None] ** 2 + y**2)
        return Image(np.clip(14 - distance, 0, 6)[np.newaxis], None, (slice_mm, 1.0, 1.0))

    geometry = choose_geometry([(18, 18, 18)], GeometryConfig(spacing_mm=2.0, min_side_px=16), 2)
    one, other = (prepare(ball(mm), geometry, 1).pixels for mm in (1.0, 3.0))
    assert one.shape == other.shape == (1, 18, 18, 18)
    assert np.abs(one - other).mean() < 0.15  # of a range of 6


def test_a_stated_spacing_needs_images_that_state_theirs() -> None:
    geometry = Geometry(1.0, 4, spacing_mm=(1.0, 1.0))
    assert prepare(Image(np.zeros((1, 20, 20)), None, (2.0, 0.5)), geometry, 1).inner_shape == (40, 10)
    with pytest.raises(IncompatibleImageError, match=r"a\.png states no spacing along 2 axes"):
        prepare(Image(np.zeros((1, 20, 20)), source="a.png"), geometry, 1)


def test_a_spacing_that_blows_a_volume_up_is_refused_before_memory_is_taken() -> None:
    image = Image(np.zeros((1, 20, 100, 100), np.int16), None, (5.0, 1.0, 1.0), "v")
    with pytest.raises(IncompatibleImageError, match="v would have 1000 x 1000 x 1000 px at working scale"):
        prepare(image, Geometry(1.0, 4, spacing_mm=(0.1, 0.1, 0.1)), 1)


def test_slice_spacing_alone_leaves_the_pixels_of_slices() -> None:
    geometry = choose_geometry([(10, 20, 24)], GeometryConfig(slice_spacing_mm=3.0), 2)
    assert geometry.spacing_mm == (3.0, 0.0, 0.0)
    assert prepare(Image(np.zeros((1, 30, 20, 24)), None, (1.0, 0.7, 0.7)), geometry, 1).inner_shape == (10, 20, 24)
    assert choose_geometry([(80, 90)], GeometryConfig(slice_spacing_mm=3.0), 2).spacing_mm == ()


def test_thin_stacks_are_not_enlarged() -> None:
    config = load_config("volume").geometry
    assert choose_geometry([(5, 200, 220)], config, 8).factor == 1.0
    assert choose_geometry([(300, 512, 512)], config, 8).factor == 0.5


@pytest.mark.parametrize("n_axes", [2, 3])
def test_the_box_of_valid_pixels_by_brute_force(n_axes: int) -> None:
    rng = np.random.default_rng(n_axes)
    for n_valid in (0, 1, 2, 5, 2000):
        valid = np.zeros((6, 7, 8)[:n_axes], bool)
        for _ in range(n_valid):
            valid[tuple(rng.integers(valid.shape))] = True
        found = np.argwhere(valid) if valid.any() else np.argwhere(~valid)
        want = tuple(slice(int(a), int(b) + 1) for a, b in zip(found.min(axis=0), found.max(axis=0), strict=True))
        assert valid_box(valid) == want


def mapping_nothing(detector: Detector, spacing_mm: tuple[float, ...], monkeypatch: pytest.MonkeyPatch) -> Detector:
    """A detector of volumes of any size, at this spacing, whose map is the image itself."""
    geometry = replace(detector.geometry, spacing_mm=spacing_mm, smallest_px=(), largest_px=())
    made_of = (detector.ensemble, detector.config, geometry, detector.provenance, detector.device, detector.baseline)
    monkeypatch.setattr(detector.ensemble, "forward", lambda raw, valid, limits: raw.float())
    return Detector(*made_of, *detector.calibrated)


@pytest.mark.parametrize("order", ["RAS", "LAS", "PIR"])
@pytest.mark.parametrize("is_oblique", [False, True])
def test_corner_markers_come_back_to_their_corners(
    order: str, is_oblique: bool, detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read, resampled, mapped (the map is the image), brought back, written: to nibabel alone nothing has moved."""
    data = np.random.default_rng(0).integers(0, 50, SHAPE).astype(np.int16)
    corners = [tuple(np.where(bits, np.array(SHAPE) - 1, 0)) for bits in np.ndindex(2, 2, 2)]
    for number, corner in enumerate(corners):
        data[corner] = 1000 + 100 * number
    turn = np.eye(4)
    if is_oblique:
        turn[:2, :2] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
    image = nibabel.Nifti1Image(data, turn @ np.diag([1, 1, 2, 1]))
    turned = image.as_reoriented(ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(order)))
    nibabel.save(turned, tmp_path / "v.nii.gz")
    for spacing_mm in ((), (2.0, 1.0, 1.0), (1.5, 1.25, 1.25)):
        other = mapping_nothing(detector, spacing_mm, monkeypatch)
        run = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        score(other, manifest_from_paths([tmp_path / "v.nii.gz"]), run, RunOptions(maps=True, heatmaps="none"))
        [file] = (run / "maps").iterdir()
        found = nibabel.load(file)
        assert found.shape == turned.shape
        np.testing.assert_allclose(found.affine, turned.affine, atol=1e-6)
        values = nibabel.as_closest_canonical(found).get_fdata()
        source = nibabel.as_closest_canonical(turned).get_fdata()
        if spacing_mm in ((), (2.0, 1.0, 1.0)):
            np.testing.assert_array_equal(values, source)
        for corner in corners:
            octant = tuple(
                slice(0, n // 2) if c == 0 else slice(n // 2, None) for c, n in zip(corner, SHAPE, strict=True)
            )
            place = np.unravel_index(values[octant].argmax(), values[octant].shape)
            want = np.unravel_index(source[octant].argmax(), source[octant].shape)
            assert np.abs(np.subtract(place, want)).max() <= (0 if len(np.unique(spacing_mm)) != 2 else 1)


@pytest.mark.realdata
@pytest.mark.parametrize(
    "name", ["anatomical.nii", "someones_anatomy.nii.gz", "example_nifti2.nii.gz", "example4d.nii.gz"]
)
def test_real_volumes_come_back_on_their_own_grid(
    name: str, detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their own affine, shape and order, with a marker in every corner of every time."""
    source = nibabel.load(real_folder("nifti_samples") / name)
    data = np.asarray(source.dataobj, np.float32)
    for number, bits in enumerate(np.ndindex(2, 2, 2)):
        data[tuple(-1 if bit else 0 for bit in bits)] = data.max() + 100 + number
    nibabel.save(type(source)(data, source.affine, source.header), tmp_path / name)
    manifest = manifest_from_paths([tmp_path / name])
    options = RunOptions(maps=True, heatmaps="none")
    score(mapping_nothing(detector, (), monkeypatch), manifest, tmp_path / "run", options)
    [file] = (tmp_path / "run/maps").iterdir()
    found, marked = nibabel.load(file), nibabel.load(tmp_path / name)
    assert found.shape == source.shape
    np.testing.assert_allclose(found.affine, source.affine, atol=1e-4)
    np.testing.assert_allclose(found.get_fdata(), marked.get_fdata(), rtol=1e-5, atol=1e-2)
    assert len((tmp_path / "run/scores.csv").read_text().splitlines()) == 1 + (source.shape[3] if data.ndim == 4 else 1)


# --- mapping ------------------------------------------------------------


def test_only_long_axes_are_cut_into_windows() -> None:
    seen = []

    def blur(raw: torch.Tensor, valid: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(raw.shape[2:]))
        return torch.nn.functional.avg_pool3d(raw, 5, 1, 2, count_include_pad=False)

    raw, nothing = torch.rand(1, 1, 12, 70, 90), torch.ones(1)
    valid = torch.ones(raw.shape, dtype=torch.bool)
    whole = blur(raw, valid, nothing)
    seen.clear()
    found = map_in_windows(blur, raw, valid, nothing, window_px=32, margin_px=4)
    torch.testing.assert_close(found, whole)
    assert {shape[0] for shape in seen} == {12}
    assert len(seen) == 3 * 4, "cores of 24"


def test_percentiles_of_a_large_volume_are_those_of_some_of_its_voxels(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).normal(100, 20, (1, 40, 60, 60))
    valid = np.zeros(pixels.shape[1:], bool)
    valid[:, 10:50] = True
    exact = intensity_limits(pixels, valid, IntensityConfig())
    monkeypatch.setattr("anomaly_ae.scoring.MAX_VALUES", 30_000)
    some = intensity_limits(pixels, valid, IntensityConfig())
    assert not np.array_equal(some, exact)
    np.testing.assert_allclose(some, exact, atol=6)
    flat = pixels[:, 0]
    np.testing.assert_array_equal(
        intensity_limits(flat, None, IntensityConfig()), [np.percentile(flat, (0.1, 99.9))]
    )  # a large flat image keeps every pixel: its scores stay what they are


def test_a_volume_times_3_plus_100_scores_the_same(detector: Detector, tmp_path: Path) -> None:
    data = head(20, SHAPE)
    scores = [detector.score(save(tmp_path / f"{k}.nii.gz", k * data + 100 * (k - 1), 2.0)).score for k in (1, 3)]
    assert scores[1] == pytest.approx(scores[0], rel=1e-4)


def test_arrays_and_files_score_the_same(detector: Detector, tmp_path: Path) -> None:
    path = save(tmp_path / "v.nii.gz", head(21, SHAPE), 2.0)
    [sample] = volumes_of(manifest_from_paths([path]).samples)
    image = read_sample(sample)
    of_file, of_array = detector.score(path), detector.score(np.array(image.pixels[0]))
    assert of_array.score == of_file.score
    assert of_file.anomaly_map is not None
    assert of_file.anomaly_map.shape == (10, 26, 24)


def test_what_is_no_volume_fails_by_itself(detector: Detector, tmp_path: Path) -> None:
    from PIL import Image as Picture

    save(tmp_path / "v.nii.gz", head(21, SHAPE), 2.0)
    Picture.fromarray(np.zeros((26, 24), np.uint8)).save(tmp_path / "flat.png")
    (tmp_path / "broken.nii").write_bytes(b"nothing")
    samples = volumes_of(manifest_from_paths([tmp_path], identified=True).samples)
    found = {Path(r.path).name: r for r in detector.score_many(samples)}
    assert isinstance(found["v.nii.gz"], Score)
    flat, broken = found["flat.png"], found["broken.nii"]
    assert isinstance(flat, Failure)
    assert "has 2 axes: the model was trained on volumes" in flat.reason
    assert isinstance(broken, Failure)


def test_regions_of_a_volume_are_in_voxels_and_cubic_mm(detector: Detector, folder: Path) -> None:
    scores, thresholds = detector.calibrated
    peak = detector.score(folder / "test/lesion/0.nii.gz").score
    low = replace(thresholds, pixel=replace(thresholds.pixel, value=peak / 2))
    [region, *_] = detector.with_thresholds(scores, low).score(folder / "test/lesion/0.nii.gz").regions
    assert region.area_mm2 == pytest.approx(2.0 * region.area_px), "voxels of 1 x 1 x 2 mm"
    assert len(region.box_px) == 6


def test_fit_picks_the_preset_for_volumes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from anomaly_ae import fitting

    seen = []
    monkeypatch.setattr(fitting, "untrained", lambda config, *_: seen.append(config) or (_ for _ in ()).throw(EOFError))
    with pytest.raises(EOFError):
        fit(load_manifest(folder), overrides=["model.spatial_dims=3", "training.steps=7"])
    assert (seen[0].preset, seen[0].training.steps, seen[0].model.spatial_dims) == ("volume", 7, 3)


def test_all_volumes_of_a_calibration_count(folder: Path, tmp_path: Path) -> None:
    fit(load_manifest(folder), load_config("smoke", SETTINGS), device="cpu").save(tmp_path / "m.safetensors")
    for number in range(4):
        save(tmp_path / f"more/{number}.nii.gz", head(50 + number, SHAPE), 2.0)
    said = done("calibrate", tmp_path / "m.safetensors", tmp_path / "more")
    assert "could not be used" not in said


def test_the_model_file_keeps_the_stated_spacing(folder: Path, tmp_path: Path) -> None:
    config = load_config("smoke", [*SETTINGS, "geometry.spacing_mm=1.5", "geometry.slice_spacing_mm=2"])
    model = fit(load_manifest(folder), config, device="cpu")
    assert model.geometry.spacing_mm == (2.0, 1.5, 1.5)
    assert model.provenance["working_scale"].startswith("10 x 17 x 16 px of 2 x 1.5 x 1.5 mm")
    model.save(tmp_path / "m.safetensors")
    again = Detector.load(tmp_path / "m.safetensors", "cpu")
    assert again.geometry == model.geometry
    path = folder / "test/good/0.nii.gz"
    assert again.score(path).score == model.score(path).score
    with pytest.raises(IncompatibleImageError, match="states no spacing along 3 axes"):
        again.score(head(1, SHAPE).transpose(2, 1, 0))


def test_objects_for_the_archive_are_made_of_every_slice(detector: Detector, folder: Path) -> None:
    class Writer:
        added: list[tuple[int, int, tuple[int, ...], tuple[int, ...]]] = []  # noqa: RUF012

        def add(self, number: int, name: str, path: Path, frame: int, picture: np.ndarray, inside: np.ndarray) -> None:
            self.added.append((number, frame, picture.shape, inside.shape))

    [sample] = volumes_of(manifest_from_paths([folder / "test/good/0.nii.gz"]).samples)
    keep_dicom(detector, sample, detector.score(sample), read_sample(sample), 3, Writer())  # type: ignore[arg-type]
    assert Writer.added == [(30_001 + frame, frame, (26, 24, 3), (26, 24)) for frame in range(10)]


# --- pictures ------------------------------------------------------------


def test_three_planes_go_through_the_peak() -> None:
    values = np.zeros((4, 5, 6), np.float32)
    values[1, 2, 3] = 9
    values[3, 0, 0] = 99
    valid = np.ones(values.shape, bool)
    valid[3] = False
    planes = Planes.through_peak(values, valid, (2.0, 1.0, 1.0))
    assert planes.voxel == (1, 2, 3)
    volume = np.arange(values.size).reshape(1, *values.shape)
    picture = planes.of(volume)
    assert picture.shape == (1, 8, 6 + 2 + 6 + 2 + 5), "four slices of 2 mm are 8 px high"
    np.testing.assert_array_equal(picture[0, :5, :6], volume[0, 1])
    np.testing.assert_array_equal(picture[0, ::2, 8:14], volume[0, ::-1, 2])
    np.testing.assert_array_equal(picture[0, 1::2, 16:], volume[0, ::-1, :, 3])
    assert planes.inside.sum() == 5 * 6 + 8 * 6 + 8 * 5
    thin = Planes.through_peak(values, None, (0.4, 1.0, 1.0))  # its peak lies in the last slice, which no line shows
    assert thin.of(volume).shape[1:] == thin.inside.shape
    assert thin.inside.sum() == 5 * 6 + 2 * 6 + 2 * 5


# --- commands ------------------------------------------------------------


@pytest.mark.slow
def test_from_files_to_figures_and_maps(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = [argument for setting in SETTINGS for argument in ("--set", setting)]
    done("fit", str(folder), "--preset", "smoke", *settings, "--out", "m.safetensors")
    done("evaluate", "m.safetensors", str(folder), "--out", "run", "--maps", "--heatmaps", "all")
    done("score", "m.safetensors", str(folder / "test"), "--out", "scores")
    rows = [json.loads(line) for line in (tmp_path / "run/scores.jsonl").read_text().splitlines()]
    assert sorted(row["label"] for row in rows) == ["anomalous"] * 2 + ["normal"] * 2
    assert {row["mask_px"] for row in rows} == {None, int(lesion().sum())}
    assert {row["properties"]["image size"] for row in rows} == {float(np.prod(SHAPE))}
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["pixel"]["average_precision"]["n_anomalous"] == 2 * lesion().sum()
    assert metrics["image"]["roc_auc"]["value"] is not None
    with (tmp_path / "run/pixels.csv").open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == 2
    assert len(list((tmp_path / "run/heatmaps").iterdir())) == 4
    for file in (tmp_path / "run/maps").iterdir():
        found = nibabel.load(file)
        assert (found.shape, found.get_data_dtype()) == (SHAPE, np.float32)
        np.testing.assert_allclose(found.affine, np.diag([1, 1, 2, 1]))
    assert (tmp_path / "scores/report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_how_to_volumes_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_volumes("heads", 10, 2, 2, side_mm=24, spacing_mm=(1, 1, 1.5))
    assert run_document(HOW_TO / "volumes.md") == (5, 1)
    assert len(list((tmp_path / "evaluation/heatmaps").iterdir())) == 4


@pytest.mark.parametrize("command", [audit, learning_curve])
def test_studies_that_plant_flat_defects_refuse_volumes(command: Callable[..., object], folder: Path) -> None:
    with pytest.raises(UsageError, match=r"with model\.spatial_dims=3"):
        command(load_manifest(folder), load_config("volume"))


def test_statistics_of_regions_some_slices_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=(9, 12, 11)).astype(np.float32)
    at_once = find_regions(values, 1.0, spacing_mm=(2.0, 1.0, 1.0))
    monkeypatch.setattr("anomaly_ae.regions.MAX_AT_ONCE", 300)
    in_parts = find_regions(values, 1.0, spacing_mm=(2.0, 1.0, 1.0))
    assert len(at_once) > 3
    for one, other in zip(at_once, in_parts, strict=True):
        assert (one.area_px, one.box_px, one.peak) == (other.area_px, other.box_px, other.peak)
        np.testing.assert_allclose([one.mean, *one.centroid_px], [other.mean, *other.centroid_px])


def test_pixel_figures_of_a_large_map_are_counted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4, 20, 20)).astype(np.float32)
    mask = np.zeros(values.shape, bool)
    mask[1:3, 5:9, 5:9] = True
    maps = [PixelMap(values + 2 * mask.astype(np.float32), mask)]
    at_once = pixel_metrics(lambda: maps)
    monkeypatch.setattr("anomaly_ae.metrics.pixels._MAX_AT_ONCE", 100)
    assert pixel_metrics(lambda: maps) == at_once
