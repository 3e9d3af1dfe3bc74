"""A whole data set on disk, in the folder layout of MVTec AD, with lots and graded defects."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from anomaly_ae.errors import OutputError, UsageError
from anomaly_ae.files import cannot_write, retried
from anomaly_ae.records import BoolArray, PixelArray
from anomaly_ae.synthetic.defects import DEFECT_TYPES, MIN_SIZE_PX, plant_defect
from anomaly_ae.synthetic.scenes import (
    KINDS,
    PART,
    SIZE_RANGE_PX,
    Float,
    add_sensor_noise,
    draw_lighting,
    draw_scene,
)

LOT_SIZE = 5
"""Normal images per lot; each lot has its own lighting."""

GRADES: dict[str, dict[str, tuple[tuple[float, ...], tuple[float, ...]]]] = {
    "part": {
        "scratch": ((12, 24, 48), (0.03, 0.06, 0.12, 0.24)),
        "spot": ((3, 5, 8), (0.05, 0.10, 0.20, 0.35)),
        "stain": ((14, 24, 36), (0.015, 0.03, 0.06, 0.12)),
        "dent": ((8, 14, 22), (0.02, 0.04, 0.08, 0.16)),
        "burr": ((6, 10, 14), (0.15, 0.3, 0.6, 1.0)),
        "blur": ((12, 20, 30), (0.15, 0.3, 0.6, 1.0)),
    },
    "surface": {
        "scratch": ((12, 24, 48), (0.05, 0.10, 0.20, 0.35)),
        "spot": ((3, 5, 8), (0.08, 0.16, 0.28, 0.45)),
        "stain": ((14, 24, 36), (0.03, 0.06, 0.12, 0.20)),
        "dent": ((10, 18, 28), (0.04, 0.08, 0.14, 0.22)),
        "texture_break": ((12, 20, 32), (0.2, 0.45, 0.7, 1.0)),
        "blur": ((12, 20, 32), (0.2, 0.45, 0.7, 1.0)),
    },
}
"""Per kind of image and defect: sizes in px of an image of 128 px, and contrasts. Sizes grow and shrink with the
image, down to the 3 px that a defect needs. From below visibility to plain: no honest detector finds all of them."""

_TRAIN, _TEST = 0, 1


@dataclass(frozen=True, slots=True)
class _Plan:
    """One image before it is drawn."""

    path: str
    split: int
    lot: int
    number: int
    defect: str = ""
    size_px: float = 0.0
    contrast: float = 0.0

    @property
    def group(self) -> str:
        return f"{'test' if self.split == _TEST else 'train'}-lot-{self.lot:04d}"


def make_dataset(
    out_dir: Path | str,
    kind: str = PART,
    n_train: int = 200,
    n_test_normal: int = 60,
    n_per_defect: int = 20,
    size_px: int = 128,
    seed: int = 0,
    bits: int = 8,
) -> Path:
    """Write a data set of normal images and images with one graded defect each.

    ::

        train/good/000.png                    normal images
        test/good/000.png
        test/<defect>/000.png                 one defect each, the grades of `GRADES` in turn
        ground_truth/<defect>/000_mask.png    0 and 255
        groups.tsv                            path, group: the lot; no lot is in both train and test
        defects.csv                           path, size_px, contrast

    Each image has its own generator: a larger data set with the same seed contains the smaller one unchanged.

    Parameters
    ----------
    out_dir : Path
        A folder that does not exist or is empty.
    kind : {"part", "surface"}
        See `make_part` and `make_surface`.
    n_train, n_test_normal, n_per_defect : int
        How many images.
    size_px : int
        Side length, 32 to 4096.
    seed : int
        Same seed, same pixels; with the same version of Pillow also the same bytes.
    bits : {8, 16}
        16 writes the 12-bit range 0 to 4095 into 16-bit files, as industrial cameras do.

    Returns
    -------
    Path
        ``out_dir``.

    Raises
    ------
    UsageError
        A value out of range.
    OutputError
        ``out_dir`` is not empty or cannot be written. No half data set is left behind.
    """
    out_dir = Path(out_dir)
    _check_arguments(kind, (n_train, n_test_normal, n_per_defect), size_px, seed, bits)
    check_empty(out_dir)
    plans = list(_plans(kind, n_train, n_test_normal, n_per_defect, size_px))
    staging = out_dir / ".unfinished"
    try:
        for plan in plans:
            _write_image(staging, plan, *_draw(plan, kind, size_px, seed), bits)
        _write_tables(staging, plans)
        for item in sorted(staging.iterdir()):
            retried(partial(item.replace, out_dir / item.name))
    except OSError as error:
        raise cannot_write(out_dir, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return out_dir


def _plans(kind: str, n_train: int, n_test_normal: int, n_per_defect: int, size_px: int) -> Iterator[_Plan]:
    for number in range(n_train):
        yield _Plan(f"train/good/{number:03d}.png", _TRAIN, number // LOT_SIZE, number)
    for number in range(n_test_normal):
        yield _Plan(f"test/good/{number:03d}.png", _TEST, number // LOT_SIZE, number)
    for defect, (sizes, contrasts) in GRADES[kind].items():
        for number in range(n_per_defect):
            # 3 sizes and 4 contrasts have no common divisor: 12 images in a row show all 12 grades.
            size = max(MIN_SIZE_PX, sizes[number % len(sizes)] * size_px / 128)
            contrast = contrasts[number % len(contrasts)]
            yield _Plan(f"test/{defect}/{number:03d}.png", _TEST, number, number, defect, size, contrast)


def _check_arguments(kind: str, counts: tuple[int, int, int], size_px: int, seed: int, bits: int) -> None:
    low, high = SIZE_RANGE_PX
    for fault, what, fix in (
        (kind not in KINDS, f"unknown kind of image '{kind}'", f"choose one of {', '.join(KINDS)}"),
        (
            min(counts) < 0 or sum(counts) == 0,
            f"image counts {counts}",
            "ask for at least one image and none negative",
        ),
        (not low <= size_px <= high, f"images of {size_px} px", f"choose a size from {low} to {high} px"),
        (seed < 0, f"seed {seed}", "choose a whole number from 0"),
        (bits not in (8, 16), f"images of {bits} bits", "choose 8 or 16"),
    ):
        if fault:
            raise UsageError(f"cannot make a data set: {what}", "", fix)


def check_empty(out_dir: Path) -> None:
    """Make the folder where it is missing; refuse one that holds something."""
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        n_items = sum(1 for _ in out_dir.iterdir())
    except OSError as error:
        raise cannot_write(out_dir, error) from error
    if n_items:
        raise OutputError(
            f"{out_dir} is not empty", f"it holds {n_items} items", "choose a new folder or empty this one"
        )


def _draw(plan: _Plan, kind: str, size_px: int, seed: int) -> tuple[Float, BoolArray | None]:
    """Draw one image and its mask: scene, then defect, then sensor noise."""
    kind_code, class_code = KINDS.index(kind), 1 + (DEFECT_TYPES.index(plan.defect) + 1 if plan.defect else 0)
    lot_key, image_key = (
        (kind_code, plan.split, 0, plan.lot),
        (kind_code, plan.split, class_code, plan.number),
    )
    lot_rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=lot_key))
    streams = np.random.SeedSequence(seed, spawn_key=image_key).spawn(3)
    scene_rng, defect_rng, noise_rng = (np.random.default_rng(stream) for stream in streams)
    scene = draw_scene(kind, scene_rng, size_px, draw_lighting(lot_rng))
    if not plan.defect:
        return add_sensor_noise(scene.image, noise_rng), None
    valid = None if plan.defect == "burr" else scene.valid  # a burr stands out beyond the material
    image, mask = plant_defect(scene.image, plan.defect, defect_rng, plan.size_px, plan.contrast, valid)
    return add_sensor_noise(image, noise_rng), mask


def _write_image(root: Path, plan: _Plan, image: Float, mask: BoolArray | None, bits: int) -> None:
    full_scale, dtype = (255, np.uint8) if bits == 8 else (4095, np.uint16)
    _write_png(root / plan.path, np.round(image * full_scale).astype(dtype))
    if mask is not None:
        mask_path = root / "ground_truth" / plan.defect / f"{plan.number:03d}_mask.png"
        _write_png(mask_path, mask.astype(np.uint8) * np.uint8(255))


def _write_png(path: Path, pixels: PixelArray) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, format="PNG")


def _write_tables(root: Path, plans: list[_Plan]) -> None:
    groups = ["path\tgroup", *(f"{plan.path}\t{plan.group}" for plan in plans)]
    grades = ["path,size_px,contrast"]
    grades += [f"{plan.path},{plan.size_px:g},{plan.contrast:g}" for plan in plans if plan.defect]
    for name, lines in (("groups.tsv", groups), ("defects.csv", grades)):
        (root / name).write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
