"""What the error map of normal images looks like: the numbers that `scoring.Standardise` divides by.

Learned on validation normals; with few of them on training images too, which costs power and not validity, because
the thresholds come from images that take no part in this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from anomaly_ae.config import Config
from anomaly_ae.loading import ImageStore
from anomaly_ae.sampling import spread_evenly
from anomaly_ae.scoring import N_CONTEXT_BINS, AnomalyMapper, map_in_windows
from anomaly_ae.training import TrainingData

MIN_IMAGES, MIN_VOLUMES = 60, 20  # a volume has as many voxels as hundreds of images have pixels
MAX_IMAGES = 200
N_PIXELS_PER_IMAGE = 20_000
SD_FLOOR = {"linear": 0.5, "log": 1.0}
"""A deviation is never taken smaller than this share of their root mean square over all places: where no normal image
ever showed an error, as in the air around a head, a single speck must not outweigh a lesion. Logarithms differ less
from place to place, so that a smaller floor would let the quietest places decide."""

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
    maps = over(mapper.errors, "residuals of normal images")
    match mapper.standardise.kind:
        case "position" | "column":
            _set_by_position(mapper, maps)
        case "context":
            _set_by_context(mapper, maps, np.random.default_rng(config.seed))
        case _:
            _set_everywhere(mapper, maps)


class _Examples:
    """The images to learn from: validation normals up to `MAX_IMAGES`, and training images up to `MIN_IMAGES`."""

    def __init__(self, data: TrainingData, device: torch.device) -> None:
        are_volumes = data.train.image(0)[0].ndim == 4
        n_more = max(0, (MIN_VOLUMES if are_volumes else MIN_IMAGES) - len(data.validation))
        self._sources: list[tuple[ImageStore, int]] = [
            *((data.validation, i) for i in spread_evenly(len(data.validation), MAX_IMAGES)),
            *((data.train, i) for i in spread_evenly(len(data.train), n_more)),
        ]
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
    """Mean and deviation in every cell of the box around the valid pixels, over the images."""
    total = torch.zeros((), dtype=torch.float64)
    cells = mapper.standardise.get_buffer("mean").shape[2:]
    for errors, valid in maps:  # sums, so that the memory does not grow with the number of images
        total = total + _sums_in_cells(errors[0], valid[0], mapper.standardise.box(valid[0]), cells)
    n, first, second = total  # three times (1, *cells)
    overall = total.flatten(1).sum(dim=1)
    is_seen = n > 0  # a cell that no image ever filled takes the numbers of all others
    mean = torch.where(is_seen, first / n, overall[1] / overall[0])
    square = torch.where(is_seen, second / n, overall[2] / overall[0])
    _write(mapper, mean[None], (square - mean.square()).clamp_min(0).sqrt()[None])


def _sums_in_cells(smooth: Tensor, valid: Tensor, box: tuple[slice, ...], cells: tuple[int, ...]) -> Tensor:
    """Return per cell the share of valid pixels, and the sums of their errors and squared errors: (3, 1, *cells)."""
    weight, smooth = valid[:, *box].double(), smooth[:, *box].double()  # (1, *box)
    pool = functional.adaptive_avg_pool2d if smooth.ndim == 3 else functional.adaptive_avg_pool3d
    sums = (pool(part, cells) for part in (weight, weight * smooth, weight * smooth.square()))  # type: ignore[arg-type]
    return torch.stack(list(sums))


def _set_everywhere(mapper: AnomalyMapper, maps: Iterator[tuple[Tensor, Tensor]]) -> None:
    """One mean and one deviation, every image weighing the same."""
    moments = [torch.stack([v.mean(), v.square().mean()]) for v in (e[0, 0][m[0, 0]].double() for e, m in maps)]
    mean, square = torch.stack(moments).mean(dim=0)
    _write(mapper, mean, (square - mean.square()).clamp_min(0).sqrt())


def _set_by_context(
    mapper: AnomalyMapper, maps: Iterator[tuple[Tensor, Tensor]], generator: np.random.Generator
) -> None:
    """Mean and deviation in equally filled bins of local activity."""
    samples = [_some_pixels(errors[0][:, valid[0, 0]], generator) for errors, valid in maps]
    smooth, activity = torch.cat(samples, dim=1).double()  # (k,), (k,)
    bins = activity.argsort().tensor_split(N_CONTEXT_BINS)
    centres = torch.cummax(torch.stack([activity[i].mean() for i in bins]), 0).values
    increasing = centres + torch.arange(N_CONTEXT_BINS) * 1e-7
    mapper.standardise.get_buffer("activity").copy_(increasing)
    _write(mapper, torch.stack([smooth[i].mean() for i in bins]), torch.stack([smooth[i].std() for i in bins]))


def _write(mapper: AnomalyMapper, mean: Tensor, sd: Tensor) -> None:
    floor = SD_FLOOR["log" if mapper.is_log else "linear"] * float(sd.square().mean().sqrt()) + 1e-9
    mapper.standardise.get_buffer("mean").copy_(mean)
    mapper.standardise.get_buffer("sd").copy_(sd.clamp_min(floor))


def _some_pixels(values: Tensor, generator: np.random.Generator) -> Tensor:
    """Return at most `N_PIXELS_PER_IMAGE` random columns of (2, n)."""
    chosen = generator.integers(0, values.shape[1], min(N_PIXELS_PER_IMAGE, values.shape[1]))
    return values[:, torch.from_numpy(chosen)]
