"""Reader of a folder with the slices of one DICOM series, ordered by their positions in the patient.

pydicom reads the headers and SimpleITK decodes the pixels (both imported on first use). What an object is, which files
belong together, in what order, whether a slice is missing and how the volume lies is decided here, from the tags listed
below, before pixels are decoded; no other tag is read and none is kept.

Source of the geometry: DICOM PS3.3 C.7.6.2.1.1, equation C.7.6.2.1-1. World axes are LPS there, RAS+ here.
Source of the SOP classes: PS3.4 B.5; a file without preamble: PS3.10 7.1.
"""

import hashlib
import os
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
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
from medmamba.images.checked import Decoded
from medmamba.images.gate import DEFLATE_CEILING, ReadOptions, check_memory, check_size, open_regular, shown

SOP_CLASS, IMAGE_TYPE, MODALITY, DESCRIPTION = 0x00080016, 0x00080008, 0x00080060, 0x0008103E
SERIES, NUMBER, POSITION, ORIENTATION = 0x0020000E, 0x00200011, 0x00200032, 0x00200037
ROWS, COLUMNS, PIXEL_SPACING, THICKNESS = 0x00280010, 0x00280011, 0x00280030, 0x00180050
FRAMES, SAMPLES, BITS, PHOTOMETRIC = 0x00280008, 0x00280002, 0x00280100, 0x00280004
PHASE = (0x00200100, 0x00200012, 0x00180086, 0x00181060, 0x00200013)
"""Temporal position, acquisition, echo, trigger time and instance number: the order of images of one place."""
PLACE = (POSITION, ORIENTATION, PIXEL_SPACING, THICKNESS)
TEXTS = (SOP_CLASS, IMAGE_TYPE, MODALITY, DESCRIPTION, SERIES, NUMBER, FRAMES, PHOTOMETRIC, *PLACE, *PHASE)
NUMBERS = (ROWS, COLUMNS, SAMPLES, BITS)
STORAGE = "1.2.840.10008.5.1.4.1.1."
NO_IMAGES = {
    "1.2.840.10008.1.3.10": "DICOMDIR",
    f"{STORAGE}481.2": "RTDOSE",
    f"{STORAGE}481.3": "RTSTRUCT",
    f"{STORAGE}481": "radiotherapy object",
    f"{STORAGE}88": "SR",
    f"{STORAGE}66.4": "SEG",
    f"{STORAGE}66": "registration or raw data",
    f"{STORAGE}104": "PDF or other document",
    f"{STORAGE}11": "presentation state",
    f"{STORAGE}9": "waveform",
}
"""What objects of these SOP classes, and of those whose UIDs continue theirs, are."""
ENHANCED = tuple(STORAGE + end for end in ("2.1", "2.2", "4.1", "4.4", "128.1", "130"))
BLANK_IMAGE = 64 * 2**20  # bytes; codecs of today make a blank image as small as they like
UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
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
    phase: tuple[float, ...]  # values of PHASE; 0 where there is none


Tags = dict[int, str]


def holds_dicom(folder: Path | str) -> bool:
    """Whether a folder holds slices directly in it, or a damaged file that may be one; scouts alone are no series."""
    try:
        paths = [path for path in Path(folder).iterdir() if path.is_file() and not path.name.startswith(".")]
    except OSError:
        return False
    try:
        return any(
            not _other_than_slice(tags := header_tags(path, "")) and not is_localizer(tags)
            for path in paths
            if path.stat().st_size and _is_dicom(path, "")
        )
    except InputError:  # its reader says what is wrong
        return True


def sorted_out(folder: Path, where: str) -> tuple[dict[Path, Tags], dict[str, list[str]]]:
    """The headers of the slices directly in a folder, by name, and the names of all other files by what they are.

    Links are followed. Raises InputError for a damaged file, a link that leads nowhere, and an image that belongs to
    the slices and does not say where it lies: without it the volume would be another one.
    """
    slices: dict[Path, Tags] = {}
    unplaced: dict[Path, Tags] = {}
    aside: dict[str, list[str]] = defaultdict(list)
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        path, name = Path(entry.path), f"{where}: {shown(entry.name)}"
        if entry.is_dir():
            continue
        if entry.name.startswith("."):
            kind = "hidden"
        elif entry.is_file(follow_symlinks=False) and not entry.stat().st_size:
            kind = "empty"
        elif not _is_dicom(path, name):
            kind = "not DICOM"
        else:
            tags = header_tags(path, name)
            kind = _other_than_slice(tags)
            (slices if not kind else unplaced)[path] = tags
        if kind:
            aside[kind].append(entry.name)
    placed = {(tags.get(SERIES), tags.get(SOP_CLASS)) for tags in slices.values()}
    for path, tags in unplaced.items():
        if (tags.get(SERIES), tags.get(SOP_CLASS)) in placed:
            name = f"{where}: {shown(path.name)}"
            raise InputError(f"{name}: an image of the series without a position, or in colours. Export it again.")
    return slices, dict(aside)


