"""Images in: every format in the file's own numbers, or one clear error."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import logging
import os
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import tifffile
import torch
from PIL import ImageFile

from anomaly_ae.dicom import shared as dicom_shared
from anomaly_ae.errors import AnomalyAEError, DataError, UnreadableImageError, UsageError
from anomaly_ae.manifest import load_manifest
from anomaly_ae.readers import (
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    count_frames,
    image_from,
    image_sha256,
    looks_like_image,
    pixel_sha256,
    read_channels,
    read_image,
    read_mask,
    volume_from,
)
from anomaly_ae.readers.png import parse
from anomaly_ae.records import Image

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 7)).astype(np.uint8)
GREY_16 = RNG.integers(0, 65536, (5, 7)).astype(np.uint16)
COLOUR = RNG.integers(0, 256, (5, 7, 3)).astype(np.uint8)
CHANNELS = np.moveaxis(COLOUR, -1, 0)


def save(pixels: np.ndarray, path: Path, **options: Any) -> Path:
    PIL.Image.fromarray(pixels).save(path, **options)
    return path


def tiff(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    tifffile.imwrite(path, pixels, **options)
    return path


def refusal(call: Callable[..., Any], *arguments: Any, kind: type[AnomalyAEError] = UnreadableImageError) -> str:
    """Return the message of exactly this kind of error; it names the file and fits on one line."""
    with pytest.raises(kind) as caught:
        call(*arguments)
    assert type(caught.value) is kind
    if isinstance(arguments[0], Path):
        assert str(caught.value).startswith(str(arguments[0]))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- a second PNG encoder, for what Pillow cannot write


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_bytes(samples: np.ndarray, colour_type: int, depth: int, filters: list[int], **chunks: bytes) -> bytes:
    """Encode (H, W, S) with the row filters given in turn, computed byte by byte as the specification words it."""
    height, width, n_samples = samples.shape
    if depth >= 8:
        rows = [list(row.astype(f">u{depth // 8}").tobytes()) for row in samples]
    else:
        bits = ["".join(f"{v:0{depth}b}" for v in row.ravel()) for row in samples]
        rows = [[int(b[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(b), 8)] for b in bits]
    n_bytes = max(1, n_samples * depth // 8)
    raw = bytearray()
    for y, row in enumerate(rows):
        above = rows[y - 1] if y else [0] * len(row)
        kind = filters[y % len(filters)]
        raw.append(kind)
        for x, value in enumerate(row):
            a, c = (row[x - n_bytes], above[x - n_bytes]) if x >= n_bytes else (0, 0)
            raw.append((value - [0, a, above[x], (a + above[x]) // 2, paeth(a, above[x], c)][kind]) % 256)
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    middle = b"".join(png_chunk(name.encode(), body) for name, body in chunks.items())
    data = zlib.compress(bytes(raw))
    idat = png_chunk(b"IDAT", data[:20]) + png_chunk(b"IDAT", data[20:])
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + middle + idat + png_chunk(b"IEND", b"")


def paeth(a: int, b: int, c: int) -> int:
    p = a + b - c
    return min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]


# ---------------------------------------------------------------- PNG


def test_png_grey_8(tmp_path: Path) -> None:
    image = read_image(save(GREY, tmp_path / "a.png"))
    np.testing.assert_array_equal(image.pixels, GREY[np.newaxis])
    assert (image.pixels.dtype, image.bits_stored, image.valid) == (np.uint8, 8, None)
    assert (image.n_frames, image.spacing_mm, image.was_grey_rgb) == (1, None, False)
    assert image.source == str(tmp_path / "a.png")
    assert not image.pixels.flags.writeable
    np.testing.assert_array_equal(read_image(str(tmp_path / "a.png")).pixels, image.pixels)


def test_png_12_bits_in_16_keep_their_numbers(tmp_path: Path) -> None:
    stored = (GREY_16 % 4096).astype(np.uint16)
    image = read_image(save(stored, tmp_path / "a.png"))
    np.testing.assert_array_equal(image.pixels[0], stored)
    assert (image.pixels.dtype, image.pixels.dtype.isnative, image.bits_stored) == (np.uint16, True, 16)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_png_of_few_bits_keeps_its_numbers(tmp_path: Path, depth: int) -> None:
    stored = (GREY % 2**depth)[..., np.newaxis]
    (tmp_path / "a.png").write_bytes(png_bytes(stored, 0, depth, [0]))
    image = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(image.pixels[0], stored[..., 0])
    assert (image.pixels.dtype, image.bits_stored) == (np.uint8, depth)


@pytest.mark.parametrize(("colour_type", "n_samples"), [(2, 3), (4, 2), (6, 4)])
@pytest.mark.parametrize("filters", [[0], [1], [2], [3], [4], [4, 1, 3, 0, 2, 3, 4]])
@pytest.mark.parametrize("shape", [(9, 11), (1, 6), (6, 1), (1, 1)])
def test_png_16_bit_colour(
    tmp_path: Path, colour_type: int, n_samples: int, filters: list[int], shape: tuple[int, int]
) -> None:
    samples = RNG.integers(0, 65536, (*shape, n_samples)).astype(np.uint16)
    samples[0, 0, -1] = 0
    samples[-1, -1, -1] = 1  # alpha above 0, though its high byte is 0: Pillow's 8 bits would lose it
    content = png_bytes(samples, colour_type, 16, filters)
    with PIL.Image.open(io.BytesIO(content)) as picture:  # the test's encoder is right as far as Pillow sees it
        high_bytes = np.asarray(picture)[..., :3]
    n_colours = n_samples if colour_type == 2 else n_samples - 1
    np.testing.assert_array_equal(high_bytes[..., :n_colours], samples[..., :n_colours] >> 8)
    (tmp_path / "a.png").write_bytes(content)
    if n_samples in (2, 4) and not (samples[..., -1] > 0).any():
        return
    image = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(image.pixels, np.moveaxis(samples[..., :n_colours], -1, 0))
    assert (image.pixels.dtype, image.bits_stored) == (np.uint16, 16)
    if colour_type != 2 and not (samples[..., -1] > 0).all():
        np.testing.assert_array_equal(image.valid, samples[..., -1] > 0)
    else:
        assert image.valid is None


def test_png_16_bit_colour_interlaced_is_refused(tmp_path: Path) -> None:
    content = bytearray(png_bytes(RNG.integers(0, 9, (4, 4, 3)).astype(np.uint16), 2, 16, [0]))
    header = bytes(content[16:28]) + b"\x01"
    content[8:33] = png_chunk(b"IHDR", header)
    (tmp_path / "a.png").write_bytes(bytes(content))
    assert "interlaced" in refusal(read_image, tmp_path / "a.png")


def test_png_16_bit_colour_with_an_unknown_row_filter_is_refused(tmp_path: Path) -> None:
    content = png_bytes(np.ones((4, 4, 3), np.uint16), 2, 16, [0])
    head = content[: content.index(b"IDAT") - 4]
    rows = np.zeros((4, 25), np.uint8)
    rows[2, 0] = 5
    damaged = head + png_chunk(b"IDAT", zlib.compress(rows.tobytes())) + png_chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(damaged)
    assert "damaged" in refusal(read_image, tmp_path / "a.png")


def test_png_rgb(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_image(save(COLOUR, tmp_path / "a.png")).pixels, CHANNELS)


def test_grey_saved_as_rgb_is_one_channel(tmp_path: Path) -> None:
    image = read_image(save(np.stack([GREY] * 3, axis=-1), tmp_path / "a.png"))
    np.testing.assert_array_equal(image.pixels, GREY[np.newaxis])
    assert image.was_grey_rgb


@pytest.mark.parametrize(("colour", "channels"), [(GREY[..., np.newaxis], GREY[np.newaxis]), (COLOUR, CHANNELS)])
def test_png_alpha_becomes_valid(tmp_path: Path, colour: np.ndarray, channels: np.ndarray) -> None:
    alpha = np.array([0, 1, 255], np.uint8)[np.arange(35).reshape(5, 7) % 3]
    image = read_image(save(np.dstack([colour, alpha]), tmp_path / "a.png"))
    np.testing.assert_array_equal(image.pixels, channels)
    np.testing.assert_array_equal(image.valid, alpha > 0)

    opaque = read_image(save(np.dstack([colour, np.full_like(GREY, 255)]), tmp_path / "b.png"))
    np.testing.assert_array_equal(opaque.pixels, channels)
    assert opaque.valid is None


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_png_transparent_grey(tmp_path: Path, depth: int) -> None:
    stored = (GREY_16 & (2**depth - 1))[..., np.newaxis]
    key = int(stored[2, 3, 0])
    (tmp_path / "a.png").write_bytes(png_bytes(stored, 0, depth, [0], tRNS=struct.pack(">H", key)))
    image = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(image.pixels[0], stored[..., 0])
    np.testing.assert_array_equal(image.valid, stored[..., 0] != key)


@pytest.mark.parametrize("depth", [8, 16])
def test_png_transparent_colour(tmp_path: Path, depth: int) -> None:
    stored = RNG.integers(0, 2, (5, 7, 3)).astype(np.uint16)
    key = stored[2, 3]
    (tmp_path / "a.png").write_bytes(png_bytes(stored, 2, depth, [1], tRNS=key.astype(">u2").tobytes()))
    image = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(image.pixels, np.moveaxis(stored, -1, 0))
    np.testing.assert_array_equal(image.valid, (stored != key).any(axis=-1))


def palette_picture(table: np.ndarray, index: np.ndarray) -> PIL.Image.Image:
    picture = PIL.Image.frombytes("P", index.shape[::-1], index.tobytes())
    picture.putpalette(table.astype(np.uint8).tobytes())
    return picture


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_palette_becomes_colours(tmp_path: Path, suffix: str) -> None:
    table, index = RNG.integers(0, 256, (256, 3)), GREY
    palette_picture(table, index).save(tmp_path / f"a{suffix}")
    image = read_image(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(image.pixels, np.moveaxis(table[index], -1, 0))
    assert (image.pixels.dtype, image.bits_stored, image.was_grey_rgb) == (np.uint8, 8, False)

    grey_table = np.repeat(RNG.integers(0, 256, (256, 1)), 3, axis=1)
    palette_picture(grey_table, index).save(tmp_path / f"b{suffix}")
    image = read_image(tmp_path / f"b{suffix}")
    np.testing.assert_array_equal(image.pixels, grey_table[index][np.newaxis, ..., 0])
    assert image.was_grey_rgb


@pytest.mark.parametrize("transparency", [3, bytes([0, 200, 0, 1])])
def test_palette_transparency_becomes_valid(tmp_path: Path, transparency: Any) -> None:
    index = (GREY % 4).astype(np.uint8)
    palette_picture(RNG.integers(0, 256, (256, 3)), index).save(tmp_path / "a.png", transparency=transparency)
    valid = read_image(tmp_path / "a.png").valid
    np.testing.assert_array_equal(valid, index != 3 if transparency == 3 else (index == 1) | (index == 3))


# ---------------------------------------------------------------- JPEG, BMP


@pytest.mark.parametrize("pixels", [GREY, COLOUR])
def test_jpeg(tmp_path: Path, pixels: np.ndarray) -> None:
    path = save(pixels, tmp_path / "a.jpg", quality=95)
    with PIL.Image.open(path) as picture:
        expected = np.asarray(picture)
    expected = expected[np.newaxis] if expected.ndim == 2 else np.moveaxis(expected, -1, 0)
    np.testing.assert_array_equal(read_image(path).pixels, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    turn = {
        1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: np.transpose,
        6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).T, 8: np.rot90,
    }[orientation]  # fmt: skip
    block = np.kron(np.array([[0, 80, 160], [240, 120, 40]], np.uint8), np.ones((16, 16), np.uint8))
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    jpeg = read_image(save(block, tmp_path / "a.jpg", quality=100, exif=exif)).pixels[0]
    assert jpeg.shape == turn(block).shape
    assert np.abs(jpeg.astype(int) - turn(block)).max() <= 3
    path = tiff(tmp_path / "a.tif", block, extratags=[(274, "H", 1, orientation, True)])
    np.testing.assert_array_equal(read_image(path).pixels[0], turn(block))


def test_bmp(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_image(save(GREY, tmp_path / "a.bmp")).pixels[0], GREY)
    np.testing.assert_array_equal(read_image(save(COLOUR, tmp_path / "b.bmp")).pixels, CHANNELS)
    bits = GREY > 127
    image = read_image(save(bits, tmp_path / "c.bmp"))
    np.testing.assert_array_equal(image.pixels[0], bits.astype(np.uint8))
    assert image.bits_stored == 1


def test_cmyk_is_refused(tmp_path: Path) -> None:
    PIL.Image.new("CMYK", (4, 4)).save(tmp_path / "a.jpg")
    assert "colours CMYK" in refusal(read_image, tmp_path / "a.jpg")


# ---------------------------------------------------------------- TIFF


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "f2", "f4", "f8"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_types(tmp_path: Path, dtype: str, byteorder: Any, compression: str | None) -> None:
    pixels = ((RNG.random((5, 7)) - 0.5) * 200).astype(dtype)
    image = read_image(tiff(tmp_path / "a.tif", pixels, byteorder=byteorder, compression=compression))
    np.testing.assert_array_equal(image.pixels[0], pixels)
    assert image.pixels.dtype == np.dtype(dtype)
    assert image.pixels.dtype.isnative
    assert image.bits_stored == (None if dtype[0] == "f" else 8 * int(dtype[1]))


def test_tiff_pages_are_frames_of_any_shape(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(GREY)
        writer.write(GREY_16[:3], photometric="minisblack")
        writer.write(COLOUR, photometric="rgb")
    assert count_frames(tmp_path / "a.tif") == 3
    for frame, expected in enumerate((GREY[np.newaxis], GREY_16[np.newaxis, :3], CHANNELS)):
        image = read_image(tmp_path / "a.tif", frame)
        np.testing.assert_array_equal(image.pixels, expected)
        assert image.n_frames == 3
    for frame in (3, -1):
        assert "the file holds 3 frames" in refusal(read_image, tmp_path / "a.tif", frame)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("alpha", [None, "unassalpha", "assocalpha", "unspecified"])
def test_tiff_samples(tmp_path: Path, planar: str, dtype: Any, alpha: str | None) -> None:
    samples = RNG.integers(0, 3, (5, 7, 3 if alpha is None else 4)).astype(dtype)
    channels = np.moveaxis(samples, -1, 0)
    path = tiff(
        tmp_path / "a.tif",
        samples if planar == "contig" else np.ascontiguousarray(channels),
        photometric="rgb",
        planarconfig=planar,
        extrasamples=None if alpha is None else [alpha],
    )
    image = read_image(path)
    is_alpha = alpha in ("unassalpha", "assocalpha")
    np.testing.assert_array_equal(image.pixels, channels[:3] if is_alpha else channels)
    if is_alpha:
        np.testing.assert_array_equal(image.valid, channels[3] > 0)
    else:
        assert image.valid is None


@pytest.mark.parametrize("shape", [(1, 7), (5, 1), (1, 1)])
def test_tiff_axes_of_length_one_stay(tmp_path: Path, shape: tuple[int, int]) -> None:
    assert read_image(tiff(tmp_path / "a.tif", np.ones(shape, np.uint16))).pixels.shape == (1, *shape)


def test_tiff_tiles(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 65536, (50, 70)).astype(np.uint16)
    image = read_image(tiff(tmp_path / "a.tif", pixels, tile=(16, 16), compression="zlib"))
    np.testing.assert_array_equal(image.pixels[0], pixels)


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "tiff_deflate", "raw"])
@pytest.mark.parametrize("kind", ["bits", "grey", "grey 16", "rgb", "rgba", "palette", "page 2"])
def test_tiff_by_pillow(tmp_path: Path, compression: str, kind: str) -> None:
    alpha = np.where(GREY > 99, 255, 0).astype(np.uint8)
    pixels, expected = {
        "bits": (GREY > 99, (GREY > 99).astype(np.uint8)[np.newaxis]),
        "grey": (GREY, GREY[np.newaxis]),
        "grey 16": (GREY_16, GREY_16[np.newaxis]),
        "rgb": (COLOUR, CHANNELS),
        "rgba": (np.dstack([COLOUR, alpha]), CHANNELS),
        "palette": (None, None),
        "page 2": (COLOUR, GREY[np.newaxis]),
    }[kind]
    more = [PIL.Image.fromarray(GREY)] if kind == "page 2" else []
    table = RNG.integers(0, 256, (256, 3))
    picture = palette_picture(table, GREY) if kind == "palette" else PIL.Image.fromarray(pixels)
    expected = np.moveaxis(table[GREY], -1, 0) if kind == "palette" else expected
    picture.save(tmp_path / "a.tif", compression=compression, save_all=bool(more), append_images=more)
    image = read_image(tmp_path / "a.tif", len(more))
    np.testing.assert_array_equal(image.pixels, expected)
    assert image.pixels.dtype == (np.uint16 if kind == "grey 16" else np.uint8)
    assert image.bits_stored == {"bits": 1, "grey 16": 16}.get(kind, 8)
    assert image.n_frames == 1 + len(more)
    if kind == "rgba":
        np.testing.assert_array_equal(image.valid, alpha > 0)


def test_tiff_jpeg(tmp_path: Path) -> None:
    smooth = np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
    PIL.Image.fromarray(smooth).save(tmp_path / "a.tif", compression="jpeg", quality=95)
    image = read_image(tmp_path / "a.tif")
    assert np.abs(image.pixels.astype(int) - np.moveaxis(smooth, -1, 0)).max() < 20


def test_tiff_that_pillow_would_reduce_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("tifffile")
    if "imagecodecs" in sys.modules:
        pytest.skip("imagecodecs decodes it")
    path = tiff(tmp_path / "a.tif", np.dstack([GREY_16] * 3), photometric="rgb", compression="zlib")
    content = path.read_bytes().replace(struct.pack("<HHII", 259, 3, 1, 8), struct.pack("<HHII", 259, 3, 1, 5))
    path.write_bytes(content)  # declares LZW
    assert "imagecodecs" in refusal(read_image, path)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16])
def test_tiff_white_is_zero(tmp_path: Path, dtype: Any) -> None:
    pixels = (GREY > 99) if dtype is bool else GREY.astype(dtype)
    image = read_image(tiff(tmp_path / "a.tif", pixels, photometric="miniswhite"))
    highest = 1 if dtype is bool else np.iinfo(dtype).max
    np.testing.assert_array_equal(image.pixels[0], highest - pixels.astype(int))


@pytest.mark.parametrize("compression", ["tiff_lzw", "raw"])
def test_tiff_white_is_zero_is_the_same_by_pillow(tmp_path: Path, compression: str) -> None:
    PIL.Image.fromarray(GREY).save(tmp_path / "a.tif", compression=compression, tiffinfo={262: 0})
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.pages[0].photometric == 0
    with PIL.Image.open(tmp_path / "a.tif") as picture:
        np.testing.assert_array_equal(read_image(tmp_path / "a.tif").pixels[0], np.asarray(picture))


def test_tiff_white_is_zero_float_is_refused(tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif", np.ones((3, 3), np.float32), photometric="miniswhite")
    assert "white is zero" in refusal(read_image, path)


def test_tiff_cmyk_and_volume_are_refused(tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif", np.ones((3, 3, 4), np.uint8), photometric="separated")
    assert "colours SEPARATED" in refusal(read_image, path)
    path = tiff(tmp_path / "b.tif", np.ones((16, 16, 16), np.uint8), volumetric=True, tile=(16, 16, 16))
    assert "16 slices in one page" in refusal(read_image, path)


def test_tiff_complex_is_refused(tmp_path: Path) -> None:
    assert "complex64" in refusal(read_image, tiff(tmp_path / "a.tif", np.ones((3, 3), np.complex64)))


# ---------------------------------------------------------------- NPY and arrays


def npy(path: Path, pixels: np.ndarray) -> Path:
    np.save(path, pixels)
    return path


@pytest.mark.parametrize("dtype", ["?", "u1", "<i2", ">i2", ">u4", "i8", "f2", ">f4", "f8"])
def test_npy_types(tmp_path: Path, dtype: str) -> None:
    pixels = GREY.astype(dtype)
    image = read_image(npy(tmp_path / "a.npy", pixels))
    np.testing.assert_array_equal(image.pixels[0], pixels)
    assert image.pixels.dtype == (np.uint8 if dtype == "?" else np.dtype(dtype).newbyteorder("="))
    assert image.bits_stored == {"?": 1, "f2": None, ">f4": None, "f8": None}.get(dtype, image.pixels.itemsize * 8)


def test_headers_of_npy_files_are_parsed_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python before 3.11.8 and 3.12.1 fails at random otherwise."""
    np.save(tmp_path / "a.npy", GREY)
    read_header, inside, most = np.lib.format.read_array_header_1_0, [0], [0]

    def watched(file: Any) -> Any:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.01)
        header = read_header(file)
        inside[0] -= 1
        return header

    monkeypatch.setattr(np.lib.format, "read_array_header_1_0", watched)
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(lambda _: read_image(tmp_path / "a.npy"), range(8)))
    assert all(np.array_equal(image.pixels[0], GREY) for image in images)
    assert most == [1]


