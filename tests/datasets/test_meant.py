"""Descriptions and files that mean something else than they seem to: taken as meant, named, or refused."""

import json
import shutil
import unicodedata
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dataset_problems import problems_of
from PIL import Image

from medmamba.datasets import check_dataset, read_dataset
from medmamba.geometry import Grid
from medmamba.images import write_label_map
from medmamba.planning.measure import measure_dataset
from medmamba.planning.run import folds_for

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def describe(folder: Path, **changes: object) -> Path:
    facts = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "organ": 1, "tumour": 2}}
    facts = {**facts, "numTraining": 3, "file_ending": ".nii.gz", **changes}
    (folder / "dataset.json").write_text(json.dumps(facts))
    return folder


def store(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(array, AFFINE), path)


@pytest.fixture
def raw(tmp_path) -> Path:
    """Three cases of two channels, in nnU-Net's layout."""
    rng = np.random.default_rng(0)
    for case in "abc":
        for channel in range(2):
            store(tmp_path / f"imagesTr/{case}_{channel:04d}.nii.gz", rng.normal(size=(5, 6, 7)).astype(np.float32))
        store(tmp_path / f"labelsTr/{case}.nii.gz", rng.integers(0, 3, (5, 6, 7)).astype(np.uint8))
    return describe(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"numTraining": "3"},
        {"numTraining": 3.0},
        {"file_ending": "nii.gz"},
        {"labels": {"background": "0", "organ": "1", "tumour": "2"}},
    ],
)
def test_numbers_as_text_and_an_ending_without_its_dot_are_taken_as_meant(raw, changes):
    spec = check_dataset(describe(raw, **changes)).spec
    assert spec.labels == {"background": 0, "organ": 1, "tumour": 2}
    assert [case.label.name for case in spec.cases] == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]


def test_numbers_on_both_sides_of_a_label_are_not_guessed(raw):
    lines = problems_of(read_dataset, describe(raw, labels={"0": "background", "1": "2", "2": "1"})).splitlines()
    assert "dataset.json: labels: '1': '2': which is the value? Give it as a number." in lines


def test_channels_that_are_named_twice_must_agree(raw):
    pairs = [{"image": "imagesTr/a_0000.nii.gz", "label": "labelsTr/a.nii.gz"}]
    facts = {"training": pairs, "numTraining": 1, "channel_names": {"0": "CT"}, "modality": {"0": "MR"}}
    describe(raw, **facts)
    facts = json.loads((raw / "dataset.json").read_text())
    del facts["file_ending"]
    (raw / "dataset.json").write_text(json.dumps(facts))
    assert (
        "dataset.json: modality and channel_names differ. Keep one of them."
        in problems_of(read_dataset, raw).splitlines()
    )


def test_a_region_of_which_nothing_remains_is_refused(raw):
    labels = {"background": 0, "core": [2], "whole": [1, 2]}
    (line, _) = problems_of(read_dataset, describe(raw, labels=labels, regions_class_order=[2, 1])).splitlines()
    assert line == (
        "dataset.json: labels: 'whole' contains 'core' and is written after it, so that nothing of it remains. "
        "Name the larger region first."
    )
    labels = {"background": 0, "whole": [1, 2], "core": [2]}
    assert read_dataset(describe(raw, labels=labels, regions_class_order=[1, 2])).regions["core"] == (2,)


@pytest.mark.parametrize("stored", ["NFC", "NFD"])
def test_accents_may_be_stored_in_either_form(raw, stored):
    other = {"NFC": "NFD", "NFD": "NFC"}[stored]
    for case in "abc":
        for path in [*(raw / "imagesTr").glob(f"{case}_*"), raw / f"labelsTr/{case}.nii.gz"]:
            form = stored if path.parent.name == "labelsTr" else other
            path.rename(path.with_name(unicodedata.normalize(form, "é" + path.name)))
    assert len(check_dataset(raw).cases) == 3
    listed = {
        case: {
            "images": [unicodedata.normalize(stored, f"imagesTr/é{case}_{channel:04d}.nii.gz") for channel in range(2)],
            "label": unicodedata.normalize(other, f"labelsTr/é{case}.nii.gz"),
        }
        for case in "abc"
    }
    assert len(check_dataset(describe(raw, dataset=listed)).cases) == 3


def test_one_label_map_for_two_cases_is_said(raw):
    listed = {
        case: {"images": [f"imagesTr/{case}_{n:04d}.nii.gz" for n in range(2)], "label": f"labelsTr/{label}.nii.gz"}
        for case, label in zip("abc", "abb", strict=True)
    }
    warnings = check_dataset(describe(raw, dataset=listed)).warnings
    assert "labelsTr/b.nii.gz is the label map of 2 cases (b, c). Check that this is meant." in warnings


def test_one_file_under_the_names_of_two_channels_is_said(raw):
    shutil.copy(raw / "imagesTr/b_0000.nii.gz", raw / "imagesTr/b_0001.nii.gz")
    (line,) = check_dataset(raw).warnings
    assert line == "b: channels T1 and T2 hold the same voxels. Is one the copy of the other?"


