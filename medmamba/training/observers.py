"""Who is told how a training goes: the report with its pictures always, trackers when asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medmamba.plans.schema import Plan
from medmamba.training.config import TrainConfig
from medmamba.training.report import TrainingReport
from medmamba.training.trackers import open_tracker


@contextmanager
def observers(
    run: Path,
    fold: Path,
    plan: Plan,
    config: TrainConfig,
    trackers: Sequence[str],
    on_event: Callable[[str], None],
    *,
    active: bool,
) -> Iterator[Callable[[str, Any], None]]:
    """The one function that a training tells everything; silent where ``active`` is False (other ranks)."""
    if not active:
        yield lambda what, value: None
        return
    open_trackers = [open_tracker(name, run, fold, config) for name in trackers]
    report = TrainingReport(run, fold, plan, config)

    def observe(what: str, value: Any) -> None:
        if what == "event":
            on_event(value)
        report(what, value)
        for tracker in open_trackers:
            tracker(what, value)

    try:
        yield observe
    finally:
        for tracker in open_trackers:
            tracker.close()
