"""Folders and tables become manifests; the cut never leaks; a scan names what would make results false."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pictures import Write, writer
from PIL import Image as Pillow

from anomaly_ae.errors import ConfigError, DataError, OutputError, UsageError
from anomaly_ae.loading import read_sample
from anomaly_ae.manifest import (
    FIT_SPLITS,
    Manifest,
    ScanReport,
    load_manifest,
    make_folds,
    manifest_from_paths,
    roles,
    scan,
    split_normals,
    write_manifest,
)
from anomaly_ae.manifest.splits import _cut
from anomaly_ae.manifest.table import COLUMNS, make_sample
from anomaly_ae.records import Sample


def noise(seed: int, shape: tuple[int, ...] = (8, 8), low: int = 60, high: int = 180) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, shape, dtype=np.uint8)


@pytest.fixture
def picture(tmp_path: Path) -> Write:
    """Write a small image; every call has other pixels unless they are given."""
    return writer(tmp_path, noise)


def mask_of(shape: tuple[int, int] = (8, 8), *, empty: bool = False) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    if not empty:
        mask[2:4, 2:4] = 255
    return mask


def mvtec(picture: Write, n_train: int = 10, n_test: int = 4) -> None:
    for i in range(n_train):
        picture(f"train/good/{i:03}.png")
    for i in range(n_test):
        picture(f"test/good/{i:03}.png")
        picture(f"test/crack/{i:03}.png")
        picture(f"ground_truth/crack/{i:03}_mask.png", mask_of())


def csv(folder: Path, text: str, name: str = "m.csv", encoding: str = "utf-8") -> Path:
    file = folder / name
    file.write_bytes(text.encode(encoding))
    return file


def sample(name: str, **known: str) -> Sample:
    return make_sample(Path(), name, **known)


def normals(sizes: Sequence[int], split: str = "train") -> list[Sample]:
    """One group per size, each with so many images."""
    return [
        sample(f"g{group:03}_{i:03}.png", group=f"g{group}", split=split, label="normal")
        for group, size in enumerate(sizes)
        for i in range(size)
    ]


def by_path(manifest: Manifest) -> dict[str, Sample]:
    return {s.path: s for s in manifest.samples}


# --- folders -------------------------------------------------------------


def test_mvtec_layout(picture: Write, tmp_path: Path) -> None:
    mvtec(picture)
    picture("test/hole/x.png")
    picture("ground_truth/hole/x.bmp", mask_of())
    picture("validation/good/v.png")
    manifest = load_manifest(tmp_path)
    rows = by_path(manifest)
    assert manifest.layout == "mvtec"
    assert manifest.notes == ()
    assert list(rows) == sorted(rows), "sorted by path"
    assert len(manifest.select("train", "normal")) == 10
    assert {(s.split, s.label, s.defect) for s in manifest.samples} == {
        ("train", "normal", ""),
        ("validation", "normal", ""),
        ("test", "normal", ""),
        ("test", "anomalous", "crack"),
        ("test", "anomalous", "hole"),
    }
    assert rows["test/crack/001.png"].mask == tmp_path / "ground_truth/crack/001_mask.png"
    assert rows["test/hole/x.png"].mask == tmp_path / "ground_truth/hole/x.bmp"
    assert rows["test/good/001.png"].mask is None
    one = rows["train/good/000.png"]
    assert (one.id, one.unit, one.group, one.files) == (*[one.path] * 3, (tmp_path / one.path,))


def test_everything_in_train_that_is_not_called_good_is_a_defect(picture: Write, tmp_path: Path) -> None:
    picture("train/OK/a.png")
    picture("train/scratch/b.png")
    picture("test/c.png")
    rows = by_path(load_manifest(tmp_path))
    assert rows["train/OK/a.png"].label == "normal"
    assert (rows["train/scratch/b.png"].label, rows["train/scratch/b.png"].defect) == ("anomalous", "scratch")
    assert (rows["test/c.png"].split, rows["test/c.png"].label) == ("test", "")


@pytest.mark.parametrize(("good", "bad"), [("normal", "anomalous"), ("good", "bad"), ("OK", "NOK"), ("Good", "ng")])
def test_labelled_folders(picture: Write, tmp_path: Path, good: str, bad: str) -> None:
    picture(f"{good}/a.png")
    picture(f"{bad}/a.png")
    picture(f"{bad}/crack/c.png")
    picture("ground_truth/a_mask.png", mask_of())
    picture("ground_truth/crack/c_mask.png", mask_of())
    picture("unclear/x.png")
    manifest = load_manifest(tmp_path)
    rows = by_path(manifest)
    assert manifest.layout == "normal/anomalous"
    assert (rows[f"{good}/a.png"].label, rows[f"{good}/a.png"].mask) == ("normal", None)
    assert rows[f"{bad}/a.png"].mask == tmp_path / "ground_truth/a_mask.png"
    assert rows[f"{bad}/crack/c.png"].defect == "crack"
    assert rows[f"{bad}/crack/c.png"].mask == tmp_path / "ground_truth/crack/c_mask.png"
    assert {s.split for s in manifest.samples} == {""}
    assert "unclear/x.png" not in rows
    assert any("unclear/" in note for note in manifest.all_notes)


@pytest.mark.parametrize("good", ["good", "Normal"])
def test_folders_beside_the_normal_one_are_defects(picture: Write, tmp_path: Path, good: str) -> None:
    for i in range(8):
        picture(f"{good}/{i}.png")
    picture("Blur/0.png")
    picture("burr/0.png")
    picture("burr/deep/1.png")
    picture("ground_truth/burr/0_mask.png", mask_of())
    picture("ground_truth/0_mask.png", mask_of())
    picture("beside.png")
    manifest = load_manifest(tmp_path)
    rows = by_path(manifest)
    found = {path: (row.label, row.defect) for path, row in rows.items() if row.label != "normal"}
    assert found == {
        path: ("anomalous", path.split("/")[0]) for path in ("Blur/0.png", "burr/0.png", "burr/deep/1.png")
    }
    assert (rows["Blur/0.png"].mask, rows["burr/0.png"].mask) == (None, tmp_path / "ground_truth/burr/0_mask.png")
    assert Counter(roles(manifest.samples)) == {"train": 8, "": 3}, "no defect is learned"
    assert any("the top folder" in note for note in manifest.all_notes)


def test_data_sets_beside_a_normal_folder_are_refused(picture: Write, tmp_path: Path) -> None:
    picture("good/a.png")
    picture("second/good/a.png")
    with pytest.raises(DataError, match=re.escape(str(tmp_path / "second"))):
        load_manifest(tmp_path)


def test_flat_folder_ignores_other_files_hidden_names_and_masks(picture: Write, tmp_path: Path) -> None:
    picture("b.png")
    picture("a.png")
    picture("a_mask.png", mask_of())
    picture("lone_mask.png")
    picture("lot7/c.png")
    picture(".cache/d.png")
    csv(tmp_path, "path\nb.png\n", "manifest.csv")
    (tmp_path / "notes.txt").write_text("x")
    manifest = load_manifest(tmp_path)
    assert manifest.layout == "flat"
    assert list(by_path(manifest)) == ["a.png", "b.png", "lone_mask.png", "lot7/c.png"]
    assert {s.path for s in manifest.samples if s.label == "anomalous"} == {"a.png"}, "its mask marks something"
    assert "ignored files that are no images: 2" in manifest.all_notes


def write_run_info(folder: Path, tool: str = "anomaly_ae") -> None:
    (folder / "run.json").write_text(json.dumps({"tool": tool}), encoding="utf-8")


def test_runs_among_the_images_are_no_data(picture: Write, tmp_path: Path) -> None:
    picture("a.png")
    picture("lot/b.png")
    for name in ("scores", "lot/again", "foreign"):
        picture(f"{name}/maps/a.tif")
        write_run_info(tmp_path / name, "another" if name == "foreign" else "anomaly_ae")
    for manifest in (load_manifest(tmp_path), manifest_from_paths([tmp_path])):
        files = [s.files[0].relative_to(tmp_path).as_posix() for s in manifest.samples]
        assert files == ["a.png", "foreign/maps/a.tif", "lot/b.png"]
        assert manifest.all_notes == ("ignored files that are no images: 1", "ignored folders of finished runs: 2")


def test_a_run_that_is_itself_given_is_read(picture: Write, tmp_path: Path) -> None:
    picture("images/a.png")
    write_run_info(tmp_path)
    assert list(by_path(load_manifest(tmp_path))) == ["images/a.png"]


def test_folder_of_several_data_sets_is_refused(picture: Write, tmp_path: Path) -> None:
    picture("bottle/train/good/a.png")
    picture("bottle/test/broken/a.png")
    with pytest.raises(DataError, match=re.escape(str(tmp_path / "bottle"))):
        load_manifest(tmp_path)


def test_masks_without_an_image_are_counted(picture: Write, tmp_path: Path) -> None:
    mvtec(picture)
    picture("ground_truth/crack/999_mask.png", mask_of())
    assert load_manifest(tmp_path).all_notes == ("ignored masks without an image: 1",)


def test_name_of_the_mask_folder_in_any_case(picture: Write, tmp_path: Path) -> None:
    picture("Test/crack/a.png")
    picture("Ground_Truth/crack/a_mask.png", mask_of())
    (row,) = load_manifest(tmp_path).samples
    assert (row.split, row.mask) == ("test", tmp_path / "Ground_Truth/crack/a_mask.png")


@pytest.mark.parametrize("other", [None, "notes.txt"])
def test_folder_without_images(tmp_path: Path, other: str | None) -> None:
    if other:
        (tmp_path / other).write_text("x")
    with pytest.raises(DataError, match="no image in"):
        load_manifest(tmp_path)


def test_missing_data(tmp_path: Path) -> None:
    for name in ("nowhere", "nowhere.csv", "nowhere.png"):
        with pytest.raises(DataError, match="does not exist"):
            load_manifest(tmp_path / name)


def test_one_row_per_frame(picture: Write, tmp_path: Path) -> None:
    pages = [Pillow.fromarray(noise(seed)) for seed in range(3)]
    (tmp_path / "anomalous").mkdir()
    pages[0].save(tmp_path / "anomalous/s.tif", save_all=True, append_images=pages[1:])
    picture("ground_truth/s_mask.png", mask_of())
    manifest = load_manifest(tmp_path)
    assert [s.id for s in manifest.samples] == [f"anomalous/s.tif#{i}" for i in range(3)]
    assert [s.frame for s in manifest.samples] == [0, 1, 2]
    assert {(s.unit, s.group, s.mask) for s in manifest.samples} == {("anomalous/s.tif", "anomalous/s.tif", None)}


def test_file_that_cannot_be_opened_is_listed(picture: Write, tmp_path: Path) -> None:
    picture("a.png")
    (tmp_path / "b.tif").write_bytes(b"no image")
    assert list(by_path(load_manifest(tmp_path))) == ["a.png", "b.tif"]


def symlink(link: Path, target: Path) -> None:
    try:
        link.symlink_to(target, target_is_directory=target.is_dir())
    except OSError:
        pytest.skip("no right to create links here")


def test_links_are_followed_but_not_in_circles(picture: Write, tmp_path: Path) -> None:
    picture("data/a/x.png")
    picture("data/b/y.png")
    picture("elsewhere/z.png")
    data = tmp_path / "data"
    symlink(data / "a/to_b", data / "b")
    symlink(data / "b/to_a", data / "a")
    symlink(data / "out", tmp_path / "elsewhere")
    symlink(data / "gone.png", tmp_path / "nothing.png")
    assert list(by_path(load_manifest(data))) == [
        "a/to_b/y.png",
        "a/x.png",
        "b/to_a/x.png",
        "b/y.png",
        "gone.png",
        "out/z.png",
    ]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
@pytest.mark.parametrize(
    ("name", "text"),
    [("a|b.png", "a|b.png"), (os.fsdecode(b"a\xff.png"), "a\\xff.png"), ("d|\udcff/a.png", "d|\\xff/a.png")],
)
def test_a_file_name_that_no_table_can_hold_stops_nothing(picture: Write, tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    picture("b.png").rename(tmp_path / name)
    for prefix, manifest in (
        ("", load_manifest(tmp_path)),
        (f"{tmp_path}/", manifest_from_paths([tmp_path])),
        (f"{tmp_path}/", manifest_from_paths([tmp_path / name])),
    ):
        (one,) = manifest.samples
        assert (one.id, one.path, one.unit, one.group) == (prefix + text,) * 4
        assert read_sample(one).source == one.id
    with pytest.raises(OutputError, match="rename"):
        write_manifest(load_manifest(tmp_path), tmp_path / "m.csv")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_files_whose_names_are_shown_alike_are_refused(picture: Write, tmp_path: Path) -> None:
    picture("b.png").rename(tmp_path / os.fsdecode(b"a\xff.png"))
    picture("b.png").rename(tmp_path / "a\\xff.png")
    for listing in (lambda: load_manifest(tmp_path), lambda: manifest_from_paths([tmp_path])):
        with pytest.raises(DataError, match=r"2 files are called .*a\\xff\.png: .*rename one"):
            listing()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_a_kind_of_defect_whose_folder_is_no_text_is_shown_by_its_bytes(picture: Write, tmp_path: Path) -> None:
    folder = os.fsdecode(b"st\xe4in")
    for name in ("train/good/0.png", "test/good/1.png", f"test/{folder}/2.png"):
        picture(name)
    assert {s.defect for s in load_manifest(tmp_path).samples} == {"", "st\\xe4in"}


# --- groups --------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("groups.tsv", "path\tgroup\na.png\tp1\nb.png\tp1\nz.png\tp9\n"),
        ("groups.csv", "file,group\na.png,p1\nb.png,p1\nz.png,p9\n"),
    ],
)
def test_group_file(picture: Write, tmp_path: Path, name: str, text: str) -> None:
    for image in ("a.png", "b.png", "c.png"):
        picture(image)
    csv(tmp_path, text, name)
    manifest = load_manifest(tmp_path)
    assert {s.path: s.group for s in manifest.samples} == {"a.png": "p1", "b.png": "p1", "c.png": "c.png"}
    assert {s.unit for s in manifest.samples} == {"a.png", "b.png", "c.png"}
    assert manifest.notes == (
        f"{name}: rows without an image: 1",
        f"{name}: images without a row (each its own group): 1",
    )


def test_groups_of_folders_that_are_scored_are_those_of_the_folders(picture: Write, tmp_path: Path) -> None:
    files = [picture(name) for name in ("lot1/a.png", "lot1/b.png", "lot2/a.png", "c.png")]
    csv(tmp_path / "lot1", "path\tgroup\na.png\tp1\nb.png\tp1\n", "groups.tsv")
    manifest = manifest_from_paths([tmp_path / "lot1", tmp_path / "lot2", files[3]])
    own = [files[3].as_posix(), "p1", "p1", files[2].as_posix()]
    assert [s.group for s in manifest.samples] == own
    named = manifest_from_paths([tmp_path / "lot1"], group_regex="[a-z]+")
    assert [s.group for s in named.samples] == ["a", "b"], "searched below the folder"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path\tgroup\na.png\tp1\na.png\tp2\n", "row 3 puts a.png in group 'p2'"),
        ("path\tgroup\na.png\t\n", "row 2 names no group"),
    ],
)
def test_group_file_that_contradicts_itself(picture: Write, tmp_path: Path, text: str, message: str) -> None:
    picture("a.png")
    csv(tmp_path, text, "groups.tsv")
    with pytest.raises(DataError, match=message):
        load_manifest(tmp_path)


def test_group_regex(picture: Write, tmp_path: Path) -> None:
    for name in ("part1_a.png", "part1_b.png", "part22_a.png"):
        picture(name)
    groups = [s.group for s in load_manifest(tmp_path, r"part(\d+)_").samples]
    assert groups == ["1", "1", "22"]
    assert [s.group for s in load_manifest(tmp_path, r"part\d+").samples] == ["part1", "part1", "part22"]
    with pytest.raises(DataError, match=r"'lot\(\\d\+\)' finds nothing in 'part1_a\.png'"):
        load_manifest(tmp_path, r"lot(\d+)")
    with pytest.raises(UsageError, match=r"'\(\\d' is no regular expression"):
        load_manifest(tmp_path, r"(\d")
    assert load_manifest(tmp_path, r"t(\d+)").notes[0].startswith(r"group from 't(\d+)': 2 groups")


def test_group_regex_names_units(picture: Write, tmp_path: Path) -> None:
    for name in ("lot1_part1_a.png", "lot1_part1_b.png", "lot1_part2_a.png"):
        picture(name)

    def found(pattern: str) -> list[tuple[str, str]]:
        return [(s.group, s.unit) for s in load_manifest(tmp_path, pattern).samples]

    assert found(r"(?P<unit>lot\d)") == [("lot1", "lot1")] * 3
    both = [("lot1", "part1"), ("lot1", "part1"), ("lot1", "part2")]
    assert found(r"(?P<group>lot\d)_(?P<unit>part\d)") == found(r"(lot\d)_(?P<unit>part\d)") == both
    assert found(r"(?P<unit>part\d).*(?P<group>\w)\.png")[0] == ("a", "part1"), "by name, not by order"
    with pytest.raises(DataError, match="finds nothing in"):
        load_manifest(tmp_path, r"(lot\d)_(?P<unit>part2)?")


def test_group_regex_on_a_csv(tmp_path: Path) -> None:
    file = csv(tmp_path, "path,group\np1/a.png,x\np2/a.png,x\n")
    assert [s.group for s in load_manifest(file, "^[^/]+").samples] == ["p1", "p2"]


# --- lists of paths ------------------------------------------------------


def test_manifest_from_paths(picture: Write, tmp_path: Path) -> None:
    a, b = picture("lot/deep/a.png"), picture("b.png")
    picture("lot/ground_truth/m.png", mask_of())
    broken = tmp_path / "report.txt"
    broken.write_text("x")
    (tmp_path / "lot/readme.txt").write_text("x")
    manifest = manifest_from_paths([tmp_path / "lot", a, b, broken])
    assert [s.files[0] for s in manifest.samples] == sorted([a, b, broken], key=lambda p: p.as_posix())
    assert manifest.all_notes == ("ignored files that are no images: 1", "ignored masks: 1")


def test_manifest_from_paths_keeps_paths_as_written(
    picture: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture("lot/a.png")
    monkeypatch.chdir(tmp_path)
    assert [s.id for s in manifest_from_paths([Path("lot")]).samples] == ["lot/a.png"]
    with pytest.raises(DataError, match="gone does not exist"):
        manifest_from_paths([Path("gone")])
    with pytest.raises(DataError, match="no image in an empty list"):
        manifest_from_paths([])


def test_an_image_counts_once_however_it_is_written(
    picture: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture("lot/a.png"), picture("lot/b.png")
    monkeypatch.chdir(tmp_path)
    given = ["lot/a.png", "./lot/../lot/a.png", "lot", tmp_path / "lot" / "b.png", "lot/../lot"]
    assert [s.id for s in manifest_from_paths(given).samples] == ["lot/a.png", "lot/b.png"]


def test_one_image_is_a_data_set(picture: Write, tmp_path: Path) -> None:
    assert len(load_manifest(picture("a.png")).samples) == 1


# --- CSV -----------------------------------------------------------------


@pytest.mark.parametrize("first", ["sep=;\n", "\ufeffSEP=;\r\n", '"sep=;"\n'])
def test_a_first_line_on_the_delimiter_is_no_header(tmp_path: Path, first: str) -> None:
    table = csv(tmp_path, f"{first}path;label\na.png;normal\n")
    assert [(s.id, s.label) for s in load_manifest(table).samples] == [("a.png", "normal")]
    with pytest.raises(DataError, match="row 2: label 'odd'"):
        load_manifest(csv(tmp_path, f"{first}path;label\na.png;odd\n"))


def test_only_path_is_needed_and_all_else_has_a_default(tmp_path: Path) -> None:
    (row,) = load_manifest(csv(tmp_path, "path\nsub/a.png\n")).samples
    assert (row.id, row.unit, row.group) == ("sub/a.png",) * 3
    assert (row.frame, row.label, row.split, row.defect, row.mask, row.valid) == (0, "", "", "", None, None)
    assert row.files == (tmp_path / "sub/a.png",)


def test_every_column(tmp_path: Path) -> None:
    text = (
        "path,frame,label,mask,valid,unit,group,split,defect,id,scanner\n"
        "a.png | ../b.png,2,anomalous,m/a.png,v.png,part 1,lot 1,test,crack,first,S7\n"
    )
    manifest = load_manifest(csv(tmp_path, text))
    (row,) = manifest.samples
    assert row.path == "a.png|../b.png"
    assert row.files == (tmp_path / "a.png", tmp_path / "../b.png")
    assert (row.frame, row.label, row.split, row.defect) == (2, "anomalous", "test", "crack")
    assert (row.mask, row.valid) == (tmp_path / "m/a.png", tmp_path / "v.png")
    assert (row.unit, row.group, row.id) == ("part 1", "lot 1", "first")
    assert dict(row.extra) == {"scanner": "S7"}
    assert manifest.notes == ("further columns, kept as they are: scanner",)


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_dialects(tmp_path: Path, mark: str, encoding: str, line_end: str) -> None:
    rows = [["Path", "LABEL"], ["ä b.png", "normal"], [], ["sub\\c.png", ""]]
    file = csv(tmp_path, line_end.join(mark.join(row) for row in rows), encoding=encoding)
    assert [(s.path, s.label) for s in load_manifest(file).samples] == [("ä b.png", "normal"), ("sub/c.png", "")]


def test_default_ids_tell_frames_apart(tmp_path: Path) -> None:
    file = csv(tmp_path, "path,frame\na.tif,0\na.tif,1\nb.png,0\nc.tif,4\n")
    assert [s.id for s in load_manifest(file).samples] == ["a.tif#0", "a.tif#1", "b.png", "c.tif#4"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na.png,\nb.png,good\n", r"row 3: label 'good'.*'normal', 'anomalous' or an empty cell"),
        ("path,label\na.png,Normal\n", "row 2: label 'Normal'"),
        ("path,split\na.png,training\n", r"row 2: split 'training'.*'calibration'"),
        ("path,frame\na.png,1.5\n", "row 2: frame '1.5'"),
        ("path,frame\na.png,-1\n", "row 2: frame '-1'"),
        ("path,label\n,normal\n", "row 2: path ''"),
        ("path\na.png||b.png\n", "row 2: path"),
        ("path\na.png\n\na.png\n", "rows 2 and 4 have the same id 'a.png'"),
        ("path,id\na.png,x\nb.png,x\n", "rows 2 and 3 have the same id 'x'"),
        ("path,label\na,b.png,normal\n", "row 2 has 3 cells, the header 2"),
        ("image,label\na.png,normal\n", "no column 'path'"),
        ("", "no column 'path'"),
        ("path\n", "lists no image"),
        ("path,label,label\na.png,,\n", "two columns 'label'"),
        ("path,,label\na.png,,\n", "column 2 .* has no name"),
        ("path,lable\na.png,anomalous\n", "'lable' and none called 'label'"),
        ("path\na.png\0\n", "zero bytes"),
        ('path,defect\na.png,"dent\nb.png,\nc.png,\n', "is not a CSV table"),  # one stray quote
        ('path,defect\na.png,"dent\nb.png,"bent\n', "is not a CSV table"),  # two
        ('path,defect\n"a.png,dent\nb.png",bent\n', "row 2 has a line break in a cell"),
    ],
)
def test_csv_that_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_manifest(csv(tmp_path, text))
    assert caught.value.fix


def test_column_like_a_known_one_is_kept_beside_it(tmp_path: Path) -> None:
    (row,) = load_manifest(csv(tmp_path, "path,label,labels\na.png,normal,x\n")).samples
    assert dict(row.extra) == {"labels": "x"}


def test_other_encodings_are_refused(tmp_path: Path) -> None:
    file = csv(tmp_path, "path\nPrüfung.png\n", encoding="cp1252")
    with pytest.raises(DataError, match=r"byte 7 .*CSV UTF-8"):
        load_manifest(file)


# --- writing -------------------------------------------------------------


def known(s: Sample) -> tuple[object, ...]:
    files = tuple(f.resolve() for f in (*s.files, *(f for f in (s.mask, s.valid) if f)))
    return (files, s.id, s.frame, s.label, s.unit, s.group, s.split, s.defect, dict(s.extra))


@pytest.mark.parametrize("place", ["m.csv", "out/deep/m.csv"])
def test_written_manifest_reads_the_same(picture: Write, tmp_path: Path, place: str) -> None:
    mvtec(picture, 2, 1)
    csv(tmp_path, 'path\tgroup\ntrain/good/000.png\tp, "1"\n', "groups.tsv")
    manifest = load_manifest(tmp_path)
    samples = tuple(replace(s, extra={"shift": "ü"}) if s.label == "anomalous" else s for s in manifest.samples)
    write_manifest(replace(manifest, samples=samples), tmp_path / place)
    again = load_manifest(tmp_path / place)
    want = [known(replace(s, extra={"shift": s.extra.get("shift", "")})) for s in samples]
    assert [known(s) for s in again.samples] == want
    header, first = (tmp_path / place).read_text(encoding="utf-8").splitlines()[:2]
    assert header == ",".join((*COLUMNS[:-1], "shift")), "`volume` only where there is one"
    assert first.startswith(("test/", "../../test/")), "relative, with forward slashes"


def test_absolute_paths_stay_absolute(picture: Write, tmp_path: Path) -> None:
    image = picture("a.png").as_posix()
    manifest = load_manifest(csv(tmp_path, f"path\n{image}\n"))
    write_manifest(manifest, tmp_path / "b.csv")
    assert load_manifest(tmp_path / "b.csv").samples[0].path == image


def test_existing_file_is_replaced_only_when_told(tmp_path: Path) -> None:
    manifest = load_manifest(csv(tmp_path, "path\na.png\n"))
    target = csv(tmp_path, "old", "target.csv")
    with pytest.raises(OutputError, match="exists already"):
        write_manifest(manifest, target)
    assert target.read_text() == "old"
    write_manifest(manifest, target, overwrite=True)
    assert load_manifest(target).samples[0].path == "a.png"
    assert {f.name for f in tmp_path.iterdir()} == {"m.csv", "target.csv"}, "no temporary file is left"


def test_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path, (sample("\udcff.png"),))
    with pytest.raises(OutputError, match="rename"):
        write_manifest(manifest, tmp_path / "m.csv")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
@pytest.mark.parametrize("name", ["back\\slash.png", " before.png", "after.png ", "two\nlines.png"])
@pytest.mark.parametrize("place", ["m.csv", "out/m.csv"])
def test_name_that_a_table_would_change_is_refused(tmp_path: Path, name: str, place: str) -> None:
    manifest = Manifest(tmp_path, (make_sample(tmp_path, name),))
    with pytest.raises(OutputError, match="cannot stand in a manifest") as caught:
        write_manifest(manifest, tmp_path / place)
    assert caught.value.fix == "rename the file"
    assert not (tmp_path / place).exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_mask_whose_name_a_table_would_change_is_refused(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path, (replace(sample("a.png"), mask=tmp_path / "a_mask.png "),))
    with pytest.raises(OutputError, match=r"'a\.png' cannot stand in a manifest"):
        write_manifest(manifest, tmp_path / "m.csv")


def test_sample_travels_to_a_worker_process(tmp_path: Path) -> None:
    (row,) = load_manifest(csv(tmp_path, "path,shift\na.png,1\n")).samples
    assert pickle.loads(pickle.dumps(row)).extra == {"shift": "1"}


# --- roles and the cut ---------------------------------------------------


def test_roles_of_rows_without_a_split() -> None:
    free = [sample("a", label="normal"), sample("b"), sample("c", label="anomalous")]
    assert roles(free) == ["train", "train", ""]
    assert roles([*free, sample("t", split="test")]) == ["train", "train", "", "test"]
    assert roles([*free, sample("t", split="train")]) == ["", "", "", "train"]


def ids(cut: dict[str, tuple[Sample, ...]]) -> dict[str, list[str]]:
    return {name: [s.id for s in part] for name, part in cut.items()}


def test_cut_meets_the_shares_exactly_without_groups() -> None:
    cut = split_normals(normals([1] * 100), 0.1, 0.2, seed=0)
    assert {name: len(part) for name, part in cut.items()} == {"train": 70, "validation": 10, "calibration": 20}
    assert list(cut) == list(FIT_SPLITS)


@pytest.mark.parametrize("seed", range(5))
def test_every_image_once_and_no_group_in_two_parts(seed: int) -> None:
    sizes = np.random.default_rng(seed).integers(1, 30, 40).tolist()
    samples = normals(sizes)
    cut = split_normals(samples, 0.15, 0.25, seed)
    found = [i for part in ids(cut).values() for i in part]
    assert sorted(found) == sorted(s.id for s in samples)
    groups = [{s.group for s in part} for part in cut.values()]
    assert not any(a & b for a, b in itertools.combinations(groups, 2))
    for name, share in (("validation", 0.15), ("calibration", 0.25)):
        assert abs(len(cut[name]) - share * len(samples)) <= max(sizes) / 2


def test_a_giant_group_trains() -> None:
    cut = split_normals(normals([500, *[5] * 20]), 0.1, 0.1, seed=3)
    assert "g0" in {s.group for s in cut["train"]}
    # 600 images ask for 60 in each part: 12 of the groups of five.
    assert len(cut["validation"]) + len(cut["calibration"]) == 100
    assert min(len(cut["validation"]), len(cut["calibration"])) >= 40


def test_large_and_small_groups_are_calibrated_alike() -> None:
    """Calibration stands for a new group: a size must not decide where a group goes."""
    sizes = [1] * 30 + [9] * 30
    n_large = n_all = 0
    for seed in range(60):
        calibration = split_normals(normals(sizes), 0.1, 0.3, seed)["calibration"]
        groups = {s.group for s in calibration}
        n_large += sum(int(g[1:]) >= 30 for g in groups)
        n_all += len(groups)
    assert abs(n_large / n_all - 0.5) < 0.05


def test_cut_depends_only_on_training_rows_shares_and_seed() -> None:
    train = normals([3, 1, 4, 1, 5, 9, 2, 6])
    test = [sample(f"t{i}", split="test", label=label) for i, label in enumerate(("normal", "anomalous") * 5)]
    want = ids(split_normals(train, 0.2, 0.3, seed=1))
    mixed = [*test, *train]
    random.Random(0).shuffle(mixed)
    assert ids(split_normals(mixed, 0.2, 0.3, seed=1)) == want
    assert ids(split_normals([*train, *test[:3]], 0.2, 0.3, seed=1)) == want
    others = [ids(split_normals(train, 0.2, 0.3, seed)) for seed in range(2, 12)]
    assert any(other != want for other in others), "the seed matters"


def test_parts_named_in_the_manifest_are_respected() -> None:
    fixed = [sample(f"v{i}", split="validation", label="normal") for i in range(5)]
    cut = split_normals([*normals([1] * 45), *fixed], 0.1, 0.2, seed=0)
    assert [s.id for s in cut["validation"]] == [s.id for s in fixed]
    assert (len(cut["train"]), len(cut["calibration"])) == (35, 10)
    calibration = [sample(f"c{i}", split="calibration") for i in range(3)]
    cut = split_normals([*normals([1] * 45), *fixed, *calibration], 0.1, 0.2, seed=0)
    assert {name: len(part) for name, part in cut.items()} == {"train": 45, "validation": 5, "calibration": 3}


def test_unlabelled_and_unsplit_rows_are_normals() -> None:
    cut = split_normals([*normals([1] * 10, split=""), sample("bad", label="anomalous")], 0.2, 0.2, seed=0)
    assert sum(len(part) for part in cut.values()) == 10


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (normals([1] * 7), "7 normal images to fit on"),
        (normals([20]), "20 normal images to be cut belong to 1 group:.*group-regex"),
        (normals([10, 10]), "20 normal images to be cut belong to 2 groups"),
        ([*normals([1] * 9), sample("x", split="train", label="anomalous")], "1 anomalous images.*x"),
        ([*normals([1] * 9), sample("x", split="calibration", label="anomalous")], "1 anomalous images"),
        ([*normals([1] * 9), sample("x", split="validation", group="g0")], "group 'g0' stands in train and in"),
        (
            [*normals([1] * 9), sample("x", split="train", unit="g000_000.png", group="x")],
            "unit 'g000_000.png' stands in the groups 'g0' and 'x'",
        ),
    ],
)
def test_cut_that_is_refused(samples: list[Sample], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        split_normals(samples, 0.1, 0.2, seed=0)
    assert caught.value.fix


@pytest.mark.parametrize(("validation", "calibration"), [(0.0, 0.2), (0.2, 0.0), (0.5, 0.5), (-0.1, 0.2)])
def test_shares_out_of_range(validation: float, calibration: float) -> None:
    with pytest.raises(ConfigError, match="together below 1"):
        split_normals(normals([1] * 20), validation, calibration, seed=0)


def test_three_groups_suffice() -> None:
    cut = split_normals(normals([4, 4, 4]), 0.3, 0.3, seed=0)
    assert [len(part) for part in cut.values()] == [4, 4, 4]


@pytest.mark.parametrize("seed", range(20))
def test_cut_of_one_order_against_brute_force(seed: int) -> None:
    """The first boundary is the one closest to what is wanted, among all that leave the rest a group each."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(1, 9, 7)
    wanted = {"calibration": float(generator.uniform(1, 20)), "validation": float(generator.uniform(1, 20))}
    names, miss = _cut(sizes, wanted)
    first = min(range(1, 6), key=lambda k: abs(sizes[:k].sum() - wanted["calibration"]))
    second = min(range(first + 1, 7), key=lambda k: abs(sizes[first:k].sum() - wanted["validation"]))
    want = ["calibration"] * first + ["validation"] * (second - first) + ["train"] * (7 - second)
    assert names == want
    misses = [abs(sizes[np.array(names) == name].sum() - n) for name, n in wanted.items()]
    assert miss == pytest.approx(sum(misses))


