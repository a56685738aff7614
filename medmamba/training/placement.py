"""Batches on the device that computes with them: copied there while it computes the step before."""

import torch

from medmamba.training.batches import Batch


def copied(batch: Batch) -> Batch:
    """The batch in memory of its own."""
    return batch.each(torch.Tensor.clone)


class Placement:
    """Copies batches to a device.

    To a GPU through page-locked memory, on a stream of its own: :meth:`place` returns when the copies are queued, and
    the kernels of the training wait for them, not the host.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._arrivals: dict[int, torch.cuda.Event] = {}

    def place(self, batch: Batch) -> Batch:
        """The batch on the device, on a CPU as it is; called in any thread."""
        if self._copies is None:
            return batch.each(lambda tensor: tensor.to(self.device))
        with torch.cuda.device(self.device), torch.cuda.stream(self._copies):
            placed = batch.each(lambda tensor: tensor.pin_memory().to(self.device, non_blocking=True))
            arrival = self._arrivals[batch.step] = torch.cuda.Event()
            arrival.record(self._copies)
        return placed

    def arrived(self, batch: Batch) -> Batch:
        """The batch for kernels that are queued from now on."""
        if (arrival := self._arrivals.pop(batch.step, None)) is not None:
            now = torch.cuda.current_stream(self.device)
            now.wait_event(arrival)
            batch.each(lambda tensor: _used_by(tensor, now))
        return batch


def _used_by(tensor: torch.Tensor, stream: torch.cuda.Stream) -> torch.Tensor:
    """Its memory is not used again before this stream is done with it."""
    tensor.record_stream(stream)
    return tensor
