"""Worker processes that predict the cases of a folder under supervision.

A worker does whole cases, so that reading, preprocessing, restoring and writing of one run beside the network of
another, and a death takes one case only. A worker that dies or gives no sign is named with its case; when all others
are done the case is tried once more, alone, with the machine to itself, and only then given up.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from medmamba.compute.free_memory import free_memory
from medmamba.errors import InputError, MedmambaError, ResourceError
from medmamba.images.cases import ImageCase
from medmamba.inference.folder.case_job import Job
from medmamba.inference.folder.case_record import CaseRecord
from medmamba.inference.options import PredictorOptions
from medmamba.inference.prediction import Provenance
from medmamba.inference.predictor import Predictor
from medmamba.inference.quality import Finding
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
        self, model: str | Path, options: PredictorOptions, count: int, *, stall_minutes: float = STALL_MINUTES
    ) -> None:
        import torch

        select_models(Path(model), options.configuration, options.folds)  # refused before any starts
        self._start = (str(model), options, max(1, torch.get_num_threads() // count))
        self._stall_seconds = 60 * stall_minutes
        self._workers = [_Worker(*self._start) for _ in range(count)]
        self._model: Provenance | None = None

    def provenance(self) -> Provenance:
        """What makes the masks, as the first worker that has loaded the model reports."""
        faults = 0
        while self._model is None:
            for worker, message in self._messages(lambda line: None):
                if message is not None:
                    continue
                faults += 1
                if faults > len(self._workers):
                    raise ResourceError(f"{worker.fault()} while it loaded the model. Use fewer --workers.")
                self._workers[self._workers.index(worker)] = _Worker(*self._start)
        return self._model

    def records(
        self, cases: Sequence[ImageCase], job: Job, on_message: OnMessage
    ) -> Iterator[tuple[ImageCase, CaseRecord]]:
        """Each case with its record, in the order in which they end."""
        model = self.provenance()
        waiting, alone = list(cases), dict[str, tuple[ImageCase, str]]()
        while waiting or any(worker.case for worker in self._workers):
            for worker in self._workers:
                if waiting and worker.case is None:
                    worker.ask(waiting.pop(0), job, model)
            for worker, message in self._messages(on_message):
                case, worker.case = worker.case, None
                if message is not None:
                    assert case is not None
                    yield case, message[1]
                    continue
                fault = worker.fault()
                self._workers[self._workers.index(worker)] = _Worker(*self._start)
                if case is not None:
                    on_message(
                        job.shown.hide(f"{case.case_id}: {fault}; it is tried once more, alone, at the end.", case)
                    )
                    alone[case.case_id] = case, fault
        for case, fault in alone.values():
            yield case, self._once_more(case, fault, job, model, on_message)

    def _once_more(self, case: ImageCase, fault: str, job: Job, model: Provenance, on_message: OnMessage) -> CaseRecord:
        for worker in self._workers:
            worker.end()
        self._workers = [_Worker(*self._start)]
        self._workers[0].ask(case, job, model)
        while True:
            for worker, message in self._messages(on_message):
                worker.case = None
                if message is not None:
                    record: CaseRecord = message[1]
                    note = Finding("note", f"made at the second attempt; at the first the {fault}")
                    return record if record.failed else replace(record, findings=[*record.findings, note])
                again = worker.fault()
                self._workers = [_Worker(*self._start)]
                free = free_memory()
                left = "" if free is None else f"; {free / 2**30:.1f} GiB are free now"
                return job.failed(
                    case,
                    model,
                    f"{case.case_id}: the {fault}, and once more, alone: the {again}{left}. Give it more memory, or "
                    "look at the image.",
                )

    def _messages(self, on_message: OnMessage) -> Iterator[tuple[_Worker, Any]]:
        """Workers that ended a case with their message, or that died or gave no sign, with None."""
        ready = wait([worker.connection for worker in self._workers], timeout=1.0)
        for worker in list(self._workers):
            message = worker.read() if worker.connection in ready else None
            if message is None and worker.connection not in ready:
                if worker.case is not None and worker.silent_for() > self._stall_seconds:
                    worker.end(f"worker gave no sign for {self._stall_seconds / 60:.0f} minutes and was ended")
                    yield worker, None
                continue
            match message:
                case None:
                    worker.join()
                    yield worker, None
                case ("ready", model):
                    self._model = self._model or model
                case ("say", line):
                    on_message(line)
                case ("sign",):
                    pass
                case ("refused", error, text):
                    raise (ResourceError if error == "ResourceError" else InputError)(text)
                case _:
                    yield worker, message

    def close(self) -> None:
        """End all workers at once; files they were writing have no final name yet."""
        for worker in self._workers:
            worker.end()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _Worker:
    """One process and its current case."""

    def __init__(self, model: str, options: PredictorOptions, threads: int) -> None:
        context = multiprocessing.get_context("spawn")  # neither CUDA nor a pool of threads survives a fork
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, os.getpid(), model, options, threads), daemon=True)
        self._process.start()
        theirs.close()
        self.case: ImageCase | None = None
        self._sign = time.monotonic()
        self._fault = ""

    def ask(self, case: ImageCase, job: Job, model: Provenance) -> None:
        self.case, self._sign = case, time.monotonic()
        with contextlib.suppress(OSError):  # it is dead already, which is seen when its answer is read
            self.connection.send((case, job, model))

    def read(self) -> Any:
        """Its next message; None if it has died."""
        try:
            message = self.connection.recv()
        except (EOFError, OSError):
            return None
        self._sign = time.monotonic()
        return message

    def silent_for(self) -> float:
        """Seconds since its last sign."""
        return time.monotonic() - self._sign

    def join(self) -> None:
        self._process.join(10)

    def fault(self) -> str:
        """How it ended, in words."""
        if self._fault:
            return self._fault
        code = self._process.exitcode
        if code is not None and code < 0:
            name = next((found.name for found in signal.Signals if found.value == -code), f"signal {-code}")
            cause = " (most often: out of memory)" if -code == signal.SIGKILL else ""
            return f"worker was killed by {name}{cause}"
        return f"worker ended with exit code {code}"

    def end(self, fault: str = "") -> None:
        self._fault = fault
        self._process.kill()
        self._process.join(10)
        self.connection.close()


def _work(connection: Connection, parent: int, model: str, options: PredictorOptions, threads: int) -> None:
    """A worker: loads the model once, then predicts the cases that it is sent, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt of the terminal reaches everybody; the parent decides
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
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
                case, job, made_by = connection.recv()
            except EOFError:
                return
            tell("done", job.run(predictor, made_by, case, lambda line: tell("say", line)))
    except MedmambaError as error:
        tell("refused", "ResourceError" if isinstance(error, ResourceError) else "InputError", str(error))


def _end_with(parent: int) -> None:
    """A worker does not outlive the process that started it: a second run may begin as soon as that one is gone."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
