"""Memory of one training step: weights, optimiser, and the activations that the backward pass needs.

Activations are counted as the networks keep them, in numbers per voxel of their stage. A scan block keeps far more than
a convolution: the step size of each route and the states at the borders of the tiles that its backward pass recomputes.
The counts are those of medmamba.networks and medmamba.kernels; tests/plans/test_memory.py measures them.

The peak is reached where the backward pass begins (everything kept, no weight gradient yet) or, in a network with many
weights on a small patch, where it reaches the encoder (all decoder maps gone, most weight gradients there), or in the
optimiser's step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from medmamba.plans.families import Family, family, route_count
from medmamba.plans.schema import NetworkPlan

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes per activation outside the scan; the scan and all weights stay in float32 at every precision."""

OPTIMISER_SLOTS = {"sgd": 1, "adamw": 2}
"""Numbers that the optimiser keeps per weight."""

TILE = 64
"""Tokens between two states that the scan keeps for its backward pass. Source: kernels/csrc/abi.h, MM_TILE."""

CHANNEL_PAD = 16
"""The kept states are padded to a multiple of this many channels. Source: kernels/csrc/abi.h."""

FRAME_CONV = 3
"""Maps of a convolution of the planned frame: the norm's centred input, its output, the activated output."""

BASELINE_CONV = 2
"""Maps of a convolution of the baselines, whose activation works in place."""

LABEL_MAPS = 3
"""Maps of float32 per class that a head and its Dice and cross-entropy loss keep."""

LOSS_WORKSPACE = 2
"""Further maps per class while the loss is computed or its gradient taken."""

IMAGE_MAPS = 1 + 2
"""Numbers per voxel of the batch: the image (per channel), and the label map in 64-bit integers."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one training step."""

    weights: int
    """Weights and the optimiser's numbers."""
    gradients: int
    """Gradients of the weights, complete at the end of the backward pass."""
    activations: int
    """Everything kept from the forward pass to the backward pass, for the whole batch."""
    encoder_activations: int
    """The part of it that is still there when the backward pass reaches the encoder."""
    workspace: int
    """Temporary maps where the backward pass begins."""
    encoder_workspace: int
    """Temporary maps while the backward pass is in the encoder."""
    largest_weight: int
    """The weights of the largest layer, which are copied while its gradient is taken and twice in its update."""

    @property
    def total(self) -> int:
        """The peak: the largest of the three moments."""
        begin = self.activations + self.workspace
        encoder = self.gradients + self.encoder_activations + self.encoder_workspace + self.largest_weight
        update = self.gradients + 2 * self.largest_weight
        return self.weights + max(begin, encoder, update)


def training_memory(
    network: NetworkPlan,
    patch_size: Sequence[int],
    *,
    in_channels: int,
    out_channels: int,
    batch_size: int,
    precision: str = "float32",
    optimiser: str = "adamw",
) -> Memory:
    """Bytes that a training step of ``network`` on ``batch_size`` patches needs."""
    width = BYTES[precision]
    chosen = family(network.name)
    tokens = _tokens(network, patch_size)
    full = math.prod(patch_size)
    last = len(tokens) - 1
    encoder = decoder = heads = 0.0
    encoder_workspace = 0.0
    for stage, count in enumerate(tokens):
        half, single = _encoder_stage(network, chosen, stage)
        encoder += count * (half * width + single * 4)
        if _scans(network, chosen, stage):
            encoder_workspace = max(encoder_workspace, 4.0 * count * _scan_gradients(network, chosen, stage))
        if stage < last:
            decoder += count * width * _decoder_stage(chosen, network.features_per_stage[stage])
            if (stage == 0 and tokens[0] == full) or network.deep_supervision:
                heads += count * 4 * LABEL_MAPS * out_channels
    top = network.features_per_stage[0]
    if tokens[0] < full:  # a strided stem: a light convolution of the image and a decoder at full resolution
        top = light_width(network)
        encoder += full * width * FRAME_CONV * top
        decoder += full * width * _decoder_stage(chosen, top)
        heads += full * 4 * LABEL_MAPS * out_channels
    image = full * 4 * (in_channels + IMAGE_MAPS - 1)
    grad_maps = chosen.backward_maps * top * width
    count = weight_count(network, in_channels, out_channels)
    return Memory(
        weights=4 * count * (1 + OPTIMISER_SLOTS[optimiser]),
        gradients=4 * count,
        activations=round(batch_size * (encoder + decoder + heads + image)),
        encoder_activations=round(batch_size * (encoder + image)),
        workspace=round(batch_size * full * max(grad_maps, 4 * LOSS_WORKSPACE * out_channels)),
        encoder_workspace=round(batch_size * encoder_workspace),
        largest_weight=4 * largest_layer(network),
    )


