"""Pictures as the page carries them: data addresses within a budget, thumbnails on sheets, details one by one."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from anomaly_ae.report.colour import DISPLAY_HIGH, DISPLAY_LOW, colormap, overlay_lut
from anomaly_ae.report.figures import outline_path
from anomaly_ae.report.pictures import Bytes2D, Detail, Pictures, shrink_by_maximum

N_COLUMNS, N_PER_SHEET = 20, 200

# Together with about 1 MB for the rest, the page stays under 12 MB.
_THUMBNAIL_CHARACTERS, _MAP_CHARACTERS, _DETAIL_CHARACTERS = 3_400_000, 4_500_000, 2_900_000
_SURELY_TOO_MUCH = 1.2
_PNG_LEVEL = 3  # twice as fast as the usual 6, for a twentieth more
_FIRST_CODE_AT_THRESHOLD = round((1 - DISPLAY_LOW) / (DISPLAY_HIGH - DISPLAY_LOW) * 255)

Item = TypeVar("Item")
Setting = TypeVar("Setting")


@dataclass(frozen=True, slots=True)
class DetailPanels:
    """The pictures of one card as data addresses, and its outlines as SVG path data in a box of width x height."""

    id: str
    width: int
    height: int
    input: str
    reconstruction: str
    map: str
    overlay: str
    contour: str
    mask: str


Encoded = TypeVar("Encoded", str, DetailPanels)


def thumbnail_sheets(pictures: Pictures) -> list[str]:
    """Return the thumbnails as JPEG data addresses, 200 to a sheet, in rows of 20."""
    sheets = [_tile(chunk) for chunk in _chunks(pictures.thumbnails)]
    return _first_that_fits(sheets, _jpeg, (84, 72, 58, 42, 25), _THUMBNAIL_CHARACTERS)


def map_sheets(pictures: Pictures) -> list[str]:
    """Return the coded maps as data addresses: exact PNG, or coarser where that would be too much."""
    sheets = [_tile(chunk) for chunk in _chunks(pictures.maps)]
    ladder = (("png", 1), ("png", 4), ("jpeg", 60), ("jpeg", 20))
    return _first_that_fits(sheets, _map, ladder, _MAP_CHARACTERS)


def detail_panels(details: Sequence[Detail]) -> list[DetailPanels]:
    """Return the panels of each detail, smaller or coarser where they would be too much."""
    ladder = ((320, 86), (240, 78), (160, 70), (112, 55))
    return _first_that_fits(details, _panels, ladder, _DETAIL_CHARACTERS)


def colour_bar() -> str:
    """Return the colours of codes 0 to 255 from left to right, one pixel high, as a data address."""
    return _png(np.arange(256, dtype=np.uint8)[None], colormap())


def _first_that_fits(
    items: Sequence[Item], encode: Callable[[Item, Setting], Encoded], ladder: Sequence[Setting], limit: int
) -> list[Encoded]:
    """Encode all items with the first setting that keeps them within ``limit`` characters, else with the last.

    The first and the last item are encoded first: where they alone say that a setting will not do, the rest is spared.
    """
    ends = [*items[:1], *items[-1:]]
    with ThreadPoolExecutor() as pool:  # PNG is compressed outside of the interpreter lock
        for setting in ladder[:-1]:
            n_of_ends = sum(map(_n_characters, pool.map(encode, ends, repeat(setting))))
            if n_of_ends * len(items) > _SURELY_TOO_MUCH * limit * len(ends):
                continue
            encoded = list(pool.map(encode, items, repeat(setting)))
            if sum(map(_n_characters, encoded)) <= limit:
                return encoded
        return list(pool.map(encode, items, repeat(ladder[-1])))


def _n_characters(encoded: str | DetailPanels) -> int:
    if isinstance(encoded, str):
        return len(encoded)
    pictures = (encoded.input, encoded.reconstruction, encoded.map, encoded.overlay)
    return sum(map(len, pictures)) + len(encoded.contour) + 2 * len(encoded.mask)  # the mask has a casing


def _map(codes: Bytes2D, setting: tuple[str, int]) -> str:
    """Encode as PNG in whole multiples of a step, or as JPEG of a quality."""
    kind, value = setting
    return _png(codes // value * value) if kind == "png" else _jpeg(codes, value)


def _chunks(squares: Bytes2D) -> Iterable[Bytes2D]:
    return (squares[i : i + N_PER_SHEET] for i in range(0, len(squares), N_PER_SHEET))


def _tile(squares: Bytes2D) -> Bytes2D:
    """Lay (n, s, s) squares out in rows of 20."""
    n, side = len(squares), squares.shape[1]
    n_rows = -(-n // N_COLUMNS)
    padded = np.zeros((n_rows * N_COLUMNS, side, side), dtype=np.uint8)
    padded[:n] = squares
    grid = padded.reshape(n_rows, N_COLUMNS, side, side).swapaxes(1, 2)  # (rows, s, columns, s)
    return grid.reshape(n_rows * side, N_COLUMNS * side)


def _panels(detail: Detail, setting: tuple[int, int]) -> DetailPanels:
    """Encode at a side in px and a JPEG quality."""
    side_px, quality = setting
    codes = shrink_by_maximum(detail.map, side_px)
    size = (codes.shape[1], codes.shape[0])
    mask, regions = (
        None if pixels is None else shrink_by_maximum(pixels, side_px) > 0 for pixels in (detail.mask, detail.regions)
    )
    rebuilt = detail.reconstruction
    lut = overlay_lut()
    visible = np.where(lut[codes, 3] > 0, codes, 0).astype(np.uint8)  # what is transparent compresses to nothing
    return DetailPanels(
        id=detail.id,
        width=size[0],
        height=size[1],
        input=_jpeg(_resized(detail.input, size), quality),
        reconstruction="" if rebuilt is None else _jpeg(_resized(rebuilt, size), quality),
        map=_png(codes, colormap()),
        overlay=_png(visible, colormap(), lut[:, 3]),
        contour=outline_path(codes >= _FIRST_CODE_AT_THRESHOLD if regions is None else regions),
        mask="" if mask is None else outline_path(mask),
    )


def _resized(pixels: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))


def _jpeg(pixels: npt.NDArray[np.uint8], quality: int) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=quality, optimize=True)
    return _address("jpeg", buffer)


def _png(
    codes: Bytes2D,
    palette: npt.NDArray[np.uint8] | None = None,
    alpha: npt.NDArray[np.uint8] | None = None,
) -> str:
    """Encode (H, W) codes as grey, or as indices into a palette (256, 3) with opacities (256,)."""
    image = Image.fromarray(codes)
    options: dict[str, Any] = {}
    if palette is not None:
        image.putpalette(palette.tobytes())
    if alpha is not None:
        options["transparency"] = alpha.tobytes()
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=_PNG_LEVEL, **options)
    return _address("png", buffer)


def _address(kind: str, buffer: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
