"""``medmamba evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medmamba import pipeline
from medmamba.cli.answer import Answer
from medmamba.cli.console import console, stages
from medmamba.evaluation.options import EvaluateOptions


def evaluate(
    predictions: Annotated[Path, typer.Argument(help="Folder of predicted masks.")],
    truths: Annotated[Path, typer.Argument(help="Folder of reference label maps with the same case names.")],
    options: EvaluateOptions,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Output folder. Default: PREDICTIONS.")] = None,
) -> Answer:
    """Compute Dice, IoU, HD95, NSD, volumes and lesion metrics per case and structure; writes JSON, CSV and HTML."""
    from medmamba.cli.tables import comparison_table, dice_table, summary_table

    with stages() as on_item:
        result = pipeline.evaluate_and_compare(predictions, truths, options, output=output, on_item=on_item)
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
