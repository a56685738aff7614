"""One case of a folder: read, predicted, its mask written, its record made."""

from __future__ import annotations

import hashlib
import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmamba.compute.device import is_out_of_memory
from medmamba.errors import InputError, MedmambaError
from medmamba.images import MedicalImage, files_of, format_of, write_image, written_files
from medmamba.images.cases import ImageCase, read_case
from medmamba.inference.folder.case_record import CaseRecord, Geometry
from medmamba.inference.folder.pseudonyms import Pseudonyms
from medmamba.inference.prediction import Prediction, Provenance
from medmamba.inference.predictor import Predictor
from medmamba.inference.quality import Finding


@dataclass(frozen=True)
class Job:
    """What is the same for all cases of a folder: where masks go, what is asked for, and what names are shown.

    ``dicom``: also write each mask as DICOM SEG ("seg"), as contours ("rtstruct") or both, with the codes of the labels
    file ``codes``.
    """

    target: Path
    probabilities: bool
    shown: Pseudonyms
    dicom: tuple[str, ...] = ()
    codes: Path | None = None

    def request(self, model: Provenance) -> dict[str, Any]:
        """Everything that decides what a mask looks like, besides the image; stands in report.json."""
        wanted = {**model.as_dict(), "probabilities": self.probabilities}
        for kind in self.dicom:
            wanted[f"dicom_{kind}"] = {"codes_sha256": None if self.codes is None else file_sha256(self.codes)}
        return wanted

    def failed(self, case: ImageCase, model: Provenance, reason: str) -> CaseRecord:
        """The record of a case without a mask; whatever was written for it is removed."""
        remove_old(self.target, case)
        return CaseRecord(
            case=self.shown.of(case.case_id),
            request=digest(self.request(model)),
            status="failed",
            reason=self.shown.hide(reason, case),
        )

    def run(
        self, predictor: Predictor, model: Provenance, case: ImageCase, on_message: Callable[[str], None]
    ) -> CaseRecord:
        """Predict one case and give its record. Never raises for a case that is bad; a full disk ends everything."""
        started = time.perf_counter()
        try:
            image = read_case(case)  # first: its errors name best what is wrong with a file
            inputs = [input_sha256(path) for path in case.paths]
            result = self._predict(predictor, image, lambda line: on_message(self.shown.hide(line, case)))
            result.save(self.target / case.output_name)
            if result.probabilities is not None:
                write_image(probability_path(self.target, case), result.probabilities, like=image)
            for kind in self.dicom if any(result.voxels.values()) else ():  # DICOM knows none without segments
                save = result.save_dicom_seg if kind == "seg" else result.save_dicom_rtstruct
                save(dicom_path(self.target, case, kind), codes=self.codes)
        except (InputError, FloatingPointError) as error:
            return self.failed(case, model, str(error))
        except MedmambaError:
            raise
        except Exception as error:  # this case is lost, all others are not
            if is_out_of_memory(error):
                reason = "out of memory, with planes on disk too. Close other programs, or use --fast"
                return self.failed(case, model, f"{case.case_id}: {reason}.")
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(place.filename).name}:{place.lineno}"
            return self.failed(case, model, f"{case.case_id}: unexpected {type(error).__name__} at {where}: {error}")
        warnings = [Finding("note", self.shown.hide(line, case)) for line in image.warnings]
        seconds = {**result.seconds, "all": time.perf_counter() - started}
        return CaseRecord(
            case=self.shown.of(case.case_id),
            request=digest(self.request(model)),
            status=result.status,
            input_sha256=inputs,
            findings=[*result.findings, *warnings],
            voxels=result.voxels,
            volume_ml=result.volumes_ml,
            empty=not any(result.voxels.values()),
            entropy=result.entropy,
            fold_agreement=result.agreement,
            seconds={stage: round(value, 3) for stage, value in seconds.items()},
            mask=None if self.shown.active else case.output_name,
            mask_sha256=[file_sha256(path) for path in case.outputs(self.target)],
            image_sha256=image.content_hash(),
            geometry=Geometry.of(image.grid),
        )

    def _predict(self, predictor: Predictor, image: MedicalImage, on_message: Callable[[str], None]) -> Prediction:
        """The prediction; when memory runs out, once more with as little of it as possible."""
        try:
            return predictor.predict(image, probabilities=self.probabilities, on_message=on_message)
        except Exception as error:
            if not is_out_of_memory(error) or predictor.options.memory_gib == 0:
                raise
        on_message(f"{image.path.name if image.path else 'image'}: out of memory; once more, with the planes on disk.")
        return predictor.predict(image, probabilities=self.probabilities, planes_on_disk=True, on_message=on_message)

    def finished(self, case: ImageCase, model: Provenance) -> CaseRecord | None:
        """The record of a case finished with the same request and input, its mask still as written; else None."""
        try:
            record = read_record(self.target, case)
            same = (
                not record.failed
                and record.request == digest(self.request(model))
                and record.input_sha256 == [input_sha256(path) for path in case.paths]
                and record.mask_sha256 == [file_sha256(path) for path in case.outputs(self.target)]
            )
        except (InputError, OSError, ValueError, KeyError, TypeError):
            return None
        return record if same else None


def read_record(target: Path, case: ImageCase) -> CaseRecord:
    """The record of a case. Raises OSError, ValueError, KeyError or TypeError where there is none of this version."""
    return CaseRecord.from_dict(json.loads(record_path(target, case).read_text(encoding="utf-8")))


def record_path(target: Path, case: ImageCase) -> Path:
    """Where the record of a case stands; its name is a hash, so that pseudonyms stay pseudonyms."""
    return target / "reports" / f"{hashlib.sha256(case.case_id.encode()).hexdigest()[:16]}.json"


def probability_path(target: Path, case: ImageCase) -> Path:
    """Where the probabilities of a case stand: in the format of its mask, or in NIfTI where that cannot hold them."""
    ending = case.output_name[len(case.case_id) :] if format_of(case.output_name).holds_probabilities else ".nii.gz"
    return target / f"{case.case_id}_probabilities{ending}"


def dicom_path(target: Path, case: ImageCase, kind: str) -> Path:
    """Where the DICOM SEG or the RTSTRUCT of a case stands."""
    return target / f"{case.case_id}{'' if kind == 'seg' else '_rtstruct'}.dcm"


def remove_old(target: Path, case: ImageCase) -> None:
    """Remove what an earlier run wrote for a case, so that nothing stale looks like a result."""
    also = (record_path(target, case), *(dicom_path(target, case, kind) for kind in ("seg", "rtstruct")))
    for path in (*case.outputs(target), *written_files(probability_path(target, case)), *also):
        path.unlink(missing_ok=True)


def digest(value: Any) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def input_sha256(path: Path) -> str:
    """SHA-256 of an image's file, or of the hashes of its files (header and voxels, a DICOM series)."""
    files = files_of(path)
    if files == [path]:
        return file_sha256(path)
    return hashlib.sha256("".join(f"{file_sha256(file)}\n" for file in files).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
