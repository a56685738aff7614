"""nnU-Net 2.8.1's planners, reproduced exactly from the parts of ours: the reference that ours is measured against.

Presets: "default" (plain U-Net) and the residual encoders "resenc_m", "resenc_l", "resenc_xl". The memory proxy is the
number of convolution outputs that one sample keeps for the backward pass; normalisation, non-linearity, input channels
and deep-supervision heads are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from medmamba.errors import ConfigError, unknown_name
from medmamba.plans.families import RESIDUAL_BLOCKS
from medmamba.plans.folds import N_FOLDS, SEED, Fold
from medmamba.plans.patch import PatchSearch, PoolingPlan, search_low_resolution, search_patch
from medmamba.plans.spacing import median_shape, target_spacing

BASE_FEATURES = 32
MAX_FEATURES = {2: 512, 3: 320}
REFERENCE_BATCH = {2: 12, 3: 2}
MIN_BATCH = 2
CONVS_PER_STAGE = 2
"""Convolutions per stage of the plain U-Net."""


@dataclass(frozen=True)
class Preset:
    """The memory reference of one of nnU-Net's planners."""

    residual: bool
    reference: dict[int, float]
    """Activations that fit into ``reference_gb`` at the reference batch, by spatial dimensions."""
    reference_gb: float
    dataset_fraction: float
    """Largest fraction of the dataset's voxels in one batch."""


PRESETS = {
    "default": Preset(False, {2: 85_000_000, 3: 560_000_000}, 8.0, 0.05),
    "resenc_m": Preset(True, {2: 135_000_000, 3: 680_000_000}, 8.0, 1.0),
    "resenc_l": Preset(True, {2: 380_000_000, 3: 2_100_000_000}, 24.0, 1.0),
    "resenc_xl": Preset(True, {2: 560_000_000, 3: 3_600_000_000}, 40.0, 1.0),
}
"""Source: nnU-Net 2.8.1, default_experiment_planner and the residual encoder planners."""


@dataclass(frozen=True)
class NnunetGrid:
    """One configuration as nnU-Net plans it (plan axes)."""

    spacing: tuple[float, ...]
    median_shape: tuple[float, ...]
    search: PatchSearch
    features: tuple[int, ...]
    encoder_blocks: tuple[int, ...]
    decoder_blocks: tuple[int, ...]
    batch_size: int
    batch_dice: bool = False
    growth_steps: int | None = None
    """Steps of the low-resolution search; None for the other configurations."""

    @property
    def pooling(self) -> PoolingPlan:
        return self.search.pooling


@dataclass(frozen=True)
class ReferencePlan:
    """All decisions of one nnU-Net planner about one dataset."""

    target_spacing: tuple[float, ...]
    axis_order: tuple[int, ...]
    configurations: dict[str, NnunetGrid]
    lowres_steps: int
    """Steps of the low-resolution search, also when its result was dropped."""

    @property
    def configuration_names(self) -> list[str]:
        names = list(self.configurations)
        return [*names, "3d_cascade_fullres"] if "3d_lowres" in names else names


def plan_as_nnunet(
    spacings: np.ndarray,
    shapes_after_crop: np.ndarray,
    *,
    num_labels: int,
    num_training: int,
    preset: str = "default",
    device_memory_gb: float | None = None,
) -> ReferencePlan:
    """Plan as nnU-Net does from the cases' spacings and shapes, both (n_cases, 3) in one axis order.

    ``num_labels`` counts everything under "labels" of dataset.json: background, regions and the ignore label too.
    """
    if preset not in PRESETS:
        raise unknown_name("nnU-Net preset", preset, list(PRESETS))
    chosen = PRESETS[preset]
    memory_gb = chosen.reference_gb if device_memory_gb is None else device_memory_gb
    target, _ = target_spacing(spacings, shapes_after_crop)
    coarsest = int(np.argmax(target))
    order = [coarsest, *(axis for axis in range(3) if axis != coarsest)]
    spacing = tuple(target[axis] for axis in order)
    shape = median_shape(spacings, shapes_after_crop, target)
    median = tuple(shape[axis] for axis in order)

    def grid(where: Sequence[float], shape: Sequence[float], median_voxels: float) -> NnunetGrid:
        return _plan_grid(where, shape, median_voxels * num_training, num_labels, chosen, memory_gb)

    voxels = math.prod(median)
    configurations = {"2d": replace(grid(spacing[1:], median[1:], voxels), batch_dice=True)}
    lowres_steps = 0
    if median[0] != 1:
        full = grid(spacing, median, voxels)
        low = search_low_resolution(spacing, median, full.search.patch_size, grid, lambda g: g.search.patch_size)
        lowres_steps = low.steps
        configurations["3d_fullres"] = replace(full, batch_dice=low.grid is not None)
        if low.grid is not None:
            configurations["3d_lowres"] = replace(low.grid, growth_steps=low.steps)
    return ReferencePlan(target, tuple(order), configurations, lowres_steps)


