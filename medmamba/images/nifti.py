"""NIfTI-1 and NIfTI-2, plain, gzipped or as a pair: read behind the gate, written on the grid of another image.

A mask gets the header of the image it belongs to, geometry only, bit for bit: dimensions, spacing, both affines with
their codes and quaternions, units, byte order. It is read again through the same gate before it gets its name.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO

import numpy as np

from medmamba.disk.atomic import Verify, write_atomically, write_pair
from medmamba.errors import InputError
from medmamba.images.checked import GZIP, Decoded, Like, compressed, grid_of, header_of
from medmamba.images.gate import ReadOptions, read_container
from medmamba.images.nifti_geometry import read_grid
from medmamba.images.nifti_header import HEAD_BYTES, NiftiHeader, fresh_header, parse_header
from medmamba.images.siblings import pair
from medmamba.images.voxels import Stored

PAIR = (".hdr", ".img")
MASK_LEVEL, IMAGE_LEVEL = 6, 1  # of gzip; intensities are noise: more effort gains a few percent


def read(path: Path, where: str, options: ReadOptions, *, mask: bool) -> Decoded:
    """The numbers in a NIfTI file, or in a pair of files, with each step of a fourth axis as a channel."""
    found: list[NiftiHeader] = []
    files = pair(path) if path.suffix.lower() in PAIR else None

    def size_of(head: bytes) -> int:
        header = parse_header(head, where, options)
        if header.paired and files is None:
            raise InputError(
                f"{where}: the header of a pair (.hdr and .img). Name the file .hdr, or give a .nii image."
            )
        found.append(header)
        return len(header.geometry) if header.paired else header.data_at + header.data_bytes

    container = read_container(files[0] if files else path, size_of, head=HEAD_BYTES, where=where)
    header, warnings = found[0], container.warnings
    if files and header.paired:  # what follows the header in a .hdr file is its extensions
        container = read_container(files[1], lambda _: header.data_at + header.data_bytes, head=0, where=where)
        warnings = container.warnings
    elif path.suffix != ".part" and container.packed != path.name.lower().endswith(".gz"):
        warnings = [*warnings, f"{where}: {'gzipped' if container.packed else 'not gzipped'}, against its name."]
    stored = container.data[header.data_at :].view(header.dtype).reshape((*header.shape, header.channels), order="F")
    grid, known, geometry_warnings = read_grid(header, where)
    every = (*warnings, *geometry_warnings)
    return Decoded(np.moveaxis(stored, -1, 0), grid, header, every, known, header.slope, header.inter)


def same_place(found: Decoded, like: Like) -> bool:
    """Geometry on disk is what was asked for, byte by byte (the number of channels may differ)."""
    wanted = nifti_header_of(like)
    a, b = found.header.fields, wanted.fields
    a["dim"] = b["dim"] = 0
    a["magic"] = b["magic"] = b""
    return bool(a.tobytes() == b.tobytes() and found.header.shape == wanted.shape)


def nifti_header_of(like: Like) -> NiftiHeader:
    """The header of a NIfTI image, or a fresh one for a grid and for images of other formats."""
    return header_of(like, NiftiHeader) or fresh_header(grid_of(like))


def write(path: Path, stored: Stored, like: Like, *, mask: bool, verify: Verify) -> None:
    """Writes (C, i, j, k) behind the geometry of ``like``; several channels become a fourth axis."""
    header = nifti_header_of(like)
    array, dims = stored[0], header.dims if header.channels == 1 else header.shape
    if len(stored) > 1:
        array, dims = np.moveaxis(stored, 0, -1), (*header.shape, len(stored))
    files = pair(path) if path.suffix.lower() in PAIR else None
    fields = header.for_file(dims, array.dtype, paired=files is not None)
    voxels = array.astype(array.dtype.newbyteorder(fields.dtype["dim"].base.byteorder), copy=False)
    pieces = (part.tobytes(order="F") for part in np.moveaxis(voxels, -1, 0))
    if files:
        write_pair(files[0], fields.tobytes() + bytes(4), files[1], partial(_send, pieces), verify=verify)
        return
    head = fields.tobytes() + bytes(int(fields["vox_offset"]) - len(header.geometry))
    content: Iterable[bytes] = chain((head,), pieces)
    if path.name.lower().endswith(".gz"):
        content = compressed(content, level=MASK_LEVEL if mask else IMAGE_LEVEL, format_bits=GZIP)
    with write_atomically(path, verify=verify) as file:
        _send(content, file)


def _send(pieces: Iterable[bytes], file: IO[bytes]) -> None:
    for piece in pieces:
        file.write(piece)
