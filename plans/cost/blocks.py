"""What one block of each family costs: numbers kept for the backward pass per token, weights, and work.

VM-UNet's block is counted from its parts, because its routes and states vary; the others were measured at the options
the planner gives them (memory of a network with and without one more block, at widths of 32 to 128 channels).
tests/plans/test_memory.py measures whole training steps against these numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

TILE = 32
"""Tokens between two states that the scan keeps for its backward pass. Source: kernels/csrc/abi.h, MM_TILE."""

CHANNEL_PAD = 16
"""The kept states are padded to a multiple of this many channels. Source: kernels/csrc/abi.h."""


DEFORMABLE_TAP = 13
"""Taps of a depthwise convolution that take as long as one neighbour read at a learned place, its gradients included.
Source: docs/benchmarks/time_model.md."""

DEFORMABLE_GROUP = 16
"""Channels of a deformable convolution that share their offsets."""


@dataclass(frozen=True)
class Block:
    """One block; everything but the weights is per token."""

    kept: float
    """Numbers kept for the backward pass at the working precision."""
    kept_float32: float
    """Numbers kept that are always in float32."""
    weights: int
    products: float
    """Multiply-accumulates between channels."""
    taps: float
    """Multiply-accumulates within a channel."""
    updates: float
    """State updates of the scans."""


@dataclass(frozen=True)
class BlockCost:
    """Linear in the width d: ``kept`` = (per channel, constant) numbers per token, ``weights`` = (per squared channel,
    per channel)."""

    kept: tuple[float, float]
    weights: tuple[float, float]

    def at(self, width: int, without_scan: BlockCost, updates: float, window: int, deformable: int, dims: int) -> Block:
        """The block of one width.

        Weights per squared channel are products. Those per channel are the taps of depthwise convolutions, and with a
        scan also its own, of which the selection (B and C: two numbers a state) is products. A window adds products of
        each token with all others, twice; ``deformable`` taps read 2^dims corners each, where their offsets say.
        """
        square, line = self.weights[0] * width**2, self.weights[1] * width
        taps = without_scan.weights[1] * width
        kept, weights = self.kept[0] * width + self.kept[1], square + line
        products = square + min(line - taps, 2 * updates) + 2 * window * width
        if deformable and dims == 3:  # in 2D they are part of what was measured
            offsets = deformable * (dims + 1) * math.ceil(width / DEFORMABLE_GROUP)
            kept, weights, products = kept + 2 * offsets, weights + offsets * width, products + offsets * width
        return Block(kept, 0.0, round(weights), products, taps + DEFORMABLE_TAP * 2**dims * deformable * width, updates)


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
        (2, True): BlockCost((26.8, 1330), (4.167, 216)),
        (2, False): BlockCost((11.0, 6), (4.0, 16)),
        (3, True): BlockCost((34.0, 1020), (4.25, 190)),
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


def gated_scan_block(width: int, kernel: int, routes: int, states: int) -> Block:
    """VM-UNet's block; no routes: without its scan.

    Around the scan: the norm's input and output, both halves of the projection, the convolution, the two gates, the
    output norm and the output projection. In the scan: its input, the step size of every route, B and C of every
    route, the low-rank steps, and the states at the tile borders. ``kernel`` is the convolution's number of taps.
    """
    around, projections, taps = 9.0 * width + 4, 3 * width**2, (kernel + 5) * width
    if not routes:
        return Block(around, 0.0, projections + taps, projections, taps, 0.0)
    rank = math.ceil(width / 16)
    padded = math.ceil(width / CHANNEL_PAD) * CHANNEL_PAD
    scan = width + routes * (width + 2 * states + rank) + routes * padded * states / TILE
    selection = routes * width * 2 * (rank + states)
    return Block(
        kept=around,
        kept_float32=scan,
        weights=projections + taps + selection + routes * width * (states + 2),
        products=projections + selection,
        taps=taps,
        updates=float(routes * width * states),
    )
