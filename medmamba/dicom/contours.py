"""A label map on the grid of a DICOM series as one RTSTRUCT: closed contours, slice by slice, and back.

Every contour is CLOSED_PLANAR, with its holes joined to it (``outlines.py``): many readers do not know
CLOSEDPLANAR_XOR and leave out whole structures.

Source: DICOM PS3.3 A.19 (RT Structure Set IOD), C.8.8.5, C.8.8.6 and C.8.8.8.
"""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medmamba.dicom.codes import SegmentCode, colour_of
from medmamba.dicom.outlines import INSET, corners_of, filled, outlines_of
from medmamba.dicom.segmentation import (
    ALGORITHM,
    KEPT,
    MAY_BE_EMPTY,
    RAS_TO_LPS,
    numbered,
    series_in_order,
    series_number,
    texts_of,
)
from medmamba.dicom.source_images import refer_to_frames
from medmamba.disk.atomic import write_atomically
from medmamba.errors import InputError
from medmamba.geometry import Grid
from medmamba.version import __version__

STUDY_COMPONENT = "1.2.840.10008.3.1.2.3.1"
CONTOUR_DATA = 0x3006_0050
MOST_TEXT = 65534
"""Bytes of the points of one contour: more cannot be stored where an archive changes to explicit VR."""
MOST_POINTS = 4_000_000
"""Of an RTSTRUCT; a whole body in 100 structures has about as many, and 100 bytes each."""


