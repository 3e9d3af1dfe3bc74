"""Volumes like heads: smooth anatomy that differs from person to person, vessels, and lesions of graded size.

Everything is a function of the place in mm, so one person can be sampled at any spacing. A vessel is a bright tube:
in a slice its cut looks like a small lesion, and only the neighbouring slices tell the two apart.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from anomaly_ae.errors import UsageError
from anomaly_ae.files import write_text
from anomaly_ae.nifti import write_volume
from anomaly_ae.records import BoolArray, FloatArray
from anomaly_ae.synthetic.dataset import check_empty

FULL_SCALE = 1000
"""What 1 becomes in the file: 16-bit whole numbers without a unit, as in MR."""

LESION_RADII_MM = (2.0, 3.5, 6.0)
LESION_CONTRASTS = (0.06, 0.12, 0.2, 0.3)
"""From hardly visible to plain; tissue lies between 0.35 and 0.75, and the noise is 0.03."""

NOISE_SD = 0.03
N_VESSELS = 8
_VESSEL_RADIUS_MM, _VESSEL_CONTRAST = (1.2, 2.4), (0.1, 0.3)

_LESION, _ANATOMY, _SCAN = range(3)

Float = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Lesion:
    """An ellipsoid with a soft edge: its centre and half axes in mm, and what it adds to the tissue."""

    centre_mm: npt.NDArray[np.float64]
    radii_mm: npt.NDArray[np.float64]
    contrast: float


def make_volumes(
    out_dir: Path | str,
    n_train: int = 24,
    n_test_normal: int = 12,
    n_lesions: int = 24,
    side_mm: float = 56.0,
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    seed: int = 0,
) -> Path:
    """Write a data set of NIfTI volumes, each of another person.

    ::

        train/good/000.nii.gz                      normal volumes
        test/good/000.nii.gz
        test/lesion/000.nii.gz                     one lesion each, the grades of size and contrast in turn
        ground_truth/lesion/000_mask.nii.gz        0 and 1
        lesions.csv                                path, radius_mm, contrast

    Parameters
    ----------
    out_dir : Path
        A folder that does not exist or is empty.
    n_train, n_test_normal, n_lesions : int
        How many volumes.
    side_mm : float
        Side of the cube that is sampled, 24 to 512 mm; the head scales with it, lesions and vessels do not.
    spacing_mm : sequence of 3 float
        Distance of voxels towards right, front and top.
    seed : int
        The same seed gives the same persons and lesions, at every spacing.

    Returns
    -------
    Path
        ``out_dir``.

    Raises
    ------
    UsageError
        A value out of range.
    OutputError
        ``out_dir`` is not empty or cannot be written.
    """
    out_dir = Path(out_dir)
    _check(n_train, n_test_normal, n_lesions, side_mm, spacing_mm, seed)
    check_empty(out_dir)
    rows = io.StringIO()
    table = csv.writer(rows, lineterminator="\n")
    table.writerow(("path", "radius_mm", "contrast"))
    kinds = (("train/good", n_train), ("test/good", n_test_normal), ("test/lesion", n_lesions))
    for code, (folder, n_volumes) in enumerate(kinds):
        for number in range(n_volumes):
            path = f"{folder}/{number:03d}.nii.gz"
            person = np.random.SeedSequence(seed, spawn_key=(code, number))
            lesion = draw_lesion(person, number, side_mm) if folder == "test/lesion" else None
            voxels, mask = draw_head(person, side_mm, spacing_mm, lesion)
            write_volume(out_dir / path, voxels, spacing_mm)
            if lesion is not None:
                write_volume(out_dir / f"ground_truth/lesion/{number:03d}_mask.nii.gz", mask.astype("u1"), spacing_mm)
                table.writerow((path, f"{float(np.prod(lesion.radii_mm) ** (1 / 3)):.3g}", lesion.contrast))
    write_text(out_dir / "lesions.csv", rows.getvalue())
    return out_dir


def draw_head(
    person: np.random.SeedSequence, side_mm: float, spacing_mm: Sequence[float], lesion: Lesion | None = None
) -> tuple[npt.NDArray[np.int16], BoolArray]:
    """Sample one person, and the mask of the lesion: int16 and bool (right, front, top).

    The noise belongs to the scan and is another at another spacing; all else is the same.
    """
    anatomy, scan = (_stream(person, use) for use in (_ANATOMY, _SCAN))
    places = _places_mm(side_mm, spacing_mm)
    head = _tissue(places, side_mm, anatomy)
    mask = np.zeros(head.shape, bool)
    if lesion is not None:
        distance = _distance(places, lesion)
        head += np.float32(lesion.contrast) * _step(1 - distance, 0.25)
        mask = distance <= 1
    head += scan.normal(0, NOISE_SD, head.shape).astype(np.float32)
    return np.round(head.clip(0, 2) * FULL_SCALE).astype(np.int16), mask


def draw_lesion(person: np.random.SeedSequence, number: int, side_mm: float) -> Lesion:
    """Draw the place of a lesion well within the head; 3 radii and 4 contrasts: 12 in a row show all grades."""
    rng = _stream(person, _LESION)
    direction = rng.normal(size=3)
    centre = direction / np.linalg.norm(direction) * rng.uniform(0.1, 0.24) * side_mm
    radii = LESION_RADII_MM[number % len(LESION_RADII_MM)] * rng.uniform(0.8, 1.25, 3)
    return Lesion(centre, radii, LESION_CONTRASTS[number % len(LESION_CONTRASTS)])


def _stream(person: np.random.SeedSequence, use: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(person.entropy, spawn_key=(*person.spawn_key, use)))


def _tissue(places: list[Float], side_mm: float, rng: np.random.Generator) -> Float:
    """Skull, cortex with folds, white matter, two ventricles, vessels, and uneven reception."""
    warp = [rng.uniform(0.02, 0.035) * side_mm * _smooth(places, side_mm / 2, rng) for _ in range(3)]
    bent = [place + shift for place, shift in zip(places, warp, strict=True)]
    half_mm = side_mm * np.array([0.36, 0.42, 0.38]) * rng.uniform(0.94, 1.06, 3)
    radius = np.sqrt(sum((p / h) ** 2 for p, h in zip(bent, half_mm, strict=True)))  # 1 on the surface of the brain
    folds = 0.06 * _smooth(places, 9.0, rng, n_waves=24)
    white = _step(0.72 + folds - radius, 0.03)
    brain = 0.5 + 0.2 * white + 0.04 * _smooth(places, side_mm / 4, rng)
    for side in (-1, 1):
        inner = [(bent[0] - side * 0.08 * side_mm) / 0.05, bent[1] / 0.14, bent[2] / 0.08]
        ventricle = np.sqrt(sum((p / side_mm) ** 2 for p in inner)) / rng.uniform(0.85, 1.15)
        brain -= (brain - 0.2) * _step(1 - ventricle, 0.15)
    for _ in range(N_VESSELS):
        brain += _vessel(places, side_mm, rng)
    skull = 0.85 * _step(1.16 - radius, 0.02) * _step(radius - 1.07, 0.02)
    head = brain * _step(1 - radius, 0.02) + skull
    bias = 1 + 0.08 * _smooth(places, side_mm, rng)
    return np.asarray(head * bias, np.float32)


def _vessel(places: list[Float], side_mm: float, rng: np.random.Generator) -> Float:
    """Return a bright tube that runs upwards through the brain and winds a little."""
    right, front = rng.uniform(-0.26, 0.26, 2) * side_mm
    slant = rng.normal(0, 0.35, 2)
    wave, phase = rng.uniform(18, 40), rng.uniform(0, 2 * np.pi, 2)
    up = places[2]
    across = [
        place - start - tilt * up - 2.0 * np.sin(up * 2 * np.pi / wave + p)
        for place, start, tilt, p in zip(places[:2], (right, front), slant, phase, strict=True)
    ]
    distance = np.sqrt(across[0] ** 2 + across[1] ** 2) / rng.uniform(*_VESSEL_RADIUS_MM)
    return np.asarray(rng.uniform(*_VESSEL_CONTRAST) * _step(1 - distance, 0.2), np.float32)


def _smooth(places: list[Float], wave_mm: float, rng: np.random.Generator, n_waves: int = 8) -> Float:
    """Return a random smooth field of deviation 1, a sum of waves no shorter than `wave_mm`."""
    total = np.zeros(np.broadcast_shapes(*(p.shape for p in places)), np.float32)
    for _ in range(n_waves):
        direction = rng.normal(size=3)
        direction *= 2 * np.pi / (wave_mm * rng.uniform(1, 2) * np.linalg.norm(direction))
        angle = sum(place * np.float32(d) for place, d in zip(places, direction, strict=True))
        total += np.cos(angle + np.float32(rng.uniform(0, 2 * np.pi)))
    return np.asarray(total * np.sqrt(2 / n_waves), np.float32)


def _step(x: FloatArray, width: float) -> Float:
    """Return 0 below 0, 1 above, and a soft edge."""
    return np.asarray(1 / (1 + np.exp(-np.clip(x / width, -30, 30) * 2)), np.float32)


def _distance(places: list[Float], lesion: Lesion) -> Float:
    parts = zip(places, lesion.centre_mm, lesion.radii_mm, strict=True)
    return np.asarray(np.sqrt(sum(((place - c) / r) ** 2 for place, c, r in parts)), np.float32)


def _places_mm(side_mm: float, spacing_mm: Sequence[float]) -> list[Float]:
    """Return the place of the voxels along each axis, from the middle: three arrays that broadcast to the volume."""
    axes = []
    for axis, mm in enumerate(spacing_mm):
        n = max(1, round(side_mm / mm))
        shape = [n if other == axis else 1 for other in range(3)]
        axes.append(((np.arange(n) - (n - 1) / 2) * mm).astype(np.float32).reshape(shape))
    return axes


def _check(
    n_train: int, n_test_normal: int, n_lesions: int, side_mm: float, spacing_mm: Sequence[float], seed: int
) -> None:
    counts = (n_train, n_test_normal, n_lesions)
    for fault, what, fix in (
        (min(counts) < 0 or sum(counts) == 0, f"{counts} volumes", "ask for at least one and none negative"),
        (not 24 <= side_mm <= 512, f"a side of {side_mm:g} mm", "choose 24 to 512 mm"),
        (len(spacing_mm) != 3 or not all(0.25 <= mm <= 10 for mm in spacing_mm), f"a spacing of {tuple(spacing_mm)} mm",
         "give three numbers from 0.25 to 10"),
        (seed < 0, f"seed {seed}", "choose a whole number from 0"),
    ):  # fmt: skip
        if fault:
            raise UsageError(f"cannot make volumes: {what}", "", fix)
