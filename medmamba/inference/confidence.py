"""Uncertainty of a prediction: entropy of its foreground, and agreement of the networks of an ensemble."""

import math

import torch

from medmamba.inference.evidence import NetworkEvidence, decisions


class Confidence:
    """Collects from patches and planes of a case; ``sigmoid`` channels are independent, each with its own entropy.

    ``evidence`` also sees what every network says, and its mirrored views.
    """

    def __init__(self, *, sigmoid: bool = False, evidence: NetworkEvidence | None = None) -> None:
        self.sigmoid, self.evidence = sigmoid, evidence
        self._entropy = 0.0
        self._foreground = 0
        # where the decisions are, so that the host does not wait for a device
        self._shared: list[torch.Tensor] = []
        self._sizes: list[torch.Tensor] = []

    def decide(self, logits: torch.Tensor, channels: int) -> torch.Tensor:
        """The class of each voxel by its logits, channels on axis ``channels``; of sigmoid channels yes or no each."""
        return decisions(logits, sigmoid=self.sigmoid, channels=channels)

    def see_patch(self, single: list[torch.Tensor], joint: torch.Tensor) -> None:
        """The decisions of every network, and of their mean, about the same patches."""
        if not self._shared:
            self._shared = [torch.zeros((), dtype=torch.int64, device=joint.device) for _ in single]
            self._sizes = [torch.zeros_like(number) for number in self._shared]
        found = joint > 0
        for shared, size, decided in zip(self._shared, self._sizes, single, strict=True):
            shared += ((decided == joint) & found).sum()
            size += (decided > 0).sum() + found.sum()

    def see_plane(self, plane: torch.Tensor) -> torch.Tensor:
        """A finished plane (channels, J, K) of mean logits on the plan's grid; returns it unchanged."""
        decided = self.decide(plane, 0)
        foreground = decided.any(0) if self.sigmoid else decided > 0
        if foreground.any():
            logits = plane[:, foreground].float()
            if self.sigmoid:
                entropy = torch.nn.functional.binary_cross_entropy_with_logits(
                    logits, logits.sigmoid(), reduction="none"
                )
                self._entropy += float(entropy.mean(0).sum(dtype=torch.float64)) / math.log(2)
            else:
                known = torch.log_softmax(logits, dim=0)
                self._entropy += float(-(known.exp() * known).sum(dtype=torch.float64)) / math.log(len(plane))
            self._foreground += int(foreground.sum())
        return plane

    @property
    def entropy(self) -> float | None:
        """Mean entropy of the foreground voxels as a fraction of the largest possible; None without foreground."""
        return self._entropy / self._foreground if self._foreground else None

    @property
    def agreement(self) -> float | None:
        """Foreground Dice with the ensemble of its least agreeing network; None for one network or no foreground."""
        counts = zip(map(int, self._shared), map(int, self._sizes), strict=True)
        scores = [2 * shared / size for shared, size in counts if size]
        return min(scores) if scores else None
