"""``medmamba demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medmamba.cli.answer import Answer


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for everything the demo makes.")] = Path(
        "demo"
    ),
    data: Annotated[
        Path | None, typer.Option(help="Dataset folder; default: the hippocampus data that comes along.")
    ] = None,
    minutes: Annotated[float, typer.Option(help="Minutes of training.", min=0.01)] = 8.0,
    steps: Annotated[int | None, typer.Option(help="End after this many steps at the latest.", min=1)] = None,
    test_cases: Annotated[int | None, typer.Option(help="Predict only the first N test cases.", min=1)] = None,
    network: Annotated[str, typer.Option(help="Network family.")] = "vm_unet",
    no_scan: Annotated[bool, typer.Option("--no-scan", help="The same network with the scan taken out.")] = False,
) -> Answer:
    """Plan, train, predict and evaluate on 60 real MR volumes of the hippocampus."""
    from medmamba.cli.console import clock, console, stages
    from medmamba.cli.tables import dice_table
    from medmamba.cli.training_progress import training_progress
    from medmamba.demo import run_demo

    with stages() as on_item, training_progress() as on_step:
        result = run_demo(
            output,
            data,
            minutes=minutes,
            steps=steps,
            test_cases=test_cases,
            network=network,
            use_scan=not no_scan,
            on_item=on_item,
            on_step=on_step,
        )
    console.print(dice_table(result.evaluation))
    console.print(
        f"Mean foreground Dice on {len(result.evaluation.cases)} test cases: {result.evaluation.mean_foreground:.4f}"
    )
    spent = ", ".join(f"{name} {clock(seconds)}" for name, seconds in result.seconds.items())
    console.print(
        f"Time: {spent}, in all {clock(sum(result.seconds.values()))}. Peak memory: {result.peak_memory_gib:.2f} GiB"
    )
    console.print(f"Masks: {result.masks}    Overview: {result.overview}", markup=False)
    return {
        "mean_foreground_dice": result.evaluation.mean_foreground,
        "dice": result.evaluation.mean_per_label(),
        "cases": len(result.evaluation.cases),
        "seconds": result.seconds,
        "peak_memory_gib": result.peak_memory_gib,
        "masks": result.masks,
        "overview": result.overview,
    }
