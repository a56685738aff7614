"""The gate in front of every reader: a regular file, whole, checked to its last byte, and no larger than it says.

The file is read once. A gzip stream, known by its first bytes and not by its name, is unpacked to the end of its
last member, so that length and CRC of each member are checked before any voxel is used. How much may come out is
asked of the header as soon as its bytes are there: a small file that unpacks to gigabytes is stopped at once.
"""

import os
import stat
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from itertools import chain
from math import prod
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from medmamba.compute.free_memory import free_memory
from medmamba.errors import InputError, ResourceError, size_text
from medmamba.geometry.grid import MOST_VOXELS

GZIP_MAGIC = b"\x1f\x8b"
DEFLATE_CEILING = 1032  # deflate cannot shrink data by more than this factor
EXTRA_BYTES_ALLOWED = 1 << 20  # behind the voxels; more is not padding but another content
_CHUNK = 1 << 20

NonFinite = Literal["error", "zero"]
Affines = Literal["sform", "qform"]
Packing = Literal["raw", "gzip", "zlib"]


@dataclass(frozen=True)
class ReadOptions:
    """What is accepted when a file or a case is read.

    Args:
        nonfinite: "zero" sets NaN and infinite voxels to 0 and counts them; otherwise they are an error.
        prefer: which affine of a NIfTI header to take when its two contradict each other; None: that is an error.
        max_voxels: most voxels times channels of one file.
        any_spacing: also accept spacings outside 0.01 to 100 mm, as in microscopy.
        match_labels: accept a label map that covers the same voxels of the world as its image with its axes in another
            order or direction; it is brought onto the image's grid without interpolation, with a warning.
    """

    nonfinite: NonFinite = "error"
    prefer: Affines | None = None
    max_voxels: int = MOST_VOXELS
    match_labels: bool = False
    any_spacing: bool = False

    @classmethod
    def of(cls, reading: object) -> "ReadOptions":
        """From a record with the same fields, such as ``reading`` of a plan."""
        return cls(**{field.name: getattr(reading, field.name) for field in fields(cls)})


@dataclass
class Container:
    """The bytes of a file behind the gate: ``data`` (uint8), whether they were packed, and warnings."""

    data: npt.NDArray[np.uint8]
    packed: bool
    warnings: list[str]


def shown(text: str | os.PathLike[str]) -> str:
    """A name fit for one line of a terminal: control characters escaped."""
    text = os.fspath(text)
    return text if text.isprintable() else text.encode("unicode_escape", "backslashreplace").decode()


def brief(text: str | os.PathLike[str], most: int = 60) -> str:
    """A name for a message: shown, and shortened in the middle when it is long."""
    name = shown(text)
    return name if len(name) <= most else f"{name[: most - 20]}…{name[-19:]}"


def open_regular(path: Path | str, where: str | None = None) -> tuple[BinaryIO, int]:
    """Opens a regular file (a link to one is fine) without ever waiting; returns it with its size in bytes."""
    where = where or shown(path)
    try:
        # Without O_NONBLOCK, opening a named pipe would block until somebody writes.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        if os.path.islink(path):
            raise InputError(f"{where}: a link to a file that does not exist. Mend the link or remove it.") from None
        raise InputError(f"{where}: no such file. Check the name.") from None
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise InputError(f"{where}: cannot be opened: {reason}. Check the path and its permissions.") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        kind = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
        what = kind.get(stat.S_IFMT(status.st_mode), "a device")
        raise InputError(f"{where}: {what}, not a file. Give the path of an image file.")
    if status.st_size == 0:
        os.close(descriptor)
        raise InputError(f"{where}: the file is empty (0 bytes). Copy it again from its source.")
    return os.fdopen(descriptor, "rb"), status.st_size


def read_container(path: Path, size_of: Callable[[bytes], int], *, head: int, where: str) -> Container:
    """Reads a plain or gzipped file whose length its own header announces.

    ``size_of`` takes the first ``head`` unpacked bytes (fewer if the file ends before), checks the header, and returns
    the length in bytes that the whole content must have. ``where`` names the file in errors.

    Raises InputError if it is not a regular file, truncated, damaged, or much longer than its header says, and
    ResourceError when the announced size exceeds the free memory.
    """
    file, file_size = open_regular(path, where)
    with file:
        return _read(file, file_size, size_of, head, where, None)


def read_block(file: BinaryIO, file_size: int, expected: int, where: str, packing: Packing) -> Container:
    """The rest of an open file, behind a text header, as ``expected`` bytes of voxels."""
    return _read(file, file_size, lambda _: expected, 0, where, packing)


def read_small(path: Path | str, limit: int, where: str | None = None) -> bytes:
    """The bytes of a small regular file; an error when it has more than ``limit``."""
    where = where or shown(path)
    file, size = open_regular(path, where)
    with file:
        if size > limit:
            raise InputError(
                f"{where}: {size} bytes, where at most {limit} are expected. Check that it is the right file."
            )
        return file.read(limit + 1)


