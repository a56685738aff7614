"""``medmamba pretrain``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medmamba import pipeline
from medmamba.cli.answer import Answer
from medmamba.cli.console import clock, console, report_warnings
from medmamba.cli.from_record import OptionSubset
from medmamba.cli.training_progress import training_progress
from medmamba.training.config import TrainConfig
from medmamba.training.options import PRETRAINING_FIELDS, PretrainOptions


def pretrain(
    run: Annotated[Path, typer.Argument(help="Run folder written by `medmamba plan`; its labels are not used.")],
    options: PretrainOptions,
    config: Annotated[TrainConfig, OptionSubset(PRETRAINING_FIELDS)],
) -> Answer:
    """Pretrain on unlabelled images by reconstructing masked slices; `train --init` starts from the result."""
    with training_progress() as on_step:
        result = pipeline.pretrain(
            run,
            options,
            config,
            on_step=on_step,
            on_event=lambda line: report_warnings([line]),
            on_start=lambda line: console.print(line, markup=False),
        )
    console.print(f"{result.steps} steps in {clock(result.seconds)}, last loss {result.final_loss:.4f}")
    console.print(f"Next: medmamba train {run} --init {result.folder}", markup=False)
    return {"model": result.folder, "steps": result.steps, "seconds": result.seconds, "loss": result.final_loss}
