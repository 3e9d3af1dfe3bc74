"""What the model can see: counted right, said right, and never on images it knows."""

from __future__ import annotations

import base64
import copy
import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command import run as shell
from PIL import Image as Picture
from scipy import stats

from anomaly_ae.capability import (
    Capability,
    Cell,
    default_sizes,
    held_out_normals,
    measure_capability,
    write_capability,
)
from anomaly_ae.config import with_values
from anomaly_ae.detector import Detector
from anomaly_ae.errors import DataError, UsageError
from anomaly_ae.listener import Listener
from anomaly_ae.manifest import Manifest, load_manifest
from anomaly_ae.planting import plant_into
from anomaly_ae.readers import image_sha256, read_image


@pytest.fixture(scope="module")
def keen(smoke_detector: Detector, part_folder: Path) -> Detector:
    """A detector that flags half of the normal test images, so that there is something to count."""
    samples = load_manifest(part_folder / "test" / "good").samples
    middle = float(np.median([smoke_detector.score(sample).score for sample in samples]))
    scores, limits = smoke_detector.calibrated
    at_middle = replace(limits, image=replace(limits.image, value=middle), pixel=replace(limits.pixel, value=middle))
    return smoke_detector.with_thresholds(scores, at_middle)


@pytest.fixture
def normals(part_folder: Path) -> Path:
    return part_folder / "test" / "good"


def without_threshold(detector: Detector) -> Detector:
    """A copy that flags nothing."""
    scores, limits = detector.calibrated
    return detector.with_thresholds(scores, replace(limits, image=replace(limits.image, value=1e9)))


def grid(found: dict[tuple[float, float], int], n: int = 20) -> Capability:
    """A finding from counts by (contrast, size)."""
    cells = tuple(Cell(size, contrast, n, hits, hits) for (contrast, size), hits in found.items())
    sizes, contrasts = sorted({size for _, size in found}), sorted({contrast for contrast, _ in found})
    return Capability("spot", tuple(sizes), tuple(contrasts), cells, n, 0, "promise")


def test_every_cell_is_what_scoring_its_images_says(keen: Detector, normals: Path) -> None:
    samples = load_manifest(normals).samples
    found, examples = measure_capability(keen, samples, "spot", [6, 16], [0.2, 0.9], n_per_grade=5, seed=3)
    drawn = [read_image(samples[i].files[0]) for i in np.random.default_rng(3).permutation(len(samples))]
    is_calm = [keen.score(image).score < keen.calibrated[1].image.value for image in drawn]
    last = int(np.flatnonzero(is_calm)[4])
    calm = [image for image, calm in zip(drawn[: last + 1], is_calm, strict=False) if calm]
    assert (found.n_images, found.n_flagged_before, found.n_left_out) == (5, last - 4, 0)
    assert last > 4, "both kinds"
    for cell in found.cells:
        hits = []
        for i in range(5):
            image = calm[i]
            rng = np.random.default_rng([3, i, round(1000 * cell.size_px)])
            limits = keen.limits_of(keen.prepare(image))
            damaged, mask = plant_into(image, limits, "spot", rng, cell.size_px, cell.contrast)
            result = keen.score(damaged)
            is_flagged = result.score >= keen.calibrated[1].image.value
            hits.append((is_flagged, is_flagged and result.anomaly_map[mask].max() >= keen.calibrated[1].pixel.value))
        assert (cell.n, cell.n_flagged, cell.n_found) == (5, *np.sum(hits, axis=0))
    assert len({cell.n_found for cell in found.cells}) > 1
    assert [(c.contrast, c.size_px) for c in found.cells] == [(0.2, 6), (0.2, 16), (0.9, 6), (0.9, 16)]
    assert [cell for cell, _, _ in examples] == list(found.cells)


def test_interval_is_the_exact_one() -> None:
    for hits in (0, 7, 19, 20):
        low, high = stats.binomtest(hits, 20).proportion_ci(method="exact")
        assert Cell(4, 0.1, 20, hits, hits).interval == pytest.approx((low, high))
    assert Cell(4, 0.1, 0, 0, 0).sensitivity is None


