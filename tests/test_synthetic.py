import csv
import hashlib
from collections import defaultdict

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation, gaussian_filter, laplace
from scipy.spatial.distance import pdist

from anomaly_ae.errors import DataError, OutputError, UsageError
from anomaly_ae.synthetic import (
    DEFECT_TYPES,
    GRADES,
    KINDS,
    LOT_SIZE,
    MIN_CHANGE,
    make_dataset,
    make_noise_dataset,
    make_part,
    make_surface,
    plant_defect,
)
from anomaly_ae.synthetic import dataset as dataset_module
from anomaly_ae.synthetic.dataset import _draw, _plans
from anomaly_ae.synthetic.defects import CLOSE_PX
from anomaly_ae.synthetic.scenes import (
    READ_NOISE,
    SHOT_NOISE,
    add_sensor_noise,
    draw_lighting,
    draw_scene,
)

SMALL = {"n_train": 12, "n_test_normal": 11, "n_per_defect": 6, "size_px": 48}


def read_png(path):
    with Image.open(path) as image:
        return np.array(image)


def digests(root):
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def roc_auc(normal, anomalous):
    """Share of pairs in the right order, ties count half: the definition, by brute force."""
    normal, anomalous = np.asarray(normal)[:, None], np.asarray(anomalous)[None, :]
    return np.mean((anomalous > normal) + 0.5 * (anomalous == normal))


@pytest.fixture(scope="module", params=KINDS)
def small(request, tmp_path_factory):
    return request.param, make_dataset(tmp_path_factory.mktemp(request.param) / "set", request.param, **SMALL)


def textured(size_px=96, seed=0):
    return make_surface(np.random.default_rng(seed), size_px)


# Normal images.


@pytest.mark.parametrize("make", [make_part, make_surface])
def test_normal_images_are_float32_in_range_and_follow_their_generator(make):
    first, again, other = (make(np.random.default_rng(seed), 64) for seed in (3, 3, 4))
    assert first.shape == (64, 64)
    assert first.dtype == np.float32
    assert first.min() >= 0
    assert first.max() <= 1
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("size_px", [31, 4097, 0, -1])
def test_normal_images_refuse_absurd_sizes(size_px):
    with pytest.raises(UsageError, match=str(size_px)):
        make_part(np.random.default_rng(0), size_px)


def test_parts_stand_in_one_place_and_surfaces_do_not():
    def likeness(make):  # mean correlation with the average of the others
        images = [gaussian_filter(make(np.random.default_rng(seed), 64), 1).ravel() for seed in range(12)]
        return np.mean([np.corrcoef(images[i], np.mean(images[:i] + images[i + 1 :], axis=0))[0, 1] for i in range(12)])

    assert likeness(make_part) > 0.9
    assert abs(likeness(make_surface)) < 0.3


def test_part_is_found_where_its_valid_mask_says():
    scene = draw_scene("part", np.random.default_rng(1), 128, draw_lighting(np.random.default_rng(2)))
    assert scene.image[scene.valid].mean() > scene.image[~scene.valid].mean() + 0.2
    assert not scene.valid[64, 64]  # the centre bore
    assert 0.35 < scene.valid.mean() < 0.55  # pi/4 * (0.84² - 0.19² - 6 * 0.082²) = 0.49


def test_sensor_noise_has_the_stated_deviation():
    grey = np.full((300, 300), 0.5, dtype=np.float32)
    measured = add_sensor_noise(grey, np.random.default_rng(0)).std()
    expected = np.sqrt(READ_NOISE**2 + SHOT_NOISE**2 * 0.5)
    assert measured == pytest.approx(expected, rel=4 / np.sqrt(2 * grey.size))  # 4 standard errors


