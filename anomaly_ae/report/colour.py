"""The absolute colour scale of every map: 0 = a typical normal image, 1 = the threshold.

One scale for all pictures of all runs: a map is never stretched to its own range, so a normal image looks calm.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

DISPLAY_LOW, DISPLAY_HIGH = -0.5, 3.5
"""Display values outside this range look like its ends."""

# Nine evenly spaced colours of "inferno" (S. van der Walt and N. Smith, 2015, CC0): luminance rises all the way, so the
# order survives colour blindness and grey printing.
_ANCHORS_RGB = (
    (0, 0, 4),
    (31, 12, 72),
    (85, 15, 109),
    (136, 34, 106),
    (186, 54, 85),
    (227, 89, 51),
    (249, 140, 10),
    (249, 201, 50),
    (252, 255, 164),
)

_BAND_PIXELS = 1 << 20

# Opacity over the image: (display value, opacity). Nothing is drawn below half the threshold.
_OPACITY = ((0.5, 0.0), (1.0, 0.5), (1.5, 0.75), (2.5, 0.85))


def encode_display(display_map: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Code display values in 8 bits.

    Parameters
    ----------
    display_map : float array, any shape
        0 = a typical normal, 1 = the threshold. NaN (not inspected) is coded like the lowest value.

    Returns
    -------
    uint8 array of the same shape
        ``round((clip(display, -0.5, 3.5) + 0.5) / 4 * 255)``.

    >>> encode_display(np.array([-9.0, 0.0, 1.0, 9.0])).tolist()
    [0, 32, 96, 255]
    """
    values = np.asarray(display_map)
    codes = np.empty(values.size, np.uint8)
    for part in bands(values.size, 1):
        display = np.nan_to_num(values.reshape(-1)[part].astype(np.float64), nan=DISPLAY_LOW)
        share = (np.clip(display, DISPLAY_LOW, DISPLAY_HIGH) - DISPLAY_LOW) / (DISPLAY_HIGH - DISPLAY_LOW)
        codes[part] = np.rint(share * 255)
    return codes.reshape(values.shape)


def decode_display(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Return the display values of codes, to within half a code (0.008).

    >>> decode_display(np.array([0, 255], dtype=np.uint8)).tolist()
    [-0.5, 3.5]
    """
    return codes.astype(np.float64) / 255 * (DISPLAY_HIGH - DISPLAY_LOW) + DISPLAY_LOW


def bands(n_rows: int, n_columns: int) -> Iterator[slice]:
    """Yield rows that hold about a million pixels: what is computed in float64 must not grow with the image.

    >>> list(bands(5, 400_000))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    step = max(1, _BAND_PIXELS // n_columns)
    yield from (slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step))


@cache
def colormap() -> npt.NDArray[np.uint8]:
    """Return the colour of each code, dark violet to pale yellow.

    Returns
    -------
    uint8 array, (256, 3)
        sRGB, of strictly rising luminance.
    """
    anchors = np.array(_ANCHORS_RGB, dtype=np.float64)  # (9, 3)
    position = np.linspace(0, 255, len(anchors))
    channels = [np.interp(np.arange(256), position, anchors[:, c]) for c in range(3)]
    return np.rint(np.stack(channels, axis=1)).astype(np.uint8)


@cache
def overlay_lut() -> npt.NDArray[np.uint8]:
    """Return colour and opacity of each code where a map is laid over its image.

    Returns
    -------
    uint8 array, (256, 4)
        sRGB and opacity: transparent below half the threshold, half opaque at it.
    """
    display, opacity = zip(*_OPACITY, strict=True)
    alpha = np.interp(decode_display(np.arange(256, dtype=np.uint8)), display, opacity)
    return np.column_stack([colormap(), np.rint(alpha * 255).astype(np.uint8)])


@cache
def blend_table() -> npt.NDArray[np.uint8]:
    """Return the colour of each code laid over each grey level.

    Returns
    -------
    uint8 array, (3, 256, 256)
        Channel, code, level of the image below.
    """
    lut = overlay_lut().astype(np.float64)
    alpha, below = lut[:, 3:] / 255, np.arange(256.0)
    mixed = np.stack([below * (1 - alpha) + colour[:, None] * alpha for colour in lut[:, :3].T])
    table: npt.NDArray[np.uint8] = np.rint(mixed).astype(np.uint8)
    return table
