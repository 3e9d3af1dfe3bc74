"""On a CUDA device: training in bfloat16, images kept there, and the scores of the CPU. Skipped without one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator, Tensor, nn

from anomaly_ae.config import Config, load_config
from anomaly_ae.corruption import corrupt
from anomaly_ae.detector import Detector
from anomaly_ae.device import describe_device
from anomaly_ae.fitting import fit
from anomaly_ae.loading import ImageStore
from anomaly_ae.manifest import Manifest
from anomaly_ae.prepare import Prepared
from anomaly_ae.records import FloatArray, Score
from anomaly_ae.replay import N_PLAIN_CALLS, Replayed
from anomaly_ae.scoring import AnomalyMapper
from anomaly_ae.training import TrainingData, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]

CUDA = torch.device("cuda")
SIDE_PX = 32


def store_of(n_images: int, seed: int, device: torch.device = CUDA) -> ImageStore:
    def images() -> Iterator[tuple[Prepared, FloatArray]]:
        for i in range(n_images):
            pixels = np.random.default_rng((seed, i)).random((1, SIDE_PX, SIDE_PX), np.float32)
            valid = np.ones((SIDE_PX, SIDE_PX), bool)
            valid[:, : i % 3] = False
            yield Prepared(pixels, valid, valid.shape, valid.shape, None, None), np.array([[0.0, 1.0]])

    return ImageStore(images(), n_images, device)


def config_of(*settings: str) -> Config:
    return load_config("smoke", ["training.steps=8", "training.validate_every=4", *settings])


@pytest.fixture(scope="module")
def gpu_detector(part_manifest: Manifest) -> Detector:
    return fit(part_manifest, load_config("smoke"), device="cuda")


@pytest.fixture(scope="module")
def gpu_model_file(gpu_detector: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gpu") / "gpu.safetensors"
    gpu_detector.save(path)
    return path


def test_images_are_kept_on_the_device_and_cropped_there() -> None:
    with store_of(5, 0) as store:
        raw, valid = store.image(1)
        assert raw.is_cuda
        assert valid.is_cuda
        assert all(t.is_cuda for t in store.crops(4, (16, 16), torch.Generator().manual_seed(0)))


def test_crops_on_the_device_are_those_of_the_cpu() -> None:
    with store_of(5, 0) as there, store_of(5, 0, torch.device("cpu")) as here:
        crops = [store.crops(20, (16, 16), torch.Generator().manual_seed(0)) for store in (there, here)]
    for on_gpu, on_cpu in zip(*crops, strict=True):
        assert torch.equal(on_gpu.cpu(), on_cpu)


def test_images_that_do_not_fit_stay_outside_and_their_crops_come_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 1000))
    with store_of(5, 0) as store:
        assert not store.image(0)[0].is_cuda
        assert store.crops(4, (16, 16), torch.Generator().manual_seed(0))[0].is_cuda


def test_training_computes_in_bfloat16_and_channels_last() -> None:
    config, seen = config_of(), []
    torch.manual_seed(0)
    mapper = AnomalyMapper(config)

    def note(module: nn.Module, args: tuple[Tensor, ...], result: Tensor) -> None:
        if module.training and torch.is_grad_enabled():
            seen.append((result.dtype, result.is_contiguous(memory_format=torch.channels_last)))

    hook = mapper.autoencoder.get_submodule("encoders.0.0").register_forward_hook(note)
    with store_of(12, 0) as learned, store_of(6, 1) as validation:
        progress = train(mapper, TrainingData(learned, validation), config, CUDA)
    hook.remove()
    assert seen == [(torch.bfloat16, True)] * (N_PLAIN_CALLS + 1)  # the last is recorded, the other steps replay it
    assert all(np.isfinite(entry["validation_loss"]) for entry in progress.history)
    assert all(p.is_cuda and p.dtype == torch.float32 for p in mapper.autoencoder.parameters())


def test_a_replayed_function_computes_what_it_would_by_itself() -> None:
    total = torch.zeros(3, device=CUDA)

    def add(x: Tensor) -> Tensor:
        total.add_(x)
        return total * 2

    replayed = Replayed(add)
    returned = [replayed(torch.full((3,), float(number), device=CUDA)).clone() for number in range(8)]
    assert [tensor.tolist() for tensor in returned] == [[2.0 * sum(range(n + 1))] * 3 for n in range(8)]


def test_a_recorded_step_learns_as_a_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    config, weights = config_of("training.steps=12"), []
    for n_plain_calls in (N_PLAIN_CALLS, 100):
        monkeypatch.setattr("anomaly_ae.replay.N_PLAIN_CALLS", n_plain_calls)
        torch.manual_seed(0)
        mapper = AnomalyMapper(config)
        before = torch.cat([p.detach().flatten() for p in mapper.autoencoder.parameters()])
        with store_of(12, 0) as learned, store_of(6, 1) as validation:
            train(mapper, TrainingData(learned, validation), config, CUDA)
        weights.append(torch.cat([p.detach().flatten().cpu() for p in mapper.autoencoder.parameters()]) - before)
    # bfloat16 and sums in another order are all that may differ.
    assert (weights[0] - weights[1]).norm() < 0.02 * weights[1].norm()


@pytest.mark.parametrize("variety", ["plain", "rich"])
def test_damage_on_the_gpu_is_like_that_on_the_cpu_and_repeats(variety: str) -> None:
    x = torch.rand(8, 1, 64, 64)
    config = load_config("default", [f"corruption.variety={variety}"]).corruption

    def over_seeds(images: Tensor) -> tuple[Tensor, Tensor]:
        drawn = [corrupt(images, config, Generator().manual_seed(seed)) for seed in range(40)]
        return torch.stack([d for d, _, _ in drawn]).cpu(), torch.stack([mask for *_, mask in drawn]).cpu()

    (damaged, mask), (again, _), (there, mask_there) = over_seeds(x.to(CUDA)), over_seeds(x.to(CUDA)), over_seeds(x)
    assert torch.equal(damaged, again)
    assert (mask > 0.1).float().mean() == pytest.approx((mask_there > 0.1).float().mean(), rel=0.15)
    assert damaged.std() == pytest.approx(there.std(), rel=0.05)


@pytest.mark.parametrize("name", ["cuda", "cpu"])
def test_a_checkpoint_of_the_gpu_is_continued_on_either_device(tmp_path: Path, name: str) -> None:
    config, checkpoint, device = config_of(), tmp_path / "state.safetensors", torch.device(name)
    answers = iter([False] * 5 + [True])
    with store_of(12, 0) as learned, store_of(6, 1) as validation:
        data = TrainingData(learned, validation)
        train(AnomalyMapper(config), data, config, CUDA, checkpoint, should_stop=lambda: next(answers))
    with store_of(12, 0, device) as learned, store_of(6, 1, device) as validation:
        data = TrainingData(learned, validation)
        progress = train(AnomalyMapper(config), data, config, device, checkpoint)
    assert (progress.step, progress.stopped) == (8, "")
    assert [entry["step"] for entry in progress.history] == [4, 8]


def test_the_gpu_is_named(gpu_detector: Detector) -> None:
    assert gpu_detector.device.type == gpu_detector.provenance["device"] == "cuda"
    assert describe_device(gpu_detector.device) == f"the GPU ({torch.cuda.get_device_name()})"


def test_gpu_and_cpu_score_the_same(gpu_detector: Detector, gpu_model_file: Path, part_folder: Path) -> None:
    on_cpu = Detector.load(gpu_model_file, "cpu")
    assert on_cpu.weights_sha256 == gpu_detector.weights_sha256
    paths = sorted((part_folder / "test").glob("*/00[0-1].png"))
    pairs = zip(gpu_detector.score_many(paths), on_cpu.score_many(paths), strict=True)
    for there, here in pairs:
        assert isinstance(there, Score)
        assert isinstance(here, Score)
        # Convolutions on the GPU may round their inputs to TF32: 10 bits of the mantissa.
        assert there.score == pytest.approx(here.score, rel=0.02, abs=0.05)
        np.testing.assert_allclose(there.anomaly_map, here.anomaly_map, rtol=0.02, atol=0.1)


def test_a_model_of_the_cpu_scores_the_same_on_the_gpu(
    smoke_detector: Detector, smoke_model_file: Path, part_folder: Path
) -> None:
    on_gpu = Detector.load(smoke_model_file, "cuda")
    path = part_folder / "test" / "stain" / "000.png"
    first, again = on_gpu.score(path), on_gpu.score(path)
    assert first.score == again.score
    assert first.score == pytest.approx(smoke_detector.score(path).score, rel=0.02, abs=0.05)
