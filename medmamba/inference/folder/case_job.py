"""One case of a folder: read, predicted, its mask written, its record in reports/<case>.json, and its pseudonym."""

import hashlib
import json
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from medmamba.compute.device import is_out_of_memory
from medmamba.disk.own_files import OwnFiles, file_sha256
from medmamba.errors import ConfigError, InputError, MedmambaError
from medmamba.geometry import Grid
from medmamba.images import (
    MedicalImage,
    files_of,
    format_of,
    read_channels,
    read_label_map,
    write_image,
    write_label_map,
    written_files,
)
from medmamba.images.cases import PROBABILITIES, ImageCase
from medmamba.inference.expected import ExpectedQuality, remarks_of
from medmamba.inference.finding import Finding
from medmamba.inference.folder.page import READING, uncertainty_path
from medmamba.inference.folder.pseudonyms import Pseudonyms
from medmamba.inference.options import PredictOptions
from medmamba.inference.prediction import Prediction, Provenance
from medmamba.inference.predictor import Predictor
from medmamba.plans.json_record import read_stored

SCHEMA_VERSION = 2


@dataclass(frozen=True)
class Geometry:
    """The grid of an image: shape (i, j, k), spacing, axes such as "RAS", and the hash of its affine."""

    shape: Sequence[int]
    spacing_mm: Sequence[float] | None
    orientation: str | None
    affine_sha256: str | None

    @classmethod
    def of(cls, grid: Grid) -> "Geometry":
        """The facts of a grid."""
        spacing = None if grid.spacing_mm is None else [round(mm, 6) for mm in grid.spacing_mm]
        affine = None if grid.affine is None else hashlib.sha256(grid.affine.tobytes()).hexdigest()
        return cls(list(grid.shape), spacing, grid.orientation, affine)


