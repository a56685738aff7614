"""The header of a NIfTI-1 or NIfTI-2 file, checked field by field before any library sees it.

Numbers are multiplied as Python integers, so an absurd size is a sentence and not an allocation. What remains of the
header for writing masks is its geometry only: names, descriptions and extensions can hold a patient's name and are
dropped.

Source: https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h and nifti2.h
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti1 import header_dtype as NIFTI1
from nibabel.nifti2 import header_dtype as NIFTI2

from medmamba.errors import InputError
from medmamba.geometry import Grid, Shape
from medmamba.images.gate import Limits, check_size

Prefer = Literal["sform", "qform"]
HEAD_BYTES = NIFTI2.itemsize  # 540; a NIfTI-1 header has 348

# datatype code: (numpy type, bits per voxel)
NUMBERS = {
    2: ("u1", 8),
    4: ("i2", 16),
    8: ("i4", 32),
    16: ("f4", 32),
    64: ("f8", 64),
    256: ("i1", 8),
    512: ("u2", 16),
    768: ("u4", 32),
    1024: ("i8", 64),
    1280: ("u8", 64),
}
NOT_NUMBERS = {
    1: "single bits",
    32: "complex numbers",
    128: "RGB colours",
    1536: "128-bit numbers",
    1792: "complex numbers",
    2048: "complex numbers",
    2304: "RGBA colours",
}
CODE_OF = {np.dtype(kind): code for code, (kind, _) in NUMBERS.items()}

# What of a header is kept for the masks made from it.
GEOMETRY_FIELDS = (
    "sizeof_hdr",
    "dim",
    "pixdim",
    "xyzt_units",
    "qform_code",
    "sform_code",
    "quatern_b",
    "quatern_c",
    "quatern_d",
    "qoffset_x",
    "qoffset_y",
    "qoffset_z",
    "srow_x",
    "srow_y",
    "srow_z",
    "magic",
)


@dataclass(frozen=True)
class NiftiHeader:
    """What a reader needs to know, and the geometry bytes that a mask on the same grid is written with.

    Args:
        dims: stored shape, without dim[0]: (i, j), (i, j, k), (i, j, k, 1) or (i, j, k, channels).
        dtype: stored numbers, with byte order.
        data_at: byte at which voxels start.
        slope, inter: value = stored * slope + inter.
        geometry: the header's bytes (348 or 540) with everything but its geometry set to zero.
        prefer: which affine the caller chose, if the header contradicts itself.
    """

    dims: tuple[int, ...]
    dtype: np.dtype[Any]
    data_at: int
    slope: float
    inter: float
    paired: bool
    geometry: bytes
    prefer: Prefer | None = None

    @property
    def shape(self) -> Shape:
        """(i, j, k) of one channel."""
        i, j, k = (*self.dims, 1, 1)[:3]
        return i, j, k

    @property
    def channels(self) -> int:
        """Images in the file: the fourth dimension."""
        return self.dims[3] if len(self.dims) > 3 else 1

    @property
    def data_bytes(self) -> int:
        """Length of the block of voxels."""
        return prod(self.dims) * self.dtype.itemsize

    @property
    def header_bytes(self) -> int:
        """Length of the header itself, without extensions."""
        return len(self.geometry)

    @property
    def fields(self) -> np.ndarray[Any, Any]:
        """The geometry bytes as a structured array, to read and to copy."""
        return header_fields(self.geometry)


def header_fields(raw: bytes) -> np.ndarray[Any, Any]:
    """A header's bytes as a structured numpy array of no dimension, in their own byte order."""
    layout = NIFTI2 if len(raw) == NIFTI2.itemsize else NIFTI1
    order: Literal["<", ">"] = "<" if int.from_bytes(raw[:4], "little") == layout.itemsize else ">"
    return np.frombuffer(bytearray(raw), dtype=layout.newbyteorder(order)).reshape(())


def parse_header(head: bytes, where: str, limits: Limits, prefer: Prefer | None = None) -> NiftiHeader:
    """Checks the first bytes of a file and returns what they say.

    Raises:
        InputError: this is no NIfTI file, or a field of its header cannot be.
    """
    fields = _recognise(head, where)
    paired = bytes(fields["magic"])[:3] in (b"ni1", b"ni2")
    dims = _dims(fields, where, limits)
    dtype = _dtype(fields, where)
    data_at = _data_at(fields, where, paired)
    slope, inter = _scale(fields, where)
    kept = np.zeros((), dtype=fields.dtype)
    for name in GEOMETRY_FIELDS:
        kept[name] = fields[name]
    return NiftiHeader(dims, dtype, data_at, slope, inter, paired, kept.tobytes(), prefer)


