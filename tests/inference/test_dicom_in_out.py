"""A hospital's folder in, a DICOM SEG out: the mask of the API, on the slices of the series."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dicom_series import changed, write_enhanced, write_series

pydicom = pytest.importorskip("pydicom", reason="needs the extra 'dicom'")
pytest.importorskip("highdicom", reason="needs the extra 'dicom'")

from medmamba.cli.main import run as command  # noqa: E402
from medmamba.dicom.contours import read_contours  # noqa: E402
from medmamba.dicom.segmentation import read_segmentation  # noqa: E402
from medmamba.dicom.study import one_series  # noqa: E402
from medmamba.images import read_image, read_label_map  # noqa: E402
from medmamba.inference.folder import case_job  # noqa: E402
from medmamba.inference.predictor import Predictor  # noqa: E402


@pytest.fixture
def study(tmp_path):
    """A study of two series as a zip; only the second has what a segmentation refers to."""
    noise = np.random.default_rng(0).integers(0, 900, (17, 22, 18)).astype(np.int16)
    tags = {"0020_0052": "1.2.9", "0020_0011": "2"}
    write_series(tmp_path / "study" / "a", noise[:4], series="1.2.3", **{"0020_0011": "1"})
    write_series(tmp_path / "study" / "b", noise, series="1.2.4", **tags)
    with zipfile.ZipFile(tmp_path / "patient.zip", "w") as archive:
        for path in (tmp_path / "study").rglob("*.dcm"):
            archive.write(path, path.relative_to(tmp_path))
    return tmp_path


def broken(*arguments, **named):
    raise RuntimeError("broken")


def called(*arguments):
    try:
        command([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code
    return 0


def test_a_zipped_study_gives_mask_and_dicom_seg_of_the_chosen_series(tiny_run, study, capsys):
    options = ("--no-mirror", "--fold", "0", "--device", "cpu")
    assert called("predict", tiny_run, study / "patient.zip", "-o", study / "out", *options) == 2
    size = "slices of 22 x 18 pixels, 2 x 0.75 x 0.5 mm"
    assert f"2 series (1: MR 4 {size}, UID 1.2.3; 2: MR 17 {size}, UID 1.2.4)" in capsys.readouterr().err
    (study / "labels.json").write_text(json.dumps({"Anterior": {"colour": [255, 0, 0]}}))
    seg = ("--series", "2", "--dicom-seg", "--dicom-rtstruct", "--codes", study / "labels.json")
    assert called("predict", tiny_run, study / "patient.zip", "-o", study / "out", *options, *seg) == 0
    image = read_image(study / "study" / "b")
    mask = read_label_map(study / "out" / "patient.nii.gz").array
    assert mask.any()
    numbers, names = read_segmentation(study / "out" / "patient.dcm", image.grid)
    values = json.loads((study / "out" / "report.json").read_text())["model"]["labels"]
    table = np.array([0, *(values[name] for name in names)])
    assert np.array_equal(table[numbers], mask)
    assert np.array_equal(read_contours(study / "out" / "patient_rtstruct.dcm", image.grid)[0], numbers)
    written = pydicom.dcmread(study / "out" / "patient.dcm")
    assert (written.FrameOfReferenceUID, written.Modality) == ("1.2.9", "SEG")


def test_a_phase_of_a_multi_frame_file_gives_mask_and_dicom_seg(tiny_run, tmp_path, capsys):
    noise = np.random.default_rng(0).integers(0, 900, (2, 17, 22, 18)).astype(np.int16)
    scan, options = write_enhanced(tmp_path / "scan.dcm", noise), ("--no-mirror", "--fold", "0", "--device", "cpu")
    assert called("predict", tiny_run, scan, "-o", tmp_path / "out", *options) == 2
    assert (
        "They are 2 parts (:1 time 1, :2 time 2 or :largest) of 17 slices of 22 x 18 pixels" in capsys.readouterr().err
    )
    assert called("predict", tiny_run, scan, "-o", tmp_path / "out", *options, "--series", "8:2", "--dicom-seg") == 0
    with one_series(scan, "8:2") as folder:
        image = read_image(folder)
    mask = read_label_map(tmp_path / "out" / "scan.nii.gz")
    np.testing.assert_array_equal(read_segmentation(tmp_path / "out" / "scan.dcm", image.grid)[0] > 0, mask.array > 0)
    later = ("-o", tmp_path / "later.dcm", "--series", "8:2")
    assert called("dicom-seg", tmp_path / "out" / "scan.nii.gz", scan, *later) == 0
    np.testing.assert_array_equal(read_segmentation(tmp_path / "later.dcm", image.grid)[0] > 0, mask.array > 0)


def test_a_case_that_is_no_series_cannot_become_a_dicom_seg(tiny_run, small_dataset, tmp_path, capsys):
    image = sorted((small_dataset / "imagesTs").iterdir())[0]
    code = called("predict", tiny_run, image, "-o", tmp_path / "out", "--no-mirror", "--fold", "0", "--dicom-seg")
    assert code == 2
    assert "not a DICOM series" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert called("predict", tiny_run, image, "-o", tmp_path / "out", "--dicom-seg", "--codes", "none.json") == 2
    assert "none.json: no such file. Check the name." in capsys.readouterr().err


OPTIONS = ("--no-mirror", "--fold", "0", "--device", "cpu")


def record_of(folder):
    (case,) = json.loads((folder / "report.json").read_text())["cases"].values()
    return case


def test_a_series_that_can_have_no_dicom_object_keeps_its_mask(tiny_run, study, capsys):
    series, out = study / "study" / "b", study / "out"
    for path in series.iterdir():
        changed(path, FrameOfReferenceUID=None)
    assert called("predict", tiny_run, series, "-o", out, *OPTIONS, "--dicom-seg", "--dicom-rtstruct") == 1
    out_and_err = capsys.readouterr()
    assert "1 mask, 1 of them incomplete and report.json: " in " ".join(f"{out_and_err.out} {out_and_err.err}".split())
    said = " ".join(out_and_err.err.split())
    assert "b: its mask is written, dicom_seg is not:" in said
    assert "an image has no FrameOfReferenceUID" in said
    assert "1 ok, 0 failed; incomplete: b (--resume tries again what is missing)" in said
    assert read_label_map(out / "b.nii.gz").array.any()
    assert not list(out.glob("*.dcm"))
    assert set(record_of(out)["not_written"]) == {"dicom_seg", "dicom_rtstruct"}
    assert json.loads((out / "report.json").read_text())["summary"]["incomplete"] == 1
    assert record_of(out)["status"] != "failed"


def test_resume_makes_what_is_missing_from_the_mask_and_predicts_nothing(tiny_run, study, capsys, monkeypatch):
    series, out = study / "study" / "b", study / "out"
    with monkeypatch.context() as failing:
        failing.setattr("medmamba.dicom.segmentation.read_segmentation", broken)
        assert called("predict", tiny_run, series, "-o", out, *OPTIONS, "--dicom-seg", "--dicom-rtstruct") == 1
    assert "unexpected RuntimeError" in record_of(out)["not_written"]["dicom_seg"]
    kept = {name: (out / name).read_bytes() for name in ("b.nii.gz", "b_rtstruct.dcm")}
    monkeypatch.setattr("medmamba.inference.predictor.Predictor.predict", broken)
    again = ("predict", tiny_run, series, "-o", out, *OPTIONS, "--dicom-seg", "--dicom-rtstruct", "--resume")
    assert called(*again) == 0
    assert {name: (out / name).read_bytes() for name in kept} == kept
    assert (record_of(out)["not_written"], set(record_of(out)["dicom"])) == ({}, {"seg", "rtstruct"})
    numbers, _ = read_segmentation(out / "b.dcm", read_image(series).grid)
    assert np.array_equal(numbers > 0, read_label_map(out / "b.nii.gz").array > 0)
    (study / "labels.json").write_text(json.dumps({"Anterior": {"colour": [1, 2, 3]}}))
    assert called(*again, "--codes", study / "labels.json") == 0  # another labels file: another object, the same mask
    assert list(pydicom.dcmread(out / "b_rtstruct.dcm").ROIContourSequence[0].ROIDisplayColor) == [1, 2, 3]


@pytest.mark.parametrize(
    ("broken_name", "products"),
    [("write_image", {"probabilities"}), ("file_sha256", {"mask_sha256", "probabilities"})],
)
def test_no_other_product_loses_a_finished_mask(broken_name, products, tiny_run, study, capsys, monkeypatch):
    real = getattr(case_job, broken_name)

    def fails_on_outputs(path, *arguments, **named):
        if "out" in Path(path).parts:
            broken()
        return real(path, *arguments, **named)

    monkeypatch.setattr(case_job, broken_name, fails_on_outputs)
    out = study / "out"
    assert called("predict", tiny_run, study / "study" / "b", "-o", out, *OPTIONS, "--probabilities") == 1
    assert set(record_of(out)["not_written"]) == products
    assert read_label_map(out / "b.nii.gz").array.any()


def test_a_wrong_name_in_the_labels_file_is_reported_before_the_first_case(tiny_run, study, capsys):
    (study / "labels.json").write_text(json.dumps({"Antrior": {}}))
    options = (*OPTIONS, "--dicom-seg", "--codes", study / "labels.json")
    assert called("predict", tiny_run, study / "study" / "b", "-o", study / "out", *options) == 2
    assert "Did you mean 'Anterior'" in " ".join(capsys.readouterr().err.split())
    assert not (study / "out").exists()


def test_an_empty_mask_has_dicom_objects_and_is_reported_as_empty(tiny_run, study, monkeypatch):
    real = Predictor.predict

    def nothing_found(*arguments, **named):
        found = real(*arguments, **named)
        return replace(found, labels=np.zeros_like(found.labels), voxels=dict.fromkeys(found.voxels, 0))

    monkeypatch.setattr(Predictor, "predict", nothing_found)
    series, out = study / "study" / "b", study / "out"
    assert called("predict", tiny_run, series, "-o", out, *OPTIONS, "--dicom-seg", "--dicom-rtstruct") == 0
    assert record_of(out)["empty"] is True
    grid = read_image(series).grid
    assert not read_segmentation(out / "b.dcm", grid)[0].any()
    assert not read_contours(out / "b_rtstruct.dcm", grid)[0].any()
