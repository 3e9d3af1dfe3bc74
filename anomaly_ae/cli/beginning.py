"""Commands to begin with: demo, scan, preview."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from anomaly_ae.cli.shared import (
    EXIT_SOME_UNREADABLE,
    ConfigOption,
    DataArgument,
    GroupOption,
    IdentifiedOption,
    OverwriteOption,
    ThreadsOption,
    app,
    listener,
    refuse_two_settings,
    use_cores,
    warn_identified,
)
from anomaly_ae.errors import OutputError, UsageError
from anomaly_ae.files import refuse_existing_file


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")] = Path("demo"),
    threads: ThreadsOption = None,
    overwrite: OverwriteOption = False,
    preset: Annotated[str, typer.Option("--preset", hidden=True)] = "",
) -> None:
    """Take the whole tour on embedded images: make them, scan, fit, evaluate, write demo/report.html."""
    from anomaly_ae.demo import make_demo

    use_cores(threads)
    report = make_demo(out, overwrite, preset or None, listener())
    typer.echo(f"\nOpen {report} in a browser.")


@app.command()
def scan(
    data: DataArgument,
    out: Annotated[Path | None, typer.Option("--out", help="Write the manifest as CSV.")] = None,
    group_regex: GroupOption = None,
    suffix: Annotated[str | None, typer.Option("--suffix", help="Which images of a BIDS folder, e.g. FLAIR.")] = None,
    foreground_above: Annotated[
        float | None,
        typer.Option("--foreground-above", help="Write `valid` masks: the largest piece above this number."),
    ] = None,
    folds: Annotated[int, typer.Option("--folds", help="Write K manifests by group instead of one.", min=0)] = 0,
    seed: Annotated[int, typer.Option("--seed", help="Of the folds.", min=0)] = 0,
    learn_from_patients: Annotated[
        bool, typer.Option("--learn-from-patients", help="In the folds, lesion-free slices of patients train, too.")
    ] = False,
    identified: IdentifiedOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Say what is here, and what would make results false. Reads every image once; changes nothing."""
    from anomaly_ae.manifest import load_manifest, make_folds, with_foreground, write_manifest
    from anomaly_ae.manifest import scan as scan_manifest

    if folds and out is None:
        raise UsageError("--folds needs --out", "", "e.g. --folds 5 --out parts.csv writes parts_1.csv to parts_5.csv")
    if learn_from_patients and not folds:
        raise UsageError("--learn-from-patients needs --folds", "", "or set `split` in the table that --out writes")
    if foreground_above is not None and out is None:
        raise UsageError("--foreground-above needs --out", "", "the masks are written beside that table")
    targets = [] if out is None else [out]
    if folds and out:
        targets = [out.with_name(f"{out.stem}_{number}.csv") for number in range(1, folds + 1)]
    for path in targets:
        refuse_existing_file(path, overwrite)
    warn_identified(identified)
    manifest = load_manifest(data, group_regex, suffix, identified)
    if foreground_above is not None and out:
        manifest = with_foreground(manifest, foreground_above, _new_mask_folder(out, overwrite))
    parts = make_folds(manifest, folds, seed, learn_from_patients) if folds else []
    progress = listener().progress
    report = scan_manifest(manifest, lambda done, total: progress("reading", done, total, ""), parts)
    for line in [*report.lines(), *_calibration_lines(report.calibration)]:
        typer.echo(line)
    for path, one in zip(targets, parts or [manifest], strict=False):  # before a refusal: its cure may be to edit it
        write_manifest(one, path, overwrite)
        warning = "; it holds original paths: keep it with the images" if manifest.is_private else ""
        typer.echo(f"wrote {path}{warning}")
    report.raise_if_refused()
    raise typer.Exit(EXIT_SOME_UNREADABLE if report.unreadable else 0)


def _new_mask_folder(out: Path, overwrite: bool) -> Path:
    """Return where the masks of a table are written."""
    folder = out.with_name(f"{out.stem}_valid")
    if folder.exists() and not overwrite:
        raise OutputError(f"{folder} exists already", "masks are not replaced unasked", "another --out, or --overwrite")
    return folder


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
def preview(
    data: DataArgument,
    out: Annotated[Path, typer.Option("--out", help="Picture to write.")] = Path("preview.png"),
    preset: Annotated[str | None, typer.Option("--preset", help="Whose damage to show; picked if not given.")] = None,
    config: ConfigOption = None,
    seed: Annotated[int, typer.Option("--seed", help="Another seed, another sheet.", min=0)] = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """Draw a sheet of normal images (top rows) and what training makes of them (below)."""
    from anomaly_ae.demo import write_preview

    refuse_two_settings(preset, config)
    if out.suffix.lower() != ".png":
        raise UsageError(f"--out {out}", "the sheet is a PNG", "give a name that ends in .png")
    refuse_existing_file(out, overwrite)
    n_left_out = write_preview(data, out, config or preset, seed, listener())
    typer.echo(f"wrote {out}")
    raise typer.Exit(EXIT_SOME_UNREADABLE if n_left_out else 0)
