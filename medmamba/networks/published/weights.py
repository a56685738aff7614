"""Published weights: reading checkpoints of the original projects, loading them under our names, storing them.

Loading never passes silently: what was loaded, what had to be adapted, what is left over and what is missing are
counted and named, and a file of which nothing fits is an error.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from medmamba.disk.atomic import write_atomically
from medmamba.errors import ConfigError, InputError, unknown_name
from medmamba.networks.published.names import mambaout_layout, our_name
from medmamba.networks.published.presets import PRESETS, from_state_dict

_WRAPPERS = ("state_dict", "model", "model_ema", "net")  # entries under which checkpoints keep their weights
_PREFIXES = ("module.", "_orig_mod.", "backbone.")  # of distributed, compiled and wrapped models
_SHOWN = 6  # names per line of a report


@dataclass(frozen=True)
class WeightReport:
    """What became of a published state dict: names of our parameters, of the original's in ``left_over``."""

    loaded: tuple[str, ...]
    adapted: tuple[str, ...]  # reshaped, or used a second time, with how
    left_over: tuple[str, ...]  # with why
    missing: tuple[str, ...]  # keep their initial values

    def summary(self) -> str:
        """One line per group: how many, and the first few names."""
        lines = []
        for label in ("loaded", "adapted", "left_over", "missing"):
            names = getattr(self, label)
            shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
            lines.append(f"{label.replace('_', ' ')}: {len(names)}" + (f" ({shown})" if names else ""))
        return "\n".join(lines)


def convert_weights(
    source: Path | str, target: Path | str, *, family: str, threshold: float | None = None
) -> WeightReport:
    """Translate a published checkpoint to our names and write it as safetensors.

    Args:
        source: .safetensors, or .pth / .pt / .bin read with ``weights_only``.
        target: the .safetensors file to write.
        family: a key of PRESETS.
        threshold: MHS-VM's fusion threshold, which its checkpoints do not store; it is written into the metadata.

    Raises InputError for an unreadable file, ConfigError for an unknown family and if nothing fits.
    """
    state = read_state_dict(source)
    module = from_state_dict(state, family, threshold=threshold)
    report = load_published(module, state, family)
    facts: dict[str, Any] = {"family": family, "source": Path(source).name, "missing": list(report.missing)}
    if threshold is not None:
        facts["threshold"] = threshold
    tensors = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    with write_atomically(target) as file:
        file.write(save(tensors, metadata={"medmamba": json.dumps(facts)}))
    return report


def read_converted(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts (family, source, missing) of a file that :func:`convert_weights` wrote.

    Raises ConfigError for any other file.
    """
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["medmamba"])
            return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118, not a mapping
    except (SafetensorError, TypeError, KeyError, ValueError):
        raise ConfigError(
            f"{path}: not published weights under our names. Translate them first: "
            f"`medmamba convert weights {path} -o OUTPUT.safetensors --family FAMILY`."
        ) from None


def read_state_dict(path: Path | str) -> dict[str, Tensor]:
    """Tensors by name from a checkpoint; nothing but tensors and plain containers is ever unpickled."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint.")
    try:
        if path.suffix == ".safetensors":
            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"{path}: cannot be read as weights ({reason}). Save its state dict alone, with torch.save or safetensors."
        ) from None
    for wrapper in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    tensors = {str(k): v for k, v in found.items() if isinstance(v, Tensor)} if isinstance(found, Mapping) else {}
    if not tensors:
        raise InputError(f"{path}: holds no tensors by name; a state dict is needed.")
    for prefix in _PREFIXES:
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def load_published(module: nn.Module, state: Mapping[str, Tensor], family: str) -> WeightReport:
    """Load a published state dict into our module; names not met stay as they are and are reported.

    ``vmamba_v0`` fills VM-UNet's encoder and, with the same blocks mirrored, its decoder, as the original does.
    Raises ConfigError if not a single tensor fits.
    """
    if family not in PRESETS:
        raise unknown_name("weights family", family, list(PRESETS))
    rules = {"mambaout": mambaout_layout(state), "vmamba_v0": "vm_unet"}.get(family, family)
    own = module.state_dict()
    new: dict[str, Tensor] = {}
    adapted: dict[str, str] = {}
    left_over = []
    for name, tensor in state.items():
        key = our_name(name, rules)
        if key not in own:
            if key:
                left_over.append(f"{name} (not in this network)")
        elif own[key].shape == tensor.shape:
            new[key] = tensor
        elif own[key].numel() == tensor.numel() and own[key].squeeze().shape == tensor.squeeze().shape:
            new[key] = tensor.reshape(own[key].shape)
            adapted[key] = f"{key} from {tuple(tensor.shape)}"
        else:
            left_over.append(f"{name} (is {tuple(tensor.shape)}, {tuple(own[key].shape)} is needed)")
    if family == "vmamba_v0":
        deepest = max((int(n.split(".")[1]) for n in own if n.startswith("layers.")), default=0)
        for key in list(new):
            found = re.match(r"layers\.(\d+)\.(blocks\..*)$", key)
            mirrored = f"layers_up.{deepest - int(found[1])}.{found[2]}" if found else ""
            if mirrored in own and own[mirrored].shape == new[key].shape:
                new[mirrored] = new[key]
                adapted[mirrored] = f"{mirrored} from {key}"
    if not new:
        raise ConfigError(
            f"No tensor of this checkpoint fits a {family} network. It has names like {', '.join(list(state)[:3])}; "
            f"needed are names like {', '.join(list(own)[:3])}."
        )
    module.load_state_dict(new, strict=False)
    missing = [name for name in own if name not in new and not name.endswith("num_batches_tracked")]
    loaded = [name for name in new if name not in adapted]
    return WeightReport(tuple(loaded), tuple(adapted.values()), tuple(left_over), tuple(missing))
