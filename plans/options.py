"""Options of planning, which replace a rule and are stored in the plan, and the length of a training."""

import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from medmamba.errors import InputError, unknown_name
from medmamba.options import OVERWRITE_TEXT, Gigabytes, Names, Numbers, Options, PatchSize, option
from medmamba.plans.cost.machines import MACHINES

EPOCHS, STEPS_PER_EPOCH = 1000, 250
"""Length of a training when none is asked for. Source: nnU-Net."""

LEAST_STEPS = 500
"""Optimiser steps that a budget must allow. What decides in a short training is their number: on hippocampus Dice rose
from 0.753 at 133 steps to 0.822 at 264 and 0.862 at 1221, and on the left ventricle 684 steps in 2D came to 0.696 where
56 in 3D came to 0.529. Source: docs/benchmarks/ablation.md and accuracy.md."""

STEP_FRACTION = 0.9
"""Fraction of a training's hours that the predicted steps may fill; the rest goes to validation and checkpoints.
Patches and augmentation come out of the prediction's margin: with them the steps of docs/benchmarks/accuracy.md
took 0.75 to 1.2 of what is predicted."""

RULES = "Instead of a rule"
"""Panel of ``--help`` for choices that replace a rule."""

PLANNED = ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres")
"""Configurations that the planner makes; every other name is a manual one."""

MirrorPolicy = Literal["auto", "swap", "all", "none"]
"""auto: no left-right mirroring where labels are left or right; swap: mirrored, paired labels exchanged; all; none."""


class PlanOptions(Options):
    """The choices of :func:`medmamba.plans.planner.make_plan`; None leaves a number to the rules.

    Each may also be given as the text that the command line takes: ``"64,96,96"``, ``"8GB"``, ``"none"``.
    """

    network: str = option("vm_unet", "Network, or auto: chosen by rules from the dataset's properties.", panel=RULES)
    device_memory_gb: Gigabytes = option(
        8.0,
        "Memory of the training device: 8GB, 24GB (1 GB is 1e9 bytes).",
        panel=RULES,
        flag="--device-memory",
        gt=0,
    )
    spacing: Numbers | None = option(None, "Target spacing in mm along the image axes i, j, k: 1,1,2.5", panel=RULES)
    patch_size: PatchSize | None = option(
        None, "Patch size in voxels, for configurations of as many axes: 64,96,96", panel=RULES
    )
    batch_size: int | None = option(None, "Batch size.", panel=RULES, ge=1)
    configurations: Names | None = option(
        None,
        f"Configurations to plan and preprocess: {', '.join(PLANNED)}, or all. Default: plan all that apply, "
        f"preprocess the default one.",
        panel=RULES,
    )
    use_scan: bool = option(
        True, "Plan the same network without its scans, to measure their contribution.", panel=RULES, flag="--no-scan"
    )
    mirror: MirrorPolicy = option(
        "auto",
        "Mirroring of labels with laterality: auto (not left-right), swap (left-right, labels exchanged), all or none.",
        panel=RULES,
    )
    machine: str = option(
        "cpu", f"Training machine of the predicted times: {', '.join(MACHINES)}; cpu:4 for four threads.", panel=RULES
    )
    train_hours: Annotated[
        Annotated[float, Field(gt=0)] | None, BeforeValidator(lambda value: None if value == "none" else value)
    ] = option(
        None,
        f"Training time in hours: configuration, patch and batch are chosen so that at least {LEAST_STEPS} steps fit. "
        f"none: no limit.",
        panel=RULES,
    )


CANDIDATES = ("vm_unet", "u_mamba_bot", "hrvmamba", "residual_unet")
"""Networks that a pilot compares when none is named: scans in every stage, in the bottleneck only, parallel branches,
and no scan at all."""


NOTHING_TO_VALIDATE = "--pilot needs two patients or more: there is nothing to validate on. Name a --network."


