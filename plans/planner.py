"""The planner: from a fingerprint to a plan, each number with its reason.

nnU-Net's rules decide spacing, axis order, normalisation and which configurations exist; the patch, the network and the
batch follow from the memory model of the chosen network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from medmamba.errors import ConfigError, InputErrors, unknown_name
from medmamba.geometry import LARGEST_SPACING_MM
from medmamba.plans.choose_network import DEFAULT, choose_network
from medmamba.plans.cost.machines import machine
from medmamba.plans.default_configuration import choose_default
from medmamba.plans.families import family
from medmamba.plans.fingerprint import LEAST_SPACING_MM, Fingerprint
from medmamba.plans.grid import LEAST_EDGE, GridPlan, plan_grid
from medmamba.plans.left_right import mirror_decision, side_pairs
from medmamba.plans.lowres import COVERAGE, WORTHWHILE, LowResolution, search_low_resolution
from medmamba.plans.manual_configurations import keep_manual_configurations, manual_configurations
from medmamba.plans.mirroring import choose_mirroring
from medmamba.plans.normalization import choose_normalization
from medmamba.plans.options import PLANNED, PlanOptions
from medmamba.plans.partial_annotation import one_head_per_label, partly_annotated
from medmamba.plans.schema import Configuration, Decision, Plan
from medmamba.plans.spacing import axis_order, median_shape, target_spacing
from medmamba.plans.training_step import PlanTask, TooSlow
from medmamba.version import __version__


@dataclass(frozen=True)
class DatasetFacts:
    """What a plan carries about its dataset beside the fingerprint."""

    regions: Mapping[str, Sequence[str]] | None = None
    """Regions to predict instead of labels: the label names that each joins."""
    region_order: Sequence[str] | None = None
    """Label name that is written for each region; default: the last of its labels."""
    ignore_label: int | None = None
    file_ending: str = ".nii.gz"
    dataset_hash: str = ""
    """SHA-256 over the hashes of all files."""


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
        options: choices instead of rules; network "auto" is chosen by the rules of medmamba.plans.choose_network.
        facts: about the dataset, carried by the plan.
        previous: an earlier plan of this dataset, whose manual configurations are kept.
        network_decision: how the network was chosen, when neither by option nor by rule.

    Raises ConfigError for a combination that cannot work, with the nearest one that can; InputErrors for a fingerprint
    that no plan can be made from.
    """
    if problems := [line for case in fingerprint.cases for line in case.problems()]:
        raise InputErrors(problems, summary=f"{fingerprint.dataset_name}: {len(problems)} problems; no plan was made.")
    _refuse_bad_spacing(fingerprint, options.spacing)
    network = options.network
    if network == "auto":
        network, network_decision = _automatic(fingerprint, options)
    chosen_family = family(network)
    if not options.use_scan and not chosen_family.has_scan:
        raise ConfigError(f"network {network!r} has no scan to leave out. Plan it as it is.")
    target, spacing_decision = _target_spacing(fingerprint, options.spacing)
    spacings, shapes = fingerprint.spacings, fingerprint.shapes_after_crop
    order, order_decision = axis_order(target, shapes)
    shape = median_shape(spacings, shapes, target)
    median, target = tuple(shape[axis] for axis in order), tuple(target[axis] for axis in order)
    normalization, normalization_decisions = choose_normalization(fingerprint)

    heads_decisions = []
    if facts.regions is None and (partly := partly_annotated(fingerprint)):
        regions, region_order, decision = one_head_per_label(fingerprint, partly)
        facts = replace(facts, regions=regions, region_order=region_order)
        heads_decisions = [decision]
    task = PlanTask(
        family=chosen_family,
        in_channels=len(fingerprint.channel_names),
        out_channels=len(facts.regions) if facts.regions else len(fingerprint.labels),
        device_memory_gb=options.device_memory_gb,
        machine=machine(options.machine),
        train_hours=options.train_hours,
        use_scan=options.use_scan,
        batch_size=options.batch_size,
    )
    wanted = _wanted(options.configurations, previous)
    made, existence = _configurations(task, target, median, fingerprint, options.patch_size, wanted)
    names = [name for name in fingerprint.labels if name != "background"]
    for name, part in made.items():
        mirroring, decision = choose_mirroring(names, order, part.spatial_dims, options.mirror)
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
        regions=None if facts.regions is None else {name: list(parts) for name, parts in facts.regions.items()},
        region_order=None
        if facts.regions is None
        else list(facts.region_order or [parts[-1] for parts in facts.regions.values()]),
        ignore_label=facts.ignore_label,
        left_right_pairs=[[pair.left, pair.right] for pair in pairs],
        file_ending=facts.file_ending,
        axis_order=order,
        normalization=normalization,
        configurations=made,
        default_configuration=default,
        options=options,
        decisions=[
            spacing_decision,
            order_decision,
            *heads_decisions,
            *normalization_decisions,
            mirror_decision(pairs, order),
            *([network_decision] if network_decision else []),
            existence,
            *default_decisions,
        ],
    )
    return made_plan if previous is None else keep_manual_configurations(made_plan, previous)


