"""Reader of a folder with the slices of one DICOM series, ordered by their positions in the patient.

The grouping and order of files, missing slices and the geometry of the volume are determined here, from the tags of
their headers, before SimpleITK (imported on first use) decodes the pixels.

Source of the geometry: DICOM PS3.3 C.7.6.2.1.1, equation C.7.6.2.1-1. World axes are LPS there, RAS+ here.
"""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from medmamba.disk.atomic import explained
from medmamba.errors import InputError
from medmamba.geometry import Affine, Grid, affine_problem
from medmamba.images import dicom_headers as headers
from medmamba.images.checked import Decoded
from medmamba.images.dicom_headers import COLUMNS, ROWS, Tags, holds_dicom, ignored
from medmamba.images.gate import ReadOptions, check_memory, check_size, shown

SAME_SLICE = 0.01  # of the spacing: closer slices are the same one twice
EVEN_SPACING = 0.05  # of the spacing: positions are written rounded
SAME_DIRECTION = 1e-3


@dataclass(frozen=True)
class Slice:
    """One file: where its first pixel lies (LPS mm), its in-plane axes, and its size."""

    path: Path
    position: npt.NDArray[np.float64]
    orientation: npt.NDArray[np.float64]  # (6,): direction of a row, direction of a column
    spacing: npt.NDArray[np.float64]  # (2,): between rows, between columns
    size: tuple[int, int]  # columns, rows
    thickness: float
    inverted: bool  # MONOCHROME1: small values are shown bright
    phase: tuple[float, ...]  # values of PHASE; 0 if missing


def read(folder: Path, where: str, options: ReadOptions, *, mask: bool) -> Decoded:
    """The volume of a series folder, (1, i, j, k): i along rows, j along columns, k through the slices.

    Raises InputError as :func:`read_slices`, for a damaged file, or when a mask is asked for (DICOM SEG is not read).
    """
    if mask:
        raise InputError(f"{where}: a DICOM folder; label maps are read as NIfTI, NRRD or MetaImage. Convert it.")
    slices, grid, notes = read_slices(folder, where, options)
    check_memory(grid.voxels * 4, where)
    stored = np.empty(grid.shape, dtype=np.float32, order="F")
    for number, piece in enumerate(slices):
        stored[:, :, number] = _pixels(piece, f"{where}: {shown(piece.path.name)}")
    return Decoded(stored[None], grid, None, tuple(notes))


def read_slices(folder: Path, where: str, options: ReadOptions) -> tuple[list[Slice], Grid, list[str]]:
    """The slices of a series folder in their order, without their pixels; the grid of the volume; warnings.

    Raises InputError for no series or several, missing or doubled slices, a tilted gantry, and colours.
    """
    found, aside = headers.sorted_out(folder, where)
    found = headers.without_localizers(found, aside)
    if not found:
        inside = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and holds_dicom(entry.path))
        hint = f" There are some in its folder {shown(inside[0])}." if inside else ""
        others = f" ({ignored(aside)})" if aside else ""
        raise InputError(f"{where}: no DICOM slices in this folder{others}.{hint} Give the folder of one series.")
    kept = _without_copies(list(found))
    if len(kept) < len(found):
        aside["identical copy"] = [path.name for path in found if path not in kept]
    if (count := len({found[path].get(headers.SERIES, "") for path in kept})) > 1:
        raise InputError(
            f"{where}: {count} series in one folder. Give each a folder of its own, or choose one with "
            "`medmamba predict --series`; `--series ?` lists them."
        )
    slices = [_slice(path, found[path], f"{where}: {shown(path.name)}") for path in kept]
    for piece in slices[1:]:
        if what := _difference(piece, slices[0]):
            raise InputError(
                f"{where}: slices of different {what}: {shown(slices[0].path.name)} and {shown(piece.path.name)}. "
                "Keep one volume in the folder, or choose one with `medmamba predict --series`."
            )
    affine = _in_order(slices, where)
    if problem := affine_problem(affine, any_spacing=options.any_spacing):
        raise InputError(f"{where}: {problem}.")
    shape = (*slices[0].size, len(slices))
    check_size(shape, where, options.max_voxels)
    return slices, Grid(shape, affine), [f"{where}: {ignored(aside)}."] if aside else []


