"""Addresses, methods, parameters and bodies: what is answered, and with which status."""

from __future__ import annotations

import io
import json
import zipfile

import nibabel as nib
import numpy as np
import pytest
from http_service import SHAPE, form, volume

from medmamba.inference.predictor import Predictor
from medmamba.serving import routes
from medmamba.serving.limits import ServiceLimits

KNOWN = "POST /predict, GET /info, GET /health, GET /openapi.json"


@pytest.fixture(scope="module")
def service(tiny_run, running):
    own = Predictor(tiny_run, folds=[0], mirror=False, device="cpu")
    return running(own, ServiceLimits(upload_bytes=2_000_000, unpacked_bytes=4_000_000))


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return volume(tmp_path_factory.mktemp("image") / "a.nii.gz").read_bytes()


def mask_of(answer):
    with zipfile.ZipFile(io.BytesIO(answer)) as packed:
        return packed.read("mask.nii.gz")


@pytest.mark.parametrize(
    "name", ["amos_0008.nii.gz", "IMAGE.NII.GZ", "../../etc/passwd.nii.gz", ".nii.gz", "a%00b%0A.nii.gz"]
)
def test_raw_bodies_and_forms_give_the_same_mask_whatever_their_names(service, image, name):
    code, raw = service.call(f"/predict?name={name}", image)
    assert code == 200
    body, headers = form((name.replace('"', ""), image))
    code, sent = service.call("/predict", body, **headers)
    assert code == 200
    assert mask_of(raw) == mask_of(sent)


def test_a_name_that_is_not_ascii_is_read_as_some_clients_write_it(service, image):
    body, headers = form(("a.nii.gz", image))
    code, sent = service.call(
        "/predict", body.replace(b'filename="a.nii.gz"', b"filename*=utf-8''%C3%BC.nii.gz"), **headers
    )
    assert code == 200
    assert mask_of(sent)


def test_parts_are_channels_in_their_order(service, image, tmp_path):
    body, headers = form(("T1_0001.nii.gz", image), ("T1_0000.nii.gz", image))
    code, reason = service.refused("/predict", body, **headers)
    assert (code, reason[:31]) == (422, "more parts than channels. Send ")  # the model has one


@pytest.mark.parametrize(
    ("body", "code", "reason"),
    [
        (lambda image: form(("a.nii.gz", image), field="file"), 400, "the form has a part called 'file'. Name it"),
        (lambda image: form(("a.txt", image)), 415, "not a known file format. Give name=X with one of .nii.gz"),
        (lambda image: form(("", image)), 415, "the file format is unknown. Give name=X"),
        (lambda image: form(("a.nii.gz", b"")), 400, "part 1 is empty. Send the file itself"),
        (lambda image: form(), 400, "the form has no part. Name it image"),
        (lambda image: (form(("a.nii.gz", image))[0][:-9], form()[1]), 400, "the form ends in the middle"),
        (lambda image: (b"nonsense", form()[1]), 400, "the form is damaged"),
        (lambda image: (b"", form()[1]), 400, "the form ends in the middle"),
        (lambda image: (image, {"Content_Type": "multipart/form-data"}), 415, "a form is multipart/form-data with"),
        (lambda image: (image, {"Content_Type": "multipart/mixed; boundary=a"}), 415, "a form is multipart/form-data"),
        (lambda image: (image, {"Content_Type": f"multipart/form-data; boundary={'b' * 900}"}), 400, "the form is dam"),
    ],
)  # fmt: skip
def test_forms_that_hold_no_image_are_refused(service, image, body, code, reason):
    sent, headers = body(image)
    found = service.refused("/predict", sent, **headers)
    assert (found[0], found[1][: len(reason)]) == (code, reason)


@pytest.mark.parametrize(
    ("path", "headers", "code", "reason"),
    [
        ("/predict?name=a.nii.gz&answer=all", {}, 400, "answer is 'zip', 'mask' or 'report'"),
        ("/predict?name=a.nii.gz&format=dcm", {}, 400, "format is 'image', 'dicom-seg' or 'dicom-rtstruct'"),
        ("/predict?name=a.nii.gz&serie=3", {}, 400, "unknown parameter 'serie'. Known: name, answer, format, series."),
        ("/predict?name=a.nii.gz&series=3", {}, 400, "series is for a zip of DICOM images. Leave it out."),
        ("/predict?name=a.nii.gz&format=dicom-seg", {}, 422,
         "dicom-seg refers to a DICOM series. Send a zip of one, or leave format out."),
        ("/predict?name=a.dcm", {}, 415, "one slice of a DICOM series. Send a zip of the series."),
        ("/predict?name=a.nii.gz", {"Content_Encoding": "gzip"}, 415,
         "the body has a Content-Encoding. Send the file as it is."),
        ("/predict?name=a.zip", {}, 422,
         "the zip: a damaged or unsupported zip archive (File is not a zip file). Pack it again."),
        ("/predict/", {}, 404, f"no such address. Known: {KNOWN}."),
        ("/", {}, 404, f"no such address. Known: {KNOWN}."),
        ("/docs", {}, 404, f"no such address. Known: {KNOWN}."),
    ],
)  # fmt: skip
def test_wrong_parameters_and_addresses_are_told(service, image, path, headers, code, reason):
    assert service.refused(path, image, **headers) == (code, reason)


