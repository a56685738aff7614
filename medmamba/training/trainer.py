"""The training loop of one fold."""

from __future__ import annotations

import math
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from medmamba.compute.device import choose_device
from medmamba.compute.out_of_memory import is_out_of_memory
from medmamba.compute.precision import choose_precision, slow_precision
from medmamba.disk.atomic import write_text
from medmamba.errors import ConfigError, ResourceError
from medmamba.models.checkpoint import load_checkpoint, refuse_trained, save_checkpoint
from medmamba.models.network import mirroring_of, previous_labels
from medmamba.models.output_channels import OutputChannels, class_weights
from medmamba.plans.schema import Configuration, Plan
from medmamba.preprocessing.store import CaseReader
from medmamba.training import distributed
from medmamba.training.augmentation import augmentation_plan
from medmamba.training.averaging import AveragedWeights
from medmamba.training.batches import Batch, PatchSource
from medmamba.training.compiling import Compiled
from medmamba.training.config import TrainConfig
from medmamba.training.guard import FiniteGuard, collapse_advice
from medmamba.training.interrupts import Impatient, undivided
from medmamba.training.losses import DeepSupervision, LossFunction, SegmentationLoss, dice_ce
from medmamba.training.memory import Fit, smaller_fit
from medmamba.training.progress import Progress, StepReport, TrainingResult, step_report, write_metrics
from medmamba.training.schedule import SCHEDULES, Budget, warmed_up
from medmamba.training.step import StepOutcome, Stepper, make_optimizer, rate_of
from medmamba.training.validation import Validation, spread_subset, validate
from medmamba.training.workers import SupervisedWorkers

MEASURE_EVERY = 10
"""Steps between two measurements of the batch's Dice; it costs little, but not nothing."""

Observer = Callable[[str, Any], None]
"""Told of "epoch" (the row of metrics), "validation" (a Validation) and "event" (a line) as they happen."""


def train_fold(
    network: nn.Module,
    plan: Plan,
    configuration: Configuration,
    training: Sequence[CaseReader],
    validation: Sequence[CaseReader],
    folder: Path,
    config: TrainConfig,
    *,
    loss: LossFunction = dice_ce,
    resume: bool = False,
    facts: dict[str, Any] | None = None,
    on_step: Callable[[StepReport], None] = lambda report: None,
    observe: Observer = lambda what, value: None,
) -> TrainingResult:
    """Train ``network`` on the training cases and leave checkpoints, metrics and the recipe in ``folder``.

    ``facts`` are stored with every checkpoint (plan hash, network arguments). With ``resume`` the run goes on from its
    last checkpoint exactly: batches depend on (seed, step) alone.
    """
    with determinism(config.deterministic):
        fold = Training(network, plan, configuration, training, validation, folder, config, loss, facts or {}, observe)
        fold.begin(resume)
        return fold.run(on_step)


