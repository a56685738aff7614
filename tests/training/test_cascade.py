"""Cascades: the second stage learns from what the first says of cases it has not seen, in one command."""

from __future__ import annotations

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import make_fold

import medmamba
from medmamba import pipeline
from medmamba.errors import ConfigError, InputError
from medmamba.inference.cascade import labels_on_next_grid, one_hot
from medmamba.inference.sliding_window import Window, stream_logits
from medmamba.models.output_channels import OutputChannels
from medmamba.models.run_folder import RunFolder
from medmamba.plans.schema import Plan
from medmamba.preprocessing.store import stored_cases
from medmamba.training import cascade as cascade_module
from medmamba.training.cascade import LARGEST_REMOVED_FRACTION, disturbed
from medmamba.training.config import TrainConfig


@pytest.fixture
def cascade_run(clinic_run):
    """The clinic's run with a coarse first stage and a second stage of hand-made names, preprocessed from the fine."""
    path = clinic_run / "plan.json"
    document = json.loads(path.read_text())
    full = document["configurations"]["3d_fullres"]
    document["configurations"]["coarse"] = full | {"name": "coarse", "decisions": []}
    document["configurations"]["cascade"] = full | {"name": "cascade", "previous_stage": "coarse", "decisions": []}
    path.write_text(json.dumps(document))
    for name in ("coarse", "cascade"):
        shutil.copytree(clinic_run / "preprocessed" / "3d_fullres", clinic_run / "preprocessed" / name)
    return clinic_run


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_a_disturbed_first_stage_still_has_at_most_one_label_a_voxel(seed):
    rng = np.random.default_rng(seed)
    labels = np.zeros((14, 15, 16), np.int16)
    labels[2:6, 3:9, 3:9], labels[8:12, 3:9, 3:9] = 1, 2
    found = disturbed(one_hot(labels, 2), rng)
    assert found.shape == (2, *labels.shape)
    assert set(np.unique(found)) <= {0.0, 1.0}
    assert found.sum(0).max() <= 1


def test_disturbing_grows_shrinks_and_removes_but_never_what_fills_the_patch(monkeypatch):
    labels = np.zeros((20, 20, 20), np.int16)
    labels[:, :, :10] = 1  # half of the patch
    labels[8:12, 8:12, 14:18] = 2
    channels = one_hot(labels, 2)
    assert channels[0].mean() > LARGEST_REMOVED_FRACTION > channels[1].mean()
    monkeypatch.setattr(cascade_module, "MORPHOLOGY_PROBABILITY", 0.0)
    monkeypatch.setattr(cascade_module, "REMOVAL_PROBABILITY", 1.0)
    kept = sum(bool(disturbed(channels, np.random.default_rng(seed))[1].any()) for seed in range(200))
    assert 72 <= kept <= 128  # each label is met half of the time; four standard errors
    monkeypatch.setattr(cascade_module, "PER_LABEL", 1.0)
    found = disturbed(channels, np.random.default_rng(0))
    assert np.array_equal(found[0], channels[0])
    assert not found[1].any()
    monkeypatch.setattr(cascade_module, "MORPHOLOGY_PROBABILITY", 1.0)
    monkeypatch.setattr(cascade_module, "REMOVAL_PROBABILITY", 0.0)
    sizes = {disturbed(channels, np.random.default_rng(seed))[1].sum() for seed in range(8)}
    assert min(sizes) < channels[1].sum() < max(sizes)


def test_labels_of_the_first_stage_lie_where_they_were_on_the_finer_grid():
    coarse = torch.zeros(2, 6, 5, 4)
    coarse[1, 2:4, 1:3, 1:3] = 4.0
    coarse[0] = 2.0
    found = labels_on_next_grid(
        coarse.unbind(1),
        OutputChannels.of_labels(["background", "a"]),
        ((6, 5, 4), (2.0,) * 3),
        ((12, 10, 8), (1.0,) * 3),
    )
    assert found.shape == (12, 10, 8)
    inside = np.argwhere(found == 1)
    assert np.allclose(inside.mean(0), [5.5, 3.5, 3.5])


def test_a_flip_that_exchanges_sides_exchanges_the_first_stage_too():
    seen = []

    def network(patches):
        seen.append(patches.clone())
        return patches[:, :2]

    image = torch.zeros(3, 8, 8, 8)
    image[1, ..., :4], image[2, ..., 4:] = 1.0, 1.0  # behind one image channel: left, right
    window = Window((8, 8, 8), (2,), swap_axis=2, channel_swap=(0, 1), input_swap=(0, 2, 1))
    list(stream_logits([network], image, window))
    (views,) = seen
    assert torch.equal(views, torch.stack([image, image]))  # mirrored and renamed, it is the same body


