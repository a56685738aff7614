"""Enhanced multi-frame files: read as the slices they were made of, phase by phase, or refused by name."""

from __future__ import annotations

import shutil
import zipfile

import highdicom
import numpy as np
import pydicom
import pytest
from dicom_series import changed, write_enhanced, write_object, write_series

from medmamba.dicom.codes import read_codes
from medmamba.dicom.contours import read_contours, write_contours
from medmamba.dicom.segmentation import read_segmentation, write_segmentation
from medmamba.dicom.study import one_series, opened, series_below
from medmamba.errors import InputError
from medmamba.images import read_image
from medmamba.images.cases import find_cases

SHARED = ("PixelMeasuresSequence", "PlaneOrientationSequence", "PixelValueTransformationSequence")


@pytest.fixture
def volume():
    return np.random.default_rng(0).integers(0, 1000, (5, 6, 7)).astype(np.int16)


@pytest.fixture
def scan(tmp_path, volume):
    return write_enhanced(tmp_path / "in" / "scan.dcm", volume, shared=SHARED)


def refused(path):
    with pytest.raises(InputError) as caught:
        read_image(path)
    message = str(caught.value).replace(f"{path.parent}/", "")
    assert "\n" not in message
    assert "CANARY" not in message
    return message


@pytest.mark.parametrize("shared", [(), SHARED])
def test_a_multi_frame_file_is_the_volume_of_its_slices(tmp_path, volume, shared):
    path = write_enhanced(tmp_path / "m" / "scan.dcm", volume, shared=shared)
    slices = read_image(write_series(tmp_path / "s", volume))
    for source in (path, path.parent):
        image = read_image(source)
        np.testing.assert_array_equal(image.array, slices.array)
        np.testing.assert_allclose(image.grid.affine, slices.grid.affine, atol=1e-9)
        assert image.warnings == ()


@pytest.mark.parametrize("sop_class", ["2.1", "2.2", "4.1", "4.4", "128.1", "130"])
@pytest.mark.parametrize("name", ["scan.dcm", "SCAN.DCM", "IM_0001", "1.2.840.7"])
def test_a_multi_frame_file_is_one_case_whatever_its_name(tmp_path, volume, sop_class, name):
    path = write_enhanced(tmp_path / name, volume, sop_class)
    (case,) = find_cases(path)
    assert case.output_name == f"{name.removesuffix('.dcm').removesuffix('.DCM')}.nii.gz"
    np.testing.assert_array_equal(read_image(case.paths[0]).array[0], volume.T)


def test_every_frame_is_rescaled_by_its_own_values(tmp_path, volume):
    path = write_enhanced(tmp_path / "scan.dcm", volume)
    found = pydicom.dcmread(path)
    for number, frame in enumerate(found.PerFrameFunctionalGroupsSequence):
        (values,) = frame.PixelValueTransformationSequence
        values.RescaleSlope, values.RescaleIntercept = 1 + number, -10 * number
    found.save_as(path)
    number = np.arange(5)[::-1]  # frames are stored from the last slice to the first
    np.testing.assert_array_equal(read_image(path).array[0], volume.T * (1.0 + number) - 10 * number)


@pytest.mark.parametrize(
    "syntax",
    [
        "RLELossless",
        "JPEGLSLossless",
        "ImplicitVRLittleEndian",
        "ExplicitVRBigEndian",
        "DeflatedExplicitVRLittleEndian",
    ],
)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_frames_of_any_transfer_syntax_have_their_stored_values(tmp_path, syntax, photometric):
    volume = np.random.default_rng(0).integers(0, 4096, (3, 40, 35)).astype(np.uint16)
    bits = {"BitsStored": 12, "HighBit": 11, "PhotometricInterpretation": photometric}
    packed = getattr(pydicom.uid, syntax).is_compressed
    stored = "ExplicitVRLittleEndian" if packed else syntax
    path = write_enhanced(tmp_path / "scan.dcm", volume, syntax=stored, **bits)
    if packed:
        found = pydicom.dcmread(path)
        found.compress(getattr(pydicom.uid, syntax), generate_instance_uid=False)
        found.save_as(path)
    np.testing.assert_array_equal(read_image(path).array[0], volume.T)


def test_phases_of_a_file_are_parts_and_one_is_chosen(tmp_path, volume):
    phases = np.stack([volume, volume + 1, volume + 2])
    path = write_enhanced(tmp_path / "cine" / "IM1", phases)
    assert "frame 5 of IM1 and frame 10 of IM1 are at the same place" in refused(path)
    (series,) = series_below(path)[0]
    assert [[piece.frame for piece in part] for part in series.parts] == [
        [*range(1, 6)], [*range(6, 11)], [*range(11, 16)]
    ]  # fmt: skip
    with zipfile.ZipFile(tmp_path / "cine.zip", "w") as packed:
        packed.write(path, "deep/IM1")
    for source in (path, path.parent, tmp_path / "cine.zip"):
        for phase in range(3):
            with opened(source, f"8:{phase + 1}") as folder:
                np.testing.assert_array_equal(read_image(folder).array[0], volume.T + phase)
                assert "ignored: 10 frame of another part (frame " in read_image(folder).warnings[0]


