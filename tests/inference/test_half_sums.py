"""Sums in half precision are nnU-Net's to the bit: the reference does its steps on whole volumes, one by one."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from medmamba.inference.patch_positions import window_starts
from medmamba.inference.restore import native_blocks
from medmamba.inference.sliding_window import Window, gaussian_weight, stream_logits

PATCH = (8, 10, 6)


def their_weight(patch: tuple[int, ...]) -> torch.Tensor:
    """nnU-Net's Gaussian: filtered in float64, at most 10, then half precision, and never 0 in it."""
    point = np.zeros(patch)
    point[tuple(edge // 2 for edge in patch)] = 1
    weight = gaussian_filter(point, [edge / 8 for edge in patch], 0, mode="constant", cval=0)
    half = torch.from_numpy(weight / (weight.max() / 10)).half()
    half[half == 0] = half[half != 0].min()
    return half


class Scaled:
    """A network of two classes whose logits depend on the voxel and on its place in the patch."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, patches: torch.Tensor) -> torch.Tensor:
        places = torch.linspace(-1, 1, patches.shape[-1]) * self.factor
        return torch.cat([patches * self.factor + places, patches.square() - places], dim=1)


def reference(factors: list[float], image: torch.Tensor) -> torch.Tensor:
    weight, total = their_weight(PATCH), None
    for factor in factors:
        sums = torch.zeros((2, *image.shape[1:]), dtype=torch.half)
        count = torch.zeros(image.shape[1:], dtype=torch.half)
        for start in product(*(window_starts(n, edge) for n, edge in zip(image.shape[1:], PATCH, strict=True))):
            box = tuple(slice(first, first + edge) for first, edge in zip(start, PATCH, strict=True))
            found = Scaled(factor)(image[(slice(None), *box)][None])[0]
            sums[(slice(None), *box)] += found * weight
            count[box] += weight
        mean = sums / count
        total = mean if total is None else total + mean
    return total if len(factors) == 1 else total / len(factors)


@settings(max_examples=20, deadline=None)
@given(
    st.tuples(st.integers(8, 17), st.integers(10, 19), st.integers(6, 13)),
    st.lists(st.floats(0.5, 4), min_size=1, max_size=3),
    st.integers(1, 4),
)
def test_sums_and_means_are_theirs_to_the_bit(shape: tuple[int, ...], factors: list[float], batch: int) -> None:
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(sum(shape)))
    window = Window(PATCH, half_sums=True, batch=batch)
    found = torch.stack(list(stream_logits([Scaled(factor) for factor in factors], image, window)), dim=1)
    assert found.dtype == torch.half
    assert torch.equal(found, reference(factors, image))


@pytest.mark.parametrize("patch", [(8, 10, 6), (40, 56, 40), (224, 192), (16, 320, 320)])
def test_the_weights_are_theirs(patch: tuple[int, ...]) -> None:
    assert torch.equal(gaussian_weight(patch, torch.half), their_weight(patch))


def test_corners_of_an_image_are_whole_numbers_there() -> None:
    """What makes nnU-Net's probabilities differ from sums in float32 by several hundredths."""
    patch = (40, 56, 40)
    smallest = float(gaussian_weight(patch, torch.half).min())
    assert smallest == pytest.approx(2**-24)
    image = torch.full((1, *patch), 0.8)
    found = torch.stack(list(stream_logits([Scaled(1.0)], image, Window(patch, half_sums=True))), dim=1)
    assert found[1, 0, 0, 0] == 2  # 0.8 * 0.8 + 1 = 1.64
    exact = torch.stack(list(stream_logits([Scaled(1.0)], image, Window(patch))), dim=1)
    assert exact[1, 0, 0, 0] == pytest.approx(1.64, abs=1e-3)


def test_planes_on_disk_are_the_same(tmp_path) -> None:
    image = torch.randn(1, 15, 19, 13, generator=torch.Generator().manual_seed(0))
    memory, disk = (
        torch.stack(list(stream_logits([Scaled(2.0)], image, Window(PATCH, half_sums=True, scratch=scratch))), dim=1)
        for scratch in (None, tmp_path)
    )
    assert torch.equal(memory, disk)


def test_interpolated_scores_are_rounded_again() -> None:
    from medmamba.geometry.trail import Resample

    planes = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).half()
    step = Resample((3, 4, 9), (3, 4, 5), (1.0, 1.0, 1.0), (1.0, 1.0, 9 / 5))
    for _, _, scores in native_blocks(planes.unbind(1), step):
        assert scores.dtype == torch.float32
        assert torch.equal(scores, scores.half().float())
    scores = torch.cat([scores for _, _, scores in native_blocks(planes.float().unbind(1), step)])
    assert not torch.equal(scores, scores.half().float())
