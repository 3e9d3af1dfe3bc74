"""What the bench measures beyond ``metrics.json``: by kind and size of defect, and whether the promise holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from anomaly_ae.calibration import CalibrationScores
from anomaly_ae.evaluation import test_samples
from anomaly_ae.keeping import file_stem, mask_of
from anomaly_ae.loading import read_sample
from anomaly_ae.manifest import Manifest
from anomaly_ae.metrics import PixelMap, pixel_metrics, roc_auc
from anomaly_ae.metrics.checks import groups_if_any
from anomaly_ae.records import ANOMALOUS_LABEL, NORMAL_LABEL, BoolArray, Decision, Metric, Sample
from anomaly_ae.results import Row, read_rows
from anomaly_ae.threshold import conformal_threshold, normals_needed

N_SPLITS = 200
CHECK_RATE = Fraction(1, 5)
SIZES = ("small", "middle", "large")


@dataclass(frozen=True, slots=True, eq=False)
class Inspected:
    """One test image after its scoring.

    Attributes
    ----------
    row : mapping
        Its line of ``scores.jsonl``.
    mask, valid : bool arrays or None
        None: no mask is known; all pixels count.
    map_path : Path
        Its anomaly map.
    """

    row: Row
    mask: BoolArray | None
    valid: BoolArray | None
    map_path: Path

    @property
    def area_px(self) -> int:
        """Number of masked pixels; 0 where no mask is known."""
        return 0 if self.mask is None else int(self.mask.sum())

    @property
    def has_pixel_truth(self) -> bool:
        """Whether it is known which of its pixels are anomalous, as the pixel figures of a run need it."""
        return self.map_path.exists() and (self.row["label"] == NORMAL_LABEL or self.area_px > 0)


def inspected_images(manifest: Manifest, run: Path) -> list[Inspected]:
    """Return the scored images of a run that was made with ``maps``."""
    by_id = {sample.id: sample for sample in test_samples(manifest)}
    rows = read_rows(run / "scores.jsonl")
    samples = [by_id[row["id"]] for row in rows]
    images = []
    for row, sample, path in zip(rows, samples, _map_paths(run / "maps", samples), strict=True):
        image = read_sample(sample)
        mask = mask_of(sample, image)
        is_unreadable = mask is None and sample.mask is not None
        images.append(Inspected(row, mask, image.valid, run / "unknown" if is_unreadable else path))
    return images


def _map_paths(folder: Path, samples: Sequence[Sample]) -> Iterator[Path]:
    """Yield the names under which a run has written its maps (docs/reference/results.md)."""
    taken: set[str] = set()
    for sample in samples:
        stem = file_stem(sample, is_taken=file_stem(sample) in taken)
        taken.add(stem)
        yield folder / f"{stem}.tiff"


def by_defect(images: Sequence[Inspected], per_defect: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return image ROC-AUC, as `evaluate` found it, and pixel average precision of every kind of defect."""
    return {
        name: {
            "image_roc_auc": figures["roc_auc"],
            "pixel_average_precision": pixel_average_precision(
                [i for i in images if i.row["label"] == NORMAL_LABEL or i.row["defect"] == name]
            ),
        }
        for name, figures in per_defect.items()
    }


def without(images: Sequence[Inspected], defects: Sequence[str]) -> list[Inspected]:
    """Return the images without some kinds of defect."""
    return [image for image in images if image.row["defect"] not in defects]


def pixel_average_precision(images: Sequence[Inspected]) -> dict[str, Any]:
    """Return the pixel average precision over images, as the run itself computes it over all."""
    import tifffile

    known = [image for image in images if image.has_pixel_truth]
    if not any(image.area_px for image in known):
        return Metric(None, 0, 0, reason="there are no masks").as_json()

    def maps() -> Iterator[PixelMap]:
        for image in known:
            yield PixelMap(tifffile.imread(image.map_path), image.mask, image.valid)

    figure: Metric = pixel_metrics(maps, groups=groups_if_any(image.row["group"] for image in known))[
        "average_precision"
    ]
    return figure.as_json()


def by_size(rows: Sequence[Row], areas_px: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Cut the anomalous images in thirds by masked area: image ROC-AUC of each third against all normal images.

    Equal areas stay together, so that a third is known by its limits. Images without a mask are in none.
    """
    masked = [(area, row) for row, area in zip(rows, areas_px, strict=True) if row["label"] == ANOMALOUS_LABEL and area]
    normals = [row for row in rows if row["label"] == NORMAL_LABEL]
    limits = size_limits([area for area, _ in masked])
    sizes = {}
    for name, above, limit in zip(SIZES, (0, *limits), limits, strict=False):
        part = [(area, row) for area, row in masked if above < area <= limit]
        if part:
            areas = [area for area, _ in part]
            chosen = [*normals, *(row for _, row in part)]
            sizes[name] = {
                "min_px": min(areas),
                "max_px": max(areas),
                "n_anomalous": len(part),
                "image_roc_auc": _image_roc_auc(chosen),
            }
    return sizes


def size_limits(areas_px: Sequence[int]) -> list[int]:
    """Return the largest area of each third; nothing where there are no areas.

    >>> size_limits([9, 4, 7, 1, 2, 5])
    [2, 5, 9]
    """
    ordered = sorted(areas_px)
    return [ordered[-(-len(ordered) * third // 3) - 1] for third in (1, 2, 3)] if ordered else []


def _image_roc_auc(rows: Sequence[Row]) -> dict[str, Any]:
    labels = np.array([row["label"] == ANOMALOUS_LABEL for row in rows], bool)
    return roc_auc(labels, [row["score"] for row in rows], groups_if_any(row["group"] for row in rows)).as_json()


def smallest_found_px(rows: Sequence[Row], areas_px: Sequence[int]) -> int | None:
    """Return the smallest masked area of an image that was decided anomalous; None where none was."""
    found = [area for row, area in zip(rows, areas_px, strict=True) if area and row["decision"] == Decision.ANOMALOUS]
    return min(found, default=None)


def split_check(scores: CalibrationScores, seed: int) -> dict[str, Any]:
    """Cut the calibration normals by group in halves again and again: asked and mean found false-alarm rate.

    These normals are exchangeable, which test normals of a real set need not be: the valid check of the promise.
    """
    groups: npt.NDArray[Any] = np.arange(len(scores.image)) if scores.image_group is None else scores.image_group
    names = np.unique(groups)
    n_half = len(names) // 2
    if n_half < normals_needed(CHECK_RATE):
        return {"reason": f"needs {2 * normals_needed(CHECK_RATE)} groups, there are {len(names)}"}
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(N_SPLITS):
        chosen = np.isin(groups, generator.permutation(names)[:n_half])
        limit = conformal_threshold(scores.image[chosen], CHECK_RATE, groups[chosen])
        shares = [np.mean(scores.image[groups == g] >= limit.value) for g in np.unique(groups[~chosen])]
        found.append(np.mean(shares))
    return {
        "asked": float(CHECK_RATE),
        "found_mean": float(np.mean(found)),
        "n_splits": N_SPLITS,
        "n_groups": len(names),
    }
