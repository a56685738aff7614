"""Shipped in bundles: the sliding window over an image on the plan's grid, as medmamba predicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from medmamba.inference.cpu import with_fast_convolutions
from medmamba.inference.patch_positions import STEP
from medmamba.inference.sliding_window import Window, stream_logits


class PlanInferer(Inferer):
    """Overlapping patches, Gaussian weights, mirroring, mean over the folds.

    Args:
        patch_size: edges of the patch; two of them move over every slice of the first axis.
        mirror_axes: axes of the patch along which it is also flipped; empty for none.
        step: distance of neighbouring patches as a fraction of the edge.
        skip_empty: leave out patches that hold one value only.
        swap_axis: a flip along this axis exchanges left and right; ``channel_swap`` puts the channels back.
        sigmoid: channels are independent regions.
        input_swap: channels of the image after such a flip, where some belong to one side (cascades).
    """

    def __init__(
        self,
        patch_size: Sequence[int],
        mirror_axes: Sequence[int] = (),
        step: float = STEP,
        skip_empty: bool = True,
        swap_axis: int | None = None,
        channel_swap: Sequence[int] = (),
        sigmoid: bool = False,
        input_swap: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.window = Window(
            tuple(int(edge) for edge in patch_size),
            tuple(mirror_axes),
            swap_axis,
            tuple(channel_swap),
            step=step,
            skip_empty=skip_empty,
            sigmoid=sigmoid,
            input_swap=tuple(input_swap),
        )

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Logits (B, classes, I, J, K) of images (B, C, I, J, K), float32 on the CPU."""
        batch = inputs.as_tensor() if hasattr(inputs, "as_tensor") else inputs
        return torch.stack([torch.stack(list(self.planes(image, network)), dim=1) for image in batch])

    def planes(self, image: Tensor, network: Callable[..., Tensor]) -> Iterator[Tensor]:
        """The planes (classes, J, K) of the logits of one image (C, I, J, K), in order."""
        members: Sequence[Any] = getattr(network, "members", None) or [network]
        return stream_logits([_runner(member) for member in members], image.float().cpu(), self.window)


def _runner(network: Any) -> Callable[[Tensor], Tensor]:
    device = torch.device("cpu")
    if isinstance(network, nn.Module):
        device = next((parameter.device for parameter in network.parameters()), device)
        if device.type == "cpu":
            with_fast_convolutions(network)  # the same arithmetic as medmamba's own prediction

    def run(patches: Tensor) -> Tensor:
        logits: Tensor = network(patches.to(device))
        return logits

    return run
