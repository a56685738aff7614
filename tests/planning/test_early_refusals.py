"""Options that cannot work are refused before a case is read, and before a first stage is trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import medmamba
from medmamba.errors import InputError
from medmamba.models.run_folder import read_plan


def cases_are_not_read(*arguments: object, **options: object) -> None:
    raise AssertionError("a case was read")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"configurations": "3d_fulres"}, "Did you mean '3d_fullres'?"),
        ({"configurations": "3d_cascade_fullres"}, "needs 3d_lowres before it"),
        ({"machine": "cpv"}, "Unknown machine 'cpv'"),
        ({"spacing": "1,1"}, "spacing 1, 1: must be 3 numbers of mm"),
        ({"spacing": "1,1,-1"}, "spacing 1, 1, -1: must be 3 numbers of mm"),
        ({"network": "plain_unet", "use_scan": False}, "has no scan to leave out"),
        ({"network": "plain_unet,vm_unett", "pilot": 1}, "Unknown network 'vm_unett'"),
        ({"splits": "none.json"}, "none.json: no such file"),
        ({"splits": "splits.json"}, "1 unknown case(s), the first is nobody"),
        ({"group_by": "("}, "("),
        ({"group_by": "(h)", "pilot": 1}, "--pilot needs two patients or more"),
    ],
)
def test_plan_refuses_options_before_a_case_is_read(small_dataset, tmp_path, monkeypatch, options, words):
    monkeypatch.setattr("medmamba.planning.run.measure_dataset", cases_are_not_read)
    monkeypatch.chdir(tmp_path)
    Path("splits.json").write_text(json.dumps([{"train": ["nobody"], "val": ["nobody"]}]))
    with pytest.raises(InputError) as error:
        medmamba.plan(small_dataset, tmp_path / "run", **options)
    assert words in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_refused_plan_leaves_nothing_in_an_existing_folder(small_dataset, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(InputError, match="Unknown machine"):
        medmamba.plan(small_dataset, run, machine="cpv")
    assert list(run.iterdir()) == []


def test_init_of_a_cascade_is_refused_before_its_first_stage(small_run, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    plan = read_plan(run / "plan.json")
    full = plan.configurations["3d_fullres"]
    cascade = full.model_copy(update={"name": "3d_cascade_fullres", "previous_stage": "3d_lowres"})
    lowres = full.model_copy(update={"name": "3d_lowres"})
    configurations = {"3d_fullres": full, "3d_lowres": lowres, "3d_cascade_fullres": cascade}
    (run / "plan.json").write_text(plan.model_copy(update={"configurations": configurations}).to_json())

    monkeypatch.setattr("medmamba.training.fold.ensure_first_stage", cases_are_not_read)
    monkeypatch.setattr("medmamba.training.fold._fold_cases", lambda *arguments: ([], []))
    with pytest.raises(InputError, match="nothing"):
        medmamba.train(run, fold=0, configuration="3d_cascade_fullres", init=tmp_path / "nothing", steps=1)
