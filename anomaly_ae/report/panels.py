"""The pictures of one card: input, reconstruction, map and overlay as data addresses, outlines as paths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from anomaly_ae.report.colour import DISPLAY_HIGH, DISPLAY_LOW, colormap, overlay_lut
from anomaly_ae.report.figures import outline_path
from anomaly_ae.report.pictures import Detail, shrink_by_maximum
from anomaly_ae.report.sheets import address, first_that_fits, jpeg, png

_CHARACTERS = 2_900_000  # of all cards; see `sheets` for the rest of the page
_SIDES_AND_QUALITIES = ((320, 86), (240, 78), (160, 70), (112, 55))
_FIRST_CODE_AT_THRESHOLD = round((1 - DISPLAY_LOW) / (DISPLAY_HIGH - DISPLAY_LOW) * 255)


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


def detail_panels(details: Sequence[Detail]) -> list[DetailPanels]:
    """Return the panels of each detail, smaller or coarser where they would be too much."""
    return first_that_fits(details, _panels, _SIDES_AND_QUALITIES, _CHARACTERS, _n_characters)


def _n_characters(panels: DetailPanels) -> int:
    pictures = (panels.input, panels.reconstruction, panels.map, panels.overlay)
    return sum(map(len, pictures)) + len(panels.contour) + 2 * len(panels.mask)  # the mask has a casing


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
    drawn = np.where(lut[:, 3] > 0, np.arange(256), 0).astype(np.uint8)  # what is transparent compresses to nothing
    return DetailPanels(
        id=detail.id,
        width=size[0],
        height=size[1],
        input=address("jpeg", jpeg(_resized(detail.input, size), quality)),
        reconstruction="" if rebuilt is None else address("jpeg", jpeg(_resized(rebuilt, size), quality)),
        map=address("png", png(codes, colormap())),
        overlay=address("png", png(drawn[codes], colormap(), lut[:, 3])),
        contour=outline_path(codes >= _FIRST_CODE_AT_THRESHOLD if regions is None else regions),
        mask="" if mask is None else outline_path(mask),
    )


def _resized(pixels: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))
