"""Golden files: the published function's own numbers, read back.

A golden file is a safetensors file written by running an original project: its parameters (or the formula that draws
them), an input, what came out, and gradients. Two layouts exist. In the first the metadata entry ``config`` describes
the model and ``grad_l2`` lists the norm of every gradient; in the second the entry is ``info`` and parameter gradients
are called ``grad/param/<name>``. Here they become one object.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from medmamba.errors import InputError


@dataclass(frozen=True)
class Golden:
    """One golden file.

    Attributes:
        info: what describes the model: constructor arguments, shapes, the original's own float32 error.
        tensors: everything stored, by its full key.
        grad_l2: norm of the gradient of every parameter, by original name.
        stats: per stage: mean, std, max of the absolute value, then 16 sampled values (published sizes only).
        second_layout: whether the file has the ``info`` layout, with its own tolerances.
    """

    path: Path
    info: dict[str, Any]
    tensors: dict[str, Tensor]
    grad_l2: dict[str, float]
    stats: dict[str, list[float]]
    second_layout: bool

    @property
    def model(self) -> str:
        """The model's name as the file gives it; empty for files of operators and index tables."""
        return str(self.info.get("model", ""))

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Stored parameters and buffers by original name."""
        return {key.removeprefix("param/"): t for key, t in self.tensors.items() if key.startswith("param/")}

    @property
    def parameter_gradients(self) -> dict[str, Tensor]:
        """Stored parameter gradients by original name."""
        prefix = "grad/param/" if self.second_layout else "grad/"
        inputs = {"grad/input", "grad/condition"}
        return {k.removeprefix(prefix): t for k, t in self.tensors.items() if k.startswith(prefix) and k not in inputs}

    def cases(self) -> dict[str, dict[str, Tensor]]:
        """Tensors grouped by the part of their key before the first slash."""
        grouped: dict[str, dict[str, Tensor]] = {}
        for key, tensor in self.tensors.items():
            case, _, rest = key.partition("/")
            grouped.setdefault(case, {})[rest] = tensor
        return grouped


def read_golden(path: str | Path) -> Golden:
    """Read a golden file. Raises InputError if it is missing, damaged, or has no description."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such golden file.")
    try:
        with safe_open(path, "pt") as file:
            meta = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        described = {
            key: json.loads(meta[key]) for key in ("config", "info", "grad_l2", "intermediate_stats") if key in meta
        }
    except (SafetensorError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not a readable golden file ({error}).") from None
    if "config" not in described and "info" not in described:
        raise InputError(f"{path}: has neither `config` nor `info` in its metadata, so the model cannot be rebuilt.")
    return Golden(
        path=path,
        info=described.get("config", described.get("info", {})),
        tensors=tensors,
        grad_l2=described.get("grad_l2", {}),
        stats=described.get("intermediate_stats", {}),
        second_layout="config" not in described,
    )


def formula_tensor(name: str, shape: tuple[int, ...], salt: int) -> Tensor:
    """The parameter ``name`` of a published-size golden model: hashed noise, shaped by what kind of parameter it is."""
    count = int(np.prod(shape))
    r = _noise(name, count, salt).reshape(shape)
    last = name.rsplit(".", 1)[-1]
    if last in ("A_logs", "A_log", "A_b_log"):
        value = np.log(np.arange(shape[-1]) + 1.0) + 0.1 * r
    elif last in ("Ds", "D", "D_b"):
        value = 1 + 0.2 * r
    elif last == "dt_projs_bias" or name.endswith(("dt_proj.bias", "dt_proj_b.bias")):
        value = -4 + r
    elif last in ("pos_embed", "cls_token"):
        value = 0.1 * r
    elif len(shape) == 1:
        value = 1 + 0.2 * r if last == "weight" else 0.1 * r
    else:
        fan = shape[-1] if last in ("x_proj_weight", "dt_projs_weight") else int(np.prod(shape[1:]))
        value = r * np.sqrt(3 / fan)
    return torch.from_numpy(value.astype(np.float32))


def formula_input(shape: tuple[int, ...], salt: int) -> Tensor:
    """The input of a published-size golden model."""
    noise = _noise("input", int(np.prod(shape)), salt).astype(np.float32) * np.float32(1.7)
    return torch.from_numpy(noise.reshape(shape))


def _noise(name: str, count: int, salt: int) -> np.ndarray:
    """Uniform numbers in (-1, 1) from an integer hash of the index."""
    seed = np.uint32((crc32(name.encode()) + salt) % 2**32)
    h = np.arange(count, dtype=np.uint32) + seed
    h ^= h >> np.uint32(16)
    h *= np.uint32(0x7FEB352D)
    h ^= h >> np.uint32(15)
    h *= np.uint32(0x846CA68B)
    h ^= h >> np.uint32(16)
    return 2 * (h.astype(np.float64) + 0.5) / 2**32 - 1
