"""`Run` -> ``report.html``: one file without any address outside itself."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from anomaly_ae.errors import DataError
from anomaly_ae.files import write_lines, write_text
from anomaly_ae.records import ANOMALOUS_LABEL, NORMAL_LABEL
from anomaly_ae.report import figures, sheets, words
from anomaly_ae.report.colour import DISPLAY_HIGH, DISPLAY_LOW, overlay_lut
from anomaly_ae.report.methods import METHODS_NAME, methods_text
from anomaly_ae.report.panels import DetailPanels, detail_panels
from anomaly_ae.report.pictures import MAX_GALLERY_IMAGES
from anomaly_ae.report.run import Row, Run, read_run
from anomaly_ae.results.tables import Table
from anomaly_ae.words import n_of

REPORT_NAME = "report.html"
_HERE = Path(__file__).parent
_N_FALSE_ALARMS, _N_MISSES, _N_HITS, _N_HIGHEST = 10, 10, 10, 30


def write_report(run_dir: Path, tables: tuple[Table, Table] | None = None) -> Path:
    """Render ``report.html`` of a RUN folder and, where there are figures, ``methods.md`` beside it.

    Parameters
    ----------
    run_dir : Path
        Holds ``run.json``, ``scores.csv``, ``units.csv`` and ``failures.csv``; of `evaluate` ``metrics.json``, too.
        Where there is ``pictures.npz``, the page shows it.
    tables : two of Table, or None
        Scores and units as they were just written there: spares reading them.

    Returns
    -------
    Path
        Of the page. It needs no network and refuses any.

    Raises
    ------
    DataError
        When the folder is no RUN, of another format, or damaged.
    OutputError
        When the page cannot be written.
    """
    run = read_run(Path(run_dir), tables)
    path = run.folder / REPORT_NAME
    with _refusing_incomplete(run):
        write_lines(path, _page_parts(run))
        if run.metrics is not None:
            write_text(run.folder / METHODS_NAME, methods_text(run))
    return path


def _page_parts(run: Run) -> Iterator[str]:
    """Return the page in parts: the whole would be in memory several times."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update(
        number=words.number,
        percent=words.percent,
        ratio=words.ratio,
        n_of=n_of,
        whole=words.whole,
        lesion_free=words.lesion_free,
        overlap_place=words.overlap_place,
        asked_rate=words.asked_rate,
        interval=words.interval,
        interval_notes=words.interval_notes,
        rounded=words.rounded,
        per_thousand=words.per_thousand,
        strongest_shortcut=words.strongest_shortcut,
        spark=figures.interval_svg,
    )
    return environment.get_template("template.html.j2").generate(_context(run))


@contextmanager
def _refusing_incomplete(run: Run) -> Iterator[None]:
    from jinja2 import UndefinedError

    try:
        yield
    except (KeyError, UndefinedError) as error:
        raise DataError(f"{run.folder} is incomplete", str(error), "evaluate again with this version") from error


def _context(run: Run) -> dict[str, Any]:
    css, script = (_read(name) for name in ("report.css", "report.js"))
    panels = detail_panels(_details(run))
    gallery, pictures = _gallery_rows(run), run.pictures
    return {
        "run": run,
        "info": run.info,
        "noun": run.noun,
        "metrics": run.metrics,
        "headline": words.headline(run),
        "origin": words.origin(run),
        "region_rules": words.region_rules(run),
        "shortcuts": words.shortcuts(run),
        "warnings": list(words.warnings(run)),
        "css": Markup(css),  # noqa: S704  # both files are our own
        "script": Markup(script),  # noqa: S704
        "policy": _content_security_policy(css, script),
        "colour_bar": sheets.colour_bar(),
        "figures": _figures(run),
        "interval_methods": _interval_methods(run.metrics or {}),
        "card_groups": _card_groups(run, {p.id: (i, p) for i, p in enumerate(panels)}),
        "gallery_note": _gallery_note(run, gallery),
        "filters": _filters(gallery),
        "thumbnail_sheets": (sheets.address("jpeg", sheet) for sheet in (pictures.thumbnails if pictures else ())),
        "map_sheets": (sheets.address("png", sheet) for sheet in (pictures.maps if pictures else ())),
        "data": embedded_json(_page_data(run, gallery, {p.id: i for i, p in enumerate(panels)})),
    }


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _content_security_policy(css: str, script: str) -> str:
    """Allow this very style and script, pictures inside the page, and nothing else."""
    style, code = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (css, script))
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{style}'; script-src 'sha256-{code}'; "
        "base-uri 'none'; form-action 'none'"
    )


