"""The HTTP service: ``POST /predict``, ``GET /info``, ``GET /health``; the model is loaded once per device.

    curl --data-binary @case.nii.gz 'http://127.0.0.1:8000/predict?name=case.nii.gz' -o answer.zip

Requests and answers are described in docs/how-to/serve-a-model.md. Only the ending of ``name`` is used; no name is
logged, kept or returned, and every file is deleted with the answer.
"""

import asyncio
import io
import ipaddress
import json
import socket
import threading
import zipfile
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from medmamba.command_options import ServeOptions
from medmamba.disk.scratch import scratch_folder
from medmamba.errors import InputError, MedmambaError, ResourceError, need_packages
from medmamba.images.formats import FORMATS, alone
from medmamba.inference.predictor import Predictor

if TYPE_CHECKING:
    from fastapi import FastAPI, Request

ONE_FILE = [kind for kind in FORMATS if kind.siblings is alone and not kind.detached]
ACCEPTED = (*(ending for kind in ONE_FILE for ending in kind.endings), ".zip")
"""Endings of whole images in one file; a header without its voxels comes in a zip."""
HOSTS = ("127.0.0.1", "localhost", "[::1]")

Result = TypeVar("Result")


@dataclass(frozen=True)
class ServiceLimits:
    """What one request may cost: bytes of its body, and of the files that a zip unpacks to; jobs per device."""

    upload_bytes: int = 512 * 2**20
    unpacked_bytes: int = 4 * 2**30
    waiting: int = 8


@dataclass(eq=False)
class Refusal(Exception):
    """An answer of 4xx with its reason."""

    code: int
    reason: str


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

    def submit(self, job: Callable[[Predictor], Result]) -> Future[Result]:
        """Put a job into the shortest queue. Raises Busy when that one is full."""
        with self._lock:
            index = min(range(len(self._lengths)), key=self._lengths.__getitem__)
            if self._lengths[index] >= self.longest:
                raise Busy(f"{sum(self._lengths)} images are waiting already. Send this one again later.")
            self._lengths[index] += 1

        def end(_: object) -> None:
            with self._lock:
                self._lengths[index] -= 1

        future = self._threads[index].submit(job, self.predictors[index])
        future.add_done_callback(end)
        return future

    def close(self) -> None:
        """Finish the running jobs, drop the waiting ones, free the models."""
        for thread in self._threads:
            thread.shutdown(wait=True, cancel_futures=True)
        for predictor in self.predictors:
            predictor.close()


def run_service(
    model: str | Path,
    options: ServeOptions | None = None,
    *,
    on_message: Callable[[str], None] = lambda line: None,
    **changes: Any,
) -> None:
    """Serve until SIGINT or SIGTERM; ``changes`` are single fields of the options by name.

    Raises ConfigError when the extra ``serve`` is missing, InputError when the address cannot be used.
    """
    options = ServeOptions.of(options, **changes)
    need_packages("Serving needs", ("fastapi", "uvicorn"), "serve")
    import uvicorn

    listening = _socket(options.host, options.port)  # a port that is taken is reported before a model is loaded
    try:
        predictors = [Predictor(model, options.of_predictor(device)) for device in options.devices]
        address, taken = listening.getsockname()[:2]
        local = ipaddress.ip_address(address).is_loopback
        if not local:
            on_message(f"Warning: {address} can be reached by others, and there is no login. Put a proxy in front.")
        limits = ServiceLimits(upload_bytes=options.upload_mb * 2**20, waiting=options.waiting)
        app = make_app(predictors, limits, hosts=HOSTS if local else ("*",))
        on_message(f"Listening on http://{address}:{taken}: POST /predict, GET /info, GET /health")
        # no access log: the names of files would stand in it
        uvicorn.Server(uvicorn.Config(app, access_log=False, log_level="warning")).run([listening])
    finally:
        listening.close()


