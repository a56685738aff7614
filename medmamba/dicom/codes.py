"""The labels file: DICOM codes and a colour for each label.

docs/how-to/export-a-model.md has an example. A label that is not listed becomes "Tissue" under its own name.
"""

import colorsys
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, RootModel

from medmamba.datasets.description import parse, read_json
from medmamba.errors import need_packages, unknown_name
from medmamba.images.gate import shown
from medmamba.pages.render import COLOURS

GOLDEN_RATIO = 0.618034  # its multiples are never near each other on a circle

ALLOWED = r"^[^\\\x00-\x1f\x7f]+$"
Short = Annotated[str, Field(min_length=1, max_length=16, pattern=ALLOWED)]
Text = Annotated[str, Field(min_length=1, max_length=64, pattern=ALLOWED)]
Code = tuple[Short, Short, Text]
"""Code value, coding scheme (as SCT) and meaning, at most 16, 16 and 64 characters without backslash (DICOM PS3.3
section 8)."""
Level = Annotated[int, Field(ge=0, le=255)]


class SegmentCode(BaseModel):
    """The codes of one label."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    category: Code = ("85756007", "SCT", "Tissue")
    property_type: Code = ("85756007", "SCT", "Tissue")
    colour: tuple[Level, Level, Level] | None = None


class _Table(RootModel[dict[str, SegmentCode]]):
    pass


def read_codes(path: Path | str | None, labels: list[str]) -> dict[str, SegmentCode]:
    """One entry per label of ``labels``; labels that the file at ``path`` does not name are Tissue.

    Raises InputErrors with every problem of the file, each with the path of its field.
    """
    table = _read(path)
    for name in table:
        if name not in labels:
            raise unknown_name(f"label in {path}", name, labels)
    return {name: table.get(name, SegmentCode()) for name in labels}


def colour_of(number: int, code: SegmentCode) -> tuple[int, int, int]:
    """Red, green and blue of segment ``number``, counted from 1: its code's, or one as different as may be."""
    if code.colour is not None:
        return code.colour
    if number <= len(COLOURS):
        red, green, blue = bytes.fromhex(COLOURS[number - 1][1:])
        return red, green, blue
    hue, lightness = number * GOLDEN_RATIO % 1, 0.35 + 0.3 * (number % 3) / 2
    red, green, blue = (round(255 * part) for part in colorsys.hls_to_rgb(hue, lightness, 0.9))
    return red, green, blue


def check_codes(path: Path | str | None) -> None:
    """Before a long run: highdicom is installed and the labels file can be read; raises as :func:`read_codes`."""
    need_highdicom()
    _read(path)


def need_highdicom() -> None:
    """Raises ConfigError with the install line when highdicom is missing."""
    need_packages("DICOM segmentations need", ("highdicom",), "dicom")


def _read(path: Path | str | None) -> dict[str, SegmentCode]:
    return {} if path is None else parse(_Table, read_json(path), shown(path)).root
