"""Predict a folder: every case by itself, none lost, nothing left that only looks like a result.

OUT/<case>.nii.gz            the mask
OUT/reports/<case>.json      how it was made; written after the mask, so a mask without one is unfinished
OUT/report.json              the model and all cases, those that failed with the reason
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medmamba.atomic import FolderLock, make_folder, remove_leftovers, write_json
from medmamba.errors import InputError
from medmamba.images import MedicalImage, write_image
from medmamba.inference.cases import ImageCase, find_cases, part_of, read_case
from medmamba.inference.predictor import Prediction, Predictor
from medmamba.inference.pseudonyms import Pseudonyms

SCHEMA_VERSION = 2
OnItem = Callable[[str, int, int], None]


@dataclass
class PredictionReport:
    """What became of each case of a folder; ``resumed`` cases were finished by an earlier run."""

    output: Path
    done: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    resumed: list[str] = field(default_factory=list)

    @property
    def review(self) -> dict[str, list[str]]:
        """Cases that a person should look at, with the reasons."""
        return {
            case_id: [finding["text"] for finding in record["findings"] if finding["level"] != "note"]
            for case_id, record in self.done.items()
            if record["status"] != "ok"
        }


def predict_folder(
    predictor: Predictor,
    images: str | Path | Iterable[Path],
    output: str | Path,
    *,
    part: tuple[int, int] | None = None,
    resume: bool = False,
    probabilities: bool = False,
    pseudonyms: Pseudonyms | None = None,
    on_item: OnItem = lambda stage, done, total: None,
    on_message: Callable[[str], None] = lambda line: None,
) -> PredictionReport:
    """Predict every case of ``images`` into ``output``.

    Args:
        part: (i, n): only every n-th case, the i-th of them; for several machines on one folder.
        resume: keep the masks of cases that were finished with the same model, settings and input.
        probabilities: also write <case>_probabilities with one channel per class.
        pseudonyms: names for logs and reports in place of case ids.

    A case that cannot be read or fails is named in the report and the others are finished; no mask is written for it,
    and an old one of the same name is removed before anything is predicted. Raises ResourceError when the disk is full.
    """
    target = Path(output)
    cases = find_cases(images if isinstance(images, str | Path) else list(images))
    if any(path.parent.resolve() == target.resolve() for case in cases for path in case.paths):
        raise InputError(f"{target}: output and input are the same folder. Choose another output folder.")
    everything = cases
    part = part or _part_of_launcher()
    if part is not None:
        cases = part_of(cases, part)
    shown = pseudonyms or Pseudonyms.none()
    make_folder(target)
    lock = target if part is None else target / f".part-{part[0]}-of-{part[1]}"
    with FolderLock(lock):
        remove_leftovers(target)
        model = predictor.provenance()
        wanted = {**model, "probabilities": probabilities}
        report = PredictionReport(target)
        finished = {case.case_id: _finished(target, case, wanted) for case in cases} if resume else {}
        for case in cases:
            if finished.get(case.case_id) is None:
                _remove_old(target, case)
        for done, case in enumerate(cases):
            on_item("predict", done, len(cases))
            record = finished.get(case.case_id)
            if record is not None:
                report.resumed.append(case.case_id)
            else:
                record = _predict_case(predictor, case, target, wanted, probabilities, shown, on_message)
                write_json(_record_path(target, case), record)
            if record["status"] == "failed":
                report.failed[case.case_id] = record["reason"]
            else:
                report.done[case.case_id] = record
        on_item("predict", len(cases), len(cases))
        shown.write_key(target, [case.case_id for case in everything])
        _write_report(target, everything, wanted, shown)
    return report


def _predict_case(
    predictor: Predictor,
    case: ImageCase,
    target: Path,
    wanted: dict[str, Any],
    probabilities: bool,
    shown: Pseudonyms,
    on_message: Callable[[str], None],
) -> dict[str, Any]:
    started = time.perf_counter()
    record: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "case": shown.of(case.case_id),
        "request": _digest(wanted),
    }
    try:
        record["input_sha256"] = [file_sha256(path) for path in case.paths]
        image = read_case(case)
        result = predictor.predict(
            image, probabilities=probabilities, on_message=lambda line: on_message(shown.hide(line, case))
        )
        result.save(target / case.output_name)
        if result.probabilities is not None:
            _write_probabilities(target, case, image, result)
    except (InputError, FloatingPointError, MemoryError) as error:
        _remove_old(target, case)
        reason = "out of memory; close other programs or use --fast" if isinstance(error, MemoryError) else str(error)
        return {**record, "status": "failed", "reason": shown.hide(reason, case)}
    return {
        **record,
        "status": result.status,
        "findings": [asdict(finding) for finding in (*result.findings, *_warnings(image, case, shown))],
        "mask": None if shown.active else case.output_name,
        "mask_sha256": [file_sha256(path) for path in case.outputs(target)],
        "image_sha256": image.content_hash(),
        "geometry": _geometry(image),
        "voxels": result.voxels,
        "volume_ml": result.volumes_ml,
        "empty": not any(result.voxels.values()),
        "entropy": result.entropy,
        "fold_agreement": result.agreement,
        "seconds": {
            **{k: round(v, 3) for k, v in result.seconds.items()},
            "all": round(time.perf_counter() - started, 3),
        },
    }


def _finished(target: Path, case: ImageCase, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """The record of a case that was finished with the same request and input, its mask still as written."""
    try:
        record = json.loads(_record_path(target, case).read_text(encoding="utf-8"))
        same = (
            record["status"] != "failed"
            and record["schema_version"] == SCHEMA_VERSION
            and record["request"] == _digest(wanted)
            and record["input_sha256"] == [file_sha256(path) for path in case.paths]
            and record["mask_sha256"] == [file_sha256(path) for path in case.outputs(target)]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if same else None


def _write_report(target: Path, cases: list[ImageCase], model: dict[str, Any], shown: Pseudonyms) -> None:
    """All records that belong to the input's cases, of other parts too."""
    done, failed = {}, {}
    for case in cases:
        try:
            record = json.loads(_record_path(target, case).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # a part that has not come to it yet
        name = shown.of(case.case_id)
        if record["status"] == "failed":
            failed[name] = record["reason"]
        else:
            done[name] = {
                key: value for key, value in record.items() if key not in ("schema_version", "case", "request")
            }
    summary = {"cases": len(cases), "done": len(done), "failed": len(failed)}
    summary["waiting"] = len(cases) - len(done) - len(failed)
    record = {"schema_version": SCHEMA_VERSION, "summary": summary, "model": model, "cases": done, "failed": failed}
    write_json(target / "report.json", record)


def _write_probabilities(target: Path, case: ImageCase, image: MedicalImage, result: Prediction) -> None:
    assert result.probabilities is not None
    write_image(_probability_path(target, case), result.probabilities, like=image)


def _probability_path(target: Path, case: ImageCase) -> Path:
    ending = case.output_name[len(case.case_id) :]
    flat = ending.lower() in (".png", ".tif", ".tiff", ".bmp")
    return target / f"{case.case_id}_probabilities{'.nii.gz' if flat else ending}"


def _remove_old(target: Path, case: ImageCase) -> None:
    for path in (*case.outputs(target), _probability_path(target, case), _record_path(target, case)):
        path.unlink(missing_ok=True)


def _record_path(target: Path, case: ImageCase) -> Path:
    # The record of a case never carries its id when pseudonyms are used; its file name is a hash in any case of doubt.
    return target / "reports" / f"{hashlib.sha256(case.case_id.encode()).hexdigest()[:16]}.json"


def _geometry(image: MedicalImage) -> dict[str, Any]:
    grid = image.grid
    return {
        "shape": list(grid.shape),
        "spacing_mm": None if grid.spacing_mm is None else [round(mm, 6) for mm in grid.spacing_mm],
        "orientation": grid.orientation,
        "affine_sha256": None if grid.affine is None else hashlib.sha256(grid.affine.tobytes()).hexdigest(),
    }


def _warnings(image: MedicalImage, case: ImageCase, shown: Pseudonyms) -> list[Any]:
    from medmamba.inference.quality import Finding

    return [Finding("note", shown.hide(line, case)) for line in image.warnings]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of a folder's files (a DICOM series)."""
    if path.is_dir():
        digest = hashlib.sha256()
        for file in sorted(entry for entry in path.iterdir() if entry.is_file() and not entry.name.startswith(".")):
            digest.update(f"{file_sha256(file)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _part_of_launcher() -> tuple[int, int] | None:
    """The part that torchrun gives this process; None when it was not started by it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    return (rank + 1, world) if world > 1 else None
