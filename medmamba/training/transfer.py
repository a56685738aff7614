"""Initialisation from another model: output channels by label name, image channels by channel name, the rest by shape.

Which tensors belong to the output or the image channels is not guessed from names: the network is built again, without
memory, with one class or one channel more, and the tensors whose shapes change are the ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from medmamba.errors import ConfigError
from medmamba.models.checkpoint import read_state
from medmamba.models.output_channels import OutputChannels
from medmamba.models.run_folder import read_plan
from medmamba.models.trained_folds import read_model_facts
from medmamba.networks.build import build_network, published_networks
from medmamba.networks.published.weights import read_converted
from medmamba.plans.schema import Plan

SHOWN_NAMES = 6


@dataclass
class TransferReport:
    """What an initialisation did with each tensor of the network."""

    source: str
    kept: list[str] = field(default_factory=list)
    adapted: dict[str, str] = field(default_factory=dict)
    new: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def take(self, name: str, tensor: torch.Tensor, source: torch.Tensor | None) -> None:
        """Copy ``source`` into the parameter ``name`` if their shapes agree, and remember what became of it."""
        if source is not None and source.shape == tensor.shape:
            tensor.copy_(source)
            self.kept.append(name)
        else:
            self.new.append(name)

    def lines(self) -> list[str]:
        """For people."""
        lines = [
            f"Initialised from {self.source}: {len(self.kept)} tensors kept, {len(self.adapted)} adapted, "
            f"{len(self.new)} new, {len(self.unused)} of the old model not used."
        ]
        reasons = list(dict.fromkeys(self.adapted.values()))
        lines += [
            f"adapted ({reason}): {_some([n for n, r in self.adapted.items() if r == reason])}" for reason in reasons
        ]
        if self.new:
            lines.append(f"new: {_some(self.new)}")
        return lines

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "source": self.source,
            "kept": self.kept,
            "adapted": self.adapted,
            "new": self.new,
            "unused": self.unused,
        }


def initialise(network: nn.Module, arguments: dict[str, Any], plan: Plan, model: Path) -> TransferReport:
    """Copy what fits of a trained or pretrained ``model`` into ``network`` (built from ``arguments``).

    ``model`` is a fold's folder, a pretraining's folder, a run with one of them, or the file of published weights that
    ``medmamba convert weights`` writes. Raises ConfigError when nothing of it fits, so that a wrong model is never a
    silent start from scratch.
    """
    if model.is_file():
        return _from_published(network, arguments, model)
    folder = find_model(model)
    facts = read_model_facts(folder)
    old_plan = read_plan(folder / "plan.json")
    generation = "best" if (folder / "checkpoints" / "best" / "state.json").exists() else "last"
    read_state(folder / "checkpoints" / generation)  # hashes
    old = load_file(folder / "checkpoints" / generation / "model.safetensors")
    heads = _shape_changes(arguments, "out_channels")
    channels = _shape_changes(arguments, "in_channels")
    old_heads = facts.heads or list(OutputChannels.of_plan(old_plan).names)
    label_rows = _matches(list(OutputChannels.of_plan(plan).names), old_heads)
    channel_rows = _matches(plan.channel_names, old_plan.channel_names)
    report = TransferReport(str(folder))
    state = network.state_dict()
    with torch.no_grad():
        for name, tensor in state.items():
            source = old.pop(name, None)
            if name in heads or name in channels:
                rows, wanted, given, what = (
                    (label_rows, len(OutputChannels.of_plan(plan).names), len(old_heads), "classes by name")
                    if name in heads
                    else (channel_rows, len(plan.channel_names), len(old_plan.channel_names), "channels by name")
                )
                copied = None if source is None else _by_rows(tensor, source, rows, wanted, given)
                if copied is None:
                    report.new.append(name)
                elif copied:
                    report.adapted[name] = what
                else:
                    report.kept.append(name)
            else:
                report.take(name, tensor, source)
    report.unused = sorted(old)
    if not report.kept:
        raise ConfigError(
            f"{folder}: none of its {len(report.unused) + len(report.new)} tensors fits this network "
            f"({facts.network.get('name')} there, {arguments['name']} here). Use the same --network and plan."
        )
    return report


def _from_published(network: nn.Module, arguments: dict[str, Any], file: Path) -> TransferReport:
    """Tensors of the same name and shape; heads are always new, because published classes have no names."""
    old, facts = read_converted(file)
    report = TransferReport(f"{file} ({facts['family']}, {facts['source']})")
    heads = _shape_changes(arguments, "out_channels")
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            source = old.pop(name, None)
            report.take(name, tensor, None if name in (*heads, *facts["missing"]) else source)
    report.unused = sorted(old)
    if not report.kept:
        raise ConfigError(
            f"{file}: none of its tensors ({facts['family']}) fits network {arguments['name']}. Published weights are "
            f"for a published network: --network {' or '.join(published_networks())}."
        )
    return report


def freeze(network: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Exclude the parameters whose names match (``encoder*``, ``stem*``) from training; returns their names.

    Raises ConfigError for a pattern that matches nothing.
    """
    frozen = []
    for pattern in patterns:
        names = [
            name for name, _ in network.named_parameters() if fnmatch(name, pattern) or name.startswith(pattern + ".")
        ]
        if not names:
            parts = ", ".join(dict.fromkeys(name.split(".")[0] for name, _ in network.named_parameters()))
            raise ConfigError(f"--freeze {pattern!r} matches no parameter. Parts of this network: {parts}.")
        frozen += names
    chosen = set(frozen)
    for name, parameter in network.named_parameters():
        if name in chosen:
            parameter.requires_grad_(False)
    return frozen


