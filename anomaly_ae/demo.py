"""The tour on embedded data, and the sheet that shows what training sees."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from anomaly_ae.config import load_config
from anomaly_ae.errors import DataError
from anomaly_ae.files import write_bytes
from anomaly_ae.listener import Listener
from anomaly_ae.loading import in_order, read_sample, torch_pixels
from anomaly_ae.manifest import load_manifest, scan
from anomaly_ae.prepare import choose_geometry, prepare
from anomaly_ae.records import ANOMALOUS_LABEL, Image

DEMO_SETTINGS = ("training.steps=1000", "training.crop_px=128")
"""A third of the default fit: about a minute on two cores."""

N_PREVIEW = 12


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
    with new_folder(out, overwrite) as work:
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


def write_preview(data: Path, out: Path, preset: str, seed: int) -> None:
    """Write a sheet: normal images of ``data`` in the first row of each pair, damaged as in training in the second."""
    import torch
    from PIL import Image as Picture

    from anomaly_ae.corruption import corrupt
    from anomaly_ae.scoring import intensity_limits

    config = load_config(preset)
    images = _normal_images(data, seed)
    geometry = choose_geometry([image.spatial_shape for image in images], config.geometry, 1)
    prepared = [prepare(image, geometry, images[0].n_channels) for image in images]
    side = tuple(int(s) for s in np.min([p.valid.shape for p in prepared], axis=0))
    x = torch.stack([torch_pixels(p.pixels)[:, : side[0], : side[1]].double() for p in prepared])
    limits = np.stack([intensity_limits(p.pixels, p.valid, config.intensity) for p in prepared])
    low, high = torch.from_numpy(limits[:, :, 0, None, None]), torch.from_numpy(limits[:, :, 1, None, None])
    x = ((x - low) / (high - low)).float()
    damaged, _, _ = corrupt(x, config.corruption, torch.Generator().manual_seed(seed))
    rows = [rows for start in range(0, len(x), 6) for rows in (x[start : start + 6], damaged[start : start + 6])]
    sheet = torch.cat([torch.cat(list(row.mean(dim=1)), dim=1) for row in rows], dim=0)
    buffer = io.BytesIO()
    Picture.fromarray((sheet.clamp(0, 1).numpy() * 255).astype(np.uint8)).save(buffer, format="PNG")
    write_bytes(out, buffer.getvalue())


def _normal_images(data: Path, seed: int) -> list[Image]:
    """Return twelve readable normal images, drawn at random, with the channels of the first."""
    samples = [s for s in load_manifest(data).samples if s.label != ANOMALOUS_LABEL and s.split in ("", "train")]
    order = np.random.default_rng(seed).permutation(len(samples))
    found: list[Image] = []
    for _, image in in_order([samples[i] for i in order[: 3 * N_PREVIEW]], read_sample):
        if isinstance(image, Image) and (not found or image.n_channels == found[0].n_channels):
            found.append(image)
    if len(found) < 2:
        raise DataError(f"{data} has {len(found)} readable normal images", "a preview needs two", "check the folder")
    return found[: N_PREVIEW if len(found) >= N_PREVIEW else len(found) // 6 * 6 or len(found)]
