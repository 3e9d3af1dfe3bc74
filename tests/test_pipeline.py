"""The whole way in process, on embedded images: promises that must hold, and figures that must not be too good."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture
from sklearn.metrics import roc_auc_score

from anomaly_ae import residuals, training
from anomaly_ae.calibration import calibration_scores, thresholds_from
from anomaly_ae.config import load_config
from anomaly_ae.detector import Detector
from anomaly_ae.fitting import calibrate, fit
from anomaly_ae.manifest import Manifest, load_manifest
from anomaly_ae.readers import image_from
from anomaly_ae.records import PixelArray, Sample, Score
from anomaly_ae.synthetic import make_dataset, make_noise_dataset, make_surface, plant_defect

SIDE_PX = 64


def values_of(detector: Detector, images: Sequence[object]) -> np.ndarray:
    results = list(detector.score_many(images))
    assert all(isinstance(r, Score) for r in results)
    return np.array([r.score for r in results if isinstance(r, Score)])


# --- the promise, on noise: images that are exchangeable by construction ---

N_CALIBRATION = 40
ASKED = "0.1"
"""Of 41 ranks 4 lie above the threshold: the rate is 4 / 41 = 0.098 on average, with a deviation of 0.045."""


def noise_rows(folder: Path, seed: int, **counts: int) -> Manifest:
    """Noise images of 32 px with the given number of rows per split, every one its own group."""
    folder.mkdir()
    images = make_noise_dataset(sum(counts.values()), 32, np.random.default_rng(seed))
    splits = [split for split, n in counts.items() for _ in range(n)]
    samples = []
    for number, (pixels, split) in enumerate(zip(images, splits, strict=True)):
        path = folder / f"{number:03d}.npy"
        np.save(path, (pixels[0] * 4095).astype(np.uint16))
        samples.append(Sample(path.name, path.name, (path,), unit=path.name, group=path.name, split=split))
    return Manifest(folder, tuple(samples), (), "csv")


def noise_fit(manifest: Manifest, kind: str, *more: str) -> Detector:
    settings = ["training.steps=4", "training.crop_px=32", f"scoring.standardise={kind}", *more]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "N_NORM_BATCHES", 5)
        return fit(manifest, load_config("smoke", settings), rate=ASKED, device="cpu")


@pytest.mark.parametrize("kind", ["position", "global"])
def test_the_asked_rate_holds_on_average_over_calibrations(tmp_path: Path, kind: str) -> None:
    """One detector, 50 draws of 40 calibration images from a pool of 400, the rate counted on the other 360."""
    detector = noise_fit(noise_rows(tmp_path / "fit", 0, train=20, validation=12, calibration=N_CALIBRATION), kind)
    pool = noise_rows(tmp_path / "pool", 1, calibration=400).samples
    scores = values_of(detector, pool)
    rng, rates = np.random.default_rng(2), []
    for draw in range(50):
        order = rng.permutation(len(pool))
        drawn, rest = order[:N_CALIBRATION], order[N_CALIBRATION:]
        names = [pool[i].id for i in drawn]
        found = thresholds_from(calibration_scores(scores[drawn], scores[drawn], names, names), ASKED)
        if draw == 0:  # the same as the real command
            assert calibrate(detector, [pool[i] for i in drawn], ASKED).calibrated[1].image.value == found.image.value
        rates.append(float(np.mean(scores[rest] >= found.image.value)))
    assert 0.06 <= np.mean(rates) <= 0.13


def test_the_images_that_fit_sets_aside_for_calibration_are_truly_unseen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is learned on calibration images, their scores fall and the rate on new ones rises.

    Statistics of single pixels, on validation normals alone, make that plain: learned on the calibration images
    too, they gave 0.64. The mean of six fits has a deviation of 0.022 about 0.098.
    """
    monkeypatch.setattr(residuals, "MIN_IMAGES", 1)
    raw_residual = ["model.architecture=bottleneck", "scoring.smooth_sd_px=0.0"]
    raw_residual += ["scoring.l1=0.0", "scoring.l2=1.0", "scoring.ssim=0.0"]
    rates = []
    for seed in range(6):
        rows = noise_rows(tmp_path / str(seed), seed, train=8, validation=8, calibration=N_CALIBRATION, test=100)
        detector = noise_fit(rows, "position", *raw_residual)
        found = values_of(detector, rows.select(split="test"))
        rates.append(float(np.mean(found >= detector.calibrated[1].image.value)))
    assert 0.03 <= np.mean(rates) <= 0.17


# --- figures that must differ: a detector that learned, and one that did not ---

DEFECTS = (("scratch", 24, 0.18), ("spot", 6, 0.24), ("stain", 20, 0.15), ("dent", 14, 0.15))
"""Type, size in px, contrast."""


def surface(*key: int) -> np.ndarray:
    return make_surface(np.random.default_rng(key), SIDE_PX)


