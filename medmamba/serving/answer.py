"""What a request asks for, and the prediction that answers it; runs in the thread of the device."""

import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from medmamba.dicom.study import folder_of_one, innermost, series_below
from medmamba.disk.atomic import write_json
from medmamba.errors import InputError
from medmamba.images import MedicalImage, mask_ending, read_channels, read_image
from medmamba.images import dicom_headers as headers
from medmamba.images.archive import unpack
from medmamba.images.cases import find_cases
from medmamba.images.dicom_series import Series
from medmamba.images.gate import shown
from medmamba.inference.finding import Finding
from medmamba.inference.predictor import Predictor
from medmamba.serving.limits import ServiceLimits
from medmamba.serving.refusal import Refusal, choice_of_series, for_client

Content = Literal["zip", "mask", "report"]
Format = Literal["image", "dicom-seg", "dicom-rtstruct"]
DICOM = "application/dicom"


class Abandoned(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True)
class Wanted:
    """The parameters of a request.

    Attributes:
        content: mask, report, or a zip of both.
        format: of the mask: that of the image, or a DICOM object that refers to the series.
        series: which series of a study, as ``medmamba predict --series``.
    """

    content: Content = "zip"
    format: Format = "image"
    series: str | None = None


@dataclass(frozen=True)
class Answer:
    """A file to send."""

    path: Path
    media_type: str


@dataclass(frozen=True)
class Given:
    """An image, the file of its mask, and the folder of its series if it is one of DICOM."""

    image: MedicalImage
    mask: Path
    series: Path | None = None


def answer(
    predictor: Predictor,
    abandoned: threading.Event,
    files: Sequence[Path],
    wanted: Wanted,
    limits: ServiceLimits,
    codes: Path | None = None,
) -> Answer:
    """Predict the files of one request and write the answer beside them.

    Args:
        abandoned: ends the prediction between two patches, with :class:`Abandoned`.
        files: one image or zip, or an image per channel.
        codes: labels file of DICOM objects.
    """
    folder, notes = files[0].parent, list[str]()

    def go_on(done: int, total: int) -> None:
        if abandoned.is_set():
            raise Abandoned

    go_on(0, 1)
    with read_request(predictor, files, wanted, limits, notes.append) as given:
        result = predictor.predict(given.image, go_on)
        if wanted.format == "image":
            result.save(given.mask)
        elif wanted.content != "report":
            save = result.save_dicom_seg if wanted.format == "dicom-seg" else result.save_dicom_rtstruct
            save(given.mask, codes=codes)
    report = result.report()
    lines = [for_client(line, folder, "") for line in (*notes, *given.image.warnings)]
    report["findings"] += [asdict(Finding("note", line)) for line in lines]
    written = folder / "report.json"
    write_json(written, report)
    if wanted.content == "report":
        return Answer(written, "application/json")
    if wanted.content == "mask":
        return Answer(given.mask, "application/octet-stream" if wanted.format == "image" else DICOM)
    packed = folder / "answer.zip"
    with zipfile.ZipFile(packed, "w") as archive:  # masks are packed already
        archive.write(given.mask, given.mask.name)
        archive.write(written, written.name)
    return Answer(packed, "application/zip")


@contextmanager
def read_request(
    predictor: Predictor, files: Sequence[Path], wanted: Wanted, limits: ServiceLimits, note: Callable[[str], None]
) -> Iterator[Given]:
    """The image of a request, for as long as the block lasts."""
    folder, path = files[0].parent, files[0]
    if path.suffix != ".zip":
        _no_series(wanted)
        names = [f"image {number}" for number in range(1, len(files) + 1)] if len(files) > 1 else ["image"]
        image = read_channels(files, predictor.reading, where=names)
        yield Given(image, folder / f"mask{mask_ending(path)}")
        return
    inside = folder / "the zip"
    inside.mkdir()
    unpack(path, inside, largest_bytes=limits.unpacked_bytes, where="the zip")
    found, others = series_below(inside)
    if found:
        with _chosen(found, others, inside, wanted.series, note) as series:
            image = read_image(series, predictor.reading, where="the series")
            ending = ".nii.gz" if wanted.format == "image" else ".dcm"
            yield Given(image, folder / f"mask{ending}", series)
        return
    _no_series(wanted)
    cases = find_cases(innermost(inside), predictor.plan.channel_files, note)
    if len(cases) != 1:
        raise InputError(f"the zip holds {len(cases)} cases. Send one at a time.")
    case = cases[0]
    image = read_channels(case.paths, predictor.reading)
    yield Given(image, folder / f"mask{case.output_name[len(case.case_id) :]}")


@contextmanager
def _chosen(
    found: list[Series], others: str, inside: Path, choice: str | None, note: Callable[[str], None]
) -> Iterator[Path]:
    """The folder of the series that was asked for; Refusal with the list of all where one must be chosen."""
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(folder_of_one(inside, found, others, choice, "the zip", note))
        except InputError as error:
            if str(error) in [series.problem for series in found]:
                raise
            raise choice_of_series([s.sentence() for s in found], [_facts(s) for s in found], choice) from error
        yield folder


def _no_series(wanted: Wanted) -> None:
    if wanted.series is not None:
        raise Refusal(400, "series is for a zip of DICOM images. Leave it out.")
    if wanted.format != "image":
        raise Refusal(422, f"{wanted.format} refers to a DICOM series. Send a zip of one, or leave format out.")


def _facts(series: Series) -> dict[str, Any]:
    """A series for a program that lets its user choose one."""
    numbers = {"rows": headers.ROWS, "columns": headers.COLUMNS}
    return {
        "number": series.number,
        "uid": series.uid,
        "modality": series.tags.get(headers.MODALITY, ""),
        "description": shown(series.tags.get(headers.DESCRIPTION, "")),
        "images": sum(map(len, series.parts)),
        "parts": [len(part) for part in series.parts],
        **{name: int(series.tags.get(tag) or 0) for name, tag in numbers.items()},
    }
