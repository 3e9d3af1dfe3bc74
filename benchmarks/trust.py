"""Can the numbers be trusted? Asked and found rates, shortcuts, planted against real defects, from a finished bench.

    python benchmarks/quality.py ROOT --out RUNS --manifest final.csv --embedded
    python benchmarks/trust.py ROOT RUNS --out docs/benchmarks/trust.md

The first line fits and evaluates (hours); the second reads these runs, plants defects with their models into held-out
normal images (a minute or two for each), and writes the page. What was planted is kept in RUNS/planted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from bench.cells import cell_folder
from bench.sets import DataSet, embedded_sets, real_sets

from anomaly_ae.capability import held_out_normals, measure_capability, write_capability
from anomaly_ae.detector import Detector
from anomaly_ae.errors import UsageError
from anomaly_ae.files import write_text
from anomaly_ae.loading import use_threads
from anomaly_ae.manifest import load_manifest
from anomaly_ae.progress import TerminalProgress
from anomaly_ae.shortcuts import SHORTCUT_LIMIT

NUMBERS = ("mean grey", "deviation", "sharpness", "image size", "file size")
KINDS = ("spot", "scratch")
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Measured:
    """What the bench left of one data set: ``run.json`` and ``metrics.json`` of its default model, and the model."""

    data: DataSet
    info: Json
    metrics: Json
    model: Path

    @property
    def at(self) -> Json:
        """The figures at the threshold."""
        at: Json = self.metrics["image"]["at_threshold"][0]
        return at


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the runs, plant, and write the page."""
    asked = parse(arguments)
    use_threads(asked.threads)
    sets = real_sets(asked.root, asked.manifest, asked.sets or None) if asked.root.is_dir() else []
    sets += embedded_sets(asked.runs / "embedded") if (asked.runs / "embedded").is_dir() else []
    runs = list(measured(sets, asked))
    if not runs:
        raise UsageError(f"no runs in {asked.runs}", "the bench has to fit and evaluate first", __doc__.splitlines()[2])
    planted = {
        (run.data.name, kind): plant(run, kind, asked)
        for run in runs
        if run.data.name in asked.planted
        for kind in KINDS
    }
    sections = [head(runs, asked), asked_and_found(runs), shortcuts(runs), forecasts(runs, planted)]
    write_text(asked.out, "\n\n".join("\n".join(section) for section in sections) + "\n")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder with one folder per data set")
    parser.add_argument("runs", type=Path, help="OUT of benchmarks/quality.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--manifest", default="final.csv")
    parser.add_argument("--sets", nargs="*", default=[])
    parser.add_argument("--variant", default="default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--planted", nargs="*", default=["magnetic_tile", "brain_lgg_flair"], help="sets to plant into")
    parser.add_argument("--per-grade", type=int, default=20)
    parser.add_argument("--threads", type=int)
    return parser.parse_args(arguments)


def measured(sets: Sequence[DataSet], asked: argparse.Namespace) -> Iterator[Measured]:
    """Yield what was measured of each data set; a set without a run is left out, and said."""
    for data in sets:
        folder = cell_folder(asked.runs, data.name, asked.variant, asked.seed)
        files = folder / "run" / "run.json", folder / "run" / "metrics.json"
        if all(file.exists() for file in files):
            info, metrics = (json.loads(file.read_text(encoding="utf-8")) for file in files)
            yield Measured(data, info, metrics, folder / "model.safetensors")
        else:
            print(f"left out: no run of {data.name} in {folder}", file=sys.stderr)


def plant(run: Measured, kind: str, asked: argparse.Namespace) -> Json:
    """Return ``capability.json`` of a model; from before, where this very model was measured."""
    sha256 = run.info["model"]["sha256"][:12]
    folder = asked.runs / "planted" / f"{run.data.name}-{kind}-{sha256}-{asked.per_grade}"
    if not (folder / "capability.json").exists():
        detector, listener = Detector.load(run.model, "cpu"), TerminalProgress().listener()
        samples = held_out_normals(load_manifest(run.data.manifest))
        found, examples = measure_capability(
            detector, samples, kind, n_per_grade=asked.per_grade, seed=asked.seed, listener=listener
        )
        write_capability(found, examples, detector, folder)
    read: Json = json.loads((folder / "capability.json").read_text(encoding="utf-8"))
    return read


