"""A label map on the grid of a DICOM series as one DICOM SEG object, and back.

The segmentation keeps the study, the patient and the frame of reference of its series, refers to every source image,
and names each segment by the codes of the labels file. highdicom writes it; this file assigns
voxels to slices and checks that what was written holds the same mask.

Source: DICOM PS3.3 A.51 (Segmentation IOD) and C.7.6.2.1.1. World axes are LPS there, RAS+ here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medmamba.dicom.codes import SegmentCode, need_highdicom
from medmamba.disk.atomic import write_atomically
from medmamba.errors import InputError
from medmamba.geometry import Affine, Grid, grid_difference
from medmamba.version import __version__

if TYPE_CHECKING:
    from pydicom import Dataset

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
ALGORITHM = "medmamba"
MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
"""What a segmentation takes over from its series and may be empty (type 2); removed by some anonymisers."""
MUST_BE_THERE = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "FrameOfReferenceUID")


def write_segmentation(
    path: Path | str,
    labels: npt.NDArray[Any],
    grid: Grid,
    series: Path | str,
    values: Mapping[str, int],
    codes: Mapping[str, SegmentCode],
    *,
    description: str = "Segmentation by medmamba",
) -> None:
    """Write labels (i, j, k) on ``grid`` as the DICOM SEG of the series in the folder ``series``.

    Args:
        values: label name to its value in ``labels``; segment n is the n-th entry. 0 is the background and left out.
        codes: what each label is (see ``codes.py``).

    Raises:
        InputError: the labels do not lie on the grid of the series, hold a value that ``values`` does not name, or are
            empty.
    """
    need_highdicom()
    import highdicom as hd

    sources = series_in_order(series, grid)
    numbers, names = numbered(labels, values, series)
    frames = np.ascontiguousarray(numbers.transpose(2, 1, 0))  # (slices, rows, columns)
    patient, sources[0].PatientName = sources[0].PatientName, ""  # highdicom warns of an unusual name by citing it
    seg = hd.seg.Segmentation(
        source_images=sources,
        pixel_array=frames,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_segment(n, name, codes[name]) for n, name in enumerate(names, start=1)],
        series_instance_uid=hd.UID(),
        series_number=series_number(sources),
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer=ALGORITHM,
        manufacturer_model_name=ALGORITHM,
        software_versions=__version__,
        device_serial_number="1",
        series_description=description[:64],
        content_label="SEGMENTATION",
        omit_empty_frames=True,
    )
    seg.PatientName = patient

    def equal_to_mask(written: Path) -> None:
        back, _, place = read_segmentation(written, grid)
        if not np.array_equal(back, numbers) or grid_difference(grid, place):
            raise OSError("the written segmentation does not hold the mask")

    with write_atomically(path, verify=equal_to_mask) as file:
        seg.save_as(file)


def numbered(
    labels: npt.NDArray[Any], values: Mapping[str, int], series: Path | str
) -> tuple[npt.NDArray[np.uint8], list[str]]:
    """Labels as segment numbers 1, 2, ... in the order of ``values``, and the segments' names.

    Raises InputError for a value without a name, and for an empty mask.
    """
    names = [name for name, value in values.items() if value != 0]
    unknown = sorted(set(np.unique(labels).tolist()) - {0} - {values[name] for name in names})
    if unknown:
        raise InputError(f"The mask holds {unknown[0]}, which is not the value of any label ({dict(values)}).")
    if not labels.any():
        raise InputError(f"{series}: the mask is empty, and DICOM allows no segmentation without any segment.")
    numbers = np.zeros(labels.shape, dtype=np.uint8)
    for number, name in enumerate(names, start=1):
        numbers[labels == values[name]] = number
    return numbers, names


def read_segmentation(path: Path | str, grid: Grid | None = None) -> tuple[npt.NDArray[np.uint8], list[str], Grid]:
    """Segment numbers (i, j, k), the segments' names in order, and the grid of a DICOM SEG.

    ``grid``: bring it onto the slices of this grid, as a segmentation may leave out empty ones.
    """
    need_highdicom()
    import highdicom as hd

    seg = hd.seg.segread(str(path))
    names = [str(segment.SegmentLabel) for segment in seg.SegmentSequence]
    volume = seg.get_volume(combine_segments=True)
    affine = RAS_TO_LPS @ np.asarray(volume.affine, dtype=np.float64)  # axes: slices, rows, columns
    order = np.eye(4)[:, [2, 1, 0, 3]]
    numbers = np.asarray(volume.array).astype(np.uint8).transpose(2, 1, 0)
    found = Grid((numbers.shape[0], numbers.shape[1], numbers.shape[2]), affine @ order)
    if grid is None:
        return numbers, names, found
    return _onto(numbers, found, grid, path), names, grid


def series_in_order(series: Path | str, grid: Grid) -> list[Dataset]:
    """The images of a series folder in the order of the grid's third axis.

    Raises InputError when they are not exactly the slices of ``grid``.
    """
    import pydicom

    from medmamba.images.dicom import dicom_files, without_copies

    datasets = [pydicom.dcmread(file) for file in without_copies(dicom_files(Path(series)))[0]]
    for dataset in datasets:
        for name in MAY_BE_EMPTY:
            if name not in dataset:
                setattr(dataset, name, "")
        missing = [name for name in MUST_BE_THERE if not getattr(dataset, name, None)]
        if missing:
            raise InputError(
                f"{series}: an image has no {missing[0]}, so a segmentation cannot refer to it. "
                "Export the series again from its archive."
            )
        if grid.spacing_mm is not None:  # both may be missing or wrong in a file; the positions are the truth
            dataset.SpacingBetweenSlices = round(grid.spacing_mm[2], 6)
            dataset.SliceThickness = getattr(dataset, "SliceThickness", None) or dataset.SpacingBetweenSlices
    if grid.affine is None or len(datasets) != grid.shape[2]:
        raise InputError(
            f"{series}: holds {len(datasets)} DICOM images, the mask has {grid.shape[2]} slices. "
            "Give the series that the mask was made from."
        )
    origin, step = grid.affine[:3, 3], grid.affine[:3, 2]
    places: list[float] = []
    for dataset in datasets:
        position = np.asarray(dataset.ImagePositionPatient, dtype=np.float64) * [-1, -1, 1]
        places.append(float((position - origin) @ step / (step @ step)))
    order = np.argsort(places)
    off = np.abs(np.array(places)[order] - np.arange(len(places))).max()
    size = (int(datasets[0].Columns), int(datasets[0].Rows))
    if off > 0.05 or size != grid.shape[:2] or not _same_axes(datasets[0], grid.affine):
        raise InputError(
            f"{series}: its slices are not those of the mask. Give the series that the mask was made from."
        )
    return [datasets[int(index)] for index in order]


def _same_axes(dataset: Dataset, affine: Affine) -> bool:
    axes = np.asarray(dataset.ImageOrientationPatient, dtype=np.float64).reshape(2, 3) * [-1, -1, 1]
    ours = affine[:3, :2].T / np.linalg.norm(affine[:3, :2].T, axis=1, keepdims=True)
    return bool(np.abs(axes - ours).max() < 1e-3)


def _onto(numbers: npt.NDArray[np.uint8], found: Grid, grid: Grid, path: Path | str) -> npt.NDArray[np.uint8]:
    """Voxels of ``found`` at their places in ``grid``, which has the same axes up to order, direction and extent."""
    assert grid.affine is not None
    assert found.affine is not None
    between = np.linalg.inv(grid.affine) @ found.affine  # voxel of the segmentation to voxel of the grid
    whole = np.round(between)
    if np.abs(between - whole).max() > 0.05:
        raise InputError(f"{path}: its voxels do not lie on the grid of the series.")
    index = np.indices(numbers.shape).reshape(3, -1)
    target = (whole[:3, :3] @ index + whole[:3, 3:]).astype(int)
    used = numbers.reshape(-1) != 0
    result = np.zeros(grid.shape, dtype=np.uint8)
    if used.any():
        target = target[:, used]
        if (target < 0).any() or (target >= np.array(grid.shape)[:, None]).any():
            raise InputError(f"{path}: marks voxels outside the series.")
        result[tuple(target)] = numbers.reshape(-1)[used]
    return result


def _segment(number: int, name: str, code: SegmentCode) -> Any:
    import highdicom as hd
    from highdicom.sr.coding import CodedConcept

    def concept(entry: Sequence[str]) -> CodedConcept:
        return CodedConcept(value=entry[0], scheme_designator=entry[1], meaning=entry[2])

    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:64],
        segmented_property_category=concept(code.category),
        segmented_property_type=concept(code.property_type),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=ALGORITHM, version=__version__, family=CodedConcept("123109", "DCM", "Artificial Intelligence")
        ),
        display_color=None if code.colour is None else hd.color.CIELabColor.from_rgb(*code.colour),
    )


def series_number(sources: Sequence[Dataset]) -> int:
    """A number for what is derived from a series, away from those of a study's own."""
    return int(getattr(sources[0], "SeriesNumber", 0) or 0) + 1000
