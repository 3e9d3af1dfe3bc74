"""Even light and alignment end to end: learned by fit, kept in the model file, the same on every path."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from anomaly_ae.config import Config, deciding_settings, load_config, with_values
from anomaly_ae.detector import Detector
from anomaly_ae.ensemble import Ensemble
from anomaly_ae.errors import ConfigError, DataError, IncompatibleImageError
from anomaly_ae.fitting import fit
from anomaly_ae.listener import Listener
from anomaly_ae.manifest import load_manifest
from anomaly_ae.preparation import Preparation
from anomaly_ae.prepare import Geometry, prepare
from anomaly_ae.records import FloatArray, Image
from anomaly_ae.synthetic import make_part

SIDE = 64
N_IMAGES = 24
OPTIONS = {
    "learned": "intensity.flat_field=learned",
    "image": "intensity.flat_field=image",
    "exposure": "intensity.exposure=image",
    "shift": "geometry.align=shift",
    "rigid": "geometry.align=rigid",
}


def shaded_part(seed: int) -> FloatArray:
    """A part that is shifted by up to 4 px, in light that falls to a half in one corner: (SIDE, SIDE), 8 bit."""
    rng = np.random.default_rng(seed)
    part = ndimage.shift(make_part(rng, SIDE), rng.integers(-4, 5, 2), order=0, mode="nearest")
    light = np.linspace(1, 0.75, SIDE)[:, None] + np.linspace(0, -0.25, SIDE)
    return (255 * light * part).round().clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shaded")
    for seed in range(N_IMAGES):
        np.save(folder / f"{seed:03d}.npy", shaded_part(seed))
    return folder


@pytest.fixture(scope="module")
def models(folder: Path) -> dict[str, Detector]:
    """One fit per option, on the CPU."""
    return {
        name: fit(load_manifest(folder), load_config("smoke", [option, "training.steps=10"]), device="cpu")
        for name, option in OPTIONS.items()
    }


def image(pixels: FloatArray, name: str = "new.png") -> Image:
    return Image(np.array(pixels, ndmin=3), source=name)


def test_without_options_it_is_prepare() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (1, 40, 50), dtype=np.uint8)
    geometry = Geometry(0.7, 16)
    found, plain = Preparation(Config(), geometry)(image(pixels)), prepare(image(pixels), geometry, 1)
    assert (found.pixels == plain.pixels).all()
    assert (found.valid == plain.valid).all()
    assert (found.placement, found.warning) == (None, "")


@pytest.mark.parametrize("option", OPTIONS)
def test_the_model_file_holds_all_of_it(option: str, models: dict[str, Detector], tmp_path: Path) -> None:
    detector, pixels = models[option], shaded_part(100)
    detector.save(tmp_path / "model.safetensors")
    loaded = Detector.load(tmp_path / "model.safetensors", "cpu")
    before, after = detector.score(pixels), loaded.score(pixels)
    assert before.score == after.score
    assert before.anomaly_map is not None
    assert after.anomaly_map is not None
    assert (before.anomaly_map == after.anomaly_map).all()
    assert loaded.weights_sha256 == detector.weights_sha256
    prepared = [d.prepare(image(pixels)).pixels for d in (detector, loaded)]
    assert (prepared[0] == prepared[1]).all()
    assert prepared[0].shape != pixels.shape or (prepared[0] != pixels).any()  # and it does something


def test_training_sees_what_scoring_sees(models: dict[str, Detector], folder: Path) -> None:
    samples = load_manifest(folder).samples[:3]
    for detector in models.values():
        with detector.store(samples) as store:
            for index, sample in enumerate(samples):
                prepared = detector.prepare(Image(np.load(sample.files[0])[np.newaxis], source=sample.id))
                raw, valid = store.image(index)
                assert (raw.numpy() == prepared.pixels).all()
                assert (valid[0].numpy() == prepared.valid).all()


def test_the_learned_light_is_that_of_the_training_images(models: dict[str, Detector]) -> None:
    gain = models["learned"].mapper.get_buffer("flat_field")[0].numpy()
    assert gain[0, 0] > 1.15 * gain[0, -1]
    assert gain[0, 0] > 1.3 * gain[-1, -1]


def test_limits_are_those_of_evenly_lit_pixels(models: dict[str, Detector], folder: Path) -> None:
    for option in ("learned", "image"):
        limits = models[option].mapper.get_buffer("limits")[0].tolist()
        seen = [models[option].prepare(image(np.load(path))).pixels for path in sorted(folder.glob("*.npy"))]
        assert limits == pytest.approx(np.percentile(seen, (0.1, 99.9)), rel=0.05)


def test_windows_make_no_difference(models: dict[str, Detector]) -> None:
    detector, pixels = models["image"], shaded_part(101)
    prepared, mapper = detector.prepare(image(pixels)), detector.mapper
    whole, window_px, margin_px = detector.anomaly_map(prepared), mapper.window_px, mapper.margin_px
    try:
        mapper.window_px, mapper.margin_px = 48, min(margin_px, 48)
        cut = detector.anomaly_map(prepared)
    finally:
        mapper.window_px, mapper.margin_px = window_px, margin_px
    assert cut == pytest.approx(whole, abs=1e-4)


def with_plain_errors(detector: Detector) -> Detector:
    """The same preparation, and a network that rebuilds black: the map is the smoothed error itself."""
    mapper = copy.deepcopy(detector.mapper)
    mapper.autoencoder = Black()
    mapper.standardise.get_buffer("mean").zero_()
    mapper.standardise.get_buffer("sd").fill_(1)
    d = detector
    return Detector(
        Ensemble([mapper], d.config.scoring),
        d.config,
        d.geometry,
        d.provenance,
        d.device,
        d.baseline,
        d.scores,
        d.thresholds,
    )


class Black(torch.nn.Module):
    """Rebuilds every image as black."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Return zeros."""
        return torch.zeros_like(z)


