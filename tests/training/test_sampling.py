"""Patch choice: reproducible, inside bounds, on foreground when asked."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from medmamba.training.batches import choose_patch, sample_rng


def _case(shape, locations):
    return SimpleNamespace(shape=shape, locations=locations, annotated_voxels=None)


SIDES = st.tuples(*[st.integers(1, 40)] * 3)


@given(shape=SIDES, patch=SIDES, seed=st.integers(0, 2**32), on_foreground=st.booleans())
def test_a_patch_covers_as_much_of_the_volume_as_it_can(shape, patch, seed, on_foreground):
    voxel = np.array([[shape[0] - 1, 0, shape[2] // 2]])
    case = _case(shape, {2: voxel})
    _, start = choose_patch(sample_rng(seed, 0, 0), [case], patch, on_foreground=on_foreground)
    for first, edge, extent in zip(start, patch, shape, strict=True):
        if edge >= extent:  # the whole axis is shown
            assert first <= 0
            assert first + edge >= extent
        else:  # nothing of the patch lies outside
            assert 0 <= first <= extent - edge


@given(patch=SIDES, seed=st.integers(0, 2**32))
def test_a_foreground_patch_holds_a_foreground_voxel(patch, seed):
    voxel = np.array([[30, 2, 17]])
    _, start = choose_patch(sample_rng(seed, 3, 1), [_case((41, 37, 33), {1: voxel})], patch, on_foreground=True)
    assert all(first <= v < first + edge for first, v, edge in zip(start, voxel[0], patch, strict=True))


def test_every_label_has_the_same_chance_however_rare():
    voxels = {1: np.zeros((1000, 3), int), 2: np.full((1, 3), 9)}
    case = _case((10, 10, 10), voxels)
    starts = [choose_patch(sample_rng(7, step, 0), [case], (1, 1, 1), on_foreground=True)[1] for step in range(400)]
    rare = sum(start == (9, 9, 9) for start in starts)
    assert 140 < rare < 260


def test_a_case_without_foreground_still_gives_patches():
    cases = [_case((8, 8, 8), {}), _case((9, 9, 9), {})]
    drawn = [choose_patch(sample_rng(0, step, 0), cases, (4, 4, 4), on_foreground=True)[0] for step in range(20)]
    assert all(case in drawn for case in cases)


def test_streams_of_samples_differ_and_repeat():
    draws = {(step, sample): sample_rng(5, step, sample).integers(1 << 60) for step in range(4) for sample in range(4)}
    assert len(set(draws.values())) == 16
    assert draws[2, 3] == sample_rng(5, 2, 3).integers(1 << 60)
