"""Losses: equal to the published ones, exactly silent where nothing is known."""

from __future__ import annotations

import json

import pytest
import torch
from monai.losses import DiceCELoss

import medmamba
from medmamba.errors import ConfigError
from medmamba.models.output_channels import OutputChannels, class_weights
from medmamba.training.config import TrainConfig
from medmamba.training.loss_names import LOSSES, find_loss, name_of_loss
from medmamba.training.losses import DeepSupervision, LossInputs, SegmentationLoss, cross_entropy, dice_ce

SOFTMAX = OutputChannels.of_labels(["background", "liver", "tumour"])
IGNORING = OutputChannels(
    SOFTMAX.names, False, SOFTMAX.members, SOFTMAX.written, 3, SOFTMAX.label_swap, SOFTMAX.channel_swap
)
SIGMOID = OutputChannels(("whole", "core"), True, ((1, 2), (2,)), (1, 2), 3, (0, 1, 2, 3), (0, 1))


def _sample(channels: int, ignore: bool = False):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn((2, channels, 6, 5, 4), generator=generator, dtype=torch.float64).requires_grad_()
    target = torch.randint(0, 3, (2, 1, 6, 5, 4), generator=generator)
    if ignore:
        target[:, :, :2] = 3
    return logits, target


@pytest.mark.parametrize("batch_dice", [False, True])
def test_dice_ce_is_monais_with_nnunets_smooth_terms(batch_dice):
    logits, target = _sample(3)
    theirs = DiceCELoss(
        include_background=False, to_onehot_y=True, softmax=True, batch=batch_dice, smooth_nr=1e-5, smooth_dr=1e-5
    )
    ours = SegmentationLoss(SOFTMAX, batch_dice=batch_dice)
    expected = torch.autograd.grad(theirs(logits, target), logits)[0]
    found = torch.autograd.grad(ours(logits, target), logits)[0]
    torch.testing.assert_close(ours(logits, target), theirs(logits, target), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("heads", [IGNORING, SIGMOID], ids=["softmax", "sigmoid"])
@pytest.mark.parametrize("batch_dice", [False, True])
def test_the_gradient_is_exactly_zero_where_voxels_are_ignored(name, heads, batch_dice):
    logits, target = _sample(len(heads.names), ignore=True)
    SegmentationLoss(heads, find_loss(name), batch_dice=batch_dice)(logits, target).backward()
    assert (logits.grad[:, :, :2] == 0).all()
    assert logits.grad[:, :, 2:].abs().sum() > 0


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("heads", [IGNORING, SIGMOID], ids=["softmax", "sigmoid"])
def test_what_stands_in_ignored_voxels_does_not_matter(name, heads):
    logits, target = _sample(len(heads.names), ignore=True)
    loss = SegmentationLoss(heads, find_loss(name), batch_dice=False)
    other = logits.detach().clone()
    other[:, :, :2] = 100 * torch.randn_like(other[:, :, :2])
    assert loss(logits, target).item() == pytest.approx(loss(other, target).item(), abs=1e-12)


def test_a_batch_without_a_known_voxel_gives_zero_and_no_gradient():
    for heads in (IGNORING, SIGMOID):
        logits, target = _sample(len(heads.names))
        loss = SegmentationLoss(heads, batch_dice=False)(logits, torch.full_like(target, 3))
        loss.backward()
        assert loss.item() == 0
        assert (logits.grad == 0).all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("heads", [SOFTMAX, SIGMOID], ids=["softmax", "sigmoid"])
@pytest.mark.parametrize("batch_dice", [False, True])
def test_the_gradient_is_exactly_zero_for_classes_nobody_looked_for(name, heads, batch_dice):
    logits, target = _sample(len(heads.names))
    last = len(heads.names) - 1
    target[1][target[1] == 2] = 1  # the second case has no such voxel, because nobody looked
    annotated = torch.ones((2, len(heads.names)), dtype=torch.bool)
    annotated[1, last] = False
    SegmentationLoss(heads, find_loss(name), batch_dice=batch_dice)(logits, target, annotated).backward()
    assert (logits.grad[1, last] == 0).all()
    assert logits.grad[0, last].abs().sum() > 0
    assert logits.grad[1, 0].abs().sum() > 0


def test_a_class_weight_counts_as_often():
    logits, target = _sample(3)
    plain = SegmentationLoss(SOFTMAX, cross_entropy, batch_dice=False)
    weighted = SegmentationLoss(SOFTMAX, cross_entropy, batch_dice=False, weights=[1.0, 1.0, 5.0])
    expected = torch.nn.functional.cross_entropy(
        logits, target[:, 0], weight=torch.tensor([1.0, 1.0, 5.0], dtype=torch.float64)
    )
    torch.testing.assert_close(weighted(logits, target), expected)
    assert weighted(logits, target) != plain(logits, target)


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"Unknown loss 'dice_c'\. Did you mean 'dice_ce'"):
        find_loss("dice_c")
    with pytest.raises(ConfigError, match=r"class weight for 'tumor': no such class\. Classes: background, liver"):
        class_weights(SOFTMAX, {"tumor": 2.0})


