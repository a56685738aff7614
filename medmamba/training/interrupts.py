"""Interrupts wait for the end of a step, because half a step that is saved cannot be gone on with to the bit."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from medmamba.training import distributed


class Impatient(KeyboardInterrupt):
    """A second Ctrl-C in one step: the step is given up, and what it half did must not be saved."""


@contextmanager
def undivided() -> Iterator[None]:
    """What is done within is done whole: Ctrl-C and SIGTERM reach their handlers at its end, on all ranks at once.

    A second Ctrl-C does not wait (Impatient). Signals that nobody handles, and threads that get none, are left alone.
    """
    handlers: dict[signal.Signals, Callable[[int, FrameType | None], Any]] = {}
    waiting: list[signal.Signals] = []

    def put_off(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in waiting:
            raise Impatient
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
    except Impatient:
        raise
    except BaseException:
        deliver()
        raise
    if not distributed.all_true(not waiting):
        deliver()
        if distributed.size() > 1:  # another rank was interrupted
            raise KeyboardInterrupt
