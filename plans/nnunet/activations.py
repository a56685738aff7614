"""nnU-Net's memory proxy: the number of convolution outputs that one sample of a U-Net keeps for the backward pass.

Counted as nnU-Net 2.8.1 does: normalisation, non-linearity, input channels and deep-supervision heads are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from medmamba.plans.pooling import PoolingPlan

CONVS_PER_STAGE = 2
"""Convolutions per stage of the plain U-Net. Source: nnU-Net."""


def plain_unet_activations(pooling: PoolingPlan, features: Sequence[int], num_labels: int) -> int:
    """Activations of the plain U-Net: two convolutions per stage in encoder and decoder."""
    volumes = _volumes(pooling)
    encoder = sum(CONVS_PER_STAGE * f * v for f, v in zip(features, volumes, strict=True))
    return encoder + _decoder(features, volumes, CONVS_PER_STAGE) + num_labels * volumes[0]


def residual_unet_activations(
    pooling: PoolingPlan, features: Sequence[int], blocks: Sequence[int], num_labels: int
) -> int:
    """Activations of the residual-encoder U-Net: ``blocks`` of two convolutions, one convolution per decoder stage."""
    volumes = _volumes(pooling)
    total = features[0] * volumes[0]  # the stem
    channels = features[0]
    for stride, f, v, n in zip(pooling.strides, features, volumes, blocks, strict=True):
        total += 2 * n * f * v
        if f != channels or max(stride) > 1:  # the shortcut of the first block is a tensor of its own
            total += f * v
        channels = f
    return total + _decoder(features, volumes, 1) + num_labels * volumes[0]


def _decoder(features: Sequence[int], volumes: Sequence[int], convs: int) -> int:
    return sum((convs + 1) * f * v for f, v in zip(features[:-1], volumes[:-1], strict=True))  # + 1: transposed conv


def _volumes(pooling: PoolingPlan) -> list[int]:
    return [math.prod(shape) for shape in pooling.stage_shapes()]