def head(runs: Sequence[Measured], asked: argparse.Namespace) -> Iterator[str]:
    """Yield the title, how to repeat the page, and the models it speaks of."""
    yield "# Can the numbers be trusted?\n"
    yield f"    python benchmarks/quality.py ROOT --out RUNS --manifest {asked.manifest} --embedded"
    yield "    python benchmarks/trust.py ROOT RUNS --out docs/benchmarks/trust.md\n"
    yield f"Every figure comes from these two lines. Variant `{asked.variant}` of the bench, seed {asked.seed}, one"
    yield "model for each set; nothing was chosen on these images. Intervals: 95 %, over groups where there are any.\n"
    if not any(run.data.name.startswith("embedded_") for run in runs):
        yield "The embedded data are not in this copy: RUNS was made without `--embedded`.\n"
    rows = [
        (
            run.data.name,
            f"{run.info['version']}, preset {run.info['model']['preset']}",
            f"{', '.join(run.info['model']['resolutions'])}, {run.info['model']['steps']} steps",
            str(run.info["model"]["trained_utc"])[:10],
            str(run.info["model"]["weights_sha256"])[:12],
        )
        for run in runs
    ]
    yield from table(("set", "model of version", "resolutions", "trained", "hash of the weights"), rows)


def asked_and_found(runs: Sequence[Measured]) -> Iterator[str]:
    """Yield the table of promised and found false-alarm rates."""
    yield "## Asked and found\n"
    rows = [
        (
            run.data.name,
            "{normal} / {anomalous}".format(**run.metrics["counts"]),
            str(n_independent(run)),
            f"{asked_rate(run):.3f}",
            figure(run.at["false_alarm_rate"]),
            band(run.at),
            figure(run.at["sensitivity"]),
            figure(run.metrics["image"]["roc_auc"]),
        )
        for run in runs
    ]
    columns = ("set", "n normal / anomalous", "groups or images that set the threshold", "asked, on average")
    yield from table((*columns, "found", "expected in 95 % of cases", "sensitivity at it", "image ROC-AUC"), rows)
    yield from no_band(run.at for run in runs)
    above = [run.data.name for run in runs if low(run.at["false_alarm_rate"]) > asked_rate(run)]
    yield "\nFound and surely above the asked rate: " + (", ".join(above) or "none") + "."
    yield "Few groups make the threshold the highest score that any of them reached, so sensitivity can be low where"
    yield "the ranking is useful: a [review band](../how-to/thresholds.md) or more normal groups are the cure."
    yield "Simulated scores, where the true rate is known: [false_alarm_rate.md](false_alarm_rate.md)."


def shortcuts(runs: Sequence[Measured]) -> Iterator[str]:
    """Yield the table of what separates the classes without looking for a defect."""
    yield "## Shortcuts\n"
    yield "ROC-AUC of plain numbers against the label, on the same images; 0.5 says nothing. **Bold** is what the"
    yield f"report names first, above {SHORTCUT_LIMIT:g} in either direction: it may be the defect itself.\n"
    found = [(run.data.name, run.info["data"]["shortcuts"]) for run in runs]
    further = sorted({name for _, areas in found for name in areas} - set(NUMBERS))
    columns = [*NUMBERS, *further]
    yield from table(("set", *columns), [(name, *(area(areas.get(c)) for c in columns)) for name, areas in found])


def forecasts(runs: Sequence[Measured], planted: dict[tuple[str, str], Json]) -> Iterator[str]:
    """Yield planted beside real sensitivities, and how well the ones forecast the others."""
    yield "## Does what is planted predict what is found?\n"
    yield "`capability` plants defects into held-out normal images; found means flagged, and marked at the defect."
    yield "Beside it real defects of the same set, by the area of their mask and the diameter of a disc of that area."
    for run in runs:
        for kind in KINDS:
            if (run.data.name, kind) in planted:
                yield from heat_map(run.data.name, planted[run.data.name, kind])
        if (run.data.name, KINDS[0]) in planted:
            yield from real_sizes(run, planted[run.data.name, KINDS[0]])


def heat_map(name: str, found: Json) -> Iterator[str]:
    """Yield the share found by size and contrast."""
    sizes = sorted({cell["size_px"] for cell in found["cells"]})
    n = max(cell["n"] for cell in found["cells"])
    yield f"\n**{name}**, planted: {found['kind']}, {n} of each grade in {found['n_images']} images."
    yield f"{found['sentence']}.\n"
    share = {(c["contrast"], c["size_px"]): c["sensitivity"] for c in found["cells"]}
    rows = [
        (f"{contrast:g}", *(share_text(share[contrast, size]) for size in sizes))
        for contrast in sorted({contrast for contrast, _ in share})
    ]
    yield from table(("contrast", *(f"{size:g} px" for size in sizes)), rows)


