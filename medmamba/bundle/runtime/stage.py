"""Shipped in bundles: a configuration beside the main network, as first stage of a cascade or in an ensemble."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from numpy.typing import NDArray

from medmamba.bundle.runtime.inferer import PlanInferer
from medmamba.bundle.runtime.network import SegmentationNetwork
from medmamba.bundle.runtime.plan import read_numbers
from medmamba.geometry import Grid
from medmamba.inference.cascade import prepare_stage
from medmamba.models.output_channels import OutputChannels
from medmamba.preprocessing.case import PreprocessedCase


class Stage:
    """A network with its own plan and its own inferer.

    Args:
        plan: numbers as in the entry ``plan`` of configs/inference.json.
        weights: raw state dict of ``network``.
        previous: the first stage, if this is the second of a cascade.
    """

    def __init__(
        self,
        plan: Mapping[str, Any],
        network: SegmentationNetwork,
        weights: str,
        inferer: PlanInferer,
        device: torch.device | str = "cpu",
        previous: Stage | None = None,
    ) -> None:
        self.plan, self.configuration = read_numbers(plan)
        self.heads = OutputChannels.of_plan(self.plan)  # type: ignore[arg-type]
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self.network, self.inferer, self.previous = network.to(device), inferer, previous

    def prepare(self, name: str, array: NDArray[Any], grid: Grid) -> PreprocessedCase:
        """An image (C, i, j, k) on this configuration's grid."""
        return prepare_stage(name, array, grid, self.plan, self.configuration, self.previous)  # type: ignore[arg-type]

    def planes(self, image: torch.Tensor) -> Iterator[torch.Tensor]:
        """Planes of logits (classes, J, K) of an image (C, I, J, K) on this configuration's grid."""
        return self.inferer.planes(image, self.network)
