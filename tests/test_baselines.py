"""The trivial detectors: their residual against scikit-learn's, their thumbnails against the definition."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly_ae import baselines
from anomaly_ae.baselines import N_COMPONENTS, SIDES_PX, contrast_and_sharpness, fit_pca, small_grey
from anomaly_ae.prepare import resample
from anomaly_ae.records import FloatArray

SIDE_PX = SIDES_PX[2]


def greys(n: int, rank: int, noise: float = 0.0) -> list[FloatArray]:
    """Images that are a mean plus ``rank`` patterns."""
    rng = np.random.default_rng(3)
    patterns = rng.normal(size=(rank, SIDE_PX**2))
    values = 0.5 + rng.normal(size=(n, rank)) @ patterns + noise * rng.normal(size=(n, SIDE_PX**2))
    return list(values.astype(np.float32))


def test_score_is_the_residual_of_a_principal_component_analysis() -> None:
    from sklearn.decomposition import PCA

    images = greys(50, 40, noise=0.1)
    model = fit_pca(images)
    reference = PCA(N_COMPONENTS, svd_solver="full").fit(np.stack(images).astype(np.float64))
    new = greys(60, 40, noise=0.1)[50:]
    expected = reference.inverse_transform(reference.transform(np.stack(new).astype(np.float64)))
    for image, rebuilt in zip(new, expected, strict=True):
        assert model.score(image) == pytest.approx(np.mean((image - rebuilt) ** 2), rel=1e-3)


def test_components_are_orthonormal_and_limited() -> None:
    for n in (2, 5, N_COMPONENTS + 20):
        model = fit_pca(greys(n, n + 5))
        assert model.components.shape == (min(N_COMPONENTS, n - 1), SIDE_PX**2)
        products = model.components @ model.components.T
        assert products == pytest.approx(np.eye(len(products)), abs=1e-5)


def test_more_images_than_needed_are_thinned_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    images = greys(41, 20)
    monkeypatch.setattr(baselines, "MAX_IMAGES", 21)
    thinned, every_second = fit_pca(images), fit_pca(images[::2])
    assert np.array_equal(thinned.mean, every_second.mean)
    assert np.array_equal(thinned.components, every_second.components)


def test_copies_leave_components_that_are_orthonormal_all_the_same() -> None:
    model = fit_pca(greys(3, 2) * 4)
    assert model.components @ model.components.T == pytest.approx(np.eye(11), abs=1e-5)


def test_what_the_components_span_scores_nothing_and_what_is_new_does() -> None:
    images = greys(20, 3)
    model = fit_pca(images)
    strange = images[0].copy()
    strange[:50] += 100
    assert max(model.score(image) for image in images) < 1e-6
    assert model.score(strange) > 1


def test_one_image_leaves_its_distance() -> None:
    image = greys(1, 2)[0]
    assert fit_pca([image]).score(image + 2) == pytest.approx(4, rel=1e-5)


@pytest.mark.parametrize("shape", [(64, 64), (100, 37), (20, 30)])
def test_thumbnail_is_the_channel_mean_in_units_of_the_limits(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(4)
    pixels = rng.integers(1000, 4000, (2, *shape)).astype(np.uint16)
    limits = np.array([[1000.0, 4000.0], [0.0, 8000.0]])
    scaled = np.stack([(p.astype(float) - low) / (high - low) for p, (low, high) in zip(pixels, limits, strict=True)])
    expected = resample(scaled.mean(axis=0)[np.newaxis], (SIDE_PX, SIDE_PX)).ravel()
    grey = small_grey(pixels, limits)
    assert grey.dtype == np.float32
    assert grey == pytest.approx(expected, abs=1e-5)


def test_thumbnail_of_a_volume() -> None:
    grey = small_grey(np.full((1, 4, 5, 6), 30.0), np.array([[10.0, 50.0]]))
    assert grey.shape == (SIDES_PX[3] ** 3,)
    assert grey == pytest.approx(np.full(SIDES_PX[3] ** 3, 0.5), abs=1e-6)


def test_contrast_and_sharpness_by_their_definition() -> None:
    rng = np.random.default_rng(5)
    pixels = rng.integers(0, 4000, (2, 30, 20)).astype(np.uint16)
    limits = np.array([[0.0, 4000.0], [1000.0, 3000.0]])
    scaled = (pixels - limits[:, :1, None]) / (limits[:, 1:] - limits[:, :1])[..., None]
    steps = np.mean([abs(float(row[i + 1]) - float(row[i])) for image in scaled for row in image for i in range(19)])
    found = contrast_and_sharpness(pixels, limits)
    assert found["contrast"] == pytest.approx(np.std(scaled))
    assert found["sharpness"] == pytest.approx(steps / np.std(scaled))


def test_blur_lowers_sharpness_and_light_does_not() -> None:
    from scipy.ndimage import gaussian_filter

    image = np.random.default_rng(6).normal(100, 10, (1, 40, 40))
    limits = np.array([[0.0, 200.0]])
    sharp = contrast_and_sharpness(image, limits)["sharpness"]
    assert contrast_and_sharpness(gaussian_filter(image, (0, 1, 1)), limits)["sharpness"] < 0.7 * sharp
    assert contrast_and_sharpness(0.5 * image, limits)["sharpness"] == pytest.approx(sharp)


@pytest.mark.parametrize("pixels", [np.full((1, 4, 4), 7.0), np.full((1, 4, 4), np.nan), np.full((1, 4, 1), 1e300)])
def test_numbers_of_images_without_any_structure_are_finite(pixels: np.ndarray) -> None:
    found = contrast_and_sharpness(pixels, np.array([[0.0, 1.0]]))
    assert found == {"contrast": 0.0, "sharpness": 0.0}


def test_of_large_images_some_rows_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anomaly_ae.baselines.MAX_VALUES", 100)
    pixels = np.zeros((1, 40, 20))
    pixels[:, 1::8] = 1e3  # between the rows that are looked at: every eighth
    assert contrast_and_sharpness(pixels, np.array([[0.0, 1.0]]))["contrast"] == 0
