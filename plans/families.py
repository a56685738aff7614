"""Network families as the planner sees them: how wide and deep they are, how they scan, and what that costs.

A new family is one line in :data:`FAMILIES`; nothing else in the planner knows a family by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from medmamba.errors import ConfigError, unknown_name

Kind = Literal["scan", "plain", "residual"]


@dataclass(frozen=True)
class Family:
    """What the planner must know about a family of networks."""

    name: str
    kind: Kind
    """"scan": cost by :mod:`medmamba.plans.memory`; "plain" and "residual": nnU-Net's count of convolution outputs."""
    stem_features: int
    """Channels of a convolution stem at full resolution."""
    base_features: int
    """Channels at full resolution; they double with each halving of the grid."""
    max_features: dict[int, int]
    """Largest number of channels, by spatial dimensions."""
    max_pools: int | None
    """Halvings per axis at most; None: as many as the patch allows."""
    min_stages: int
    """Resolutions that the network needs at least."""
    stem_blocks: int
    """Convolutions of a convolution stem at full resolution."""
    blocks: int
    """Blocks per stage of the encoder; convolutions in a stage at full resolution."""
    expand: int
    """Inner channels of a scan block per outer channel."""
    backward_maps: float
    """Temporary maps of the widest layer at full resolution where the backward pass begins; measured."""
    state_size: dict[int, int]
    """States per inner channel of the scan, by spatial dimensions."""
    routes: dict[int, str]
    """Route set by spatial dimensions."""
    source: str


_NNUNET = "nnU-Net 2.8.1; dynamic-network-architectures 0.4.4"


def _scan(name: str, source: str, *, expand: int = 1) -> Family:
    return Family(
        name=name,
        kind="scan",
        stem_features=16,
        base_features=24,
        max_features={2: 512, 3: 320},
        max_pools=5,
        min_stages=2,
        stem_blocks=2,
        blocks=1,
        expand=expand,
        backward_maps=1.5,
        state_size={2: 16, 3: 8},
        routes={2: "raster", 3: "raster"},
        source=source,
    )


def _convolution(name: str, kind: Kind) -> Family:
    return Family(
        name=name,
        kind=kind,
        stem_features=32,
        base_features=32,
        max_features={2: 512, 3: 320},
        max_pools=None,
        min_stages=3,
        stem_blocks=2,
        blocks=2,
        expand=1,
        backward_maps=4.2,
        state_size={2: 1, 3: 1},
        routes={2: "forward", 3: "forward"},
        source=_NNUNET,
    )


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        _scan("vm_unet", "VM-UNet, arXiv:2402.02491: encoder and decoder of scan blocks"),
        _scan("mhs_vm", "MHS-VM, arXiv:2406.05992: several scan heads per block"),
        _scan("hrvmamba", "HRVMamba: parallel branches that keep the resolution"),
        _convolution("plain_unet", "plain"),
        _convolution("residual_unet", "residual"),
    )
}

RESIDUAL_BLOCKS = (1, 3, 4, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6)
"""Residual encoder blocks per stage. Source: nnU-Net's residual encoder presets."""

ROUTE_COUNT = {
    "forward": {2: 1, 3: 1},
    "bidirectional": {2: 2, 3: 2},
    "cross": {2: 4, 3: 6},
    "raster": {2: 4, 3: 6},
    "raster_all": {2: 4, 3: 12},
    "snake": {2: 4, 3: 6},
}
"""Number of routes of a set, by spatial dimensions (the sets themselves are medmamba.networks.routes)."""


def family(name: str) -> Family:
    """The family called ``name``; raises ConfigError with the nearest spelling for an unknown one."""
    if name not in FAMILIES:
        raise unknown_name("network", name, list(FAMILIES))
    return FAMILIES[name]


def route_count(routes: str, spatial_dims: int) -> int:
    """Number of routes K of a set such as "cross" or, cut to its first two, "cross:2"."""
    base, _, first = routes.partition(":")
    if base not in ROUTE_COUNT:
        raise unknown_name("route set", base, list(ROUTE_COUNT))
    count = ROUTE_COUNT[base][spatial_dims]
    if not first:
        return count
    if not first.isdigit() or not 1 <= int(first) <= count:
        raise ConfigError(f"Route set {routes!r}: {base!r} has 1 to {count} routes in {spatial_dims} dimensions.")
    return int(first)
