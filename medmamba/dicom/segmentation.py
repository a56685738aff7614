"""A label map or a mask file on the grid of a DICOM series as one DICOM SEG object, and back.

The segmentation keeps the study, the patient and the frame of reference of its series, refers to every source image,
and names each segment by the codes of the labels file. highdicom writes it; the written file is read back and compared.

Source: DICOM PS3.3 A.51 (Segmentation IOD) and C.7.6.2.1.1. World axes are LPS there, RAS+ here.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medmamba.dicom.codes import SegmentCode, colour_of, need_highdicom, read_codes
from medmamba.dicom.source_images import headers_of, refer_to_frames
from medmamba.dicom.study import one_series
from medmamba.disk.atomic import write_atomically
from medmamba.disk.own_files import refuse_existing
from medmamba.errors import InputError
from medmamba.geometry import Grid, grid_difference, reindexed
from medmamba.images import ReadOptions, read_label_map
from medmamba.images.dicom import EVEN_SPACING, read_slices
from medmamba.images.gate import shown
from medmamba.plans.json_record import as_written, read_stored
from medmamba.version import __version__

if TYPE_CHECKING:
    from pydicom import Dataset

LONGEST_REMARK = 1024
"""Bytes of a segment's description (VR ST)."""
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
ALGORITHM = "medmamba"
MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
"""What a segmentation takes over from its series and may be empty (type 2); removed by some anonymisers."""
DATE, TIME = r"([0-9]{8})?", r"([0-9]{2}([0-9]{2}([0-9]{2}(\.[0-9]{1,6})?)?)?)?"
WRITTEN_AS = {"PatientBirthDate": DATE, "PatientSex": "[MFO]?", "StudyDate": DATE, "StudyTime": TIME}
"""What DICOM allows; other values are left empty, because no reader could use them."""
KEPT = ("StudyDescription", "PositionReferenceIndicator")
"""What is taken over where the series has it."""
MUST_BE_THERE = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "FrameOfReferenceUID")


def write_segmentation(
    path: Path | str,
    labels: npt.NDArray[Any],
    grid: Grid,
    series: Path | str,
    values: Mapping[str, int],
    codes: Mapping[str, SegmentCode],
    remarks: Mapping[str, str] | None = None,
) -> None:
    """Write labels (i, j, k) on ``grid`` as the DICOM SEG of the series in the folder ``series``.

    ``values`` are the labels' values by name; segment n is the n-th entry, and 0, the background, is left out.
    ``codes`` say what each label is (see ``codes.py``), ``remarks`` become the description of their segments.

    An empty mask gives a SEG of empty frames.
    Raises InputError when the labels do not lie on the grid of the series or hold a value without a name.
    """
    need_highdicom()
    import highdicom as hd

    sources = series_in_order(series, grid)
    numbers, names = numbered(labels, values)
    texts = texts_of(names)
    frames = np.ascontiguousarray(numbers.transpose(2, 1, 0))  # (slices, rows, columns)
    patient, sources[0].PatientName = sources[0].PatientName, ""  # highdicom warns of an unusual name by citing it
    seg = hd.seg.Segmentation(
        source_images=sources,
        pixel_array=frames,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[
            _segment(n, text, codes[name]) for n, (name, text) in enumerate(zip(names, texts, strict=True), start=1)
        ],
        series_instance_uid=hd.UID(),
        series_number=series_number(sources),
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer=ALGORITHM,
        manufacturer_model_name=ALGORITHM,
        software_versions=__version__,
        device_serial_number="1",
        series_description=f"Segmentation by {ALGORITHM}",
        specific_character_set="ISO_IR 192",
        content_label="SEGMENTATION",
        omit_empty_frames=bool(numbers.any()),
    )
    seg.PatientName = patient
    for segment, name in zip(seg.SegmentSequence, names, strict=True):
        if remark := (remarks or {}).get(name):
            segment.SegmentDescription = _cut(remark, LONGEST_REMARK)
    refer_to_frames(seg, sources)

    def equal_to_mask(written: Path) -> None:
        if not np.array_equal(read_segmentation(written, grid)[0], numbers):
            raise OSError("the written segmentation does not hold the mask")

    with write_atomically(path, verify=equal_to_mask) as file:
        seg.save_as(file)


def numbered(labels: npt.NDArray[Any], values: Mapping[str, int]) -> tuple[npt.NDArray[np.uint16], list[str]]:
    """Labels as segment numbers 1, 2, ... in the order of ``values``, and the segments' names.

    Raises InputError for a value without a name.
    """
    names = [name for name, value in values.items() if value != 0]
    unknown = sorted(set(np.unique(labels).tolist()) - {0} - {values[name] for name in names})
    if unknown:
        raise InputError(f"The mask holds {unknown[0]}, which is not the value of any label ({dict(values)}).")
    numbers = np.zeros(labels.shape, dtype=np.uint16)
    for number, name in enumerate(names, start=1):
        numbers[labels == values[name]] = number
    return numbers, names


def texts_of(names: Sequence[str]) -> list[str]:
    """Names as DICOM can hold them (VR LO): without backslash or control characters, no two the same.

    At most 64 bytes: the standard counts characters, some programs count bytes.
    """
    texts: list[str] = []
    for name in names:
        plain = "".join(char if char.isprintable() and char != "\\" else "_" for char in name).strip() or "_"
        text, number = _cut(plain, 64), 1
        while text in texts:
            number += 1
            ending = f" ({number})"
            text = _cut(plain, 64 - len(ending)) + ending
        texts.append(text)
    return texts


def _cut(text: str, most: int) -> str:
    return text.encode("utf-8", "replace")[:most].decode("utf-8", "ignore").strip()


