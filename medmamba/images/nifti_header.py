"""The header of a NIfTI-1 or NIfTI-2 file, checked field by field before a voxel is read.

Numbers are multiplied as Python integers, so an absurd size is a sentence and not an allocation. What remains of the
header for writing masks is its geometry only: names, descriptions and extensions can hold a patient's name and are
dropped.

Source: https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h and nifti2.h
"""

from dataclasses import dataclass
from math import prod
from typing import Any, cast

import numpy as np
from nibabel.nifti1 import Nifti1Header, data_type_codes
from nibabel.nifti2 import Nifti2Header

from medmamba.errors import InputError
from medmamba.geometry import Grid, Shape
from medmamba.images.gate import Affines, ReadOptions, check_size

HEAD_BYTES = Nifti2Header.template_dtype.itemsize  # 540; a NIfTI-1 header has 348

GEOMETRY_FIELDS = (
    "sizeof_hdr", "dim", "pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d",
    "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z", "magic",
)  # fmt: skip
"""The part of a header that is kept for masks of the image."""

Fields = np.ndarray[Any, Any]


@dataclass(frozen=True)
class NiftiHeader:
    """What a reader needs to know, and the geometry bytes that a mask on the same grid is written with.

    A stored number stands for the value number * slope + inter.
    """

    dims: tuple[int, ...]  # (i, j), (i, j, k), (i, j, k, 1) or (i, j, k, channels)
    dtype: np.dtype[Any]  # with byte order
    data_at: int  # byte at which voxels start
    slope: float
    inter: float
    paired: bool
    geometry: bytes  # the header's (348 or 540) with everything but its geometry set to zero
    prefer: Affines | None = None  # the affine that the caller chose, if the header contradicts itself
    any_spacing: bool = False

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
    def data_end(self) -> int:
        """Byte behind the last voxel."""
        return self.data_at + prod(self.dims) * self.dtype.itemsize

    @property
    def nibabel(self) -> Nifti1Header:
        """The geometry as a header of nibabel, a copy; its ``structarr`` holds the fields."""
        return nibabel_header(self.geometry)

    def for_file(self, dims: tuple[int, ...], dtype: np.dtype[Any], *, paired: bool) -> Fields:
        """The header's fields for numbers of type ``dtype`` and shape ``dims`` on this geometry."""
        fields: Fields = self.nibabel.structarr
        try:
            fields["datatype"], fields["bitpix"] = data_type_codes.code[cast(Any, dtype.type)], dtype.itemsize * 8
        except KeyError:
            raise ValueError(f"NIfTI does not hold numbers of type {dtype}.") from None
        fields["dim"] = 1
        fields["dim"][: len(dims) + 1] = (len(dims), *dims)
        fields["scl_slope"], fields["scl_inter"] = 1, 0
        version = b"2\0\r\n\032\n" if len(self.geometry) == HEAD_BYTES else b"1"
        fields["magic"] = (b"ni" if paired else b"n+") + version
        fields["vox_offset"] = 0 if paired else len(self.geometry) + 4  # a multiple of 16, as the standard wants
        return fields


def nibabel_header(raw: bytes) -> Nifti1Header:
    """The bytes of a NIfTI-1 or NIfTI-2 header as nibabel's class, in their own byte order, unchecked."""
    kind = Nifti2Header if len(raw) == HEAD_BYTES else Nifti1Header
    return kind(raw, endianness="<" if int.from_bytes(raw[:4], "little") == len(raw) else ">", check=False)


def fresh_header(grid: Grid) -> NiftiHeader:
    """A NIfTI-1 header for an image that did not come from a NIfTI file: sform and qform hold the affine."""
    header = Nifti1Header(endianness="<")
    header.set_data_shape(grid.shape)
    if grid.affine is not None:
        header.set_xyzt_units("mm")
        header.set_qform(grid.affine, code="scanner", strip_shears=True)
        header.set_sform(grid.affine, code="scanner")
    header["magic"] = b"n+1"
    return NiftiHeader(grid.shape, np.dtype("u1"), 352, 1.0, 0.0, False, _geometry_bytes(header.structarr))


