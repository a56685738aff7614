"""Prediction of a folder of images, and its reproduction: cases are independent, results complete or absent.

OUT/<case>.nii.gz            the mask
OUT/reports/<case>.json      how it was made; written after the mask, so a mask without one is unfinished
OUT/report.json              the model and all cases, those that failed with the reason
OUT/report.html              the cases, those to look at first on top; where expected quality was learned
"""

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from medmamba.compute.device import unused_gpu
from medmamba.dicom.codes import check_codes, read_codes
from medmamba.dicom.study import opened
from medmamba.disk.atomic import make_folder, write_json
from medmamba.disk.leftovers import remove_leftovers
from medmamba.disk.lock import FolderLock
from medmamba.disk.own_files import OwnFiles, file_sha256, real_path, refuse_dataset_folder
from medmamba.disk.scratch import scratch_folder
from medmamba.errors import ConfigError, InputError, InputErrors, PartialError, counted
from medmamba.images.cases import ImageCase, find_cases, numbers_in_names, part_of
from medmamba.images.formats import DICOM, format_of
from medmamba.inference.folder.case_job import (
    SCHEMA_VERSION,
    CaseRecord,
    Job,
    input_sha256,
    read_record,
    record_path,
)
from medmamba.inference.folder.forecast import Forecast
from medmamba.inference.folder.page import PAGE, write_page
from medmamba.inference.folder.pseudonyms import KEY_FILE, Pseudonyms
from medmamba.inference.folder.workers import Workers
from medmamba.inference.joint import Models, join, paths_of
from medmamba.inference.options import PredictOptions, PredictorOptions
from medmamba.inference.predictor import Predictor
from medmamba.inference.trained_model import TrainedModel, load_model
from medmamba.models.run_folder import is_plan
from medmamba.plans.json_record import as_written, read_stored

OnItem = Callable[[str, int, int], None]
PATIENCE = 60.0
"""Seconds that a part waits for another one to write the report; it takes far less."""


@dataclass
class PredictionReport:
    """What became of each case of a folder, by the name to show; ``resumed`` were finished by an earlier run."""

    output: Path
    done: dict[str, CaseRecord] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    resumed: list[str] = field(default_factory=list)

    @property
    def review(self) -> dict[str, list[str]]:
        """Cases that a person should look at, with the reasons."""
        return {
            case_id: [finding.text for finding in record.findings if finding.level != "note"]
            for case_id, record in self.done.items()
            if record.status != "ok"
        }

    @property
    def not_written(self) -> dict[str, dict[str, str]]:
        """Cases that have a mask but not all else that was asked for, with the reasons by product."""
        return {case_id: dict(record.not_written) for case_id, record in self.done.items() if record.not_written}

    def raise_failures(self) -> None:
        """Raise PartialError with the reason of all that failed; InputErrors when no case was predicted."""
        if not (self.failed or self.not_written):
            return
        lines = list(self.failed.values())
        summary = f"{len(self.done)} ok, {len(lines)} failed{': ' * bool(lines)}{', '.join(self.failed)}"
        for case_id, products in self.not_written.items():
            lines += [f"{case_id}: its mask is written, {name} is not: {why}" for name, why in products.items()]
        if self.not_written:
            summary += f"; incomplete: {', '.join(self.not_written)} (--resume tries again what is missing)"
        raise (PartialError if self.done else InputErrors)(*lines, summary)


def predict(
    model: Models | Predictor,
    images: str | Path | Sequence[Path],
    output: str | Path,
    options: PredictOptions | None = None,
    *,
    on_item: OnItem = lambda stage, done, total: None,
    on_message: Callable[[str], None] = lambda line: None,
    **changes: Any,
) -> PredictionReport:
    """Predict a file, a zip or every case of a folder; masks and ``report.json`` are written to ``output``.

    Of several models the probabilities are averaged.
    """
    options = PredictOptions.of(options, **changes)
    with ExitStack() as stack:
        names = on_message if not options.pseudonymise else lambda line: on_message("Some files were ignored.")
        if isinstance(images, str | Path):
            images = stack.enter_context(opened(images, options.series, names))
        find_cases(images, on_message=names)  # a wrong path is reported before a model is loaded
        if options.dicom_kinds:
            check_codes(options.codes)
        engine: Predictor | Workers
        if options.workers and not isinstance(model, Predictor):
            engine = stack.enter_context(Workers(model, options, options.workers))
        else:
            engine = model if isinstance(model, Predictor) else Predictor(model, options)
        return predict_folder(engine, images, output, options, on_item=on_item, on_message=on_message)


