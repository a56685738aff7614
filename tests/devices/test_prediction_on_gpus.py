"""Prediction and validation on a GPU: in half precision, views together, sums on the GPU, and few waits for it."""

import pytest
import torch
from torch import nn

pytest.importorskip("triton")

from pretended_gpu import Wait, pretended_gpus
from pretended_tensors import Pretended

import medmamba
from medmamba.compute import device as device_module
from medmamba.compute.device import is_out_of_memory, unused_gpu
from medmamba.errors import ConfigError
from medmamba.inference.confidence import Confidence
from medmamba.inference.runner import Execution, NetworkRunner, sums_on
from medmamba.inference.sliding_window import Window, stream_logits

CPU = torch.device("cpu")


class Ramp(nn.Module):
    """Three classes that depend on the place in the patch, so that weights and overlaps matter; counts its patches."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor, self.batches = factor, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(x))
        ramp = torch.linspace(0, 1, x.shape[-1], device=x.device) * self.factor
        first, last = x[:, :1], x[:, -1:]
        return torch.cat([first, ramp - last, last * ramp], dim=1)


def planes_of(networks, pixels, window, device=CPU, confidence=None):
    return torch.stack(list(stream_logits(networks, pixels, window, confidence=confidence, device=device)), 1)


@pytest.mark.parametrize("patch", [(8, 8, 8), (8, 8)])
@pytest.mark.parametrize("batch", [1, 3])
def test_sums_on_a_gpu_are_those_of_the_cpu_and_the_host_waits_once_for_a_row_of_patches(patch, batch):
    shape = (2, 19, 9, 13) if len(patch) == 3 else (2, 3, 9, 13)
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    axes, last = tuple(range(len(patch))), len(patch) - 1
    window = Window(patch, axes, swap_axis=last, channel_swap=(0, 2, 1), input_swap=(1, 0), batch=batch)
    on_cpu = Confidence()
    expected = planes_of([Ramp(), Ramp(2.0)], pixels, window, confidence=on_cpu)
    with pretended_gpus(2) as gpu:
        networks, on_gpu = [Ramp(), Ramp(2.0)], Confidence()
        device = torch.device("cuda:1")
        planes_of(networks, pixels, window, device)  # the weight of a patch is kept
        gpu.forget()
        networks[0].batches.clear()
        found = planes_of(networks, pixels, window, device, on_gpu)
        waits = list(gpu.waits)
        assert on_gpu.agreement == on_cpu.agreement
    assert not isinstance(found, Pretended)
    torch.testing.assert_close(found, expected)
    rows = 4 if len(patch) == 3 else 3
    assert waits == [Wait("synchronize", "medmamba/inference/sliding_window.py:fetch")] * rows
    assert set(networks[0].batches) <= {count * 2 ** len(patch) for count in range(1, batch + 1)}
    assert max(networks[0].batches) == batch * 2 ** len(patch)


def test_air_is_background_on_a_gpu_too():
    pixels = torch.zeros((1, 24, 9, 9))
    pixels[:, 18:] = torch.randn((1, 6, 9, 9), generator=torch.Generator().manual_seed(0))
    window = Window((8, 8, 8), skip_empty=True)
    with pretended_gpus():
        found = planes_of([Ramp()], pixels, window, torch.device("cuda"))
    torch.testing.assert_close(found, planes_of([Ramp()], pixels, window))


def test_numbers_that_are_not_finite_are_an_error_on_a_gpu_too():
    pixels = torch.full((1, 8, 8, 8), torch.nan)
    with pretended_gpus(), pytest.raises(FloatingPointError, match="not finite"):
        planes_of([Ramp()], pixels, Window((8, 8, 8)), torch.device("cuda"))


def test_sums_stay_in_main_memory_where_the_gpu_has_no_room_for_them(monkeypatch):
    with pretended_gpus():
        device, shape = torch.device("cuda"), (1, 512, 512, 512)
        assert sums_on(device, shape, 3, (128, 128, 128)) == device
        assert sums_on(CPU, shape, 3, (128, 128, 128)) == CPU
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (2**30, 80 * 2**30))
        assert sums_on(device, shape, 3, (128, 128, 128)) == CPU


def test_a_case_is_predicted_on_its_gpu_in_half_precision_with_all_views_together(small_dataset, tiny_run):
    path = sorted((small_dataset / "imagesTs").glob("*.nii.gz"))[0]
    options = {"folds": [0], "scan_backend": "torch", "confidence": False}
    on_cpu = medmamba.Predictor(tiny_run, device="cpu", **options)
    expected = on_cpu.predict(path)
    settings = on_cpu.provenance().settings
    assert (settings.precision, settings.tile_batch) == ("fp32", 1)
    with pretended_gpus(2) as gpu:
        half = medmamba.Predictor(tiny_run, device="cuda:1", folds=[0], confidence=False)
        settings = half.provenance().settings
        views = 2 ** len(half.model.ensembles[0].window.mirror_axes)
        assert (settings.precision, settings.tile_batch) == ("bf16", max(1, 8 // views))
        single = medmamba.Predictor(tiny_run, device="cuda:1", folds=[0], confidence=False, precision="fp32")
        gpu.forget()
        found = single.predict(path)
        assert {wait.where for wait in gpu.waits} == {"medmamba/inference/sliding_window.py:fetch"}
        assert {(launch.current, launch.tensors) for launch in gpu.launches} <= {(1, 1)}
        assert (half.predict(path).labels == expected.labels).mean() > 0.9
    assert (found.labels == expected.labels).mean() > 0.999


class FullGpu(nn.Module):
    """Runs out of memory on a GPU while ``full``, and with more than ``most`` patches."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((), 2.0))
        self.full, self.most, self.seen = False, 8, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append((x.device.type, len(x)))
        if x.is_cuda and (self.full or len(x) > self.most):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return self.weight * x


