"""`medmamba plan` as a whole: the same bytes however it runs, patients kept together, own splits and options."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

import medmamba
import medmamba.planning.run
from medmamba.cli.main import app
from medmamba.errors import ConfigError, InputError, InputErrors, ResourceError
from medmamba.models.run_folder import RunFolder
from medmamba.planning.measure import locations
from medmamba.preprocessing.labels import index_in


def files(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}


def split_names(run: Path) -> list[dict[str, list[str]]]:
    return RunFolder(run).read_splits()


def test_planning_twice_and_with_any_number_of_workers_gives_the_same_bytes(small_dataset, tmp_path):
    medmamba.plan(small_dataset, tmp_path / "one", workers=1)
    medmamba.plan(small_dataset, tmp_path / "many", workers=4)
    one, many = files(tmp_path / "one"), files(tmp_path / "many")
    assert one == many
    medmamba.plan(small_dataset, tmp_path / "one", workers=3)
    assert files(tmp_path / "one") == one


def test_a_hand_made_configuration_survives_and_is_stored(small_dataset, tmp_path):
    run = tmp_path / "run"
    plan = medmamba.plan(small_dataset, run)
    mine = plan.default.model_copy(update={"name": "mine", "batch_size": 3})
    changed = plan.model_copy(update={"configurations": {**plan.configurations, "mine": mine}})
    (run / "plan.json").write_text(changed.to_json())
    again = medmamba.plan(small_dataset, run, device_memory_gb=2)
    assert again.configurations["mine"].batch_size == 3
    assert (run / "preprocessed" / "mine").is_dir()
    assert medmamba.plan(small_dataset, run, configurations=["mine"]).configurations["mine"].batch_size == 3


def test_what_if_shows_both_plans_and_writes_nothing(small_run):
    before = files(small_run)
    arguments = ["explain", str(small_run), "--what-if", "--patch-size 32,48,32"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    line = next(line for line in result.output.splitlines() if line.startswith("3d_fullres.patch_size"))
    assert line.split()[1:] == ["[16,", "24,", "16]", "[32,", "48,", "32]"]
    assert files(small_run) == before


def test_hours_to_train_are_planned_for_kept_and_can_be_lifted(small_dataset, tmp_path):
    run = tmp_path / "run"
    arguments = ["plan", str(small_dataset), "-o", str(run), "--train-hours", "0.02", "--machine", "cpu:2"]
    told = CliRunner().invoke(app, arguments, catch_exceptions=False).output
    assert "On cpu:2 a step takes about" in told
    plan = RunFolder(run).read_plan()
    assert (plan.options.train_hours, plan.options.machine) == (0.02, "cpu:2")
    assert "On cpu:2 a step takes about" in (run / "report" / "dataset.html").read_text(encoding="utf-8")
    arguments = ["explain", str(run), "--what-if", "--train-hours none"]
    assert "default_configuration" in CliRunner().invoke(app, ["explain", str(run)], catch_exceptions=False).output
    assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("--devicememory 6GB", "Did you mean '--device-memory'"),
        ("--device-memory", "--device-memory has no value"),
        ("--device-memory 6QB", "'6QB' is not an amount of memory"),
        ("--train-hours soon", "'soon' must be a number"),
        ("", "--what-if is empty"),
    ],
)
def test_a_what_if_that_cannot_be_read_says_why(small_run, text, message):
    with pytest.raises(InputError, match=message):
        CliRunner().invoke(app, ["explain", str(small_run), "--what-if", text], catch_exceptions=False)


def test_network_auto_says_why(small_dataset, tmp_path):
    plan = medmamba.plan(small_dataset, tmp_path / "run", network="auto")
    decision = next(decision for decision in plan.decisions if decision.name == "network")
    assert decision.value == plan.default.network.name
    assert set(decision.inputs["typical_diameter_voxels"]) == {"Anterior", "Posterior"}


def test_a_patients_cases_stay_in_one_fold(small_dataset, tmp_path):
    cases = sorted(path.name.split(".")[0] for path in (small_dataset / "labelsTr").glob("*.nii.gz"))
    table = small_dataset / "patients.csv"
    with open(table, "w", newline="") as file:
        csv.writer(file).writerows([["case_id", "patient"], *([name, f"p{n // 2}"] for n, name in enumerate(cases))])
    medmamba.plan(small_dataset, tmp_path / "run", group_by="patients.csv:patient")
    folds = split_names(tmp_path / "run")
    assert sorted(fold["val"] for fold in folds) == [cases[:2], cases[2:]]
    first, _, second, _ = cases
    assert RunFolder(tmp_path / "run").read_patients() == dict(zip(cases, [first, first, second, second], strict=True))
    with pytest.raises(ConfigError, match="no column 'doctor'"):
        medmamba.plan(small_dataset, tmp_path / "run2", group_by=f"{table}:doctor")
    table.unlink()


def test_an_own_split_is_respected_and_one_that_leaks_refused(small_dataset, tmp_path):
    cases = sorted(path.name.split(".")[0] for path in (small_dataset / "labelsTr").glob("*.nii.gz"))
    mine = tmp_path / "mine.json"
    mine.write_text(json.dumps([{"train": cases[1:], "val": cases[:1]}]))
    medmamba.plan(small_dataset, tmp_path / "run", splits=mine)
    assert split_names(tmp_path / "run") == [{"train": cases[1:], "val": cases[:1]}]
    with pytest.raises(InputErrors, match="belong to the same patient"):
        medmamba.plan(small_dataset, tmp_path / "run2", splits=mine, group_by="hippocampus")
    assert not (tmp_path / "run2").exists()

    copied = tmp_path / "copied"  # a Decathlon folder with a split file of its own, and one image under two names
    shutil.copytree(small_dataset, copied)
    (copied / "splits_final.json").write_text(json.dumps([{"train": cases[1:], "val": cases[:1]}]))
    medmamba.plan(copied, tmp_path / "run3")
    assert split_names(tmp_path / "run3") == [{"train": cases[1:], "val": cases[:1]}]
    for folder in ("imagesTr", "labelsTr"):
        shutil.copy(copied / folder / f"{cases[0]}.nii.gz", copied / folder / f"{cases[1]}.nii.gz")
    with pytest.raises(InputErrors, match="or are the same image"):
        medmamba.plan(copied, tmp_path / "run4")


def test_voxels_that_are_not_numbers_are_refused_or_set_to_zero_on_request(small_dataset, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(small_dataset, broken)
    path = next((broken / "imagesTr").glob("*.nii.gz"))
    image = nibabel.load(path)
    array = image.get_fdata(dtype=np.float32)
    array[3, 4, 5] = np.nan
    nibabel.save(nibabel.Nifti1Image(array, image.affine), path)
    with pytest.raises(InputError, match="nonfinite"):
        medmamba.plan(broken, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    told: list[str] = []
    medmamba.plan(broken, tmp_path / "run", nonfinite="zero", on_warning=told.append)
    assert any("1 voxel" in line for line in told), told


def test_a_kill_between_the_cases_and_the_plan_loses_no_hand_made_plan(small_dataset, tmp_path):
    run = RunFolder(tmp_path / "run")
    plan = medmamba.plan(small_dataset, run.path)
    run.set_plan_aside()
    assert not run.plan_path.exists()
    assert run.previous_plan() == plan


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_planning_that_is_stopped_leaves_the_run_as_it_was(small_dataset, tmp_path, monkeypatch, fault):
    from medmamba.preprocessing import dataset as cases

    run = tmp_path / "run"
    medmamba.plan(small_dataset, run)
    before, written, fill = files(run), [], cases.fill_case

    def fails_at_the_third(*arguments, **facts):
        written.append(arguments[1])
        if len(written) == 3:
            raise fault
        fill(*arguments, **facts)

    monkeypatch.setattr(cases, "fill_case", fails_at_the_third)
    with pytest.raises((KeyboardInterrupt, ResourceError)) as caught:
        medmamba.plan(small_dataset, run, configurations=["all"], workers=1)
    assert files(run) == before
    assert isinstance(caught.value, KeyboardInterrupt) or "the disk is full" in str(caught.value)


def test_components_and_centres_of_labels():
    indices = np.zeros((6, 5, 4), np.int16)
    indices[1, 1, 1] = indices[2, 2, 2] = 1  # corners touch: one component
    indices[5, 4, 3] = 1
    indices[0, 0, :] = 2
    affine = np.diag([2.0, 1.0, 3.0, 1.0])
    affine[:3, 3] = (10, 0, 0)
    found = locations(indices, ["far", "row", "absent"], affine)
    assert set(found) == {"far", "row"}
    assert found["far"] == (2, pytest.approx((10 + 2 * 8 / 3, 7 / 3, 3 * 2)))
    assert found["row"] == (1, pytest.approx((10.0, 0.0, 4.5)))
    assert locations(indices, ["far", "row"], None)["row"] == (1, None)
    assert locations(np.zeros_like(indices), ["far"], affine) == {}


@pytest.mark.parametrize("values", [[0, 3, 1], [0, 700, 2], [0, -4, 100_000]])
def test_labels_of_any_integers_become_indices(values):
    table = np.array(values)
    labels = np.random.default_rng(0).choice([*values, 5], size=(4, 5, 6))
    expected = [[values.index(v) if v in values else -1 for v in labels.ravel()]]
    assert index_in(table, labels).ravel().tolist() == expected[0]


@pytest.mark.parametrize(
    "name", ["preprocessed/mine.npz", "preprocessed/a/b/notes.txt", "splits.json", "fingerprint.json"]
)
def test_files_of_somebody_else_are_not_replaced(small_dataset, tmp_path, name):
    own = tmp_path / "project" / name
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    with pytest.raises(InputError, match=rf"{own.name}: not written by medmamba, or changed since"):
        medmamba.plan(small_dataset, tmp_path / "project")
    assert own.read_text() == "mine"
    assert not (tmp_path / "project" / "plan.json").exists()


def test_files_of_somebody_else_are_replaced_on_request_and_our_own_always(small_dataset, tmp_path):
    own = tmp_path / "project" / "preprocessed" / "mine.npz"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    for overwrite in (True, False):
        medmamba.plan(small_dataset, tmp_path / "project", patch_size=(16, 24, 16), batch_size=2, overwrite=overwrite)
    assert not own.exists()
    (tmp_path / "project" / "plan.json").unlink()  # killed before its plan was written
    medmamba.plan(small_dataset, tmp_path / "project", patch_size=(16, 24, 16), batch_size=2)
