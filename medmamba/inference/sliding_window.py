"""Sliding-window prediction: overlapping patches, weighted by a Gaussian, averaged.

MONAI's window places its last patch against the border and so gives the border region other overlaps than the rest;
nnU-Net spreads the patches evenly. The positions and weights here are nnU-Net's.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, pairwise, product
from pathlib import Path

import numpy as np
import torch
from torch import nn

from medmamba.inference.confidence import Confidence
from medmamba.inference.evidence import decisions
from medmamba.inference.patch_positions import STEP, window_starts
from medmamba.inference.planes import PlaneStore

CPU = torch.device("cpu")
SIGMA_SCALE = 0.125
"""Width of the Gaussian weight as a fraction of the patch edge."""
EMPTY_RANGE = 1e-4
"""Largest difference of normalised values in a patch that holds one value only; resampling ripples below it."""
VOXELS_TOGETHER = 2**16
"""Voxels that a pass through a network takes together. Measured on one thread of an AVX-512 processor with 8 to 120
channels: slices of 56x40 take 16 ms one by one, 7 in fours, 4 in eights, 3.6 in sixteens."""
MOST_VIEWS = 16
BACKGROUND_LOGIT = 10.0
"""Logit of the background in voxels that no patch covers."""


@lru_cache(maxsize=8)
def gaussian_weight(patch_size: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Weight of each voxel of a patch: a Gaussian around its centre, at most 10, never 0."""
    weight = np.ones(())
    for edge in patch_size:
        sigma = edge * SIGMA_SCALE
        reach = int(4 * sigma + 0.5)  # cut off where scipy.ndimage.gaussian_filter does, which costs 14 MiB to import
        distance = np.arange(-reach, reach + 1)
        bell = np.exp(-0.5 / sigma**2 * distance**2)
        places = np.arange(edge) - edge // 2 + reach
        weight = weight[..., None] * (bell / bell.sum())[places]
    if dtype == torch.half:
        tensor = torch.from_numpy(weight / (weight.max() / 10)).half()
    else:
        tensor = torch.from_numpy(weight).float()
        tensor *= 10 / tensor.max()
    tensor[tensor == 0] = tensor[tensor > 0].min()
    return tensor