class Training:
    """One fold in training: network, optimiser, data and what has become of them so far."""

    def __init__(
        self,
        network: nn.Module,
        plan: Plan,
        configuration: Configuration,
        training: Sequence[CaseReader],
        validation: Sequence[CaseReader],
        folder: Path,
        config: TrainConfig,
        loss: LossFunction,
        facts: dict[str, Any],
        observe: Observer,
    ) -> None:
        self.device = choose_device(config.device)
        config = settled(config, self.device, previous_labels(plan, configuration) > 0)
        self.network = network.to(self.device)
        self.configuration = configuration
        self.previous_labels = previous_labels(plan, configuration)
        self.mirroring = mirroring_of(plan, configuration)
        self.body_channels = [index for index, scheme in enumerate(plan.normalization) if scheme.use_mask]
        self.training, self.validation = training, validation
        self.folder, self.checkpoints = folder, folder / "checkpoints"
        self.config, self.facts, self.observe = config, facts, observe
        self.heads = OutputChannels.of_plan(plan)
        self.optimizer = make_optimizer(self.network, config)
        weights = class_weights(self.heads, config.class_weights)
        criterion = SegmentationLoss(self.heads, loss, batch_dice=configuration.batch_dice, weights=weights)
        forward = Compiled(self.network, self._tell) if config.compile else None
        self.stepper = Stepper(
            self.network, self.optimizer, DeepSupervision(criterion), self.heads, config, self.device, forward
        )
        self.averaged = AveragedWeights(self.network, config.ema) if config.ema is not None else None
        self.budget = Budget(config.total_steps, config.max_minutes)
        self.guard = FiniteGuard()
        self.done = Progress()
        batch = config.batch_size or configuration.batch_size
        self.fit = Fit(batch, tuple(configuration.patch_size), config.recompute)
        self.stream: SupervisedWorkers | None = None
        self.seconds_per_volume: float | None = None
        self.seconds_per_save = 0.0
        self.found: Validation | None = None
        """The last validation; the first rank's alone."""
        self.validated = -1
        """After which step that was, on every rank, because all must decide alike whether another is due."""
        self.began = 0.0
        """When training would have begun if it had never been interrupted, on the monotonic clock."""
        self.ends = math.inf
        """When the minutes are used up, on the monotonic clock."""

    def begin(self, resume: bool) -> None:
        """Load the last checkpoint, or make sure that there is none."""
        if resume:
            averaged = None if self.averaged is None else self.averaged.network
            state = load_checkpoint(self.checkpoints, self.network, self.optimizer, averaged=averaged)
            self.done = Progress.from_json(state["progress"])
            self.stepper.load_state(state.get("stepper", {}))
            self.guard.rate_factor, self.guard.skipped = self.done.rate_factor, self.done.skipped
            self.fit = self.done.stored_fit() or self.fit
            if self.averaged is not None:
                self.averaged.steps = state["averaged_steps"]
            if (line := slow_precision(self.config.precision, self.device)) is not None:
                self._tell(line)
        else:
            refuse_trained(self.checkpoints)
        if distributed.rank() == 0:
            write_text(self.folder / "train.json", self.config.model_dump_json(indent=1) + "\n")
        if self.fit.batch_size % distributed.size():
            raise ConfigError(
                f"A batch of {self.fit.batch_size} cannot be shared equally by {distributed.size()} processes. "
                f"Choose --batch-size {distributed.size() * max(1, self.fit.batch_size // distributed.size())}."
            )
        self._open_stream()

    def run(self, on_step: Callable[[StepReport], None]) -> TrainingResult:
        """Steps until the budget is used up, then a last validation and a last checkpoint."""
        config, done = self.config, self.done
        last_saved = time.monotonic()
        self.began = last_saved - done.seconds
        if config.max_minutes is not None:
            self.ends = self.began + 60 * config.max_minutes
        loss = math.nan
        try:
            # An epoch that is full now was interrupted in its validation.
            stopped_early = self._end_epoch() if self._epoch_is_full else self._out_of_patience()
            while not stopped_early and (share := distributed.from_first(self._share_used())) < 1.0:
                rate = warmed_up(
                    SCHEDULES[config.schedule](config.learning_rate, share) * self.guard.rate_factor,
                    done.step,
                    config.warmup_steps,
                )
                loss = self._step(rate)
                stopped_early = self._epoch_is_full and self._end_epoch()
                if time.monotonic() - last_saved > 60 * config.checkpoint_minutes:
                    self.save()
                    last_saved = time.monotonic()
                on_step(step_report(done, config, self._share_used(), loss, rate))
            if self.validation and (self.validated != done.step or self._validated_a_part):
                self._validate(self.validation)
        except BaseException as error:
            # Interrupted or failed: keep what was learnt. A non-finite run must not replace a good checkpoint.
            if done.step and self.guard.in_a_row == 0 and not isinstance(error, Impatient):
                self.save()
            if (lost := distributed.lost_rank(error)) is not None:
                raise lost from error
            raise
        finally:
            self._close_stream()
        self.save()
        if done.epoch.steps:  # an epoch that the budget did not fill, which a resumed run goes on with
            self.observe("epoch", self._rows()[-1])
        return TrainingResult(
            folder=self.folder,
            steps=done.step,
            seconds=done.seconds,
            final_loss=loss,
            validation_dice=done.validation_dice,
            best_dice=done.best_dice,
            best_epoch=done.best_epoch,
            epochs=len(done.epochs),
            by_name={} if self.found is None else self.found.by_name,
            waiting=float(np.mean([row["waiting_for_data"] for row in done.epochs])) if done.epochs else done.waiting,
            peak_memory_gib=peak_memory_gib(self.device),
            stopped_early=stopped_early,
            events=tuple(done.events),
        )

    def _share_used(self) -> float:
        """Of the budget; what the last validation and checkpoint will take counts as used."""
        volumes, done = len(self.validation), self.done
        if self.seconds_per_volume is not None:
            closing = volumes * self.seconds_per_volume
        else:  # nothing measured yet
            closing = 6 * (self.config.max_minutes or 0.0) if volumes else 0.0
        # One step more may start just before the end. The mean of the whole run, because that of an epoch jumps at its
        # start, and the learning rate with it.
        closing += self.seconds_per_save + done.seconds / max(done.step, 1)
        return self.budget.progress(done.step, done.seconds, closing)

    def save(self, generation: str = "last") -> None:
        """Write a generation of checkpoints, and with "last" the metrics; only the first of several processes does."""
        if distributed.rank() != 0:
            return
        started = time.monotonic()
        state = {
            **self.facts,
            "config": self.config.model_dump(),
            "progress": asdict(self.done),
            "stepper": self.stepper.state(),
            "averaged_steps": 0 if self.averaged is None else self.averaged.steps,
        }
        averaged = None if self.averaged is None else self.averaged.network
        optimizer = self.optimizer if generation == "last" else None
        save_checkpoint(self.checkpoints, self.network, optimizer, state, generation=generation, averaged=averaged)
        if generation == "last":
            write_metrics(self.folder, self._rows())
        self.seconds_per_save = time.monotonic() - started

    @property
    def _validated_a_part(self) -> bool:
        count = self.config.validation_cases
        return count is not None and count < len(self.validation)

    @property
    def _epoch_is_full(self) -> bool:
        return self.done.epoch.steps > 0 and self.done.step % self.config.steps_per_epoch == 0

    def _step(self, rate: float) -> float:
        """One step on the next batch, smaller when memory runs out, until it fits; returns the loss."""
        while True:
            try:
                batch = self._next_batch()
                with undivided():
                    outcome = self.stepper.step(batch, rate, measure=self.done.step % MEASURE_EVERY == 0)
                    self._count(outcome, batch)
                return outcome.loss
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or distributed.size() > 1:
                    raise
                short_of_memory = str(error).splitlines()[0][:100]
            self._shrink(short_of_memory)  # here, where the error no longer holds the tensors of the step

    def _count(self, outcome: StepOutcome, batch: Batch) -> None:
        """What follows from a step: averaged weights, what is known of the epoch, and whether to go on."""
        done, finite = self.done, math.isfinite(outcome.loss)
        if finite and self.averaged is not None:
            self.averaged.update(self.network)
        if finite or not self.stepper.loss_scale_is_searching:
            if (line := self.guard.after_step(finite, batch, self.folder)) is not None:
                self._tell(line)
            done.rate_factor, done.skipped = self.guard.rate_factor, self.guard.skipped
        done.epoch.add(outcome.loss, outcome.dice, self.stream.last_wait if self.stream else 0.0)
        done.step += 1
        done.seconds = time.monotonic() - self.began

    def _shrink(self, reason: str) -> None:
        """Go on with less in memory: a new stream from this step on."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        before = self.fit
        divisor = self.configuration.network.divisor
        self.fit = smaller_fit(self.fit, divisor, hasattr(self.network, "checkpoint_blocks"))
        self.done.remember_fit(self.fit)
        self._tell(f"Out of memory at step {self.done.step} ({reason}) with {before}; going on with {self.fit}.")
        self._close_stream()
        self._open_stream()

    def _next_batch(self) -> Batch:
        assert self.stream is not None
        return self.stream.source.finished(next(self.stream), self.device)

    def _open_stream(self) -> None:
        mirroring, config, fit = self.mirroring, self.config, self.fit
        if hasattr(self.network, "checkpoint_blocks"):
            setattr(self.network, "checkpoint_blocks", fit.recompute)  # noqa: B010, not an attribute of every Module
        elif fit.recompute:
            raise ConfigError("This network cannot recompute its activations. Leave --recompute out.")
        source = PatchSource(
            self.training,
            augmentation_plan(
                fit.patch_size,
                tuple(mirroring.axes),
                keeps_sides=mirroring.keeps_sides,
                swap_axis=mirroring.swap_axis,
                label_swap=self.heads.label_swap,
            ),
            fit.batch_size,
            seed=config.seed,
            first_step=self.done.step,
            augmented=config.augment,
            heads=self.heads,
            sampling=config.sampling,
            samples=distributed.own_samples(fit.batch_size),
            previous_labels=self.previous_labels,
            body_channels=self.body_channels,
        )
        self.stream = SupervisedWorkers(source, config.workers, stall_seconds=config.stall_seconds, on_fault=self._tell)

    def _close_stream(self) -> None:
        if self.stream is not None:
            self.stream.close()
            self.stream = None

    def _validate(self, cases: Sequence[CaseReader]) -> None:
        if not cases:
            return
        self.found = None
        if distributed.rank() == 0:
            network = self.network if self.averaged is None else self.averaged.network
            started = time.monotonic()
            self.found = validate(
                network,
                cases,
                self.configuration,
                self.heads,
                self.device,
                previous_labels=self.previous_labels,
                until=self.ends,
            )
            self.seconds_per_volume = (time.monotonic() - started) / self.found.cases
            if self.found.cases < len(cases):
                self._tell(f"The minutes were used up after {self.found.cases} of {len(cases)} validation volumes.")
        self.done.validation_dice = distributed.from_first(math.nan if self.found is None else self.found.mean)
        self.done.seconds, self.validated = time.monotonic() - self.began, self.done.step
        if self.found is not None:
            self.observe("validation", self.found)

    def _end_epoch(self) -> bool:
        """Validate and write down what the epoch came to; returns whether patience is at its end."""
        self._validate(spread_subset(self.validation, self.config.validation_cases))
        with undivided():
            self._record_epoch()
            return self._out_of_patience()

    def _record_epoch(self) -> None:
        done, row = self.done, self._rows()[-1]
        done.end_epoch(row)
        best = done.best_dice if done.best_dice is not None else 0.0
        if done.validation_dice is not None and done.validation_dice >= best:
            if done.validation_dice > best or done.best_epoch == 0:
                done.best_epoch = row["epoch"]  # an equal Dice renews the weights, not the patience
            done.best_dice = done.validation_dice
            self.save("best")
        if distributed.size() > 1:
            speeds = distributed.gathered(row["steps_per_second"] * self.fit.batch_size / distributed.size())
            if len(done.epochs) == 1:
                each = ", ".join(f"{speed:.2f}" for speed in speeds)
                self._tell(
                    f"Patches per second of each of {len(speeds)} processes: {each}; {sum(speeds):.2f} together."
                )
        if distributed.rank() == 0:
            write_metrics(self.folder, self._rows())
            self.observe("epoch", row)
        judged = [e["validation_dice"] if self.validation else e["train_dice"] for e in done.epochs]
        share = None if self.found is None else self.found.foreground_share
        if len(done.epochs) % 3 == 0 and (advice := collapse_advice(judged, share)) is not None:
            self._tell(advice)

    def _rows(self) -> list[dict[str, Any]]:
        """Of the metrics, that of the running epoch with its validation where there has been one."""
        validated = self.validated == self.done.step
        by_name = self.found.by_name if validated and self.found is not None else None
        return self.done.rows(rate_of(self.optimizer), self.done.validation_dice if validated else None, by_name)

    def _out_of_patience(self) -> bool:
        patience, done = self.config.patience, self.done
        if patience is None or not self.validation or len(done.epochs) - done.best_epoch < patience:
            return False
        self._tell(
            f"No better Dice in {patience} epochs (best {done.best_dice or 0:.4f} in epoch {done.best_epoch}); "
            f"training ends here."
        )
        return True

    def _tell(self, line: str) -> None:
        self.done.events.append(line)
        self.observe("event", line)


def settled(config: TrainConfig, device: torch.device, cascade: bool) -> TrainConfig:
    """The recipe with its ``auto`` decided for this machine; raises ConfigError for what cannot be."""
    augment = config.augment
    if augment == "auto":
        augment = "device" if device.type == "cuda" and not cascade else "cpu"
    if augment == "device" and cascade:
        raise ConfigError(
            "--augment device: the second stage of a cascade can only be augmented by the data workers. Use cpu."
        )
    return config.model_copy(update={"augment": augment, "precision": choose_precision(config.precision, device)})


@contextmanager
def determinism(wanted: bool) -> Iterator[None]:
    """Equal bytes on every run: deterministic algorithms only, and on the CPU one thread whatever the machine has."""
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    threads, before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    except RuntimeError as error:
        if "deterministic" in str(error):
            raise ResourceError(
                f"--deterministic: this network uses an operation without a deterministic form on this device "
                f"({str(error).splitlines()[0][:120]}). Train on the CPU, or without --deterministic."
            ) from error
        raise
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(before)


def peak_memory_gib(device: torch.device) -> float:
    """Largest memory so far: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
