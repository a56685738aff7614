"""The patient of each case: by the dataset's own table, by the case ids, or by a table of the user."""

from __future__ import annotations

from pathlib import Path

from medmamba.datasets.spec import DatasetSpec
from medmamba.datasets.table import read_csv
from medmamba.errors import ConfigError
from medmamba.images.gate import brief, shown
from medmamba.plans.folds import groups_by_pattern

ID_COLUMNS = ("case_id", "case", "id")


def patients_of(spec: DatasetSpec, group_by: str | None = None) -> dict[str, str]:
    """The patient of each training case; a case that is not in it stands alone.

    ``group_by`` is a regular expression whose first group (or whole match) in the case id names the patient, or
    ``TABLE.csv:COLUMN`` for a table with a column ``case_id`` and a column that names the patient. Without it, the
    column ``group`` of the dataset's own table counts.
    """
    ids = [case.case_id for case in spec.cases]
    if group_by is None:
        return {case.case_id: case.group for case in spec.cases if case.group}
    table, colon, column = group_by.rpartition(":")
    if colon and table.lower().endswith(".csv"):
        path = Path(table) if Path(table).exists() else spec.folder / table
        return _from_table(path, column, ids)
    return groups_by_pattern(ids, group_by)


def _from_table(path: Path, column: str, ids: list[str]) -> dict[str, str]:
    where = shown(path)
    columns, *lines = read_csv(path, where) or [[]]
    rows = [dict(zip(columns, line, strict=False)) for line in lines]
    key = next((name for name in ID_COLUMNS if name in columns), None)
    if key is None or column not in columns:
        missing = "case_id" if key is None else column
        raise ConfigError(f"{where}: no column {missing!r} (found: {', '.join(columns)[:100]}). Name another.")
    groups = {row[key].strip(): row.get(column, "").strip() for row in rows if row.get(key)}
    if without := [case_id for case_id in ids if not groups.get(case_id)]:
        raise ConfigError(
            f"{where}: column {column!r} names no patient for {len(without)} of {len(ids)} cases, the first is "
            f"{brief(without[0])}. Complete the table."
        )
    return {case_id: groups[case_id] for case_id in ids}
