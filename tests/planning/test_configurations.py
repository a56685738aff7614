"""`medmamba plan --configurations`: each one named is planned and stored and can be trained, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

import medmamba
from medmamba.errors import ConfigError, InputError
from medmamba.models.run_folder import RunFolder
from medmamba.preprocessing.store import stored_cases
from medmamba.training.config import TrainConfig


@pytest.fixture(scope="module")
def large_images(tmp_path_factory) -> Path:
    """Two cases so large that a small memory sees under a quarter of them."""
    folder, rng = tmp_path_factory.mktemp("large"), np.random.default_rng(0)
    (folder / "imagesTr").mkdir()
    (folder / "labelsTr").mkdir()
    for name in ("a", "b"):
        truth = np.zeros((96, 96, 96), np.uint8)
        truth[30:60, 30:60, 30:60] = 1
        image = (rng.normal(100, 10, truth.shape) + 40 * truth).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), folder / "imagesTr" / f"{name}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(truth, np.eye(4)), folder / "labelsTr" / f"{name}.nii.gz")
    (folder / "dataset.json").write_text(
        json.dumps(
            {
                "name": "large",
                "modality": {"0": "MR"},
                "labels": {"0": "background", "1": "cube"},
                "numTraining": 2,
                "training": [{"image": f"imagesTr/{n}.nii.gz", "label": f"labelsTr/{n}.nii.gz"} for n in "ab"],
            }
        )
    )
    return folder


def stored(run: Path) -> dict[str, list[str]]:
    return {path.name: list(stored_cases(path)) for path in sorted(RunFolder(run).preprocessed_path.iterdir())}


def test_only_the_default_configuration_is_stored_unless_others_are_named(small_run):
    assert list(stored(small_run)) == ["3d_fullres"]
    assert set(RunFolder(small_run).read_plan().configurations) == {"2d", "3d_fullres"}


def test_each_named_configuration_is_stored_and_trains(small_dataset, tmp_path):
    run = tmp_path / "run"
    made = medmamba.plan(small_dataset, run, configurations=["2d", "3d_fullres"])
    assert list(made.configurations) == ["2d", "3d_fullres"]
    two = stored(run)
    assert list(two) == ["2d", "3d_fullres"]
    assert two["2d"] == two["3d_fullres"]
    for name in two:
        config = TrainConfig(steps=1, batch_size=2, workers=0, validation_cases=1, device="cpu")
        assert medmamba.train(run, configuration=name, config=config).steps == 1


def test_one_named_configuration_is_the_default(small_dataset, tmp_path):
    made = medmamba.plan(small_dataset, tmp_path / "run", configurations=["2d"])
    assert made.default_configuration == "2d"
    assert list(stored(tmp_path / "run")) == ["2d"]


def test_all_stores_the_low_resolution_and_its_cascade(large_images, tmp_path):
    made = medmamba.plan(large_images, tmp_path / "run", device_memory_gb=0.25, configurations=["all"])
    names = ["2d", "3d_cascade_fullres", "3d_fullres", "3d_lowres"]
    assert sorted(made.configurations) == list(stored(tmp_path / "run")) == names
    readers = {name: stored_cases(RunFolder(tmp_path / "run").preprocessed(name))["a"] for name in names}
    assert readers["3d_cascade_fullres"].shape == readers["3d_fullres"].shape == (96, 96, 96)
    assert max(readers["3d_lowres"].shape) < 96
    assert readers["2d"].shape == (96, 96, 96)


def test_planning_anew_leaves_no_cases_of_the_plan_before(small_dataset, tmp_path):
    run = tmp_path / "run"
    medmamba.plan(small_dataset, run)
    medmamba.plan(small_dataset, run, configurations=["2d"])
    assert list(stored(run)) == ["2d"]


def test_a_configuration_that_does_not_apply_is_refused_before_anything_is_written(small_dataset, tmp_path):
    with pytest.raises(ConfigError, match=r"configurations 3d_lowres: the 3D patch covers enough .* Ask for 3d_full"):
        medmamba.plan(small_dataset, tmp_path / "run", configurations=["3d_lowres"])
    with pytest.raises(ConfigError, match=r"Unknown configuration .3d_fulres.\. Did you mean .3d_fullres."):
        medmamba.plan(small_dataset, tmp_path / "run", configurations=["3d_fulres"])
    assert not (tmp_path / "run").exists()


def test_training_what_was_not_stored_says_how_to_store_it(small_run):
    with pytest.raises(InputError, match=r"not preprocessed.*medmamba plan DATASET -o .* --configurations 2d"):
        medmamba.train(small_run, configuration="2d")
