"""What is wrong with the input costs only that input, is said in one clear line, and leaves nothing half-written.

Readers have their own tests of single files (test_readers.py); here every case goes through a command.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import shutil
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from command import Outcome, done, left_behind, run
from PIL import Image as Picture

from anomaly_ae.detector import Detector

NOT_AS_ROOT = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="this user may read every file: run as another than root"
)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(outcome: Outcome, *words: str, code: int = 1) -> None:
    """Check that a command ended with one line that says what, why and how to mend it."""
    assert outcome.code == code
    for word in words:
        assert word in outcome.error
    assert ": " in outcome.error.removeprefix("error: ")
    assert outcome.error.endswith(")"), "the cure stands in brackets"
    assert "Traceback" not in outcome.err


def png(width: int, height: int, pixels: bytes = b"") -> bytes:
    """Return a grey 8-bit PNG whose header says what is asked for, with correct checksums."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def tiff(width: int, height: int) -> bytes:
    """Return a little-endian grey 8-bit TIFF header with one strip that is not there."""
    tags = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1),
            (278, 4, height), (279, 4, 100)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + b"\0\0\0\0"


def npy(shape: tuple[int, ...]) -> bytes:
    """Return an NPY header without data."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def saved(pixels: np.ndarray, suffix: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        if suffix == ".npy":
            np.save(path, pixels)
        else:
            Picture.fromarray(pixels).save(path)

    return write


def cut(suffix: str) -> Callable[[Path], None]:
    """Return a function that writes the first half of an image file."""

    def write(path: Path) -> None:
        whole = path.with_name(f"whole{suffix}")
        saved(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8), suffix)(whole)
        path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        whole.unlink()

    return write


def holding(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


GREY = np.zeros((64, 64), np.float32)
NAN, INF = GREY.copy(), GREY.copy()
NAN[3, 5], INF[3, 5] = np.nan, np.inf
COLOUR = np.random.default_rng(1).integers(0, 255, (64, 64, 3), dtype=np.uint8)

BAD_FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty.png": (holding(b""), "empty"),
    "cut.png": (cut(".png"), "truncated"),
    "cut.jpg": (cut(".jpg"), ""),
    "cut.bmp": (cut(".bmp"), ""),
    "cut.tif": (cut(".tif"), ""),
    "cut.npy": (cut(".npy"), "bytes missing"),
    "notes.png": (holding(b"Dear colleague, the image is attached."), "none of PNG, JPEG"),
    "page.png": (holding(b"<html><body>404</body></html>"), "none of PNG, JPEG"),
    "paper.png": (holding(b"%PDF-1.7"), "a PDF"),
    "nothing.png": (holding(png(0, 0)), ""),
    "no_height.png": (holding(png(64, 0)), ""),
    "nothing.npy": (saved(np.zeros((0, 0), np.float32), ".npy"), ""),
    "huge.png": (holding(png(100_000, 100_000)), "100"),
    "huge.tif": (holding(tiff(100_000, 100_000)), ""),
    "huge.npy": (holding(npy((100_000, 100_000))), ""),
    "nan.npy": (saved(NAN, ".npy"), "1 of 4096 values are NaN or infinite"),
    "inf.npy": (saved(INF, ".npy"), "1 of 4096 values are NaN or infinite"),
    "words.npy": (saved(np.full((64, 64), "x"), ".npy"), "boolean, integer or float"),
    "complex.npy": (saved(np.zeros((64, 64), np.complex64), ".npy"), "boolean, integer or float"),
    "many_axes.npy": (saved(np.zeros((9, 9, 9, 9), np.float32), ".npy"), "axes"),
    "colour.png": (saved(COLOUR, ".png"), "has 3 channel(s): the model was trained on 1"),
    "pickle.npy": (lambda path: np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True), ""),
}


@pytest.fixture(scope="module")
def mixed(part_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file of every kind of badness among five good images."""
    folder = tmp_path_factory.mktemp("bad") / "mixed"
    folder.mkdir()
    for name, (write, _) in BAD_FILES.items():
        write(folder / name)
    for number in range(5):
        shutil.copy(part_folder / "test" / "good" / f"{number:03d}.png", folder)
    return folder


