"""Figures of the review band: how much a person looks at, and what errors are left outside of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
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


def review_lines(figures: Mapping[str, Any], noun: str) -> list[str]:
    """Say what a person looks at, per 1,000, and which errors nobody looks at again; nothing without a band.

    Parameters
    ----------
    figures : mapping
        "image" or "unit" of ``metrics.json``.
    noun : {"image", "unit"}
        What one score stands for.
    """
    reviews = [at["review"] for at in figures["at_threshold"] if at["review"]]
    return [line for review in reviews for line in _review_lines(review, figures["at_defect_rate"], noun)]


def _review_lines(review: Mapping[str, Any], streams: Sequence[Mapping[str, Any]], noun: str) -> list[str]:
    loads = {f"of these {noun}s": review["load"], f"of normal {noun}s": review["load_normal"]}
    loads |= {f"with {100 * stream['defect_rate']:g} % defective": stream["review"] for stream in streams}
    outside = review["outside"]
    return [
        f"for review, of 1,000 {noun}s: " + "; ".join(f"{_per_thousand(load)} {what}" for what, load in loads.items()),
        figure_line("anomalous below the review band", review["escape_rate"]),
        figure_line("outside the band: false-alarm rate", outside["false_alarm_rate"]),
        figure_line("outside the band: anomalous below it", outside["escape_rate"]),
    ]


def _per_thousand(metric: Mapping[str, Any]) -> str:
    if metric["value"] is None:
        return f"({metric['reason']})"
    interval = "".join(f" [{1000 * one['low']:.0f}, {1000 * one['high']:.0f}]" for one in metric["intervals"][:1])
    return f"{1000 * metric['value']:.0f}{interval}"


def figure_line(name: str, metric: Mapping[str, Any], n_digits: int = 3) -> str:
    """Say a figure with its first interval, or why there is none.

    >>> figure_line("sensitivity", {"value": 0.5, "intervals": [{"low": 0.25, "high": 0.75}]}, 2)
    'sensitivity 0.50 [0.25, 0.75]'
    """
    if metric["value"] is None:
        return f"{name}: {metric['reason']}"
    first = next(iter(metric["intervals"]), None)
    interval = f" [{first['low']:.{n_digits}f}, {first['high']:.{n_digits}f}]" if first else ""
    return f"{name} {metric['value']:.{n_digits}f}{interval}"


def limit_lines(thresholds: Thresholds, scores: CalibrationScores, noun: str = "image") -> list[str]:
    """Say what the limits of images, or units, promise, and what calibration says where a rule promises nothing."""
    limit = thresholds.unit if noun == "unit" else thresholds.image
    of_normals, groups = scores.of(noun)

    def of_a_thousand(hits: BoolArray) -> str:
        value, intervals = rate(hits, None if groups is None else groups.tolist())
        low, high = (1000 * end for end in (intervals[0].low, intervals[0].high))
        return (
            f"about {1000 * (value or 0):.0f} of 1,000 normal {noun}s [{low:.0f}, {high:.0f}], by the {hits.sum()} of "
            f"{len(hits)} calibration {noun}s that lie there"
        )

    lines = [f"{noun} threshold {limit.value:.4g}: {limit.promise}"]
    if limit.rule != "false_alarm_rate":
        note = "; it was chosen on them, so expect more" if limit.rule == "cost" else ""
        lines.append(f"false alarms: {of_a_thousand(of_normals >= limit.value)}{note}")
    if limit.review:
        in_band = (of_normals >= limit.review.value) & (of_normals < limit.value)
        lines.append(f"review from {limit.review.value:.4g}: {limit.review.promise}")
        lines.append(f"for review: {of_a_thousand(in_band)}")
    return lines


def images_sha256(rows: Sequence[Row]) -> str:
    """Return a hash of the images of a run, whatever their order: what a rule that was chosen on them keeps."""
    hashes = sorted({str(row["image_sha256"]) for row in rows})
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def chosen_on_these(thresholds: Thresholds, rows: Sequence[Row]) -> bool:
    """Say whether a limit was chosen on the very images of these rows: then its figures on them are no forecast."""
    limits = [part for limit in (thresholds.image, thresholds.unit) for part in (limit, limit.review) if part]
    return images_sha256(rows) in {limit.chosen_on for limit in limits}
