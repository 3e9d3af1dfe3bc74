"""The start-of-shift test: images or units whose decision is known beforehand, and bands for their scores."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from anomaly_ae.errors import DataError
from anomaly_ae.judging.gates import Outcome
from anomaly_ae.judging.runs import Item, SavedRun, refuse_no_forecast
from anomaly_ae.manifest.table import read_table
from anomaly_ae.records import Decision
from anomaly_ae.results import SCORE_COLUMNS

KEYS = ("id", "path", "unit")
WORDS = {decision: decision.name.lower().replace("_", " ") for decision in Decision}
OWN_COLUMNS = ("decision", "low", "high")
DECISIONS = {
    text: decision
    for decision in (Decision.NORMAL, Decision.REVIEW, Decision.ANOMALOUS)
    for text in (WORDS[decision], str(int(decision)))
}


@dataclass(frozen=True, slots=True)
class Golden:
    """One line of the table: what has to come out.

    Attributes
    ----------
    key : {"id", "path", "unit"}
        What `name` is.
    low, high : float
        Band of the score, both ends included; infinite where not given.
    """

    key: str
    name: str
    decision: Decision
    low: float
    high: float


def read_golden(path: Path) -> list[Golden]:
    """Read a table with `id`, `path` or `unit`, and `decision`, and perhaps `low` and `high`.

    A decision is normal, review or anomalous, or its code 0, 1 or 2. Where several of the first three columns
    are there, the first that is filled counts, in this order. Other columns of words are ignored, those of numbers
    refused: they may be a band. A ``scores.csv`` of a good run can be used as it is.

    Raises
    ------
    DataError
        A missing column, an unknown decision, a band that is none or has another name, the same image twice, no lines.
    """
    rows = read_table(path, KEYS)
    if not rows:
        raise DataError(f"{path} has no lines", "nothing is expected", "name at least one image")
    names = _own_columns(path, rows[0].cells)
    _refuse_numbers(path, [row.cells for row in rows], names)
    found = [
        _golden({names.get(name, name): text for name, text in row.cells.items()}, f"{path}, row {row.number}")
        for row in rows
    ]
    named = Counter((one.key, one.name) for one in found)
    twice = next((name for name, n in named.items() if n > 1), None)
    if twice:
        raise DataError(f"{path} names {twice[1]} twice", "each image has one expectation", "remove one of the lines")
    return found


def _own_columns(path: Path, names: Collection[str]) -> dict[str, str]:
    """Return which columns are ours, in any letters; refuse what is nearly one: a band that nobody reads passes all.

    In the table of a run ours is the decision alone: its further columns are those of a manifest.
    """
    if {*SCORE_COLUMNS} <= {*names}:
        return {"decision": "decision"}
    found: dict[str, str] = {}
    for name in names:
        own, fix = name.lower(), "name the columns decision, low and high, each once"
        if own in found.values():
            raise DataError(f"{path}: column '{name}'", "another column has this name, in other letters", fix)
        if own in OWN_COLUMNS:
            found[name] = own
        elif near := next((ours for ours in OWN_COLUMNS if _is_nearly(own, ours)), ""):
            raise DataError(f"{path}: column '{name}'", f"is it meant as '{near}'?", fix)
    if "decision" not in found.values():
        raise DataError(f"{path} has no column 'decision'", "it says what has to come out", "add the column")
    return found


def _refuse_numbers(path: Path, rows: Sequence[Mapping[str, str]], names: Collection[str]) -> None:
    """Refuse columns of numbers that nobody reads: under names such as min and max they are a band."""
    if {*SCORE_COLUMNS} <= {*rows[0]}:
        return
    others = [name for name in rows[0] if name not in names and name.lower() not in {*KEYS, *SCORE_COLUMNS}]
    found = [name for name in others if _are_numbers([row.get(name, "") for row in rows])]
    if found:
        raise DataError(
            f"{path}: nobody reads the numbers in {', '.join(map(repr, found))}",
            "a band of another name would not be checked, and everything would be as expected",
            "name the ends of a band low and high; remove other columns of numbers, or put a letter before them",
        )


def _are_numbers(cells: Sequence[str]) -> bool:
    """Whether all cells that are filled are numbers, also with a decimal comma.

    >>> _are_numbers(["0.5", "", "1,5"]), _are_numbers(["7", "lot 8"]), _are_numbers([""])
    (True, False, False)
    """
    filled = [cell.replace(",", ".", 1) for cell in cells if cell]
    try:
        return bool([float(cell) for cell in filled])
    except ValueError:
        return False


def _is_nearly(name: str, ours: str) -> bool:
    """Whether a name is the beginning of ours, goes on after it, or has its letters in another order.

    >>> [_is_nearly(name, "low") for name in ("lo", "lower", "lwo", "lot", "flow")]
    [True, True, True, False, False]
    """
    return len(name) > 1 and (ours.startswith(name) or name.startswith(ours) or sorted(name) == sorted(ours))


def check_golden(run: SavedRun, path: Path) -> list[Outcome]:
    """Compare a run with a table of expectations; one outcome for every line of it.

    An image that is missing in the run, or was not inspected, does not meet its expectation.

    Raises
    ------
    DataError
        A run that was decided again (what-if); a table that `read_golden` refuses; a path that is several images.
    """
    refuse_no_forecast(run)
    expected = read_golden(path)
    known = {
        "id": {item.name: item for item in run.images},
        "path": _by_path(run, {one.name for one in expected if one.key == "path"}),
        "unit": {item.name: item for item in run.units},
    }
    failed = {key: {failure[key]: failure["reason"] for failure in run.failures} for key in KEYS}
    return [_outcome(one, known[one.key].get(one.name), failed[one.key].get(one.name)) for one in expected]


def _golden(row: Mapping[str, str], where: str) -> Golden:
    key = next((key for key in KEYS if row.get(key)), None)
    if key is None:
        raise DataError(f"{where} names no image", "", "fill one of id, path and unit")
    decision = DECISIONS.get(row.get("decision", "").lower())
    if decision is None:
        what = f"{where}: decision '{row.get('decision', '')}'"
        raise DataError(what, "normal, review or anomalous is expected", "0, 1 and 2, as in scores.csv, mean the same")
    low, high = _number(row, "low", -math.inf, where), _number(row, "high", math.inf, where)
    if low > high:
        raise DataError(f"{where}: low {low:g} is above high {high:g}", "no score lies between", "exchange them")
    return Golden(key, row[key], decision, low, high)


def _number(row: Mapping[str, str], column: str, missing: float, where: str) -> float:
    text = row.get(column, "")
    try:
        value = float(text) if text else missing
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise DataError(f"{where}: {column} is '{text}'", "a number is expected", "leave it empty for no limit")
    return value


def _by_path(run: SavedRun, asked: set[str]) -> dict[str, Item]:
    """Return the images by path; one that is asked for has to be a single image, not several pages or frames."""
    found: dict[str, Item] = {}
    for row, item in zip(run.rows, run.images, strict=True):
        if row["path"] in found and row["path"] in asked:
            raise DataError(
                f"{row['path']} is several images", "its pages or frames have names of their own", "give ids"
            )
        found[row["path"]] = item
    return found


def _outcome(one: Golden, item: Item | None, reason: str | None) -> Outcome:
    asked = f"{one.name} is {WORDS[one.decision]}"
    if reason is not None or (item is not None and item.score is None):
        return Outcome(asked, False, f"not inspected{': ' + reason if reason else ''}")
    if item is None or item.score is None or item.decision is None:
        return Outcome(asked, False, f"not in the run under this {one.key}")
    within = one.low <= item.score <= one.high
    ends = [f"{name} {end:g}" for name, end in (("from", one.low), ("to", one.high)) if math.isfinite(end)]
    band = f", band {' '.join(ends)}" if ends else ""
    text = f"{WORDS[Decision(item.decision)]}, score {item.score:.4g}{band}"
    return Outcome(asked, within and item.decision == one.decision, text)
