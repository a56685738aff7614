"""Scan routes: the orders in which a scan visits the tokens of a grid.

A route set is a function from a grid shape, (H, W) or (D, H, W), to an int32 table of shape (K, L): row k lists the
flat row-major token indices in the order in which route k visits them. Every row is a permutation on every grid,
1 x 1 x 1 included, so merging is "add what came back to the place it came from" and no inverse can go wrong.

Sets are looked up by name, computed once per (name, shape) and per device, and never tied to a patch size:

>>> routes("cross", (2, 3)).tolist()[1]
[0, 3, 1, 4, 2, 5]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import permutations

import numpy as np
import torch
from torch import Tensor

from medmamba.errors import ConfigError, unknown_name

Shape = tuple[int, ...]
RouteSet = Callable[[Shape], list[np.ndarray]]

_ROUTES: dict[str, RouteSet] = {}


def route_set(name: str) -> Callable[[RouteSet], RouteSet]:
    """Register a function from a grid shape to a list of orders under ``name``."""

    def register(function: RouteSet) -> RouteSet:
        _ROUTES[name] = function
        return function

    return register


def available_routes() -> tuple[str, ...]:
    """Names of all route sets, sorted."""
    return tuple(sorted(_ROUTES))


def routes(name: str, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """The route table (K, L), int32, of the set ``name`` on a grid of ``shape`` tokens, kept on ``device``.

    Append ``:k`` to take the first k routes only, e.g. ``"raster:3"``. Raises ConfigError for an unknown set, for a
    set that does not exist in this many dimensions, and for more routes than the set has.
    """
    return _cached(name, tuple(int(n) for n in shape), str(device))


def route_count(name: str, spatial_dims: int) -> int:
    """Number of routes K of the set ``name`` in 2 or 3 dimensions."""
    return len(_orders(name, (2,) * spatial_dims))


@lru_cache(maxsize=512)
def _cached(name: str, shape: Shape, device: str) -> Tensor:
    table = np.stack(_orders(name, shape)).astype(np.int32)
    return torch.from_numpy(table).to(device)


def _orders(name: str, shape: Shape) -> list[np.ndarray]:
    base, _, count = name.partition(":")
    if base not in _ROUTES:
        raise unknown_name("route set", base, available_routes())
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ConfigError(f"Route set {name!r} needs a grid of 2 or 3 axes of at least one token, got {shape}.")
    orders = _ROUTES[base](shape)
    if not count:
        return orders
    if not count.isdigit() or not 1 <= int(count) <= len(orders):
        raise ConfigError(
            f"Route set {name!r} asks for {count!r} routes; {base!r} has 1 to {len(orders)} in {len(shape)} dimensions."
        )
    return orders[: int(count)]


def _index(shape: Shape) -> np.ndarray:
    """Row-major token indices laid out on the grid."""
    return np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)


def _raster(shape: Shape, axes: Sequence[int]) -> np.ndarray:
    """Raster order with ``axes[0]`` slowest and ``axes[-1]`` fastest."""
    return _index(shape).transpose(axes).ravel()


def _snake(shape: Shape, axes: Sequence[int]) -> np.ndarray:
    """Boustrophedon: a raster whose every line turns back, so that consecutive tokens share a face."""
    grid = _index(shape).transpose(axes)
    for axis in range(1, grid.ndim):
        # Whether axis `axis` runs backwards is the parity of the number of lines finished before it: the mixed-radix
        # (row-major) number of the slower coordinates.
        lead = np.indices(grid.shape[:axis])
        number = np.zeros(grid.shape[:axis], dtype=np.int64)
        for extent, coordinate in zip(grid.shape[:axis], lead, strict=True):
            number = number * extent + coordinate
        odd = (number % 2 == 1).reshape(*grid.shape[:axis], *([1] * (grid.ndim - axis)))
        grid = np.where(odd, np.flip(grid, axis=axis), grid)
    return grid.ravel()


def _fastest_first(shape: Shape) -> list[tuple[int, ...]]:
    """One axis order per axis, that axis fastest and the others in their own order: last axis first."""
    axes = range(len(shape))
    return [(*(a for a in axes if a != fast), fast) for fast in reversed(axes)]


def _with_reverses(orders: list[np.ndarray]) -> list[np.ndarray]:
    """All orders, then all of them backwards."""
    return [*orders, *(order[::-1] for order in orders)]


def _paired_reverses(orders: list[np.ndarray]) -> list[np.ndarray]:
    """Each order followed by itself backwards."""
    return [o for order in orders for o in (order, order[::-1])]


@route_set("forward")
def forward(shape: Shape) -> list[np.ndarray]:
    """One row-major pass (U-Mamba)."""
    return [_raster(shape, range(len(shape)))]


@route_set("bidirectional")
def bidirectional(shape: Shape) -> list[np.ndarray]:
    """Row-major, there and back (Vim)."""
    return _with_reverses(forward(shape))


@route_set("cross")
def cross(shape: Shape) -> list[np.ndarray]:
    """VMamba's and VM-UNet's cross scan: row-major, column-major, then both backwards.

    In 3D the same idea along three axes, i.e. the raster set.
    """
    return _with_reverses([_raster(shape, axes) for axes in _fastest_first(shape)])


@route_set("raster")
def raster(shape: Shape) -> list[np.ndarray]:
    """For each axis a raster in which it runs fastest, each followed by its reverse: 4 routes in 2D, 6 in 3D.

    The order makes a prefix useful: ``raster:2`` is bidirectional, ``raster:4`` covers two axes.
    """
    return _paired_reverses([_raster(shape, axes) for axes in _fastest_first(shape)])


@route_set("raster_all")
def raster_all(shape: Shape) -> list[np.ndarray]:
    """Every permutation of the axes, each with its reverse: 4 routes in 2D, 12 in 3D."""
    return _paired_reverses([_raster(shape, axes) for axes in permutations(range(len(shape)))])


@route_set("snake")
def snake(shape: Shape) -> list[np.ndarray]:
    """Boustrophedon along every axis, each with its reverse; consecutive tokens always touch."""
    return _paired_reverses([_snake(shape, axes) for axes in _fastest_first(shape)])
