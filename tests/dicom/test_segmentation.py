"""DICOM SEG and RTSTRUCT: references, codes, frame of reference, and the same voxels when read again."""

from __future__ import annotations

import json
import shutil
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medmamba.errors import ConfigError, InputError, InputErrors

pytest.importorskip("highdicom", reason="needs the extra 'dicom'")
pydicom = pytest.importorskip("pydicom")

from medmamba.dicom.codes import SegmentCode, read_codes  # noqa: E402
from medmamba.dicom.contours import outlines_of, read_contours, write_contours  # noqa: E402
from medmamba.dicom.segmentation import read_segmentation, series_in_order, write_segmentation  # noqa: E402
from medmamba.geometry import Grid  # noqa: E402
from medmamba.images import read_image  # noqa: E402

VALUES = {"background": 0, "anterior": 1, "posterior": 7}
AXES = {
    "axial": np.eye(3),
    "oblique": np.array([[0.96, -0.28, 0.0], [0.28 * 0.8, 0.96 * 0.8, -0.6], [0.28 * 0.6, 0.96 * 0.6, 0.8]]).T,
}


def _series(folder, axes, reverse=False):
    """Twelve slices of 20 rows and 16 columns, in files whose names are not in the order of space."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

    folder.mkdir()
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    rng = np.random.default_rng(1)
    for n in range(12):
        slice_ = Dataset()
        slice_.file_meta = FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_.SOPClassUID = slice_.file_meta.MediaStorageSOPClassUID = MRImageStorage
        slice_.SOPInstanceUID = slice_.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        slice_.PatientID, slice_.PatientName, slice_.PatientBirthDate, slice_.PatientSex = "x", "A^B", "", ""
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID, slice_.FrameOfReferenceUID = study, series, frame
        slice_.StudyDate, slice_.StudyTime, slice_.AccessionNumber, slice_.StudyID = "20260101", "120000", "", ""
        slice_.ReferringPhysicianName, slice_.Modality, slice_.SeriesNumber, slice_.InstanceNumber = "", "MR", 4, n + 1
        slice_.Rows, slice_.Columns, slice_.SamplesPerPixel = 20, 16, 1
        slice_.PhotometricInterpretation, slice_.PixelRepresentation = "MONOCHROME2", 0
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit = 16, 16, 15
        slice_.PixelSpacing, slice_.SliceThickness = [0.75, 0.5], 2.0
        slice_.ImageOrientationPatient = [float(v) for v in (*axes[0], *axes[1])]
        normal = np.cross(axes[0], axes[1])
        slice_.ImagePositionPatient = [round(float(v), 6) for v in 2.0 * n * normal + [10, -20, 30]]
        slice_.PixelData = rng.integers(0, 1000, (20, 16), dtype=np.uint16).tobytes()
        slice_.save_as(folder / f"{(n * 5) % 12}.dcm", enforce_file_format=True)
    return folder, study, frame


def _mask(shape):
    labels = np.zeros(shape, dtype=np.int64)
    labels[3:7, 4:9, 2:6] = 1
    labels[8:12, 2:5, 4:8] = 7
    return labels


@pytest.mark.parametrize("axes", list(AXES))
def test_a_segmentation_is_read_back_equal_with_its_references(axes, tmp_path):
    folder, study, frame = _series(tmp_path / "series", AXES[axes])
    image = read_image(folder)
    labels = _mask(image.grid.shape)
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
    folder, _, _ = _series(tmp_path / "series", AXES["axial"])
    for path in folder.iterdir():
        slice_ = pydicom.dcmread(path)
        slice_.PatientName = "PHI_CANARY"
        slice_.save_as(path)
    image = read_image(folder)
    names = {name: SegmentCode() for name in VALUES if name != "background"}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        write_segmentation(tmp_path / "seg.dcm", _mask(image.grid.shape), image.grid, folder, VALUES, names)
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
    folder, _, _ = _series(tmp_path / "series", AXES["axial"])
    image = read_image(folder)
    table = {"anterior": {"property_type": ["12345", "SCT", "A part"], "colour": [255, 0, 0]}}
    (tmp_path / "labels.json").write_text(json.dumps(table))
    codes = read_codes(tmp_path / "labels.json", list(VALUES))
    write_segmentation(tmp_path / "seg.dcm", _mask(image.grid.shape), image.grid, folder, VALUES, codes)
    first, second = pydicom.dcmread(tmp_path / "seg.dcm").SegmentSequence
    assert first.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "A part"
    assert second.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"
    assert first.SegmentAlgorithmType == "AUTOMATIC"


def test_a_mask_of_another_series_is_refused(tmp_path):
    folder, _, _ = _series(tmp_path / "series", AXES["axial"])
    grid = read_image(folder).grid
    codes = {name: SegmentCode() for name in VALUES}
    for axis in (2, 0):  # through the slices, and within them
        moved = grid.affine.copy()
        moved[axis, 3] += 1.0
        with pytest.raises(InputError, match="its slices are not those of the mask"):
            write_segmentation(tmp_path / "s.dcm", _mask(grid.shape), Grid(grid.shape, moved), folder, VALUES, codes)
    (folder / "0.dcm").unlink()
    with pytest.raises(InputError, match="holds 11 DICOM images, the mask has 12 slices"):
        write_segmentation(tmp_path / "s.dcm", _mask(grid.shape), grid, folder, VALUES, codes)
    assert not (tmp_path / "s.dcm").exists()


def test_unknown_values_and_empty_masks_are_refused(tmp_path):
    folder, _, _ = _series(tmp_path / "series", AXES["axial"])
    grid = read_image(folder).grid
    codes = {name: SegmentCode() for name in VALUES}
    with pytest.raises(InputError, match="holds 3, which is not the value of any label"):
        write_segmentation(tmp_path / "s.dcm", np.full(grid.shape, 3), grid, folder, VALUES, codes)
    with pytest.raises(InputError, match="the mask is empty"):
        write_segmentation(tmp_path / "s.dcm", np.zeros(grid.shape, int), grid, folder, VALUES, codes)


def test_a_wrong_labels_file_gives_all_its_errors(tmp_path):
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({"a": {"colour": [300, 0, 0], "color": 1}}))
    with pytest.raises(InputErrors) as caught:
        read_codes(path, ["a"])
    assert "a.colour[0]" in str(caught.value)
    assert "a.color" in str(caught.value)
    path.write_text(json.dumps({"antrior": {}}))
    with pytest.raises(ConfigError, match="Did you mean 'anterior'"):
        read_codes(path, ["anterior"])


def test_the_command_turns_a_mask_file_into_a_segmentation(tmp_path, capsys):
    from medmamba.cli.main import app
    from medmamba.images import write_label_map

    folder, _, _ = _series(tmp_path / "series", AXES["oblique"])
    image = read_image(folder)
    labels = _mask(image.grid.shape)
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
    folder, study, _ = _series(tmp_path / "study" / "axial", AXES["axial"])
    _, other, _ = _series(tmp_path / "study" / "oblique", AXES["oblique"])
    image = read_image(folder)
    write_label_map(tmp_path / "mask.nii.gz", _mask(image.grid.shape), image.grid)
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


@pytest.mark.parametrize("axes", list(AXES))
def test_contours_enclose_the_voxels_they_were_drawn_from_and_refer_to_the_series(axes, tmp_path):
    folder, study, frame = _series(tmp_path / "series", AXES[axes])
    for path in folder.iterdir():
        source = pydicom.dcmread(path)
        source.SpecificCharacterSet, source.PatientName = "ISO_IR 100", "Müller^Jörg"
        source.save_as(path)
    image = read_image(folder)
    labels = _mask(image.grid.shape)
    labels[4:6, 6, 3] = 0  # a hole, and at the border of the image a voxel of its own
    labels[15, 19, 11] = 7
    codes = {name: SegmentCode(colour=(9, 8, 7)) for name in VALUES}
    write_contours(tmp_path / "rt.dcm", labels, image.grid, folder, VALUES, codes)
    numbers, names = read_contours(tmp_path / "rt.dcm", image.grid)
    assert names == ["anterior", "posterior"]
    assert np.array_equal(np.array([0, 1, 7])[numbers], labels)
    written = pydicom.dcmread(tmp_path / "rt.dcm")
    assert (written.StudyInstanceUID, written.Modality, written.PatientName) == (study, "RTSTRUCT", "Müller^Jörg")
    assert written.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID == frame
    assert all(roi.ReferencedFrameOfReferenceUID == frame for roi in written.StructureSetROISequence)
    first, second = written.ROIContourSequence
    assert {contour.ContourGeometricType for contour in first.ContourSequence} == {"CLOSEDPLANAR_XOR"}
    assert {contour.ContourGeometricType for contour in second.ContourSequence} == {"CLOSED_PLANAR"}
    assert list(first.ROIDisplayColor) == [9, 8, 7]
    slices = series_in_order(folder, image.grid)
    for contour in first.ContourSequence:  # each lies in the plane of the slice that it refers to
        (source,) = [s for s in slices if s.SOPInstanceUID == contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
        points = np.array(contour.ContourData, float).reshape(-1, 3) - np.array(source.ImagePositionPatient, float)
        assert np.abs(points @ np.cross(AXES[axes][0], AXES[axes][1])).max() < 1e-3


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.9))
def test_outlines_of_any_slice_enclose_exactly_its_voxels(seed, share):
    from matplotlib.path import Path as Outline

    mask = np.random.default_rng(seed).random((9, 7)) < share
    found = np.zeros(mask.shape, bool)
    centres = np.indices(mask.shape).reshape(2, -1).T
    for line in outlines_of(mask):
        found ^= Outline(line).contains_points(centres).reshape(mask.shape)
    assert np.array_equal(found, mask)


def test_a_segmentation_replaces_no_file_unless_asked(tmp_path):
    from medmamba.dicom.segmentation import mask_to_segmentation

    (tmp_path / "own.dcm").write_bytes(b"an expert's own")
    with pytest.raises(InputError, match=r"own\.dcm: exists already"):
        mask_to_segmentation(tmp_path / "mask.nii.gz", tmp_path / "series", tmp_path / "own.dcm")
    with pytest.raises(InputError, match=r"report\.json: cannot be read \(No such file"):  # what comes next
        mask_to_segmentation(tmp_path / "mask.nii.gz", tmp_path / "series", tmp_path / "own.dcm", overwrite=True)
    assert (tmp_path / "own.dcm").read_bytes() == b"an expert's own"
