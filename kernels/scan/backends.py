"""The backends of the selective scan, the preferred one first. To add one: a file with its function, and a row here.

Compiled code is imported at the first call of its backend.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from medmamba.kernels.availability import why_not_cpp, why_not_triton
from medmamba.kernels.backends import Backend, choose_backend
from medmamba.kernels.compile_constant import compile_constant
from medmamba.kernels.scan.chunked import routed_scan_chunked
from medmamba.kernels.scan.inputs import ScanInputs
from medmamba.kernels.scan.reference import routed_scan_reference


def _cpp(scan: ScanInputs) -> tuple[Tensor, Tensor]:
    from medmamba.kernels.scan.cpp import run

    return run(scan)


def _triton(scan: ScanInputs) -> tuple[Tensor, Tensor]:
    from medmamba.kernels.scan.triton_op import run

    return run(scan)


SCAN_BACKENDS: dict[str, Backend[Callable[[ScanInputs], tuple[Tensor, Tensor]]]] = {
    "cpp": Backend(_cpp, why_not_cpp),
    "triton": Backend(_triton, why_not_triton, reads_half=True),
    "torch": Backend(routed_scan_chunked),
    "reference": Backend(routed_scan_reference),
}
"""Name -> backend; a backend returns y and the last state, as `medmamba.kernels.routed_scan` does."""


@compile_constant
def choose_scan_backend(name: str, device: str, dtype: torch.dtype) -> str:
    """The backend that scans tensors of this device type and precision; raises as `choose_backend` does."""
    return choose_backend(SCAN_BACKENDS, name, device, dtype)
