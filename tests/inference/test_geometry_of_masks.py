"""Masks lie where the body lies: every kind of file, 48 orientations, spacings, odd shapes, one slice."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medmamba.geometry import Grid, affine_from, all_reorientations
from medmamba.geometry.trail import Reorient
from medmamba.images import MedicalImage, read_image, read_label_map, written_files
from medmamba.inference.predictor import Predictor
from medmamba.inference.sliding_window import Window
from medmamba.inference.trained_model import FoldEnsemble, TrainedModel
from medmamba.models.run_folder import read_plan

OBLIQUE = np.array([[0.96, -0.28, 0.0], [0.28, 0.96, 0.0], [0.0, 0.0, 1.0]])


class Identity:
    """Logits that call a voxel what its intensity says: 0, 1 or 2."""

    def __call__(self, patches):
        return torch.cat([-20 * (patches - value) ** 2 for value in range(3)], dim=1)


@pytest.fixture
def identity(raw_fold):
    return identity_of(raw_fold)


def identity_of(fold):
    """A predictor with the plan of a trained fold, and in place of its network one that copies the image."""
    plan = read_plan(fold / "plan.json")
    ensemble = FoldEnsemble(plan.default_configuration, plan, [Identity()], Window((), skip_empty=True))
    return Predictor(TrainedModel((ensemble,)), confidence=False)


def blobs(grid: Grid) -> np.ndarray:
    """Two balls in millimetres around the middle of the grid, label 2 inside label 1, on a background of 0."""
    middle = grid.affine @ [*((n - 1) / 2 for n in grid.shape), 1]
    index = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), -1)
    places = index @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    radius = np.linalg.norm(places - middle[:3], axis=-1)
    extent = min(grid.extent_mm)
    return (radius < 0.4 * extent).astype(int) + (radius < 0.2 * extent)


def as_picture(labels, grid):
    array = labels[None].astype(np.float32)
    return MedicalImage(array, grid)


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize(
    "spacing", [(1.0, 1.0, 1.0), (0.5, 0.5, 0.5), (0.9, 1.3, 2.0), (2.5, 1.0, 1.0), (0.4, 3.0, 1.0)]
)
@pytest.mark.parametrize("shape", [(40, 40, 40), (41, 37, 33)])
def test_an_identity_network_gives_the_labels_back(identity, spacing, shape):
    count = tuple(max(9, round(n / mm)) for n, mm in zip(shape, spacing, strict=True))
    grid = Grid(count, affine_from(spacing, origin_mm=(-30.0, 12.0, 5.0), direction=OBLIQUE))
    labels = blobs(grid)
    found = identity.predict(as_picture(labels, grid)).labels
    assert found.shape == labels.shape
    limit = 1.0 if spacing == (1.0, 1.0, 1.0) else 0.93 if max(spacing) > 2 else 0.97
    for value in (1, 2):
        assert dice(labels >= value, found >= value) >= limit
    if max(spacing) <= 2:
        here, there = (np.argwhere(mask > 0).mean(0) for mask in (labels, found))
        assert np.abs(here - there).max() < 0.05


def test_one_body_stored_in_48_ways_gets_one_mask_bit_for_bit(tiny_run, small_dataset):
    path = sorted((small_dataset / "imagesTs").iterdir())[0]
    whole = read_image(path)
    array, grid = whole.array[:, 4:28, 6:30, 5:25], Grid((24, 24, 20), whole.grid.affine)
    predictor = Predictor(tiny_run, folds=[0], mirror=False)
    straight = predictor.predict((array, grid.affine))
    assert straight.voxels != {}
    seen = 0
    for permutation, flips in all_reorientations():
        turn = Reorient(grid.shape, permutation, flips)
        turned = predictor.predict((turn.apply(array), turn.grid_after(grid).affine))
        assert np.array_equal(turn.undo(turned.labels[None])[0], straight.labels), (permutation, flips)
        seen += 1
    assert seen == 48


@pytest.mark.parametrize("shape", [(16, 24, 16), (17, 25, 17), (5, 4, 3), (30, 24, 1), (1, 30, 30), (3, 60, 3)])
def test_images_of_any_size_are_predicted(tiny_run, shape):
    pixels = np.random.default_rng(0).normal(200, 50, shape).astype(np.float32)
    found = Predictor(tiny_run, folds=[0], mirror=False).predict((pixels, np.diag([1.0, 1, 1, 1])))
    assert found.labels.shape == shape


def test_another_patch_size_of_the_same_checkpoint_agrees(tiny_run):
    pixels = np.random.default_rng(0).normal(200, 50, (30, 32, 30)).astype(np.float32)
    masks = [
        Predictor(tiny_run, folds=[0], mirror=False, patch_size=patch).predict((pixels, np.eye(4))).labels
        for patch in (None, (24, 24, 24))
    ]
    assert (masks[0] == masks[1]).mean() > 0.8  # random weights: no structure to agree on, borders differ


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.hdr", "a.img", "a.nrrd", "a.nhdr", "a.mha", "a.mhd"])
def test_the_mask_has_the_grid_of_its_image_in_every_kind_of_file(tiny_run, tmp_path, name, dtype):
    """Written and read again by ITK, which knows nothing of ours; kind, grid and header are the image's own."""
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    made = sitk.GetImageFromArray(np.random.default_rng(1).normal(200, 50, (14, 20, 18)).astype(dtype))
    made.SetSpacing((1.0, 1.25, 2.0))
    made.SetOrigin((10.0, -4.0, 7.0))
    made.SetDirection(OBLIQUE.ravel().tolist())
    sitk.WriteImage(made, str(source / name))
    from medmamba import pipeline

    report = pipeline.predict(tiny_run, source / name, out, folds=[0], mirror=False)
    assert not report.failed
    wanted = name.replace(".nhdr", ".nrrd")  # labels in one file
    written = {path.name for path in out.iterdir() if path.is_file() and path.name[0] != "."} - {"report.json"}
    assert written == {path.name for path in written_files(out / wanted)}
    image, mask = read_image(source / name), read_label_map(out / wanted)
    assert mask.grid.shape == image.grid.shape
    assert mask.grid.affine.tobytes() == image.grid.affine.tobytes()
    first, second = sitk.ReadImage(str(source / name)), sitk.ReadImage(str(out / wanted))
    assert first.GetOrigin() == second.GetOrigin()
    assert first.GetDirection() == second.GetDirection()
    assert first.GetSpacing() == second.GetSpacing()
    labels = sitk.GetArrayFromImage(second).transpose(2, 1, 0)
    assert np.array_equal(labels, mask.array)
    assert [int((labels == value).sum()) for value in (1, 2)] == list(report.done["a"].voxels.values())


