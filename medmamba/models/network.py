"""The network that a configuration asks for: the plan's numbers as arguments of the registry."""

from typing import Any

from medmamba.errors import ConfigError
from medmamba.networks.build import build_network, network_facts
from medmamba.networks.planned.one_block_unet import ONE_BLOCK
from medmamba.plans.families import ORIGINALS, family
from medmamba.plans.mirroring import choose_mirroring
from medmamba.plans.network import are_planned_blocks, planned_blocks
from medmamba.plans.schema import Configuration, Mirroring, Plan
from medmamba.preprocessing.labels import label_names

NNUNET_LIKE = (*ONE_BLOCK, *ORIGINALS)
"""Networks whose convolutions per decoder stage the plan gives."""


def network_arguments(
    plan: Plan, configuration: Configuration, *, network: str | None = None, use_scan: bool = True
) -> dict[str, Any]:
    """Arguments of :func:`build_network`; plain numbers, stored with every model.

    ``network`` puts another family on the same plan, or a published network with sizes of its own; ``use_scan=False``
    takes the scan out.
    """
    numbers = configuration.network
    name = network or numbers.name
    arguments: dict[str, Any] = {
        "name": name,
        "spatial_dims": numbers.spatial_dims,
        "in_channels": len(plan.channel_names) + previous_labels(plan, configuration),
        "out_channels": plan.out_channels,
        "strides": numbers.strides,
        "features_per_stage": numbers.features_per_stage,
        "blocks_per_stage": numbers.blocks_per_stage,
        "kernels": numbers.kernel_sizes,
        "stem": numbers.stem,
        "deep_supervision": numbers.deep_supervision,
    }
    if (own := network_facts(name).published) is not None:
        return arguments | own | {"use_scan": use_scan}
    known = network_facts(name).options
    scan = {"state_size": numbers.state_size, "routes": numbers.routes}
    if name != numbers.name:  # another family on the same plan scans its own way, and where it would by its own plan
        other = family(name)
        planned_for = family(numbers.name)
        if are_planned_blocks(planned_for, numbers.blocks_per_stage, numbers.strides, numbers.stem):
            arguments["blocks_per_stage"] = planned_blocks(other, numbers.strides, numbers.stem)
        scan = {"state_size": other.states[numbers.spatial_dims - 2], "routes": other.routes}
    arguments |= {option: value for option, value in scan.items() if option in known}
    if name in NNUNET_LIKE:  # always recorded: models of before are known by its absence
        convs = numbers.decoder_convs if name == numbers.name else None
        arguments["decoder_convs"] = convs or known["decoder_convs"].default
    elif name == numbers.name and numbers.decoder_convs is not None:
        raise ConfigError(
            f"configuration {configuration.name!r}: network.decoder_convs is for {' and '.join(ONE_BLOCK)}, not "
            f"{name}. Take it out of the plan."
        )
    if "patch_size" in known:
        arguments["patch_size"] = configuration.patch_size
    if numbers.parts is not None and name == numbers.name:
        arguments["parts"] = numbers.parts.model_dump()
    if "use_scan" in known or not use_scan:  # build_network refuses to take a scan out of a network that has none
        # a plan of a family without a scan does not say that other families should be without theirs
        arguments["use_scan"] = use_scan and (numbers.use_scan or not family(numbers.name).has_scan)
    return arguments


def previous_labels(plan: Plan, configuration: Configuration) -> int:
    """Channels that a second stage of a cascade gets from its first: one a foreground label; else none."""
    return 0 if configuration.previous_stage is None else len(label_names(plan))


def describe_network(name: str, *, spatial_dims: int, size: int) -> list[str]:
    """What a family is and costs on one patch of ``size`` voxels per axis. Raises ConfigError for an unknown name."""
    from medmamba.networks.cost import network_cost

    facts = network_facts(name)
    numbers = family(name)
    widths = [numbers.stem_features, *(numbers.base_features * 2**level for level in (1, 2, 3))]
    strides = [[1] * spatial_dims] + [[2] * spatial_dims] * 3
    sizes: dict[str, Any] = {"strides": strides, "features_per_stage": widths}
    sizes["blocks_per_stage"] = planned_blocks(numbers, strides, "conv")
    network = build_network(name, spatial_dims=spatial_dims, in_channels=1, out_channels=2, **sizes)
    patch = (size,) * spatial_dims
    return [
        f"{name}: {numbers.source}",
        f"options: {', '.join(facts.options) or 'none'}",
        f"widths {widths}, patch {' x '.join(str(edge) for edge in patch)}, one channel in, two classes out:",
        network_cost(network, (1, 1, *patch)).summary(),
    ]


def mirroring_of(plan: Plan, configuration: Configuration) -> Mirroring:
    """The configuration's mirroring; by the labels' names where it says nothing (plans made by hand)."""
    if configuration.mirroring is not None:
        return configuration.mirroring
    names = [name for name in plan.labels if name != "background"]
    return choose_mirroring(names, plan.axis_order, configuration.spatial_dims)[0]
