"""Preprocessed cases on disk: one folder per case, arrays in compressed chunks that are read by patch.

    <case>/image.b2nd     float32 (C, I, J, K)
    <case>/labels.b2nd    int16 (I, J, K), the plan's label order (0 = background)
    <case>/locations.safetensors   per label an (n, 3) int16/int32 table of voxel coordinates
                                   and an (n,) table of its connected components
    <case>/body.b2nd      bool (I, J, K), the nonzero mask, where channels are normalised in it alone
    <case>/previous.b2nd  int16 (I, J, K), second stage of a cascade only: the labels that the first stage predicts
    <case>/case.json      schema, case id, shape, annotated labels, affine, checksum of the locations

Every array carries the CRC-32 of its compressed chunks, which are compared when a chunk is first read.

A case is either whole or absent: its folder is renamed into place when it is complete, alone (:func:`write_case`) or
with all other cases of the dataset (:func:`fill_case`).
"""

import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from medmamba.disk.atomic import replace_folder, write_bytes
from medmamba.errors import ConfigError, InputError, is_text
from medmamba.geometry import Affine
from medmamba.plans.json_record import read_stored, sealed

SCHEMA_VERSION = 1
MAX_LOCATIONS = 10_000
"""Voxel coordinates kept per label and case: enough to sample patches uniformly, small on disk (nnU-Net's figure)."""
COMPONENT = ".component"
"""Ending of the table that numbers the connected components of a label's locations."""
CURE = "Run `medmamba plan` again."
LOCATIONS = "locations.safetensors"
FILES = ("image.b2nd", "labels.b2nd", "body.b2nd", "previous.b2nd", "previous.json", "case.json", LOCATIONS)
"""Files that a case may have."""
CHECKSUMS = "crc32"
"""Key in an array's file of the CRC-32 of shape, chunks and type, then of each compressed chunk."""
HEADER_BYTES = 128
PLAIN_ARRAY = re.compile(rb".{2}b2frame\0.{77}\x93\xcd..\xde\0\x01\xa4b2nd", re.DOTALL)
"""Beginning of a blosc2 file with the metadata of a plain array only. Source: c-blosc2, README_CFRAME_FORMAT."""
ANNOTATED = "annotated"
"""Table of the voxels that are not ignored, in cases where some are."""


def write_case(
    folder: Path, case_id: str, image: NDArray[np.float32], labels: NDArray[np.integer], **facts: Any
) -> None:
    """Store one preprocessed case as ``folder``, whole or not at all; ``facts`` as of :func:`fill_case`."""
    with replace_folder(folder) as part:
        fill_case(part, case_id, image, labels, **facts)


def fill_case(
    folder: Path,
    case_id: str,
    image: NDArray[np.float32],
    labels: NDArray[np.integer],
    *,
    chunk: tuple[int, ...],
    seed: int = 0,
    annotated: Sequence[int] | None = None,
    ignore: int | None = None,
    nonzero_mask: NDArray[np.bool_] | None = None,
    affine: Affine | None = None,
    source: str | None = None,
) -> None:
    """Write the files of one preprocessed case into an empty folder that nobody reads yet.

    ``chunk`` is the patch size, so that a patch touches few chunks. ``annotated`` are the label indices that were
    annotated (None: all); ``ignore`` marks voxels without annotation; ``nonzero_mask`` is where channels that
    are normalised in it alone are not 0 (None: there are no such channels). ``affine`` is that of the stored arrays,
    for pictures of the case. ``source`` is a hash of what the case was made of.
    """
    chunks = tuple(min(edge, extent) for edge, extent in zip(chunk, labels.shape, strict=True))
    image = np.ascontiguousarray(image, dtype=np.float32)
    (folder / "image.b2nd").write_bytes(_compressed(image, (len(image), *chunks)))
    (folder / "labels.b2nd").write_bytes(_compressed(np.ascontiguousarray(labels, dtype=np.int16), chunks))
    if nonzero_mask is not None:
        (folder / "body.b2nd").write_bytes(_compressed(np.ascontiguousarray(nonzero_mask), chunks))
    tables = save(_sample_locations(labels, seed, ignore))
    (folder / LOCATIONS).write_bytes(tables)
    facts: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "case_id": case_id, "shape": list(labels.shape)}
    facts["locations_crc32"] = zlib.crc32(tables)
    if annotated is not None:
        facts["annotated"] = list(annotated)
    if affine is not None:
        facts["affine"] = affine.tolist()
    if source is not None:
        facts["source"] = source
    (folder / "case.json").write_text(json.dumps(sealed(facts)) + "\n")


