"""A training on a GPU: tensors, launches and random numbers on its own device, and few waits for it."""

import json
import shutil

import pytest
import torch

pytest.importorskip("triton")

from pretended_gpu import Wait, pretended_gpus

import medmamba
from medmamba.compute.device import choose_precision, is_out_of_memory
from medmamba.models.output_channels import OutputChannels
from medmamba.networks import build_network
from medmamba.training import distributed
from medmamba.training.batches import Batch
from medmamba.training.config import TrainConfig
from medmamba.training.losses import DeepSupervision, SegmentationLoss
from medmamba.training.step import Stepper, make_optimizer

CHANNELS = OutputChannels.of_labels(["background", "liver", "tumour"])
FRAME = {"strides": [[1, 1, 1], [2, 2, 2]], "features_per_stage": [8, 8], "deep_supervision": True}


def stepper(device: str, precision: str) -> Stepper:
    """Steps of a small VM-UNet."""
    torch.manual_seed(0)
    network = build_network("vm_unet", spatial_dims=3, in_channels=1, out_channels=3, **FRAME).to(device)
    config = TrainConfig(precision=precision, workers=0)
    loss = DeepSupervision(SegmentationLoss(CHANNELS, batch_dice=False))
    return Stepper(network, make_optimizer(network, config), loss, CHANNELS, config)


def batch(step: int) -> Batch:
    """Noise, and labels that depend on it."""
    image = torch.randn(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(step))
    return Batch(step, image, (image > 0.5).long() + (image > 1).long(), ("a", "b"))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_step_waits_once_for_the_device(precision):
    with pretended_gpus(2) as gpu:
        steps = stepper("cuda:1", precision)
        losses = [steps.step(batch(0), 1e-3).loss]
        gpu.forget()
        losses += [steps.step(batch(number), 1e-3).loss for number in (0, 0)]
        assert {launch.current for launch in gpu.launches} == {1}
        waits = [wait for wait in gpu.waits if wait.what != "copy from the host"]
    assert losses[2] < losses[1] < losses[0]
    # fp16 adds the scaler's own reading of overflows, in PyTorch.
    own = Wait("copy to the host", "medmamba/training/step.py:step")
    assert waits.count(own) == 2
    assert len(waits) == 2 if precision != "fp16" else 4


def test_a_step_on_a_gpu_is_the_step_on_the_cpu():
    on_cpu = stepper("cpu", "fp32")
    expected = [on_cpu.step(batch(number), 1e-3).loss for number in range(3)]
    with pretended_gpus() as gpu:
        on_gpu = stepper("cuda", "fp32")
        found = [on_gpu.step(batch(number), 1e-3).loss for number in range(3)]
        assert "scan_backward" in {launch.kernel for launch in gpu.launches}
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_step_that_is_not_finite_changes_no_weight(precision):
    steps = stepper("cpu", precision)
    steps.step(batch(0), 1e-3)
    before = {name: value.clone() for name, value in steps.network.state_dict().items()}
    broken = batch(1)
    broken.image[0, 0, 0, 0, 0] = torch.inf
    assert steps.step(broken, 1e-3).loss != steps.step(broken, 1e-3).loss  # nan
    for name, value in steps.network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_training_and_its_resume_stay_on_their_device(small_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    options = {"workers": 0, "steps_per_epoch": 1, "validation_cases": 1, "precision": "bf16", "ema": 0.9}
    with pretended_gpus(2) as gpu:
        medmamba.train(run, fold="all", device="cuda:1", augment="device", steps=1, **options)
        medmamba.train(run, fold="all", device="cuda:1", augment="device", steps=2, resume=True, **options)
    assert {(launch.current, launch.tensors) for launch in gpu.launches} == {(1, 1)}
    state = json.loads((run / "models/3d_fullres/fold_all/checkpoints/last/state.json").read_text())
    assert state["progress"]["step"] == 2
    assert "cuda_random_state" in state


def test_ranks_take_their_own_gpu(monkeypatch):
    asked = {}
    monkeypatch.setattr(distributed.dist, "init_process_group", lambda backend, **options: asked.update(options))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pretended_gpus(2):
        assert distributed.join("auto") == torch.device("cuda", 1)
        assert torch.cuda.current_device() == 1
    assert asked["device_id"] == torch.device("cuda", 1)


def test_a_gpu_that_imitates_bf16_takes_fp16(monkeypatch):
    with pretended_gpus():
        assert choose_precision("auto", torch.device("cuda")) == "bf16"
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
        assert choose_precision("auto", torch.device("cuda")) == "fp16"


@pytest.mark.parametrize(
    "words",
    [
        "CUDA out of memory. Tried to allocate 2 GiB",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    ],
)
def test_libraries_words_for_exhausted_memory_are_known(words):
    assert is_out_of_memory(RuntimeError(words))
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
