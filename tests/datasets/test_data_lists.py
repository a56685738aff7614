"""Data lists of MONAI: folds, validation cases, cases in folders of their own, keys that are not used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medmamba.datasets import read_dataset
from medmamba.errors import InputErrors


def monai_list(folder: Path, save, **changes: object) -> Path:
    """A data list of four cases in folders of their own, all files of one name."""
    entries = []
    for number in range(4):
        save(f"{folder.name}/p{number}/imaging.nii.gz", np.random.default_rng(number).normal(size=(6, 7, 5)))
        save(f"{folder.name}/p{number}/truth.nii.gz", np.full((6, 7, 5), number % 2, np.uint8))
        entries.append({"image": f"p{number}/imaging.nii.gz", "label": f"p{number}/truth.nii.gz", "fold": number // 2})
    description = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "organ"}, "training": entries}
    (folder / "dataset.json").write_text(json.dumps(description | changes))
    return folder


def test_folds_of_a_data_list_are_used_and_cases_named_after_their_folders(tmp_path, save):
    folder = monai_list(tmp_path / "list", save, testing=[{"image": "p0/imaging.nii.gz"}])
    spec = read_dataset(folder)
    assert spec.splits == ((("p2", "p3"), ("p0", "p1")), (("p0", "p1"), ("p2", "p3")))
    assert (spec.test, spec.warnings) == ((), ())


def test_a_list_of_validation_cases_is_the_split(tmp_path, save):
    folder = monai_list(tmp_path / "list", save)
    raw = json.loads((folder / "dataset.json").read_text())
    entries = [{key: entry[key] for key in ("image", "label")} for entry in raw["training"]]
    (folder / "dataset.json").write_text(json.dumps(raw | {"training": entries[:3], "validation": entries[3:]}))
    assert read_dataset(folder).splits == ((("p0", "p1", "p2"), ("p3",)),)
    (folder / "dataset.json").write_text(json.dumps(raw | {"training": raw["training"][:3], "validation": entries[3:]}))
    with pytest.raises(InputErrors, match="without a list of validation"):
        read_dataset(folder)


@pytest.mark.parametrize("folds", [[0, 0, 0, 0], [0, 1, None, 1], [0, 2, 0, 2], [-1, 0, 1, 1]])
def test_folds_that_are_no_split_are_refused(tmp_path, save, folds):
    folder = monai_list(tmp_path / "list", save)
    raw = json.loads((folder / "dataset.json").read_text())
    for entry, fold in zip(raw["training"], folds, strict=True):
        entry["fold"] = fold
    (folder / "dataset.json").write_text(json.dumps(raw))
    with pytest.raises(InputErrors, match="fold: every training case needs one"):
        read_dataset(folder)


def test_folds_that_contradict_the_split_file_are_refused(tmp_path, save):
    folder = monai_list(tmp_path / "list", save)
    (folder / "splits_final.json").write_text(json.dumps([{"train": ["p0", "p2"], "val": ["p1", "p3"]}]))
    with pytest.raises(InputErrors, match=r"splits_final.json and the folds of dataset.json differ"):
        read_dataset(folder)


def test_keys_that_are_not_used_are_named_and_counted(tmp_path, save):
    folder = monai_list(tmp_path / "list", save, weights=[1], tensorImageSize="3D")
    raw = json.loads((folder / "dataset.json").read_text())
    for entry in raw["training"]:
        entry["points"] = "a.json"
    (folder / "dataset.json").write_text(json.dumps(raw))
    first, second = read_dataset(folder).warnings
    assert "'points' of an entry of 'training' is not used (4 time(s))" in first
    assert "the key 'weights' is not used (1 time(s))" in second


def test_absolute_paths_inside_the_set_are_accepted(tmp_path, save):
    folder = monai_list(tmp_path / "list", save)
    raw = json.loads((folder / "dataset.json").read_text())
    for entry in raw["training"]:
        entry["image"], entry["label"] = str(folder / entry["image"]), str(folder / entry["label"])
    (folder / "dataset.json").write_text(json.dumps(raw))
    assert [case.case_id for case in read_dataset(folder).cases] == ["p0", "p1", "p2", "p3"]
    raw["training"][0]["image"] = str(folder / ".." / "x.nii.gz")
    (folder / "dataset.json").write_text(json.dumps(raw))
    with pytest.raises(InputErrors, match="leads out of the dataset's folder"):
        read_dataset(folder)
