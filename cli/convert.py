"""``medmamba convert dataset``, ``medmamba convert plans`` and ``medmamba convert weights``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medmamba import pipeline
from medmamba.cli.answer import Answer, answering
from medmamba.cli.console import console, report_warnings, stages
from medmamba.cli.from_record import from_records
from medmamba.command_options import ConvertDatasetOptions, ConvertPlansOptions, ConvertWeightsOptions

convert = typer.Typer(help="Convert datasets, nnU-Net plans and published weights.", no_args_is_help=True)


def dataset(
    source: Annotated[Path, typer.Argument(help="Dataset in any supported layout.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to create.")],
    options: ConvertDatasetOptions,
) -> Answer:
    """Convert a dataset to the layout of nnU-Net raw or of the Medical Segmentation Decathlon."""
    with stages() as on_item:
        made = pipeline.convert_dataset(source, output, options, on_item=on_item)
    report_warnings(made.warnings)
    console.print(f"{made.cases} training and {made.test_cases} test case(s): {made.folder}", markup=False)
    return {"folder": made.folder, "cases": made.cases, "test_cases": made.test_cases, "warnings": made.warnings}


def plans(
    source: Annotated[Path, typer.Argument(help="nnUNetPlans.json, or a run folder or plan.json of medmamba.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")],
    options: ConvertPlansOptions,
) -> Answer:
    """Convert an nnU-Net plans file to a plan, or a plan to an nnU-Net plans file where nnU-Net has its network."""
    line = pipeline.convert_plans(source, output, options)
    console.print(line, markup=False)
    return {"written": output, "message": line}


def weights(
    source: Annotated[
        Path, typer.Argument(help="Published checkpoint: .safetensors, or .pth (loaded as weights only).")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help=".safetensors file to write.")],
    options: ConvertWeightsOptions,
) -> Answer:
    """Convert published weights to the names used here; reports matched, unused and missing weights."""
    report = pipeline.convert_weights(source, output, options)
    console.print(report.summary(), markup=False)
    console.print(f"Weights: {output}", markup=False)
    return {"weights": output, "report": report}


for command in (dataset, plans, weights):
    convert.command()(answering(from_records(command)))
