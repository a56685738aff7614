"""What every image reader returns and every writer must give back: decoded voxels, checked and compared.

A module of a format (see formats.py) has ``read(path, where, options, mask=...)``, which returns a :class:`Decoded`;
``write(path, stored, like, mask=..., verify=...)``, which writes files whole or not at all; and ``same_place(found,
like)``, which says whether what came back from the disk lies where it should.

Values are checked before they are cast, never after: 258 must not become 2, and 0.5 must not become 0. Work goes slab
by slab, so that scaling needs no second copy of the image in float64.
"""

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medmamba.errors import InputError, ResourceError
from medmamba.geometry import Grid, Shape
from medmamba.images.gate import NonFinite, check_memory, shown
from medmamba.images.image import LabelMap, MedicalImage, first_voxel, smallest_type

LABEL_TOLERANCE = 1e-3  # a stored label may differ from a whole number by this (scaled and float-stored files)
FLOAT32_MAX = float(np.finfo(np.float32).max)
_SLAB_VOXELS = 1 << 22

Stored = npt.NDArray[Any]
Like = MedicalImage | LabelMap | Grid
"""Whose grid a file is written on."""

GZIP, ZLIB = 31, 15
"""Window bits of zlib for a gzip stream (without name and time) and for a zlib stream."""


