"""torch.compile in training: asked for, and never what a training fails from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from medmamba.compute.out_of_memory import is_out_of_memory


class Compiled:
    """A network through torch.compile; from the first failure on as it is, which is told once.

    Weights are the network's own, so that checkpoints, averages and validation know nothing of it.
    """

    def __init__(self, network: nn.Module, tell: Callable[[str], None]) -> None:
        self._network, self._tell = network, tell
        self._forward: Callable[[torch.Tensor], Any] | None = None

    def __call__(self, image: torch.Tensor) -> Any:
        """What the network makes of ``image``."""
        try:
            if self._forward is None:
                # Patches have one size; where a second one comes, inductor fails on sizes that are symbols.
                self._forward = torch.compile(self._network, dynamic=False)
            return self._forward(image)
        except Exception as error:
            if self._forward is self._network or is_out_of_memory(error):
                raise
            reason = (str(error).strip().splitlines() or ["no reason given"])[0][:160]
            self._tell(f"--compile: torch.compile failed ({type(error).__name__}: {reason}); going on without it.")
            self._forward = self._network
        return self._network(image)
