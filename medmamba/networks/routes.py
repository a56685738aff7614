"""Scan routes: the orders in which a scan visits the tokens of a grid.

A route set is a function from a grid shape, (H, W) or (D, H, W), to an int32 table of shape (K, L): row k lists the
flat row-major token indices in the order in which route k visits them. Every row is a permutation on every grid,
1 x 1 x 1 included, so merging is "add what came back to the place it came from" and no inverse can go wrong.

>>> routes("cross", (2, 3)).tolist()[1]
[0, 3, 1, 4, 2, 5]
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import permutations
from math import prod

import numpy as np
import torch
from torch import Tensor

from medmamba.errors import ConfigError, unknown_name
from medmamba.kernels.backends import compile_constant
from medmamba.plans.families import ROUTE_COUNT, route_count, selected_routes

Shape = tuple[int, ...]
RouteSet = Callable[[Shape], list[np.ndarray]]

_ROUTES: dict[str, RouteSet] = {}


def route_set(name: str, *, counts: tuple[int, int] | None = None) -> Callable[[RouteSet], RouteSet]:
    """Register a function from a grid shape to a list of orders under ``name``.

    ``counts`` are the numbers of routes in 2D and in 3D; None for the sets that ``plans/families.py`` lists.
    """
    if counts is not None:
        ROUTE_COUNT[name] = counts
    if name not in ROUTE_COUNT:
        raise ConfigError(f"Route set {name!r} has no number of routes: give counts=(in 2D, in 3D).")

    def register(function: RouteSet) -> RouteSet:
        _ROUTES[name] = function
        return function

    return register


def available_routes() -> tuple[str, ...]:
    """Names of all route sets, sorted."""
    return tuple(sorted(_ROUTES))


def routes(name: str, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """The route table (K, L), int32, of the set ``name`` on a grid of ``shape`` tokens, kept on ``device``.

    ``"raster:3"`` takes the first 3 routes only, ``"rotary:2-4"`` routes 2 and 3. Raises ConfigError for an unknown
    set, for routes that the set does not have, and for a shape that is no grid.
    """
    if torch.compiler.is_compiling():
        return _route_table(name, list(shape), str(device), _count(name, len(shape)))
    return _cached(name, tuple(int(n) for n in shape), str(device))


@torch.library.custom_op("medmamba::route_table", mutates_args=())
def _route_table(name: str, shape: list[int], device: str, count: int) -> Tensor:
    """The table as an operator, which torch.compile and torch.export put into their graphs as it is."""
    return _cached(name, tuple(shape), device).clone()


@_route_table.register_fake
def _(name: str, shape: list[int], device: str, count: int) -> Tensor:
    return torch.empty((count, prod(shape)), dtype=torch.int32, device=device)


_count = compile_constant(route_count)


# A cache and no buffers of the modules: a table belongs to a grid, and a network meets many (every patch size, every
# stage, whole images), so that a buffer would tie the weights to one patch size and blocks of a stage could not share
# it. 512 tables are more than the grids of one prediction; the oldest go first.
@lru_cache(maxsize=512)
def _cached(name: str, shape: Shape, device: str) -> Tensor:
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ConfigError(f"Route set {name!r} needs a grid of 2 or 3 axes of at least one token, got {shape}.")
    base, chosen = selected_routes(name, len(shape))
    if base not in _ROUTES:
        raise unknown_name("route set", base, available_routes())
    orders = _ROUTES[base](shape)[chosen.start : chosen.stop]
    return torch.from_numpy(np.stack(orders).astype(np.int32)).to(device)


def _index(shape: Shape) -> np.ndarray:
    """Row-major token indices laid out on the grid."""
    return np.arange(prod(shape), dtype=np.int64).reshape(shape)


def _raster(shape: Shape, axes: Sequence[int]) -> np.ndarray:
    """Raster order with ``axes[0]`` slowest and ``axes[-1]`` fastest."""
    return _index(shape).transpose(axes).ravel()


def _snake(shape: Shape, axes: Sequence[int]) -> np.ndarray:
    """Boustrophedon: a raster whose every line turns back, so that consecutive tokens share a face."""
    grid = _index(shape).transpose(axes).copy()
    for axis in range(1, grid.ndim):
        lines = grid.reshape(-1, *grid.shape[axis:])  # a view: one line per coordinate of the slower axes
        lines[1::2] = lines[1::2, ::-1].copy()
    return grid.ravel()


def _fastest_first(shape: Shape) -> list[tuple[int, ...]]:
    """One axis order per axis, that axis fastest and the others in their own order: last axis first."""
    axes = range(len(shape))
    return [(*(a for a in axes if a != fast), fast) for fast in reversed(axes)]


def _paired_reverses(orders: list[np.ndarray]) -> list[np.ndarray]:
    """Each order followed by itself backwards."""
    return [o for order in orders for o in (order, order[::-1])]


@route_set("forward")
def forward(shape: Shape) -> list[np.ndarray]:
    """One row-major pass (U-Mamba)."""
    return [_raster(shape, range(len(shape)))]


@route_set("bidirectional")
def bidirectional(shape: Shape) -> list[np.ndarray]:
    """Row-major, forwards and backwards (Vim)."""
    return _paired_reverses(forward(shape))


@route_set("cross")
def cross(shape: Shape) -> list[np.ndarray]:
    """VMamba's and VM-UNet's cross scan: row-major, column-major, then both backwards; three axes in 3D."""
    orders = [_raster(shape, axes) for axes in _fastest_first(shape)]
    return [*orders, *(order[::-1] for order in orders)]


@route_set("raster")
def raster(shape: Shape) -> list[np.ndarray]:
    """For each axis a raster in which it runs fastest, each with its reverse, so that a prefix is useful."""
    return _paired_reverses([_raster(shape, axes) for axes in _fastest_first(shape)])


@route_set("raster_all")
def raster_all(shape: Shape) -> list[np.ndarray]:
    """Every permutation of the axes, each with its reverse: 4 routes in 2D, 12 in 3D."""
    return _paired_reverses([_raster(shape, axes) for axes in permutations(range(len(shape)))])


@route_set("snake")
def snake(shape: Shape) -> list[np.ndarray]:
    """Boustrophedon along every axis, each with its reverse; consecutive tokens always touch."""
    return _paired_reverses([_snake(shape, axes) for axes in _fastest_first(shape)])


@route_set("diagonal")
def diagonal(shape: Shape) -> list[np.ndarray]:
    """MHS-VM's route X: diagonal after diagonal, turning back at the border; base orders mirrored, each with reverse.

    2D: two base orders, the second mirrored along the last axis. 3D, ours: planes i + j + k = const, a snake of
    diagonals inside each; three base orders, mirrored along no, the last, and the middle axis.
    """
    grid = _index(shape)
    coordinates = np.indices(shape).reshape(len(shape), -1)
    i, j, plane = coordinates[0], coordinates[1], coordinates.sum(0)
    across = np.where(plane % 2 == 0, -i, i)  # alternating direction from plane to plane
    inside = np.where((plane + i) % 2 == 0, -j, j)  # in 2D a diagonal of the plane is one token
    order = np.lexsort((inside, across, plane))
    mirrored = [np.flip(grid, axis).ravel()[order] for axis in range(len(shape) - 1, 0, -1)]
    return _paired_reverses([order, *mirrored])


@route_set("spiral")
def spiral(shape: Shape) -> list[np.ndarray]:
    """MHS-VM's route S: from the corner inwards, each base order with its reverse.

    2D: two base orders, clockwise from the top-left and anticlockwise from the bottom-left corner. 3D, ours: a spiral
    in every slice, inwards and outwards in turn, so that the step to the next slice is one voxel; three slice axes.
    """
    if len(shape) == 2:
        order = _spiral_2d(*shape)
        return _paired_reverses([order, np.flip(_index(shape), 0).ravel()[order]])
    orders = []
    for axis in range(3):
        slices = np.moveaxis(_index(shape), axis, 0)
        inwards = _spiral_2d(*slices.shape[1:])
        turns = [part.ravel()[inwards if n % 2 == 0 else inwards[::-1]] for n, part in enumerate(slices)]
        orders.append(np.concatenate(turns))
    return _paired_reverses(orders)


def _spiral_2d(height: int, width: int) -> np.ndarray:
    index = _index((height, width))
    parts = []
    while index.size:
        parts.append(index[0])
        index = np.rot90(index[1:])  # the right edge becomes the top one
    return np.concatenate(parts)


@route_set("rotary")
def rotary(shape: Shape) -> list[np.ndarray]:
    """LinGen's rotary-major orders (arXiv:2412.09856), slowest axis first, each followed by its reverse."""
    majors = [(0, 1), (1, 0)] if len(shape) == 2 else [(0, 1, 2), (0, 2, 1), (1, 2, 0), (2, 1, 0)]
    return _paired_reverses([_raster(shape, axes) for axes in majors])


@route_set("continuous")
def continuous(shape: Shape) -> list[np.ndarray]:
    """LaMamba-Diff's continuous scan: snakes that start in two corners, each followed by its reverse.

    2D: rows from the top-left corner; columns from the bottom-left one. 3D, ours: a third snake for the third axis.
    """
    grid = _index(shape)
    orders = []
    for n, axes in enumerate(_fastest_first(shape)):
        order = _snake(shape, axes)
        orders.append(order if n == 0 else np.flip(grid, len(shape) - 1 - n).ravel()[order])
    return _paired_reverses(orders)


@route_set("tri")
def tri(shape: Shape) -> list[np.ndarray]:
    """SegMamba's tri-orientated scan: forward, backward, and across the slices (first axis fastest)."""
    order = _raster(shape, range(len(shape)))
    return [order, order[::-1], _raster(shape, [*range(1, len(shape)), 0])]