def test_a_label_map_in_place_of_an_image_is_refused(raw):
    shutil.copy(raw / "labelsTr/b.nii.gz", raw / "imagesTr/b_0001.nii.gz")
    (line, _) = problems_of(check_dataset, raw).splitlines()
    assert line == "b: the image holds the label map. Give the image that belongs to it."


def test_an_image_without_a_channel_number_is_named(raw):
    (raw / "imagesTr/c_0001.nii.gz").unlink()
    (raw / "imagesTr/c_0000.nii.gz").rename(raw / "imagesTr/c.nii.gz")
    lines = problems_of(read_dataset, raw).splitlines()
    assert "imagesTr: c.nii.gz has no channel number. Name it CASE_0000.nii.gz." in lines


def test_folds_in_a_pickle_and_a_label_called_ignore_otherwise_are_said(raw):
    (raw / "splits_final.pkl").write_bytes(b"")
    assert check_dataset(describe(raw, labels={"background": 0, "organ": 1, "Ignore": 2})).warnings == (
        "label 'Ignore' is trained as a structure; voxels of a label 'ignore' are not learned.",
        "splits_final.pkl is not read (it could run code). Save its folds as splits_final.json.",
    )


def test_cases_in_no_fold_are_said(raw):
    (raw / "splits_final.json").write_text(json.dumps([{"train": ["a"], "val": ["b"]}]))
    spec = read_dataset(raw)
    said: list[str] = []
    folds_for(spec, measure_dataset(spec)[1], {}, None, said.append)
    assert said == ["1 case in no fold and not used, the first is c."]


def test_paths_of_windows_and_empty_columns_in_a_table(raw):
    rows = [f"{c};imagesTr\\{c}_0000.nii.gz;imagesTr\\{c}_0001.nii.gz;labelsTr\\{c}.nii.gz;;" for c in "abc"]
    (raw / "cases.csv").write_text("\n".join(["case_id;image_0;image_1;label;;", *rows]))
    describe(raw, modality={"0": "T1", "1": "T2"}, channel_names=None)
    spec = check_dataset(raw / "cases.csv").spec
    assert [len(case.images) for case in spec.cases] == [2, 2, 2]


def test_segments_of_slicer_must_have_the_values_of_their_names(raw):
    labels = np.asarray(nib.load(raw / "labelsTr/b.nii.gz").dataobj)
    file = raw / "b.seg.nrrd"

    write_label_map(file, labels, Grid(labels.shape, AFFINE))
    plain = file.read_bytes()

    def with_segments(**values: int) -> None:
        lines = "".join(
            f"Segment{n}_LabelValue:={value}\nSegment{n}_Name:={name}\n"
            for n, (name, value) in enumerate(values.items())
        )
        file.write_bytes(plain.replace(b"encoding: gzip\n", b"encoding: gzip\n" + lines.encode()))

    listed = {
        case: {
            "images": [f"imagesTr/{case}_{n:04d}.nii.gz" for n in range(2)],
            "label": "b.seg.nrrd" if case == "b" else f"labelsTr/{case}.nii.gz",
        }
        for case in "abc"
    }
    describe(raw, dataset=listed)
    with_segments(Organ=1, tumour=2)
    assert len(check_dataset(raw).cases) == 3
    with_segments(tumour=1, Organ=2)
    lines = problems_of(check_dataset, raw).splitlines()
    assert lines[:2] == [
        "b: b.seg.nrrd: its segment 'tumour' has the value 1, not 2. Renumber its segments.",
        "b: b.seg.nrrd: its segment 'Organ' has the value 2, not 1. Renumber its segments.",
    ]


@pytest.mark.parametrize(("declared", "stored"), [("grey", "RGB"), ("RGB", "L")])
def test_a_grey_picture_is_read_in_as_many_colours_as_the_others(tmp_path, declared, stored):
    rng = np.random.default_rng(0)
    for number in range(3):
        pixels = Image.fromarray(rng.integers(0, 255, (8, 9), dtype=np.uint8))
        pixels.convert(stored if number else {"grey": "L", "RGB": "RGB"}[declared]).save(tmp_path / f"{number}.png")
        Image.fromarray(np.eye(8, 9, dtype=np.uint8)).save(tmp_path / f"{number}_mask.png")
    names = ["grey"] if declared == "grey" else ["R", "G", "B"]
    pairs = [{"image": f"{number}.png", "label": f"{number}_mask.png"} for number in range(3)]
    facts = {"modality": {str(n): name for n, name in enumerate(names)}, "labels": {"0": "background", "1": "line"}}
    (tmp_path / "dataset.json").write_text(json.dumps({**facts, "training": pairs}))
    report = check_dataset(tmp_path)
    assert [case.channels for case in report.cases] == [len(names)] * 3
    how = "in three equal colours, taken as grey" if stored == "RGB" else ", taken as three equal colours"
    assert f"1: 1.png: grey{' ' if stored == 'RGB' else ''}{how}." in report.warnings