@dataclass(frozen=True, eq=False)
class Decoded:
    """Numbers (C, i, j, k) as they are stored, where they lie, and warnings, one sentence each.

    ``slope`` and ``inter`` make values of them; ``header`` is what a mask on this grid needs.
    """

    stored: Stored
    grid: Grid
    header: Any = None
    warnings: tuple[str, ...] = ()
    orientation_known: bool = True
    slope: float = 1.0
    inter: float = 0.0

    @property
    def scaled(self) -> bool:
        """Whether values differ from the stored numbers."""
        return (self.slope, self.inter) != (1.0, 0.0)

    def slabs(self) -> Iterator[tuple[tuple[slice, ...], Stored]]:
        """Boxes over (C, i, j, k) of one channel and some slices each, with their values (in float64 where scaled)."""
        channels, i, j, k = self.stored.shape
        thick = max(1, _SLAB_VOXELS // max(1, i * j))
        for channel in range(channels):
            for start in range(0, k, thick):
                box = slice(channel, channel + 1), slice(None), slice(None), slice(start, min(k, start + thick))
                values = self.stored[box]
                if self.scaled:
                    with np.errstate(over="ignore"):  # too large values become infinite, which the caller reports
                        values = values.astype(np.float64) * self.slope + self.inter
                yield box, values


def grid_of(like: Like) -> Grid:
    """The grid itself, or that of an image."""
    return like if isinstance(like, Grid) else like.grid


def header_of(like: Like, kind: type[Any]) -> Any:
    """The header of ``like`` if it is of the class ``kind``; None for a grid and for images of other formats."""
    header = None if isinstance(like, Grid) else like.header
    return header if isinstance(header, kind) else None


def checked_image(found: Decoded, path: Path | str, where: str, nonfinite: NonFinite = "error") -> MedicalImage:
    """Decoded numbers as a MedicalImage: scaled, finite float32, with a warning for constant channels."""
    check_memory(found.stored.size * 4, where)
    array = _as_float32(found, where)
    warnings, constant, replaced = list(found.warnings), [], 0
    for number, channel in enumerate(array):
        low, high = float(channel.min()), float(channel.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            bad = ~np.isfinite(channel)
            count = int(np.count_nonzero(bad))
            if nonfinite == "error":
                of_channel = f" of channel {number}" if len(array) > 1 else ""
                raise InputError(
                    f"{where}: {count} voxels are NaN or infinite, the first at {first_voxel(bad)}{of_channel}. "
                    "Correct the image, or read it with nonfinite=zero."
                )
            channel[bad] = 0
            replaced += count
            low, high = float(channel.min()), float(channel.max())
        if low == high:
            constant.append(number)
    if replaced:
        warnings.append(f"{where}: {replaced} voxels were NaN or infinite and are zero now.")
    if constant:
        which = f" in channel {', '.join(map(str, constant))}" if len(array) > 1 else ""
        warnings.append(f"{where}: all voxels have the same value{which}.")
    known = found.orientation_known
    return MedicalImage(array, found.grid, found.header, Path(path), tuple(warnings), tuple(constant), known, replaced)


def _as_float32(found: Decoded, where: str) -> npt.NDArray[np.float32]:
    """The values (C, i, j, k), i fastest in memory; the stored numbers themselves where they are such values."""
    stored = found.stored
    contiguous = stored.flags.writeable and stored[0].flags.f_contiguous
    if contiguous and stored.dtype == np.float32 and stored.dtype.isnative and not found.scaled:
        return stored
    result = np.moveaxis(np.empty((*stored.shape[1:], len(stored)), dtype=np.float32, order="F"), -1, 0)
    for box, values in found.slabs():
        if values.dtype == np.float64:
            for value in (float(np.fmin.reduce(values, axis=None)), float(np.fmax.reduce(values, axis=None))):
                if np.isfinite(value) and abs(value) > FLOAT32_MAX:
                    raise InputError(
                        f"{where}: a voxel has the value {value:.3g} (header scale {found.slope:g}, {found.inter:g}), "
                        "outside the range of float32. Correct the scale in the header."
                    )
        with np.errstate(over="ignore"):  # beside infinite voxels, which the caller reports
            result[box] = values
    return result


def checked_labels(found: Decoded, path: Path | str, where: str) -> LabelMap:
    """Decoded numbers as a LabelMap of whole numbers, with a warning where values were rounded.

    Raises InputError for several channels, and for a value that is not finite or farther than 1e-3 from a whole number.
    """
    if len(found.stored) > 1:
        raise InputError(f"{where}: {len(found.stored)} channels; a label map has one. Give one label map per case.")
    labels, warnings = found.stored[0], list(found.warnings)
    if labels.dtype.kind not in "iu" or found.scaled:
        labels, largest = _rounded(found, where)
        if largest:
            warnings.append(f"{where}: label values were rounded to whole numbers, by up to {largest:.1g}.")
    kind = smallest_type(int(labels.min()), int(labels.max()))
    return LabelMap(labels.astype(kind, order="K", copy=False), found.grid, found.header, Path(path), tuple(warnings))


def _rounded(found: Decoded, where: str) -> tuple[Stored, float]:
    """The one channel in whole numbers, and the largest change."""
    labels = np.empty(found.stored.shape[1:], dtype=np.int32, order="F")
    largest, first, count = 0.0, "", 0
    for box, values in found.slabs():
        values = values.astype(np.float64, copy=False)
        whole = np.rint(values)
        with np.errstate(invalid="ignore"):
            change = np.abs(values - whole)
            wrong = ~(change <= LABEL_TOLERANCE) | (np.abs(whole) > 2**31 - 1)
            labels[box[1:]] = whole[0]
        if wrong.any() and not count:
            i, j, k = first_voxel(wrong[0])
            first = f"{values[0, i, j, k]:g} at voxel {(i, j, k + int(box[3].start))}"
        count += int(np.count_nonzero(wrong))
        largest = max(largest, float(change.max()))
    if count:
        raise InputError(
            f"{where}: label value {first} is not a whole number ({count} voxels). Was a label map resampled with "
            "interpolation? Export it again."
        )
    return labels, largest


def storable_labels(labels: npt.ArrayLike, shape: Shape) -> Stored:
    """Labels (i, j, k) in the smallest unsigned type; ValueError for other numbers or another shape."""
    array = np.asarray(labels)
    if array.dtype.kind not in "iub":
        raise ValueError(f"Labels are whole numbers, not {array.dtype}.")
    if array.shape != shape:
        raise ValueError(f"Labels of shape {array.shape} do not lie on a grid of {shape}.")
    low, high = int(array.min()), int(array.max())
    if low < 0:
        raise ValueError(f"A label map for output holds values from 0 on, not {low}.")
    return array.astype(smallest_type(low, high), copy=False)


def same_place(found: Decoded, like: Like) -> bool:
    """Whether the grid came back, to the last bit."""
    return found.grid == grid_of(like)


def same_values(again: Stored, written: Stored, path: Path | str) -> None:
    """What was written must come back (intensities as float32); slice by slice, without a third array."""
    kind = np.float32 if again.dtype == np.float32 else written.dtype
    same = again.shape == written.shape and all(
        np.array_equal(again[..., k], written[..., k].astype(kind, copy=False)) for k in range(written.shape[-1])
    )
    if not same:
        raise ResourceError(f"Cannot write {shown(path)}: other voxels come back from the disk. Check the disk.")


def little_endian(stored: Stored) -> Stored:
    """The same numbers in the byte order of all files that are written here."""
    return stored.astype(stored.dtype.newbyteorder("<"), copy=False)


def compressed(pieces: Iterable[bytes], *, level: int, format_bits: int) -> Iterator[bytes]:
    """Bytes packed as one gzip or zlib stream (``format_bits`` is GZIP or ZLIB); equal input gives equal bytes."""
    coder = zlib.compressobj(level, zlib.DEFLATED, format_bits)
    for piece in pieces:
        yield coder.compress(piece)
    yield coder.flush()


def alone(path: Path) -> list[Path]:
    """The files of an image that is in one file."""
    return [path]


def pair(path: Path) -> list[Path]:
    """Header (.hdr) and voxels (.img), whichever of them ``path`` names; endings in the case of its own."""
    header, voxels = (ending.upper() if path.suffix.isupper() else ending for ending in (".hdr", ".img"))
    return [path.with_suffix(header), path.with_suffix(voxels)]


def header_and_zraw(path: Path) -> list[Path]:
    """A MetaImage header and its packed voxels."""
    return [path, path.with_suffix(".zraw")]