def left_aside(aside: Mapping[str, list[str]]) -> str:
    """Counts and names of what was not used: "left aside: 1 SR (a.dcm), 2 not DICOM (b, c)"; empty for nothing."""
    kinds = [
        f"{len(names)} {kind} ({', '.join(map(shown, names[:3]))}{', ...' if len(names) > 3 else ''})"
        for kind, names in aside.items()
    ]
    return f"left aside: {', '.join(kinds)}" if kinds else ""


def _other_than_slice(tags: Tags) -> str:
    """What an object is that is no slice of a volume; empty for a slice, and for what only its reader can refuse."""
    sop_class = tags.get(SOP_CLASS, "")
    if kind := _kind_of_class(sop_class):
        return kind
    if ROWS not in tags:  # of a standard image this is damage, which header_tags refuses
        return "private object"
    if sop_class in ENHANCED:
        return ""
    if POSITION not in tags or ORIENTATION not in tags:
        return "secondary capture" if f"{sop_class}.".startswith(f"{STORAGE}7.") else "image without a position"
    grey = tags.get(SAMPLES, "1") == "1" and tags.get(PHOTOMETRIC, "MONOCHROME").startswith("MONOCHROME")
    return "" if grey else "colour image"


def _kind_of_class(sop_class: str) -> str:
    return next((kind for start, kind in NO_IMAGES.items() if f"{sop_class}.".startswith(f"{start}.")), "")


def is_localizer(tags: Tags) -> bool:
    """Whether an image is a scout, on which a series is planned."""
    return "LOCALIZER" in tags.get(IMAGE_TYPE, "").split("\\")


def without_localizers(slices: dict[Path, Tags], aside: dict[str, list[str]]) -> dict[Path, Tags]:
    """The slices that are no scouts, which are added to ``aside``; all of them where there are only scouts."""
    others = {path: tags for path, tags in slices.items() if not is_localizer(tags)}
    if others and len(others) < len(slices):
        aside["localizer"] = [path.name for path in slices if path not in others]
    return others or slices


def _is_dicom(path: Path, where: str) -> bool:
    """Whether a file has the mark of DICOM, or begins with one of its elements; InputError if only its name says so."""
    file, _ = open_regular(path, where)
    with file:
        start = file.read(132)
    if start[128:] == b"DICM":
        return True
    # An element of group 2 or 8, the first that there are, with its type or a small length.
    if len(start) > 16 and start[:1] in (b"\2", b"\10") and start[1] == start[3] == 0:
        return re.match(b"[A-Z]{2}", start[4:6]) is not None or int.from_bytes(start[4:8], "little") <= 64
    if path.suffix.lower() == ".dcm":
        raise InputError(f"{where}: its name says DICOM and its content does not. Copy it again from its source.")
    return False


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
    found, aside = sorted_out(folder, where)
    found = without_localizers(found, aside)
    if not found:
        inside = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and holds_dicom(entry.path))
        hint = f" There are some in its folder {shown(inside[0])}." if inside else ""
        others = f" ({left_aside(aside)})" if aside else ""
        raise InputError(f"{where}: no DICOM slices in this folder{others}.{hint} Give the folder of one series.")
    kept = _without_copies(list(found))
    if len(kept) < len(found):
        aside["copy of another, byte for byte"] = [path.name for path in found if path not in kept]
    if (count := len({found[path].get(SERIES, "") for path in kept})) > 1:
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
    return slices, Grid(shape, affine), [f"{where}: {left_aside(aside)}."] if aside else []


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

    A series that cannot be taken apart is one part, whose reader says why.
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
    """Slices that lie at the same places, one phase after the other; the stack as it is where no phases are found."""
    places = _places(stack)
    if len(places) < len(stack):
        kept = set(_without_copies([piece.path for piece in stack]))
        places = _places([piece for piece in stack if piece.path in kept])
    if len(set(map(len, places.values()))) == 1:
        return [list(phase) for phase in zip(*places.values(), strict=True)]
    groups: dict[tuple[float, ...], list[Slice]] = defaultdict(list)  # phases that do not cover the same places
    for piece in chain(*places.values()):
        groups[piece.phase[:3]].append(piece)
    return list(groups.values()) if all(len(_places(group)) == len(group) for group in groups.values()) else [stack]


