"""``medmamba convert dataset``, ``medmamba convert plans`` and ``medmamba convert weights``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medmamba.cli.answer import Answer, answering

convert = typer.Typer(
    help="Datasets to another layout, plans from and to nnU-Net, published weights to ours.", no_args_is_help=True
)


@convert.command()
@answering
def dataset(
    source: Annotated[Path, typer.Argument(help="A dataset in any layout that is read.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder.")],
    layout: Annotated[str, typer.Option(help="nnunet or decathlon.")] = "nnunet",
) -> Answer:
    """Write a dataset in nnU-Net's raw layout or the Decathlon's; the source stays as it is."""
    from medmamba.cli.console import console, report_warnings, stages
    from medmamba.datasets import convert_dataset

    with stages() as on_item:
        made = convert_dataset(
            source,
            output,
            layout,  # type: ignore[arg-type]  # an unknown name is refused there, with the known ones
            on_case=lambda done, total: on_item("convert", done, total),
        )
    report_warnings(made.warnings)
    console.print(f"{made.cases} training and {made.test_cases} test case(s): {made.folder}", markup=False)
    return {"folder": made.folder, "cases": made.cases, "test_cases": made.test_cases, "warnings": made.warnings}


@convert.command()
@answering
def plans(
    source: Annotated[Path, typer.Argument(help="nnUNetPlans.json, or a run folder or plan.json of ours.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    dataset: Annotated[
        Path | None, typer.Option(help="nnU-Net's dataset.json; default: the one beside its plans file.")
    ] = None,
) -> Answer:
    """Read an nnU-Net plans file as a plan of ours, or write ours as one where nnU-Net can express it."""
    from medmamba.cli.console import console
    from medmamba.planning.convert import convert_plan

    line = convert_plan(source, output, dataset)
    console.print(line, markup=False)
    return {"written": output, "message": line}


@convert.command()
@answering
def weights(
    source: Annotated[Path, typer.Argument(help="Published checkpoint: .safetensors, or .pth read without code.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .safetensors file to write.")],
    family: Annotated[str, typer.Option(help="vm_unet, mhs_vm, hrvmamba, vim, mambaout, ...")],
) -> Answer:
    """Translate a published checkpoint to our names; says what fits, what is left over and what is missing."""
    from medmamba.cli.console import console
    from medmamba.networks.published.weights import convert_weights

    report = convert_weights(source, output, family=family)
    console.print(report.summary(), markup=False)
    console.print(f"Weights: {output}", markup=False)
    return {"weights": output, "report": report}
