"""The C++ backend of the deformable convolution as PyTorch operators."""

from __future__ import annotations

import torch
from torch import Tensor

from medmamba.kernels import library as lib


def _three(numbers: list[int], missing: int) -> tuple[int, ...]:
    """One number per axis z, y, x; `missing` for z in two dimensions."""
    return (missing,) * (3 - len(numbers)) + tuple(numbers)


def _arguments(
    value: Tensor,
    offset_mask: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    scale: float,
    remove_center: bool,
) -> lib.DeformArguments:
    return lib.DeformArguments(
        *(value.shape[0], groups, value.shape[-1] // groups, offset_mask.shape[-1]),
        _three(list(value.shape[1:-1]), 1),
        _three(list(offset_mask.shape[1:-1]), 1),
        *(_three(numbers, missing) for numbers, missing in ((kernel, 1), (stride, 1), (padding, 0), (dilation, 1))),
        *(value.dim() - 2, remove_center, torch.get_num_threads(), scale),
        *(value.data_ptr(), offset_mask.data_ptr()),
    )


def _run(function: str, arguments: lib.DeformArguments) -> None:
    status = getattr(lib.cpu_library(), function)(arguments)
    if status == 1:
        raise MemoryError("deformable_conv: out of memory for scratch space.")
    if status:
        raise ValueError(f"deformable_conv: the sizes do not fit each other (status {status}).")


@torch.library.custom_op("medmamba::deformable_conv_cpp", mutates_args=(), device_types="cpu")
def deformable_conv_cpp(
    value: Tensor,
    offset_mask: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    scale: float,
    remove_center: bool,
) -> Tensor:
    """(batch, *output, channels) from contiguous float32 tensors."""
    value, offset_mask = value.contiguous(), offset_mask.contiguous()
    out = value.new_empty(*offset_mask.shape[:-1], value.shape[-1])
    arguments = _arguments(value, offset_mask, kernel, stride, padding, dilation, groups, scale, remove_center)
    arguments.out = out.data_ptr()
    _run("mm_deform_forward", arguments)
    return out


@deformable_conv_cpp.register_fake
def _(value, offset_mask, kernel, stride, padding, dilation, groups, scale, remove_center):
    return value.new_empty(*offset_mask.shape[:-1], value.shape[-1])


@torch.library.custom_op("medmamba::deformable_conv_cpp_backward", mutates_args=(), device_types="cpu")
def deformable_conv_cpp_backward(
    dout: Tensor,
    value: Tensor,
    offset_mask: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    scale: float,
    remove_center: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of value and offset_mask."""
    dout, value, offset_mask = dout.contiguous(), value.contiguous(), offset_mask.contiguous()
    dvalue, doffset_mask = torch.empty_like(value), torch.empty_like(offset_mask)
    arguments = _arguments(value, offset_mask, kernel, stride, padding, dilation, groups, scale, remove_center)
    arguments.dout, arguments.dvalue = dout.data_ptr(), dvalue.data_ptr()
    arguments.doffset_mask = doffset_mask.data_ptr()
    _run("mm_deform_backward", arguments)
    return dvalue, doffset_mask


@deformable_conv_cpp_backward.register_fake
def _(dout, value, offset_mask, kernel, stride, padding, dilation, groups, scale, remove_center):
    return value.new_empty(value.shape), offset_mask.new_empty(offset_mask.shape)


def _remember(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.options = inputs[2:]


def _backward(ctx, dout):
    dvalue, doffset_mask = deformable_conv_cpp_backward(dout, *ctx.saved_tensors, *ctx.options)
    return dvalue, doffset_mask, *([None] * len(ctx.options))


deformable_conv_cpp.register_autograd(_backward, setup_context=_remember)


def _no_second_gradient(ctx, *gradients):
    raise RuntimeError(
        "deformable_conv has no second derivative in its compiled form. "
        'Use backend="torch" or backend="reference" where gradients of gradients are needed.'
    )


deformable_conv_cpp_backward.register_autograd(_no_second_gradient)
