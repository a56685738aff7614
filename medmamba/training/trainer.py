"""The training loop of one fold."""

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from medmamba.compute.device import choose_device, fragments_advice, is_out_of_memory, slow_precision
from medmamba.disk.atomic import write_json
from medmamba.errors import ConfigError, first_line
from medmamba.models.checkpoint import load_checkpoint, refuse_trained, save_checkpoint
from medmamba.models.network import mirroring_of, previous_labels
from medmamba.models.output_channels import class_weights
from medmamba.plans.json_record import as_written, sealed
from medmamba.training import distributed
from medmamba.training.augmentation import augmentation_plan
from medmamba.training.batches import Batch, PatchRecipe, PatchSource
from medmamba.training.epochs import Epochs, FoldSetup
from medmamba.training.guard import FiniteGuard, MemorySettings, smaller_fit
from medmamba.training.losses import DeepSupervision, SegmentationLoss
from medmamba.training.machine import SecondInterrupt, deferred_interrupts, determinism, gpu_settings, peak_memory_gib
from medmamba.training.observers import Observer, Observers
from medmamba.training.placement import Placement
from medmamba.training.progress import Progress, StepReport, TrainingResult, write_metrics
from medmamba.training.step import (
    AveragedWeights,
    Compiled,
    StepOutcome,
    Stepper,
    budget_used,
    learning_rate,
    make_optimizer,
    rate_of,
)
from medmamba.training.workers import SupervisedWorkers, automatic_workers

NO_RECOMPUTE = "This network cannot recompute its activations. Leave --recompute out."
MEASURE_EVERY = 10
"""Steps between two measurements of the batch's Dice; it costs little, but not nothing."""


