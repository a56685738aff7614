"""The deformable convolution in C++, on contiguous float32 tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from medmamba.kernels import library as lib
from medmamba.kernels.deformable.geometry import DeformGeometry


def _arguments(value: Tensor, offset_mask: Tensor, geometry: DeformGeometry) -> lib.DeformArguments:
    return lib.DeformArguments(
        *(value.shape[0], geometry.groups, value.shape[-1] // geometry.groups, offset_mask.shape[-1]),
        *geometry.on_three_axes.values(),
        *(len(geometry.image), geometry.remove_center, torch.get_num_threads(), geometry.scale),
        *(value.data_ptr(), offset_mask.data_ptr()),
    )


def _run(function: str, arguments: lib.DeformArguments) -> None:
    status = getattr(lib.cpu_library(), function)(arguments)
    if status == 1:
        raise MemoryError("deformable_conv: out of memory for scratch space.")
    if status:
        raise ValueError(f"deformable_conv: the sizes do not fit each other (status {status}).")


def forward(value: Tensor, offset_mask: Tensor, geometry: DeformGeometry) -> Tensor:
    """(batch, *output, channels)."""
    out = value.new_empty(*offset_mask.shape[:-1], value.shape[-1])
    arguments = _arguments(value, offset_mask, geometry)
    arguments.out = out.data_ptr()
    _run("mm_deform_forward", arguments)
    return out


def backward(dout: Tensor, value: Tensor, offset_mask: Tensor, geometry: DeformGeometry) -> tuple[Tensor, Tensor]:
    """Gradients of value and offset_mask."""
    dvalue, doffset_mask = torch.empty_like(value), torch.empty_like(offset_mask)
    arguments = _arguments(value, offset_mask, geometry)
    arguments.dout, arguments.dvalue = dout.data_ptr(), dvalue.data_ptr()
    arguments.doffset_mask = doffset_mask.data_ptr()
    _run("mm_deform_backward", arguments)
    return dvalue, doffset_mask
