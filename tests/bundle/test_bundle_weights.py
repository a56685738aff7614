"""Weights of a bundle that are damaged, hostile, missing or another network's, where MONAI runs the bundle."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from medmamba.bundle.runtime.weights import CURE, CheckpointLoader, load_weights
from medmamba.errors import InputError
from medmamba.networks.weight_file import read_weight_file

RUN = """
import runpy, sys
sys.modules["medmamba"] = None
sys.argv = ["monai.bundle", "run", "--config_file", sys.argv[1], "--bundle_root", ".",
    "--dataset_dir", sys.argv[2], "--output_dir", sys.argv[3]]
runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
"""


class Payload:
    """What a hostile file would hold."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("this code ran",)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2000])


def _flip(path: Path) -> None:
    """One bit of a tensor, which torch reads as another number."""
    state = torch.load(path, weights_only=True)
    largest = max(state.values(), key=torch.Tensor.numel)
    content = bytearray(path.read_bytes())
    content[content.index(largest.numpy().tobytes())] ^= 1
    path.write_bytes(content)
    assert any(not torch.equal(state[name], value) for name, value in torch.load(path, weights_only=True).items())


def _hostile(path: Path) -> None:
    torch.save({"model": Payload()}, path)


def _other(path: Path) -> None:
    torch.save({"members.0.head.weight": torch.zeros(2)}, path)


DAMAGES = {
    "cut": (_cut, r"damaged, or no file of weights"),
    "flipped": (_flip, r"damaged: \S+/data/\d+ differs from its checksum \(CRC-32\)"),
    "hostile": (_hostile, r"holds more than tensors.* could run code when it is read"),
    "missing": (Path.unlink, r"no such file of weights"),
    "other": (_other, r"the weights of another network: \d+ tensors differ in name or shape, such as 0\.bias"),
}


@pytest.mark.parametrize("config", ["inference", "train"])
def test_monai_says_in_one_line_which_weights_it_does_not_read(config, exported, small_dataset, tmp_path):
    bundle = Path(shutil.copytree(exported.folder, tmp_path / "bundle"))
    _hostile(bundle / "models" / "model.pt")
    images = small_dataset if config == "train" else small_dataset / "imagesTs"
    command = [sys.executable, "-B", "-W", "ignore", "-c", RUN, f"configs/{config}.json", str(images), "masks"]
    done = subprocess.run(command, cwd=bundle, capture_output=True, text=True, check=False)
    printed = done.stdout + done.stderr
    assert done.returncode == 1
    *_, last = done.stderr.strip().splitlines()
    assert last.startswith("Error: models/model.pt: holds more than tensors")
    assert last.endswith(CURE)
    for word in ("Traceback", "weights_only", "this code ran"):
        assert word not in printed
    assert not list(bundle.glob("masks/*"))


@pytest.mark.parametrize("damage", DAMAGES)
def test_weights_that_are_not_the_networks_are_refused_before_the_engine_runs(damage, tmp_path):
    pytest.importorskip("ignite", reason="MONAI's handlers need the extra 'bundle'")
    from ignite.engine import Engine

    network, path = nn.Sequential(nn.Linear(30, 40)), tmp_path / "model.pt"
    torch.save(network.state_dict(), path)
    spoil, message = DAMAGES[damage]
    spoil(path)
    engine = Engine(lambda engine, batch: None)
    with pytest.raises(InputError, match=message) as refused:
        CheckpointLoader(load_path=str(path), load_dict={"model": network}).attach(engine)
    with pytest.raises(InputError, match=message):
        load_weights(network, str(path))
    text = str(refused.value)
    assert text.startswith(str(path))
    assert text.endswith(CURE)
    assert "\n" not in text
    assert "weights_only" not in text
    assert refused.value.__cause__ is None


@pytest.mark.parametrize("wrapped", [False, True])
def test_weights_are_loaded_when_the_engine_starts(wrapped, tmp_path):
    pytest.importorskip("ignite", reason="MONAI's handlers need the extra 'bundle'")
    from ignite.engine import Engine

    trained, network, path = nn.Linear(3, 2), nn.Linear(3, 2), str(tmp_path / "model.pt")
    torch.save({"model": trained.state_dict()} if wrapped else trained.state_dict(), path)
    engine = Engine(lambda engine, batch: None)
    CheckpointLoader(load_path=path, load_dict={"model": network}).attach(engine)
    assert not torch.equal(network.weight, trained.weight)
    engine.run([0])
    assert torch.equal(network.weight, trained.weight)


def test_every_configuration_loads_weights_by_the_bundles_own_handler(exported):
    for path in (exported.folder / "configs").glob("*.json"):
        assert '"CheckpointLoader"' not in path.read_text()
    for name in ("inference", "train"):
        handlers = json.loads((exported.folder / "configs" / f"{name}.json").read_text())["handlers"]
        assert handlers[0]["_target_"] == "scripts.weights.CheckpointLoader"


def test_a_flipped_bit_in_weights_of_others_is_noticed(tmp_path):
    path = tmp_path / "published.pth"
    torch.save(nn.Linear(30, 40).state_dict(), path)
    _flip(path)
    with pytest.raises(InputError, match=r"published\.pth: damaged: .* differs from its checksum"):
        read_weight_file(path)
