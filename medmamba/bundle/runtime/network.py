"""Shipped in bundles: one trained network per fold, whose logits are averaged."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medmamba.bundle.runtime.scripted import scriptable
from medmamba.networks.build import rebuild_network


class SegmentationNetwork(nn.Module):
    """(B, channels, *S) to logits (B, classes, *S), the mean over the folds; in training the logits of each.

    The state dict holds the folds as ``members.0.…``, ``members.1.…``, all with the ``arguments`` of build_network.
    """

    def __init__(self, folds: int, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.members = nn.ModuleList(rebuild_network(arguments) for _ in range(folds))
        self.eval()

    def forward(self, image: Tensor) -> Any:
        members: Sequence[nn.Module] = list(self.members)
        if self.training:
            return [member(image) for member in members]
        if len(members) == 1:
            return members[0](image)
        return torch.stack([member(image) for member in members]).mean(0)

    def __prepare_scriptable__(self) -> nn.Module:
        """What ``torch.jit.script`` compiles in place of this module, as MONAI's ``ckpt_export`` calls it."""
        return scriptable(self.members)


def hash_of_weights(network: nn.Module) -> str:
    """SHA-256 of the names and bytes of all tensors of a network."""
    found = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()
