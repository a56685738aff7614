"""``medmamba plan``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from medmamba.cli.answer import Answer

DECISIONS, DATA, MACHINE = "Instead of a rule", "Data", "Machine"


def plan(
    dataset: Annotated[
        Path,
        typer.Argument(help="Folder with dataset.json (Decathlon, nnU-Net v2 raw, table of paths), or a CSV."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Run folder to create.")],
    network: Annotated[
        str, typer.Option(help="Network family, or auto: by rules from what was measured.", rich_help_panel=DECISIONS)
    ] = "vm_unet",
    device_memory: Annotated[
        str, typer.Option(help="Memory to plan for: 8GB, 24GB.", rich_help_panel=DECISIONS)
    ] = "8GB",
    train_hours: Annotated[
        float | None,
        typer.Option(
            help="Hours to train for: configuration, patch and batch are chosen so that at least 500 steps fit.",
            rich_help_panel=DECISIONS,
        ),
    ] = None,
    machine: Annotated[
        str,
        typer.Option(
            help="What will train, for the times: cpu, cpu-fp32 (cpu:4 for four threads), t4, rtx4090, a100, h100.",
            rich_help_panel=DECISIONS,
        ),
    ] = "cpu",
    spacing: Annotated[str | None, typer.Option(help="Voxel spacing in mm: 1,1,2.5", rich_help_panel=DECISIONS)] = None,
    patch_size: Annotated[
        str | None, typer.Option(help="Patch size in voxels: 64,96,96", rich_help_panel=DECISIONS)
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Batch size.", min=1, rich_help_panel=DECISIONS)] = None,
    configurations: Annotated[
        str | None,
        typer.Option(
            help="Configurations to plan and preprocess: 2d,3d_fullres,3d_lowres,3d_cascade_fullres, or all. "
            "Default: plan all that apply, preprocess the one that is trained by default.",
            rich_help_panel=DECISIONS,
        ),
    ] = None,
    mirror: Annotated[
        str,
        typer.Option(
            help="Labels with sides: auto (no left-right mirroring), swap (exchange pairs), all, none.",
            rich_help_panel=DECISIONS,
        ),
    ] = "auto",
    group_by: Annotated[
        str | None,
        typer.Option(
            help="Cases of one patient stay in one fold: a regular expression for the patient in the case id, such as "
            "'(.*)_E[DS]', or TABLE.csv:COLUMN.",
            rich_help_panel=DATA,
        ),
    ] = None,
    splits: Annotated[
        Path | None, typer.Option(help="Own folds, as nnU-Net's splits_final.json.", rich_help_panel=DATA)
    ] = None,
    nonfinite: Annotated[
        str, typer.Option(help="NaN and infinite voxels: error, or zero.", rich_help_panel=DATA)
    ] = "error",
    prefer: Annotated[
        str | None,
        typer.Option(help="Where a header's two forms disagree: sform or qform.", rich_help_panel=DATA),
    ] = None,
    match_labels: Annotated[
        bool, typer.Option("--match-labels", help="Turn label maps onto their images' axes.", rich_help_panel=DATA)
    ] = False,
    max_voxels: Annotated[
        int | None, typer.Option(help="Largest number of voxels of a file or case.", min=1, rich_help_panel=DATA)
    ] = None,
    pilot: Annotated[
        float | None,
        typer.Option(
            help="Train candidate networks for so many minutes in all on one fold, and plan the best. --network a,b "
            "names the candidates.",
            rich_help_panel=DECISIONS,
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Cases in memory at the same time.", min=1, rich_help_panel=MACHINE)
    ] = None,
) -> Answer:
    """Measure a dataset, decide spacing, patch, batch and network, and preprocess its cases."""
    from medmamba import pipeline
    from medmamba.cli.console import console, report_warnings, stages
    from medmamba.plans.explain import summary_lines

    warnings: list[str] = []
    table: list[str] = []
    choices: dict[str, Any] = {
        "network": network,
        "device_memory_gb": device_memory,
        "train_hours": train_hours,
        "machine": machine,
        "spacing": spacing,
        "patch_size": patch_size,
        "batch_size": batch_size,
        "configurations": configurations,
        "mirror": mirror,
        "pilot": pilot,
        "group_by": group_by,
        "splits": splits,
        "nonfinite": nonfinite,
        "prefer": prefer,
        "match_labels": match_labels,
        "max_voxels": max_voxels,
        "workers": workers,
    }
    with stages() as on_item:
        made = pipeline.plan(
            dataset, output, on_item=on_item, on_warning=warnings.append, on_message=table.append, **choices
        )
    report_warnings(list(dict.fromkeys(warnings)))
    for line in table:
        console.print(line, markup=False)
    for line in summary_lines(made):
        console.print(line, markup=False)
    console.print(
        f"Plan and preprocessed cases: {output}    To look at: {output / 'report' / 'dataset.html'}", markup=False
    )
    console.print(f"Why each number: medmamba explain {output}    Next: medmamba train {output}", markup=False)
    return {"run": output, "plan": made, "warnings": warnings}
