"""The fitted detector: scores images, and is kept in one safe file."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anomaly_ae.baselines import PcaBaseline, contrast_and_sharpness, in_units_of, small_grey
from anomaly_ae.calibration import CalibrationScores, Thresholds
from anomaly_ae.config import OWN_LIMITS, Config, config_to_dict, deciding_settings, model_file_config
from anomaly_ae.device import choose_device
from anomaly_ae.ensemble import Ensemble
from anomaly_ae.errors import AnomalyAEError, ModelFileError
from anomaly_ae.loading import ImageStore, all_or_raise, in_order, read_sample, torch_pixels
from anomaly_ae.manifest import renamed
from anomaly_ae.modelfile import read_tensors, tensors_below, tensors_sha256, write_tensors
from anomaly_ae.preparation import LEARNED, Preparation
from anomaly_ae.prepare import Geometry, Prepared, check_size, to_image_grid, to_working_grid
from anomaly_ae.readers import Axes
from anomaly_ae.records import Failure, FloatArray, Image, PixelArray, Sample, Score
from anomaly_ae.regions import RegionRules, find_regions, surviving_level
from anomaly_ae.scoring import AnomalyMapper, image_score, own_limits, to_device
from anomaly_ae.sources import Source, failure_of, read_source
from anomaly_ae.threshold import PValues, decide, display_value, display_values
from anomaly_ae.version import __version__
from anomaly_ae.words import text_of

OF_THE_FILE = ("file", "file_sha256")
"""What `load` adds to the provenance: name and hash of a file cannot stand in the file."""

CALIBRATION_ARRAYS = tuple(f.name for f in fields(CalibrationScores))

Measured = tuple[float, float, dict[str, float]]


@dataclass(frozen=True, slots=True, eq=False)
class _Input:
    """One image, read and ready to be mapped."""

    sample: Sample
    image: Image
    prepared: Prepared
    sha256: str


class Detector:
    """A fitted autoencoder with its calibration: the one object that pipelines hold.

    ``Detector.load("parts.safetensors").score("part.png")``. Scoring changes nothing in it.

    Parameters
    ----------
    ensemble : Ensemble
        One mapper, or several.
    config : Config
    geometry : Geometry
    provenance : mapping
        What it was made from, as plain JSON values: counts, seed, preset and its reason, data hashes, dates.
    scores : CalibrationScores or None
        None between training and calibration.
    thresholds : Thresholds or None
    baseline : PcaBaseline or None
    device : torch.device
    """

    def __init__(
        self,
        ensemble: Ensemble,
        config: Config,
        geometry: Geometry,
        provenance: Mapping[str, Any],
        device: torch.device,
        baseline: PcaBaseline,
        scores: CalibrationScores | None = None,
        thresholds: Thresholds | None = None,
    ) -> None:
        to_device(ensemble, device, config.model.spatial_dims)
        self.ensemble = ensemble.eval()
        self.config, self.geometry, self.device = config, geometry, device
        self.rules = RegionRules.of(config.scoring)
        learned = {name: t.cpu().numpy() for name, t in self.mapper.named_buffers() if name in LEARNED}
        self.preparation = Preparation(config, geometry, **learned)
        self.say: Callable[[str], object] = warnings.warn
        self._ahead = 1 if config.model.spatial_dims == 3 else 0  # a volume is as large as hundreds of images
        self.provenance, self.baseline = dict(provenance), baseline
        self.scores, self.thresholds = scores, thresholds

    @property
    def mapper(self) -> AnomalyMapper:
        """The first member; all have the same scale, limits and error measures."""
        return self.ensemble.members[0]

    @cached_property
    def weights_sha256(self) -> str:
        """Hash of all that decides a score: every learned number, and the settings from the image to its score."""
        learned, config = [tensors_sha256(member.state_dict()) for member in self.ensemble.members], self.config
        settings = [deciding_settings(part) for part in (config.model, config.intensity, config.scoring, self.geometry)]
        if config.geometry.align != "off":  # all else that geometry says is in the working scale
            settings.append({"align": config.geometry.align, "align_reach": config.geometry.align_reach})
        return hashlib.sha256(json.dumps([*learned, settings]).encode()).hexdigest()

    @property
    def calibrated(self) -> tuple[CalibrationScores, Thresholds]:
        """The calibration; a model without one decides nothing."""
        if self.scores is None or self.thresholds is None:
            raise ModelFileError("this model has no thresholds", "it was not calibrated", "run anomaly-ae calibrate")
        return self.scores, self.thresholds

    @cached_property
    def _p_values(self) -> PValues:
        """Of images: the table takes far longer to make than to look up in."""
        return PValues.beside(self.calibrated[0].image, self.calibrated[0].image_group)

    @cached_property
    def _thresholds_sha256(self) -> str:
        return self.calibrated[1].sha256

    def score(self, source: Source, axes: Axes | None = None) -> Score:
        """Score one image.

        Parameters
        ----------
        source : path, array, PIL image, pydicom dataset, Image or Sample
            Arrays are (H, W), (H, W, C) or (C, H, W), or volumes (slices, H, W) or (C, slices, H, W), in the numbers
            of the camera (never rescaled before).
        axes : {"HW", "HWC", "CHW"} or None
            Axes of an array; None decides where the shape is unambiguous.

        Returns
        -------
        Score

        Raises
        ------
        UnreadableImageError, IncompatibleImageError, DataError
        """
        started = time.perf_counter()
        return self._score(self._read(source, axes), started)

    def score_many(self, sources: Iterable[Source]) -> Iterator[Score | Failure]:
        """Score any number of images: decoded in parallel, in order, in bounded memory.

        Yields
        ------
        Score, or Failure for what could not be read or mapped
        """
        for result, _ in self.inspect_many(sources):
            yield result

    def inspect_many(self, sources: Iterable[Source]) -> Iterator[tuple[Score, Image] | tuple[Failure, None]]:
        """Do what `score_many` does, and yield the image beside its score."""

        def read(source: Source) -> tuple[_Input, float]:
            started = time.perf_counter()
            return self._read(source, None), time.perf_counter() - started

        for source, result in in_order(sources, read, self._ahead):
            if isinstance(result, AnomalyAEError):
                yield failure_of(source, result), None
                continue
            parts, seconds = result
            try:
                yield self._score(parts, time.perf_counter() - seconds), parts.image
            except AnomalyAEError as error:
                yield failure_of(source, error), None

    def measure_many(self, samples: Iterable[Sample]) -> Iterator[tuple[Sample, Measured | AnomalyAEError]]:
        """Yield image score, largest threshold at which a region counts, and plain numbers: no threshold is needed.

        That is what calibration needs.
        """
        for sample, image in in_order(samples, read_sample, self._ahead):
            if isinstance(image, AnomalyAEError):
                yield sample, image
                continue
            try:
                yield sample, self._measure(image)
            except AnomalyAEError as error:
                yield sample, renamed(error, sample)

    def store(self, samples: Sequence[Sample]) -> ImageStore:
        """Decode samples into a store for training, whatever their size; close it after use."""
        read = in_order(samples, lambda sample: self.preparation(read_sample(sample)), self._ahead)
        told = (self._told(p) for p in all_or_raise(read))
        return ImageStore(((p, self.limits_of(p)) for p in told), len(samples), self.device)

    def anomaly_map(self, prepared: Prepared) -> FloatArray:
        """Return the anomaly map on the image's own grid: float32 (*spatial), in deviations of normal images."""
        with torch.inference_mode():
            working = self.ensemble(*self._tensors(self._told(prepared)))
        return to_image_grid(working[0, 0].cpu().numpy(), prepared)

    def reconstruct(self, source: Source) -> tuple[FloatArray, FloatArray]:
        """Return the scaled input and its reconstruction, exposed alike: float32 (C, *working), about [0, 1]."""
        prepared = self._read(source, None).prepared
        with torch.inference_mode():
            seen = self.ensemble.reconstruct(*self._tensors(prepared))
        limits, as_exposed = self.limits_of(prepared), self.preparation.as_exposed
        x, x_hat = (to_working_grid(as_exposed(one[0].cpu().numpy(), prepared, limits), prepared) for one in seen)
        return x, x_hat

    def display(self, values: FloatArray) -> FloatArray:
        """Return a map in display units: 0 = typical normal image, 1 = the pixel threshold."""
        scores, thresholds = self.calibrated
        return display_values(values.astype(np.float32), thresholds.pixel.value, float(np.median(scores.pixel)))

    def limits_of(self, prepared: Prepared) -> FloatArray:
        """Return the values that become 0 and 1 for this image: float64 (C, 2)."""
        if self.config.intensity.policy in OWN_LIMITS:
            return own_limits(prepared, self.config.intensity)
        limits: FloatArray = self.mapper.get_buffer("limits").cpu().numpy()
        return limits

    def baseline_scores(self, image: Image) -> dict[str, float]:
        """Return plain numbers of an image.

        What trivial detectors say, mean grey and the PCA residual of the same training normals; contrast and sharpness.
        """
        limits = self.mapper.get_buffer("limits").cpu().numpy()
        grey = small_grey(image.pixels, limits)
        trivial = {"mean grey": float(grey.mean()), "PCA residual": self.baseline.score(grey)}
        return {**trivial, **contrast_and_sharpness(image.pixels, limits)}

    def in_unit_range(self, image: Image, part: PixelArray | None = None) -> FloatArray:
        """Return the image, or a part of its pixels, for display: in [0, 1] between its intensity limits: float32."""
        pixels = image.pixels if part is None else part
        own = self.config.intensity.policy in OWN_LIMITS
        limits = self.limits_of(self.prepare(image)) if own else self.mapper.get_buffer("limits").cpu().numpy()
        scaled = np.nan_to_num(in_units_of(limits, pixels), posinf=1, neginf=0)
        shown: FloatArray = scaled.clip(0, 1).astype(np.float32)
        return shown

    def prepare(self, image: Image) -> Prepared:
        """Bring an image to the model's working scale; refuse one of quite another size than the training images."""
        check_size(image.source, image.spatial_shape, self.geometry, image.spacing_mm)
        return self.preparation(image)

    def describe(self) -> list[str]:
        """Say in words what the model is, what it was made from, and what its thresholds promise."""
        made, (scores, thresholds) = self.provenance, self.calibrated
        counts = ", ".join(f"{count} {name}" for name, count in made["n_images"].items())
        return [
            f"{made.get('file', 'model')}: {self.config.model.architecture} with {made['n_parameters']:,} parameters",
            *self.ensemble.describe(),
            f"preset {made['preset']}: {made['preset_reason']}",
            f"trained {made['trained_utc']} on {made['device']}, seed {self.config.seed}, {made['steps']} steps"
            + (f", stopped early: {made['stopped']}" if made.get("stopped") else ""),
            f"works on: {self.config.model.embed or 'pixels'}",
            f"normal images: {counts}",
            f"channels: {self.config.model.n_channels}; intensity policy: {self.config.intensity.policy}; exposure: "
            f"{self.config.intensity.exposure}",
            f"scale: {made.get('working_scale')}",
            f"residuals standardised by {self.config.scoring.standardise}; pooling {self.config.scoring.pooling}",
            f"region rules: {self.rules.describe() or 'none'}",
            *thresholds.describe(),
            f"calibration: {len(scores.image)} images, median score {scores.median:.6g}",
            f"weights {self.weights_sha256}",
            f"file {made.get('file_sha256')}",
        ]

    def with_thresholds(self, scores: CalibrationScores, thresholds: Thresholds) -> Detector:
        """Return the same detector with another calibration: no score changes."""
        return self._copy(self.config, scores, thresholds)

    def with_settings(self, config: Config) -> Detector:
        """Return the same networks under other settings of what follows the map, without a calibration."""
        return self._copy(config)

    def _copy(
        self, config: Config, scores: CalibrationScores | None = None, thresholds: Thresholds | None = None
    ) -> Detector:
        made = (self.geometry, self.provenance, self.device, self.baseline)
        copy = Detector(self.ensemble, config, *made, scores, thresholds)
        copy.say = self.say
        return copy

    def save(self, path: str | Path) -> str:
        """Write the model file atomically; return its SHA-256."""
        scores, thresholds = self.calibrated
        tensors = self.ensemble.tensors()
        tensors["baseline.mean"] = torch.from_numpy(self.baseline.mean)
        tensors["baseline.components"] = torch.from_numpy(self.baseline.components)
        for name in CALIBRATION_ARRAYS:
            values = getattr(scores, name)
            if values is not None:
                tensors[f"calibration.{name}"] = torch.from_numpy(values)
        values = {
            "version": __version__,
            "config": config_to_dict(self.config),
            "geometry": asdict(self.geometry),
            "thresholds": thresholds.as_json(),
            "provenance": {key: value for key, value in self.provenance.items() if key not in OF_THE_FILE},
        }
        return write_tensors(Path(path), tensors, values, "model")

    @classmethod
    def load(cls, path: str | Path, device: str = "auto") -> Detector:
        """Read a model file.

        Parameters
        ----------
        device : str
            "auto" (a GPU when there is one), "cpu", "cuda", "cuda:1".

        Raises
        ------
        ModelFileError
            Missing, damaged, foreign, or of another format. Nothing in the file is ever executed.
        """
        tensors, values, digest = read_tensors(Path(path), "model")
        try:
            config = model_file_config(values["config"])
            ensemble = Ensemble.from_tensors(tensors, config)
            calibration = {name: t.numpy() for name, t in tensors_below(tensors, "calibration.").items()}
            scores = CalibrationScores(**{name: calibration.get(name) for name in CALIBRATION_ARRAYS})  # type: ignore[arg-type]
            baseline = PcaBaseline(tensors["baseline.mean"].numpy(), tensors["baseline.components"].numpy())
            thresholds = Thresholds.from_json(values["thresholds"])
            provenance = {**values["provenance"], "file": text_of(Path(path).name), "file_sha256": digest}
            names = ("smallest_px", "largest_px", "spacing_mm")
            sizes = {name: tuple(values["geometry"].get(name, ())) for name in names}
            geometry = Geometry(**{**values["geometry"], **sizes})
            if not (geometry.factor > 0 and geometry.multiple > 0 and len(scores.image)):
                raise ValueError("its working scale or its calibration is empty")
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ModelFileError(f"{path} does not hold a whole model", reason, "fit again") from error
        return cls(ensemble, config, geometry, provenance, choose_device(device), baseline, scores, thresholds)

    def _read(self, source: Source, axes: Axes | None) -> _Input:
        sample, image, sha256 = read_source(source, self.config.model.spatial_dims, axes)
        return _Input(sample, image, self.prepare(image), sha256)

    def _score(self, source: _Input, started: float) -> Score:
        scores, thresholds = self.calibrated
        sample, image = source.sample, source.image
        anomaly_map, value = self._map_and_score(image, source.prepared)
        found = find_regions(anomaly_map, thresholds.pixel.value, image.valid, image.spacing_mm, rules=self.rules)
        return Score(
            id=sample.id,
            path=sample.path,
            frame=sample.frame,
            unit=sample.unit,
            group=sample.group,
            time_utc=datetime.now(UTC).isoformat(timespec="milliseconds"),
            decision=decide(value, thresholds.image),
            score=value,
            threshold=thresholds.image.value,
            display=display_value(value, thresholds.image.value, scores.median),
            p_value=float(self._p_values(value)),
            regions=found,
            milliseconds=(time.perf_counter() - started) * 1000,
            image_sha256=source.sha256,
            weights_sha256=self.weights_sha256,
            thresholds_sha256=self._thresholds_sha256,
            version=__version__,
            anomaly_map=anomaly_map,
        )

    def _measure(self, image: Image) -> Measured:
        anomaly_map, value = self._map_and_score(image, self.prepare(image))
        is_level = self.config.scoring.pooling == "max"  # see `image_score`
        level = value if is_level else surviving_level(anomaly_map, image.valid, image.spacing_mm, self.rules)
        return value, level, self.baseline_scores(image)

    def _map_and_score(self, image: Image, prepared: Prepared) -> tuple[FloatArray, float]:
        try:
            anomaly_map = self.anomaly_map(prepared)
            return anomaly_map, image_score(anomaly_map, image.valid, self.config.scoring, image.spacing_mm)
        except AnomalyAEError as error:  # the mapper knows arrays, not names
            raise type(error)(f"{image.source}: {error.what}", error.why, error.fix) from error

    def _told(self, prepared: Prepared) -> Prepared:
        """Say what the user should know about an image, once where it is used."""
        if prepared.warning:
            self.say(prepared.warning)
        return prepared

    def _tensors(self, prepared: Prepared) -> tuple[Tensor, Tensor, Tensor]:
        raw = torch_pixels(prepared.pixels)[None].to(self.device)  # (1, C, *working)
        valid = torch.from_numpy(prepared.valid)[None, None].to(self.device)
        limits = torch.from_numpy(self.limits_of(prepared))[None].to(self.device)
        return raw, valid, limits
