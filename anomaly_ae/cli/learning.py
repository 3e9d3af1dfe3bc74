"""Commands that make, set and describe a model: fit, calibrate, info."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anomaly_ae.cli.shared import (
    EXIT_SOME_UNREADABLE,
    ConfidenceOption,
    ConfigOption,
    CostOption,
    DataArgument,
    DeviceOption,
    GroupOption,
    IdentifiedOption,
    MembersOption,
    ModelArgument,
    OverwriteOption,
    RateOption,
    ReadersOption,
    ReviewRateOption,
    ReviewSensitivityOption,
    SensitivityOption,
    ThreadsOption,
    ValueOption,
    WhoOption,
    WhyOption,
    app,
    asked_of,
    listener,
    load,
    refuse_two_settings,
    say_notes,
    use_cores,
    warn_identified,
)
from anomaly_ae.errors import AnomalyAEError, OutputError, UsageError
from anomaly_ae.files import holds, refuse_existing_file

if TYPE_CHECKING:
    from anomaly_ae.calibration import Asked
    from anomaly_ae.detector import Detector
    from anomaly_ae.journal import State

PresetOption = Annotated[
    str | None,
    typer.Option(
        "--preset", help="default, fast, thorough, texture, object, radiograph, volume or smoke; picked if not given."
    ),
]

SettingsOption = Annotated[
    list[str] | None, typer.Option("--set", help="One setting, e.g. training.steps=4000; may be repeated.")
]
SeedOption = Annotated[
    int | None, typer.Option("--seed", help="Of every random draw (default: 0, or of --config).", min=0)
]


@app.command()
def fit(
    data: DataArgument,
    out: Annotated[Path, typer.Option("--out", help="Model file to write (.safetensors).", show_default=False)],
    preset: PresetOption = None,
    config: ConfigOption = None,
    settings: SettingsOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    readers: ReadersOption = 0,
    seed: SeedOption = None,
    members: MembersOption = None,
    rate: RateOption = None,
    confidence: ConfidenceOption = None,
    review_rate: ReviewRateOption = None,
    who: WhoOption = "",
    why: WhyOption = "",
    group_regex: GroupOption = None,
    identified: IdentifiedOption = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted fit.")] = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Learn from the normal images of DATA, set the thresholds, write one model file.

    Where a model is replaced, the change of its thresholds is appended to MODEL.journal.jsonl.
    The first Ctrl-C stops training, calibrates and writes what there is; the second aborts and keeps the
    checkpoint for --resume.
    """
    _check_model_name(out, overwrite)
    refuse_two_settings(preset, config)
    from anomaly_ae.config import load_config
    from anomaly_ae.manifest import load_manifest

    changes, named = _changes(seed, members, settings), config or preset
    chosen = load_config(named or "default", changes)  # a misspelt --set fails here, not after the images were read
    asked_of(rate, confidence, None, None, None, review_rate, None)  # contradictions, too
    warn_identified(identified)
    manifest = load_manifest(data, group_regex, identified=identified)
    say_notes(manifest, is_learned=True)
    before = _replaced(out)
    from anomaly_ae.fitting import fit as fit_detector
    from anomaly_ae.learning import checkpoint_of, remove_checkpoints
    from anomaly_ae.progress import stopping_gently

    use_cores(threads, readers)
    checkpoint = checkpoint_of(out)
    with _naming_checkpoint(checkpoint), stopping_gently() as should_stop:
        detector = fit_detector(
            manifest,
            chosen if named else None,
            overrides=changes,
            device=device,
            rate=rate,
            confidence=confidence,
            review_rate=review_rate,
            checkpoint=checkpoint,
            resume=resume,
            listener=listener(),
            should_stop=should_stop,
        )
    n_images = ", ".join(f"{n} for {name}" for name, n in detector.provenance["n_images"].items())
    written = out if overwrite else _free_name(out)
    _save(detector, written, before, f"fitted anew: {n_images}", who, why)
    remove_checkpoints(checkpoint)
    _say_thresholds(detector, written)
    _say_written(written, out)
    _finish_fit(detector.provenance["n_unusable"])


def _changes(seed: int | None, members: int | None, settings: list[str] | None) -> list[str]:
    """Return all that was asked for as ``section.key=value``."""
    given = {"seed": seed, "training.members": members}
    return [*(f"{key}={value}" for key, value in given.items() if value is not None), *(settings or [])]