def as_8_bit(image: np.ndarray) -> PixelArray:
    return np.round(image * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def surface_manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("surface")
    for i in range(80):
        np.save(folder / f"{i:03d}.npy", as_8_bit(surface(0, i)))
    return load_manifest(folder)


@pytest.fixture(scope="module")
def normals() -> list[PixelArray]:
    return [as_8_bit(surface(1, i)) for i in range(60)]


SHORT_FIT = (
    *("model.unshuffle=2", "training.crop_px=64", "training.batch_size=8", "training.learning_rate=5e-3"),
    *("training.ema_decay=0.95", "training.l1=0.0", "training.l2=10.0", "training.damage_weight=0.0"),
    *("corruption.max_shapes=4", "corruption.shape_probability=0.9", "training.validate_every=50"),
    *("scoring.l1=0.5", "scoring.ssim=0.5", "scoring.gms=0.0", "scoring.smooth_sd_px=2.0"),
    *("scoring.background_sd_px=0.0", "scoring.standardise=position"),
)
"""In full, so that the defaults can be tuned without moving the figures below."""


def surface_fit(manifest: Manifest, *settings: str) -> Detector:
    return fit(manifest, load_config("smoke", [*SHORT_FIT, *settings]), device="cpu")


@pytest.fixture(scope="module")
def short_fit(surface_manifest: Manifest) -> Detector:
    return surface_fit(surface_manifest, "training.steps=250")


def mean_roc_auc(detector: Detector, normals: list[PixelArray]) -> float:
    """Mean over the defect types, 20 images each."""
    low, found = values_of(detector, normals), []
    for kind, size_px, contrast in DEFECTS:
        damaged = [
            as_8_bit(plant_defect(surface(2, i), kind, np.random.default_rng((3, i)), size_px, contrast)[0])
            for i in range(20)
        ]
        high = values_of(detector, damaged)
        found.append(roc_auc_score([0] * len(low) + [1] * len(high), [*low, *high]))
    return float(np.mean(found))


@pytest.mark.slow
def test_one_step_detects_clearly_less_than_a_short_fit(
    surface_manifest: Manifest, short_fit: Detector, normals: list[PixelArray]
) -> None:
    """With seeds 0, 1, 2 one step gave 0.63, 0.50, 0.68 and 250 steps 0.95, 0.89, 0.93."""
    one_step = mean_roc_auc(surface_fit(surface_manifest, "training.steps=1"), normals)
    trained = mean_roc_auc(short_fit, normals)
    assert one_step < 0.75
    assert trained > 0.8
    assert trained - one_step > 0.12


def test_new_normal_images_are_not_all_found_anomalous(short_fit: Detector, normals: list[PixelArray]) -> None:
    """16 calibration images: a rate of 1/17 on average; for one calibration above 0.25 in 1 % of cases."""
    assert short_fit.calibrated[1].image.rate == "1/17"
    assert np.mean(values_of(short_fit, normals) >= short_fit.calibrated[1].image.value) < 0.25


def test_brighter_than_ever_seen_scores_above_every_normal_image(
    short_fit: Detector, normals: list[PixelArray]
) -> None:
    limit = values_of(short_fit, normals).max()
    ((_, top),) = short_fit.mapper.get_buffer("limits").tolist()
    brightest = []
    for factor in (1.2, 1.5, 1.9):
        bright = [image.astype(np.uint16) for image in normals[:10]]
        for image in bright:
            image[20:28, 30:38] = round(factor * top)
        assert values_of(short_fit, bright).min() > limit
        brightest.append(short_fit.reconstruct(image_from(bright[0]))[0].max())
    assert 1.1 < brightest[0] < brightest[1] < brightest[2], "the network is shown more than it ever saw"


def test_the_region_of_the_peak_covers_the_defect(short_fit: Detector, normals: list[PixelArray]) -> None:
    for normal in normals[:5]:
        image = normal.astype(np.int16)
        image[40:50, 8:20] -= 50
        largest = max(short_fit.score(image).regions, key=lambda region: region.peak)
        assert 35 <= largest.centroid_px[0] < 55
        assert 3 <= largest.centroid_px[1] < 25
        assert 60 < largest.area_px < SIDE_PX**2 // 4  # of 120; smoothing and context widen it


# --- the numbers of the camera ---


def test_the_number_of_bits_changes_no_score(part_folder: Path, tmp_path: Path) -> None:
    """8 bits times 16 are 12 bits: in a 16-bit file they use their full contrast, so every score is the same."""
    rows = sorted((part_folder / "train" / "good").iterdir())[:40]
    for path in rows:
        wide = np.asarray(Picture.open(path)).astype(np.uint16) * 16
        Picture.fromarray(wide).save(tmp_path / path.name)
        assert np.asarray(Picture.open(tmp_path / path.name)).dtype == np.uint16
    manifests = [_rows_of(rows), _rows_of([tmp_path / path.name for path in rows])]
    narrow, wide_fit = (fit(m, load_config("smoke", ["training.steps=6"]), device="cpu") for m in manifests)
    limits = [d.mapper.get_buffer("limits") for d in (narrow, wide_fit)]
    assert (limits[0] * 16).tolist() == limits[1].tolist()
    test = np.asarray(Picture.open(next((part_folder / "test" / "dent").iterdir())))
    assert narrow.score(test).score == wide_fit.score(test.astype(np.uint16) * 16).score
    x, _ = wide_fit.reconstruct(test.astype(np.uint16) * 16)
    assert x.max() - x.min() > 0.9


def _rows_of(paths: Sequence[Path]) -> Manifest:
    samples = tuple(Sample(p.name, p.name, (p,), unit=p.name, group=p.name) for p in paths)
    return Manifest(Path(), samples, (), "csv")


def test_a_data_set_of_12_bits_in_16_bit_files_spans_the_whole_range(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "part", "part", n_train=20, n_test_normal=1, n_per_defect=1, size_px=32, bits=16)
    detector = fit(load_manifest(folder), load_config("smoke", ["training.steps=1"]), device="cpu")
    ((low, high),) = detector.mapper.get_buffer("limits").tolist()
    assert 0 <= low < 500
    assert 2000 < high <= 4095  # not 65535: the contrast would be a sixteenth
