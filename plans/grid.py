"""The plan of one grid: the patch, network and batch that fit the memory at a given spacing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from medmamba.errors import ConfigError
from medmamba.plans.batch import choose_batch_size
from medmamba.plans.cost.memory import Memory
from medmamba.plans.cost.step_time import time_decision
from medmamba.plans.network import Stem, network_decisions
from medmamba.plans.patch import PatchSearch, initial_patch_size, search_patch
from medmamba.plans.pooling import Topology, plan_topology
from medmamba.plans.schema import Decision, NetworkPlan
from medmamba.plans.training_length import LEAST_STEPS, STEP_FRACTION
from medmamba.plans.training_step import USABLE_SHARE, Step, Task, TooSlow

SMALL_VIEW = 0.05
"""Below this share of the median image seen by a full-resolution patch, a strided stem is considered."""

LEAST_EDGE = 8
"""Voxels: the search does not shorten an axis below this, a network that sees less learns nothing of use."""

WORTH_STRIDING = 1.5
"""A strided stem gives up detail, so its patch must be this many times larger to be chosen."""


@dataclass(frozen=True)
class Grid:
    """Patch, network and batch on one grid, with their decisions."""

    spacing: tuple[float, ...]
    median_shape: tuple[float, ...]
    patch_size: list[int]
    batch_size: int
    network: NetworkPlan
    decisions: list[Decision]


def plan_grid(
    task: Task,
    spacing: Sequence[float],
    median_shape: Sequence[float],
    dataset_voxels: float,
    patch_size: Sequence[int] | None = None,
) -> Grid:
    """Plan the grid of ``spacing`` (plan axes) on which the median image has ``median_shape`` voxels.

    ``patch_size`` fixes the patch instead of searching it. Raises ConfigError if nothing fits into the memory, with
    the nearest choice that does.
    """
    if patch_size is None:
        search, stem, stem_reason = _search(task, spacing, median_shape)
        patch_decision = _patch_decision(task, search, spacing, median_shape)
    else:
        search, stem, stem_reason = _fixed(task, spacing, median_shape, patch_size)
        patch_decision = _given("patch_size", list(patch_size), {"median_shape": list(median_shape)})
    topology = search.topology
    step = Step.of(task, topology, stem)
    if task.batch_size is None:
        timed = None if task.train_hours is None else step.in_time
        batch, batch_decision = choose_batch_size(step.patch_size, dataset_voxels, step.bytes, task.limit_bytes, timed)
    else:
        batch = task.batch_size
        if (refusal := step.refusal(batch)) is not None:
            raise ConfigError(
                f"batch size {batch}: a training step on {_times(step.patch_size)} {refusal}. "
                f"Largest that fits: {_largest_batch(step)}."
            )
        inputs: dict[str, object] = {"step_bytes": step.bytes(batch), "limit_bytes": task.limit_bytes}
        batch_decision = _given("batch_size", batch, inputs)
    return Grid(
        spacing=tuple(spacing),
        median_shape=tuple(median_shape),
        patch_size=list(step.patch_size),
        batch_size=batch,
        network=step.network,
        decisions=[
            patch_decision,
            *network_decisions(step.network, task.family, topology, stem_reason),
            batch_decision,
            _memory_decision(task, step.memory(batch)),
            time_decision(step.work(batch), task.machine),
        ],
    )


def _search(task: Task, spacing: Sequence[float], median: Sequence[float]) -> tuple[PatchSearch, Stem, str]:
    """The full-resolution patch if it sees enough of the image, else the larger one that a strided stem allows."""
    full = _search_with(task, spacing, median, "conv")
    view = math.prod(full.patch_size) / math.prod(median)
    if full.fits and (view >= SMALL_VIEW or task.family.kind != "scan"):
        return full, "conv", f"A patch at full resolution fits {task.limits} and sees {min(view, 1):.0%} of the image."
    if task.family.kind == "scan":
        strided = _search_with(task, spacing, median, "patch")
        larger = math.prod(strided.patch_size) / math.prod(full.patch_size)
        if strided.fits and (not full.fits or larger >= WORTH_STRIDING):
            seen = f"would see only {view:.1%} of the image" if full.fits else f"does not fit {task.limits}"
            return (
                strided,
                "patch",
                f"A full-resolution patch {seen}; with a strided stem it is {larger:.2g} times larger.",
            )
        if full.fits:
            return (
                full,
                "conv",
                f"A patch at full resolution sees {view:.1%} of the image; a strided stem would add little.",
            )
    smallest = Step.of(task, full.topology, "conv")
    asked = (
        f"cannot fit {task.family.name}; even a patch of {_times(full.patch_size)} with a batch of {task.least_batch}"
    )
    needed = smallest.bytes(task.least_batch)
    if needed > task.limit_bytes:
        raise ConfigError(
            f"device memory of {task.device_memory_gb:g} GB: {asked} needs {needed / USABLE_SHARE / 1e9:.2g} GB. Give "
            f"more device memory or a smaller batch."
        )
    raise TooSlow(
        f"--train-hours: {asked} {smallest.refusal(task.least_batch)}. Give more hours or a faster --machine."
    )


def _search_with(task: Task, spacing: Sequence[float], median: Sequence[float], stem: Stem) -> PatchSearch:
    return search_patch(
        spacing,
        median,
        cost=lambda topology: Step.of(task, topology, stem).bytes(task.least_batch),
        limit=task.limit_bytes,
        max_pools=task.family.max_pools,
        least_edge=LEAST_EDGE,
        in_time=lambda topology: Step.of(task, topology, stem).in_time(task.least_batch),
    )


def _fixed(
    task: Task, spacing: Sequence[float], median: Sequence[float], patch: Sequence[int]
) -> tuple[PatchSearch, Stem, str]:
    topology = plan_topology(spacing, patch, max_pools=task.family.max_pools)
    if list(topology.patch_size) != list(patch):
        below = [n // d * d or d for n, d in zip(patch, topology.divisor, strict=True)]
        raise ConfigError(
            f"patch size {_times(patch)}: the network halves its axes {_times(topology.num_pool_per_axis)} times, so "
            f"it must be a multiple of {_times(topology.divisor)}. Nearest: {_times(below)} or "
            f"{_times(topology.patch_size)}."
        )
    view = min(math.prod(patch) / math.prod(median), 1.0)
    stems: tuple[Stem, ...] = ("conv", "patch") if task.family.kind == "scan" else ("conv",)
    steps = {stem: Step.of(task, topology, stem) for stem in stems}
    for stem, step in steps.items():
        if step.refusal(task.least_batch) is None:
            reason = f"The given patch fits {task.limits} at full resolution; it sees {view:.0%} of the image."
            if stem == "patch":
                reason = f"The given patch fits {task.limits} only with a strided stem."
            return _only(topology, step), stem, reason
    if task.batch_size is not None and steps["conv"].refusal(1) is None:
        # The patch alone would fit: the batch is what has to change, and is refused by the caller.
        return _only(topology, steps["conv"]), "conv", ""
    nearest, _, _ = _search(task, spacing, median)
    raise ConfigError(
        f"patch size {_times(patch)}: a training step with a batch of {task.least_batch} "
        f"{step.refusal(task.least_batch)}. Nearest that fits: {_times(nearest.patch_size)}."
    )


def _only(topology: Topology, step: Step) -> PatchSearch:
    cost = step.bytes(step.task.least_batch)
    return PatchSearch(topology, cost, ((topology.patch_size, cost),), fits=True)


def _largest_batch(step: Step) -> int:
    return next((size for size in range(1, 4096) if step.refusal(size + 1) is not None), 4096)


def _patch_decision(task: Task, search: PatchSearch, spacing: Sequence[float], median: Sequence[float]) -> Decision:
    tried = len(search.steps)
    whole = all(edge >= size for edge, size in zip(search.patch_size, median, strict=True))
    view = min(math.prod(search.patch_size) / math.prod(median), 1.0)
    if whole:
        reason = f"The whole typical image fits {task.limits}, so the network sees all of it at once."
    else:
        reason = (
            f"The largest patch in the image's proportions that fits {task.limits}; it sees {view:.0%} of the image."
        )
    timed: dict[str, object] = {}
    if task.train_hours is not None:
        timed = {
            "train_hours": task.train_hours,
            "least_steps": LEAST_STEPS,
            "machine": task.machine.name,
            "patch_for_memory": list(search.within(task.limit_bytes)),
        }
    return Decision(
        name="patch_size",
        value=list(search.patch_size),
        inputs={
            "spacing": list(spacing),
            "median_shape": list(median),
            "initial_patch": initial_patch_size(spacing, median),
            "patches_tried": tried,
            "device_memory_gb": task.device_memory_gb,
            "step_bytes_at_batch": [search.cost, task.least_batch],
            **timed,
        },
        rule="equal edges in mm, clipped to the median image, the axis that covers most of it shortened until it fits"
        + (f" and {LEAST_STEPS} steps take {STEP_FRACTION:.0%} of the hours" if timed else ""),
        reason=reason,
        source="nnU-Net 2.8.1, with the memory model of medmamba.plans.cost.memory"
        + (" and medmamba.plans.cost.step_time" if timed else ""),
    )


def _memory_decision(task: Task, memory: Memory) -> Decision:
    return Decision(
        name="training_memory_gb",
        value=round(memory.total / 1e9, 3),
        inputs={
            "weights_bytes": memory.weights + memory.gradients,
            "activations_bytes": memory.activations,
            "workspace_bytes": memory.workspace,
            "precision": "float32",
            "optimiser": "adamw",
            "device_memory_gb": task.device_memory_gb,
        },
        rule="weights, gradients and optimiser, plus what each layer keeps for the backward pass, plus its gradients",
        reason=f"One training step in float32 is expected to need {memory.total / 1e9:.2g} of "
        f"{task.device_memory_gb:g} GB.",
        source="medmamba.plans.cost.memory",
    )


def _given(name: str, value: object, inputs: dict[str, object]) -> Decision:
    return Decision(
        name=name,
        value=value,
        inputs=inputs,
        rule="as given",
        reason="Chosen by hand; checked against the network's strides and the memory.",
        source="user",
    )


def _times(numbers: Sequence[int]) -> str:
    return "x".join(str(number) for number in numbers)
