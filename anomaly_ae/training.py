"""Training the autoencoder: one plain loop.

All randomness of a step derives from (seed, step), so a run that was interrupted, even killed, and resumed from its
last checkpoint ends with the same weights as one that was not.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from anomaly_ae.backbone import STRIDE, Backbone
from anomaly_ae.config import Config, TrainingConfig
from anomaly_ae.corruption import corrupt
from anomaly_ae.errors import ConfigError, ModelFileError
from anomaly_ae.loading import ImageStore
from anomaly_ae.measures import GaussianSmoothing, structural_similarity
from anomaly_ae.model import DamageHead
from anomaly_ae.modelfile import read_tensors, tensors_below, write_tensors
from anomaly_ae.replay import Replayed
from anomaly_ae.scoring import AnomalyMapper, channels_last, to_device

N_VALIDATION_CROPS = 64
N_NORM_BATCHES = 50
VALIDATION_STEP = 2**31
"""A step number that training never reaches: seeds the fixed validation crops and their damage.

Not larger: torch's generator on the CPU takes the lower 32 bits of a seed, and for a higher power of 2 these would be
the ones of step 0.
"""
N_TOGETHER = 8
"""Steps whose images are cut and damaged together for a GPU: asking it for as much one by one takes Python longer than
the GPU needs for all the rest."""
READ_EVERY = 10
"""Steps from one reading of the loss to the next: reading it waits for the GPU."""
SSIM_SD_PX = 1.5
"""Deviation of the Gaussian window of the SSIM loss, as in Wang et al., IEEE TIP 13 (2004), section III.B."""
VISIBLE = 0.1
"""Opacity from which on a head is to call a pixel damaged."""


@dataclass(frozen=True, slots=True, eq=False)
class TrainingData:
    """Images to learn from, and normal images that only decide when to stop."""

    train: ImageStore
    validation: ImageStore


@dataclass(slots=True)
class Progress:
    """What the loop knows after a step; handed to the caller's callback and kept in checkpoints."""

    step: int = 0
    best_loss: float = float("inf")
    n_without_improvement: int = 0
    stopped: str = ""
    history: list[dict[str, float]] = field(default_factory=list)


Report = Callable[[int, float, int], None]
"""(steps done, loss, images seen in this step)"""


def train(
    mapper: AnomalyMapper,
    data: TrainingData,
    config: Config,
    device: torch.device,
    checkpoint: Path | None = None,
    report: Report | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    fingerprint: str = "",
    say: Callable[[str], None] = lambda line: None,
) -> Progress:
    """Train ``mapper.autoencoder`` in place.

    Parameters
    ----------
    checkpoint : Path or None
        Where the state is kept after every validation; an existing one is continued if its fingerprint fits.
    should_stop : callable
        Asked after every step; when true, the best weights so far are taken.
    fingerprint : str
        Names configuration and data; a checkpoint of another run is refused.
    say : callable
        Told when a checkpoint is continued.

    Raises
    ------
    ModelFileError
        The checkpoint is damaged, or of another run.
    ConfigError
        Training diverged.
    """
    loop = _Loop(mapper, data, config, device)
    progress, loss = Progress(), 0.0
    if checkpoint is not None and checkpoint.exists():
        progress = loop.restore(checkpoint, fingerprint)
        say(f"continuing at step {progress.step} of {config.training.steps}")
    while progress.step < config.training.steps and not progress.stopped:
        latest = loop.step(progress.step)
        progress.step += 1
        is_last = progress.step == config.training.steps
        is_due = is_last or progress.step % config.training.validate_every == 0
        if is_due or progress.step % READ_EVERY == 1:
            loss = float(latest)
            _refuse_divergence(loss, progress.step, config.training.learning_rate)
        if report is not None:
            report(progress.step, loss, config.training.batch_size)
        if is_due:
            loop.validate(progress, loss)
            if checkpoint is not None:
                loop.save(checkpoint, progress, fingerprint)
        if should_stop():
            if not is_due:  # what was learned since the last validation counts too
                loop.validate(progress, float(latest))
            progress.stopped = "asked to stop"
    loop.finish()
    return progress


