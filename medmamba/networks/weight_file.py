"""A file of weights as tensors by name: safetensors, or a state dict of torch.save. No code of it is ever run."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file

from medmamba.errors import InputError, is_text
from medmamba.networks.torch_file import read_torch_file

_CURE = "Save its state dict alone: torch.save(model.state_dict(), FILE), or safetensors."


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file; the library itself opens only paths that are UTF-8."""
    if is_text(path):
        with suppress(RuntimeError):  # torch could not open it; the system's own error is the better one
            return load_file(path)
    return load(path.read_bytes())


def read_weight_file(path: Path | str, *, mapped: bool = False) -> Mapping[str, Any]:
    """What a file of weights holds: tensors by name, or containers of them.

    ``mapped``: tensors stay on the disk until they are used (files of torch.save only). Raises InputError for any other
    file: one line that never quotes the library, which advises to load such files unsafely.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file of weights. Check the path.")
    if path.suffix != ".safetensors":
        return read_torch_file(path, f"Copy it again, or: {_CURE}", mapped=mapped)
    try:
        return load_tensors(path)
    except (SafetensorError, OSError) as error:
        kind = type(error).__name__
        raise InputError(f"{path}: damaged, or no file of weights ({kind}). Copy it again, or: {_CURE}") from None
