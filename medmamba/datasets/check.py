"""The check of a dataset: every case is read once, and all problems are reported together."""

import os
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmamba.datasets.description import refuse
from medmamba.datasets.load import LoadedCase, foreground_voxels, load_case
from medmamba.datasets.read import read_dataset
from medmamba.datasets.spec import CaseSpec, DatasetSpec
from medmamba.errors import MedmambaError, ResourceError
from medmamba.geometry import Grid
from medmamba.images import ReadOptions
from medmamba.images.gate import brief, shown

FEW_CASES = 3  # a label that occurs in fewer cases cannot be in every part of a split


@dataclass(frozen=True)
class CheckedCase:
    """What the check learned about one healthy case; ``visited`` is what the visitor returned."""

    case_id: str
    grid: Grid
    channels: int
    image_sha256: str
    label_sha256: str | None
    label_voxels: dict[int, int]
    visited: Any = None


@dataclass(frozen=True)
class DatasetReport:
    """A dataset without errors: its cases in order, and warnings, one line each."""

    spec: DatasetSpec
    cases: tuple[CheckedCase, ...]
    warnings: tuple[str, ...]


def check_dataset(
    dataset: DatasetSpec | Path | str,
    options: ReadOptions | None = None,
    *,
    workers: int | None = None,
    visit: Callable[[CaseSpec, LoadedCase], Any] | None = None,
    on_case: Callable[[int, int], None] | None = None,
) -> DatasetReport:
    """Reads every training case once and checks all of it.

    Args:
        workers: cases read at the same time (threads; unpacking releases the interpreter lock).
        visit: called with each healthy case while it is in memory, so that it need not be read a second time.
        on_case: progress, called with (cases done, cases in all) from one thread at a time.

    Raises InputErrors with everything that is wrong with the description and with any case; nothing was written.
    """
    spec = dataset if isinstance(dataset, DatasetSpec) else read_dataset(dataset, strict=False)

    def one(case: CaseSpec) -> tuple[CheckedCase | None, list[str], list[str]]:
        try:
            loaded = load_case(spec, case, options)
        except ResourceError:
            raise
        except MedmambaError as error:
            return None, list(error.args), []
        warnings = list(loaded.warnings)
        counts = loaded.labels.counts() if loaded.labels is not None else {}
        if loaded.labels is not None and not foreground_voxels(counts, spec):
            warnings.append(f"{brief(case.case_id)}: the label map is empty (background only).")
        checked = CheckedCase(
            case.case_id,
            loaded.image.grid,
            loaded.image.channels,
            loaded.image.content_hash(),
            loaded.labels.content_hash() if loaded.labels is not None else None,
            counts,
            visit(case, loaded) if visit is not None else None,
        )
        return checked, [], warnings

    problems, warnings = list(spec.problems), list(spec.warnings)
    checked: list[CheckedCase] = []
    total = len(spec.cases)
    with ThreadPoolExecutor(workers or min(4, os.cpu_count() or 1)) as pool:
        for done, (healthy, wrong, unusual) in enumerate(pool.map(one, spec.cases), start=1):
            problems += wrong
            warnings += unusual
            if healthy is not None:
                checked.append(healthy)
            if on_case is not None:
                on_case(done, total)
    warnings += _duplicates(checked)
    if not problems:
        problems += _without_foreground(spec, checked, warnings)
    cases = f"{total - len(checked)} of {total} cases" if len(checked) < total else "the description"
    refuse(spec.folder, problems, f", in {cases}. Nothing was written.")
    return DatasetReport(spec, tuple(checked), tuple(warnings))


def _duplicates(cases: list[CheckedCase]) -> list[str]:
    """Warns of cases that hold the same image."""
    same: dict[str, list[CheckedCase]] = defaultdict(list)
    for case in cases:
        same[case.image_sha256].append(case)
    warnings = []
    for group in same.values():
        if len(group) > 1:
            names = ", ".join(brief(case.case_id, 40) for case in group[:4]) + (", ..." if len(group) > 4 else "")
            labels = "" if len({case.label_sha256 for case in group}) == 1 else ", with different label maps"
            warnings.append(
                f"{names}: the same image under {len(group)} names{labels}. Keep them in one fold, or one only."
            )
    return warnings


def _without_foreground(spec: DatasetSpec, cases: list[CheckedCase], warnings: list[str]) -> list[str]:
    """Warns of labels that occur in few cases; an error when there is nothing to learn at all."""
    labelled = [case for case in cases if case.label_sha256 is not None]
    if labelled and not any(foreground_voxels(case.label_voxels, spec) for case in labelled):
        return [f"{shown(spec.folder)}: no label map holds any foreground. Check the label maps and dataset.json."]
    for name, value in spec.labels.items():
        number = sum(1 for case in labelled if case.label_voxels.get(value))
        if value != 0 and number == 0:
            warnings.append(f"label {name!r} ({value}) occurs in no case; it cannot be learned.")
        elif value != 0 and number < min(FEW_CASES, len(labelled)):
            warnings.append(f"label {name!r} ({value}) occurs in only {number} of {len(labelled)} cases.")
    return []
