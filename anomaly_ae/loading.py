"""Decoding in parallel, in order, in bounded memory; and the store of training images that crops are cut from."""

from __future__ import annotations

import functools
import multiprocessing
import os
import shutil
import signal
import tempfile
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Generator, Tensor

from anomaly_ae.errors import AnomalyAEError
from anomaly_ae.files import cannot_write
from anomaly_ae.manifest import renamed, slice_spacing_mm
from anomaly_ae.prepare import Prepared
from anomaly_ae.readers import read_channels, read_volume
from anomaly_ae.records import FloatArray, Image, PixelArray, Sample

S = TypeVar("S")
T = TypeVar("T")

SHARE_OF_SMALL = 0.05
"""At most so many images are smaller than the training crop: a few small ones must not narrow the view of all."""

SHARE_OF_MEMORY = 0.25
"""Training images that need more than this share of the free memory are kept in a file that is mapped instead."""

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
CGROUP_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Limit, use, and what of the use is cache that can be dropped (in memory.stat); of version 2 and of version 1."""

WIDER: dict[str, type[np.generic]] = {
    "uint16": np.int32,
    "uint32": np.int64,
    "uint64": np.float64,
    "float16": np.float32,
}
"""Types that torch cannot calculate with, and the next one that holds all their values."""


@dataclass(slots=True)
class _Readers:
    """The processes that decode, and how many they are; none at first."""

    n: int = 0
    pool: ProcessPoolExecutor | None = None


_readers = _Readers()


def n_workers() -> int:
    """Return how many threads decode, or wait for the processes that do."""
    return max(1, min(8, os.cpu_count() or 1), _readers.n)


def use_readers(n: int) -> None:
    """Decode single images in ``n`` processes of their own; 0: in threads of this one.

    Most decoders leave the interpreter lock, those of compressed DICOM files do not, and of those only one thread works
    at a time. A process takes up to 100 MiB and half a second to start. They are started anew, so a script that calls
    this needs ``if __name__ == "__main__":``.
    """
    if _readers.pool is not None:
        _readers.pool.shutdown(cancel_futures=True)
    spawn = multiprocessing.get_context("spawn")  # a forked process inherits locks that its threads held
    # Ctrl-C, which a terminal sends to all processes, is for this one. A function of this module would bring torch in.
    ignore = (signal.SIGINT, signal.SIG_IGN)
    _readers.pool = ProcessPoolExecutor(n, spawn, initializer=signal.signal, initargs=ignore) if n else None
    _readers.n = n


def use_threads(n: int | None) -> None:
    """Compute with ``n`` threads; None leaves the choice to torch, which takes one per core.

    The threads of a step wait for each other, so one that another process keeps off its core delays all of them: two
    trainings that share all cores can each be ten times slower than with half of the cores for each.
    """
    if n is not None:
        torch.set_num_threads(n)


def read_sample(sample: Sample) -> Image:
    """Read one manifest row: its channels, its frame, and its ``valid`` mask if it names one; or its volume.

    Raises
    ------
    UnreadableImageError, DataError
        In words without paths where the sample has a public name.
    """
    try:
        if sample.is_volume:
            return read_volume(sample.slices, slice_spacing_mm(sample), sample.id)
        image = _read_channels(sample.files, sample.frame, sample.valid)
    except AnomalyAEError as error:
        raise renamed(error, sample) from None
    return replace(image, source=sample.id, volume=sample.slices or image.volume)


def _read_channels(files: Sequence[Path], frame: int, valid: Path | None) -> Image:
    if _readers.pool is not None:
        try:
            return _readers.pool.submit(read_channels, files, frame, valid).result()
        except BrokenProcessPool:  # one was killed, for want of memory for example: the run goes on without them
            pass
    return read_channels(files, frame, valid)


def ahead(samples: Iterable[Sample]) -> int:
    """Return how many results may wait for `in_order`: one volume at a time is enough for the memory."""
    return 1 if any(sample.is_volume for sample in samples) else 0


def in_order(items: Iterable[S], work: Callable[[S], T], lookahead: int = 0) -> Iterator[tuple[S, T | AnomalyAEError]]:
    """Apply ``work`` to items in threads; yield ``(item, result)`` in order, expected errors as values.

    At most ``lookahead`` items (default: twice the threads) are drawn ahead. A generator may be slow, so what is
    finished is handed out before its next item is drawn. An error of its own is raised after the results of all items
    before it.
    """
    threads = n_workers()
    most, never_waits = lookahead or 2 * threads, isinstance(items, Collection)
    errors: list[Exception] = []

    def safely(item: S) -> T | AnomalyAEError:
        try:
            return work(item)
        except AnomalyAEError as error:
            return error

    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[S, Future[T | AnomalyAEError]]] = deque()
        try:
            for item in _until_error(items, errors):
                waiting.append((item, pool.submit(safely, item)))
                while waiting and (len(waiting) == most or (not never_waits and waiting[0][1].done())):
                    yield _first(waiting)
            while waiting:
                yield _first(waiting)
        finally:  # the consumer may stop early
            pool.shutdown(wait=True, cancel_futures=True)
    if errors:
        raise errors[0]


def _until_error(items: Iterable[S], errors: list[Exception]) -> Iterator[S]:
    """Yield the items; an error that drawing the next one raises ends them, and is kept."""
    try:
        for item in items:  # noqa: UP028  # "yield from" would close a generator that the caller may go on with
            yield item
    except Exception as error:
        errors.append(error)


def _first(waiting: deque[tuple[S, Future[T]]]) -> tuple[S, T]:
    item, future = waiting.popleft()
    return item, future.result()


def all_or_raise(results: Iterable[tuple[S, T | AnomalyAEError]]) -> Iterator[T]:
    """Yield the results of `in_order`; raise the first error."""
    for _, result in results:
        if isinstance(result, AnomalyAEError):
            raise result
        yield result


def torch_pixels(pixels: PixelArray) -> Tensor:
    """Return the same numbers in a type that torch calculates with; never fewer bits."""
    wider = WIDER.get(pixels.dtype.name)
    native = pixels.astype(wider) if wider else pixels
    return torch.from_numpy(np.array(native, order="C"))


class ImageStore:
    """Prepared images, decoded once: on the GPU or in memory when they fit, else in a file that is mapped.

    Parameters
    ----------
    images : iterable of (Prepared, limits)
        With the intensity limits (C, 2) of each image.
    n_images : int
        How many there will be, to know before the first is kept whether all fit.
    device : torch.device
    """

    def __init__(self, images: Iterable[tuple[Prepared, FloatArray]], n_images: int, device: torch.device) -> None:
        self.device = device
        self._spill: _Spill | None = None
        self._raw: list[Tensor] = []
        self._valid: list[Tensor | None] = []
        limits: list[FloatArray] = []
        n_bytes, room = 0, SHARE_OF_MEMORY * free_memory_bytes()
        for n_seen, (prepared, limit) in enumerate(images, start=1):
            raw = torch_pixels(prepared.pixels)
            n_bytes += raw.nbytes
            if self._spill is None and n_bytes / n_seen * n_images > room:
                self._spill = _Spill()
            (self._spill or self._raw).append(raw)
            self._valid.append(None if prepared.valid.all() else torch.from_numpy(prepared.valid[np.newaxis].copy()))
            limits.append(limit)
        self._raw += self._spill.tensors() if self._spill else []
        self.limits = torch.from_numpy(np.stack(limits))  # (n, C, 2)
        self._dtype = functools.reduce(torch.promote_types, {raw.dtype for raw in self._raw})
        self._move_to_gpu()

    def __len__(self) -> int:
        return len(self._raw)

    def __enter__(self) -> ImageStore:
        return self

    def __exit__(self, *_: object) -> None:
        """Forget the images and remove the mapped file, if there is one."""
        self._raw.clear()
        if self._spill is not None:
            self._spill.close()

    @property
    def is_mapped(self) -> bool:
        """Whether the images were too many for the memory."""
        return self._spill is not None

    def image(self, index: int) -> tuple[Tensor, Tensor]:
        """Return ``raw (C, *S)`` and ``valid (1, *S)`` of one image."""
        raw, valid = self._raw[index], self._valid[index]
        inside = torch.ones(1, *raw.shape[1:], dtype=torch.bool, device=raw.device) if valid is None else valid
        return raw, inside.to(raw.device)

    def crop_shape(self, crop_px: int, multiple: int) -> tuple[int, ...]:
        """Return the largest crop that fits all images but the smallest 5 %: at most ``crop_px``, by ``multiple``."""
        shapes = sorted((tuple(raw.shape[1:]) for raw in self._raw), key=min)
        smallest = np.min(shapes[int(SHARE_OF_SMALL * len(shapes)) :], axis=0)
        return tuple(max(multiple, int(min(crop_px, side)) // multiple * multiple) for side in smallest)

    def crops(self, n: int, crop_shape: Sequence[int], generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw crops from random images: raw (n, C, *crop), valid (n, 1, *crop), limits (n, C, 2), on the device.

        An image that is smaller is continued by its edge, as in `prepare`, where ``valid`` is False.
        """
        indices = torch.randint(0, len(self), (n,), generator=generator)
        where = torch.rand(n, len(crop_shape), generator=generator)
        raws = []
        valid = torch.ones(n, 1, *crop_shape, dtype=torch.bool, device=self.device)
        for number, (index, share) in enumerate(zip(indices.tolist(), where.tolist(), strict=True)):
            raw, inside = self._raw[index], self._valid[index]
            room = [max(1, side - crop + 1) for side, crop in zip(raw.shape[1:], crop_shape, strict=True)]
            starts = [int(s * r) for s, r in zip(share, room, strict=True)]
            cut = [slice(start, start + crop) for start, crop in zip(starts, crop_shape, strict=True)]
            part = raw[:, *cut]
            raws.append(_padded(part, crop_shape).to(self._dtype))
            if inside is not None or part.shape[1:] != raws[-1].shape[1:]:
                inside_crop = valid[number].fill_(False)
                filled = [slice(side) for side in part.shape[1:]]
                inside_crop[:, *filled] = True if inside is None else inside[:, *cut]
        return torch.stack(raws).to(self.device), valid, self.limits[indices].to(self.device)

    def _move_to_gpu(self) -> None:
        n_bytes = sum(raw.nbytes for raw in self._raw)
        if self.device.type == "cuda" and n_bytes < SHARE_OF_MEMORY * torch.cuda.mem_get_info(self.device)[0]:
            self._raw = [raw.to(self.device) for raw in self._raw]
            self._valid = [None if valid is None else valid.to(self.device) for valid in self._valid]


