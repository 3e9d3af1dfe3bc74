"""Features of a frozen ResNet instead of pixels: tiny random networks in the names and shapes of the published ones."""

from __future__ import annotations

import socket
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Generator, Tensor
from torch.nn import functional
from typer.testing import CliRunner

from anomaly_ae.backbone import FIRST_BLOCK, MAX_FEATURES, STRIDE, Backbone, read_backbone, trunk_tensors
from anomaly_ae.cli import app
from anomaly_ae.config import Config, load_config, with_values
from anomaly_ae.detector import Detector
from anomaly_ae.errors import AnomalyAEError, ConfigError, ModelFileError, UsageError
from anomaly_ae.fitting import fit
from anomaly_ae.listener import Listener
from anomaly_ae.manifest import Manifest
from anomaly_ae.readers import read_image
from anomaly_ae.scoring import AnomalyMapper, map_in_windows

N_BASIC, N_BOTTLENECK = 8 + 16 + 32, 4 * (16 + 32 + 64)
KINDS = pytest.mark.parametrize("kind", ["basic", "bottleneck"])


def resnet(kind: str, n_blocks: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """A whole state dict, with layer4 and classifier: basic with width 8, or bottleneck with width 16 and 2 groups."""
    generator = Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}

    def add(conv: str, norm: str, n_in: int, n_out: int, side: int, n_groups: int = 1) -> None:
        weight = torch.randn(n_out, n_in // n_groups, side, side, generator=generator)
        state[f"{conv}.weight"] = weight * (2 / weight[0].numel()) ** 0.5
        for part, low in (("weight", 0.5), ("bias", -0.2), ("running_mean", -0.2), ("running_var", 0.5)):
            state[f"{norm}.{part}"] = torch.rand(n_out, generator=generator) * 0.5 + low
        state[f"{norm}.num_batches_tracked"] = torch.tensor(7)

    width, expansion = (8, 1) if kind == "basic" else (16, 4)
    add("conv1", "bn1", 3, width, 7)
    n_in = width
    for level in range(4):
        inner = width << level
        for block in range(n_blocks):
            name, n_out = f"layer{level + 1}.{block}", inner * expansion
            if kind == "basic":
                add(f"{name}.conv1", f"{name}.bn1", n_in, inner, 3)
                add(f"{name}.conv2", f"{name}.bn2", inner, inner, 3)
            else:
                add(f"{name}.conv1", f"{name}.bn1", n_in, inner, 1)
                add(f"{name}.conv2", f"{name}.bn2", inner, inner, 3, n_groups=2)
                add(f"{name}.conv3", f"{name}.bn3", inner, n_out, 1)
            if n_in != n_out:
                add(f"{name}.downsample.0", f"{name}.downsample.1", n_in, n_out, 1)
            n_in = n_out
    return {**state, "fc.weight": torch.ones(10, n_in), "fc.bias": torch.ones(10)}


def backbone_file(folder: Path, kind: str = "basic", prefix: str = "") -> Path:
    path = folder / f"{kind}.safetensors"
    save_file({prefix + key: tensor for key, tensor in resnet(kind).items()}, path)
    return path


def config_for(path: Path, *settings: str) -> Config:
    return load_config("smoke", [*settings, f'model.embed="{path.as_posix()}"'])


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=Generator().manual_seed(seed))


def norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    weight, bias, mean, var = (
        state[f"{name}.{part}"].reshape(1, -1, 1, 1) for part in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


# --- what the trunk computes ---


def basic_by_hand(state: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """ResNet with basic blocks as in the paper (He et al., 2016), step by step."""
    x = norm(state, "bn1", functional.conv2d(x, state["conv1.weight"], stride=2, padding=3)).relu()
    x = functional.max_pool2d(x, 3, 2, 1)
    outputs = []
    for layer in (1, 2, 3):
        for block in (0, 1):
            name, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
            inside = functional.conv2d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1)
            inside = norm(state, f"{name}.bn1", inside).relu()
            inside = norm(state, f"{name}.bn2", functional.conv2d(inside, state[f"{name}.conv2.weight"], padding=1))
            if f"{name}.downsample.0.weight" in state:
                around = functional.conv2d(x, state[f"{name}.downsample.0.weight"], stride=stride)
                x = norm(state, f"{name}.downsample.1", around)
            x = (inside + x).relu()
        outputs.append(x)
    return outputs


def test_features_are_those_of_the_paper() -> None:
    state, x = resnet("basic"), rand(2, 3, 64, 96)
    mean, sd = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    fine, middle, coarse = basic_by_hand(state, (x - mean.reshape(1, 3, 1, 1)) / sd.reshape(1, 3, 1, 1))
    found = torch.split(Backbone(state, 3, seed=0).features(x), [8, 16, 32], dim=1)
    assert found[1].shape == (2, 16, 8, 12)
    assert torch.allclose(found[0], functional.avg_pool2d(fine, 2), atol=1e-4)
    assert torch.allclose(found[1], middle, atol=1e-4)
    assert torch.allclose(found[2], functional.interpolate(coarse, size=(8, 12), mode="bilinear"), atol=1e-4)


def test_groups_and_kind_follow_from_the_shapes() -> None:
    backbone = Backbone(resnet("bottleneck"), 3, seed=0)
    assert backbone.widths == [64, 128, 256]
    assert Backbone(resnet("basic"), 3, seed=0).widths == [8, 16, 32]
    state, x = resnet("bottleneck"), rand(1, 64, 8, 8)
    block = backbone.layer1[1]
    inside = norm(state, "layer1.1.bn1", functional.conv2d(x, state["layer1.1.conv1.weight"])).relu()
    weight = state["layer1.1.conv2.weight"]  # in two groups: each output sees half of the inputs
    halves = [functional.conv2d(inside[:, i : i + 8], weight[i : i + 8], padding=1) for i in (0, 8)]
    inside = norm(state, "layer1.1.bn2", torch.cat(halves, dim=1)).relu()
    inside = norm(state, "layer1.1.bn3", functional.conv2d(inside, state["layer1.1.conv3.weight"]))
    assert torch.allclose(block(x), (inside + x).relu(), atol=1e-4)


def test_a_grey_image_is_a_colourless_one() -> None:
    x = rand(1, 1, 32, 32)
    assert torch.equal(Backbone(resnet("basic"), 1, 0)(x), Backbone(resnet("basic"), 3, 0)(x.repeat(1, 3, 1, 1)))
    with pytest.raises(ConfigError, match="2 channels"):
        Backbone(resnet("basic"), 2, 0)


def test_many_channels_are_projected_at_right_angles_and_the_seed_decides_how() -> None:
    state, x = resnet("bottleneck"), rand(1, 3, 32, 32)
    backbone = Backbone(state, 3, seed=1)
    directions = backbone.get_buffer("projection")
    assert backbone(x).shape == (1, MAX_FEATURES, 4, 4)
    assert directions.shape == (MAX_FEATURES, N_BOTTLENECK)
    assert torch.allclose(directions @ directions.T, torch.eye(MAX_FEATURES), atol=1e-5)
    projected = torch.einsum("dc,bchw->bdhw", directions, backbone.features(x))
    assert torch.allclose(backbone(x), projected, atol=1e-3)
    assert torch.equal(Backbone(state, 3, seed=1)(x), backbone(x))
    assert not torch.allclose(Backbone(state, 3, seed=2)(x), backbone(x))
    assert Backbone(resnet("basic"), 3, 0)(x).shape == (1, N_BASIC, 4, 4), "few channels stay as they are"


def test_each_channel_is_measured_in_its_own_deviations_of_valid_cells() -> None:
    backbone, crops = Backbone(resnet("basic"), 1, 0), [rand(3, 1, 32, 64, seed=s) for s in (1, 2)]
    valid = torch.zeros(3, 1, 32, 64, dtype=torch.bool)
    valid[:, :, :16, 8:] = True
    backbone.learn((x, valid) for x in crops)
    z = torch.cat([backbone(x)[:, :, :2, 1:] for x in crops]).double()
    mean, sd = z.mean(dim=(0, 2, 3)), z.std(dim=(0, 2, 3), correction=0)
    assert mean.abs().max() < 1e-3
    assert sd.max() < 1 + 1e-3
    assert ((sd - 1).abs() < 1e-3).sum() > N_BASIC / 2, "but for channels that are nearly silent"


def test_neither_training_mode_nor_gradients_reach_it() -> None:
    backbone, x = Backbone(resnet("basic"), 3, 0), rand(4, 3, 32, 32)
    before = {name: t.clone() for name, t in backbone.state_dict().items()}
    expected = backbone.eval()(x)
    assert torch.equal(backbone.train()(x), expected)
    assert list(backbone.parameters()) == []
    assert not expected.requires_grad
    assert all(torch.equal(t, before[name]) for name, t in backbone.state_dict().items())


# --- the file ---


@KINDS
@pytest.mark.parametrize("prefix", ["", "module.", "backbone.body."])
def test_prefixes_do_not_matter_and_the_path_is_not_kept(tmp_path: Path, kind: str, prefix: str) -> None:
    path = backbone_file(tmp_path, kind, prefix)
    config, tensors = read_backbone(config_for(path))
    name, digest = config.model.embed.split(" sha256:")
    assert name == f"{kind}.safetensors"
    assert len(digest) == 64
    assert Backbone(tensors, 3, 0).widths == Backbone(resnet(kind), 3, 0).widths
    assert not [key for key in tensors if key.startswith(("layer4", "fc")) or "num_batches" in key]


def test_half_precision_is_read_and_means_the_same() -> None:
    half = {key: t.half() if t.is_floating_point() else t for key, t in resnet("basic").items()}
    x, tensors = rand(1, 3, 32, 32), trunk_tensors(half, "half")
    assert torch.allclose(Backbone(tensors, 3, 0)(x), Backbone(resnet("basic"), 3, 0)(x), atol=0.05)


def test_settings_of_pixels_are_set_to_what_was_done(tmp_path: Path) -> None:
    asked = config_for(backbone_file(tmp_path), "scoring.background_sd_px=8", "training.ssim=1", "scoring.gms=1")
    config, _ = read_backbone(asked)
    assert config.model.unshuffle == 1
    assert (config.scoring.ssim, config.scoring.gms, config.scoring.background_sd_px, config.training.ssim) == (0,) * 4
    assert config.scoring.l1 == asked.scoring.l1 > 0
    with pytest.raises(ConfigError, match="all error weights of scoring"):
        read_backbone(with_values(asked, scoring={"l1": 0.0}))
    assert read_backbone(load_config("smoke")) == (load_config("smoke"), {})


def without(*keys: str) -> dict[str, Tensor]:
    return {key: t for key, t in resnet("basic").items() if key not in keys}


WRONG_STATES: dict[str, tuple[dict[str, Tensor], str]] = {
    "no stem": (without("conv1.weight"), "conv1.weight"),
    "no layer3": ({k: t for k, t in resnet("basic").items() if "layer3" not in k}, "layer3.0.conv1.weight"),
    "no statistics": (without("layer2.1.bn2.running_var"), "layer2.1.bn2.running_var"),
    "no way around": (without("layer2.0.downsample.0.weight"), "layer2.0.downsample.0.weight"),
    "another network": ({"patch_embed.proj.weight": torch.ones(3)}, FIRST_BLOCK),
    "two networks": ({f"{p}.{k}": t for p in "qk" for k, t in resnet("basic").items()}, FIRST_BLOCK),
    "with attention": ({**resnet("basic"), "layer1.0.se.fc1.weight": torch.ones(2, 8, 1, 1)}, "layer1.0.se.fc1.weight"),
    "with a bias": ({**resnet("basic"), "layer3.1.conv1.bias": torch.ones(32)}, "layer3.1.conv1.bias"),
    "NaN": ({**resnet("basic"), "bn1.bias": torch.full((8,), float("nan"))}, "bn1.bias"),
    "shapes": ({**resnet("basic"), "layer2.0.conv2.weight": torch.ones(16, 5, 3, 3)}, "do not fit together"),
    "flat": ({**resnet("basic"), "conv1.weight": torch.ones(8, 3)}, "conv1.weight"),
}


@pytest.mark.parametrize(("state", "named"), WRONG_STATES.values(), ids=WRONG_STATES.keys())
def test_what_is_no_resnet_is_refused_by_name(tmp_path: Path, state: dict[str, Tensor], named: str) -> None:
    path = tmp_path / "wrong.safetensors"
    save_file(state, path)
    with pytest.raises(ModelFileError, match=named.replace(".", r"\.")):
        Backbone(read_backbone(config_for(path))[1], 1, 0)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".PTH", ".bin", ".ckpt"])
