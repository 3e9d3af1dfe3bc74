"""`fit`: from a manifest to a calibrated detector; `calibrate`: new thresholds for an existing one.

What is learned from which images: weights, intensity limits, preset and alignment from `train`; early stop and
residual statistics from `validation`; thresholds, and nothing else, from `calibration`.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anomaly_ae.backbone import WITHOUT_MEANING, read_backbone
from anomaly_ae.baselines import fit_pca, small_grey
from anomaly_ae.calibration import Asked, calibration_scores, check_review_rate, thresholds_by
from anomaly_ae.config import Config, config_to_dict, load_config, with_values
from anomaly_ae.detector import Detector
from anomaly_ae.device import choose_device, describe_device
from anomaly_ae.ensemble import Ensemble, n_networks, shrink_of
from anomaly_ae.errors import AnomalyAEError, DataError
from anomaly_ae.learning import learn, member_config
from anomaly_ae.listener import Listener
from anomaly_ae.manifest import (
    Manifest,
    check_groups,
    counted_for_unit,
    largest_spacing_mm,
    lesion_free,
    split_normals,
    taken,
)
from anomaly_ae.manifest.slices import is_suspect
from anomaly_ae.model import image_multiple
from anomaly_ae.prepare import (
    at_spacing,
    choose_geometry,
    finest_steps,
    fitting_scales,
    stated_spacing,
)
from anomaly_ae.readers import image_sha256
from anomaly_ae.records import Sample
from anomaly_ae.scoring import AnomalyMapper
from anomaly_ae.survey import (
    Form,
    Survey,
    check_axes,
    choose_preset,
    dataset_limits,
    learn_preparation,
    readable_forms,
    readable_parts,
    settled,
    survey_images,
)
from anomaly_ae.threshold import Share, check_reachable, default_rate, reachable_text
from anomaly_ae.training import Progress
from anomaly_ae.usable import of_whole_units, refuse_known, without_copies, without_misfits, without_repeats

HELD_OUT = ("calibration", "validation")
"""Parts in which a few images that the model will not take are left out, by name; those to train on are refused."""


def fit(
    manifest: Manifest,
    config: Config | None = None,
    *,
    overrides: Sequence[str] = (),
    device: str = "auto",
    seed: int = 0,
    rate: Share | None = None,
    confidence: Share | None = None,
    review_rate: Share | None = None,
    checkpoint: Path | None = None,
    resume: bool = True,
    listener: Listener | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Detector:
    """Train on the normal images of a manifest and calibrate.

    Parameters
    ----------
    config : Config or None
        None picks a preset from the data and says why.
    overrides, seed : sequence of str, int
        ``section.key=value`` and the seed, applied to the picked preset (only with ``config=None``; a given
        configuration holds its own).
    rate, confidence : see `threshold.conformal_threshold`
        An asked-for rate that the calibration normals cannot support is refused before training.
    review_rate : Share or None
        Where a review band begins: a second, lower limit that this share of normal images reaches.
    checkpoint : Path or None
        Where the state of the training is kept.
    resume : bool
        Whether an existing checkpoint is continued; otherwise it is removed when training begins, not before.

    Returns
    -------
    Detector

    Raises
    ------
    DataError, CalibrationError, ConfigError
    """
    place = choose_device(device)  # before anything is read: a typo costs no time
    asked = Asked(rate, confidence, review_rate=review_rate)
    check_groups(manifest.samples)
    listener = listener or Listener()
    overrides = [f"seed={seed}", *overrides]
    known = config or load_config("default", overrides)  # picked presets differ neither in seed nor in split
    manifest = replace(manifest, samples=taken(manifest.samples, known.model.spatial_dims))
    read_backbone(known)  # a wrong file, too, costs no time
    given = split_normals(manifest.samples, known.split.validation_share, known.split.calibration_share, known.seed)
    readable, forms = readable_parts(given, listener)
    parts = without_copies(readable, forms, listener)
    n_lesion_free = _n_lesion_free(manifest, parts)
    if n_lesion_free:
        listener.say(f"lesion-free slices of patients among the normal images: {n_lesion_free}; they may hide a lesion")
    survey = survey_images(parts["train"], known.seed, listener)
    reason = "asked for"
    if config is None:
        name, reason = choose_preset(survey)
        config = load_config(name, overrides)
    every_mm = _unit_every_mm(config, parts)  # what only the data tell
    config, why = settled(with_values(config, scoring={"unit_every_mm": every_mm}), survey)
    listener.say(f"preset {config.preset}: {reason}")
    if why:
        listener.say(why)
    detector = untrained(config, survey, place)
    detector.say = listener.say
    if config.model.embed:
        without = ", ".join(sorted({name for section in WITHOUT_MEANING.values() for name in section}))
        listener.say(f"features of {detector.config.model.embed}: {without} do not count")
    listener.say(detector.geometry.describe(_typical_shape(_stated_shapes(survey, detector.config))))
    n_offered = _n_images(parts)
    parts |= {part: without_misfits(part, parts[part], forms, detector, listener) for part in HELD_OUT}
    parts["calibration"] = of_whole_units(parts["calibration"], given["calibration"], listener, forms)
    _check_reachable(parts["calibration"], asked)
    listener.say(reachable_text(len(parts["calibration"]), _n_groups(parts["calibration"]), confidence))
    listener.say(f"training on {describe_device(place)}: {_steps_text(detector.config)}")
    fingerprint = _fingerprint(detector.config, parts)
    finished = learn(detector, parts, checkpoint, resume, fingerprint, listener, should_stop)
    detector.provenance = {**_provenance(detector, survey, finished, reason), **_described(parts, forms)}
    detector = _set_thresholds(detector, parts["calibration"], forms, asked, listener)
    detector.say = warnings.warn  # the listener is of the fit; from now on it is the user of the model who is told
    n_used = len(parts["train"]) + len(parts["validation"]) + len(detector.calibrated[0].image)
    detector.provenance["n_lesion_free"] = n_lesion_free
    detector.provenance["n_unusable"] = _n_images(given) - _n_images(readable) + n_offered - n_used
    return detector


def calibrate(
    detector: Detector,
    samples: Sequence[Sample],
    rate: Share | None = None,
    confidence: Share | None = None,
    listener: Listener | None = None,
    *,
    review_rate: Share | None = None,
    value: float | None = None,
) -> Detector:
    """Set new thresholds from normal images; no score of the detector changes.

    Images that cannot be read are left out and named; the promise counts those that were scored.

    Parameters
    ----------
    rate, confidence, review_rate : see `fit`
    value : float or None
        Instead of a rate: this very threshold, for images and units; nothing is promised.
    """
    listener = listener or Listener()
    asked = Asked(rate, confidence, value=value, review_rate=review_rate)
    samples = taken(samples, detector.config.model.spatial_dims)
    n_suspect = sum(is_suspect(sample.label, sample.extra) for sample in samples)
    if n_suspect:
        what = f"{n_suspect} of {len(samples)} calibration images are labelled anomalous, or belong to such a volume"
        raise DataError(what, "a threshold set on them lets defects pass", "give normal images only")
    check_groups([replace(sample, split="calibration") for sample in samples])  # that is what all of them are now
    forms = readable_forms(samples, listener, " of the calibration")
    readable = without_repeats([sample for sample in samples if sample.id in forms], forms, listener)
    if readable:  # else it is said below that none is
        _check_reachable(readable, asked)
    refuse_known(detector, readable, forms)
    return _set_thresholds(detector, of_whole_units(readable, samples, listener, forms), forms, asked, listener)


def _set_thresholds(
    detector: Detector, samples: Sequence[Sample], forms: Mapping[str, Form], asked: Asked, listener: Listener
) -> Detector:
    measured: dict[str, tuple[float, float, dict[str, float]]] = {}
    for done, (sample, result) in enumerate(detector.measure_many(samples), start=1):
        listener.progress("calibrating", done, len(samples), "")
        if isinstance(result, AnomalyAEError):
            listener.say(f"left out of the calibration: {result}")
        else:
            measured[sample.id] = result
    if not measured:
        raise DataError("no normal image could be scored for calibration", "all were left out", "see the lines above")
    kept = of_whole_units([s for s in samples if s.id in measured], samples, listener)
    values, peaks, plain = zip(*(measured[s.id] for s in kept), strict=True)
    if len(values) > 1 and min(values) == max(values):
        raise DataError(
            f"all {len(values)} calibration images have the same score, {values[0]:.6g}",
            "the model sees no difference between them, as where no pixel lies inside the intensity window",
            "look at intensity.policy, low and high, and at the images",
        )
    counted = counted_for_unit(kept, detector.config.scoring.unit_every_mm)
    scores = calibration_scores(values, peaks, [s.unit for s in kept], [s.group for s in kept], counted)
    calibrated = detector.with_thresholds(scores, thresholds_by(asked, scores))
    for key, facts in _described({"calibration": kept}, forms).items():
        calibrated.provenance[key] = {**calibrated.provenance.get(key, {}), **facts}
    calibrated.provenance["image_hashes"].pop("labelled", None)  # of a former rule: nothing labelled decides now
    calibrated.provenance["calibration_statistics"] = {name: [one[name] for one in plain] for name in plain[0]}
    return calibrated


def calibration_samples(manifest: Manifest) -> tuple[Sample, ...]:
    """Return the rows that `calibrate` uses: split "calibration", or where there is none all normals outside of test.

    Raises
    ------
    DataError
        No such row, or anomalous ones among them.
    """
    marked = manifest.select(split="calibration")
    samples = marked or tuple(s for s in manifest.samples if s.split != "test" and not is_suspect(s.label, s.extra))
    if not samples or any(is_suspect(s.label, s.extra) for s in samples):
        raise DataError(
            f"no calibration images in {manifest.place}",
            "thresholds come from normal images that were used for nothing else",
            "give a folder of normal images, or a CSV with split = calibration",
        )
    return tuple(samples)


def kept_for_calibration(
    detector: Detector, samples: Sequence[Sample], listener: Listener | None = None
) -> tuple[Sample, ...]:
    """Return those images that the detector was calibrated with, if it has learned from others of them; else all.

    So that the data of `fit` can calibrate a model again whose scores have changed.
    """
    listener = listener or Listener()
    hashes = detector.provenance.get("image_hashes", {})
    forms = readable_forms(samples, listener.quiet())  # what cannot be read, `calibrate` names
    learned, kept = {*hashes.get("train", []), *hashes.get("validation", [])}, set(hashes.get("calibration", []))
    own = [s for s in samples if s.id in forms and forms[s.id].pixel_hash in kept]
    if not own or learned.isdisjoint(form.pixel_hash for form in forms.values()):
        return tuple(samples)
    listener.say(
        f"{len(own)} of {len(samples)} images are those that the model was calibrated with; they are used again"
    )
    return tuple(own)


def _n_lesion_free(manifest: Manifest, parts: dict[str, tuple[Sample, ...]]) -> int:
    """Return how many of the images are slices of patients who have a lesion elsewhere."""
    chosen = {sample.id for sample in lesion_free(manifest.samples)}
    return sum(sample.id in chosen for part in parts.values() for sample in part)


def _n_images(parts: dict[str, tuple[Sample, ...]]) -> int:
    return sum(len(part) for part in parts.values())


def _described(parts: Mapping[str, Sequence[Sample]], forms: Mapping[str, Form]) -> dict[str, dict[str, Any]]:
    """Return what a model file says of the images of each part; no path and no name of an image or patient."""
    return {
        "n_images": {name: len(part) for name, part in parts.items()},
        "n_groups": {name: len({s.group for s in part}) for name, part in parts.items()},
        "image_hashes": {name: [forms[s.id].pixel_hash for s in part] for name, part in parts.items()},
    }


def _check_reachable(samples: Sequence[Sample], asked: Asked) -> None:
    """Refuse asked-for rates that so many images, or groups, cannot support, or that leave no room for a review."""
    n, n_groups = len(samples), _n_groups(samples)
    for rate in (asked.rate, asked.review_rate):
        if rate is not None:
            check_reachable(n, n_groups, rate, asked.confidence)
    if asked.review_rate is not None and asked.rate is None and asked.value is None:
        check_review_rate(asked.review_rate, default_rate(n, n_groups, asked.confidence))


def _n_groups(samples: Sequence[Sample]) -> int | None:
    """Return the number of groups; None where every image is its own."""
    n_groups = len({s.group for s in samples})
    return n_groups if n_groups < len(samples) else None


def untrained(config: Config, survey: Survey, device: torch.device) -> Detector:
    """Return what training begins with: working scale, fresh weights, intensity limits."""
    check_axes(survey, config)
    config, trunk = read_backbone(config)
    shapes = _stated_shapes(survey, config)
    n_scales, n_steps = fitting_scales(shapes, config), finest_steps(shapes, config)
    config = with_values(config, model={"n_scales": n_scales}, training={"finest_steps": n_steps})
    geometry = choose_geometry(shapes, config.geometry, image_multiple(config.model))
    members = [_fresh_mapper(config, trunk, number) for number in range(1, n_networks(config) + 1)]
    limits = dataset_limits(learn_preparation(members[0], config, geometry, survey), config)
    members[0].get_buffer("limits").copy_(torch.from_numpy(limits))
    for name, shared in members[0].named_buffers(recurse=False):
        for other in members[1:]:
            other.get_buffer(name).copy_(shared)
    baseline = fit_pca([small_grey(thumbnail, limits) for thumbnail in survey.thumbnails])
    return Detector(Ensemble(members, config.scoring), config, geometry, {}, device, baseline)


def _unit_every_mm(config: Config, parts: Mapping[str, Sequence[Sample]]) -> float:
    """Return in how many mm one slice counts for its patient: unless asked for, the largest distance of slices."""
    return config.scoring.unit_every_mm or largest_spacing_mm([sample for part in parts.values() for sample in part])


def _stated_shapes(survey: Survey, config: Config) -> list[tuple[int, ...]]:
    """Return the shapes of the training images at the spacing that they are resampled to."""
    spacing_mm = stated_spacing(config.geometry, config.model.spatial_dims)
    images = zip(survey.samples, survey.shapes, survey.spacings_mm, strict=True)
    return [at_spacing(sample.id, shape, own_mm, spacing_mm) for sample, shape, own_mm in images]


def _fresh_mapper(config: Config, trunk: Mapping[str, Tensor], number: int) -> AnomalyMapper:
    """Return a mapper whose random weights follow from its seed; the caller's random numbers stay as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(member_config(config, number).seed)  # weights are drawn on the CPU
        return AnomalyMapper(config, trunk, shrink_of(config, number))