def find_model(path: Path) -> Path:
    """The folder with model.json: ``path`` itself, or the only (or first) trained model below a run."""
    if (path / "model.json").is_file():
        return path
    found = sorted(p.parent for p in path.glob("pretrained/*/model.json"))
    found += sorted(p.parent for p in path.glob("models/*/fold_*/model.json") if (p.parent / "checkpoints").is_dir())
    if not found:
        raise ConfigError(
            f"--init {path}: no trained model there. Give a run, a fold's folder, a pretraining or "
            f"the file of `medmamba convert weights`."
        )
    return found[0]


def _shape_changes(arguments: dict[str, Any], key: str) -> set[str]:
    """Names of the tensors whose shape depends on one argument."""
    with torch.device("meta"):
        one = build_network(**arguments).state_dict()
        other = build_network(**{**arguments, key: arguments[key] + 1}).state_dict()
    return {name for name, tensor in one.items() if name in other and tensor.shape != other[name].shape}


def _matches(wanted: Sequence[str], given: Sequence[str]) -> dict[int, int]:
    """New index to old index, for names that both have (compared without case)."""
    places = {name.lower(): index for index, name in enumerate(given)}
    return {index: places[name.lower()] for index, name in enumerate(wanted) if name.lower() in places}


def _by_rows(tensor: torch.Tensor, source: torch.Tensor, rows: dict[int, int], wanted: int, given: int) -> bool | None:
    """Copy the matching rows of the axis that has ``wanted`` entries here and ``given`` there.

    Returns None when nothing could be copied, True when rows moved or are missing, False for a plain copy.
    """
    axes = [
        axis
        for axis in range(tensor.ndim)
        if source.ndim == tensor.ndim
        and tensor.shape[axis] == wanted
        and source.shape[axis] == given
        and _without(tensor.shape, axis) == _without(source.shape, axis)
    ]
    if not axes or not rows:
        return None
    axis = axes[0]
    for new, old in rows.items():
        tensor.select(axis, new).copy_(source.select(axis, old))
    return not (wanted == given and all(new == old for new, old in rows.items()) and len(rows) == wanted)


def _without(shape: Sequence[int], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], *shape[axis + 1 :])


def _some(names: Sequence[str]) -> str:
    rest = len(names) - SHOWN_NAMES
    return ", ".join(names[:SHOWN_NAMES]) + (f" and {rest} more" if rest > 0 else "")