_Row = tuple[float, float, float, float]


@dataclass(frozen=True)
class _CaseFacts:
    """case.json."""

    schema_version: int
    case_id: str
    shape: tuple[int, int, int]
    annotated: tuple[int, ...] | None = None
    locations_crc32: int | None = None
    """None: written by an earlier version."""
    affine: tuple[_Row, _Row, _Row, _Row] | None = None
    """None: without millimetres, or written by an earlier version."""
    source: str | None = None
    """None: a case of the dataset, or written by an earlier version."""


class CaseReader:
    """One stored case, opened on first use and read by patch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        facts = read_stored(folder / "case.json", _CaseFacts, "record of a preprocessed case", CURE)
        if facts.schema_version != SCHEMA_VERSION:
            raise InputError(
                f"{folder}: written with storage schema {facts.schema_version}, this version reads "
                f"{SCHEMA_VERSION}. {CURE}"
            )
        if facts.case_id != folder.name:
            raise ConfigError(f"{folder}: its case.json is that of {facts.case_id[:100]!r}. {CURE}")
        self.case_id, self.shape, self._locations_crc32 = facts.case_id, facts.shape, facts.locations_crc32
        self.affine = None if facts.affine is None else np.array(facts.affine)
        """(4, 4), voxel index to RAS+ mm; None without millimetres, and in cases of earlier versions."""
        self.annotated, self.source = facts.annotated, facts.source
        """Label indices that were annotated in this case; None: all."""

    def __reduce__(self) -> "tuple[type[CaseReader], tuple[Path]]":
        return CaseReader, (self.folder,)  # a copy in another process opens the files itself

    @cached_property
    def locations(self) -> Mapping[int, NDArray[np.integer]]:
        """For each foreground label, an (n, 3) table of voxels that carry it."""
        return {int(name): table for name, table in self._tables.items() if name.isdecimal()}

    @cached_property
    def lesions(self) -> Mapping[int, NDArray[np.integer]]:
        """For each foreground label, the number of the connected component of every row of ``locations``."""
        return {
            int(name.removesuffix(COMPONENT)): table for name, table in self._tables.items() if name.endswith(COMPONENT)
        }

    @cached_property
    def annotated_voxels(self) -> NDArray[np.integer] | None:
        """An (n, 3) table of voxels that are not ignored, or None where nothing is."""
        return self._tables.get(ANNOTATED)

    @cached_property
    def _tables(self) -> Mapping[str, NDArray[np.integer]]:
        path = self.folder / LOCATIONS
        try:
            stored = path.read_bytes()
            if self._locations_crc32 in (None, zlib.crc32(stored)):
                return load(stored)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: cannot be read ({error}). {CURE}") from error
        raise _altered(path)

    @property
    def channels(self) -> int:
        """Channels of the image."""
        return self._image.shape[0]

    @cached_property
    def _image(self) -> "_StoredArray":
        return self._stored("image.b2nd", np.float32)

    @cached_property
    def _labels(self) -> "_StoredArray":
        return self._stored("labels.b2nd", np.int16)

    @cached_property
    def _nonzero_mask(self) -> "_StoredArray | None":
        return self._stored("body.b2nd", np.bool_) if (self.folder / "body.b2nd").is_file() else None

    @cached_property
    def _previous(self) -> "_StoredArray":
        path = self.folder / "previous.b2nd"
        if not path.is_file():
            raise InputError(f"{path}: not found. Train the first stage of the cascade again.")
        return self._stored(path.name, np.int16)

    def _stored(self, name: str, kind: type[np.generic]) -> "_StoredArray":
        """An array of this case; raises InputError for one of another shape or type."""
        stored = _StoredArray(self.folder / name)
        if stored.array.dtype != kind or stored.shape[-len(self.shape) :] != self.shape:
            raise InputError(f"{self.folder / name}: {stored.array.dtype} of shape {stored.shape}. {CURE}")
        return stored

    def write_previous(self, labels: NDArray[np.integer]) -> None:
        """Store the first stage's label map (I, J, K) of this case."""
        if tuple(labels.shape) != self.shape:
            raise ValueError(f"labels of shape {labels.shape} for a case of shape {self.shape}")
        self.__dict__.pop("_previous", None)
        write_bytes(self.folder / "previous.b2nd", _compressed(labels.astype(np.int16), self._labels.array.chunks))

    def read_previous(self) -> NDArray[np.int16]:
        """The first stage's whole label map (I, J, K)."""
        return self._previous[:]

    def read_previous_patch(self, start: tuple[int, ...], size: tuple[int, ...]) -> NDArray[np.int16]:
        """The first stage's labels (1, *size) from voxel ``start``; 0 outside the volume."""
        return self._patch(self._previous, start, size, np.int16)[None]

    def read_body_patch(self, start: tuple[int, ...], size: tuple[int, ...]) -> NDArray[np.int16]:
        """The nonzero mask as a label map (1, *size) from voxel ``start``; all 1 where none is stored."""
        mask = np.broadcast_to(1, self.shape) if self._nonzero_mask is None else self._nonzero_mask
        return self._patch(mask, start, size, np.int16)[None]

    def read_whole(self) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
        """The whole image (C, I, J, K) and label map (I, J, K)."""
        return self._image[:], self._labels[:]

    def read_patch(
        self, start: tuple[int, ...], size: tuple[int, ...]
    ) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
        """Image (C, *size) and labels (1, *size) from voxel ``start``; outside the volume both are 0."""
        image = self._patch(self._image, start, size, np.float32)
        return image, self._patch(self._labels, start, size, np.int16)[None]

    def _patch(self, stored: Any, start: tuple[int, ...], size: tuple[int, ...], kind: type[np.generic]) -> NDArray:
        """A patch of a stored array (..., I, J, K); 0 outside the volume."""
        inside: list[slice] = []
        target: list[slice] = []
        for first, edge, extent in zip(start, size, self.shape, strict=True):
            low, high = max(first, 0), min(first + edge, extent)
            inside.append(slice(low, max(high, low)))
            target.append(slice(low - first, max(high, low) - first))
        channels = stored.shape[: -len(size)]
        every = (slice(None),) * len(channels)
        patch = np.zeros((*channels, *size), kind)
        patch[(*every, *target)] = stored[(*every, *inside)]
        return patch