def _socket(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(64)  # whoever reads the line with the address can call at once
    except OSError as error:
        raise InputError(f"{host}:{port}: cannot listen there ({error.strerror}). Choose another --port.") from error
    return made


def make_app(
    predictors: Sequence[Predictor], limits: ServiceLimits | None = None, *, hosts: Sequence[str] = HOSTS
) -> "FastAPI":
    """The application; ``predictors`` hold the same model, one for each device.

    ``hosts``: names under which it may be addressed, so that a page in a browser cannot reach it by a name of its own.
    """
    from fastapi import FastAPI
    from fastapi.responses import JSONResponse, Response
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from medmamba.version import __version__

    allowed = limits or ServiceLimits()
    queues = RequestQueues(predictors, allowed.waiting)

    @asynccontextmanager
    async def lifespan(app: "FastAPI") -> AsyncIterator[None]:
        yield
        queues.close()

    app = FastAPI(title="medmamba", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))

    @app.get("/health")
    def health() -> dict[str, Any]:
        return {"status": "ok", "waiting": queues.lengths}

    @app.get("/info")
    def info() -> dict[str, Any]:
        plan = predictors[0].plan
        return {
            "channels": plan.channel_names,
            "labels": plan.labels,
            "endings": list(ACCEPTED),
            "upload_bytes": allowed.upload_bytes,
            "model": predictors[0].provenance().as_dict(),
        }

    # A route, not a decorator: FastAPI would look the quoted annotation up at module level.
    async def predict(request: "Request") -> Response:
        query = request.query_params
        try:
            wanted = query.get("answer", "zip")
            if wanted not in ("zip", "mask", "report"):
                raise Refusal(400, "answer is zip, mask or report")
            with scratch_folder() as folder:
                path = Path(folder, "image" + _ending(query.get("name", "")))
                await _receive(request, path, allowed.upload_bytes)
                future = queues.submit(lambda predictor: _answer(predictor, path, wanted, allowed))
                content, kind = await asyncio.wrap_future(future)
            return Response(content, media_type=kind)
        except Refusal as refusal:
            return JSONResponse({"error": refusal.reason}, refusal.code)
        except Busy as error:
            return JSONResponse({"error": str(error)}, 503, {"Retry-After": "10"})

    app.add_route("/predict", predict, methods=["POST"])
    app.state.queues = queues
    return app


def _answer(predictor: Predictor, path: Path, wanted: str, limits: ServiceLimits) -> tuple[bytes, str]:
    """Predict the file at ``path`` and pack what was asked for; runs in the thread of the device."""
    try:
        image, ending = _read(predictor, path, limits)
        result = predictor.predict(image)
        mask = path.parent / f"mask{ending}"
        result.save(mask)
    except MedmambaError as error:
        raise Refusal(413 if isinstance(error, ResourceError) else 422, _anonymous(error, path)) from error
    except MemoryError as error:
        raise Refusal(413, "out of memory; send a smaller image") from error
    except FloatingPointError as error:
        raise Refusal(422, str(error)) from error
    report = json.dumps(result.report(), indent=2).encode()
    if wanted == "mask":
        return mask.read_bytes(), "application/octet-stream"
    if wanted == "report":
        return report, "application/json"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:  # masks are packed already
        archive.write(mask, mask.name)
        archive.writestr("report.json", report)
    return packed.getvalue(), "application/zip"


def _read(predictor: Predictor, path: Path, limits: ServiceLimits) -> tuple[Any, str]:
    from medmamba.dicom.study import folder_of_one, innermost, series_below
    from medmamba.images import mask_ending, read_channels, read_image
    from medmamba.images.archive import unpack
    from medmamba.images.cases import find_cases

    if path.suffix != ".zip":
        return read_image(path, predictor.reading, where="image"), mask_ending(path)
    folder = path.parent / "unpacked"
    folder.mkdir()
    unpack(path, folder, largest_bytes=limits.unpacked_bytes, where="the zip")
    found, others = series_below(folder)
    if found:
        with folder_of_one(folder, found, others, None, "the zip", lambda line: None) as series:
            return read_image(series, predictor.reading, where="the series"), ".nii.gz"
    cases = find_cases(innermost(folder), predictor.plan.channel_files)
    if len(cases) != 1:
        raise InputError(f"the zip holds {len(cases)} cases. Send one at a time.")
    return read_channels(cases[0].paths, predictor.reading), cases[0].output_name[len(cases[0].case_id) :]


async def _receive(request: "Request", path: Path, most: int) -> None:
    """The body into a file, and no more of it than allowed."""
    size = 0
    with open(path, "wb") as file:
        async for piece in request.stream():
            size += len(piece)
            if size > most:
                raise Refusal(413, f"larger than {most} bytes, the limit of this service")
            file.write(piece)
    if not size:
        raise Refusal(400, "the body is empty; send the file itself: curl --data-binary @FILE")


def _ending(name: str) -> str:
    for ending in ACCEPTED:
        if name.lower().endswith(ending):
            return ending
    if name:
        raise Refusal(415, f"not a known file format; give name=X with one of {', '.join(ACCEPTED)}")
    raise Refusal(415, "name the file format: /predict?name=image.nii.gz")


def _anonymous(error: Exception, path: Path) -> str:
    """The reason without the folder that only this service has."""
    text = str(error).replace(f"{path.parent}/unpacked", "the zip")
    return text.replace(f"{path.parent}/", "").replace(str(path.parent), "the request")
