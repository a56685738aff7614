"""One case of a folder: read it, predict it, write its mask, and say what became of it."""

from __future__ import annotations

import hashlib
import json
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medmamba.compute.out_of_memory import is_out_of_memory
from medmamba.errors import InputError, MedmambaError
from medmamba.images import MedicalImage, files_of, format_of, write_image, written_files
from medmamba.images.cases import ImageCase, read_case
from medmamba.inference.folder.pseudonyms import Pseudonyms
from medmamba.inference.prediction import Prediction
from medmamba.inference.predictor import Predictor
from medmamba.inference.quality import Finding

SCHEMA_VERSION = 2


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

    def request(self, model: dict[str, Any]) -> dict[str, Any]:
        """Everything that decides what a mask looks like, besides the image."""
        wanted = {**model, "probabilities": self.probabilities}
        for kind in self.dicom:
            wanted[f"dicom_{kind}"] = {"codes_sha256": None if self.codes is None else file_sha256(self.codes)}
        return wanted

    def failed(self, case: ImageCase, model: dict[str, Any], reason: str) -> dict[str, Any]:
        """The record of a case without a mask; whatever was written for it is removed."""
        remove_old(self.target, case)
        return {**self._head(case, model), "status": "failed", "reason": self.shown.hide(reason, case)}

    def _head(self, case: ImageCase, model: dict[str, Any]) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "case": self.shown.of(case.case_id),
            "request": digest(self.request(model)),
        }

    def run(
        self, predictor: Predictor, model: dict[str, Any], case: ImageCase, say: Callable[[str], None]
    ) -> dict[str, Any]:
        """Predict one case and give its record. Never raises for a case that is bad; a full disk ends everything."""
        started = time.perf_counter()
        try:
            image = read_case(case)  # first: it says best what is wrong with a file
            inputs = [input_sha256(path) for path in case.paths]
            result = self._predict(predictor, image, lambda line: say(self.shown.hide(line, case)))
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
        made = result.record()
        made["findings"] += [asdict(Finding("note", self.shown.hide(line, case))) for line in image.warnings]
        return {
            **self._head(case, model),
            "input_sha256": inputs,
            **made,
            "mask": None if self.shown.active else case.output_name,
            "mask_sha256": [file_sha256(path) for path in case.outputs(self.target)],
            "image_sha256": image.content_hash(),
            "geometry": _geometry(image),
            "seconds": {**made["seconds"], "all": round(time.perf_counter() - started, 3)},
        }

    def _predict(self, predictor: Predictor, image: MedicalImage, say: Callable[[str], None]) -> Prediction:
        """The prediction; when memory runs out, once more with as little of it as possible."""
        before = predictor.memory_gib
        try:
            return predictor.predict(image, probabilities=self.probabilities, on_message=say)
        except Exception as error:
            if not is_out_of_memory(error) or before == 0:
                raise
        say(f"{image.path.name if image.path else 'image'}: out of memory; once more, with the planes on disk.")
        predictor.memory_gib = 0.0
        try:
            return predictor.predict(image, probabilities=self.probabilities, on_message=say)
        finally:
            predictor.memory_gib = before

    def finished(self, case: ImageCase, model: dict[str, Any]) -> dict[str, Any] | None:
        """The record of a case finished with the same request and input, its mask still as written; else None."""
        try:
            record = json.loads(record_path(self.target, case).read_text(encoding="utf-8"))
            same = (
                record["status"] != "failed"
                and record["schema_version"] == SCHEMA_VERSION
                and record["request"] == digest(self.request(model))
                and record["input_sha256"] == [input_sha256(path) for path in case.paths]
                and record["mask_sha256"] == [file_sha256(path) for path in case.outputs(self.target)]
            )
        except (InputError, OSError, ValueError, KeyError, TypeError):
            return None
        return record if same else None


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


def _geometry(image: MedicalImage) -> dict[str, Any]:
    grid = image.grid
    return {
        "shape": list(grid.shape),
        "spacing_mm": None if grid.spacing_mm is None else [round(mm, 6) for mm in grid.spacing_mm],
        "orientation": grid.orientation,
        "affine_sha256": None if grid.affine is None else hashlib.sha256(grid.affine.tobytes()).hexdigest(),
    }