def tversky(inputs: LossInputs) -> torch.Tensor:
    """A loss of somebody else's, for the tests."""
    missed = ((1 - inputs.probabilities) * inputs.truth).sum()
    return missed / inputs.truth.sum()


def test_a_function_of_anybodys_is_found_by_the_name_it_is_recorded_by():
    assert name_of_loss(dice_ce) == "dice_ce"
    assert find_loss("dice_ce") is dice_ce
    assert find_loss(name_of_loss(tversky)) is tversky
    logits, target = _sample(3)
    assert 0 < SegmentationLoss(SOFTMAX, tversky, batch_dice=True)(logits, target) < 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("not_here.losses:mine", r"loss 'not_here.losses:mine': cannot be imported \(ModuleNotFoundError: .*Install"),
        ("math:mine", r"loss 'math:mine': cannot be imported \(AttributeError"),
        ("math:pi", r"loss 'math:pi' is not a function"),
        ("__main__:mine", r"function of a script.*loss=function"),
    ],
)
def test_a_loss_that_cannot_be_found_is_one_line_with_the_cure(name, message):
    with pytest.raises(ConfigError, match=message) as error:
        find_loss(name)
    assert "\n" not in str(error.value)


def test_deep_supervision_passes_on_which_classes_are_known():
    logits, target = _sample(2)
    coarse = torch.randn((2, 2, 3, 3, 2), dtype=torch.float64, requires_grad=True)
    annotated = torch.tensor([[True, True], [True, False]])
    loss = DeepSupervision(SegmentationLoss(SIGMOID, batch_dice=False))
    loss([logits, coarse, coarse], target, annotated).backward()
    assert (coarse.grad[1, 1] == 0).all()
    assert coarse.grad[0, 1].abs().sum() > 0


def test_a_function_is_trained_with_recorded_by_its_name_and_resumed(clinic_run):
    recipe = {"steps_per_epoch": 2, "workers": 0, "warmup_steps": 0, "augment": "none"}
    calls = []

    def counted(inputs: LossInputs) -> torch.Tensor:
        calls.append(inputs.truth.shape)
        return dice_ce(inputs)

    result = medmamba.train(clinic_run, fold="all", config=TrainConfig(steps=1, **recipe), loss=counted)
    assert calls
    name = json.loads((result.folder / "train.json").read_text())["loss"]
    assert name == name_of_loss(counted)
    assert name.endswith("<locals>.counted")
    with pytest.raises(ConfigError, match=r"function of a script.*Give the function again"):
        medmamba.train(clinic_run, fold="all", resume=True)
    with pytest.raises(ConfigError, match=r"another recipe: loss was .*counted', now 'dice_ce'"):
        medmamba.train(clinic_run, fold="all", resume=True, loss=dice_ce)
    longer = TrainConfig(steps=2, **recipe)
    assert medmamba.train(clinic_run, fold="all", config=longer, resume=True, loss=counted).steps == 2
