"""The deformable convolution as a PyTorch operator with gradients: C++ on the CPU, Triton on CUDA and ROCm devices."""

from __future__ import annotations

import torch
from torch import Tensor

from medmamba.kernels import library as lib
from medmamba.kernels.deformable import triton_launch
from medmamba.kernels.deformable.geometry import DeformGeometry
from medmamba.kernels.operators import contiguous, gradients_like, refuse_second_derivative


def _arguments(value: Tensor, offset_mask: Tensor, geometry: DeformGeometry) -> lib.DeformArguments:
    return lib.DeformArguments(
        *(value.shape[0], geometry.groups, value.shape[-1] // geometry.groups, offset_mask.shape[-1]),
        *geometry.on_three_axes.values(),
        *(len(geometry.image), geometry.remove_center, torch.get_num_threads(), geometry.scale),
        *(value.data_ptr(), offset_mask.data_ptr()),
    )


def _forward(value: Tensor, offset_mask: Tensor, geometry: DeformGeometry) -> Tensor:
    if value.device.type != "cpu":
        return triton_launch.forward(value, offset_mask, geometry)
    out = value.new_empty(*offset_mask.shape[:-1], value.shape[-1])
    arguments = _arguments(value, offset_mask, geometry)
    arguments.out = out.data_ptr()
    lib.run("deformable_conv", "mm_deform_forward", arguments)
    return out


def _gradients(dout: Tensor, value: Tensor, offset_mask: Tensor, geometry: DeformGeometry) -> tuple[Tensor, Tensor]:
    if value.device.type != "cpu":
        return triton_launch.backward(dout, value, offset_mask, geometry)
    dvalue, doffset_mask = torch.empty_like(value), torch.empty_like(offset_mask)
    arguments = _arguments(value, offset_mask, geometry)
    arguments.dout, arguments.dvalue = dout.data_ptr(), dvalue.data_ptr()
    arguments.doffset_mask = doffset_mask.data_ptr()
    lib.run("deformable_conv", "mm_deform_backward", arguments)
    return dvalue, doffset_mask


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
    return _forward(value.contiguous(), offset_mask.contiguous(), geometry)


@deformable_conv_op.register_fake
def _(value, offset_mask, sizes, groups, scale, remove_center):
    return value.new_empty((*offset_mask.shape[:-1], value.shape[-1]), dtype=torch.float32)


@torch.library.custom_op("medmamba::deformable_conv_backward", mutates_args=(), device_types=("cpu", "cuda"))
def deformable_conv_backward_op(
    dout: Tensor, value: Tensor, offset_mask: Tensor, sizes: list[int], groups: int, scale: float, remove_center: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of value and offset_mask, in their dtypes."""
    geometry = _geometry(value, sizes, groups, scale, remove_center)
    dout, value, offset_mask = contiguous(dout, value, offset_mask)
    return gradients_like((value, offset_mask), _gradients(dout, value, offset_mask, geometry))


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
