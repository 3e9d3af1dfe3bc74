"""Registration with a reference, against planted shifts and turns; and the way back."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import ndimage

from anomaly_ae.alignment import SIDE_PX, Aligner, reference_from
from anomaly_ae.errors import IncompatibleImageError
from anomaly_ae.placement import Placement
from anomaly_ae.prepare import Geometry, Prepared, prepare, to_image_grid
from anomaly_ae.records import BoolArray, FloatArray, Image
from anomaly_ae.synthetic import make_part

SIDE = 128
GEOMETRY = Geometry(1.0, 16)


def part(shift: tuple[float, float] = (0, 0), degrees: float = 0.0, seed: int = 1, side: int = SIDE) -> FloatArray:
    """A part of the embedded data, moved so that its middle lies at ``centre + shift``: (1, side, side)."""
    pixels = np.asarray(make_part(np.random.default_rng(seed), side), np.float64).reshape(side, side)
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])  # part -> image
    centre = (np.array(pixels.shape) - 1) / 2
    offset = centre - turn.T @ (centre + shift)
    moved: FloatArray = ndimage.affine_transform(pixels, turn.T, offset, order=1, mode="nearest")
    return moved[np.newaxis]


def prepared(pixels: FloatArray, valid: BoolArray | None = None, factor: float = 1.0) -> Prepared:
    return prepare(Image(np.array(pixels), valid, source="new.png"), Geometry(factor, 16), 1)


def aligner(kind: str, reach: float = 0.15, side: int = SIDE, factor: float = 1.0) -> Aligner:
    reference = reference_from(prepared(part(side=side), factor=factor))
    working = round(side * factor)
    return Aligner(kind, reference, (working, working), reach, 16)


def placed(found: Prepared) -> Placement:
    assert found.placement is not None
    return found.placement


# --- found ---


@pytest.mark.parametrize("shift", [(0, 0), (7, -5), (-12, 9), (3.5, 2.25)])
def test_a_shift_is_found_within_a_pixel(shift: tuple[float, float]) -> None:
    base = placed(aligner("shift").align(prepared(part()), "base"))
    found = placed(aligner("shift").align(prepared(part(shift)), "moved"))
    assert np.array(found.shift_px) - base.shift_px == pytest.approx(shift, abs=0.5)
    assert found.degrees == 0


@pytest.mark.parametrize(("shift", "degrees"), [((0, 0), 4.0), ((6, -4), -7.3), ((-5, 5), 2.6), ((2, 1), 9.0)])
@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_a_turn_is_found_within_half_a_degree(shift: tuple[float, float], degrees: float, factor: float) -> None:
    side = round(SIDE / factor)
    moved = part(shift=(shift[0] / factor, shift[1] / factor), degrees=degrees, side=side)
    found = placed(aligner("rigid", side=side, factor=factor).align(prepared(moved, factor=factor), "moved"))
    assert found.degrees == pytest.approx(degrees, abs=0.5)
    assert found.shift_px == pytest.approx(shift, abs=1)


def test_another_part_under_other_light_is_put_where_the_reference_lies() -> None:
    reference = part()
    other = 0.3 + 0.5 * part((5, -6), 3.0, seed=2)
    found = aligner("rigid").align(prepared(other), "other")
    assert not found.warning
    middle = aligner("rigid").align(prepared(reference), "reference")
    before = np.corrcoef(other.ravel(), reference.ravel())[0, 1]
    both = found.valid & middle.valid
    after = np.corrcoef(found.pixels[0][both], middle.pixels[0][both])[0, 1]
    assert after > before + 0.2


def test_pixels_outside_of_a_mask_are_no_structure() -> None:
    valid = np.zeros((SIDE, SIDE), bool)
    valid[10:-10, 10:-10] = True
    moved = np.where(valid, part((6, 4)), np.nan)
    found = placed(aligner("shift").align(prepared(moved, valid), "moved"))
    assert found.shift_px == pytest.approx((6, 4), abs=1)


def test_an_image_of_something_else_is_left_in_the_middle_with_a_warning() -> None:
    noise = np.random.default_rng(0).normal(size=(1, SIDE, SIDE))
    found = aligner("rigid").align(prepared(noise), "noise.png")
    assert (placed(found).shift_px, placed(found).degrees) == ((0.0, 0.0), 0.0)
    assert "noise.png is not aligned: its correlation" in found.warning
    assert found.valid.sum() == SIDE**2


def test_what_would_leave_the_canvas_is_left_in_the_middle_with_a_warning() -> None:
    found = aligner("rigid", reach=0.04).align(prepared(part((0, 0), 9.0)), "far.png")
    assert placed(found).shift_px == (0.0, 0.0)
    assert "far.png is not aligned: it would have to be moved further than geometry.align_reach = 0.04" in found.warning


def test_an_image_of_another_size_is_refused_with_both_sizes() -> None:
    with pytest.raises(IncompatibleImageError, match=r"new\.png") as refused:
        aligner("shift").align(prepared(np.ones((1, 60, 70))), "new.png")
    assert "60 x 70" in refused.value.why
    assert f"{SIDE} x {SIDE}" in refused.value.why


def test_the_reference_is_small() -> None:
    reference = reference_from(prepared(np.random.default_rng(0).normal(size=(1, 300, 600))))
    assert reference.shape == (2, SIDE_PX, SIDE_PX)
    assert reference[1].sum() == SIDE_PX * SIDE_PX // 2


# --- and back ---


@pytest.mark.parametrize("degrees", [0.0, 4.0, -8.0])
def test_a_bright_spot_is_found_at_its_own_place(degrees: float) -> None:
    pixels = part((6, -4), degrees)
    found = aligner("shift" if not degrees else "rigid").align(prepared(pixels), "spot")
    assert not found.warning
    spot = np.zeros_like(pixels)
    spot[:, 40:43, 90:93] = 1
    there, _ = placed(found).move(spot, np.ones((SIDE, SIDE), bool))
    assert tuple(np.unravel_index(there[0].argmax(), there[0].shape)) != (41, 91)
    canvas = np.pad(there[0], [(0, -side % 16) for side in there[0].shape]).astype(np.float32)
    back = to_image_grid(canvas, found)
    assert back.shape == (SIDE, SIDE)
    assert ndimage.center_of_mass(back) == pytest.approx((41, 91), abs=0.2)
    assert back.sum() == pytest.approx(9, rel=0.05)


def test_a_shift_alone_changes_no_pixel() -> None:
    pixels = np.random.default_rng(0).integers(0, 65535, (2, 30, 40)).astype(np.uint16)
    valid = np.random.default_rng(1).random((30, 40)) > 0.3
    place = Placement((30, 40), (42, 52), (3.4, -5.6))
    there, inside = place.move(pixels, valid)
    assert there.dtype == np.uint16
    assert (place.back(there, inside) == pixels).all()
    assert inside.sum() == valid.sum()
    assert (there[:, 6 - 3 : 6 - 3 + 30, 6 + 6 : 6 + 6 + 40] == pixels).all()


@pytest.mark.parametrize("degrees", [-10.0, -3.3, 0.7, 5.0, 10.0])
@pytest.mark.parametrize("shift", [(0.0, 0.0), (2.3, -1.8)])
def test_every_valid_pixel_has_a_way_back_and_no_other_takes_part(degrees: float, shift: tuple[float, float]) -> None:
    valid = np.random.default_rng(3).random((50, 60)) > 0.9  # single pixels, in corners too
    valid[[0, 0, -1, -1], [0, -1, 0, -1]] = True
    place = Placement((50, 60), (74, 84), shift, degrees)
    assert place.fits
    there, inside = place.move(np.where(valid, 5.0, np.nan)[np.newaxis], valid)
    assert there[0][inside] == pytest.approx(np.full(inside.sum(), 5.0), rel=1e-3)
    back = place.back(np.where(inside, 7.0, np.nan)[np.newaxis], inside)
    assert back[0][valid] == pytest.approx(np.full(valid.sum(), 7.0), rel=1e-3)


def test_what_fits_is_known_exactly() -> None:
    assert Placement((50, 60), (60, 70), (5.0, -5.0)).fits
    for shift, degrees in product([(5.2, 0.0), (0.0, -5.2)], [0.0]):
        assert not Placement((50, 60), (60, 70), shift, degrees).fits
    assert not Placement((50, 60), (60, 70), (5.0, -5.0), 2.0).fits