def fresh_header(grid: Grid) -> NiftiHeader:
    """A NIfTI-1 header for an image that did not come from a NIfTI file: sform and qform hold the affine."""
    header = Nifti1Header(endianness="<")
    header.set_data_shape(grid.shape)
    if grid.affine is not None:
        header.set_xyzt_units("mm")
        header.set_qform(grid.affine, code="scanner", strip_shears=True)
        header.set_sform(grid.affine, code="scanner")
    header["magic"] = b"n+1"
    raw = header.structarr
    kept = np.zeros((), dtype=raw.dtype)
    for name in GEOMETRY_FIELDS:
        kept[name] = raw[name]
    return NiftiHeader(grid.shape, np.dtype("u1"), 352, 1.0, 0.0, False, kept.tobytes())


def _recognise(head: bytes, where: str) -> np.ndarray[Any, Any]:
    for layout, magics in ((NIFTI1, (b"n+1\0", b"ni1\0")), (NIFTI2, (b"n+2\0", b"ni2\0"))):
        for order in ("little", "big"):
            if len(head) < 4 or int.from_bytes(head[:4], order) != layout.itemsize:
                continue
            if len(head) < layout.itemsize:
                raise InputError(f"{where}: cut off within its header. Copy it again from its source.")
            fields = header_fields(head[: layout.itemsize])
            at = layout.fields["magic"][1]  # type: ignore[index]
            if head[at : at + 4] in magics:
                return fields
            if layout is NIFTI1:
                raise InputError(
                    f"{where}: a header without the NIfTI mark, as of an ANALYZE 7.5 file, which does not say how "
                    "the image lies in the patient. Convert it to NIfTI with its orientation."
                )
    raise InputError(f"{where}: not a NIfTI file: its first bytes are {head[:8]!r}. Give a .nii or .nii.gz image.")


def _dims(fields: np.ndarray[Any, Any], where: str, limits: Limits) -> tuple[int, ...]:
    count, *sizes = (int(n) for n in fields["dim"])
    if not 1 <= count <= 7:
        raise InputError(f"{where}: its header says {count} dimensions (dim[0]); 2 to 4 are possible. It is damaged.")
    dims = sizes[:count]
    while len(dims) > 4 and dims[-1] == 1:
        dims.pop()
    if len(dims) == 1:
        raise InputError(f"{where}: one-dimensional, shape {tuple(dims)}. Give a 2D or 3D image.")
    if len(dims) > 4:
        raise InputError(
            f"{where}: {len(dims)} dimensions, shape {tuple(dims)}. Give a 3D image, or 4D with one channel per step "
            "of the last axis."
        )
    check_size(tuple(dims), where, limits)
    return tuple(dims)


def _dtype(fields: np.ndarray[Any, Any], where: str) -> np.dtype[Any]:
    code, bits = int(fields["datatype"]), int(fields["bitpix"])
    if code in NOT_NUMBERS:
        raise InputError(f"{where}: voxels are {NOT_NUMBERS[code]}. Convert it to one real number per voxel.")
    if code not in NUMBERS:
        raise InputError(f"{where}: its header has an unknown type of voxels (datatype {code}). It is damaged.")
    kind, expected = NUMBERS[code]
    if bits != expected:
        raise InputError(
            f"{where}: its header says {bits} bits per voxel (bitpix) for datatype {code}, which has {expected}. "
            "It is damaged."
        )
    return np.dtype(kind).newbyteorder(fields.dtype["dim"].base.byteorder)


def _data_at(fields: np.ndarray[Any, Any], where: str, paired: bool) -> int:
    offset = float(fields["vox_offset"])
    least = 0 if paired else int(fields["sizeof_hdr"]) + 4
    if not np.isfinite(offset) or offset != int(offset) or not least <= offset < 2**40:
        raise InputError(
            f"{where}: its header says that voxels start at byte {offset:g} (vox_offset); "
            f"a whole number from {least} on is possible. It is damaged."
        )
    return int(offset)


def _scale(fields: np.ndarray[Any, Any], where: str) -> tuple[float, float]:
    slope, inter = float(fields["scl_slope"]), float(fields["scl_inter"])
    if slope == 0.0:  # the standard's word for "no scaling"
        return 1.0, 0.0
    if not np.isfinite(slope) or not np.isfinite(inter):
        raise InputError(
            f"{where}: its header scales voxels by {slope:g} and {inter:g} (scl_slope, scl_inter). Export it again."
        )
    return slope, inter
