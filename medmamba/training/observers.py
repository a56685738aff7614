"""Observers of a training: several as one, and TensorBoard, MLflow and Weights & Biases, imported only when used.

A tracker that fails when it is opened is an error before training begins; one that fails later is left out with a
warning, so that no training is lost to a server.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from medmamba.errors import ConfigError
from medmamba.training.config import TrainConfig
from medmamba.training.progress import EpochMetrics, TrainingResult
from medmamba.training.validation import Validation


class Observer:
    """Follows a training as it happens; this one does nothing."""

    def epoch(self, metrics: EpochMetrics) -> None:
        """An epoch has ended, and its row is in metrics.csv."""

    def validation(self, found: Validation) -> None:
        """Whole volumes were validated."""

    def event(self, line: str) -> None:
        """Something that the user should read."""

    def end(self, result: TrainingResult) -> None:
        """Training has ended."""


class Observers(Observer):
    """Several observers as one, and a function that gets the events."""

    def __init__(self, members: Sequence[Observer], on_event: Callable[[str], None]) -> None:
        self._members, self._on_event = members, on_event

    def epoch(self, metrics: EpochMetrics) -> None:
        for member in self._members:
            member.epoch(metrics)

    def validation(self, found: Validation) -> None:
        for member in self._members:
            member.validation(found)

    def event(self, line: str) -> None:
        self._on_event(line)
        for member in self._members:
            member.event(line)

    def end(self, result: TrainingResult) -> None:
        for member in self._members:
            member.end(result)


class Tracker(Observer):
    """Passes each epoch's metrics on to a service."""

    def __init__(self, log: Callable[[dict[str, float], int], None], close: Callable[[], None]) -> None:
        self._log, self._close, self._failed = log, close, False

    def epoch(self, metrics: EpochMetrics) -> None:
        """Log the numbers that are finite; after a failure nothing any more."""
        if self._failed:
            return
        numbers = {
            name: float(number)
            for name, number in metrics.as_row().items()
            if number is not None and name not in ("epoch", "step")
        }
        try:
            self._log(numbers, metrics.step)
        except Exception as error:
            self._failed = True
            warnings.warn(f"{_reason(error)} Training continues without this tracker.", stacklevel=2)

    def close(self) -> None:
        """Write what is left."""
        try:
            self._close()
        except Exception as error:
            warnings.warn(_reason(error), stacklevel=2)


def open_tracker(name: str, run: Path, fold: Path, config: TrainConfig) -> Tracker:
    """The tracker called ``name``; raises ConfigError with what is missing: a package, a server, an account."""
    try:
        return TRACKERS[name](run, fold, config)
    except ImportError as error:
        raise ConfigError(f"--{name} needs a package that is not installed. Run: pip install {name}") from error
    except Exception as error:
        raise ConfigError(f"--{name}: {_reason(error)} Correct that, or leave --{name} out.") from error


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or ["no reason given"]
    return f"The tracker failed ({type(error).__name__}: {lines[0][:160]})."


def _tensorboard(run: Path, fold: Path, config: TrainConfig) -> Tracker:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(fold / "tensorboard"))

    def log(numbers: dict[str, float], step: int) -> None:
        for key, number in numbers.items():
            writer.add_scalar(key, number, step)
        writer.flush()

    return Tracker(log, writer.close)


def _mlflow(run: Path, fold: Path, config: TrainConfig) -> Tracker:
    import mlflow

    mlflow.set_experiment(run.name)
    mlflow.start_run(run_name=fold.name)
    mlflow.log_params(config.model_dump())
    return Tracker(lambda numbers, step: mlflow.log_metrics(numbers, step=step), mlflow.end_run)


def _wandb(run: Path, fold: Path, config: TrainConfig) -> Tracker:
    import wandb

    session = wandb.init(project=run.name, name=fold.name, config=config.model_dump(), dir=str(fold))
    return Tracker(lambda numbers, step: session.log(numbers, step=step), session.finish)


TRACKERS: dict[str, Callable[[Path, Path, TrainConfig], Tracker]] = {
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
    "wandb": _wandb,
}
