"""The split file of a dataset, as nnU-Net writes it: training and validation cases of each fold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import RootModel

from medmamba.datasets.description import Entry, parse
from medmamba.datasets.strict_json import read_json
from medmamba.errors import InputErrors
from medmamba.images.gate import brief, shown

SPLITS = "splits_final.json"
"""Name of the file, beside dataset.json."""

Split = tuple[tuple[str, ...], tuple[str, ...]]


class _Fold(Entry):
    train: list[str]
    val: list[str]


class _Splits(RootModel[list[_Fold]]):
    pass


def read_splits(path: Path, case_ids: Sequence[str]) -> tuple[Split, ...]:
    """(training ids, validation ids) per fold of a splits_final.json.

    Raises:
        InputErrors: a case is unknown, or in both parts of one fold.
    """
    known = set(case_ids)
    problems = []
    splits: list[Split] = []
    for number, fold in enumerate(parse(_Splits, read_json(path), shown(path.name)).root):
        where = f"{shown(path.name)}: fold {number}"
        if unknown := sorted({*fold.train, *fold.val} - known):
            problems.append(
                f"{where}: {len(unknown)} unknown case(s), the first is {brief(unknown[0], 60)}. Correct it."
            )
        if leaked := sorted(set(fold.train) & set(fold.val)):
            problems.append(
                f"{where}: {brief(leaked[0], 60)} is in train and in val ({len(leaked)} such case(s)). Correct it."
            )
        if not fold.train or not fold.val:
            problems.append(f"{where}: train or val is empty. Correct it.")
        splits.append((tuple(fold.train), tuple(fold.val)))
    if problems:
        raise InputErrors(problems, summary=f"{shown(path)}: {len(problems)} problem(s); nothing was done.")
    return tuple(splits)
