"""Images unlike those of training are named with the reason; usual ones are left alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medmamba.errors import InputError
from medmamba.geometry import Grid, affine_from
from medmamba.images import MedicalImage, read_image
from medmamba.inference.confidence import Confidence
from medmamba.inference.finding import status_of
from medmamba.inference.predictor import Predictor
from medmamba.inference.quality import check_confidence, check_image, check_mask, check_sides
from medmamba.inference.runner import Execution, NetworkRunner
from medmamba.plans.fingerprint import CaseStats, build_fingerprint


@pytest.fixture(scope="module")
def fingerprint():
    """Four cases of 60 x 60 x 40 mm with two channels: around 100 and around 500."""
    random = np.random.default_rng(0)
    cases = [
        CaseStats(
            case_id=f"case_{number}",
            shape=(60, 60, 20),
            spacing_mm=(1.0, 1.0, 2.0),
            orientation="RAS",
            shape_after_crop=(60, 60, 20),
            label_voxels={"background": 70000, "organ": 2000},
        )
        for number in range(4)
    ]
    samples = [random.normal(100, 10, 5000), random.normal(500, 50, 5000)]
    return build_fingerprint("toy", ["T1", "T2"], {"background": 0, "organ": 1}, cases, samples)


def picture(fill=(100, 500), spacing=(1.0, 1.0, 2.0), shape=(60, 60, 20), seed=0):
    random = np.random.default_rng(seed)
    array = np.stack([random.normal(mean, 0.1 * mean, shape) for mean in fill]).astype(np.float32)
    return MedicalImage(array, Grid(shape, affine_from(spacing)))


def texts(findings):
    return " | ".join(f"{finding.level}: {finding.text}" for finding in findings)


def inside(image):
    mask = np.zeros(image.grid.shape, bool)
    mask[20:40, 20:30, 5:15] = True
    return mask


def result(image, fingerprint, *, voxels=2000, entropy=0.1, agreement=0.95):
    mask = (inside(image) if voxels else inside(image) & False).astype(np.uint8)
    found = check_mask(image, mask, {"organ": voxels * 0.002}, {"organ": voxels}, fingerprint)
    return [*check_confidence(entropy, agreement, None), *found]


def test_a_usual_image_and_mask_are_ok(fingerprint):
    image = picture()
    assert status_of(check_image(image, fingerprint)) == "ok"
    assert status_of(result(image, fingerprint)) == "ok"


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (picture(spacing=(1.0, 1.0, 9.0)), "spacing head-foot is 9 mm, training 2 to 2 mm"),
        (picture(shape=(20, 60, 20)), "field of view left-right is 20 mm, training 60 to 60 mm"),
        (picture(fill=(2.0, 500)), "intensities of T1"),
        (picture(fill=(100, 9000)), "intensities of T2"),
    ],
)
def test_another_geometry_or_scale_needs_review(fingerprint, image, reason):
    found = list(check_image(image, fingerprint))
    assert status_of(found) == "review"
    assert reason in texts(found)


def test_swapped_channels_are_seen(fingerprint):
    assert "swapped: they resemble T2, T1" in texts(result(picture(fill=(500, 100)), fingerprint))


def test_an_empty_or_huge_mask_and_uncertain_networks_need_review(fingerprint):
    image = picture()
    assert "no organ was found; all 4 training cases have it" in texts(result(image, fingerprint, voxels=0))
    assert "organ has 200 ml" in texts(result(image, fingerprint, voxels=100_000))
    assert "uncertain" in texts(result(image, fingerprint, entropy=0.8))
    assert "the folds disagree" in texts(result(image, fingerprint, agreement=0.3))


def test_an_image_that_shows_nothing_is_rejected_and_gets_no_mask(tiny_run):
    with pytest.raises(InputError, match="rejected: all voxels have the same value"):
        Predictor(tiny_run, folds=[0], mirror=False).predict((np.full((20, 20, 20), 7.0), np.eye(4)))


def test_strict_turns_review_into_an_error(tiny_run):
    odd = (np.random.default_rng(0).normal(1e6, 1e4, (20, 24, 20)), np.diag([1.0, 1, 9, 1]))
    relaxed = Predictor(tiny_run, folds=[0], mirror=False).predict(odd)
    assert relaxed.status == "review"
    with pytest.raises(InputError, match=r"--strict"):
        Predictor(tiny_run, folds=[0], mirror=False, strict=True).predict(odd)


def test_missing_folds_are_said_and_refused_when_strict(tiny_run):
    assert Predictor(tiny_run, mirror=False).model.warnings == ("2 of 4 folds of 3d_fullres are trained and used",)
    with pytest.raises(InputError, match="2 of 4 folds"):
        Predictor(tiny_run, strict=True)


def test_real_cases_of_the_same_scanner_need_no_review_for_their_geometry(tiny_run, small_dataset):
    predictor = Predictor(tiny_run, folds=[0])
    for path in sorted((small_dataset / "imagesTs").iterdir()):
        assert [f for f in check_image(read_image(path), predictor.model.fingerprint) if f.level != "note"] == []


def test_confidence_knows_certain_from_undecided_and_agreeing_from_contradicting():
    certain, undecided = Confidence(), Confidence()
    logits = torch.zeros(3, 4, 4)
    logits[1] = 30.0
    certain.see_plane(logits)
    logits[1] = 1e-3
    undecided.see_plane(logits)
    assert certain.entropy == pytest.approx(0, abs=1e-6)
    assert undecided.entropy == pytest.approx(1, abs=1e-3)
    one, two = torch.zeros(1, 2, 4, 4, 4), torch.zeros(1, 2, 4, 4, 4)
    one[:, 1], two[:, 1, :2] = 1.0, 2.0
    two[:, 0, 2:] = 5.0
    confidence = Confidence()
    confidence.see_patch([confidence.decide(logits, 1) for logits in (one, two)], confidence.decide((one + two) / 2, 1))
    assert confidence.agreement == pytest.approx(2 * 32 / (64 + 32))
    assert Confidence().agreement is None


def test_independent_heads_have_an_entropy_and_an_agreement_of_their_own():
    confidence = Confidence(sigmoid=True)
    plane = torch.full((2, 4, 4), -30.0)
    plane[0] = 1e-6  # one head is undecided everywhere, the other certain
    confidence.see_plane(plane)
    assert confidence.entropy == pytest.approx(0.5, abs=1e-3)
    one, two = -torch.ones(1, 2, 4, 4, 4), -torch.ones(1, 2, 4, 4, 4)
    one[:, 0], two[:, 0], two[:, 1, :2] = 3.0, 1.0, 0.5  # the mean says: head 0 everywhere, head 1 nowhere
    confidence.see_patch([confidence.decide(logits, 1) for logits in (one, two)], confidence.decide((one + two) / 2, 1))
    assert confidence.agreement == pytest.approx(2 * 64 / (96 + 64))


def test_out_of_memory_halves_the_batch_and_then_moves_to_the_cpu_with_the_same_result():
    class Small(torch.nn.Module):
        """Runs out of memory for more than one patch, and on any device but the CPU."""

        moved = False

        def to(self, device):
            self.moved = torch.device(device).type == "cpu"
            return self

        def forward(self, x):
            if len(x) > 1 or not self.moved:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
            return 2 * x

    runner = NetworkRunner(Small(), Execution(torch.device("cpu")))
    patches = torch.randn(3, 1, 4, 4, 4)
    assert torch.equal(runner(patches), 2 * patches)


@pytest.mark.parametrize("flipped", [False, True])
def test_a_pair_on_each_others_sides_is_named(flipped):
    names = {"background": 0, "kidney_left": 1, "kidney_right": 2}
    cases = [
        CaseStats(
            case_id=f"case_{number}",
            shape=(60, 60, 20),
            spacing_mm=(1.0, 1.0, 2.0),
            orientation="RAS",
            shape_after_crop=(60, 60, 20),
            label_voxels={"background": 70000, "kidney_left": 2000, "kidney_right": 2000},
            label_centre_mm={"kidney_left": (-40.0, 0.0, 0.0), "kidney_right": (40.0, 0.0, 0.0)},
        )
        for number in range(3)
    ]
    known = build_fingerprint("toy", ["T1"], names, cases, [np.random.default_rng(0).normal(100, 10, 500)])
    labels = np.zeros((20, 10, 10), np.uint8)
    labels[2:5, 4:6, 4:6], labels[15:18, 4:6, 4:6] = 1, 2
    affine = np.diag([-1.0, 1.0, 1.0, 1.0]) if flipped else np.eye(4)
    found = list(check_sides(labels, ["kidney_left", "kidney_right"], Grid(labels.shape, affine), known))
    assert status_of(found) == ("review" if flipped else "ok")
    assert not flipped or "exchanged in position" in found[0].text
