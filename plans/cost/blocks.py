"""What one block of each family costs: numbers kept for the backward pass per token, weights, and work.

VM-UNet's block is counted from its parts, because its routes and states vary; the others were measured at the options
the planner gives them, as ``python -m medmamba.networks.measure_cost NAME`` does. tests/plans/test_memory.py measures
whole training steps against these numbers.

A network of another package joins by :func:`register_family`, with its own cost or that of a family it resembles.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from medmamba.errors import ConfigError
from medmamba.plans.families import FAMILIES, Family

TILE = 32
"""Tokens between two states that the scan keeps for its backward pass. Source: kernels/csrc/abi.h, MM_TILE."""

CHANNEL_PAD = 16
"""The kept states are padded to a multiple of this many channels. Source: kernels/csrc/abi.h."""


DEFORMABLE_TAP = 13
"""Depthwise multiply-accumulates that take as long as one neighbour read at a learned position, its gradients included.
Source: docs/benchmarks/time_model.md."""

DEFORMABLE_GROUP = 16
"""Channels of a deformable convolution that share their offsets."""


@dataclass(frozen=True)
class LayerCost:
    """A layer or a whole block; everything but the weights is per voxel of its map (token)."""

    kept: float
    """Numbers kept for the backward pass."""
    weights: int = 0
    macs: float = 0.0
    """Multiply-accumulates between channels: convolutions, matrices, attention."""
    depthwise_macs: float = 0.0
    """Multiply-accumulates within a channel: depthwise and deformable convolutions."""
    updates: float = 0.0
    """State updates of scans."""


@dataclass(frozen=True)
class BlockPlace:
    """Where a block stands, and how it scans there."""

    spatial_dims: int
    width: int
    kernel_voxels: int
    """Weights of a depthwise convolution with the plan's kernel, per channel."""
    routes: int
    """0: without its scan."""
    states: int
    updates: float
    """State updates of its scans per token."""
    window: int = 0
    """Tokens of its attention windows."""
    deformable: int = 0
    """Sampled positions of its deformable convolution."""


Cost = Callable[[BlockPlace], LayerCost]
"""What a block costs where it stands."""


@dataclass(frozen=True)
class BlockCost:
    """Linear in the width d: ``kept`` = (per channel, constant) numbers per token, ``weights`` = (per squared channel,
    per channel)."""

    kept: tuple[float, float]
    weights: tuple[float, float]


@dataclass(frozen=True)
class MeasuredCost:
    """Costs by (spatial dimensions, whether it scans); a block without scans has the entries without."""

    measured: Mapping[tuple[int, bool], BlockCost]

    def __call__(self, place: BlockPlace) -> LayerCost:
        """The block of one width.

        Weights per squared channel are multiply-accumulates between channels. Those per channel are depthwise
        convolutions, and with a scan also its own, of which the selection (B and C: two numbers a state) multiplies
        channels. A window adds products of each token with all others, twice; ``deformable`` positions read 2^dims
        corners each, where their offsets say.
        """
        dims, width = place.spatial_dims, place.width
        cost = self.measured[dims, place.routes > 0]
        square, line = cost.weights[0] * width**2, cost.weights[1] * width
        depthwise_macs = self.measured[dims, False].weights[1] * width
        kept, weights = cost.kept[0] * width + cost.kept[1], square + line
        macs = square + min(line - depthwise_macs, 2 * place.updates) + 2 * place.window * width
        if place.deformable and dims == 3:  # in 2D they are part of what was measured
            offsets = place.deformable * (dims + 1) * math.ceil(width / DEFORMABLE_GROUP)
            kept, weights, macs = kept + 2 * offsets, weights + offsets * width, macs + offsets * width
        sampled = DEFORMABLE_TAP * 2**dims * place.deformable * width
        return LayerCost(kept, round(weights), macs, depthwise_macs + sampled, place.updates)


def gated_scan_block(place: BlockPlace) -> LayerCost:
    """VM-UNet's block.

    Around the scan: the norm's input and output, both halves of the projection, the convolution, the two gates, the
    output norm and the output projection. In the scan: its input, the step size of every route, B and C of every
    route, the low-rank steps, and the states at the tile borders.
    """
    width, routes, states = place.width, place.routes, place.states
    around, projections, depthwise_macs = 9.0 * width + 4, 3 * width**2, (place.kernel_voxels + 5) * width
    if not routes:
        return LayerCost(around, projections + depthwise_macs, projections, depthwise_macs)
    rank = math.ceil(width / 16)
    padded = math.ceil(width / CHANNEL_PAD) * CHANNEL_PAD
    scan = width + routes * (width + 2 * states + rank) + routes * padded * states / TILE
    selection = routes * width * 2 * (rank + states)
    return LayerCost(
        kept=around + scan,
        weights=projections + depthwise_macs + selection + routes * width * (states + 2),
        macs=projections + selection,
        depthwise_macs=depthwise_macs,
        updates=float(routes * width * states),
    )


def no_block(place: BlockPlace) -> LayerCost:
    """The convolution U-Nets have no blocks beside the convolutions that medmamba.plans.cost.layers counts."""
    return LayerCost(0.0)


