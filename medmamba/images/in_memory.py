"""Images that are in memory already: arrays, nibabel and SimpleITK images in, masks of the same kinds out.

They pass the same checks of geometry and voxels as files do. Neither library is imported unless its images are used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medmamba.errors import InputError
from medmamba.geometry import Grid, Shape, affine_problem
from medmamba.images.checked import checked_image, storable_labels
from medmamba.images.formats import read_image
from medmamba.images.gate import Limits, check_size
from medmamba.images.image import LabelMap, MedicalImage
from medmamba.images.voxels import NonFinite

LPS = np.array([-1.0, -1.0, 1.0])


def as_image(
    source: Any, *, nonfinite: NonFinite = "error", limits: Limits | None = None, where: str = "image"
) -> MedicalImage:
    """Anything that is an image, as a MedicalImage.

    Args:
        source: a MedicalImage; a path (file, or folder of a DICOM series); an array; an (array, affine) pair; a nibabel
            image; a SimpleITK image. Arrays are (i, j, k) or (C, i, j, k), affines RAS+ mm.
        where: how errors call an image that has no path.

    Raises:
        InputError: it cannot be used; one line that says why.
    """
    if isinstance(source, MedicalImage):
        return source
    if isinstance(source, str | Path):
        return read_image(source, nonfinite=nonfinite, limits=limits)
    if isinstance(source, np.ndarray):
        return from_array(source, None, nonfinite=nonfinite, limits=limits, where=where)
    if isinstance(source, tuple) and len(source) == 2:
        return from_array(source[0], source[1], nonfinite=nonfinite, limits=limits, where=where)
    library = type(source).__module__.split(".")[0]
    if library == "nibabel":
        return from_nibabel(source, nonfinite=nonfinite, limits=limits, where=where)
    if library == "SimpleITK":
        return from_simpleitk(source, nonfinite=nonfinite, limits=limits, where=where)
    raise InputError(
        f"{where}: a {type(source).__name__} is not an image. Give a path, an array, an (array, affine) pair, or a "
        "nibabel or SimpleITK image."
    )


def from_array(
    array: npt.ArrayLike,
    affine: npt.ArrayLike | None,
    *,
    nonfinite: NonFinite = "error",
    limits: Limits | None = None,
    where: str = "image",
) -> MedicalImage:
    """An array (i, j), (i, j, k) or (C, i, j, k) and its affine (4, 4) in RAS+ mm, or None without millimetres."""
    limits = limits or Limits()
    values = np.asarray(array)
    if values.dtype.kind not in "biuf":
        raise InputError(f"{where}: voxels of type {values.dtype}. Give one real number per voxel.")
    if values.ndim not in (2, 3, 4) or 0 in values.shape:
        raise InputError(f"{where}: an array of shape {values.shape}. Give (i, j, k) or (C, i, j, k).")
    if values.ndim == 2:
        values = values[..., None]
    channels = values[None] if values.ndim == 3 else values
    check_size(channels.shape[1:] + channels.shape[:1], where, limits)
    grid = _grid(channels.shape[1:], affine, where, limits)
    # A copy: voxels that are not finite may be set to zero, and the caller's array is his own.
    return checked_image(
        np.array(channels), grid, None, where, where, [], nonfinite=nonfinite, orientation_known=affine is not None
    )


def from_nibabel(
    image: Any, *, nonfinite: NonFinite = "error", limits: Limits | None = None, where: str = "image"
) -> MedicalImage:
    """A nibabel image (i, j, k) or (i, j, k, C); of NIfTI images the header's geometry goes with it to the mask."""
    from nibabel.nifti1 import Nifti1Header

    from medmamba.images.nifti_geometry import read_grid
    from medmamba.images.nifti_header import parse_header

    limits = limits or Limits()
    values = np.asanyarray(image.dataobj)
    while values.ndim > 4 and values.shape[-1] == 1:
        values = values[..., 0]
    channels = np.moveaxis(values, -1, 0) if values.ndim == 4 else values
    if not isinstance(image.header, Nifti1Header):  # Nifti2Header is one too
        return from_array(channels, image.affine, nonfinite=nonfinite, limits=limits, where=where)
    image.update_header()
    fields = image.header.copy()
    fields["magic"] = b"n+2\0\r\n\032\n" if "2" in type(fields).__name__ else b"n+1"
    fields["vox_offset"] = 544 if "2" in type(fields).__name__ else 352
    fields["scl_slope"], fields["scl_inter"] = 1, 0
    header = parse_header(fields.binaryblock, where, limits)
    with np.errstate(all="ignore"):
        grid, known, warnings = read_grid(header, where, limits)
    stored = np.array(channels if values.ndim == 4 else channels.reshape(header.shape)[None])
    return checked_image(stored, grid, header, where, where, warnings, nonfinite=nonfinite, orientation_known=known)


