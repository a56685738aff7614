"""What plan accepted is accepted by everything that is done with its model: the plan records how files are read."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from tiny_models import make_fold

import medmamba
from medmamba import pipeline
from medmamba.bundle.configuration import _plan_numbers
from medmamba.bundle.runtime.plan import read_numbers
from medmamba.datasets import read_dataset
from medmamba.errors import InputError
from medmamba.evaluation.run import run_evaluation
from medmamba.inference.folder.run import reproduce
from medmamba.inference.predictor import Predictor
from medmamba.models.run_folder import read_plan
from medmamba.plans.schema import Plan, Reading
from medmamba.serving.answer import Wanted, read_request
from medmamba.serving.limits import ServiceLimits

SPACING = np.diag([1.0, 1.0, 1.5, 1.0])
TURNED = SPACING @ np.array([[-1, 0, 0, 15], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])


def volume(seed: int, *, hole: bool = True) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    image, label = random.normal(100, 10, (16, 16, 12)).astype(np.float32), np.zeros((16, 16, 12), np.uint8)
    label[4:9, 5:10, 3 : 8 + seed] = 1
    image[label == 1] += 80
    if hole:
        image[:2] = np.nan
    return image, label


def write(path: Path, array: np.ndarray, affine: np.ndarray = SPACING) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = nib.Nifti1Image(array, affine)
    header.header.set_xyzt_units("mm")
    nib.save(header, path)
    return path


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """nnU-Net's layout, one channel; images hold NaN, label maps have another order of axes, both affines differ."""
    folder = tmp_path_factory.mktemp("odd")
    for number in range(2):
        image, label = volume(number)
        write(folder / "imagesTr" / f"mr{number}_0000.nii.gz", image)
        write(folder / "labelsTr" / f"mr{number}.nii.gz", label[::-1], TURNED)
    description = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "thing": 1}, "numTraining": 2}
    (folder / "dataset.json").write_text(json.dumps(description | {"file_ending": ".nii.gz"}))
    return folder


@pytest.fixture(scope="module")
def fold(tmp_path_factory, dataset) -> Path:
    run = tmp_path_factory.mktemp("odd_run") / "run"
    with pytest.raises(InputError, match="NaN or infinite"):
        medmamba.plan(dataset, run)
    medmamba.plan(dataset, run, patch_size=(8, 8, 8), batch_size=2, nonfinite="zero", match_labels=True)
    return make_fold(run / "models" / "3d_fullres" / "fold_0", read_plan(run / "plan.json"), 0)


def test_a_plan_records_how_its_dataset_is_read(fold):
    assert read_plan(fold / "plan.json").reading == Reading(nonfinite="zero", match_labels=True, channel_files=1)


def test_predict_evaluate_and_reproduce_read_as_the_plan_says(fold, dataset, tmp_path):
    with pytest.raises(InputError, match="NaN or infinite"):
        medmamba.images.read_image(dataset / "imagesTr" / "mr0_0000.nii.gz")
    report = pipeline.predict(fold, dataset / "imagesTr", tmp_path / "masks", device="cpu")
    assert sorted(report.done) == ["mr0", "mr1"]
    found = run_evaluation(tmp_path / "masks", dataset / "labelsTr", images=dataset / "imagesTr")
    assert sorted(found.evaluation.cases) == ["mr0", "mr1"]
    assert "differ in orientation" in found.evaluation.warnings[0]
    again = reproduce(tmp_path / "masks" / "report.json", fold, dataset / "imagesTr", cases=["mr1"], device="cpu")
    assert again.same == ("mr1",)


def test_the_service_and_a_bundle_read_as_the_plan_says(fold, dataset):
    predictor = Predictor(fold, device="cpu")
    files = [dataset / "imagesTr" / "mr0_0000.nii.gz"]
    with read_request(predictor, files, Wanted(), ServiceLimits(), print) as given:
        assert (given.image.nonfinite_voxels, given.mask.name) == (2 * 16 * 12, "mask.nii.gz")
    plan = read_numbers(json.loads(json.dumps(_plan_numbers(predictor.model.ensembles[0]))))
    assert plan.nonfinite == "zero"
    assert np.isfinite(predictor.predict(np.full((16, 16, 12), 1.0) * volume(0)[0]).entropy)


