"""Clients that are slow, silent, too many or gone, and a service that is stopped while they are there."""

from __future__ import annotations

import json
import logging
import socket
import threading
from contextlib import suppress

import pytest
from http_service import SHAPE, volume

from medmamba.inference.predictor import Predictor
from medmamba.serving import routes
from medmamba.serving.answer import Answer
from medmamba.serving.limits import ServiceLimits

PATIENT = ServiceLimits(stalled_seconds=600, slowest_bytes=1)
"""No client is too slow for it."""


@pytest.fixture
def predictor(tiny_run):
    return Predictor(tiny_run, folds=[0], mirror=False, device="cpu")


@pytest.fixture(autouse=True)
def _quiet_log(caplog):
    """No test here may leave a traceback, or any other error, in the log."""
    yield
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.fixture
def image(tmp_path):
    return volume(tmp_path / "a.nii.gz").read_bytes()


class Gated:
    """A predictor whose predictions begin, tell so, and go on when the gate opens."""

    def __init__(self, predictor):
        self.began, self.gate, self.count = threading.Event(), threading.Event(), 0
        self._predict, predictor.predict = predictor.predict, self.predict

    def predict(self, image, on_tile):
        self.count += 1
        self.began.set()
        while not self.gate.wait(0.01):
            on_tile(1, 2)  # where a prediction can be ended
        return self._predict(image, on_tile)


def head(length, *lines, name="a.nii.gz"):
    return "\r\n".join(
        [f"POST /predict?name={name} HTTP/1.1", "Host: localhost", *lines, f"Content-Length: {length}", "", ""]
    ).encode()


def answer_of(client):
    """Status line and JSON of an answer; the connection is closed behind it."""
    text = b""
    while piece := client.recv(65536):
        text += piece
    top, _, body = text.partition(b"\r\n\r\n")
    return top.decode(), json.loads(body)["error"]


def test_an_upload_that_stalls_is_ended_and_leaves_no_file(running, predictor):
    service = running(predictor, ServiceLimits(stalled_seconds=2))  # for this process to send one piece, on any machine
    with service.raw(head(1000) + b"x" * 500) as client:
        status, reason = answer_of(client)
    assert (status.splitlines()[0], reason) == (
        "HTTP/1.1 408 Request Timeout", "the upload stalled, after 500 bytes. Send the image again."
    )  # fmt: skip
    service.wait_for(lambda: not service.files())
    service.wait_for(lambda: service.service.uploaded.held == 0)  # counted behind the deletion, in another thread


def test_a_client_that_sends_a_byte_now_and_then_is_too_slow(running, predictor):
    service = running(predictor, ServiceLimits(stalled_seconds=2, slowest_bytes=10_000))
    with service.raw(head(1_000_000)) as client:
        client.settimeout(0.02)
        while True:  # never two seconds without a byte
            try:
                client.sendall(b"x")
                assert client.recv(12) == b"HTTP/1.1 408"
                break
            except TimeoutError:
                pass


@pytest.mark.parametrize("sent", [b"", b"POST /predict HT", b"POST /predict HTTP/1.1\r\nHost: loc"])
def test_a_client_without_a_whole_request_is_cut_off(running, predictor, sent):
    service = running(predictor, ServiceLimits(stalled_seconds=0.2))
    with service.raw(sent) as client, suppress(ConnectionResetError):
        assert client.recv(100) == b""


def test_a_connection_lost_in_the_middle_leaves_no_file(running, predictor):
    service = running(predictor, PATIENT)
    with service.raw(head(1000), b"x" * 500):
        service.wait_for(lambda: service.files())
    service.wait_for(lambda: not service.files())
    service.wait_for(lambda: service.service.uploaded.held == 0)
    assert service.said == []


def test_who_hangs_up_is_not_predicted(running, predictor, image):
    gated, service = Gated(predictor), running(predictor, PATIENT)
    with service.raw(head(len(image)), image) as running_one, service.raw(head(len(image)), image) as waiting_one:
        gated.began.wait()
        service.wait_for(lambda: service.service.queues.lengths == {"0:cpu": 2})
        waiting_one.close()
        service.wait_for(lambda: service.service.queues.lengths == {"0:cpu": 1})
        running_one.close()  # its prediction ends at the next patch
        service.wait_for(lambda: service.service.queues.lengths == {"0:cpu": 0})
        service.wait_for(lambda: not service.files())
    assert gated.count == 1