def test_methods(service, image):
    for path, method, allowed in (("/predict", "GET", "POST"), ("/predict", "PUT", "POST"), ("/info", "POST", "GET")):
        code, headers, body = service.answer(path, b"x" if method != "GET" else None, method)
        assert (code, headers["Allow"]) == (405, allowed)
        assert json.loads(body)["error"] == f"wrong method. Known: {KNOWN}."
    for path in ("/health", "/info", "/openapi.json"):
        code, headers, body = service.answer(path, method="HEAD")
        length = headers["Content-Length"]
        assert (code, body) == (200, b"")
        assert length == str(len(service.call(path)[1]))
    assert service.answer("/predict", method="HEAD")[0] == 405


def test_openapi_describes_prediction(service):
    found = json.loads(service.call("/openapi.json")[1])
    predict = found["paths"]["/predict"]["post"]
    assert [one["name"] for one in predict["parameters"]] == ["name", "answer", "format", "series"]
    assert predict["parameters"][1]["schema"]["enum"] == ["zip", "mask", "report"]
    assert set(predict["requestBody"]["content"]) == {
        "multipart/form-data",
        "application/octet-stream",
        "application/zip",
    }
    assert "image" in predict["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    assert set(predict["responses"]) == {"200", "400", "408", "413", "415", "422", "501", "503", "507"}
    assert "application/dicom" in predict["responses"]["200"]["content"]
    error = predict["responses"]["422"]["content"]["application/json"]["schema"]
    assert set(error["properties"]) == {"error", "series"}
    assert {"/health", "/info"} < set(found["paths"])


def test_an_answer_names_its_file_and_length(service, image):
    code, headers, body = service.answer("/predict?name=a.nii.gz&answer=mask", image)
    assert (code, headers["Content-Type"]) == (200, "application/octet-stream")
    assert headers["Content-Disposition"] == 'attachment; filename="mask.nii.gz"'
    assert headers["Content-Length"] == str(len(body))


def test_warnings_about_an_image_are_in_its_report(service, tmp_path):
    pixels = np.random.default_rng(0).normal(200, 60, SHAPE).astype(np.float32)
    raw = nib.Nifti1Image(pixels, np.eye(4)).to_bytes() + b"behind"
    report = json.loads(service.call("/predict?name=a.nii&answer=report", raw)[1])
    assert {"level": "note", "text": "image: 6 bytes behind the last voxel were ignored."} in [
        {"level": one["level"], "text": one["text"]} for one in report["findings"]
    ]


def test_an_error_of_the_service_is_one_line_without_a_traceback(tiny_run, running, image, monkeypatch, caplog):
    def broken(*arguments, **rest):
        raise TypeError("a secret")

    monkeypatch.setattr(routes, "answer", broken)
    own = running(Predictor(tiny_run, folds=[0], mirror=False, device="cpu"))
    assert own.refused("/predict?name=a.nii.gz", image) == (500, "an error of the service itself. Tell who runs it.")
    assert len(own.said) == 1
    assert own.said[0].startswith("Error of the service: TypeError at test_requests.py:")
    assert not caplog.records
    assert own.files() == []


def test_a_full_disk_is_507(tiny_run, running, image, monkeypatch):
    def full(*arguments, **rest):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(routes, "answer", full)
    own = running(Predictor(tiny_run, folds=[0], mirror=False, device="cpu"))
    assert own.refused("/predict?name=a.nii.gz", image) == (
        507, "the service has no room on its temporary disk. Send the image again later."
    )  # fmt: skip


def test_no_room_for_the_folder_of_a_request_is_507_too(tiny_run, running, image, monkeypatch):
    def full(*arguments, **rest):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("medmamba.serving.upload.mkdtemp", full)
    own = running(Predictor(tiny_run, folds=[0], mirror=False, device="cpu"))
    assert own.refused("/predict?name=a.nii.gz", image)[0] == 507


def test_answers_of_the_server_itself_are_json(tiny_run, running):
    own = running(Predictor(tiny_run, folds=[0], mirror=False, device="cpu"), ServiceLimits(connections=1))
    code, headers, body = own.answer("/health")
    assert (code, headers["Retry-After"], headers["Content-Type"]) == (503, "10", "application/json")
    assert json.loads(body) == {"error": "the service has too many connections. Send the image again later."}
    with own.raw(b"no HTTP\r\n\r\n") as client:
        head, _, body = client.makefile("rb").read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body) == {"error": "not a valid HTTP request. Send it as curl does."}
