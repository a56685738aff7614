"""Console output of the commands: lines, progress with the time left, and with ``--json`` one object on stdout."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pydantic_core import to_jsonable_python
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from medmamba.errors import counted, printable

if TYPE_CHECKING:
    from medmamba.training.progress import StepReport

Answer = dict[str, Any]
"""Results of a command by name, as shown by ``--json``."""
MOST_WARNINGS = 10
LONGEST_LINE = 1000
"""Characters of an error or a warning."""
PLAIN_LINE_SECONDS = 30.0
"""Seconds between two progress lines of a training if stdout is not a terminal."""
MUCH_WAITING = 0.1
"""Fraction of the time spent waiting for data above which the progress of a training reports it."""


class _Lines(Console):
    """Prints lines in which control characters are written out, so that no name paints the terminal."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(printable(one) if isinstance(one, str) else one for one in objects), **options)


console = _Lines(highlight=False, soft_wrap=True, markup=False, emoji=False)


def report_error(*lines: str) -> None:
    """Print an error to stderr, one line per problem; control characters cannot paint the terminal."""
    for line in lines:
        print(f"Error: {_safe(line)}", file=sys.stderr)


def report_warnings(lines: Sequence[str]) -> None:
    """Print the first few warnings to stderr, and how many there are."""
    for line in lines[:MOST_WARNINGS]:
        print(f"Warning: {_safe(line)}", file=sys.stderr)
    if len(lines) > MOST_WARNINGS:
        print(f"Warning: {len(lines) - MOST_WARNINGS} more of {len(lines)} warnings not shown.", file=sys.stderr)


def _safe(line: str) -> str:
    """One line, without control characters, and of a very long one both ends: what is wrong, and what to do."""
    text = printable(line, kept="")
    return text if len(text) <= LONGEST_LINE else f"{text[: LONGEST_LINE // 2]} ... {text[-LONGEST_LINE // 2 :]}"


def print_json(answer: Mapping[str, Any]) -> None:
    """Print one JSON object to stdout: paths as text, records as objects, NaN and infinity as null."""
    plain = to_jsonable_python(answer, by_alias=False, inf_nan_mode="null", fallback=_plain)
    print(json.dumps(plain, indent=2), flush=True)  # ASCII: every terminal can show it


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return value.item() if hasattr(value, "item") else str(value)  # a number of numpy or torch


def clock(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    whole = max(0, round(seconds)) if seconds != float("inf") else 0
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


@contextmanager
def stages(of: str = "case") -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar per stage of so many cases, or what is named; off a terminal one plain line when a stage ends."""
    if not console.is_terminal:

        def line(stage: str, done: int, total: int) -> None:
            if done == total:
                console.print(f"{stage}: {counted(total, of)}")

        yield line
        return
    columns = (
        TextColumn("{task.description:<11}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        tasks: dict[str, int] = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done)  # type: ignore[arg-type]

        yield update


def is_first_process() -> bool:
    """Whether this process prints: under torchrun only the first of a training does."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def training_progress() -> "Iterator[Callable[[StepReport], None]]":
    """A bar with loss, Dice, speed and time left; plain lines off a terminal."""
    if not is_first_process():
        yield lambda report: None
        return
    smooth: float | None = None

    def line(report: "StepReport") -> str:
        nonlocal smooth
        smooth = report.loss if smooth is None else 0.95 * smooth + 0.05 * report.loss
        dice = "" if report.validation_dice is None else f"  Dice {report.validation_dice:.3f}"
        total = f"/{report.total_steps}" if report.total_steps else ""
        speed, left = report.steps_per_second, clock(report.seconds_left)
        waiting = f"  {report.waiting:.0%} waiting for data" if report.waiting >= MUCH_WAITING else ""
        return f"step {report.step}{total}  loss {smooth:.3f}{dice}  {speed:.2f} steps/s  {left} left{waiting}"

    if not console.is_terminal:
        last = -PLAIN_LINE_SECONDS

        def plain(report: "StepReport") -> None:
            nonlocal last
            text = line(report)
            if report.seconds - last >= PLAIN_LINE_SECONDS or report.progress >= 1:
                last = report.seconds
                console.print(f"train  {report.progress:4.0%}  {text}")

        yield plain
        return
    with Progress(TextColumn("train      "), BarColumn(), TextColumn("{task.description}"), console=console) as bar:
        task = bar.add_task("starting", total=1.0)
        yield lambda report: bar.update(task, completed=report.progress, description=line(report))
