"""Training length and the learning rate that is fitted to it."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi

CLOSING_FRACTION = 0.25
"""Largest fraction of a budget of time that is kept free for what follows the last step."""
POLY_EXPONENT = 0.9
"""Exponent of nnU-Net's polynomial decay."""


@dataclass(frozen=True)
class Budget:
    """How long to train: a number of steps, a number of minutes, or whichever ends first."""

    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None:
            raise ValueError("a budget needs steps or minutes")
        if (self.steps is not None and self.steps < 1) or (self.minutes is not None and self.minutes <= 0):
            raise ValueError("a budget must be positive")

    def progress(self, step: int, seconds: float, closing: float = 0.0) -> float:
        """Fraction of the budget used after ``step`` steps and ``seconds`` of training, 0 to 1.

        ``closing`` are the seconds that the end will take (validation, checkpoint); of the minutes at most a quarter is
        kept free for them.
        """
        by_steps = step / self.steps if self.steps is not None else 0.0
        by_time = 0.0
        if self.minutes is not None:
            limit = 60 * self.minutes
            by_time = seconds / (limit - min(closing, CLOSING_FRACTION * limit))
        return min(1.0, max(by_steps, by_time))


def poly_rate(initial: float, progress: float) -> float:
    """Learning rate ``initial * (1 - progress) ** 0.9``; zero at the end of the budget.

    With progress = epoch / epochs this is nnU-Net's schedule; counted in steps or time it fits any budget.
    """
    return initial * (1.0 - progress) ** POLY_EXPONENT


def cosine_rate(initial: float, progress: float) -> float:
    """Learning rate that follows half a cosine from ``initial`` to zero. Source: Loshchilov 2017, arXiv:1608.03983."""
    return initial * 0.5 * (1.0 + cos(pi * progress))


SCHEDULES = {"poly": poly_rate, "cosine": cosine_rate}


def warmed_up(rate: float, step: int, warmup_steps: int) -> float:
    """The rate raised linearly from zero over the first ``warmup_steps`` steps."""
    return rate * min(1.0, (step + 1) / warmup_steps) if warmup_steps > 0 else rate
