"""What nnU-Net decided after training is used here: post-processing, ensembles, folds, facts of the training images."""

from __future__ import annotations

import json
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from their_folder import write_results

from medmamba import Predictor
from medmamba.errors import InputError
from medmamba.inference.quality import check_image
from medmamba.models.cleaning import CleaningStep, clean
from medmamba.models.prediction_setup import PredictionSetup, read_prediction_setup
from medmamba.models.run_folder import RunFolder
from medmamba.nnunet.convert import convert_model
from medmamba.nnunet.decisions import MODULE, STEP
from medmamba.plans.fingerprint import Fingerprint

FULL, LOW = "nnUNetTrainer__nnUNetPlans__3d_fullres", "nnUNetTrainer__nnUNetPlans__3d_other"


def write_postprocessing(folder: Path, *steps: Any, as_json: bool = False) -> Path:
    """postprocessing.pkl or .json and summary.json as nnU-Net writes them; ``steps`` are labels, regions or lists."""
    folder.mkdir(parents=True, exist_ok=True)
    arguments = [{"labels_or_regions": step} for step in steps]
    if as_json:
        stored = {"postprocessing_fns": [STEP] * len(steps), "postprocessing_kwargs": arguments, "mean": float("nan")}
        (folder / "postprocessing.json").write_text(json.dumps(stored))
    else:
        (folder / "postprocessing.pkl").write_bytes(pickle.dumps(([theirs()] * len(steps), arguments)))
    cases = [{"reference_file": f"/x/{name}.nii.gz"} for name in "abc"]
    summary = {"metric_per_case": cases, "foreground_mean": {"Dice": 0.75}}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def theirs() -> Any:
    """A function that is pickled by the name that nnU-Net's has."""

    def step() -> None: ...

    step.__module__, step.__qualname__, step.__name__ = MODULE, STEP, STEP
    module = sys.modules.setdefault(MODULE, types.ModuleType(MODULE))
    return module.__dict__.setdefault(STEP, step)


@pytest.fixture(autouse=True)
def _without_their_module(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nnunetv2", "nnunetv2.postprocessing"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, MODULE, types.ModuleType(MODULE))


@pytest.mark.parametrize("as_json", [False, True], ids=["pkl", "json"])
def test_post_processing_of_a_trained_configuration_is_used_by_every_prediction(as_json: bool, tmp_path: Path) -> None:
    home = write_results(tmp_path)
    write_postprocessing(home / "crossval_results_folds_0_1", [1, 2], 1, as_json=as_json)
    made = convert_model(home, tmp_path / "run")
    setup = read_prediction_setup(made.run)
    assert setup is not None
    assert setup.cleaning == [
        CleaningStep("first", "largest_component", with_labels=("second",)),
        CleaningStep("first", "largest_component"),
    ]
    assert (setup.configurations, setup.cases, setup.dice) == (["3d_fullres"], 3, {"3d_fullres": 0.75})
    assert (setup.mirror, setup.temperature, setup.limits) == (True, 1.0, None)
    assert "first + second: largest component" in made.notes
    predictor = Predictor(made.run)
    assert predictor.model.recipe == setup
    image = np.random.default_rng(3).normal(size=(24, 24, 12)).astype(np.float32)
    (made.run / "best.json").unlink()
    before = Predictor(made.run).predict(image).labels
    after = predictor.predict(image).labels
    wanted = clean(before, setup.cleaning, ["first", "second"], None)
    assert not np.array_equal(before, after)
    np.testing.assert_array_equal(after, wanted)


def test_labels_that_count_as_one_are_cleaned_together_and_equal_components_stay() -> None:
    labels = np.zeros((9, 9, 9), np.uint8)
    labels[0:2, 0:2, 0:2], labels[2:4, 2:4, 2:4] = 1, 2  # touch at a corner: 16 voxels together
    labels[6:8, 6:8, 6:8] = 2
    together = CleaningStep("a", "largest_component", with_labels=("b",))
    cleaned = clean(labels, [together], ["a", "b"], 1.0)
    np.testing.assert_array_equal(cleaned, np.where(np.indices(labels.shape)[0] < 5, labels, 0))
    alone = clean(labels, [CleaningStep("b", "largest_component")], ["a", "b"], 1.0)
    np.testing.assert_array_equal(alone, labels)  # both components of b have 8 voxels


def test_a_step_without_further_labels_is_stored_as_before() -> None:
    setup = PredictionSetup(
        plan_sha256="0" * 64, configurations=["2d"], folds={}, dice={}, cases=1,
        cleaning=[CleaningStep("a", "remove_small", 5.0, 0.1)],
    )  # fmt: skip
    step = json.loads(setup.to_json())["cleaning"][0]
    assert step == {"label": "a", "action": "remove_small", "smallest_voxels_mm3": 5.0, "gain": 0.1}
    assert PredictionSetup.from_json(setup.to_json()) == setup


def choose(home: Path, *names: str, folds: tuple[int, ...] = (0, 1)) -> None:
    """inference_information.json with these models as the best."""
    best = [dict(zip(("trainer", "plans_identifier", "configuration"), n.split("__"), strict=True)) for n in names]
    dice = {FULL: 0.7, f"ensemble___{FULL}___{LOW}___0_1": 0.8, "Other__nnUNetPlans__2d": 0.6}
    stored = {
        "folds": folds,
        "all_results": dice,
        "best_model_or_ensemble": {"selected_model_or_models": best, "postprocessing_file": "/elsewhere/x.pkl"},
    }
    (home / "inference_information.json").write_text(json.dumps(stored))


def test_the_ensemble_that_nnunet_chose_predicts_with_its_post_processing(tmp_path: Path) -> None:
    write_results(tmp_path)
    home = write_results(tmp_path, configuration="3d_other").parent
    choose(home, FULL, LOW)
    write_postprocessing(home / "ensembles" / f"ensemble___{FULL}___{LOW}___0_1", 1)
    write_postprocessing(home / FULL / "crossval_results_folds_0_1", 2)  # not of what was chosen
    made = convert_model(home, tmp_path / "run")
    setup = read_prediction_setup(made.run)
    assert setup is not None
    assert setup.configurations == ["3d_fullres", "3d_other"]
    assert setup.dice == {"3d_fullres": 0.7, "3d_fullres+3d_other": 0.8, "Other__nnUNetPlans__2d": 0.6}
    assert setup.cleaning == [CleaningStep("first", "largest_component")]
    predictor = Predictor(made.run)
    assert [ensemble.name for ensemble in predictor.model.ensembles] == ["3d_fullres", "3d_other"]
    assert predictor.model.recipe == setup


def test_a_choice_of_models_that_are_not_converted_is_reported(tmp_path: Path) -> None:
    home = write_results(tmp_path, folds=("fold_0",))
    choose(home.parent, FULL, "nnUNetTrainer__Other__2d")
    made = convert_model(home, tmp_path / "run")
    assert read_prediction_setup(made.run) is None
    assert any("Other__2d is not converted here" in note for note in made.notes)
    choose(home.parent, FULL)
    made = convert_model(home, tmp_path / "second")
    assert "3d_fullres: fold 1 of nnU-Net's choice is not here" in made.notes
    assert any(note.startswith("no post-processing: crossval_results_folds_0_1") for note in made.notes)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: (p / "postprocessing.pkl").write_bytes(b"\x80\x04cos\nsystem\n."), "postprocessing.pkl: wants os"),
        (lambda p: (p / "postprocessing.pkl").write_bytes(pickle.dumps(([], []))[:-3]), "postprocessing.pkl: "),
        (lambda p: (p / "postprocessing.pkl").write_bytes(pickle.dumps(3)), "no post-processing of nnU-Net"),
        (lambda p: write_postprocessing(p, 0), "is not known here"),
        (lambda p: (p.parent.parent / "inference_information.json").write_text("{"), "not valid JSON"),
        (lambda p: (p.parent.parent / "inference_information.json").write_text("{}"), "no choice of nnU-Net"),
        (lambda p: (p.parent / "dataset_fingerprint.json").write_text('{"spacings": 3}'), "no fingerprint of nnU-Net"),
    ],
)
def test_decisions_that_cannot_be_read_are_one_line_and_leave_nothing(spoil: Any, message: str, tmp_path: Path) -> None:
    home = write_results(tmp_path, folds=("fold_0",))
    spoil(write_postprocessing(home / "crossval_results_folds_0", 1))
    with pytest.raises(InputError, match=message) as raised:
        convert_model(home, tmp_path / "run")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def write_validation(home: Path, *folds: str) -> None:
    for number, names in enumerate(folds):
        folder = home / f"fold_{number}" / "validation"
        folder.mkdir()
        cases = [{"reference_file": f"/raw/{name}.nii.gz", "metrics": {"1": {"Dice": float("nan")}}} for name in names]
        (folder / "summary.json").write_text(json.dumps({"metric_per_case": cases}))


