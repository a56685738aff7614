"""Frames of an enhanced multi-frame DICOM file (CT, MR, PET): the place and phase of each, and its pixels.

What the file holds once for all frames (shared functional groups) and for each frame is brought into the tags that a
file of one slice has. Source: DICOM PS3.3 C.7.6.16 (functional groups) and C.7.6.17 (dimensions); PS3.5 A.4.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medmamba.disk.atomic import explained
from medmamba.disk.scratch import scratch_folder
from medmamba.errors import InputError, MedmambaError
from medmamba.images import dicom_headers as headers
from medmamba.images.dicom_headers import Tags, text_of
from medmamba.images.gate import check_memory

SHARED, PER_FRAME, DIMENSIONS, CONCATENATION = 0x52009229, 0x52009230, 0x00209222, 0x00209161
CONTENT, DIMENSION_VALUES, POINTER = 0x00209111, 0x00209157, 0x00209165
GROUPS = {
    headers.PIXEL_SPACING: (0x00289110, headers.PIXEL_SPACING),
    headers.THICKNESS: (0x00289110, headers.THICKNESS),
    headers.BETWEEN: (0x00289110, headers.BETWEEN),
    headers.POSITION: (0x00209113, headers.POSITION),
    headers.ORIENTATION: (0x00209116, headers.ORIENTATION),
    headers.SLOPE: (0x00289145, headers.SLOPE),
    headers.INTERCEPT: (0x00289145, headers.INTERCEPT),
}
"""Of each tag of a slice: the functional group that has it, and its tag there."""
NUMBERS = {
    headers.STACK: (CONTENT, headers.STACK),
    headers.TIME: (CONTENT, 0x00209128),  # Temporal Position Index
    headers.ACQUISITION: (CONTENT, 0x00209156),  # Frame Acquisition Number
    headers.ECHO_TIME: (0x00189114, 0x00189082),  # MR Echo, Effective Echo Time
    headers.B_VALUE: (0x00189117, headers.B_VALUE),  # MR Diffusion
    headers.FLIP_ANGLE: (0x00189112, headers.FLIP_ANGLE),  # MR Timing
    headers.INVERSION_TIME: (0x00189115, 0x00189079),  # MR Modifier, Inversion Times
    headers.TRIGGER: (0x00189118, 0x00209153),  # Cardiac Synchronization, Nominal Cardiac Trigger Delay Time
    headers.COMPLEX: (0x00189226, headers.COMPLEX),  # MR Image Frame Type
}
"""The same for values that are read as pydicom gives them."""
FRAME_TYPES = (0x00189226, 0x00189329, 0x00189751)
"""Groups of MR, CT and PET with the type of the frame."""
FRAME_TYPE = 0x00089007
KEPT = (0x00280002, 0x00280010, 0x00280011, 0x00280100, 0x00280101, 0x00280102, 0x00280103)
"""Samples, rows, columns, bits and sign of stored values."""
PIXELS = (0x00280008, 0x7FE00001, 0x7FE00002, 0x7FE00010)
"""Number of frames, table of offsets and lengths, pixel data."""
NO_PHASE = (0x00209056, 0x00209057, 0x00200032, 0x00200037, 0x00201041, 0x00209074, 0x00209151, 0x00209301)
"""Dimensions that say where or when a frame was taken, not of which phase it is (stack, position, date and time)."""


def frame_tags(path: Path, tags: Tags, where: str) -> list[Tags]:
    """The tags of each frame of an enhanced file as those of a slice, in the order of the file.

    Raises InputError for a part of a concatenation, and for functional groups that are damaged or not one per frame.
    """
    import pydicom

    wanted = [SHARED, PER_FRAME, DIMENSIONS, CONCATENATION]
    try:
        with warnings.catch_warnings(action="ignore"):  # they quote tag contents, as errors do
            header = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=wanted)
            if CONCATENATION in header:
                raise InputError(
                    f"{where}: a part of a concatenation (one image spread over several files), which is not read. "
                    "Export the series without concatenation."
                )
            shared = _first(header, SHARED)
            frames = header[PER_FRAME].value if PER_FRAME in header else []
            if str(len(frames)) != (tags.get(headers.FRAMES) or "1"):
                raise InputError(
                    f"{where}: {len(frames)} descriptions of frames for {tags.get(headers.FRAMES) or '1'} frames. The "
                    "file is damaged; export it again."
                )
            dimensions = header[DIMENSIONS].value if DIMENSIONS in header else []
            phases = [at for at, item in enumerate(dimensions) if int(item[POINTER].value) not in NO_PHASE]
            return [_of_frame(tags, shared, own, phases, number) for number, own in enumerate(frames, start=1)]
    except MedmambaError:
        raise
    except Exception:  # pydicom raises many kinds for damaged files
        raise InputError(f"{where}: its functional groups are damaged. Copy it again from its source.") from None


def _of_frame(tags: Tags, shared: Any, own: Any, phases: Sequence[int], number: int) -> Tags:
    found = {
        tag: text
        for tag, text in tags.items()
        if tag not in (*headers.PLACE, *headers.PHASE) or tag == headers.INSTANCE
    }
    if tags.get(headers.FRAMES) not in (None, "", "1"):
        found[headers.INSTANCE] = str(number)
    found[headers.FRAMES] = "1"
    for tag, (group, inner) in GROUPS.items():
        for item in (_first(shared, group), _first(own, group)):
            if item is not None and inner in item:
                found[tag] = text_of(item.get_item(inner))
    numbers = [*NUMBERS.items(), *((headers.IMAGE_TYPE, (group, FRAME_TYPE)) for group in FRAME_TYPES)]
    for tag, (group, inner) in numbers:
        for item in (_first(shared, group), _first(own, group)):
            if item is not None and inner in item:
                value = item[inner].value
                several = isinstance(value, Sequence) and not isinstance(value, str)
                found[tag] = "\\".join(map(str, value)) if several else str(value)
    content = _first(own, CONTENT)
    if phases and content is not None and DIMENSION_VALUES in content:
        values = content[DIMENSION_VALUES].value
        values = values if isinstance(values, Sequence) else [values]
        found[headers.DIMENSION] = "\\".join(str(values[at]) for at in phases)
    return found


def _first(dataset: Any, tag: int) -> Any:
    """The first item of a sequence; None where there is none."""
    items = dataset[tag].value if dataset is not None and tag in dataset else []
    return items[0] if items else None


@contextmanager
def single_frames(path: Path, numbers: Sequence[int], where: str) -> Iterator[Iterator[Path]]:
    """Some frames of a file, counted from 1, each as a file of one slice that is there until the next is asked for.

    The files have the stored values, to be neither rescaled nor inverted. Raises InputError for damaged pixels.
    """
    import pydicom

    check_memory(2 * path.stat().st_size, where)
    try:
        with warnings.catch_warnings(action="ignore"):
            source = pydicom.dcmread(path, force=True, specific_tags=[*KEPT, *PIXELS])
            syntax = source.file_meta.get("TransferSyntaxUID") or pydicom.uid.UID(_syntax_of(source))
            pieces = _pieces(source, syntax)
            single = _without_pixels(source, syntax)
    except Exception:  # pydicom raises many kinds for damaged files
        raise InputError(f"{where}: its pixels are damaged. Copy it again from its source.") from None
    with scratch_folder() as scratch:
        yield (_saved(single, pieces[number - 1], Path(scratch, "frame.dcm"), where) for number in numbers)


def _syntax_of(source: Any) -> str:
    """The transfer syntax of a file that does not name it."""
    implicit, little = source.original_encoding
    return headers.UNCOMPRESSED[0 if implicit else 1 if little else 2]


def _pieces(source: Any, syntax: Any) -> list[bytes]:
    """The stored bytes of each frame, compressed as they are in the file."""
    from pydicom.encaps import generate_frames

    count, pixels = int(source.get("NumberOfFrames") or 1), source.PixelData
    if syntax.is_encapsulated:
        table = source.get("ExtendedOffsetTable"), source.get("ExtendedOffsetTableLengths")
        pieces = list(generate_frames(pixels, number_of_frames=count, extended_offsets=table if all(table) else None))
    else:
        size = source.Rows * source.Columns * source.BitsAllocated // 8
        pieces = [pixels[at * size : (at + 1) * size] for at in range(count)]
        if source.BitsAllocated % 8 or len(pieces[-1]) < size:
            raise ValueError("cut off")
    if len(pieces) != count:
        raise ValueError("other frames than the header says")
    return pieces


def _without_pixels(source: Any, syntax: Any) -> Any:
    """The header of a file of one slice without place, with the stored values of a frame."""
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    single, meta = Dataset(), FileMetaDataset()
    for tag in KEPT:
        if tag in source:
            single.add(source[tag])
    single.PhotometricInterpretation = "MONOCHROME2"  # ITK inverts the stored values of MONOCHROME1
    single.SOPClassUID = meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    single.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax == DeflatedExplicitVRLittleEndian else syntax
    single.file_meta = meta
    return single


def _saved(single: Any, piece: bytes, target: Path, where: str) -> Path:
    """``single`` with the pixels of one frame in a file."""
    from pydicom.encaps import encapsulate

    packed = single.file_meta.TransferSyntaxUID.is_encapsulated
    single.PixelData = encapsulate([piece]) if packed else piece
    single["PixelData"].VR = "OB" if packed or single.BitsAllocated == 8 else "OW"
    try:
        with explained(target):
            single.save_as(target, enforce_file_format=True)
    except MedmambaError:
        raise
    except Exception:  # of values that no such element can have
        raise InputError(f"{where}: its header is damaged. Copy it again from its source.") from None
    return target
