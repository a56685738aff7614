"""Which implementation runs, and why the others do not. Nothing is chosen silently."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch

from medmamba.kernels.compile_constant import asked_once
from medmamba.kernels.library import instruction_set, library_path, missing_reason

BACKENDS = ("cpp", "triton", "torch", "reference")


@dataclass(frozen=True)
class BackendChoice:
    """What will run on one kind of device."""

    device: str
    chosen: str
    detail: str
    refused: dict[str, str]  # backend -> why it will not run

    def __str__(self) -> str:
        lines = [f"{self.device}: {self.chosen} ({self.detail})"]
        return "\n".join(lines + [f"  not {name}: {why}" for name, why in self.refused.items()])


@dataclass(frozen=True)
class BackendReport:
    """What will run on the processor and on a graphics device."""

    cpu: BackendChoice
    cuda: BackendChoice

    def __str__(self) -> str:
        return f"{self.cpu}\n{self.cuda}"


_ALWAYS_SLOW = {"reference": "a plain loop for tests; runs only when asked for"}


def why_not(backend: str, device: str, dtype: torch.dtype = torch.float32) -> str | None:
    """Why a backend cannot run, or None if it can."""
    if backend in ("torch", "reference"):
        return None
    if backend == "triton":
        return _why_not_triton(device, dtype)
    if device != "cpu":
        return f"the C++ kernels run on cpu tensors, not {device}"
    if dtype != torch.float32:
        return f"the C++ kernels compute in float32, the inputs are {str(dtype).removeprefix('torch.')}"
    return missing_reason()


def _why_not_triton(device: str, dtype: torch.dtype) -> str | None:
    if device != "cuda":
        return f"the Triton kernels run on CUDA and ROCm tensors, not {device}"
    if dtype != torch.float32:
        return f"the Triton kernels compute in float32, the inputs are {str(dtype).removeprefix('torch.')}"
    if find_spec("triton") is None:
        return 'triton is not installed ("pip install triton")'
    return None


def available_backends(device: str = "cpu") -> list[str]:
    """Backends that can run float32 on this device, the preferred one first."""
    return [name for name in BACKENDS if why_not(name, device) is None]


@asked_once
def choose_backend(backend: str, device: str, dtype: torch.dtype) -> str:
    """The backend that runs: the one asked for, or under "auto" the first that can.

    Raises ValueError for an unknown name and RuntimeError for one that cannot run here.
    """
    if backend == "auto":
        chosen = next(name for name in BACKENDS if why_not(name, device, dtype) is None)
        if chosen == "torch" and dtype == torch.float32:
            preferred = "triton" if device == "cuda" else "cpp"
            _announce_fallback(device, why_not(preferred, device, dtype) or "")
        return chosen
    if backend not in BACKENDS:
        raise ValueError(f"Unknown backend {backend!r}. Available: auto, {', '.join(BACKENDS)}.")
    reason = why_not(backend, device, dtype)
    if reason is not None:
        raise RuntimeError(f"Backend {backend!r} cannot run: {reason}. Available here: {available_backends(device)}.")
    return backend


@cache
def _announce_fallback(device: str, reason: str) -> None:
    warnings.warn(
        f"medmamba.kernels uses the torch backend on {device}, which is many times slower: {reason}.",
        RuntimeWarning,
        stacklevel=4,
    )


def backend_report() -> BackendReport:
    """Which backend runs on cpu and cuda, and why the others will not."""
    cpu = available_backends("cpu")[0]
    detail = f"{instruction_set()}, {library_path()}" if cpu == "cpp" else "torch operations, slow"
    refused = {name: reason for name in BACKENDS if (reason := why_not(name, "cpu")) is not None}
    on_cpu = BackendChoice("cpu", cpu, detail, refused | _ALWAYS_SLOW)
    if not torch.cuda.is_available():
        return BackendReport(on_cpu, BackendChoice("cuda", "none", "no CUDA or ROCm device is visible", {}))
    cuda = available_backends("cuda")[0]
    refused = {name: reason for name in BACKENDS if (reason := why_not(name, "cuda")) is not None}
    return BackendReport(on_cpu, BackendChoice("cuda", cuda, torch.cuda.get_device_name(), refused | _ALWAYS_SLOW))
