"""The intensity augmentations: how often each happens, how strongly, and the function that does it.

A further augmentation is one function and one row; rows are drawn and applied in the order in which they stand. The
data workers apply MONAI's transforms to one image at a time, a GPU the functions here to a whole batch at once.
Source of the figures: nnU-Net v2, ``nnUNetTrainer.get_training_transforms``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.networks.layers import gaussian_1d, separable_filtering
from monai.transforms import AdjustContrast, GaussianSmooth, RandGaussianNoise, ScaleIntensity, ScaleIntensityFixedMean
from torch.nn import functional as F

Strength = float | tuple[float, ...]
"""How strongly: one number, or one for each axis."""


@dataclass(frozen=True)
class Conditions:
    """What a function may need to know beside image and strength: the random seed of each image, and flat patches.

    ``in_plane_only``: the first axis is much coarser than the others and is left as it is.
    """

    seeds: tuple[int, ...]
    in_plane_only: bool


Function = Callable[[torch.Tensor, Sequence[Any], Conditions], torch.Tensor]
"""Images (n, C, ...) and a strength for each of the n to changed images; C is 1 unless the row is of whole samples."""


@dataclass(frozen=True)
class Augmentation:
    """One row: how often it happens to a sample, the range of its strength, and what it does.

    Attributes:
        name: of the row; also in :attr:`SampleDraw.strengths`.
        probability: that it happens to a sample.
        low, high: range of the strength, uniform.
        function: changes a batch of images.
        monai: from a strength to MONAI's transform of a single image (C, ...), where there is one; else ``function`` is
            called with a batch of one.
        per_channel: probability that a channel is changed when it happens; each has a strength of its own.
        factor: the strength multiplies, so it is drawn below and above 1 equally often.
        per_axis: one strength for each spatial axis.
        whole_sample: one strength for all channels, which are changed together.
        random: the function draws random numbers, from ``Conditions.seeds``.
    """

    name: str
    probability: float
    low: float
    high: float
    function: Function
    monai: Callable[[Any], Callable[[Any], Any]] | None = None
    per_channel: float = 1.0
    factor: bool = False
    per_axis: bool = False
    whole_sample: bool = False
    random: bool = False

    def draw(self, rng: np.random.Generator, channels: int, axes: int) -> tuple[Strength | None, ...]:
        """A strength for each channel (one for all if ``whole_sample``); None: it is left as it is."""
        happens = bool(rng.random() < self.probability)
        if self.whole_sample:
            return (self._strength(rng, axes) if happens else None,)
        changed = [happens and bool(rng.random() < self.per_channel) for _ in range(channels)]
        return tuple(self._strength(rng, axes) if change else None for change in changed)

    def _strength(self, rng: np.random.Generator, axes: int) -> Strength:
        draw = factor_around_one if self.factor else np.random.Generator.uniform
        if self.per_axis:
            return tuple(float(draw(rng, self.low, self.high)) for _ in range(axes))
        return float(draw(rng, self.low, self.high))

    def apply_to_one(self, image: torch.Tensor, strength: Strength, conditions: Conditions) -> torch.Tensor:
        """A single image (C, ...), changed."""
        if self.monai is None:
            return self.function(image[None], [strength], conditions)[0]
        transform = self.monai(strength)
        if isinstance(transform, RandGaussianNoise):
            transform.set_random_state(seed=conditions.seeds[0])
        return plain(transform(image))


def plain(image: Any) -> torch.Tensor:
    """Without MONAI's metadata: patches need no affines, and tracking them costs time."""
    return image.as_tensor() if isinstance(image, MetaTensor) else torch.as_tensor(image)


def factor_around_one(rng: np.random.Generator, low: float, high: float) -> float:
    """A factor below or above 1 with equal probability, as nnU-Net draws zooms and intensities."""
    return float(rng.uniform(low, 1.0) if rng.random() < 0.5 else rng.uniform(1.0, high))


def on_device(numbers: Sequence[Any], device: torch.device) -> torch.Tensor:
    """A few numbers as a tensor on a device, for which the host does not wait."""
    made = torch.tensor(numbers)
    return made.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else made.to(device)


def column(strengths: Sequence[float], images: torch.Tensor) -> torch.Tensor:
    """One number for each image as a tensor (n, 1, ...) to calculate with."""
    return on_device(list(strengths), images.device).reshape(-1, *[1] * (images.ndim - 1))


