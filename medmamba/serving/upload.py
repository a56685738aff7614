"""The body of a request as files: raw, or parts of a multipart form; bounded in bytes and seconds while it arrives."""

import asyncio
import re
import shutil
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import BinaryIO
from urllib.parse import unquote_to_bytes

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from medmamba.images.cases import CHANNEL
from medmamba.images.formats import FORMATS, alone, stem_of
from medmamba.images.gate import brief
from medmamba.serving.limits import Ending, ServiceLimits, UploadedBytes
from medmamba.serving.refusal import Refusal, stopping

ONE_FILE = [kind for kind in FORMATS if kind.siblings is alone and not kind.detached]
ACCEPTED = (*(ending for kind in ONE_FILE for ending in kind.endings), ".zip")
"""Endings of whole images in one file; a header without its voxels comes in a zip."""
FIELD = "image"
"""Name of the parts of a form that hold the image: one file, or one per channel."""
_ENCODED_NAME = re.compile(rb"""; *filename\*=[\w-]*'[\w-]*'([^;\s"]+)""")
"""A name outside ASCII as aiohttp writes it (RFC 5987), which the parser of options leaves out."""


class Upload:
    """The files of one request, in a folder of their own in ``room``; ``channels`` are those of the model."""

    def __init__(
        self, room: Path, limits: ServiceLimits, uploaded: UploadedBytes, channels: Sequence[str], ending: Ending
    ) -> None:
        self.folder = Path(mkdtemp(dir=room))
        self.files: list[Path] = []
        self.limits, self.channels, self._uploaded, self._ending = limits, channels, uploaded, ending
        self._file: BinaryIO | None = None
        self._taken, self._complete = 0, False

    def open(self, name: str) -> BinaryIO:
        """A new file with the ending of ``name``, of which nothing else is used."""
        known = next((ending for ending in ACCEPTED if name.lower().endswith(ending)), None)
        if known is None and name.lower().endswith(".dcm"):
            raise Refusal(415, "one slice of a DICOM series. Send a zip of the series.")
        if known is None:
            wrong = "not a known file format" if name else "the file format is unknown"
            raise Refusal(415, f"{wrong}. Give name=X with one of {', '.join(ACCEPTED)}.")
        self._close_file()
        self.files.append(self.folder / f"image{len(self.files) or ''}{known}")
        self._file = open(self.files[-1], "xb")  # noqa: SIM115, closed by the next one or by close
        return self._file

    def close(self) -> None:
        """Delete the files; their bytes count no longer."""
        self._close_file()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._uploaded.give_back(self._taken)
        self._taken = 0

    async def receive(self, request: Request, name: str) -> None:
        """Write the body into files; ``name`` gives the format of a raw body.

        Raises Refusal for what cannot be an image, and ClientDisconnect when the connection is lost.
        """
        length = request.headers.get("content-length", "")
        announced = int(length) if length.isdecimal() else 0  # the server has checked that it is a number
        self._check(announced)
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise Refusal(415, "the body has a Content-Encoding. Send the file as it is.")
        kind, options = parse_options_header(request.headers.get("content-type", ""))
        form = kind.startswith(b"multipart/")
        if form and (kind != b"multipart/form-data" or not options.get(b"boundary")):
            raise Refusal(415, f"a form is multipart/form-data with a boundary: curl -F {FIELD}=@FILE")
        body = _Form(self, options[b"boundary"]) if form else _Raw(self, name)
        self._take(announced)
        size = 0
        async for piece in self._pieces(request):
            size += len(piece)
            self._check(size)
            self._take(size - self._taken)
            body.write(piece)
        self._close_file()
        body.end()

    async def _pieces(self, request: Request) -> AsyncIterator[bytes]:
        """The pieces of the body as they come; raises Refusal for a client that is too slow."""
        clock, limits = asyncio.get_running_loop().time, self.limits
        started, size = clock(), 0
        while not self._complete:
            slowest = started + limits.stalled_seconds + size / limits.slowest_bytes
            try:
                async with asyncio.timeout_at(min(clock() + limits.stalled_seconds, slowest)) as waiting:
                    with self._ending.cut_short(waiting):
                        message = await request.receive()
            except TimeoutError:
                if self._ending.begun:
                    raise stopping() from None
                raise Refusal(408, f"the upload stalled, after {size} bytes. Send the image again.") from None
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            piece, self._complete = message.get("body", b""), not message.get("more_body", False)
            size += len(piece)
            yield piece

    def _check(self, size: int) -> None:
        if size > self.limits.upload_bytes:
            raise Refusal(413, f"larger than {self.limits.upload_bytes} bytes, the limit of this service")

    def _take(self, size: int) -> None:
        if size > 0:
            self._uploaded.take(size)
            self._taken += size

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class _Raw:
    """A body that is the file itself."""

    def __init__(self, upload: Upload, name: str) -> None:
        self.upload, self._file = upload, upload.open(name)
        self.write = self._file.write

    def end(self) -> None:
        if not self.upload.files[0].stat().st_size:
            raise Refusal(400, "the body is empty; send the file itself: curl --data-binary @FILE")