def test_noise_dataset_is_independent_noise():
    images = make_noise_dataset(40, 16, np.random.default_rng(0))
    assert images.shape == (40, 1, 16, 16)
    assert images.dtype == np.float32
    standard_error = 0.1 / np.sqrt(images.size)
    assert images.mean() == pytest.approx(0.5, abs=5 * standard_error)
    neighbours = np.corrcoef(images[..., 1:].ravel(), images[..., :-1].ravel())[0, 1]
    assert abs(neighbours) < 5 / np.sqrt(images.size)
    with pytest.raises(UsageError):
        make_noise_dataset(-1, 16, np.random.default_rng(0))


# Planting defects.


@pytest.mark.parametrize("kind", DEFECT_TYPES)
@pytest.mark.parametrize("channels", [None, 3])
def test_mask_is_exact(kind, channels):
    image = textured()
    if channels:
        image = np.stack([image * gain for gain in (1.0, 0.8, 0.6)])
    before = image.copy()
    for seed in range(8):
        damaged, mask = plant_defect(image, kind, np.random.default_rng(seed), 16, 0.5)
        change = np.abs(damaged - image).reshape(-1, *mask.shape).max(axis=0)  # (H, W)
        changed = change > MIN_CHANGE
        assert damaged.shape == image.shape
        assert damaged.dtype == np.float32
        assert mask.any()
        assert np.all(change[~mask] == 0)
        assert np.all(mask[changed])
        assert not np.any(mask & ~binary_dilation(changed, iterations=CLOSE_PX))
        assert damaged.min() >= 0
        assert damaged.max() <= 1
    assert np.array_equal(image, before)


@pytest.mark.parametrize("kind", DEFECT_TYPES)
def test_size_bounds_the_mask_and_grows_it(kind):
    image, areas = textured(128), {8: [], 24: []}
    for size_px, found in areas.items():
        for seed in range(12):
            _, mask = plant_defect(image, kind, np.random.default_rng(seed), size_px, 0.6)
            assert pdist(np.argwhere(mask)).max() <= size_px + 1  # between pixel centres
            found.append(mask.sum())
    assert np.median(areas[24]) > 1.5 * np.median(areas[8])


@pytest.mark.parametrize("kind", ["scratch", "spot", "stain", "dent"])
def test_contrast_is_the_largest_change_of_grey(kind):
    even = np.full((96, 96), 0.5)
    for contrast in (0.05, 0.2, 0.45):
        changes = []
        for seed in range(20):
            damaged, _ = plant_defect(even, kind, np.random.default_rng(seed), 20, contrast)
            changes.append(np.abs(damaged - 0.5).max())
        assert max(changes) <= contrast + 1e-6
        assert np.median(changes) > 0.9 * contrast


@pytest.mark.parametrize("kind", ["burr", "texture_break", "blur"])
def test_contrast_grades_the_replaced_kinds(kind):
    image = textured()

    def change(contrast):
        results = [plant_defect(image, kind, np.random.default_rng(seed), 18, contrast)[0] for seed in range(6)]
        return np.mean([np.abs(result - image).sum() for result in results])

    weak, middle, strong = change(0.2), change(0.5), change(1.0)
    assert 1.5 * weak < middle < strong / 1.2


@pytest.mark.parametrize("grey", [0.02, 0.98])
def test_spot_stays_visible_near_black_and_white(grey):
    even = np.full((64, 64), grey)
    for seed in range(10):
        damaged, _ = plant_defect(even, "spot", np.random.default_rng(seed), 8, 0.3)
        assert np.abs(damaged - grey).max() == pytest.approx(0.3, abs=1e-6)


def test_texture_break_keeps_the_mean_grey():
    image = textured(128)
    for seed in range(8):
        damaged, mask = plant_defect(image, "texture_break", np.random.default_rng(seed), 30, 1.0)
        assert damaged[mask].mean() == pytest.approx(image[mask].mean(), abs=0.03)


