"""Worker processes: their signals, their end with the parent, and their exit codes as text."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

SUSPENDED_SECONDS = 10.0
"""A supervisor that did not run for so long was suspended (Ctrl-Z, a scheduler): its workers may have been, too."""


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def starting_workers() -> Iterator[None]:
    """A worker process that is started in this block is independent of the terminal and of the caller's script.

    Ctrl-C and SIGHUP never reach it, not even while it imports, which would print a traceback; this process gets them
    after the block. A spawned worker does not run the script again that has no ``if __name__ == "__main__"``.
    """
    main = sys.modules["__main__"]
    blocks = hasattr(signal, "pthread_sigmask")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP}) if blocks else set()
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        if blocks:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def follow_parent() -> None:
    """Called by a worker process: it ends with its parent, and leaves signals of the terminal to it.

    Ctrl-C and SIGHUP reach every process of a terminal; the parent handles them. A killed parent cannot end its
    workers; without this they would keep their memory and block a second run.
    """
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    # In Windows the number of the parent stays when it ends; elsewhere the other workers keep its pipe open.
    while parent is not None and os.getppid() == parent.pid and parent.is_alive():
        time.sleep(0.5)
    os._exit(1)


def how_it_ended(exit_code: int | None) -> str:
    """How a process ended: "was killed by SIGKILL (most often: out of memory)" or "ended with exit code 1"."""
    if exit_code is None or exit_code >= 0:
        return f"ended with exit code {exit_code}"
    name = next((found.name for found in signal.Signals if found.value == -exit_code), f"signal {-exit_code}")
    return f"was killed by {name}" + (" (most often: out of memory)" if name == "SIGKILL" else "")
