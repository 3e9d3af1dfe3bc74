"""What a run keeps of every image besides its row: small pictures, heatmaps, maps, and maps to measure pixels on."""

from __future__ import annotations

import hashlib
import io
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from anomaly_ae.detector import Detector
from anomaly_ae.dicom import DicomWriter
from anomaly_ae.errors import AnomalyAEError
from anomaly_ae.files import write_bytes
from anomaly_ae.metrics import PixelMap
from anomaly_ae.nifti import is_nifti_file, write_slice
from anomaly_ae.readers import read_mask, read_volume_mask
from anomaly_ae.records import ANOMALOUS_LABEL, BoolArray, Decision, FloatArray, Image, Sample, Score
from anomaly_ae.regions import ALL_REGIONS, in_regions
from anomaly_ae.report import PictureWriter, Planes, overlay, write_heatmap
from anomaly_ae.results import PixelFigures, no_pixel_figures, pixel_figures
from anomaly_ae.words import some_names

MIN_FREE_BYTES = 2**30
_DISK_IS_FULL = "not enough free disk space for the maps"


def keep_pictures(
    detector: Detector,
    sample: Sample,
    result: Score,
    image: Image,
    folder: Path,
    heatmaps: str,
    maps: bool,
    pictures: PictureWriter,
    mask: BoolArray | None,
) -> None:
    """Take thumbnails and, where asked for, write the heatmap at full resolution and the map itself."""
    if result.anomaly_map is None:
        return
    wants_detail = pictures.wants_detail(sample.label, result.score)
    regions = regions_of(detector, result.anomaly_map, image)
    shown, display_map, mask, regions, rebuilt = _seen(detector, image, result.anomaly_map, mask, regions, wants_detail)
    kept = None if detector.rules == ALL_REGIONS else regions  # else the map tells them, at any threshold
    pictures.add(sample.id, sample.label, result.score, shown, display_map, rebuilt, mask, kept)
    is_looked_at = result.decision in {Decision.ANOMALOUS, Decision.REVIEW}
    if heatmaps == "all" or (heatmaps == "anomalous" and is_looked_at):
        write_heatmap(_free_path(folder / "heatmaps", sample, ".png"), shown, display_map, mask, regions)
    if maps:
        _write_map(folder / "maps", sample, result.anomaly_map)


def _seen(
    detector: Detector,
    image: Image,
    anomaly_map: FloatArray,
    mask: BoolArray | None,
    regions: BoolArray,
    wants_detail: bool,
) -> tuple[FloatArray, FloatArray, BoolArray | None, BoolArray, FloatArray | None]:
    """Return what people see: image (C, h, w) in [0, 1], map in display units, mask, regions, reconstruction if wanted.

    Of a volume they see three planes through the peak of its map, and no reconstruction: it would cost as much as the
    map.
    """
    if anomaly_map.ndim == 2:
        has_picture = wants_detail and not detector.config.model.embed  # features have none
        rebuilt = detector.reconstruct(image)[1].clip(0, 1) if has_picture else None
        return detector.in_unit_range(image), detector.display(anomaly_map), mask, regions, rebuilt
    planes = Planes.through_peak(anomaly_map, image.valid, image.spacing_mm)
    pixels = detector.in_unit_range(image, planes.of(image.pixels))
    shown_map = detector.display(planes.of(anomaly_map[np.newaxis])[0])
    inside = None if mask is None else planes.of(mask[np.newaxis])[0]
    return pixels * planes.inside, shown_map * planes.inside, inside, planes.of(regions[np.newaxis])[0], None


def keep_dicom(
    detector: Detector, sample: Sample, result: Score, image: Image, number: int, writer: DicomWriter
) -> None:
    """Hand the overlay and the regions of an image to the writer of DICOM objects; of several channels the first.

    Of a volume those of every slice, under its number and four digits of the slice.
    """
    if result.anomaly_map is None:
        return
    pixels, display_map = detector.in_unit_range(image), detector.display(result.anomaly_map)
    regions = regions_of(detector, result.anomaly_map, image)
    if not sample.is_volume:
        shown = overlay(pixels, display_map, regions=regions)
        writer.add(number, sample.id, sample.files[0], sample.frame, shown, regions)
        return
    for place, one in enumerate(sample.slices):
        shown = overlay(pixels[:, place], display_map[place], regions=regions[place])
        writer.add(10_000 * number + place + 1, sample.id, one.files[0], one.frame, shown, regions[place])


def regions_of(detector: Detector, anomaly_map: FloatArray, image: Image) -> BoolArray:
    """Return the pixels of the regions that count: bool, as the map."""
    limit = detector.calibrated[1].pixel.value
    return in_regions(anomaly_map, limit, image.valid, image.spacing_mm, detector.rules)


def mask_of(sample: Sample, image: Image) -> BoolArray | None:
    """Return the true mask, or None where it cannot be read: `scan` names it."""
    try:
        return _mask(sample, image.spatial_shape)
    except AnomalyAEError:
        return None


def _mask(sample: Sample, shape: tuple[int, ...]) -> BoolArray | None:
    if sample.is_volume:
        return read_volume_mask(sample.slices, shape)
    return read_mask(sample.mask, shape, sample.frame, sample.files[0]) if sample.mask else None


