"""One row for every image and every unit: what was found, and what was decided about it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from anomaly_ae.calibration import CalibrationScores, Thresholds, unit_scores
from anomaly_ae.manifest.slices import is_suspect
from anomaly_ae.records import ANOMALOUS_LABEL, Decision, Failure, Sample, Score
from anomaly_ae.results.tables import BASELINES, COUNTED, FORMAT, Row
from anomaly_ae.threshold import decide_all, display_values, p_values

N_REGIONS_IN_ROW = 50
_UNDECIDED = ("", "", "")  # decision, display value and p-value
_NOT_INSPECTED = (int(Decision.NOT_INSPECTED), None, None)


def score_row(sample: Sample, result: Score, pixel_threshold: float, counts: bool | None = None) -> dict[str, Any]:
    """Return one line of ``scores.jsonl``; ``scores.csv`` has the same without the regions.

    `counts` says whether a slice counts for its unit, see `manifest.counted_for_unit`; None where all do.
    """
    for_unit = {} if counts is None else {COUNTED: int(counts)}
    return {
        "format": FORMAT,
        "id": result.id,
        "path": result.path,
        "frame": result.frame,
        "label": sample.label,
        "defect": sample.defect,
        "unit": result.unit,
        "group": result.group,
        "time_utc": result.time_utc,
        "decision": int(result.decision),
        "score": result.score,
        "threshold": result.threshold,
        "display": result.display,
        "p_value": result.p_value,
        "pixel_threshold": pixel_threshold,
        "n_regions": len(result.regions),
        "largest_region_px": max((r.area_px for r in result.regions), default=0),
        "milliseconds": round(result.milliseconds, 1),
        "image_sha256": result.image_sha256,
        "weights_sha256": result.weights_sha256,
        "thresholds_sha256": result.thresholds_sha256,
        "version": result.version,
        **for_unit,
        "extra": dict(sample.extra),
        "regions": [region.as_json() for region in result.regions[:N_REGIONS_IN_ROW]],
    }


def failure_row(failure: Failure) -> dict[str, Any]:
    """Return one line of ``failures.csv``."""
    return {"format": FORMAT, **asdict(failure)}


def decide_rows(rows: Sequence[Row], scores: CalibrationScores, thresholds: Thresholds) -> list[dict[str, Any]]:
    """Return the rows with decisions, display values and p-values for these thresholds.

    Regions stay as they are, and so does ``pixel_threshold``, which says what they follow: only a map can tell more.
    """
    limit, median = thresholds.image, scores.median
    values = np.array([row["score"] for row in rows], np.float64)
    sha256 = thresholds.sha256
    decisions, shown = decide_all(values, limit), display_values(values, limit.value, median).tolist()
    p = p_values(values, scores.image, scores.image_group).tolist()
    return [
        {
            **row,
            "decision": int(decision),
            "threshold": limit.value,
            "display": display,
            "p_value": p_value,
            "thresholds_sha256": sha256,
        }
        for row, decision, display, p_value in zip(rows, decisions, shown, p, strict=True)
    ]


def unit_rows(
    rows: Sequence[Row],
    incomplete: Mapping[str, str],
    scores: CalibrationScores | None = None,
    thresholds: Thresholds | None = None,
) -> list[dict[str, Any]]:
    """Decide every unit by the largest score of its images that count: see `calibration.unit_scores`.

    Parameters
    ----------
    incomplete : mapping of str to str
        Units with an unreadable image, and their groups: these are not inspected, never normal.
    scores, thresholds : CalibrationScores and Thresholds, or None
        Without them the units have their scores, and nothing is decided.
    """
    images: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        images[row["unit"]].append(row)
    whole = {unit: score for unit, score in _scores(images).items() if unit not in incomplete}
    decided = _decided(whole, scores, thresholds) if scores and thresholds else {}
    limit = thresholds.unit.value if thresholds else ""
    found = []
    for unit in sorted({*images, *incomplete}):
        own = images.get(unit, [])
        decision, display, p_value = decided.get(unit, _UNDECIDED) if unit in whole else _NOT_INSPECTED
        found.append(
            {
                "format": FORMAT,
                "unit": unit,
                "group": own[0]["group"] if own else incomplete[unit],
                "label": unit_label(own),
                "decision": decision,
                "score": whole.get(unit),
                "threshold": limit,
                "display": display,
                "p_value": p_value,
                "n_images": len(own),
                "baselines": _baselines(own) if unit in whole else None,
            }
        )
    return found


def counted_rows(rows: Sequence[Row]) -> list[bool]:
    """Say which rows count for their unit: all, where the run does not say."""
    return [bool(int(row.get(COUNTED, 1))) for row in rows]


def _scores(images: Mapping[str, Sequence[Row]]) -> dict[str, float]:
    """Return the score of each unit, of all at once: one after the other takes ten times as long."""
    if not images:
        return {}
    rows = [row for own in images.values() for row in own]
    unit_of = np.repeat(np.arange(len(images)), [len(own) for own in images.values()])
    scores = unit_scores(np.array([row["score"] for row in rows], np.float64), unit_of, np.array(counted_rows(rows)))
    return dict(zip(images, scores.tolist(), strict=True))


def unit_label(own: Sequence[Row]) -> str:
    """Return the label of a unit: anomalous if one of its images or volumes is; "" where its images are not all normal.

    >>> unit_label([{"label": "normal", "extra": {}}, {"label": "", "extra": {"volume_label": "anomalous"}}])
    'anomalous'
    """
    labels = {ANOMALOUS_LABEL if is_suspect(row["label"], row["extra"]) else row["label"] for row in own}
    if ANOMALOUS_LABEL in labels:
        return ANOMALOUS_LABEL
    return str(labels.pop()) if len(labels) == 1 else ""


def _decided(
    whole: Mapping[str, float], scores: CalibrationScores, thresholds: Thresholds
) -> dict[str, tuple[int, float, float]]:
    """Return decision, display value and p-value of each unit, from its score."""
    values, limit = np.array(list(whole.values()), np.float64), thresholds.unit
    p = p_values(values, scores.unit, scores.unit_group).tolist()  # of all at once: one alone takes as long
    shown = display_values(values, limit.value, float(np.median(scores.unit))).tolist()
    decisions = map(int, decide_all(values, limit))
    return dict(zip(whole, zip(decisions, shown, p, strict=True), strict=True))


def _baselines(own: Sequence[Row]) -> dict[str, float]:
    return {name: max(image["baselines"][name] for image in own) for name in BASELINES if name in own[0]["baselines"]}
