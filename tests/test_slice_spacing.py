"""Patients whose slices lie at different distances: one in so many mm counts for its unit."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_volumes import head, save

from anomaly_ae.calibration import calibration_scores, unit_scores
from anomaly_ae.config import load_config
from anomaly_ae.evaluation import RunOptions, score
from anomaly_ae.fitting import fit
from anomaly_ae.manifest import counted_for_unit, largest_spacing_mm, load_manifest
from anomaly_ae.records import Sample
from anomaly_ae.results import finished_scores


def rows(path: str, n: int, spacing_mm: float | None, volume: str = "") -> list[Sample]:
    extra = {} if spacing_mm is None else {"slice_spacing_mm": f"{spacing_mm:.4g}"}
    return [Sample(f"{path}#{i}", path, (Path(path),), i, volume=volume, extra=extra) for i in range(n)]


def test_which_slices_count_by_hand() -> None:
    thin, thick, flat = rows("a.nii", 7, 1.0), rows("b.nii", 3, 3.0), rows("c.png", 2, None)
    found = counted_for_unit([*thin, *thick, *flat], 3.0)
    assert [number for number, counts in enumerate(found) if counts] == [1, 4, 7, 8, 9, 10, 11]
    assert all(counted_for_unit(thin, 0.0)), "asked for nothing: every slice"
    assert all(counted_for_unit(rows("a.nii", 4, 2.999), 3.0)), "rounding in headers leaves no slice out"
    assert all(counted_for_unit(rows("a.nii", 4, 5.0), 3.0))
    assert counted_for_unit(rows("a.nii", 3, 1.0), 9.0) == [False, True, False], "never none of a volume"
    series = [*rows("1.dcm", 1, 1.5, "s"), *rows("2.dcm", 1, 1.5, "s"), *rows("3.dcm", 1, 1.5, "t")]
    assert counted_for_unit(series, 3.0) == [False, True, True], "each volume by itself"
    assert largest_spacing_mm([*thin, *thick, *flat]) == 3.0
    assert largest_spacing_mm(flat) == 0.0


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.floats(-1e3, 1e3)), min_size=1, max_size=30))
def test_unit_scores_by_brute_force(images: list[tuple[int, bool, float]]) -> None:
    units = np.unique([unit for unit, _, _ in images], return_inverse=True)[1]
    counted, scores = np.array([c for _, c, _ in images]), np.array([value for _, _, value in images])
    want = []
    for unit in range(units.max() + 1):
        own = units == unit
        want.append(scores[own & counted if (own & counted).any() else own].max())
    np.testing.assert_array_equal(unit_scores(scores, units, counted), want)


def scanned(rng: np.random.Generator, n_patients: int, every: int) -> list[np.ndarray]:
    """Slice scores of patients: anatomy that changes over some mm, and noise of each slice; every n-th mm is seen."""
    kernel = np.exp(-0.5 * (np.arange(-12, 13) / 4) ** 2)
    kernel /= np.linalg.norm(kernel)
    curves = [np.convolve(rng.normal(size=144), kernel, "valid") for _ in range(n_patients)]
    return [curve[::every] + rng.normal(0, 0.6, len(curve[::every])) for curve in curves]


def test_patients_at_1_and_at_3_mm_are_comparable() -> None:
    """The threshold of patients at 3 mm raises as few false alarms at 1 mm; the plain maximum does not."""
    rng = np.random.default_rng(0)
    thick, thin = scanned(rng, 1500, 3), scanned(rng, 1500, 1)

    def of(patients: list[np.ndarray], spacing_mm: float, every_mm: float) -> np.ndarray:
        samples = [s for n, own in enumerate(patients) for s in rows(f"{n}.nii", len(own), spacing_mm)]
        units = np.repeat(np.arange(len(patients)), [len(own) for own in patients])
        return unit_scores(np.concatenate(patients), units, np.array(counted_for_unit(samples, every_mm)))

    limit = np.quantile(of(thick, 3.0, 3.0), 0.9)
    np.testing.assert_array_equal(of(thick, 3.0, 3.0), [own.max() for own in thick])
    assert (of(thin, 1.0, 0.0) >= limit).mean() > 0.16, "the maximum of all slices: more chances"
    assert (of(thin, 1.0, 3.0) >= limit).mean() == pytest.approx(0.1, abs=0.02)


@pytest.mark.slow
def test_fit_takes_the_largest_distance_and_a_run_counts_by_it(tmp_path: Path) -> None:
    for number in range(9):
        save(tmp_path / f"train/good/{number}.nii", head(number, (32, 34, 6)), 6.0 if number % 2 else 2.0)
    manifest = load_manifest(tmp_path, identified=True)
    detector = fit(manifest, load_config("smoke", ["training.steps=2"]), device="cpu")
    assert detector.config.scoring.unit_every_mm == 6.0
    save(tmp_path / "new/a.nii", head(50, (32, 34, 6)), 2.0)
    save(tmp_path / "new/b.nii", head(51, (32, 34, 6)), 6.0)
    score(detector, load_manifest(tmp_path / "new", identified=True), tmp_path / "run", RunOptions())

    def table(name: str) -> list[dict[str, str]]:
        with (tmp_path / "run" / name).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    images = table("scores.csv")
    units = {row["unit"]: float(row["score"]) for row in table("units.csv")}
    a, b = ([float(row["score"]) for row in images if row["path"] == name] for name in ("a.nii", "b.nii"))
    assert units["b.nii"] == max(b)
    assert units["a.nii"] == max(a[1], a[4])
    again = finished_scores(tmp_path / "run", detector.weights_sha256).normal
    assert again is not None
    assert sorted(again.unit) == pytest.approx(sorted(units.values()))


def test_calibration_takes_the_largest_image_that_counts() -> None:
    images, units = [1.0, 5.0, 2.0], ["a", "a", "b"]
    np.testing.assert_array_equal(calibration_scores(images, images, units, units).unit, [5.0, 2.0])
    found = calibration_scores(images, images, units, units, [True, False, True])
    np.testing.assert_array_equal(found.unit, [1.0, 2.0])
    np.testing.assert_array_equal(found.image, images)
