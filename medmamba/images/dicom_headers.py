"""Headers of DICOM files: what each file of a folder is, by its SOP class and its tags.

pydicom reads the tags listed below (imported on first use) and private b-values; no other tag is read and none is
kept. The patient's ID is only compared, so that slices of two patients are not one volume.
Source of the SOP classes: PS3.4 B.5; a file without preamble: PS3.10 7.1.
"""

import re
import struct
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from medmamba.errors import InputError
from medmamba.images.dicom_private import PRIVATE, private_b_value
from medmamba.images.gate import DEFLATE_CEILING, open_regular, shown

SOP_CLASS, IMAGE_TYPE, MODALITY, DESCRIPTION = 0x00080016, 0x00080008, 0x00080060, 0x0008103E
SERIES, NUMBER, POSITION, ORIENTATION = 0x0020000E, 0x00200011, 0x00200032, 0x00200037
ROWS, COLUMNS, PIXEL_SPACING, THICKNESS = 0x00280010, 0x00280011, 0x00280030, 0x00180050
FRAMES, SAMPLES, BITS, PHOTOMETRIC = 0x00280008, 0x00280002, 0x00280100, 0x00280004
SLOPE, INTERCEPT = 0x00281053, 0x00281052
PATIENT, MODALITY_LUT = 0x00100020, 0x00283000
BETWEEN, STUDY, FRAME_OF_REFERENCE = 0x00180088, 0x0020000D, 0x00200052
STACK, COMPLEX, ECHO, ECHO_TIME = 0x00209056, 0x00089208, 0x00180086, 0x00180081
B_VALUE, GRADIENT, FLIP_ANGLE, INVERSION_TIME = 0x00189087, 0x00189089, 0x00181314, 0x00180082
TIME, ACQUISITION, FRAME_TIME, TRIGGER, INSTANCE = 0x00200100, 0x00200012, 0x00541300, 0x00181060, 0x00200013
DIMENSION = 0x00209157
"""In the tags of a frame: what tells its phase from others, by the file's own dimensions."""
PLACE = (POSITION, ORIENTATION, PIXEL_SPACING, THICKNESS, BETWEEN)
CONTRAST = (STACK, COMPLEX, ECHO, ECHO_TIME, B_VALUE, GRADIENT, FLIP_ANGLE, INVERSION_TIME)
PHASE = (TIME, ACQUISITION, FRAME_TIME, TRIGGER, INSTANCE)
"""With ``CONTRAST``: what tells images at one position apart."""
TEXTS = (
    SOP_CLASS,
    IMAGE_TYPE,
    MODALITY,
    DESCRIPTION,
    SERIES,
    NUMBER,
    FRAMES,
    PHOTOMETRIC,
    SLOPE,
    INTERCEPT,
    PATIENT,
    STUDY,
    FRAME_OF_REFERENCE,
    *PLACE,
    *CONTRAST,
    *PHASE,
)
DOUBLES = (B_VALUE, GRADIENT)
"""Of ``TEXTS``: stored as binary numbers of 8 bytes."""
NUMBERS = (ROWS, COLUMNS, SAMPLES, BITS)
STORAGE = "1.2.840.10008.5.1.4.1.1."
NO_IMAGES = {
    "1.2.840.10008.1.3.10": "DICOMDIR",
    f"{STORAGE}481.2": "RTDOSE",
    f"{STORAGE}481.3": "RTSTRUCT",
    f"{STORAGE}481": "radiotherapy object",
    f"{STORAGE}4.2": "MR spectroscopy",
    f"{STORAGE}30": "parametric map",
    f"{STORAGE}67": "value mapping",
    f"{STORAGE}88": "SR",
    f"{STORAGE}66.4": "SEG",
    f"{STORAGE}66": "registration or raw data",
    f"{STORAGE}104": "PDF or other document",
    f"{STORAGE}11": "presentation state",
    f"{STORAGE}9": "waveform",
}
"""Kind of the objects of these SOP classes, and of those whose UIDs begin with theirs."""
MULTI_FRAME = {
    f"{STORAGE}3": "ultrasound",
    f"{STORAGE}6": "ultrasound",
    f"{STORAGE}7": "secondary capture",
    f"{STORAGE}12": "angiography",
    f"{STORAGE}13": "X-ray volume or mammography",
    f"{STORAGE}20": "nuclear medicine image",
    f"{STORAGE}77": "photograph or microscopy",
}
"""What a multi-frame file that is not read shows, by the same rule."""
ENHANCED = tuple(STORAGE + end for end in ("2.1", "2.2", "4.1", "4.4", "128.1", "130"))
BLANK_IMAGE = 64 * 2**20  # bytes; recent codecs compress a blank image to almost nothing
UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
DECODED = (
    *UNCOMPRESSED,
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.5",
    *(f"1.2.840.10008.1.2.4.{end}" for end in (50, 51, 57, 70, 80, 81, 90, 91)),
)
"""Transfer syntaxes whose pixels are decoded: none, deflated, RLE, JPEG, JPEG-LS and JPEG 2000 (PS3.5 10)."""

