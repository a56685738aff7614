"""Inputs, float64 truth and error measures that the scan tests share."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from medmamba.kernels import routed_scan

NAMES = ("x", "dt", "A", "B", "C", "D", "dt_bias")
ROOT = Path(__file__).resolve().parents[2]


def golden(name: str) -> tuple[dict[str, Tensor], dict]:
    """The full golden file if it is at hand, else the cases kept in the repository."""
    shared = Path(os.environ.get("MEDMAMBA_SHARED", ROOT.parent / "shared"))
    path = shared / "parity" / name
    if not path.is_file():
        path = ROOT / "tests" / "data" / "kernels" / name
    with safe_open(str(path), "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    return tensors, json.loads(metadata.get("config") or metadata["info"])


def relative(value: Tensor, truth: Tensor) -> float:
    """||value - truth|| / ||truth||, in float64; the absolute norm where the truth is zero."""
    difference = (value.double() - truth.double()).norm().item()
    size = truth.double().norm().item()
    return difference / size if size > 0 else difference


def scan_inputs(
    batch: int, length: int, K: int, channels: int, states: int, *, seed: int = 0, per_route: bool = False
) -> dict[str, Tensor]:
    """float64 inputs distributed as in the benchmark protocol; routes are random permutations."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "x": normal(batch, length, K, channels) if per_route else normal(batch, length, channels),
        "dt": 0.5 * normal(batch, length, K, channels),
        "A": -torch.arange(1, states + 1).double() * torch.exp(0.1 * normal(K, channels, states)),
        "B": normal(batch, length, K, states),
        "C": normal(batch, length, K, states),
        "D": 1 + 0.1 * normal(K, channels),
        "dt_bias": -2 + 0.5 * normal(K, channels),
        "initial_state": normal(batch, K, channels, states),
        "routes": torch.stack([torch.randperm(length, generator=generator) for _ in range(K)]),
    }


def gated_in_segments(inputs: dict[str, Tensor], merge: bool = True, seed: int = 5) -> dict[str, Tensor]:
    """The same inputs with a gate, and cut into segments of random lengths (their ids need not rise)."""
    generator = torch.Generator().manual_seed(seed)
    dt = inputs["dt"]
    batch, length, _, channels = dt.shape
    shape = (batch, length, channels) if merge else dt.shape
    starts = torch.rand(batch, length, generator=generator) < 0.1
    return inputs | {
        "z": torch.randn(shape, generator=generator, dtype=torch.float64),
        "segments": starts.long().cumsum(1) % 3,
    }


def outputs_and_gradients(inputs: dict[str, Tensor], backend: str, dtype: torch.dtype, **options) -> dict[str, Tensor]:
    """y, last state, and the gradient of a fixed random combination of both with respect to every input."""
    leaves = {
        name: value.to(dtype).requires_grad_() if value.is_floating_point() else value for name, value in inputs.items()
    }
    y, last = routed_scan(**leaves, backend=backend, return_last_state=True, **options)
    generator = torch.Generator().manual_seed(99)
    loss = torch.zeros((), dtype=y.dtype, device=y.device)
    for output in (y, last):
        cotangent = torch.randn(output.shape, generator=generator, dtype=torch.float64)
        loss = loss + (output * cotangent.to(y)).sum()
    names = [name for name, value in leaves.items() if value.requires_grad]
    gradients = torch.autograd.grad(loss, [leaves[name] for name in names])
    return {"y": y.detach(), "last_state": last.detach(), **dict(zip(names, gradients, strict=True))}


def ssd_inputs(
    batch: int, length: int, heads: int, width: int, groups: int, states: int, seed: int = 0, decay: float = 0.3
) -> dict[str, Tensor]:
    """float64 inputs of `ssd_chunked`; log decays are negative with about this size."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "X": normal(batch, length, heads, width),
        "A": -decay * normal(batch, length, heads).abs(),
        "B": normal(batch, length, groups, states),
        "C": normal(batch, length, groups, states),
        "initial_state": normal(batch, heads, width, states),
    }


def errors(values: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, float]:
    """Relative L2 error of each tensor."""
    return {name: relative(values[name], truth[name]) for name in truth}


def float32(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs in float32; routes stay integers."""
    return {name: value.float() if value.is_floating_point() else value for name, value in inputs.items()}


class ScansWhileLoading(torch.utils.data.Dataset):
    """A data set whose loading scans; here, because worker processes must be able to import it."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        y = routed_scan(**float32(scan_inputs(2, 100, 2, 40, 4, seed=index)))
        assert isinstance(y, Tensor)
        return y
