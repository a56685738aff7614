"""Streaming, plane by plane, gives what all logits at once give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from medmamba.errors import ResourceError
from medmamba.geometry import Grid
from medmamba.geometry.grid import separate_axis
from medmamba.geometry.trail import Resample, SpatialTrail
from medmamba.inference import planes as planes_module
from medmamba.inference import restore
from medmamba.inference.memory import estimate_memory
from medmamba.inference.planes import PlaneStore
from medmamba.inference.predictor import Predictor
from medmamba.inference.restore import native_blocks, on_native_grid
from medmamba.inference.sliding_window import BACKGROUND_LOGIT, Window, predict_logits, stream_logits
from medmamba.models.output_channels import OutputChannels, largest_channel
from medmamba.preprocessing.resample import interpolate_linear

CPU = torch.device("cpu")


class Mixed(nn.Module):
    """Four classes that depend on the place in the patch, so that weights and overlaps matter."""

    def forward(self, x):
        ramp = torch.linspace(0, 1, x.shape[-1])
        return torch.cat([x, -x + ramp, x * ramp, torch.sin(3 * x)], dim=1)


def image(shape, seed=0):
    return torch.randn((1, *shape), generator=torch.Generator().manual_seed(seed))


def naive(network, pixels, patch):
    """Every patch added into one array of the whole image, the way the window is defined."""
    from itertools import product

    from medmamba.inference.patch_positions import window_starts
    from medmamba.inference.sliding_window import _pad, gaussian_weight

    flat = len(patch) == 2
    box = (1, *patch) if flat else patch
    padded, before = _pad(pixels, box)
    weight = gaussian_weight(patch)
    total, weights = torch.zeros((4, *padded.shape[1:])), torch.zeros(padded.shape[1:])
    starts = [window_starts(n, edge) for n, edge in zip(padded.shape[1:], box, strict=True)]
    for start in product(range(padded.shape[1]) if flat else starts[0], *starts[1:]):
        where = tuple(slice(first, first + edge) for first, edge in zip(start, box, strict=True))
        piece = padded[(slice(None), *where)][None]
        logits = network(piece[:, :, 0] if flat else piece)[0]
        total[(slice(None), *where)].addcmul_(logits[:, None] if flat else logits, weight[None] if flat else weight)
        weights[where] += weight
    inside = [slice(first, first + extent) for first, extent in zip(before, pixels.shape[1:], strict=True)]
    return (total / weights)[(slice(None), *inside)]


def joined(blocks, shape):
    """Blocks as one array; every voxel must come exactly once."""
    whole, seen = torch.full(shape, torch.nan), torch.zeros(shape[1:], dtype=torch.int)
    for plane, rows, scores in blocks:
        whole[:, plane, rows] = scores
        seen[plane, rows] += 1
    assert (seen == 1).all()
    return whole


@pytest.mark.parametrize("shape", [(17, 9, 30), (5, 6, 7), (33, 16, 1), (1, 20, 20)])
@pytest.mark.parametrize("patch", [(8, 8, 8), (16, 8)])
def test_the_window_of_planes_adds_up_to_the_same_bits_as_the_whole_image(shape, patch, tmp_path):
    pixels = image(shape)
    expected = naive(Mixed(), pixels, patch)
    assert torch.equal(predict_logits(Mixed(), pixels, patch, CPU), expected)
    on_disk = torch.stack(list(stream_logits([Mixed()], pixels, Window(patch, scratch=tmp_path))), dim=1)
    assert torch.equal(on_disk, expected)
    assert not list(tmp_path.iterdir())  # scratch files are gone


def test_batches_of_patches_give_the_same_logits():
    pixels = image((20, 21, 22))
    one, many = (torch.stack(list(stream_logits([Mixed()], pixels, Window((8, 8, 8), batch=size)))) for size in (1, 5))
    assert torch.equal(one, many)


@pytest.mark.parametrize("block_bytes", [400, 2**20])
@pytest.mark.parametrize("wanted", [(9, 14, 11), (20, 10, 12), (31, 40, 5), (12, 10, 30)])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (5.0, 1.0, 1.0), (1.0, 5.0, 1.0)])
def test_planes_interpolate_as_whole_volumes_do(wanted, spacing, block_bytes, monkeypatch):
    monkeypatch.setattr(restore, "BLOCK_BYTES", block_bytes)
    logits = torch.randn((3, 12, 10, 12), generator=torch.Generator().manual_seed(1))
    step = Resample(wanted, (12, 10, 12), (1.0, 1.0, 1.0), spacing)
    found = joined(native_blocks(logits.unbind(1), step), (3, *wanted))
    coarse = separate_axis(step.spacing_after_mm, step.spacing_before_mm)
    expected = torch.stack([interpolate_linear(volume, wanted, coarse) for volume in logits])
    assert torch.allclose(found, expected, atol=1e-5)


def test_streamed_labels_equal_the_naive_argmax_bit_for_bit(tmp_path):
    pixels = image((30, 24, 26))
    step = Resample((41, 37, 33), (30, 24, 26), (1.0,) * 3, (1.4,) * 3)
    whole = naive(Mixed(), pixels, (8, 8, 8))
    expected = torch.nn.functional.interpolate(whole[None], size=step.shape_before, mode="trilinear")[0].argmax(0)
    streamed = stream_logits([Mixed()], pixels, Window((8, 8, 8), scratch=tmp_path))
    trail = SpatialTrail(Grid(step.shape_before)).then(step)
    labels, _ = on_native_grid([(streamed, trail)], OutputChannels.of_labels(["background", "a", "b", "c"]))
    assert (labels == expected.numpy()).all()


@pytest.mark.parametrize("count", [1, 2, 3, 255, 256, 300])
def test_the_largest_channel_is_that_of_argmax_and_ties_go_to_the_first(count):
    scores = torch.randint(0, 7, (count, 40, 30), generator=torch.Generator().manual_seed(count)).float()
    assert (largest_channel(scores).long() == scores.argmax(0)).all()
    assert (largest_channel(torch.zeros(count, 3)) == 0).all()


def test_patches_of_air_are_left_out_and_are_background():
    calls = []

    class Counting(nn.Module):
        def forward(self, x):
            calls.append(len(x))
            return torch.cat([-x, x], dim=1)

    pixels = torch.zeros(1, 40, 16, 16)
    pixels[:, 30:, 4:12, 4:12] = image((10, 8, 8))
    found = torch.stack(list(stream_logits([Counting()], pixels, Window((8, 8, 8), skip_empty=True))), dim=1)
    everything = len(list(range(0, 33, 4))) * 9
    assert sum(calls) < everything / 2
    assert torch.equal(found[:, 0, 0, 0], torch.tensor([BACKGROUND_LOGIT, 0.0]))
    inside = predict_logits(Counting(), pixels, (8, 8, 8), CPU)[:, 34:, 6:10, 6:10]
    assert torch.allclose(found[:, 34:, 6:10, 6:10], inside, atol=1e-5)


def test_an_image_of_nothing_but_air_is_background_everywhere():
    found = torch.stack(list(stream_logits([Mixed()], torch.zeros(1, 20, 9, 9), Window((8, 8, 8), skip_empty=True))))
    assert found.shape == (20, 4, 9, 9)
    assert (found.argmax(1) == 0).all()


def test_a_flip_that_exchanges_sides_puts_the_channels_back():
    class Sides(nn.Module):
        """Channel 1 fires in the first half of the last axis, channel 2 in the second."""

        def forward(self, x):
            half = torch.arange(x.shape[-1]) < x.shape[-1] // 2
            left = half.float().expand_as(x)
            return torch.cat([torch.zeros_like(x), left, 1 - left], dim=1)

    window = Window((8, 8, 8), mirror_axes=(2,), swap_axis=2, channel_swap=(0, 2, 1))
    kept = torch.stack(list(stream_logits([Sides()], image((8, 8, 8)), window)), dim=1)
    mixed = torch.stack(list(stream_logits([Sides()], image((8, 8, 8)), Window((8, 8, 8), (2,)))), dim=1)
    assert torch.equal(kept[1, 0, 0], torch.tensor([1.0] * 4 + [0.0] * 4))
    assert torch.equal(mixed[1, 0, 0], torch.full((8,), 0.5))


def test_a_full_scratch_disk_is_told_before_the_start(tmp_path, monkeypatch):
    class Usage:
        free = 1000

    monkeypatch.setattr(planes_module.shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(ResourceError, match=r"scratch space.*--scratch"):
        PlaneStore(8, (4, 100, 100), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_estimate_grows_with_the_output_and_not_with_classes_times_voxels():
    grid = Grid((512, 512, 600))
    trail = SpatialTrail(grid, (Resample(grid.shape, (256, 256, 400)),))
    few, many = (
        estimate_memory(trail, channels=1, classes=classes, box=(128, 128, 128), budget=8 * 2**30)
        for classes in (2, 118)
    )
    assert many.naive > 60 * 2**30
    assert many.peak < 8 * 2**30
    assert not many.spills
    assert not few.spills
    small = estimate_memory(trail, channels=1, classes=118, box=(128, 128, 128), budget=4 * 2**30)
    assert small.spills
    assert small.peak + small.planes == many.peak


def test_a_prediction_with_little_memory_goes_to_disk_and_is_the_same(tiny_run, tmp_path):
    pixels = np.random.default_rng(0).normal(200, 50, (40, 30, 34)).astype(np.float32)
    said = []
    masks = [
        Predictor(tiny_run, folds=[0], mirror=False, memory_gib=memory, scratch=tmp_path)
        .predict((pixels, np.eye(4)), on_message=said.append)
        .labels
        for memory in (None, 0.0)
    ]
    assert np.array_equal(*masks)
    assert "scratch space" not in said[0]
    assert "scratch space" in said[1]
    assert not list(tmp_path.iterdir())
