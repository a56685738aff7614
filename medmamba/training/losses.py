"""Losses by name: Dice, cross-entropy and their relatives, and the sum over the resolutions of a decoder.

One implementation serves softmax and sigmoid heads. Voxels to ignore and heads that a case cannot teach are multiplied
by exactly zero before anything is summed, so their gradient is exactly zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from medmamba.errors import unknown_name
from medmamba.models.output_channels import Heads
from medmamba.training.distributed import total

SMOOTH = 1e-5
"""Added above and below the Dice fraction (nnU-Net v2)."""
FOCAL_GAMMA = 2.0
"""Source: Lin et al. 2017, arXiv:1708.02002."""
TOP_K = 0.1
"""Share of the voxels, those with the largest cross-entropy, that ``dice_topk`` averages (nnU-Net v2)."""
OUT_OF_PLAY = -1e4
"""Logit of a class that is left out of a softmax: its probability is exactly 0 in float32."""

LOSSES = ("dice_ce", "dice_focal", "dice_topk", "ce", "dice")


class SegmentationLoss(nn.Module):
    """A loss of logits (B, C, ...) against label indices (B, 1, ...); computed in float32 at least.

    Args:
        heads: what the channels mean; softmax heads leave the background out of the Dice, sigmoid heads have none.
        name: one of :data:`LOSSES`; the parts of a sum weigh 1 and 1.
        batch_dice: pool the Dice over the batch instead of averaging over its images.
        weights: one weight a channel, for both parts; None: all 1.
    """

    weights: torch.Tensor | None

    def __init__(
        self, heads: Heads, *, name: str = "dice_ce", batch_dice: bool, weights: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        if name not in LOSSES:
            raise unknown_name("loss", name, LOSSES)
        self.heads = heads
        self.name = name
        self.batch_dice = batch_dice
        self.register_buffer("weights", None if weights is None else torch.tensor(weights), persistent=False)

    def forward(
        self, logits: torch.Tensor, target: torch.Tensor, annotated: torch.Tensor | None = None
    ) -> torch.Tensor:
        """``annotated`` (B, C) says which channels each image can teach; None: all."""
        logits = logits if logits.dtype == torch.float64 else logits.float()
        shape = (*logits.shape[:2], *[1] * (logits.ndim - 2))
        known = None if self.heads.ignore is None else (target != self.heads.ignore).to(logits.dtype)  # (B, 1, ...)
        taught = None if annotated is None else annotated.reshape(shape)
        if taught is not None and not self.heads.sigmoid:
            logits = logits.masked_fill(~taught, OUT_OF_PLAY)
        truth = self.heads.truth(target).to(logits.dtype)
        mask = _product(known, None if taught is None else taught.to(logits.dtype))
        loss = logits.new_zeros(())
        if self.name != "dice":
            loss = loss + self._voxel_loss(logits, target, truth, mask, known)
        if self.name != "ce":
            loss = loss + self._dice_loss(logits, truth, mask, taught)
        return loss

    def _voxel_loss(
        self,
        logits: torch.Tensor,
        target: torch.Tensor,
        truth: torch.Tensor,
        mask: torch.Tensor | None,
        known: torch.Tensor | None,
    ) -> torch.Tensor:
        weights = None if self.weights is None else self.weights.to(logits).reshape(1, -1, *[1] * (logits.ndim - 2))
        if self.heads.sigmoid:
            loss = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
            count = torch.ones_like(loss) if weights is None else weights.expand_as(loss)
            count = count if mask is None else count * mask
        else:
            index = target if known is None else target * (target < logits.shape[1])
            loss = F.cross_entropy(logits, index[:, 0], reduction="none")[:, None]
            count = torch.ones_like(loss) if weights is None else (weights * truth).sum(1, keepdim=True)
            count = count if known is None else count * known
        if self.name == "dice_focal":
            loss = loss * (1 - torch.exp(-loss)) ** FOCAL_GAMMA
        if self.name == "dice_topk":
            loss, count = (loss * count).flatten(), (count > 0).to(loss.dtype).flatten()
            kept = max(1, int(TOP_K * loss.numel()))
            chosen = loss.topk(kept).indices
            loss, count = loss[chosen], count[chosen]
            return total(loss.sum()) / total(count.sum()).clamp_min(1)
        return total((loss * count).sum()) / total(count.sum()).clamp_min(1e-8)

    def _dice_loss(
        self, logits: torch.Tensor, truth: torch.Tensor, mask: torch.Tensor | None, taught: torch.Tensor | None
    ) -> torch.Tensor:
        probability = torch.sigmoid(logits) if self.heads.sigmoid else torch.softmax(logits, 1)
        first = 0 if self.heads.sigmoid else 1
        probability, truth = probability[:, first:], truth[:, first:]
        if mask is not None:
            mask = mask if mask.shape[1] == 1 else mask[:, first:]
            probability, truth = probability * mask, truth * mask
        axes = list(range(2, logits.ndim))
        overlap, both = (probability * truth).sum(axes), probability.sum(axes) + truth.sum(axes)  # (B, C)
        counted = torch.ones_like(overlap) if taught is None else taught.flatten(1)[:, first:].to(overlap.dtype)
        if self.batch_dice:
            overlap, both = total(overlap.sum(0)), total(both.sum(0))
            counted = (total(counted.sum(0)) > 0).to(overlap.dtype)
        counted = counted if self.weights is None else counted * self.weights.to(logits)[first:]
        score = (2 * overlap + SMOOTH) / (both + SMOOTH)
        if self.batch_dice:
            return ((1 - score) * counted).sum() / counted.sum().clamp_min(1e-8)
        return total(((1 - score) * counted).sum()) / total(counted.sum()).clamp_min(1e-8)


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

    def forward(
        self,
        outputs: torch.Tensor | Sequence[torch.Tensor],
        target: torch.Tensor,
        annotated: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Loss of logits (B, C, ...) or a list of them, fine to coarse, against the target (B, 1, ...)."""
        if isinstance(outputs, torch.Tensor):
            return self.loss(outputs, target, annotated)
        summed = target.new_zeros((), dtype=torch.float32)
        for weight, output in zip(deep_supervision_weights(len(outputs)), outputs, strict=True):
            if weight:
                summed = summed + weight * self.loss(output, _at_size(target, output.shape[2:]), annotated)
        return summed


def _product(known: torch.Tensor | None, taught: torch.Tensor | None) -> torch.Tensor | None:
    if known is None or taught is None:
        return taught if known is None else known
    return known * taught


def _at_size(target: torch.Tensor, size: torch.Size) -> torch.Tensor:
    if target.shape[2:] == size:
        return target
    return nn.functional.interpolate(target.float(), size=size, mode="nearest-exact").to(target.dtype)