# --- folds ---------------------------------------------------------------


def test_folds_rotate_the_normal_groups_and_test_every_defect() -> None:
    good = normals([3, 1, 2, 5, 4, 1, 1], split="train")
    mixed = [sample("m1", group="m", label="normal"), sample("m2", group="m", label="anomalous", split="test")]
    manifest = Manifest(Path(), (*good, *mixed))
    folds = make_folds(manifest, 3, seed=0)
    tested = Counter(s.id for fold in folds for s in fold.select("test"))
    assert all(tested[s.id] == 1 for s in good)
    assert tested["m1"] == tested["m2"] == 3
    for number, fold in enumerate(folds, 1):
        groups = [{s.group for s in fold.select(split)} for split in ("train", "test")]
        assert not groups[0] & groups[1]
        assert [s.id for s in fold.samples] == [s.id for s in manifest.samples]
        assert f"fold {number} of 3, by group" in fold.notes
    n_tested = [sum(s.group != "m" for s in fold.select("test")) for fold in folds]
    assert max(n_tested) - min(n_tested) <= 1, "17 images in thirds"


def test_folds_can_be_repeated() -> None:
    manifest = Manifest(Path(), tuple(normals([1] * 12)))
    shuffled = Manifest(Path(), tuple(reversed(manifest.samples)))

    def splits(m: Manifest, seed: int) -> list[dict[str, str]]:
        return [{s.id: s.split for s in fold.samples} for fold in make_folds(m, 3, seed)]

    assert splits(manifest, 0) == splits(shuffled, 0)
    assert splits(manifest, 0) != splits(manifest, 1)


