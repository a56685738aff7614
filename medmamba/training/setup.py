"""What the training of one fold is made of: plan, cases, recipe, loss, and where its files go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from medmamba.models.network import previous_labels
from medmamba.models.output_channels import OutputChannels
from medmamba.models.trained_folds import ModelFacts
from medmamba.plans.schema import Configuration, Plan
from medmamba.preprocessing.store import CaseReader
from medmamba.training.config import TrainConfig
from medmamba.training.losses import LossFunction, dice_ce


@dataclass(frozen=True)
class FoldSetup:
    """One fold to train.

    Attributes:
        training, validation: stored cases of the configuration; without validation cases nothing is validated.
        folder: for checkpoints, metrics and the recipe.
        facts: stored with every checkpoint.
        loss: the function that ``config.loss`` names.
    """

    plan: Plan
    configuration: Configuration
    training: Sequence[CaseReader]
    validation: Sequence[CaseReader]
    folder: Path
    config: TrainConfig
    facts: ModelFacts
    loss: LossFunction = dice_ce

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints' generations."""
        return self.folder / "checkpoints"

    @cached_property
    def channels(self) -> OutputChannels:
        """What the network's output channels mean."""
        return OutputChannels.of_plan(self.plan)

    @property
    def previous_labels(self) -> int:
        """Labels of a cascade's first stage, which are channels of the image."""
        return previous_labels(self.plan, self.configuration)
