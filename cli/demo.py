"""``medmamba demo``."""

from __future__ import annotations

from medmamba import pipeline
from medmamba.cli.answer import Answer
from medmamba.cli.console import clock, console, stages
from medmamba.cli.training_progress import training_progress
from medmamba.command_options import DemoOptions


def demo(options: DemoOptions) -> Answer:
    """Plan, train, predict and evaluate on 60 real MR volumes of the hippocampus."""
    from medmamba.cli.tables import dice_table

    with stages() as on_item, training_progress() as on_step:
        result = pipeline.demo(options, on_item=on_item, on_step=on_step)
    evaluation = result.evaluation
    console.print(dice_table(evaluation))
    console.print(f"Mean foreground Dice on {len(evaluation.cases)} test cases: {evaluation.mean_foreground:.4f}")
    spent = ", ".join(f"{name} {clock(seconds)}" for name, seconds in result.seconds.items())
    console.print(
        f"Time: {spent}, in all {clock(sum(result.seconds.values()))}. Peak memory: {result.peak_memory_gib:.2f} GiB"
    )
    console.print(f"Masks: {result.masks}    Overview: {result.overview}", markup=False)
    return {
        "mean_foreground_dice": evaluation.mean_foreground,
        "dice": evaluation.mean_per_label(),
        "cases": len(evaluation.cases),
        "seconds": result.seconds,
        "peak_memory_gib": result.peak_memory_gib,
        "masks": result.masks,
        "overview": result.overview,
    }
