"""Images that are in memory already: arrays, nibabel and SimpleITK images in, masks of the same kinds out.

They pass the same checks of geometry and voxels as files do. Neither library is imported unless its images are used.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medmamba.errors import InputError
from medmamba.geometry import Grid, affine_problem
from medmamba.images.checked import Decoded, Like, checked_image, grid_of, storable_labels
from medmamba.images.formats import read_image
from medmamba.images.gate import ReadOptions, check_size
from medmamba.images.image import MedicalImage

LPS = np.array([-1.0, -1.0, 1.0])


def as_image(source: Any, options: ReadOptions | None = None, *, where: str = "image") -> MedicalImage:
    """Anything that is an image, as a MedicalImage.

    ``source`` is a MedicalImage; a path (file, or folder of a DICOM series); an array; an (array, affine) pair; or a
    nibabel or SimpleITK image. Arrays are (i, j), (i, j, k) or (C, i, j, k), affines RAS+ mm. ``where`` names
    an image without a path in errors. Raises InputError, with the reason in one line, when it cannot be used.
    """
    if isinstance(source, MedicalImage):
        return source
    if isinstance(source, str | Path):
        return read_image(source, options)
    options = options or ReadOptions()
    library = type(source).__module__.split(".")[0]
    if isinstance(source, np.ndarray):
        found = _from_array(source, None, options, where)
    elif isinstance(source, tuple) and len(source) == 2:
        found = _from_array(source[0], source[1], options, where)
    elif library == "nibabel":
        found = _from_nibabel(source, options, where)
    elif library == "SimpleITK":
        found = _from_simpleitk(source, options, where)
    else:
        raise InputError(
            f"{where}: a {type(source).__name__} is not an image. Give a path, an array, an (array, affine) pair, or a "
            "nibabel or SimpleITK image."
        )
    return checked_image(found, where, where, options.nonfinite)


def _from_array(array: npt.ArrayLike, affine: npt.ArrayLike | None, options: ReadOptions, where: str) -> Decoded:
    """An array (i, j), (i, j, k) or (C, i, j, k) and its affine (4, 4) in RAS+ mm, or None without millimetres."""
    values = np.asarray(array)
    if values.dtype.kind not in "biuf":
        raise InputError(f"{where}: voxels of type {values.dtype}. Give one real number per voxel.")
    if values.ndim not in (2, 3, 4) or 0 in values.shape:
        raise InputError(f"{where}: an array of shape {values.shape}. Give (i, j, k) or (C, i, j, k).")
    if values.ndim == 2:
        values = values[..., None]
    channels = values[None] if values.ndim == 3 else values
    check_size(channels.shape[1:] + channels.shape[:1], where, options.max_voxels)
    if affine is not None and (problem := affine_problem(affine, any_spacing=options.any_spacing)):
        raise InputError(f"{where}: {problem}. Give the affine from voxels to RAS+ mm.")
    grid = Grid(channels.shape[1:], None if affine is None else np.asarray(affine, dtype=np.float64))
    # A copy: voxels that are not finite may be set to zero, and the array is the caller's own.
    return Decoded(np.array(channels), grid, orientation_known=affine is not None)


def _from_nibabel(image: Any, options: ReadOptions, where: str) -> Decoded:
    """A nibabel image (i, j, k) or (i, j, k, C); of NIfTI images the header's geometry goes with it to the mask."""
    from nibabel.nifti1 import Nifti1Header

    from medmamba.images.nifti import read_grid
    from medmamba.images.nifti_header import parse_header

    values = np.asanyarray(image.dataobj)
    while values.ndim > 4 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim == 5 and values.shape[3] == 1:  # vectors
        values = values[:, :, :, 0]
    channels = np.moveaxis(values, -1, 0) if values.ndim == 4 else values
    if not isinstance(image.header, Nifti1Header):  # Nifti2Header is one too
        return _from_array(channels, image.affine, options, where)
    image.update_header()
    fields = image.header.copy()
    fields["magic"], fields["vox_offset"] = fields.single_magic, fields.single_vox_offset
    fields["scl_slope"], fields["scl_inter"] = 1, 0
    header = parse_header(fields.binaryblock, where, options)
    with np.errstate(all="ignore"):
        grid, known, warnings = read_grid(header, where)
    stored = np.array(channels if values.ndim == 4 else channels.reshape(header.shape)[None])
    return Decoded(stored, grid, header, tuple(warnings), known)


def _from_simpleitk(image: Any, options: ReadOptions, where: str) -> Decoded:
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
    return _from_array(channels, affine + 0.0, options, where)


def to_nibabel(labels: npt.ArrayLike, like: Like) -> Any:
    """Labels (i, j, k) as a nibabel image with the header geometry of ``like``, in the smallest unsigned type."""
    import nibabel as nib

    from medmamba.images.nifti import content
    from medmamba.images.nifti_header import HEAD_BYTES

    head, voxels = content(storable_labels(labels, grid_of(like).shape)[None], like)
    kind = nib.Nifti2Image if len(head) > HEAD_BYTES else nib.Nifti1Image
    return kind.from_bytes(head + b"".join(voxels))


def to_simpleitk(labels: npt.ArrayLike, like: Like) -> Any:
    """Labels (i, j, k) as a SimpleITK image on the grid of ``like``."""
    import SimpleITK as sitk

    grid = grid_of(like)
    image = sitk.GetImageFromArray(np.ascontiguousarray(storable_labels(labels, grid.shape).T))
    if grid.affine is not None and grid.spacing_mm is not None:
        image.SetSpacing(grid.spacing_mm)
        image.SetOrigin((LPS * grid.affine[:3, 3]).tolist())
        image.SetDirection((LPS[:, None] * grid.affine[:3, :3] / grid.spacing_mm).ravel().tolist())
    return image
