"""`Run` -> ``methods.md``: what a methods section needs, and what its reviewer asks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from anomaly_ae.report import words
from anomaly_ae.report.run import Run
from anomaly_ae.words import n_of

METHODS_NAME = "methods.md"
_BOOTSTRAP = "Bootstrap intervals draw 1,000 times from seed 0."
_SORTING = "PG, PB, the false-alarm rate at 95 % sensitivity and oracle Dice: thresholds chosen on the test images."


def methods_text(run: Run) -> str:
    """Return the page as Markdown; a run without ``metrics.json`` has none of it to say but its making."""
    parts = (_data(run), _detector(run), _choices(run), _figures(run), _shortcuts(run), _repeat(run))
    sections = ("\n".join(part) for part in parts)
    return "# Methods\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def _data(run: Run) -> Iterator[str]:
    data = run.info.get("data") or {}
    yield "## Data\n"
    yield f"{data.get('name') or 'Images'}, as the manifest splits them:\n"
    yield from _table(
        ("split", "normal", "anomalous", "unlabelled", "units", "groups"),
        [
            (split or "(none)", *(n[key] for key in ("normal", "anomalous", "unlabelled", "units", "groups")))
            for split, n in (data.get("splits") or {}).items()
        ],
    )
    if run.metrics is None:
        return
    n = run.metrics["counts"]
    independent = "every image is a group of its own: images are taken as independent"
    grouped = f"{n_of(n.get('groups'), 'group')}; intervals over groups come first"
    n_unlabelled = n.get("unlabelled", 0)
    one_each = n.get("groups") == n["normal"] + n["anomalous"] + n_unlabelled
    yield (
        f"\nMeasured: {n_of(n['normal'], 'normal image')} and {words.whole(n['anomalous'])} anomalous, "
        f"{independent if one_each else grouped}. Not inspected: {n.get('failed', 0)}."
    )
    if n_unlabelled:
        yield f"Further {n_of(n_unlabelled, 'slice')} of anomalous volumes have no label; their units have one."
    defects = {name: part["roc_auc"]["n_anomalous"] for name, part in run.metrics.get("per_defect", {}).items()}
    if defects:
        yield "Kinds of defect: " + ", ".join(f"{name or '(empty)'} {n}" for name, n in defects.items()) + "."


def _detector(run: Run) -> Iterator[str]:
    model = run.info["model"]
    yield "## Detector\n"
    if "weights_sha256" not in model:
        yield f"Scores of another tool, from `{model['name']}`. Nothing is known of how they were made."
        return
    yield (
        f"anomaly_ae {run.info['version']}, {model['architecture']}, {words.whole(model['n_parameters'])} parameters, "
        f"{words.whole(model['steps'])} steps, preset {model['preset'] or 'none'}"
        + (f" ({model['preset_reason']})." if model["preset_reason"] else ".")
        + (f" Training was stopped early: {model['stopped']}." if model.get("stopped") else "")
    )
    yield (
        f"Learned from {n_of(model['n_train'], 'normal image')}, with {words.whole(model['n_validation'])} for "
        f"validation and {words.whole(model['n_calibration'])} for calibration. "
        f"Working scale: {model['working_scale']}."
    )
    if model.get("n_lesion_free"):
        yield words.lesion_free(model["n_lesion_free"])


def _choices(run: Run) -> Iterator[str]:
    yield "## What was chosen on what\n"
    if "weights_sha256" in run.info["model"]:
        yield "- Weights: on the training images, normal ones alone."
        yield "- Early stop, residual statistics and the weights of error measures: on validation images, normal alone."
    else:
        yield "- Scores: unknown."
    yield f"- {words.origin(run)}"
    if run.info.get("what_if"):
        yield "- The threshold is a what-if, set after the images had been scored; the model has another."
    is_chosen_here = run.metrics is not None and run.metrics.get("chosen_on_these_images")
    yield (
        "- The threshold was chosen on the test images: the rates at it are no forecast."
        if is_chosen_here
        else "- On the test images: nothing but the figures that say so."
    )
    yield f"- {_SORTING}"


def _figures(run: Run) -> Iterator[str]:
    if run.metrics is None:
        return
    yield "## Figures\n"
    rows = [
        (name, words.ratio(metric["value"]), _counts(metric), _notes(metric)) for name, metric in _named_figures(run)
    ]
    yield from _table(("figure", "value", "normal / anomalous", "95 % intervals, and reasons"), rows)
    yield f"\n{_BOOTSTRAP} “Expected” bands and exact rules: docs/explanation/thresholds.md of anomaly_ae."


def _named_figures(run: Run) -> Iterator[tuple[str, Mapping[str, Any]]]:
    metrics = run.metrics or {}
    for noun in ("image", "unit"):
        level = metrics[noun]
        if noun == "unit" and run.noun == "image":
            continue
        yield f"{noun} ROC-AUC", level["roc_auc"]
        yield f"{noun} average precision", level["average_precision"]
        for at in level["at_threshold"]:
            for name in ("sensitivity", "specificity", "false_alarm_rate"):
                yield f"{noun} {name.replace('_', '-')}", at[name]
            yield from _review_figures(noun, at.get("review"))
        if "fpr_at_95_sensitivity" in level:
            yield f"{noun} false-alarm rate at 95 % sensitivity", level["fpr_at_95_sensitivity"]
        for kind in ("pg", "pb"):
            yield from ((f"{noun} {kind.upper()} at {share}", metric) for share, metric in level.get(kind, {}).items())
        yield from ((f"{noun} ROC-AUC of {name}", areas["roc_auc"]) for name, areas in level["baselines"].items())
    pixel = metrics["pixel"]
    yield "pixel ROC-AUC", pixel["roc_auc"]
    yield "pixel average precision", pixel["average_precision"]
    yield from ((f"AU-PRO to {limit}", metric) for limit, metric in pixel["au_pro"].items())
    if "aupimo" in pixel:
        yield "pixel false-alarm rate at 95 % sensitivity", pixel["fpr_at_95_sensitivity"]
        yield "AUPIMO, mean of anomalous images", pixel["aupimo"]
        for at in pixel["at_threshold"]:
            place = words.overlap_place(run, at["threshold"])
            yield f"Dice {place}, mean of anomalous images", at["dice_per_image"]
            yield f"Dice {place}, all pixels", at["dice"]
        yield "oracle Dice of all pixels", pixel["oracle_dice"]


def _review_figures(noun: str, review: Mapping[str, Any] | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not review:
        return
    yield f"{noun}s for review, of these", review["load"]
    yield f"{noun}s for review, of the normal", review["load_normal"]
    yield f"{noun}s for review, of the anomalous", review["load_anomalous"]
    yield f"anomalous {noun}s below the review band", review["escape_rate"]
    yield f"{noun} false-alarm rate outside the review band", review["outside"]["false_alarm_rate"]
    yield f"anomalous {noun}s below the band, of those outside it", review["outside"]["escape_rate"]


def _notes(metric: Mapping[str, Any]) -> str:
    """Say how the intervals were computed and what else is to be known, e.g. that a threshold was chosen on masks."""
    return "; ".join(text for text in (words.interval_notes(metric), metric["reason"]) if text)


def _counts(metric: Mapping[str, Any]) -> str:
    return f"{words.whole(metric['n_normal'])} / {words.whole(metric['n_anomalous'])}"


def _shortcuts(run: Run) -> Iterator[str]:
    areas = (run.info.get("data") or {}).get("shortcuts")
    if not areas:
        return
    yield "## Shortcuts\n"
    yield "ROC-AUC of plain numbers and further columns against the label (0.5 says nothing): "
    yield ", ".join(f"{name} {words.ratio(area, 2)}" for name, area in areas.items()) + "."
    yield from words.shortcuts(run)


def _repeat(run: Run) -> Iterator[str]:
    info, model = run.info, run.info["model"]
    yield "## To repeat it\n"
    device = f" on {info['device']}, seed {info['seed']}" if info.get("device") else ""
    yield f"- `{info['tool']} {info['command']}`, {info['created_utc']}{device}."
    versions = ", ".join(f"{name} {text}" for name, text in info.get("versions", {}).items() if text)
    yield f"- Versions: anomaly_ae {info['version']}{', ' + versions if versions else ''}."
    hashes = {"file": model.get("sha256"), "weights": model.get("weights_sha256")}
    yield "- SHA-256: " + (", ".join(f"{name} {text}" for name, text in hashes.items() if text) or "none") + "."
    yield "- Research use; not a medical device."


def _table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{' --- |' * len(header)}"
    yield from (f"| {' | '.join(_cell(value) for value in row)} |" for row in rows)


def _cell(value: object) -> str:
    return " ".join(str(value).replace("|", "\\|").split()) or "–"
