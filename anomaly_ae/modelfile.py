"""The model file: one ``.safetensors`` with tensors and, in its header, JSON text. No pickle anywhere.

The header holds ``sha256``: the SHA-256 of the whole file with that field's 64 digits set to zero. A file that was
cut or has one byte changed is refused before anything in it is used.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anomaly_ae.errors import ModelFileError
from anomaly_ae.files import parse_tensors, read_at_most, write_bytes

FORMAT = 2
"""2: several members, and settings that versions for format 1 do not know. Files of format 1 are still read."""

READABLE_FORMATS = ("1", "2")
MAX_BYTES = 4 * 2**30
MAX_HEADER_BYTES = 64 * 2**20
ZEROS = b"0" * 64
DIGEST = re.compile(rb'"sha256":"([0-9a-f]{64})"')


def write_tensors(path: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any], kind: str) -> str:
    """Write tensors and JSON values atomically; return the SHA-256.

    Parameters
    ----------
    kind : str
        "model" or "checkpoint"; checked on reading.
    """
    from safetensors.torch import save

    header = {
        "format": str(FORMAT),
        "kind": kind,
        "sha256": ZEROS.decode(),
        "anomaly_ae": json.dumps(values, sort_keys=True, allow_nan=False),
    }
    content = _in_order(save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata=header))
    digest = hashlib.sha256(content).hexdigest()
    write_bytes(path, _replace_digest(content, digest.encode()))
    return digest


def read_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Read what `write_tensors` wrote: tensors, JSON values, SHA-256.

    Raises
    ------
    ModelFileError
        Missing, damaged, foreign, too large, or of another format or kind.
    """
    try:
        content = read_at_most(path, MAX_BYTES)
    except OSError as error:
        raise ModelFileError(f"cannot read {path}", error.strerror or str(error), "check the path") from error
    header = _header(path, content)
    if "anomaly_ae" not in header:
        raise ModelFileError(
            f"{path} is no anomaly_ae {kind}", "its header does not say so", "give the file that fit wrote"
        )
    if header.get("format") not in READABLE_FORMATS:
        raise ModelFileError(
            f"{path} has format {header.get('format')}",
            f"this version reads up to format {FORMAT}",
            "use a matching version",
        )
    digest = str(header.get("sha256"))
    if hashlib.sha256(_replace_digest(content, ZEROS)).hexdigest() != digest:
        raise ModelFileError(
            f"{path} is damaged", "its SHA-256 does not match its content", "copy it again, or fit again"
        )
    if header.get("kind") != kind:
        raise ModelFileError(f"{path} is a {header.get('kind')}", f"a {kind} is needed", "give the other file")
    try:
        return parse_tensors(content), json.loads(header["anomaly_ae"]), digest
    except ValueError as error:
        raise ModelFileError(f"{path} cannot be read", str(error), "fit again") from error


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of names, shapes and values that does not depend on how a file orders them."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{array.dtype}:{tuple(array.shape)};".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes() if array.numel() else b"")
    return digest.hexdigest()


def tensors_below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with the prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _header(path: Path, content: bytes) -> dict[str, str]:
    """Parse the JSON header by hand: nothing is trusted before the digest was checked."""
    damaged = ModelFileError(
        f"{path} is no model file", "it is cut, empty or of another kind", "copy it again, or fit again"
    )
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > min(MAX_HEADER_BYTES, len(content) - 8):
        raise damaged
    try:
        header = json.loads(content[8 : 8 + length])
        metadata = header.get("__metadata__", {})
    except (ValueError, AttributeError, RecursionError) as error:
        raise damaged from error
    return metadata if isinstance(metadata, dict) else {}


def _in_order(content: bytes) -> bytes:
    """Sort the header's own values: the library writes them in random order, but the same model is the same file."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return content[:8] + text.ljust(length) + content[8 + length :]


def _replace_digest(content: bytes, digest: bytes) -> bytes:
    """Set the 64 digits of the header's own ``sha256`` field."""
    length = int.from_bytes(content[:8], "little")
    match = DIGEST.search(content, 8, 8 + length)
    if match is None:
        return content  # no such field: the digest will not match
    return content[: match.start(1)] + digest + content[match.end(1) :]
