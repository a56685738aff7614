"""Numbers in kinds that libraries read otherwise than they are meant: read rightly, or refused."""

import struct

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medmamba.errors import InputError
from medmamba.images import read_image, read_label_map, write_label_map
from medmamba.images.in_memory import as_image


def tiff(path, samples: np.ndarray, sample_format: int) -> None:
    """A TIFF of one strip; ``samples`` are (rows, columns) or (rows, columns, 3)."""
    rows, columns = samples.shape[:2]
    channels = samples.shape[2] if samples.ndim == 3 else 1
    bits = samples.dtype.itemsize * 8
    data = samples.astype(samples.dtype.newbyteorder("<")).tobytes()
    at, more = 8 + len(data), b""
    entries = [(256, 4, columns), (257, 4, rows), (258, 3, bits), (259, 3, 1), (262, 3, 2 if channels == 3 else 1)]
    entries += [(273, 4, 8), (277, 3, channels), (278, 4, rows), (279, 4, len(data)), (339, 3, sample_format)]
    table = struct.pack("<H", len(entries))
    for tag, kind, value in entries:
        if channels == 3 and tag in (258, 339):
            table += struct.pack("<HHII", tag, kind, 3, at + 2 + 12 * len(entries) + 4 + len(more))
            more += struct.pack("<3H", value, value, value)
        else:
            table += struct.pack("<HHII", tag, kind, 1, value)
    path.write_bytes(b"II*\0" + struct.pack("<I", at) + data + table + bytes(4) + more)


def test_a_tiff_with_16_bit_colours_is_not_reduced_to_8(tmp_path):
    tiff(tmp_path / "a.tif", np.full((4, 5, 3), 300, np.uint16), 1)
    with pytest.raises(InputError, match=r"a\.tif: 16-bit colours\. Save it in 8-bit colours or 16-bit grey\."):
        read_image(tmp_path / "a.tif")


def test_signed_8_bit_numbers_of_a_tiff_keep_their_sign(tmp_path):
    numbers = np.arange(-10, 10, dtype=np.int8).reshape(4, 5)
    tiff(tmp_path / "a.tif", numbers, 2)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").array[0, :, :, 0].T, numbers)


def test_a_tiff_of_an_unread_kind_is_called_a_tiff(tmp_path):
    tiff(tmp_path / "a.tif", np.ones((4, 5)), 3)
    with pytest.raises(InputError, match=r"a TIFF with numbers of a kind that is not read\. Save it with 8 or 16 bits"):
        read_image(tmp_path / "a.tif")


def test_a_mask_in_a_jpeg_compressed_tiff_is_refused(tmp_path):
    Image.fromarray(np.eye(16, dtype=np.uint8) * 200).save(tmp_path / "a.tif", compression="jpeg")
    with pytest.raises(InputError, match=r"JPEG changes label values\. Save masks as PNG, or as TIFF with another"):
        read_label_map(tmp_path / "a.tif")


def test_a_nifti_scale_that_is_no_number_is_none(tmp_path):
    labels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    image = nib.Nifti1Image(labels, np.eye(4))
    raw = bytearray(image.to_bytes())
    raw[112:120] = struct.pack("<2f", np.nan, np.nan)
    (tmp_path / "a.nii").write_bytes(raw)
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.nii").array, labels)
    np.testing.assert_array_equal(nib.load(tmp_path / "a.nii").get_fdata(), labels)


def test_a_nifti_of_vectors_has_channels(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(3, 4, 5, 1, 2)).astype(np.float32)
    nib.save(nib.Nifti1Image(vectors, np.diag([1.0, 2.0, 3.0, 1.0])), tmp_path / "a.nii.gz")
    image = read_image(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(image.array, np.moveaxis(vectors[:, :, :, 0], -1, 0))
    np.testing.assert_array_equal(as_image(nib.load(tmp_path / "a.nii.gz")).array, image.array)
    write_label_map(tmp_path / "mask.nii.gz", np.ones((3, 4, 5), np.uint8), image)
    assert nib.load(tmp_path / "mask.nii.gz").shape == (3, 4, 5)


def test_voxels_of_a_detached_header_may_be_named_in_its_own_folder(tmp_path):
    fields = {"NDims": 3, "DimSize": "2 3 4", "ElementSpacing": "1 1 1", "ElementType": "MET_UCHAR"}
    lines = [f"{name} = {value}\n" for name, value in {**fields, "ElementDataFile": "./a.raw"}.items()]
    (tmp_path / "a.mhd").write_text("ObjectType = Image\n" + "".join(lines))
    (tmp_path / "a.raw").write_bytes(bytes(range(24)))
    assert read_image(tmp_path / "a.mhd").array.max() == 23


def test_an_affine_of_another_shape_is_called_that():
    with pytest.raises(InputError, match=r"the affine is of shape \(3, 3\), not \(4, 4\)\."):
        as_image((np.ones((3, 4, 5)), np.eye(3)))