def test_a_full_gpu_leaves_one_case_to_the_cpu_and_not_the_next():
    warnings, patches = [], torch.randn(2, 1, 4, 4, 4)
    with pretended_gpus():
        network = FullGpu()
        runner = NetworkRunner(network, Execution(torch.device("cuda"), scan_backend="torch"))
        runner.on_warning = warnings.append
        runner.begin_case()
        network.full = True
        assert torch.equal(runner(patches).cpu(), 2 * patches)
        assert torch.equal(runner(patches).cpu(), 2 * patches)
        assert network.seen == [("cuda", 2), ("cuda", 1), ("cpu", 1), ("cpu", 1), ("cpu", 1), ("cpu", 1)]
        assert len(warnings) == 1
        assert "the CPU predicts the rest of this case" in warnings[0]
        network.full = False
        network.seen.clear()
        runner.begin_case()
        assert torch.equal(runner(patches).cpu(), 2 * patches)
        assert network.seen == [("cuda", 2)]


def test_what_did_not_fit_together_is_not_tried_again():
    patches = torch.randn(9, 1, 2, 2, 2)
    with pretended_gpus():
        network = FullGpu()
        network.most = 2
        runner = NetworkRunner(network, Execution(torch.device("cuda"), scan_backend="torch"))
        for _ in range(2):
            assert torch.equal(runner(patches).cpu(), 2 * patches)
    assert [count for _, count in network.seen] == [9, 4, 2, 2, 2, 2, 1, 2, 2, 2, 2, 1]


@pytest.mark.parametrize("words", ["cuDNN error: CUDNN_STATUS_INTERNAL_ERROR", "Unable to find an engine to execute"])
def test_unclear_words_are_exhausted_memory_where_a_gpu_is_nearly_full(words, monkeypatch):
    assert not is_out_of_memory(RuntimeError(words))
    with pretended_gpus(2):
        assert not is_out_of_memory(RuntimeError(words))
        free = {0: 60 * 2**30, 1: 2**30}
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (free[device], 80 * 2**30))
        assert is_out_of_memory(RuntimeError(words))


def test_a_gpu_that_torch_cannot_use_is_named_with_its_cure(tmp_path, monkeypatch, small_dataset, tiny_run):
    assert unused_gpu() is None
    driver, lines = tmp_path / "version", []
    driver.touch()
    monkeypatch.setattr(device_module, "NVIDIA", (driver,))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "torch was installed without CUDA" in unused_gpu()
    monkeypatch.setattr(torch.version, "cuda", "13.0")

    def refuse():
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 12020).\nMore")

    monkeypatch.setattr(torch.cuda, "init", refuse)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    sentence = unused_gpu()
    assert "The NVIDIA driver on your system is too old (found version 12020)" in sentence
    assert "update the driver" in sentence
    with pytest.raises(ConfigError, match=r"cuda:1.*torch sees no GPU. .*driver on your system is too old"):
        device_module.choose_device("cuda:1")
    medmamba.predict(
        tiny_run, small_dataset / "imagesTs", tmp_path / "masks", folds=[0], fast=True, on_message=lines.append
    )
    assert lines[0].startswith("Predicting with device cpu")
    assert lines[0].endswith(sentence)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES hides it" in unused_gpu()


def test_a_device_that_does_not_exist_is_refused_with_those_that_do():
    with pretended_gpus(2):
        assert device_module.choose_device("cuda:1") == torch.device("cuda:1")
        with pytest.raises(ConfigError, match=r"Device 'cuda:2' does not exist here. Use cuda:0 to cuda:1."):
            device_module.choose_device("cuda:2")
