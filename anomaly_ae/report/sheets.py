"""Small pictures on large ones: many thumbnails, or coded maps, make one sheet that a browser decodes at once.

Sheets are encoded when a run ends, within the budget of a page, so that a report only has to copy them.
"""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from anomaly_ae.report.colour import colormap

N_COLUMNS, N_PER_SHEET = 20, 200

# Together with details of 2.9 million characters and about 1 MB for the rest, a page stays under 12 MB.
_THUMBNAIL_BYTES, _MAP_BYTES = 2_550_000, 3_375_000
_JPEG_QUALITIES = (84, 72, 58, 42, 25)
_MAP_STEPS = (1, 4, 16, 32, 96)  # divisors of the code of the threshold: what reaches it is exact in all of them
_SURELY_TOO_MUCH = 1.2
_PNG_LEVEL = 3  # twice as fast as the usual 6, for a twentieth more
_PALETTE = slice(41, 41 + 768)  # after the signature (8), the header chunk (25), length and name of its own (8)

Bytes2D = npt.NDArray[np.uint8]
Item = TypeVar("Item")
Setting = TypeVar("Setting")
Encoded = TypeVar("Encoded")


def n_sheets(n_pictures: int) -> int:
    """Return how many sheets so many pictures fill.

    >>> n_sheets(0), n_sheets(200), n_sheets(201)
    (0, 1, 2)
    """
    return -(-n_pictures // N_PER_SHEET)


def thumbnail_sheets(squares: Bytes2D) -> list[bytes]:
    """Encode thumbnails (n, s, s[, 3]) as JPEG, 200 to a sheet, in rows of 20; as good as the budget allows."""
    return first_that_fits(_tiled(squares), jpeg, _JPEG_QUALITIES, _THUMBNAIL_BYTES, len)


def map_sheets(squares: Bytes2D) -> list[bytes]:
    """Encode coded maps (n, s, s) as PNG whose palette gives the codes: exact, or in steps where that is too much."""
    return first_that_fits(_tiled(squares), _in_steps, _MAP_STEPS, _MAP_BYTES, len)


def recoded(sheet: bytes, codes: Bytes2D) -> bytes:
    """Return a sheet of maps with another code (256,) for each of its own: a new palette, the pixels stay compressed.

    Raises
    ------
    ValueError
        It is no sheet that `map_sheets` made.
    """
    start, end = _PALETTE.start, _PALETTE.stop
    if sheet[start - 4 : start] != b"PLTE":
        raise ValueError("a sheet of maps has no palette")
    own = np.frombuffer(sheet[_PALETTE], dtype=np.uint8)
    palette = codes[own].tobytes()
    checksum = zlib.crc32(b"PLTE" + palette).to_bytes(4, "big")
    return sheet[:start] + palette + checksum + sheet[end + 4 :]


def colour_bar() -> str:
    """Return the codes 0 to 255 from left to right, one pixel high, as a data address."""
    return address("png", png(np.arange(256, dtype=np.uint8)[None], colormap()))


def first_that_fits(
    items: Sequence[Item],
    encode: Callable[[Item, Setting], Encoded],
    ladder: Sequence[Setting],
    limit: int,
    size: Callable[[Encoded], int],
) -> list[Encoded]:
    """Encode all items with the first setting that keeps their sizes within ``limit``, else with the last.

    The first and the last item are encoded first: where they alone say that a setting will not do, the rest is spared.
    """
    ends = [*items[:1], *items[-1:]]
    with ThreadPoolExecutor() as pool:  # a sixth faster: most of an encoder holds the interpreter lock
        for setting in ladder[:-1]:
            n_of_ends = sum(map(size, pool.map(encode, ends, repeat(setting))))
            if n_of_ends * len(items) > _SURELY_TOO_MUCH * limit * len(ends):
                continue
            encoded = list(pool.map(encode, items, repeat(setting)))
            if sum(map(size, encoded)) <= limit:
                return encoded
        return list(pool.map(encode, items, repeat(ladder[-1])))


def jpeg(pixels: npt.NDArray[np.uint8], quality: int) -> bytes:
    """Encode (H, W) or (H, W, 3) as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def png(codes: Bytes2D, palette: npt.NDArray[np.uint8], alpha: npt.NDArray[np.uint8] | None = None) -> bytes:
    """Encode (H, W) codes as PNG: indices into a palette (256, 3) with opacities (256,)."""
    image = Image.fromarray(codes)
    image.putpalette(palette.tobytes())
    options: dict[str, Any] = {} if alpha is None else {"transparency": alpha.tobytes()}
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=_PNG_LEVEL, **options)
    return buffer.getvalue()


def address(kind: str, encoded: bytes) -> str:
    """Return a picture as a data address."""
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode('ascii')}"


def _in_steps(codes: Bytes2D, step: int) -> bytes:
    grey = np.arange(256, dtype=np.uint8)
    return png(codes // step * step, np.stack([grey] * 3, axis=1))


def _tiled(squares: Bytes2D) -> list[Bytes2D]:
    return [_tile(squares[start : start + N_PER_SHEET]) for start in range(0, len(squares), N_PER_SHEET)]


def _tile(squares: Bytes2D) -> Bytes2D:
    """Lay (n, s, s[, 3]) squares out in rows of 20."""
    n, side, _, *channels = squares.shape
    n_rows = -(-n // N_COLUMNS)
    padded = np.zeros((n_rows * N_COLUMNS, side, side, *channels), dtype=np.uint8)
    padded[:n] = squares
    grid = padded.reshape(n_rows, N_COLUMNS, side, side, *channels).swapaxes(1, 2)  # (rows, s, columns, s[, 3])
    return grid.reshape(n_rows * side, N_COLUMNS * side, *channels)
