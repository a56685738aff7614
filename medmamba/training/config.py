"""The recipe of a training: length, optimisation, data and machine. Each field is an option of ``medmamba train``."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import field_validator

from medmamba.errors import ConfigError
from medmamba.options import (
    DEVICE_TEXT,
    SCAN_BACKEND_TEXT,
    Names,
    NumbersByName,
    Options,
    Precision,
    ScanBackend,
    listed,
    option,
)
from medmamba.plans.options import EPOCHS, STEPS_PER_EPOCH
from medmamba.training.loss_names import LOSSES, is_loss_name

Optimizer = Literal["adamw", "sgd"]
Schedule = Literal["poly", "cosine"]
Sampling = Literal["foreground", "lesion"]
Augment = Literal["auto", "cpu", "device", "none"]

LENGTH, RECIPE, MACHINE = "Length", "Recipe", "Machine"
"""Headings of ``medmamba train --help``."""


class TrainConfig(Options):
    """Recipe of one training; written beside the checkpoints as train.json.

    The schedule is fitted to ``epochs``, ``steps`` or ``max_minutes``, whichever ends first.
    """

    epochs: int | None = option(
        None,
        f"Number of epochs of --steps-per-epoch steps. Default: {EPOCHS}, unless steps or a time are given.",
        panel=LENGTH,
        ge=1,
    )
    steps: int | None = option(None, "Number of optimiser steps.", panel=LENGTH, ge=1)
    max_minutes: float | None = option(
        None, "Training time in minutes; the learning rate schedule is fitted to it.", panel=LENGTH, gt=0
    )
    patience: int | None = option(
        None, "Early stopping: end after this many epochs without a better validation Dice.", panel=LENGTH, ge=1
    )
    steps_per_epoch: int = option(
        STEPS_PER_EPOCH, "Optimiser steps per epoch, after which training is validated.", panel=LENGTH, ge=1
    )
    batch_size: int | None = option(None, "Batch size instead of the plan's.", panel=RECIPE, ge=1)
    learning_rate: float = option(3e-3, "Initial learning rate.", panel=RECIPE, gt=0)
    schedule: Schedule = option("poly", f"Learning rate schedule: {listed(Schedule)}.", panel=RECIPE)
    warmup_steps: int = option(20, "Steps of linear learning rate warm-up from 0.", panel=RECIPE, ge=0)
    optimizer: Optimizer = option("adamw", f"Optimizer: {listed(Optimizer)}.", panel=RECIPE)
    weight_decay: float = option(1e-2, "Weight decay of weight matrices and convolution kernels.", panel=RECIPE, ge=0)
    gradient_clip: float = option(12.0, "Gradient clipping: largest norm of the gradient.", panel=RECIPE, gt=0)
    loss: str = option(
        "dice_ce", f"Loss: {listed(tuple(LOSSES))}, or your own function as package.module:function.", panel=RECIPE
    )
    class_weights: NumbersByName = option({}, "Class weights of the loss by label name: tumour=3,liver=1", panel=RECIPE)
    sampling: Sampling = option(
        "foreground",
        "Centre of foreground patches: foreground (a random voxel of a random label) or lesion (of a random lesion).",
        panel=RECIPE,
    )
    ema: float | None = option(
        None,
        "Decay of an exponential moving average of the weights, for example 0.999. Default: no average.",
        panel=RECIPE,
        gt=0,
        lt=1,
    )
    augment: Augment = option(
        "auto",
        "Data augmentation: cpu (patch by patch), device (whole batches, on the GPU) or none; auto: device on a GPU, "
        "else cpu.",
        panel=RECIPE,
    )
    freeze: Names = option((), "Frozen parts of the network: stem,encoder", panel=RECIPE)
    validation_cases: int | None = option(
        8, "Number of whole volumes predicted for validation after each epoch.", panel=RECIPE, ge=1
    )
    seed: int = option(1, "Random seed of weights, patches and augmentation.", panel=RECIPE, ge=0)
    workers: int | None = option(
        None,
        "Data loading processes; 0: load in the training process. Default: one less than the cores, at most 12.",
        panel=MACHINE,
        ge=0,
    )
    stall_seconds: float = option(
        28.0, "Seconds without a sign of progress after which a data worker is replaced.", panel=MACHINE, gt=0
    )
    device: str = option("auto", DEVICE_TEXT, panel=MACHINE)
    precision: Precision = option(
        "auto", f"Precision of the network: {listed(Precision)}. Scans are always computed in fp32.", panel=MACHINE
    )
    scan_backend: ScanBackend = option("auto", SCAN_BACKEND_TEXT, panel=MACHINE)
    recompute: bool = option(
        False, "Activation checkpointing: recompute activations in the backward pass to save memory.", panel=MACHINE
    )
    compile: bool = option(
        False, "Compile the network with torch.compile; if that fails, train without.", panel=MACHINE
    )
    deterministic: bool = option(
        False, "Use deterministic algorithms: every run gives identical weights.", panel=MACHINE
    )
    checkpoint_minutes: float = option(10.0, "Minutes between checkpoints.", panel=MACHINE, gt=0)

    @field_validator("loss")
    @classmethod
    def _known_loss(cls, name: str) -> str:
        if not is_loss_name(name):
            raise ValueError(f"the losses are {', '.join(LOSSES)}, or a function as package.module:function")
        return name

    @field_validator("class_weights")
    @classmethod
    def _weights_are_at_least_zero(cls, weights: dict[str, float]) -> dict[str, float]:
        if any(not 0 <= weight < float("inf") for weight in weights.values()):
            raise ValueError("each weight must be a number of at least 0")
        return weights

    @property
    def total_steps(self) -> int | None:
        """Steps after which training ends, or None when only the clock ends it."""
        given = [] if self.steps is None else [self.steps]
        if self.epochs is not None or not (given or self.max_minutes):
            given.append((self.epochs or EPOCHS) * self.steps_per_epoch)
        return min(given, default=None)


RESOLVED_AT_START = ("precision", "augment", "scan_backend")
"""Fields whose ``auto`` is resolved when a run begins, for the machine it begins on, and kept wherever it resumes."""
LENGTHS = ("epochs", "steps", "max_minutes")
FREE_ON_RESUME = (
    *LENGTHS,
    "patience",
    "workers",
    "stall_seconds",
    "checkpoint_minutes",
    "validation_cases",
    "device",
    "recompute",
)
"""Fields that may change when a run is resumed; all others would make it another training."""


def make_config(choices: Mapping[str, Any], stored: TrainConfig | None = None) -> TrainConfig:
    """The recipe with the user's choices (None: not chosen); a bad value is one line per field.

    ``stored`` is the recipe of a run to be resumed: what is not chosen stays as it was, a chosen length replaces the
    old one, and a choice that would make another training of it is refused.
    """
    chosen = {key: value for key, value in choices.items() if value is not None}
    before = {} if stored is None else stored.model_dump()
    if any(chosen.get(name) is not None for name in LENGTHS):
        before |= dict.fromkeys(LENGTHS)
    made = TrainConfig.checked({**before, **chosen})
    if stored is not None:
        refuse_another_recipe(stored, made)
    return made


def refuse_another_recipe(stored: TrainConfig, wanted: TrainConfig) -> None:
    """Raises ConfigError that names every choice that differs and may not on resuming."""
    differences = [
        f"{name} was {getattr(stored, name)!r}, now {getattr(wanted, name)!r}"
        for name in TrainConfig.model_fields
        if name not in FREE_ON_RESUME
        and getattr(stored, name) != getattr(wanted, name)
        and not (name in RESOLVED_AT_START and getattr(wanted, name) == "auto")
    ]
    if differences:
        raise ConfigError(
            f"The run to resume was started with another recipe: {'; '.join(differences)}. Resume with the old values, "
            f"or begin again with --restart."
        )
