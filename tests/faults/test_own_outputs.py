"""Output folders that hold somebody's own files: no command replaces or removes them unless it is told to."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from tiny_models import make_fold, write_noise

import medmamba
from medmamba.bundle.options import BundleCard
from medmamba.bundle.write import export_bundle
from medmamba.disk.own_files import RECORD
from medmamba.errors import InputError, PartialError, ResourceError
from medmamba.evaluation.run import run_evaluation
from medmamba.inference.folder.run import predict
from medmamba.models.run_folder import RunFolder
from medmamba.networks.published.weights import convert_weights
from medmamba.plans.decided import changed_decisions
from medmamba.run_report.write import write_report

FOREIGN = "not written by medmamba, or changed since"
QUICK = {"folds": [0], "mirror": False}


@pytest.fixture
def images(tmp_path) -> Path:
    """Two images, of which the second is cut off."""
    folder = write_noise(tmp_path / "images", 2, (20, 24, 20))
    whole = (folder / "patient_1.nii.gz").read_bytes()
    (folder / "patient_1.nii.gz").write_bytes(whole[: len(whole) // 2])
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")  # with the record of files
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def run_predict(model, images, out, **options):
    report = predict(model, images, out, **QUICK, **options)
    with pytest.raises(PartialError, match="patient_1"):
        report.raise_failures()


RECORD_OF_FIRST = f"reports/{hashlib.sha256(b'patient_0').hexdigest()[:16]}.json"


@pytest.mark.parametrize("name", ["patient_0.nii.gz", "patient_1.nii.gz", "report.json", RECORD_OF_FIRST])
def test_predict_replaces_no_file_that_is_not_its_own(tiny_run, images, tmp_path, name):
    out = tmp_path / "labelsTs"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_bytes(b"an expert's")
    before = contents(out)
    with pytest.raises(InputError, match=rf"labelsTs/{name}: {FOREIGN}\. Give another output folder, or use --overw"):
        predict(tiny_run, images, out, **QUICK)
    assert contents(out) == before
    assert [path.name for path in out.iterdir()] == [name.split("/")[0]]
    run_predict(tiny_run, images, out, overwrite=True)
    assert json.loads((out / "report.json").read_text())["summary"]["done"] == 1
    assert not (out / "patient_1.nii.gz").exists()


def test_files_of_a_failed_case_that_are_not_asked_for_stay(tiny_run, images, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "patient_1.dcm").write_bytes(b"an expert's own DICOM SEG")
    run_predict(tiny_run, images, out)
    run_predict(tiny_run, images, out, overwrite=True)
    assert (out / "patient_1.dcm").read_bytes() == b"an expert's own DICOM SEG"


def test_a_mask_corrected_by_hand_is_the_users_and_others_are_renewed(tiny_run, images, tmp_path):
    out = tmp_path / "out"
    run_predict(tiny_run, images, out)
    run_predict(tiny_run, images, out)
    mask = out / "patient_0.nii.gz"
    corrected = np.ones((20, 24, 20), np.uint8)
    nib.save(nib.Nifti1Image(corrected, np.eye(4)), mask)
    for resume in (False, True):
        with pytest.raises(InputError, match=rf"patient_0\.nii\.gz: {FOREIGN}"):
            predict(tiny_run, images, out, resume=resume, **QUICK)
    assert (nib.load(mask).get_fdata() == 1).all()


def test_outputs_of_an_earlier_version_are_proved_by_its_reports(tiny_run, images, tmp_path):
    out = tmp_path / "out"
    run_predict(tiny_run, images, out)
    (record,) = out.glob(f"{RECORD}*")
    record.unlink()  # none was kept then
    run_predict(tiny_run, images, out)
    next(out.glob(f"{RECORD}*")).unlink()
    (out / "patient_0.nii.gz").write_bytes(b"corrected")
    with pytest.raises(InputError, match=rf"patient_0\.nii\.gz: {FOREIGN}"):
        predict(tiny_run, images, out, **QUICK)


def test_an_output_inside_the_input_is_refused(tiny_run, images, tmp_path):
    with pytest.raises(InputError, match="output and input are the same folder"):
        predict(tiny_run, images, images, **QUICK)
    (tmp_path / "dataset.json").write_text("{}")
    (tmp_path / "labelsTr").mkdir()
    with pytest.raises(InputError, match=r"labelsTr: a folder of the dataset"):
        predict(tiny_run, images, tmp_path / "labelsTr", **QUICK)
    assert list((tmp_path / "labelsTr").iterdir()) == []


@pytest.mark.parametrize("name", ["evaluation.json", "evaluation.csv", "evaluation.html", "lesions.csv"])
def test_evaluate_replaces_no_file_that_is_not_its_own(tmp_path, name):
    for folder in ("masks", "truths"):
        (tmp_path / folder).mkdir()
        nib.save(nib.Nifti1Image(np.eye(6, dtype=np.uint8)[None].repeat(5, 0), np.eye(4)), tmp_path / folder / "a.nii")
    out = tmp_path / "out"
    for _ in range(2):
        run_evaluation(tmp_path / "masks", tmp_path / "truths", output=out, pictures=0)
    (out / name).write_text("edited")
    with pytest.raises(InputError, match=f"{name}: {FOREIGN}"):
        run_evaluation(tmp_path / "masks", tmp_path / "truths", output=out, pictures=0)
    assert (out / name).read_text() == "edited"
    run_evaluation(tmp_path / "masks", tmp_path / "truths", output=out, pictures=0, overwrite=True)
    assert (out / name).read_text() != "edited"


@pytest.fixture(scope="module")
def planned(small_run, tmp_path_factory) -> Path:
    """A planned run with one fold that predicts."""
    run = tmp_path_factory.mktemp("own") / "run"
    shutil.copytree(small_run, run, ignore=shutil.ignore_patterns("models", "report", ".lock"))
    make_fold(run / "models" / "3d_fullres" / "fold_0", RunFolder(run).read_plan(), 0)
    return run


@pytest.mark.parametrize("name", ["index.html", "cross_validation.json"])
def test_report_replaces_no_page_that_is_not_its_own(planned, tmp_path, name):
    run = Path(shutil.copytree(planned, tmp_path / "run"))
    RunFolder(run).own_files()
    (run / "report").mkdir()
    (run / "report" / name).write_text("mine")
    with pytest.raises(InputError, match=f"report/{name}: {FOREIGN}"):
        write_report(run, device="cpu", cases=1)
    assert (run / "report" / name).read_text() == "mine"


def test_train_replaces_no_page_that_is_not_its_own(planned, tmp_path):
    run = Path(shutil.copytree(planned, tmp_path / "run"))
    RunFolder(run).own_files()
    (run / "report").mkdir()
    (run / "report" / "training.html").write_text("mine")
    with pytest.raises(InputError, match=rf"training\.html: {FOREIGN}\. Remove or rename it\."):
        medmamba.train(run, fold=1, steps=1)
    assert not (run / "models" / "3d_fullres" / "fold_1").exists()


@pytest.mark.parametrize("name", ["splits.json", "fingerprint.json", "report/dataset.html"])
def test_plan_replaces_no_file_that_was_changed_by_hand(planned, small_dataset, tmp_path, name):
    run = Path(shutil.copytree(planned, tmp_path / "run"))
    (run / "report").mkdir()
    (run / "report" / "dataset.html").write_text("page")
    for record in run.glob(f"{RECORD}*"):
        record.unlink()
    RunFolder(run).own_files()  # those of an earlier version are ours as they are
    (run / name).write_text("edited")
    with pytest.raises(InputError, match=f"{name}: {FOREIGN}"):
        medmamba.plan(small_dataset, run)
    assert (run / name).read_text() == "edited"


@pytest.mark.parametrize("plan", ["other batch", "other folds", "other configuration"])
def test_plan_keeps_a_run_whose_folds_it_would_make_useless(small_dataset, planned, tmp_path, plan, monkeypatch):
    run = Path(shutil.copytree(planned, tmp_path / "run"))
    ids = sorted(case for fold in RunFolder(run).read_splits() for case in fold["val"])
    (tmp_path / "splits.json").write_text(json.dumps([{"train": ids[1:], "val": ids[:1]}]))
    options, lost = {
        "other batch": ({"batch_size": 3}, r"the plan changes \(.*batch"),
        "other folds": ({"splits": tmp_path / "splits.json"}, "the folds change"),
        "other configuration": ({}, "the preprocessed cases of 3d_fullres are removed"),
    }[plan]
    before = contents(run)
    given = {"patch_size": (16, 24, 16), "batch_size": 2} | options
    with monkeypatch.context() as patch:
        if plan == "other configuration":
            patch.setattr("medmamba.planning.run._Measured.to_store", lambda self, plan: ["2d"])
        with pytest.raises(InputError, match=rf"{lost}.*no longer be resumed or compared \(3d_fullres/fold_0\)"):
            medmamba.plan(small_dataset, run, **given)
    assert contents(run) == before
    medmamba.plan(small_dataset, run, **given, overwrite=True)
    assert (run / "models" / "3d_fullres" / "fold_0" / "checkpoints" / "last").is_dir()


def test_plan_of_an_earlier_version_with_the_same_decisions_is_planned_again(small_dataset, planned, tmp_path):
    run = Path(shutil.copytree(planned, tmp_path / "run"))
    old = json.loads((run / "plan.json").read_text())
    old |= {"medmamba_version": "0.0.1", "fingerprint_hash": "f" * 64}
    del old["reading"]  # such a plan had none
    for decision in old["decisions"]:
        decision["reason"] = "Written in other words."
    (run / "plan.json").write_text(json.dumps(old))
    made = medmamba.plan(small_dataset, run, patch_size=(16, 24, 16), batch_size=2)
    assert made.medmamba_version != "0.0.1"
    assert changed_decisions(made, RunFolder(run).read_plan(), "3d_fullres") == []
    (run / "plan.json").unlink()
    medmamba.plan(small_dataset, run, patch_size=(16, 24, 16), batch_size=2)  # compared with the plan of the fold
    with pytest.raises(InputError, match=r"3d_fullres\.batch_size: 2 then, 3 now"):
        medmamba.plan(small_dataset, run, patch_size=(16, 24, 16), batch_size=3)


def test_converted_weights_replace_no_file(tmp_path):
    (tmp_path / "weights.safetensors").write_text("mine")
    with pytest.raises(InputError, match=r"weights\.safetensors: exists already"):
        convert_weights(tmp_path / "absent.pth", tmp_path / "weights.safetensors", family="vm_unet")


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_is_never_replaced_by_a_mask(tiny_run, images, tmp_path, overwrite):
    inside = tmp_path / "out" / "patient_0.nii.gz" / "mine.txt"
    inside.parent.mkdir(parents=True)
    inside.write_text("mine")
    with pytest.raises(InputError, match=r"patient_0\.nii\.gz: a folder, and a file of that name.*Remove or rename it"):
        predict(tiny_run, images, tmp_path / "out", overwrite=overwrite, **QUICK)
    assert inside.read_text() == "mine"


def test_a_file_where_the_records_belong_is_seen_before_the_first_case(tiny_run, images, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "reports").write_text("mine")
    with pytest.raises(ResourceError, match=r"out/reports: a file is where a folder is needed\. Remove that file or"):
        predict(tiny_run, images, tmp_path / "out", **QUICK)
    assert contents(tmp_path / "out") == {"reports": b"mine"}


def test_a_lock_of_another_program_is_left_alone(tiny_run, images, tmp_path):
    (tmp_path / ".lock").write_text("packages = []")
    with pytest.raises(InputError, match=r"\.lock: not a lock of medmamba\. Remove or rename it, or choose another"):
        predict(tiny_run, images, tmp_path, **QUICK)
    assert (tmp_path / ".lock").read_text() == "packages = []"
    (tmp_path / ".lock").write_bytes(bytes(28))  # as a power failure leaves it
    run_predict(tiny_run, images, tmp_path)


def test_a_link_that_leads_back_to_itself_is_one_failed_case(tiny_run, images, tmp_path):
    (images / "patient_1.nii.gz").unlink()
    (images / "patient_1.nii.gz").symlink_to("patient_1.nii.gz")
    run_predict(tiny_run, images, tmp_path / "out")
    assert len(predict(tiny_run, images, tmp_path / "pseudonyms", pseudonymise=True, **QUICK).failed) == 1


@pytest.mark.parametrize("output", ["run", "run/models", "run/models/3d_fullres/fold_0", "images", "."])
def test_an_export_never_replaces_the_model_or_its_images(tiny_run, images, tmp_path, output):
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    before, card = contents(tmp_path), BundleCard(licence="Apache-2.0", intended_use="tests")
    model = run / "models" / "3d_fullres" / "fold_0" if output != "run" else run
    with pytest.raises(InputError, match=r"would be replaced, and holds .*\. Give another output folder"):
        export_bundle(model, tmp_path / output, card, images, overwrite=True)
    assert contents(tmp_path) == before


def test_planning_never_replaces_its_dataset(small_dataset, tmp_path):
    dataset = Path(shutil.copytree(small_dataset, tmp_path / "run" / "preprocessed" / "dataset"))
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"run/preprocessed: would be replaced, and holds .*preprocessed/dataset\."):
        medmamba.plan(dataset, tmp_path / "run", overwrite=True)
    assert contents(tmp_path) == before
