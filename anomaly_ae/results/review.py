"""Figures of the review band: how much a person looks at, and what errors are left outside of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from anomaly_ae.calibration import CalibrationScores, Thresholds
from anomaly_ae.metrics import rate
from anomaly_ae.records import BoolArray, Metric
from anomaly_ae.results.tables import Row
from anomaly_ae.threshold import Threshold


def review_figures(
    labels: BoolArray, scores: npt.ArrayLike, threshold: Threshold, groups: Sequence[str] | None, noun: str
) -> dict[str, Any] | None:
    """Return what ``metrics.json`` says of the review band, as JSON values with intervals; None without a band.

    Parameters
    ----------
    labels : bool array, (n,)
        True = anomalous.
    scores : array, (n,)
    threshold : Threshold
        With its review limit.
    groups : sequence of str or None
        What belongs together; None = independent.
    noun : {"image", "unit"}
        What one score stands for.

    Returns
    -------
    dict or None
        "load" is the share of all that is for review, "load_normal" and "load_anomalous" that of each class,
        "escape_rate" the share of the anomalous that lies below the band, and "outside" holds the error rates among
        those that the detector decides alone.
    """
    if threshold.review is None:
        return None
    values = np.asarray(scores, np.float64)
    escaped, flagged = values < threshold.review.value, values >= threshold.value
    in_band, everything = ~escaped & ~flagged, np.ones(len(values), bool)

    def share(hits: BoolArray, among: BoolArray, name: str) -> dict[str, Any]:
        kept = None if groups is None else [g for g, chosen in zip(groups, among, strict=True) if chosen]
        value, intervals = rate(hits[among], kept, unit=noun)
        counts = int((among & ~labels).sum()), int((among & labels).sum())
        return Metric(value, *counts, intervals, "" if among.any() else f"no {name} {noun}s").as_json()

    return {
        "threshold": threshold.review.value,
        "promise": threshold.review.promise,
        "load": share(in_band, everything, "labelled"),
        "load_normal": share(in_band, ~labels, "normal"),
        "load_anomalous": share(in_band, labels, "anomalous"),
        "escape_rate": share(escaped, labels, "anomalous"),
        "outside": {
            "false_alarm_rate": share(flagged, ~labels & ~in_band, "normal"),
            "escape_rate": share(escaped, labels & ~in_band, "anomalous"),
        },
    }


def limit_lines(thresholds: Thresholds, scores: CalibrationScores) -> list[str]:
    """Say what the limits of images promise, and what the calibration images say where a rule promises nothing."""
    limit, review = thresholds.image, thresholds.image.review
    lines = [f"image threshold {limit.value:.4g}: {limit.promise}"]
    if limit.rule != "false_alarm_rate":
        note = "; it was chosen on them, so expect more" if limit.rule == "cost" else ""
        lines.append(f"false alarms: {_of_a_thousand(scores.image >= limit.value, scores)}{note}")
    if review:
        in_band = (scores.image >= review.value) & (scores.image < limit.value)
        lines.append(f"review from {review.value:.4g}: {review.promise}")
        lines.append(f"for review: {_of_a_thousand(in_band, scores)}")
    return lines


def _of_a_thousand(hits: BoolArray, scores: CalibrationScores) -> str:
    groups = None if scores.image_group is None else scores.image_group.tolist()
    value, intervals = rate(hits, groups)
    low, high = (1000 * end for end in (intervals[0].low, intervals[0].high))
    return (
        f"about {1000 * (value or 0):.0f} of 1,000 normal images [{low:.0f}, {high:.0f}], by the {hits.sum()} of "
        f"{len(hits)} calibration images that lie there"
    )


def images_sha256(rows: Sequence[Row]) -> str:
    """Return a hash of the images of a run, whatever their order: what a rule that was chosen on them keeps."""
    hashes = sorted({str(row["image_sha256"]) for row in rows})
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def chosen_on_these(thresholds: Thresholds, rows: Sequence[Row]) -> bool:
    """Say whether a limit was chosen on the very images of these rows: then its figures on them are no forecast."""
    limits = [part for limit in (thresholds.image, thresholds.unit) for part in (limit, limit.review) if part]
    return images_sha256(rows) in {limit.chosen_on for limit in limits}
