"""Starting from other weights: by names of labels and channels, with nothing lost in silence."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from medmamba import pipeline
from medmamba.errors import ConfigError
from medmamba.models.network import network_arguments
from medmamba.models.run_folder import read_plan
from medmamba.networks.build import build_network
from medmamba.training.config import TrainConfig
from medmamba.training.pretrain import key_slices, pretrain
from medmamba.training.step import Stepper
from medmamba.training.transfer import freeze, initialise

SHORT = {"steps_per_epoch": 2, "workers": 0, "warmup_steps": 0}


def _network(plan):
    arguments = network_arguments(plan, plan.default)
    torch.manual_seed(11)
    return build_network(**arguments), arguments


def test_heads_follow_label_names_and_the_stem_channel_names(clinic_run):
    pipeline.train(clinic_run, fold="all", config=TrainConfig(steps=1, **SHORT))
    trained = clinic_run / "models" / "3d_fullres" / "fold_all"
    old = load_file(trained / "checkpoints" / "last" / "model.safetensors")
    plan = read_plan(clinic_run / "plan.json")
    labels = {"background": 0, "cyst": 3, "right kidney": 420, "left kidney": 205}
    regions = {name: [name] for name in labels if name != "background"}
    other = plan.model_copy(
        update={
            "labels": labels,
            "regions": regions,
            "region_order": list(regions),
            "channel_names": ["CT", plan.channel_names[0]],
            "normalization": [plan.normalization[0]] * 2,
        }
    )
    network, arguments = _network(other)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    report = initialise(network, arguments, other, trained)
    after = network.state_dict()
    head = next(name for name in report.adapted if name.startswith("heads") and name.endswith("weight"))
    assert torch.equal(after[head][1], old[head][1])  # right kidney: second in both
    assert torch.equal(after[head][2], old[head][0])  # left kidney: first there, third here
    assert torch.equal(after[head][0], before[head][0])  # cyst: new
    first = next(name for name, reason in report.adapted.items() if reason == "channels by name")
    assert torch.equal(after[first][:, 1], old[first][:, 0])
    assert torch.equal(after[first][:, 0], before[first][:, 0])
    assert report.kept
    assert "classes by name" in "\n".join(report.lines())


def test_frozen_parts_do_not_move_and_unknown_parts_are_answered(clinic_run):
    network, _ = _network(read_plan(clinic_run / "plan.json"))
    part = next(iter(dict(network.named_parameters()))).split(".")[0]
    frozen = freeze(network, [part])
    assert frozen
    assert all(not p.requires_grad for name, p in network.named_parameters() if name.startswith(part + "."))
    with pytest.raises(ConfigError, match=r"--freeze 'encodre' matches no parameter\. Parts of this network:"):
        freeze(network, ["encodre"])


def test_hidden_slices_are_whole_drawn_by_step_and_leave_the_rest_as_it_was():
    image = torch.randn(3, 2, 10, 12, 14)
    masked, again = key_slices(image, 4, 1), key_slices(image, 4, 1)
    assert torch.equal(masked, again)
    assert not torch.equal(masked, key_slices(image, 5, 1))
    for hidden in masked:
        whole = [hidden.movedim(axis, 0)[:, 0] for axis in range(1, 4)]
        whole = [h.flatten(1) for h in whole]
        assert any(bool(((h.sum(1) == 0) | (h.sum(1) == h.shape[1])).all()) for h in whole)
        assert 0.2 < hidden.mean() < 0.4
        assert set(hidden.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()], ids=["gpu", "no text"]
)
def test_pretraining_continues_with_less_when_memory_runs_out_and_starts_again_when_asked(
    clinic_run, monkeypatch, error
):
    config = TrainConfig(steps=3, **SHORT)
    step = Stepper.step

    def short_of_memory(self, batch, rate, **options):
        if len(batch.image) > 1:
            raise error
        return step(self, batch, rate, **options)

    monkeypatch.setattr(Stepper, "step", short_of_memory)
    events = []
    checkpoints = pretrain(clinic_run, config=config, on_event=events.append).folder / "checkpoints"
    assert "continuing with batch 1" in events[0]
    assert (checkpoints / "prev").is_dir()
    pretrain(clinic_run, config=config.model_copy(update={"steps": 1}), restart=True)
    assert not (checkpoints / "prev").exists()


def test_pretraining_learns_and_its_body_starts_a_training(clinic_run, clinic_dataset):
    losses = []
    config = TrainConfig(steps=25, learning_rate=5e-3, **{**SHORT, "steps_per_epoch": 25})
    result = pretrain(
        clinic_run, images=clinic_dataset / "imagesTr", config=config, on_step=lambda r: losses.append(r.loss)
    )
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    events = []
    pipeline.train(clinic_run, config=TrainConfig(steps=1, **SHORT), init=result.folder, on_event=events.append)
    report = json.loads((clinic_run / "models" / "3d_fullres" / "fold_0" / "init.json").read_text())
    assert len(report["kept"]) > 10
    assert report["new"]
    assert all("heads" in name for name in report["new"])
    assert any("tensors kept" in line for line in events)
