"""The command line: talks to people, holds no logic of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anomaly_ae.errors import AnomalyAEError, UsageError
from anomaly_ae.files import refuse_existing_file
from anomaly_ae.version import __version__

if TYPE_CHECKING:
    from anomaly_ae.detector import Detector
    from anomaly_ae.evaluation import RunResult
    from anomaly_ae.listener import Listener

EXIT_SOME_UNREADABLE = 3
EXIT_ABORTED = 130

app = typer.Typer(
    help="Finds anomalies in images with an autoencoder that has seen normal images only.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)

DataArgument = Annotated[Path, typer.Argument(help="Folder of images, or a manifest CSV.", show_default=False)]
ModelArgument = Annotated[Path, typer.Argument(help="Model file that fit wrote (.safetensors).", show_default=False)]
RunArgument = Annotated[Path, typer.Argument(help="Folder that score or evaluate wrote.", show_default=False)]
RunOption = Annotated[Path, typer.Option("--out", help="Folder to write the results into.", show_default=False)]
RateOption = Annotated[
    str | None,
    typer.Option(
        "--false-alarm-rate",
        help="Share of normal images that may be flagged, e.g. 0.01 (default 1 %, or what can be promised).",
    ),
]
ConfidenceOption = Annotated[
    str | None,
    typer.Option(
        "--confidence", help="Promise 'at most' that rate with this confidence, e.g. 0.95 (default: on average)."
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto (a GPU if there is one), cpu, cuda, cuda:1.")]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", help="CPU threads; take fewer where others compute, too (default: all cores).", min=1),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace what exists already.")]
GroupOption = Annotated[
    str | None,
    typer.Option("--group-regex", help="Group = first bracketed part of this pattern in the path, e.g. '(lot\\d+)'."),
]
MembersOption = Annotated[
    int | None, typer.Option("--members", help="K networks, in K times the time: docs/benchmarks.", min=1, max=16)
]
MapsOption = Annotated[bool, typer.Option("--maps", help="Also write the anomaly maps as 32-bit float TIFF.")]
HeatmapsOption = Annotated[str, typer.Option("--heatmaps", help="Full-size pictures: none, anomalous, all.")]


def main() -> None:
    """Run the program; expected errors become one line and their exit code."""
    from anomaly_ae.progress import sigterm_as_ctrl_c

    try:
        with sigterm_as_ctrl_c():
            app(standalone_mode=True)
    except AnomalyAEError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except SystemExit as end:  # Typer ends so; a Ctrl-C becomes 130 without a word
        if end.code == EXIT_ABORTED:
            typer.echo("aborted", err=True)
        raise


@app.callback(invoke_without_command=True)
def version(
    context: typer.Context, show: Annotated[bool, typer.Option("--version", help="Show the version.")] = False
) -> None:
    """Handle options of the program itself."""
    if show:
        typer.echo(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")] = Path("demo"),
    threads: ThreadsOption = None,
    overwrite: OverwriteOption = False,
    preset: Annotated[str, typer.Option("--preset", hidden=True)] = "",
) -> None:
    """Take the whole tour on embedded images: make them, scan, fit, evaluate, write demo/report.html."""
    from anomaly_ae.demo import make_demo
    from anomaly_ae.loading import use_threads

    use_threads(threads)
    report = make_demo(out, overwrite, preset or None, _listener())
    typer.echo(f"\nOpen {report} in a browser.")


@app.command()
def scan(
    data: DataArgument,
    out: Annotated[Path | None, typer.Option("--out", help="Write the manifest as CSV.")] = None,
    group_regex: GroupOption = None,
    folds: Annotated[int, typer.Option("--folds", help="Write K manifests by group instead of one.", min=0)] = 0,
    seed: Annotated[int, typer.Option("--seed", help="Of the folds.")] = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """Say what is here, and what would make results false. Reads every image once; changes nothing."""
    from anomaly_ae.manifest import load_manifest, make_folds, write_manifest
    from anomaly_ae.manifest import scan as scan_manifest

    if folds and out is None:
        raise UsageError("--folds needs --out", "", "e.g. --folds 5 --out parts.csv writes parts_1.csv to parts_5.csv")
    targets = [] if out is None else [out]
    if folds and out:
        targets = [out.with_name(f"{out.stem}_{number}.csv") for number in range(1, folds + 1)]
    for path in targets:
        refuse_existing_file(path, overwrite)
    manifest = load_manifest(data, group_regex)
    parts = make_folds(manifest, folds, seed) if folds else []
    progress = _listener().progress
    report = scan_manifest(manifest, lambda done, total: progress("reading", done, total, ""), parts)
    for line in [*report.lines(), *_calibration_lines(report.calibration)]:
        typer.echo(line)
    for path, one in zip(targets, parts or [manifest], strict=False):  # before a refusal: its cure may be to edit it
        write_manifest(one, path, overwrite)
        typer.echo(f"wrote {path}")
    report.raise_if_refused()
    raise typer.Exit(EXIT_SOME_UNREADABLE if report.unreadable else 0)


def _calibration_lines(part: Any) -> list[str]:
    """Return the line on the false-alarm rates that the normals can support, where there are normals to fit on."""
    from anomaly_ae.threshold import normals_needed, percent_text, reachable_rate

    if part is None:
        return []
    needed = normals_needed("1%")
    share, in_all = (
        (f" ({100 * part.share:.0f} %)", f", about {needed / part.share:.0f} in all") if part.share else ("", "")
    )
    lowest = f"smallest false-alarm rate {percent_text(reachable_rate(part.n))}"
    return [f"calibration part{share}: {part.n} of {part.n_all} {part.of}: {lowest}; 1 % needs {needed} there{in_all}"]


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
            listener=_listener(),
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

    detector = _load(model, device, threads)
    samples = calibration_samples(load_manifest(data, group_regex))
    detector = set_thresholds(detector, samples, rate, confidence, _listener())
    detector.save(model)
    _say_thresholds(detector)
    typer.echo(f"wrote {model}")
    _finish_fit(len(samples) - len(detector.calibrated[0].image))


@app.command()
def score(
    model: ModelArgument,
    inputs: Annotated[list[Path], typer.Argument(help="Images, folders, or a manifest CSV.", show_default=False)],
    out: RunOption,
    maps: MapsOption = False,
    heatmaps: HeatmapsOption = "anomalous",
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Score images: a table with decisions and regions, heatmaps, a report. Needs no labels."""
    from anomaly_ae.manifest import load_manifest, manifest_from_paths

    options = _run_options(maps, heatmaps, overwrite, [])
    is_table = len(inputs) == 1 and inputs[0].suffix.lower() in {".csv", ".tsv"}
    manifest = load_manifest(inputs[0]) if is_table else manifest_from_paths(inputs)
    from anomaly_ae.evaluation import score as score_run

    _finish(score_run(_load(model, device, threads), manifest, out, options, _listener()))


