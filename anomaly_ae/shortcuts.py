"""What tells anomalous from normal without looking for a defect: how bright, how large, from which station.

A detector on images that such a property separates may have learned the lamp, the camera or the export.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from anomaly_ae.metrics import mann_whitney_separation
from anomaly_ae.metrics.curves import ScoreCounts, area_under_roc
from anomaly_ae.records import BoolArray, Image

SHORTCUT_LIMIT = 0.8
"""An area under the ROC curve beyond this, in either direction, for something that is not the defect, is warned of."""

FEWEST = 5
"""Images of each class. With fewer, a property that says nothing separates the classes by chance too often."""

# Statistics of larger images are taken on every n-th row; they only answer whether grey separates the labels.
_MAX_VALUES = 4_000_000

Floats = npt.NDArray[np.float64]
Properties = Mapping[str, float | None]
"""Plain numbers of one image, as from `properties`."""


def properties(image: Image, n_bytes: float) -> dict[str, float | None]:
    """Return what an image is like without looking for a defect in it.

    Parameters
    ----------
    n_bytes : float
        Of its files on disk, as from `size_on_disk`.

    Returns
    -------
    dict of str to float or None
        "mean grey", "deviation", "sharpness" as from `grey_statistics`; "image size" in pixels, "file size" in bytes;
        "spacing" in mm, the geometric mean over the axes, None where the file does not state it.
    """
    mean, deviation, sharpness = grey_statistics(image)
    spacing = math.prod(image.spacing_mm) ** (1 / len(image.spacing_mm)) if image.spacing_mm else None
    found = {
        "mean grey": mean,
        "deviation": deviation,
        "sharpness": sharpness,
        "image size": float(math.prod(image.spatial_shape)),
        "file size": n_bytes,
        "spacing": spacing,
    }
    return {name: value if value is not None and math.isfinite(value) else None for name, value in found.items()}


def size_on_disk(files: Sequence[Path]) -> float:
    """Return the bytes of the files of an image; NaN where one has gone since it was read."""
    try:
        return float(sum(file.stat().st_size for file in files))
    except OSError:
        return math.nan


def grey_statistics(image: Image) -> tuple[float, float, float]:
    """Return mean and deviation of the values inside `valid`, in the file's own numbers, and the sharpness."""
    step = math.ceil(image.pixels.size / _MAX_VALUES)
    rows = image.pixels[:, ::step].astype(np.float64)  # (C, H / step, W): each row stays whole
    inside = rows if image.valid is None else rows[:, image.valid[::step]]
    if inside.size == 0:
        return math.nan, math.nan, math.nan
    return float(inside.mean()), *deviation_and_sharpness(rows, inside)


