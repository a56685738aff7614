"""Options of train and pretrain that are no part of the recipe: which fold, which network, which start.

Imports nothing heavy: the command line is made from these records.
"""

from pathlib import Path
from typing import Literal

from pydantic import ValidationInfo, field_validator

from medmamba.options import Folds, Names, Options, option
from medmamba.training.config import LENGTH, MACHINE, TrainConfig

Fold = int | Literal["all"]
"""A fold's number, or "all": one model of every case, without validation."""

START, TRACKING = "Start", "Tracking"
"""Headings of ``--help``."""
TRACKERS = ("tensorboard", "mlflow", "wandb")
"""Names of the trackers; each is a field of TrainOptions."""
PRETRAINING_STEPS = 5000
"""Length of a pretraining for which none is given."""
_OF_LABELS = ("patience", "loss", "class_weights", "sampling", "ema", "augment", "freeze", "validation_cases")
_NOT_OFFERED = (*_OF_LABELS, "recompute", "compile", "checkpoint_minutes")
PRETRAINING_FIELDS: dict[str, str | None] = {
    **{name: None for name in TrainConfig.model_fields if name not in _NOT_OFFERED},
    "epochs": "Number of epochs of --steps-per-epoch steps.",
    "steps": f"Number of steps. Default: {PRETRAINING_STEPS}, unless epochs or minutes are given.",
    "steps_per_epoch": "Optimiser steps per epoch, after which a checkpoint is written.",
    "seed": "Seed of weights, patches and masks.",
}
"""Fields of TrainConfig that pretraining reads, with the text of those that mean something else there."""


def _restart_alone(value: bool, info: ValidationInfo) -> bool:
    if value and info.data.get("resume"):
        raise ValueError("must not be given with --resume: it deletes what is to be resumed. Give one of the two.")
    return value


class TrainOptions(Options):
    """Which folds of a run to train, of which network, from which start, and where else the metrics go."""

    folds: Folds = option(
        (0,), "Fold number, several (0,1,2 or 0-4), or 'all': one model trained on every case.", flag="--fold"
    )
    configuration: str | None = option(None, "Configuration of the plan; its default if none is given.")
    network: str | None = option(None, "Network to train instead of the plan's; vm_unet_published is possible too.")
    use_scan: bool = option(True, "Train the same network without its scans.", flag="--no-scan")
    max_hours: float | None = option(None, "Training time in hours, instead of --max-minutes.", panel=LENGTH, gt=0)
    devices: Names = option(
        (), "Devices on which folds are trained in parallel, one fold on each: cuda:0,cuda:1", panel=MACHINE
    )
    init: Path | None = option(
        None,
        "Initial weights: a run, a fold, a pretraining, or a file written by `medmamba convert weights`.",
        panel=START,
    )
    resume: bool = option(False, "Continue from the last checkpoint.", panel=START)
    restart: bool = option(False, "Delete the fold's checkpoints and start again.", panel=START)
    find_best: bool = option(
        True,
        "Do not run find-best after the last fold, where it takes up to a tenth of the time of the training.",
        flag="--no-find-best",
    )
    tensorboard: bool = option(False, "Log metrics to TensorBoard too.", panel=TRACKING)
    mlflow: bool = option(False, "Log metrics to MLflow too.", panel=TRACKING)
    wandb: bool = option(False, "Log metrics to Weights & Biases too.", panel=TRACKING)

    _restart_alone = field_validator("restart")(_restart_alone)


_OF_SEVERAL_FOLDS = {"folds", "devices", "max_hours", "find_best"}
OF_ONE_FOLD = sorted({*TrainOptions.model_fields, *TrainConfig.model_fields, "fold"} - _OF_SEVERAL_FOLDS)
"""What the training of one fold reads; the others are of the command, which trains several."""


class PretrainOptions(Options):
    """Which network of a run to pretrain, on which images."""

    images: Path | None = option(None, "Folder of additional unlabelled images.")
    configuration: str | None = option(None, "Configuration of the plan; its default if none is given.")
    network: str | None = option(None, "Network to pretrain instead of the plan's.")
    resume: bool = option(False, "Continue from the last checkpoint.")
    restart: bool = option(False, "Delete the checkpoints and start again.")

    _restart_alone = field_validator("restart")(_restart_alone)
