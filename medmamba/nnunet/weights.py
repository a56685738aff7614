"""The weights of nnU-Net's networks under the names of ours, one tensor at a time."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from medmamba.errors import ConfigError
from medmamba.images.gate import shown
from medmamba.nnunet.checkpoint_file import CheckpointFile
from medmamba.nnunet.data_pickle import StoredTensor

WRAPPERS = ("module.", "_orig_mod.")
"""What training on several GPUs and compiling put before every name."""


def our_name(theirs: str, stages: int) -> str | None:
    """The name that a weight of nnU-Net's has in our network of so many stages; None for a second name of a weight."""
    if ".all_modules." in theirs or theirs.startswith("decoder.encoder."):
        return None
    rules = [
        (r"encoder\.stem\.convs\.0\.", lambda m: "encoder.0.0."),
        (r"encoder\.stages\.(\d+)\.0\.convs\.", lambda m: f"encoder.{m[1]}."),
        (r"encoder\.stages\.0\.blocks\.(\d+)\.", lambda m: f"encoder.0.{int(m[1]) + 1}."),  # behind the stem
        (r"encoder\.stages\.(\d+)\.blocks\.(\d+)\.", lambda m: f"encoder.{m[1]}.{m[2]}."),
        (r"\.conv1\.", lambda m: ".first."),
        (r"\.conv2\.", lambda m: ".second."),
        (r"\.skip\.\d\.", lambda m: ".shortcut.project."),
        (r"decoder\.stages\.(\d+)\.", lambda m: f"decoder.{m[1]}."),
        (r"decoder\.transpconvs\.(\d+)\.", lambda m: f"decoder.{m[1]}.upsample.conv."),
        (r"decoder\.seg_layers\.(\d+)\.", lambda m: f"heads.{stages - 2 - int(m[1])}."),
    ]
    for pattern, ours in rules:
        theirs = re.sub(pattern, ours, theirs)
    return theirs


def load_their_weights(file: CheckpointFile, weights: Mapping[Any, Any], network: nn.Module, trainer: str) -> None:
    """Load the entry ``network_weights`` of a checkpoint into our network.

    Raises ConfigError, naming the trainer and the first weight, where they are those of another network.
    """
    state = network.state_dict()
    stages = len(network.topology.strides)  # type: ignore[arg-type, union-attr]
    found: dict[str, StoredTensor] = {}
    for theirs, stored in weights.items():
        plain = str(theirs)
        for wrapper in WRAPPERS:
            plain = plain.removeprefix(wrapper)
        name = our_name(plain, stages)
        if name is None:
            continue
        if name not in state or not isinstance(stored, StoredTensor):
            raise _other_network(file, trainer, f"{shown(plain)[:80]} is in no such network")
        if stored.shape != tuple(state[name].shape):
            raise _other_network(file, trainer, f"{plain} is {list(stored.shape)}, not {list(state[name].shape)}")
        found[name] = stored
    if missing := sorted(state.keys() - found.keys()):
        raise _other_network(file, trainer, f"{len(missing)} weights are missing, the first is our {missing[0]}")
    with torch.no_grad():
        for name, stored in found.items():
            state[name].copy_(file.tensor(stored))


def _other_network(file: CheckpointFile, trainer: str, reason: str) -> ConfigError:
    return ConfigError(
        f"{file.where}: its weights are not those of the network in plans.json ({reason}). {shown(trainer)[:60]} may "
        "build another network, or the plans are those of another training."
    )


def their_state(network: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of our network under all names that nnU-Net has for them; its modules list some of them twice."""
    stages = len(network.topology.strides)  # type: ignore[arg-type, union-attr]
    named: dict[str, torch.Tensor] = {}
    for ours, tensor in network.state_dict().items():
        theirs = _their_name(ours, network, stages)
        block, _, last = theirs.rpartition(".")
        home, _, part = block.rpartition(".")
        names = [theirs]
        if part in ("conv", "norm") and ".transpconvs" not in block:
            own = network.get_submodule(ours.rpartition(".")[0].rpartition(".")[0])
            place = [name for name, _ in own.named_children()].index(part)
            names.append(f"{home}.all_modules.{place}.{last}")
        for name in names:
            named[name] = tensor
            if name.startswith("encoder."):
                named[f"decoder.{name}"] = tensor
    return named


def _their_name(ours: str, network: nn.Module, stages: int) -> str:
    """The inverse of :func:`our_name`."""
    residual = any(".first." in name for name in network.state_dict())
    skip = r"encoder\.(\d+)\.(\d+)\.shortcut\.project\."
    if found := re.match(skip, ours):
        pooled = "pool" in dict(network.get_submodule(f"encoder.{found[1]}.{found[2]}.shortcut").named_children())
        ours = ours.replace("shortcut.project.", f"skip.{int(pooled)}.")
    rules: list[tuple[str, Any]] = [
        (r"decoder\.(\d+)\.upsample\.conv\.", lambda m: f"decoder.transpconvs.{m[1]}."),
        (r"decoder\.(\d+)\.convs\.", lambda m: f"decoder.stages.{m[1]}.convs."),
        (r"heads\.(\d+)\.", lambda m: f"decoder.seg_layers.{stages - 2 - int(m[1])}."),
        (r"\.first\.", lambda m: ".conv1."),
        (r"\.second\.", lambda m: ".conv2."),
    ]
    if residual:
        rules += [
            (r"^encoder\.0\.0\.(?=conv|norm)", lambda m: "encoder.stem.convs.0."),
            (r"^encoder\.0\.(\d+)\.", lambda m: f"encoder.stages.0.blocks.{int(m[1]) - 1}."),
            (r"^encoder\.(\d+)\.(\d+)\.", lambda m: f"encoder.stages.{m[1]}.blocks.{m[2]}."),
        ]
    else:
        rules.append((r"^encoder\.(\d+)\.(\d+)\.", lambda m: f"encoder.stages.{m[1]}.0.convs.{m[2]}."))
    for pattern, theirs in rules:
        ours = re.sub(pattern, theirs, ours)
    return ours
