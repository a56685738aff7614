"""What a planned network is made of: the weights of its layers and the work of each, for memory and time alike.

The layers are those of medmamba.networks, without norms and biases; tests/plans/test_memory.py compares the weights
with built networks, tests/plans/test_step_time.py the multiply-accumulates and state updates with those that run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from medmamba.plans.cost.blocks import Block, BlockPlace, cost_of
from medmamba.plans.families import DEFORMABLE_FROM, family
from medmamba.plans.route_sets import route_count
from medmamba.plans.schema import NetworkPlan


@dataclass(frozen=True)
class Layer:
    """One layer on one sample; the work is counted per voxel, in multiply-accumulates."""

    voxels: int
    """Those of its output, or of its input where the map grows."""
    weights: int
    macs: float
    """Between channels: convolutions, matrices, attention."""
    depthwise_macs: float = 0.0
    """Within a channel: depthwise and deformable convolutions."""
    updates: float = 0.0
    """State updates of scans."""


def layers(network: NetworkPlan, patch_size: Sequence[int], in_channels: int, out_channels: int) -> Iterator[Layer]:
    """All layers of a network on a patch."""
    chosen, voxels, widths = family(network.name), stage_voxels(network, patch_size), network.features_per_stage
    full, last, before = math.prod(patch_size), len(voxels) - 1, in_channels
    for stage, (features, size) in enumerate(zip(widths, voxels, strict=True)):
        kernel, stride = math.prod(network.kernel_sizes[stage]), network.strides[stage]
        if chosen.kind == "residual":
            if stage == 0:  # the stem
                yield _convolution(size, kernel * before * features)
                before = features
            yield _convolution(size, kernel * before * features)
            yield from [_convolution(size, kernel * features**2)] * (2 * network.blocks_per_stage[stage] - 1)
            if before != features:
                yield _convolution(size, before * features)
        elif chosen.kind == "plain":
            yield _convolution(size, kernel * before * features)
            yield from [_convolution(size, kernel * features**2)] * (network.blocks_per_stage[stage] - 1)
        elif stage == 0 and network.stem == "conv":
            yield _convolution(size, kernel * before * features)
            yield from [_convolution(size, kernel * features**2)] * (max(network.blocks_per_stage[0], 1) - 1)
        else:
            yield _convolution(size, _reach(stride) * before * features)
            yield from [_convolution(size, kernel * features**2)] * (2 * chosen.conv_blocks if stage > 0 else 0)
            block = block_of(network, stage)
            yield from [Layer(size, block.weights, block.macs, block.depthwise_macs, block.updates)] * block_count(
                network, stage
            )
        if stage < last:
            above, convs = network.strides[stage + 1], decoder_convs(network, stage)
            yield from _decoder(kernel, above, widths[stage + 1], features, size, convs)
            yield _convolution(size, out_channels * features)
        before = features
    if voxels[0] < full:  # a strided stem: a light convolution of the image and a decoder at full resolution
        kernel, light = math.prod(network.kernel_sizes[0]), light_width(network)
        yield _convolution(full, kernel * in_channels * light)
        yield from _decoder(kernel, network.strides[0], widths[0], light, full, chosen.decoder_convs)
        yield _convolution(full, out_channels * light)
    if chosen.parallel:
        yield from (layer for exchange in exchanges(network, voxels) for layer in exchange.layers)


def weight_count(network: NetworkPlan, in_channels: int, out_channels: int) -> int:
    """Number of weights, to within the norms and biases."""
    return sum(layer.weights for layer in layers(network, network.divisor, in_channels, out_channels))


def largest_layer(network: NetworkPlan) -> int:
    """Number of weights of the largest convolution: beside a skip in the decoder, or between the deepest maps."""
    beside_skip = 2
    sizes = []
    last = len(network.strides) - 1
    for stage, features in enumerate(network.features_per_stage):
        kernel = math.prod(network.kernel_sizes[stage])
        sizes.append(kernel * features**2 * (beside_skip if stage < last else 1))
    return max(sizes)


def stage_voxels(network: NetworkPlan, patch_size: Sequence[int]) -> list[int]:
    """Voxels of the maps of each stage."""
    shape, voxels = tuple(patch_size), []
    for stride in network.strides:
        shape = tuple(math.ceil(n / s) for n, s in zip(shape, stride, strict=True))
        voxels.append(math.prod(shape))
    return voxels


def light_width(network: NetworkPlan) -> int:
    """Channels at full resolution of a network whose stem strides. Source: medmamba.networks.planned.unet."""
    return max(8, network.features_per_stage[0] // 2)


def scans(network: NetworkPlan, stage: int) -> bool:
    """Whether the encoder's stage is one for blocks."""
    return family(network.name).kind == "scan" and not (stage == 0 and network.stem == "conv")