@pytest.mark.parametrize("is_fortran", [False, True])
@pytest.mark.parametrize(
    ("shape", "channels"),
    [((5, 7), 1), ((5, 7, 3), 3), ((5, 7, 4), 4), ((5, 7, 1), 1), ((3, 5, 7), 3), ((2, 5, 4), 4)],
)
def test_axes_are_found_by_the_rule(tmp_path: Path, shape: tuple[int, ...], channels: int, is_fortran: bool) -> None:
    pixels = RNG.integers(0, 256, shape).astype(np.uint8)
    pixels = np.asfortranarray(pixels) if is_fortran else pixels
    expected = pixels[np.newaxis] if len(shape) == 2 else pixels if shape == (3, 5, 7) else np.moveaxis(pixels, -1, 0)
    for image in (read_image(npy(tmp_path / "a.npy", pixels)), image_from(pixels)):
        np.testing.assert_array_equal(image.pixels, expected)
        assert image.n_channels == channels
        assert image.pixels.flags.c_contiguous


@pytest.mark.parametrize(
    ("shape", "channels"),
    [((24, 30, 6), 6), ((6, 24, 30), 6), ((256, 256, 64), 64), ((64, 256, 260), 64), ((20, 20, 5), 5), ((3, 30, 5), 3)],
)
def test_many_channels_are_an_axis_much_shorter_than_the_others(
    tmp_path: Path, shape: tuple[int, ...], channels: int
) -> None:
    pixels = RNG.integers(0, 256, shape).astype(np.uint8)
    expected = pixels if shape[0] == channels else np.moveaxis(pixels, -1, 0)
    for image in (read_image(npy(tmp_path / "a.npy", pixels)), image_from(pixels)):
        np.testing.assert_array_equal(image.pixels, expected)


