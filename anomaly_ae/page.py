"""A small self-contained HTML page for a study: a sentence, notes, plots and tables; no script, no network."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from anomaly_ae import report
from anomaly_ae.errors import OutputError
from anomaly_ae.files import write_text
from anomaly_ae.version import __version__

Floats = npt.NDArray[np.float64]
Scale = Callable[[Floats], Floats]

_OWN_CSS = """
.plot { max-width: 860px; }
.plot .limit-line { stroke: var(--limit); stroke-width: 1.5; stroke-dasharray: 6 3; }
.plot .series { fill: none; stroke-width: 2; stroke-linejoin: round; }
.plot .cell-text { font-size: 14px; font-weight: 600; }
.plot .cell-note { font-size: 10.5px; }
.plot .on-light { fill: #1c2126; }
.plot .on-dark { fill: #ffffff; }
section > figure + figure { margin-top: 30px; }
figure img { max-width: 100%; image-rendering: pixelated; }
"""
COLOURS = ("#b8470c", "#2f6fb2", "#2a8a57", "#8e4fb0", "#a07a00", "#4a5560")
_LOW_RGB, _HIGH_RGB = np.array([246, 240, 226]), np.array([38, 96, 152])


def write_page(path: Path, title: str, sentence: str, notes: Sequence[str], body: Iterable[Markup]) -> None:
    """Write a page: title, the sentence that it is about, notes, then plots and tables."""
    css = (Path(report.__file__).parent / "report.css").read_text(encoding="utf-8") + _OWN_CSS
    style = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{style}'; base-uri 'none'; form-action 'none'"
    head = Markup(
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="{}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="generator" content="anomaly_ae {}">\n<title>{}</title>\n<link rel="icon" href="data:,">\n'
    ).format(policy, __version__, title)
    style_element = Markup("<style>{}</style>\n</head>\n").format(Markup(css))  # noqa: S704  # our own
    top = Markup('<body>\n<main>\n<header><p class="kicker">{}</p>\n<h1>{}</h1></header>\n').format(title, sentence)
    paragraphs = Markup("").join(Markup('<p class="note">{}</p>\n').format(note) for note in notes)
    content = Markup("\n").join(body)
    foot = Markup("<footer><p>anomaly_ae {}. Research use; not a medical device.</p></footer>").format(__version__)
    section = f"<section>\n{paragraphs}{content}\n</section>"
    write_text(path, f"{head}{style_element}{top}{section}\n</main>\n{foot}\n</body>\n</html>\n")


def refuse_folder(out: Path, overwrite: bool) -> None:
    """Refuse to write into a folder that holds something, unless its files of the same names may be replaced."""
    if out.is_file():
        raise OutputError(f"{out} is a file", "a folder is written here", "choose another --out")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise OutputError(
            f"{out} exists already", "results are not replaced unasked", "choose another --out, or --overwrite"
        )


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Markup:
    """Return a table; the first column names the row."""
    names = Markup("").join(Markup('<th scope="col">{}</th>').format(name) for name in header)
    lines = Markup("\n").join(_table_row(row) for row in rows)
    form = Markup('<div class="scroll"><table><thead><tr>{}</tr></thead>\n<tbody>\n{}\n</tbody></table></div>')
    return form.format(names, lines)


def _table_row(row: Sequence[str]) -> Markup:
    cells = Markup("").join(Markup("<td>{}</td>").format(cell) for cell in row[1:])
    return Markup('<tr><th scope="row">{}</th>{}</tr>').format(row[0], cells)


def figure(plot: Markup, caption: str) -> Markup:
    """Return a plot with the words below it."""
    return Markup("<figure>{}<figcaption>{}</figcaption></figure>").format(plot, caption)


def line_plot(
    title: str, axes: tuple[str, str], curves: Sequence[tuple[str, Floats, Floats]], limit: tuple[str, float] | None
) -> Markup:
    """Draw curves in one frame.

    Parameters
    ----------
    title : str
        What the picture is called where it cannot be seen.
    axes : tuple of str
        Horizontal, vertical.
    curves : sequence of (name, x, y)
        Six at most, or colours repeat.
    limit : (name, height) or None
        A dashed line across.
    """
    left, top, width, height = 60.0, 34.0, 674.0, 260.0
    x_of_name = left
    x_range = _widened(np.concatenate([x for _, x, _ in curves]))
    y_range = _widened(np.concatenate([*(y for _, _, y in curves), [] if limit is None else [limit[1]]]), margin=0.08)

    def across(x: Floats) -> Floats:
        return np.asarray(left + (x - x_range[0]) / (x_range[1] - x_range[0]) * width)

    def down(y: Floats) -> Floats:
        return np.asarray(top + (y_range[1] - y) / (y_range[1] - y_range[0]) * height)

    parts = [_grid(across, down, x_range, y_range)]
    for i, (name, x, y) in enumerate(curves):
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across(x), down(y), strict=True))
        colour = COLOURS[i % len(COLOURS)]
        parts.append(Markup('<polyline class="series" stroke="{}" points="{}"/>').format(colour, points))
        parts.append(_legend(x_of_name, top - 16, colour, name))
        x_of_name += 56 + 6.5 * len(name)
    if limit is not None:
        y_limit = float(down(np.array(limit[1])))
        line = Markup('<line class="limit-line" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>')
        parts.append(line.format(left, left + width, y_limit, y_limit))
        parts.append(_text(left + width - 4, y_limit - 6, limit[0], "label limit", "end"))
    parts += _axis_titles(axes, left + width / 2, top + height + 38, top + height / 2)
    return _svg(title, 746, 344, parts)


def _axis_titles(axes: tuple[str, str], centre: float, bottom: float, middle: float) -> list[Markup]:
    turned = Markup('<g transform="translate(14 {:.1f}) rotate(-90)">{}</g>')
    return [
        _text(centre, bottom, axes[0], "axis", "middle"),
        turned.format(middle, _text(0, 0, axes[1], "axis", "middle")),
    ]


def heat_map(
    title: str,
    axes: tuple[str, str],
    columns: Sequence[str],
    rows: Sequence[str],
    cells: Sequence[Sequence[tuple[float, str, str]]],
) -> Markup:
    """Draw a grid of shares.

    Parameters
    ----------
    columns, rows : sequence of str
        Names; the first row stands at the bottom.
    cells : per row, per column (share in [0, 1], text, note)
    """
    left, top, width, height = 76.0, 6.0, min(100.0, 660.0 / len(columns)), 52.0
    parts = []
    for i, (name, line) in enumerate(zip(rows[::-1], cells[::-1], strict=True)):
        y = top + i * height
        parts.append(_text(left - 8, y + height / 2 + 4, name, "axis", "end"))
        parts += [_cell(left + k * width, y, width, height, cell) for k, cell in enumerate(line)]
    bottom = top + len(rows) * height
    for k, name in enumerate(columns):
        parts.append(_text(left + (k + 0.5) * width, bottom + 18, name, "axis", "middle"))
    parts += _axis_titles(axes, left + len(columns) * width / 2, bottom + 40, (top + bottom) / 2)
    return _svg(title, int(left + len(columns) * width + 10), int(bottom + 50), parts)


def _cell(x: float, y: float, width: float, height: float, cell: tuple[float, str, str]) -> Markup:
    share, text, note = cell
    red, green, blue = np.rint(_LOW_RGB + share * (_HIGH_RGB - _LOW_RGB)).astype(int).tolist()
    form = Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill="rgb({},{},{})"/>')
    box = form.format(x + 1, y + 1, width - 2, height - 2, red, green, blue)
    ink, middle = "on-dark" if share > 0.55 else "on-light", x + width / 2
    words = _text(middle, y + height / 2 - 2, text, f"cell-text {ink}", "middle")
    return box + words + _text(middle, y + height / 2 + 15, note, f"cell-note {ink}", "middle")


def _widened(values: Floats, margin: float = 0.0) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    extra = margin * (high - low) if high > low else 0.5
    return low - extra, high + extra


def _grid(across: Scale, down: Scale, x_range: tuple[float, float], y_range: tuple[float, float]) -> Markup:
    """Draw lines and numbers at round values, from edge to edge."""
    (left, right), (top, bottom) = across(np.array(x_range)), down(np.array(y_range))[::-1]
    line = Markup('<line class="grid" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>')
    parts = []
    for tick in _round_numbers(*x_range):
        x = float(across(np.array(tick)))
        parts += [line.format(x, x, top, bottom), _text(x, bottom + 17, f"{tick:g}", "tick", "middle")]
    for tick in _round_numbers(*y_range):
        y = float(down(np.array(tick)))
        parts += [line.format(left, right, y, y), _text(left - 7, y + 4, f"{tick:g}", "tick", "end")]
    return Markup("").join(parts)


def _round_numbers(low: float, high: float, n: int = 6) -> list[float]:
    """Return about ``n`` round numbers from low to high.

    >>> _round_numbers(-0.4, 1)
    [-0.4, -0.2, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    raw = (high - low) / n
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((power * factor for factor in (1, 2, 5, 10)), key=lambda size: abs(size - raw))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) + 0.0 for i in range(first, last + 1)]


def _legend(x: float, y: float, colour: str, name: str) -> Markup:
    line = Markup('<line class="series" stroke="{}" x1="{}" x2="{}" y1="{}" y2="{}"/>')
    return line.format(colour, x, x + 22, y - 4, y - 4) + _text(x + 28, y, name, "legend", "start")


def _text(x: float, y: float, text: str, css: str, anchor: str) -> Markup:
    form = Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')
    return form.format(css, x, y, anchor, text)


def _svg(title: str, width: int, height: int, parts: Iterable[Markup]) -> Markup:
    opening = Markup('<svg class="plot" role="img" aria-label="{}" viewBox="0 0 {} {}">').format(title, width, height)
    return opening + Markup("").join(parts) + Markup("</svg>")
