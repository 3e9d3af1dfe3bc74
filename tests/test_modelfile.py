"""The model file: what was written is read, and whatever was changed, cut or made elsewhere is refused by name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from anomaly_ae import modelfile
from anomaly_ae.errors import ModelFileError, OutputError
from anomaly_ae.modelfile import FORMAT, ZEROS, read_tensors, tensors_sha256, write_tensors

VALUES: dict[str, Any] = {"text": 'ß "sha256":"' + "1" * 64 + '"', "list": [1, 2.5, None, True], "nested": {"a": {}}}


def some_tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "weights": torch.randn(3, 2, generator=generator),
        "scores": torch.randn(5, generator=generator, dtype=torch.float64),
        "groups": torch.arange(4),
        "n": torch.tensor(7),
        "mask": torch.tensor([True, False]),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "empty": torch.empty(0, 4),
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_tensors(tmp_path / "model.safetensors", some_tensors(), VALUES, "model")
    return tmp_path / "model.safetensors"


def refusal(path: Path, kind: str = "model") -> str:
    """The message of the error, which always names the file."""
    with pytest.raises(ModelFileError) as caught:
        read_tensors(path, kind)
    assert str(path) in caught.value.what
    return str(caught.value)


def header_length(content: bytes) -> int:
    return int.from_bytes(content[:8], "little")


def signed(metadata: dict[str, str]) -> bytes:
    """A file with a right digest and any header: what a foreign or later version could write."""
    content = save(some_tensors(), metadata={**metadata, "sha256": ZEROS.decode()})
    return content.replace(ZEROS, hashlib.sha256(content).hexdigest().encode())


# --- there and back ---


def test_there_and_back(tmp_path: Path) -> None:
    before = some_tensors()
    written = write_tensors(tmp_path / "new" / "model.safetensors", before, VALUES, "model")
    after, values, digest = read_tensors(tmp_path / "new" / "model.safetensors", "model")
    assert values == VALUES
    assert digest == written
    assert {k: (v.dtype, v.shape) for k, v in after.items()} == {k: (v.dtype, v.shape) for k, v in before.items()}
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_digest_is_over_the_file_with_its_own_digits_zeroed(path: Path) -> None:
    content, digest = path.read_bytes(), read_tensors(path, "model")[2]
    assert content.count(digest.encode()) == 1
    assert hashlib.sha256(content.replace(digest.encode(), ZEROS)).hexdigest() == digest


def test_memory_format_does_not_matter(tmp_path: Path) -> None:
    plain = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    write_tensors(tmp_path / "a", {"w": plain.to(memory_format=torch.channels_last)}, {}, "model")
    assert torch.equal(read_tensors(tmp_path / "a", "model")[0]["w"], plain)


def test_what_is_no_json_is_a_bug_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_tensors(tmp_path / "model", some_tensors(), {"loss": float("nan")}, "model")
    assert list(tmp_path.iterdir()) == []


def test_unwritable_place(path: Path) -> None:
    with pytest.raises(OutputError):
        write_tensors(path / "child", some_tensors(), {}, "model")
    read_tensors(path, "model")


# --- damage ---


def test_every_single_changed_byte_is_noticed(path: Path) -> None:
    content = path.read_bytes()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        refusal(path)


@pytest.mark.parametrize("change", [lambda b: b ^ 0x80, lambda _: 0, lambda _: ord("f"), lambda _: ord('"')])
def test_other_changes_of_a_byte_are_noticed(path: Path, change: Callable[[int], int]) -> None:
    content = path.read_bytes()
    digest = content.index(read_tensors(path, "model")[2].encode())
    positions = [*range(16), *range(digest - 12, digest + 66), *range(16, len(content), 23), len(content) - 1]
    n_changed = 0
    for position in positions:
        damaged = bytearray(content)
        damaged[position] = change(damaged[position])
        if damaged != content:
            n_changed += 1
            path.write_bytes(damaged)
            refusal(path)
    assert n_changed > len(positions) / 2


def test_change_is_called_damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "damaged" in refusal(path)


def test_every_cut_is_noticed(path: Path) -> None:
    content = path.read_bytes()
    end = 8 + header_length(content)
    for length in [*range(20), end // 2, end - 1, end, end + 1, len(content) - 8, len(content) - 1]:
        path.write_bytes(content[:length])
        refusal(path)


def test_appended_bytes_are_noticed(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")
    assert "damaged" in refusal(path)


def test_swapped_digests_are_noticed(path: Path, tmp_path: Path) -> None:
    other = write_tensors(tmp_path / "other", some_tensors(), {}, "model")
    content = path.read_bytes().replace(read_tensors(path, "model")[2].encode(), other.encode())
    path.write_bytes(content)
    assert "damaged" in refusal(path)


# --- foreign files ---


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 8,
        b"path,label\na.png,normal\n" * 20,
        b"\x89PNG\r\n\x1a\n" + b"\0" * 100,
        b"PK\x03\x04" + b"\0" * 100,  # what torch.save writes
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"{}",
        (20).to_bytes(8, "little") + b'{"__metadata__":[1]}',
        (4).to_bytes(8, "little") + b"\xff\xfe\xfd\xfc",
        (100_000).to_bytes(8, "little") + b"[" * 100_000,
        (2**64 - 1).to_bytes(8, "little") + b"{}",
    ],
    ids=lambda content: repr(content[:12]),
)
def test_no_model_at_all(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    refusal(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_foreign_safetensors(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "foreign.safetensors"
    path.write_bytes(save(some_tensors(), metadata=metadata))
    assert "no anomaly_ae model" in refusal(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert "cannot read" in refusal(tmp_path / "nowhere.safetensors")
    refusal(tmp_path)


def test_other_format_names_both_numbers(tmp_path: Path) -> None:
    path = tmp_path / "later.safetensors"
    path.write_bytes(signed({"format": str(FORMAT + 1), "kind": "model", "anomaly_ae": "{}"}))
    message = refusal(path)
    assert f"format {FORMAT + 1}" in message
    assert f"format {FORMAT}" in message.replace(f"format {FORMAT + 1}", "")
    path.write_bytes(signed({"format": str(FORMAT), "kind": "model", "anomaly_ae": "{}"}))
    assert read_tensors(path, "model")[1] == {}  # the format alone was the reason


def test_kinds_are_not_mixed_up(path: Path, tmp_path: Path) -> None:
    message = refusal(path, "checkpoint")
    assert "is a model" in message
    assert "checkpoint is needed" in message
    write_tensors(tmp_path / "c", some_tensors(), {}, "checkpoint")
    assert "is a checkpoint" in refusal(tmp_path / "c")


def test_header_that_is_no_json_inside(tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    path.write_bytes(signed({"format": str(FORMAT), "kind": "model", "anomaly_ae": "{broken"}))
    refusal(path)


def test_numbers_of_a_type_that_torch_does_not_know(tmp_path: Path) -> None:
    metadata = {"format": str(FORMAT), "kind": "model", "anomaly_ae": "{}", "sha256": ZEROS.decode()}
    tensor = {"dtype": "F8_E8M0", "shape": [1], "data_offsets": [0, 1]}
    header = json.dumps({"__metadata__": metadata, "weights": tensor}, separators=(",", ":")).encode()
    content = len(header).to_bytes(8, "little") + header + b"\0"
    path = tmp_path / "odd.safetensors"
    path.write_bytes(content.replace(ZEROS, hashlib.sha256(content).hexdigest().encode()))
    assert "F8_E8M0" in refusal(path)


# --- sizes are checked before memory is taken ---


def test_too_large_a_file_is_not_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = path.stat().st_size

    def read_bytes(_: Path) -> bytes:
        raise AssertionError("read")

    monkeypatch.setattr(modelfile, "MAX_BYTES", size - 1)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", read_bytes)
        assert str(size) in refusal(path)
    monkeypatch.setattr(modelfile, "MAX_BYTES", size)
    read_tensors(path, "model")


def test_too_large_a_header_is_not_parsed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    length = header_length(path.read_bytes())

    def loads(*_: object) -> object:
        raise AssertionError("parsed")

    monkeypatch.setattr(modelfile, "MAX_HEADER_BYTES", length - 1)
    with monkeypatch.context() as patch:
        patch.setattr(json, "loads", loads)
        refusal(path)
    monkeypatch.setattr(modelfile, "MAX_HEADER_BYTES", length)
    read_tensors(path, "model")


# --- the hash of tensors ---


def test_hash_does_not_depend_on_order_or_memory_format() -> None:
    tensors = some_tensors() | {"image": torch.arange(24.0).reshape(1, 2, 3, 4)}
    turned = dict(reversed(tensors.items()))
    turned["image"] = turned["image"].to(memory_format=torch.channels_last)
    assert list(turned) != list(tensors)
    assert tensors_sha256(turned) == tensors_sha256(tensors)


def test_hash_sees_every_value_shape_type_and_name() -> None:
    tensors = some_tensors()
    hashes = {tensors_sha256(tensors)}
    changes: list[dict[str, Tensor]] = [
        {"weights": tensors["weights"].reshape(2, 3)},
        {"groups": tensors["groups"].to(torch.int32)},
        {"groups": tensors["groups"].view(torch.float64)},  # the same bytes
        {"empty": torch.empty(4, 0)},
        {"another": torch.empty(0)},
        {"n": torch.tensor([7])},
        {"half": torch.tensor([1, 1, 1.0078125], dtype=torch.bfloat16)},
        {"mask": ~tensors["mask"]},
    ]
    for index in range(tensors["scores"].numel()):
        scores = tensors["scores"].clone()
        scores[index] = torch.nextafter(scores[index], torch.tensor(torch.inf, dtype=torch.float64))
        changes.append({"scores": scores})
    hashes |= {tensors_sha256(tensors | change) for change in changes}
    renamed = {("score" if name == "scores" else name): tensor for name, tensor in tensors.items()}
    hashes.add(tensors_sha256(renamed))
    assert len(hashes) == len(changes) + 2


def test_hash_survives_the_file(path: Path) -> None:
    assert tensors_sha256(read_tensors(path, "model")[0]) == tensors_sha256(some_tensors())
