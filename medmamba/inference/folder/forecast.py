"""How long a folder of images will take: told once, from the first patches of the first case or from that case."""

import time
from collections.abc import Callable

from medmamba.errors import counted

ENOUGH_SHARE = 0.25
"""Share of the first case's patches, and ...."""
ENOUGH_SECONDS = 10.0
"""... seconds, of which the earlier one suffices for an estimate: patches of air at the border take no time."""
SHORTEST = 10.0
"""Seconds below which nothing is told."""


class Forecast:
    """Tells how long ``cases`` will take if all are as large as the first.

    Args:
        tell: called with the line, at most once.
        together: cases that are predicted at the same time.
    """

    def __init__(
        self,
        cases: int,
        tell: Callable[[str], None],
        *,
        together: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cases, self._tell, self._together, self._clock = cases, tell, max(1, together), clock
        self._started = clock()
        self._first: tuple[float, float] | None = None
        """Seconds and share of the case when its first patches were done, which carry what is done only once."""
        self._told = False

    def on_patch(self, done: int, total: int) -> None:
        """Called with the patches of the first case that are done, and all."""
        if self._told or not total:
            return
        now, share = self._clock() - self._started, done / total
        if self._first is None:
            self._first = (now, share)
            return
        since, part = now - self._first[0], share - self._first[1]
        if part > 0 and share < 1 and (share >= ENOUGH_SHARE or since >= ENOUGH_SECONDS):
            self._say(now + (1 - share) * since / part, now)

    def on_case(self) -> None:
        """Called when a case is finished."""
        if not self._told:
            seconds = self._clock() - self._started
            self._say(seconds, seconds)

    def _say(self, seconds_of_case: float, already: float) -> None:
        self._told = True
        rounds = -(-self._cases // self._together)
        left = seconds_of_case * rounds - already
        if left >= SHORTEST:
            size = "" if self._cases == 1 else " if all are as large as the first"
            self._tell(f"About {_rounded(left)} for {counted(self._cases, 'case')}{size}.")


def _rounded(seconds: float) -> str:
    """In seconds below two minutes, in minutes below three hours, else in hours."""
    for limit, unit, name in ((120.0, 1.0, "second"), (10800.0, 60.0, "minute")):
        if seconds < limit:
            return counted(round(seconds / unit), name)
    return f"{seconds / 3600:.1f} hours"