def from_simpleitk(
    image: Any, *, nonfinite: NonFinite = "error", limits: Limits | None = None, where: str = "image"
) -> MedicalImage:
    """A SimpleITK image in 2D or 3D; components become channels. A 2D image has its spacing, but no orientation."""
    import SimpleITK as sitk

    dimension = image.GetDimension()
    if dimension not in (2, 3):
        raise InputError(f"{where}: {dimension} dimensions. Give a 2D or 3D image.")
    values = sitk.GetArrayFromImage(image)  # (k, j, i) or (k, j, i, C)
    channels = np.moveaxis(values, -1, 0) if image.GetNumberOfComponentsPerPixel() > 1 else values[None]
    channels = channels.transpose(0, *range(dimension, 0, -1))
    affine = np.eye(4)
    flips = LPS if dimension == 3 else np.ones(2)
    direction = np.array(image.GetDirection()).reshape(dimension, dimension)
    affine[:dimension, :dimension] = flips[:, None] * direction * image.GetSpacing()
    affine[:dimension, 3] = flips * image.GetOrigin()
    if dimension == 2:
        channels = channels[..., None]
    return from_array(channels, affine + 0.0, nonfinite=nonfinite, limits=limits, where=where)


def to_nibabel(labels: npt.ArrayLike, like: MedicalImage | LabelMap | Grid) -> Any:
    """Labels (i, j, k) as a nibabel image with the header geometry of ``like``, in the smallest unsigned type."""
    import nibabel as nib

    from medmamba.images.nifti_header import NIFTI2, NiftiHeader, fresh_header

    grid = like if isinstance(like, Grid) else like.grid
    header = like.header if not isinstance(like, Grid) and isinstance(like.header, NiftiHeader) else fresh_header(grid)
    stored = storable_labels(labels, grid.shape)
    several = header.channels > 1
    stored = stored.reshape(header.shape if several else header.dims)
    raw = header.fields
    kind = nib.Nifti2Image if raw.dtype.itemsize == NIFTI2.itemsize else nib.Nifti1Image
    fields = kind.header_class(raw.astype(raw.dtype.newbyteorder("=")).tobytes(), check=False)
    fields["magic"] = kind.header_class.default_structarr()["magic"]
    fields.set_data_shape(stored.shape)
    fields.set_data_dtype(stored.dtype)
    pixdim = raw["pixdim"].copy()
    image = kind(stored, None, fields)
    image.header["pixdim"][: 4 if several else 8] = pixdim[: 4 if several else 8]
    return image


def to_simpleitk(labels: npt.ArrayLike, like: MedicalImage | LabelMap | Grid) -> Any:
    """Labels (i, j, k) as a SimpleITK image on the grid of ``like``."""
    import SimpleITK as sitk

    grid = like if isinstance(like, Grid) else like.grid
    image = sitk.GetImageFromArray(np.ascontiguousarray(storable_labels(labels, grid.shape).T))
    if grid.affine is not None and grid.spacing_mm is not None:
        image.SetSpacing(grid.spacing_mm)
        image.SetOrigin((LPS * grid.affine[:3, 3]).tolist())
        image.SetDirection((LPS[:, None] * grid.affine[:3, :3] / grid.spacing_mm).ravel().tolist())
    return image


def _grid(shape: Shape, affine: npt.ArrayLike | None, where: str, limits: Limits) -> Grid:
    if affine is None:
        return Grid(shape)
    matrix = np.asarray(affine, dtype=np.float64)
    problem = affine_problem(matrix, smallest_mm=limits.smallest_spacing_mm, largest_mm=limits.largest_spacing_mm)
    if problem:
        raise InputError(f"{where}: {problem}. Give the affine from voxels to RAS+ mm.")
    return Grid(shape, matrix)