def test_an_answer_that_is_not_taken_is_ended(running, predictor, image, monkeypatch):
    answered = threading.Event()

    def large(predictor, abandoned, files, **rest):
        path = files[0].parent / "large"
        path.write_bytes(bytes(64 * 2**20))
        answered.set()
        return Answer(path, "application/octet-stream")

    monkeypatch.setattr(routes, "answer", large)
    service = running(predictor, ServiceLimits(stalled_seconds=2))
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(service.address)
        client.sendall(head(len(image)) + image)
        answered.wait()
        service.wait_for(lambda: not service.files())


def test_uploads_are_bounded_together(running, predictor, image):
    service = running(predictor, ServiceLimits(stalled_seconds=600, all_upload_bytes=len(image) + 999))
    with service.raw(head(1000), b"x"):
        service.wait_for(lambda: service.service.uploaded.held == 1000)
        code, headers, body = service.answer("/predict?name=a.nii.gz", image)
        assert (code, headers["Retry-After"]) == (503, "10")
        assert "too many bytes are being uploaded" in json.loads(body)["error"]
    service.wait_for(lambda: service.service.uploaded.held == 0)
    assert service.call("/predict?name=a.nii.gz", image)[0] == 200
    service.wait_for(lambda: service.service.uploaded.held == 0)


@pytest.mark.parametrize("part", [b"x" * 70_000, b"x"])
def test_a_body_without_a_length_is_bounded_while_it_comes(running, predictor, part):
    service = running(predictor, ServiceLimits(upload_bytes=100_000 if len(part) > 1 else 3))
    start = b"POST /predict?name=a.nii HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    piece = f"{len(part):x}\r\n".encode() + part + b"\r\n"
    with service.raw(start, *[piece] * 4, b"0\r\n\r\n") as client:
        status, reason = answer_of(client)
    assert status.startswith("HTTP/1.1 413")
    assert reason.endswith("bytes, the limit of this service")
    service.wait_for(lambda: not service.files())


def test_a_length_above_the_limit_is_refused_before_anything_is_sent(running, predictor):
    service = running(predictor, ServiceLimits(upload_bytes=1000))
    with service.raw(head(1001, "Expect: 100-continue")) as client:
        assert answer_of(client)[0].startswith("HTTP/1.1 413")  # not 100, which asks for the body


def test_a_stop_tells_slow_clients_and_ends(running, predictor, image):
    gated, service = Gated(predictor), running(predictor, PATIENT)
    with (
        service.raw(head(len(image)), image) as at_work,
        service.raw() as silent,
        service.raw(head(1000), b"x" * 500) as slow,
    ):
        gated.began.wait()
        service.wait_for(lambda: len(service.files()) == 2)
        with service.raw(head(len(image)), image) as waiting:
            service.wait_for(lambda: service.service.queues.lengths == {"0:cpu": 2})
            service.server.should_exit = True
            for client in (slow, waiting):
                status, reason = answer_of(client)
                assert status.startswith("HTTP/1.1 503")
                assert "retry-after: 10" in status.lower()
                assert reason == "the service is being stopped. Send the image again later."
        assert silent.recv(10) == b""
        gated.gate.set()  # the running case still gets its answer
        assert at_work.recv(12) == b"HTTP/1.1 200"
        while at_work.recv(65536):
            pass
    service.thread.join()
    assert not service.service.room.exists()


def test_a_stop_waits_for_a_running_case_no_longer_than_allowed(running, predictor, image):
    gated, service = Gated(predictor), running(predictor, ServiceLimits(grace_seconds=0.1))
    with service.raw(head(len(image)), image) as client:
        gated.began.wait()
        service.server.should_exit = True
        assert answer_of(client)[0].startswith("HTTP/1.1 503")
    service.thread.join()
    assert not service.service.stuck


def test_a_full_queue_is_told_before_the_upload(running, predictor, image):
    gated, service = Gated(predictor), running(predictor, ServiceLimits(stalled_seconds=600, waiting=1))
    with service.raw(head(len(image)), image) as client:
        gated.began.wait()
        with service.raw(head(10**6, "Expect: 100-continue")) as other:
            status, reason = answer_of(other)
        assert (status[:12], reason) == ("HTTP/1.1 503", "1 images are waiting already. Send this one again later.")
        gated.gate.set()
        assert client.recv(12) == b"HTTP/1.1 200"
    assert SHAPE
