"""A file of weights as tensors by name: safetensors, or a state dict of torch.save. No code of it is ever run."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file

from medmamba.errors import InputError, is_text

_CURE = "Save its state dict alone: torch.save(model.state_dict(), FILE), or safetensors."


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file; the library itself opens only paths that are UTF-8."""
    return load_file(path) if is_text(path) else load(path.read_bytes())


def read_weight_file(path: Path | str, *, mapped: bool = False) -> Mapping[str, Any]:
    """What a file of weights holds: tensors by name, or containers of them.

    ``mapped``: tensors stay on the disk until they are used (files of torch.save only). Raises InputError for any other
    file: one line that never quotes the library, which advises to load such files unsafely.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file of weights. Check the path.")
    try:
        if path.suffix == ".safetensors":
            return load_tensors(path)
        found: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and is_text(path))
    except pickle.UnpicklingError:
        raise InputError(
            f"{path}: holds more than tensors, or no tensors at all, and could run code when it is read. {_CURE}"
        ) from None
    except Exception as error:  # torch raises many kinds for damaged files
        kind = "SafetensorError" if isinstance(error, SafetensorError) else type(error).__name__
        raise InputError(f"{path}: damaged, or no file of weights ({kind}). Copy it again, or: {_CURE}") from None
    if not isinstance(found, Mapping):
        raise InputError(f"{path}: holds a {type(found).__name__}, not tensors by name. {_CURE}")
    return found
