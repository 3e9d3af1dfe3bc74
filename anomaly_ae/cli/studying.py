"""Commands that study a model and its images: drift, capability, audit, curve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anomaly_ae.cli.shared import (
    EXIT_GATE_NOT_MET,
    EXIT_SOME_UNREADABLE,
    DataArgument,
    DeviceOption,
    GroupOption,
    IdentifiedOption,
    ModelArgument,
    OverwriteOption,
    ThreadsOption,
    app,
    listener,
    load,
    use_cores,
    warn_identified,
)
from anomaly_ae.errors import UsageError
from anomaly_ae.files import refuse_folder

StudyFolder = Annotated[Path, typer.Option("--out", help="Folder to write the findings into.", show_default=False)]
StudyOption = Annotated[Path | None, typer.Option("--out", help="Folder to write the findings into.")]
PresetOption = Annotated[
    str, typer.Option("--preset", help="Settings of every model: a preset of fit, or a TOML file.")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Of every random draw.", min=0)]


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

    if out is not None:
        refuse_folder(out, overwrite)
    found = find_drift(load(model, "cpu", None), runs, rate, seed)
    for line in found.lines():
        typer.echo(line)
    if out is not None:
        typer.echo(f"wrote {write_drift(found, out)}")
    raise typer.Exit(EXIT_GATE_NOT_MET if found.alarms else 0)


@app.command()
def capability(
    model: ModelArgument,
    normals: Annotated[
        Path, typer.Argument(help="Normal images nothing was learned from: a folder or CSV.", show_default=False)
    ],
    out: StudyFolder,
    kind: Annotated[
        str, typer.Option("--kind", help="scratch, spot, stain, dent, burr, texture_break, blur.")
    ] = "spot",
    sizes: Annotated[
        str, typer.Option("--sizes", help="In px, e.g. 4,8,16 (default: six up to a quarter of the side).")
    ] = "",
    contrasts: Annotated[
        str, typer.Option("--contrasts", help="Shares of the way from black to white.")
    ] = "0.03,0.06,0.12,0.25,0.5",
    n_per_grade: Annotated[int, typer.Option("--per-grade", help="Defects of each size and contrast.", min=1)] = 20,
    seed: Annotated[int, typer.Option("--seed", help="Of images, places and shapes.", min=0)] = 0,
    identified: IdentifiedOption = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Say how small and weak a defect MODEL finds at its threshold, by planting synthetic ones into NORMALS."""
    from anomaly_ae.capability import held_out_normals, measure_capability, write_capability
    from anomaly_ae.manifest import load_manifest

    sizes_px, shares = _numbers(sizes, "--sizes"), _numbers(contrasts, "--contrasts")
    refuse_folder(out, overwrite)
    warn_identified(identified)
    samples = held_out_normals(load_manifest(normals, identified=identified))
    detector = load(model, device, threads)
    found, examples = measure_capability(detector, samples, kind, sizes_px, shares, n_per_grade, seed, listener())
    for line in found.lines():
        typer.echo(line)
    typer.echo(f"wrote {write_capability(found, examples, detector, out)}")
    raise typer.Exit(EXIT_SOME_UNREADABLE if found.n_left_out else 0)


@app.command()
def audit(
    data: DataArgument,
    out: StudyFolder,
    preset: PresetOption = "fast",
    folds: Annotated[int, typer.Option("--folds", help="Models to train, each on all folds but one.", min=2)] = 5,
    top: Annotated[int, typer.Option("--top", help="How many to show with their maps.", min=1)] = 30,
    planted: Annotated[
        float,
        typer.Option("--planted", help="Self-check: plant defects into this share first, e.g. 0.02.", min=0, max=0.5),
    ] = 0.0,
    group_regex: GroupOption = None,
    identified: IdentifiedOption = False,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Rank the normal images of DATA by how strange they are to models that were trained without them."""
    from anomaly_ae.config import load_config
    from anomaly_ae.manifest import load_manifest

    config = load_config(preset, [f"seed={seed}"])
    refuse_folder(out, overwrite)
    warn_identified(identified)
    manifest = load_manifest(data, group_regex, identified=identified)
    from anomaly_ae.audit import audit as rank_normals
    from anomaly_ae.audit import write_audit

    use_cores(threads)
    found = rank_normals(manifest, config, folds, top, planted, device, listener())
    for line in found.lines():
        typer.echo(line)
    typer.echo(f"wrote {write_audit(found, out, top)}")
    raise typer.Exit(EXIT_SOME_UNREADABLE if found.n_left_out else 0)


@app.command()
def curve(
    data: DataArgument,
    out: StudyFolder,
    preset: PresetOption = "fast",
    shares: Annotated[str, typer.Option("--shares", help="Of the normal images; one model each.")] = "0.1,0.25,0.5,1",
    group_regex: GroupOption = None,
    identified: IdentifiedOption = False,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Draw the learning curve of DATA, and say whether more normal images would help."""
    from anomaly_ae.config import load_config
    from anomaly_ae.manifest import load_manifest

    config, parts = load_config(preset, [f"seed={seed}"]), _numbers(shares, "--shares")
    if len(parts) < 2 or not all(0 < part <= 1 for part in parts):
        raise UsageError(f"--shares {shares}", "two or more numbers above 0 and up to 1 are needed", "e.g. 0.25,0.5,1")
    refuse_folder(out, overwrite)
    warn_identified(identified)
    manifest = load_manifest(data, group_regex, identified=identified)
    from anomaly_ae.curve import learning_curve, write_curve

    use_cores(threads)
    found = learning_curve(manifest, config, parts, device, listener())
    for line in found.lines():
        typer.echo(line)
    typer.echo(f"wrote {write_curve(found, out)}")
    raise typer.Exit(EXIT_SOME_UNREADABLE if found.n_left_out else 0)


def _numbers(text: str, option: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise UsageError(
            f"{option} {text}", str(error), "write numbers with commas between them, e.g. 4,8,16"
        ) from error
