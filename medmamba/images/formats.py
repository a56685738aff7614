"""The table of image formats, and reading and writing by a file's ending; one image of one file per channel.

A new format is one module (see checked.py for what it has) and one row of ``FORMATS``; another package
adds its row with :func:`register_format`. docs/how-to/add-an-image-format.md has an example.
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medmamba.errors import InputError, ResourceError
from medmamba.geometry import grid_difference
from medmamba.images.checked import (
    Decoded,
    Like,
    alone,
    checked_image,
    checked_labels,
    grid_of,
    header_and_zraw,
    pair,
    same_values,
    storable_labels,
)
from medmamba.images.gate import ReadOptions, shown
from medmamba.images.image import LabelMap, MedicalImage
from medmamba.images.text_header import detached_files


@dataclass(frozen=True)
class Format:
    """An image format; docs/how-to/add-an-image-format.md explains the columns.

    ``module`` is the dotted name of a module with ``read``, ``write`` and ``same_place``, or an object that has them.
    """

    name: str
    endings: tuple[str, ...]
    module: Any
    mask_ending: str | None = None
    flat: bool = False
    holds_probabilities: bool = True
    siblings: Callable[[Path], list[Path]] = alone
    detached: bool = False

    def load(self) -> Any:
        """What reads and writes it; a module is imported on first use."""
        return import_module(self.module) if isinstance(self.module, str) else self.module


_RASTER: dict[str, Any] = {"module": "medmamba.images.raster", "flat": True, "holds_probabilities": False}

FORMATS = [
    Format("NIfTI", (".nii.gz", ".nii"), "medmamba.images.nifti"),
    Format("NIfTI pair", (".hdr", ".img"), "medmamba.images.nifti", siblings=pair),
    Format("NRRD", (".seg.nrrd", ".nrrd"), "medmamba.images.nrrd"),  # 3D Slicer's segmentations, and images
    Format("NRRD header", (".nhdr",), "medmamba.images.nrrd", mask_ending=".nrrd", detached=True),
    Format("MetaImage", (".mha",), "medmamba.images.metaimage"),
    Format("MetaImage header", (".mhd",), "medmamba.images.metaimage", siblings=header_and_zraw, detached=True),
    Format("flat image", (".png", ".tif", ".tiff", ".bmp"), **_RASTER),
    Format("JPEG", (".jpg", ".jpeg"), mask_ending=".png", **_RASTER),
]
DICOM = Format("DICOM series", (), "medmamba.images.dicom", mask_ending=".nii.gz")
"""A folder with the slices of one series, or an enhanced multi-frame file, whatever its name."""


def register_format(kind: Format) -> None:
    """Adds a format to ``FORMATS`` for this process; raises ValueError if another format has one of its endings."""
    if taken := sorted(set(kind.endings) & set(known_endings())):
        raise ValueError(f"{kind.name}: {', '.join(taken)} is the ending of another format. Choose another.")
    FORMATS.append(kind)


def known_endings() -> tuple[str, ...]:
    """The endings of all formats, in lower case."""
    return tuple(ending for kind in FORMATS for ending in kind.endings)


def ending_of(path: Path | str) -> str | None:
    """The image ending of a file name, as ".nii.gz" of "a.nii.gz"; None if it is not that of an image."""
    name = Path(path).name.lower()
    return next((ending for ending in known_endings() if name.endswith(ending) and len(name) > len(ending)), None)


def stem_of(path: Path | str) -> str:
    """The file name without its image ending."""
    name, ending = Path(path).name, ending_of(path)
    return name[: -len(ending)] if ending else re.sub(r"(?i)\.dcm$", "", name)


def format_of(path: Path | str, where: str | None = None) -> Format:
    """The format of a file by its name, that of DICOM for a folder and a multi-frame file; InputError for others."""
    ending = ending_of(path)
    if ending is None and os.path.isdir(path):  # Path.is_dir raises for names that are too long
        return DICOM
    for kind in FORMATS:
        if ending in kind.endings:
            return kind
    from medmamba.images.dicom_headers import is_volume

    where = where or shown(path)
    if os.path.isfile(path) and os.path.getsize(path) and is_volume(Path(path), where):
        return DICOM
    raise InputError(f"{where}: not a known kind of image file. Known endings: {', '.join(known_endings())}.")


def read_image(
    path: Path | str, options: ReadOptions | None = None, *, where: str | None = None, **changes: Any
) -> MedicalImage:
    """One image file of any known format, or the folder of a DICOM series, checked; float32 (C, i, j, k).

    ``where`` names the file in errors (default: its path). ``changes`` are fields of the options by name.
    Raises InputError when the file cannot be used: one line with problem, place and cure.
    """
    options, where = replace(options or ReadOptions(), **changes), where or shown(path)
    return checked_image(_decoded(path, where, options, mask=False), path, where, options.nonfinite)


def read_label_map(
    path: Path | str, options: ReadOptions | None = None, *, where: str | None = None, **changes: Any
) -> LabelMap:
    """One label map of any known format, checked; whole numbers (i, j, k). Arguments as of :func:`read_image`."""
    options, where = replace(options or ReadOptions(), **changes), where or shown(path)
    return checked_labels(_decoded(path, where, options, mask=True), path, where)


def _decoded(path: Path | str, where: str, options: ReadOptions, *, mask: bool) -> Decoded:
    module = format_of(path, where).load()
    with np.errstate(all="ignore"):  # nonsense in a header overflows quietly and is refused by name
        found: Decoded = module.read(Path(path), where, options, mask=mask)
    return found


def read_channels(
    paths: Sequence[Path | str],
    options: ReadOptions | None = None,
    *,
    where: Sequence[str] | None = None,
    **changes: Any,
) -> MedicalImage:
    """One image whose channels may be spread over files; arguments as of :func:`read_image`.

    Raises InputError when a file cannot be used, or two of them lie on different grids.
    """
    names = list(where or [shown(path) for path in paths])
    images = [read_image(path, options, where=name, **changes) for path, name in zip(paths, names, strict=True)]
    first = images[0]
    for image, name in zip(images[1:], names[1:], strict=True):
        if difference := grid_difference(first.grid, image.grid):
            raise InputError(f"{names[0]} and {name} {difference}. Bring all channels of a case onto one grid.")
    if len(images) == 1:
        return first
    # Joined along the last axis in memory, so that i stays the fastest.
    array = np.moveaxis(np.concatenate([np.moveaxis(image.array, 0, -1) for image in images], axis=-1), -1, 0)
    constant: list[int] = []
    seen = 0
    for image in images:
        constant += [seen + channel for channel in image.constant_channels]
        seen += image.channels
    return replace(
        first,
        array=array,
        warnings=tuple(warning for image in images for warning in image.warnings),
        constant_channels=tuple(constant),
        orientation_known=all(image.orientation_known for image in images),
        nonfinite_voxels=sum(image.nonfinite_voxels for image in images),
    )


def write_label_map(path: Path | str, labels: npt.NDArray[Any], like: Like) -> None:
    """Writes labels (i, j, k) on the grid of ``like``, in the kind of file that the ending of ``path`` asks for.

    The smallest unsigned type that holds them is taken. The file is whole or absent, and was read again and compared
    before it got its name. Raises ValueError when the array does not fit the grid or is not made of whole numbers from
    0 on, and ResourceError when the disk is full or damaged; nothing is left behind.
    """
    _write(path, storable_labels(labels, grid_of(like).shape)[None], like, mask=True)


def write_image(path: Path | str, array: npt.NDArray[Any], like: Like) -> None:
    """Writes intensities or probabilities (C, i, j, k) on the grid of ``like``; read again as masks are."""
    channels, shape = np.asarray(array), grid_of(like).shape
    if channels.ndim != 4 or channels.shape[1:] != shape:
        raise ValueError(f"Channels of shape {channels.shape} do not lie on a grid of {shape}.")
    _write(path, channels, like, mask=False)


def _write(path: Path | str, stored: npt.NDArray[Any], like: Like, *, mask: bool) -> None:
    module, where = format_of(path).load(), shown(path)
    options = ReadOptions(prefer=getattr(getattr(like, "header", None), "prefer", None), any_spacing=True)

    def verify(part: Path) -> None:
        with np.errstate(all="ignore"):
            found: Decoded = module.read(part, where, options, mask=mask)
            if not module.same_place(found, like):
                raise ResourceError(f"Cannot write {where}: another geometry comes back from the disk. Check the disk.")
            if mask:
                same_values(checked_labels(found, part, where).array, stored[0], path)
            else:
                same_values(checked_image(found, part, where).array, stored, path)

    module.write(Path(path), stored, like, mask=mask, verify=verify)


def files_of(path: Path | str) -> list[Path]:
    """The files that an image is in: itself, its other half, the voxels its header names, or the files of a series."""
    path = Path(path)
    if path.is_dir():
        return sorted(entry for entry in path.iterdir() if entry.is_file() and not entry.name.startswith("."))
    kind = format_of(path)
    return detached_files(path) if kind.detached else kind.siblings(path)


def written_files(path: Path | str) -> list[Path]:
    """The files that writing an image or a label map to ``path`` makes."""
    return format_of(path).siblings(Path(path))


def mask_ending(path: Path | str) -> str:
    """The ending of the mask of an image: its own, or that of the nearest format that holds labels without loss."""
    ending = ending_of(path)
    return format_of(path).mask_ending or Path(path).name[-len(ending or "") :]


def list_images(
    folder: Path | str, on_message: Callable[[str], None] = lambda line: None, *, deep: bool = False
) -> list[Path]:
    """The images of a folder, sorted by name: files of known kinds, and DICOM series.

    A .hdr/.img pair counts once; a folder whose own files are DICOM slices is one series, and so is each folder in it
    whose files are. ``on_message`` receives the list of ignored files, and of folders without a series unless ``deep``:
    then they are listed next. Raises InputError if there is no folder, or nothing that can be read.
    """
    from medmamba.images.dicom_headers import holds_dicom, ignored

    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{shown(folder)}: not a folder. Give an image or a folder of images.")
    found = [folder] if (own := holds_dicom(folder)) else []
    aside: dict[str, list[str]] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            aside.setdefault("hidden", []).append(path.name)
        elif ending_of(path) is not None:
            header = written_files(path)[0]
            if header == path or not header.exists():
                found.append(path)
        elif path.is_dir() and holds_dicom(path):
            found.append(path)
        elif not (deep if path.is_dir() else own):  # files beside slices are reported by the reader of the series
            aside.setdefault("folder without a series" if path.is_dir() else "no image", []).append(path.name)
    others = ignored(aside)
    if not found:
        raise InputError(
            f"{shown(folder)}: no image in this folder{f' ({others})' if others else ''}. Known endings: "
            f"{', '.join(known_endings())}; or DICOM."
        )
    if others:
        on_message(f"{shown(folder)}: {others}.")
    return found
