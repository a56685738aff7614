"""A training on a GPU: tensors, launches and random numbers on its own device, and few waits for it."""

import json
import math
import shutil

import pytest
import torch

pytest.importorskip("triton")

from pretended_gpu import Wait, pretended_gpus
from pretended_tensors import Machine

import medmamba
from medmamba.compute.device import choose_precision, is_out_of_memory
from medmamba.models.output_channels import OutputChannels
from medmamba.networks import build_network
from medmamba.training import distributed
from medmamba.training.batches import Batch
from medmamba.training.config import TrainConfig
from medmamba.training.losses import DeepSupervision, SegmentationLoss
from medmamba.training.machine import gpu_settings
from medmamba.training.placement import Placement
from medmamba.training.step import Stepper, make_optimizer

CHANNELS = OutputChannels.of_labels(["background", "liver", "tumour"])
FRAME = {"strides": [[1, 1, 1], [2, 2, 2]], "features_per_stage": [8, 8], "deep_supervision": True}


def stepper(device: str, precision: str, optimizer: str = "adamw") -> Stepper:
    """Steps of a small VM-UNet."""
    torch.manual_seed(0)
    network = build_network("vm_unet", spatial_dims=3, in_channels=1, out_channels=3, **FRAME).to(device)
    config = TrainConfig(precision=precision, optimizer=optimizer, workers=0)
    loss = DeepSupervision(SegmentationLoss(CHANNELS, batch_dice=False))
    return Stepper(network, make_optimizer(network, config), loss, CHANNELS, config)


def batch(step: int) -> Batch:
    """Noise, and labels that depend on it."""
    image = torch.randn(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(step))
    return Batch(step, image, (image > 0.5).long() + (image > 1).long(), ("a", "b"))


def losses_of(steps: Stepper, batches: list[Batch]) -> list[float]:
    """The loss of a step on each, all of them known."""
    outcomes = [*(steps.step(each, 1e-3, measure=True) for each in batches), steps.last()]
    return [outcome.loss for outcome in outcomes if outcome is not None]


@pytest.mark.parametrize(("precision", "optimizer"), [("fp32", "sgd"), ("bf16", "adamw"), ("fp16", "adamw")])
def test_a_step_waits_once_and_for_the_step_before(precision, optimizer):
    with pretended_gpus(2) as gpu:
        steps = stepper("cuda:1", precision, optimizer)
        placement = Placement(torch.device("cuda:1"))
        batches = [placement.place(batch(0)) for _ in range(3)]
        assert steps.step(batches[0], 1e-3, measure=True) is None  # it has only been queued
        gpu.forget()
        outcomes = [steps.step(each, 1e-3, measure=True) for each in batches[1:]]
        waits, launches = list(gpu.waits), list(gpu.launches)
        losses = [outcome.loss for outcome in (*outcomes, steps.last())]
        assert [outcome.batch is each for outcome, each in zip(outcomes, batches, strict=False)] == [True, True]
        assert all(0 <= outcome.dice <= 1 for outcome in outcomes)
    assert waits == [Wait("synchronize", "medmamba/training/step.py:_outcome")] * 2
    assert {launch.current for launch in launches} == {1}
    assert losses[2] < losses[1] < losses[0]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_step_on_a_gpu_is_the_step_on_the_cpu(optimizer):
    batches = [batch(number) for number in range(3)]
    expected = losses_of(stepper("cpu", "fp32", optimizer), batches)
    with pretended_gpus() as gpu:
        found = losses_of(stepper("cuda", "fp32", optimizer), batches)
        assert "scan_backward" in {launch.kernel for launch in gpu.launches}
    assert len(found) == 3
    assert found == pytest.approx(expected, rel=1e-4)


def broken_batch(number: int) -> Batch:
    made = batch(number)
    made.image[0, 0, 0, 0, 0] = torch.inf
    return made