def write_contours(
    path: Path | str,
    labels: npt.NDArray[Any],
    grid: Grid,
    series: Path | str,
    values: Mapping[str, int],
    codes: Mapping[str, SegmentCode],
) -> None:
    """Write labels (i, j, k) on ``grid`` as the RTSTRUCT of the series in the folder ``series``.

    Arguments and errors are those of :func:`medmamba.dicom.segmentation.write_segmentation`. A structure without
    voxels has no contours. Raises InputError, too, for a mask so ragged that it has more than MOST_POINTS corners.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage, generate_uid

    sources = series_in_order(series, grid)
    numbers, names = numbered(labels, values)
    points = sum(corners_of(numbers == number) for number in range(1, len(names) + 1))
    if points > MOST_POINTS:
        raise InputError(f"{series}: contours of {points} points, where {MOST_POINTS} are the most. Use DICOM SEG.")
    now, first = datetime.now(), sources[0]
    rt = Dataset()
    rt.SpecificCharacterSet = "ISO_IR 192"
    for tag in (*MAY_BE_EMPTY, *KEPT, "StudyInstanceUID", "FrameOfReferenceUID"):
        if tag in first:
            rt.add(first[tag])
    rt.PositionReferenceIndicator = rt.get("PositionReferenceIndicator", "")
    rt.file_meta = FileMetaDataset()
    rt.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian  # what planning systems read
    rt.SOPClassUID = rt.file_meta.MediaStorageSOPClassUID = RTStructureSetStorage
    rt.SOPInstanceUID = rt.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    rt.Modality, rt.SeriesInstanceUID, rt.SeriesNumber = "RTSTRUCT", generate_uid(), series_number(sources) + 1
    rt.Manufacturer = rt.ManufacturerModelName = ALGORITHM
    rt.SoftwareVersions, rt.OperatorsName, rt.ApprovalStatus = __version__, "", "UNAPPROVED"
    rt.StructureSetLabel, rt.SeriesDescription = ALGORITHM.upper(), f"Contours by {ALGORITHM}"
    rt.StructureSetDate, rt.StructureSetTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    images = [_reference(source.SOPClassUID, source.SOPInstanceUID) for source in sources]
    of_study = _reference(STUDY_COMPONENT, first.StudyInstanceUID)
    of_series = _item(SeriesInstanceUID=first.SeriesInstanceUID, ContourImageSequence=images)
    of_study.RTReferencedSeriesSequence = [of_series]
    frame = first.FrameOfReferenceUID
    rt.ReferencedFrameOfReferenceSequence = [_item(FrameOfReferenceUID=frame, RTReferencedStudySequence=[of_study])]
    rt.StructureSetROISequence, rt.ROIContourSequence, rt.RTROIObservationsSequence = [], [], []
    planes = _planes(grid, sources)
    for number, (name, text) in enumerate(zip(names, texts_of(names), strict=True), start=1):
        code = codes[name]
        roi = _item(ROINumber=number, ROIName=text, ROIGenerationAlgorithm="AUTOMATIC")
        roi.ReferencedFrameOfReferenceUID = frame
        drawn = _item(ReferencedROINumber=number, ROIDisplayColor=list(colour_of(number, code)))
        if contours := _contours(numbers == number, planes, images):
            drawn.ContourSequence = contours
        seen = _item(ObservationNumber=number, ReferencedROINumber=number, RTROIInterpretedType="", ROIInterpreter="")
        value, scheme, meaning = code.property_type
        identified = _item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)
        seen.RTROIIdentificationCodeSequence = [identified]
        rt.StructureSetROISequence.append(roi)
        rt.ROIContourSequence.append(drawn)
        rt.RTROIObservationsSequence.append(seen)

    refer_to_frames(rt, sources)

    def equal_to_mask(written: Path) -> None:
        if not np.array_equal(_read(written, planes, grid.shape)[0], numbers):
            raise OSError("the written contours do not enclose the mask")

    with write_atomically(path, verify=equal_to_mask) as file:
        rt.save_as(file, enforce_file_format=True)


def read_contours(path: Path | str, grid: Grid) -> tuple[npt.NDArray[np.uint16], list[str]]:
    """ROI numbers (i, j, k) of the voxels of ``grid`` whose centres the contours enclose, and the ROIs' names.

    Of overlapping ROIs the last one counts. Raises InputError for points between the slices.
    """
    return _read(path, _planes(grid), grid.shape)


def _read(
    path: Path | str, planes: npt.NDArray[np.float64], shape: Sequence[int]
) -> tuple[npt.NDArray[np.uint16], list[str]]:
    """:func:`read_contours` on the slices ``planes``."""
    import pydicom

    rt = pydicom.dcmread(path)
    names = {int(roi.ROINumber): str(roi.ROIName) for roi in rt.StructureSetROISequence}
    numbers = np.zeros(shape, np.uint16)
    to_voxel = np.linalg.inv(planes)
    for roi in rt.ROIContourSequence:
        inside = np.zeros(numbers.shape, bool)
        for contour in getattr(roi, "ContourSequence", []):
            raw = contour.get_item(CONTOUR_DATA).value  # as text: pydicom would make an object of every number
            text = raw.decode("ascii").split("\\") if isinstance(raw, bytes) else raw
            points = np.asarray(text, np.float64).reshape(-1, 3)
            k = int(np.argmin(np.abs(to_voxel[:, 2, :3] @ points[0] + to_voxel[:, 2, 3])))
            voxels = points @ to_voxel[k, :3, :3].T + to_voxel[k, :3, 3]
            if np.abs(voxels[:, 2]).max() > 0.05:
                raise InputError(f"{path}: a contour does not lie on a slice of the series.")
            # even-odd: contours of one label do not cross, and one inside another is a hole
            inside[:, :, k] ^= filled(voxels[:, :2], numbers.shape[:2])
        numbers[inside] = int(roi.ReferencedROINumber)
    return numbers, [names[number] for number in sorted(names)]


def _planes(grid: Grid, sources: Sequence[Any] = ()) -> npt.NDArray[np.float64]:
    """(slices, 4, 4): voxel indices of each slice, its own number 0, to LPS mm; as the images say, or the grid."""
    assert grid.affine is not None
    planes = np.repeat((RAS_TO_LPS @ grid.affine)[None], grid.shape[2], axis=0)
    planes[:, :3, 3] += np.arange(grid.shape[2])[:, None] * planes[:, :3, 2]
    for plane, source in zip(planes, sources, strict=False):
        plane[:3, 3] = source.ImagePositionPatient  # slices may lie a little off the grid
    return planes


def _contours(mask: npt.NDArray[np.bool_], planes: npt.NDArray[np.float64], images: Sequence[Any]) -> list[Any]:
    """The contours of one label (i, j, k); ``images`` refer to the slices."""
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import BaseTag

    axes = planes[0, :3, :2]
    finest = float(np.linalg.norm(axes, axis=0).min())
    decimals = max(4, math.ceil(-math.log10(INSET * finest / 2)))
    reach = np.abs(planes[:, :3, 3]).max() + np.abs(axes @ mask.shape[:2]).max() + 1
    longest = len(f"{-reach:.{decimals}f}")
    if longest > 16:
        raise InputError(f"The images lie up to {reach:.3g} mm from the origin, too far for DICOM numbers.")
    contours = []
    for k in np.flatnonzero(mask.any(axis=(0, 1))).tolist():
        for line in outlines_of(mask[:, :, k], MOST_TEXT // (3 * (longest + 1))):
            points = line @ planes[k, :3, :2].T + planes[k, :3, 3]
            contour = _item(ContourImageSequence=[images[k]], NumberOfContourPoints=len(line))
            contour.ContourGeometricType = "CLOSED_PLANAR"
            text = "\\".join(f"{value:.{decimals}f}" for value in points.ravel().tolist())
            data = (text + " " * (len(text) % 2)).encode("ascii")
            contour[CONTOUR_DATA] = RawDataElement(BaseTag(CONTOUR_DATA), "DS", len(data), data, 0, True, True)
            contours.append(contour)
    return contours


def _reference(sop_class: str, sop_instance: str) -> Any:
    return _item(ReferencedSOPClassUID=sop_class, ReferencedSOPInstanceUID=sop_instance)


def _item(**values: Any) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    return item
