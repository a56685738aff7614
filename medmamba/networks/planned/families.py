"""The planned families: the U-Net frame (``unet.py``) with each family's block.

Each function returns a factory of blocks on channels-last maps; its keyword arguments are the family's options. Route
sets are named as in ``routes.py``, one for all stages or one for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from medmamba.errors import ConfigError
from medmamba.networks.blocks.attention import MLP, WindowAttention
from medmamba.networks.blocks.convolution import ConvNormAct
from medmamba.networks.blocks.mate import MATEBlock, MATEMixer
from medmamba.networks.blocks.mhs import HEADS, MHSMixer, MultiHeadScan
from medmamba.networks.blocks.vss import SS2D, DropPath, VSSBlock, channels_first, channels_last
from medmamba.networks.planned.registry import Rate, block_places, unet_family
from medmamba.networks.planned.unet import BlockFactory, Topology
from medmamba.networks.published.lamamba import LaMambaBlock
from medmamba.networks.published.mambaout import GatedCNNBlock
from medmamba.networks.published.vim import BidirectionalMamba, Directions, RMSNorm
from medmamba.networks.routes import route_count

SCHEDULES = ("constant", "falling", "rising")


def routes_per_stage(topology: Topology, routes: str | Sequence[str], schedule: str = "constant") -> list[str]:
    """The route set of every stage.

    ``schedule`` cuts the sets to a number of routes that depends on depth. "falling" is Motion Mamba's hierarchical
    schedule (arXiv:2403.07487, equation 4): among N scan levels, level i (1 the finest) has 2 (N - i) + 1 routes, one
    at the bottleneck, as far as the set has them; "rising" is its mirror image.
    """
    stages, dims = len(topology.strides), topology.spatial_dims
    names = [routes] * stages if isinstance(routes, str) else list(routes)
    if len(names) != stages:
        raise ConfigError(f"routes has {len(names)} entries for {stages} stages; give one name, or one per stage.")
    if schedule not in SCHEDULES:
        raise ConfigError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}.")
    for name in names:
        route_count(name, dims)  # raises for an unknown set
    if schedule == "constant":
        return names
    first = 1 if topology.stem == "conv" else 0
    levels = range(first, stages)
    for level in levels:
        fine = level - first  # 0 at the finest
        distance = stages - 1 - level if schedule == "falling" else fine
        names[level] = f"{names[level]}:{min(2 * distance + 1, route_count(names[level], dims))}"
    return names


def local_kernel(topology: Topology, stage: int, edge: int) -> tuple[int, ...]:
    """A convolution edge per axis: 1 where the plan's own kernel is 1 (across thick slices)."""
    return tuple(edge if k > 1 else 1 for k in topology.kernels[stage])


def scan_mixers(
    topology: Topology, routes: str | Sequence[str], schedule: str = "constant", **options: Any
) -> Callable[[int, int], SS2D]:
    """(stage, width) to a gated scan along that stage's routes; ``options`` as of :class:`SS2D`."""
    names = routes_per_stage(topology, routes, schedule)

    def mixer(stage: int, width: int) -> SS2D:
        kernel = topology.kernels[stage]
        return SS2D(width, spatial_dims=topology.spatial_dims, kernel=kernel, route=names[stage], **options)

    return mixer


def window_attentions(
    topology: Topology, window: int | None, head_width: int
) -> Callable[[int, int, int], WindowAttention]:
    """(stage, index, width) to attention in windows, 8 in 2D and 4 in 3D if None; every second block shifts them."""
    edge = window or {2: 8, 3: 4}[topology.spatial_dims]
    places = block_places(topology)

    def attention(stage: int, index: int, width: int) -> WindowAttention:
        shifted = places.index((stage, index)) % 2 == 1
        return WindowAttention(
            width, fitting_heads(width, head_width), (edge,) * topology.spatial_dims, shifted=shifted
        )

    return attention


