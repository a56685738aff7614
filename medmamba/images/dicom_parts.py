"""The stacks and phases of a DICOM series: which of its slices form a volume together, and what tells them apart.

What all slices of a volume have in common (``CONTRASTS``) always divides a series. Where several images lie at one
place, or slices are unevenly spaced, acquisitions, angles, times and the order of the images divide it further; slices
for which no rule holds stay together, and their reader refuses them.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from medmamba.errors import counted
from medmamba.images.dicom_slices import CONTRASTS, COUNTED, PATIENT, PHASES, Slice, difference, without_copies
from medmamba.images.gate import shown

LARGEST = "largest"
"""Chooses the part with the most slices."""
MOST_LISTED = 8
"""Parts of a series that are listed."""
SAME_SLICE = 0.01  # of the spacing: closer slices are the same one twice
EVEN_SPACING = 0.05  # of the spacing: positions are written rounded
SAME_LINE = 0.5  # pixel: stacks beside each other are further apart in their plane

Part = list[Slice]
Place = tuple[float, ...]


def parts_of(pieces: Iterable[Slice]) -> list[Part]:
    """The slices of one series, divided into volumes: by size, spacing and orientation, contrast, place and phase."""
    stacks: list[Part] = []
    for piece in pieces:
        stack = next((stack for stack in stacks if not difference(piece, stack[0])), None)
        if stack is None:
            stacks.append([piece])
        else:
            stack.append(piece)
    return [part for stack in stacks for part in _of_contrast(_without_copies(stack), 0)]


def _without_copies(stack: Part) -> Part:
    """Without files that are equal byte for byte; they are looked for where two images lie at one place."""
    if len(_places(stack)) == len(stack):
        return stack
    kept = set(without_copies(dict.fromkeys(piece.path for piece in stack)))
    return [piece for piece in stack if piece.path in kept]


def _of_contrast(stack: Part, at: int) -> list[Part]:
    """Divided by the contrasts from number ``at`` on."""
    names = list(CONTRASTS)
    for number in range(at, len(names)):
        groups = _groups(stack, [piece.contrast[number] for piece in stack])
        numbers_slices = names[number] in COUNTED and len(groups) == len(stack) == len(_places(stack))
        if len(groups) > 1 and not numbers_slices:
            return [part for group in groups for part in _of_contrast(group, number + 1)]
    return [part for group in _beside(stack) for part in _of_phase(group, 0)]


def _beside(stack: Part) -> list[Part]:
    """Divided where stacks lie beside each other: each has two places at least, in line along the normal."""
    normal = _normal(stack)
    lines: list[tuple[npt.NDArray[np.float64], Part]] = []
    for piece in stack:
        at = piece.position - (piece.position @ normal) * normal
        nearest = SAME_LINE * float(piece.spacing.min())
        line = next((line for first, line in lines if np.linalg.norm(first - at) <= nearest), None)
        if line is None:
            lines.append((at, [piece]))
        else:
            line.append(piece)
    found = [line for _, line in lines]
    return found if all(len(_places(line)) > 1 for line in found) else [stack]


def _of_phase(stack: Part, at: int) -> list[Part]:
    """Divided until no two images lie at one place, if a rule does that; each phase then by its slabs."""
    places = _places(stack)
    if len(places) == len(stack):
        return _slabs(stack)
    for number in range(at, len(PHASES) + 1):
        groups = _groups(stack, [piece.phase[number] for piece in stack])
        if len(groups) > 1 and _are_phases(groups, len(places)):
            return [part for group in groups for part in _of_phase(group, number + 1)]
    phases = _in_turn(list(places.values()))
    return [part for phase in phases for part in _slabs(phase)] if phases else [stack]


def _are_phases(groups: Sequence[Part], count: int) -> bool:
    """Whether groups are images of the same places, not slices of one volume that are numbered."""
    covered = [set(_places(group)) for group in groups]
    if len(groups) < count and all(len(group) == len(inside) for group, inside in zip(groups, covered, strict=True)):
        return True
    largest = max(covered, key=len)
    return all(2 * len(inside & largest) >= len(inside) for inside in covered)


def _in_turn(places: Sequence[Part]) -> list[Part]:
    """The first images of all places, the second ones, ...; none where their order does not tell that."""
    if len({len(images) for images in places}) > 1:
        return []
    ordered = [sorted(images, key=lambda piece: (piece.trigger, piece.number)) for images in places]
    phases = [list(phase) for phase in zip(*ordered, strict=True)]
    if all(len({piece.trigger for piece in images}) == len(images) for images in places):
        return phases
    one_by_one = all(len({piece.number for piece in images}) == len(images) for images in places)
    return phases if one_by_one and (_apart(phases) or _apart(places)) else []


def _apart(groups: Sequence[Part]) -> bool:
    """Whether each group has a range of numbers of its own."""
    ranges = sorted((min(numbers), max(numbers)) for group in groups if (numbers := [p.number for p in group]))
    return all(before[1] < after[0] for before, after in pairwise(ranges))


def _slabs(stack: Part) -> list[Part]:
    """Slices at places of their own, divided where they are slabs or acquisitions in turn, not one volume.

    A missing slice leaves a gap in the numbers too: such a stack stays as it is, to be refused.
    """
    if len(stack) < 4:
        return [stack]
    rules: list[list[Part]] = [_groups(stack, [piece.phase[at] for piece in stack]) for at in (0, len(PHASES))]
    steps = np.diff(np.sort([piece.number for piece in stack]))
    numbered = bool((steps > 0).all()) and not stack[0].frame  # frames are numbered through, whatever is missing
    hole = numbered and bool(np.ptp(steps) > 0)
    runs = _runs(stack) if numbered and not hole else []
    even = _spacing(stack)
    if even is None:
        candidates = [] if hole else [*rules, [] if _one_is_missing(runs) else runs]
        return next((groups for groups in candidates if _are_volumes(groups)), [stack])
    for groups in rules:
        if _are_volumes(groups) and _mixed(groups) and not _declares(stack, even, np.inf):
            return groups
    own = (_spacing(runs[0]) or 0.0) if runs else 0.0
    return runs if _are_volumes(runs) and stack[0].between and not _declares(stack, even, own) else [stack]


def _are_volumes(groups: Sequence[Part]) -> bool:
    return len(groups) > 1 and all(len(group) > 1 and _spacing(group) is not None for group in groups)


def _one_is_missing(runs: Sequence[Part]) -> bool:
    """Whether two runs are as far apart as if one slice between them had been lost, and the others numbered anew."""
    ends = sorted((heights[0], heights[-1]) for heights in map(_heights, runs))
    spacing = (_spacing(runs[0]) or np.inf) if runs else np.inf
    return any(abs(after[0] - before[1] - 2 * spacing) <= 0.1 * spacing for before, after in pairwise(ends))


def _mixed(groups: Sequence[Part]) -> bool:
    """Whether groups lie within each other, not one behind the other."""
    normal = _normal(groups[0])
    ranges = sorted(
        (min(heights), max(heights)) for group in groups if (heights := [p.position @ normal for p in group])
    )
    return any(before[1] > after[0] for before, after in pairwise(ranges))


def _declares(stack: Part, spacing: float, other: float) -> bool:
    """Whether the slices say that they are ``spacing`` apart, rather than ``other``; by their thickness at last."""
    said = stack[0].between or stack[0].thickness
    return bool(said) and abs(said - spacing) < min(abs(said - other), 0.25 * spacing)


def _runs(stack: Part) -> list[Part]:
    """Slices in the order of their numbers, divided where the step to the next changes."""
    normal = _normal(stack)
    runs: list[Part] = []
    step = None
    for piece in sorted(stack, key=lambda piece: piece.number):
        gap = float((piece.position - runs[-1][-1].position) @ normal) if runs else 0.0
        if not runs or (step is not None and abs(gap - step) > EVEN_SPACING * abs(step)):
            runs.append([piece])
            step = None
            continue
        step = gap if step is None else step
        runs[-1].append(piece)
    return runs


def _spacing(stack: Part) -> float | None:
    """The distance of evenly spaced slices; None for others."""
    gaps = np.diff(_heights(stack))
    usual = float(np.median(gaps)) if len(gaps) else 0.0
    even = len(gaps) and usual > 0 and bool((np.abs(gaps - usual) <= EVEN_SPACING * usual).all())
    return usual if even else None


def _normal(stack: Part) -> npt.NDArray[np.float64]:
    normal: npt.NDArray[np.float64] = np.cross(stack[0].orientation[:3], stack[0].orientation[3:])
    return normal


def _heights(stack: Part) -> npt.NDArray[np.float64]:
    normal = _normal(stack)
    return np.sort([float(piece.position @ normal) for piece in stack])


def _places(stack: Part) -> dict[Place, Part]:
    places: dict[Place, Part] = defaultdict(list)
    for piece in stack:
        places[tuple(np.round(piece.position, 2).tolist())].append(piece)
    return places


def _groups(stack: Part, values: Sequence[str]) -> list[Part]:
    """Slices by their values, in the order of the values, as numbers where they are."""
    groups: dict[str, Part] = defaultdict(list)
    for piece, value in zip(stack, values, strict=True):
        groups[value].append(piece)
    return [groups[value] for value in sorted(groups, key=_as_number)]


def _as_number(text: str) -> tuple[tuple[float, ...], str]:
    try:
        return tuple(float(word) for word in text.split("\\")), text
    except ValueError:
        return (), text


def sizes_of(parts: Sequence[Part]) -> str:
    """Several stacks and phases in words: how to choose each, what it is, and its size; empty for one."""
    if len(parts) < 2:
        return ""
    sizes, marks = [size_of(part) for part in parts], _marks(parts)
    same = len(set(sizes)) == 1
    if same and not any(marks):
        return f"{len(sizes)} parts (:1 to :{len(sizes)} or :{LARGEST}) of {sizes[0]} each"
    words = [mark if same else f"{size}{mark and ', '}{mark}" for size, mark in zip(sizes, marks, strict=True)]
    listed = ", ".join(f":{number} {text}" for number, text in enumerate(words[:MOST_LISTED], start=1))
    listed += ", ..." if len(words) > MOST_LISTED else ""
    return f"{len(sizes)} parts ({listed} or :{LARGEST})" + (f" of {sizes[0]} each" if same else "")


def _marks(parts: Sequence[Part]) -> list[str]:
    """What tells each part from the others: values that its slices share, no more than are needed."""
    marks = [""] * len(parts)
    for at, name in enumerate((*CONTRASTS, *PHASES, "file")):
        values = [_shared((*piece.contrast, *piece.phase)[at] for piece in part) for part in parts]
        if name == PATIENT:
            known = sorted({value for value in values if value is not None})
            values = [None if value is None else str(known.index(value) + 1) for value in values]
        named = [f"{name} {'-' if not value else shown(value)[-20:]}" for value in values]
        more = [f"{mark}{mark and ' '}{text}" for mark, text in zip(marks, named, strict=True)]
        if None not in values and len(set(more)) > len(set(marks)):
            marks = more
    return marks


def _shared(values: Iterable[str]) -> str | None:
    found = set(values)
    return found.pop() if len(found) == 1 else None


def size_of(part: Part) -> str:
    """Slices, rows, columns and their distances in words."""
    first, heights = part[0], _heights(part)
    apart = float(np.median(np.diff(heights))) if len(part) > 1 else first.thickness
    mm = " x ".join(f"{value:.3g}" for value in (apart, *first.spacing))
    columns, rows = first.size
    return f"{counted(len(part), 'slice')} of {rows} x {columns} pixels, {mm} mm"
