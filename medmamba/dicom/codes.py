"""The labels file: DICOM codes and a colour for each label.

docs/how-to/export-a-model.md has an example. A label that is not listed becomes "Tissue" under its own name.
"""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, RootModel

from medmamba.datasets.description import parse, read_json
from medmamba.errors import need_packages, unknown_name
from medmamba.images.gate import shown

Text = Annotated[str, Field(min_length=1, max_length=64)]
Code = tuple[
    Annotated[str, Field(min_length=1, max_length=16)], Annotated[str, Field(min_length=1, max_length=16)], Text
]
"""Code value, coding scheme (as SCT) and meaning, at most 16, 16 and 64 characters (DICOM PS3.3 section 8)."""
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


def check_codes(path: Path | str | None) -> None:
    """Before a long run: highdicom is installed and the labels file can be read; raises as :func:`read_codes`."""
    need_highdicom()
    _read(path)


def need_highdicom() -> None:
    """Raises ConfigError with the install line when highdicom is missing."""
    need_packages("DICOM segmentations need", ("highdicom",), "dicom")


def _read(path: Path | str | None) -> dict[str, SegmentCode]:
    return {} if path is None else parse(_Table, read_json(path), shown(path)).root