@pytest.mark.parametrize("kind", DEFECT_TYPES)
def test_defects_never_leave_the_valid_mask(kind):
    image, valid = textured(), np.zeros((96, 96), dtype=bool)
    valid[30:52, 60:90] = True
    for seed in range(10):
        damaged, mask = plant_defect(image, kind, np.random.default_rng(seed), 20, 0.6, valid)
        assert not np.any(mask & ~valid)
        assert np.array_equal(damaged[~valid], image[~valid])


def test_large_images_are_changed_only_near_the_defect_and_alike():
    """The defect is computed in a window; an image tiled far away must not alter it."""
    valid = np.zeros((96, 96), dtype=bool)
    valid[40:60, 40:60] = True
    image = textured()
    wide, wide_valid = np.pad(image, ((0, 0), (0, 400))), np.pad(valid, ((0, 0), (0, 400)))
    for kind in DEFECT_TYPES:
        small_result, small_mask = plant_defect(image, kind, np.random.default_rng(5), 10, 0.5, valid)
        wide_result, wide_mask = plant_defect(wide, kind, np.random.default_rng(5), 10, 0.5, wide_valid)
        assert np.array_equal(wide_mask[:, :96], small_mask)
        assert np.array_equal(wide_result[:, :96], small_result)


@pytest.mark.parametrize(
    ("kind", "size_px", "contrast"),
    [
        ("crack", 8, 0.3),
        ("spot", 2.9, 0.3),
        ("spot", 65, 0.3),
        ("spot", 8, 0.0039),
        ("spot", 8, 1.01),
        ("spot", 8, np.nan),
    ],
)
def test_impossible_grades_are_refused(kind, size_px, contrast):
    with pytest.raises(UsageError):
        plant_defect(np.full((64, 70), 0.5), kind, np.random.default_rng(0), size_px, contrast)


@pytest.mark.parametrize(
    "image",
    [
        np.full((64, 64), 128, dtype=np.uint8),
        np.full((64, 64), 1.5),
        np.full((64, 64), -0.1),
        np.full((64, 64), np.nan),
        np.zeros(64),
        np.zeros((0, 64)),
    ],
    ids=["integer", "above", "below", "nan", "one-dimensional", "empty"],
)
def test_unsuitable_images_are_refused(image):
    with pytest.raises(DataError):
        plant_defect(image, "spot", np.random.default_rng(0), 8, 0.3)


@pytest.mark.parametrize(
    "valid", [np.zeros((64, 64), dtype=bool), np.ones((32, 64), dtype=bool)], ids=["empty", "shape"]
)
def test_unsuitable_valid_masks_are_refused(valid):
    with pytest.raises(DataError, match="valid"):
        plant_defect(np.full((64, 64), 0.5), "spot", np.random.default_rng(0), 8, 0.3, valid)


def test_a_defect_without_a_trace_is_an_error_not_an_empty_mask():
    with pytest.raises(DataError, match="no trace"):
        plant_defect(np.full((64, 64), 0.5), "blur", np.random.default_rng(0), 20, 1.0)


# Data sets.


def test_layout(small):
    kind, root = small
    assert {path.name for path in root.iterdir()} == {"train", "test", "ground_truth", "groups.tsv", "defects.csv"}
    assert {path.name for path in (root / "test").iterdir()} == {"good", *GRADES[kind]}
    assert len(list((root / "train" / "good").iterdir())) == SMALL["n_train"]
    assert len(list((root / "test" / "good").iterdir())) == SMALL["n_test_normal"]
    for defect in GRADES[kind]:
        stems = sorted(path.stem for path in (root / "test" / defect).iterdir())
        masks = sorted(path.stem for path in (root / "ground_truth" / defect).iterdir())
        assert len(stems) == SMALL["n_per_defect"]
        assert masks == [f"{stem}_mask" for stem in stems]


def test_pngs_are_8_bit_grey_and_masks_are_black_and_white(small):
    _, root = small
    for path in root.rglob("*.png"):
        pixels = read_png(path)
        assert pixels.shape == (48, 48)
        assert pixels.dtype == np.uint8
        if "ground_truth" in path.parts:
            assert set(np.unique(pixels)) == {0, 255}