def deviation_and_sharpness(rows: Floats, inside: Floats) -> tuple[float, float]:
    """Return the deviation of the values `inside`, and the mean absolute difference of neighbours in `rows` over it.

    The second is the sharpness: a lens out of focus lowers it, a brighter or weaker lamp does not; 0 for a constant
    image.

    Parameters
    ----------
    rows : float64 array, (C, ..., W)
    inside : float64 array
        Those of the values that count.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # absurd values have no square: then it is not finite
        deviation = float(inside.std())
        steps = float(np.abs(np.diff(rows, axis=-1)).mean()) if rows.shape[-1] > 1 else 0.0
    return deviation, steps / deviation if deviation > 0 else 0.0


def separations(
    labels: Sequence[bool],
    numbers: Sequence[Properties],
    columns: Sequence[Mapping[str, str]] = (),
    groups: Sequence[str] | None = None,
) -> dict[str, float]:
    """Return how well each property alone tells anomalous from normal, as area under the ROC curve.

    Parameters
    ----------
    labels : sequence of bool, length n
        True = anomalous.
    numbers : sequence of mapping, length n
        Plain numbers of the images; None is left out.
    columns : sequence of mapping, length n, or empty
        Further columns of the manifest. A column of numbers counts as such and as words, the farther from 0.5 wins.
    groups : sequence of str, length n, or None
        What belongs together: a word that occurs in one group only tells nothing. None: each image is its own group.

    Returns
    -------
    dict of str to float
        0.5 says nothing; 1 = anomalous is always higher (words: the word alone tells), 0 = always lower. What is
        known of fewer than `FEWEST` images of a class is not in it.
    """
    is_anomalous = np.asarray(labels, bool)
    found = {name: _of_numbers(is_anomalous, [one.get(name) for one in numbers]) for name in _names(numbers)}
    of_groups = [str(i) for i in range(len(labels))] if groups is None else groups
    for name in _names(columns):
        found[f"column {name}"] = _of_column(is_anomalous, [one.get(name, "") for one in columns], of_groups)
    return {name: area for name, area in found.items() if area is not None}


def _of_column(is_anomalous: BoolArray, cells: Sequence[str], groups: Sequence[str]) -> float | None:
    areas = (_of_numbers(is_anomalous, [_as_number(cell) for cell in cells]), _of_words(is_anomalous, cells, groups))
    return max((area for area in areas if area is not None), key=lambda area: abs(area - 0.5), default=None)


def _names(rows: Sequence[Mapping[str, object]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _of_numbers(is_anomalous: BoolArray, values: Sequence[float | None]) -> float | None:
    numbers = np.array([math.nan if value is None else value for value in values], np.float64)
    known = np.isfinite(numbers)
    return mann_whitney_separation(is_anomalous[known], numbers[known]) if _enough(is_anomalous[known]) else None


def _enough(is_anomalous: BoolArray) -> bool:
    n_anomalous = int(np.count_nonzero(is_anomalous))
    return min(n_anomalous, len(is_anomalous) - n_anomalous) >= FEWEST


def _of_words(is_anomalous: BoolArray, cells: Sequence[str], groups: Sequence[str]) -> float | None:
    """Return the ROC-AUC of the share of anomalous images with the same word, the two images of a pair left out.

    Every pair of an anomalous and a normal image is judged by the others (leave-pair-out, Airola et al. 2011, Comput.
    Stat. Data Anal. 55:1828): a word that occurs once tells nothing, nor does one of one group, such as a serial number
    of several images; two of one word tie.
    """
    if not _enough(is_anomalous):
        return None
    code = _words_of_several_groups(cells, groups)
    n, n_anomalous = np.bincount(code), np.bincount(code, weights=is_anomalous)
    n_normal, others = n - n_anomalous, np.maximum(n - 1, 1)
    overall = is_anomalous.mean()
    without_anomalous = np.where(n > 1, (n_anomalous - 1) / others, overall)  # as the anomalous image of a pair sees it
    without_normal = np.where(n > 1, n_anomalous / others, overall)
    shares, place = np.unique(np.concatenate([without_normal, without_anomalous]), return_inverse=True)
    normal = np.bincount(place[: len(n)], weights=n_normal, minlength=len(shares))
    anomalous = np.bincount(place[len(n) :], weights=n_anomalous, minlength=len(shares))
    ties = 0.5 * float(n_anomalous @ n_normal) / float(n_anomalous.sum() * n_normal.sum())
    return max(0.5, area_under_roc(ScoreCounts(normal, anomalous)) + ties)  # below, the words have told nothing


def _words_of_several_groups(cells: Sequence[str], groups: Sequence[str]) -> npt.NDArray[np.intp]:
    """Number the words; every image whose word occurs in its group alone gets a number of its own."""
    code, group = (np.unique(np.asarray(names, str), return_inverse=True)[1] for names in (cells, groups))
    n_groups = np.bincount(np.unique(np.stack([code, group]), axis=1)[0])  # (n_words,)
    own = len(n_groups) + np.arange(len(code))
    return np.unique(np.where(n_groups[code] > 1, code, own), return_inverse=True)[1]


def _as_number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def shortcut_warnings(areas: Mapping[str, float | None]) -> list[str]:
    """Return a sentence for each property that separates the classes by itself, the strongest first.

    >>> shortcut_warnings({"mean grey": 0.04, "sharpness": 0.61})
    ['mean grey alone separates the classes: 0.96 (anomalous is lower)']
    """
    strong = {name: max(area, 1 - area) for name, area in areas.items() if area is not None}
    texts = []
    for name, strength in sorted(strong.items(), key=lambda item: -item[1]):
        if strength > SHORTCUT_LIMIT:
            side = (
                ""
                if name.startswith("column ")
                else f" (anomalous is {'higher' if areas[name] == strength else 'lower'})"
            )
            texts.append(f"{name} alone separates the classes: {strength:.2f}{side}")
    return texts