def _automatic(fingerprint: Fingerprint, options: PlanOptions) -> tuple[str, Decision]:
    """The family by the rules, from what a scan network and the baseline would see in this memory and time."""
    given = {name: getattr(options, name) for name in ("device_memory_gb", "spacing", "machine", "train_hours")}
    scan, baseline = (make_plan(fingerprint, PlanOptions(network=name, **given)) for name in (DEFAULT, "plain_unet"))
    target, _ = _target_spacing(fingerprint, options.spacing)
    return choose_network(fingerprint, target, scan.default, baseline.default)


def _target_spacing(fingerprint: Fingerprint, given: Sequence[float] | None) -> tuple[tuple[float, ...], Decision]:
    """Spacing of the full-resolution grid in mm per canonical axis: the given one, or the rule's."""
    target, decision = target_spacing(fingerprint.spacings, fingerprint.shapes_after_crop)
    if given is not None:
        changes = {
            "value": list(given),
            "inputs": {**decision.inputs, "by_rule": decision.value},
            "rule": "as given",
            "reason": "Chosen by the user instead of the rule's value.",
            "source": "user",
        }
        return tuple(given), decision.model_copy(update=changes)
    if not fingerprint.has_millimetres:
        reason = "The images have no millimetres, so pixels stay as they are and nothing is resampled."
        decision = decision.model_copy(update={"reason": reason})
    return target, decision


def _configurations(
    task: PlanTask,
    target: Sequence[float],
    median: Sequence[float],
    fingerprint: Fingerprint,
    patch_size: Sequence[int] | None,
    wanted: Sequence[str],
) -> tuple[dict[str, Configuration], Decision]:
    """The configurations that apply and are wanted, and the decision about which these are.

    ``target`` and ``median`` are spacing and shape of the median image in plan axes.
    """
    n_cases = len(fingerprint.cases)
    voxels = math.prod(median) * n_cases
    patch_for = {dims: patch_size if patch_size and len(patch_size) == dims else None for dims in (2, 3)}
    grids: dict[str, GridPlan] = {}
    low: LowResolution[GridPlan] | None = None
    volumes, slow = median[0] != 1, False
    if "2d" in wanted:
        grids["2d"] = plan_grid(task, target[1:], median[1:], voxels, patch_for[2])
    if volumes and any(name.startswith("3d") for name in wanted):
        try:
            full = plan_grid(task, target, median, voxels, patch_for[3])
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
    if "3d_cascade_fullres" in grids and "3d_lowres" not in grids:
        raise ConfigError("configuration 3d_cascade_fullres needs 3d_lowres before it. Ask for both.")
    if not grids:
        why = "the images have one slice, so only 2d can be planned. Ask for 2d."
        if volumes:
            why = "the 3D patch covers enough of the image without one. Ask for 3d_fullres or 2d."
        raise ConfigError(f"configurations {', '.join(wanted) or 'none'}: {why}")
    if patch_size and all(grid.network.spatial_dims != len(patch_size) for grid in grids.values()):
        first = next(iter(grids.values()))
        raise ConfigError(
            f"patch size {'x'.join(map(str, patch_size))}: {len(patch_size)} numbers, but {', '.join(grids)} is "
            f"planned in {first.network.spatial_dims} dimensions. Nearest: {'x'.join(map(str, first.patch_size))}."
        )
    beside_low = low is not None and low.grid is not None
    made = {name: _configuration(name, grid, beside_low, fingerprint.has_millimetres) for name, grid in grids.items()}
    return made, _existence(list(made), wanted, median, low, slow)


def _configuration(name: str, grid: GridPlan, beside_low: bool, has_millimetres: bool) -> Configuration:
    """A configuration on its grid; ``beside_low``: there is a low resolution of the same images."""
    batch_dice = name == "2d" or (beside_low and name != "3d_lowres")
    return Configuration(
        name=name,
        spatial_dims=grid.network.spatial_dims,
        spacing_mm=list(grid.spacing) if has_millimetres else None,
        median_shape=list(grid.median_shape),
        patch_size=grid.patch_size,
        batch_size=grid.batch_size,
        batch_dice=batch_dice,
        network=grid.network,
        previous_stage="3d_lowres" if name == "3d_cascade_fullres" else None,
        decisions=[_median_shape(name, grid), *grid.decisions, _batch_dice(name, batch_dice, beside_low)],
    )


