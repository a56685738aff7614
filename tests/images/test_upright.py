"""Orientation tags (EXIF) of cameras and scanners: reoriented images match their masks, and masks match their files."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from medmamba.datasets import load_case
from medmamba.datasets.spec import CaseSpec, DatasetSpec
from medmamba.errors import InputError
from medmamba.images import read_image, read_label_map, write_label_map

UPRIGHT = np.zeros((48, 64), np.uint8)
UPRIGHT[5:20, 30:60] = 200
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.T,
    6: np.rot90(UPRIGHT),
    7: UPRIGHT[::-1, ::-1].T,
    8: np.rot90(UPRIGHT, -1),
}
"""Pixels as a file with this mark stores them (EXIF 2.3, section 4.6.4)."""


def saved(path, mark, colours=1):
    exif = Image.Exif()
    exif[0x0112] = mark
    pixels = np.ascontiguousarray(STORED[mark])
    Image.fromarray(pixels if colours == 1 else np.stack([pixels] * 3, -1)).save(path, exif=exif)
    return path


@pytest.mark.parametrize("ending", ["jpg", "png", "tif"])
@pytest.mark.parametrize("mark", STORED)
def test_pixels_are_upright_and_their_mask_lies_on_the_file(tmp_path, ending, mark):
    image = read_image(saved(tmp_path / f"a.{ending}", mark, colours=3))
    assert np.abs(image.array[0, :, :, 0].T - UPRIGHT).mean() < 2  # JPEG is not exact
    assert bool(image.warnings) == (mark != 1)
    labels = (image.array[0] > 100).astype(np.uint8)
    mask = tmp_path / f"mask.{'png' if ending == 'jpg' else ending}"
    write_label_map(mask, labels, like=image)
    np.testing.assert_array_equal(read_label_map(mask).array, labels)
    with Image.open(mask) as stored:
        assert stored.getexif().get(0x0112, 1) == mark
    raw = mask.read_bytes()
    if ending != "tif":  # Pillow always turns TIFF
        assert (np.asarray(Image.open(mask)) == (STORED[mark] > 100)).mean() > 0.99
    write_label_map(mask, labels, like=read_label_map(mask))
    assert mask.read_bytes() == raw
    write_label_map(tmp_path / "mask.bmp", labels, like=image)
    np.testing.assert_array_equal(read_label_map(tmp_path / "mask.bmp").array, labels)


def test_16_bit_pixels_are_turned_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(UPRIGHT.astype(np.uint16) * 250).copy()).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").array[0, :, :, 0].T, UPRIGHT * 250.0)


@pytest.mark.parametrize("mark", [0, 9, 999])
def test_an_unknown_mark_turns_nothing(tmp_path, mark):
    exif = Image.Exif()
    exif[0x0112] = mark
    Image.fromarray(UPRIGHT).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").array[0, :, :, 0].T, UPRIGHT)


def test_a_mask_drawn_upright_fits_and_one_drawn_as_stored_names_the_mark(tmp_path):
    saved(tmp_path / "a.jpg", 6)
    Image.fromarray((UPRIGHT > 0).astype(np.uint8)).save(tmp_path / "upright.png")
    Image.fromarray((STORED[6] > 0).astype(np.uint8)).save(tmp_path / "stored.png")
    spec = DatasetSpec("d", tmp_path, "csv", ("grey",), {"background": 0, "x": 1}, ())
    found = load_case(spec, CaseSpec("p", (tmp_path / "a.jpg",), tmp_path / "upright.png"))
    assert found.image.array[0][found.labels.array > 0].mean() > 150
    with pytest.raises(InputError, match=r"differ in shape.*reoriented by its orientation tag"):
        load_case(spec, CaseSpec("p", (tmp_path / "a.jpg",), tmp_path / "stored.png"))
