"""``medmamba evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    predictions: Annotated[Path, typer.Argument(help="Folder of masks, as `medmamba predict` wrote it.")],
    truths: Annotated[Path, typer.Argument(help="Folder of true label maps with the same case names.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where to write; default: PREDICTIONS.")] = None,
) -> None:
    """Dice per case and label, as a table, evaluation.json and evaluation.csv."""
    from medmamba import pipeline
    from medmamba.cli.console import console
    from medmamba.cli.tables import dice_table

    result = pipeline.evaluate(predictions, truths, output=output)
    console.print(dice_table(result))
    console.print(f"evaluation.json and evaluation.csv: {output or predictions}", markup=False)