def predict_folder(
    engine: Predictor | Workers,
    images: str | Path | Sequence[Path | ImageCase],
    output: str | Path,
    options: PredictOptions | None = None,
    *,
    on_item: OnItem = lambda stage, done, total: None,
    on_message: Callable[[str], None] = lambda line: None,
) -> PredictionReport:
    """Predict every case of ``images`` into ``output``.

    Args:
        engine: a predictor, which works in this process, or :class:`~medmamba.inference.folder.workers.Workers`.
        options: what is written, which cases, and under which names; those of the model are the engine's own.
            ``probabilities`` are written as <case>_probabilities, DICOM objects as <case>.dcm and <case>_rtstruct.dcm.

    A product that fails after the mask is finished is named in the record (``not_written``), and the mask stays.
    A case that cannot be read or fails is named in the report and the others are finished; no mask is written for it,
    and an old one of the same name is removed before anything is predicted. Raises InputError when a file of another
    program, or one changed since, is in the way and not to be overwritten, ResourceError when the disk is full.
    """
    options = options or PredictOptions()
    target, dicom = Path(output), options.dicom_kinds
    model = engine.provenance()
    given = images if isinstance(images, str | Path) else [one for one in images if isinstance(one, Path)]
    everything = [] if isinstance(images, str | Path) else [one for one in images if isinstance(one, ImageCase)]
    channel_files = model.settings.reading["channel_files"]
    everything = everything or find_cases(given, channel_files)
    if (note := numbers_in_names(everything, channel_files)) and not options.pseudonymise:
        on_message(note)
    refuse_dataset_folder(target)
    if dicom:
        read_codes(options.codes, list(model.labels))  # a wrong name is reported before the first case
    place = real_path(target)
    if any(place in (real_path(path), real_path(path.parent)) for case in everything for path in case.paths):
        raise InputError(f"{target}: output and input are the same folder. Choose another output folder.")
    if dicom and (wrong := next((case for case in everything if format_of(case.paths[0]) is not DICOM), None)):
        raise InputError(f"{wrong.paths[0].name}: not a DICOM series, so it has no --dicom-{dicom[0]}. Leave that out.")
    part = options.part or _part_of_launcher()
    cases = everything if part is None else part_of(everything, part)
    job = Job(OwnFiles(target, options.overwrite), options, model, Pseudonyms(None))
    _refuse_one_file_of_two(job, everything)
    _refuse_foreign(job, cases)
    make_folder(target / "reports")
    with ExitStack() as locks:
        locks.enter_context(FolderLock(target, shared=part is not None))
        if part is not None:
            locks.enter_context(FolderLock(target / f".part-{part[0]}-of-{part[1]}"))
        remove_leftovers(target, shared=part is not None)
        remove_leftovers(target / "reports", shared=part is not None)
        locks.enter_context(job.own.recording())
        if options.pseudonymise:
            with FolderLock(target / "reports", patience_seconds=PATIENCE):  # parts that begin together share one key
                job = replace(job, shown=Pseudonyms.of_folder(target))
                job.shown.write_key(target, [case.case_id for case in everything])
        shown = job.shown
        unused = unused_gpu() if job.model.device == "cpu" else None
        on_message(f"Predicting with {job.model.sentence()}." + (f" {unused}" if unused else ""))
        for line in job.model.warnings:
            on_message(f"Warning: {line}.")
        report = PredictionReport(target)
        for case in cases:
            record = job.finished(case) if options.resume else None
            if record is None:
                job.remove_old(case)
            else:
                if (completed := job.completed(case, record)) != record:
                    record = completed
                    write_json(record_path(target, case), record.as_dict())
                report.resumed.append(shown.of(case.case_id))
                report.done[shown.of(case.case_id)] = record
        waiting = [case for case in cases if shown.of(case.case_id) not in report.done]
        on_item("predict", len(report.done), len(cases))
        forecast = Forecast(len(waiting), on_message, together=engine.count if isinstance(engine, Workers) else 1)
        if isinstance(engine, Workers):
            records = engine.records(waiting, job, on_message)
        else:
            records = ((case, job.run(engine, case, on_message, forecast.on_patch)) for case in waiting)
        for case, record in records:
            write_json(record_path(target, case), record.as_dict())
            if record.failed:
                report.failed[shown.of(case.case_id)] = record.reason
            else:
                forecast.on_case()
                report.done[shown.of(case.case_id)] = record
            on_item("predict", len(report.done) + len(report.failed), len(cases))
        remove_leftovers(target, shared=part is not None)  # of workers that were killed
        with FolderLock(target / "reports", patience_seconds=PATIENCE):  # of parts that end together the last sees all
            _write_report(everything, job)
    return report


