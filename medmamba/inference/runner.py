"""A network on its device: one caller at a time, and out of memory is not the end."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from medmamba.compute.device import casting, free_device_memory, is_out_of_memory
from medmamba.errors import ResourceError, first_line
from medmamba.inference.cpu import keep_memory, with_fast_convolutions
from medmamba.inference.memory import device_bytes
from medmamba.networks.scan_backend import scan_backend_of, set_scan_backend


@dataclass(frozen=True)
class Execution:
    """Where and how networks run; those that share it run one at a time. Scans are always fp32."""

    device: torch.device
    precision: str = "fp32"
    scan_backend: str = "auto"
    lock: threading.Lock = field(default_factory=threading.Lock)


DEVICE_FRACTION = 0.25
"""Of a GPU's free memory, at most this fraction is taken by image and sums; the rest is the network's."""
GPU_PASSES = 8
"""Patches that a GPU gets together, each mirror image counted; fewer as soon as they do not fit into its memory."""


def sums_on(device: torch.device, shape: Sequence[int], classes: int, box: tuple[int, int, int]) -> torch.device:
    """Where patches of an image (C, I, J, K) are cut and summed: on the GPU ``device`` if it has room, else the CPU."""
    if device.type == "cuda" and device_bytes(shape, classes, box) <= DEVICE_FRACTION * free_device_memory(device):
        return device
    return torch.device("cpu")


class NetworkRunner:
    """Calls a network on its device. Raises ConfigError when the scan backend cannot run there.

    When the device runs out of memory the batch is halved, from then on, and a single patch goes to the CPU, with the
    rest of its case: the weights are the same, and so is the result but for rounding. ``on_warning`` is called with one
    line then. The next case begins on the device again.
    """

    def __init__(self, network: nn.Module, execution: Execution) -> None:
        self.network = network.to(execution.device).eval()
        self.execution = self._wanted = execution
        self._fits: int | None = None
        """The most patches that are tried together, after memory ran out with more."""
        self.on_warning: Callable[[str], None] = lambda line: None
        self._prepare()

    def __call__(self, patches: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes, *patch) of patches (N, C, *patch)."""
        with self.execution.lock, torch.no_grad():
            return self._run(patches)

    def begin_case(self) -> None:
        """Back to the device, if memory ran out there in the case before."""
        with self.execution.lock:
            if self.execution.device != self._wanted.device:
                self._fits = None
                self._move(self._wanted)

    def _run(self, patches: torch.Tensor) -> torch.Tensor:
        made: list[torch.Tensor] = []
        while (start := sum(map(len, made))) < len(patches):
            part = patches[start : start + (self._fits or len(patches))]
            try:
                with casting(self.execution.precision, self.execution.device):
                    made.append(self.network(part.to(self.execution.device)))
                continue
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = first_line(error)
            self._give_up(part, reason)  # here, where the error no longer holds the tensors of the network
        return made[0] if len(made) == 1 else torch.cat([one.to(made[-1].device) for one in made])

    def _give_up(self, patches: torch.Tensor, reason: str) -> None:
        """Continue with less in memory than these patches."""
        device = self.execution.device
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if len(patches) > 1:
            self._fits = len(patches) // 2
            return
        if device.type == "cpu":
            size = tuple(patches.shape[2:])
            raise ResourceError(f"Out of memory for one patch of {size}. Choose a smaller --patch-size.")
        self.on_warning(
            f"{device}: out of memory ({reason}); the CPU predicts the rest of this case, with the same weights, "
            f"slower."
        )
        self._move(replace(self._wanted, device=torch.device("cpu"), scan_backend="auto"))

    def _move(self, execution: Execution) -> None:
        try:
            self.network = self.network.to(execution.device)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or execution.device.type == "cpu":
                raise
            self.network = self.network.cpu()  # what was moved already
            return
        self.execution = execution
        self._prepare()

    def _prepare(self) -> None:
        set_scan_backend(self.network, self.execution.scan_backend)
        self.scan_backend = scan_backend_of(self.network, self.execution.device)
        if self.execution.device.type == "cpu":
            keep_memory()
            if self.execution.precision == "fp32":
                with_fast_convolutions(self.network)
