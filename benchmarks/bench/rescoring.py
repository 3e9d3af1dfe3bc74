"""A detector with the weights of another one and its own scoring: what a score-only variant needs instead of a fit."""

from __future__ import annotations

from anomaly_ae.config import Config
from anomaly_ae.detector import Detector
from anomaly_ae.ensemble import Ensemble
from anomaly_ae.fitting import calibrate
from anomaly_ae.listener import Listener
from anomaly_ae.manifest import Manifest, split_normals
from anomaly_ae.residuals import learn_residuals
from anomaly_ae.scoring import AnomalyMapper
from anomaly_ae.survey import readable_parts
from anomaly_ae.training import TrainingData

LEARNED_WITH_THE_SCORING = ("compare.unit", "standardise.")
"""Tensors of a mapper that depend on the section [scoring]; all others are taken over."""


def rescored(fitted: Detector, config: Config, manifest: Manifest, listener: Listener) -> Detector:
    """Learn residuals and thresholds again, on the very images that the fit used for them.

    Parameters
    ----------
    config : Config
        That of the fit but for the section [scoring].
    """
    members = [_with_weights_of(member, config) for member in fitted.ensemble.members]
    ensemble = Ensemble(members, config.scoring)
    detector = Detector(ensemble, config, fitted.geometry, fitted.provenance, fitted.device, fitted.baseline)
    shares = config.split
    given = split_normals(manifest.samples, shares.validation_share, shares.calibration_share, config.seed)
    parts, forms = readable_parts(given, listener)
    with detector.store(parts["train"]) as train, detector.store(parts["validation"]) as validation:
        for member in members:
            learn_residuals(member, TrainingData(train, validation), config, detector.device, listener.progress)
    used = set(fitted.provenance["image_hashes"]["calibration"])  # without copies and misfits, which fit left out
    samples = [sample for sample in parts["calibration"] if forms[sample.id].pixel_hash in used]
    return calibrate(detector, samples, listener=listener)


def _with_weights_of(fitted: AnomalyMapper, config: Config) -> AnomalyMapper:
    trunk = {k.removeprefix("embed."): v for k, v in fitted.state_dict().items() if k.startswith("embed.")}
    mapper = AnomalyMapper(config, trunk, fitted.shrink)
    kept = {k: v for k, v in fitted.state_dict().items() if not k.startswith(LEARNED_WITH_THE_SCORING)}
    missing, unexpected = mapper.load_state_dict(kept, strict=False)
    assert not unexpected, unexpected
    assert all(name.startswith(LEARNED_WITH_THE_SCORING) for name in missing), missing
    return mapper
