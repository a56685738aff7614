"""`medmamba plan`: from a dataset on disk to a run folder with a plan, folds, preprocessed cases and a report."""

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

from medmamba.compute.device import gpu_cards
from medmamba.compute.free_memory import main_memory
from medmamba.compute.processes import usable_cores
from medmamba.datasets import DatasetReport, DatasetSpec, read_dataset, read_splits
from medmamba.datasets.table import patients_of
from medmamba.disk.atomic import replace_folder, write_json, write_text
from medmamba.disk.leftovers import remove_leftovers
from medmamba.disk.own_files import OwnFiles, real_path, refusal, refuse_dataset_folder, refuse_replacing
from medmamba.errors import ConfigError, InputError, counted
from medmamba.geometry.display import Display
from medmamba.images import ReadOptions, ending_of
from medmamba.images.gate import brief
from medmamba.models.output_channels import OutputChannels
from medmamba.models.run_folder import RunFolder, read_plan
from medmamba.pages.picture import Picture, draw_case
from medmamba.planning.dataset_page import dataset_page, spread_over
from medmamba.planning.measure import measure_dataset
from medmamba.plans.cost.machines import machine_of_card
from medmamba.plans.decided import changed_decisions
from medmamba.plans.families import family
from medmamba.plans.fingerprint import Fingerprint
from medmamba.plans.folds import N_FOLDS, Fold, check_folds, groups_of, make_folds
from medmamba.plans.like import plan_like, refuse_other_labels, refuse_with_like
from medmamba.plans.manual_configurations import manual_configurations
from medmamba.plans.mirroring import side_pairs, side_problems
from medmamba.plans.options import NOTHING_TO_VALIDATE, PlanRequest
from medmamba.plans.planner import DatasetFacts, make_plan, refuse_options
from medmamba.plans.schema import Decision, Plan, Reading
from medmamba.plans.spacing import refuse_oversize
from medmamba.preprocessing.case import PreprocessedCase
from medmamba.preprocessing.dataset import preprocess_dataset
from medmamba.preprocessing.labels import label_names
from medmamba.preprocessing.store import FILES

OnItem = Callable[[str, int, int], None]
"""Progress: name of the stage, items done, items in all."""

