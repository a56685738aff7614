"""Runs of nnU-Net's networks are written as nnU-Net's results: read back they are the same models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from their_folder import checkpoint, write_results
from tiny_models import TINY, make_fold

from medmamba import Predictor
from medmamba.disk.atomic import write_json, write_text
from medmamba.errors import ConfigError, InputError
from medmamba.models.checkpoint import file_sha256
from medmamba.nnunet.convert import convert_model
from medmamba.plans.schema import Plan

WEIGHTS = "models/3d_fullres/fold_1/checkpoints/last/model.safetensors"
WRITTEN = "Dataset004_Test/nnUNetTrainer__medmambaPlans__3d_fullres"


def test_there_and_back_gives_the_same_weights(tmp_path: Path) -> None:
    first = convert_model(write_results(tmp_path / "theirs"), tmp_path / "run")
    results = convert_model(first.run, tmp_path / "results")
    assert results.folds == {"3d_fullres": ["fold_0", "fold_1"]}
    assert results.folder == tmp_path / "results" / "Dataset004_Test"
    again = convert_model(tmp_path / "results", tmp_path / "again")
    assert file_sha256(again.run / WEIGHTS) == file_sha256(first.run / WEIGHTS)
    theirs = torch.load(tmp_path / "results" / WRITTEN / "fold_1" / "checkpoint_final.pth", weights_only=True)
    wanted = checkpoint(1)["network_weights"]
    assert theirs["network_weights"].keys() == wanted.keys()
    assert theirs["inference_allowed_mirroring_axes"] == (0, 1, 2)
    assert (
        json.loads((tmp_path / "results" / WRITTEN / "plans.json").read_text())["image_reader_writer"] == "SimpleITKIO"
    )


def ours(tmp_path: Path, **changes: Any) -> Path:
    """A run on canonical axes whose labels are not in the order of their values, with one head of two."""
    theirs = convert_model(write_results(tmp_path / "theirs", folds=("fold_0",)), tmp_path / "converted").run
    document = json.loads((theirs / "plan.json").read_text()) | {
        "conventions": "medmamba",
        "reorient": True,
        "labels": {"background": 0, "second": 2, "first": 1},
    }
    document["configurations"]["3d_fullres"] |= {"spacing_mm": [1.0, 1.0, 1.0], "patch_size": [8, 16, 16]}
    plan = Plan.from_json(json.dumps(document | changes))
    run = tmp_path / "run"
    write_text(run / "plan.json", plan.to_json())
    make_fold(run / "models" / "3d_fullres" / "fold_0", plan, 0)
    return run


def test_a_run_of_ours_predicts_the_same_when_it_is_written_and_read_back(tmp_path: Path) -> None:
    run = ours(tmp_path)
    made = convert_model(run, tmp_path / "results")
    assert made.notes[0] == "3d_fullres: 1 fold"
    plans = json.loads((tmp_path / "results" / WRITTEN / "plans.json").read_text())
    assert plans["image_reader_writer"] == "NibabelIOWithReorient"
    assert plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"] == [4, 8, 8]
    description = json.loads((tmp_path / "results" / WRITTEN / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, "first": 1, "second": 2}
    again = convert_model(tmp_path / "results", tmp_path / "again").run
    pixels = np.random.default_rng(0).normal(size=(18, 20, 12)).astype(np.float32)
    image = (pixels, np.array([[0, -1.0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    before = Predictor(run).predict(image, probabilities=True)
    read_back = Predictor(again)
    (ensemble,) = read_back.model.ensembles
    assert ensemble.window.half_sums
    ensemble.window = replace(ensemble.window, half_sums=False)  # which moves the corners
    after = read_back.predict(image, probabilities=True)
    np.testing.assert_array_equal(before.labels, after.labels)
    np.testing.assert_allclose(before.probabilities[[0, 2, 1]], after.probabilities, atol=1e-5)


def without_fold(run: Path) -> None:
    (run / "models").rename(run / "elsewhere")


def another_network(run: Path) -> None:
    facts = json.loads((run / "models/3d_fullres/fold_0/model.json").read_text())
    write_json(run / "models/3d_fullres/fold_0/model.json", facts | {"network": TINY | {"name": "vm_unet"}})


@pytest.mark.parametrize(
    ("changes", "spoil", "message"),
    [
        ({"labels": {"background": 0, "first": 1, "second": 5}}, None, "labels have the values 0, 1, 5, nnU-Net's are"),
        ({}, without_fold, "no trained fold"),
        ({}, another_network, "uses vm_unet, which nnU-Net does not have"),
    ],
)
def test_what_nnunet_does_not_have_is_refused_in_one_line(
    changes: dict[str, Any], spoil: Any, message: str, tmp_path: Path
) -> None:
    run = ours(tmp_path, **changes)
    if spoil is not None:
        spoil(run)
    with pytest.raises(InputError, match=message) as raised:
        convert_model(run, tmp_path / "results")
    assert isinstance(raised.value, ConfigError) or "no trained fold" in message
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "results").exists()
