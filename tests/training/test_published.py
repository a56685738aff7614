"""Training starts from weights that others published, in the network that they were published for."""

from __future__ import annotations

import json

import nibabel as nib
import pytest
import torch
from safetensors.torch import save_file

import medmamba
from medmamba import pipeline
from medmamba.errors import ConfigError
from medmamba.models.network import network_arguments
from medmamba.models.run_folder import read_plan
from medmamba.networks.build import build_network
from medmamba.networks.published.vm_unet import PublishedVMUNet
from medmamba.networks.published.weights import convert_weights
from medmamba.training.config import TrainConfig
from medmamba.training.transfer import initialise

CHOICES = {"configuration": "2d", "network": "vm_unet_published", "fold": "all"}


@pytest.fixture(scope="module")
def run(clinic_dataset, tmp_path_factory):
    """Planned in 2D alone."""
    folder = tmp_path_factory.mktemp("published") / "run"
    medmamba.plan(clinic_dataset, folder, configurations=["2d"], patch_size=(16, 16), batch_size=2)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """What VM-UNet's authors would publish of nine classes, and the same under our names."""
    torch.manual_seed(5)
    network = PublishedVMUNet(3, 9)
    original = {
        f"vmunet.{name.replace('.scan.', '.').replace('attention.conv.', 'attention.conv2d.')}": tensor
        for name, tensor in network.state_dict().items()
    }
    folder = tmp_path_factory.mktemp("weights")
    torch.save(original, folder / "vmunet.pth")
    convert_weights(folder / "vmunet.pth", folder / "vmunet.safetensors", family="vm_unet")
    return network, folder / "vmunet.safetensors"


def test_all_but_the_head_is_kept_and_what_is_trained_predicts(run, weights, clinic_dataset):
    published, file = weights
    plan = read_plan(run / "plan.json")
    arguments = network_arguments(plan, plan.configurations["2d"], network="vm_unet_published")
    network = build_network(**arguments)
    report = initialise(network, arguments, plan, file)
    assert report.new == ["final_conv.weight", "final_conv.bias"]
    assert report.unused == []
    ours, theirs = network.state_dict(), published.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in report.kept)
    assert ours["final_conv.weight"].shape[0] == plan.out_channels

    lines = []
    config = TrainConfig(steps=1, workers=0, warmup_steps=0)
    pipeline.train(run, config=config, init=file, on_event=lines.append, **CHOICES)
    assert "vm_unet, vmunet.pth): 220 tensors kept, 0 adapted, 2 new" in lines[0]
    image = clinic_dataset / "imagesTr" / "k_0.nii.gz"
    twin = build_network(**arguments | {"use_scan": False}).state_dict()
    assert {name for name in ours if ".scan." not in name} == set(twin)
    mask = medmamba.Predictor(run / "models" / "2d" / "fold_all", mirror=False).predict(image)
    assert mask.labels.shape == nib.load(image).shape


def test_what_does_not_fit_is_told_before_anything_is_written(run, weights, clinic_run, tmp_path):
    _, file = weights
    with pytest.raises(
        ConfigError, match=r"none of its tensors \(vm_unet\) fits network vm_unet\. .*vm_unet_published"
    ):
        pipeline.train(run, configuration="2d", fold=0, init=file)
    with pytest.raises(ConfigError, match=r"'vm_unet_published' is built for 2D images only\. Use --configuration 2d"):
        pipeline.train(clinic_run, network="vm_unet_published", fold=0)
    save_file({"layers.0.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match="Translate them first: `medmamba convert weights"):
        pipeline.train(run, init=tmp_path / "other.safetensors", **CHOICES | {"fold": 0})
    assert not list(clinic_run.glob("models/*/fold_0"))
    assert not list(run.glob("models/*/fold_0"))


def test_a_trained_fold_stays_whole_when_another_training_in_its_place_is_refused(clinic_run):
    config = TrainConfig(steps=1, workers=0, warmup_steps=0)
    fold = pipeline.train(clinic_run, fold=0, config=config).folder
    before = {path: path.read_bytes() for path in fold.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"holds a trained model\. Use --resume"):
        pipeline.train(clinic_run, fold=0, network="residual_unet", config=config)
    with pytest.raises(ConfigError, match=r"--init .*: no trained model there"):
        pipeline.train(clinic_run, fold=0, config=config, restart=True, init=clinic_run / "preprocessed")
    assert {path: path.read_bytes() for path in fold.rglob("*") if path.is_file()} == before
    assert json.loads((fold / "model.json").read_text())["network"]["name"] == "plain_unet"
