"""Dice + cross-entropy, and its sum over the resolutions of a decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.losses import DiceCELoss
from torch import nn


def dice_ce(*, batch_dice: bool) -> nn.Module:
    """Soft Dice without background plus cross-entropy, weights 1 and 1.

    Takes logits (B, C, ...) and an integer target (B, 1, ...). ``batch_dice`` pools the Dice over the batch. The smooth
    terms are nnU-Net's (1e-5 above and below).
    """
    return DiceCELoss(
        include_background=False, to_onehot_y=True, softmax=True, batch=batch_dice, smooth_nr=1e-5, smooth_dr=1e-5
    )


def deep_supervision_weights(outputs: int) -> list[float]:
    """Weights 1, 1/2, 1/4, ... of a decoder's outputs from fine to coarse, normalised to a sum of 1.

    The coarsest counts nothing when there are several. Source: nnU-Net v2, ``nnUNetTrainer._build_loss``.
    """
    weights = [0.5**level for level in range(outputs)]
    if outputs > 1:
        weights[-1] = 0.0
    return [weight / sum(weights) for weight in weights]


class DeepSupervision(nn.Module):
    """Weighted sum of one loss over a decoder's outputs; the target follows each output by nearest neighbour."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, outputs: torch.Tensor | Sequence[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
        """Loss of logits (B, C, ...) or a list of them, fine to coarse, against the target (B, 1, ...)."""
        if isinstance(outputs, torch.Tensor):
            return self.loss(outputs, target)
        total = target.new_zeros((), dtype=outputs[0].dtype)
        for weight, output in zip(deep_supervision_weights(len(outputs)), outputs, strict=True):
            if weight:
                total = total + weight * self.loss(output, _at_size(target, output.shape[2:]))
        return total


def _at_size(target: torch.Tensor, size: torch.Size) -> torch.Tensor:
    if target.shape[2:] == size:
        return target
    return nn.functional.interpolate(target.float(), size=size, mode="nearest-exact").to(target.dtype)