def _refuse_one_file_of_two(job: Job, cases: list[ImageCase]) -> None:
    """Raises InputError where a file of one case has the name of another's, as X_uncertainty beside X has."""
    owner: dict[Path, str] = {}
    for case in cases:
        for path in job.outputs(case):
            if (other := owner.setdefault(path, case.case_id)) != case.case_id:
                raise InputError(f"{other} and {case.case_id}: both would write {path.name}. Rename one of the images.")


def _refuse_foreign(job: Job, cases: list[ImageCase]) -> None:
    """Raises InputError for a file that would be replaced and is not ours, by the record or an earlier version's."""
    report, key = job.target / "report.json", job.target / KEY_FILE
    if not job.own.knows(report) and _is_report(report):
        job.own.adopt([report, key])
        for case in cases:
            found, record = read_record(job.target, case), record_path(job.target, case)
            job.own.adopt([] if found is None else [record])
            masks = [path for path in case.outputs(job.target) if path.is_file()]
            if found is not None and masks and found.mask_sha256 == [file_sha256(path) for path in masks]:
                job.own.adopt(masks)
    outputs = [path for case in cases for path in (*job.outputs(case), record_path(job.target, case))]
    page = [job.target / PAGE] if job.has_page else []
    job.own.refuse_foreign([*outputs, report, *page, *([key] if job.options.pseudonymise else ())])


def _is_report(path: Path) -> bool:
    try:
        return bool(read_stored(path, _Report, "", ""))
    except ConfigError:
        return False


def _write_report(cases: list[ImageCase], job: Job) -> None:
    """All records that belong to the input's cases, of other parts too."""
    done, failed = {}, {}
    for case in cases:
        record, name = read_record(job.target, case), job.shown.of(case.case_id)
        if record is None:
            continue  # a part that has not come to it yet
        if record.failed:
            failed[name] = record.reason
        else:
            numbers = record.as_dict()
            done[name] = {key: numbers[key] for key in numbers if key not in ("schema_version", "case", "request")}
    summary = {"cases": len(cases), "done": len(done), "failed": len(failed)}
    summary["waiting"] = len(cases) - len(done) - len(failed)
    summary["incomplete"] = sum(bool(record["not_written"]) for record in done.values())
    report = {"schema_version": SCHEMA_VERSION, "summary": summary, "model": job.request()}
    write_json(job.target / "report.json", {**report, "cases": done, "failed": failed})
    if job.has_page:
        files = {job.shown.of(case.case_id): case for case in cases}
        write_page(job.target, done, files, job.model.labels, job.own.knows)


