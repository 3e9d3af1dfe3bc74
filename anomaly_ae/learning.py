"""All that a detector learns before its thresholds: for every member its weights, and what its errors look like."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from anomaly_ae.config import MAX_MEMBERS, MAX_SCALES, Config, with_values
from anomaly_ae.detector import Detector
from anomaly_ae.ensemble import Ensemble, shrink_of
from anomaly_ae.files import holds, remove_file
from anomaly_ae.listener import Listener
from anomaly_ae.records import Sample
from anomaly_ae.residuals import learn_residuals
from anomaly_ae.training import Progress, TrainingData, step_generator, train

MEMBER_STEP = 2**30
"""Step number from which the seeds of further members are drawn: no training step, and no validation, reaches it."""


def learn(
    detector: Detector,
    parts: dict[str, tuple[Sample, ...]],
    checkpoint: Path | None,
    resume: bool,
    fingerprint: str,
    listener: Listener,
    should_stop: Callable[[], bool],
) -> list[Progress]:
    """Train the members of an untrained detector in place, one after the other; asked to stop, keep those begun."""
    n_members, store = len(detector.ensemble.members), detector.store
    finished: list[Progress] = []
    with store(parts["train"]) as train_store, store(parts["validation"]) as validation_store:
        data = TrainingData(train_store, validation_store)
        if checkpoint is not None:
            _prepare_checkpoints(checkpoint, resume, listener)
        while len(finished) < n_members and not (finished and should_stop()):
            number = len(finished) + 1
            of_member = listener if n_members == 1 else listener.named(_name(detector, number))
            finished.append(_learn_member(detector, number, data, checkpoint, fingerprint, of_member, should_stop))
    if len(finished) < n_members:
        _keep_only(detector, len(finished), listener)
    return finished[: len(detector.ensemble.members)]


def _keep_only(detector: Detector, n_finished: int, listener: Listener) -> None:
    """Leave out networks that were not trained, and a seed after the first that has not all of its scales."""
    n_scales = min(detector.config.model.n_scales, n_finished)
    n_kept = n_finished // n_scales * n_scales
    listener.say(f"asked to stop: the model holds {n_kept} of {len(detector.ensemble.members)} networks")
    sections = {"training": {"members": n_kept // n_scales}, "model": {"n_scales": n_scales}}
    detector.config = with_values(detector.config, **sections)
    detector.ensemble = Ensemble(detector.ensemble.members[:n_kept], detector.config.scoring)


def _name(detector: Detector, number: int) -> str:
    members = detector.ensemble.members
    shrink = members[number - 1].shrink
    return f"network {number} of {len(members)}" + (f" (1/{shrink} of the resolution)" if shrink > 1 else "")


def _learn_member(
    detector: Detector,
    number: int,
    data: TrainingData,
    checkpoint: Path | None,
    fingerprint: str,
    listener: Listener,
    should_stop: Callable[[], bool],
) -> Progress:
    mapper, config = detector.ensemble.members[number - 1], member_config(detector.config, number)
    progress = train(
        mapper,
        data,
        config,
        detector.device,
        None if checkpoint is None else member_checkpoint(checkpoint, number),
        report=_speedometer(config.training.steps, listener),
        should_stop=should_stop,
        fingerprint=f"{fingerprint}-{number}",
        say=listener.say,
    )
    if progress.stopped:
        listener.say(f"stopped after {progress.step} of {config.training.steps} steps: {progress.stopped}")
    learn_residuals(mapper, data, config, detector.device, listener.progress)
    return progress


def member_config(config: Config, number: int) -> Config:
    """Return the settings of a member: its steps, and its seed, of which the first has the one of the model.

    Seeds are drawn and not counted up: training uses the seed and the next one.
    """
    if shrink_of(config, number) == 1:
        steps = config.training.finest_steps or config.training.steps
        config = replace(config, training=replace(config.training, steps=steps))
    if number == 1:
        return config
    generator = step_generator(config.seed, MEMBER_STEP + number, torch.device("cpu"))
    return replace(config, seed=int(torch.randint(2**31 - 1, (), generator=generator)))


def checkpoint_of(out: Path) -> Path:
    """Return where a fit that writes the model ``out`` keeps the state of its training."""
    return out.with_name(f"{out.stem}.checkpoint.safetensors")


def member_checkpoint(checkpoint: Path, number: int) -> Path:
    """Return the file of one member: the first one's is ``checkpoint`` itself."""
    return checkpoint if number == 1 else checkpoint.with_name(f"{checkpoint.stem}-{number}{checkpoint.suffix}")


def remove_checkpoints(checkpoint: Path) -> None:
    """Remove the files of all members, also of an older fit with more of them."""
    for number in range(1, MAX_MEMBERS * MAX_SCALES + 1):
        remove_file(member_checkpoint(checkpoint, number))


def _prepare_checkpoints(checkpoint: Path, resume: bool, listener: Listener) -> None:
    """Remove checkpoints that are not to be continued; say so, and also where there is none to continue."""
    if not resume:
        if holds(checkpoint.exists):
            listener.say(f"removing an older checkpoint: {checkpoint} (--resume would have continued it)")
        remove_checkpoints(checkpoint)
    elif not holds(checkpoint.exists):
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
