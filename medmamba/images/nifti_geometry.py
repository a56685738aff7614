"""The grid of a NIfTI image: the choice between its header's two affines, and the check that they agree."""

from __future__ import annotations

from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.spatialimages import HeaderDataError

from medmamba.errors import InputError
from medmamba.geometry import Affine, Grid, Shape, affine_problem
from medmamba.images.nifti_header import Fields, NiftiHeader

MM_PER_UNIT = {1: 1000.0, 2: 1.0, 3: 0.001}  # metre, millimetre, micrometre; 0 is "unknown" and taken for mm
UNIT_NAMES = {1: "metres", 3: "micrometres"}
SAME_AXIS = 1e-3  # of the spacing, between the axes of qform and sform
SAME_ORIGIN_MM = 0.1


def read_grid(header: NiftiHeader, where: str) -> tuple[Grid, bool, list[str]]:
    """The grid of one channel in RAS+ mm, whether its orientation is known, and warnings.

    Raises:
        InputError: the geometry is missing, contradicts itself, or is not that of an image.
    """
    library = header.nibabel
    fields: Fields = library.structarr
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
    unit = int(fields["xyzt_units"]) & 7
    if unit not in (0, *MM_PER_UNIT):
        warnings.append(f"{where}: unknown unit of length (xyzt_units {unit}); millimetres were assumed.")
    scale = MM_PER_UNIT.get(unit, 1.0)
    if unit in UNIT_NAMES:
        warnings.append(f"{where}: lengths are in {UNIT_NAMES[unit]} and were converted to millimetres.")

    sform = qform = None
    if int(fields["sform_code"]) > 0:
        sform = _with_thickness(library.get_sform(), fields, flat)
    if int(fields["qform_code"]) > 0 and not (sform is not None and header.prefer == "sform"):
        qform = _with_thickness(_qform(library, where), fields, flat)
    if header.prefer == "qform" and qform is not None:
        sform = None
    elif header.prefer is None and sform is not None:
        _agree(sform * _scale_matrix(scale), qform, pixdim, axes, where, scale)
    affine = sform if sform is not None else qform
    known = affine is not None
    if affine is None:
        affine = _base(header.shape, pixdim[1:4])
        warnings.append(
            f"{where}: the header does not say how the image lies in the patient (qform and sform codes are 0): "
            "orientation unknown, left and right included."
        )
    affine = affine * _scale_matrix(scale)
    if problem := affine_problem(affine):
        raise InputError(f"{where}: {problem}. Export the image again, or correct its header.")
    return Grid(header.shape, affine), known, warnings


def _scale_matrix(factor: float) -> Affine:
    """What a 4x4 affine is multiplied with, element by element, to change its unit of length."""
    matrix = np.ones((4, 4))
    matrix[:3] = factor
    return matrix


def _qform(header: Nifti1Header, where: str) -> Affine:
    copy = header.copy()
    copy["pixdim"][0] = -1.0 if header["pixdim"][0] < 0 else 1.0  # 0 means 1 (nifti1.h)
    try:
        return np.asarray(copy.get_qform(), dtype=np.float64)
    except (HeaderDataError, ValueError):
        raise InputError(
            f"{where}: its header's rotation (quatern_b, c, d) is not one. Export it again, or read it by its sform."
        ) from None


def _base(shape: Shape, spacing: np.ndarray[Any, Any]) -> Affine:
    """The affine of a header without codes, as nibabel has it: first axis to the left, origin at the centre."""
    thickness = 1.0 if shape[2] == 1 and spacing[2] == 0 else spacing[2]
    affine = np.diag([-spacing[0], spacing[1], thickness, 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def _with_thickness(affine: Affine, fields: Fields, flat: bool) -> Affine:
    """A single slice need not say its thickness; it is then taken to be 1 mm, square to the slice."""
    if not flat or np.any(affine[:3, 2] != 0) or not np.isfinite(affine).all():
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
        return  # affine_problem names the field
    spacing = pixdim[1 : axes + 1] * scale
    if qform is None:
        wrong = np.abs(lengths - spacing) > SAME_AXIS * np.maximum(lengths, 1e-12)
        if np.any(wrong & (spacing > 0)):
            raise InputError(
                f"{where}: its header contradicts itself: spacing {_mm(spacing)} (pixdim) and {_mm(lengths)} (sform). "
                'Correct it, or choose with prefer="sform".'
            )
        return
    qform = qform * _scale_matrix(scale)
    rotated = np.linalg.norm((sform - qform)[:3, :axes], axis=0) > SAME_AXIS * np.maximum(lengths, 1e-12)
    moved = float(np.linalg.norm((sform - qform)[:3, 3]))
    if rotated.any() or moved > SAME_ORIGIN_MM:
        what = "axes" if rotated.any() else f"origins, by {moved:.3g} mm"
        raise InputError(
            f"{where}: its header contradicts itself: qform and sform have different {what}. "
            'Correct it, or choose one with prefer="sform" or prefer="qform".'
        )


def _mm(values: np.ndarray[Any, Any]) -> str:
    return "x".join(f"{v:.5g}" for v in values.tolist()) + " mm"
