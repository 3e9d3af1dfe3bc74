"""Small pictures of a run: a thumbnail and a map for each image of the gallery, details for about thirty.

They are collected in one pass while images are scored, and stored in ``pictures.npz`` as the page will carry them, so
that a report can be rendered again without the images or the model, and soon.
"""

from __future__ import annotations

import heapq
import io
import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from anomaly_ae.errors import DataError
from anomaly_ae.files import write_bytes
from anomaly_ae.records import ANOMALOUS_LABEL, NORMAL_LABEL
from anomaly_ae.report.colour import bands, decode_display, encode_display
from anomaly_ae.report.sheets import Bytes2D, map_sheets, n_sheets, recoded, thumbnail_sheets

MAX_GALLERY_IMAGES = 2000
"""Beyond this many images, the gallery holds those with the highest scores."""

DETAIL_SIDE_PX = 320
_N_DETAILS_PER_KIND = 10
_GALLERY_PIXELS = MAX_GALLERY_IMAGES * 80**2  # what a page of 12 MB can hold
_LARGEST_THUMBNAIL_PX = 192
_BLOCK_PX = 16  # thumbnails fill whole JPEG blocks: of neighbours in a sheet only the hue of the last pixel is mixed
_MAX_FILE_BYTES = 2**30

T = TypeVar("T")


