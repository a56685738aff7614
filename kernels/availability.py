"""What the compiled backends need, and why one cannot run."""

import os
import shutil
import warnings
from functools import cache
from importlib.util import find_spec

import torch

from medmamba.kernels.library import missing_reason


def why_not_cpp(device: str, dtype: torch.dtype) -> str | None:
    """Why the C++ kernels cannot run, or None if they can."""
    if device != "cpu":
        return f"the C++ kernels run on cpu tensors, not {device}"
    return _not_float32("C++", dtype) or missing_reason()


def why_not_triton(device: str, dtype: torch.dtype) -> str | None:
    """Why the Triton kernels cannot run, or None if they can."""
    if device != "cuda":
        return f"the Triton kernels run on CUDA and ROCm tensors, not {device}"
    missing = None if find_spec("triton") else 'triton is not installed ("pip install triton")'
    return _not_float32("Triton", dtype) or missing or _no_compiler()


def _no_compiler() -> str | None:
    """Why Triton cannot start a kernel: it compiles what starts it with the system's C compiler."""
    if os.environ.get("CC") or any(map(shutil.which, ("gcc", "clang", "cc"))):
        return None
    return "Triton finds no C compiler (install gcc, or set CC)"


def _not_float32(kind: str, dtype: torch.dtype) -> str | None:
    if dtype == torch.float32:
        return None
    return f"the {kind} kernels compute in float32, the inputs are {str(dtype).removeprefix('torch.')}"


@cache
def announce_fallback(device: str, reason: str) -> None:
    """Warn, once per reason, that torch operations run where a compiled backend should."""
    warnings.warn(
        f"medmamba.kernels uses the torch backend on {device}, which is many times slower: {reason}.",
        RuntimeWarning,
        stacklevel=5,
    )
