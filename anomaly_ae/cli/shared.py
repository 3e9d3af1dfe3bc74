"""What the commands share: the program, its options, and how it talks to people."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anomaly_ae.errors import UsageError

if TYPE_CHECKING:
    from anomaly_ae.calibration import Asked
    from anomaly_ae.detector import Detector
    from anomaly_ae.listener import Listener
    from anomaly_ae.manifest import Manifest

EXIT_SOME_UNREADABLE = 3
EXIT_GATE_NOT_MET = 4
EXIT_ABORTED = 130

app = typer.Typer(
    help="Finds anomalies in images with an autoencoder that has seen normal images only.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)

ConfigOption = Annotated[Path | None, typer.Option("--config", help="TOML file instead of a preset.")]
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
SensitivityOption = Annotated[
    str | None,
    typer.Option("--sensitivity", help="Instead: share of labelled anomalies that has to be found, e.g. 0.95."),
]
CostOption = Annotated[
    str | None,
    typer.Option("--cost", help="Instead: least expected cost, e.g. escape=500,false-reject=5,prevalence=0.01."),
]
ValueOption = Annotated[
    float | None, typer.Option("--value", help="Instead: this very threshold; nothing is promised.", show_default=False)
]
ReviewRateOption = Annotated[
    str | None,
    typer.Option(
        "--review-false-alarm-rate", help="Review band: a second, lower limit that this share of normal images reaches."
    ),
]
ReviewSensitivityOption = Annotated[
    str | None,
    typer.Option(
        "--review-sensitivity", help="Review band: a second, lower limit that this share of anomalies reaches."
    ),
]
WhoOption = Annotated[str, typer.Option("--who", help="Name for the journal (default: user name of the system).")]
WhyOption = Annotated[str, typer.Option("--why", help="Reason for the journal.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto (a GPU if there is one), cpu, cuda, cuda:1.")]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", help="CPU threads; take fewer where others compute, too (default: all cores).", min=1),
]
ReadersOption = Annotated[
    int,
    typer.Option(
        "--readers",
        help="Processes that decode images, for compressed DICOM and many cores; 0: threads.",
        min=0,
        max=64,
    ),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace what exists already.")]
GroupOption = Annotated[
    str | None,
    typer.Option(
        "--group-regex",
        help="Group = first bracketed part of this pattern in the path, e.g. '(lot\\d+)'; "
        "a part (?P<unit>...) is the unit.",
    ),
]
IdentifiedOption = Annotated[
    bool, typer.Option("--identified", help="Show patients and paths of DICOM and NIfTI data as they are, not hashes.")
]
MembersOption = Annotated[
    int | None, typer.Option("--members", help="K networks, in K times the time: docs/benchmarks.", min=1, max=16)
]
MapsOption = Annotated[bool, typer.Option("--maps", help="Also write the anomaly maps as 32-bit float TIFF.")]
HeatmapsOption = Annotated[str, typer.Option("--heatmaps", help="Full-size pictures: none, anomalous, all.")]


def asked_of(
    rate: str | None,
    confidence: str | None,
    sensitivity: str | None,
    cost: str | None,
    value: float | None,
    review_rate: str | None,
    review_sensitivity: str | None,
) -> Asked:
    """Return what the options ask of the thresholds; two rules for one threshold are refused."""
    from anomaly_ae.calibration import Asked
    from anomaly_ae.threshold import Cost

    costs = None if cost is None else Cost.parse(cost)
    return Asked(rate, confidence, sensitivity, costs, value, review_rate, review_sensitivity)


def refuse_two_settings(preset: str | None, config: Path | None) -> None:
    """Refuse a preset beside a file of settings."""
    if preset and config:
        raise UsageError(
            "--preset and --config", "both name the settings", "give one of them; fit has --set for changes"
        )


def warn_identified(identified: bool) -> None:
    """Say what --identified does, where it is given."""
    if identified:
        what = "patients, file names and paths of DICOM and NIfTI data stand as they are in all that is written"
        typer.echo(f"warning: --identified: {what}", err=True)


def say_notes(manifest: Manifest, is_learned: bool = False) -> None:
    """Say warnings and what is ignored, and all notes where there are DICOM or NIfTI files: `scan` says the rest.

    Where the images are learned from, also say how many of them nobody called normal.
    """
    from anomaly_ae.manifest import FIT_SPLITS, roles

    used = zip(manifest.samples, roles(manifest.samples), strict=True) if is_learned else ()
    n_unlabelled = sum(role in FIT_SPLITS and not sample.label for sample, role in used)
    if n_unlabelled:
        typer.echo(f"note: images without a label, taken as normal for training: {n_unlabelled}", err=True)
    for warning in manifest.warnings:
        typer.echo(f"warning: {warning}", err=True)
    for note in manifest.all_notes if manifest.is_private else manifest.ignored:
        typer.echo(f"note: {note}", err=True)


def load(model: Path, device: str, threads: int | None, readers: int = 0) -> Detector:
    """Load a model onto a device; at most so many threads compute on the CPU, and so many processes read."""
    from anomaly_ae.detector import Detector

    use_cores(threads, readers)
    detector = Detector.load(model, device)
    # Not `warnings.warn`: decoding turns its filters off for the whole process, and a warning may fall into that time.
    detector.say = lambda line: warnings.showwarning(line, UserWarning, "", 0)
    return detector


def use_cores(threads: int | None, readers: int = 0) -> None:
    """Let at most so many threads compute on the CPU, and so many processes read images."""
    from anomaly_ae.loading import use_readers, use_threads

    use_threads(threads)
    use_readers(readers)


def listener() -> Listener:
    """Return a listener that prints lines, and shows progress: a bar on a terminal, a line now and then elsewhere."""
    from anomaly_ae.progress import TerminalProgress

    return TerminalProgress().listener()