def block_count(network: NetworkPlan, stage: int) -> int:
    """How many blocks run in a stage; a parallel branch has them again in every later step."""
    chosen, blocks, last = family(network.name), network.blocks_per_stage[stage], len(network.strides) - 1
    if chosen.bottleneck_only and stage < last:
        return 0
    return blocks * (last - stage + 1) if chosen.parallel and stage > 0 else blocks


def block_of(network: NetworkPlan, stage: int) -> Block:
    """What one block of a stage costs."""
    dims, width, chosen = network.spatial_dims, network.features_per_stage[stage], family(network.name)
    routes = route_count(network.routes, dims) if network.use_scan else 0
    deformable = 0
    if chosen.parallel:
        edge = max(math.prod(s[axis] for s in network.strides[: stage + 1]) for axis in range(dims))
        deformable = 3**dims if edge >= DEFORMABLE_FROM[dims] else 0
    return cost_of(network.name)(
        BlockPlace(
            spatial_dims=dims,
            width=width,
            kernel_voxels=math.prod(network.kernel_sizes[stage]),
            routes=routes,
            states=network.state_size,
            updates=float(routes * chosen.expand * width * network.state_size),
            window=chosen.window,
            deformable=deformable,
        )
    )


@dataclass(frozen=True)
class BranchExchange:
    """All paths to one branch of a parallel encoder after a step."""

    kept: float
    """Numbers kept for the backward pass."""
    layers: list[Layer]


def exchanges(network: NetworkPlan, voxels: Sequence[int]) -> list[BranchExchange]:
    """What the branches of a parallel encoder give to each other: after step n, branches 1 to n.

    Down: one strided depthwise and one pointwise convolution per resolution. Up: one pointwise convolution, then
    interpolation. ``voxels`` are those of each stage.
    """
    widths, last = network.features_per_stage, len(network.strides) - 1
    paths = []
    for newest in range(2, last + 1):
        for to in range(1, newest + 1):
            kept, made = 2.0 * voxels[to] * widths[to], []  # the sum of the branch, its activation
            for source in range(1, newest + 1):
                if source > to:
                    kept += voxels[source] * widths[to]
                    made.append(_convolution(voxels[source], widths[source] * widths[to]))
                for stage in range(source + 1, to + 1):
                    out = widths[to] if stage == to else widths[source]
                    kept += voxels[stage] * (2 * widths[source] + (1 if stage == to else 3) * out)
                    depthwise_macs, mixed = _reach(network.strides[stage]) * widths[source], out * widths[source]
                    made.append(Layer(voxels[stage], depthwise_macs + mixed, mixed, depthwise_macs))
            paths.append(BranchExchange(kept, made))
    return paths


def _convolution(voxels: int, weights: int) -> Layer:
    return Layer(voxels, weights, weights)


def decoder_convs(network: NetworkPlan, stage: int) -> int:
    """Convolutions of the decoder at the resolution of an encoder stage; a plan lists them from the bottleneck up."""
    given = network.decoder_convs
    return family(network.name).decoder_convs if given is None else given[-1 - stage]


def _decoder(
    kernel: int, stride: Sequence[int], deeper: int, features: int, voxels: int, convs: int
) -> Iterator[Layer]:
    """Upsampling, then a convolution of the map beside its skip, and further ones of it alone."""
    grown = math.prod(stride)
    yield Layer(voxels, grown * deeper * features, deeper * features)
    yield _convolution(voxels, 2 * kernel * features**2)
    yield from [_convolution(voxels, kernel * features**2)] * (convs - 1)


def _reach(stride: Sequence[int]) -> int:
    """Voxels that a strided convolution sees. Source: medmamba.networks.blocks.convolution, Downsample."""
    return math.prod(2 * s - 1 if s <= 2 else s for s in stride)
