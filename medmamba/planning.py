"""The verb plan: from a dataset on disk to a run folder with a plan, folds and preprocessed cases."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from medmamba.atomic import FolderLock, remove_leftovers, replace_folder, write_json, write_text
from medmamba.run_folder import RunFolder

if TYPE_CHECKING:
    from medmamba.datasets import DatasetSpec
    from medmamba.plans.schema import Plan

OnItem = Callable[[str, int, int], None]
"""Progress: name of the stage, items done, items in all."""


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
    on_item: OnItem = lambda stage, done, total: None,
    on_warning: Callable[[str], None] = lambda line: None,
) -> Plan:
    """Measure a dataset, plan for it and preprocess its training cases into the run folder.

    Every case is checked while it is measured; all problems are raised together (InputErrors) before anything is
    written to ``run``. What is odd but usable goes to ``on_warning``, one line each.

    Args:
        configurations: those to plan and preprocess, or ``["all"]``; default: plan all, preprocess the default one.
    """
    from medmamba.datasets import read_dataset
    from medmamba.fingerprinting import measure_dataset
    from medmamba.heads import Heads
    from medmamba.plans.families import family
    from medmamba.plans.folds import folds_of
    from medmamba.plans.planner import make_plan
    from medmamba.preprocessing.dataset import preprocess_dataset

    family(network)  # a wrong name is told before a case is read
    every = configurations is not None and list(configurations) == ["all"]
    spec = read_dataset(dataset, strict=False)
    report, fingerprint = measure_dataset(spec, on_case=lambda done, total: on_item("measure", done, total))
    name_of = {value: name for name, value in spec.labels.items()}
    made = make_plan(
        fingerprint,
        network=network,
        device_memory_gb=device_memory_gb,
        spacing=spacing,
        patch_size=patch_size,
        batch_size=batch_size,
        configurations=None if every else configurations,
        mirror=mirror,
        regions=regions_by_label(spec) or None,
        region_order=[name_of[value] for value in spec.region_order] or None,
        ignore_label=spec.ignore,
        dataset_hash=_hash_of(text for case in report.cases for text in (case.image_sha256, case.label_sha256 or "")),
    )
    Heads.of_plan(made)  # refuses regions that cannot be written back
    folder = RunFolder(Path(run))
    with FolderLock(folder.path):
        remove_leftovers(folder.path)
        with replace_folder(folder.preprocessed_path) as preprocessed:
            preprocess_dataset(
                spec,
                [case.case_id for case in fingerprint.cases],
                made,
                [made.default_configuration] if configurations is None else list(made.configurations),
                preprocessed,
                on_case=lambda done, total: on_item("preprocess", done, total),
            )
            folder.plan_path.unlink(missing_ok=True)  # written last: a run folder with a plan is a finished one
        write_text(folder.fingerprint_path, fingerprint.to_json())
        write_json(folder.splits_path, folds_of(fingerprint))
        write_text(folder.plan_path, made.to_json())
    for line in report.warnings:
        on_warning(line)
    return made


def regions_by_label(spec: DatasetSpec) -> dict[str, list[str]]:
    """A dataset's regions as lists of label names."""
    name_of = {value: name for name, value in spec.labels.items()}
    return {name: [name_of[value] for value in values] for name, values in spec.regions.items()}


def _hash_of(texts: Iterable[str]) -> str:
    return sha256("\n".join(sorted(texts)).encode()).hexdigest()