def _places(stack: list[Slice]) -> dict[tuple[float, ...], list[Slice]]:
    places = defaultdict(list)
    for piece in sorted(stack, key=lambda piece: piece.phase):
        places[tuple(np.round(piece.position, 3).tolist())].append(piece)
    return places


def header_tags(path: Path, where: str) -> Tags:
    """The tags of ``TEXTS`` and ``NUMBERS`` of a file, as text; no other tag is read and nothing is decoded.

    Raises InputError for a damaged file, and for more pixels than its bytes can hold.
    """
    import pydicom

    file, size = open_regular(path, where)
    with file:
        try:
            with warnings.catch_warnings(action="ignore"):  # they cite contents, as errors do
                header = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=[*TEXTS, *NUMBERS])
                tags = {tag: _text(header.get_item(tag)) for tag in (*TEXTS, *NUMBERS) if tag in header}
                sop_class = tags.setdefault(SOP_CLASS, str(header.file_meta.get("MediaStorageSOPClassUID", "")))
                packed = str(header.file_meta.get("TransferSyntaxUID", UNCOMPRESSED[0])) not in UNCOMPRESSED
        except Exception:  # pydicom raises what it likes for damaged files
            raise InputError(f"{where}: a damaged DICOM file. Copy it again from its source.") from None
        left = size - file.tell()
    if _kind_of_class(sop_class):
        return tags
    if left < 0 or (ROWS not in tags and (not sop_class or sop_class.startswith(STORAGE))):
        raise InputError(f"{where}: cut off or damaged: it ends before its pixels. Copy it again from its source.")
    numbers = [tags.get(ROWS, "0"), tags.get(COLUMNS, "0")]
    numbers += [tags.get(tag) or default for tag, default in ((SAMPLES, "1"), (FRAMES, "1"), (BITS, "8"))]
    needed = prod(map(int, numbers)) // 8 if all(number.isdecimal() for number in numbers) else 0
    if needed > (max(size * DEFLATE_CEILING, BLANK_IMAGE) if packed else left):
        raise InputError(
            f"{where}: cut off or damaged: {size} bytes cannot hold the {needed} bytes of pixels that its header "
            "announces. Copy it again from its source."
        )
    return tags


def _text(element: Any) -> str:
    """The value of an element as it is in the file; ValueError when it ends before its length."""
    if not isinstance(element.value, bytes):  # empty
        return ""
    if len(element.value) != element.length:
        raise ValueError("cut off")
    if element.tag in NUMBERS:
        return str(int.from_bytes(element.value, "little" if element.is_little_endian else "big"))
    return element.value.decode("utf-8", "replace").strip(" \0")


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

    if values(FRAMES, "Number of Frames", 1, "1")[0] > 1:
        raise InputError(f"{where}: several frames in one file (enhanced DICOM). Convert the series to NIfTI first.")
    rows, columns = (int(values(tag, name, 1)[0]) for tag, name in ((ROWS, "Rows"), (COLUMNS, "Columns")))
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
        tags.get(PHOTOMETRIC) == "MONOCHROME1",
        tuple(float(text) if (text := tags.get(tag, "")).replace(".", "", 1).isdecimal() else 0.0 for tag in PHASE),
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
            raise InputError(f"{where}: {reader.GetSize()} pixels where its header says {piece.size}. It is damaged.")
        pixels = sitk.GetArrayFromImage(_quietly(reader.Execute, f"{where}: its pixels cannot be decoded"))
    if pixels.size != prod(piece.size):
        raise InputError(f"{where}: {pixels.shape} pixels where its header says {piece.size}. The file is damaged.")
    return pixels.reshape(piece.size[::-1]).T.astype(np.float32)


@contextmanager
def _stored_as_shown(piece: Slice, where: str) -> Iterator[Path]:
    """The file; of MONOCHROME1 a copy that says MONOCHROME2: ITK inverts values of which only the display differs."""
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
