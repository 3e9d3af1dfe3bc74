"""What plots are made of, as inline SVG: a frame with round numbers, titles, words."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

Place = TypeVar("Place", float, npt.NDArray[np.float64])


@dataclass(frozen=True, slots=True)
class Axes:
    """A plot area in SVG units, and the data range it shows."""

    x_low: float
    x_high: float
    y_high: float
    left: float
    top: float
    width: float
    height: float
    y_low: float = 0.0

    def x(self, value: Place) -> Place:
        """Return the horizontal place of a value, or of several, kept inside."""
        share: Place = np.clip((value - self.x_low) / (self.x_high - self.x_low), 0.0, 1.0)
        return self.left + share * self.width

    def y(self, value: Place) -> Place:
        """Return the vertical place of a value, or of several."""
        return self.top + (1 - (value - self.y_low) / (self.y_high - self.y_low)) * self.height


def ticks(low: float, high: float, n: int = 6) -> list[float]:
    """Return about ``n`` round numbers in the range.

    >>> ticks(0, 1)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    raw = (high - low) / n
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw * 0.999)
    return [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


def grid(axes: Axes, x_ticks: list[float], y_ticks: list[float], y_percent: bool = False) -> str:
    """Draw lines with their numbers, from edge to edge."""
    parts = []
    bottom, right = axes.top + axes.height, axes.left + axes.width
    for tick in x_ticks:
        x = axes.x(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{axes.top}" y2="{bottom}"/>')
        parts.append(text(x, bottom + 16, f"{tick:g}", "tick", "middle"))
    for tick in y_ticks:
        y = axes.y(tick)
        parts.append(f'<line class="grid" x1="{axes.left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        label = f"{100 * tick:g} %" if y_percent else f"{tick:g}"
        parts.append(text(axes.left - 6, y + 4, label, "tick", "end"))
    return "".join(parts)


def axis_titles(axes: Axes, horizontal: str, vertical: str) -> str:
    """Say below and beside a plot what its axes are."""
    bottom = axes.top + axes.height
    below = text(axes.left + axes.width / 2, bottom + 36, horizontal, "axis", "middle")
    beside = text(0, 0, vertical, "axis", "middle")
    return f'{below}<g transform="translate(13 {axes.top + axes.height / 2}) rotate(-90)">{beside}</g>'


def text(x: float, y: float, words: str, css: str, anchor: str) -> str:
    """Write escaped words at a place."""
    return str(
        Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(
            css, f"{x:.1f}", f"{y:.1f}", anchor, words
        )
    )


def svg(title: str, width: int, height: int, parts: Iterable[str], attributes: str = "") -> Markup:
    """Return a plot of parts, which are made of numbers and of words that `text` has escaped."""
    opening = Markup('<svg class="plot" role="img" aria-label="{}" viewBox="0 0 {} {}" ').format(title, width, height)
    return opening + Markup(f"{attributes}>{''.join(parts)}</svg>")  # noqa: S704
