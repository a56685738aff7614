"""Worker processes that predict the cases of a folder under supervision.

A worker does whole cases, so that reading, preprocessing, restoring and writing of one run beside the network of
another, and a death takes one case only. A worker that dies or gives no sign is named with its case; when all others
are done the case is tried once more, alone, with the machine to itself, and only then given up.
"""

import contextlib
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from medmamba.compute.free_memory import free_memory
from medmamba.compute.processes import SUSPENDED_SECONDS, follow_parent, how_it_ended, starting_workers
from medmamba.errors import InputError, MedmambaError, ResourceError, size_text
from medmamba.images.cases import ImageCase
from medmamba.inference.finding import Finding
from medmamba.inference.folder.case_job import CaseRecord, Job
from medmamba.inference.joint import Models, paths_of
from medmamba.inference.options import PredictorOptions
from medmamba.inference.prediction import Provenance
from medmamba.inference.predictor import Predictor
from medmamba.models.trained_folds import select_models

OnMessage = Callable[[str], None]
STALL_MINUTES = 60.0
"""A worker that finishes neither a tile nor a case for so long is ended."""


class Workers:
    """``count`` processes with a predictor each; a context manager.

    Args:
        model, options: as of :class:`medmamba.Predictor`. Cores are shared out among the workers.
        stall_minutes: a worker that gives no sign for so long is ended.
    """

    def __init__(
        self, model: Models, options: PredictorOptions, count: int, *, stall_minutes: float = STALL_MINUTES
    ) -> None:
        import torch

        models = paths_of(model)
        for path in models:
            select_models(path, options.configuration, options.folds)  # refused before any starts
        self.count = count
        self._inbox: Queue[tuple[_Worker, Any]] = Queue()
        self._start = (self._inbox, models, options, max(1, torch.get_num_threads() // count))
        self._stall_seconds = 60 * stall_minutes
        self._looked = time.monotonic()
        self._workers = [_Worker(*self._start) for _ in range(count)]
        self._model: Provenance | None = None

    def provenance(self) -> Provenance:
        """What makes the masks, as the first worker that has loaded the model reports."""
        faults = 0
        while self._model is None:
            for worker, _ in self._messages(lambda line: None):
                faults += 1
                if faults > len(self._workers):
                    raise ResourceError(f"{worker.fault()} while it loaded the model. Use fewer --workers.")
                self._workers[self._workers.index(worker)] = _Worker(*self._start)
        return self._model

    def records(
        self, cases: Sequence[ImageCase], job: Job, on_message: OnMessage
    ) -> Iterator[tuple[ImageCase, CaseRecord]]:
        """Each case with its record, in the order in which they end."""
        lost: list[tuple[ImageCase, str]] = []
        for case, found in self._attempts(cases, job, on_message):
            if isinstance(found, CaseRecord):
                yield case, found
                continue
            on_message(job.shown.hide(f"{case.case_id}: {found}; it is repeated alone at the end.", case))
            lost.append((case, found))
        for case, fault in lost:
            self.close()
            self._workers = [_Worker(*self._start)]
            ((_, found),) = self._attempts([case], job, on_message)
            if isinstance(found, str):
                free = free_memory()
                left = "" if free is None else f"; {size_text(free)} are free now"
                again = f"the {fault}, and once more, alone: the {found}{left}"
                found = job.failed(case, f"{case.case_id}: {again}. Give it more memory, or check the image.")
            elif not found.failed:
                note = Finding("note", f"made at the second attempt; at the first the {fault}")
                found = replace(found, findings=[*found.findings, note])
            yield case, found

    def _attempts(
        self, cases: Sequence[ImageCase], job: Job, on_message: OnMessage
    ) -> Iterator[tuple[ImageCase, CaseRecord | str]]:
        """Each case with its record, or with how its worker ended; a new worker replaces it."""
        waiting = list(cases)
        while waiting or any(worker.case for worker in self._workers):
            for worker in self._workers:
                if waiting and worker.case is None:
                    worker.ask(waiting.pop(0), job)
            for worker, record in self._messages(on_message):
                case, worker.case = worker.case, None
                if record is None:
                    self._workers[self._workers.index(worker)] = _Worker(*self._start)
                if case is not None:
                    yield case, worker.fault() if record is None else record

    def _messages(self, on_message: OnMessage) -> "Iterator[tuple[_Worker, CaseRecord | None]]":
        """Workers that finished a case, with its record, or that died or timed out, with None."""
        before, self._looked = self._looked, time.monotonic()
        if self._looked - before > SUSPENDED_SECONDS:
            for worker in self._workers:
                worker.sign = self._looked
        for worker in list(self._workers):
            if worker.case is not None and time.monotonic() - worker.sign > self._stall_seconds:
                worker.end(f"worker gave no sign for {self._stall_seconds / 60:.0f} minutes and was ended")
                yield worker, None
        try:
            worker, message = self._inbox.get(timeout=1.0)
        except Empty:
            return
        if worker not in self._workers:  # of a worker that was ended
            return
        match message:
            case None:
                yield worker, None
            case ("ready", model):
                if model != (self._model or model):
                    raise InputError("The model changed while it was in use. Let its training end, then use --resume.")
                self._model = model
            case ("say", line):
                on_message(line)
            case ("refused", error, text):
                raise (ResourceError if error == "ResourceError" else InputError)(text)
            case ("done", record):
                yield worker, record

    def close(self) -> None:
        """End all workers at once; files they were writing have no final name yet."""
        for worker in self._workers:
            worker.end()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _Worker:
    """One process and its current case; a thread receives its messages, because a message may be incomplete."""

    def __init__(self, inbox: "Queue[Any]", model: Sequence[Path], options: PredictorOptions, threads: int) -> None:
        context = multiprocessing.get_context("spawn")  # neither CUDA nor a pool of threads survives a fork
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, model, options, threads), daemon=True)
        with starting_workers():
            self._process.start()
        theirs.close()
        self.case: ImageCase | None = None
        self.sign = time.monotonic()
        self._fault = ""
        threading.Thread(target=self._receive, args=(inbox,), daemon=True).start()

    def ask(self, case: ImageCase, job: Job) -> None:
        self.case, self.sign = case, time.monotonic()
        with contextlib.suppress(OSError):  # it is dead already, which is seen when its answer is read
            self._connection.send((case, job))

    def _receive(self, inbox: "Queue[tuple[_Worker, Any]]") -> None:
        """Forward its messages, and None when it has died."""
        with self._connection, contextlib.suppress(EOFError, OSError):
            while True:
                message = self._connection.recv()
                self.sign = time.monotonic()
                inbox.put((self, message))
        inbox.put((self, None))

    def fault(self) -> str:
        """How it ended, in words."""
        if self._fault:
            return self._fault
        self._process.join(10)
        return f"worker {how_it_ended(self._process.exitcode)}"

    def end(self, fault: str = "") -> None:
        self._fault = fault
        self._process.kill()
        self._process.join(10)


def _work(connection: Connection, model: Sequence[Path], options: PredictorOptions, threads: int) -> None:
    """A worker: loads the model once, then predicts the cases that it is sent, until the pipe closes."""
    follow_parent()
    import torch

    torch.set_num_threads(threads)
    lock = threading.Lock()

    def tell(*message: Any) -> None:
        with lock:
            connection.send(message)

    try:
        predictor = Predictor(model, options)
        predictor.on_tile = lambda done, total: tell("sign")
        tell("ready", predictor.provenance())
        while True:
            try:
                case, job = connection.recv()
            except EOFError:
                return
            tell("done", job.run(predictor, case, lambda line: tell("say", line)))
    except MedmambaError as error:
        tell("refused", "ResourceError" if isinstance(error, ResourceError) else "InputError", str(error))
