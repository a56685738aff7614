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

from medmamba.plans.blocks import MEASURED, gated_scan_block
from medmamba.plans.families import Family, family, route_count
from medmamba.plans.schema import NetworkPlan

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes per activation outside the scan; the scan and all weights stay in float32 at every precision."""

OPTIMISER_SLOTS = {"sgd": 1, "adamw": 2}
"""Numbers that the optimiser keeps per weight."""

FRAME_CONV = 3
"""Maps of a convolution of the planned frame: the norm's centred input, its output, the activated output."""

BASELINE_CONV = 2
"""Maps of a convolution of the baselines, whose activation works in place."""

LABEL_MAPS = 3
"""Maps of float32 per class that a head and its Dice and cross-entropy loss keep."""

LOSS_WORKSPACE = 2
"""Further maps per class while the loss is computed or its gradient taken."""

DEFORMABLE_FROM = 8
"""Stride from which HRVMamba's convolutions are deformable in 3D. Source: medmamba.networks.high_resolution."""

DEFORMABLE_NUMBERS = 27 * 4
"""Offsets and weights of the 27 taps of a 3D deformable convolution, per group of 16 channels."""

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
    if chosen.parallel:
        encoder += width * sum(exchange.kept for exchange in exchanges(network, tokens))
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


def block_cost(network: NetworkPlan, stage: int) -> tuple[float, float, int]:
    """One block of a stage: (numbers kept per token at the working precision, those always in float32, weights)."""
    dims, width = network.spatial_dims, network.features_per_stage[stage]
    kernel = math.prod(network.kernel_sizes[stage])
    if network.name in MEASURED:
        cost = MEASURED[network.name][dims, network.use_scan]
        kept, weights = cost.kept_at(width), cost.weights_at(width)
        reduction = max(math.prod(s[axis] for s in network.strides[: stage + 1]) for axis in range(dims))
        if family(network.name).parallel and dims == 3 and reduction >= DEFORMABLE_FROM:
            offsets = DEFORMABLE_NUMBERS * math.ceil(width / 16)
            kept, weights = kept + 2 * offsets, weights + offsets * width
        return kept, 0.0, weights
    routes = route_count(network.routes, dims)
    return gated_scan_block(width, kernel, routes, network.state_size, network.use_scan)


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
            total += 2 * chosen.conv_blocks * kernel * features**2 if stage > 0 else 0
            total += _block_count(network, chosen, stage) * block_cost(network, stage)[2]
        if stage < last:
            deeper = network.features_per_stage[stage + 1]
            total += math.prod(network.strides[stage + 1]) * deeper * features
            total += (3 if chosen.kind != "scan" else 2) * kernel * features**2
        before = features
    if chosen.parallel:
        total += sum(exchange.weights for exchange in exchanges(network))
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


@dataclass(frozen=True)
class Exchange:
    """One path between two branches of a parallel encoder."""

    kept: float
    weights: int


def exchanges(network: NetworkPlan, tokens: Sequence[int] | None = None) -> list[Exchange]:
    """All paths between the branches of a parallel encoder: after step n, branches 1 to n give to each other.

    Down: one strided depthwise and one pointwise convolution per resolution. Up: one pointwise convolution, then
    interpolation. ``tokens`` is the number of voxels per stage.
    """
    widths, last = network.features_per_stage, len(network.strides) - 1
    size = tokens or [0] * len(widths)
    paths = []
    for newest in range(2, last + 1):
        for to in range(1, newest + 1):
            kept, weights = 2.0 * size[to] * widths[to], 0  # the sum of the branch, its activation
            for source in range(1, newest + 1):
                if source > to:
                    kept += size[source] * widths[to]
                    weights += widths[source] * widths[to]
                for stage in range(source + 1, to + 1):
                    out = widths[to] if stage == to else widths[source]
                    kept += size[stage] * (2 * widths[source] + (1 if stage == to else 3) * out)
                    taps = math.prod(2 * s - 1 if s <= 2 else s for s in network.strides[stage])
                    weights += (taps + out) * widths[source]
            paths.append(Exchange(kept, weights))
    return paths


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
    convs = 2 * FRAME_CONV * chosen.conv_blocks * features if stage > 0 else 0
    half, single, _ = block_cost(network, stage)
    count = _block_count(network, chosen, stage)
    return downsampled + convs + count * half + (features if count else 0), count * single


def _block_count(network: NetworkPlan, chosen: Family, stage: int) -> int:
    """How many blocks run in a stage; a parallel branch has them again in every later step."""
    blocks, last = network.blocks_per_stage[stage], len(network.strides) - 1
    if chosen.bottleneck_only and stage < last:
        return 0
    return blocks * (last - stage + 1) if chosen.parallel and stage > 0 else blocks


def _decoder_stage(chosen: Family, features: int) -> float:
    """The upsampled map beside its skip, then one convolution (two in the baselines)."""
    return (2 + (FRAME_CONV if chosen.kind == "scan" else 2 * BASELINE_CONV)) * features


def _scan_gradients(network: NetworkPlan, chosen: Family, stage: int) -> float:
    """Gradients per token while the backward pass is in a block: at most what the block kept."""
    if _block_count(network, chosen, stage) == 0:
        return 0.0
    half, single, _ = block_cost(network, stage)
    return (half + single) / 2
