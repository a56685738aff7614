"""The progress line of a training, and its results."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TextColumn

from medmamba.cli.console import clock, console

if TYPE_CHECKING:
    from medmamba.training.options import Fold
    from medmamba.training.progress import StepReport, TrainingResult

PLAIN_LINE_SECONDS = 30.0
"""Off a terminal, seconds between two lines of progress."""


MUCH_WAITING = 0.1
"""Fraction of the time spent waiting for data above which the line reports it."""


def report_results(run: Path, results: Mapping[Fold, TrainingResult]) -> None:
    """What came out of each fold, and what to do next."""
    from medmamba.training.report import closing_lines

    if os.environ.get("RANK", "0") != "0":
        return

    dices = []
    for fold, result in results.items():
        lines = closing_lines(result, run)
        if len(results) > 1:
            console.print(f"Fold {fold}: {' '.join(lines[:-1])}", markup=False)
            dices += [] if result.validation_dice is None else [result.validation_dice]
            continue
        for line in lines[:-1]:
            console.print(line, markup=False)
    if dices:
        console.print(f"Mean validation Dice of {len(dices)} folds: {sum(dices) / len(dices):.4f}")
    last = list(results.values())[-1]
    console.print(f"Model: {last.folder}    Report: {run / 'report' / 'training.html'}", markup=False)
    console.print(f"Next: medmamba predict {run} IMAGES -o MASKS", markup=False)


@contextmanager
def training_progress() -> Iterator[Callable[[StepReport], None]]:
    """A bar with loss, Dice, speed and time left; plain lines off a terminal."""
    if os.environ.get("RANK", "0") != "0":  # of several processes of one training the first speaks
        yield lambda report: None
        return
    smooth: float | None = None

    def line(report: StepReport) -> str:
        nonlocal smooth
        smooth = report.loss if smooth is None else 0.95 * smooth + 0.05 * report.loss
        dice = "" if report.validation_dice is None else f"  Dice {report.validation_dice:.3f}"
        total = f"/{report.total_steps}" if report.total_steps else ""
        speed, left = report.steps_per_second, clock(report.seconds_left)
        waiting = f"  {report.waiting:.0%} waiting for data" if report.waiting >= MUCH_WAITING else ""
        return f"step {report.step}{total}  loss {smooth:.3f}{dice}  {speed:.2f} steps/s  {left} left{waiting}"

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
