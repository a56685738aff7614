"""The sliding window over an image on the plan's grid, as medmamba predicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from medmamba.inference.sliding_window import predict_logits


class PlanInferer(Inferer):
    """Overlapping patches, Gaussian weights, mirroring, mean over the folds.

    Args:
        patch_size: edges of the patch; two of them move over every slice of the first axis.
        mirror_axes: axes of the patch along which it is also flipped; empty for none.
        step: distance of neighbouring patches as a share of the edge.
    """

    def __init__(self, patch_size: Sequence[int], mirror_axes: Sequence[int] = (), step: float = 0.5) -> None:
        super().__init__()
        self.patch_size = tuple(int(edge) for edge in patch_size)
        self.mirror_axes = tuple(mirror_axes)
        self.step = step

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Logits (B, classes, I, J, K) of images (B, C, I, J, K), float32 on the CPU."""
        members: Sequence[Any] = getattr(network, "members", None) or [network]
        batch = inputs.as_tensor() if hasattr(inputs, "as_tensor") else inputs
        return torch.stack([self._one(image.float().cpu(), members) for image in batch])

    def _one(self, image: Tensor, members: Sequence[Any]) -> Tensor:
        logits = [
            predict_logits(
                member, image, self.patch_size, _device(member), mirror_axes=self.mirror_axes, step=self.step
            )
            for member in members
        ]
        return torch.stack(logits).mean(0)


def _device(network: Any) -> torch.device:
    if isinstance(network, nn.Module):
        return next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    return torch.device("cpu")
