"""Data workers: supervised processes that make batches.

The workers run batchgenerators' loop; each makes every n-th batch, and they are read in order, so the order of the
batches never depends on timing. A thread finds each batch in the memory that its worker shares (receives it through a
pipe, where there is none) and puts it where it is computed with, while the training computes. A worker that dies or
falls silent is named (case, signal, memory), and a new one makes its batch again; the training process itself does not,
because it would die or hang too.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Empty, Full, Queue
from typing import Any

from batchgenerators.dataloading.multi_threaded_augmenter import producer

from medmamba.compute.processes import (
    SUSPENDED_SECONDS,
    follow_parent,
    how_it_ended,
    starting_workers,
    usable_cores,
)
from medmamba.disk.scratch import scratch_folder
from medmamba.errors import InputError, ResourceError
from medmamba.training.batches import Batch, PatchSource
from medmamba.training.placement import copied
from medmamba.training.shared_slot import SharedSlot, shared_slots

POLL_SECONDS = 0.25
MAX_FAULTS = 5
"""Faults of workers in one training after which it stops."""
LENT = 2
"""Batches of a worker that are with the training: one that is computed with, and the next."""
MOST_WORKERS = 12
"""Workers unless a number is given: as many as nnU-Net has, but one core less than there are."""


def automatic_workers(trainings: int = 1) -> int:
    """One less than the cores, at least 1 and at most 12; of several trainings or ranks each has its part of them."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(MOST_WORKERS, usable_cores() // (trainings * ranks) - 1))


class SupervisedWorkers:
    """Batches from ``source.first_step`` on, without end; an iterator to be closed.

    ``place`` is called with each batch in the receiving thread. A batch that it returns as it is lies in a worker's
    memory until the next one is fetched.
    """

    def __init__(
        self,
        source: PatchSource,
        workers: int,
        *,
        stall_seconds: float,
        on_fault: Callable[[str], None] = lambda line: None,
        place: Callable[[Batch], Batch] = copied,
    ) -> None:
        self.source = source
        self.stall_seconds = stall_seconds
        self.on_fault = on_fault
        self.last_wait = 0.0
        self.faults = 0
        self._place = place
        self._failed_step: int | None = None
        self._step = source.first_step
        self._workers: list[_Worker] = []
        self._ready: Queue[tuple[Batch, _Worker] | BaseException] = Queue(1)
        self._lender: _Worker | None = None
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._pipes_said = False
        self._scratch = ExitStack()
        self._notes = self._scratch.enter_context(scratch_folder())
        try:
            for number in range(workers):
                self._workers.append(self._start(self._step + number, workers, self._notes / str(number)))
            if workers:
                self._thread = threading.Thread(target=self._receive, args=(self._step,), daemon=True)
                self._thread.start()
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        started = time.monotonic()
        if self._lender is not None:
            self._lender.returned()
        batch = self._from_worker() if self._workers else self._place(self.source.batch(self._step))
        self._step += 1
        self.last_wait = time.monotonic() - started
        return batch

    def close(self) -> None:
        """End all workers and remove their notes."""
        self._closed.set()
        for worker in self._workers:
            worker.end()
        if self._thread is not None:
            with contextlib.suppress(Empty):
                self._ready.get_nowait()  # the thread may wait for room
            self._thread.join(2)
        self._scratch.close()

    def _from_worker(self) -> Batch:
        index = (self._step - self.source.first_step) % len(self._workers)
        asked = now = time.monotonic()
        while True:
            made = self._poll()
            before, now = now, time.monotonic()
            if now - before > SUSPENDED_SECONDS:
                asked = now
            if isinstance(made, BaseException):
                raise made
            if made is not None:
                batch, self._lender = made
                return batch
            fault = self._workers[index].fault(asked, now, self.stall_seconds)
            if fault is not None:
                self._replace(index, fault)
                asked = now

    def _poll(self) -> "tuple[Batch, _Worker] | BaseException | None":
        """The next batch and who made it, or why there is none; None if it does not come at once."""
        try:
            return self._ready.get(timeout=POLL_SECONDS)
        except Empty:
            return None

    def _receive(self, step: int) -> None:
        """The thread: batches in their order, each placed while the one before it waits to be fetched."""
        try:
            while not self._closed.is_set():
                worker = self._workers[(step - self.source.first_step) % len(self._workers)]
                made = worker.take()
                if made is None:
                    self._closed.wait(POLL_SECONDS if worker.is_drained else 0)
                    continue
                if "error" in made:
                    raise InputError(f"{made['error']} (met while batch {step} was made)")
                if made["step"] == step:
                    self._hand_over((self._place(self.source.as_batch(made)), worker))
                    step += 1
                else:  # it was made again although it had arrived
                    worker.returned()
        except BaseException as error:  # raised where the batch is fetched
            self._hand_over(error)

    def _hand_over(self, made: "tuple[Batch, _Worker] | BaseException") -> None:
        while not self._closed.is_set():
            with contextlib.suppress(Full):
                return self._ready.put(made, timeout=POLL_SECONDS)

    def _start(self, step: int, stride: int, notes: Path) -> "_Worker":
        try:
            slots = shared_slots(self.source.largest_batch(), LENT)
        except (OSError, OverflowError) as error:
            slots = []
            if not self._pipes_said:
                self._pipes_said = True
                self.on_fault(
                    f"No memory can be shared with the data workers ({error}); pipes are used, and are slower."
                )
        return _Worker(self.source, step, stride, notes, slots)

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
        self._workers[index] = self._start(self._step, len(self._workers), old.notes)


