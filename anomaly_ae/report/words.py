"""Figures as text: exact enough to be true, short enough to be read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import takewhile
from typing import Any

from anomaly_ae.records import Interval
from anomaly_ae.regions import RegionRules
from anomaly_ae.report.run import Run
from anomaly_ae.results import regions_note
from anomaly_ae.shortcuts import shortcut_warnings
from anomaly_ae.threshold import parse_confidence, parse_rate, parse_sensitivity, percent_text
from anomaly_ae.words import n_of

Metric = Mapping[str, Any]

FEW = 30
"""Fewer images than this are counted in words before any share is named."""

RELIABLE = 0.95
"""Defects of a size are reliably seen where so many of them are found."""


def number(value: float | None) -> str:
    """Return a score or threshold with four significant digits.

    >>> number(5.3), number(0.000123456), number(12345.6), number(None)
    ('5.3', '0.0001235', '12,346', '–')
    """
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if 10_000 <= abs(value) < 1e9 else f"{value:.4g}"


def whole(n: int | None) -> str:
    """Return a whole number with thousands set apart.

    >>> whole(512340), whole(None)
    ('512,340', '–')
    """
    return "–" if n is None else f"{n:,}"


def percent(share: float | None) -> str:
    """Return a share in per cent, without the sign; never rounded to 0 or to 100.

    >>> [percent(share) for share in (0.941, 0.028, 0.0004, 0.999, 0.9996, 0.0, 1.0, None)]
    ['94', '2.8', '<0.1', '99.9', '>99.9', '0', '100', '–']
    """
    if share is None:
        return "–"
    value = 100 * share
    nearest_end = min(value, 100 - value)
    if nearest_end <= 0:
        return f"{value:.0f}"
    if nearest_end >= 10 or (value > 50 and nearest_end >= 1):
        return f"{value:.0f}"
    if round(nearest_end, 9) < 0.1:  # 100 - 99.9 is a little less than 0.1
        return "<0.1" if value < 50 else ">99.9"
    return f"{value:.1f}"


def ratio(value: float | None, n_digits: int = 3) -> str:
    """Return an area under a curve or a display value; with more digits where it would be rounded up to 1.

    >>> ratio(0.9432), ratio(0.99973), ratio(1.0), ratio(None), ratio(-0.001, 2)
    ('0.943', '0.9997', '1.000', '–', '0.00')
    """
    if value is None or not math.isfinite(value):
        return "–"
    while value < 1 <= round(value, n_digits) and n_digits < 12:
        n_digits += 1
    return f"{round(value, n_digits) + 0.0:.{n_digits}f}"  # + 0.0: no "-0.00"


def asked_rate(rate: str | None) -> str:
    """Return an asked false-alarm rate, given as a fraction, in per cent.

    >>> asked_rate("1/100"), asked_rate("")
    ('1 %', '–')
    """
    return percent_text(parse_rate(rate)) if rate else "–"


def rounded(value: float | None) -> str:
    """Return a large number without decimals, a small one with two digits.

    >>> rounded(12345.6), rounded(3.456), rounded(None)
    ('12,346', '3.5', '–')
    """
    return "–" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def per_thousand(share: float | None) -> str:
    """Return how many of 1,000 a share is.

    >>> per_thousand(0.0314), per_thousand(None)
    ('31', '–')
    """
    return rounded(None if share is None else 1000 * share)


def lesion_free(n: int) -> str:
    """Say that slices of patients were taken as normal images.

    >>> lesion_free(12)
    'Learned from patients: 12 of these images are slices of people with a lesion elsewhere, and may hide one.'
    """
    what = "of these images are slices of people with a lesion elsewhere, and may hide one"
    return f"Learned from patients: {whole(n)} {what}."


def interval(metric: Metric, form: Any) -> str:
    """Return the metric's first interval as "[low, high]", or nothing."""
    for limits in metric.get("intervals") or ():
        return f"[{form(limits['low'])}, {form(limits['high'])}]"
    return ""


