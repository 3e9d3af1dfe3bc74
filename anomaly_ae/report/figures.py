"""Curves, histogram and outlines as inline SVG, without a style of their own: colours come from ``report.css``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from anomaly_ae.metrics import precision_recall_curve, roc_curve
from anomaly_ae.report import plot

Floats = npt.NDArray[np.float64]
Points = tuple[Floats, Floats]

_N_BINS = 44
_CHARACTER_PX = 9.5  # of the legend, where the page is narrow and letters are large


def roc_points(normal: Floats, anomalous: Floats) -> Points:
    """Return false-alarm rate and sensitivity, from (0, 0) to (1, 1).

    >>> x, y = roc_points(np.array([0.0, 1.0]), np.array([1.0, 2.0]))
    >>> x.tolist(), y.tolist()
    ([0.0, 0.0, 0.5, 1.0], [0.0, 0.5, 1.0, 1.0])
    """
    false_alarm_rate, sensitivity, _ = roc_curve(*_labels_and_scores(normal, anomalous))
    return false_alarm_rate, sensitivity


def pr_points(normal: Floats, anomalous: Floats) -> Points:
    """Return recall and precision at every distinct score, as the steps of which average precision is the area.

    >>> x, y = pr_points(np.array([0.0, 1.0]), np.array([1.0, 2.0]))
    >>> x.tolist(), y.tolist()
    ([0.0, 0.5, 0.5, 1.0, 1.0, 1.0], [1.0, 1.0, 0.6666666666666666, 0.6666666666666666, 0.5, 0.5])
    """
    precision, recall, _ = precision_recall_curve(*_labels_and_scores(normal, anomalous))
    return np.repeat(recall[::-1], 2)[1:-1], np.repeat(precision[-2::-1], 2)


def _labels_and_scores(normal: Floats, anomalous: Floats) -> tuple[npt.NDArray[np.bool_], Floats]:
    return np.repeat([False, True], [normal.size, anomalous.size]), np.r_[normal, anomalous]


def curve_svg(
    title: str,
    axis_titles: tuple[str, str],
    curves: Sequence[tuple[str, Points]],
    chance: tuple[float, float],
    operating_point: tuple[float, float] | None,
) -> Markup:
    """Draw ROC or precision-recall curves in the unit square.

    Parameters
    ----------
    title : str
        What the picture is called where it cannot be seen.
    axis_titles : tuple of str
        Horizontal, vertical.
    curves : sequence of (name, (x, y))
        The first is drawn solid, others dashed.
    chance : tuple of float
        Left and right end of the line that guessing would give.
    operating_point : tuple of float or None
        Where the threshold in force lies.
    """
    axes = plot.Axes(0, 1, 1, left=56, top=10, width=300, height=300)
    parts = [plot.grid(axes, plot.ticks(0, 1), plot.ticks(0, 1)), plot.axis_titles(axes, *axis_titles)]
    parts.append(_line(axes, np.array([0.0, 1.0]), np.array(chance), "chance"))
    for i, (name, (x, y)) in enumerate(curves):
        parts.append(_line(axes, x, y, f"curve curve-{i}"))
        parts.append(
            _legend(axes.left + axes.width - 12, axes.top + axes.height - 14 - 18 * i, f"curve curve-{i}", name)
        )
    if operating_point is not None:
        x_point, y_point = axes.x(operating_point[0]), axes.y(operating_point[1])
        parts.append(f'<circle class="point" cx="{x_point:.1f}" cy="{y_point:.1f}" r="5"/>')
    return plot.svg(title, 366, 352, parts)


def histogram_svg(
    title: str,
    classes: Sequence[tuple[str, str, Floats]],
    calibration: Floats,
    threshold: float | None,
    median: float | None,
    review: float | None = None,
) -> Markup:
    """Draw the scores of each class, with the threshold and the outline of the calibration normals.

    Bars are shares of their own class, so that classes of different size can be compared. Scores far above the
    threshold are counted in the last bar.

    Parameters
    ----------
    title : str
        What the picture is called where it cannot be seen.
    classes : sequence of (name, CSS class, scores)
    calibration : float array
        Scores of the calibration normals; may be empty.
    threshold, median, review : float or None
        Drawn as lines; the threshold, the median of the calibration normals, and where the review band begins may be
        missing.
    """
    scores = np.concatenate([*(scores for _, _, scores in classes), calibration])
    limit = threshold if threshold is not None else float(np.median(scores)) if scores.size else 0.0
    lines = [line for line in (limit, review) if line is not None]
    edges, is_cut = _bin_edges(np.append(scores, lines), limit)
    named = [*classes, ("calibration normals", "calibration", calibration)]
    shares = [(name, css, _shares(scores, edges)) for name, css, scores in named if scores.size]
    y_high = max([share.max() for _, _, share in shares], default=1.0) * 1.06
    top = 44 if review is None else 62  # each label has a line of its own: they may be close
    axes = plot.Axes(float(edges[0]), float(edges[-1]), float(y_high), left=56, top=top, width=674, height=226)
    ticks = plot.ticks(axes.x_low, axes.x_high)
    parts = [plot.grid(axes, ticks, plot.ticks(0, axes.y_high, 4), y_percent=True)]
    parts.append(plot.axis_titles(axes, "score", "share of the class"))
    parts += [_steps(axes, edges, share, css) for _, css, share in shares]
    right = axes.left + axes.width
    for name, css, _ in reversed(shares):
        parts.append(_legend(right, axes.top + axes.height + 60, f"bar {css}", name))  # no line or bar crosses it there
        right -= 52 + _CHARACTER_PX * len(name)
    if is_cut:
        parts.append(plot.text(axes.left + axes.width, axes.top + axes.height + 34, "and above →", "tick", "end"))
    if median is not None:
        parts.append(_marker(axes, median, "median", "typical normal (0)", rise=8))
    if review is not None:
        parts.append(_marker(axes, review, "review", "review from here", rise=26))
    if threshold is not None:
        parts.append(_marker(axes, threshold, "limit", "threshold (1)", rise=top - 18))
    parts.append(_marker(axes, limit, "what-if", "", rise=0, identifier="what-if-line"))
    data = f'data-low="{axes.x_low!r}" data-high="{axes.x_high!r}" data-left="{axes.left}" data-width="{axes.width}"'
    return plot.svg(title, 746, top + 292, parts, data)


def sizes_svg(title: str, classes: Sequence[tuple[int, int, int, float, float, float]]) -> Markup:
    """Draw the sensitivity of classes of defects of growing size, with intervals.

    Parameters
    ----------
    title : str
        What the picture is called where it cannot be seen.
    classes : sequence of (from_px, to_px, n, value, low, high)
        Smallest first.
    """
    axes = plot.Axes(0, len(classes), 1, left=56, top=26, width=300, height=284)
    parts = [plot.grid(axes, [], plot.ticks(0, 1)), plot.axis_titles(axes, "size of the defect, px", "sensitivity")]
    for i, (from_px, to_px, n, value, low, high) in enumerate(classes):
        x = axes.x(i + 0.5)
        parts.append(
            f'<line class="whisker" x1="{x:.1f}" x2="{x:.1f}" y1="{axes.y(low):.1f}" y2="{axes.y(high):.1f}"/>'
        )
        parts.append(f'<circle class="point" cx="{x:.1f}" cy="{axes.y(value):.1f}" r="5"/>')
        size = f"{_short(from_px)}–{_short(to_px)}" if to_px > from_px else _short(from_px)
        parts.append(plot.text(x, axes.top + axes.height + 16, size, "tick", "middle"))
        parts.append(plot.text(x, axes.top - 10, f"n = {n}", "tick", "middle"))
    return plot.svg(title, 366, 352, parts)


def _short(n_px: int) -> str:
    """Return a number of pixels in few characters.

    >>> _short(950), _short(12_345), _short(2_500_000)
    ('950', '12k', '2.5M')
    """
    if n_px < 1_000:
        return str(n_px)
    return f"{n_px / 1e3:.2g}k" if n_px < 99_500 else f"{n_px / 1e3:.0f}k" if n_px < 999_500 else f"{n_px / 1e6:.2g}M"


def interval_svg(value: float | None, low: float | None, high: float | None, start: float) -> Markup:
    """Draw a value in [start, 1] with its interval, as a mark on a short line; nothing where there is no value."""
    if value is None:
        return Markup("")
    axes = plot.Axes(start, 1, 1, left=4, top=0, width=112, height=16)
    parts = ['<line class="track" x1="4" x2="116" y1="8" y2="8"/>']
    if low is not None and high is not None:
        parts.append(f'<line class="range" x1="{axes.x(low):.1f}" x2="{axes.x(high):.1f}" y1="8" y2="8"/>')
    parts.append(f'<circle class="mark" cx="{axes.x(value):.1f}" cy="8" r="3.5"/>')
    return Markup(f'<svg class="spark" viewBox="0 0 120 16" aria-hidden="true">{"".join(parts)}</svg>')  # noqa: S704


def outline_path(inside: npt.NDArray[Any]) -> str:
    """Return the border of a region as SVG path data, along the edges of pixels.

    Parameters
    ----------
    inside : bool array, (H, W)

    >>> outline_path(np.array([[True]]))
    'M0 0h1M0 1h1M0 0v1M1 0v1'
    """
    padded = np.pad(np.asarray(inside, dtype=bool), 1)
    across = padded[1:, 1:-1] != padded[:-1, 1:-1]  # (H + 1, W): edges between a pixel and the one above
    along = (padded[1:-1, 1:] != padded[1:-1, :-1]).T  # (W + 1, H): edges between a pixel and the one to its left
    horizontal = [f"M{start} {line}h{length}" for line, start, length in _runs(across)]
    vertical = [f"M{line} {start}v{length}" for line, start, length in _runs(along)]
    return "".join(horizontal + vertical)


def _runs(lines: npt.NDArray[np.bool_]) -> Iterable[tuple[int, int, int]]:
    """Yield line, start and length of each run of True along the second axis."""
    steps = np.diff(np.pad(lines, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    line, start = np.nonzero(steps == 1)
    _, end = np.nonzero(steps == -1)
    return zip(line.tolist(), start.tolist(), (end - start).tolist(), strict=True)


def _bin_edges(scores: Floats, threshold: float) -> tuple[Floats, bool]:
    """Return bin edges of which one is the threshold, and whether some scores lie beyond the last."""
    low, high = float(scores.min()), float(scores.max())
    middle = float(np.median(scores))
    limit = max(threshold + 2 * (threshold - low), middle + 2 * (middle - low))
    is_cut = high > limit > threshold
    high = limit if is_cut else high
    width = (high - low) / _N_BINS or 1.0
    n_below = math.ceil((threshold - low) / width)
    n_above = max(1, math.ceil((high - threshold) / width))
    steps = np.arange(-max(n_below, 1), n_above + 1, dtype=np.float64)
    return threshold + width * steps, is_cut


def _shares(scores: Floats, edges: Floats) -> Floats:
    """Return each bin's share; scores outside are counted in the first and last bin."""
    inside = np.clip(scores, edges[0], edges[-1])
    # Half-open bins, as in ``score >= threshold``; only the last one is closed.
    return np.histogram(inside, bins=edges)[0] / scores.size


