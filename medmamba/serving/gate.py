"""What stands around every request: its host name, HEAD, and errors that nobody foresaw."""

import asyncio
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medmamba.serving.limits import Ending


class Gate:
    """The application behind checks of the host name; nothing that it raises reaches the log as a traceback.

    Args:
        hosts: names under which the service may be addressed, "*" for all.
        on_message: receives one line for an error of the service itself.
        patience: seconds for the rest of a refused body.
    """

    def __init__(
        self, app: ASGIApp, hosts: Sequence[str], on_message: Callable[[str], None], patience: float, ending: Ending
    ) -> None:
        self.app, self.hosts, self.on_message, self.patience, self.ending = app, hosts, on_message, patience, ending

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = asked = complete = False
        waits_for_a_word = Headers(scope=scope).get("expect", "").lower() == "100-continue"

        async def heard() -> Message:
            nonlocal asked, complete
            asked = True
            message = await receive()
            complete = not message.get("more_body", False)
            return message

        async def watched(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start" and not started:
                started = True
                left = not complete and (asked or not waits_for_a_word)
                if left and message["status"] >= 400 and message["status"] != 408:
                    await self._discard(heard)
            await send(message)

        host = Headers(scope=scope).get("host", "")
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if "*" not in self.hosts and name.lower() not in self.hosts:
            refused = JSONResponse({"error": "unknown host name. Call the service by its address."}, 400)
            await refused(scope, heard, watched)
            return
        if scope["method"] == "HEAD":  # answered as GET; the server sends no body to a HEAD
            scope = {**scope, "method": "GET"}
        try:
            await self.app(scope, heard, watched)
        except ClientDisconnect:
            return  # nobody is there to be told
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            self.on_message(
                f"Error of the service: {type(error).__name__} at {Path(place.filename).name}:{place.lineno}"
            )
            if not started:
                refused = JSONResponse({"error": "an error of the service itself. Tell who runs it."}, 500)
                await refused(scope, heard, watched)

    async def _discard(self, heard: Receive) -> None:
        """Read the rest of a refused body, for some seconds, so that its client gets to read the answer."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.patience) as waiting:
                with self.ending.cut_short(waiting):
                    while (await heard()).get("more_body", False):
                        pass