def thumbnail_side_px(n_images: int) -> int:
    """Return the longer side of thumbnails with which a page of ``n_images`` stays under 12 MB.

    >>> [thumbnail_side_px(n) for n in (1, 400, 1000, 2000, 10**6)]
    [192, 176, 112, 80, 80]
    """
    side_px = math.isqrt(_GALLERY_PIXELS // min(max(n_images, 1), MAX_GALLERY_IMAGES))
    return min(side_px // _BLOCK_PX * _BLOCK_PX, _LARGEST_THUMBNAIL_PX)


def shrunk_shape(height: int, width: int, side_px: int) -> tuple[int, int]:
    """Return height and width with the longer side at most ``side_px``; small images keep their size.

    >>> shrunk_shape(300, 600, 80), shrunk_shape(28, 28, 80)
    ((40, 80), (28, 28))
    """
    scale = min(1.0, side_px / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def picture(pixels01: npt.NDArray[Any], side_px: int) -> Bytes2D:
    """Shrink an image by area averages, in colour where it has three channels.

    Parameters
    ----------
    pixels01 : float array, (C, H, W)
        In [0, 1]; channels other than 3 are averaged to grey.
    side_px : int
        Longer side of the result, at most; smaller images are not enlarged.

    Returns
    -------
    uint8 array, (h, w) or (h, w, 3)
    """
    n_channels, *shape = pixels01.shape
    bytes8 = np.empty((*shape, 3) if n_channels == 3 else shape, np.uint8)
    for rows in bands(*shape):
        band = np.clip(np.nan_to_num(np.asarray(pixels01[:, rows], dtype=np.float64)), 0, 1)  # (C, h, W)
        band = np.moveaxis(band, 0, -1) if n_channels == 3 else band.mean(axis=0)
        bytes8[rows] = np.rint(band * 255)
    height, width = shrunk_shape(bytes8.shape[0], bytes8.shape[1], side_px)
    return np.asarray(Image.fromarray(bytes8).resize((width, height), Image.Resampling.BOX))


def thumbnail_map(display_map: npt.NDArray[Any], side_px: int) -> Bytes2D:
    """Shrink a map by cell maxima, so that a defect of one pixel stays visible.

    Parameters
    ----------
    display_map : float array, (H, W)
        0 = a typical normal, 1 = the threshold.
    side_px : int
        Longer side of the result, at most.

    Returns
    -------
    uint8 array, (h, w)
        Coded by `encode_display`; of the height and width that `picture` gives for the same image.
    """
    return shrink_by_maximum(encode_display(display_map), side_px)


def shrink_by_maximum(values: Bytes2D, side_px: int) -> Bytes2D:
    """Cut (H, W) into cells, each pixel in exactly one, and keep each cell's maximum."""
    height, width = shrunk_shape(values.shape[0], values.shape[1], side_px)
    if (height, width) == values.shape:
        return values
    rows = np.arange(height) * values.shape[0] // height
    columns = np.arange(width) * values.shape[1] // width
    return np.maximum.reduceat(np.maximum.reduceat(values, rows, axis=0), columns, axis=1)


@dataclass(frozen=True, slots=True, eq=False)
class Detail:
    """One image at up to 320 px: input and reconstruction (h, w[, 3]), coded map, mask and regions (h, w) or None.

    Without ``regions``, they are what reaches the threshold in the map.
    """

    id: str
    input: Bytes2D
    map: Bytes2D
    reconstruction: Bytes2D | None = None
    mask: Bytes2D | None = None
    regions: Bytes2D | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """What ``pictures.npz`` holds.

    Attributes
    ----------
    ids : tuple of str
        Of the N images in the gallery.
    shapes : int array, (N, 2)
        Used height and width, top left in the square of each image.
    side_px : int
        Of a square.
    thumbnails, maps : tuple of bytes
        Sheets of squares, JPEG and PNG, see `sheets`.
    details : tuple of Detail
        Of the images that are shown large.
    """

    ids: tuple[str, ...]
    shapes: npt.NDArray[np.int64]
    side_px: int
    thumbnails: tuple[bytes, ...]
    maps: tuple[bytes, ...]
    details: tuple[Detail, ...]


def rescaled(pictures: Pictures, threshold: float) -> Pictures:
    """Return the pictures with their maps coded for another threshold: it becomes 1, 0 stays the typical normal.

    Parameters
    ----------
    pictures : Pictures
        Not changed.
    threshold : float
        Where the other threshold lies on the scale of these maps; above 0, and no higher than the scale goes.
    """
    codes = encode_display(decode_display(np.arange(256, dtype=np.uint8)) / threshold)  # (256,): new code of each
    details = tuple(replace(detail, map=codes[detail.map]) for detail in pictures.details)
    return replace(pictures, maps=tuple(recoded(sheet, codes) for sheet in pictures.maps), details=details)


class _Largest(Generic[T]):
    """The ``n_kept`` items of the largest keys; of equal keys, the earlier."""

    def __init__(self, n_kept: int) -> None:
        self.n_kept, self._heap, self._n_seen = n_kept, list[tuple[float, int, T]](), 0

    def wants(self, key: float) -> bool:
        return len(self._heap) < self.n_kept or key > self._heap[0][0]

    def add(self, key: float, item: T) -> None:
        self._n_seen += 1
        heapq.heappush(self._heap, (key, -self._n_seen, item))
        if len(self._heap) > self.n_kept:
            heapq.heappop(self._heap)

    def items(self) -> list[T]:
        return [item for _, _, item in sorted(self._heap, key=lambda entry: entry[:2], reverse=True)]


class PictureWriter:
    """Collects the small pictures of a run in one pass and bounded memory.

    Kept are the thumbnails of the 2,000 highest scores, and details of the ten highest normal, the ten lowest and the
    ten highest anomalous images (without labels: the thirty highest).

    Parameters
    ----------
    n_images : int
        How many images will come, at most; sets the size of the thumbnails.
    """

    def __init__(self, n_images: int) -> None:
        self.side_px = thumbnail_side_px(n_images)
        self._gallery = _Largest[tuple[str, Bytes2D, Bytes2D]](MAX_GALLERY_IMAGES)
        self._normal = _Largest[Detail](_N_DETAILS_PER_KIND)
        self._missed = _Largest[Detail](_N_DETAILS_PER_KIND)
        self._hit = _Largest[Detail](_N_DETAILS_PER_KIND)
        self._unlabelled = _Largest[Detail](3 * _N_DETAILS_PER_KIND)

    def wants_detail(self, label: str, score: float) -> bool:
        """Whether a detail of this image would be kept as things stand: spare the reconstruction otherwise."""
        return any(kind.wants(key) for kind, key in self._kinds(label, score))

    def add(
        self,
        id: str,
        label: str,
        score: float,
        pixels01: npt.NDArray[Any],
        display_map: npt.NDArray[Any],
        reconstruction01: npt.NDArray[Any] | None = None,
        mask: npt.NDArray[Any] | None = None,
        regions: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """Take one scored image.

        Parameters
        ----------
        id, label : str
            As in ``scores.csv``; the label "normal", "anomalous" or "".
        score : float
            Image score.
        pixels01, reconstruction01 : float array, (C, H, W)
            In [0, 1]. The reconstruction may have another size, or be missing.
        display_map : float array, (H, W)
            0 = a typical normal, 1 = the threshold.
        mask : array, (H, W), or None
            Non-zero = truly anomalous.
        regions : bool array, (H, W), or None
            The regions that count; None: all that reaches the threshold.
        """
        if self._gallery.wants(score):
            small = picture(pixels01, self.side_px), thumbnail_map(display_map, self.side_px)
            self._gallery.add(score, (id, *small))
        if self.wants_detail(label, score):
            detail = _detail(id, pixels01, display_map, reconstruction01, mask, regions)
            for kind, key in self._kinds(label, score):
                kind.add(key, detail)

    def write(self, path: Path) -> None:
        """Write ``pictures.npz`` to ``path``.

        Raises
        ------
        OutputError
            When the file cannot be written.
        """
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **self._arrays())
        write_bytes(path, buffer.getvalue())

    def _kinds(self, label: str, score: float) -> list[tuple[_Largest[Detail], float]]:
        if label == ANOMALOUS_LABEL:
            return [(self._missed, -score), (self._hit, score)]
        return [(self._normal if label == NORMAL_LABEL else self._unlabelled, score)]

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        gallery = self._gallery.items()
        kinds = (self._normal, self._missed, self._hit, self._unlabelled)
        details = {detail.id: detail for kind in kinds for detail in kind.items()}
        arrays: dict[str, npt.NDArray[Any]] = {
            "ids": np.array([id for id, _, _ in gallery], dtype=np.str_),
            "thumbnail_shapes": np.array([small.shape[:2] for _, small, _ in gallery], dtype=np.int64).reshape(-1, 2),
            "side_px": np.array(self.side_px),
            "detail_ids": np.array(list(details), dtype=np.str_),
        }
        sheets = {
            "thumbnails": thumbnail_sheets(_stack([small for _, small, _ in gallery], self.side_px)),
            "maps": map_sheets(_stack([codes for _, _, codes in gallery], self.side_px)),
        }
        for name, encoded in sheets.items():
            arrays |= {f"{name}_{k}": np.frombuffer(sheet, np.uint8) for k, sheet in enumerate(encoded)}
        for k, detail in enumerate(details.values()):
            arrays |= _detail_arrays(k, detail)
        return arrays


def _detail(
    id: str,
    pixels01: npt.NDArray[Any],
    display_map: npt.NDArray[Any],
    reconstruction01: npt.NDArray[Any] | None,
    mask: npt.NDArray[Any] | None,
    regions: npt.NDArray[np.bool_] | None,
) -> Detail:
    shown = picture(pixels01, DETAIL_SIDE_PX)
    rebuilt = None if reconstruction01 is None else picture(reconstruction01, DETAIL_SIDE_PX)
    if rebuilt is not None and rebuilt.shape[:2] != shown.shape[:2]:  # the model works at another scale
        size = (shown.shape[1], shown.shape[0])
        rebuilt = np.asarray(Image.fromarray(rebuilt).resize(size, Image.Resampling.BILINEAR))
    truth, drawn = (
        None if pixels is None else shrink_by_maximum((np.asarray(pixels) > 0).astype(np.uint8), DETAIL_SIDE_PX)
        for pixels in (mask, regions)
    )
    return Detail(id, shown, thumbnail_map(display_map, DETAIL_SIDE_PX), rebuilt, truth, drawn)


def _detail_arrays(k: int, detail: Detail) -> dict[str, npt.NDArray[Any]]:
    parts = {
        "input": detail.input,
        "reconstruction": detail.reconstruction,
        "map": detail.map,
        "mask": detail.mask,
        "regions": detail.regions,
    }
    return {f"detail_{k}_{name}": array for name, array in parts.items() if array is not None}


def _stack(pictures: Sequence[Bytes2D], side_px: int) -> Bytes2D:
    """Put pictures top left into squares: (n, side_px, side_px), with 3 channels where one of the pictures has them."""
    squares = (len(pictures), side_px, side_px)
    stack = np.zeros((*squares, 3) if any(small.ndim == 3 for small in pictures) else squares, dtype=np.uint8)
    for square, small in zip(stack, pictures, strict=True):
        square[: small.shape[0], : small.shape[1]] = small if small.ndim == square.ndim else small[..., None]
    return stack


def read_pictures(path: Path) -> Pictures:
    """Read what `PictureWriter` wrote.

    Raises
    ------
    DataError
        When the file is damaged, foreign, or unpacks to more than 1 GiB.
    """
    refuse_damaged(path)
    with _reading(path), np.load(path, allow_pickle=False) as arrays:
        return _from_arrays(arrays)


def refuse_damaged(path: Path) -> None:
    """Raise `DataError` as `read_pictures` does, by a look at the table of contents alone."""
    with _reading(path), zipfile.ZipFile(path) as archive:
        n_bytes = sum(entry.file_size for entry in archive.infolist())
    if n_bytes > _MAX_FILE_BYTES:
        raise DataError(f"{path} unpacks to {n_bytes:,} bytes", "no run has that much", "evaluate again")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile) as error:
        raise DataError(f"cannot read {path}", str(error), "evaluate again, or delete the file") from error


def _from_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> Pictures:
    details = [
        Detail(
            id=str(id),
            input=arrays[f"detail_{k}_input"],
            map=arrays[f"detail_{k}_map"],
            reconstruction=arrays.get(f"detail_{k}_reconstruction"),
            mask=arrays.get(f"detail_{k}_mask"),
            regions=arrays.get(f"detail_{k}_regions"),
        )
        for k, id in enumerate(arrays["detail_ids"])
    ]
    ids, shapes = tuple(str(id) for id in arrays["ids"]), arrays["thumbnail_shapes"]
    if shapes.shape != (len(ids), 2):
        raise ValueError("ids and thumbnails differ in number")
    thumbnails, maps = (
        tuple(arrays[f"{name}_{k}"].tobytes() for k in range(n_sheets(len(ids)))) for name in ("thumbnails", "maps")
    )
    for sheet in maps:
        recoded(sheet, np.arange(256, dtype=np.uint8))  # a foreign one is found now, and not at another threshold
    return Pictures(ids, shapes, int(arrays["side_px"]), thumbnails, maps, tuple(details))
