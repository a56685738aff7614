"""Cost of one forward pass of a network: parameters, multiply-accumulates and state updates of the scans.

torch's own counter counts multiply-accumulates where they are computed, and every scan reports its state updates.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from medmamba.networks.blocks.linear import PRODUCT_EXISTS
from medmamba.networks.blocks.scan_core import count_scans


def _count_product(a: torch.Size, b: torch.Size, *_: object, **__: object) -> int:
    """Operations of oneDNN's product (``linear.py``), which torch's counter does not know."""
    return 2 * math.prod(a) * b[0]


@dataclass(frozen=True)
class NetworkCost:
    """Cost of one forward pass."""

    parameters: int
    macs: int  # multiply-accumulates of convolutions and matrix products, the scan's projections among them
    scan_steps: int  # state updates: batch x routes x tokens x channels x states, over all scans
    scan_calls: int

    def summary(self) -> str:
        """One line: ``3.62 M parameters, 12.4 GMAC, 0.21 G scan steps in 6 scans``."""
        return (
            f"{self.parameters / 1e6:.2f} M parameters, {self.macs / 1e9:.2f} GMAC, "
            f"{self.scan_steps / 1e9:.3f} G scan steps in {self.scan_calls} scans"
        )


def network_cost(network: nn.Module, input_shape: Sequence[int]) -> NetworkCost:
    """Cost of ``network`` in evaluation on an input (batch, channels, *axes), measured by one forward pass."""
    training = network.training
    network.eval()
    counts = {torch.ops.mkldnn._linear_pointwise: _count_product} if PRODUCT_EXISTS else {}
    device = next(network.parameters()).device
    try:
        with torch.no_grad(), count_scans() as scans, FlopCounterMode(display=False, custom_mapping=counts) as counter:
            network(torch.zeros(tuple(input_shape), device=device))
    finally:
        network.train(training)
    return NetworkCost(
        parameters=sum(p.numel() for p in network.parameters()),
        macs=counter.get_total_flops() // 2,
        scan_steps=sum(scans),
        scan_calls=len(scans),
    )
