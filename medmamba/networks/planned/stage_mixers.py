"""Mixers per stage: the scans, windows and kernels that a family puts at each resolution of a plan."""

from collections.abc import Callable, Sequence
from typing import Any

from medmamba.errors import ConfigError
from medmamba.networks.blocks.attention import WindowAttention
from medmamba.networks.blocks.vss import SS2D
from medmamba.networks.planned.unet import Topology
from medmamba.plans.families import WINDOW_EDGE, route_count

DEPTH_SCHEDULES = ("constant", "falling", "rising")  # of the number of routes, see routes_per_stage


def routes_per_stage(topology: Topology, routes: str | Sequence[str], schedule: str = "constant") -> list[str]:
    """The route set of every stage.

    ``schedule`` cuts the sets to a number of routes that depends on depth. "falling" is Motion Mamba's hierarchical
    schedule (arXiv:2403.07487, equation 4): among N scan levels, level i (1 the finest) has 2 (N - i) + 1 routes, one
    at the bottleneck, as far as the set has them; "rising" is its mirror image.
    """
    stages, dims = len(topology.strides), topology.spatial_dims
    names = [routes] * stages if isinstance(routes, str) else list(routes)
    if len(names) != stages:
        raise ConfigError(f"routes has {len(names)} entries for {stages} stages; give one name, or one per stage.")
    if schedule not in DEPTH_SCHEDULES:
        raise ConfigError(f"schedule must be one of {', '.join(DEPTH_SCHEDULES)}, got {schedule!r}.")
    for name in names:
        route_count(name, dims)  # raises for an unknown set
    if schedule == "constant":
        return names
    first = 1 if topology.stem == "conv" else 0
    for level in range(first, stages):
        distance = stages - 1 - level if schedule == "falling" else level - first
        names[level] = f"{names[level]}:{min(2 * distance + 1, route_count(names[level], dims))}"
    return names


def local_kernel(topology: Topology, stage: int, edge: int) -> tuple[int, ...]:
    """A convolution edge per axis: 1 where the plan's own kernel is 1 (across thick slices)."""
    return tuple(edge if k > 1 else 1 for k in topology.kernels[stage])


def scan_mixers(
    topology: Topology, routes: str | Sequence[str], schedule: str = "constant", **options: Any
) -> Callable[[int, int], SS2D]:
    """(stage, width) to a gated scan along that stage's routes; ``options`` as of :class:`SS2D`."""
    names = routes_per_stage(topology, routes, schedule)

    def mixer(stage: int, width: int) -> SS2D:
        kernel = topology.kernels[stage]
        return SS2D(width, spatial_dims=topology.spatial_dims, kernel=kernel, route=names[stage], **options)

    return mixer


def window_attentions(
    topology: Topology, window: int | None, head_width: int
) -> Callable[[int, int, int], WindowAttention]:
    """(stage, index, width) to attention in windows, 8 in 2D and 4 in 3D if None; every second block shifts them.

    Heads divide the width and are at least ``head_width`` wide (or a single one).
    """
    edge = window or WINDOW_EDGE[topology.spatial_dims]
    places = topology.block_places

    def attention(stage: int, index: int, width: int) -> WindowAttention:
        heads = max(h for h in range(1, max(width // head_width, 1) + 1) if width % h == 0)
        shifted = places.index((stage, index)) % 2 == 1
        return WindowAttention(width, heads, (edge,) * topology.spatial_dims, shifted=shifted)

    return attention
