"""The images that a DICOM object is made from: one header for each slice, also for the frames of a multi-frame file.

A frame gets the header of a file of one slice with a UID of its own, because writers tell images apart by it; when the
object is made, :func:`refer_to_frames` exchanges these UIDs for the file's and the number of the frame.
Source: DICOM PS3.3 10.3 (Image SOP Instance Reference Macro).
"""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from medmamba.images.dicom_slices import Slice

OF_FRAMES = ("NumberOfFrames", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")


def headers_of(slices: Sequence[Slice]) -> list[Any]:
    """The header (a pydicom Dataset) of each slice, in their order."""
    import pydicom

    files: dict[Path, Any] = {}
    found = []
    for piece in slices:
        if piece.path not in files:
            files[piece.path] = pydicom.dcmread(piece.path, force=True, stop_before_pixels=bool(piece.frame))
            for name in OF_FRAMES if piece.frame else ():
                files[piece.path].pop(name, None)
        header = files[piece.path]
        found.append(_of_frame(header, piece) if piece.frame else header)
    return found


def _of_frame(file: Any, piece: Slice) -> Any:
    from pydicom.uid import MRImageStorage, generate_uid

    header = deepcopy(file)
    header.ReferencedSOPClassUID, header.SOPClassUID = file.SOPClassUID, MRImageStorage
    header.ReferencedSOPInstanceUID, header.SOPInstanceUID = file.SOPInstanceUID, generate_uid()
    header.ReferencedFrameNumber = header.InstanceNumber = piece.frame
    header.ImagePositionPatient, header.ImageOrientationPatient = list(piece.position), list(piece.orientation)
    header.PixelSpacing, header.SliceThickness = list(piece.spacing), piece.thickness or None
    return header


def refer_to_frames(made: Any, sources: Sequence[Any]) -> None:
    """Let the references of an object to ``sources``, of :func:`headers_of`, name files and frames.

    A list of the images of a series names each file once; any other reference names a frame.
    """
    frames = {source.SOPInstanceUID: source for source in sources if "ReferencedFrameNumber" in source}
    if frames:
        _exchange(made, frames, of_series=False)


def _exchange(dataset: Any, frames: dict[str, Any], *, of_series: bool) -> None:
    for element in dataset:
        if element.VR != "SQ":
            continue
        items: dict[Any, Any] = {}
        for number, item in enumerate(element.value):
            source = frames.get(item.get("ReferencedSOPInstanceUID"))
            key: Any = number
            if source is not None:
                item = deepcopy(item)
                item.ReferencedSOPClassUID = source.ReferencedSOPClassUID
                item.ReferencedSOPInstanceUID = key = source.ReferencedSOPInstanceUID
                if not of_series:
                    item.ReferencedFrameNumber, key = source.ReferencedFrameNumber, number
            _exchange(item, frames, of_series="SeriesInstanceUID" in item)
            items.setdefault(key, item)
        dataset[element.tag].value = list(items.values())
