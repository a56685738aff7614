"""Which reader and which writer a file belongs to, by its ending; one image out of one file per channel."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from medmamba.errors import InputError, ResourceError
from medmamba.geometry import grid_difference
from medmamba.images.checked import (
    Decoded,
    Like,
    checked_image,
    checked_labels,
    grid_of,
    same_values,
    storable_channels,
    storable_labels,
)
from medmamba.images.gate import Limits, shown
from medmamba.images.image import LabelMap, MedicalImage
from medmamba.images.nifti_header import Prefer
from medmamba.images.voxels import NonFinite


@dataclass(frozen=True)
class Format:
    """A kind of image file: its endings and its module (see checked.py for what that has)."""

    name: str
    endings: tuple[str, ...]
    module: str

    def load(self) -> ModuleType:
        """The module, imported on first use."""
        return import_module(self.module)


FORMATS = (
    Format("NIfTI", (".nii.gz", ".nii"), "medmamba.images.nifti"),
    Format("NIfTI pair", (".hdr", ".img"), "medmamba.images.nifti"),
    Format("NRRD", (".nrrd", ".nhdr"), "medmamba.images.nrrd"),
    Format("MetaImage", (".mha", ".mhd"), "medmamba.images.metaimage"),
    Format("flat image", (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg"), "medmamba.images.raster"),
)
DICOM = Format("DICOM series", (), "medmamba.images.dicom")
"""A folder, not a file: the slices of one series."""
ENDINGS = tuple(ending for kind in FORMATS for ending in kind.endings)


def ending_of(path: Path | str) -> str | None:
    """The image ending of a file name, as ".nii.gz" of "a.nii.gz"; None if it is not that of an image."""
    name = Path(path).name.lower()
    return next((ending for ending in ENDINGS if name.endswith(ending) and len(name) > len(ending)), None)


def stem_of(path: Path | str) -> str:
    """The file name without its image ending."""
    name, ending = Path(path).name, ending_of(path)
    return name[: -len(ending)] if ending else name


def format_of(path: Path | str, where: str | None = None) -> Format:
    """The format of a file, by its name, or that of a DICOM series for a folder.

    Raises:
        InputError: no reader knows the ending.
    """
    ending = ending_of(path)
    if ending is None and os.path.isdir(path):  # Path.is_dir raises for names that are too long
        return DICOM
    for kind in FORMATS:
        if ending in kind.endings:
            return kind
    if Path(path).suffix.lower() == ".dcm":
        raise InputError(f"{where or shown(path)}: one slice of a DICOM series. Give the folder of the series.")
    raise InputError(f"{where or shown(path)}: not a known kind of image file. Known endings: {', '.join(ENDINGS)}.")


def read_image(
    path: Path | str,
    *,
    nonfinite: NonFinite = "error",
    prefer: Prefer | None = None,
    limits: Limits | None = None,
    where: str | None = None,
) -> MedicalImage:
    """One image file of any known kind, or the folder of a DICOM series, checked; float32 (C, i, j, k).

    Args:
        nonfinite: "zero" sets NaN and infinite voxels to 0 and counts them; otherwise they are an error.
        prefer: which affine of a NIfTI header to take when its two contradict each other.
        limits: largest number of voxels, range of spacings.
        where: how errors call the file; its path if not given.

    Raises:
        InputError: the file cannot be used; one line that says what is wrong, where, and what to do.
    """
    found, where = _decoded(path, where, limits, prefer, mask=False)
    return _image(found, path, where, nonfinite)


def read_label_map(
    path: Path | str, *, prefer: Prefer | None = None, limits: Limits | None = None, where: str | None = None
) -> LabelMap:
    """One label map of any known kind, checked; whole numbers (i, j, k)."""
    found, where = _decoded(path, where, limits, prefer, mask=True)
    return _label_map(found, path, where)


def _decoded(
    path: Path | str, where: str | None, limits: Limits | None, prefer: Prefer | None, *, mask: bool
) -> tuple[Decoded, str]:
    module, where = format_of(path, where).load(), where or shown(path)
    with np.errstate(all="ignore"):  # nonsense in a header overflows quietly and is refused by name
        return module.read(Path(path), where, limits or Limits(), prefer, mask=mask), where


def _image(found: Decoded, path: Path | str, where: str, nonfinite: NonFinite = "error") -> MedicalImage:
    return checked_image(
        found.stored,
        found.grid,
        found.header,
        path,
        where,
        found.warnings,
        nonfinite=nonfinite,
        slope=found.slope,
        inter=found.inter,
        orientation_known=found.orientation_known,
    )


def _label_map(found: Decoded, path: Path | str, where: str) -> LabelMap:
    channels = len(found.stored)
    if channels > 1:
        raise InputError(f"{where}: {channels} channels; a label map has one. Give one label map per case.")
    return checked_labels(
        found.stored[0],
        found.grid,
        found.header,
        path,
        where,
        found.warnings,
        slope=found.slope,
        inter=found.inter,
    )


def read_channels(
    paths: Sequence[Path | str],
    *,
    nonfinite: NonFinite = "error",
    prefer: Prefer | None = None,
    limits: Limits | None = None,
    where: Sequence[str] | None = None,
) -> MedicalImage:
    """One image whose channels may be spread over files, all on one grid.

    Raises:
        InputError: a file cannot be used, or two of them lie on different grids.
    """
    names = list(where or [shown(path) for path in paths])
    images = [
        read_image(path, nonfinite=nonfinite, prefer=prefer, limits=limits, where=name)
        for path, name in zip(paths, names, strict=True)
    ]
    first = images[0]
    for image, name in zip(images[1:], names[1:], strict=True):
        if difference := grid_difference(first.grid, image.grid):
            raise InputError(f"{names[0]} and {name} {difference}. Bring all channels of a case onto one grid.")
    if len(images) == 1:
        return first
    constant: list[int] = []
    seen = 0
    for image in images:
        constant += [seen + channel for channel in image.constant_channels]
        seen += image.channels
    array = np.moveaxis(np.empty((*first.grid.shape, seen), dtype=np.float32, order="F"), -1, 0)
    seen = 0
    for image in images:
        array[seen : seen + image.channels] = image.array
        seen += image.channels
    return MedicalImage(
        array,
        first.grid,
        first.header,
        first.path,
        tuple(warning for image in images for warning in image.warnings),
        tuple(constant),
        all(image.orientation_known for image in images),
        sum(image.nonfinite_voxels for image in images),
    )


def write_label_map(path: Path | str, labels: npt.NDArray[Any], like: Like) -> None:
    """Writes labels (i, j, k) on the grid of ``like``, in the kind of file that the ending of ``path`` asks for.

    The smallest unsigned type that holds them is taken. The file is whole or absent, and was read again and compared
    before it got its name.

    Raises:
        ValueError: the array does not fit the grid, or is not made of whole numbers from 0 on.
        ResourceError: the disk is full or damaged; nothing is left behind.
    """
    _write(path, storable_labels(labels, grid_of(like).shape)[None], like, mask=True)


def write_image(path: Path | str, array: npt.NDArray[Any], like: Like) -> None:
    """Writes intensities or probabilities (C, i, j, k) on the grid of ``like``; read again as masks are."""
    _write(path, storable_channels(array, grid_of(like).shape), like, mask=False)


def _write(path: Path | str, stored: npt.NDArray[Any], like: Like, *, mask: bool) -> None:
    module, where = format_of(path).load(), shown(path)
    prefer: Prefer | None = getattr(getattr(like, "header", None), "prefer", None)

    def verify(part: Path) -> None:
        with np.errstate(all="ignore"):
            found: Decoded = module.read(part, where, Limits(), prefer, mask=mask)
            if not module.same_place(found, like):
                raise ResourceError(f"Cannot write {where}: another geometry comes back from the disk. Check the disk.")
            if mask:
                same_values(_label_map(found, part, where).array, stored[0], path)
            else:
                same_values(_image(found, part, where).array, stored, path)

    module.write(Path(path), stored, like, mask=mask, verify=verify)


def files_of(path: Path | str) -> list[Path]:
    """The files that an image is in: itself, its other half, the voxels its header names, or the files of a series.

    Raises:
        InputError: the header of detached voxels cannot be read.
    """
    from medmamba.images.text_header import voxel_file

    path = Path(path)
    if path.is_dir():
        return sorted(entry for entry in path.iterdir() if entry.is_file() and not entry.name.startswith("."))
    if ending_of(path) in (".mhd", ".nhdr"):
        beside = voxel_file(path)
        return [path] if beside is None else [path, beside]
    return written_files(path)


def written_files(path: Path | str) -> list[Path]:
    """The files that writing an image or a label map to ``path`` makes."""
    from medmamba.images.nifti import pair_of

    path = Path(path)
    if ending_of(path) == ".mhd":
        return [path, path.with_suffix(".zraw")]
    return list(pair_of(path) or [path])


def mask_ending(path: Path | str) -> str:
    """The ending of the mask of an image: its own, or the nearest kind that holds labels without loss.

    A JPEG's mask is a PNG, that of a DICOM series a .nii.gz, that of a detached NRRD header a .nrrd in one file.
    """
    ending = ending_of(path)
    if ending is None:
        return ".nii.gz"
    return {".jpg": ".png", ".jpeg": ".png", ".nhdr": ".nrrd"}.get(ending, Path(path).name[-len(ending) :])


def list_images(folder: Path | str) -> list[Path]:
    """The images of a folder, sorted by name: files of known kinds, and DICOM series.

    Hidden files are skipped; a .hdr/.img pair counts once; a folder whose own files are DICOM is one series, and so
    is each folder in it whose files are.

    Raises:
        InputError: not a folder, or nothing in it that can be read.
    """
    from medmamba.images.dicom import holds_dicom

    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{shown(folder)}: not a folder. Give an image or a folder of images.")
    found = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        ending = ending_of(path)
        if ending == ".img" and any(path.with_suffix(header).exists() for header in (".hdr", ".HDR")):
            continue
        if ending is not None or (path.is_dir() and holds_dicom(path)):
            found.append(path)
    if not found and holds_dicom(folder):
        return [folder]
    if not found:
        raise InputError(f"{shown(folder)}: no image in this folder. Known endings: {', '.join(ENDINGS)}; or DICOM.")
    return found
