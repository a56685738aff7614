"""Observers of a training: several as one, the page RUN/report/training.html with its curves and example slices, and
TensorBoard, MLflow and Weights & Biases, imported only when used.

A tracker that fails when it is opened is an error before training begins; one that fails later is left out with a
warning, so that no training is lost to a server.
"""

import io
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from medmamba.disk.atomic import write_bytes, write_text
from medmamba.disk.own_files import OwnFiles
from medmamba.errors import ConfigError, first_line, gib_text
from medmamba.pages.picture import Picture, sheet
from medmamba.pages.render import COLOURS, render
from medmamba.plans.schema import Plan
from medmamba.training.config import TrainConfig
from medmamba.training.progress import COLUMNS, EpochMetrics, TrainingResult, Validation, read_metrics

WEAK_DICE, WEAK_MARGIN = 0.5, 0.15
"""A class is called weak if its Dice is below the first and below the mean of the others by the second."""


HEADINGS = {
    "seconds": "time (s)",
    "train_dice": "Dice, training",
    "validation_dice": "Dice, validation",
    "steps_per_second": "steps/s",
    "waiting_for_data": "waiting for data",
}
FORMATS = {
    "epoch": "{}",
    "step": "{}",
    "seconds": "{:.0f}",
    "learning_rate": "{:.3g}",
    "steps_per_second": "{:.2f}",
    "waiting_for_data": "{:.0%}",
    "skipped_steps": "{}",
}
"""Of columns in the table of epochs; others are losses and Dice."""


class Observer:
    """Base class of observers of a training; does nothing."""

    def epoch(self, metrics: EpochMetrics) -> None:
        """An epoch has ended, and its row is in metrics.csv."""

    def validation(self, found: Validation) -> None:
        """Whole volumes were validated."""

    def event(self, line: str) -> None:
        """Something that the user should read."""


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


class TrainingReport(Observer):
    """Writes images and the page after each epoch.

    Images are curves.png and examples.png in the fold's folder; the page is RUN/report/training.html (and
    training_<fold>.html beside it), with the images inside.
    """

    def __init__(self, run: Path, fold: Path, plan: Plan, config: TrainConfig, machine: str) -> None:
        self.run, self.fold, self.plan, self.config = run, fold, plan, config
        self.machine, self.own = machine, OwnFiles(run)
        self.events: list[str] = []
        self.examples: Mapping[str, Picture] = {}
        self.result: TrainingResult | None = None

    def event(self, line: str) -> None:
        self.events.append(line)

    def validation(self, found: Validation) -> None:
        self.examples = found.examples

    def epoch(self, metrics: EpochMetrics) -> None:
        self.write()

    def end(self, result: TrainingResult) -> None:
        self.result = result
        self.write()

    def write(self) -> None:
        """Write images and page."""
        curves, epochs = None, read_metrics(self.fold)
        if epochs:
            curves = curves_png(epochs)
            write_bytes(self.fold / "curves.png", curves)
        if self.examples:
            shown = {case_id: picture.png for case_id, picture in self.examples.items()}
            write_bytes(self.fold / "examples.png", sheet(shown, {"truth": "white"}, len(shown)))
        page = render(
            "training.html",
            dataset=self.plan.dataset_name,
            configuration=self.fold.parent.name,
            fold=self.fold.name,
            machine=self.machine,
            closing=[] if self.result is None else closing_lines(self.result, self.run),
            events=self.events,
            curves=curves,
            examples=self.examples,
            epochs=epoch_table(epochs),
            recipe=[[key, str(value)] for key, value in self.config.model_dump().items()],
        )
        with self.own.recording():
            for path in training_pages(self.run, self.fold):
                write_text(path, page)


def training_pages(run: Path, fold: Path) -> list[Path]:
    """The pages that a training writes: the fold's own, and that of the last trained fold."""
    return [run / "report" / f"training_{fold.name}.html", run / "report" / "training.html"]


