"""The header of a NIfTI-1 or NIfTI-2 file, checked field by field before any library sees it.

Numbers are multiplied as Python integers, so an absurd size is a sentence and not an allocation. Which of the two
affines of a header holds, and whether they contradict each other, is decided here too. What remains of the header
for writing masks is its geometry only: names, descriptions and extensions can hold a patient's name and are dropped.

Source: https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h and nifti2.h
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti1 import header_dtype as NIFTI1
from nibabel.nifti2 import Nifti2Header
from nibabel.nifti2 import header_dtype as NIFTI2
from nibabel.spatialimages import HeaderDataError

from medmamba.errors import InputError
from medmamba.geometry import Affine, Grid, Shape, affine_problem
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
MM_PER_UNIT = {1: 1000.0, 2: 1.0, 3: 0.001}  # metre, millimetre, micrometre; 0 is "unknown" and taken for mm
UNIT_NAMES = {1: "metres", 3: "micrometres"}

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
SAME_AXIS = 1e-3  # of the spacing, between the axes of qform and sform
SAME_ORIGIN_MM = 0.1


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


def read_grid(header: NiftiHeader, where: str, limits: Limits) -> tuple[Grid, bool, list[str]]:
    """The grid of one channel in RAS+ mm, whether its orientation is known, and what was odd.

    Raises:
        InputError: the geometry is missing, contradicts itself, or is not that of an image.
    """
    fields = header.fields
    warnings: list[str] = []
    pixdim = fields["pixdim"].astype(np.float64)
    axes = min(3, len(header.dims))
    flat = header.shape[2] == 1
    for axis, mm in enumerate(pixdim[1 : axes + 1]):
        if not np.isfinite(mm) or mm < 0 or (mm == 0 and not (axis == 2 and flat)):
            raise InputError(
                f"{where}: the header's spacing along {'ijk'[axis]} (pixdim[{axis + 1}]) is {mm:g}. "
                "Export the image again with its true spacing."
            )
    q_code, s_code = int(fields["qform_code"]), int(fields["sform_code"])
    unit = int(fields["xyzt_units"]) & 7
    if unit not in (0, *MM_PER_UNIT):
        warnings.append(f"{where}: unknown unit of length (xyzt_units {unit}); millimetres were assumed.")
    scale = MM_PER_UNIT.get(unit, 1.0)
    if unit in UNIT_NAMES:
        warnings.append(f"{where}: lengths are in {UNIT_NAMES[unit]} and were converted to millimetres.")

    sform = _sform(fields, flat) if s_code > 0 else None
    qform = _qform(fields, flat, where) if q_code > 0 and not (sform is not None and header.prefer == "sform") else None
    if header.prefer == "qform" and qform is not None:
        sform = None
    elif header.prefer is None and sform is not None:
        _agree(sform * scale_matrix(scale), qform, pixdim, axes, where, scale)
    affine = sform if sform is not None else qform
    known = affine is not None
    if affine is None:
        affine = _base(fields, flat)
        warnings.append(
            f"{where}: the header does not say how the image lies in the patient (qform and sform codes are 0): "
            "orientation unknown, left and right included."
        )
    affine = affine * scale_matrix(scale)
    if problem := affine_problem(affine, smallest_mm=limits.smallest_spacing_mm, largest_mm=limits.largest_spacing_mm):
        raise InputError(f"{where}: {problem}. Export the image again, or correct its header.")
    return Grid(header.shape, affine), known, warnings


def scale_matrix(factor: float) -> Affine:
    """What a 4x4 affine is multiplied with, element by element, to change its unit of length."""
    matrix = np.ones((4, 4))
    matrix[:3] = factor
    return matrix


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


def _sform(fields: np.ndarray[Any, Any], flat: bool) -> Affine:
    affine = np.eye(4)
    affine[:3] = [fields["srow_x"], fields["srow_y"], fields["srow_z"]]
    return _with_thickness(affine, fields) if flat else affine


def _qform(fields: np.ndarray[Any, Any], flat: bool, where: str) -> Affine:
    copy = fields.copy()
    copy["pixdim"][0] = -1.0 if fields["pixdim"][0] < 0 else 1.0  # 0 means 1 (nifti1.h)
    kind = Nifti2Header if fields.dtype.itemsize == NIFTI2.itemsize else Nifti1Header
    order = fields.dtype["dim"].base.byteorder
    try:
        header = kind(copy.tobytes(), endianness="<" if order in "<=|" else ">", check=False)
        affine = np.asarray(header.get_qform(), dtype=np.float64)
    except (HeaderDataError, ValueError):
        raise InputError(
            f"{where}: its header's rotation (quatern_b, c, d) is not one. Export it again, or read it by its sform."
        ) from None
    return _with_thickness(affine, fields) if flat else affine


def _base(fields: np.ndarray[Any, Any], flat: bool) -> Affine:
    """The affine of a header without codes, as nibabel has it: first axis to the left, origin at the centre."""
    spacing = fields["pixdim"].astype(np.float64)[1:4]
    dims = np.maximum(fields["dim"].astype(np.float64)[1:4], 1)
    if flat and spacing[2] == 0:
        spacing[2] = 1.0
    affine = np.diag([-spacing[0], spacing[1], spacing[2], 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((dims - 1) / 2)
    return affine


def _with_thickness(affine: Affine, fields: np.ndarray[Any, Any]) -> Affine:
    """A single slice need not say its thickness; it is then taken to be 1 mm, square to the slice."""
    if np.any(affine[:3, 2] != 0) or not np.isfinite(affine).all():
        return affine
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    length = np.linalg.norm(normal)
    if length > 0:
        thickness = float(fields["pixdim"][3])
        affine[:3, 2] = normal / length * (thickness if thickness > 0 else 1.0)
    return affine


def _agree(
    sform: Affine, qform: Affine | None, pixdim: np.ndarray[Any, Any], axes: int, where: str, scale: float
) -> None:
    """The two affines, and the spacing, of one header must say the same."""
    lengths = np.linalg.norm(sform[:3, :3], axis=0)[:axes]
    if not np.isfinite(sform).all():
        return  # affine_problem says it better
    spacing = pixdim[1 : axes + 1] * scale
    if qform is None:
        wrong = np.abs(lengths - spacing) > SAME_AXIS * np.maximum(lengths, 1e-12)
        if np.any(wrong & (spacing > 0)):
            raise InputError(
                f"{where}: its header contradicts itself: spacing {_mm(spacing)} (pixdim) and {_mm(lengths)} (sform). "
                'Correct it, or choose with prefer="sform".'
            )
        return
    qform = qform * scale_matrix(scale)
    turned = np.linalg.norm((sform - qform)[:3, :axes], axis=0) > SAME_AXIS * np.maximum(lengths, 1e-12)
    moved = float(np.linalg.norm((sform - qform)[:3, 3]))
    if turned.any() or moved > SAME_ORIGIN_MM:
        what = "axes" if turned.any() else f"origins, by {moved:.3g} mm"
        raise InputError(
            f"{where}: its header contradicts itself: qform and sform have different {what}. "
            'Correct it, or choose one with prefer="sform" or prefer="qform".'
        )


def _mm(values: np.ndarray[Any, Any]) -> str:
    return "x".join(f"{v:.5g}" for v in values.tolist()) + " mm"
