"""``medmamba convert dataset``, ``medmamba convert plans`` and ``medmamba convert weights``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medmamba import pipeline
from medmamba.cli.answer import Answer, answering
from medmamba.cli.console import console, report_warnings, stages
from medmamba.cli.from_record import from_records
from medmamba.verb_options import ConvertDatasetOptions, ConvertPlansOptions, ConvertWeightsOptions

convert = typer.Typer(
    help="Datasets to another layout, plans from and to nnU-Net, published weights to ours.", no_args_is_help=True
)


def dataset(
    source: Annotated[Path, typer.Argument(help="A dataset in any layout that is read.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder.")],
    options: ConvertDatasetOptions,
) -> Answer:
    """Write a dataset in nnU-Net's raw layout or the Decathlon's; the source stays as it is."""
    with stages() as on_item:
        made = pipeline.convert_dataset(source, output, options, on_item=on_item)
    report_warnings(made.warnings)
    console.print(f"{made.cases} training and {made.test_cases} test case(s): {made.folder}", markup=False)
    return {"folder": made.folder, "cases": made.cases, "test_cases": made.test_cases, "warnings": made.warnings}


def plans(
    source: Annotated[Path, typer.Argument(help="nnUNetPlans.json, or a run folder or plan.json of ours.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    options: ConvertPlansOptions,
) -> Answer:
    """Read an nnU-Net plans file as a plan of ours, or write ours as one where nnU-Net can express it."""
    line = pipeline.convert_plans(source, output, options)
    console.print(line, markup=False)
    return {"written": output, "message": line}


def weights(
    source: Annotated[Path, typer.Argument(help="Published checkpoint: .safetensors, or .pth read without code.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .safetensors file to write.")],
    options: ConvertWeightsOptions,
) -> Answer:
    """Translate a published checkpoint to our names; says what fits, what is left over and what is missing."""
    report = pipeline.convert_weights(source, output, options)
    console.print(report.summary(), markup=False)
    console.print(f"Weights: {output}", markup=False)
    return {"weights": output, "report": report}


for command in (dataset, plans, weights):
    convert.command()(answering(from_records(command)))