def test_a_phase_without_a_frame_is_told_and_the_others_are_read(tmp_path, volume):
    path = write_enhanced(tmp_path / "IM1", np.stack([volume, volume + 1]))
    found = pydicom.dcmread(path)
    del found.PerFrameFunctionalGroupsSequence[7]  # slice 2 of phase 2
    found.NumberOfFrames, found.PixelData = 9, found.PixelData[: 7 * 84] + found.PixelData[8 * 84 :]
    found.save_as(path)
    with one_series(path, "8:1") as folder:
        np.testing.assert_array_equal(read_image(folder).array[0], volume.T)
    with (
        pytest.raises(InputError, match=r"a slice is missing: 4 mm between frame 8 of IM1 and frame 7"),
        one_series(path, "8:2") as folder,
    ):
        read_image(folder)


def frames_changed(path, group, at, **values):
    found = pydicom.dcmread(path)
    for number in at:
        frame = found.PerFrameFunctionalGroupsSequence[number]
        for name, value in values.items():
            setattr(getattr(frame, group)[0], name, value)
    found.save_as(path)


def test_frames_that_are_no_volume_are_named(tmp_path, volume):
    def changed_frames(group, at, **values):
        path = write_enhanced(tmp_path / "scan.dcm", volume)
        frames_changed(path, group, at, **values)
        return refused(path)

    position = "PlanePositionSequence"
    said = changed_frames(position, [2], ImagePositionPatient=[10, -20, 35])
    assert "slices are unevenly spaced: 3 mm between frame 2 of scan.dcm and frame 1 of scan.dcm" in said or (
        "unevenly spaced" in said
    )
    assert "frame 1 of scan.dcm and frame 2 of scan.dcm are at the same place" in changed_frames(
        position, [0], ImagePositionPatient=[10, -20, 36]
    )
    assert "scan.dcm, frame 3: its Image Position is ''" in changed_frames(position, [2], ImagePositionPatient=None)
    said = changed_frames("PlaneOrientationSequence", [4], ImageOrientationPatient=[1, 0, 0, 0, 0, 1])
    assert "slices of different orientation: frame 1 of scan.dcm and frame 5 of scan.dcm" in said
    said = changed_frames("PixelMeasuresSequence", [4], PixelSpacing=[1, 1])
    assert "slices of different pixel spacing: frame 1 of scan.dcm and frame 5 of scan.dcm" in said
    path = write_enhanced(tmp_path / "scan.dcm", volume)
    for number in range(5):
        frames_changed(path, position, [number], ImagePositionPatient=[10, -20 + number, 30 - 2 * number])
    assert "tilted gantry" in refused(path)


def test_concatenations_and_wrong_numbers_of_frames_are_refused(tmp_path, volume, scan):
    changed(scan, ConcatenationUID="1.2.5", InConcatenationNumber=1)
    assert "scan.dcm: a part of a concatenation" in refused(scan)
    path = write_enhanced(tmp_path / "b.dcm", volume, NumberOfFrames=4)
    assert "b.dcm: 5 descriptions of frames for 4 frames" in refused(path)
    path = write_enhanced(tmp_path / "c.dcm", volume, PerFrameFunctionalGroupsSequence=[])
    assert "c.dcm: 0 descriptions of frames for 5 frames" in refused(path)
    path = write_enhanced(tmp_path / "d.dcm", volume, NumberOfFrames=2**31 - 1)
    assert "d.dcm: cut off or damaged" in refused(path)


@pytest.mark.parametrize(
    ("sop_class", "kind"),
    [("3.1", "ultrasound"), ("7.2", "secondary capture"), ("12.1", "angiography"), ("4", "image")],
)
def test_multi_frame_files_of_other_kinds_are_refused_by_name(tmp_path, volume, sop_class, kind):
    place = {"ImagePositionPatient": [0, 0, 0], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [1, 1]}
    path = write_enhanced(tmp_path / "loop.dcm", volume, sop_class, **place)
    assert f"loop.dcm: DICOM multi-frame {kind}, which is not read as an image" in refused(path)
    (tmp_path / "f").mkdir()
    path = path.rename(tmp_path / "f" / "loop.dcm")
    assert f"no DICOM slices in this folder (ignored: 1 multi-frame {kind} (loop.dcm))" in refused(tmp_path / "f")
    write_series(tmp_path / "f", volume, series="1.2.6")
    image = read_image(tmp_path / "f")
    np.testing.assert_array_equal(image.array[0], volume.T)
    assert f"ignored: 1 multi-frame {kind} (loop.dcm)" in image.warnings[0]


