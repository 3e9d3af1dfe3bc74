"""Reading speed beside a bare `pydicom.dcmread(path).pixel_array`, on the same files in one run.

    python benchmarks/read_speed.py [--samples FOLDER] [--files 200] [--passes 5] [--workers 2] [--out FILE]

Writes one table. Both readers read each file in turn, and who is first changes from file to file, so that whatever else
the machine does hits both alike. The share is the processor time of the bare reader divided by ours: 1 is as fast.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from anomaly_ae.errors import AnomalyAEError
from anomaly_ae.files import write_text
from anomaly_ae.readers import read_image

SYNTAXES = {
    "uncompressed, 12 bits stored": (ExplicitVRLittleEndian, 12),
    "uncompressed, 16 bits stored": (ExplicitVRLittleEndian, 16),
    "RLE": (RLELossless, 16),
    "JPEG-LS lossless": (JPEGLSLossless, 16),
    "JPEG 2000 lossless": (JPEG2000Lossless, 16),
}
HEAD = """| files | n | pydicom, ms | anomaly_ae, ms | share | over passes | {workers} threads | {workers} processes |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""


def main() -> None:
    """Measure all sets of files and print, or write, the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=Path, help="a folder of DICOM files; those that both read are timed")
    parser.add_argument("--files", type=int, default=200, help="of each generated series, 512 x 512; default: 200")
    parser.add_argument("--syntaxes", nargs="+", choices=SYNTAXES, default=list(SYNTAXES))
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        sets = {
            f"CT, {name}": series(Path(work) / str(number), asked.files, *SYNTAXES[name])
            for number, name in enumerate(asked.syntaxes)
        }
        if asked.samples:
            sets["sample files"] = [path for path in sorted(asked.samples.glob("*.dcm")) if is_readable(path)]
        rows = [row(name, files, asked.passes, asked.workers) for name, files in sets.items()]
    table = HEAD.format(workers=asked.workers) + "\n".join(rows) + "\n"
    if asked.out:
        write_text(asked.out, table)
    print(table)


def series(folder: Path, n_files: int, syntax: UID, n_bits: int = 16) -> list[Path]:
    """Write a series like a CT: a body with noise in air, 16 bits a pixel, rescaled to Hounsfield units."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[-1:1:512j, -1:1:512j]
    body = np.where(rows**2 / 0.5 + columns**2 / 0.8 < 1, 1040, 24)
    uids = generate_uid(), generate_uid()
    paths = []
    for number in range(n_files):
        ds = header(number, uids)
        ds.BitsStored, ds.HighBit = n_bits, n_bits - 1
        ds.PixelData = (body + generator.normal(0, 12, body.shape)).astype(np.int16).tobytes()
        ds["PixelData"].VR = "OW"
        if syntax != ExplicitVRLittleEndian:
            ds.compress(syntax)
        paths.append(folder / f"{number:04}.dcm")
        ds.save_as(paths[-1], enforce_file_format=True)
    return paths


def header(number: int, uids: tuple[str, str]) -> Dataset:
    """Return a slice without pixels, with the attributes that a scanner writes beside them."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID = uids
    ds.ImageType, ds.Modality, ds.Manufacturer = ["ORIGINAL", "PRIMARY", "AXIAL"], "CT", "generated"
    ds.StudyDate, ds.StudyTime, ds.PatientID, ds.PatientName = "20240101", "101112", "1", "nobody"
    ds.SliceThickness, ds.KVP, ds.InstanceNumber = 1.0, 120, number + 1
    ds.ImagePositionPatient, ds.ImageOrientationPatient = [0, 0, number], [1, 0, 0, 0, 1, 0]
    ds.Rows = ds.Columns = 512
    ds.PixelSpacing, ds.RescaleIntercept, ds.RescaleSlope = [0.7, 0.7], -1024, 1
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.PixelRepresentation = 16, 1
    return ds


def bare(path: Path) -> object:
    """Read as anybody would."""
    return pydicom.dcmread(path).pixel_array


def ours(path: Path) -> object:
    """Read the first frame, with all checks, in Hounsfield units."""
    return read_image(path)


def is_readable(path: Path) -> bool:
    """Whether both readers take the file, and it has one frame: the bare one decodes all of them."""
    try:
        return read_image(path).n_frames == 1 and bare(path) is not None
    except (AnomalyAEError, Exception):
        return False


def row(name: str, files: Sequence[Path], n_passes: int, n_workers: int) -> str:
    """Return one line of the table; a few files first, not counted, bring the decoders in."""
    one_pass(files[:3])
    passes = [one_pass(files) for _ in range(n_passes)]
    theirs_ms, ours_ms = (1000 * statistics.fmean(times) / len(files) for times in zip(*passes, strict=True))
    shares = [theirs / own for theirs, own in passes]
    share = sum(theirs for theirs, _ in passes) / sum(own for _, own in passes)
    threads, processes = with_workers(files, n_workers)
    spread = f"{min(shares):.2f} to {max(shares):.2f}"
    speeds = f"{share:.2f} | {spread} | {threads:.2f} | {processes:.2f}"
    return f"| {name} | {len(files)} | {theirs_ms:.2f} | {ours_ms:.2f} | {speeds} |"


def one_pass(files: Sequence[Path]) -> tuple[float, float]:
    """Return the seconds of both readers over all files."""
    spent = {bare: 0.0, ours: 0.0}
    for number, path in enumerate(files):
        for read in (bare, ours) if number % 2 else (ours, bare):
            spent[read] += seconds(read, path)
    return spent[bare], spent[ours]


def seconds(read: Callable[[Path], object], path: Path) -> float:
    """Return the processor time of one file."""
    started = time.process_time()
    read(path)
    return time.process_time() - started


def with_workers(files: Sequence[Path], n_workers: int) -> tuple[float, float]:
    """Return how many times as fast, by the clock, several threads and several processes are as the bare reader."""
    started = time.perf_counter()
    for path in files:
        bare(path)
    alone = time.perf_counter() - started
    spawn = multiprocessing.get_context("spawn")
    with ThreadPoolExecutor(n_workers) as threads, ProcessPoolExecutor(n_workers, spawn) as processes:
        return alone / all_read_by(threads, files), alone / all_read_by(processes, files)


def all_read_by(pool: Executor, files: Sequence[Path]) -> float:
    """Return the seconds by the clock until all pixels are here; a few files first, which bring the decoders in."""
    list(pool.map(ours, files[:16]))
    started = time.perf_counter()
    for _ in pool.map(ours, files, chunksize=4):
        pass
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
