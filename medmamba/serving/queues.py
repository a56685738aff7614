"""Queues of requests: one per device, each served by one thread, with a largest length."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from medmamba.errors import ResourceError
from medmamba.inference.predictor import Predictor

Answer = TypeVar("Answer")


class Busy(ResourceError):
    """All queues are full."""


class RequestQueues:
    """Sends each job to the device with the shortest queue.

    Args:
        predictors: the same model, once per device.
        longest: jobs that may wait or run at one device.
    """

    def __init__(self, predictors: Sequence[Predictor], longest: int = 8) -> None:
        self.predictors, self.longest = list(predictors), longest
        self._threads = [ThreadPoolExecutor(1, thread_name_prefix=f"medmamba-{p.device}") for p in self.predictors]
        self._lengths = [0] * len(self.predictors)
        self._lock = threading.Lock()

    @property
    def lengths(self) -> dict[str, int]:
        """Jobs waiting or running, by device."""
        with self._lock:
            return {f"{number}:{p.device}": self._lengths[number] for number, p in enumerate(self.predictors)}

    def submit(self, job: Callable[[Predictor], Answer]) -> Future[Answer]:
        """Put a job into the shortest queue. Raises Busy when that one is full."""
        with self._lock:
            index = min(range(len(self._lengths)), key=self._lengths.__getitem__)
            if self._lengths[index] >= self.longest:
                raise Busy(f"{sum(self._lengths)} images are waiting already. Send this one again later.")
            self._lengths[index] += 1
        future = self._threads[index].submit(job, self.predictors[index])
        future.add_done_callback(lambda _: self._done(index))
        return future

    def close(self) -> None:
        """Finish the running jobs, drop the waiting ones, free the models."""
        for thread in self._threads:
            thread.shutdown(wait=True, cancel_futures=True)
        for predictor in self.predictors:
            predictor.close()

    def _done(self, index: int) -> None:
        with self._lock:
            self._lengths[index] -= 1