def stored_cases(folder: Path) -> dict[str, CaseReader]:
    """All complete cases of a preprocessing folder, by case id, sorted."""
    readers = [CaseReader(path.parent) for path in sorted(folder.glob("*/case.json"))]
    return {reader.case_id: reader for reader in readers}


class _StoredArray:
    """A compressed array on disk whose chunks are compared with their checksums when they are first read.

    Raises InputError for a file that cannot be read, differs from its checksum, or is not a plain array (other kinds of
    blosc2 run code or fetch data when they are opened).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                plain = PLAIN_ARRAY.match(file.read(HEADER_BYTES))
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}). {CURE}") from error
        if not plain:
            raise InputError(f"{path}: not a plain blosc2 array. {CURE}")
        with self._read():
            self.array = _opened(path)
            self.shape: tuple[int, ...] = self.array.shape
            header, *chunks = self.array.schunk.vlmeta.get(CHECKSUMS) or [None]
            self._unread = dict(enumerate(chunks))
        if header not in (None, _checksum_of_header(self.array)):
            raise _altered(path)

    def __getitem__(self, key: Any) -> NDArray:
        with self._read():
            if self._unread:
                self._verify(np.index_exp[key])
            return self.array[key]

    def _verify(self, key: tuple[slice, ...]) -> None:
        """Compare the chunks of these slices that have not been read before."""
        grid = [-(-extent // edge) for extent, edge in zip(self.shape, self.array.chunks, strict=True)]
        touched = [range(count) for count in grid]
        for axis, part in enumerate(key):
            start, stop, _ = part.indices(self.shape[axis])
            touched[axis] = range(start // self.array.chunks[axis], -(-stop // self.array.chunks[axis]))
        for place in product(*touched):
            number = int(np.ravel_multi_index(place, grid))
            if number in self._unread:
                if zlib.crc32(self.array.schunk.get_chunk(number)) != self._unread[number]:
                    raise _altered(self.path)
                del self._unread[number]

    @contextmanager
    def _read(self) -> Iterator[None]:
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # blosc2 raises many kinds for damaged files
            raise InputError(f"{self.path}: cannot be read ({error}). {CURE}") from error


def _opened(path: Path) -> blosc2.NDArray:
    # One thread: a forked data worker would wait forever for blosc2's threads of its parent process.
    if is_text(path):
        return blosc2.open(str(path), mode="r", dparams={"nthreads": 1})
    array = blosc2.ndarray_from_cframe(path.read_bytes())  # blosc2 opens no path that is not UTF-8
    array.schunk.dparams = blosc2.DParams(nthreads=1)
    return array


def _checksum_of_header(array: blosc2.NDArray) -> int:
    return zlib.crc32(repr((array.shape, array.chunks, array.blocks, array.dtype.str)).encode())


def _altered(path: Path) -> InputError:
    return InputError(f"{path}: the data differ from what was preprocessed (CRC-32); the file is damaged. {CURE}")


def _compressed(array: NDArray, chunks: tuple[int, ...]) -> bytes:
    # Made in memory and written by Python: blosc2's own file writer does not say that a disk is full.
    # One thread: several would put the blocks into the frame in the order in which they happen to finish. Level 1:
    # level 5 takes five times as long for files that are 5 % smaller.
    codec = {"codec": blosc2.Codec.ZSTD, "clevel": 1, "nthreads": 1}
    # Contiguous, so that chunks are those that are read back: a frame keeps chunks of zeros in a form of its own.
    stored = blosc2.asarray(array, chunks=chunks, cparams=codec, contiguous=True)
    checksums = [zlib.crc32(stored.schunk.get_chunk(number)) for number in range(stored.schunk.nchunks)]
    stored.schunk.vlmeta[CHECKSUMS] = [_checksum_of_header(stored), *checksums]
    return stored.to_cframe()


def _sample_locations(labels: NDArray[np.integer], seed: int, ignore: int | None) -> dict[str, NDArray[np.integer]]:
    """Voxels of each label with their connected component; every component keeps a voxel, however small it is."""
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    kind = np.int16 if max(labels.shape) < 2**15 else np.int32
    locations = {}
    for index, box in enumerate(ndimage.find_objects(labels)):
        label = index + 1
        if box is None or label == ignore:
            continue
        mask = labels[box] == label
        voxels = np.argwhere(mask) + [part.start for part in box]
        numbered, _ = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))  # corners touch
        component = numbered[mask]  # in the order of argwhere
        if len(voxels) > MAX_LOCATIONS:
            _, firsts = np.unique(component, return_index=True)
            drawn = rng.choice(len(voxels), MAX_LOCATIONS, replace=False)
            kept = np.union1d(drawn, firsts[:MAX_LOCATIONS])
            voxels, component = voxels[kept], component[kept]
        locations[str(label)] = np.ascontiguousarray(voxels.astype(kind))
        locations[f"{label}{COMPONENT}"] = np.ascontiguousarray(component.astype(np.int32))
    if ignore is not None and (labels == ignore).any():
        voxels = np.argwhere(labels != ignore)
        if len(voxels) > MAX_LOCATIONS:
            voxels = voxels[np.sort(rng.choice(len(voxels), MAX_LOCATIONS, replace=False))]
        locations[ANNOTATED] = np.ascontiguousarray(voxels.astype(kind))
    return locations
