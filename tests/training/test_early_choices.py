"""Choices that cannot work are refused before anything is trained or deleted, and edited folds are noticed."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from tiny_models import make_fold

import medmamba
from medmamba.errors import MedmambaError
from medmamba.model_selection.run import find_best
from medmamba.models.run_folder import RunFolder, read_plan
from medmamba.models.trained_folds import hash_of_cases
from medmamba.run_report.write import write_report
from medmamba.training import folds
from medmamba.training.config import TrainConfig
from medmamba.training.folds import train_folds
from medmamba.training.options import TrainOptions

FOLD = Path("models", "3d_fullres", "fold_0")


@pytest.fixture
def run(small_run, tmp_path) -> Path:
    """A planned run whose fold 0 is trained."""
    run = Path(shutil.copytree(small_run, tmp_path / "run"))
    make_fold(run / FOLD, read_plan(run / "plan.json"), 0)
    return run


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"class_weights": {"tumr": 3}}, "class weight for 'tumr': no such class"),
        ({"freeze": ("steem",)}, "--freeze 'steem' matches no parameter"),
        ({"network": "plain_unet", "recompute": True}, "cannot recompute its activations"),
        ({"wandb": True}, "--wandb needs a package"),
        ({"loss": "nowhere:loss"}, "cannot be imported"),
        ({"device": "cuda:99"}, "cuda:99"),
    ],
)
def test_a_refused_restart_deletes_no_checkpoint(run, monkeypatch, choices, words):
    monkeypatch.setitem(sys.modules, "wandb", None)
    before = contents(run)
    with pytest.raises(MedmambaError) as error:
        medmamba.train(run, fold=0, restart=True, **choices)
    assert words in str(error.value)
    assert contents(run) == before


@pytest.mark.parametrize(("chosen", "words"), [((1, 7), "Fold 7 does not exist"), ((1, 0), "holds a trained model")])
def test_every_fold_is_checked_before_the_first_is_trained(run, monkeypatch, chosen, words):
    monkeypatch.setattr(folds, "train", lambda *arguments, **rest: pytest.fail("a fold was trained"))
    with pytest.raises(MedmambaError, match=words):
        train_folds(run, TrainOptions(folds=chosen), TrainConfig(steps=1))


def edited(run: Path, **parts: list[str]) -> None:
    splits = json.loads((run / "splits.json").read_text())
    splits[0] |= parts
    (run / "splits.json").write_text(json.dumps(splits))


def test_folds_that_were_edited_after_planning_are_told_and_may_not_leak(run, monkeypatch):
    class Begun(Exception):
        pass

    def begun(*arguments, **rest):
        raise Begun

    monkeypatch.setattr("medmamba.training.fold.Training", begun)
    events: list[str] = []
    with pytest.raises(Begun):
        medmamba.train(run, fold=0, restart=True, on_event=events.append)
    assert events == []
    train = RunFolder(run).read_splits()[0]["train"]
    edited(run, val=train[:1])
    with pytest.raises(MedmambaError, match=f"fold 0: {train[0]} is in train and in val"):
        medmamba.train(run, fold=0, restart=True)
    edited(run, val=train[:1], train=[train[1], *train[1:]])
    with pytest.raises(MedmambaError, match=f"fold 0: {train[1]} occurs twice"):
        medmamba.train(run, fold=0, restart=True)
    edited(run, val=train[:1], train=train[1:])
    with pytest.raises(Begun):
        medmamba.train(run, fold=0, restart=True, on_event=events.append)
    assert events == [
        f"splits.json was changed after planning: fold 0 trains on {len(train) - 1} cases and validates on 1."
    ]


def test_a_trained_fold_is_not_continued_or_judged_with_other_cases(run):
    record = json.loads((run / FOLD / "model.json").read_text())
    fold = RunFolder(run).read_splits()[0]
    (run / FOLD / "model.json").write_text(json.dumps({**record, "cases_sha256": hash_of_cases(fold)}))
    find_best(run, mirror=False)
    edited(run, val=fold["train"][:1], train=[*fold["train"][1:], *fold["val"]])
    for command in (find_best, write_report):
        with pytest.raises(MedmambaError, match=r"fold_0: was trained with other cases than splits\.json gives"):
            command(run)
