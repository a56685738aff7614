"""The plan of one grid: the patch, network and batch that fit the memory at a given spacing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from medmamba.errors import ConfigError
from medmamba.plans.batch import MIN_BATCH, choose_batch_size
from medmamba.plans.families import Family
from medmamba.plans.memory import training_memory
from medmamba.plans.network import Stem, network_decisions, network_plan
from medmamba.plans.patch import PatchSearch, initial_patch_size, search_patch
from medmamba.plans.schema import Decision, NetworkPlan
from medmamba.plans.topology import Topology, plan_topology

USABLE_SHARE = 0.9
"""Share of the device memory that a training step may use; the rest is for the driver, the library and fragments."""

SMALL_VIEW = 0.05
"""Below this share of the median image seen by a full-resolution patch, a strided stem is considered."""

LEAST_EDGE = 8
"""Voxels: the search does not shorten an axis below this, a network that sees less learns nothing of use."""

WORTH_STRIDING = 1.5
"""A strided stem gives up detail, so its patch must be this many times larger to be chosen."""


@dataclass(frozen=True)
class Task:
    """What is asked of every grid: the network, the memory, and what the user fixed."""

    family: Family
    in_channels: int
    out_channels: int
    device_memory_gb: float
    use_scan: bool = True
    batch_size: int | None = None

    @property
    def limit_bytes(self) -> int:
        return int(USABLE_SHARE * self.device_memory_gb * 1e9)

    def step_bytes(self, network: NetworkPlan, patch_size: Sequence[int], batch_size: int) -> int:
        """Memory of one training step."""
        return training_memory(
            network,
            patch_size,
            in_channels=self.in_channels,
            out_channels=self.out_channels,
            batch_size=batch_size,
        ).total


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
    patch = list(topology.patch_size)
    network = network_plan(task.family, topology, stem=stem, use_scan=task.use_scan)

    def step_bytes(batch: int) -> int:
        return task.step_bytes(network, patch, batch)

    if task.batch_size is None:
        batch, batch_decision = choose_batch_size(patch, dataset_voxels, step_bytes, task.limit_bytes)
    else:
        batch = task.batch_size
        _refuse_large_batch(task, patch, step_bytes(batch), max_batch=_largest_batch(step_bytes, task.limit_bytes))
        batch_decision = _given("batch_size", batch, {"step_bytes": step_bytes(batch), "limit_bytes": task.limit_bytes})
    return Grid(
        spacing=tuple(spacing),
        median_shape=tuple(median_shape),
        patch_size=patch,
        batch_size=batch,
        network=network,
        decisions=[
            patch_decision,
            *network_decisions(network, task.family, topology, stem_reason),
            batch_decision,
            _memory_decision(task, network, patch, batch),
        ],
    )


def _search(task: Task, spacing: Sequence[float], median: Sequence[float]) -> tuple[PatchSearch, Stem, str]:
    """The full-resolution patch if it sees enough of the image, else the larger one that a strided stem allows."""
    full = _search_with(task, spacing, median, "conv")
    view = math.prod(full.patch_size) / math.prod(median)
    if full.fits and (view >= SMALL_VIEW or task.family.kind != "scan"):
        return full, "conv", f"A patch at full resolution fits the memory and sees {min(view, 1):.0%} of the image."
    if task.family.kind == "scan":
        strided = _search_with(task, spacing, median, "patch")
        larger = math.prod(strided.patch_size) / math.prod(full.patch_size)
        if strided.fits and (not full.fits or larger >= WORTH_STRIDING):
            seen = f"would see only {view:.1%} of the image" if full.fits else "does not fit the memory"
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
    smallest = _step_bytes(task, full.topology, "conv")
    raise ConfigError(
        f"device memory of {task.device_memory_gb:g} GB: cannot fit {task.family.name}; even a patch of "
        f"{_times(full.patch_size)} with a batch of {_least_batch(task)} needs "
        f"{smallest / USABLE_SHARE / 1e9:.2g} GB. Give more device memory or a smaller batch."
    )


def _search_with(task: Task, spacing: Sequence[float], median: Sequence[float], stem: Stem) -> PatchSearch:
    return search_patch(
        spacing,
        median,
        cost=lambda topology: _step_bytes(task, topology, stem),
        limit=task.limit_bytes,
        max_pools=task.family.max_pools,
        least_edge=LEAST_EDGE,
    )


def _step_bytes(task: Task, topology: Topology, stem: Stem, batch_size: int | None = None) -> int:
    network = network_plan(task.family, topology, stem=stem, use_scan=task.use_scan)
    return task.step_bytes(network, topology.patch_size, batch_size or _least_batch(task))


def _least_batch(task: Task) -> int:
    return MIN_BATCH if task.batch_size is None else task.batch_size


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
    for stem in stems:
        cost = _step_bytes(task, topology, stem)
        if cost <= task.limit_bytes:
            search = PatchSearch(topology, cost, ((topology.patch_size, cost),), fits=True)
            reason = f"The given patch fits the memory at full resolution; it sees {view:.0%} of the image."
            if stem == "patch":
                reason = "The given patch fits the memory only with a strided stem."
            return search, stem, reason
    if task.batch_size is not None and _step_bytes(task, topology, "conv", 1) <= task.limit_bytes:
        # The patch alone would fit: the batch is what has to change, and is refused by the caller.
        return PatchSearch(topology, cost, ((topology.patch_size, cost),), fits=False), "conv", ""
    nearest, _, _ = _search(task, spacing, median)
    raise ConfigError(
        f"patch size {_times(patch)}: a training step with a batch of {_least_batch(task)} needs "
        f"{cost / USABLE_SHARE / 1e9:.3g} GB, the device has {task.device_memory_gb:g} GB. Nearest that fits: "
        f"{_times(nearest.patch_size)}."
    )


def _largest_batch(step_bytes: object, limit: int) -> int:
    size = 0
    while size < 4096 and step_bytes(size + 1) <= limit:  # type: ignore[operator]
        size += 1
    return size


def _refuse_large_batch(task: Task, patch: Sequence[int], needed: int, max_batch: int) -> None:
    if needed > task.limit_bytes:
        raise ConfigError(
            f"batch size {task.batch_size}: a training step on {_times(patch)} needs {needed / USABLE_SHARE / 1e9:.3g} "
            f"GB, the device has {task.device_memory_gb:g} GB. Largest that fits: {max_batch}."
        )


def _patch_decision(task: Task, search: PatchSearch, spacing: Sequence[float], median: Sequence[float]) -> Decision:
    tried = len(search.steps)
    whole = all(edge >= size for edge, size in zip(search.patch_size, median, strict=True))
    view = min(math.prod(search.patch_size) / math.prod(median), 1.0)
    if whole:
        reason = "The whole typical image fits the memory, so the network sees all of it at once."
    else:
        reason = f"The largest patch in the image's proportions that fits the memory; it sees {view:.0%} of the image."
    return Decision(
        name="patch_size",
        value=list(search.patch_size),
        inputs={
            "spacing": list(spacing),
            "median_shape": list(median),
            "initial_patch": initial_patch_size(spacing, median),
            "patches_tried": tried,
            "device_memory_gb": task.device_memory_gb,
            "step_bytes_at_batch": [search.cost, _least_batch(task)],
        },
        rule="equal edges in mm, clipped to the median image, the axis that covers most of it shortened until it fits",
        reason=reason,
        source="nnU-Net 2.8.1, with the memory model of medmamba.plans.memory",
    )


def _memory_decision(task: Task, network: NetworkPlan, patch: Sequence[int], batch: int) -> Decision:
    memory = training_memory(
        network, patch, in_channels=task.in_channels, out_channels=task.out_channels, batch_size=batch
    )
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
        source="medmamba.plans.memory",
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
