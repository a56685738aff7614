"""A fold in training, epoch by epoch: what it is trained on, its validation, metrics, best epoch and patience."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import nn

from medmamba.models.output_channels import OutputChannels
from medmamba.models.trained_folds import ModelFacts
from medmamba.plans.schema import Configuration, Plan
from medmamba.preprocessing.store import CaseReader
from medmamba.training import distributed
from medmamba.training.config import TrainConfig
from medmamba.training.guard import COLLAPSE_EPOCHS, collapse_advice
from medmamba.training.losses import LossFunction, dice_ce
from medmamba.training.observers import Observer
from medmamba.training.progress import EpochMetrics, Progress, write_metrics
from medmamba.training.validation import Validation, spread_subset, validate


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


class Epochs:
    """What is known of the validation cases, epoch by epoch.

    Validation runs on the first rank alone; every rank learns its mean Dice and the time it took place at, because all
    must decide alike whether another is due.
    """

    def __init__(self, setup: FoldSetup, network: nn.Module, done: Progress, observer: Observer) -> None:
        self.setup = setup
        self.network = network
        self.cases = setup.validation
        self.done = done
        self.observer = observer
        self.found: Validation | None = None
        """The last validation; None on other ranks than the first."""
        self.seconds_per_volume: float | None = None
        self._validated_step = -1

    def validate(self, ends: float, *, whole: bool) -> None:
        """Validate on all cases, or on those of every epoch; no volume is begun after the time ``ends``."""
        setup = self.setup
        cases = self.cases if whole else spread_subset(self.cases, setup.config.validation_cases)
        if not cases:
            return
        self.found, started = None, time.monotonic()
        if distributed.rank() == 0:
            device = next(self.network.parameters()).device
            self.found = validate(self.network, cases, setup.plan, setup.configuration, device, until=ends)
            self.seconds_per_volume = (time.monotonic() - started) / self.found.cases
            if self.found.cases < len(cases):
                self.observer.event(
                    f"The minutes were used up after {self.found.cases} of {len(cases)} validation volumes."
                )
        self.done.validation_dice = distributed.from_first(math.nan if self.found is None else self.found.mean)
        self._validated_step = self.done.step
        elapsed = time.monotonic() - started
        self.done.validation_seconds += elapsed
        self.done.seconds += elapsed
        if self.found is not None:
            self.observer.validation(self.found)

    def validation_is_due(self) -> bool:
        """Whether a training that ends now still needs a validation on all cases."""
        count = self.setup.config.validation_cases
        in_part = count is not None and count < len(self.cases)
        return bool(self.cases) and (self._validated_step != self.done.step or in_part)

    def metrics(self, rate: float) -> list[EpochMetrics]:
        """Of every epoch, the running one with its validation where there has been one."""
        done = self.done
        validated = self._validated_step == done.step
        by_name = self.found.by_name if validated and self.found is not None else None
        return done.metrics(rate, done.validation_dice if validated else None, by_name)

    def close(self, rate: float) -> bool:
        """End the running epoch; returns whether its validation Dice is (or equals) the best so far."""
        done, metrics = self.done, self.metrics(rate)[-1]
        done.end_epoch(metrics)
        best = done.best_dice if done.best_dice is not None else 0.0
        if done.validation_dice is None or not done.validation_dice >= best:
            return False
        if done.validation_dice > best or done.best_epoch == 0:
            done.best_epoch = metrics.epoch  # an equal Dice renews the weights, not the patience
        done.best_dice = done.validation_dice
        return True

    def publish(self, rate: float, batch_size: int) -> None:
        """Write the metrics of the epoch that ended, report it, and give advice where training has collapsed."""
        done, last = self.done, self.done.epochs[-1]
        if distributed.size() > 1:
            speeds = distributed.gathered(last.steps_per_second * batch_size / distributed.size())
            if len(done.epochs) == 1:
                each = ", ".join(f"{speed:.2f}" for speed in speeds)
                self.observer.event(
                    f"Patches per second of each of {len(speeds)} processes: {each}; {sum(speeds):.2f} together."
                )
        if distributed.rank() == 0:
            write_metrics(self.setup.folder, self.metrics(rate))
            self.observer.epoch(last)
        dices = [epoch.validation_dice if self.cases else epoch.train_dice for epoch in done.epochs]
        fraction = None if self.found is None else self.found.foreground_fraction
        if len(done.epochs) % COLLAPSE_EPOCHS == 0 and (advice := collapse_advice(dices, fraction)) is not None:
            self.observer.event(advice)

    def out_of_patience(self) -> bool:
        """Whether the best epoch is too long ago; says so."""
        patience, done = self.setup.config.patience, self.done
        if patience is None or not self.cases or len(done.epochs) - done.best_epoch < patience:
            return False
        self.observer.event(
            f"No better Dice in {patience} epochs (best {done.best_dice or 0:.4f} in epoch {done.best_epoch}); "
            f"training ends here."
        )
        return True
