"""`evaluate --scores`: the scores of any tool into a RUN, with the same figures, intervals and report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anomaly_ae.calibration import CalibrationScores, Thresholds, calibration_scores, thresholds_from
from anomaly_ae.errors import AnomalyAEError, CalibrationError, DataError
from anomaly_ae.evaluation.facts import counts, facts_of_data, facts_of_run, name_of
from anomaly_ae.evaluation.folder import new_folder, refuse_existing, say_left_behind
from anomaly_ae.evaluation.result import RunResult
from anomaly_ae.evaluation.run import RunOptions
from anomaly_ae.evaluation.samples import refuse_unknown_columns, test_samples
from anomaly_ae.evaluation.theirs import TheirMaps, TheirScores, read_their_scores
from anomaly_ae.files import holds
from anomaly_ae.keeping import left_out_text
from anomaly_ae.listener import Listener
from anomaly_ae.manifest import Manifest, check_groups
from anomaly_ae.manifest.facts import inspect_all
from anomaly_ae.manifest.slices import is_suspect
from anomaly_ae.readers import image_sha256, read_mask
from anomaly_ae.records import Decision, Failure, Sample, now_utc
from anomaly_ae.report import write_report
from anomaly_ae.results import (
    FORMAT,
    SCORE_COLUMNS,
    decide_rows,
    failure_row,
    no_pixel_figures,
    pixel_figures,
    run_metrics,
    shortcut_figures,
    unit_rows,
    write_json,
    write_pixels,
    write_tables,
)
from anomaly_ae.shortcuts import shortcut_warnings
from anomaly_ae.threshold import Share
from anomaly_ae.usable import of_whole_units
from anomaly_ae.version import __version__
from anomaly_ae.words import n_of, text_of

_NO_CALIBRATION = (
    "No threshold: there are no scores of calibration images. Give scores of normal images that nothing was learned "
    "from, as rows of split calibration, and there is one with a stated false-alarm rate."
)


@dataclass(frozen=True, slots=True)
class _Limits:
    """What the calibration rows give: thresholds with their scores, or the reason why there are none."""

    scores: CalibrationScores | None = None
    thresholds: Thresholds | None = None
    has_pixels: bool = False
    reason: str = ""


@dataclass(slots=True)
class _Measured:
    """What is known of the test images."""

    rows: list[dict[str, Any]]
    units: list[dict[str, Any]]
    failures: list[Failure]
    warnings: list[str] = field(default_factory=list)


def evaluate_scores(
    table: str | Path,
    manifest: Manifest,
    out: str | Path,
    options: RunOptions,
    maps: str | Path | None = None,
    listener: Listener | None = None,
    rate: Share | None = None,
) -> RunResult:
    """Measure the scores of another tool on the labelled test images of a manifest.

    Without rows of split "calibration" there is no threshold: ranking figures only. The images are read for the check
    on shortcuts alone; one that is not there costs nothing else.

    Parameters
    ----------
    table : str or Path
        CSV with the columns ``path`` and ``score``; see `read_their_scores`.
    maps : str, Path or None
        Folder of anomaly maps, for the pixel figures; see `TheirMaps`.
    rate : Share or None
        False-alarm rate of the threshold; None takes 1 %, or what the calibration rows can support.

    Raises
    ------
    CalibrationError
        A rate is asked for, and there are no calibration rows, or too few.
    DataError
        No labelled test image, no score of one, a group in two splits, or a unit in two groups.
    UsageError
        A column of ``options.by`` that the manifest does not have.
    """
    started, listener = time.perf_counter(), listener or Listener()
    table, out = Path(table), Path(out)
    refuse_existing(out, options.overwrite)
    say_left_behind(out, listener)
    check_groups(manifest.samples)
    samples = test_samples(manifest)
    refuse_unknown_columns(samples, options.by)
    theirs = read_their_scores(table, manifest.samples)
    folder_of_maps = None if maps is None else TheirMaps(_existing(Path(maps)))
    limits = _limits(theirs, manifest, folder_of_maps, rate, listener)
    measured = _measure(samples, theirs, limits, listener)
    with new_folder(out, options.overwrite) as folder:
        listener.progress("measuring", 0, 1, "")
        metrics = _metrics(measured, samples, limits, folder_of_maps, options, folder)
        metrics |= {"model": {"name": text_of(table.name), "sha256": image_sha256(table)}, "data": name_of(manifest)}
        metrics["seconds"] = round(time.perf_counter() - started, 2)
        _write(folder, manifest, measured, limits, metrics)
    n_anomalous = sum(row["decision"] == Decision.ANOMALOUS for row in measured.rows)
    return RunResult(
        out, len(measured.rows), measured.failures, n_anomalous, metrics, tuple(measured.warnings),
        no_threshold=limits.reason,
    )  # fmt: skip


def _existing(maps: Path) -> Path:
    if not holds(maps.is_dir):
        raise DataError(f"{maps} is no folder", "it should hold the anomaly maps", "check its name")
    return maps


def _limits(
    theirs: TheirScores, manifest: Manifest, maps: TheirMaps | None, rate: Share | None, listener: Listener
) -> _Limits:
    """Set the thresholds on the normal calibration rows with a score, of units that have all of theirs.

    Where a rate is asked there have to be some.
    """
    rows = manifest.select(split="calibration")
    scored = [s for s in rows if not is_suspect(s.label, s.extra) and s.id in theirs.scores]
    if not scored and rate is not None:
        why, fix = "it is promised by them", "give scores of rows of split calibration"
        raise CalibrationError("a false-alarm rate without scores of calibration images", why, fix)
    if not scored:
        return _Limits(reason=_NO_CALIBRATION)
    chosen = of_whole_units(scored, rows, listener)
    image = [theirs.scores[sample.id] for sample in chosen]
    pixel = maps.highest(chosen) if maps else None
    units, groups = [s.unit for s in chosen], [s.group for s in chosen]
    scores = calibration_scores(image, pixel or image, units, groups)
    try:
        return _Limits(scores, thresholds_from(scores, rate), pixel is not None)
    except CalibrationError as error:
        if rate is not None:
            raise
        return _Limits(reason=f"No threshold: {error}")


def _measure(samples: Sequence[Sample], theirs: TheirScores, limits: _Limits, listener: Listener) -> _Measured:
    scored = [sample for sample in samples if sample.id in theirs.scores]
    if not scored:
        reason = next((theirs.missing[sample.id] for sample in samples if sample.id in theirs.missing), "")
        why = f"of {len(samples)}; the first: {reason}"
        raise DataError("no labelled test image has a score", why, "give their scores, with a decimal point")
    facts = inspect_all(scored, lambda done, total: listener.progress("reading images", done, total, ""))
    rows = [
        {**_row(one.sample, theirs.scores[one.sample.id]), "properties": one.facts.properties if one.facts else None}
        for one in facts
    ]
    failures = [
        Failure(s.id, s.path, s.frame, s.unit, s.group, theirs.missing[s.id]) for s in samples if s.id in theirs.missing
    ]
    incomplete = {failure.unit: failure.group for failure in failures}
    if limits.thresholds and limits.scores:
        rows = decide_rows(rows, limits.scores, limits.thresholds)
        pixel = limits.thresholds.pixel.value if limits.has_pixels else ""
        rows = [{**row, "pixel_threshold": pixel, "thresholds_sha256": ""} for row in rows]
    units = unit_rows(rows, incomplete, limits.scores, limits.thresholds)
    n_unread = sum(one.facts is None for one in facts)
    notes = [f"{n_of(theirs.n_unknown, 'score')} of images that are not in the data"] if theirs.n_unknown else []
    notes += [f"{n_of(n_unread, 'image')} cannot be read: left out of the check on shortcuts"] if n_unread else []
    return _Measured(rows, units, failures, [*shortcut_warnings(shortcut_figures(rows)), *notes])


def _row(sample: Sample, score: float) -> dict[str, Any]:
    known = {
        "format": FORMAT,
        **{name: getattr(sample, name) for name in ("id", "path", "frame", "label", "defect", "unit", "group")},
        "time_utc": now_utc(),
        "score": score,
        "version": __version__,
    }
    empty = dict.fromkeys(SCORE_COLUMNS, "")
    return {**empty, **known, "extra": dict(sample.extra), "regions": [], "baselines": {}, "mask_px": _mask_px(sample)}


def _mask_px(sample: Sample) -> int | None:
    try:
        if sample.mask is None:
            return None
        return int(read_mask(sample.mask, frame=sample.frame, image_file=sample.files[0]).sum())
    except AnomalyAEError:
        return None


def _metrics(
    measured: _Measured,
    samples: Sequence[Sample],
    limits: _Limits,
    maps: TheirMaps | None,
    options: RunOptions,
    folder: Path,
) -> dict[str, Any]:
    """Return ``metrics.json``; pixel figures where there are maps and masks, with a warning on what is left out."""
    if maps is None or not any(sample.mask for sample in samples):
        pixel = no_pixel_figures("there are no maps" if maps is None else "there are no masks")
    else:
        usable, left_out = maps.usable(samples)
        limit = limits.thresholds.pixel.value if limits.thresholds and limits.has_pixels else None
        pixel = pixel_figures(lambda: maps.maps(usable), usable, limit)
        measured.warnings += [left_out_text(names, what) for what, names in left_out.items()]
    write_pixels(folder, pixel)
    return {
        "format": FORMAT,
        "counts": counts(measured.rows, measured.units, len(measured.failures)),
        "what_if": False,
        "chosen_on_these_images": False,
        **run_metrics(measured.rows, measured.units, limits.thresholds, options.by, options.defect_rates),
        "pixel": pixel.metrics,
        "baselines": {},
    }


def _write(folder: Path, manifest: Manifest, measured: _Measured, limits: _Limits, metrics: Mapping[str, Any]) -> None:
    write_tables(folder, measured.rows, measured.units, [failure_row(failure) for failure in measured.failures])
    write_json(folder / "metrics.json", metrics)
    none = {"image": None, "unit": None, "pixel": None, "reason": limits.reason}
    data = facts_of_data(name_of(manifest), manifest, shortcut_figures(measured.rows), measured.warnings)
    calibration = {**limits.scores.as_json(), "median": limits.scores.median} if limits.scores else None
    write_json(folder / "run.json", {
        **facts_of_run("evaluate --scores", metrics["seconds"], "", None),
        "aborted": False,
        "model": metrics["model"],
        "threshold": limits.thresholds.as_json() if limits.thresholds else none,
        "calibration": calibration,
        "data": {**data, "has_pixel_threshold": limits.has_pixels},
    })  # fmt: skip
    write_report(folder)