@pytest.mark.parametrize(
    "shape", [(5,), (), (5, 6, 7), (2, 3, 4, 5), (23, 30, 6), (30, 23, 6), (6, 23, 30), (300, 300, 65), (65, 300, 300)]
)
def test_axes_that_do_not_tell(tmp_path: Path, shape: tuple[int, ...]) -> None:
    pixels = np.ones(shape, np.uint8)
    refusal(read_image, npy(tmp_path / "a.npy", pixels))
    refusal(image_from, pixels)


def test_axes_that_do_not_tell_have_a_cure_on_the_command_line(tmp_path: Path) -> None:
    text = refusal(read_image, npy(tmp_path / "a.npy", np.ones((5, 6, 7), np.uint8)))
    assert "joined by '|' in the `path` of a manifest CSV" in text


def test_axes_argument() -> None:
    pixels = RNG.integers(0, 256, (5, 6, 7)).astype(np.uint8)
    np.testing.assert_array_equal(image_from(pixels, axes="CHW").pixels, pixels)
    np.testing.assert_array_equal(image_from(pixels, axes="HWC").pixels, np.moveaxis(pixels, -1, 0))
    assert image_from(pixels[:3, :3, :3], axes="CHW").pixels[2, 0, 1] == pixels[2, 0, 1]
    refusal(image_from, pixels, "HW", kind=UsageError)
    refusal(image_from, GREY, "HWC", kind=UsageError)
    refusal(image_from, GREY, "WH", kind=UsageError)


