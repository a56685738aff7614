"""`medmamba plan`: from a dataset on disk to a run folder with a plan, folds, preprocessed cases and a report."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from medmamba.compute.free_memory import main_memory
from medmamba.datasets import DatasetReport, DatasetSpec, read_dataset, read_splits
from medmamba.datasets.table import patients_of
from medmamba.disk.atomic import remove_leftovers, replace_folder, write_json, write_text
from medmamba.disk.lock import FolderLock
from medmamba.errors import ConfigError
from medmamba.geometry import MOST_VOXELS
from medmamba.images import ReadOptions
from medmamba.models.output_channels import OutputChannels
from medmamba.models.run_folder import RunFolder
from medmamba.planning.dataset_page import Thumbnail, dataset_page, spread_over, thumbnail
from medmamba.planning.measure import measure_dataset
from medmamba.planning.options import PlanRequest
from medmamba.plans.families import family
from medmamba.plans.fingerprint import Fingerprint
from medmamba.plans.folds import N_FOLDS, Fold, check_folds, groups_of, make_folds
from medmamba.plans.manual_configurations import manual_configurations
from medmamba.plans.mirroring import side_pairs, side_problems
from medmamba.plans.planner import DatasetFacts, make_plan
from medmamba.plans.schema import Decision, Plan
from medmamba.plans.spacing import refuse_oversize
from medmamba.preprocessing.case import PreprocessedCase
from medmamba.preprocessing.dataset import preprocess_dataset

OnItem = Callable[[str, int, int], None]
"""Progress: name of the stage, items done, items in all."""

PICTURES = 24
"""Cases on the contact sheet of the report."""


def plan(
    dataset: str | Path,
    run: str | Path,
    options: PlanRequest | None = None,
    *,
    on_item: OnItem = lambda stage, done, total: None,
    on_warning: Callable[[str], None] = lambda line: None,
    on_message: Callable[[str], None] = lambda line: None,
    **changes: Any,
) -> Plan:
    """Measure a dataset, plan for it and preprocess its training cases into the run folder.

    Every case is checked while it is measured; all problems are raised together (InputErrors) before anything is
    written to ``run``. Configurations that somebody added to the plan of ``run`` under names of their own are kept.

    Args:
        options: the choices; default: every number by its rule.
        on_item: progress.
        on_warning: receives what is unusual but usable, one line each; it also stands in RUN/report/dataset.html.
        on_message: receives the table of a pilot, line by line.
        changes: fields of :class:`PlanRequest` by name, over those of ``options``.

    Raises ConfigError for choices that cannot work, InputErrors for a dataset that no plan can be made from.
    """
    options = PlanRequest.of(options, **changes)
    networks = (options.network,) if options.pilot is None else options.candidates
    if options.pilot is not None and len(networks) < 2:
        raise ConfigError(f"--pilot compares networks, and got {len(networks)}. Name two or more, or none.")
    for name in networks:
        if name != "auto":
            family(name)  # an unknown name is refused before a case is read
    folder = RunFolder(Path(run))
    previous = folder.previous_plan()
    measured = _measure(dataset, options, on_item)
    writer = _Writer(folder, measured, options, on_item)
    made = _make(measured, options, networks[0], previous)
    writer.write(made, preprocess=True)
    if options.pilot is not None:
        from medmamba.planning.pilot import compare

        decision = compare(folder.path, options.pilot, networks, on_message)
        before, made = made, _make(measured, options, str(decision.value), previous, decision)
        writer.write(made, preprocess=_grids(made, options) != _grids(before, options))
    for line in measured.warnings:
        on_warning(line)
    return made


@dataclass(frozen=True)
class _Measured:
    """A dataset that was read once and checked."""

    spec: DatasetSpec
    report: DatasetReport
    fingerprint: Fingerprint
    folds: list[Fold]
    warnings: list[str]
    workers: int
    reading: ReadOptions


def _measure(dataset: str | Path, options: PlanRequest, on_item: OnItem) -> _Measured:
    spec = read_dataset(dataset, strict=False)
    patients = patients_of(spec, options.group_by)
    workers = options.workers or min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4)
    reading = ReadOptions(
        nonfinite=options.nonfinite,
        prefer=options.prefer,
        max_voxels=options.max_voxels or MOST_VOXELS,
        match_labels=options.match_labels,
    )
    report, fingerprint = measure_dataset(
        spec, reading, workers=workers, on_case=lambda done, total: on_item("measure", done, total)
    )
    warnings = [*report.warnings, *side_problems(side_pairs(fingerprint))]
    folds = folds_for(spec, fingerprint, patients, options.splits, warnings.append)
    return _Measured(spec, report, fingerprint, folds, warnings, workers, reading)


def _make(
    measured: _Measured,
    options: PlanRequest,
    network: str,
    previous: Plan | None,
    decision: Decision | None = None,
) -> Plan:
    """The plan with a network; raises ConfigError for regions or cases that it cannot be carried out with."""
    spec, fingerprint = measured.spec, measured.fingerprint
    name_of = {value: name for name, value in spec.labels.items()}
    hashes = sorted(text for case in measured.report.cases for text in (case.image_sha256, case.label_sha256 or ""))
    facts = DatasetFacts(
        regions={name: [name_of[value] for value in values] for name, values in spec.regions.items()} or None,
        region_order=[name_of[value] for value in spec.region_order] or None,
        ignore_label=spec.ignore,
        dataset_hash=sha256("\n".join(hashes).encode()).hexdigest(),
    )
    made = make_plan(fingerprint, options.for_network(network), facts, previous=previous, network_decision=decision)
    OutputChannels.of_plan(made)  # refuses regions that cannot be written back
    for name in _to_store(made, options):
        refuse_oversize(
            fingerprint,
            made.configurations[name],
            made.axis_order,
            memory_bytes=main_memory() or math.inf,
            most_voxels=measured.reading.max_voxels,
        )
    return made


class _Writer:
    """Writes the plan, folds, cases and report of a run folder, all or nothing."""

    def __init__(self, folder: RunFolder, measured: _Measured, options: PlanRequest, on_item: OnItem) -> None:
        self.folder, self.measured, self.options, self.on_item = folder, measured, options, on_item
        self.ids = [case.case_id for case in measured.fingerprint.cases]
        self.shown = spread_over(self.ids, PICTURES)
        self.pictures: dict[str, Thumbnail] = {}

    def write(self, made: Plan, *, preprocess: bool) -> None:
        """``preprocess``: False keeps the cases that are there."""
        folder, measured = self.folder, self.measured
        with FolderLock(folder.path):
            remove_leftovers(folder.path)
            if preprocess:
                self._preprocess(made)
            write_text(folder.fingerprint_path, measured.fingerprint.to_json())
            write_json(folder.splits_path, measured.folds)
            pictures = {name: self.pictures[name] for name in self.shown}
            page = dataset_page(made, measured.fingerprint, measured.folds, measured.warnings, pictures)
            write_text(folder.path / "report" / "dataset.html", page)
            write_text(folder.plan_path, made.to_json())
            folder.aside_path.unlink(missing_ok=True)

    def _preprocess(self, made: Plan) -> None:
        with replace_folder(self.folder.preprocessed_path) as preprocessed:
            preprocess_dataset(
                self.measured.spec,
                self.ids,
                made,
                _to_store(made, self.options),
                preprocessed,
                workers=self.measured.workers,
                visit=self._picture,
                on_case=lambda done, total: self.on_item("preprocess", done, total),
                options=self.measured.reading,
            )
            self.folder.set_plan_aside()  # a run folder with a plan is finished, and the plan is of these cases

    def _picture(self, case: PreprocessedCase) -> None:
        if case.case_id in self.shown:
            assert case.labels is not None
            self.pictures[case.case_id] = thumbnail(case.image, case.labels, case.trail.grid.spacing_mm)


def folds_for(
    spec: DatasetSpec,
    fingerprint: Fingerprint,
    patients: dict[str, str],
    splits: str | Path | None,
    on_warning: Callable[[str], None],
) -> list[Fold]:
    """The folds of a split file, of the dataset's own one, or ours; raises InputErrors for a split that leaks."""
    present = {case.case_id: case.present_labels for case in fingerprint.cases}
    ids = list(present)
    own = read_splits(Path(splits), ids) if splits is not None else spec.splits
    groups = groups_of(fingerprint, patients)
    if own:
        folds = [Fold(train=sorted(train), val=sorted(val)) for train, val in own]
        check_folds(folds, ids, groups)
        return folds
    folds = make_folds(ids, labels_of=present, group_of=groups)
    count = len(set(groups.values()))
    if count == 1:
        on_warning(f"{len(ids)} case(s) of one patient: fold 0 validates on the cases that it trains on.")
    elif count < N_FOLDS:
        on_warning(f"{count} patients, so there are {len(folds)} folds instead of {N_FOLDS}.")
    return folds


def _to_store(plan: Plan, options: PlanRequest) -> list[str]:
    """The configurations to preprocess: those asked for, or the default one; manual ones always."""
    mine = manual_configurations(plan)
    if options.configurations is None:
        return list(dict.fromkeys([plan.default_configuration, *mine]))
    return [name for name in plan.configurations if options.everything or name in (*options.configurations, *mine)]


def _grids(plan: Plan, options: PlanRequest) -> dict[str, list[float] | None]:
    """What preprocessed cases depend on, among the numbers that a network decides."""
    return {name: plan.configurations[name].spacing_mm for name in _to_store(plan, options)}