@app.command()
def evaluate(
    model: ModelArgument,
    data: DataArgument,
    out: RunOption,
    maps: MapsOption = False,
    heatmaps: HeatmapsOption = "none",
    by: Annotated[
        list[str] | None,
        typer.Option("--by", help="Break the figures down by a column of the manifest; may be repeated."),
    ] = None,
    group_regex: GroupOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Score the labelled test images of DATA and measure. The detector is not changed."""
    from anomaly_ae.manifest import load_manifest

    options = _run_options(maps, heatmaps, overwrite, by or [])
    manifest = load_manifest(data, group_regex)
    from anomaly_ae.evaluation import evaluate as evaluate_run

    _finish(evaluate_run(_load(model, device, threads), manifest, out, options, _listener()))


@app.command()
def threshold(run: RunArgument, rate: RateOption = None, confidence: ConfidenceOption = None) -> None:
    """Ask 'what if': decide a finished run again at another false-alarm rate. The model is untouched."""
    from anomaly_ae.report import write_report
    from anomaly_ae.results import redecide

    for line in redecide(run, rate, confidence, _listener()).lines():
        typer.echo(line)
    typer.echo(f"wrote {write_report(run)}")


@app.command()
def report(run: RunArgument) -> None:
    """Render report.html of a finished run again."""
    from anomaly_ae.report import write_report

    typer.echo(f"wrote {write_report(run)}")


@app.command()
def info(model: ModelArgument) -> None:
    """Say in words what a model file holds: what it was trained on, how, and what its thresholds promise."""
    from anomaly_ae.detector import Detector

    for line in Detector.load(model, "cpu").describe():
        typer.echo(line)


@app.command()
def preview(
    data: DataArgument,
    out: Annotated[Path, typer.Option("--out", help="Picture to write.")] = Path("preview.png"),
    preset: Annotated[str | None, typer.Option("--preset", help="Whose damage to show; picked if not given.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Another seed, another sheet.", min=0)] = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """Draw a sheet of normal images (top rows) and what training makes of them (below)."""
    from anomaly_ae.demo import write_preview

    refuse_existing_file(out, overwrite)
    write_preview(data, out, preset, seed)
    typer.echo(f"wrote {out}")


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


def _run_options(maps: bool, heatmaps: str, overwrite: bool, by: list[str]) -> Any:
    from anomaly_ae.evaluation import HEATMAPS, RunOptions

    if heatmaps not in HEATMAPS:
        raise UsageError(f"--heatmaps {heatmaps}", "unknown", f"one of: {', '.join(HEATMAPS)}")
    return RunOptions(maps=maps, heatmaps=heatmaps, by=tuple(by), overwrite=overwrite)


def _load(model: Path, device: str, threads: int | None) -> Detector:
    from anomaly_ae.detector import Detector
    from anomaly_ae.loading import use_threads

    use_threads(threads)
    return Detector.load(model, device)


def _say_thresholds(detector: Detector) -> None:
    limit = detector.calibrated[1].image
    typer.echo(f"image threshold {limit.value:.4g}: {limit.promise}")


def _finish_fit(n_left_out: int) -> None:
    """Say how many normal images were left out; the exit code tells of them."""
    if n_left_out:
        typer.echo(f"normal images that could not be used: {n_left_out}; they are named above")
        raise typer.Exit(EXIT_SOME_UNREADABLE)


def _finish(result: RunResult) -> None:
    """Say what a run found; the exit code tells of unreadable inputs."""
    for line in result.lines():
        typer.echo(line)
    typer.echo(f"wrote {result.folder / 'report.html'}")
    if result.aborted:
        raise typer.Exit(EXIT_ABORTED)
    raise typer.Exit(EXIT_SOME_UNREADABLE if result.failures else 0)


def _listener() -> Listener:
    """Return a listener that prints lines, and shows progress: a bar on a terminal, a line now and then elsewhere."""
    from anomaly_ae.progress import TerminalProgress

    return TerminalProgress().listener()
