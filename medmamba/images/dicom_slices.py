"""Slices of DICOM files: where the pixels of each lie, and what tells it from another image at the same place.

Source of the tags: DICOM PS3.3 C.7.6.1 (general image), C.8.3.1 (MR image), C.7.6.16 (functional groups).
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medmamba.errors import InputError
from medmamba.images import dicom_headers as headers
from medmamba.images.dicom_frames import frame_tags
from medmamba.images.dicom_headers import CHOSEN_FRAMES, COLUMNS, ROWS, Tags
from medmamba.images.gate import shown
from medmamba.plans.json_record import read_stored

SAME_DIRECTION = 1e-3


def _value(tag: int) -> Callable[[Tags], str]:
    """Reads a tag, its numbers rounded: "10" and "10.0" are one echo time."""

    def read(tags: Tags) -> str:
        words = [word.strip() for word in tags.get(tag, "").split("\\")]
        try:
            return "\\".join(f"{float(word):.4g}" for word in words)
        except ValueError:
            return "\\".join(words)

    return read


def _image_type(*, first: bool) -> Callable[[Tags], str]:
    """Reads the first two words of the image type (original or derived), or the others (such as M for magnitude)."""
    return lambda tags: "\\".join(tags.get(headers.IMAGE_TYPE, "").split("\\")[slice(2) if first else slice(2, None)])


PATIENT = "patient"
"""Never shown: its values are numbered."""
CONTRASTS: dict[str, Callable[[Tags], str]] = {
    PATIENT: lambda tags: tags.get(headers.PATIENT, ""),
    "study": lambda tags: tags.get(headers.STUDY, ""),
    "SOP class": lambda tags: tags.get(headers.SOP_CLASS, ""),
    "series number": lambda tags: tags.get(headers.NUMBER, ""),
    "frame of reference": lambda tags: tags.get(headers.FRAME_OF_REFERENCE, ""),
    "stack": lambda tags: tags.get(headers.STACK, ""),
    "image type": _image_type(first=False),
    "complex component": _value(headers.COMPLEX),
    "echo": _value(headers.ECHO),
    "echo time": _value(headers.ECHO_TIME),
    "b-value": _value(headers.B_VALUE),
    "gradient direction": _value(headers.GRADIENT),
    "time": _value(headers.TIME),
    "dimension": _value(headers.DIMENSION),
}
"""What all slices of a volume have in common, by its name in messages."""
COUNTED = ("frame of reference", "time", "dimension")
"""Of these: every slice of one volume may have its own, as some scanners number slices and some programs that remove
names make new identifiers."""
PHASES: dict[str, Callable[[Tags], str]] = {
    "acquisition": _value(headers.ACQUISITION),
    "flip angle": _value(headers.FLIP_ANGLE),
    "inversion time": _value(headers.INVERSION_TIME),
    "frame time": _value(headers.FRAME_TIME),
    "origin": _image_type(first=True),
}
"""What tells images at one place apart, in this order; the file of a frame is the last."""


@dataclass(frozen=True)
class Slice:
    """A file, or a frame of one: where its first pixel lies (LPS mm), its in-plane axes, and its size.

    ``contrast`` holds the values of ``CONTRASTS``, which are one in a volume, and ``phase`` those of ``PHASES``, which
    may change from slice to slice; both are empty where the file does not say. ``frame`` counts from 1; 0 is a file of
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
    between: float  # Spacing Between Slices; 0: not known
    contrast: tuple[str, ...]
    phase: tuple[str, ...]
    trigger: float
    number: float  # Instance Number, or the number of the frame

    @property
    def name(self) -> str:
        """For messages."""
        return f"frame {self.frame} of {shown(self.path.name)}" if self.frame else shown(self.path.name)


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
    if headers.MODALITY_LUT in tags:
        raise InputError(f"{where}: its values need a table (Modality LUT), which is not read. Export it rescaled.")
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
        abs(known(headers.BETWEEN)),
        tuple(read(tags) for read in CONTRASTS.values()),
        (*(read(tags) for read in PHASES.values()), path.name if frame else ""),
        known(headers.TRIGGER),
        known(headers.INSTANCE),
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