@dataclass(frozen=True)
class CaseRecord:
    """What became of a case.

    Attributes:
        case: its name, or pseudonym.
        request: hash of everything that decides a mask besides the image.
        status: ok, review, or failed; then ``reason`` says why, and all below it is missing.
        findings: what is unusual about image or mask.
        volume_ml: by label; None without millimetres.
        empty: whether no label has a voxel.
        entropy, fold_agreement, expected, not_learned: of :class:`~medmamba.Prediction`.
        seconds: by stage.
        mask: name of its file; None under a pseudonym.
        input_sha256, mask_sha256, probabilities_sha256: of the files; image_sha256: of voxels and grid.
        dicom: the DICOM objects that were written ("seg", "rtstruct"), each with the SHA-256 of its labels file or "".
        not_written: what failed after the mask was finished ("probabilities", "uncertainty", "dicom_seg",
            "dicom_rtstruct", "mask_sha256"), with the reason.
    """

    case: str
    request: str
    status: str
    reason: str = ""
    input_sha256: Sequence[str] = ()
    findings: Sequence[Finding] = ()
    voxels: Mapping[str, int] | None = None
    volume_ml: Mapping[str, float | None] | None = None
    empty: bool = False
    entropy: float | None = None
    fold_agreement: float | None = None
    expected: Mapping[str, ExpectedQuality] = field(default_factory=dict)
    not_learned: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] | None = None
    mask: str | None = None
    mask_sha256: Sequence[str] = ()
    probabilities_sha256: Sequence[str] = ()
    image_sha256: str | None = None
    geometry: Geometry | None = None
    dicom: Mapping[str, str] = field(default_factory=dict)
    not_written: Mapping[str, str] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether there is no mask."""
        return self.status == "failed"

    def as_dict(self) -> dict[str, Any]:
        """As JSON; of a failed case the reason alone, of others everything else."""
        numbers = asdict(self)
        shown = ("case", "request", "status", "reason") if self.failed else [key for key in numbers if key != "reason"]
        return {"schema_version": SCHEMA_VERSION, **{key: numbers[key] for key in shown}}


@dataclass(frozen=True)
class Job:
    """What is the same for all cases of a folder: where masks go, what is asked for, what makes the masks, and what
    names are shown."""

    own: OwnFiles
    options: PredictOptions
    model: Provenance
    shown: Pseudonyms

    @property
    def target(self) -> Path:
        """The output folder."""
        return self.own.folder

    @property
    def has_page(self) -> bool:
        """Whether there is something to say about each mask, for OUT/report.html."""
        return self.model.expectations_sha256 is not None or self.options.uncertainty

    def request(self) -> dict[str, Any]:
        """Everything that decides what a mask looks like, besides the image; stands in report.json."""
        dicom = {f"dicom_{kind}": {"codes_sha256": self._codes() or None} for kind in self.options.dicom_kinds}
        return {**self._mask_request(), **dicom}

    def _mask_request(self) -> dict[str, Any]:
        """:meth:`request` without DICOM objects, which can be made from a finished mask."""
        kept = {"uncertainty": True} if self.options.uncertainty else {}
        asked = {"accept_dice": self.options.accept_dice, "risk": self.options.risk}
        status = {} if self.options.accept_dice is None else asked
        return {**self.model.as_dict(), "probabilities": self.options.probabilities, **kept, **status}

    def _codes(self) -> str:
        return "" if self.options.codes is None else file_sha256(Path(self.options.codes))

    def _record(self, case: ImageCase, **facts: Any) -> CaseRecord:
        request = hashlib.sha256(json.dumps(self._mask_request(), sort_keys=True).encode()).hexdigest()
        return CaseRecord(case=self.shown.of(case.case_id), request=request, **facts)

    def failed(self, case: ImageCase, reason: str) -> CaseRecord:
        """The record of a case without a mask; whatever was written for it is removed."""
        self.remove_old(case)
        return self._record(case, status="failed", reason=self.shown.hide(reason, case))

    def run(
        self,
        predictor: Predictor,
        case: ImageCase,
        on_message: Callable[[str], None],
        on_tile: Callable[[int, int], None] | None = None,
    ) -> CaseRecord:
        """Predict one case and give its record. Never raises for a case that is bad; a full disk ends everything."""
        with self.own.recording():
            return self._run(predictor, case, on_message, on_tile)

    def _run(
        self,
        predictor: Predictor,
        case: ImageCase,
        on_message: Callable[[str], None],
        on_tile: Callable[[int, int], None] | None,
    ) -> CaseRecord:
        started = time.perf_counter()
        try:
            image = read_channels(case.paths, predictor.reading)  # first: its errors are the most specific
            for line in image.warnings:
                on_message(self.shown.hide(f"Warning: {line}", case))
            inputs = [input_sha256(path) for path in case.paths]
            result = self._predict(predictor, image, lambda line: on_message(self.shown.hide(line, case)), on_tile)
            result.save(self.target / case.output_name)
        except InputError as error:
            return self.failed(case, str(error))
        except MedmambaError:
            raise
        except Exception as error:  # this case is lost, all others are not
            return self.failed(case, _reason(error, case))
        not_written: dict[str, str] = {}  # from here on the mask stays, whatever fails
        mask_sha256: list[str] = []
        with self._noted(case, not_written, "mask_sha256"):
            mask_sha256 = [file_sha256(path) for path in case.outputs(self.target)]
        probabilities_sha256: list[str] = []
        if result.probabilities is not None:
            with self._noted(case, not_written, "probabilities"):
                write_image(probability_path(self.target, case), result.probabilities, like=image)
                probabilities_sha256 = [
                    file_sha256(path) for path in written_files(probability_path(self.target, case))
                ]
        if result.uncertainty is not None:
            with self._noted(case, not_written, "uncertainty"):
                write_label_map(uncertainty_path(self.target, case), result.uncertainty, like=image)
        kinds = self.options.dicom_kinds
        dicom = self._write_dicom(case, kinds, result.labels, result.grid, not_written, result.expected)
        seconds = {**result.seconds, "all": time.perf_counter() - started}
        facts = {
            **result.record(),
            "expected": result.expected,
            "findings": [*result.findings, *(Finding("note", self.shown.hide(line, case)) for line in image.warnings)],
            "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
        }
        return self._record(
            case,
            **facts,
            input_sha256=inputs,
            mask=case.output_name if self.shown.salt is None else None,
            mask_sha256=mask_sha256,
            probabilities_sha256=probabilities_sha256,
            image_sha256=image.content_hash(),
            geometry=Geometry.of(image.grid),
            dicom=dicom,
            not_written=not_written,
        )

    @contextmanager
    def _noted(self, case: ImageCase, not_written: dict[str, str], product: str) -> Iterator[None]:
        """Puts the failure of a product into ``not_written``; what is finished stays."""
        try:
            yield
        except Exception as error:
            not_written[product] = self.shown.hide(_reason(error, case), case)

    def _write_dicom(
        self,
        case: ImageCase,
        kinds: Sequence[str],
        labels: Any,
        grid: Grid,
        not_written: dict[str, str],
        expected: Mapping[str, ExpectedQuality],
    ) -> dict[str, str]:
        """Write DICOM objects of a mask; those that were written, as ``dicom`` of the record."""
        from medmamba.dicom.codes import read_codes
        from medmamba.dicom.contours import write_contours
        from medmamba.dicom.segmentation import write_segmentation

        written, names = {}, self.model.labels
        for kind in kinds:
            write: Callable[..., None] = write_contours
            if kind == "seg":
                write = partial(write_segmentation, remarks=remarks_of(expected))
            with self._noted(case, not_written, f"dicom_{kind}"):
                codes = read_codes(self.options.codes, list(names))
                write(dicom_path(self.target, case, kind), labels, grid, case.paths[0], names, codes)
                written[kind] = self._codes()
        return written

    def completed(self, case: ImageCase, record: CaseRecord) -> CaseRecord:
        """The record of a finished case after writing the DICOM objects that it lacks, from its mask."""
        wanted = self.options.dicom_kinds
        lacking = [
            kind
            for kind in wanted
            if record.dicom.get(kind) != self._codes() or not dicom_path(self.target, case, kind).is_file()
        ]
        not_written: dict[str, str] = {}
        dicom = {kind: codes for kind, codes in record.dicom.items() if kind not in lacking}
        if lacking:
            self.own.remove([dicom_path(self.target, case, kind) for kind in lacking])
            try:
                mask = read_label_map(self.target / case.output_name, READING)
            except InputError as error:
                not_written = dict.fromkeys((f"dicom_{kind}" for kind in lacking), self.shown.hide(str(error), case))
            else:
                dicom |= self._write_dicom(case, lacking, mask.array, mask.grid, not_written, record.expected)
        return replace(record, dicom=dicom, not_written=not_written)

    def _predict(
        self,
        predictor: Predictor,
        image: MedicalImage,
        on_message: Callable[[str], None],
        on_tile: Callable[[int, int], None] | None,
    ) -> Prediction:
        """The prediction; when memory runs out, once more with as little of it as possible."""
        options = self.options
        answer = partial(
            predictor.predict,
            probabilities=options.probabilities,
            uncertainty=options.uncertainty,
            on_message=on_message,
        )
        try:
            return answer(image, on_tile=on_tile)
        except Exception as error:
            if not is_out_of_memory(error) or predictor.options.memory_gib == 0:
                raise
        on_message(f"{image.path.name if image.path else 'image'}: out of memory; once more, with the planes on disk.")
        return answer(image, on_tile=on_tile, planes_on_disk=True)

    def outputs(self, case: ImageCase) -> list[Path]:
        """The files that are written for a case."""
        dicom = [dicom_path(self.target, case, kind) for kind in self.options.dicom_kinds]
        return [*case.outputs(self.target), *self._arrays(case, self.options), *dicom]

    def _arrays(self, case: ImageCase, options: PredictOptions | None = None) -> list[Path]:
        """The files of probabilities and uncertainty, if the options ask for them; without options of both."""
        wanted = [probability_path(self.target, case)] if options is None or options.probabilities else []
        wanted += [uncertainty_path(self.target, case)] if options is None or options.uncertainty else []
        return [file for path in wanted for file in written_files(path)]

    def remove_old(self, case: ImageCase) -> None:
        """Remove what an earlier run wrote for a case, so that nothing stale looks like a result.

        Files of the user stay, unless they are to be overwritten.
        """
        outputs = [*self.outputs(case), record_path(self.target, case)]
        if self.own.overwrite:
            for path in outputs:
                path.unlink(missing_ok=True)
        also = [dicom_path(self.target, case, kind) for kind in ("seg", "rtstruct")]
        self.own.remove([*outputs, *self._arrays(case), *also])

    def finished(self, case: ImageCase) -> CaseRecord | None:
        """The record of a case finished with the same request and input, its mask still as written; else None."""
        record = read_record(self.target, case)
        try:
            same = (
                record is not None
                and record.request == self._record(case, status="").request
                and record.input_sha256 == [input_sha256(path) for path in case.paths]
                and not {"probabilities", "uncertainty"} & set(record.not_written)
                and record.mask_sha256 == [file_sha256(path) for path in case.outputs(self.target)]
                and all(path.is_file() for path in self._arrays(case, self.options))
            )
        except (InputError, OSError):
            return None
        return record if same else None


def _reason(error: Exception, case: ImageCase) -> str:
    """Why a case, or a product of it, could not be made, in one line."""
    if isinstance(error, MedmambaError | FloatingPointError):
        return str(error)
    if is_out_of_memory(error):
        return f"{case.case_id}: out of memory, with planes on disk too. Close other programs, or use --fast."
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(place.filename).name}:{place.lineno}"
    return f"{case.case_id}: unexpected {type(error).__name__} at {where}: {error}"


def read_record(target: Path, case: ImageCase) -> CaseRecord | None:
    """The record of a case; None where there is none of this version."""
    try:
        numbers = read_stored(record_path(target, case), dict[str, Any], "record of a case", "")
        known = numbers.get("schema_version") == SCHEMA_VERSION
        return TypeAdapter(CaseRecord).validate_python(numbers) if known else None
    except (ConfigError, ValidationError):
        return None


def record_path(target: Path, case: ImageCase) -> Path:
    """Where the record of a case stands; its name is a hash, so that pseudonyms stay pseudonyms."""
    return target / "reports" / f"{hashlib.sha256(case.case_id.encode()).hexdigest()[:16]}.json"


def probability_path(target: Path, case: ImageCase) -> Path:
    """Where the probabilities of a case stand: in the format of its mask, or in NIfTI where that cannot hold them."""
    ending = case.output_name[len(case.case_id) :] if format_of(case.output_name).holds_probabilities else ".nii.gz"
    return target / f"{case.case_id}{PROBABILITIES}{ending}"


def dicom_path(target: Path, case: ImageCase, kind: str) -> Path:
    """Where the DICOM SEG or the RTSTRUCT of a case stands."""
    return target / f"{case.case_id}{'' if kind == 'seg' else '_rtstruct'}.dcm"


def input_sha256(path: Path) -> str:
    """SHA-256 of an image's file, or of the hashes of its files (header and voxels, a DICOM series)."""
    files = files_of(path)
    if files == [path]:
        return file_sha256(path)
    return hashlib.sha256("".join(f"{file_sha256(file)}\n" for file in files).encode()).hexdigest()
