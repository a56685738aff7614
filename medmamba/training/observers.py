"""What follows a training: the report with its images always, trackers when asked for, and lines for the user."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from medmamba.training.progress import EpochMetrics, TrainingResult
    from medmamba.training.validation import Validation


class Observer(Protocol):
    """What happens in a training, reported as it happens."""

    def epoch(self, metrics: EpochMetrics) -> None:
        """An epoch has ended, and its row is in metrics.csv."""

    def validation(self, found: Validation) -> None:
        """Whole volumes were validated."""

    def event(self, line: str) -> None:
        """Something that the user should read."""

    def end(self, result: TrainingResult) -> None:
        """Training has ended."""


class NullObserver:
    """An observer that does nothing; the base of those that need not follow everything."""

    def epoch(self, metrics: EpochMetrics) -> None:
        """Nothing."""

    def validation(self, found: Validation) -> None:
        """Nothing."""

    def event(self, line: str) -> None:
        """Nothing."""

    def end(self, result: TrainingResult) -> None:
        """Nothing."""


class MessageObserver(NullObserver):
    """Hands events to a function."""

    def __init__(self, on_event: Callable[[str], None]) -> None:
        self._on_event = on_event

    def event(self, line: str) -> None:
        """Passed on."""
        self._on_event(line)


class EventLog(NullObserver):
    """Appends events to a list."""

    def __init__(self, events: list[str]) -> None:
        self._events = events

    def event(self, line: str) -> None:
        """Kept."""
        self._events.append(line)


class Observers:
    """Several observers as one."""

    def __init__(self, members: Sequence[Observer]) -> None:
        self._members = members

    def epoch(self, metrics: EpochMetrics) -> None:
        """To each."""
        for member in self._members:
            member.epoch(metrics)

    def validation(self, found: Validation) -> None:
        """To each."""
        for member in self._members:
            member.validation(found)

    def event(self, line: str) -> None:
        """To each."""
        for member in self._members:
            member.event(line)

    def end(self, result: TrainingResult) -> None:
        """To each."""
        for member in self._members:
            member.end(result)
