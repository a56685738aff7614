"""The deformable convolution as a PyTorch operator with gradients: C++ on the CPU, Triton on CUDA and ROCm devices.

Both are imported at the first call.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from medmamba.kernels.deformable.geometry import DeformGeometry
from medmamba.kernels.operators import gradients_like, refuse_second_derivative


def _kernels(value: Tensor) -> ModuleType:
    """The module whose `forward` and `backward` run on the tensor's device."""
    if value.device.type == "cpu":
        from medmamba.kernels.deformable import cpp

        return cpp
    from medmamba.kernels.deformable import triton_launch

    return triton_launch


def _geometry(value: Tensor, sizes: list[int], groups: int, scale: float, remove_center: bool) -> DeformGeometry:
    dims = value.dim() - 2
    kernel, stride, padding, dilation = (tuple(sizes[first : first + dims]) for first in range(0, 4 * dims, dims))
    return DeformGeometry(tuple(value.shape[1:-1]), kernel, stride, padding, dilation, groups, scale, remove_center)


@torch.library.custom_op("medmamba::deformable_conv", mutates_args=(), device_types=("cpu", "cuda"))
def deformable_conv_op(
    value: Tensor, offset_mask: Tensor, sizes: list[int], groups: int, scale: float, remove_center: bool
) -> Tensor:
    """(batch, *output, channels) float32; on the CPU from float32 tensors.

    sizes: kernel, stride, padding and dilation, each for all axes.
    """
    geometry = _geometry(value, sizes, groups, scale, remove_center)
    return _kernels(value).forward(value.contiguous(), offset_mask.contiguous(), geometry)


@deformable_conv_op.register_fake
def _(value, offset_mask, sizes, groups, scale, remove_center):
    return value.new_empty((*offset_mask.shape[:-1], value.shape[-1]), dtype=torch.float32)


@torch.library.custom_op("medmamba::deformable_conv_backward", mutates_args=(), device_types=("cpu", "cuda"))
def deformable_conv_backward_op(
    dout: Tensor, value: Tensor, offset_mask: Tensor, sizes: list[int], groups: int, scale: float, remove_center: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of value and offset_mask, in their dtypes."""
    geometry = _geometry(value, sizes, groups, scale, remove_center)
    tensors = (tensor.contiguous() for tensor in (dout, value, offset_mask))
    return gradients_like((value, offset_mask), _kernels(value).backward(*tensors, geometry))


@deformable_conv_backward_op.register_fake
def _(dout, value, offset_mask, sizes, groups, scale, remove_center):
    return value.new_empty(value.shape), offset_mask.new_empty(offset_mask.shape)


def _remember(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.options = inputs[2:]


def _backward(ctx, dout):
    dvalue, doffset_mask = deformable_conv_backward_op(dout, *ctx.saved_tensors, *ctx.options)
    return dvalue, doffset_mask, *([None] * len(ctx.options))


deformable_conv_op.register_autograd(_backward, setup_context=_remember)
refuse_second_derivative(deformable_conv_backward_op, "deformable_conv")


def run(value: Tensor, offset_mask: Tensor, geometry: DeformGeometry) -> Tensor:
    """(batch, *output, channels) float32."""
    sizes = [*geometry.kernel, *geometry.stride, *geometry.padding, *geometry.dilation]
    options = (sizes, geometry.groups, geometry.scale, geometry.remove_center)
    return deformable_conv_op(value.contiguous(), offset_mask.contiguous(), *options)
