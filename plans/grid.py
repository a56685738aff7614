"""The plan of one grid: the patch, network and batch that fit the memory at a given spacing."""

import math
from collections.abc import Sequence

from medmamba.errors import ConfigError
from medmamba.plans.cost.step import cost_decisions
from medmamba.plans.network import Stem, network_decisions
from medmamba.plans.options import LEAST_STEPS, STEP_FRACTION
from medmamba.plans.patch import INITIAL_EDGE, PatchSearch, PoolingPlan, initial_patch_size, plan_pooling, search_patch
from medmamba.plans.schema import Configuration, Decision
from medmamba.plans.training_step import (
    USABLE_FRACTION,
    PlanTask,
    TooSlow,
    TrainingStep,
    choose_batch_size,
    decision_as_given,
    times,
)

SMALL_VIEW = 0.05
"""Fraction of the median image: a patch that covers less sees too little, and what it sees more cheaply is considered
(a strided stem; with network "auto" the plain U-Net)."""

LEAST_EDGE = 8
"""Voxels: the search does not shorten an axis below this, a network that sees less learns nothing of use."""

WORTH_STRIDING = 1.5
"""A strided stem gives up detail, so its patch must be this many times larger to be chosen."""


def plan_grid(
    task: PlanTask,
    spacing: Sequence[float],
    median_shape: Sequence[float],
    dataset_voxels: float,
    patch_size: Sequence[int] | None = None,
) -> Configuration:
    """Plan the grid of ``spacing`` (plan axes) on which the median image has ``median_shape`` voxels.

    ``patch_size`` fixes the patch instead of searching it. Raises ConfigError if nothing fits into the memory, with
    the nearest choice that does.
    """
    if patch_size is None:
        pooling, stem, decisions = _search(task, spacing, median_shape)
    else:
        pooling, stem, decisions = _fixed(task, spacing, median_shape, patch_size)
    step = TrainingStep.of(task, pooling, stem)
    batch, batch_decision = choose_batch_size(step, dataset_voxels)
    return Configuration(
        name=f"{len(spacing)}d",
        spatial_dims=step.network.spatial_dims,
        spacing_mm=list(spacing),
        median_shape=list(median_shape),
        patch_size=list(step.patch_size),
        batch_size=batch,
        batch_dice=False,
        network=step.network,
        previous_stage=None,
        decisions=[
            *decisions,
            *network_decisions(step.network, task.family, spacing, pooling),
            batch_decision,
            *cost_decisions(step.cost(batch), task.options.device_memory_gb, task.machine),
        ],
    )


def _search(
    task: PlanTask, spacing: Sequence[float], median: Sequence[float]
) -> tuple[PoolingPlan, Stem, list[Decision]]:
    """The full-resolution patch if it covers enough of the image, else the larger one that a strided stem allows.

    Returns the patch, its stem, and the decisions about both.
    """

    def search(stem: Stem) -> PatchSearch:
        return search_patch(
            spacing,
            median,
            cost=lambda pooling: TrainingStep.of(task, pooling, stem).bytes(task.least_batch),
            limit=task.limit_bytes,
            max_pools=task.family.max_pools,
            least_edge=LEAST_EDGE,
            in_time=lambda pooling: TrainingStep.of(task, pooling, stem).in_time(task.least_batch),
        )

    full = search("conv")
    view = math.prod(full.patch_size) / math.prod(median)
    inputs: dict[str, object] = {"full_resolution_fits": full.fits, "full_resolution_sees": round(view, 6)}
    found, reason = full, ""
    stem: Stem = "conv"
    if task.family.kind != "scan":
        reason = "The network has no strided stem."
    elif full.fits and view >= SMALL_VIEW:
        reason = f"A patch at full resolution fits {task.limits} and sees {min(view, 1):.0%} of the image."
    else:
        strided = search("patch")
        larger = math.prod(strided.patch_size) / math.prod(full.patch_size)
        inputs |= {"strided_fits": strided.fits, "strided_times_larger": round(larger, 6)}
        if strided.fits and (not full.fits or larger >= WORTH_STRIDING):
            seen = f"would see only {view:.1%} of the image" if full.fits else f"does not fit {task.limits}"
            found, stem = strided, "patch"
            reason = f"A full-resolution patch {seen}; with a strided stem it is {larger:.2g} times larger."
        else:
            reason = f"A patch at full resolution sees {view:.1%} of the image; a strided stem would add little."
    if not found.fits:
        raise _nothing_fits(task, full)
    strides = task.family.kind == "scan"
    stem_decision = Decision(
        name="stem",
        value=stem,
        inputs=inputs,
        rule=f"full-resolution convolutions; a strided stem where their patch does not fit, or sees under "
        f"{SMALL_VIEW:.0%} of the image while the strided stem's is at least {WORTH_STRIDING:g} times as large"
        if strides
        else "full-resolution convolutions",
        reason=reason,
        source="medmamba" if strides else task.family.source,
    )
    return found.pooling, stem, [_patch_decision(task, found, spacing, median), stem_decision]


