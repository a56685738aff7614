"""A label map on the grid of a DICOM series as one RTSTRUCT: closed contours, slice by slice, and back.

Contours run half way between the voxels inside and outside, so that the voxel centres they enclose are the mask again.
A label with holes is written as CLOSEDPLANAR_XOR, any other as CLOSED_PLANAR.

Source: DICOM PS3.3 A.19 (RT Structure Set IOD), C.8.8.5, C.8.8.6 and C.8.8.8.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medmamba.dicom.codes import SegmentCode
from medmamba.dicom.segmentation import ALGORITHM, MAY_BE_EMPTY, RAS_TO_LPS, numbered, series_in_order, series_number
from medmamba.disk.atomic import write_atomically
from medmamba.errors import InputError
from medmamba.geometry import Affine, Grid

STUDY_COMPONENT = "1.2.840.10008.3.1.2.3.1"
Polygon = npt.NDArray[np.float64]
"""(N, 2): voxel coordinates i, j; the last point is joined to the first."""


def write_contours(
    path: Path | str,
    labels: npt.NDArray[Any],
    grid: Grid,
    series: Path | str,
    values: Mapping[str, int],
    codes: Mapping[str, SegmentCode],
) -> None:
    """Write labels (i, j, k) on ``grid`` as the RTSTRUCT of the series in the folder ``series``.

    Arguments and errors are those of :func:`medmamba.dicom.segmentation.write_segmentation`.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage, generate_uid

    sources = series_in_order(series, grid)
    assert grid.affine is not None
    numbers, names = numbered(labels, values, series)
    now, first = datetime.now(), sources[0]
    rt = Dataset()
    rt.SpecificCharacterSet = "ISO_IR 192"
    for tag in (*MAY_BE_EMPTY, "StudyInstanceUID", "FrameOfReferenceUID"):
        setattr(rt, tag, getattr(first, tag))
    rt.file_meta = FileMetaDataset()
    rt.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian  # explicit VR holds no more than 64 KiB of points
    rt.SOPClassUID = rt.file_meta.MediaStorageSOPClassUID = RTStructureSetStorage
    rt.SOPInstanceUID = rt.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    rt.Modality, rt.SeriesInstanceUID, rt.SeriesNumber = "RTSTRUCT", generate_uid(), series_number(sources) + 1
    rt.Manufacturer, rt.OperatorsName, rt.ApprovalStatus = ALGORITHM, "", "UNAPPROVED"
    rt.StructureSetLabel, rt.SeriesDescription = ALGORITHM.upper(), f"Contours by {ALGORITHM}"
    rt.StructureSetDate, rt.StructureSetTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    images = [_reference(source.SOPClassUID, source.SOPInstanceUID) for source in sources]
    of_study = _reference(STUDY_COMPONENT, first.StudyInstanceUID)
    of_series = _item(SeriesInstanceUID=first.SeriesInstanceUID, ContourImageSequence=images)
    of_study.RTReferencedSeriesSequence = [of_series]
    frame = first.FrameOfReferenceUID
    rt.ReferencedFrameOfReferenceSequence = [_item(FrameOfReferenceUID=frame, RTReferencedStudySequence=[of_study])]
    rt.StructureSetROISequence, rt.ROIContourSequence, rt.RTROIObservationsSequence = [], [], []
    for number, name in enumerate(names, start=1):
        code = codes[name]
        roi = _item(ROINumber=number, ROIName=name[:64], ROIGenerationAlgorithm="AUTOMATIC")
        roi.ReferencedFrameOfReferenceUID = frame
        drawn = _item(ReferencedROINumber=number)
        if contours := _contours(numbers == number, grid.affine, images):
            drawn.ContourSequence = contours
        if code.colour is not None:
            drawn.ROIDisplayColor = list(code.colour)
        seen = _item(ObservationNumber=number, ReferencedROINumber=number, RTROIInterpretedType="", ROIInterpreter="")
        value, scheme, meaning = code.property_type
        identified = _item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)
        seen.RTROIIdentificationCodeSequence = [identified]
        rt.StructureSetROISequence.append(roi)
        rt.ROIContourSequence.append(drawn)
        rt.RTROIObservationsSequence.append(seen)

    def equal_to_mask(written: Path) -> None:
        if not np.array_equal(read_contours(written, grid)[0], numbers):
            raise OSError("the written contours do not enclose the mask")

    with write_atomically(path, verify=equal_to_mask) as file:
        rt.save_as(file, enforce_file_format=True)


