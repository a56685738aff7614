"""Networks behind one door: one caller at a time, and out of memory is not the end."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import nn

from medmamba.compute.out_of_memory import is_out_of_memory
from medmamba.compute.precision import casting
from medmamba.errors import ResourceError
from medmamba.inference.cpu import keep_memory, with_fast_convolutions


class NetworkRunner:
    """Calls a network on its device.

    When the device runs out of memory the batch is halved, and a single patch goes to the CPU, for good: the weights
    and so the result are the same. ``on_warning`` is told once.

    Args:
        precision: fp32, bf16 or fp16; scans are always fp32.
    """

    def __init__(self, network: nn.Module, device: torch.device, lock: threading.Lock, precision: str = "fp32") -> None:
        self.network = network.to(device).eval()
        self.device = device
        self.precision = precision
        self._prepare()
        self._lock = lock
        self.on_warning: Callable[[str], None] = lambda line: None

    def __call__(self, patches: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes, *patch) of patches (N, C, *patch)."""
        with self._lock, torch.no_grad():
            return self._run(patches)

    def _run(self, patches: torch.Tensor) -> torch.Tensor:
        try:
            with casting(self.precision, self.device):
                return self.network(patches.to(self.device))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0] if str(error) else "MemoryError"
        if self.device.type != "cpu":
            torch.cuda.empty_cache()
        if len(patches) > 1:
            half = len(patches) // 2
            return torch.cat([self._run(patches[:half]).cpu(), self._run(patches[half:]).cpu()])
        if self.device.type == "cpu":
            raise ResourceError(
                f"Out of memory for one patch of {tuple(patches.shape[2:])}. Choose a smaller --patch-size."
            )
        self.on_warning(f"{self.device}: out of memory ({reason}); going on with the CPU, the same result, slower.")
        self.device = torch.device("cpu")
        self.network = self.network.to(self.device)
        self._prepare()
        return self._run(patches)

    def _prepare(self) -> None:
        if self.device.type == "cpu":
            keep_memory()
            if self.precision == "fp32":
                with_fast_convolutions(self.network)
