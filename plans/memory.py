"""Memory of one training step: weights, optimiser and the activations that the backward pass needs.

An activation is counted where the networks keep it, in numbers per voxel of its stage; a scan block keeps more than a
convolution: the step size of each route, and its states at the borders of the chunks that the backward pass recomputes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from medmamba.plans.families import family, route_count
from medmamba.plans.schema import NetworkPlan

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes per activation outside the scan; the scan itself works in float32 at every precision."""

CHUNK = 32
"""Tokens between two states that the scan keeps for its backward pass. Source: medmamba.kernels."""

CONV_KEPT = 3
"""Maps that convolution, instance norm and leaky ReLU keep: the norm's input, its output, the output."""

OPTIMISER_SLOTS = {"sgd": 1, "adamw": 2}
"""Numbers that the optimiser keeps per weight."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one training step."""

    weights: int
    """Weights, their gradients and the optimiser's numbers."""
    activations: int
    """Everything kept from the forward pass to the backward pass, for the whole batch."""
    workspace: int
    """Gradients of the largest stage while the backward pass is there."""

    @property
    def total(self) -> int:
        return self.weights + self.activations + self.workspace


def training_memory(
    network: NetworkPlan,
    patch_size: Sequence[int],
    *,
    in_channels: int,
    out_channels: int,
    batch_size: int,
    precision: str = "float32",
    optimiser: str = "sgd",
) -> Memory:
    """Bytes that a training step of ``network`` on ``batch_size`` patches needs."""
    width = BYTES[precision]
    shape, stages = tuple(patch_size), []
    for stride in network.strides:
        shape = tuple(math.ceil(n / s) for n, s in zip(shape, stride, strict=True))
        stages.append(math.prod(shape))
    full = math.prod(patch_size)
    per_stage = []
    last = len(stages) - 1
    for stage, tokens in enumerate(stages):
        features, blocks = network.features_per_stage[stage], network.blocks_per_stage[stage]
        kept, kept_scan = _encoder(network, stage, features, blocks)
        if stage < last:
            kept += _decoder(features)
        if stage == 0 or (network.deep_supervision and stage < last):
            kept += HEAD_KEPT * out_channels
        per_stage.append(tokens * (kept * width + kept_scan * 4))
    if stages[0] < full:  # a strided stem: a light convolution and a decoder at full resolution
        top = max(8, network.features_per_stage[0] // 2)
        per_stage.append(full * width * (CONV_KEPT * top + _decoder(top) + HEAD_KEPT * out_channels))
    activations = batch_size * (sum(per_stage) + full * 4 * in_channels)
    copies = 2 + OPTIMISER_SLOTS[optimiser]
    return Memory(
        weights=4 * copies * weight_count(network, in_channels, out_channels),
        activations=activations,
        workspace=batch_size * max(per_stage) // 2,
    )


HEAD_KEPT = 4
"""Maps per class of a head: logits, their probabilities, the truth as one map per class, the gradient."""


def _decoder(features: int) -> int:
    """Upsampled map, its concatenation with the skip, one convolution."""
    return (1 + 2 + CONV_KEPT) * features


def _encoder(network: NetworkPlan, stage: int, features: int, blocks: int) -> tuple[int, int]:
    """Numbers kept per voxel of an encoder stage: (at the working precision, always in float32)."""
    kind = family(network.name).kind
    if kind != "scan" or (stage == 0 and network.stem == "conv"):
        return CONV_KEPT * features * max(blocks, 1), 0
    convs = (2 + 2 * CONV_KEPT) * features  # downsampling, one residual block of two convolutions
    half, single = scan_block_kept(network, features)
    return convs + blocks * half, blocks * single


def scan_block_kept(network: NetworkPlan, features: int) -> tuple[int, int]:
    """Numbers that one gated scan block keeps per token: (at the working precision, always in float32)."""
    inner = family(network.name).expand * features
    routes = route_count(network.routes, network.spatial_dims)
    rank, states = math.ceil(features / 16), network.state_size
    around = 2 * features + 8 * inner  # norm, both halves of the projection, convolution, gates, output norm
    if not network.use_scan:
        return around, 0
    scan = routes * inner + math.ceil(routes * inner * states / CHUNK) + routes * (rank + 2 * states) + inner
    return around, scan


def weight_count(network: NetworkPlan, in_channels: int, out_channels: int) -> int:
    """Number of weights, to within the norms and biases."""
    dims = network.spatial_dims
    total, before = 0, in_channels
    scans = family(network.name).kind == "scan"
    expand = family(network.name).expand
    for stage, features in enumerate(network.features_per_stage):
        kernel = math.prod(network.kernel_sizes[stage])
        total += kernel * before * features
        blocks = network.blocks_per_stage[stage]
        if scans and not (stage == 0 and network.stem == "conv"):
            inner = expand * features
            routes = route_count(network.routes, dims) if network.use_scan else 0
            rank, states = math.ceil(features / 16), network.state_size
            scan = routes * inner * (2 * rank + 3 * states + 2)
            total += 2 * kernel * features**2 + blocks * (3 * features * inner + kernel * inner + scan)
        else:
            total += max(blocks - 1, 1) * kernel * features**2
        if stage < len(network.features_per_stage) - 1:
            deeper = network.features_per_stage[stage + 1]
            total += math.prod(network.strides[stage + 1]) * deeper * features + 2 * kernel * features**2
        before = features
    return total + out_channels * sum(network.features_per_stage[:-1])
