"""The weights of nnU-Net's networks and of U-Mamba under the names of ours, one tensor at a time."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from medmamba.errors import ConfigError
from medmamba.images.gate import shown
from medmamba.nnunet.checkpoint_file import CheckpointFile
from medmamba.nnunet.data_pickle import StoredTensor

WRAPPERS = ("module.", "_orig_mod.")
"""What training on several GPUs and compiling put before every name."""
U_MAMBA = {"bot": "mamba_layer.mamba.A_log", "enc": r"encoder.mamba_layers.\d+.mamba.A_log"}
"""A weight that each form of U-Mamba has; nnU-Net's plans do not name the network of such a trainer."""


def u_mamba_of(names: Iterable[Any], where: str) -> str | None:
    """Our name of U-Mamba's network where the weights are its; None for others.

    Raises ConfigError for the first form of its code, which is another network.
    """
    plain = [_unwrapped(name) for name in names]
    if not any(name.endswith("mamba.A_log") for name in plain):
        return None
    for form, weight in U_MAMBA.items():
        if "encoder.stem.0.conv3.weight" in plain and any(re.fullmatch(weight, name) for name in plain):
            return f"u_mamba_{form}_original"
    raise ConfigError(
        f"{where}: a network with Mamba that is not U-Mamba Bot or Enc of May 2024 or later. Train it again with these."
    )


def _unwrapped(theirs: Any) -> str:
    name = str(theirs)
    for wrapper in WRAPPERS:
        name = name.removeprefix(wrapper)
    return name


def our_name(theirs: str, stages: int) -> str | None:
    """The name that a weight of nnU-Net's has in our network of so many stages; None for a second name of a weight."""
    if ".all_modules." in theirs or theirs.startswith("decoder.encoder."):
        return None
    rules = [
        *_u_mamba_rules(stages),
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


def _u_mamba_rules(stages: int) -> list[tuple[str, Any]]:
    """What only U-Mamba's names have: numbered blocks, convolutions without a norm of their own, the Mamba layers."""
    return [
        (r"encoder\.stem\.(\d+)\.", lambda m: f"encoder.0.stem.{m[1]}."),
        (r"encoder\.stages\.(\d+)\.(\d+)\.(?!convs)", lambda m: f"encoder.{m[1]}.blocks.{m[2]}."),
        (r"decoder\.stages\.(\d+)\.(\d+)\.", lambda m: f"decoder.{m[1]}.blocks.{m[2]}."),
        (r"decoder\.upsample_layers\.", lambda m: "decoder."),
        (r"encoder\.mamba_layers\.(\d+)\.", lambda m: f"encoder.{m[1]}.mamba."),
        (r"^mamba_layer\.", lambda m: f"encoder.{stages - 1}.mamba."),
        (r"\.mamba\.mamba\.(conv1d|in_proj|out_proj)\.", lambda m: f".mamba.mixer.{m[1]}."),
        (r"\.mixer\.conv1d\.", lambda m: ".mixer.forwards.conv1d."),
        (r"\.mamba\.mamba\.", lambda m: ".mamba.mixer.forwards.scan."),
        (r"\.conv1\.(weight|bias)$", lambda m: f".first.conv.{m[1]}"),
        (r"\.conv2\.(weight|bias)$", lambda m: f".second.conv.{m[1]}"),
        (r"\.conv3\.(weight|bias)$", lambda m: f".shortcut.{m[1]}"),
        (r"\.norm1\.", lambda m: ".first.norm."),
        (r"\.norm2\.", lambda m: ".second.norm."),
    ]


def load_their_weights(file: CheckpointFile, weights: Mapping[Any, Any], network: nn.Module, trainer: str) -> None:
    """Load the entry ``network_weights`` of a checkpoint into our network.

    Raises ConfigError, naming the trainer and the first weight, where they are those of another network.
    """
    state = network.state_dict()
    stages = len(network.topology.strides)  # type: ignore[arg-type, union-attr]
    found: dict[str, StoredTensor] = {}
    for theirs, stored in weights.items():
        plain = _unwrapped(theirs)
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
