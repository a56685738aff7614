"""``medmamba convert dataset``, ``medmamba convert plans`` and ``medmamba convert weights``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from medmamba.cli.console import Answer, console, report_warnings, stages
from medmamba.command_options import ConvertDatasetOptions, ConvertPlansOptions, ConvertWeightsOptions


def dataset(
    source: Annotated[Path, typer.Argument(help="Dataset in any supported layout.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to create.")],
    options: ConvertDatasetOptions,
) -> Answer:
    """Convert a dataset to the layout of nnU-Net raw or of the Medical Segmentation Decathlon."""
    from medmamba.datasets import convert_dataset

    with stages() as on_item:
        made = convert_dataset(source, output, options.layout, on_case=partial(on_item, "convert"))
    report_warnings(made.warnings)
    console.print(f"{made.cases} training and {made.test_cases} test case(s): {made.folder}")
    return {"folder": made.folder, "cases": made.cases, "test_cases": made.test_cases, "warnings": made.warnings}


def plans(
    source: Annotated[Path, typer.Argument(help="nnUNetPlans.json, or a run folder or plan.json of medmamba.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")],
    options: ConvertPlansOptions,
) -> Answer:
    """Convert an nnU-Net plans file to a plan, or a plan to an nnU-Net plans file where nnU-Net has its network."""
    from medmamba.planning.convert import convert_plan

    line = convert_plan(source, output, options.dataset)
    console.print(line)
    return {"written": output, "message": line}


def weights(
    source: Annotated[
        Path, typer.Argument(help="Published checkpoint: .safetensors, or .pth (loaded as weights only).")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help=".safetensors file to write.")],
    options: ConvertWeightsOptions,
) -> Answer:
    """Convert published weights to the names used here; reports matched, unused and missing weights."""
    from medmamba.networks.published.weights import convert_weights

    report = convert_weights(source, output, family=options.family)
    console.print(report.summary())
    console.print(f"Weights: {output}")
    return {"weights": output, "report": report}
