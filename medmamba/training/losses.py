"""Losses as functions of one record: Dice, cross-entropy and their relatives; and their sum over a decoder's outputs.

One implementation serves softmax and sigmoid channels. Voxels to ignore, and channels that are not annotated in a case,
are multiplied by exactly zero before anything is summed, so their gradient is exactly zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn
from torch.nn import functional as F

from medmamba.models.output_channels import OutputChannels
from medmamba.training.distributed import total
from medmamba.training.loss_names import LossFunction

SMOOTH = 1e-5
"""Added above and below the Dice fraction (nnU-Net v2)."""
FOCAL_GAMMA = 2.0
"""Source: Lin et al. 2017, arXiv:1708.02002."""
TOP_K = 0.1
"""Fraction of the voxels, those with the largest cross-entropy, that ``dice_topk`` averages (nnU-Net v2)."""
EXCLUDED_LOGIT = -1e4
"""Logit of a class that is left out of a softmax: its probability is exactly 0 in float32."""


@dataclass(frozen=True)
class LossInputs:
    """What a loss is computed from: logits of one resolution, the truth, and which of it counts.

    Attributes:
        logits: (B, C, ...), float32 at least; softmax channels that are not annotated hold :data:`EXCLUDED_LOGIT`.
        target: (B, 1, ...) label indices.
        truth: (B, C, ...), 1 where the channel's label or region is, else 0; ignored voxels are 0 everywhere.
        known: (B, 1, ...), 0 for voxels to ignore, else 1; None: there is no ignore label.
        annotated: (B, C, 1, ...) bool, which channels are annotated in each case; None: all.
        channels: what the channels mean; softmax channels begin with the background, sigmoid channels have none.
        weights: (C,), a weight for each channel; None: all 1.
        batch_dice: pool the Dice over the batch instead of averaging over its images.
    """

    logits: torch.Tensor
    target: torch.Tensor
    truth: torch.Tensor
    known: torch.Tensor | None
    annotated: torch.Tensor | None
    channels: OutputChannels
    weights: torch.Tensor | None
    batch_dice: bool

    @cached_property
    def probabilities(self) -> torch.Tensor:
        """(B, C, ...) of each channel, not masked."""
        return torch.sigmoid(self.logits) if self.channels.sigmoid else torch.softmax(self.logits, 1)

    @cached_property
    def mask(self) -> torch.Tensor | None:
        """What counts, 0 or 1, (B, 1 or C, ...) to multiply with; None: everything does."""
        if self.annotated is None:
            return self.known
        annotated = self.annotated.to(self.logits.dtype)
        return annotated if self.known is None else self.known * annotated

    @property
    def first_foreground(self) -> int:
        """The first channel that is not background."""
        return 0 if self.channels.sigmoid else 1


def cross_entropy(inputs: LossInputs) -> torch.Tensor:
    """Mean cross-entropy of the voxels (of every channel's voxels where channels are independent)."""
    return _mean(*_voxel_losses(inputs))


def focal(inputs: LossInputs) -> torch.Tensor:
    """Cross-entropy in which voxels that are well predicted count little."""
    loss, count = _voxel_losses(inputs)
    return _mean(loss * (1 - torch.exp(-loss)) ** FOCAL_GAMMA, count)


def top_k(inputs: LossInputs) -> torch.Tensor:
    """Mean cross-entropy of the voxels that are predicted worst."""
    loss, count = _voxel_losses(inputs)
    loss, count = (loss * count).flatten(), (count > 0).to(loss.dtype).flatten()
    chosen = loss.topk(max(1, int(TOP_K * loss.numel()))).indices
    return total(loss[chosen].sum()) / total(count[chosen].sum()).clamp_min(1)


def soft_dice(inputs: LossInputs) -> torch.Tensor:
    """One minus the soft Dice of the foreground, averaged over channels."""
    first = inputs.first_foreground
    probability, truth, mask = inputs.probabilities[:, first:], inputs.truth[:, first:], inputs.mask
    if mask is not None:
        mask = mask if mask.shape[1] == 1 else mask[:, first:]
        probability, truth = probability * mask, truth * mask
    axes = list(range(2, truth.ndim))
    overlap, both = (probability * truth).sum(axes), probability.sum(axes) + truth.sum(axes)  # (B, C)
    annotated = inputs.annotated
    counted = torch.ones_like(overlap) if annotated is None else annotated.flatten(1)[:, first:].to(overlap.dtype)
    if inputs.batch_dice:
        overlap, both = total(overlap.sum(0)), total(both.sum(0))
        counted = (total(counted.sum(0)) > 0).to(overlap.dtype)
    counted = counted if inputs.weights is None else counted * inputs.weights[first:]
    score = (2 * overlap + SMOOTH) / (both + SMOOTH)
    if inputs.batch_dice:
        return ((1 - score) * counted).sum() / counted.sum().clamp_min(1e-8)
    return total(((1 - score) * counted).sum()) / total(counted.sum()).clamp_min(1e-8)


def dice_ce(inputs: LossInputs) -> torch.Tensor:
    """Cross-entropy plus Dice, nnU-Net's loss."""
    return cross_entropy(inputs) + soft_dice(inputs)


def dice_focal(inputs: LossInputs) -> torch.Tensor:
    """Focal loss plus Dice."""
    return focal(inputs) + soft_dice(inputs)


def dice_topk(inputs: LossInputs) -> torch.Tensor:
    """Cross-entropy of the worst voxels plus Dice."""
    return top_k(inputs) + soft_dice(inputs)


def _voxel_losses(inputs: LossInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of each voxel and how much it counts, (B, 1, ...) or of independent channels (B, C, ...)."""
    logits, weights = inputs.logits, inputs.weights
    if weights is not None:
        weights = weights.reshape(1, -1, *[1] * (logits.ndim - 2))
    if inputs.channels.sigmoid:
        loss = F.binary_cross_entropy_with_logits(logits, inputs.truth, reduction="none")
        count = torch.ones_like(loss) if weights is None else weights.expand_as(loss)
        return loss, count if inputs.mask is None else count * inputs.mask
    target = inputs.target
    index = target if inputs.known is None else target * (target < logits.shape[1])
    loss = F.cross_entropy(logits, index[:, 0], reduction="none")[:, None]
    count = torch.ones_like(loss) if weights is None else (weights * inputs.truth).sum(1, keepdim=True)
    return loss, count if inputs.known is None else count * inputs.known


def _mean(loss: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    return total((loss * count).sum()) / total(count.sum()).clamp_min(1e-8)


class SegmentationLoss(nn.Module):
    """A loss of logits (B, C, ...) against label indices (B, 1, ...), computed in float32 at least.

    ``function`` is one of this file or of the user; other arguments as in :class:`LossInputs`.
    """

    weights: torch.Tensor | None

    def __init__(
        self,
        channels: OutputChannels,
        function: LossFunction = dice_ce,
        *,
        batch_dice: bool,
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.function = function
        self.batch_dice = batch_dice
        self.register_buffer("weights", None if weights is None else torch.tensor(weights), persistent=False)

    def forward(
        self, logits: torch.Tensor, target: torch.Tensor, annotated: torch.Tensor | None = None
    ) -> torch.Tensor:
        """``annotated`` (B, C) says which channels are annotated in each image; None: all."""
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if annotated is not None:
            annotated = annotated.reshape(*logits.shape[:2], *[1] * (logits.ndim - 2))
            if not self.channels.sigmoid:
                logits = logits.masked_fill(~annotated, EXCLUDED_LOGIT)
        ignore = self.channels.ignore
        inputs = LossInputs(
            logits=logits,
            target=target,
            truth=self.channels.truth(target).to(logits.dtype),
            known=None if ignore is None else (target != ignore).to(logits.dtype),
            annotated=annotated,
            channels=self.channels,
            weights=None if self.weights is None else self.weights.to(logits),
            batch_dice=self.batch_dice,
        )
        return self.function(inputs)


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
                aims, size = target, output.shape[2:]
                if aims.shape[2:] != size:
                    aims = nn.functional.interpolate(target.float(), size=size, mode="nearest-exact").to(target.dtype)
                summed = summed + weight * self.loss(output, aims, annotated)
        return summed
