"""Results by site, scanner, sex or anything else that a CSV file knows about the cases."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from statistics import median

from medmamba.datasets.table import read_csv
from medmamba.errors import InputError
from medmamba.evaluation.report import Evaluation

CASE_COLUMNS = ("case", "case_id", "id", "name")
MOST_GROUPS = 12
"""A column with more different values is split at its median if it holds numbers, and left out if not."""


Subgroups = dict[str, dict[str, list[str]]]
"""For each column of the table and each of its groups: the case ids."""


def read_subgroups(path: Path, evaluation: Evaluation) -> Subgroups:
    """Groups of the evaluated cases from a CSV with a column ``case`` and one column per property.

    Raises InputError when there is no such column, a case stands in it twice, or an evaluated case is missing.
    """
    rows = _rows(path)
    missing = [case_id for case_id in evaluation.cases if case_id not in rows]
    if missing:
        raise InputError(f"{path}: {len(missing)} case(s) are not in the table, the first is {missing[0]}. Add them.")
    columns: Subgroups = {}
    for column in next(iter(rows.values())):
        values = {case_id: rows[case_id][column].strip() or "unknown" for case_id in evaluation.cases}
        if (groups := _groups(values)) is not None:
            columns[column] = groups
    if not columns:
        raise InputError(f"{path}: no column that forms groups. Add columns such as site, scanner or sex.")
    return columns


def _groups(values: Mapping[str, str]) -> dict[str, list[str]] | None:
    if len(set(values.values())) <= MOST_GROUPS:
        names = sorted(set(values.values()))
        return {group: [case_id for case_id, value in values.items() if value == group] for group in names}
    try:
        numbers = {case_id: float(value) for case_id, value in values.items() if value != "unknown"}
    except ValueError:
        return None
    middle = median(numbers.values())
    groups = {
        f"up to {middle:g}": [case_id for case_id, number in numbers.items() if number <= middle],
        f"above {middle:g}": [case_id for case_id, number in numbers.items() if number > middle],
        "unknown": [case_id for case_id, value in values.items() if value == "unknown"],
    }
    return {group: cases for group, cases in groups.items() if cases}


def _rows(path: Path) -> dict[str, dict[str, str]]:
    names, *lines = read_csv(path, str(path)) or [[]]
    column = next((name for name in names if name.strip().lower() in CASE_COLUMNS), None)
    if column is None:
        raise InputError(f"{path}: no column called {' or '.join(CASE_COLUMNS)}. Name the column of case ids.")
    rows: dict[str, dict[str, str]] = {}
    for line in lines:
        row = dict(zip_longest(names, line[: len(names)], fillvalue=""))
        case_id = row.pop(column).strip()
        if case_id in rows:
            raise InputError(f"{path}: {case_id} stands in two rows. Keep one row per case.")
        rows[case_id] = row
    if not rows:
        raise InputError(f"{path}: an empty table. Give one row per case.")
    return rows
