"""Checkpoints of torch.save, read as data: the zip form and the one before torch 1.6.

Tensors stay in the file until they are asked for, one at a time. A zip entry must be stored as it is (torch never
compresses) and fit into the file, so that what is unpacked is never more than the file itself.
"""

import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import torch

from medmamba.errors import InputError
from medmamba.images.gate import open_regular, shown
from medmamba.nnunet.data_pickle import (
    CURE,
    LARGEST_BYTES,
    STORAGE_TYPES,
    Named,
    Refused,
    StoredTensor,
    read_data_pickle,
)

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""The two numbers that begin a file of the old form. Source: torch/serialization.py."""


@dataclass(frozen=True)
class Storage:
    """The values of one or more tensors: its key in the file, the type of its values and their number."""

    key: str
    dtype: str
    count: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.count * torch.empty((), dtype=getattr(torch, self.dtype)).element_size()


class CheckpointFile:
    """An open checkpoint: ``content`` is its value, with :class:`StoredTensor` in place of tensors.

    Raises InputError, on opening or reading, for a file that is no checkpoint, is damaged, or holds more than data.
    """

    def __init__(self, path: Path) -> None:
        self.where = shown(path)
        self._file, self._size = open_regular(path, self.where)
        self._places: dict[str, int] = {}
        self._zip: zipfile.ZipFile | None = None
        self._prefix = ""
        self._storages: dict[str, Storage] = {}
        try:
            zipped = self._file.read(4) == b"PK\x03\x04"
            self._file.seek(0)
            self.content: Any = self._open_zip() if zipped else self._open_old()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def tensor(self, stored: StoredTensor) -> torch.Tensor:
        """The tensor of a description in ``content``, contiguous, in memory of its own."""
        storage = stored.storage
        if not isinstance(storage, Storage):
            raise InputError(f"{self.where}: a tensor without values. {CURE}")
        count = math.prod(stored.shape)
        reach = stored.offset + 1 + sum((n - 1) * step for n, step in zip(stored.shape, stored.strides, strict=True))
        if count > storage.count or (count and reach > storage.count):
            raise InputError(f"{self.where}: a tensor of shape {stored.shape} in {storage.count} values. {CURE}")
        dtype = getattr(torch, storage.dtype)
        if not count:
            return torch.empty(stored.shape, dtype=dtype)
        values = torch.frombuffer(bytearray(self._bytes(storage)), dtype=dtype)
        return values.as_strided(stored.shape, stored.strides, stored.offset).clone(
            memory_format=torch.contiguous_format
        )

    def _bytes(self, storage: Storage) -> bytes:
        if self._zip is not None:
            data = self._member(f"{self._prefix}data/{storage.key}", storage.size)
        else:
            place = self._places.get(storage.key)
            if place is None:
                raise self._cut(f"no storage {storage.key}")
            self._file.seek(place)
            data = self._file.read(storage.size)
        if len(data) != storage.size:
            raise self._cut(f"storage {storage.key} has {len(data)} of {storage.size} bytes")
        return data

    def _persistent(self, identifier: Any) -> Storage:
        """The storage of a tensor: ("storage", class, key, device, number of values, ...)."""
        kind, name, key, _, count, *_ = identifier
        if kind != "storage" or not isinstance(name, Named) or name.name not in STORAGE_TYPES:
            raise Refused(f"{self.where}: refers to {shown(str(name))[:60]}, which is no kind of tensor. {CURE}")
        if not (isinstance(key, str) and key.isascii() and key.isdecimal() and type(count) is int and count >= 0):
            raise Refused(f"{self.where}: names a storage {shown(str(key))[:40]!r}. {CURE}")
        storage = self._storages.setdefault(key, Storage(key, STORAGE_TYPES[name.name], count))
        if storage.size > self._size:
            raise self._cut(f"a tensor of {storage.size} bytes in a file of {self._size}")
        return storage

    def _cut(self, reason: str) -> InputError:
        return InputError(f"{self.where}: damaged or cut short ({reason}). Copy it again.")

    def _open_zip(self) -> Any:
        try:
            self._zip = zipfile.ZipFile(self._file)
            members = self._zip.infolist()
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, EOFError) as error:
            raise self._cut(shown(str(error))[:60]) from None
        if sum(member.file_size for member in members) > self._size:
            raise Refused(f"{self.where}: its parts are larger than the file, as torch never writes them. {CURE}")
        roots = [member.filename for member in members if member.filename.endswith("data.pkl")]
        if len(roots) != 1:
            raise InputError(f"{self.where}: a zip file, but no checkpoint of torch. {CURE}")
        self._prefix = roots[0].removesuffix("data.pkl")
        names = {member.filename for member in members}
        if (order := f"{self._prefix}byteorder") in names and self._member(order, None) != b"little":
            raise InputError(
                f"{self.where}: written on a big-endian machine, which is not read. Save it again on another."
            )
        return read_data_pickle(BytesIO(self._member(roots[0], None)), self.where, persistent=self._persistent)

    def _member(self, name: str, size: int | None) -> bytes:
        """The bytes of one part of the zip, of a known size or of at most that of a pickle."""
        assert self._zip is not None
        try:
            member = self._zip.getinfo(name)
            if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
                raise Refused(
                    f"{self.where}: {shown(name)[:60]} is compressed or encrypted, as torch never writes it. {CURE}"
                )
            if member.file_size > (LARGEST_BYTES if size is None else size):
                raise Refused(f"{self.where}: {shown(name)[:60]} has {member.file_size} bytes, too many. {CURE}")
            return self._zip.read(member)
        except KeyError:
            raise self._cut(f"{shown(name)[:60]} is missing") from None
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, ValueError) as error:
            raise self._cut(shown(str(error))[:60]) from None

    def _open_old(self) -> Any:
        stream: Any = _Limited(self._file)
        begin = [read_data_pickle(stream, self.where) for _ in range(2)]
        if begin != [MAGIC, PROTOCOL]:
            raise InputError(f"{self.where}: no checkpoint of torch. {CURE}")
        system = read_data_pickle(stream, self.where)
        if not isinstance(system, Mapping) or system.get("little_endian") is not True:
            raise InputError(
                f"{self.where}: written on a big-endian machine, which is not read. Save it again on another."
            )
        content = read_data_pickle(stream, self.where, persistent=self._persistent)
        keys = read_data_pickle(stream, self.where)
        place = self._file.tell()
        for key in keys if isinstance(keys, list) else []:
            storage = self._storages.get(key) if isinstance(key, str) else None
            if storage is None:
                raise self._cut("a storage that no tensor uses")
            self._file.seek(place)
            if self._file.read(8) != storage.count.to_bytes(8, "little") or place + 8 + storage.size > self._size:
                raise self._cut(f"storage {key}")
            self._places[key] = place + 8
            place += 8 + storage.size
        return content


class _Limited:
    """A file of which no more than a pickle's bytes are read; as ``pickletools.genops`` reads it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def _left(self) -> int:
        return max(0, LARGEST_BYTES - self._file.tell())

    def read(self, count: int) -> bytes:
        return self._file.read(min(count, self._left()))

    def readline(self) -> bytes:
        return self._file.readline(min(self._left(), 2**16))

    def tell(self) -> int:
        return self._file.tell()
