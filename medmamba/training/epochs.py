"""A fold in training, epoch by epoch: what it is trained on, its validation, metrics, best epoch and patience."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from medmamba.compute.device import casting
from medmamba.evaluation.dice import dice_of_channels
from medmamba.evaluation.statistics import mean_of_known
from medmamba.inference.cascade import one_hot
from medmamba.inference.runner import sums_on
from medmamba.inference.sliding_window import Window, predict_logits
from medmamba.models.network import previous_labels
from medmamba.models.output_channels import OutputChannels
from medmamba.models.trained_folds import ModelFacts
from medmamba.pages.picture import Picture, draw_case
from medmamba.plans.schema import Configuration, Plan
from medmamba.preprocessing.case import plan_display
from medmamba.preprocessing.labels import label_names
from medmamba.preprocessing.store import CaseReader
from medmamba.training import distributed
from medmamba.training.config import TrainConfig
from medmamba.training.guard import COLLAPSE_EPOCHS, collapse_advice
from medmamba.training.loss_names import LossFunction
from medmamba.training.losses import dice_ce
from medmamba.training.observers import Observer
from medmamba.training.progress import EpochMetrics, Progress, Validation, write_metrics

EXAMPLES = 4
"""Cases of which a slice is kept for a picture."""


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
            # A GPU validates as it trains; on a CPU the masks are those of predict.
            precision = setup.config.precision if device.type == "cuda" else "fp32"
            self.found = validate(
                self.network, cases, setup.plan, setup.configuration, device, precision=precision, until=ends
            )
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


@torch.no_grad()
def validate(
    network: nn.Module,
    cases: Sequence[CaseReader],
    plan: Plan,
    configuration: Configuration,
    device: torch.device,
    *,
    precision: str = "fp32",
    until: float = math.inf,
) -> Validation:
    """Mean Dice over whole validation volumes; structures absent from truth and prediction do not count.

    Ignored voxels are left out, and so are channels that are not annotated in a case. After the time ``until`` (on the
    monotonic clock) no further volume is begun; the first always is.
    """
    channels, stage_labels = OutputChannels.of_plan(plan), previous_labels(plan, configuration)
    examples: dict[str, Picture] = {}
    scores: dict[str, list[float]] = {channels.names[channel]: [] for channel in channels.structures}
    foreground = voxels = 0
    seen = 0
    for case in cases:
        if seen and time.monotonic() >= until:
            break
        seen += 1
        image, truth = case.read_whole()
        if stage_labels:
            image = np.concatenate([image, one_hot(case.read_previous(), stage_labels)])
        box = Window(tuple(configuration.patch_size)).box
        sums = sums_on(device, image.shape, plan.out_channels, box)
        batch = 1 if sums.type == "cpu" else configuration.batch_size  # these fitted with their gradients
        with casting(precision, device):
            logits = predict_logits(
                network, torch.from_numpy(image), tuple(configuration.patch_size), device, batch, sums
            )
        prediction = channels.label_map(logits).cpu().numpy()
        known = np.ones(truth.shape, bool) if channels.ignore is None else truth != channels.ignore
        if len(examples) < EXAMPLES:
            display = plan_display(truth.shape, plan, configuration, case.affine)
            values = range(1, len(label_names(plan)) + 1)
            own = image[: len(plan.channel_names)]
            examples[case.case_id] = draw_case(display, values, coloured=prediction, white=truth, image=own)
        foreground += int((prediction[known] > 0).sum())
        voxels += int(known.sum())
        annotated = channels.annotated(case.annotated)
        for channel, score in dice_of_channels(truth, prediction, channels, annotated, channels.structures).items():
            scores[channels.names[channel]].append(score)
    every = [score for values in scores.values() for score in values]
    by_name = {name: mean_of_known(values) for name, values in scores.items()}
    return Validation(mean_of_known(every), by_name, foreground / max(voxels, 1), seen, examples)


def spread_subset(cases: Sequence[CaseReader], count: int | None) -> list[CaseReader]:
    """At most ``count`` cases, taken evenly from the list, so that every epoch validates on the same ones."""
    if count is None or count >= len(cases):
        return list(cases)
    return [cases[int(index)] for index in np.linspace(0, len(cases) - 1, count).round()]
