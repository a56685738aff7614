"""Measures what one block of a network costs, for the planner: ``python -m medmamba.networks.measure_cost NAME``.

The difference between a network with two blocks and one with one in its coarsest stage, at several widths, is fitted as
medmamba.plans.cost.blocks describes it: numbers kept for the backward pass a d + b per token, weights p d^2 + q d.
"""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medmamba.errors import MedmambaError
from medmamba.networks.build import build_network, network_facts
from medmamba.plans.cost.blocks import BlockCost
from medmamba.plans.families import STEM_BLOCKS, family

WIDTHS = (32, 64, 96, 128)
EDGE = {2: 64, 3: 16}  # voxels along each axis of the measured patch, which is halved once


def measure_cost(name: str) -> dict[tuple[int, bool], BlockCost]:
    """The cost of a block by (spatial dimensions, whether it scans), as MeasuredCost takes it.

    Raises ConfigError for an unknown network.
    """
    facts = network_facts(name)
    scans = (True, False) if facts.has_scan else (False,)
    dims = (2,) if facts.planar else (2, 3)
    return {(axes, scan): _fit(name, axes, scan) for axes in dims for scan in scans}


def _fit(name: str, spatial_dims: int, use_scan: bool) -> BlockCost:
    widths = np.array(WIDTHS, dtype=np.float64)
    one, two = ([_measure(name, spatial_dims, use_scan, width, blocks) for width in WIDTHS] for blocks in (1, 2))
    difference = np.array(two, dtype=np.float64) - np.array(one, dtype=np.float64)  # (widths, 2)
    kept = np.linalg.lstsq(np.stack([widths, np.ones_like(widths)], 1), difference[:, 0], rcond=None)[0]
    weights = np.linalg.lstsq(np.stack([widths**2, widths], 1), difference[:, 1], rcond=None)[0]
    return BlockCost(
        (round(float(kept[0]), 2), round(float(kept[1]))), (round(float(weights[0]), 3), round(float(weights[1])))
    )


def _measure(name: str, spatial_dims: int, use_scan: bool, width: int, blocks: int) -> tuple[float, int]:
    """Numbers kept per token of the coarsest stage, and weights, of a network with so many blocks there."""
    facts, dims = family(name), spatial_dims
    scan: dict[str, Any] = {"state_size": facts.states[dims - 2], "routes": facts.routes, "use_scan": use_scan}
    network = build_network(
        name,
        spatial_dims=dims,
        in_channels=1,
        out_channels=2,
        strides=[[1] * dims, [2] * dims],
        features_per_stage=[16, width],
        blocks_per_stage=[STEM_BLOCKS, blocks],
        **{option: value for option, value in scan.items() if option in network_facts(name).options},
    ).train()
    parameters = {parameter.data_ptr() for parameter in network.parameters()}
    kept: dict[int, int] = {}  # storages, so that several views count once

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if tensor.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        saved.append(tensor)  # a freed storage's address would be used again
        return tensor

    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = network(torch.randn(1, 1, *(EDGE[dims],) * dims))
    tokens = (EDGE[dims] // 2) ** dims
    del out
    return sum(kept.values()) / 4 / tokens, sum(parameter.numel() for parameter in network.parameters())


def main(arguments: Sequence[str]) -> int:
    """Print the cost of each named network as Python; returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m medmamba.networks.measure_cost NAME...")
        return 0 if arguments else 2
    torch.manual_seed(0)
    try:
        for name in arguments:
            print(f"{name} = MeasuredCost(\n    {{")
            for place, cost in measure_cost(name).items():
                print(f"        {place}: BlockCost({cost.kept}, {cost.weights}),")
            print("    }\n)")
    except MedmambaError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
