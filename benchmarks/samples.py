"""What becomes of every DICOM and NIfTI sample: read, skipped or refused, and whether the values are right.

    python benchmarks/samples.py FOLDER [FOLDER ...] --out docs/benchmarks/samples.md

Values are compared with those that pydicom and nibabel give by themselves, in all frames: pixel_array with modality
LUT, palette and colours by pydicom.pixels, MONOCHROME1 inverted in the range of its bits; the canonical volume of
nibabel.
"""

from __future__ import annotations

import argparse
import warnings
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut

from anomaly_ae.dicom import file_header
from anomaly_ae.errors import AnomalyAEError
from anomaly_ae.files import write_text
from anomaly_ae.nifti import read_grid
from anomaly_ae.readers import IMAGE_SUFFIXES, count_frames, read_image

HEAD = """# Sample files

    {command}

{versions}. The files are public test data of pydicom, NEMA, TorchIO and nibabel, and no part of this
project. *Values* says whether all pixels of all frames are those that pydicom or nibabel give by themselves, but for
the rounding of float32; of a file that these cannot read, whether they are those of another sample of the same picture.
*Skipped* files are left out of folders with a note of `scan`; *refused* ones are failures with that line.

{counts}

| file | what becomes of it | frames | height x width | type | range | values |
| --- | --- | --- | --- | --- | --- | --- |
"""


SAME_PICTURE = {"emri_small_jpeg_2k_lossless_too_short.dcm": "emri_small.dcm"}  # it lacks the closing delimiter alone


class Row(NamedTuple):
    """A line of the table; ``outcome`` begins with read, skipped or refused."""

    file: str
    outcome: str
    cells: tuple[str, ...] = ("", "", "", "", "")


def main() -> None:
    """Read all files and write the table."""
    warnings.simplefilter("ignore")  # pydicom warns of what these files are made to test
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    files = [file for folder in asked.folders for file in sorted(folder.iterdir()) if is_sample(file)]
    rows = [row_of(file) for file in files]
    counts = Counter(row.outcome.partition(":")[0] for row in rows)
    head = HEAD.format(
        command=f"python benchmarks/samples.py {' '.join(f.name for f in asked.folders)} --out {asked.out.name}",
        versions=f"pydicom {pydicom.__version__}, nibabel {nibabel.__version__}",
        counts=f"{len(rows)} files: " + ", ".join(f"{n} {what}" for what, n in sorted(counts.items())),
    )
    lines = [f"| {' | '.join((row.file, row.outcome, *row.cells))} |" for row in rows]
    write_text(asked.out, head + "\n".join(lines) + "\n")


def is_sample(file: Path) -> bool:
    """Whether a file is one of the samples, and not a text beside them."""
    return file.suffix in IMAGE_SUFFIXES or file.name.endswith(".nii.gz")


def row_of(file: Path) -> Row:
    """Read all frames of a file."""
    kind = kind_of(file)
    if kind not in ("image", "segmentation"):
        return Row(file.name, f"skipped: {kind.removesuffix(' Storage')}, no image")
    try:
        images = [read_image(file, frame) for frame in range(count_frames(file))]
    except AnomalyAEError as error:
        return Row(file.name, "refused: " + f"{error.what}: {error.why}".removeprefix(f"{file}: "))
    pixels = np.stack([image.pixels for image in images])  # (frames, C, H, W)
    outcome = "read: in a tree the mask of the images that it refers to" if kind == "segmentation" else "read"
    n_frames, n_channels, height, width = pixels.shape
    size = f"{height} x {width}" + (f", {n_channels} channels" if n_channels > 1 else "")
    ends = f"{pixels.min():.6g} to {pixels.max():.6g}"
    cells = (str(n_frames), size, str(pixels.dtype), ends, compared(file, pixels))
    return Row(file.name, outcome, cells)


def kind_of(file: Path) -> str:
    """Return what kind of DICOM object a file is; "image" also for NIfTI and for what cannot be read."""
    try:
        return file_header(file).kind if file.suffix == ".dcm" else "image"
    except AnomalyAEError:
        return "image"


def compared(file: Path, pixels: np.ndarray) -> str:
    """Compare with what the libraries give by themselves."""
    try:
        expected = by_pydicom(pydicom.dcmread(file, force=True)) if file.suffix == ".dcm" else by_nibabel(file)
    except Exception as error:  # they raise what they like
        twin = file.parent / SAME_PICTURE.get(file.name, "-")
        if twin.is_file() and np.array_equal(pixels, by_pydicom(pydicom.dcmread(twin))):
            return f"{type(error).__name__} in the library; equal to {twin.name}"
        return f"not compared: {type(error).__name__} in the library"
    if expected.shape != pixels.shape and np.array_equal(expected, np.repeat(pixels, 3, axis=1)):
        return "equal, grey kept once"
    if expected.shape != pixels.shape:
        return f"other shape: {expected.shape}"
    largest = np.abs(expected - pixels.astype(np.float64)).max()
    return "equal" if largest == 0 else f"differ by {largest:.2g} at most"


def by_pydicom(dataset: Dataset) -> np.ndarray:
    """Return (frames, C, H, W) as pydicom decodes and transforms."""
    frames = dataset.pixel_array
    frames = frames if int(dataset.get("NumberOfFrames") or 1) > 1 else frames[np.newaxis]
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        return np.stack([np.moveaxis(apply_color_lut(frame, dataset), -1, 0) for frame in frames])
    if frames.ndim == 4:
        return np.moveaxis(frames, -1, 1)
    values = [apply_modality_lut(frame, rescale_of(dataset, number)) for number, frame in enumerate(frames)]
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        values = [2**dataset.BitsStored - 1 - value for value in values]
    return np.stack(values)[:, np.newaxis].astype(np.float64)


def rescale_of(dataset: Dataset, number: int) -> Dataset:
    """Return a data set with slope and intercept of a frame where pydicom looks for them."""
    for groups in (*dataset.get("PerFrameFunctionalGroupsSequence", [])[number : number + 1],
                   *dataset.get("SharedFunctionalGroupsSequence", [])):  # fmt: skip
        if "PixelValueTransformationSequence" in groups:
            return groups.PixelValueTransformationSequence[0]
    return dataset


def by_nibabel(file: Path) -> np.ndarray:
    """Return (frames, 1, H, W): canonical, slices along our axis, top or front up, the patient's right on the left."""
    volume = nibabel.as_closest_canonical(nibabel.load(file)).get_fdata()
    volume = volume.reshape(*volume.shape[:3], -1)
    slices = np.moveaxis(volume, (3, read_grid(file).slice_axis), (0, 1))  # (times, slices, first, second)
    planes = slices.reshape(-1, *slices.shape[2:]).transpose(0, 2, 1)[:, ::-1, ::-1]
    return planes[:, np.newaxis]


if __name__ == "__main__":
    main()