def _nothing_fits(task: PlanTask, search: PatchSearch) -> ConfigError:
    """The error for a memory or a time that not even the smallest patch fits."""
    step, batch = TrainingStep.of(task, search.pooling, "conv"), task.least_batch
    text = f"cannot fit {task.family.name}; even a patch of {times(search.patch_size)} with a batch of {batch} "
    text += f"{step.refusal(batch)}."
    if step.bytes(batch) > task.limit_bytes:
        memory = f"device memory of {task.options.device_memory_gb:g} GB"
        return ConfigError(f"{memory}: {text} Give more device memory or a smaller batch.")
    return TooSlow(f"--train-hours: {text} Give more hours or a faster --machine.")


def _fixed(
    task: PlanTask, spacing: Sequence[float], median: Sequence[float], patch: Sequence[int]
) -> tuple[PoolingPlan, Stem, list[Decision]]:
    """The given patch; raises ConfigError, with the nearest valid one, if strides or limits do not allow it."""
    pooling = plan_pooling(spacing, patch, max_pools=task.family.max_pools)
    if list(pooling.patch_size) != list(patch):
        below = [n // d * d or d for n, d in zip(patch, pooling.divisor, strict=True)]
        raise ConfigError(
            f"patch size {times(patch)}: the network halves its axes {times(pooling.num_pool_per_axis)} times, so "
            f"it must be a multiple of {times(pooling.divisor)}. Nearest: {times(below)} or "
            f"{times(pooling.patch_size)}."
        )
    view = min(math.prod(patch) / math.prod(median), 1.0)
    stems: tuple[Stem, ...] = ("conv", "patch") if task.family.kind == "scan" else ("conv",)
    steps = {stem: TrainingStep.of(task, pooling, stem) for stem in stems}
    fitting = [stem for stem in stems if steps[stem].refusal(task.least_batch) is None]
    if not fitting and task.options.batch_size is not None and steps["conv"].refusal(1) is None:
        fitting = ["conv"]  # the patch alone would fit: the batch has to change, and is refused by the caller
    if not fitting:
        nearest, _, _ = _search(task, spacing, median)
        raise ConfigError(
            f"patch size {times(patch)}: a training step with a batch of {task.least_batch} "
            f"{steps[stems[-1]].refusal(task.least_batch)}. Nearest that fits: {times(nearest.patch_size)}."
        )
    stem = fitting[0]
    inputs: dict[str, object] = {"patch_size": list(patch), "full_resolution_fits": stem == "conv"}
    reason = f"The given patch fits {task.limits} only with a strided stem."
    if stem == "conv":
        reason = f"The given patch fits {task.limits} at full resolution; it sees {view:.0%} of the image."
    stem_decision = Decision(
        name="stem",
        value=stem,
        inputs=inputs,
        rule="full-resolution convolutions if the given patch fits with them, else a strided stem",
        reason=reason,
        source="medmamba",
    )
    return pooling, stem, [decision_as_given("patch_size", list(patch), {"median_shape": list(median)}), stem_decision]


def _patch_decision(task: PlanTask, search: PatchSearch, spacing: Sequence[float], median: Sequence[float]) -> Decision:
    whole = all(edge >= size for edge, size in zip(search.patch_size, median, strict=True))
    view = min(math.prod(search.patch_size) / math.prod(median), 1.0)
    if whole:
        reason = f"The whole typical image fits {task.limits}, so the network sees all of it at once."
    else:
        reason = (
            f"The largest patch in the image's proportions that fits {task.limits}; it sees {view:.0%} of the image."
        )
    timed: dict[str, object] = {}
    if task.options.train_hours is not None:
        timed = {
            "train_hours": task.options.train_hours,
            "least_steps": LEAST_STEPS,
            "machine": task.machine.name,
            "patch_for_memory": list(search.within(task.limit_bytes)),
        }
    dims = len(spacing)
    return Decision(
        name="patch_size",
        value=list(search.patch_size),
        inputs={
            "spacing": list(spacing),
            "median_shape": list(median),
            "initial_patch": initial_patch_size(spacing, median),
            "max_pools": task.family.max_pools,
            "patches_tried": len(search.steps),
            "device_memory_gb": task.options.device_memory_gb,
            "step_bytes_at_batch": [search.cost, task.least_batch],
            **timed,
        },
        rule=f"equal edges in mm with the content of {'x'.join([str(INITIAL_EDGE[dims])] * dims)} voxels, clipped to "
        f"the median image; the axis that covers most of it is shortened, not below {LEAST_EDGE} voxels, until a "
        f"training step needs at most {USABLE_FRACTION:.0%} of the device memory"
        + (f" and {LEAST_STEPS} steps take {STEP_FRACTION:.0%} of the hours" if timed else ""),
        reason=reason,
        source="nnU-Net 2.8.1, with the costs of medmamba.plans.cost.step",
    )