def _steps_text(config: Config) -> str:
    """Say how long every network learns.

    >>> from anomaly_ae.config import load_config
    >>> _steps_text(load_config("default", ["training.finest_steps=5400"]))
    '3 networks one after the other, of 5400, 2400, 2400 steps'
    """
    steps = [str(member_config(config, number).training.steps) for number in range(1, n_networks(config) + 1)]
    many = f"{len(steps)} networks one after the other, of " if len(steps) > 1 else ""
    return f"{many}{', '.join(steps)} steps"


def _provenance(
    detector: Detector,
    survey: Survey,
    finished: Sequence[Progress],
    reason: str,
) -> dict[str, Any]:
    """Return what the model file says of its making."""
    return {
        "trained_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": detector.device.type,
        "torch": str(torch.__version__),
        "seed": detector.config.seed,
        "preset": detector.config.preset,
        "preset_reason": reason,
        "steps": max(member.step for member in finished),
        "stopped": "; ".join(dict.fromkeys(member.stopped for member in finished if member.stopped)),
        "validation_loss": sum(member.best_loss for member in finished) / len(finished),
        "history": [{"member": i, **entry} for i, member in enumerate(finished, start=1) for entry in member.history],
        "n_parameters": sum(p.numel() for p in detector.ensemble.parameters()),
        "working_scale": detector.geometry.describe(_typical_shape(_stated_shapes(survey, detector.config))),
    }


def _fingerprint(config: Config, parts: Mapping[str, Sequence[Sample]]) -> str:
    """Return a hash of all that a training depends on: settings, files, and the masks of what is valid in them.

    The bytes of the files and not only the pixels: with them a file may also state its bits and spacing.
    """
    images = {name: [(image_sha256(s.files), s.frame) for s in part] for name, part in parts.items()}
    masks = {name: [image_sha256(s.valid) if s.valid else "" for s in part] for name, part in parts.items()}
    text = json.dumps([config_to_dict(config), images, masks], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _typical_shape(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    return sorted(shapes)[len(shapes) // 2]
