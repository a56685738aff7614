"""One, two or three cases, and flat images along any axis: each is planned, and says what it cannot give."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from dicom_series import write_series
from PIL import Image

import medmamba
from medmamba.models.run_folder import RunFolder


def decathlon(folder: Path, shape: tuple[int, ...], count: int, spacing=(1.0, 1.0, 1.0)) -> Path:
    """``count`` volumes of noise with a bright box."""
    rng = np.random.default_rng(0)
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    names = [f"case_{number}" for number in range(count)]
    for name in names:
        truth = np.zeros(shape, np.uint8)
        truth[tuple(slice(n // 3, max(2 * n // 3, n // 3 + 1)) for n in shape)] = 1
        image = (rng.normal(50, 5, shape) + 30 * truth).astype(np.float32)
        affine = np.diag([*spacing, 1.0])
        nibabel.save(nibabel.Nifti1Image(image, affine), folder / "imagesTr" / f"{name}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(truth, affine), folder / "labelsTr" / f"{name}.nii.gz")
    facts = {
        "name": "small",
        "modality": {"0": "MR"},
        "labels": {"0": "background", "1": "box"},
        "numTraining": count,
        "training": [{"image": f"imagesTr/{n}.nii.gz", "label": f"labelsTr/{n}.nii.gz"} for n in names],
    }
    (folder / "dataset.json").write_text(json.dumps(facts))
    return folder


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_cases_are_planned_and_the_folds_say_how_many_there_are(tmp_path, count):
    told: list[str] = []
    plan = medmamba.plan(decathlon(tmp_path / "data", (24, 28, 20), count), tmp_path / "run", on_warning=told.append)
    assert plan.default.batch_size == 2
    folds = RunFolder(tmp_path / "run").read_splits()
    assert len(folds) == count
    if count == 1:
        assert folds[0]["train"] == folds[0]["val"]
        assert any("validates on the cases that it trains on" in line for line in told)
    else:
        assert any(f"{count} folds instead of 5" in line for line in told)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 6.0, 0.5)])
def test_flat_data_of_any_axis_get_a_plan_in_two_dimensions(tmp_path, axis, spacing):
    shape = [40, 48, 56]
    shape[axis] = 1
    plan = medmamba.plan(decathlon(tmp_path / "data", tuple(shape), 2, spacing), tmp_path / "run")
    assert list(plan.configurations) == ["2d"]
    assert plan.axis_order[0] == axis
    stored = RunFolder(tmp_path / "run").preprocessed("2d")
    assert len(list(stored.iterdir())) == 2


def test_a_picture_without_millimetres_says_that_nothing_is_resampled(tmp_path):
    for name in ("imagesTr", "labelsTr"):
        (tmp_path / "data" / name).mkdir(parents=True)
    truth = np.zeros((40, 64), np.uint8)
    truth[10:20, 30:50] = 255
    Image.fromarray(np.where(truth > 0, 200, 20).astype(np.uint8)).save(tmp_path / "data" / "imagesTr" / "a_0000.png")
    Image.fromarray(truth).save(tmp_path / "data" / "labelsTr" / "a.png")
    facts = {"channel_names": {"0": "grey"}, "labels": {"background": 0, "cell": 1}, "numTraining": 1}
    (tmp_path / "data" / "dataset.json").write_text(json.dumps({**facts, "file_ending": ".png"}))
    plan = medmamba.plan(tmp_path / "data", tmp_path / "run")
    assert (plan.default.spacing_mm, plan.file_ending) == (None, ".png")
    reason = next(decision.reason for decision in plan.decisions if decision.name == "target_spacing")
    assert "no millimetres" in reason


def test_a_dicom_series_and_other_containers_are_planned_as_they_lie(tmp_path):
    folder = tmp_path / "data"
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    rng, training = np.random.default_rng(0), []
    for name in ("a", "b.nrrd", "c.mha"):
        volume = rng.integers(0, 900, (12, 20, 16), dtype=np.int16)
        truth = np.zeros(volume.shape, np.uint8)
        truth[4:8, 5:15, 4:12] = 1
        for kind, voxels in (("imagesTr", volume), ("labelsTr", truth)):
            if kind == "imagesTr" and name == "a":
                write_series(folder / kind / name, volume)
                continue
            image = sitk.GetImageFromArray(voxels)
            image.SetSpacing((0.5, 0.75, 2.0))
            image.SetOrigin((10.0, -20.0, 30.0))
            sitk.WriteImage(image, str(folder / kind / (f"{name}.nrrd" if name == "a" else name)))
        label = f"labelsTr/{name}.nrrd" if name == "a" else f"labelsTr/{name}"
        training.append({"image": f"imagesTr/{name}", "label": label})
    facts = {"name": "mixed", "modality": {"0": "MR"}, "labels": {"0": "background", "1": "box"}, "numTraining": 3}
    (folder / "dataset.json").write_text(json.dumps({**facts, "training": training}))
    medmamba.plan(folder, tmp_path / "run")
    cases = RunFolder(tmp_path / "run").read_fingerprint().cases
    assert {(case.case_id, case.shape, case.spacing_mm) for case in cases} == {
        (name, (16, 20, 12), (0.5, 0.75, 2.0)) for name in ("a", "b", "c")
    }
    assert {case.label_voxels["box"] for case in cases} == {4 * 10 * 8}


def test_the_plan_carries_hashes_that_follow_the_data(tmp_path):
    folder = decathlon(tmp_path / "data", (24, 28, 20), 2)
    before = medmamba.plan(folder, tmp_path / "run")
    image = nibabel.load(folder / "imagesTr" / "case_1.nii.gz")
    voxels = image.get_fdata(dtype=np.float32)
    voxels[0, 0, 0] += 1  # outside the foreground: no number of the fingerprint's rules follows it
    nibabel.save(nibabel.Nifti1Image(voxels, image.affine), folder / "imagesTr" / "case_1.nii.gz")
    after = medmamba.plan(folder, tmp_path / "other")
    assert len(before.dataset_hash) == len(before.fingerprint_hash) == 64
    assert before.dataset_hash != after.dataset_hash
    assert before.configurations == after.configurations
    assert before.fingerprint_hash == RunFolder(tmp_path / "run").read_fingerprint().content_hash