@pytest.mark.parametrize("option", ["shift", "rigid"])
def test_a_spot_on_a_moved_part_is_found_at_its_own_place(option: str, models: dict[str, Detector]) -> None:
    detector = with_plain_errors(models[option])
    pixels = ndimage.shift(shaded_part(3), (5, -3), order=0, mode="nearest")
    moved = detector.prepare(image(pixels)).placement
    assert moved is not None
    assert np.abs(moved.shift_px).max() > 1
    plain = detector.score(pixels).anomaly_map
    pixels[20:25, 36:41] = 255
    result = detector.score(pixels).anomaly_map
    assert plain is not None
    assert result is not None
    assert result.shape == (SIDE, SIDE)
    peak = np.unravel_index((result - plain).argmax(), result.shape)
    assert peak == pytest.approx((22, 38), abs=1)


def test_places_are_relative_to_the_canvas_and_not_to_the_image_on_it(models: dict[str, Detector]) -> None:
    pixels = ndimage.shift(shaded_part(3), (5, -3), order=0, mode="nearest")
    valid = torch.from_numpy(models["shift"].prepare(image(pixels)).valid)[None]
    assert not valid.all()
    assert models["shift"].mapper.standardise.box(valid) == tuple(slice(0, side) for side in valid.shape[1:])


def test_pictures_of_the_reconstruction_lie_on_the_image(models: dict[str, Detector]) -> None:
    pixels = ndimage.shift(shaded_part(3), (5, -3), order=0, mode="nearest")
    for option in ("shift", "rigid"):
        x, x_hat = models[option].reconstruct(pixels)
        assert x.shape == x_hat.shape == (1, SIDE, SIDE)
        assert np.corrcoef(x.ravel(), pixels.ravel())[0, 1] > 0.97


def test_what_cannot_be_aligned_is_mapped_with_a_warning(models: dict[str, Detector]) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE), dtype=np.uint8)
    with pytest.warns(UserWarning, match="array is not aligned: its correlation"):
        result = models["shift"].score(noise)
    assert np.isfinite(result.score)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        models["shift"].score(shaded_part(102))
    assert not told


