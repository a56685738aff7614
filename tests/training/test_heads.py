"""Labels to heads and back: exact for regions, any values, either side."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from medmamba.errors import ConfigError
from medmamba.inference.sliding_window import Window, predict_logits, stream_logits
from medmamba.models.output_channels import OutputChannels
from medmamba.plans.schema import Mirroring
from medmamba.preprocessing.labels import decode, encode
from medmamba.training.augmentation import augment, augmentation_plan, draw_sample
from medmamba.training.batches import choose_patch, sample_rng


def _plan(labels, regions=None, region_order=None, ignore=None, pairs=()):
    """The fields of a plan that labels depend on."""
    return SimpleNamespace(
        labels=labels,
        regions=regions,
        region_order=region_order,
        ignore_label=ignore,
        left_right_pairs=list(pairs),
        conventions="medmamba",
    )


TUMOUR = _plan(
    {"background": 0, "necrosis": 1, "oedema": 2, "enhancing": 4},
    {"whole": ["necrosis", "oedema", "enhancing"], "core": ["necrosis", "enhancing"], "enhancing": ["enhancing"]},
    ["oedema", "necrosis", "enhancing"],
)


def test_labels_become_regions_and_the_same_labels_again():
    output_channels = OutputChannels.of_plan(TUMOUR)
    labels = torch.from_numpy(np.random.default_rng(0).integers(0, 4, (1, 1, 9, 8, 7)))
    logits = 2 * output_channels.truth(labels)[0] - 1  # above zero inside
    assert torch.equal(output_channels.label_map(logits), labels[0, 0])


def test_an_order_that_would_lose_a_label_is_refused():
    wrong = _plan(TUMOUR.labels, TUMOUR.regions, ["enhancing", "necrosis", "oedema"])
    with pytest.raises(ConfigError, match="would become"):
        OutputChannels.of_plan(wrong)


def test_one_head_per_label_decides_by_the_largest_logit():
    output_channels = OutputChannels.of_plan(
        _plan({"background": 0, "a": 7, "b": 3}, {"a": ["a"], "b": ["b"]}, ["a", "b"])
    )
    logits = torch.tensor([[-1.0, 3.0, 1.0], [-2.0, 2.0, 4.0]])[:, None]
    assert output_channels.label_map(logits).tolist() == [[0, 1, 2]]


def test_any_label_values_survive_the_way_to_indices_and_back():
    plan = _plan({"background": 0, "b": 420, "a": 205}, ignore=-7)
    values = np.array([[0, 205], [420, 205]])
    assert encode(values, plan).tolist() == [[0, 2], [1, 2]]
    assert (decode(encode(values, plan), plan) == values).all()
    assert encode(np.array([-7, 420]), plan).tolist() == [3, 1]
    assert OutputChannels.of_plan(plan).ignore == 3


def test_a_left_right_flip_exchanges_the_labels_of_a_pair():
    plan = _plan({"background": 0, "kidney_l": 1, "kidney_r": 2}, pairs=[["kidney_l", "kidney_r"]])
    output_channels = OutputChannels.of_plan(plan)
    assert output_channels.label_swap == (0, 2, 1, 3)
    label = torch.zeros((1, 6, 5, 4))
    label[0, :2], label[0, 4:] = 1, 2
    recipe = augmentation_plan(
        (6, 5, 4), Mirroring(axes=[0, 1, 2], keeps_sides=True, swap_axis=0), output_channels.label_swap
    )
    for step in range(10):  # flipped or not, index 1 stays on the low side
        draw = draw_sample(sample_rng(1, step, 0), recipe, None, 1)
        _, made = augment(torch.zeros((1, 1, 6, 5, 4)), label[None].long(), recipe, [draw])
        assert (made[0, 0, :2] == 1).all()
        assert (made[0, 0, 4:] == 2).all()


def test_prediction_mirrors_with_the_same_exchange():
    class Sided(torch.nn.Module):
        """Channel 1 fires on the low half of axis 0, channel 2 on the high half."""

        def forward(self, x):
            low = (
                (torch.arange(x.shape[2]) < x.shape[2] // 2)
                .float()[None, :, None, None]
                .expand(x.shape[0], *x.shape[2:])
            )
            return torch.stack([torch.zeros_like(low), low, 1 - low], 1)

    image = torch.zeros((1, 6, 5, 4))
    plain = predict_logits(Sided(), image, (6, 5, 4), torch.device("cpu"))
    window = Window((6, 5, 4), mirror_axes=(0, 1), swap_axis=0, channel_swap=(0, 2, 1))
    mirrored = torch.stack(list(stream_logits([Sided()], image, window)), dim=1)
    torch.testing.assert_close(plain, mirrored)


def test_sided_labels_keep_rotations_small():
    assert max(augmentation_plan((64, 64), Mirroring(axes=[1], keeps_sides=True)).rotation) < 0.53
    assert max(augmentation_plan((64, 64), Mirroring(axes=[0, 1])).rotation) > 3


def test_a_small_lesion_is_drawn_as_often_as_a_large_one():
    voxels = np.array([[1, 1, 1], *([[8, 8, 8]] * 99)])
    component = np.array([1, *([2] * 99)])
    case = SimpleNamespace(shape=(10, 10, 10), locations={1: voxels}, lesions={1: component}, annotated_voxels=None)
    starts = [
        choose_patch(sample_rng(5, step, 0), [case], (1, 1, 1), on_foreground=True, by_lesion=True)[1]
        for step in range(300)
    ]
    assert 110 < sum(start == (1, 1, 1) for start in starts) < 190


def test_patches_are_centred_on_annotated_voxels_where_some_are_ignored():
    known = np.array([[3, 4, 5]])
    case = SimpleNamespace(shape=(10, 10, 10), locations={}, annotated_voxels=known)
    assert choose_patch(sample_rng(0, 0, 0), [case], (3, 3, 3), on_foreground=False) == (case, (2, 3, 4))
