"""The planner: from a fingerprint to a plan, each number with its reason; and the plan for other options (what-if).

nnU-Net's rules decide spacing, axis order, normalisation and which configurations exist; the patch, the network and the
batch follow from the memory model of the chosen network.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from medmamba.errors import ConfigError, InputErrors, counted, unknown_name
from medmamba.plans.automatic_choices import (
    DEFAULT,
    choose_default,
    choose_network,
    choose_normalization,
    one_head_per_label,
)
from medmamba.plans.cost.machines import machine
from medmamba.plans.families import ORIGINALS, family
from medmamba.plans.fingerprint import Fingerprint
from medmamba.plans.grid import plan_grid
from medmamba.plans.manual_configurations import keep_manual_configurations, manual_configurations
from medmamba.plans.mirroring import choose_mirroring, pairs_decision, side_pairs
from medmamba.plans.options import PLANNED, PlanOptions
from medmamba.plans.patch import COVERAGE, WORTHWHILE, LowResolution, search_low_resolution
from medmamba.plans.schema import Configuration, Decision, Plan, Reading
from medmamba.plans.spacing import axis_order, choose_spacing, median_shape, refuse_no_spacing
from medmamba.plans.training_step import PlanTask, TooSlow, times
from medmamba.version import __version__


@dataclass(frozen=True)
class DatasetFacts:
    """What a plan carries about its dataset beside the fingerprint."""

    regions: dict[str, list[str]] | None = None
    """Regions to predict instead of labels: the label names that each joins."""
    region_order: list[str] | None = None
    """Label name that is written for each region; default: the last of its labels."""
    ignore_label: int | None = None
    file_ending: str = ".nii.gz"
    dataset_hash: str = ""
    """SHA-256 over the hashes of all files."""
    reading: Reading = field(default_factory=Reading)


def make_plan(
    fingerprint: Fingerprint,
    options: PlanOptions = PlanOptions(),  # noqa: B008  (frozen)
    facts: DatasetFacts = DatasetFacts(),
    *,
    previous: Plan | None = None,
    network_decision: Decision | None = None,
) -> Plan:
    """Plan a dataset.

    Args:
        options: choices instead of rules; network "auto" is chosen by the rules of medmamba.plans.automatic_choices.
        facts: about the dataset, carried by the plan.
        previous: an earlier plan of this dataset, whose manual configurations are kept.
        network_decision: how the network was chosen, when neither by option nor by rule.

    Raises ConfigError for a combination that cannot work, with the nearest one that can; InputErrors for a fingerprint
    that no plan can be made from.
    """
    refuse_options(options, previous)
    problems = [line for case in fingerprint.cases for line in case.problems()]
    usual = np.median(fingerprint.spacings, axis=0)
    for case in fingerprint.cases if facts.reading.any_spacing else ():
        if (np.abs(np.log10(case.rule_spacing / usual)) > 1).any():
            mm = ", ".join(f"{value:g}" for value in case.rule_spacing)
            problems.append(f"{case.case_id}: spacing {mm} mm, unlike the other cases. Repair the header.")
    if problems:
        count = counted(len(problems), "problem")
        raise InputErrors(*problems, f"{fingerprint.dataset_name}: {count}; no plan was made.")
    network = options.network
    if network == "auto":
        network, network_decision = _automatic(fingerprint, options)
    chosen_family = family(network)
    target, spacing_decision = choose_spacing(fingerprint, options.spacing)
    spacings, shapes = fingerprint.spacings, fingerprint.shapes_after_crop
    order, order_decision = axis_order(target, shapes)
    shape = median_shape(spacings, shapes, target)
    median, target = tuple(shape[axis] for axis in order), tuple(target[axis] for axis in order)
    normalization, normalization_decisions = choose_normalization(fingerprint)
    regions, heads_decisions = one_head_per_label(fingerprint) if facts.regions is None else (facts.regions, [])
    task = PlanTask(chosen_family, len(fingerprint.channel_names), len(regions or fingerprint.labels), options)
    wanted = _wanted(options.configurations, previous)
    made, existence = _configurations(task, target, median, fingerprint, wanted)
    for name, part in made.items():
        mirroring, decision = choose_mirroring(fingerprint.structures, order, part.spatial_dims, options.mirror)
        made[name] = part.model_copy(update={"mirroring": mirroring, "decisions": [*part.decisions, decision]})
    default, default_decisions = choose_default(made, options.train_hours)
    pairs = side_pairs(fingerprint)
    made_plan = Plan(
        medmamba_version=__version__,
        dataset_name=fingerprint.dataset_name,
        dataset_hash=facts.dataset_hash,
        fingerprint_hash=fingerprint.content_hash or fingerprint.hash(),
        channel_names=fingerprint.channel_names,
        labels=fingerprint.labels,
        regions=regions,
        region_order=None if regions is None else facts.region_order or [parts[-1] for parts in regions.values()],
        ignore_label=facts.ignore_label,
        left_right_pairs=[[pair.left, pair.right] for pair in pairs],
        file_ending=facts.file_ending,
        axis_order=order,
        normalization=normalization,
        configurations=made,
        default_configuration=default,
        reading=facts.reading,
        options=options,
        decisions=[
            spacing_decision,
            order_decision,
            *heads_decisions,
            *normalization_decisions,
            pairs_decision(pairs, order),
            *([network_decision] if network_decision else []),
            existence,
            *default_decisions,
        ],
    )
    return made_plan if previous is None else keep_manual_configurations(made_plan, previous)


def what_if(plan: Plan, fingerprint: Fingerprint, **changes: Any) -> Plan:
    """``plan`` made anew with some of its options changed; manual configurations stay.

    ``changes`` are fields of :class:`PlanOptions` by name. Raises ConfigError as make_plan does, and for a plan that
    was not made from this fingerprint.
    """
    if plan.fingerprint_hash != fingerprint.content_hash:
        raise ConfigError(
            "plan.json and fingerprint.json do not belong together, so nothing can be said about other choices. "
            "Run `medmamba plan` again."
        )
    derived = any(decision.name == "heads" for decision in plan.decisions)  # the planner's own regions
    facts = DatasetFacts(**{field.name: getattr(plan, field.name) for field in fields(DatasetFacts)})
    if derived:
        facts = replace(facts, regions=None, region_order=None)
    kept = plan.model_copy(
        update={"configurations": {name: plan.configurations[name] for name in manual_configurations(plan)}}
    )
    return make_plan(fingerprint, PlanOptions.of(plan.options, **changes), facts, previous=kept)


def _automatic(fingerprint: Fingerprint, options: PlanOptions) -> tuple[str, Decision]:
    """The family by the rules, from what a scan network and the baseline would see in this memory and time."""
    given = {name: getattr(options, name) for name in ("device_memory_gb", "spacing", "machine", "train_hours")}
    scan, baseline = (make_plan(fingerprint, PlanOptions(network=name, **given)) for name in (DEFAULT, "plain_unet"))
    target, _ = choose_spacing(fingerprint, options.spacing)
    return choose_network(fingerprint, target, scan.default, baseline.default)


def _configurations(
    task: PlanTask,
    target: Sequence[float],
    median: Sequence[float],
    fingerprint: Fingerprint,
    wanted: Sequence[str],
) -> tuple[dict[str, Configuration], Decision]:
    """The configurations that apply and are wanted, and the decision about which these are.

    ``target`` and ``median`` are spacing and shape of the median image in plan axes.
    """
    n_cases = len(fingerprint.cases)
    voxels = math.prod(median) * n_cases
    patch_size = task.options.patch_size
    patch_for = {len(patch_size): patch_size} if patch_size else {}
    grids: dict[str, Configuration] = {}
    low: LowResolution[Configuration] | None = None
    slow = False
    if "2d" in wanted:
        grids["2d"] = plan_grid(task, target[1:], median[1:], voxels, patch_for.get(2))
    if median[0] != 1 and any(name.startswith("3d") for name in wanted):
        try:
            full = plan_grid(task, target, median, voxels, patch_for.get(3))
            low = search_low_resolution(
                target,
                median,
                full.patch_size,
                plan_grid=lambda s, m, v: plan_grid(task, s, m, v * n_cases),
                patch_of=lambda grid: grid.patch_size,
            )
        except TooSlow:
            if not grids:
                raise
            slow = True
        else:
            grids["3d_fullres"] = full
            if low.grid is not None:
                grids |= {"3d_lowres": low.grid, "3d_cascade_fullres": full}
    grids = {name: grid for name, grid in grids.items() if name in wanted}
    if not grids:
        why = "the 3D patch covers enough of the image without one. Ask for 3d_fullres or 2d."
        if median[0] == 1:
            why = "the images have one slice, so only 2d can be planned. Ask for 2d."
        raise ConfigError(f"configurations {', '.join(wanted) or 'none'}: {why}")
    if patch_size and all(grid.spatial_dims != len(patch_size) for grid in grids.values()):
        first = next(iter(grids.values()))
        raise ConfigError(
            f"patch size {times(patch_size)}: {len(patch_size)} numbers, but {', '.join(grids)} is planned in "
            f"{first.spatial_dims} dimensions. Nearest: {times(first.patch_size)}."
        )
    beside_low = low is not None and low.grid is not None
    made = {name: _configuration(name, grid, beside_low, fingerprint.has_millimetres) for name, grid in grids.items()}
    return made, _existence(list(made), wanted, median, low, slow)


def _configuration(name: str, grid: Configuration, beside_low: bool, has_millimetres: bool) -> Configuration:
    """A configuration on its grid; ``beside_low``: there is a low resolution of the same images."""
    batch_dice = name == "2d" or (beside_low and name != "3d_lowres")
    reason = "No low resolution is planned beside it, so the Dice loss is taken of each patch alone."
    rule = "median over the cases of their shape after resampling, each rounded half to even"
    if name == "2d":
        reason = "A slice may lack a structure, so the Dice loss pools the batch."
    elif batch_dice:
        reason = "A patch sees a small part of the image and may lack a structure, so the Dice loss pools the batch."
    elif name == "3d_lowres":
        reason = "A patch sees much of the image, so the Dice loss is taken of each one alone."
        rule = "the median shape at full resolution, times its spacing over this one, rounded half to even"
    median_shape_decision = Decision(
        name="median_shape",
        value=grid.median_shape,
        inputs={"spacing": grid.spacing_mm, "configuration": name},
        rule=rule,
        reason="The size of a typical image on this grid; it bounds the patch.",
        source="nnU-Net 2.8.1",
    )
    batch_dice_decision = Decision(
        name="batch_dice",
        value=batch_dice,
        inputs={"configuration": name, "beside_low_resolution": beside_low},
        rule="on in 2d, off in 3d_lowres, on in the other 3D configurations only beside a low resolution",
        reason=reason,
        source="nnU-Net 2.8.1",
    )
    return grid.model_copy(
        update={
            "name": name,
            "spacing_mm": grid.spacing_mm if has_millimetres else None,
            "batch_dice": batch_dice,
            "previous_stage": "3d_lowres" if name == "3d_cascade_fullres" else None,
            "decisions": [median_shape_decision, *grid.decisions, batch_dice_decision],
        }
    )


def _existence(
    names: list[str],
    wanted: Sequence[str],
    median: Sequence[float],
    low: LowResolution[Configuration] | None,
    slow: bool,
) -> Decision:
    if median[0] == 1:
        reason = "The images have one slice, so only 2D is planned."
    elif slow:
        reason = "In the hours not even the smallest 3D patch leaves enough steps, so only 2D is planned."
    elif low is None:
        reason = "As asked for."
    elif low.steps == 0:
        reason = f"The 3D patch sees at least {COVERAGE:.0%} of the image, so no low resolution is needed."
    else:
        fewer = f"{low.voxel_ratio:.2g} times fewer voxels"
        reason = f"A patch covers {COVERAGE:.0%} of the image at {fewer}: a low resolution would save too little."
        if low.grid is not None:
            reason = (
                f"The full-resolution patch sees less than {COVERAGE:.0%} of the image, so a low resolution with "
                f"{fewer} gives the context, and a cascade refines it."
            )
    return Decision(
        name="configurations",
        value=names,
        inputs={
            "asked_for": list(wanted),
            "median_shape": list(median),
            "enough_3d_steps_in_the_hours": not slow,
            "coverage_wanted": COVERAGE,
            "lowres_steps": 0 if low is None else low.steps,
            "lowres_times_fewer_voxels": 1.0 if low is None else round(low.voxel_ratio, 6),
        },
        rule=f"of those asked for: 2d always; 3d_fullres unless the images are flat or the hours too few; 3d_lowres "
        f"with its cascade when a patch sees under {COVERAGE:.0%} of the image, and less than that at every grid of "
        f"less than {WORTHWHILE:g} times fewer voxels",
        reason=reason,
        source="nnU-Net 2.8.1",
    )


def refuse_options(options: PlanOptions, previous: Plan | None = None) -> None:
    """Raises ConfigError for choices that no dataset can be planned with, so that they are known before one is read."""
    machine(options.machine)
    if options.network in ORIGINALS:
        raise ConfigError(
            f"network {options.network!r} is built for trained models only. Plan with {ORIGINALS[options.network]}."
        )
    if options.network != "auto" and not options.use_scan and not family(options.network).has_scan:
        raise ConfigError(f"network {options.network!r} has no scan to leave out. Plan it as it is.")
    wanted = _wanted(options.configurations, previous)
    if "3d_cascade_fullres" in wanted and "3d_lowres" not in wanted:
        raise ConfigError("configuration 3d_cascade_fullres needs 3d_lowres before it. Ask for both.")
    if options.spacing is not None:
        refuse_no_spacing(options.spacing)


def _wanted(configurations: Sequence[str] | None, previous: Plan | None) -> list[str]:
    """The configurations to plan; manual ones may be named as well and are kept in any case."""
    if configurations is None or list(configurations) == ["all"]:
        return list(PLANNED)
    mine = manual_configurations(previous)
    for name in configurations:
        if name not in PLANNED and name not in mine:
            raise unknown_name("configuration", name, [*PLANNED, *mine])
    return [name for name in configurations if name in PLANNED] or list(PLANNED)
