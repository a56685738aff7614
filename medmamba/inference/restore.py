"""From planes of logits on the plan's grid to the image's own grid, a few rows of one plane at a time.

Interpolation is linear and separable: between two planes, then inside them. A block of rows stays in the processor's
cache up to the argmax over classes, so the logits on the image's own grid are never all in memory.
"""

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from medmamba.geometry.grid import separate_axis
from medmamba.geometry.trail import Resample, SpatialTrail
from medmamba.images.image import smallest_type
from medmamba.inference.uncertainty import VoxelUncertainty
from medmamba.models.output_channels import DEFAULT_THRESHOLD, OutputChannels
from medmamba.preprocessing.resample import nearest_index

BLOCK_BYTES = 2**20
"""Size of a block of rows: well inside a core's own cache."""


def native_blocks(planes: Iterable[torch.Tensor], resample: Resample) -> Iterator[tuple[int, slice, torch.Tensor]]:
    """Blocks of planes before the resampling step from planes (classes, J, K) after it, in order.

    Each is the index of a plane, its rows, and their scores (classes, rows, K), float32; of planes in half precision
    interpolated scores are rounded to it, as nnU-Net's are.
    """
    coarse = None
    if resample.spacing_before_mm is not None and resample.spacing_after_mm is not None:
        coarse = separate_axis(resample.spacing_after_mm, resample.spacing_before_mm)
    across, down, along = (
        _Axis(wanted, given, nearest=coarse == axis)
        for axis, (wanted, given) in enumerate(zip(resample.shape_before, resample.shape_after, strict=True))
    )
    source = iter(planes)
    held: dict[int, torch.Tensor] = {}
    reached, halves = -1, False
    for index in range(across.wanted):
        below, weight = int(across.below[index]), float(across.weight[index])
        above = below + (weight > 0)
        while reached < above:
            reached += 1
            plane = next(source)
            halves = plane.dtype == torch.half
            held = {number: kept for number, kept in held.items() if number >= below}
            if reached >= below:
                held[reached] = plane.float()
        step = max(1, BLOCK_BYTES // (4 * len(held[below]) * along.wanted))
        for start in range(0, down.wanted, step):
            rows = slice(start, min(start + step, down.wanted))
            scores = _block(held[below], held[above], weight, rows, down, along)
            yield index, rows, scores.half().float() if halves else scores
    for _ in source:
        pass  # the last planes may not be needed; the source still ends properly


def on_native_grid(
    streams: Sequence[tuple[Iterable[torch.Tensor], SpatialTrail]],
    output_channels: OutputChannels,
    thresholds: Sequence[float] | None = None,
    temperature: float = 1.0,
    *,
    probabilities: bool = False,
    uncertainty: VoxelUncertainty | None = None,
) -> tuple[NDArray[np.unsignedinteger], NDArray[np.float32] | None]:
    """Label indices (i, j, k) on the native grid of one image, and the probabilities (classes, i, j, k) if asked for.

    ``streams`` are the planes (classes, J, K) of each configuration with the trail at whose end they lie; several are
    averaged as probabilities, of logits divided by ``temperature``. ``thresholds`` of regions are probabilities.
    ``uncertainty`` gets its percentages on the native grid as well.
    """
    trails = [trail.split_resampling() for _, trail in streams]
    (stored, step), *_ = trails
    blocks = [native_blocks(planes, own) for (planes, _), (_, own) in zip(streams, trails, strict=True)]
    as_probabilities = probabilities or len(blocks) > 1
    channels = len(output_channels.names)
    limits = list(thresholds or [DEFAULT_THRESHOLD] * channels)
    if not as_probabilities:
        limits = [math.log(limit / (1 - limit)) for limit in limits]
    labels = np.empty(step.shape_before, _index_type(output_channels))
    kept = np.empty((channels, *step.shape_before), np.float32) if probabilities else None
    percent = None if uncertainty is None else np.empty(step.shape_before, np.uint8)
    for same_rows in zip(*blocks, strict=True):
        index, rows, scores = same_rows[0]
        if as_probabilities:
            scores = output_channels.probabilities(scores / temperature)
            for _, _, logits in same_rows[1:]:
                scores += output_channels.probabilities(logits / temperature)
            scores.div_(len(same_rows))
        labels[index, rows] = output_channels.label_map(scores, limits).numpy()
        if kept is not None:
            kept[:, index, rows] = scores.numpy()
        if uncertainty is not None and percent is not None:
            known = scores if as_probabilities else output_channels.probabilities(scores / temperature)
            percent[index, rows] = uncertainty.of_block(known)
    native = stored.undo(labels[None])[0]
    if uncertainty is not None and percent is not None:
        uncertainty.percent = stored.undo(percent[None])[0]
    if kept is None:
        return native, None
    background = np.zeros(channels, np.float32)
    if not output_channels.sigmoid:
        background[0] = 1.0
    return native, stored.undo(kept, fill=background)


def labels_of(probabilities: NDArray[np.float32], output_channels: OutputChannels) -> NDArray[np.unsignedinteger]:
    """Label indices (i, j, k) of a whole volume (classes, i, j, k), one plane after the other to save memory."""
    labels = np.empty(probabilities.shape[1:], _index_type(output_channels))
    limits = [DEFAULT_THRESHOLD] * len(output_channels.names)
    for index in range(len(labels)):
        plane = torch.from_numpy(np.ascontiguousarray(probabilities[:, index]))
        labels[index] = output_channels.label_map(plane, limits).numpy()
    return labels


def _index_type(output_channels: OutputChannels) -> np.dtype[np.unsignedinteger]:
    """The smallest type that holds every label index."""
    return smallest_type(0, max(len(output_channels.label_swap) - 2, 1))


class _Axis:
    """Where the wanted voxels of one axis lie among the given ones, voxel edges meeting at both ends.

    ``below`` is the given voxel before each wanted one, ``weight`` (float64) the weight of the voxel after it.
    """

    def __init__(self, wanted: int, given: int, *, nearest: bool) -> None:
        self.wanted, self.given, self.nearest = wanted, given, nearest
        self.below, self.weight = nearest_index(given, wanted), torch.zeros(wanted, dtype=torch.float64)
        if wanted != given and not nearest:
            places = ((torch.arange(wanted, dtype=torch.float64) + 0.5) * (given / wanted) - 0.5).clamp_(0, given - 1)
            self.below, self.weight = places.floor().long(), places - places.floor()


def _block(
    first: torch.Tensor, second: torch.Tensor, weight: float, rows: slice, down: _Axis, along: _Axis
) -> torch.Tensor:
    """``rows`` of the plane interpolated between two planes (classes, J, K), ``weight`` being that of the second."""
    below, weights = down.below[rows], down.weight[rows].float()[:, None]
    low, high = int(below[0]), min(int(below[-1]) + 2, down.given)
    block = first[:, low:high]
    if weight:
        block = torch.lerp(block, second[:, low:high], weight)
    if along.nearest:
        block = block.index_select(2, along.below)
    elif along.wanted != along.given:
        flat = block.reshape(1, -1, along.given)
        block = torch.nn.functional.interpolate(flat, size=along.wanted, mode="linear").reshape(*block.shape[:2], -1)
    if down.wanted == down.given:
        return block[:, : len(below)]
    result = block.index_select(1, below - low)
    if weights.any():
        after = (below - low + 1).clamp_(max=block.shape[1] - 1)
        torch.lerp(result, block.index_select(1, after), weights, out=result)
    return result
