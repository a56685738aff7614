"""How sure a prediction is: entropy of its foreground, and how well the members of an ensemble agree."""

from __future__ import annotations

import math

import torch


class Confidence:
    """Collects from patches and planes while a case is predicted; memory of a few numbers."""

    def __init__(self) -> None:
        self._entropy = 0.0
        self._foreground = 0
        self._shared: list[int] = []
        self._sizes: list[int] = []

    def see_patch(self, members: list[torch.Tensor]) -> None:
        """Logits (N, classes, *patch) of every member for the same patches."""
        if len(members) < 2:
            return
        total = members[0].clone()
        for member in members[1:]:
            total += member
        joint = total.argmax(1)
        if not self._shared:
            self._shared, self._sizes = [0] * len(members), [0] * len(members)
        for index, member in enumerate(members):
            labels = member.argmax(1)
            self._shared[index] += int(((labels == joint) & (joint > 0)).sum())
            self._sizes[index] += int((labels > 0).sum() + (joint > 0).sum())

    def see_plane(self, plane: torch.Tensor) -> torch.Tensor:
        """A finished plane (classes, J, K) of mean logits on the plan's grid; returns it unchanged."""
        foreground = plane.argmax(0) > 0
        if foreground.any():
            logits = torch.log_softmax(plane[:, foreground], dim=0)
            self._entropy += float(-(logits.exp() * logits).sum(dtype=torch.float64))
            self._foreground += int(foreground.sum())
        self._classes = plane.shape[0]
        return plane

    @property
    def entropy(self) -> float | None:
        """Mean entropy of the foreground voxels as a share of the largest possible; None without foreground."""
        return self._entropy / self._foreground / math.log(self._classes) if self._foreground else None

    @property
    def agreement(self) -> float | None:
        """Foreground Dice with the ensemble of its least agreeing member; None for one member or no foreground."""
        scores = [2 * shared / size for shared, size in zip(self._shared, self._sizes, strict=True) if size]
        return min(scores) if scores else None
