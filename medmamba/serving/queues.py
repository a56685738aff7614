"""One queue of predictions per device, of bounded length; a job can be abandoned between two patches."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from medmamba.errors import ResourceError
from medmamba.inference.predictor import Predictor

Result = TypeVar("Result")


class Busy(ResourceError):
    """All queues are full."""


@dataclass(frozen=True, eq=False)
class QueuedPrediction(Generic[Result]):
    """A prediction that waits or runs; ``abandoned`` is looked at between patches."""

    future: Future[Result]
    abandoned: threading.Event

    def abandon(self) -> None:
        """Never start it; if it runs already, end it at its next patch."""
        self.abandoned.set()
        self.future.cancel()


class RequestQueues:
    """Sends each job to the device with the shortest queue.

    Args:
        predictors: the same model, once per device.
        longest: jobs that may wait or run at one device.
    """

    def __init__(self, predictors: Sequence[Predictor], longest: int = 8) -> None:
        self.predictors, self.longest = list(predictors), longest
        self._threads = [ThreadPoolExecutor(1, thread_name_prefix=f"medmamba-{p.device}") for p in self.predictors]
        self._jobs: list[set[QueuedPrediction[Any]]] = [set() for _ in self.predictors]
        self._lock = threading.Lock()

    @property
    def lengths(self) -> dict[str, int]:
        """Jobs waiting or running, by device."""
        with self._lock:
            return {f"{number}:{p.device}": len(self._jobs[number]) for number, p in enumerate(self.predictors)}

    def check(self) -> None:
        """Raises Busy when every queue is full."""
        with self._lock:
            self._shortest()

    def submit(self, work: Callable[[Predictor, threading.Event], Result]) -> QueuedPrediction[Result]:
        """Put work into the shortest queue; raises Busy when that one is full.

        ``work`` is called with a predictor and :attr:`QueuedPrediction.abandoned`.
        """
        with self._lock:
            index = self._shortest()
            abandoned = threading.Event()
            job = QueuedPrediction(self._threads[index].submit(work, self.predictors[index], abandoned), abandoned)
            self._jobs[index].add(job)
        job.future.add_done_callback(lambda _: self._ended(index, job))
        return job

    def drop_waiting(self) -> None:
        """Cancel every job that has not started."""
        for job in self._all():
            job.future.cancel()

    def close(self, seconds: float | None = None) -> bool:
        """Abandon all jobs and free the models; whether every job ended within ``seconds`` (None: however long)."""
        jobs = self._all()
        for job in jobs:
            job.abandon()
        ended = not wait([job.future for job in jobs], seconds).not_done
        for thread in self._threads:
            thread.shutdown(wait=ended, cancel_futures=True)
        if ended:
            for predictor in self.predictors:
                predictor.close()
        return ended

    def _shortest(self) -> int:
        index = min(range(len(self._jobs)), key=lambda number: len(self._jobs[number]))
        if len(self._jobs[index]) >= self.longest:
            raise Busy(f"{sum(map(len, self._jobs))} images are waiting already. Send this one again later.")
        return index

    def _ended(self, index: int, job: QueuedPrediction[Any]) -> None:
        with self._lock:
            self._jobs[index].discard(job)

    def _all(self) -> list[QueuedPrediction[Any]]:
        with self._lock:
            return [job for jobs in self._jobs for job in jobs]
