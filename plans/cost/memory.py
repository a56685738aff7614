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

from medmamba.plans.cost.layers import (
    block_count,
    block_of,
    decoder_convs,
    exchanges,
    largest_layer,
    light_width,
    scans,
    stage_voxels,
    weight_count,
)
from medmamba.plans.families import Family, family
from medmamba.plans.schema import NetworkPlan

FLOAT32 = 4
"""Bytes per number. Plans are made for float32, the most that a training takes."""

OPTIMISER_SLOTS = 2
"""Numbers that AdamW keeps per weight."""

FRAME_CONV = 3
"""Maps of a convolution of the planned frame: the norm's centred input, its output, the activated output."""

IN_PLACE_CONV = 2
"""Maps of a convolution of plain_unet and residual_unet, whose activation works in place."""

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
        return max(self.moments.values())

    @property
    def moments(self) -> dict[str, int]:
        """Bytes where the backward pass begins, where it reaches the encoder, and in the optimiser's step."""
        encoder = self.gradients + self.encoder_activations + self.encoder_workspace + self.largest_weight
        return {
            "backward_begins": self.weights + self.activations + self.workspace,
            "backward_in_encoder": self.weights + encoder,
            "optimiser_step": self.weights + self.gradients + 2 * self.largest_weight,
        }


def training_memory(
    network: NetworkPlan, patch_size: Sequence[int], in_channels: int, out_channels: int, batch_size: int
) -> Memory:
    """Bytes that a training step of ``network`` on ``batch_size`` patches needs in float32 with AdamW."""
    chosen = family(network.name)
    tokens = stage_voxels(network, patch_size)
    full = math.prod(patch_size)
    last = len(tokens) - 1
    top = network.features_per_stage[0]
    encoder = decoder = heads = scan_gradients = 0.0  # numbers for one sample
    for stage, count in enumerate(tokens):
        encoder += count * _encoder_stage(network, chosen, stage)
        if scans(network, stage) and block_count(network, stage):  # at most what a block kept
            scan_gradients = max(scan_gradients, count * block_of(network, stage).kept / 2)
        if stage < last:
            decoder += count * _decoder_stage(chosen, network.features_per_stage[stage], decoder_convs(network, stage))
            if (stage == 0 and tokens[0] == full) or network.deep_supervision:
                heads += count * LABEL_MAPS * out_channels
    if tokens[0] < full:  # a strided stem: a light convolution of the image and a decoder at full resolution
        top = light_width(network)
        encoder += full * FRAME_CONV * top
        decoder += full * _decoder_stage(chosen, top, chosen.decoder_convs)
        heads += full * LABEL_MAPS * out_channels
    if chosen.parallel:
        encoder += sum(exchange.kept for exchange in exchanges(network, tokens))
    encoder += full * (in_channels + IMAGE_MAPS - 1)
    count = weight_count(network, in_channels, out_channels)
    sample = FLOAT32 * batch_size
    return Memory(
        weights=FLOAT32 * count * (1 + OPTIMISER_SLOTS),
        gradients=FLOAT32 * count,
        activations=round(sample * (encoder + decoder + heads)),
        encoder_activations=round(sample * encoder),
        workspace=round(sample * full * max(chosen.backward_maps * top, LOSS_WORKSPACE * out_channels)),
        encoder_workspace=round(sample * scan_gradients),
        largest_weight=FLOAT32 * largest_layer(network),
    )


def _encoder_stage(network: NetworkPlan, chosen: Family, stage: int) -> float:
    """Numbers kept per voxel of an encoder stage."""
    features, blocks = network.features_per_stage[stage], network.blocks_per_stage[stage]
    if chosen.kind == "plain":
        return blocks * IN_PLACE_CONV * features
    if chosen.kind == "residual":
        before = network.features_per_stage[stage - 1] if stage > 0 else features
        pooled = before if max(network.strides[stage]) > 1 else 0
        shortcut = 0 if before == features else pooled + features
        stem = IN_PLACE_CONV * features if stage == 0 else 0
        return stem + 2 * blocks * IN_PLACE_CONV * features + shortcut
    if not scans(network, stage):
        return FRAME_CONV * max(blocks, 1) * features
    downsampled = 2 * features  # the norm's centred input, its output
    convs = 2 * FRAME_CONV * chosen.conv_blocks * features if stage > 0 else 0
    count = block_count(network, stage)
    return downsampled + convs + (features if count else 0) + count * block_of(network, stage).kept


def _decoder_stage(chosen: Family, features: int, convs: int) -> float:
    """The upsampled map beside its skip, then the convolutions."""
    return (2 + convs * (FRAME_CONV if chosen.kind == "scan" else IN_PLACE_CONV)) * features
