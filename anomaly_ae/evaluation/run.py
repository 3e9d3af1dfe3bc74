"""`score` and `evaluate`: samples through the detector into a RUN folder; figures from its scores.

A RUN is written into a hidden folder beside it and renamed when it is whole: what has the final name is complete.
The format of every file: docs/reference/results.md.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from anomaly_ae.detector import Detector
from anomaly_ae.dicom import DicomWriter
from anomaly_ae.errors import DataError, UsageError
from anomaly_ae.evaluation.facts import counts, facts_of_data, facts_of_model, facts_of_run, name_of
from anomaly_ae.evaluation.folder import new_folder, say_left_behind
from anomaly_ae.evaluation.result import RunResult
from anomaly_ae.evaluation.samples import refuse_unknown_columns, test_samples
from anomaly_ae.keeping import MapKeeper, keep_dicom, keep_pictures, mask_of
from anomaly_ae.listener import Listener
from anomaly_ae.manifest import Manifest, check_groups, counted_for_unit, taken
from anomaly_ae.records import (
    NORMAL_LABEL,
    BoolArray,
    Decision,
    Failure,
    Image,
    Sample,
    Score,
)
from anomaly_ae.report import PictureWriter, write_report
from anomaly_ae.results import (
    DEFECT_RATES,
    FORMAT,
    chosen_on_these,
    failure_row,
    run_metrics,
    score_row,
    shortcut_figures,
    unit_rows,
    write_json,
    write_pixels,
    write_tables,
)
from anomaly_ae.shortcuts import properties, shortcut_warnings, size_on_disk
from anomaly_ae.survey import pixel_hash
from anomaly_ae.threshold import parse_rate

HEATMAPS = ("none", "anomalous", "all")


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a run keeps besides tables and report.

    Attributes
    ----------
    maps : bool
        Anomaly maps as float32 TIFF, on the grid of each image.
    heatmaps : {"none", "anomalous", "all"}
        Pictures at full resolution: of no image, of those decided anomalous or for review, of all.
    by : tuple of str
        Columns of the manifest that figures are broken down by.
    overwrite : bool
        Replace an existing RUN.
    defect_rates : tuple of float
        Shares of defective parts at which rejects, predictive value and escapes are stated.
    dicom : tuple of {"sc", "seg"}
        Objects for the archive that are made of images from DICOM files.
    """

    maps: bool = False
    heatmaps: str = "anomalous"
    by: tuple[str, ...] = ()
    overwrite: bool = False
    defect_rates: tuple[float, ...] = DEFECT_RATES
    dicom: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what nothing stands for."""
        if self.heatmaps not in HEATMAPS:
            raise UsageError(f"heatmaps {self.heatmaps!r}", "unknown", f"one of: {', '.join(HEATMAPS)}")
        for name in ("by", "defect_rates", "dicom"):
            given = getattr(self, name)
            if not isinstance(given, tuple | list):
                raise UsageError(f"{name}={given!r}", "several may be asked for", f"write {name}=({given!r},)")
        rates = tuple(float(parse_rate(rate, "defect rate")) for rate in self.defect_rates)
        object.__setattr__(self, "defect_rates", rates)


@dataclass(frozen=True, slots=True)
class _Job:
    """What one run is asked to do; its clock starts when it is made."""

    detector: Detector
    manifest: Manifest
    samples: Sequence[Sample]
    options: RunOptions
    listener: Listener
    command: str
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """How long the run has taken so far."""
        return round(time.perf_counter() - self.started, 2)

    @property
    def data_name(self) -> str:
        """Name of the data."""
        return name_of(self.manifest)


@dataclass(slots=True)
class _Collected:
    """What is kept of every image while a run goes on: one row, or why there is none."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    not_reached: Sequence[Sample] = ()
    seen_in_fit: Counter[str] = field(default_factory=Counter)  # by label
    n_learned: int = 0  # of those: trained or validated on, and not only calibrated

    @property
    def aborted(self) -> bool:
        """Whether the run was stopped before all images were scored."""
        return bool(self.not_reached)

    @property
    def incomplete(self) -> dict[str, str]:
        """Units with an image that was not inspected, and their groups."""
        return {f.unit: f.group for f in self.failures} | {s.unit: s.group for s in self.not_reached}


def score(
    detector: Detector,
    manifest: Manifest,
    out: str | Path,
    options: RunOptions | None = None,
    listener: Listener | None = None,
) -> RunResult:
    """Score every image of a manifest into a RUN folder: tables, heatmaps, report; no figures."""
    samples = taken(manifest.samples, detector.config.model.spatial_dims)
    return _run(_Job(detector, manifest, samples, options or RunOptions(), listener or Listener(), "score"), Path(out))


