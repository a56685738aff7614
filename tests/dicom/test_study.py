"""One series out of folders, trees and zips: found by its UID, chosen clearly, read rightly or refused."""

from __future__ import annotations

import shutil
import zipfile

import numpy as np
import pytest
from dicom_series import write_series, write_slice

from medmamba.dicom.study import one_series, opened, series_below
from medmamba.errors import ConfigError, InputError
from medmamba.images import read_image


@pytest.fixture
def volume():
    return np.random.default_rng(0).integers(-1000, 1000, (5, 6, 5)).astype(np.int16)


@pytest.fixture
def study(tmp_path, volume):
    """Two series whose files are mixed over the folders of a study, and a report without a place in space."""
    write_series(tmp_path / "study" / "one", volume, series="1.2.3", **{"0020_0011": "3", "0008_103e": "T1 axial"})
    write_series(tmp_path / "study" / "two", volume + 1, series="1.2.4", **{"0020_0011": "4"})
    shutil.move(tmp_path / "study" / "two" / "0.dcm", tmp_path / "study" / "one" / "x.dcm")
    return tmp_path / "study"


def test_a_folder_with_one_series_is_used_where_it_stands(tmp_path, volume):
    folder = write_series(tmp_path / "s", volume)
    with one_series(folder) as found:
        assert found == folder


def test_several_series_are_listed_and_one_is_chosen_by_number_or_uid(study, volume):
    with pytest.raises(InputError) as caught, one_series(study):
        pass
    size = "5 slices of 6 x 5 pixels, 2 x 0.75 x 0.5 mm"
    assert f"2 series (3: MR 'T1 axial' {size}, UID 1.2.3; 4: MR {size}, UID 1.2.4)" in str(caught.value)
    assert "--series" in str(caught.value)
    assert "CANARY" not in str(caught.value)
    for choice, difference in (("3", 0), ("4", 1), ("1.2.4", 1), ("2.3", 0)):
        with one_series(study, choice) as folder:
            np.testing.assert_array_equal(read_image(folder).array[0], volume.T + difference)
    assert not folder.exists()
    with pytest.raises(ConfigError, match="unknown series '9'"), one_series(study, "9"):
        pass


def test_series_of_the_same_number_are_told_apart_by_uid(tmp_path, volume):
    for uid in ("1.2.3", "1.2.44"):
        write_series(tmp_path / "study" / uid, volume, series=uid, **{"0020_0011": "7"})
    with (
        pytest.raises(InputError, match=r"2 series \(7: MR.*UID 1\.2\.3; 7.*UID 1\.2\.44\)"),
        one_series(tmp_path, "7"),
    ):
        pass
    assert [len(series.parts[0]) for series in series_below(tmp_path)[0]] == [5, 5]


def test_a_zip_gives_the_voxels_of_its_folder(study, tmp_path, volume):
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
        for path in study.rglob("*.dcm"):
            archive.write(path, path.relative_to(study))
    with one_series(tmp_path / "study.zip", "3") as folder:
        assert folder.name == "study"
        np.testing.assert_array_equal(read_image(folder).array[0], volume.T)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no DICOM images"), one_series(tmp_path / "empty"):
        pass


def test_a_zip_without_an_image_is_refused_by_its_own_name(tmp_path):
    with zipfile.ZipFile(tmp_path / "letters.zip", "w") as packed:
        packed.writestr("a.txt", "Dear colleague")
    with (
        pytest.raises(InputError, match=r"^letters\.zip: no image of a known format"),
        opened(tmp_path / "letters.zip"),
    ):
        pass


def test_the_same_file_twice_is_one_file_but_another_picture_at_its_place_is_not(tmp_path, volume):
    folder = write_series(tmp_path / "s", volume)
    shutil.copy(folder / "1.dcm", folder / "copy.dcm")
    image = read_image(folder)
    np.testing.assert_array_equal(image.array[0], volume.T)
    assert any("ignored: 1 identical copy (copy.dcm)" in warning for warning in image.warnings)
    write_slice(folder / "copy.dcm", volume[0] + 5, (10, -20, 30))
    with pytest.raises(InputError, match="are at the same place"):
        read_image(folder)


@pytest.mark.parametrize("codec", ["RLELossless", "JPEGLSLossless"])
def test_lossless_compressed_slices_give_the_voxels_of_plain_ones(tmp_path, codec):
    pydicom = pytest.importorskip("pydicom", reason="needs the extra 'dicom'")
    volume = np.random.default_rng(0).integers(0, 1000, (3, 40, 35)).astype(np.int16)
    plain = write_series(tmp_path / "plain", volume)
    packed = tmp_path / "packed"
    packed.mkdir()
    for path in sorted(plain.iterdir()):
        slice_ = pydicom.dcmread(path)
        slice_.compress(getattr(pydicom.uid, codec), generate_instance_uid=False)
        slice_.save_as(packed / path.name)
    assert pydicom.dcmread(packed / "0.dcm").file_meta.TransferSyntaxUID.is_compressed
    np.testing.assert_array_equal(read_image(packed).array, read_image(plain).array)


def test_several_frames_in_one_file_are_refused_with_what_to_do(tmp_path, volume):
    pydicom = pytest.importorskip("pydicom", reason="needs the extra 'dicom'")
    path = write_series(tmp_path / "s", volume[:1]) / "0.dcm"
    frames = pydicom.dcmread(path)
    frames.NumberOfFrames, frames.PixelData = 5, volume.tobytes()
    frames.save_as(path)
    with pytest.raises(InputError, match="1 multi-frame image"):
        read_image(tmp_path / "s")