def test_groups_are_whole_lots_and_never_cross_the_split(small):
    _, root = small
    lines = (root / "groups.tsv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "path\tgroup"
    rows = [line.split("\t") for line in lines[1:]]
    images = {
        path.relative_to(root).as_posix() for folder in ("train", "test") for path in (root / folder).rglob("*.png")
    }
    assert {path for path, _ in rows} == images
    assert len(rows) == len(images)
    splits, normals = defaultdict(set), defaultdict(int)
    for path, group in rows:
        splits[group].add(path.split("/")[0])
        normals[group] += "/good/" in path
    assert all(len(found) == 1 for found in splits.values())
    assert max(normals.values()) == LOT_SIZE


def test_grades_are_written_for_every_defect_image_and_vary(small):
    kind, root = small
    with (root / "defects.csv").open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert list(rows[0]) == ["path", "size_px", "contrast"]
    assert {row["path"] for row in rows} == {
        path.relative_to(root).as_posix() for defect in GRADES[kind] for path in (root / "test" / defect).iterdir()
    }
    for defect, (sizes, contrasts) in GRADES[kind].items():
        grades = [row for row in rows if f"/{defect}/" in row["path"]]
        assert {float(row["size_px"]) for row in grades} == {max(3, size * 48 / 128) for size in sizes}
        assert {float(row["contrast"]) for row in grades} == set(contrasts)


@pytest.mark.parametrize("kind", KINDS)
def test_twelve_images_show_every_grade_once(kind):
    plans = [plan for plan in _plans(kind, 0, 0, 12, 128) if plan.defect]
    for defect, (sizes, contrasts) in GRADES[kind].items():
        grades = {(plan.size_px, plan.contrast) for plan in plans if plan.defect == defect}
        assert grades == {(size, contrast) for size in sizes for contrast in contrasts}


def test_same_seed_same_bytes_other_seed_other_images(tmp_path):
    sizes = {"n_train": 2, "n_test_normal": 2, "n_per_defect": 1, "size_px": 40}
    first = digests(make_dataset(tmp_path / "a", **sizes, seed=7))
    assert digests(make_dataset(tmp_path / "b", **sizes, seed=7)) == first
    other = digests(make_dataset(tmp_path / "c", **sizes, seed=8))
    assert not [path for path in first if path.endswith("0.png") and other[path] == first[path]]


def test_a_larger_set_contains_the_smaller_one(tmp_path, small):
    kind, root = small
    larger = {name: n + 2 for name, n in SMALL.items() if name != "size_px"}
    grown = digests(make_dataset(tmp_path / "grown", kind, **larger, size_px=48))
    images = {path: digest for path, digest in digests(root).items() if path.endswith(".png")}
    assert {path: grown[path] for path in images} == images


def test_no_two_images_are_alike(small):
    _, root = small
    images = [digest for path, digest in digests(root).items() if path.startswith(("train", "test"))]
    assert len(set(images)) == len(images)


@pytest.mark.parametrize("kind", KINDS)
def test_defect_images_equal_their_undamaged_twin_outside_the_mask(kind, monkeypatch):
    """The twin is the same image drawn without planting: same scene, same noise."""
    plans = [plan for plan in _plans(kind, 0, 0, 2, 64) if plan.defect]
    damaged = [_draw(plan, kind, 64, 0) for plan in plans]
    monkeypatch.setattr(dataset_module, "plant_defect", lambda image, *_: (image, None))
    for plan, (image, mask) in zip(plans, damaged, strict=True):
        twin, _ = _draw(plan, kind, 64, 0)
        assert np.array_equal(image[~mask], twin[~mask])
        assert not np.array_equal(image[mask], twin[mask])


def test_16_bit_files_hold_the_12_bit_range(tmp_path):
    sizes = {"n_train": 2, "n_test_normal": 1, "n_per_defect": 1, "size_px": 64, "seed": 1}
    deep, shallow = make_dataset(tmp_path / "16", **sizes, bits=16), make_dataset(tmp_path / "8", **sizes)
    fine, coarse = (read_png(root / "train" / "good" / "000.png") for root in (deep, shallow))
    assert fine.dtype == np.uint16
    assert 2048 < fine.max() <= 4095
    assert len(np.unique(fine)) > 256
    # Same image in both files: each is rounded once, by at most half a step.
    assert np.abs(fine / 4095 - coarse / 255).max() <= 0.5 / 4095 + 0.5 / 255 + 1e-9


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputError, match="not empty"):
        make_dataset(tmp_path, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_file_in_place_of_the_folder_is_an_output_error(tmp_path):
    (tmp_path / "set").write_text("", encoding="utf-8")
    with pytest.raises(OutputError):
        make_dataset(tmp_path / "set", **SMALL)


def test_a_failure_leaves_no_half_data_set(tmp_path, monkeypatch):
    def disk_full(path, pixels):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dataset_module, "_write_png", disk_full)
    with pytest.raises(OutputError, match="No space left"):
        make_dataset(tmp_path / "set", **SMALL)
    assert list((tmp_path / "set").iterdir()) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "wafer"},
        {"n_train": -1},
        {"n_train": 0, "n_test_normal": 0, "n_per_defect": 0},
        {"size_px": 16},
        {"seed": -1},
        {"bits": 12},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_wrong_arguments_are_refused_before_the_disk_is_touched(tmp_path, wrong):
    with pytest.raises(UsageError):
        make_dataset(tmp_path / "set", **{**SMALL, **wrong})
    assert not (tmp_path / "set").exists()


