"""Processor time as a budget for trainings on a machine that is not quiet. Imports nothing of medmamba.

A training gets as many steps as fit into its seconds of one thread's processor time. A neighbour on the other core
slows down every step (shared cache, memory, clock), so each measurement of a step is divided by how much slower than
its quiet time a fixed piece of work runs in the same minute.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

QUIET_SECONDS = 0.043
"""Processor time of :func:`fixed_work` on the quiet machine of docs/benchmarks; only ratios to it matter."""
WARM_UP = 2


def fixed_work() -> float:
    """Processor seconds of two convolutions and their gradients: what a step of a U-Net mostly is."""
    torch.manual_seed(0)
    image = torch.randn(1, 16, 40, 56, 40, requires_grad=True)
    kernels = [torch.randn(16, 16, 3, 3, 3, requires_grad=True) for _ in range(2)]
    started = time.process_time()
    maps = image
    for kernel in kernels:
        maps = torch.nn.functional.leaky_relu(torch.nn.functional.conv3d(maps, kernel, padding=1))
    maps.square().mean().backward()
    return time.process_time() - started


def slowdown() -> float:
    """How much slower than quiet the machine is now."""
    fixed_work()
    return sorted(fixed_work() for _ in range(5))[2] / QUIET_SECONDS


def quiet_step_seconds(step: Callable[[int], object], steps: int = 10) -> float:
    """Processor seconds of ``step(i)`` on the quiet machine, data included."""
    for index in range(WARM_UP):
        step(index)
    before = slowdown()
    started = time.process_time()
    for index in range(steps):
        step(WARM_UP + index)
    seconds = (time.process_time() - started) / steps
    return seconds / ((before + slowdown()) / 2)
