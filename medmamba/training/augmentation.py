"""Training augmentation: rotation and zoom, the changes of the intensity table, mirroring.

Set, order, probabilities and ranges are nnU-Net's. Every draw comes from the sample's own random stream, so the same
(seed, step, sample) gives the same patch on any worker. The data workers augment one sample at a time, a GPU a whole
batch at once.
Source of the figures: nnU-Net v2, ``nnUNetTrainer.get_training_transforms``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import atan2, ceil, cos, radians, sin
from typing import Any

import numpy as np
import torch
from monai.transforms import Affine
from monai.transforms.utils import create_rotate, create_scale
from torch.nn import functional as F

from medmamba.plans.schema import Mirroring
from medmamba.training.augmentation_table import (
    AUGMENTATIONS,
    Augmentation,
    Conditions,
    Strength,
    factor_around_one,
    on_device,
    plain,
)

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
    patch_size: tuple[int, ...], mirroring: Mirroring | None = None, label_swap: tuple[int, ...] = ()
) -> AugmentationPlan:
    """nnU-Net's ranges: 30 degrees in 3D; in-plane 180 for flat 3D and square 2D, 15 for long 2D patches.

    Where labels have a left and a right, no rotation exceeds 30 degrees: half a rotation after a mirroring along the
    other axis would be the left-right mirror image.
    """
    mirroring = mirroring or Mirroring(axes=[])
    if len(patch_size) == 2:
        long = max(patch_size) / min(patch_size) > 1.5
        rotation: tuple[float, ...] = (radians(15 if long else 180),)
        in_plane_only = False
    elif max(patch_size) / patch_size[0] > FLAT_PATCH_ANISOTROPY:
        rotation, in_plane_only = (radians(180), 0.0, 0.0), True
    else:
        rotation, in_plane_only = (radians(30),) * 3, False
    if mirroring.keeps_sides:
        rotation = tuple(min(limit, radians(30)) for limit in rotation)
    return AugmentationPlan(patch_size, rotation, tuple(mirroring.axes), in_plane_only, mirroring.swap_axis, label_swap)


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
    """All that happens to one sample.

    Attributes:
        spatial: rotation and zoom; None: neither.
        strengths: of each row of :data:`AUGMENTATIONS` by name, one for each channel (or for the whole sample).
        seeds: of each row that draws random numbers.
        flips: axes along which it is mirrored.
    """

    spatial: SpatialDraw | None
    strengths: Mapping[str, tuple[Strength | None, ...]]
    seeds: Mapping[str, int]
    flips: tuple[int, ...]


def draw_spatial(rng: np.random.Generator, plan: AugmentationPlan) -> SpatialDraw | None:
    """Decide before a patch is read whether it is rotated or scaled; None leaves it as it is."""
    rotate = rng.random() < ROTATION_PROBABILITY
    scale = rng.random() < SCALING_PROBABILITY
    angles = tuple(float(rng.uniform(-limit, limit)) if rotate else 0.0 for limit in plan.rotation)
    zoom = factor_around_one(rng, *SCALING_RANGE) if scale else 1.0
    return SpatialDraw(angles, zoom) if rotate or scale else None


def draw_sample(
    rng: np.random.Generator, plan: AugmentationPlan, spatial: SpatialDraw | None, channels: int
) -> SampleDraw:
    """Decide everything about one sample whose rotation and zoom are known already."""
    strengths, seeds = {}, {}
    for row in AUGMENTATIONS:
        strengths[row.name] = row.draw(rng, channels, len(plan.patch_size))
        if row.random:
            seeds[row.name] = int(rng.integers(2**31))
    return SampleDraw(spatial, strengths, seeds, tuple(axis for axis in plan.mirror_axes if rng.random() < 0.5))


def augment_one(
    image: torch.Tensor, label: torch.Tensor, plan: AugmentationPlan, draw: SampleDraw
) -> tuple[torch.Tensor, torch.Tensor]:
    """Image (C, ...) and label map (1, ...), augmented and of ``plan.patch_size``.

    They come in ``plan.enlarged_size``, or in the patch size where nothing is rotated or scaled.
    """
    if draw.spatial is not None:
        rotate = Affine(
            rotate_params=draw.spatial.rotation,
            scale_params=draw.spatial.zooms(plan),
            spatial_size=plan.patch_size,
            padding_mode="zeros",
            image_only=True,
        )
        image, label = plain(rotate(image, mode="bilinear")), plain(rotate(label, mode="nearest"))
    for row in AUGMENTATIONS:
        strengths = draw.strengths.get(row.name, ())
        conditions = Conditions((draw.seeds.get(row.name, 0),), plan.in_plane_only)
        parts = [image] if row.whole_sample else image.split(1)
        if any(strength is not None for strength in strengths):
            image = torch.cat(
                [
                    part if strength is None else row.apply_to_one(part, strength, conditions)
                    for part, strength in zip(parts, strengths, strict=True)
                ]
            )
    if draw.flips:
        places = [axis + 1 for axis in draw.flips]
        image, label = torch.flip(image, places), torch.flip(label, places)
    if plan.swap_axis in draw.flips:  # left and right are exchanged, so are the labels of pairs
        label = torch.tensor(plan.label_swap, dtype=label.dtype)[label.long()]
    return image.contiguous(), label.contiguous()


@torch.no_grad()
def augment(
    image: torch.Tensor,
    label: torch.Tensor,
    plan: AugmentationPlan,
    draws: Sequence[SampleDraw],
    enlarged: Sequence[tuple[torch.Tensor, torch.Tensor]] = (),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, C, ...) float and label maps (B, 1, ...) int64 of ``plan.patch_size``, augmented where they are.

    ``enlarged`` are image and label map in ``plan.enlarged_size`` of each sample that is rotated or scaled. The host
    waits for no device: what it sends are numbers of each sample, without waiting.
    """
    image, label = _rotated(image, label, plan, [draw.spatial for draw in draws], enlarged)
    for row in AUGMENTATIONS:
        image = _changed(image, row, plan, draws)
    swap = on_device(plan.label_swap, label.device) if any(plan.swap_axis in draw.flips for draw in draws) else None
    for axis in plan.mirror_axes:
        for index, draw in enumerate(draws):
            if axis in draw.flips:
                image[index], mirrored = image[index].flip(axis + 1), label[index].flip(axis + 1)
                label[index] = mirrored if swap is None or axis != plan.swap_axis else swap[mirrored]
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
        places = on_device(chosen, image.device)
        parts[places] = row.function(parts[places], [drawn[index][0] for index in chosen], conditions)
    return parts.reshape(image.shape)