def _median_shape(name: str, grid: GridPlan) -> Decision:
    low = name == "3d_lowres"
    return Decision(
        name="median_shape",
        value=list(grid.median_shape),
        inputs={"spacing": list(grid.spacing), "configuration": name},
        rule="the median shape at full resolution, times its spacing over this one, rounded half to even"
        if low
        else "median over the cases of their shape after resampling, rounded half to even",
        reason="The size of a typical image on this grid; it bounds the patch.",
        source="nnU-Net 2.8.1",
    )


def _batch_dice(name: str, value: bool, beside_low: bool) -> Decision:
    if name == "2d":
        reason = "A slice may lack a structure, so the Dice loss pools the batch."
    elif value:
        reason = "A patch sees a small part of the image and may lack a structure, so the Dice loss pools the batch."
    elif name == "3d_lowres":
        reason = "A patch sees much of the image, so the Dice loss is taken of each one alone."
    else:
        reason = "No low resolution is planned beside it, so the Dice loss is taken of each patch alone."
    return Decision(
        name="batch_dice",
        value=value,
        inputs={"configuration": name, "beside_low_resolution": beside_low},
        rule="on in 2d, off in 3d_lowres, on in the other 3D configurations only beside a low resolution",
        reason=reason,
        source="nnU-Net 2.8.1",
    )


def _existence(
    names: list[str], wanted: Sequence[str], median: Sequence[float], low: LowResolution[GridPlan] | None, slow: bool
) -> Decision:
    if median[0] == 1:
        reason = "The images have one slice, so only 2D is planned."
    elif slow:
        reason = "In the hours not even the smallest 3D patch leaves enough steps, so only 2D is planned."
    elif low is None:
        reason = "As asked for."
    elif low.steps == 0:
        reason = f"The 3D patch sees at least {COVERAGE:.0%} of the image, so no low resolution is needed."
    elif low.grid is None:
        reason = (
            f"A patch covers {COVERAGE:.0%} of the image already at {low.voxel_ratio:.2g} times fewer voxels: too "
            f"little difference for a low resolution."
        )
    else:
        reason = (
            f"The full-resolution patch sees less than {COVERAGE:.0%} of the image, so a low resolution with "
            f"{low.voxel_ratio:.2g} times fewer voxels gives the context, and a cascade refines it."
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


def _wanted(configurations: Sequence[str] | None, previous: Plan | None) -> list[str]:
    """The configurations to plan; manual ones may be named as well and are kept in any case."""
    if configurations is None or list(configurations) == ["all"]:
        return list(PLANNED)
    mine = manual_configurations(previous)
    for name in configurations:
        if name not in PLANNED and name not in mine:
            raise unknown_name("configuration", name, [*PLANNED, *mine])
    return [name for name in configurations if name in PLANNED] or list(PLANNED)


def _refuse_bad_spacing(fingerprint: Fingerprint, spacing: Sequence[float] | None) -> None:
    """A given spacing must be three numbers that leave enough voxels along every axis that has them."""
    if spacing is None:
        return
    if not fingerprint.has_millimetres:
        raise ConfigError(f"spacing {list(spacing)}: these images have no millimetres, leave the spacing out.")
    if len(spacing) != 3 or not all(LEAST_SPACING_MM <= value <= LARGEST_SPACING_MM for value in spacing):
        raise ConfigError(
            f"spacing must be 3 numbers of mm, from {LEAST_SPACING_MM:g} to {LARGEST_SPACING_MM:g}, one per axis "
            f"i, j, k, got {list(spacing)}."
        )
    spacings, shapes = fingerprint.spacings, fingerprint.shapes_after_crop
    median = median_shape(spacings, shapes, spacing)
    least = np.minimum(LEAST_EDGE, np.median(shapes, axis=0))
    coarsest = np.floor(100 * np.median(shapes * spacings, axis=0) / least) / 100  # mm
    nearest = [
        max(0.01, float(most)) if few < enough else value
        for value, few, enough, most in zip(spacing, median, least, coarsest, strict=True)
    ]
    if nearest != list(spacing):
        raise ConfigError(
            f"spacing {', '.join(f'{value:g}' for value in spacing)} mm: leaves {' x '.join(f'{n:g}' for n in median)} "
            f"voxels of the median image. Nearest that leaves enough: {', '.join(f'{value:g}' for value in nearest)}."
        )
