"""Frozen values that travel between the modules.

Arrays inside a record are read-only. Records compare by identity: two images are not "equal" because their pixels are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from anomaly_ae.errors import UsageError

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.floating[Any]]
PixelArray = npt.NDArray[Any]

NORMAL_LABEL = "normal"
ANOMALOUS_LABEL = "anomalous"


def now_utc() -> str:
    """Return the time in UTC, as the tables of a run have it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Decision(IntEnum):
    """The decision codes of result files. A failed or late image is never "normal"."""

    NORMAL = 0
    REVIEW = 1
    ANOMALOUS = 2
    NOT_INSPECTED = 9


class Slice(NamedTuple):
    """Where one slice of a volume is read from: the files of its channels, the frame in them, its two masks."""

    files: tuple[Path, ...]
    frame: int = 0
    valid: Path | None = None
    mask: Path | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """One frame as the file has it, or one volume: its slices stacked, the first axis from left, back or bottom.

    Attributes
    ----------
    pixels : array, (channels, *spatial)
        The file's own numbers in the file's own dtype; for CT, Hounsfield units after the modality LUT.
    valid : bool array, (*spatial), or None
        True where the pixel belongs to the object (alpha, DICOM padding, a mask file); None = everywhere.
    spacing_mm : tuple of float or None
        Distance of neighbouring pixels per spatial axis, in millimetres.
    source : str
        What messages call the image: the path as the user wrote it.
    n_frames : int
        How many frames the file holds.
    bits_stored : int or None
        Bits that carry information where the file says so (DICOM BitsStored, integer dtype); None for float data.
    was_grey_rgb : bool
        The file has three equal channels; one was kept.
    volume : tuple of Slice
        All slices of the volume that the image is one of; empty where it stands alone.
    window : (lowest, highest) or None
        Between which values the file wants to be shown (DICOM), in the numbers of ``pixels``. Nothing is done to them.
    """

    pixels: PixelArray
    valid: BoolArray | None = None
    spacing_mm: tuple[float, ...] | None = None
    source: str = "array"
    n_frames: int = 1
    bits_stored: int | None = None
    was_grey_rgb: bool = False
    volume: tuple[Slice, ...] = ()
    window: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Refuse arrays that do not belong together; what is kept are read-only views of them."""
        _check_arrays(self.pixels, self.valid, self.source)
        object.__setattr__(self, "pixels", _read_only(self.pixels))
        object.__setattr__(self, "valid", None if self.valid is None else _read_only(self.valid))

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        """Shape without the channel axis, e.g. (height, width)."""
        return tuple(self.pixels.shape[1:])

    @property
    def n_channels(self) -> int:
        """Number of channels."""
        return int(self.pixels.shape[0])


def _check_arrays(pixels: PixelArray, valid: BoolArray | None, source: str) -> None:
    if pixels.ndim < 3:
        what, why = f"{source}: pixels of shape {pixels.shape}", "an Image has an axis of channels before all others"
        raise UsageError(what, why, "pass pixels[None] for a grey image, or score the array itself")
    if valid is not None and (valid.dtype != np.bool_ or valid.shape != pixels.shape[1:]):
        what = f"{source}: a valid mask of type {valid.dtype} and shape {valid.shape}"
        fix = "pass valid=mask > 0, of that shape"
        raise UsageError(what, f"it is bool, and of shape {pixels.shape[1:]} as each channel", fix)


def _read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array of the caller stays writable."""
    view = array.view()
    view.setflags(write=False)
    return view


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One row of a manifest: what to read, and what is known about it.

    Attributes
    ----------
    id : str
        Unique in the manifest; by default the path.
    path : str
        As written in the manifest: relative to it; several files joined by ``|`` are channels of one sample.
    files : tuple of Path
        The same, resolved.
    label : str
        "normal", "anomalous" or "" (unknown).
    unit, group : str
        What is decided (a part, a patient), and what never crosses a split.
    split : str
        "train", "validation", "calibration", "test" or "".
    volume : str
        What the rows of one volume have in common where each slice is a file of its own, as in a DICOM series.
    slices : tuple of Slice
        What those rows are read from.
    is_volume : bool
        The row is the whole volume that `slices` are stacked to, and not one of them.
    extra : mapping
        Further columns (scanner, station, shift), kept and copied to the results.
    """

    id: str
    path: str
    files: tuple[Path, ...]
    frame: int = 0
    label: str = ""
    mask: Path | None = None
    valid: Path | None = None
    unit: str = ""
    group: str = ""
    split: str = ""
    defect: str = ""
    volume: str = ""
    slices: tuple[Slice, ...] = ()
    is_volume: bool = False
    extra: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """One connected region of the anomaly map at or above the pixel threshold, on the image's own grid.

    Attributes
    ----------
    area_px : int
        Number of pixels (of a volume: voxels).
    area_mm2 : float or None
        Area in mm² (volume in mm³ for volumes); None without a spacing.
    box_px : tuple of int
        First index per axis, then one past the last index per axis: (top, left, bottom, right).
    centroid_px : tuple of float
        Mean index per axis, pixel centres at whole numbers.
    peak, mean : float
        Largest and mean anomaly-map value inside.
    """

    area_px: int
    area_mm2: float | None
    box_px: tuple[int, ...]
    centroid_px: tuple[float, ...]
    peak: float
    mean: float

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "area_px": self.area_px,
            "area_mm2": self.area_mm2,
            "box_px": list(self.box_px),
            "centroid_px": [round(c, 2) for c in self.centroid_px],
            "peak": self.peak,
            "mean": self.mean,
        }


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """The result for one image.

    Attributes
    ----------
    score : float
        Higher = more anomalous; ``score >= threshold`` is anomalous.
    display : float
        0 = a typical normal image (median of the calibration scores), 1 = the threshold.
    p_value : float
        Share of normal images at least as anomalous (conformal, never 0).
    anomaly_map : float32 array, (*spatial), or None
        On the image's own grid.
    milliseconds : float
        From the start of reading to the end of the regions.
    """

    id: str
    path: str
    frame: int
    unit: str
    group: str
    time_utc: str
    decision: Decision
    score: float
    threshold: float
    display: float
    p_value: float
    regions: tuple[Region, ...]
    milliseconds: float
    image_sha256: str
    weights_sha256: str
    thresholds_sha256: str
    version: str
    anomaly_map: FloatArray | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Failure:
    """An image that was not inspected, why, and when that was seen. Travels where a `Score` would."""

    id: str
    path: str
    frame: int
    unit: str
    group: str
    reason: str
    decision: Decision = Decision.NOT_INSPECTED
    time_utc: str = field(default_factory=now_utc)


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval of a metric.

    Attributes
    ----------
    method : str
        How it was computed.
    unit : str
        What was taken as independent ("image", "group").
    detail : str
        What differs from interval to interval of one method: an effective sample size, draws that were dropped.
    """

    low: float
    high: float
    method: str
    unit: str = "image"
    detail: str = ""

    @property
    def said(self) -> str:
        """Method and detail."""
        return f"{self.method}, {self.detail}" if self.detail else self.method


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure with what it was computed on. ``value`` is None when it cannot be computed; ``reason`` says why.

    >>> Metric(0.97, 50, 14).as_json()["value"]
    0.97
    """

    value: float | None
    n_normal: int
    n_anomalous: int
    intervals: tuple[Interval, ...] = ()
    reason: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the form of ``metrics.json``: finite numbers or null, never NaN."""
        return {
            "value": _finite(self.value),
            "n_normal": self.n_normal,
            "n_anomalous": self.n_anomalous,
            "intervals": [{**asdict(i), "low": _finite(i.low), "high": _finite(i.high)} for i in self.intervals],
            "reason": self.reason,
        }


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
