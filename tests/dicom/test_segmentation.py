"""DICOM SEG and RTSTRUCT: references, codes, frame of reference, and the same voxels when read again."""

from __future__ import annotations

import json
import shutil
import warnings

import numpy as np
import pytest
from segmentable_series import AXES, VALUES, mask_of_two, valid, write_source_series

from medmamba.errors import ConfigError, InputError, InputErrors

pytest.importorskip("highdicom", reason="needs the extra 'dicom'")
pydicom = pytest.importorskip("pydicom")

from medmamba.dicom.codes import SegmentCode, colour_of, read_codes  # noqa: E402
from medmamba.dicom.segmentation import read_segmentation, series_in_order, write_segmentation  # noqa: E402
from medmamba.geometry import Grid  # noqa: E402
from medmamba.images import ReadOptions, read_image, write_label_map  # noqa: E402


@pytest.mark.parametrize("axes", list(AXES))
def test_a_segmentation_is_read_back_equal_with_its_references(axes, tmp_path):
    folder, study, frame = write_source_series(tmp_path / "series", AXES[axes])
    image = read_image(folder)
    labels = mask_of_two(image.grid.shape)
    codes = {name: SegmentCode() for name in VALUES}
    write_segmentation(tmp_path / "seg.dcm", labels, image.grid, folder, VALUES, codes)
    numbers, names = read_segmentation(tmp_path / "seg.dcm", image.grid)
    assert names == ["anterior", "posterior"]
    assert np.array_equal(np.array([0, 1, 7])[numbers], labels)
    written = pydicom.dcmread(tmp_path / "seg.dcm")
    assert (written.StudyInstanceUID, written.FrameOfReferenceUID) == (study, frame)
    assert written.Modality == "SEG"
    referred = {
        item.ReferencedSOPInstanceUID
        for functional in written.PerFrameFunctionalGroupsSequence
        for derivation in functional.DerivationImageSequence
        for item in derivation.SourceImageSequence
    }
    slices = series_in_order(folder, image.grid)
    assert referred == {slices[k].SOPInstanceUID for k in range(2, 8)}


def test_an_unusual_name_of_a_patient_is_kept_and_told_to_nobody(tmp_path, caplog):
    folder, _, _ = write_source_series(tmp_path / "series", AXES["axial"])
    for path in folder.iterdir():
        slice_ = pydicom.dcmread(path)
        slice_.PatientName = "PHI_CANARY"
        slice_.save_as(path)
    image = read_image(folder)
    names = {name: SegmentCode() for name in VALUES if name != "background"}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        write_segmentation(tmp_path / "seg.dcm", mask_of_two(image.grid.shape), image.grid, folder, VALUES, names)
    assert "CANARY" not in caplog.text + " ".join(str(one.message) for one in told)
    assert pydicom.dcmread(tmp_path / "seg.dcm").PatientName == "PHI_CANARY"


def test_of_a_labels_file_no_more_is_read_than_one_can_have(tmp_path):
    with pytest.raises(InputError, match="/dev/zero: a device, not a file"):
        read_codes("/dev/zero", list(VALUES))
    with (tmp_path / "labels.json").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(InputError, match=r"labels\.json: 1099511627776 bytes, where at most"):
        read_codes(tmp_path / "labels.json", list(VALUES))


def test_codes_come_from_the_labels_file(tmp_path):
    folder, _, _ = write_source_series(tmp_path / "series", AXES["axial"])
    image = read_image(folder)
    table = {"anterior": {"property_type": ["12345", "SCT", "A part"], "colour": [255, 0, 0]}}
    (tmp_path / "labels.json").write_text(json.dumps(table))
    codes = read_codes(tmp_path / "labels.json", list(VALUES))
    write_segmentation(tmp_path / "seg.dcm", mask_of_two(image.grid.shape), image.grid, folder, VALUES, codes)
    first, second = pydicom.dcmread(tmp_path / "seg.dcm").SegmentSequence
    assert first.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "A part"
    assert second.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"
    assert first.SegmentAlgorithmType == "AUTOMATIC"


