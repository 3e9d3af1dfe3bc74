"""Time and memory of the real commands on embedded images; one line per question.

    python benchmarks/speed.py --out docs/benchmarks/speed.md [--only QUESTION ...] [--device auto]

Run it alone on an otherwise idle machine. Every command is a process of its own, timed from start to end.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

import anomaly_ae
from anomaly_ae.detector import Detector
from anomaly_ae.files import write_text
from anomaly_ae.nifti import write_volume
from anomaly_ae.regions import RegionRules, surviving_level
from anomaly_ae.report import PictureWriter
from anomaly_ae.results import read_rows
from anomaly_ae.synthetic import draw_head, make_dataset, make_volumes

AREAS_PX = (1, 20, 200, 5_000)
COMMAND = [sys.executable, "-m", "anomaly_ae"]
HEAD = """# Speed and memory

    {command}

{machine}; Python {python}, torch {torch}, anomaly_ae {version}. Embedded images; every line is one whole command
in a process of its own, start-up included, measured once (start-up: the best of five). On shared machines such times
vary by a third.

| what | measured |
| --- | --- |
"""


def main() -> None:
    """Measure what is asked for and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=QUESTIONS, default=list(QUESTIONS))
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        bench = Bench(Path(work), arguments.device)
        lines = [f"| {what} | {measured} |" for name in arguments.only for what, measured in QUESTIONS[name](bench)]
    head = HEAD.format(
        command=" ".join(["python", *sys.argv]),
        machine=_machine(arguments.device),
        python=platform.python_version(),
        torch=torch.__version__,
        version=anomaly_ae.__version__,
    )
    write_text(arguments.out, head + "\n".join(lines) + "\n")