def test_array_is_copied_and_not_frozen() -> None:
    pixels = GREY.copy()
    image = image_from(pixels)
    pixels[0, 0] ^= 1
    assert image.pixels[0, 0, 0] == GREY[0, 0]
    assert image_from(image) is image


@pytest.mark.parametrize("pixels", [np.ones((2, 2), complex), np.full((2, 2), "a"), np.ones((2, 2), "M8[s]")])
def test_pixels_that_are_no_numbers(tmp_path: Path, pixels: np.ndarray) -> None:
    assert "pixels of type" in refusal(image_from, pixels)
    assert "pixels of type" in refusal(read_image, npy(tmp_path / "a.npy", pixels))


def test_npy_with_objects_is_not_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "sprung"),)

    np.save(tmp_path / "a.npy", np.array([[Trap()]], dtype=object), allow_pickle=True)
    assert "object" in refusal(read_image, tmp_path / "a.npy")
    assert not (tmp_path / "sprung").exists()


def test_long_double_becomes_double() -> None:
    assert image_from(np.ones((2, 2), np.longdouble)).pixels.dtype == np.float64


# ---------------------------------------------------------------- other sources


def test_pillow_pictures() -> None:
    np.testing.assert_array_equal(image_from(PIL.Image.fromarray(COLOUR)).pixels, CHANNELS)
    np.testing.assert_array_equal(image_from(PIL.Image.fromarray(GREY_16)).pixels[0], GREY_16)
    floats = PIL.Image.fromarray(GREY.astype(np.float32))
    assert (image_from(floats).pixels.dtype, image_from(floats).bits_stored) == (np.float32, None)
    rgba = PIL.Image.fromarray(np.dstack([COLOUR, GREY]))
    np.testing.assert_array_equal(image_from(rgba).valid, GREY > 0 if (GREY == 0).any() else None)
    refusal(image_from, PIL.Image.new("CMYK", (2, 2)))


