"""Statistics of normal error maps against brute force: units, mean and deviation by position and by context."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from anomaly_ae import residuals
from anomaly_ae.config import Config, load_config
from anomaly_ae.loading import ImageStore
from anomaly_ae.prepare import Prepared, valid_box
from anomaly_ae.records import FloatArray
from anomaly_ae.residuals import learn_residuals
from anomaly_ae.scoring import N_COLUMNS, N_CONTEXT_BINS, N_POSITIONS, AnomalyMapper
from anomaly_ae.training import TrainingData

CPU = torch.device("cpu")
SIDE_PX = 32
TWO_MEASURES = ("scoring.l2=0.0", "scoring.ssim=0.0", "scoring.gms=0.5", "scoring.chroma=0.0")  # beside l1 of 0.5


def store_of(n_images: int, seed: int, outside: float | None = None) -> ImageStore:
    """Noise whose deviation grows from left to right; with ``outside``, the top rows are invalid and hold that."""

    def images() -> Iterator[tuple[Prepared, FloatArray]]:
        for i in range(n_images):
            rng = np.random.default_rng([seed, i])
            spread = np.linspace(0.02, 0.2, SIDE_PX)
            pixels = (0.5 + spread * rng.standard_normal((1, SIDE_PX, SIDE_PX))).astype(np.float32)
            valid = np.ones((SIDE_PX, SIDE_PX), bool)
            if outside is not None:
                valid[: 4 + i % 3] = False
                pixels[:, ~valid] = outside
            yield Prepared(pixels, valid, valid.shape, valid.shape, None, None), np.array([[0.0, 1.0]])

    return ImageStore(images(), n_images, CPU)


def data_of(n_train: int, n_validation: int, outside: float | None = None) -> TrainingData:
    return TrainingData(store_of(n_train, 0, outside), store_of(n_validation, 1, outside))


@pytest.fixture(scope="module")
def data() -> TrainingData:
    return data_of(20, 12)


def learned(data: TrainingData, *settings: str, seed: int = 0) -> tuple[AnomalyMapper, list[tuple[str, int, int]]]:
    """A network with random weights is enough: it makes errors."""
    config: Config = load_config("smoke", ["model.architecture=bottleneck", *TWO_MEASURES, *settings])
    torch.manual_seed(seed)
    mapper, seen = AnomalyMapper(config), []
    learn_residuals(mapper, data, config, CPU, lambda stage, done, total, detail: seen.append((stage, done, total)))
    return mapper, seen


def all_images(data: TrainingData) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for store in (data.validation, data.train):
        for index in range(len(store)):
            raw, valid = store.image(index)
            yield raw[None], valid[None], store.limits[index : index + 1]


@torch.inference_mode()
def maps_of(mapper: AnomalyMapper, data: TrainingData) -> Tensor:
    return torch.cat([mapper(*image) for image in all_images(data)])  # (n, 1, H, W)


@torch.inference_mode()
def smoothed_errors(mapper: AnomalyMapper, data: TrainingData) -> Tensor:
    return torch.cat([mapper.errors(*image)[:, :1] for image in all_images(data)])


@torch.inference_mode()
def test_every_error_measure_is_one_on_average(data: TrainingData) -> None:
    mapper, _ = learned(data, "scoring.l2=0.3", "scoring.ssim=0.2")  # beside l1 and gms
    means = torch.stack([mapper.measures(*image)[0].mean(dim=(1, 2)) for image in all_images(data)]).mean(dim=0)
    assert list(mapper.compare.weights) == ["l1", "l2", "ssim", "gms"]
    torch.testing.assert_close(mapper.compare.get_buffer("unit"), means)
    total = torch.cat([mapper.compare(*mapper.reconstruct(*i), i[1]) for i in all_images(data)])
    assert float(total.mean()) == pytest.approx(sum(mapper.compare.weights.values()), rel=1e-4)


@pytest.mark.parametrize("kind", ["context", "global"])
def test_normal_images_have_mean_zero_and_deviation_one(data: TrainingData, kind: str) -> None:
    mapper, _ = learned(data, f"scoring.standardise={kind}", "scoring.error_scale=linear")  # hardly a bin at the floor
    maps = maps_of(mapper, data)
    assert float(maps.mean()) == pytest.approx(0, abs=0.05)
    assert float(maps.std()) == pytest.approx(1, abs=0.08)


def test_context_tells_quiet_from_lively_surroundings(data: TrainingData) -> None:
    by_context, _ = learned(data, "scoring.standardise=context")
    activity = by_context.standardise.get_buffer("activity")
    assert len(activity) == N_CONTEXT_BINS
    assert bool((activity.diff() > 0).all())
    for buffer in ("mean", "sd"):
        assert len(set(by_context.standardise.get_buffer(buffer).tolist())) > 6


def test_context_bins_are_equally_filled_and_hold_their_own_mean(data: TrainingData) -> None:
    mapper, _ = learned(data, "scoring.standardise=context", "scoring.error_scale=linear")
    with torch.inference_mode():
        both = torch.cat([mapper.errors(*image)[0].flatten(1) for image in all_images(data)], dim=1)
    smooth, activity = both.double()[:, both[1].argsort()]
    means = torch.stack([part.mean() for part in smooth.tensor_split(N_CONTEXT_BINS)])
    sds = torch.stack([part.std() for part in smooth.tensor_split(N_CONTEXT_BINS)])
    centres = torch.stack([part.mean() for part in activity.tensor_split(N_CONTEXT_BINS)])
    # Drawn with replacement from 32 images of 1,024 pixels: bins of 2,731 of them, a relative error of about 2 %.
    torch.testing.assert_close(mapper.standardise.get_buffer("mean").double(), means, rtol=0.05, atol=1e-4)
    torch.testing.assert_close(mapper.standardise.get_buffer("sd").double(), sds, rtol=0.1, atol=1e-4)
    torch.testing.assert_close(mapper.standardise.get_buffer("activity").double(), centres, rtol=0.05, atol=1e-4)


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_by_position_means_mean_and_deviation_over_the_images(data: TrainingData, scale: str) -> None:
    mapper, _ = learned(data, "scoring.standardise=position", f"scoring.error_scale={scale}")
    assert SIDE_PX == N_POSITIONS  # a pixel is a cell here
    errors = smoothed_errors(mapper, data).double()
    sd = errors.std(dim=0, keepdim=True, correction=0)
    floored = sd.clamp_min(residuals.SD_FLOOR[scale] * float(sd.square().mean().sqrt()))
    assert 0.1 < float((floored > sd).float().mean()) < 0.9 or scale == "linear"  # some places are below the floor
    mean = errors.mean(dim=0, keepdim=True)
    torch.testing.assert_close(mapper.standardise.get_buffer("mean").double(), mean, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(mapper.standardise.get_buffer("sd").double(), floored, rtol=1e-3, atol=1e-6)
    maps = maps_of(mapper, data)
    torch.testing.assert_close(maps.mean(dim=0), torch.zeros(1, SIDE_PX, SIDE_PX), rtol=0, atol=1e-3)


def test_by_column_means_mean_and_deviation_over_all_rows_of_the_images(data: TrainingData) -> None:
    mapper, _ = learned(data, "scoring.standardise=column")
    columns = smoothed_errors(mapper, data).double().movedim(-1, 0).flatten(1)  # (columns, pixels)
    floor = residuals.SD_FLOOR["log"] * float(columns.std(dim=1, correction=0).square().mean().sqrt())
    found = {name: mapper.standardise.get_buffer(name).double() for name in ("mean", "sd")}
    assert found["mean"].shape == (1, 1, 1, N_COLUMNS)
    each = N_COLUMNS // SIDE_PX  # a column of these small images fills several cells
    torch.testing.assert_close(found["mean"][0, 0, 0, ::each], columns.mean(dim=1), rtol=1e-4, atol=1e-6)
    expected_sd = columns.std(dim=1, correction=0).clamp_min(floor)
    torch.testing.assert_close(found["sd"][0, 0, 0, ::each], expected_sd, rtol=1e-3, atol=1e-6)


def test_a_cell_knows_the_pixels_in_it_that_are_valid() -> None:
    smooth, valid = torch.rand(1, 80, 64), torch.ones(1, 80, 64, dtype=torch.bool)
    valid[:, 64:] = False  # padding: cells divide what is left
    valid[:, :2, :2] = False  # the first cell of 2 x 2 px is empty
    valid[:, 0, 2] = False
    n, first, second = residuals._sums_in_cells(smooth, valid, valid_box(valid[0].numpy()), (N_POSITIONS,) * 2)[:, 0]
    assert n.shape == (N_POSITIONS, N_POSITIONS)
    assert (n[0, 0], n[0, 1], n[5, 7]) == (0.0, 0.75, 1.0)
    cell = smooth[0, :2, 2:4].double().flatten()[1:]
    assert float(first[0, 1] / n[0, 1]) == pytest.approx(float(cell.mean()))
    assert float(second[0, 1] / n[0, 1]) == pytest.approx(float(cell.square().mean()))
    assert float(first[5, 7]) == pytest.approx(float(smooth[0, 10:12, 14:16].mean()))


def test_everywhere_means_one_pair_for_all_valid_pixels(data: TrainingData) -> None:
    mapper, _ = learned(data, "scoring.standardise=global")
    errors = smoothed_errors(mapper, data).double()
    assert float(mapper.standardise.get_buffer("mean")) == pytest.approx(float(errors.mean()), rel=1e-4)
    assert float(mapper.standardise.get_buffer("sd")) == pytest.approx(float(errors.std()), rel=1e-3)


def test_without_any_error_the_map_is_still_finite() -> None:
    config = load_config("smoke", ["scoring.standardise=context"])
    mapper, data = AnomalyMapper(config), data_of(3, 3)  # an untrained U-Net is the identity: no error at all
    learn_residuals(mapper, data, config, CPU, lambda *_: None)
    assert float(mapper.standardise.get_buffer("sd").min()) > 0
    assert torch.isfinite(maps_of(mapper, data)).all()


@pytest.mark.parametrize(("n_train", "n_validation", "n_used"), [(5, 4, 9), (70, 4, 60), (5, 61, 61), (5, 210, 200)])
def test_validation_normals_first_training_images_only_to_fill_up(
    n_train: int, n_validation: int, n_used: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AnomalyMapper, "measures", lambda self, raw, valid, limits: raw)
    monkeypatch.setattr(AnomalyMapper, "errors", lambda self, raw, valid, limits: raw)
    data = data_of(n_train, n_validation)
    mapper, seen = learned(data, "scoring.gms=0.0")
    assert [s for s in seen if s[0] == "residuals of normal images"][-1][1:] == (n_used, n_used)
    n_kept = min(n_validation, 200)
    validation, train = (
        [store.image(int(i))[0] for i in np.linspace(0, len(store) - 1, n).round()]  # from the first to the last
        for store, n in ((data.validation, n_kept), (data.train, min(n_used - n_kept, n_train)))
    )
    expected = torch.stack([*validation, *train]).mean()
    assert float(mapper.compare.get_buffer("unit")) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("kind", ["context", "global", "position", "column"])
def test_what_lies_outside_the_valid_mask_does_not_count(kind: str) -> None:
    first, second = (
        learned(data_of(6, 4, outside), f"scoring.standardise={kind}")[0].state_dict() for outside in (0.0, 1e6)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_context_ignores_invalid_pixels_altogether() -> None:
    whole, masked = data_of(12, 12), data_of(12, 12, outside=0.0)
    maps = [learned(data, "scoring.standardise=context")[0].standardise.get_buffer("mean") for data in (whole, masked)]
    assert float(maps[1].min()) > 0.5 * float(maps[0].min())  # zeros of the masked rows would pull the lowest bin down


def test_the_statistics_repeat_exactly(data: TrainingData) -> None:
    first, again = (learned(data, "scoring.standardise=context")[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