def test_nifti2_comes_out_as_nifti2(tiny_run, tmp_path):
    pixels = np.random.default_rng(1).normal(200, 50, (16, 18, 14)).astype(np.float32)
    (tmp_path / "in").mkdir()
    nib.save(nib.Nifti2Image(pixels, np.diag([1.0, 1.5, 2.0, 1])), tmp_path / "in" / "x.nii.gz")
    from medmamba import pipeline

    pipeline.predict(tiny_run, tmp_path / "in", tmp_path / "out", folds=[0], mirror=False)
    assert isinstance(nib.load(tmp_path / "out" / "x.nii.gz"), nib.Nifti2Image)


def test_arrays_paths_nibabel_and_simpleitk_images_give_one_mask(tiny_run, small_dataset):
    path = sorted((small_dataset / "imagesTs").iterdir())[0]
    predictor = Predictor(tiny_run, folds=[0], mirror=False, confidence=False)
    loaded = nib.load(path)
    forms = [
        path,
        [path],
        loaded,
        sitk.ReadImage(str(path)),
        (np.asarray(loaded.dataobj), loaded.affine),
        read_image(path),
    ]
    masks = [predictor.predict(form).labels for form in forms]
    assert all(np.array_equal(masks[0], mask) for mask in masks)


def test_probabilities_lie_on_the_grid_sum_to_one_and_agree_with_the_mask(tiny_run, small_dataset):
    path = sorted((small_dataset / "imagesTs").iterdir())[0]
    found = Predictor(tiny_run, folds=[0], mirror=False).predict(path, probabilities=True)
    assert found.probabilities.shape == (3, *found.labels.shape)
    assert np.abs(found.probabilities.sum(0) - 1).max() < 1e-3
    assert np.array_equal(found.probabilities.argmax(0), found.labels)


