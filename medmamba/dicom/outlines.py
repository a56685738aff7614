"""Outlines of a mask's slice: one closed polygon per island, its holes joined to it by bridges of zero width.

Every point lies INSET of a voxel inside the borders of the voxels, so that any rule of reading finds the same voxels:
whether the centres of voxels are tested, even-odd or by winding, or points are rounded to voxels and the border is
filled too. Outlines do not touch one another or themselves, except along bridges, which are walked forth and back.

Islands hang together by edges of voxels (4 neighbours), holes by corners too (8 neighbours).
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Polygon = npt.NDArray[np.float64]
"""(N, 2): voxel coordinates i, j; the last point is joined to the first."""
INSET = 0.005
"""Of a voxel, from its border: far above the rounding of written coordinates, and of 32-bit ones."""
BRIDGE = 0.25
"""Where a bridge crosses a row of voxels, below their centres: neither on a centre nor on a border."""
STEPS = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])
"""Directions 0 to 3 along the borders of voxels, of which UP and DOWN cross the rows; the mask lies on the left."""
UP, DOWN = 1, 3
LEFT_OF = np.roll(STEPS, -1, axis=0)


def outlines_of(mask: Mask, most: int | None = None) -> list[Polygon]:
    """The outlines of a slice (i, j), one for each island; together they enclose exactly its voxels.

    An island that would need more than ``most`` points is divided into neighbouring ones.
    """
    if not mask.any():
        return []
    corner = np.array([np.flatnonzero(mask.any(axis=1 - axis))[0] for axis in (0, 1)])
    inside = mask[corner[0] :, corner[1] :]
    inside = inside[: np.flatnonzero(inside.any(axis=1))[-1] + 1, : np.flatnonzero(inside.any(axis=0))[-1] + 1]
    found = []
    for polygon, start in _islands(inside):
        if most is None or len(polygon) <= most or inside.sum() == 1:
            found.append(polygon + corner)
        else:
            found += [part + corner for half in _halves(inside, start) for part in outlines_of(half, most)]
    return found


def corners_of(masks: Mask) -> int:
    """How many corners the outlines of slices (i, j, k) have; quick, to know before they are drawn."""
    padded = np.pad(masks, ((1, 1), (1, 1), (0, 0))).astype(np.uint8)
    pairs = padded[1:] + padded[:-1]
    around = pairs[:, 1:] + pairs[:, :-1]
    crossed = (around == 2) & (pairs[:, 1:] == 1) & (padded[1:, 1:] == padded[:-1, :-1])
    return int(((around == 1) | (around == 3)).sum() + 2 * crossed.sum())


def _halves(mask: Mask, start: tuple[int, int]) -> tuple[Mask, Mask]:
    """The island of the voxel ``start`` in two parts, cut across its longer side."""
    from scipy.ndimage import label

    numbers, _ = label(mask)
    island = numbers == numbers[start]
    axis = int(np.argmax([np.ptp(indices) for indices in np.nonzero(island)]))
    places = np.flatnonzero(island.any(axis=1 - axis))
    first, second = island.copy(), island.copy()
    middle = (places[0] + places[-1] + 1) // 2
    np.moveaxis(first, axis, 0)[middle:] = False
    np.moveaxis(second, axis, 0)[:middle] = False
    return first, second


def _islands(mask: Mask) -> Iterator[tuple[Polygon, tuple[int, int]]]:
    """Each island's outline, and a voxel of it."""
    borders = _Borders(mask)
    outer, holes = [], {}  # outer loops; holes by the border from which a bridge leads to them
    leftmost = [borders.leftmost(loop) for loop in borders.loops]
    for number, border in enumerate(leftmost):
        if borders.direction[border] == DOWN:  # the mask lies on its right
            outer.append(number)
        else:
            holes[borders.facing(border)] = number
    for number in outer:
        points: list[tuple[float, float]] = []
        walks = [borders.walk(borders.loops[number], holes)]
        while walks:
            for step in walks[-1]:
                if isinstance(step, int):  # over a bridge, round a hole, and back
                    walks.append(borders.walk(borders.loops[step], holes, leftmost[step]))
                    break
                points.append(step)
            else:
                walks.pop()
        x, y = borders.start[leftmost[number]]
        yield np.array(points, np.float64) - 0.5, (x, y - 1)


