"""The HTTP side: ``POST /predict``, ``GET /info``, ``GET /health``.

    curl --data-binary @case.nii.gz 'http://127.0.0.1:8000/predict?name=case.nii.gz' -o answer.zip

Requests and answers are described in docs/how-to/serve-a-model.md. Only the ending of ``name`` is used; no name is
logged, kept or sent back, and every file is gone when the answer has been made.
"""

from __future__ import annotations

import asyncio
import io
import json
import zipfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from medmamba.errors import InputError, MedmambaError, ResourceError
from medmamba.images.formats import FORMATS, alone
from medmamba.inference.predictor import Predictor
from medmamba.serving.queues import Busy, RequestQueues

if TYPE_CHECKING:
    from fastapi import FastAPI, Request

ONE_FILE = [kind for kind in FORMATS if kind.siblings is alone and not kind.detached]
ACCEPTED = (*(ending for kind in ONE_FILE for ending in kind.endings), ".zip")
"""Endings of whole images in one file; a header without its voxels comes in a zip."""
HOSTS = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True)
class ServiceLimits:
    """What one request may cost: bytes of its body, and of the files that a zip unpacks to; jobs per device."""

    upload_bytes: int = 512 * 2**20
    unpacked_bytes: int = 4 * 2**30
    waiting: int = 8


@dataclass(frozen=True)
class Refusal(Exception):
    """An answer of 4xx with its reason."""

    code: int
    reason: str


def make_app(
    predictors: Sequence[Predictor], limits: ServiceLimits | None = None, *, hosts: Sequence[str] = HOSTS
) -> FastAPI:
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
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
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

    # Annotations of this module are strings, and FastAPI looks them up at module level: so the request is given.
    async def predict(request: Request) -> Response:
        query = request.query_params
        try:
            wanted = query.get("answer", "zip")
            if wanted not in ("zip", "mask", "report"):
                raise Refusal(400, "answer is zip, mask or report")
            with TemporaryDirectory(prefix="medmamba-serve-") as folder:
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
        image, ending = _read(path, limits)
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


def _read(path: Path, limits: ServiceLimits) -> tuple[Any, str]:
    from medmamba.dicom.study import one_series, series_below
    from medmamba.images import mask_ending, read_image
    from medmamba.images.archive import unpack
    from medmamba.images.cases import find_cases, read_case

    if path.suffix != ".zip":
        return read_image(path, where="image"), mask_ending(path)
    folder = path.parent / "unpacked"
    folder.mkdir()
    unpack(path, folder, largest_bytes=limits.unpacked_bytes, where="the zip")
    if series_below(folder):
        with one_series(folder, where="the zip") as series:
            return read_image(series, where="the series"), ".nii.gz"
    inside = [entry for entry in folder.iterdir() if entry.is_dir()]
    cases = find_cases(inside[0] if len(inside) == 1 and len(list(folder.iterdir())) == 1 else folder)
    if len(cases) != 1:
        raise InputError(f"the zip holds {len(cases)} cases. Send one at a time.")
    return read_case(cases[0]), cases[0].output_name[len(cases[0].case_id) :]


async def _receive(request: Request, path: Path, most: int) -> None:
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
