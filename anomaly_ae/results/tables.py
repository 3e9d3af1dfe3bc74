"""The files of a RUN: read and written whole, damaged ones refused. Formats: docs/reference/results.md."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from anomaly_ae.errors import DataError
from anomaly_ae.files import write_lines, write_text, write_together
from anomaly_ae.records import Decision
from anomaly_ae.words import n_of

FORMAT = 1
SCORE_COLUMNS = [
    *("format", "id", "path", "frame", "label", "defect", "unit", "group", "time_utc", "decision", "score"),
    *("threshold", "display", "p_value", "pixel_threshold", "n_regions", "largest_region_px", "milliseconds"),
    *("image_sha256", "weights_sha256", "thresholds_sha256", "version"),
]
COUNTED = "counts_for_unit"  # only in runs of models that have learned from slices
UNIT_COLUMNS = [
    *("format", "unit", "group", "label", "decision", "score", "threshold", "display", "p_value", "n_images"),
]
FAILURE_COLUMNS = ["format", "id", "path", "frame", "reason", "unit", "group", "time_utc", "decision"]
_N_LINES = 500  # of a table, turned into text at once
_OTHERWISE_IN_CSV = ("\\", "null", "true", "false")  # of JSON: what is escaped, missing, or a truth value
NOT_INSPECTED = str(int(Decision.NOT_INSPECTED))
BASELINES = ("mean grey", "PCA residual")

Row = Mapping[str, Any]
"""One line of ``scores.jsonl``, or of ``units.csv``."""


class Table(NamedTuple):
    """A table as its file has it: a header, and lines of as many values, text where they were read."""

    columns: Sequence[str]
    lines: Sequence[Sequence[Any]]

    def values(self, *names: str) -> Iterator[tuple[Any, ...]]:
        """Return the values of two or more columns, line by line; `KeyError` where there is no such column."""
        places = {name: place for place, name in enumerate(self.columns)}
        return map(itemgetter(*(places[name] for name in names)), self.lines)


def write_tables(folder: Path, rows: Sequence[Row], units: Sequence[Row], failures: Iterable[Row]) -> None:
    """Write ``scores.csv``, ``scores.jsonl``, ``units.csv`` and ``failures.csv``."""
    write_together(folder, table_files(score_table(rows), json_lines(rows), unit_table(units), failures))


def score_table(rows: Sequence[Row]) -> Table:
    """Return what ``scores.csv`` holds."""
    counted = [COUNTED] if any(COUNTED in row for row in rows) else []
    own = sorted({name for row in rows for name in row["extra"]})
    known = [*SCORE_COLUMNS, *counted]
    columns = [*known, *(f"manifest.{name}" if name in known else name for name in own)]
    values = itemgetter(*SCORE_COLUMNS)
    if columns == SCORE_COLUMNS:
        return Table(columns, list(map(values, rows)))
    further = (
        [*(row.get(name, "") for name in counted), *(row["extra"].get(name, "") for name in own)] for row in rows
    )
    return Table(columns, [(*line, *more) for line, more in zip(map(values, rows), further, strict=True)])


def unit_table(units: Sequence[Row]) -> Table:
    """Return what ``units.csv`` holds."""
    return Table(UNIT_COLUMNS, list(map(itemgetter(*UNIT_COLUMNS), units)))


def table_files(
    scores: Table, json_lines: Iterable[str], units: Table, failures: Iterable[Row]
) -> dict[str, Iterable[str]]:
    """Return the lines of the tables of a run by the names of their files."""
    return {
        "scores.csv": _csv_lines(*scores),
        "scores.jsonl": json_lines,
        "units.csv": _csv_lines(*units),
        "failures.csv": _csv_lines(FAILURE_COLUMNS, _in_columns(FAILURE_COLUMNS, failures)),
    }


def json_lines(rows: Iterable[Row]) -> Iterator[str]:
    """Yield the lines of ``scores.jsonl``; a statistic that is no number is null there."""
    options = orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY
    return (orjson.dumps(row, option=options).decode() for row in rows)


def write_json(path: Path, values: Row) -> None:
    """Write a JSON file atomically; NaN is refused."""
    write_text(path, json_text(values))


def json_text(values: Row) -> str:
    """Return the text of a JSON file; NaN is refused."""
    return json.dumps(values, indent=1, allow_nan=False) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of a run."""
    with reading(path):
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        file_format = values.get("format")
    if file_format != FORMAT:
        raise DataError(f"{path} has format {file_format}", f"this version reads format {FORMAT}", "score again")
    return values


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read ``scores.jsonl``."""
    with reading(path), path.open("rb") as file:
        rows: list[dict[str, Any]] = list(map(orjson.loads, file))
        names = (*SCORE_COLUMNS, "extra")
        values_of = itemgetter(*names)
        for row in rows:
            values = values_of(row)
            if None in values:
                raise KeyError(names[values.index(None)])
            if not isinstance(row["score"], int | float):  # JSON has neither NaN nor infinity
                raise TypeError(f"a score of {row['score']!r}")
    return rows


def read_scores(run: Path) -> list[dict[str, Any]]:
    """Read ``scores.jsonl`` of a run, if ``scores.csv`` names the same images."""
    rows = read_rows(run / "scores.jsonl")
    lines = _read_lines(run / "scores.csv", SCORE_COLUMNS)
    place = next(lines).index("id")
    refuse_other_images(run, rows, [line[place] for line in lines])  # nothing is kept of what only has to name them
    return rows


def refuse_other_images(run: Path, rows: Sequence[Row], ids: Sequence[str]) -> None:
    """Raise `DataError` where ``scores.csv`` does not name the same images in the same order."""
    if [row["id"] for row in rows] != ids:
        why = "a line was lost or added"
        raise DataError(f"scores.jsonl and scores.csv of {run} name other images", why, "score or evaluate again")


def read_csv(path: Path, columns: Sequence[str] = ()) -> list[dict[str, str]]:
    """Read a table with these columns, and perhaps more; every value is text."""
    header, lines = csv_table(path, columns)
    return [dict(zip(header, line, strict=True)) for line in lines]


def csv_table(path: Path, columns: Sequence[str] = ()) -> Table:
    """Read a table with these columns, and perhaps more, as its file has it; every value is text."""
    lines = _read_lines(path, columns)
    return Table(next(lines), list(lines))


def _read_lines(path: Path, columns: Sequence[str]) -> Iterator[list[str]]:
    """Yield the header, and then lines of as many fields."""
    with reading(path):
        lines = _fields(path.read_bytes().decode("utf-8-sig"))  # a spreadsheet puts a mark before it
        header = next(lines, [])
        for name in columns:
            if name not in header:
                raise KeyError(name)
        yield header
        for number, line in enumerate(lines, start=2):
            if len(line) != len(header):
                raise ValueError(f"line {number} has {n_of(len(line), 'field')}, the header {len(header)}")
            yield line


def _fields(text: str) -> Iterator[list[str]]:
    """Yield the fields of each line of a CSV that is not empty; where nothing is quoted, in a third of the time."""
    if '"' in text or "\r" in text:
        return (line for line in csv.reader(io.StringIO(text, newline=""), strict=True) if line)
    return (line.split(",") for line in text.split("\n") if line)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file causes into one clear error."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        reason = (
            f"{error} is missing" if isinstance(error, KeyError) else str(getattr(error, "strerror", None) or error)
        )
        raise DataError(f"cannot read {path}", reason, "give a folder that score or evaluate wrote") from error


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """Write a CSV atomically."""
    write_lines(path, _csv_lines(columns, _in_columns(columns, rows)))


def _in_columns(columns: Sequence[str], rows: Iterable[Row]) -> Iterator[list[Any]]:
    return ([row.get(name, "") for name in columns] for row in rows)


class _Line:
    """What a CSV writer writes to, to give each line back."""

    @staticmethod
    def write(line: str) -> str:
        return line.removesuffix("\r\n") + "\n"  # a writer that ends lines so quotes both signs wherever they stand


def _csv_lines(columns: Sequence[str], lines: Iterable[Sequence[Any]]) -> Iterator[str]:
    """Yield the lines of a CSV, in blocks: first a header, floats with all their digits, missing values empty.

    A block in which nothing has to be quoted is its JSON without brackets and quotes, in a tenth of the time.
    """
    carefully, lines = csv.writer(_Line).writerow, iter(lines)
    yield carefully(columns)
    while block := list(islice(lines, _N_LINES)):
        text = orjson.dumps(block, default=str).decode()[2:-2]
        n_commas = len(block) * len(columns) - 1
        if text.count(",") > n_commas or any(sign in text for sign in _OTHERWISE_IN_CSV):
            yield from map(carefully, block)
        else:
            yield text.replace("],[", "\n").replace('"', "") + "\n"