def light_width(network: NetworkPlan) -> int:
    """Channels at full resolution of a network whose stem strides. Source: medmamba.networks.unet."""
    return max(8, network.features_per_stage[0] // 2)


def scan_block_kept(network: NetworkPlan, inner: int, features: int) -> tuple[int, float]:
    """Numbers that one gated scan block keeps per token: (at the working precision, always in float32).

    Around the scan: the norm's input and output, both halves of the projection, the convolution, the two gates, the
    output norm and the output projection. In the scan: its input, the step size of every route, B and C of every
    route, the low-rank steps, and the states at the tile borders.
    """
    around = 2 * features + 7 * inner + 4
    if not network.use_scan:
        return around, 0.0
    routes = route_count(network.routes, network.spatial_dims)
    states, rank = network.state_size, math.ceil(features / 16)
    padded = math.ceil(inner / CHANNEL_PAD) * CHANNEL_PAD
    scan = inner + routes * (inner + 2 * states + rank) + routes * padded * states / TILE
    return around, scan


def weight_count(network: NetworkPlan, in_channels: int, out_channels: int) -> int:
    """Number of weights, to within the norms and biases."""
    chosen = family(network.name)
    total, before = 0, in_channels
    last = len(network.strides) - 1
    for stage, features in enumerate(network.features_per_stage):
        kernel, stride = math.prod(network.kernel_sizes[stage]), network.strides[stage]
        blocks = network.blocks_per_stage[stage]
        if chosen.kind != "scan":
            total += kernel * (before + features) * features
            shortcut = chosen.kind == "residual" and (before != features or max(stride) > 1)
            total += before * features if shortcut else 0
        elif stage == 0 and network.stem == "conv":
            total += kernel * (before + (max(blocks, 1) - 1) * features) * features
        else:
            total += math.prod(2 * s - 1 if s <= 2 else s for s in stride) * before * features
            total += 2 * kernel * features**2 if stage > 0 else 0
            total += blocks * _block_weights(network, chosen, features, kernel)
        if stage < last:
            deeper = network.features_per_stage[stage + 1]
            total += math.prod(network.strides[stage + 1]) * deeper * features
            total += (3 if chosen.kind != "scan" else 2) * kernel * features**2
        before = features
    return total + out_channels * sum(network.features_per_stage[:-1])


def largest_layer(network: NetworkPlan) -> int:
    """Number of weights of the largest convolution: beside a skip in the decoder, or between the deepest maps."""
    beside_skip = 2
    sizes = []
    last = len(network.strides) - 1
    for stage, features in enumerate(network.features_per_stage):
        kernel = math.prod(network.kernel_sizes[stage])
        sizes.append(kernel * features**2 * (beside_skip if stage < last else 1))
    return max(sizes)


def _tokens(network: NetworkPlan, patch_size: Sequence[int]) -> list[int]:
    shape, tokens = tuple(patch_size), []
    for stride in network.strides:
        shape = tuple(math.ceil(n / s) for n, s in zip(shape, stride, strict=True))
        tokens.append(math.prod(shape))
    return tokens


def _scans(network: NetworkPlan, chosen: Family, stage: int) -> bool:
    return chosen.kind == "scan" and not (stage == 0 and network.stem == "conv")


def _encoder_stage(network: NetworkPlan, chosen: Family, stage: int) -> tuple[float, float]:
    """Numbers kept per voxel of an encoder stage: (at the working precision, always in float32)."""
    features, blocks = network.features_per_stage[stage], network.blocks_per_stage[stage]
    if chosen.kind != "scan":
        shortcut = 1 if chosen.kind == "residual" else 0
        return (2 * BASELINE_CONV + shortcut) * features, 0.0
    if not _scans(network, chosen, stage):
        return FRAME_CONV * max(blocks, 1) * features, 0.0
    downsampled = 2 * features  # the norm's centred input, its output
    convs = 2 * FRAME_CONV * features if stage > 0 else 0.0
    half, single = scan_block_kept(network, chosen.expand * features, features)
    return downsampled + convs + blocks * half + features, blocks * single


def _decoder_stage(chosen: Family, features: int) -> float:
    """The upsampled map beside its skip, then one convolution (two in the baselines)."""
    return (2 + (FRAME_CONV if chosen.kind == "scan" else 2 * BASELINE_CONV)) * features


def _scan_gradients(network: NetworkPlan, chosen: Family, stage: int) -> float:
    """Gradients per token while the backward pass is in a scan: steps, B, C, input, output."""
    inner = chosen.expand * network.features_per_stage[stage]
    if not network.use_scan:
        return 3.0 * inner
    routes = route_count(network.routes, network.spatial_dims)
    return routes * (inner + 4 * network.state_size) + 3.0 * inner


def _block_weights(network: NetworkPlan, chosen: Family, features: int, kernel: int) -> int:
    inner = chosen.expand * features
    around = 3 * features * inner + (kernel + 3) * inner + 2 * features
    if not network.use_scan:
        return around
    routes = route_count(network.routes, network.spatial_dims)
    states, rank = network.state_size, math.ceil(features / 16)
    return around + routes * inner * (2 * rank + 3 * states + 2)