def noise(images: torch.Tensor, strengths: Sequence[float], conditions: Conditions) -> torch.Tensor:
    """Gaussian noise of this standard deviation is added."""
    drawn = torch.empty_like(images)
    for one, seed in zip(drawn, conditions.seeds, strict=True):
        one.normal_(generator=torch.Generator(images.device).manual_seed(seed))
    return images + column(strengths, images) * drawn


def blur(images: torch.Tensor, strengths: Sequence[Sequence[float]], conditions: Conditions) -> torch.Tensor:
    """Smoothed by a Gaussian of this standard deviation in voxels along each axis."""
    made = []
    for image, sigma in zip(images, strengths, strict=True):
        kernels = [on_device(gaussian_1d(torch.tensor(each)).tolist(), images.device) for each in sigma]
        made.append(separable_filtering(image[None], kernels))
    return torch.cat(made)


def brightness(images: torch.Tensor, strengths: Sequence[float], conditions: Conditions) -> torch.Tensor:
    """Multiplied by a factor."""
    return images * column(strengths, images)


def contrast(images: torch.Tensor, strengths: Sequence[float], conditions: Conditions) -> torch.Tensor:
    """Farther from the mean or nearer to it, within the old range."""
    mean = _over_sample(images, torch.mean)
    low, high = _over_sample(images, torch.amin), _over_sample(images, torch.amax)
    return ((images - mean) * column(strengths, images) + mean).clamp(low, high)


def low_resolution(images: torch.Tensor, strengths: Sequence[float], conditions: Conditions) -> torch.Tensor:
    """Sampled on a grid coarser by this factor, by the nearest voxels, and smoothly back.

    Not MONAI's RandSimulateLowResolution, because that coarsens the axis across the slices of flat patches too.
    """
    size = images.shape[2:]
    made = []
    for image, zoom in zip(images, strengths, strict=True):
        coarse = [max(1, round(edge * zoom)) for edge in size]
        if conditions.in_plane_only:
            coarse[0] = size[0]
        small = F.interpolate(image[None], size=coarse, mode="nearest-exact")
        made.append(F.interpolate(small, size=size, mode="bilinear" if len(size) == 2 else "trilinear"))
    return torch.cat(made)


def gamma(images: torch.Tensor, strengths: Sequence[float], conditions: Conditions) -> torch.Tensor:
    """A gamma curve over the range of each image, which keeps its mean and standard deviation."""
    low = _over_sample(images, torch.amin)
    reach = _over_sample(images, torch.amax) - low
    curved = ((images - low) / (reach + 1e-7)) ** column(strengths, images) * reach + low
    curved = (curved - _over_sample(curved, torch.mean)) / (_over_sample(curved, torch.std) + 1e-8)
    return curved * _over_sample(images, torch.std) + _over_sample(images, torch.mean)


def inverted_gamma(images: torch.Tensor, strengths: Sequence[float], conditions: Conditions) -> torch.Tensor:
    """A gamma curve of the negative image."""
    return -gamma(-images, strengths, conditions)


def _noise(std: float) -> RandGaussianNoise:
    return RandGaussianNoise(prob=1.0, std=std, sample_std=False)


def _brightness(factor: float) -> ScaleIntensity:
    return ScaleIntensity(minv=None, maxv=None, factor=factor - 1)


def _contrast(factor: float) -> ScaleIntensityFixedMean:
    return ScaleIntensityFixedMean(factor - 1, fixed_mean=True, preserve_range=True)


_gamma = partial(AdjustContrast, retain_stats=True)


AUGMENTATIONS = (
    # nnU-Net calls the figure a variance and uses it as a standard deviation
    Augmentation("noise", 0.1, 0.0, 0.1, noise, _noise, whole_sample=True, random=True),
    Augmentation("blur", 0.2, 0.5, 1.0, blur, GaussianSmooth, per_channel=0.5, per_axis=True),
    Augmentation("brightness", 0.15, 0.75, 1.25, brightness, _brightness, factor=True),
    Augmentation("contrast", 0.15, 0.75, 1.25, contrast, _contrast, factor=True),
    Augmentation("low_resolution", 0.25, 0.5, 1.0, low_resolution, per_channel=0.5),
    Augmentation("inverted_gamma", 0.1, 0.7, 1.5, inverted_gamma, partial(_gamma, invert_image=True), factor=True),
    Augmentation("gamma", 0.3, 0.7, 1.5, gamma, _gamma, factor=True),
)


def _over_sample(images: torch.Tensor, reduce: Callable[..., torch.Tensor]) -> torch.Tensor:
    """One number of each image (n, 1, ...), over its channels and voxels."""
    return reduce(images, dim=list(range(1, images.ndim)), keepdim=True)
