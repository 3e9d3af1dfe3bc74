"""What the bench writes: cells.csv, quality.json and quality.md."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from anomaly_ae.files import write_text
from anomaly_ae.threshold import normals_needed
from bench.summary import COMPARED, REFERENCE, Cell, Comparison, Spread, comparisons, figures, spreads

ONE_PERCENT = Fraction(1, 100)
CELL_HEAD = (
    *("data set", "variant", "seed", "n normal / anomalous", "image ROC-AUC", "image AP", "pixel ROC-AUC", "pixel AP"),
    *("pixel AP without", "AU-PRO 0.3", "AU-PRO 0.05", "small", "middle", "large", "smallest found px"),
    *("asked", "found", "sensitivity", "mean grey", "PCA", "split check", "fit s", "evaluate s"),
)


def write_tables(out: Path, cells: Sequence[Cell], notes: Iterable[str] = ()) -> None:
    """Write all three files; each appears whole or not at all."""
    compared = comparisons(cells)
    by_seed = spreads(cells)
    write_text(out / "cells.csv", cells_csv(cells))
    values = {
        "cells": cells,
        "over_seeds": [
            {"data": data, "variant": variant, "figures": {name: s._asdict() for name, s in found.items()}}
            for (data, variant), found in by_seed.items()
        ],
        f"against_{REFERENCE}": {v: {name: c._asdict() for name, c in found.items()} for v, found in compared.items()},
    }
    write_text(out / "quality.json", json.dumps(values, indent=1, allow_nan=False) + "\n")
    parts = ["# What the bench found", *notes, "## Cells", cells_table(cells), "## Over seeds", seeds_table(by_seed)]
    if compared:
        parts += [f"## Against {REFERENCE}", differences_table(compared)]
        parts += ["## With one data set left out", left_out_table(compared)]
    write_text(out / "quality.md", "\n\n".join(parts) + "\n")


def cells_csv(cells: Sequence[Cell]) -> str:
    """Return one line per cell, and every figure in a column of its own."""
    rows = [_csv_row(cell) for cell in cells]
    columns = sorted(dict.fromkeys(name for row in rows for name in row), key=lambda name: name.startswith("defect_"))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _csv_row(cell: Cell) -> dict[str, Any]:
    counts = cell["metrics"]["counts"]
    return {
        **{name: cell[name] for name in ("data", "manifest", "variant", "scoring_only_of", "seed", "preset")},
        "n_normal": counts["normal"],
        "n_anomalous": counts["anomalous"],
        "n_failed": counts["failed"],
        "rate_asked": cell["metrics"]["image"]["at_threshold"][0]["rate_asked"],
        **figures(cell),
        "without_defects": " ".join(cell["without_defects"]),
        **{f"fit_{name}": value for name, value in cell["fit"].items()},
        **{f"evaluate_{name}": value for name, value in cell["evaluate"].items()},
        **{name: cell[name] for name in ("n_parameters", "n_calibration", "weights_sha256", "model_sha256")},
        **{f"version_{name}": value for name, value in cell["versions"].items()},
        "data_sha256": cell["made_of"]["data"],
    }


def cells_table(cells: Sequence[Cell]) -> str:
    """Return one line per cell with what people look at first."""
    return _table(CELL_HEAD, (_cell_row(cell) for cell in cells))


def _cell_row(cell: Cell) -> list[str]:
    metrics = cell["metrics"]
    image, counts, pixel = metrics["image"], metrics["counts"], metrics["pixel"]
    rates = image["at_threshold"][0]
    check = cell["split_check"]
    return [
        cell["data"],
        f"{cell['variant']} ({cell['preset']})",
        str(cell["seed"]),
        f"{counts['normal']} / {counts['anomalous']}",
        _figure(image["roc_auc"]),
        _figure(image["average_precision"]),
        *(_number(pixel[name]["value"]) for name in ("roc_auc", "average_precision")),
        _without(cell),
        *(_number(pixel["au_pro"][limit]["value"]) for limit in ("0.3", "0.05")),
        *(_size(cell["sizes"].get(name)) for name in ("small", "middle", "large")),
        str(cell["smallest_found_px"] or "-"),
        _asked(rates["rate_asked"], counts),
        _figure(rates["false_alarm_rate"]) + _band(rates),
        _figure(rates["sensitivity"]),
        _figure(metrics["baselines"]["mean grey"]),
        _figure(metrics["baselines"]["PCA residual"]),
        f"{check['asked']:.2f} -> {check['found_mean']:.3f}" if "asked" in check else check["reason"],
        f"{cell['fit']['seconds']:.0f}",
        f"{cell['evaluate']['seconds']:.0f}",
    ]


def _without(cell: Cell) -> str:
    names = ", ".join(cell["without_defects"])
    return _number(cell["pixel_average_precision_without"]["value"]) + f" ({names})" if names else "-"


def _size(found: Mapping[str, Any] | None) -> str:
    """Return the image ROC-AUC of a third of the defects, and its limits."""
    return f"{_number(found['image_roc_auc']['value'])} ({found['min_px']} to {found['max_px']} px)" if found else "-"


def _asked(rate: str, counts: Mapping[str, int]) -> str:
    """Return the asked rate, and what 1 % would need where the calibration normals do not support it."""
    noun = "groups" if counts["groups"] < counts["normal"] + counts["anomalous"] else "n"
    return rate if Fraction(rate) <= ONE_PERCENT else f"{rate}; 1 % needs {noun} >= {normals_needed(ONE_PERCENT)}"


def _band(rates: Mapping[str, Any]) -> str:
    """Return where the rate found on so many normals is expected, where images are independent."""
    expected = rates["false_alarm_band"]
    return f", expected {expected[0]:.3f} to {expected[1]:.3f}" if expected else ""


def _figure(metric: Mapping[str, Any]) -> str:
    """Return a value with its first interval, or why there is none."""
    if metric["value"] is None:
        return str(metric["reason"])
    first = next(iter(metric["intervals"]), None)
    return f"{metric['value']:.3f}" + (f" [{first['low']:.2f}, {first['high']:.2f}]" if first else "")


def seeds_table(by_seed: Mapping[tuple[str, str], Mapping[str, Spread]]) -> str:
    """Return mean and spread over the seeds, a line per data set and variant."""
    rows = (
        [data, variant, str(max(s.n for s in found.values())), *(_spread(s) for s in found.values())]
        for (data, variant), found in by_seed.items()
    )
    return _table(("data set", "variant", "seeds", *COMPARED.values()), rows)


def _spread(found: Spread) -> str:
    return _number(found.mean) + (f" ± {found.sd:.3f}" if found.sd is not None else "")


def differences_table(compared: Mapping[str, Mapping[str, Comparison]]) -> str:
    """Return the mean difference over the data sets, and on how many it is above 0."""

    def entry(one: Comparison | None) -> str:
        return f"{one.mean:+.3f} ({one.n_improved} of {len(one.by_set)} better)" if one else "-"

    rows = ([variant, *(entry(found.get(name)) for name in COMPARED)] for variant, found in compared.items())
    return _table(("variant", *COMPARED.values()), rows)


def left_out_table(compared: Mapping[str, Mapping[str, Comparison]]) -> str:
    """Return for each data set the difference on it, and the mean difference on all others."""
    rows = []
    for variant, found in compared.items():
        for data in sorted({data for one in found.values() for data in one.by_set}):
            entries = (_left_out(found.get(name), data) for name in COMPARED)
            rows.append([variant, data, *entries])
    return "Difference on the data set, and in brackets the mean on all others.\n\n" + _table(
        ("variant", "data set", *COMPARED.values()), rows
    )


def _left_out(one: Comparison | None, data: str) -> str:
    if one is None or data not in one.by_set:
        return "-"
    others = one.on_others[data]
    return f"{one.by_set[data]:+.3f} ({'-' if others is None else f'{others:+.3f}'})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
