"""HRVMamba in its planned form: parallel branches between a convolution stem and a U-Net decoder.

Source: Zhang et al. 2024, HRVMamba (arXiv:2410.03174), section 3; the published backbone is
``published/hrvmamba.py``.

The published network starts at stride 4 and ends there, too coarse for thin and small structures: here branch i runs at
the resolution of the plan's stage i, from the first downsampled one on, and the decoder goes back to the image's.
Batch norm, useless with two images per batch, is instance norm.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from math import prod

from torch import Tensor, nn
from torch.nn import functional as F

from medmamba.errors import ConfigError
from medmamba.networks.blocks.convolution import SLOPE, Downsample, InstanceNorm, ResidualConv, strided_kernel
from medmamba.networks.blocks.hrvmamba import DSS, LOCAL_KERNELS, SHUFFLE, DVSSBlock
from medmamba.networks.blocks.maps import CONV, channels_first, channels_last, depthwise
from medmamba.networks.planned.bounds import Count, WidthRatio
from medmamba.networks.planned.registry import Rate, unet_family
from medmamba.networks.planned.stage_mixers import local_kernel, routes_per_stage
from medmamba.networks.planned.unet import BlockFactory, Blocks, Topology, stage_blocks
from medmamba.plans.families import DEFORMABLE_FROM

INTERPOLATION = {2: "bilinear", 3: "trilinear"}
DEFORMABLE = ("auto", "always", "never")


def finer_to_coarser(topology: Topology, source: int, to: int) -> nn.Module:
    """Strided depthwise and pointwise convolutions, one pair per resolution; the width changes in the last."""
    width, steps = topology.features_per_stage[source], []
    for stage in range(source + 1, to + 1):
        stride = topology.strides[stage]
        kernel, padding = strided_kernel(stride)
        out = topology.features_per_stage[to] if stage == to else width
        convolution = CONV[len(stride)]
        steps += [
            convolution(width, width, kernel, stride, padding, groups=width, bias=False),
            InstanceNorm(width),
            convolution(width, out, 1, bias=False),
            InstanceNorm(out),
            *([] if stage == to else [nn.LeakyReLU(SLOPE)]),
        ]
    return nn.Sequential(OrderedDict(steps=nn.Sequential(*steps)))


class CoarserToFiner(nn.Module):
    """Pointwise convolution, then interpolation."""

    def __init__(self, topology: Topology, source: int, to: int) -> None:
        super().__init__()
        widths, dims = topology.features_per_stage, topology.spatial_dims
        stages = topology.strides[to + 1 : source + 1]
        self.scale = tuple(float(prod(stride[axis] for stride in stages)) for axis in range(dims))
        self.mode = INTERPOLATION[dims]
        self.conv = CONV[dims](widths[source], widths[to], 1, bias=False)
        self.norm = InstanceNorm(widths[to])

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.norm(self.conv(x)), scale_factor=self.scale, mode=self.mode, align_corners=False)


class BranchFusion(nn.Module):
    """Every branch receives the sum of all, brought to its resolution and width."""

    def __init__(self, topology: Topology, stages: Sequence[int]) -> None:
        super().__init__()
        self.rows = nn.ModuleList(
            nn.ModuleList(
                nn.Identity()
                if source == to
                else (CoarserToFiner if source > to else finer_to_coarser)(topology, source, to)
                for source in stages
            )
            for to in stages
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        out = []
        for row in self.rows:
            assert isinstance(row, nn.ModuleList)
            parts = [step(x) for step, x in zip(row, maps, strict=True)]
            out.append(F.leaky_relu(sum(parts[1:], start=parts[0]), SLOPE))
        return out


class ParallelEncoder(nn.Module):
    """Features of stage 0 to those of all stages; stages 1, 2, ... are branches that live side by side."""

    def __init__(self, topology: Topology, block: BlockFactory, *, conv_blocks: int = 1) -> None:
        super().__init__()
        t, widths = topology, topology.features_per_stage
        self.downsample = nn.ModuleList()
        self.convs = nn.ModuleList()
        self.branches = nn.ModuleList()  # [step][branch]
        self.exchange = nn.ModuleList()
        for newest in range(1, len(widths)):
            width = widths[newest]
            self.downsample.append(Downsample(widths[newest - 1], width, t.strides[newest]))
            self.convs.append(
                nn.Sequential(*(ResidualConv(width, width, t.kernels[newest]) for _ in range(conv_blocks)))
            )
            stages = range(1, newest + 1)
            self.branches.append(nn.ModuleList(Blocks(stage_blocks(t, block, stage)) for stage in stages))
            if newest > 1:
                self.exchange.append(BranchFusion(t, stages))

    def forward(self, x: Tensor, recompute: bool = False) -> list[Tensor]:
        maps: list[Tensor] = []
        for step, (down, convs, branches) in enumerate(zip(self.downsample, self.convs, self.branches, strict=True)):
            maps.append(convs(down(maps[-1] if maps else x)))
            assert isinstance(branches, nn.ModuleList)
            maps = [blocks(y, recompute) for blocks, y in zip(branches, maps, strict=True)]
            if step:
                maps = self.exchange[step - 1](maps)
        return [x, *maps]


class ChannelsLastConvolution(nn.Module):
    """A depthwise convolution on (B, *S, C)."""

    def __init__(self, width: int, kernel: Sequence[int]) -> None:
        super().__init__()
        self.conv = depthwise(width, kernel)

    def forward(self, x: Tensor) -> Tensor:
        return channels_last(self.conv(channels_first(x)))


@unet_family("hrvmamba", encoder=ParallelEncoder, channel_multiple=SHUFFLE)
def hrvmamba(
    topology: Topology,
    rate: Rate,
    *,
    state_size: Count = 1,
    routes: str | Sequence[str] = "raster",
    schedule: str = "constant",
    expand: WidthRatio = 1.0,
    mlp_ratio: WidthRatio = 2.0,
    se_lpu: bool = False,
    deformable: str = "auto",
    use_scan: bool = True,
) -> BlockFactory:
    """HRVMamba's parallel branches of DVSS blocks, for thin and small structures (arXiv:2410.03174).

    Args:
        state_size, routes, schedule, expand, use_scan: as for ``vm_unet``; the published state size is 1.
        mlp_ratio: hidden width of the MLP over the branch's width.
        se_lpu: with the local perception units and the channel gate of the published nano and tiny models.
        deformable: "auto" (everywhere in 2D, from stride 8 on in 3D), "always" or "never".
    """
    t, dims = topology, topology.spatial_dims
    if deformable not in DEFORMABLE:
        raise ConfigError(f"deformable must be one of {', '.join(DEFORMABLE)}, got {deformable!r}.")
    names = routes_per_stage(t, routes, schedule)

    def block(stage: int, index: int, width: int) -> nn.Module:
        stride = max(prod(s[axis] for s in t.strides[: stage + 1]) for axis in range(dims))
        bends = deformable == "always" or (deformable == "auto" and stride >= DEFORMABLE_FROM[dims])
        kernel = t.kernels[stage]
        mixer = DSS(
            width,
            spatial_dims=dims,
            expand=expand,
            state_size=state_size,
            route=names[stage],
            local=None if bends else ChannelsLastConvolution(int(expand * width), kernel),
            squeeze_excite=se_lpu,
            use_scan=use_scan,
        )
        kernels = [local_kernel(t, stage, edge) for edge in LOCAL_KERNELS[dims]]
        return DVSSBlock(
            width,
            mixer,
            spatial_dims=dims,
            mlp_ratio=mlp_ratio,
            se_lpu=se_lpu,
            drop_path=rate(stage, index),
            kernels=kernels,
        )

    return block
