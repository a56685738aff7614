"""Training length and the learning rate that is fitted to it."""

from __future__ import annotations

from math import cos, pi

from medmamba.training.config import TrainConfig

CLOSING_FRACTION = 0.25
"""Largest fraction of a budget of time that is kept free for what follows the last step."""
POLY_EXPONENT = 0.9
"""Exponent of nnU-Net's polynomial decay."""


def budget_used(config: TrainConfig, step: int, seconds: float, closing: float = 0.0) -> float:
    """Fraction of the steps or minutes used after ``step`` steps and ``seconds`` of training, 0 to 1; the larger one.

    ``closing`` are the seconds that the end will take (validation, checkpoint); of the minutes at most a quarter is
    kept free for them.
    """
    by_steps = 0.0 if config.total_steps is None else step / config.total_steps
    by_time = 0.0
    if config.max_minutes is not None:
        limit = 60 * config.max_minutes
        by_time = seconds / (limit - min(closing, CLOSING_FRACTION * limit))
    return min(1.0, max(by_steps, by_time))


def learning_rate(config: TrainConfig, step: int, used: float) -> float:
    """The rate of a step where the fraction ``used`` of the budget is used: the schedule's, after a linear warm-up.

    Poly is nnU-Net's schedule with the fraction in place of epochs; cosine: Loshchilov 2017, arXiv:1608.03983.
    """
    factor = (1.0 - used) ** POLY_EXPONENT if config.schedule == "poly" else 0.5 * (1.0 + cos(pi * used))
    rate = config.learning_rate * factor
    return rate * min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps > 0 else rate
