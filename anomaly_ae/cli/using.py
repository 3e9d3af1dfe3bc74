"""Commands that use a model, and what they wrote: score, evaluate, threshold, report."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anomaly_ae.cli.shared import (
    EXIT_ABORTED,
    EXIT_SOME_UNREADABLE,
    ConfidenceOption,
    CostOption,
    DeviceOption,
    GroupOption,
    HeatmapsOption,
    IdentifiedOption,
    MapsOption,
    ModelArgument,
    OverwriteOption,
    ReadersOption,
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
    say_notes,
    warn_identified,
)
from anomaly_ae.errors import UsageError
from anomaly_ae.files import holds

if TYPE_CHECKING:
    from anomaly_ae.calibration import Asked
    from anomaly_ae.evaluation import RunOptions, RunResult


@app.command()
def score(
    model: ModelArgument,
    inputs: Annotated[list[Path], typer.Argument(help="Images, folders, or a manifest CSV.", show_default=False)],
    out: RunOption,
    maps: MapsOption = False,
    heatmaps: HeatmapsOption = "anomalous",
    dicom: Annotated[
        str | None, typer.Option("--dicom", help="Also write DICOM objects: sc (overlays), seg (regions), or sc,seg.")
    ] = None,
    group_regex: GroupOption = None,
    identified: IdentifiedOption = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    readers: ReadersOption = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """Score images: a table with decisions and regions, heatmaps, a report. Needs no labels."""
    from anomaly_ae.manifest import load_manifest, manifest_from_paths

    options = _with_dicom(_run_options(maps, heatmaps, overwrite), dicom)
    is_table = len(inputs) == 1 and inputs[0].suffix.lower() in {".csv", ".tsv"}
    warn_identified(identified)
    if is_table:
        manifest = load_manifest(inputs[0], group_regex, identified=identified)
    else:
        manifest = manifest_from_paths(inputs, identified, group_regex)
    say_notes(manifest)
    from anomaly_ae.evaluation import score as score_run

    _finish(score_run(load(model, device, threads, readers), manifest, out, options, listener()))


@app.command()
def evaluate(
    model: Annotated[
        Path, typer.Argument(help="Model file that fit wrote; left out with --scores.", show_default=False)
    ],
    out: RunOption,
    data: Annotated[
        Path | None, typer.Argument(help="Folder of images, or a manifest CSV.", show_default=False)
    ] = None,
    maps: MapsOption = False,
    heatmaps: HeatmapsOption = "none",
    by: Annotated[
        list[str] | None,
        typer.Option("--by", help="Break the figures down by a column of the manifest; may be repeated."),
    ] = None,
    defect_rate: Annotated[
        list[str] | None,
        typer.Option(
            "--defect-rate",
            help="Share of defective parts to state rejects and escapes at, e.g. 0.001; may be repeated "
            "(default: 0.1 %, 1 %, 10 %).",
        ),
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option("--scores", help="Measure these scores of another tool, a CSV 'path,score', and no MODEL."),
    ] = None,
    maps_from: Annotated[
        Path | None, typer.Option("--maps-from", help="With --scores: folder of that tool's anomaly maps.")
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option("--false-alarm-rate", help="With --scores: share of normal images that may be flagged."),
    ] = None,
    group_regex: GroupOption = None,
    identified: IdentifiedOption = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    readers: ReadersOption = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """Score the labelled test images of DATA and measure. The detector is not changed."""
    from anomaly_ae.manifest import load_manifest

    options = _run_options(maps, heatmaps, overwrite, by or [], defect_rate or [])
    inputs = _model_and_data(model, data, scores, maps_from, maps or heatmaps != "none", rate)
    warn_identified(identified)
    manifest = load_manifest(inputs[-1], group_regex, identified=identified)
    say_notes(manifest)
    from anomaly_ae.evaluation import evaluate as evaluate_run
    from anomaly_ae.evaluation import evaluate_scores

    if scores is None:
        result = evaluate_run(load(model, device, threads, readers), manifest, out, options, listener())
    else:
        result = evaluate_scores(scores, manifest, out, options, maps_from, listener(), rate)
    _finish(result)


def _model_and_data(
    first: Path, second: Path | None, scores: Path | None, maps_from: Path | None, draws: bool, rate: str | None
) -> list[Path]:
    """Return the arguments of evaluate: [DATA] with --scores, and else [MODEL, DATA]."""
    if scores is None and maps_from is not None:
        raise UsageError("--maps-from without --scores", "a model makes its own maps", "name the table with --scores")
    if scores is not None and draws:
        fix = "leave them out; maps that the other tool has made: --maps-from DIR"
        raise UsageError("--maps or --heatmaps with --scores", "there is no model to make them", fix)
    if scores is None and rate is not None:
        fix = "leave it out; threshold RUN --false-alarm-rate asks 'what if', and calibrate changes the model"
        raise UsageError("--false-alarm-rate without --scores", "a model has its thresholds", fix)
    inputs = [first] if second is None else [first, second]
    names = ["DATA"] if scores is not None else ["MODEL", "DATA"]
    if len(inputs) != len(names):
        given = " ".join(map(str, inputs))
        raise UsageError(f"evaluate {given}", f"needed here: {' and '.join(names)}", "see evaluate --help")
    return inputs


@app.command()
def threshold(
    run: RunArgument,
    rate: Annotated[
        str | None,
        typer.Option(
            "--false-alarm-rate",
            help="Share of normal images that may be flagged, e.g. 0.002 (where nothing is asked: as in the model).",
        ),
    ] = None,
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
    with _uncollected():
        _decide_again(run, asked_of(rate, confidence, sensitivity, cost, value, review_rate, review_sensitivity))


def _decide_again(run: Path, asked: Asked) -> None:
    from anomaly_ae.report import refuse_damaged, write_report
    from anomaly_ae.results import redecide

    if holds((run / "pictures.npz").exists):
        refuse_damaged(run / "pictures.npz")  # before the tables are new and the report is not
    decided = redecide(run, asked, listener())
    for line in decided.lines():
        typer.echo(line)
    typer.echo(f"wrote {write_report(run, decided.tables)}")


@app.command()
def report(run: RunArgument) -> None:
    """Render report.html of a finished run again."""
    from anomaly_ae.report import write_report

    typer.echo(f"wrote {write_report(run)}")


@contextmanager
def _uncollected() -> Iterator[None]:
    """Leave cycles that nobody uses where they are: looking for them in ten thousand rows takes a tenth of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _run_options(
    maps: bool, heatmaps: str, overwrite: bool, by: Sequence[str] = (), defect_rates: Sequence[str] = ()
) -> Any:
    from anomaly_ae.evaluation import RunOptions

    rates: Any = {"defect_rates": defect_rates} if defect_rates else {}  # which the options read by themselves
    return RunOptions(maps=maps, heatmaps=heatmaps, by=tuple(by), overwrite=overwrite, **rates)


def _with_dicom(options: RunOptions, kinds: str | None) -> RunOptions:
    from anomaly_ae.dicom import parse_kinds

    return options if kinds is None else replace(options, dicom=parse_kinds(kinds))


def _finish(result: RunResult) -> None:
    """Say what a run found; the exit code tells of unreadable inputs."""
    for line in result.lines():
        typer.echo(line)
    typer.echo(f"wrote {result.folder / 'report.html'}")
    if result.aborted:
        raise typer.Exit(EXIT_ABORTED)
    raise typer.Exit(EXIT_SOME_UNREADABLE if result.failures else 0)