def test_a_mask_of_another_series_is_refused(tmp_path):
    folder, _, _ = write_source_series(tmp_path / "series", AXES["axial"])
    grid = read_image(folder).grid
    codes = {name: SegmentCode() for name in VALUES}
    for axis in (2, 0):  # through the slices, and within them
        moved = grid.affine.copy()
        moved[axis, 3] += 1.0
        with pytest.raises(InputError, match="its slices are not those of the mask"):
            write_segmentation(
                tmp_path / "s.dcm", mask_of_two(grid.shape), Grid(grid.shape, moved), folder, VALUES, codes
            )
    (folder / "0.dcm").unlink()
    with pytest.raises(InputError, match="holds 11 DICOM images, the mask has 12 slices"):
        write_segmentation(tmp_path / "s.dcm", mask_of_two(grid.shape), grid, folder, VALUES, codes)
    assert not (tmp_path / "s.dcm").exists()


def test_a_value_without_a_name_is_refused(tmp_path):
    folder, _, _ = write_source_series(tmp_path / "series", AXES["axial"])
    grid = read_image(folder).grid
    codes = {name: SegmentCode() for name in VALUES}
    with pytest.raises(InputError, match="holds 3, which is not the value of any label"):
        write_segmentation(tmp_path / "s.dcm", np.full(grid.shape, 3), grid, folder, VALUES, codes)


@pytest.mark.parametrize("count", [12, 1])
def test_an_empty_mask_gives_a_segmentation_of_empty_frames(count, tmp_path, caplog):
    folder, _, _ = write_source_series(tmp_path / "series", AXES["oblique"], count)
    grid = read_image(folder).grid
    codes = {name: SegmentCode() for name in VALUES}
    write_segmentation(
        tmp_path / "s.dcm", np.zeros(grid.shape, int), grid, folder, VALUES, codes, {"anterior": "x" * 2000}
    )
    first, second = pydicom.dcmread(tmp_path / "s.dcm").SegmentSequence
    assert first.SegmentDescription == "x" * 1024
    assert "SegmentDescription" not in second
    numbers, names = read_segmentation(tmp_path / "s.dcm", grid)
    assert (numbers.shape, numbers.any(), names) == (grid.shape, False, ["anterior", "posterior"])
    assert valid(tmp_path / "s.dcm")
    assert caplog.text == ""


def test_names_and_colours_of_segments_are_those_that_dicom_allows(tmp_path):
    folder, _, _ = write_source_series(tmp_path / "series", AXES["axial"], SpecificCharacterSet="ISO_IR 100")
    image = read_image(folder)
    values = {"background": 0, "\u8133 " + "x" * 70 + "1": 1, "\u8133 " + "x" * 70 + "2": 7, "a\\b\nc": 8, " ": 9}
    codes = {name: SegmentCode() for name in values}
    write_segmentation(tmp_path / "s.dcm", mask_of_two(image.grid.shape), image.grid, folder, values, codes)
    _, names = read_segmentation(tmp_path / "s.dcm", image.grid)
    assert names == ["\u8133 " + "x" * 60, "\u8133 " + "x" * 56 + " (2)", "a_b_c", "_"]
    segments = pydicom.dcmread(tmp_path / "s.dcm").SegmentSequence
    assert len({tuple(segment.RecommendedDisplayCIELabValue) for segment in segments}) == 4
    assert valid(tmp_path / "s.dcm")


def test_every_segment_has_a_colour_of_its_own():
    colours = [colour_of(number, SegmentCode()) for number in range(1, 120)]
    assert len(set(colours)) == len(colours)
    assert colours[0] == (255, 176, 0)  # as in the pages
    assert colour_of(1, SegmentCode(colour=(1, 2, 3))) == (1, 2, 3)


def test_more_segments_than_a_byte_can_number(tmp_path):
    folder, _, _ = write_source_series(tmp_path / "series", AXES["axial"], 2)
    image = read_image(folder)
    labels = (np.arange(np.prod(image.grid.shape)) % 257).reshape(image.grid.shape)
    values = {"background": 0, **{f"label {number}": number for number in range(1, 257)}}
    write_segmentation(tmp_path / "s.dcm", labels, image.grid, folder, values, {name: SegmentCode() for name in values})
    assert np.array_equal(read_segmentation(tmp_path / "s.dcm", image.grid)[0], labels)


