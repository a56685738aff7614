"""The sockets of a service: silent and stalled clients are cut off, and a stop ends them within a bounded time."""

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import h11
import uvicorn
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from medmamba.serving.limits import Ending, ServiceLimits
from medmamba.serving.refusal import Refusal

CLOSING_SECONDS = 2.0
"""For answers on their way when the service ends."""


logging.getLogger("python_multipart").setLevel(logging.ERROR)  # a damaged form is its sender's business


def make_server(app: Any, limits: ServiceLimits, ending: Ending) -> "BoundedServer":
    """The server of an application; no access log, which would hold the names of files."""
    config = uvicorn.Config(
        app,
        http=_connection_class(limits),
        ws="none",
        log_level="warning",
        access_log=False,
        headers=[("Connection", "close")],  # one request each, so that the time for its head is easily bounded
        timeout_graceful_shutdown=int(limits.grace_seconds + 2 * CLOSING_SECONDS) + 1,
    )
    return BoundedServer(config, limits, ending)


class BoundedServer(uvicorn.Server):
    """A server that tells its clients that it stops, and waits for none of them longer than allowed."""

    def __init__(self, config: uvicorn.Config, limits: ServiceLimits, ending: Ending) -> None:
        super().__init__(config)
        self.limits, self.ending = limits, ending

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, end every wait for a client, let the running case finish, close what is left."""
        self.ending.begin()
        asyncio.get_running_loop().call_later(self.limits.grace_seconds + CLOSING_SECONDS, self._cut_off)
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """A terminal that closes stops the service as SIGTERM does, unless it is told to live on (nohup)."""
        with super().capture_signals():
            before = signal.getsignal(signal.SIGHUP) if hasattr(signal, "SIGHUP") else signal.SIG_IGN
            takes = before != signal.SIG_IGN and threading.current_thread() is threading.main_thread()
            if takes:
                signal.signal(signal.SIGHUP, self.handle_exit)
            try:
                yield
            finally:
                if takes:
                    signal.signal(signal.SIGHUP, before)

    def _cut_off(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()


async def _too_many_connections(scope: Scope, receive: Receive, send: Send) -> None:
    refusal = Refusal(503, "the service has too many connections. Send the image again later.")
    await JSONResponse(refusal.body, refusal.code, refusal.headers)(scope, receive, send)


def _connection_class(limits: ServiceLimits) -> type[H11Protocol]:
    class BoundedConnection(H11Protocol):
        """Cut off when the head of a request does not come, or its answer is not taken; refuses in JSON."""

        @property
        def app(self) -> Any:
            """What answers the next request; beyond the limit of connections a refusal."""
            full = max(len(self.connections), len(self.tasks)) >= limits.connections
            return _too_many_connections if full else self._app

        @app.setter
        def app(self, app: Any) -> None:
            self._app = app

        def send_400_response(self, msg: str) -> None:
            body = b'{"error": "not a valid HTTP request. Send it as curl does."}'
            headers = [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))),
                ("Connection", "close"),
            ]
            for event in (
                h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._stalled: asyncio.TimerHandle | None = None
            self.loop.call_later(limits.stalled_seconds, self._cut_off_without_request)

        def _cut_off_without_request(self) -> None:
            if self.cycle is None:
                self.transport.abort()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._stalled = self.loop.call_later(limits.stalled_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._stalled is not None:
                self._stalled.cancel()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.transport.is_closing():  # what is still to be sent is less than what pauses writing
                self.loop.call_later(limits.stalled_seconds, self.transport.abort)

    return BoundedConnection
