"""The implementation of the scan operators that a network runs on: chosen once, and its name for reports.

``auto`` takes the fastest that runs on the device: C++ (``cpp``) on a CPU, Triton (``triton``) on a CUDA or ROCm
device, else torch operations (``torch``). ``reference`` is a plain loop over time, for tests. Source: medmamba.kernels.
"""

import torch
from torch import nn

from medmamba.errors import ConfigError, unknown_name
from medmamba.kernels.scan.api import SCAN_BACKENDS, choose_scan_backend
from medmamba.networks.blocks.scan_core import ScanModule


def set_scan_backend(network: nn.Module, name: str) -> None:
    """Let every scan and deformable convolution of ``network`` run on the backend ``name``, from the next call on.

    Raises ConfigError for an unknown name; `scan_backend_of` for one that cannot run on a device.
    """
    if name not in ("auto", *SCAN_BACKENDS):
        raise unknown_name("scan backend", name, ("auto", *SCAN_BACKENDS))
    for module in network.modules():
        if isinstance(module, ScanModule):
            module.scan_backend = name


def scan_backend_of(network: nn.Module, device: torch.device | str) -> str:
    """The backend on which the scans and deformable convolutions of ``network`` run on ``device``, or "none".

    "none" is for a network that has neither. Raises ConfigError if the backend that was set cannot run on ``device``,
    with the reason and what can.
    """
    asked = sorted({module.scan_backend for module in network.modules() if isinstance(module, ScanModule)})
    double = any(parameter.dtype == torch.float64 for parameter in network.parameters())
    dtype = torch.float64 if double else torch.float32  # half precision is scanned in float32
    try:
        runs = [choose_scan_backend(name, torch.device(device).type, dtype) for name in asked]
    except RuntimeError as error:
        raise ConfigError(f"--scan-backend {', '.join(asked)}: {error}") from None
    return ", ".join(dict.fromkeys(runs)) or "none"
