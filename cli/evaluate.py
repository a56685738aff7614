"""``medmamba evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medmamba.cli.answer import Answer


def evaluate(
    predictions: Annotated[Path, typer.Argument(help="Folder of masks, as `medmamba predict` wrote it.")],
    truths: Annotated[Path, typer.Argument(help="Folder of true label maps with the same case names.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where to write; default: PREDICTIONS.")] = None,
    compare: Annotated[Path | None, typer.Option(help="Second folder of masks: paired differences to it.")] = None,
    tolerance: Annotated[float, typer.Option(help="Tolerance of the surface Dice (NSD) in mm.")] = 1.0,
    subgroups: Annotated[
        Path | None, typer.Option(help="CSV with a column 'case' and properties of the cases.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the images, shown below the outlines.")] = None,
    missing: Annotated[str, typer.Option(help="A case without prediction: 'fail', or 'empty' mask.")] = "fail",
    pictures: Annotated[int, typer.Option(help="Pictures of the worst cases in the page.", min=0)] = 12,
) -> Answer:
    """Dice, IoU, HD95, NSD, volumes, lesions: per case and structure, as tables, JSON, CSV and one HTML page."""
    from medmamba.cli.console import console, stages
    from medmamba.cli.tables import comparison_table, dice_table, summary_table
    from medmamba.evaluation.run import run_evaluation

    with stages() as on_item:
        result = run_evaluation(
            predictions,
            truths,
            output=output,
            other=compare,
            tolerance_mm=tolerance,
            missing=missing,
            subgroups=subgroups,
            images=images,
            pictures=pictures,
            on_item=on_item,
        )
    console.print(dice_table(result.evaluation))
    console.print(summary_table(result.evaluation))
    if result.comparison is not None:
        console.print(comparison_table(result.comparison))
    console.print(f"evaluation.html, .json and .csv: {result.folder}", markup=False)
    return {
        "folder": result.folder,
        "mean_foreground_dice": result.evaluation.mean_foreground,
        "dice": result.evaluation.mean_per_label(),
        "cases": result.evaluation.mean_per_case(),
        "missing": result.evaluation.missing,
        "comparison": result.comparison,
    }