@pytest.fixture
def tiny_cascade(cascade_run):
    """Both stages with random weights, every fold of the first."""
    plan = Plan.from_json((cascade_run / "plan.json").read_text())
    for number in range(len(json.loads((cascade_run / "splits.json").read_text()))):
        make_fold(cascade_run / f"models/coarse/fold_{number}", plan, number, "coarse")
    make_fold(cascade_run / "models/cascade/fold_0", plan, 7, "cascade")
    return cascade_run


def test_parts_of_a_folder_through_a_cascade_are_the_masks_of_the_whole(tiny_cascade, clinic_dataset, tmp_path):
    predictor = medmamba.Predictor(tiny_cascade, configuration="cascade", folds=[0], mirror=False)
    images = clinic_dataset / "imagesTr"
    pipeline.predict(predictor, images, tmp_path / "whole")
    for number in (1, 2):
        pipeline.predict(predictor, images, tmp_path / "parts", part=(number, 2))
    whole, parts = (
        {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.nii.gz")} for name in ("whole", "parts")
    )
    assert len(whole) > 1
    assert parts == whole


def test_under_torchrun_each_rank_stores_its_share_and_a_missing_fold_is_refused(tiny_cascade, monkeypatch):
    folder = RunFolder(tiny_cascade)
    plan = folder.read_plan()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(cascade_module, "WAIT_SECONDS", 0.01)

    def rank(number):
        monkeypatch.setattr(cascade_module.distributed, "place", lambda: (number, 2))
        cascade_module.ensure_first_stage(folder, plan, plan.configurations["cascade"], untouched, device="cpu")

    def untouched(fold, resume):
        raise AssertionError("nothing is trained under torchrun")

    class Waits(Exception):
        pass

    def waits(seconds):
        raise Waits

    monkeypatch.setattr(cascade_module.time, "sleep", waits)
    with pytest.raises(Waits):  # the first rank has stored its share and waits for the second
        rank(0)
    rank(1)
    for case in stored_cases(folder.preprocessed("cascade")).values():
        assert case.read_previous().shape == case.shape
    shutil.rmtree(folder.fold("coarse", 1))
    with pytest.raises(InputError, match=r"fold 1 of the first stage, coarse, is not trained. With torchrun"):
        rank(0)


@pytest.mark.slow
def test_one_command_trains_both_stages_and_one_predicts_through_both(cascade_run, clinic_dataset, tmp_path):
    lines = []
    config = TrainConfig(steps=2, steps_per_epoch=2, workers=0)
    medmamba.train(cascade_run, configuration="cascade", config=config, on_event=lines.append)
    splits = json.loads((cascade_run / "splits.json").read_text())
    assert sum("First stage" in line for line in lines) == len(splits)
    fine = stored_cases(cascade_run / "preprocessed" / "cascade")
    for number, split in enumerate(splits):
        state = json.loads((cascade_run / f"models/coarse/fold_{number}/checkpoints/last/state.json").read_text())
        known = {state["sha256"]["model.safetensors"]}
        best = cascade_run / f"models/coarse/fold_{number}/checkpoints/best/state.json"
        if best.exists():
            known.add(json.loads(best.read_text())["sha256"]["model.safetensors"])
        for case_id in split["val"]:  # told by the fold that has not seen the case
            mark = json.loads((fine[case_id].folder / "previous.json").read_text())
            assert mark["weights_sha256"] in known
            assert fine[case_id].read_previous().shape == fine[case_id].shape
    lines.clear()
    medmamba.train(cascade_run, configuration="cascade", fold=1, config=config, on_event=lines.append)
    assert not any("First stage" in line for line in lines)  # it stands already
    image = sorted((clinic_dataset / "imagesTr").iterdir())[0]
    predictor = medmamba.Predictor(cascade_run, configuration="cascade")
    assert predictor.predict(image).labels.shape == nib.load(image).shape
    assert f"coarse/fold_{len(splits) - 1}" in predictor.provenance().weights_sha256["cascade"]
    alone = tmp_path / "elsewhere" / "models" / "cascade" / "fold_0"
    shutil.copytree(cascade_run / "models" / "cascade" / "fold_0", alone)
    with pytest.raises(ConfigError, match=r"second stage of a cascade whose first, coarse"):
        medmamba.Predictor(alone)