class Bench:
    """A folder to work in, and commands that are timed."""

    def __init__(self, work: Path, device: str) -> None:
        self.work, self.device = work, device

    def seconds(self, *command: str | Path) -> float:
        """Run a command to its end; exit code 3 (some images could not be used) would be a fault here."""
        started = time.perf_counter()
        subprocess.run([str(c) for c in command], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - started

    def fit(self, data: Path, model: Path, preset: str) -> float:
        """Return the time of a whole fit."""
        return self.seconds(*COMMAND, "fit", data, "--preset", preset, "--out", model, "--device", self.device)

    def untrained(self, size_px: int) -> tuple[Path, Path]:
        """Return normal images, and a model with the default network and scoring that saw a few of them."""
        data, model = self.work / f"px{size_px}", self.work / f"px{size_px}.safetensors"
        if not model.exists():
            make_dataset(data, n_train=40, n_test_normal=100, n_per_defect=0, size_px=size_px)
            settings = ["--set", "training.steps=20"]
            self.seconds(*COMMAND, "fit", data, "--preset", "default", *settings, "--out", model)
        return data, model

    def used(self, *command: str | Path) -> tuple[float, float, int]:
        """Run a command to its end; return seconds by the clock, of the processor, and its largest memory in MiB."""
        started = time.perf_counter()
        process = subprocess.Popen([str(c) for c in command], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, process.args)
        return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss // 1024

    def finished(self, n_images: int) -> Path:
        """Return a run of so many images, a fifth of them anomalous, with small pictures: scores of another tool."""
        rng, data = np.random.default_rng(0), self.work / f"scored_{n_images}"
        data.mkdir()
        parts = (("calibration", "normal", 1000), ("test", "normal", 4 * n_images // 5))
        rows, scores = ["path,label,split"], ["path,score"]
        for split, label, n in (*parts, ("test", "anomalous", n_images // 5)):
            for i, score in enumerate(rng.normal(1.5 * (label == "anomalous"), 1, n)):
                rows.append(f"{split}/{label}/{i:05d}.png,{label},{split}")
                scores.append(f"{split}/{label}/{i:05d}.png,{score}")
        (data / "data.csv").write_text("\n".join(rows), encoding="utf-8")
        (data / "scores.csv").write_text("\n".join(scores), encoding="utf-8")
        self.seconds(*COMMAND, "evaluate", "--scores", data / "scores.csv", data / "data.csv", "--out", data / "run")
        add_pictures(data / "run", n_images, rng)
        return data / "run"

    def score(self, n_images: int, size_px: int) -> tuple[float, int]:
        """Return seconds and the largest resident memory in MiB of scoring so many files."""
        data, model = self.untrained(size_px)
        folder = self.work / f"{n_images}_of_{size_px}"
        folder.mkdir()
        originals = sorted((data / "test" / "good").glob("*.png"))
        for i in range(n_images):
            shutil.copy(originals[i % len(originals)], folder / f"{i:06d}.png")
        command = [*COMMAND, "score", model, folder, "--out", self.work / f"run_{folder.name}", "--device", self.device]
        seconds, _, mebibytes = self.used(*command)
        return seconds, mebibytes


def add_pictures(run: Path, n_images: int, rng: np.random.Generator) -> None:
    """Give a run the small pictures that scoring would have kept: smooth noise, with a patch as strong as the score."""
    smooth = [gaussian_filter(rng.normal(size=(256, 256)), 4).astype(np.float32) for _ in range(20)]
    writer = PictureWriter(n_images)
    for i, row in enumerate(read_rows(run / "scores.jsonl")):
        noise = np.roll(smooth[i % len(smooth)], int(rng.integers(256)), -1)
        shown, anomaly_map = (0.5 + 4 * noise[None]).clip(0, 1), 4 * noise
        anomaly_map[100:120, 60:90] += max(row["display"], 0.0)
        writer.add(row["id"], row["label"], row["score"], shown, anomaly_map, shown, None)
    writer.write(run / "pictures.npz")


def start(bench: Bench) -> Iterator[tuple[str, str]]:
    """How long a user waits before anything happens."""
    programs = {
        "`anomaly-ae --help`": [*COMMAND, "--help"],
        "`import anomaly_ae`": [sys.executable, "-c", "import anomaly_ae"],
        "`import numpy`, to compare with": [sys.executable, "-c", "import numpy"],
    }
    for what, command in programs.items():
        yield what, f"{min(bench.seconds(*command) for _ in range(5)):.2f} s"


def fit_with(preset: str) -> Callable[[Bench], Iterator[tuple[str, str]]]:
    """How long 700 images of 300 px take to learn from."""

    def measure(bench: Bench) -> Iterator[tuple[str, str]]:
        data = bench.work / "px300"
        if not data.exists():
            make_dataset(data, "surface", n_train=700, n_test_normal=0, n_per_defect=0, size_px=300)
        minutes = bench.fit(data, bench.work / f"{preset}.safetensors", preset) / 60
        yield f"`fit --preset {preset}`, 700 images of 300 x 300 px", f"{minutes:.1f} min"

    return measure


def score(bench: Bench) -> Iterator[tuple[str, str]]:
    """Images per second from files to files."""
    few, many = bench.score(10, 256)[0], bench.score(410, 256)[0]
    yield "`score`, 410 files of 256 x 256 px", f"{many:.0f} s: {410 / many:.1f} images/s"
    yield "the same without start-up (less the time of 10 files)", f"{400 / (many - few):.1f} images/s"


def memory(bench: Bench) -> Iterator[tuple[str, str]]:
    """Whether memory grows with the number of images."""
    for n_images in (1_000, 10_000):
        seconds, mebibytes = bench.score(n_images, 128)
        speed = f"{n_images / seconds:.1f} images/s"
        yield f"largest memory of `score`, {n_images:,} files of 128 x 128 px", f"{mebibytes} MiB ({speed})"


def regions(bench: Bench) -> Iterator[tuple[str, str]]:
    """How long the score of one map takes under region rules: smooth noise, as maps are, and white noise, the worst."""
    for shape in ((512, 512), (1024, 1024), (2000, 2000), (128, 128, 128)):
        noise = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        maps = {"smooth": gaussian_filter(noise, 2.0), "white": noise}
        for kind, anomaly_map in maps.items():
            seconds = [_fastest(anomaly_map, RegionRules(min_area_px=area)) for area in AREAS_PX]
            both = RegionRules(min_area_px=20, hysteresis_low=2 * float(anomaly_map.std()))
            name = " x ".join(map(str, shape))
            times = ", ".join(f"{1000 * s:.0f} ms" for s in [*seconds, _fastest(anomaly_map, both)])
            yield f"score of a {kind} map of {name} px from 1, 20, 200, 5,000 px on; from 20 px with hysteresis", times


def _fastest(anomaly_map: np.ndarray, rules: RegionRules) -> float:
    times = []
    for _ in range(3):
        started = time.process_time()  # it computes on one core, and never waits
        surviving_level(anomaly_map, rules=rules)
        times.append(time.process_time() - started)
    return min(times)


def redecide(bench: Bench) -> Iterator[tuple[str, str]]:
    """How long a finished run takes to be decided again, with its report."""
    few, many = bench.finished(10), bench.finished(10_000)
    load = os.getloadavg()[0]
    (clock_few, cpu_few, _), (clock, cpu, _) = (
        bench.used(*COMMAND, "threshold", run, "--false-alarm-rate", "0.002") for run in (few, many)
    )
    what = "`threshold RUN --false-alarm-rate 0.002`, 10,000 images, with a new report"
    yield what, f"{clock:.1f} s by the clock, {cpu:.1f} s of the processor (load of the machine {load:.1f})"
    yield (
        "the same without start-up (less a run of 10 images)",
        f"{clock - clock_few:.1f} s by the clock, {cpu - cpu_few:.1f} s of the processor",
    )


def taking_any_size(model: Path, factor: float = 1.0) -> Path:
    """Return a copy of a model that was made from small images, and that takes images of any size, at that scale."""
    detector = Detector.load(model, "cpu")
    detector.geometry = replace(detector.geometry, smallest_px=(), largest_px=(), factor=factor)
    copy = model.with_stem(f"{model.stem}_{factor:g}")
    detector.save(copy)
    return copy


def volume(bench: Bench) -> Iterator[tuple[str, str]]:
    """A CT-sized volume, as one image, with its map as NIfTI: at full resolution, and shrunk to 256 voxels."""
    data, model = bench.work / "heads", bench.work / "heads.safetensors"
    make_volumes(data, n_train=10, n_test_normal=1, n_lesions=0, side_mm=32)
    settings = ["--set", "training.steps=3"]
    bench.seconds(*COMMAND, "fit", data, "--preset", "volume", *settings, "--out", model)
    small = draw_head(np.random.SeedSequence(0), 64.0, (1, 1, 1))[0]
    large = bench.work / "large.nii.gz"
    write_volume(large, np.tile(small, (8, 8, 5))[..., :300], (0.7, 0.7, 1.0))
    for factor in (1.0, 0.5):
        run = bench.work / f"run_volume_{factor}"
        seconds, _, mebibytes = bench.used(
            *COMMAND, "score", taking_any_size(model, factor), large, "--out", run, "--maps", "--device", bench.device
        )
        at = "as it is" if factor == 1 else "shrunk by 2, as preset `volume` does"
        yield f"`score --maps`, one NIfTI volume of 512 x 512 x 300, 16 bit, {at}", f"{seconds:.0f} s, {mebibytes} MiB"


def large(bench: Bench) -> Iterator[tuple[str, str]]:
    """A large flat image at full resolution."""
    data, model = bench.untrained(512)
    path = bench.work / "large.png"
    small = np.asarray(Image.open(sorted((data / "test" / "good").glob("*.png"))[0]))
    Image.fromarray(np.tile(small, (16, 16))[:8000, :8000]).save(path)
    seconds, _, mebibytes = bench.used(
        *COMMAND, "score", taking_any_size(model), path, "--out", bench.work / "run_large", "--device", bench.device
    )
    yield (
        "`score`, one image of 8,000 x 8,000 px, 8 bit, as it is, three resolutions",
        f"{seconds:.0f} s, {mebibytes} MiB",
    )


QUESTIONS: dict[str, Callable[[Bench], Iterator[tuple[str, str]]]] = {
    "start": start,
    "fit": fit_with("default"),
    "fast": fit_with("fast"),
    "score": score,
    "memory": memory,
    "regions": regions,
    "redecide": redecide,
    "volume": volume,
    "large": large,
}


def _machine(device: str) -> str:
    n_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = f", {torch.cuda.get_device_name()}" if device != "cpu" and torch.cuda.is_available() else ""
    return f"{platform.system()} {platform.machine()}, {n_cpus} CPU cores{gpu}"


if __name__ == "__main__":
    main()
