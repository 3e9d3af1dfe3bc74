"""Commands that make, set and describe a model: fit, calibrate, info."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anomaly_ae.cli.shared import (
    EXIT_SOME_UNREADABLE,
    ConfidenceOption,
    DataArgument,
    DeviceOption,
    GroupOption,
    MembersOption,
    ModelArgument,
    OverwriteOption,
    RateOption,
    ThreadsOption,
    app,
    listener,
    load,
)
from anomaly_ae.errors import UsageError
from anomaly_ae.files import refuse_existing_file

if TYPE_CHECKING:
    from anomaly_ae.detector import Detector


@app.command()
def fit(
    data: DataArgument,
    out: Annotated[Path, typer.Option("--out", help="Model file to write (.safetensors).", show_default=False)],
    preset: Annotated[
        str | None,
        typer.Option("--preset", help="default, fast, texture, object, radiograph or smoke; picked if not given."),
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", help="TOML file instead of a preset.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="One setting, e.g. training.steps=4000; may be repeated.")
    ] = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Of every random draw (default: 0, or of --config).", min=0)
    ] = None,
    members: MembersOption = None,
    rate: RateOption = None,
    confidence: ConfidenceOption = None,
    group_regex: GroupOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted fit.")] = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Learn from the normal images of DATA, set the thresholds, write one model file.

    The first Ctrl-C stops training, calibrates and writes what there is; the second aborts and keeps the
    checkpoint for --resume.
    """
    _check_model_name(out, overwrite)
    if preset and config:
        raise UsageError("--preset and --config", "both name the settings", "give one of them, and --set for changes")
    from anomaly_ae.config import load_config
    from anomaly_ae.manifest import load_manifest

    given = {"seed": seed, "training.members": members}
    changes = [*(f"{key}={value}" for key, value in given.items() if value is not None), *(settings or [])]
    named = config or preset
    chosen = load_config(named or "default", changes)  # a misspelt --set fails here, not after the images were read
    manifest = load_manifest(data, group_regex)
    from anomaly_ae.fitting import fit as fit_detector
    from anomaly_ae.learning import checkpoint_of, remove_checkpoints
    from anomaly_ae.loading import use_threads
    from anomaly_ae.progress import stopping_gently

    use_threads(threads)
    checkpoint = checkpoint_of(out)
    with _naming_checkpoint(checkpoint), stopping_gently() as should_stop:
        detector = fit_detector(
            manifest,
            chosen if named else None,
            overrides=changes,
            device=device,
            rate=rate,
            confidence=confidence,
            checkpoint=checkpoint,
            resume=resume,
            listener=listener(),
            should_stop=should_stop,
        )
    detector.save(out)
    remove_checkpoints(checkpoint)
    _say_thresholds(detector)
    typer.echo(f"wrote {out}")
    _finish_fit(detector.provenance["n_unusable"])


@app.command()
def calibrate(
    model: ModelArgument,
    data: DataArgument,
    rate: RateOption = None,
    confidence: ConfidenceOption = None,
    group_regex: GroupOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
) -> None:
    """Set new thresholds in MODEL from other normal images. No training; no score changes."""
    from anomaly_ae.fitting import calibrate as set_thresholds
    from anomaly_ae.fitting import calibration_samples
    from anomaly_ae.manifest import load_manifest

    detector = load(model, device, threads)
    samples = calibration_samples(load_manifest(data, group_regex))
    detector = set_thresholds(detector, samples, rate, confidence, listener())
    detector.save(model)
    _say_thresholds(detector)
    typer.echo(f"wrote {model}")
    _finish_fit(len(samples) - len(detector.calibrated[0].image))


@app.command()
def info(model: ModelArgument) -> None:
    """Say in words what a model file holds: what it was trained on, how, and what its thresholds promise."""
    from anomaly_ae.detector import Detector

    for line in Detector.load(model, "cpu").describe():
        typer.echo(line)


@contextmanager
def _naming_checkpoint(checkpoint: Path) -> Iterator[None]:
    """Say, when a fit is aborted, what is left of it."""
    try:
        yield
    except KeyboardInterrupt:
        if checkpoint.exists():
            typer.echo(f"{checkpoint} keeps what was learned: --resume goes on from there", err=True)
        raise


def _check_model_name(out: Path, overwrite: bool) -> None:
    if out.suffix != ".safetensors":
        raise UsageError(f"--out {out}", "a model file ends in .safetensors", f"write --out {out.stem}.safetensors")
    refuse_existing_file(out, overwrite)


def _say_thresholds(detector: Detector) -> None:
    limit = detector.calibrated[1].image
    typer.echo(f"image threshold {limit.value:.4g}: {limit.promise}")


def _finish_fit(n_left_out: int) -> None:
    """Say how many normal images were left out; the exit code tells of them."""
    if n_left_out:
        typer.echo(f"normal images that could not be used: {n_left_out}; they are named above")
        raise typer.Exit(EXIT_SOME_UNREADABLE)
