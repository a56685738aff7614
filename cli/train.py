"""``medmamba train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from medmamba.cli.answer import Answer

LENGTH, RECIPE, MACHINE, START, TRACKING = "Length", "Recipe", "Machine", "Start", "Tracking"


def train(
    run: Annotated[Path, typer.Argument(help="Run folder written by `medmamba plan`.")],
    fold: Annotated[
        str, typer.Option(help="Fold number, several (0,1,2 or 0-4), or 'all': one model of every case.")
    ] = "0",
    configuration: Annotated[str | None, typer.Option(help="Configuration of the plan, default: its default.")] = None,
    network: Annotated[
        str | None, typer.Option(help="Another network family on the same plan, or vm_unet_published.")
    ] = None,
    no_scan: Annotated[bool, typer.Option("--no-scan", help="The same network with the scan taken out.")] = False,
    epochs: Annotated[
        int | None, typer.Option(help="Length in epochs of 250 steps.", min=1, rich_help_panel=LENGTH)
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Length in steps.", min=1, rich_help_panel=LENGTH)] = None,
    max_minutes: Annotated[
        float | None, typer.Option(help="Length in minutes; the schedule ends inside.", rich_help_panel=LENGTH)
    ] = None,
    max_hours: Annotated[float | None, typer.Option(help="Length in hours.", rich_help_panel=LENGTH)] = None,
    patience: Annotated[
        int | None, typer.Option(help="End after so many epochs without a better Dice.", min=1, rich_help_panel=LENGTH)
    ] = None,
    steps_per_epoch: Annotated[
        int | None, typer.Option(help="Steps between validations.", min=1, rich_help_panel=LENGTH)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Batch size instead of the plan's.", min=1, rich_help_panel=RECIPE)
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Initial rate.", rich_help_panel=RECIPE)] = None,
    schedule: Annotated[str | None, typer.Option(help="poly or cosine.", rich_help_panel=RECIPE)] = None,
    optimizer: Annotated[str | None, typer.Option(help="adamw or sgd.", rich_help_panel=RECIPE)] = None,
    loss: Annotated[
        str | None, typer.Option(help="dice_ce, dice_focal, dice_topk, ce or dice.", rich_help_panel=RECIPE)
    ] = None,
    class_weights: Annotated[
        str | None, typer.Option(help="Weights by label name: tumour=3,liver=1", rich_help_panel=RECIPE)
    ] = None,
    sampling: Annotated[
        str | None, typer.Option(help="foreground, or lesion: every lesion alike.", rich_help_panel=RECIPE)
    ] = None,
    ema: Annotated[
        float | None, typer.Option(help="Average the weights with this decay, e.g. 0.999.", rich_help_panel=RECIPE)
    ] = None,
    augment: Annotated[
        str | None,
        typer.Option(
            help="auto, cpu (a patch at a time), device (batches, on the GPU) or none; auto: a GPU if there is one.",
            rich_help_panel=RECIPE,
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of weights and patches.", min=0, rich_help_panel=RECIPE)
    ] = None,
    validation_cases: Annotated[
        int | None, typer.Option(help="Whole volumes validated after each epoch.", min=1, rich_help_panel=RECIPE)
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that make batches; 0: none.", min=0, rich_help_panel=MACHINE)
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=MACHINE)] = "auto",
    devices: Annotated[
        str | None,
        typer.Option(help="Train several folds at once, one on each: cuda:0,cuda:1", rich_help_panel=MACHINE),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="auto, fp32, bf16 or fp16; scans are always fp32.", rich_help_panel=MACHINE)
    ] = None,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Less memory: compute activations twice.", rich_help_panel=MACHINE)
    ] = False,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile", help="Through torch.compile; goes on without it if that fails.", rich_help_panel=MACHINE
        ),
    ] = False,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="The same bytes on every run.", rich_help_panel=MACHINE)
    ] = False,
    checkpoint_minutes: Annotated[
        float | None, typer.Option(help="Minutes between checkpoints.", rich_help_panel=MACHINE)
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(
            help="Start from these weights (run, fold, pretraining, or the file of convert weights).",
            rich_help_panel=START,
        ),
    ] = None,
    freeze: Annotated[str | None, typer.Option(help="Parts not to train: stem,encoder", rich_help_panel=START)] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint.", rich_help_panel=START)
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Drop the fold's checkpoints and begin again.", rich_help_panel=START)
    ] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", rich_help_panel=TRACKING)] = False,
    mlflow: Annotated[bool, typer.Option("--mlflow", rich_help_panel=TRACKING)] = False,
    wandb: Annotated[bool, typer.Option("--wandb", rich_help_panel=TRACKING)] = False,
) -> Answer:
    """Train folds; checkpoints and metrics land in RUN/models, curves and pictures in RUN/report."""
    from medmamba.cli.console import report_warnings
    from medmamba.cli.options import fold_names, weights_by_name
    from medmamba.cli.training_progress import report_results, training_progress
    from medmamba.errors import ConfigError
    from medmamba.training.config import make_config
    from medmamba.training.folds import train_folds
    from medmamba.training.options import TrainOptions

    if max_minutes is not None and max_hours is not None:
        raise ConfigError("--max-minutes and --max-hours are two budgets; give one.")
    choices: dict[str, Any] = {
        "epochs": epochs,
        "steps": steps,
        "max_minutes": max_minutes if max_hours is None else 60 * max_hours,
        "patience": patience,
        "steps_per_epoch": steps_per_epoch,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "schedule": schedule,
        "optimizer": optimizer,
        "loss": loss,
        "class_weights": weights_by_name(class_weights),
        "sampling": sampling,
        "ema": ema,
        "augment": augment,
        "seed": seed,
        "validation_cases": validation_cases,
        "workers": workers,
        "device": device,
        "precision": precision,
        "recompute": recompute or None,
        "compile": compiled or None,
        "deterministic": deterministic or None,
        "checkpoint_minutes": checkpoint_minutes,
        "freeze": None if freeze is None else tuple(freeze.split(",")),
    }
    options = TrainOptions(
        folds=tuple(fold_names(fold)),
        configuration=configuration,
        network=network,
        use_scan=not no_scan,
        devices=tuple(devices.split(",")) if devices else (),
        init=init,
        resume=resume,
        restart=restart,
        tensorboard=tensorboard,
        mlflow=mlflow,
        wandb=wandb,
    )
    with training_progress() as on_step:
        results = train_folds(
            run, options, make_config(choices), on_step=on_step, on_event=lambda line: report_warnings([line])
        )
    report_results(run, results)
    return {"run": run, "folds": results}