def _part_of_launcher() -> tuple[int, int] | None:
    """The part that torchrun gives this process; None when it was not started by it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    return (rank + 1, world) if world > 1 else None


@dataclass(frozen=True)
class _Reported:
    """The part of a case in report.json that is reproduced."""

    input_sha256: list[str]
    mask_sha256: list[str]


@dataclass(frozen=True)
class _Report:
    """The part of report.json that is read."""

    schema_version: Literal[2]
    model: dict[str, Any]
    cases: dict[str, _Reported]


@dataclass(frozen=True)
class Reproduction:
    """Cases whose masks came out with the same bytes, and those that did not."""

    same: tuple[str, ...]
    other: tuple[str, ...]


def reproduce(
    report: str | Path,
    model: Models,
    images: str | Path,
    *,
    cases: Sequence[str] | None = None,
    device: str = "auto",
    on_item: OnItem = lambda stage, done, total: None,
) -> Reproduction:
    """Predict the cases of a report.json again, with its settings, and compare the masks byte by byte.

    Several models are given in the order in which they predicted.

    Raises ConfigError when plan or weights are not those of the report, or its scan backend cannot run here;
    InputError when an image is missing or differs.
    """
    kind, cure = "prediction report of this version", "Give the report.json of `medmamba predict`."
    record = read_stored(Path(report), _Report, kind, cure)
    paths = paths_of(model)
    with as_written(report, kind, cure):
        stored = [record.model, *record.model.get("others", ())]
        choices = [PredictorOptions(device=device, **_choices(one)) for one in stored]
        _ = [one[key] for one in stored for key in ("plan_sha256", "weights_sha256", "recipe_sha256")]
    if len(paths) != len(stored):
        raise ConfigError(f"{report}: made by {counted(len(stored), 'model')}, not {len(paths)}. Give all of them.")
    joined = join([load_model(*one) for one in zip(paths, choices, strict=True)], list(map(str, paths)))
    predictor = Predictor(joined, choices[0])
    for path, member, one in zip(paths, joined.members, stored, strict=True):
        _refuse_another(path, member, one, report)
    wanted = list(record.cases) if cases is None else list(cases)
    inputs = {case.case_id: case for case in find_cases(images, predictor.plan.channel_files)}
    for case_id in wanted:
        if case_id not in record.cases or case_id not in inputs:
            where = report if case_id not in record.cases else images
            raise InputError(f"{case_id}: not in {where}. Check the name, or give the images of the report.")
        if [input_sha256(path) for path in inputs[case_id].paths] != record.cases[case_id].input_sha256:
            raise InputError(f"{case_id}: the image is not the one of the report (SHA-256). Give the same file.")
    with scratch_folder() as folder:
        done = predict_folder(predictor, [inputs[case_id] for case_id in wanted], folder, on_item=on_item).done
    masks = {case_id: again.mask_sha256 for case_id, again in done.items()}
    same = [case_id for case_id in wanted if masks.get(case_id) == record.cases[case_id].mask_sha256]
    return Reproduction(tuple(same), tuple(case_id for case_id in wanted if case_id not in same))


def _choices(stored: dict[str, Any]) -> dict[str, Any]:
    """Options of a predictor from the model's entry in a report."""
    settings = stored["settings"]
    folds = sorted({name.removeprefix("fold_") for names in settings["folds"].values() for name in names})
    backend = settings.get("scan_backend", "auto")  # reports of version 0.1 do not name it
    return {
        "configuration": settings["configuration"],
        "folds": [int(name) if name.isdecimal() else name for name in folds],
        "mirror": settings["mirror"],
        "fast": settings["fast"],
        "tile_batch": settings["tile_batch"],
        "precision": settings.get("precision", "fp32"),
        "scan_backend": "auto" if backend == "none" else backend,  # another one may change single voxels
        "patch_size": next(iter(settings["patch_size"].values())) if len(settings["patch_size"]) == 1 else None,
    }


def _refuse_another(path: Path, model: TrainedModel, stored: dict[str, Any], report: str | Path) -> None:
    """Raises ConfigError when plan, weights or recipe of a model are not those in a report."""
    made = model.provenance(fast=False)
    if not is_plan(model.ensembles[0].folders[0] / "plan.json", str(stored["plan_sha256"])):
        raise ConfigError(f"{path}: its plan is not that of {report}. Give the model that made the report.")
    parts = {
        "weights_sha256": "weights are not those",
        "recipe_sha256": "best.json, which find-best writes, is not that",
    }
    for key, part in parts.items():
        if made[key] != stored[key]:
            raise ConfigError(f"{path}: its {part} of {report}. Give the model that made the report.")
