"""A small self-contained HTML page for a study: a sentence, notes, plots and tables; no script, no network."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from anomaly_ae import report
from anomaly_ae.files import write_text
from anomaly_ae.report import plot
from anomaly_ae.report.sheets import address
from anomaly_ae.version import __version__

Floats = npt.NDArray[np.float64]

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
    """Write a page: title, the sentence that it is about, notes, then plots and tables.

    The sentence comes as a phrase, and gets its capital and full stop here.
    """
    headline = f"{sentence[:1].upper()}{sentence[1:]}."
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
    top = Markup('<body>\n<main>\n<header><p class="kicker">{}</p>\n<h1>{}</h1></header>\n').format(title, headline)
    paragraphs = Markup("").join(Markup('<p class="note">{}</p>\n').format(note) for note in notes)
    content = Markup("\n").join(body)
    foot = Markup("<footer><p>anomaly_ae {}. Research use; not a medical device.</p></footer>").format(__version__)
    section = f"<section>\n{paragraphs}{content}\n</section>"
    write_text(path, f"{head}{style_element}{top}{section}\n</main>\n{foot}\n</body>\n</html>\n")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Markup:
    """Return a table; the first column names the row."""
    names = Markup("").join(Markup('<th scope="col">{}</th>').format(name) for name in header)
    lines = Markup("\n").join(_table_row(row) for row in rows)
    form = Markup('<div class="scroll"><table><thead><tr>{}</tr></thead>\n<tbody>\n{}\n</tbody></table></div>')
    return form.format(names, lines)


def _table_row(row: Sequence[str]) -> Markup:
    cells = Markup("").join(Markup("<td>{}</td>").format(cell) for cell in row[1:])
    return Markup('<tr><th scope="row">{}</th>{}</tr>').format(row[0], cells)


def figure(picture: Markup, caption: str) -> Markup:
    """Return a plot or picture with the words below it."""
    return Markup("<figure>{}<figcaption>{}</figcaption></figure>").format(picture, caption)


def picture_grid(title: str, grey: npt.NDArray[np.floating]) -> Markup:
    """Return pictures of values in [0, 1], (rows, columns, height, width), as one, with white lines between them."""
    from PIL import Image as Picture

    framed = np.pad(grey, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=1).swapaxes(1, 2)
    pixels = framed.reshape(framed.shape[0] * framed.shape[1], -1)
    buffer = io.BytesIO()
    Picture.fromarray(np.rint(255 * pixels).astype(np.uint8)).save(buffer, format="PNG")
    form = Markup('<img alt="{}" width="{}" src="{}">')
    return form.format(title, min(860, 2 * pixels.shape[1]), address("png", buffer.getvalue()))


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
    x_low, x_high = _widened(np.concatenate([x for _, x, _ in curves]))
    y_low, y_high = _widened(np.concatenate([*(y for _, _, y in curves), [] if limit is None else [limit[1]]]), 0.08)
    frame = plot.Axes(x_low, x_high, y_high, left=60, top=34, width=674, height=260, y_low=y_low)
    parts = [plot.grid(frame, plot.ticks(x_low, x_high), plot.ticks(y_low, y_high)), plot.axis_titles(frame, *axes)]
    x_of_name = frame.left
    for i, (name, x, y) in enumerate(curves):
        points = " ".join(f"{frame.x(a):.1f},{frame.y(b):.1f}" for a, b in zip(x, y, strict=True))
        colour = COLOURS[i % len(COLOURS)]
        parts.append(f'<polyline class="series" stroke="{colour}" points="{points}"/>')
        parts.append(_legend(x_of_name, frame.top - 16, colour, name))
        x_of_name += 56 + 6.5 * len(name)
    if limit is not None:
        right, height = frame.left + frame.width, frame.y(limit[1])
        ends = f'x1="{frame.left}" x2="{right}" y1="{height:.1f}" y2="{height:.1f}"'
        parts.append(f'<line class="limit-line" {ends}/>')
        parts.append(plot.text(right - 4, height - 6, limit[0], "label limit", "end"))
    return plot.svg(title, 746, 344, parts)


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
    width, height = min(100.0, 660.0 / len(columns)), 52.0
    frame = plot.Axes(0, len(columns), len(rows), left=76, top=6, width=width * len(columns), height=height * len(rows))
    bottom = frame.top + frame.height
    parts = [plot.axis_titles(frame, *axes)]
    for i, (name, line) in enumerate(zip(rows, cells, strict=True)):
        parts.append(plot.text(frame.left - 8, frame.y(i + 0.5) + 4, name, "axis", "end"))
        parts += [_cell(frame.x(k), frame.y(i + 1), width, height, cell) for k, cell in enumerate(line)]
    parts += [plot.text(frame.x(k + 0.5), bottom + 18, name, "axis", "middle") for k, name in enumerate(columns)]
    return plot.svg(title, int(frame.left + frame.width + 10), int(bottom + 50), parts)


def _cell(left: float, top: float, width: float, height: float, cell: tuple[float, str, str]) -> str:
    share, words, note = cell
    red, green, blue = np.rint(_LOW_RGB + share * (_HIGH_RGB - _LOW_RGB)).astype(int).tolist()
    place = f'x="{left + 1:.1f}" y="{top + 1:.1f}" width="{width - 2:.1f}" height="{height - 2:.1f}"'
    box = f'<rect {place} fill="rgb({red},{green},{blue})"/>'
    ink, middle = "on-dark" if share > 0.55 else "on-light", left + width / 2
    large = plot.text(middle, top + height / 2 - 2, words, f"cell-text {ink}", "middle")
    return box + large + plot.text(middle, top + height / 2 + 15, note, f"cell-note {ink}", "middle")


def _widened(values: Floats, margin: float = 0.0) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    extra = margin * (high - low) if high > low else 0.5
    return low - extra, high + extra


def _legend(x: float, y: float, colour: str, name: str) -> str:
    line = f'<line class="series" stroke="{colour}" x1="{x}" x2="{x + 22}" y1="{y - 4}" y2="{y - 4}"/>'
    return line + plot.text(x + 28, y, name, "legend", "start")
