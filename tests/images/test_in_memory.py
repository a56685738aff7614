"""Arrays, nibabel and SimpleITK images give the same MedicalImage as the file, and take masks back."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from medmamba.errors import InputError
from medmamba.geometry import grid_difference
from medmamba.images import ReadOptions, as_image, read_image, to_nibabel, to_simpleitk, write_label_map


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("shape", [(6, 7, 5), (6, 7, 5, 3), (6, 7, 5, 1)])
def test_all_ways_in_give_the_same_image(save, kind, shape):
    path = save("a.nii.gz", np.random.default_rng(0).integers(-99, 99, shape).astype(np.int16), kind=kind)
    truth = read_image(path)
    nibabel_image = nib.load(path)
    ways = [as_image(path), as_image(str(path)), as_image(truth), as_image(nibabel_image)]
    ways.append(as_image((truth.array, truth.grid.affine)))
    if len(shape) == 3 and kind is nib.Nifti1Image:
        ways.append(as_image(sitk.ReadImage(str(path))))
    for image in ways:
        np.testing.assert_array_equal(image.array, truth.array)
        assert grid_difference(image.grid, truth.grid) is None
    assert ways[3].header.geometry == truth.header.geometry


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("shape", [(6, 7, 5), (6, 7, 5, 3), (6, 7, 5, 1), (6, 7)])
@pytest.mark.parametrize("codes", [{}, {"qform_code": 0, "sform_code": 2}, {"qform_code": 3, "sform_code": 0}])
def test_a_nibabel_mask_has_the_geometry_that_a_written_one_has(save, tmp_path, kind, shape, codes):
    path = save("a.nii.gz", np.random.default_rng(0).normal(size=shape).astype(np.float32), kind=kind, **codes)
    image = as_image(nib.load(path))
    labels = (image.array[0] > 0).astype(int)
    write_label_map(tmp_path / "m.nii.gz", labels, like=image)
    nib.save(to_nibabel(labels, image), tmp_path / "n.nii.gz")
    written, ours = nib.load(tmp_path / "m.nii.gz"), nib.load(tmp_path / "n.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(ours.dataobj))
    assert written.affine.tobytes() == ours.affine.tobytes()
    for name in ("dim", "pixdim", "qform_code", "sform_code", "quatern_b", "qoffset_x", "srow_x", "xyzt_units"):
        assert written.header[name].tobytes() == ours.header[name].tobytes(), name


def test_a_simpleitk_mask_lies_on_its_image(tmp_path):
    image = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=(4, 5, 6)))
    q, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    image.SetDirection((q * np.sign(np.linalg.det(q))).ravel().tolist())
    image.SetSpacing((0.5, 1, 2))
    image.SetOrigin((7, 8, 9))
    ours = as_image(image)
    mask = to_simpleitk((ours.array[0] > 0).astype(int), ours)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), sitk.GetArrayFromImage(image) > 0)
    for name in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(mask, name)(), getattr(image, name)(), atol=1e-12)
    vector = sitk.GetImageFromArray(np.broadcast_to([1.0, 2.0], (4, 5, 6, 2)).copy(), isVector=True)
    assert as_image(vector).array[:, 0, 0, 0].tolist() == [1, 2]


def test_the_caller_s_array_is_left_alone():
    array = np.array([[[1.0, np.nan], [3, 4]]], np.float32)
    image = as_image(array, ReadOptions(nonfinite="zero"))
    assert image.nonfinite_voxels == 1
    assert np.isnan(array[0, 0, 1])
    assert image.grid.spacing_mm is None


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (np.zeros((2, 3, 4), complex), "image: voxels of type complex128"),
        (np.zeros(5), "image: an array of shape (5,)"),
        (np.zeros((2, 3, 0)), "image: an array of shape (2, 3, 0)"),
        ((np.ones((2, 3, 4)), np.zeros((4, 4))), "image: the last row of the affine"),
        ((np.ones((2, 3, 4)), np.diag([1, 1, 1000, 1])), "image: the spacing along k is 1000 mm"),
        (np.array([[[np.inf, 1.0], [2, 3]]]), "image: 1 voxels are NaN or infinite"),
        ({"a": 1}, "image: a dict is not an image"),
    ],
)
def test_what_is_no_image_is_refused(source, words):
    with pytest.raises(InputError) as caught:
        as_image(source)
    assert words in str(caught.value)
