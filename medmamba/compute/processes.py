"""Worker processes: their signals, their end with the parent, and their exit codes as text."""

import multiprocessing
import os
import signal
import threading
import time


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
    while parent is not None and os.getppid() == parent.pid:
        time.sleep(0.5)
    os._exit(1)


def how_it_ended(exit_code: int | None) -> str:
    """How a process ended: "was killed by SIGKILL (most often: out of memory)" or "ended with exit code 1"."""
    if exit_code is None or exit_code >= 0:
        return f"ended with exit code {exit_code}"
    name = next((found.name for found in signal.Signals if found.value == -exit_code), f"signal {-exit_code}")
    return f"was killed by {name}" + (" (most often: out of memory)" if exit_code == -signal.SIGKILL else "")
