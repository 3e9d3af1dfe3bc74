"""Images that may set no threshold: copies of learned ones, and those that the model does not take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from anomaly_ae.detector import Detector
from anomaly_ae.errors import DataError, IncompatibleImageError
from anomaly_ae.listener import Listener
from anomaly_ae.prepare import check_size, takes_channels
from anomaly_ae.records import Sample
from anomaly_ae.survey import Form
from anomaly_ae.words import n_of


def refuse_known(detector: Detector, samples: Sequence[Sample], forms: Mapping[str, Form]) -> None:
    """Refuse images that the detector learned from: a threshold set on them promises nothing."""
    hashes = detector.provenance.get("image_hashes", {})
    known = {*hashes.get("train", []), *hashes.get("validation", [])}
    n_known = sum(forms[s.id].pixel_hash in known for s in samples)
    if n_known:
        raise DataError(
            f"{n_known} of {len(samples)} calibration images were used in training",
            "the model has learned them, so their scores are too low and the false-alarm rate would be broken",
            "give normal images that were used for nothing else",
        )


def without_copies(
    parts: dict[str, tuple[Sample, ...]], forms: Mapping[str, Form], listener: Listener
) -> dict[str, tuple[Sample, ...]]:
    """Leave out, and name, calibration images that are copies of learned ones: their scores would be too low."""
    learned = {forms[s.id].pixel_hash for name in ("train", "validation") for s in parts[name]}
    copies = [s for s in parts["calibration"] if forms[s.id].pixel_hash in learned]
    for sample in copies:
        listener.say(f"left out of the calibration: {sample.id} is a copy of an image that is learned from")
    kept = tuple(s for s in parts["calibration"] if s not in copies)
    if not kept:
        raise DataError(
            "all calibration images are copies of training images", "thresholds need new ones", "remove the copies"
        )
    return {**parts, "calibration": without_repeats(kept, forms, listener)}


def without_repeats(samples: Sequence[Sample], forms: Mapping[str, Form], listener: Listener) -> tuple[Sample, ...]:
    """Leave out, and name, calibration images that are copies of another: a hundred copies promise no more than one."""
    first: dict[str, Sample] = {}
    for sample in samples:
        original = first.setdefault(forms[sample.id].pixel_hash, sample)
        if original is not sample:
            listener.say(f"left out of the calibration: {sample.id} is a copy of {original.id}")
    return tuple(first.values())


def without_misfits(
    part: str, samples: Sequence[Sample], forms: Mapping[str, Form], detector: Detector, listener: Listener
) -> tuple[Sample, ...]:
    """Leave out, and name, images of a part that the model will not take: before training, while it costs nothing."""
    kept = []
    for sample in samples:
        misfit = _misfit(sample.id, forms[sample.id], detector)
        if misfit:
            listener.say(f"left out of the {part}: {misfit}")
        else:
            kept.append(sample)
    if not kept:
        raise DataError(
            f"no {part} image fits the model",
            "they have other channels than the training images, quite another size, or room for no region that counts",
            "give normal images of the kind that is trained on, or lower the region rules",
        )
    return tuple(kept)


def of_whole_units(
    kept: Sequence[Sample], offered: Sequence[Sample], listener: Listener, forms: Mapping[str, Form] | None = None
) -> tuple[Sample, ...]:
    """Leave out, and count, calibration images of units that lack another image.

    A unit scores as high as its highest image, so without one it may score too low; a new unit that lacks one is not
    inspected. Where no unit is whole all stay, and the listener is told. With ``forms`` a copy that was left out is
    missed by no unit that keeps its original: both score the same.
    """
    present = {_picture(sample, forms) for sample in kept}
    torn = {sample.unit for sample in offered if _picture(sample, forms) not in present}
    whole = tuple(sample for sample in kept if sample.unit not in torn)
    n_left_out = len(kept) - len(whole)
    if not whole:
        listener.say("no calibration unit has all of its images: the threshold of units may be too low")
        return tuple(kept)
    if n_left_out:
        listener.say(f"left out of the calibration: {n_of(n_left_out, 'image')} of units that lack another image")
    return whole


def _picture(sample: Sample, forms: Mapping[str, Form] | None) -> tuple[str, str]:
    """Return the unit of an image and what it shows; its name where that is not known, as of an unreadable one."""
    form = forms.get(sample.id) if forms else None
    return sample.unit, form.pixel_hash if form else sample.id


def _misfit(name: str, form: Form, detector: Detector) -> str:
    """Say why the model does not take an image of this form; empty where it does."""
    n_channels = detector.config.model.n_channels
    if not takes_channels(n_channels, form.n_channels, form.was_grey_rgb):
        return f"{name} has {form.n_channels} channel(s), the training images have {n_channels}"
    try:
        check_size(name, form.spatial_shape, detector.geometry, form.spacing_mm)
        detector.rules.check(form.spatial_shape, form.spacing_mm)
    except IncompatibleImageError as error:
        return str(error)
    except DataError as error:
        return f"{name}: {error}"
    return ""
