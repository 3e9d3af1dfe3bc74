"""Several networks as one detector: the mean of their maps, their file, their training, and mirror images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import done
from torch import Generator, Tensor

from anomaly_ae import training
from anomaly_ae.config import Config, GeometryConfig, ScoringConfig, load_config, with_values
from anomaly_ae.detector import Detector
from anomaly_ae.ensemble import Ensemble
from anomaly_ae.errors import ConfigError, ModelFileError
from anomaly_ae.fitting import fit
from anomaly_ae.learning import checkpoint_of, member_checkpoint, member_config
from anomaly_ae.listener import Listener
from anomaly_ae.manifest import Manifest, load_manifest
from anomaly_ae.modelfile import read_tensors, tensors_sha256, write_tensors
from anomaly_ae.prepare import finest_steps, fitting_scales
from anomaly_ae.readers import image_from
from anomaly_ae.scoring import AnomalyMapper

N_STEPS = 4
PLAIN = ScoringConfig(coarse_weight=1)
FLIPS = ScoringConfig(coarse_weight=1, test_time_flips=True)


@pytest.fixture(autouse=True)
def _few_norm_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "N_NORM_BATCHES", 3)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """30 normal images of 32 px."""
    folder = tmp_path_factory.mktemp("noise")
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (30, 32, 32)).astype(np.uint8)):
        np.save(folder / f"{number:03d}.npy", pixels)
    return load_manifest(folder)


def config_of(*settings: str) -> Config:
    return load_config("smoke", [f"training.steps={N_STEPS}", "training.validate_every=2", *settings])


def mappers(n: int, standardise: str = "position", **scoring: Any) -> list[AnomalyMapper]:
    """Mappers of small random networks that differ in every learned number."""
    config = with_values(
        Config(),
        model={"width": 4, "depth": 1, "unshuffle": 2},
        scoring={"standardise": standardise, "gms": 0.5, **scoring},
    )
    made = []
    for seed in range(n):
        torch.manual_seed(seed)
        mapper, generator = AnomalyMapper(config).eval(), Generator().manual_seed(seed)
        for weights in mapper.autoencoder.parameters():
            weights.data.copy_((torch.rand(weights.shape, generator=generator) - 0.5) * 0.4)
        for name, low in (("mean", 0.0), ("sd", 0.1)):
            buffer = mapper.standardise.get_buffer(name)
            buffer.copy_(torch.rand(buffer.shape, generator=generator) * 0.2 + low)
        mapper.standardise.get_buffer("activity").copy_(torch.linspace(0.01, 0.4, 12))
        made.append(mapper)
    return made


def image(*sides: int) -> tuple[Tensor, Tensor, Tensor]:
    """An image without any symmetry, a mask with a hole and an empty border on one side, limits."""
    raw = torch.rand(1, 1, *sides, generator=Generator().manual_seed(0))
    valid = torch.ones(1, 1, *sides, dtype=torch.bool)
    valid[..., :7, :], valid[..., 20:30, 10:25] = False, False
    return raw, valid, torch.tensor([[[0.0, 1.0]]], dtype=torch.float64)


@torch.inference_mode()
def mapped(function: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
    return function(*arguments)


# --- the mean of the maps ---


@pytest.mark.parametrize("standardise", ["position", "column", "context", "global"])
def test_the_map_is_the_mean_of_the_maps_of_the_members(standardise: str) -> None:
    members, arguments = mappers(3, standardise), image(64, 96)
    alone = [mapped(member, *arguments) for member in members]
    assert all((alone[0] - other).abs().max() > 0.1 for other in alone[1:])
    assert torch.allclose(mapped(Ensemble(members, PLAIN), *arguments), torch.stack(alone).mean(dim=0), atol=1e-5)


@pytest.mark.parametrize("coarse_weight", [0.0, 0.25])
def test_a_look_at_a_shrunk_image_has_its_own_weight(coarse_weight: float) -> None:
    members, arguments = mappers(3), image(64, 96)
    for member, shrink in zip(members, (1, 2, 4), strict=True):
        member.shrink = shrink
    fine, *coarse = (mapped(member, *arguments) for member in members)
    expected = (fine + coarse_weight * sum(coarse)) / (1 + 2 * coarse_weight)
    ensemble = Ensemble(members, ScoringConfig(coarse_weight=coarse_weight))
    assert torch.allclose(mapped(ensemble, *arguments), expected, atol=1e-5)
    assert f"{coarse_weight:g} of the weight" in " ".join(ensemble.describe())
    assert "of the weight" not in " ".join(Ensemble(members, PLAIN).describe())


@pytest.mark.parametrize("standardise", ["position", "column", "context", "global"])
def test_one_member_alone_is_exactly_the_mapper(standardise: str) -> None:
    (mapper,) = mappers(1, standardise)
    ensemble, arguments = Ensemble([mapper], PLAIN), image(64, 96)
    assert torch.equal(mapped(ensemble, *arguments), mapped(mapper, *arguments))
    with torch.inference_mode():
        for found, expected in zip(ensemble.reconstruct(*arguments), mapper.reconstruct(*arguments), strict=True):
            assert torch.equal(found, expected)
    assert {name.removeprefix("mapper.") for name in ensemble.tensors()} == set(mapper.state_dict())
    assert ensemble.describe() == []


@torch.inference_mode()
def test_the_reconstruction_is_the_mean_of_those_of_the_members() -> None:
    members, arguments = mappers(2), image(64, 96)
    (x, one), (_, two) = (member.reconstruct(*arguments) for member in members)
    assert not torch.allclose(one, two, atol=1e-3)
    found = Ensemble(members, PLAIN).reconstruct(*arguments)
    assert torch.equal(found[0], x)
    assert torch.allclose(found[1], (one + two) / 2, atol=1e-6)


@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize("standardise", ["position", "context"])
def test_in_windows_it_is_the_same_map(standardise: str, flips: bool) -> None:
    windowed, whole = (mappers(2, standardise, window_px=window_px) for window_px in (128, 1024))
    arguments, scoring = image(300, 180), ScoringConfig(test_time_flips=flips)
    tiled, expected = (mapped(Ensemble(members, scoring), *arguments) for members in (windowed, whole))
    assert windowed[0].window_px < 180
    scale = expected.abs().max() + 1 / windowed[0].standardise.get_buffer("sd").min()
    assert (tiled - expected).abs().max() < 1e-5 * scale


@torch.inference_mode()
def test_in_windows_it_is_the_same_reconstruction() -> None:
    windowed, whole = (mappers(2, window_px=window_px) for window_px in (128, 1024))
    sides_px: list[int] = []
    windowed[0].autoencoder.register_forward_pre_hook(lambda _, given: sides_px.append(max(given[0].shape[2:])))
    arguments = image(300, 180)
    tiled, expected = (Ensemble(members, PLAIN).reconstruct(*arguments) for members in (windowed, whole))
    for found, one in zip(tiled, expected, strict=True):
        assert torch.allclose(found, one, atol=1e-5)
    assert len(sides_px) > 1
    assert max(sides_px) < 300


# --- mirror images ---


def test_the_map_is_the_mean_over_all_mirror_images_each_mirrored_back() -> None:
    """With statistics that do not depend on the position, mirroring whole maps is the same."""
    (mapper,) = mappers(1, "context")
    raw, valid, limits = image(64, 96)
    maps = [mapped(mapper, raw.flip(axes), valid.flip(axes), limits).flip(axes) for axes in ((), (2,), (3,), (2, 3))]
    assert (maps[0] - maps[3]).abs().max() > 0.1
    found = mapped(Ensemble([mapper], FLIPS), raw, valid, limits)
    assert torch.allclose(found, torch.stack(maps).mean(dim=0), atol=1e-4)


@torch.inference_mode()
def test_mirrored_errors_are_compared_with_those_of_their_own_place() -> None:
    (mapper,) = mappers(1, "position")
    raw, valid, limits = image(64, 96)
    errors = [mapper.errors(raw.flip(axes), valid.flip(axes), limits).flip(axes) for axes in ((), (2,), (3,), (2, 3))]
    expected = torch.stack([mapper.standardise(error, valid) for error in errors]).mean(dim=0)
    assert torch.allclose(Ensemble([mapper], FLIPS)(raw, valid, limits), expected, atol=1e-4)
    of_the_mirrored = mapper(raw.flip(3), valid.flip(3), limits).flip(3)
    assert (of_the_mirrored - mapper.standardise(errors[2], valid)).abs().max() > 0.1, "the place matters here"


def test_a_volume_has_eight_mirror_images() -> None:
    config = with_values(Config(), model={"width": 4, "depth": 1, "spatial_dims": 3, "unshuffle": 1})
    seen = []

    def watched(raw: Tensor, valid: Tensor, limits: Tensor) -> Tensor:
        seen.append(raw)
        return valid.float()

    mapper = AnomalyMapper(config)
    mapper.errors = watched  # type: ignore[method-assign]
    raw = torch.rand(1, 1, 8, 4, 4)
    Ensemble([mapper], FLIPS)(raw, raw > -1, torch.tensor([[[0.0, 1.0]]]))
    assert len({x.numpy().tobytes() for x in seen}) == len(seen) == 8


def test_mirror_images_are_refused_where_they_were_not_trained_on() -> None:
    with pytest.raises(ConfigError, match=r"test_time_flips without training\.flip.*training\.flip=true"):
        load_config("smoke", ["scoring.test_time_flips=true"])
    assert load_config("texture", ["scoring.test_time_flips=true"]).scoring.test_time_flips


def test_a_model_with_mirror_images_scores_otherwise_and_says_so(manifest: Manifest, tmp_path: Path) -> None:
    plain = fit(manifest, config_of("training.flip=true"), device="cpu")
    mirrored = fit(manifest, config_of("training.flip=true", "scoring.test_time_flips=true"), device="cpu")
    mirrored.save(tmp_path / "m.safetensors")
    loaded = Detector.load(tmp_path / "m.safetensors", "cpu")
    pixels = np.random.default_rng(5).integers(0, 256, (32, 32)).astype(np.uint8)
    one, two, again = (detector.score(pixels) for detector in (plain, mirrored, loaded))
    assert two.score == again.score != one.score
    assert tensors_sha256(plain.mapper.state_dict()) == tensors_sha256(mirrored.mapper.state_dict())
    assert two.weights_sha256 == again.weights_sha256 != one.weights_sha256
    assert any("mirror images" in line for line in loaded.describe())
    assert not any("mirror images" in line for line in plain_description(plain, tmp_path))


def plain_description(detector: Detector, folder: Path) -> list[str]:
    detector.save(folder / "plain.safetensors")
    return Detector.load(folder / "plain.safetensors", "cpu").describe()


# --- training ---


def test_seeds_of_members_are_far_apart() -> None:
    seeds = {member_config(config_of(f"seed={seed}"), number).seed for seed in range(3) for number in range(1, 17)}
    assert len(seeds) == 48
    assert member_config(config_of("seed=7"), 1).seed == 7
    assert min(abs(a - b) for a in seeds for b in seeds if a != b and max(a, b) > 2) > 2, "training uses seed + 1, too"


def test_the_first_member_is_the_model_of_one_and_the_others_differ(manifest: Manifest) -> None:
    even_light = "intensity.flat_field=learned"
    one, three = (fit(manifest, config_of(even_light, f"training.members={n}"), device="cpu") for n in (1, 3))
    hashes = [tensors_sha256(member.state_dict()) for member in three.ensemble.members]
    assert hashes[0] == tensors_sha256(one.mapper.state_dict())
    assert len(set(hashes)) == 3
    for name in ("limits", "flat_field"):
        shared = [member.get_buffer(name) for member in three.ensemble.members]
        assert all(torch.equal(shared[0], other) for other in shared[1:])
    assert one.weights_sha256 != three.weights_sha256
    assert three.provenance["image_hashes"] == one.provenance["image_hashes"], "the split is one"
    assert three.provenance["steps"] == N_STEPS, "of each"
    assert [(h["member"], h["step"]) for h in three.provenance["history"]] == [
        (member, step) for member in (1, 2, 3) for step in (2, 4)
    ]


def test_every_member_decides_on_the_hash_of_the_weights(manifest: Manifest) -> None:
    for number in (0, 1):
        detector = fit(manifest, config_of("training.members=2"), device="cpu")
        before = detector.weights_sha256
        del detector.weights_sha256  # it is kept once it was asked for
        detector.ensemble.members[number].standardise.get_buffer("mean").add_(1)
        assert detector.weights_sha256 != before


def test_progress_and_lines_name_the_member(manifest: Manifest) -> None:
    lines: list[str] = []
    stages: list[str] = []
    listener = Listener(say=lines.append, progress=lambda stage, *_: stages.append(stage))
    fit(manifest, config_of("training.members=2"), device="cpu", listener=listener)
    assert next(line for line in lines if line.startswith("training on")).endswith(
        "2 networks one after the other, of 4, 4 steps"
    )
    assert list(dict.fromkeys(stage for stage in stages if "training" in stage and "images" not in stage)) == [
        "network 1 of 2: training",
        "network 2 of 2: training",
    ]


def test_saved_and_loaded_it_is_the_same(manifest: Manifest, tmp_path: Path) -> None:
    detector = fit(manifest, config_of("training.members=2"), device="cpu")
    path = tmp_path / "two.safetensors"
    detector.save(path)
    loaded = Detector.load(path, "cpu")
    assert loaded.weights_sha256 == detector.weights_sha256
    pixels = np.random.default_rng(5).integers(0, 256, (32, 32)).astype(np.uint8)
    first, again = detector.score(pixels), loaded.score(pixels)
    assert (first.score, first.p_value) == (again.score, again.p_value)
    prepared = detector.prepare(image_from(pixels))
    alone = [Ensemble([member], PLAIN) for member in loaded.ensemble.members]
    maps = [mapped(member, *loaded._tensors(prepared)) for member in alone]
    assert first.anomaly_map == pytest.approx(torch.stack(maps).mean(dim=0)[0, 0].numpy(), abs=1e-4)
    assert any(line.startswith("members: 2") for line in loaded.describe())
    tensors, values, _ = read_tensors(path, "model")
    assert {name.partition(".")[0] for name in tensors} == {"mapper", "mapper2", "baseline", "calibration"}
    values["config"]["training"]["members"] = 3
    write_tensors(path, tensors, values, "model")
    with pytest.raises(ModelFileError, match="does not hold a whole model"):
        Detector.load(path, "cpu")


# --- stopping and going on ---


def at_question(number: int, answer: Callable[[], bool]) -> Callable[[], bool]:
    """Answer no, and as given from the n-th question on: training asks after every step, and between members."""
    asked: Iterator[int] = iter(range(1, 10_000))
    return lambda: next(asked) >= number and answer()


def abort() -> bool:
    raise KeyboardInterrupt


@pytest.mark.parametrize("question", [N_STEPS + 4, 2 * N_STEPS + 2, 2 * N_STEPS + 5])
def test_aborted_and_resumed_ends_with_the_weights_of_one_go(manifest: Manifest, tmp_path: Path, question: int) -> None:
    """In the second member, after it, and in the third."""
    config, checkpoint = config_of("training.members=3"), checkpoint_of(tmp_path / "m.safetensors")
    whole = fit(manifest, config, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        fit(manifest, config, device="cpu", checkpoint=checkpoint, should_stop=at_question(question, abort))
    assert member_checkpoint(checkpoint, 2).exists()
    lines: list[str] = []
    resumed = fit(manifest, config, device="cpu", checkpoint=checkpoint, listener=Listener(say=lines.append))
    assert f"network 1 of 3: continuing at step {N_STEPS} of {N_STEPS}" in lines
    assert any(line.startswith("network 2 of 3: continuing at step") for line in lines)
    assert resumed.weights_sha256 == whole.weights_sha256
    assert resumed.calibrated[1] == whole.calibrated[1]


def test_checkpoints_of_members_do_not_stand_in_for_each_other(manifest: Manifest, tmp_path: Path) -> None:
    config, checkpoint = config_of("training.members=2"), tmp_path / "state.safetensors"
    fit(manifest, config, device="cpu", checkpoint=checkpoint)
    member_checkpoint(checkpoint, 2).write_bytes(checkpoint.read_bytes())
    with pytest.raises(ModelFileError, match="belongs to another fit"):
        fit(manifest, config, device="cpu", checkpoint=checkpoint)
    fit(manifest, config_of(), device="cpu", checkpoint=checkpoint, resume=False)
    assert not member_checkpoint(checkpoint, 2).exists(), "that of an older fit with more members is removed, too"


@pytest.mark.parametrize(
    ("question", "n_kept"), [(2, 1), (N_STEPS + 1, 1), (N_STEPS + 3, 2), (2 * N_STEPS + 2, 2), (2 * N_STEPS + 4, 3)]
)
def test_asked_to_stop_keeps_the_members_begun(manifest: Manifest, tmp_path: Path, question: int, n_kept: int) -> None:
    lines: list[str] = []
    stopped = fit(
        manifest,
        config_of("training.members=3"),
        device="cpu",
        listener=Listener(say=lines.append),
        should_stop=at_question(question, lambda: True),
    )
    assert len(stopped.ensemble.members) == stopped.config.training.members == n_kept
    assert (f"asked to stop: the model holds {n_kept} of 3 networks" in lines) == (n_kept < 3)
    assert {entry["member"] for entry in stopped.provenance["history"]} == set(range(1, n_kept + 1))
    whole = fit(manifest, config_of(f"training.members={n_kept}"), device="cpu")
    pairs = list(zip(stopped.ensemble.members, whole.ensemble.members, strict=True))
    same = [tensors_sha256(a.state_dict()) == tensors_sha256(b.state_dict()) for a, b in pairs]
    assert all(same[:-1]), "finished members are as if nothing had happened"
    stopped.save(tmp_path / "m.safetensors")
    assert Detector.load(tmp_path / "m.safetensors", "cpu").weights_sha256 == stopped.weights_sha256


# --- scales ---


def of_two_scales(*settings: str) -> Config:
    return config_of("model.n_scales=2", "geometry.min_side_px=16", "training.crop_px=16", *settings)


def test_every_scale_has_a_network_of_its_own(manifest: Manifest, tmp_path: Path) -> None:
    lines: list[str] = []
    detector = fit(manifest, of_two_scales("training.members=2"), device="cpu", listener=Listener(say=lines.append))
    assert [member.shrink for member in detector.ensemble.members] == [1, 2, 1, 2]
    assert any(line.endswith("4 networks one after the other, of 4, 4, 4, 4 steps") for line in lines)
    hashes = {tensors_sha256(member.autoencoder.state_dict()) for member in detector.ensemble.members}
    assert len(hashes) == 4
    detector.save(tmp_path / "m.safetensors")
    loaded = Detector.load(tmp_path / "m.safetensors", "cpu")
    assert any("4 such networks" in line and "1, 1/2" in line for line in loaded.describe())
    picture = image_from(np.random.default_rng(1).integers(0, 256, (32, 32)).astype(np.uint8))
    assert loaded.score(picture).score == detector.score(picture).score
    assert loaded.reconstruct(picture)[1].shape == (1, 32, 32), "the coarse networks take no part in the picture"


def test_the_coarse_network_learns_from_shrunk_images(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    whole = training.corrupt
    monkeypatch.setattr(training, "corrupt", lambda x, *rest: seen.append(tuple(x.shape[2:])) or whole(x, *rest))
    fit(manifest, of_two_scales("training.crop_px=48"), device="cpu")
    assert set(seen) == {(32, 32), (16, 16)}, "all of the image, and all that half of the resolution leaves"


@pytest.mark.parametrize(("question", "n_scales", "n_members"), [(2, 1, 1), (6, 2, 1), (11, 2, 1), (17, 2, 2)])
def test_asked_to_stop_keeps_whole_sets_of_scales(
    manifest: Manifest, question: int, n_scales: int, n_members: int
) -> None:
    config = of_two_scales("training.members=2")
    stopped = fit(manifest, config, device="cpu", should_stop=at_question(question, lambda: True))
    assert (stopped.config.model.n_scales, stopped.config.training.members) == (n_scales, n_members)
    assert len(stopped.ensemble.members) == n_scales * n_members


@pytest.mark.parametrize(("side", "n_scales"), [(32, 1), (64, 1), (127, 1), (128, 2), (256, 3), (2000, 3)])
def test_scales_that_leave_too_little_are_left_out(side: int, n_scales: int) -> None:
    assert fitting_scales([(side, 2 * side)], Config()) == n_scales


@pytest.mark.parametrize(("factor", "given", "wanted"), [(1, 0, 4), (1 / 1.5, 0, 9), (1 / 1.5, 6, 6)])
def test_networks_at_full_resolution_learn_longer_from_large_images(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, factor: float, given: int, wanted: int
) -> None:
    monkeypatch.setattr("anomaly_ae.prepare.WELL_TRAINED_SIDE_PX", 32 * factor)
    detector = fit(manifest, of_two_scales("training.members=2", f"training.finest_steps={given}"), device="cpu")
    steps = [0] * 4
    for entry in detector.provenance["history"]:
        steps[entry["member"] - 1] = entry["step"]
    assert steps == [wanted, 4, wanted, 4]
    assert detector.config.training.finest_steps == detector.provenance["steps"] == wanted


def test_steps_follow_the_typical_image_at_working_scale() -> None:
    shapes = [(480, 480), (480, 480), (4000, 4000)]
    assert finest_steps(shapes, Config()) == 5400  # 2.25 times the area of 320 x 320
    assert finest_steps([(1024, 2048)] * 3, Config()) == round(2400 * 256 * 512 / 320**2)  # shrunk to 256 x 512
    large = Config(geometry=GeometryConfig(max_side_px=2048))
    assert finest_steps([(2048, 2048)] * 3, large) == finest_steps([(512, 512)], Config()) == 6144
    assert finest_steps([(160, 160, 160)], Config()) == 2400
    assert finest_steps([(480, 480, 480)], Config()) == round(2400 * 1.5**3)


# --- the command line ---


def test_fit_score_and_info_with_two_members(manifest: Manifest, tmp_path: Path) -> None:
    model = tmp_path / "two.safetensors"
    done("fit", manifest.root, "--preset", "smoke", "--set", "training.steps=4", "--members", "2", "--out", model)
    assert [path.name for path in tmp_path.iterdir()] == ["two.safetensors"], "no checkpoint of a member is left"
    assert "members: 2 such networks" in done("info", model)
    done("score", model, manifest.root, "--out", tmp_path / "run")
    assert (tmp_path / "run" / "report.html").exists()
    assert len(Detector.load(model, "cpu").ensemble.members) == 2
