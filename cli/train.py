"""``medmamba train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medmamba import pipeline
from medmamba.cli.answer import Answer
from medmamba.cli.console import console, report_warnings
from medmamba.cli.training_progress import report_results, training_progress
from medmamba.training.config import TrainConfig
from medmamba.training.options import TrainOptions


def train(
    run: Annotated[Path, typer.Argument(help="Run folder written by `medmamba plan`.")],
    options: TrainOptions,
    config: TrainConfig,
) -> Answer:
    """Train folds; writes checkpoints and metrics to RUN/models, curves and figures to RUN/report."""
    with training_progress() as on_step:
        results = pipeline.train_folds(
            run,
            options,
            config,
            on_step=on_step,
            on_event=lambda line: report_warnings([line]),
            on_start=lambda line: console.print(line, markup=False),
        )
    report_results(run, results)
    return {"run": run, "folds": results}
