"""U-Mamba's checkpoints: our network on their weights gives the logits of a float64 reference, written from its facts.

The reference knows neither our modules nor our scan: functions of torch on a dictionary of weights under the names of
the authors' code, and a loop over the tokens.
"""

from __future__ import annotations

import json
from itertools import product
from math import ceil, prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from their_folder import CONFIGURATION, description, plans
from torch import Tensor
from torch.nn import functional as F

from medmamba import Predictor
from medmamba.errors import ConfigError
from medmamba.models.network import network_arguments
from medmamba.models.run_folder import read_plan
from medmamba.models.trained_folds import load_weights, read_model_facts
from medmamba.networks.build import available_networks, rebuild_network
from medmamba.nnunet.convert import convert_model
from medmamba.plans.options import PlanOptions
from medmamba.plans.planner import refuse_options

WIDTHS, CLASSES, STATES = (2, 4, 8, 8), 3, 16
SIZES: dict[int, dict[str, Any]] = {
    2: {
        "patch_size": [16, 16],
        "pool_op_kernel_sizes": [[1, 1], [2, 2], [2, 2], [2, 2]],
        "conv_kernel_sizes": [[3, 3]] * 4,
        "spacing": [1.0, 1.0],
        "median_image_size_in_voxels": [16, 16],
    },
    3: {
        "patch_size": [8, 16, 16],
        "pool_op_kernel_sizes": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]],
        "conv_kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
    },
}
"""The deepest maps have 4 and 8 voxels, no more than channels: there Enc's tokens are the channels."""
BLOCKS, DECODER_BLOCKS = (2, 2, 1, 1), (2, 2, 1)
"""What the authors' code makes of the 2 everywhere in plans.json."""
CASES = list(product(("bot", "enc"), (2, 3)))


class Weights:
    """Random weights, made the first time that the reference asks for one: their names are those of the authors."""

    def __init__(self, seed: int) -> None:
        self.random, self.state = torch.Generator().manual_seed(seed), dict[str, Tensor]()

    def __call__(self, name: str, *shape: int) -> Tensor:
        if name not in self.state:
            values = torch.randn(shape, generator=self.random, dtype=torch.float64)
            if name.endswith(".A_log"):
                values = (torch.arange(1, shape[1] + 1).double().log() + 0.3 * values).contiguous()
            self.state[name] = (values * (2 / max(values[0].numel(), 4)) ** 0.5).float()
        return self.state[name].double()


