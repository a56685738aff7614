"""What the user chose for a training run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from medmamba.errors import ConfigError
from medmamba.plans.cost.step_time import EPOCHS, STEPS_PER_EPOCH


class TrainConfig(BaseModel):
    """Recipe of one training; written beside the checkpoints.

    The schedule is fitted to ``epochs``, ``steps`` or ``max_minutes``, whichever ends first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1)
    max_minutes: float | None = Field(default=None, gt=0)
    steps_per_epoch: int = Field(default=STEPS_PER_EPOCH, ge=1)
    batch_size: int | None = Field(default=None, ge=1, description="instead of the plan's")
    optimizer: Literal["sgd", "adamw"] = "adamw"
    learning_rate: float = Field(default=3e-3, gt=0)
    schedule: Literal["poly", "cosine"] = "poly"
    patience: int | None = Field(default=None, ge=1, description="epochs without a better Dice before training ends")
    loss: str = "dice_ce"
    class_weights: dict[str, float] = Field(default_factory=dict)
    sampling: Literal["foreground", "lesion"] = "foreground"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    ema: float | None = Field(default=None, gt=0, lt=1, description="decay of the averaged weights")
    freeze: tuple[str, ...] = ()
    recompute: bool = Field(default=False, description="activations again in the backward pass, to save memory")
    compile: bool = Field(default=False, description="the network through torch.compile")
    deterministic: bool = False
    validation_cases: int | None = Field(default=8, ge=1, description="whole volumes validated after each epoch")
    weight_decay: float = Field(default=1e-2, ge=0)
    warmup_steps: int = Field(default=20, ge=0)
    gradient_clip: float = Field(default=12.0, gt=0)
    augment: Literal["auto", "cpu", "device", "none"] = "auto"
    seed: int = Field(default=1, ge=0)
    workers: int = Field(default=1, ge=0)
    stall_seconds: float = Field(default=28.0, gt=0, description="silence after which a data worker counts as stuck")
    checkpoint_minutes: float = Field(default=10.0, gt=0)
    device: str = "auto"

    @field_validator("augment", mode="before")
    @classmethod
    def _place_of_augmentation(cls, value: Any) -> Any:
        """Recipes of before 0.2 said only whether there was any."""
        return {True: "cpu", False: "none"}[value] if isinstance(value, bool) else value

    @field_validator("loss")
    @classmethod
    def _known_loss(cls, name: str) -> str:
        from medmamba.training.losses import LOSSES

        if name not in LOSSES:
            raise ValueError(f"the losses are {', '.join(LOSSES)}")
        return name

    @field_validator("class_weights")
    @classmethod
    def _weights_are_numbers_above_zero(cls, weights: dict[str, float]) -> dict[str, float]:
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


SETTLED = ("precision", "augment")
"""Choices whose ``auto`` a run settles when it begins, for the machine it begins on, and keeps wherever it goes on."""
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
"""Choices that may change when a run is resumed; all others would make it another training."""


def make_config(choices: Mapping[str, Any], stored: TrainConfig | None = None) -> TrainConfig:
    """The recipe with the user's choices (None: not chosen); a bad value is one line per field.

    ``stored`` is the recipe of a run to be resumed: what is not chosen stays as it was, a chosen length replaces the
    old one, and a choice that would make another training of it is refused.
    """
    chosen = {key: value for key, value in choices.items() if value is not None}
    before = {} if stored is None else stored.model_dump()
    if any(chosen.get(name) is not None for name in LENGTHS):
        before |= dict.fromkeys(LENGTHS)
    try:
        made = TrainConfig(**{**before, **chosen})
    except ValidationError as error:
        lines = []
        for fault in error.errors():
            option = "--" + "-".join(str(part) for part in fault["loc"]).replace("_", "-")
            lines.append(f"{option} {fault['input']!r}: {fault['msg'].lower()}.")
        raise ConfigError("\n".join(lines)) from error
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
        and not (name in SETTLED and getattr(wanted, name) == "auto")
    ]
    if differences:
        raise ConfigError(
            f"The run to resume was started with another recipe: {'; '.join(differences)}. Resume with the old values, "
            f"or begin again with --restart."
        )