def test_dates_and_the_sex_that_dicom_does_not_allow_stop_no_segmentation(tmp_path):
    wrong = {"StudyDate": "2020.01.02", "StudyTime": "12:30", "PatientBirthDate": "unknown", "PatientSex": "male"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder, _, _ = write_source_series(tmp_path / "series", AXES["axial"], **wrong)
        image = read_image(folder)
        codes = {name: SegmentCode() for name in VALUES}
        write_segmentation(tmp_path / "s.dcm", mask_of_two(image.grid.shape), image.grid, folder, VALUES, codes)
    found = pydicom.dcmread(tmp_path / "s.dcm")
    assert (found.StudyDate, found.StudyTime) == ("20200102", "1230")
    assert (found.PatientBirthDate, found.PatientSex) == ("", "")
    assert valid(tmp_path / "s.dcm")


def test_slices_as_unevenly_spaced_as_the_reader_allows_take_a_segmentation(tmp_path):
    folder, _, _ = write_source_series(tmp_path / "series", AXES["axial"])
    for path in folder.iterdir():
        source = pydicom.dcmread(path)
        source.ImagePositionPatient[2] += 0.02 * (source.InstanceNumber * 7 % 3 - 1)
        source.save_as(path)
    image = read_image(folder)
    codes, labels = {name: SegmentCode() for name in VALUES}, mask_of_two(image.grid.shape)
    write_segmentation(tmp_path / "s.dcm", labels, image.grid, folder, VALUES, codes)
    assert np.array_equal(np.array([0, 1, 7])[read_segmentation(tmp_path / "s.dcm", image.grid)[0]], labels)


def test_a_wrong_labels_file_gives_all_its_errors(tmp_path):
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({"a": {"colour": [300, 0, 0], "color": 1}}))
    with pytest.raises(InputErrors) as caught:
        read_codes(path, ["a"])
    assert "a.colour[0]" in str(caught.value)
    assert "a.color" in str(caught.value)
    path.write_text(json.dumps({"a": {"property_type": ["1", "SCT", "two\\values"]}}))
    with pytest.raises(InputErrors, match=r"a\.property_type\[2\]"):
        read_codes(path, ["a"])
    path.write_text(json.dumps({"antrior": {}}))
    with pytest.raises(ConfigError, match="Did you mean 'anterior'"):
        read_codes(path, ["anterior"])


def test_the_command_turns_a_mask_file_into_a_segmentation(tmp_path, capsys):
    from medmamba.cli.main import app
    from medmamba.images import write_label_map

    folder, _, _ = write_source_series(tmp_path / "series", AXES["oblique"])
    image = read_image(folder)
    labels = mask_of_two(image.grid.shape)
    write_label_map(tmp_path / "mask.nii.gz", labels, image.grid)
    arguments = ["dicom-seg", str(tmp_path / "mask.nii.gz"), str(folder), "-o", str(tmp_path / "seg.dcm")]
    with pytest.raises(ConfigError, match="the names of the labels are unknown"):
        app(arguments, standalone_mode=False)
    app([*arguments, "--label", "anterior=1", "--label", "posterior=7"], standalone_mode=False)
    assert "2 segments, read back equal" in capsys.readouterr().out
    numbers, _ = read_segmentation(tmp_path / "seg.dcm", image.grid)
    assert np.array_equal(np.array([0, 1, 7])[numbers], labels)


