"""What a prediction knows about its own quality: how sure each network is, and how image and mask look.

Everything is measured without truth, in the same way for a case that is predicted and for those that `medmamba
find-best` learns from. What networks say is summed over their patches, so it needs no planes of its own, and is the
mean over networks: each of them is then judged as the one network of a cross-validated case was.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from medmamba.models.output_channels import OutputChannels, largest_channel

LEAST_PROBABILITY = 0.05
"""Voxels below it say nothing about a structure."""
TINY = 1e-6
PERCENTILES = (5, 25, 50, 75, 95)
LARGEST_BOX = 4_000_000
"""Voxels of a structure's box from which on every other one along each axis is looked at for components."""
PLANES = 24
"""Planes of an image that its statistics are taken from."""

Measured = dict[str, float]


class NetworkEvidence:
    """Sums over the patches of every network, for each structure, weighted as the patches are.

    For a structure with probability p, decision m and weight w: w m, w p, w p m, w h(p) with the binary entropy h in
    bits, then for every mirrored view with decision v: w v m and w v.
    """

    def __init__(self, heads: OutputChannels) -> None:
        self.heads = heads
        self._sums: dict[int, dict[int, NDArray[np.float64]]] = {}

    @torch.no_grad()
    def see(self, number: int, logits: torch.Tensor, views: Sequence[torch.Tensor], weight: torch.Tensor) -> None:
        """The logits (N, C, *patch) of network ``number``, and the decisions of its mirrored views."""
        weight = weight.to(logits.device).expand(len(logits), *logits.shape[2:])
        sums = self._sums.setdefault(number, {})
        scale: torch.Tensor | None = None
        if not self.heads.sigmoid:
            scale = logits.amax(1)  # summed channel by channel: no second array of all of them
            total = torch.zeros_like(scale)
            for channel in range(logits.shape[1]):
                total += (logits[:, channel] - scale).exp_()
            scale += total.log_()
        own = decisions(logits, sigmoid=self.heads.sigmoid)
        for channel in self.heads.structures:
            values = logits[:, channel]
            p = values.sigmoid() if scale is None else (values - scale).exp_()
            near = p > LEAST_PROBABILITY
            p, w = p[near].double(), weight[near].double()
            if not len(p):
                continue
            m, *seen = (self._decided(each, channel, near) for each in (own, *views))
            parts = [w @ m, w @ p, w @ (p * m), w @ _bits(p)]
            for v in seen:
                parts += [w @ (v * m), w @ v]
            found = torch.stack(parts).cpu().numpy()
            sums[channel] = sums[channel] + found if channel in sums else found

    def _decided(self, decision: torch.Tensor, channel: int, near: torch.Tensor) -> torch.Tensor:
        here = decision[:, channel][near] if self.heads.sigmoid else decision[near] == channel
        return here.double()

    def measured(self, channel: int) -> Measured:
        """Of a structure: ``soft``, 1 minus the Dice of mask and probabilities; ``entropy``, bits per voxel of it;
        ``views``, 1 minus the mean Dice of mirrored views with their mean, where there are any.

        Nothing where no network decides for it.
        """
        each = [sums[channel] for sums in self._sums.values() if channel in sums and sums[channel][0] > 0]
        if not each:
            return {}
        found = [
            {
                "soft": 1 - 2 * both / max(mask + soft, TINY),
                "entropy": entropy / mask,
                **({"views": 1 - _view_dice(mask, views)} if views else {}),
            }
            for mask, soft, both, entropy, *views in (sums.tolist() for sums in each)
        ]
        return {name: float(np.mean([one[name] for one in found])) for name in found[0]}

    def of_structures(self) -> dict[int, Measured]:
        """:meth:`measured`, by channel."""
        return {channel: self.measured(channel) for channel in self.heads.structures}


