"""Several models answer together: the mean of their probabilities, each made by its own plan."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from their_folder import write_results
from tiny_models import make_fold

import medmamba
from medmamba import Predictor
from medmamba.cli.main import run as command
from medmamba.dicom.segmentation import _labels_beside as labels_beside
from medmamba.disk.atomic import write_json, write_text
from medmamba.errors import ConfigError, InputError
from medmamba.evaluation.run import run_evaluation
from medmamba.inference.folder.average import average_folders
from medmamba.inference.folder.run import reproduce
from medmamba.models.cleaning import CleaningStep
from medmamba.models.prediction_setup import PredictionSetup
from medmamba.nnunet.convert import convert_model
from medmamba.plans.schema import Plan


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of nnU-Net's: axes as they are stored, spacing 2 x 1 x 1."""
    folder = tmp_path_factory.mktemp("theirs")
    return convert_model(write_results(folder, folds=("fold_0",)), folder / "run").run


def made(folder: Path, theirs: Path, **changes: object) -> Path:
    """A run of ours on the same labels: canonical axes in another order, 1.2 mm, labels in another order."""
    document = json.loads((theirs / "plan.json").read_text()) | {
        "conventions": "medmamba",
        "axis_order": [0, 1, 2],
        "labels": {"background": 0, "second": 2, "first": 1},
    }
    document["configurations"]["3d_fullres"] |= {"spacing_mm": [1.2, 1.2, 1.2], "patch_size": [16, 16, 8]}
    plan = Plan.from_json(json.dumps(document | changes))
    write_text(folder / "plan.json", plan.to_json())
    make_fold(folder / "models" / "3d_fullres" / "fold_0", plan, 0)
    return folder


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory, theirs: Path) -> Path:
    return made(tmp_path_factory.mktemp("ours") / "run", theirs)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(1).normal(100, 20, (18, 20, 11)).astype(np.float32)
    affine = np.array([[0, 1.0, 0, 3], [-1.1, 0, 0, 7], [0, 0, 2.1, -4], [0, 0, 0, 1]])  # neither canonical nor axial
    (tmp_path / "images").mkdir()
    nib.save(nib.Nifti1Image(pixels, affine), tmp_path / "images" / "a.nii.gz")
    return tmp_path / "images"


@pytest.mark.parametrize("turned", [False, True], ids=["theirs first", "ours first"])
def test_probabilities_are_the_mean_of_both_on_the_images_own_grid(
    turned: bool, theirs: Path, ours: Path, images: Path
) -> None:
    models = [ours, theirs] if turned else [theirs, ours]
    image = images / "a.nii.gz"
    single = {model: Predictor(model).predict(image, probabilities=True).probabilities for model in models}
    single[ours] = single[ours][[0, 2, 1]]  # to the order background, first, second
    mean = (single[theirs] + single[ours]) / 2
    found = Predictor(models).predict(image, probabilities=True)
    np.testing.assert_allclose(found.probabilities, mean[[0, 2, 1]] if turned else mean, atol=1e-6)
    np.testing.assert_array_equal(found.labels, mean.argmax(0))
    assert not np.array_equal(found.labels, single[theirs].argmax(0))
    assert found.labels.shape == (18, 20, 11)


