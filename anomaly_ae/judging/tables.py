"""One table as text, Markdown, LaTeX, and the numbers behind it as CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anomaly_ae.errors import UsageError
from anomaly_ae.files import holds, refuse_existing_file, write_text

SUFFIXES = (".csv", ".md", ".tex")

_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"±": r"$\pm$", "<": "$<$", ">": "$>$"},
}


@dataclass(frozen=True, slots=True)
class Table:
    """A caption, the names of the columns, and the cells as people read them."""

    caption: str
    columns: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Sheet:
    """What a judgement writes: tables with notes for people, and records with all digits for programs.

    Attributes
    ----------
    name : str
        Of the files, without suffix.
    records : tuple of mapping
        The lines of the CSV.
    columns : tuple of str
        The keys of the records; those of the first where not given.
    """

    name: str
    tables: tuple[Table, ...]
    notes: tuple[str, ...]
    records: tuple[Mapping[str, Any], ...]
    columns: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return the tables and notes as they are printed."""
        blocks = [text_lines(table) for table in self.tables]
        return [*(line for block in blocks for line in (*block, "")), *(f"- {note}" for note in self.notes)]

    def write(self, out: Path, overwrite: bool) -> list[Path]:
        """Write one file (.csv, .md or .tex), or all three into a folder; return what was written.

        Raises
        ------
        UsageError
            A name with another suffix.
        OutputError
            A file exists already and may not be replaced.
        """
        paths = targets(out, self.name)
        for path in paths:
            refuse_existing_file(path, overwrite)
        for path in paths:
            write_text(path, _WRITERS[path.suffix](self))
        return paths


def targets(out: Path, name: str) -> list[Path]:
    """Return the files that ``--out`` stands for; refuse a suffix that is none of ours."""
    if out.suffix in SUFFIXES and not holds(out.is_dir):
        return [out]
    if out.suffix and not holds(out.is_dir):
        why = f"tables are written as {', '.join(SUFFIXES)}"
        raise UsageError(f"--out {out}", why, "or give the name of a folder for all of them")
    return [out / f"{name}{suffix}" for suffix in SUFFIXES]


def text_lines(table: Table) -> list[str]:
    """Return the table with columns of equal width, for a terminal.

    >>> text_lines(Table("", ("name", "n"), (("a", "12"), ("long", "3"))))
    ['name  n', 'a     12', 'long  3']
    """
    rows = [table.columns, *table.cells]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [table.caption, *lines] if table.caption else lines


def markdown(sheet: Sheet) -> str:
    """Return the tables in Markdown, with the notes below."""
    parts = ["\n".join(_markdown_lines(table)) for table in sheet.tables]
    notes = "\n".join(f"- {_markdown_cell(note)}" for note in sheet.notes)
    return "\n\n".join([*parts, *([notes] if notes else [])]) + "\n"


def latex(sheet: Sheet) -> str:
    """Return the first table as a LaTeX ``tabular`` without packages; the notes are comments."""
    table = sheet.tables[0]
    rows = [" & ".join(map(_latex_cell, row)) + r" \\" for row in (table.columns, *table.cells)]
    body = [rf"\begin{{tabular}}{{{'l' * len(table.columns)}}}", rows[0], r"\hline", *rows[1:], r"\end{tabular}"]
    notes = [f"% {' '.join(note.split())}" for note in (table.caption, *sheet.notes) if note]
    return "\n".join([*notes, *body]) + "\n"


def csv_text(sheet: Sheet) -> str:
    """Return the records as CSV: a header line, floats with all their digits, missing values empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, sheet.columns or tuple(sheet.records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(sheet.records)
    return text.getvalue()


_WRITERS: dict[str, Callable[[Sheet], str]] = {".csv": csv_text, ".md": markdown, ".tex": latex}


def _markdown_lines(table: Table) -> list[str]:
    rows = ["| " + " | ".join(map(_markdown_cell, row)) + " |" for row in (table.columns, *table.cells)]
    caption = [f"**{_markdown_cell(table.caption)}**", ""] if table.caption else []
    return [*caption, rows[0], "|" + " --- |" * len(table.columns), *rows[1:]]


def _markdown_cell(text: str) -> str:
    escaped = re.sub(r"([\\`*_<>|])", r"\\\1", " ".join(text.split()))
    return escaped.replace("](", "]\\(")  # no links


def _latex_cell(text: str) -> str:
    escaped = "".join(_LATEX.get(character, character) for character in " ".join(text.split()))
    minus = re.sub(r"(?<!\w)-(?=\d)", "$-$", escaped)
    return minus.replace("--", "-{}-")  # two hyphens would become a dash


def number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """Return a number for a cell; a dash where there is none.

    >>> number(0.12345), number(0.5, sign=True), number(None)
    ('0.123', '+0.500', '-')
    """
    if value is None:
        return "-"
    rounded = round(value, digits) + 0.0  # no minus before 0
    return f"{rounded:{'+' if sign else ''}.{digits}f}"


def limits(low: float | None, high: float | None, sign: bool = False) -> str:
    """Return an interval for a cell; a dash where there is none."""
    if low is None or high is None:
        return "-"
    return f"[{number(low, sign=sign)}, {number(high, sign=sign)}]"


def p_text(p: float | None) -> str:
    """Return a p-value for a cell.

    >>> p_text(0.04321), p_text(0.0001), p_text(None)
    ('0.043', '<0.001', '-')
    """
    return "<0.001" if p is not None and p < 0.001 else number(p)