class _Form:
    """A multipart form whose parts called ``image`` are the files, one per channel in the order of the channels."""

    def __init__(self, upload: Upload, boundary: bytes) -> None:
        self.upload, self.names, self._complete = upload, list[str](), False
        self._field, self._value, self._headers = b"", b"", dict[bytes, bytes]()
        with _well_formed():
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._headers.clear,
                    "on_header_field": self._add_to_field,
                    "on_header_value": self._add_to_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._begin_part,
                    "on_part_data": self._add_data,
                    "on_end": self._finish,
                },
            )

    def write(self, piece: bytes) -> None:
        with _well_formed():
            self._parser.write(piece)

    def end(self) -> None:
        if not self._complete:
            raise Refusal(400, "the form ends in the middle. Send it again.")
        files = self.upload.files
        if not files:
            raise Refusal(400, f"the form has no part. Name it {FIELD}: curl -F {FIELD}=@FILE")
        for number, path in enumerate(files, start=1):
            if not path.stat().st_size:
                raise Refusal(400, f"part {number} is empty. Send the file itself: curl -F {FIELD}=@FILE")
        if len(files) > 1 and any(path.suffix == ".zip" for path in files):
            raise Refusal(422, "several parts are one image file per channel. Send a zip alone.")
        numbered = [match for name in self.names if (match := CHANNEL.search(stem_of(name)))]
        numbers = [int(match[2]) for match in numbered]
        if len(numbers) == len(files) and numbers != sorted(numbers):
            raise Refusal(422, f"the parts are numbered {numbers}. Send the channels in order: {self._channels()}.")

    def _begin_part(self) -> None:
        disposition = self._headers.get(b"content-disposition", b"")
        _, options = parse_options_header(disposition)
        field, name = (options.get(key, b"").decode("utf-8", "replace") for key in (b"name", b"filename"))
        if not name and (encoded := _ENCODED_NAME.search(disposition)):
            name = unquote_to_bytes(encoded[1]).decode("utf-8", "replace")
        if field != FIELD:
            raise Refusal(400, f"the form has a part called {brief(field)!r}. Name it {FIELD}: curl -F {FIELD}=@FILE")
        if len(self.names) == max(1, len(self.upload.channels)):
            raise Refusal(422, f"more parts than channels. Send {self._channels()}.")
        self.names.append(name)
        self._file = self.upload.open(name)

    def _channels(self) -> str:
        return f"one file per channel ({', '.join(self.upload.channels)}), or one file with all of them"

    def _add_to_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _add_to_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._field.lower()] = self._value
        self._field = self._value = b""

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        self._file.write(data[start:end])

    def _finish(self) -> None:
        self._complete = True


@contextmanager
def _well_formed() -> Iterator[None]:
    try:
        yield
    except FormParserError:
        raise Refusal(400, f"the form is damaged. Send it as curl -F {FIELD}=@FILE does.") from None