class _Worker:
    """One process that makes every ``stride``-th batch from ``first_step`` on.

    It writes batches into ``slots`` in turn, or sends them where there are none, and says so. At most :data:`LENT` are
    with the training. No other process can write to its pipe, which so ends with the process.
    """

    def __init__(
        self, source: PatchSource, first_step: int, stride: int, notes: Path, slots: Sequence[SharedSlot]
    ) -> None:
        self.notes = notes
        self.is_drained = False
        """Whether it ended and everything it sent was taken."""
        self._slots = slots
        self._note = ""
        self._note_changed = time.monotonic()
        self._memory_gib: float | None = None
        self._pipe, its_end = multiprocessing.Pipe()
        own = source.for_worker(first_step, stride, notes)
        self._process = multiprocessing.Process(
            target=_send_batches, args=(own, self._pipe, its_end, slots), daemon=True
        )
        try:
            with starting_workers():
                self._process.start()
        except OSError as error:
            raise ResourceError(f"No data worker can be started: {error.strerror}. Use fewer --workers.") from error
        its_end.close()

    def take(self) -> dict[str, Any] | None:
        """What it made, if something comes soon; arrays may be on shared memory until :meth:`returned` is called."""
        try:
            if not self._pipe.poll(POLL_SECONDS):
                return None
            made: dict[str, Any] = self._pipe.recv()
        except (EOFError, OSError):
            self.is_drained = True
            return None
        if "slot" in made:
            made["arrays"] = self._slots[made["slot"]].read(made["places"])
        return made

    def returned(self) -> None:
        """Let it use the memory of the first batch that was not returned yet."""
        with contextlib.suppress(OSError):
            self._pipe.send_bytes(b"r")

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
            return f"{worker} {how_it_ended(self._process.exitcode)} {doing}." if self.is_drained else None
        if now - max(asked, self._note_changed) > stall_seconds:
            return f"{worker} was silent for {stall_seconds:.0f} s {doing}; it was ended."
        return None

    def end(self) -> None:
        """End the process at once; it has no state to save."""
        self._process.kill()
        self._process.join(2)


class _Sender:
    """The worker's end, with the interface of the queue of batchgenerators' loop."""

    def __init__(self, pipe: Connection, slots: Sequence[SharedSlot]) -> None:
        self._pipe, self._slots = pipe, slots
        self._sent = 0

    def put(self, made: dict[str, Any], timeout: float) -> None:
        """Leave a batch for the training process when not too many are there."""
        try:
            if self._sent >= LENT:
                self._pipe.recv_bytes()
            if self._slots and "arrays" in made:
                number = self._sent % LENT
                places = self._slots[number].write(made["arrays"])
                if places is not None:
                    made = {**made, "slot": number, "places": [tuple(place) for place in places], "arrays": None}
            self._pipe.send(made)
            self._sent += 1
        except (EOFError, OSError):  # the training process is gone
            os._exit(1)


def _send_batches(source: PatchSource, training_end: Connection, pipe: Connection, slots: Sequence[SharedSlot]) -> None:
    """The target of a worker process."""
    training_end.close()
    follow_parent()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the handler of the training process
    producer(_Sender(pipe, slots), source, None, 0, source.recipe.seed % 2**32, threading.Event())


def resident_gib(pid: int | None) -> float | None:
    """Memory that a process holds, in GiB; None where the system does not report it."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**30