@pytest.mark.parametrize(("precision", "optimizer"), [("fp32", "adamw"), ("bf16", "sgd"), ("fp16", "adamw")])
def test_a_gpu_leaves_out_a_step_that_is_not_finite_by_itself(precision, optimizer):
    with pretended_gpus():
        steps = stepper("cuda", precision, optimizer)
        steps.step(batch(0), 1e-3)
        before = {name: value.cpu().clone() for name, value in steps.network.state_dict().items()}
        counted = [float(state["step"]) for state in steps.optimizer.state.values() if "step" in state]
        assert math.isfinite(steps.step(broken_batch(1), 1e-3).loss)  # of the step before
        for name, value in steps.network.state_dict().items():
            assert torch.equal(value.cpu(), before[name]), name
        assert [float(state["step"]) for state in steps.optimizer.state.values() if "step" in state] == counted
        assert math.isnan(steps.step(batch(0), 1e-3).loss)
        assert math.isfinite(steps.last().loss)
        assert not all(torch.equal(value.cpu(), before[name]) for name, value in steps.network.state_dict().items())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_step_that_is_not_finite_changes_no_weight(precision):
    steps = stepper("cpu", precision)
    steps.step(batch(0), 1e-3)
    before = {name: value.clone() for name, value in steps.network.state_dict().items()}
    broken = broken_batch(1)
    assert steps.step(broken, 1e-3).loss != steps.step(broken, 1e-3).loss  # nan
    for name, value in steps.network.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(("precision", "workers"), [("bf16", 1), ("fp16", 0)])
def test_a_steady_step_of_a_training_waits_at_most_once(small_run, tmp_path, precision, workers):
    run, told = tmp_path / "run", []
    shutil.copytree(small_run, run)
    options = {"steps": 13, "workers": workers, "validation_cases": 1, "ema": 0.9, "optimizer": "adamw"}
    with pretended_gpus(2) as gpu:

        def note(report):
            told.append((report.loss, list(gpu.waits)))
            gpu.forget()

        medmamba.train(run, fold="all", device="cuda:1", augment="device", precision=precision, on_step=note, **options)
    assert math.isnan(told[0][0])  # the first outcome is known in the second step
    assert all(math.isfinite(loss) for loss, _ in told[1:])
    for _, waits in told[2:]:
        assert waits == [Wait("synchronize", "medmamba/training/step.py:_outcome")]


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


@pytest.mark.parametrize(("precision", "deterministic"), [("bf16", False), ("fp32", False), ("bf16", True)])
def test_settings_of_cudnn_and_tf32_are_those_of_the_training_and_restored(precision, deterministic):
    def now():
        return torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()

    before, config = now(), TrainConfig(precision=precision, deterministic=deterministic)
    with gpu_settings(config, torch.device("cpu")):
        assert now() == before
    with gpu_settings(config, torch.device("cuda")):
        half = precision != "fp32"
        assert now() == (not deterministic, half, "high" if half else "highest")
    assert now() == before


def test_an_optimiser_keeps_the_kernels_of_its_device_when_it_is_resumed_on_another(small_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    options = {"workers": 0, "steps_per_epoch": 9, "validation_cases": 1, "precision": "fp32", "augment": "cpu"}
    medmamba.train(run, fold="all", device="cpu", steps=2, **options)
    with pretended_gpus():
        medmamba.train(run, fold="all", device="cuda", steps=3, resume=True, **options)
    result = medmamba.train(run, fold="all", device="cpu", steps=4, resume=True, **options)
    assert result.steps == 4
    state = json.loads((run / "models/3d_fullres/fold_all/checkpoints/last/state.json").read_text())
    assert {group["fused"] for group in state["optimizer"]["param_groups"]} == {None}


def test_memory_that_runs_out_in_a_step_makes_the_batch_smaller_and_says_what_helps(small_run, tmp_path, monkeypatch):
    run, events = tmp_path / "run", []
    shutil.copytree(small_run, run)
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    with pretended_gpus():

        def fill(report):
            Machine.out_of_memory_in = 300 if report.step == 1 else None

        medmamba.train(
            run, fold="all", device="cuda", steps=3, workers=0, on_step=fill, on_event=events.append, augment="device"
        )
    [line] = [event for event in events if "Out of memory" in event]
    assert "continuing with batch 1" in line
    assert "expandable_segments:True" in line
