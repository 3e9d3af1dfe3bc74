"""What the error map of normal images looks like: the numbers that `scoring.Standardise` divides by.

Learned on validation normals; with few of them on training images too, which costs power and not validity, because
the thresholds come from images that take no part in this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from anomaly_ae.config import Config
from anomaly_ae.loading import ImageStore
from anomaly_ae.scoring import N_CONTEXT_BINS, AnomalyMapper, GaussianSmoothing, map_in_windows
from anomaly_ae.training import TrainingData

MIN_IMAGES = 60
MAX_IMAGES = 200
N_PIXELS_PER_IMAGE = 20_000
SD_FLOOR = 0.25
"""A deviation is never taken smaller than this share of the median one: where no normal image ever showed an error,
a single grey level must not become an alarm."""

POSITION_SMOOTHING_PX = 3.0
"""Neighbouring positions share their statistics: with 60 images a pixel's own deviation is uncertain by 9 %."""

Example = tuple[Tensor, Tensor, Tensor]
"""raw (1, C, *S), valid (1, 1, *S), limits (1, C, 2)"""


@torch.inference_mode()
def learn_residuals(
    mapper: AnomalyMapper,
    data: TrainingData,
    config: Config,
    device: torch.device,
    progress: Callable[[str, int, int, str], None],
) -> None:
    """Set the units of the error measures, then mean and deviation of the smoothed error, in ``mapper``."""
    mapper.eval()
    examples = _Examples(data, device)
    window, margin = mapper.window_px, mapper.margin_px

    def over(function: Callable[[Tensor, Tensor, Tensor], Tensor], stage: str) -> Iterator[tuple[Tensor, Tensor]]:
        for done, (raw, valid, limits) in enumerate(examples, start=1):
            progress(stage, done, len(examples), "")
            yield map_in_windows(function, raw, valid, limits, window, margin).cpu(), valid.cpu()

    _set_units(mapper, over(mapper.measures, "units of the error measures"))
    maps = over(mapper.error_and_activity, "residuals of normal images")
    if mapper.standardise.grid is not None:
        _set_by_position(mapper, maps)
    else:
        _set_by_context(mapper, maps, np.random.default_rng(config.seed), n_bins=_n_bins(config))


def _n_bins(config: Config) -> int:
    return 1 if config.scoring.standardise == "global" else N_CONTEXT_BINS


class _Examples:
    """The images to learn from: all validation normals, and training images up to `MIN_IMAGES`."""

    def __init__(self, data: TrainingData, device: torch.device) -> None:
        validation = [(data.validation, i) for i in range(len(data.validation))]
        n_more = max(0, MIN_IMAGES - len(validation))
        training = [(data.train, i) for i in range(min(n_more, len(data.train)))]
        self._sources: list[tuple[ImageStore, int]] = [*validation, *training][:MAX_IMAGES]
        self._device = device

    def __len__(self) -> int:
        return len(self._sources)

    def __iter__(self) -> Iterator[Example]:
        for store, index in self._sources:
            raw, valid = store.image(index)
            limits = store.limits[index : index + 1]
            yield raw[None].to(self._device), valid[None].to(self._device), limits.to(self._device)


def _set_units(mapper: AnomalyMapper, maps: Iterator[tuple[Tensor, Tensor]]) -> None:
    """Divide every error measure by its mean on normal images, so that their weights compare."""
    means = torch.stack([errors[0, :, valid[0, 0]].mean(dim=1) for errors, valid in maps])  # (n, n_measures)
    mapper.compare.get_buffer("unit").copy_(means.mean(dim=0).clamp_min(1e-9))


def _set_by_position(mapper: AnomalyMapper, maps: Iterator[tuple[Tensor, Tensor]]) -> None:
    """Mean and deviation of every position over the images, smoothed over its neighbours."""
    n, total, squares = 0, torch.zeros(()), torch.zeros(())
    for both, _ in maps:  # sums, so that the memory does not grow with the number of images
        smooth = both[:, :1].double()  # (1, 1, *S)
        n, total, squares = n + 1, total + smooth, squares + smooth.square()
    mean, variance = total / n, (squares - total.square() / n) / (n - 1)
    blur = GaussianSmoothing(POSITION_SMOOTHING_PX, total.ndim - 2)
    _write(mapper, blur.blur(mean.float()), blur.blur(variance.float()).clamp_min(0).sqrt())


def _set_by_context(
    mapper: AnomalyMapper, maps: Iterator[tuple[Tensor, Tensor]], generator: np.random.Generator, n_bins: int
) -> None:
    """Mean and deviation in equally filled bins of local activity."""
    samples = [_some_pixels(both[0][:, valid[0, 0]], generator) for both, valid in maps]
    smooth, activity = torch.cat(samples, dim=1).double()  # (k,), (k,)
    order = activity.argsort()
    bins = order.tensor_split(n_bins)
    centres = torch.stack([activity[i].mean() for i in bins])
    mean = torch.stack([smooth[i].mean() for i in bins])
    sd = torch.stack([smooth[i].std() for i in bins])
    repeat = N_CONTEXT_BINS // n_bins  # one bin serves everywhere
    increasing = torch.cummax(centres.repeat(repeat), 0).values + torch.arange(N_CONTEXT_BINS) * 1e-7
    mapper.standardise.get_buffer("activity").copy_(increasing)
    _write(mapper, mean.repeat(repeat), sd.repeat(repeat))


def _write(mapper: AnomalyMapper, mean: Tensor, sd: Tensor) -> None:
    floor = SD_FLOOR * float(sd.median()) + 1e-9
    mapper.standardise.get_buffer("mean").copy_(mean)
    mapper.standardise.get_buffer("sd").copy_(sd.clamp_min(floor))


def _some_pixels(values: Tensor, generator: np.random.Generator) -> Tensor:
    """Return at most `N_PIXELS_PER_IMAGE` random columns of (2, n)."""
    chosen = generator.integers(0, values.shape[1], min(N_PIXELS_PER_IMAGE, values.shape[1]))
    return values[:, torch.from_numpy(chosen)]