EMPTY, NOT_DICOM = "empty", "not DICOM"
CHOSEN_FRAMES = "medmamba-frames.json"
"""In a folder with one chosen phase: the frames of each multi-frame file that belong to it."""

Tags = dict[int, str]


def holds_dicom(folder: Path | str) -> bool:
    """Whether a folder directly contains slices or a damaged file that may be one; localizers alone do not count."""
    return series_in(folder) is not None


def series_in(folder: Path | str) -> str | None:
    """The series UID of the first slice directly in a folder; empty if it is damaged, None if there is no slice."""
    try:
        paths = sorted(path for path in Path(folder).iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError:
        return None
    try:
        for path in paths:
            if path.stat().st_size and _is_dicom(path, ""):
                tags = header_tags(path, "")
                if not _other_than_slice(tags) and not is_localizer(tags):
                    return tags.get(SERIES, "")
    except InputError:  # its reader reports what is wrong
        return ""
    return None


def is_volume(path: Path, where: str) -> bool:
    """Whether a file is a volume of its own, an enhanced multi-frame image; InputError for other DICOM files."""
    if not _is_dicom(path, where):
        return False
    kind = _other_than_slice(tags := header_tags(path, where))
    if kind:
        raise InputError(
            f"{where}: DICOM {kind}, which is not read as an image. Give an enhanced CT, MR or PET file, or the folder "
            "of a series."
        )
    if tags.get(SOP_CLASS) not in ENHANCED:
        raise InputError(f"{where}: one slice of a DICOM series. Give the folder of the series.")
    return True


def sorted_out(
    source: Path, where: str, damaged: dict[Path, InputError] | None = None
) -> tuple[dict[Path, Tags], dict[str, list[str]]]:
    """The headers of the slices directly in a folder (or of one file), by name, and the names of others by kind.

    Links are followed. Raises InputError for a damaged file, a broken link, and an image that belongs to the slices but
    has no position: without it the volume would be incomplete. With ``damaged``, such errors are put there, by file.
    """
    slices: dict[Path, Tags] = {}
    others: dict[Path, tuple[str, Tags]] = {}
    problems: dict[Path, InputError] = {}
    for path in sorted(source.iterdir()) if source.is_dir() else [source]:
        name = where if path == source else f"{where}: {shown(path.name)}"
        if path.is_dir() or path.name == CHOSEN_FRAMES:
            continue
        try:
            kind, tags = _kind_of_file(path, name)
        except InputError as error:
            problems[path] = error
            continue
        if kind:
            others[path] = kind, tags
        else:
            slices[path] = tags
    placed = {(tags.get(SERIES), tags.get(SOP_CLASS)) for tags in slices.values()}
    names = {_pattern(path) for path in slices}
    aside: dict[str, list[str]] = defaultdict(list)
    for path, (kind, tags) in others.items():
        name = f"{where}: {shown(path.name)}"
        if tags and (tags.get(SERIES), tags.get(SOP_CLASS)) in placed:
            problem = "an image of the series without a position, in colours, or of many frames. Export it again."
            problems[path] = InputError(f"{name}: {problem}")
        elif kind in (EMPTY, NOT_DICOM) and _pattern(path) in names:
            problems[path] = InputError(f"{name}: {kind}, but named as the slices are. Copy it again, or remove it.")
        else:
            aside[kind].append(path.name)
    if problems and damaged is None:
        raise next(iter(problems.values()))
    if damaged is not None:
        damaged.update(problems)
    return slices, dict(aside)


def _kind_of_file(path: Path, where: str) -> tuple[str, Tags]:
    """What a file is, empty for a slice, and its tags if it is DICOM; InputError for a damaged file."""
    if path.name.startswith("."):
        return "hidden", {}
    if not path.is_symlink() and path.is_file() and not path.stat().st_size:
        return EMPTY, {}
    if not _is_dicom(path, where):
        return NOT_DICOM, {}
    tags = header_tags(path, where)
    return _other_than_slice(tags), tags


def _pattern(path: Path) -> str:
    """A name with its numbers left out: files of one export differ in those."""
    return re.sub(r"[0-9a-fA-F]+", "0", path.name)


def ignored(aside: Mapping[str, list[str]]) -> str:
    """Counts and names of ignored files: "ignored: 1 SR (a.dcm), 2 not DICOM (b, c)"; empty for none."""
    kinds = ", ".join(count_of(kind, names) for kind, names in aside.items())
    return f"ignored: {kinds}" if kinds else ""


def count_of(kind: str, names: Sequence[str]) -> str:
    """How many files are of a kind, with the first names: "2 SR (a.dcm, b.dcm)"."""
    return f"{len(names)} {kind} ({', '.join(map(shown, names[:3]))}{', ...' if len(names) > 3 else ''})"


def _other_than_slice(tags: Tags) -> str:
    """Kind of an object that is not a slice of a volume; empty for a slice, and for files that the reader refuses."""
    sop_class = tags.get(SOP_CLASS, "")
    if kind := _kind_of_class(sop_class):
        return kind
    if ROWS not in tags:  # in a standard image this is damage, which header_tags refuses
        return "private object"
    if "MOSAIC" in tags.get(IMAGE_TYPE, "").split("\\"):
        return "mosaic of slices"
    if sop_class not in ENHANCED:
        if tags.get(FRAMES) not in (None, "", "0", "1"):
            return f"multi-frame {_kind_of_class(sop_class, MULTI_FRAME) or 'image'}"
        if POSITION not in tags or ORIENTATION not in tags:
            return "secondary capture" if f"{sop_class}.".startswith(f"{STORAGE}7.") else "image without a position"
    grey = tags.get(SAMPLES, "1") == "1" and tags.get(PHOTOMETRIC, "MONOCHROME").startswith("MONOCHROME")
    return "" if grey else "colour image"


def _kind_of_class(sop_class: str, kinds: Mapping[str, str] = NO_IMAGES) -> str:
    return next((kind for start, kind in kinds.items() if f"{sop_class}.".startswith(f"{start}.")), "")


def is_localizer(tags: Tags) -> bool:
    """Whether an image is a localizer (scout)."""
    return "LOCALIZER" in tags.get(IMAGE_TYPE, "").split("\\")


def without_localizers(slices: dict[Path, Tags], aside: dict[str, list[str]]) -> dict[Path, Tags]:
    """The slices without localizers, which are added to ``aside``; all if there are only localizers."""
    others = {path: tags for path, tags in slices.items() if not is_localizer(tags)}
    if others and len(others) < len(slices):
        aside["localizer"] = [path.name for path in slices if path not in others]
    return others or slices


def _is_dicom(path: Path, where: str) -> bool:
    """Whether a file has DICOM's prefix or begins with a DICOM element; InputError if only its name says so."""
    file, _ = open_regular(path, where)
    with file:
        start = file.read(132)
    if start[128:] == b"DICM":
        return True
    # An element of group 2 or 8, the lowest groups, with its type or a small length.
    if len(start) > 16 and start[:1] in (b"\2", b"\10") and start[1] == start[3] == 0:
        return re.match(b"[A-Z]{2}", start[4:6]) is not None or int.from_bytes(start[4:8], "little") <= 64
    if path.suffix.lower() == ".dcm":
        raise InputError(f"{where}: the name says DICOM, the content does not. Copy it again from its source.")
    return False


def header_tags(path: Path, where: str) -> Tags:
    """The tags of ``TEXTS`` and ``NUMBERS`` of a file, as text; no other tag is read and nothing is decoded.

    Raises InputError for a damaged file, and for more pixels than its bytes can hold.
    """
    import pydicom

    file, size = open_regular(path, where)
    with file:
        try:
            with warnings.catch_warnings(action="ignore"):  # they quote tag contents, as errors do
                wanted = [*TEXTS, *NUMBERS, MODALITY_LUT, *PRIVATE]
                header = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=wanted)
                tags = {tag: text_of(header.get_item(tag)) for tag in (*TEXTS, *NUMBERS) if tag in header}
                tags |= {MODALITY_LUT: "present"} if MODALITY_LUT in header else {}
                if value := tags.get(B_VALUE) or private_b_value(header):
                    tags[B_VALUE] = value
                sop_class = tags.setdefault(SOP_CLASS, str(header.file_meta.get("MediaStorageSOPClassUID", "")))
                packed = str(header.file_meta.get("TransferSyntaxUID", UNCOMPRESSED[0])) not in UNCOMPRESSED
        except Exception:  # pydicom raises many kinds for damaged files
            raise InputError(f"{where}: a damaged DICOM file. Copy it again from its source.") from None
        left = size - file.tell()
    if _kind_of_class(sop_class):
        return tags
    of_a_kind = sop_class and SERIES in tags and not sop_class.startswith(STORAGE)
    if left < 0 or (ROWS not in tags and not of_a_kind):
        raise InputError(f"{where}: cut off or damaged: it ends before its pixels. Copy it again from its source.")
    numbers = [tags.get(ROWS, "0"), tags.get(COLUMNS, "0")]
    numbers += [tags.get(tag) or default for tag, default in ((SAMPLES, "1"), (FRAMES, "1"), (BITS, "8"))]
    needed = prod(map(int, numbers)) // 8 if all(number.isdecimal() for number in numbers) else 0
    if needed > (max(size * DEFLATE_CEILING, BLANK_IMAGE) if packed else left):
        raise InputError(
            f"{where}: cut off or damaged: {size} bytes cannot hold the {needed} bytes of pixels that its header "
            "announces. Copy it again from its source."
        )
    return tags


def text_of(element: Any) -> str:
    """The value of an element as it is in the file; ValueError when it ends before its length."""
    if not isinstance(element.value, bytes):  # empty
        return ""
    if len(element.value) != element.length:
        raise ValueError("cut off")
    little = element.is_little_endian
    if element.tag in NUMBERS:
        return str(int.from_bytes(element.value, "little" if little else "big"))
    if element.tag in DOUBLES:
        return "\\".join(f"{number:g}" for (number,) in struct.iter_unpack("<d" if little else ">d", element.value))
    return element.value.decode("utf-8", "replace").strip(" \0")


def undecoded(path: Path) -> str:
    """Why the pixels of a file cannot be decoded, and what to do."""
    import pydicom

    with warnings.catch_warnings(action="ignore"):
        header = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=[SOP_CLASS])
    syntax = header.file_meta.get("TransferSyntaxUID", UNCOMPRESSED[0])
    if syntax in DECODED:
        return "its pixels cannot be decoded. Copy it again from its source."
    return f"its pixels are compressed as {shown(syntax.name)[:60]}, which is not read. Export the series uncompressed."
