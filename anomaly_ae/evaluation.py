"""`score` and `evaluate`: samples through the detector into a RUN folder; figures from its scores.

A RUN is written into a hidden folder beside it and renamed when it is whole: what has the final name is complete.
The format of every file: docs/reference/results.md.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from anomaly_ae.detector import Detector
from anomaly_ae.errors import DataError, OutputError, UsageError
from anomaly_ae.files import cannot_write, retried
from anomaly_ae.keeping import MapKeeper, keep_pictures
from anomaly_ae.listener import Listener
from anomaly_ae.manifest import Manifest, check_groups
from anomaly_ae.records import ANOMALOUS_LABEL, NORMAL_LABEL, Decision, Failure, Sample
from anomaly_ae.report import PictureWriter, write_report
from anomaly_ae.results import FORMAT, baseline_figures, run_metrics, score_row, unit_rows, write_json, write_tables
from anomaly_ae.survey import pixel_hash
from anomaly_ae.version import __version__

FIGURES = (("ROC-AUC", "roc_auc"), ("average precision", "average_precision"))
RATES = (("sensitivity", "sensitivity"), ("false-alarm rate", "false_alarm_rate"))
HEATMAPS = ("none", "anomalous", "all")
FACTS_OF_MAKING = ("preset", "preset_reason", "n_parameters", "steps", "trained_utc", "working_scale")


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a run keeps besides tables and report.

    Attributes
    ----------
    maps : bool
        Anomaly maps as float32 TIFF, on the grid of each image.
    heatmaps : {"none", "anomalous", "all"}
        Pictures at full resolution: of no image, of those decided anomalous, of all.
    by : tuple of str
        Columns of the manifest that figures are broken down by.
    overwrite : bool
        Replace an existing RUN.
    """

    maps: bool = False
    heatmaps: str = "anomalous"
    by: tuple[str, ...] = ()
    overwrite: bool = False


@dataclass(slots=True)
class RunResult:
    """What a finished run found; the same as in its files."""

    folder: Path
    n_scored: int
    failures: list[Failure]
    n_anomalous: int
    metrics: dict[str, Any] | None
    warnings: tuple[str, ...] = ()
    aborted: bool = False

    def lines(self) -> list[str]:
        """Say in words what was found."""
        lines = [f"{self.n_scored} images scored, {self.n_anomalous} anomalous"]
        if self.failures:
            lines.append(f"{len(self.failures)} could not be read; failures.csv names them and says why:")
            lines += [f"  {failure.path}: {failure.reason}" for failure in self.failures[:5]]
        if self.metrics:
            lines += [_figure_line(name, self.metrics["image"][key]) for name, key in FIGURES]
            rates = self.metrics["image"]["at_threshold"][0]
            lines += [_figure_line(name, rates[key]) for name, key in RATES]
        return [*lines, *(f"warning: {warning}" for warning in self.warnings)]


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
        """Name of the folder that the manifest describes; "" for images named one by one, which no one folder holds."""
        root, layout = self.manifest.root, self.manifest.layout
        if root.name not in ("", ".."):
            return root.name
        return "" if layout == "flat" else root.resolve().name


