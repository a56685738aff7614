"""Initialisation from another model: output channels by label name, image channels by channel name, the rest by shape.

Which tensors belong to the output or the image channels is not guessed from names: the network is built again, without
memory, with one class or one channel more, and the tensors whose shapes change are the ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medmamba.errors import ConfigError
from medmamba.models.checkpoint import read_state
from medmamba.models.output_channels import OutputChannels
from medmamba.models.run_folder import read_plan
from medmamba.models.trained_folds import read_model_facts
from medmamba.networks.build import build_network, published_networks
from medmamba.networks.published.weights import read_converted
from medmamba.networks.weight_file import load_tensors
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


@dataclass(frozen=True)
class _NamedAxis:
    """Names of the entries along an axis of some tensors, in the network and in the old model."""

    reason: str
    here: list[str]
    there: list[str]

    def copy(self, tensor: torch.Tensor, source: torch.Tensor) -> bool:
        """Copy the entries that both have, along the axis of these lengths; whether there were any."""
        rows = {new: self.there.index(name) for new, name in enumerate(self.here) if name in self.there}
        lengths = (len(self.here), len(self.there))
        for axis in range(tensor.ndim if source.ndim == tensor.ndim else 0):
            rest = tensor.select(axis, 0).shape, source.select(axis, 0).shape
            if (tensor.shape[axis], source.shape[axis]) == lengths and rest[0] == rest[1]:
                for new, old in rows.items():
                    tensor.select(axis, new).copy_(source.select(axis, old))
                return bool(rows)
        return False


def initialise(network: nn.Module, arguments: dict[str, Any], plan: Plan, model: Path) -> TransferReport:
    """Copy what fits of a trained or pretrained ``model`` into ``network`` (built from ``arguments``).

    ``model`` is a fold's folder, a pretraining's folder, a run with one of them, or the file of published weights that
    ``medmamba convert weights`` writes. Raises ConfigError when nothing of it fits, so that a wrong model is never a
    silent start from scratch.
    """
    if model.is_file():
        old, published = read_converted(model)
        for name in (*_shape_changes(arguments, "out_channels"), *published["missing"]):
            old.pop(name, None)  # heads are always new, because published classes have no names
        report = _copied(network, old, f"{model} ({published['family']}, {published['source']})", {})
        if not report.kept:
            raise ConfigError(
                f"{model}: none of its tensors ({published['family']}) fits network {arguments['name']}. Published "
                f"weights are for a published network: --network {' or '.join(published_networks())}."
            )
        return report
    folder = _find_model(model)
    facts = read_model_facts(folder)
    old_plan = read_plan(folder / "plan.json")
    generation = "best" if (folder / "checkpoints" / "best" / "state.json").exists() else "last"
    read_state(folder / "checkpoints" / generation)  # hashes
    old = load_tensors(folder / "checkpoints" / generation / "model.safetensors")
    axes: dict[str, _NamedAxis] = {}
    outputs = OutputChannels.of_plan(plan).names, facts.heads or OutputChannels.of_plan(old_plan).names
    for argument, reason, here, there in (
        ("in_channels", "channels by name", plan.channel_names, old_plan.channel_names),
        ("out_channels", "classes by name", *outputs),
    ):
        axis = _NamedAxis(reason, [name.lower() for name in here], [name.lower() for name in there])
        if axis.here != axis.there:
            axes |= dict.fromkeys(_shape_changes(arguments, argument), axis)
    report = _copied(network, old, str(folder), axes)
    if not report.kept:
        raise ConfigError(
            f"{folder}: none of its {len(report.unused) + len(report.new)} tensors fits this network "
            f"({facts.network.get('name')} there, {arguments['name']} here). Use the same --network and plan."
        )
    return report


@torch.no_grad()
def _copied(
    network: nn.Module, old: Mapping[str, torch.Tensor], source: str, axes: Mapping[str, _NamedAxis]
) -> TransferReport:
    """Copy the tensors of ``old`` whose shapes agree, and those of ``axes`` by the names of their entries."""
    state = network.state_dict()
    report = TransferReport(source, unused=sorted(set(old) - set(state)))
    for name, tensor in state.items():
        given, axis = old.get(name), axes.get(name)
        if given is not None and axis is not None and axis.copy(tensor, given):
            report.adapted[name] = axis.reason
        elif given is not None and axis is None and given.shape == tensor.shape:
            tensor.copy_(given)
            report.kept.append(name)
        else:
            report.new.append(name)
    return report


def freeze(network: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Exclude the parameters whose names match (``encoder*``, ``stem*``) from training; returns their names.

    Raises ConfigError for a pattern that matches nothing.
    """
    names, frozen = [name for name, _ in network.named_parameters()], []
    for pattern in patterns:
        matching = [name for name in names if fnmatch(name, pattern) or name.startswith(pattern + ".")]
        if not matching:
            parts = ", ".join(dict.fromkeys(name.split(".")[0] for name in names))
            raise ConfigError(f"--freeze {pattern!r} matches no parameter. Parts of this network: {parts}.")
        frozen += matching
    for name in frozen:
        network.get_parameter(name).requires_grad_(False)
    return frozen


def _find_model(path: Path) -> Path:
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


def _some(names: Sequence[str]) -> str:
    rest = len(names) - SHOWN_NAMES
    return ", ".join(names[:SHOWN_NAMES]) + (f" and {rest} more" if rest > 0 else "")