_MEASURED: dict[tuple[str, int, bool], BlockCost] = {
    ("hrvmamba", 2, True): BlockCost((22.02, 23), (8.165, 83)),
    ("hrvmamba", 2, False): BlockCost((16.67, 16), (7.665, 63)),
    ("hrvmamba", 3, True): BlockCost((22.55, 18), (6.75, 146)),
    ("hrvmamba", 3, False): BlockCost((15.0, 8), (6.0, 116)),
    ("lamamba", 2, True): BlockCost((31.39, 143), (11.5, 239)),
    ("lamamba", 2, False): BlockCost((24.75, 32), (11.0, 39)),
    ("lamamba", 3, True): BlockCost((34.0, 78), (11.75, 220)),
    ("lamamba", 3, False): BlockCost((24.71, 36), (11.0, 64)),
    ("mamba3", 2, True): BlockCost((29.28, 79), (3.182, 40)),
    ("mamba3", 2, False): BlockCost((7.0, 1), (3.0, 1)),
    ("mamba3", 3, True): BlockCost((29.31, 79), (3.182, 40)),
    ("mamba3", 3, False): BlockCost((7.0, 1), (3.0, 1)),
    ("mambaout", 2, False): BlockCost((12.0, 2), (6.0, 57)),
    ("mambaout", 3, False): BlockCost((12.0, 2), (6.0, 133)),
    ("mate", 2, True): BlockCost((29.63, 80), (12.125, 72)),
    ("mate", 2, False): BlockCost((24.75, 29), (11.0, 36)),
    ("mate", 3, True): BlockCost((31.72, 0), (12.125, 97)),
    ("mate", 3, False): BlockCost((24.71, 33), (11.0, 61)),
    ("mhs_vm", 2, True): BlockCost((26.8, 1330), (4.167, 216)),
    ("mhs_vm", 2, False): BlockCost((11.0, 6), (4.0, 16)),
    ("mhs_vm", 3, True): BlockCost((34.0, 1020), (4.25, 190)),
    ("mhs_vm", 3, False): BlockCost((11.0, 6), (4.0, 34)),
    ("segmamba", 2, True): BlockCost((33.21, 91), (27.375, 177)),
    ("segmamba", 2, False): BlockCost((28.01, 6), (27.0, 27)),
    ("segmamba", 3, True): BlockCost((33.51, 76), (63.375, 195)),
    ("segmamba", 3, False): BlockCost((28.01, 5), (63.0, 45)),
    ("u_mamba_bot", 2, True): BlockCost((20.63, 68), (6.25, 112)),
    ("u_mamba_bot", 2, False): BlockCost((16.01, 2), (6.0, 12)),
    ("u_mamba_bot", 3, True): BlockCost((20.71, 68), (6.25, 112)),
    ("u_mamba_bot", 3, False): BlockCost((16.01, 2), (6.0, 12)),
    ("vim", 2, True): BlockCost((18.76, 124), (3.25, 111)),
    ("vim", 2, False): BlockCost((12.02, 0), (3.0, 11)),
    ("vim", 3, True): BlockCost((18.54, 58), (3.25, 63)),
    ("vim", 3, False): BlockCost((12.04, 0), (3.0, 11)),
    ("u_mamba_enc", 2, True): BlockCost((20.69, 61), (6.25, 112)),
    ("u_mamba_enc", 2, False): BlockCost((16.01, 2), (6.0, 12)),
    ("u_mamba_enc", 3, True): BlockCost((20.83, 54), (6.25, 112)),
    ("u_mamba_enc", 3, False): BlockCost((16.01, 2), (6.0, 12)),
}
"""By family, spatial dimensions, and whether the block scans."""

COSTS: dict[str, Cost] = {
    family: MeasuredCost({(dims, scans): cost for (name, dims, scans), cost in _MEASURED.items() if name == family})
    for family, _, _ in _MEASURED
} | {"vm_unet": gated_scan_block, "plain_unet": no_block, "residual_unet": no_block}
"""The cost of each family's block, by the name of the family; a family without an entry cannot be planned."""


def cost_of(name: str) -> Cost:
    """The cost of a family's block; raises ConfigError, with the way to measure it, for a family without one."""
    if name not in COSTS:
        raise ConfigError(
            f"no cost for {name!r}: measure it with `python -m medmamba.networks.measure_cost {name}`, or name the "
            f"family it resembles (cost_as=...); see medmamba.plans.cost.blocks.register_family."
        )
    return COSTS[name]


def register_family(family: Family, cost: Cost | None = None, *, cost_as: str | None = None) -> None:
    """Make a family of another package known to the planner.

    Args:
        family: its facts for the planner.
        cost: of one of its blocks, usually a :class:`MeasuredCost`.
        cost_as: name of a family whose block costs as much, instead of ``cost``.

    Without either it can be built and measured, but not planned. Raises ConfigError for a name that is taken.
    """
    if FAMILIES.get(family.name, family) != family:
        raise ConfigError(f"network {family.name!r} has planner facts of another package already; choose another name")
    if cost is None and cost_as is not None:
        cost = cost_of(cost_as)
    FAMILIES[family.name] = family
    if cost is not None:
        COSTS[family.name] = cost