def epoch_table(epochs: Sequence[EpochMetrics]) -> list[list[str]]:
    """The epochs as rows of text, header first; columns in which no epoch has a value are left out."""
    rows = [epoch.as_row() for epoch in epochs]
    every = list(dict.fromkeys(name for row in rows for name in row))
    columns = [name for name in every if any(row.get(name) is not None for row in rows)]
    header = [HEADINGS.get(name, name.replace("_", " ")) if name in COLUMNS else f"Dice of {name}" for name in columns]
    return [header, *([_cell(name, row.get(name)) for name in columns] for row in rows)] if rows else []


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    return FORMATS.get(name, "{:.4f}").format(value)


def closing_lines(result: TrainingResult, run: Path) -> list[str]:
    """What came out, and what to do next."""
    minutes = result.seconds / 60
    training_seconds = result.seconds - result.validation_seconds
    speed = result.steps / training_seconds if training_seconds > 0 else 0.0
    lines = [
        f"{result.steps} steps in {minutes:.1f} min ({speed:.2f} steps/s, {result.waiting:.0%} of the time waiting for "
        f"data), peak memory {gib_text(result.peak_memory_gib)}, last loss {result.final_loss:.4f}."
    ]
    dice = result.validation_dice
    if dice is not None and not math.isnan(dice):
        best = f"; best epoch {result.best_epoch}" if result.best_epoch else ""  # none ended
        lines.append(f"Validation Dice on whole volumes: {dice:.4f}{best}.")
    known = {name: value for name, value in result.by_name.items() if not math.isnan(value)}
    if len(known) > 1:
        worst = min(known, key=lambda name: known[name])
        lines.append("By class: " + ", ".join(f"{name} {value:.3f}" for name, value in known.items()) + ".")
        others = sum(dice for name, dice in known.items() if name != worst) / (len(known) - 1)
        if known[worst] < WEAK_DICE and others - known[worst] > WEAK_MARGIN:
            lines.append(f"{worst} is weak: look at its label maps, then try --sampling lesion or --class-weights.")
    if result.waiting > 0.2:
        lines.append("Much of the time was spent waiting for data: use more --workers if there are idle cores.")
    if result.best_dice is not None and 1 < result.epochs == result.best_epoch:
        lines.append("The best epoch was the last one: longer training (--epochs, --resume) should still help.")
    lines.append(f"Next: medmamba predict {run} IMAGES -o MASKS")
    return lines


def curves_png(epochs: Sequence[EpochMetrics]) -> bytes:
    """Loss and Dice against steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = [epoch.step for epoch in epochs]
    left.plot(steps, [epoch.loss for epoch in epochs], color=COLOURS[1], marker=".")
    left.set(xlabel="step", ylabel="loss")
    lines = (
        ("validation, whole volumes", [epoch.validation_dice for epoch in epochs], COLOURS[2]),
        ("training batches", [epoch.train_dice for epoch in epochs], COLOURS[0]),
    )
    for label, dices, colour in lines:
        known = [math.nan if dice is None else dice for dice in dices]
        right.plot(steps, known, color=colour, marker=".", label=label)
    right.set(xlabel="step", ylabel="Dice", ylim=(0, 1))
    right.legend(frameon=False)
    return _png(figure)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


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


def need_tracker(name: str) -> None:
    """Raises ConfigError if the package of a tracker is not installed."""
    try:
        import_module(name)
    except ImportError as error:
        raise _not_installed(name) from error


def open_tracker(name: str, run: Path, fold: Path, config: TrainConfig) -> Tracker:
    """The tracker called ``name``; raises ConfigError with what is missing: a package, a server, an account."""
    try:
        return TRACKERS[name](run, fold, config)
    except ImportError as error:
        raise _not_installed(name) from error
    except Exception as error:
        raise ConfigError(f"--{name}: {_reason(error)} Correct that, or leave --{name} out.") from error


def _not_installed(name: str) -> ConfigError:
    return ConfigError(f"--{name} needs a package that is not installed. Run: pip install {name}")


def _reason(error: Exception) -> str:
    return f"The tracker failed ({first_line(error)})."


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
