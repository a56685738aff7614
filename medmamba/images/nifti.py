"""NIfTI-1 and NIfTI-2, plain, gzipped or as a pair: read behind the gate, written on the grid of another image.

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

from medmamba.atomic import write_atomically, write_pair
from medmamba.errors import InputError, ResourceError
from medmamba.geometry import Grid
from medmamba.images.checked import (
    checked_image,
    checked_labels,
    same_channels,
    same_labels,
    storable_channels,
    storable_labels,
)
from medmamba.images.gate import Limits, read_container, shown
from medmamba.images.image import LabelMap, MedicalImage
from medmamba.images.nifti_geometry import read_grid
from medmamba.images.nifti_header import (
    CODE_OF,
    HEAD_BYTES,
    NUMBERS,
    NiftiHeader,
    Prefer,
    fresh_header,
    parse_header,
)
from medmamba.images.voxels import NonFinite, Stored

Check = Callable[[Path], None]


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
    where, limits = where or shown(path), limits or Limits()
    header, stored, warnings = _read(path, where, limits, prefer)
    grid, known, odd = read_grid(header, where, limits)
    return checked_image(
        stored,
        grid,
        header,
        path,
        where,
        warnings + odd,
        nonfinite=nonfinite,
        slope=header.slope,
        inter=header.inter,
        orientation_known=known,
    )


@np.errstate(all="ignore")
def read_label_map(
    path: Path | str, *, prefer: Prefer | None = None, limits: Limits | None = None, where: str | None = None
) -> LabelMap:
    """The label map in a NIfTI file, its values checked to be whole numbers before anything is cast."""
    where, limits = where or shown(path), limits or Limits()
    header, stored, warnings = _read(path, where, limits, prefer)
    if header.channels > 1:
        raise InputError(f"{where}: {header.channels} channels; a label map has one. Give one label map per case.")
    grid, _, odd = read_grid(header, where, limits)
    return checked_labels(stored[0], grid, header, path, where, warnings + odd, slope=header.slope, inter=header.inter)


def write_label_map(path: Path | str, labels: npt.NDArray[Any], like: MedicalImage | LabelMap | Grid) -> None:
    """Writes whole numbers (i, j, k) on the grid of ``like``, in the smallest unsigned type that holds them.

    Raises:
        ValueError: the array does not fit the grid, or is not made of whole numbers from 0 on.
        ResourceError: the disk is full or damaged; nothing is left behind.
    """
    header = _header_of(like)
    stored = storable_labels(labels, header.shape)

    def check(part: Path) -> None:
        again = read_label_map(part, prefer=header.prefer, where=shown(path))
        _same_place(again.header, header, path)
        same_labels(again, stored, None, path)

    _write(path, stored, header, header.dims[:3] if header.channels > 1 else header.dims, check, level=6)


def write_image(path: Path | str, array: npt.NDArray[Any], like: MedicalImage | LabelMap | Grid) -> None:
    """Writes intensities or probabilities (C, i, j, k) on the grid of ``like``; several channels become a 4th axis."""
    header = _header_of(like)
    stored = storable_channels(array, header.shape)
    if stored.dtype not in CODE_OF:
        raise ValueError(f"NIfTI does not hold numbers of type {stored.dtype}.")
    dims = header.dims if header.channels == 1 else header.shape

    def check(part: Path) -> None:
        again = read_image(part, prefer=header.prefer, where=shown(path))
        _same_place(again.header, header, path)
        same_channels(again, stored, None, path)

    dims = (*header.shape, len(stored)) if len(stored) > 1 else dims
    _write(path, np.moveaxis(stored, 0, -1), header, dims, check, level=1)  # noise: more effort gains a few percent


def _read(path: Path | str, where: str, limits: Limits, prefer: Prefer | None) -> tuple[NiftiHeader, Stored, list[str]]:
    """Header, stored numbers (C, i, j, k) and warnings of one file, or of a pair of files."""
    path = Path(path)
    found: list[NiftiHeader] = []
    pair = pair_of(path)

    def size_of(head: bytes) -> int:
        header = parse_header(head, where, limits, prefer)
        if header.paired and pair is None:
            raise InputError(
                f"{where}: the header of a pair (.hdr and .img). Name the file .hdr, or give a .nii image."
            )
        found.append(header)
        return header.header_bytes if header.paired else header.data_at + header.data_bytes

    container = read_container(pair[0] if pair else path, size_of, head=HEAD_BYTES, where=where)
    header, data, warnings = found[0], container.data, list(container.warnings)
    if pair and header.paired:
        warnings = []  # what follows the header in a .hdr file is its extensions
        voxels = read_container(pair[1], lambda _: header.data_at + header.data_bytes, head=0, where=where)
        data = voxels.data
        warnings += voxels.warnings
    elif path.suffix != ".part" and container.packed != path.name.lower().endswith(".gz"):
        warnings.append(f"{where}: {'gzipped' if container.packed else 'not gzipped'}, against its name.")
    stored = data[header.data_at :].view(header.dtype).reshape((*header.shape, header.channels), order="F")
    return header, np.moveaxis(stored, -1, 0), warnings


def pair_of(path: Path) -> tuple[Path, Path] | None:
    """Header and voxel file, if ``path`` names either of a pair; endings in the case of its own."""
    ending = path.suffix.lower()
    if ending not in (".hdr", ".img"):
        return None
    other_ending = ".img" if ending == ".hdr" else ".hdr"
    other = path.with_suffix(other_ending.upper() if path.suffix.isupper() else other_ending)
    return (path, other) if ending == ".hdr" else (other, path)


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
    path: Path | str, stored: Stored, header: NiftiHeader, dims: tuple[int, ...], check: Check, *, level: int
) -> None:
    """Writes numbers in the file's order, (i, j, k) or (i, j, k, C), behind the geometry of ``header``."""
    path = Path(path)
    pair = pair_of(path)
    fields = header.fields
    order = fields.dtype["dim"].base.byteorder
    code = CODE_OF[stored.dtype.newbyteorder("=")]
    version = "2" if len(header.geometry) == HEAD_BYTES else "1"
    fields["dim"] = 1
    fields["dim"][: len(dims) + 1] = (len(dims), *dims)
    fields["datatype"], fields["bitpix"] = code, NUMBERS[code][1]
    fields["scl_slope"], fields["scl_inter"] = 1, 0
    fields["magic"] = f"n{'i' if pair else '+'}{version}".encode() + (b"\0\r\n\032\n" if version == "2" else b"")
    start = 0 if pair else len(header.geometry) + 4
    fields["vox_offset"] = start + (-start) % 16
    voxels = stored.astype(stored.dtype.newbyteorder(order), copy=False)
    if pair is None:
        head = fields.tobytes() + bytes(int(fields["vox_offset"]) - len(header.geometry))
        with write_atomically(path, verify=check) as file:
            _send(file, head, voxels, level if path.name.lower().endswith(".gz") else None)
        return
    write_pair(pair[0], fields.tobytes() + bytes(4), pair[1], lambda f: _send(f, b"", voxels, None), verify=check)


def _send(file: IO[bytes], head: bytes, voxels: Stored, level: int | None) -> None:
    # wbits 31 makes a gzip header without name and time: the same mask gives the same bytes.
    coder = zlib.compressobj(level, zlib.DEFLATED, 31) if level is not None else None
    for piece in (head, *_pieces(voxels)):
        file.write(coder.compress(piece) if coder else piece)
    if coder:
        file.write(coder.flush())


def _pieces(voxels: Stored) -> Iterator[bytes]:
    """The voxels' bytes, i fastest, slice by slice."""
    for part in np.moveaxis(voxels, -1, 0):
        yield part.tobytes(order="F")
