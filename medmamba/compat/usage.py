"""What of the answered packages was called, and on which backend it ran."""

from collections import Counter

import torch
from torch import Tensor

from medmamba.kernels.scan.api import choose_scan_backend

_calls: Counter[tuple[str, str]] = Counter()


def used(name: str, backend: str) -> None:
    """Count one call of the original's function `name`; not while a graph is made, which has no room for it."""
    if not torch.compiler.is_compiling() and not torch.jit.is_tracing():
        _calls[name, backend] += 1


def scan_backend(*values: Tensor | None) -> str:
    """The backend that scans these tensors under "auto", and its device."""
    given = [value for value in values if value is not None]
    dtype = torch.float64 if any(value.dtype == torch.float64 for value in given) else torch.float32
    device = given[0].device.type
    return f"{choose_scan_backend('auto', device, dtype)} on {device}"


def torch_on(value: Tensor) -> str:
    """The name of torch's own operations, and the device."""
    return f"torch operations on {value.device.type}"


def report() -> str:
    """A line per function that was called since `install`: its name, the backend, the number of calls."""
    if not _calls:
        return "medmamba.compat: nothing was called."
    lines = [f"  {name}: {backend}, {count}x" for (name, backend), count in sorted(_calls.items())]
    return "\n".join(["medmamba.compat was called for:", *lines])


def forget() -> None:
    """Begin to count anew."""
    _calls.clear()