class _Borders:
    """The directed borders of the voxels of a mask, one unit long, and the closed loops that they form.

    A vertex (x, y) is the corner of voxel (x, y) towards the origin, at (x - 0.5, y - 0.5).
    """

    def __init__(self, mask: Mask) -> None:
        padded = np.pad(mask, 1)
        here, left, below = padded[1:, 1:], padded[:-1, 1:], padded[1:, :-1]  # of a vertex: its voxel, and those beside
        there = np.zeros((4, *here.shape), bool)
        there[0], there[2][1:] = here & ~below, (below & ~here)[:-1]
        there[UP], there[DOWN][:, 1:] = left & ~here, (here & ~left)[:, :-1]
        directions, *start = np.nonzero(there)
        self._number = np.full(there.shape, -1)
        self._number[there] = np.arange(len(directions))
        starts = np.column_stack(start)
        ends = starts + STEPS[directions]
        after, turned = np.full(len(directions), -1), directions.copy()
        for turn in (-1, 0, 1):  # to the left last, so first of all: voxels that touch at a corner stay apart
            into = (directions + turn) % 4
            found = self._number[into, ends[:, 0], ends[:, 1]]
            after, turned = np.where(found >= 0, found, after), np.where(found >= 0, into, turned)
        corners = ends + INSET * (LEFT_OF[directions] + LEFT_OF[turned])
        self.direction: list[int] = directions.tolist()
        self.start: list[tuple[int, int]] = list(zip(*starts.T.tolist(), strict=True))
        self._corners: list[tuple[float, float]] = list(zip(*corners.T.tolist(), strict=True))
        self._turns: list[bool] = (turned != directions).tolist()
        self.loops = _loops(after.tolist())
        entered = np.where(there[DOWN][:, 1:], np.arange(len(here))[:, None], 0)  # where a row enters the mask
        self._entered = np.maximum.accumulate(entered, axis=0)

    def leftmost(self, loop: list[int]) -> int:
        """The border of a loop that lies farthest to the left."""
        return min((border for border in loop if self.direction[border] in (UP, DOWN)), key=self.start.__getitem__)

    def facing(self, border: int) -> int:
        """The border that a hole's leftmost one sees to its left, across the mask."""
        x, y = self.start[border]
        return int(self._number[DOWN, self._entered[x - 1, y], y + 1])

    def walk(
        self, loop: list[int], holes: dict[int, int], arrival: int | None = None
    ) -> Iterator[tuple[float, float] | int]:
        """The corners of a loop; at each bridge the place it begins, the number of the hole, and the place again.

        With ``arrival``, the walk starts and ends on that border, where the bridge to the loop ends.
        """
        if arrival is not None:
            first = loop.index(arrival)
            loop = loop[first:] + loop[:first]
            x, y = self.start[arrival]
            yield x - INSET, y + BRIDGE
        for border in loop:
            if border in holes:
                x, y = self.start[border]
                yield x + INSET, y - 1 + BRIDGE
                yield holes[border]
                yield x + INSET, y - 1 + BRIDGE
            if self._turns[border]:
                yield self._corners[border]
        if arrival is not None:
            x, y = self.start[arrival]
            yield x - INSET, y + BRIDGE


def _loops(after: list[int]) -> list[list[int]]:
    """Closed loops of borders, of which ``after`` names the one that follows each."""
    found, seen = [], [False] * len(after)
    for first in range(len(after)):
        loop, border = [], first
        while not seen[border]:
            seen[border] = True
            loop.append(border)
            border = after[border]
        if loop:
            found.append(loop)
    return found


def filled(polygon: Polygon, shape: tuple[int, int]) -> Mask:
    """The voxels (i, j) of a slice whose centres a polygon encloses, by the even-odd rule."""
    (x0, y0), (x1, y1) = polygon.T, np.roll(polygon, -1, axis=0).T
    first = np.clip(np.ceil(np.minimum(y0, y1)), 0, shape[1]).astype(int)
    count = np.clip(np.ceil(np.maximum(y0, y1)), 0, shape[1]).astype(int) - first
    side = np.repeat(np.arange(len(polygon)), count)
    rows = np.arange(len(side)) - np.repeat(np.cumsum(count) - count, count) + first[side]
    crossed = x0[side] + (rows - y0[side]) * (x1 - x0)[side] / (y1 - y0)[side]
    changes = np.zeros((shape[0] + 1, shape[1]), int)
    np.add.at(changes, (np.clip(np.ceil(crossed), 0, shape[0]).astype(int), rows), 1)
    return np.cumsum(changes[:-1], axis=0) % 2 == 1
