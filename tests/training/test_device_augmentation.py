"""Augmentation of whole batches and of single samples: each operation is MONAI's, the chances are nnU-Net's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.transforms import AdjustContrast, Affine, GaussianSmooth, RandSimulateLowResolution, ScaleIntensityFixedMean

from medmamba.plans.schema import Mirroring
from medmamba.preprocessing.store import CaseReader, write_case
from medmamba.training.augmentation import (
    AugmentationPlan,
    SampleDraw,
    SpatialDraw,
    augment,
    augment_one,
    augmentation_plan,
    centre,
    draw_sample,
    draw_spatial,
)
from medmamba.training.batches import PatchRecipe, PatchSource, sample_rng

NONE = (None, None)
"""Of two channels."""
NOTHING = SampleDraw(None, {}, {}, ())
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def _batch(size, count=3, channels=2):
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.normal(size=(count, channels, *size)).astype(np.float32))
    return image, torch.from_numpy(rng.integers(0, 4, (count, 1, *size)))


def _changed(size, draw, device="cpu"):
    """What a draw makes of the middle one of three samples; the others must stay as they were."""
    image, label = _batch(size)
    made, labels = augment(image.to(device), label.to(device), augmentation_plan(size), [NOTHING, draw, NOTHING])
    assert torch.equal(made[::2].cpu(), image[::2])
    assert torch.equal(labels.cpu(), label)
    return image[1], made[1].cpu()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [(9, 12, 10), (14, 11)])
def test_each_change_of_intensity_is_that_of_monai_with_a_strength_for_each_channel(size, device):
    def low_resolution(image, zoom):
        upwards = "bilinear" if len(size) == 2 else "trilinear"
        transform = RandSimulateLowResolution(prob=1, downsample_mode="nearest-exact", upsample_mode=upwards)
        transform.randomize()
        transform.zoom_factor = zoom
        return transform(image, randomize=False)

    def contrast(image, factor):
        return ScaleIntensityFixedMean(factor - 1, fixed_mean=True, preserve_range=True)(image)

    cases = {
        "blur": ((None, (0.5, 0.9, 0.7)[: len(size)]), lambda image, sigma: GaussianSmooth(sigma)(image)),
        "brightness": ((1.2, 0.8), lambda image, factor: image * factor),
        "contrast": ((1.2, 0.9), contrast),
        "low_resolution": ((0.6, None), low_resolution),
        "inverted_gamma": (
            (0.8, 1.3),
            lambda image, gamma: AdjustContrast(gamma, invert_image=True, retain_stats=True)(image),
        ),
        "gamma": ((1.4, None), lambda image, gamma: AdjustContrast(gamma, retain_stats=True)(image)),
    }
    for name, (strengths, reference) in cases.items():
        draw = replace(NOTHING, strengths={name: strengths})
        image, made = _changed(size, draw, device)
        by_itself, _ = augment_one(image, torch.zeros((1, *size)), augmentation_plan(size), draw)
        for before, after, alone, strength in zip(image, made, by_itself, strengths, strict=True):
            wanted = before if strength is None else torch.as_tensor(reference(before[None], strength))[0]
            assert torch.equal(before, after) == (strength is None)
            torch.testing.assert_close(after, wanted, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(alone, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_noise_has_the_deviation_drawn_and_comes_from_the_samples_own_seed(device):
    draw = replace(NOTHING, strengths={"noise": (0.08,)}, seeds={"noise": 5})
    image, made = _changed((24, 24, 24), draw, device)
    assert float((made - image).std()) == pytest.approx(0.08, rel=0.03)
    assert torch.equal(made, _changed((24, 24, 24), draw, device)[1])
    assert not torch.equal(made, _changed((24, 24, 24), replace(draw, seeds={"noise": 6}), device)[1])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("patch", "angles"), [((16, 20, 13), (0.4, -0.3, 0.2)), ((4, 20, 17), (1.0, 0.0, 0.0)), ((18, 15), (2.5,))]
)
def test_a_turn_is_that_of_monai_and_a_patch_that_does_not_turn_is_the_centre(patch, angles, device):
    plan = augmentation_plan(patch)
    spatial = SpatialDraw(angles, 0.8)
    image, label = _batch(plan.enlarged_size)
    middle = centre(plan.enlarged_size, patch)
    draws = [NOTHING, replace(NOTHING, spatial=spatial), NOTHING]
    enlarged = [(image[1].to(device), label[1].to(torch.uint8).to(device))]
    made, labels = augment(image[middle].to(device), label[middle].to(device), plan, draws, enlarged)
    turn = Affine(
        rotate_params=angles if len(patch) == 3 else angles[0],
        scale_params=spatial.zooms(plan),
        spatial_size=patch,
        padding_mode="zeros",
        image_only=True,
    )
    torch.testing.assert_close(made[1].cpu(), turn(image[1]).as_tensor(), rtol=1e-3, atol=1e-3)
    wanted = turn(label[1].float(), mode="nearest").as_tensor().long()
    assert (labels[1].cpu() == wanted).float().mean() > 0.999  # voxels half way between two may fall either way
    assert labels.dtype == torch.int64
    assert torch.equal(made[0].cpu(), image[0][middle])
    assert torch.equal(labels[2].cpu(), label[2][middle])


@pytest.mark.parametrize("device", DEVICES)
def test_mirroring_from_left_to_right_exchanges_the_labels_of_pairs_in_its_own_sample_only(device):
    plan = AugmentationPlan((6, 5, 4), (0.0,) * 3, (0, 1, 2), swap_axis=0, label_swap=(0, 2, 1, 3))
    image, label = _batch(plan.patch_size)
    draws = [replace(NOTHING, flips=flips) for flips in ((0, 2), (1,), ())]
    made, labels = (out.cpu() for out in augment(image.to(device), label.to(device), plan, draws))
    assert torch.equal(made[0], image[0].flip(1, 3))
    assert torch.equal(labels[0], torch.tensor(plan.label_swap)[label[0]].flip(1, 3))
    assert torch.equal(labels[1], label[1].flip(2))
    assert torch.equal(labels[2], label[2])


def test_everything_happens_as_often_and_as_strongly_as_in_nnunet():
    plan = augmentation_plan((16, 16, 16), Mirroring(axes=[0, 2]))
    count, channels = 6000, 2
    draws = [draw_sample(sample_rng(3, step, 0), plan, None, channels) for step in range(count)]
    ranges = {  # how often a channel is met, the strengths, and whether those are factors
        "blur": (0.2 * 0.5, 0.5, 1.0, False),
        "brightness": (0.15, 0.75, 1.25, True),
        "contrast": (0.15, 0.75, 1.25, True),
        "low_resolution": (0.25 * 0.5, 0.5, 1.0, False),
        "inverted_gamma": (0.1, 0.7, 1.5, True),
        "gamma": (0.3, 0.7, 1.5, True),
    }
    drawn = {name: [draw.strengths[name] for draw in draws] for name in (*ranges, "noise")}
    for name, (probability, low, high, factor) in {**ranges, "noise": (0.1, 0.0, 0.1, False)}.items():
        met = [strength for strengths in drawn[name] for strength in strengths if strength is not None]
        expected = count * len(drawn[name][0]) * probability
        # four standard errors, of channels that are met together at worst
        assert abs(len(met) - expected) < 4 * (channels * expected) ** 0.5, name
        values = np.array(met).ravel()
        assert low <= values.min() <= values.max() <= high, name
        mean = (low + high + 2) / 4 if factor else (low + high) / 2
        assert values.mean() == pytest.approx(mean, abs=4 * (high - low) / (12 * len(values)) ** 0.5), name
        if factor:
            assert (values < 1).mean() == pytest.approx(0.5, abs=4 * 0.5 / len(values) ** 0.5), name
    for name, alike in (("brightness", 1.0), ("gamma", 1.0), ("blur", 0.5 / 1.5), ("low_resolution", 0.5 / 1.5)):
        # where one channel is met, how often the other one is too, with a strength of its own
        pairs = [pair for pair in drawn[name] if pair != NONE]
        both = [pair for pair in pairs if None not in pair]
        assert len(both) / len(pairs) == pytest.approx(alike, abs=4 * 0.5 / len(pairs) ** 0.5), name
        assert all(one != other for one, other in both), name
    for axis in (0, 1, 2):
        share = np.mean([axis in draw.flips for draw in draws])
        assert share == pytest.approx(0.5 if axis in plan.mirror_axes else 0.0, abs=4 * 0.5 / count**0.5)


def test_batches_and_single_samples_agree_in_distribution():
    """Mean, deviation, extremes and roughness of what both ways make of one image."""
    plan = augmentation_plan((12, 12, 12), Mirroring(axes=[0, 1, 2]))
    image, label = _batch(plan.enlarged_size, 1, 1)
    image = torch.nn.functional.avg_pool3d(image, 3, 1, 1) * 3  # with structure, so that blur and turns matter
    middle = centre(plan.enlarged_size, plan.patch_size)

    def facts(made):
        return [made.mean(), made.std(), made.amin(), made.amax(), made.diff(dim=-1).abs().mean()]

    one, whole = [], []
    for step in range(500):
        rng = sample_rng(1, step, 0)
        spatial = draw_spatial(rng, plan)
        size = ... if spatial is not None else middle
        draw = draw_sample(rng, plan, spatial, 1)
        one.append(facts(augment_one(image[0][size], label[0][size].float(), plan, draw)[0]))
        draw = draw_sample(sample_rng(1, step, 10), plan, spatial, 1)
        enlarged = [] if spatial is None else [(image[0], label[0])]
        whole.append(facts(augment(image[middle], label[middle], plan, [draw], enlarged)[0]))
    first, second = torch.tensor(one), torch.tensor(whole)
    error = ((first.var(0) + second.var(0)) / len(first)).sqrt()
    assert ((first.mean(0) - second.mean(0)).abs() < 4 * error).all()
    torch.testing.assert_close(first.std(0), second.std(0), rtol=0.25, atol=1e-3)


@pytest.fixture
def cases(tmp_path):
    rng = np.random.default_rng(2)
    for number in range(2):
        labels = np.zeros((20, 22, 24), np.int16)
        labels[4:9, 5:12, 6:14], labels[12:16, 5:12, 6:14] = 1, 2
        image = rng.normal(size=(1, 20, 22, 24)).astype(np.float32) + labels
        write_case(tmp_path / f"c_{number}", f"c_{number}", image, labels, chunk=(8, 8, 8))
    return [CaseReader(tmp_path / f"c_{number}") for number in range(2)]


def test_a_step_gives_the_same_batch_again_and_shows_the_place_that_the_other_way_shows(cases):
    plan = augmentation_plan((8, 8, 8), Mirroring(axes=[0, 1, 2]))

    def finished(augmented, step, samples=None):
        source = PatchSource(cases, PatchRecipe(plan, 2, seed=7, augment=augmented, samples=samples))
        return source.finished(source.batch(step))

    raw = PatchSource(cases, PatchRecipe(plan, 2, seed=7, augment="device"))
    for step in range(12):  # only what turns is read and sent in the size that covers its corners
        batch = raw.batch(step)
        assert batch.image.shape == (2, 1, *plan.patch_size)
        assert batch.label.dtype == torch.uint8
        turned = [index for index in range(2) if draw_spatial(sample_rng(7, step, index), plan) is not None]
        assert len(batch.enlarged) == len(turned)
        for index, (image, label) in zip(turned, batch.enlarged, strict=True):
            assert tuple(image.shape[1:]) == tuple(label.shape[1:]) == plan.enlarged_size
            assert torch.equal(image[centre(plan.enlarged_size, plan.patch_size)], batch.image[index])
    for step in range(12):
        batch, again = finished("device", step), finished("device", step)
        assert batch.image.shape == (2, 1, 8, 8, 8)
        assert torch.equal(batch.image, again.image)
        assert torch.equal(batch.label, again.label)
        assert set(batch.label.unique().tolist()) <= {0, 1, 2}
        own = finished("device", step, range(1, 2))  # a rank's share of the batch is the share of the whole
        torch.testing.assert_close(own.image[0], batch.image[1])
        other = finished("cpu", step)
        assert batch.case_ids == other.case_ids
        for index in range(2):  # the same voxels, however they were mirrored
            if draw_spatial(sample_rng(7, step, index), plan) is None:
                assert torch.equal(batch.label[index].sum(), other.label[index].sum())


@pytest.mark.parametrize("augmented", ["cpu", "device"])
def test_what_lies_outside_the_body_is_zero_again_after_augmentation(tmp_path, augmented):
    body = np.zeros((20, 22, 24), np.int16)
    body[4:16, 5:17, 6:18] = 1
    image = np.random.default_rng(2).normal(5, 1, (2, *body.shape)).astype(np.float32) * body
    write_case(tmp_path / "c", "c", image, body, chunk=(8, 8, 8), nonzero_mask=body > 0)
    plan = augmentation_plan((12, 12, 12), Mirroring(axes=[0, 1, 2]))
    cases = [CaseReader(tmp_path / "c")]
    source = PatchSource(cases, PatchRecipe(plan, 2, seed=7, augment=augmented, masked_channels=(0,)))
    outside = torch.zeros(2)
    for step in range(30):
        batch = source.finished(source.batch(step))
        assert batch.label.shape == (2, 1, 12, 12, 12)
        outside += (batch.image * (batch.label == 0)).abs().sum((0, 2, 3, 4))
        assert (batch.image[:, 0][batch.label[:, 0] == 1] != 0).any()
    assert outside[0] == 0 < outside[1]
