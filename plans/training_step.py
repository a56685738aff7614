"""Limits of a training step in memory and time, its cost, and the batch size within the limits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from medmamba.errors import ConfigError
from medmamba.plans.cost.machines import Machine, machine
from medmamba.plans.cost.step import StepCost, step_cost
from medmamba.plans.families import Family
from medmamba.plans.network import Stem, network_plan
from medmamba.plans.options import LEAST_STEPS, STEP_FRACTION, PlanOptions
from medmamba.plans.patch import PoolingPlan
from medmamba.plans.schema import Decision, NetworkPlan

USABLE_FRACTION = 0.9
"""Fraction of the device memory that a training step may use; the rest is for the driver, the library and fragments."""

REFERENCE_BATCH = {2: 12, 3: 2}
"""Patches per batch at which nnU-Net's reference memory was set, and our largest batch: at equal time, more steps serve
better than larger batches. Source: nnU-Net 2.8.1, UNet_reference_val_corresp_bs."""

MIN_BATCH = 2
"""Source: nnU-Net, UNet_min_batch_size."""

DATASET_FRACTION = 0.05
"""Largest fraction of the dataset's voxels in one batch. Source: nnU-Net, max_dataset_covered."""


@dataclass(frozen=True)
class PlanTask:
    """Input of the planning of every grid: the network, its channels, and the user's options."""

    family: Family
    in_channels: int
    out_channels: int
    options: PlanOptions

    @cached_property
    def machine(self) -> Machine:
        return machine(self.options.machine)

    @property
    def limit_bytes(self) -> int:
        return int(USABLE_FRACTION * self.options.device_memory_gb * 1e9)

    @property
    def least_batch(self) -> int:
        """The smallest batch that a patch has to fit with."""
        return self.options.batch_size or MIN_BATCH

    @property
    def limits(self) -> str:
        """What a patch has to fit, in words."""
        return "the memory" if self.options.train_hours is None else "the memory and the hours"


@dataclass(frozen=True)
class TrainingStep:
    """A training step: a network on a patch, and what it takes with a batch of some size."""

    task: PlanTask
    network: NetworkPlan
    patch_size: tuple[int, ...]

    @classmethod
    def of(cls, task: PlanTask, pooling: PoolingPlan, stem: Stem) -> "TrainingStep":
        network = network_plan(task.family, pooling, stem=stem, use_scan=task.options.use_scan)
        return cls(task, network, pooling.patch_size)

    def cost(self, batch: int) -> StepCost:
        return step_cost(self.network, self.patch_size, self.task.in_channels, self.task.out_channels, batch)

    def bytes(self, batch: int) -> int:
        return self.cost(batch).peak

    def hours(self, batch: int) -> float:
        """Hours in which enough steps fit."""
        return LEAST_STEPS * self.cost(batch).seconds(self.task.machine) / STEP_FRACTION / 3600

    def in_time(self, batch: int) -> bool:
        """Whether enough steps fit into the hours; always without a limit."""
        limit = self.task.options.train_hours
        return limit is None or self.hours(batch) <= limit

    def refusal(self, batch: int) -> str | None:
        """What it needs more of than there is, or None."""
        needed, task = self.bytes(batch), self.task
        if needed > task.limit_bytes:
            return f"needs {needed / USABLE_FRACTION / 1e9:.3g} GB, the device has {task.options.device_memory_gb:g} GB"
        if self.in_time(batch):
            return None
        return (
            f"needs {_up(self.hours(batch)):g} hours for {LEAST_STEPS} steps on {task.machine.name}, "
            f"--train-hours is {task.options.train_hours:g}"
        )


class TooSlow(ConfigError):
    """Not even the smallest patch leaves enough steps in the hours."""


def choose_batch_size(step: TrainingStep, dataset_voxels: float) -> tuple[int, Decision]:
    """The batch size: the given one, or by rule the largest in memory, at most the reference.

    Raises ConfigError for a given one that does not fit, with the largest that does.
    """
    limit_bytes, given = step.task.limit_bytes, step.task.options.batch_size
    if given is not None:
        if (refusal := step.refusal(given)) is not None:
            largest = next((size for size in range(1, 4096) if step.refusal(size + 1) is not None), 4096)
            raise ConfigError(
                f"batch size {given}: a training step on {times(step.patch_size)} {refusal}. "
                f"Largest that fits: {largest}."
            )
        return given, decision_as_given(
            "batch_size", given, {"step_bytes": step.bytes(given), "limit_bytes": limit_bytes}
        )
    largest = REFERENCE_BATCH[len(step.patch_size)]
    fitting = max((size for size in range(1, largest + 1) if step.bytes(size) <= limit_bytes), default=0)
    most, timed = fitting, {}
    if step.task.options.train_hours is not None:
        most = max((size for size in range(1, fitting + 1) if step.in_time(size)), default=0)
        timed = {"of_these_in_hours": most}
    covering = round(dataset_voxels * DATASET_FRACTION / math.prod(step.patch_size))
    batch_size = max(min(most, covering), MIN_BATCH)
    if covering < MIN_BATCH:
        reason = (
            f"The dataset is small: {MIN_BATCH} is the least that a batch needs, although it is over "
            f"{DATASET_FRACTION:.0%} of it."
        )
    elif most < MIN_BATCH:
        reason = f"{MIN_BATCH} is the least that a batch needs."
    elif covering < most:
        reason = f"{DATASET_FRACTION:.0%} of the dataset's voxels: larger batches would repeat the same images."
    elif most < fitting:
        reason = "As many patches as leave enough steps in the hours."
    elif fitting == largest:
        reason = f"More steps with batches of {largest} serve better than larger batches in the same time."
    else:
        reason = "As many patches as the memory holds."
    return batch_size, Decision(
        name="batch_size",
        value=batch_size,
        inputs={
            "fits_in_memory_up_to_largest": fitting,
            **timed,
            "covers_dataset_fraction": covering,
            "largest": largest,
            "smallest": MIN_BATCH,
            "step_bytes": step.bytes(batch_size),
            "limit_bytes": limit_bytes,
        },
        rule=f"the least of: what fits, {DATASET_FRACTION:.0%} of the dataset's voxels, the reference batch "
        f"of {largest}; at least {MIN_BATCH}",
        reason=reason,
        source="nnU-Net 2.8.1; the upper bound is ours",
    )


def decision_as_given(name: str, value: object, inputs: dict[str, object]) -> Decision:
    """The decision about a number that the user has fixed."""
    return Decision(
        name=name,
        value=value,
        inputs=inputs,
        rule="as given",
        reason="Chosen by the user; checked against the network's strides and the memory.",
        source="user",
    )


def times(numbers: Sequence[int]) -> str:
    """A patch as text: 64x96x96."""
    return "x".join(str(number) for number in numbers)


def _up(hours: float) -> float:
    """Hours rounded up to three digits, so that what a message names is enough."""
    size = 10 ** (math.floor(math.log10(hours)) - 2)
    return float(f"{math.ceil(hours / size) * size:.3g}")
