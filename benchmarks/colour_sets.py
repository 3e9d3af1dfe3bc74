"""Data sets in colour from photographs: the left side of each is normal, and defects are planted into the right side.

    python benchmarks/colour_sets.py PHOTO ... --out ROOT [--seed 0]

Every photograph of a texture becomes the data set ROOT/NAME for benchmarks/quality.py: 80 crops of its left 58 % to
learn from, 50 of its right part that are normal, and 20 for each kind of defect, with masks. Grey photographs are given
colours by their brightness, and become a second set, NAME-grey: nearly grey with noise in every channel, and defects
that have no hue of their own. Crops overlap, and defects are drawn: the sets compare settings, and say little of real
inspection.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from anomaly_ae.manifest import load_manifest, write_manifest

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Generator = np.random.Generator

SIDE_PX, LEFT_SHARE = 160, 0.58
N_TRAIN, N_NORMAL, N_OF_KIND = 80, 50, 20
ALMOST_GREY = np.array([1.0, 0.97, 0.93])


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the sets; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="+", metavar="PHOTO")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    for path in asked.photos:
        photo = np.asarray(Image.open(path).convert("RGB"), np.float64)
        if min(photo.shape[:2]) < SIDE_PX or (1 - LEFT_SHARE) * photo.shape[1] < SIDE_PX:
            print(f"error: {path} is too small: {photo.shape[1]} x {photo.shape[0]} px")
            return 1
        coloured = np.ptp(photo, axis=2).max() > 0
        write_set(asked.out / path.stem, photo if coloured else with_palette(photo), IN_COLOUR, 2, asked.seed)
        if not coloured:
            write_set(asked.out / f"{path.stem}-grey", photo * ALMOST_GREY, WITHOUT_HUE, 3, asked.seed)
    return 0


def with_palette(grey: Floats) -> Floats:
    """Give a grey photograph (H, W, 3) colours that follow its brightness: (H, W, 3)."""
    share = grey[..., 0] / 255
    return 255 * np.stack([share**0.8, 0.85 * share, 0.7 * share**1.3], axis=2)


def write_set(folder: Path, photo: Floats, kinds: dict[str, Draw], noise: float, seed: int) -> None:
    """Write crops and masks in the layout of MVTec AD, and ``dev.csv``."""
    rng = np.random.default_rng(seed)
    middle = int(LEFT_SHARE * photo.shape[1])
    for name, part, n in (("train", photo[:, :middle], N_TRAIN), ("test", photo[:, middle:], N_NORMAL)):
        for i in range(n):
            _write(folder / f"{name}/good/{i:03}.png", _seen(_crop(part, rng), rng, noise))
    for kind, draw in kinds.items():
        for i in range(N_OF_KIND):
            x = _crop(photo[:, middle:], rng)
            mask = _scratch(x, rng) if kind == "scratch" else _spot(x, rng)
            damaged = np.where(mask[..., None], draw(x, rng), x)
            _write(folder / f"test/{kind}/{i:03}.png", _seen(damaged, rng, noise))
            _write(folder / f"ground_truth/{kind}/{i:03}_mask.png", mask.astype(np.float64) * 255)
    write_manifest(load_manifest(folder), folder / "dev.csv", overwrite=True)


def _crop(part: Floats, rng: Generator) -> Floats:
    top, left = (int(rng.integers(0, side - SIDE_PX + 1)) for side in part.shape[:2])
    return part[top : top + SIDE_PX, left : left + SIDE_PX]


def _seen(x: Floats, rng: Generator, noise: float) -> Floats:
    """Return what a camera makes of it: exposed a little differently every time, with noise in every channel."""
    return (x * rng.uniform(0.95, 1.05) + rng.normal(0, noise, x.shape)).clip(0, 255)


def _write(path: Path, x: Floats) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(x.astype(np.uint8)).save(path)


def _spot(x: Floats, rng: Generator) -> Mask:
    """Return an ellipse with half axes of 4 to 20 px anywhere in the image."""
    height, width = x.shape[:2]
    rows, columns = np.mgrid[:height, :width] - rng.uniform(0.15, 0.85, 2)[:, None, None] * SIDE_PX
    angle, radius = rng.uniform(0, np.pi), rng.uniform(0.04, 0.08) * SIDE_PX
    along, across = columns * np.cos(angle) + rows * np.sin(angle), rows * np.cos(angle) - columns * np.sin(angle)
    inside: Mask = np.hypot(along, across / rng.uniform(0.6, 1.6)) < radius
    return inside


def _scratch(x: Floats, rng: Generator) -> Mask:
    """Return a crooked line of 2 px width and about 70 px length."""
    points, angle = [rng.uniform(0.2, 0.8, 2) * SIDE_PX], rng.uniform(0, 2 * np.pi)
    for _ in range(6):
        angle += rng.normal(0, 0.3)
        points.append(points[-1] + 12 * np.array([np.cos(angle), np.sin(angle)]))
    picture = Image.new("1", (x.shape[1], x.shape[0]))
    ImageDraw.Draw(picture).line([tuple(point) for point in points], fill=1, width=2)
    return np.asarray(picture)


def _faint_grey(x: Floats, rng: Generator) -> Floats:
    return 0.6 * x + 0.4 * rng.uniform(0, 255)


def _other_hue(x: Floats, rng: Generator) -> Floats:
    grey = x.mean(axis=2, keepdims=True)
    rolled: Floats = grey + np.roll(x - grey, 1, axis=2)
    return rolled


def _tint(x: Floats, rng: Generator) -> Floats:
    shift = rng.normal(size=3)
    shift -= shift.mean()
    tinted: Floats = x + 20 * shift / np.abs(shift).max()
    return tinted


def _blur(x: Floats, rng: Generator) -> Floats:
    return np.asarray(Image.fromarray(x.astype(np.uint8)).filter(ImageFilter.GaussianBlur(4)), np.float64)


def _stain(x: Floats, rng: Generator) -> Floats:
    return np.broadcast_to(rng.uniform(0, 255, 3), x.shape)


def _shade(x: Floats, rng: Generator) -> Floats:
    shaded: Floats = x + rng.choice([-1, 1]) * rng.uniform(35, 80) * ALMOST_GREY
    return shaded


def _grey_stain(x: Floats, rng: Generator) -> Floats:
    return np.broadcast_to(rng.uniform(0, 255) * ALMOST_GREY, x.shape)


Draw = Callable[[Floats, Generator], Floats]
IN_COLOUR: dict[str, Draw] = {
    "scratch": _faint_grey,
    "hue": _other_hue,
    "tint": _tint,
    "blur": _blur,
    "stain": _stain,
}
WITHOUT_HUE: dict[str, Draw] = {"scratch": _shade, "shade": _shade, "blur": _blur, "stain": _grey_stain}

if __name__ == "__main__":
    raise SystemExit(main())
