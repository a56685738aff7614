"""The numbers of a network for one patch: stem, strides, widths, blocks and scan, from a family and a pooling plan."""

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Literal

from medmamba.errors import counted
from medmamba.plans.families import MAX_FEATURES, RESIDUAL_BLOCKS, STEM_BLOCKS, Family, route_count
from medmamba.plans.patch import COMPARABLE, LONELY_AXIS_EDGES, MIN_EDGE, PoolingPlan
from medmamba.plans.schema import Decision, NetworkPlan

Stem = Literal["conv", "patch"]

SUPERVISED_FROM = 3
"""Stages from which on the coarser outputs are supervised as well. Source: nnU-Net."""

PAIRED = "As in the network with its scans, which this one is compared with."
"""Why a network without its scans keeps the numbers of a scan."""

NNUNET_FEATURES = "doubling and largest widths as in nnU-Net 2.8.1, the widths at full resolution are ours"


def network_plan(family: Family, pooling: PoolingPlan, *, stem: Stem = "conv", use_scan: bool = True) -> NetworkPlan:
    """The network of ``family`` for a patch; with stem "patch" the first halving is done by the embedding."""
    dims: Literal[2, 3] = 2 if len(pooling.patch_size) == 2 else 3
    strides = [list(stride) for stride in pooling.strides]
    kernels = [list(kernel) for kernel in pooling.kernel_sizes]
    missing = (family.min_stages + (stem == "patch")) - len(strides)
    for _ in range(missing):  # a tiny image: further stages at the same resolution
        strides.append([1] * dims)
        kernels.append([3] * dims)
    if stem == "patch":
        strides, kernels = strides[1:], kernels[1:]
    coarser = [min(family.base_features * 2**level, MAX_FEATURES[dims]) for level in range(1, len(strides) + 1)]
    widths = [family.stem_features, *coarser]
    return NetworkPlan(
        name=family.name,
        spatial_dims=dims,
        stem=stem,
        strides=strides,
        features_per_stage=[widths[level] for level in halvings_of(strides)],
        blocks_per_stage=planned_blocks(family, strides, stem),
        state_size=family.states[dims - 2],
        routes=family.routes,
        kernel_sizes=kernels,
        deep_supervision=len(strides) >= SUPERVISED_FROM,
        use_scan=use_scan and family.has_scan,
    )


def network_decisions(
    network: NetworkPlan, family: Family, spacing: Sequence[float], pooling: PoolingPlan
) -> list[Decision]:
    """One decision for each number of the network but the stem."""
    dims = network.spatial_dims
    grid = {"patch_size": list(pooling.patch_size), "spacing": list(spacing)}
    frame = {"stem": network.stem, "min_stages": family.min_stages}
    halvings = {"halvings": halvings_of(network.strides)}
    deepest = max(pooling.num_pool_per_axis) == family.max_pools
    source = f"{family.source}; {NNUNET_FEATURES}" if family.kind == "scan" else family.source
    made = [
        Decision(
            name="strides",
            value=network.strides,
            inputs={**grid, **frame, "max_pools": family.max_pools},
            rule=f"halve each axis of at least {2 * MIN_EDGE} voxels whose spacing is within a factor of "
            f"{COMPARABLE:g} of the finest of these, a single axis from {LONELY_AXIS_EDGES * MIN_EDGE} voxels on"
            + (f", at most {family.max_pools} times" if family.max_pools else "")
            + f"; at least {family.min_stages} stages; a strided stem takes the first halving",
            reason="Coarse axes are halved later than fine ones, so that voxels become cubes before they are pooled "
            "together" + ("; a further stage would add many weights for few voxels." if deepest else "."),
            source="nnU-Net 2.8.1, network_topology" + ("; the most halvings are ours" if family.max_pools else ""),
        ),
        Decision(
            name="kernel_sizes",
            value=network.kernel_sizes,
            inputs={**grid, **frame, "strides": network.strides},
            rule=f"3 along an axis once its spacing is within a factor of {COMPARABLE:g} of the finest, else 1; the "
            f"deepest stage 3",
            reason="A kernel does not reach across thick slices before the plane is as coarse as they are.",
            source="nnU-Net 2.8.1, network_topology",
        ),
        Decision(
            name="features_per_stage",
            value=network.features_per_stage,
            inputs=halvings,
            rule=f"{family.stem_features} at full resolution, {2 * family.base_features} at half of it, doubled with "
            f"each halving, at most {MAX_FEATURES[dims]}",
            reason="Each halving leaves fewer voxels, so more channels cost no more; the maximum bounds the weights.",
            source=source,
        ),
        _blocks_decision(network, family, halvings),
        Decision(
            name="deep_supervision",
            value=network.deep_supervision,
            inputs={"stages": len(network.strides)},
            rule=f"on with more than {SUPERVISED_FROM - 1} stages",
            reason="The loss also looks at the coarser outputs, which steadies the training of the deep stages."
            if network.deep_supervision
            else f"With {len(network.strides)} stages there is no coarser output to supervise.",
            source="nnU-Net 2.8.1",
        ),
    ]
    if not family.has_scan:
        return made
    count = {f"routes_in_{axes}d": route_count(network.routes, axes) for axes in (2, 3)}
    return [
        *made,
        Decision(
            name="routes",
            value=network.routes,
            inputs={"spatial_dims": dims, **count},
            rule=f"{family.routes_why.rule}: {counted(count['routes_in_2d'], 'route')} in 2D, "
            f"{counted(count['routes_in_3d'], 'route')} in 3D",
            reason=family.routes_why.reason if network.use_scan else PAIRED,
            source=family.routes_why.source,
        ),
        Decision(
            name="state_size",
            value=network.state_size,
            inputs={"spatial_dims": dims},
            rule="{} in 2D, {} in 3D".format(*family.states),
            reason=family.states_why.reason if network.use_scan else PAIRED,
            source=family.states_why.source,
        ),
        Decision(
            name="use_scan",
            value=network.use_scan,
            inputs={"left_out": not network.use_scan},
            rule="on unless left out on request",
            reason="The network scans."
            if network.use_scan
            else "The scans are left out and all else is kept, to measure what they are worth.",
            source="medmamba",
        ),
    ]


