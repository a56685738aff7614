"""Progress of a training: state for resuming, progress line, metrics of each epoch, validation, result."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from medmamba.disk.atomic import write_json
from medmamba.disk.table import write_table
from medmamba.pages.picture import Picture
from medmamba.plans.json_record import as_written, read_stored
from medmamba.training.guard import MemorySettings


@dataclass(frozen=True)
class EpochMetrics:
    """One row of metrics.csv and metrics.json: the name of each field is its column.

    Attributes:
        seconds: until the end of the epoch, with validation.
        steps_per_second: validation left out.
        loss: mean of the epoch's steps; nan without a finite one.
        train_dice: mean foreground Dice of the batches that were measured.
        validation_dice: mean over classes and validated volumes; None without a validation.
        waiting_for_data: fraction of the epoch's time.
        skipped_steps: of the whole training, because loss or gradient was not finite.
        by_name: validation Dice of each class; further columns.
    """

    epoch: int
    step: int
    seconds: float
    loss: float
    train_dice: float | None
    validation_dice: float | None
    learning_rate: float
    steps_per_second: float
    waiting_for_data: float
    skipped_steps: int
    by_name: Mapping[str, float] = field(default_factory=dict)

    def as_row(self) -> dict[str, Any]:
        """Column to value, as in the files; a number that is not finite is None."""
        row = {name: getattr(self, name) for name in COLUMNS}
        row |= {name: value for name, value in self.by_name.items() if name not in COLUMNS}
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "EpochMetrics":
        """The counterpart of :meth:`as_row`; None is nan where the field is a number."""
        known = {name: row.get(name) for name in COLUMNS}
        known["loss"] = math.nan if known["loss"] is None else known["loss"]
        by_name = {name: math.nan if value is None else value for name, value in row.items() if name not in COLUMNS}
        return cls(**known, by_name=by_name)  # type: ignore[arg-type]


COLUMNS = tuple(column.name for column in fields(EpochMetrics) if column.name != "by_name")


@dataclass(frozen=True)
class StepReport:
    """What a person sees while training runs."""

    step: int
    total_steps: int | None
    loss: float
    learning_rate: float
    validation_dice: float | None
    progress: float
    """Fraction of the budget that is used."""
    seconds: float
    waiting: float = 0.0
    """Fraction of this epoch's time spent waiting for data."""
    validation_seconds: float = 0.0
    """Of ``seconds``."""

    @property
    def steps_per_second(self) -> float:
        """Validation left out."""
        return self.step / max(self.seconds - self.validation_seconds, 1e-6)

    @property
    def seconds_left(self) -> float:
        """Estimated from the fraction of the budget that is used; of steps, without the validations to come."""
        seconds = self.seconds - (0.0 if self.total_steps is None else self.validation_seconds)
        return seconds * (1 - self.progress) / self.progress if self.progress > 0 else math.inf


@dataclass
class EpochSoFar:
    """What is counted between two validations; JSON-able, so that a resumed epoch has the mean of all its steps."""

    began: float = 0.0
    """Seconds of training before it, validation left out."""
    steps: int = 0
    waited: float = 0.0
    losses: list[float] = field(default_factory=list)
    dices: list[float] = field(default_factory=list)

    def add_step(self, waited: float) -> None:
        """Count a step, and the seconds that it waited for data."""
        self.steps += 1
        self.waited += waited

    def add_outcome(self, loss: float, dice: float | None) -> None:
        """Count what a step came to; a loss or Dice of nan (a skipped step, no foreground) is in no mean."""
        self.losses += [] if math.isnan(loss) else [loss]
        self.dices += [] if dice is None or math.isnan(dice) else [dice]


