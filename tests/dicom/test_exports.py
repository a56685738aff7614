"""Folders as archives, planning systems and sorting tools export them: nothing of the series lost, the rest named."""

from __future__ import annotations

import shutil
import struct

import numpy as np
import pydicom
import pytest
from dicom_series import changed, write_object, write_series

from medmamba.dicom.study import one_series, opened, series_below
from medmamba.errors import InputError
from medmamba.images import list_images, read_image
from medmamba.images.cases import find_cases
from medmamba.images.dicom_headers import header_tags

STORAGE = "5.1.4.1.1."
CAPTURE = {"Rows": 6, "Columns": 5, "SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
CAPTURE |= {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0, "PixelData": bytes(90)}
PLACE = {"ImagePositionPatient": [0, 0, 0], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [1, 1]}


@pytest.fixture
def volume():
    return np.random.default_rng(0).integers(0, 1000, (5, 6, 5)).astype(np.int16)


@pytest.fixture
def series(tmp_path, volume):
    return write_series(tmp_path / "s", volume, **{"0020_0011": "3"})


def refused(folder):
    with pytest.raises(InputError) as caught:
        read_image(folder)
    assert "CANARY" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("linked", [range(5), range(3, 5)])
def test_slices_that_are_links_are_slices(tmp_path, series, volume, linked):
    (tmp_path / "links").mkdir()
    for number, path in enumerate(sorted(series.iterdir())):
        if number in linked:
            (tmp_path / "links" / path.name).symlink_to(path)
        else:
            shutil.copy(path, tmp_path / "links" / path.name)
    assert list_images(tmp_path / "links") == [tmp_path / "links"]
    np.testing.assert_array_equal(read_image(tmp_path / "links").array[0], volume.T)
    with one_series(tmp_path / "links", "3") as folder:
        np.testing.assert_array_equal(read_image(folder).array[0], volume.T)


def test_a_linked_folder_is_read_once_and_loops_end(tmp_path, series):
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "linked").symlink_to(series)
    (tmp_path / "study" / "again").symlink_to(series)
    (tmp_path / "study" / "loop").symlink_to(tmp_path / "study")
    assert [len(found.parts[0]) for found in series_below(tmp_path / "study")[0]] == [5]


def test_a_link_that_leads_nowhere_and_a_pointer_are_refused_by_name(series):
    (series / "9.dcm").symlink_to(series / "gone")
    assert "9.dcm: a link to a file that does not exist" in refused(series)
    (series / "9.dcm").unlink()
    (series / "9.dcm").write_text("version https://git-lfs.github.com/spec/v1")
    assert "9.dcm: the name says DICOM, the content does not" in refused(series)


@pytest.mark.parametrize("series_uid", ["1.2.99", "1.2.3"])
@pytest.mark.parametrize(
    ("sop_class", "elements", "kind"),
    [
        ("5.1.4.1.1.481.3", {}, "RTSTRUCT"),
        ("5.1.4.1.1.481.2", {**CAPTURE, **PLACE, "NumberOfFrames": 1}, "RTDOSE"),
        ("5.1.4.1.1.481.5", {}, "radiotherapy object"),
        ("5.1.4.1.1.88.67", {}, "SR"),
        ("5.1.4.1.1.66.4", {}, "SEG"),
        ("5.1.4.1.1.66.1", {}, "registration or raw data"),
        ("5.1.4.1.1.104.1", {"EncapsulatedDocument": b"%PDF"}, "PDF or other document"),
        ("5.1.4.1.1.11.1", {}, "presentation state"),
        ("5.1.4.1.1.9.1.1", {}, "waveform"),
        ("5.1.4.1.1.7", CAPTURE, "secondary capture"),
        ("5.1.4.1.1.7.4", CAPTURE, "secondary capture"),
        ("5.1.4.1.1.2", {**CAPTURE, **PLACE}, "colour image"),
        ("5.1.4.1.1.1", CAPTURE, "image without a position"),
        ("1.3.10", {}, "DICOMDIR"),
    ],
)
def test_what_is_no_slice_is_ignored_by_its_kind(series, volume, series_uid, sop_class, elements, kind):
    write_object(series / "other.dcm", sop_class, series_uid, **elements)
    image = read_image(series)
    np.testing.assert_array_equal(image.array[0], volume.T)
    assert image.warnings == (f"{series}: ignored: 1 {kind} (other.dcm).",)
    with one_series(series, "3") as folder:
        np.testing.assert_array_equal(read_image(folder).array[0], volume.T)