def test_smallest_size_is_the_one_from_which_on_all_larger_are_found_too() -> None:
    found = grid({(0.1, 4): 20, (0.1, 8): 18, (0.1, 16): 19, (0.5, 4): 19, (0.5, 8): 20, (0.5, 16): 20})
    assert found.smallest_px(0.1) == 16, "the 20 of 20 at 4 px are luck"
    assert found.smallest_px(0.5) == 4
    assert "found from 16 px at contrast 0.1, from 4 px at contrast 0.5" in found.sentence
    weak = grid({(0.1, 4): 0, (0.1, 8): 3, (0.5, 4): 2, (0.5, 8): 20})
    assert weak.smallest_px(0.1) is None
    assert weak.sentence.endswith("from 8 px at contrast 0.5; not up to 8 px at contrast 0.1")
    assert "found at no grade" in grid({(0.1, 4): 0}).sentence
    assert any("83 %" in line for line in found.lines()), "20 of 20 prove 0.025 ** (1 / 20), two-sided"
    assert not any("not independent" in line for line in found.lines())
    assert any("not independent" in line for line in replace(found, n_images=12).lines())


def test_default_sizes_are_for_the_image() -> None:
    sizes = np.array(default_sizes(4096))
    assert (len(sizes), sizes[0], sizes[-1]) == (6, 3, 1024)
    assert sizes[1:] / sizes[:-1] == pytest.approx((1024 / 3) ** 0.2, rel=0.06), "equal ratios, rounded"
    assert default_sizes(10) == [3]


def test_held_out_normals(part_manifest: Manifest, normals: Path, part_folder: Path) -> None:
    assert {s.path.split("/")[0] for s in held_out_normals(part_manifest)} == {"test"}
    assert len(held_out_normals(part_manifest)) == 15
    assert len(held_out_normals(load_manifest(normals))) == 15
    first, *others = load_manifest(normals).samples
    tumour = replace(first, extra={"volume_label": "anomalous"})  # a slice of an anomalous volume without a mask
    assert held_out_normals(Manifest(normals, (tumour, *others), layout="csv")) == tuple(others)
    only_train = part_manifest.select(split="train")
    with pytest.raises(DataError, match="no held-out normal images"):
        held_out_normals(Manifest(part_folder, only_train, layout="csv"))


def test_known_images_are_refused(smoke_detector: Detector, part_folder: Path) -> None:
    with pytest.raises(DataError, match="15 of 15 readable normal images were used in fit"):
        measure_capability(smoke_detector, load_manifest(part_folder / "train" / "good").samples, n_per_grade=15)


def test_images_of_a_finished_run_that_set_the_threshold_are_known(smoke_detector: Detector, normals: Path) -> None:
    samples = load_manifest(normals).samples
    calibrated = copy.copy(smoke_detector)
    calibrated.provenance = {"image_hashes": {"calibration": [image_sha256(sample.files) for sample in samples]}}
    with pytest.raises(DataError, match="were used in fit"):
        measure_capability(calibrated, samples, n_per_grade=15)


def test_flagged_images_are_replaced_by_others(keen: Detector, normals: Path) -> None:
    samples = load_manifest(normals).samples
    for seed in range(4):
        found = measure_capability(keen, samples, "spot", [16], [0.9], n_per_grade=3, seed=seed)[0]
        assert found.n_images == 3
    found = measure_capability(keen, samples, "spot", [16], [0.9], n_per_grade=20)[0]
    assert (found.n_images, found.n_flagged_before) == (7, 8), "no more can be drawn"


def test_what_cannot_be_scored_is_named_and_not_counted_as_flagged(
    smoke_detector: Detector, normals: Path, tmp_path: Path
) -> None:
    Picture.fromarray(np.random.default_rng(0).integers(0, 255, (300, 300), np.uint8)).save(tmp_path / "large.png")
    (tmp_path / "broken.png").write_bytes(b"")
    others = load_manifest(tmp_path).samples
    said: list[str] = []
    samples = (*load_manifest(normals).samples[:4], *others)
    calm = without_threshold(smoke_detector)
    found = measure_capability(calm, samples, "spot", [16], [0.9], 6, listener=Listener(say=said.append))[0]
    assert (found.n_images, found.n_flagged_before, found.n_left_out) == (4, 0, 2)
    assert len(said) == 2
    assert all(sum(sample.id in line for line in said) == 1 for sample in others)
    for sample, reason in zip(others, ("broken.png", "large.png has 300 x 300 px"), strict=True):
        with pytest.raises(DataError, match=f"none of 1 normal image could be read and scored: .*{reason}"):
            measure_capability(calm, [sample], "spot", [16], [0.9], 6)