def _padded(cut: Tensor, shape: Sequence[int]) -> Tensor:
    """Fill a cut (C, *S) up to (C, *shape) with its edge, at the end of each axis."""
    for axis, side in enumerate(shape, start=1):
        n_missing = side - cut.shape[axis]
        if n_missing:
            edge = cut.narrow(axis, -1, 1).repeat_interleave(n_missing, axis)
            cut = torch.cat([cut, edge], dim=axis)
    return cut


class _Spill:
    """A temporary file that holds images one after the other; the system keeps in memory what it can."""

    def __init__(self) -> None:
        self._path = Path(tempfile.mkdtemp(prefix="anomaly_ae_")) / "images.raw"
        self.close = weakref.finalize(self, shutil.rmtree, self._path.parent, ignore_errors=True)
        self._places: list[tuple[int, Tensor]] = []  # first byte, and an empty tensor that knows type and shape

    def append(self, raw: Tensor) -> None:
        """Write a tensor at the end, aligned to 64 bytes."""
        try:
            with self._path.open("ab") as handle:
                self._places.append((handle.tell(), torch.empty_like(raw, device="meta")))
                raw.numpy().tofile(handle)
                handle.write(bytes(-raw.nbytes % 64))
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def tensors(self) -> list[Tensor]:
        """Return everything that was written. One mapping serves all: each would hold an open file of its own."""
        mapped = torch.from_numpy(np.memmap(self._path, np.uint8, mode="c"))
        return [mapped[start : start + m.nbytes].view(m.dtype).view(m.shape) for start, m in self._places]


