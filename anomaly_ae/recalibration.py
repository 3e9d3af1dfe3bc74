"""A finished model changed without training: new thresholds without a single image, or other region rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from anomaly_ae.calibration import Asked, thresholds_by
from anomaly_ae.config import overridden
from anomaly_ae.detector import Detector
from anomaly_ae.errors import UsageError
from anomaly_ae.regions import RegionRules
from anomaly_ae.results import FinishedScores

AFTER_THE_MAP = tuple(
    f"scoring.{name}" for name in ("pooling", "top_share", "quantile", *(f.name for f in fields(RegionRules)))
)
"""Settings that turn a map into a score. With all others a model is trained."""


def rescored(detector: Detector, settings: Sequence[str]) -> Detector:
    """Return the detector with other settings of what follows the map: region rules and pooling.

    No map changes, but every score may: it has no thresholds, and has to be calibrated.

    Parameters
    ----------
    settings : sequence of str
        ``key=value``, of `AFTER_THE_MAP`.

    Raises
    ------
    UsageError
        Another setting.
    ConfigError
        A value out of range.
    """
    config = overridden(detector.config, settings)  # refuses what is no setting at all
    for setting in settings:
        key = setting.partition("=")[0].strip()
        if key not in AFTER_THE_MAP:
            why, fix = "the model was trained with it", f"fit again; free are {', '.join(AFTER_THE_MAP)}"
            raise UsageError(f"{key} of a finished model cannot be changed", why, fix)
    return detector.with_settings(config)


def recalibrated(detector: Detector, asked: Asked, finished: FinishedScores | None = None) -> Detector:
    """Return the detector with thresholds by another rule; no score changes.

    Parameters
    ----------
    asked : Asked
        The rule, and perhaps a review band. A review band alone leaves the thresholds as they are, unless the
        normal images are new.
    finished : FinishedScores or None
        Its normal images, if there are any, take the place of the calibration images; its anomalous ones are what
        "sensitivity" and "cost" are set on. None keeps the calibration scores of the model.

    Raises
    ------
    CalibrationError, DataError, UsageError
        As `thresholds_by`; a finished run of a model whose score is not the largest pixel.
    """
    scores, given = detector.calibrated
    if finished is None:
        changed = detector.with_thresholds(scores, thresholds_by(asked, scores, given=given))
        return _described(changed, "labelled", None)
    if detector.config.scoring.pooling != "max":
        raise UsageError(
            f"this model pools by {detector.config.scoring.pooling}",
            "a finished run does not hold the largest pixel of each map, which its pixel threshold needs",
            "calibrate with the images",
        )
    new, kept = (finished.normal, None) if finished.normal else (scores, given)
    thresholds = thresholds_by(asked, new, finished.anomalous, finished.images_sha256, kept)
    changed = detector.with_thresholds(new, thresholds)
    _described(changed, "labelled", finished.hashes["labelled"] if asked.needs_anomalies else None)
    return changed if finished.normal is None else _counted(changed, finished)


def _described(detector: Detector, part: str, hashes: list[str] | None) -> Detector:
    """Write into the provenance which images the thresholds come from: `evaluate` knows them again by their hashes."""
    others = {name: own for name, own in detector.provenance.get("image_hashes", {}).items() if name != part}
    detector.provenance["image_hashes"] = others if hashes is None else {**others, part: hashes}
    return detector


def _counted(detector: Detector, finished: FinishedScores) -> Detector:
    """Write into the provenance what the new calibration images are."""
    made = detector.provenance
    made["n_images"] = {**made.get("n_images", {}), "calibration": finished.n_normal}
    made["n_groups"] = {**made.get("n_groups", {}), "calibration": finished.n_groups}
    made["calibration_statistics"] = finished.statistics
    return _described(detector, "calibration", finished.hashes["calibration"])
