"""RTSTRUCT: closed contours that two readers which are not ours find to be the mask, references, names and colours."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib.path import Path as Outline
from segmentable_series import AXES, VALUES, mask_of_two, valid, write_source_series
from skimage.draw import polygon as polygon_voxels

from medmamba.errors import InputError

pytest.importorskip("highdicom", reason="needs the extra 'dicom'")
pydicom = pytest.importorskip("pydicom")

from medmamba.dicom import contours as module  # noqa: E402
from medmamba.dicom.codes import SegmentCode  # noqa: E402
from medmamba.dicom.contours import read_contours, write_contours  # noqa: E402
from medmamba.dicom.segmentation import series_in_order  # noqa: E402
from medmamba.images import read_image  # noqa: E402
from medmamba.version import __version__  # noqa: E402

CODES = {name: SegmentCode() for name in VALUES}


def ragged_mask(shape):
    """Two touching labels: islands that touch at corners, holes, an island within a hole, voxels at the border."""
    labels = mask_of_two(shape)
    labels[4:6, 6] = np.where(labels[4:6, 6] == 1, 0, labels[4:6, 6])  # a hole of two voxels
    labels[15, 19], labels[0, 0] = 7, 1
    labels[9:16, 9:18] = 1
    labels[11:14, 11:16] = 0
    labels[12, 13], labels[12, 14] = 7, 1
    labels[7, 9] = labels[8, 8] = 1
    labels[:, :, ::2] = np.where(np.random.default_rng(0).random(labels[:, :, ::2].shape) < 0.3, 7, labels[:, :, ::2])
    return labels


def itk_and_matplotlib(path, folder):
    """The structures' masks by name, read with the geometry of ITK and the even-odd rule of matplotlib."""
    files = sorted(folder.iterdir(), key=lambda file: pydicom.dcmread(file).InstanceNumber)
    image = sitk.ReadImage([str(file) for file in files])
    columns, rows, count = image.GetSize()
    centres = np.indices((columns, rows)).reshape(2, -1).T
    found = {}
    for name, contours in contours_of(path):
        found[name] = np.zeros((columns, rows, count), int)
        for points in contours:
            voxels = np.array([image.TransformPhysicalPointToContinuousIndex(point) for point in points.tolist()])
            inside = Outline(voxels[:, :2]).contains_points(centres).reshape(columns, rows)
            found[name][:, :, round(voxels[0, 2])] += inside
    return found


def tags_and_scikit_image(path, folder):
    """The same with the tags of the slice that each contour refers to, and scikit-image's drawing of polygons."""
    sources = sorted((pydicom.dcmread(file) for file in folder.iterdir()), key=lambda source: source.InstanceNumber)
    numbers = {source.SOPInstanceUID: k for k, source in enumerate(sources)}
    shape = (sources[0].Columns, sources[0].Rows)
    found = {}
    for name, items in contours_of(path, whole=True):
        found[name] = np.zeros((*shape, len(sources)), int)
        for item in items:
            k = numbers[item.ContourImageSequence[0].ReferencedSOPInstanceUID]
            row, column = np.array(sources[k].ImageOrientationPatient, float).reshape(2, 3)
            away = np.array(item.ContourData, float).reshape(-1, 3) - np.array(sources[k].ImagePositionPatient, float)
            assert np.abs(away @ np.cross(row, column)).max() < 1e-3  # in the plane of its slice
            height, width = map(float, sources[k].PixelSpacing)
            found[name][(*polygon_voxels(away @ row / width, away @ column / height, shape), k)] += 1
    return found


def contours_of(path, whole=False):
    rt = pydicom.dcmread(path)
    names = {roi.ROINumber: roi.ROIName for roi in rt.StructureSetROISequence}
    for roi in rt.ROIContourSequence:
        items = getattr(roi, "ContourSequence", [])
        assert {item.ContourGeometricType for item in items} <= {"CLOSED_PLANAR"}
        assert all(3 * item.NumberOfContourPoints == len(item.ContourData) for item in items)
        points = [np.array(item.ContourData, float).reshape(-1, 3) for item in items]
        yield names[roi.ReferencedROINumber], items if whole else points


@pytest.mark.parametrize(("axes", "count"), [("axial", 12), ("oblique", 12), ("oblique", 1)])
def test_two_other_readers_find_exactly_the_mask(axes, count, tmp_path):
    folder, _, _ = write_source_series(tmp_path / "series", AXES[axes], count)
    image = read_image(folder)
    labels = ragged_mask((*image.grid.shape[:2], 12))[:, :, :count]
    write_contours(tmp_path / "rt.dcm", labels, image.grid, folder, VALUES, CODES)
    numbers, names = read_contours(tmp_path / "rt.dcm", image.grid)
    assert names == ["anterior", "posterior"]
    assert np.array_equal(np.array([0, 1, 7])[numbers], labels)
    for read in (itk_and_matplotlib, tags_and_scikit_image):
        found = read(tmp_path / "rt.dcm", folder)
        for name in names:
            assert np.array_equal(found[name], labels == VALUES[name]), (read.__name__, name)
    assert valid(tmp_path / "rt.dcm")


