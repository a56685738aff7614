"""The network that a configuration asks for: the plan's numbers as arguments of the registry."""

from __future__ import annotations

from typing import Any

from torch import nn

from medmamba.networks.registry import build_network, network_options
from medmamba.plans.families import family
from medmamba.plans.schema import Configuration, Plan


def network_arguments(
    plan: Plan, configuration: Configuration, *, network: str | None = None, use_scan: bool = True
) -> dict[str, Any]:
    """Arguments of :func:`build_network`; plain numbers, stored with every model.

    ``network`` puts another family on the same plan; ``use_scan=False`` takes the scan out.
    """
    numbers = configuration.network
    name = network or numbers.name
    arguments: dict[str, Any] = {
        "name": name,
        "spatial_dims": numbers.spatial_dims,
        "in_channels": len(plan.channel_names),
        "out_channels": len(plan.labels),
        "strides": numbers.strides,
        "features_per_stage": numbers.features_per_stage,
        "blocks_per_stage": numbers.blocks_per_stage,
        "kernels": numbers.kernel_sizes,
        "stem": numbers.stem,
        "deep_supervision": numbers.deep_supervision,
    }
    known = network_options(name)
    scan = {"state_size": numbers.state_size, "routes": numbers.routes}
    if name != numbers.name:  # another family on the same plan scans its own way
        other = family(name)
        scan = {"state_size": other.states[numbers.spatial_dims - 2], "routes": other.routes}
    arguments |= {option: value for option, value in scan.items() if option in known}
    if "use_scan" in known or not use_scan:  # build_network refuses to take a scan out of a network that has none
        arguments["use_scan"] = use_scan and numbers.use_scan
    return arguments


def build_planned_network(plan: Plan, configuration: Configuration, **choices: Any) -> nn.Module:
    """The network of a configuration; ``choices`` as of :func:`network_arguments`."""
    return build_network(**network_arguments(plan, configuration, **choices))