def test_a_segmentation_is_made_from_the_zip_of_a_study_and_a_mask_of_its_other_series_is_refused(tmp_path, capsys):
    from medmamba.cli.main import app
    from medmamba.images import write_label_map

    (tmp_path / "study").mkdir()
    folder, study, _ = write_source_series(tmp_path / "study" / "axial", AXES["axial"])
    _, other, _ = write_source_series(tmp_path / "study" / "oblique", AXES["oblique"])
    image = read_image(folder)
    write_label_map(tmp_path / "mask.nii.gz", mask_of_two(image.grid.shape), image.grid)
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "study")
    arguments = ["dicom-seg", str(tmp_path / "mask.nii.gz"), packed, "-o", str(tmp_path / "seg.dcm")]
    arguments += ["--label", "anterior=1", "--label", "posterior=7"]
    uids = {name: pydicom.dcmread(next((tmp_path / "study" / name).iterdir())) for name in ("axial", "oblique")}
    with pytest.raises(InputError, match=r"2 series .*Choose one with --series"):
        app(arguments, standalone_mode=False)
    with pytest.raises(InputError, match="Give the series that the mask was made from"):
        app([*arguments, "--series", uids["oblique"].SeriesInstanceUID], standalone_mode=False)
    assert not (tmp_path / "seg.dcm").exists()
    app([*arguments, "--series", uids["axial"].SeriesInstanceUID], standalone_mode=False)
    assert pydicom.dcmread(tmp_path / "seg.dcm").StudyInstanceUID == study != other


def test_a_real_series_takes_a_segmentation(shared_data, tmp_path):
    folder = shared_data / "hippocampus_dicom" / "series_a"
    image = read_image(folder)
    labels = (image.array[0] > 90).astype(np.int64)
    names = {"background": 0, "bright": 1}
    write_segmentation(tmp_path / "seg.dcm", labels, image.grid, folder, names, {"bright": SegmentCode()})
    numbers, _ = read_segmentation(tmp_path / "seg.dcm", image.grid)
    assert np.array_equal(numbers, labels)
    sources = series_in_order(folder, image.grid)
    written = pydicom.dcmread(tmp_path / "seg.dcm")
    assert written.FrameOfReferenceUID == sources[0].FrameOfReferenceUID
    assert written.StudyInstanceUID == sources[0].StudyInstanceUID


def test_the_api_writes_the_segmentation_of_the_series_it_predicted(shared_data, tmp_path):
    from medmamba.inference.prediction import Prediction, PredictionSettings, Provenance

    image = read_image(shared_data / "hippocampus_dicom" / "series_a")
    labels = (image.array[0] > 90).astype(np.uint8)
    settings = PredictionSettings(["2d"], {}, False, False, 0.5, {}, 1, "fp32", "none", 1)
    made = Provenance("0", "0", "D", "0", {}, settings, None, "cpu", {"background": 0, "bright": 1})
    result = Prediction(labels, image.grid, {"bright": 1.0}, {"bright": 1}, like=image, provenance=made)
    result.save_dicom_seg(tmp_path / "seg.dcm")
    assert np.array_equal(read_segmentation(tmp_path / "seg.dcm", image.grid)[0], labels)
    with pytest.raises(InputError, match="refers to the series"):
        Prediction(labels, image.grid, {}, {}, provenance=made).save_dicom_seg(tmp_path / "other.dcm")


def test_a_segmentation_replaces_no_file_unless_asked(tmp_path):
    from medmamba.dicom.segmentation import mask_to_segmentation

    (tmp_path / "own.dcm").write_bytes(b"an expert's own")
    with pytest.raises(InputError, match=r"own\.dcm: exists already"):
        mask_to_segmentation(tmp_path / "mask.nii.gz", tmp_path / "series", tmp_path / "own.dcm")
    with pytest.raises(InputError, match=r"report\.json: cannot be read \(No such file"):  # what comes next
        mask_to_segmentation(tmp_path / "mask.nii.gz", tmp_path / "series", tmp_path / "own.dcm", overwrite=True)
    assert (tmp_path / "own.dcm").read_bytes() == b"an expert's own"


def test_a_mask_of_a_series_of_unusual_spacing_becomes_a_segmentation(tmp_path):
    from medmamba.dicom.segmentation import mask_to_segmentation

    folder, _, _ = write_source_series(tmp_path / "series", AXES["axial"], PixelSpacing=[0.005, 0.005])
    grid = read_image(folder, ReadOptions(any_spacing=True)).grid
    labels = mask_of_two(grid.shape)
    write_label_map(tmp_path / "mask.nii.gz", labels, like=grid)
    mask_to_segmentation(tmp_path / "mask.nii.gz", folder, tmp_path / "seg.dcm", labels=VALUES)
    numbers, _ = read_segmentation(tmp_path / "seg.dcm", grid)
    assert np.array_equal(np.array([0, 1, 7])[numbers], labels)