def test_a_pickle_is_never_opened(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"resnet18{suffix}"  # not even looked for
    with pytest.raises(ConfigError, match=r"safetensors\.torch\.save_file"):
        read_backbone(config_for(path))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip file", b"\xff" * 100])
def test_what_is_no_safetensors_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "resnet18.safetensors"
    with pytest.raises(ConfigError, match="cannot read"):
        read_backbone(config_for(path))
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="no safetensors file"):
        read_backbone(config_for(path))


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anomaly_ae.backbone.MAX_BYTES", 1000)
    with pytest.raises(ConfigError, match="at most 1000"):
        read_backbone(config_for(backbone_file(tmp_path)))


def test_volumes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="spatial_dims = 2"):
        read_backbone(config_for(backbone_file(tmp_path), "model.spatial_dims=3"))


# --- the mapper ---


def random_mapper(kind: str, **sections: dict[str, Any]) -> AnomalyMapper:
    """A mapper on features, with random numbers in the autoencoder and as statistics."""
    values = {"model": {"embed": "x", "width": 4, "depth": 1, **sections.pop("model", {})}, **sections}
    values["scoring"] = {
        "l1": 0.5,
        "l2": 0.5,
        "ssim": 0.0,
        "chroma": 0.0,
        "window_px": 128,
        **sections.get("scoring", {}),
    }
    mapper = AnomalyMapper(with_values(Config(), **values), resnet(kind)).eval()
    generator = Generator().manual_seed(2)
    for tensor in mapper.autoencoder.state_dict().values():
        if tensor.ndim == 4:  # gains of about 1, so that what lies far away still counts
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * (2 / tensor[0].numel()) ** 0.5)
    mapper.standardise.get_buffer("sd").fill_(0.5)
    return mapper


