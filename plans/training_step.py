"""What a training step may take of memory and time, and what it takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from medmamba.errors import ConfigError
from medmamba.plans.batch import MIN_BATCH
from medmamba.plans.cost.machines import Machine
from medmamba.plans.cost.memory import Memory, training_memory
from medmamba.plans.cost.step_time import Work, training_work
from medmamba.plans.families import Family
from medmamba.plans.network import Stem, network_plan
from medmamba.plans.pooling import PoolingPlan
from medmamba.plans.schema import NetworkPlan
from medmamba.plans.training_length import LEAST_STEPS, STEP_FRACTION

USABLE_FRACTION = 0.9
"""Share of the device memory that a training step may use; the rest is for the driver, the library and fragments."""


@dataclass(frozen=True)
class PlanTask:
    """What is asked of every grid: the network, the memory, the time, and what the user fixed."""

    family: Family
    in_channels: int
    out_channels: int
    device_memory_gb: float
    machine: Machine
    train_hours: float | None = None
    use_scan: bool = True
    batch_size: int | None = None

    @property
    def limit_bytes(self) -> int:
        return int(USABLE_FRACTION * self.device_memory_gb * 1e9)

    @property
    def least_batch(self) -> int:
        """The smallest batch that a patch has to fit with."""
        return MIN_BATCH if self.batch_size is None else self.batch_size

    @property
    def limits(self) -> str:
        """What a patch has to fit, in words."""
        return "the memory" if self.train_hours is None else "the memory and the hours"


@dataclass(frozen=True)
class TrainingStep:
    """A training step: a network on a patch, and what it takes with a batch of some size."""

    task: PlanTask
    network: NetworkPlan
    patch_size: tuple[int, ...]

    @classmethod
    def of(cls, task: PlanTask, pooling: PoolingPlan, stem: Stem) -> TrainingStep:
        return cls(task, network_plan(task.family, pooling, stem=stem, use_scan=task.use_scan), pooling.patch_size)

    def memory(self, batch: int) -> Memory:
        return training_memory(self.network, self.patch_size, self.task.in_channels, self.task.out_channels, batch)

    def bytes(self, batch: int) -> int:
        return self.memory(batch).total

    def work(self, batch: int) -> Work:
        return training_work(self.network, self.patch_size, self.task.in_channels, self.task.out_channels, batch)

    def hours(self, batch: int) -> float:
        """Hours in which enough steps fit."""
        return LEAST_STEPS * self.work(batch).seconds(self.task.machine) / STEP_FRACTION / 3600

    def in_time(self, batch: int) -> bool:
        """Whether enough steps fit into the hours; always without a limit."""
        return self.task.train_hours is None or self.hours(batch) <= self.task.train_hours

    def refusal(self, batch: int) -> str | None:
        """What it needs more of than there is, or None."""
        needed, task = self.bytes(batch), self.task
        if needed > task.limit_bytes:
            return f"needs {needed / USABLE_FRACTION / 1e9:.3g} GB, the device has {task.device_memory_gb:g} GB"
        if task.train_hours is None or self.in_time(batch):
            return None
        return (
            f"needs {_up(self.hours(batch)):g} hours for {LEAST_STEPS} steps on {task.machine.name}, "
            f"--train-hours is {task.train_hours:g}"
        )


class TooSlow(ConfigError):
    """Not even the smallest patch leaves enough steps in the hours."""


def _up(hours: float) -> float:
    """Hours rounded up to three digits, so that what a message names is enough."""
    size = 10 ** (math.floor(math.log10(hours)) - 2)
    return float(f"{math.ceil(hours / size) * size:.3g}")
