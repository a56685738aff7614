"""Reader of one DICOM series, a folder of slices or an enhanced multi-frame file, ordered by positions in the patient.

The grouping and order of files, missing slices and the geometry of the volume are determined here, from the tags of
their headers, before SimpleITK (imported on first use) decodes the pixels.

Source of the geometry: DICOM PS3.3 C.7.6.2.1.1, equation C.7.6.2.1-1. World axes are LPS there, RAS+ here.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medmamba.disk.scratch import scratch_folder
from medmamba.errors import InputError, is_text
from medmamba.geometry import Affine, Grid, affine_problem
from medmamba.images import dicom_headers as headers
from medmamba.images.checked import Decoded
from medmamba.images.dicom_frames import single_frames
from medmamba.images.dicom_headers import NOT_DICOM, Tags, count_of, holds_dicom, ignored
from medmamba.images.dicom_parts import EVEN_SPACING, SAME_SLICE, parts_of, sizes_of
from medmamba.images.dicom_series import Series
from medmamba.images.dicom_slices import Slice, chosen_frames, difference, slices_of, without_copies
from medmamba.images.formats import ending_of
from medmamba.images.gate import ReadOptions, check_memory, check_size, shown

ROUNDED_MM = 0.06  # positions that are written to a tenth of a millimetre
ASIDE = 0.2  # pixel: slices of one volume are not shifted in their plane
CHOOSE_PART = "Choose one with `medmamba predict --series`"
CHOOSE = f"{CHOOSE_PART}, by number or the end of its UID"


def read(folder: Path, where: str, options: ReadOptions, *, mask: bool) -> Decoded:
    """The volume of a folder of slices or a multi-frame file, (1, i, j, k): i along rows, j along columns.

    Raises InputError as :func:`read_slices`, for a damaged file, or when a mask is asked for (DICOM SEG is not read).
    """
    if mask:
        raise InputError(f"{where}: a DICOM series; label maps are read as NIfTI, NRRD or MetaImage. Convert it.")
    slices, grid, notes = read_slices(folder, where, options)
    check_memory(grid.voxels * 4, where)
    stored = np.empty(grid.shape, dtype=np.float32, order="F")
    place = {id(piece): number for number, piece in enumerate(slices)}
    for piece, pixels in _pixels(slices, where):
        stored[:, :, place[id(piece)]] = pixels
    return Decoded(stored[None], grid, None, tuple(notes))


def read_slices(folder: Path, where: str, options: ReadOptions) -> tuple[list[Slice], Grid, list[str]]:
    """The slices of a folder or a multi-frame file in their order, without pixels; the grid of the volume; warnings.

    Raises InputError for no series or several, missing or doubled slices, a tilted gantry, and colours.
    """
    found, aside = headers.sorted_out(folder, where)
    found = headers.without_localizers(found, aside)
    if not found:
        entries = os.scandir(folder) if folder.is_dir() else ()
        inside = sorted(entry.name for entry in entries if entry.is_dir() and holds_dicom(entry.path))
        hint = f" There are some in its folder {shown(inside[0])}." if inside else ""
        others = f" ({ignored(aside)})" if aside else ""
        raise InputError(f"{where}: no DICOM slices in this folder{others}.{hint} Give the folder of one series.")
    kept = without_copies(found)
    if len(kept) < len(found):
        aside["identical copy"] = [path.name for path in found if path not in kept]
    members: dict[str, dict[Path, Tags]] = defaultdict(dict)
    for path in kept:
        members[found[path].get(headers.SERIES, "")][path] = found[path]
    if len(members) > 1:
        listed = "; ".join(Series.of(files, where).sentence() for files in members.values())
        raise InputError(f"{where}: {len(members)} series in one folder ({listed}). {CHOOSE}.")
    slices = [piece for path in kept for piece in slices_of(path, found[path], f"{where}: {shown(path.name)}")]
    every, slices = slices, chosen_frames(folder, slices)
    if len(slices) < len(every):
        kept_frames = set(map(id, slices))
        aside["frame of another part"] = [piece.name for piece in every if id(piece) not in kept_frames]
    for piece in slices[1:]:
        if what := difference(piece, slices[0]):
            raise InputError(
                f"{where}: slices of different {what}: {slices[0].name} and {piece.name}. {_parts_in(slices)}"
            )
    parts = parts_of(slices)
    affine = _in_order(slices, where)
    if len(parts) > 1:
        raise InputError(f"{where}: its slices are not one volume. They are {sizes_of(parts)}. {CHOOSE_PART}.")
    if problem := affine_problem(affine, any_spacing=options.any_spacing):
        raise InputError(f"{where}: {problem}.")
    shape = (*slices[0].size, len(slices))
    check_size(shape, where, options.max_voxels)
    return slices, Grid(shape, affine), _told(aside, where)


def _told(aside: dict[str, list[str]], where: str) -> list[str]:
    """What else is in the folder; images of other formats are read where the folder is one of images."""
    others = aside.pop(NOT_DICOM, [])
    images = [name for name in others if ending_of(name) is not None]
    if left := [name for name in others if name not in images]:
        aside[NOT_DICOM] = left
    lines = [ignored(aside)]
    if images:
        lines.append(f"beside the series: {count_of('image' if len(images) == 1 else 'images', images)}")
    return [f"{where}: {line}." for line in lines if line]


def _parts_in(slices: list[Slice], otherwise: str = "Keep one volume in the folder.") -> str:
    """What to do with slices that are no volume: the stacks and phases that they are."""
    sizes = sizes_of(parts_of(slices))
    return f"They are {sizes}. {CHOOSE_PART}." if sizes else otherwise


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
                f"{where}: {a.name} and {b.name} are at the same place ({len(double)} such pairs). {_parts_in(slices)}"
            )
        off = np.abs(_off_line(slices) @ normal) > min(ROUNDED_MM, 2 * EVEN_SPACING * usual)
        if ((np.abs(gaps - usual) > EVEN_SPACING * usual) & (off[1:] | off[:-1])).any():
            at = int(np.argmax(np.abs(gaps - usual)))
            what = "a slice is missing" if gaps[at] > 1.5 * usual else "slices are unevenly spaced"
            raise InputError(
                f"{where}: {what}: {gaps[at]:.3g} mm between {slices[at].name} and "
                f"{slices[at + 1].name}, {usual:.3g} mm elsewhere. "
                + _parts_in(slices, "Add the missing files, or keep the slices of one stack in the folder.")
            )
        step = (slices[-1].position - slices[0].position) / (len(slices) - 1)
        from_first = np.array([piece.position - slices[0].position for piece in slices])
        along = step / np.linalg.norm(step)
        aside = np.linalg.norm(from_first - (from_first @ along)[:, None] * along, axis=1)
        if aside.max() > ASIDE * float(first.spacing.min()):
            at = int(aside.argmax())
            raise InputError(
                f"{where}: slices do not lie one behind the other: {slices[at].name} lies {aside[at]:.3g} mm beside "
                f"the line from the first to the last. {_parts_in(slices)}"
            )
    affine = np.eye(4)
    affine[:3, 0] = row * first.spacing[1]  # along a row, from column to column
    affine[:3, 1] = column * first.spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = slices[0].position
    affine[:2] *= -1  # LPS to RAS
    return affine + 0.0


def _off_line(slices: list[Slice]) -> npt.NDArray[np.float64]:
    """How far each slice (n, 3) lies from the evenly divided line through all of them, in mm."""
    numbers, positions = np.arange(len(slices)), np.array([piece.position for piece in slices])
    step, start = np.polyfit(numbers, positions, 1)
    return np.asarray(positions - start - numbers[:, None] * step)


def _pixels(slices: list[Slice], where: str) -> Iterator[tuple[Slice, npt.NDArray[np.float32]]]:
    """Slices in any order, each with its values (i, j), rescaled by its own tags."""
    by_file: dict[Path, list[Slice]] = defaultdict(list)
    for piece in slices:
        by_file[piece.path].append(piece)
    for path, pieces in by_file.items():
        first, name = pieces[0], f"{where}: {shown(path.name)}"
        if not first.frame and not first.inverted:
            yield first, _decoded(path, first, name)
            continue
        # ITK would invert MONOCHROME1, and rescale all frames as the first
        with single_frames(path, [piece.frame or 1 for piece in pieces], name) as frames:
            for piece, frame in zip(pieces, frames, strict=True):
                stored = _decoded(frame, piece, f"{where}: {piece.name}").astype(np.float64)
                yield piece, (stored * piece.slope + piece.intercept).astype(np.float32)


def _decoded(path: Path, piece: Slice, where: str) -> npt.NDArray[np.float32]:
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    with _utf8_name(path) as name:
        reader.SetFileName(name)
        damaged = f"{where}: a damaged DICOM file. Copy it again from its source."
        _quietly(reader.ReadImageInformation, lambda: damaged)
        if reader.GetSize()[:2] != piece.size:
            raise InputError(f"{where}: {reader.GetSize()} pixels, the header says {piece.size}. Copy it again.")
        pixels = sitk.GetArrayFromImage(_quietly(reader.Execute, lambda: f"{where}: {headers.undecoded(path)}"))
    if pixels.size != prod(piece.size):
        raise InputError(f"{where}: {pixels.shape} pixels where its header says {piece.size}. The file is damaged.")
    return pixels.reshape(piece.size[::-1]).T.astype(np.float32)


@contextmanager
def _utf8_name(path: Path) -> Iterator[str]:
    """The path, or a link to it that is UTF-8: any other name would abort the process inside SimpleITK."""
    if is_text(path):
        yield str(path)
        return
    with scratch_folder() as scratch:
        link = scratch / "slice.dcm"
        if not is_text(link):
            raise InputError(f"{shown(scratch.parent)}: a temporary folder whose path is UTF-8 is needed. Set TMPDIR.")
        link.symlink_to(path.resolve())
        yield str(link)


def _quietly(call: Callable[[], Any], problem: Callable[[], str]) -> Any:
    """The result of SimpleITK; its warnings and errors, which can contain tag contents, are not printed."""
    from SimpleITK import ProcessObject

    before = ProcessObject.GetGlobalWarningDisplay()
    ProcessObject.SetGlobalWarningDisplay(False)
    try:
        return call()
    except RuntimeError:
        raise InputError(problem()) from None
    finally:
        ProcessObject.SetGlobalWarningDisplay(before)
