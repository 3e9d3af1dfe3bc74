"""What every image reader shares: limits, opening a file, a decoder's failure as one clear error."""

from __future__ import annotations

import logging
import math
import re
import struct
import sys
import threading
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from anomaly_ae.errors import AnomalyAEError, UnreadableImageError
from anomaly_ae.records import PixelArray
from anomaly_ae.words import n_of, times

MAX_FRAMES = 100_000
"""A damaged header may claim thousands of millions of frames, and each becomes a row."""

MAX_PIXELS = 2**28
"""Most samples (height x width x channels) of one image: 268 million, 512 MiB at 16 bits."""

_HEAD_BYTES = 512  # tell what kind of file it is
_LINE_CHARACTERS = 200  # of what a library says of a file
_MOST_BYTES = 4 * MAX_PIXELS  # that deflated data may become: an image of so many samples of 32 bits
_LZMA_PIECE, _MOST_PIECE = 2**16, 2**24  # bytes of xz, of which one becomes 7,000; and unpacked at once
_PIECE = 2**18  # deflated bytes, which become 258 MiB at most (zlib, technical details: 1032 to 1)

_PYTHON_ERRORS = (LookupError, TypeError, struct.error)  # decoders let them happen: "'<' not supported between ..."

COPY_AGAIN = "copy the file again from where it came, or leave it out"


def check_size(name: str, shape: Sequence[int]) -> None:
    """Refuse an empty image and one too large to be true, before memory is taken for it.

    Parameters
    ----------
    name : str
        What the message calls the image.
    shape : sequence of int
        Declared lengths of all axes.

    Raises
    ------
    UnreadableImageError
        An axis shorter than 1, or more than `MAX_PIXELS` samples.
    """
    text = times(shape)
    if min(shape) < 1:
        raise UnreadableImageError(f"{name}: declares {text} samples", "an axis is empty", COPY_AGAIN)
    if math.prod(shape) > MAX_PIXELS:
        raise UnreadableImageError(
            f"{name}: declares {text} samples",
            f"more than the {MAX_PIXELS:,} that one image may have",
            "cut the image into parts or reduce it; a damaged header can also be the cause",
        )


def check_inflated_size(name: str, data: bytes, wbits: int = zlib.MAX_WBITS, is_lzma: bool = False) -> None:
    """Refuse deflated data too large to be true; a decoder that knows no size beforehand inflates any amount.

    Parameters
    ----------
    name : str
        What the message calls the image.
    data : bytes
        One whole deflated part. Little data, which cannot become much, is not inflated here.
    wbits : int
        As zlib has it: -15 for data without zlib's header.
    is_lzma : bool
        The data are in the format of xz instead.

    Raises
    ------
    UnreadableImageError
        More than 4 bytes for each of `MAX_PIXELS` samples.
    """
    if len(data) <= (_LZMA_PIECE if is_lzma else _PIECE):
        return
    n_bytes = 0
    for piece in _unpacked(data) if is_lzma else _inflated(data, wbits):
        n_bytes += len(piece)
        if n_bytes > _MOST_BYTES:
            raise UnreadableImageError(
                f"{name}: {len(data):,} deflated bytes become more than {_MOST_BYTES:,}",
                f"one image may have {MAX_PIXELS:,} samples",
                "save it uncompressed, in parts or reduced; a damaged file can also be the cause",
            )


def _inflated(data: bytes, wbits: int) -> Iterator[bytes]:
    inflater = zlib.decompressobj(wbits)
    for start in range(0, len(data), _PIECE):
        yield inflater.decompress(data[start : start + _PIECE])
        if inflater.eof:
            return


def _unpacked(data: bytes) -> Iterator[bytes]:
    import lzma

    unpacker = lzma.LZMADecompressor()
    yield unpacker.decompress(data, _MOST_PIECE)
    while not unpacker.eof and not unpacker.needs_input:
        yield unpacker.decompress(b"", _MOST_PIECE)