@lru_cache(maxsize=8)
def _weight_on(device: torch.device, patch_size: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return _sent(gaussian_weight(patch_size, dtype), device)


def _sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the CPU on a device, for which the host does not wait."""
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True)
class Window:
    """How patches move over an image.

    Args:
        patch_size: two or three edges; two are moved over every slice of the first axis.
        mirror_axes: axes of the patch; the mean over all flips along them is taken.
        swap_axis: a flip along this axis exchanges left and right; its channels are put back by ``channel_swap``.
        step: distance of neighbouring patches as a fraction of the edge.
        batch: patches that go through the network together.
        skip_empty: patches of one value (air, padding) become background without the network.
        sigmoid: whether channels are independent, so that the background is the absence of all.
        scratch: folder for planes that do not fit into memory; None keeps them in memory.
        input_swap: channels of the image after a flip along ``swap_axis``, where some belong to one side (cascades).
        half_sums: patches are added up in half precision, those of each network alone, as nnU-Net does. The planes come
            in half precision, so that whoever interpolates them rounds the result to it.
    """

    patch_size: tuple[int, ...]
    mirror_axes: tuple[int, ...] = ()
    swap_axis: int | None = None
    channel_swap: tuple[int, ...] = ()
    step: float = STEP
    batch: int = 1
    skip_empty: bool = False
    sigmoid: bool = False
    scratch: Path | None = None
    input_swap: tuple[int, ...] = ()
    half_sums: bool = False

    @property
    def box(self) -> tuple[int, int, int]:
        """The three edges of a patch in the image."""
        i, j, k = (1, *self.patch_size) if len(self.patch_size) == 2 else self.patch_size
        return i, j, k

    def starts(self, shape: Sequence[int]) -> list[list[int]]:
        """First voxels of the patches along each axis of an image (I, J, K); a flat patch sees every slice once."""
        steps = (1.0 if edge == 1 else self.step for edge in self.box)
        return [window_starts(n, edge, step) for n, edge, step in zip(shape, self.box, steps, strict=True)]

    def patches(self, shape: Sequence[int]) -> int:
        """The number of patches that cover an image (I, J, K)."""
        return math.prod(map(len, self.starts(shape)))

    @property
    def views_together(self) -> int:
        """Views of patches that go through a network in one pass: many small ones cost it far less than one by one."""
        return max(self.batch, min(MOST_VIEWS, VOXELS_TOGETHER // math.prod(self.patch_size)), 1)


Networks = Sequence[Callable[[torch.Tensor], torch.Tensor]]
"""Each takes patches (N, C, *patch) and gives logits (N, classes, *patch) on the CPU or a device."""


@torch.no_grad()
def stream_logits(
    networks: Networks,
    image: torch.Tensor,
    window: Window,
    *,
    on_tile: Callable[[int, int], None] = lambda done, total: None,
    confidence: Confidence | None = None,
    device: torch.device = CPU,
) -> Iterator[torch.Tensor]:
    """The planes (classes, J, K) of the logits of an image (C, I, J, K), one after the other along the first axis.

    Several networks are averaged. ``confidence`` sees what each of them says about every batch of patches.
    Images smaller than the patch are padded with zeros and cropped again. On a ``device`` other than the CPU patches
    are cut, mirrored together and summed there; the planes come to the CPU while it computes those after them.
    """
    padded, before = _pad(image, window.box)
    rows, *columns = window.starts(padded.shape[1:])
    places = list(product(*columns))
    batch_size = window.batch
    if device.type == "cpu":
        batch_size = max(batch_size, window.views_together // 2 ** len(window.mirror_axes))
    several = max(1, batch_size // len(places)) if window.box[0] == 1 else 1  # slices whose patches go together
    sums = torch.half if window.half_sums else torch.float32
    weight = _weight_on(device, window.patch_size, sums)
    source = _sent(padded, device)
    arrivals = _Arrivals()
    store: PlaneStore | None = None
    kept = min(window.box[0] + several - 1, image.shape[1])  # no thicker than the kept planes: padding is discarded
    weights = torch.zeros((kept, *image.shape[2:]), dtype=sums, device=device)
    done, total = 0, len(rows) * len(places)
    background = 0  # planes of skipped rows before the number of classes is known
    try:
        for number, (first, following) in enumerate(pairwise([*rows[::several], image.shape[1]])):
            visited = list(product(rows[number * several : (number + 1) * several], places))
            for start in range(0, len(visited), batch_size):
                batch = visited[start : start + batch_size]
                boxes = [_box((row, *place), window.box) for row, place in batch]
                if window.skip_empty:
                    boxes = [box for box in boxes if not _is_empty(padded[box])]
                if boxes:
                    logits = _mean_logits(networks, torch.stack([source[box] for box in boxes]), window, confidence)
                    if store is None:
                        shape = (logits.shape[1], image.shape[2], image.shape[3])
                        store = PlaneStore(kept, shape, window.scratch, dtype=sums, device=device)
                        yield from (_background(shape, window) for _ in range(background))
                    for box, patch in zip(boxes, logits, strict=True):
                        starts = [part.start - padding for part, padding in zip(box[1:], before, strict=True)]
                        _add(store, weights, image.shape[1:], starts, patch, weight)
                    del logits
                done += len(batch)
                on_tile(done, total)
            yield from arrivals.fetch(window, len(networks))  # of the row before
            for plane in range(first, following):
                if store is None:
                    background += 1
                elif device.type == "cpu":
                    yield _normalised(store.take(plane), weights[plane % kept], window, len(networks))
                else:
                    arrivals.send(store.take(plane), weights[plane % kept])
                weights[plane % kept] = 0
        yield from arrivals.fetch(window, len(networks))
        if store is None:  # nothing but air: ask once, to learn the number of classes
            logits = _mean_logits(networks, source[_box((0, 0, 0), window.box)][None], window, None)
            yield from (_background((logits.shape[1], *image.shape[2:]), window) for _ in range(background))
    finally:
        if store is not None:
            store.close()


class _Arrivals:
    """Finished planes on their way from a device to the CPU."""

    def __init__(self) -> None:
        self._sent: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._arrival: torch.cuda.Event | None = None

    def send(self, plane: torch.Tensor, weights: torch.Tensor) -> None:
        """Queue the copies of a plane of sums (classes, J, K) and its weights (J, K), without waiting."""
        self._sent.append((plane.to("cpu", non_blocking=True), weights.to("cpu", non_blocking=True, copy=True)))
        self._arrival = torch.cuda.Event()
        self._arrival.record(torch.cuda.current_stream(plane.device))

    def fetch(self, window: Window, networks: int) -> Iterator[torch.Tensor]:
        """The planes that were sent since the last time, normalised."""
        if self._arrival is not None:
            self._arrival.synchronize()
        sent, self._sent, self._arrival = self._sent, [], None
        for plane, weights in sent:
            yield _normalised(plane, weights, window, networks)


@torch.no_grad()
def predict_logits(
    network: nn.Module,
    image: torch.Tensor,
    patch_size: tuple[int, ...],
    device: torch.device,
    batch: int = 1,
    sums: torch.device = CPU,
) -> torch.Tensor:
    """All logits (classes, I, J, K) of an image (C, I, J, K) on the plan's grid at once, float32 on the CPU.

    The network is on ``device``; ``batch`` patches go through it together and are summed on the device ``sums``.
    """
    network.eval()
    window = Window(patch_size, batch=batch)
    planes = stream_logits([lambda patches: network(patches.to(device))], image, window, device=sums)
    return torch.stack(list(planes), dim=1)


def _mean_logits(
    networks: Networks, patches: torch.Tensor, window: Window, confidence: Confidence | None
) -> torch.Tensor:
    """Mean logits (N, classes, *patch) of all networks and flips, float32 where the patches (N, C, i, j, k) are.

    With ``half_sums`` those of each network behind the other (N, networks x classes, *patch).
    """
    if len(window.patch_size) == 2:
        patches = patches[:, :, 0]
    total, decided, each = None, [], []
    evidence = None if confidence is None else confidence.evidence
    for number, network in enumerate(networks):
        views: list[torch.Tensor] | None = None if evidence is None else []
        logits = _mirrored(network, patches, window, views).to(patches.device)
        if evidence is not None:
            evidence.see(number, logits, views or (), _weight_on(logits.device, window.patch_size, torch.float32))
        if confidence is not None and len(networks) > 1:
            decided.append(confidence.decide(logits, 1))
        if window.half_sums:
            each.append(logits)
        # the first sum is a new array: what a network returned may be its own
        total = logits if total is None else total + logits if number == 1 else total.add_(logits)
    assert total is not None
    mean = total if len(networks) == 1 else total.div_(len(networks))
    if decided and confidence is not None:
        confidence.see_patch(decided, confidence.decide(mean, 1))
    return torch.cat(each, dim=1) if len(each) > 1 else mean


def _mirrored(
    network: Callable[[torch.Tensor], torch.Tensor],
    patch: torch.Tensor,
    window: Window,
    views: list[torch.Tensor] | None = None,
) -> torch.Tensor:
    """Mean logits of the flips of patches, float32; a device other than the CPU gets all flips together.

    The decisions of each flip are added to ``views``, where there are several.
    """
    axes = [axis + 2 for axis in window.mirror_axes]
    flips = [flip for count in range(len(axes) + 1) for flip in combinations(axes, count)]
    together = max(1, window.views_together // len(patch)) if patch.device.type == "cpu" else len(flips)
    total: torch.Tensor | None = None
    for start in range(0, len(flips), together):
        group = flips[start : start + together]
        seen = [_flipped(patch, flip, window, window.input_swap) for flip in group]
        found = network(seen[0] if len(seen) == 1 else torch.cat(seen))
        for flip, part in zip(group, found.split(len(patch)), strict=True):
            logits = _flipped(part.float(), flip, window, window.channel_swap)
            if views is not None and len(flips) > 1:
                views.append(decisions(logits, sigmoid=window.sigmoid).to(patch.device))
            if total is None:
                total = logits
            else:  # the first sum is a new array: what a network returned may be its own
                logits = logits.to(total.device)
                total = total + logits if flip is flips[1] else total.add_(logits)
    assert total is not None
    return total.div_(len(flips)) if len(flips) > 1 else total


def _flipped(x: torch.Tensor, flip: tuple[int, ...], window: Window, swap: tuple[int, ...]) -> torch.Tensor:
    """A view of (N, C, *patch), or the way back; ``swap`` are the channels where the flip exchanges left and right."""
    if not flip:
        return x
    if window.swap_axis is not None and window.swap_axis + 2 in flip and swap:
        x = _channels(x, swap)
    return torch.flip(x, flip)


def _channels(tensor: torch.Tensor, order: Sequence[int]) -> torch.Tensor:
    """Channels (N, C, ...) in another order; a list as index would make the host wait for a device."""
    return torch.stack([tensor[:, channel] for channel in order], 1)


def _add(
    store: PlaneStore,
    weights: torch.Tensor,
    shape: Sequence[int],
    starts: Sequence[int],
    patch: torch.Tensor,
    weight: torch.Tensor,
) -> None:
    """Add the part of a patch on the image (I, J, K); ``starts`` is its first voxel, negative in the padding."""
    patch, weight = patch.reshape(len(patch), -1, *patch.shape[-2:]), weight.reshape(-1, *weight.shape[-2:])
    ends = [min(start + edge, extent) for start, edge, extent in zip(starts, weight.shape, shape, strict=True)]
    planes, rows, columns = (slice(max(start, 0), end) for start, end in zip(starts, ends, strict=True))
    inside = tuple(slice(max(-start, 0), end - start) for start, end in zip(starts, ends, strict=True))
    weight, patch = weight[inside], patch[(slice(None), *inside)]
    for depth, index in enumerate(range(planes.start, planes.stop)):
        plane = store.plane(index)[:, rows, columns]
        if plane.dtype == torch.half:  # each sum is rounded, its product is not
            plane += patch[:, depth] * weight[depth]
        else:
            plane.addcmul_(patch[:, depth], weight[depth])  # no array in between: it would cost most
        weights[index % len(weights), rows, columns] += weight[depth]


def _normalised(plane: torch.Tensor, weights: torch.Tensor, window: Window, networks: int) -> torch.Tensor:
    # in half precision the weights of corners are below the smallest normal number, and no voxel is without one
    result = plane.div_(weights if window.half_sums else weights.clamp(min=torch.finfo(torch.float32).tiny))
    if window.half_sums and networks > 1:
        first, *others = result.unflatten(0, (networks, -1))
        for other in others:
            first += other
        result = first.div_(networks)
    if not all(map(math.isfinite, result.aminmax())):  # one pass; not a number wins both
        raise FloatingPointError("the network gave logits that are not finite numbers")
    empty = weights == 0
    if empty.any():
        result[:, empty] = _background((len(result), 1), window)
    return result


def _background(shape: tuple[int, ...], window: Window) -> torch.Tensor:
    """Logits (classes, ...) in voxels that no patch covers."""
    plane = torch.zeros(shape)
    if window.sigmoid:
        return plane - BACKGROUND_LOGIT
    plane[0] = BACKGROUND_LOGIT
    return plane


def _is_empty(patch: torch.Tensor) -> bool:
    flat = patch.flatten(1)
    return bool((flat.amax(1) - flat.amin(1) < EMPTY_RANGE).all())


def _box(start: Sequence[int], edges: Sequence[int]) -> tuple[slice, ...]:
    """The voxels of a patch, and all channels."""
    return (slice(None), *(slice(first, first + edge) for first, edge in zip(start, edges, strict=True)))


def _pad(image: torch.Tensor, window: tuple[int, ...]) -> tuple[torch.Tensor, tuple[int, ...]]:
    """The image, no smaller than the window, and how much was put before each axis."""
    missing = [max(edge - extent, 0) for extent, edge in zip(image.shape[1:], window, strict=True)]
    before = tuple(count // 2 for count in missing)
    if not any(missing):
        return image, before
    ends = zip(before, missing, strict=True)
    padding = [part for first, count in reversed(list(ends)) for part in (first, count - first)]  # last axis first
    return nn.functional.pad(image, padding), before