def _without_copies(files: list[Path]) -> list[Path]:
    """The first of the files that are equal byte for byte."""
    sizes = Counter(path.stat().st_size for path in files)
    kept: dict[int | bytes, Path] = {}
    for path in files:
        mark: int | bytes = (size := path.stat().st_size)
        if sizes[size] > 1:
            with open(path, "rb") as file:
                mark = hashlib.file_digest(file, "sha256").digest()
        kept.setdefault(mark, path)
    return list(kept.values())


def _difference(a: Slice, b: Slice) -> str:
    return (
        "size" if a.size != b.size
        else "pixel spacing" if not np.allclose(a.spacing, b.spacing, rtol=1e-4)
        else "orientation" if np.abs(a.orientation - b.orientation).max() > SAME_DIRECTION
        else ""
    )  # fmt: skip


def parts_of(found: dict[Path, Tags]) -> list[list[Path]]:
    """The slices of one series by stack (of one size, spacing and orientation), and the phases of each stack.

    A series that cannot be divided is one part; its reader reports why.
    """
    stacks: list[list[Slice]] = []
    try:
        pieces = [_slice(path, tags, "") for path, tags in found.items()]
    except InputError:
        return [list(found)]
    for piece in pieces:
        stack = next((stack for stack in stacks if not _difference(piece, stack[0])), None)
        if stack is None:
            stacks.append([piece])
        else:
            stack.append(piece)
    return [[piece.path for piece in phase] for stack in stacks for phase in _phases(stack)]


def _phases(stack: list[Slice]) -> list[list[Slice]]:
    """Groups of slices that cover the same positions, one per phase; the stack itself where no phases are found."""
    places = _places(stack)
    if len(places) < len(stack):
        kept = set(_without_copies([piece.path for piece in stack]))
        places = _places([piece for piece in stack if piece.path in kept])
    if len(set(map(len, places.values()))) == 1:
        return [list(phase) for phase in zip(*places.values(), strict=True)]
    groups: dict[tuple[float, ...], list[Slice]] = defaultdict(list)  # phases that do not cover the same positions
    for piece in chain(*places.values()):
        groups[piece.phase[:3]].append(piece)
    return list(groups.values()) if all(len(_places(group)) == len(group) for group in groups.values()) else [stack]


def _places(stack: list[Slice]) -> dict[tuple[float, ...], list[Slice]]:
    places = defaultdict(list)
    for piece in sorted(stack, key=lambda piece: piece.phase):
        places[tuple(np.round(piece.position, 3).tolist())].append(piece)
    return places


def _slice(path: Path, tags: Tags, where: str) -> Slice:
    def values(tag: int, name: str, count: int, default: str = "") -> npt.NDArray[np.float64]:
        text = tags.get(tag, default)
        try:
            found = np.array([float(word) for word in text.split("\\")])
        except ValueError:
            found = np.array([])
        if len(found) != count or not np.isfinite(found).all():
            raise InputError(
                f"{where}: its {name} is {shown(text)[:40]!r}; {count} number(s) are needed. Export it again."
            )
        return found

    if values(headers.FRAMES, "Number of Frames", 1, "1")[0] > 1:
        raise InputError(f"{where}: several frames in one file (enhanced DICOM). Convert the series to NIfTI first.")
    rows, columns = (int(values(tag, name, 1)[0]) for tag, name in ((ROWS, "Rows"), (COLUMNS, "Columns")))
    orientation = values(headers.ORIENTATION, "Image Orientation", 6)
    if abs(np.linalg.norm(orientation[:3]) - 1) > 1e-2 or abs(np.linalg.norm(orientation[3:]) - 1) > 1e-2:
        raise InputError(f"{where}: its Image Orientation holds no directions of length 1. Export it again.")

    def known(tag: int) -> float:
        text = tags.get(tag, "")
        return float(text) if text.replace(".", "", 1).isdecimal() else 0.0

    return Slice(
        path,
        values(headers.POSITION, "Image Position", 3),
        orientation,
        values(headers.PIXEL_SPACING, "Pixel Spacing", 2),
        (columns, rows),
        known(headers.THICKNESS),
        tags.get(headers.PHOTOMETRIC) == "MONOCHROME1",
        tuple(map(known, headers.PHASE)),
    )


