"""Report of the scan backends that run on this machine, and of why the others do not."""

from dataclasses import dataclass

import torch

from medmamba.kernels.backends import why_not
from medmamba.kernels.library import library_in_use
from medmamba.kernels.scan.api import SCAN_BACKENDS

_REFERENCE = 'a plain loop for tests, only from Python: backend="reference"'


@dataclass(frozen=True)
class BackendChoice:
    """What will run on one kind of device."""

    device: str
    chosen: str
    detail: str
    refused: dict[str, str]  # backend -> why it will not run
    others: tuple[str, ...] = ()  # other backends that can be selected by name

    def __str__(self) -> str:
        lines = [f"{self.device}: {self.chosen} ({self.detail})", *(f"  {name}: available" for name in self.others)]
        for name, why in self.refused.items():
            lines.append(f"  {name}: {why}" if why == _REFERENCE else f"  {name}: unavailable ({why})")
        return "\n".join(lines)


@dataclass(frozen=True)
class BackendReport:
    """What will run on the processor and on a graphics device."""

    cpu: BackendChoice
    cuda: BackendChoice

    def __str__(self) -> str:
        return f"{self.cpu}\n{self.cuda}"


def available_backends(device: str = "cpu") -> list[str]:
    """Backends that can scan float32 on this device, the preferred one first."""
    return [name for name, reason in why_not(SCAN_BACKENDS, device, torch.float32).items() if reason is None]


def backend_report() -> BackendReport:
    """Which backend runs on cpu and cuda, and why the others will not."""
    compiled = available_backends("cpu")[0] == "cpp"
    cpu = _choice("cpu", library_in_use() if compiled else "torch operations, slow")
    if not torch.cuda.is_available():
        return BackendReport(cpu, BackendChoice("cuda", "none", "no CUDA or ROCm device is visible", {}))
    return BackendReport(cpu, _choice("cuda", torch.cuda.get_device_name()))


def _choice(device: str, detail: str) -> BackendChoice:
    reasons = why_not(SCAN_BACKENDS, device, torch.float32) | {"reference": _REFERENCE}
    chosen, *others = (name for name, reason in reasons.items() if reason is None)
    refused = {name: reason for name, reason in reasons.items() if reason is not None}
    return BackendChoice(device, chosen, detail, refused, tuple(others))
