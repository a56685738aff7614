"""Networks by name: a plan's numbers in, a module out.

Every family is imported here; the families know only the table they register in (``planned/registry.py``).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

import medmamba.networks.planned.hrvmamba
import medmamba.networks.planned.lamamba
import medmamba.networks.planned.mamba3
import medmamba.networks.planned.mambaout
import medmamba.networks.planned.mate
import medmamba.networks.planned.mhs_vm
import medmamba.networks.planned.plain_unet
import medmamba.networks.planned.residual_unet
import medmamba.networks.planned.segmamba
import medmamba.networks.planned.u_mamba
import medmamba.networks.planned.u_mamba_original
import medmamba.networks.planned.vim
import medmamba.networks.planned.vm_unet
import medmamba.networks.published.vm_unet  # noqa: F401
from medmamba.errors import ConfigError, first_line, unknown_name
from medmamba.networks.planned.one_block_unet import ONE_BLOCK, is_one_block
from medmamba.networks.planned.registry import NETWORKS, NetworkFacts
from medmamba.networks.planned.unet import PlannedNetwork, Topology
from medmamba.plugins import find_network, load_network_plugins


def available_networks() -> tuple[str, ...]:
    """Names of the families that a plan can give its numbers to, sorted."""
    load_network_plugins()
    return tuple(sorted(name for name, facts in NETWORKS.items() if facts.published is None and not facts.retired))


def published_networks() -> tuple[str, ...]:
    """Names of the published functions that can be trained for their weights, sorted."""
    load_network_plugins()
    return tuple(sorted(name for name, facts in NETWORKS.items() if facts.published is not None))


def network_facts(name: str) -> NetworkFacts:
    """Facts about a registered network, of another package too.

    Raises ConfigError for an unknown name, and for one whose package cannot be imported.
    """
    return find_network(name, NETWORKS)


def build_network(
    name: str,
    *,
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    strides: Sequence[Sequence[int]],
    features_per_stage: Sequence[int],
    blocks_per_stage: Sequence[int] | None = None,
    kernels: Sequence[Sequence[int]] | None = None,
    stem: str = "conv",
    deep_supervision: bool = False,
    use_scan: bool = True,
    **options: Any,
) -> nn.Module:
    """The network ``name`` with a plan's numbers; returns logits (see :class:`PlannedUNet`).

    The numbers are those of :class:`Topology`; ``blocks_per_stage`` defaults to that of the network. ``use_scan=False``
    builds the same network without its scans. ``options`` are the family's own (``vm_unet``: state_size, routes, ...).

    Raises ConfigError for unknown names and options, and for numbers that do not fit together.
    """
    facts = network_facts(name)
    for option in options:
        if option not in facts.options:
            raise unknown_name(f"option of network {name!r}", option, [o for o in facts.options if o != "use_scan"])
    if spatial_dims == 3 and facts.planar:
        raise ConfigError(
            f"Network {name!r} is built for 2D images only. Use --configuration 2d, stored by "
            f"`medmamba plan DATASET -o RUN --configurations 2d`, or another network."
        )
    if blocks_per_stage is None:
        given = facts.default_blocks[: len(strides)]
        blocks_per_stage = (*given, *given[-1:] * (len(strides) - len(given)))
    topology = Topology(
        spatial_dims=spatial_dims,
        in_channels=in_channels,
        out_channels=out_channels,
        strides=tuple(tuple(int(s) for s in stride) for stride in strides),
        features_per_stage=tuple(int(f) for f in features_per_stage),
        blocks_per_stage=tuple(blocks_per_stage),
        kernels=tuple(tuple(int(k) for k in kernel) for kernel in kernels or ()),
        stem=stem,
        deep_supervision=deep_supervision,
    )
    if facts.has_scan:
        options["use_scan"] = use_scan
    elif not use_scan:
        raise ConfigError(f"Network {name!r} has no scan to leave out; train it as it is.")
    _check(name, facts, topology)
    for option, value in options.items():
        facts.options[option].check(option, value, topology)
    ours = facts.source.startswith(f"{__package__}.")
    try:
        built = facts.builder(topology, **options)
        if isinstance(built, PlannedNetwork) and not ours:  # its mistakes are found before anything is trained
            with torch.no_grad():
                built.eval()(torch.zeros(1, in_channels, *(2 * stride for stride in topology.total_stride)))
            built.train()
    except Exception as error:
        if ours or isinstance(error, ConfigError):
            raise
        failure = f"cannot be built and run ({first_line(error)}). Correct or update it."
        raise ConfigError(f"Network {name!r} of {facts.source} {failure}") from error
    if facts.published is None and not isinstance(built, PlannedNetwork):
        raise ConfigError(
            f"Network {name!r} of {facts.source} is a {type(built).__name__}, not a PlannedNetwork. Derive its class "
            f"from medmamba.networks.planned.unet.PlannedNetwork."
        )
    return built


def rebuild_network(arguments: Mapping[str, Any]) -> nn.Module:
    """The network of the arguments in a model.json or a bundle, written by this version or an earlier one.

    Raises ConfigError for arguments that no version has written.
    """
    try:
        name = arguments["name"]
        return build_network(**{**arguments, "name": ONE_BLOCK[name] if is_one_block(arguments) else name})
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        raise ConfigError(f"stored network: {type(error).__name__}: {error}. Restore its model.json.") from error


def _check(name: str, facts: NetworkFacts, topology: Topology) -> None:
    """What a family asks of the plan's numbers."""
    stages = len(topology.strides)
    if stages < facts.min_stages:
        raise ConfigError(f"Network {name!r} needs at least {facts.min_stages} stages, got {stages}.")
    if facts.full_resolution_only and not (topology.full_resolution and topology.stem == "conv"):
        raise ConfigError(
            f"Network {name!r} starts at full resolution: strides[0] must be 1 on every axis and the stem 'conv', "
            f"got {list(topology.strides[0])} and {topology.stem!r}."
        )
    multiple = facts.channel_multiple
    for stage, width in enumerate(topology.features_per_stage):
        if width % multiple and (stage or topology.stem == "patch"):
            nearest = max(multiple, round(width / multiple) * multiple)
            raise ConfigError(
                f"Network {name!r} needs channels divisible by {multiple}; features_per_stage[{stage}] is {width}, "
                f"the nearest valid number is {nearest}."
            )
