"""Commands that study a model and its images: drift, capability, audit, curve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anomaly_ae.cli.shared import ModelArgument, OverwriteOption, app, load

EXIT_GATE_NOT_MET = 4

StudyOption = Annotated[Path | None, typer.Option("--out", help="Folder to write the findings into.")]


@app.command()
def drift(
    model: ModelArgument,
    runs: Annotated[list[Path], typer.Argument(help="Folders that score or evaluate wrote.", show_default=False)],
    out: StudyOption = None,
    rate: Annotated[
        str, typer.Option("--false-alarm-rate", help="Chance of ever raising an alarm while nothing changes.")
    ] = "0.01",
    seed: Annotated[int, typer.Option("--seed", help="Of the draw among images of one group.", min=0)] = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """Say whether the images of RUNS still look like the calibration images of MODEL. Exit code 4: they do not."""
    from anomaly_ae.drift import find_drift, write_drift
    from anomaly_ae.page import refuse_folder

    if out is not None:
        refuse_folder(out, overwrite)
    found = find_drift(load(model, "cpu", None), runs, rate, seed)
    for line in found.lines():
        typer.echo(line)
    if out is not None:
        typer.echo(f"wrote {write_drift(found, out)}")
    raise typer.Exit(EXIT_GATE_NOT_MET if found.alarms else 0)
