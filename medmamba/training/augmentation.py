"""Training augmentation: nnU-Net's set, order, probabilities and ranges, made of MONAI transforms, a sample at a time.

Every draw comes from the sample's own random stream, so the same (seed, step, sample) gives the same patch on any
worker. The same for whole batches on a GPU: :mod:`medmamba.training.device_augmentation`.
Source of the figures: nnU-Net v2, ``nnUNetTrainer.get_training_transforms``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import atan2, ceil, cos, radians, sin
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import (
    AdjustContrast,
    Affine,
    GaussianSmooth,
    RandGaussianNoise,
    ScaleIntensity,
    ScaleIntensityFixedMean,
)
from torch.nn import functional as F

Strengths = tuple[float | None, ...]
"""How strongly something happens to each channel; None: it does not."""


class Chance(NamedTuple):
    """How often something happens to a sample, the range of its strength, and how often it then meets a channel.

    ``factor``: the strength multiplies, so it is drawn below and above 1 equally often.
    """

    probability: float
    low: float
    high: float
    per_channel: float = 1.0
    factor: bool = False

    def happens(self, rng: np.random.Generator) -> bool:
        """Whether it happens to this sample."""
        return bool(rng.random() < self.probability)

    def strength(self, rng: np.random.Generator) -> float:
        """One strength."""
        return either_side_of_one(rng, self.low, self.high) if self.factor else float(rng.uniform(self.low, self.high))

    def meets(self, rng: np.random.Generator, channels: int) -> list[bool]:
        """Which channels it happens to."""
        happens = self.happens(rng)
        return [happens and bool(rng.random() < self.per_channel) for _ in range(channels)]

    def draw(self, rng: np.random.Generator, channels: int) -> Strengths:
        """A strength of its own for each channel."""
        return tuple(self.strength(rng) if met else None for met in self.meets(rng, channels))


NOISE = Chance(0.1, 0.0, 0.1)
"""Standard deviation, the same in all channels. nnU-Net calls the figure a variance and uses it as a deviation."""
BLUR = Chance(0.2, 0.5, 1.0, per_channel=0.5)
"""Standard deviation in voxels, drawn for each axis."""
BRIGHTNESS = Chance(0.15, 0.75, 1.25, factor=True)
CONTRAST = Chance(0.15, 0.75, 1.25, factor=True)
LOW_RESOLUTION = Chance(0.25, 0.5, 1.0, per_channel=0.5)
INVERTED_GAMMA = Chance(0.1, 0.7, 1.5, factor=True)
GAMMA = Chance(0.3, 0.7, 1.5, factor=True)
ROTATION_PROBABILITY = 0.2
SCALING_PROBABILITY = 0.2
SCALING_RANGE = (0.7, 1.4)
ENLARGEMENT_SCALE = 0.85
"""Zoom for which an enlarged patch still covers the corners; stronger zooms meet the border value (as in nnU-Net)."""
FLAT_PATCH_ANISOTROPY = 3.0
"""Longest over first patch edge above which rotation and scaling stay in the slice plane."""


@dataclass(frozen=True)
class AugmentationPlan:
    """What augmentation a patch gets: rotation range per axis in radians, and the axes that may be mirrored."""

    patch_size: tuple[int, ...]
    rotation: tuple[float, ...]
    mirror_axes: tuple[int, ...]
    in_plane_only: bool = False
    swap_axis: int | None = None
    label_swap: tuple[int, ...] = ()
    """Label index after a mirroring along ``swap_axis``, for every index."""

    @property
    def enlarged_size(self) -> tuple[int, ...]:
        """Patch size to read so that a rotated and shrunk patch has no empty corners."""
        if self.in_plane_only:
            return (self.patch_size[0], *_enlarge(self.patch_size[1:], (self.rotation[0],)))
        return _enlarge(self.patch_size, self.rotation)


def augmentation_plan(
    patch_size: tuple[int, ...],
    mirror_axes: tuple[int, ...],
    *,
    keeps_sides: bool = False,
    swap_axis: int | None = None,
    label_swap: tuple[int, ...] = (),
) -> AugmentationPlan:
    """nnU-Net's ranges: 30 degrees in 3D; in-plane 180 for flat 3D and square 2D, 15 for long 2D patches.

    ``keeps_sides``: labels have a left and a right, so no rotation exceeds 30 degrees; half a turn after a mirroring
    along the other axis would be the left-right mirror image.
    """
    if len(patch_size) == 2:
        long = max(patch_size) / min(patch_size) > 1.5
        rotation: tuple[float, ...] = (radians(15 if long else 180),)
        in_plane_only = False
    elif max(patch_size) / patch_size[0] > FLAT_PATCH_ANISOTROPY:
        rotation, in_plane_only = (radians(180), 0.0, 0.0), True
    else:
        rotation, in_plane_only = (radians(30),) * 3, False
    if keeps_sides:
        rotation = tuple(min(limit, radians(30)) for limit in rotation)
    return AugmentationPlan(patch_size, rotation, mirror_axes, in_plane_only, swap_axis, label_swap)


@dataclass(frozen=True)
class SpatialDraw:
    """The rotation (radians per axis) and zoom of one sample."""

    rotation: tuple[float, ...]
    zoom: float

    def zooms(self, plan: AugmentationPlan) -> tuple[float, ...]:
        """The zoom of every axis."""
        return (1.0, self.zoom, self.zoom) if plan.in_plane_only else (self.zoom,) * len(plan.patch_size)


@dataclass(frozen=True)
class SampleDraw:
    """All that happens to one sample: a turn, strengths for each channel, the axes along which it is mirrored."""

    spatial: SpatialDraw | None
    noise: float | None
    noise_seed: int
    blur: tuple[tuple[float, ...] | None, ...]
    brightness: Strengths
    contrast: Strengths
    low_resolution: Strengths
    inverted_gamma: Strengths
    gamma: Strengths
    flips: tuple[int, ...]


def draw_spatial(rng: np.random.Generator, plan: AugmentationPlan) -> SpatialDraw | None:
    """Decide before a patch is read whether it is rotated or scaled; None leaves it as it is."""
    rotate = rng.random() < ROTATION_PROBABILITY
    scale = rng.random() < SCALING_PROBABILITY
    angles = tuple(float(rng.uniform(-limit, limit)) if rotate else 0.0 for limit in plan.rotation)
    zoom = either_side_of_one(rng, *SCALING_RANGE) if scale else 1.0
    return SpatialDraw(angles, zoom) if rotate or scale else None


def draw_sample(
    rng: np.random.Generator, plan: AugmentationPlan, spatial: SpatialDraw | None, channels: int
) -> SampleDraw:
    """Decide everything about one sample whose rotation and zoom are known already."""
    dims = len(plan.patch_size)
    return SampleDraw(
        spatial=spatial,
        noise=NOISE.strength(rng) if NOISE.happens(rng) else None,
        noise_seed=int(rng.integers(2**31)),
        blur=tuple(
            tuple(BLUR.strength(rng) for _ in range(dims)) if met else None for met in BLUR.meets(rng, channels)
        ),
        brightness=BRIGHTNESS.draw(rng, channels),
        contrast=CONTRAST.draw(rng, channels),
        low_resolution=LOW_RESOLUTION.draw(rng, channels),
        inverted_gamma=INVERTED_GAMMA.draw(rng, channels),
        gamma=GAMMA.draw(rng, channels),
        flips=tuple(axis for axis in plan.mirror_axes if rng.random() < 0.5),
    )


def augment(
    image: torch.Tensor, label: torch.Tensor, plan: AugmentationPlan, draw: SampleDraw
) -> tuple[torch.Tensor, torch.Tensor]:
    """Image (C, ...) and label map (1, ...) of ``plan.enlarged_size`` (or of the patch size if nothing turns it),
    augmented and of ``plan.patch_size``."""
    if draw.spatial is not None:
        turn = Affine(
            rotate_params=draw.spatial.rotation,
            scale_params=draw.spatial.zooms(plan),
            spatial_size=plan.patch_size,
            padding_mode="zeros",
            image_only=True,
        )
        image, label = _plain(turn(image, mode="bilinear")), _plain(turn(label, mode="nearest"))
    if draw.noise is not None:
        add_noise = RandGaussianNoise(prob=1.0, std=draw.noise, sample_std=False)
        add_noise.set_random_state(seed=draw.noise_seed)
        image = _plain(add_noise(image))
    image = torch.cat([_changed(channel[None], index, plan, draw) for index, channel in enumerate(image)])
    image, label = _mirror(image, label, plan, draw.flips)
    return image.contiguous(), label.contiguous()


def _changed(image: torch.Tensor, channel: int, plan: AugmentationPlan, draw: SampleDraw) -> torch.Tensor:
    """One channel (1, ...) with its own strengths."""
    if (sigma := draw.blur[channel]) is not None:
        image = _plain(GaussianSmooth(sigma)(image))
    if (factor := draw.brightness[channel]) is not None:
        image = _plain(ScaleIntensity(minv=None, maxv=None, factor=factor - 1)(image))
    if (factor := draw.contrast[channel]) is not None:
        image = _plain(ScaleIntensityFixedMean(factor - 1, fixed_mean=True, preserve_range=True)(image))
    if (zoom := draw.low_resolution[channel]) is not None:
        image = low_resolution(image[None], zoom, plan)[0]
    if (gamma := draw.inverted_gamma[channel]) is not None:
        image = _plain(AdjustContrast(gamma, invert_image=True, retain_stats=True)(image))
    if (gamma := draw.gamma[channel]) is not None:
        image = _plain(AdjustContrast(gamma, retain_stats=True)(image))
    return image


def low_resolution(image: torch.Tensor, zoom: float, plan: AugmentationPlan) -> torch.Tensor:
    """Images (B, C, ...) on a coarser grid, by the nearest voxels, and smoothly back.

    Not MONAI's RandSimulateLowResolution, because that coarsens the axis across the slices of flat patches too.
    """
    size = image.shape[2:]
    coarse = [max(1, round(edge * zoom)) for edge in size]
    if plan.in_plane_only:
        coarse[0] = size[0]
    small = F.interpolate(image, size=coarse, mode="nearest-exact")
    return F.interpolate(small, size=size, mode="bilinear" if len(size) == 2 else "trilinear")


def _mirror(
    image: torch.Tensor, label: torch.Tensor, plan: AugmentationPlan, flips: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Flip; a flip from left to right exchanges the labels of pairs."""
    if not flips:
        return image, label
    places = [axis + 1 for axis in flips]
    image, label = torch.flip(image, places), torch.flip(label, places)
    if plan.swap_axis in flips:
        label = torch.tensor(plan.label_swap, dtype=label.dtype)[label.long()]
    return image, label


