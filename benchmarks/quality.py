"""The experiment bench: fits variants on data sets with several seeds, and compares what they find.

    python benchmarks/quality.py ROOT --out OUT [--variant default proxy] [--seed 0 1 2] [--sets NAME ...] [--jobs 2]

ROOT holds one folder per data set with a manifest CSV in each. Cells that are done are not computed again. Tables go
to OUT/cells.csv, OUT/quality.json and OUT/quality.md. How to read them: docs/benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path

import torch
from bench.cells import Cell, Record, cell_folder, is_done, run_cell
from bench.sets import DataSet, embedded_sets, leave_out, real_sets
from bench.tables import write_tables
from bench.variants import Variant, read_variants

import anomaly_ae
from anomaly_ae.errors import AnomalyAEError, UsageError
from anomaly_ae.listener import Listener
from anomaly_ae.loading import use_threads
from anomaly_ae.progress import TerminalProgress

HERE = Path(__file__).resolve().parent
DEV = "dev.csv"


def main(arguments: Sequence[str] | None = None) -> int:
    """Compute what is missing and write the tables; return the exit code."""
    asked = parse(arguments)
    try:
        return bench(asked)
    except AnomalyAEError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, nargs="?", help="folder with one folder per data set")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--manifest", default=DEV, help="in every data set; dev.csv is what chooses, final.csv is for the last word"
    )
    parser.add_argument("--sets", nargs="+", help="of ROOT; default: all")
    parser.add_argument("--embedded", action="store_true", help="add embedded parts and surfaces")
    parser.add_argument("--variant", nargs="+", default=["default"])
    parser.add_argument("--variants", type=Path, default=HERE / "variants.toml", help="the table of variants")
    parser.add_argument(
        "--fits-from", type=Path, help="OUT of another manifest: its models are taken where both learn from the same"
    )
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--without-defects", nargs="+", default=[], metavar="SET:DEFECT")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--jobs", type=int, default=1, help="worker processes, which share the cores")
    return parser.parse_args(arguments)


def bench(asked: argparse.Namespace) -> int:
    """Run the families of cells that are not done, and write the tables after each."""
    variants = read_variants(asked.variants)
    for name in asked.variant:
        if name not in variants:
            raise UsageError(f"no variant '{name}' in {asked.variants}", "", f"one of: {', '.join(variants)}")
    if asked.jobs < 1:
        raise UsageError(f"--jobs {asked.jobs}", "somebody has to do it", "give 1 or more")
    refuse_other_manifest(asked.out, asked.manifest)
    sets = find_sets(asked)
    todo = [f for f in families(asked, sets, variants) if not all(map(is_done, f))]
    errors: list[str] = []
    for failed in run_all(todo, asked.device, asked.jobs):
        errors += failed
        write_tables(asked.out, *finished_cells(asked.out, sets, variants))
    write_tables(asked.out, *finished_cells(asked.out, sets, variants))
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    return 1 if errors else 0


def find_sets(asked: argparse.Namespace) -> list[DataSet]:
    """Return the data sets that were asked for."""
    if asked.root is None and not asked.embedded:
        raise UsageError("no data", "neither ROOT nor --embedded was given", "give one of them, or both")
    sets = real_sets(asked.root, asked.manifest, asked.sets) if asked.root else []
    sets += embedded_sets(asked.out / "embedded") if asked.embedded else []
    return leave_out(sets, asked.without_defects)


def families(
    asked: argparse.Namespace, sets: Sequence[DataSet], variants: Mapping[str, Variant]
) -> Iterator[list[Cell]]:
    """Yield what one worker does in one go: a fitted cell, then the score-only ones that share its fit."""
    wanted = [variants[name] for name in dict.fromkeys(asked.variant)]
    fitted = dict.fromkeys(v.scoring_only_of or v.name for v in wanted)
    for seed in dict.fromkeys(asked.seed):
        for name in fitted:
            for data in sets:
                first = _cell(asked, data, variants[name], seed)
                shared = [v for v in wanted if v.scoring_only_of == name]
                yield [first, *(_cell(asked, data, variant, seed, first) for variant in shared)]


def _cell(asked: argparse.Namespace, data: DataSet, variant: Variant, seed: int, fitted: Cell | None = None) -> Cell:
    elsewhere = cell_folder(asked.fits_from, data.name, variant.name, seed) if asked.fits_from else None
    return Cell(data, variant, seed, cell_folder(asked.out, data.name, variant.name, seed), fitted, elsewhere)


def run_all(todo: Sequence[Sequence[Cell]], device: str, n_jobs: int) -> Iterator[list[str]]:
    """Run families in this process, or in several that share the cores; yield the errors of each as it ends."""
    if n_jobs == 1:
        listener = TerminalProgress().listener()
        yield from (run_family(family, device, listener) for family in todo)
        return
    n_threads = max(1, torch.get_num_threads() // n_jobs)
    spawn = multiprocessing.get_context("spawn")  # a forked process can use no GPU
    with ProcessPoolExecutor(n_jobs, spawn, initializer=use_threads, initargs=(n_threads,)) as pool:
        for done in as_completed([pool.submit(run_family, family, device) for family in todo]):
            yield done.result()


def run_family(family: Sequence[Cell], device: str, listener: Listener | None = None) -> list[str]:
    """Run cells that share a fit, the fitted one first; return what went wrong, so that other families go on."""
    errors = []
    for cell in family:
        try:
            run_cell(cell, device, listener or Listener(say=partial(say_from, cell.name)))
        except AnomalyAEError as error:
            errors.append(f"{cell.name}: {error}")
            if cell.fitted is None:
                break
    return errors


def say_from(name: str, line: str) -> None:
    """Say who speaks: several workers share the terminal."""
    print(f"[{name}] {line}", file=sys.stderr, flush=True)


def refuse_other_manifest(out: Path, manifest: str) -> None:
    """Refuse a folder with cells of another manifest: figures that choose and figures that judge stay apart."""
    for path in sorted(out.glob("cells/*/*/*/cell.json")):
        other = json.loads(path.read_text(encoding="utf-8"))["manifest"]
        if other not in ("", manifest):
            raise UsageError(f"{out} holds cells of {other}", f"this is {manifest}", "choose another --out")


def finished_cells(
    out: Path, sets: Sequence[DataSet], variants: Mapping[str, Variant]
) -> tuple[list[Record], list[str]]:
    """Return all cells on disk that agree with the present variants and data, and notes on the others."""
    paths = sorted(out.glob("cells/*/*/*/cell.json"))
    cells = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    models = {(c["data"], c["variant"], c["seed"]): c["model_sha256"] for c in cells}
    by_name = {data.name: data for data in sets}
    current = [c for c in cells if is_current(c, by_name.get(c["data"]), variants.get(c["variant"]), models)]
    notes = []
    if len(current) < len(cells):
        notes.append(f"{len(cells) - len(current)} cells of other data, settings or versions are left out.")
    if len({c["versions"]["code"] for c in current}) > 1:
        notes.append("The code was changed between cells: column version_code of cells.csv tells them apart.")
    return current, notes


def is_current(
    cell: Record, data: DataSet | None, variant: Variant | None, models: Mapping[tuple[str, str, int], str]
) -> bool:
    """Whether a finished cell may stand in a table with cells that would be computed now."""
    made_of = cell["made_of"]
    shared = models.get((cell["data"], cell["scoring_only_of"], cell["seed"]), "")
    return (
        variant is not None
        and (made_of["settings"], made_of["version"]) == (variant.settings_sha256, anomaly_ae.__version__)
        and made_of["fit shared"] == shared
        and (data is None or (made_of["data"], cell["without_defects"]) == (data.sha256, [*data.without_defects]))
    )


if __name__ == "__main__":
    sys.exit(main())
