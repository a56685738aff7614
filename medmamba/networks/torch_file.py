"""A file of torch.save as tensors by name: nothing of it is run, and damage is noticed."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from medmamba.errors import InputError, is_text


def read_torch_file(path: Path, cure: str, *, mapped: bool = False) -> Mapping[str, Any]:
    """What a file of torch.save holds: tensors by name, or containers of them.

    Bytes are compared with the checksums of the file, which torch does not do, unless they are ``mapped``: then they
    stay on the disk until they are used. Raises InputError for any other file: one line that ends with ``cure`` and
    never quotes torch, which advises to load such files unsafely.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file of weights. {cure}")
    try:
        damaged = None if mapped or not zipfile.is_zipfile(path) else _damaged_part(path)
        found: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and is_text(path))
    except pickle.UnpicklingError:
        raise InputError(
            f"{path}: holds more than tensors, or no tensors at all, and could run code when it is read. {cure}"
        ) from None
    except Exception as error:  # torch raises many kinds for damaged files
        raise InputError(f"{path}: damaged, or no file of weights ({type(error).__name__}). {cure}") from None
    if damaged:
        raise InputError(f"{path}: damaged: {damaged} differs from its checksum (CRC-32). {cure}")
    if not isinstance(found, Mapping):
        raise InputError(f"{path}: holds a {type(found).__name__}, not tensors by name. {cure}")
    return found


def _damaged_part(path: Path) -> str | None:
    """Name of the first part of a zip whose bytes differ from its checksum."""
    with zipfile.ZipFile(path) as archive:
        return archive.testzip()
