"""What one block of each family costs: numbers kept for the backward pass per token, and weights.

VM-UNet's block is counted from its parts, because its routes and states vary; the others were measured at the options
the planner gives them (saved tensors of a network with and without one more block, at widths of 48 and 96 channels).
tests/plans/test_memory.py measures whole training steps against these numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

TILE = 64
"""Tokens between two states that the scan keeps for its backward pass. Source: kernels/csrc/abi.h, MM_TILE."""

CHANNEL_PAD = 16
"""The kept states are padded to a multiple of this many channels. Source: kernels/csrc/abi.h."""


@dataclass(frozen=True)
class BlockCost:
    """Linear in the width d: ``kept`` = (per channel, constant) numbers per token, ``weights`` = (per squared channel,
    per channel)."""

    kept: tuple[float, float]
    weights: tuple[float, float]

    def kept_at(self, width: int) -> float:
        return self.kept[0] * width + self.kept[1]

    def weights_at(self, width: int) -> int:
        return round(self.weights[0] * width**2 + self.weights[1] * width)


MEASURED: dict[str, dict[tuple[int, bool], BlockCost]] = {
    "hrvmamba": {
        (2, True): BlockCost((22.02, 23), (8.165, 83)),
        (2, False): BlockCost((16.67, 16), (7.665, 63)),
        (3, True): BlockCost((22.55, 18), (6.75, 146)),
        (3, False): BlockCost((15.0, 8), (6.0, 116)),
    },
    "lamamba": {
        (2, True): BlockCost((31.39, 143), (11.5, 239)),
        (2, False): BlockCost((24.75, 32), (11.0, 39)),
        (3, True): BlockCost((34.0, 78), (11.75, 220)),
        (3, False): BlockCost((24.71, 36), (11.0, 64)),
    },
    "mambaout": {
        (2, False): BlockCost((12.0, 2), (6.0, 57)),
        (3, False): BlockCost((12.0, 2), (6.0, 133)),
    },
    "mate": {
        (2, True): BlockCost((29.63, 80), (12.125, 72)),
        (2, False): BlockCost((24.75, 29), (11.0, 36)),
        (3, True): BlockCost((31.72, 0), (12.125, 97)),
        (3, False): BlockCost((24.71, 33), (11.0, 61)),
    },
    "mhs_vm": {
        (2, True): BlockCost((17.28, 1530), (4.167, 216)),
        (2, False): BlockCost((11.0, 6), (4.0, 16)),
        (3, True): BlockCost((24.12, 1130), (4.25, 190)),
        (3, False): BlockCost((11.0, 6), (4.0, 34)),
    },
    "segmamba": {
        (2, True): BlockCost((33.21, 91), (27.375, 177)),
        (2, False): BlockCost((28.01, 6), (27.0, 27)),
        (3, True): BlockCost((33.51, 76), (63.375, 195)),
        (3, False): BlockCost((28.01, 5), (63.0, 45)),
    },
    "u_mamba_bot": {
        (2, True): BlockCost((20.63, 68), (6.25, 112)),
        (2, False): BlockCost((16.01, 2), (6.0, 12)),
        (3, True): BlockCost((20.71, 68), (6.25, 112)),
        (3, False): BlockCost((16.01, 2), (6.0, 12)),
    },
    "vim": {
        (2, True): BlockCost((18.76, 124), (3.25, 111)),
        (2, False): BlockCost((12.02, 0), (3.0, 11)),
        (3, True): BlockCost((18.54, 58), (3.25, 63)),
        (3, False): BlockCost((12.04, 0), (3.0, 11)),
    },
    "u_mamba_enc": {
        (2, True): BlockCost((20.69, 61), (6.25, 112)),
        (2, False): BlockCost((16.01, 2), (6.0, 12)),
        (3, True): BlockCost((20.83, 54), (6.25, 112)),
        (3, False): BlockCost((16.01, 2), (6.0, 12)),
    },
}


def gated_scan_block(width: int, kernel: int, routes: int, states: int, use_scan: bool) -> tuple[float, float, int]:
    """VM-UNet's block: (numbers kept per token at the working precision, those always in float32, weights).

    Around the scan: the norm's input and output, both halves of the projection, the convolution, the two gates, the
    output norm and the output projection. In the scan: its input, the step size of every route, B and C of every
    route, the low-rank steps, and the states at the tile borders. ``kernel`` is the convolution's number of taps.
    """
    around = 9.0 * width + 4
    weights = 3 * width**2 + (kernel + 5) * width
    if not use_scan:
        return around, 0.0, weights
    rank = math.ceil(width / 16)
    padded = math.ceil(width / CHANNEL_PAD) * CHANNEL_PAD
    scan = width + routes * (width + 2 * states + rank) + routes * padded * states / TILE
    return around, scan, weights + routes * width * (2 * rank + 3 * states + 2)
