"""The augmentation of a whole batch at once, on the device that trains: for GPUs whose processor cannot keep up.

Plan and table are those of :mod:`medmamba.training.augmentation`; each sample draws from a random stream of its own, so
a resumed run sees the same patches. The streams are not those of the samples augmented one by one: the two ways agree
in distribution, not patch by patch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.transforms.utils import create_rotate, create_scale
from torch.nn import functional as F

from medmamba.training.augmentation import AugmentationPlan, SampleDraw, SpatialDraw, centre
from medmamba.training.augmentation_table import AUGMENTATIONS, Augmentation, Conditions


@torch.no_grad()
def augment_batch(
    image: torch.Tensor, label: torch.Tensor, plan: AugmentationPlan, draws: Sequence[SampleDraw]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, C, ...) float and label maps (B, 1, ...) int64, augmented and of ``plan.patch_size``.

    They come in the patch size, or in ``plan.enlarged_size`` with the patches that are not rotated in the centre.
    """
    image, label = _rotated(image, label, plan, [draw.spatial for draw in draws])
    for row in AUGMENTATIONS:
        image = _changed(image, row, plan, draws)
    for axis in plan.mirror_axes:
        flipped = [index for index, draw in enumerate(draws) if axis in draw.flips]
        if flipped:
            image[flipped], label[flipped] = image[flipped].flip(axis + 2), label[flipped].flip(axis + 2)
            if axis == plan.swap_axis:
                label[flipped] = torch.tensor(plan.label_swap, device=label.device)[label[flipped]]
    return image, label


def _changed(
    image: torch.Tensor, row: Augmentation, plan: AugmentationPlan, draws: Sequence[SampleDraw]
) -> torch.Tensor:
    """Images (B, C, ...) with one row of the table applied where it was drawn, in place."""
    parts = image if row.whole_sample else image.flatten(0, 1)[:, None]  # each channel by itself
    count = 1 if row.whole_sample else image.shape[1]
    drawn = [
        (draw.strengths.get(row.name, (None,) * count)[channel], draw.seeds.get(row.name, 0))
        for draw in draws
        for channel in range(count)
    ]
    chosen = [index for index, (strength, _) in enumerate(drawn) if strength is not None]
    if chosen:
        conditions = Conditions(tuple(drawn[index][1] for index in chosen), plan.in_plane_only)
        parts[chosen] = row.function(parts[chosen], [drawn[index][0] for index in chosen], conditions)
    return parts.reshape(image.shape)


def _rotated(
    image: torch.Tensor, label: torch.Tensor, plan: AugmentationPlan, spatial: Sequence[SpatialDraw | None]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The centre of every sample in the patch size, rotated and scaled where it was drawn."""
    size, patch = image.shape[2:], plan.patch_size
    middle = centre(size, patch)
    rotated = {index: draw for index, draw in enumerate(spatial) if draw is not None}
    made, labels = image[middle].clone(), label[middle].clone()
    if rotated:
        dims = len(patch)
        matrices = [create_rotate(dims, d.rotation) @ create_scale(dims, d.zooms(plan)) for d in rotated.values()]
        axes = [torch.arange(edge) - (edge - 1) / 2 for edge in patch]
        offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).to(image)  # voxels from the patch's centre
        places = torch.einsum("nij,...j->n...i", torch.from_numpy(np.stack(matrices)).to(image)[:, :-1, :-1], offsets)
        # grid_sample counts from -1 to 1 between the centres of the outer voxels, the last axis first
        grid = (places / torch.tensor([max(edge - 1, 1) / 2 for edge in size]).to(image)).flip(-1)
        chosen = list(rotated)
        made[chosen] = F.grid_sample(image[chosen], grid, mode="bilinear", align_corners=True)
        nearest = F.grid_sample(label[chosen].to(image), grid, mode="nearest", align_corners=True)
        labels[chosen] = nearest.to(label)
    return made, labels
