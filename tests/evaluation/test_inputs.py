"""Folders for evaluation that do not fit each other: said or refused, options before an image is read."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medmamba.errors import InputError
from medmamba.evaluation.run import run_evaluation


@pytest.fixture
def write(tmp_path):
    """Writes one mask per value of a list: a cube of that value."""

    def _write(folder, values, spacing=1.0):
        (tmp_path / folder).mkdir()
        for number, value in enumerate(values):
            labels = np.zeros((6, 7, 8), np.uint8)
            labels[1:4, 1:4, 1:4] = value
            nib.save(nib.Nifti1Image(labels, np.diag([spacing] * 3 + [1.0])), tmp_path / folder / f"c{number}.nii.gz")
        return tmp_path / folder

    return _write


def with_report(folder):
    model = {"labels": {"background": 0, "organ": 1, "tumour": 2}}
    (folder / "report.json").write_text(json.dumps({"model": model}))
    return folder


def test_masks_whose_names_end_in_a_number_are_cases_of_their_own(tmp_path):
    spot = np.zeros((12, 10), np.uint8)
    spot[2:6, 2:6] = 1
    for folder in ("masks", "truths"):
        (tmp_path / folder).mkdir()
        for number in range(10):
            found = spot if folder == "truths" or number == 0 else np.roll(spot, 5, axis=0)
            Image.fromarray(found).save(tmp_path / folder / f"img_{number:04d}.png")
    evaluation = run_evaluation(tmp_path / "masks", tmp_path / "truths").evaluation
    assert evaluation.mean_per_case() == {f"img_{number:04d}": float(number == 0) for number in range(10)}
    assert evaluation.mean_foreground == pytest.approx(0.1)


def test_truths_without_a_label_of_the_model_are_refused(write):
    masks, truths = with_report(write("masks", [1, 1])), write("truths", [255, 255])
    with pytest.raises(InputError, match=r"Truths hold label 255, predictions 1, 2: none in common. Give both the"):
        run_evaluation(masks, truths)


def test_labels_of_truths_that_nothing_predicts_are_said(write):
    masks, truths = with_report(write("masks", [1, 1, 2])), write("truths", [1, 3, 2])
    line = "Label value 3 of truths, the first is c1, is in no prediction."
    assert run_evaluation(masks, truths).evaluation.warnings == (line,)
    (masks / "report.json").unlink()
    assert run_evaluation(masks, truths).evaluation.warnings == (line,)


def test_predictions_without_a_truth_are_counted(write):
    found = run_evaluation(write("masks", [1, 1, 1]), write("truths", [1]))
    assert found.evaluation.warnings == ("2 predictions without a truth not evaluated, the first is c1.",)


def test_probabilities_beside_masks_are_no_predictions(write):
    masks, truths = write("masks", [1, 1, 1]), write("truths", [1, 1])
    (masks / "c2.nii.gz").rename(masks / "c1_probabilities.nii.gz")
    assert run_evaluation(masks, truths).evaluation.warnings == ()
    (masks / "c1_probabilities.nii.gz").rename(masks / "x_probabilities.nii.gz")
    line = "1 prediction without a truth not evaluated, the first is x_probabilities."
    assert run_evaluation(masks, truths).evaluation.warnings == (line,)


@pytest.mark.parametrize("ending", ["probabilities", "uncertainty"])
def test_what_lies_beside_masks_that_serve_as_truths_is_no_case(write, ending):
    masks, truths = write("masks", [1, 1, 1]), write("truths", [1, 1, 1])
    for folder in (masks, truths):
        (folder / "c2.nii.gz").rename(folder / f"c1_{ending}.nii.gz")
    evaluation = run_evaluation(masks, truths).evaluation
    assert list(evaluation.cases) == ["c0", "c1"]
    what = "beside truths taken for a prediction's probabilities or uncertainty, and not evaluated"
    assert evaluation.warnings[0] == f"1 file {what}, the first is c1_{ending}."


def test_exchanged_folders_are_said(write):
    masks, truths = with_report(write("masks", [1])), write("truths", [1])
    assert run_evaluation(masks, truths).evaluation.warnings == ()
    (line,) = run_evaluation(truths, masks).evaluation.warnings
    assert line.endswith(f"{truths} does not: are the folders exchanged?")


def test_masks_of_a_microscope_are_compared(write):
    found = run_evaluation(write("masks", [1], 0.001), write("truths", [1], 0.001))
    assert found.evaluation.mean_foreground == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"subgroups": "none.csv"}, "none.csv: no such file"),
        ({"subgroups": "table.csv"}, "1 case(s) are not in the table, the first is c1"),
        ({"other": "none"}, "none: not found"),
        ({"images": "none"}, "none: not found"),
    ],
)
def test_options_are_refused_before_an_image_is_read(write, tmp_path, monkeypatch, options, words):
    def read(*arguments, **more):
        raise AssertionError("an image was read")

    masks, truths = with_report(write("masks", [1, 1])), write("truths", [1, 1])
    (tmp_path / "table.csv").write_text("case,site\nc0,A\n")
    monkeypatch.setattr("medmamba.evaluation.report.read_label_map", read)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        run_evaluation(masks, truths, **options)
    assert words in str(error.value)


def test_ignored_voxels_of_truths_are_left_out(write, tmp_path):
    masks, truths = with_report(write("masks", [1])), write("truths", [1])
    report = json.loads((masks / "report.json").read_text())
    (masks / "report.json").write_text(json.dumps({"model": {**report["model"], "ignore": 9}}))
    labels = np.zeros((6, 7, 8), np.uint8)
    labels[1:4, 1:4, 1:3], labels[1:4, 1:4, 3:] = 1, 9  # the last plane of the mask is not annotated
    nib.save(nib.Nifti1Image(labels, np.eye(4)), truths / "c0.nii.gz")
    found = run_evaluation(masks, truths).evaluation
    score = found.cases["c0"]["organ"]
    assert (score.value("dice"), score.value("hd95_mm"), score.value("specificity")) == (1.0, 0.0, 1.0)
    assert (score.truth_voxels, score.prediction_voxels) == (18, 18)
    assert found.warnings == ("Voxels of the label value 9, which is to be ignored, were left out.",)


def test_truths_stored_with_other_axes_are_compared_in_place(write):
    masks, truths = write("masks", [1, 1]), write("truths", [1, 1])
    for path in truths.iterdir():
        image = nib.load(path)
        nib.save(image.as_reoriented(np.array([[1, -1], [0, 1], [2, 1]])), path)
    found = run_evaluation(masks, truths).evaluation
    assert [scores["label_1"].value("dice") for scores in found.cases.values()] == [1.0, 1.0]
    assert found.warnings[0].startswith("c0: truth and prediction differ in shape: (7, 6, 8) and (6, 7, 8); the truth")


def test_accents_in_names_may_be_stored_in_either_form(write):
    masks, truths = write("masks", [1]), write("truths", [1])
    (masks / "c0.nii.gz").rename(masks / "\u00e9.nii.gz")
    (truths / "c0.nii.gz").rename(truths / "e\u0301.nii.gz")
    assert list(run_evaluation(masks, truths).evaluation.cases) == ["\u00e9"]


def test_segments_of_a_truth_with_other_values_are_refused(write, tmp_path):
    from medmamba.geometry import Grid
    from medmamba.images import write_label_map

    masks, truths = with_report(write("masks", [1])), tmp_path / "truths"
    labels = np.zeros((6, 7, 8), np.uint8)
    labels[1:4, 1:4, 1:4] = 1
    truths.mkdir()
    write_label_map(truths / "c0.nrrd", labels, Grid(labels.shape, np.eye(4)))
    raw = (truths / "c0.nrrd").read_bytes()
    segment = b"encoding: gzip\nSegment0_LabelValue:=1\nSegment0_Name:=tumour\n"
    (truths / "c0.nrrd").write_bytes(raw.replace(b"encoding: gzip\n", segment))
    with pytest.raises(InputError, match=r"c0\.nrrd: its segment 'tumour' has the value 1, not 2\. Renumber"):
        run_evaluation(masks, truths)
