"""``medmamba train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def train(
    run: Annotated[Path, typer.Argument(help="Run folder written by `medmamba plan`.")],
    fold: Annotated[str, typer.Option(help="Fold number, or 'all' to train on every case.")] = "0",
    configuration: Annotated[str | None, typer.Option(help="Configuration of the plan, default: its default.")] = None,
    network: Annotated[str | None, typer.Option(help="Another network family on the same plan.")] = None,
    no_scan: Annotated[bool, typer.Option("--no-scan", help="The same network with the scan taken out.")] = False,
    epochs: Annotated[int | None, typer.Option(help="Length in epochs of 250 steps.", min=1)] = None,
    steps: Annotated[int | None, typer.Option(help="Length in optimiser steps.", min=1)] = None,
    max_minutes: Annotated[float | None, typer.Option(help="Length in minutes; the schedule ends inside.")] = None,
    steps_per_epoch: Annotated[int | None, typer.Option(help="Steps between validations.", min=1)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Batch size instead of the plan's.", min=1)] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Initial learning rate.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="adamw or sgd.")] = None,
    no_augmentation: Annotated[bool, typer.Option("--no-augmentation", help="Train on patches as they are.")] = False,
    seed: Annotated[int | None, typer.Option(help="Seed of weights and patches.", min=0)] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that make batches; 0: none.", min=0)] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Drop the fold's checkpoints and begin again.")] = False,
) -> None:
    """Train one fold; checkpoints and metrics land in RUN/models."""
    from medmamba import pipeline
    from medmamba.cli.console import clock, console
    from medmamba.cli.options import fold_name
    from medmamba.cli.training_progress import training_progress
    from medmamba.training.config import make_config

    choices: dict[str, Any] = {
        "epochs": epochs,
        "steps": steps,
        "max_minutes": max_minutes,
        "steps_per_epoch": steps_per_epoch,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "optimizer": optimizer,
        "augment": False if no_augmentation else None,
        "seed": seed,
        "workers": workers,
        "device": device,
    }
    config = make_config(choices)
    with training_progress() as on_step:
        result = pipeline.train(
            run,
            fold=fold_name(fold),
            configuration=configuration,
            network=network,
            use_scan=not no_scan,
            config=config,
            resume=resume,
            restart=restart,
            on_step=on_step,
        )
    dice = "" if result.validation_dice is None else f", validation Dice {result.validation_dice:.4f}"
    console.print(f"{result.steps} steps in {clock(result.seconds)}, last loss {result.final_loss:.4f}{dice}")
    console.print(f"Model: {result.folder}    Next: medmamba predict {run} IMAGES -o MASKS", markup=False)