@pytest.fixture(scope="module")
def mixed_run(mixed: Path, smoke_model_file: Path) -> tuple[Outcome, Path]:
    """What becomes of `mixed`."""
    out = mixed.parent / "run"
    return run("score", smoke_model_file, mixed, "--out", out), out


# --- one file among many ------------------------------------------------------------


def test_only_the_bad_files_are_lost(mixed_run: tuple[Outcome, Path]) -> None:
    outcome, out = mixed_run
    assert outcome.code == 3, outcome.err
    assert f"5 images scored, {sum(r['decision'] == '2' for r in table(out / 'scores.csv'))} anomalous" in outcome.out
    assert f"{len(BAD_FILES)} could not be inspected; failures.csv names them and says why:" in outcome.out
    named = [line for line in outcome.out.splitlines() if line.startswith("  ")]
    assert [[line.count(name) for name in BAD_FILES if name in line] for line in named] == [[1]] * 5
    assert [Path(row["path"]).name for row in table(out / "scores.csv")] == [f"{i:03d}.png" for i in range(5)]
    assert len(table(out / "failures.csv")) == len(BAD_FILES)
    assert left_behind(out.parent) == []


@pytest.mark.parametrize("name", BAD_FILES)
def test_every_bad_file_is_named_with_its_reason(mixed_run: tuple[Outcome, Path], name: str) -> None:
    _, out = mixed_run
    (failure,) = [row for row in table(out / "failures.csv") if Path(row["path"]).name == name]
    reason = failure["reason"]
    assert BAD_FILES[name][1] in reason
    assert name in reason
    assert len(reason) > len(name) + 20
    assert reason.count("\n") == 0
    assert "Error" not in reason, "words for people"
    (unit,) = [row for row in table(out / "units.csv") if Path(row["unit"]).name == name]
    assert unit["decision"] == "9"


def test_a_declared_size_takes_no_memory(mixed: Path, smoke_model_file: Path, tmp_path: Path) -> None:
    done("info", smoke_model_file)  # what a first call imports is not counted
    files = [mixed / name for name in ("huge.png", "huge.tif", "huge.npy")]
    tracemalloc.start()
    try:
        outcome = run("score", smoke_model_file, *files, "--out", tmp_path / "run")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    refused(outcome, "none of 3 images could be scored", "huge")
    assert peak < 100e6, "100,000 x 100,000 pixels would be 10 GB"
    assert list(tmp_path.iterdir()) == []


def test_scan_names_every_bad_file(mixed: Path) -> None:
    outcome = run("scan", mixed)
    assert outcome.code == 1, "five normal images are too few"
    for name in BAD_FILES.keys() - {"colour.png"}:  # bad for this model only
        assert f"unreadable: {name}: " in outcome.out


