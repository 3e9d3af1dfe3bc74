"""All that a detector learns before its thresholds: the weights of its network, and what its errors look like."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from anomaly_ae.detector import Detector
from anomaly_ae.files import remove_file
from anomaly_ae.listener import Listener
from anomaly_ae.records import Sample
from anomaly_ae.residuals import learn_residuals
from anomaly_ae.training import Progress, TrainingData, train


def learn(
    detector: Detector,
    parts: dict[str, tuple[Sample, ...]],
    checkpoint: Path | None,
    resume: bool,
    fingerprint: str,
    listener: Listener,
    should_stop: Callable[[], bool],
) -> Progress:
    """Train the network of an untrained detector in place, then learn what its errors on normal images look like."""
    config, store = detector.config, detector.store
    with store(parts["train"]) as train_store, store(parts["validation"]) as validation_store:
        data = TrainingData(train_store, validation_store)
        if checkpoint is not None:
            _prepare_checkpoint(checkpoint, resume, listener)
        progress = train(
            detector.mapper,
            data,
            config,
            detector.device,
            checkpoint,
            report=_speedometer(config.training.steps, listener),
            should_stop=should_stop,
            fingerprint=fingerprint,
            say=listener.say,
        )
        if progress.stopped:
            listener.say(f"stopped after {progress.step} of {config.training.steps} steps: {progress.stopped}")
        learn_residuals(detector.mapper, data, config, detector.device, listener.progress)
    return progress


def _prepare_checkpoint(checkpoint: Path, resume: bool, listener: Listener) -> None:
    """Remove a checkpoint that is not to be continued; say so, and also where there is none to continue."""
    if checkpoint.exists() and not resume:
        listener.say(f"removing an older checkpoint: {checkpoint} (--resume would have continued it)")
        remove_file(checkpoint)
    elif resume and not checkpoint.exists():
        listener.say(f"no checkpoint at {checkpoint}: starting anew")


def _speedometer(n_steps: int, listener: Listener) -> Callable[[int, float, int], None]:
    """Return the callback of the training loop: progress with loss and images per second."""
    started, seen = time.perf_counter(), 0

    def report(step: int, loss: float, n_images: int) -> None:
        nonlocal seen
        seen += n_images
        speed = seen / max(time.perf_counter() - started, 1e-9)
        listener.progress("training", step, n_steps, f"loss {loss:.4f}, {speed:.0f} images/s")

    return report
