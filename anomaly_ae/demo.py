"""The tour on embedded data, and the sheet that shows what training sees."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from anomaly_ae.config import load_config
from anomaly_ae.errors import DataError
from anomaly_ae.files import write_bytes
from anomaly_ae.listener import Listener
from anomaly_ae.manifest import load_manifest, scan, taken
from anomaly_ae.manifest.slices import is_suspect
from anomaly_ae.records import Sample

DEMO_SETTINGS = ("training.steps=800", "training.crop_px=128")
"""A quarter of the default fit: a minute and a half on two cores."""

N_PREVIEW, N_SURVEY = 12, 100


def make_demo(out: Path, overwrite: bool, preset: str | None, listener: Listener) -> Path:
    """Make embedded images, scan, fit and evaluate them; return the path of the report.

    Writes ``report.html``, ``metrics.json`` and the other files of a run, and beside the run the images in
    ``images/`` and the model in ``model.safetensors``.
    """
    from anomaly_ae.detector import Detector
    from anomaly_ae.evaluation import RunOptions, evaluate, new_folder
    from anomaly_ae.fitting import fit
    from anomaly_ae.synthetic import make_dataset

    config = load_config(preset) if preset else None
    with new_folder(out, overwrite, beside=("images", "model.safetensors")) as work:
        listener.say("making images of a turned part: 200 normal ones to learn from, and a test set with defects")
        manifest = load_manifest(make_dataset(work / "images", "part", bits=16))
        for line in scan(manifest).lines():
            listener.say(f"  {line}")
        detector = fit(manifest, config, overrides=DEMO_SETTINGS, listener=listener)
        detector.save(work / "model.safetensors")
        detector = Detector.load(work / "model.safetensors")
        result = evaluate(detector, manifest, work / "run", RunOptions(), listener)
        if result.aborted:
            raise KeyboardInterrupt  # half a demonstration shows nothing
        for line in result.lines():
            listener.say(line)
        for path in result.folder.iterdir():
            path.rename(work / path.name)
        result.folder.rmdir()
    return out / "report.html"


def write_preview(data: Path, out: Path, preset: str | Path | None, seed: int, listener: Listener | None = None) -> int:
    """Write a sheet of training crops: normal ones in the first row of each pair, in the second what training makes.

    Scale, crops and damage are those of a `fit` with this seed on (at most 100) normal images of ``data``, by a preset
    or a TOML file; with ``preset=None`` its preset, too. Images that cannot be read are named and left out; returns how
    many.
    """
    import torch
    from PIL import Image as Picture

    from anomaly_ae.corruption import corrupt
    from anomaly_ae.fitting import untrained
    from anomaly_ae.report.pictures import picture
    from anomaly_ae.survey import choose_preset, settled, survey_images
    from anomaly_ae.training import augment, step_generator

    n_dims = load_config(preset or "default").model.spatial_dims
    samples, n_left_out = _normal_images(data, n_dims, seed, listener or Listener())
    survey = survey_images(samples, seed, Listener())
    config, _ = settled(load_config(preset or choose_preset(survey)[0], [f"seed={seed}"]), survey)
    cpu = torch.device("cpu")
    detector = untrained(config, survey, cpu)
    with detector.store(survey.samples) as store:
        crop_shape = store.crop_shape(config.training.crop_px, detector.mapper.size_multiple)
        generator = step_generator(seed, 0, cpu)
        raw, valid, limits = store.crops(N_PREVIEW, crop_shape, generator)
    x, _ = augment(detector.mapper.scale(raw, valid, limits), valid, config.training, generator)
    damaged = corrupt(x, config.corruption, step_generator(seed + 1, 0, cpu))[0] if config.training.repair else x
    if n_dims == 3:  # the middle slice of each
        x, damaged = (images[:, :, images.shape[2] // 2] for images in (x, damaged))
    rows = [rows for start in range(0, len(x), 6) for rows in (x[start : start + 6], damaged[start : start + 6])]
    sheet = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1).numpy()  # (C, H, W)
    buffer = io.BytesIO()
    Picture.fromarray(picture(sheet, max(sheet.shape))).save(buffer, format="PNG")
    write_bytes(out, buffer.getvalue())
    return n_left_out


def _normal_images(data: Path, n_dims: int, seed: int, listener: Listener) -> tuple[list[Sample], int]:
    """Return readable normal images that may be learned from, and how many are not: at most 100, drawn at random."""
    from anomaly_ae.survey import readable_forms

    rows = taken(load_manifest(data).samples, n_dims)
    samples = [s for s in rows if s.split in ("", "train") and not is_suspect(s.label, s.extra)]
    chosen = [samples[i] for i in np.random.default_rng(seed).permutation(len(samples))[:N_SURVEY]]
    forms = readable_forms(chosen, listener)
    found = [sample for sample in chosen if sample.id in forms]
    if len(found) < 2:
        raise DataError(f"{data} has {len(found)} readable normal images", "a preview needs two", "check the folder")
    return found, len(chosen) - len(found)