def read_segmentation(path: Path | str, grid: Grid) -> tuple[npt.NDArray[np.uint16], list[str]]:
    """Segment numbers (i, j, k) of a DICOM SEG on the voxels of ``grid``, and the segments' names in order.

    ``grid`` has the same axes up to order, direction and extent: a segmentation may leave out empty slices.
    """
    need_highdicom()
    import highdicom as hd

    seg = hd.seg.segread(str(path))
    volume = seg.get_volume(combine_segments=True, rtol=2 * EVEN_SPACING)
    assert grid.affine is not None
    between = np.linalg.inv(RAS_TO_LPS @ grid.affine) @ np.asarray(volume.affine, dtype=np.float64)
    whole = np.round(between)  # index of the segmentation (slices, rows, columns) to that of the grid
    if np.abs(between - whole).max() > 0.05:
        raise InputError(f"{path}: its voxels do not lie on the grid of the series.")
    marked = np.argwhere(volume.array)
    target = (marked @ whole[:3, :3].T + whole[:3, 3]).astype(int)
    if (target < 0).any() or (target >= grid.shape).any():
        raise InputError(f"{path}: marks voxels outside the series.")
    numbers = np.zeros(grid.shape, dtype=np.uint16)
    numbers[tuple(target.T)] = volume.array[tuple(marked.T)]
    return numbers, [str(segment.SegmentLabel) for segment in seg.SegmentSequence]


def mask_to_segmentation(
    mask: Path | str,
    series: Path | str,
    output: Path | str,
    *,
    labels: dict[str, int] | None = None,
    codes: Path | str | None = None,
    choice: str | None = None,
    overwrite: bool = False,
) -> dict[str, int]:
    """Write the DICOM SEG of ``mask`` for its series; returns the labels that it names.

    ``labels`` are values by name, those of report.json beside the mask if None. ``series`` is the folder or zip of the
    series, or of a study from which ``choice`` (number or UID) takes it. ``codes`` is the labels file (``codes.py``).
    Raises InputError when ``output`` exists, unless ``overwrite``.
    """
    refuse_existing(Path(output), overwrite=overwrite)
    names = labels if labels is not None else _labels_beside(Path(mask))
    reading = ReadOptions(any_spacing=True)  # of both, which must agree
    described, found = read_codes(codes, list(names)), read_label_map(mask, reading)
    with one_series(series, choice) as folder:
        _, grid, _ = read_slices(folder, shown(folder), reading)
        array = reindexed(found.array[None], found.grid, grid)
        if array is None:
            difference = grid_difference(grid, found.grid) or "differ in their axes"
            raise InputError(f"{series} and {mask} {difference}. Give the series that the mask was made from.")
        write_segmentation(output, array[0], grid, folder, names, described)
    return names


def _labels_beside(mask: Path) -> dict[str, int]:
    report = mask.parent / "report.json"
    cure = "Without it the names of the labels are unknown: restore it, or give --label anterior=1 --label posterior=2."
    stored = read_stored(report, dict[str, Any], "prediction report", cure)
    with as_written(report, "prediction report", cure):
        return {str(name): int(value) for name, value in stored["model"]["labels"].items()}


def series_in_order(series: Path | str, grid: Grid) -> "Sequence[Dataset]":
    """The images of a series folder in the order of the grid's third axis.

    Raises InputError when they are not exactly the slices of ``grid``.
    """
    reading = ReadOptions(any_spacing=True, max_voxels=max(grid.voxels, ReadOptions().max_voxels))  # it was read before
    slices, place, _ = read_slices(Path(series), shown(series), reading)
    if len(slices) != grid.shape[2]:
        raise InputError(
            f"{series}: holds {len(slices)} DICOM images, the mask has {grid.shape[2]} slices. "
            "Give the series that the mask was made from."
        )
    if grid.affine is None or grid_difference(place, grid):
        raise InputError(
            f"{series}: its slices are not those of the mask. Give the series that the mask was made from."
        )
    datasets = headers_of(slices)
    for dataset in datasets:
        for name in MAY_BE_EMPTY:
            text = str(dataset.get(name) or "")
            if name not in dataset or (name in WRITTEN_AS and not re.fullmatch(WRITTEN_AS[name], text)):
                plain = re.sub("[.:-]", "", text)  # as versions before DICOM and anonymisers write dates and times
                setattr(dataset, name, plain if re.fullmatch(WRITTEN_AS.get(name, ""), plain) else "")
        missing = [name for name in MUST_BE_THERE if not getattr(dataset, name, None)]
        if missing:
            raise InputError(
                f"{series}: an image has no {missing[0]}, so a segmentation cannot refer to it. "
                "Export the series again from its archive."
            )
        # Both may be missing or wrong in a file; the positions are the truth.
        dataset.SpacingBetweenSlices = round(float(np.linalg.norm(grid.affine[:3, 2])), 6)
        dataset.SliceThickness = getattr(dataset, "SliceThickness", None) or dataset.SpacingBetweenSlices
    return datasets


def _segment(number: int, text: str, code: SegmentCode) -> Any:
    import highdicom as hd
    from highdicom.sr.coding import CodedConcept

    def concept(entry: Sequence[str]) -> CodedConcept:
        return CodedConcept(value=entry[0], scheme_designator=entry[1], meaning=entry[2])

    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=text,
        segmented_property_category=concept(code.category),
        segmented_property_type=concept(code.property_type),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=ALGORITHM, version=__version__, family=CodedConcept("123109", "DCM", "Artificial Intelligence")
        ),
        display_color=hd.color.CIELabColor.from_rgb(*colour_of(number, code)),
    )


def series_number(sources: "Sequence[Dataset]") -> int:
    """A number for what is derived from a series, away from those of a study's own."""
    return int(getattr(sources[0], "SeriesNumber", 0) or 0) + 1000