def inputs(*sides: int) -> tuple[Tensor, Tensor, Tensor]:
    valid = torch.ones(1, 1, *sides, dtype=torch.bool)
    valid[..., 20:45, 30:70] = False
    return rand(1, 1, *sides), valid, torch.tensor([[[0.0, 1.0]]], dtype=torch.float64)


@KINDS
@pytest.mark.parametrize("standardise", ["position", "context"])
def test_in_windows_it_is_the_same_map(kind: str, standardise: str) -> None:
    mapper = random_mapper(kind, scoring={"standardise": standardise})
    arguments = inputs(1600, 64)
    assert mapper.margin_px % mapper.size_multiple == 0
    assert 4 * mapper.margin_px < 1600, "there are windows with a margin on both sides"
    with torch.inference_mode():
        for function in (mapper.errors, mapper.measures):
            whole = function(*arguments)
            tiled = map_in_windows(function, *arguments, mapper.window_px, mapper.margin_px)
            assert whole.shape[2:] == (1600, 64)
            assert whole.std() > 0.01
            assert (tiled - whole).abs().max() < 1e-4 * whole.abs().max()


@pytest.mark.parametrize("architecture", ["unet", "bottleneck"])
@pytest.mark.parametrize("depth", [1, 2])
def test_no_pixel_reaches_farther_than_the_margin(architecture: str, depth: int) -> None:
    mapper = random_mapper("basic", model={"architecture": architecture, "depth": depth})
    raw, _, limits = inputs(32 * 40, 32)
    valid = torch.ones_like(raw, dtype=torch.bool)
    changed = raw.clone()
    middle = 32 * 20 + 5
    changed[:, :, middle] += 1
    with torch.inference_mode():
        difference = (mapper.errors(changed, valid, limits) - mapper.errors(raw, valid, limits)).abs()
    rows = (difference.amax(dim=(0, 1, 3)) > 1e-5 * difference.max()).nonzero()
    reach = int((rows - middle).abs().max())
    assert 64 < reach <= mapper.margin_px


@KINDS
def test_the_context_of_the_features_is_a_tight_bound(kind: str) -> None:
    """How far from a changed row of pixels the cells change, to their farthest pixel."""
    backbone = Backbone(resnet(kind), 1, 0)
    x, middle = rand(1, 1, 512, 32), 16 * 16 + 15
    changed = x.clone()
    changed[:, :, middle] += 1
    difference = (backbone.features(changed) - backbone.features(x)).abs().amax(dim=(0, 1, 3))
    cells = (difference > 1e-6).nonzero().flatten()
    reach = max(middle - int(cells.min()) * STRIDE, (int(cells.max()) + 1) * STRIDE - 1 - middle)
    assert 0.6 * backbone.context_px < reach <= backbone.context_px