def test_other_files_given_as_an_image_are_refused_by_name(tmp_path, volume):
    slices = write_series(tmp_path / "s", volume)
    assert "0.dcm: one slice of a DICOM series. Give the folder" in refused(slices / "0.dcm")
    shutil.copy(slices / "0.dcm", tmp_path / "IM0")
    assert "IM0: one slice of a DICOM series. Give the folder" in refused(tmp_path / "IM0")
    write_object(tmp_path / "rs.dcm", "5.1.4.1.1.481.3")
    assert "rs.dcm: DICOM RTSTRUCT, which is not read as an image" in refused(tmp_path / "rs.dcm")
    (tmp_path / "x.dcm").write_text("no")
    assert "x.dcm: the name says DICOM, the content does not" in refused(tmp_path / "x.dcm")


def test_many_files_of_one_frame_each_are_one_volume(tmp_path, volume):
    for k in range(5):
        path = write_enhanced(tmp_path / "s" / f"{k}.dcm", volume[k : k + 1], SOPInstanceUID=f"1.2.3.{k}")
        frames_changed(path, "PlanePositionSequence", [0], ImagePositionPatient=[10, -20, 30 + 2 * k])
    image = read_image(tmp_path / "s")
    np.testing.assert_array_equal(image.array[0], volume.T)


def test_a_copy_of_a_multi_frame_file_is_ignored(scan, volume):
    shutil.copy(scan, scan.parent / "again.dcm")
    image = read_image(scan.parent)
    np.testing.assert_array_equal(image.array[0], volume.T)
    assert "1 identical copy (scan.dcm)" in image.warnings[0]


def test_dicom_outputs_refer_to_the_frames_of_their_phase(tmp_path):
    volume = np.random.default_rng(0).integers(0, 1000, (5, 16, 17)).astype(np.int16)
    path = write_enhanced(tmp_path / "scan.dcm", np.stack([volume, volume + 1]), shared=SHARED)
    labels = np.zeros((17, 16, 5), np.uint8)
    labels[3:9, 4:9, 1:4], labels[10:13, 4:9, 2] = 1, 2
    values = {"background": 0, "a": 1, "b": 2}
    with one_series(path, "8:2") as folder:
        grid = read_image(folder).grid
        for write, name in ((write_segmentation, "seg.dcm"), (write_contours, "rt.dcm")):
            write(tmp_path / name, labels, grid, folder, values, read_codes(None, ["a", "b"]))
    np.testing.assert_array_equal(read_segmentation(tmp_path / "seg.dcm", grid)[0], labels)
    np.testing.assert_array_equal(read_contours(tmp_path / "rt.dcm", grid)[0], labels)
    source = pydicom.dcmread(path)

    def place_of(reference):
        assert (reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID) == (
            source.SOPClassUID,
            source.SOPInstanceUID,
        )
        frame = source.PerFrameFunctionalGroupsSequence[reference.ReferencedFrameNumber - 1]
        assert frame.FrameContentSequence[0].TemporalPositionIndex == 2
        return list(frame.PlanePositionSequence[0].ImagePositionPatient)

    seg, contours = pydicom.dcmread(tmp_path / "seg.dcm"), pydicom.dcmread(tmp_path / "rt.dcm")
    frames = seg.PerFrameFunctionalGroupsSequence
    assert len(frames) == 4
    for frame in frames:
        (reference,) = frame.DerivationImageSequence[0].SourceImageSequence
        assert place_of(reference) == list(frame.PlanePositionSequence[0].ImagePositionPatient)
    (image,) = seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert (image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID) == (source.SOPClassUID, source.SOPInstanceUID)
    for roi in contours.ROIContourSequence:
        for contour in roi.ContourSequence:
            (reference,) = contour.ContourImageSequence
            assert place_of(reference)[2] == contour.ContourData[2]
    (of_study,) = contours.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence
    (image,) = of_study.RTReferencedSeriesSequence[0].ContourImageSequence
    assert image.ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert "ReferencedFrameNumber" not in image


def test_a_legacy_converted_series_is_the_series(shared_data, tmp_path):
    folder = shared_data / "hippocampus_dicom" / "series_a"
    slices = [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"), reverse=True)]
    converted = highdicom.legacy.LegacyConvertedEnhancedMRImage(
        slices,
        series_instance_uid="1.2.3",
        series_number=9,
        sop_instance_uid="1.2.3.4",
        instance_number=1,
    )
    converted.save_as(tmp_path / "converted.dcm")
    image, original = read_image(tmp_path / "converted.dcm"), read_image(folder)
    np.testing.assert_array_equal(image.array, original.array)
    np.testing.assert_array_equal(image.grid.affine, original.grid.affine)
