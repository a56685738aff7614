"""Interrupts wait for the end of a step, because a run saved in the middle of one cannot be resumed bit-exactly."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from medmamba.training import distributed


class SecondInterrupt(KeyboardInterrupt):
    """A second Ctrl-C in one step: the step is abandoned, and what it half did must not be saved."""


@contextmanager
def deferred_interrupts() -> Iterator[None]:
    """Ctrl-C and SIGTERM that arrive within reach their handlers at its end, on all ranks at the same time.

    A second Ctrl-C does not wait (SecondInterrupt). Signals that nobody handles are left alone, and so are threads,
    which get none.
    """
    handlers: dict[signal.Signals, Callable[[int, FrameType | None], Any]] = {}
    waiting: list[signal.Signals] = []

    def put_off(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in waiting:
            raise SecondInterrupt
        waiting.append(signal.Signals(number))

    def deliver() -> None:
        if waiting:
            handlers[waiting[0]](waiting[0], None)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if callable(handler):
                handlers[number] = handler
                signal.signal(number, put_off)
    try:
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    except SecondInterrupt:
        raise
    except BaseException:
        deliver()
        raise
    if not distributed.all_true(not waiting):
        deliver()
        if distributed.size() > 1:  # another rank was interrupted
            raise KeyboardInterrupt
