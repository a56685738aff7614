"""DICOM over HTTP: one series of a study, and masks as DICOM objects."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicom_series import write_series

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom", reason="needs the extra 'dicom'")

from medmamba.dicom.contours import read_contours  # noqa: E402
from medmamba.dicom.segmentation import read_segmentation  # noqa: E402
from medmamba.images import read_label_map  # noqa: E402
from medmamba.inference.predictor import Predictor  # noqa: E402

CODES = {"Anterior": {"property_type": ["123", "SCT", "Anterior part"]}}


@pytest.fixture(scope="module")
def service(tiny_run, running, tmp_path_factory):
    predictor = Predictor(tiny_run, folds=[0], mirror=False, device="cpu")
    codes = tmp_path_factory.mktemp("codes") / "labels.json"
    names = [name for name in predictor.provenance().labels if name != "background"]
    codes.write_text(json.dumps({names[0]: {"property_type": ["123", "SCT", "First part"]}}))
    return running(predictor, codes=codes)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A zip of two series, and one of a single series."""
    folder = tmp_path_factory.mktemp("study")
    noise = np.random.default_rng(0).integers(0, 900, (17, 22, 18)).astype(np.int16)
    tags = {"0008_103e": "Anna's <b>T1</b>", "0020_0052": "1.2.9"}
    write_series(folder / "both" / "a", noise, series="1.2.11", **tags, **{"0020_0011": "1"})
    write_series(folder / "both" / "b", noise[:3], series="1.2.22", **tags, **{"0020_0011": "2"})
    whole = shutil.make_archive(str(folder / "both"), "zip", folder / "both")
    one = shutil.make_archive(str(folder / "one"), "zip", folder / "both" / "a")
    return Path(whole).read_bytes(), Path(one).read_bytes()


def test_a_study_is_answered_with_its_series_and_one_can_be_chosen(service, study):
    code, body = service.call("/predict?name=s.zip", study[0])
    answer = json.loads(body)
    assert code == 422
    assert answer["error"].startswith("the zip holds 2 series (1: MR")
    assert answer["error"].endswith("a part of it with series=NUMBER:PART, or series=largest.")
    assert [(one["number"], one["uid"], one["images"], one["parts"]) for one in answer["series"]] == [
        ("1", "1.2.11", 17, [17]), ("2", "1.2.22", 3, [3])
    ]  # fmt: skip
    assert (answer["series"][0]["modality"], answer["series"][0]["rows"]) == ("MR", 22)
    code, body = service.call("/predict?name=s.zip&series=1&answer=mask", study[0])
    assert code == 200
    alone = service.call("/predict?name=s.zip&answer=mask", study[1])[1]
    assert body == alone == service.call("/predict?name=s.zip&series=largest&answer=mask", study[0])[1]


def test_a_series_that_is_not_there_is_told(service, study):
    code, body = service.call("/predict?name=s.zip&series=7", study[0])
    answer = json.loads(body)
    assert (code, len(answer["series"])) == (422, 2)
    assert answer["error"].startswith("the zip holds no series '7' in it: 2 series (1: MR")
    assert "--series" not in answer["error"]


def test_what_was_left_aside_is_in_the_report(service, study):
    report = json.loads(service.call("/predict?name=s.zip&series=1&answer=report", study[0])[1])
    notes = [one["text"] for one in report["findings"] if one["level"] == "note"]
    assert any("UID 1.2.22" in note for note in notes)


@pytest.mark.parametrize("how", ["format=dicom-seg&answer=mask", "accept", "format=dicom-seg"])
def test_a_mask_as_dicom_seg(service, study, how, tmp_path):
    name = "/predict?name=s.zip" + ("" if how == "accept" else f"&{how}")
    code, headers, body = service.answer(name, study[1], **({"Accept": "application/dicom"} if how == "accept" else {}))
    assert code == 200
    if how == "format=dicom-seg":
        with zipfile.ZipFile(io.BytesIO(body)) as packed:
            assert packed.namelist() == ["mask.dcm", "report.json"]
            body = packed.read("mask.dcm")
    else:
        assert headers["Content-Type"] == "application/dicom"
    (tmp_path / "m.dcm").write_bytes(body)
    (tmp_path / "m.nii.gz").write_bytes(service.call("/predict?name=s.zip&answer=mask", study[1])[1])
    mask = read_label_map(tmp_path / "m.nii.gz")
    numbers, names = read_segmentation(tmp_path / "m.dcm", mask.grid)
    assert np.array_equal(numbers, mask.array)
    assert len(names) == 2
    found = pydicom.dcmread(tmp_path / "m.dcm")
    assert found.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "First part"


def test_a_mask_as_contours(service, study, tmp_path):
    code, body = service.call("/predict?name=s.zip&format=dicom-rtstruct&answer=mask", study[1])
    assert code == 200
    (tmp_path / "m.dcm").write_bytes(body)
    (tmp_path / "m.nii.gz").write_bytes(service.call("/predict?name=s.zip&answer=mask", study[1])[1])
    mask = read_label_map(tmp_path / "m.nii.gz")
    assert np.array_equal(read_contours(tmp_path / "m.dcm", mask.grid)[0], mask.array)


def test_dicom_of_a_zip_without_dicom_is_refused(service, tmp_path):
    nib.save(nib.Nifti1Image(np.ones((8, 8, 8), np.float32), np.eye(4)), tmp_path / "a.nii")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.write(tmp_path / "a.nii", "a.nii")
    code, reason = service.refused("/predict?name=a.zip&format=dicom-seg", (tmp_path / "a.zip").read_bytes())
    assert (code, reason) == (422, "dicom-seg refers to a DICOM series. Send a zip of one, or leave format out.")