@dataclass(slots=True)
class _Collected:
    """What is kept of every image while a run goes on: one row, or why there is none."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    failed_utc: list[str] = field(default_factory=list)
    not_reached: Sequence[Sample] = ()
    seen_in_fit: Counter[str] = field(default_factory=Counter)  # by label

    @property
    def aborted(self) -> bool:
        """Whether the run was stopped before all images were scored."""
        return bool(self.not_reached)

    @property
    def incomplete(self) -> dict[str, str]:
        """Units with an image that was not inspected, and their groups."""
        return {f.unit: f.group for f in self.failures} | {s.unit: s.group for s in self.not_reached}


def score(
    detector: Detector, manifest: Manifest, out: Path, options: RunOptions, listener: Listener | None = None
) -> RunResult:
    """Score every image of a manifest into a RUN folder: tables, heatmaps, report; no figures."""
    return _run(_Job(detector, manifest, manifest.samples, options, listener or Listener(), "score"), out)


def evaluate(
    detector: Detector, manifest: Manifest, out: Path, options: RunOptions, listener: Listener | None = None
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
    check_groups(manifest.samples)
    samples = test_samples(manifest)
    _refuse_unknown_columns(samples, options.by)
    return _run(_Job(detector, manifest, samples, options, listener or Listener(), "evaluate"), out)


def test_samples(manifest: Manifest) -> tuple[Sample, ...]:
    """Return the rows that figures are computed on."""
    labelled = [s for s in manifest.samples if s.label]
    has_splits = any(s.split for s in labelled)
    samples = tuple(s for s in labelled if s.split == "test" or not has_splits)
    if not samples:
        raise DataError(
            f"no labelled test images in {manifest.root}",
            "figures need images that are known to be normal or anomalous",
            "give a folder with test/good and test/<defect>, or a CSV with label and split; or use score",
        )
    return samples


def _refuse_unknown_columns(samples: Sequence[Sample], columns: Sequence[str]) -> None:
    known = sorted({name for sample in samples for name in sample.extra})
    for column in columns:
        if column not in known:
            raise UsageError(
                f"no column '{column}' in the manifest", "", f"its own columns: {', '.join(known) or 'none'}"
            )


def _run(job: _Job, out: Path) -> RunResult:
    """Score every image, decide, measure where asked for, describe, and draw the report."""
    with new_folder(out, job.options.overwrite) as folder:
        keeper = MapKeeper(folder, job.samples) if job.command == "evaluate" else None
        collected = _score_all(job, folder, keeper)
        _refuse_nothing(collected, len(job.samples))
        units = _write_tables(job.detector, collected, folder)
        baselines = baseline_figures(collected.rows)
        metrics = _write_metrics(job, collected, units, baselines, folder, keeper) if keeper else None
        warnings = (*_warnings(collected, baselines), *(keeper.warnings() if keeper else ()))
        write_json(folder / "run.json", _run_info(job, collected, baselines, warnings))
        write_report(folder)
    n_anomalous = sum(row["decision"] == Decision.ANOMALOUS for row in collected.rows)
    return RunResult(out, len(collected.rows), collected.failures, n_anomalous, metrics, warnings, collected.aborted)


def _refuse_nothing(collected: _Collected, n_samples: int) -> None:
    if collected.rows:
        return
    if collected.aborted:
        raise KeyboardInterrupt
    raise DataError(
        f"none of {n_samples} images could be scored",
        collected.failures[0].reason if collected.failures else "there are none",
        "see the reason, and check the folder",
    )


def _score_all(job: _Job, folder: Path, keeper: MapKeeper | None) -> _Collected:
    """Take every image through the detector; a first Ctrl-C ends the run with what there is."""
    detector, samples, options = job.detector, job.samples, job.options
    collected = _Collected()
    pictures = PictureWriter(len(samples))
    pixel_threshold = detector.calibrated[1].pixel.value
    known = {h for part in detector.provenance.get("image_hashes", {}).values() for h in part}
    inspected = zip(samples, detector.inspect_many(samples), strict=True)
    try:
        for done, (sample, (result, image)) in enumerate(inspected, start=1):
            job.listener.progress("scoring", done, len(samples), "")
            if isinstance(result, Failure) or image is None:
                collected.failures.append(result)  # type: ignore[arg-type]
                collected.failed_utc.append(datetime.now(UTC).isoformat(timespec="milliseconds"))
                continue
            row = score_row(sample, result, pixel_threshold)
            collected.rows.append({**row, "baselines": detector.baseline_scores(image)})
            collected.seen_in_fit[sample.label] += pixel_hash(image) in known
            if keeper:
                _refuse_known(collected.seen_in_fit[NORMAL_LABEL], samples)
            keep_pictures(detector, sample, result, image, folder, options.heatmaps, options.maps, pictures)
            if keeper:
                keeper.keep(sample, result, image)
    except KeyboardInterrupt:
        collected.not_reached = samples[len(collected.rows) + len(collected.failures) :]
        job.listener.say(f"stopped after {len(collected.rows)} of {len(samples)} images: writing what there is")
    pictures.write(folder / "pictures.npz")
    return collected


def _refuse_known(n_known: int, samples: Sequence[Sample]) -> None:
    """Refuse to measure what was learned, as soon as that is more than half of the normal images."""
    n_normal = sum(sample.label == NORMAL_LABEL for sample in samples)
    if 2 * n_known > n_normal:
        raise DataError(
            f"more than half of the {n_normal} normal test images were used in fit",
            "the model has learned them, so the figures would be far too good",
            "give normal images a `test` split before fit, or let `scan --folds` do it",
        )


def _write_tables(detector: Detector, collected: _Collected, folder: Path) -> list[dict[str, Any]]:
    """Decide the units, write all tables, and return the rows of the units."""
    units = unit_rows(collected.rows, collected.incomplete, *detector.calibrated)
    timed = zip(collected.failures, collected.failed_utc, strict=True)
    failures = [{"format": FORMAT, **asdict(failure), "time_utc": at} for failure, at in timed]
    write_tables(folder, collected.rows, units, failures)
    return units


def _write_metrics(
    job: _Job,
    collected: _Collected,
    units: Sequence[Mapping[str, Any]],
    baselines: Mapping[str, Any],
    folder: Path,
    keeper: MapKeeper,
) -> dict[str, Any]:
    """Measure, write ``metrics.json``, and return what it holds; the maps have been used then, and go."""
    job.listener.progress("measuring", 0, 1, "")
    provenance, thresholds = job.detector.provenance, job.detector.calibrated[1]
    metrics = {
        "format": FORMAT,
        "model": {"name": provenance.get("file"), "sha256": provenance.get("file_sha256")},
        "data": job.data_name,
        "counts": _counts(collected, units),
        "seconds": job.seconds,
        "what_if": False,
        **run_metrics(collected.rows, units, thresholds, job.options.by),
        "pixel": keeper.metrics(),
        "baselines": baselines,
    }
    write_json(folder / "metrics.json", metrics)
    keeper.close()
    return metrics


def _run_info(
    job: _Job, collected: _Collected, baselines: Mapping[str, Any], warnings: Sequence[str]
) -> dict[str, Any]:
    """Return ``run.json``: what the report needs to be drawn again, and the thresholds to be set again."""
    detector = job.detector
    scores, thresholds = detector.calibrated
    provenance = detector.provenance
    n_images = provenance.get("n_images", {})
    return {
        "format": FORMAT,
        "tool": "anomaly_ae",
        "version": __version__,
        "created_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": job.command,
        "aborted": collected.aborted,
        "seconds": job.seconds,
        "device": detector.device.type,
        "seed": detector.config.seed,
        "model": {
            "name": provenance.get("file", "in memory"),
            "sha256": provenance.get("file_sha256"),
            "weights_sha256": detector.weights_sha256,
            "architecture": detector.config.model.architecture,
            "resolutions": detector.ensemble.resolutions,
            "n_train": n_images.get("train"),
            "n_validation": n_images.get("validation"),
            "n_calibration": len(scores.image),
            **{name: provenance.get(name) for name in FACTS_OF_MAKING},
            "smallest_defect_px": detector.geometry.smallest_defect_px,
            "standardise": detector.config.scoring.standardise,
            "error_measures": detector.mapper.compare.weights,
        },
        "threshold": thresholds.as_json(),
        "calibration": {**scores.as_json(), "median": scores.median},
        "data": {
            "name": job.data_name,
            "warnings": list(warnings),
            "shortcuts": {"mean grey": baselines["mean grey"]["value"]},
        },
    }


def _figure_line(name: str, metric: Mapping[str, Any]) -> str:
    if metric["value"] is None:
        return f"{name}: {metric['reason']}"
    first = next(iter(metric["intervals"]), None)
    interval = f" [{first['low']:.3f}, {first['high']:.3f}]" if first else ""
    return f"{name} {metric['value']:.3f}{interval}"


def _counts(collected: _Collected, units: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    labels = Counter(row["label"] for row in collected.rows)
    return {
        "normal": labels[NORMAL_LABEL],
        "anomalous": labels[ANOMALOUS_LABEL],
        "failed": len(collected.failures),
        "groups": len({row["group"] for row in collected.rows}),
        "units": len(units),
        "seen_in_fit": collected.seen_in_fit.total(),
    }


def _warnings(collected: _Collected, baselines: Mapping[str, Any]) -> Iterator[str]:
    area = baselines["mean grey"]["value"]
    if area is not None and not 0.2 <= area <= 0.8:
        yield f"mean grey alone separates the classes: {area:.2f}"
    if collected.seen_in_fit.total():
        yield f"{collected.seen_in_fit.total()} of these images were used in fit: figures are too good"
    if collected.aborted:
        yield "the run was stopped before all images were scored"


@contextmanager
def new_folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """Yield a hidden folder beside ``out``; rename it to ``out`` when it is whole, remove it when that failed."""
    refuse_existing(out, overwrite)
    partial = out  # until there is one
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
        partial.chmod(0o755)
        yield partial
        if out.exists():
            shutil.rmtree(out)
        retried(lambda: partial.rename(out))
    except OSError as error:
        raise cannot_write(out, error) from error
    finally:
        if partial != out:
            shutil.rmtree(partial, ignore_errors=True)


def refuse_existing(out: Path, overwrite: bool) -> None:
    """Raise `OutputError` where something would be replaced unasked, or something that is no run at all."""
    if not out.exists():
        return
    if not overwrite:
        why = "results are not replaced unasked"
        raise OutputError(f"{out} exists already", why, "choose another --out, or --overwrite")
    if not out.is_dir() or (any(out.iterdir()) and not _is_run(out)):
        raise OutputError(f"{out} is no run", "it would be replaced with all it holds", "choose another --out")


def _is_run(folder: Path) -> bool:
    try:
        info = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(info, dict) and info.get("tool") == "anomaly_ae"