class Training:
    """One fold in training: network, optimiser, data and progress.

    The recipe is :func:`medmamba.training.machine.resolved`. With ``resume`` training continues from the last
    checkpoint exactly: batches depend on (seed, step) alone.
    """

    def __init__(self, network: nn.Module, setup: FoldSetup, observer: Observer, *, resume: bool = False) -> None:
        self.device = choose_device(setup.config.device)
        self.setup, self.config = setup, (config := setup.config)
        self.network = network.to(self.device)
        self.optimizer = make_optimizer(self.network, config)
        self.averaged = AveragedWeights(self.network, config.ema) if config.ema is not None else None
        if not resume:
            refuse_trained(setup.checkpoints)
        stored = setup.checkpoints, "checkpoint to be resumed", "Restore it, or begin again with --restart."
        with as_written(*stored):
            state = self._load() if resume else None
            self.done = Progress() if state is None else Progress.from_json(state["progress"], setup.checkpoints)
        self.observer = Observers([observer], self.done.events.append)
        self.guard = FiniteGuard(rate_factor=self.done.rate_factor, skipped=self.done.skipped)
        batch = config.batch_size or setup.configuration.batch_size
        self.fit = self.done.fit or MemorySettings(batch, tuple(setup.configuration.patch_size), config.recompute)
        self.stepper = self._stepper()
        if state is not None:
            with as_written(*stored):
                self.stepper.load_state(state.get("stepper", {}))
            if (line := slow_precision(config.precision, self.device)) is not None:
                self.observer.event(line)
        evaluated = self.network if self.averaged is None else self.averaged.network
        self.epochs = Epochs(setup, evaluated, self.done, self.observer)
        self.seconds_per_save = 0.0
        self.loss = math.nan
        """Of the last step whose outcome is known."""
        self.began = 0.0
        """When training would have begun if it had never been interrupted, on the monotonic clock."""
        self.ends = math.inf
        """When the minutes are used up, on the monotonic clock."""
        if distributed.rank() == 0:
            write_json(setup.folder / "train.json", sealed(config.model_dump(mode="json")))
        if self.fit.batch_size % distributed.size():
            raise ConfigError(
                f"A batch of {self.fit.batch_size} cannot be shared equally by {distributed.size()} processes. "
                f"Choose --batch-size {distributed.size() * max(1, self.fit.batch_size // distributed.size())}."
            )
        self.stream = self._open_stream()

    def _load(self) -> dict[str, Any]:
        """The last checkpoint, into network, optimiser and averaged weights; returns its state."""
        averaged = None if self.averaged is None else self.averaged.network
        state = load_checkpoint(self.setup.checkpoints, self.network, self.optimizer, averaged=averaged)
        if self.averaged is not None:
            self.averaged.steps = state["averaged_steps"]
        return state

    def _stepper(self) -> Stepper:
        setup, config = self.setup, self.config
        weights = class_weights(setup.channels, config.class_weights)
        loss = SegmentationLoss(setup.channels, setup.loss, batch_dice=setup.configuration.batch_dice, weights=weights)
        forward = Compiled(self.network, self.observer.event) if config.compile else self.network
        return Stepper(self.network, self.optimizer, DeepSupervision(loss), setup.channels, config, forward)

    def run(self, on_step: Callable[[StepReport], None] = lambda report: None) -> TrainingResult:
        """Steps until the budget is used up, then a last validation; leaves checkpoints and metrics in the folder."""
        with determinism(self.config.deterministic), gpu_settings(self.config, self.device):
            return self._run(on_step)

    def _run(self, on_step: Callable[[StepReport], None]) -> TrainingResult:
        config, done = self.config, self.done
        last_saved = time.monotonic()
        self.began = last_saved - done.seconds
        if config.max_minutes is not None:
            self.ends = self.began + 60 * config.max_minutes
        try:
            # An epoch that is full now was interrupted in its validation.
            stopped_early = self._end_epoch() if self._epoch_is_full else self.epochs.out_of_patience()
            while not stopped_early and (used := distributed.from_first(self._budget_used())) < 1.0:
                rate = learning_rate(config, done.step, used) * self.guard.rate_factor
                loss = self._step(rate)
                stopped_early = self._epoch_is_full and self._end_epoch()
                if time.monotonic() - last_saved > 60 * config.checkpoint_minutes:
                    self.save()
                    last_saved = time.monotonic()
                on_step(done.report(config.total_steps, self._budget_used(), loss, rate))
            if self.epochs.validation_is_due():
                self.epochs.validate(self.ends, whole=True)
        except BaseException as error:
            # Interrupted or failed: keep what was learnt. A non-finite run must not replace a good checkpoint.
            if done.step and self.guard.in_a_row == 0 and not isinstance(error, SecondInterrupt):
                self.save()
            if (lost := distributed.lost_rank(error)) is not None:
                raise lost from error
            raise
        finally:
            self.stream.close()
        self.save()
        if done.epoch.steps:  # an epoch that the budget did not fill, which a resumed run continues
            self.observer.epoch(self.epochs.metrics(rate_of(self.optimizer))[-1])
        found = self.epochs.found
        return TrainingResult(
            folder=self.setup.folder,
            steps=done.step,
            seconds=done.seconds,
            final_loss=self.loss,
            validation_dice=done.validation_dice,
            best_dice=done.best_dice,
            best_epoch=done.best_epoch,
            epochs=len(done.epochs),
            by_name={} if found is None else found.by_name,
            waiting=float(np.mean([epoch.waiting_for_data for epoch in done.epochs])) if done.epochs else done.waiting,
            peak_memory_gib=peak_memory_gib(self.device),
            validation_seconds=done.validation_seconds,
            stopped_early=stopped_early,
            events=tuple(done.events),
        )

    def _budget_used(self) -> float:
        """Fraction of the budget; what the last validation and checkpoint will take counts as used."""
        volumes, done = len(self.setup.validation), self.done
        if self.epochs.seconds_per_volume is not None:
            closing = volumes * self.epochs.seconds_per_volume
        else:  # nothing measured yet
            closing = 6 * (self.config.max_minutes or 0.0) if volumes else 0.0
        # One step more may start just before the end. The mean of the whole run, because that of an epoch jumps at its
        # start, and the learning rate with it.
        closing += self.seconds_per_save + done.seconds / max(done.step, 1)
        return budget_used(self.config, done.step, done.seconds, closing)

    def save(self, generation: str = "last") -> None:
        """Write a generation of checkpoints, and with "last" the metrics; only the first of several processes does."""
        self._count_outcome(self.stepper.last())
        if distributed.rank() != 0:
            return
        started = time.monotonic()
        state = {
            **self.setup.facts.as_json(),
            "config": self.config.model_dump(),
            "progress": self.done.as_json(),
            "stepper": self.stepper.state(),
            "averaged_steps": 0 if self.averaged is None else self.averaged.steps,
        }
        averaged = None if self.averaged is None else self.averaged.network
        optimizer = self.optimizer if generation == "last" else None
        save_checkpoint(
            self.setup.checkpoints, self.network, optimizer, state, generation=generation, averaged=averaged
        )
        if generation == "last":
            write_metrics(self.setup.folder, self.epochs.metrics(rate_of(self.optimizer)))
        self.seconds_per_save = time.monotonic() - started

    @property
    def _epoch_is_full(self) -> bool:
        return self.done.epoch.steps > 0 and self.done.step % self.config.steps_per_epoch == 0

    def _next_batch(self) -> Batch:
        """The batch as input of the network."""
        return self.stream.source.finished(self.placement.arrived(next(self.stream)))

    def _step(self, rate: float) -> float:
        """One step on the next batch, smaller when memory runs out, until it fits; returns the loss."""
        while True:
            try:
                batch = self._next_batch()
                with deferred_interrupts():
                    outcome = self.stepper.step(batch, rate, measure=self.done.step % MEASURE_EVERY == 0)
                    self._count_step(outcome)
                return self.loss
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or distributed.size() > 1:
                    raise
                short_of_memory = first_line(error)
            self._shrink(short_of_memory)  # here, where the error no longer holds the tensors of the step

    def _count_step(self, outcome: StepOutcome | None) -> None:
        """What follows from a step: averaged weights, progress, and the outcome that is known now.

        On a GPU whether the step was finite is not known yet; if it was not, its weights are those of the step before.
        """
        done = self.done
        applied = self.stepper.reads_later or (outcome is not None and math.isfinite(outcome.loss))
        if self.averaged is not None and applied:
            self.averaged.update(self.network)
        done.epoch.add_step(self.stream.last_wait)
        self._count_outcome(outcome)
        done.step += 1
        done.seconds = time.monotonic() - self.began

    def _count_outcome(self, outcome: StepOutcome | None) -> None:
        """What follows from a step's outcome: the epoch's means, and the guard's consequences."""
        if outcome is None:
            return
        done, finite, self.loss = self.done, math.isfinite(outcome.loss), outcome.loss
        if finite or not self.stepper.loss_scale_is_searching:
            if (line := self.guard.after_step(finite, outcome.batch, self.setup.folder)) is not None:
                self.observer.event(line)
            done.rate_factor, done.skipped = self.guard.rate_factor, self.guard.skipped
        done.epoch.add_outcome(outcome.loss, outcome.dice)

    def _shrink(self, reason: str) -> None:
        """Continue with less in memory: a new stream from this step on."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        before, divisor = self.fit, self.setup.configuration.network.divisor
        self.fit = self.done.fit = smaller_fit(before, divisor, hasattr(self.network, "checkpoint_blocks"))
        self.observer.event(
            f"Out of memory at step {self.done.step} ({reason}) with {before}; continuing with {self.fit}."
            + fragments_advice(self.device)
        )
        self.stream.close()
        self.stream = self._open_stream()

    def _open_stream(self) -> SupervisedWorkers:
        """Batches from the next step on."""
        setup, config, fit = self.setup, self.config, self.fit
        if hasattr(self.network, "checkpoint_blocks"):
            setattr(self.network, "checkpoint_blocks", fit.recompute)  # noqa: B010, not an attribute of every Module
        elif fit.recompute:
            raise ConfigError(NO_RECOMPUTE)
        mirroring = mirroring_of(setup.plan, setup.configuration)
        recipe = PatchRecipe(
            augmentation_plan(fit.patch_size, mirroring, setup.channels.label_swap),
            fit.batch_size,
            config.seed,
            augment=config.augment,
            sampling=config.sampling,
            channels=setup.channels,
            previous_labels=previous_labels(setup.plan, setup.configuration),
            masked_channels=tuple(i for i, scheme in enumerate(setup.plan.normalization) if scheme.use_mask),
            samples=distributed.own_samples(fit.batch_size),
        )
        source = PatchSource(setup.training, recipe, self.done.step)
        self.placement = Placement(self.device)
        return SupervisedWorkers(
            source,
            automatic_workers() if config.workers is None else config.workers,
            stall_seconds=config.stall_seconds,
            on_fault=self.observer.event,
            place=self.placement.place,
        )

    def _end_epoch(self) -> bool:
        """Validate and write down what the epoch came to; returns whether patience is at its end."""
        self._count_outcome(self.stepper.last())
        self.epochs.validate(self.ends, whole=False)
        rate = rate_of(self.optimizer)
        with deferred_interrupts():
            if self.epochs.close(rate):
                self.save("best")
            self.epochs.publish(rate, self.fit.batch_size)
            return self.epochs.out_of_patience()
