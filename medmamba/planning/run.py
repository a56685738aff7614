"""The verb plan: from a dataset on disk to a run folder with a plan, folds, preprocessed cases and a report."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medmamba.disk.atomic import remove_leftovers, replace_folder, write_json, write_text
from medmamba.disk.lock import FolderLock
from medmamba.models.run_folder import RunFolder

if TYPE_CHECKING:
    from medmamba.datasets import DatasetSpec
    from medmamba.plans.fingerprint import Fingerprint
    from medmamba.plans.folds import Fold
    from medmamba.plans.schema import Decision, Plan

OnItem = Callable[[str, int, int], None]
"""Progress: name of the stage, items done, items in all."""

PICTURES = 24
"""Cases on the contact sheet of the report."""


def plan(
    dataset: str | Path,
    run: str | Path,
    *,
    network: str = "vm_unet",
    device_memory_gb: float = 8.0,
    spacing: Sequence[float] | None = None,
    patch_size: Sequence[int] | None = None,
    batch_size: int | None = None,
    configurations: Sequence[str] | None = None,
    mirror: str = "auto",
    machine: str = "cpu",
    train_hours: float | None = None,
    group_by: str | None = None,
    splits: str | Path | None = None,
    workers: int | None = None,
    nonfinite: Literal["error", "zero"] = "error",
    prefer: Literal["sform", "qform"] | None = None,
    match_labels: bool = False,
    max_voxels: int | None = None,
    choose_network: Callable[[Path], Decision] | None = None,
    on_item: OnItem = lambda stage, done, total: None,
    on_warning: Callable[[str], None] = lambda line: None,
) -> Plan:
    """Measure a dataset, plan for it and preprocess its training cases into the run folder.

    Every case is checked while it is measured; all problems are raised together (InputErrors) before anything is
    written to ``run``. What is odd but usable goes to ``on_warning``, one line each, and
    into RUN/report/dataset.html. Configurations that somebody added to the plan of ``run`` under names of their own are
    kept.

    Args:
        network, device_memory_gb, spacing, patch_size, batch_size, mirror, machine, train_hours: as of
            :func:`medmamba.plans.planner.make_plan`; network "auto" is chosen by its rules.
        configurations: those to plan and preprocess, or ``["all"]``; default: plan all, preprocess the default one.
        group_by: how cases of one patient are known, see :func:`medmamba.datasets.groups.patients_of`.
        splits: a split file in nnU-Net's layout instead of the dataset's own or our folds; one that leaks is refused.
        workers: cases read at the same time; the results do not depend on it. Default: one a core, at most 8.
        nonfinite, prefer, match_labels: as of :class:`medmamba.images.ReadOptions`.
        choose_network: asked once the run is planned with ``network``; the plan is then made anew with its choice. See
            :mod:`medmamba.planning.pilot`.
        max_voxels: largest number of voxels times channels of a file, and of a case on the plan's grid.
    """
    from medmamba.datasets import read_dataset
    from medmamba.datasets.groups import patients_of
    from medmamba.geometry import MOST_VOXELS
    from medmamba.images import ReadOptions
    from medmamba.models.output_channels import OutputChannels
    from medmamba.planning.contact_sheet import Thumbnail, spread_over, thumbnail
    from medmamba.planning.dataset_page import dataset_page
    from medmamba.planning.measure import measure_dataset
    from medmamba.plans.case_size import refuse_oversize
    from medmamba.plans.families import family
    from medmamba.plans.left_right import side_pairs, side_problems
    from medmamba.plans.planner import make_plan
    from medmamba.preprocessing.case import PreprocessedCase
    from medmamba.preprocessing.dataset import preprocess_dataset

    if network != "auto":
        family(network)  # a wrong name is told before a case is read
    folder = RunFolder(Path(run))
    previous = folder.previous_plan()
    spec = read_dataset(dataset, strict=False)
    patients = patients_of(spec, group_by)
    workers = workers or min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4)
    reading = ReadOptions(nonfinite, prefer, max_voxels or MOST_VOXELS, match_labels)
    report, fingerprint = measure_dataset(
        spec, reading, workers=workers, on_case=lambda done, total: on_item("measure", done, total)
    )
    warnings = [*report.warnings, *side_problems(side_pairs(fingerprint))]
    folds = folds_for(spec, fingerprint, patients, splits, warnings.append)
    name_of = {value: name for name, value in spec.labels.items()}
    every = configurations is not None and list(configurations) == ["all"]

    def planned(name: str, decision: Decision | None) -> Plan:
        made = make_plan(
            fingerprint,
            network=name,
            device_memory_gb=device_memory_gb,
            spacing=spacing,
            patch_size=patch_size,
            batch_size=batch_size,
            configurations=None if every else configurations,
            mirror=mirror,
            machine=machine,
            train_hours=train_hours,
            regions=regions_by_label(spec) or None,
            region_order=[name_of[value] for value in spec.region_order] or None,
            ignore_label=spec.ignore,
            dataset_hash=_hash_of(
                text for case in report.cases for text in (case.image_sha256, case.label_sha256 or "")
            ),
            previous=previous,
            network_decision=decision,
        )
        OutputChannels.of_plan(made)  # refuses regions that cannot be written back
        for name in _to_store(made, configurations):
            refuse_oversize(
                fingerprint,
                made.configurations[name],
                made.axis_order,
                memory_bytes=_main_memory(),
                most_voxels=reading.max_voxels,
            )
        return made

    ids = [case.case_id for case in fingerprint.cases]
    shown = spread_over(ids, PICTURES)
    pictures: dict[str, Thumbnail] = {}

    def picture(case: PreprocessedCase) -> None:
        if case.case_id in shown:
            assert case.labels is not None
            pictures[case.case_id] = thumbnail(case.image, case.labels, case.trail.grid.spacing_mm)

    def write(made: Plan, *, preprocess: bool) -> None:
        with FolderLock(folder.path):
            remove_leftovers(folder.path)
            if preprocess:
                with replace_folder(folder.preprocessed_path) as preprocessed:
                    preprocess_dataset(
                        spec,
                        ids,
                        made,
                        _to_store(made, configurations),
                        preprocessed,
                        workers=workers,
                        visit=picture,
                        on_case=lambda done, total: on_item("preprocess", done, total),
                        options=reading,
                    )
                    folder.set_plan_aside()  # a run folder with a plan is finished, and the plan is of these cases
            write_text(folder.fingerprint_path, fingerprint.to_json())
            write_json(folder.splits_path, folds)
            page = dataset_page(made, fingerprint, folds, warnings, {name: pictures[name] for name in shown})
            write_text(folder.path / "report" / "dataset.html", page)
            write_text(folder.plan_path, made.to_json())
            folder.aside_path.unlink(missing_ok=True)

    made = planned(network, None)
    write(made, preprocess=True)
    if choose_network is not None:
        decision = choose_network(folder.path)
        before, made = made, planned(str(decision.value), decision)
        write(made, preprocess=_grids(made, configurations) != _grids(before, configurations))
    for line in warnings:
        on_warning(line)
    return made


def what_if(run: str | Path, **changes: Any) -> tuple[Plan, Plan]:
    """The plan of a run, and the one that other choices would have made; nothing is written.

    ``changes`` are arguments of :func:`medmamba.plans.planner.make_plan` by name.
    """
    from medmamba.plans.what_if import what_if

    folder = RunFolder(Path(run))
    now = folder.read_plan()
    return now, what_if(now, folder.read_fingerprint(), **changes)


def folds_for(
    spec: DatasetSpec,
    fingerprint: Fingerprint,
    patients: dict[str, str],
    splits: str | Path | None,
    on_warning: Callable[[str], None],
) -> list[Fold]:
    """The folds of a split file, of the dataset's own one, or ours; raises InputErrors for a split that leaks."""
    from medmamba.datasets import read_splits
    from medmamba.plans.folds import N_FOLDS, Fold, check_folds, folds_of, groups_of

    ids = [case.case_id for case in fingerprint.cases]
    own = read_splits(Path(splits), ids) if splits is not None else spec.splits
    groups = groups_of(fingerprint, patients)
    if own:
        folds = [Fold(train=sorted(train), val=sorted(val)) for train, val in own]
        check_folds(folds, ids, groups)
        return folds
    folds = folds_of(fingerprint, patients=patients)
    count = len(set(groups.values()))
    if count == 1:
        on_warning(f"{len(ids)} case(s) of one patient: fold 0 validates on the cases that it trains on.")
    elif count < N_FOLDS:
        on_warning(f"{count} patients, so there are {len(folds)} folds instead of {N_FOLDS}.")
    return folds


def regions_by_label(spec: DatasetSpec) -> dict[str, list[str]]:
    """A dataset's regions as lists of label names."""
    name_of = {value: name for name, value in spec.labels.items()}
    return {name: [name_of[value] for value in values] for name, values in spec.regions.items()}


def _to_store(plan: Plan, configurations: Sequence[str] | None) -> list[str]:
    """The configurations to preprocess: those asked for, or the default one; hand-made ones always."""
    from medmamba.plans.manual_configurations import handmade

    mine = handmade(plan)
    if configurations is None:
        return list(dict.fromkeys([plan.default_configuration, *mine]))
    if list(configurations) == ["all"]:
        return list(plan.configurations)
    return [name for name in plan.configurations if name in configurations or name in mine]


def _grids(plan: Plan, configurations: Sequence[str] | None) -> dict[str, list[float] | None]:
    """What preprocessed cases depend on, among the things that a network decides."""
    return {name: plan.configurations[name].spacing_mm for name in _to_store(plan, configurations)}


def _main_memory() -> float:
    """Bytes of this machine's main memory, or infinity where the system does not say."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return float("inf")


def _hash_of(texts: Iterable[str]) -> str:
    return sha256("\n".join(sorted(texts)).encode()).hexdigest()