def test_the_map_follows_the_features() -> None:
    """One cell whose features the autoencoder gets wrong: the error peaks at its pixels."""
    mapper = random_mapper("basic", scoring={"smooth_sd_px": 0.0, "standardise": "global"})

    class Wrong(torch.nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            z = z.clone()
            z[:, :, 3, 5] += 2.0
            return z

    mapper.autoencoder = Wrong()
    raw, _, limits = inputs(64, 64)
    valid = torch.ones_like(raw, dtype=torch.bool)
    errors = mapper.measures(raw, valid, limits)
    l1, l2 = errors[0, :, 3 * STRIDE + 3, 5 * STRIDE + 3].tolist()
    assert (l1, l2) == (pytest.approx(2, rel=0.15), pytest.approx(4, rel=0.15))
    assert errors[0, :, : 2 * STRIDE].abs().max() == 0
    with pytest.raises(UsageError, match="no picture"):
        mapper.reconstruct(raw, valid, limits)


# --- from fit to score ---


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: Any, **_keywords: Any) -> None:
        raise AssertionError("a network connection")

    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@KINDS
@pytest.mark.usefixtures("no_network")
def test_fit_save_load_score(kind: str, part_manifest: Manifest, tmp_path: Path) -> None:
    path = backbone_file(tmp_path, kind)
    settings = ("training.steps=4", "training.validate_every=2")
    said: list[str] = []
    detector = fit(part_manifest, config_for(path, *settings), device="cpu", listener=Listener(say=said.append))
    assert any(line.startswith(f"features of {path.name} ") and "unshuffle" in line for line in said)
    frozen = detector.mapper.embed.state_dict()
    for name, tensor in trunk_tensors(resnet(kind), kind).items():
        assert torch.equal(frozen[name], tensor), f"training has changed {name}"
    assert frozen["mean"].abs().min() > 0
    detector.save(tmp_path / "model.safetensors")
    path.unlink()  # the model file needs nothing beside it
    loaded = Detector.load(tmp_path / "model.safetensors", "cpu")
    assert loaded.weights_sha256 == detector.weights_sha256
    assert str(tmp_path) not in str(asdict(loaded.config))
    image = next(s for s in part_manifest.samples if s.split == "test" and s.label == "anomalous").files[0]
    found, expected = loaded.score(image), detector.score(image)
    assert found.score == expected.score
    assert np.isfinite(found.score)
    assert found.anomaly_map is not None
    assert expected.anomaly_map is not None
    assert found.anomaly_map.shape == read_image(image).spatial_shape
    np.testing.assert_array_equal(found.anomaly_map, expected.anomaly_map)
    assert f"works on: {detector.config.model.embed}" in loaded.describe()


def test_training_learns_to_reconstruct_features(part_manifest: Manifest, tmp_path: Path) -> None:
    """Features have a deviation of 1 around 0: their mean alone would leave a squared error of about 1 per channel."""
    settings = ("model.architecture=bottleneck", "training.steps=30", "training.learning_rate=0.01", "training.l2=1")
    config = config_for(backbone_file(tmp_path), *settings, "model.width=16", "training.ema_decay=0.8")
    history = fit(part_manifest, config, device="cpu").provenance["history"]
    assert history[-1]["validation_loss"] < 0.9 * history[0]["validation_loss"]


def test_an_interrupted_fit_ends_with_the_same_weights(part_manifest: Manifest, tmp_path: Path) -> None:
    config = config_for(backbone_file(tmp_path), "training.steps=4", "training.validate_every=2")
    whole = fit(part_manifest, config, device="cpu")
    asked: list[int] = []

    def after_two_steps() -> bool:
        asked.append(1)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return False

    checkpoint = tmp_path / "checkpoint.safetensors"
    with pytest.raises(KeyboardInterrupt):
        fit(part_manifest, config, device="cpu", checkpoint=checkpoint, should_stop=after_two_steps)
    resumed = fit(part_manifest, config, device="cpu", checkpoint=checkpoint)
    assert resumed.weights_sha256 == whole.weights_sha256


def test_a_wrong_file_is_refused_before_any_image_is_read(part_manifest: Manifest, tmp_path: Path) -> None:
    read: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anomaly_ae.fitting.readable_parts", lambda *_: read.append("images"))
        with pytest.raises(AnomalyAEError, match="cannot read"):
            fit(part_manifest, config_for(tmp_path / "nowhere.safetensors"), device="cpu")
    assert read == []


def test_the_report_has_no_picture_of_features(part_folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    path = backbone_file(tmp_path)
    arguments = ["fit", part_folder, "--preset", "smoke", "--set", f"model.embed={path}", "--set", "training.steps=2"]
    for line in ([*arguments, "--out", model], ["evaluate", model, part_folder, "--out", tmp_path / "run"]):
        result = CliRunner().invoke(app, [str(argument) for argument in line])
        assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert 'class="panels three"' in page
    assert "<figcaption>reconstruction" not in page
