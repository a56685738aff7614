"""Deformable convolution, version 4, as a layer in 2D and 3D.

Source: Xiong et al. 2024, DCNv4 (arXiv:2401.06197). Each token gathers its neighbourhood at learned places, with
learned weights: an adaptive, group-wise weighted sum (``medmamba.kernels.deformable_conv``); the channels mix only in
the linear maps around it. The weights are used as they are: no softmax, no bound.
"""

from math import prod
from typing import Any

from torch import Tensor, nn

from medmamba.errors import ConfigError
from medmamba.kernels import deformable_conv, offset_mask_width
from medmamba.networks.blocks.linear import Linear
from medmamba.networks.blocks.maps import depthwise, on_channels_last
from medmamba.networks.blocks.scan_core import ScanModule


class DeformableConv(ScanModule):
    """(B, *S, C) to (B, *S, C), size kept.

    Args:
        offset_kernel: edge of a depthwise convolution before ``offset_mask``; none if None.
        pointwise: linear maps of the values before and of the sum after; HRVMamba was trained without.
        geometry: stride, padding, dilation, offset_scale and remove_center of the sampling.
    """

    def __init__(
        self,
        channels: int,
        groups: int,
        *,
        spatial_dims: int = 2,
        kernel: int = 3,
        offset_kernel: int | None = None,
        pointwise: bool = False,
        output_bias: bool = True,
        **geometry: Any,
    ) -> None:
        super().__init__()
        if channels % groups:
            nearest = round(channels / groups) * groups or groups
            raise ConfigError(f"{channels} channels do not divide among {groups} deformable groups; use {nearest}.")
        self.groups, self.kernel = groups, (kernel,) * spatial_dims
        self.offset_mask_dw = depthwise(channels, (offset_kernel,) * spatial_dims) if offset_kernel else None
        self.geometry = {"padding": kernel // 2, **geometry}
        taps = prod(self.kernel) - bool(geometry.get("remove_center"))
        self.offset_mask = Linear(channels, offset_mask_width(groups, taps, spatial_dims))
        self.value_proj = Linear(channels, channels) if pointwise else None
        self.output_proj = Linear(channels, channels, bias=output_bias) if pointwise else None
        nn.init.trunc_normal_(self.offset_mask.weight, std=0.02)
        nn.init.zeros_(self.offset_mask.bias)

    def forward(self, x: Tensor) -> Tensor:
        seen = x if self.offset_mask_dw is None else on_channels_last(self.offset_mask_dw, x)
        value = x if self.value_proj is None else self.value_proj(x)
        sizes = {"kernel_size": self.kernel, "groups": self.groups, **self.geometry}
        y = deformable_conv(value, self.offset_mask(seen), backend=self.scan_backend, **sizes)
        return y if self.output_proj is None else self.output_proj(y)
