"""Augmentation: reproducible, label-safe, and no larger a patch than needed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medmamba.plans.schema import Mirroring
from medmamba.training.augmentation import (
    SpatialDraw,
    augment_one,
    augmentation_plan,
    draw_sample,
    draw_spatial,
)
from medmamba.training.augmentation_table import Conditions, low_resolution
from medmamba.training.batches import sample_rng


def _sample(size, channels=1):
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.normal(size=(channels, *size)).astype(np.float32))
    label = torch.zeros((1, *size))
    label[(0, *(slice(edge // 4, edge // 2) for edge in size))] = 2
    return image, label


def _augmented(image, label, plan, spatial, rng):
    return augment_one(image, label, plan, draw_sample(rng, plan, spatial, len(image)))


@pytest.mark.parametrize("patch", [(24, 32, 28), (4, 32, 32), (32, 40), (16, 48)])
def test_a_sample_has_the_patch_size_whatever_was_drawn(patch):
    plan = augmentation_plan(patch, Mirroring(axes=list(range(len(patch)))))
    for step in range(12):
        rng = sample_rng(1, step, 0)
        spatial = draw_spatial(rng, plan)
        image, label = _augmented(*_sample(patch if spatial is None else plan.enlarged_size, 2), plan, spatial, rng)
        assert image.shape == (2, *patch)
        assert label.shape == (1, *patch)
        assert torch.isfinite(image).all()
        assert set(label.unique().tolist()) <= {0, 2}


def test_the_same_stream_gives_the_same_patch_to_the_bit():
    plan = augmentation_plan((16, 20, 24), Mirroring(axes=[0, 1, 2]))
    spatial = SpatialDraw((0.3, -0.2, 0.1), 0.8)
    first, second = (_augmented(*_sample(plan.enlarged_size), plan, spatial, sample_rng(9, 4, 1)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_image_and_label_turn_and_flip_together():
    plan = augmentation_plan((21, 21, 21), Mirroring(axes=[0, 1, 2]))
    label = torch.zeros((1, *plan.enlarged_size))
    label[0, 8:16, 10:14, 12:20] = 1
    spatial = SpatialDraw((0.4, 0.2, -0.3), 1.1)
    for step in range(8):
        rng = sample_rng(3, step, 0)
        image, moved = _augmented(label.clone(), label, plan, spatial, rng)
        inside, outside = image[moved > 0].mean(), image[moved == 0].mean()
        assert inside > outside + 0.5


def test_an_enlarged_patch_has_no_empty_corner_after_the_largest_rotation():
    plan = augmentation_plan((24, 32, 40))
    ones = torch.ones((1, *plan.enlarged_size))
    for signs in ((1, 0, 0), (0, -1, 0), (0, 0, 1)):
        spatial = SpatialDraw(tuple(s * limit for s, limit in zip(signs, plan.rotation, strict=True)), 1.0)
        _, label = _augmented(ones.clone(), ones, plan, spatial, sample_rng(0, 0, 0))
        assert label.min() == 1


def test_flat_patches_rotate_in_the_slice_only():
    plan = augmentation_plan((4, 32, 32), Mirroring(axes=[0, 1, 2]))
    assert plan.in_plane_only
    assert plan.enlarged_size[0] == 4
    label = torch.zeros((1, *plan.enlarged_size))
    label[0, 1] = 1  # one whole slice
    _, turned = _augmented(
        label.clone(), label, augmentation_plan((4, 32, 32)), SpatialDraw((1.0, 0, 0), 1.0), sample_rng(0, 0, 0)
    )
    assert turned[0, 1].min() == 1
    assert turned.sum() == 32 * 32


def test_flat_patches_lose_resolution_in_the_slice_only():
    flat = Conditions((0,), augmentation_plan((4, 32, 32)).in_plane_only)
    slices = torch.arange(4.0).reshape(1, 1, 4, 1, 1).expand(1, 1, 4, 32, 32)
    assert torch.equal(low_resolution(slices, [0.5], flat), slices)
    columns = torch.arange(32.0).expand(1, 1, 4, 32, 32)
    assert not torch.equal(low_resolution(columns, [0.5], flat), columns)
