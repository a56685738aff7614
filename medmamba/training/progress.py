"""How far a training has come: what a resumed run must know, what a person sees, what is written after each epoch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medmamba.disk.atomic import write_text
from medmamba.training.config import TrainConfig
from medmamba.training.memory import Fit

COLUMNS = (
    "epoch",
    "step",
    "seconds",
    "loss",
    "train_dice",
    "validation_dice",
    "learning_rate",
    "steps_per_second",
    "waiting_for_data",
    "skipped_steps",
)


@dataclass(frozen=True)
class StepReport:
    """What a person sees while training runs."""

    step: int
    total_steps: int | None
    loss: float
    learning_rate: float
    validation_dice: float | None
    progress: float
    seconds: float
    seconds_left: float
    waiting: float = 0.0
    """Share of this epoch's time spent waiting for data."""


@dataclass
class EpochSoFar:
    """What is counted between two validations; JSON-able, so that a resumed epoch has the mean of all its steps."""

    began: float = 0.0
    """Seconds of training before it."""
    steps: int = 0
    waited: float = 0.0
    losses: list[float] = field(default_factory=list)
    dices: list[float] = field(default_factory=list)

    def add(self, loss: float, dice: float | None, waited: float) -> None:
        """Count a step; a loss or Dice of nan (a step left out, no foreground) is in no mean."""
        self.steps += 1
        self.waited += waited
        self.losses += [] if math.isnan(loss) else [loss]
        self.dices += [] if dice is None or math.isnan(dice) else [dice]

    @property
    def mean_loss(self) -> float:
        """Of the steps that were not left out; nan without any."""
        return sum(self.losses) / len(self.losses) if self.losses else math.nan

    @property
    def mean_dice(self) -> float | None:
        """Of the batches that were measured."""
        return sum(self.dices) / len(self.dices) if self.dices else None


@dataclass
class Progress:
    """What a resumed run must know besides weights and optimiser; JSON-able."""

    step: int = 0
    seconds: float = 0.0
    best_dice: float | None = None
    best_epoch: int = 0
    validation_dice: float | None = None
    rate_factor: float = 1.0
    skipped: int = 0
    fit: dict[str, Any] | None = None
    epochs: list[dict[str, Any]] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    epoch: EpochSoFar = field(default_factory=EpochSoFar)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Progress:
        """The counterpart of ``dataclasses.asdict``."""
        return cls(**{**stored, "epoch": EpochSoFar(**stored.get("epoch", {}))})

    @property
    def epoch_seconds(self) -> float:
        """Time that the epoch has taken so far."""
        return max(self.seconds - self.epoch.began, 1e-6)

    @property
    def waiting(self) -> float:
        """Share of the epoch's time spent waiting for data."""
        return min(1.0, self.epoch.waited / self.epoch_seconds)

    def rows(
        self,
        learning_rate: float,
        validation_dice: float | None = None,
        by_name: Mapping[str, float] | None = None,
    ) -> list[dict[str, Any]]:
        """Of the metrics: one for each epoch that has ended, and one for what there is of the running one.

        The learning rate and the results of a validation (the mean, and that of each class) are the running one's.
        """
        epoch = self.epoch
        if epoch.steps == 0:
            return list(self.epochs)
        running = {
            "epoch": len(self.epochs) + 1,
            "step": self.step,
            "seconds": round(self.seconds, 1),
            "loss": epoch.mean_loss,
            "train_dice": epoch.mean_dice,
            "validation_dice": validation_dice,
            "learning_rate": learning_rate,
            "steps_per_second": round(epoch.steps / self.epoch_seconds, 3),
            "waiting_for_data": round(self.waiting, 4),
            "skipped_steps": self.skipped,
            **(by_name or {}),
        }
        return [*self.epochs, running]

    def end_epoch(self, row: dict[str, Any]) -> None:
        """Keep its row, and count anew."""
        self.epochs.append(row)
        self.epoch = EpochSoFar(began=self.seconds)

    def remember_fit(self, fit: Fit) -> None:
        """Keep what fits into memory."""
        self.fit = {"batch_size": fit.batch_size, "patch_size": list(fit.patch_size), "recompute": fit.recompute}

    def stored_fit(self) -> Fit | None:
        """What fitted into memory before."""
        if self.fit is None:
            return None
        return Fit(self.fit["batch_size"], tuple(self.fit["patch_size"]), self.fit["recompute"])


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
    peak_memory_gib: float = 0.0
    stopped_early: bool = False
    events: tuple[str, ...] = ()


def write_metrics(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """metrics.csv and metrics.json: one row an epoch; the classes' Dice are further columns."""
    header = [*COLUMNS, *sorted({key for row in rows for key in row if key not in COLUMNS})]
    lines = [",".join(_cell(row.get(key)) for key in header) for row in rows]
    write_text(folder / "metrics.csv", "\n".join([",".join(header), *lines]) + "\n")
    write_text(folder / "metrics.json", json.dumps([_jsonable(row) for row in rows], indent=1) + "\n")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.json, none where nothing was trained."""
    try:
        rows: list[dict[str, Any]] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        return rows
    except (OSError, ValueError):
        return []


def step_report(done: Progress, config: TrainConfig, share: float, loss: float, rate: float) -> StepReport:
    """The progress line of this step, after which ``share`` of the budget is used."""
    left = done.seconds * (1 - share) / share if share > 0 else math.inf
    return StepReport(
        done.step, config.total_steps, loss, rate, done.validation_dice, share, done.seconds, left, done.waiting
    )


def _cell(value: Any) -> str:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value)


def _jsonable(row: dict[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
