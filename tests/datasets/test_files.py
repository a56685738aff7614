"""Files beside the cases of a dataset: counted and named; label maps of test cases; a missing file of another kind."""

import json
from pathlib import Path

import numpy as np
import pytest
from dataset_problems import problems_of

from medmamba.datasets import check_dataset, read_dataset
from medmamba.datasets.table import patients_of

KEYS = ("group", "patient", "patient_id", "subject", "subject_id")
SHAPE = (4, 5, 6)


@pytest.fixture
def folder(save, tmp_path) -> Path:
    """A Decathlon folder of three cases."""
    for number in range(3):
        labels = np.zeros(SHAPE, np.uint8)
        labels[1:3, 1:3, 1:3] = 1
        save(f"data/imagesTr/c{number}.nii.gz", np.random.default_rng(number).normal(100, 9, SHAPE).astype(np.float32))
        save(f"data/labelsTr/c{number}.nii.gz", labels)
    describe(tmp_path / "data")
    return tmp_path / "data"


def describe(folder: Path, *, entry: dict[str, object] | None = None, **changes: object) -> None:
    cases = [{"image": f"imagesTr/c{n}.nii.gz", "label": f"labelsTr/c{n}.nii.gz", **(entry or {})} for n in range(3)]
    labels = {"0": "background", "1": "organ"}
    facts = {"modality": {"0": "MR"}, "labels": labels, "training": cases, **changes}
    (folder / "dataset.json").write_text(json.dumps(facts))


def test_files_that_no_case_uses_are_counted_and_named(folder, save):
    for name in ("imagesTr/._c0.nii.gz", "imagesTr/c0.nii.gz~", "imagesTr/c0.nii.gz.bak", "labelsTr/._c1.nii.gz"):
        (folder / name).write_bytes(b"")
    for name in ("imagesTs/t0", "imagesTs/t1", "labelsTs/t0", "imagesTr/c9"):
        save(f"data/{name}.nii.gz", np.ones(SHAPE))
    assert sorted(read_dataset(folder).warnings) == [
        "imagesTr: 1 image file(s) belong to no case and are not used, the first is c9.nii.gz.",
        "imagesTr: 3 other file(s), such as hidden and backup files, are not used, the first is ._c0.nii.gz.",
        "imagesTs: 2 image file(s) belong to no case and are not used, the first is t0.nii.gz.",
        "labelsTr: 1 other file(s), such as hidden and backup files, are not used, the first is ._c1.nii.gz.",
        "labelsTs: 1 image file(s) belong to no case and are not used, the first is t0.nii.gz.",
    ]


def test_files_in_folders_of_cases_are_counted_together(folder, tmp_path):
    cases = []
    for number in range(3):
        home = tmp_path / f"kits/case_{number}"
        home.mkdir(parents=True)
        (folder / f"imagesTr/c{number}.nii.gz").rename(home / "imaging.nii.gz")
        (folder / f"labelsTr/c{number}.nii.gz").rename(home / "segmentation.nii.gz")
        (home / "raters.nii.gz").write_bytes(b"")
        cases.append({"image": f"case_{number}/imaging.nii.gz", "label": f"case_{number}/segmentation.nii.gz"})
    describe(tmp_path / "kits", training=cases)
    spec = read_dataset(tmp_path / "kits")
    assert [case.case_id for case in spec.cases] == ["case_0", "case_1", "case_2"]
    assert spec.warnings == ("3 image file(s) belong to no case and are not used, the first is case_0/raters.nii.gz.",)


def test_label_maps_of_test_cases_are_found(folder, save):
    for name in ("imagesTs/t0", "imagesTs/t1", "labelsTs/t0"):
        save(f"data/{name}.nii.gz", np.ones(SHAPE))
    describe(folder, test=["imagesTs/t0.nii.gz", {"image": "imagesTs/t1.nii.gz"}])
    spec = read_dataset(folder)
    assert [case.label for case in spec.test] == [folder / "labelsTs/t0.nii.gz", None]
    assert spec.warnings == ()


@pytest.mark.parametrize("name", ["imagesTr/c1.nii", "labelsTr/c1.nii"])
def test_a_file_of_another_kind_is_named(folder, name):
    (folder / f"{name}.gz").rename(folder / name)
    assert f"c1: {name}.gz: no such file, but c1.nii. Convert it" in problems_of(check_dataset, folder)


@pytest.mark.parametrize("key", KEYS)
def test_patients_of_entries_and_of_tables_are_used(folder, key):
    describe(folder, entry={key: 7})
    assert patients_of(read_dataset(folder)) == {"c0": "7", "c1": "7", "c2": "7"}
    rows = "".join(f"imagesTr/c{number}.nii.gz,labelsTr/c{number}.nii.gz,p1\n" for number in range(3))
    (folder / "cases.csv").write_text(f"image,label,{key}\n{rows}")
    describe(folder, training=[])
    spec = read_dataset(folder / "cases.csv")
    assert patients_of(spec) == {"c0": "p1", "c1": "p1", "c2": "p1"}
    assert not any(key in line for line in spec.warnings)