def test_contours_lie_in_the_slices_they_refer_to_where_these_are_unevenly_spaced(tmp_path):
    folder, _, _ = write_source_series(tmp_path / "series", AXES["axial"])
    for path in folder.iterdir():
        source = pydicom.dcmread(path)
        source.ImagePositionPatient[2] += 0.03 * min(source.InstanceNumber, 12 - source.InstanceNumber)
        source.save_as(path)
    image = read_image(folder)
    labels = mask_of_two(image.grid.shape)
    write_contours(tmp_path / "rt.dcm", labels, image.grid, folder, VALUES, CODES)
    found = tags_and_scikit_image(tmp_path / "rt.dcm", folder)
    assert all(np.array_equal(found[name], labels == VALUES[name]) for name in found)


def test_references_patient_and_study_are_those_of_the_series(tmp_path):
    texts = {"PatientName": "Müller^Jörg", "StudyDescription": "Schädel", "PositionReferenceIndicator": "SN"}
    folder, study, frame = write_source_series(
        tmp_path / "series", AXES["oblique"], SpecificCharacterSet="ISO_IR 100", **texts
    )
    image = read_image(folder)
    codes = {**CODES, "anterior": SegmentCode(colour=(9, 8, 7))}
    write_contours(tmp_path / "rt.dcm", mask_of_two(image.grid.shape), image.grid, folder, VALUES, codes)
    written = pydicom.dcmread(tmp_path / "rt.dcm")
    assert (written.StudyInstanceUID, written.Modality, written.SoftwareVersions) == (study, "RTSTRUCT", __version__)
    assert {name: written[name].value for name in texts} == texts
    assert written.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID == frame
    assert all(roi.ReferencedFrameOfReferenceUID == frame for roi in written.StructureSetROISequence)
    assert [list(roi.ROIDisplayColor) for roi in written.ROIContourSequence] == [[9, 8, 7], [100, 143, 255]]
    slices = series_in_order(folder, image.grid)
    referred = {
        contour.ContourImageSequence[0].ReferencedSOPInstanceUID
        for roi in written.ROIContourSequence
        for contour in roi.ContourSequence
    }
    assert referred == {slices[k].SOPInstanceUID for k in range(2, 8)}
    assert valid(tmp_path / "rt.dcm")


def test_a_series_without_the_indicator_gets_an_empty_one(tmp_path):
    folder, _, _ = write_source_series(tmp_path / "series", AXES["axial"])
    image = read_image(folder)
    write_contours(tmp_path / "rt.dcm", mask_of_two(image.grid.shape), image.grid, folder, VALUES, CODES)
    written = pydicom.dcmread(tmp_path / "rt.dcm")
    assert written.PositionReferenceIndicator is None or written.PositionReferenceIndicator == ""
    assert "PositionReferenceIndicator" in written
    assert "StudyDescription" not in written


def test_an_empty_mask_gives_structures_without_contours(tmp_path):
    folder, _, _ = write_source_series(tmp_path / "series", AXES["axial"])
    grid = read_image(folder).grid
    write_contours(tmp_path / "rt.dcm", np.zeros(grid.shape, int), grid, folder, VALUES, CODES)
    written = pydicom.dcmread(tmp_path / "rt.dcm")
    assert [roi.ROIName for roi in written.StructureSetROISequence] == ["anterior", "posterior"]
    assert not any("ContourSequence" in roi for roi in written.ROIContourSequence)
    assert not read_contours(tmp_path / "rt.dcm", grid)[0].any()
    assert valid(tmp_path / "rt.dcm")


def test_the_points_of_one_contour_fit_into_explicit_vr(tmp_path, monkeypatch):
    folder, _, _ = write_source_series(tmp_path / "series", AXES["axial"])
    grid = read_image(folder).grid
    labels = (np.random.default_rng(0).random(grid.shape) < 0.7).astype(int)
    monkeypatch.setattr(module, "MOST_TEXT", 1000)
    write_contours(tmp_path / "rt.dcm", labels, grid, folder, VALUES, CODES)
    rt = pydicom.dcmread(tmp_path / "rt.dcm")
    lengths = [len(item.get_item(0x3006_0050).value) for item in rt.ROIContourSequence[0].ContourSequence]
    assert 500 < max(lengths) <= 1000
    assert np.array_equal(itk_and_matplotlib(tmp_path / "rt.dcm", folder)["anterior"], labels)


def test_a_mask_of_too_many_points_is_refused_before_it_is_drawn(tmp_path, monkeypatch):
    folder, _, _ = write_source_series(tmp_path / "series", AXES["axial"])
    grid = read_image(folder).grid
    monkeypatch.setattr(module, "MOST_POINTS", 31)
    with pytest.raises(InputError, match=r"contours of 32 points, where 31 are the most\. Use DICOM SEG\."):
        write_contours(tmp_path / "rt.dcm", mask_of_two(grid.shape), grid, folder, VALUES, CODES)
    assert not (tmp_path / "rt.dcm").exists()


def test_images_too_far_from_the_origin_for_dicom_numbers_are_refused(tmp_path):
    folder, _, _ = write_source_series(tmp_path / "series", AXES["axial"], 1, ImagePositionPatient=[1e12, 0, 0])
    grid = read_image(folder).grid
    with pytest.raises(InputError, match="from the origin, too far for DICOM numbers"):
        write_contours(tmp_path / "rt.dcm", np.ones(grid.shape, int), grid, folder, VALUES, CODES)
