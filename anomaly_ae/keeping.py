"""What a run keeps of every image besides its row: small pictures, heatmaps, maps, and maps to measure pixels on."""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from anomaly_ae.detector import Detector
from anomaly_ae.errors import AnomalyAEError
from anomaly_ae.files import write_bytes
from anomaly_ae.metrics import PixelMap, pixel_metrics
from anomaly_ae.readers import read_mask
from anomaly_ae.records import ANOMALOUS_LABEL, BoolArray, Decision, FloatArray, Image, Sample, Score
from anomaly_ae.report import PictureWriter, write_heatmap

MIN_FREE_BYTES = 2**30


def keep_pictures(
    detector: Detector,
    sample: Sample,
    result: Score,
    image: Image,
    folder: Path,
    heatmaps: str,
    maps: bool,
    pictures: PictureWriter,
) -> None:
    """Take thumbnails and, where asked for, write the heatmap at full resolution and the map itself."""
    if result.anomaly_map is None or result.anomaly_map.ndim != 2:
        return  # pictures of volumes are another matter
    shown, display_map = detector.in_unit_range(image), detector.display(result.anomaly_map)
    mask = mask_of(sample, image) if sample.mask else None
    rebuilt = None
    if pictures.wants_detail(sample.label, result.score):
        rebuilt = detector.reconstruct(image)[1].clip(0, 1)
    pictures.add(sample.id, sample.label, result.score, shown, display_map, rebuilt, mask)
    if heatmaps == "all" or (heatmaps == "anomalous" and result.decision == Decision.ANOMALOUS):
        write_heatmap(folder / "heatmaps" / f"{file_stem(sample)}.png", shown, display_map, mask)
    if maps:
        _write_map(folder / "maps" / f"{file_stem(sample)}.tiff", result.anomaly_map)


def mask_of(sample: Sample, image: Image) -> BoolArray | None:
    """Return the true mask, or None where it cannot be read: `scan` names it."""
    try:
        return read_mask(sample.mask, image.spatial_shape) if sample.mask else None
    except AnomalyAEError:
        return None


def file_stem(sample: Sample) -> str:
    """Return a short name that is unique in the manifest and safe on every system.

    >>> file_stem(Sample(id="test/good/a b.png", path="", files=()))
    'test_good_a_b_png'
    """
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in sample.id)
    if len(safe) <= 80 and safe.replace("_", "") == "".join(c for c in sample.id if c.isalnum() or c == "-"):
        return safe
    return f"{safe[-60:]}_{hashlib.sha256(sample.id.encode()).hexdigest()[:12]}"


class MapKeeper:
    """Maps of the run in temporary files, because the pixel figures need to see every map twice.

    Pixel figures are computed when at least one anomalous image has a mask; anomalous images without one are left out.
    """

    def __init__(self, folder: Path, samples: Sequence[Sample]) -> None:
        self._folder = folder / "temporary_maps"
        self._entries: list[tuple[Path, Sample, BoolArray | None]] = []
        self.reason = "" if any(s.mask for s in samples) else "no masks"
        self.n_without_mask = 0

    def keep(self, sample: Sample, result: Score, image: Image) -> None:
        """Keep one map, if pixel figures are still possible and the image has a part in them."""
        if self.reason or result.anomaly_map is None:
            return
        if sample.label == ANOMALOUS_LABEL and mask_of(sample, image) is None:
            self.n_without_mask += 1
            return
        self._folder.mkdir(exist_ok=True)
        if shutil.disk_usage(self._folder).free < MIN_FREE_BYTES + result.anomaly_map.nbytes:
            self.reason = "not enough free disk space for the maps"
            return
        path = self._folder / f"{len(self._entries)}.npy"
        np.save(path, result.anomaly_map, allow_pickle=False)
        self._entries.append((path, sample, image.valid))

    def metrics(self) -> dict[str, Any] | None:
        """Return the pixel figures, or None where there are no masks."""
        if self.reason:
            return None
        return _as_json(pixel_metrics(self._maps))

    def close(self) -> None:
        """Remove the temporary maps."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _maps(self) -> Iterator[PixelMap]:
        for path, sample, valid in self._entries:
            anomaly_map = np.load(path, allow_pickle=False)
            mask = read_mask(sample.mask, anomaly_map.shape) if sample.mask else None
            yield PixelMap(anomaly_map, mask, valid)


def _write_map(path: Path, anomaly_map: FloatArray) -> None:
    import tifffile

    buffer = io.BytesIO()
    tifffile.imwrite(buffer, anomaly_map.astype(np.float32), compression="zlib")
    write_bytes(path, buffer.getvalue())


def _as_json(pixel: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "roc_auc": pixel["roc_auc"].as_json(),
        "average_precision": pixel["average_precision"].as_json(),
        "au_pro": {limit: metric.as_json() for limit, metric in pixel["au_pro"].items()},
    }