@pytest.fixture(scope="module")
def picture_fold(tmp_path_factory, small_run):
    """A fold of a plan for pictures without millimetres: one channel as it is, patches of 16 x 16."""
    import json

    from medmamba.disk.atomic import write_json, write_text
    from medmamba.models.checkpoint import save_checkpoint
    from medmamba.networks.build import build_network
    from medmamba.plans.schema import Plan

    document = json.loads((small_run / "plan.json").read_text())
    document["normalization"][0] |= {"scheme": "none", "use_mask": False}
    document["axis_order"] = [2, 0, 1]
    flat = document["configurations"]["2d"] | {"spacing_mm": None, "patch_size": [16, 16], "mirroring": None}
    document["configurations"], document["default_configuration"] = {"2d": flat}, "2d"
    plan = Plan.from_json(json.dumps(document))
    folder = tmp_path_factory.mktemp("pictures") / "fold_0"
    numbers = {
        "name": "plain_unet",
        "spatial_dims": 2,
        "in_channels": 1,
        "out_channels": 3,
        "strides": [[1, 1], [2, 2], [2, 2]],
        "features_per_stage": [4, 8, 8],
        "blocks_per_stage": [1, 1, 1],
        "decoder_convs": 1,
        "kernels": [[3, 3]] * 3,
        "stem": "conv",
        "deep_supervision": False,
    }
    torch.manual_seed(0)
    write_text(folder / "plan.json", plan.to_json())
    facts = {"plan_sha256": plan.hash(), "configuration": "2d", "fold": "0", "network": numbers}
    write_json(folder / "model.json", facts)
    save_checkpoint(folder / "checkpoints", build_network(**numbers), None, {"progress": {}})
    return folder


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.tiff"])
@pytest.mark.parametrize("shape", [(40, 31), (9, 50), (16, 17)])
def test_pictures_come_out_as_pictures_pixel_for_pixel(picture_fold, tmp_path, name, shape):
    from PIL import Image

    from medmamba import pipeline

    (tmp_path / "in").mkdir()
    rows, columns = np.indices(shape)
    labels = ((rows // 5 + columns // 7) % 3).astype(np.uint8)
    Image.fromarray(labels).save(tmp_path / "in" / name)
    report = pipeline.predict(identity_of(picture_fold), tmp_path / "in", tmp_path / "out")
    assert not report.failed
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / name)), labels)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.tuples(*[st.integers(1, 19)] * 3),
    st.tuples(*[st.sampled_from([0.6, 1.0, 1.7, 4.0])] * 3),
    st.integers(0, 10_000),
)
def test_any_shape_and_spacing_gives_a_mask_on_the_same_grid_with_known_labels(identity, shape, spacing, seed):
    if max(shape) < 3:
        return  # a few voxels are refused by the gate
    labels = np.random.default_rng(seed).integers(0, 3, shape)
    labels[0, 0, 0], labels[-1, -1, -1] = 1, 2  # the crop is the whole image
    grid = Grid(shape, affine_from(spacing, origin_mm=(4.0, -7.0, 2.0), direction=OBLIQUE))
    found = identity.predict(as_picture(labels, grid)).labels
    assert found.shape == shape
    assert set(np.unique(found)) <= {0, 1, 2}
    if spacing == (1.0, 1.0, 1.0):
        assert np.array_equal(found, labels)