def test_a_folder_of_other_objects_is_no_case_and_is_named(tmp_path, series):
    write_object(tmp_path / "study" / "RS" / "RS.dcm", "5.1.4.1.1.481.3")
    shutil.move(series, tmp_path / "study" / "CT")
    lines = []
    assert [path.name for path in list_images(tmp_path / "study", lines.append)] == ["CT"]
    assert "ignored: 1 folder without a series (RS)" in lines[0]
    assert "(ignored: 1 RTSTRUCT (RS.dcm))" in refused(tmp_path / "study" / "RS")
    lines = []
    with one_series(tmp_path / "study", on_message=lines.append) as folder:
        assert read_image(folder).grid.shape == (5, 6, 5)
    assert "ignored: 1 RTSTRUCT (RS.dcm)" in lines[0]


def test_an_image_of_the_series_without_a_position_is_refused(series):
    changed(series / "0.dcm", ImagePositionPatient=None)  # the first slice: no gap would tell
    assert "0.dcm: an image of the series without a position" in refused(series)


def test_a_folders_own_series_is_a_case_beside_its_subfolders_and_files(tmp_path, series, volume, save):
    write_series(series / "sub", volume, series="1.2.5")
    save("s/a.nii.gz", np.zeros((2, 3, 4)))
    (series / "notes.txt").write_text("x")
    (series / ".hidden").write_text("x")
    assert list_images(series) == [series, series / "a.nii.gz", series / "sub"]
    image = read_image(series)
    np.testing.assert_array_equal(image.array[0], volume.T)
    told = " ".join(image.warnings)
    assert "ignored: 1 hidden (.hidden), 1 not DICOM (notes.txt). " in told
    assert "beside the series: 1 image (a.nii.gz)." in told


def test_folders_that_are_listed_next_are_not_called_ignored(tmp_path, save):
    save("in/a/x.nii.gz", np.zeros((2, 3, 4)))
    save("in/a/b/y.nii.gz", np.zeros((2, 3, 4)))
    (tmp_path / "in" / "a" / "notes.txt").write_text("x")
    told: list[str] = []
    assert [case.case_id for case in find_cases(tmp_path / "in", on_message=told.append)] == ["x", "y"]
    assert [line.partition(": ")[2] for line in told] == ["ignored: 1 no image (notes.txt)."]


def test_scouts_are_ignored_and_can_be_chosen(tmp_path, series, volume):
    scouts = write_series(tmp_path / "scouts", volume[:2] + 1, series="1.2.7", **{"0020_0011": "1"})
    for number, path in enumerate(sorted(scouts.iterdir())):
        changed(path, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]).rename(series / f"scout{number}.dcm")
    scouts.rmdir()
    image = read_image(series)
    np.testing.assert_array_equal(image.array[0], volume.T)
    assert "ignored: 2 localizer (scout0.dcm, scout1.dcm)" in image.warnings[0]
    with one_series(tmp_path) as folder:
        assert read_image(folder).grid.shape[2] == 5
    with one_series(tmp_path, "1") as folder:
        assert read_image(folder).grid.shape[2] == 2


@pytest.mark.parametrize("meta", [True, False])
def test_files_without_preamble_are_read(tmp_path, series, volume, meta):
    for path in series.iterdir():
        raw = path.read_bytes()[132:]
        path.write_bytes(raw if meta else raw[12 + struct.unpack("<I", raw[8:12])[0] :])
    np.testing.assert_array_equal(read_image(series).array[0], volume.T)
    with one_series(tmp_path) as folder:
        assert folder == series or read_image(folder).grid.shape == (5, 6, 5)


