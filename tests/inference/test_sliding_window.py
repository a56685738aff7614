"""Positions and weights of the sliding window, and what must come out whatever the size."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from torch import nn

from medmamba.inference import cpu
from medmamba.inference.cpu import with_fast_convolutions
from medmamba.inference.patch_positions import window_starts
from medmamba.inference.sliding_window import Window, gaussian_weight, predict_logits, stream_logits

CASES = json.loads((Path(__file__).parents[1] / "data" / "planner_cases" / "function_cases.json").read_text())
CPU = torch.device("cpu")


@pytest.mark.parametrize("case", CASES["sliding_window_starts"])
def test_patches_start_where_nnunets_do(case):
    sizes = zip(case["image_size"], case["patch_size"], strict=True)
    assert [window_starts(size, patch, case["step_size"]) for size, patch in sizes] == case["starts"]


@pytest.mark.parametrize("case", CASES["gaussian_importance"])
def test_weights_are_nnunets(case):
    weight = gaussian_weight(tuple(case["patch_size"]))
    assert weight[tuple(case["centre_index"])] == pytest.approx(case["centre"], rel=1e-5)
    assert weight[(0,) * weight.ndim] == pytest.approx(case["corner"], rel=1e-3)
    assert float(weight.double().sum()) == pytest.approx(case["sum"], rel=1e-5)


@given(patch=st.lists(st.integers(1, 40), min_size=2, max_size=3).map(tuple))
def test_weights_are_the_gaussian_filter_of_scipy_bit_by_bit(patch):
    peak = np.zeros(patch)
    peak[tuple(edge // 2 for edge in patch)] = 1.0
    filtered = torch.from_numpy(gaussian_filter(peak, [edge / 8 for edge in patch], mode="constant")).float()
    filtered *= 10 / filtered.max()
    weight = gaussian_weight(patch)
    assert torch.equal(weight[filtered > 0], filtered[filtered > 0])
    assert weight.min() > 0


@given(size=st.integers(1, 300), patch=st.integers(1, 100))
def test_every_voxel_is_covered_and_nothing_lies_outside(size, patch):
    starts = window_starts(size, patch)
    covered = {voxel for start in starts for voxel in range(start, start + patch)}
    assert set(range(size)) <= covered
    assert max(starts) + patch <= max(size, patch)


class Copy(nn.Module):
    """Two classes: the image itself and a constant."""

    def forward(self, x):
        return torch.cat([x, torch.full_like(x, 3.0)], dim=1)


@pytest.mark.parametrize("shape", [(17, 9, 30), (5, 6, 7), (16, 16, 16), (33, 16, 1)])
@pytest.mark.parametrize("patch", [(8, 8, 8), (16, 8), (16, 16, 16)])
@pytest.mark.parametrize("mirror", [(), (0, 1)])
def test_an_identity_network_gives_the_image_back(shape, patch, mirror):
    image = torch.randn((1, *shape), generator=torch.Generator().manual_seed(0))
    logits = torch.stack(list(stream_logits([Copy()], image, Window(patch, mirror_axes=mirror))), dim=1)
    assert logits.shape == (2, *shape)
    assert torch.allclose(logits[0], image[0], atol=1e-5)
    assert torch.allclose(logits[1], torch.tensor(3.0), atol=1e-5)


def test_logits_that_are_not_finite_are_an_error_and_not_background():
    class Broken(nn.Module):
        def forward(self, x):
            return torch.cat([x, x / 0], dim=1)

    with pytest.raises(FloatingPointError, match="not finite"):
        predict_logits(Broken(), torch.zeros(1, 8, 8, 8), (8, 8, 8), CPU)


@pytest.mark.parametrize("dims", [2, 3])
def test_convolutions_through_onednn_are_those_of_float64(dims):
    torch.manual_seed(0)
    convolution = (nn.Conv2d, nn.Conv3d)[dims - 2]
    network = nn.Sequential(
        convolution(1, 6, 3, padding=1),
        convolution(6, 6, 3, padding=2, dilation=2, groups=3),
        convolution(6, 8, 2, stride=2, bias=False),
        convolution(8, 8, 3, padding=1, padding_mode="replicate"),
        convolution(8, 2, 1),
    ).eval()
    x = torch.randn(1, 1, *(10, 12, 14)[:dims])
    with torch.no_grad():
        expected = copy.deepcopy(network).double()(x.double())
        found = with_fast_convolutions(with_fast_convolutions(network))(x)
        assert torch.allclose(found.double(), expected, atol=1e-5)
        assert torch.allclose(network.double()(x.double()), expected)  # another type takes torch's own way


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is kept where there is glibc")
def test_memory_that_was_kept_goes_back_once_after_the_process_has_grown(monkeypatch):
    def resident_mib():
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

    def a_layer():
        torch.ones(64 * 2**18)

    monkeypatch.setattr(cpu, "_largest", 0)
    cpu.keep_memory()
    a_layer()
    cpu.give_back_memory()
    small = resident_mib()
    a_layer()
    cpu.give_back_memory()  # no more than before: kept for the next layer
    assert resident_mib() > small + 60
    monkeypatch.setattr(cpu, "_largest", 0)
    cpu.give_back_memory()
    assert resident_mib() < small + 10


@pytest.mark.parametrize(("mirror", "passes"), [((), 1), ((0, 1), 3)])
def test_a_flat_patch_sees_every_slice_once_and_small_views_go_together(mirror: tuple[int, ...], passes: int) -> None:
    """Slices had been visited twice each, because neighbouring patches are half an edge apart along every axis."""
    seen: list[int] = []

    def network(patches: torch.Tensor) -> torch.Tensor:
        seen.append(len(patches))
        return torch.cat([patches, -patches], dim=1)

    image = torch.randn(1, 9, 12, 10, generator=torch.Generator().manual_seed(0))
    window = Window((12, 10), mirror_axes=mirror)
    planes = list(stream_logits([network], image, window))
    assert sum(seen) == 9 * 2 ** len(mirror) == window.patches((9, 12, 10)) * 2 ** len(mirror)
    assert len(seen) == passes  # 16 views together: 16 slices, or 4 slices mirrored
    torch.testing.assert_close(torch.stack(planes)[:, 0], image[0])


def test_large_patches_go_one_by_one() -> None:
    assert Window((64, 64, 64)).views_together == 1
    assert Window((256, 224)).views_together == 1
    assert Window((56, 40)).views_together == 16
    assert Window((128, 128)).views_together == 4