def _line(axes: plot.Axes, x: Floats, y: Floats, css: str) -> str:
    places = np.round(np.stack([axes.x(x), axes.y(y)], axis=1), 1)
    moves = np.r_[True, np.any(np.diff(places, axis=0), axis=1)]  # curves of 10,000 images seldom do
    return f'<polyline class="{css}" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in places[moves].tolist())}"/>'


def _steps(axes: plot.Axes, edges: Floats, shares: Floats, css: str) -> str:
    points = [f"{axes.x(edges[0]):.1f},{axes.y(0):.1f}"]
    for left, right, share in zip(edges[:-1], edges[1:], shares, strict=True):
        points += [f"{axes.x(left):.1f},{axes.y(share):.1f}", f"{axes.x(right):.1f},{axes.y(share):.1f}"]
    points.append(f"{axes.x(edges[-1]):.1f},{axes.y(0):.1f}")
    return f'<polygon class="bar {css}" points="{" ".join(points)}"/>'


def _marker(axes: plot.Axes, value: float, css: str, label: str, rise: float, identifier: str = "") -> str:
    """Draw a vertical line that rises above the plot, with a label beside its end."""
    x, top, bottom = axes.x(value), axes.top - rise, axes.top + axes.height
    name = f' id="{identifier}"' if identifier else ""
    line = f'<line class="marker {css}"{name} x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>'
    if x > axes.left + 0.8 * axes.width:
        return line + plot.text(x - 6, top + 9, label, f"label {css}", "end")
    return line + plot.text(x + 6, top + 9, label, f"label {css}", "start")


def _legend(right: float, y: float, css: str, name: str) -> str:
    swatch = f'<line class="{css} key" x1="{right - 22:.1f}" x2="{right:.1f}" y1="{y - 4:.1f}" y2="{y - 4:.1f}"/>'
    return swatch + plot.text(right - 28, y, name, "legend", "end")
