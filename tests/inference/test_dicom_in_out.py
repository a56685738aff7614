"""A hospital's folder in, a DICOM SEG out: the mask of the API, on the slices of the series."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
from dicom_series import write_enhanced, write_series

pydicom = pytest.importorskip("pydicom", reason="needs the extra 'dicom'")
pytest.importorskip("highdicom", reason="needs the extra 'dicom'")

from medmamba.cli.main import run as command  # noqa: E402
from medmamba.dicom.contours import read_contours  # noqa: E402
from medmamba.dicom.segmentation import read_segmentation  # noqa: E402
from medmamba.dicom.study import one_series  # noqa: E402
from medmamba.images import read_image, read_label_map  # noqa: E402


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
    assert "They are 2 parts (:1 to :2 or :largest) of 17 slices of 22 x 18 pixels" in capsys.readouterr().err
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
