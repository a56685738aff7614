"""NIfTI-1 and NIfTI-2, plain, gzipped or as a pair: read behind the gate, written on the grid of another image.

A mask gets the header of the image it belongs to, geometry only, bit for bit: dimensions, spacing, both affines with
their codes and quaternions, units, byte order. It is read again through the same gate before it gets its name.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from medmamba.disk.atomic import Verify, write_atomically, write_pair
from medmamba.errors import InputError
from medmamba.geometry import Grid
from medmamba.images.checked import Decoded, Like
from medmamba.images.gate import Limits, read_container
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
from medmamba.images.voxels import Stored


def read(path: Path, where: str, limits: Limits, prefer: Prefer | None, *, mask: bool) -> Decoded:
    """The numbers in a NIfTI file, with each step of a fourth axis as a channel.

    ``prefer``: which affine to take when the header's two contradict each other.
    """
    header, stored, warnings = _read(path, where, limits, prefer)
    grid, known, odd = read_grid(header, where, limits)
    return Decoded(stored, grid, header, warnings + odd, known, header.slope, header.inter)


def same_place(found: Decoded, like: Like) -> bool:
    """Geometry on disk is what was asked for, byte by byte (the number of channels may differ)."""
    wanted = _header_of(like)
    a, b = found.header.fields.copy(), wanted.fields.copy()
    a["dim"] = b["dim"] = 0
    a["magic"] = b["magic"] = b""
    return bool(a.tobytes() == b.tobytes() and found.header.shape == wanted.shape)


def write(path: Path, stored: Stored, like: Like, *, mask: bool, verify: Verify) -> None:
    """Writes (C, i, j, k) behind the geometry of ``like``; several channels become a fourth axis."""
    header = _header_of(like)
    if stored.dtype not in CODE_OF:
        raise ValueError(f"NIfTI does not hold numbers of type {stored.dtype}.")
    level = 6 if mask else 1  # intensities are noise: more effort gains a few percent
    if len(stored) > 1:
        _write(path, np.moveaxis(stored, 0, -1), header, (*header.shape, len(stored)), verify, level=level)
    else:
        _write(path, stored[0], header, header.dims if header.channels == 1 else header.shape, verify, level=level)


def _read(path: Path, where: str, limits: Limits, prefer: Prefer | None) -> tuple[NiftiHeader, Stored, list[str]]:
    """Header, stored numbers (C, i, j, k) and warnings of one file, or of a pair of files."""
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


def _header_of(like: Like) -> NiftiHeader:
    if isinstance(like, Grid):
        return fresh_header(like)
    return like.header if isinstance(like.header, NiftiHeader) else fresh_header(like.grid)


def _write(
    path: Path, stored: Stored, header: NiftiHeader, dims: tuple[int, ...], verify: Verify, *, level: int
) -> None:
    """Writes numbers in the file's order, (i, j, k) or (i, j, k, C), behind the geometry of ``header``."""
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
        with write_atomically(path, verify=verify) as file:
            _send(file, head, voxels, level if path.name.lower().endswith(".gz") else None)
        return
    write_pair(pair[0], fields.tobytes() + bytes(4), pair[1], lambda f: _send(f, b"", voxels, None), verify=verify)


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
