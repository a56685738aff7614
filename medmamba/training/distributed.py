"""One training in several processes, started by torchrun: gloo on CPUs, NCCL on GPUs.

Each rank computes its own part of every batch. Sums of the loss and gradients are exchanged, so that the loss curve is
that of one process with the same total batch. In a single process every function here does nothing.
"""

import os
from datetime import timedelta
from typing import Any

import torch
from torch import distributed as dist
from torch import nn

from medmamba.errors import ResourceError, first_line

PATIENCE = timedelta(days=2)
"""How long a rank waits for the others before it ends; a validation of the first rank must fit into it. Nobody waits so
long for a rank that is gone: torchrun ends the others."""


def launched() -> bool:
    """Whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def place() -> tuple[int, int]:
    """This process's number and how many there are, before any of them has joined."""
    return (int(os.environ.get("RANK", "0")), int(os.environ["WORLD_SIZE"])) if launched() else (0, 1)


def join(device: str) -> torch.device | None:
    """Join the other ranks; returns the device of this rank where there is a GPU for each, else None."""
    if not launched() or dist.is_initialized():
        return None
    local = int(os.environ.get("LOCAL_RANK", "0"))
    use_gpu = device in ("auto", "cuda") and torch.cuda.is_available() and torch.cuda.device_count() > local
    if not use_gpu:
        dist.init_process_group("gloo", timeout=PATIENCE)
        return None
    own = torch.device("cuda", local)
    torch.cuda.set_device(own)  # or every rank would exchange its sums on the first GPU
    # Numbers of the host are exchanged by gloo: no rank waits for its GPU to send them.
    dist.init_process_group("cpu:gloo,cuda:nccl", timeout=PATIENCE, device_id=own)
    return own


def leave() -> None:
    """Leave the other ranks."""
    if dist.is_initialized():
        dist.destroy_process_group()


def wait_for_all() -> None:
    """Return when every process of torchrun has come here, whatever the time between the first and the last.

    For processes that work by themselves: as soon as one of them ends with an error, torchrun ends all others.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and launched():
        dist.init_process_group("gloo", timeout=timedelta(days=30))
        leave()


def rank() -> int:
    """Number of this process; the first writes files and reports to the user."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def own_samples(batch_size: int) -> range:
    """Samples of a batch that this rank makes: an equal, contiguous part."""
    part = batch_size // size()
    return range(rank() * part, (rank() + 1) * part)


def total(value: torch.Tensor) -> torch.Tensor:
    """The sum over all ranks, with a gradient."""
    if size() == 1:
        return value
    summed: torch.Tensor = _Total.apply(value)
    return summed


class _Total(torch.autograd.Function):
    """Every rank's value is in the sum of every rank, so the gradients of all sums come back to it, added up."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        value = value.clone()
        dist.all_reduce(value)
        return value

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return _Total.forward(ctx, gradient)


def average_gradients(network: nn.Module) -> None:
    """Replace each gradient by its mean over the ranks, in one message."""
    if size() == 1:
        return
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= size()
    offset = 0
    for gradient in gradients:
        gradient.copy_(flat[offset : offset + gradient.numel()].view_as(gradient))
        offset += gradient.numel()


def gathered(value: float) -> list[float]:
    """One number from every rank, in their order."""
    if size() == 1:
        return [value]
    every = torch.zeros(size(), dtype=torch.float64)
    every[rank()] = value
    dist.all_reduce(every)
    return [float(number) for number in every]


def anywhere(flag: torch.Tensor) -> torch.Tensor:
    """Whether it is set on any rank, on the device where it is."""
    if size() == 1:
        return flag
    count = flag.float()
    dist.all_reduce(count)
    return count > 0


def all_true(value: bool) -> bool:
    """Whether it is true on every rank."""
    return all(gathered(value))


def from_first(value: float) -> float:
    """The first rank's number on every rank, so that all decide the same."""
    return gathered(value)[0]


def lost_rank(error: BaseException) -> ResourceError | None:
    """The error to show when another rank is gone; None when ``error`` is something else."""
    text = str(error)
    signs = ("Connection closed by peer", "Connection reset by peer", "Connection refused", "Timed out", "NCCL", "gloo")
    if size() == 1 or not isinstance(error, RuntimeError) or not any(sign in text for sign in signs):
        return None
    return ResourceError(
        f"Rank {rank()}: another of the {size()} training processes is gone ({first_line(error)}). Look for "
        f"its own message (out of memory?), then start torchrun again."
    )
