"""HRVMamba in its planned form: parallel branches of DVSS blocks between a convolution stem and a U-Net decoder.

Source: Zhang et al. 2024, HRVMamba (arXiv:2410.03174), section 3. A DVSS block of width C:

    x = x + GELU(shuffle(depthwise 3 | 5 | 7 | 9 (LN(x))))      four parts of the channels, one kernel each
    x = x + scan(LN(x))                                        in_proj, deformable convolution, SiLU, scan, LN, out_proj
    x = x + MLP(LN(x))

The variant "se_lpu" (nano and tiny) adds a local perception unit, a depthwise 3x3 convolution, before the first and
before the last part and a squeeze-and-excitation gate after the scan. Planned, branch i runs at the resolution of stage
i, because the published stride 4 is too coarse for thin and small structures.
"""

from collections import OrderedDict
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmamba.errors import ConfigError
from medmamba.networks.blocks.convolution import SLOPE, Downsample, InstanceNorm, strided_kernel
from medmamba.networks.blocks.deformable import DeformableConv
from medmamba.networks.blocks.linear import Linear
from medmamba.networks.blocks.maps import CONV, depthwise, on_channels_last
from medmamba.networks.blocks.residual import MLP, DropPath
from medmamba.networks.blocks.scan_core import ScanCore, auto_dt_rank
from medmamba.networks.planned.registry import Count, Rate, WidthRatio, unet_family
from medmamba.networks.planned.stage_mixers import local_kernel, routes_per_stage
from medmamba.networks.planned.unet import BlockFactory, Blocks, Topology, residual_convs, stage_blocks
from medmamba.networks.routes import routes
from medmamba.plans.families import DEFORMABLE_FROM, route_count

LOCAL_KERNELS = {2: (3, 5, 7, 9), 3: (3, 3, 5, 5)}  # 3D is ours: cubes of 7 and 9 cost 343 and 729 taps
SHUFFLE = 4  # parts of the channels, one kernel each


class SqueezeExcite(nn.Module):
    """Channels weighted by a two-layer MLP of their means: (B, *S, C) to itself."""

    def __init__(self, width: int, reduction: int = 8) -> None:
        super().__init__()
        narrow, widen = Linear(width, width // reduction, bias=False), Linear(width // reduction, width, bias=False)
        self.fc = nn.Sequential(narrow, nn.ReLU(), widen, nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        weight = self.fc(x.flatten(1, -2).mean(1))  # (B, C)
        return x * weight.reshape(len(x), *[1] * (x.ndim - 2), -1)


class DSS(nn.Module):
    """Ungated scan mixer behind a deformable convolution, (B, *S, C) to itself.

    ``local`` is the convolution before the scan, (B, *S, E) to itself with the inner width E = expand * C; if None,
    a deformable one with ``dt_rank`` groups. ``squeeze_excite`` gates the channels after the scan.
    ``dt_rank`` is ceil(C / 16) if None.
    """

    def __init__(
        self,
        width: int,
        *,
        spatial_dims: int = 2,
        expand: float = 2.0,
        state_size: int = 1,
        route: str = "cross",
        local: nn.Module | None = None,
        pointwise: bool = False,
        squeeze_excite: bool = False,
        dt_rank: int | None = None,
        use_scan: bool = True,
    ) -> None:
        super().__init__()
        inner, rank = int(expand * width), dt_rank or auto_dt_rank(width)
        self.route = route
        self.in_proj = Linear(width, inner, bias=False)
        self.conv = local or DeformableConv(
            inner,
            rank,
            spatial_dims=spatial_dims,
            offset_kernel=3 if width % 80 == 0 else None,  # as in the base model
            pointwise=pointwise,
            output_bias=False,
        )
        self.scan = ScanCore(inner, route_count(route, spatial_dims), state_size, rank) if use_scan else None
        self.out_norm = nn.LayerNorm(inner)
        self.se = SqueezeExcite(inner) if squeeze_excite else None
        self.out_proj = Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        grid = x.shape[1:-1]
        x = F.silu(self.conv(self.in_proj(x)))  # (B, *S, E)
        if self.scan is not None:
            x = self.scan(x.flatten(1, -2), routes(self.route, grid, x.device)).unflatten(1, grid)
        x = self.out_norm(x)
        return self.out_proj(x if self.se is None else self.se(x))


class DVSSBlock(nn.Module):
    """(B, *S, C) to (B, *S, C), C divisible by 4; see the top of this file.

    ``se_lpu`` adds the local perception units (the gate is the mixer's own); ``kernels`` are the edges per axis of the
    four depthwise convolutions.
    """

    def __init__(
        self,
        width: int,
        mixer: nn.Module,
        *,
        kernels: Sequence[Sequence[int]] = ((3, 3), (5, 5), (7, 7), (9, 9)),
        mlp_ratio: float = 2.0,
        se_lpu: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        unit = (3,) * len(kernels[0])
        self.norm0 = nn.LayerNorm(width)
        self.conv = nn.ModuleList(depthwise(width // SHUFFLE, kernel) for kernel in kernels)
        self.norm, self.op = nn.LayerNorm(width), mixer
        self.norm2, self.mlp = nn.LayerNorm(width), MLP(width, int(mlp_ratio * width))
        self.cpe1, self.cpe2 = (depthwise(width, unit) if se_lpu else None for _ in range(2))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        # The original's local perception unit feeds only the branch; the residual is the input itself.
        seen = x if self.cpe1 is None else x + on_channels_last(self.cpe1, x)
        x = x + self.drop_path(F.gelu(self._local(self.norm0(seen))))
        x = x + self.drop_path(self.op(self.norm(x)))
        if self.cpe2 is not None:
            x = x + on_channels_last(self.cpe2, x)
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _local(self, x: Tensor) -> Tensor:
        """One kernel per quarter of the channels, then the quarters interleaved."""
        quarters = zip(self.conv, x.chunk(SHUFFLE, dim=-1), strict=True)
        parts = [on_channels_last(convolution, part) for convolution, part in quarters]
        return torch.stack(parts, dim=-1).flatten(-2)


class ChannelsLastConvolution(nn.Module):
    """A depthwise convolution on (B, *S, C)."""

    def __init__(self, width: int, kernel: Sequence[int]) -> None:
        super().__init__()
        self.conv = depthwise(width, kernel)

    def forward(self, x: Tensor) -> Tensor:
        return on_channels_last(self.conv, x)


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

        def step(source: int, to: int) -> nn.Module:
            return CoarserToFiner(topology, source, to) if source > to else finer_to_coarser(topology, source, to)

        self.rows = nn.ModuleList(
            nn.ModuleList(nn.Identity() if source == to else step(source, to) for source in stages) for to in stages
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
            self.downsample.append(Downsample(widths[newest - 1], widths[newest], t.strides[newest]))
            self.convs.append(residual_convs(t, newest, conv_blocks))
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
        mixer = DSS(
            width,
            spatial_dims=dims,
            expand=expand,
            state_size=state_size,
            route=names[stage],
            local=None if bends else ChannelsLastConvolution(int(expand * width), t.kernels[stage]),
            squeeze_excite=se_lpu,
            use_scan=use_scan,
        )
        kernels = [local_kernel(t, stage, edge) for edge in LOCAL_KERNELS[dims]]
        drop_path = rate(stage, index)
        return DVSSBlock(width, mixer, kernels=kernels, mlp_ratio=mlp_ratio, se_lpu=se_lpu, drop_path=drop_path)

    return block