@app.command()
def calibrate(
    model: ModelArgument,
    data: Annotated[
        Path | None,
        typer.Argument(help="Normal images, or a manifest CSV; else --scores or neither.", show_default=False),
    ] = None,
    scores: Annotated[
        Path | None, typer.Option("--scores", help="scores.csv of a finished run instead of images.")
    ] = None,
    verdicts: Annotated[
        Path | None, typer.Option("--verdicts", help="With --scores: CSV of id and verdict (normal or anomalous).")
    ] = None,
    rate: RateOption = None,
    confidence: ConfidenceOption = None,
    sensitivity: SensitivityOption = None,
    cost: CostOption = None,
    value: ValueOption = None,
    review_rate: ReviewRateOption = None,
    review_sensitivity: ReviewSensitivityOption = None,
    who: WhoOption = "",
    why: WhyOption = "",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="With DATA: another region rule, e.g. scoring.min_area_px=20; scores change."),
    ] = None,
    group_regex: GroupOption = None,
    identified: IdentifiedOption = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
) -> None:
    """Set new thresholds in MODEL: from other normal images, a finished run, or by another rule. No score changes.

    No training. Without DATA and --scores the calibration scores that the model holds are used again. The change is
    appended to MODEL.journal.jsonl. With --set the regions that count change, and with them the scores.
    """
    asked = asked_of(rate, confidence, sensitivity, cost, value, review_rate, review_sensitivity)
    changes = settings or []
    sources = _Sources(data, scores, verdicts, group_regex, identified)
    _check_sources(sources, asked, changes)
    from anomaly_ae.journal import journal_of
    from anomaly_ae.recalibration import rescored

    warn_identified(identified)
    old = load(model, device, threads)
    changed = rescored(old, changes) if changes else old
    new, what, n_left_out = _recalibrated(changed, sources, asked)
    if changes:
        what += f"; scores changed by {', '.join(changes)}"
        typer.echo(f"region rules: {new.rules.describe() or 'none'}. Scores change: runs made before do not compare.")
    lost = _lost_band(old, new)
    _refuse_changed(model, old)
    _save(new, model, _state(old), f"{what}; {lost}" if lost else what, who, why)
    _say_thresholds(new, model)
    if lost:
        typer.echo(f"warning: {lost}; --review-false-alarm-rate sets a new one", err=True)
    typer.echo(f"wrote {model}, and the change into {journal_of(model)}")
    _finish_fit(n_left_out)


def _lost_band(old: Detector, new: Detector) -> str:
    """Say that images are no longer sent for review, where a change of the threshold ended that; else ""."""
    before, after = (detector.calibrated[1].image.review for detector in (old, new))
    return f"the review band from {before.value:.4g} on is removed" if before and not after else ""


@app.command()
def info(model: ModelArgument) -> None:
    """Say in words what a model file holds: what it was trained on, how, and what its thresholds promise."""
    from anomaly_ae.detector import Detector

    for line in Detector.load(model, "cpu").describe():
        typer.echo(line)


def _state(detector: Detector) -> State:
    """Return what the journal says of a loaded model."""
    from anomaly_ae.journal import State

    return State(detector.provenance.get("file_sha256"), detector.calibrated[1])


def _refuse_changed(model: Path, loaded: Detector) -> None:
    """Refuse to undo what somebody else did to a model while this command calculated."""
    from anomaly_ae.modelfile import read_tensors

    if read_tensors(model, "model")[2] != loaded.provenance["file_sha256"]:
        why = "another command wrote it while this one calculated; its journal says which"
        raise OutputError(f"{model} is not changed", why, "calibrate again, from what it is now")


def _replaced(model: Path) -> State | None:
    """Return the state of a model that a fit will replace, if there is one; its journal has to be writable."""
    from anomaly_ae.detector import Detector
    from anomaly_ae.journal import journal, journal_of

    if not holds(model.exists):
        return None
    with journal(journal_of(model)):  # now, not after the training
        pass
    try:
        return _state(Detector.load(model, "cpu"))
    except AnomalyAEError:
        return None


def _save(detector: Detector, model: Path, before: State | None, what: str, who: str, why: str) -> None:
    """Write a model file, and into its journal what has changed; the first model of a name has no journal."""
    from anomaly_ae.journal import change, journal, journal_of

    if not model.exists() and not journal_of(model).exists():
        detector.save(model)
        return
    with journal(journal_of(model)) as append:
        after = replace(_state(detector), model_sha256=detector.save(model))
        append(change(what, before, after, who, why))


@contextmanager
def _naming_checkpoint(checkpoint: Path) -> Iterator[None]:
    """Say, when a fit is aborted, what is left of it."""
    try:
        yield
    except KeyboardInterrupt:
        if checkpoint.exists():
            typer.echo(f"{checkpoint} keeps what was learned: --resume goes on from there", err=True)
        raise


def _free_name(out: Path) -> Path:
    """Return the name of a model file, or where another file has it by now the next that is free: OUT-2, OUT-3."""
    others = (out.with_name(f"{out.stem}-{number}{out.suffix}") for number in count(2))
    return next(name for name in chain([out], others) if not name.exists())


