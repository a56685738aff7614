"""The choices of ``medmamba plan``: those of the planner, and how the dataset is read."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from medmamba.geometry import MOST_VOXELS
from medmamba.options import option
from medmamba.plans.options import RULES, PlanOptions

DATA, MACHINE = "Data", "Machine"

CANDIDATES = ("vm_unet", "u_mamba_bot", "hrvmamba", "residual_unet")
"""Networks that a pilot compares when none is named: scans in every stage, in the bottleneck only, parallel branches,
and no scan at all."""


class PlanRequest(PlanOptions):
    """The choices of :func:`medmamba.planning.run.plan`, and of the command line."""

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
        panel=DATA,
    )
    splits: Path | None = option(None, "File of folds in the format of nnU-Net's splits_final.json.", panel=DATA)
    nonfinite: Literal["error", "zero"] = option(
        "error", "NaN and infinite voxels: error, or zero (set to 0).", panel=DATA
    )
    prefer: Literal["sform", "qform"] | None = option(
        None, "Affine of a NIfTI header to use where the two disagree: sform or qform.", panel=DATA
    )
    match_labels: bool = option(
        False, "Reorient label maps that are stored with other axes than their images.", panel=DATA
    )
    any_spacing: bool = option(
        False, "Accept spacings outside 0.01 to 100 mm, if all cases have similar ones.", panel=DATA
    )
    max_voxels: int = option(
        MOST_VOXELS,
        "Largest number of voxels times channels of a file, and of a case on the plan's grid.",
        panel=DATA,
        ge=1,
    )
    workers: int | None = option(
        None, "Cases processed in parallel. Default: one per core, at most 8.", panel=MACHINE, ge=1
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
