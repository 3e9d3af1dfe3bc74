"""The scores that thresholds come from, and the three thresholds of a model. Numpy only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from anomaly_ae.records import FloatArray
from anomaly_ae.threshold import Share, Threshold, conformal_threshold, default_rate


@dataclass(frozen=True, slots=True, eq=False)
class CalibrationScores:
    """What the normals that nothing was learned from scored; thresholds and p-values come from here.

    Attributes
    ----------
    image, pixel : float64 array, (n,)
        Score of every image, and the largest valid pixel of its map.
    image_group : int64 array, (n,), or None
        Group number of every image; None where every image is its own group.
    unit : float64 array, (m,)
        Largest image score of every unit.
    unit_group : int64 array, (m,), or None
    """

    image: FloatArray
    pixel: FloatArray
    image_group: npt.NDArray[np.int64] | None
    unit: FloatArray
    unit_group: npt.NDArray[np.int64] | None

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values, as ``run.json`` holds them."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: None if array is None else array.tolist() for name, array in values.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> CalibrationScores:
        """Read what `as_json` wrote."""

        def numbers(name: str) -> npt.NDArray[np.int64] | None:
            return None if values[name] is None else np.array(values[name], np.int64)

        return cls(
            image=np.array(values["image"], np.float64),
            pixel=np.array(values["pixel"], np.float64),
            image_group=numbers("image_group"),
            unit=np.array(values["unit"], np.float64),
            unit_group=numbers("unit_group"),
        )

    @property
    def median(self) -> float:
        """Score of a typical normal image."""
        return float(np.median(self.image))


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The three limits of a model: of images, of units, and of pixels."""

    image: Threshold
    unit: Threshold
    pixel: Threshold

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"image": self.image.as_json(), "unit": self.unit.as_json(), "pixel": self.pixel.as_json()}

    @property
    def sha256(self) -> str:
        """Hash of values and origin."""
        return hashlib.sha256(json.dumps(self.as_json(), sort_keys=True).encode()).hexdigest()

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Thresholds:
        """Read what `as_json` wrote."""
        return cls(*(Threshold.from_json(values[name]) for name in ("image", "unit", "pixel")))


def thresholds_from(
    scores: CalibrationScores, rate: Share | None = None, confidence: Share | None = None
) -> Thresholds:
    """Set the three thresholds for a false-alarm rate; None takes 1 %, or what the normals can support.

    Raises
    ------
    CalibrationError
        An asked-for rate that cannot be promised.
    """

    def limit(values: FloatArray, groups: npt.NDArray[np.int64] | None, noun: str = "image") -> Threshold:
        n_groups = None if groups is None else len(np.unique(groups))
        asked = default_rate(len(values), n_groups, confidence) if rate is None else rate
        return conformal_threshold(values, asked, groups, confidence, noun)

    return Thresholds(
        image=limit(scores.image, scores.image_group),
        unit=limit(scores.unit, scores.unit_group, "unit"),
        pixel=limit(scores.pixel, scores.image_group),
    )


def calibration_scores(
    image: Sequence[float], pixel: Sequence[float], units: Sequence[str], groups: Sequence[str]
) -> CalibrationScores:
    """Collect calibration scores; groups and units become numbers, so that no name enters the model file."""
    unit_of = np.unique(units, return_inverse=True)[1]
    group_of = np.unique(groups, return_inverse=True)[1].astype(np.int64)
    scores = np.asarray(image, np.float64)
    n_units = int(unit_of.max()) + 1
    unit = np.full(n_units, -np.inf)
    np.maximum.at(unit, unit_of, scores)
    unit_group = np.zeros(n_units, np.int64)
    unit_group[unit_of] = group_of
    return CalibrationScores(
        image=scores,
        pixel=np.asarray(pixel, np.float64),
        image_group=_unless_all_differ(group_of),
        unit=unit,
        unit_group=_unless_all_differ(unit_group),
    )


def _unless_all_differ(groups: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | None:
    return None if len(np.unique(groups)) == len(groups) else groups