def features_per_stage(n_stages: int, spatial_dims: int) -> tuple[int, ...]:
    """32 channels that double per stage, up to 512 in 2D and 320 in 3D."""
    return tuple(min(BASE_FEATURES * 2**stage, MAX_FEATURES[spatial_dims]) for stage in range(n_stages))


def _plan_grid(
    spacing: Sequence[float],
    median: Sequence[float],
    dataset_voxels: float,
    num_labels: int,
    preset: Preset,
    memory_gb: float,
) -> NnunetGrid:
    dims = len(spacing)
    reference = preset.reference[dims] * (memory_gb / preset.reference_gb)
    reference_batch = REFERENCE_BATCH[dims]

    def cost(pooling: PoolingPlan) -> float:
        features = features_per_stage(len(pooling.strides), dims)
        if preset.residual:
            return residual_unet_activations(pooling, features, RESIDUAL_BLOCKS[: len(features)], num_labels)
        return plain_unet_activations(pooling, features, num_labels)

    # The plain planner may go down to a batch of 2 before it shrinks the patch; the residual ones may not.
    limit = reference if preset.residual else reference * reference_batch / MIN_BATCH
    search = search_patch(spacing, median, cost, limit)
    if not search.fits:
        raise ConfigError(
            f"no patch fits into {memory_gb:g} GB: even {search.patch_size} with a batch of {MIN_BATCH} needs "
            f"{search.cost / limit:.1f} times as much. Give more device memory."
        )
    stages = len(search.pooling.strides)
    five_percent = round(dataset_voxels * preset.dataset_fraction / math.prod(search.patch_size))
    fitting = round(reference / search.cost * reference_batch)
    return NnunetGrid(
        spacing=tuple(float(s) for s in spacing),
        median_shape=tuple(float(n) for n in median),
        search=search,
        features=features_per_stage(stages, dims),
        encoder_blocks=RESIDUAL_BLOCKS[:stages] if preset.residual else (2,) * stages,
        decoder_blocks=(1 if preset.residual else 2,) * (stages - 1),
        batch_size=max(min(fitting, five_percent), MIN_BATCH),
    )


def plain_unet_activations(pooling: PoolingPlan, features: Sequence[int], num_labels: int) -> int:
    """Activations of the plain U-Net: two convolutions per stage in encoder and decoder."""
    volumes = _volumes(pooling)
    encoder = sum(CONVS_PER_STAGE * f * v for f, v in zip(features, volumes, strict=True))
    return encoder + _decoder(features, volumes, CONVS_PER_STAGE) + num_labels * volumes[0]


def residual_unet_activations(
    pooling: PoolingPlan, features: Sequence[int], blocks: Sequence[int], num_labels: int
) -> int:
    """Activations of the residual-encoder U-Net: ``blocks`` of two convolutions, one convolution per decoder stage."""
    volumes = _volumes(pooling)
    total = features[0] * volumes[0]  # the stem
    channels = features[0]
    for stride, f, v, n in zip(pooling.strides, features, volumes, blocks, strict=True):
        total += 2 * n * f * v
        if f != channels or max(stride) > 1:  # the shortcut of the first block is a tensor of its own
            total += f * v
        channels = f
    return total + _decoder(features, volumes, 1) + num_labels * volumes[0]


def _decoder(features: Sequence[int], volumes: Sequence[int], convs: int) -> int:
    return sum((convs + 1) * f * v for f, v in zip(features[:-1], volumes[:-1], strict=True))  # + 1: transposed conv


def _volumes(pooling: PoolingPlan) -> list[int]:
    """Voxels of the feature maps of each stage."""
    shape, volumes = pooling.patch_size, []
    for stride in pooling.strides:
        shape = tuple(n // s for n, s in zip(shape, stride, strict=True))
        volumes.append(math.prod(shape))
    return volumes


def nnunet_folds(case_ids: Sequence[str], *, n_folds: int = N_FOLDS, seed: int = SEED) -> list[Fold]:
    """nnU-Net's split: sorted ids, shuffled with the seed, cut into equal parts; ungrouped, as nnU-Net does it."""
    ids = sorted(case_ids)
    if len(ids) < n_folds:
        raise ConfigError(f"nnU-Net's split needs at least {n_folds} cases, got {len(ids)}. Use make_folds.")
    order = np.arange(len(ids))
    np.random.RandomState(seed).shuffle(order)
    folds = []
    for part in np.array_split(order, n_folds):
        held_out = {int(index) for index in part}
        folds.append(
            Fold(
                train=[name for index, name in enumerate(ids) if index not in held_out],
                val=[name for index, name in enumerate(ids) if index in held_out],
            )
        )
    return folds
