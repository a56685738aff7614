"""The bounds of a service: bytes, seconds and jobs of its requests, and its end."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from medmamba.serving.refusal import Refusal


@dataclass(frozen=True)
class ServiceLimits:
    """Bounds of one request, and of all together.

    Attributes:
        upload_bytes: of one request's body.
        all_upload_bytes: of the bodies of all requests that are received, wait or run.
        unpacked_bytes: of the files that one zip unpacks to.
        waiting: jobs that may wait or run at one device.
        connections: open connections.
        stalled_seconds: without a byte to or from a client; also for the head of a request.
        slowest_bytes: per second, below which a client is too slow.
        grace_seconds: for the running case when the service is stopped. Container runtimes kill after ten seconds.
    """

    upload_bytes: int = 512 * 2**20
    all_upload_bytes: int = 2 * 2**30
    unpacked_bytes: int = 4 * 2**30
    waiting: int = 8
    connections: int = 256
    stalled_seconds: float = 30.0
    slowest_bytes: int = 16 * 2**10
    grace_seconds: float = 8.0


class UploadedBytes:
    """The bytes of all uploads that lie on the disk of a service; used in its event loop only."""

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0

    def take(self, size: int) -> None:
        """Count more bytes; raises Refusal when they are too many together."""
        if self.held + size > self.most:
            raise Refusal(503, "too many bytes are being uploaded at once. Send the image again later.")
        self.held += size

    def give_back(self, size: int) -> None:
        """Bytes that were deleted."""
        self.held -= size


class Ending:
    """The end of a service; used in its event loop only.

    Attributes:
        begun: whether the service is being stopped.
        last: set when the time of running cases has passed as well.
    """

    def __init__(self, grace_seconds: float, on_begin: Callable[[], None] = lambda: None) -> None:
        self.grace_seconds, self.begun, self._on_begin = grace_seconds, False, on_begin
        self.last = asyncio.Event()
        self._waiting: set[asyncio.Timeout] = set()

    def begin(self) -> None:
        """Every wait for a client ends now, and :attr:`last` follows after the time of grace."""
        if self.begun:
            return
        loop = asyncio.get_running_loop()
        self.begun = True
        self._on_begin()
        for waiting in self._waiting:
            waiting.reschedule(loop.time())
        loop.call_later(self.grace_seconds, self.last.set)

    @contextmanager
    def cut_short(self, waiting: asyncio.Timeout) -> Iterator[None]:
        """The time-out passes at once when the service is stopped within the block."""
        if self.begun:
            waiting.reschedule(asyncio.get_running_loop().time())
        self._waiting.add(waiting)
        try:
            yield
        finally:
            self._waiting.discard(waiting)
