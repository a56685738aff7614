"""``medmamba plan``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def plan(
    dataset: Annotated[Path, typer.Argument(help="Folder with dataset.json (Medical Segmentation Decathlon layout).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Run folder to create.")],
    network: Annotated[str, typer.Option(help="Network family.")] = "vm_unet",
    device_memory: Annotated[float, typer.Option(help="Memory to plan for, in GB.", min=0.5)] = 8.0,
    spacing: Annotated[str | None, typer.Option(help="Voxel spacing in mm instead of the rule's: 1,1,2.5")] = None,
    patch_size: Annotated[str | None, typer.Option(help="Patch size in voxels instead of the rule's: 64,96,96")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Batch size instead of the rule's.", min=1)] = None,
    configurations: Annotated[
        str | None,
        typer.Option(
            help="Configurations to plan and preprocess: 2d,3d_fullres,3d_lowres,3d_cascade_fullres, or all. "
            "Default: plan all that apply, preprocess the one that is trained by default."
        ),
    ] = None,
    mirror: Annotated[
        str, typer.Option(help="Labels with sides: auto (no left-right mirroring), swap (exchange pairs), all, none.")
    ] = "auto",
) -> None:
    """Measure a dataset, decide spacing, patch, batch and network, and preprocess its cases."""
    from medmamba import pipeline
    from medmamba.cli.console import console, report_warnings, stages
    from medmamba.cli.options import numbers
    from medmamba.plans.explain import summary_lines

    warnings: list[str] = []
    with stages() as on_item:
        made = pipeline.plan(
            dataset,
            output,
            network=network,
            device_memory_gb=device_memory,
            spacing=numbers(spacing, float, "--spacing"),
            patch_size=numbers(patch_size, int, "--patch-size"),
            batch_size=batch_size,
            configurations=configurations and [name.strip() for name in configurations.split(",")],
            mirror=mirror,
            on_item=on_item,
            on_warning=warnings.append,
        )
    report_warnings(warnings)
    for line in summary_lines(made):
        console.print(line, markup=False)
    console.print(f"Plan and preprocessed cases: {output}", markup=False)
    console.print(f"Why each number: medmamba explain {output}    Next: medmamba train {output}", markup=False)