@dataclass
class Progress:
    """What a resumed run must know besides weights and optimiser."""

    step: int = 0
    seconds: float = 0.0
    validation_seconds: float = 0.0
    """Of ``seconds``; those before a resumed checkpoint of an earlier version are not known and count as training."""
    best_dice: float | None = None
    best_epoch: int = 0
    validation_dice: float | None = None
    rate_factor: float = 1.0
    skipped: int = 0
    fit: MemorySettings | None = None
    """What fitted into memory after a back-off; None: all that was asked for."""
    epochs: list[EpochMetrics] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    epoch: EpochSoFar = field(default_factory=EpochSoFar)

    def as_json(self) -> dict[str, Any]:
        """As stored in a checkpoint."""
        return asdict(replace(self, epochs=[])) | {"epochs": [metrics.as_row() for metrics in self.epochs]}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any], where: Path | str = "checkpoint") -> "Progress":
        """The counterpart of :meth:`as_json`; raises ConfigError, which begins with ``where``, for anything else."""
        with as_written(where, "progress of a training", "Restore the file, or begin again with --restart."):
            epochs = [asdict(EpochMetrics.from_row(row)) for row in stored.get("epochs", [])]
            return TypeAdapter(cls).validate_python({**stored, "epochs": epochs})

    @property
    def training_seconds(self) -> float:
        """Time without validation."""
        return self.seconds - self.validation_seconds

    @property
    def epoch_seconds(self) -> float:
        """Time that the epoch has taken so far, without validation."""
        return max(self.training_seconds - self.epoch.began, 1e-6)

    @property
    def waiting(self) -> float:
        """Fraction of the epoch's time spent waiting for data."""
        return min(1.0, self.epoch.waited / self.epoch_seconds)

    def metrics(
        self,
        learning_rate: float,
        validation_dice: float | None = None,
        by_name: Mapping[str, float] | None = None,
    ) -> list[EpochMetrics]:
        """Of each epoch that has ended, and of the running one so far.

        The learning rate and the results of a validation (the mean, and that of each class) are the running one's.
        """
        epoch = self.epoch
        if epoch.steps == 0:
            return list(self.epochs)
        running = EpochMetrics(
            epoch=len(self.epochs) + 1,
            step=self.step,
            seconds=round(self.seconds, 1),
            loss=sum(epoch.losses) / len(epoch.losses) if epoch.losses else math.nan,
            train_dice=sum(epoch.dices) / len(epoch.dices) if epoch.dices else None,
            validation_dice=validation_dice,
            learning_rate=learning_rate,
            steps_per_second=round(epoch.steps / self.epoch_seconds, 3),
            waiting_for_data=round(self.waiting, 4),
            skipped_steps=self.skipped,
            by_name=by_name or {},
        )
        return [*self.epochs, running]

    def end_epoch(self, metrics: EpochMetrics) -> None:
        """Keep its metrics, and count from zero."""
        self.epochs.append(metrics)
        self.epoch = EpochSoFar(began=self.training_seconds)

    def report(self, total_steps: int | None, used: float, loss: float, rate: float) -> StepReport:
        """The progress line of this step, after which the fraction ``used`` of the budget is used."""
        return StepReport(
            step=self.step,
            total_steps=total_steps,
            loss=loss,
            learning_rate=rate,
            validation_dice=self.validation_dice,
            progress=used,
            seconds=self.seconds,
            waiting=self.waiting,
            validation_seconds=self.validation_seconds,
        )


@dataclass(frozen=True)
class Validation:
    """What a validation found: Dice over channels and cases, and how much is predicted as foreground.

    Attributes:
        mean: Dice over all channels and cases; nan if nothing counts.
        by_name: Dice of each label or region.
        foreground_fraction: of the voxels that are not ignored.
        cases: that were validated.
        examples: a slice of each of the first cases, by case id.
    """

    mean: float
    by_name: dict[str, float]
    foreground_fraction: float
    cases: int
    examples: Mapping[str, Picture] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingResult:
    """The end of a training: where it is, how far it came."""

    folder: Path
    steps: int
    seconds: float
    final_loss: float
    validation_dice: float | None
    best_dice: float | None = None
    best_epoch: int = 0
    epochs: int = 0
    by_name: dict[str, float] = field(default_factory=dict)
    waiting: float = 0.0
    """Fraction of the time spent waiting for data."""
    peak_memory_gib: float | None = None
    validation_seconds: float = 0.0
    """Of ``seconds``."""
    stopped_early: bool = False
    events: tuple[str, ...] = ()


def write_metrics(folder: Path, metrics: Sequence[EpochMetrics]) -> None:
    """metrics.csv and metrics.json: one row an epoch; the classes' Dice are further columns."""
    rows = [epoch.as_row() for epoch in metrics]
    classes = sorted({name for row in rows for name in row} - set(COLUMNS))
    columns = [*COLUMNS, *classes]
    write_table(folder / "metrics.csv", columns, [[row.get(column) for column in columns] for row in rows])
    write_json(folder / "metrics.json", rows)


def read_metrics(folder: Path) -> list[EpochMetrics]:
    """The rows of metrics.json, none where nothing was trained."""
    path, cure = folder / "metrics.json", "Remove the file."
    if not path.exists():
        return []
    rows = read_stored(path, list[dict[str, Any]], "table of epochs", cure)
    with as_written(path, "table of epochs", cure):
        return TypeAdapter(list[EpochMetrics]).validate_python([asdict(EpochMetrics.from_row(row)) for row in rows])