def interval_notes(metric: Metric) -> str:
    """Return how every interval of a metric was computed, in one line."""
    known = [one for one in metric.get("intervals") or () if one["low"] is not None and one["high"] is not None]
    return "; ".join(
        f"{_limit(one['low'])} to {_limit(one['high'])}: {Interval(**one).said}, {one['unit']}s taken as independent"
        for one in known
    )


def _limit(value: float) -> str:
    """Return an end of an interval: of a share with three digits, of a count as `number`.

    >>> _limit(5.9e-08), _limit(0.98765), _limit(12345.6)
    ('0.000', '0.988', '12,346')
    """
    return ratio(value) if 0 <= value <= 1 else number(value)


def rate_with_interval(metric: Metric) -> str:
    """Return e.g. "2.8 % [1.1, 5.7]"."""
    return f"{percent(metric['value'])} % {interval(metric, percent)}".strip()


def headline(run: Run) -> str:
    """Return the one sentence that comes first."""
    noun = run.noun
    if run.threshold(noun)["value"] is None:
        return _ranking(run, noun)
    if run.metrics is None or not run.metrics[noun]["at_threshold"]:
        n_flagged = sum(row.decision == "anomalous" for row in run.rows)
        verb = "was" if 1 in (len(run.rows), n_flagged) else "were"
        return (
            f"At the {threshold_words(run, 'image')}, {n_flagged:,} of {n_of(len(run.rows), 'image')} {verb} flagged"
            f"{_for_review(run, 'image')}."
        )
    at = run.metrics[noun]["at_threshold"][0]
    found, flagged = _found(at["sensitivity"], noun), _flagged(at["false_alarm_rate"], noun)
    small = small_ones(run.metrics["image"].get("by_defect_size", ())) if noun == "image" else ""
    return f"At the {threshold_words(run, noun)}, {found}{small}; {flagged}{_for_review(run, noun)}."


def small_ones(classes: Sequence[Mapping[str, Any]]) -> str:
    """Say up to which size defects are not reliably seen, where larger ones are: 95 % of every class above it.

    Parameters
    ----------
    classes : sequence of mapping
        ``by_defect_size`` of ``metrics.json``, from small to large.

    >>> one = {"from_px": 4, "to_px": 9, "sensitivity": {"value": 0.5, "n_anomalous": 8}}
    >>> small_ones([one, {"from_px": 12, "to_px": 99, "sensitivity": {"value": 1.0, "n_anomalous": 9}}])
    '; those with less than 12 px of mask are not reliably seen (4 of 8)'
    >>> small_ones([one]), small_ones([])
    ('', '')
    """
    n_seen = sum(1 for _ in takewhile(lambda one: one["sensitivity"]["value"] >= RELIABLE, reversed(classes)))
    small = classes[: len(classes) - n_seen]
    if not n_seen or not small:
        return ""
    n = sum(one["sensitivity"]["n_anomalous"] for one in small)
    n_found = round(sum(one["sensitivity"]["n_anomalous"] * one["sensitivity"]["value"] for one in small))
    limit = classes[len(small)]["from_px"]
    return f"; those with less than {limit:,} px of mask are not reliably seen ({n_found:,} of {n:,})"


def _for_review(run: Run, noun: str) -> str:
    """Return how many are left to a person; nothing without a review band."""
    if not run.threshold(noun).get("review"):
        return ""
    rows = run.units if noun == "unit" else run.rows
    return f"; {sum(row.decision == 'review' for row in rows):,} of all {len(rows):,} are for review"


def _ranking(run: Run, noun: str) -> str:
    """Return what can be said without a threshold."""
    if run.metrics is None or run.metrics[noun]["roc_auc"]["value"] is None:
        return f"{n_of(len(run.rows), 'score')}, and no threshold."
    area = run.metrics[noun]["roc_auc"]
    return (
        f"Without a threshold: {n_of(area['n_anomalous'], f'anomalous {noun}')} and {whole(area['n_normal'])} normal, "
        f"ranked with a ROC-AUC of {ratio(area['value'], 2)} {interval(area, _two_digits)}."
    )


def _two_digits(value: float | None) -> str:
    return ratio(value, 2)


