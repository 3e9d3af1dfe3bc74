"""A RUN folder as `evaluate` and `score` leave it, made of synthetic textures with blobs: for tests of the report."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from anomaly_ae.report import PictureWriter
from anomaly_ae.results import UNIT_COLUMNS
from anomaly_ae.results.beside import level_figures, size_figures
from anomaly_ae.threshold import manual_threshold

EVIL = "<script>alert(1)</script>"
EVIL_ATTRIBUTE = "\"'><img src=x onerror=alert(2)>"
DEFECTS = ("blowhole", "crack", "fray", "break")
STRENGTH = {"blowhole": 3.6, "crack": 2.2, "fray": 6.0, "break": 5.0}
THRESHOLD, MEDIAN = 5.3, 2.1
SHORTCUTS = {"mean": 0.51, "deviation": 0.62, "sharpness": 0.83, "size": 0.5, "file size": 0.55}
COLUMNS = (
    *("format", "id", "path", "frame", "label", "defect", "unit", "group", "time_utc"),
    *("decision", "score", "threshold", "display", "p_value", "pixel_threshold", "n_regions"),
    *("largest_region_px", "milliseconds", "image_sha256", "weights_sha256", "thresholds_sha256", "version", "station"),
)


def build(
    folder: Path,
    n_images: int = 40,
    labelled: bool = True,
    evil: bool = False,
    pictures: bool = True,
    size_px: int = 224,
    with_units: bool = False,
    seed: int = 0,
    further: bool = False,
) -> Path:
    """Write a RUN of ``n_images``; about 60 % are anomalous. Without ``further`` its figures are those of old runs."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [_row(rng, i, labelled, n_images, with_units) for i in range(n_images)]
    if evil:
        rows[0] |= {"id": EVIL, "defect": EVIL if rows[0]["label"] else "", "station": EVIL_ATTRIBUTE, "score": 9.75}
        rows[1] |= {"id": EVIL_ATTRIBUTE, "path": f"</script>{EVIL}", "score": 1.25}
        rows[:2] = [row | _decided(row["score"]) for row in rows[:2]]
    _write_csv(folder / "scores.csv", COLUMNS, rows)
    _write_csv(folder / "failures.csv", ("id", "path", "reason"), _failures(evil))
    unit_rows = _unit_rows(rows) if with_units else []
    _write_csv(folder / "units.csv", UNIT_COLUMNS, unit_rows)
    calibration = np.sort(_normal_scores(rng, 140))
    _write_json(folder / "run.json", _info(calibration, labelled, evil, with_units))
    if labelled:
        metrics = _metrics(rows, unit_rows)
        _write_json(folder / "metrics.json", _with_further(metrics, rows) if further else metrics)
    if pictures:
        _write_pictures(folder / "pictures.npz", rng, rows, size_px)
    return folder


def auc(normal: np.ndarray, anomalous: np.ndarray) -> float:
    """Share of pairs in the right order, ties half."""
    difference = anomalous[:, None] - normal[None]
    return float(np.mean((difference > 0) + 0.5 * (difference == 0)))


def wilson(k: int, n: int) -> tuple[float, float]:
    """95 % Wilson score interval."""
    z, share = 1.96, k / n
    middle, half = share + z * z / 2 / n, z * math.sqrt(share * (1 - share) / n + z * z / 4 / n / n)
    return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))


def _normal_scores(rng: np.random.Generator, n: int) -> np.ndarray:
    return 1.2 + rng.gamma(4.0, 0.26, n)


