"""torch.compile in training (--compile); where it fails, training continues without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from medmamba.compute.device import is_out_of_memory


class Compiled:
    """A network through torch.compile; from the first failure on the network itself, which is reported once.

    Weights are the network's own, so checkpoints, averages and validation do not depend on it.
    """

    def __init__(self, network: nn.Module, report: Callable[[str], None]) -> None:
        self._network, self._report = network, report
        self._forward: Callable[[torch.Tensor], Any] | None = None

    def __call__(self, image: torch.Tensor) -> Any:
        """The network's outputs for ``image``."""
        try:
            if self._forward is None:
                # Patches have one size; where a second one comes, inductor fails on sizes that are symbols.
                self._forward = torch.compile(self._network, dynamic=False)
            return self._forward(image)
        except Exception as error:
            if self._forward is self._network or is_out_of_memory(error):
                raise
            reason = (str(error).strip().splitlines() or ["no reason given"])[0][:160]
            self._report(f"--compile: torch.compile failed ({type(error).__name__}: {reason}); continuing without it.")
            self._forward = self._network
        return self._network(image)
