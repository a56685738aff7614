"""The compiled deformable convolution, a PyTorch operator with gradients: C++ on the CPU, Triton on other devices.

Triton is imported at the first launch of a kernel (`triton_kernels.py`).
"""

from typing import Any

import torch
from torch import Tensor

from medmamba.kernels import library as lib
from medmamba.kernels.deformable.taps import DeformGeometry
from medmamba.kernels.operators import contiguous, define_operator

# Elements of the tile (positions, channels) of one program, and its warps: 16 elements per thread.
TILE_ELEMENTS = 2048
WIDEST_BLOCK = 64
WARPS = 4
# Entries (taps of positions) that are sorted at once in the gradient of the image: about 30 bytes each while they are.
ENTRIES_AT_ONCE = 1 << 22
MOST_CELLS = 2**31 - 1


def _cpp(function: str, value: Tensor, offset_mask: Tensor, geometry: DeformGeometry, **others: Tensor) -> None:
    """Run a function of the C++ library; others: the further arrays of ``struct MmDeform``."""
    numbers = (value.shape[0], geometry.groups, value.shape[-1] // geometry.groups, offset_mask.shape[-1])
    flags = (len(geometry.image), geometry.remove_center, torch.get_num_threads(), geometry.scale)
    arrays = {"value": value, "offset_mask": offset_mask} | others
    sizes = (*numbers, *geometry.on_three_axes.values(), *flags)
    pointers = {name: array.data_ptr() for name, array in arrays.items()}
    lib.run("deformable_conv", function, lib.DeformArguments(*sizes, **pointers))


def block_of(per_group: int) -> tuple[int, int]:
    """Positions and channels of one program's tile, both powers of two."""
    channels = min(WIDEST_BLOCK, 1 << (per_group - 1).bit_length())
    return TILE_ELEMENTS // channels, channels


class _Launch:
    """Sizes of one convolution, as the Triton kernels take them."""

    def __init__(self, value: Tensor, offset_mask: Tensor, geometry: DeformGeometry) -> None:
        axes, self.batch, self.groups = geometry.on_three_axes, value.shape[0], geometry.groups
        self.positions, self.per_group = offset_mask.shape[1:-1].numel(), value.shape[-1] // geometry.groups
        self.sizes = (geometry.scale, self.positions, value.shape[-1], offset_mask.shape[-1])
        self.images = (*axes["image"], *axes["output"][1:])
        BP, BC = block_of(self.per_group)
        self.tile = {"GC": self.per_group, "BP": BP, "BC": BC}
        self.position_blocks, self.channel_blocks = -(-self.positions // BP), -(-self.per_group // BC)
        # Compile-time constants of the kernels.
        self.flags: dict[str, Any] = {name.upper(): axes[name] for name in ("kernel", "stride", "padding", "dilation")}
        self.flags |= {"TAPS": len(geometry.taps), "DIMS": len(geometry.image)}
        self.flags |= {"REMOVE_CENTER": geometry.remove_center, "num_warps": WARPS}


def triton_forward(value: Tensor, offset_mask: Tensor, geometry: DeformGeometry) -> Tensor:
    """(batch, *output, channels) float32 from contiguous float32, bfloat16 or float16 tensors."""
    from medmamba.kernels.deformable.triton_kernels import deform_forward

    cut = _Launch(value, offset_mask, geometry)
    out = value.new_empty(*offset_mask.shape[:-1], value.shape[-1], dtype=torch.float32)
    grid = (cut.position_blocks, cut.groups * cut.channel_blocks, cut.batch)
    arguments = (value, offset_mask, out, *cut.sizes, cut.groups, *cut.images)
    deform_forward[grid](*arguments, **cut.tile, **cut.flags)
    return out


def triton_backward(
    dout: Tensor, value: Tensor, offset_mask: Tensor, geometry: DeformGeometry
) -> tuple[Tensor, Tensor]:
    """Gradients of value and offset_mask in float32."""
    from medmamba.kernels.deformable.triton_kernels import deform_image_gradient, deform_offset_gradient, tap_cells

    cut = _Launch(value, offset_mask, geometry)
    doffset_mask = torch.zeros_like(offset_mask, dtype=torch.float32)  # padding columns have no gradient
    arguments = (dout, value, offset_mask, doffset_mask, *cut.sizes, *cut.images)
    deform_offset_gradient[(cut.position_blocks, cut.groups, cut.batch)](*arguments, **cut.tile, **cut.flags)

    dvalue = torch.empty_like(value, dtype=torch.float32)
    voxels, entries = value.shape[1:-1].numel(), cut.positions * len(geometry.taps)
    cells = torch.Size(n + 1 for n in value.shape[1:-1]).numel()  # between voxels, and half outside
    if cells > MOST_CELLS:
        raise ValueError(f"deformable_conv: an image of {voxels} voxels is too large for its gradient in Triton.")
    every_slice = cut.batch * cut.groups
    at_once = min(every_slice, max(1, min(ENTRIES_AT_ONCE // entries, MOST_CELLS // cells)))
    for first in range(0, every_slice, at_once):
        slices = min(at_once, every_slice - first)
        cell = torch.empty(slices * entries, dtype=torch.int32, device=value.device)
        scale, positions, _channels, columns = cut.sizes
        arguments = (offset_mask, cell, scale, positions, columns, cut.groups, slices, first, *cut.images)
        tap_cells[(-(-entries // 256), slices)](*arguments, BE=256, **cut.flags)
        cell, order = cell.sort(stable=True)
        every = torch.arange(slices * cells + 1, dtype=torch.int32, device=value.device)
        begins = torch.searchsorted(cell, every)
        grid = (-(-voxels // cut.tile["BP"]), cut.channel_blocks, slices)
        arguments = (dout, offset_mask, order, begins, dvalue, *cut.sizes, cut.groups, first, *cut.images)
        deform_image_gradient[grid](*arguments, **cut.tile, **cut.flags)
    return dvalue, doffset_mask


def _forward(value: Tensor, offset_mask: Tensor, *options: Any) -> Tensor:
    geometry = DeformGeometry(value.shape[1:-1], *options)
    if value.device.type != "cpu":
        return triton_forward(value, offset_mask, geometry)
    out = value.new_empty(*offset_mask.shape[:-1], value.shape[-1])
    _cpp("mm_deform_forward", value, offset_mask, geometry, out=out)
    return out


def _backward(dout: Tensor, value: Tensor, offset_mask: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    geometry = DeformGeometry(value.shape[1:-1], *options)
    if value.device.type != "cpu":
        return triton_backward(dout, value, offset_mask, geometry)
    dvalue, doffset_mask = torch.empty_like(value), torch.empty_like(offset_mask)
    arrays = {"dout": dout, "dvalue": dvalue, "doffset_mask": doffset_mask}
    _cpp("mm_deform_backward", value, offset_mask, geometry, **arrays)
    return dvalue, doffset_mask


deformable_conv_op, deformable_conv_backward_op = define_operator(
    "deformable_conv",
    "deformable_conv",
    "Tensor value, Tensor offset_mask, int[] kernel, int[] stride, int[] padding, int[] dilation, int groups, "
    "float scale, bool remove_center",
    _forward,
    _backward,
    lambda value, offset_mask, *_: value.new_empty((*offset_mask.shape[:-1], value.shape[-1]), dtype=torch.float32),
    devices=("cpu", "cuda"),
    outputs=1,
)


def run(value: Tensor, offset_mask: Tensor, geometry: DeformGeometry) -> Tensor:
    """(batch, *output, channels) float32."""
    return deformable_conv_op(*contiguous((value, offset_mask)), *geometry[1:])