def _free_path(folder: Path, sample: Sample, suffix: str) -> Path:
    """Return a path that no other image of the run has taken: ``a b.png`` and ``a_b.png`` have one safe name."""
    path = folder / f"{file_stem(sample)}{suffix}"
    return folder / f"{file_stem(sample, is_taken=True)}{suffix}" if path.exists() else path


def file_stem(sample: Sample, is_taken: bool = False) -> str:
    """Return a short readable name that is safe on every system; ``is_taken``: another image has that name already.

    >>> file_stem(Sample(id="test/good/a b.png", path="", files=()))
    'test_good_a_b_png'
    """
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in sample.id)
    stem = safe if len(safe) <= 80 else f"{safe[-60:]}_{_digest(sample)}"
    return f"{stem}_{_digest(sample)}" if is_taken else stem


def _digest(sample: Sample) -> str:
    return hashlib.sha256(sample.id.encode()).hexdigest()[:12]


class MapKeeper:
    """Maps of the run in temporary files, because the pixel figures need to see every map twice.

    Pixel figures are computed when at least one image has a mask. Left out is what could count anomalous pixels as
    normal ones: images whose mask cannot be read, and anomalous ones without a mask or with an empty one.
    """

    def __init__(self, folder: Path, samples: Sequence[Sample]) -> None:
        self._folder = folder / "temporary_maps"
        self._entries: list[tuple[Path, Sample, BoolArray | None, tuple[float, ...] | None]] = []
        self._has_masks = any(sample.mask for sample in samples)
        self._disk_is_full = False
        self._left_out: defaultdict[str, list[str]] = defaultdict(list)

    def keep(self, sample: Sample, result: Score, image: Image, mask: BoolArray | None) -> None:
        """Keep one map, if pixel figures are still possible and the image has a part in them."""
        if not self._has_masks or self._disk_is_full or result.anomaly_map is None:
            return
        if why := why_left_out(sample, mask):
            self._left_out[why].append(sample.id)
            return
        self._folder.mkdir(exist_ok=True)
        if shutil.disk_usage(self._folder).free < MIN_FREE_BYTES + result.anomaly_map.nbytes:
            self._disk_is_full = True
            return
        path = self._folder / f"{len(self._entries)}.npy"
        np.save(path, result.anomaly_map, allow_pickle=False)
        self._entries.append((path, sample, image.valid, image.spacing_mm))

    def figures(self, detector: Detector) -> PixelFigures:
        """Return the pixel figures, or why there are none."""
        if not self._has_masks:
            return no_pixel_figures("there are no masks")
        if self._disk_is_full:
            return no_pixel_figures(_DISK_IS_FULL)
        limit, samples = detector.calibrated[1].pixel.value, [sample for _, sample, *_ in self._entries]
        return pixel_figures(self._maps, samples, limit, detector.rules)

    def warnings(self) -> list[str]:
        """Say what is missing in the pixel figures."""
        if self._disk_is_full:
            return [f"no pixel figures: {_DISK_IS_FULL}"]
        return [left_out_text(names, what) for what, names in self._left_out.items()]

    def close(self) -> None:
        """Remove the temporary maps."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _maps(self) -> Iterator[PixelMap]:
        for path, sample, valid, spacing_mm in self._entries:
            anomaly_map = np.load(path, allow_pickle=False)
            yield PixelMap(anomaly_map, _mask(sample, anomaly_map.shape), valid, spacing_mm)


def left_out_text(names: Sequence[str], what: str) -> str:
    """Say which images take no part in the pixel figures.

    >>> left_out_text(["a.png"], "images without a label")
    '1 image without a label is left out of the pixel figures: a.png'
    """
    what, are = (what.replace("images", "image", 1), "is") if len(names) == 1 else (what, "are")
    return f"{len(names)} {what} {are} left out of the pixel figures: {some_names(names)}"


def why_left_out(sample: Sample, mask: BoolArray | None) -> str:
    """Say why nobody knows which pixels of an image are anomalous; "" where it is known."""
    is_anomalous = sample.label == ANOMALOUS_LABEL
    if not sample.label:
        return "images without a label"
    if mask is None:
        cannot_be_used = "images whose mask cannot be used (`scan` says why)"
        return cannot_be_used if sample.mask else "anomalous images without a mask" if is_anomalous else ""
    if is_anomalous == mask.any():
        return ""
    return "anomalous images with an empty mask" if is_anomalous else "normal images whose mask marks a defect"


def _write_map(folder: Path, sample: Sample, anomaly_map: FloatArray) -> None:
    """Write a TIFF, or put the map of a slice into the volume of its NIfTI file."""
    import tifffile

    if is_nifti_file(sample.files[0]):
        path = folder / f"{file_stem(replace(sample, id=sample.path), is_taken=True)}.nii"
        frames = [one.frame for one in sample.slices] if sample.is_volume else [sample.frame]
        for frame, plane in zip(frames, anomaly_map.reshape(-1, *anomaly_map.shape[-2:]), strict=True):
            write_slice(path, sample.files[0], frame, plane)
        return

    buffer = io.BytesIO()
    tifffile.imwrite(buffer, anomaly_map.astype(np.float32), compression="zlib", photometric="minisblack")
    write_bytes(_free_path(folder, sample, ".tiff"), buffer.getvalue())
