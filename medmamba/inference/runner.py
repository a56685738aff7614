"""A network on its device: one caller at a time, and out of memory is not the end."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from medmamba.compute.device import casting, is_out_of_memory
from medmamba.errors import ResourceError, first_line
from medmamba.inference.cpu import keep_memory, with_fast_convolutions
from medmamba.networks.scan_backend import scan_backend_of, set_scan_backend


@dataclass(frozen=True)
class Execution:
    """Where and how networks run; those that share it run one at a time. Scans are always fp32."""

    device: torch.device
    precision: str = "fp32"
    scan_backend: str = "auto"
    lock: threading.Lock = field(default_factory=threading.Lock)


class NetworkRunner:
    """Calls a network on its device. Raises ConfigError when the scan backend cannot run there.

    When the device runs out of memory the batch is halved, and a single patch goes to the CPU, for good: the weights
    are the same, and so is the result but for rounding. ``on_warning`` is called with one line then.
    """

    def __init__(self, network: nn.Module, execution: Execution) -> None:
        self.network = network.to(execution.device).eval()
        self.execution = execution
        self.on_warning: Callable[[str], None] = lambda line: None
        self._prepare()

    def __call__(self, patches: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes, *patch) of patches (N, C, *patch)."""
        with self.execution.lock, torch.no_grad():
            return self._run(patches)

    def _run(self, patches: torch.Tensor) -> torch.Tensor:
        device = self.execution.device
        try:
            with casting(self.execution.precision, device):
                return self.network(patches.to(device))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = first_line(error)
        if device.type != "cpu":
            torch.cuda.empty_cache()
        if len(patches) > 1:
            half = len(patches) // 2
            return torch.cat([self._run(patches[:half]).cpu(), self._run(patches[half:]).cpu()])
        if device.type == "cpu":
            size = tuple(patches.shape[2:])
            raise ResourceError(f"Out of memory for one patch of {size}. Choose a smaller --patch-size.")
        self.on_warning(f"{device}: out of memory ({reason}); the CPU continues, with the same weights, slower.")
        self.execution = replace(self.execution, device=torch.device("cpu"), scan_backend="auto")
        self.network = self.network.cpu()
        self._prepare()
        return self._run(patches)

    def _prepare(self) -> None:
        set_scan_backend(self.network, self.execution.scan_backend)
        self.scan_backend = scan_backend_of(self.network, self.execution.device)
        if self.execution.device.type == "cpu":
            keep_memory()
            if self.execution.precision == "fp32":
                with_fast_convolutions(self.network)
