"""The one progress line of a training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TextColumn

from medmamba.cli.console import clock, console

if TYPE_CHECKING:
    from medmamba.training.trainer import StepReport

PLAIN_LINE_SECONDS = 30.0
"""Off a terminal, seconds between two lines of progress."""


@contextmanager
def training_progress() -> Iterator[Callable[[StepReport], None]]:
    """A bar with loss, Dice, speed and time left; plain lines off a terminal."""
    smooth: float | None = None

    def line(report: StepReport) -> str:
        nonlocal smooth
        smooth = report.loss if smooth is None else 0.95 * smooth + 0.05 * report.loss
        dice = "" if report.validation_dice is None else f"  Dice {report.validation_dice:.3f}"
        speed = report.step / report.seconds if report.seconds else 0.0
        total = f"/{report.total_steps}" if report.total_steps else ""
        left = clock(report.seconds_left)
        return f"step {report.step}{total}  loss {smooth:.3f}{dice}  {speed:.2f} steps/s  {left} left"

    if not console.is_terminal:
        last = -PLAIN_LINE_SECONDS

        def plain(report: StepReport) -> None:
            nonlocal last
            text = line(report)
            if report.seconds - last >= PLAIN_LINE_SECONDS or report.progress >= 1:
                last = report.seconds
                console.print(f"train  {report.progress:4.0%}  {text}", markup=False)

        yield plain
        return
    with Progress(TextColumn("train      "), BarColumn(), TextColumn("{task.description}"), console=console) as bar:
        task = bar.add_task("starting", total=1.0)
        yield lambda report: bar.update(task, completed=report.progress, description=line(report))