def test_the_command_averages_models_and_its_report_reproduces_them(
    theirs: Path, ours: Path, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command_line = ["predict", str(theirs), str(ours), str(images), "-o", str(out), "--probabilities"]
    with pytest.raises(SystemExit) as ended:
        command(command_line)
    assert ended.value.code == 0
    report = json.loads((out / "report.json").read_text())
    model = report["model"]
    first, second = (json.loads(json.dumps(Predictor(one).provenance().as_dict())) for one in (theirs, ours))
    assert {key: model[key] for key in first} == first
    assert model["others"] == [second]
    again = medmamba.predict([theirs, ours], images, tmp_path / "again")
    assert again.done["a"].mask_sha256 == report["cases"]["a"]["mask_sha256"]
    assert reproduce(out / "report.json", [theirs, ours], images).same == ("a",)
    with pytest.raises(ConfigError, match="made by 2 models, not 1"):
        reproduce(out / "report.json", theirs, images)
    with pytest.raises(ConfigError, match="its plan is not that of"):
        reproduce(out / "report.json", [ours, theirs], images)


def test_worker_processes_average_models_too(theirs: Path, ours: Path, images: Path, tmp_path: Path) -> None:
    alone = medmamba.predict([theirs, ours], images, tmp_path / "a").done["a"]
    among = medmamba.predict([theirs, ours], images, tmp_path / "b", workers=1).done["a"]
    assert among.mask_sha256 == alone.mask_sha256


def test_what_was_chosen_for_one_model_alone_is_not_used_and_said(theirs: Path, images: Path, tmp_path: Path) -> None:
    one, other = made(tmp_path / "one", theirs), made(tmp_path / "other", theirs, dataset_name="another")
    before = Predictor([one, other]).predict(images / "a.nii.gz")
    plan = Plan.read(one / "plan.json")
    step = CleaningStep("first", "largest_component")
    setup = PredictionSetup(
        plan_sha256=plan.hash(), configurations=["3d_fullres"], folds={"3d_fullres": ["fold_0"]}, dice={}, cases=1,
        cleaning=[step], mirror=True,
    )  # fmt: skip
    write_text(one / "best.json", setup.sealed_json())
    predictor = Predictor([one, other])
    assert predictor.provenance().warnings == (f"thresholds and post-processing chosen for {one} alone are not used",)
    np.testing.assert_array_equal(predictor.predict(images / "a.nii.gz").labels, before.labels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"labels": {"background": 0, "first": 1, "third": 2}},
            "its labels are not those of .*: background = 0, first",
        ),
        ({"channel_names": ["CT"]}, "its channels are not those of .*: CT, not MRI"),
    ],
)
def test_models_of_other_labels_or_channels_are_refused(
    changes: dict[str, object], message: str, theirs: Path, tmp_path: Path
) -> None:
    other = made(tmp_path / "other", theirs, **changes)
    with pytest.raises(ConfigError, match=message) as raised:
        Predictor([theirs, other])
    assert "\n" not in str(raised.value)


def test_a_model_that_is_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(InputError, match="loop") as raised:
        Predictor(tmp_path / "loop")
    assert "\n" not in str(raised.value)


def test_a_model_is_named_once(theirs: Path) -> None:
    with pytest.raises(InputError, match="named twice"):
        Predictor([theirs, theirs])
    with pytest.raises(InputError, match="No model is named"):
        Predictor([])


def predicted(model: Path, images: Path, folder: Path) -> Path:
    """A folder with stored probabilities."""
    medmamba.predict(model, images, folder, probabilities=True)
    return folder


def test_stored_probabilities_of_folders_are_averaged_as_the_models_are(
    theirs: Path, ours: Path, images: Path, tmp_path: Path
) -> None:
    folders = [predicted(theirs, images, tmp_path / "a"), predicted(ours, images, tmp_path / "b")]
    with pytest.raises(SystemExit) as ended:
        command(["ensemble", *map(str, folders), "-o", str(tmp_path / "mean"), "--probabilities"])
    assert ended.value.code == 0
    together = medmamba.predict([theirs, ours], images, tmp_path / "together", probabilities=True)
    assert together.failed == {}
    for name, tolerance in (("a.nii.gz", 0), ("a_probabilities.nii.gz", 1e-6)):
        mean, wanted = (nib.load(tmp_path / folder / name) for folder in ("mean", "together"))
        np.testing.assert_allclose(mean.get_fdata(), wanted.get_fdata(), atol=tolerance)
        np.testing.assert_array_equal(mean.affine, wanted.affine)
    report = json.loads((tmp_path / "mean" / "report.json").read_text())
    assert [one["plan_sha256"] for one in report["averaged"]] == [
        Predictor(model).provenance().plan_sha256 for model in (theirs, ours)
    ]


def test_averaged_masks_are_evaluated_averaged_and_exported_as_predicted_ones(
    theirs: Path, ours: Path, images: Path, tmp_path: Path
) -> None:
    folders = [predicted(theirs, images, tmp_path / "a"), predicted(ours, images, tmp_path / "b")]
    average_folders(folders, mean := tmp_path / "mean", probabilities=True)
    result = run_evaluation(mean, tmp_path / "a", output=tmp_path / "scores")
    assert list(result.evaluation.structures) == ["first", "second"]
    assert labels_beside(mean / "a.nii.gz") == {"background": 0, "first": 1, "second": 2}
    assert average_folders([mean, folders[0]], tmp_path / "again") == ["a"]
    with pytest.raises(ConfigError, match=r"mean/report\.json: no prediction report of this version: .*input_sha256"):
        reproduce(mean / "report.json", [theirs, ours], images)