def fitting_heads(width: int, head_width: int) -> int:
    """Number of heads that divides ``width`` and makes them at least ``head_width`` wide (or one)."""
    return max(h for h in range(1, max(width // head_width, 1) + 1) if width % h == 0)


@unet_family("vm_unet")
def vm_unet(
    topology: Topology,
    rate: Rate,
    *,
    state_size: int = 8,
    routes: str | Sequence[str] = "raster",
    schedule: str = "constant",
    expand: float = 1.0,
    use_scan: bool = True,
) -> BlockFactory:
    """VM-UNet's gated scan blocks (arXiv:2402.02491).

    Args:
        state_size: N of the scans.
        routes: a route set, or one per stage.
        schedule: "constant", "falling" (fewer routes with depth) or "rising".
        expand: inner width of the scan over the stage's width.
        use_scan: False leaves every scan out.
    """
    mixer = scan_mixers(topology, routes, schedule, state_size=state_size, expand=expand, use_scan=use_scan)
    return lambda stage, index, width: VSSBlock(width, mixer(stage, width), drop_path=rate(stage, index))


@unet_family("mhs_vm")
def mhs_vm(
    topology: Topology,
    rate: Rate,
    *,
    state_size: int = 8,
    heads: str = "".join(HEADS),
    schedule: str = "constant",
    threshold: float = 0.0,
    gated: bool = True,
    use_scan: bool = True,
) -> BlockFactory:
    """MHS-VM's multi-head scan blocks (arXiv:2406.05992).

    Args:
        state_size: N of the scans.
        heads: letters of the heads: C snake, X diagonal, S spiral, Z raster.
        schedule: of the routes of each head, as for ``vm_unet``.
        threshold: of the fusion of a head's routes; see ``mhs.py`` for the range in which it screens.
        gated: with the gate beside the scan (VSSGate) or without (VSSUnGated).
        use_scan: False leaves scans and fusion out.
    """
    names = routes_per_stage(topology, HEADS["C"], schedule)  # every head has as many

    def block(stage: int, index: int, width: int) -> nn.Module:
        mhs = MultiHeadScan(
            width,
            spatial_dims=topology.spatial_dims,
            heads=heads,
            routes=route_count(names[stage], topology.spatial_dims),
            threshold=threshold,
            state_size=state_size,
            use_scan=use_scan,
        )
        kernel = topology.kernels[stage]
        mixer = MHSMixer(width, mhs, spatial_dims=topology.spatial_dims, kernel=kernel, gated=gated)
        return VSSBlock(width, mixer, drop_path=rate(stage, index))

    return block


class FlatMixer(nn.Module):
    """A mixer of sequences applied to a map (B, *S, C) in row-major order."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor) -> Tensor:
        return self.mixer(x.flatten(1, -2)).unflatten(1, x.shape[1:-1])


class PreNorm(nn.Module):
    """x + DropPath(mixer(norm(x)))."""

    def __init__(self, norm: nn.Module, mixer: nn.Module, drop_path: float) -> None:
        super().__init__()
        self.norm, self.mixer, self.drop_path = norm, mixer, DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.mixer(self.norm(x)))


@unet_family("vim")
def vim(
    topology: Topology,
    rate: Rate,
    *,
    state_size: int = 8,
    expand: float = 1.0,
    directions: Directions = "v2",
    schedule: str = "constant",
    use_scan: bool = True,
) -> BlockFactory:
    """Vim's bidirectional Mamba on the flattened map (arXiv:2401.09417).

    Args:
        state_size: N of the scans.
        expand: inner width of the scan over the stage's width.
        directions: "v2" (own parameters per direction), "v1" (shared) or "none" (forward only).
        schedule: as for ``vm_unet``; a stage with one route scans forward only.
        use_scan: False leaves the scans out.
    """
    names = routes_per_stage(topology, "bidirectional", schedule)

    def block(stage: int, index: int, width: int) -> nn.Module:
        ways = directions if route_count(names[stage], topology.spatial_dims) > 1 else "none"
        mixer = BidirectionalMamba(width, state_size=state_size, expand=expand, directions=ways, use_scan=use_scan)
        return PreNorm(RMSNorm(width), FlatMixer(mixer), rate(stage, index))

    return block


@unet_family("mambaout")
def mambaout(
    topology: Topology, rate: Rate, *, kernel: int | None = None, expansion: float = 2.0, conv_ratio: float = 1.0
) -> BlockFactory:
    """MambaOut's gated convolution (arXiv:2405.07992): a Mamba block without a scan, the honest control.

    Args:
        kernel: edge of the depthwise convolution; 7 in 2D and 5 in 3D if None.
        expansion: hidden width over the stage's width (the published 8/3 is for networks without other convolutions).
        conv_ratio: share of the channels that the convolution sees.
    """
    edge = kernel or {2: 7, 3: 5}[topology.spatial_dims]

    def block(stage: int, index: int, width: int) -> nn.Module:
        return GatedCNNBlock(
            width,
            spatial_dims=topology.spatial_dims,
            expansion=expansion,
            kernel=local_kernel(topology, stage, edge),
            conv_ratio=conv_ratio,
            drop_path=rate(stage, index),
        )

    return block


@unet_family("lamamba", min_feature_edge=4)
def lamamba(
    topology: Topology,
    rate: Rate,
    *,
    state_size: int = 8,
    routes: str | Sequence[str] = "continuous",
    schedule: str = "constant",
    expand: float = 1.0,
    window: int | None = None,
    head_width: int = 16,
    mlp_ratio: float = 2.0,
    use_scan: bool = True,
) -> BlockFactory:
    """LaMamba's blocks: scan, then window attention, then a perceptron (arXiv:2408.02615).

    Args:
        state_size, routes, schedule, expand: of the scans, as for ``vm_unet``.
        window: edge of the attention windows; 8 in 2D and 4 in 3D if None. Every second block shifts them.
        head_width: channels per attention head, at least.
        mlp_ratio: hidden width of the perceptron over the stage's width.
        use_scan: False leaves the scans out and keeps the attention.
    """
    scan = scan_mixers(topology, routes, schedule, state_size=state_size, expand=expand, use_scan=use_scan)
    attention = window_attentions(topology, window, head_width)

    def block(stage: int, index: int, width: int) -> nn.Module:
        near = attention(stage, index, width)
        return LaMambaBlock(width, scan(stage, width), near, mlp_ratio=mlp_ratio, drop_path=rate(stage, index))

    return block


@unet_family("mate", min_feature_edge=4)
def mate(
    topology: Topology,
    rate: Rate,
    *,
    state_size: int = 16,
    expand: float = 1.0,
    head_width: int = 8,
    review: int = 4,
    schedule: str = "constant",
    window: int | None = None,
    mlp_ratio: float = 2.0,
    use_scan: bool = True,
) -> BlockFactory:
    """LinGen's MATE blocks: a rotary-major Mamba-2 scan with review tokens, and shifted windows (arXiv:2412.09856).

    Args:
        state_size: N of the scans.
        expand: inner width of the scan over the stage's width.
        head_width: channels per scan head and per attention head, at least.
        review: edge of the pooled grid of review tokens; 0 for none.
        schedule: as for ``vm_unet``; a stage with one route scans its rotary order forward only.
        window: edge of the attention windows; 8 in 2D and 4 in 3D if None. Every second block shifts them.
        mlp_ratio: hidden width of the perceptron over the stage's width.
        use_scan: False leaves the scans (and the review tokens) out and keeps the attention.
    """
    names = routes_per_stage(topology, "bidirectional", schedule)
    places = block_places(topology)
    attention = window_attentions(topology, window, 2 * head_width)

    def block(stage: int, index: int, width: int) -> nn.Module:
        mixer = MATEMixer(
            width,
            spatial_dims=topology.spatial_dims,
            state_size=state_size,
            expand=expand,
            head_width=head_width,
            kernel=topology.kernels[stage],
            layer=places.index((stage, index)),
            review=review,
            directions=route_count(names[stage], topology.spatial_dims),
            use_scan=use_scan,
        )
        near, mlp = attention(stage, index, width), MLP(width, int(mlp_ratio * width))
        return MATEBlock(width, mixer, near, mlp, drop_path=rate(stage, index))

    return block


@unet_family("u_mamba_bot", frame={"conv_blocks": 2})
def u_mamba_bot(
    topology: Topology, rate: Rate, *, state_size: int = 16, expand: float = 2.0, use_scan: bool = True
) -> BlockFactory:
    """A residual U-Net with one-way Mamba in the bottleneck only, like U-Mamba Bot (arXiv:2401.04722).

    Args:
        state_size, expand: of the scans.
        use_scan: False leaves the scans out.
    """
    inside = _one_way(state_size, expand, rate, use_scan)
    bottleneck = len(topology.strides) - 1
    return lambda stage, index, width: inside(stage, index, width) if stage == bottleneck else None


@unet_family("u_mamba_enc", frame={"conv_blocks": 2})
def u_mamba_enc(
    topology: Topology, rate: Rate, *, state_size: int = 16, expand: float = 2.0, use_scan: bool = True
) -> BlockFactory:
    """A residual U-Net with one-way Mamba in every encoder stage, like U-Mamba Enc (arXiv:2401.04722).

    Args:
        state_size, expand: of the scans.
        use_scan: False leaves the scans out.
    """
    return _one_way(state_size, expand, rate, use_scan)


def _one_way(state_size: int, expand: float, rate: Rate, use_scan: bool) -> BlockFactory:
    def block(stage: int, index: int, width: int) -> nn.Module:
        mixer = BidirectionalMamba(width, state_size=state_size, expand=expand, directions="none", use_scan=use_scan)
        return PreNorm(nn.LayerNorm(width), FlatMixer(mixer), rate(stage, index))

    return block


class GatedSpatialConvolution(nn.Module):
    """x + conv1( conv3(conv3(x)) * conv1(x) ), every convolution with norm and activation; channels-last."""

    def __init__(self, width: int, kernel: Sequence[int]) -> None:
        super().__init__()
        point = (1,) * len(kernel)
        self.local = nn.Sequential(ConvNormAct(width, width, kernel), ConvNormAct(width, width, kernel))
        self.gate = ConvNormAct(width, width, point)
        self.mix = ConvNormAct(width, width, point)

    def forward(self, x: Tensor) -> Tensor:
        y = channels_first(x)
        return x + channels_last(self.mix(self.local(y) * self.gate(y)))


@unet_family("segmamba", frame={"conv_blocks": 0})
def segmamba(
    topology: Topology,
    rate: Rate,
    *,
    state_size: int = 16,
    routes: str | Sequence[str] = "tri",
    schedule: str = "constant",
    expand: float = 1.0,
    mlp_ratio: float = 2.0,
    use_scan: bool = True,
) -> BlockFactory:
    """Gated spatial convolution, a tri-orientated scan and a perceptron, like SegMamba (arXiv:2401.13560).

    Args:
        state_size, routes, schedule, expand: of the scans, as for ``vm_unet``.
        mlp_ratio: hidden width of the perceptron over the stage's width.
        use_scan: False leaves the scans out.
    """
    mixer = scan_mixers(topology, routes, schedule, state_size=state_size, expand=expand, use_scan=use_scan)

    def block(stage: int, index: int, width: int) -> nn.Module:
        return nn.Sequential(
            GatedSpatialConvolution(width, topology.kernels[stage]),
            VSSBlock(width, mixer(stage, width), drop_path=rate(stage, index)),
            PreNorm(nn.LayerNorm(width), MLP(width, int(mlp_ratio * width)), rate(stage, index)),
        )

    return block
