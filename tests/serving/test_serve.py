"""The service: real clients over HTTP, several at once; what it refuses it refuses with the reason."""

from __future__ import annotations

import io
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicom_series import write_series
from http_service import SHAPE, volume

from medmamba.errors import InputError
from medmamba.inference.predictor import Predictor
from medmamba.serving.app import run_service
from medmamba.serving.limits import ServiceLimits
from medmamba.serving.queues import Busy, RequestQueues


@pytest.fixture(scope="module")
def predictor(tiny_run):
    return Predictor(tiny_run, folds=[0], mirror=False, device="cpu")


@pytest.fixture(scope="module")
def service(tiny_run, running):
    own = Predictor(tiny_run, folds=[0], mirror=False, device="cpu")
    return running(own, ServiceLimits(upload_bytes=2_000_000, unpacked_bytes=4_000_000, waiting=8))


def test_a_volume_gives_the_mask_and_report_of_the_api(service, predictor, tmp_path):
    path = volume(tmp_path / "Miller^Anna.nii.gz")
    code, body = service.call("/predict?name=Miller^Anna.nii.gz", path.read_bytes())
    assert code == 200
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        assert set(archive.namelist()) == {"mask.nii.gz", "report.json"}
        archive.extractall(tmp_path / "answer")
    expected = predictor.predict(path)
    expected.save(tmp_path / "expected.nii.gz")
    assert (tmp_path / "answer" / "mask.nii.gz").read_bytes() == (tmp_path / "expected.nii.gz").read_bytes()
    report = json.loads((tmp_path / "answer" / "report.json").read_text())
    assert report["volume_ml"] == expected.volumes_ml
    assert report["model"]["weights_sha256"] == expected.provenance.weights_sha256
    assert "Anna" not in json.dumps(report)


def test_mask_and_report_can_be_asked_for_alone(service, tmp_path):
    body = volume(tmp_path / "a.nii").read_bytes()
    code, mask = service.call("/predict?name=a.nii&answer=mask", body)
    (tmp_path / "mask.nii").write_bytes(mask)
    assert (code, nib.load(tmp_path / "mask.nii").shape) == (200, SHAPE)
    code, report = service.call("/predict?name=a.nii&answer=report", body)
    assert json.loads(report)["status"] in ("ok", "review")


