"""Arithmetic over cells: figures by name, mean and spread over seeds, differences paired by data set and seed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

REFERENCE = "default"
COMPARED = {
    "image_roc_auc": "image ROC-AUC",
    "image_average_precision": "image AP",
    "pixel_roc_auc": "pixel ROC-AUC",
    "pixel_average_precision": "pixel AP",
    "pixel_average_precision_without": "pixel AP without",
    "au_pro_0.3": "AU-PRO 0.3",
    "au_pro_0.05": "AU-PRO 0.05",
    "sensitivity": "sensitivity",
}
"""The figures that the tables compare, and what they are called there."""

Cell = Mapping[str, Any]
"""What ``cell.json`` holds."""


class Spread(NamedTuple):
    """Mean over seeds and sample deviation; None where there is no seed, or only one."""

    mean: float | None
    sd: float | None
    n: int


class Comparison(NamedTuple):
    """One figure of a variant against the reference; differences are paired by data set and seed.

    ``by_set`` holds the mean difference over the seeds of each data set, ``on_others`` the mean of the differences on
    all other data sets: what one would have known before that set was seen.
    """

    mean: float
    n_improved: int
    by_set: dict[str, float]
    on_others: dict[str, float | None]


def figures(cell: Cell) -> dict[str, float | None]:
    """Return every figure of a cell by a flat name: the columns of cells.csv."""
    metrics = cell["metrics"]
    image, pixel = metrics["image"], metrics["pixel"]
    rates = image["at_threshold"][0]
    check = cell["split_check"]
    flat = {
        **_with_interval("image_roc_auc", image["roc_auc"]),
        **_with_interval("image_average_precision", image["average_precision"]),
        "pixel_roc_auc": pixel["roc_auc"]["value"],
        "pixel_average_precision": pixel["average_precision"]["value"],
        "pixel_average_precision_without": cell["pixel_average_precision_without"]["value"],
        **{f"au_pro_{limit}": figure["value"] for limit, figure in pixel["au_pro"].items()},
        **_with_interval("sensitivity", rates["sensitivity"]),
        **_with_interval("false_alarm_rate", rates["false_alarm_rate"]),
        "split_check_asked": check.get("asked"),
        "split_check_found": check.get("found_mean"),
        "smallest_found_px": cell["smallest_found_px"],
        **{f"baseline_{n.replace(' ', '_')}_image_roc_auc": f["value"] for n, f in metrics["baselines"].items()},
    }
    for name, found in cell["sizes"].items():
        flat |= {f"size_{name}_{key}": found[key] for key in ("min_px", "max_px", "n_anomalous")}
        flat[f"size_{name}_image_roc_auc"] = found["image_roc_auc"]["value"]
    for name, found in cell["defects"].items():
        flat |= {f"defect_{name}_{key}": figure["value"] for key, figure in found.items()}
    return flat


def _with_interval(name: str, figure: Mapping[str, Any]) -> dict[str, float | None]:
    """Return a figure and the ends of its first interval."""
    first = next(iter(figure["intervals"]), None) or {"low": None, "high": None}
    return {name: figure["value"], f"{name}_low": first["low"], f"{name}_high": first["high"]}


def spreads(cells: Sequence[Cell]) -> dict[tuple[str, str], dict[str, Spread]]:
    """Return mean and spread over the seeds by (data set, variant) and figure."""
    groups: dict[tuple[str, str], list[dict[str, float | None]]] = defaultdict(list)
    for cell in cells:
        groups[cell["data"], cell["variant"]].append(figures(cell))
    return {key: {name: spread([f[name] for f in found]) for name in COMPARED} for key, found in groups.items()}


def spread(values: Sequence[float | None]) -> Spread:
    """Return mean and sample deviation of the values that are there.

    >>> spread([1.0, 3.0, None])
    Spread(mean=2.0, sd=1.4142135623730951, n=2)
    """
    known = [value for value in values if value is not None]
    return Spread(fmean(known) if known else None, stdev(known) if len(known) > 1 else None, len(known))


def comparisons(cells: Sequence[Cell]) -> dict[str, dict[str, Comparison]]:
    """Return by variant and figure what differs from the reference; nothing where no pair of cells has the figure."""
    found = {(cell["data"], cell["variant"], cell["seed"]): figures(cell) for cell in cells}
    variants = sorted({variant for _, variant, _ in found} - {REFERENCE})
    compared = {}
    for variant in variants:
        pairs = [
            (data, own, found[data, REFERENCE, seed])
            for (data, name, seed), own in found.items()
            if name == variant and (data, REFERENCE, seed) in found
        ]
        by_figure = {figure: [(data, own[figure], other[figure]) for data, own, other in pairs] for figure in COMPARED}
        several = {figure: compare(values) for figure, values in by_figure.items()}
        compared[variant] = {figure: one for figure, one in several.items() if one is not None}
    return compared


def compare(pairs: Sequence[tuple[str, float | None, float | None]]) -> Comparison | None:
    """Compare pairs of (data set, value of the variant, value of the reference); every data set weighs the same."""
    differences: dict[str, list[float]] = defaultdict(list)
    for data, own, reference in pairs:
        if own is not None and reference is not None:
            differences[data].append(own - reference)
    if not differences:
        return None
    by_set = {data: fmean(values) for data, values in sorted(differences.items())}
    total = math.fsum(by_set.values())
    n_others = len(by_set) - 1
    on_others = {data: (total - own) / n_others if n_others else None for data, own in by_set.items()}
    return Comparison(total / len(by_set), sum(value > 0 for value in by_set.values()), by_set, on_others)