def _refuse_divergence(loss: float, step: int, learning_rate: float) -> None:
    if not math.isfinite(loss):
        raise ConfigError(
            f"the loss is {loss} after {step} steps",
            "training diverged",
            f"lower training.learning_rate, now {learning_rate:g}",
        )


Lesson = tuple[Tensor, Tensor, Tensor, Tensor]
"""damaged (B, C, *S), target (B, C, *S), weight in the loss (B, 1, *S), opacity of the damage (B, 1, *S)"""


class _Loop:
    """The mutable state of a training run: network, running mean of its weights, best of these, optimiser."""

    def __init__(self, mapper: AnomalyMapper, data: TrainingData, config: Config, device: torch.device) -> None:
        self.mapper, self.data, self.config, self.device = mapper, data, config, device
        trainee = Trainee(mapper.autoencoder, mapper.compare.head)
        self.network = to_device(trainee, device, config.model.spatial_dims).train()
        self.mean = copy.deepcopy(self.network).eval()
        self.best = copy.deepcopy(self.mean.state_dict())
        training, self.on_gpu = config.training, device.type == "cuda"
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(),
            training.learning_rate,
            weight_decay=training.weight_decay,
            capturable=self.on_gpu,
        )
        self.pace = torch.zeros(2, device=device)  # learning rate and share, where a GPU reads them
        self.share: float | Tensor = 1.0  # of the next step in the running mean of the weights
        self.learn = Replayed(self._learn) if self.on_gpu else self._learn
        self.n_together = N_TOGETHER if self.on_gpu and config.model.spatial_dims == 2 else 1
        self.prepared_for, self.prepared = -1, list[Lesson]()
        self.losses = _Losses(training)
        crop_px = training.crop_px * mapper.shrink  # as many pixels for every network to see
        self.crop_shape = data.train.crop_shape(crop_px, mapper.size_multiple)  # smaller images are padded
        if isinstance(mapper.embed, Backbone):
            mapper.embed.learn(self._normal_batch(number) for number in range(N_NORM_BATCHES))
        self.validation_batch = self._lesson(data.validation, VALIDATION_STEP, N_VALIDATION_CROPS)

    def step(self, number: int) -> Tensor:
        """Do one optimiser step and return its loss; everything random in it derives from its number."""
        training = self.config.training
        rate = training.learning_rate * one_cycle(number / training.steps)
        self._set_pace(rate, 1 - min(training.ema_decay, (1 + number) / (10 + number)))
        return self.learn(*self._prepared(number))

    def _prepared(self, number: int) -> Lesson:
        """Return what a step learns from; on a GPU taken from what was prepared for several steps together."""
        place = number % self.n_together
        if self.prepared_for != number - place:
            self.prepared_for = number - place
            size = self.config.training.batch_size
            lesson = self._lesson(self.data.train, self.prepared_for, size * self.n_together)
            self.prepared = list(zip(*(torch.split(t, size) for t in lesson), strict=True))
        return self.prepared[place]

    def _set_pace(self, learning_rate: float | Tensor, share: float | Tensor) -> None:
        if self.on_gpu:  # the recorded step reads both from where they were when it was recorded
            self.pace.copy_(torch.tensor([learning_rate, share]), non_blocking=True)
            learning_rate, share = self.pace.unbind()
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate
        self.share = share

    def _learn(self, damaged: Tensor, target: Tensor, weight: Tensor, damage: Tensor) -> Tensor:
        """Change the weights by one batch; on a GPU recorded once, so everything that changes comes in tensors."""
        loss = self._loss(self.network, damaged, target, weight, damage)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        for part in self.network.children():
            nn.utils.clip_grad_norm_(part.parameters(), 1.0)
        self.optimiser.step()
        self._update_mean()
        return loss.detach()

    @torch.no_grad()
    def validate(self, progress: Progress, loss: float) -> None:
        """Measure the repair of the fixed validation crops; remember the best weights; count failures to improve."""
        size = self.config.training.batch_size
        parts = zip(*(torch.split(t, size) for t in self.validation_batch), strict=True)
        chunks = [self._loss(self.mean, *part) for part in parts]
        validation_loss = float(torch.stack(chunks).mean())
        _refuse_divergence(validation_loss, progress.step, self.config.training.learning_rate)
        progress.history.append({"step": progress.step, "loss": loss, "validation_loss": validation_loss})
        if validation_loss < progress.best_loss:
            progress.best_loss, progress.n_without_improvement = validation_loss, 0
            self.best = copy.deepcopy(self.mean.state_dict())
        else:
            progress.n_without_improvement += 1
            if progress.n_without_improvement >= self.config.training.patience:
                progress.stopped = "no improvement on the validation normals"

    @torch.no_grad()
    def finish(self) -> None:
        """Put the best mean weights into the mapper and re-estimate the normalisation on undamaged normals."""
        self.network.load_state_dict(self.best)
        layers = [m for m in self.network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # torch's word for a plain mean over batches
        self.network.train()
        for number in range(N_NORM_BATCHES):
            self.network(self.mapper.embed(self._normal_batch(number)[0]))
        self.network.eval()

    def save(self, path: Path, progress: Progress, fingerprint: str) -> None:
        """Write everything that `restore` needs."""
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"mean.{k}": v for k, v in self.mean.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        for index, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{k}": v for k, v in state.items()}
        copied = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        write_tensors(path, copied, {"progress": asdict(progress), "fingerprint": fingerprint}, "checkpoint")

    def restore(self, path: Path, fingerprint: str) -> Progress:
        """Continue from a checkpoint.

        Raises
        ------
        ModelFileError
            Damaged, or of a run with other data or settings.
        """
        tensors, values, _ = read_tensors(path, "checkpoint")
        if values["fingerprint"] != fingerprint:
            raise ModelFileError(
                f"{path} belongs to another fit", "its data or settings differ", "delete it, or repeat the same command"
            )
        self.network.load_state_dict(tensors_below(tensors, "network."))
        self.mean.load_state_dict(tensors_below(tensors, "mean."))
        self.best = tensors_below(tensors, "best.")
        state = self.optimiser.state_dict()
        for name, tensor in tensors_below(tensors, "optimiser.").items():
            index, key = name.split(".")
            state["state"].setdefault(int(index), {})[key] = tensor
        self.optimiser.load_state_dict(state)
        return Progress(**values["progress"])

    def _batch(self, store: ImageStore, number: int, size: int) -> tuple[Tensor, Tensor]:
        """Return scaled crops (B, C, *crop) and their valid masks (B, 1, *crop)."""
        generator = step_generator(self.config.seed, number, torch.device("cpu"))
        raw, valid, limits = store.crops(size, self.crop_shape, generator)
        x, valid = self.mapper.look(raw, valid, limits)
        x, valid = augment(x, valid, self.config.training, generator)
        return x.contiguous(memory_format=channels_last(self.config.model.spatial_dims)), valid

    def _normal_batch(self, number: int) -> tuple[Tensor, Tensor]:
        """Return undamaged training crops that statistics are taken from."""
        return self._batch(self.data.train, VALIDATION_STEP + 1 + number, self.config.training.batch_size)

    def _weight(self, valid: Tensor, damage: Tensor) -> Tensor:
        """Weight damaged pixels more: they are few, and with equal weights the identity is a good answer."""
        weight = valid * (1 + self.config.training.damage_weight * damage)
        return weight / weight.mean().clamp_min(1e-6)

    def _damage(self, x: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
        if not self.config.training.repair:
            return x, x, torch.zeros_like(x[:, :1])
        generator = step_generator(self.config.seed + 1, number, torch.device("cpu"))
        damaged, target, mask = corrupt(x, self.config.corruption, generator)
        return damaged, target, mask

    def _lesson(self, store: ImageStore, number: int, size: int) -> Lesson:
        x, valid = self._batch(store, number, size)
        damaged, target, damage = self._damage(x, number)
        return *self._embedded(damaged, target, self._weight(valid, damage)), damage

    def _embedded(self, damaged: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Bring what was damaged as an image to the space that the network works in, and the weights to its grid."""
        embed = self.mapper.embed
        if isinstance(embed, Backbone):
            weight = functional.avg_pool2d(weight, STRIDE)
        return embed(damaged), embed(target), weight

    def _loss(self, network: nn.Module, damaged: Tensor, target: Tensor, weight: Tensor, damage: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            x_hat, log_odds = network(damaged)
        loss = self.losses(x_hat.float(), target, weight)
        return loss if log_odds is None else loss + focal_loss(log_odds.float(), damage, weight)

    @torch.no_grad()
    def _update_mean(self) -> None:
        for mean, now in zip(self.mean.parameters(), self.network.parameters(), strict=True):
            mean.lerp_(now, self.share)
        # Statistics of the activations are no weights: a mean of old ones would fit no network.
        for kept, latest in zip(self.mean.buffers(), self.network.buffers(), strict=True):
            kept.copy_(latest)


class Trainee(nn.Module):
    """What learns: the autoencoder and, where there is one, the head that looks at its work without changing it."""

    def __init__(self, autoencoder: nn.Module, head: DamageHead | None) -> None:
        super().__init__()
        self.autoencoder, self.head = autoencoder, head

    def forward(self, damaged: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the repaired image, and the log-odds of damage where there is a head."""
        x_hat = self.autoencoder(damaged)
        return x_hat, None if self.head is None else self.head(damaged, x_hat.detach())


def focal_loss(log_odds: Tensor, damage: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted mean of the focal loss with an exponent of 2 (Lin et al., ICCV 2017, eq. 4): a scalar.

    Parameters
    ----------
    damage : tensor, (B, 1, *S)
        Opacity of the damage; what is hardly visible (under `VISIBLE`) is none.
    """
    is_damaged = (damage > VISIBLE).to(log_odds.dtype)
    error = functional.binary_cross_entropy_with_logits(log_odds, is_damaged, reduction="none")  # -log p of the truth
    return (weight * (1 - torch.exp(-error)).square() * error).mean()


class _Losses:
    """Weighted sum of L1, L2 and SSIM losses; pixels of weight 0 take no part."""

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config
        self.window = GaussianSmoothing(SSIM_SD_PX)

    def __call__(self, x_hat: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        difference = x_hat - target
        l1, l2 = (weight * difference.abs()).mean(), (weight * difference.square()).mean()
        loss = self.config.l1 * l1 + self.config.l2 * l2
        return loss + self.config.ssim * self._ssim(x_hat, target, weight) if self.config.ssim else loss

    def _ssim(self, x_hat: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        inside = weight > 0  # elsewhere both hold the same, so that no window of a valid pixel sees a difference there
        similarity = structural_similarity(x_hat * inside, target * inside, self.window)
        return (weight * (1 - similarity)).mean()


def step_generator(seed: int, step: int, device: torch.device) -> Generator:
    """Return the random generator of one training step.

    The golden-ratio multiplier keeps neighbouring (seed, step) pairs far apart in the generator's seed space.
    """
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**63
    return Generator(device).manual_seed(mixed)


def one_cycle(progress: float, warm_up: float = 0.05) -> float:
    """Return the learning rate as a share of its peak: linear warm-up, then a half cosine down to 1 %."""
    if progress < warm_up:
        return max(progress, 0.002) / warm_up
    phase = torch.tensor((progress - warm_up) / (1 - warm_up) * torch.pi)
    return 0.01 + 0.99 * 0.5 * (1 + float(torch.cos(phase)))


def augment(x: Tensor, valid: Tensor, config: TrainingConfig, generator: Generator) -> tuple[Tensor, Tensor]:
    """Mirror and turn the whole batch at random, as far as the preset says that this keeps an image normal."""
    axes = list(range(2, x.ndim))
    draws = torch.rand(len(axes) + 1, generator=generator).tolist()
    if config.flip:
        mirrored = [axis for axis, draw in zip(axes, draws, strict=False) if draw < 0.5]
        x, valid = x.flip(mirrored), valid.flip(mirrored)
    if config.rotate and x.shape[-1] == x.shape[-2]:
        turns = int(draws[-1] * 4)
        x, valid = x.rot90(turns, (-2, -1)), valid.rot90(turns, (-2, -1))
    return x, valid