def evaluate(
    detector: Detector,
    manifest: Manifest,
    out: str | Path,
    options: RunOptions | None = None,
    listener: Listener | None = None,
) -> RunResult:
    """Score the labelled test images of a manifest and measure: the same RUN, with ``metrics.json``.

    Test rows are those of split "test"; where there are no splits, all labelled rows.

    Raises
    ------
    DataError
        No labelled test image, a group in two splits, a unit in two groups, or most of the normal images known from
        `fit`.
    UsageError
        A column of ``options.by`` that the manifest does not have.
    """
    options = options or RunOptions()
    check_groups(manifest.samples)
    manifest = replace(manifest, samples=taken(manifest.samples, detector.config.model.spatial_dims))
    samples = test_samples(manifest)
    refuse_unknown_columns(samples, options.by)
    return _run(_Job(detector, manifest, samples, options, listener or Listener(), "evaluate"), Path(out))


def _run(job: _Job, out: Path) -> RunResult:
    """Score every image, decide, measure where asked for, describe, and draw the report."""
    say_left_behind(out, job.listener)
    with new_folder(out, job.options.overwrite) as folder:
        keeper = MapKeeper(folder, job.samples) if job.command == "evaluate" else None
        archive = DicomWriter(folder / "dicom", job.options.dicom, job.detector.weights_sha256)
        collected = _score_all(job, folder, keeper, archive)
        _refuse_nothing(collected, len(job.samples))
        units = _write_tables(job.detector, collected, folder)
        metrics = _write_metrics(job, collected, units, folder, keeper) if keeper else None
        shortcuts = shortcut_figures(collected.rows)
        archive.finish()
        warnings = (*_warnings(collected, shortcuts), *(keeper.warnings() if keeper else ()), *archive.warnings())
        write_json(folder / "run.json", _run_info(job, collected, shortcuts, warnings))
        write_report(folder)
    for line in archive.lines():
        job.listener.say(line)
    decided, n_rows = Counter(row["decision"] for row in collected.rows), len(collected.rows)
    n_review = decided[Decision.REVIEW] if job.detector.calibrated[1].image.review else None
    n_anomalous = decided[Decision.ANOMALOUS]
    return RunResult(out, n_rows, collected.failures, n_anomalous, metrics, warnings, collected.aborted, n_review)


def _refuse_nothing(collected: _Collected, n_samples: int) -> None:
    if collected.rows:
        return
    if collected.aborted:
        raise KeyboardInterrupt
    raise DataError(
        "the image could not be scored" if n_samples == 1 else f"none of {n_samples} images could be scored",
        collected.failures[0].reason if collected.failures else "there are none",
        "see the reason, and check the folder",
    )


def _score_all(job: _Job, folder: Path, keeper: MapKeeper | None, archive: DicomWriter) -> _Collected:
    """Take every image through the detector; a first Ctrl-C ends the run with what there is."""
    detector, samples, options = job.detector, job.samples, job.options
    collected = _Collected()
    n_normal = sum(sample.label == NORMAL_LABEL for sample in samples)
    pictures = PictureWriter(len(samples))
    hashes = detector.provenance.get("image_hashes", {})
    known, learned = {h for part in hashes.values() for h in part}, _learned_hashes(hashes)
    inspected = zip(samples, _counted(job), detector.inspect_many(samples), strict=True)
    try:
        for done, (sample, counts, (result, image)) in enumerate(inspected, start=1):
            job.listener.progress("scoring", done, len(samples), "")
            if isinstance(result, Failure) or image is None:
                collected.failures.append(result)  # type: ignore[arg-type]
                continue
            mask = mask_of(sample, image)
            collected.rows.append(_row(detector, sample, result, image, mask, counts))
            own = {pixel_hash(image), result.image_sha256}
            collected.seen_in_fit[sample.label] += not known.isdisjoint(own)
            collected.n_learned += not learned.isdisjoint(own)
            if keeper:
                _refuse_known(collected.seen_in_fit[NORMAL_LABEL], n_normal)
            keep_pictures(detector, sample, result, image, folder, options.heatmaps, options.maps, pictures, mask)
            if keeper:
                keeper.keep(sample, result, image, mask)
            if archive.kinds:
                keep_dicom(detector, sample, result, image, len(collected.rows), archive)
    except KeyboardInterrupt:
        collected.not_reached = samples[len(collected.rows) + len(collected.failures) :]
        job.listener.say(f"stopped after {len(collected.rows)} of {len(samples)} images: writing what there is")
    pictures.write(folder / "pictures.npz")
    return collected


