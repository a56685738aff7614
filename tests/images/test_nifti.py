"""Healthy NIfTI files of all kinds: read as nibabel and SimpleITK read them, written on the very same grid."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from medmamba.errors import InputError
from medmamba.geometry import Grid, affine_from
from medmamba.images import read_channels, read_image, read_label_map, write_image, write_label_map
from medmamba.images.nifti_header import GEOMETRY_FIELDS


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("dtype", ["u1", "i1", "<i2", "<u2", "<i4", "<u4", "<f4", "<f8"])
def test_every_number_type_is_read_as_nibabel_reads_it(save, volume, name, kind, dtype):
    path = save(name, np.abs(volume).astype(dtype), kind=kind)
    image, truth = read_image(path), nib.load(path)
    assert image.array.dtype == np.float32
    np.testing.assert_array_equal(image.array[0], truth.get_fdata().astype(np.float32))
    np.testing.assert_array_equal(image.grid.affine, truth.affine)
    assert image.warnings == ()
    assert image.orientation_known


def test_scaled_and_big_endian_files_are_read_as_nibabel_reads_them(tmp_path, volume):
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    image = nib.Nifti1Image(volume, np.diag([2, 3, 4, 1.0]), header)
    image.header.set_slope_inter(0.1, -7)
    nib.save(image, tmp_path / "scaled.nii.gz")
    ours, truth = read_image(tmp_path / "scaled.nii.gz"), nib.load(tmp_path / "scaled.nii.gz")
    assert truth.header.endianness == ">"
    np.testing.assert_array_equal(ours.array[0], truth.get_fdata().astype(np.float32))


def test_geometry_agrees_with_simpleitk(save, volume):
    path = save("a.nii.gz", volume)
    ours, itk = read_image(path).grid, sitk.ReadImage(str(path))
    lps = np.diag([-1.0, -1, 1])
    assert ours.shape == itk.GetSize()
    np.testing.assert_allclose(ours.spacing_mm, itk.GetSpacing(), rtol=1e-6)
    np.testing.assert_allclose(lps @ ours.affine[:3, 3], itk.GetOrigin(), atol=1e-5)
    direction = np.array(itk.GetDirection()).reshape(3, 3)
    np.testing.assert_allclose(lps @ ours.affine[:3, :3] / ours.spacing_mm, direction, atol=1e-6)


def test_channels_of_a_4d_file_come_first(save):
    array = np.arange(4 * 5 * 6 * 3, dtype=np.int16).reshape(4, 5, 6, 3)
    image = read_image(save("four.nii.gz", array))
    assert image.array.shape == (3, 4, 5, 6)
    assert image.grid.shape == (4, 5, 6)
    for channel in range(3):
        np.testing.assert_array_equal(image.array[channel], array[..., channel])


def test_a_2d_file_has_one_slice(save):
    image = read_image(save("flat.nii.gz", np.arange(30, dtype=np.uint8).reshape(5, 6), np.diag([0.5, 0.5, 1, 1.0])))
    assert image.array.shape == (1, 5, 6, 1)
    assert image.grid.spacing_mm == (0.5, 0.5, 1.0)


def test_channels_in_files_of_their_own_become_one_image(save, volume):
    paths = [save("a_0000.nii.gz", volume), save("a_0001.nii.gz", volume * 0 + 3)]
    image = read_channels(paths)
    np.testing.assert_array_equal(image.array[0], volume)
    assert image.constant_channels == (1,)
    moved = save("a_0002.nii.gz", volume, np.diag([1, 1, 2, 1.0]))
    with pytest.raises(InputError, match=r"a_0000.nii.gz and .*a_0002.nii.gz differ in orientation: LSA and RAS"):
        read_channels([paths[0], moved])


PLAIN = {"qform_code": 1, "sform_code": 1}


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize(
    "header",
    [
        PLAIN,
        {"qform_code": 0, "sform_code": 2},
        {"qform_code": 4, "sform_code": 0},
        {"qform_code": 0, "sform_code": 0},
        {"xyzt_units": 0},
        {"xyzt_units": 10, "descrip": b"patient", "pixdim": [1, 0.8, 1.25, 3, 9, 9, 9, 9]},
    ],
)
def test_a_mask_has_the_header_of_its_image_bit_for_bit(save, volume, kind, header):
    path = save(
        "image.nii.gz", volume.astype(np.int16), kind=kind, **{"pixdim": [1, 0.8, 1.25, 3, 0, 0, 0, 0], **header}
    )
    image = read_image(path)
    labels = (volume > 0).astype(np.int64)
    write_label_map(path.with_name("mask.nii.gz"), labels, like=image)
    before, after = nib.load(path), nib.load(path.with_name("mask.nii.gz"))
    for name in GEOMETRY_FIELDS:
        assert before.header[name].tobytes() == after.header[name].tobytes(), name
    assert before.affine.tobytes() == after.affine.tobytes()
    assert after.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(after.dataobj), labels)
    assert type(after) is kind


@pytest.mark.parametrize("shape", [(4, 5, 6, 1), (4, 5, 6, 3), (4, 5), (4, 5, 1)])
def test_masks_of_other_dimensions_lie_on_the_input_s_own_grid(save, shape):
    path = save("image.nii", np.arange(np.prod(shape), dtype=np.float32).reshape(shape))
    image = read_image(path)
    write_label_map(path.with_name("mask.nii"), np.ones(image.grid.shape, np.uint8), like=image)
    mask = nib.load(path.with_name("mask.nii"))
    assert mask.shape == (shape if shape != (4, 5, 6, 3) else (4, 5, 6))
    assert mask.affine.tobytes() == nib.load(path).affine.tobytes()
    assert read_label_map(path.with_name("mask.nii")).grid == image.grid


def test_the_smallest_unsigned_type_is_chosen_and_nothing_wraps(save, volume, tmp_path):
    image = read_image(save("image.nii.gz", volume))
    for largest, kind in ((1, "u1"), (255, "u1"), (256, "u2"), (70000, "u4")):
        labels = np.zeros(volume.shape, np.int64)
        labels[0, 0, 0] = largest
        write_label_map(tmp_path / "mask.nii.gz", labels, like=image)
        assert nib.load(tmp_path / "mask.nii.gz").get_data_dtype() == np.dtype(kind)
        assert read_label_map(tmp_path / "mask.nii.gz").counts() == {0: volume.size - 1, largest: 1}


def test_labels_that_do_not_fit_are_refused(save, volume, tmp_path):
    image = read_image(save("image.nii.gz", volume))
    with pytest.raises(ValueError, match="do not lie on a grid"):
        write_label_map(tmp_path / "m.nii.gz", np.zeros((6, 7, 4), int), like=image)
    with pytest.raises(ValueError, match="from 0 on, not -1"):
        write_label_map(tmp_path / "m.nii.gz", np.full(volume.shape, -1), like=image)
    with pytest.raises(ValueError, match="whole numbers, not float64"):
        write_label_map(tmp_path / "m.nii.gz", np.zeros(volume.shape), like=image)
    assert not (tmp_path / "m.nii.gz").exists()


def test_nothing_about_the_patient_reaches_the_mask(tmp_path, volume):
    canary = b"PHI_CANARY"
    image = nib.Nifti1Image(volume, np.eye(4))
    for name in ("descrip", "db_name", "aux_file", "intent_name"):
        image.header[name] = canary
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", canary * 5))
    nib.save(image, tmp_path / "image.nii.gz")
    read = read_image(tmp_path / "image.nii.gz")
    write_label_map(tmp_path / "mask.nii", (volume > 0).astype(np.uint8), like=read)
    assert canary in nib.load(tmp_path / "image.nii.gz").header["descrip"].tobytes()
    assert canary not in (tmp_path / "mask.nii").read_bytes()
    assert canary not in read.header.geometry


def test_the_same_mask_gives_the_same_bytes(save, volume, tmp_path):
    image = read_image(save("image.nii.gz", volume))
    for name in ("a", "b"):
        write_label_map(tmp_path / f"{name}.nii.gz", (volume > 3).astype(int), like=image)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_a_mask_can_be_written_on_a_bare_grid(tmp_path):
    grid = Grid((3, 4, 5), affine_from((1, 2, 3), origin_mm=(-5, 6, 7)))
    write_label_map(tmp_path / "m.nii.gz", np.ones((3, 4, 5), bool), like=grid)
    assert read_label_map(tmp_path / "m.nii.gz").grid == grid


def test_probabilities_are_written_as_channels_on_the_same_grid(save, volume, tmp_path):
    image = read_image(save("image.nii.gz", volume))
    probabilities = np.random.default_rng(1).random((2, *volume.shape), dtype=np.float32)
    write_image(tmp_path / "p.nii.gz", probabilities, like=image)
    again = read_image(tmp_path / "p.nii.gz")
    np.testing.assert_array_equal(again.array, probabilities)
    assert again.grid == image.grid


def test_content_is_recognised_whatever_it_is_stored_as(save, volume):
    a = read_image(save("a.nii.gz", volume))
    b = read_image(save("b.nii", volume.astype(np.int16)))
    c = read_image(save("c.nii.gz", volume + (np.arange(6) == 2)[:, None, None]))
    assert a.content_hash() == b.content_hash() != c.content_hash()
    x, y = (
        read_label_map(save("x.nii.gz", (volume > 0).astype(np.float32))),
        read_label_map(save("y.nii.gz", (volume > 0).astype(np.uint8))),
    )
    assert x.content_hash() == y.content_hash()


def test_float_stored_labels_are_whole_numbers(save, volume):
    labels = read_label_map(save("l.nii.gz", (np.abs(volume) % 3).astype(np.float32)))
    assert labels.array.dtype == np.uint8
    assert labels.warnings == ()


def test_labels_that_are_nearly_whole_are_rounded_and_that_is_said(save):
    labels = read_label_map(save("l.nii.gz", np.array([0, 0.9999, 2.0003, 1], np.float32).reshape(2, 2, 1)))
    assert labels.counts() == {0: 1, 1: 2, 2: 1}
    assert "rounded to whole numbers, by up to 0.0003" in labels.warnings[0]


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_labels_never_wrap(save, dtype):
    labels = read_label_map(save("l.nii.gz", np.array([258, -1, 0, 1], dtype).reshape(2, 2, 1)))
    assert labels.counts() == {-1: 1, 0: 1, 1: 1, 258: 1}


@pytest.mark.parametrize(("value", "words"), [(0.5, "label value 0.5 at voxel (1, 0, 1)"), (np.nan, "label value nan")])
def test_labels_that_are_not_whole_are_refused(save, value, words):
    array = np.zeros((2, 3, 2), np.float32)
    array[1, 0, 1] = array[1, 2, 1] = value
    with pytest.raises(InputError) as caught:
        read_label_map(save("l.nii.gz", array))
    assert words in str(caught.value)
    assert "(2 voxels)" in str(caught.value)


def test_real_volumes_are_read_as_nibabel_reads_them(shared_data):
    for pattern in (
        "hippocampus/imagesTr/*_00[1-4].nii.gz",
        "ms_lesion/imagesTr/ms_07.nii.gz",
        "format_samples/*.nii.gz",
    ):
        for path in shared_data.glob(pattern):
            ours, truth = read_image(path), nib.load(path)
            values = truth.get_fdata().astype(np.float32)
            np.testing.assert_array_equal(
                ours.array if values.ndim == 4 else ours.array[0],
                np.moveaxis(values, 3, 0) if values.ndim == 4 else values,
            )
            np.testing.assert_array_equal(ours.grid.affine, truth.affine)
            assert ours.warnings == ()
