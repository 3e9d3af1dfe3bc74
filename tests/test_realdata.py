"""Real images, end to end and short: that it runs and counts right. How good it is stands in docs/benchmarks/.

The folder that ANOMALY_AE_REALDATA names holds ``magnetic_tile`` (MVTec layout with ``dev.csv``) and ``dicom_samples``.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import done

from anomaly_ae.detector import Detector
from anomaly_ae.readers import read_image, read_mask

pytestmark = [pytest.mark.realdata, pytest.mark.slow]

N_TRAIN, N_NORMAL, N_PER_DEFECT = 60, 20, 4


def real_folder(name: str) -> Path:
    place = os.environ.get("ANOMALY_AE_REALDATA")
    if not place:
        pytest.skip("ANOMALY_AE_REALDATA does not name the folder of the real images")
    folder = Path(place) / name
    assert folder.is_dir(), f"ANOMALY_AE_REALDATA is set, but there is no {folder}"
    return folder


def first(rows: list[dict[str, str]], n: int, **values: str) -> list[dict[str, str]]:
    """Return the first rows with these values, spread over the whole table."""
    fitting = [row for row in rows if all(row[name] == value for name, value in values.items())]
    return fitting[:: max(1, len(fitting) // n)][:n]


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """A small part of the development half: normal tiles to fit on, normal and defective ones to test on."""
    folder = real_folder("magnetic_tile")
    with (folder / "dev.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["path"] = (folder / row["path"]).as_posix()
        row["mask"] = (folder / row["mask"]).as_posix() if row["mask"] else ""
    defects = sorted({row["defect"] for row in rows} - {""})
    chosen = first(rows, N_TRAIN, split="train") + first(rows, N_NORMAL, split="test", label="normal")
    return chosen + [row for name in defects for row in first(rows, N_PER_DEFECT, defect=name)]


@pytest.fixture(scope="module")
def work(tiles: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with manifest, model and run of the tiles, all made by the commands."""
    folder = tmp_path_factory.mktemp("tiles")
    with (folder / "tiles.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(tiles[0]))
        writer.writeheader()
        writer.writerows(tiles)
    model = folder / "tiles.safetensors"
    changes = ("training.steps=30", "training.batch_size=4", "geometry.max_side_px=192")
    budget = [word for change in changes for word in ("--set", change)]
    done("fit", folder / "tiles.csv", "--preset", "fast", *budget, "--out", model)
    done("evaluate", model, folder / "tiles.csv", "--out", folder / "run")
    return folder


def numbers(value: Any) -> Iterator[float]:
    """Yield every number of a JSON value."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from numbers(one)
    elif isinstance(value, int | float):
        yield value


def test_tiles_from_fit_to_report(work: Path, tiles: list[dict[str, str]]) -> None:
    run = work / "run"
    tested = Counter(row["label"] for row in tiles if row["split"] == "test")
    metrics = json.loads((run / "metrics.json").read_text("utf-8"))
    assert metrics["counts"]["normal"] == tested["normal"] == N_NORMAL
    assert metrics["counts"]["anomalous"] == tested["anomalous"] == 5 * N_PER_DEFECT
    assert metrics["counts"]["failed"] == metrics["counts"]["seen_in_fit"] == 0
    assert set(metrics["per_defect"]) == {"blowhole", "break", "crack", "fray", "uneven"}
    assert all(math.isfinite(number) for number in numbers(metrics))
    for name in ("roc_auc", "average_precision"):
        assert 0 < metrics["image"][name]["value"] <= 1
        assert metrics["image"][name]["intervals"][0]["unit"] == "group"
    assert (run / "report.html").stat().st_size > 100_000
    assert len((run / "scores.jsonl").read_text("utf-8").splitlines()) == 40


def test_tiles_have_pixel_figures(work: Path, tiles: list[dict[str, str]]) -> None:
    pixel = json.loads((work / "run" / "metrics.json").read_text("utf-8"))["pixel"]
    masks = [read_mask(row["mask"]) for row in tiles if row["mask"]]
    assert pixel["roc_auc"]["n_anomalous"] == sum(int(mask.sum()) for mask in masks)
    n_pixels = sum(math.prod(read_image(row["path"]).spatial_shape) for row in tiles if row["split"] == "test")
    assert pixel["roc_auc"]["n_normal"] == n_pixels - pixel["roc_auc"]["n_anomalous"]
    for metric in (pixel["roc_auc"], pixel["average_precision"], *pixel["au_pro"].values()):
        assert 0 < metric["value"] < 1


def test_a_tile_by_itself_scores_as_in_the_run(work: Path) -> None:
    detector = Detector.load(work / "tiles.safetensors", "cpu")
    lines = [json.loads(line) for line in (work / "run" / "scores.jsonl").read_text("utf-8").splitlines()]
    for line in lines[::13]:
        alone = detector.score(line["path"])
        assert alone.score == pytest.approx(line["score"], rel=1e-3)  # the run may have used a GPU
        assert alone.image_sha256 == line["image_sha256"]
        assert alone.anomaly_map is not None
        assert alone.anomaly_map.shape == read_image(line["path"]).spatial_shape


@pytest.mark.parametrize("name", ["693_UNCR.dcm", "CT_small.dcm", "explicit_VR-UN.dcm"])
def test_values_of_ct_are_hounsfield_units(name: str) -> None:
    from pydicom import dcmread

    path = real_folder("dicom_samples") / name
    image, data = read_image(path), dcmread(path)
    expected = data.pixel_array.astype(np.float64) * float(data.RescaleSlope) + float(data.RescaleIntercept)
    inside = np.ones(expected.shape, bool) if image.valid is None else image.valid
    assert np.array_equal(image.pixels[0][inside], expected[inside])
    assert -1100 <= image.pixels[0][inside].min() <= -800, "air is there"
    assert image.spacing_mm == tuple(map(float, data.PixelSpacing))


def test_ct_slices_are_fitted_and_scored(tmp_path: Path) -> None:
    folder = real_folder("dicom_samples")
    slices = tmp_path / "slices.csv"
    lines = [(folder / f"IMG{number:04d}.dcm").as_posix() for number in range(1, 11)]
    slices.write_text("path\n" + "".join(f"{line}\n" for line in lines), encoding="utf-8")
    done("fit", slices, "--preset", "smoke", "--out", tmp_path / "ct.safetensors", "--false-alarm-rate", "1/3")
    done("score", tmp_path / "ct.safetensors", *lines[:3], "--out", tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "scores.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) == 3
    assert all(math.isfinite(row["score"]) for row in rows)
    for region in (region for row in rows for region in row["regions"]):
        assert region["area_mm2"] == pytest.approx(4 * region["area_px"]), "pixels of 2 x 2 mm"
    detector = Detector.load(tmp_path / "ct.safetensors", "cpu")
    from pydicom import dcmread

    assert detector.score(dcmread(lines[0])).score == detector.score(lines[0]).score
