"""The files that writing an image makes: one file, a pair, or a header and packed voxels in a second file."""

from __future__ import annotations

from pathlib import Path


def alone(path: Path) -> list[Path]:
    """The file itself."""
    return [path]


def pair(path: Path) -> list[Path]:
    """Header (.hdr) and voxels (.img), whichever of them ``path`` names; endings in the case of its own."""
    header, voxels = (ending.upper() if path.suffix.isupper() else ending for ending in (".hdr", ".img"))
    return [path.with_suffix(header), path.with_suffix(voxels)]


def header_and_zraw(path: Path) -> list[Path]:
    """A MetaImage header and its packed voxels."""
    return [path, path.with_suffix(".zraw")]
