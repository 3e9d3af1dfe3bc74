"""One image with its anomaly map, as a PNG of full resolution."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from anomaly_ae.files import write_bytes
from anomaly_ae.report.colour import DISPLAY_HIGH, DISPLAY_LOW, bands, blend_table, colormap, encode_display
from anomaly_ae.report.pictures import picture

MASK_RGB = (0, 229, 195)
CONTOUR_RGB = (255, 255, 255)
_PAPER_RGB, _INK_RGB = (250, 250, 248), (34, 38, 42)
_MIN_WIDTH_PX = 272  # the labels of the colour bar need that much


def write_heatmap(
    path: Path,
    pixels01: npt.NDArray[Any],
    display_map: npt.NDArray[Any],
    mask: npt.NDArray[Any] | None = None,
    regions: npt.NDArray[np.bool_] | None = None,
) -> None:
    """Write image and anomaly map as one PNG on the absolute display scale.

    The image lies top left at its own resolution, pixel for pixel. Below half the threshold nothing is drawn over it;
    a thin white line encloses the regions, a green one the true mask. Under it a labelled colour bar.

    Parameters
    ----------
    path : Path
        Ends in ``.png``.
    pixels01 : float array, (C, H, W)
        In [0, 1]; three channels are shown in colour, others as their grey mean.
    display_map : float array, (H, W)
        0 = a typical normal, 1 = the threshold; NaN where not inspected.
    mask : array, (H, W), or None
        Non-zero = truly anomalous.
    regions : bool array, (H, W), or None
        The regions that count; None takes all that reaches the threshold.

    Raises
    ------
    OutputError
        When the file cannot be written.
    """
    height, width = display_map.shape
    page = Image.new("RGB", (max(width, _MIN_WIDTH_PX), height + _strip_height(width)), _PAPER_RGB)
    page.paste(Image.fromarray(overlay(pixels01, display_map, mask, regions)), (0, 0))
    _draw_colour_bar(page, top=height)
    buffer = io.BytesIO()
    page.save(buffer, format="PNG")
    write_bytes(path, buffer.getvalue())


def overlay(
    pixels01: npt.NDArray[Any],
    display_map: npt.NDArray[Any],
    mask: npt.NDArray[Any] | None = None,
    regions: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.uint8]:
    """Return what `write_heatmap` shows above its colour bar: uint8 RGB, (H, W, 3)."""
    base = picture(pixels01, max(display_map.shape))  # (H, W) or (H, W, 3)
    base = base if base.ndim == 3 else base[..., None]
    mixed = np.empty((*display_map.shape, 3), np.uint8)
    for rows in bands(*display_map.shape):
        codes = encode_display(display_map[rows])
        for channel, table in enumerate(blend_table()):
            mixed[rows, :, channel] = table[codes, base[rows, :, channel % base.shape[2]]]
    inside = np.nan_to_num(display_map, nan=DISPLAY_LOW) >= 1 if regions is None else regions
    mixed[inner_edge(inside)] = CONTOUR_RGB
    if mask is not None:
        mixed[inner_edge(np.asarray(mask) > 0)] = MASK_RGB
    return mixed


def inner_edge(inside: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return the pixels of ``inside`` (H, W) that have one of four neighbours outside; the image's rim is no edge."""
    padded = np.pad(inside, 1, mode="edge")
    enclosed = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    edge: npt.NDArray[np.bool_] = inside & ~enclosed
    return edge


def _strip_height(width: int) -> int:
    return 3 * _font_size(width) + 10


def _font_size(width: int) -> int:
    return int(np.clip(width // 40, 11, 48))


def _draw_colour_bar(page: Image.Image, top: int) -> None:
    """Draw the whole scale, with 0, 1, 2 and 3 marked."""
    size = _font_size(page.width)
    font = ImageFont.load_default(size)
    left, right = size, page.width - size
    bar = Image.fromarray(colormap()[None]).resize((right - left, size), Image.Resampling.NEAREST)
    page.paste(bar, (left, top + 6))
    draw = ImageDraw.Draw(page)
    for value, text in ((0, "0 normal"), (1, "1 threshold"), (2, "2"), (3, "3")):
        x = left + (value - DISPLAY_LOW) / (DISPLAY_HIGH - DISPLAY_LOW) * (right - left)
        draw.line([(x, top + 6), (x, top + 8 + size)], fill=_PAPER_RGB if value < 2 else _INK_RGB)
        draw.text((x, top + 9 + size), text, fill=_INK_RGB, font=font, anchor="ma")
