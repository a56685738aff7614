"""The augmentation of a whole batch at once, on the device that trains: for GPUs whose processor cannot keep up.

The plan, the probabilities and the ranges are those of :mod:`medmamba.training.augmentation`; each sample draws from a
random stream of its own, so a resumed run sees the same patches. The streams are not those of the samples augmented
one by one: the two ways agree in distribution, not patch by patch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from monai.networks.layers import GaussianFilter
from monai.transforms.utils import create_rotate, create_scale
from torch.nn import functional as F

from medmamba.training.augmentation import (
    AugmentationPlan,
    SampleDraw,
    SpatialDraw,
    Strengths,
    centre,
    low_resolution,
)

Change = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Images (n, C, ...) and one strength for each (n, 1, ...) to changed images."""


@torch.no_grad()
def augment_batch(
    image: torch.Tensor, label: torch.Tensor, plan: AugmentationPlan, draws: Sequence[SampleDraw]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, C, ...) float and label maps (B, 1, ...) int64, augmented and of ``plan.patch_size``.

    They come in the patch size, or in ``plan.enlarged_size`` with the patches that do not turn in the centre.
    """
    image, label = _turned(image, label, plan, [draw.spatial for draw in draws])
    image = _where_drawn(image, [draw.noise for draw in draws], _noise([d for d in draws if d.noise is not None]))
    image = _changed(image.flatten(0, 1)[:, None], plan, draws).reshape(image.shape)  # each channel by itself
    for axis in plan.mirror_axes:
        flipped = [index for index, draw in enumerate(draws) if axis in draw.flips]
        if flipped:
            image[flipped], label[flipped] = image[flipped].flip(axis + 2), label[flipped].flip(axis + 2)
            if axis == plan.swap_axis:
                label[flipped] = torch.tensor(plan.label_swap, device=label.device)[label[flipped]]
    return image, label


def _changed(image: torch.Tensor, plan: AugmentationPlan, draws: Sequence[SampleDraw]) -> torch.Tensor:
    """Channels (B*C, 1, ...), changed in place with the strengths of each."""

    def of_all(strengths: str) -> Strengths:
        return tuple(strength for draw in draws for strength in getattr(draw, strengths))

    for index, sigma in enumerate(sigma for draw in draws for sigma in draw.blur):
        if sigma is not None:
            image[index] = GaussianFilter(len(sigma), sigma).to(image.device)(image[index : index + 1])[0]
    image = _where_drawn(image, of_all("brightness"), lambda images, factor: images * factor)
    image = _where_drawn(image, of_all("contrast"), _contrast)
    for index, zoom in enumerate(of_all("low_resolution")):
        if zoom is not None:
            image[index] = low_resolution(image[index : index + 1], zoom, plan)[0]
    image = _where_drawn(image, of_all("inverted_gamma"), lambda images, gamma: -_gamma(-images, gamma))
    return _where_drawn(image, of_all("gamma"), _gamma)


def _turned(
    image: torch.Tensor, label: torch.Tensor, plan: AugmentationPlan, spatial: Sequence[SpatialDraw | None]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The centre of every sample in the patch size, rotated and scaled where it was drawn."""
    size, patch = image.shape[2:], plan.patch_size
    middle = centre(size, patch)
    turns = {index: draw for index, draw in enumerate(spatial) if draw is not None}
    made, labels = image[middle].clone(), label[middle].clone()
    if turns:
        dims = len(patch)
        matrices = [create_rotate(dims, d.rotation) @ create_scale(dims, d.zooms(plan)) for d in turns.values()]
        axes = [torch.arange(edge) - (edge - 1) / 2 for edge in patch]
        offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).to(image)  # voxels from the patch's centre
        places = torch.einsum("nij,...j->n...i", torch.from_numpy(np.stack(matrices)).to(image)[:, :-1, :-1], offsets)
        # grid_sample counts from -1 to 1 between the centres of the outer voxels, the last axis first
        grid = (places / torch.tensor([max(edge - 1, 1) / 2 for edge in size]).to(image)).flip(-1)
        chosen = list(turns)
        made[chosen] = F.grid_sample(image[chosen], grid, mode="bilinear", align_corners=True)
        nearest = F.grid_sample(label[chosen].to(image), grid, mode="nearest", align_corners=True)
        labels[chosen] = nearest.to(label)
    return made, labels


def _where_drawn(image: torch.Tensor, strengths: Sequence[float | None], change: Change) -> torch.Tensor:
    """Change the samples that have a strength."""
    drawn = {index: strength for index, strength in enumerate(strengths) if strength is not None}
    if drawn:
        strength = torch.tensor(list(drawn.values()), device=image.device).reshape(-1, *[1] * (image.ndim - 1))
        chosen = list(drawn)
        image[chosen] = change(image[chosen], strength)
    return image


def _noise(draws: Sequence[SampleDraw]) -> Change:
    def add(images: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
        noise = torch.empty_like(images)
        for one, draw in zip(noise, draws, strict=True):
            one.normal_(generator=torch.Generator(images.device).manual_seed(draw.noise_seed))
        return images + deviation * noise

    return add


def _contrast(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Farther from the mean or nearer to it, within the old range."""
    mean = _over_sample(images, torch.mean)
    low, high = _over_sample(images, torch.amin), _over_sample(images, torch.amax)
    return ((images - mean) * factor + mean).clamp(low, high)


def _gamma(images: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    """A gamma curve over the range of each image, which keeps its mean and deviation."""
    low = _over_sample(images, torch.amin)
    reach = _over_sample(images, torch.amax) - low
    curved = ((images - low) / (reach + 1e-7)) ** gamma * reach + low
    curved = (curved - _over_sample(curved, torch.mean)) / (_over_sample(curved, torch.std) + 1e-8)
    return curved * _over_sample(images, torch.std) + _over_sample(images, torch.mean)


def _over_sample(images: torch.Tensor, reduce: Callable[..., torch.Tensor]) -> torch.Tensor:
    """One number of each sample (n, 1, ...), over its channels and voxels."""
    return reduce(images, dim=list(range(1, images.ndim)), keepdim=True)