# Honesty: no shortcut, and an end of visibility.


@pytest.fixture(scope="module", params=KINDS)
def graded(request):
    """Normals and defect images drawn in memory. (n, H, W) each."""
    kind = request.param
    plans = list(_plans(kind, 60, 72, 24, 64))
    images = np.stack([_draw(plan, kind, 64, 3)[0] for plan in plans])
    return plans, images


@pytest.mark.parametrize(
    "shortcut",
    [np.mean, np.std, lambda image: laplace(image).var()],
    ids=["mean", "deviation", "sharpness"],
)
def test_no_figure_of_the_whole_image_separates_the_classes(graded, shortcut):
    plans, images = graded
    values = np.array([shortcut(image) for image in images])
    normal = [value for plan, value in zip(plans, values, strict=True) if plan.path.startswith("test/good")]
    anomalous = [value for plan, value in zip(plans, values, strict=True) if plan.defect]
    assert 0.35 <= roc_auc(normal, anomalous) <= 0.65


def test_a_linear_detector_sees_strong_grades_and_not_weak_ones(graded):
    plans, images = graded
    flat = images.reshape(len(images), 32, 2, 32, 2).mean(axis=(2, 4)).reshape(len(images), -1)  # (n, 1024)
    train = np.array([plan.path.startswith("train") for plan in plans])
    centre = flat[train].mean(axis=0)
    components = np.linalg.svd(flat[train] - centre, full_matrices=False)[2][:30]  # (30, 1024)
    centred = flat - centre
    residual = (centred - centred @ components.T @ components).reshape(-1, 32, 32)
    scores = np.abs(gaussian_filter(residual, (0, 1, 1))).max(axis=(1, 2))
    normal = [score for plan, score in zip(plans, scores, strict=True) if plan.path.startswith("test/good")]

    def of_level(*levels):
        return [s for plan, s in zip(plans, scores, strict=True) if plan.defect and plan.number % 4 in levels]

    assert roc_auc(normal, of_level(3)) > roc_auc(normal, of_level(0)) + 0.1
    assert roc_auc(normal, of_level(0)) < 0.7
    assert 0.5 < roc_auc(normal, of_level(0, 1, 2, 3)) < 0.9