def share_text(share: float | None) -> str:
    """Return a share found; "-" where no defect left a trace."""
    return "-" if share is None else f"{share:.2f}"


def real_sizes(run: Measured, found: Json) -> Iterator[str]:
    """Yield the sensitivity of real defects by size, and which row of the planted ones comes nearest."""
    classes = run.metrics["image"]["by_defect_size"]
    if not classes:
        return
    yield f"\n**{run.data.name}**, real:\n"
    discs = [[2 * (one[end] / np.pi) ** 0.5 for end in ("from_px", "to_px")] for one in classes]
    rows = [
        (
            f"{one['from_px']:,} to {one['to_px']:,}",
            f"{disc[0]:.0f} to {disc[1]:.0f}",
            str(one["sensitivity"]["n_anomalous"]),
            figure(one["sensitivity"]),
        )
        for one, disc in zip(classes, discs, strict=True)
    ]
    yield from table(("area, px", "disc, px", "n", "sensitivity"), rows)
    yield from nearest_row(classes, discs, found)


def nearest_row(classes: Sequence[Json], discs: Sequence[Sequence[float]], found: Json) -> Iterator[str]:
    """Say how far every row of planted defects is from the real ones, at the middle size of each class."""
    largest = max(cell["size_px"] for cell in found["cells"])
    middles = [float(np.sqrt(max(low_px, 1) * high_px)) for low_px, high_px in discs]
    kept = [(m, one["sensitivity"]["value"]) for m, one in zip(middles, classes, strict=True) if m <= largest]
    beyond = len(classes) - len(kept)
    if kept:
        sizes, real = (np.array(column) for column in zip(*kept, strict=True))
        distances = {}
        for contrast in sorted({cell["contrast"] for cell in found["cells"]}):
            row = [(c["size_px"], c["sensitivity"] or 0.0) for c in found["cells"] if c["contrast"] == contrast]
            forecast = np.interp(np.log(sizes), np.log([size for size, _ in row]), [share for _, share in row])
            distances[contrast] = float(np.abs(forecast - real).mean())
        best = min(distances, key=lambda contrast: distances[contrast])
        yield f"\nMean difference of planted ({found['kind']}) and real sensitivity, {len(kept)} smallest classes:"
        yield ", ".join(f"{value:.2f} at contrast {contrast:g}" for contrast, value in distances.items()) + "."
        yield f"Nearest is contrast {best:g}, named after the real ones were seen: a user has to know the contrast of"
        yield "the defects to read the right row, and a forecast for another kind of defect it is not."
    if beyond:
        yield f"Larger than anything planted: {beyond} of {len(classes)} classes, of which nothing is forecast."


def n_independent(run: Measured) -> int:
    """Return how many groups, or images without groups, set the threshold."""
    limit = run.info["threshold"]["image"]
    return int(limit.get("n_groups") or limit["n"])


def asked_rate(run: Measured) -> float:
    """Return the asked false-alarm rate."""
    return float(Fraction(run.at["rate_asked"]))


def low(metric: Json) -> float:
    """Return the lower limit of a figure; 0 without an interval."""
    return float(metric["intervals"][0]["low"]) if metric["intervals"] else 0.0


def figure(metric: Json) -> str:
    """Return a figure with its first interval."""
    if metric["value"] is None:
        return "-"
    first = next(iter(metric["intervals"]), None)
    return f"{metric['value']:.3f}" + (f" [{first['low']:.3f}, {first['high']:.3f}]" if first else "")


def band(at: Json) -> str:
    """Return where the found rate lies in 95 % of cases if the promise holds."""
    limits = at["false_alarm_band"]
    return "-" if limits is None else f"{limits[0]:.3f} to {limits[1]:.3f}"


def no_band(rates: Iterable[Json]) -> Iterator[str]:
    """Say why rows have no band; nothing where all have one."""
    reasons = sorted({at["false_alarm_band_reason"] for at in rates if at["false_alarm_band"] is None})
    if reasons:
        yield f"\nWhere nothing is expected (-): {'; '.join(reasons)}."


def area(value: float | None) -> str:
    """Return a ROC-AUC; bold where the report would warn."""
    if value is None:
        return "-"
    text = f"{value:.2f}"
    return f"**{text}**" if max(value, 1 - value) > SHORTCUT_LIMIT else text


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield a Markdown table."""
    yield f"| {' | '.join(columns)} |"
    yield f"| {' | '.join('---' for _ in columns)} |"
    yield from (f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    main()
