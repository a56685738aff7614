"""Series of several stacks, slabs, acquisitions and phases: each is chosen with its own values, none is mixed."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from dicom_series import changed, write_enhanced, write_object
from hypothesis import given, settings
from hypothesis import strategies as st

from medmamba.dicom.study import one_series
from medmamba.errors import InputError
from medmamba.images import read_image
from medmamba.images.dicom_parts import parts_of
from medmamba.images.dicom_slices import CONTRASTS, PHASES, Slice

MR = "5.1.4.1.1.4"


def write_stack(folder, heights, value, *, first=1, x=0.0, elements=(), per_slice=()):
    """Slices of 2 x 3 pixels at heights, numbered from ``first``; pixels are ``value`` plus a tenth of the height."""
    for n, height in enumerate(heights):
        own = {name: values[n] for name, values in dict(per_slice).items()}
        pixels = np.full((2, 3), 10 * value + height // 2, np.uint16)
        write_object(
            folder / f"{value}_{n}.dcm", MR, "1.2.3",
            **{
                "SOPInstanceUID": f"1.2.3.{value}.{n + 1}", "SeriesNumber": 3, "Modality": "MR",
                "Rows": 2, "Columns": 3, "PixelSpacing": [1, 1], "SliceThickness": 2, "InstanceNumber": first + n,
                "ImagePositionPatient": [x, 0, float(height)], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
                "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "BitsAllocated": 16,
                "BitsStored": 16, "HighBit": 15, "PixelRepresentation": 0, "PixelData": pixels.tobytes(),
                **dict(elements), **own,
            },
        )  # fmt: skip
    return folder


def refused(folder):
    with pytest.raises(InputError) as caught:
        read_image(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def volume_of(folder, choice):
    """The value of each slice of one part."""
    with one_series(folder, choice) as chosen:
        values = read_image(chosen).array[0]
    assert (values == values[:1, :1]).all()
    return values[0, 0].tolist()


def values(value, heights):
    return [10 * value + height // 2 for height in heights]


EVEN, ODD, ALL = (0, 4, 8), (2, 6, 10), (0, 2, 4, 6)


@pytest.mark.parametrize("heights", [(EVEN, ODD), (ALL, ALL)], ids=["interleaved", "same places"])
@pytest.mark.parametrize(
    ("first", "second", "mark"),
    [
        ({"EchoTime": "10"}, {"EchoTime": "80"}, ":1 echo time 10, :2 echo time 80"),
        ({"EchoNumbers": 1}, {"EchoNumbers": 2}, ":1 echo 1, :2 echo 2"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M"]}, {"ImageType": ["ORIGINAL", "PRIMARY", "P"]}, "image type M"),
        ({"DiffusionBValue": 0.0}, {"DiffusionBValue": 1000.0}, ":1 b-value 0, :2 b-value 1000"),
        ({"TemporalPositionIdentifier": 1}, {"TemporalPositionIdentifier": 2}, ":1 time 1, :2 time 2"),
        ({"AcquisitionNumber": 1}, {"AcquisitionNumber": 2}, ":1 acquisition 1, :2 acquisition 2"),
        ({"FrameOfReferenceUID": "1.2.8"}, {"FrameOfReferenceUID": "1.2.9"}, ":1 frame of reference 1.2.8"),
    ],
    ids=["echo time", "echo", "magnitude and phase", "b-value", "time", "acquisition", "frame of reference"],
)  # fmt: skip
def test_images_that_differ_are_never_one_volume(tmp_path, heights, first, second, mark):
    """Each pair has the same instance numbers, so that their order tells nothing."""
    apart = {} if heights[0] == ALL else {"SpacingBetweenSlices": 4}
    write_stack(tmp_path, heights[0], 1, elements=first | apart)
    write_stack(tmp_path, heights[1], 2, elements=second | apart)
    said = refused(tmp_path)
    assert mark in said
    assert "Choose one with `medmamba predict --series`" in said
    assert volume_of(tmp_path, "3:1") == values(1, heights[0])
    assert volume_of(tmp_path, "3:2") == values(2, heights[1])


def private(group, creator, element, representation, value):
    """An element of a vendor in the second block of its group, as a file that was edited may have it."""

    def add(path):
        dataset = pydicom.dcmread(path)
        dataset.private_block(group, "OTHER", create=True)
        dataset.private_block(group, creator, create=True).add_new(element, representation, value)
        dataset.save_as(path)

    return add


@pytest.mark.parametrize(
    ("group", "creator", "element", "representation", "values_of"),
    [
        (0x0019, "SIEMENS MR HEADER", 0x0C, "IS", (0, 1000)),
        (0x0043, "GEMS_PARM_01", 0x39, "IS", ([0, 8, 0, 0], [1000001000, 8, 0, 0])),
        (0x2001, "Philips Imaging DD 001", 0x03, "FL", (0.0, 1000.0)),
        (0x0065, "Image Private Header", 0x09, "FD", (0.0, 1000.0)),
        (0x0019, "SIEMENS MR HEADER", 0x0C, "UN", (b"0 ", b"1000")),
    ],
    ids=["Siemens", "GE", "Philips", "United Imaging", "unknown representation"],
)
def test_private_b_values_tell_images_apart(tmp_path, group, creator, element, representation, values_of):
    for value, heights in ((1, EVEN), (2, ODD)):
        folder = write_stack(tmp_path / "all", heights, value, elements={"SpacingBetweenSlices": 4})
        for path in folder.glob(f"{value}_*.dcm"):
            private(group, creator, element, representation, values_of[value - 1])(path)
    assert ":1 b-value 0, :2 b-value 1000" in refused(folder)
    assert volume_of(folder, "3:2") == values(2, ODD)


@pytest.mark.parametrize("creator", ["ANOTHER VENDOR", "SIEMENS CT HEADER"])
def test_elements_of_other_creators_are_no_b_values(tmp_path, creator):
    folder = write_stack(tmp_path, ALL, 1)
    for number, path in enumerate(sorted(folder.iterdir())):
        private(0x0019, creator, 0x0C, "IS", number)(path)
    assert read_image(folder).array[0, 0, 0].tolist() == values(1, ALL)


def test_an_acquisition_between_the_slices_of_another_is_one_volume_where_the_slices_say_so(tmp_path):
    for value, heights in ((1, EVEN), (2, ODD)):
        write_stack(tmp_path, heights, value, elements={"AcquisitionNumber": value, "SpacingBetweenSlices": 2})
    assert read_image(tmp_path).array[0, 0, 0].tolist() == [10, 21, 12, 23, 14, 25]


def test_slices_with_a_number_or_identifier_each_are_one_volume(tmp_path):
    numbers = {"AcquisitionNumber": range(1, 5), "TemporalPositionIdentifier": range(1, 5), "TriggerTime": range(4)}
    numbers["FrameOfReferenceUID"] = [f"1.2.{n}" for n in range(4)]
    write_stack(tmp_path, ALL, 1, per_slice=numbers)
    assert read_image(tmp_path).array[0, 0, 0].tolist() == values(1, ALL)


@pytest.mark.parametrize("numbers", [(1, 5), (1, 1)], ids=["numbered through", "numbered each"])
def test_slabs_apart_are_chosen(tmp_path, numbers):
    for value, (start, first) in enumerate(zip((0, 40), numbers, strict=True), start=1):
        heights = [start + height for height in ALL]
        write_stack(tmp_path, heights, value, first=first, elements={"AcquisitionNumber": value})
    said = refused(tmp_path)
    assert (
        "34 mm between 1_3.dcm and 2_0.dcm, 2 mm elsewhere. They are 2 parts (:1 acquisition 1, :2 acquisition 2"
        in said
    )
    assert volume_of(tmp_path, "3:1") == [10, 11, 12, 13]
    assert volume_of(tmp_path, "3:2") == [40, 41, 42, 43]


def test_slabs_without_any_tag_are_told_by_their_numbers_and_a_missing_slice_too(tmp_path):
    write_stack(tmp_path / "slabs", ALL, 1)
    write_stack(tmp_path / "slabs", (15, 17, 19, 21), 2, first=5)
    assert volume_of(tmp_path / "slabs", "3:2") == [27, 28, 29, 30]
    write_stack(tmp_path / "overlap", ALL, 1)
    write_stack(tmp_path / "overlap", (3, 5, 7, 9), 2, first=5)
    assert volume_of(tmp_path / "overlap", "3:1") == values(1, ALL)
    folder = write_stack(tmp_path / "missing", range(0, 20, 2), 1)
    (folder / "1_4.dcm").unlink()
    said = "a slice is missing: 4 mm between 1_3.dcm and 1_5.dcm, 2 mm elsewhere. Add the missing files, or keep the"
    assert said in refused(folder)
    for choice in ("3", "3:largest", "largest"):
        with pytest.raises(InputError, match="a slice is missing"):
            volume_of(folder, choice)
    for number, path in enumerate(sorted(folder.iterdir()), start=1):
        changed(path, InstanceNumber=number)  # as some tools number the slices that are left
    assert said in refused(folder)


@pytest.mark.parametrize(("left", "right"), [(EVEN, ODD), (ALL, ALL)])
def test_stacks_beside_each_other_are_chosen(tmp_path, left, right):
    write_stack(tmp_path, left, 1)
    write_stack(tmp_path, right, 2, x=100.0, first=4)
    refused(tmp_path)
    assert volume_of(tmp_path, "3:1") == values(1, left)
    assert volume_of(tmp_path, "3:2") == values(2, right)


def test_a_slice_that_is_shifted_in_its_plane_is_named(tmp_path):
    write_stack(tmp_path, ALL, 1)
    changed(tmp_path / "1_2.dcm", ImagePositionPatient=[3, 0, 4])
    assert "slices do not lie one behind the other: 1_2.dcm lies 3 mm beside the line" in refused(tmp_path)


def test_the_order_of_images_at_one_place_is_used_only_where_it_is_clear(tmp_path):
    """Place by place and phase by phase are clear; numbers that start again, or change their way, are not."""
    for name, first in (
        ("clear", {n: range(n, 9 + n, 2) for n in (1, 2)}),
        ("blocks", {1: range(1, 5), 2: range(5, 9)}),
    ):
        for value, numbers in first.items():
            write_stack(tmp_path / name, ALL, value, per_slice={"InstanceNumber": numbers})
        assert volume_of(tmp_path / name, "3:2") == values(2, ALL)
    for name, both in (("again", ((1, 2, 3, 4),) * 2), ("changing", ((1, 3, 6, 8), (2, 5, 4, 7)))):
        for value, numbers in enumerate(both, start=1):
            write_stack(tmp_path / name, ALL, value, per_slice={"InstanceNumber": numbers})
        assert "(4 such pairs). Keep one volume in the folder." in refused(tmp_path / name)
        with pytest.raises(InputError, match="at the same place"):
            volume_of(tmp_path / name, "3:1")


def test_a_beating_heart_is_divided_by_trigger_times_that_differ_from_slice_to_slice(tmp_path):
    for value in (1, 2, 3):
        times = [100.0 * value + 3 * n for n in range(4)]
        write_stack(tmp_path, ALL, value, per_slice={"TriggerTime": times, "AcquisitionNumber": range(1, 5)})
    assert [volume_of(tmp_path, f"3:{phase}") for phase in (1, 2, 3)] == [values(value, ALL) for value in (1, 2, 3)]


def test_a_mosaic_is_no_slice(tmp_path):
    write_stack(tmp_path, (0,), 1, elements={"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]})
    assert "no DICOM slices in this folder (ignored: 1 mosaic of slices (1_0.dcm))" in refused(tmp_path)


def with_frames(path, of_frame):
    """Values of each frame, from ``of_frame(number)``: a group, its element and the value."""
    found = pydicom.dcmread(path)
    for number, frame in enumerate(found.PerFrameFunctionalGroupsSequence):
        for group, name, value in of_frame(number):
            item = getattr(frame, group, [pydicom.Dataset()])[0]
            setattr(item, name, value)
            setattr(frame, group, [item])
    found.save_as(path)


@pytest.fixture
def volume():
    return np.random.default_rng(0).integers(0, 1000, (6, 6, 7)).astype(np.int16)


@pytest.mark.parametrize(
    ("group", "name", "pair", "mark"),
    [
        ("FrameContentSequence", "StackID", ("1", "2"), "stack 1"),
        ("MREchoSequence", "EffectiveEchoTime", (10.0, 80.0), "echo time 10"),
        ("MRDiffusionSequence", "DiffusionBValue", (0.0, 800.0), "b-value 0"),
        ("MRImageFrameTypeSequence", "FrameType", (["MIXED", "MIXED", "M"], ["MIXED", "MIXED", "P"]), "type M"),
        ("MRImageFrameTypeSequence", "ComplexImageComponent", ("MAGNITUDE", "PHASE"), "complex component"),
        ("FrameContentSequence", "TemporalPositionIndex", (1, 2), "time 1"),
    ],
)  # fmt: skip
def test_frames_of_two_kinds_in_turn_are_two_parts(tmp_path, volume, group, name, pair, mark):
    path = write_enhanced(tmp_path / "scan.dcm", volume, DimensionIndexSequence=[])
    with_frames(path, lambda number: [(group, name, pair[number % 2])])
    said = refused(path)
    assert mark in said
    stored = volume[::-1]  # frames are stored from the last slice to the first
    for part in (0, 1):
        with one_series(path, f"8:{part + 1}") as folder:
            image = read_image(folder)
        np.testing.assert_array_equal(image.array[0], stored[part::2][::-1].T)
        np.testing.assert_allclose(image.grid.affine[:3, 2], (0, 0, 4))


def test_several_enhanced_series_in_one_folder_and_one_series_in_several_files_are_chosen(tmp_path, volume):
    for series in (1, 2):
        for time in (1, 2):
            uids = {
                "SeriesInstanceUID": f"1.2.3.{series}",
                "SeriesNumber": series,
                "SOPInstanceUID": f"1.2.7.{series}{time}",
            }
            both = np.stack([volume + 10 * series + time, volume + 10 * series + time + 2])
            write_enhanced(tmp_path / f"{series}{time}.dcm", both, **uids)
    said = refused(tmp_path)
    each = "4 parts (:1 time 1 file "
    assert f"2 series in one folder (1: MR {each}" in said
    assert f"; 2: MR {each}" in said
    assert said.endswith("Choose one with `medmamba predict --series`, by number or the end of its UID.")
    for series in (1, 2):
        found = []
        for part in range(1, 5):
            with one_series(tmp_path, f"{series}:{part}") as folder:
                found.append(int((read_image(folder).array[0] - volume.T).min()))
                assert np.ptp(read_image(folder).array[0] - volume.T) == 0
        assert sorted(found) == [10 * series + shift for shift in (1, 2, 3, 4)]


def a_slice(height, x, echo, acquisition, trigger, number):
    contrast = tuple(echo if name == "echo time" else "" for name in CONTRASTS)
    phase = tuple(acquisition if name == "acquisition" else "" for name in PHASES)
    position, orientation = np.array([x, 0.0, height]), np.array([1.0, 0, 0, 0, 1, 0])
    return Slice(
        path=None, frame=1, position=position, orientation=orientation, spacing=np.ones(2), size=(3, 2), thickness=2.0,
        inverted=False, slope=1.0, intercept=0.0, between=0.0, contrast=contrast, phase=(*phase, ""), trigger=trigger,
        number=number,
    )  # fmt: skip


slices = st.builds(
    a_slice,
    height=st.integers(0, 6).map(lambda n: 2.0 * n),
    x=st.sampled_from([0.0, 0.0, 0.0, 50.0]),
    echo=st.sampled_from(["10", "10", "80"]),
    acquisition=st.sampled_from(["", "1", "2"]),
    trigger=st.sampled_from([0.0, 1.0]),
    number=st.integers(0, 12).map(float),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(slices, min_size=1, max_size=12))
def test_every_slice_is_in_one_part_of_one_contrast_and_a_part_is_divided_no_further(pieces):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("medmamba.images.dicom_parts._without_copies", list)
        parts = parts_of(pieces)
        assert sorted(id(piece) for part in parts for piece in part) == sorted(map(id, pieces))
        for part in parts:
            assert len({piece.contrast for piece in part}) == 1
            (again,) = parts_of(part)
            assert again == part or set(map(id, again)) == set(map(id, part))