def _learned_hashes(hashes: Mapping[str, Sequence[str]]) -> set[str]:
    """Return the hashes of the images whose scores are too low, because the model has learned them."""
    return {*hashes.get("train", ()), *hashes.get("validation", ())}


def _counted(job: _Job) -> Sequence[bool | None]:
    """Say which images count for their unit; None where the model has not learned from slices."""
    every_mm = job.detector.config.scoring.unit_every_mm
    return counted_for_unit(job.samples, every_mm) if every_mm else [None] * len(job.samples)


def _row(
    detector: Detector, sample: Sample, result: Score, image: Image, mask: BoolArray | None, counts: bool | None
) -> dict[str, Any]:
    """Return one line of ``scores.jsonl``."""
    masked = None if mask is None else mask if image.valid is None else mask & image.valid
    return {
        **score_row(sample, result, detector.calibrated[1].pixel.value, counts),
        "baselines": detector.baseline_scores(image),
        "properties": properties(image, size_on_disk(sample.files)),
        "mask_px": None if masked is None else int(masked.sum()),
    }


def _refuse_known(n_known: int, n_normal: int) -> None:
    """Refuse to measure what was learned, as soon as that is more than half of the normal images."""
    if 2 * n_known > n_normal:
        raise DataError(
            f"more than half of the {n_normal} normal test images were used in fit, or to set a threshold",
            "the model knows them, so the figures would be far too good",
            "give normal images a `test` split before fit, or let `scan --folds` do it",
        )


def _write_tables(detector: Detector, collected: _Collected, folder: Path) -> list[dict[str, Any]]:
    """Decide the units, write all tables, and return the rows of the units."""
    units = unit_rows(collected.rows, collected.incomplete, *detector.calibrated)
    write_tables(folder, collected.rows, units, [failure_row(failure) for failure in collected.failures])
    return units


def _write_metrics(
    job: _Job,
    collected: _Collected,
    units: Sequence[Mapping[str, Any]],
    folder: Path,
    keeper: MapKeeper,
) -> dict[str, Any]:
    """Measure, write ``metrics.json``, and return what it holds; the maps have been used then, and go."""
    job.listener.progress("measuring", 0, 1, "")
    provenance, thresholds = job.detector.provenance, job.detector.calibrated[1]
    pixel = keeper.figures(job.detector)
    measured = run_metrics(collected.rows, units, thresholds, job.options.by, job.options.defect_rates)
    metrics = {
        "format": FORMAT,
        "model": {"name": provenance.get("file"), "sha256": provenance.get("file_sha256")},
        "data": job.data_name,
        "counts": {
            **counts(collected.rows, units, len(collected.failures)),
            "seen_in_fit": collected.seen_in_fit.total(),
        },
        "seconds": job.seconds,
        "what_if": False,
        "chosen_on_these_images": chosen_on_these(thresholds, collected.rows),
        **measured,
        "pixel": pixel.metrics,
        "baselines": {name: areas["roc_auc"] for name, areas in measured["image"]["baselines"].items()},
    }
    write_json(folder / "metrics.json", metrics)
    write_pixels(folder, pixel)
    keeper.close()
    return metrics


def _run_info(
    job: _Job, collected: _Collected, shortcuts: Mapping[str, float], warnings: Sequence[str]
) -> dict[str, Any]:
    """Return ``run.json``: what the report needs to be drawn again, and the thresholds to be set again."""
    scores, thresholds = job.detector.calibrated
    return {
        **facts_of_run(job.command, job.seconds, job.detector.device.type, job.detector.config.seed),
        "aborted": collected.aborted,
        "model": facts_of_model(job.detector),
        "threshold": thresholds.as_json(),
        "calibration": {**scores.as_json(), "median": scores.median},
        "data": {
            **facts_of_data(job.data_name, job.manifest, shortcuts, warnings),
            "n_learned": collected.n_learned,
            "n_seen_in_fit": collected.seen_in_fit.total(),
        },
    }


def _warnings(collected: _Collected, shortcuts: Mapping[str, float]) -> Iterator[str]:
    yield from shortcut_warnings(shortcuts)
    n_others = collected.seen_in_fit.total() - collected.n_learned
    for n, use in ((collected.n_learned, "in fit"), (n_others, "to set a threshold")):
        if n:
            yield f"{n} of these images {'was' if n == 1 else 'were'} used {use}: figures are too good"
    if collected.aborted:
        yield "the run was stopped before all images were scored"
