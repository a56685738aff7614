"""A converted model does what a run of ours does: DICOM in and out, reproduction, bundle, fine-tuning."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from segmentable_series import AXES, write_source_series
from their_folder import write_results

import medmamba
from medmamba.bundle.options import BundleCard
from medmamba.bundle.write import export_bundle
from medmamba.errors import ConfigError, InputError
from medmamba.inference.folder.run import reproduce
from medmamba.model_selection.run import find_best
from medmamba.models.run_folder import read_plan
from medmamba.nnunet.convert import convert_model
from medmamba.run_report.write import write_report
from medmamba.training.config import TrainConfig


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("theirs")
    return convert_model(write_results(folder), folder / "run").run


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four cases of two blocks in nnU-Net's raw layout; the second label has another name than the model's."""
    folder = tmp_path_factory.mktemp("data") / "Dataset007_Blocks"
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(4):
        labels = np.zeros((22, 20, 12), np.uint8)
        labels[4:12, 5:12, 3:8], labels[13:18, 5:12, 3:8] = 1, 2
        image = (rng.normal(5, 1, labels.shape) + 2 * labels).astype(np.float32)
        for array, path in ((image, f"imagesTr/c{number}_0000.nii.gz"), (labels, f"labelsTr/c{number}.nii.gz")):
            nib.save(nib.Nifti1Image(array, np.diag([1, 1, 2.0, 1])), folder / path)
    facts = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "first": 1, "other": 2}}
    (folder / "dataset.json").write_text(json.dumps({**facts, "numTraining": 4, "file_ending": ".nii.gz"}))
    return folder


def test_a_dicom_series_goes_in_and_a_segmentation_comes_out(converted: Path, tmp_path: Path) -> None:
    write_source_series(tmp_path / "series", AXES["axial"])
    report = medmamba.predict(converted, tmp_path / "series", tmp_path / "out", dicom_seg=True)
    assert report.failed == {}
    assert report.not_written == {}
    assert (tmp_path / "out" / "series.dcm").is_file()


def test_its_masks_are_reproduced(converted: Path, dataset: Path, tmp_path: Path) -> None:
    image = dataset / "imagesTr" / "c0_0000.nii.gz"
    report = medmamba.predict(converted, image, tmp_path / "out", mirror=False)
    assert report.failed == {}
    again = reproduce(tmp_path / "out" / "report.json", converted, image)
    assert len(again.same) == 1
    assert again.other == ()


def test_it_is_fine_tuned_on_a_plan_like_its_own(converted: Path, dataset: Path, tmp_path: Path) -> None:
    plan = medmamba.plan(dataset, tmp_path / "fine", like=converted, workers=1)
    theirs = read_plan(converted / "plan.json")
    for field in ("configurations", "axis_order", "normalization", "conventions", "reorient"):
        assert getattr(plan, field) == getattr(theirs, field)
    assert plan.labels == {"background": 0, "first": 1, "other": 2}
    config = TrainConfig(steps=1, steps_per_epoch=1, workers=0, warmup_steps=0)
    result = medmamba.train(tmp_path / "fine", fold=0, config=config, init=converted)
    report = json.loads((result.folder / "init.json").read_text())
    assert report["new"] == []
    assert report["unused"] == []
    assert set(report["adapted"].values()) == {"classes by name"}
    assert len(report["adapted"]) == 4  # weight and bias of two heads: the label "other" is new
    mask = medmamba.Predictor(tmp_path / "fine").predict(dataset / "imagesTr" / "c0_0000.nii.gz")
    assert mask.labels.shape == (22, 20, 12)
    with pytest.raises(ConfigError, match="its labels are not those of"):
        medmamba.Predictor([converted, tmp_path / "fine"])


def test_a_plan_like_another_takes_no_rule_and_needs_its_channels(
    converted: Path, dataset: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"--spacing with --like"):
        medmamba.plan(dataset, tmp_path / "run", like=converted, spacing=(1, 1, 1))
    document = json.loads((dataset / "dataset.json").read_text())
    other = tmp_path / "Dataset008_CT"
    other.mkdir()
    for name in ("imagesTr", "labelsTr"):
        (other / name).symlink_to(dataset / name)
    (other / "dataset.json").write_text(json.dumps(document | {"channel_names": {"0": "CT"}}))
    with pytest.raises(ConfigError, match="its channels are MRI, those of the dataset ct"):
        medmamba.plan(other, tmp_path / "run", like=converted, workers=1)
    with pytest.raises(InputError, match="not found"):
        medmamba.plan(dataset, tmp_path / "run", like=tmp_path / "missing", workers=1)
    assert not (tmp_path / "run" / "plan.json").exists()


def test_commands_that_need_cases_say_so_in_one_line(converted: Path) -> None:
    for command in (find_best, write_report, lambda run: medmamba.train(run, fold=0)):
        with pytest.raises(InputError, match=r"a converted model, without preprocessed cases.* --like ") as raised:
            command(converted)
        assert "\n" not in str(raised.value)


def test_with_the_cases_of_its_dataset_it_is_cross_validated_and_reported(
    converted: Path, dataset: Path, tmp_path: Path
) -> None:
    run, own = tmp_path / "run", tmp_path / "Dataset004_Test"
    shutil.copytree(converted, run)
    shutil.copytree(dataset, own)
    facts = json.loads((own / "dataset.json").read_text())
    facts["labels"] = {"background": 0, "first": 1, "second": 2}
    (own / "dataset.json").write_text(json.dumps(facts))
    folds = [{"train": ["c2", "c3"], "val": ["c0", "c1"]}, {"train": ["c0", "c1"], "val": ["c2", "c3"]}]
    (tmp_path / "splits_final.json").write_text(json.dumps(folds))
    before = (run / "plan.json").read_bytes()
    medmamba.plan(own, run, like=run, splits=tmp_path / "splits_final.json", workers=1)
    assert (run / "plan.json").read_bytes() == before
    assert json.loads((run / "splits.json").read_text()) == folds
    found = find_best(run, mirror=False)
    assert found.configurations == ["3d_fullres"]
    assert found.cases == 4
    scores = write_report(run).scores
    assert {score.case_id: score.fold for score in scores} == dict(c0="fold_0", c1="fold_0", c2="fold_1", c3="fold_1")
    predictor = medmamba.Predictor(run)
    assert predictor.model.recipe is not None
    with pytest.raises(ConfigError, match=r"its labels are .*'second': 2.*, those of the dataset .*'other': 2"):
        medmamba.plan(dataset, run, like=run, workers=1)
    (run / "splits.json").write_text(json.dumps([{"train": ["c9"], "val": ["c0", "c1"]}, folds[1]]))
    with pytest.raises(InputError, match="names 1 case that the dataset does not have, as c9"):
        medmamba.plan(own, run, like=run, workers=1, overwrite=True)


@pytest.mark.slow
def test_its_bundle_gives_the_same_masks(converted: Path, dataset: Path, tmp_path: Path) -> None:
    image = dataset / "imagesTr" / "c0_0000.nii.gz"
    card = BundleCard(licence="MIT", intended_use="none")
    made = export_bundle(converted, tmp_path / "bundle", card, image, graphs=("onnx",))
    assert [case.voxels for case in made.cases] == [22 * 20 * 12]
    assert {row.kind for row in made.graphs} == {"torchscript", "onnx"}
