"""The terminal of a command: signals that interrupt it, and output that cannot be written."""

import errno
import io
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from medmamba.errors import InputError, MedmambaError, Terminated

INTERRUPTED = 130


def end_on_signals() -> None:
    """SIGTERM and SIGHUP unwind like Ctrl-C, so that training saves a checkpoint; a second one ends at once.

    A signal that is ignored at the start, as SIGHUP under nohup, stays ignored.
    """
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _terminate)


def _terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    raise Terminated(128 + number)


@contextmanager
def resumable(command: str, saved: Callable[[], bool]) -> Iterator[None]:
    """Adds how to continue to the message of a command that is interrupted or fails.

    ``saved`` is whether there is something to resume. An InputError is raised unchanged.
    """
    try:
        yield
    except (KeyboardInterrupt, Terminated) as ended:
        after = Terminated(ended.code if isinstance(ended, Terminated) else INTERRUPTED)
        resumes = f"What was written is complete; `medmamba {command}` resumes with --resume."
        after.advice = resumes if saved() else "Nothing to resume was written yet; start the command again."
        raise after from ended
    except MedmambaError as error:
        if not isinstance(error, InputError):
            advice = "Then continue with --resume." if saved() else "Nothing to resume was written yet."
            error.args = (*error.args[:-1], f"{error.args[-1]} {advice}")
        raise


def tolerate_lost_output() -> None:
    """Let the command continue when its output is closed or cannot be written.

    A closed stream is opened to the null device, because the next file to be opened would get its number.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream: Any = getattr(sys, name)
        if stream is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(nowhere, True)
            setattr(sys, name, os.fdopen(nowhere, "w" if number else "r"))
        elif number and stream is getattr(sys, f"__{name}__"):
            file = io.BufferedWriter(_Output(stream.fileno(), "w", closefd=False))
            text = io.TextIOWrapper(file, stream.encoding, "backslashreplace", line_buffering=stream.line_buffering)
            setattr(sys, name, text)


class _Output(io.FileIO):
    """A standard stream that drops what cannot be written; reported once, unless the reader closed a pipe."""

    lost = False

    def write(self, data: Any) -> int:
        """All of ``data``, or none of it."""
        try:
            while (written := super().write(data)) is None:  # a non-blocking pipe
                select.select([], [self], [])
        except OSError as error:
            written = len(data)
            if not self.lost and error.errno != errno.EPIPE and self.fileno() == 1:
                self.lost = True
                print(f"Warning: output cannot be written ({error.strerror}); the work continues.", file=sys.stderr)
        return written
