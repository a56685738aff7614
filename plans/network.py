"""The numbers of a network for one patch: stem, strides, widths, blocks and scan, from a family and a topology."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Literal

from medmamba.plans.families import RESIDUAL_BLOCKS, Family
from medmamba.plans.pooling import Topology
from medmamba.plans.schema import Decision, NetworkPlan

Stem = Literal["conv", "patch"]


def network_plan(family: Family, topology: Topology, *, stem: Stem = "conv", use_scan: bool = True) -> NetworkPlan:
    """The network of ``family`` for a patch; with stem "patch" the first halving is done by the embedding."""
    dims: Literal[2, 3] = 2 if len(topology.patch_size) == 2 else 3
    strides = [list(stride) for stride in topology.strides]
    kernels = [list(kernel) for kernel in topology.kernel_sizes]
    missing = (family.min_stages + (stem == "patch")) - len(strides)
    for _ in range(missing):  # a tiny image: further stages at the same resolution
        strides.append([1] * dims)
        kernels.append([3] * dims)
    if stem == "patch":
        strides, kernels = strides[1:], kernels[1:]
    return NetworkPlan(
        name=family.name,
        spatial_dims=dims,
        stem=stem,
        strides=strides,
        features_per_stage=[_features(family, level, dims) for level in _halvings(strides)],
        blocks_per_stage=planned_blocks(family, strides, stem),
        state_size=family.states_in(dims),
        routes=family.routes,
        kernel_sizes=kernels,
        deep_supervision=len(strides) > 2,
        use_scan=use_scan and family.has_scan,
    )


def network_decisions(network: NetworkPlan, family: Family, topology: Topology, stem_reason: str) -> list[Decision]:
    """One decision for each number of the network."""
    patch = list(topology.patch_size)
    scans = family.kind == "scan"

    def decision(name: str, value: object, rule: str, reason: str, source: str, **inputs: object) -> Decision:
        return Decision(name=name, value=value, inputs=inputs, rule=rule, reason=reason, source=source)

    made = [
        decision(
            "stem",
            network.stem,
            "full-resolution convolutions, unless they see under 5 % of the image and a strided stem 1.5 times as much",
            stem_reason,
            "medmamba",
            patch_size=patch,
        ),
        decision(
            "strides",
            network.strides,
            "halve each axis of at least 8 voxels whose spacing is within a factor of 2 of the finest"
            + (f", at most {family.max_pools} times" if family.max_pools else ""),
            "Coarse axes are halved later than fine ones, so that voxels become cubes before they are pooled together"
            + ("; a scan sees the whole patch at every stage, so deeper stages add little." if scans else "."),
            "nnU-Net 2.8.1, network_topology",
            patch_size=patch,
        ),
        decision(
            "kernel_sizes",
            network.kernel_sizes,
            "3 along an axis once its spacing is within a factor of 2 of the finest, else 1; the deepest stage 3",
            "A kernel does not reach across thick slices before the plane is as coarse as they are.",
            "nnU-Net 2.8.1, network_topology",
        ),
        decision(
            "features_per_stage",
            network.features_per_stage,
            f"{family.stem_features} at full resolution, {2 * family.base_features} at half of it, doubled with each "
            f"halving, at most {family.max_features_in(network.spatial_dims)}",
            "Each halving leaves fewer voxels, so more channels cost no more; the maximum bounds the weights.",
            family.source,
        ),
        decision(
            "blocks_per_stage",
            network.blocks_per_stage,
            f"{family.stem_blocks} at full resolution, {family.blocks} in every stage of at least "
            f"{family.first_block_level} halvings"
            if scans and network.stem == "conv"
            else f"{', '.join(map(str, RESIDUAL_BLOCKS[:5]))}, ... residual blocks from full resolution down"
            if family.kind == "residual"
            else f"{family.stem_blocks} at full resolution, {family.blocks} in every other stage",
            "Convolutions where voxels are many and a scan is dear; scan blocks in the coarser stages."
            if scans and network.stem == "conv"
            else "The family's own blocks in every stage.",
            f"{family.source}; the first stage with blocks: docs/benchmarks/ablation.md"
            if family.first_block_level > 1
            else family.source,
        ),
        decision(
            "deep_supervision",
            network.deep_supervision,
            "on with more than two resolutions",
            "The loss also looks at the coarser outputs, which steadies the training of the deep stages."
            if network.deep_supervision
            else "With two resolutions there is no coarser output to supervise.",
            "nnU-Net 2.8.1",
        ),
    ]
    if family.has_scan:
        made += [
            decision(
                "routes",
                network.routes,
                "every axis runs fastest once, forwards and backwards",
                "Each voxel is reached from all sides, whichever way the structure lies."
                if network.use_scan
                else "Listed for the paired network; this one leaves its scans out.",
                "VMamba, arXiv:2401.10166, cross scan; one pair of routes per axis in 3D",
            ),
            decision(
                "state_size",
                network.state_size,
                "16 in 2D, 8 in 3D",
                "16 states as published for 4 routes in 2D; in 3D 6 routes with 8 states keep about as many numbers "
                "per voxel at less than the time.",
                f"{family.source}; the value for 3D is ours",
            ),
            decision(
                "use_scan",
                network.use_scan,
                "on unless switched off",
                "The network scans."
                if network.use_scan
                else "The scans are left out and all else is kept, to measure what they are worth.",
                "medmamba",
            ),
        ]
    return made


def planned_blocks(family: Family, strides: Sequence[Sequence[int]], stem: str) -> list[int]:
    """Blocks of each stage as ``family`` plans them for these strides."""
    if family.kind == "residual":
        return list(RESIDUAL_BLOCKS[: len(strides)])
    first = family.first_block_level if stem == "conv" else 1
    coarsest = len(strides) - 1
    return [
        family.stem_blocks if level == 0 else family.blocks if level >= first or stage == coarsest else 0
        for stage, level in enumerate(_halvings(strides))
    ]


def _halvings(strides: Sequence[Sequence[int]]) -> list[int]:
    """How often each stage has halved the axis that was halved most."""
    reductions = [[prod(axis) for axis in zip(*strides[: stage + 1], strict=True)] for stage in range(len(strides))]
    return [max(reduction).bit_length() - 1 for reduction in reductions]


def _features(family: Family, level: int, dims: int) -> int:
    """Channels after ``level`` halvings."""
    if level == 0:
        return family.stem_features
    return min(family.base_features * 2**level, family.max_features_in(dims))
