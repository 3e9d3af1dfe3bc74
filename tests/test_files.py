"""Files are replaced whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from anomaly_ae import files
from anomaly_ae.errors import OutputError
from anomaly_ae.files import (
    cannot_write,
    refuse_existing_file,
    refuse_folder,
    replacing,
    retried,
    write_bytes,
    write_lines,
    write_text,
    write_together,
)
from anomaly_ae.journal import journal_of

FULL = OSError(errno.ENOSPC, "No space left on device")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_and_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.bin"
    for content in (b"first", b"2"):
        write_bytes(path, content)
        assert path.read_bytes() == content
    assert names(path.parent) == ["file.bin"]


def test_text_is_utf8_with_plain_line_ends(tmp_path: Path) -> None:
    write_text(tmp_path / "text.csv", "a\nß µ\r\n")
    assert (tmp_path / "text.csv").read_bytes() == "a\nß µ\r\n".encode()


def test_lines_are_taken_one_by_one_and_where_one_fails_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "lines.csv"
    write_lines(path, (f"{i} µ\r\n" for i in range(3)))
    assert path.read_bytes() == "0 µ\r\n1 µ\r\n2 µ\r\n".encode()
    with pytest.raises(ZeroDivisionError):
        write_lines(path, (f"{1 / (1 - i)}\n" for i in range(3)))
    assert (names(tmp_path), path.read_bytes()[:2]) == (["lines.csv"], b"0 ")


def test_temporary_lies_in_the_same_folder_until_the_end(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    with replacing(path) as temporary:
        temporary.write_bytes(b"new")
        assert temporary.parent == path.parent
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_files_written_together_are_replaced_in_turn_the_first_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced: list[str] = []

    def replace(temporary: Path, path: Path) -> None:
        assert all((tmp_path / f".{name}.{os.getpid()}.tmp").exists() for name in {"a", "b", "c"} - {*replaced})
        temporary.rename(path)
        replaced.append(path.name)

    monkeypatch.setattr(Path, "replace", replace)
    write_together(tmp_path, {"a": "1", "b": "2", "c": "ß\n"})
    assert replaced == ["c", "b", "a"]
    assert (tmp_path / "c").read_bytes() == "ß\n".encode()
    assert names(tmp_path) == ["a", "b", "c"]


@pytest.mark.parametrize("n_synced", range(3))
def test_where_one_of_several_files_cannot_be_written_none_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_synced: int
) -> None:
    write_together(tmp_path, dict.fromkeys("abc", "old"))
    synced: list[int] = []

    def fsync(handle: int) -> None:
        if len(synced) == n_synced:
            raise FULL
        synced.append(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OutputError, match=f"cannot write .*{'abc'[n_synced]}"):
        write_together(tmp_path, dict.fromkeys("abc", "new"))
    assert {path.read_text("utf-8") for path in tmp_path.iterdir()} == {"old"}
    assert names(tmp_path) == ["a", "b", "c"]


@pytest.mark.parametrize("error", [FULL, RuntimeError("a bug"), KeyboardInterrupt()])
def test_failure_inside_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    expected = OutputError if isinstance(error, OSError) else type(error)

    def write_half() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"half of the n")
            raise error

    with pytest.raises(expected):
        write_half()
    assert (names(tmp_path), path.read_bytes()) == (["file.bin"], b"old")


@pytest.mark.parametrize(("owner", "name"), [(os, "fsync"), (Path, "replace"), (Path, "write_bytes")])
def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def full(*_: object) -> None:
        raise FULL

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        with pytest.raises(OutputError, match="No space left") as caught:
            write_bytes(path, b"new")
    assert str(path) in caught.value.what
    assert caught.value.exit_code == 1
    assert (names(tmp_path), path.read_bytes()) == (["file.bin"], b"old")


def test_content_is_synced_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.bin"
    seen: list[tuple[bool, int]] = []
    monkeypatch.setattr(os, "fsync", lambda fd: seen.append((path.exists(), os.fstat(fd).st_size)))
    write_bytes(path, b"12345")
    assert seen == [(False, 5)]


def test_parent_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    for path in (tmp_path / "file" / "child", tmp_path / "file" / "deeper" / "child"):
        with pytest.raises(OutputError) as caught:
            write_bytes(path, b"new")
        assert str(path) in str(caught.value)
        assert caught.value.fix.startswith("a part of the path is a file")
    assert (tmp_path / "file").read_bytes() == b"old"


@pytest.mark.skipif(os.name == "nt", reason="Windows has neither such links nor such permissions")
def test_a_link_and_the_permissions_stay(tmp_path: Path) -> None:
    old, link = tmp_path / "v1.bin", tmp_path / "current.bin"
    old.write_bytes(b"old")
    old.chmod(0o440)
    link.symlink_to("v1.bin")
    write_bytes(link, b"new")
    assert link.is_symlink()
    assert old.read_bytes() == b"new"
    assert old.stat().st_mode & 0o777 == 0o440
    assert journal_of(link) == tmp_path / "v1.journal.jsonl"
    with replacing(old, mode=0o600) as temporary:
        temporary.write_bytes(b"mine")
    assert old.stat().st_mode & 0o777 == 0o600


def test_target_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError):
        write_bytes(tmp_path / "folder", b"new")
    assert names(tmp_path) == ["folder"]


def test_a_folder_that_cannot_be_made_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    for path in (tmp_path / "file" / "out", tmp_path / "file" / "deeper" / "out"):
        with pytest.raises(OutputError, match="a part of the path is a file"):
            refuse_folder(path, overwrite=True)
    with pytest.raises(OutputError, match="a shorter name"):
        refuse_folder(tmp_path / "new" / ("a" * 300), overwrite=False)
    refuse_folder(tmp_path / "new" / "out", overwrite=False)
    for name in ("a" * 300, "a" * 250):  # the second is too long under its temporary name
        with pytest.raises(OutputError, match="a shorter name"):
            refuse_existing_file(tmp_path / name, overwrite=False)
        with pytest.raises(OutputError, match="a shorter name"):
            write_bytes(tmp_path / name, b"new")
    assert names(tmp_path) == ["file"], "trying leaves nothing behind"


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(**_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    (tmp_path / "out").mkdir()
    monkeypatch.setattr("tempfile.TemporaryFile", denied)
    for path in (tmp_path / "out", tmp_path / "new"):
        with pytest.raises(OutputError, match="a folder that you may write to"):
            refuse_folder(path, overwrite=False)
        with pytest.raises(OutputError, match="a folder that you may write to"):
            refuse_existing_file(path / "model.safetensors", overwrite=False)
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("number", "cure"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EACCES, "a folder that you may write to"),
        (errno.ENAMETOOLONG, "a shorter name"),
        (errno.EIO, "another folder"),
    ],
)
def test_the_cure_follows_the_cause(tmp_path: Path, number: int, cure: str) -> None:
    fix = cannot_write(tmp_path, OSError(number, os.strerror(number))).fix
    assert cure in fix
    assert ("space" in fix) == (number == errno.ENOSPC)


def test_error_without_a_text_still_says_something(tmp_path: Path) -> None:
    assert "odd" in str(cannot_write(tmp_path, OSError("odd")))


class Refusing:
    """An action that is refused a number of times."""

    def __init__(self, n_refusals: int) -> None:
        self.n_refusals, self.n_calls = n_refusals, 0

    def __call__(self) -> str:
        self.n_calls += 1
        if self.n_calls <= self.n_refusals:
            raise PermissionError(errno.EACCES, "held by another program")
        return "done"


def test_windows_refusals_are_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(files.time, "sleep", pauses.append)
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "name", "nt")
        action = Refusing(3)
        assert retried(action) == "done"
        assert (action.n_calls, len(pauses)) == (4, 3)
        hopeless = Refusing(99)
        with pytest.raises(PermissionError):
            retried(hopeless, attempts=5)
        assert hopeless.n_calls == 5


def test_elsewhere_a_refusal_is_final(monkeypatch: pytest.MonkeyPatch) -> None:
    action = Refusing(1)
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "name", "posix")
        with pytest.raises(PermissionError):
            retried(action)
    assert action.n_calls == 1