def decisions(logits: torch.Tensor, *, sigmoid: bool, channels: int = 1) -> torch.Tensor:
    """The class of each voxel by its logits, channels on that axis; of sigmoid channels yes or no each."""
    return logits > 0 if sigmoid else largest_channel(logits.movedim(channels, 0))


def _bits(p: torch.Tensor) -> torch.Tensor:
    return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)) / math.log(2)


def _view_dice(mask: float, views: Sequence[float]) -> float:
    scores = [2 * both / (size + mask) for both, size in zip(views[::2], views[1::2], strict=True)]
    return float(np.mean(scores))


def measured_image(image: NDArray[np.float32], spacing: Sequence[float] | None) -> Measured:
    """Of a preprocessed image (C, I, J, K): percentiles of its intensities, its texture, its field of view.

    ``texture`` is the logarithm of mean differences of neighbours (along each axis) and of second differences;
    ``field`` that of the extent of each axis, in mm or voxels. Names are ``<group>.<channel or axis>.<which>``.
    """
    found: Measured = {}
    step = max(1, image.shape[1] // PLANES)
    for number, channel in enumerate(image):
        drawn = channel[::step]
        values = np.percentile(drawn[:: max(1, drawn.shape[0] // 8)], PERCENTILES)
        found |= {
            f"intensities.{number}.{which}": float(value) for which, value in zip(PERCENTILES, values, strict=True)
        }
        pairs = channel[: len(channel) // step * step]
        across = [np.diff(channel[start : start + 2], axis=0) for start in range(0, len(pairs) - 1, step)]
        differences = [np.concatenate(across) if across else None, np.diff(drawn, axis=1), np.diff(drawn, axis=2)]
        for axis, difference in enumerate(differences):
            if difference is not None and difference.size:
                found[f"texture.{number}.{axis}"] = _log_mean(difference)
        if drawn.shape[2] > 2:
            found[f"texture.{number}.second"] = _log_mean(np.diff(drawn, n=2, axis=2))
    for axis, extent in enumerate(image.shape[1:]):
        found[f"field.{axis}"] = math.log(extent * (1.0 if spacing is None else spacing[axis]))
    return found


def _log_mean(difference: NDArray[np.float32]) -> float:
    return math.log(float(np.abs(difference).mean(dtype=np.float64)) + 1e-4)


def measured_shape(
    labels: NDArray[np.integer], heads: OutputChannels, spacing: Sequence[float] | None
) -> dict[int, Measured]:
    """Of each structure in label indices (i, j, k): ``volume`` and ``extent`` (diagonal of its box) as logarithms of
    mm3 and mm, or voxels, and ``pieces``, the fraction of it outside the largest component; nothing for an absent one.
    """
    from scipy.ndimage import find_objects

    most = max(map(max, heads.members))
    boxes = find_objects(labels.astype(np.int16, copy=False), max_label=most)
    unit = (1.0, 1.0, 1.0) if spacing is None else tuple(spacing)
    found = {}
    for channel in heads.structures:
        members = [index for index in heads.members[channel] if boxes[index - 1] is not None]
        if not members:
            found[channel] = Measured()
            continue
        parts = [boxes[index - 1] for index in members]
        box = tuple(
            slice(min(part[axis].start for part in parts), max(part[axis].stop for part in parts)) for axis in range(3)
        )
        here = labels[box]
        mask = here == members[0] if len(members) == 1 else np.isin(here, members)
        edges = [(part.stop - part.start) * mm for part, mm in zip(box, unit, strict=True)]
        found[channel] = {
            "volume": math.log(int(mask.sum()) * math.prod(unit)),
            "extent": math.log(math.hypot(*edges)),
            "pieces": _outside_largest(mask),
        }
    return found


def _outside_largest(mask: NDArray[np.bool_]) -> float:
    from medmamba.models.cleaning import connected_components

    if mask.size > LARGEST_BOX:
        mask = mask[::2, ::2, ::2]
    _, sizes = connected_components(mask)
    total = int(sizes.sum())
    return 1 - int(sizes.max()) / total if total else 0.0
