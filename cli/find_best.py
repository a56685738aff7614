"""``medmamba find-best``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medmamba import pipeline
from medmamba.cli.answer import Answer
from medmamba.cli.console import console, stages
from medmamba.model_selection.options import FindBestOptions


def find_best(
    run: Annotated[Path, typer.Argument(help="Run folder with trained folds.")], options: FindBestOptions
) -> Answer:
    """Choose configurations, thresholds, post-processing and limits of uncertainty by cross-validation, for predict."""
    with stages() as on_item:
        recipe = pipeline.find_best(run, options, on_item=on_item)
    for name, dice in recipe.dice.items():
        mark = " <- chosen" if name == "+".join(recipe.configurations) else ""
        console.print(f"{name}: Dice {dice:.4f}{mark}", markup=False)
    used = "; ".join(f"{name}: {', '.join(folds)}" for name, folds in recipe.folds.items())
    console.print(f"{recipe.cases} validation cases, folds {used}", markup=False)
    for step in recipe.cleaning:
        console.print(f"{step.label}: {step.action.replace('_', ' ')}, Dice +{step.gain:.4f}", markup=False)
    for name, threshold in recipe.thresholds.items():
        console.print(f"{name}: above probability {threshold:g}", markup=False)
    if recipe.limits is None:
        console.print("too few usual cases to measure limits of uncertainty: the fixed ones stay")
    else:
        console.print(
            f"review above entropy {recipe.limits.max_entropy:.3f} or below fold agreement "
            f"{recipe.limits.min_agreement:.3f}, from {recipe.limits.cases} cases"
        )
    console.print(f"temperature {recipe.temperature:g}. Written: {run / 'best.json'}", markup=False)
    return {"recipe": recipe, "written": run / "best.json"}