def read_contours(path: Path | str, grid: Grid) -> tuple[npt.NDArray[np.uint8], list[str]]:
    """ROI numbers (i, j, k) of the voxels of ``grid`` whose centres the contours enclose, and the ROIs' names.

    Of overlapping ROIs the last one counts. Raises InputError for points between the slices.
    """
    import pydicom
    from matplotlib.path import Path as Outline

    rt = pydicom.dcmread(path)
    assert grid.affine is not None
    names = {int(roi.ROINumber): str(roi.ROIName) for roi in rt.StructureSetROISequence}
    numbers = np.zeros(grid.shape, np.uint8)
    centres = np.indices(grid.shape[:2]).reshape(2, -1).T
    to_voxel = np.linalg.inv(RAS_TO_LPS @ grid.affine)
    for roi in rt.ROIContourSequence:
        inside = np.zeros(grid.shape, bool)
        for contour in getattr(roi, "ContourSequence", []):
            points = np.asarray(contour.ContourData, np.float64).reshape(-1, 3) @ to_voxel[:3, :3].T + to_voxel[:3, 3]
            k = round(float(points[0, 2]))
            if np.abs(points[:, 2] - k).max() > 0.05 or not 0 <= k < grid.shape[2]:
                raise InputError(f"{path}: a contour does not lie on a slice of the series.")
            # even-odd: contours of one label do not cross, and one inside another is a hole
            inside[:, :, k] ^= Outline(points[:, :2]).contains_points(centres).reshape(grid.shape[:2])
        numbers[inside] = int(roi.ReferencedROINumber)
    return numbers, [names[number] for number in sorted(names)]


def outlines_of(mask: npt.NDArray[np.bool_]) -> list[Polygon]:
    """The closed outlines of a slice (i, j), those of holes turning the other way round."""
    from contourpy import contour_generator

    if not mask.any():
        return []
    lines = contour_generator(z=np.pad(mask.T, 1).astype(np.float64)).lines(0.5)
    return [np.asarray(line, np.float64)[:-1] - 1 for line in lines]


def _contours(mask: npt.NDArray[np.bool_], affine: Affine, images: Sequence[Any]) -> list[Any]:
    """The contours of one label (i, j, k); ``images`` refer to the slices."""
    outlines = [(k, line) for k in range(mask.shape[2]) for line in outlines_of(mask[:, :, k])]
    holes = any(_area(line) < 0 for _, line in outlines)
    to_lps = RAS_TO_LPS @ affine
    contours = []
    for k, line in outlines:
        points = np.column_stack([line, np.full(len(line), k)]) @ to_lps[:3, :3].T + to_lps[:3, 3]
        contour = _item(ContourImageSequence=[images[k]], NumberOfContourPoints=len(line))
        contour.ContourGeometricType = "CLOSEDPLANAR_XOR" if holes else "CLOSED_PLANAR"
        contour.ContourData = [f"{value:.4f}" for value in points.ravel()]
        contours.append(contour)
    return contours


def _area(line: Polygon) -> float:
    x, y = line.T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def _reference(sop_class: str, sop_instance: str) -> Any:
    return _item(ReferencedSOPClassUID=sop_class, ReferencedSOPInstanceUID=sop_instance)


def _item(**values: Any) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    return item