@pytest.mark.parametrize("syntax", ["ImplicitVRLittleEndian", "ExplicitVRLittleEndian", "RLELossless"])
@pytest.mark.parametrize(("kind", "bits"), [(np.int16, 16), (np.uint16, 12)])
def test_inverted_display_does_not_change_values(tmp_path, syntax, kind, bits):
    volume = np.random.default_rng(0).integers(0, 1000, (2, 40, 35)).astype(np.int16)
    series = write_series(tmp_path / "s", volume)
    for path in series.iterdir():
        found = pydicom.dcmread(path)
        found.PhotometricInterpretation, found.BitsStored, found.HighBit = "MONOCHROME1", bits, bits - 1
        found.PixelRepresentation = int(kind is np.int16)
        found.RescaleSlope, found.RescaleIntercept = "2", "-5"
        if syntax == "RLELossless":
            found.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
        else:
            found.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)
        found.save_as(path, enforce_file_format=True, implicit_vr=syntax.startswith("Implicit"), little_endian=True)
    np.testing.assert_array_equal(read_image(series).array[0], volume.T * 2.0 - 5)


def test_stacks_and_phases_of_a_series_are_chosen_by_number_or_size(tmp_path, volume):
    for phase in range(3):
        write_series(tmp_path / "s" / str(phase), volume + phase, **{"0020_0011": "4", "0020_0012": str(phase)})
    size = r"5 slices of 6 x 5 pixels, 2 x 0\.75 x 0\.5 mm"
    listed = rf"4: MR 3 parts \(:1 acquisition 0, :2 .*:3 acquisition 2 or :largest\) of {size} each, UID 1\.2\.3"
    with pytest.raises(InputError, match=listed), one_series(tmp_path / "s"):
        pass
    for phase in range(3):
        with one_series(tmp_path / "s", f"4:{phase + 1}") as folder:
            np.testing.assert_array_equal(read_image(folder).array[0], volume.T + phase)
    turned = np.eye(3)[:, [0, 2, 1]]
    write_series(tmp_path / "t" / "a", volume, **{"0020_0011": "5"})
    write_series(tmp_path / "t" / "b", volume[:3], turned, **{"0020_0011": "5"})
    with (
        pytest.raises(InputError, match=rf"2 parts \(:1 {size}, :2 3 slices .* or :largest\)"),
        one_series(tmp_path / "t"),
    ):
        pass
    for choice, slices in (("5:1", 5), ("5:2", 3), ("5:largest", 5), ("largest", 5)):
        with one_series(tmp_path / "t", choice) as folder:
            assert read_image(folder).grid.shape[2] == slices
    write_series(tmp_path / "u" / "arterial", volume, **{"0020_0011": "6", "0020_0012": "1"})
    write_series(tmp_path / "u" / "portal", volume[:4] + 9, **{"0020_0011": "6", "0020_0012": "2"})
    with one_series(tmp_path / "u", "6:2") as folder:
        np.testing.assert_array_equal(read_image(folder).array[0], volume[:4].T + 9)


@pytest.mark.parametrize(
    "elements",
    [{"Rows": 65535, "Columns": 65535}, {"NumberOfFrames": 2**31 - 1}, {"BitsAllocated": 60000, "Columns": 65535}],
)
@pytest.mark.parametrize("packed", [True, False])
def test_more_pixels_than_the_file_can_hold_are_refused_before_they_are_decoded(series, elements, packed):
    found = pydicom.dcmread(series / "0.dcm")
    if packed:
        found.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
    for name, value in elements.items():
        setattr(found, name, value)
    found.save_as(series / "0.dcm")
    with pytest.raises(InputError, match=r"cannot hold the \d+ bytes of pixels"):
        header_tags(series / "0.dcm", "0.dcm")
    assert "0.dcm: cut off or damaged" in refused(series)


