"""An exponential moving average of the weights (--ema), used in validation and prediction."""

from __future__ import annotations

import copy

import torch
from torch import nn


class AveragedWeights:
    """A copy of a network whose weights follow it slowly.

    The decay is warmed up as (1 + n) / (10 + n) after n steps, so that the first weights are soon forgotten.
    Source: Polyak & Juditsky 1992; the warm-up is that of TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, network: nn.Module, decay: float, steps: int = 0) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay
        self.steps = steps

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move a little towards the weights of ``network``; numbers that are not floating point are copied."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for mine, theirs in zip(self.network.state_dict().values(), network.state_dict().values(), strict=True):
            if mine.is_floating_point():
                mine.lerp_(theirs, 1 - decay)
            else:
                mine.copy_(theirs)