def check_frame(name: str, frame: int, n_frames: int) -> None:
    """Refuse a frame that the file does not have; frames count from 0.

    Raises
    ------
    UnreadableImageError
        `frame` is negative or not below `n_frames`, or there are more than `MAX_FRAMES`.
    """
    if n_frames > MAX_FRAMES:
        raise UnreadableImageError(
            f"{name}: claims to hold {n_frames} frames", f"at most {MAX_FRAMES} are read", "cut it into pieces"
        )
    if not 0 <= frame < n_frames:
        raise UnreadableImageError(
            f"{name}: has no frame {frame}",
            f"the file holds {n_of(n_frames, 'frame')}",
            f"ask for 0 to {n_frames - 1}" if n_frames > 0 else COPY_AGAIN,
        )


def file_head(path: Path, name: str) -> bytes:
    """Return the first bytes of a file; a file that cannot be opened or is empty is one clear error.

    Raises
    ------
    UnreadableImageError
        Missing, a folder, not permitted, not readable, or empty.
    """
    try:
        if path.is_dir():
            raise UnreadableImageError(f"{name}: is a folder", "one image file was expected", "name a file in it")
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except FileNotFoundError as error:
        raise UnreadableImageError(
            f"{name}: no such file", "", "check the path; paths in a CSV are relative to it"
        ) from error
    except PermissionError as error:
        raise UnreadableImageError(
            f"{name}: may not be read", "permission denied", "change the file's permissions"
        ) from error
    except (OSError, ValueError) as error:
        raise UnreadableImageError(f"{name}: cannot be opened", one_line(error, without=name)) from error
    if not head:
        raise UnreadableImageError(f"{name}: is empty", "0 bytes", COPY_AGAIN)
    return head


@contextmanager
def decoding(name: str, kind: str, quote: bool = True) -> Iterator[None]:
    """Keep a decoder's warnings in, and turn whatever it raises into one `UnreadableImageError`.

    Parameters
    ----------
    name : str
        What messages call the image.
    kind : str
        What is decoded: "PNG file".
    quote : bool
        Whether the library's own message is shown, on one line. False where it may hold header values: then
        only the kind of the exception is named, as for errors that no library worded, and it is not chained.

    Raises
    ------
    UnreadableImageError
        In place of any exception that is not one of ours.
    """
    try:
        with _silence():
            yield
    except AnomalyAEError:
        raise
    except MemoryError as error:
        raise UnreadableImageError(
            f"{name}: not enough memory to decode this {kind}", "", "free memory or reduce the image"
        ) from error
    except Exception as error:
        why = f"its parts contradict each other, {type(error).__name__}"
        if quote and not isinstance(error, _PYTHON_ERRORS):  # words for people
            why = one_line(error, without=name)
        what = f"{name}: damaged or unsupported {kind}"
        raise UnreadableImageError(what, why, COPY_AGAIN) from (error if quote else None)


def native(pixels: PixelArray) -> PixelArray:
    """Return the same numbers in this machine's byte order."""
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


def one_line(error: BaseException, without: str = "") -> str:
    """Return an exception's message on one line of limited length, the same in every run, `without` a file's path.

    >>> one_line(OSError("cannot\\n  identify <_io.BytesIO object at 0x7f0a12>"))
    'cannot identify <_io.BytesIO object>'
    """
    said = str(error).replace(without, "the file") if without else str(error)
    text = " ".join(re.sub(r" at 0x[0-9a-fA-F]+", "", said).split()) or type(error).__name__
    return text if len(text) <= _LINE_CHARACTERS else text[: _LINE_CHARACTERS - 3] + "..."


_silence_lock = threading.Lock()
_inside: set[object] = set()
_undo = ExitStack()


@contextmanager
def _silence() -> Iterator[None]:
    # `warnings.catch_warnings` alone is not safe in threads: left in another order than entered, it
    # changes the filters for good. So the first one in saves them, and the last one out restores them.
    token = object()
    with _silence_lock:
        if not _inside:
            _enter_silence()
        _inside.add(token)
    try:
        yield
    finally:
        with _silence_lock:
            _inside.remove(token)
            if not _inside:
                _undo.close()


def _enter_silence() -> None:
    _undo.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore")
    for name in ("pydicom", "tifffile", "nibabel.global"):  # pydicom logs header values; the others write to stderr
        logger = logging.getLogger(name)
        _undo.callback(setattr, logger, "disabled", logger.disabled)
        logger.disabled = True
    if "highdicom" not in sys.modules:
        return
    written = logging.getLogger("highdicom")  # warns of a name that it finds odd, with the name
    _undo.callback(written.setLevel, written.level)
    written.setLevel(logging.CRITICAL + 1)
