"""What stands around every request: its host name, HEAD, and errors that nobody foresaw."""

import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Gate:
    """The application behind checks of the host name; nothing that it raises reaches the log as a traceback.

    Args:
        hosts: names under which the service may be addressed, "*" for all.
        on_message: receives one line for an error of the service itself.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str], on_message: Callable[[str], None]) -> None:
        self.app, self.hosts, self.on_message = app, hosts, on_message

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        host = Headers(scope=scope).get("host", "")
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if "*" not in self.hosts and name.lower() not in self.hosts:
            refused = JSONResponse({"error": "unknown host name. Call the service by its address."}, 400)
            await refused(scope, receive, send)
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        if scope["method"] == "HEAD":  # answered as GET; the server sends no body to a HEAD
            scope = {**scope, "method": "GET"}
        try:
            await self.app(scope, receive, watched)
        except ClientDisconnect:
            return  # nobody is there to be told
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            self.on_message(
                f"Error of the service: {type(error).__name__} at {Path(place.filename).name}:{place.lineno}"
            )
            if not started:
                refused = JSONResponse({"error": "an error of the service itself. Tell who runs it."}, 500)
                await refused(scope, receive, send)