def reference(w: Weights, form: str, dims: int, image: Tensor) -> Tensor:
    """Logits of the finest resolution."""
    convolve = (F.conv2d, F.conv3d)[dims - 2]
    sizes = SIZES[dims]
    strides, kernels = sizes["pool_op_kernel_sizes"], sizes["conv_kernel_sizes"]
    stages = len(WIDTHS)

    def conv(x: Tensor, name: str, width: int, kernel: list[int], stride: list[int] | None = None) -> Tensor:
        weight = w(f"{name}.weight", width, x.shape[1], *kernel)
        return convolve(x, weight, w(f"{name}.bias", width), stride or 1, [edge // 2 for edge in kernel])

    def normal(x: Tensor, name: str) -> Tensor:
        axes = tuple(range(2, x.ndim))
        unit = (x - x.mean(axes, keepdim=True)) / (x.var(axes, unbiased=False, keepdim=True) + 1e-5).sqrt()
        scale, shift = (w(f"{name}.{part}", x.shape[1]).reshape(-1, *[1] * dims) for part in ("weight", "bias"))
        return unit * scale + shift

    def relu(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.01 * x)

    def blocks(x: Tensor, name: str, width: int, kernel: list[int], stride: list[int] | None, count: int) -> Tensor:
        inner = relu(normal(conv(x, f"{name}.0.conv1", width, kernel, stride), f"{name}.0.norm1"))
        inner = normal(conv(inner, f"{name}.0.conv2", width, kernel), f"{name}.0.norm2")
        x = relu(inner + conv(x, f"{name}.0.conv3", width, [1] * dims, stride))
        for number in range(1, count):
            own = f"{name}.{number}"
            inner = relu(normal(conv(x, f"{own}.conv1.conv", width, kernel), f"{own}.conv1.norm"))
            inner = normal(conv(inner, f"{own}.conv2.conv", width, kernel), f"{own}.conv2.norm")
            x = relu(inner + x)
        return x

    def mamba(x: Tensor, name: str, channels: bool) -> Tensor:
        tokens = x.flatten(2) if channels else x.flatten(2).transpose(1, 2)
        width, inner = tokens.shape[-1], 2 * tokens.shape[-1]
        rank = ceil(width / 16)
        unit = F.layer_norm(tokens, (width,), w(f"{name}.norm.weight", width), w(f"{name}.norm.bias", width))
        own = f"{name}.mamba"
        u, gate = (unit @ w(f"{own}.in_proj.weight", 2 * inner, width).T).chunk(2, -1)
        taps, shift = w(f"{own}.conv1d.weight", inner, 1, 4), w(f"{own}.conv1d.bias", inner)
        before = F.pad(u, (0, 0, 3, 0))
        u = F.silu(sum(before[:, k : k + u.shape[1]] * taps[:, 0, k] for k in range(4)) + shift)
        low, into, out = (u @ w(f"{own}.x_proj.weight", rank + 2 * STATES, inner).T).split([rank, STATES, STATES], -1)
        step = F.softplus(low @ w(f"{own}.dt_proj.weight", inner, rank).T + w(f"{own}.dt_proj.bias", inner))
        decay, state, found = -torch.exp(w(f"{own}.A_log", inner, STATES)), torch.zeros(()), []
        for t in range(u.shape[1]):
            state = torch.exp(step[:, t, :, None] * decay) * state + (step * u)[:, t, :, None] * into[:, t, None]
            found.append((state * out[:, t, None]).sum(-1))
        y = (torch.stack(found, 1) + u * w(f"{own}.D", inner)) * F.silu(gate)
        y = y @ w(f"{own}.out_proj.weight", width, inner).T
        return (y if channels else y.transpose(1, 2)).reshape(x.shape)

    x = blocks(image, "encoder.stem", WIDTHS[0], kernels[0], None, BLOCKS[0])
    skips, grid = [], list(sizes["patch_size"])
    for stage, width in enumerate(WIDTHS):
        grid = [edge // step for edge, step in zip(grid, strides[stage], strict=True)]
        x = blocks(x, f"encoder.stages.{stage}", width, kernels[stage], strides[stage], BLOCKS[stage])
        if form == "bot" and stage == stages - 1:
            x = mamba(x, "mamba_layer", channels=False)
        if form == "enc" and (dims == 3 or (stages - 1 - stage) % 2 == 0):
            x = mamba(x, f"encoder.mamba_layers.{stage}", channels=prod(grid) <= width)
        skips.append(x)
    for level in range(stages - 1):
        stage, name = stages - 2 - level, f"decoder.stages.{level}"
        for axis, step in enumerate(strides[stage + 1]):
            x = x.repeat_interleave(step, dim=2 + axis)
        x = conv(x, f"decoder.upsample_layers.{level}.conv", WIDTHS[stage], [1] * dims)
        if dims == 3 or stage > 0:
            x = torch.cat([x, skips[stage]], 1)
        x = blocks(x, name, WIDTHS[stage], kernels[stage], None, DECODER_BLOCKS[level])
        logits = conv(x, f"decoder.seg_layers.{level}", CLASSES, [1] * dims)
    return logits


def their_results(folder: Path, form: str, dims: int, changes: dict[str, Tensor] | None = None) -> tuple[Path, Weights]:
    """A trained folder, and its weights."""
    w, name = Weights(dims), "2d" if dims == 2 else "3d_fullres"
    reference(w, form, dims, torch.zeros(1, 1, *SIZES[dims]["patch_size"], dtype=torch.float64))
    document, trainer = plans(), f"nnUNetTrainerUMamba{form.capitalize()}"
    numbers = {"n_conv_per_stage_encoder": [2] * 4, "n_conv_per_stage_decoder": [2] * 3, "unet_max_num_features": 8}
    document["configurations"] = {name: CONFIGURATION | numbers | SIZES[dims]}
    home = folder / "Dataset004_Test" / f"{trainer}__nnUNetPlans__{name}"
    (home / "fold_0").mkdir(parents=True)
    encoder = {f"decoder.{key}": value for key, value in w.state.items() if key.startswith("encoder.")}
    content = {
        "network_weights": w.state | encoder if changes is None else changes,
        "init_args": {"plans": document, "configuration": name, "fold": 0},
        "trainer_name": trainer,
        "inference_allowed_mirroring_axes": tuple(range(dims)),
    }
    torch.save(content, home / "fold_0" / "checkpoint_final.pth")
    (home / "plans.json").write_text(json.dumps(document))
    (home / "dataset.json").write_text(json.dumps(description()))
    return home, w


@pytest.mark.parametrize(("form", "dims"), CASES)
def test_its_weights_give_the_logits_of_the_reference(form: str, dims: int, tmp_path: Path) -> None:
    home, w = their_results(tmp_path, form, dims)
    run = convert_model(home, tmp_path / "run").run
    fold = run / "models" / ("2d" if dims == 2 else "3d_fullres") / "fold_0"
    facts = read_model_facts(fold)
    assert facts.network["name"] == f"u_mamba_{form}_original"
    network = rebuild_network(facts.network).eval()
    load_weights(fold, network)
    network = network.double()
    image = torch.randn(
        2, 1, *SIZES[dims]["patch_size"], dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    with torch.no_grad():
        found, wanted = network(image), reference(w, form, dims, image)
    assert wanted.std() > 0.1
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    with torch.no_grad():  # random weights behind norms of 8 voxels blow single voxels up
        difference = network.float()(image.float()).double() - wanted
    assert difference.abs().mean() < 1e-2 * wanted.std()


def test_it_predicts_an_image(tmp_path: Path) -> None:
    home, _ = their_results(tmp_path, "enc", 3)
    made = convert_model(home, tmp_path / "run")
    assert made.notes[0] == "3d_fullres: 1 fold of nnUNetTrainerUMambaEnc, mirrored along 0, 1, 2"
    image = np.random.default_rng(0).normal(size=(20, 18, 9)).astype(np.float32)
    mask = Predictor(made.run).predict((image, np.diag([1.0, 1.0, 2.0, 1.0])))
    assert mask.labels.shape == image.shape


def test_another_network_with_mamba_is_refused_by_name(tmp_path: Path) -> None:
    first_form = {"ln.weight": torch.ones(8), "mamba.A_log": torch.ones(16, 16)}
    home, _ = their_results(tmp_path, "bot", 3, first_form)
    with pytest.raises(ConfigError, match="a network with Mamba that is not U-Mamba Bot or Enc of May 2024 or later"):
        convert_model(home, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_weights_of_another_patch_size_are_refused(tmp_path: Path) -> None:
    home, _ = their_results(tmp_path, "enc", 3)
    document = json.loads((home / "plans.json").read_text())
    document["configurations"]["3d_fullres"]["patch_size"] = [8, 16, 8]
    (home / "plans.json").write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=r"encoder\.mamba_layers\.3\.\S+ is .*, not "):
        convert_model(home, tmp_path / "run")


def test_it_is_not_planned(tmp_path: Path) -> None:
    assert not [name for name in available_networks() if name.endswith("_original")]
    with pytest.raises(ConfigError, match="built for trained models only"):
        refuse_options(PlanOptions(network="u_mamba_enc_original"))


def test_an_image_of_another_size_than_the_patch_is_one_line(tmp_path: Path) -> None:
    plan = read_plan(convert_model(their_results(tmp_path, "enc", 2)[0], tmp_path / "run").run / "plan.json")
    network = rebuild_network(network_arguments(plan, plan.default)).eval()
    with pytest.raises(ConfigError, match="has weights for a map of 4 voxels, and got one of 8"):
        network(torch.zeros(1, 1, 16, 32))
