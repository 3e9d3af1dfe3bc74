"""Commands that use a model, and what they wrote: score, evaluate, threshold, report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anomaly_ae.cli.shared import (
    EXIT_ABORTED,
    EXIT_SOME_UNREADABLE,
    ConfidenceOption,
    CostOption,
    DataArgument,
    DeviceOption,
    GroupOption,
    HeatmapsOption,
    MapsOption,
    ModelArgument,
    OverwriteOption,
    RateOption,
    ReviewRateOption,
    ReviewSensitivityOption,
    RunArgument,
    RunOption,
    SensitivityOption,
    ThreadsOption,
    ValueOption,
    app,
    asked_of,
    listener,
    load,
)
from anomaly_ae.errors import UsageError

if TYPE_CHECKING:
    from anomaly_ae.evaluation import RunResult


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

    _finish(score_run(load(model, device, threads), manifest, out, options, listener()))


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

    _finish(evaluate_run(load(model, device, threads), manifest, out, options, listener()))


@app.command()
def threshold(
    run: RunArgument,
    rate: RateOption = None,
    confidence: ConfidenceOption = None,
    sensitivity: SensitivityOption = None,
    cost: CostOption = None,
    value: ValueOption = None,
    review_rate: ReviewRateOption = None,
    review_sensitivity: ReviewSensitivityOption = None,
) -> None:
    """Ask 'what if': decide a finished run again at other thresholds. The model is untouched; without options, its own.

    Rules: --false-alarm-rate, or one of --sensitivity, --cost, --value. A --review- option adds a band for people.
    """
    from anomaly_ae.report import write_report
    from anomaly_ae.results import redecide

    asked = asked_of(rate, confidence, sensitivity, cost, value, review_rate, review_sensitivity)
    for line in redecide(run, asked, listener()).lines():
        typer.echo(line)
    typer.echo(f"wrote {write_report(run)}")


@app.command()
def report(run: RunArgument) -> None:
    """Render report.html of a finished run again."""
    from anomaly_ae.report import write_report

    typer.echo(f"wrote {write_report(run)}")


def _run_options(maps: bool, heatmaps: str, overwrite: bool, by: list[str]) -> Any:
    from anomaly_ae.evaluation import HEATMAPS, RunOptions

    if heatmaps not in HEATMAPS:
        raise UsageError(f"--heatmaps {heatmaps}", "unknown", f"one of: {', '.join(HEATMAPS)}")
    return RunOptions(maps=maps, heatmaps=heatmaps, by=tuple(by), overwrite=overwrite)


def _finish(result: RunResult) -> None:
    """Say what a run found; the exit code tells of unreadable inputs."""
    for line in result.lines():
        typer.echo(line)
    typer.echo(f"wrote {result.folder / 'report.html'}")
    if result.aborted:
        raise typer.Exit(EXIT_ABORTED)
    raise typer.Exit(EXIT_SOME_UNREADABLE if result.failures else 0)