def _rotated(
    image: torch.Tensor,
    label: torch.Tensor,
    plan: AugmentationPlan,
    spatial: Sequence[SpatialDraw | None],
    enlarged: Sequence[tuple[torch.Tensor, torch.Tensor]],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Every sample, rotated and scaled where it was drawn."""
    patch = plan.patch_size
    rotated = {index: draw for index, draw in enumerate(spatial) if draw is not None}
    made, labels = image.clone(), label.clone()
    if rotated:
        dims = len(patch)
        images, maps = (torch.stack([pair[part] for pair in enlarged]) for part in (0, 1))
        matrices = [create_rotate(dims, d.rotation) @ create_scale(dims, d.zooms(plan)) for d in rotated.values()]
        # grid_sample counts from -1 to 1 between the centres of the outer voxels, the last axis first
        halves = np.array([max(edge - 1, 1) / 2 for edge in images.shape[2:]])
        turns = on_device((np.stack(matrices)[:, :dims, :dims] / halves[:, None])[:, ::-1].tolist(), image.device)
        axes = [torch.arange(edge, device=image.device) - (edge - 1) / 2 for edge in patch]
        offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).to(image)  # voxels from the patch's centre
        grid = torch.einsum("nij,...j->n...i", turns.to(image), offsets)
        chosen = on_device(list(rotated), image.device)
        made[chosen] = F.grid_sample(images, grid, mode="bilinear", align_corners=True)
        nearest = F.grid_sample(maps.to(image), grid, mode="nearest", align_corners=True)
        labels[chosen] = nearest.to(label)
    return made, labels


def _enlarge(patch_size: tuple[int, ...], rotation: tuple[float, ...]) -> tuple[int, ...]:
    """Bounding box of the patch over the rotation range of each axis, divided by the enlargement scale.

    nnU-Net's formula looks at one corner only and so leaves empty corners; this is the true extent.
    """
    largest = [float(edge) for edge in patch_size]
    planes = [(0, 1)] if len(patch_size) == 2 else [(1, 2), (0, 2), (0, 1)]
    for limit, (a, b) in zip(rotation, planes, strict=True):
        largest[a] = max(largest[a], _rotated_edge(patch_size[a], patch_size[b], limit))
        largest[b] = max(largest[b], _rotated_edge(patch_size[b], patch_size[a], limit))
    return tuple(ceil(edge / ENLARGEMENT_SCALE) for edge in largest)


def _rotated_edge(edge: int, across: int, limit: float) -> float:
    """Largest extent along ``edge`` of a rectangle rotated by up to ``limit`` radians; widest along its diagonal."""
    angle = min(limit, atan2(across, edge))
    return cos(angle) * edge + sin(angle) * across


def centre(frame: Sequence[int], patch_size: Sequence[int]) -> tuple[Any, ...]:
    """Index of the voxels of a patch in the middle of a larger array, whatever its first axes."""
    starts = [(edge - size) // 2 for edge, size in zip(frame, patch_size, strict=True)]
    return (..., *(slice(start, start + size) for start, size in zip(starts, patch_size, strict=True)))