def origin(run: Run) -> str:
    """Return how the threshold was chosen, on what, with which promise."""
    noun = run.noun
    limit = run.threshold(noun)
    if limit["value"] is None:
        return str(limit["promise"])
    text = f"Threshold {number(limit['value'])} for {noun}s. {limit['promise']}"
    if limit.get("rule", "false_alarm_rate") == "false_alarm_rate" and limit.get("n"):
        groups = f" in {n_of(limit['n_groups'], 'group')}" if limit.get("n_groups") else ""
        place = (
            f"just above score {whole(limit['rank'])} of {whole(limit['n'])}, in rising order, of the normal {noun}s"
            if limit.get("rank")
            else f"at the weighted quantile of {n_of(limit['n'], f'normal {noun}')}{groups}"
        )
        text += f" It lies {place} kept for calibration alone."
    if limit.get("review"):
        text += f" Review from {number(limit['review']['value'])}: {limit['review']['promise']}"
    is_known = (run.info.get("data") or {}).get("has_pixel_threshold", True)
    pixel = run.info["threshold"].get("pixel") if is_known else None
    text += f" For pixels it is {number(pixel['value'])}." if pixel else ""
    rules = region_rules(run)
    return f"{text} Region rules, under which it was set: {rules}." if rules else text


def region_rules(run: Run) -> str:
    """Say which regions count; "" where all do."""
    scoring = (run.info["model"].get("settings") or {}).get("scoring") or {}
    return RegionRules(**{f.name: scoring[f.name] for f in fields(RegionRules) if f.name in scoring}).describe()


def overlap_place(run: Run, threshold: float) -> str:
    """Say where Dice and IoU were measured: a threshold that is set afterwards does not move them."""
    in_force, of = run.threshold("pixel")["value"], ", of the regions that count" if region_rules(run) else ""
    if threshold == in_force:
        return f"at the calibrated pixel threshold {number(threshold)}{of}"
    return f"at the pixel threshold of the scoring, {number(threshold)}{of}; in force is {number(in_force)}"


def threshold_words(run: Run, noun: str) -> str:
    """Return what the threshold in force promises, as a noun phrase."""
    threshold = run.threshold(noun)
    if threshold.get("rule") == "sensitivity":
        return f"threshold set for a sensitivity of {percent_text(parse_sensitivity(threshold['sensitivity']))}"
    if threshold.get("rule") == "cost":
        return f"threshold of the lowest cost, {number(threshold['value'])}"
    if not threshold.get("rate"):
        return f"threshold {number(threshold['value'])}, set by hand"
    rate = percent_text(parse_rate(threshold["rate"]))
    if threshold.get("confidence"):
        confidence = percent_text(parse_confidence(threshold["confidence"]))
        return f"threshold that flags at most {rate} of normal {noun}s, with {confidence} confidence"
    return f"threshold that flags {rate} of normal {noun}s on average"


def _found(sensitivity: Metric, noun: str) -> str:
    n = sensitivity["n_anomalous"]
    if sensitivity["value"] is None:
        return f"nothing can be said about anomalous {noun}s ({sensitivity['reason'] or 'there are none'})"
    verb = "was" if n == 1 else "were"
    if n < FEW:
        n_found = round(sensitivity["value"] * n)
        verb = "was" if 1 in (n, n_found) else "were"
        rate = f"{ratio(sensitivity['value'], 2)} {interval(sensitivity, _two_digits)}".strip()
        return f"{n_found} of {n_of(n, f'anomalous {noun}')} {verb} found (sensitivity {rate})"
    return f"{rate_with_interval(sensitivity)} of {n_of(n, f'anomalous {noun}')} {verb} found"


def _flagged(false_alarm_rate: Metric, noun: str) -> str:
    n = false_alarm_rate["n_normal"]
    if false_alarm_rate["value"] is None:
        return (
            f"nothing can be said about false alarms ({false_alarm_rate['reason'] or f'there are no normal {noun}s'})"
        )
    n_flagged = round(false_alarm_rate["value"] * n)
    verb = "was" if 1 in (n, n_flagged) else "were"
    return f"{n_flagged:,} of {n_of(n, f'normal {noun}')} ({rate_with_interval(false_alarm_rate)}) {verb} flagged"


