"""Commands that judge finished runs, without images or model: compare, check, msa."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anomaly_ae.cli.shared import EXIT_GATE_NOT_MET, OverwriteOption, RunArgument, app
from anomaly_ae.errors import UsageError
from anomaly_ae.files import refuse_existing_file

TablesOption = Annotated[
    Path | None, typer.Option("--out", help="File (.csv, .md, .tex) or folder for the tables.", show_default=False)
]


@app.command()
def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders that evaluate wrote.", show_default=False)
    ],
    names: Annotated[
        list[str] | None, typer.Option("--name", help="Row of a run; once for every RUN. Equal names: one row.")
    ] = None,
    out: TablesOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Compare finished runs on the images that all of them decided; differences are to the first.

    Runs that differ in their seed alone are one row.
    """
    from anomaly_ae.judging import compare_runs, load_run, targets

    if out is not None:
        targets(out, "")  # a wrong suffix is refused before the work
    found = compare_runs([load_run(run) for run in runs], names or [])
    for line in found.sheet().lines():
        typer.echo(line)
    if out is None:
        return
    written = found.sheet().write(out, overwrite)
    if len(written) > 1:
        written += found.changes_sheet().write(out / "changed.csv", overwrite)
    _say_written(written)


@app.command()
def check(
    run: RunArgument,
    min_sensitivity: Annotated[
        str | None, typer.Option("--min-sensitivity", help="At least this share of anomalous images is found.")
    ] = None,
    max_false_alarm_rate: Annotated[
        str | None, typer.Option("--max-false-alarm-rate", help="At most this share of normal images is flagged.")
    ] = None,
    confidence: Annotated[
        str | None, typer.Option("--confidence", help="The bound at this confidence has to keep it, e.g. 0.95.")
    ] = None,
    expect: Annotated[
        Path | None, typer.Option("--expect", help="CSV of images with the decision that has to come out.")
    ] = None,
    junit: Annotated[Path | None, typer.Option("--junit", help="Write the outcome as JUnit XML.")] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Check a finished run against demands; exit code 4 where one is not met."""
    from anomaly_ae.judging import check_gates, check_golden, load_run, write_junit

    demands = min_sensitivity, max_false_alarm_rate
    if demands == (None, None) and confidence is not None:
        raise UsageError("--confidence needs --min-sensitivity or --max-false-alarm-rate", "", "it is of these rates")
    if demands == (None, None) and expect is None:
        raise UsageError("nothing to check", "", "give --min-sensitivity, --max-false-alarm-rate or --expect")
    if junit:
        refuse_existing_file(junit, overwrite)
    found = load_run(run)
    gates = [] if demands == (None, None) else check_gates(found, *demands, confidence)
    golden = check_golden(found, expect) if expect else []
    for outcome in (*gates, *(one for one in golden if not one.passed)):  # of golden images only what went wrong
        typer.echo(outcome.line())
    if junit:
        write_junit(junit, {"anomaly-ae check": gates, "anomaly-ae check --expect": golden})
        _say_written([junit])
    n_failed = sum(not outcome.passed for outcome in (*gates, *golden))
    n = len(gates) + len(golden)
    typer.echo(f"{n_failed} of {n} not met" if n_failed else f"all {n} met" if n > 1 else "met")
    raise typer.Exit(EXIT_GATE_NOT_MET if n_failed else 0)


@app.command()
def msa(
    run: RunArgument,
    part: Annotated[str, typer.Option("--part", help="Column that names the part.", show_default=False)],
    appraiser: Annotated[
        str | None, typer.Option("--appraiser", help="Column that names camera, station or person (default: one).")
    ] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", help="Column that says normal or anomalous (default: label).")
    ] = None,
    out: TablesOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Study repeatability and reproducibility: the same parts, shown several times to several appraisers."""
    from anomaly_ae.judging import load_run, study_run, targets

    if out is not None:
        targets(out, "")
    sheet = study_run(load_run(run), part, appraiser, reference).sheet()
    for line in sheet.lines():
        typer.echo(line)
    if out is not None:
        _say_written(sheet.write(out, overwrite))


def _say_written(paths: list[Path]) -> None:
    for path in paths:
        typer.echo(f"wrote {path}")