def test_plans_of_earlier_versions_have_the_defaults_and_may_split_every_channel(small_run, small_dataset):
    document = json.loads((small_run / "plan.json").read_text())
    assert document["reading"]["channel_files"] == 0 == read_dataset(small_dataset).channel_files
    del document["reading"]
    plan = Plan.from_json(json.dumps(document))
    assert plan.reading == Reading()
    assert plan.channel_files == 1


def test_spacings_of_microscopes_are_accepted_on_request_if_the_whole_set_has_them(tmp_path):
    scale = np.diag([1e-3, 1e-3, 1e-3, 1.0])
    for number in range(3):
        image, label = volume(number, hole=False)
        write(tmp_path / "set" / "imagesTr" / f"m{number}.nii.gz", image, scale @ SPACING)
        write(tmp_path / "set" / "labelsTr" / f"m{number}.nii.gz", label, scale @ SPACING)
    pairs = [{"image": f"imagesTr/m{n}.nii.gz", "label": f"labelsTr/m{n}.nii.gz"} for n in range(3)]
    facts = {"modality": {"0": "EM"}, "labels": {"0": "background", "1": "cell"}, "training": pairs}
    (tmp_path / "set" / "dataset.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match=r"outside 0.01 to 100 mm .* allow it with --any-spacing"):
        medmamba.plan(tmp_path / "set", tmp_path / "run")
    plan = medmamba.plan(tmp_path / "set", tmp_path / "run", patch_size=(8, 8, 8), batch_size=2, any_spacing=True)
    assert plan.default.spacing_mm == pytest.approx([1.5e-3, 1e-3, 1e-3])
    fold = make_fold(tmp_path / "run" / "models" / "3d_fullres" / "fold_0", plan, 0)
    result = Predictor(fold, device="cpu").predict(tmp_path / "set" / "imagesTr" / "m0.nii.gz")
    result.save(tmp_path / "mask.nii.gz")
    for name, array in zip(("imagesTr", "labelsTr"), volume(0, hole=False), strict=True):
        write(tmp_path / "set" / name / "m0.nii.gz", array)
    with pytest.raises(InputError, match=r"m0: spacing 1, 1, 1.5 mm, unlike the other cases"):
        medmamba.plan(tmp_path / "set", tmp_path / "run", any_spacing=True)


def test_much_more_work_than_for_training_is_said_before_it(tiny_run, tmp_path):
    path = write(tmp_path / "coarse.nii.gz", np.random.default_rng(0).normal(200, 60, (6, 7, 5)), np.diag([3, 3, 3, 1]))
    lines = []
    predictor = Predictor(tiny_run, folds=[0], device="cpu", mirror=False)
    predictor.predict(path, on_message=lines.append)
    assert "coarse.nii.gz: spacing far from that of training: " in lines[0]
    assert "times its voxels, needs about" in lines[0]
    assert int(lines[0].split()[-4]) > 1, lines[0]  # patches


def test_an_image_that_does_not_fit_into_memory_is_refused_before_resampling(tiny_run, tmp_path, monkeypatch):
    fine = np.random.default_rng(0).normal(200, 60, (16, 16, 16))
    write(tmp_path / "images" / "coarse.nii.gz", fine, np.diag([8, 8, 8, 1]))
    write(tmp_path / "images" / "usual.nii.gz", fine, np.diag([1, 1, 1, 1]))
    monkeypatch.setattr("medmamba.inference.predictor.free_memory", lambda: 16 << 20)
    report = pipeline.predict(tiny_run, tmp_path / "images", tmp_path / "masks", folds=[0], device="cpu", mirror=False)
    assert list(report.done) == ["usual"]
    assert "coarse.nii.gz: 512 times its voxels on the grid of the model, needs about" in report.failed["coarse"]
    assert "16 MiB of memory are free. Check the spacing of the image" in report.failed["coarse"]