class ReadingOptions(Options):
    """How the files of a dataset are read; a plan records it, and later commands read as it says."""

    nonfinite: Literal["error", "zero"] = option(
        "error", "NaN and infinite voxels: error, or zero (set to 0).", panel="Data"
    )
    prefer: Literal["sform", "qform"] | None = option(
        None, "Affine of a NIfTI header to use where the two disagree: sform or qform.", panel="Data"
    )
    match_labels: bool = option(
        False, "Reorient label maps that are stored with other axes than their images.", panel="Data"
    )
    any_spacing: bool = option(
        False, "Accept spacings outside 0.01 to 100 mm, if all cases have similar ones.", panel="Data"
    )
    max_voxels: int | None = option(
        None,
        "Largest number of voxels times channels of a file, and of a case on the plan's grid.",
        panel="Data",
        ge=1,
    )

    @property
    def reading(self) -> dict[str, Any]:
        """The values that were chosen, by name."""
        chosen = {name: getattr(self, name) for name in ReadingOptions.model_fields}
        return {name: value for name, value in chosen.items() if value is not None}


class PlanRequest(ReadingOptions, PlanOptions):
    """The choices of :func:`medmamba.planning.run.plan`, and of the command line: also how the dataset is read."""

    like: Path | None = option(
        None,
        "Run whose grids, normalisation and networks are taken over, to fine-tune its model with `train --init`.",
        panel=RULES,
    )
    pilot: float | None = option(
        None,
        "Minutes in which candidate networks are trained on one fold, all together; the best is planned. --network a,b "
        f"names the candidates; default: {', '.join(CANDIDATES)}.",
        panel=RULES,
        gt=0,
    )
    group_by: str | None = option(
        None,
        "Patient of each case, so that a patient's cases stay in one fold: a regular expression on the case "
        "identifier, such as '(.*)_E[DS]', or TABLE.csv:COLUMN.",
        panel="Data",
    )
    splits: Path | None = option(None, "File of folds in the format of nnU-Net's splits_final.json.", panel="Data")
    overwrite: bool = option(
        False, f"{OVERWRITE_TEXT} Trained folds of another plan are kept, but can no longer be resumed.", panel="Data"
    )
    workers: int | None = option(
        None, "Cases processed in parallel. Default: one per core, at most 8.", panel="Machine", ge=1
    )

    @property
    def candidates(self) -> tuple[str, ...]:
        """Networks of a pilot: those named, separated by commas, or the default ones."""
        if self.network == PlanOptions.model_fields["network"].default:
            return CANDIDATES
        return tuple(name.strip() for name in self.network.split(",") if name.strip())

    @property
    def everything(self) -> bool:
        """Whether all configurations are planned and preprocessed."""
        return self.configurations == ("all",)

    def for_network(self, network: str) -> PlanOptions:
        """The planner's part, for one network."""
        options = {name: getattr(self, name) for name in PlanOptions.model_fields}
        return PlanOptions(
            **options | {"network": network, "configurations": None if self.everything else self.configurations}
        )


def changes_from(text: str) -> dict[str, Any]:
    """``"--device-memory 6GB --network mhs_vm"`` as changes by name, for :func:`medmamba.plans.planner.what_if`.

    Raises InputError for a text that is not a list of options of ``medmamba plan`` with a value each.
    """
    name_of = {PlanOptions.flag(name): name for name in PlanOptions.model_fields}
    try:
        words = [part for word in shlex.split(text) for part in (word.split("=", 1) if "--" in word else [word])]
    except ValueError as error:
        raise InputError(f"--what-if {text!r} cannot be read ({error}). Write options of `medmamba plan`.") from error
    changes: dict[str, Any] = {}
    rest = iter(words)
    for flag in rest:
        if flag not in name_of:
            raise unknown_name("option of --what-if", flag, list(name_of))
        field = PlanOptions.model_fields[name_of[flag]]
        value = (not field.default) if field.annotation is bool else next(rest, None)  # --no-scan has no value
        if value is None:
            raise InputError(f"--what-if: {flag} has no value. Write for example --device-memory 6GB.")
        changes[name_of[flag]] = value
    if not changes:
        raise InputError('--what-if is empty. Write for example --what-if "--device-memory 6GB".')
    return changes