def shortcuts(run: Run) -> list[str]:
    """Return a warning for each property that is not the defect and separates the classes by itself."""
    return [f"Shortcut: {text}. {_OF_A_SHORTCUT}" for text in _shortcuts(run)]


_OF_A_SHORTCUT = "It can be the defect itself; if it is not, the figures may measure how the images were taken."


def strongest_shortcut(areas: Mapping[str, float]) -> str:
    """Return the property that separates the classes best, with its ROC-AUC away from 0.5.

    >>> strongest_shortcut({"mean grey": 0.4, "sharpness": 0.3}), strongest_shortcut({})
    ('sharpness 0.70', '–')
    """
    if not areas:
        return "–"
    name = max(areas, key=lambda name: abs(areas[name] - 0.5))
    return f"{name} {ratio(max(areas[name], 1 - areas[name]), 2)}"


def _shortcuts(run: Run) -> list[str]:
    return shortcut_warnings((run.info.get("data") or {}).get("shortcuts") or {})


def _other_warnings(run: Run) -> Iterator[str]:
    """Yield the warnings of the run itself; it states those of shortcuts among them, in the same words."""
    known = set(_shortcuts(run))
    yield from (str(text) for text in (run.info.get("data") or {}).get("warnings") or () if text not in known)


def warnings(run: Run) -> Iterator[str]:
    """Yield what makes the figures less than they seem, besides `shortcuts`."""
    yield from _other_warnings(run)
    if run.metrics and run.metrics.get("chosen_on_these_images"):
        yield "The threshold was chosen on these very images: the rates at it are no forecast. Measure on other images."
    yield from _threshold_warnings(run)
    yield from _metric_warnings(run)
    if run.failures:
        yield f"{n_of(len(run.failures), 'image')} could not be inspected."


def _threshold_warnings(run: Run) -> Iterator[str]:
    """Warn of a threshold that is not the model's, and of what does not follow the one in force."""
    if run.info.get("what_if"):
        yield (
            f"What-if: the image threshold is {_limit_words(run.info['threshold'])} here and "
            f"{_limit_words(run.info['model_threshold'])} in the model. Calibrate again to change the model."
        )
    in_force = run.threshold("pixel")["value"]
    if in_force is None:
        return
    scored_at = [row.pixel_threshold for row in run.rows if row.n_regions and math.isfinite(row.pixel_threshold)]
    note = regions_note(scored_at, in_force)
    if note:
        yield note
    if run.pictures and run.pictures_at != in_force:
        yield (
            f"Colours and outlines of the maps show the pixel threshold of the scoring, {number(run.pictures_at)}: "
            f"the small pictures cannot tell what reaches {number(in_force)}."
        )


def _limit_words(thresholds: Mapping[str, Any]) -> str:
    limit = thresholds["image"]
    asked = f"asked rate {asked_rate(limit['rate'])}" if limit.get("rate") else f"rule {limit.get('rule', 'manual')}"
    band = f", review from {number(limit['review']['value'])}" if limit.get("review") else ""
    return f"{number(limit['value'])} ({asked}{band})"


def _metric_warnings(run: Run) -> Iterator[str]:
    if run.metrics is None:
        return
    model_auc = run.metrics["image"]["roc_auc"]["value"]
    for name, areas in run.metrics["image"]["baselines"].items():
        metric = areas["roc_auc"]
        if None not in (model_auc, metric["value"]) and metric["value"] >= model_auc:
            yield (
                f"The baseline “{name}” separates the images at least as well as the model "
                f"(ROC-AUC {ratio(metric['value'])} and {ratio(model_auc)})."
            )
    for at in run.metrics[run.noun]["at_threshold"][:1]:
        yield from _broken_promise(at)


def _broken_promise(at: Mapping[str, Any]) -> Iterator[str]:
    """Warn when the measured rate lies above the band that a kept promise leads to expect on so many normals."""
    measured, band = at["false_alarm_rate"], at.get("false_alarm_band")
    if not band or measured["value"] is None or measured["value"] <= band[1]:
        return
    yield (
        f"More normals were flagged than the calibration leads to expect: {rate_with_interval(measured)}, expected "
        f"{percent(band[0])} to {percent(band[1])} %. These normals may differ from those of the calibration."
    )