def either_side_of_one(rng: np.random.Generator, low: float, high: float) -> float:
    """A factor below or above 1 with equal chance, as nnU-Net draws zooms and intensities."""
    return float(rng.uniform(low, 1.0) if rng.random() < 0.5 else rng.uniform(1.0, high))


def _enlarge(patch_size: tuple[int, ...], rotation: tuple[float, ...]) -> tuple[int, ...]:
    """Bounding box of the patch over the rotation range of each axis, divided by the enlargement scale.

    nnU-Net's formula looks at one corner only and so leaves empty corners; this is the true extent.
    """
    largest = [float(edge) for edge in patch_size]
    planes = [(0, 1)] if len(patch_size) == 2 else [(1, 2), (0, 2), (0, 1)]
    for limit, (a, b) in zip(rotation, planes, strict=True):
        largest[a] = max(largest[a], _turned_edge(patch_size[a], patch_size[b], limit))
        largest[b] = max(largest[b], _turned_edge(patch_size[b], patch_size[a], limit))
    return tuple(ceil(edge / ENLARGEMENT_SCALE) for edge in largest)


def _turned_edge(edge: int, across: int, limit: float) -> float:
    """Largest extent along ``edge`` of a rectangle turned by up to ``limit`` radians; widest along its diagonal."""
    angle = min(limit, atan2(across, edge))
    return cos(angle) * edge + sin(angle) * across


def centre(frame: Sequence[int], patch_size: Sequence[int]) -> tuple[Any, ...]:
    """Index of the voxels of a patch in the middle of a larger array, whatever its first axes."""
    starts = [(edge - size) // 2 for edge, size in zip(frame, patch_size, strict=True)]
    return (..., *(slice(start, start + size) for start, size in zip(starts, patch_size, strict=True)))


def _plain(tensor: Any) -> torch.Tensor:
    """Drop MONAI's metadata: affines mean nothing inside a patch, and tracking them costs time."""
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else torch.as_tensor(tensor)