@pytest.mark.parametrize(("k", "message"), [(1, "1 folds"), (4, "4 folds from 3 groups")])
def test_folds_that_are_refused(k: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make_folds(Manifest(Path(), tuple(normals([2, 2, 2]))), k, seed=0)


# --- scan ----------------------------------------------------------------


def refused(report: ScanReport) -> str:
    assert all(what and why and fix for what, why, fix in report.refusals)
    return "\n".join(what for what, _, _ in report.refusals)


def test_scan_of_sound_data(picture: Write, tmp_path: Path) -> None:
    mvtec(picture)
    seen: list[tuple[int, int]] = []
    report = scan(load_manifest(tmp_path), lambda done, total: seen.append((done, total)))
    assert report.refusals == ()
    assert report.warnings == tuple(w for w in report.warnings if "alone separates" in w)
    assert seen == [(i, 18) for i in range(1, 19)]
    assert (report.n_samples, report.n_readable, report.n_masks) == (18, 18, 4)
    assert (report.n_normals, report.n_normal_groups) == ({"train": 10, "test": 4}, {"train": 10, "test": 4})
    assert [(c.split, c.label, c.defect, c.n_images) for c in report.counts] == [
        ("train", "normal", "", 10),
        ("test", "anomalous", "crack", 4),
        ("test", "normal", "", 4),
    ]
    assert report.sizes == {(8, 8): 18}
    assert report.channels == {1: 18}
    assert report.depths == {"8 bit": 18}
    report.raise_if_refused()
    text = "\n".join(report.lines())
    assert "layout: mvtec; 18 images, 18 readable" in text
    assert re.search(r"train +normal +- +10 +10 +10", text)


def test_lines_name_everything(picture: Write, tmp_path: Path) -> None:
    mvtec(picture, n_train=6)
    (tmp_path / "train/good/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "notes.txt").write_text("x")
    report = scan(load_manifest(tmp_path))
    text = "\n".join(report.lines())
    assert re.search(r"^unreadable: train/good/broken.png: \S", text, re.M)
    assert "note: ignored files that are no images: 1" in text
    assert "warning: images that cannot be read, and so are not inspected: 1" in text
    assert "REFUSED: 6 readable normal images to fit on" in text
    with pytest.raises(DataError, match="6 readable normal images"):
        report.raise_if_refused()


def test_missing_and_damaged_files_are_listed_with_reasons(picture: Write, tmp_path: Path) -> None:
    good = picture("a.png").read_bytes()
    (tmp_path / "half.png").write_bytes(good[: len(good) // 2])
    report = scan(load_manifest(csv(tmp_path, "path\na.png\nhalf.png\ngone.png\na.png|gone.png\n")))
    reasons = dict(report.unreadable)
    assert list(reasons) == ["half.png", "gone.png", "a.png|gone.png"]
    assert reasons["gone.png"] == reasons["a.png|gone.png"] == "the file does not exist"
    assert reasons["half.png"]
    assert str(tmp_path) not in reasons["half.png"], "the path is shown once"


def test_group_in_two_splits(picture: Write, tmp_path: Path) -> None:
    mvtec(picture)
    manifest = load_manifest(tmp_path, r"(\d+)\.png")
    report = scan(manifest)
    assert "4 groups in more than one split: 000, 001, 002 and 1 more" in refused(report)
    assert "train and test" in report.refusals[0].why


def test_the_largest_group_is_named(picture: Write, tmp_path: Path) -> None:
    for name in ("lot16_a", "lot17_a", "lot17_b"):
        picture(f"{name}.png")
    assert "groups: 2, with 1 to 2 images each (largest: group '17')" in scan(load_manifest(tmp_path, r"(\d+)")).lines()


def test_unit_in_two_groups(picture: Write, tmp_path: Path) -> None:
    for i in range(8):
        picture(f"{i}.png")
    rows = "".join(f"{i}.png,{'part' if i < 2 else i},g{i}\n" for i in range(8))
    assert refused(scan(load_manifest(csv(tmp_path, f"path,unit,group\n{rows}")))) == (
        "1 unit in more than one group: part"
    )


def test_same_pixels_in_two_splits_whatever_the_format(picture: Write, tmp_path: Path) -> None:
    mvtec(picture)
    picture("train/good/copy.png", noise(99))
    picture("test/good/copy.bmp", noise(99))
    report = scan(load_manifest(tmp_path))
    assert report.duplicates == (("train/good/copy.png", "test/good/copy.bmp"),)
    assert "1 image with the same pixels in two splits: train/good/copy.png = test/good/copy.bmp" in refused(report)


def test_same_pixels_within_a_split_is_a_warning(picture: Write, tmp_path: Path) -> None:
    mvtec(picture)
    for name in ("a", "b", "c"):
        picture(f"train/good/{name}.png", noise(99))
    report = scan(load_manifest(tmp_path))
    assert (report.duplicates, report.n_duplicates_within, report.refusals) == ((), 2, ())
    assert any("the pixels of another in the same split" in w and w.endswith(": 2") for w in report.warnings)


def test_same_pixels_with_both_labels(picture: Write, tmp_path: Path) -> None:
    mvtec(picture)
    picture("test/good/x.png", noise(99))
    picture("test/crack/x.png", noise(99))
    assert "same pixels labelled normal and anomalous (one label is wrong): 1" in scan(load_manifest(tmp_path)).warnings


@pytest.mark.parametrize("split", FIT_SPLITS)
def test_anomalous_images_among_those_to_learn_from(picture: Write, tmp_path: Path, split: str) -> None:
    mvtec(picture)
    picture(f"{split}/scratch/x.png")
    write_manifest(load_manifest(tmp_path), tmp_path / "m.csv")
    text = (tmp_path / "m.csv").read_text().replace(",scratch,", f"{split},scratch,")
    report = scan(load_manifest(csv(tmp_path, text)))
    assert refused(report) == f"1 anomalous image in train, validation or calibration: {split}/scratch/x.png"


@pytest.mark.parametrize(
    ("mask", "problem"),
    [("small.png", "is 4 x 8 px, its image 8 x 8 px"), ("gone.png", "does not exist"), ("text.png", "cannot be read")],
)
@pytest.mark.parametrize("column", ["mask", "valid"])
def test_mask_of_no_use(picture: Write, tmp_path: Path, mask: str, problem: str, column: str) -> None:
    picture("small.png", mask_of((4, 8)))
    (tmp_path / "text.png").write_text("x")
    for i in range(8):
        picture(f"{i}.png")
    rows = "".join(f"{i}.png,train,normal,\n" for i in range(8))
    picture("t.png")
    report = scan(load_manifest(csv(tmp_path, f"path,split,label,{column}\n{rows}t.png,test,anomalous,{mask}\n")))
    assert f"1 mask of no use: {tmp_path / mask} {problem}" in refused(report)
    assert len(report.mask_problems) == 1


def test_normal_image_with_a_marked_defect(picture: Write, tmp_path: Path) -> None:
    mvtec(picture)
    picture("ground_truth/good/000_mask.png", mask_of())
    picture("ground_truth/good/001_mask.png", mask_of(empty=True))
    report = scan(load_manifest(tmp_path))
    assert refused(report) == "1 normal image with a mask that marks a defect: test/good/000.png"


def test_of_many_unreadable_images_the_first_hundred_are_named(tmp_path: Path) -> None:
    report = scan(load_manifest(csv(tmp_path, "path\n" + "".join(f"{i}.png\n" for i in range(103)))))
    lines = [line for line in report.lines() if line.startswith("unreadable")]
    assert len(lines) == 101
    assert lines[-1] == "unreadable: and 3 more"


def test_empty_masks_are_a_warning(picture: Write, tmp_path: Path) -> None:
    mvtec(picture)
    picture("ground_truth/crack/000_mask.png", mask_of(empty=True))
    report = scan(load_manifest(tmp_path))
    assert report.refusals == ()
    assert "anomalous images with an empty mask: 1" in report.warnings
    mask = tmp_path / "ground_truth/crack/000_mask.png"
    assert f"mask: {mask}: is empty, but its image is anomalous" in report.lines()


def test_a_mask_that_is_inverted_is_named(picture: Write, tmp_path: Path) -> None:
    mvtec(picture)
    inverted = ~mask_of(empty=True)
    picture("ground_truth/crack/000_mask.png", inverted)
    report = scan(load_manifest(tmp_path))
    mask = tmp_path / "ground_truth/crack/000_mask.png"
    assert f"mask: {mask}: marks 100 % of its image: is it inverted?" in report.lines()


def test_empty_valid_masks_are_named(picture: Write, tmp_path: Path) -> None:
    picture("a.png")
    picture("valid.png", mask_of(empty=True))
    report = scan(load_manifest(csv(tmp_path, "path,valid\na.png,valid.png\n")))
    assert f"mask: {tmp_path / 'valid.png'}: has no valid pixel" in report.lines()


def test_anomalous_images_without_a_mask_are_counted(picture: Write, tmp_path: Path) -> None:
    mvtec(picture)
    (tmp_path / "ground_truth/crack/000_mask.png").unlink()
    report = scan(load_manifest(tmp_path))
    assert (report.n_masks, report.n_anomalous_without_mask) == (3, 1)
    assert "masks: 3, anomalous images without: 1" in report.lines()


def test_grey_and_colour_in_training(picture: Write, tmp_path: Path) -> None:
    mvtec(picture)
    picture("train/good/colour.png", noise(99, (8, 8, 3)))
    report = scan(load_manifest(tmp_path))
    assert refused(report) == "images for training have different numbers of channels: 10 with 1, 1 with 3"
    assert "all grey or all RGB" in report.refusals[0].fix


def test_grey_saved_as_rgb_is_grey(picture: Write, tmp_path: Path) -> None:
    mvtec(picture)
    picture("train/good/rgb.png", np.repeat(noise(99)[..., None], 3, axis=-1))
    report = scan(load_manifest(tmp_path))
    assert (report.refusals, report.channels, report.n_grey_rgb) == ((), {1: 19}, 1)
    assert "channels: 1: 19 images (grey saved as RGB: 1)" in report.lines()


def test_colour_in_test_alone_is_a_warning(picture: Write, tmp_path: Path) -> None:
    mvtec(picture)
    picture("test/good/colour.png", noise(99, (8, 8, 3)))
    report = scan(load_manifest(tmp_path))
    assert report.refusals == ()
    assert "test images with 3 channels, as no training image has" in report.warnings


def test_bit_depths_and_sizes(picture: Write, tmp_path: Path) -> None:
    mvtec(picture)
    picture("train/good/deep.png", noise(99, (8, 12)).astype(np.uint16) * 256)
    report = scan(load_manifest(tmp_path))
    assert report.sizes == {(8, 8): 18, (8, 12): 1}
    assert report.depths == {"8 bit": 18, "16 bit": 1}
    assert "different bit depths in training: 10 of 8 bit, 1 of 16 bit" in report.warnings
    assert "size (rows first): 8 x 8 px: 18 images, 8 x 12 px: 1 image" in report.lines()


def test_many_sizes_are_summed_up(picture: Write, tmp_path: Path) -> None:
    for side in range(8, 16):
        picture(f"{side}.png", noise(side, (side, 20)))
    assert "size (rows first): 8 different, from 8 x 20 px to 15 x 20 px" in scan(load_manifest(tmp_path)).lines()


def test_too_few_readable_normals(picture: Write, tmp_path: Path) -> None:
    mvtec(picture, n_train=8)
    assert scan(load_manifest(tmp_path)).refusals == ()
    (tmp_path / "train/good/000.png").write_bytes(b"x")
    assert refused(scan(load_manifest(tmp_path))) == "7 readable normal images to fit on"


def test_what_sets_the_threshold_is_counted_as_fit_counts(picture: Write, tmp_path: Path) -> None:
    """20 % of 40 images are 8; the broken ones among them set no threshold."""
    for i in range(40):
        picture(f"{i:02}.png")
    manifest = load_manifest(tmp_path)
    part = scan(manifest).calibration
    assert part == (8, 40, "images", 0.2)
    broken = split_normals(manifest.samples, 0.1, 0.2, 0)["calibration"][:3]
    for one in broken:
        one.files[0].write_bytes(b"")
    assert scan(manifest).calibration == (5, 37, "images", 0.2)
    assert scan(load_manifest(tmp_path, r"^\d")).calibration == (1, 4, "groups", 0.2)


def test_a_calibration_part_that_the_manifest_names_has_no_share(picture: Write, tmp_path: Path) -> None:
    mvtec(picture)
    picture("calibration/good/a.png")
    assert scan(load_manifest(tmp_path)).calibration == (1, 11, "images", 0.0)


def test_all_images_the_same(picture: Write, tmp_path: Path) -> None:
    for i in range(9):
        picture(f"{i}.png", noise(0))
    assert refused(scan(load_manifest(tmp_path))) == "all 9 normal images have the same pixels"


def test_test_set_by_itself(picture: Write, tmp_path: Path) -> None:
    mvtec(picture, n_train=0)
    report = scan(load_manifest(tmp_path))
    assert report.refusals == ()
    assert any("can only be scored and evaluated" in w for w in report.warnings)


def test_no_test_split(picture: Write, tmp_path: Path) -> None:
    for i in range(8):
        picture(f"normal/{i}.png")
    picture("anomalous/x.png")
    report = scan(load_manifest(tmp_path))
    assert (report.refusals, report.n_normals) == ((), {"train": 8})
    assert any("--folds" in w for w in report.warnings)


@pytest.mark.parametrize("bright", [True, False])
def test_grey_value_that_tells_the_labels_apart(picture: Write, tmp_path: Path, bright: bool) -> None:
    mvtec(picture, n_test=0)
    level = 200 if bright else 0
    for i in range(5):
        picture(f"test/good/{i}.png")
        picture(f"test/crack/{i}.png", noise(50 + i, low=level, high=level + 50))
    report = scan(load_manifest(tmp_path))
    assert report.shortcuts["mean grey"] == (1.0 if bright else 0.0)
    side = "higher" if bright else "lower"
    assert f"mean grey alone separates the classes: 1.00 (anomalous is {side})" in report.warnings


def test_shortcuts_against_their_definition(picture: Write, tmp_path: Path) -> None:
    shapes = {"good": [(8, 8), (9, 8), (10, 9), (8, 9), (7, 9)], "crack": [(9, 8), (12, 12), (8, 8), (9, 9), (8, 10)]}
    values: dict[str, dict[str, list[float]]] = {}
    for kind, sizes in shapes.items():
        rows = values.setdefault(
            kind, {name: [] for name in ("mean grey", "deviation", "sharpness", "image size", "file size")}
        )
        for i, shape in enumerate(sizes):
            pixels = noise(10 * len(kind) + i, shape)
            file = picture(f"test/{kind}/{i}.png", pixels)
            grey = pixels.astype(float)
            rows["mean grey"].append(grey.mean())
            rows["deviation"].append(grey.std())
            rows["sharpness"].append(np.abs(grey[:, 1:] - grey[:, :-1]).mean() / grey.std())
            rows["image size"].append(grey.size)
            rows["file size"].append(file.stat().st_size)
    picture("train/good/0.png", noise(1, (30, 30)))  # not tested, so it does not count
    found = scan(load_manifest(tmp_path)).shortcuts
    for name, area in found.items():
        pairs = list(itertools.product(values["crack"][name], values["good"][name]))
        wins = sum((bad > good) + 0.5 * (bad == good) for bad, good in pairs)
        assert area == pytest.approx(wins / len(pairs)), name
    assert list(found) == list(values["good"])


def test_one_label_has_no_shortcuts(picture: Write, tmp_path: Path) -> None:
    for i in range(8):
        picture(f"{i}.png")
    assert scan(load_manifest(tmp_path)).shortcuts == {}


def test_test_defects_without_test_normals_say_why_there_is_no_figure(picture: Write, tmp_path: Path) -> None:
    mvtec(picture)
    said = "no normal test images: whether something that is not the defect tells the labels apart cannot be said"
    assert said not in scan(load_manifest(tmp_path)).warnings
    for file in (tmp_path / "test/good").iterdir():
        file.unlink()
    report = scan(load_manifest(tmp_path))
    assert report.shortcuts == {}
    assert said in report.warnings


def test_further_warnings(picture: Write, tmp_path: Path) -> None:
    for i in range(8):
        picture(f"{i}.png")
    picture("flat.png", np.full((8, 8), 7, np.uint8))
    picture("t.png")
    picture("u.png")
    pages = [Pillow.fromarray(noise(seed)) for seed in (70, 71)]
    pages[0].save(tmp_path / "s.tif", save_all=True, append_images=pages[1:])
    rows = "".join(f"{i}.png,train\n" for i in range(8))
    text = f"path,split\n{rows}flat.png,train\nt.png,test\nu.png,\ns.tif,train\n"
    assert set(scan(load_manifest(csv(tmp_path, text))).warnings) == {
        "images without a label, taken as normal for training: 10",
        "test images without a label, which `evaluate` leaves out: 1",
        "rows without a split, not used because other rows say train: 1",
        "constant images, every pixel with the same value: 1",
        "files with more frames than are listed, the others are not inspected: 1",
    }


def test_valid_mask_decides_what_counts_as_grey(picture: Write, tmp_path: Path) -> None:
    mvtec(picture, n_test=0)
    for i in range(5):
        for kind, inside in (("good", 100), ("crack", 200)):
            pixels = np.full((8, 8, 4), 255, np.uint8)
            pixels[..., :3] = 300 - inside  # alone it would say the opposite
            pixels[2:4, :, :3] = inside + i
            pixels[..., 3] = 0
            pixels[2:4, :, 3] = 255
            picture(f"test/{kind}/{i}.png", pixels)
    assert scan(load_manifest(tmp_path)).shortcuts["mean grey"] == 1.0


def test_nan_outside_of_the_valid_column_is_no_fault(picture: Write, tmp_path: Path) -> None:
    mask = mask_of()
    picture("valid.png", mask)
    picture("other_size.png", np.ones((9, 9), np.uint8))
    np.save(tmp_path / "a.npy", np.where(mask, 1.0, np.nan))
    np.save(tmp_path / "b.npy", np.where(mask, np.nan, 1.0))
    np.save(tmp_path / "c.npy", np.ones((8, 8)))
    text = "path,valid\na.npy,valid.png\nb.npy,valid.png\nc.npy,other_size.png\n"
    report = scan(load_manifest(csv(tmp_path, text)))
    assert [name for name, _ in report.unreadable] == ["b.npy"]
    assert any("other_size.png is 9 x 9 px, its image 8 x 8 px" in refusal.what for refusal in report.refusals)


def test_colourless_image_of_a_colour_camera_is_a_warning(picture: Write, tmp_path: Path) -> None:
    for i in range(8):
        picture(f"{i}.png", noise(i, (8, 8, 3)))
    picture("dark.png", np.zeros((8, 8, 3), np.uint8))
    report = scan(load_manifest(tmp_path))
    assert report.refusals == ()
    assert "training images without colour among others with colour: 1" in report.warnings


def test_rows_that_nothing_uses_cross_no_split(picture: Write, tmp_path: Path) -> None:
    rows = []
    for i in range(9):
        picture(f"{i}.png")
        rows.append(f"{i}.png,{'anomalous' if i == 8 else 'normal'},lot {i % 4}\n")
    assert scan(load_manifest(csv(tmp_path, "path,label,group\n" + "".join(rows)))).refusals == ()