CARD_FRACTION = 0.9
"""Of a GPU's memory that is planned with; the rest is CUDA's own and what cannot be used between tensors."""
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
        on_message: receives the table of a pilot, line by line, and what to choose for a GPU of this machine.
        changes: fields of :class:`PlanRequest` by name, over those of ``options``.

    Raises ConfigError for choices that cannot work, InputErrors for a dataset that no plan can be made from.
    """
    options = PlanRequest.of(options, **changes)
    networks = (options.network,) if options.pilot is None else options.candidates
    if options.like is not None:
        refuse_with_like(options)
    if options.pilot is not None and len(networks) < 2:
        raise ConfigError(f"--pilot compares networks, and got {len(networks)}. Name two or more, or none.")
    for name in networks:
        if name != "auto":
            family(name)  # an unknown name is refused before a case is read
    folder = RunFolder(Path(run))
    refuse_replacing(folder.preprocessed_path, [Path(dataset)])
    own = _own_files(folder, options)
    with ExitStack() as locks:
        if known := folder.path.is_dir():  # refused before the cases are measured
            locks.enter_context(folder.replacing_cases())
        previous = folder.previous_plan()
        for name in networks:
            refuse_options(options.for_network(name), previous)
        measured = _measure(dataset, options, on_item)
        if known and options.like is not None and real_path(options.like) == real_path(folder.path):
            measured = measured.for_folds_of(folder)
        made = measured.plan(networks[0], previous)
        if not options.overwrite:  # a pilot may choose any of its networks
            for each in (made, *(measured.plan(name, previous) for name in networks[1:])):
                _refuse_loss_of_folds(folder, previous, each, measured)
        if not known:
            locks.enter_context(folder.replacing_cases())
        locks.enter_context(own.recording())
        measured.write(folder, made, preprocess=True)
        if options.pilot is not None:
            from medmamba.planning import pilot

            decision = pilot.compare(folder.path, options.pilot, networks, on_message)
            before, made = made, measured.plan(str(decision.value), previous, decision)
            # Preprocessed cases depend on the grid alone, among the numbers that a network decides.
            grids, grids_before = (
                {name: plan.configurations[name].spacing_mm for name in measured.to_store(plan)}
                for plan in (made, before)
            )
            measured.write(folder, made, preprocess=grids != grids_before)
    for line in measured.warnings:
        on_warning(line)
    if (advice := _for_the_cards(options, str(run))) is not None:
        on_message(advice)
    return made


def _for_the_cards(options: PlanRequest, run: str) -> str | None:
    """What to choose for the GPUs of this machine; None where there is none, or memory and machine were chosen.

    A plan depends on the dataset and the options alone, so that it is the same wherever it is made.
    """
    cards = gpu_cards()
    if not cards or options.like is not None or {"device_memory_gb", "machine"} & set(options.given):
        return None
    name, memory = min(cards, key=lambda card: card[1])
    known = machine_of_card(name)
    flags = f"--device-memory {int(CARD_FRACTION * memory / 1e9)}GB" + (f" --machine {known.name}" if known else "")
    several = f" {len(cards)} of them train folds side by side (--devices) or one fold (torchrun)." * (len(cards) > 1)
    return (
        f"This machine has {name} with {memory / 1e9:.0f} GB; the plan is for {options.device_memory_gb:g} GB, and its "
        f"hours are those of {options.machine}. Plan with {flags} for this GPU; `medmamba explain {run} --what-if "
        f'"{flags}"` shows what would change.{several}'
    )


@dataclass(frozen=True)
class _Measured:
    """A dataset that was read once and checked, and what is made of it."""

    spec: DatasetSpec
    report: DatasetReport
    fingerprint: Fingerprint
    folds: list[Fold]
    warnings: list[str]
    reading: Reading
    options: PlanRequest
    on_item: OnItem
    for_its_own_folds: bool = False
    """Whether the cases are for the trained folds that the run has, and its plan stays."""
    pictures: dict[str, Picture] = field(default_factory=dict)

    def for_folds_of(self, run: RunFolder) -> Self:
        """The same for the trained folds of a run: with its division into folds, where it has one of these cases.

        Raises InputError where it has one of other cases.
        """
        folds = self.folds
        if self.options.splits is None and run.splits_path.is_file():
            folds = run.read_splits()
            cases = {case for fold in folds for part in ("train", "val") for case in fold[part]}
            if lacking := sorted(cases - {case.case_id for case in self.fingerprint.cases}):
                raise InputError(
                    f"{run.splits_path}: names {counted(len(lacking), 'case')} that the dataset does not have, as "
                    f"{brief(lacking[0])}. Give the dataset that the folds were trained with."
                )
        return replace(self, folds=folds, for_its_own_folds=True)

    def plan(self, network: str, previous: Plan | None, decision: Decision | None = None) -> Plan:
        """The plan with a network; raises ConfigError for regions or cases that it cannot be carried out with."""
        spec = self.spec
        name_of = {value: name for name, value in spec.labels.items()}
        hashes = sorted(text for case in self.report.cases for text in (case.image_sha256, case.label_sha256 or ""))
        facts = DatasetFacts(
            regions={name: [name_of[value] for value in values] for name, values in spec.regions.items()} or None,
            region_order=[name_of[value] for value in spec.region_order] or None,
            ignore_label=spec.ignore,
            file_ending=ending_of(spec.cases[0].images[0]) or ".nii.gz",
            dataset_hash=sha256("\n".join(hashes).encode()).hexdigest(),
            reading=self.reading,
        )
        options = self.options.for_network(network)
        if self.options.like is None:
            made = make_plan(self.fingerprint, options, facts, previous=previous, network_decision=decision)
        else:
            made = plan_like(RunFolder(self.options.like).read_plan(), self.fingerprint, facts, str(self.options.like))
            if self.for_its_own_folds:
                assert previous is not None
                refuse_other_labels(previous, made, str(self.options.like))
                made = previous
        OutputChannels.of_plan(made)  # refuses regions that cannot be written back
        for name in self.to_store(made):
            refuse_oversize(
                self.fingerprint,
                made.configurations[name],
                made.axis_order,
                memory_bytes=main_memory() or math.inf,
                most_voxels=self.reading.max_voxels,
            )
        return made

    def to_store(self, plan: Plan) -> list[str]:
        """The configurations to preprocess: those asked for, or the default one; manual ones always.

        For its own folds all but second stages, whose first would have to predict every case.
        """
        if self.for_its_own_folds:
            return [name for name, part in plan.configurations.items() if part.previous_stage is None]
        mine, wanted = manual_configurations(plan), self.options.configurations
        if wanted is None:
            return list(dict.fromkeys([plan.default_configuration, *mine]))
        return [name for name in plan.configurations if self.options.everything or name in (*wanted, *mine)]

    def write(self, folder: RunFolder, plan: Plan, *, preprocess: bool) -> None:
        """The plan, folds, cases and report of a run folder, all or nothing.

        ``preprocess``: False keeps the existing cases.
        """
        remove_leftovers(folder.path)
        remove_leftovers(folder.path / "report", shared=True)
        if preprocess:
            self._preprocess(folder, plan)
        write_text(folder.fingerprint_path, self.fingerprint.sealed_json())
        write_json(folder.splits_path, self.folds)
        patients = groups_of(self.fingerprint, patients_of(self.spec, self.options.group_by))
        if len(set(patients.values())) < len(patients):
            write_json(folder.patients_path, patients)
        else:
            folder.own_files().remove([folder.patients_path])
        pictures = {name: self.pictures[name] for name in sorted(self.pictures)}
        page = dataset_page(plan, self.fingerprint, self.folds, self.warnings, pictures)
        write_text(folder.path / "report" / "dataset.html", page)
        write_text(folder.plan_path, plan.to_json())
        folder.aside_path.unlink(missing_ok=True)

    def _preprocess(self, folder: RunFolder, plan: Plan) -> None:
        ids = [case.case_id for case in self.fingerprint.cases]
        shown = spread_over(ids, PICTURES)

        def picture(case: PreprocessedCase) -> None:
            if case.case_id in shown:
                assert case.labels is not None
                display = Display(case.trail.grid, plan.axis_order)
                values = range(1, len(label_names(plan)) + 1)
                self.pictures[case.case_id] = draw_case(display, values, coloured=case.labels, image=case.image)

        with replace_folder(folder.preprocessed_path) as preprocessed:
            preprocess_dataset(
                self.spec,
                ids,
                plan,
                self.to_store(plan),
                preprocessed,
                workers=_workers(self.options),
                visit=picture,
                on_case=lambda done, total: self.on_item("preprocess", done, total),
                options=ReadOptions.of(self.reading),
                hashes={case.case_id: (case.image_sha256, case.label_sha256) for case in self.report.cases},
            )
            folder.set_plan_aside()  # a run folder with a plan is complete, and the plan is that of its cases


def _own_files(folder: RunFolder, options: PlanRequest) -> OwnFiles:
    """Proof of our files in the run folder; raises InputError for others that planning would replace.

    plan.json may be edited, and is kept where it was; files of preprocessed cases are recognised by name and place.
    """
    refuse_dataset_folder(folder.path)
    own = folder.own_files(overwrite=options.overwrite)
    cases = (path for path in folder.preprocessed_path.rglob("*") if not path.is_dir() or path.is_symlink())
    foreign = [path for path in cases if path.name not in FILES or path.parents[2] != folder.preprocessed_path]
    if foreign and not options.overwrite:
        raise refusal(foreign)
    pages = ["dataset.html", *([] if options.pilot is None else ["pilot.json"])]
    own.refuse_foreign(
        [
            folder.fingerprint_path,
            folder.splits_path,
            folder.patients_path,
            *(folder.path / "report" / name for name in pages),
        ]
    )
    return own


def _refuse_loss_of_folds(folder: RunFolder, previous: Plan | None, made: Plan, measured: _Measured) -> None:
    """Raises InputError if trained folds of the run could not be resumed or cross-validated after this planning."""
    known = made if previous is None else previous
    trained = [path for name in known.configurations for path in folder.trained_folds(name)]
    if not trained:
        return
    before = {path.parent.name: previous or read_plan(path / "plan.json") for path in trained}
    changes = [change for name, plan in before.items() for change in changed_decisions(plan, made, name)]
    if changes:
        lost = f"the plan changes ({'; '.join(changes[:3])})"
    elif folder.splits_path.is_file() and folder.read_splits() != measured.folds:
        lost = "the folds change"
    elif not measured.for_its_own_folds and (
        missing := {path.parent.name for path in trained} - set(measured.to_store(made))
    ):
        lost = f"the preprocessed cases of {', '.join(sorted(missing))} are removed"
    else:
        return
    names = ", ".join(str(path.relative_to(folder.path / "models")) for path in trained)
    raise InputError(
        f"{folder.path}: {lost}, so the trained folds could no longer be resumed or compared ({names}). Use another "
        "run folder, or --overwrite."
    )


def _workers(options: PlanRequest) -> int:
    return options.workers or min(8, usable_cores())


def _measure(dataset: str | Path, options: PlanRequest, on_item: OnItem) -> _Measured:
    spec = read_dataset(dataset, strict=False)
    patients = patients_of(spec, options.group_by)
    ids = [case.case_id for case in spec.cases]
    if options.splits is not None and not spec.problems:  # refused before the cases are read, and leaks after that
        read_splits(Path(options.splits), ids)
    if options.pilot is not None and len({patients.get(case_id, case_id) for case_id in ids}) == 1:
        raise ConfigError(NOTHING_TO_VALIDATE)
    reading = Reading(**options.reading, channel_files=spec.channel_files)
    report, fingerprint = measure_dataset(
        spec,
        ReadOptions.of(reading),
        workers=_workers(options),
        on_case=lambda done, total: on_item("measure", done, total),
    )
    warnings = [*report.warnings, *side_problems(side_pairs(fingerprint))]
    folds = folds_for(spec, fingerprint, patients, options.splits, warnings.append)
    return _Measured(spec, report, fingerprint, folds, warnings, reading, options, on_item)


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
        unused = sorted(set(ids).difference(*(fold[part] for fold in folds for part in ("train", "val"))))
        if unused:
            on_warning(f"{counted(len(unused), 'case')} in no fold and not used, the first is {brief(unused[0])}.")
        return folds
    folds = make_folds(ids, labels_of=present, group_of=groups)
    count = len(set(groups.values()))
    if count == 1:
        on_warning(f"{len(ids)} case(s) of one patient: fold 0 validates on the cases that it trains on.")
    elif count < N_FOLDS:
        on_warning(f"{count} patients, so there are {len(folds)} folds instead of {N_FOLDS}.")
    return folds
