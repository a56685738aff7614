"""Backends of an operator: a table of implementations with one signature, and the one that runs.

The tables are SCAN_BACKENDS, DEFORMABLE_BACKENDS and SSD_BACKENDS in the ``api.py`` of each operator's folder, the
preferred backend first. Their functions import compiled code at the first call.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from medmamba.kernels.availability import announce_fallback

F = TypeVar("F", bound=Callable[..., Any])
Run = TypeVar("Run", bound=Callable[..., Any])


def compile_constant(function: F) -> F:
    """Mark a function that ``torch.compile`` calls once instead of tracing it, and whose result is part of the graph.

    What ``torch.compiler.assume_constant_result`` does, without importing torch's compiler: 150 MB of a process and two
    seconds that a prediction has no use for.
    """
    function.__dict__["_dynamo_marked_constant"] = True
    return function


def anywhere(device: str, dtype: torch.dtype) -> None:
    """The ``why_not`` of a backend that runs on every device and in every precision."""


@dataclass(frozen=True)
class Backend(Generic[Run]):
    """One implementation of an operator."""

    run: Run
    """Takes what every backend of the operator takes, and returns what each returns."""
    why_not: Callable[[str, torch.dtype], str | None] = anywhere
    """Why it cannot run on a device type ("cpu", "cuda") in a precision; None if it can."""
    reads_half: bool = False
    """Whether inputs in float16 and bfloat16 are read as they are, and not converted to float32 before."""


def why_not(backends: Mapping[str, Backend[Run]], device: str, dtype: torch.dtype) -> dict[str, str | None]:
    """Why each backend of the table cannot run on a device type in a precision; None if it can."""
    return {name: backend.why_not(device, dtype) for name, backend in backends.items()}


def choose_backend(backends: Mapping[str, Backend[Run]], name: str, device: str, dtype: torch.dtype) -> str:
    """The backend that runs: the one named, or under "auto" the first of the table that can.

    Raises ValueError for an unknown name and RuntimeError for one that cannot run here.
    """
    reasons = why_not(backends, device, dtype)
    here = [name for name, reason in reasons.items() if reason is None]
    if name == "auto":
        if here[0] == "torch" and dtype == torch.float32:
            announce_fallback(device, reasons["triton" if device == "cuda" else "cpp"] or "")
        return here[0]
    if name not in backends:
        raise ValueError(f"Unknown backend {name!r}. Available: auto, {', '.join(backends)}.")
    if reasons[name] is not None:
        others = ", ".join(one for one in here if one != "reference")  # a slow loop, for tests
        raise RuntimeError(f"Backend {name!r} cannot run: {reasons[name]}. Available here: {others}.")
    return name


def chooser(backends: Mapping[str, Backend[Run]]) -> Callable[[str, str, torch.dtype], str]:
    """`choose_backend` of one table, for ``torch.compile`` a constant of the graph."""
    return compile_constant(lambda name, device, dtype: choose_backend(backends, name, device, dtype))
