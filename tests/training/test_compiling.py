"""--compile: the same training, and one line where the machine cannot compile."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn

from medmamba import pipeline
from medmamba.models.checkpoint import read_state
from medmamba.networks.build import build_network
from medmamba.training.config import TrainConfig
from medmamba.training.step import Compiled

CONFIG = TrainConfig(steps=6, steps_per_epoch=3, workers=0, warmup_steps=0, precision="fp32", deterministic=True)


def _train(run, config):
    losses, events = [], []
    pipeline.train(run, config=config, on_step=lambda report: losses.append(report.loss), on_event=events.append)
    return losses, events, read_state(run / "models" / "3d_fullres" / "fold_0" / "checkpoints" / "last")["sha256"]


@pytest.fixture
def plain_and_other(clinic_run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(clinic_run, other)
    return _train(clinic_run, CONFIG), other


@pytest.mark.parametrize("when", ["asked for", "called"])
def test_a_compiler_that_fails_is_told_once_and_left_out(plain_and_other, monkeypatch, when):
    (losses, _, weights), other = plain_and_other
    calls = []

    def failing(argument, **options):
        calls.append(argument)
        raise RuntimeError("no compiler here\nand much more")

    monkeypatch.setattr(torch, "compile", failing if when == "asked for" else lambda network, **options: failing)
    found, events, found_weights = _train(other, CONFIG.model_copy(update={"compile": True}))
    assert events == ["--compile: torch.compile failed (RuntimeError: no compiler here); continuing without it."]
    assert len(calls) == 1
    assert (found, found_weights) == (losses, weights)


def test_memory_that_runs_out_is_no_failure_of_the_compiler(monkeypatch):
    def out_of_memory(image):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(torch, "compile", lambda network, **options: out_of_memory)
    told = []
    compiled = Compiled(nn.Identity(), told.append)
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            compiled(torch.zeros(1))
    assert told == []


def test_an_error_of_the_network_itself_stays_one(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda network, **options: network)
    told = []
    compiled = Compiled(nn.Linear(2, 2), told.append)
    with pytest.raises(RuntimeError, match="shapes"):
        compiled(torch.zeros(1, 3))


@pytest.mark.slow
def test_a_compiled_training_is_the_plain_one_but_for_rounding(plain_and_other):
    (losses, *_), other = plain_and_other
    found, events, _ = _train(other, CONFIG.model_copy(update={"compile": True}))
    torch.compiler.reset()
    assert events == []
    assert found != losses  # it was compiled
    assert found == pytest.approx(losses, rel=1e-3)


@pytest.mark.slow
def test_patches_of_another_size_or_dimension_are_compiled_anew():
    told = []
    for dims, sizes in ((3, [(16, 16, 8), (8, 16, 8)]), (2, [(32, 16)])):
        torch.manual_seed(0)
        strides = [[1] * dims, [2] * dims, [2] * dims]
        network = build_network(
            "vm_unet",
            spatial_dims=dims,
            in_channels=1,
            out_channels=2,
            strides=strides,
            features_per_stage=[8, 16, 16],
            deep_supervision=True,
        )
        compiled = Compiled(network, told.append)
        for size in sizes:
            image = torch.randn(2, 1, *size)
            for output, truth in zip(compiled(image), network(image), strict=True):
                torch.testing.assert_close(output, truth, rtol=1e-4, atol=1e-4)
    torch.compiler.reset()
    assert told == []