def test_fit_tells_its_listener_which_image_is_not_aligned(folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("*.npy"):
        np.save(tmp_path / path.name, np.load(path))
    np.save(tmp_path / "noise.npy", np.random.default_rng(0).integers(0, 255, (SIDE, SIDE), dtype=np.uint8))
    lines: list[str] = []
    config = load_config("smoke", ["geometry.align=shift", "training.steps=2"])
    fit(load_manifest(tmp_path), config, device="cpu", listener=Listener(say=lines.append))
    assert [line for line in lines if "is not aligned" in line and "noise.npy" in line]
    assert not [line for line in lines if "is not aligned" in line and "noise.npy" not in line]


def exposed(folder: Path, factors: tuple[float, ...]) -> Path:
    """Parts under exposures that change in turn, as 16-bit numbers."""
    folder.mkdir()
    for seed in range(N_IMAGES):
        part = 8000 * factors[seed % len(factors)] * make_part(np.random.default_rng(seed), SIDE)
        np.save(folder / f"{seed:03d}.npy", part.clip(0, 65535).astype(np.uint16))
    return folder


def fitted(folder: Path, *options: str) -> tuple[Detector, list[str]]:
    lines: list[str] = []
    config = load_config("smoke", ["training.steps=10", *options])
    return fit(load_manifest(folder), config, device="cpu", listener=Listener(say=lines.append)), lines


def test_fit_divides_out_the_exposure_where_that_is_what_images_differ_in(tmp_path: Path) -> None:
    detector, lines = fitted(exposed(tmp_path / "exposures", (0.5, 0.8, 1.2, 2.0)))
    assert detector.config.intensity.exposure == "image"
    assert sum("exposure differs by" in line for line in lines) == 1
    assert any("exposure: image" in line for line in detector.describe())
    part = make_part(np.random.default_rng(100), SIDE)
    scores = [detector.score((8000 * factor * part).astype(np.uint16)).score for factor in (0.6, 1.0, 1.8)]
    assert scores == pytest.approx([scores[0]] * 3, rel=0.01)
    too_bright = detector.score((8000 * 4 * part).astype(np.uint16)).score
    assert too_bright > 1.1 * max(scores)
    dark = (8000 * 0.5 * part).astype(np.uint16)
    as_in_report = detector.in_unit_range(image(dark))
    x, x_hat = detector.reconstruct(dark)
    assert x.clip(0, 1) == pytest.approx(as_in_report, abs=1e-4), "pictures show an image as dark as it is"
    low, high = detector.mapper.get_buffer("limits")[0].tolist()
    levels = [low + (high - low) * np.median(r) for r in (x_hat, detector.reconstruct(2 * dark)[1])]
    assert levels[0] == pytest.approx(levels[1] / 2, rel=1e-3), "and its reconstruction as dark"


@pytest.mark.parametrize(
    ("factors", "options"),
    [
        ((1.0, 1.03), ()),
        ((0.5, 2.0), ("intensity.exposure=off",)),
        ((0.5, 2.0), ("intensity.policy=window", "intensity.low=0", "intensity.high=9000")),
        ((0.5, 2.0), ("intensity.policy=volume_percentile",)),
        ((0.5, 2.0), ("intensity.black_level=3000",)),  # some pixels lie below it: these numbers are no light
    ],
)
def test_fit_leaves_the_exposure(factors: tuple[float, ...], options: tuple[str, ...], tmp_path: Path) -> None:
    detector, lines = fitted(exposed(tmp_path / "exposures", factors), *options)
    assert detector.config.intensity.exposure == "off"
    assert not any("exposure" in line for line in lines)
    assert "exposure" not in dict(detector.mapper.named_buffers())


def test_exposure_of_images_that_are_scaled_by_themselves_is_refused() -> None:
    with pytest.raises(ConfigError, match="scaled by itself already"):
        load_config("default", ["intensity.policy=volume_percentile", "intensity.exposure=image"])


def test_images_of_several_sizes_share_no_canvas(folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("*.npy"):
        pixels = np.load(path)
        np.save(tmp_path / path.name, pixels[: SIDE - int(path.stem) % 2])
    config = load_config("smoke", ["geometry.align=shift"])
    with pytest.raises(DataError, match="2 sizes"):
        fit(load_manifest(tmp_path), config, device="cpu")


def test_an_image_of_another_size_is_refused_where_images_are_aligned(models: dict[str, Detector]) -> None:
    with pytest.raises(IncompatibleImageError, match="another size"):
        models["shift"].score(shaded_part(1)[:50])


def test_volumes_are_not_aligned() -> None:
    with pytest.raises(ConfigError, match="volumes cannot be aligned"):
        with_values(Config(), model={"spatial_dims": 3}, geometry={"align": "shift"})


def test_settings_of_options_that_are_off_change_no_hash() -> None:
    plain = Config().intensity
    assert "flat_field" not in deciding_settings(plain)
    lit = with_values(Config(), intensity={"flat_field": "image", "flat_field_sd_px": 20.0}).intensity
    assert deciding_settings(lit) == {**deciding_settings(plain), "flat_field": "image", "flat_field_sd_px": 20.0}


def test_a_model_without_options_learns_no_field_and_no_reference(smoke_detector: Detector) -> None:
    names = {name for name, _ in smoke_detector.mapper.named_buffers()}
    assert not names & {"flat_field", "exposure", "reference"}
    assert isinstance(smoke_detector.mapper.get_buffer("limits"), torch.Tensor)