def test_parallel_requests_all_get_their_own_mask(service, predictor, tmp_path):
    paths = [volume(tmp_path / f"{seed}.nii.gz", seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as clients:
        answers = list(clients.map(lambda p: service.call("/predict?name=x.nii.gz&answer=mask", p.read_bytes()), paths))
    for path, (code, body) in zip(paths, answers, strict=True):
        assert code == 200
        predictor.predict(path).save(tmp_path / "expected.nii.gz")
        assert body == (tmp_path / "expected.nii.gz").read_bytes()
    assert json.loads(service.call("/health")[1]) == {"status": "ok", "waiting": {"0:cpu": 0}}


def test_a_zipped_series_and_zipped_channels_are_read(service, tmp_path):
    series = write_series(tmp_path / "s", np.random.default_rng(0).integers(0, 900, (17, 22, 18)).astype(np.int16))
    packed = shutil.make_archive(str(tmp_path / "series"), "zip", series)
    code, body = service.call("/predict?name=series.zip&answer=mask", Path(packed).read_bytes())
    assert code == 200
    (tmp_path / "m.nii.gz").write_bytes(body)
    assert nib.load(tmp_path / "m.nii.gz").shape == (18, 22, 17)
    volume(tmp_path / "c" / "x_0000.nii.gz") if (tmp_path / "c").mkdir() is None else None
    packed = shutil.make_archive(str(tmp_path / "channels"), "zip", tmp_path / "c")
    assert service.call("/predict?name=c.zip", Path(packed).read_bytes())[0] == 200


def test_bad_input_is_answered_with_4xx_and_the_reason(service, tmp_path):
    whole = volume(tmp_path / "a.nii.gz").read_bytes()
    assert service.refused("/predict?name=a.nii.gz", b"") == (
        400, "the body is empty; send the file itself: curl --data-binary @FILE"
    )  # fmt: skip
    assert service.refused("/predict?name=a.txt")[0] == 415
    assert service.refused("/predict")[0] == 415
    assert service.refused("/predict?name=a.nii.gz&answer=all", whole)[0] == 400
    code, reason = service.refused("/predict?name=a.nii.gz", whole[:500])
    assert code == 422
    assert "medmamba-" not in reason
    assert "image" in reason
    code, reason = service.refused("/predict?name=a.nii.gz", b"x" * 2_000_001)
    assert (code, reason) == (413, "larger than 2000000 bytes, the limit of this service")
    code, reason = service.refused("/predict?name=a.zip", b"PK\x03\x04nonsense")
    assert code == 422
    with zipfile.ZipFile(tmp_path / "letters.zip", "w") as packed:
        packed.writestr("a.txt", "Dear colleague")
    code, reason = service.refused("/predict?name=a.zip", (tmp_path / "letters.zip").read_bytes())
    assert (code, reason.startswith("the zip: no image")) == (422, True)
    nib.save(nib.Nifti1Image(np.zeros((*SHAPE, 2), np.float32), np.eye(4)), tmp_path / "two.nii.gz")
    code, reason = service.refused("/predict?name=two.nii.gz", (tmp_path / "two.nii.gz").read_bytes())
    assert (code, "2 channel(s)" in reason) == (422, True)
    assert service.call("/predict?name=../../etc/passwd.nii", whole)[0] == 200  # of a name only the ending is used


def test_a_zip_that_unpacks_to_too_much_is_refused(service):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.nii", b"\0" * 8_000_000)
    code, reason = service.refused("/predict?name=x.zip", packed.getvalue())
    assert (code, "unpacks to more than 4000000 bytes" in reason) == (422, True)


def test_another_host_name_is_refused(service):
    assert service.call("/health", Host="evil.example")[0] == 400


def test_info_tells_channels_labels_and_limits(service):
    facts = json.loads(service.call("/info")[1])
    assert facts["labels"]["background"] == 0
    assert facts["upload_bytes"] == 2_000_000
    assert ".nii.gz" in facts["endings"]


def test_a_full_queue_refuses_and_an_emptied_one_takes_again(predictor):
    queues = RequestQueues([predictor, predictor], longest=1)
    gate = threading.Event()
    jobs = [queues.submit(lambda p, abandoned: gate.wait()) for _ in range(2)]
    assert list(queues.lengths.values()) == [1, 1]  # one at each device
    with pytest.raises(Busy, match="2 images are waiting"):
        queues.submit(lambda p, abandoned: None)
    gate.set()
    assert all(job.future.result() for job in jobs)
    assert queues.submit(lambda p, abandoned: 7).future.result() == 7


def test_a_port_that_is_taken_is_told_before_a_model_is_loaded(service):
    with pytest.raises(InputError, match=r"cannot listen there .* Choose another --port"):
        run_service("nowhere", port=int(service.url.rpartition(":")[2]))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_the_command_listens_answers_and_ends_on_a_signal(tiny_run, loopback, tmp_path, number):
    command = [
        sys.executable,
        "-c",
        "from medmamba.cli.main import run; run()",
        "serve",
        str(tiny_run),
        "--port",
        "0",
        "--no-mirror",
    ]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    url = child.stdout.readline().split()[2].rstrip(":")
    with urllib.request.urlopen(f"{url}/health", timeout=600) as answer:
        assert json.loads(answer.read())["status"] == "ok"
    with socket.create_connection(tuple(url.removeprefix("http://").split(":"))) as slow:
        slow.sendall(b"POST /predict?name=a.nii HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nx")
        child.send_signal(number)
        _, errors = child.communicate(timeout=600)
        assert slow.recv(12) in (b"HTTP/1.1 503", b"")
    assert "Traceback" not in errors
    assert child.returncode == 128 + number


def test_an_odd_zip_is_answered_with_422_and_a_study_with_its_series(service, tmp_path):
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as packed:
        packed.writestr("a.nii", "1")
        with pytest.warns(UserWarning, match="Duplicate name"):
            packed.writestr("a.nii", "2")
    code, reason = service.refused("/predict?name=a.zip", (tmp_path / "twice.zip").read_bytes())
    assert (code, reason) == (422, "the zip: a damaged or unsupported zip archive (File exists). Pack it again.")
    noise = np.random.default_rng(0).integers(0, 900, (3, 6, 5)).astype(np.int16)
    for number in ("1", "2"):
        write_series(tmp_path / "study" / number, noise, series=f"1.2.{number}", **{"0020_0011": number})
    packed = shutil.make_archive(str(tmp_path / "study"), "zip", tmp_path / "study")
    code, reason = service.refused("/predict?name=study.zip", Path(packed).read_bytes())
    assert code == 422
    size = "3 slices of 6 x 5 pixels, 2 x 0.75 x 0.5 mm"
    assert f"2 series (1: MR {size}, UID 1.2.1; 2: MR {size}, UID 1.2.2)" in reason
