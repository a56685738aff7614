"""The layers of a planned network: their weights, operations, and the maps kept for the backward pass.

One walk serves memory and time. The layers are those of medmamba.networks, without norms and biases;
tests/plans/test_memory.py compares weights and memory with built networks, tests/plans/test_step_time.py the
multiply-accumulates and state updates with those that run.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from medmamba.plans.cost.blocks import BlockPlace, LayerCost, cost_of
from medmamba.plans.families import DEFORMABLE_FROM, family, route_count
from medmamba.plans.schema import NetworkPlan

FRAME_CONV = 3
"""Maps of a convolution of the planned frame: the norm's centred input, its output, the activated output."""

IN_PLACE_CONV = 2
"""Maps of a convolution of plain_unet and residual_unet, whose activation works in place."""

LABEL_MAPS = 3
"""Maps of float32 per class that a head and its Dice and cross-entropy loss keep."""

TARGET_MAPS = 2
"""Numbers per voxel of the batch beside the image: the label map in 64-bit integers."""

Part = Literal["encoder", "block", "decoder"]
"""Position of a layer; "block": in a block of the family, in the encoder."""


@dataclass(frozen=True)
class Layer:
    """One layer on one sample, or a map without weights that is kept beside those of the layers."""

    voxels: int
    """Those of its output, or of its input where the map grows."""
    cost: LayerCost
    part: Part = "encoder"


def layers(network: NetworkPlan, patch_size: Sequence[int], in_channels: int, out_channels: int) -> Iterator[Layer]:
    """All layers of a network on a patch."""
    chosen, voxels, widths = family(network.name), stage_voxels(network, patch_size), network.features_per_stage
    full, last, before = math.prod(patch_size), len(voxels) - 1, in_channels
    maps = FRAME_CONV if chosen.kind == "scan" else IN_PLACE_CONV
    yield Layer(full, LayerCost(in_channels + TARGET_MAPS))
    for stage, (features, size) in enumerate(zip(widths, voxels, strict=True)):
        kernel, stride, convs = math.prod(network.kernel_sizes[stage]), network.strides[stage], 1
        shortcut = 0
        if chosen.kind == "residual":
            if stage == 0:  # the stem
                yield _convolution(size, kernel * before * features, maps * features)
                before = features
            convs, shortcut = 2 * network.blocks_per_stage[stage], before if before != features else 0
        elif chosen.kind == "plain" or (stage == 0 and network.stem == "conv"):
            convs = max(network.blocks_per_stage[stage], 1)
        else:
            blocks, convs = _block_count(network, stage), 2 * chosen.conv_blocks if stage > 0 else 0
            kept = 3 if blocks else 2  # the norm's centred input, its output, and beside blocks their sum
            yield _convolution(size, _reach(stride) * before * features, kept * features)
            yield from [Layer(size, block_cost(network, stage), "block")] * blocks
            before = features
        for _ in range(convs):
            yield _convolution(size, kernel * before * features, maps * features)
            before = features
        if shortcut:
            pooled = shortcut if max(stride) > 1 else 0
            yield _convolution(size, shortcut * features, pooled + features)
        if stage < last:
            given = network.decoder_convs  # from the bottleneck up
            convs = chosen.decoder_convs if given is None else given[-1 - stage]
            yield from _decoder(size, kernel, network.strides[stage + 1], widths[stage + 1], features, convs, maps)
            supervised = network.deep_supervision or (stage == 0 and size == full)
            yield _convolution(size, out_channels * features, LABEL_MAPS * out_channels * supervised, "decoder")
        before = features
    if voxels[0] < full:  # a strided stem: a light convolution of the image and a decoder at full resolution
        kernel, light = math.prod(network.kernel_sizes[0]), light_width(network)
        yield _convolution(full, kernel * in_channels * light, maps * light)
        yield from _decoder(full, kernel, network.strides[0], widths[0], light, chosen.decoder_convs, maps)
        yield _convolution(full, out_channels * light, LABEL_MAPS * out_channels, "decoder")
    if chosen.parallel:
        yield from _exchanges(network, voxels)


def largest_layer(network: NetworkPlan) -> int:
    """Number of weights of the largest convolution: beside a skip in the decoder, or between the deepest maps."""
    kernels = [math.prod(kernel) for kernel in network.kernel_sizes]
    *beside_skip, deepest = (k * features**2 for k, features in zip(kernels, network.features_per_stage, strict=True))
    return max(deepest, *(2 * weights for weights in beside_skip), 0)


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


def _block_count(network: NetworkPlan, stage: int) -> int:
    """How many blocks run in a stage; a parallel branch has them again in every later step."""
    chosen, blocks, last = family(network.name), network.blocks_per_stage[stage], len(network.strides) - 1
    if chosen.bottleneck_only and stage < last:
        return 0
    return blocks * (last - stage + 1) if chosen.parallel and stage > 0 else blocks


def block_cost(network: NetworkPlan, stage: int) -> LayerCost:
    """What one block of a stage costs."""
    dims, width, chosen = network.spatial_dims, network.features_per_stage[stage], family(network.name)
    routes = route_count(network.routes, dims) if network.use_scan else 0
    deformable = 0
    if chosen.parallel:
        edge = max(math.prod(s[axis] for s in network.strides[: stage + 1]) for axis in range(dims))
        deformable = 3**dims if edge >= DEFORMABLE_FROM[dims] else 0
    return cost_of(chosen.name)(
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


def _exchanges(network: NetworkPlan, voxels: Sequence[int]) -> Iterator[Layer]:
    """What the branches of a parallel encoder give to each other: after step n, branches 1 to n.

    Down: one strided depthwise and one pointwise convolution per resolution. Up: one pointwise convolution, then
    interpolation. ``voxels`` are those of each stage.
    """
    widths = network.features_per_stage
    for newest in range(2, len(widths)):
        for to in range(1, newest + 1):
            yield Layer(voxels[to], LayerCost(2 * widths[to]))  # the sum of the branch, its activation
            for source in range(1, newest + 1):
                if source > to:
                    yield _convolution(voxels[source], widths[source] * widths[to], widths[to])
                for stage in range(source + 1, to + 1):
                    out = widths[to] if stage == to else widths[source]
                    kept = 2 * widths[source] + (1 if stage == to else 3) * out
                    depthwise_macs, mixed = _reach(network.strides[stage]) * widths[source], out * widths[source]
                    yield Layer(voxels[stage], LayerCost(kept, depthwise_macs + mixed, mixed, depthwise_macs))


def _convolution(voxels: int, weights: int, kept: int, part: Part = "encoder") -> Layer:
    return Layer(voxels, LayerCost(kept, weights, weights), part)


def _decoder(
    voxels: int, kernel: int, stride: Sequence[int], deeper: int, features: int, convs: int, maps: int
) -> Iterator[Layer]:
    """Upsampling, then a convolution of the map beside its skip, and further ones of it alone."""
    upsampling = LayerCost(2 * features, math.prod(stride) * deeper * features, deeper * features)
    yield Layer(voxels, upsampling, "decoder")
    yield _convolution(voxels, 2 * kernel * features**2, maps * features, "decoder")
    yield from [_convolution(voxels, kernel * features**2, maps * features, "decoder")] * (convs - 1)


def _reach(stride: Sequence[int]) -> int:
    """Voxels that a strided convolution sees. Source: medmamba.networks.blocks.convolution, Downsample."""
    return math.prod(2 * s - 1 if s <= 2 else s for s in stride)