def _blocks_decision(network: NetworkPlan, family: Family, halvings: dict[str, list[int]]) -> Decision:
    """How many blocks each stage of the encoder has; the rule is that of :func:`planned_blocks`."""
    first, source = family.first_block_level, "medmamba"
    reason = family.blocks_reason or "Convolutions at full resolution, the family's own blocks in every other stage."
    rule = f"{STEM_BLOCKS} at full resolution, "
    if family.kind == "residual":
        rule = f"{', '.join(map(str, RESIDUAL_BLOCKS))} residual blocks from full resolution down"
        source = family.source
    elif family.bottleneck_only:
        rule += f"{family.blocks} in the coarsest stage, none between"
        source = family.source
    elif first > 1 and network.stem == "conv":
        rule += f"{family.blocks} in every stage of at least {first} halvings and in the coarsest, none between"
        source = "medmamba; docs/benchmarks/ablation.md"
        few = "Convolutions at high resolution, where a scan is expensive; scan blocks in the coarser stages."
        reason = family.blocks_reason or few
    else:
        rule += f"{family.blocks} in every other stage"
        source = family.source if family.kind == "plain" else source
        if network.stem == "patch":
            reason = "The family's own blocks in every stage: a strided stem leaves few voxels."
    return Decision(
        name="blocks_per_stage",
        value=network.blocks_per_stage,
        inputs={**halvings, "stem": network.stem},
        rule=rule,
        reason=PAIRED if family.has_scan and not network.use_scan else reason,
        source=source,
    )


def planned_blocks(family: Family, strides: Sequence[Sequence[int]], stem: str) -> list[int]:
    """Blocks of each stage as ``family`` plans them for these strides."""
    if family.kind == "residual":
        return list(RESIDUAL_BLOCKS[: len(strides)])
    coarsest = len(strides) - 1
    first = family.first_block_level if stem == "conv" else 1

    def blocks(stage: int, halvings: int) -> int:
        if family.bottleneck_only and stage < coarsest and (stage > 0 or stem == "patch"):
            return 0
        if halvings == 0:
            return STEM_BLOCKS
        return family.blocks if halvings >= first or stage == coarsest else 0

    return [blocks(stage, halvings) for stage, halvings in enumerate(halvings_of(strides))]


def are_planned_blocks(family: Family, blocks: Sequence[int], strides: Sequence[Sequence[int]], stem: str) -> bool:
    """Whether these are the blocks that a plan gives the family, and not user-defined ones.

    Plans of earlier versions list a block in every stage of a network that has one in the bottleneck only.
    """
    before = replace(family, bottleneck_only=False)
    return list(blocks) in (planned_blocks(family, strides, stem), planned_blocks(before, strides, stem))


def halvings_of(strides: Sequence[Sequence[int]]) -> list[int]:
    """How often each stage has halved the axis that was halved most."""
    reductions = [[prod(axis) for axis in zip(*strides[: stage + 1], strict=True)] for stage in range(len(strides))]
    return [max(reduction).bit_length() - 1 for reduction in reductions]
