"""Deformable convolution with DCNv4's rule, in two and three dimensions: a weighted sum over learnt positions.

Each output position looks at K taps of a regular grid, each moved by a learnt offset, reads the image there by (bi- or
tri-)linear interpolation, and adds the readings with learnt weights (Xiong et al. 2024, arXiv:2401.06197). Offsets and
weights differ between positions and groups of channels, and are shared by the channels of a group.

Per position and group `offset_mask` holds, for K taps: the K offsets, each as (dx, dy) or (dx, dy, dz), then the K
weights. Taps are enumerated with the last axis outermost (x, then y, then z inside). Further columns are padding, never
read. With kernel k, dilation d, stride t, padding p, offset scale s and half = d (k - 1) // 2, tap i of output position
q reads at::

    half - p + q t + s (i d + offset - half)

Outside the image there are zeros. In 3D the same rule holds with 27 taps of four numbers.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from medmamba.kernels.arguments import check_kinds
from medmamba.kernels.availability import why_not_cpp, why_not_triton
from medmamba.kernels.backends import Backend, chooser
from medmamba.kernels.deformable.taps import DeformGeometry, deform_reference, deform_torch


def _compiled(value: Tensor, offset_mask: Tensor, geometry: DeformGeometry) -> Tensor:
    """By the operator, which runs what is compiled for the tensors' device."""
    from medmamba.kernels.deformable.compiled import run

    return run(value, offset_mask, geometry)


DEFORMABLE_BACKENDS: dict[str, Backend[Callable[[Tensor, Tensor, DeformGeometry], Tensor]]] = {
    "cpp": Backend(_compiled, why_not_cpp),
    "triton": Backend(_compiled, why_not_triton, reads_half=True),
    "torch": Backend(deform_torch),
    "reference": Backend(deform_reference),
}
"""Name -> backend: value (batch, *image, channels) and offset_mask (batch, *output, columns) to the output."""
_choose_backend = chooser(DEFORMABLE_BACKENDS)


def deformable_conv(
    value: Tensor,
    offset_mask: Tensor,
    *,
    kernel_size: int | Sequence[int] = 3,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Deformable convolution (DCNv4) of a channels-last image.

    Arguments:
        value: (batch, Y, X, channels) or (batch, Z, Y, X, channels); groups divides channels.
        offset_mask: (batch, *output size, columns), columns at least groups * K * (dimensions + 1).
        kernel_size, stride, padding, dilation: one number, or one per axis in the order of the tensor.
        offset_scale: multiplies the tap grid and the offsets.
        remove_center: leave out the tap at kernel_size // 2.
        backend: as in `routed_scan`.

    Returns (batch, *output size, channels), float32 (float64 for float64 inputs, which only
    the torch and reference backends accept).
    """
    geometry = geometry_of(value, kernel_size, stride, padding, dilation, groups, offset_scale, remove_center)
    check_kinds({"value": value, "offset_mask": offset_mask})
    expected = (value.shape[0], *geometry.output)
    if tuple(offset_mask.shape[:-1]) != expected or offset_mask.shape[-1] < geometry.columns:
        raise ValueError(
            f"offset_mask must be (batch, *output size, at least {geometry.columns}) = "
            f"{(*expected, geometry.columns)}, it is {tuple(offset_mask.shape)}."
        )
    dtype = torch.float64 if torch.float64 in (value.dtype, offset_mask.dtype) else torch.float32
    chosen = DEFORMABLE_BACKENDS[_choose_backend(backend, value.device.type, dtype)]
    if not chosen.reads_half:
        value, offset_mask = value.to(dtype), offset_mask.to(dtype)
    with torch.autocast(value.device.type, enabled=False):
        return chosen.run(value, offset_mask, geometry)


def offset_mask_width(groups: int, taps: int, dimensions: int = 2) -> int:
    """Columns that DCNv4 gives `offset_mask`: what is read, rounded up to a multiple of 8."""
    return -(-groups * taps * (dimensions + 1) // 8) * 8


def _per_axis(name: str, number: int | Sequence[int], dims: int, smallest: int) -> tuple[int, ...]:
    numbers = (number,) * dims if isinstance(number, int) else tuple(number)
    if len(numbers) != dims:
        raise ValueError(f"{name} must be one number or {dims}, it is {numbers}.")
    if min(numbers) < smallest:
        raise ValueError(f"{name} must be at least {smallest}, it is {numbers}.")
    return numbers


def geometry_of(
    value: Tensor,
    kernel_size: int | Sequence[int] = 3,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
) -> DeformGeometry:
    """Sizes of the deformable convolution of `value`, checked; arguments as in `deformable_conv`."""
    if value.dim() not in (4, 5):
        raise ValueError(
            f"value must be (batch, Y, X, channels) or (batch, Z, Y, X, channels), it is {tuple(value.shape)}."
        )
    if 0 in value.shape:
        raise ValueError(f"value is empty: {tuple(value.shape)}.")
    dims = value.dim() - 2
    if groups < 1 or value.shape[-1] % groups:
        raise ValueError(f"groups = {groups} does not divide {value.shape[-1]} channels.")
    geometry = DeformGeometry(
        tuple(value.shape[1:-1]),
        _per_axis("kernel_size", kernel_size, dims, 1),
        _per_axis("stride", stride, dims, 1),
        _per_axis("padding", padding, dims, 0),
        _per_axis("dilation", dilation, dims, 1),
        groups,
        float(offset_scale),
        remove_center,
    )
    if not geometry.taps:
        raise ValueError("remove_center leaves no tap of a kernel of size 1.")
    if min(geometry.output) < 1:
        raise ValueError(f"The image {geometry.image} with padding {geometry.padding} is smaller than the kernel.")
    return geometry