def _row(rng: np.random.Generator, i: int, labelled: bool, n_images: int, with_units: bool) -> dict[str, Any]:
    is_anomalous = i % 5 in (0, 2, 4)
    defect = DEFECTS[i // 2 % len(DEFECTS)] if is_anomalous else ""
    score = float(_normal_scores(rng, 1)[0])
    if is_anomalous:
        score += float(rng.gamma(2.6, STRENGTH[defect] / 2))
    name = f"test/{defect or 'good'}/exp{i % 7}_num_{38_000 + 37 * i}.png"
    row = {
        "format": 1, "id": name, "path": name, "frame": 0, "label": ("anomalous" if is_anomalous else "normal"),
        "defect": defect, "unit": f"part-{i // 10 * 2 + is_anomalous}" if with_units else name, "group": f"lot-{i % 7}",
        "time_utc": "2025-11-22T14:05:11Z", "score": score,
        "pixel_threshold": THRESHOLD, "milliseconds": 41.5, "image_sha256": "ab" * 32,
        "weights_sha256": "cd" * 32, "thresholds_sha256": "ef" * 32, "version": "0.1.0", "station": "AB"[i % 2],
    }  # fmt: skip
    return row | _decided(score) | ({} if labelled else {"label": "", "defect": ""})


def _decided(score: float) -> dict[str, Any]:
    return {
        "decision": "anomalous" if score >= THRESHOLD else "normal",
        "threshold": THRESHOLD,
        "display": (score - MEDIAN) / (THRESHOLD - MEDIAN),
        "p_value": max(1 / 141, min(1.0, math.exp(-(score - 1.2) * 1.1))),
        "n_regions": int(score >= THRESHOLD),
        "largest_region_px": 210 if score >= THRESHOLD else "",
    }


def _unit_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    units: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        units.setdefault(row["unit"], []).append(row)
    result = []
    for name, members in units.items():
        top = max(members, key=lambda row: row["score"])
        kept = ("group", "label", "decision", "score", "threshold", "display", "p_value")
        result.append({"unit": name, **{key: top[key] for key in kept}, "n_images": len(members)})
    return result


def _failures(evil: bool) -> list[dict[str, str]]:
    name = "test/good/exp1_num_2.png"
    rows = [{"id": name, "path": name, "reason": "truncated after 1,024 of 40,112 bytes"}]
    return [*rows, {"id": EVIL, "path": EVIL, "reason": EVIL_ATTRIBUTE}] if evil else rows


def _threshold(noun: str) -> dict[str, Any]:
    promise = f"False-alarm rate 1 % on average over calibrations; {noun}s are taken as independent (140 {noun}s)."
    return {
        "value": THRESHOLD, "rule": "false_alarm_rate", "rate": "1/100", "confidence": None,
        "n": 140, "n_groups": None, "rank": 140, "promise": promise,
    }  # fmt: skip


def _info(calibration: np.ndarray, labelled: bool, evil: bool, with_units: bool) -> dict[str, Any]:
    warnings = ["sharpness alone separates the classes: 0.83 (anomalous is higher)"]
    return {
        "format": 1, "tool": "anomaly_ae", "version": "0.1.0", "created_utc": "2025-11-22T14:05:40Z",
        "command": "evaluate" if labelled else "score", "seconds": 48.21, "device": "cpu", "seed": 0,
        "model": {
            "name": "tiles.safetensors", "sha256": "12" * 32, "weights_sha256": "cd" * 32, "preset": "default",
            "preset_reason": "grey images of one size without a fixed position", "architecture": "unet",
            "n_parameters": 512_340, "n_train": 500, "n_validation": 60, "n_calibration": 140, "steps": 3000,
            "resolutions": ["1", "1/2", "1/4"],
            "trained_utc": "2025-11-21T09:12:00Z", "working_scale": "1.0 (300 x 300 px as they are)",
            "smallest_defect_px": 3.0, "standardise": "context", "error_measures": {"l1": 0.5, "gms": 0.5},
        },
        "threshold": {
            "image": _threshold("image"), "unit": _threshold("unit") if with_units else None,
            "pixel": _threshold("image"),
        },
        "calibration": {
            "image": calibration.tolist(), "pixel": [MEDIAN], "image_group": None, "median": MEDIAN
        },
        "data": {
            "name": "magnetic_tile/final.csv",
            "warnings": [*warnings, EVIL] if evil else warnings if labelled else [],
            "shortcuts": dict(SHORTCUTS) if labelled else {},
        },
    }  # fmt: skip


def _baselines() -> dict[str, Any]:
    def areas(roc_auc: float, average_precision: float) -> dict[str, Any]:
        return {
            "roc_auc": _metric(roc_auc, 100, 150, (roc_auc - 0.05, roc_auc + 0.05), "DeLong, 95 %"),
            "average_precision": _metric(average_precision, 100, 150, None, ""),
        }

    return {"mean grey": areas(0.512, 0.613), "PCA residual": areas(0.741, 0.777)}


def _metric(
    value: float | None,
    n_normal: int,
    n_anomalous: int,
    limits: tuple[float, float] | None,
    method: str,
    reason: str = "",
) -> dict[str, Any]:
    low_high = [] if limits is None else [{"low": limits[0], "high": limits[1], "method": method, "unit": "image"}]
    return {
        "value": value, "n_normal": n_normal, "n_anomalous": n_anomalous, "intervals": low_high, "reason": reason
    }  # fmt: skip


def _scores_of(rows: list[dict[str, Any]], label: str) -> np.ndarray:
    return np.array([row["score"] for row in rows if row["label"] == label])


def _level(rows: list[dict[str, Any]], normal: np.ndarray | None = None) -> dict[str, Any]:
    normal = _scores_of(rows, "normal") if normal is None else normal
    anomalous = _scores_of(rows, "anomalous")
    if not (normal.size and anomalous.size):
        nothing = _metric(None, normal.size, anomalous.size, None, "", "one class only")
        return {"roc_auc": nothing, "average_precision": nothing, "baselines": _baselines(), "at_threshold": []}
    value, sizes = auc(normal, anomalous), (normal.size, anomalous.size)
    half = 1.3 * math.sqrt(value * (1 - value) / min(sizes))
    around = (max(0.0, value - half), min(1.0, value + half))
    flagged, found = int((normal >= THRESHOLD).sum()), int((anomalous >= THRESHOLD).sum())
    wilson_text = "Wilson, 95 %"
    return {
        "roc_auc": _metric(value, *sizes, around, "DeLong, 95 %"),
        "average_precision": _metric(0.98 * value, *sizes, around, "bootstrap, 95 %"),
        "baselines": _baselines(),
        "at_threshold": [{
            "threshold": THRESHOLD, "rate_asked": "1/100", "promise": _threshold("image")["promise"],
            "false_alarm_rate": _metric(flagged / sizes[0], sizes[0], 0, wilson(flagged, sizes[0]), wilson_text),
            "sensitivity": _metric(found / sizes[1], 0, sizes[1], wilson(found, sizes[1]), wilson_text),
            "specificity": _metric(
                1 - flagged / sizes[0], sizes[0], 0, wilson(sizes[0] - flagged, sizes[0]), wilson_text
            ),
            "false_alarm_band": [0.0004, 0.0211], "false_alarm_band_reason": "",
        }],
    }  # fmt: skip


def _metrics(rows: list[dict[str, Any]], unit_rows: list[dict[str, Any]]) -> dict[str, Any]:
    normal, anomalous = _scores_of(rows, "normal"), _scores_of(rows, "anomalous")
    sizes = (normal.size, anomalous.size)
    pixel = {
        "roc_auc": _metric(0.934, *sizes, (0.91, 0.95), "bootstrap over images, 95 %"),
        "average_precision": _metric(0.412, *sizes, (0.36, 0.46), "bootstrap over images, 95 %"),
        "au_pro": {
            "0.3": _metric(0.846, *sizes, (0.81, 0.88), "bootstrap over images, 95 %"),
            "0.05": _metric(0.553, *sizes, None, "", ""),
        },
    }
    defects = sorted({row["defect"] for row in rows} - {""})
    stations = sorted({row["station"] for row in rows})
    return {
        "format": 1, "model": "tiles.safetensors", "data": "magnetic_tile/final.csv",
        "counts": {"normal": sizes[0], "anomalous": sizes[1], "failed": 1, "groups": 7},
        "seconds": 48.21, "image": _level(rows), "unit": _level(unit_rows) if unit_rows else _no_units(),
        "pixel": pixel,
        "per_defect": {name: _level([r for r in rows if r["defect"] == name], normal) for name in defects},
        "by": {"station": {name: _level([r for r in rows if r["station"] == name]) for name in stations}},
    }  # fmt: skip


def _with_further(metrics: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Add what runs of today have: sorting, streams, sizes, shortcuts, agreement with masks."""
    limit = manual_threshold(THRESHOLD)
    sized = [row | {"mask_px": 3 * 2 ** (i % 12)} for i, row in enumerate(rows)]
    metrics["image"] |= level_figures(rows, limit, None, (0.001, 0.1), "image")
    metrics["image"]["by_defect_size"] = size_figures(sized, limit)
    parts = [metrics["image"], *metrics["per_defect"].values(), *metrics["by"]["station"].values()]
    for i, part in enumerate(parts):
        part["shortcuts"] = {"mean grey": 0.45, "sharpness": 0.3 + 0.01 * i}
    count = metrics["counts"]["normal"], metrics["counts"]["anomalous"]
    dice = _metric(0.52, *count, (0.44, 0.6), "Student's t")
    metrics["pixel"] |= {
        "aupimo": _metric(0.37, *count, (0.3, 0.44), "Student's t"),
        "fpr_at_95_sensitivity": _metric(0.21, *count, None, ""),
        "oracle_dice": _metric(0.61, *count, None, "", "oracle: the threshold is chosen on these masks"),
        "at_threshold": [
            {"threshold": THRESHOLD, "dice": dice, "iou": dice, "dice_per_image": dice, "iou_per_image": dice}
        ],
    }
    return metrics


def _no_units() -> dict[str, Any]:
    nothing = _metric(None, 0, 0, None, "", "every unit is one image")
    return {"roc_auc": nothing, "average_precision": nothing, "baselines": {}, "at_threshold": []}


def _write_pictures(path: Path, rng: np.random.Generator, rows: list[dict[str, Any]], size_px: int) -> None:
    writer = PictureWriter(len(rows))
    fields = [_fields(rng, size_px) for _ in range(12)]
    for row in rows:
        clean, image, display, mask = _scene(rng, fields, row["score"], size_px)
        writer.add(
            row["id"], row["label"], row["score"], image, display, clean, mask if row["label"] == "anomalous" else None
        )
    writer.write(path)


def _smooth(field: np.ndarray, sigma_y: float, sigma_x: float) -> np.ndarray:
    """Gaussian smoothing on a torus, brought to mean 0 and deviation 1."""
    fy, fx = np.fft.fftfreq(field.shape[0])[:, None], np.fft.rfftfreq(field.shape[1])[None]
    damping = np.exp(-2 * np.pi**2 * ((sigma_y * fy) ** 2 + (sigma_x * fx) ** 2))
    smooth = np.fft.irfft2(np.fft.rfft2(field) * damping, s=field.shape)
    return (smooth - smooth.mean()) / smooth.std()


def _fields(rng: np.random.Generator, size_px: int) -> np.ndarray:
    """A brushed grey surface without its fine grain, the same with it, and two plain random fields."""
    noise = rng.standard_normal((5, size_px, size_px))
    broad = 0.42 + 0.05 * _smooth(noise[0], 22, 30) + 0.035 * _smooth(noise[1], 9, 1.2)
    return np.stack(
        [broad, broad + 0.02 * _smooth(noise[2], 1.5, 0.4), _smooth(noise[3], 3, 3), _smooth(noise[4], 4, 4)]
    )


def _scene(rng: np.random.Generator, fields: list[np.ndarray], score: float, size_px: int) -> Any:
    """Clean image, image, display map, mask. The map's maximum is the score's place on the display scale."""
    shift = tuple(rng.integers(0, size_px, 2))
    clean, image, background, rough = np.roll(fields[rng.integers(len(fields))], shift, (1, 2))
    y, x = np.mgrid[:size_px, :size_px] / size_px
    centre_y, centre_x = rng.uniform(0.2, 0.8, 2)
    radius_y, radius_x, angle = rng.uniform(0.015, 0.06), rng.uniform(0.03, 0.12), rng.uniform(0, np.pi)
    along = (y - centre_y) * np.sin(angle) + (x - centre_x) * np.cos(angle)
    across = (y - centre_y) * np.cos(angle) - (x - centre_x) * np.sin(angle)
    distance = (across / radius_y) ** 2 + (along / radius_x) ** 2 + 0.25 * rough
    top = (score - MEDIAN) / (THRESHOLD - MEDIAN)
    display = -1.9 + 0.45 * background / max(background.max(), 1)
    display += (top + 1.9) * np.exp(-0.5 * np.maximum(distance, 0) / 0.7)
    display = np.minimum(display, top)
    display.flat[display.argmax()] = top
    strength = min(max(score - 3, 0) / 22, 0.32)
    image = image - strength / (1 + np.exp(np.clip(6 * (distance - 1), -50, 50)))
    return clean[None], image[None], display, distance < 1


def _write_csv(path: Path, columns: Any, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
