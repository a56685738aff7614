"""What the user chose for a training run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medmamba.errors import ConfigError

DEFAULT_EPOCHS = 1000
STEPS_PER_EPOCH = 250
"""nnU-Net's recipe: 1000 epochs of 250 steps."""


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
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=1e-2, ge=0)
    warmup_steps: int = Field(default=20, ge=0)
    gradient_clip: float = Field(default=12.0, gt=0)
    augment: bool = True
    seed: int = Field(default=1, ge=0)
    workers: int = Field(default=1, ge=0)
    checkpoint_minutes: float = Field(default=10.0, gt=0)
    device: str = "auto"

    @property
    def total_steps(self) -> int | None:
        """Steps after which training ends, or None when only the clock ends it."""
        wanted = [self.steps, self.epochs * self.steps_per_epoch if self.epochs is not None else None]
        given = [count for count in wanted if count is not None]
        if given:
            return min(given)
        return None if self.max_minutes is not None else DEFAULT_EPOCHS * self.steps_per_epoch


def make_config(choices: Mapping[str, Any]) -> TrainConfig:
    """The recipe with the user's choices (None: not chosen); a bad value is one line per field."""
    try:
        return TrainConfig(**{key: value for key, value in choices.items() if value is not None})
    except ValidationError as error:
        lines = []
        for fault in error.errors():
            option = "--" + "-".join(str(part) for part in fault["loc"]).replace("_", "-")
            lines.append(f"{option} {fault['input']!r}: {fault['msg'].lower()}.")
        raise ConfigError("\n".join(lines)) from error