def _say_written(written: Path, out: Path) -> None:
    """Refuse another name than the one asked for: what comes next would take the other file for the new model."""
    typer.echo(f"wrote {written}")
    if written != out:
        why = "it came while this was learned, and is not replaced unasked"
        raise OutputError(f"{out} exists already", why, f"the new model is {written}")


def _check_model_name(out: Path, overwrite: bool) -> None:
    if out.suffix != ".safetensors":
        raise UsageError(f"--out {out}", "a model file ends in .safetensors", f"write --out {out.stem}.safetensors")
    refuse_existing_file(out, overwrite)


@dataclass(frozen=True, slots=True)
class _Sources:
    """What `calibrate` takes its scores from, as on the command line: DATA, a finished run, or neither."""

    data: Path | None
    scores: Path | None
    verdicts: Path | None
    group_regex: str | None
    identified: bool


def _check_sources(given: _Sources, asked: Asked, changes: list[str]) -> None:
    """Refuse sources that contradict each other, or that cannot give what a rule needs: before anything is read."""
    if given.data is not None and given.scores is not None:
        raise UsageError("DATA and --scores", "both say where the scores come from", "give one of them")
    if given.verdicts is not None and given.scores is None:
        raise UsageError("--verdicts needs --scores", "", "e.g. --scores run/scores.csv --verdicts verdicts.csv")
    if (given.group_regex is not None or given.identified) and given.data is None:
        option = "--group-regex" if given.group_regex is not None else "--identified"
        raise UsageError(f"{option} needs DATA", "a finished run and a model have their names and groups already")
    if changes and given.data is None:
        why = "scores of the old settings say nothing of the new ones"
        raise UsageError("--set needs DATA", why, "give normal images that were used for nothing else")
    if asked.needs_anomalies and given.scores is None:
        raise UsageError(
            "this rule needs labelled anomalies",
            "calibration images are normal",
            "give a finished run of labelled images: --scores run/scores.csv",
        )
    if given.data is None and given.scores is None and asked.nothing:
        raise UsageError("nothing to set thresholds from", "", "give normal images, --scores or another rule")


def _recalibrated(detector: Detector, given: _Sources, asked: Asked) -> tuple[Detector, str, int]:
    """Return the detector with new thresholds, what was done, and how many images could not be used."""
    from anomaly_ae.fitting import calibrate as from_images
    from anomaly_ae.fitting import calibration_samples, kept_for_calibration
    from anomaly_ae.manifest import load_manifest
    from anomaly_ae.manifest.volumes import taken
    from anomaly_ae.recalibration import recalibrated
    from anomaly_ae.results import NO_GROUPS, finished_scores
    from anomaly_ae.words import n_of

    if given.data is not None:
        manifest = load_manifest(given.data, given.group_regex, identified=given.identified)
        say_notes(manifest)
        samples = taken(calibration_samples(manifest), detector.config.model.spatial_dims)
        samples = samples if detector.scores else kept_for_calibration(detector, samples, listener())
        new = from_images(
            detector,
            samples,
            asked.rate,
            asked.confidence,
            listener(),
            review_rate=asked.review_rate,
            value=asked.value,
        )
        n = len(new.calibrated[0].image)
        return new, f"calibrated with {n_of(n, 'image')}", len(samples) - n
    if given.scores is None:
        return recalibrated(detector, asked), "another rule on the same calibration scores", 0
    finished = finished_scores(given.scores, detector.weights_sha256, given.verdicts)
    for line in finished.lines():
        typer.echo(line)
    if detector.calibrated[0].image_group is not None and finished.normal and finished.normal.image_group is None:
        typer.echo(f"note: {NO_GROUPS} break the false-alarm rate; name the groups, and score again")
    n_normal = n_of(finished.n_normal, "normal image")
    what = f"calibrated with a finished run: {n_normal}, {finished.n_anomalous} anomalous"
    return recalibrated(detector, asked, finished), what, 0


def _say_thresholds(detector: Detector, model: Path) -> None:
    """Say what the image threshold promises, how much is for review, and what helps where normal images are few."""
    from anomaly_ae.calibration import few_normals_advice
    from anomaly_ae.results import limit_lines

    scores, thresholds = detector.calibrated
    advice = few_normals_advice(thresholds, scores, str(model))
    for line in [*limit_lines(thresholds, scores), *([advice] if advice else [])]:
        typer.echo(line)


def _finish_fit(n_left_out: int) -> None:
    """Say how many normal images were left out; the exit code tells of them."""
    if n_left_out:
        typer.echo(f"normal images that could not be used: {n_left_out}; they are named above")
        raise typer.Exit(EXIT_SOME_UNREADABLE)