def check_memory(needed: int, where: str) -> None:
    """Refuses work that needs more bytes than are free, before anything is allocated."""
    free = free_memory()
    if free is not None and needed > free:
        raise ResourceError(
            f"{where}: reading it needs about {size_text(needed)} and {size_text(free)} of memory are free. "
            "Close other programs, crop or resample the image, or use a larger machine."
        )


def _read(
    file: BinaryIO, file_size: int, size_of: Callable[[bytes], int], head: int, where: str, packing: Packing | None
) -> Container:
    """The rest of an open file, whose length ``size_of`` takes from its first ``head`` bytes; None: packed or not."""
    begin = file.tell()
    notes: list[str] = []
    try:
        if packing is None:
            packing = "gzip" if file.read(len(GZIP_MAGIC)) == GZIP_MAGIC else "raw"
            file.seek(begin)
        packed = packing != "raw"
        pieces = _unpacked(file, where, packing, notes) if packed else iter(partial(file.read, _CHUNK), b"")
        start = b""
        while len(start) < head and (piece := next(pieces, b"")):
            start += piece
        expected = size_of(start[:head])
        if not packed and file_size - begin < expected:
            raise _too_short(where, file_size - begin, expected)
        if expected > file_size * DEFLATE_CEILING + head:
            raise InputError(
                f"{where}: its header announces {expected} bytes, more than {file_size} packed bytes can hold. "
                "The header is damaged, or the file was cut off; copy it again from its source."
            )
        check_memory(expected, where)
        data = np.empty(expected, dtype=np.uint8)
        filled = 0  # bytes that came out
        for piece in chain((start,), pieces):
            kept = piece[: max(0, expected - filled)]
            data[filled : filled + len(kept)] = np.frombuffer(kept, dtype=np.uint8)
            filled += len(piece)
            if not packed and filled >= expected:
                filled = file_size - begin  # what follows need not be read
                break
            if filled > expected + EXTRA_BYTES_ALLOWED:
                raise InputError(
                    f"{where}: unpacks to far more than the {expected} bytes that its header announces. "
                    "The header is damaged; export the image again."
                )
        if filled < expected:
            raise _too_short(where, filled, expected)
        if filled > expected:
            notes = [f"{where}: {filled - expected} bytes behind the last voxel were ignored.", *notes]
        return Container(data, packed, notes)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"{where}: cannot be read: {reason}. Check the disk it is on.") from None


def _unpacked(file: BinaryIO, where: str, packing: Packing, notes: list[str]) -> Iterator[bytes]:
    """Pieces of at most 1 MiB, to the end of the last member; data after it are reported in ``notes``."""
    bits = 31 if packing == "gzip" else 15  # both verify checksums
    decoder = zlib.decompressobj(bits)
    came_out = 0
    pending = b""
    try:
        while pending or (pending := file.read(_CHUNK)):
            if decoder.eof:  # another member, padding, or rubbish
                if len(pending) < 2:
                    pending += file.read(_CHUNK)
                if packing != "gzip" or not pending.startswith(GZIP_MAGIC):
                    if trailing := len((pending + file.read()).lstrip(b"\0")):
                        notes.append(
                            f"{where}: {trailing} bytes that are not packed data follow the image and were ignored."
                        )
                    break
                decoder = zlib.decompressobj(bits)
            piece = decoder.decompress(pending, _CHUNK)
            pending = decoder.unused_data if decoder.eof else decoder.unconsumed_tail
            if piece:
                came_out += len(piece)
                yield piece
    except zlib.error as error:
        reason = "its checksum (CRC) does not fit" if "check" in str(error) else "the packed data are damaged"
        raise InputError(f"{where}: {reason} ({packing}). Copy it again from its source.") from None
    if not decoder.eof:
        raise InputError(
            f"{where}: cut off: the packed data end in the middle, after {came_out} unpacked bytes. "
            "Copy it again from its source."
        )


def check_size(dims: tuple[int, ...], where: str, max_voxels: int) -> None:
    """Refuses a shape that cannot be, one that is a single voxel, and one above the limit; nothing is allocated."""
    if not dims or min(dims) < 1:
        raise InputError(f"{where}: its header says a shape of {dims}: each must be at least 1. It is damaged.")
    if prod(dims) > max_voxels:
        raise InputError(
            f"{where}: its header announces {'x'.join(map(str, dims))} = {prod(dims)} voxels, above the limit of "
            f"{max_voxels}. If that is true, raise the limit (max_voxels); else the header is damaged."
        )
    if prod(dims[:3]) == 1:
        raise InputError(f"{where}: a single voxel, shape {dims}. Give a whole image.")


def _too_short(where: str, found: int, expected: int) -> InputError:
    return InputError(
        f"{where}: cut off: {found} bytes where its header announces {expected}. Copy it again from its source, "
        "or export the image again."
    )
