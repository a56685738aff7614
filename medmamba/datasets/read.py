"""The description of a dataset in any layout, read from a folder or a table as a DatasetSpec."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import RootModel

from medmamba.datasets.decathlon import read_decathlon
from medmamba.datasets.description import FILE, Entry, inside, parse, read_json, refuse
from medmamba.datasets.files import with_files
from medmamba.datasets.nnunet import read_nnunet
from medmamba.datasets.spec import VALIDATION, DatasetSpec
from medmamba.datasets.table import read_table
from medmamba.errors import InputError, as_text
from medmamba.images.gate import brief, shown

SPLITS = "splits_final.json"
"""Name of the file, beside dataset.json."""
PICKLED = "splits_final.pkl"
"""What nnU-Net v1 calls it."""

Split = tuple[tuple[str, ...], tuple[str, ...]]


def read_dataset(dataset: Path | str, *, strict: bool = True, allow_outside: bool = False) -> DatasetSpec:
    """The description of a dataset, read and checked; no voxel is read.

    Args:
        dataset: a folder with dataset.json (Medical Segmentation Decathlon, nnU-Net v2 raw, or with the key "cases"
            naming a table), or a CSV table with a dataset.json beside it.
        strict: raise when the description has problems. Otherwise they stand in ``spec.problems``, so that
            :func:`~medmamba.datasets.check_dataset` can report them together with those of the images.
        allow_outside: let dataset.json name files outside its folder.

    Raises:
        InputError: there is no dataset, or its description cannot be understood at all.
        InputErrors: the description has problems; one line each.
    """
    dataset = Path(dataset)
    if not dataset.exists():
        raise InputError(f"{shown(dataset)}: no such folder. Give the folder that holds dataset.json.")
    if dataset.suffix.lower() == ".csv":
        folder = dataset.parent
        spec = read_table(folder, _description(folder), dataset, allow_outside=True)
    elif dataset.is_dir():
        spec = _read_folder(dataset, allow_outside)
    else:
        raise InputError(f"{shown(dataset)}: a file, not a folder. Give the folder that holds dataset.json.")
    spec = _with_splits(with_files(spec))
    if strict:
        refuse(dataset, spec.problems, "; nothing was done.")
    return spec


def _with_splits(spec: DatasetSpec) -> DatasetSpec:
    """The dataset with the folds of its splits_final.json, or those stated in its cases."""
    path, problems, ids = spec.folder / SPLITS, list(spec.problems), [case.case_id for case in spec.cases]
    folds = {case.fold for case in spec.cases}
    numbers = sorted(fold for fold in folds if fold is not None)
    parts = [{case.case_id for case in spec.cases if case.fold == fold} for fold in numbers]
    if parts and folds != {None, VALIDATION} and folds != set(range(max(2, len(parts)))):
        problems.append(f"{FILE}: fold: every training case needs one of 0, 1, ..., without a list of validation.")
    own = tuple((tuple(i for i in ids if i not in part), tuple(i for i in ids if i in part)) for part in parts)
    splits = read_splits(path, ids) if path.exists() else own
    if parts and [set(validated) for _, validated in splits] != parts:
        problems.append(f"{SPLITS} and the folds of {FILE} differ. Remove one of them.")
    return replace(spec, splits=splits, problems=tuple(problems), warnings=(*spec.warnings, *_not_meant(spec)))


def _not_meant(spec: DatasetSpec) -> list[str]:
    """Warnings for what looks as if it had a meaning that it does not have here."""
    names = [name for name in spec.labels if name.lower() == "ignore"]
    found = [f"label {name!r} is trained as a structure; voxels of a label 'ignore' are not learned." for name in names]
    if (spec.folder / PICKLED).exists() and not spec.splits:
        found.append(f"{PICKLED} is not read (it could run code). Save its folds as {SPLITS}.")
    return found


def _read_folder(folder: Path, allow_outside: bool) -> DatasetSpec:
    raw = _description(folder)
    nnunet = "file_ending" in raw and "channel_names" in raw
    if nnunet and (raw.get("validation") or "'fold':" in str(raw.get("training"))):
        raise InputError(f"{FILE}: fold and validation have no meaning in nnU-Net v2. Write them into {SPLITS}.")
    if "training" in raw and not nnunet:
        return read_decathlon(folder, raw)
    if isinstance(raw.get("cases"), str):
        return read_table(folder, raw, inside(folder, raw["cases"]), allow_outside=allow_outside)
    if "file_ending" in raw or "channel_names" in raw:
        return read_nnunet(folder, raw, allow_outside=allow_outside)
    raise InputError(
        f'{shown(folder / "dataset.json")}: neither a list "training" (Medical Segmentation Decathlon) nor '
        '"channel_names" and "file_ending" (nnU-Net v2) nor "cases" (a CSV table). Add one of them.'
    )


def _description(folder: Path) -> dict[str, Any]:
    path = folder / "dataset.json"
    if not path.exists():
        near = sorted(found.parent.name for found in folder.glob("*/dataset.json"))
        hint = f" There is one in {shown(folder / near[0])}." if near else ""
        raise InputError(f"{shown(folder)}: no dataset.json in this folder.{hint} Give the folder that holds it.")
    raw = read_json(path)
    if not isinstance(raw, dict):
        raise InputError(f"{shown(path)}: an object with keys is needed, not a {type(raw).__name__}.")
    return raw


class _Fold(Entry):
    train: list[str]
    val: list[str]


class _Splits(RootModel[list[_Fold]]):
    pass


def read_splits(path: Path, case_ids: Sequence[str]) -> tuple[Split, ...]:
    """(training ids, validation ids) per fold of a splits_final.json.

    Raises InputErrors when a case is unknown, or in both parts of one fold.
    """
    known = set(case_ids)
    problems = []
    splits: list[Split] = []
    for number, fold in enumerate(parse(_Splits, read_json(path), shown(path.name)).root):
        train, val = (tuple(map(as_text, part)) for part in (fold.train, fold.val))
        where = f"{shown(path.name)}: fold {number}"
        if unknown := sorted({*train, *val} - known):
            problems.append(
                f"{where}: {len(unknown)} unknown case(s), the first is {brief(unknown[0], 60)}. Correct it."
            )
        if leaked := sorted(set(train) & set(val)):
            problems.append(
                f"{where}: {brief(leaked[0], 60)} is in train and in val ({len(leaked)} such case(s)). Correct it."
            )
        if not train or not val:
            problems.append(f"{where}: train or val is empty. Correct it.")
        splits.append((train, val))
    refuse(path, problems, "; nothing was done.")
    return tuple(splits)
