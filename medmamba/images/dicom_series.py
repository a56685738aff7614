"""DICOM series: their slices, divided into stacks of one size and orientation and the phases of each, in words."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medmamba.errors import InputError, counted
from medmamba.images import dicom_headers as headers
from medmamba.images.dicom_frames import frame_tags
from medmamba.images.dicom_headers import CHOSEN_FRAMES, COLUMNS, ROWS, Tags
from medmamba.images.gate import shown
from medmamba.plans.json_record import read_stored

SAME_DIRECTION = 1e-3
LARGEST = "largest"
"""Chooses the part with the most slices."""
MOST_LISTED = 8
"""Parts of a series whose sizes are listed."""


@dataclass(frozen=True)
class Slice:
    """A file, or a frame of one: where its first pixel lies (LPS mm), its in-plane axes, and its size.

    ``phase`` tells images at one place apart: temporal position, acquisition, echo, trigger time, and last its number;
    ``dimension`` is what the dimensions of a multi-frame file say about that. ``frame`` counts from 1; 0 is a file of
    one image.
    """

    path: Path
    frame: int
    position: npt.NDArray[np.float64]
    orientation: npt.NDArray[np.float64]  # (6,): direction of a row, direction of a column
    spacing: npt.NDArray[np.float64]  # (2,): between rows, between columns
    size: tuple[int, int]  # columns, rows
    thickness: float
    inverted: bool  # MONOCHROME1: small values are shown bright
    slope: float
    intercept: float
    phase: tuple[float, ...]
    dimension: str = ""

    @property
    def name(self) -> str:
        """For messages."""
        return f"frame {self.frame} of {shown(self.path.name)}" if self.frame else shown(self.path.name)


@dataclass(frozen=True)
class Series:
    """One series: its UID and number, the tags of its first slice, its files, and its stacks and phases.

    ``problem`` says why it cannot be read; it may have no parts then.
    """

    uid: str
    number: str
    tags: Tags
    files: list[Path]
    parts: list[list[Slice]]
    problem: str = ""

    @classmethod
    def of(cls, found: Mapping[Path, Tags], where: str) -> "Series":
        """From the headers of its files; ``where`` names their folder."""
        tags = next(iter(found.values()))
        parts, problem = [], ""
        try:
            pieces = [slices_of(path, of_file, f"{where}: {shown(path.name)}") for path, of_file in found.items()]
            parts = parts_of(chain.from_iterable(pieces))
        except InputError as error:
            problem = str(error)
        uid, number = tags.get(headers.SERIES, ""), tags.get(headers.NUMBER, "")
        return cls(uid, number, tags, list(found), parts, problem)

    def sentence(self) -> str:
        """For a list to choose from; the description is what the scanner's operator typed."""
        words = f" {shown(text)[:40]!r}" if (text := self.tags.get(headers.DESCRIPTION)) else ""
        unread = f"{counted(len(self.files), 'file')} that cannot be read"
        size = sizes_of(self.parts) or (_size(self.parts[0]) if self.parts else unread)
        notes = [f"UID {self.uid}"] + ["localizer"] * headers.is_localizer(self.tags) + ["damaged"] * bool(self.problem)
        modality = self.tags.get(headers.MODALITY) or "?"
        return f"{self.number or '-'}: {modality}{words} {size}, {', '.join(notes)}"


def sizes_of(parts: list[list[Slice]]) -> str:
    """Several stacks and phases in words: how to choose each, and its size; empty for one."""
    sizes = [_size(part) for part in parts]
    if len(sizes) < 2:
        return ""
    if len(set(sizes)) == 1:
        return f"{len(sizes)} parts (:1 to :{len(sizes)} or :{LARGEST}) of {sizes[0]} each"
    listed = ", ".join(f":{number} {size}" for number, size in enumerate(sizes[:MOST_LISTED], start=1))
    return f"{len(sizes)} parts ({listed}{', ...' if len(sizes) > MOST_LISTED else ''} or :{LARGEST})"


def _size(part: list[Slice]) -> str:
    """Slices, rows, columns and their distances in words."""
    first = part[0]
    normal = np.cross(first.orientation[:3], first.orientation[3:])
    heights = np.sort([float(piece.position @ normal) for piece in part])
    apart = float(np.median(np.diff(heights))) if len(part) > 1 else first.thickness
    mm = " x ".join(f"{value:.3g}" for value in (apart, *first.spacing))
    columns, rows = first.size
    return f"{counted(len(part), 'slice')} of {rows} x {columns} pixels, {mm} mm"


def slices_of(path: Path, tags: Tags, where: str) -> list[Slice]:
    """The slice of a file, or those of an enhanced multi-frame file; ``where`` names the file in errors.

    Raises InputError for a header that does not say where its pixels lie.
    """
    if tags.get(headers.SOP_CLASS) not in headers.ENHANCED:
        return [_slice(path, 0, tags, where)]
    frames = enumerate(frame_tags(path, tags, where), start=1)
    return [_slice(path, number, found, f"{where}, frame {number}") for number, found in frames]


