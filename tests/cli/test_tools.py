"""The small commands: info, convert, doctor, explain."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from medmamba.cli.main import app
from medmamba.errors import ConfigError, InputError, MedmambaError


def _run(*arguments) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_info_counts_the_scan():
    text = _run("info", "vm_unet", "--size", "16")
    assert "M parameters" in text
    assert "in 2 scans" in text  # as planned: none in the two finest of the four stages


def test_info_of_an_unknown_network_names_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'vm_unet'"):
        _run("info", "vmunet")


def test_a_converted_dataset_is_an_nnunet_folder(small_dataset, tmp_path):
    _run("convert", "dataset", small_dataset, "-o", tmp_path / "raw", "--layout", "nnunet")
    facts = json.loads((tmp_path / "raw" / "dataset.json").read_text())
    assert facts["channel_names"] == {"0": "MRI"}
    assert len(list((tmp_path / "raw" / "imagesTr").glob("*_0000.nii.gz"))) == 4


def test_an_unknown_layout_is_refused(small_dataset, tmp_path):
    with pytest.raises(InputError, match="is none of: nnunet, decathlon"):
        _run("convert", "dataset", small_dataset, "-o", tmp_path / "raw", "--layout", "bids")


def test_a_plan_goes_to_nnunet_and_back(small_dataset, tmp_path):
    from medmamba import pipeline
    from medmamba.models.run_folder import RunFolder, read_plan

    run = tmp_path / "run"
    pipeline.plan(small_dataset, run, network="plain_unet")
    _run("convert", "plans", run, "-o", tmp_path / "nnUNetPlans.json")
    _run("convert", "dataset", small_dataset, "-o", tmp_path / "raw")
    source, description = tmp_path / "nnUNetPlans.json", tmp_path / "raw" / "dataset.json"
    with pytest.raises(InputError, match=r"give its dataset\.json with --dataset"):
        _run("convert", "plans", source, "-o", tmp_path / "plan.json")
    _run("convert", "plans", source, "-o", tmp_path / "plan.json", "--dataset", description)
    ours, back = RunFolder(run).read_plan(), read_plan(tmp_path / "plan.json")
    for name, part in ours.configurations.items():
        assert back.configurations[name].patch_size == part.patch_size
        assert back.configurations[name].spacing_mm == part.spacing_mm
        assert back.configurations[name].network.strides == part.network.strides
    with pytest.raises(InputError, match="exists already"):
        _run("convert", "plans", source, "-o", tmp_path / "plan.json", "--dataset", description)


def test_a_scan_network_is_no_nnunet_plan(small_run, tmp_path):
    with pytest.raises(ConfigError, match="vm_unet"):
        _run("convert", "plans", small_run, "-o", tmp_path / "nnUNetPlans.json")
    assert not (tmp_path / "nnUNetPlans.json").exists()


def test_published_weights_are_translated_and_counted(tmp_path):
    from medmamba.networks.published.vm_unet import PublishedVMUNet

    network = PublishedVMUNet(widths=(16, 32, 64, 128), depths=(1, 1, 1, 1), decoder_depths=(1, 1, 1, 1))
    names = {".conv.": ".conv2d.", ".scan.": "."}
    original = {}
    for ours, value in network.state_dict().items():
        name = ours
        for new, old in names.items():
            name = name.replace(new, old)
        original[f"vmunet.{name}"] = value.contiguous()
    save_file(original, tmp_path / "published.safetensors")
    target = tmp_path / "ours.safetensors"
    text = _run("convert", "weights", tmp_path / "published.safetensors", "-o", target, "--family", "vm_unet")
    assert str(len(original)) in text
    translated = load_file(target)
    assert all(torch.equal(translated[name], value) for name, value in network.state_dict().items())


def test_weights_of_another_family_are_refused(tmp_path):
    save_file({"something.weight": torch.zeros(2, 3)}, tmp_path / "x.safetensors")
    with pytest.raises(MedmambaError):
        _run("convert", "weights", tmp_path / "x.safetensors", "-o", tmp_path / "y.safetensors", "--family", "vm_unet")


def test_doctor_names_the_backend_that_runs():
    text = _run("doctor")
    assert "torch" in text
    assert "cpu: cpp" in text
    assert "triton: unavailable (the Triton kernels run on CUDA and ROCm tensors" in " ".join(text.split())
    assert "Memory: " in text
    assert "cuda: none (no CUDA or ROCm device is visible)" in text or "cuda: triton" in text


def test_explain_gives_every_number_a_reason(small_run):
    text = _run("explain", small_run)
    for name in ("target_spacing", "patch_size", "batch_size", "strides", "normalization"):
        assert name in text
    assert text.count("why:") == text.count("rule:") > 10