def test_a_series_in_several_folders_is_one_case(tmp_path, series, volume):
    (series / "rest").mkdir()
    for name in ("0.dcm", "3.dcm"):
        shutil.move(series / name, series / "rest" / name)
    lines = []
    with opened(series, on_message=lines.append) as folder:
        np.testing.assert_array_equal(read_image(folder).array[0], volume.T)
        assert folder.name == "s"
    assert "s: 3: MR 5 slices of 6 x 5 pixels" in lines[0]
    write_series(series / "other", volume, series="1.2.5")
    with pytest.raises(InputError, match="rest and s hold slices of one series, and there are other"), opened(series):
        pass
    with opened(series, "3") as folder:
        np.testing.assert_array_equal(read_image(folder).array[0], volume.T)


def test_a_tree_as_on_a_disc_is_searched_to_its_end(tmp_path, series, volume):
    for number, path in enumerate(sorted(series.iterdir())):
        target = tmp_path / "disc" / "DICOM" / "PA0" / "ST0" / "SE0" / f"IM{number}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, target)
    write_object(tmp_path / "disc" / "DICOMDIR", "1.3.10")
    lines = []
    with opened(tmp_path / "disc", on_message=lines.append) as folder:
        assert folder.name == "disc"
        np.testing.assert_array_equal(read_image(folder).array[0], volume.T)
    assert lines[0].endswith("UID 1.2.3; ignored: 1 DICOMDIR (DICOMDIR)")
    write_series(tmp_path / "disc" / "DICOM" / "PA0" / "ST0" / "SE1", volume, series="1.2.5")
    with pytest.raises(InputError, match=r"2 series \(-: MR 5 slices .* 3: MR 5 slices"), opened(tmp_path / "disc"):
        pass


@pytest.mark.parametrize("content", [b"", b"nothing of DICOM" * 9])
def test_a_slice_that_is_empty_or_no_dicom_is_refused_by_name(series, content):
    for path in list(series.iterdir()):
        path.rename(series / f"IM{path.stem}")
    (series / "IM0").write_bytes(content)  # the first slice: no gap would tell
    what = "not DICOM" if content else "empty"
    assert f"IM0: {what}, but named as the slices are. Copy it again, or remove it." in refused(series)
    with pytest.raises(InputError, match=f"IM0: {what}, but"), one_series(series, "3"):
        pass
    (series / "IM0").rename(series / "README")
    assert f"ignored: 1 {what} (README)" in read_image(series).warnings[0]


def test_damage_stops_the_series_in_its_folder_and_no_other(tmp_path, series, volume):
    other = write_series(tmp_path / "other", volume, series="1.2.5", **{"0020_0011": "5"})
    (other / "2.dcm").write_bytes((other / "2.dcm").read_bytes()[:-40])
    lines = []
    with one_series(tmp_path, "3", on_message=lines.append) as folder:
        np.testing.assert_array_equal(read_image(folder).array[0], volume.T)
    assert "ignored: 1 damaged (2.dcm)" in lines[0]
    assert "5: MR 4 slices of 6 x 5 pixels, 2 x 0.75 x 0.5 mm, UID 1.2.5, damaged" in lines[0]
    with pytest.raises(InputError, match=r"other: 2\.dcm: cut off or damaged"), one_series(tmp_path, "5"):
        pass
    with pytest.raises(InputError, match=r"other: 2\.dcm: cut off or damaged"), one_series(other):
        pass


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seed", range(4))
def test_headers_cut_or_changed_anywhere_give_an_image_or_one_line(series, volume, seed):
    path, rng = series / "0.dcm", np.random.default_rng(seed)
    whole, lines = path.read_bytes(), []
    for _ in range(50):
        broken = bytearray(whole[: int(rng.integers(0, len(whole)))])
        if rng.random() < 0.7:
            broken = bytearray(whole)
            for at in rng.integers(0, len(whole), 4):
                broken[at] = rng.integers(256)
        path.write_bytes(broken)
        try:
            header_tags(path, "0.dcm")
        except InputError as error:
            lines.append(str(error))
    assert lines
    assert all("CANARY" not in line and "\n" not in line for line in lines)
