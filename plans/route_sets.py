"""Route sets of the scans by name: how many routes each has, and which of them a plan asks for.

A plan names a set, ``"raster"``, or some of its routes: ``"raster:3"`` are the first three, ``"rotary:2-4"`` routes 2
and 3. The orders themselves are functions in medmamba.networks.routes; tests/networks/test_routes.py compares.
"""

from __future__ import annotations

from medmamba.errors import ConfigError, unknown_name

ROUTE_COUNT: dict[str, tuple[int, int]] = {
    "forward": (1, 1),
    "bidirectional": (2, 2),
    "cross": (4, 6),
    "raster": (4, 6),
    "raster_all": (4, 12),
    "snake": (4, 6),
    "diagonal": (4, 6),
    "spiral": (4, 6),
    "continuous": (4, 6),
    "rotary": (4, 8),
    "tri": (3, 3),
    "heads": (4, 6),
    "none": (0, 0),
}
"""Number of routes of a set, in 2D and in 3D. "heads" and "none" are no sets of their own: every head of MHS-VM has
one, of so many routes, and blocks without a scan have none."""


def selected_routes(name: str, spatial_dims: int) -> tuple[str, range]:
    """The set that a name such as ``"rotary:2-4"`` takes its routes from, and which of them.

    Raises ConfigError for an unknown set and for routes that the set does not have in 2 or 3 dimensions.
    """
    base, _, choice = name.partition(":")
    if base not in ROUTE_COUNT:
        raise unknown_name("route set", base, list(ROUTE_COUNT))
    count = ROUTE_COUNT[base][spatial_dims - 2]
    if not choice:
        return base, range(count)
    begin, _, end = choice.partition("-") if "-" in choice else ("0", "", choice)
    if not (begin.isdecimal() and end.isdecimal() and int(begin) < int(end) <= count):
        raise ConfigError(
            f"Route set {name!r} asks for {choice!r} routes; {base!r} has 1 to {count} in {spatial_dims} dimensions."
        )
    return base, range(int(begin), int(end))


def route_count(name: str, spatial_dims: int) -> int:
    """Number of routes of a set or of the part of it that a name asks for, in 2 or 3 dimensions."""
    return len(selected_routes(name, spatial_dims)[1])
