"""NIfTI-1 and NIfTI-2, plain or gzipped: read behind the gate, written on the grid of another image.

A mask gets the header of the image it belongs to, geometry only, bit for bit: dimensions, spacing, both affines with
their codes and quaternions, units, byte order. It is read again through the same gate before it gets its name.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from medmamba.atomic import write_atomically
from medmamba.errors import InputError, ResourceError
from medmamba.geometry import Grid
from medmamba.images.gate import Limits, check_memory, read_container, shown
from medmamba.images.image import LabelMap, MedicalImage, smallest_type
from medmamba.images.nifti_header import (
    CODE_OF,
    HEAD_BYTES,
    NUMBERS,
    NiftiHeader,
    Prefer,
    fresh_header,
    parse_header,
    read_grid,
)
from medmamba.images.voxels import NonFinite, Stored, intensities, whole_numbers

ENDINGS = (".nii.gz", ".nii")


@np.errstate(all="ignore")  # nonsense in a header overflows quietly and is refused by name
def read_image(
    path: Path | str,
    *,
    nonfinite: NonFinite = "error",
    prefer: Prefer | None = None,
    limits: Limits | None = None,
    where: str | None = None,
) -> MedicalImage:
    """The image in a NIfTI file, with each step of a fourth axis as a channel.

    Args:
        nonfinite: "zero" sets NaN and infinite voxels to 0 and counts them; otherwise they are an error.
        prefer: which affine to take when the header's two contradict each other.
        where: how errors call the file; its path if not given.

    Raises:
        InputError: the file, its header, its geometry or its voxels cannot be used; the message says why.
    """
    where = where or shown(path)
    limits = limits or Limits()
    header, stored, warnings = _read(path, where, limits, prefer)
    grid, known, odd = read_grid(header, where, limits)
    check_memory(stored.size * 4, where)
    array, constant, replaced = intensities(stored, header.slope, header.inter, where, nonfinite)
    if replaced:
        odd.append(f"{where}: {replaced} voxels were NaN or infinite and are zero now.")
    if constant:
        odd.append(f"{where}: all voxels have the same value{_of_channels(constant, len(array))}.")
    return MedicalImage(array, grid, header, Path(path), (*warnings, *odd), constant, known, replaced)


@np.errstate(all="ignore")
def read_label_map(
    path: Path | str, *, prefer: Prefer | None = None, limits: Limits | None = None, where: str | None = None
) -> LabelMap:
    """The label map in a NIfTI file, its values checked to be whole numbers before anything is cast."""
    where = where or shown(path)
    limits = limits or Limits()
    header, stored, warnings = _read(path, where, limits, prefer)
    if header.channels > 1:
        raise InputError(f"{where}: {header.channels} channels; a label map has one. Give one label map per case.")
    grid, _, odd = read_grid(header, where, limits)
    labels, rounded = whole_numbers(stored[0], header.slope, header.inter, where)
    return LabelMap(labels, grid, header, Path(path), (*warnings, *odd, *rounded))


def write_label_map(path: Path | str, labels: npt.NDArray[Any], like: MedicalImage | LabelMap | Grid) -> None:
    """Writes whole numbers (i, j, k) on the grid of ``like``, in the smallest unsigned type that holds them.

    Raises:
        ValueError: the array does not fit the grid, or is not made of whole numbers from 0 on.
        ResourceError: the disk is full or damaged; nothing is left behind.
    """
    labels, header = np.asarray(labels), _header_of(like)
    if labels.dtype.kind not in "iub":
        raise ValueError(f"Labels are whole numbers, not {labels.dtype}.")
    if labels.shape != header.shape:
        raise ValueError(f"Labels of shape {labels.shape} do not lie on a grid of {header.shape}.")
    low, high = int(labels.min()), int(labels.max())
    if low < 0:
        raise ValueError(f"A label map for output holds values from 0 on, not {low}.")
    dims = header.dims[:3] if header.channels > 1 else header.dims
    stored = labels.astype(smallest_type(low, high), copy=False)

    def check(part: Path) -> None:
        again = read_label_map(part, prefer=header.prefer, where=shown(path))
        _same_place(again.header, header, path)
        if not np.array_equal(again.array, labels):
            raise ResourceError(f"Cannot write {shown(path)}: other labels come back from the disk. Check the disk.")

    _write(path, stored, header, dims, check)


def write_image(path: Path | str, array: npt.NDArray[Any], like: MedicalImage | LabelMap | Grid) -> None:
    """Writes intensities or probabilities (C, i, j, k) on the grid of ``like``; several channels become a 4th axis."""
    array, header = np.asarray(array), _header_of(like)
    if array.ndim != 4 or array.shape[1:] != header.shape:
        raise ValueError(f"Channels of shape {array.shape} do not lie on a grid of {header.shape}.")
    if array.dtype not in CODE_OF:
        raise ValueError(f"NIfTI does not hold numbers of type {array.dtype}.")
    dims = (*header.shape, len(array)) if len(array) > 1 else header.dims if header.channels == 1 else header.shape

    def check(part: Path) -> None:
        again = read_image(part, prefer=header.prefer, where=shown(path))
        _same_place(again.header, header, path)
        if not np.array_equal(again.array, array.astype(np.float32)):
            raise ResourceError(f"Cannot write {shown(path)}: other voxels come back from the disk. Check the disk.")

    _write(path, np.moveaxis(array, 0, -1), header, dims, check)


def _read(path: Path | str, where: str, limits: Limits, prefer: Prefer | None) -> tuple[NiftiHeader, Stored, list[str]]:
    """Header, stored numbers (C, i, j, k) and warnings of one file."""
    found: list[NiftiHeader] = []

    def size_of(head: bytes) -> int:
        header = parse_header(head, where, limits, prefer)
        if header.paired:
            raise InputError(
                f"{where}: the header of a pair (.hdr and .img), not an image. Give a .nii or .nii.gz file."
            )
        found.append(header)
        return header.data_at + header.data_bytes

    container = read_container(path, size_of, head=HEAD_BYTES, where=where)
    warnings = list(container.warnings)
    named_packed = str(path).lower().endswith(".gz")
    if container.packed != named_packed and not str(path).endswith(".part"):
        warnings.append(f"{where}: {'gzipped' if container.packed else 'not gzipped'}, against its name.")
    header = found[0]
    voxels = container.data[header.data_at :].view(header.dtype)
    stored = voxels.reshape((*header.shape, header.channels), order="F")
    return header, np.moveaxis(stored, -1, 0), warnings


def _header_of(like: MedicalImage | LabelMap | Grid) -> NiftiHeader:
    if isinstance(like, Grid):
        return fresh_header(like)
    return like.header if isinstance(like.header, NiftiHeader) else fresh_header(like.grid)


def _same_place(written: NiftiHeader, wanted: NiftiHeader, path: Path | str) -> None:
    """Geometry on disk is what was asked for, byte by byte (the number of channels may differ)."""
    a, b = written.fields.copy(), wanted.fields.copy()
    a["dim"] = b["dim"] = 0
    a["magic"] = b["magic"] = b""
    if a.tobytes() != b.tobytes() or written.shape != wanted.shape:
        raise ResourceError(f"Cannot write {shown(path)}: another geometry comes back from the disk. Check the disk.")


def _write(
    path: Path | str,
    stored: Stored,
    header: NiftiHeader,
    dims: tuple[int, ...],
    check: Callable[[Path], None],
) -> None:
    """Writes numbers in the file's order, (i, j, k) or (i, j, k, C), behind the geometry of ``header``."""
    fields = header.fields
    order = fields.dtype["dim"].base.byteorder
    code = CODE_OF[stored.dtype.newbyteorder("=")]
    fields["dim"] = 1
    fields["dim"][: len(dims) + 1] = (len(dims), *dims)
    fields["datatype"], fields["bitpix"] = code, NUMBERS[code][1]
    fields["scl_slope"], fields["scl_inter"] = 1, 0
    fields["magic"] = b"n+2\0\r\n\032\n" if len(header.geometry) == HEAD_BYTES else b"n+1"
    start = len(header.geometry) + 4
    fields["vox_offset"] = start + (-start) % 16
    head = fields.tobytes() + bytes(int(fields["vox_offset"]) - len(header.geometry))
    voxels = stored.astype(stored.dtype.newbyteorder(order), copy=False)
    packed = str(path).lower().endswith(".gz")
    with write_atomically(path, verify=check) as file:
        _send(file, head, voxels, packed)


def _send(file: IO[bytes], head: bytes, voxels: Stored, packed: bool) -> None:
    # wbits 31 makes a gzip header without name and time: the same mask gives the same bytes.
    coder = zlib.compressobj(6, zlib.DEFLATED, 31) if packed else None
    for piece in (head, *_pieces(voxels)):
        file.write(coder.compress(piece) if coder else piece)
    if coder:
        file.write(coder.flush())


def _pieces(voxels: Stored) -> Iterator[bytes]:
    """The voxels' bytes, i fastest, slice by slice."""
    slowest = np.moveaxis(voxels, -1, 0)
    for part in slowest:
        yield part.tobytes(order="F")


def _of_channels(numbers: tuple[int, ...], channels: int) -> str:
    return f" in channel {', '.join(map(str, numbers))}" if channels > 1 else ""
