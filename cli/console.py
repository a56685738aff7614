"""Console output of the commands: plain lines, tables and progress bars with the time left."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(highlight=False, soft_wrap=True)


MOST_WARNINGS = 10


def report_error(message: str) -> None:
    """Print an error to stderr, one line per problem; control characters cannot paint the terminal."""
    for line in message.splitlines():
        print(f"Error: {_safe(line)}", file=sys.stderr)


def report_warnings(lines: Sequence[str]) -> None:
    """Print the first few warnings to stderr, and how many there are."""
    for line in lines[:MOST_WARNINGS]:
        print(f"Warning: {_safe(line)}", file=sys.stderr)
    if len(lines) > MOST_WARNINGS:
        print(f"Warning: {len(lines) - MOST_WARNINGS} more of {len(lines)} warnings not shown.", file=sys.stderr)


def _safe(line: str) -> str:
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)


@contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar per stage; off a terminal one plain line when a stage ends."""
    if not console.is_terminal:

        def line(stage: str, done: int, total: int) -> None:
            if done == total:
                console.print(f"{stage}: {total} cases")

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


def clock(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    whole = max(0, round(seconds)) if seconds != float("inf") else 0
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"
