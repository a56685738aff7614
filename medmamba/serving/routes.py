"""The addresses of the service, and the way of a request: received, queued, predicted, answered, deleted."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from medmamba.disk.scratch import scratch_folder
from medmamba.images.gate import brief
from medmamba.inference.predictor import Predictor
from medmamba.serving.answer import DICOM, Answer, Content, Format, Wanted, answer
from medmamba.serving.gate import Gate
from medmamba.serving.limits import Ending, ServiceLimits, UploadedBytes
from medmamba.serving.openapi import BODY, RESPONSES
from medmamba.serving.queues import RequestQueues
from medmamba.serving.refusal import Refusal, refusal_of, stopping
from medmamba.serving.upload import ACCEPTED, Upload
from medmamba.version import __version__

HOSTS = ("127.0.0.1", "localhost", "[::1]")
DISCARD_SECONDS = 5.0
"""For the rest of a refused body: most clients read no answer before they have sent everything."""
CLOSING_SECONDS = 1.0
"""For the patch that runs when the service ends."""
PIECE = 2**16
"""Bytes of an answer that are sent at once; a client that takes none for some time is cut off."""
ADDRESSES = "POST /predict, GET /info, GET /health, GET /openapi.json"


class Service:
    """A model behind HTTP.

    Args:
        predictors: the same model, once per device.
        hosts: names under which it may be addressed, so that a page in a browser cannot reach it by a name of its own.
        codes: labels file of DICOM objects.
        on_message: receives one line for each error of the service itself.

    Attributes:
        app: the application (ASGI), for a server of your own.
        ending: to be begun when that server stops.
        room: folder of the files of all requests, while it runs.
        stuck: whether a prediction still ran when the service had ended.
    """

    def __init__(
        self,
        predictors: Sequence[Predictor],
        limits: ServiceLimits | None = None,
        *,
        hosts: Sequence[str] = HOSTS,
        codes: Path | None = None,
        on_message: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.limits, self.codes = limits or ServiceLimits(), codes
        self.plan, self.provenance = predictors[0].plan, predictors[0].provenance()
        self.queues = RequestQueues(predictors, self.limits.waiting)
        self.ending = Ending(self.limits.grace_seconds, self.queues.drop_waiting)
        self.stuck = False
        self.uploaded = UploadedBytes(self.limits.all_upload_bytes)
        self.room = Path()
        app = FastAPI(
            title="medmamba",
            description="Medical image segmentation: a volume in, its mask and a report out.",
            version=__version__,
            lifespan=self._lifespan,
            docs_url=None,
            redoc_url=None,
            redirect_slashes=False,
        )
        patience = min(DISCARD_SECONDS, self.limits.stalled_seconds)
        app.add_middleware(Gate, hosts=hosts, on_message=on_message, patience=patience, ending=self.ending)
        app.add_exception_handler(HTTPException, _wrong_address)
        app.add_exception_handler(RequestValidationError, _wrong_parameter)
        app.add_api_route("/health", self.health, methods=["GET"])
        app.add_api_route("/info", self.info, methods=["GET"])
        app.add_api_route(
            "/predict",
            self.predict,
            methods=["POST"],
            response_class=Response,
            responses=RESPONSES,
            openapi_extra={"requestBody": BODY},
        )
        self.app = app

    @asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        with scratch_folder() as self.room:
            yield
            self.stuck = not self.queues.close(CLOSING_SECONDS)

    async def health(self) -> dict[str, Any]:
        """Whether the service runs, and how many images wait or run at each device."""
        return {"status": "ok", "waiting": self.queues.lengths}

    async def info(self) -> dict[str, Any]:
        """Channels and labels of the model, accepted files and limits, and what made the model."""
        return {
            "channels": self.plan.channel_names,
            "labels": self.plan.labels,
            "endings": list(ACCEPTED),
            "upload_bytes": self.limits.upload_bytes,
            "model": self.provenance.as_dict(),
        }

    async def predict(
        self,
        request: Request,
        name: Annotated[str, Query(description="Name of the file; its ending is the format of a raw body.")] = "",
        answer: Annotated[Content, Query(description="What is sent back.")] = "zip",
        format: Annotated[
            Format, Query(description="Format of the mask: that of the image, or a DICOM object of a DICOM series.")
        ] = "image",
        series: Annotated[
            str | None,
            Query(description="Series of a study: number or end of its UID, :PART behind it, or largest."),
        ] = None,
    ) -> Response:
        """Predict the mask of one image: one file, one file per channel, or a zip of a DICOM series or of channels."""
        known = ("name", "answer", "format", "series")
        if unknown := next((key for key in request.query_params if key not in known), None):
            return _refused(Refusal(400, f"unknown parameter {brief(unknown)!r}. Known: {', '.join(known)}."))
        if DICOM in request.headers.get("accept", "") and not {"answer", "format"} & set(request.query_params):
            answer, format = "mask", "dicom-seg"
        try:
            return await self._answer(request, name, Wanted(answer, format, series))
        except Refusal as refusal:
            return _refused(refusal)

    async def _answer(self, request: Request, name: str, wanted: Wanted) -> Response:
        try:
            upload = Upload(self.room, self.limits, self.uploaded, self.plan.channel_names, self.ending)
        except OSError as error:
            raise refusal_of(error, self.room) or error from error
        try:
            made = await self._received_and_predicted(request, name, wanted, upload)
            return _FileAnswer(made, upload)
        except BaseException:
            upload.close()
            raise

    async def _received_and_predicted(self, request: Request, name: str, wanted: Wanted, upload: Upload) -> Answer:
        try:
            if self.ending.begun:
                raise stopping()
            if wanted.format != "image" and not (find_spec("highdicom") and find_spec("contourpy")):
                raise Refusal(501, "this service cannot write DICOM. Leave format out.")
            self.queues.check()
            await upload.receive(request, name)
            return await self._predicted(request, upload, wanted)
        except Exception as error:
            if (refusal := refusal_of(error, upload.folder)) is None:
                raise
            raise refusal from error

    async def _predicted(self, request: Request, upload: Upload, wanted: Wanted) -> Answer:
        """The answer, unless the client hangs up or the service ends before."""
        work = partial(answer, files=upload.files, wanted=wanted, limits=self.limits, codes=self.codes)
        job = self.queues.submit(work)
        future = asyncio.wrap_future(job.future)
        future.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen, whoever still waits for it
        lost: asyncio.Future[Any] = asyncio.ensure_future(_disconnected(request))
        last: asyncio.Future[Any] = asyncio.ensure_future(self.ending.last.wait())
        waits = [future, lost, last]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if future.cancelled() or (last.done() and not future.done()):
                job.abandon()
                raise stopping()
            if future.done():
                return future.result()
            job.abandon()
            await asyncio.wait([future, last], return_when=asyncio.FIRST_COMPLETED)  # its thread reads the files
            raise ClientDisconnect
        finally:
            for wait in waits:
                wait.cancel()


class _FileAnswer(Response):
    """A file in pieces; the files of its request are deleted afterwards."""

    def __init__(self, made: Answer, upload: Upload) -> None:
        size = made.path.stat().st_size
        headers = {"Content-Length": str(size), "Content-Disposition": f'attachment; filename="{made.path.name}"'}
        super().__init__(media_type=made.media_type, headers=headers)
        self._path, self._upload = made.path, upload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            with open(self._path, "rb") as file:
                while piece := file.read(PIECE):
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            self._upload.close()


def _refused(refusal: Refusal) -> JSONResponse:
    return JSONResponse(refusal.body, refusal.code, refusal.headers)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _wrong_address(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    reasons = {404: f"no such address. Known: {ADDRESSES}.", 405: f"wrong method. Known: {ADDRESSES}."}
    return JSONResponse({"error": reasons.get(error.status_code, error.detail)}, error.status_code, error.headers)


def _wrong_parameter(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    expected = first.get("ctx", {}).get("expected", first["msg"])
    return _refused(Refusal(400, f"{first['loc'][-1]} is {expected}"))
