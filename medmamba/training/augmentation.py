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
    Affine,
    Compose,
    RandAdjustContrast,
    RandGaussianNoise,
    RandGaussianSmooth,
    RandScaleIntensity,
    RandScaleIntensityFixedMean,
    RandSimulateLowResolution,
)


class Chance(NamedTuple):
    """How often something happens to a sample, and the range of its strength."""

    probability: float
    low: float
    high: float

    def draw(self, rng: np.random.Generator) -> float | None:
        """A strength, or None where it does not happen."""
        return float(rng.uniform(self.low, self.high)) if rng.random() < self.probability else None


NOISE = Chance(0.1, 0.0, 0.1)
"""Standard deviation. nnU-Net calls the figure a variance and uses it as a deviation."""
BLUR = Chance(0.2, 0.5, 1.0)
"""Standard deviation in voxels, drawn for each axis."""
BRIGHTNESS = Chance(0.15, 0.75, 1.25)
CONTRAST = Chance(0.15, 0.75, 1.25)
LOW_RESOLUTION = Chance(0.25, 0.5, 1.0)
INVERTED_GAMMA = Chance(0.1, 0.7, 1.5)
GAMMA = Chance(0.3, 0.7, 1.5)
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


def draw_spatial(rng: np.random.Generator, plan: AugmentationPlan) -> SpatialDraw | None:
    """Decide before a patch is read whether it is rotated or scaled; None leaves it as it is."""
    rotate = rng.random() < ROTATION_PROBABILITY
    scale = rng.random() < SCALING_PROBABILITY
    angles = tuple(float(rng.uniform(-limit, limit)) if rotate else 0.0 for limit in plan.rotation)
    zoom = _either_side_of_one(rng, SCALING_RANGE) if scale else 1.0
    return SpatialDraw(angles, zoom) if rotate or scale else None


def augment(
    image: torch.Tensor,
    label: torch.Tensor,
    plan: AugmentationPlan,
    spatial: SpatialDraw | None,
    rng: np.random.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Image (C, ...) and label map (1, ...) of ``plan.enlarged_size`` (or of the patch size without ``spatial``),
    augmented and of ``plan.patch_size``."""
    if spatial is not None:
        turn = Affine(
            rotate_params=spatial.rotation,
            scale_params=spatial.zooms(plan),
            spatial_size=plan.patch_size,
            padding_mode="zeros",
            image_only=True,
        )
        image, label = _plain(turn(image, mode="bilinear")), _plain(turn(label, mode="nearest"))
    image = _plain(_intensity(len(plan.patch_size)).set_random_state(seed=_seed(rng))(image))
    image, label = _mirror(image, label, plan, rng)
    return image.contiguous(), label.contiguous()


def draw_flips(rng: np.random.Generator, plan: AugmentationPlan) -> list[int]:
    """The axes along which a sample is mirrored: each allowed one with probability one half."""
    return [axis for axis in plan.mirror_axes if rng.random() < 0.5]


def _mirror(
    image: torch.Tensor, label: torch.Tensor, plan: AugmentationPlan, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Flip; a flip from left to right exchanges the labels of pairs."""
    flips = draw_flips(rng, plan)
    if not flips:
        return image, label
    places = [axis + 1 for axis in flips]
    image, label = torch.flip(image, places), torch.flip(label, places)
    if plan.swap_axis in flips:
        label = torch.tensor(plan.label_swap, dtype=label.dtype)[label.long()]
    return image, label


def _intensity(dims: int) -> Compose:
    def limits(chance: Chance, relative_to: float = 0.0) -> tuple[float, float]:
        return chance.low - relative_to, chance.high - relative_to

    sigma = limits(BLUR)
    return Compose(
        [
            RandGaussianNoise(prob=NOISE.probability, std=NOISE.high),
            RandGaussianSmooth(prob=BLUR.probability, sigma_x=sigma, sigma_y=sigma, sigma_z=sigma),
            RandScaleIntensity(prob=BRIGHTNESS.probability, factors=limits(BRIGHTNESS, 1.0)),
            RandScaleIntensityFixedMean(
                prob=CONTRAST.probability, factors=limits(CONTRAST, 1.0), fixed_mean=True, preserve_range=True
            ),
            RandSimulateLowResolution(
                prob=LOW_RESOLUTION.probability,
                zoom_range=limits(LOW_RESOLUTION),
                upsample_mode="bilinear" if dims == 2 else "trilinear",
            ),
            RandAdjustContrast(
                prob=INVERTED_GAMMA.probability, gamma=limits(INVERTED_GAMMA), invert_image=True, retain_stats=True
            ),
            RandAdjustContrast(prob=GAMMA.probability, gamma=limits(GAMMA), retain_stats=True),
        ]
    )


def _either_side_of_one(rng: np.random.Generator, limits: tuple[float, float]) -> float:
    """A factor below or above 1 with equal chance, as nnU-Net draws zooms."""
    low, high = limits
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


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


def _plain(tensor: Any) -> torch.Tensor:
    """Drop MONAI's metadata: affines mean nothing inside a patch, and tracking them costs time."""
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else torch.as_tensor(tensor)