def test_probabilities_of_images_with_odd_spacings_are_averaged(theirs: Path, images: Path, tmp_path: Path) -> None:
    stored = nib.load(images / "a.nii.gz")
    stored.header.set_zooms((200.0, 200.0, 200.0))
    nib.save(nib.Nifti1Image(stored.get_fdata(), np.diag([200.0, 200.0, 200.0, 1])), images / "a.nii.gz")
    part = json.loads((theirs / "plan.json").read_text())["configurations"]["3d_fullres"]
    part |= {"spacing_mm": [200.0, 200.0, 200.0], "patch_size": [16, 16, 8]}
    run = made(tmp_path / "run", theirs, reading={"any_spacing": True}, configurations={"3d_fullres": part})
    folders = [predicted(run, images, tmp_path / name) for name in ("a", "b")]
    assert average_folders(folders, tmp_path / "mean") == ["a"]


def test_probabilities_of_an_earlier_prediction_are_not_averaged(
    theirs: Path, ours: Path, images: Path, tmp_path: Path
) -> None:
    """A copy has no hidden record, so --overwrite is needed, and leaves the probabilities that it does not write."""
    first, second = predicted(theirs, images, tmp_path / "a"), predicted(theirs, images, tmp_path / "b")
    for record in second.glob(".medmamba-*"):
        record.unlink()
    medmamba.predict(ours, images, second, overwrite=True)
    assert (second / "a_probabilities.nii.gz").is_file()
    with pytest.raises(
        InputError, match=r"b/a_probabilities\.nii\.gz: not the probabilities of the mask in report\.json"
    ):
        average_folders([first, second], tmp_path / "mean")


def test_names_that_look_like_patterns_are_names(theirs: Path, images: Path, tmp_path: Path) -> None:
    named = tmp_path / "named"
    named.mkdir()
    (named / "a[1].nii.gz").symlink_to(images / "a.nii.gz")
    folders = [predicted(theirs, named, tmp_path / name) for name in ("a", "b")]
    assert average_folders(folders, tmp_path / "mean") == ["a[1]"]


def test_folders_that_do_not_fit_together_are_refused_with_nothing_written(
    theirs: Path, ours: Path, images: Path, tmp_path: Path
) -> None:
    first, second = predicted(theirs, images, tmp_path / "a"), predicted(ours, images, tmp_path / "b")
    out = tmp_path / "out"

    def refused(message: str, *folders: Path) -> None:
        with pytest.raises(InputError, match=message) as raised:
            average_folders(folders, out)
        assert "\n" not in str(raised.value)
        assert not list(out.glob("*.nii.gz"))

    refused("one folder is no ensemble", first)
    (tmp_path / "link").symlink_to(first)
    refused(r"link: named twice\. Name each folder once\.", first, tmp_path / "link")
    refused("report.json: cannot be read", first, tmp_path)
    report = second / "report.json"
    document = json.loads(report.read_text())
    write_json(report, {**document, "model": {**document["model"], "labels": {"background": 0, "other": 1}}})
    refused("its labels are not those of", first, second)
    write_json(report, {**document, "cases": {"b": document["cases"]["a"]}})
    refused("a is not among its cases", first, second)
    write_json(report, document)
    (second / "a_probabilities.nii.gz").rename(tmp_path / "kept.nii.gz")
    refused("no probabilities of a", first, second)
    kept = nib.load(tmp_path / "kept.nii.gz")
    nib.save(
        nib.Nifti1Image(kept.get_fdata()[:, 1:].astype(np.float32), kept.affine), second / "a_probabilities.nii.gz"
    )
    refused(r"a_probabilities\.nii\.gz: not the probabilities of the mask in report\.json, but older or", first, second)
    del document["cases"]["a"]["probabilities_sha256"]  # as in a report of an earlier version
    write_json(report, document)
    refused("is 3x18x19x11, where 3x18x20x11 is expected", first, second)
    nib.save(nib.Nifti1Image(kept.get_fdata().astype(np.float32), np.eye(4)), second / "a_probabilities.nii.gz")
    refused("differ in orientation: RAS and PRS", first, second)
