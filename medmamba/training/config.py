"""The recipe of a training: length, optimisation, data and machine. Each field is an option of ``medmamba train``."""

from __future__ import annotations

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
from medmamba.plans.training_length import EPOCHS, STEPS_PER_EPOCH
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
        f"Length in epochs of {STEPS_PER_EPOCH} steps (or --steps-per-epoch); {EPOCHS} if no length is given.",
        panel=LENGTH,
        ge=1,
    )
    steps: int | None = option(None, "Length in steps.", panel=LENGTH, ge=1)
    max_minutes: float | None = option(None, "Length in minutes; the schedule ends inside.", panel=LENGTH, gt=0)
    patience: int | None = option(None, "Epochs without a better Dice after which training ends.", panel=LENGTH, ge=1)
    steps_per_epoch: int = option(STEPS_PER_EPOCH, "Steps between two validations.", panel=LENGTH, ge=1)
    batch_size: int | None = option(None, "Batch size instead of the plan's.", panel=RECIPE, ge=1)
    learning_rate: float = option(3e-3, "Initial learning rate.", panel=RECIPE, gt=0)
    schedule: Schedule = option("poly", f"Decay of the learning rate: {listed(Schedule)}.", panel=RECIPE)
    warmup_steps: int = option(20, "Steps over which the learning rate rises from 0.", panel=RECIPE, ge=0)
    optimizer: Optimizer = option("adamw", f"Optimizer: {listed(Optimizer)}.", panel=RECIPE)
    weight_decay: float = option(1e-2, "Weight decay of matrices and kernels.", panel=RECIPE, ge=0)
    gradient_clip: float = option(12.0, "Largest norm of the gradient; above, it is scaled down.", panel=RECIPE, gt=0)
    loss: str = option(
        "dice_ce", f"Loss: {listed(tuple(LOSSES))}, or a function of yours as package.module:function.", panel=RECIPE
    )
    class_weights: NumbersByName = option(
        {}, "Weights of classes in the loss by label name: tumour=3,liver=1", panel=RECIPE
    )
    sampling: Sampling = option(
        "foreground", "What patches are centred on: foreground, or lesion (every lesion equally often).", panel=RECIPE
    )
    ema: float | None = option(
        None, "Decay of an exponential average of the weights, e.g. 0.999; none if not given.", panel=RECIPE, gt=0, lt=1
    )
    augment: Augment = option(
        "auto",
        "Where patches are augmented: cpu (one at a time), device (whole batches, on the GPU) or none; auto: on a GPU "
        "if there is one.",
        panel=RECIPE,
    )
    freeze: Names = option((), "Parts of the network that are not trained: stem,encoder", panel=RECIPE)
    validation_cases: int | None = option(8, "Whole volumes validated after each epoch.", panel=RECIPE, ge=1)
    seed: int = option(1, "Seed of weights, patches and augmentation.", panel=RECIPE, ge=0)
    workers: int = option(1, "Processes that make batches; 0: none.", panel=MACHINE, ge=0)
    stall_seconds: float = option(
        28.0, "Seconds of silence after which a data worker is replaced.", panel=MACHINE, gt=0
    )
    device: str = option("auto", DEVICE_TEXT, panel=MACHINE)
    precision: Precision = option(
        "auto", f"Precision of the network: {listed(Precision)}; scans are always fp32.", panel=MACHINE
    )
    scan_backend: ScanBackend = option("auto", SCAN_BACKEND_TEXT, panel=MACHINE)
    recompute: bool = option(
        False, "Save memory: compute activations a second time in the backward pass.", panel=MACHINE
    )
    compile: bool = option(
        False, "Run the network through torch.compile; where that fails, training continues without it.", panel=MACHINE
    )
    deterministic: bool = option(False, "Deterministic algorithms: the same bytes on every run.", panel=MACHINE)
    checkpoint_minutes: float = option(10.0, "Minutes between checkpoints.", panel=MACHINE, gt=0)

    @field_validator("augment", mode="before")
    @classmethod
    def _place_of_augmentation(cls, value: Any) -> Any:
        """Recipes of before 0.2 said only whether there was any."""
        return {True: "cpu", False: "none"}[value] if isinstance(value, bool) else value

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
        wanted = [self.steps, self.epochs * self.steps_per_epoch if self.epochs is not None else None]
        given = [count for count in wanted if count is not None]
        if given:
            return min(given)
        return None if self.max_minutes is not None else EPOCHS * self.steps_per_epoch


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
