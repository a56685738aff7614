"""The patient of each case: by the dataset's own table, by the case ids, or by a table of the user."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from medmamba.datasets.spec import DatasetSpec
from medmamba.errors import ConfigError, InputError
from medmamba.images.gate import brief, read_small, shown
from medmamba.plans.folds import groups_by_pattern

LARGEST_BYTES = 100 * 2**20
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
    try:
        text = read_small(path, LARGEST_BYTES, where).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 text (byte {error.start}). Save the file as UTF-8.") from None
    separator = max(",;\t", key=text.partition("\n")[0].count)
    rows = list(csv.DictReader(io.StringIO(text), delimiter=separator))
    columns = list(rows[0]) if rows else []
    key = next((name for name in ID_COLUMNS if name in columns), None)
    if key is None or column not in columns:
        missing = "case_id" if key is None else column
        raise ConfigError(
            f"{where}: no column {missing!r} (found: {', '.join(map(str, columns))[:100]}). Name another."
        )
    groups = {row[key].strip(): (row[column] or "").strip() for row in rows if row[key]}
    if without := [case_id for case_id in ids if not groups.get(case_id)]:
        raise ConfigError(
            f"{where}: column {column!r} names no patient for {len(without)} of {len(ids)} cases, the first is "
            f"{brief(without[0])}. Complete the table."
        )
    return {case_id: groups[case_id] for case_id in ids}
