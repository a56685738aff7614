"""The Triton backend of the deformable convolution: launches, and PyTorch operators with gradients.

Triton is imported at the first call; the kernels are in `triton_deform_kernels.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Elements of the tile (positions, channels) of one program, and its warps: 16 elements per thread.
TILE_ELEMENTS = 2048
WIDEST_BLOCK = 64
WARPS = 4
# Entries (taps of positions) that are sorted at once in the gradient of the image: about 30 bytes each while they are.
ENTRIES_AT_ONCE = 1 << 22
MOST_CELLS = 2**31 - 1


def block_of(per_group: int) -> tuple[int, int]:
    """Positions and channels of one program's tile, both powers of two."""
    channels = min(WIDEST_BLOCK, 1 << (per_group - 1).bit_length())
    return TILE_ELEMENTS // channels, channels


def _three(numbers: list[int], missing: int) -> tuple[int, ...]:
    """One number per axis z, y, x; `missing` for z in two dimensions."""
    return (missing,) * (3 - len(numbers)) + tuple(numbers)


def _flags(
    value: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int], remove_center: bool
) -> dict[str, object]:
    """What the kernels are compiled for."""
    shapes = {"KERNEL": _three(kernel, 1), "STRIDE": _three(stride, 1), "PADDING": _three(padding, 0)}
    taps = torch.Size(kernel).numel() - remove_center
    others = {"DILATION": _three(dilation, 1), "TAPS": taps, "DIMS": value.dim() - 2, "REMOVE_CENTER": remove_center}
    return {**shapes, **others, "num_warps": WARPS}


def _blocks(total: int, size: int) -> int:
    return -(-total // size)


def forward(
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
    """(batch, *output, channels) float32 from contiguous float32, bfloat16 or float16 tensors."""
    from medmamba.kernels.triton_deform_kernels import deform_forward

    out = value.new_empty(*offset_mask.shape[:-1], value.shape[-1], dtype=torch.float32)
    batch, channels, columns = value.shape[0], value.shape[-1], offset_mask.shape[-1]
    image, (_, oy, ox) = _three(list(value.shape[1:-1]), 1), _three(list(offset_mask.shape[1:-1]), 1)
    positions = offset_mask.shape[1:-1].numel()
    BP, BC = block_of(channels // groups)
    grid = (_blocks(positions, BP), groups * _blocks(channels // groups, BC), batch)
    deform_forward[grid](
        *(value, offset_mask, out, scale, positions, channels, columns, groups, *image, oy, ox),
        **{"GC": channels // groups, "BP": BP, "BC": BC},
        **_flags(value, kernel, stride, padding, dilation, remove_center),
    )
    return out


def backward(
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
    """Gradients of value and offset_mask in float32."""
    from medmamba.kernels.triton_deform_kernels import deform_image_gradient, deform_offset_gradient, tap_cells

    batch, channels, columns = value.shape[0], value.shape[-1], offset_mask.shape[-1]
    image, (_, oy, ox) = _three(list(value.shape[1:-1]), 1), _three(list(offset_mask.shape[1:-1]), 1)
    positions, voxels = offset_mask.shape[1:-1].numel(), value.shape[1:-1].numel()
    flags = _flags(value, kernel, stride, padding, dilation, remove_center)
    per_group = channels // groups
    BP, BC = block_of(per_group)
    tile = {"GC": per_group, "BP": BP, "BC": BC}

    doffset_mask = torch.zeros_like(offset_mask, dtype=torch.float32)  # padding columns have no gradient
    deform_offset_gradient[(_blocks(positions, BP), groups, batch)](
        *(dout, value, offset_mask, doffset_mask, scale, positions, channels, columns, *image, oy, ox), **tile, **flags
    )

    dvalue = torch.empty_like(value, dtype=torch.float32)
    entries = positions * (torch.Size(kernel).numel() - remove_center)
    cells = torch.Size(n + 1 for n in value.shape[1:-1]).numel()  # between voxels, and half outside
    if cells > MOST_CELLS:
        raise ValueError(f"deformable_conv: an image of {voxels} voxels is too large for its gradient in Triton.")
    at_once = min(batch * groups, max(1, min(ENTRIES_AT_ONCE // entries, MOST_CELLS // cells)))
    for first in range(0, batch * groups, at_once):
        slices = min(at_once, batch * groups - first)
        cell = torch.empty(slices * entries, dtype=torch.int32, device=value.device)
        tap_cells[(_blocks(entries, 256), slices)](
            *(offset_mask, cell, scale, positions, columns, groups, slices, first, *image, oy, ox), BE=256, **flags
        )
        cell, order = cell.sort(stable=True)
        every = torch.arange(slices * cells + 1, dtype=torch.int32, device=value.device)
        begins = torch.searchsorted(cell, every)
        deform_image_gradient[(_blocks(voxels, BP), _blocks(per_group, BC), slices)](
            *(dout, offset_mask, order, begins, dvalue, scale, positions, channels, columns, groups, first),
            *(*image, oy, ox),
            **tile,
            **flags,
        )
    return dvalue, doffset_mask


@torch.library.custom_op("medmamba::deformable_conv_triton", mutates_args=(), device_types="cuda")
def deformable_conv_triton(
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
    """`forward` as an operator."""
    options = (kernel, stride, padding, dilation, groups, scale, remove_center)
    return forward(value.contiguous(), offset_mask.contiguous(), *options)


@deformable_conv_triton.register_fake
def _(value, offset_mask, kernel, stride, padding, dilation, groups, scale, remove_center):
    return value.new_empty(*offset_mask.shape[:-1], value.shape[-1], dtype=torch.float32)


@torch.library.custom_op("medmamba::deformable_conv_triton_backward", mutates_args=(), device_types="cuda")
def deformable_conv_triton_backward(
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
    """Gradients of value and offset_mask, in their dtypes."""
    options = (kernel, stride, padding, dilation, groups, scale, remove_center)
    dvalue, doffset_mask = backward(dout.contiguous(), value.contiguous(), offset_mask.contiguous(), *options)
    return dvalue.to(value.dtype), doffset_mask.to(offset_mask.dtype)


@deformable_conv_triton_backward.register_fake
def _(dout, value, offset_mask, kernel, stride, padding, dilation, groups, scale, remove_center):
    return value.new_empty(value.shape), offset_mask.new_empty(offset_mask.shape)


def _remember(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.options = inputs[2:]


def _backward(ctx, dout):
    dvalue, doffset_mask = deformable_conv_triton_backward(dout, *ctx.saved_tensors, *ctx.options)
    return dvalue, doffset_mask, *([None] * len(ctx.options))


deformable_conv_triton.register_autograd(_backward, setup_context=_remember)


def _no_second_gradient(ctx, *gradients):
    raise RuntimeError(
        "deformable_conv has no second derivative in its compiled form. "
        'Use backend="torch" or backend="reference" where gradients of gradients are needed.'
    )


deformable_conv_triton_backward.register_autograd(_no_second_gradient)
