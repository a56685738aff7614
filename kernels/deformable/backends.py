"""The backends of the deformable convolution, the preferred one first.

Compiled code is imported at the first call of its backend.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from medmamba.kernels.availability import why_not_cpp, why_not_triton
from medmamba.kernels.backends import Backend, choose_backend
from medmamba.kernels.compile_constant import compile_constant
from medmamba.kernels.deformable.geometry import DeformGeometry
from medmamba.kernels.deformable.taps import deform_reference, deform_torch


def _compiled(value: Tensor, offset_mask: Tensor, geometry: DeformGeometry) -> Tensor:
    """By the operator, which runs what is compiled for the tensors' device."""
    from medmamba.kernels.deformable.op import run

    return run(value, offset_mask, geometry)


DEFORMABLE_BACKENDS: dict[str, Backend[Callable[[Tensor, Tensor, DeformGeometry], Tensor]]] = {
    "cpp": Backend(_compiled, why_not_cpp),
    "triton": Backend(_compiled, why_not_triton, reads_half=True),
    "torch": Backend(deform_torch),
    "reference": Backend(deform_reference),
}
"""Name -> backend: value (batch, *image, channels) and offset_mask (batch, *output, columns) to the output."""


@compile_constant
def choose_deformable_backend(name: str, device: str, dtype: torch.dtype) -> str:
    """The backend for tensors of this device type and precision; raises as `choose_backend` does."""
    return choose_backend(DEFORMABLE_BACKENDS, name, device, dtype)
