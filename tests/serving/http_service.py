"""A service behind a real socket, and calls of it."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the extra 'serve'")
pytest.importorskip("uvicorn", reason="needs the extra 'serve'")
pytest.importorskip("python_multipart", reason="needs the extra 'serve'")

from medmamba.serving.connections import make_server
from medmamba.serving.limits import ServiceLimits
from medmamba.serving.routes import Service

SHAPE = (18, 22, 17)


class Running:
    """A service behind a real socket, in a thread; ``said`` are its messages."""

    def __init__(self, predictor, limits=None, **options):
        self.said = []
        limits = limits or ServiceLimits()
        self.service = Service([predictor], limits, on_message=self.said.append, **options)
        self.server = make_server(self.service.app, limits, self.service.ending)
        listening = socket.create_server(("127.0.0.1", 0))
        self.address = listening.getsockname()
        self.url = "http://127.0.0.1:{1}".format(*self.address)
        self.thread = threading.Thread(target=self.server.run, args=[[listening]])
        self.thread.start()

    def call(self, path, body=None, **headers):
        """Status and body of a request."""
        code, _, text = self.answer(path, body, **headers)
        return code, text

    def answer(self, path, body=None, method=None, **headers):
        """Status, headers and body of a request."""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, data=body, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=600) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read()

    def refused(self, path, body=b"x", **headers):
        """Status and reason of a refusal."""
        code, text = self.call(path, body, **headers)
        return code, json.loads(text)["error"]

    def raw(self, *pieces):
        """A connection that has sent these bytes."""
        client = socket.create_connection(self.address, timeout=600)
        for piece in pieces:
            client.sendall(piece)
        return client

    def files(self):
        """What lies in the folder of the service."""
        return list(self.service.room.iterdir())

    def wait_for(self, condition):
        """Until something is so, however long this machine takes."""
        while not condition():
            assert self.thread.is_alive()
            time.sleep(0.01)

    def stop(self):
        self.server.should_exit = True
        self.thread.join()


@pytest.fixture(scope="module")
def running(loopback):
    """Starts services, and stops them at the end of the file."""
    started = []

    def start(*arguments, **options):
        started.append(Running(*arguments, **options))
        return started[-1]

    yield start
    for service in started:
        service.stop()


def volume(path: Path, seed: int = 0, shape=SHAPE) -> Path:
    """An image of noise that looks like MR intensities."""
    pixels = np.random.default_rng(seed).normal(200, 60, shape).astype(np.float32)
    nib.save(nib.Nifti1Image(pixels, np.diag([1.0, 1.0, 1.0, 1.0])), path)
    return path


def form(*files, field="image", boundary="-=b=-"):
    """A multipart body and its headers; ``files`` are pairs of name and content."""
    pieces = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'.encode()
        + content
        + b"\r\n"
        for name, content in files
    ]
    body = b"".join(pieces) + f"--{boundary}--\r\n".encode()
    return body, {"Content_Type": f"multipart/form-data; boundary={boundary}"}
