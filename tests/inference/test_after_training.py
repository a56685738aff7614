"""The last fold of a cross-validation is followed by find-best, where that takes little against the training."""

from __future__ import annotations

import json
import shutil
from functools import partial

import pytest
from tiny_models import make_fold

from medmamba.cli import training as commands
from medmamba.command_options import FindBestOptions
from medmamba.model_selection import after_training
from medmamba.model_selection.after_training import WholeCrossValidation, whole_cross_validation
from medmamba.model_selection.expected_quality import copies_of
from medmamba.models.network import mirroring_of
from medmamba.models.run_folder import RunFolder
from medmamba.training import folds, observers
from medmamba.training.config import TrainConfig
from medmamba.training.options import TrainOptions
from medmamba.training.progress import TrainingResult

STEPS = {"steps": 100, "epochs": None, "steps_per_epoch": 50, "max_minutes": None, "patience": None}


@pytest.fixture
def states(monkeypatch) -> dict[str, dict]:
    """What read_state says of each fold, by its name; each took 1000 s and validated all its cases twice in 20 s."""
    progress = {"step": 100, "seconds": 1000.0, "validation_seconds": 20.0}
    known = {f"fold_{n}": {"config": STEPS | {"validation_cases": None}, "progress": progress} for n in range(9)}
    monkeypatch.setattr(after_training, "read_state", lambda folder: known[folder.parent.parent.name])
    return known


@pytest.fixture
def whole_run(small_run, tmp_path):
    """A run with every fold trained, and its number of folds."""
    run = tmp_path / "run"
    shutil.copytree(small_run, run, ignore=shutil.ignore_patterns("models", ".lock"))
    count = len(json.loads((run / "splits.json").read_text()))
    for number in range(count):
        make_fold(run / "models" / "3d_fullres" / f"fold_{number}", RunFolder(run).read_plan(), number)
    return run, count


def test_time_is_estimated_from_the_validations_of_every_fold(whole_run, states):
    run, count = whole_run
    found = whole_cross_validation(run)
    passes = 2 ** len(mirroring_of(RunFolder(run).read_plan(), RunFolder(run).read_plan().default).axes) * (
        2 + copies_of(4, ["3d_fullres"], RunFolder(run).read_plan())
    )
    assert found == WholeCrossValidation(count, 1000.0 * count, pytest.approx(10.0 * passes * count))
    assert not found.is_cheap
    assert WholeCrossValidation(5, 1000.0, 100.0).is_cheap


@pytest.mark.parametrize(
    ("config", "progress", "whole"),
    [
        ({}, {"step": 99}, False),
        ({"steps": None, "epochs": 2}, {}, True),
        ({"steps": None, "epochs": 3}, {}, False),
        ({"steps": None}, {}, False),  # the default number of epochs
        ({"patience": 3}, {"step": 20}, True),
        ({"steps": None, "max_minutes": 20.0}, {}, True),
        ({"steps": None, "max_minutes": 30.0}, {}, False),
    ],
)
def test_a_fold_that_was_interrupted_is_waited_for(whole_run, states, config, progress, whole):
    run, _ = whole_run
    states["fold_0"] = {
        "config": states["fold_0"]["config"] | config,
        "progress": states["fold_0"]["progress"] | progress,
    }
    assert (whole_cross_validation(run) is not None) is whole


def test_a_missing_fold_and_missing_cases_are_waited_for(whole_run, states):
    run, _ = whole_run
    shutil.move(run / "preprocessed", run / "elsewhere")
    assert whole_cross_validation(run) is None
    shutil.move(run / "elsewhere", run / "preprocessed")
    assert whole_cross_validation(run) is not None
    shutil.rmtree(run / "models" / "3d_fullres" / "fold_0")
    assert whole_cross_validation(run) is None
    shutil.rmtree(run / "models" / "3d_fullres")
    make_fold(run / "models" / "3d_fullres" / "fold_all", RunFolder(run).read_plan(), 0)
    assert whole_cross_validation(run) is None


@pytest.fixture
def train(whole_run, monkeypatch, capsys):
    """`medmamba train` on a run whose folds are trained already: what it returns and prints."""
    run, _ = whole_run
    result = TrainingResult(run / "models" / "3d_fullres" / "fold_0", 100, 1000.0, 0.1, 0.9)
    monkeypatch.setattr(folds, "train_folds", lambda run, options, *_, **__: dict.fromkeys(options.folds, result))
    monkeypatch.setattr(commands, "FindBestOptions", partial(FindBestOptions, mirror=False))
    monkeypatch.setattr(observers, "closing_lines", lambda *_: ["trained", ""])

    def call(**options):
        answer = commands.train(run, TrainOptions(**options), TrainConfig(device="cpu"))
        shown = capsys.readouterr()
        return answer["find_best"], " ".join((shown.out + shown.err).split())

    return call


def test_train_ends_with_find_best_where_it_is_cheap(train, whole_run, states, monkeypatch):
    run, count = whole_run
    best, text = train(folds=(0,))
    assert best is None
    assert f"{count} folds trained: the cross-validation is whole. To choose and to learn from it (about " in text
    assert not (run / "best.json").exists()
    monkeypatch.setattr(after_training, "LITTLE", 1e6)
    assert train(folds=(0,), find_best=False) == (None, train(folds=("all",))[1])
    assert not (run / "best.json").exists()
    best, text = train(folds=(0,))
    assert "find-best follows (about " in text
    assert best["recipe"].cases == 4
    assert set(best["expectations"].not_learned) == {"Anterior", "Posterior"}
    assert (run / "expectations.json").is_file()


def test_a_find_best_that_fails_leaves_the_training_a_success(train, whole_run, states, monkeypatch):
    run, _ = whole_run
    monkeypatch.setattr(after_training, "LITTLE", 1e6)
    (run / "best.json").write_text("of somebody else")
    best, text = train(folds=(0,))
    assert best is None
    assert "find-best was not done: " in text
    assert (run / "best.json").read_text() == "of somebody else"
    assert "Next: medmamba predict" in text