def test_image_from_a_path_and_from_a_data_set(tmp_path: Path) -> None:
    from test_dicom import dataset  # a data set in memory

    path = save(GREY, tmp_path / "a.png")
    np.testing.assert_array_equal(image_from(path).pixels, read_image(path).pixels)
    np.testing.assert_array_equal(image_from(dataset(GREY_16)).pixels[0], GREY_16)
    assert "list" in refusal(image_from, [[1, 2]], kind=UsageError)


def test_arrays_need_neither_pydicom_nor_pillow() -> None:
    code = (
        "import sys, numpy as np\nfrom anomaly_ae.readers import image_from\n"
        "image_from(np.ones((2, 2)))\nsys.exit(any(m in sys.modules for m in ('pydicom', 'PIL', 'tifffile')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---------------------------------------------------------------- what cannot be read


def test_content_counts_not_the_name(tmp_path: Path) -> None:
    for right, wrong in (("a.jpg", "b.png"), ("a.png", "b.tif"), ("a.tif", "b.npy"), ("a.npy", "b.dcm")):
        path = npy(tmp_path / right, GREY) if right == "a.npy" else save(GREY, tmp_path / right)
        expected = read_image(path).pixels
        path.rename(tmp_path / wrong)
        np.testing.assert_array_equal(read_image(tmp_path / wrong).pixels, expected)


@pytest.mark.parametrize("name", [f"a{suffix}" for suffix in sorted(IMAGE_SUFFIXES)] + ["a", "a.txt"])
@pytest.mark.parametrize("content", [b"BM is how this text begins, and it goes on\n" * 20, b"x", bytes(1000)])
def test_no_image_in_it(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    refusal(read_image, tmp_path / name)
    refusal(count_frames, tmp_path / name)


def test_foreign_format_is_named(tmp_path: Path) -> None:
    PIL.Image.new("L", (3, 3)).save(tmp_path / "a.gif")
    assert "a GIF file" in refusal(read_image, tmp_path / "a.gif")


def test_missing_folder_empty(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    for call in (read_image, read_mask, count_frames):
        assert "no such file" in refusal(call, tmp_path / "none.png")
        assert "is a folder" in refusal(call, tmp_path / "folder.png")
        assert "is empty" in refusal(call, tmp_path / "empty.png")
    refusal(read_image, Path("a\0b.png"))


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    path = save(GREY, tmp_path / "a.png")
    monkeypatch.setattr(Path, "open", refuse)
    assert "may not be read" in refusal(read_image, path)


def every_format(folder: Path) -> list[Path]:
    from test_dicom import dataset
    from test_dicom import save as save_dicom

    noise = RNG.integers(0, 256, (40, 50, 3)).astype(np.uint8)
    (folder / "16.png").write_bytes(png_bytes(noise.astype(np.uint16) * 257, 2, 16, [4, 3]))
    table = palette_picture(RNG.integers(0, 256, (256, 3)), noise[..., 0])
    table.save(folder / "palette.bmp")
    table.save(folder / "lzw.tif", compression="tiff_lzw")
    return [
        save(noise, folder / "a.png"),
        folder / "16.png",
        save(noise, folder / "a.jpg"),
        save(noise, folder / "progressive.jpg", progressive=True, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0"),
        save(noise, folder / "a.bmp"),
        folder / "palette.bmp",
        folder / "lzw.tif",
        tiff(folder / "a.tif", noise),
        tiff(folder / "zip.tif", noise, compression="zlib", rowsperstrip=7),
        tiff(folder / "tiles.tif", noise.astype(np.float32), tile=(16, 16), photometric="rgb"),
        npy(folder / "a.npy", noise),
        save_dicom(dataset(noise), folder / "a.dcm"),
    ]


@pytest.mark.parametrize("is_lenient", [False, True])
def test_no_half_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_lenient: bool) -> None:
    """Cut anywhere, a file is refused, even where another part of the process told Pillow to accept halves."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", is_lenient)
    for path in every_format(tmp_path):
        whole, expected = path.read_bytes(), read_image(path).pixels
        n_tail = 16 if path.suffix == ".dcm" else 1  # padding of a DICOM element may be missing
        for n_bytes in sorted(
            {4, 12, 30, 60, 150, len(whole) - n_tail, *np.linspace(1, len(whole) - n_tail, 12, dtype=int)}
        ):
            for padding in (b"", bytes(len(whole) - n_bytes)):
                if padding and path.suffix not in (".png", ".jpg"):
                    continue  # these formats cannot know whether zeros are meant
                if padding and not any(whole[n_bytes:]):
                    continue
                path.write_bytes(whole[:n_bytes] + padding)
                refusal(read_image, path)
        path.write_bytes(whole)
        np.testing.assert_array_equal(read_image(path).pixels, expected)


def test_any_damage_gives_an_image_or_this_error_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(1)
    for path in every_format(tmp_path):
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(40):
            damaged = whole.copy()
            where = rng.integers(0, min(len(whole), rng.choice([60, 400, len(whole)])), rng.integers(1, 6))
            damaged[where] = rng.choice([0, 1, 127, 255, rng.integers(256)], len(where))
            path.write_bytes(damaged.tobytes())
            with caplog.at_level(logging.WARNING), contextlib.suppress(UnreadableImageError):
                read_image(path)  # a warning would be an error here
        if path.name != "lzw.tif":  # libtiff, in C, writes to stderr what it finds damaged
            assert capfd.readouterr().err == ""
        capfd.readouterr()
    assert not caplog.records


def test_no_message_is_in_the_words_of_a_program(tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif", GREY)
    width, no_width = (struct.pack("<HHII", 256, 4, count, 7) for count in (1, 0))
    path.write_bytes(path.read_bytes().replace(width, no_width))
    assert "damaged or unsupported TIFF file: its parts contradict each other" in refusal(read_image, path)
    path = npy(tmp_path / "a.npy", GREY)
    path.write_bytes(path.read_bytes().replace(b"False", b"Wrong"))
    assert "<ast.Name object>" in refusal(read_image, path), "the same text in every run, so without an address"


def test_a_flipped_bit_in_a_png_is_noticed(tmp_path: Path) -> None:
    path = save(RNG.integers(0, 256, (40, 50)).astype(np.uint8), tmp_path / "a.png", compress_level=0)
    whole = path.read_bytes()
    path.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
    assert "wrong checksum" in refusal(read_image, path)


def huge(folder: Path, side: int) -> list[Path]:
    """Make one small file per format that declares side x side pixels."""
    png = bytearray(png_bytes(GREY[..., np.newaxis], 0, 8, [0]))
    png[8:33] = png_chunk(b"IHDR", struct.pack(">II", side, side) + bytes(png[24:29]))
    (folder / "a.png").write_bytes(png)
    jpeg = bytearray(save(GREY, folder / "a.jpg").read_bytes())
    start = jpeg.index(b"\xff\xc0")
    jpeg[start + 5 : start + 9] = struct.pack(">HH", *(min(side, 65535),) * 2)
    (folder / "a.jpg").write_bytes(jpeg)
    bmp = bytearray(save(GREY, folder / "a.bmp").read_bytes())
    bmp[18:26] = struct.pack("<ii", side, side)
    (folder / "a.bmp").write_bytes(bmp)
    tif = tiff(folder / "a.tif", GREY).read_bytes()
    for tag in (256, 257, 278):
        i = tif.index(struct.pack("<HH", tag, 4 if struct.pack("<HHI", tag, 4, 1) in tif else 3))
        tif = tif[:i] + struct.pack("<HHII", tag, 4, 1, side) + tif[i + 12 :]
    (folder / "a.tif").write_bytes(tif)
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({side}, {side}), }}".ljust(117) + "\n"
    (folder / "a.npy").write_bytes(b"\x93NUMPY\x01\0" + struct.pack("<H", 118) + header.encode())
    return [folder / f"a.{suffix}" for suffix in ("png", "jpg", "bmp", "tif", "npy")]


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "npy"])
def test_size_is_checked_before_memory_is_taken(tmp_path: Path, suffix: str) -> None:
    import tracemalloc

    side = 100_000
    path = next(p for p in huge(tmp_path, side) if p.suffix == f".{suffix}")
    assert side**2 > MAX_PIXELS
    tracemalloc.start()
    text = refusal(read_image, path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert f"declares {min(side, 65535) if suffix == 'jpg' else side} x" in text
    assert peak < 20e6


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "npy"])
def test_no_pixels(tmp_path: Path, suffix: str) -> None:
    refusal(read_image, next(p for p in huge(tmp_path, 0) if p.suffix == f".{suffix}"))


def test_pillow_limit_is_neither_used_nor_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        PIL.Image, "MAX_IMAGE_PIXELS", 4
    )  # Pillow would warn of anything larger and refuse twice as much
    np.testing.assert_array_equal(read_image(save(GREY, tmp_path / "a.png")).pixels[0], GREY)
    np.testing.assert_array_equal(read_image(save(COLOUR, tmp_path / "b.bmp")).pixels, CHANNELS)
    assert PIL.Image.MAX_IMAGE_PIXELS == 4


def test_png_that_inflates_to_more_than_declared_takes_no_memory(tmp_path: Path) -> None:
    import tracemalloc

    content = png_bytes(np.zeros((4, 4, 3), np.uint16), 2, 16, [0])
    bomb = png_chunk(b"IDAT", zlib.compress(bytes(50_000_000)))
    head = content[: content.index(b"IDAT") - 4]
    (tmp_path / "a.png").write_bytes(head + bomb + png_chunk(b"IEND", b""))
    tracemalloc.start()
    read_image(tmp_path / "a.png")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6


def test_deflated_tiff_that_inflates_to_more_than_an_image_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tracemalloc

    path = tiff(tmp_path / "a.tif", GREY, compression="zlib")
    bomb = zlib.compress(bytes(40_000_000))
    with tifffile.TiffFile(path, mode="r+b") as file:
        end = file.filehandle.size
        file.pages[0].tags["StripOffsets"].overwrite(end)
        file.pages[0].tags["StripByteCounts"].overwrite(len(bomb))
        file.filehandle.seek(end)
        file.filehandle.write(bomb)
    monkeypatch.setattr(dicom_shared, "_PIECE", 1000)
    assert read_image(path).pixels.shape == (1, *GREY.shape)
    monkeypatch.setattr(dicom_shared, "_MOST_BYTES", 1_000_000)
    tracemalloc.start()
    text = refusal(read_image, path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "deflated bytes become more than 1,000,000" in text
    assert peak < 5e6, "40 MB if inflated whole"


def test_memory_error_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_much(*_: Any, **__: Any) -> Any:
        raise MemoryError

    path = npy(tmp_path / "a.npy", GREY)
    monkeypatch.setattr(np, "fromfile", too_much)
    assert "not enough memory" in refusal(read_image, path)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(tmp_path: Path, bad: float) -> None:
    pixels = np.ones((4, 5), np.float32)
    pixels[1, 2] = pixels[3, 4] = bad
    assert "2 of 20 values are NaN or infinite" in refusal(read_image, npy(tmp_path / "a.npy", pixels))
    assert "2 of 20" in refusal(read_image, tiff(tmp_path / "a.tif", pixels))
    assert "2 of 20" in refusal(image_from, pixels)

    samples = np.dstack([pixels, np.isfinite(pixels).astype(np.float32)])  # alpha 0 where bad
    path = tiff(
        tmp_path / "b.tif", samples, photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"]
    )
    image = read_image(path)
    np.testing.assert_array_equal(image.valid, np.isfinite(pixels))
    np.testing.assert_array_equal(image.pixels[0], np.isfinite(pixels))  # 1 where it was finite, else 0


def test_wholly_transparent_image(tmp_path: Path) -> None:
    path = save(np.dstack([COLOUR, np.zeros_like(GREY)]), tmp_path / "a.png")
    assert "no valid pixel" in refusal(read_image, path)
    assert not read_mask(path).any()


def test_a_file_without_frames_is_refused_and_not_taken_for_an_empty_series(tmp_path: Path) -> None:
    from test_dicom import dataset
    from test_dicom import save as save_dicom

    (tmp_path / "a.tif").write_bytes(b"II*\0" + bytes(4))  # the offset of the first page is 0: there is none
    save_dicom(dataset(GREY[np.newaxis], NumberOfFrames="-1"), tmp_path / "a.dcm")
    for path in (tmp_path / "a.tif", tmp_path / "a.dcm"):
        assert "has no frame 0" in refusal(count_frames, path)
        assert "has no frame 0" in refusal(read_image, path)


def test_a_file_that_claims_too_many_frames_is_one_failure_of_the_folder(tmp_path: Path) -> None:
    from test_dicom import dataset
    from test_dicom import save as save_dicom

    (tmp_path / "images").mkdir()
    save_dicom(dataset(GREY[np.newaxis], NumberOfFrames="2000000000"), tmp_path / "images" / "a.dcm")
    save(GREY, tmp_path / "images" / "b.png")
    assert "claims to hold 2000000000 frames" in refusal(count_frames, tmp_path / "images" / "a.dcm")
    assert "claims to hold 2000000000 frames" in refusal(read_image, tmp_path / "images" / "a.dcm")
    samples = load_manifest(tmp_path / "images", identified=True).samples
    assert [sample.id for sample in samples] == ["a.dcm", "b.png"]


def test_frames_of_formats_without_frames(tmp_path: Path) -> None:
    for path in (save(GREY, tmp_path / "a.png"), npy(tmp_path / "a.npy", GREY)):
        assert count_frames(path) == 1
        assert "the file holds 1 frame:" not in refusal(read_image, path, 1)
        assert "ask for 0 to 0" in refusal(read_image, path, 1)


# ---------------------------------------------------------------- channels


def test_files_as_channels(tmp_path: Path) -> None:
    a, b = save(GREY, tmp_path / "a.png"), save(GREY_16, tmp_path / "b.png")
    alpha = (GREY > 99).astype(np.uint8)
    c = save(np.dstack([COLOUR, alpha]), tmp_path / "c.png")
    image = read_channels([a, b, c])
    np.testing.assert_array_equal(image.pixels, np.concatenate([GREY[np.newaxis], GREY_16[np.newaxis], CHANNELS]))
    np.testing.assert_array_equal(image.valid, alpha > 0)
    assert (image.pixels.dtype, image.bits_stored) == (np.uint16, 16)
    assert image.source == f"{a}|{b}|{c}"
    assert read_channels([a, a, a]).n_channels == 3  # equal files are channels all the same
    np.testing.assert_array_equal(read_channels([a]).pixels, read_image(a).pixels)
    refusal(read_channels, [], kind=UsageError)


def test_channels_keep_all_values(tmp_path: Path) -> None:
    signed, unsigned = np.int16([[-5, 6]]), np.uint16([[65535, 0]])
    image = read_channels([npy(tmp_path / "a.npy", signed), npy(tmp_path / "b.npy", unsigned)])
    np.testing.assert_array_equal(image.pixels, [[[-5, 6]], [[65535, 0]]])


def test_channels_on_different_grids(tmp_path: Path) -> None:
    from test_dicom import dataset
    from test_dicom import save as save_dicom

    a, b = save(GREY, tmp_path / "a.png"), save(GREY[:4], tmp_path / "b.png")
    text = refusal(read_channels, [a, b])
    assert f"{a} and {b} measure 5x7 and 4x7" in text
    fine = save_dicom(dataset(GREY, PixelSpacing=[1, 1]), tmp_path / "fine.dcm")
    coarse = save_dicom(dataset(GREY, PixelSpacing=[1, 1.5]), tmp_path / "coarse.dcm")
    assert "1x1 and 1x1.5 mm" in refusal(read_channels, [fine, coarse])
    assert read_channels([a, fine]).spacing_mm == (1.0, 1.0)


# ---------------------------------------------------------------- masks


def test_masks_of_every_kind(tmp_path: Path) -> None:
    defect = GREY > 99
    kinds = [
        save(np.where(defect, 255, 0).astype(np.uint8), tmp_path / "a.png"),
        save(np.where(defect, 1, 0).astype(np.uint8), tmp_path / "b.png"),
        save(np.where(defect, 300, 0).astype(np.uint16), tmp_path / "c.png"),
        save(defect, tmp_path / "d.png"),
        npy(tmp_path / "e.npy", defect),
        npy(tmp_path / "f.npy", np.where(defect, -0.5, 0)),
        tiff(tmp_path / "g.tif", np.where(defect, 2, 0).astype(np.uint8)),
    ]
    red = np.zeros((5, 7, 3), np.uint8)
    red[defect, 0] = 200
    kinds.append(save(red, tmp_path / "h.png"))
    index = palette_picture(np.array([[0, 0, 0], [0, 9, 0]]), defect.astype(np.uint8))
    index.save(tmp_path / "i.png")
    for path in [*kinds, tmp_path / "i.png"]:
        mask = read_mask(path, (5, 7))
        assert mask.dtype == bool
        np.testing.assert_array_equal(mask, defect, err_msg=path.name)


def test_jpeg_mask_is_cut_in_the_middle(tmp_path: Path) -> None:
    defect = np.zeros((40, 40), bool)
    defect[10:25, 7:30] = True
    path = save(np.where(defect, 255, 0).astype(np.uint8), tmp_path / "a.jpg", quality=60)
    assert (np.asarray(PIL.Image.open(path)) > 0).sum() > defect.sum()  # blurred by the compression
    np.testing.assert_array_equal(read_mask(path), defect)


def test_mask_of_another_shape(tmp_path: Path) -> None:
    path = save(np.zeros((200, 100), np.uint8), tmp_path / "a.png")
    assert "mask 200x100, image 300x300 (height x width)" in refusal(read_mask, path, (300, 300), kind=DataError)


def test_mask_of_several_frames(tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif", np.zeros((3, 20, 20), np.uint8), photometric="minisblack")
    assert "3 frames" in refusal(read_mask, path)


# ---------------------------------------------------------------- folders and hashes


def test_looks_like_image(tmp_path: Path) -> None:
    dicom = bytes(128) + b"DICM"
    for name in ("IM0001", "1.2.840.113619", "series.7"):
        (tmp_path / name).write_bytes(dicom)
        assert looks_like_image(tmp_path / name)
        (tmp_path / name).write_bytes(b"text")
        assert not looks_like_image(tmp_path / name)
    for name in ("DICOMDIR", ".hidden", "notes.txt"):
        (tmp_path / name).write_bytes(dicom)
        assert not looks_like_image(tmp_path / name)
    assert all(looks_like_image(f"A{suffix.upper()}") for suffix in IMAGE_SUFFIXES)
    assert not looks_like_image("._a.png")
    assert not looks_like_image(tmp_path)  # a folder without suffix
    assert not looks_like_image(tmp_path / "missing")


def test_image_sha256(tmp_path: Path) -> None:
    a, b = save(GREY, tmp_path / "a.png"), save(COLOUR, tmp_path / "b.png")
    digest = hashlib.sha256(a.read_bytes()).hexdigest()
    assert image_sha256(a) == image_sha256(str(a)) == image_sha256([a]) == digest
    several = {image_sha256(list(files)) for files in itertools.permutations([a, b])}
    assert len(several) == 2  # the order of the channels counts
    assert digest not in several
    refusal(image_sha256, tmp_path / "none.png")


def test_pixel_sha256_agrees_across_formats_and_types(tmp_path: Path) -> None:
    same = [
        read_image(save(GREY, tmp_path / "a.png")),
        read_image(save(np.dstack([GREY] * 3), tmp_path / "b.png")),
        read_image(tiff(tmp_path / "c.tif", GREY.astype(np.int32))),
        read_image(npy(tmp_path / "d.npy", GREY.astype(">f8"))),
        image_from(np.asfortranarray(GREY).astype(np.float32)),
    ]
    assert len({pixel_sha256(image) for image in same}) == 1
    other = [image_from(GREY.T.copy()), image_from(GREY ^ 1), image_from(GREY.reshape(7, 5)), image_from(GREY[:, :6])]
    assert len({pixel_sha256(image) for image in [same[0], *other]}) == 5
    assert pixel_sha256(image_from(np.array([[-0.0, 1.0]]))) == pixel_sha256(image_from(np.array([[0, 1]])))


def test_png_chunks_are_checked_in_the_helper_itself() -> None:
    """The encoder of this test and the parser agree on the parts of a file."""
    parsed = parse(png_bytes(GREY[..., np.newaxis], 0, 8, [2], tRNS=b"\0\x05"), "a.png")
    assert (parsed.width, parsed.height, parsed.depth, parsed.transparency) == (7, 5, 8, b"\0\x05")


@pytest.mark.parametrize("compression", ["lzma", "packbits"])
def test_tiff_of_parts_that_would_become_too_much_is_refused(
    compression: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lzma

    from anomaly_ae.dicom import shared

    path, pixels = tmp_path / "a.tiff", np.arange(4096, dtype=np.uint8).reshape(64, 64)
    raw = {"lzma": lzma.compress(bytes(2**20)), "packbits": b"\x81\x07" * 6000}[compression]
    tifffile.imwrite(path, pixels, metadata=None)
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        tags = tiff.pages[0].tags
        places = {name: tags[name].valueoffset for name in ("Compression", "StripOffsets", "StripByteCounts")}
        sizes = {name: {3: 2, 4: 4}[int(tags[name].dtype)] for name in places}
    number = {"lzma": 34925, "packbits": 32773}[compression]
    for name, value in (("Compression", number), ("StripOffsets", len(content)), ("StripByteCounts", len(raw))):
        content[places[name] : places[name] + sizes[name]] = value.to_bytes(sizes[name], "little")
    path.write_bytes(bytes(content) + raw)
    monkeypatch.setattr(shared, "_MOST_BYTES", 2**19)
    monkeypatch.setattr(shared, "_LZMA_PIECE", 64)
    with pytest.raises(UnreadableImageError, match=r"become more than|bytes of runs for"):
        read_image(path)


def test_what_is_masked_in_an_array_is_not_valid() -> None:
    pixels = np.arange(64, dtype=np.float32).reshape(8, 8)
    pixels[0, 0] = np.nan
    image = image_from(np.ma.masked_invalid(pixels))
    assert image.valid is not None
    assert np.argwhere(~image.valid).tolist() == [[0, 0]]
    assert not isinstance(image.pixels, np.ma.MaskedArray)
    assert image.pixels[0, 1:, 1:].tolist() == pixels[1:, 1:].tolist()
    assert image_from(np.ma.masked_array(CHANNELS, mask=np.ma.nomask)).valid is None
    with pytest.raises(UnreadableImageError, match="no valid pixel"):
        image_from(np.ma.masked_array(pixels, mask=True))


def test_what_is_masked_in_one_channel_is_not_valid() -> None:
    mask = np.zeros((8, 9, 3), bool)
    mask[2, 3, 1] = True
    image = image_from(np.ma.masked_array(np.random.default_rng(0).integers(0, 9, mask.shape), mask))
    assert image.pixels.shape == (3, 8, 9)
    assert image.valid is not None
    assert np.argwhere(~image.valid).tolist() == [[2, 3]]


def test_what_is_masked_in_a_volume_is_not_valid() -> None:
    voxels = np.zeros((3, 4, 5), np.int16)
    voxels[1, 2, 3] = -9
    volume = volume_from(np.ma.masked_equal(voxels, -9))
    assert type(volume.pixels) is np.ndarray
    assert volume.valid is not None
    assert np.argwhere(~volume.valid).tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(
    "valid", [np.ones((7, 8), bool), np.ones((8, 8), np.uint8), np.ones((8, 8)), np.ones((1, 8, 8), bool)]
)
def test_a_valid_mask_of_another_shape_or_type_is_refused_with_a_cure(valid: np.ndarray) -> None:
    pixels = np.zeros((1, 8, 8), np.uint8)
    with pytest.raises(UsageError, match=r"valid mask of type .* \(8, 8\) as each channel .*mask > 0"):
        Image(pixels, valid)
    Image(pixels, np.resize(valid, (8, 8)) > 0)


def test_an_image_without_an_axis_of_channels_is_refused_with_a_cure() -> None:
    pixels = np.zeros((8, 8), np.uint8)
    with pytest.raises(UsageError, match=r"pixels\[None\]"):
        Image(pixels)
    assert Image(pixels[None]).spatial_shape == (8, 8)


def test_an_image_is_read_only_and_the_array_of_the_caller_is_not() -> None:
    pixels, valid = np.zeros((1, 8, 8), np.uint8), np.ones((8, 8), bool)
    image = Image(pixels, valid)
    assert image.valid is not None
    assert not image.pixels.flags.writeable
    assert not image.valid.flags.writeable
    pixels[0, 0, 0], valid[0, 0] = 1, False


def test_a_path_may_be_an_entry_of_a_folder(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", GREY)
    with os.scandir(tmp_path) as entries:
        [entry] = entries
    assert image_from(entry).source == str(tmp_path / "a.npy")


def test_the_cure_for_a_tensor_is_said_of_a_tensor_only() -> None:
    with pytest.raises(UsageError, match=r"tensor.cpu\(\).numpy"):
        image_from(torch.zeros(8, 8))
    with pytest.raises(UsageError) as caught:
        image_from(7)
    assert "tensor" not in str(caught.value)