def free_memory_bytes() -> int:
    """Return the memory that can be taken now: what the system has available, and what the limits of a container leave.

    4 GiB where neither is told, as on Windows and macOS. What the page cache holds counts as free.
    """
    found = [1024 * kib for kib in _numbers(PROC / "meminfo", "MemAvailable:")]
    for folder in _cgroups():
        for names in CGROUP_FILES:
            limit, used = (_numbers(folder / name) for name in names[:2])
            cache = _numbers(folder / "memory.stat", names[2])
            found += [most - now + sum(cache) for most, now in zip(limit, used, strict=False)]
    return max(0, min(found, default=4 * 2**30))


def _cgroups() -> list[Path]:
    """Return the folders that may limit this process: its control groups, version 2 and 1, and all above them."""
    try:
        lines = (PROC / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    fields = [line.split(":", 2) for line in lines]
    own = [Path(path.lstrip("/")) for _, kinds, path in fields if "memory" in kinds.split(",") or not kinds]
    return [root / above for path in own for root in (CGROUPS, CGROUPS / "memory") for above in (path, *path.parents)]


def _numbers(path: Path, name: str = "") -> list[int]:
    """Return the number of a file that holds one, or the one behind ``name``; nothing where none is told."""
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
        return [int(words[1 if name else 0]) for words in lines if not name or words[0] == name]
    except (OSError, ValueError, IndexError):  # not this system, or "max": no limit
        return []
