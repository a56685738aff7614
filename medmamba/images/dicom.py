"""Reader of a folder with the slices of one DICOM series, ordered by their positions in the patient.

SimpleITK decodes the pixels (imported on first use). Which files belong together, in what order, whether a slice is
missing and how the volume lies is decided here, from the tags listed below; no other tag is read and none is kept.

Source of the geometry: DICOM PS3.3 C.7.6.2.1.1, equation C.7.6.2.1-1. World axes are LPS there, RAS+ here.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medmamba.errors import InputError
from medmamba.geometry import Affine, Grid, affine_problem
from medmamba.images.checked import Decoded
from medmamba.images.gate import ReadOptions, check_memory, check_size, open_regular, shown

SERIES, POSITION, ORIENTATION = "0020|000e", "0020|0032", "0020|0037"
ROWS, COLUMNS, PIXEL_SPACING, THICKNESS = "0028|0010", "0028|0011", "0028|0030", "0018|0050"
FRAMES, SAMPLES, BITS = "0028|0008", "0028|0002", "0028|0100"
TRANSFER_SYNTAX = b"\x02\x00\x10\x00UI"
UNCOMPRESSED = (b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.1", b"1.2.840.10008.1.2.2")
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


def holds_dicom(folder: Path | str) -> bool:
    """Whether a folder holds DICOM files directly in it."""
    try:
        return any(marked for _, marked in _files(Path(folder)))
    except OSError:
        return False


def dicom_files(folder: Path) -> list[Path]:
    """The DICOM files directly in a folder, by name; links, hidden files and DICOMDIR are left alone."""
    return [path for path, marked in _files(folder) if marked]


def _files(folder: Path) -> Iterator[tuple[Path, bool]]:
    """Regular files of a folder, and whether they have the DICOM mark."""
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        if entry.name.startswith(".") or entry.name.upper() == "DICOMDIR" or not entry.is_file(follow_symlinks=False):
            continue
        with open(entry.path, "rb") as file:
            yield Path(entry.path), file.read(132)[128:] == b"DICM"


def read(folder: Path, where: str, options: ReadOptions, *, mask: bool) -> Decoded:
    """The volume of a series folder, (1, i, j, k): i along rows, j along columns, k through the slices.

    Raises InputError as :func:`read_slices`, for a damaged file, or when a mask is asked for (DICOM SEG is not read).
    """
    if mask:
        raise InputError(f"{where}: a DICOM folder; label maps are read as NIfTI, NRRD or MetaImage. Convert it.")
    slices, grid, warnings = read_slices(folder, where, options)
    check_memory(grid.voxels * 4, where)
    stored = np.empty(grid.shape, dtype=np.float32, order="F")
    for number, piece in enumerate(slices):
        stored[:, :, number] = _pixels(piece, f"{where}: {shown(piece.path.name)}")
    return Decoded(stored[None], grid, None, tuple(warnings))


def read_slices(folder: Path, where: str, options: ReadOptions) -> tuple[list[Slice], Grid, list[str]]:
    """The slices of a series folder in their order, without their pixels; the grid of the volume; warnings.

    Raises InputError for no series or several, missing or doubled slices, a tilted gantry, and colours.
    """
    entries = list(_files(folder))
    files = [path for path, marked in entries if marked]
    if not files:
        inside = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and holds_dicom(entry.path))
        hint = f" There are some in its folder {shown(inside[0])}." if inside else ""
        raise InputError(f"{where}: no DICOM files in this folder.{hint} Give the folder of one series.")
    warnings = []
    if strays := len(entries) - len(files):
        warnings.append(f"{where}: {strays} file(s) that are not DICOM were skipped.")
    different = _without_copies(files)
    if copies := len(files) - len(different):
        warnings.append(f"{where}: {copies} file(s) that are copies of another, byte for byte, were skipped.")
    slices = _one_series(different, where)
    affine = _in_order(slices, where)
    if problem := affine_problem(affine, any_spacing=options.any_spacing):
        raise InputError(f"{where}: {problem}.")
    shape = (*slices[0].size, len(slices))
    check_size(shape, where, options.max_voxels)
    return slices, Grid(shape, affine), warnings


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


def _one_series(files: list[Path], where: str) -> list[Slice]:
    series: dict[str, list[Slice]] = defaultdict(list)
    for path in files:
        tags = header_tags(path, f"{where}: {shown(path.name)}")
        series[tags.get(SERIES, "")].append(_slice(path, tags, f"{where}: {shown(path.name)}"))
    if len(series) > 1:
        counts = sorted((len(slices) for slices in series.values()), reverse=True)
        several = ", ".join(map(str, counts[:5])) + (", ..." if len(counts) > 5 else "")
        raise InputError(
            f"{where}: {len(series)} series in one folder ({several} files). Give each a folder of its own, or choose "
            "one with `medmamba predict --series`."
        )
    slices = next(iter(series.values()))
    first = slices[0]
    for piece in slices[1:]:
        what = (
            "size" if piece.size != first.size
            else "pixel spacing" if not np.allclose(piece.spacing, first.spacing, rtol=1e-4)
            else "orientation" if np.abs(piece.orientation - first.orientation).max() > SAME_DIRECTION
            else ""
        )  # fmt: skip
        if what:
            raise InputError(
                f"{where}: slices of different {what}: {shown(first.path.name)} and {shown(piece.path.name)}. "
                "Keep only the slices of one volume in the folder."
            )
    return slices


def header_tags(path: Path, where: str, extra: tuple[str, ...] = ()) -> dict[str, str]:
    """The tags that decide about geometry, and those of ``extra``, as text; no other tag is read."""
    file, _ = open_regular(path, where)
    file.close()
    reader = _reader(path)
    _quietly(reader.ReadImageInformation, f"{where}: a damaged DICOM file")
    wanted = (SERIES, POSITION, ORIENTATION, ROWS, COLUMNS, PIXEL_SPACING, THICKNESS, FRAMES, SAMPLES, BITS, *extra)
    return {tag: reader.GetMetaData(tag).strip(" \0") for tag in wanted if reader.HasMetaDataKey(tag)}


def _slice(path: Path, tags: dict[str, str], where: str) -> Slice:
    def values(tag: str, name: str, count: int, default: str = "") -> npt.NDArray[np.float64]:
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

    if values(FRAMES, "Number of Frames", 1, "1")[0] > 1:
        raise InputError(f"{where}: several frames in one file (enhanced DICOM). Convert the series to NIfTI first.")
    if values(SAMPLES, "Samples per Pixel", 1, "1")[0] != 1:
        raise InputError(f"{where}: pixels are colours. Give a series in grey.")
    rows, columns = (int(values(tag, name, 1)[0]) for tag, name in ((ROWS, "Rows"), (COLUMNS, "Columns")))
    bits = int(values(BITS, "Bits Allocated", 1, "8")[0])
    size = path.stat().st_size
    if _uncompressed(path) and size < rows * columns * bits // 8:
        raise InputError(f"{where}: cut off: {size} bytes, fewer than its pixels need. Copy it again from its source.")
    orientation = values(ORIENTATION, "Image Orientation", 6)
    if abs(np.linalg.norm(orientation[:3]) - 1) > 1e-2 or abs(np.linalg.norm(orientation[3:]) - 1) > 1e-2:
        raise InputError(f"{where}: its Image Orientation holds no directions of length 1. Export it again.")
    thickness = tags.get(THICKNESS, "")
    return Slice(
        path,
        values(POSITION, "Image Position", 3),
        orientation,
        values(PIXEL_SPACING, "Pixel Spacing", 2),
        (columns, rows),
        float(thickness) if thickness.replace(".", "", 1).isdecimal() else 0.0,
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
                "pairs). Keep one phase or one copy of the series in the folder."
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

    image = _quietly(_reader(piece.path).Execute, f"{where}: its pixels cannot be decoded")
    pixels = sitk.GetArrayFromImage(image)
    pixels = pixels.reshape(pixels.shape[-2:]).T
    if pixels.shape != piece.size:
        raise InputError(f"{where}: {pixels.shape} pixels where its header says {piece.size}. The file is damaged.")
    return pixels.astype(np.float32)


def _uncompressed(path: Path) -> bool:
    with open(path, "rb") as file:
        head = file.read(4096)
    at = head.find(TRANSFER_SYNTAX)
    if at < 0:
        return False
    length = int.from_bytes(head[at + 6 : at + 8], "little")
    return head[at + 8 : at + 8 + length].rstrip(b"\0 ") in UNCOMPRESSED


def _reader(path: Path) -> Any:
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(os.fspath(path))
    return reader


def _quietly(call: Callable[[], Any], problem: str) -> Any:
    """What SimpleITK answers; its own warnings and errors, which can hold tag contents, stay off the terminal."""
    from SimpleITK import ProcessObject

    before = ProcessObject.GetGlobalWarningDisplay()
    ProcessObject.SetGlobalWarningDisplay(False)
    try:
        return call()
    except RuntimeError:
        raise InputError(f"{problem}. Copy it again from its source.") from None
    finally:
        ProcessObject.SetGlobalWarningDisplay(before)
