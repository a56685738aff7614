"""``medmamba plan``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medmamba import pipeline
from medmamba.cli.answer import Answer
from medmamba.cli.console import console, report_warnings, stages
from medmamba.planning.options import PlanRequest


def plan(
    dataset: Annotated[
        Path,
        typer.Argument(help="Folder with dataset.json (Decathlon, nnU-Net v2 raw, table of paths), or a CSV table."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Run folder to create.")],
    options: PlanRequest,
) -> Answer:
    """Measure a dataset, choose spacing, patch, batch and network, and preprocess its cases."""
    from medmamba.cli.tables import plan_lines

    warnings: list[str] = []
    table: list[str] = []
    with stages() as on_item:
        made = pipeline.plan(
            dataset, output, options, on_item=on_item, on_warning=warnings.append, on_message=table.append
        )
    report_warnings(list(dict.fromkeys(warnings)))
    for line in [*table, *plan_lines(made)]:
        console.print(line, markup=False)
    console.print(
        f"Plan and preprocessed cases: {output}    To look at: {output / 'report' / 'dataset.html'}", markup=False
    )
    console.print(f"Why each number: medmamba explain {output}    Next: medmamba train {output}", markup=False)
    return {"run": output, "plan": made, "warnings": warnings}