def test_fit_goes_on_without_what_it_cannot_read(mixed: Path, part_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "normals"
    shutil.copytree(part_folder / "train" / "good", folder)
    for name in ("cut.png", "empty.png", "nan.npy", "huge.png"):
        shutil.copy(mixed / name, folder)
    outcome = run("fit", folder, "--preset", "smoke", "--out", tmp_path / "m.safetensors")
    assert outcome.code == 3
    assert outcome.err.count("left out: ") == 4
    assert "normal images that could not be used: 4; they are named above" in outcome.out
    counts = Detector.load(tmp_path / "m.safetensors", "cpu").provenance["n_images"]
    assert sum(counts.values()) == 80


@NOT_AS_ROOT
def test_a_file_without_permission_is_one_failure(part_folder: Path, smoke_model_file: Path, tmp_path: Path) -> None:
    for number in range(2):
        shutil.copy(part_folder / "test" / "good" / f"{number:03d}.png", tmp_path)
    (tmp_path / "000.png").chmod(0)
    outcome = run("score", smoke_model_file, tmp_path, "--out", tmp_path / "run")
    assert outcome.code == 3
    (failure,) = table(tmp_path / "run" / "failures.csv")
    assert "may not be read: permission denied" in failure["reason"]


@NOT_AS_ROOT
def test_a_folder_without_permission_is_said(smoke_model_file: Path, part_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    image = part_folder / "test" / "good" / "000.png"
    refused(run("score", smoke_model_file, image, "--out", tmp_path / "locked" / "run"), "Permission denied")


def test_files_that_a_table_names_and_that_are_not_there(
    part_folder: Path, smoke_model_file: Path, tmp_path: Path
) -> None:
    image = (part_folder / "test" / "good" / "000.png").as_posix()
    (tmp_path / "m.csv").write_text(f"path,unit\n{image},a\ngone.png,a\ngone_too.png,b\n", encoding="utf-8")
    outcome = run("score", smoke_model_file, tmp_path / "m.csv", "--out", tmp_path / "run")
    assert outcome.code == 3
    assert [row["path"] for row in table(tmp_path / "run" / "failures.csv")] == ["gone.png", "gone_too.png"]
    assert {row["unit"]: row["decision"] for row in table(tmp_path / "run" / "units.csv")} == {"a": "9", "b": "9"}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_names_that_are_no_text_are_told_by_their_bytes(
    part_folder: Path, smoke_model_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / os.fsdecode(b"Stra\xdfe")
    folder.mkdir()
    shutil.copy(part_folder / "test" / "good" / "000.png", folder / os.fsdecode(b"M\xfc.png"))
    (folder / os.fsdecode(b"\xe9.png")).write_bytes(b"no image")
    outcome = run("score", smoke_model_file, folder, "--out", tmp_path / "run", "--maps", "--heatmaps", "all")
    assert outcome.code == 3, outcome.err
    (failure,) = table(tmp_path / "run" / "failures.csv")
    assert failure["path"].endswith("Stra\\xdfe/\\xe9.png")
    assert failure["path"] in failure["reason"]
    assert table(tmp_path / "run" / "scores.csv")[0]["id"].endswith("Stra\\xdfe/M\\xfc.png")
    assert "unreadable: \\xe9.png" in run("scan", folder).out
    refused(run("score", smoke_model_file, folder / os.fsdecode(b"\xe9.tif"), "--out", tmp_path / "x"), "not exist")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_models_folders_and_remarks_that_are_no_text_end_no_run(
    part_folder: Path, smoke_model_file: Path, tmp_path: Path
) -> None:
    odd, shown = os.fsdecode(b"st\xe4in"), "st\\xe4in"
    model = shutil.copy(smoke_model_file, tmp_path / f"{odd}.safetensors")
    for kind in ("good", "spot"):
        shutil.copytree(part_folder / "test" / kind, tmp_path / "data" / "test" / (odd if kind == "spot" else kind))
    made = tmp_path / odd
    assert run("evaluate", model, tmp_path / "data", "--out", made).code == 0
    rows = table(made / "scores.csv")
    assert {row["defect"] for row in rows} == {"", shown}
    assert json.loads((made / "run.json").read_text("utf-8"))["model"]["name"] == f"{shown}.safetensors"
    theirs = tmp_path / f"{odd}.csv"
    theirs.write_text("path,score\n" + "".join(f"{row['path']},{row['score']}\n" for row in rows), "utf-8")
    theirs.write_text(theirs.read_text("utf-8").replace(shown, "nothing"), "utf-8")  # a table cannot name these files
    assert run("evaluate", "--scores", theirs, tmp_path / "data", "--out", tmp_path / "b").code == 3
    assert run("compare", made, tmp_path / "b", "--out", tmp_path / "c.csv").code == 0
    assert shown in (tmp_path / "c.csv").read_text("utf-8")
    named = run("compare", made, tmp_path / "b", "--name", odd, "--name", "b", "--out", tmp_path / "d.md")
    assert (named.code, shown in (tmp_path / "d.md").read_text("utf-8")) == (0, True)
    assert run("calibrate", model, "--value", "3", "--who", odd, "--why", odd).code == 0
    (line,) = (tmp_path / f"{odd}.journal.jsonl").read_text("utf-8").splitlines()
    assert (json.loads(line)["who"], json.loads(line)["why"]) == (shown, shown)


def test_a_name_that_is_too_long_is_said(part_folder: Path, smoke_model_file: Path, tmp_path: Path) -> None:
    long, image = "x" * 300, part_folder / "test" / "good" / "000.png"
    refused(run("score", smoke_model_file, image, "--out", tmp_path / long), "File name too long", "a shorter name")
    refused(run("fit", part_folder, "--out", tmp_path / f"{long}.safetensors"), "File name too long")
    refused(run("score", smoke_model_file, tmp_path / f"{long}.png", "--out", tmp_path / "run"), "does not exist")
    (tmp_path / "m.csv").write_text(f"path,label,mask\n{image},anomalous,{long}.png\n", encoding="utf-8")
    assert "does not exist" in run("scan", tmp_path / "m.csv").out
    refused(run("threshold", tmp_path / long), "File name too long")
    refused(run("compare", tmp_path / long), "File name too long")
    refused(run("calibrate", smoke_model_file, "--scores", tmp_path / long), "File name too long")


# --- a set as a whole ------------------------------------------------------------


def normals(folder: Path, part_folder: Path, n: int, below: str = "") -> Path:
    (folder / below).mkdir(parents=True, exist_ok=True)
    for number in range(n):
        shutil.copy(part_folder / "train" / "good" / f"{number:03d}.png", folder / below)
    return folder


def no_images(folder: Path, part_folder: Path) -> None:
    folder.mkdir()


def other_files(folder: Path, part_folder: Path) -> None:
    folder.mkdir()
    (folder / "notes.txt").write_text("nothing to see", encoding="utf-8")


def only_anomalous(folder: Path, part_folder: Path) -> None:
    shutil.copytree(part_folder / "test" / "dent", folder / "anomalous")


def seven(folder: Path, part_folder: Path) -> None:
    normals(folder, part_folder, 7)


def seven_readable(folder: Path, part_folder: Path) -> None:
    normals(folder, part_folder, 7)
    for number in range(5):
        (folder / f"bad{number}.png").write_bytes(b"")


def identical(folder: Path, part_folder: Path) -> None:
    folder.mkdir()
    for number in range(20):
        shutil.copy(part_folder / "train" / "good" / "000.png", folder / f"{number}.png")


def defects_among_normals(folder: Path, part_folder: Path) -> None:
    normals(folder, part_folder, 20, "train/good")
    shutil.copytree(part_folder / "test" / "dent", folder / "train" / "dent")
    labels = {file: "normal" if file.parent.name == "good" else "anomalous" for file in folder.rglob("*.png")}
    rows = "".join(f"{file.relative_to(folder).as_posix()},{label},train\n" for file, label in labels.items())
    (folder / "manifest.csv").write_text("path,label,split\n" + rows, encoding="utf-8")


def mixed_channels(folder: Path, part_folder: Path) -> None:
    normals(folder, part_folder, 20)
    for number in range(20):
        Picture.fromarray(np.roll(COLOUR, number)).save(folder / f"colour{number}.png")


def two_groups(folder: Path, part_folder: Path) -> None:
    normals(folder, part_folder, 20)
    rows = "".join(f"{i:03d}.png\tlot{i % 2}\n" for i in range(20))
    (folder / "groups.tsv").write_text("path\tgroup\n" + rows, encoding="utf-8")


def a_misspelt_column(folder: Path, part_folder: Path) -> None:
    folder.mkdir()
    normals(folder / "images", part_folder, 20)
    rows = "".join(f"images/{i:03d}.png,normal\n" for i in range(20))
    (folder / "manifest.csv").write_text("path,lable\n" + rows, encoding="utf-8")


def an_unknown_label(folder: Path, part_folder: Path) -> None:
    folder.mkdir()
    (folder / "manifest.csv").write_text("path,label\na.png,fine\n", encoding="utf-8")


SETS: dict[Callable[[Path, Path], None], tuple[str, ...]] = {
    no_images: ("no image in", "nothing is there"),
    other_files: ("no image in", "files of other kinds there: 1"),
    only_anomalous: ("0 normal images to fit on", "at least 8"),
    seven: ("7 normal images to fit on", "at least 8"),
    seven_readable: ("only 7 of 12 normal images can be used", "mend or replace the files named above"),
    identical: ("copies of training images", "remove the copies"),
    defects_among_normals: ("4 anomalous images stand in train", "give them the split `test`"),
    mixed_channels: ("training images have 1 and 3 channels",),
    two_groups: ("belong to 2 groups", "give finer groups"),
    a_misspelt_column: ("has a column 'lable' and none called 'label'",),
    an_unknown_label: ("row 2: label 'fine'",),
}


@pytest.mark.parametrize("make", SETS)
def test_a_set_that_gives_no_true_result_is_refused(
    make: Callable[[Path, Path], None], part_folder: Path, tmp_path: Path
) -> None:
    make(tmp_path / "set", part_folder)
    data = tmp_path / "set"
    data = data / "manifest.csv" if (data / "manifest.csv").exists() else data
    before = contents(tmp_path)
    refused(run("fit", data, "--preset", "smoke", "--out", tmp_path / "m.safetensors"), *SETS[make])
    assert contents(tmp_path) == before
    scanned = run("scan", data, "--out", tmp_path / "manifest.csv")
    refused(scanned)
    if "REFUSED: " in scanned.out:  # the cure may be to correct the table
        assert f"wrote {tmp_path / 'manifest.csv'}" in scanned.out
    else:
        assert contents(tmp_path) == before


def test_scan_writes_the_table_that_cures_what_it_refuses(part_folder: Path, tmp_path: Path) -> None:
    folder = normals(tmp_path / "set", part_folder, 12, "train/good")
    normals(folder, part_folder, 2, "test/good")
    for number in range(2):  # other pixels, the same numbers: groups in two splits
        shutil.copy(part_folder / "test" / "good" / f"{number:03d}.png", folder / "test" / "good")
    table = tmp_path / "m.csv"
    refused(run("scan", folder, "--group-regex", r"\d+", "--out", table), "2 groups in more than one split", "--folds")
    lines = table.read_text("utf-8").splitlines()
    table.write_text("\n".join(line for line in lines if not line.startswith("set/test")), encoding="utf-8")
    assert run("scan", table).code == 0
    folded = run("scan", folder, "--group-regex", r"\d+", "--folds", "3", "--out", tmp_path / "k.csv")
    assert folded.code == 0, folded.err
    assert "REFUSED" not in folded.out
    for number in (1, 2, 3):
        assert run("scan", tmp_path / f"k_{number}.csv").code == 0


def test_folds_do_not_mend_everything(part_folder: Path, tmp_path: Path) -> None:
    folder = normals(tmp_path / "set", part_folder, 9)
    refused(run("scan", folder, "--folds", "3", "--out", tmp_path / "k.csv"), "6 readable normal images to fit on")
    assert (tmp_path / "k_3.csv").exists()


def test_frames_of_two_files_are_two_groups_and_scan_says_what_to_do(part_folder: Path, tmp_path: Path) -> None:
    pages = [Picture.open(part_folder / "train" / "good" / f"{number:03d}.png") for number in range(12)]
    (tmp_path / "set").mkdir()
    for name, part in (("a", pages[:6]), ("b", pages[6:])):
        part[0].save(tmp_path / "set" / f"{name}.tif", save_all=True, append_images=part[1:])
    table = tmp_path / "m.csv"
    refused(run("scan", tmp_path / "set", "--out", table), "belong to 2 groups", "its own `group` and `unit`")
    header, *rows = [line.split(",") for line in table.read_text("utf-8").splitlines()]
    for number, row in enumerate(rows):
        row[header.index("group")] = row[header.index("unit")] = str(number)
    table.write_text("\n".join(",".join(row) for row in [header, *rows]), encoding="utf-8")
    assert run("scan", table).code == 0


def test_evaluate_needs_labels_and_score_does_not(part_folder: Path, smoke_model_file: Path, tmp_path: Path) -> None:
    data = normals(tmp_path / "flat", part_folder, 3)
    outcome = run("evaluate", smoke_model_file, data, "--out", tmp_path / "run")
    refused(outcome, "no labelled test images", "or use score")
    done("score", smoke_model_file, data, "--out", tmp_path / "run")


def test_images_that_all_are_of_another_kind(smoke_model_file: Path, tmp_path: Path) -> None:
    Picture.fromarray(COLOUR).save(tmp_path / "a.png")
    outcome = run("score", smoke_model_file, tmp_path, "--out", tmp_path / "run")
    refused(outcome, "the image could not be scored", "has 3 channel(s)")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


# --- the disk ------------------------------------------------------------


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function after which no file whose name contains a text can be written."""
    write_bytes, open_path, save = Path.write_bytes, Path.open, np.save

    def fill(text: str) -> None:
        def refuse(self: Path, content: bytes) -> int:
            if text not in self.name:
                return write_bytes(self, content)
            write_bytes(self, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

        def refuse_lines(self: Path, mode: str = "r", *rest: Any, **options: Any) -> IO[Any]:
            file = open_path(self, mode, *rest, **options)
            if mode != "w" or text not in self.name:  # `write_bytes` opens, too
                return file
            file.write("half of the f")
            file.close()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

        def refuse_array(file: Path, array: np.ndarray, allow_pickle: bool = False) -> None:
            if text in file.name:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
            save(file, array, allow_pickle=allow_pickle)

        monkeypatch.setattr(Path, "write_bytes", refuse)
        monkeypatch.setattr(Path, "open", refuse_lines)
        monkeypatch.setattr(np, "save", refuse_array)

    return fill


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("fit", "m.safetensors"),
        ("fit", "m.checkpoint"),
        ("scan", "manifest"),
        ("preview", "sheet"),
        ("score", "scores.csv"),
        ("score", "heatmaps"),
        ("score", ".tiff"),
        ("score", "pictures.npz"),
        ("score", "report.html"),
        ("evaluate", "metrics.json"),
        ("evaluate", "0.npy"),
        ("evaluate", "run.json"),
    ],
)
def test_a_full_disk_leaves_nothing_half_written(
    command: str,
    text: str,
    full_disk: Callable[[str], None],
    part_folder: Path,
    smoke_model_file: Path,
    tmp_path: Path,
) -> None:
    data = tmp_path / "data.csv"
    rows = [f"train/good/{i:03d}.png,normal,train," for i in range(20)] + ["test/good/000.png,normal,test,"]
    rows += ["test/dent/000.png,anomalous,test,ground_truth/dent/000_mask.png"]
    lines = [row.replace(",ground", f",{part_folder.as_posix()}/ground") for row in rows]
    data.write_text("path,label,split,mask\n" + "".join(f"{part_folder.as_posix()}/{r}\n" for r in lines), "utf-8")
    arguments: dict[str, list[str | Path]] = {
        "fit": [data, "--preset", "smoke", "--out", tmp_path / "m.safetensors"],
        "scan": [data, "--out", tmp_path / "manifest.csv"],
        "preview": [data, "--out", tmp_path / "sheet.png"],
        "score": [smoke_model_file, data, "--heatmaps", "all", "--maps", "--out", tmp_path / "run"],
        "evaluate": [smoke_model_file, data, "--out", tmp_path / "run"],
    }
    full_disk("_png.png" if text == "heatmaps" else text)
    outcome = run(command, *arguments[command])
    refused(outcome, "cannot write", os.strerror(errno.ENOSPC), "free some space")
    left = {path.name for path in tmp_path.iterdir()} - {"data.csv"}
    # the state of a training is worth keeping: with room again, --resume only has to write
    assert left == ({"m.checkpoint.safetensors"} if text == "m.safetensors" else set())


def test_a_full_disk_keeps_the_old_model(
    full_disk: Callable[[str], None], part_folder: Path, smoke_model_file: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copy(smoke_model_file, tmp_path / "m.safetensors"))
    before = model.read_bytes()
    full_disk("m.safetensors")
    refused(run("fit", part_folder, "--preset", "smoke", "--out", model, "--overwrite"), "unchanged")
    assert model.read_bytes() == before
    refused(run("calibrate", model, part_folder / "test" / "good"), "unchanged")
    assert model.read_bytes() == before


@pytest.mark.parametrize("text", ["scores.csv", "run.json", "report.html"])
def test_a_full_disk_in_what_if_leaves_every_file_whole(
    text: str, full_disk: Callable[[str], None], part_folder: Path, smoke_model_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    done("score", smoke_model_file, part_folder / "test" / "good" / "000.png", "--out", out)
    before = contents(out)
    full_disk(text)
    refused(run("threshold", out, "--false-alarm-rate", "0.5"), "cannot write")
    after = contents(out)
    assert after.keys() == before.keys()
    assert after[text] == before[text]
    assert after["scores.jsonl"].count(b"\n") == before["scores.jsonl"].count(b"\n")


# --- the model file ------------------------------------------------------------


def cut_in_half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def cut_in_the_header(content: bytes) -> bytes:
    return content[:200]


def one_byte_less(content: bytes) -> bytes:
    return content[:-1]


def one_byte_more(content: bytes) -> bytes:
    return content + b"\0"


def emptied(content: bytes) -> bytes:
    return b""


def changed_at(position: float) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        index = round(position * (len(content) - 1))
        return content[:index] + bytes([content[index] ^ 1]) + content[index + 1 :]

    change.__name__ = f"one bit changed at {position:g}"
    return change


def another_file(content: bytes) -> bytes:
    return png(4, 4, b"\0" * 20)


def of_another_program(content: bytes) -> bytes:
    from safetensors.numpy import save

    return save({"weight": np.zeros(3, np.float32)})


def of_format_3(content: bytes) -> bytes:
    """Return the same model, honestly signed, as a later version would write it."""
    renamed = content.replace(b'"format":"2"', b'"format":"3"', 1)
    assert renamed != content
    start = renamed.index(b'"sha256":"') + len(b'"sha256":"')
    zeroed = renamed[:start] + b"0" * 64 + renamed[start + 64 :]
    return renamed[:start] + hashlib.sha256(zeroed).hexdigest().encode() + renamed[start + 64 :]


DAMAGES: dict[Callable[[bytes], bytes], str] = {
    cut_in_half: "is damaged: its SHA-256 does not match its content",
    cut_in_the_header: "cut, empty or of another kind",
    one_byte_less: "",
    one_byte_more: "",
    emptied: "cut, empty or of another kind",
    another_file: "cut, empty or of another kind",
    of_another_program: "is no anomaly_ae model",
    of_format_3: "has format 3: this version reads up to format 2",
    **{changed_at(position): "" for position in (0, 0.0001, 0.01, 0.1, 0.5, 0.9, 1)},
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_model_is_refused(
    damage: Callable[[bytes], bytes], smoke_model_file: Path, part_folder: Path, tmp_path: Path
) -> None:
    model = tmp_path / "m.safetensors"
    model.write_bytes(damage(smoke_model_file.read_bytes()))
    image = part_folder / "test" / "good" / "000.png"
    for arguments in (
        ["info", model],
        ["score", model, image, "--out", tmp_path / "run"],
        ["evaluate", model, part_folder, "--out", tmp_path / "run"],
        ["calibrate", model, part_folder / "test" / "good"],
    ):
        before = contents(tmp_path)
        refused(run(*arguments), "m.safetensors", DAMAGES[damage])
        assert contents(tmp_path) == before


def test_every_single_bit_of_the_header_is_checked(smoke_model_file: Path, tmp_path: Path) -> None:
    content = smoke_model_file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    model = tmp_path / "m.safetensors"
    for index in np.random.default_rng(0).integers(0, end, 60):
        bit = 1 << int(index) % 8
        model.write_bytes(content[:index] + bytes([content[index] ^ bit]) + content[index + 1 :])
        refused(run("info", model), "m.safetensors")


def test_a_run_or_a_table_given_as_model(part_folder: Path, smoke_model_file: Path, tmp_path: Path) -> None:
    refused(run("info", part_folder), "cannot read")
    refused(run("score", part_folder / "groups.tsv", smoke_model_file, "--out", tmp_path / "run"), "is no model file")


# --- the run folder ------------------------------------------------------------


DAMAGED_RUNS = [
    ("run.json", None),
    ("run.json", b""),
    ("run.json", b"{}"),
    ("run.json", b"[1]"),
    ("run.json", b'{"format": 2}'),
    ("run.json", b'{"format": 1}'),
    ("units.csv", b"unit\nx\n"),
]


@pytest.mark.parametrize(
    ("command", "name", "content"),
    [
        *[("threshold", *damage) for damage in [*DAMAGED_RUNS, ("scores.jsonl", b"{}\n")]],
        *[("report", *damage) for damage in [*DAMAGED_RUNS, ("scores.csv", b"id\nx\n")]],
    ],
)
def test_a_damaged_run_is_refused(
    command: str, name: str, content: bytes | None, part_folder: Path, smoke_model_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    done("score", smoke_model_file, part_folder / "test" / "good" / "000.png", "--out", out)
    (out / name).unlink()
    if content is not None:
        (out / name).write_bytes(content)
    before = contents(out)
    refused(run(command, out), name)
    assert contents(out) == before


def test_pictures_that_are_damaged_are_said(part_folder: Path, smoke_model_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done("score", smoke_model_file, part_folder / "test" / "good" / "000.png", "--out", out)
    pictures = out / "pictures.npz"
    pictures.write_bytes(pictures.read_bytes()[:200])
    refused(run("report", out), "pictures.npz")


# --- settings ------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[training]\nsteps = 0\n", ("training.steps = 0", "outside of [1, 1000000]")),
        ("[training]\nstep = 3\n", ("unknown setting 'training.step'", "did you mean 'training.steps'?")),
        ("[trainig]\nsteps = 3\n", ("unknown setting 'trainig'", "did you mean 'training'?")),
        ("[scoring]\npooling = 'mean'\n", ("scoring.pooling = 'mean'", "one of: max, top_share, quantile")),
        ("[training]\nsteps = 3.5\n", ("expected int, found float",)),
        ("steps = [\n", ("is no valid TOML",)),
        ("[intensity]\npolicy = 'window'\n", ("needs low < high",)),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_right(
    text: str, words: tuple[str, ...], part_folder: Path, tmp_path: Path
) -> None:
    config = tmp_path / "mine.toml"
    config.write_text(text, encoding="utf-8")
    outcome = run("fit", part_folder, "--config", config, "--out", tmp_path / "m.safetensors")
    assert outcome.code == 2
    for word in words:
        assert word in outcome.error
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]


def test_nothing_in_a_file_is_executed(smoke_model_file: Path, part_folder: Path, tmp_path: Path) -> None:
    """A pickle that would leave a trace, as an image, as a model and as the pictures of a run."""
    trace = tmp_path / "trace"
    code = b"cpathlib\nPath.touch\n(cpathlib\nPath\n(V" + str(trace).encode() + b"\ntRtR."
    (tmp_path / "a.npy").write_bytes(npy((1,)).replace(b"'<f4'", b"'|O' ") + code)
    (tmp_path / "m.safetensors").write_bytes(code)
    image = part_folder / "test" / "good" / "000.png"
    out = tmp_path / "run"
    assert run("score", smoke_model_file, image, tmp_path / "a.npy", "--out", out).code == 3
    refused(run("info", tmp_path / "m.safetensors"))
    info = json.loads((out / "run.json").read_text("utf-8"))
    (out / "pictures.npz").write_bytes(code)
    refused(run("report", out), "pictures.npz")
    assert info["format"] == 1
    assert not trace.exists()