def embedded_json(value: object) -> Markup:
    """Return JSON that cannot end the script element it stands in.

    >>> embedded_json(["</script>"])
    Markup('["\\\\u003c/script>"]')
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))  # noqa: S704


def _details(run: Run) -> Sequence[Any]:
    known = {row.id for row in run.rows}
    return [detail for detail in run.pictures.details if detail.id in known] if run.pictures else []


def _scores(rows: Iterable[Row], label: str) -> figures.Floats:
    return np.array([row.score for row in rows if row.label == label and math.isfinite(row.score)], dtype=np.float64)


def _figures(run: Run) -> dict[str, Markup]:
    """Return the plots by name: the histogram always, the curves where both classes are there."""
    plots = {"histogram": _histogram(run)}
    levels = {"images": run.rows, "units": run.units if run.noun == "unit" else ()}
    classes = {name: (_scores(rows, NORMAL_LABEL), _scores(rows, ANOMALOUS_LABEL)) for name, rows in levels.items()}
    drawn = {name: pair for name, pair in classes.items() if all(scores.size for scores in pair)}
    if sizes := _sizes(run):
        plots["sizes"] = figures.sizes_svg("Sensitivity by size of the defect", sizes)
    if "images" not in drawn:
        return plots
    normal, anomalous = drawn["images"]
    at_roc, at_pr = _operating_points(run.threshold("image")["value"], normal, anomalous)
    share = anomalous.size / (normal.size + anomalous.size)
    plots["roc"] = figures.curve_svg(
        "ROC curve",
        ("false-alarm rate", "sensitivity"),
        [(name, figures.roc_points(*pair)) for name, pair in drawn.items()],
        chance=(0, 1),
        operating_point=at_roc,
    )
    plots["pr"] = figures.curve_svg(
        "Precision-recall curve",
        ("recall (sensitivity)", "precision"),
        [(name, figures.pr_points(*pair)) for name, pair in drawn.items()],
        chance=(share, share),
        operating_point=at_pr,
    )
    return plots


def _operating_points(threshold: float | None, normal: figures.Floats, anomalous: figures.Floats) -> Any:
    """Return (false-alarm rate, sensitivity) and (sensitivity, precision) at the threshold; None where unknown."""
    if threshold is None:
        return None, None
    flagged, found = (float(np.mean(scores >= threshold)) for scores in (normal, anomalous))
    n_flagged, n_found = flagged * normal.size, found * anomalous.size
    precision = n_found / (n_found + n_flagged) if n_found + n_flagged else None
    return (flagged, found), None if precision is None else (found, precision)


def _sizes(run: Run) -> list[tuple[int, int, int, float, float, float]]:
    """Return the classes of `figures.sizes_svg`; empty where sizes are not known, or all alike."""
    classes = run.metrics["image"].get("by_defect_size", []) if run.metrics else []
    found = []
    for one in classes:
        metric = one["sensitivity"]
        limits = (metric["intervals"] or [{"low": metric["value"], "high": metric["value"]}])[0]
        ends = (metric["value"], limits["low"], limits["high"])
        found.append((one["from_px"], one["to_px"], metric["n_anomalous"], *ends))
    return found if len(found) > 1 else []


def _histogram(run: Run) -> Markup:
    classes = [
        ("normal", "normal", _scores(run.rows, NORMAL_LABEL)),
        ("anomalous", "anomalous", _scores(run.rows, ANOMALOUS_LABEL)),
        ("without label", "unlabelled", _scores(run.rows, "")),
    ]
    calibration = run.info.get("calibration") or {}
    return figures.histogram_svg(
        "Histogram of the image scores",
        [entry for entry in classes if entry[2].size],
        np.array(calibration.get("image") or [], dtype=np.float64),
        threshold=run.threshold("image")["value"],
        median=calibration.get("median"),
        review=(run.threshold("image").get("review") or {}).get("value"),
    )


def _interval_methods(node: object) -> list[str]:
    """Return the distinct methods of all intervals below ``node``, in order of appearance."""
    found: dict[str, None] = {}
    match node:
        case {"intervals": list() as intervals}:
            found = {f"{i['method']} ({i['unit']}s taken as independent)": None for i in intervals}
        case dict():
            found = {method: None for child in node.values() for method in _interval_methods(child)}
        case list():
            found = {method: None for child in node for method in _interval_methods(child)}
    return list(found)


def _card_groups(run: Run, panels: Mapping[str, tuple[int, DetailPanels]]) -> list[dict[str, Any]]:
    """Return the images shown in detail: title, explanation, and cards of (row, number, panels)."""
    rows = sorted((row for row in run.rows if row.id in panels), key=lambda row: row.score)
    normal = [row for row in reversed(rows) if row.label == NORMAL_LABEL][:_N_FALSE_ALARMS]
    missed = [row for row in rows if row.label == ANOMALOUS_LABEL][:_N_MISSES]
    shown = {row.id for row in missed}
    hits = [row for row in reversed(rows) if row.label == ANOMALOUS_LABEL and row.id not in shown][:_N_HITS]
    highest = [row for row in reversed(rows) if not row.label][:_N_HIGHEST]
    has_false_alarm, has_miss = any(map(_is_flagged, normal)), not all(map(_is_flagged, missed))
    groups = [
        ("Worst false alarms" if has_false_alarm else "Nearest to a false alarm", "The highest normal images", normal),
        ("Worst misses" if has_miss else "Nearest to a miss", "The lowest anomalous images", missed),
        ("Clearest hits", "The highest anomalous images", hits),
        ("Highest scores", "The images least like the normal ones", highest),
    ]
    return [
        {
            "title": title,
            "note": f"{note}; {sum(map(_is_flagged, chosen))} of these {len(chosen)} flagged.",
            "cards": [(row, *panels[row.id]) for row in chosen],
        }
        for title, note, chosen in groups
        if chosen
    ]


def _is_flagged(row: Row) -> bool:
    return row.decision == "anomalous"


def _gallery_rows(run: Run) -> list[Row]:
    """Return the rows of the gallery, highest score first: those with a thumbnail, at most 2,000."""
    rows = sorted(run.rows, key=lambda row: -row.score)
    with_picture = frozenset(run.pictures.ids) if run.pictures else frozenset()
    return [row for row in rows if not with_picture or row.id in with_picture][:MAX_GALLERY_IMAGES]


def _gallery_note(run: Run, gallery: Sequence[Row]) -> str:
    if len(gallery) == len(run.rows):
        return ""
    return f"Shown are the {len(gallery):,} images with the highest scores, of {len(run.rows):,}."


def _filters(gallery: Sequence[Row]) -> dict[str, list[str]]:
    return {
        "label": sorted({row.label for row in gallery if row.label}),
        "decision": sorted({row.decision for row in gallery}),
        "defect": sorted({row.defect for row in gallery if row.defect}),
    }


def _page_data(run: Run, gallery: Sequence[Row], cards: Mapping[str, int]) -> dict[str, Any]:
    """Return what the page's script needs; rows as columns, which is a third of the size."""
    pictures = run.pictures
    place = {id: i for i, id in enumerate(pictures.ids)} if pictures else {}
    shapes = pictures.shapes.tolist() if pictures else []
    extra = list(gallery[0].extra or ()) if gallery else []
    rows = {
        "id": [row.id for row in gallery],
        "path": [row.path for row in gallery],
        "frame": [row.frame for row in gallery],
        "label": [row.label for row in gallery],
        "defect": [row.defect for row in gallery],
        "unit": [row.unit for row in gallery],
        "group": [row.group for row in gallery],
        "decision": [row.decision for row in gallery],
        "score": [row.score for row in gallery],
        "display": [_finite(row.display) for row in gallery],
        "p": [_finite(row.p_value) for row in gallery],
        "regions_at": [_finite(row.pixel_threshold) for row in gallery],
        "regions": [row.n_regions for row in gallery],
        "region_px": [row.largest_region_px for row in gallery],
        "thumbnail": [place.get(row.id, -1) for row in gallery],
        "shape": [shapes[place[row.id]] if row.id in place else None for row in gallery],
        "card": [cards.get(row.id, -1) for row in gallery],
    }
    return {
        "threshold": run.threshold("image")["value"],
        "median": (run.info.get("calibration") or {}).get("median"),
        "scale": [DISPLAY_LOW, DISPLAY_HIGH],
        "lut": base64.b64encode(overlay_lut().tobytes()).decode("ascii"),
        "sheet": [pictures.side_px if pictures else 0, sheets.N_COLUMNS, sheets.N_PER_SHEET],
        "scores": {label: np.sort(_scores(run.rows, label)).tolist() for label in (NORMAL_LABEL, ANOMALOUS_LABEL, "")},
        "rows": rows,
        "extra": {name: [(row.extra or {}).get(name, "") for row in gallery] for name in extra},
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
