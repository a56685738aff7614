"""DICOM series: their tags, files, and the stacks and phases that they are divided into, in words."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from medmamba.errors import InputError, counted
from medmamba.images import dicom_headers as headers
from medmamba.images.dicom_headers import Tags
from medmamba.images.dicom_parts import parts_of, size_of, sizes_of
from medmamba.images.dicom_slices import Slice, slices_of
from medmamba.images.gate import shown


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
        size = sizes_of(self.parts) or (size_of(self.parts[0]) if self.parts else unread)
        notes = [f"UID {self.uid}"] + ["localizer"] * headers.is_localizer(self.tags) + ["damaged"] * bool(self.problem)
        modality = self.tags.get(headers.MODALITY) or "?"
        return f"{self.number or '-'}: {modality}{words} {size}, {', '.join(notes)}"
