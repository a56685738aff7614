"""NIfTI-1 and NIfTI-2, plain, gzipped or as a pair: voxels and grid, read behind the gate and written.

A mask gets the header of the image it belongs to, geometry only, bit for bit: dimensions, spacing, both affines with
their codes and quaternions, units, byte order. It is read again through the same gate before it gets its name.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.spatialimages import HeaderDataError

from medmamba.disk.atomic import Verify, write_atomically, write_pair
from medmamba.errors import InputError
from medmamba.geometry import Affine, Grid, affine_problem
from medmamba.images.checked import GZIP, Decoded, Like, Stored, compressed, grid_of, header_of, pair
from medmamba.images.gate import ReadOptions, read_container
from medmamba.images.nifti_header import HEAD_BYTES, Fields, NiftiHeader, fresh_header, parse_header

PAIR = (".hdr", ".img")
MASK_LEVEL, IMAGE_LEVEL = 6, 1  # of gzip; intensities are noise: more effort gains a few percent
MM_PER_UNIT = {1: (1000.0, "metres"), 3: (0.001, "micrometres")}  # 2 is mm; 0 is "unknown" and taken for mm
SAME_AXIS = 1e-3  # of the spacing, between the axes of qform and sform
SAME_ORIGIN_MM = 0.1


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
        return len(header.geometry) if header.paired else header.data_end

    container = read_container(files[0] if files else path, size_of, head=HEAD_BYTES, where=where)
    header, warnings = found[0], container.warnings
    if files and header.paired:  # what follows the header in a .hdr file is its extensions
        container = read_container(files[1], lambda _: header.data_end, head=0, where=where)
        warnings = container.warnings
    elif path.suffix != ".part" and container.packed != path.name.lower().endswith(".gz"):
        warnings = [*warnings, f"{where}: {'gzipped' if container.packed else 'not gzipped'}, against its name."]
    stored = container.data[header.data_at :].view(header.dtype).reshape((*header.shape, header.channels), order="F")
    grid, known, geometry_warnings = read_grid(header, where)
    every = (*warnings, *geometry_warnings)
    return Decoded(np.moveaxis(stored, -1, 0), grid, header, every, known, header.slope, header.inter)


def read_grid(header: NiftiHeader, where: str) -> tuple[Grid, bool, list[str]]:
    """The grid of one channel in RAS+ mm, whether its orientation is known, and warnings.

    Raises InputError when the geometry is missing, contradictory, or invalid for an image.
    """
    library, axes, flat = header.nibabel, min(3, len(header.dims)), header.shape[2] == 1
    fields: Fields = library.structarr
    pixdim = fields["pixdim"].astype(np.float64)[1:4]
    for axis, mm in enumerate(pixdim[:axes]):
        if not np.isfinite(mm) or mm < 0 or (mm == 0 and not (axis == 2 and flat)):
            raise InputError(
                f"{where}: the header's spacing along {'ijk'[axis]} (pixdim[{axis + 1}]) is {mm:g}. "
                "Export the image again with its true spacing."
            )
    warnings: list[str] = []
    unit = int(fields["xyzt_units"]) & 7
    scale, name = MM_PER_UNIT.get(unit, (1.0, ""))
    if name:
        warnings.append(f"{where}: lengths are in {name} and were converted to millimetres.")
    elif unit not in (0, 2):
        warnings.append(f"{where}: unknown unit of length (xyzt_units {unit}); millimetres were assumed.")
    spacing = pixdim * scale
    if flat and not spacing[2] > 0:
        spacing[2] = 1.0  # a single slice need not say its thickness

    sform = qform = None
    if int(fields["sform_code"]) > 0:
        sform = _in_mm(library.get_sform(), scale, spacing[2] if flat else None)
    if int(fields["qform_code"]) > 0 and not (sform is not None and header.prefer == "sform"):
        qform = _in_mm(_qform(library, where), scale, spacing[2] if flat else None)
    if header.prefer == "qform" and qform is not None:
        sform = None
    elif header.prefer is None and sform is not None:
        _agree(sform, qform, pixdim[:axes] * scale, where)
    affine = sform if sform is not None else qform
    known = affine is not None
    if affine is None:  # as nibabel has it: first axis to the left, origin at the centre
        affine = np.diag([-spacing[0], spacing[1], spacing[2], 1.0])
        affine[:3, 3] = -affine[:3, :3] @ ((np.array(header.shape) - 1) / 2)
        warnings.append(
            f"{where}: the header does not say how the image lies in the patient (qform and sform codes are 0): "
            "orientation unknown, left and right included."
        )
    if problem := affine_problem(affine, any_spacing=header.any_spacing):
        raise InputError(f"{where}: {problem}. Export the image again, or correct its header.")
    return Grid(header.shape, affine), known, warnings


def _qform(header: Nifti1Header, where: str) -> Affine:
    copy = header.copy()
    copy["pixdim"][0] = -1.0 if header["pixdim"][0] < 0 else 1.0  # 0 means 1 (nifti1.h)
    try:
        return np.asarray(copy.get_qform(), dtype=np.float64)
    except (HeaderDataError, ValueError):
        raise InputError(
            f"{where}: its header's rotation (quatern_b, c, d) is not one. Export it again, or read it by its sform."
        ) from None


def _in_mm(affine: Affine, scale: float, thickness: float | None) -> Affine:
    """An affine of the header in mm; a single slice that does not say where the next one would be is square to it."""
    affine[:3] *= scale
    if thickness is not None and np.isfinite(affine).all() and not affine[:3, 2].any():
        normal = np.cross(affine[:3, 0], affine[:3, 1])
        affine[:3, 2] = normal / max(float(np.linalg.norm(normal)), 1e-300) * thickness
    return affine


def _agree(sform: Affine, qform: Affine | None, spacing: np.ndarray, where: str) -> None:
    """The two affines, and the spacing, of one header must say the same."""
    if not np.isfinite(sform).all():
        return  # affine_problem names the field
    axes = len(spacing)
    lengths = np.linalg.norm(sform[:3, :axes], axis=0)
    tolerance = SAME_AXIS * np.maximum(lengths, 1e-12)
    if qform is None:
        if np.any((np.abs(lengths - spacing) > tolerance) & (spacing > 0)):
            by_pixdim, by_sform = ("x".join(f"{mm:.5g}" for mm in values) + " mm" for values in (spacing, lengths))
            raise InputError(
                f"{where}: its header contradicts itself: spacing {by_pixdim} (pixdim) and {by_sform} (sform). "
                'Correct it, or choose with prefer="sform".'
            )
        return
    rotated = np.linalg.norm((sform - qform)[:3, :axes], axis=0) > tolerance
    moved = float(np.linalg.norm((sform - qform)[:3, 3]))
    if rotated.any() or moved > SAME_ORIGIN_MM:
        what = "axes" if rotated.any() else f"origins, by {moved:.3g} mm"
        raise InputError(
            f"{where}: its header contradicts itself: qform and sform have different {what}. "
            'Correct it, or choose one with prefer="sform" or prefer="qform".'
        )


def same_place(found: Decoded, like: Like) -> bool:
    """Geometry on disk is what was asked for, byte by byte (the number of channels may differ)."""
    wanted = nifti_header_of(like)
    a, b = found.header.nibabel.structarr, wanted.nibabel.structarr
    a["dim"] = b["dim"] = 0
    a["magic"] = b["magic"] = b""
    return bool(a.tobytes() == b.tobytes() and found.header.shape == wanted.shape)


def nifti_header_of(like: Like) -> NiftiHeader:
    """The header of a NIfTI image, or a fresh one for a grid and for images of other formats."""
    return header_of(like, NiftiHeader) or fresh_header(grid_of(like))


def content(stored: Stored, like: Like, *, paired: bool = False) -> tuple[bytes, Iterator[bytes]]:
    """Header and voxels of a file with numbers (C, i, j, k) on the geometry of ``like``; channels are a fourth axis.

    Raises ValueError when NIfTI has no such type of numbers.
    """
    header = nifti_header_of(like)
    array, dims = stored[0], header.dims if header.channels == 1 else header.shape
    if len(stored) > 1:
        array, dims = np.moveaxis(stored, 0, -1), (*header.shape, len(stored))
    fields = header.for_file(dims, array.dtype, paired=paired)
    voxels = array.astype(array.dtype.newbyteorder(fields.dtype["dim"].base.byteorder), copy=False)
    pieces = (part.tobytes(order="F") for part in np.moveaxis(voxels, -1, 0))
    return fields.tobytes() + bytes(4), pieces  # four zeros: no extensions follow


def write(path: Path, stored: Stored, like: Like, *, mask: bool, verify: Verify) -> None:
    """Writes (C, i, j, k) behind the geometry of ``like``."""
    files = pair(path) if path.suffix.lower() in PAIR else None
    head, pieces = content(stored, like, paired=files is not None)
    if files:
        write_pair(files[0], head, files[1], partial(_send, pieces), verify=verify)
        return
    whole: Iterable[bytes] = chain((head,), pieces)
    if path.name.lower().endswith(".gz"):
        whole = compressed(whole, level=MASK_LEVEL if mask else IMAGE_LEVEL, format_bits=GZIP)
    with write_atomically(path, verify=verify) as file:
        _send(whole, file)


def _send(pieces: Iterable[bytes], file: IO[bytes]) -> None:
    for piece in pieces:
        file.write(piece)
