"""TensorBoard, MLflow and Weights & Biases, each behind one name and imported only when it is used.

A tracker that fails when it is opened is an error before training begins; one that fails later is left out with a
warning, so that no training is lost to a server.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path

from medmamba.errors import ConfigError, unknown_name
from medmamba.training.config import TrainConfig
from medmamba.training.observers import NullObserver
from medmamba.training.progress import EpochMetrics


class Tracker(NullObserver):
    """Passes each epoch's metrics on to a service."""

    def __init__(self, log: Callable[[dict[str, float], int], None], close: Callable[[], None]) -> None:
        self._log = log
        self._close = close
        self._failed = False

    def epoch(self, metrics: EpochMetrics) -> None:
        """Log the numbers that are finite; after a failure nothing any more."""
        if self._failed:
            return
        numbers = {
            name: float(number)
            for name, number in metrics.as_row().items()
            if isinstance(number, int | float) and name not in ("epoch", "step") and math.isfinite(number)
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
    if name not in TRACKERS:
        raise unknown_name("tracker", name, list(TRACKERS))
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