def chosen_frames(folder: Path, slices: list[Slice]) -> list[Slice]:
    """The slices that the file ``CHOSEN_FRAMES`` of a folder names; all where there is none."""
    if not (path := folder / CHOSEN_FRAMES).is_file():
        return slices
    chosen = read_stored(path, dict[str, list[int]], "list of chosen frames", "Remove it to read all frames.")
    return [piece for piece in slices if piece.frame in chosen.get(piece.path.name, (0, piece.frame))]


def _slice(path: Path, frame: int, tags: Tags, where: str) -> Slice:
    def values(tag: int, name: str, count: int, default: str = "") -> npt.NDArray[np.float64]:
        text = tags.get(tag) or default
        try:
            found = np.array([float(word) for word in text.split("\\")])
        except ValueError:
            found = np.array([])
        if len(found) != count or not np.isfinite(found).all():
            raise InputError(
                f"{where}: its {name} is {shown(text)[:40]!r}; {count} number(s) are needed. Export it again."
            )
        return found

    def known(tag: int) -> float:
        try:
            number = float(tags.get(tag, ""))
        except ValueError:
            return 0.0
        return number if np.isfinite(number) else 0.0

    rows, columns = (int(values(tag, name, 1)[0]) for tag, name in ((ROWS, "Rows"), (COLUMNS, "Columns")))
    orientation = values(headers.ORIENTATION, "Image Orientation", 6)
    if abs(np.linalg.norm(orientation[:3]) - 1) > 1e-2 or abs(np.linalg.norm(orientation[3:]) - 1) > 1e-2:
        raise InputError(f"{where}: its Image Orientation holds no directions of length 1. Export it again.")
    return Slice(
        path,
        frame,
        values(headers.POSITION, "Image Position", 3),
        orientation,
        values(headers.PIXEL_SPACING, "Pixel Spacing", 2),
        (columns, rows),
        abs(known(headers.THICKNESS)),
        tags.get(headers.PHOTOMETRIC) == "MONOCHROME1",
        float(values(headers.SLOPE, "Rescale Slope", 1, "1")[0]),
        float(values(headers.INTERCEPT, "Rescale Intercept", 1, "0")[0]),
        tuple(map(known, headers.PHASE)),
        tags.get(headers.DIMENSION, ""),
    )


def without_copies(files: Iterable[Path]) -> list[Path]:
    """The first of the files that are equal byte for byte."""
    files = list(files)
    sizes = Counter(path.stat().st_size for path in files)
    kept: dict[int | bytes, Path] = {}
    for path in files:
        mark: int | bytes = (size := path.stat().st_size)
        if sizes[size] > 1:
            with open(path, "rb") as file:
                mark = hashlib.file_digest(file, "sha256").digest()
        kept.setdefault(mark, path)
    return list(kept.values())


def difference(a: Slice, b: Slice) -> str:
    """In what two slices differ that cannot be of one volume; empty if they can be."""
    return (
        "size" if a.size != b.size
        else "pixel spacing" if not np.allclose(a.spacing, b.spacing, rtol=1e-4)
        else "orientation" if np.abs(a.orientation - b.orientation).max() > SAME_DIRECTION
        else ""
    )  # fmt: skip


def parts_of(pieces: Iterable[Slice]) -> list[list[Slice]]:
    """The slices of one series by stack (of one size, spacing and orientation), and the phases of each stack."""
    stacks: list[list[Slice]] = []
    for piece in pieces:
        stack = next((stack for stack in stacks if not difference(piece, stack[0])), None)
        if stack is None:
            stacks.append([piece])
        else:
            stack.append(piece)
    return [phase for stack in stacks for phase in _phases(stack)]


def _phases(stack: list[Slice]) -> list[list[Slice]]:
    """Groups of slices that cover the same positions, one per phase; the stack itself where no phases are found."""
    places = _places(stack)
    if len(places) < len(stack):
        kept = set(without_copies(dict.fromkeys(piece.path for piece in stack)))
        places = _places([piece for piece in stack if piece.path in kept])
    groups: dict[object, list[Slice]] = defaultdict(list)
    for piece in chain(*places.values()):
        groups[piece.dimension or piece.phase[:3]].append(piece)
    divided = all(len(_places(group)) == len(group) for group in groups.values())
    known = divided and all(piece.dimension for piece in stack)  # phases need not cover the same positions
    if len(set(map(len, places.values()))) == 1 and (len(places) == len(stack) or not known):
        return [list(phase) for phase in zip(*places.values(), strict=True)]
    return list(groups.values()) if divided else [stack]


def _places(stack: list[Slice]) -> dict[tuple[float, ...], list[Slice]]:
    places = defaultdict(list)
    for piece in sorted(stack, key=lambda piece: (piece.dimension, piece.phase)):
        places[tuple(np.round(piece.position, 3).tolist())].append(piece)
    return places
