"""A RUN folder from scores alone, in the real format: decided, and written, by the functions that `evaluate` uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from anomaly_ae.calibration import calibration_scores, thresholds_from
from anomaly_ae.results import FORMAT, decide_rows, unit_rows, write_json, write_tables

CALIBRATION = np.linspace(0.0, 1.0, 99)  # rate 1 %: the threshold is just above 1


def image(name: str, score: float, label: str = "normal", **changes: Any) -> dict[str, Any]:
    """One row of ``scores.jsonl`` before it is decided."""
    values: dict[str, Any] = {
        "format": FORMAT, "id": name, "path": name, "frame": 0, "label": label, "defect": "", "unit": name,
        "group": name, "time_utc": "2025-01-02T03:04:05.678+00:00", "decision": 0, "score": float(score),
        "threshold": 0.0, "display": 0.0, "p_value": 1.0, "pixel_threshold": 1.0, "n_regions": 0,
        "largest_region_px": 0, "milliseconds": 1.5, "image_sha256": f"sha of {name}", "weights_sha256": "cd" * 32,
        "thresholds_sha256": "", "version": "0", "extra": {}, "regions": [],
        "baselines": {"mean grey": 0.5, "PCA residual": float(score)},
    }  # fmt: skip
    return values | changes


def images(normal: Any, anomalous: Any, **changes: Any) -> list[dict[str, Any]]:
    """Rows n0, n1, ... and a0, a1, ... with these scores."""
    rows = [image(f"n{i}", score, **changes) for i, score in enumerate(normal)]
    return rows + [image(f"a{i}", score, "anomalous", defect="dent", **changes) for i, score in enumerate(anomalous)]


def write_run(
    folder: Path,
    rows: list[dict[str, Any]],
    *,
    seed: int | None = 0,
    settings: dict[str, Any] | None = None,
    failed: tuple[str, ...] = (),
    rate: str | None = None,
    pixel_ap: float | None = None,
    **info: Any,
) -> Path:
    """Write the tables, ``run.json`` with the keys of ``info``, and ``metrics.json`` where pixels have a figure."""
    folder.mkdir(parents=True)
    names = [str(i) for i in range(len(CALIBRATION))]
    scores = calibration_scores(CALIBRATION, CALIBRATION, names, names)
    thresholds = thresholds_from(scores, rate)
    rows = decide_rows(rows, scores, thresholds)
    units = unit_rows(rows, {name: name for name in failed}, scores, thresholds)
    reasons = [
        {"format": FORMAT, "id": name, "path": name, "frame": 0, "reason": f"{name}: truncated", "unit": name,
         "group": name, "time_utc": "2025-01-02T03:04:05Z", "decision": 9}
        for name in failed
    ]  # fmt: skip
    write_tables(folder, rows, units, reasons)
    made = {"n_train": 50, "n_validation": 10, "n_calibration": len(CALIBRATION)}
    known = {} if settings is None else {"settings": {"seed": seed, **settings}}
    values = {
        "format": FORMAT, "what_if": False, "aborted": False, "seed": seed, "model": made | known,
        "threshold": thresholds.as_json(), "calibration": {**scores.as_json(), "median": scores.median},
        "data": {"name": "parts", "warnings": []},
    }  # fmt: skip
    write_json(folder / "run.json", values | info)
    if pixel_ap is not None:  # of the figures, only what a comparison cannot compute from the rows
        pixel = {"average_precision": {"value": pixel_ap, "n_normal": 9, "n_anomalous": 3, "intervals": []}}
        write_json(folder / "metrics.json", {"format": FORMAT, "pixel": pixel})
    return folder
