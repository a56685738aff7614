"""``medmamba export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medmamba import pipeline
from medmamba.bundle.options import BundleCard, ExportOptions
from medmamba.cli.answer import Answer
from medmamba.cli.console import console


def export(
    model: Annotated[Path, typer.Argument(help="Run folder, or the folder of one trained fold.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the MONAI Bundle to write.")],
    options: ExportOptions,
    card: BundleCard,
) -> Answer:
    """Write a MONAI Bundle that runs without medmamba, and verify that it gives the same masks."""
    report, graphs = pipeline.export(model, output, card, options)
    console.print("verify_metadata and verify_net_in_out passed; run by MONAI without medmamba:")
    for case in report.cases:
        console.print(
            f"  {case.case_id}: {case.voxels} voxels equal ({case.foreground} of them foreground)", markup=False
        )
    for kind, row in graphs:
        shape = "x".join(map(str, row.shape))
        console.print(f"  {kind} {shape}: largest difference of the logits {row.difference:.2g}", markup=False)
    console.print(f"MONAI Bundle: {report.folder}", markup=False)
    return {"bundle": report.folder, "checked": report.cases, "graphs": [row for _, row in graphs]}
