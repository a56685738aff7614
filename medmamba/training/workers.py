"""Data workers: supervised processes that make batches.

The workers run batchgenerators' loop; each makes every n-th batch, and they are read in order, so the order of the
batches never depends on timing. A worker that dies or falls silent is named (case, signal, memory), and a new one makes
its batch again; the training process itself does not, because it would die or hang too.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from batchgenerators.dataloading.multi_threaded_augmenter import producer

from medmamba.compute.processes import SUSPENDED_SECONDS, follow_parent, how_it_ended, starting_workers
from medmamba.disk.scratch import scratch_folder
from medmamba.errors import InputError, ResourceError
from medmamba.training.batches import Batch, PatchSource

POLL_SECONDS = 0.05
MAX_FAULTS = 5
"""Faults of workers in one training after which it stops."""


class SupervisedWorkers:
    """Batches from ``source.first_step`` on, without end; an iterator to be closed."""

    def __init__(
        self,
        source: PatchSource,
        workers: int,
        *,
        stall_seconds: float,
        on_fault: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.source = source
        self.stall_seconds = stall_seconds
        self.on_fault = on_fault
        self.last_wait = 0.0
        self.faults = 0
        self._failed_step: int | None = None
        self._step = source.first_step
        self._workers: list[_Worker] = []
        self._scratch = ExitStack()
        self._notes = self._scratch.enter_context(scratch_folder())
        try:
            for number in range(workers):
                self._workers.append(_Worker(source, self._step + number, workers, self._notes / str(number)))
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        started = time.monotonic()
        batch = self.source.batch(self._step) if not self._workers else self._from_worker()
        self._step += 1
        self.last_wait = time.monotonic() - started
        return batch

    def close(self) -> None:
        """End all workers and remove their notes."""
        for worker in self._workers:
            worker.end()
        self._scratch.close()

    def _from_worker(self) -> Batch:
        index = (self._step - self.source.first_step) % len(self._workers)
        asked = now = time.monotonic()
        while True:
            worker = self._workers[index]
            made = worker.poll()
            before, now = now, time.monotonic()
            if now - before > SUSPENDED_SECONDS:
                asked = now
            if isinstance(made, dict) and "error" in made:
                raise InputError(f"{made['error']} (met while batch {self._step} was made)")
            if made is not None:
                return self.source.as_batch(made)
            fault = worker.fault(asked, now, self.stall_seconds)
            if fault is not None:
                self._replace(index, fault)
                asked = now

    def _replace(self, index: int, fault: str) -> None:
        self.faults += 1
        old = self._workers[index]
        old.end()
        if self.faults > MAX_FAULTS or self._failed_step == self._step:
            what = "the second for this batch" if self._failed_step == self._step else f"number {self.faults}"
            raise ResourceError(
                f"{fault} This fault of the data workers was {what}. Look at that case and its disk, give the run more "
                f"memory, use fewer --workers or none (--workers 0)."
            )
        self._failed_step = self._step
        self.on_fault(f"{fault} Batch {self._step} is made again by a new worker.")
        self._workers[index] = _Worker(self.source, self._step, len(self._workers), old.notes)


class _Worker:
    """One process that makes every ``stride``-th batch from ``first_step`` on.

    Its batches come through a pipe that no other process can write to, so the pipe ends with the process; a thread
    receives them, so that a process that stops within a batch blocks only that thread.
    """

    def __init__(self, source: PatchSource, first_step: int, stride: int, notes: Path) -> None:
        self.notes = notes
        self._note = ""
        self._note_changed = time.monotonic()
        self._memory_gib: float | None = None
        self._batches: Queue[dict[str, Any]] = Queue(1)
        self._ended = False
        reader, writer = multiprocessing.Pipe(duplex=False)
        own = source.for_worker(first_step, stride, notes)
        self._process = multiprocessing.Process(target=_send_batches, args=(own, reader, writer), daemon=True)
        try:
            with starting_workers():
                self._process.start()
        except OSError as error:
            raise ResourceError(f"No data worker can be started: {error.strerror}. Use fewer --workers.") from error
        writer.close()
        threading.Thread(target=self._receive, args=(reader,), daemon=True).start()

    def _receive(self, reader: Connection) -> None:
        with reader, contextlib.suppress(EOFError, OSError):
            while not self._ended:
                self._batches.put(reader.recv())

    def poll(self) -> dict[str, Any] | None:
        """The next batch, if one arrives at once."""
        try:
            return self._batches.get(timeout=POLL_SECONDS)
        except Empty:
            return None

    def fault(self, asked: float, now: float, stall_seconds: float) -> str | None:
        """The fault of the worker whose batch was requested at ``asked``, as a sentence; None while it works."""
        self._memory_gib = resident_gib(self._process.pid) or self._memory_gib
        note = self.notes.read_bytes().decode(errors="replace").strip() if self.notes.is_file() else ""
        if note != self._note:
            self._note, self._note_changed = note, now
        memory = "" if self._memory_gib is None else f", {self._memory_gib:.2f} GiB in use when last seen"
        doing = (f"at {note}" if note else "before its first case") + memory
        worker = f"Data worker {self._process.pid}"
        if not self._process.is_alive():
            return f"{worker} {how_it_ended(self._process.exitcode)} {doing}."
        if now - max(asked, self._note_changed) > stall_seconds:
            return f"{worker} was silent for {stall_seconds:.0f} s {doing}; it was ended."
        return None

    def end(self) -> None:
        """End the process at once; it has no state to save."""
        self._ended = True
        self._process.kill()
        self._process.join(2)
        with contextlib.suppress(Empty):  # the receiving thread may wait for room
            self._batches.get_nowait()


class _Sender:
    """A pipe with the interface of batchgenerators' loop."""

    def __init__(self, writer: Connection) -> None:
        self._writer = writer

    def put(self, made: dict[str, Any], timeout: float) -> None:
        """Send a batch; waits until the training process has room for it."""
        try:
            self._writer.send(made)
        except OSError:  # the reader is gone
            os._exit(1)


def _send_batches(source: PatchSource, reader: Connection, writer: Connection) -> None:
    """The target of a worker process."""
    reader.close()
    follow_parent()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the handler of the training process
    producer(_Sender(writer), source, None, 0, source.recipe.seed % 2**32, threading.Event())


def resident_gib(pid: int | None) -> float | None:
    """Memory that a process holds, in GiB; None where the system does not report it."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**30