def test_folds_are_known_where_every_case_was_validated(tmp_path: Path) -> None:
    home = write_results(tmp_path)
    write_validation(home, "abc", "de")
    made = convert_model(home, tmp_path / "run")
    assert RunFolder(made.run).read_splits() == [
        {"train": ["d", "e"], "val": ["a", "b", "c"]},
        {"train": ["a", "b", "c"], "val": ["d", "e"]},
    ]
    description = json.loads((home / "dataset.json").read_text())
    (home / "dataset.json").write_text(json.dumps(description | {"numTraining": 9}))
    assert not (convert_model(home, tmp_path / "other").run / "splits.json").exists()


def test_images_are_compared_with_what_nnunet_stored_about_its_own(tmp_path: Path) -> None:
    home = write_results(tmp_path, folds=("fold_0",))
    facts = {"mean": 5.0, "median": 5.0, "std": 1.0, "min": 0.0, "max": 9.0}
    facts |= {"percentile_00_5": 3.0, "percentile_99_5": 8.0}
    stored = {
        "spacings": [[3.0, 1.0, 1.0], [4.0, 0.9, 0.9]],
        "shapes_after_crop": [[10, 20, 30], [12, 20, 30]],
        "foreground_intensity_properties_per_channel": {"0": facts},
        "median_relative_size_after_cropping": 1.0,
    }
    (home / "dataset_fingerprint.json").write_text(json.dumps(stored))
    made = convert_model(home, tmp_path / "run")
    fingerprint = Fingerprint.read(made.run / "models/3d_fullres/fold_0/fingerprint.json")
    assert not fingerprint.knows_axes
    assert fingerprint.cases[0].spacing_mm == (1.0, 1.0, 3.0)
    predictor = Predictor(made.run)
    image = np.random.default_rng(0).normal(5, 1, (16, 12, 30)).astype(np.float32)
    usual = predictor.predict((image, np.diag([3.5, 1.0, 1.0, 1.0])))  # the coarse axis is another
    assert [finding.text for finding in usual.findings if "spacing" in finding.text] == []
    coarse = predictor.predict((image, np.diag([1.0, 2.5, 2.5, 1.0])))
    assert "middle spacing is 2.5 mm, training 0.9 to 1 mm" in [finding.text for finding in coarse.findings]
    other = predictor.predict((image + 100, np.eye(4)))
    assert any("intensities of MRI are" in finding.text for finding in other.findings)
    assert check_image(other.like, fingerprint)