def _in_order(slices: list[Slice], where: str) -> Affine:
    """Sorts slices along their normal, checks that none is missing or doubled, and gives the affine (RAS+ mm)."""
    first = slices[0]
    row, column = first.orientation[:3], first.orientation[3:]
    normal = np.cross(row, column)
    slices.sort(key=lambda piece: float(piece.position @ normal))
    step = normal * (first.thickness or 1.0)
    if len(slices) > 1:
        heights = np.array([piece.position @ normal for piece in slices])
        gaps = np.diff(heights)
        usual = float(np.median(gaps))
        if (double := np.flatnonzero(gaps <= SAME_SLICE * max(usual, 1e-6))).size:
            a, b = slices[int(double[0])], slices[int(double[0]) + 1]
            raise InputError(
                f"{where}: {shown(a.path.name)} and {shown(b.path.name)} are at the same place ({len(double)} such "
                "pairs). Keep one phase in the folder, or choose one with `medmamba predict --series`."
            )
        wrong = np.abs(gaps - usual) > EVEN_SPACING * usual
        if wrong.any():
            at = int(np.argmax(np.abs(gaps - usual)))
            what = "a slice is missing" if gaps[at] > 1.5 * usual else "slices are unevenly spaced"
            raise InputError(
                f"{where}: {what}: {gaps[at]:.3g} mm between {shown(slices[at].path.name)} and "
                f"{shown(slices[at + 1].path.name)}, {usual:.3g} mm elsewhere. Add the missing files."
            )
        step = (slices[-1].position - slices[0].position) / (len(slices) - 1)
    affine = np.eye(4)
    affine[:3, 0] = row * first.spacing[1]  # along a row, from column to column
    affine[:3, 1] = column * first.spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = slices[0].position
    affine[:2] *= -1  # LPS to RAS
    return affine + 0.0


def _pixels(piece: Slice, where: str) -> npt.NDArray[np.float32]:
    """Values (i, j) of one slice, with the rescaling of its own tags."""
    import SimpleITK as sitk

    with _stored_as_shown(piece, where) as path:
        reader = sitk.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(os.fspath(path))
        _quietly(reader.ReadImageInformation, f"{where}: a damaged DICOM file")
        if reader.GetSize()[:2] != piece.size:
            raise InputError(f"{where}: {reader.GetSize()} pixels, the header says {piece.size}. Copy it again.")
        pixels = sitk.GetArrayFromImage(_quietly(reader.Execute, f"{where}: its pixels cannot be decoded"))
    if pixels.size != prod(piece.size):
        raise InputError(f"{where}: {pixels.shape} pixels where its header says {piece.size}. The file is damaged.")
    return pixels.reshape(piece.size[::-1]).T.astype(np.float32)


@contextmanager
def _stored_as_shown(piece: Slice, where: str) -> Iterator[Path]:
    """The file; for MONOCHROME1 a copy marked MONOCHROME2, because ITK would invert its stored values."""
    if not piece.inverted:
        yield piece.path
        return
    raw = piece.path.read_bytes()
    if b"MONOCHROME1" not in raw:
        raise InputError(f"{where}: MONOCHROME1 in a deflated file. Convert it to an uncompressed transfer syntax.")
    with TemporaryDirectory(prefix="medmamba-") as scratch:
        with explained(copy := Path(scratch, "slice.dcm")):
            copy.write_bytes(raw.replace(b"MONOCHROME1", b"MONOCHROME2", 1))
        yield copy


def _quietly(call: Callable[[], Any], problem: str) -> Any:
    """The result of SimpleITK; its warnings and errors, which can contain tag contents, are not printed."""
    from SimpleITK import ProcessObject

    before = ProcessObject.GetGlobalWarningDisplay()
    ProcessObject.SetGlobalWarningDisplay(False)
    try:
        return call()
    except RuntimeError:
        raise InputError(f"{problem}. Copy it again from its source.") from None
    finally:
        ProcessObject.SetGlobalWarningDisplay(before)