def test_a_model_for_volumes_is_refused(smoke_detector: Detector, normals: Path) -> None:
    of_volumes = without_threshold(smoke_detector)
    of_volumes.config = with_values(of_volumes.config, model={"spatial_dims": 3})
    with pytest.raises(UsageError, match=r"capability with model\.spatial_dims=3"):
        measure_capability(of_volumes, load_manifest(normals).samples)


def test_the_names_of_the_axes_fit_beside_one_row(keen: Detector, normals: Path, tmp_path: Path) -> None:
    found, examples = measure_capability(keen, load_manifest(normals).samples, "spot", [16], [0.9], 2)
    page = write_capability(found, examples, keen, tmp_path / "seen").read_text(encoding="utf-8")
    beside = re.search(r"translate\(13 ([\d.]+)\).*?>([^<]+)</text>", page)
    assert beside
    assert len(beside[2]) * 7 / 2 < float(beside[1]), "7 px for a letter, half of them above the middle"


def test_command(smoke_model_file: Path, normals: Path, tmp_path: Path) -> None:
    folder = tmp_path / "normals"
    folder.mkdir()
    for path in sorted(normals.iterdir())[:5]:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "broken.png").write_bytes(b"")
    arguments = ("capability", smoke_model_file, folder, "--out", tmp_path / "seen", "--sizes", "5,12")
    outcome = shell(*arguments, "--contrasts", "0.1,0.8", "--per-grade", "6")
    assert outcome.code == 3, outcome.err
    assert "broken.png" in outcome.err, "one unreadable file is named and does not end it"
    assert "unreadable or of another kind: 1 image, named above" in outcome.out
    assert outcome.out.startswith("95 % of the planted defects (spot) are found")
    written = json.loads((tmp_path / "seen" / "capability.json").read_text(encoding="utf-8"))
    with (tmp_path / "seen" / "capability.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(float(row["size_px"]), float(row["contrast"])) for row in rows] == [
        (5, 0.1),
        (12, 0.1),
        (5, 0.8),
        (12, 0.8),
    ]
    assert [int(row["n_found"]) for row in rows] == [cell["n_found"] for cell in written["cells"]]
    page = (tmp_path / "seen" / "capability.html").read_text(encoding="utf-8")
    assert page.count("<rect") == 4
    (folder / "broken.png").unlink()
    assert shell(*arguments, "--contrasts", "0.8", "--per-grade", "1", "--overwrite").code == 0
    assert "exists already" in shell(*arguments).error
    wrong = shell("capability", smoke_model_file, folder, "--out", tmp_path / "x", "--sizes", "4;8")
    assert (wrong.code, wrong.error.startswith("error: --sizes 4;8")) == (2, True)
    assert shell("capability", smoke_model_file, folder, "--out", tmp_path / "x", "--kind", "hole").code == 2
    for size in ("-3", "nan", "inf"):
        wrong = shell("capability", smoke_model_file, folder, "--out", tmp_path / "x", "--sizes", f"8,{size}")
        assert (wrong.code, wrong.error.startswith(f"error: a defect of {size} px: it cannot be drawn")) == (2, True)
    assert not (tmp_path / "x").exists()


def test_example_sheet_shows_every_grade(keen: Detector, normals: Path, tmp_path: Path) -> None:
    found, examples = measure_capability(keen, load_manifest(normals).samples, "spot", [4, 16], [0.9], 2)
    page = write_capability(found, examples, keen, tmp_path / "seen").read_text(encoding="utf-8")
    data = re.search(r'<img[^>]*base64,([^"]+)"', page)
    assert data
    sheet = np.asarray(Picture.open(io.BytesIO(base64.b64decode(data[1]))))
    side = 32 + 2
    assert sheet.shape == (side, 2 * side)
    assert sheet[1:-1].std() > 0


def test_sizes_beyond_the_image_are_refused(keen: Detector, normals: Path) -> None:
    with pytest.raises(UsageError, match="100 px"):
        measure_capability(keen, load_manifest(normals).samples, "spot", [100], [0.5], 3)


def test_a_defect_that_leaves_no_trace_is_no_finding(keen: Detector, tmp_path: Path) -> None:
    for i in range(2):
        Picture.fromarray(np.full((64, 64), 100 + i, np.uint8)).save(tmp_path / f"{i}.png")
    with pytest.raises(DataError, match="no blur leaves a trace"):
        measure_capability(without_threshold(keen), load_manifest(tmp_path).samples, "blur", [8], [0.5], 2)
