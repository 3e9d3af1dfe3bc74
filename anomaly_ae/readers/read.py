"""From a path, several paths, an array, a picture or a data set to one Image; masks; frames."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np

from anomaly_ae.dicom import count_dicom_frames, is_segmentation, read_dicom, read_outlines
from anomaly_ae.dicom.shared import check_frame, decoding
from anomaly_ae.errors import DataError, UnreadableImageError, UsageError
from anomaly_ae.nifti import count_nifti_frames, grid_problem, read_nifti, volume_frames
from anomaly_ae.readers.arrays import Axes, channels_first, check_dtype, finish, only_finite, read_npy, unmasked
from anomaly_ae.readers.kinds import kind_of
from anomaly_ae.readers.pillow import from_pillow, read_with_pillow
from anomaly_ae.readers.tiff import count_tiff_frames, read_tiff
from anomaly_ae.records import BoolArray, Image, PixelArray, Slice

MASK_SEPARATOR = "|"
"""Joins the names of several masks of one image: ``masks/0_a.png|0_b.png`` are two files in one folder."""

_LOSSY_MASK_LEVEL = 127  # JPEG blurs the 0 and 255 of a mask; above the middle is defect
_MAX_CLEAN_VALUES = 16  # more grey values than that, most of them near 0 and 255: a mask that JPEG or scaling blurred


def read_image(path: str | Path, frame: int = 0) -> Image:
    """Read one frame of an image file, in the file's own numbers.

    The format is found by content; the suffix matters only for DICOM files without preamble. No intensity is
    rescaled, reduced in depth or windowed, except as formats define their values: modality LUT and
    MONOCHROME1 (see `anomaly_ae.dicom.read_dicom`), TIFF "white is zero".

    Parameters
    ----------
    path : path
        PNG (1 to 16 bits), JPEG, BMP, TIFF, NPY, DICOM or NIfTI.
    frame : int
        Counted from 0: a page of a TIFF, a frame of a DICOM file, a slice of a NIfTI file. All others have one.

    Returns
    -------
    Image
        ``pixels``: (C, H, W) in the file's dtype and native byte order; 1-bit and boolean pixels as uint8 0/1; a
        palette as RGB; three equal channels as one, with ``was_grey_rgb``. ``valid``: False where alpha, a
        transparent colour or DICOM padding say so; None where nothing does. Orientation tags are applied.
        ``volume``: the other slices in a DICOM or NIfTI file.

    Raises
    ------
    UnreadableImageError
        Missing, not permitted, empty, truncated, damaged, too large, in an unsupported format, without `frame`,
        with NaN or infinite values, or wholly transparent. Nothing else is raised, whatever the file holds.
    """
    return read_channels((path,), frame)


def read_channels(files: Sequence[str | Path], frame: int = 0, valid: str | Path | None = None) -> Image:
    """Read several files as the channels of one sample.

    Parameters
    ----------
    files : sequence of path
        On one pixel grid. A file with three channels gives three.
    frame : int
        The same of every file.
    valid : path or None
        A mask of what belongs to the sample: not 0 = belongs. NaN outside of it are no fault. That of a NIfTI
        volume is a volume, too.

    Returns
    -------
    Image
        ``pixels``: (sum of channels, H, W) in the smallest dtype that holds all. ``valid``: where all files are, and
        the mask.

    Raises
    ------
    UnreadableImageError
        A file is unreadable, height, width, pixel spacing or grid differ, or the mask leaves nothing.
    DataError
        The mask has another size, or is a volume on another grid.
    """
    image = _channels(files, frame)
    image = usable(image if valid is None else _masked(image, files[0], frame, valid))
    return replace(image, volume=_volume(image, files, frame, valid))


def read_plane(one: Slice) -> Image:
    """Read one slice of a volume as `read_channels` does, but for one of which nothing is valid: that is no fault.

    Raises
    ------
    UnreadableImageError, DataError
    """
    image = _channels(one.files, one.frame)
    if one.valid is None:
        return only_finite(image)
    inside = read_mask(one.valid, image.spatial_shape, one.frame, one.files[0])
    return only_finite(replace(image, valid=inside if image.valid is None else inside & image.valid))


def _channels(files: Sequence[str | Path], frame: int) -> Image:
    images = [_read(Path(file), str(file), frame) for file in files]
    if not images:
        raise UsageError("no files given", "a sample needs at least one file")
    return images[0] if len(images) == 1 else _joined(images)


def _volume(image: Image, files: Sequence[str | Path], frame: int, valid: str | Path | None) -> tuple[Slice, ...]:
    """Grey frames of a DICOM file, and slices of one time in a NIfTI file, are a volume; pages of a TIFF are not."""
    is_grey = image.n_channels == len(files) and not image.was_grey_rgb
    kind = kind_of(Path(files[0]), str(files[0])) if image.n_frames > 1 and is_grey else ""
    if kind not in ("DICOM", "NIfTI"):
        return ()
    frames = volume_frames(files[0], frame) if kind == "NIfTI" else range(image.n_frames)
    paths, mask = tuple(Path(file) for file in files), None if valid is None else Path(valid)
    return tuple(Slice(paths, number, mask) for number in frames)


def _joined(images: Sequence[Image]) -> Image:
    for image in images[1:]:
        _check_same_grid(images[0], image)
        problem = _mask_grid_problem(images[0].source, image.source)
        if problem:
            fix = "resample the files onto one grid"
            raise UnreadableImageError(f"{images[0].source} and {image.source} are no channels", problem, fix)
    pixels = np.concatenate([image.pixels for image in images])  # (C, H, W)
    masks = [image.valid for image in images if image.valid is not None]
    bits = [image.bits_stored for image in images if image.bits_stored is not None]
    return Image(
        pixels,
        np.logical_and.reduce(masks) if masks else None,
        next((image.spacing_mm for image in images if image.spacing_mm), None),
        "|".join(image.source for image in images),
        min(image.n_frames for image in images),
        max(bits) if len(bits) == len(images) and pixels.dtype.kind in "iu" else None,
    )


def _masked(image: Image, file: str | Path, frame: int, path: str | Path) -> Image:
    mask = read_mask(path, image.spatial_shape, frame, file)
    valid = mask if image.valid is None else mask & image.valid
    if not valid.any():
        raise UnreadableImageError(
            f"{image.source}: no valid pixel", f"{path} leaves nothing of it", "correct the mask, or leave it out"
        )
    return replace(image, valid=valid)


def image_from(source: Any, axes: Axes | None = None, frame: int = 0) -> Image:
    """Make an Image of whatever holds one.

    Parameters
    ----------
    source : path, array, PIL.Image.Image, pydicom Dataset or Image
        It is not changed; arrays are copied. Of a masked array, what is masked in no channel is valid.
    axes : "HW", "HWC", "CHW" or None
        Order of an array's axes. None: two axes are HW; three are HWC if the last has at most 4 entries, else CHW
        if the first has; else the same for an axis of at most 64 entries that is at most a quarter of both others;
        anything else is an error. A fourth channel is a channel, not transparency.
    frame : int
        Of a path or Dataset, counted from 0.

    Returns
    -------
    Image
        As `read_image`; an Image unchanged.

    Raises
    ------
    UnreadableImageError
        As `read_image`.
    UsageError
        `source` is of another kind, or `axes` do not fit.
    """
    if isinstance(source, Image):
        return source
    if isinstance(source, str | PathLike):
        return read_image(fspath(source), frame)
    if isinstance(source, np.ndarray):
        check_dtype(source.dtype, "array")
        channels = channels_first(source, axes, "array")
        return usable(finish(Image(np.array(channels, order="C"), unmasked(channels))))
    if _is_instance(source, "PIL.Image", "Image"):
        with decoding("PIL image", "picture"):
            return usable(from_pillow(source, "PIL image"))
    if _is_instance(source, "pydicom.dataset", "Dataset"):
        return usable(finish(read_dicom(source, frame)))
    fix = "pass tensor.cpu().numpy()" if _is_instance(source, "torch", "Tensor") else "pass one of these"
    why = "a path, a numpy array, a PIL image or a pydicom Dataset is taken"
    raise UsageError(f"cannot make an image of a {type(source).__name__}", why, fix)


def _mask_grid_problem(image: str | Path, mask: str | Path) -> str:
    """Say why a mask (or channel) in a NIfTI volume does not lie voxel on voxel on an image; "" where it does.

    Flat masks have no place of their own: they serve every slice of their size.

    Raises
    ------
    UnreadableImageError
        As `read_image`.
    """
    if kind_of(Path(mask), str(mask)) != "NIfTI" or count_nifti_frames(mask) == 1:
        return ""
    if kind_of(Path(image), str(image)) != "NIfTI":
        return "it is a NIfTI volume, the image is none"
    return grid_problem(image, mask)


def read_mask(
    path: str | Path, shape: tuple[int, ...] | None = None, frame: int = 0, image_file: str | Path | None = None
) -> BoolArray:
    """Read a defect mask: any pixel that is not zero, in any channel, is defect.

    JPEG blurs the edges of a mask: there a pixel is defect above 127. So it is in other files of 8 bits that have more
    than 16 values and fewer pixels of the middle half of the range than above it: they were JPEG once, or scaled.
    Transparent pixels are no defect.

    Parameters
    ----------
    path : path
        Any format of `read_image`, with one frame, a NIfTI volume, or a DICOM Segmentation (see
        `anomaly_ae.dicom.outlines`). Several files of one folder, their names joined by ``|``: what any of them marks.
    shape : (height, width) or None
        What the mask must measure.
    frame : int
        Of the image: which slice of a NIfTI mask it is. A mask of one volume serves all times of a 4-D file.
    image_file : path or None
        What a NIfTI mask must lie on voxel by voxel, and which image of a Segmentation it is.

    Returns
    -------
    bool array, (H, W)

    Raises
    ------
    UnreadableImageError
        As `read_image`, or several frames.
    DataError
        The mask has another shape than `shape`, lies on another grid than `image_file`, or knows nothing of it.
    """
    masks = [_read_mask(file, shape, frame, image_file) for file in mask_files(path)]
    for file, mask in zip(mask_files(path), masks, strict=True):
        _checked(mask, masks[0].shape, str(file))
    return masks[0] if len(masks) == 1 else np.logical_or.reduce(masks)


def mask_files(path: str | Path) -> list[Path]:
    """Return the files of a mask: one, or several of one folder whose names are joined by ``|``."""
    return [Path(path).with_name(name.strip()) for name in Path(path).name.split(MASK_SEPARATOR)]


def _read_mask(path: Path, shape: tuple[int, ...] | None, frame: int, image_file: str | Path | None) -> BoolArray:
    name = str(path)
    problem = "" if image_file is None else _mask_grid_problem(image_file, path)
    if problem:
        raise DataError(f"{name}: is no mask of {image_file}", problem, "resample it onto the grid of the image")
    kind = kind_of(path, name)
    if kind == "DICOM" and is_segmentation(path):
        return _checked(_outlines(path, name, frame, image_file), shape, name)
    image = only_finite(_read(path, name, frame % count_nifti_frames(path) if kind == "NIfTI" else 0))
    if image.n_frames > 1 and kind != "NIfTI":
        raise UnreadableImageError(f"{name}: {image.n_frames} frames", "a mask has one", "save one mask per image")
    is_lossy = kind == "JPEG" or _is_blurred(image.pixels)
    is_defect = image.pixels > _LOSSY_MASK_LEVEL if is_lossy else image.pixels != 0
    mask: BoolArray = np.logical_and(is_defect.any(axis=0), True if image.valid is None else image.valid)
    return _checked(mask, shape, name)


def _is_blurred(pixels: PixelArray) -> bool:
    """Whether a mask has grey values as JPEG and scaling make them; numbers of many defects spread evenly instead."""
    if pixels.dtype != np.uint8:
        return False
    counts = np.bincount(pixels.ravel(), minlength=256)
    return bool(np.count_nonzero(counts) > _MAX_CLEAN_VALUES and counts[64:192].sum() < counts[192:].sum())


def _outlines(path: Path, name: str, frame: int, image_file: str | Path | None) -> BoolArray:
    if image_file is None:
        raise DataError(f"{name}: is a DICOM segmentation", "what it marks depends on the image", "name the image")
    if kind_of(Path(image_file), str(image_file)) != "DICOM":
        why = "a DICOM segmentation belongs to DICOM images, and this is none"
        raise DataError(f"{name}: is no mask of {image_file}", why, "give the DICOM image, or the mask as an image")
    return read_outlines(path, image_file, frame)


def _checked(mask: BoolArray, shape: tuple[int, ...] | None, name: str) -> BoolArray:
    if shape is not None and mask.shape != tuple(shape):
        raise DataError(
            f"{name}: mask {_by(mask.shape)}, image {_by(shape)} (height x width)",
            "a mask lies pixel on pixel on its image",
            "export the mask in the size of the image",
        )
    return mask


def count_frames(path: str | Path) -> int:
    """Return the number of frames of an image file; only headers are read.

    Raises
    ------
    UnreadableImageError
        The file is not an image, has no frame, or its header is damaged.
    """
    path, name = Path(path), str(path)
    kind, n_frames = kind_of(path, name), 1
    if kind == "DICOM":
        n_frames = count_dicom_frames(path)
    elif kind == "TIFF":
        n_frames = count_tiff_frames(path, name)
    elif kind == "NIfTI":
        n_frames = count_nifti_frames(path)
    check_frame(name, 0, n_frames)
    return n_frames


def _read(path: Path, name: str, frame: int) -> Image:
    kind = kind_of(path, name)
    if kind == "DICOM":
        return finish(read_dicom(name, frame))
    if kind == "TIFF":
        return read_tiff(path, name, frame)
    if kind == "NIfTI":
        return finish(read_nifti(name, frame))
    check_frame(name, frame, 1)
    return read_npy(path, name) if kind == "NPY" else read_with_pillow(path, kind, name)


def _is_instance(source: Any, module: str, name: str) -> bool:
    # If the package was never imported, nobody can hold an object of it.
    return module in sys.modules and isinstance(source, getattr(sys.modules[module], name))


def usable(image: Image) -> Image:
    """Return an image with finite values, of which something is valid.

    Raises
    ------
    UnreadableImageError
        Nothing is valid, or there are other values where something is.
    """
    if image.valid is not None and not image.valid.any():
        raise UnreadableImageError(
            f"{image.source}: no valid pixel",
            "alpha, the transparent colour, DICOM padding or a mask cover the whole image",
            "remove the alpha channel or the mask, or leave the image out",
        )
    return only_finite(image)


def _check_same_grid(first: Image, other: Image) -> None:
    why, fix = "channels of one sample lie on one pixel grid", "resample the files onto one grid"
    if first.spatial_shape != other.spatial_shape:
        sizes = f"{_by(first.spatial_shape)} and {_by(other.spatial_shape)} (height x width)"
        raise UnreadableImageError(f"{first.source} and {other.source} measure {sizes}", why, fix)
    if first.spacing_mm and other.spacing_mm and not np.allclose(first.spacing_mm, other.spacing_mm, rtol=1e-3):
        spacings = f"{_by(first.spacing_mm)} and {_by(other.spacing_mm)} mm"
        raise UnreadableImageError(f"{first.source} and {other.source} have pixels of {spacings}", why, fix)


def _by(lengths: Sequence[float]) -> str:
    return "x".join(f"{length:g}" for length in lengths)