def parse_header(head: bytes, where: str, options: ReadOptions) -> NiftiHeader:
    """Checks the first bytes of a file and returns the header in them.

    Raises InputError when this is no NIfTI file, or a field of its header is invalid.
    """
    fields = _recognise(head, where)
    paired = bytes(fields["magic"])[:3] in (b"ni1", b"ni2")
    dims = _dims(fields, where, options.max_voxels)
    dtype = _dtype(fields, where)
    offset, least = float(fields["vox_offset"]), 0 if paired else int(fields["sizeof_hdr"]) + 4
    if not np.isfinite(offset) or offset != int(offset) or not least <= offset < 2**40:
        raise InputError(
            f"{where}: its header says that voxels start at byte {offset:g} (vox_offset); "
            f"a whole number from {least} on is possible. It is damaged."
        )
    slope, inter = float(fields["scl_slope"]), float(fields["scl_inter"])
    if slope == 0.0 or np.isnan(slope):  # "no scaling" in the standard; of NaN for nibabel and MRtrix
        slope, inter = 1.0, 0.0
    if not np.isfinite(slope) or not np.isfinite(inter):
        raise InputError(
            f"{where}: its header scales voxels by {slope:g} and {inter:g} (scl_slope, scl_inter). Export it again."
        )
    geometry = _geometry_bytes(fields)
    return NiftiHeader(dims, dtype, int(offset), slope, inter, paired, geometry, options.prefer, options.any_spacing)


def _geometry_bytes(fields: Fields) -> bytes:
    kept: Fields = np.zeros((), dtype=fields.dtype)
    for name in GEOMETRY_FIELDS:
        kept[name] = fields[name]
    return kept.tobytes()


def _recognise(head: bytes, where: str) -> Fields:
    for kind, magics in ((Nifti1Header, (b"n+1\0", b"ni1\0")), (Nifti2Header, (b"n+2\0", b"ni2\0"))):
        size = kind.template_dtype.itemsize
        if len(head) < 4 or size not in (int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")):
            continue
        if len(head) < size:
            raise InputError(f"{where}: cut off within its header. Copy it again from its source.")
        at = cast(Any, kind.template_dtype.fields)["magic"][1]
        if head[at : at + 4] in magics:
            return cast(Fields, nibabel_header(head[:size]).structarr)
        if kind is Nifti1Header:
            raise InputError(
                f"{where}: a header without the NIfTI mark, as of an ANALYZE 7.5 file, which does not say how "
                "the image lies in the patient. Convert it to NIfTI with its orientation."
            )
    raise InputError(f"{where}: not a NIfTI file: its first bytes are {head[:8]!r}. Give a .nii or .nii.gz image.")


def _dims(fields: Fields, where: str, max_voxels: int) -> tuple[int, ...]:
    count, *sizes = (int(n) for n in fields["dim"])
    if not 1 <= count <= 7:
        raise InputError(f"{where}: its header says {count} dimensions (dim[0]); 2 to 4 are possible. It is damaged.")
    dims = sizes[:count]
    while len(dims) > 4 and dims[-1] == 1:
        dims.pop()
    if len(dims) == 5 and dims[3] == 1:  # one vector per voxel (i, j, k, 1, C), as ITK writes several channels
        del dims[3]
    if len(dims) == 1:
        raise InputError(f"{where}: one-dimensional, shape {tuple(dims)}. Give a 2D or 3D image.")
    if len(dims) > 4:
        raise InputError(
            f"{where}: {len(dims)} dimensions, shape {tuple(dims)}. Give a 3D image, or 4D with one channel per step "
            "of the last axis."
        )
    check_size(tuple(dims), where, max_voxels)
    return tuple(dims)


def _dtype(fields: Fields, where: str) -> np.dtype[Any]:
    code, bits = int(fields["datatype"]), int(fields["bitpix"])
    if code not in data_type_codes.dtype:
        raise InputError(f"{where}: its header has an unknown type of voxels (datatype {code}). It is damaged.")
    dtype = np.dtype(cast(Any, data_type_codes.dtype[code]))
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        name = data_type_codes.label[code]
        raise InputError(f"{where}: voxels are of type {name}. Convert it to one real number per voxel.")
    if bits != dtype.itemsize * 8:
        raise InputError(
            f"{where}: its header says {bits} bits per voxel (bitpix) for datatype {code}, which has "
            f"{dtype.itemsize * 8}. It is damaged."
        )
    return dtype.newbyteorder(fields.dtype["dim"].base.byteorder)
